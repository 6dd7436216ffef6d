"""Images: what a vision tower takes before a step of the language model.

The images that a step is the first to need are encoded together, before it, in 16 bits and without CUDA graphs. A tower of L
layers takes, with m patches in all,

    T = max(embedding(m) + L (products(m) + attention + norms, rotary, activation(m) + sums over ranks(m)) + joins(m),
            launches x launch time)

and attention, which is not causal, is that of each image apart, of each window in layers that see windows alone, and of each tile
where images are cut in tiles. With a head's width d padded to whole tiles of a kernel, s of the chip's multiprocessors and tiles
of 128 patches,

    attention = t0 + 4 x 128 x patches x d x max(tiles, s) / (share x peak)

Weights are split over tensor ranks as those of the language model are; of a pipeline the first stage encodes alone (vLLM 0.33's
`v1/worker/gpu_model_runner.py`, SGLang 0.5.23's `managers/mm_utils.py`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine_models.cost.tables import FloatArray
from engine_models.cost.terms import Shard
from engine_models.model.blocks import Vision
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.records import dataclass

LAUNCHES_A_LAYER = 12
"""Operations of a layer: two norms, four products, rotary of both, attention, activation, two sums. kind: counted in vLLM 0.33's
`qwen2_5_vl.py` and `qwen3_vl.py`."""
TILE = 128
"""Patches of a kernel's tile. kind: assumed, as of FlashAttention."""
PIXEL_S = 80e-9
"""Time of the server's one thread for each pixel of an image: received, decoded, scaled, cut into patches [s]. kind: assumed,
from 0.167 s that a 1080p image spent beside queue and model, Qwen2.5-VL-7B under vLLM 0.19.1 (vllm-project/vllm issue 41267,
2026-04). Qwen3-VL-8B under SGLang took 120 to 147 ms more for each further image of 720p, where this and the model make 105
(sgl-project/sglang pull request 19749, 2026-03). Pillow's scaling alone is 17 to 33 ns (ai-dynamo/aiconfigurator issue 66,
2025-10)."""

SCALE_PIXEL_S = 25e-9
"""The part of it that scales and cuts [s]. kind: assumed, the middle of what Pillow's scaling takes."""


@dataclass(frozen=True)
class EncoderKernels:
    """Attention of a tower: `peak_share` of the peak in 16 bits, `floor_s` a launch, heads padded to `head_step` values.

    median_error_percent : median over the shapes of the fit.
    """

    peak_share: float
    floor_s: float
    head_step: int
    median_error_percent: float


@dataclass(frozen=True)
class ImageHost:
    """Images of a batch are received and decoded by `loaders` threads, and then scaled and cut by one; `pixels` make a token."""

    pixels: int
    loaders: int

    def host_s(self, tokens: Sequence[int]) -> float:
        """Seconds for images of so many tokens each."""
        if not tokens:
            return 0.0
        load_s = (PIXEL_S - SCALE_PIXEL_S) / min(self.loaders, len(tokens))
        return (SCALE_PIXEL_S + load_s) * self.pixels * sum(tokens)


@dataclass(frozen=True)
class Images:
    """How an engine encodes: the tower, its attention, and what the host does within steps of a server that only encodes."""

    vision: Vision
    kernels: EncoderKernels
    host: ImageHost | None = None


@dataclass(frozen=True)
class ImageLoad:
    """How a step reads what other servers have made of images: bytes of a token, and their rate."""

    token_bytes: int
    bytes_per_s: float

    def load_s(self, tokens: Sequence[int]) -> float:
        """Seconds to read images of so many tokens each, one after the other."""
        return sum(tokens) * self.token_bytes / self.bytes_per_s


class _BeforeSteps(StepCost):
    """Step times with what images take before a step; ranks that step together wait for the longest."""

    def __init__(self, inner: StepCost) -> None:
        self._inner = inner

    def _images_s(self, encodes: Sequence[int]) -> float:
        """Device seconds before a step that is the first to need images of so many tokens each."""
        raise NotImplementedError

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base; of what images take the prompts are said to be the cause."""
        device_s, prefills_s = self._inner.step_s(batches)
        self.launch_s, self.launch_wait_s = self._inner.launch_s, self._inner.launch_wait_s
        self.first_s, self.last_s = 0.0, self._inner.last_s
        own_s = [self._images_s(batch.encodes) if batch.encodes else 0.0 for batch in batches]
        longest_s = max(own_s)
        if longest_s:
            device_s += longest_s
            self.first_s = longest_s
            prefills_s = [prefill_s + one_s for prefill_s, one_s in zip(prefills_s, own_s, strict=True)]
        return device_s, prefills_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base: steps that only decode need no images."""
        return self._inner.run_s(shapes, steps)

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base: steps that only decode need no images."""
        return self._inner.few_s(shapes, steps)

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self._inner.host_s(batch)


class WithLoads(_BeforeSteps):
    """Step times where steps read what other servers have made of images."""

    def __init__(self, inner: StepCost, load: ImageLoad) -> None:
        super().__init__(inner)
        self._load = load

    def _images_s(self, encodes: Sequence[int]) -> float:
        return self._load.load_s(encodes)


class WithImages(_BeforeSteps):
    """Step times with the images that are encoded before a step."""

    def __init__(self, inner: StepCost, images: Images, shard: Shard) -> None:
        super().__init__(inner)
        self._images, self._shard = images, shard
        self._launch_s = shard.terms.host.launch_s

    def _images_s(self, encodes: Sequence[int]) -> float:
        return self.encode_s(encodes)

    def encode_s(self, encodes: Sequence[int]) -> float:
        """Device seconds to encode images of so many tokens each, together."""
        vision, shard = self._images.vision, self._shard
        ops, tp = shard.ops, shard.parallel.tensor
        patches = [tokens * vision.patches for tokens in encodes]
        m = np.array([sum(patches)], dtype=np.float64)
        width, inner = vision.width, -(-vision.inner // tp)
        split = -(-vision.heads // tp) * (width // vision.heads)
        layer_s = self._gemm_s(m, 3 * split, width) + self._gemm_s(m, width, split)
        layer_s += self._gemm_s(m, (1 + vision.gated) * inner, width) + self._gemm_s(m, width, inner)
        layer_s += 4 * ops.elementwise_s(4.0 * width * m)  # norms, and sums with what came before
        layer_s += ops.elementwise_s(8.0 * split * m) + ops.elementwise_s(2.0 * (2 + vision.gated) * inner * m)
        if tp > 1:
            layer_s += 2 * ops.all_reduce_s(tp, 2.0 * width * m)
        attention_s = vision.whole_layers * self._attention_s(self._seen(patches, vision.tile_patches))
        if vision.window_patches:
            windowed = vision.layers - vision.whole_layers
            attention_s += windowed * self._attention_s(self._seen(patches, vision.window_patches))
        joined = width * vision.patches
        tokens = m / vision.patches
        join_s = self._gemm_s(tokens, -(-joined // tp), joined) + self._gemm_s(tokens, shard.arch.hidden, -(-joined // tp))
        device_s = self._gemm_s(m, width, vision.inputs) + vision.layers * layer_s + vision.joins * join_s
        launched_s = self._launch_s * (LAUNCHES_A_LAYER * vision.layers + 4 * vision.joins)
        return max(float(device_s[0]) + attention_s, launched_s)

    def _gemm_s(self, m: FloatArray, n: int, k: int) -> FloatArray:
        own_s: FloatArray = self._shard.ops.gemm_s(self._shard.arch.dtype, m, n, k)
        return own_s

    @staticmethod
    def _seen(patches: Sequence[int], most: int) -> list[int]:
        """The patches that attend to each other: those of an image, or of its parts of at most so many."""
        if not most:
            return list(patches)
        return [part for count in patches for part in [most] * (count // most) + [count % most] * (count % most > 0)]

    def _attention_s(self, among: Sequence[int]) -> float:
        """Device seconds of attention of a layer, among so many patches each."""
        vision, kernels, peaks = self._images.vision, self._images.kernels, self._shard.ops.peaks
        heads = -(-vision.heads // self._shard.parallel.tensor)
        wide = -(-(vision.width // vision.heads) // kernels.head_step) * kernels.head_step
        tiles = [heads * -(-count // TILE) for count in among]
        idle = max(1.0, peaks.multiprocessors / sum(tiles))
        flops = sum([4.0 * TILE * count * wide * own for count, own in zip(among, tiles, strict=True)])
        return kernels.floor_s + flops * idle / (kernels.peak_share * peaks.rate(self._shard.arch.dtype))


class OnlyImages(WithImages):
    """Steps of a server that encodes images and computes nothing else; the host's part is that of a step, and of its images."""

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        own = self._images.host
        return self._inner.host_s(batch) + (own.host_s(batch.encodes) if own is not None else 0.0)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base."""
        own_s = [self.encode_s(batch.encodes) if batch.encodes else 0.0 for batch in batches]
        return max(own_s), own_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base: nothing is computed without images."""
        return np.zeros(steps)

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base: nothing is computed without images."""
        return [0.0] * steps


__all__ = ["PIXEL_S", "EncoderKernels", "ImageLoad", "Images", "OnlyImages", "WithImages", "WithLoads"]
