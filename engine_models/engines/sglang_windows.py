"""Pools of their own for the layers of SGLang that see a window: for which models, and how large beside the others'."""

from __future__ import annotations

from engine_models.declaration import PoolRequest
from hardware_profiles.device import load_device, stacked_blackwell

WINDOW_SHARE, COMPRESSED_WINDOW_SHARE = 0.8, 0.1
"""Tokens of the windows' pool over those of the others', unless `swa_full_tokens_ratio` states it; of compressed entries
(DeepSeek-V4) fewer (datasheet: SGLang 0.5, `arg_groups/fields/schedule.py`, `model_overrides/deepseek_v4.py` of 0.5.23)."""
WINDOW_POOLS = {
    "deepseek_v4": (0, 5),
    "gemma4": (0, 5, 12),
    "gpt_oss": (0, 5, 8),
    "llama4": (0, 5, 8),
    "mimo_v2_flash": (0, 5, 7),
    "step3p5": (0, 5, 9),
}
"""Types of models whose layers with windows have a pool of their own, and since which release; all layers of others keep all
tokens (datasheet: `configs/model_config.py`, `server_args.py` in the wheels of 0.5.3, 0.5.6 to 0.5.10, 0.5.12, 0.5.14 and 0.5.23,
read 2026-12; Gemma 4 is not yet in 0.5.10, 0.5.11 was not read)."""
_WHOLE_WITH_HOST = ("mimo_v2_flash", "step3p5")
"""Types whose pools are one where a host stands behind the cache (`server_args.py`, `arg_groups/overrides.py`)."""
_WITHOUT_ITSELF = ("gemma4", "gpt_oss")
"""Types whose windows are counted without the token that sees them (`get_attention_sliding_window_size`, `models` of 0.5.23)."""
_TRTLLM_POOLED_SINCE, _DRAFTED_POOLED_SINCE = (0, 5, 10), (0, 5, 9)
"""Releases before have one pool for gpt-oss under TensorRT-LLM's attention, or with drafts (the same wheels)."""


def pools_windows(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether the model's layers with windows have a pool of their own."""
    flags, arch = request.flags, request.arch
    since = WINDOW_POOLS.get(arch.family)
    if since is None or version < since or flags.get("disable_hybrid_swa_memory") or not arch.windows_below(1 << 40):
        return False
    if arch.family in _WHOLE_WITH_HOST and flags.get("enable_hierarchical_cache"):
        return False
    if arch.family != "gpt_oss":
        return True
    one_pool = request.speculation is not None and version < _DRAFTED_POOLED_SINCE
    return not one_pool and (version >= _TRTLLM_POOLED_SINCE or not _by_trtllm(request))


def window_share(request: PoolRequest, version: tuple[int, ...]) -> float:
    """Tokens of the windows' pool over those of the others'; 1 where both are one pool."""
    if not pools_windows(request, version) and not request.arch.compresses:
        return 1.0
    stated = request.flags.get("swa_full_tokens_ratio")
    if stated is None:
        return COMPRESSED_WINDOW_SHARE if request.arch.compresses else WINDOW_SHARE
    return float(stated)


def window_pool(request: PoolRequest, version: tuple[int, ...], tokens: int) -> tuple[int, int] | None:
    """Tokens of the windows' pool of a rank, and of a window as its cache counts it; None without such a pool, and where it is
    taken never to run short: beside drafts, on stages, on a prefill or decode server (assumed).
    """
    apart = request.role == "mixed" and request.pipeline_parallel == 1 and request.speculation is None
    if not apart or request.arch.compresses or not pools_windows(request, version):
        return None
    window = min(request.arch.windows_below(1 << 40))
    span = window - (request.arch.family in _WITHOUT_ITSELF)
    return int(tokens * window_share(request, version)), span


def _by_trtllm(request: PoolRequest) -> bool:
    """Whether attention of 16-bit heads is TensorRT-LLM's: by flag, or on Blackwell in data centres."""
    asked = request.flags.get("attention_backend")
    if asked:
        return str(asked) == "trtllm_mha"
    return request.device_kind == "gpu" and stacked_blackwell(load_device(request.device_name))
