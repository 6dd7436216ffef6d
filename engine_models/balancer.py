"""Experts whose ranks a balancer fills by their popularity, some of them more than once.

vLLM, SGLang and TensorRT-LLM have one, after DeepSeek's (EPLB). What it does to the most loaded rank is
:mod:`hardware_profiles.expert_ranks`'; the copies' weights count on every rank.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.declaration import PoolRequest
from hardware_profiles.errors import InputError


def with_balancer(request: PoolRequest, copies: int, *, balanced: bool, flag: str) -> PoolRequest:
    """The pool, the ranks of each of whose layers of experts hold `copies` more between them, placed by popularity or in order.

    flag : of the engine, that asks for it. Raises InputError for a model without experts, for experts that ranks do not share,
    and for places that they cannot share evenly.
    """
    if not copies and not balanced:
        return request
    where, ranks = f"deployment.engine_args.{flag}", request.expert_parallel
    if not request.arch.has_experts:
        raise InputError(f"`{flag}` places experts, and {request.arch.name} has none", where=where, mend=f"remove `{flag}`")
    if ranks < 2:
        raise InputError(
            f"`{flag}` places experts on several ranks, and here each of them lies on all",
            where=where,
            mend="set expert_parallel: true, with tensor_parallel or data_parallel of 2 or more",
        )
    for block in request.arch.mlp:
        if block.experts and (over := (block.experts + copies) % ranks):
            raise InputError(
                f"{block.experts} experts and {copies} copies of them do not share evenly over {ranks} ranks",
                where=where,
                mend=f"make it {copies + ranks - over} copies",
            )
    mlp = tuple(replace(b, copies=copies, balanced=balanced) if b.experts else b for b in request.arch.mlp)
    return replace(request, arch=replace(request.arch, mlp=mlp))


def balancer_note(request: PoolRequest) -> tuple[str, ...]:
    """What is assumed where a balancer places the experts; nothing where none does."""
    block = next((b for b in request.arch.mlp if b.balanced), None)
    if block is None:
        return ()
    copies = f", {block.copies} of them copies" if block.copies else ""
    return (
        f"a balancer deals {block.experts + block.copies} experts{copies}, to {request.expert_parallel} ranks by their "
        "popularity, which is taken to last; moving them takes no time (assumed)",
    )


__all__ = ["balancer_note", "with_balancer"]
