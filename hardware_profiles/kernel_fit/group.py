"""One group of rows (operation, formats) from the base to the reduced surface, and its error on shapes kept out."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import kernel_physics as kp
from hardware_profiles import kernel_surface as ks
from hardware_profiles.kernel_fit.base import fit_base
from hardware_profiles.kernel_fit.ops import OPS, Op
from hardware_profiles.kernel_fit.rows import columns_of, kernel_names, numbered
from hardware_profiles.kernel_fit.surface import (
    DESPIKED,
    FEW_GROUPS,
    TIE,
    fit_surface,
    to_matrix,
    undisturbed,
    unspiked,
)
from hardware_profiles.kernel_physics import Array

if TYPE_CHECKING:
    import pandas as pd

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
