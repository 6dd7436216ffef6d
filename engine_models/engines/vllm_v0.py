"""vLLM's first engine, V0, the only one before 0.8: what it does by default, what of it is modelled, its scheduler.

It begins whole prompts before it decodes, unless prompts are cut, which it does by default only for long contexts; then it
decodes first, cuts what is left of the budget from prompts, and forms the steps of the later engine without looking ahead.

Read from vLLM 0.6.3 (`core/scheduler.py`, `config.py`, `engine/arg_utils.py`, `worker/model_runner.py`), 2026-11; no schedule of
it was recorded, and its host times are not known apart from those of the later engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine_models.declaration import Mode, PoolRequest
from engine_models.refusals import none_of

if TYPE_CHECKING:
    from engine_models.schedulers.whole_prefills import WholePrefillScheduler

LONG_CONTEXT_TOKENS = 32768
"""Context beyond which prompts are cut by default (datasheet: `arg_utils.py` of 0.6.3)."""
CHUNKED_TOKENS = ((0, 6, 5), 512, 2048)
"""Default token budget of a step with cut prompts before this version, and since (datasheet: `config.py` of 0.6.3 to 0.7.3)."""
TOKENS, ROWS = 2048, 256
"""Least token budget of a step of whole prompts, where the context is not longer, and rows (datasheet: `config.py` of 0.6.3)."""
LARGEST_GRAPH = 256
"""Rows of the largest CUDA graph; only decodes run in graphs (datasheet: `worker/model_runner.py` of 0.6.3)."""
WATERMARK = 0.01
"""Share of the blocks that a prompt leaves free (datasheet: `core/block_manager_v2.py` of 0.6.3)."""


def cuts_prompts(flags: Mapping[str, Any], max_model_len: int) -> bool:
    """Whether prompts are computed in parts beside decodes."""
    asked = flags.get("enable_chunked_prefill")
    return max_model_len > LONG_CONTEXT_TOKENS if asked is None else bool(asked)


def chunk_tokens(version: tuple[int, ...]) -> int:
    """Default token budget of a step with cut prompts."""
    since, before, now = CHUNKED_TOKENS
    return before if version < since else now


def refuse(request: PoolRequest, version: str, *, windows: bool, states: bool) -> None:
    """InputError on what is not modelled of this engine."""
    found = {
        "prefix caching": bool(request.flags.get("enable_prefix_caching")),
        "pipeline parallelism": request.pipeline_parallel > 1,
        "data-parallel attention": request.data_parallel > 1,
        "speculative decoding": request.speculation is not None,
        "KV offload": bool(request.tiers),
        "hand-over of requests": request.role != "mixed",
        "a model with sliding windows": windows,
        "a model with recurrent layers": states,
        "another device than a GPU": request.device_kind == "cpu",
    }
    cause = f"{{}} in vLLM {version}, whose first engine is another than that of 0.8 and later, is not modelled"
    mend = "name a later version, such as vllm@0.11.0, or leave that out"
    none_of(found, cause, where="deployment.engine", mend=mend)


def whole_prefills(tokens: int, rows: int, blocks: int, block_tokens: int, mode: Mode) -> WholePrefillScheduler:
    """The scheduler of whole prompts."""
    from engine_models.schedulers.whole_prefills import WholePrefillRules, WholePrefillScheduler

    return WholePrefillScheduler(
        WholePrefillRules(tokens, rows, WATERMARK),
        blocks,
        block_tokens,
        aggregate=mode != "step",
        record_rows=mode == "record",
    )


def longest_blocks(blocks: int) -> int:
    """Blocks that one request may take: alone it leaves the margin free, without which it would never be begun again."""
    return blocks - max(1, int(WATERMARK * blocks))
