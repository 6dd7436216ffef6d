"""Device memory of a server beside weights and KV cache, as vLLM's start-up reports show it; other engines assume the same.

Fitted, 2026-11: the KV blocks that vLLM 0.11.0 and 0.15.1 reported at start-up on H100 for Llama-2-7B (TP 1), CodeLlama-34B
(TP 1, budgets 64 and 4096; TP 2), Mixtral (TP 2) and Llama-2-70B (TP 4) (inference-sim, "training" and evaluation runs); all
seven within 1.5 % of the blocks.
"""

from __future__ import annotations

from engine_models.model.blocks import Architecture

CONTEXT_BYTES = 0.25e9  # CUDA context, cuBLAS workspaces, allocator slack: what remains on one device
COLLECTIVE_BYTES = 0.50e9  # NCCL channels and custom all-reduce buffers, with tensor parallelism only


def activation_bytes(
    arch: Architecture, tokens: int, rows: int, tensor_parallel: int, data_parallel: int = 1
) -> int:
    """Peak of a forward pass over `tokens` that samples `rows`: three widths of the MLP and of the hidden state, and logits.

    The gate and up halves and their product live together, beside the residual, its norm and the attention output; logits
    are held three times in float32 while sampling. Data-parallel ranks that share experts hold the hidden states of all ranks
    twice besides: gathered, and the experts' sums before they are scattered (assumed).
    """
    width = 0
    for mlp in arch.mlp:
        if mlp.kind == "dense":
            width = max(width, mlp.intermediate // tensor_parallel)
        else:
            routed = mlp.experts_per_token * mlp.expert_intermediate // tensor_parallel
            width = max(width, routed + mlp.shared_intermediate // tensor_parallel)
    gathered = 2 * data_parallel * arch.hidden if data_parallel > 1 else 0
    return int(tokens * 2 * (3 * width + 3 * arch.hidden + gathered) + 3 * 4 * rows * arch.vocab)
