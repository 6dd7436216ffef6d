"""Times of single GPU kernels: a physical base times a fitted, smooth residual.

Every kernel time is ``base(shape) * exp(residual(shape))``. The base is a roofline (arithmetic and memory
joined by a root of squares, plus a launch latency) whose few parameters stand in the readable ``.json``
beside the arrays. The residual is a Gaussian-process mean over the *shape* (for a matrix product: log n, log
k; for attention: heads, group size, head width, window), one value for each point of a grid of *load* (rows
m, or batch and context), interpolated linearly in the logarithm of the load. Outside the fitted shapes and
loads the residual keeps its edge value, so the physics carries the extrapolation.

Two conditions are told apart. ``bench`` reproduces a micro-benchmark as it was taken: the same buffers
replayed, so small weights and short contexts sit in the level-2 cache. ``serving`` is what a layer pays
inside a model: other layers evict the cache, so no kernel is faster than reading its weights and KV from
device memory.

The arrays are read when first needed; importing this module costs numpy only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardware_profiles.errors import InputError, nearest
from hardware_profiles.sustained import sustained_share

Array = NDArray[np.float64]
Number = Array | np.float64
Condition = Literal["bench", "serving"]

KERNELS_DIR = Path(__file__).parent / "kernels"

#: Queries times heads that fill one multiprocessor in prompt attention: fewer leave it idle while the others
#: scan the cached keys. unit: query heads a multiprocessor, kind: fitted (one round value read off the ratios
#: of prediction to measurement), 2026-11, source: 1165 single chunks after 0 to 13000 cached tokens on RTX
#: PRO 6000, vLLM 0.19 (LLMServingSim 5daddb21); not checked on other devices.
FILL_QUERY_HEADS = 40.0

#: Size of KV, as a share of the L2, at which a replayed benchmark has lost half of what the L2 gave it.
#: kind: assumed, 2026-11: rows below twice the L2 are no measure of memory. Compared with decode rows on RTX PRO
#: 6000 (LLMServingSim 5daddb21), whose layers evict each other's KV; not checked on other devices.
WARM_SHARE = 2.0

#: A measured load that costs this many times more than a larger one is a spike, not the kernel (serving only).
#: kind: assumed, 2026-11; tile choices move most times by less, disturbed rows by 1.5 to 4.
SPIKE = 1.15

#: The same for expert layers, whose grouped kernels see every size of group at once and so have no tile steps.
#: kind: assumed, 2026-11.
MOE_SPIKE = 1.05

#: Latency of a captured small collective where only eager ones were measured: median over the fitted graph
#: all-reduce curves at 2 kB of A100, H100, H200, B200 (4.6 us, 42 curves). unit: s, kind: fitted, 2026-11.
GRAPH_FLOOR_S = 4.6e-6

#: A table whose launch floor is this many times the least of the same GPU, operation and format was bound by the
#: host that launched it, not by the device (serving only). unit: 1, kind: assumed, 2026-11; floors of tables taken in
#: CUDA graphs agree within 1.9 for vLLM and SGLang, eager ones lie at 10 to 77, SGLang's fp8_block on B200 at 2.35.
EAGER_RATIO = 2.0

#: Format whose expert tables lend their launch floor to Marlin's kernels in another weight-only format, where they are
#: chosen for a model that was not measured on them: floors grow with the experts, and vLLM's tables of Marlin are of 384
#: experts in int4 (50 us on Hopper) and of 896 in mxfp4 (76 us). kind: assumed, 2026-11; source: names of the backends in
#: the tables (aiconfigurator 095f58a5); compared with, not tuned to, 96 runs of gpt-oss-120b (InferenceX).
MARLIN_FLOOR_FORMAT = "int4_wo"

#: A prompt table that reaches this share of the best efficiency of its GPU computed the absorbed form: in arithmetic
#: of the expanded one (2 (192 + 128) a query, key and head) that form (2 (576 + 512)) reaches 0.29 at equal speed;
#: the geometric mean of 0.29 and 1. unit: 1, kind: datasheet (DeepSeek-V3 config.json, 2024), by arithmetic.
ABSORBED_SHARE = math.sqrt((192 + 128) / (576 + 512))

#: Bytes per stored weight: the number format's own width, with its scales (one 4-byte scale per 128x128 block
#: is negligible; nvfp4 has one byte per 16 values, mxfp4 one per 32, int4 two bytes per 128). kind: datasheet
#: (OCP MX specification v1.0, 2023; NVIDIA NVFP4 description, 2025).
WEIGHT_BYTES: Mapping[str, float] = {
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8_wo": 1.0,
    "sq": 1.0,
    "int4_wo": 0.515625,
    "nvfp4": 0.5625,
    "w4a16_mxfp4": 0.53125,
    "w4a8_mxfp4_mxfp8": 0.53125,
}
#: The arithmetic a format runs in: the key into :attr:`DevicePeaks.flops_per_s`.
COMPUTE_FORMAT: Mapping[str, str] = {
    "bfloat16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8_wo": "bfloat16",
    "int4_wo": "bfloat16",
    "sq": "int8",
    "nvfp4": "fp4",
    "w4a16_mxfp4": "bfloat16",
    "w4a8_mxfp4_mxfp8": "fp8",
}
_ALIASES: Mapping[str, str] = {
    "bf16": "bfloat16",
    "fp16": "bfloat16",
    "float16": "bfloat16",
    "half": "bfloat16",
    "float8": "fp8",
    "fp8_e4m3": "fp8",
    "int8": "sq",
    "w8a8": "sq",
    "int4": "int4_wo",
    "awq": "int4_wo",
    "gptq": "int4_wo",
    "fp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
    "auto": "bfloat16",
}


def canonical_format(fmt: str) -> str:
    """Return the table name of a number format (``bf16`` -> ``bfloat16``); unknown names raise InputError."""
    name = fmt.lower()
    name = _ALIASES.get(name, name)
    if name not in WEIGHT_BYTES:
        near = nearest(name, [*WEIGHT_BYTES, *_ALIASES])
        raise InputError(
            f"unknown number format '{fmt}'",
            mend=f"did you mean '{near}'?" if near else f"known: {', '.join(WEIGHT_BYTES)}",
        )
    return name


def _list(values: ArrayLike) -> Array:
    return np.asarray(values, dtype=np.float64)


@dataclass(frozen=True)
class DevicePeaks:
    """What the physics needs to know of a device: datasheet rates.

    flops_per_s : dense rate per arithmetic ("bfloat16", "fp8", "int8", "fp4"); a missing one falls back to
    bfloat16.
    hbm_bytes_per_s, l2_bytes : device memory bandwidth and level-2 cache.
    multiprocessors : streaming multiprocessors (or their like), which short chunks must fill.
    link_bytes_per_s : one-way bandwidth of the links to the other GPUs of the node, for collectives without
    data.
    """

    flops_per_s: Mapping[str, float]
    hbm_bytes_per_s: float
    l2_bytes: float = 0.0
    link_bytes_per_s: float = 64e9
    multiprocessors: int = 132

    def rate(self, fmt: str) -> float:
        """Dense FLOP/s of the arithmetic that weights of format `fmt` run in."""
        kind = COMPUTE_FORMAT.get(fmt, fmt)
        return self.flops_per_s.get(kind) or self.flops_per_s["bfloat16"]


# --------------------------------------------------------------------------------------------------
# physical bases: pure functions, seconds out; `p` holds the fitted parameters (see PARAMETER_MEANING)

PARAMETER_MEANING: Mapping[str, str] = {
    "latency_s": "time of the smallest launch, in a CUDA graph where the benchmark used one [s]",
    "compute_efficiency": "share of the dense peak FLOP/s reached by a large kernel",
    "memory_efficiency": "share of the device-memory bandwidth reached by a large kernel",
    "gemm_efficiency": "share of the dense peak FLOP/s reached by the projections of a module",
    "cache_gain": "how much faster than device memory data in the L2 are read (bench only)",
    "cache_share": "size of data at which half of that gain is lost, as a share of the L2",
    "cache_sharpness": "how abruptly the gain is lost: the power of that size",
    "most_copies": "weights are cycled until they fill the L2, this many copies at most (bench only)",
    "unit_s": "time a unit of parallel work (sequence and KV head; expert with a token) adds [s]",
    "activation_efficiency": "share of memory bandwidth reached by activation traffic",
    "routing_efficiency": "the same for copies of all routed rows, which expert parallelism does not divide",
    "all_tokens": "1: the benchmark left all tokens of the expert group on the timed rank (bench only)",
    "grouped_deal": "1: the benchmark dealt rows out under limited groups of experts (bench only)",
}


def cache_factor(p: Mapping[str, float], peaks: DevicePeaks, size: Number) -> Number:
    """Factor on the memory time of replayed data of `size` bytes: 1/gain inside the L2, 1 beyond it.

    ``1 - (1 - 1/gain) / (1 + (size / (share L2))**sharpness)``; an empirical switch, fitted (sharpness 4 where it
    is not among the parameters).
    """
    if peaks.l2_bytes <= 0 or "cache_gain" not in p:
        return np.float64(1.0)
    over = (size / (p["cache_share"] * peaks.l2_bytes)) ** p.get("cache_sharpness", 4.0)
    return 1.0 - (1.0 - 1.0 / p["cache_gain"]) / (1.0 + over)


#: Datasheets give the size of an L2 in MB and mean MiB. unit: 1, kind: datasheet, by definition.
MIB_PER_MB = 2.0**20 / 1e6


def replayed_bytes(p: Mapping[str, float], peaks: DevicePeaks, weights: Number) -> Number:
    """Bytes of weights that a benchmark of one product goes through before it comes back to the first.

    Without ``most_copies``, one copy (a fixed number of copies is a factor of ``cache_share``). With it, as many
    as fill the L2, so that a product just below an L2 divided by a whole number is timed from a full cache:
    ``min(most, ceil(L2 / weights))`` copies.
    """
    if "most_copies" not in p:
        return weights
    filling = np.ceil(peaks.l2_bytes * MIB_PER_MB / weights - 1e-9)
    return weights * np.clip(filling, 1.0, p["most_copies"])


def gemm_base_s(
    p: Mapping[str, float],
    peaks: DevicePeaks,
    fmt: str,
    m: Array,
    n: Number,
    k: Number,
    warm: bool = True,
) -> Array:
    """Roofline of one linear layer, weights ``n x k``: ``t0 + hypot(2mnk / (P e_c), bytes / (B e_m))`` [s].

    bytes = weights + bf16 input + bf16 output (Williams et al., Roofline, CACM 52(4), 2009; the root of
    squares is a smooth maximum). warm : the weights may be found in the L2, see :func:`cache_factor` and
    :func:`replayed_bytes`.
    """
    compute = 2.0 * m * n * k / (peaks.rate(fmt) * p["compute_efficiency"])
    memory = gemm_bytes(fmt, m, n, k) / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    if warm:
        memory = memory * cache_factor(p, peaks, replayed_bytes(p, peaks, n * k * WEIGHT_BYTES[fmt]))
    return p["latency_s"] + np.sqrt(compute * compute + memory * memory)


def gemm_bytes(fmt: str, m: Array, n: Number, k: Number) -> Array:
    """Bytes one linear layer moves: weights once, bf16 input and output once."""
    return n * k * WEIGHT_BYTES[fmt] + 2.0 * m * (n + k)


def causal_pairs(new: Array, prior: Array, window: Number) -> Array:
    """Query-key pairs of `new` causal queries after `prior` cached tokens; `window` 0 means full attention.

    Query i (1..new) sees ``min(prior + i, window)`` keys.
    """
    full = new * prior + 0.5 * new * (new + 1.0)
    ramp = np.clip(window - prior, 0.0, new)  # queries that still see everything before them
    windowed = ramp * prior + 0.5 * ramp * (ramp + 1.0) + (new - ramp) * window
    return np.where(window > 0, np.minimum(windowed, full), full)


def decode_bytes(
    kv_bytes: float, heads: Number, kv: Number, dim: Number, batch: Array, context: Array
) -> Array:
    """Bytes of one decode-attention layer: keys and values of `context` tokens, bf16 query and output."""
    return batch * (2.0 * kv * dim * context * kv_bytes + 4.0 * heads * dim)


def decode_base_s(
    p: Mapping[str, float],
    peaks: DevicePeaks,
    kv_fmt: str,
    heads: Number,
    kv: Number,
    dim: Number,
    window: Number,
    batch: Array,
    context: Array,
    warm: bool = True,
) -> Array:
    """Decode attention of one layer: ``t0 + b kv u + hypot(KV bytes / (B e_m), 4 b H d c / (P e_c))`` [s].

    warm : the KV may be found in the L2, see :func:`cache_factor`.
    """
    span = np.where(window > 0, np.minimum(context, window), context)
    memory = decode_bytes(WEIGHT_BYTES[kv_fmt], heads, kv, dim, batch, span)
    if warm:
        memory = memory * cache_factor(p, peaks, memory)
    memory = memory / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    compute = 4.0 * batch * heads * dim * span / (peaks.rate("bfloat16") * p["compute_efficiency"])
    return p["latency_s"] + batch * kv * p["unit_s"] + np.sqrt(compute * compute + memory * memory)


def prefill_base_s(
    p: Mapping[str, float],
    peaks: DevicePeaks,
    fmt: str,
    heads: Number,
    kv: Number,
    dim: Number,
    window: Number,
    batch: Array,
    new: Array,
) -> Array:
    """Prompt attention of one layer: ``t0 + hypot(4 b H d pairs / (P e_c), bytes / (B e_m))`` [s]."""
    pairs = causal_pairs(new, np.zeros_like(new), window)
    compute = 4.0 * batch * heads * dim * pairs / (peaks.rate(fmt) * p["compute_efficiency"])
    memory = (
        batch * new * dim * 2.0 * (2.0 * heads + 4.0 * kv) / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    )
    return p["latency_s"] + np.sqrt(compute * compute + memory * memory)


#: Shape of the gamma distribution of the experts' popularity among the tokens of one step: its coefficient of
#: variation is 1 / sqrt(shape), infinity would be equal popularity. unit: 1, kind: fitted (the best of 1, 2 and
#: infinity), 2026-11, source: time per output token of 454 closed-loop runs of four models with 128 to 384 experts
#: (aiconfigurator silicon sample) and the H100 runs of Mixtral and Llama-4-Scout (inference-sim); whichever model is left
#: out, the others choose it. See docs/background/accuracy.md.
POPULARITY_SHAPE = 2.0


def moe_active_experts(
    local: Number, assigned: Array, even: Number | float = 0.0, chosen: Number | float = 0.0
) -> Array:
    """Expected experts with at least one of `assigned` rows, of `local`.

    Tokens choose independently, and experts are unequally popular: where popularities r are gamma-distributed about
    1 with shape a, an expert's rows are negative-binomial and ``E (1 - (1 + rows / (E a))**-a)`` experts have one.
    chosen : share of the experts that a token takes, all different; its first token then touches just these.
    even > 0 : rows dealt out in turn, as the balanced benchmark does: ``min(E, rows)`` (a smooth minimum of eighth
    powers).
    """
    share = assigned / local
    dealt = assigned * (1.0 + share**8) ** -0.125
    taken = np.clip(_list(chosen), 1e-9, 1.0 - 1e-9)
    others = np.maximum(share / taken - 1.0, 0.0) * -np.log1p(-taken)
    untouched = np.log1p(-taken) - POPULARITY_SHAPE * np.log1p(others / POPULARITY_SHAPE)
    return np.where(even > 0, dealt, -local * np.expm1(untouched))


#: The skewed benchmark draws the popularity of experts from a density x**-1.2 between 1 and 0.8 of the tokens.
#: unit: 1, kind: datasheet, source: name ``power_law_1.2`` and description of the tables (aiconfigurator 095f58a5,
#: 2026); the bounds are those of its sampler.
SKEW_POWER, SKEW_MOST = 1.2, 0.8


@lru_cache(maxsize=65536)
def _skewed(tokens: float, topk: float, experts: float, ranks: float) -> tuple[float, float]:
    x = (np.arange(int(experts)) + 0.5) / int(experts)
    power = 1.0 - SKEW_POWER
    x = ((max(SKEW_MOST * tokens, 2.0) ** power - 1.0) * x + 1.0) ** (1.0 / power)
    rows = np.minimum(x / x.sum() * tokens * topk, tokens)
    for _ in range(4):  # an expert takes a token once: what the popular ones cannot, the others do
        free = rows < 0.999 * tokens
        if not free.any():
            break
        rows[free] *= (tokens * topk - rows[~free].sum()) / rows[free].sum()
        rows = np.minimum(rows, tokens)
    touched = -np.expm1(-rows)
    if ranks <= 1:
        return float(rows.sum()), float(touched.sum())
    local, total, most = experts / ranks, float(rows.sum()), float(rows.max())
    with_top = most + (local - 1.0) * (total - most) / max(experts - 1.0, 1.0)
    spread = math.sqrt(max(local * (1.0 - local / experts) * float(rows.var()), 0.0))
    above = 0.8 if ranks == 2 else math.sqrt(2.0 * math.log(ranks))
    heaviest = min(max(with_top, local * total / experts + above * spread), total, local * tokens)
    mean = float(touched.mean())
    return heaviest, min(local * mean + 1.0 - mean, local)


def moe_skewed_rows(tokens: Array, topk: Number, experts: Number, ranks: Number) -> tuple[Array, Array]:
    """Rows on the most loaded of `ranks` ranks, and its experts with a row, under skewed popularity.

    Popularity is drawn from a bounded power law (:data:`SKEW_POWER`), here by its quantiles; experts are dealt to
    ranks at random. The most loaded rank has the most popular expert and average ones, or lies
    ``sqrt(2 ln ranks)`` standard deviations above the mean rank (0.8 for two), whichever is more.
    """
    args = np.broadcast_arrays(*(_list(v) for v in (tokens, topk, experts, ranks)))
    found = _skewed_rows(np.stack([a.ravel() for a in args], axis=1).tobytes())
    return found[:, 0].reshape(args[0].shape), found[:, 1].reshape(args[0].shape)


@lru_cache(maxsize=16)
def _skewed_rows(table: bytes) -> Array:
    """Rows and experts of each (tokens, topk, experts, ranks); a fit asks for the same ones at every step."""
    rows = np.frombuffer(table, dtype=np.float64).reshape(-1, 4)
    unique, place = np.unique(rows, axis=0, return_inverse=True)
    return np.array([_skewed(*row) for row in unique.tolist()]).reshape(-1, 2)[place.ravel()]


def moe_assigned_rows(
    p: Mapping[str, float], tokens: Array, topk: Number, experts: Number, ep: Number, dealt: Number | float
) -> tuple[Array, Number]:
    """Rows on one rank and the experts they can fall on, without skewed popularity.

    ``tokens topk / ep`` and ``experts / ep``; what two benchmarks did instead is flagged among the parameters.
    ``all_tokens``: a token with an expert on the rank brings all its choices there, ``tokens topk min(1, topk / ep)``
    rows when dealt out; under skewed popularity every token has one there.
    ``grouped_deal``: the ranks of the first half of the experts take all rows, the first of them half of each
    token's besides its share of the rest.
    """
    local = experts / ep
    if p.get("all_tokens"):
        there = np.where(_list(dealt) > 0, np.minimum(topk / ep, 1.0), 1.0)
        return np.maximum(tokens * topk * there, 1.0), local
    if p.get("grouped_deal"):
        rows = tokens * topk * np.minimum(0.5 + 1.0 / ep, 1.0)
        return np.maximum(rows, 1.0), np.minimum(local, 0.5 * experts)
    return np.maximum(tokens * topk / ep, 1.0), local


def moe_weight_bytes(
    fmt: str,
    tokens: Array,
    hidden: Number,
    inter: Number,
    topk: Number,
    experts: Number,
    tp: Number,
    ep: Number,
    gated: Number,
) -> Array:
    """Bytes of the expert weights one rank reads for `tokens` tokens, see :func:`moe_active_experts`."""
    active = moe_active_experts(experts / ep, np.maximum(tokens * topk / ep, 1.0), chosen=topk / experts)
    return active * np.where(gated > 0, 3.0, 2.0) * hidden * (inter / tp) * WEIGHT_BYTES[fmt]


def moe_base_s(
    p: Mapping[str, float],
    peaks: DevicePeaks,
    fmt: str,
    tokens: Array,
    hidden: Number,
    inter: Number,
    topk: Number,
    experts: Number,
    tp: Number,
    ep: Number,
    gated: Number,
    even: Number | float = 0.0,
    skewed: Number | float = 0.0,
    warm: bool = True,
) -> Array:
    """One mixture-of-experts layer on one rank: routing, two grouped products, combine [s].

    ``t0 + hypot(padded FLOPs / (P e_c), A u + weight bytes / (B e_m)) + rows' bytes / (B e_a)
    + routed bytes / (B e_r)``; A experts have a token (:func:`moe_active_experts`, `even` as there), each one's
    rows (:func:`moe_assigned_rows`) are padded by half a tile of 32; the last term does not shrink with expert
    parallelism. skewed > 0: the rank with the most rows under skewed popularity (:func:`moe_skewed_rows`). warm : the
    weights of the experts touched may be found in the L2, see :func:`cache_factor`.
    """
    assigned, local = moe_assigned_rows(p, tokens, topk, experts, ep, even)
    active = moe_active_experts(local, assigned, even, topk / experts)
    if np.any(_list(skewed) > 0):
        whole = bool(p.get("all_tokens"))
        pool, ranks = (local, np.ones_like(_list(ep))) if whole else (experts, ep)
        rows, touched = moe_skewed_rows(tokens, np.minimum(topk, pool), pool, ranks)
        rows = assigned if whole else rows
        assigned = np.where(_list(skewed) > 0, np.maximum(rows, 1.0), assigned)
        active = np.where(_list(skewed) > 0, touched, active)
    matrix = np.where(gated > 0, 3.0, 2.0) * hidden * (inter / tp)
    compute = 2.0 * matrix * (assigned + 16.0 * active) / (peaks.rate(fmt) * p["compute_efficiency"])
    read = active * matrix * WEIGHT_BYTES[fmt]
    memory = read / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    if warm:
        memory = memory * cache_factor(p, peaks, read)
    memory = memory + active * p["unit_s"]
    moved = 2.0 * (tokens * hidden * 2.0 + assigned * (2.0 * hidden + 3.0 * inter / tp))
    moved = moved / (peaks.hbm_bytes_per_s * p["activation_efficiency"])
    routed = 4.0 * tokens * topk * hidden / (peaks.hbm_bytes_per_s * p["routing_efficiency"])
    return p["latency_s"] + np.sqrt(compute * compute + memory * memory) + moved + routed


#: Shape of DeepSeek-V3's latent attention: hidden size, query and KV latent ranks, rotary, plain and value
#: widths a head. kind: datasheet, source: DeepSeek-V3 config.json (2024).
MLA_HIDDEN, MLA_Q_RANK, MLA_KV_RANK, MLA_ROPE, MLA_NOPE, MLA_V = 7168.0, 1536.0, 512.0, 64.0, 128.0, 128.0


def mla_base_s(
    p: Mapping[str, float],
    peaks: DevicePeaks,
    formats: Sequence[str],
    heads: Number,
    batch: Array,
    tokens: Array,
) -> Array:
    """Latent attention of one layer on one GPU with `heads` heads [s].

    formats : scope (``kernel`` or ``module``), phase (``context`` or ``decode``), projections, arithmetic and
    KV formats. A prompt computes plain attention of width 192/128; a decode step attends in the latent space
    (width 576/512) and reads 576 numbers a token whatever the heads. ``module`` adds the projections.
    """
    scope, phase, gemm, compute_fmt, kv_fmt = formats
    if phase == "context":
        pairs = batch * 0.5 * tokens * (tokens + 1.0)
        flops = 2.0 * heads * (MLA_NOPE + MLA_ROPE + MLA_V) * pairs
        moved = 2.0 * batch * tokens * heads * 2.0 * (MLA_NOPE + MLA_ROPE + MLA_V)
        rows = batch * tokens
    else:
        flops = 2.0 * batch * heads * tokens * (2.0 * MLA_KV_RANK + MLA_ROPE)
        moved = batch * tokens * (MLA_KV_RANK + MLA_ROPE) * WEIGHT_BYTES[kv_fmt]
        rows = batch
    compute = flops / (peaks.rate(compute_fmt) * p["compute_efficiency"])
    memory = moved / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    t = p["latency_s"] + np.sqrt(compute * compute + memory * memory)
    if scope == "module":
        weights = MLA_HIDDEN * (MLA_Q_RANK + MLA_KV_RANK + MLA_ROPE) + heads * (
            MLA_Q_RANK * (MLA_NOPE + MLA_ROPE) + MLA_KV_RANK * (MLA_NOPE + MLA_V) + MLA_V * MLA_HIDDEN
        )
        work = 2.0 * rows * weights / (peaks.rate(gemm) * p["gemm_efficiency"])
        read = weights * WEIGHT_BYTES[gemm] / peaks.hbm_bytes_per_s
        t = t + np.sqrt(work * work + read * read)
    return t


def streaming_base_s(p: Mapping[str, float], bytes_per_s: float, moved: Array) -> Array:
    """``t0 + bytes / (B e)`` [s]: quantisation over device memory, dispatch and combine over links."""
    return p["latency_s"] + moved / (bytes_per_s * p["memory_efficiency"])


#: Without any measurement, and where the fit starts: efficiencies of a typical kernel. kind: assumed,
#: 2026-11.
DEFAULT_PARAMETERS: Mapping[str, Mapping[str, float]] = {
    "gemm": {
        "latency_s": 3e-6,
        "compute_efficiency": 0.75,
        "memory_efficiency": 0.8,
        "cache_gain": 1.5,
        "cache_share": 0.5,
        "cache_sharpness": 4.0,
    },
    "attention_decode": {
        "latency_s": 1e-5,
        "compute_efficiency": 0.2,
        "memory_efficiency": 0.85,
        "unit_s": 2e-9,
        "cache_gain": 1.5,
        "cache_share": 0.7,
    },
    "attention_context": {"latency_s": 1e-5, "compute_efficiency": 0.55, "memory_efficiency": 0.5},
    "moe": {
        "latency_s": 2e-5,
        "compute_efficiency": 0.5,
        "memory_efficiency": 0.75,
        "activation_efficiency": 0.5,
        "routing_efficiency": 2.0,
        "unit_s": 5e-8,
        "cache_gain": 1.5,
        "cache_share": 0.5,
    },
    "mla": {
        "latency_s": 1e-5,
        "compute_efficiency": 0.5,
        "memory_efficiency": 0.7,
        "gemm_efficiency": 0.5,
    },
    "quantize": {"latency_s": 2.5e-6, "memory_efficiency": 0.7},
    "deepep": {"latency_s": 1.2e-5, "memory_efficiency": 0.5},
    "elementwise": {"latency_s": 2.5e-6, "memory_efficiency": 0.7},
}


# --------------------------------------------------------------------------------------------------
# the residual surface


def shape_kernel(a: Array, b: Array, amplitude: Array, inverse_length: Array) -> Array:
    """Covariance of shapes ``a (A, d)`` and ``b (B, d)``: a sum of Matern-3/2 terms, each with its own
    lengths."""
    out = np.zeros((len(a), len(b)))
    gap = np.abs(a[:, None, :] - b[None, :, :])
    for scale, inverse in zip(amplitude, inverse_length, strict=True):
        r = math.sqrt(3.0) * np.sqrt(np.einsum("ijk,k->ij", gap * gap, inverse * inverse))
        out += scale * (1.0 + r) * np.exp(-r)
    return out


@dataclass(frozen=True)
class Surface:
    """Residual over shapes and a load grid: ``mean + K(x, features) @ weights @ basis``.

    features (S, d); amplitude (Q,), inverse_length (Q, d) of the covariance; weights (S, r); basis (r, C);
    mean (C,); axes: one or two ascending log2 axes whose product has C points.
    """

    features: Array
    amplitude: Array
    inverse_length: Array
    weights: Array
    basis: Array
    mean: Array
    axes: tuple[Array, ...]
    reach: float = math.inf
    _rows: dict[tuple[float, ...], Array] = field(default_factory=dict, compare=False, repr=False)

    def rows(self, x: Array) -> Array:
        """Residuals on the load grid for shapes ``x (N, d)``, clamped into the fitted box: shape (N, C).

        With a finite `reach` they fade with the distance d (in features, mostly octaves) to the nearest fitted
        shape, by ``1 / (1 + (d / reach)**2)``: far from every measurement the physics stands alone.
        """
        inside = np.clip(x, self.features.min(axis=0), self.features.max(axis=0))
        k = shape_kernel(inside, self.features, self.amplitude, self.inverse_length)
        out = self.mean + (k @ self.weights) @ self.basis
        if math.isfinite(self.reach):
            gap = x[:, None, :] - self.features[None, :, :]
            near = np.einsum("ijk,ijk->ij", gap, gap).min(axis=1)
            out = out / (1.0 + near[:, None] / self.reach**2)
        return out

    def at(self, x: tuple[float, ...], *load: Array) -> Array:
        """Residual of one shape at log2 loads (one array an axis, already broadcast)."""
        row = self._rows.get(x)
        if row is None:
            row = self._rows[x] = self.rows(np.array([x]))[0]
        return self.read(row, *load)

    def unspiked(
        self,
        x: tuple[float, ...],
        base: Callable[[Array], Array],
        dearer_ratio: float,
        *load: Array,
        kind: int = 0,
    ) -> Array:
        """As :meth:`at` on one axis, without loads that cost more than `dearer_ratio` times a larger one.

        base : load -> seconds; kind tells several bases of one shape apart. Such times (a wrong choice of kernel, a
        disturbed measurement) are not paid by a step: rows can be padded, and CUDA graphs pad them. They take the
        least time of the larger loads.
        """
        key = (*x, -1e9, kind)
        row = self._rows.get(key)
        if row is None:
            row = self.rows(np.array([x]))[0]
            time = base(np.exp2(self.axes[0])) * np.exp(row)
            least = np.minimum.accumulate(time[::-1])[::-1]
            row = self._rows[key] = np.where(time > dearer_ratio * least, row + np.log(least / time), row)
        return self.read(row, *load)

    def read(self, row: Array, *load: Array) -> Array:
        """Interpolate values on the load grid at log2 loads."""
        if len(self.axes) == 1:
            return np.interp(load[0], self.axes[0], row)
        grid = row.reshape(len(self.axes[0]), len(self.axes[1]))
        i, u = locate(self.axes[0], load[0])
        j, v = locate(self.axes[1], load[1])
        low = grid[i, j] * (1.0 - v) + grid[i, j + 1] * v
        high = grid[i + 1, j] * (1.0 - v) + grid[i + 1, j + 1] * v
        return low * (1.0 - u) + high * u


def surface_of(arrays: Mapping[str, NDArray[Any]]) -> Surface:
    """Surface from its stored arrays (16-bit weights with a scale a column; the basis may be left out)."""
    part = {k: v.astype(np.float64) for k, v in arrays.items()}
    weights = part["weights"] * part["scale"]
    return Surface(
        features=part["features"],
        amplitude=part["amplitude"],
        inverse_length=part["inverse_length"],
        weights=weights,
        basis=part.get("basis", np.eye(weights.shape[1])),
        mean=part["mean"],
        axes=tuple(part[a] for a in ("axis0", "axis1") if a in part),
        reach=float(part["reach"][0]) if "reach" in part else math.inf,
    )


def locate(axis: Array, value: Array) -> tuple[NDArray[np.intp], Array]:
    """Cell index and position in the cell (0..1, clamped to the axis) of each value."""
    i = np.clip(np.searchsorted(axis, value, side="right") - 1, 0, len(axis) - 2)
    return i, np.clip((value - axis[i]) / (axis[i + 1] - axis[i]), 0.0, 1.0)


#: Distance between two backends in the features of a shape: they share little. unit: octaves of the shape, kind:
#: assumed, 2026-11.
KERNEL_GAP = 6.0


def gemm_shape(n: float, k: float) -> tuple[float, ...]:
    """Features of a product: output width, depth, and size of the weights (what memory and caches see)."""
    return (math.log2(n), math.log2(k), math.log2(n) + math.log2(k))


def attention_shape(
    heads: float, kv_heads: float, head_dim: float, window: float, kernel: int = 0
) -> tuple[float, ...]:
    """Features of an attention layer: KV heads, group size, head width, nearness of the window (0: none),
    heads, windowed or not, how many tiles of eight query heads a group takes (kernels are chosen by these two),
    and the number of the backend among those of its format.
    """
    near = 17.0 - math.log2(window) if window > 0 else 0.0
    group = heads / kv_heads
    return (
        math.log2(kv_heads),
        math.log2(group),
        2.0 * math.log2(head_dim),
        near,
        math.log2(heads),
        1.0 if window > 0 else 0.0,
        math.log2(math.ceil(group / 8.0)),
        KERNEL_GAP * kernel,
    )


def moe_shape(
    hidden: float,
    inter: float,
    topk: float,
    experts: float,
    tp: float,
    ep: float,
    gated: float,
    skewed: float,
    kernel: int = 0,
) -> tuple[float, ...]:
    """Features of a mixture-of-experts rank; kernel: number of the backend among those of its format."""
    return (
        math.log2(hidden),
        math.log2(inter / tp),
        math.log2(topk),
        math.log2(experts / ep),
        math.log2(ep),
        2.0 * gated,
        skewed,
        KERNEL_GAP * kernel,
    )


def moe_load(tokens: Array, topk: Number, experts: Number) -> Array:
    """Log2 of the rows an expert gets on average: the load of expert layers, the same for models of any size."""
    return np.asarray(np.log2(tokens * topk / experts), dtype=np.float64)


#: What counts in the choice of a backend, by feature: the experts a token chooses, gating; group size, head width,
#: a window. kind: assumed, 2026-11.
KERNEL_WEIGHT: Mapping[str, tuple[float, ...]] = {
    "moe": (1.0, 1.0, 3.0, 1.0, 1.0, 2.0, 0.0),
    "attention_decode": (0.5, 4.0, 2.0, 0.5, 0.0, 4.0, 0.0),
    "attention_context": (0.5, 4.0, 2.0, 0.5, 0.0, 4.0, 0.0),
}


#: Flags of :func:`moe_assigned_rows` -> ending of the names of backends whose rows carry it. Those count rows otherwise
#: than a served layer does, so no simulation takes them.
SET_ASIDE: Mapping[str, str] = {"all_tokens": "_all_tokens", "grouped_deal": "_grouped_deal"}


def served_features(features: Array, names: Sequence[str]) -> Array:
    """Features of the measured shapes on backends not set aside (:data:`SET_ASIDE`); all where there are no others."""
    usual = np.array([not name.endswith(tuple(SET_ASIDE.values())) for name in names])
    keep = usual[np.rint(features[:, 7] / KERNEL_GAP).astype(int)]
    return features[keep] if keep.any() else features


def likely_kernel(op: str, features: Array, shape: tuple[float, ...]) -> int:
    """Number of the backend that measured shapes like this one run on: each votes ``exp(-distance)``.

    features (S, 8) of the measured shapes and `shape` as :func:`moe_shape` or :func:`attention_shape` give them;
    the last is the backend. Having expert parallelism at all tells backends apart.
    """
    gap = (features[:, :7] - np.array(shape[:7])) * np.array(KERNEL_WEIGHT[op])
    parallel = 4.0 * ((features[:, 4] > 0) != (shape[4] > 0)) if op == "moe" else 0.0
    vote = np.exp(-np.sqrt(np.sum(gap * gap, axis=1) + np.square(parallel)))
    return int(np.argmax(np.bincount(np.rint(features[:, 7] / KERNEL_GAP).astype(int), vote)))


# --------------------------------------------------------------------------------------------------
# the model of one device and framework


@dataclass(frozen=True)
class KernelModel:
    """Kernel times of one device under one framework. Build it with :func:`load_kernel_model`.

    provenance : where the numbers come from (empty ``sources`` means physics only).
    domain : fitted ranges per ``op/format``.
    held_out_error : mean absolute percentage error on shapes kept out of the fit, per ``op/format``.
    lender_peaks : rates of the device whose tables these are, where they are borrowed: what is a spike is told there.
    """

    device: str
    framework: str
    peaks: DevicePeaks
    provenance: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    path: Path | None = None
    links: Mapping[str, Any] = field(default_factory=dict)
    lender_peaks: DevicePeaks | None = None
    _surfaces: dict[str, Surface] = field(default_factory=dict, compare=False, repr=False)
    _siblings: dict[str, KernelModel] = field(default_factory=dict, compare=False, repr=False)
    _backends: dict[tuple[str, tuple[float, ...]], str] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def domain(self) -> Mapping[str, Any]:
        """Fitted ranges per group."""
        return {key: group.get("domain", {}) for key, group in self.groups.items()}

    @property
    def held_out_error(self) -> Mapping[str, float]:
        """Mean absolute percentage error on unseen shapes, per group [%]."""
        return {k: g["held_out_mape_pct"] for k, g in self.groups.items() if "held_out_mape_pct" in g}

    @cached_property
    def _links(self) -> dict[str, dict[int, Mapping[str, Any]]]:
        """Curves inside one node by ``op|library|mode`` and GPU count; 2-byte numbers where both widths are
        there."""
        found: dict[str, dict[int, Mapping[str, Any]]] = {}
        for key, group in self.links.items():
            for name, curve in group["curves"].items() if key.startswith("collective/") else ():
                lib, mode, gpus, nodes, topology, dtype = name.split("/")
                if nodes == "1" and topology == "intra_node" and dtype != "int8":
                    found.setdefault(f"{key[11:]}|{lib}|{mode}", {})[int(gpus)] = curve
        return found

    @property
    def _tabled(self) -> DevicePeaks:
        """Rates of the device whose tables these are."""
        return self.lender_peaks or self.peaks

    # -- parts

    def surface(self, key: str) -> Surface | None:
        """Residual surface of a group, read from the archive on first use; None without measurements."""
        if key in self._surfaces:
            return self._surfaces[key]
        if self.path is None or not self.groups.get(key, {}).get("surface"):
            return None
        name = key.replace("/", "-")
        with np.load(self.path) as data:
            part = {f: data[f"{name}.{f}"] for f in _FIELDS if f"{name}.{f}" in data.files}
        self._surfaces[key] = surface_of(part)
        return self._surfaces[key]

    def _group(self, op: str, *formats: str) -> tuple[str, Mapping[str, float]]:
        """Key and parameters of the first of `formats` with measurements, else the physics of the nearest
        kin."""
        for fmt in formats:
            group = self.groups.get(f"{op}/{fmt}")
            if group is not None:
                return f"{op}/{fmt}", group["parameters"]
        kin = next((g for k, g in sorted(self.groups.items()) if k.startswith(f"{op}/")), None)
        return "", kin["parameters"] if kin is not None else DEFAULT_PARAMETERS[op]

    def _alike(self, fmt: str) -> tuple[str, ...]:
        """Formats whose products stand for those of `fmt` where only theirs were measured: as many bytes, the same peak,
        activations quantised alike (8-bit integers by 8-bit floats)."""
        alike = fmt == "sq" and self.peaks.rate("fp8") == self.peaks.rate("sq")
        return ("fp8",) if alike else ()

    def _backend(
        self, key: str, surface: Surface, shape: tuple[float, ...], named: str | None = None
    ) -> tuple[tuple[float, ...], str | None]:
        """The shape with the number of its backend, and its name where the group has several: the one `named`, or
        the likely one."""
        kernels = self.groups[key].get("kernels")
        if not kernels:
            return shape, None
        names = sorted(kernels)
        name = named if named in kernels else self._backends.get((key, shape))
        if name is None:
            measured = served_features(surface.features, names)
            name = names[likely_kernel(key.partition("/")[0], measured, shape)]
            self._backends[key, shape] = name
        return (*shape[:-1], KERNEL_GAP * names.index(name)), name

    def expert_backend(self, fmt: str, word: str) -> str | None:
        """Name in the tables of the backend of expert layers that an engine calls `word` (``marlin``).

        None where the tables of the format hold no such backend but those of :data:`SET_ASIDE`, or one backend only.
        """
        kernels = self.groups.get(f"moe/{canonical_format(fmt)}", {}).get("kernels", {})
        usual = [name for name in sorted(kernels) if not name.endswith(tuple(SET_ASIDE.values()))]
        return next((name for name in usual if f"_{word}_" in f"_{name}_"), None)

    def _chosen_floor(self, backend: str, p: Mapping[str, float]) -> Mapping[str, float]:
        """Parameters of a backend chosen for expert layers unlike those that it was measured on, in serving.

        Its launch floor counts the routing and alignment of its own model's experts: Marlin takes that of
        :data:`MARLIN_FLOOR_FORMAT` where it is less.
        """
        lender = self.groups.get(f"moe/{MARLIN_FLOOR_FORMAT}")
        if lender is None or "marlin" not in backend:
            return p
        return {**p, "latency_s": min(p["latency_s"], float(lender["parameters"]["latency_s"]))}

    def _sibling(self, framework: str) -> KernelModel:
        if framework not in self._siblings:
            self._siblings[framework] = load_kernel_model(self.device, framework, self.peaks)
        return self._siblings[framework]

    @cached_property
    def _others(self) -> list[KernelModel]:
        """The other frameworks' tables of the GPU that this model's were measured on."""
        if self.path is None:
            return []
        home = self.path.parent
        names = sorted(p.stem for p in home.glob("*.json") if p.stem not in (self.path.stem, "collectives"))
        own = [_load(home.name, name, home.parent) for name in names]
        return [
            m
            if m.peaks == self.peaks
            else KernelModel(
                self.device, m.framework, self.peaks, m.provenance, m.groups, m.path, self.links, m.peaks
            )
            for m in own
        ]

    def _quickest(self, key: str) -> KernelModel | None:
        """Of the device's other tables of a group the one with the least launch floor."""
        there = [m for m in self._others if key in m.groups]
        return min(there, key=lambda m: float(m.groups[key]["parameters"]["latency_s"]), default=None)

    def _in_graph_s(
        self, key: str, t: Array, base_s: Array, other_s: Callable[[KernelModel], Array]
    ) -> Array:
        """Time `t` of an eagerly measured group as it is inside a model, else `t` [s].

        Where the launch floor is above :data:`EAGER_RATIO` times the least of the device, it is exchanged for that
        one in the physical base (`base_s`, of which the residual is a factor): CUDA graphs launch without the host,
        and launches of a prompt hide behind the layer's other kernels. Long work hid its own launch already, so no
        time falls below that of the table whose floor it takes (other_s).
        """
        quick = self._quickest(key) if key else None
        if quick is None:
            return t
        own = float(self.groups[key]["parameters"]["latency_s"])
        least = float(quick.groups[key]["parameters"]["latency_s"])
        if own <= EAGER_RATIO * least:
            return t
        return np.maximum(t * (1.0 - (own - least) / base_s), np.minimum(t, other_s(quick)))

    # -- matrix products

    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int, condition: Condition = "serving") -> Array:
        """Time of one linear layer ``(m, k) x (k, n)``, input and output bf16 [s].

        fmt : weight format (``bfloat16``, ``fp8``, ``fp8_block``, ``nvfp4``, ``int8_wo``, ``int4_wo``,
        ``sq``); activation quantisation is included. m : rows (tokens), any shape; the result has it. In serving a
        format whose arithmetic is bfloat16's (weight-only formats; fp8 without the hardware for it) takes at least
        the arithmetic share of bfloat16's time: it saves bytes, not products.
        """
        fmt = canonical_format(fmt)
        rows = np.maximum(_list(m), 1.0)
        key, p = self._group("gemm", fmt, *self._alike(fmt))
        if condition == "serving" and key and (other := self.groups[key].get("serving_from")):
            return self._sibling(other).gemm_s(fmt, m, n, k, condition)
        nn, kk = np.float64(n), np.float64(k)
        t = base = gemm_base_s(p, self.peaks, fmt, rows, nn, kk, condition == "bench")
        surface = self.surface(key)
        if surface is not None:
            shape = gemm_shape(n, k)
            if condition == "serving":
                residual = surface.unspiked(
                    shape, lambda at: gemm_base_s(p, self._tabled, fmt, at, nn, kk), SPIKE, np.log2(rows)
                )
            else:
                residual = surface.at(shape, np.log2(rows))
            t = t * np.exp(residual)
        t = np.maximum(t, 2.0 * rows * nn * kk / self.peaks.rate(fmt))
        if condition == "serving":
            t = np.maximum(t, p["latency_s"] + gemm_bytes(fmt, rows, nn, kk) / self.peaks.hbm_bytes_per_s)
            t = self._in_graph_s(key, t, base, lambda other: other.gemm_s(fmt, rows, n, k))
            if fmt != "bfloat16" and self.peaks.rate(fmt) <= self.peaks.rate("bfloat16"):
                _, plain = self._group("gemm", "bfloat16")
                work = 2.0 * rows * nn * kk / (self.peaks.rate(fmt) * plain["compute_efficiency"])
                share = work / gemm_base_s(plain, self.peaks, "bfloat16", rows, nn, kk, False)
                t = np.maximum(t, np.minimum(share, 1.0) * self.gemm_s("bfloat16", rows, n, k))
            known = key.partition("/")[2] or fmt
            held = sustained_share(self.path.stem, self.path.parent.name, known) if self.path else None
            if held is not None:
                t = np.maximum(t, 2.0 * rows * nn * kk / (held * self.peaks.rate(fmt)))
        return np.where(_list(m) > 0, t, 0.0)

    # -- attention

    def _fold(self, key: str, kv_heads: int) -> float:
        """Factor by which heads become sequences: more KV heads than were measured count as more sequences.

        Attention works on (sequence, KV head) pairs, each with its group of query heads: 32 KV heads of 10
        sequences are 8 KV heads of 40. In decode the two differ by 1-2 % within the tables (median; 4 against 8
        and 8 against 16 or 32 KV heads, all devices and frameworks); in vLLM's prompt tables many heads are
        5-20 % cheaper, but those reach 64 KV heads. 1 up to the reference, so there is no step at it.
        """
        reference = self.groups.get(key, {}).get("reference_kv_heads")
        return max(1.0, kv_heads / reference) if reference else 1.0

    def decode_attention_s(
        self,
        kv_fmt: str,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window_tokens: int,
        batch: ArrayLike,
        context_tokens: ArrayLike,
        condition: Condition = "serving",
    ) -> Array:
        """Time of decode attention of one layer on one GPU, one query token a sequence [s].

        heads, kv_heads : per GPU. window_tokens : 0 for full attention. batch : sequences; context_tokens :
        mean cached tokens a sequence (unequal lengths cost about their mean). Both broadcast.
        """
        kv_fmt = canonical_format(kv_fmt)
        b, c = np.broadcast_arrays(_list(batch), np.maximum(_list(context_tokens), 1.0))
        rows = np.maximum(b, 1.0)
        key, p = self._group("attention_decode", f"bfloat16/{kv_fmt}")
        fold = self._fold(key, kv_heads)
        rows = rows * fold
        h, kv, d, w = (np.float64(x) for x in (heads / fold, kv_heads / fold, head_dim, window_tokens))
        t = decode_base_s(p, self.peaks, kv_fmt, h, kv, d, w, rows, c, condition == "bench")
        span = np.minimum(c, w) if window_tokens > 0 else c
        read = decode_bytes(WEIGHT_BYTES[kv_fmt], h, kv, d, rows, span)
        surface = self.surface(key)
        if surface is not None:
            shape, _ = self._backend(
                key, surface, attention_shape(float(h), float(kv), head_dim, window_tokens)
            )
            residual = surface.at(shape, np.log2(rows), np.log2(c + 1.0))
            l2_bytes = self._tabled.l2_bytes
            if condition == "serving" and l2_bytes > 0:
                # what the replayed benchmark gained by its L2, serving does not: gains fade below its size
                square = np.square(read / (WARM_SHARE * l2_bytes))
                residual = np.maximum(residual, residual * (1.0 - 1.0 / (1.0 + square * square)))
            t = t * np.exp(residual)
        if condition == "serving":
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
        batch: ArrayLike = 1,
    ) -> Array:
        """Time of prompt attention of one layer: `batch` chunks of `new` queries after `prior` cached tokens
        [s].

        The measurements have no prior. A chunk after a prior does ``q*prior + new(new+1)/2`` query-key pairs
        and is given the time of the whole prompt of as many pairs, ``s = (sqrt(1 + 8 pairs) - 1) / 2``. A
        short chunk leaves multiprocessors idle: ``q = max(new, FILL_QUERY_HEADS * multiprocessors / (heads *
        batch))``.
        Never less than reading the cached keys and values once from device memory.
        """
        fmt, kv_fmt = canonical_format(fmt), canonical_format(kv_fmt)
        q, p0, b = np.broadcast_arrays(_list(new_tokens), np.maximum(_list(prior_tokens), 0.0), _list(batch))
        new, rows = np.maximum(q, 1.0), np.maximum(b, 1.0)
        key, p = self._group(
            "attention_context", f"{fmt}/{kv_fmt}", f"bfloat16/{kv_fmt}", "bfloat16/bfloat16"
        )
        fold = self._fold(key, kv_heads)
        rows = rows * fold
        h, kv, d, w = (np.float64(x) for x in (heads / fold, kv_heads / fold, head_dim, window_tokens))
        pairs = causal_pairs(new, p0, w)
        past = np.minimum(p0, w) if window_tokens > 0 else p0
        idle = np.maximum(FILL_QUERY_HEADS * self.peaks.multiprocessors / (h * rows) - new, 0.0)
        same = np.where(p0 > 0, equivalent_prompt(pairs + idle * past, w), new)
        t = prefill_base_s(p, self.peaks, fmt, h, kv, d, w, rows, same)
        surface = self.surface(key)
        if surface is not None:
            shape, _ = self._backend(
                key, surface, attention_shape(float(h), float(kv), head_dim, window_tokens)
            )
            t = t * np.exp(surface.at(shape, np.log2(rows), np.log2(same)))
        t = np.maximum(t, 4.0 * rows * h * d * pairs / self.peaks.rate(fmt))
        read = rows * 2.0 * kv * d * (past * WEIGHT_BYTES[kv_fmt] + new * 2.0)
        t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        return np.where((q > 0) & (b > 0), t, 0.0)

    # -- mixture of experts

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
        distribution: str = "independent",
        gated: bool = True,
        condition: Condition = "serving",
        kernel: str | None = None,
    ) -> Array:
        """Time of one mixture-of-experts layer on one rank: routing, both products, combine; no communication
        [s].

        experts : of the whole model, `ep` ranks share them; tokens : routed tokens of the whole expert group.
        distribution : ``independent`` (every row chooses for itself, among experts of unequal popularity:
        :func:`moe_active_experts`), ``balanced`` (rows dealt out in turn, as the benchmark's best case: at as many
        rows as experts it touches all of them where independent rows touch 56 %) or ``power_law`` (the benchmark's
        skewed popularity).
        The measured residual of ``balanced`` serves ``independent`` too; the experts read differ.
        kernel : backend by its name in the tables; the default is the one that measured layers like this run on.
        Marlin where it is not the default has, in serving, its launch floor exchanged (:data:`MARLIN_FLOOR_FORMAT`).
        """
        fmt = canonical_format(fmt)
        key, p = self._group("moe", fmt)
        if condition == "serving" and key and (other := self.groups[key].get("serving_as")):
            framework, as_fmt = other
            owner = self if framework == self.framework else self._sibling(framework)
            return owner.moe_s(
                as_fmt, hidden, intermediate, topk, experts, tp, ep, tokens, distribution, gated, condition
            )
        count = _list(tokens)
        rows = np.maximum(count, 1.0)
        h, i, k, e = np.float64(hidden), np.float64(intermediate), np.float64(topk), np.float64(experts)
        args = (h, i, k, e, np.float64(tp), np.float64(ep), np.float64(gated))
        dealt, skewed = float(distribution == "balanced"), float(distribution == "power_law")
        surface = self.surface(key)
        shape = moe_shape(hidden, intermediate, topk, experts, tp, ep, float(gated), skewed)
        if surface is not None:
            unnamed = shape
            shape, backend = self._backend(key, surface, unnamed, kernel)
            p = self.groups[key]["kernels"][backend] if backend else p
            if condition == "serving" and backend and backend != self._backend(key, surface, unnamed)[1]:
                p = self._chosen_floor(backend, p)
        t = moe_base_s(p, self.peaks, fmt, rows, *args, dealt, skewed, condition == "bench")
        if surface is not None:
            load = moe_load(rows, k, e)
            if condition == "serving":
                residual = surface.unspiked(
                    shape,
                    lambda at: moe_base_s(p, self._tabled, fmt, at * e / k, *args, dealt, skewed),
                    MOE_SPIKE,
                    load,
                    kind=int(dealt),
                )
            else:
                residual = surface.at(shape, load)
            t = t * np.exp(residual)
        flops = np.where(gated, 6.0, 4.0) * h * i / tp * rows * k / ep
        t = np.maximum(t, flops / self.peaks.rate(fmt) * (1.0 if condition == "serving" else 0.5))
        if condition == "serving":
            if not key and fmt != "bfloat16" and self.peaks.rate(fmt) <= self.peaks.rate("bfloat16"):
                # unmeasured and in bfloat16's arithmetic: at least that share of its time, as in gemm_s
                _, plain = self._group("moe", "bfloat16")
                work = flops / (self.peaks.rate("bfloat16") * plain["compute_efficiency"])
                share = work / moe_base_s(plain, self.peaks, "bfloat16", rows, *args, warm=False)
                whole = self.moe_s("bfloat16", hidden, intermediate, topk, experts, tp, ep, rows, gated=gated)
                t = np.maximum(t, np.minimum(share, 1.0) * whole)
            # skewed routing touches fewer experts, at most by half
            read = moe_weight_bytes(fmt, rows, *args) * (0.5 if skewed else 1.0)
            t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        return np.where(count > 0, t, 0.0)

    # -- latent attention

    def mla_prefill_s(
        self,
        fmt: str,
        kv_fmt: str,
        heads: int,
        new_tokens: ArrayLike,
        prior_tokens: ArrayLike = 0,
        batch: ArrayLike = 1,
        condition: Condition = "serving",
    ) -> Array:
        """Prompt attention of one latent-attention layer (DeepSeek-V3 widths), without projections [s].

        heads : per GPU. A prior counts by query-key pairs, as in :meth:`prefill_attention_s`. In serving a prompt
        takes the expanded form, whatever form the framework's benchmark ran (:data:`ABSORBED_SHARE`).
        """
        q, p0, b = np.broadcast_arrays(_list(new_tokens), _list(prior_tokens), _list(batch))
        new = np.maximum(q, 1.0)
        zero = np.float64(0.0)
        same = np.where(p0 > 0, equivalent_prompt(causal_pairs(new, np.maximum(p0, 0.0), zero), zero), new)
        t = self._mla_s("context", fmt, kv_fmt, heads, np.maximum(b, 1.0), same, condition)
        return np.where((q > 0) & (b > 0), t, 0.0)

    def mla_decode_s(
        self,
        fmt: str,
        kv_fmt: str,
        heads: int,
        batch: ArrayLike,
        context_tokens: ArrayLike,
        condition: Condition = "serving",
    ) -> Array:
        """Decode attention of one latent-attention layer in the absorbed form, without projections [s].

        heads : per GPU; the latent KV is read whole on every GPU.
        """
        b, c = np.broadcast_arrays(_list(batch), np.maximum(_list(context_tokens), 1.0))
        rows = np.maximum(b, 1.0)
        t = self._mla_s("decode", fmt, kv_fmt, heads, rows, c, condition)
        read = rows * c * (MLA_KV_RANK + MLA_ROPE) * WEIGHT_BYTES[canonical_format(kv_fmt)]
        return np.where(b > 0, np.maximum(t, read / self.peaks.hbm_bytes_per_s), 0.0)

    def _mla_s(
        self, phase: str, fmt: str, kv_fmt: str, heads: int, batch: Array, tokens: Array, condition: Condition
    ) -> Array:
        fmt, kv_fmt = canonical_format(fmt), canonical_format(kv_fmt)
        wanted = [(a, k) for k in (kv_fmt, "bfloat16", "fp8") for a in (fmt, "bfloat16", "fp8")]
        names = [f"kernel/{phase}/none/{a}/{k}" for a, k in wanted]
        key, p = self._group("mla", *names)

        def of(other: KernelModel) -> Array:
            return other._mla_s(phase, fmt, kv_fmt, heads, batch, tokens, condition)

        if condition == "serving":
            measured = key or next((f"mla/{n}" for n in names if self._quickest(f"mla/{n}")), "")
            quick = self._quickest(measured) if measured else None
            if quick is not None and (not key or (phase == "context" and self._absorbed(key))):
                return of(quick)
        formats = ("kernel", phase, "none", fmt, kv_fmt)
        t = base = mla_base_s(p, self.peaks, formats, np.float64(heads), batch, tokens)
        surface = self.surface(key)
        if surface is not None:
            t = t * np.exp(surface.at((math.log2(heads),), np.log2(batch), np.log2(tokens)))
        if condition == "serving":
            t = self._in_graph_s(key, t, base, of)
        return np.asarray(t, dtype=np.float64)

    def _absorbed(self, key: str) -> bool:
        """Whether a table of prompt attention timed the absorbed form: far below the device's best efficiency."""
        own = float(self.groups[key]["parameters"]["compute_efficiency"])
        known = (m.groups[key]["parameters"]["compute_efficiency"] for m in self._others if key in m.groups)
        return own < ABSORBED_SHARE * max(known, default=0.0)

    # -- collectives

    def collective_s(
        self, op: str, gpus: int, message_bytes: ArrayLike, mode: str = "graph", library: str | None = None
    ) -> Array:
        """Time of a collective inside a node [s]; see :meth:`all_reduce_s`.

        op : ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``alltoall``. mode : ``graph`` (captured) or
        ``eager`` (host launch included). library : a framework's custom kernel or ``nccl``; the default is
        this framework's own in the wanted mode, then any library's curve without the host floor where mode is
        graph.
        """
        size = np.maximum(_list(message_bytes), 1.0)
        if gpus <= 1:
            return np.zeros_like(size)
        curve, scale, excess = self._curve(op, gpus, mode, library)
        if curve is None:
            ring = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "alltoall": 1.0}.get(op, 1.0)
            wire = ring * (gpus - 1) / gpus * size / (0.8 * self.peaks.link_bytes_per_s)
            t = (6e-6 if mode == "graph" else 2.5e-5) + wire
        else:
            t = curve_s(curve, size) * scale
            if excess > 0:
                t = np.maximum(t - excess, 0.5 * t)
        return np.where(_list(message_bytes) > 0, t, 0.0)

    def _curve(
        self, op: str, gpus: int, mode: str, library: str | None
    ) -> tuple[Mapping[str, Any] | None, float, float]:
        """Curve of a collective, the factor to another GPU count, and the host floor to take off [s]."""
        libraries = [library] if library else [self.framework, "vllm", "sglang", "trtllm", "nccl", "oneccl"]
        modes = [mode] if library else [mode, "graph", "nccl_tests_eager", "eager"]
        wire = 1.0 - 1.0 / gpus
        for wanted in modes:
            for lib in libraries:
                curves = self._links.get(f"{op}|{lib}|{wanted}")
                if not curves:
                    continue
                near = min(curves, key=lambda g: (abs(math.log2(g / gpus)), g))
                host = mode == "graph" and wanted != "graph"
                floor = math.exp(curves[near]["log_s"][0])
                return (
                    curves[near],
                    wire / (1.0 - 1.0 / near),
                    max(floor - GRAPH_FLOOR_S, 0.0) if host else 0.0,
                )
        return None, 1.0, 0.0

    def all_reduce_s(
        self, gpus: int, message_bytes: ArrayLike, mode: str = "graph", library: str | None = None
    ) -> Array:
        """Time of an all-reduce of `message_bytes` (the tensor on each rank) over `gpus` of one node [s]."""
        return self.collective_s("all_reduce", gpus, message_bytes, mode, library)

    def all_gather_s(self, gpus: int, message_bytes: ArrayLike, mode: str = "graph") -> Array:
        """Time of an all-gather; message_bytes is the gathered tensor [s]."""
        return self.collective_s("all_gather", gpus, message_bytes, mode)

    def reduce_scatter_s(self, gpus: int, message_bytes: ArrayLike, mode: str = "graph") -> Array:
        """Time of a reduce-scatter; message_bytes is the whole tensor [s]."""
        return self.collective_s("reduce_scatter", gpus, message_bytes, mode)

    def all_to_all_s(self, gpus: int, message_bytes: ArrayLike, mode: str = "graph") -> Array:
        """Time of an all-to-all; message_bytes is each rank's whole send buffer [s]."""
        return self.collective_s("alltoall", gpus, message_bytes, mode)

    def p2p_s(self, message_bytes: ArrayLike, link: str = "intra_node") -> Array:
        """Time to send a message from one GPU to another, ``intra_node`` or ``inter_node`` [s].

        Without measurements: ``t0 + bytes / (0.8 link bandwidth)`` (t0 = 1e-5 s, assumed).
        """
        size = np.maximum(_list(message_bytes), 1.0)
        curves = self.links.get("p2p", {}).get("curves", {})
        curve = next((c for k, c in sorted(curves.items()) if k.endswith("/" + link)), None)
        t = curve_s(curve, size) if curve else 1e-5 + size / (0.8 * self.peaks.link_bytes_per_s)
        return np.where(_list(message_bytes) > 0, t, 0.0)

    # -- memory-bound kernels

    def elementwise_s(self, moved_bytes: ArrayLike) -> Array:
        """Time of one memory-bound kernel (normalisation, rotary, activation) moving `moved_bytes` [s].

        ``t0 + bytes / (B e)`` with activations in the L2 as between the kernels of one layer.
        """
        size = _list(moved_bytes)
        group = self.groups.get("elementwise")
        p = group["parameters"] if group else DEFAULT_PARAMETERS["elementwise"]
        return np.where(size > 0, streaming_base_s(p, self.peaks.hbm_bytes_per_s, size), 0.0)


def curve_s(curve: Mapping[str, Any], size: Array) -> Array:
    """Time on a curve over log2 bytes [s]: beyond the largest message it grows with the bytes."""
    x, y = _list(curve["log2_bytes"]), _list(curve["log_s"])
    at = np.log2(size)
    return np.asarray(np.exp(np.interp(at, x, y)) * np.exp2(np.maximum(at - x[-1], 0.0)), dtype=np.float64)


_FIELDS = (
    *("features", "amplitude", "inverse_length", "weights", "scale", "basis", "mean"),
    *("axis0", "axis1", "reach"),
)


def equivalent_prompt(pairs: Array, window: Array | float) -> Array:
    """Length of the whole prompt with as many query-key pairs: the inverse of :func:`causal_pairs` at no
    prior."""
    whole = 0.5 * (np.sqrt(1.0 + 8.0 * pairs) - 1.0)
    if np.all(_list(window) <= 0):
        return np.maximum(whole, 1.0)
    w = np.maximum(_list(window), 1.0)
    ramp = 0.5 * w * (w + 1.0)
    return np.maximum(np.where((_list(window) > 0) & (pairs > ramp), w + (pairs - ramp) / w, whole), 1.0)


# --------------------------------------------------------------------------------------------------
# loading


def fitted_models() -> list[tuple[str, str]]:
    """(device, framework) pairs that ship with fitted kernels."""
    return sorted((p.parent.name, p.stem) for p in KERNELS_DIR.glob("*/*.json") if p.stem != "collectives")


@lru_cache(maxsize=64)
def load_links(device: str, directory: Path = KERNELS_DIR) -> Mapping[str, Any]:
    """Fitted curves of collectives and point-to-point messages of a device; empty without any."""
    path = directory / device / "collectives.json"
    if not device or not path.exists():
        return {}
    groups: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["groups"]
    return groups


@lru_cache(maxsize=64)
def _load(device: str, framework: str, directory: Path) -> KernelModel:
    text = json.loads((directory / device / f"{framework}.json").read_text(encoding="utf-8"))
    peaks = DevicePeaks(**text["peaks"])
    archive = directory / device / f"{framework}.npz"
    links = load_links(device, directory)
    return KernelModel(device, framework, peaks, text["provenance"], text["groups"], archive, links)


def load_kernel_model(
    device: str, framework: str, peaks: DevicePeaks | None = None, directory: Path = KERNELS_DIR
) -> KernelModel:
    """Return the kernel model of a device under a framework.

    Order: the fitted pair; the same device under another framework (vllm, sglang, trtllm), said in
    ``provenance["borrowed_from"]``; the nearest fitted device's kernels over the rates of `peaks`, said in
    ``provenance["borrowed_from_device"]`` (:mod:`hardware_profiles.kernel_borrow`); physics only from
    `peaks`. Raises InputError when nothing of these is there.
    """
    for name in dict.fromkeys((framework, "vllm", "sglang", "trtllm")):
        if (directory / device / f"{name}.json").exists():
            model = _load(device, name, directory)
            if name == framework:
                return model
            borrowed = {**model.provenance, "borrowed_from": name}
            return KernelModel(
                device, framework, model.peaks, borrowed, model.groups, model.path, model.links
            )
    if peaks is None:
        known = sorted({d for d, _ in fitted_models()})
        near = nearest(device, known)
        raise InputError(
            f"no kernel model for device '{device}' and no datasheet rates given",
            mend=f"did you mean '{near}'?" if near else f"fitted devices: {', '.join(known)}",
        )
    if directory == KERNELS_DIR:
        from hardware_profiles.kernel_borrow import borrowed_model

        if (lent := borrowed_model(device, framework, peaks)) is not None:
            return lent
    return KernelModel(device, framework, peaks, {"sources": [], "kind": "assumed"}, {})
