"""Weights (and keys and values) that come over a link to the host in every step: layer by layer, while the layers before
compute, or read by the kernels where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import FloatArray, StepCost
from hardware_profiles.kernel_physics import moe_active_experts
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


@dataclass(frozen=True)
class InPlace:
    """Weights that stay in host memory, where kernels read them over the link, of one device.

    share : of all weights, in bytes.  plain_bytes : of those that every step reads.  expert_bytes : of routed experts, of which a
    step reads those that a token chose: `topk` of `experts` each, `local` of them on the device.  bytes_per_s : of the link.
    copied : each layer before it computes, so that the link's time stands before its work.
    """

    share: float
    plain_bytes: float
    expert_bytes: float
    experts: int
    topk: int
    local: int
    bytes_per_s: float
    copied: bool = False

    def read_s(self, tokens: int) -> float:
        """Seconds on the link in a step of so many tokens."""
        if not self.expert_bytes:
            return self.plain_bytes / self.bytes_per_s
        rows = np.array([tokens * self.topk * self.local / self.experts])
        touched = float(moe_active_experts(np.float64(self.local), rows, chosen=self.topk / self.experts)[0]) / self.local
        return (self.plain_bytes + touched * self.expert_bytes) / self.bytes_per_s


class ReadInPlace(StepCost):
    """Kernels whose weights lie in host memory take as long as the link or as they would, whichever is longer; the others as long
    as they do. Those of the weights' share take that share of a step. Layers that are copied first wait for the link."""

    def __init__(self, model: StepCost, weights: InPlace) -> None:
        self._model, self._weights = model, weights
        self._beside = 0.0 if weights.copied else weights.share
        self._known: dict[int, float] = {}

    def _read_s(self, tokens: int) -> float:
        found = self._known.get(tokens)
        if found is None:
            found = self._known[tokens] = self._weights.read_s(tokens)
        return found

    def _more_s(self, device_s: float, tokens: int) -> float:
        return max(0.0, self._read_s(tokens) - self._beside * device_s)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base, and what the link takes longer; that is no prefill row's alone."""
        model = self._model
        device_s, prefills_s = model.step_s(batches)
        self.launch_s, self.launch_wait_s = model.launch_s, model.launch_wait_s
        self.first_s, self.last_s = model.first_s, model.last_s
        return device_s + self._more_s(device_s, sum([batch.tokens for batch in batches])), prefills_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        read_s, device_s = self._read_s(sum([shape.tokens for shape in shapes])), self._model.run_s(shapes, steps)
        steps_s: FloatArray = device_s + np.maximum(0.0, read_s - self._beside * device_s)
        return steps_s

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        tokens = sum([shape.tokens for shape in shapes])
        return [device_s + self._more_s(device_s, tokens) for device_s in self._model.few_s(shapes, steps)]

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self._model.host_s(batch)


__all__ = ["InPlace", "ReadInPlace", "Stream", "Streamed"]
