"""What Marlin's products with narrow weights cost in large batches.

Marlin widens weights to 16 bits in registers, again for every 64 rows of a batch, and multiplies with Ampere's instructions. It
saves bytes with few rows, and with many it stays below the rate that a product in 16 bits reaches:

    t >= 2 m n k / min(share x what the tensor cores give in 16 bits, the device's rate with sums in 32)
"""

from __future__ import annotations

from engine_models.cost.tables import FloatArray, IntArray
from engine_models.model.formats import Format
from hardware_profiles.device import Device
from hardware_profiles.ops import Ops

SHARES = {"ampere": 0.50, "ada": 0.66, "hopper": 0.27}
"""Share of the rate in 16 bits that Marlin reaches, by architecture. kind: measured, 2026-11; source: experts in INT4 with 256
and more rows each, less the passes over their activations, in the kernel tables of these GPUs: A100 156 TFLOP/s (132 rows, four
in five within 151 to 160), L40S 239 (6), H100 263 and 281 (12). That dense products reach the same is assumed; 141 on A100 were
published of the kernel of 2024 (vLLM pull request 2497)."""


PACKED = ("awq", "gptq", "int4", "int8_wo", "fp8a16", "nvfp4a16")
"""Formats that no hardware multiplies as they are, or whose files have nothing to make activations narrow by."""


def share_of(device: Device, weights: Format, *, machete: tuple[str, ...] = ()) -> float:
    """Of the device's rate in 16 bits, that products with narrow weights reach; 0 where they do not run on Marlin.

    Marlin takes what the hardware cannot multiply as it is, but for formats that an engine gives to `machete` on Hopper (SGLang
    0.5.23 has none, `layers/quantization/`).
    """
    if device.vendor != "nvidia":
        return 0.0
    blocks = ("fp4", "mxfp8")
    lacking = {"ampere": ("fp8", *blocks), "ada": blocks, "hopper": blocks}.get(device.architecture, ())
    elsewhere = machete if device.architecture == "hopper" else ()
    packed = weights.name in PACKED and weights.name not in elsewhere
    return SHARES.get(device.architecture, 0.0) if packed or weights.compute in lacking else 0.0


def widens(ops: Ops, fmt: str) -> bool:
    """Whether weights of a part are widened: none that the device multiplies as they are, beside others in one checkpoint."""
    return fmt in PACKED or ops.peaks.rate(fmt) <= ops.peaks.rate("bfloat16")


def floor_s(ops: Ops, share: float, m: IntArray, n: int, k: int) -> FloatArray:
    """The least seconds of one product of `m` tokens."""
    reached = min(share * ops.peaks.pipe_rate("bfloat16"), ops.peaks.rate("bfloat16"))
    least_s: FloatArray = m.astype(float) * (2.0 * n * k / reached)
    return least_s
