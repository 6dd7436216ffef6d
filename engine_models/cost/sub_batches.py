"""Steps that a device computes in parts, one after the other, each of which reads the weights; states that are copied before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine_models.parts.batch import Batch, PartedBatch
from engine_models.parts.protocols import FloatArray, StepCost
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Parts:
    """That steps are computed in parts.

    copied_token_s : host seconds to copy the state of a token between device and host memory.
    devices : over which the layers are split; parts follow each other through them.
    """

    copied_token_s: float = 0.0
    devices: int = 1


class SubBatches(StepCost):
    """The sum over the parts of a step; host time is each part's own, and that of copies.

    Over k devices with the k-th part of the layers each, parts of t_i seconds take sum(t_i) / k + (1 - 1/k) max(t_i): one alone
    takes its time, many keep all devices busy.
    """

    def __init__(self, model: StepCost, parts: Parts) -> None:
        self.model = model
        self.parts = parts

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base, of the one rank there is."""
        device_s = prefill_s = longest_s = 0.0
        for part in _parts(batches):
            own_s, of_prefill_s = self.model.step_s((part,))
            device_s += own_s
            prefill_s += of_prefill_s[0]
            longest_s = max(longest_s, own_s)
        through_s = self._through(device_s, longest_s)
        return through_s, [prefill_s * through_s / device_s if device_s else 0.0]

    def _through(self, total_s: float, longest_s: float) -> float:
        """Time of parts one after the other through the devices."""
        share = 1.0 / self.parts.devices
        return total_s if share == 1.0 else total_s * share + (1.0 - share) * longest_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        total, longest = np.zeros(steps), np.zeros(steps)
        for part in _parts(shapes):
            own = self.model.run_s((part,), steps)
            total, longest = total + own, np.maximum(longest, own)
        share = 1.0 / self.parts.devices
        return total if share == 1.0 else total * share + (1.0 - share) * longest

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        each = [self.model.few_s((part,), steps) for part in _parts(shapes)]
        if len(each) == 1 and self.parts.devices == 1:
            return each[0]
        return [self._through(sum(own, 0.0), max(own)) for own in zip(*each, strict=True)]

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
