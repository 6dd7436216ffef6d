"""Which prompts SGLang's CUDA graphs hold, by version, model and GPU, unless a flag says otherwise.

Read 2026-11 in `server_args.py` of 0.5.10 (`_handle_piecewise_cuda_graph`), 0.5.12, 0.5.14 and 0.5.17, in
`arg_groups/cuda_graph_hook.py` of 0.5.20 and 0.5.23, and in the lists of `configs/model_config.py`. Until 0.5.17 they are pieces
that PyTorch compiles, since then graphs with breaks, which fewer things rule out.
"""

from __future__ import annotations

from engine_models.declaration import PoolRequest
from engine_models.engines.sglang_attention import is_latent
from engine_models.engines.sglang_reserve import sees
from hardware_profiles.device import load_device, stacked_blackwell

CAPTURED_SINCE = (0, 5, 10)
"""First version that captures prompts unless told otherwise (datasheet: release notes of v0.5.10, 2026-04, and pull request
16331)."""
_BREAKS_SINCE = (0, 5, 17)
"""First version read whose graphs have breaks (0.5.14 has none yet)."""
_DRAFTS_SINCE, _LATENT_SINCE, _LARGE_LATENT_SINCE = (0, 5, 12), (0, 5, 20), (0, 5, 23)
"""First versions read that capture beside drafts, and latent attention in graphs with breaks: and more than `LATENT_TOKENS`."""
LATENT_TOKENS, MOST_LATENT_TOKENS = 2048, 8192
"""Largest captured prompt of a model with latent attention [tokens], before and since; of others the prefill chunk."""
_LEFT_OUT: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), (CAPTURED_SINCE, (0, 5, 14))),
    "qwen3_next": (CAPTURED_SINCE, _BREAKS_SINCE),
    "deepseek_v4": (CAPTURED_SINCE, (99,)),
    "nemotron_h": (_BREAKS_SINCE, (0, 5, 20)),
    "kimi_linear": (_BREAKS_SINCE, (99,)),
}
"""Type of model -> first version in which its prompts are not captured, and first in which they are again."""
_SEEING_CAPTURED = ("qwen3_5", "qwen3_5_moe", "kimi_k2", "minimax_m3")
"""Types of models that see whose prompts graphs with breaks hold."""
_ON_TRTLLM_MLA = ("deepseek_v3", "kimi_k2")
"""Types whose architecture is DeepSeek-V3's: TensorRT-LLM's attention, which data-centre Blackwell has, is none for graphs."""


def prompt_graph_tokens(request: PoolRequest, version: tuple[int, ...], chunk_tokens: int) -> int:
    """Most tokens of a prefill that a CUDA graph holds, 0 if none does.

    Prefills are captured by default since 0.5.10, before with `enable_piecewise_cuda_graph`; over the stages of a pipeline only
    up to the tokens that are asked for, never under data-parallel attention.
    """
    flags = request.flags
    wanted = not flags.get("disable_piecewise_cuda_graph", False) and (
        _captured_by_default(request, version) or bool(flags.get("enable_piecewise_cuda_graph", False))
    )
    if not wanted or request.data_parallel > 1 or flags.get("disable_cuda_graph", False):
        return 0
    if flags.get("piecewise_cuda_graph_max_tokens"):
        return int(flags["piecewise_cuda_graph_max_tokens"])
    if request.pipeline_parallel > 1:
        return 0
    if chunk_tokens <= 0 or (is_latent(request) and version < _LARGE_LATENT_SINCE):
        return LATENT_TOKENS
    return min(MOST_LATENT_TOKENS, chunk_tokens) if is_latent(request) else chunk_tokens


def _captured_by_default(request: PoolRequest, version: tuple[int, ...]) -> bool:
    if version < CAPTURED_SINCE or request.device_vendor != "nvidia":
        return False
    family, breaks = request.arch.family, version >= _BREAKS_SINCE
    since, until = _LEFT_OUT.get(family, ((99,), (99,)))
    if since <= version < until:
        return False
    if sees(request) and not (breaks and family in _SEEING_CAPTURED):
        return False
    if not breaks:
        beside = request.lora is not None or bool(request.tiers) or request.role != "mixed"
        drafts = request.speculation is not None and version < _DRAFTS_SINCE
        return not (beside or drafts or request.flags.get("moe_a2a_backend", "none") != "none")
    if is_latent(request) and family not in _LEFT_OUT:
        on_trtllm = family in _ON_TRTLLM_MLA and stacked_blackwell(load_device(request.device_name))
        return version >= _LATENT_SINCE and not on_trtllm
    return True


__all__ = ["prompt_graph_tokens"]
