"""Numbers of contents over several loads, and over runs: what has a name outside of its load has one number in all of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np

from simulator.workload.columns import Content, Named

Name = tuple[str, int]
"""A content by its source and its name there: ("shared_prefix", 3), ("trace 1f09...", 17)."""


class SegmentNumbers:
    """Numbers of segments. Equal names have equal numbers, and what has no name has a number of its own in each load."""

    def __init__(self) -> None:
        self._fresh = count()
        self._numbers: dict[Name, int] = {}
        self._names: dict[int, Name] = {}

    def number(self, source: str, name: int) -> int:
        """The number of a named segment."""
        found = self._numbers.get((source, name))
        if found is None:
            found = self._numbers[source, name] = next(self._fresh)
            self._names[found] = source, name
        return found

    def fresh(self) -> int:
        """A number that nothing else has."""
        return next(self._fresh)

    def name(self, number: int) -> Name | None:
        """The name behind a number, None for contents of one load alone."""
        return self._names.get(number)

    def renumber(self, content: Content) -> Content:
        """The content of a load by these numbers; what has a name counts as found by others."""
        outputs = content.output_segment
        used = np.unique(np.concatenate((content.segment, outputs[outputs >= 0])))
        names = {
            segment: (each.source, name)
            for each in content.named
            for segment, name in zip(each.segments.tolist(), each.ids.tolist(), strict=True)
        }
        numbers = np.array(
            [self.number(*names[at]) if at in names else self.fresh() for at in used.tolist()], dtype=np.int64
        )
        runs, answers = content.named_by_others()
        known = np.isin(content.segment, np.fromiter(names, np.int64, len(names)))
        named = tuple(
            Named(each.source, each.ids, np.array([self.number(each.source, name) for name in each.ids.tolist()]))
            for each in content.named
        )
        return replace(
            content,
            segment=numbers[np.searchsorted(used, content.segment)],
            output_segment=np.where(outputs >= 0, numbers[np.searchsorted(used, np.maximum(outputs, used[:1]))], -1)
            if len(used)
            else outputs,
            found=runs | known,
            output_found=answers,
            named=named,
        )
