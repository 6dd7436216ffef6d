"""Decode context parallelism of vLLM and SGLang: which tensor ranks may hold the tokens of a sequence in turn.

Ranks that would hold the same KV cache can: all of latent attention, else as many as there are more of than KV heads.
"""

from __future__ import annotations

from engine_models.declaration import PoolRequest
from hardware_profiles.errors import InputError


def ranks_of(request: PoolRequest, flag: str) -> int:
    """Tensor ranks that share the tokens of a sequence, 1 without the flag."""
    return int(request.flags.get(flag) or 1)


def check_ranks(
    request: PoolRequest, version: tuple[int, ...], engine: str, flag: str, since: tuple[int, ...], *, latent_alone: bool = False
) -> None:
    """Raise InputError for a number of ranks that the `engine` refuses, and for what is not modelled beside it.

    `since` : the first version that has the flag. `latent_alone` : whether it is modelled for latent attention only.
    """
    ranks, where = ranks_of(request, flag), f"deployment.engine_args.{flag}"
    if ranks == 1:
        return
    if version < since:
        raise InputError(
            f"{engine} has `{flag}` from {'.'.join(map(str, since))} on",
            where=where,
            mend=f"use engine: {engine.lower()}, or a later version of it",
        )
    arch, tensor = request.arch, request.tensor_parallel
    if latent_alone and any(block.kind != "mla" for block in arch.attention):
        raise InputError(
            f"`{flag}` is modelled for latent attention, and {arch.name} has other", where=where, mend=f"remove {flag}"
        )
    if tensor % ranks:
        raise InputError(
            f"{tensor} tensor-parallel ranks are no multiple of {flag} {ranks}",
            where=where,
            mend="give a divisor of tensor_parallel",
        )
    if any(block.kind not in ("full", "mla") or block.window_tokens or block.sparse or block.sinks for block in arch.attention):
        raise InputError(
            f"`{flag}` beside windows, recurrent or sparse layers is not modelled, and {arch.name} has such",
            where=where,
            mend=f"remove {flag}",
        )
    for block in arch.attention:
        alike = tensor if block.kind == "mla" else max(1, tensor // block.kv_heads)
        if ranks > alike or (block.kind != "mla" and block.heads // block.kv_heads % ranks):
            raise InputError(
                f"{alike} tensor-parallel ranks hold the same keys and values of {arch.name}, and {flag} is {ranks}",
                where=where,
                mend=f"give {alike} or a divisor of it" if alike > 1 else f"remove {flag}",
            )
    beside = {
        "a role": request.role != "mixed",
        "drafts": request.speculation is not None,
        "KV tiers": bool(request.tiers),
        "images": request.images,
    }
    if named := next((name for name, there in beside.items() if there), None):
        raise InputError(f"`{flag}` beside {named} is not modelled yet", where=where, mend=f"remove {flag}")


def on_each(token_bytes: int, ranks: int) -> float:
    """Bytes of a token on each of the ranks that share its sequence, in the mean."""
    return token_bytes if ranks == 1 else token_bytes / ranks


__all__ = ["check_ranks", "on_each", "ranks_of"]
