"""Recurrent layers under TensorRT-LLM: places for states, and what its managers do not do beside them.

A rank keeps a state for each request that may be active, for the one that pads CUDA graphs, and under attention data parallelism
for one that keeps an idle rank in step; with drafts also the states after each token that a step verifies. They come out of the
KV cache's share of the memory. Their models are served without block reuse unless asked otherwise (`get_model_defaults`).
Source: `pyexecutor/mamba_cache_manager.py` (`_get_mamba_hybrid_pool_size`, `_estimate_mamba_hybrid_cache_cost`,
`_setup_mtp_intermediate_states`), `_util.py`, `models/modeling_{qwen3_next,nemotron_h,kimi_linear}.py` (public copies, read
2026-11).
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.declaration import PoolRequest
from engine_models.engines.trtllm_flags import group
from engine_models.model.architecture import state_bytes_per_sequence, with_state_values
from engine_models.refusals import no_layers

FAMILIES = ("kimi_linear", "nemotron_h", "qwen3_5", "qwen3_5_moe", "qwen3_next")
"""Families with recurrent layers that it serves (datasheet: `is_hybrid_linear` of `config_utils.py`, read 2026-11)."""
BLOCKS = {"kimi_linear": 64}
"""Family -> tokens of a block unless a flag says it (datasheet: `KimiLinearForCausalLM.get_model_defaults`, read 2026-11)."""
NOTE = (
    "recurrent layers (rules read, not recorded): each of max_batch_size requests has a place for its states in the KV cache's "
    "share of the memory, whether it is there or not, and no prefix is found again; no run was measured"
)
DRAFTS_NOTE = "recurrent layers keep the states after each token that a step verifies (the older rule; a newer one keeps less)"


def check_states(request: PoolRequest) -> None:
    """InputError for recurrent layers that TensorRT-LLM does not serve."""
    if request.arch.family not in FAMILIES:
        no_layers(request, ("linear",), f"TensorRT-LLM serves no recurrent layers such as those of {request.arch.name}")


def with_states(request: PoolRequest, *, by_config: bool) -> PoolRequest:
    """The pool with its states in the format that a flag says (`kv_cache_config.mamba_ssm_cache_dtype`), else the model's config
    or, not `by_config`, as wide as its activations.
    """
    values = group(request.flags, "kv_cache_config")["mamba_ssm_cache_dtype"]
    if (values == "auto" and by_config) or not request.arch.has("linear"):
        return request
    return replace(request, arch=with_state_values(request.arch, 4 if values == "float32" else 2))


def state_bytes(request: PoolRequest) -> int:
    """Bytes of a request's states on a rank, 0 without recurrent layers."""
    return state_bytes_per_sequence(request.arch, request.tensor_parallel, request.pipeline_parallel)


def states_held(request: PoolRequest, rows: int, row_tokens: int) -> int:
    """Bytes of all places for states on a rank."""
    places = rows * request.pipeline_parallel
    verified = places * row_tokens if request.speculation is not None else 0
    return state_bytes(request) * (places + 1 + (request.data_parallel > 1) + verified)


def reuses(request: PoolRequest) -> tuple[bool, str]:
    """Whether blocks are found again, and what is to be said where a flag asks for it in vain."""
    kv, given = group(request.flags, "kv_cache_config"), request.flags.get("kv_cache_config") or {}
    if not request.arch.has("linear"):
        return bool(kv["enable_block_reuse"]), ""
    asked = bool(given.get("enable_block_reuse"))
    return False, (
        "trtllm flag `kv_cache_config` (enable_block_reuse) is not modelled beside recurrent layers: in the engine snapshots of "
        "their states (mamba_state_config) let prompts be found again; here each is computed whole"
        if asked
        else ""
    )


__all__ = ["BLOCKS", "DRAFTS_NOTE", "NOTE", "check_states", "reuses", "state_bytes", "states_held", "with_states"]
