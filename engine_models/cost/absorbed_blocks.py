"""What the two absorbed products of latent attention take where their weights stay in FP8 blocks.

Decoding rows multiply their queries by half of a layer's `kv_b`, and what attention yields by the other half, head after
head. Where both run in FP8, each input is quantised and turned by a kernel of its own, and each output copied to its place: for
`h` heads of a rank (of DeepSeek's widths, 128 by 512) and `m` rows, both products together,

    t = 13.5 us + 0.093 us h + 2.56 ns h m

where products in 16 bits take 9 us up to 64 heads and rows.

Tried on what it was not fitted to, servers of DeepSeek-R1 on H200 and H100: the differences stand in docs/engines/trtllm.md.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray, IntArray

START_S, HEAD_S, HEAD_ROW_S = 13.5e-6, 0.093e-6, 2.56e-9
"""kind: fitted, 2026-11, source: 266 pairs of timings of TensorRT-LLM 1.3.0rc20's `fp8_block_scaling_bmm_out`, with its
quantising pass, on H200 and H100, 1 to 128 heads, 1 to 1,024 rows (aisimulate 0.13.0, Apache-2.0): 4 % off in the median, nine in
ten within 8 %; fitted to either GPU the constants differ by 4 %."""
HEAD_WEIGHTS = 2 * 128 * 512
"""Weights of a head in both products."""


def products_s(m: IntArray, n: int, k: int) -> FloatArray:
    """Seconds of both products for `m` rows, whose weights together have n outputs and depth k."""
    heads = n * k / HEAD_WEIGHTS
    return START_S + HEAD_S * heads + HEAD_ROW_S * heads * np.asarray(m, dtype=np.float64)
