"""What quantising a product's input to FP8 blocks costs in a kernel that walks the tokens one after the other.

A block of one warp holds 512 columns, and 64 of them share the tokens, whatever the device could hold: each waits for one token
after another from the cache or from memory, so that a prompt's pass takes as long for 512 columns as for 7,168:

    t = m d,  d = 18.5 ns where inputs and outputs of pass and product stay in the level-2 cache, else 35 ns

Few rows cost nothing beside the product's own start. What tables of later versions hold of the pass, a tenth, is not taken off.

Tried on what it was not fitted to, DeepSeek-R1 on eight and on four B200, prompts of 1,024 and 8,192 tokens, up to 256 users (15
runs, TensorRT-LLM 1.2.0rc6): TTFT 30 -> 9 % off, time per output token 10 -> 6 %.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray, IntArray
from hardware_profiles.ops import Ops

CACHED_TOKEN_S, TOKEN_S = 18.5e-9, 35e-9
"""d [s]. kind: fitted, 2026-11, source: FP8 products of TensorRT-LLM 1.2.0rc5 over those of 1.3.0rc20 on B200, 25,348 timings
(aiconfigurator 095f58a5, Apache-2.0): half of the differences are within 18.3 to 19.2 and 33 to 36 ns from 512 to 16,384 tokens
and depths of 384 to 8,192; at a depth of 256 it is 13. The kernel's grid: datasheet (`quantization/utils/fp8_utils.py`, 2025)."""
CACHE_SHARE = 0.6
"""Of the level-2 cache that inputs and outputs fill before a pass finds its input no longer there. kind: fitted, source: the
same (between 60 and 90 MB of 126 on B200)."""
FEW_TOKENS = 128
"""Up to so many tokens the difference is below 1 us. kind: measured, source: the same."""


def pass_s(ops: Ops, m: IntArray, n: int, k: int) -> FloatArray:
    """Seconds that the pass before a product of `m` tokens, n outputs and depth k takes beyond that of other kernels."""
    tokens = np.asarray(m, dtype=np.float64)
    cached = tokens * (3.0 * k + 2.0 * n) <= CACHE_SHARE * ops.peaks.l2_bytes
    return np.where(tokens > FEW_TOKENS, tokens * np.where(cached, CACHED_TOKEN_S, TOKEN_S), 0.0)
