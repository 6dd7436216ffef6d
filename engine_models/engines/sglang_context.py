"""SGLang's decode context parallelism: tensor ranks of latent attention hold the tokens of a sequence in turn.

Read at 0.5.23: a slot of the pool belongs to the rank of its number (`slot % dcp_size`), the radix tree has pages of all ranks'
tokens (`mem_cache/kv_cache_builder.py`), no prefill is captured (`arg_groups/cuda_graph_hook.py`), and what ranks find is
exchanged all to all by default (`_dcp_comm_backend_default`), which is priced as the sums of
`engine_models.cost.context_parallel`.
"""

from __future__ import annotations

from engine_models.context_ranks import check_context_ranks
from engine_models.declaration import PoolRequest
from hardware_profiles.errors import InputError

FLAG = "dcp_size"
SINCE = (0, 5, 17)
"""The first version whose parser has the flag."""


def context_ranks(request: PoolRequest) -> int:
    """Tensor ranks that share the tokens of a sequence, 1 without the flag."""
    return int(request.flags.get(FLAG) or 1)


def check_context(request: PoolRequest, version: tuple[int, ...]) -> None:
    """Raise InputError for a number of ranks that the engine refuses, and for what is not modelled beside it."""
    ranks, where = context_ranks(request), f"deployment.engine_args.{FLAG}"
    if ranks == 1:
        return
    if version < SINCE:
        raise InputError(f"SGLang has `{FLAG}` from 0.5.17 on", where=where, mend="use engine: sglang, or a later version of it")
    if any(block.kind != "mla" for block in request.arch.attention):
        raise InputError(
            f"`{FLAG}` is modelled for latent attention, and {request.arch.name} has other", where=where, mend=f"remove {FLAG}"
        )
    check_context_ranks(request, ranks, FLAG)


__all__ = ["FLAG", "SINCE", "check_context", "context_ranks"]
