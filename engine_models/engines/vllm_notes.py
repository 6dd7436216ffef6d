"""What a run with vLLM says of its server: kernels, version, drafts, and flags that are not read."""

from __future__ import annotations

from engine_models.balancer import balancer_note
from engine_models.declaration import PoolRequest, Said
from engine_models.engines.vllm_flags import SPECULATIVE_HARMLESS, SPECULATIVE_KEYS
from engine_models.engines.vllm_kernels import EXPERTS
from engine_models.engines.vllm_options import warn_of_attention, warn_of_weights
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_versions import OLDEST_MEASURED, SECOND_ENGINE, VERSIONS, Version


def say_drafts(request: PoolRequest, said: Said) -> None:
    """How drafts are made, and which of their settings are not read."""
    if request.speculation is None:
        return
    from engine_models.cost.drafting import summary_note

    said.notes += [summary_note(request.speculation), *request.speculation.notes]
    config = request.flags.get("speculative_config") or {}
    unread = [key for key in config if key not in SPECULATIVE_KEYS and key not in SPECULATIVE_HARMLESS]
    said.warnings += [f"speculative_config `{key}` is not modelled and was ignored" for key in unread]


def say_steps(
    request: PoolRequest, version: Version, serving: Serving, blocks: tuple[int, int], backend: str | None, said: Said
) -> None:
    """Kernels and limits of a step; `blocks` are their number and their tokens, `backend` the kernels of experts."""
    if backend and request.arch.has_experts:
        said.notes.append(f"experts run on {EXPERTS[backend]} (vLLM's rule of version, format and GPU, or its flag)")
    said.notes += balancer_note(request)
    warn_of_attention(request, said.warnings)
    warn_of_weights(request, said.warnings)
    number, tokens = blocks
    said.notes.append(
        f"vLLM {version.name}: {serving.tokens} tokens and {serving.rows} rows a step, {number} blocks of {tokens} tokens"
    )


def outside_of(version: Version, asked: str | None, said: Said) -> tuple[str, ...]:
    """In what a version, asked for as `asked`, leaves the measured runs."""
    names = list(VERSIONS)
    if names.index(version.name) <= names.index(OLDEST_MEASURED):
        return ()
    rules = "the rules of its first engine, read from 0.6.3" if version.first_engine else f"{OLDEST_MEASURED}'s rules"
    unread = "" if version.first_engine else f", as the source of versions from {SECOND_ENGINE} on was not read before that one"
    said.warnings.append(
        f"vLLM {asked} is taken to follow {rules}{unread}, and to have the host times of later versions (assumed: "
        "older ones were slower)"
    )
    return (f"version: runs of vLLM {OLDEST_MEASURED} and later were measured, not of {asked}",)


__all__ = ["outside_of", "say_drafts", "say_steps"]
