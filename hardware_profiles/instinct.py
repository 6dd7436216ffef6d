"""Operations of AMD's Instinct GPUs under ROCm: the datasheet's rates times efficiencies fitted to AMD's own kernel tables.

The physics is that of :mod:`hardware_profiles.kernel_physics`. What differs from other datasheets' is that products start late
and reach less of the peaks, by blocks of FP8 the more so, that attention costs a time for every decoding row whatever it reads,
and that a small all-reduce waits for eight devices without a switch.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.device import Device
from hardware_profiles.expert_ranks import EVEN, Deal
from hardware_profiles.kernel_physics import DEFAULT_PARAMETERS, Array, as_array, canonical_format, peaks_of
from hardware_profiles.records import dataclass
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
#: What differs of products, by architecture and format. kind: fitted, 2026-11, source: aiter's tuned products
#: (ROCm/aiter@e4048607), in which every cell of an octave of bytes and two octaves of rows weighs alike, since most rows of the
#: tables are of prompts. Of (n, k) left out, up to 64 rows are off by 13, 11, 11, 14 and 9 % in the median and 1,024 or more by
#: 21, 13, 9, 14 and 8 on MI355X and MI350X (bf16, fp8, blocks, int8, mxfp4), by 13 and 8 on MI300X and MI325X. Without the depth
#: they were off by 19, 30, 38, 16 and 26 up to 64 rows (40 MB of FP8 blocks took 1.8 times too long), and by 42. On MI308X, of
#: which nothing is used here, the same form with parameters of its own is off by 9 and 7 % (fp8, blocks) where that without a
#: depth is by 19 and 15. Other formats of CDNA3 stay as above: 39 rows in 16 bits, none of few rows in 8.
_GEMM = DEFAULT_PARAMETERS["gemm"]


def _products(latency_s: float, depth_s: float, compute: float, memory: float, rows: float) -> dict[str, float]:
    """Parameters of products, see `gemm_base_s`."""
    shares = {"compute_efficiency": compute, "memory_efficiency": memory, "rows_efficiency": rows}
    return {**_GEMM, "latency_s": latency_s, "depth_s": depth_s, **shares}


#: Experts in MXFP4 that are widened to 16 bits by a Triton kernel, where there is no arithmetic in 4 bits. kind: by eye, 2026-11,
#: source: gpt-oss-120b on one MI300X with 64 to 256 users and on eight with 1 and 4 (vLLM 0.17, SemiAnalysisAI/InferenceX
#: pull requests 1061 and 1092, 2026-04): six steps, one to 7 % too short and 1 and 5 % too long by these three.
_WIDENED_EXPERTS = {"latency_s": 4e-5, "compute_efficiency": 0.2, "memory_efficiency": 0.45}
BY_FORMAT: Mapping[str, Efficiencies] = {
    "cdna3": {
        "gemm/fp8_block": _products(2.4e-6, 9.5e-10, 0.303, 0.503, 0.254),
        "moe/w4a16_mxfp4": {**EFFICIENCIES["moe"], **_WIDENED_EXPERTS},
    },
    "cdna4": {
        "gemm": _products(3.4e-6, 3.7e-10, 0.489, 0.789, 0.329),
        "gemm/fp8": _products(2.8e-6, 7.5e-10, 0.469, 0.907, 0.620),
        "gemm/fp8_block": _products(2.7e-6, 1.35e-9, 0.304, 0.876, 0.293),
        "gemm/sq": _products(3.7e-6, 1.1e-9, 0.337, 0.910, 0.584),
        "gemm/w4a4_mxfp4": _products(3.6e-6, 9.0e-10, 0.528, 0.95, 0.399),
    },
}
#: What decode attention takes for every row beside its bytes [s]. kind: fitted, 2026-11, source: steps of 32 to 128 rows of
#: Llama-3.1-70B on eight MI300X.
ROW_S = 5e-7
#: Least time of a collective over a node [s]. kind: fitted, 2026-11, source: what is left of single-stream steps of
#: Llama-3.1-70B on eight MI300X; RCCL's own is 50 us, that of vLLM's kernels on MI355X 4 to 6.
LINK_LATENCY_S = 1e-5
#: What a product of weights in FP8 by blocks and a layer of experts take beside their tuned kernels [s], by architecture: the
#: activations are quantised by groups in a kernel of its own, which aiter's tables leave out, and shapes without a tuned tile
#: fall back. kind: fitted, 2026-11, source: MI300X with few users: DeepSeek-R1 (SGLang 0.5.8, ROCm/aiter#1930), MiniMax-M2.7
#: (SGLang 0.5.13, sgl-project/sglang#31044), Qwen3.5-122B (vLLM 0.18, Millstone-AI a6d0bcd), 23 to 32 us a product, experts as
#: two, over the shares above; aiter's Triton experts by blocks take 73 to 85 us beside their kernels
#: (ROCm/aiter#1483). CDNA4: none is seen (Qwen3-Coder-480B in FP8, DeepSeek-R1 in MXFP4).
BLOCK_S = {"cdna3": (2.3e-5, 4.8e-5)}
#: What it is off by [%] in the mean, 2026-11: the medians of five sources that chose none of these constants, each once:
#: Llama-3.1-405B in FP8 on eight MI300X (vLLM of 2024) 17, Llama-3.1-8B in 16 bits 7, DeepSeek-R1 in MXFP4 on four MI355X 13,
#: Qwen3-Coder-480B in two formats 1, Llama-3.1-405B in MXFP4 on one 22. kind: measured.
ERROR_PCT = 12.0
#: The same in formats whose kernels differ by version more than by size, by architecture. kind: assumed, 2026-11, source: nine
#: runs of DeepSeek-V3.1 under SGLang 0.5.7 on MI300X, which chose this width alone: steps 11 to 35 % too short, prompts 27 to 78
#: (mean 40);
#: gpt-oss in MXFP4 on MI300X: vLLM 0.24 takes 2.8 times what is predicted, ATOM as long (bb96972).
FORMAT_ERROR_PCT = {"cdna3": {"fp8_block": 40.0, "w4a16_mxfp4": 50.0}}


@dataclass(frozen=True)
class Instinct(Roofline):
    """Times of one of AMD's Instinct GPUs.

    block_s : see `BLOCK_S`. mxfp4 : the format that weights in MXFP4 are computed in: CDNA4 has its arithmetic, and
    aiter's products and experts take activations in it too (16-bit weights only: 89 to 100 % too long on 518 timed layers of
    experts with many tokens, 12 % so); else they are widened.
    """

    block_s: tuple[float, float] = (0.0, 0.0)
    mxfp4: str = "w4a16_mxfp4"

    @classmethod
    def of(cls, device: Device, framework: str) -> Instinct:
        """Operations of a device of the family."""
        provenance: Mapping[str, object] = {
            "sources": [],
            "kind": "fitted",
            "law": "AMD Instinct under ROCm",
            "law_error_pct": ERROR_PCT,
            "format_error_pct": FORMAT_ERROR_PCT.get(device.architecture, {}),
        }
        return cls(
            device.name,
            framework,
            peaks_of(device),
            {**EFFICIENCIES, **BY_FORMAT.get(device.architecture, {})},
            link_latency_s=LINK_LATENCY_S,
            provenance=provenance,
            block_s=BLOCK_S.get(device.architecture, (0.0, 0.0)),
            mxfp4="w4a4_mxfp4" if "fp4" in device.peak_flops_per_s else "w4a16_mxfp4",
        )

    def _as_run(self, fmt: str) -> str:
        """The format that weights of a format are computed in."""
        name = canonical_format(fmt)
        return self.mxfp4 if name == "w4a16_mxfp4" else name

    def _blocks_s(self, fmt: str, paid_s: float, rows: ArrayLike) -> Array:
        """What products pay for their blocks, if they have any."""
        paid = paid_s if canonical_format(fmt) == "fp8_block" else 0.0
        return np.where(as_array(rows) > 0, paid, 0.0)

    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int) -> Array:
        """As the base, and what blocks take."""
        return super().gemm_s(self._as_run(fmt), m, n, k) + self._blocks_s(fmt, self.block_s[0], m)

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
        """As the base, and what blocks take in two products."""
        shape = (hidden, intermediate, topk, experts, tp, ep)
        t = super().moe_s(self._as_run(fmt), *shape, tokens, gated=gated, kernel=kernel, deal=deal)
        return t + self._blocks_s(fmt, self.block_s[1], tokens)

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
