"""The operations of one device, as the cost of a step asks for them.

An abstract base class: fitted tables (:class:`~hardware_profiles.kernel_model.KernelModel`), tables borrowed from another device
and the datasheet (:class:`~hardware_profiles.roofline.Roofline`) implement it; :mod:`hardware_profiles.kernels` chooses.
All times are seconds of one device as a layer pays them inside a model, in the shape of their loads; a load of nothing takes 0.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from numpy.typing import ArrayLike

from hardware_profiles.kernel_physics import Array, DevicePeaks


class Ops(ABC):
    """Times of single operations of one device, and where they come from.

    device : its name, or the folder of its tables.
    framework : whose kernels these are ("" for none in particular).
    peaks : the datasheet's rates.
    provenance : sources and kind of the numbers; ``borrowed_from_device`` and ``borrowed_error_pct`` where they are another's,
        ``law`` and ``law_error_pct`` where a law of its class stands for them, ``format_error_pct`` where a format differs.
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
    ) -> Array:
        """One layer of experts on one rank: routing, products, combination, no communication.

        experts : of the whole model, shared by `ep` ranks; tokens : routed ones of all these ranks; kernel : a backend by its
        name in the tables, see `expert_backend`.
        """

    def expert_backend(self, fmt: str, word: str) -> str | None:
        """Name in the tables of the backend of experts that an engine calls `word`; None where there is no choice."""
        return None

    @abstractmethod
    def all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """All-reduce of a tensor of `message_bytes` on each of `gpus` devices of one node."""

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


__all__ = ["Ops"]
