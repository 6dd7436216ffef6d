"""Schedulers that follow several rules at once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeVar

from engine_models.parts.protocols import Scheduler

S = TypeVar("S", bound=Scheduler)


def composed(rules: Sequence[type[S]]) -> type[S]:
    """A class that follows all of these, each of which hands on to the next what is not its own; they share a base."""
    return rules[0] if len(rules) == 1 else _composed(tuple(rules))


@cache
def _composed(rules: tuple[type[S], ...]) -> type[S]:
    return type("".join(rule.__name__.removesuffix("Scheduler") for rule in rules) + "Scheduler", rules, {})


__all__ = ["composed"]
