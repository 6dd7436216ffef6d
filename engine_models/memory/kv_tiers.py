"""Tiers of KV blocks behind the prefix cache of the device: host memory, a disk, a store that replicas share.

Every full unit of a prompt (one block, or a chunk of several) is copied down after the step that computed it, of generated tokens
too if the engine does so, into the first tier and from there to all others; in each it stays until newer ones push it out,
least recently used first. A waiting request whose prefix goes on where the device's cache ends loads it. There are three ways:

- *in the background*: it is given device blocks at once and loads them, one load after another; it can be scheduled when its load
  has ended. Meanwhile others run: copies take no compute.
- *staged*: the same, from the first tier alone; what is found further down comes up to that first, and the request waits
  without blocks until it is there.
- *in the step*: the request is scheduled at once, and its step lasts as much longer as the loads and the stores of it take.

With `in_order` a tier is asked for what follows the hit of the nearer one, as Dynamo's block manager does.

Units that no other request can find are counted, not named; a preempted request's are named then, for it may come back to
find them.

Source: `vllm/v1/kv_offload/` (the LRU manager, the tiering manager: read 2026-11) and
`distributed/kv_transfer/kv_connector/v1/offloading_connector.py` in public copies of 0.11 to 0.33; LMCache's
`integration/vllm/vllm_v1_adapter.py` (read 2026-11). A store into host memory is visible one step after the step that computed
it: the copy of a block takes less than a step. A store further down is visible when its copy has ended.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Series
from heapq import heappop, heappush

from mypy_extensions import mypyc_attr

from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import Link, TierCount, TierKind, through
from hardware_profiles.errors import InputError

Moment = float
"""A time [s], or the number of a batch."""


class Stored:
    """Units of one request that only it could find: one place in the order of use, however many they are."""

    __slots__ = ("blocks", "tenant")

    def __init__(self, blocks: int, tenant: int = 0) -> None:
        self.blocks = blocks
        self.tenant = tenant


Name = int | tuple[int, int] | Stored
"""What stands in a room: a unit's key, of the first of its stores alone; number of the store and key; units without names."""


class Room:
    """Bytes that stores share: what is in all of them in order of its last use, and the stores by number."""

    __slots__ = ("capacity_bytes", "entries", "stores", "used_bytes")

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self.entries: OrderedDict[Name, Moment] = OrderedDict()
        self.stores: list[BlockStore] = []


class BlockStore:
    """Units in order of their last use, each with the moment from which it can be found: a batch or a time.

    `unit_bytes` are those of a unit; of one that moves `beside` another they decide what it takes of their common room.
    """

    def __init__(self, capacity_units: int, unit_bytes: int = 1, room_bytes: int = 0) -> None:
        self.capacity_units = capacity_units
        self.unit_bytes = unit_bytes
        self.units = 0
        self._number = 0
        self._move(Room(max(room_bytes, capacity_units * unit_bytes)))

    def _move(self, room: Room) -> None:
        self._room = room
        self._entries = room.entries
        self._number = len(room.stores)
        room.stores.append(self)

    def beside(self, other: BlockStore) -> None:
        """Share the room of another store, and nothing that is in it. Before: this one is empty."""
        self._move(other._room)
        self.capacity_units = other._room.capacity_bytes // self.unit_bytes

    def _names(self, keys: Series[int]) -> list[Name]:
        number = self._number
        return [(number, key) for key in keys]

    def has(self, key: int, moment: Moment) -> bool:
        """Whether a unit is there at a moment."""
        ready = self._entries.get((self._number, key) if self._number else key)
        return ready is not None and ready <= moment

    def touch(self, keys: Series[int]) -> None:
        """Those of these units that are there are used, the first of them last."""
        entries = self._entries
        for name in reversed(self._names(keys) if self._number else keys):
            if name in entries:
                entries.move_to_end(name)

    def put(self, keys: Series[int], ready: Moment) -> int:
        """Take named units in, as found from a moment on; return how many were not there."""
        entries, new = self._entries, 0
        for name in self._names(keys) if self._number else keys:
            if name in entries:
                entries.move_to_end(name)
            else:
                entries[name] = ready
                new += 1
        self._hold(new)
        return new

    def _hold(self, units: int) -> None:
        self.units += units
        self._room.used_bytes += units * self.unit_bytes

    def put_private(self, run: Stored | None, units: int, ready: Moment) -> Stored:
        """Take units without names in, beside those of `run` if these are there still; return where they stand."""
        if run is None or run not in self._entries:
            run = Stored(0, self._number)
            self._entries[run] = ready
        run.blocks += units
        self._hold(units)
        self._entries.move_to_end(run)
        return run

    def name(self, run: Stored | None, keys: Series[int]) -> None:
        """Name the units of `run`, of which the last have these keys."""
        if run is None or run not in self._entries:
            return
        ready, named = self._entries.pop(run), -run.blocks
        last = keys[max(0, len(keys) - run.blocks) :]
        for name in self._names(last) if self._number else last:
            if name not in self._entries:
                self._entries[name] = ready
                named += 1
        self._hold(named)

    def evict(self) -> None:
        """Push out what is too much, of whichever store of the room."""
        entries, room = self._entries, self._room
        while (excess := room.used_bytes - room.capacity_bytes) > 0:
            entry = next(iter(entries))
            if isinstance(entry, Stored):
                owner = room.stores[entry.tenant]
                taken = min(-(-excess // owner.unit_bytes), entry.blocks)
                entry.blocks -= taken
                if not entry.blocks:
                    del entries[entry]
            else:
                owner = room.stores[entry[0] if isinstance(entry, tuple) else 0]
                taken = 1
                del entries[entry]
            owner._hold(-taken)


class FrequencyFilter:
    """Lets units through that have come often of late: a count is 1 at first, doubles each time, and falls by one now and then.

    Source: Dynamo's `block_manager/offload/filter.rs` and its `block_manager.rs` for the numbers (read 2026-11); that no more
    than a million units are counted is left out.
    """

    def __init__(self, least: int = 2, falls_every_s: float = 600.0) -> None:
        self._least, self._every_s = least, falls_every_s
        self._counts: dict[int, tuple[int, int]] = {}  # of each unit, and as of which fall

    def passes(self, key: int, now_s: float) -> bool:
        """Count a unit that comes now; whether it may be written."""
        falls = int(now_s // self._every_s)
        count, since = self._counts.get(key, (0, falls))
        left = count - (falls - since)
        count = 2 * left if left > 0 else 1
        self._counts[key] = count, falls
        return count >= self._least


class Level:
    """One tier: what it holds, and the ways that a copy from it to host memory takes, and one into it.

    `lets_in` says which units it takes, None for all.
    """

    def __init__(
        self,
        kind: TierKind,
        store: BlockStore,
        reads: Series[Link] = (),
        writes: Series[Link] = (),
        lets_in: FrequencyFilter | None = None,
    ) -> None:
        self.kind = kind
        self.lets_in = lets_in
        self.store = store
        self.reads, self.writes = list(reads), list(writes)
        self.hit_tokens = 0
        self.read_units = self.written_units = 0

    @property
    def by_batch(self) -> bool:
        """Whether its units are found from a batch on, not from a time."""
        return self.kind == "host"


@mypyc_attr(allow_interpreted_subclasses=True)
class KvTiers:
    """The tiers of one replica, the nearest first.

    Parameters
    ----------
    levels : the tiers.
    block_tokens : tokens of a device's block. unit_blocks : blocks of a unit.
    unit_bytes : of a unit, all ranks together.
    device_link : from host memory to one rank; ranks load their parts side by side. rank_unit_bytes : a unit on one rank.
    stores_outputs : whether units of generated tokens are stored too.
    staged : whether what is further down than the first tier comes up to it first.
    in_step : whether loads and stores prolong the step of the request.
    from_start : whether only what is found from the first unit on counts, not what follows the device's hit.
    in_order : whether each tier is asked for what follows the hit of the nearer one, and nothing is stored again that was found.
    """

    def __init__(
        self,
        levels: Series[Level],
        block_tokens: int,
        *,
        unit_blocks: int = 1,
        unit_bytes: float,
        rank_unit_bytes: float,
        device_link: Link,
        stores_outputs: bool,
        staged: bool = True,
        in_step: bool = False,
        from_start: bool = False,
        in_order: bool = False,
    ) -> None:
        self.levels = list(levels)
        self.block_tokens = block_tokens
        self.unit_blocks = unit_blocks
        self.unit_bytes = unit_bytes
        self.stores_outputs = stores_outputs
        self.staged, self.in_step, self.from_start, self.in_order = staged, in_step, from_start, in_order
        self._link = device_link
        self._device_unit_s = rank_unit_bytes / device_link.bytes_per_s
        self._loading_keys: dict[int, int] = {}
        self._rising: dict[int, tuple[float, Level]] = {}  # came up to the first tier, or will: when they are there
        self._coming_s: list[float] = []  # when those are there that are on their way
        self.owed: dict[Sequence, int] = {}  # requests that offer so many tokens again, as there was no place

    @property
    def blocks(self) -> int:
        """Units in the first tier."""
        return self.levels[0].store.units

    def _names(self, seq: Sequence) -> list[int]:
        """Names of the sequence's units: that of the last block of each, which stands for all before it."""
        keys, size = seq.keys or [], self.unit_blocks
        return keys if size == 1 else keys[size - 1 :: size]

    # -- storing --------------------------------------------------------------------------------------------

    def store(self, seq: Sequence, known_tokens: int, batch: int, now_s: float = 0.0) -> float:
        """Copy the full units of `known_tokens` tokens that were not copied yet down; batch `batch` computes them.

        Return how long the step has to wait for it [s].
        """
        tokens = known_tokens if self.stores_outputs else min(known_tokens, seq.prompt_tokens)
        full = tokens // (self.block_tokens * self.unit_blocks)
        if full <= seq.host_blocks:
            return 0.0
        keys = self._names(seq)
        named, private = keys[seq.host_blocks : full], full - max(seq.host_blocks, len(keys))
        copied = 0
        runs: list[Stored | None] = seq.host_run if seq.host_run is not None else [None] * len(self.levels)
        for number, level in enumerate(self.levels):
            store, taken, alone = level.store, named, max(private, 0)
            if level.lets_in is not None:  # what no other request can find comes once
                new = (key for key in named if not store.has(key, INFINITY))
                taken, alone = [key for key in new if level.lets_in.passes(key, now_s)], 0
            lacking = sum(not store.has(key, INFINITY) for key in taken) + alone
            copied = max(copied, lacking)
            level.written_units += lacking
            ready = through(level.writes, lacking * self.unit_bytes, now_s) if lacking else now_s
            store.put(taken, batch + 1 if level.by_batch else ready)
            if alone:
                runs[number] = store.put_private(runs[number], alone, batch + 1 if level.by_batch else ready)
            store.evict()
        seq.host_run = runs
        seq.host_blocks = full
        return copied * self._device_unit_s if self.in_step else 0.0

    def paused(self, seq: Sequence, known_tokens: int, batch: int, now_s: float) -> None:
        """A request is preempted, which has so many tokens."""
        self.store(seq, known_tokens, batch, now_s)

    def ended(self, seq: Sequence, known_tokens: int, batch: int, now_s: float) -> None:
        """A request has ended, which has so many tokens."""
        self.store(seq, known_tokens, batch, now_s)

    def left(self, seq: Sequence) -> None:
        """A request is dropped."""

    def end_step(self, batch: int, now_s: float) -> None:
        """All of a step has been stored."""

    @property
    def unsettled(self) -> bool:
        """Whether the next step has more to do than its rows say."""
        return False

    @property
    def rises(self) -> bool:
        """Whether a waiting request may bring units up that its device hit, which others shorten, has lost."""
        return self.staged and len(self.levels) > 1

    def pending(self, batch: int) -> bool:
        """Whether what is stored is found when the loop turns once more without a step."""
        return False

    def name(self, seq: Sequence) -> None:
        """Name the units of a preempted request, whose keys its device cache has just made: it may look itself up."""
        runs = seq.host_run
        seq.host_run = None
        if runs is None or not seq.keys:
            return
        keys = self._names(seq)[: seq.host_blocks]
        for level, run in zip(self.levels, runs, strict=True):
            level.store.name(run, keys)

    # -- loading --------------------------------------------------------------------------------------------

    def find(self, seq: Sequence, held_blocks: int, batch: int, now_s: float = 0.0) -> int | None:
        """Blocks found here that follow the `held_blocks` found on the device; None if they, or others' loads of them, are on
        their way.
        """
        keys = self._names(seq)
        if not keys:
            return 0
        size = self.unit_blocks
        begin = held_blocks // size
        end = seq.length // (self.block_tokens * size)
        at = 0 if self.from_start else begin
        rises: list[tuple[int, Level]] = []
        first, nearest = self.levels[0], 0
        room = first.store.capacity_units - len(self._coming_s)
        while at < min(end, len(keys)):
            key = keys[at]
            level = self._level_of(key, batch, now_s, nearest)
            if level is None:
                break
            nearest = self.levels.index(level) if self.in_order else 0
            if key in self._loading_keys and at >= begin and not self.in_step:
                return None
            if self.staged and level is not first:
                if at - begin >= room:
                    break  # the first tier has no place for more of it
                rises.append((key, level))
            at += 1
        for each in self.levels:
            each.store.touch(keys[:at])
        if rises:
            self._raise(rises, batch, now_s)
        if any(key in self._rising and self._rising[key][0] > now_s for key in keys[begin:at]):
            return None
        if self.in_order:
            seq.host_blocks = max(at, begin)
        return max(0, at * size - held_blocks)

    def _level_of(self, key: int, batch: int, now_s: float, nearest: int = 0) -> Level | None:
        for level in self.levels[nearest:]:
            if level.store.has(key, batch if level.by_batch else now_s):
                return level
        return None

    def _raise(self, rises: list[tuple[int, Level]], batch: int, now_s: float) -> None:
        """Bring units up to the first tier."""
        first = self.levels[0]
        for level in self.levels[1:]:
            keys = [key for key, where in rises if where is level]
            if not keys:
                continue
            there_s = through(level.reads, len(keys) * self.unit_bytes, now_s)
            level.read_units += len(keys)
            first.store.put(keys, batch)
            for key in keys:
                self._rising[key] = there_s, level
                heappush(self._coming_s, there_s)
        first.store.evict()

    def arrived(self, now_s: float) -> None:
        """Forget what is on its way and is there by now."""
        while self._coming_s and self._coming_s[0] <= now_s:
            heappop(self._coming_s)

    def wake_s(self) -> float:
        """When the next unit is there that is on its way up; infinite if none is."""
        return self._coming_s[0] if self._coming_s else INFINITY

    def load(self, seq: Sequence, held_blocks: int, blocks: int, batch: int, now_s: float) -> float:
        """Start loading `blocks` blocks behind the `held_blocks` of the device; `seq.loaded_s` says when they are there [s].

        Return how long the step has to wait for it [s].
        """
        size = self.unit_blocks
        begin, end = held_blocks // size, (held_blocks + blocks) // size
        keys = self._names(seq)[begin:end]
        there_s = now_s
        unit_tokens, known = size * self.block_tokens, held_blocks * self.block_tokens
        found: dict[Level, int] = {}
        nearest = 0
        for number, key in enumerate(keys, begin + 1):
            _, level = self._rising.pop(key, (0.0, self._level_of(key, batch, now_s, nearest)))
            assert level is not None
            nearest = self.levels.index(level) if self.in_order else 0
            found[level] = found.get(level, 0) + 1
            before, known = known, min(number * unit_tokens, seq.length - 1)  # the last token is computed again
            if seq.first_scheduled_s < 0:
                level.hit_tokens += known - before
        if self.staged:
            self.levels[0].read_units += len(keys)
        else:
            for level, units in found.items():
                level.read_units += units
                there_s = max(there_s, through(level.reads, units * self.unit_bytes, now_s))
        seq.loaded_s = self.send(len(keys), there_s)
        if self.in_step:
            return seq.loaded_s - now_s
        for key in keys:
            self._loading_keys[key] = seq.index
        return 0.0

    def send(self, number: float, now_s: float) -> float:
        """Copy a number of units from host memory to the device; return when they are there [s]."""
        return self._link.send(number * self._device_unit_s, now_s)

    def end_load(self, seq: Sequence, tokens: int) -> None:
        """The load has ended: its units may be loaded by others again."""
        for key in self._names(seq)[: tokens // (self.block_tokens * self.unit_blocks)]:
            if self._loading_keys.get(key) == seq.index:
                del self._loading_keys[key]

    def counts(self) -> list[TierCount]:
        """What became of each tier."""
        size = self.unit_bytes
        return [
            TierCount(level.kind, level.hit_tokens, level.read_units * size, level.written_units * size)
            for level in self.levels
        ]

    # -- sharing --------------------------------------------------------------------------------------------

    def join(self, other: KvTiers, kind: TierKind) -> None:
        """Share a tier with another replica: a store with its rate, of a disk the rate alone.

        InputError if their units differ.
        """
        mine_tokens, theirs_tokens = (each.unit_blocks * each.block_tokens for each in (self, other))
        if kind == "shared" and mine_tokens != theirs_tokens:
            raise InputError(
                f"one store of units of {mine_tokens} and {theirs_tokens} tokens",
                where="deployment.kv_tiers",
                mend="give all pools chunks of the same size",
            )
        kept = {level.kind: level for level in other.levels}
        for mine in (level for level in self.levels if level.kind == kind):
            theirs = kept[kind]
            if kind == "shared":
                mine.store = theirs.store
                mine.reads[0], mine.writes[-1] = theirs.reads[0], theirs.writes[-1]
            else:
                mine.reads, mine.writes = theirs.reads, theirs.writes

    def beside(self, other: KvTiers) -> None:
        """Use the room and the rate of another's shared store, where the units of both are told apart."""
        theirs = next(level for level in other.levels if level.kind == "shared")
        for mine in (level for level in self.levels if level.kind == "shared"):
            mine.store.beside(theirs.store)
            mine.reads[0], mine.writes[-1] = theirs.reads[0], theirs.writes[-1]
