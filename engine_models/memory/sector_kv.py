"""KV blocks in sectors: layers that see different spans take blocks of different bytes, and a sector holds whole blocks of any.

A group of layers takes a sector from a stack when its own free blocks do not suffice, and uses its sectors up in the order in
which they came to have a free block. Sectors of which no block is used go back when `gather` is called.

A block enters the index of whole blocks when the step that completes it has been processed; if its contents are there already,
the row takes over that block and gives its own back. What a row leaves stays cached until all cached blocks are dropped at once.

Source: behaviour of transformers 5.24 (`generation/continuous_batching`: `cache.py`, `cache_allocators/`), checked step by step
against recordings; see docs/engines/transformers.md.
"""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass, field
from itertools import zip_longest
from math import lcm

from engine_models.parts.block_names import ChainKeys
from engine_models.parts.sequence import Sequence


@dataclass(frozen=True)
class LayerGroup:
    """Layers that see the same span: blocks that a sector holds of them, and their window in tokens (None: all tokens)."""

    blocks_per_sector: int
    window_tokens: int | None = None


@dataclass(slots=True)
class HeldSectorBlocks:
    """Blocks of a row by group, how many of the first group's are registered as complete, names of those others may share."""

    tables: list[list[int]]
    registered: int = 0
    keys: list[int] = field(default_factory=list)


class SectorPool:
    """Sectors that are free, and the free blocks of each group by sector."""

    def __init__(self, sectors: int, blocks_per_sector: Series[int]) -> None:
        self.sectors = sectors
        self.sizes = tuple(blocks_per_sector)
        self.free_sectors = list(range(sectors))
        self.loose = [0] * len(self.sizes)  # free blocks in sectors of a group
        self._of_sector: list[dict[int, list[int]]] = [{} for _ in self.sizes]

    def free_blocks(self, group: int) -> int:
        """Blocks that a group alone could take."""
        return self.loose[group] + len(self.free_sectors) * self.sizes[group]

    def sectors_for(self, needs: Series[int]) -> int:
        """Sectors that have to be taken so that each group can give so many blocks."""
        found = 0
        for need, loose, size in zip(needs, self.loose, self.sizes, strict=True):
            if need > loose:
                found -= (loose - need) // size
        return found

    def take(self, group: int, blocks: int) -> list[int]:
        """Take blocks of a group; there must be as many."""
        size, trees = self.sizes[group], self._of_sector[group]
        while self.loose[group] < blocks:
            sector = self.free_sectors.pop()
            trees[sector] = list(range((sector + 1) * size - 1, sector * size - 1, -1))
            self.loose[group] += size
        self.loose[group] -= blocks
        taken: list[int] = []
        emptied: list[int] = []
        for sector, free in trees.items():
            lacking = blocks - len(taken)
            if not lacking:
                break
            if len(free) <= lacking:
                taken += free
                emptied.append(sector)
            else:
                taken += free[-lacking:]
                del free[-lacking:]
        for sector in emptied:
            del trees[sector]
        return taken

    def give_back(self, group: int, blocks: Series[int]) -> None:
        """Free blocks of a group."""
        size, trees = self.sizes[group], self._of_sector[group]
        self.loose[group] += len(blocks)
        for block in blocks:
            trees.setdefault(block // size, []).append(block)

    def gather(self) -> None:
        """Free the sectors of which no block is used."""
        for group, trees in enumerate(self._of_sector):
            if not self.loose[group]:
                continue
            size = self.sizes[group]
            whole = [sector for sector, free in trees.items() if len(free) == size]
            for sector in whole:
                del trees[sector]
            self.loose[group] -= len(whole) * size
            self.free_sectors += whole


class SectorKV:
    """The KV blocks of one rank.

    Parameters
    ----------
    sectors : sectors at all.
    block_tokens : tokens of a block.
    groups : of layers.
    sharing : whether complete blocks are shared; only without windows.
    """

    def __init__(
        self, sectors: int, block_tokens: int, groups: tuple[LayerGroup, ...], *, sharing: bool
    ) -> None:
        self.block_tokens = block_tokens
        self.groups = groups
        self.sharing = sharing and all(group.window_tokens is None for group in groups)
        self.pool = SectorPool(sectors, [group.blocks_per_sector for group in groups])
        self._parts = lcm(*self.pool.sizes)
        self.cached: dict[int, None] = {}
        self.chain = ChainKeys(block_tokens)
        self._index: dict[int, int] = {}  # key of a complete block that others may share -> block
        self._key: dict[int, int] = {}
        self._holders: dict[int, int] = {}  # rows that hold a block, where there are several

    # -- counts ---------------------------------------------------------------------------------------------

    @property
    def used_sectors(self) -> int:
        """Sectors that neither are free nor could be."""
        pool = self.pool
        loose = sum(free // size for free, size in zip(pool.loose, pool.sizes, strict=True))
        return pool.sectors - len(pool.free_sectors) - loose - len(self.cached) // pool.sizes[0]

    def free_share(self, taken: Series[int] = ()) -> float:
        """Free part of the memory, cached blocks not counted, after so many blocks of each group have been taken besides."""
        pool, parts = self.pool, self._parts
        free = len(pool.free_sectors) * parts
        for loose, gone, size in zip_longest(pool.loose, taken, pool.sizes, fillvalue=0):
            free += (loose - gone) * (parts // size)
        return free / (pool.sectors * parts)

    def blocks_for(self, group: LayerGroup, tokens: int) -> int:
        """Blocks of a group that a row of so many tokens holds."""
        window = group.window_tokens
        if window is not None and tokens > window:
            tokens = window
        return -(-tokens // self.block_tokens)

    def missing(self, held: HeldSectorBlocks, tokens: int) -> list[int]:
        """Blocks by group that a row lacks for so many tokens."""
        return [
            max(0, self.blocks_for(group, tokens) - len(table))
            for group, table in zip(self.groups, held.tables, strict=True)
        ]

    def storable(self, needs: list[list[int]]) -> int:
        """How many of these needs, one after the other, can be met."""
        total = [0] * len(self.groups)
        for number, need in enumerate(needs):
            total = [a + b for a, b in zip(total, need, strict=True)]
            if self.pool.sectors_for(total) > len(self.pool.free_sectors):
                return number
        return len(needs)

    # -- rows -----------------------------------------------------------------------------------------------

    def hold_nothing(self, seq: Sequence) -> HeldSectorBlocks:
        """What a new row holds."""
        held = HeldSectorBlocks([[] for _ in self.groups])
        if self.sharing:
            shared = seq.final_length - 1 if seq.output_shared else seq.shareable_tokens
            if shared >= self.block_tokens:
                held.keys = self.chain.keys(seq.runs, shared // self.block_tokens)
        return held

    def take(self, held: HeldSectorBlocks, tokens: int) -> bool:
        """Give a row the blocks that it lacks for so many tokens; False, and nothing, if they are not free."""
        needs = self.missing(held, tokens)
        if not any(needs):
            return True
        pool = self.pool
        if pool.sectors_for(needs) > len(pool.free_sectors):
            return False
        for group, need in enumerate(needs):
            if need:
                held.tables[group] += pool.take(group, need)
        return True

    def find(self, held: HeldSectorBlocks, tokens: int) -> int:
        """Let a row without blocks hold those that are known of its first tokens, but the last; return their tokens."""
        if not held.keys:
            return 0
        table, index, holders = held.tables[0], self._index, self._holders
        for key in held.keys[: (tokens - 1) // self.block_tokens]:
            block = index.get(key)
            if block is None:
                break
            self._hold(block, holders)
            table.append(block)
        held.registered = len(table)
        return len(table) * self.block_tokens

    def _hold(self, block: int, holders: dict[int, int]) -> None:
        if block in self.cached:
            del self.cached[block]
        else:
            holders[block] = holders.get(block, 1) + 1

    def register(self, held: HeldSectorBlocks, blocks: int) -> None:
        """Note that so many more blocks of a row are complete."""
        keys, at = held.keys, held.registered
        held.registered += blocks
        for number in range(at, min(held.registered, len(keys))):
            table, key = held.tables[0], keys[number]
            block = self._index.get(key)
            if block is None:
                self._index[key] = table[number]
                self._key[table[number]] = key
            else:
                self._hold(block, self._holders)
                self.pool.give_back(0, [table[number]])
                table[number] = block

    def release(self, held: HeldSectorBlocks, *, cache: bool) -> None:
        """Take a row's blocks back; complete ones stay cached if `cache`."""
        for group, table in enumerate(held.tables):
            freed: list[int] = []
            for number, block in enumerate(table):
                holders = self._holders.pop(block, 1) - 1
                if holders:
                    if holders > 1:
                        self._holders[block] = holders
                elif self.sharing and number < held.registered and cache:
                    self.cached[block] = None
                else:
                    self._forget(block)
                    freed.append(block)
            self.pool.give_back(group, freed)
            table.clear()
        held.registered = 0

    def _forget(self, block: int) -> None:
        key = self._key.pop(block, None)
        if key is not None:
            del self._index[key]

    def drop_cached(self) -> int:
        """Free all cached blocks; return how many."""
        dropped = list(self.cached)
        if dropped:
            self.cached.clear()
            for block in dropped:
                self._forget(block)
            self.pool.give_back(0, dropped)
        return len(dropped)


__all__ = ["HeldSectorBlocks", "LayerGroup", "SectorKV", "SectorPool"]
