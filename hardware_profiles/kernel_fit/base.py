"""Step 1: the few parameters of the physical base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from hardware_profiles import kernel_physics as kp
from hardware_profiles.kernel_fit.ops import OPS
from hardware_profiles.kernel_physics import Array

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
