"""The operations that are fitted: columns of shape and load, the law of the base, the features and covariance of the residual."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from hardware_profiles import kernel_physics as kp
from hardware_profiles import kernel_surface as ks
from hardware_profiles.kernel_physics import Array
from hardware_profiles.records import dataclass

Terms = tuple[tuple[float, tuple[float, ...]], ...]  # (amplitude, length of each feature; 0: feature ignored)
SAME = 0.01  # a length below every gap between features: "equal or not"


@dataclass(frozen=True)
class Op:
    """How one kind of kernel becomes a matrix of shapes by loads.

    shape, load, formats : column names. group : the shape columns that a kept-out group shares. features :
    shape values -> features. base : parameters, peaks, formats, columns -> seconds. terms : the covariance
    from which the search starts. offset : added to the last load before its logarithm. rank : columns kept of
    the residual. coordinate : columns -> log2 of the load, where that is not a column (then on a grid of half
    octaves). noise : given where `terms` and this noise are taken as they are, without a search. table : file of its
    rows, where that is not its name.
    """

    shape: tuple[str, ...]
    load: tuple[str, ...]
    formats: tuple[str, ...]
    group: tuple[str, ...]
    features: Callable[..., tuple[float, ...]]
    base: Callable[[Mapping[str, Any], kp.DevicePeaks, Sequence[str], Mapping[str, Array]], Array]
    terms: Terms
    rank: int
    offset: float = 0.0
    coordinate: Callable[[Mapping[str, Array]], Array] | None = None
    noise: float | None = None
    table: str = ""


def _gemm(p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]) -> Array:
    return kp.gemm_base_s(p, peaks, fmt[0], c["m"], c["n"], c["k"])


def _decode(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    h, kv, d, w = c["num_heads"], c["num_kv_heads"], c["head_dim"], c["window_size"]
    return kp.decode_base_s(p, peaks, fmt[1], h, kv, d, w, c["batch_size"], c["context_len"])


def _context(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    h, kv, d, w = c["num_heads"], c["num_kv_heads"], c["head_dim"], c["window_size"]
    return kp.prefill_base_s(p, peaks, fmt[0], h, kv, d, w, c["batch_size"], c["seq_len"])


def _moe(p: Mapping[str, Any], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]) -> Array:
    if "kernels" in p:  # each backend has its parameters
        out = np.empty(len(c["kernel"]))
        for code in np.unique(c["kernel"]):
            at = c["kernel"] == code
            out[at] = _moe(
                p["kernels"].get(int(code), p["all"]), peaks, fmt, {n: v[at] for n, v in c.items()}
            )
        return out
    h, i, k, e = c["hidden_size"], c["inter_size"], c["topk"], c["num_experts"]
    tp, ep, gated, even = c["moe_tp_size"], c["moe_ep_size"], c["gated"], 1.0 - c["skewed"]
    args = (h, i, k, e, tp, ep, gated, even, c["skewed"])
    return kp.moe_base_s(p, peaks, fmt[0], c["num_tokens"], *args, tuned=c["tuned"])


def _mla(p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]) -> Array:
    return kp.mla_base_s(p, peaks, fmt, c["num_heads"], c["batch_size"], c["seq_len"])


def _quantize(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    return kp.streaming_base_s(p, peaks.hbm_bytes_per_s, 3.0 * c["m"] * c["k"])


def _recurrence_decode(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    return kp.recurrence_decode_base_s(p, peaks, c["num_v_heads"] * HEAD_STATE_BYTES, c["batch_size"])


def _recurrence_context(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    k, v, width = c["num_k_heads"], c["num_v_heads"], np.float64(HEAD_WIDTH)
    state = v * HEAD_STATE_BYTES
    return kp.recurrence_context_base_s(p, peaks, k, v, width, width, state, c["batch_size"], c["seq_len"])


def _convolution_decode(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    return kp.convolution_base_s(p, peaks, c["batch_size"] * c["channels"] * kp.CONVOLUTION_STEP_VALUES)


def _convolution_context(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    tokens = c["batch_size"] * c["seq_len"]
    return kp.convolution_base_s(p, peaks, tokens * c["channels"] * kp.CONVOLUTION_TOKEN_VALUES, False)


def _sparse(p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]) -> Array:
    new = c.get("new_tokens", np.ones_like(c["past_len"]))
    kind = kp.SPARSE_KINDS[fmt[0]]
    return kp.sparse_base_s(p, peaks, kind, fmt[1], fmt[2], c["num_heads"], c["batch_size"], new, c["past_len"])


def _deepep(
    p: Mapping[str, float], peaks: kp.DevicePeaks, fmt: Sequence[str], c: Mapping[str, Array]
) -> Array:
    moved = c["num_tokens_per_rank"] * c["topk"] * c["hidden_size"] * (1.0 if fmt[1] == "dispatch" else 2.0)
    return kp.streaming_base_s(p, peaks.link_bytes_per_s, moved)


#: Width of the heads in the tables of recurrences, and bytes of a head's state, in float32. kind: datasheet (the tables).
HEAD_WIDTH, HEAD_STATE_BYTES = 128, 128 * 128 * 4

_ATTENTION = ("num_heads", "num_kv_heads", "head_dim", "window_size")
_ATTENTION_TERMS: Terms = (
    (1.0, (2.0, 5.0, 1.0, 6.0, 0.0, 0.0, 0.0, 4.0)),
    (0.5, (2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 4.0)),
    (0.1, (0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.0)),
    (0.1, (2.0, 1.0, 2.0, 6.0, 0.0, 1.0, 1.0, 4.0)),
    (0.1, (0.0, 0.0, 1.0, 6.0, 2.0, 0.0, 0.0, 4.0)),
    (0.02, (SAME, SAME, SAME, 0.0, 0.0, 0.0, 0.0, 0.0)),
)
#: Covariance of expert layers, the same for all tables: searched a table at a time it takes the accidents of a dozen
#: models for structure. The second term is for the number and width of a rank's experts, exactly: Triton's tile sizes
#: are looked up by these two, whatever the model (H100 under SGLang: 530 TFLOP/s at 128 experts of width 768, which is
#: tuned, and 230 at 1024, which is not). unit: octaves of the shape, squared log seconds, kind: fitted
#: (leave-one-model-out error of 16 tables of six GPUs at once), 2026-11.
MOE_TERMS: Terms = (
    (1.0, (12.0, 6.0, 24.0, 6.0, 6.0, 4.0, 3.0, 3.0, 3.0, 16.0)),
    (0.02, (0.0, SAME, 0.0, SAME, 0.0, 0.0, 0.0, 0.0, 0.0, SAME)),
)
MOE_NOISE = 0.03
_DEEPEP = ("hidden_size", "num_experts", "topk")
MODEL = ("hidden_size", "inter_size", "topk", "num_experts")
HEADS = ("num_k_heads", "num_v_heads")
_HEADS_TERMS: Terms = ((1.0, (4.0, 4.0, 2.0)), (0.1, (0.0, 2.0, 2.0)))
OPS: Mapping[str, Op] = {
    "gemm": Op(
        ("n", "k"),
        ("m",),
        ("dtype",),
        ("n", "k"),
        ks.gemm_shape,
        _gemm,
        (
            (1.0, (2.5, 4.0, 0.0)),
            (0.5, (1.5, 0.0, 0.0)),
            (0.1, (0.0, 1.5, 0.0)),
            (0.02, (SAME, 0.0, 0.0)),
            (0.02, (0.0, SAME, 0.0)),
            (0.1, (0.0, 0.0, 1.0)),
            (0.05, (SAME, 0.6, 0.0)),
        ),
        24,
    ),
    "attention_decode": Op(
        (*_ATTENTION, "kernel"),
        ("batch_size", "context_len"),
        ("compute_dtype", "kv_cache_dtype"),
        _ATTENTION[:3],
        ks.attention_shape,
        _decode,
        _ATTENTION_TERMS,
        40,
        1.0,
    ),
    "attention_context": Op(
        (*_ATTENTION, "kernel"),
        ("batch_size", "seq_len"),
        ("compute_dtype", "kv_cache_dtype"),
        _ATTENTION[:3],
        ks.attention_shape,
        _context,
        _ATTENTION_TERMS,
        24,
    ),
    "moe": Op(
        (*MODEL, "moe_tp_size", "moe_ep_size", "gated", "skewed", "tuned", "kernel"),
        ("num_tokens",),
        ("dtype",),
        MODEL,
        ks.moe_shape,
        _moe,
        MOE_TERMS,
        27,
        coordinate=lambda c: ks.moe_load(c["num_tokens"], c["topk"], c["num_experts"]),
        noise=MOE_NOISE,
    ),
    "mla": Op(
        ("num_heads",),
        ("batch_size", "seq_len"),
        ("scope", "phase", "gemm_dtype", "compute_dtype", "kv_cache_dtype"),
        ("num_heads",),
        lambda heads: (np.log2(heads),),
        _mla,
        ((1.0, (4.0,)),),
        7,
    ),
    "quantize": Op(("k",), ("m",), ("op",), ("k",), lambda k: (np.log2(k),), _quantize, ((1.0, (4.0,)),), 12),
    "sparse_decode": Op(
        ("num_heads",),
        ("batch_size", "past_len"),
        ("kind", "gemm_dtype", "kv_cache_dtype"),
        ("num_heads",),
        ks.sparse_decode_shape,
        _sparse,
        ((1.0, (4.0,)),),
        8,
        1.0,
        table="sparse_attention",
    ),
    "sparse_context": Op(
        ("num_heads", "past_len"),
        ("batch_size", "new_tokens"),
        ("kind", "gemm_dtype", "kv_cache_dtype"),
        ("num_heads",),
        ks.sparse_context_shape,
        _sparse,
        ((1.0, (4.0, 4.0)), (0.1, (2.0, 0.0))),
        12,
        table="sparse_attention",
    ),
    "recurrence_decode": Op(
        (*HEADS, "kernel"),
        ("batch_size",),
        ("variant",),
        HEADS,
        ks.recurrence_shape,
        _recurrence_decode,
        _HEADS_TERMS,
        12,
        table="linear_attention",
    ),
    "recurrence_context": Op(
        (*HEADS, "kernel"),
        ("batch_size", "seq_len"),
        ("variant",),
        HEADS,
        ks.recurrence_shape,
        _recurrence_context,
        _HEADS_TERMS,
        16,
        table="linear_attention",
    ),
    "convolution_decode": Op(
        ("channels", "kernel"),
        ("batch_size",),
        ("variant",),
        ("channels",),
        ks.convolution_shape,
        _convolution_decode,
        ((1.0, (4.0, 2.0)),),
        12,
        table="linear_attention",
    ),
    "convolution_context": Op(
        ("channels", "kernel"),
        ("batch_size", "seq_len"),
        ("variant",),
        ("channels",),
        ks.convolution_shape,
        _convolution_context,
        ((1.0, (4.0, 2.0)),),
        16,
        table="linear_attention",
    ),
    "deepep": Op(
        (*_DEEPEP, "num_sms"),
        ("num_tokens_per_rank",),
        ("mode", "phase"),
        _DEEPEP,
        ks.exchange_shape,
        _deepep,
        ((1.0, (8.0, 8.0, 4.0, 4.0)),),
        20,
    ),
}
