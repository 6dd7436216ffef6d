"""Judge the shipped kernel models against a directory of measured kernel tables.

The tables have the columns of ``kernels/NOTICE.md``; shapes that the fit has never seen are what the figures
are for.
Times are predicted in the ``bench`` condition. Rows that no kernel could run (faster than the arithmetic
peak), rows off by more than a hundred times (wrong units) and unusable numbers are left out of the figures,
counted and named.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import kernel_fit as kf
from hardware_profiles import kernel_model as km
from hardware_profiles.errors import InputError

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


def compute_floor_s(op: str, formats: Sequence[str], c: dict[str, Array], peaks: km.DevicePeaks) -> Array:
    """Time of the arithmetic alone at the dense peak [s]; zero for kernels bound by memory."""
    if op == "gemm":
        return 2.0 * c["m"] * c["n"] * c["k"] / peaks.rate(formats[0])
    if op == "attention_context":
        pairs = km.causal_pairs(c["seq_len"], np.zeros_like(c["seq_len"]), c["window_size"])
        return 4.0 * c["batch_size"] * c["num_heads"] * c["head_dim"] * pairs / peaks.rate(formats[0])
    if op == "attention_decode":
        span = np.where(
            c["window_size"] > 0, np.minimum(c["context_len"], c["window_size"]), c["context_len"]
        )
        return 4.0 * c["batch_size"] * c["num_heads"] * c["head_dim"] * span / peaks.rate("fp8")
    return np.zeros(len(next(iter(c.values()))))


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
    return "/".join(formats[-2:]) if op in ("attention_context", "attention_decode", "mla") else formats[0]


def _surface_op(
    tables: Path, op: str
) -> Iterator[tuple[dict[str, str], Array, Array, Array] | dict[str, Any]]:
    """(label, measured, predicted, floor) for each predictable group of a table, or a skipped entry."""
    import pyarrow.parquet as pq

    kinds = pq.read_table(tables / f"{op}.parquet", columns=["gpu", "framework"]).to_pandas().astype(str)
    for gpu, framework in sorted(set(zip(kinds["gpu"], kinds["framework"], strict=True))):
        device = kf.DEVICES.get(gpu, "")
        frame = kf.op_rows(op, tables, gpu, framework, clean=False)
        if frame is None:
            continue
        model = km.load_kernel_model(device, framework) if (device, framework) in km.fitted_models() else None
        for formats, part in kf.slices(frame, kf.OPS[op]):
            label = {"op": op, "gpu": gpu, "framework": framework, "dtype": _dtype(op, formats, part)}
            key = "/".join((op, *formats))
            group = model.groups.get(key) if model else None
            surface = model.surface(key) if model else None
            if model is None or group is None or surface is None:
                reason = "no fitted model of this GPU and framework"
                if model:
                    reason = "number format without a fitted model"
                yield {**label, "rows": len(part), "reason": reason}
                continue
            columns = kf.columns_of(part, kf.OPS[op])
            predicted = kf.predict_rows(op, surface, group["parameters"], formats, part, model.peaks)
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
    frame = _text(frame, keys)
    for names, part in frame.groupby(keys, sort=True):
        at = {k: str(v) for k, v in zip(keys, names, strict=True)}
        label = {"op": op, "gpu": at["gpu"], "framework": at.get("library", ""), "dtype": at.get("dtype", "")}
        device = {**kf.DEVICES, **kf.LINK_ONLY}.get(at["gpu"], "")
        groups = km.load_links(device)
        if op == "p2p":
            curve = groups.get("p2p", {}).get("curves", {}).get(f"{at['topology']}/{at['link']}")
        else:
            curves = groups.get(f"collective/{at['op']}", {}).get("curves", {})
            tail = f"{at['num_nodes']}/{at['topology']}/{at['dtype']}"
            curve = curves.get(f"{at['library']}/{at['mode']}/{at['num_gpus']}/{tail}")
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
        if op not in kf.OPS and op not in CURVES:
            import pyarrow.parquet as pq

            rows = pq.read_metadata(tables_dir / f"{op}.parquet").num_rows
            skipped.append(
                {"op": op, "gpu": "", "framework": "", "dtype": "", "rows": rows, "reason": _UNPREDICTED}
            )
            continue
        for item in (_curve_table if op in CURVES else _surface_op)(Path(tables_dir), op):
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
    gpu = next((g for g, d in kf.DEVICES.items() if device in (g, d)), None)
    if gpu is None or op not in kf.OPS:
        raise InputError(
            f"cannot cross-validate '{op}' on '{device}'",
            mend=f"operations: {', '.join(kf.OPS)}; devices: {', '.join(kf.DEVICES.values())}",
        )
    frame = kf.op_rows(op, Path(tables_dir), gpu, framework)
    if frame is None:
        raise InputError(f"no {op} rows of {device} under {framework} in {tables_dir}")
    out: dict[str, float] = {}
    kin = None
    for formats, part in kf.slices(frame, kf.OPS[op]):
        total, rows = 0.0, 0
        if op in kf.REACH and formats == ("bfloat16",):
            kin = kf.kin_of(*kf.fit_group(op, formats, part, kf.PEAKS[kf.DEVICES[gpu]])[:2])
        for fold in range(folds):
            count = int(kf.kept_out(part, kf.OPS[op], fold).sum())
            error = kf.held_out_error(op, formats, part, kf.PEAKS[kf.DEVICES[gpu]], fold, kin)
            if error is not None:
                total, rows = total + error * count, rows + count
        if rows:
            out["/".join(formats)] = total / rows
    return out
