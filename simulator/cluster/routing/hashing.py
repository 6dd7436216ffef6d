"""Hash rings by the names of workers, as two routers have them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence as Series
from functools import lru_cache
from hashlib import md5

_M64 = 2**64 - 1
_MULTIPLIER = 0xC6A4A7935BD1E995
_SEED = 4193360111
_LARGEST_RING = (1 << 23) - 1


class Md5Ring:
    """uhashring 2.3's default ring: 160 places a name, the node after the key's MD5."""

    def __init__(self, names: Series[str], places: int = 160) -> None:
        self._places = sorted(
            {
                _md5(f"{name}-{place}"): worker
                for worker, name in enumerate(names)
                for place in range(places)
            }.items()
        )
        self._keys = [place for place, _ in self._places]

    def worker(self, key: str) -> int:
        """The worker of a key."""
        at = bisect_right(self._keys, _md5(key))
        return self._places[at % len(self._places)][1]


def _md5(text: str) -> int:
    return int(md5(text.encode(), usedforsecurity=False).hexdigest(), 16)


class FacebookRing:
    """vllm-router's ring: hashed by mcrouter's furc and Murmur, the node at or after the key."""

    def __init__(self, names: Series[str], places: int) -> None:
        ring = {
            facebook_hash(f"{name}:{place}"): worker
            for worker, name in enumerate(names)
            for place in range(places)
        }
        self._places = sorted(ring.items())
        self._keys = [place for place, _ in self._places]

    def worker(self, key: str) -> int:
        """The worker of a key."""
        at = bisect_left(self._keys, facebook_hash(key))
        return self._places[at % len(self._places)][1]


def _murmur(key: bytes) -> int:
    """MurmurHash64A with the seed of mcrouter's furc hash."""
    h = _SEED ^ (len(key) * _MULTIPLIER & _M64)
    whole = len(key) // 8 * 8
    for at in range(0, whole, 8):
        k = int.from_bytes(key[at : at + 8], "little") * _MULTIPLIER & _M64
        k = (k ^ (k >> 47)) * _MULTIPLIER & _M64
        h = (h ^ k) * _MULTIPLIER & _M64
    if key[whole:]:
        h = (h ^ int.from_bytes(key[whole:], "little")) * _MULTIPLIER & _M64
    h = (h ^ (h >> 47)) * _MULTIPLIER & _M64
    return h ^ (h >> 47)


def _furc(key: bytes, ring: int) -> int:
    """mcrouter's furc hash of a key to 0 ... `ring` - 1."""
    words: list[int] = []

    def bit(at: int) -> int:
        while len(words) <= at >> 6:
            words.append(_murmur(words[-1].to_bytes(8, "little")) if words else _murmur(key))
        return words[at >> 6] >> (at & 63) & 1

    depth = (ring - 1).bit_length()
    at = depth
    for _ in range(32):
        while not bit(at):
            if depth == 0:
                return 0
            depth -= 1
            at = depth
        at += 23
        number = 1
        for _ in range(depth - 1):
            number = number << 1 | bit(at)
            at += 23
        if number < ring:
            return number
    return 0


@lru_cache(maxsize=1 << 16)
def facebook_hash(text: str) -> int:
    """vllm-router's 64-bit hash of a text (`fbi_hash`)."""
    return _murmur(_furc(text.encode(), _LARGEST_RING).to_bytes(4, "little"))
