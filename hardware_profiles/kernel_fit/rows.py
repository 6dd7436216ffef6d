"""The rows of the tables that are fitted: of which versions, what is set aside and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import kernel_physics as kp
from hardware_profiles import kernel_surface as ks
from hardware_profiles.kernel_fit.ops import HEADS, MODEL, OPS, Op
from hardware_profiles.kernel_fit.origin import DEVICES, FRAMEWORKS
from hardware_profiles.kernel_model import version_of
from hardware_profiles.kernel_physics import Array

if TYPE_CHECKING:
    import pandas as pd

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


#: GPUs of one kind, whose experts at few tokens differ by their memory alone (the ratio of the other series is taken off).
ALIKE_GPUS = ("B200-SXM", "B300-SXM", "GB200", "GB300")
#: A framework whose tuner leaves a series of experts (one shape, split and routing, all tokens) now and then with a slower
#: kernel: of 1,052 in nvfp4 18 % on B200, 11 on GB200 and 1 on B300 and GB300 are at least 1.3 times the quickest of the four,
#: the others within 3 %. Its other benchmark of the same kernels (``moe_wideep``) has the quicker ones of DeepSeek-V3 on B200.
#: Such series are left out from this ratio on; judged by steps of so many tokens at most, where memory decides. unit: 1, tokens.
#: kind: fitted (read off the tables), 2026-11.
TUNED_BY_CHANCE, MISTUNED, FEW_TOKENS = "trtllm", 1.2, 1024


def mistuned(frame: pd.DataFrame, tables: Path, gpu: str, framework: str) -> NDArray[np.bool_]:
    """Rows of experts whose series ran a slower kernel than on GPUs of the same kind (:data:`TUNED_BY_CHANCE`)."""
    import pandas as pd

    if framework != TUNED_BY_CHANCE or gpu not in ALIKE_GPUS:
        return np.zeros(len(frame), dtype=bool)
    series = ["dtype", "kernel", *MODEL, "moe_tp_size", "moe_ep_size", "distribution"]
    cell = [*series, "num_tokens"]
    own = frame[frame["num_tokens"] <= FEW_TOKENS].groupby(cell, observed=True)["latency_us"].min()
    ratios = []
    for other in ALIKE_GPUS:
        there = read_table(tables, "moe", [*cell, "latency_us"], other, framework=framework) if other != gpu else None
        if there is None or there.empty:
            continue
        ratio = (own / there.groupby(cell, observed=True)["latency_us"].min()).dropna()
        ratios.append(ratio / ratio.median())
    if not ratios:
        return np.zeros(len(frame), dtype=bool)
    slowest = pd.concat(ratios, axis=1).max(axis=1).groupby(level=series, observed=True).median()
    slow = slowest.index[slowest > MISTUNED]
    return np.asarray(pd.MultiIndex.from_frame(frame[series]).isin(slow), dtype=bool)


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
        frame = frame[~mistuned(frame, tables, gpu, framework)]
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
    columns = ["variant", *HEADS, "head_k_dim", "head_v_dim", *loads]
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
    model = np.array([*zip(*(frame[c].astype(int) for c in MODEL), strict=True)])
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

    known = yaml.safe_load((Path(__file__).parents[1] / "tuned_tiles.yaml").read_text(encoding="utf-8"))
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


def columns_of(frame: pd.DataFrame, o: Op) -> dict[str, Array]:
    """Shape and load columns as float arrays."""
    return {c: frame[c].to_numpy(dtype=np.float64) for c in (*o.shape, *o.load)}
