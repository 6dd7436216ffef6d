"""Judge the shipped kernel models against a directory of measured kernel tables.

The tables have the columns of ``kernels/NOTICE.md``; shapes that the fit has never seen are what the figures
are for.
Times are predicted in the ``bench`` condition. Rows that no kernel could run (faster than the arithmetic
peak), rows off by more than a hundred times (wrong units) and unusable numbers are left out of the figures,
counted and named.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import kernel_model as km
from hardware_profiles import kernel_physics as kp
from hardware_profiles import kernel_surface as ks
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.kernel_borrow import device_of, kernel_donor
from hardware_profiles.kernel_fit.curves import fit_collectives
from hardware_profiles.kernel_fit.group import (
    REACH,
    fit_parameters,
    held_out_error,
    kept_out,
    kin_of,
    predict_rows,
)
from hardware_profiles.kernel_fit.ops import OPS
from hardware_profiles.kernel_fit.origin import DEVICES, FRAMEWORKS, LINK_ONLY, PEAKS
from hardware_profiles.kernel_fit.rows import columns_of, compute_floor_s, numbered, op_rows, slices

if TYPE_CHECKING:
    import pandas as pd

Array = NDArray[np.float64]

#: A measured time this far below the arithmetic limit is impossible, not noise (clock boost is a few
#: percent).
ROOFLINE_SLACK = 1.1
#: Measured over predicted beyond this factor, either way, is a unit (ms, s) and not an error of the model.
UNIT_FACTOR = 100.0

CURVES = ("allreduce", "p2p")
_UNPREDICTED = "no kernel model predicts this table (other software stack or whole-model times)"


def _text(frame: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    return frame.assign(**{c: frame[c].astype(str) for c in columns if c in frame})


def _score(
    label: dict[str, str], measured: Array, predicted: Array, floor: Array
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """One group's entry and its skipped rows by reason."""
    usable = np.isfinite(measured) & (measured > 0)
    ratio = np.where(usable, measured, 1.0) / predicted
    unit = usable & ((ratio > UNIT_FACTOR) | (ratio < 1.0 / UNIT_FACTOR))
    above = usable & ~unit & (measured * ROOFLINE_SLACK < floor)
    keep = usable & ~unit & ~above
    reasons = (
        ("time missing, zero, negative or not finite", ~usable),
        ("off by more than 100 times: wrong unit of latency_us", unit),
        ("faster than the arithmetic peak of the device (above the roofline)", above),
    )
    skipped = [{**label, "rows": int(mask.sum()), "reason": why} for why, mask in reasons if mask.any()]
    if not keep.any():
        return None, skipped
    error = 100.0 * float(np.mean(np.abs(predicted[keep] / measured[keep] - 1.0)))
    return {**label, "rows": int(keep.sum()), "mape": round(error, 4)}, skipped


def _dtype(op: str, formats: Sequence[str], frame: pd.DataFrame) -> str:
    if op == "quantize":
        return "fp8"
    if op == "deepep":
        return ""
    if op.startswith("sparse"):
        return "/".join(formats[1:])
    if OPS[op].table:
        return f"{formats[0]}/{op.rpartition('_')[2]}"
    return "/".join(formats[-2:]) if op in ("attention_context", "attention_decode", "mla") else formats[0]


def _named_kernels(
    op: str, part: pd.DataFrame, group: Mapping[str, Any], surface: ks.Surface
) -> tuple[pd.DataFrame, Mapping[str, Any]]:
    """Rows with their backends as the fitted numbers, and the parameters by number.

    A row says which backend was timed. One that the fit does not know, or no name at all, is given the backend
    that measured shapes like it run on. Operations without backends: the rows as they are.
    """
    if "kernel" not in OPS[op].shape:
        return part, group["parameters"]
    names = sorted(group.get("kernels", {}))
    if not names:
        return part.assign(kernel=0.0), group["parameters"]
    part = numbered(part, names)
    columns = columns_of(part, OPS[op])
    columns["kernel"] = columns["kernel"].copy()
    chosen: dict[tuple[float, ...], int] = {}
    for row in np.flatnonzero(part["kernel"].to_numpy() < 0):
        shape = OPS[op].features(*(float(columns[c][row]) for c in OPS[op].shape))
        if shape not in chosen:
            chosen[shape] = ks.likely_kernel(op, ks.served_features(surface.features, names), shape)
        columns["kernel"][row] = chosen[shape]
    part = part.assign(kernel=columns["kernel"])
    if op != "moe":
        return part, group["parameters"]
    return part, {
        "all": group["parameters"],
        "kernels": {i: group["kernels"][n] for i, n in enumerate(names)},
    }


def _surface_op(
    tables: Path, op: str
) -> Iterator[tuple[dict[str, str], Array, Array, Array] | dict[str, Any]]:
    """(label, measured, predicted, floor) for each predictable group of a table, or a skipped entry."""
    import pyarrow.parquet as pq

    name = OPS[op].table or op
    kinds = pq.read_table(tables / f"{name}.parquet", columns=["gpu", "framework"]).to_pandas().astype(str)
    for gpu, framework in sorted(set(zip(kinds["gpu"], kinds["framework"], strict=True))):
        device = DEVICES.get(gpu, "")
        frame = op_rows(op, tables, gpu, framework, clean=False)
        if frame is None:
            continue
        model = km.load_kernel_model(device, framework) if (device, framework) in km.fitted_models() else None
        for formats, part in slices(frame, OPS[op]):
            label = {"op": name, "gpu": gpu, "framework": framework, "dtype": _dtype(op, formats, part)}
            key = "/".join((op, *formats))
            group = model.groups.get(key) if model else None
            surface = model.surface(key) if model else None
            if model is None or group is None or surface is None:
                reason = "no fitted model of this GPU and framework"
                if model:
                    reason = "number format without a fitted model"
                yield {**label, "rows": len(part), "reason": reason}
                continue
            part, parameters = _named_kernels(op, part, group, surface)
            columns = columns_of(part, OPS[op])
            predicted = predict_rows(op, surface, parameters, formats, part, model.peaks)
            measured = part["latency_us"].to_numpy(dtype=np.float64) * 1e-6
            yield label, measured, predicted, compute_floor_s(op, formats, columns, model.peaks)


def _curve_table(
    tables: Path, op: str
) -> Iterator[tuple[dict[str, str], Array, Array, Array] | dict[str, Any]]:
    """The same for tables over message size."""
    import pyarrow.parquet as pq

    frame = pq.read_table(tables / f"{op}.parquet").to_pandas()
    keys = ["gpu", "topology", "link"] if op == "p2p" else ["gpu", "library", "mode", "op", "dtype"]
    if op == "allreduce":
        keys += ["num_gpus", "num_nodes", "topology"]
        keys += ["library_version"] if "library_version" in frame else []
    frame = _text(frame, keys)
    for names, part in frame.groupby(keys, sort=True):
        at = {k: str(v) for k, v in zip(keys, names, strict=True)}
        label = {"op": op, "gpu": at["gpu"], "framework": at.get("library", ""), "dtype": at.get("dtype", "")}
        device = {**DEVICES, **LINK_ONLY}.get(at["gpu"], "")
        groups = km.load_links(device)
        if op == "p2p":
            curve = groups.get("p2p", {}).get("curves", {}).get(f"{at['topology']}/{at['link']}")
        else:
            curves = groups.get(f"collective/{at['op']}", {}).get("curves", {})
            tail = f"{at['num_nodes']}/{at['topology']}/{at['dtype']}"
            timed = {name.split("/")[0] for name in curves}
            library = km.library_of(at["library"], at.get("library_version", ""), timed)
            curve = curves.get(f"{library}/{at['mode']}/{at['num_gpus']}/{tail}")
        if curve is None:
            yield {
                **label,
                "rows": len(part),
                "reason": "no fitted curve of this GPU, library, mode and size of group",
            }
            continue
        size = part["message_bytes"].to_numpy(dtype=np.float64)
        measured = part["latency_us"].to_numpy(dtype=np.float64) * 1e-6
        yield label, measured, km.curve_s(curve, size), np.zeros(len(part))


def _rows_of(path: Path) -> int | None:
    """Rows of a table; None for a file that is no Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except (pa.ArrowException, OSError):
        return None


def _unreadable(error: Exception) -> str:
    """Why a table cannot be used, from what reading it raised: most often a missing column."""
    text = str(error)
    named = re.search(r"FieldRef\.Name\((\w+)\)", text)
    if named or isinstance(error, KeyError):
        return f"column {named[1] if named else text.strip(chr(39))} is missing"
    return f"the table cannot be read: {(text.splitlines() or [type(error).__name__])[0][:120]}"


def validate_kernels(tables_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """Error of the shipped models on every table of a directory.

    Returns ``{"groups": [{"op", "gpu", "framework", "dtype", "rows", "mape"}], "skipped": [{..., "rows",
    "reason"}]}``; mape is the mean of ``|predicted / measured - 1|`` in percent. Raises InputError where
    there are no tables.
    """
    found = sorted(p.stem for p in Path(tables_dir).glob("*.parquet"))
    if not found:
        raise InputError(
            f"no .parquet tables in {tables_dir}",
            mend="name the directory that holds gemm.parquet and the like",
        )
    pooled: dict[tuple[str, str, str, str], list[tuple[Array, Array, Array]]] = {}
    groups: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for op in found:
        rows = _rows_of(Path(tables_dir) / f"{op}.parquet")
        whole = {"op": op, "gpu": "", "framework": "", "dtype": "", "rows": rows or 0}
        if not rows:
            skipped.append(
                {**whole, "reason": "no readable Parquet file" if rows is None else "the table is empty"}
            )
            continue
        ops = [name for name, o in OPS.items() if (o.table or name) == op]
        if not ops and op not in CURVES:
            skipped.append({**whole, "reason": _UNPREDICTED})
            continue
        try:
            if op in CURVES:
                items = list(_curve_table(Path(tables_dir), op))
            else:
                items = [item for name in ops for item in _surface_op(Path(tables_dir), name)]
        except (KeyError, ValueError, TypeError, OSError) as error:
            skipped.append({**whole, "reason": _unreadable(error)})
            continue
        for item in items:
            if isinstance(item, dict):
                skipped.append(item)
            else:
                label = item[0]
                name = (label["op"], label["gpu"], label["framework"], label["dtype"])
                pooled.setdefault(name, []).append(item[1:])
    for name, parts in sorted(pooled.items()):
        label = dict(zip(("op", "gpu", "framework", "dtype"), name, strict=True))
        entry, left_out = _score(label, *(np.concatenate([p[i] for p in parts]) for i in range(3)))
        groups += [entry] if entry else []
        skipped += left_out
    return {"groups": groups, "skipped": skipped}


def held_out(tables_dir: Path, device: str, framework: str, op: str, folds: int = 6) -> dict[str, float]:
    """Cross-validated error [%] per format: every group of shapes predicted by a fit that never saw it.

    device : name here or in the tables; op : one of the surfaces of :data:`kernel_fit.OPS`.
    """
    gpu = next((g for g, d in DEVICES.items() if device in (g, d)), None)
    if gpu is None or op not in OPS:
        raise InputError(
            f"cannot cross-validate '{op}' on '{device}'",
            mend=f"operations: {', '.join(OPS)}; devices: {', '.join(DEVICES.values())}",
        )
    frame = op_rows(op, Path(tables_dir), gpu, framework)
    if frame is None:
        raise InputError(f"no {op} rows of {device} under {framework} in {tables_dir}")
    return {fmt: error for fmt, (error, _) in _folds(frame, op, gpu, folds).items()}


# --------------------------------------------------------------------------------------------------
# what a fit does on shapes, models and GPUs that it never saw

#: Error [%] on whole shapes kept out that a physical form with an interpolated residual reached in a first study of
#: these tables: (operation, format) -> GPU -> framework; a GPU's "vllm" stands for frameworks not listed. Source:
#: that study, column C (for expert layers and where there is no C: column B), upper end of ranges, 2026. kind:
#: measured.
REFERENCE_PCT: Mapping[tuple[str, str], Mapping[str, Mapping[str, float]]] = {
    ("gemm", "bfloat16"): {
        "A100-SXM-80GB": {"vllm": 7.0},
        "H100-SXM": {"vllm": 4.2, "sglang": 6.3, "trtllm": 3.6},
        "H200-SXM": {"vllm": 4.0},
        "B200-SXM": {"vllm": 5.0},
        "L40S": {"vllm": 8.0},
        "RTX-PRO-6000-Server": {"vllm": 6.0},
        "Arc-Pro-B60": {"vllm": 8.0},
    },
    ("gemm", "fp8"): {
        "H100-SXM": {"vllm": 3.6, "sglang": 6.0, "trtllm": 2.1},
        "H200-SXM": {"vllm": 3.0},
        "B200-SXM": {"vllm": 11.0},
        "L40S": {"vllm": 7.0},
        "RTX-PRO-6000-Server": {"vllm": 3.0},
    },
    ("gemm", "nvfp4"): {"B200-SXM": {"vllm": 5.0}, "RTX-PRO-6000-Server": {"vllm": 4.0}},
    ("attention_decode", "bfloat16/bfloat16"): {
        "A100-SXM-80GB": {"vllm": 6.0},
        "H100-SXM": {"vllm": 2.4, "sglang": 3.3, "trtllm": 16.0},
        "H200-SXM": {"vllm": 2.0},
        "B200-SXM": {"vllm": 4.0},
        "L40S": {"vllm": 11.0},
        "RTX-PRO-6000-Server": {"vllm": 11.0},
        "Arc-Pro-B60": {"vllm": 8.0},
    },
    ("attention_context", "bfloat16/bfloat16"): {
        "A100-SXM-80GB": {"vllm": 3.0},
        "H100-SXM": {"vllm": 5.0},
        "H200-SXM": {"vllm": 5.0},
        "B200-SXM": {"vllm": 5.0},
        "L40S": {"vllm": 4.0},
        "RTX-PRO-6000-Server": {"vllm": 4.0},
        "Arc-Pro-B60": {"vllm": 9.0},
    },
    ("moe", "bfloat16"): {
        "A100-SXM-80GB": {"vllm": 17.0},
        "H100-SXM": {"vllm": 13.0, "trtllm": 9.0},
        "B200-SXM": {"vllm": 10.0},
        "L40S": {"vllm": 17.0},
    },
    ("moe", "fp8"): {"B200-SXM": {"vllm": 11.0}},
    ("moe", "fp8_block"): {"H100-SXM": {"vllm": 7.0}},
    ("moe", "nvfp4"): {"B200-SXM": {"vllm": 11.0}},
    ("allreduce", ""): {g: {"vllm": 5.0} for g in (*DEVICES, *LINK_ONLY)},
}
#: A group this many times over the reference is called out.
OVER = 1.5
#: Operations judged by shapes left out; experts are judged by models.
SHAPE_OPS = ("gemm", "attention_decode", "attention_context")
LEAVE_OUT = ("shapes", "model", "gpu")


def reference_pct(op: str, gpu: str, framework: str, fmt: str) -> float | None:
    """The reference error of a group, or of its operation and bf16 kin where formats mix [%]; None without any."""
    for name in (fmt, "/".join(("bfloat16", fmt.rsplit("/", 1)[-1])), "bfloat16/bfloat16"):
        known = REFERENCE_PCT.get((op, name), {}).get(gpu)
        if known:
            return known.get(framework, known["vllm"])
    return None


def _entry(op: str, gpu: str, framework: str, fmt: str, rows: int, mape: float) -> dict[str, Any]:
    reference = reference_pct(op, gpu, framework, fmt)
    over = reference is not None and mape > OVER * reference
    label = {"op": op, "gpu": gpu, "framework": framework, "dtype": fmt, "rows": rows, "mape": round(mape, 4)}
    return {**label, "reference": reference, "over": over}


def leave_out(
    tables_dir: Path,
    what: str,
    devices: Sequence[str] | None = None,
    folds: int | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[dict[str, Any]]:
    """Error of fits on what they never saw, a group (operation, GPU, framework, format) each.

    what : ``shapes`` (products, attention; message sizes of collectives), ``model`` (expert layers of whole models)
    or ``gpu`` (every kernel of a GPU as if it had no fits, borrowed as :mod:`hardware_profiles.kernel_borrow`
    does where it has a lender, and from the datasheet alone: ``datasheet_mape``). devices : names here or in the
    tables. folds : how many of the six parts are left out in turn; the default is 1 for shapes and 6 for models.
    Each entry: op, gpu, framework, dtype, rows,
    mape [%], reference [%] (see :data:`REFERENCE_PCT`), over (more than :data:`OVER` times that). Raises InputError
    for an unknown `what` or a directory without tables.
    """
    tables_dir = Path(tables_dir)
    if what not in LEAVE_OUT:
        near = nearest(what, list(LEAVE_OUT))
        mend = f"did you mean '{near}'?" if near else f"one of {', '.join(LEAVE_OUT)}"
        raise InputError(f"cannot leave out '{what}'", where="--leave-out", mend=mend)
    if not any(tables_dir.glob("*.parquet")):
        raise InputError(
            f"no .parquet tables in {tables_dir}", mend="name the directory that holds the tables"
        )
    wanted = {g: d for g, d in DEVICES.items() if devices is None or d in devices or g in devices}
    out: list[dict[str, Any]] = []
    ops = ("moe",) if what == "model" else SHAPE_OPS if what == "shapes" else (*SHAPE_OPS, "moe")
    for gpu in wanted:
        for op in ops:
            for framework in FRAMEWORKS:
                if (frame := op_rows(op, tables_dir, gpu, framework)) is None:
                    continue
                if progress:
                    progress(f"{op} {gpu} {framework}")
                if what == "gpu":
                    out += _leave_gpu_out(frame, op, gpu, framework)
                    continue
                for fmt, (error, rows) in _folds(
                    frame, op, gpu, folds or (1 if what == "shapes" else 6)
                ).items():
                    out.append(_entry(op, gpu, framework, fmt, rows, error))
    if what == "shapes":
        link_gpus = {g: d for g, d in LINK_ONLY.items() if devices is None or d in devices or g in devices}
        for gpu in (*wanted, *link_gpus):
            group = fit_collectives(tables_dir, gpu).get("collective/all_reduce")
            if group:
                out.append(_entry("allreduce", gpu, "", "", group["rows"], group["held_out_mape_pct"]))
    return out


def _folds(frame: pd.DataFrame, op: str, gpu: str, folds: int) -> dict[str, tuple[float, int]]:
    """Error [%] and rows judged of each format over the first `folds` of six parts of the groups of shapes."""
    peaks = PEAKS[DEVICES[gpu]]
    out: dict[str, tuple[float, int]] = {}
    kin = None
    for formats, part in slices(frame, OPS[op]):
        if len(part) < 100:
            continue
        if op in REACH and formats == ("bfloat16",):
            kin = kin_of(fit_parameters(op, formats, part, peaks))
        total, rows = 0.0, 0
        for fold in range(folds):
            error = held_out_error(op, formats, part, peaks, fold, kin)
            if error is not None:
                count = int(kept_out(part, OPS[op], fold).sum())
                total, rows = total + error * count, rows + count
        if rows:
            out["/".join(formats)] = (total / rows, rows)
    return out


def _leave_gpu_out(frame: pd.DataFrame, op: str, gpu: str, framework: str) -> list[dict[str, Any]]:
    """Entries of one GPU's table, predicted as if it had no fits: borrowed, and from datasheet rates.

    Without expert rows that a benchmark counted otherwise than serving does (:data:`kernel_model.SET_ASIDE`).
    """
    device, o = DEVICES[gpu], OPS[op]
    if "aside" in frame:
        frame = frame[frame["aside"] == ""]
    everyone = frozenset(d for d, _ in km.fitted_models())
    fitted = [(d, f) for d, f in km.fitted_models() if d != device and d in PEAKS]
    out = []
    for formats, part in slices(frame, o):
        key = "/".join((op, *formats))
        owners = {d for d, f in fitted if f == framework and key in km.load_kernel_model(d, f).groups}
        donor = kernel_donor(device_of(device), everyone - owners)
        if len(part) < 100 or donor is None:
            continue
        model = km.load_kernel_model(donor.profile, framework)
        group, surface = model.groups[key], model.surface(key)
        assert surface is not None
        part, parameters = _named_kernels(op, part, group, surface)
        truth = part["latency_us"].to_numpy(dtype=np.float64) * 1e-6
        scaled = predict_rows(op, surface, parameters, formats, part, PEAKS[device])
        plain = o.base(kp.DEFAULT_PARAMETERS[op], PEAKS[device], formats, columns_of(part, o))
        scaled = np.sqrt(scaled * plain) if donor.halfway else scaled
        error, bare = (100.0 * float(np.mean(np.abs(t / truth - 1.0))) for t in (scaled, plain))
        entry = _entry(op, gpu, framework, "/".join(formats), len(part), error)
        out.append({**entry, "from": model.device, "datasheet_mape": round(bare, 4)})
    return out
