"""What the flags of a pool of SGLang say of its steps: context, pages, chunks of prompts, CUDA graphs, rows, rules."""

from __future__ import annotations

from engine_models.declaration import MemoryBudget, PoolRequest, Said
from engine_models.engines.sglang_attention import attention_of
from engine_models.engines.sglang_context import check_context, context_ranks
from engine_models.engines.sglang_drafts import DRAFTED_ROWS, drafted_graph_rows, overlaps
from engine_models.engines.sglang_flags import SPEC_V2
from engine_models.engines.sglang_memory import (
    caches_states_alone,
    default_running,
    slots_a_row,
    state_bytes,
)
from engine_models.engines.sglang_prompt_graphs import prompt_graph_tokens
from engine_models.engines.sglang_reserve import ROLES_SINCE, ROWS_CAP_GRAPHS_SINCE, memory_defaults
from engine_models.model.overrides import served_context, warn_of_longer
from engine_models.schedulers.prefill_first import PrefillFirstRules
from hardware_profiles.records import dataclass

RANK_CONSERVATIVENESS = 0.3
"""Factor of `schedule_conservativeness` under data-parallel attention (datasheet: SGLang 0.5 `server_args.py`, read
2026-11)."""


@dataclass(frozen=True)
class Serving:
    """What the flags of a pool say of its steps.

    context : longest request. page : tokens of the cache's. chunk : tokens that a prompt is cut to, a rank; not positive: it is
    not. asked_rows : rows asked for, of all ranks. graphs : captured rows; `graph_rows` the most of them. overlap : batches are
    formed ahead. routed : tokens are sent to their experts' ranks. number : the version.
    """

    context: int
    page: int
    chunk: int
    prefill_tokens: int
    asked_rows: int | None
    row_tokens: int
    graph_rows: int
    graphs: tuple[int, ...]
    prompt_graph_tokens: int
    overlap: bool
    routed: bool
    number: tuple[int, ...]

    @classmethod
    def of(cls, request: PoolRequest, number: tuple[int, ...], said: Said) -> Serving:
        """Read the flags of a pool; `number` is the version."""
        flags, drafts, dp = request.flags, request.speculation, request.data_parallel
        routed = flags.get("moe_a2a_backend", "none") != "none"
        if routed and dp == 1:
            said.warnings.append(
                "`moe_a2a_backend` is modelled between ranks of data-parallel attention, and changes nothing here"
            )
        overrides = flags.get("json_model_override_args") or {}
        most = served_context(request.arch, overrides, "json_model_override_args", said.warnings)
        context = int(flags.get("context_length") or most)
        warn_of_longer(context, most, "context_length", "SGLang", "SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1", said.warnings)
        default_chunk, default_graph = memory_defaults(request.device_memory_bytes, request.tensor_parallel * dp, number)
        asked_chunk = flags.get("chunked_prefill_size")
        chunk = default_chunk if asked_chunk is None else int(asked_chunk)
        if chunk > 0:
            chunk = max(1, chunk // dp)  # the flag counts the tokens of all data-parallel ranks
        asked_rows = flags.get("max_running_requests") or (DRAFTED_ROWS if drafts else None)
        if asked_rows and (drafts or number >= ROWS_CAP_GRAPHS_SINCE):
            default_graph = min(default_graph, int(asked_rows))
        captured = tuple(sorted(map(int, flags.get("cuda_graph_bs") or ())))
        graph_rows = int(flags.get("cuda_graph_max_bs") or max(captured, default=default_graph))
        row_tokens = drafts.row_tokens if drafts else 1
        sizes = captured or (drafted_graph_rows(graph_rows) if drafts else graph_sizes(graph_rows))
        on = not flags.get("disable_cuda_graph", False)
        overlap = not flags.get("disable_overlap_schedule", False) and request.pipeline_parallel == 1
        if overlap and caches_states_alone(request, number):
            overlap = False
            said.notes.append("states of recurrent layers are cached without a second buffer, so that no step is formed ahead")
        if drafts:
            overlap = overlap and overlaps(drafts, number, SPEC_V2.get(str(flags.get("enable_spec_v2"))))
        return cls(
            context,
            _page_tokens(request, number),
            chunk,
            int(flags.get("max_prefill_tokens") or 16384),
            int(asked_rows) if asked_rows else None,
            row_tokens,
            graph_rows if on else 0,
            tuple(row_tokens * size for size in sizes) if on else (),
            prompt_graph_tokens(request, number, chunk) if context_ranks(request) == 1 else 0,
            overlap,
            routed,
            number,
        )

    @property
    def largest_prefill(self) -> int:
        """Tokens of prompts in a step: the last of a batch may exceed `max_prefill_tokens`, and is cut by the chunk alone."""
        return self.chunk if self.chunk > 0 else max(self.prefill_tokens, self.context)

    def reserved_tokens(self, request: PoolRequest) -> int:
        """Tokens that memory is set aside for: a chunk of all data-parallel ranks, else what a step admits; where a server only
        decodes, its rows."""
        if request.role == "decode" and self.number >= ROLES_SINCE:
            return (self.asked_rows or self.graph_rows or 1) * self.row_tokens
        return self.chunk * request.data_parallel if self.chunk > 0 else self.prefill_tokens

    def step_tokens(self, rows: int) -> int:
        """Tokens of a step at most, where `rows` may decode."""
        return max(self.largest_prefill, rows * self.row_tokens)


def _page_tokens(request: PoolRequest, version: tuple[int, ...]) -> int:
    """Tokens of a page of the cache: what is asked for, where attention takes it."""
    check_context(request, version)
    return attention_of(request, version).page_tokens(int(request.flags.get("page_size") or 1)) * context_ranks(request)


def graph_sizes(largest: int) -> tuple[int, ...]:
    """Decode-graph sizes in rows: 1, 2, 4, 8, 12, then steps of 8 to 256, of 16 to 512, of 32 beyond."""
    sizes = {1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, largest + 1, 32), largest}
    return tuple(sorted(size for size in sizes if size <= largest))


def kv_tokens_of(request: PoolRequest, serving: Serving, memory: MemoryBudget) -> int:
    """Tokens of the KV cache, whole pages."""
    tokens, asked = memory.blocks * serving.page, request.flags.get("max_total_tokens")
    return min(tokens, int(asked) // serving.page * serving.page) if asked else tokens


def rows_of(request: PoolRequest, serving: Serving, memory: MemoryBudget, tokens: int) -> int:
    """Rows of a rank at most. A limit of micro-batches holds without a pipeline too, whose one batch it then is
    (`get_num_allocatable_reqs`, 0.5.23)."""
    asked, state = serving.asked_rows, state_bytes(request)
    rows = max(1, asked // request.data_parallel) if asked else default_running(tokens, serving.context)
    if request.pipeline_parallel == 1:
        rows = min(rows, int(request.flags.get("pp_max_micro_batch_size") or rows))
    return min(rows, memory.bytes_of("state") // state // slots_a_row(request)) if state else rows


def rules_of(request: PoolRequest, serving: Serving, rows: int) -> PrefillFirstRules:
    """The rules of a rank's scheduler, of at most `rows` rows."""
    flags, chunk = request.flags, serving.chunk
    priority = bool(flags.get("enable_priority_scheduling", False))
    return PrefillFirstRules(
        max_running_requests=rows,
        max_model_len=serving.context,
        max_prefill_tokens=serving.prefill_tokens,
        chunked_prefill_size=chunk if chunk > 0 else None,
        in_flight=2 if serving.overlap else 1,
        schedule_policy=str(flags.get("schedule_policy", "fcfs")),
        schedule_conservativeness=float(flags.get("schedule_conservativeness", 1.0))
        * (RANK_CONSERVATIVENESS if request.data_parallel > 1 else 1.0),
        mixed_chunk=bool(flags.get("enable_mixed_chunk", False)) and chunk > 0,
        priority_scheduling=priority,
        low_priority_values_first=bool(flags.get("schedule_low_priority_values_first", False)),
        preemption=priority and not flags.get("disable_priority_preemption", False),
        preemption_threshold=int(flags.get("priority_scheduling_preemption_threshold", 10)),
        prefill_max_requests=flags.get("prefill_max_requests"),
        receive_interval=int(flags.get("scheduler_recv_interval", 1)),
    )


__all__ = ["Serving", "graph_sizes", "kv_tokens_of", "rows_of", "rules_of"]
