"""Which models vLLM forces off its own choice of attention, by version, GPU and the cache's format.

Read 2026-11 in vLLM's sources of 0.19 to 0.24 and 0.31 to 0.33 (`model_executor/models/config.py`,
`v1/attention/backends/flash_attn.py`).
"""

from __future__ import annotations

from engine_models.declaration import PoolRequest
from hardware_profiles.device import load_device, stacked_blackwell

TRITON = "sglang/triton"
"""Triton's attention as tables call it: SGLang's, since vLLM's own was not timed with heads so wide. Over a window it passes all
keys in large tiles, vLLM's fewer in small ones. kind: assumed, 2026-11; compared with one published pair of Gemma-4-31B (vLLM
pull request 48666; 8,192 tokens in, 1,024 out): 561 output tokens/s on Triton and 897 on FlashAttention 4, where 128 users on
H200 (assumed) come to 603 and 877; and with one RTX PRO 6000, FP8, 24 users (hexgrid.cloud): 548 tokens/s, 513 here."""
_FAMILY, _NARROW = "gemma4", 256
"""Type of model whose layers have heads of two widths, and the widest that FlashAttention 3 takes."""
_WIDE_SINCE, _WIDE_FP8_SINCE = (0, 24), (0, 31)
"""First version with FlashAttention 4 for both widths (pull request 42175), and one with FlashAttention over a cache in FP8 too
(pull request 53175; 0.25 to 0.30 were not read). On other GPUs, and before, all layers run on Triton's kernels."""


def forces_triton(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether all layers run on Triton's attention, since heads of two widths would run on two backends."""
    if request.arch.family != _FAMILY or request.flags.get("attention_backend") not in (None, "TRITON_ATTN"):
        return False
    widths = {block.head_dim for block in request.arch.attention}
    device = load_device(request.device_name)
    if len(widths) == 1 or max(widths) <= _NARROW or device.vendor != "nvidia":
        return False
    able = device.architecture == "hopper" or stacked_blackwell(device)
    since = _WIDE_FP8_SINCE if request.formats.kv_cache.compute == "fp8" else _WIDE_SINCE
    return not able or version < since


__all__ = ["TRITON", "forces_triton"]
