"""How servers of an engine are started: what `engine_models.launch` looks for in a text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from hardware_profiles.records import dataclass

LONGEST_TEXT = 100_000
"""Longest text that is read as a launch command [characters]; assumed, far above any manifest of one server."""
CALL = "()"
"""Stands for a program that calls the engine, among other products' programs that start it."""
CONTAINER_KEYS = ("image", "command", "args", "entrypoint")
"""Keys of a container, which a mapping of flags has not."""


@dataclass(frozen=True)
class Launcher:
    """How servers of an engine are started.

    programs : patterns of the one to three words before the arguments.
    image : pattern of the engine's container images, registry and tag left out.
    published : those of them whose tag is the engine's version.
    enters : whether what follows such an image are the server's arguments.
    package : its package, of a requirement as ``name==1.2``.
    calls : functions of Python that start it, by their full names; the model comes first, flags by keyword. first : keywords
        that are flags too where what comes first is made with them: it is what a server serves, not a program that computes by
        itself.
    groups : classes of settings among these, and what naming one says beside its keys. called : such keywords as flags.
    workers : patterns of programs of other products that start it, with flags of their own besides.
    clients : patterns of commands whose first argument names the model that a server of it serves.
    written : a document as one with containers, where it is of a product that starts this engine by keys of its own; as it is
        otherwise.
    example : a launch command, for mends.
    """

    programs: tuple[str, ...]
    example: str
    image: str = ""
    published: str = ""
    enters: bool = False
    package: str = ""
    calls: tuple[str, ...] = ()
    first: tuple[str, ...] = ()
    groups: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    called: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda keywords: keywords
    workers: tuple[str, ...] = ()
    clients: tuple[str, ...] = ()
    written: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda document: document
