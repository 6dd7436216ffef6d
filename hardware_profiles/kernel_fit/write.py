"""Fit devices and frameworks, and write their files."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import kernel_physics as kp
from hardware_profiles.kernel_fit.curves import fit_collectives, fit_elementwise
from hardware_profiles.kernel_fit.group import fit_group, held_out_error, kin_of
from hardware_profiles.kernel_fit.ops import OPS
from hardware_profiles.kernel_fit.origin import (
    DEVICES,
    FITTED_ON,
    FRAMEWORKS,
    LINK_ONLY,
    PEAKS,
    SOURCES,
    peaks_json,
)
from hardware_profiles.kernel_fit.rows import kernel_names, op_rows, screened, slices, tuned_tiles
from hardware_profiles.kernel_fit.serving import EAGER, ONE_KERNEL, SERVING, serving_experts

if TYPE_CHECKING:
    import pandas as pd


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


def provenance(tables: Path) -> dict[str, Any]:
    """What every file says of its origin."""
    return {
        "kind": "fitted",
        "sources": list(SOURCES),
        "fitted_on": FITTED_ON,
        "method": "physical base, Gaussian-process residual; see hardware_profiles/kernel_fit",
        "parameter_meaning": dict(kp.PARAMETER_MEANING),
        "serving": dict(SERVING),
    }


def reference_kv_heads(op: str, frame: pd.DataFrame) -> int:
    """Largest number of KV heads that was measured; in decode, with at least three numbers of query heads."""
    pairs = frame[["num_heads", "num_kv_heads"]].drop_duplicates()
    counts = pairs["num_kv_heads"].value_counts()
    well = counts[counts >= 3] if op == "attention_decode" else counts
    return int((well if len(well) else counts).index.max())


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
