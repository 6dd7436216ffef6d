"""What a run with SGLang says of its server: memory, steps, drafts, adapters and masks."""

from __future__ import annotations

from engine_models.balancer import balancer_note
from engine_models.cost.adapters import Adapters
from engine_models.cost.adapters import summary_note as adapters_note
from engine_models.cost.drafting import summary_note
from engine_models.cost.token_masks import TokenMasks
from engine_models.cost.token_masks import summary_note as masks_note
from engine_models.declaration import MemoryBudget, PoolRequest, Said
from engine_models.engines.sglang_memory import slots_a_row, state_bytes
from engine_models.engines.sglang_serving import Serving
from engine_models.engines.sglang_windows import pools_windows, window_pool, window_share

COMPRESSED_NOTE = (
    "compressed attention: windows have a pool of a tenth of the tokens (SGLang's default), which never runs short (assumed)"
)


def say_steps(
    request: PoolRequest, version: str, serving: Serving, memory: MemoryBudget, limits: tuple[int, int], said: Said
) -> None:
    """What is assumed of memory and steps; `limits` are tokens of the cache and rows."""
    (tokens, rows), state, captured = limits, state_bytes(request), serving.prompt_graph_tokens
    if state:
        said.notes.append(
            f"recurrent layers: slots for {memory.bytes_of('state') // max(1, state)} states of {state / 1e6:,.0f} MB, "
            f"{slots_a_row(request)} a request"
        )
    if request.arch.compresses:
        said.notes.append(COMPRESSED_NOTE)
    elif pools_windows(request, serving.number):
        share = window_share(request, serving.number)
        short = "" if window_pool(request, serving.number, tokens) else ", which never runs short (assumed)"
        said.notes.append(f"windows have a pool of {share:g} times the other layers' tokens{short}")
    said.notes += balancer_note(request)
    said.notes += [
        f"SGLang {version}: {tokens} KV tokens, {rows} rows, prefill of {serving.largest_prefill} tokens a step",
        "SGLang's front end was measured with Llama-3.1-8B on eight GPUs, its host time of a step is assumed",
        f"CUDA graphs hold prefills of up to {captured} tokens" if captured else "no CUDA graph holds a prefill",
    ]


def say_beside(
    request: PoolRequest, version: str, serving: Serving, adapters: Adapters | None, masks: TokenMasks | None, said: Said
) -> None:
    """What is assumed of drafts, adapters and masks; `version` as it was asked for."""
    drafts = request.speculation
    if drafts:
        ahead = "scheduled ahead" if serving.overlap else "scheduled when the step before has ended (no overlap)"
        said.notes += [summary_note(drafts), *drafts.notes, f"SGLang {version} with drafts: steps are {ahead}"]
    if adapters is not None:
        said.notes.append(adapters_note(adapters))
    if masks is not None:
        said.notes.append(masks_note(masks))
