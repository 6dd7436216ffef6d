"""Operations of AMD's Instinct GPUs under ROCm: the datasheet's rates times efficiencies fitted to AMD's own kernel tables.

The physics is that of :mod:`hardware_profiles.kernel_physics`. What differs from other datasheets' is that products start late
and reach less of the peaks, that attention costs a time for every decoding row whatever it reads, and that a small all-reduce
waits for eight devices without a switch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.device import Device
from hardware_profiles.kernel_physics import DEFAULT_PARAMETERS, Array, as_array, peaks_of
from hardware_profiles.roofline import Efficiencies, Roofline

#: Parameters of the bases. kind: fitted, 2026-11, source: products of aiter and hipBLASLt on MI300X, MI325X and MI355X (held
#: shapes 3 to 26 %: start 5 to 11 us, 0.44 to 0.8 of the bandwidth, 0.29 to 0.47 of the peak; between them here), experts of
#: aiter on MI355X (6 to 8 %); attention by the slopes over batch and context of Llama-3.1-70B on eight MI300X (ROCm/vllm
#: f8c9a38).
EFFICIENCIES: Efficiencies = {
    **DEFAULT_PARAMETERS,
    "gemm": {**DEFAULT_PARAMETERS["gemm"], "latency_s": 6.6e-6, "compute_efficiency": 0.36, "memory_efficiency": 0.7},
    "attention_decode": {
        **DEFAULT_PARAMETERS["attention_decode"],
        "latency_s": 9e-6,
        "memory_efficiency": 0.45,
        "unit_s": 0.0,
    },
    "attention_context": {"latency_s": 1.5e-5, "compute_efficiency": 0.3, "memory_efficiency": 0.4},
    "moe": {**DEFAULT_PARAMETERS["moe"], "latency_s": 1.8e-5, "compute_efficiency": 0.4, "memory_efficiency": 0.78},
    "mla": {**DEFAULT_PARAMETERS["mla"], "latency_s": 1.5e-5, "compute_efficiency": 0.3, "memory_efficiency": 0.4},
    "elementwise": {"latency_s": 3e-6, "memory_efficiency": 0.6},
}
#: What decode attention takes for every row beside its bytes [s]. kind: fitted, 2026-11, source: steps of 32 to 128 rows of
#: Llama-3.1-70B on eight MI300X.
ROW_S = 5e-7
#: Least time of a collective over a node [s]. kind: fitted, 2026-11, source: what is left of single-stream steps of
#: Llama-3.1-70B on eight MI300X; RCCL's own is 50 us, that of vLLM's kernels on MI355X 4 to 6.
LINK_LATENCY_S = 1e-5
#: What it is off by [%] in the median: 4 on 27 rows of dense models in FP8 (16 latencies of Llama-3.1-70B, 11 throughputs of
#: Llama-3.1-8B and 405B), all of which chose these constants; experts and latent attention, other engines and versions more.
#: kind: assumed, 2026-11.
ERROR_PCT = 15.0


class Instinct(Roofline):
    """Times of one of AMD's Instinct GPUs."""

    @classmethod
    def of(cls, device: Device, framework: str) -> Instinct:
        """Operations of a device of the family."""
        provenance: Mapping[str, object] = {
            "sources": [],
            "kind": "fitted",
            "law": "AMD Instinct under ROCm",
            "law_error_pct": ERROR_PCT,
        }
        return cls(
            device.name,
            framework,
            peaks_of(device),
            EFFICIENCIES,
            link_latency_s=LINK_LATENCY_S,
            provenance=provenance,
        )

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
        """As the base, and a time for every row."""
        t = super().decode_attention_s(kv_fmt, heads, kv_heads, head_dim, window_tokens, batch, context_tokens)
        return t + ROW_S * np.maximum(as_array(batch), 0.0)


__all__ = ["Instinct"]
