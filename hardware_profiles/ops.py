"""The operations of one device, as the cost of a step asks for them.

An abstract base class: fitted tables (:class:`~hardware_profiles.kernel_model.KernelModel`), tables borrowed from another device
and the datasheet (:class:`~hardware_profiles.roofline.Roofline`) implement it; :mod:`hardware_profiles.kernels` chooses.
All times are seconds of one device as a layer pays them inside a model, in the shape of their loads; a load of nothing takes 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.expert_ranks import EVEN, Deal
from hardware_profiles.kernel_physics import (
    CONVOLUTION_STEP_VALUES,
    CONVOLUTION_TOKEN_VALUES,
    DEFAULT_PARAMETERS,
    Array,
    DevicePeaks,
    as_array,
    convolution_base_s,
    recurrence_context_base_s,
    recurrence_decode_base_s,
    recurrent_parameters,
)
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Recurrence:
    """A recurrent layer on one device, without its projections.

    variant : ``gdn`` (gated delta net), ``kda`` (Kimi delta attention), ``mamba2``; others move their bytes as these do.
    key_heads, heads, key_dim, value_dim : of the rule. state_bytes : of a sequence's state, 0 without one. channels : of its
    convolution, 0 without one.
    """

    variant: str
    key_heads: int
    heads: int
    key_dim: int
    value_dim: int
    state_bytes: float
    channels: int

    @property
    def widths(self) -> tuple[np.float64, np.float64, np.float64, np.float64, np.float64]:
        """What the physics of a prompt goes by."""
        key_heads, heads = np.float64(self.key_heads), np.float64(self.heads)
        return key_heads, heads, np.float64(self.key_dim), np.float64(self.value_dim), np.float64(self.state_bytes)


@dataclass(frozen=True)
class SparseLayer:
    """A layer of sparse attention on one device, of a kind that kernel tables know as a whole.

    kind : a key of :data:`~hardware_profiles.kernel_physics.SPARSE_KINDS`. gemm_fmt, kv_fmt : formats of projections and cache.
    heads : on the device. products : output and input widths of its projections.
    """

    kind: str
    gemm_fmt: str
    kv_fmt: str
    heads: int
    products: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RoutedLayer:
    """A layer of experts, weights in `fmt`: each of `ranks` ranks holds its share and is sent the rows of these alone.

    deal : of tokens and experts to the ranks.
    """

    fmt: str
    hidden: int
    intermediate: int
    topk: int
    experts: int
    ranks: int
    deal: Deal = EVEN


class Ops(ABC):
    """Times of single operations of one device, and where they come from.

    device : its name, or the folder of its tables.
    framework : whose kernels these are ("" for none in particular).
    peaks : the datasheet's rates.
    provenance : sources and kind of the numbers; ``borrowed_from_device`` and ``borrowed_error_pct`` where they are another's,
        ``law`` and ``law_error_pct`` where a law of its class stands for them (``law_within``: how wide errors of it spread),
        ``format_error_pct`` where a format differs.
    held_out_error : mean error on shapes kept out of the fit, per ``op/format`` [%]; empty without measurements.
    """

    device: str
    framework: str
    peaks: DevicePeaks
    provenance: Mapping[str, Any]

    @property
    def held_out_error(self) -> Mapping[str, float]:
        """See the class."""
        return {}

    def on_threads(self, threads: int) -> Ops:
        """The operations with so many threads of a CPU; the same where a device has none, or nobody measured what they change."""
        return self

    def with_attention(self, prompts: str, decodes: str) -> Ops:
        """The operations with plain attention by the backends of these names in the tables, "" for the likely one; the same where
        nobody timed any."""
        return self

    def times_attention(self, backend: str, head_dim: int) -> bool:
        """Whether plain attention with heads so wide was timed by a backend of this name."""
        return False

    @abstractmethod
    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int) -> Array:
        """One linear layer ``(m, k) x (k, n)``, weights in `fmt`, 16-bit input and output."""

    @abstractmethod
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
        """Attention of one query token for each of `batch` rows of `context_tokens` tokens; `window_tokens` 0: all of them."""

    @abstractmethod
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
        """Causal attention of one chunk of `new_tokens` queries after `prior_tokens` others."""

    @abstractmethod
    def mla_decode_s(
        self, fmt: str, kv_fmt: str, heads: int, batch: ArrayLike, context_tokens: ArrayLike
    ) -> Array:
        """Latent attention of decode rows in the absorbed form, without projections."""

    @abstractmethod
    def mla_prefill_s(
        self, fmt: str, kv_fmt: str, heads: int, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array:
        """Latent attention of one prompt chunk in the expanded form, without projections."""

    @abstractmethod
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
        """One layer of experts on one rank: routing, products, combination, no communication.

        experts : of the whole model, shared by `ep` ranks; tokens : routed ones of all these ranks; kernel : a backend by its
        name in the tables, see `expert_backend`; deal : of tokens and experts to the ranks.
        """

    def expert_backend(self, fmt: str, word: str) -> str | None:
        """Name in the tables of the backend of experts that an engine calls `word`; None where there is no choice."""
        return None

    def lent_experts(self, fmt: str, word: str | None = None) -> tuple[str, float] | None:
        """Whose kernels stand for experts in a format of which this device's tables have none, and their error on shapes kept out
        [%], where an engine's are those of a word; None where it is nobody's of the same code."""
        return None

    def routed_experts_s(self, layer: RoutedLayer, tokens: ArrayLike, *, captured: bool) -> Array | None:
        """The same on a rank that is sent the rows of its experts, and that exchange; None where neither was timed.

        captured : whether a CUDA graph holds the step; `tokens` are those of all ranks.
        """
        return None

    def sparse_decode_s(self, layer: SparseLayer, batch: ArrayLike, context_tokens: ArrayLike) -> Array | None:
        """What a layer of sparse attention takes beside its projections, one token of each of `batch` rows; None where nobody
        timed such layers."""
        return None

    def sparse_context_s(
        self, layer: SparseLayer, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array | None:
        """The same of one prompt chunk."""
        return None

    def recurrent_decode_s(self, layer: Recurrence, batch: ArrayLike) -> Array:
        """One step of a recurrent layer for each of `batch` rows: delta rule and convolution, without projections.

        Here by typical kernels over the datasheet's rates.
        """
        rows = as_array(batch)
        total = np.zeros_like(rows)
        if layer.state_bytes:
            p = recurrent_parameters("recurrence_decode", layer.variant)
            total = total + recurrence_decode_base_s(p, self.peaks, np.float64(layer.state_bytes), rows, warm=False)
        if layer.channels:
            p, values = DEFAULT_PARAMETERS["convolution_decode"], layer.channels * CONVOLUTION_STEP_VALUES
            total = total + convolution_base_s(p, self.peaks, rows * values, warm=False)
        return np.where(rows > 0, total, 0.0)

    def recurrent_context_s(self, layer: Recurrence, new_tokens: ArrayLike, sequences: ArrayLike = 1.0) -> Array:
        """A prompt chunk of each of so many `sequences` through a recurrent layer, likewise."""
        new, many = np.broadcast_arrays(as_array(new_tokens), as_array(sequences))
        total = np.zeros(new.shape)
        if layer.state_bytes:
            p = recurrent_parameters("recurrence_context", layer.variant)
            total = total + recurrence_context_base_s(p, self.peaks, *layer.widths, many, new)
        if layer.channels:
            p, values = DEFAULT_PARAMETERS["convolution_context"], layer.channels * CONVOLUTION_TOKEN_VALUES
            total = total + convolution_base_s(p, self.peaks, many * new * values, warm=False)
        return np.where(new > 0, total, 0.0)

    @abstractmethod
    def all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """All-reduce of a tensor of `message_bytes` on each of `gpus` devices of one node."""

    def earlier_all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """The same by the kernel that engines shared before they had their own, where it was timed."""
        return self.all_reduce_s(gpus, message_bytes)

    @abstractmethod
    def all_gather_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """All-gather; `message_bytes` is the gathered tensor."""

    @abstractmethod
    def reduce_scatter_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """Reduce-scatter; `message_bytes` is the whole tensor."""

    @abstractmethod
    def p2p_s(self, message_bytes: ArrayLike) -> Array:
        """A message from one device of a node to another."""

    @abstractmethod
    def elementwise_s(self, moved_bytes: ArrayLike) -> Array:
        """One memory-bound kernel (normalisation, rotary embedding, activation) that moves `moved_bytes`."""


__all__ = ["Ops", "Recurrence", "RoutedLayer", "SparseLayer"]
