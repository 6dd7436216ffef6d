"""Steps 2 and 3: the residual as a matrix of shapes by loads, and the Gaussian process over the shapes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import kernel_surface as ks
from hardware_profiles.kernel_fit.ops import SAME, Op, Terms
from hardware_profiles.kernel_fit.rows import columns_of
from hardware_profiles.kernel_physics import Array
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    import pandas as pd


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
    scale, weights = reduced(inverse @ z, cov, basis)
    arrays: dict[str, NDArray[Any]] = {
        "features": x.astype(np.float32),
        "amplitude": amplitude.astype(np.float32),
        "inverse_length": inverse_length.astype(np.float32),
        "scale": scale,
        "weights": weights,
        "mean": mean.astype(np.float32),
        **{f"axis{i}": a.astype(np.float32) for i, a in enumerate(matrix.axes)},
    }
    if basis.shape[0] < basis.shape[1]:
        arrays["basis"] = basis.astype(np.float32)
    if reach is not None:
        arrays["reach"] = np.array([reach], dtype=np.float32)
    return arrays, 100.0 * error


#: What 16 bits may change of the residuals of the fitted shapes, as a root mean square. unit: 1, kind: assumed, 2026-11 (a
#: quarter of the least error of a fit).
ROUNDED = 0.02


def reduced(weights: Array, cov: Array, basis: Array) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """A scale a column and weights in 16 bits; where those change the residuals beyond :data:`ROUNDED` in 32, with scales of 1.

    Shapes that hardly differ (tokens cached before a chunk of sparse attention) have large weights that cancel each other.
    """
    step = np.maximum(np.abs(weights).max(axis=0), 1e-12) / 32767.0
    scale, whole = step.astype(np.float32), np.rint(weights / step).astype(np.int16)
    off = cov @ (whole * scale.astype(np.float64) - weights) @ basis
    if float(np.sqrt(np.mean(off * off))) <= ROUNDED:
        return scale, whole
    return np.ones_like(scale), weights.astype(np.float32)


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
