"""Recurrent layers: what a step moves and multiplies for their states, beside their projections.

A decoding row reads its state and writes it back, and its convolution the last inputs. A prompt chunk is computed in blocks, one
after the other: within a block products of the tensor cores, between blocks the state. The times are the device's
(:meth:`~hardware_profiles.ops.Ops.recurrent_decode_s`): gated delta nets and Kimi delta attention by kernels measured on it,
Mamba-2, lightning attention and others by the same physics without a measurement. Mamba's prompts have no blocks: each channel
scans its tokens by itself, in 32 bits, state by state (:func:`scan_s`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from engine_models.cost.tables import FloatArray
from engine_models.cost.terms import fp32_rate
from engine_models.model.architecture import state_bytes_of
from engine_models.model.blocks import Architecture, AttentionBlock
from hardware_profiles.ops import Ops, Recurrence

KEPT_INPUTS = 3
"""Inputs that a convolution of four taps keeps. One of three taps is taken for as many channels as keep as much."""
VARIANTS: Mapping[str, str] = {"gated delta net": "gdn", "Kimi delta attention": "kda", "Mamba-2": "mamba2"}
"""Mechanism of a model -> variant as kernel tables call it."""


def layer_of(block: AttentionBlock, tensor: int) -> Recurrence:
    """A recurrent layer on one of `tensor` ranks."""
    past = sum(width.on(tensor) for width in block.conv)
    return Recurrence(
        VARIANTS.get(block.mechanism, block.mechanism),
        -(-block.kv_heads // tensor),
        -(-block.heads // tensor),
        block.head_dim,
        block.v_head_dim,
        state_bytes_of(block, tensor) - 2.0 * past,
        past // KEPT_INPUTS,
    )


SCANNED = "Mamba"
"""Mechanism whose channels scan their tokens."""
SCAN_FLOPS = 9.0
"""Operations of a scan by token, channel and value of its state. kind: by count, source: state-spaces/mamba issue 110, 2024."""
SCAN_SHARE = 0.4
"""Share of the rate in 32 bits that a scan reaches. kind: inferred, 2026-11, source: on A100 one of 4,096 channels of 16 values
takes as long as FlashAttention 2 of half the width at 2,048 tokens (Gu and Dao 2023, figure 8; state-spaces/mamba issue 27), by
its rate 0.1 ms: 0.58; others measured twice that time there: 0.29."""
SCAN_PASSES = 4.0
"""Values of 16 bits that a token moves by channel: input, step, gate, output."""


def scan_s(ops: Ops, layer: Recurrence, new_tokens: FloatArray) -> FloatArray:
    """Seconds of Mamba's scan for one prompt chunk of `new_tokens`: its arithmetic, or what it moves."""
    channels = np.asarray(new_tokens, dtype=np.float64) * layer.heads
    computed_s = SCAN_FLOPS * channels * layer.key_dim / (SCAN_SHARE * fp32_rate(ops))
    return np.maximum(computed_s, ops.elementwise_s(2.0 * SCAN_PASSES * channels + 2.0 * layer.state_bytes))


def decode_s(ops: Ops, block: AttentionBlock, tensor: int, rows: FloatArray) -> FloatArray:
    """Seconds of one layer for `rows` decoding rows."""
    return ops.recurrent_decode_s(layer_of(block, tensor), rows)


LAUNCHES: Mapping[str, float] = {"short convolution": 9.0, "Mamba": 15.0, "Mamba-2": 42.0, "lightning": 30.0}
"""Mechanisms other than delta rules -> launches of a layer beside its products in a step with a prompt, counted in plain
operations, a Triton kernel as five: two gates, the convolution and copies; the convolution, three norms, the scan and casts; the
convolution, six kernels of blocks, a gated norm and the states' copies; four kernels of blocks, a norm, a gate and copies by
request. kind: by count, 2026-11, source: vLLM 0.11 to 0.33, `layers/mamba/` (`short_conv.py`, `mamba_mixer.py`,
`mamba_mixer2.py` with `ops/ssd_combined.py`, `linear_attn.py`); SGLang's, which took them over, are assumed alike."""


def launches(arch: Architecture, delta_rule_launches: float) -> float:
    """Launches of a recurrent layer beside its products in a step with a prompt; else those of an engine's delta rule."""
    found = [LAUNCHES.get(block.mechanism, delta_rule_launches) for block in arch.attention if block.kind == "linear"]
    return max(found, default=delta_rule_launches)


STATE_PASSES: Mapping[str, float] = {"gated delta net": 6.0, "Kimi delta attention": 4.0}
"""Times that the rows' states pass the memory beside the kernel of prompts, reads and writes: copied out of the cache, those of
new requests cleared in the copy, the new ones copied back; Kimi's are cleared in the cache or by the copy (by construction:
vLLM 0.17.1 `qwen3_next.py` and `kda.py`, 0.33.0 `kimi_gdn_linear_attn.py`)."""


def beside_prompt_s(ops: Ops, block: AttentionBlock, tensor: int, rows: FloatArray) -> FloatArray:
    """Seconds of one layer for `rows` decoding rows that take the kernel of prompts: each is a block with one token in it."""
    layer = layer_of(block, tensor)
    copies_s = ops.elementwise_s(STATE_PASSES[block.mechanism] * layer.state_bytes * rows)
    return ops.recurrent_context_s(layer, 1.0, rows) + copies_s


def chunk_s(ops: Ops, block: AttentionBlock, tensor: int, new_tokens: FloatArray) -> FloatArray:
    """Seconds of one layer for one prompt chunk of `new_tokens`."""
    layer = layer_of(block, tensor)
    if block.mechanism == SCANNED:
        return scan_s(ops, layer, new_tokens) + ops.recurrent_context_s(replace(layer, state_bytes=0.0), new_tokens)
    return ops.recurrent_context_s(layer, new_tokens)
