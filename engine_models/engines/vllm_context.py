"""vLLM's decode context parallelism: tensor ranks that would hold the same KV cache hold the tokens of a sequence in turn.

Read at 0.33.0 (`config/parallel.py`, `config/model.py`, `single_type_kv_cache_manager.py`): a block of the scheduler has the
tokens of all these ranks, and the cache as many times the tokens.
"""

from __future__ import annotations

from engine_models.context_ranks import check_context_ranks
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
    check_context_ranks(request, ranks, FLAG)


__all__ = ["FLAG", "SINCE", "check_context", "context_ranks"]
