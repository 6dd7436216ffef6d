"""How much of what is drawn or listed a run of the tests takes: all under continuous integration, a sample elsewhere.

Examples of a property, and cases of a long list, are alike and cost alike: a sample finds what is broken in general, the whole
finds what is broken in a corner.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TypeVar

T = TypeVar("T")

WHOLE = os.environ.get("CI", "").lower() in ("1", "true")
"""Whether all is taken: continuous integration says so by this variable, and so may anybody."""
PART = 3
"""Of how many one is taken elsewhere."""


def some(cases: Iterable[T], first: int = 0) -> list[T]:
    """One of every three cases, begun at `first` (tests of one list begin apart), or all of them."""
    listed = list(cases)
    return listed if WHOLE else listed[first::PART]


def examples(number: int) -> int:
    """So many examples of a property, or a third of them."""
    return number if WHOLE else -(-number // PART)
