"""Names of KV blocks by their contents, and news of blocks that caches keep and drop."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from engine_models.parts.kept import Runs

BlockEvents = list[tuple[int | None, Sequence[int]]]
"""News of a cache, in order: the block before (None: the first of a prompt) and those stored after it; or a block that has gone,
with nothing."""

NAMED = 64
"""Keys given out at a time (assumed: few enough to waste none that matters, enough that one number names a long run)."""


class ChainKeys:
    """Integer names of block contents: equal exactly when all tokens up to the end of the block are equal."""

    def __init__(self, block_tokens: int) -> None:
        self.block_tokens = block_tokens
        self._fresh = count(NAMED, NAMED)
        self._lines: dict[tuple[int, int, int], list[int]] = {}  # the first of each `NAMED` keys
        self._mixed: dict[tuple[int, tuple[tuple[int, int, int], ...]], int] = {}

    def fresh(self) -> int:
        """Return a key that no other block has."""
        return next(self._fresh)

    def keys(self, runs: tuple[tuple[int, int, int], ...], blocks: int) -> list[int]:
        """Keys of the first `blocks` full blocks of a content given as runs (segment, offset, length)."""
        size = self.block_tokens
        out: list[int] = []
        parent = 0
        pieces: list[tuple[int, int, int]] = []
        filled = 0
        for segment, offset, length in runs:
            if filled:  # complete the block that spans runs
                take = min(size - filled, length)
                pieces.append((segment, offset, take))
                filled += take
                offset += take
                length -= take
                if filled < size:
                    continue
                name = (parent, tuple(pieces))
                key = self._mixed.get(name)
                if key is None:
                    key = self._mixed[name] = next(self._fresh)
                out.append(key)
                parent = key
                pieces = []
                filled = 0
            whole = length // size
            if whole:
                line = self._lines.setdefault((parent, segment, offset), [])
                while len(line) * NAMED < whole:
                    line.append(next(self._fresh))
                for at, first in zip(range(0, whole, NAMED), line, strict=False):
                    out.extend(range(first, first + min(NAMED, whole - at)))
                parent = out[-1]
                offset += whole * size
                length -= whole * size
            if length:
                pieces = [(segment, offset, length)]
                filled = length
            if len(out) >= blocks:
                break
        return out[:blocks]

    def contents(self) -> dict[int, tuple[int, Runs]]:
        """What each key that stands for a content names: the key of the block before it (0: none), and its tokens."""
        size = self.block_tokens
        found: dict[int, tuple[int, Runs]] = {key: name for name, key in self._mixed.items()}  # (parent, pieces)
        for (parent, segment, offset), line in self._lines.items():
            before = parent
            for at, first in enumerate(line):
                for key in range(first, first + NAMED):
                    found[key] = before, ((segment, offset + (at * NAMED + key - first) * size, size),)
                    before = key
        return found
