"""Operations of a device times the scales of a calibration.

A user's measurements tell by how much a device is slower or faster than its profile in two things: reading memory (`decode`) and
computing many tokens at once (`prompt`). Of a product of m rows

    t(m) = decode * t(1) + prompt * (t(m) - t(1))

so that one row, which reads the weights, has the first scale, and what further rows add has the second. Of a layer of experts
t(1) grows with the experts that m tokens touch. Attention of decoding rows and passes over activations read memory, attention of
prompts computes. Collectives stay as they were: what was measured at one width says nothing of another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.expert_ranks import EVEN, Deal
from hardware_profiles.kernel_physics import Array, DevicePeaks, as_array, moe_active_experts
from hardware_profiles.ops import Ops, Recurrence, RoutedLayer, SparseLayer
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Scales:
    """Measured time over the profile's: of the arithmetic of prompts, of reading memory, and of the host in a step."""

    prompt_scale: float = 1.0
    decode_scale: float = 1.0
    host_scale: float = 1.0


@dataclass(frozen=True)
class ScaledOps(Ops):
    """Operations of `inner` by scales; make it with :meth:`of`."""

    device: str
    framework: str
    peaks: DevicePeaks
    provenance: Mapping[str, Any]
    inner: Ops
    scales: Scales

    @classmethod
    def of(cls, inner: Ops, scales: Scales) -> ScaledOps:
        """The operations of a device by scales."""
        return cls(inner.device, inner.framework, inner.peaks, inner.provenance, inner, scales)

    @property
    def held_out_error(self) -> Mapping[str, float]:
        """See the base."""
        return self.inner.held_out_error

    def on_threads(self, threads: int) -> Ops:
        """See the base."""
        return ScaledOps.of(self.inner.on_threads(threads), self.scales)

    def with_attention(self, prompts: str, decodes: str) -> Ops:
        """See the base."""
        return ScaledOps.of(self.inner.with_attention(prompts, decodes), self.scales)

    def times_attention(self, backend: str, head_dim: int) -> bool:
        """See the base."""
        return self.inner.times_attention(backend, head_dim)

    def expert_backend(self, fmt: str, word: str) -> str | None:
        """See the base."""
        return self.inner.expert_backend(fmt, word)

    def lent_experts(self, fmt: str, word: str | None = None) -> tuple[str, float] | None:
        """See the base."""
        return self.inner.lent_experts(fmt, word)

    def _split(self, whole_s: Array, read_s: Array) -> Array:
        """`whole_s`, of which at most `read_s` reads memory."""
        read_s = np.minimum(whole_s, read_s)
        return self.scales.decode_scale * read_s + self.scales.prompt_scale * (whole_s - read_s)

    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int) -> Array:
        """See the head of the module."""
        return self._split(self.inner.gemm_s(fmt, m, n, k), self.inner.gemm_s(fmt, 1, n, k))

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
        """See the head of the module."""
        shape = (heads, kv_heads, head_dim, window_tokens)
        return self.scales.decode_scale * self.inner.decode_attention_s(kv_fmt, *shape, batch, context_tokens)

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
        """See the head of the module."""
        shape = (heads, kv_heads, head_dim, window_tokens)
        return self.scales.prompt_scale * self.inner.prefill_attention_s(fmt, kv_fmt, *shape, new_tokens, prior_tokens)

    def mla_decode_s(self, fmt: str, kv_fmt: str, heads: int, batch: ArrayLike, context_tokens: ArrayLike) -> Array:
        """See the head of the module."""
        return self.scales.decode_scale * self.inner.mla_decode_s(fmt, kv_fmt, heads, batch, context_tokens)

    def mla_prefill_s(
        self, fmt: str, kv_fmt: str, heads: int, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array:
        """See the head of the module."""
        return self.scales.prompt_scale * self.inner.mla_prefill_s(fmt, kv_fmt, heads, new_tokens, prior_tokens)

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
        """See the head of the module."""
        shape = (hidden, intermediate, topk, experts, tp, ep)
        whole_s = self.inner.moe_s(fmt, *shape, tokens, gated=gated, kernel=kernel, deal=deal)
        one_s = self.inner.moe_s(fmt, *shape, 1, gated=gated, kernel=kernel, deal=deal)
        rows, local, chosen = np.maximum(as_array(tokens), 1.0), np.float64(experts / ep), topk / experts
        touched, first = (
            moe_active_experts(local, np.maximum(count * topk / ep, 1.0), chosen=chosen) for count in (rows, np.ones(1))
        )
        return self._split(whole_s, one_s * touched / first)

    def routed_experts_s(self, layer: RoutedLayer, tokens: ArrayLike, *, captured: bool) -> Array | None:
        """See the head of the module."""
        found = self.inner.routed_experts_s(layer, tokens, captured=captured)
        return None if found is None else (self.scales.decode_scale if captured else self.scales.prompt_scale) * found

    def sparse_decode_s(self, layer: SparseLayer, batch: ArrayLike, context_tokens: ArrayLike) -> Array | None:
        """See the head of the module."""
        found = self.inner.sparse_decode_s(layer, batch, context_tokens)
        return None if found is None else self.scales.decode_scale * found

    def sparse_context_s(
        self, layer: SparseLayer, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array | None:
        """See the head of the module."""
        found = self.inner.sparse_context_s(layer, new_tokens, prior_tokens)
        return None if found is None else self.scales.prompt_scale * found

    def recurrent_decode_s(self, layer: Recurrence, batch: ArrayLike) -> Array:
        """See the head of the module."""
        return self.scales.decode_scale * self.inner.recurrent_decode_s(layer, batch)

    def recurrent_context_s(self, layer: Recurrence, new_tokens: ArrayLike, sequences: ArrayLike = 1.0) -> Array:
        """See the head of the module."""
        return self.scales.prompt_scale * self.inner.recurrent_context_s(layer, new_tokens, sequences)

    def all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the head of the module."""
        return self.inner.all_reduce_s(gpus, message_bytes)

    def earlier_all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the head of the module."""
        return self.inner.earlier_all_reduce_s(gpus, message_bytes)

    def all_gather_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the head of the module."""
        return self.inner.all_gather_s(gpus, message_bytes)

    def reduce_scatter_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the head of the module."""
        return self.inner.reduce_scatter_s(gpus, message_bytes)

    def p2p_s(self, message_bytes: ArrayLike) -> Array:
        """See the head of the module."""
        return self.inner.p2p_s(message_bytes)

    def elementwise_s(self, moved_bytes: ArrayLike) -> Array:
        """See the head of the module."""
        return self.scales.decode_scale * self.inner.elementwise_s(moved_bytes)


__all__ = ["ScaledOps", "Scales"]
