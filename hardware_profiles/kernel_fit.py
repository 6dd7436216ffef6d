"""Fit the kernel models of :mod:`hardware_profiles.kernel_model` to tables of measured kernel times.

``python -m hardware_profiles.kernel_fit TABLES [OUT] [DEVICE...]`` reads parquet tables (``gemm``,
``attention_decode``, ``attention_context``, ``moe``, ``mla``, ``quantize``, ``deepep``, ``allreduce``,
``p2p``; any subset) and writes one ``.npz`` and one readable ``.json`` a device and framework. The same
tables give the same bytes.

Method, for each device, framework and number format: (1) the few parameters of the physical base by robust
least squares on the logarithm of time; (2) the residual as a matrix of shapes by loads, its column medians
taken off; (3) a Gaussian process over the shapes, one covariance for all columns, chosen by a descent of
the leave-one-group-out error (a group: all rows that share a shape, whatever their window or
parallelism), which has a closed form, or one for all tables (expert layers); cells that the rest contradicts by
more than six robust deviations (Huber's rule for expert layers) are drawn in; (4) the solution reduced in rank and to
16 bits. The error on a sixth of the groups, kept out of
every part of a second fit, is recorded.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import kernel_model as km
from hardware_profiles import kernel_physics as kp
from hardware_profiles import kernel_surface as ks
from hardware_profiles.kernel_model import version_of

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

#: Name of a GPU in the tables -> name of the device here.
DEVICES: Mapping[str, str] = {
    "A100-SXM-80GB": "a100-sxm-80gb",
    "H100-SXM": "h100-sxm-80gb",
    "H200-SXM": "h200-sxm-141gb",
    "L40S": "l40s-48gb",
    "B200-SXM": "b200-sxm-180gb",
    "RTX-PRO-6000-Server": "rtx-pro-6000-96gb",
    "Arc-Pro-B60": "arc-pro-b60",
    "B300-SXM": "b300-sxm-288gb",
    "GB200": "gb200-186gb",
    "GB300": "gb300-288gb",
}

#: GPUs with collective or point-to-point tables only.
LINK_ONLY: Mapping[str, str] = {"A40": "a40-48gb"}
FRAMEWORKS = ("vllm", "sglang", "trtllm")

#: Datasheet rates, dense. kind: datasheet. bfloat16, fp8, fp4 and memory bandwidth as in the aiconfigurator
#: system files (commit 095f58a5, 2026). int8, L2, multiprocessors and links (one way: NVLink 300, 450, 900
#: GB/s; PCIe 4 and 5 x16) from the vendors' product descriptions, not checked against a second source.
PEAKS: Mapping[str, kp.DevicePeaks] = {
    "a100-sxm-80gb": kp.DevicePeaks({"bfloat16": 312e12, "int8": 624e12}, 2039e9, 40e6, 300e9, 108),
    "h100-sxm-80gb": kp.DevicePeaks(
        {"bfloat16": 989e12, "fp8": 1979e12, "int8": 1979e12}, 3350e9, 50e6, 450e9, 132
    ),
    "h200-sxm-141gb": kp.DevicePeaks(
        {"bfloat16": 989e12, "fp8": 1979e12, "int8": 1979e12}, 4800e9, 50e6, 450e9, 132
    ),
    "l40s-48gb": kp.DevicePeaks({"bfloat16": 362e12, "fp8": 733e12, "int8": 733e12}, 864e9, 96e6, 32e9, 142),
    "b200-sxm-180gb": kp.DevicePeaks(
        {"bfloat16": 2250e12, "fp8": 4500e12, "int8": 4500e12, "fp4": 9000e12}, 7700e9, 126e6, 900e9, 148
    ),
    "rtx-pro-6000-96gb": kp.DevicePeaks(
        {"bfloat16": 468e12, "fp8": 936e12, "int8": 936e12, "fp4": 1871e12}, 1792e9, 128e6, 64e9, 188
    ),
    "arc-pro-b60": kp.DevicePeaks({"bfloat16": 98e12, "fp8": 98e12, "int8": 197e12}, 456e9, 18e6, 32e9, 20),
    "b300-sxm-288gb": kp.DevicePeaks(
        {"bfloat16": 2250e12, "fp8": 4500e12, "int8": 153.5e12, "fp4": 14000e12}, 7750e9, 126e6, 900e9, 148
    ),
    "gb200-186gb": kp.DevicePeaks(
        {"bfloat16": 2500e12, "fp8": 5000e12, "int8": 5000e12, "fp4": 10000e12}, 8000e9, 126e6, 900e9, 148
    ),
    "gb300-288gb": kp.DevicePeaks(
        {"bfloat16": 2500e12, "fp8": 5000e12, "int8": 166e12, "fp4": 15000e12}, 8000e9, 126e6, 900e9, 148
    ),
}

SOURCES: Sequence[Mapping[str, str]] = (
    {
        "repository": "https://pypi.org/project/aisimulate",
        "commit": "0.13.0",
        "licence": "Apache-2.0",
        "holder": "NVIDIA CORPORATION & AFFILIATES",
    },
    {
        "repository": "https://github.com/ai-dynamo/aiconfigurator",
        "commit": "095f58a5",
        "licence": "Apache-2.0",
        "holder": "NVIDIA CORPORATION & AFFILIATES",
    },
    {
        "repository": "https://github.com/casys-kaist/LLMServingSim",
        "commit": "5daddb21",
        "licence": "MIT",
        "holder": "CASYS, KAIST",
    },
    {
        "repository": "https://github.com/microsoft/vidur",
        "commit": "7d475133",
        "licence": "MIT",
        "holder": "Microsoft Corporation",
    },
)
FITTED_ON = "2026-11-29"


# --------------------------------------------------------------------------------------------------
# reading


#: Columns that a table may do without.
MAY_LACK = ("kernel", "framework_version", "model")


def read_table(
    tables: Path, name: str, columns: Sequence[str], gpu: str, **equal: str
) -> pd.DataFrame | None:
    """Wanted columns of the rows of one GPU (and other equalities) in a table; None where the file is
    absent."""
    import pyarrow.parquet as pq

    path = tables / f"{name}.parquet"
    if not path.exists():
        return None
    there = pq.read_schema(path).names
    columns = [c for c in columns if c not in MAY_LACK or c in there]
    filters = [("gpu", "=", gpu), *((k, "=", v) for k, v in equal.items())]
    frame: pd.DataFrame = pq.read_table(path, columns=list(columns), filters=filters).to_pandas()
    return frame


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
_MODEL = ("hidden_size", "inter_size", "topk", "num_experts")
_HEADS = ("num_k_heads", "num_v_heads")
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
        (*_MODEL, "moe_tp_size", "moe_ep_size", "gated", "skewed", "tuned", "kernel"),
        ("num_tokens",),
        ("dtype",),
        _MODEL,
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
        (*_HEADS, "kernel"),
        ("batch_size",),
        ("variant",),
        _HEADS,
        ks.recurrence_shape,
        _recurrence_decode,
        _HEADS_TERMS,
        12,
        table="linear_attention",
    ),
    "recurrence_context": Op(
        (*_HEADS, "kernel"),
        ("batch_size", "seq_len"),
        ("variant",),
        _HEADS,
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


#: Copies of the weights that a benchmark of products cycles through, at most, to fill the L2 (see
#: :func:`kernel_model.replayed_bytes`), by framework; the others cycle a fixed number. unit: copies, kind: datasheet,
#: source: collector/trtllm/collect_gemm.py of aiconfigurator, 2026.
MOST_COPIES: Mapping[str, float] = {"trtllm": 5.0}


#: Tables of products that were timed without a CUDA graph, by framework, format and version: three to five times the graph's
#: at few rows (a floor of 61 to 340 us). They are left out; what has no other table is served from another framework's
#: (:data:`EAGER`). kind: datasheet, source: README of the tables, 2026-11 (their source withdrew those of 0.24.0).
TIMED_EAGERLY = (("vllm", "fp8_block", "0.24.0"), ("vllm", "fp8_block", "0.27.1"))

#: Newest version that is fitted of an operation on a GPU, where later tables are no better evidence for the servers that were
#: measured (vLLM up to 0.19, SGLang up to 0.5.11): with them steps of vLLM's experts on B200 are 9 % too long, and were right,
#: SGLang's products on Hopper 2 % shorter where they are too short already, and means over two versions' all-reduces fit neither;
#: Arc Pro B60's newest tables hold a tenth of its shapes.
#: kind: chosen (validate runs and validate reports with either), 2026-11.
LATEST_FITTED: Mapping[tuple[str, str], Mapping[str, str]] = {
    ("H100-SXM", "vllm"): {
        "gemm": "0.24.0",
        "attention_decode": "0.24.0",
        "attention_context": "0.24.0",
        "moe": "0.24.0",
        "allreduce": "0.24.0",
    },
    ("H100-SXM", "sglang"): {"gemm": "0.5.14", "allreduce": "0.5.14"},
    ("H200-SXM", "vllm"): {"moe": "0.24.0", "allreduce": "0.24.0"},
    ("H200-SXM", "sglang"): {"gemm": "0.5.14", "allreduce": "0.5.14"},
    ("B200-SXM", "vllm"): {"gemm": "0.24.0", "moe": "0.24.0"},
    ("B200-SXM", "sglang"): {"moe": "0.5.14"},
    ("B200-SXM", "trtllm"): {"moe": "1.3.0rc20"},
    ("Arc-Pro-B60", "vllm"): dict.fromkeys(("gemm", "attention_decode", "attention_context", "moe", "allreduce"), "0.20.0"),
    **{(gpu, "nccl"): {"allreduce": "2.29.2"} for gpu in ("H100-SXM", "H200-SXM", "B200-SXM", "GB200")},
}
#: Experts that a benchmark timed by calling a kernel on every shape, whatever the engine would have chosen: served where an
#: engine's rule or flag names them, and never by their nearness. kind: datasheet, source: README of the tables, 2026-11.
CALLED_BY_NAME = ("B200-SXM", "vllm", "vllm_fused_moe")


def fitted_versions(
    frame: pd.DataFrame, gpu: str, framework: str, op: str, formats: Sequence[str], unless: str | None = None
) -> pd.DataFrame:
    """Rows up to :data:`LATEST_FITTED`, or up to `unless` without an entry there; of a format that has none, all."""
    latest = LATEST_FITTED.get((gpu, framework), {}).get(op, unless)
    column = "library_version" if op == "allreduce" else "framework_version"
    if latest is None or column not in frame:
        return frame
    known = {name: version_of(name) <= version_of(latest) for name in frame[column].astype(str).unique()}
    kept = frame[column].astype(str).map(known).astype(bool)
    some = kept.groupby([frame[f] for f in formats], observed=True).transform("any")
    return frame[kept | ~some]


def by_release(part: pd.DataFrame, gpu: str, library: str) -> list[pd.DataFrame]:
    """All-reduces of a library: those of :data:`LATEST_FITTED`, of an engine's own kernels without an entry there those of the
    oldest version, and each later version of an engine's own by itself, its name behind the library's (``vllm@0.31.0``)."""
    kinds = ["op", "mode"]
    if library not in FRAMEWORKS or "library_version" not in part:
        return [fitted_versions(part, gpu, library, "allreduce", kinds)]
    versions = sorted((str(v) for v in part["library_version"].unique() if version_of(str(v))), key=version_of)
    first = fitted_versions(part, gpu, library, "allreduce", kinds, unless=versions[0])
    left = part.drop(first.index)
    stated = left["library_version"].astype(str)
    later = [v for v in versions if (stated == v).any()]
    return [first, *(left[stated == v].assign(library=f"{library}@{v}") for v in later)]


#: Backends that a later version of a framework gives another name.
RENAMED: Mapping[str, str] = {"vllm_flashinfer_trtllmdecode": "vllm_flashinfer_flashinfertrtllmapidecode"}


#: Models of latent attention of the widths of :func:`kernel_physics.mla_base_s`, by a part of their names in the tables.
LATENT_WIDTHS = "deepseek"


def newest(frame: pd.DataFrame, by: Sequence[str], column: str = "framework_version") -> pd.DataFrame:
    """Of rows alike in the columns `by` those of the newest version in `column`; development builds are left out."""
    if column not in frame:
        return frame
    names = frame[column].astype(str)
    known = {name: version_of(name) for name in names.unique()}
    place = names.map({name: i for i, name in enumerate(sorted(known, key=lambda n: (known[n], n)))}).astype(int)
    frame = frame.assign(place=place)[~names.str.startswith("dev")]
    top = frame.groupby(list(by), observed=True)["place"].transform("max")
    return frame[frame["place"] == top].drop(columns=["place", column])


def op_rows(op: str, tables: Path, gpu: str, framework: str, clean: bool = True) -> pd.DataFrame | None:
    """Rows of an operation for one GPU and framework, ready to become a matrix; None where there are none.

    Of several versions of the framework the newest that timed a cell (a backend's, for experts). clean : leave out rows whose
    time is not a positive number.
    """
    import pandas as pd

    o = OPS[op]
    columns = [c for c in (*o.shape, *o.load, *o.formats, "framework_version", "latency_us") if c not in ("skewed", "tuned")]
    if op == "moe":
        columns.append("distribution")
    if o.table == "sparse_attention":
        return sparse_rows(op, tables, gpu, framework, clean)
    if o.table == "linear_attention":
        return recurrent_rows(op, tables, gpu, framework, clean)
    if op == "deepep":
        columns = [c for c in columns if c not in ("phase", "latency_us")] + ["dispatch_us", "combine_us"]
    if op == "mla":
        columns.append("model")
    frame = read_table(tables, op, columns, gpu, framework=framework)
    if op == "mla" and frame is not None and "model" in frame:
        frame = frame[frame["model"].str.contains(LATENT_WIDTHS)].drop(columns="model")
    if frame is None or frame.empty:
        return None
    if op == "gemm" and "framework_version" in frame:
        for owner, fmt, version in TIMED_EAGERLY:
            out = (frame["dtype"] == fmt) & (frame["framework_version"] == version)
            frame = frame[~out] if owner == framework else frame
    frame = fitted_versions(frame, gpu, framework, op, [f for f in o.formats if f in frame])
    alike = [c for c in columns if c in frame and c not in ("framework_version", "latency_us", "dispatch_us", "combine_us")]
    frame = newest(frame, alike if op == "moe" else [c for c in alike if c != "kernel"])
    if op == "moe":
        skewed = (frame["distribution"] != "balanced").astype(float)
        frame = frame.assign(skewed=skewed, gated=frame["gated"].astype(float))
    if "kernel" in o.shape:
        frame = frame.assign(kernel=frame["kernel"].astype(str).replace(RENAMED) if "kernel" in frame else "")
    if op == "moe":
        frame = set_aside(frame, gpu, framework)
        frame = frame.assign(tuned=has_tuned_tiles(frame, gpu, framework))
    if op == "gemm" and framework in MOST_COPIES:
        frame = frame.assign(most_copies=MOST_COPIES[framework])
    if op == "deepep":
        parts = [frame.assign(phase=x, latency_us=frame[f"{x}_us"]) for x in ("dispatch", "combine")]
        frame = pd.concat(parts, ignore_index=True)
    time = frame["latency_us"].to_numpy(dtype=np.float64)
    return frame[np.isfinite(time) & (time > 0)] if clean else frame


#: Kernels of recurrences that a development build of vLLM launched from the host (floors of 430 to 1,440 us). kind: datasheet,
#: source: README of the tables, 2026-11.
LAUNCHED_BY_HOST = ("vllm", "0.1.dev19262", "causal_conv1d_fn_qkv3")
_PHASES = {"context": "context", "decode": "generation"}


def recurrent_rows(op: str, tables: Path, gpu: str, framework: str, clean: bool) -> pd.DataFrame | None:
    """Rows of a recurrence's or a convolution's kernel, as :func:`op_rows` gives them; of Mamba-2 there are convolutions only."""
    import pandas as pd

    o, phase = OPS[op], _PHASES[op.rpartition("_")[2]]
    convolution = op.startswith("convolution")
    loads = ["framework_version", "kernel", *o.load, "latency_us"]
    columns = ["variant", *_HEADS, "head_k_dim", "head_v_dim", *loads]
    frame = read_table(tables, "linear_attention", columns, gpu, framework=framework, phase=phase)
    if frame is None:
        return None
    keys, values = frame["num_k_heads"] * frame["head_k_dim"], frame["num_v_heads"] * frame["head_v_dim"]
    frame = frame.assign(channels=2 * keys + values, kernel=frame["kernel"].astype(str))
    frame = frame[frame["kernel"].str.contains("conv") == convolution]
    owner, version, kernel = LAUNCHED_BY_HOST
    if framework == owner:
        frame = frame[(frame["framework_version"] != version) | (frame["kernel"] != kernel)]
    if convolution:
        columns = ["nheads", "head_dim", "n_groups", "d_state", *loads]
        more = read_table(tables, "mamba", columns, gpu, framework=framework, phase=phase)
        if more is not None and len(more):
            channels = more["nheads"] * more["head_dim"] + 2 * more["n_groups"] * more["d_state"]
            more = more.assign(variant="mamba2", channels=channels, kernel=more["kernel"].astype(str))
            frame = pd.concat([frame, more[[c for c in more if c in frame]]], ignore_index=True)
    if "framework_version" in frame:  # a kernel that two versions timed at other heads is one of each
        apart = frame["variant"] == "kda"
        frame["kernel"] = frame["kernel"].where(~apart, frame["kernel"] + "@" + frame["framework_version"].astype(str))
    frame = newest(frame, [*o.formats, *o.shape, *o.load])
    time = frame["latency_us"].to_numpy(dtype=np.float64)
    found = frame[[*o.formats, *o.shape, *o.load, "latency_us"]]
    return (found[np.isfinite(time) & (time > 0)] if clean else found) if len(found) else None


#: Tables of sparse attention, and what the beginnings of their operations are called in :data:`kernel_physics.SPARSE_KINDS`.
SPARSE_TABLES = ("sparse_attention", "sparse_attention_dsv4", "sparse_attention_msa")
_MECHANISMS = {"dsa": "dsa", "dsv4_csa": "csa", "dsv4_hca": "hca", "msa": "msa"}
#: Rows of SGLang's prompts through layers with an indexer were bound by the host up to so long; TensorRT-LLM's of prompts of
#: MiniMax-M3 on these GPUs were disturbed. unit: us. kind: datasheet, source: README of the tables, 2026-11.
HOST_BOUND_US = 2000.0
DISTURBED_MSA = ("B200-SXM", "B300-SXM")


def sparse_rows(op: str, tables: Path, gpu: str, framework: str, clean: bool) -> pd.DataFrame | None:
    """Rows of whole layers of sparse attention, as :func:`op_rows` gives them."""
    import pandas as pd

    o, context = OPS[op], op.endswith("context")
    wanted = ["op", "family", "gemm_dtype", "kv_cache_dtype", "num_heads", "batch_size", "new_tokens", "past_len"]
    parts = []
    for table in SPARSE_TABLES:
        frame = read_table(tables, table, [*wanted, "framework_version", "latency_us"], gpu, framework=framework)
        if frame is None or frame.empty:
            continue
        name = frame["op"].astype(str)
        reused = name.str.endswith("_skip_indexer")
        stem = name.str.removesuffix("_skip_indexer").str.rsplit("_", n=1).str
        mechanism = stem[0].map(_MECHANISMS).astype(object).where(~reused, "dsa_reused")
        kind = mechanism + "-" + frame["family"].astype(str)
        keep = (stem[1] == ("context" if context else "generation")) & kind.isin(list(kp.SPARSE_KINDS))
        if context and framework == "sglang":
            keep &= ~kind.str.startswith("dsa-") | (frame["latency_us"] > HOST_BOUND_US)
        if context and framework == "trtllm" and gpu in DISTURBED_MSA:
            keep &= ~kind.str.startswith("msa")
        parts.append(frame.assign(kind=kind)[keep])
    if not parts or not sum(map(len, parts)):
        return None
    frame = newest(pd.concat(parts, ignore_index=True), [*o.formats, *o.shape, *o.load])
    time = frame["latency_us"].to_numpy(dtype=np.float64)
    found = frame[[*o.formats, *o.shape, *o.load, "latency_us"]]
    return found[np.isfinite(time) & (time > 0)] if clean else found


#: Expert models whose expert-parallel rows SGLang's benchmark timed with all tokens of the group on the rank: Mixtral's
#: two and 2816/704/8/128. Their time does not fall with the ranks (1.0 at 2, where that of others is 0.5 to 0.6), on
#: H100, H200, B200, L40S and RTX PRO 6000 alike. On A100 (an older version of the tables) so are all models.
#: kind: fitted (read off the tables), 2026-11.
ALL_TOKENS = frozenset({(4096, 14336, 2, 8), (6144, 16384, 2, 8), (2816, 704, 8, 128)})
ALL_TOKENS_GPUS = frozenset({"A100-SXM-80GB"})

#: Expert models routed by limited groups (DeepSeek-V3: 4 of 8; its config.json, 2024). vLLM's and SGLang's benchmark deals
#: rows out evenly, then limits the groups: half the experts get no row, and the timed rank of 64 takes 15 times its
#: share. TensorRT-LLM's does not limit them.
GROUP_LIMITED = frozenset({(7168, 2048, 8, 256)})


def set_aside(frame: pd.DataFrame, gpu: str, framework: str) -> pd.DataFrame:
    """Expert rows that count otherwise than a served layer, as backends of their own: name marked, ``aside`` the flag.

    See :data:`kernel_model.SET_ASIDE`, :data:`ALL_TOKENS` and :data:`GROUP_LIMITED`.
    """
    model = np.array([*zip(*(frame[c].astype(int) for c in _MODEL), strict=True)])
    kernel, aside = frame["kernel"].astype(str), np.full(len(frame), "", dtype=object)

    def among(models: frozenset[tuple[int, ...]]) -> NDArray[np.bool_]:
        found = [(model == np.array(m)).all(axis=1) for m in models]
        return np.asarray(np.any(found, axis=0), dtype=bool)

    if (gpu, framework) == CALLED_BY_NAME[:2]:
        named = (kernel == CALLED_BY_NAME[2]).to_numpy()
        kernel, aside[named] = kernel.where(~named, "vllm_triton_fused_moe"), "by_name"
    if framework == "sglang":
        own = kernel.str.contains("triton$|marlin").to_numpy() & (frame["moe_ep_size"].to_numpy() > 1)
        aside[own & (among(ALL_TOKENS) | (gpu in ALL_TOKENS_GPUS))] = "all_tokens"
    if framework in ("sglang", "vllm"):
        dealt = frame["skewed"].to_numpy() == 0
        aside[dealt & among(GROUP_LIMITED) & (aside == "")] = "grouped_deal"
    ending = [ks.SET_ASIDE.get(flag, "") for flag in aside]
    return frame.assign(kernel=[k + e for k, e in zip(kernel, ending, strict=True)], aside=aside)


#: What the names of backends hold that look up their tiles by the experts of a rank and their width.
TRITON = "triton|^vllm_fused_moe"


@cache
def tuned_tiles(gpu: str, framework: str, fmt: str) -> dict[str, list[int]]:
    """Experts of a rank (as text) -> widths for which the framework ships tuned tiles (``tuned_tiles.yaml``)."""
    import yaml

    known = yaml.safe_load(Path(__file__).with_name("tuned_tiles.yaml").read_text(encoding="utf-8"))
    found = known.get(framework, {}).get(DEVICES[gpu], {}).get(fmt, {})
    return {str(experts): widths for experts, widths in found.items()}


def has_tuned_tiles(frame: pd.DataFrame, gpu: str, framework: str) -> Array:
    """1 for rows whose backend is Triton's and has tuned tiles for the rank's experts, else 0."""
    experts = (frame["num_experts"] // frame["moe_ep_size"]).astype(int).astype(str)
    width = (frame["inter_size"] // frame["moe_tp_size"]).astype(int)
    columns = (frame["dtype"].astype(str), frame["kernel"].astype(str).str.contains(TRITON), experts, width)
    rows = zip(*columns, strict=True)
    return np.array([float(own and w in tuned_tiles(gpu, framework, fmt).get(e, ())) for fmt, own, e, w in rows])


def compute_floor_s(op: str, formats: Sequence[str], c: Mapping[str, Array], peaks: kp.DevicePeaks) -> Array:
    """Time of the arithmetic alone at the dense peak [s]; zero for kernels bound by memory."""
    if op == "gemm":
        return 2.0 * c["m"] * c["n"] * c["k"] / peaks.rate(formats[0])
    if op == "attention_context":
        pairs = kp.causal_pairs(c["seq_len"], np.zeros_like(c["seq_len"]), c["window_size"])
        return 4.0 * c["batch_size"] * c["num_heads"] * c["head_dim"] * pairs / peaks.rate(formats[0])
    if op == "attention_decode":
        span = np.where(
            c["window_size"] > 0, np.minimum(c["context_len"], c["window_size"]), c["context_len"]
        )
        return 4.0 * c["batch_size"] * c["num_heads"] * c["head_dim"] * span / peaks.rate("fp8")
    return np.zeros(len(next(iter(c.values()))))


#: What a fit takes for a wrong unit or an impossible measurement: this many times faster or slower than the datasheet
#: physics (host-bound tables are up to a few hundred times slower), or than the arithmetic peak. kind: assumed, 2026-11
#: (no row of the tables fitted here is outside).
FASTEST, SLOWEST, ABOVE_PEAK = 100.0, 1000.0, 1.5


def screened(
    op: str, formats: Sequence[str], part: pd.DataFrame, peaks: kp.DevicePeaks
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Rows that can be fitted, and how many were left out by reason."""
    o = OPS[op]
    time_s = part["latency_us"].to_numpy(dtype=np.float64) * 1e-6
    plain = part.assign(kernel=0.0) if "kernel" in o.shape else part
    columns = columns_of(plain, o)
    usable = np.isfinite(time_s) & (time_s > 0)
    base = o.base(kp.DEFAULT_PARAMETERS[op], peaks, formats, columns)
    unit = usable & ((time_s < base / FASTEST) | (time_s > base * SLOWEST))
    above = usable & ~unit & (time_s * ABOVE_PEAK < compute_floor_s(op, formats, columns, peaks))
    reasons = {
        "time missing, zero, negative or not finite": ~usable,
        "far from any kernel of this shape: wrong unit of latency_us": unit,
        "faster than the arithmetic peak of the device (above the roofline)": above,
    }
    return part[usable & ~unit & ~above], {why: int(m.sum()) for why, m in reasons.items() if m.any()}


def kernel_names(frame: pd.DataFrame) -> list[str]:
    """Names of the backends in a part of a table, in the order of their numbers."""
    return sorted(frame["kernel"].astype(str).unique())


def numbered(frame: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The table with each backend as its place in `names`; -1 for others."""
    place = {name: float(i) for i, name in enumerate(names)}
    return frame.assign(kernel=frame["kernel"].astype(str).map(place).fillna(-1.0).astype(float))


def slices(frame: pd.DataFrame, o: Op) -> Iterator[tuple[tuple[str, ...], pd.DataFrame]]:
    """Rows per number format, sorted by name."""
    for key, part in frame.groupby(list(o.formats), observed=True, sort=True):
        yield tuple(str(k) for k in (key if isinstance(key, tuple) else (key,))), part


# --------------------------------------------------------------------------------------------------
# the base


#: What efficiencies may be, where the tables alone do not hold them: expert weights are read at 0.35 to 0.95 of
#: the memory bandwidth (measured products: 0.58-0.97), tensor cores reach 0.1 to 0.9 of their peak, an expert adds
#: at most 0.5 us. kind: assumed, 2026-11.
LEAST: Mapping[str, Mapping[str, float]] = {
    "moe": {
        "memory_efficiency": 0.35,
        "compute_efficiency": 0.1,
        "activation_efficiency": 0.1,
        "routing_efficiency": 0.05,
        "unit_s": 1e-9,
        "depth_s": 1e-12,
        "untuned_ratio": 1.0,
        "unaligned_ratio": 1.0,
    }
}
MOST: Mapping[str, Mapping[str, float]] = {
    "moe": {
        "memory_efficiency": 0.95,
        "compute_efficiency": 0.9,
        "activation_efficiency": 1.0,
        "routing_efficiency": 20.0,
        "unit_s": 5e-7,
        "depth_s": 5e-9,
        "untuned_ratio": 4.0,
        "unaligned_ratio": 4.0,
    },
    "recurrence_context": {"memory_efficiency": 1.0, "compute_efficiency": 1.0},
}


#: Parameters that only tables tell: where a fit starts. An experts' ratio is fitted where a table has layers of either kind.
#: kind: assumed, 2026-11.
TOLD_BY_TABLES: Mapping[str, Mapping[str, float]] = {
    "moe": {"depth_s": 3e-10, "untuned_ratio": 1.05, "unaligned_ratio": 1.05}
}


def _told(columns: Mapping[str, Array]) -> set[str]:
    """Those of :data:`TOLD_BY_TABLES` that these rows tell."""
    unaligned = (columns["inter_size"] / columns["moe_tp_size"]) % kp.ALIGNED_WIDTH > 0
    kinds = {"untuned_ratio": columns["tuned"], "unaligned_ratio": unaligned}
    return {"depth_s", *(name for name, kind in kinds.items() if 0.0 < kind.mean() < 1.0)}


#: Operations whose tables have whole series far from the rest (TensorRT-LLM's tuner on H100 leaves one in ten expert
#: shapes with a kernel two to five times too slow): a loss that such rows cannot bend. kind: assumed, 2026-11.
OUTLYING = ("moe",)


def fit_base(
    op: str,
    formats: Sequence[str],
    peaks: kp.DevicePeaks,
    columns: Mapping[str, Array],
    time_s: Array,
    kin: Mapping[str, float] | None = None,
    tie_strength: float = 0.0,
    tied_latency: bool = False,
    given: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Robust log-space least squares of the base parameters, rounded to six digits.

    given : parameters that are known and not fitted.

    kin : parameters of the bfloat16 group of the same device and framework, to which all but the latency are
    tied, each by a penalty of ``tie_strength**2`` a row and unit of log difference; tied_latency : the latency too.
    """
    from scipy.optimize import least_squares

    o, start = OPS[op], {**kp.DEFAULT_PARAMETERS[op], **TOLD_BY_TABLES.get(op, {})}
    names = [n for n in kp.DEFAULT_PARAMETERS[op] if n != "gemm_efficiency" or formats[0] == "module"]
    names += sorted(_told(columns)) if op in TOLD_BY_TABLES else []
    known = dict(given or {})
    step = max(1, len(time_s) // 4000)
    few = {k: v[::step] for k, v in columns.items()}
    target = np.log(time_s[::step])
    floor = float(np.quantile(time_s, 0.005))

    def gap(x: Array) -> Array:
        p = {**known, **dict(zip(names, np.exp(x), strict=True))}
        return np.asarray(np.log(o.base(p, peaks, formats, few)) - target, dtype=np.float64)

    most = {"latency_s": 2.0 * floor, "unit_s": 1e-5, "cache_gain": 6.0, "cache_share": 3.0}
    least = {"latency_s": 0.3 * floor, "unit_s": 1e-12, "cache_gain": 1.0, "cache_share": 0.05}
    most["cache_sharpness"], least["cache_sharpness"] = 40.0, 2.0
    most, least = {**most, **MOST.get(op, {})}, {**least, **LEAST.get(op, {})}
    first = np.log([floor if n == "latency_s" else start[n] for n in names])
    high = np.log([most.get(n, 1.5) for n in names])
    low = np.log([least.get(n, 0.01) for n in names])
    loose = () if tied_latency else ("latency_s",)
    ties = np.array([n in kin and n not in loose for n in names]) if kin else np.zeros(len(names), bool)
    if kin:
        first = np.array([np.log(kin[n]) if tie else x for n, x, tie in zip(names, first, ties, strict=True)])
    anchor, pull = first.copy(), tie_strength * np.sqrt(len(target))

    def tied_gap(x: Array) -> Array:
        return np.asarray(np.concatenate([gap(x), pull * (x - anchor)[ties]]), dtype=np.float64)

    loss = "cauchy" if op in OUTLYING else "soft_l1"
    fit = least_squares(
        tied_gap, np.clip(first, low + 1e-6, high - 1e-6), bounds=(low, high), loss=loss, f_scale=0.1
    )
    return {**known, **{n: float(f"{v:.6g}") for n, v in zip(names, np.exp(fit.x), strict=True)}}


# --------------------------------------------------------------------------------------------------
# the residual


@dataclass(frozen=True)
class Matrix:
    """Shapes by loads: features (S, d), group labels (S,), log residual (S, C) with NaN, axes of the load
    grid."""

    features: Array
    groups: NDArray[np.intp]
    values: Array
    axes: tuple[Array, ...]


def fill(values: Array, sizes: tuple[int, ...]) -> Array:
    """Replace each missing cell of every row by that row's nearest present cell on the load grid."""
    from scipy.ndimage import distance_transform_edt

    out = values.copy()
    for r in np.flatnonzero(np.isnan(values).any(axis=1)):
        grid = values[r].reshape(sizes)
        near = distance_transform_edt(np.isnan(grid), return_distances=False, return_indices=True)
        out[r] = grid[tuple(near)].ravel()
    return out


def leave_groups_out(inverse: Array, z: Array, groups: NDArray[np.intp]) -> Array:
    """Residuals of predicting each group from all others, closed form: ``(K^-1_gg)^-1 (K^-1 z)_g``."""
    alpha = inverse @ z
    out = np.empty_like(z)
    for g in np.unique(groups):
        at = np.flatnonzero(groups == g)
        if len(at) == 1:
            out[at] = alpha[at] / inverse[at[0], at[0]]
        else:
            out[at] = np.linalg.solve(inverse[np.ix_(at, at)], alpha[at])
    return out


def search_terms(
    x: Array, z: Array, present: NDArray[np.bool_], groups: NDArray[np.intp], terms: Terms
) -> tuple[Terms, float, float]:
    """Covariance, noise and error with the least leave-one-group-out error, by descent one number at a time.

    Lengths move by factors of two, amplitudes and noise by three, for at most three rounds.
    """
    few = np.arange(len(x)) % max(1, -(-len(x) // 450)) == 0  # enough shapes to choose lengths by
    columns = np.arange(z.shape[1]) % max(1, z.shape[1] // 48) == 0
    x, z, present, groups = x[few], z[np.ix_(few, columns)], present[np.ix_(few, columns)], groups[few]
    gap = x[:, None, :] - x[None, :, :]
    square = np.ascontiguousarray((gap * gap).transpose(2, 0, 1))
    varied = square.max(axis=(1, 2)) > 0.0

    def error_of(trial: Terms, noise: float) -> float:
        cov = noise * np.eye(len(x))
        for amplitude, lengths in trial:
            r2 = sum(
                (square[i] * (3.0 / (s * s)) for i, s in enumerate(lengths) if s > 0),
                start=np.zeros_like(cov),
            )
            r = np.sqrt(r2)
            cov += amplitude * (1.0 + r) * np.exp(-r)
        inverse: Array = np.asarray(np.linalg.inv(cov), dtype=np.float64)
        miss = leave_groups_out(inverse, z, groups)
        return float(np.mean(np.abs(np.expm1(-np.clip(miss[present], -3.0, 3.0)))))

    noise = 0.01
    best = error_of(terms, noise)
    for _ in range(3):
        before = best
        trials = [("noise", 0, 0)]
        trials += [("amplitude", a, 0) for a in range(1, len(terms))]
        trials += [
            ("length", a, i)
            for a, (_, ls) in enumerate(terms)
            for i, s in enumerate(ls)
            if s > SAME and varied[i]
        ]
        for what, a, i in trials:
            for factor in (2.0, 0.5) if what == "length" else (3.0, 1.0 / 3.0):
                while True:
                    trial, other = terms, noise
                    if what == "noise":
                        other = noise * factor
                    else:
                        amplitude, lengths = terms[a]
                        if what == "amplitude":
                            amplitude *= factor
                        else:
                            lengths = (*lengths[:i], lengths[i] * factor, *lengths[i + 1 :])
                        trial = (*terms[:a], (amplitude, lengths), *terms[a + 1 :])
                    spans = [s for _, ls in trial for s in ls if s > SAME]
                    scales = [other, *(amp for amp, _ in trial)]
                    if not (
                        min(spans) > 0.2 and max(spans) < 60.0 and 2e-4 < min(scales) <= max(scales) < 10.0
                    ):
                        break
                    error = error_of(trial, other)
                    if error > best - 1e-5:
                        break
                    best, terms, noise = error, trial, other
        if best > before - 2e-4:
            break
    return terms, noise, best


#: Huber's bound on what a shape may differ from what all others say of it, in robust deviations of its load, and how
#: often it is applied (P. J. Huber, Robust Statistics, 1981). kind: fitted (leave-one-model-out error of 9 tables of
#: experts: 10.7 % without, 9.5 % at 1.5 and 6 rounds, 9.1 % here), 2026-11.
HUBER, HUBER_ROUNDS = 1.0, 15


def drawn_in(inverse: Array, z: Array) -> Array:
    """Residuals with those that the other shapes contradict drawn in (Huber's pseudo-values).

    inverse : of the covariance with noise, which gives each shape's value left out in closed form,
    ``z_i - (K^-1 z)_i / (K^-1)_ii``. A difference beyond :data:`HUBER` robust deviations is cut to that.
    """
    out = z
    for _ in range(HUBER_ROUNDS):
        expected = out - (inverse @ out) / np.diag(inverse)[:, None]
        most = HUBER * (1.4826 * np.median(np.abs(z - expected), axis=0) + 0.01)
        out = expected + np.clip(z - expected, -most, most)
    return out


def fit_surface(
    matrix: Matrix,
    start: Terms,
    rank: int,
    noise: float | None = None,
    few: bool = False,
    reach: float | None = None,
) -> tuple[dict[str, NDArray[Any]], float]:
    """Arrays of a residual surface and its leave-one-group-out error [%].

    noise : given where `start` and this noise are taken as they are, and outlying residuals drawn in
    (:func:`drawn_in`). few : there are too few groups for a mean, which is drawn to zero by ``groups / (groups +
    2)``. reach : see :meth:`kernel_model.Surface.rows`.
    """
    x, present = matrix.features, ~np.isnan(matrix.values)
    full = fill(matrix.values, tuple(len(a) for a in matrix.axes))
    mean = np.nanmedian(matrix.values, axis=0)
    if few:
        count = len(np.unique(matrix.groups))
        mean = mean * (count / (count + 2.0))
    measured = z = full - mean
    fixed, terms = noise is not None, start
    if noise is None:
        terms, noise, _ = search_terms(x, z, present, matrix.groups, start)
    amplitude = np.array([a for a, _ in terms])
    inverse_length = np.array([[1.0 / s if s else 0.0 for s in lengths] for _, lengths in terms])
    cov = ks.shape_kernel(x, x, amplitude, inverse_length)
    inverse: Array = np.asarray(np.linalg.inv(cov + noise * np.eye(len(x))), dtype=np.float64)
    if fixed:
        z = drawn_in(inverse, z)
    miss = leave_groups_out(inverse, z, matrix.groups)
    off = (measured - z + miss)[present]
    error = float(np.mean(np.abs(np.expm1(-np.clip(off, -3.0, 3.0)))))
    limit = 6.0 * 1.4826 * np.median(np.abs(miss), axis=0) + 0.01
    z = z - miss + np.clip(miss, -limit, limit)
    basis = np.eye(z.shape[1])
    if rank < z.shape[1]:
        _, _, vt = np.linalg.svd(z, full_matrices=False)
        vt = vt[:rank]
        basis = vt * np.sign(np.take_along_axis(vt, np.argmax(np.abs(vt), axis=1)[:, None], axis=1))
        z = z @ basis.T
    weights = inverse @ z
    scale = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 32767.0
    arrays: dict[str, NDArray[Any]] = {
        "features": x.astype(np.float32),
        "amplitude": amplitude.astype(np.float32),
        "inverse_length": inverse_length.astype(np.float32),
        "scale": scale.astype(np.float32),
        "weights": np.rint(weights / scale).astype(np.int16),
        "mean": mean.astype(np.float32),
        **{f"axis{i}": a.astype(np.float32) for i, a in enumerate(matrix.axes)},
    }
    if basis.shape[0] < basis.shape[1]:
        arrays["basis"] = basis.astype(np.float32)
    if reach is not None:
        arrays["reach"] = np.array([reach], dtype=np.float32)
    return arrays, 100.0 * error


def unspiked(values: Array) -> Array:
    """Residuals with isolated spikes over the load taken out (NaN), where a table has many.

    A spike lies above the median of the five loads around it, both relative to their columns' medians (what all
    shapes share is no spike). Tables with fewer than SPIKE_SHARE of them are left alone: there the peaks are choices
    of tiles.
    """
    full = fill(values, (values.shape[1],))
    above = _above_neighbours(full - np.median(full, axis=0))
    if np.mean(above > SPIKE_LOG) < SPIKE_SHARE:
        return values
    return np.where(above > SPIKE_LOG, np.nan, values)


def _above_neighbours(z: Array) -> Array:
    """What each value of a row lies above the median of the five around it."""
    around = np.pad(z, ((0, 0), (2, 2)), mode="edge")
    return np.asarray(z - np.median(np.stack([around[:, i : i + z.shape[1]] for i in range(5)]), axis=0))


def undisturbed(values: Array, sizes: tuple[int, ...]) -> Array:
    """Residuals over two loads whose cells far above their neighbours along the second, disturbed measurements, take their level.

    Kernels of latent attention have no tiles that would explain them (H200 under TensorRT-LLM: 781 us at 128 tokens, 17 and 20
    beside it).
    """
    rows = fill(values, sizes).reshape(-1, sizes[1])
    above = _above_neighbours(rows).reshape(values.shape)
    return np.where(above > DISTURBED_LOG, values - above, values)


def columns_of(frame: pd.DataFrame, o: Op) -> dict[str, Array]:
    """Shape and load columns as float arrays."""
    return {c: frame[c].to_numpy(dtype=np.float64) for c in (*o.shape, *o.load)}


def regrid(
    shape_id: NDArray[np.intp], load: Array, residual: Array, shapes: int
) -> tuple[Array, tuple[Array, ...]]:
    """Residuals (shapes, C) interpolated at half octaves of the load, NaN outside each shape's loads, and the
    axis."""
    grid = 0.5 * np.arange(np.floor(2.0 * load.min()), np.ceil(2.0 * load.max()) + 1.0)
    order = np.lexsort((load, shape_id))
    first = np.searchsorted(shape_id[order], np.arange(shapes + 1))
    values = np.full((shapes, len(grid)), np.nan)
    for s in range(shapes):
        at = order[first[s] : first[s + 1]]
        x, place = np.unique(load[at], return_inverse=True)
        mean = np.bincount(place, residual[at]) / np.bincount(place)
        inside = (grid > x[0] - 0.26) & (grid < x[-1] + 0.26)
        values[s, inside] = np.interp(grid[inside], x, mean)
    used = ~np.isnan(values).all(axis=0)
    return values[:, used], (grid[used],)


def to_matrix(frame: pd.DataFrame, o: Op, residual: Array) -> Matrix:
    """Arrange residuals as shapes by loads; a cell measured twice keeps the mean; loads with few shapes are
    left out."""
    import pandas as pd

    shape_id, shapes = pd.MultiIndex.from_frame(frame[list(o.shape)]).factorize(sort=True)
    group_id, _ = pd.MultiIndex.from_tuples(
        [tuple(s[o.shape.index(g)] for g in o.group) for s in shapes]
    ).factorize()
    features = np.array([o.features(*(float(v) for v in s)) for s in shapes])
    if o.coordinate is not None:
        load = o.coordinate(columns_of(frame, o))
        return Matrix(features, group_id, *regrid(np.asarray(shape_id), load, residual, len(shapes)))
    raw = [frame[c].to_numpy(dtype=np.float64) for c in o.load]
    levels = [np.unique(r) for r in raw]
    place = [np.searchsorted(lv, r) for lv, r in zip(levels, raw, strict=True)]
    cell = place[0] if len(place) == 1 else place[0] * len(levels[1]) + place[1]
    count = int(np.prod([len(lv) for lv in levels]))
    total, hits = np.zeros((len(shapes), count)), np.zeros((len(shapes), count))
    np.add.at(total, (shape_id, cell), residual)
    np.add.at(hits, (shape_id, cell), 1.0)
    values = np.where(hits > 0, total / np.maximum(hits, 1.0), np.nan)
    empty = ~(hits > 0).any(axis=0)
    if empty.any():  # no shape has this load: an interpolated column
        values[:, empty] = fill(values, tuple(len(lv) for lv in levels))[:, empty]
    offset = [0.0] * (len(levels) - 1) + [o.offset]
    axes = tuple(np.log2(lv + f) for lv, f in zip(levels, offset, strict=True))
    return Matrix(features, group_id, values, axes)


#: Groups (models) below which a format of an operation with :data:`REACH` leans on its kin, bfloat16 of the same device
#: and framework, and the strength of the tie. kind: assumed, 2026-11.
FEW_GROUPS, TIE = 4, 0.1

#: A residual this far above its neighbours in load is a disturbed measurement, in tables where at least this share
#: of cells is. unit: log seconds; 1. kind: fitted (held-out error of products on B200, L40S and H100 with and
#: without), 2026-11.
SPIKE_LOG, SPIKE_SHARE = 0.2, 0.03
DESPIKED = ("gemm",)

#: The same in tables over two loads that are taken apart by :func:`undisturbed`. unit: log seconds, kind: assumed, 2026-11 (a
#: doubling of tokens moves no undisturbed cell of these tables by as much against its neighbours).
DISTURBED_LOG = 0.5

#: Distance in features over which the residual of an operation fades. unit: octaves of the shape, kind: assumed,
#: 2026-11 (about the distance between the models of the tables; the held-out error is flat from 3 to 8).
REACH: Mapping[str, float] = {"moe": 3.0}


def kin_of(p: Mapping[str, Any]) -> Mapping[str, float]:
    """The parameters that formats with few models lean on."""
    shared: Mapping[str, float] = p.get("all", p)
    return shared


def is_few(op: str, frame: pd.DataFrame) -> bool:
    """Whether a format has too few groups to stand alone."""
    return op in REACH and len(frame[list(OPS[op].group)].drop_duplicates()) < FEW_GROUPS


def fit_parameters(
    op: str,
    formats: Sequence[str],
    frame: pd.DataFrame,
    peaks: kp.DevicePeaks,
    kin: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Base parameters of one format of one operation, as :func:`fit_group` returns them."""
    o = OPS[op]
    if "kernel" in o.shape and not np.issubdtype(frame["kernel"].to_numpy().dtype, np.number):
        frame = numbered(frame, kernel_names(frame))
    columns = columns_of(frame, o)
    time_s = frame["latency_us"].to_numpy(dtype=np.float64) * 1e-6
    kin = kin if is_few(op, frame) else None
    if op != "moe":
        given = {"most_copies": float(frame["most_copies"].iloc[0])} if "most_copies" in frame else None
        return fit_base(op, formats, peaks, columns, time_s, kin, TIE, given=given)

    def of(
        at: NDArray[np.bool_], tie: Mapping[str, float] | None, latency: bool, flag: str
    ) -> dict[str, float]:
        part = {n: v[at] for n, v in columns.items()}
        given = {flag: 1.0} if flag else None
        return fit_base(op, formats, peaks, part, time_s[at], tie, TIE, latency, given)

    aside = frame["aside"].to_numpy(dtype=object) if "aside" in frame else np.full(len(frame), "")
    usual = aside == ""
    p = of(usual if usual.any() else ~usual, kin, False, "")
    codes = np.unique(columns["kernel"])
    if len(codes) == 1 and usual.all():
        return p
    parts = {int(code): columns["kernel"] == code for code in codes}
    return {"all": p, "kernels": {code: of(at, p, True, str(aside[at][0])) for code, at in parts.items()}}


def fit_group(
    op: str,
    formats: Sequence[str],
    frame: pd.DataFrame,
    peaks: kp.DevicePeaks,
    kin: Mapping[str, float] | None = None,
) -> tuple[dict[str, Array], dict[str, Any], float]:
    """Surface arrays, base parameters and leave-one-group-out error [%] of one format of one operation.

    Expert tables with several backends (names, or their numbers) give ``{"all": parameters, "kernels":
    {number: parameters}}``. kin : see :data:`FEW_GROUPS`.
    """
    o = OPS[op]
    if "kernel" in o.shape and not np.issubdtype(frame["kernel"].to_numpy().dtype, np.number):
        frame = numbered(frame, kernel_names(frame))
    columns = columns_of(frame, o)
    time_s = frame["latency_us"].to_numpy(dtype=np.float64) * 1e-6
    p = fit_parameters(op, formats, frame, peaks, kin)
    matrix = to_matrix(frame, o, np.log(time_s / o.base(p, peaks, formats, columns)))
    if op in DESPIKED:
        matrix = replace(matrix, values=unspiked(matrix.values))
    if op == "mla":
        matrix = replace(matrix, values=undisturbed(matrix.values, tuple(len(a) for a in matrix.axes)))
    arrays, error = fit_surface(matrix, o.terms, o.rank, o.noise, is_few(op, frame), REACH.get(op))
    return arrays, p, error


def predict_rows(
    op: str,
    surface: ks.Surface,
    p: Mapping[str, Any],
    formats: Sequence[str],
    frame: pd.DataFrame,
    peaks: kp.DevicePeaks,
) -> Array:
    """Times [s] of table rows from a fitted group (bench condition)."""
    import pandas as pd

    o = OPS[op]
    columns = columns_of(frame, o)
    shape_id, shapes = pd.MultiIndex.from_frame(frame[list(o.shape)]).factorize()
    rows = surface.rows(np.array([o.features(*(float(v) for v in s)) for s in shapes]))
    load = [np.log2(columns[c]) for c in o.load[:-1]] + [np.log2(columns[o.load[-1]] + o.offset)]
    if o.coordinate is not None:
        load = [o.coordinate(columns)]
    i, u = ks.locate(surface.axes[0], load[0])
    if len(load) == 1:
        log = rows[shape_id, i] * (1 - u) + rows[shape_id, i + 1] * u
    else:
        j, v = ks.locate(surface.axes[1], load[1])
        n = len(surface.axes[1])
        low = rows[shape_id, i * n + j] * (1 - v) + rows[shape_id, i * n + j + 1] * v
        high = rows[shape_id, i * n + n + j] * (1 - v) + rows[shape_id, i * n + n + j + 1] * v
        log = low * (1 - u) + high * u
    return np.asarray(o.base(p, peaks, formats, columns) * np.exp(log), dtype=np.float64)


def kept_out(frame: pd.DataFrame, o: Op, fold: int = 0, folds: int = 6) -> NDArray[np.bool_]:
    """Rows of the groups in one fold; the fold of a group is a checksum of its name, the same for every
    device."""
    import pandas as pd

    code, names = pd.MultiIndex.from_frame(frame[list(o.group)]).factorize()
    place = np.array([zlib.crc32("/".join(str(int(v)) for v in g).encode()) % folds for g in names])
    if not (place == fold).any():
        place = np.arange(len(names)) % folds
    return np.asarray(place[code] == fold)


def held_out_error(
    op: str,
    formats: Sequence[str],
    frame: pd.DataFrame,
    peaks: kp.DevicePeaks,
    fold: int = 0,
    kin: Mapping[str, float] | None = None,
) -> float | None:
    """Mean absolute percentage error on the groups of one fold after a fit to the others; None with too few
    groups. Rows of a backend that none of the others runs are left aside where there are more."""
    out = kept_out(frame, OPS[op], fold)
    if out.all() or not out.any():
        return None
    if "kernel" in OPS[op].shape:
        frame = numbered(frame, kernel_names(frame))
        known = out & np.isin(frame["kernel"], frame["kernel"][~out].unique())
        learnt, out = frame[~out], known if known.any() else out
    else:
        learnt = frame[~out]
    arrays, p, _ = fit_group(op, formats, learnt, peaks, kin)
    truth = frame["latency_us"].to_numpy(dtype=np.float64)[out] * 1e-6
    predicted = predict_rows(op, ks.surface_of(arrays), p, formats, frame[out], peaks)
    return float(100.0 * np.mean(np.abs(predicted / truth - 1.0)))


# --------------------------------------------------------------------------------------------------
# curves over message size


def without_peaks(log2_bytes: Array, log_s: Array) -> Array:
    """Log times of one curve without isolated peaks: a larger message never costs less.

    A message dearer by more than :data:`PEAK_LOG` than both its neighbours, where these are an octave or more
    apart from it, was disturbed (70 us between two of 30) and takes their mean.
    """
    out = log_s.copy()
    order = np.argsort(log2_bytes, kind="stable")
    x, y = log2_bytes[order], log_s[order]
    for i in range(len(y) - 1):
        sides = [j for j in (i - 1, i + 1) if j >= 0]
        if min(abs(x[j] - x[i]) for j in sides) > 0.9 and y[i] > max(y[j] for j in sides) + PEAK_LOG:
            out[order[i]] = np.mean([y[j] for j in sides])
    return out


#: A peak in a curve over message size. unit: log seconds, kind: fitted (error at left-out sizes with and without:
#: 5.9 and 4.6 % mean over 30 all-reduce groups), 2026-11.
PEAK_LOG = 0.1


def straight(log2_at: Array, log2_bytes: Array, log_s: Array) -> Array:
    """Log times between the measured messages of one curve, on straight lines in bytes; NaN outside them.

    One algorithm takes ``alpha + bytes beta``: between two messages it is straight in bytes, not in their logarithm.
    """
    order = np.argsort(log2_bytes, kind="stable")
    x = log2_bytes[order]
    seconds = np.interp(np.exp2(log2_at), np.exp2(x), np.exp(log_s[order]))
    return np.where((log2_at >= x[0]) & (log2_at <= x[-1]), np.log(seconds), np.nan)


def fit_curves(
    gpus: Array, kind: Array, size: Array, time_s: Array
) -> tuple[dict[tuple[float, float], Array], Array, float]:
    """Curves of time over message size at octave knots, for every (gpus, kind) present.

    Between measured sizes the mean, in the logarithm, of two readings: straight lines in bytes (:func:`straight`), and
    ``alpha + size beta`` over all sizes with a residual that is a Gaussian process over (log2 bytes, log2 gpus,
    kind), whose lengths are chosen by the leave-one-size-out error of the mean. The first keeps to the neighbours
    where the algorithm changes, the second takes the shape of other numbers of GPUs and smooths noise. Returns log
    seconds at the knots per pair, the knots (log2 bytes), error [%].
    """
    from scipy.optimize import least_squares

    x = np.c_[np.log2(size), 2.0 * np.log2(gpus), kind]
    bases = {}
    z = np.empty(len(x))
    pairs = sorted(set(zip(gpus.tolist(), kind.tolist(), strict=True)))
    measured, time_s = time_s, time_s.copy()
    for pair in pairs:
        at = (gpus == pair[0]) & (kind == pair[1])
        time_s[at] = np.exp(without_peaks(x[at, 0], np.log(time_s[at])))
    peaks = np.log(measured / time_s)
    for pair in pairs:
        at = (gpus == pair[0]) & (kind == pair[1])
        start = np.log([time_s[at].min(), time_s[at].max() / size[at].max()])

        def gap(v: Array, at: NDArray[np.bool_] = at) -> Array:
            return np.asarray(
                np.log(np.exp(v[0]) + np.exp(v[1]) * size[at]) - np.log(time_s[at]), dtype=np.float64
            )

        bases[pair] = least_squares(gap, start, loss="soft_l1", f_scale=0.1).x
        z[at] = -gap(bases[pair])
    octave = np.unique(np.round(x[:, 0])).astype(int)
    group = np.searchsorted(octave, np.round(x[:, 0]).astype(int))
    inner = (group > 0) & (group < len(octave) - 1)  # the ends would be extrapolated
    if not inner.any():
        inner[:] = True
    log_s = np.log(time_s)
    lines = np.full(len(x), np.nan)
    for pair in pairs:
        own = (gpus == pair[0]) & (kind == pair[1])
        for left in np.unique(group[own]):
            at, rest = own & (group == left), own & (group != left)
            if rest.sum() > 1:
                lines[at] = straight(x[at, 0], x[rest, 0], log_s[rest])
    best: tuple[float, Any, float] = (np.inf, None, 0.0)
    for a in (2.0, 4.0, 8.0):
        for b in (2.0, 8.0):
            for c in (2.0, 8.0):
                for share in (0.0, 1.0, 4.0):
                    term = (np.array([1.0, share]), np.array([[1 / a, 1 / b, 1 / c], [1 / a, 0.0, 0.0]]))
                    cov = ks.shape_kernel(x, x, *term)
                    for noise in (0.001, 0.01, 0.1):
                        inverse_cov: Array = np.asarray(np.linalg.inv(cov + noise * np.eye(len(x))))
                        miss = leave_groups_out(inverse_cov, z[:, None], group)[:, 0]
                        miss = np.where(np.isnan(lines), miss, 0.5 * (miss + log_s - lines)) + peaks
                        error = float(np.mean(np.abs(np.expm1(-miss[inner]))))
                        if error < best[0] - 1e-6:
                            best = (error, term, noise)
    amplitude, inverse = best[1]
    cov = ks.shape_kernel(x, x, amplitude, inverse)
    alpha = np.linalg.solve(cov + best[2] * np.eye(len(x)), z)
    knots = np.arange(np.floor(x[:, 0].min()), np.ceil(x[:, 0].max()) + 1.0)
    curves = {}
    for pair in pairs:
        at = np.c_[knots, np.full(len(knots), 2.0 * np.log2(pair[0])), np.full(len(knots), pair[1])]
        mine = (gpus == pair[0]) & (kind == pair[1])
        own = x[mine, 0]
        at[:, 0] = np.clip(at[:, 0], own.min(), own.max())
        residual = ks.shape_kernel(at, x, amplitude, inverse) @ alpha
        v = bases[pair]
        smooth = np.log(np.exp(v[0]) + np.exp(v[1]) * np.exp2(knots)) + residual
        line = straight(knots, own, log_s[mine])
        curves[pair] = np.where(np.isnan(line), smooth, 0.5 * (smooth + line))
    return curves, knots, 100.0 * best[0]


def fit_collectives(tables: Path, gpu: str) -> dict[str, Any]:
    """Groups ``collective/<op>`` (curves per library/mode/gpus/nodes/topology/dtype) and ``p2p`` of one
    GPU."""
    import pandas as pd
    import pyarrow.parquet as pq

    groups: dict[str, Any] = {}
    path = tables / "allreduce.parquet"
    if path.exists():
        frame = pq.read_table(path, filters=[("gpu", "=", gpu)]).to_pandas()
        keys = ["op", "library", "mode", "topology", "num_nodes"]
        alike = [*keys, "num_gpus", "dtype", "message_bytes"]
        libraries = [
            newest(rows, alike, "library_version")
            for name, part in frame.groupby("library", observed=True)
            for rows in by_release(part, gpu, str(name))
        ]
        if libraries:
            frame = pd.concat(libraries)
        for (op, lib, mode, topo, nodes), part in frame.groupby(keys, observed=True, sort=True):
            kinds = sorted(part["dtype"].astype(str).unique())
            kind = part["dtype"].astype(str).map(kinds.index).to_numpy(dtype=np.float64)
            raw = [part[c].to_numpy(dtype=np.float64) for c in ("num_gpus", "message_bytes", "latency_us")]
            curves, knots, error = fit_curves(raw[0], kind, raw[1], raw[2] * 1e-6)
            group = groups.setdefault(f"collective/{op}", {"curves": {}, "rows": 0, "held_out": {}})
            group["rows"] += len(part)
            group["held_out"][f"{lib}/{mode}/{topo}/{nodes}"] = round(error, 2)
            for (g, k), log_s in curves.items():
                group["curves"][f"{lib}/{mode}/{int(g)}/{nodes}/{topo}/{kinds[int(k)]}"] = _curve(
                    knots, log_s
                )
        for group in groups.values():
            group["held_out_mape_pct"] = round(float(np.median(list(group["held_out"].values()))), 2)
    path = tables / "p2p.parquet"
    if path.exists():
        frame = pq.read_table(path, filters=[("gpu", "=", gpu)]).to_pandas()
        for (topo, link), part in frame.groupby(["topology", "link"], observed=True, sort=True):
            raw = [part[c].to_numpy(dtype=np.float64) for c in ("message_bytes", "latency_us")]
            one = np.zeros(len(part))
            curves, knots, error = fit_curves(one + 1.0, one, raw[0], raw[1] * 1e-6)
            group = groups.setdefault("p2p", {"curves": {}, "rows": 0, "held_out": {}})
            group["rows"] += len(part)
            group["held_out"][f"{topo}/{link}"] = round(error, 2)
            group["curves"][f"{topo}/{link}"] = _curve(knots, curves[(1.0, 0.0)])
        if "p2p" in groups:
            groups["p2p"]["held_out_mape_pct"] = round(
                float(np.median(list(groups["p2p"]["held_out"].values()))), 2
            )
    return groups


def _curve(knots: Array, log_s: Array) -> dict[str, Any]:
    return {"log2_bytes": [float(k) for k in knots], "log_s": [round(float(v), 4) for v in log_s]}


def fit_elementwise(tables: Path, gpu: str, peaks: kp.DevicePeaks) -> dict[str, Any] | None:
    """Latency and bandwidth of memory-bound kernels: fp8 quantisation (2 bytes read, 1 written a value), or
    else the residual addition and gated activation of the Vidur profile (6 bytes a value)."""
    from scipy.optimize import least_squares

    frame = read_table(
        tables, "quantize", ["op", "m", "k", "latency_us"], gpu, op="scale_matrix", framework="vllm"
    )
    if frame is not None and len(frame):
        source, moved = (
            "quantize",
            3.0 * frame["m"].to_numpy(dtype=np.float64) * frame["k"].to_numpy(dtype=np.float64),
        )
    else:
        frame = read_table(
            tables,
            "vidur_mlp",
            ["op", "num_tokens", "n_embd", "latency_us"],
            gpu.replace("-SXM", ""),
            op="add",
        )
        if frame is None or frame.empty:
            return None
        source = "vidur_mlp"
        moved = (
            6.0 * frame["num_tokens"].to_numpy(dtype=np.float64) * frame["n_embd"].to_numpy(dtype=np.float64)
        )
    time_s = frame["latency_us"].to_numpy(dtype=np.float64) * 1e-6

    def gap(v: Array) -> Array:
        t = np.exp(v[0]) + moved / (peaks.hbm_bytes_per_s * np.exp(v[1]))
        return np.asarray(np.log(t / time_s), dtype=np.float64)

    bounds = (np.log([5e-7, 0.1]), np.log([2e-5, 1.0]))
    fit = least_squares(gap, np.log([2.5e-6, 0.7]), bounds=bounds, loss="soft_l1", f_scale=0.1)
    error = float(np.mean(np.abs(np.expm1(gap(fit.x)))) * 100.0)
    names = ("latency_s", "memory_efficiency")
    return {
        "parameters": {n: float(f"{v:.6g}") for n, v in zip(names, np.exp(fit.x), strict=True)},
        "rows": len(frame),
        "table": source,
        "fit_mape_pct": round(error, 2),
    }


# --------------------------------------------------------------------------------------------------
# writing


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """An uncompressed ``.npz`` with sorted members and a fixed date: the same arrays give the same bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), buffer.getvalue())


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Readable, sorted, with short lists on one line."""
    text = json.dumps(value, indent=1, sort_keys=True)
    text = re.sub(r"\[\s+([-0-9.e,\s]+?)\s+\]", lambda m: "[" + re.sub(r"\s+", " ", m.group(1)) + "]", text)
    path.write_text(text + "\n", encoding="utf-8")


def peaks_json(peaks: kp.DevicePeaks) -> dict[str, Any]:
    """The datasheet rates as they stand in the files."""
    return {
        "flops_per_s": dict(peaks.flops_per_s),
        "hbm_bytes_per_s": peaks.hbm_bytes_per_s,
        "l2_bytes": peaks.l2_bytes,
        "link_bytes_per_s": peaks.link_bytes_per_s,
        "multiprocessors": peaks.multiprocessors,
    }


#: How the serving condition departs from the tables; said in every file.
SERVING: Mapping[str, str] = {
    "gemm": "cold L2; a row count over 1.15 times dearer than a larger one (a kernel chosen badly, a disturbed "
    "measurement: vLLM's fp8 rows on B200 at m = 1 cost 13 us more than at m = 2) takes the larger one's time, since "
    "rows can be padded; tables timed without a CUDA graph are replaced (serving_from)",
    "attention": "cold L2; more KV heads than reference_kv_heads count as more sequences of that many",
    "moe": "cold L2; rows that a benchmark counted otherwise (_all_tokens, _grouped_deal) are not taken; experts are "
    "chosen independently and are unequally popular, where the balanced benchmark deals rows out in turn; a backend slower "
    "than bfloat16 is replaced by the framework's other kernel that runs the format (serving_as, serving_reason)",
}


def provenance(tables: Path) -> dict[str, Any]:
    """What every file says of its origin."""
    return {
        "kind": "fitted",
        "sources": list(SOURCES),
        "fitted_on": FITTED_ON,
        "method": "physical base, Gaussian-process residual; see hardware_profiles/kernel_fit.py",
        "parameter_meaning": dict(kp.PARAMETER_MEANING),
        "serving": dict(SERVING),
    }


def reference_kv_heads(op: str, frame: pd.DataFrame) -> int:
    """Largest number of KV heads that was measured; in decode, with at least three numbers of query heads."""
    pairs = frame[["num_heads", "num_kv_heads"]].drop_duplicates()
    counts = pairs["num_kv_heads"].value_counts()
    well = counts[counts >= 3] if op == "attention_decode" else counts
    return int((well if len(well) else counts).index.max())


#: A quantised expert kernel slower than bfloat16 by this factor (median over the same shapes and loads) is not what
#: a deployment chooses. unit: 1, kind: assumed, 2026-11.
SLOWER = 1.15

#: Formats whose checkpoints a kernel of another format runs too: a product with a scale a block takes one scale a
#: tensor (all blocks alike), not the reverse.
ALSO_RUNS: Mapping[str, str] = {"fp8": "fp8_block"}


def serving_experts(frames: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], dict[str, Any]]:
    """For each (framework, format) of expert tables slower than bfloat16: what serving takes instead, and why.

    The faster kernel of :data:`ALSO_RUNS`, of the same framework before the others. A backend measured at several
    times the memory bound (the one of vLLM's table for per-tensor fp8 on Hopper) is thus kept for bench only.
    """
    keys = [c for c in (*OPS["moe"].shape, *OPS["moe"].load) if c not in ("kernel", "tuned")]
    times = {}
    for framework, frame in frames.items():
        for fmt, part in frame.groupby(frame["dtype"].astype(str), sort=True):
            times[framework, str(fmt)] = part.groupby(keys)["latency_us"].mean()
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for (framework, fmt), own in times.items():
        plain = times.get((framework, "bfloat16"))
        ratio = (own / plain).dropna() if plain is not None and fmt != "bfloat16" else None
        if ratio is None or ratio.empty or ratio.median() <= SLOWER:
            continue
        best: tuple[int, float, tuple[str, str]] | None = None
        for (place, other), time in times.items():
            if other != ALSO_RUNS.get(fmt):
                continue
            faster = (time / own).dropna()
            if len(faster) and faster.median() < 1.0:
                rank = (int(place != framework), float(faster.median()), (place, other))
                best = min(best, rank) if best else rank
        if best:
            out[framework, fmt] = {
                "serving_as": list(best[2]),
                "serving_reason": f"median time {ratio.median():.2f} of bfloat16, {1.0 / best[1]:.2f} of the substitute",
            }
    return out


#: Formats that serving takes as another framework timed the same kernels. vLLM's tables of products by blocks were timed without
#: a CUDA graph (:data:`TIMED_EAGERLY`), or with the quantisation of the activations as a kernel apart, which its compiler fuses
#: into norms and activations: they take 1.02 to 1.6 times as long, and servers do not (278 runs of MiniMax-M2.5 in FP8 on B200).
EAGER: Mapping[tuple[str, str], tuple[str, ...]] = {("vllm", "gemm/fp8_block"): ("sglang", "trtllm")}

#: The same of a table of one device that one kernel was timed for whatever the shape: TensorRT-LLM's nvfp4 on data-centre
#: Blackwell takes 22 us (B200, GB200) at a depth of 8,192 for 1,280 to 10,240 columns and 55 to 64 us at 28,672, where the other
#: two take 13 and 30, and its tuner has their kernels too.
ONE_KERNEL: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    (device, "trtllm", "gemm/nvfp4"): ("vllm", "sglang")
    for device in ("b200-sxm-180gb", "b300-sxm-288gb", "gb200-186gb", "gb300-288gb")
}


#: Fewest rows that are fitted; recurrences were timed at a dozen loads and few heads. kind: assumed, 2026-11.
LEAST_ROWS, LEAST_RECURRENT_ROWS = 100, 20


def fit_framework(
    tables: Path,
    gpu: str,
    framework: str,
    ops: Sequence[str] | None = None,
    skipped: list[dict[str, Any]] | None = None,
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays and readable groups of one GPU and framework; empty where the tables have none.

    skipped : takes an entry (op, gpu, framework, dtype, rows, reason) for rows that were left out.
    """
    peaks = PEAKS[DEVICES[gpu]]
    arrays: dict[str, NDArray[Any]] = {}
    groups: dict[str, Any] = {}
    for op, o in OPS.items():
        if ops is not None and op not in ops:
            continue
        frame = op_rows(op, tables, gpu, framework, clean=False)
        if frame is None:
            continue
        kin = None
        for formats, part in slices(frame, o):
            part, left = screened(op, formats, part, peaks)
            label = {"op": op, "gpu": gpu, "framework": framework, "dtype": "/".join(formats)}
            if skipped is not None:
                skipped += [{**label, "rows": n, "reason": why} for why, n in left.items()]
            if len(part) < (LEAST_ROWS if not o.table else LEAST_RECURRENT_ROWS):
                continue
            surface, p, loo = fit_group(op, formats, part, peaks, kin)
            error = held_out_error(op, formats, part, peaks, 0, kin) if len(part) >= 1000 else None
            if formats == ("bfloat16",):  # the first where there is one: names are sorted
                kin = kin_of(p)
            key = "/".join((op, *formats))
            arrays.update({f"{key.replace('/', '-')}.{n}": a for n, a in surface.items()})
            groups[key] = {
                "parameters": p.get("all", p),
                "surface": True,
                "rows": len(part),
                "shapes": len(surface["features"]),
                "leave_one_out_mape_pct": round(loo, 2),
                "held_out_mape_pct": round(error if error is not None else loo, 2),
                "domain": {
                    c: [int(part[c].min()), int(part[c].max())] for c in (*o.shape, *o.load) if c not in ("kernel", "tuned")
                },
            }
            if "kernel" in o.shape and len(names := kernel_names(part)) > 1:
                groups[key]["kernels"] = {name: {} for name in names}
            if "kernels" in p:
                groups[key]["kernels"] = {kernel_names(part)[code]: v for code, v in p["kernels"].items()}
            if op == "moe" and part["tuned"].any():
                groups[key]["tuned_tiles"] = tuned_tiles(gpu, framework, formats[0])
            if "num_kv_heads" in o.shape:
                groups[key]["reference_kv_heads"] = reference_kv_heads(op, part)
    return arrays, groups


def fit_kernels(
    tables_dir: Path,
    out_dir: Path,
    devices: Sequence[str] | None = None,
    frameworks: Sequence[str] = FRAMEWORKS,
) -> list[dict[str, Any]]:
    """Fit every device and framework in `tables_dir` and write ``out_dir/<device>/<framework>.{npz,json}``.

    devices : names of this project or of the tables; None means all. Returns the rows left out as unusable: op,
    gpu, framework, dtype, rows, reason.
    """
    skipped: list[dict[str, Any]] = []
    for gpu, device in {**DEVICES, **LINK_ONLY}.items():
        if devices is not None and device not in devices and gpu not in devices:
            continue
        folder = out_dir / device
        links = fit_collectives(tables_dir, gpu)
        common = provenance(tables_dir)
        if links:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "collectives.json", {"device": device, "groups": links, "provenance": common})
        if gpu in LINK_ONLY:
            continue
        plain = fit_elementwise(tables_dir, gpu, PEAKS[device])
        fitted = {f: fit_framework(tables_dir, gpu, f, skipped=skipped) for f in frameworks}
        experts = {f: op_rows("moe", tables_dir, gpu, f) for f in frameworks}
        chosen = serving_experts({f: frame for f, frame in experts.items() if frame is not None})
        for (framework, fmt), why in chosen.items():
            if f"moe/{fmt}" in fitted[framework][1]:
                fitted[framework][1][f"moe/{fmt}"].update(why)
        for framework, (arrays, groups) in fitted.items():
            if not groups:
                continue
            of_device = {(owner, key): to for (where, owner, key), to in ONE_KERNEL.items() if where == device}
            for (owner, key), others in {**EAGER, **of_device}.items():
                other = next((f for f in others if key in fitted.get(f, ({}, {}))[1]), None)
                if owner == framework and other:
                    lent = {"parameters": fitted[other][1][key]["parameters"], "rows": 0}
                    groups[key] = {**groups.get(key, lent), "serving_from": other}
            if plain:
                groups["elementwise"] = plain
            folder.mkdir(parents=True, exist_ok=True)
            write_arrays(folder / f"{framework}.npz", arrays)
            text = {"device": device, "framework": framework, "peaks": peaks_json(PEAKS[device])}
            write_json(folder / f"{framework}.json", {**text, "groups": groups, "provenance": common})
    return skipped


def main(argv: Sequence[str]) -> None:
    """``kernel_fit TABLES [OUT] [DEVICE...]``."""
    out = Path(argv[1]) if len(argv) > 1 else km.KERNELS_DIR
    fit_kernels(Path(argv[0]), out, list(argv[2:]) or None)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
