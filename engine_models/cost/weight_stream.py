"""Weights (and keys and values) that come over a link to the host in every step, layer by layer, while the layers before
compute."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import FloatArray, StepCost
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Stream:
    """What comes over the link.

    step_bytes : of weights in each step.
    first_bytes : of them before anything can compute: a layer's.
    token_bytes : of the keys and values of a token attended to or written, where these are kept on the host; 0 for none.
    bytes_per_s : of the link, or of the disk behind it.
    """

    step_bytes: float
    first_bytes: float
    token_bytes: float
    bytes_per_s: float


class Streamed(StepCost):
    """A step lasts as long as the link or the device takes, whichever is longer, behind the first layer's fetch.

    Layers are alike, so that the longer of the sums stands for the sum over layers of the longer (ZeRO-Inference, 2022-09).
    """

    def __init__(self, model: StepCost, stream: Stream) -> None:
        self.model = model
        self._first_s = stream.first_bytes / stream.bytes_per_s
        self._weights_s = stream.step_bytes / stream.bytes_per_s
        self._token_s = stream.token_bytes / stream.bytes_per_s

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base, of the one rank there is; time on the link is no prefill row's alone."""
        (batch,) = batches
        device_s, prefills_s = self.model.step_s(batches)
        tokens = batch.decode_kv_tokens + sum(map(sum, batch.prefill))
        link_s = self._weights_s + self._token_s * tokens
        return max(device_s, link_s) + self._first_s, prefills_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        (shape,) = shapes
        tokens = shape.decode_kv_tokens + shape.grows * np.arange(steps)
        steps_s: FloatArray = (
            np.maximum(self.model.run_s(shapes, steps), self._weights_s + self._token_s * tokens) + self._first_s
        )
        return steps_s

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        (shape,) = shapes
        first, grows = shape.decode_kv_tokens, shape.grows
        return [
            max(device_s, self._weights_s + self._token_s * (first + grows * at)) + self._first_s
            for at, device_s in enumerate(self.model.few_s(shapes, steps))
        ]

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self.model.host_s(batch)


__all__ = ["Stream", "Streamed"]
