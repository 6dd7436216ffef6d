"""Which norms SGLang computes in PyTorch, kernel by kernel, for lack of one of its own: by version, type of model and GPU.

Read 2026-11 in `layers/layernorm.py` of 0.5.6, 0.5.9, 0.5.10, 0.5.14 and 0.5.23, and in the models' modules. A norm is then a
cast, a square, a mean, a sum, a root and a product, and the weight's cast, sum, product and the cast back: ten kernels where
there was one (seven without a weight). CUDA graphs hold them; a prompt launches each.
"""

from __future__ import annotations

from typing import NamedTuple

from engine_models.declaration import PoolRequest


class TorchNorms(NamedTuple):
    """Kernels beyond one of each of a layer's norms, and those of its norms by head (0: one for queries, one for keys)."""

    layer: int = 0
    heads: int = 0


_GEMMA4, _GEMMA4_JOINED = "gemma4", (0, 5, 14)
"""On AMD's GPUs (`Gemma4RMSNorm.forward_hip`): queries, keys and values, and the router, until a kernel joins the three
(`gemma_qkv_rmsnorm` of 0.5.14; 0.5.10 lacks the model, none read between)."""
_GEMMA4_HEADS, TORCH_ROUTING = 27, 16
"""Kernels by count of that code: of the norms of queries (10), keys (10) and values (7); beyond one, of the router's norm with
two scales (9) and of the choice (7). With them Gemma 4 on an MI300X (sgl-cookbook) is 3, -4, -12 and -8 % off in TPOT (31B and
26B-A4B, 1 and 100 users; -16, -17, -54 and -34 without); the median TTFT of 26B-A4B is 89 ms for 90, 42 without."""
_GEMMA3, _GEMMA3_FUSED = "gemma3", (0, 5, 23)
"""On every GPU (`Gemma3RMSNorm.forward_cuda` calls the native one; pull requests 21962 and 32670): those of layers until 0.5.23
(0.5.14 not yet, none read between), those by head still there. Issue 7471: half of vLLM's throughput."""
_GEMMA, _GEMMA_FUSED = ("gemma2", "qwen3_next", "qwen3_5", "qwen3_5_moe"), (0, 5, 10)
"""On AMD's GPUs (`GemmaRMSNorm`, redirected to the native one) until 0.5.10 (0.5.9 still), which adds one to the weight in a
kernel of its own."""
_NORM, _HEADS = 9, 20


def torch_norms(request: PoolRequest, version: tuple[int, ...]) -> TorchNorms:
    """Of a pool's model; `version` as `Engine.parts` gives it."""
    kind, amd = request.arch.family, request.device_vendor == "amd"
    if kind == _GEMMA3:
        return TorchNorms(0 if version >= _GEMMA3_FUSED else _NORM, _HEADS)
    if kind in _GEMMA and amd:
        return TorchNorms(1, 4) if version >= _GEMMA_FUSED else TorchNorms(_NORM + 1, _HEADS)  # one adds the residual
    return TorchNorms(heads=_GEMMA4_HEADS) if routes_in_torch(request, version) else TorchNorms()


def routes_in_torch(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether experts, if there are any, are chosen by PyTorch's kernels after a norm of the same."""
    return request.arch.family == _GEMMA4 and request.device_vendor == "amd" and version < _GEMMA4_JOINED
