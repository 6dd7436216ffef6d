"""Operations of a device that nobody measured and that has no kin among the measured: the datasheet's rates times efficiencies.

The physics is that of :mod:`hardware_profiles.kernel_physics`, without any residual. What differs between kinds of device are
the efficiencies and the terms that belong to a GPU's way of working: a GPU fills its multiprocessors wave by wave, a CPU enters
a parallel region for every operation and computes with all cores on whatever is there.

Without fits the efficiencies are those of a typical kernel, assumed (``DEFAULT_PARAMETERS`` of the physics); on NVIDIA GPUs
whose tables are left out they err by 23 to 50 % (docs/background/accuracy.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.device import STACKED_MEMORY, Device
from hardware_profiles.expert_ranks import EVEN, Deal, loaded_rank
from hardware_profiles.kernel_physics import (
    DEFAULT_PARAMETERS,
    MLA_KV_RANK,
    MLA_ROPE,
    WEIGHT_BYTES,
    Array,
    DevicePeaks,
    as_array,
    canonical_format,
    causal_pairs,
    collective_base_s,
    decode_base_s,
    decode_bytes,
    gemm_base_s,
    gemm_bytes,
    message_base_s,
    mla_base_s,
    moe_base_s,
    moe_weight_bytes,
    peaks_of,
    prefill_base_s,
    prompt_of_chunk,
    streaming_base_s,
)
from hardware_profiles.network import Network
from hardware_profiles.ops import Ops
from hardware_profiles.records import dataclass

Efficiencies = Mapping[str, Mapping[str, float]]

#: Time of an operation of no size on a CPU: dispatch, fork and join of a parallel region over all cores [s]. kind: assumed,
#: 2026-11: regions of 50 to 200 threads take some microseconds to some tens.
REGION_S = 5e-6
#: Regions of a layer of experts on a CPU: choice, two products, activation, sum. kind: by construction of the layer.
EXPERT_REGIONS = 5
#: Rows of a tile of a CPU's matrix unit, to which an expert's rows are padded. kind: datasheet (Intel AMX: 16 rows), 2026-11.
CPU_TILE_ROWS = 16.0
#: Launch of a collective over links of a node in a captured step, and of a message there [s]. kind: assumed, 2026-11.
LINK_LATENCY_S, MESSAGE_LATENCY_S = 6e-6, 1e-5
#: Of a collective of RCCL's between Radeon cards, for which engines have no all-reduce of their own [s]. kind: by eye, 2026-11,
#: source: decoding of Llama-3.1-8B in bf16 and gemma-3-12b in FP8 on one and two R9700 under vLLM
#: (kyuz0/amd-r9700-vllm-toolboxes): half of one card's step is 27 to 63 us an all-reduce shorter than two cards' step.
RCCL_LATENCY_S = 4.5e-5
#: Bandwidth one way and latency of the network between machines that have no link of their own: 100 Gb/s Ethernet, TCP.
#: kind: assumed, 2026-11.
NETWORK_BYTES_PER_S, NETWORK_LATENCY_S = 12.5e9, 5e-5


def cpu_efficiencies() -> Efficiencies:
    """Efficiencies of a CPU: the typical shares of the peaks, without what GPUs pay by kernel launch and by block of threads."""
    found: dict[str, dict[str, float]] = {}
    for op, typical in DEFAULT_PARAMETERS.items():
        regions = EXPERT_REGIONS if op == "moe" else 1
        found[op] = {**typical, "latency_s": regions * REGION_S}
        if "unit_s" in typical:
            found[op]["unit_s"] = 0.0
    found["moe"]["tile_rows"] = CPU_TILE_ROWS
    return found


#: What Intel's first Arc cards reach of their peaks. kind: fitted, 2026-11, source: one A770: decoding of Llama-3-8B in 4 and 8
#: bits under OpenVINO's server as its rate falls to none (0.40 and 0.47 of the bandwidth; Xe2, on a B580, 0.76 and 0.85),
#: oneMKL's products in 16 bits (58.7 of 137.6 TFLOP/s, ollama/ollama#2458). Under llama.cpp it is 0.25 to 0.32
#: (`law_constants.py`).
_FIRST_ARC = {"memory_efficiency": 0.45, "compute_efficiency": 0.43}
BY_ARCHITECTURE: Mapping[str, Efficiencies] = {
    "xe-hpg": {
        op: {**typical, **{name: share for name, share in _FIRST_ARC.items() if share < typical.get(name, 0.0)}}
        for op, typical in DEFAULT_PARAMETERS.items()
    }
}

#: Rows that leave no expert of a layer without one. kind: by construction.
ALL_CHOSEN_ROWS = 1e9
#: Share of the bandwidth at which a step reads the experts of a layer where its kernel goes through all that a device holds,
#: chosen or not. kind: the rule by source (vllm-project/vllm-gaudi@091bbad, `mixture_of_experts` of `extension/ops.py` gets every
#: expert's weights; pull request 1656: the dense path reads every local expert for every token), the share by eye, 2026-11, of
#: one stream of MiniMax-M2.7 in FP8 on four Gaudi 2 (50 ms a token, issue 1623).
EVERY_EXPERT: Mapping[str, float] = {"gaudi2": 0.5, "gaudi3": 0.5}


@dataclass(frozen=True)
class Roofline(Ops):
    """Times of one device by its datasheet. Build it with :meth:`of_device` or :meth:`of_gpu`.

    efficiencies : parameters of the bases by operation; those of a format that differ, under ``gemm/`` or ``moe/`` and its name.
    processors : multiprocessors that a short chunk of a prompt leaves idle, 0 where work is cut to fill them.
    link_latency_s, message_latency_s : of a collective and of a message to another device.
    network : between nodes, where the devices that work together stand in several.
    every_expert_share : share of the bandwidth at which a step reads all experts held; 0: the chosen alone.
    """

    device: str
    framework: str
    peaks: DevicePeaks
    efficiencies: Efficiencies = field(default_factory=lambda: DEFAULT_PARAMETERS)
    processors: int = 0
    link_latency_s: float = LINK_LATENCY_S
    message_latency_s: float = MESSAGE_LATENCY_S
    provenance: Mapping[str, Any] = field(default_factory=lambda: {"sources": [], "kind": "assumed"})
    network: Network | None = None
    every_expert_share: float = 0.0

    @classmethod
    def of_gpu(cls, device: str, framework: str, peaks: DevicePeaks) -> Roofline:
        """Operations of a GPU or what works like one."""
        return cls(device, framework, peaks, processors=peaks.multiprocessors)

    @classmethod
    def of_device(cls, device: Device, framework: str) -> Roofline:
        """Operations of any device, by its kind."""
        peaks = peaks_of(device)
        if device.kind != "cpu":
            gpu = cls.of_gpu(device.name, framework, peaks)
            gpu = replace(
                gpu,
                efficiencies=BY_ARCHITECTURE.get(device.architecture, gpu.efficiencies),
                every_expert_share=EVERY_EXPERT.get(device.architecture, 0.0),
            )
            radeon = device.vendor == "amd" and not device.name.startswith(STACKED_MEMORY)
            return replace(gpu, link_latency_s=RCCL_LATENCY_S) if radeon else gpu
        between = device.inter_node_bytes_per_s_per_direction
        peaks = DevicePeaks(
            peaks.flops_per_s,
            peaks.hbm_bytes_per_s,
            link_bytes_per_s=between.value if between else NETWORK_BYTES_PER_S,
            multiprocessors=peaks.multiprocessors,
        )
        return cls(
            device.name,
            framework,
            peaks,
            cpu_efficiencies(),
            link_latency_s=NETWORK_LATENCY_S,
            message_latency_s=NETWORK_LATENCY_S,
        )

    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int) -> Array:
        """See the base; a format whose arithmetic is bfloat16's takes at least the arithmetic share of bfloat16's time."""
        fmt = canonical_format(fmt)
        p = self.efficiencies.get(f"gemm/{fmt}", self.efficiencies["gemm"])
        rows = np.maximum(as_array(m), 1.0)
        nn, kk = np.float64(n), np.float64(k)
        t = gemm_base_s(p, self.peaks, fmt, rows, nn, kk, warm=False)
        t = np.maximum(t, 2.0 * rows * nn * kk / self.peaks.rate(fmt))
        t = np.maximum(t, p["latency_s"] + gemm_bytes(fmt, rows, nn, kk) / self.peaks.hbm_bytes_per_s)
        if fmt != "bfloat16" and self.peaks.rate(fmt) <= self.peaks.rate("bfloat16"):
            work = 2.0 * rows * nn * kk / (self.peaks.pipe_rate(fmt) * p["compute_efficiency"])
            share = work / gemm_base_s(p, self.peaks, "bfloat16", rows, nn, kk, False)
            t = np.maximum(t, np.minimum(share, 1.0) * self.gemm_s("bfloat16", rows, n, k))
        return np.where(as_array(m) > 0, t, 0.0)

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
        """See the base; never less than reading the KV once."""
        kv_fmt, p = canonical_format(kv_fmt), self.efficiencies["attention_decode"]
        b, c = np.broadcast_arrays(as_array(batch), np.maximum(as_array(context_tokens), 1.0))
        rows = np.maximum(b, 1.0)
        h, kv, d, w = (np.float64(x) for x in (heads, kv_heads, head_dim, window_tokens))
        t = decode_base_s(p, self.peaks, kv_fmt, h, kv, d, w, rows, c, warm=False)
        span = np.minimum(c, w) if window_tokens > 0 else c
        read = decode_bytes(WEIGHT_BYTES[kv_fmt], h, kv, d, rows, span)
        t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        return np.where(b > 0, t, 0.0)

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
        """See the base; never less than the arithmetic at the peak or than reading the cached keys and values once."""
        fmt, kv_fmt = canonical_format(fmt), canonical_format(kv_fmt)
        p = self.efficiencies["attention_context"]
        q, p0 = np.broadcast_arrays(as_array(new_tokens), np.maximum(as_array(prior_tokens), 0.0))
        new, rows = np.maximum(q, 1.0), np.ones_like(p0)
        h, kv, d, w = (np.float64(x) for x in (heads, kv_heads, head_dim, window_tokens))
        pairs = causal_pairs(new, p0, w)
        past = np.minimum(p0, w) if window_tokens > 0 else p0
        same = prompt_of_chunk(new, p0, w, h * rows, self.processors)
        t = prefill_base_s(p, self.peaks, fmt, h, kv, d, w, rows, same)
        t = np.maximum(t, 4.0 * rows * h * d * pairs / self.peaks.rate(fmt))
        read = rows * 2.0 * kv * d * (past * WEIGHT_BYTES[kv_fmt] + new * 2.0)
        t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        return np.where(q > 0, t, 0.0)

    def mla_decode_s(
        self, fmt: str, kv_fmt: str, heads: int, batch: ArrayLike, context_tokens: ArrayLike
    ) -> Array:
        """See the base; never less than reading the latent KV once."""
        kv_fmt = canonical_format(kv_fmt)
        formats = ("kernel", "decode", "none", canonical_format(fmt), kv_fmt)
        b, c = np.broadcast_arrays(as_array(batch), np.maximum(as_array(context_tokens), 1.0))
        rows = np.maximum(b, 1.0)
        t = mla_base_s(self.efficiencies["mla"], self.peaks, formats, np.float64(heads), rows, c)
        read = rows * c * (MLA_KV_RANK + MLA_ROPE) * WEIGHT_BYTES[kv_fmt]
        return np.where(b > 0, np.maximum(t, read / self.peaks.hbm_bytes_per_s), 0.0)

    def mla_prefill_s(
        self, fmt: str, kv_fmt: str, heads: int, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array:
        """See the base."""
        formats = ("kernel", "context", "none", canonical_format(fmt), canonical_format(kv_fmt))
        q, p0 = np.broadcast_arrays(as_array(new_tokens), np.maximum(as_array(prior_tokens), 0.0))
        same = prompt_of_chunk(np.maximum(q, 1.0), p0, np.float64(0.0))
        one = np.ones_like(p0)
        t = mla_base_s(self.efficiencies["mla"], self.peaks, formats, np.float64(heads), one, same)
        return np.where(q > 0, t, 0.0)

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
        """See the base; formats in bfloat16's arithmetic as in `gemm_s`."""
        fmt = canonical_format(fmt)
        p = self.efficiencies.get(f"moe/{fmt}", self.efficiencies["moe"])
        count = as_array(tokens)
        rows = np.maximum(count, 1.0)
        h, i, k, e = (np.float64(x) for x in (hidden, intermediate, topk, experts))
        rows = rows * loaded_rank(rows, k, e, ep, deal) if ep > 1 else rows
        args = (h, i, k, e + deal.copies, np.float64(tp), np.float64(ep), np.float64(gated))
        t = moe_base_s(p, self.peaks, fmt, rows, *args, warm=False)
        flops = np.where(gated, 6.0, 4.0) * h * i / tp * rows * k / ep
        t = np.maximum(t, flops / self.peaks.rate(fmt))
        if fmt != "bfloat16" and self.peaks.rate(fmt) <= self.peaks.rate("bfloat16"):
            work = flops / (self.peaks.pipe_rate("bfloat16") * p["compute_efficiency"])
            share = work / moe_base_s(p, self.peaks, "bfloat16", rows, *args, warm=False)
            whole = self.moe_s("bfloat16", hidden, intermediate, topk, experts, tp, ep, rows, gated=gated, deal=deal)
            t = np.maximum(t, np.minimum(share, 1.0) * whole)
        read = moe_weight_bytes(fmt, rows, *args)
        t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        if self.every_expert_share:
            held = moe_weight_bytes(fmt, np.full_like(rows, ALL_CHOSEN_ROWS), *args)
            t = np.maximum(t, p["latency_s"] + held / (self.peaks.hbm_bytes_per_s * self.every_expert_share))
        return np.where(count > 0, t, 0.0)

    def _collective_s(self, op: str, gpus: int, message_bytes: ArrayLike) -> Array:
        size = np.maximum(as_array(message_bytes), 1.0)
        if gpus <= 1:
            return np.zeros_like(size)
        inside = min(gpus, self.network.inside(op)) if self.network is not None else gpus
        t = collective_base_s(op, inside, size, self.peaks.among(inside), self.link_latency_s)
        if self.network is not None and gpus > inside:
            t = t + self.network.added_s(op, gpus, size)
        return np.where(as_array(message_bytes) > 0, t, 0.0)

    def all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the base."""
        return self._collective_s("all_reduce", gpus, message_bytes)

    def all_gather_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the base."""
        return self._collective_s("all_gather", gpus, message_bytes)

    def reduce_scatter_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the base."""
        return self._collective_s("reduce_scatter", gpus, message_bytes)

    def p2p_s(self, message_bytes: ArrayLike) -> Array:
        """See the base."""
        size = np.maximum(as_array(message_bytes), 1.0)
        t = message_base_s(size, self.peaks.among(2), self.message_latency_s)
        if self.network is not None and self.network.stages_apart:
            t = self.network.message_s(size)
        return np.where(as_array(message_bytes) > 0, t, 0.0)

    def elementwise_s(self, moved_bytes: ArrayLike) -> Array:
        """See the base."""
        size = as_array(moved_bytes)
        t = streaming_base_s(self.efficiencies["elementwise"], self.peaks.hbm_bytes_per_s, size)
        return np.where(size > 0, t, 0.0)


__all__ = ["Roofline", "cpu_efficiencies"]
