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
    asked_units : as many must have sides before a place that does not follow what is held; None for those that it takes.
    Others as of the base.
    """

    def __init__(self, *args: Any, needed_units: int, side_units: float, asked_units: int | None = None, **others: Any) -> None:
        super().__init__(*args, **others)
        self._needed, self._side_units = needed_units, side_units
        self._asked = needed_units if asked_units is None else asked_units
        self._sides: dict[int, int] = {}  # names of the units whose sides are stored, and the batch from which they are found
        self._copied: dict[Sequence, int] = {}  # from which batch on nothing of a request is being stored
        self._newest = -1  # all that is stored is found from this batch on
        self._alone = self.staged and [level.kind for level in self.levels] == ["host"]
        self._brought = 0  # units whose sides come with the load that begins

    def store(self, seq: Sequence, known_tokens: int, batch: int, now_s: float = 0.0) -> float:
        """As of the base; sides go with the units before a place."""
        before, had = seq.host_blocks, sum(level.written_units for level in self.levels)
        waits_s = super().store(seq, known_tokens, batch, now_s)
        new = self._mark(seq, before, batch + 1)
        if new or sum(level.written_units for level in self.levels) > had:
            self._copied[seq] = self._newest = batch + 1
        if new:
            for level in self.levels:
                level.store.put_private(None, round(new * self._side_units), batch + 1 if level.by_batch else now_s)
                level.store.evict()
        return waits_s

    def name(self, seq: Sequence) -> None:
        """As of the base; its own place to resume from has a name then."""
        super().name(seq)
        self._mark(seq, 0, self._copied.get(seq, 0))

    def pending(self, batch: int) -> bool:
        """As of the base."""
        return self._alone and self._newest > batch

    def ended(self, seq: Sequence, known_tokens: int, batch: int, now_s: float) -> None:
        """As of the base."""
        super().ended(seq, known_tokens, batch, now_s)
        self._copied.pop(seq, None)

    def left(self, seq: Sequence) -> None:
        """As of the base."""
        super().left(seq)
        self._copied.pop(seq, None)

    def _mark(self, seq: Sequence, before: int, ready: int) -> int:
        """Note the sides before places behind more than `before` units, as far as they are stored and named; how many are new.

        They are found from batch `ready` on.
        """
        names, size, had = self._names(seq), self.block_tokens * self.unit_blocks, len(self._sides)
        there = min(seq.host_blocks, len(names))
        for tokens in (seq.prompt_tokens - 1, seq.junction_tokens):
            last = tokens // size
            if last > before:
                for name in names[max(0, last - self._needed) : min(last, there)]:
                    self._sides.setdefault(name, ready)
        new = len(self._sides) - had
        if had + new > 2 * sum(level.store.units for level in self.levels):
            for name in [name for name in self._sides if not any(lv.store.has(name, INFINITY) for lv in self.levels)]:
                del self._sides[name]
        return new

    def find(self, seq: Sequence, held_blocks: int, batch: int, now_s: float = 0.0) -> int | None:
        """As of the base, up to the last place that can be resumed from; the last token is computed again."""
        if self._alone:
            return self._find_on_host(seq, held_blocks, batch)
        found = super().find(seq, held_blocks, batch, now_s)
        if not found:
            return found
        size, names, sides = self.unit_blocks, self._names(seq), self._sides
        last, begin = min(held_blocks + found, (seq.length - 1) // self.block_tokens) // size, held_blocks // size
        while last * size > held_blocks and not all(name in sides for name in names[max(begin, last - self._asked) : last]):
            last -= 1
        return max(0, last * size - held_blocks)

    def _find_on_host(self, seq: Sequence, held_blocks: int, batch: int) -> int | None:
        """`find` where host memory is all: what is being stored is waited for, if it is part of what would be loaded.

        As `_lookup_complete_chunks` does it: units that follow one another, then the last place among them with its sides; if
        that is nearer, and some of the units were being stored, the units before it once more.
        """
        if self._copied.get(seq, -1) > batch:
            return None  # it is being stored itself
        seq.host_blocks = 0  # whatever it has is offered again
        size, names, store = self.unit_blocks, self._names(seq), self.levels[0].store
        begin, last = held_blocks // size, min((seq.length - 1) // (self.block_tokens * size), len(names))
        while True:
            at = begin
            while at < last and store.has(names[at], INFINITY):
                at += 1
            waits = not all(store.has(name, batch) for name in names[begin:at])
            place, copied = self._last_place(names, begin, last if waits else at, batch) if at > begin else (begin, True)
            if place == begin:
                return 0
            if not copied:
                return None
            if not waits or place == last:
                break
            last = place
        if waits or any(name in self._loading_keys for name in names[begin:place]):
            return None
        store.touch(names[:place])
        return max(0, place * size - held_blocks)

    def _last_place(self, names: list[int], begin: int, end: int, batch: int) -> tuple[int, bool]:
        """Last place from unit `begin` to `end` with its sides behind `begin`, and whether these are stored by batch `batch`."""
        run, copied = 0, True
        for place in range(end - 1, begin - 1, -1):
            ready = self._sides.get(names[place])
            run, copied = (0, True) if ready is None else (run + 1, copied and ready <= batch)
            if run == self._asked:
                return place + run, copied
        return begin + run, copied

    def load(self, seq: Sequence, held_blocks: int, blocks: int, batch: int, now_s: float) -> float:
        """As of the base."""
        size = self.unit_blocks
        end = (held_blocks + blocks) // size
        self._brought = min(end - held_blocks // size, self._needed)
        waits_s = super().load(seq, held_blocks, blocks, batch, now_s)
        if self._alone:
            seq.host_blocks = end
        return waits_s

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
