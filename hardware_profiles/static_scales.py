"""The pass over activations that finds their scale, where a table of FP8 products holds it and a server does not run it.

TensorRT-LLM's benchmark of linear layers gives no input scale, so each product finds one first. A checkpoint of ModelOpt, which
the engine loads, has them stored: what is left beside the product is the conversion.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from hardware_profiles.kernel_physics import Array


class Pass(NamedTuple):
    """Launch time [s], and bytes of 16-bit activations that it reads a second [bytes/s]."""

    latency_s: float
    bytes_per_s: float


SCALE_PASSES: Mapping[str, Mapping[str, Pass]] = {
    "trtllm": {
        "b200-sxm-180gb": Pass(8.86e-6, 3.56e12),
        "b300-sxm-288gb": Pass(8.81e-6, 3.68e12),
        "gb200-186gb": Pass(8.78e-6, 3.73e12),
        "gb300-288gb": Pass(8.71e-6, 3.82e12),
        "h100-sxm-80gb": Pass(7.09e-6, 1.63e12),
        "h200-sxm-141gb": Pass(7.06e-6, 1.73e12),
        "l40s-48gb": Pass(6.13e-6, 1.94e12),
        "rtx-pro-6000-96gb": Pass(7.09e-6, 4.22e12),
    }
}
"""Framework and device of the table -> the pass. kind: fitted, 2026-11; source: aiconfigurator 095f58a and aisimulate
0.13.0 (Apache-2.0), table `compute_scale` of TensorRT-LLM 1.3.0rc20, 1,460 to 1,480 shapes each, mean error 7 to 12 %."""


def scale_pass(framework: str, table: str, fmt: str) -> Pass | None:
    """The pass that the table's products in `fmt` hold and a server's do not; None without one."""
    return SCALE_PASSES.get(framework, {}).get(table) if fmt == "fp8" else None


def pass_s(found: Pass, values: Array) -> Array:
    """Seconds of the pass over so many values in 16 bits."""
    return found.latency_s + 2.0 * values / found.bytes_per_s
