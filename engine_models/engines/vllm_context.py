"""vLLM's decode context parallelism: tensor ranks that would hold the same KV cache hold the tokens of a sequence in turn.

Read at 0.33.0 (`config/parallel.py`, `config/model.py`, `single_type_kv_cache_manager.py`): a block of the scheduler has the
tokens of all these ranks, and the cache as many times the tokens.
"""

from __future__ import annotations

from engine_models.context_ranks import check_ranks, ranks_of
from engine_models.declaration import PoolRequest

FLAG = "decode_context_parallel_size"
SINCE = (0, 10, 2)
"""The first version that has the flag (vllm-project/vllm#23734)."""


def context_ranks(request: PoolRequest) -> int:
    """Tensor ranks that share the tokens of a sequence, 1 without the flag."""
    return ranks_of(request, FLAG)


def check_context(request: PoolRequest, version: tuple[int, ...]) -> None:
    """Raise InputError for a number of ranks that the engine refuses, and for what is not modelled beside it."""
    check_ranks(request, version, "vLLM", FLAG, SINCE)


__all__ = ["FLAG", "SINCE", "check_context", "context_ranks"]
