"""What is known of an engine's flags beside those that are read: lists made from its own argument parser, and their classes.

The lists (``engines/NAME_flags.json``, made by ``tests/engine_flag_lists.py``) hold names, kinds of values and releases; which
flag changes what is said beside the engine, in texts of names. A name may carry the values that leave all as it is, as in
``api_server_count=1``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from engine_models.flags import Releases, Unread
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class FlagLists:
    """Flags of an engine's parser: name -> kind of value (as `Unread.kind`), other spellings, short ones, and releases.

    of_images : flags of the engine's server of images and video, which the same command starts.
    """

    kinds: Mapping[str, str]
    spellings: Mapping[str, str]
    shorts: Mapping[str, str]
    releases: Releases
    of_images: tuple[str, ...] = ()


def load_flag_lists(path: Path, renamed: Mapping[str, str]) -> FlagLists:
    """Read a list; `renamed` gives the names that the project uses for the parser's own."""
    data = json.loads(path.read_text(encoding="utf-8"))

    def own(name: str) -> str:
        return renamed.get(name, name)

    releases = tuple(data["releases"])
    kinds: dict[str, str] = {}
    spans: dict[str, tuple[str, str]] = {}
    for name, (kind, first, last) in data["flags"].items():
        before = spans.get(own(name), (first, last))
        kinds[own(name)] = kind
        spans[own(name)] = (min(first, before[0], key=releases.index), max(last, before[1], key=releases.index))
    spellings = {word: own(name) for word, name in data["spellings"].items() if word not in kinds}
    return FlagLists(
        kinds,
        {**spellings, **renamed},
        {short: own(name) for short, name in data["shorts"].items()},
        Releases(releases, spans),
        tuple(data["of_images"]),
    )


def classified(
    kinds: Mapping[str, str], harmless: str, changing: Mapping[str, str], refused: Mapping[str, str]
) -> dict[str, Unread]:
    """Flags that are not read: `harmless` names, and names by what they change, a warning or a refusal."""
    found = {name: Unread(kinds[name]) for name, _ in _names(harmless)}
    for groups, is_refused in ((changing, False), (refused, True)):
        for changes, text in groups.items():
            found |= {name: Unread(kinds[name], changes, is_refused, neutral) for name, neutral in _names(text)}
    return found


def _names(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    for word in text.split():
        name, _, values = word.partition("=")
        yield name, tuple(values.split("|")) if values else ()
