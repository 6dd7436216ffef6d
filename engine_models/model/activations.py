"""Device memory of a server beside weights and KV cache, as vLLM's start-up reports show it; other engines assume the same.

Fitted, 2026-11: the KV blocks that vLLM 0.11.0 and 0.15.1 reported at start-up on H100 for Llama-2-7B (TP 1), CodeLlama-34B
(TP 1, budgets 64 and 4096; TP 2), Mixtral (TP 2) and Llama-2-70B (TP 4) (inference-sim, "training" and evaluation runs); all
within 0.3 % of the blocks.
"""

from __future__ import annotations

from engine_models.model.blocks import Architecture

CONTEXT_BYTES = 0.25e9  # CUDA context, cuBLAS workspaces, allocator slack: what remains on one device
COLLECTIVE_BYTES = 0.50e9  # NCCL channels and custom all-reduce buffers, with tensor parallelism only


def runtime_bytes(devices: int) -> int:
    """What context and, between several devices, collectives take of one [bytes]."""
    return int(CONTEXT_BYTES + (COLLECTIVE_BYTES if devices > 1 else 0))


SORT_BYTES, LOGIT_BYTES = 38, 12
"""Memory of a logit while rows are sampled: where a truncating sampler sorts, and else.

Sorting: bf16, float32, sorted, their indices in 64 bits, and PyTorch's workspace (2 + 4 + 4 + 8 + 20); else float32 three times
(assumed). kind: datasheet; measured: 38.3, from the 780,992 and 773,312 tokens of KV cache that vLLM 0.15.0 printed for 256 and
512 rows of Llama-3.3-70B on B200, and 782,160 for 16 to 128, where the forward pass needs more (SemiAnalysisAI/InferenceX, 2026).
"""


def tower_bytes(arch: Architecture, tensor_parallel: int, items: int, item_tokens: int) -> int:
    """Peak of a vision tower over so many images of so many tokens [bytes of a rank].

    The input, the residual, its norm and the output stay whole on each rank; the MLP's widths are split. By count; with images
    admitted Qwen3.6-35B has 1.56 GiB less of KV cache (read by its users of start-up lines, 2026-04; their flags are not known),
    where this is 1.66 less the language model's own peak (0.17 with four rows).
    """
    if arch.tower is None:
        return 0
    tower = arch.tower
    return 2 * items * item_tokens * tower.patches * (tower.inputs + 3 * tower.width + tower.inner // tensor_parallel)


def activation_bytes(
    arch: Architecture, tokens: int, rows: int, tensor_parallel: int, data_parallel: int = 1, logit_bytes: int = LOGIT_BYTES
) -> int:
    """Peak of a forward pass over `tokens`, or of sampling `rows` after it, of which the hidden states are left [bytes]."""
    forward = forward_bytes(arch, tokens, tensor_parallel, data_parallel)
    return max(forward, tokens * 2 * arch.hidden + logit_bytes * rows * arch.vocab)


def forward_bytes(arch: Architecture, tokens: int, tensor_parallel: int, data_parallel: int = 1) -> int:
    """Peak of a forward pass over `tokens` [bytes of a rank].

    A pass holds three widths of the MLP and four of the hidden state: the gate and up halves and their product live together,
    beside the layer's input, the residual, its norm and the attention output (CodeLlama-34B: 98,650 values a token, from its
    blocks at budgets of 64 and 4,096). Experts write an output for each token and choice, as wide as the hidden state, where the
    halves were (vLLM 0.11 to 0.33, `fused_moe.py` and `fused_marlin_moe.py`: one buffer for both, of the wider). Data-parallel
    ranks that share experts hold the hidden states of all ranks twice besides: gathered, and the experts' sums before they are
    scattered (assumed).
    """
    width = 0
    for mlp in arch.mlp:
        if mlp.kind == "dense":
            width = max(width, 3 * mlp.intermediate // tensor_parallel)
        else:
            inner = mlp.expert_intermediate // tensor_parallel
            routed = mlp.experts_per_token * (max(2 * inner, arch.hidden) + inner)
            width = max(width, routed + 3 * mlp.shared_intermediate // tensor_parallel)
    gathered = 2 * data_parallel * arch.hidden if data_parallel > 1 else 0
    return tokens * 2 * (width + 4 * arch.hidden + gathered)
