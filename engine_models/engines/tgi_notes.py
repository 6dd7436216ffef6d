"""What a plan of TGI says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.engines.tgi_launcher import Serving, Version
from engine_models.schedulers.whole_lifetime import LifetimeRules


def warnings_of(flags: Mapping[str, Any], rules: LifetimeRules) -> tuple[str, ...]:
    """Flags that TGI ignores."""
    if not flags.get("max_batch_total_tokens"):
        return ()
    found = rules.max_batch_total_tokens
    return (f"max_batch_total_tokens: TGI finds it at warm-up ({found:,} here) and ignores what is given",)


def notes_of(
    version: Version, serving: Serving, rules: LifetimeRules, inflight: int, graphs: tuple[int, ...]
) -> tuple[str, ...]:
    """How it serves, and what is assumed."""
    chunks = "in chunks beside decoding rows" if serving.chunked_prefill else "whole, while the running rows wait"
    cache = "cached prompts can be found" if serving.prefix_caching else "no prefix cache"
    part = rules.reserved_answer_tokens
    held = "its whole answer" if part is None else f"at most {part:,} tokens of its answer, and queues again after these"
    return (
        f"TGI {version.name}: {rules.max_batch_total_tokens:,} KV tokens, {rules.max_batch_prefill_tokens:,} prompt tokens a "
        f"step, prompts {chunks}; {serving.attention} attention with pages of {serving.block_tokens}, {cache}",
        f"a request takes memory for its prompt and {held}; above {inflight} requests others are refused (429)",
        *(
            ()
            if version.recorded
            else (
                f"TGI {version.name} is simulated by the rules of 3.3 with its own constants; no recording of it was compared",
            )
        ),
        "TGI's kernels are priced as vLLM's; its host time of a step (1.2 ms, 20 us a row) and its front end are assumed, nobody "
        "measured them",
        "TGI runs without CUDA graphs"
        if not graphs
        else f"above {graphs[-1]} rows TGI's decode steps run outside CUDA graphs, as do all steps that compute prompts",
    )


__all__ = ["notes_of", "warnings_of"]
