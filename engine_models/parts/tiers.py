"""Places for KV blocks beyond the device, and the ways to them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from hardware_profiles.records import dataclass

TierKind = Literal["host", "nvme", "shared"]
WritePolicy = Literal["through", "back", "selective"]
NVME_BYTES_PER_S = 5e9
"""Rate of one NVMe drive, either way: 3 to 7 GB/s by its datasheet (assumed, 2026-11; `bytes_per_s` gives that of several)."""


class Link:
    """A way that copies take one after the other; a replica has it alone, or shares it with others.

    Parameters
    ----------
    bytes_per_s : its rate. latency_s : added to each copy, which does not keep others waiting.
    """

    __slots__ = ("busy_s", "bytes_per_s", "free_s", "latency_s")

    def __init__(self, bytes_per_s: float, latency_s: float = 0.0) -> None:
        self.bytes_per_s = bytes_per_s
        self.latency_s = latency_s
        self.free_s = 0.0
        self.busy_s = 0.0

    def send(self, takes_s: float, now_s: float) -> float:
        """Begin a copy that takes so long, at `now_s` or when the last one has ended; return when it arrives [s]."""
        self.free_s = max(self.free_s, now_s) + takes_s
        self.busy_s += takes_s
        return self.free_s + self.latency_s


def through(links: Iterable[Link], size_bytes: float, now_s: float) -> float:
    """Send bytes over ways at once, each as they come from the one before; when they have arrived [s]."""
    return max((link.send(size_bytes / link.bytes_per_s, now_s) for link in links), default=now_s)


@dataclass(frozen=True)
class KvTier:
    """A tier of a replica as it was asked for: bytes (of all replicas together in a `shared` store), rate and latency.

    `write` and `connector` are None where the engine's own are meant.
    """

    kind: TierKind
    capacity_bytes: float
    bytes_per_s: float
    latency_s: float = 0.0
    write: WritePolicy | None = None
    connector: str | None = None


@dataclass(frozen=True)
class StoreNames:
    """How a pool's blocks stand in a store: what they are of, and what of that their names tell.

    held : words (model, parallelism, sizes) and what holds for these blocks; pools of which all is equal read each other's.
    told : the words that the names tell: pools that differ in one of these share the room of a store, and nothing in it.
    """

    held: tuple[tuple[str, object], ...]
    told: frozenset[str]

    def differing(self, other: StoreNames) -> list[tuple[str, object, object]]:
        """What differs: word, what holds here and there."""
        there = dict(other.held)
        return [(word, here, there[word]) for word, here in self.held if here != there[word]]

    def apart(self, other: StoreNames) -> bool:
        """Whether names tell the blocks of both apart."""
        return any(word in self.told & other.told for word, _, _ in self.differing(other))


@dataclass(frozen=True)
class TierCount:
    """What became of a tier: tokens of prompts that were found there, bytes read and written."""

    kind: TierKind
    hit_tokens: int
    read_bytes: float
    written_bytes: float

    def plus(self, other: TierCount) -> TierCount:
        """This and that of another replica together."""
        return TierCount(
            self.kind,
            self.hit_tokens + other.hit_tokens,
            self.read_bytes + other.read_bytes,
            self.written_bytes + other.written_bytes,
        )

    def less(self, before: TierCount) -> TierCount:
        """What came after `before`."""
        return self.plus(TierCount(self.kind, -before.hit_tokens, -before.read_bytes, -before.written_bytes))


def counted(replicas: Iterable[Iterable[TierCount]]) -> tuple[TierCount, ...]:
    """The counts of several replicas together, the nearest tier first."""
    found: dict[TierKind, TierCount] = {}
    for counts in replicas:
        for count in counts:
            found[count.kind] = found[count.kind].plus(count) if count.kind in found else count
    return tuple(found.values())
