"""Steps that a device computes in parts, one after the other, each of which reads the weights; states that are copied before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine_models.parts.batch import Batch, PartedBatch
from engine_models.parts.protocols import FloatArray, StepCost


@dataclass(frozen=True)
class Parts:
    """That steps are computed in parts; host seconds to copy the state of a token between device and host memory."""

    copied_token_s: float = 0.0


class SubBatches(StepCost):
    """The sum over the parts of a step; host time is each part's own, and that of copies."""

    def __init__(self, model: StepCost, parts: Parts) -> None:
        self.model = model
        self.parts = parts

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base, of the one rank there is."""
        device_s = prefill_s = 0.0
        for part in _parts(batches):
            own_s, of_prefill_s = self.model.step_s((part,))
            device_s += own_s
            prefill_s += of_prefill_s[0]
        return device_s, [prefill_s]

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        total = np.zeros(steps)
        for part in _parts(shapes):
            total = total + self.model.run_s((part,), steps)
        return total

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        total = [0.0] * steps
        for part in _parts(shapes):
            total = [
                before + own for before, own in zip(total, self.model.few_s((part,), steps), strict=True)
            ]
        return total

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        assert isinstance(batch, PartedBatch)
        copied_s = batch.copied_tokens * self.parts.copied_token_s
        return sum(map(self.model.host_s, batch.parts), copied_s)


def _parts(batches: Sequence[Batch]) -> list[Batch]:
    (batch,) = batches
    assert isinstance(batch, PartedBatch)
    return batch.parts


__all__ = ["Parts", "SubBatches"]
