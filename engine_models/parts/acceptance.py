"""How many drafts each verification accepts: a counter-based random stream a request, so that all that is to come is known."""

from __future__ import annotations

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

MASK = (1 << 64) - 1
COUNT, FIRST, SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""Increment and multipliers of SplitMix64 (Steele, Lea, Flood 2014)."""

BLOCK_ROWS, BLOCK_VERIFICATIONS, BLOCKS_KEPT = 64, 128, 64
"""So much is drawn at once."""


def mixed(x: int) -> int:
    """64 well-mixed bits of a counter: the output function of SplitMix64."""
    x = (x + COUNT) & MASK
    x = ((x ^ (x >> 30)) * FIRST) & MASK
    x = ((x ^ (x >> 27)) * SECOND) & MASK
    return x ^ (x >> 31)


def mixed_over(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """`mixed` of an array, which is overwritten."""
    x += np.uint64(COUNT)
    x ^= x >> np.uint64(30)
    x *= np.uint64(FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(SECOND)
    x ^= x >> np.uint64(31)
    return x


class AcceptanceStream:
    """Accepted drafts by the number of the verification, of one request."""

    __slots__ = ("_first_gains", "_key", "_of")

    def __init__(self, of: AcceptanceStreams, key: int, first_gains: IntArray) -> None:
        self._of = of
        self._key = key
        self._first_gains = first_gains  # of the first verifications, to save time

    def __call__(self, verification: int) -> int:
        """Drafts that a verification accepts, numbered from 0."""
        u = (mixed(self._key + verification) >> 11) * 2.0**-53
        return bisect_left(self._of.thresholds, -u)

    def gains(self, first: int, tokens: int) -> IntArray:
        """Tokens that the verifications from number `first` on yield, summed up to each, until they are `tokens` or more."""
        gains = self._first_gains[first:]
        if first and len(gains):
            gains = gains - self._first_gains[first - 1]
        while not len(gains) or gains[-1] < tokens:
            counters = np.arange(first + len(gains), first + 2 * len(gains) + 64, dtype=np.uint64)
            counters += np.uint64(self._key)
            later = self._of.gains(counters)
            gains = np.concatenate([gains, later + gains[-1]]) if len(gains) else later
        return gains[: int(gains.searchsorted(tokens)) + 1]


class AcceptanceStreams:
    """How many drafts each verification of each request accepts: a random stream a request, whatever the order of the run.

    The n-th verification of request `row` draws u uniform from a counter (key, row, n) and accepts as many drafts as have
    r_i > u, so that the first i are all accepted with probability r_i. The same draws serve every acceptance: what-if points
    share their random numbers.
    """

    def __init__(self, rates: tuple[float, ...], key: int) -> None:
        self.thresholds = [-r for r in rates]  # rising, for bisection
        self._thresholds = np.array(self.thresholds)
        self._key = key
        self._blocks: dict[int, tuple[list[int], IntArray]] = {}  # keys and first gains of neighbouring rows

    def of(self, row: int) -> AcceptanceStream:
        """Accepted drafts by the number of the verification, of one request."""
        number, at = divmod(row, BLOCK_ROWS)
        block = self._blocks.get(number)
        if block is None:
            if len(self._blocks) >= BLOCKS_KEPT:
                self._blocks.clear()
            rows = np.arange(row - at, row - at + BLOCK_ROWS, dtype=np.uint64)
            keys = mixed_over(np.uint64(self._key) ^ mixed_over(rows))
            counters = np.arange(BLOCK_VERIFICATIONS, dtype=np.uint64) + keys[:, None]
            block = self._blocks[number] = keys.tolist(), self.gains(counters)
        return AcceptanceStream(self, block[0][at], block[1][at])

    def gains(self, counters: NDArray[np.uint64]) -> IntArray:
        """Tokens of verifications with these counters, which are overwritten, summed along the last axis."""
        u = (mixed_over(counters) >> np.uint64(11)) * -(2.0**-53)
        return np.cumsum(self._thresholds.searchsorted(u) + 1, axis=-1, dtype=np.int64)


__all__ = ["AcceptanceStream", "AcceptanceStreams"]
