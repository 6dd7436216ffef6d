"""Physical bases of kernel times: what arithmetic, memory and launch take, as pure functions of the shape.

Each base is a roofline (arithmetic and memory joined by a root of squares, plus a launch latency) with a few parameters, the
efficiencies of :data:`PARAMETER_MEANING`. Seconds out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from hardware_profiles.device import Device
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.packed_formats import PACKED_FORMATS
from hardware_profiles.records import dataclass

Array = NDArray[np.float64]
Number = Array | np.float64

#: Queries times heads that fill one multiprocessor in prompt attention: fewer leave it idle while the others
#: scan the cached keys. unit: query heads a multiprocessor, kind: fitted (one round value read off the ratios
#: of prediction to measurement), 2026-11, source: 1165 single chunks after 0 to 13000 cached tokens on RTX
#: PRO 6000, vLLM 0.19 (LLMServingSim 5daddb21); not checked on other devices.
FILL_QUERY_HEADS = 40.0

#: Bytes per stored weight: the number format's own width, with its scales (one 4-byte scale per 128x128 block
#: is negligible; nvfp4 has one byte per 16 values, mxfp4 one per 32, int4 two bytes per 128). kind: datasheet
#: (OCP MX specification v1.0, 2023; NVIDIA NVFP4 description, 2025).
WEIGHT_BYTES: Mapping[str, float] = {
    "fp32": 4.0,
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": 1.0,
    "int8_wo": 1.0,
    "sq": 1.0,
    "int4_wo": 0.515625,
    "nvfp4": 0.5625,
    "w4a16_mxfp4": 0.53125,
    "w4a8_mxfp4_mxfp8": 0.53125,
    "w4a4_mxfp4": 0.53125,
    "mxfp8": 1.03125,
    "w4afp8": 0.515625,
    "nvfp4a16": 0.5625,
    **{name: packed.bits_per_weight / 8 for name, packed in PACKED_FORMATS.items()},
}
#: The arithmetic a format runs in: the key into :attr:`DevicePeaks.flops_per_s`.
COMPUTE_FORMAT: Mapping[str, str] = {
    "fp32": "bfloat16",
    "bfloat16": "bfloat16",
    "fp8": "fp8",
    "fp8_block": "fp8",
    "int8_wo": "bfloat16",
    "int4_wo": "bfloat16",
    "sq": "int8",
    "nvfp4": "fp4",
    "w4a16_mxfp4": "bfloat16",
    "w4a8_mxfp4_mxfp8": "fp8",
    "w4a4_mxfp4": "fp4",
    "mxfp8": "fp8",
    "w4afp8": "fp8",
    "nvfp4a16": "bfloat16",
    **dict.fromkeys(PACKED_FORMATS, "bfloat16"),
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
    "nf4": "int4_wo",
    "awq": "int4_wo",
    "gptq": "int4_wo",
    "fp4": "nvfp4",
    "mxfp4": "w4a16_mxfp4",
    "fp8a16": "int8_wo",
    "auto": "bfloat16",
}


STANDS_FOR: Mapping[str, tuple[str, ...]] = {
    "mxfp8": ("fp8_block", "fp8"),
    "w4afp8": ("fp8", "fp8_block"),
}
"""Formats that no table times, and those whose kernels stand for theirs, the first there is: the same arithmetic and activations
made narrow in blocks alike, by their own bytes. kind: assumed, 2026-11-30; compared with one run, of w4afp8: 256 requests of
1,000 and 1,000 tokens to DeepSeek-R1 on eight H20, 128 at a time, took 159 s (SGLang of 2025-07, pull request 8118), 124 by
this."""


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


def as_array(values: ArrayLike) -> Array:
    """Numbers as an array of floats."""
    return np.asarray(values, dtype=np.float64)


#: Rate of int8 over that of a format on tensor cores that sum in 32 bits at the full rate. kind: datasheet (Ampere to Blackwell).
INT8_RATIO: Mapping[str, float] = {"bfloat16": 2.0, "fp16": 2.0, "fp8": 1.0}
#: Devices whose int8 is this many times as quick as bf16 halve such sums: the ratio is 2 or 4. kind: datasheet.
HALVED_RATIO = 3.0


@dataclass(frozen=True)
class DevicePeaks:
    """What the physics needs to know of a device: datasheet rates.

    flops_per_s : dense rate per arithmetic ("bfloat16", "fp8", "int8", "fp4"); a missing one falls back to
    bfloat16.
    hbm_bytes_per_s, l2_bytes : device memory bandwidth and level-2 cache.
    multiprocessors : streaming multiprocessors (or their like), which short chunks must fill.
    link_bytes_per_s : one-way bandwidth of the links to the other GPUs of the node, for collectives without
    data. peer_bytes_per_s : of that to one of them, where each has a link of its own; 0 where any two have it all.
    """

    flops_per_s: Mapping[str, float]
    hbm_bytes_per_s: float
    l2_bytes: float = 0.0
    link_bytes_per_s: float = 64e9
    multiprocessors: int = 132
    peer_bytes_per_s: float = 0.0

    def among(self, devices: int) -> float:
        """One-way bandwidth of a device that works with so many of its node, itself among them [byte/s]."""
        own = self.peer_bytes_per_s * (devices - 1)
        return min(self.link_bytes_per_s, own) if own else self.link_bytes_per_s

    def rate(self, fmt: str) -> float:
        """Dense FLOP/s of the arithmetic that weights of format `fmt` run in."""
        kind = COMPUTE_FORMAT.get(fmt, fmt)
        return self.flops_per_s.get(kind) or self.flops_per_s["bfloat16"]

    def pipe_rate(self, fmt: str) -> float:
        """Dense FLOP/s of the tensor cores that efficiencies are shares of; :meth:`rate` bounds what comes of it.

        It is above the datasheet's rate where sums in 32 bits run at half of it, as on GeForce cards: their integers are
        four times as quick as bf16, not twice. What keeps a kernel from the peak (power, feeding the cores) stays what it is at
        the full rate, so that such a card reaches its own: measured 47.0 of 47.4 TFLOP/s in bf16 on RTX 5060 Ti, 88 with
        sums in 16 bits (github:QuantumDrizzy/BLACKWALL, read 2026-11-29).
        """
        kind = COMPUTE_FORMAT.get(fmt, fmt)
        kind = kind if kind in self.flops_per_s else "bfloat16"
        integers = self.flops_per_s.get("int8", 0.0)
        if integers < HALVED_RATIO * self.flops_per_s["bfloat16"] or kind not in INT8_RATIO:
            return self.rate(fmt)
        return max(self.rate(fmt), integers / INT8_RATIO[kind])

    def reached(self, fmt: str, share: float) -> float:
        """FLOP/s of a kernel that reaches so large a `share` of the tensor cores: of :meth:`pipe_rate`, at most :meth:`rate`."""
        return max(min(self.pipe_rate(fmt) * share, self.rate(fmt)), self.rate(fmt) * share)


def peaks_of(device: Device) -> DevicePeaks:
    """Datasheet rates of a device, for the physics of kernels that nobody measured on it."""
    names = {"bf16": "bfloat16", "fp8": "fp8", "int8": "int8", "fp4": "fp4", "fp16": "fp16"}
    rates = {names[k]: q.value for k, q in device.peak_flops_per_s.items() if k in names}
    plain = device.peak_flops_per_s.get("fp32")  # what computes 16-bit values where nothing else does
    rates.setdefault("bfloat16", rates.get("fp16", plain.value if plain else 0.0))
    peer = device.link.peer_bytes_per_s_per_direction if device.link and device.link.topology == "mesh" else None
    return DevicePeaks(
        flops_per_s=rates,
        hbm_bytes_per_s=device.memory_bandwidth_bytes_per_s.value,
        l2_bytes=device.l2_bytes.value if device.l2_bytes else 0.0,
        link_bytes_per_s=device.link.bytes_per_s_per_direction.value if device.link else 64e9,
        multiprocessors=int(device.multiprocessors.value) if device.multiprocessors else 132,
        peer_bytes_per_s=peer.value if peer else 0.0,
    )


PARAMETER_MEANING: Mapping[str, str] = {
    "latency_s": "time of the smallest launch, in a CUDA graph where the benchmark used one [s]",
    "compute_efficiency": "share of the dense peak FLOP/s reached by a large kernel",
    "memory_efficiency": "share of the device-memory bandwidth reached by a large kernel",
    "rows_efficiency": "the same of a product's inputs and outputs",
    "attend_efficiency": "share of the dense peak FLOP/s reached by sparse attention itself",
    "index_efficiency": "share of the dense peak FLOP/s reached by an indexer's scores",
    "gemm_efficiency": "share of the dense peak FLOP/s reached by the projections of a module",
    "cache_gain": "how much faster than device memory data in the L2 are read (bench only)",
    "cache_share": "size of data at which half of that gain is lost, as a share of the L2",
    "cache_sharpness": "how abruptly the gain is lost: the power of that size",
    "most_copies": "weights are cycled until they fill the L2, this many copies at most (bench only)",
    "unit_s": "time a unit of parallel work (sequence and KV head; expert with a token) adds [s]",
    "activation_efficiency": "share of memory bandwidth reached by activation traffic",
    "routing_efficiency": "the same for copies of all routed rows, which expert parallelism does not divide",
    "all_tokens": "1: the benchmark left all tokens of the expert group on the timed rank (bench only)",
    "depth_s": "time a tile of a product takes to go through a value of its depth [s]",
    "untuned_ratio": "how much longer products take where a kernel has no tuned tiles for the experts",
    "unaligned_ratio": "how much longer they take where the experts' width is no multiple of 16",
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
    """Roofline of one linear layer, weights ``n x k``: ``t0 + k d + hypot(2mnk / (P e_c), bytes / (B e_m))`` [s].

    bytes = weights + bf16 input + bf16 output (Williams et al., Roofline, CACM 52(4), 2009; the root of
    squares is a smooth maximum); inputs and outputs have a share of the bandwidth of their own where ``rows_efficiency`` is
    known. ``depth_s`` (d, 0 where it is not known): each tile sums over the depth in sequence, however little there is to read.
    warm : the weights may be found in the L2, see :func:`cache_factor` and :func:`replayed_bytes`.
    """
    compute = 2.0 * m * n * k / (peaks.pipe_rate(fmt) * p["compute_efficiency"])
    memory = gemm_bytes(fmt, m, n, k) / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    if "rows_efficiency" in p:
        more = 1.0 / p["rows_efficiency"] - 1.0 / p["memory_efficiency"]
        memory = memory + 2.0 * m * (n + k) * more / peaks.hbm_bytes_per_s
    if warm:
        memory = memory * cache_factor(p, peaks, replayed_bytes(p, peaks, n * k * WEIGHT_BYTES[fmt]))
    return p["latency_s"] + p.get("depth_s", 0.0) * k + np.sqrt(compute * compute + memory * memory)


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
    compute = 4.0 * batch * heads * dim * span / peaks.reached("bfloat16", p["compute_efficiency"])
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
    compute = 4.0 * batch * heads * dim * pairs / (peaks.pipe_rate(fmt) * p["compute_efficiency"])
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
    taken = np.clip(as_array(chosen), 1e-9, 1.0 - 1e-9)
    others = np.maximum(share / taken - 1.0, 0.0) * -np.log1p(-taken)
    untouched = np.log1p(-taken) - POPULARITY_SHAPE * np.log1p(others / POPULARITY_SHAPE)
    return np.where(even > 0, dealt, -local * np.expm1(untouched))


#: Rows of a tile of Marlin's products for experts: the first that an expert's mean rows fill to less than nine tenths, else the
#: last; and the multiples to which hidden size and width are padded. kind: datasheet (vLLM `fused_marlin_moe.py`, `mxfp4.py`).
MARLIN_TILE_ROWS, MARLIN_DEPTH, MARLIN_WIDTH = (8.0, 16.0, 32.0, 48.0, 64.0), 256, 128


def marlin_tiles(tokens: Array, topk: Number, experts: Number) -> Array:
    """Tiles of an expert in serving, over those of the benchmark, whose experts all have the mean's rows.

    Popularities are gamma-distributed (:data:`POPULARITY_SHAPE`, here 2), so an expert of mean L has more than x rows with
    ``(1 + y) e^-y, y = 2 x / L``: the sum over x = 0, b, 2 b... is its tiles of b rows. At 64 rows that is 1.5 tiles for one. The
    benchmark, whose rows are powers of two, has none that is in part empty but the first.
    """
    mean = np.maximum(tokens * topk / experts, 1e-3)
    size = np.select([mean < 0.9 * rows for rows in MARLIN_TILE_ROWS], MARLIN_TILE_ROWS, MARLIN_TILE_ROWS[-1])
    step = POPULARITY_SHAPE * size / mean
    less = np.exp(-np.minimum(step, 700.0))
    more = less / (1.0 - less) + step * less / np.square(1.0 - less)
    touched = 1.0 - (1.0 + mean / POPULARITY_SHAPE) ** -POPULARITY_SHAPE
    return as_array(np.maximum((touched + more) / np.maximum(mean / size, 1.0), 1.0))


#: The skewed benchmark draws the tokens of the experts from a density x**-1.2, between 1 and 0.8 of the tokens where there are
#: more choices than experts, else between 0.01 and 2, and takes the mean of five draws; here so many are taken. unit: 1, kind:
#: datasheet, source: collector/helper.py (``power_law_logits_v3``) of aiconfigurator 095f58a5, 2026.
SKEW_POWER, SKEW_MOST, SKEW_FEW, SKEW_DRAWS = 1.2, 0.8, (0.01, 2.0), 8


@lru_cache(maxsize=2**18)
def _dealt(tokens: int, topk: int, experts: int, ranks: int) -> tuple[float, float]:
    """Rows of the first rank and its experts with one, as the balanced benchmark deals them out.

    Choice j of token t is expert ``t + j s`` (modulo all), ``s = ceil(experts / topk)``; fewer tokens than s spread over s.
    """
    step, local = math.ceil(experts / topk), experts // ranks
    whole, rest = divmod(tokens, experts) if tokens >= step else (0, tokens)
    first = np.arange(rest) if tokens >= step else np.floor(np.arange(rest) * (step / tokens))
    chosen = (first[:, None] + np.arange(topk) * step).astype(int) % experts
    rows = whole * topk + np.bincount(chosen[chosen < local], minlength=local)
    return float(rows.sum()), float(np.count_nonzero(rows))


@lru_cache(maxsize=64)
def _uniform(experts: int) -> Array:
    return np.random.default_rng(0).random((SKEW_DRAWS, experts))


@lru_cache(maxsize=2**18)
def _skewed(tokens: int, topk: int, experts: int, ranks: int) -> tuple[float, float]:
    """Rows of the most loaded rank and its experts with one, as the skewed benchmark draws them; means of the draws.

    Counts are rounded and bounded by the tokens; what that takes or leaves is dealt to the ranks in turn, to (from) their least
    (most) loaded experts.
    """
    least, most = (1.0, SKEW_MOST * tokens) if tokens * topk > experts else SKEW_FEW
    power = 1.0 - SKEW_POWER
    x = ((most**power - least**power) * _uniform(experts) + least**power) ** (1.0 / power)
    counts = np.minimum(np.rint(x * (tokens * topk / x.sum(axis=1, keepdims=True))), tokens)
    left = tokens * topk - counts.sum(axis=1, keepdims=True)
    each, more = np.divmod(np.abs(left), ranks)
    share = np.sign(left) * (each + (np.arange(ranks) < more))
    parted = counts.reshape(SKEW_DRAWS, ranks, experts // ranks)
    rows = np.minimum(parted.sum(axis=2) + share, experts // ranks * tokens)
    none = np.count_nonzero(parted == 0, axis=2)
    touched = experts // ranks - none + np.clip(share, 0, none)
    heaviest = np.arange(SKEW_DRAWS), rows.argmax(axis=1)
    return float(rows[heaviest].mean()), float(touched[heaviest].mean())


@lru_cache(maxsize=64)
def _benchmark_rows(table: bytes) -> Array:
    """Rows and experts of each (tokens, topk, experts, ranks, skewed); a fit asks for the same ones at every step."""
    asked = np.frombuffer(table, dtype=np.int64).reshape(-1, 5)
    unique, place = np.unique(asked, axis=0, return_inverse=True)
    found = [(_skewed if skewed else _dealt)(*shape) for *shape, skewed in unique.tolist()]
    return np.maximum(as_array(found).reshape(-1, 2), 1.0)[place.ravel()]


def moe_benchmark_rows(
    tokens: Array, topk: Number, experts: Number, ranks: Number, skewed: Number | float
) -> tuple[Array, Array]:
    """Rows on the rank of an expert layer that the benchmark timed, and its experts with a row; tokens are rounded.

    skewed = 0: dealt out in turn, the first rank's (:func:`_dealt`); else drawn from a power law, the most loaded rank's
    (:func:`_skewed`).
    """
    args = np.broadcast_arrays(*(as_array(v) for v in (np.maximum(tokens, 1.0), topk, experts, ranks, skewed)))
    found = _benchmark_rows(np.rint(np.stack([a.ravel() for a in args], axis=1)).astype(np.int64).tobytes())
    return found[:, 0].reshape(args[0].shape), found[:, 1].reshape(args[0].shape)


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
        there = np.where(as_array(dealt) > 0, np.minimum(topk / ep, 1.0), 1.0)
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


#: Rows of a tile of grouped products on a GPU, to which an expert's rows are padded, where the parameters (of a device without
#: fits) name no other by ``tile_rows``. unit: rows, kind: assumed, 2026-11.
GPU_TILE_ROWS = 32.0

#: Triton loads rows of memory in whole vectors where their length is divisible by so many values. unit: values, kind: datasheet
#: (specialisation of integer arguments, triton 3).
ALIGNED_WIDTH = 16.0


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
    tiles: Number | float = 1.0,
    tuned: Number | float = 1.0,
) -> Array:
    """One mixture-of-experts layer on one rank: routing, two grouped products, combine [s].

    ``t0 + f (hypot(padded FLOPs / (P e_c), A u + weight bytes / (B e_m)) + (hidden + width) d) + rows' bytes / (B e_a)
    + routed bytes / (B e_r)``; A experts have a token (:func:`moe_active_experts`), each one's rows (:func:`moe_assigned_rows`)
    are padded by half a tile; a tile walks through the depth of both products, however few there are (d); the last term does not
    shrink with expert parallelism. even > 0, skewed > 0: the rank that the benchmark timed (:func:`moe_benchmark_rows`). warm :
    the weights of the experts touched may be found in the L2, see :func:`cache_factor`. tiles : of an expert, over those of
    experts with equally many rows. tuned = 0: a kernel without tiles for such experts, f is ``untuned_ratio``; times
    ``unaligned_ratio`` where their width is no multiple of :data:`ALIGNED_WIDTH`.
    """
    assigned, local = moe_assigned_rows(p, tokens, topk, experts, ep, even)
    active = moe_active_experts(local, assigned, even, topk / experts)
    timed = np.maximum(as_array(even), as_array(skewed)) > 0 if not p.get("grouped_deal") else as_array(skewed) > 0
    if np.any(timed):
        whole = bool(p.get("all_tokens"))
        pool, ranks = (local, np.ones_like(as_array(ep))) if whole else (experts, ep)
        rows, touched = moe_benchmark_rows(tokens, np.minimum(topk, pool), pool, ranks, skewed)
        active = np.where(timed, touched, active)
        assigned = assigned if whole else np.where(timed, rows, assigned)
    matrix = np.where(gated > 0, 3.0, 2.0) * hidden * (inter / tp)
    padded = assigned + 0.5 * p.get("tile_rows", GPU_TILE_ROWS) * active
    compute = tiles * 2.0 * matrix * padded / (peaks.pipe_rate(fmt) * p["compute_efficiency"])
    read = active * matrix * WEIGHT_BYTES[fmt]
    memory = read / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    if warm:
        memory = memory * cache_factor(p, peaks, read)
    memory = memory + active * p["unit_s"]
    core = np.sqrt(compute * compute + memory * memory) + (hidden + inter / tp) * p.get("depth_s", 0.0)
    core = core * np.where(as_array(tuned) > 0, 1.0, p.get("untuned_ratio", 1.0))
    core = core * np.where((inter / tp) % ALIGNED_WIDTH > 0, p.get("unaligned_ratio", 1.0), 1.0)
    moved, routed = moe_rows_s(p, peaks, tokens, assigned, hidden, inter / tp, topk)
    return np.asarray(p["latency_s"] + core + moved + routed, dtype=np.float64)


def moe_rows_s(
    p: Mapping[str, float], peaks: DevicePeaks, tokens: Array, assigned: Array, hidden: Number, width: Number, topk: Number
) -> tuple[Array, Array]:
    """What a layer of experts moves beside its products [s]: rows of the experts, activated too; rows routed there and back."""
    moved = 2.0 * (tokens * hidden * 2.0 + assigned * (2.0 * hidden + 3.0 * width))
    moved = moved / (peaks.hbm_bytes_per_s * p["activation_efficiency"])
    routed = 4.0 * tokens * topk * hidden / (peaks.hbm_bytes_per_s * p["routing_efficiency"])
    return moved, routed


#: Shape of DeepSeek-V3's latent attention: hidden size, query and KV latent ranks, rotary, plain and value
#: widths a head. kind: datasheet, source: DeepSeek-V3 config.json (2024).
MLA_HIDDEN, MLA_Q_RANK, MLA_KV_RANK, MLA_ROPE, MLA_NOPE, MLA_V = 7168.0, 1536.0, 512.0, 64.0, 128.0, 128.0


def latent_bytes(batch: Array, tokens: Array, kv_fmt: str) -> Array:
    """Bytes of the latents of `batch` sequences of `tokens` tokens, in one layer."""
    return batch * tokens * (MLA_KV_RANK + MLA_ROPE) * WEIGHT_BYTES[kv_fmt]


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
        moved = latent_bytes(batch, tokens, kv_fmt)
        rows = batch
    compute = flops / peaks.reached(compute_fmt, p["compute_efficiency"])
    memory = moved / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    t = p["latency_s"] + np.sqrt(compute * compute + memory * memory)
    if scope == "module":
        weights = MLA_HIDDEN * (MLA_Q_RANK + MLA_KV_RANK + MLA_ROPE) + heads * (
            MLA_Q_RANK * (MLA_NOPE + MLA_ROPE) + MLA_KV_RANK * (MLA_NOPE + MLA_V) + MLA_V * MLA_HIDDEN
        )
        work = 2.0 * rows * weights / peaks.reached(gemm, p["gemm_efficiency"])
        read = weights * WEIGHT_BYTES[gemm] / peaks.hbm_bytes_per_s
        t = t + np.sqrt(work * work + read * read)
    return t


#: Tokens of a block of a recurrence, within which a chunk is computed by tensor cores. kind: datasheet (vLLM and SGLang, `fla`).
RECURRENT_BLOCK_TOKENS = 64.0


def _third_powers(*parts: Array) -> Array:
    """A smooth maximum of times: the root of the sum of third powers."""
    return np.asarray(np.cbrt(sum(part**3 for part in parts)), dtype=np.float64)


def recurrence_decode_base_s(
    p: Mapping[str, float], peaks: DevicePeaks, state_bytes: Number, batch: Array, warm: bool = True
) -> Array:
    """A step of a recurrence: ``t0 + 2 b state / (B e_m)``, every row's state read and written [s]."""
    moved = 2.0 * batch * state_bytes
    memory = moved / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    return p["latency_s"] + memory * (cache_factor(p, peaks, moved) if warm else 1.0)


def recurrence_context_base_s(
    p: Mapping[str, float],
    peaks: DevicePeaks,
    key_heads: Number,
    heads: Number,
    key: Number,
    value: Number,
    state_bytes: Number,
    batch: Array,
    new: Array,
) -> Array:
    """A prompt through a delta rule in blocks of C tokens, one after the other [s].

    ``t0 + (t_mem^3 + t_comp^3 + t_serial^3)^(1/3)``: queries, keys, values, outputs and the state once over the memory; within
    a block products (``2 C^2 (key + value + C) + 6 C key value`` a head), between blocks the state, which a multiprocessor
    carries for a head in `unit_s` a block.
    """
    size = RECURRENT_BLOCK_TOKENS
    blocks = np.ceil(new / size)
    moved = batch * (new * 4.0 * (key_heads * key + heads * value) + 2.0 * state_bytes)
    memory = moved / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    flops = batch * blocks * heads * (2.0 * size * size * (key + value + size) + 6.0 * size * key * value)
    compute = flops / peaks.reached("bfloat16", p["compute_efficiency"])
    serial = blocks * p["unit_s"] * np.maximum(1.0, batch * heads / peaks.multiprocessors)
    return p["latency_s"] + _third_powers(memory, compute, serial)


def convolution_base_s(
    p: Mapping[str, float], peaks: DevicePeaks, values: Array, warm: bool = True
) -> Array:
    """A convolution over the last inputs that moves `values` numbers of 16 bits: ``t0 + bytes / (B e_m)`` [s]."""
    moved = 2.0 * values
    memory = moved / (peaks.hbm_bytes_per_s * p["memory_efficiency"])
    return p["latency_s"] + memory * (cache_factor(p, peaks, moved) if warm else 1.0)


#: Numbers that a convolution of four taps moves for a channel: of a decoding row (what it kept read and written, the input, the
#: output), of a token of a prompt. kind: by construction.
CONVOLUTION_STEP_VALUES, CONVOLUTION_TOKEN_VALUES = 10.0, 2.0


@dataclass(frozen=True)
class SparseKind:
    """What the physics of a whole layer of sparse attention goes by, its projections included.

    fixed_weights, head_weights : weights of the layer whatever its heads, and a head. width : values of an entry of the cache.
    flops : of a query, an entry and a head. attended_tokens : entries that a query attends to at most.
    entry_tokens : tokens of an entry.
    index_heads, index_width : of the indexer's queries; no heads: all entries are attended to, or an earlier choice.
    """

    fixed_weights: float
    head_weights: float
    width: float
    flops: float
    attended_tokens: float
    entry_tokens: float = 1.0
    index_heads: int = 0
    index_width: float = 128.0


def _latent(hidden: int, q_rank: int, key: int, value: int, index_heads: int) -> SparseKind:
    fixed = hidden * (q_rank + 576.0 + 128.0 + index_heads) + q_rank * index_heads * 128.0
    per_head = q_rank * key + 512.0 * (key - 64 + value) + hidden * value
    return SparseKind(fixed, per_head, 576.0, 2.0 * (576 + 512), 2048.0, 1.0, index_heads)


def _compressed(hidden: int, q_rank: int, entry: int, topk: int, index_heads: int) -> SparseKind:
    fixed = hidden * (q_rank + 512.0 + 1024.0) + q_rank * index_heads * 128.0
    per_head = q_rank * 512.0 + 512.0 * 128.0 + hidden * 128.0
    return SparseKind(fixed, per_head, 512.0, 2048.0, topk, entry, index_heads)


#: Layers as the tables of sparse attention call them: mechanism and model. kind: datasheet (config.json of DeepSeek-V3.2, GLM-5,
#: DeepSeek-V4-Flash and -Pro, MiniMax-M3, 2025 and 2026); of DeepSeek-V4 the output projection's groups are rounded.
SPARSE_KINDS: Mapping[str, SparseKind] = {
    "dsa-DeepSeek-V3.2": _latent(7168, 1536, 192, 128, 64),
    "dsa-GLM-5": _latent(6144, 2048, 256, 256, 32),
    "dsa_reused-GLM-5": _latent(6144, 2048, 256, 256, 0),
    "csa-DeepSeek-V4-Flash": _compressed(4096, 1024, 4, 512, 64),
    "csa-DeepSeek-V4-Pro": _compressed(7168, 1536, 4, 1024, 64),
    "hca-DeepSeek-V4-Flash": _compressed(4096, 1024, 128, 2**20, 0),
    "hca-DeepSeek-V4-Pro": _compressed(7168, 1536, 128, 2**20, 0),
    "msa-MiniMax-M3": SparseKind(6144 * (1024.0 + 512 + 132), 2.0 * 6144 * 128, 1024.0, 512.0, 2048.0, 1.0, 4),
}
#: Bytes of a key of an indexer: FP8 and a scale. Heads to which kernels of sparse latent attention pad. kind: datasheet.
INDEX_KEY_BYTES, SPARSE_PADDED_HEADS = 132.0, 64.0


def sparse_base_s(
    p: Mapping[str, float],
    peaks: DevicePeaks,
    kind: SparseKind,
    gemm_fmt: str,
    kv_fmt: str,
    heads: Number,
    batch: Array,
    new: Array,
    past: Array,
) -> Array:
    """A whole layer of sparse attention, `new` tokens of each of `batch` sequences after `past` [s].

    Launches, a time a token, and three kernels one after the other, each the root of the squares of its arithmetic and its
    memory: projections, the indexer over all earlier entries, attention to those that it chose.
    """
    rows, rate = batch * new, peaks.hbm_bytes_per_s
    weights = kind.fixed_weights + heads * kind.head_weights
    work = 2.0 * rows * weights / peaks.reached(gemm_fmt, p["compute_efficiency"])
    read = weights * WEIGHT_BYTES[gemm_fmt] / (rate * p["memory_efficiency"])
    entries = (past + new) / kind.entry_tokens
    mean = np.maximum((past + 0.5 * (new + 1.0)) / kind.entry_tokens, 1.0)
    attended = np.minimum(mean, kind.attended_tokens)
    flops = kind.flops * rows * attended * np.maximum(heads, SPARSE_PADDED_HEADS)
    attend = flops / peaks.reached("bfloat16", p["attend_efficiency"])
    once = np.minimum(entries, new * attended)  # no entry is read twice by a sequence
    kv = batch * once * kind.width * WEIGHT_BYTES[kv_fmt] / (rate * p["memory_efficiency"])
    total = p["latency_s"] + rows * p["unit_s"] + np.hypot(work, read) + np.hypot(attend, kv)
    if not kind.index_heads:
        return np.asarray(total, dtype=np.float64)
    index = 2.0 * rows * mean * kind.index_heads * kind.index_width / peaks.reached("fp8", p["index_efficiency"])
    keys = batch * entries * INDEX_KEY_BYTES / (rate * p["memory_efficiency"])
    return np.asarray(total + np.hypot(index, keys), dtype=np.float64)


def streaming_base_s(p: Mapping[str, float], bytes_per_s: float, moved: Array) -> Array:
    """``t0 + bytes / (B e)`` [s]: quantisation over device memory, dispatch and combine over links."""
    return p["latency_s"] + moved / (bytes_per_s * p["memory_efficiency"])


_SPARSE: Mapping[str, float] = {
    "latency_s": 5e-5,
    "compute_efficiency": 0.5,
    "memory_efficiency": 0.7,
    "attend_efficiency": 0.4,
    "index_efficiency": 0.2,
    "unit_s": 5e-8,
}

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
    "sparse_decode": _SPARSE,
    "sparse_context": _SPARSE,
    "recurrence_decode": {
        "latency_s": 4.2e-6,
        "memory_efficiency": 0.88,
        "cache_gain": 1.5,
        "cache_share": 0.7,
    },
    "recurrence_context": {
        "latency_s": 8.8e-6,
        "memory_efficiency": 0.6,
        "compute_efficiency": 1.0,
        "unit_s": 2.9e-6,
    },
    "convolution_decode": {"latency_s": 2e-6, "memory_efficiency": 0.7, "cache_gain": 1.5, "cache_share": 0.7},
    "convolution_context": {"latency_s": 2e-6, "memory_efficiency": 0.7},
    "recurrence_context/kda": {
        "latency_s": 1.8e-5,
        "memory_efficiency": 0.31,
        "compute_efficiency": 1.0,
        "unit_s": 4.3e-6,
    },
    "deepep": {"latency_s": 1.2e-5, "memory_efficiency": 0.5},
    "elementwise": {"latency_s": 2.5e-6, "memory_efficiency": 0.7},
}


def recurrent_parameters(op: str, variant: str) -> Mapping[str, float]:
    """Those of :data:`DEFAULT_PARAMETERS` for a kernel of a recurrence. kind: fitted, 2026-11, source: medians over the tables of
    aisimulate 0.13.0 (`linear_attention`, vLLM 0.24 and 0.25 on six GPUs; prompts: H100)."""
    return DEFAULT_PARAMETERS.get(f"{op}/{variant}", DEFAULT_PARAMETERS[op])


def equivalent_prompt(pairs: Array, window: Array | float) -> Array:
    """Length of the whole prompt with as many query-key pairs: the inverse of :func:`causal_pairs` at no
    prior."""
    whole = 0.5 * (np.sqrt(1.0 + 8.0 * pairs) - 1.0)
    if np.all(as_array(window) <= 0):
        return np.maximum(whole, 1.0)
    w = np.maximum(as_array(window), 1.0)
    ramp = 0.5 * w * (w + 1.0)
    return np.maximum(np.where((as_array(window) > 0) & (pairs > ramp), w + (pairs - ramp) / w, whole), 1.0)


def prompt_of_chunk(
    new: Array, prior: Array, window: Number, heads: Number | float = 1.0, processors: int = 0
) -> Array:
    """Length of the whole prompt that takes as long as a chunk of `new` queries after `prior` cached tokens.

    A chunk computes ``new prior + new (new + 1) / 2`` query-key pairs and takes the time of the whole prompt of as many. A
    short chunk leaves processors idle while the others scan the cached keys: with `heads` (times sequences) it counts as at
    least ``FILL_QUERY_HEADS processors / heads`` queries on the cached keys (0 processors: none are idle).
    """
    past = np.where(window > 0, np.minimum(prior, window), prior)
    idle = np.maximum(FILL_QUERY_HEADS * processors / heads - new, 0.0)
    pairs = causal_pairs(new, prior, window)
    return np.where(prior > 0, equivalent_prompt(pairs + idle * past, window), new)


#: Share of the bandwidth of a link that a large message reaches, without measurements. unit: 1, kind: assumed, 2026-11.
LINK_EFFICIENCY = 0.8
#: Messages that each device sends in a collective, in times the share of the tensor that is not its own: a ring's.
RING_PASSES: Mapping[str, float] = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "alltoall": 1.0}


def collective_base_s(op: str, gpus: int, size: Array, link_bytes_per_s: float, latency_s: float) -> Array:
    """Collective of `size` bytes over a ring: ``t0 + passes (n - 1) / n bytes / (B 0.8)`` [s]."""
    wire = RING_PASSES.get(op, 1.0) * (gpus - 1) / gpus * size / (LINK_EFFICIENCY * link_bytes_per_s)
    return latency_s + wire


def message_base_s(size: Array, link_bytes_per_s: float, latency_s: float) -> Array:
    """A message to another device: ``t0 + bytes / (B 0.8)`` [s]."""
    return latency_s + size / (LINK_EFFICIENCY * link_bytes_per_s)
