"""Layers whose weights stay in host memory: a CPU computes them, of many tokens the device with weights that it fetches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from numpy.typing import ArrayLike

from engine_models.cost.step_time import StepTimeModel, TableRange
from engine_models.cost.terms import Formats, HostOverhead, Parallelism, Shard, Terms
from engine_models.model.blocks import Architecture
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import FloatArray, StepCost
from hardware_profiles.expert_ranks import EVEN, Deal
from hardware_profiles.kernel_physics import Array
from hardware_profiles.ops import Ops, Recurrence, SparseLayer
from hardware_profiles.records import dataclass

DISTINCT = 0.57
"""Neighbouring tokens meet the same experts (fitted, 2026-11: prompt rates of gpt-oss-120b with the experts of 25 layers in host
memory beside an RTX 3090, sub-batches of 256 to 8,192 tokens; an informal run told at ai-maestro.online, 2026-05)."""


@dataclass(frozen=True)
class HostLayers:
    """Layers that come before the device's own.

    arch : these layers, as a model of their own without a head.
    ops : operations of the host's processor.
    threads : of it that compute; 0: one on each core.
    fetched_tokens : tokens of a step from which the device computes them, but for attention; None: never.
    fetched_bytes, expert_bytes : the weights that it fetches for that: of all, and of experts, of which it fetches those that
        tokens are routed to.
    bytes_per_s : the rate at which it fetches.
    experts_only : only the experts are the host's, all else and the cache are the device's.
    """

    arch: Architecture
    ops: Ops
    threads: int
    fetched_tokens: int | None
    fetched_bytes: float
    expert_bytes: float
    bytes_per_s: float
    experts_only: bool = False

    def fetch_s(self, tokens: int) -> float:
        """Seconds to fetch what so many tokens need: as many experts as `tokens ** DISTINCT` evenly routed ones reach."""
        apart = tokens**DISTINCT
        used = [1.0 - (1.0 - block.experts_per_token / block.experts) ** apart for block in self.arch.mlp if block.experts]
        return (self.fetched_bytes + self.expert_bytes * max(used, default=0.0)) / self.bytes_per_s

    def before(self, model: StepCost, device: Ops, formats: Formats, terms: Terms, up_to: TableRange) -> StepCost:
        """Costs of these layers and then those of the device, which are `model`."""
        bare = replace(terms, host=HostOverhead(0.0, 0.0), threads=0, sample_bytes_per_logit=0.0, truncated_sampling=False)
        host = self.ops.on_threads(self.threads) if self.threads else self.ops
        if self.experts_only:
            kinds: tuple[Ops, Ops] = _Shared(device, attention=device, experts=host), device
        else:
            kinds = host, _Shared(device, attention=host, experts=device)
        of_host, of_device = (
            StepTimeModel(Shard(self.arch, ops, formats, Parallelism(), bare), up_to) for ops in kinds
        )
        return OverHost(model, self, of_host, of_device)


class OverHost(StepCost):
    """The device's layers after the host's: one processor works at a time, and what they hand over is small."""

    def __init__(self, model: StepCost, layers: HostLayers, of_host: StepCost, of_device: StepCost) -> None:
        self.model = model
        self._layers, self._of_host, self._of_device = layers, of_host, of_device

    def _other(self, batches: Sequence[Batch]) -> tuple[StepCost, float]:
        """Cost of the host's layers in steps of so many tokens, and the time of fetching their weights."""
        (batch,) = batches
        least = self._layers.fetched_tokens
        if least is None or batch.tokens < least:
            return self._of_host, 0.0
        return self._of_device, self._layers.fetch_s(batch.tokens)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base, of the one rank there is; weights are fetched for all rows."""
        other, fetch_s = self._other(batches)
        own_s, prefill_s = self.model.step_s(batches)
        other_s, other_prefill_s = other.step_s(batches)
        return own_s + other_s + fetch_s, [prefill_s[0] + other_prefill_s[0]]

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        other, fetch_s = self._other(shapes)
        steps_s: FloatArray = self.model.run_s(shapes, steps) + other.run_s(shapes, steps) + fetch_s
        return steps_s

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        other, fetch_s = self._other(shapes)
        both = zip(self.model.few_s(shapes, steps), other.few_s(shapes, steps), strict=True)
        return [own_s + other_s + fetch_s for own_s, other_s in both]

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self.model.host_s(batch)


class _Shared(Ops):
    """A device's operations, but for attention and experts, each of one of the processors."""

    def __init__(self, device: Ops, *, attention: Ops, experts: Ops) -> None:
        self._device, self._attention, self._experts = device, attention, experts
        self.device, self.framework = device.device, device.framework
        self.peaks, self.provenance = device.peaks, device.provenance

    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int) -> Array:
        return self._device.gemm_s(fmt, m, n, k)

    def decode_attention_s(
        self,
        kv_fmt: str,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window_tokens: int,
        batch: ArrayLike,
        context_tokens: ArrayLike,
    ) -> Array:
        return self._attention.decode_attention_s(kv_fmt, heads, kv_heads, head_dim, window_tokens, batch, context_tokens)

    def prefill_attention_s(
        self,
        fmt: str,
        kv_fmt: str,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window_tokens: int,
        new_tokens: ArrayLike,
        prior_tokens: ArrayLike,
    ) -> Array:
        return self._attention.prefill_attention_s(
            fmt, kv_fmt, heads, kv_heads, head_dim, window_tokens, new_tokens, prior_tokens
        )

    def mla_decode_s(
        self, fmt: str, kv_fmt: str, heads: int, batch: ArrayLike, context_tokens: ArrayLike
    ) -> Array:
        return self._attention.mla_decode_s(fmt, kv_fmt, heads, batch, context_tokens)

    def mla_prefill_s(
        self, fmt: str, kv_fmt: str, heads: int, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array:
        return self._attention.mla_prefill_s(fmt, kv_fmt, heads, new_tokens, prior_tokens)

    def sparse_decode_s(self, layer: SparseLayer, batch: ArrayLike, context_tokens: ArrayLike) -> Array | None:
        return self._attention.sparse_decode_s(layer, batch, context_tokens)

    def sparse_context_s(
        self, layer: SparseLayer, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array | None:
        return self._attention.sparse_context_s(layer, new_tokens, prior_tokens)

    def recurrent_decode_s(self, layer: Recurrence, batch: ArrayLike) -> Array:
        return self._attention.recurrent_decode_s(layer, batch)

    def recurrent_context_s(self, layer: Recurrence, new_tokens: ArrayLike, sequences: ArrayLike = 1.0) -> Array:
        return self._attention.recurrent_context_s(layer, new_tokens, sequences)

    def moe_s(
        self,
        fmt: str,
        hidden: int,
        intermediate: int,
        topk: int,
        experts: int,
        tp: int,
        ep: int,
        tokens: ArrayLike,
        *,
        gated: bool = True,
        kernel: str | None = None,
        deal: Deal = EVEN,
    ) -> Array:
        return self._experts.moe_s(
            fmt, hidden, intermediate, topk, experts, tp, ep, tokens, gated=gated, kernel=kernel, deal=deal
        )

    def all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        return self._device.all_reduce_s(gpus, message_bytes)

    def earlier_all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        return self._device.earlier_all_reduce_s(gpus, message_bytes)

    def all_gather_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        return self._device.all_gather_s(gpus, message_bytes)

    def reduce_scatter_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        return self._device.reduce_scatter_s(gpus, message_bytes)

    def p2p_s(self, message_bytes: ArrayLike) -> Array:
        return self._device.p2p_s(message_bytes)

    def elementwise_s(self, moved_bytes: ArrayLike) -> Array:
        return self._device.elementwise_s(moved_bytes)


__all__ = ["HostLayers", "OverHost"]
