"""Tiers of KV blocks of models whose layers see different spans: beyond the device they can be resumed from some places alone.

Of layers without a window every full unit of a prompt is stored, of the others (windows, states of recurrent layers) the *sides*
of those units that are needed to resume at a prompt's end, or where a shared prefix was seen to end (`HybridKV`,
`sparse_windows`). So a prefix is found as far as the last place before which all that a window sees has its sides, and a load
brings its units and these sides. Sides take room like units that only their own request could find.

Source: `kv_connector/v1/offloading/scheduler.py` of vLLM 0.33.0, whose retention interval is 0 unless stated, checked against its
scheduler under drawn loads with a sliding window and roomy host memory; `mooncake/store/coordinator.py` is taken to be alike.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.kv_tiers import KvTiers
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierKind


class ResumableTiers(KvTiers):
    """`KvTiers` of such a model.

    Parameters
    ----------
    needed_units : before a place, whose sides it takes to resume there. side_units : what the sides of one unit take, in units.
    Others as of the base.
    """

    def __init__(self, *args: Any, needed_units: int, side_units: float, **others: Any) -> None:
        super().__init__(*args, **others)
        self._needed, self._side_units = needed_units, side_units
        self._sides: set[int] = set()  # names of the units whose sides are stored
        self._brought = 0  # units whose sides come with the load that begins

    def store(self, seq: Sequence, known_tokens: int, batch: int, now_s: float = 0.0) -> float:
        """As of the base; sides go with the units before a place."""
        before = seq.host_blocks
        waits_s = super().store(seq, known_tokens, batch, now_s)
        new = self._mark(seq, before)
        if new:
            for level in self.levels:
                level.store.put_private(None, round(new * self._side_units), batch + 1 if level.by_batch else now_s)
                level.store.evict()
        return waits_s

    def name(self, seq: Sequence) -> None:
        """As of the base; its own place to resume from has a name then."""
        super().name(seq)
        self._mark(seq, 0)

    def _mark(self, seq: Sequence, before: int) -> int:
        """Note the sides before places behind more than `before` units, as far as they are stored and named; how many are new."""
        names, size, had = self._names(seq), self.block_tokens * self.unit_blocks, len(self._sides)
        there = min(seq.host_blocks, len(names))
        for tokens in (seq.prompt_tokens - 1, seq.junction_tokens):
            last = tokens // size
            if last > before:
                self._sides.update(names[max(0, last - self._needed) : min(last, there)])
        new = len(self._sides) - had
        if had + new > 2 * sum(level.store.units for level in self.levels):
            self._sides -= {name for name in self._sides if not any(lv.store.has(name, INFINITY) for lv in self.levels)}
        return new

    def find(self, seq: Sequence, held_blocks: int, batch: int, now_s: float = 0.0) -> int | None:
        """As of the base, up to the last place that can be resumed from; the last token is computed again."""
        found = super().find(seq, held_blocks, batch, now_s)
        if not found:
            return found
        size, names, sides = self.unit_blocks, self._names(seq), self._sides
        last = min(held_blocks + found, (seq.length - 1) // self.block_tokens) // size
        while last * size > held_blocks and not sides.issuperset(names[max(0, last - self._needed) : last]):
            last -= 1
        return max(0, last * size - held_blocks)

    def load(self, seq: Sequence, held_blocks: int, blocks: int, batch: int, now_s: float) -> float:
        """As of the base."""
        self._brought = min((held_blocks + blocks) // self.unit_blocks, self._needed)
        return super().load(seq, held_blocks, blocks, batch, now_s)

    def join(self, other: KvTiers, kind: TierKind) -> None:
        """As of the base; what others mark in a store that is shared can be resumed from here too."""
        super().join(other, kind)
        if kind == "shared":
            assert isinstance(other, ResumableTiers)
            self._sides = other._sides

    def send(self, number: float, now_s: float) -> float:
        """As of the base, with the sides."""
        return super().send(number + self._brought * self._side_units, now_s)


__all__ = ["ResumableTiers"]
