"""Host memory behind the prefix cache of the device, each unit with the rank of the request that used it last (vLLM 0.33).

A request uses the units that it stores, those that it finds there when it would store them, and those that it loads. They have
its rank, given at its first use; when it has ended they get a new one, the highest. The lowest rank goes first, in one rank the
end of the prompt before its beginning. What is being copied does not go, nor what is just offered: where too little is left to
go, nothing of an offer is stored, and it is made again with the request's next step, at last when it has ended.

A unit can be loaded when the step after the one that computed it has ended, or the loop has turned without a step; until then
whoever finds it waits.

Source: vLLM 0.33.0 (`v1/kv_offload/cpu/manager.py`, `policies/lru.py`, `kv_connector/v1/offloading/scheduler.py`), recorded.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from itertools import count

from engine_models.memory.kv_tiers import KvTiers, Level
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import Link

Rank = tuple[int, int]
"""Of a request, and how far from the end of its prompt, negative."""


class Unit:
    """A unit, or several that follow one another, of which only their request knows."""

    __slots__ = ("end", "key", "loads", "ready", "request", "units")

    def __init__(self, key: int | None, request: int, end: int, units: int, ready: int) -> None:
        self.key = key  # None: no name
        self.request = request
        self.end = end  # place of the last one, counted from 1
        self.units = units
        self.ready = ready  # found from this batch on
        self.loads = 0  # under way

    @property
    def rank(self) -> Rank:
        """Of its last unit."""
        return self.request, -self.end


class Use:
    """What a request has used: its rank, the places of named units, and units without names."""

    __slots__ = ("alone", "places", "rank")

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.places: dict[int, int] = {}
        self.alone: list[Unit] = []


class RankedHost(KvTiers):
    """`KvTiers` of host memory alone, loaded in the background; a unit is a block."""

    def __init__(
        self, level: Level, block_tokens: int, *, block_bytes: float, rank_block_bytes: float, device_link: Link
    ) -> None:
        super().__init__(
            [level],
            block_tokens,
            unit_bytes=block_bytes,
            rank_unit_bytes=rank_block_bytes,
            device_link=device_link,
            stores_outputs=False,
        )
        self._capacity = level.store.capacity_units
        self._held = 0
        self._units: dict[int, Unit] = {}
        self._order: list[tuple[Rank, int, Unit]] = []
        self._serial = count()
        self._ranks = count()
        self._uses: dict[Sequence, Use] = {}
        self._loads: list[tuple[float, list[Unit]]] = []
        self._ended: list[Sequence] = []
        self._pending = -1  # all that is stored is found from this batch on

    @property
    def blocks(self) -> int:
        """As of the base."""
        return self._held

    @property
    def unsettled(self) -> bool:
        """As of the base."""
        return bool(self.owed or self._ended)

    def pending(self, batch: int) -> bool:
        """As of the base."""
        return self._pending > batch

    # -- storing --------------------------------------------------------------------------------------------

    def store(self, seq: Sequence, known_tokens: int, batch: int, now_s: float = 0.0) -> float:
        """As of the base; what finds no place is `owed`."""
        full, begin = min(known_tokens, seq.prompt_tokens) // self.block_tokens, seq.host_blocks
        if full <= begin:
            return 0.0
        keys = seq.keys or []
        named = keys[begin:full]
        use = self._use_of(seq)
        lacking = []
        for place, key in enumerate(named, begin + 1):
            unit = self._units.get(key)
            if unit is None:
                lacking.append((key, place))
                use.places[key] = place
            elif unit.ready < batch:
                self._raise_rank(unit, use.rank, place)
                use.places[key] = place
        alone = full - max(begin, len(keys))
        wanted = len(lacking) + max(alone, 0)
        if not self._make_room(self._held + wanted - self._capacity, set(named), batch - 1):
            self.owed[seq] = known_tokens
            return 0.0
        self.owed.pop(seq, None)
        for key, place in lacking:
            self._units[key] = self._put(Unit(key, use.rank, place, 1, batch + 1))
        if alone > 0:
            use.alone.append(self._put(Unit(None, use.rank, full, alone, batch + 1)))
        if wanted:
            self._held += wanted
            self._pending = batch + 1
            self.levels[0].written_units += wanted
        seq.host_blocks = full
        return 0.0

    def paused(self, seq: Sequence, known_tokens: int, batch: int, now_s: float) -> None:
        """As of the base: nothing but what was stored already."""
        self.owed.pop(seq, None)

    def ended(self, seq: Sequence, known_tokens: int, batch: int, now_s: float) -> None:
        """As of the base: with the next step."""
        self._ended.append(seq)

    def left(self, seq: Sequence) -> None:
        """As of the base: it offers nothing more, and gives what it has used a new rank with the next step."""
        self.owed.pop(seq, None)
        self._ended.append(seq)

    def end_step(self, batch: int, now_s: float) -> None:
        """As of the base: ended requests offer once more what they owe, and give what they have used a new rank."""
        for seq in self._ended:
            if seq in self.owed:
                self.store(seq, self.owed[seq], batch, now_s)
                self.owed.pop(seq, None)
        for seq in self._ended:
            use = self._uses.pop(seq, None)
            if use is None:
                continue
            rank = next(self._ranks)
            for key, place in use.places.items():
                unit = self._units.get(key)
                if unit is not None:
                    unit.request, unit.end = rank, place
                    self._enter(unit)
            for unit in use.alone:
                if unit.units:
                    unit.request = rank
                    self._enter(unit)
        self._ended.clear()

    def name(self, seq: Sequence) -> None:
        """As of the base."""
        use = self._uses.get(seq)
        if use is None or not seq.keys:
            return
        for run in use.alone:
            for place in range(run.end - run.units + 1, run.end + 1):
                key = seq.keys[place - 1]
                self._units[key] = self._put(Unit(key, run.request, place, 1, run.ready))
                use.places[key] = place
            run.units = 0
        use.alone.clear()

    def _use_of(self, seq: Sequence) -> Use:
        use = self._uses.get(seq)
        if use is None:
            use = self._uses[seq] = Use(next(self._ranks))
        return use

    def _raise_rank(self, unit: Unit, request: int, place: int) -> None:
        if (request, -place) > unit.rank:
            unit.request, unit.end = request, place
            self._enter(unit)

    def _put(self, unit: Unit) -> Unit:
        self._enter(unit)
        return unit

    def _enter(self, unit: Unit) -> None:
        order = self._order
        if len(order) > 2 * self._held + 64:  # most are of ranks that have been raised since
            self._order = order = [entry for entry in order if entry[2].units and entry[0] == entry[2].rank]
            heapify(order)
        heappush(order, (unit.rank, next(self._serial), unit))

    def _make_room(self, excess: int, kept: set[int], batch: int) -> bool:
        """Let units of the lowest ranks go; False, and none goes, if there are not so many that may."""
        if excess <= 0:
            return True
        order = self._order
        chosen: dict[Unit, int] = {}
        passed: list[tuple[Rank, int, Unit]] = []
        while order and excess > 0:
            entry = heappop(order)
            rank, _, unit = entry
            if not unit.units or rank != unit.rank or unit in chosen:
                continue
            passed.append(entry)
            if unit.ready > batch or unit.loads or unit.key in kept:
                continue
            taken = min(unit.units, excess)
            chosen[unit] = taken
            excess -= taken
        if excess <= 0:
            for unit, taken in chosen.items():
                unit.units -= taken
                unit.end -= taken
                self._held -= taken
                if not unit.units and unit.key is not None:
                    del self._units[unit.key]
        for _, serial, unit in passed:
            if unit.units:
                heappush(order, (unit.rank, serial, unit))
        return excess <= 0

    # -- loading --------------------------------------------------------------------------------------------

    def find(self, seq: Sequence, held_blocks: int, batch: int, now_s: float = 0.0) -> int | None:
        """As of the base."""
        seq.host_blocks = 0  # whatever it has is offered again
        keys = (seq.keys or [])[: seq.length // self.block_tokens]
        at, later = held_blocks, False
        while at < len(keys):
            unit = self._units.get(keys[at])
            if unit is None:
                break
            later = later or unit.ready > batch or unit.loads > 0
            at += 1
        return None if later else max(0, at - held_blocks)

    def load(self, seq: Sequence, held_blocks: int, blocks: int, batch: int, now_s: float) -> float:
        """As of the base."""
        size, use = self.block_tokens, self._use_of(seq)
        places = range(held_blocks + 1, held_blocks + blocks + 1)
        units = []
        for place in places:
            key = (seq.keys or [])[place - 1]
            unit = self._units[key]
            unit.loads += 1
            units.append(unit)
            self._raise_rank(unit, use.rank, place)
            use.places[key] = place
        level = self.levels[0]
        if seq.first_scheduled_s < 0:
            level.hit_tokens += min((held_blocks + blocks) * size, seq.length - 1) - held_blocks * size
        level.read_units += blocks
        seq.host_blocks = held_blocks + blocks
        seq.loaded_s = self.send(blocks, now_s)
        self._loads.append((seq.loaded_s, units))
        return 0.0

    def arrived(self, now_s: float) -> None:
        """As of the base."""
        for entry in [entry for entry in self._loads if entry[0] <= now_s]:
            for unit in entry[1]:
                unit.loads -= 1
            self._loads.remove(entry)

    def end_load(self, seq: Sequence, tokens: int) -> None:
        """As of the base: it has been noticed when it ended."""


__all__ = ["RankedHost"]
