"""SGLang's decode context parallelism: tensor ranks of latent attention hold the tokens of a sequence in turn.

Read at 0.5.23: a slot of the pool belongs to the rank of its number (`slot % dcp_size`), the radix tree has pages of all ranks'
tokens (`mem_cache/kv_cache_builder.py`), no prefill is captured (`arg_groups/cuda_graph_hook.py`), and what ranks find is
exchanged all to all by default (`_dcp_comm_backend_default`), which is priced as the sums of
`engine_models.cost.context_parallel`.
"""

from __future__ import annotations

from engine_models.context_ranks import check_ranks, ranks_of
from engine_models.declaration import PoolRequest

FLAG = "dcp_size"
SINCE = (0, 5, 17)
"""The first version whose parser has the flag."""


def context_ranks(request: PoolRequest) -> int:
    """Tensor ranks that share the tokens of a sequence, 1 without the flag."""
    return ranks_of(request, FLAG)


def check_context(request: PoolRequest, version: tuple[int, ...]) -> None:
    """Raise InputError for a number of ranks that the engine refuses, and for what is not modelled beside it."""
    check_ranks(request, version, "SGLang", FLAG, SINCE, latent_alone=True)


__all__ = ["FLAG", "SINCE", "check_context", "context_ranks"]
