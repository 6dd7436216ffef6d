"""Which prompts SGLang's CUDA graphs hold, by version, model and GPU, unless a flag says otherwise.

Read 2026-11 in `server_args.py` (from 0.5.19 on `arg_groups/cuda_graph_hook.py`) and the lists of `configs/model_config.py` of
each release from 0.5.10 to 0.5.23. Until 0.5.14 they are pieces that PyTorch compiles, since then graphs with breaks, which
fewer things rule out. """

from __future__ import annotations

from engine_models.declaration import PoolRequest
from engine_models.engines.sglang_attention import is_latent
from engine_models.engines.sglang_reserve import sees
from hardware_profiles.device import load_device, stacked_blackwell

CAPTURED_SINCE = (0, 5, 10)
"""First version that captures prompts unless told otherwise (datasheet: release notes of v0.5.10, 2026-04, and pull request
16331)."""
_BREAKS_SINCE = (0, 5, 15)
"""First version whose graphs have breaks, which prefill servers and tiers do not rule out."""
_BESIDE_SINCE = (0, 5, 17)
"""Since then graphs with breaks hold prompts beside adapters, and experts that are sent through one of `_SENT_CAPTURED`."""
_SENT_CAPTURED = ("deepep", "megamoe", "flashinfer")
_DRAFTS_SINCE, _LATENT_SINCE, _LARGE_LATENT_SINCE = (0, 5, 12), (0, 5, 18), (0, 5, 23)
"""First versions that capture beside drafts, and latent attention in graphs with breaks: and more than `LATENT_TOKENS`."""
LATENT_TOKENS, MOST_LATENT_TOKENS = 2048, 8192
"""Largest captured prompt of a model with latent attention [tokens], before and since; of others the prefill chunk."""
_NEVER = (99,)
_LEFT_OUT: dict[str, tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = {
    **dict.fromkeys(("deepseek_v32", "glm_moe_dsa"), ((CAPTURED_SINCE, (0, 5, 13)), (_BREAKS_SINCE, (0, 5, 17)))),
    "qwen3_next": ((CAPTURED_SINCE, _BREAKS_SINCE),),
    "deepseek_v4": ((CAPTURED_SINCE, _NEVER),),
    "nemotron_h": (((0, 5, 17), (0, 5, 18)),),
    "kimi_linear": ((_BREAKS_SINCE, _LATENT_SINCE), ((0, 5, 20), _NEVER)),
}
"""Type of model -> from and before which versions its prompts are not captured."""
_SEEING_CAPTURED = dict.fromkeys(("qwen3_5", "qwen3_5_moe", "kimi_k2", "minimax_m3"), (0, 5, 16))
"""Types of models that see whose prompts are captured, since when; Kimi-K2.5 and MiniMax-M3 in 0.5.16 and 0.5.17 in pieces that
PyTorch compiles."""
_ON_TRTLLM_MLA = ("deepseek_v3", "kimi_k2")
"""Types whose architecture is DeepSeek-V3's, but for those that see: TensorRT-LLM's attention, which data-centre Blackwell has,
is none for graphs with breaks."""


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
    family, breaks, seeing = request.arch.family, version >= _BREAKS_SINCE, sees(request)
    if any(since <= version < until for since, until in _LEFT_OUT.get(family, ())):
        return False
    if seeing and version < _SEEING_CAPTURED.get(family, _NEVER):
        return False
    sent, pieces = request.flags.get("moe_a2a_backend", "none"), seeing and family == "kimi_k2" and version < _LATENT_SINCE
    if not breaks or pieces:
        beside = request.lora is not None or bool(request.tiers) or request.role != "mixed"
        drafts = request.speculation is not None and version < _DRAFTS_SINCE
        return not (beside or drafts or sent != "none")
    if request.lora is not None and version < _BESIDE_SINCE:
        return False
    if sent != "none" and (version < _BESIDE_SINCE or sent not in _SENT_CAPTURED):
        return False
    if is_latent(request) and family not in _LEFT_OUT:
        on_trtllm = family in _ON_TRTLLM_MLA and not seeing and stacked_blackwell(load_device(request.device_name))
        return version >= _LATENT_SINCE and not on_trtllm
    return True


__all__ = ["prompt_graph_tokens"]
