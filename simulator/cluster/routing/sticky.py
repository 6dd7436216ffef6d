"""Keys that stay with a worker for a while: what several routers' session rules share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator


class Homes:
    """Workers by key, each forgotten once it has not been used for `idle_s`, which is looked for every `sweep_s`."""

    def __init__(self, idle_s: float, sweep_s: float) -> None:
        self._idle_s, self._sweep_s = idle_s, sweep_s
        self._swept_s = 0.0
        self._of: OrderedDict[str, tuple[tuple[int, ...], float]] = OrderedDict()

    def get(self, key: str) -> tuple[int, ...]:
        """The workers of a key, the first preferred."""
        return self._of[key][0] if key in self._of else ()

    def put(self, key: str, workers: tuple[int, ...], now_s: float) -> None:
        """Note the workers of a key, which is used now."""
        self._of[key] = workers, now_s
        self._of.move_to_end(key)

    def sweep(self, now_s: float) -> Iterator[tuple[int, ...]]:
        """Forget keys that were not used for long; yield the workers that they had."""
        if now_s - self._swept_s < self._sweep_s:
            return
        self._swept_s = now_s
        while self._of and now_s - next(iter(self._of.values()))[1] >= self._idle_s:
            yield self._of.popitem(last=False)[1][0]
