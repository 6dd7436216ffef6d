"""vLLM's decode context parallelism: tensor ranks that would hold the same KV cache hold the tokens of a sequence in turn.

Read at 0.33.0 (`config/parallel.py`, `config/model.py`, `single_type_kv_cache_manager.py`): a block of the scheduler has the
tokens of all these ranks, and the cache as many times the tokens.
"""

from __future__ import annotations

from engine_models.declaration import PoolRequest
from hardware_profiles.errors import InputError

FLAG = "decode_context_parallel_size"
SINCE = (0, 10, 2)
"""The first version that has the flag (vllm-project/vllm#23734)."""


def context_ranks(request: PoolRequest) -> int:
    """Tensor ranks that share the tokens of a sequence, 1 without the flag."""
    return int(request.flags.get(FLAG) or 1)


def check_context(request: PoolRequest, version: tuple[int, ...]) -> None:
    """Raise InputError for a number of ranks that the engine refuses, and for what is not modelled beside it."""
    ranks, where = context_ranks(request), f"deployment.engine_args.{FLAG}"
    if ranks == 1:
        return
    if version < SINCE:
        raise InputError(f"vLLM has `{FLAG}` from 0.10.2 on", where=where, mend="use engine: vllm, or a later version of it")
    arch, tensor = request.arch, request.tensor_parallel
    if tensor % ranks:
        raise InputError(
            f"{tensor} tensor-parallel ranks are no multiple of {FLAG} {ranks}",
            where=where,
            mend="give a divisor of tensor_parallel",
        )
    if any(block.kind not in ("full", "mla") or block.window_tokens or block.sparse or block.sinks for block in arch.attention):
        raise InputError(
            f"`{FLAG}` beside windows, recurrent or sparse layers is not modelled, and {arch.name} has such",
            where=where,
            mend=f"remove {FLAG}",
        )
    for block in arch.attention:
        alike = tensor if block.kind == "mla" else max(1, tensor // block.kv_heads)
        if ranks > alike or (block.kind != "mla" and block.heads // block.kv_heads % ranks):
            raise InputError(
                f"{alike} tensor-parallel ranks hold the same keys and values of {arch.name}, and {FLAG} is {ranks}",
                where=where,
                mend=f"give {alike} or a divisor of it" if alike > 1 else f"remove {FLAG}",
            )
    beside = {
        "a role": request.role != "mixed",
        "drafts": request.speculation is not None,
        "KV tiers": bool(request.tiers),
        "images": request.images,
    }
    if named := next((name for name, there in beside.items() if there), None):
        raise InputError(f"`{FLAG}` beside {named} is not modelled yet", where=where, mend=f"remove {FLAG}")


__all__ = ["FLAG", "SINCE", "check_context", "context_ranks"]
