"""Recurrent layers: what a step moves and multiplies for their states, beside their projections.

A decoding row reads its state and writes it back, and its convolution the last inputs. A prompt chunk is computed in blocks of
`CHUNK_TOKENS`, one after the other: within a block products of the tensor cores, between blocks the state.

    decode:  t = STEP_S + rows * 2 * state / (STEP_SHARE * B)          (+ the convolution likewise)
    chunk:   t = CHUNK_S + (t_mem^3 + t_flop^3 + t_serial^3)^(1/3)

Kind: fitted, 2026-11, source: kernel tables of aisimulate 0.13.0 (`linear_attention`, vLLM 0.24 and 0.25 on H100, H200, B200,
B300, GB200, GB300; medians over these). Over all shapes of gated delta nets on H100, H200 and B200 it misses 7 to 12 %
(decode) and 7 % (chunks of one sequence). Mamba, lightning and other devices: assumed to move their bytes alike.
"""

from __future__ import annotations

import numpy as np

from engine_models.cost.tables import FloatArray
from engine_models.model.architecture import state_bytes_of
from engine_models.model.blocks import AttentionBlock
from hardware_profiles.ops import Ops

STEP_S, STEP_SHARE = 4.2e-6, 0.88
"""Launch of the decoding recurrence [s], and its share of the memory's rate."""
CONV_STEP_S, CONV_SHARE = 2.0e-6, 0.7
"""The same of the convolution's update; shares of 0.5 to 0.85 were fitted. Also used for chunks (2.9 us, 0.63 to 0.70)."""
CHUNK_TOKENS = 64
CHUNK_S, CHUNK_SHARE, BLOCK_S = 8.8e-6, 0.6, 2.9e-6
FP4_CHUNK_S, FP4_CHUNK_SHARE, FP4_BLOCK_S = 17.9e-6, 0.30, 2.3e-6
"""Chunks of gated delta nets: launches [s], share of the memory's rate, and seconds of a block of one sequence on a
multiprocessor per head; on Hopper, and on devices with FP4 (Blackwell)."""
KIMI_CHUNK_S, KIMI_CHUNK_SHARE, KIMI_BLOCK_S = 18e-6, 0.31, 4.3e-6
"""The same of Kimi delta attention (FlashKDA)."""


def decode_s(ops: Ops, block: AttentionBlock, tensor: int, rows: FloatArray) -> FloatArray:
    """Seconds of one layer for `rows` decoding rows."""
    rate = ops.peaks.hbm_bytes_per_s
    past = 2.0 * sum(width.on(tensor) for width in block.conv)
    state = state_bytes_of(block, tensor) - past
    total_s = np.zeros(np.shape(rows))
    if state:
        total_s = total_s + STEP_S + rows * 2.0 * state / (STEP_SHARE * rate)
    if past:
        total_s = total_s + CONV_STEP_S + rows * 2.0 * past / (CONV_SHARE * rate)
    return np.where(rows > 0, total_s, 0.0)


def chunk_s(ops: Ops, block: AttentionBlock, tensor: int, new_tokens: FloatArray) -> FloatArray:
    """Seconds of one layer for one prompt chunk of `new_tokens`."""
    rate = ops.peaks.hbm_bytes_per_s
    heads = -(-block.heads // tensor)
    keys, values = -(-block.kv_heads // tensor) * block.head_dim, heads * block.v_head_dim
    total_s = np.zeros(np.shape(new_tokens))
    if block.conv:
        channels = 2 * keys + values
        total_s = total_s + CONV_STEP_S + new_tokens * 4.0 * channels / (CONV_SHARE * rate)
    if block.state:
        launch_s, share, block_s = CHUNK_S, CHUNK_SHARE, BLOCK_S
        if block.mechanism.startswith("Kimi"):
            launch_s, share, block_s = KIMI_CHUNK_S, KIMI_CHUNK_SHARE, KIMI_BLOCK_S
        elif "fp4" in ops.peaks.flops_per_s:
            launch_s, share, block_s = FP4_CHUNK_S, FP4_CHUNK_SHARE, FP4_BLOCK_S
        blocks = np.ceil(new_tokens / CHUNK_TOKENS)
        memory_s = (new_tokens * 4.0 * (keys + values) + 2.0 * state_bytes_of(block, tensor)) / (share * rate)
        size, key, value = CHUNK_TOKENS, block.head_dim, block.v_head_dim
        flops = blocks * heads * (2.0 * size**2 * (key + value + size) + 6.0 * size * key * value)
        serial_s = blocks * block_s * max(1.0, heads / ops.peaks.multiprocessors)
        total_s = (
            total_s
            + launch_s
            + np.cbrt(memory_s**3 + (flops / ops.peaks.rate("bfloat16")) ** 3 + serial_s**3)
        )
    return np.where(new_tokens > 0, total_s, 0.0)
