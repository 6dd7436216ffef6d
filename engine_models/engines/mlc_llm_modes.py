"""What a mode of MLC-LLM makes of memory: rows, tokens of the cache and of a step, and what of the memory it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.drafting import Speculation
from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest
from engine_models.engines.mlc_llm_drafts import rows_served
from engine_models.engines.mlc_llm_memory import CHUNK, LOCAL_ROWS, LOCAL_TOKENS, memory_of
from engine_models.schedulers.hybrid_prefill import WATERMARK_TOKENS
from hardware_profiles.errors import InfeasibleError
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Sizes:
    """A pool in its mode.

    rows : requests at once, of which `served` run where each counts for all tokens that it verifies. context : the engine's,
    total : tokens of the cache, in `pages`, longest : those of one request. chunk : of a step with prompts. kept : ended
    sequences that stay, negative for all.
    """

    mode: str
    rows: int
    served: int
    context: int
    total: int
    pages: int
    page: int
    longest: int
    chunk: int
    kept: int
    memory: MemoryBudget

    @classmethod
    def of(cls, request: PoolRequest, flags: Mapping[str, Any], drafts: Speculation | None) -> Sizes:
        """By the flags of a pool; InfeasibleError where memory or a request has no room, InputError where drafts have none."""
        arch, mode, page = request.arch, str(flags["mode"]), int(flags["kv_cache_page_size"])
        compiled = {"local": min(LOCAL_ROWS, flags["max_batch_size"]), "interactive": 1, "server": flags["max_batch_size"]}
        rows = int(flags["max_num_sequence"] or compiled[mode])
        context = min(int(flags["context_window_size"] or arch.max_context_tokens), arch.max_context_tokens)
        compiled_chunk = min(arch.max_context_tokens, CHUNK)
        lines, per_token, most = memory_of(request, flags, rows, compiled_chunk)
        allowed = {
            "local": min(most, context, LOCAL_TOKENS),
            "interactive": min(most, context),
            "server": min(most, rows * context),
        }
        total = int(flags["max_total_seq_length"] or allowed[mode])
        if total > most:
            raise InfeasibleError(
                f"max_total_seq_length {total:,} is more than the {most:,} tokens that memory holds",
                where="deployment.engine_args.max_total_seq_length",
                mend=f"give at most {most}, or {request.more_memory}",
            )
        chunk = int(flags["prefill_chunk_size"] or (compiled_chunk if mode == "server" else min(compiled_chunk, total, context)))
        longest = min(context, total - WATERMARK_TOKENS - page)
        if longest < 2:
            raise InfeasibleError(
                f"the KV cache holds {total:,} tokens, no request fits", where="deployment", mend=request.more_memory
            )
        kept, pages = flags["prefix_cache_max_num_recycling_seqs"], -(-total // page) + 1
        usable, kv = sum(line.bytes for line in lines) + int(most * per_token), int(total * per_token)
        lines = (*lines, MemoryLine("unused", f"not used in mode {mode}", int(most * per_token) - kv))
        memory = MemoryBudget(request.device_memory_bytes, usable, lines, kv, per_token, int(per_token * page), pages)
        kept = rows if kept is None else kept
        return cls(mode, rows, rows_served(drafts, rows, chunk), context, total, pages, page, longest, chunk, kept, memory)


__all__ = ["Sizes"]
