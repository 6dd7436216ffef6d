"""The fitted residual of kernel times: a smooth function of the shape on a grid of loads, and the features of shapes.

The arrays come from an archive beside the parameters; see :mod:`hardware_profiles.kernel_model`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.kernel_physics import ALIGNED_WIDTH, Array, Number
from hardware_profiles.records import dataclass


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
    _rows: dict[Hashable, Array] = field(default_factory=dict, compare=False, repr=False)

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

    def full_tiles(self, x: tuple[float, ...]) -> bool:
        """Whether the expert layer nearest to `x`, of those on its backend, had powers of two of rows for such numbers of tokens.

        Equal experts then leave no tile in part empty; else (384 experts of which a token takes 8) they leave about as much as
        experts of unequal popularity do.
        """
        alike = self.features[np.rint(self.features[:, -1] - x[-1]) == 0.0]
        gap = alike - np.array(x)
        _, _, topk, local, ranks, *_ = alike[int(np.argmin(np.einsum("ij,ij->i", gap, gap)))]
        return bool(abs((local + ranks - topk) - np.rint(local + ranks - topk)) < 1e-3)

    def unspiked(
        self,
        x: tuple[float, ...],
        base: Callable[[Array], Array],
        dearer_ratio: float,
        *load: Array,
        kind: Hashable,
    ) -> Array:
        """As :meth:`at` on one axis, without loads that cost more than `dearer_ratio` times a larger one.

        base : load -> seconds; kind tells the bases of one shape apart: all that they depend on besides. Such times (a wrong
        choice of kernel, a disturbed measurement) are not paid by a step: rows can be padded, and CUDA graphs pad them. They take
        the least time of the larger loads.
        """
        key = (x, "unspiked", kind)
        row = self._rows.get(key)
        if row is None:
            row = self.rows(np.array([x]))[0]
            time = base(np.exp2(self.axes[0])) * np.exp(row)
            least = np.minimum.accumulate(time[::-1])[::-1]
            row = self._rows[key] = np.where(time > dearer_ratio * least, row + np.log(least / time), row)
        return self.read(row, *load)

    def rising(self, x: tuple[float, ...], base: Callable[[Array, Array], Array], *load: Array, kind: Hashable) -> Array:
        """As :meth:`at` on two axes, without loads that cost more than a larger one on the second: they take its time.

        base : loads on both axes -> seconds; kind as in :meth:`unspiked`.
        """
        key = (x, "rising", kind)
        row = self._rows.get(key)
        if row is None:
            row = self.rows(np.array([x]))[0]
            first, second = np.meshgrid(*(np.exp2(axis) for axis in self.axes), indexing="ij")
            log_s = np.log(base(first, second)) + row.reshape(first.shape)
            least = np.minimum.accumulate(log_s[:, ::-1], axis=1)[:, ::-1]
            row = self._rows[key] = row + (least - log_s).ravel()
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
#: Distance up to which two shapes are one: their features are sums of logarithms. unit: octaves, kind: by construction.
SAME_SHAPE = 1e-6


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
    tuned: bool = False,
    kernel: int = 0,
) -> tuple[float, ...]:
    """Features of a mixture-of-experts rank; tuned : the backend has tiles for such experts; kernel : its number among those of
    its format."""
    return (
        math.log2(hidden),
        math.log2(inter / tp),
        math.log2(topk),
        math.log2(experts / ep),
        math.log2(ep),
        2.0 * gated,
        skewed,
        float(tuned),
        float((inter / tp) % ALIGNED_WIDTH > 0),
        KERNEL_GAP * kernel,
    )


def exchange_shape(hidden: float, experts: float, topk: float, multiprocessors: float) -> tuple[float, ...]:
    """Features of an exchange of tokens between ranks of experts, and the multiprocessors that it takes (0: all)."""
    return (math.log2(hidden), math.log2(experts), math.log2(topk), multiprocessors / 4.0)


def sparse_decode_shape(heads: float) -> tuple[float, ...]:
    """Features of a layer of sparse attention: its heads on the device."""
    return (math.log2(heads),)


def sparse_context_shape(heads: float, past_tokens: float) -> tuple[float, ...]:
    """The same of prompts, and what is cached before them."""
    return (math.log2(heads), math.log2(past_tokens + 128.0))


def recurrence_shape(kv_heads: float, heads: float, kernel: int = 0) -> tuple[float, ...]:
    """Features of a recurrence: key heads, value heads, number of the backend among those of its variant."""
    return (math.log2(kv_heads), math.log2(heads), KERNEL_GAP * kernel)


def convolution_shape(width: float, kernel: int = 0) -> tuple[float, ...]:
    """Features of a convolution: its channels, number of the backend."""
    return (math.log2(width), KERNEL_GAP * kernel)


def moe_load(tokens: Array, topk: Number, experts: Number) -> Array:
    """Log2 of the rows an expert gets on average: the load of expert layers, the same for models of any size."""
    return np.asarray(np.log2(tokens * topk / experts), dtype=np.float64)


#: What counts in the choice of a backend, by feature: the experts a token chooses, gating; group size, head width,
#: a window. kind: assumed, 2026-11.
KERNEL_WEIGHT: Mapping[str, tuple[float, ...]] = {
    "moe": (1.0, 1.0, 3.0, 1.0, 1.0, 2.0, 0.0, 0.0, 0.0),
    "attention_decode": (0.5, 4.0, 2.0, 0.5, 0.0, 4.0, 0.0),
    "attention_context": (0.5, 4.0, 2.0, 0.5, 0.0, 4.0, 0.0),
    "recurrence_decode": (1.0, 1.0),
    "recurrence_context": (1.0, 1.0),
    "convolution_decode": (1.0,),
    "convolution_context": (1.0,),
}


#: Flags of :func:`moe_assigned_rows` -> ending of the names of backends whose rows carry it. Those count rows otherwise
#: than a served layer does, or ("by_name") are of a kernel that the engine would not have chosen: no simulation takes them,
#: but the latter where it is named.
SET_ASIDE: Mapping[str, str] = {"all_tokens": "_all_tokens", "grouped_deal": "_grouped_deal", "by_name": "_by_name"}


def served_features(features: Array, names: Sequence[str]) -> Array:
    """Features of the measured shapes on backends not set aside (:data:`SET_ASIDE`); all where there are no others."""
    usual = np.array([not name.endswith(tuple(SET_ASIDE.values())) for name in names])
    keep = usual[np.rint(features[:, -1] / KERNEL_GAP).astype(int)]
    return features[keep] if keep.any() else features


def likely_kernel(op: str, features: Array, shape: tuple[float, ...]) -> int:
    """Number of the backend that measured shapes like this one run on: each votes ``exp(-distance)``, for those alone that this
    very shape was measured on, if it was.

    features (S, d) of the measured shapes and `shape` as :func:`moe_shape` and its like give them; the last is the
    backend. Having expert parallelism at all tells backends apart.
    """
    gap = (features[:, :-1] - np.array(shape[:-1])) * np.array(KERNEL_WEIGHT[op])
    parallel = 4.0 * ((features[:, 4] > 0) != (shape[4] > 0)) if op == "moe" else 0.0
    distance = np.sqrt(np.sum(gap * gap, axis=1) + np.square(parallel))
    backend = np.rint(features[:, -1] / KERNEL_GAP).astype(int)
    own = backend[distance < SAME_SHAPE]
    vote = np.where(np.isin(backend, own), np.exp(-distance), 0.0) if len(own) else np.exp(-distance)
    return int(np.argmax(np.bincount(backend, vote)))
