"""Weights of bitsandbytes in NF4: no kernel multiplies them, but for a single row.

    t = pass( weights (stored + 16 bits) ) + product in 16 bits;  of one row  t = product of 4-bit weights

Each product widens its whole matrix into memory before every use, and experts all of a layer's, chosen or not (by construction:
vLLM 0.17.1 `quantization/bitsandbytes.py`, which calls `matmul_4bit` and `dequantize_4bit`). The kernel for one row is taken to
be as quick as Marlin's (assumed). The widened copy's memory is left out.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray, IntArray
from engine_models.model.formats import format_named
from hardware_profiles.ops import Ops

NF4 = "nf4"
"""The format, as scenarios call it."""
SINGLE_ROW_FORMAT = "int4"
"""Whose kernel stands for that of one row."""


def widening_s(ops: Ops, weights: float) -> float:
    """Seconds to widen so many weights: their stored bits are read, 16 written."""
    return float(ops.elementwise_s(weights * (format_named(NF4).bits_per_weight / 8 + 2.0)))


def product_s(ops: Ops, rows: IntArray, n: int, k: int) -> FloatArray:
    """Seconds of a product of `rows` rows with `n` x `k` weights."""
    widened_s: FloatArray = widening_s(ops, float(n * k)) + ops.gemm_s("bf16", rows, n, k)
    return np.where(rows == 1, ops.gemm_s(SINGLE_ROW_FORMAT, rows, n, k), widened_s)
