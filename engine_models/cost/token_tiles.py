"""What a product with weights in FP8 blocks costs in FlashInfer's TensorRT-LLM kernel, whose tiles hold few tokens.

A tile is 128 outputs of up to 32 tokens. The multiprocessors compute one each at a time, so that a product takes waves of tiles,
and a tile walks the depth in blocks of 128. Weights that the level-2 cache does not hold come from memory again in every wave:

    waves = ceil( ceil(n / 128) ceil(m / 32) / multiprocessors )
    t = quantisation + start + waves max( tile + block ceil(k / 128), n k / memory at most one tile a multiprocessor )

It is made for decoding: with few tokens as quick as any, with a prompt's it reaches a tenth of the FP8 rate (DeepGEMM: half).

Tried on what it was not fitted to, prompts of DeepSeek-R1 on B200 and GB200: TTFT 36 -> 20 % off and 33 -> 15 %.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray, IntArray
from hardware_profiles.ops import Ops

TILE_TOKENS, TILE_OUTPUTS, BLOCK = 32, 128, 128
"""Of a tile (inferred: times rise in steps where so many tokens begin another wave on 148 multiprocessors, of 576 outputs at
1,024, 2,048 and 4,096 tokens, of 2,048 between 256 and 512); blocks are the format's."""
LEAST_DEPTH = 256
"""Smallest depth that the kernel takes, below it another stands in (datasheet: SGLang 0.5.23, `fp8_utils.py`)."""
START_S, TILE_S, BLOCK_S = 1.5e-6, 2.18e-6, 0.175e-6
"""Before the first wave, of a tile, and of a block of its depth [s]. kind: fitted, 2026-11; source: B200, 2,048 x 1,024 at 8 to
512 tokens (NVIDIA/cutlass issue 2923) and 576 x 7,168 at 8 to 4,096 (SGLang pull request 13528, whose times have 3 us of launch
more): 2 % off at most. That request's 24,576 x 7,168, whose weights are beyond the cache and which was not used: 9 to 18 %
quick."""


def product_s(ops: Ops, m: IntArray, n: int, k: int) -> FloatArray:
    """Seconds of one product of `m` tokens, the quantisation of its input included."""
    tiles_wide = -(-n // TILE_OUTPUTS)
    together = ops.peaks.multiprocessors
    waves = np.ceil(tiles_wide * np.ceil(np.asarray(m) / TILE_TOKENS) / together)
    wave_s = TILE_S + BLOCK_S * -(-k // BLOCK)
    if n * k > ops.peaks.l2_bytes:
        wave_s = max(wave_s, min(tiles_wide, together) * TILE_OUTPUTS * k / ops.peaks.hbm_bytes_per_s)
    quantised_s: FloatArray = ops.elementwise_s(3.0 * np.asarray(m, dtype=np.float64) * k)
    return np.where(np.asarray(m) > 0, quantised_s + START_S + waves * wave_s, 0.0)
