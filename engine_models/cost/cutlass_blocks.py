"""What a product with weights in FP8 blocks costs in CUTLASS's kernel on Hopper, which vLLM takes where DeepGEMM is not there.

A tile is 128 outputs of 128 tokens. The multiprocessors compute one each at a time, and a tile walks the depth in blocks of 128,
each the slower the more tiles are under way:

    waves = ceil( ceil(n / 128) ceil(m / 128) / multiprocessors ),  under way = tiles / (waves multiprocessors)
    t = quantisation + start + waves (tile + ceil(k / 128) (block + loaded * under way))

Versions that pad the input to a multiple of four rows copy it, and clear what they copy to, before.

Tried on what it was not fitted to, 2,112 x 7,168 with quantisation and padding (vLLM pull request 23280, H100, 1 to 8,192
tokens): 1 to 12 % quick. By it a single stream of DeepSeek-R1 on eight H200 by a wheel of vLLM 0.11.0 takes 15.8 ms a token where
15.85 are published (10.7 with DeepGEMM).
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray, IntArray
from hardware_profiles.ops import Ops

TILE, BLOCK = 128, 128
"""Tokens and outputs of a tile (inferred: times rise in steps where so many begin another wave); blocks are the format's."""
START_S, TILE_S, BLOCK_S, LOADED_S = 8e-6, 0.4e-6, 0.223e-6, 0.462e-6
"""Before the first wave, of a tile, of a block of its depth, and what that takes more with all multiprocessors at work [s].
kind: fitted, 2026-11; source: 512 x 7,168 and 3,072 x 1,536 at 1 to 4,096 tokens, vLLM's column of SGLang pull request 5820
(Hopper): 18 % quick to 11 % slow, 3 % off in the median. Of pull request 5207, not used: 24,576 x 7,168 at 512 to 4,096 tokens
2 % slow at most, 4,608 x 7,168 39 % quick with few tokens (its few tiles were slower there), right with 4,096."""


def product_s(ops: Ops, m: IntArray, n: int, k: int, *, pads: bool) -> FloatArray:
    """Seconds of one product of `m` tokens, what is done to its input included."""
    tokens = np.asarray(m, dtype=np.float64)
    tiles = -(-n // TILE) * np.ceil(tokens / TILE)
    waves = np.maximum(np.ceil(tiles / ops.peaks.multiprocessors), 1.0)
    under_way = tiles / (waves * ops.peaks.multiprocessors)
    input_s = ops.elementwise_s(3.0 * tokens * k)
    if pads:
        input_s = input_s + ops.elementwise_s(2.0 * tokens * k) + ops.elementwise_s(4.0 * tokens * k)
    walked_s: FloatArray = waves * (TILE_S + -(-k // BLOCK) * (BLOCK_S + LOADED_S * under_way))
    return np.where(tokens > 0, input_s + START_S + walked_s, 0.0)
