"""What a run with TensorRT-LLM says of its server."""

from __future__ import annotations

from engine_models.balancer import balancer_note
from engine_models.declaration import PoolRequest
from engine_models.engines import trtllm_compressed, trtllm_states
from engine_models.schedulers.memory_then_tokens import UTILIZATION, TwoPassRules

NO_GRAPHS = "with LoRA adapters no CUDA graphs: before 1.2 they do not hold adapters"

INDEXED = "indexed attention: scheduled as other attention, with the kernels of the device's tables; no run was measured"


def layer_notes(request: PoolRequest) -> tuple[str, ...]:
    """Sentences on layers that are no plain attention."""
    states = request.arch.has("linear")
    said = {
        INDEXED: any(block.sparse for block in request.arch.attention),
        trtllm_states.NOTE: states,
        trtllm_states.DRAFTS_NOTE: states and request.speculation is not None,
        trtllm_compressed.NOTE: request.arch.compresses,
    }
    return (*(note for note, there in said.items() if there), *balancer_note(request))


def notes_of(
    name: str, rules: TwoPassRules, asked: int, *, stages: int, recorded: bool, reuse: bool, graphs: tuple[int, ...], padded: bool
) -> tuple[str, ...]:
    """Sentences on a version's rules, context, host and CUDA graphs; `asked` is the context that was asked for."""
    policy = rules.capacity_scheduler_policy
    prompts = f"in chunks ({rules.context_chunking_policy})" if rules.context_chunking_policy else "whole"
    lets_in = (
        "lets in what fits the next step, and pauses the last that began when memory runs short"
        if policy == UTILIZATION
        else "reserves memory for a request's whole allowed answer: its max_output_tokens, or, where it sets none, all up to "
        f"max_seq_len ({rules.max_seq_len:,})"
    )
    return (
        f"TensorRT-LLM {name}: at most {stages * rules.max_batch_size:,} active requests and {rules.max_num_tokens:,} tokens a "
        f"step, prompts {prompts} beside answers; {'blocks are reused' if reuse else 'no block reuse'}, "
        f"{'overlap scheduler' if rules.overlap else 'no overlap'}",
        f"{policy} {lets_in}",
        *(
            (
                f"{stages} micro-batches take turns over the stages of the pipeline, each of at most {rules.max_batch_size:,} "
                "requests; the layers left over stand in stages before the last, and the time in which ranks pass on schedules "
                "and sampled tokens is taken for none",
            )
            if stages > 1
            else ()
        ),
        *(
            (f"max_seq_len {asked:,} is reduced to the {rules.max_seq_len:,} tokens that the KV cache holds",)
            if asked > rules.max_seq_len
            else ()
        ),
        *(
            ()
            if recorded
            else (
                f"TensorRT-LLM {name} is simulated by the rules of 1.3 with its graph sizes; no recording of it was compared",
            )
        ),
        "TensorRT-LLM's host time of a step is taken over from vLLM (assumed); over 375 measured runs TPOT is 6 % and TTFT "
        "12 % off in the median (docs/engines/trtllm.md)",
        "without CUDA graphs (cuda_graph_config: none) the host launches every operation"
        if not graphs
        else f"decode steps of {'up to' if padded else 'exactly'} the captured sizes (to {graphs[-1]} rows) run as CUDA graphs"
        + ("" if padded else ", others are launched by the host (enable_padding is off)"),
    )


__all__ = ["NO_GRAPHS", "layer_notes", "notes_of"]
