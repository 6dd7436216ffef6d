"""What a rank did: the end of every step, and a record for every step or run of equal steps.

A record holds exact sums, and steps that go on in the same state join it whether they were run one by one or at once: what a log
says does not depend on how runs were cut.
"""

from __future__ import annotations

from array import array
from itertools import repeat
from operator import eq
from struct import Struct, calcsize
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = dict[str, NDArray[Any]]

_FIELDS = {
    "kv_steps": "q",
    "prefill_s": "d",
    "launch_s": "d",
    "steps": "i",
    "kv_peak": "i",
    "start_s": "d",
    "idle_s": "d",
    "running": "i",
    "waiting": "i",
    "decode_tokens": "i",
    "prefill_tokens": "i",
    "preemptions": "i",
}
_RECORD = np.dtype([(name, f"<{kind}") for name, kind in _FIELDS.items()])
_PLACE, _SUMS = Struct("<" + "".join(_FIELDS.values())), Struct("<qddii")
_pack = _PLACE.pack
_OF_PROMPTS = ("prefill_s", "launch_s", "prefill_tokens", "preemptions")
_pack_decodes = Struct("<" + "".join(f"{calcsize('<' + k)}x" if name in _OF_PROMPTS else k for name, k in _FIELDS.items())).pack
"""Packs a record in which these are 0."""
_NO_STATE = (-1.0, 0, 0, 0, 0, 0)


class StepLog:
    """End of every step [s], and of every record: begin [s], steps, and what was in them.

    `sent_s` are the times at which the tokens of the steps leave the server: the ends, unless a front end keeps its own.

    `idle_s` is the time of each step in which the device waits, `kv_steps` the sum over the steps of the KV units held, `kv_peak`
    the most of them, `prefill_s` the sum of the device's time that is attributed to prefill rows, `launch_s` of that in
    which it waits for launches of steps with prefill rows; `running`, `waiting` and
    `decode_tokens` are of each step. `staged` says that steps pass the stages of a pipeline: what is idle of a step is then what
    it spends in, or before, the other stages. A step begins when its host work does, or, where that is hidden, when the device
    does. The number of a step minus `retired_steps` is its place.
    """

    __slots__ = ("_records", "_state", "end_s", "retired_steps", "sent_s", "staged")

    def __init__(self) -> None:
        self.staged = False
        self.end_s = self.sent_s = array("d")
        self.retired_steps = 0
        self._records = bytearray()
        self._state = _NO_STATE  # of each step of the latest record: idle_s and what follows it

    def run(
        self,
        start_s: float,
        ends_s: list[float],
        idle_s: float,
        running: int,
        waiting: int,
        kv_steps: int,
        kv_peak: int,
        decode_tokens: int,
        prefill_s: float = 0.0,
        prefill_tokens: int = 0,
        preemptions: int = 0,
        launch_s: float = 0.0,
    ) -> None:
        """Append a step, or steps that decode the same rows, each beginning when the one before it ends."""
        state = (idle_s, running, waiting, decode_tokens, prefill_tokens, preemptions)
        if state == self._state and self.end_s[-1] == start_s and not (prefill_tokens or preemptions):
            kv, prefilled_s, launched_s, steps, peak = _SUMS.unpack_from(self._records, -_PLACE.size)
            sums = kv + kv_steps, prefilled_s + prefill_s, launched_s, steps + len(ends_s), max(peak, kv_peak)
            _SUMS.pack_into(self._records, -_PLACE.size, *sums)
        else:
            self._state = state
            self._records += _pack(
                kv_steps, prefill_s, launch_s, len(ends_s), kv_peak, start_s,
                idle_s, running, waiting, decode_tokens, prefill_tokens, preemptions,
            )  # fmt: skip
        self.end_s.fromlist(ends_s)

    def turns(
        self,
        starts_s: list[float],
        ends_s: list[float],
        idle_s: list[float],
        running: int,
        waiting: int,
        kv_used: list[int],
        decode_tokens: list[int],
    ) -> None:
        """Append decode steps of a pipeline one by one, as `run` does, in one go."""
        before = [self.end_s[-1], *ends_s] if self.end_s else [-1.0, *ends_s]
        n = len(ends_s) - 1
        if any(map(eq, starts_s, before)):  # some may go on in the same state
            n = 0
        if n:
            each = starts_s[:n], idle_s, repeat(running), repeat(waiting), decode_tokens
            self._records += b"".join(map(_pack_decodes, kv_used, repeat(1), kv_used, *each))
            self.end_s.fromlist(ends_s[:n])
        for i in range(n, len(ends_s)):
            kv = kv_used[i]
            self.run(starts_s[i], ends_s[i : i + 1], idle_s[i], running, waiting, kv, kv, decode_tokens[i])

    def column(self, name: str, count: int | None = None) -> NDArray[Any]:
        """A field of the first `count` records, of all if None, as a view: while one lives the log cannot change."""
        return np.frombuffer(self._records, dtype=_RECORD)[name][:count]

    def records(self, count: int | None = None) -> Columns:
        """Columns by record, of the first `count`, of all if None; tokens and device time of all its steps together.

        Most are views (`column`), for which a log of many records has no memory to spare.
        Until `until_s` the state of a record holds: to its end or, in a pipeline, whose steps overlap, to the begin of the next.
        """
        found = {name: self.column(name, count) for name in _FIELDS}
        steps, start_s = found["steps"], found["start_s"]
        end_s = np.frombuffer(self.end_s)[np.cumsum(steps) - 1] if len(steps) else np.zeros(0)
        until_s = end_s.copy()
        following = self.column("start_s")[1 : len(steps) + 1]
        np.minimum(until_s[: len(following)], following, out=until_s[: len(following)])
        found["device_s"] = end_s - start_s - found.pop("idle_s") * steps
        found["kv_used"] = found.pop("kv_steps") / steps
        found["decode_tokens"] = found["decode_tokens"] * steps
        return {**found, "end_s": end_s, "until_s": until_s}

    def retire(self, records: int, steps: int) -> None:
        """Drop the first records, and with them so many steps."""
        if self.sent_s is not self.end_s:
            del self.sent_s[:steps]
        del self._records[: records * _PLACE.size], self.end_s[:steps]
        if not self._records:
            self._state = _NO_STATE
        self.retired_steps += steps
