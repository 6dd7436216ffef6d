"""What a rank did: the end of every step, and a record for every step or run of equal steps.

A record holds exact sums, and steps that go on in the same state join it whether they were run one by one or at once: what a log
says does not depend on how runs were cut.
"""

from __future__ import annotations

from array import array
from operator import eq
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import State

Columns = dict[str, NDArray[Any]]


class StepLog:
    """End of every step [s], and of every record: begin [s], steps, and what was in them.

    `idle_s` is the time of each step in which the device waits, `kv_steps` the sum over the steps of the KV units held, `kv_peak`
    the most of them; `running`, `waiting` and `decode_tokens` are of each step. A step begins when its host work does, or, where
    that is hidden, when the device does. The number of a step minus `retired_steps` is its place.
    """

    __slots__ = (
        "decode_tokens",
        "end_s",
        "idle_s",
        "kv_peak",
        "kv_steps",
        "preemptions",
        "prefill_s",
        "prefill_tokens",
        "retired_steps",
        "running",
        "start_s",
        "steps",
        "waiting",
    )

    def __init__(self) -> None:
        self.end_s = array("d")
        self.start_s = array("d")
        self.steps = array("i")
        self.idle_s = array("d")
        self.running = array("i")
        self.waiting = array("i")
        self.kv_steps = array("q")
        self.kv_peak = array("i")
        self.prefill_s = array("d")
        self.prefill_tokens = array("i")
        self.decode_tokens = array("i")
        self.preemptions = array("i")
        self.retired_steps = 0

    def step(self, start_s: float, end_s: float, idle_s: float, prefill_s: float, state: State, batch: Batch) -> None:
        """Append a step; `state` is that after it was formed, `prefill_s` the device's time attributed to prefill rows."""
        running, waiting, kv_used, _ = state
        decoded = batch.decode_tokens
        prefilled, preempted = batch.tokens - decoded, len(batch.preempted)
        if not prefilled and not preempted and self._goes_on(start_s, idle_s, running, waiting, decoded):
            self.end_s.append(end_s)
            self.steps[-1] += 1
            self.kv_steps[-1] += kv_used
            if kv_used > self.kv_peak[-1]:
                self.kv_peak[-1] = kv_used
            return
        self.end_s.append(end_s)
        self.start_s.append(start_s)
        self.steps.append(1)
        self.idle_s.append(idle_s)
        self.running.append(running)
        self.waiting.append(waiting)
        self.kv_steps.append(kv_used)
        self.kv_peak.append(kv_used)
        self.prefill_s.append(prefill_s)
        self.prefill_tokens.append(prefilled)
        self.decode_tokens.append(decoded)
        self.preemptions.append(preempted)

    def _goes_on(self, start_s: float, idle_s: float, running: int, waiting: int, decode_tokens: int) -> bool:
        """Whether decode steps that begin at `start_s` go on in the state of the latest record."""
        return (
            bool(self.steps)
            and self.end_s[-1] == start_s
            and self.decode_tokens[-1] == decode_tokens
            and not self.prefill_tokens[-1]
            and self.waiting[-1] == waiting
            and self.running[-1] == running
            and self.idle_s[-1] == idle_s
            and not self.preemptions[-1]
        )

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
    ) -> None:
        """Append steps that decode the same rows, each beginning when the one before it ends."""
        goes_on = self._goes_on(start_s, idle_s, running, waiting, decode_tokens)
        self.end_s.extend(ends_s)
        if goes_on:
            self.steps[-1] += len(ends_s)
            self.kv_steps[-1] += kv_steps
            if kv_peak > self.kv_peak[-1]:
                self.kv_peak[-1] = kv_peak
            return
        self.start_s.append(start_s)
        self.steps.append(len(ends_s))
        self.idle_s.append(idle_s)
        self.running.append(running)
        self.waiting.append(waiting)
        self.kv_steps.append(kv_steps)
        self.kv_peak.append(kv_peak)
        self.prefill_s.append(0.0)
        self.prefill_tokens.append(0)
        self.decode_tokens.append(decode_tokens)
        self.preemptions.append(0)

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
        if not ends_s:
            return
        n = len(ends_s)
        before = [self.end_s[-1], *ends_s] if self.end_s else [-1.0, *ends_s]
        if any(map(eq, starts_s, before)):  # some may go on in the same state
            for i in range(n):
                kv = kv_used[i]
                self.run(starts_s[i], ends_s[i : i + 1], idle_s[i], running, waiting, kv, kv, decode_tokens[i])
            return
        self.end_s.extend(ends_s)
        self.start_s.extend(starts_s)
        self.idle_s.extend(idle_s)
        self.kv_steps.extend(kv_used)
        self.kv_peak.extend(kv_used)
        self.decode_tokens.extend(decode_tokens)
        for column, value in ((self.steps, 1), (self.running, running), (self.waiting, waiting)):
            column.extend([value] * n)
        self.prefill_s.extend([0.0] * n)
        self.prefill_tokens.extend([0] * n)
        self.preemptions.extend([0] * n)

    def records(self, count: int | None = None) -> Columns:
        """Columns by record, of the first `count`, of all if None; tokens and device time of all its steps together.

        Until `until_s` the state of a record holds: to its end or, in a pipeline, whose steps overlap, to the begin of the next.
        """
        steps = _view(self.steps)[:count]
        start_s, every = _view(self.start_s)[:count], _view(self.start_s)
        end_s = _view(self.end_s)[np.cumsum(steps) - 1] if len(steps) else np.zeros(0)
        until_s = end_s.copy()
        following = every[1 : len(steps) + 1]
        np.minimum(until_s[: len(following)], following, out=until_s[: len(following)])
        return {
            "start_s": start_s,
            "end_s": end_s,
            "until_s": until_s,
            "steps": steps,
            "device_s": end_s - start_s - _view(self.idle_s)[:count] * steps,
            "kv_used": _view(self.kv_steps)[:count] / steps,
            "decode_tokens": _view(self.decode_tokens)[:count] * steps,
            **{
                name: _view(getattr(self, name))[:count]
                for name in ("running", "waiting", "kv_peak", "prefill_s", "prefill_tokens", "preemptions")
            },
        }

    def retire(self, records: int, steps: int) -> None:
        """Drop the first records, and with them so many steps."""
        for name in self.__slots__:
            if name not in ("end_s", "retired_steps"):
                del getattr(self, name)[:records]
        del self.end_s[:steps]
        self.retired_steps += steps


def _view(values: array[Any]) -> NDArray[Any]:
    return np.frombuffer(values, dtype=values.typecode)
