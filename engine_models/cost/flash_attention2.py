"""What decode attention costs under FlashAttention 2, beside the time that a benchmark of equal rows shows.

vLLM hands a batch to FlashAttention in one call. Version 3 (Hopper) schedules its tiles and packs the query heads that share a KV
head whatever the batch. Version 2 (Ampere, Ada, Blackwell without HBM) has a fixed grid of thread blocks, which shows twice:

**A prompt beside decoding rows.** Version 2 packs heads, and splits long contexts, only when every row has a single query. One
prompt chunk in the batch, and each query head of each decoding row becomes a thread block of its own that walks its whole
context in tiles of 64 queries, 63 of them empty (vLLM pull request 58013, 2026-09, proposes two calls):

    t = ( compute^3 + memory^3 ) ^ (1/3)
    compute = max(1, rows heads / SMs) ( b0 + 4 64 d context SMs / P )
    memory  = t_alone ( 1 + miss ( group / at once - 1 ) )

P is the rate of prompt attention of the device on a long prompt: the same tiles, full. t_alone is the time of the rows alone,
which read their KV once. Heads that share a KV head find it in the L2 if they run together (`at once`: as many as the rows
leave multiprocessors for), or if the keys and values of one head of all rows fit (`miss` goes from 0 to 1 as they outgrow it).

Rows with drafts have several queries, and are unpacked in every step.

**Rows of unequal length.** The last thread blocks run alone; with w blocks a multiprocessor that lengthens the call by 0.3 / w.

Judged on attention that LLMServingSim measured (vLLM 0.19; RTX PRO 6000 with three models, RTX 4090 with one): mixed batches
have a mean error of 5 to 17 %, where the sum of prompt and packed decoding is short by 30 to 60 %; unequal rows take 2 to 14 %
more than equal ones, by the law 2 to 15 %. Without shared KV heads decoding rows alone run unpacked too, so tables of such models
show the walk of one block on every GPU: 23 ns a token on A100, 19 on L40S, 20 on RTX PRO 6000; from P 20, 25 and 22.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.device import Device, stacked_blackwell
from hardware_profiles.ops import Ops

FloatArray = NDArray[np.float64]

#: Queries of a tile with paged KV. kind: datasheet, 2026-11, source: the library's launch code (kBlockM of the split-KV
#: kernel, for every head size); grid of ceil(queries / 64) x rows x heads in vLLM pull request 58013.
TILE_QUERIES = 64
#: Start and end of one thread block [s]. kind: fitted, 2026-11, source: mixed batches of 1 to 16 rows of 16 tokens on RTX
#: PRO 6000, which take 4 us more for every thread block a multiprocessor (LLMServingSim 2.0, attention of Llama-3.1-8B and
#: Qwen3).
BLOCK_S = 4e-6
#: Norm in which compute and memory add: 1 one after the other, infinite one hidden behind the other. kind: fitted, 2026-11,
#: same source and RTX 4090: of 2, 3 and 6 the one without bias on either GPU.
SHARPNESS = 3.0
#: Share of the L2 that one KV head of all rows takes when misses begin, and when nothing is found any more. kind: fitted,
#: 2026-11, same source: 128 rows of 1,000 to 4,000 tokens.
MISS_FROM, MISS_TO = 0.75, 1.5
#: Time that the last blocks run alone, in mean blocks. kind: fitted, 2026-11, source: batches of unequal rows, coefficient
#: of variation 0.2 to 0.8, at 2 to 16 blocks a multiprocessor (LLMServingSim 2.0, skew tables of RTX PRO 6000 and RTX 4090).
TAIL_BLOCKS = 0.3
#: Blocks a multiprocessor between which the tail appears; below, contexts are split until the device is full. kind: fitted,
#: same.
TAIL_FROM, TAIL_TO = 1.25, 2.0
#: Tokens of the prompt whose attention gives the rate P. kind: assumed, 2026-11: long enough to be compute-bound.
LONG_PROMPT_TOKENS = 8192


def serves(device: Device) -> bool:
    """Whether vLLM's default attention on a device is FlashAttention 2."""
    if device.vendor != "nvidia":
        return False
    if device.architecture in ("ampere", "ada"):
        return True
    return device.architecture == "blackwell" and not stacked_blackwell(device)


def tail(blocks: FloatArray, multiprocessors: float) -> FloatArray:
    """Factor on the time of a call whose `blocks` thread blocks are of unequal length."""
    each = np.maximum(blocks, 1.0) / multiprocessors
    share: FloatArray = np.clip((each - TAIL_FROM) / (TAIL_TO - TAIL_FROM), 0.0, 1.0)
    return 1.0 + share * TAIL_BLOCKS / each


def decode_s(
    kernels: Ops,
    kv_fmt: str,
    heads: int,
    kv_heads: int,
    head_dim: int,
    window_tokens: int,
    rows: FloatArray,
    context: FloatArray,
    equal_s: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Seconds of decode attention of one layer: of decoding rows alone, and of the same rows beside a prompt.

    heads, kv_heads : per GPU. rows, context : decoding rows and their mean tokens, of one shape with `equal_s`, the time of as
    many equal rows alone. Without shared KV heads nothing is packed, and a prompt changes nothing.
    """
    peaks = kernels.peaks
    processors = float(peaks.multiprocessors)
    alone = equal_s * tail(rows * kv_heads, processors)
    group = heads / max(1, kv_heads)
    if group <= 1:
        return alone, alone
    long = float(LONG_PROMPT_TOKENS)
    prompt_s = kernels.prefill_attention_s("bf16", kv_fmt, heads, kv_heads, head_dim, 0, long, 0.0)
    rate = 2.0 * heads * head_dim * long * (long + 1.0) / float(np.max(prompt_s))
    span = np.minimum(context, float(window_tokens)) if window_tokens > 0 else context
    compute = np.maximum(1.0, rows * heads / processors)
    compute = compute * (BLOCK_S + 4.0 * TILE_QUERIES * head_dim * span * processors / rate)
    at_once = np.clip(processors / np.maximum(rows, 1.0), 1.0, group)
    share = (
        rows * span * 4.0 * head_dim / max(peaks.l2_bytes, 1.0)
    )  # keys and values of one head, two bytes each
    miss = np.clip((share - MISS_FROM) / (MISS_TO - MISS_FROM), 0.0, 1.0)
    memory = equal_s * (1.0 + miss * (group / at_once - 1.0))
    together = (compute**SHARPNESS + memory**SHARPNESS) ** (1.0 / SHARPNESS)
    return alone, np.maximum(together * tail(rows * heads, processors), alone)
