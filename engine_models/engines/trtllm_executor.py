"""What all servers of TensorRT-LLM's executor share: the memory that it leaves for keys and values.

Source: `pyexecutor/_util.py` of the repository, read 2026-11; the C++ executor takes its share of what is free once the engine is
loaded, with the buffers of its largest step (`docs/source/reference/memory.md` there).
"""

from __future__ import annotations

from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest, line_if_any
from engine_models.model.activations import activation_bytes, runtime_bytes
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from hardware_profiles.errors import InfeasibleError
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class MemoryWords:
    """The server's own names of the tokens of a step and of the share of free memory."""

    step_tokens: str
    share: str


def memory_left(
    request: PoolRequest,
    tokens: int,
    context: int,
    fraction: float,
    block_tokens: int,
    max_tokens: int | None,
    words: MemoryWords,
    lora_bytes: int = 0,
    state_bytes: int = 0,
    token_bytes: int | None = None,
) -> MemoryBudget:
    """KV bytes = the share of what is free after a trial run of one full step of `tokens`; at most `max_tokens` of them.

    lora_bytes : of the cache of adapters, which is there in the trial run. state_bytes : of what requests have whole, such as
    states of recurrent layers, out of the share. token_bytes : of a token on a rank, None for all layers' keys and values.

    Raises InfeasibleError if not even two blocks are left.
    """
    arch, tp, pp, device = request.arch, request.tensor_parallel, request.pipeline_parallel, request.device_memory_bytes
    weights = weight_bytes_per_rank(
        arch, request.formats.weights, tp, pp, request.expert_parallel, request.data_parallel
    )
    drafter = request.speculation
    draft_weights = drafter.weight_bytes() if drafter else 0
    activations = activation_bytes(arch, tokens, -(-tokens // max(context - 1, 1)), tp)
    other = runtime_bytes(tp)
    own = kv_bytes_per_token(arch, request.formats.kv_cache, tp, pp) if token_bytes is None else token_bytes
    per_token = own + (drafter.kv_bytes_per_token() if drafter else 0)
    block = int(per_token * block_tokens)
    free = device - weights - draft_weights - lora_bytes - activations - other
    share = int(free * fraction)
    usable = share - state_bytes
    if usable < 2 * block:
        lack = (2 * block - usable) / fraction
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + {(activations + other) / 1e9:.1f} GB besides "
            f"(a step of {tokens:,} tokens)"
            + (f" + {state_bytes / 1e9:.1f} GB of places for what requests have whole" if state_bytes else "")
            + f", of {device / 1e9:.1f} GB; {lack / 1e9:.1f} GB too much on each of {tp * pp} devices",
            where="deployment",
            mend=f"{request.more_memory}, or a smaller engine_args.{words.step_tokens}"
            + (" or max_batch_size (each request has a place)" if state_bytes else ""),
        )
    blocks = usable // block
    if max_tokens is not None:
        blocks = min(blocks, max(int(max_tokens) // block_tokens, 2))
    return MemoryBudget(
        device_bytes=device,
        usable_bytes=device,
        lines=(
            MemoryLine("weight", "weights", weights),
            *line_if_any("draft", "weights of the drafter", draft_weights),
            *line_if_any("lora", "cache of LoRA adapters", lora_bytes),
            *line_if_any("state", "states, windows: places of requests", state_bytes),
            MemoryLine("activation", "activations (trial run of a full step)", activations),
            MemoryLine("other", "CUDA context, collectives", other),
            MemoryLine("free", f"left free (1 - {words.share}), CUDA graphs", free - share),
        ),
        kv_bytes=usable,
        kv_bytes_per_token=per_token,
        block_bytes=block,
        blocks=blocks,
    )


__all__ = ["MemoryWords", "memory_left"]
