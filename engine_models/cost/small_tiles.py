"""What attention of prompts costs in a kernel whose tiles hold 16 query rows, where the library's own knows no sinks.

The Triton kernel that stands in (`triton_unified_attention.py`, read from 0.11 to 0.33 of the engine whose it is) gives a program
16 rows: the query heads that share a KV head, of 16 / group tokens. Each walks all keys in tiles of 32, so that neither tensor
cores nor what is read are used well:

    t = 4 heads width ( pairs + 64 new ) / ( 220 FLOP x multiprocessors x clock )

The rate does not depend on lengths, batch or group (from four heads on): 207 to 237 on L40S, RTX PRO 6000, B200, B300, GB200 and
GB300, where FlashAttention and its like reach ten times as much.

Tried on gpt-oss-120b on A100, which the rate was not fitted to: 100 prompts of 32,000 tokens, whose output came 1.74 times too
quick, 2 cases.
"""

from __future__ import annotations

from engine_models.cost.sampling import clock_hz
from engine_models.cost.tables import FloatArray
from hardware_profiles.kernel_physics import as_array, causal_pairs
from hardware_profiles.ops import Ops

FLOP_PER_CYCLE, LOST_KEYS = 220.0, 64.0
"""Rate of a multiprocessor [FLOP a cycle], and what masked tiles, start and end of a row cost [keys]. kind: fitted, 2026-11;
source: aisimulate 0.13.0 (Apache-2.0), prompts of the kernel, heads of 192: of 4,096 to 16,384 tokens (six GPUs, within 7 %) and
of 128 to 1,024 (L40S and B200)."""


def prompt_s(
    ops: Ops, heads: int, head_dim: int, window_tokens: int, new_tokens: FloatArray, before_tokens: FloatArray
) -> FloatArray:
    """Seconds of one layer for `new_tokens` tokens after `before_tokens`."""
    keys = causal_pairs(new_tokens, before_tokens, as_array(window_tokens)) + LOST_KEYS * new_tokens
    rate = FLOP_PER_CYCLE * ops.peaks.multiprocessors * clock_hz(ops)
    return as_array(4.0 * heads * head_dim * keys / rate)
