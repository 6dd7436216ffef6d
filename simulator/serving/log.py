"""What a rank did: times and memory of every step, and a record for every step or run of equal steps.

Figures are made of the columns by step (`steps`), so they do not depend on how a run was cut into records.
"""

from __future__ import annotations

from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.parts.protocols import State

Columns = dict[str, NDArray[Any]]

BY_STEP = ("start_s", "end_s", "device_s", "kv_used")
BY_RECORD = ("running", "waiting", "prefill_s", "prefill_tokens", "decode_tokens", "preemptions")


class StepLog:
    """Columns by step: begin and end [s], device time [s], KV units held. Columns by record: those of each of its `record_steps`.

    A step begins when its host work does, or, where that is hidden, when the device does. The number of a step minus
    `retired_steps` is its place.
    """

    def __init__(self) -> None:
        self.start_s = array("d")
        self.end_s = array("d")
        self.device_s = array("d")
        self.kv_used = array("i")
        self.record_steps = array("i")
        self.running = array("i")
        self.waiting = array("i")
        self.prefill_s = array("d")
        self.prefill_tokens = array("i")
        self.decode_tokens = array("i")
        self.preemptions = array("i")
        self.retired_steps = 0

    def step(
        self,
        start_s: float,
        end_s: float,
        device_s: float,
        prefill_s: float,
        state: State,
        prefill_tokens: int,
        decode_tokens: int,
        preemptions: int,
    ) -> None:
        """Append a step; `state` is that after it was formed."""
        self.start_s.append(start_s)
        self.end_s.append(end_s)
        self.device_s.append(device_s)
        self.kv_used.append(state.kv_used)
        self.record_steps.append(1)
        self.running.append(state.running)
        self.waiting.append(state.waiting)
        self.prefill_s.append(prefill_s)
        self.prefill_tokens.append(prefill_tokens)
        self.decode_tokens.append(decode_tokens)
        self.preemptions.append(preemptions)

    def run(
        self,
        first_s: float,
        ends_s: list[float],
        device_s: list[float],
        kv_used: list[int],
        running: int,
        waiting: int,
        decode_tokens: int,
    ) -> None:
        """Append steps that decode the same rows, each beginning when the one before it ends, the first at `first_s`."""
        self.start_s.append(first_s)
        self.start_s.extend(ends_s[:-1])
        self.end_s.extend(ends_s)
        self.device_s.extend(device_s)
        self.kv_used.extend(kv_used)
        steps = self.record_steps
        if (
            steps
            and self.running[-1] == running
            and self.waiting[-1] == waiting
            and self.decode_tokens[-1] == decode_tokens
            and not self.prefill_tokens[-1]
            and not self.preemptions[-1]
        ):
            steps[-1] += len(ends_s)  # the run goes on
            return
        steps.append(len(ends_s))
        self.running.append(running)
        self.waiting.append(waiting)
        self.prefill_s.append(0.0)
        self.prefill_tokens.append(0)
        self.decode_tokens.append(decode_tokens)
        self.preemptions.append(0)

    def steps(self, records: int | None = None) -> Columns:
        """Columns by step of the first `records` records, of all if None, and until when the state of each holds.

        That is its end; in a pipeline, whose batches overlap, the begin of the next.
        """
        counts = np.frombuffer(self.record_steps, dtype=np.int32)[:records]
        n = int(counts.sum(dtype=np.int64))
        columns = {name: _view(getattr(self, name))[:n] for name in BY_STEP}
        columns["until_s"] = until = columns["end_s"].copy()
        following = _view(self.start_s)[1 : n + 1]
        np.minimum(until[: len(following)], following, out=until[: len(following)])
        single = len(counts) == n
        for name in BY_RECORD:
            values = _view(getattr(self, name))[:records]
            columns[name] = values if single else np.repeat(values, counts)
        return columns

    def retire(self, records: int, steps: int) -> None:
        """Drop the first records, and with them so many steps."""
        for name in (*BY_RECORD, "record_steps"):
            del getattr(self, name)[:records]
        for name in BY_STEP:
            del getattr(self, name)[:steps]
        self.retired_steps += steps


def _view(values: array[Any]) -> NDArray[Any]:
    return np.frombuffer(values, dtype=values.typecode)
