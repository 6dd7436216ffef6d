"""What the first requests of a vLLM server wait for that has just started (see `engine_models.cost.first_use`).

Its start-up runs its largest step and captures graphs; a step with prompts that they do not hold runs as it comes (0.15.1:
`v1/worker/gpu_model_runner.py`; 0.33.0's `model_executor/warmup` compiles other kernels ahead, not that of experts).
"""

from __future__ import annotations

from engine_models.cost.first_use import FirstUse
from engine_models.declaration import PoolRequest
from engine_models.engines.vllm_serving import Serving
from engine_models.first_use import first_use_of

KIND_S = 0.93
"""Seconds. kind: measured, 2026-02, source: first steps of Mixtral-8x7B, vLLM 0.15.1, two H100 (inference-sim, training suite),
0.93 longer than predicted in three of three runs."""
SECOND_LAYER_S = 0.007
"""Seconds a layer that the second step of tensor-parallel workers takes longer. kind: measured, 2026-02, source: the same suite,
CodeLlama-34B over two ranks (48 layers, 0.3 s) and Llama-2-70B over four (80, 0.6 s); Mixtral over two (32, 0.2 s) agrees, and
Llama-2-7B on one device has none; no cause known."""


def fresh_of(request: PoolRequest, serving: Serving, backend: str | None) -> FirstUse | None:
    """What a fresh server waits for, None where that is not known: without graphs, answers compile kernels too."""
    if not serving.graphs:
        return None
    layers = sum(block.layers for block in request.arch.attention) / request.pipeline_parallel
    second_s = SECOND_LAYER_S * layers if request.tensor_parallel > 1 else 0.0
    if backend != "triton":
        return FirstUse(second_s=second_s)
    return first_use_of(request, serving.prompt_graph_tokens, (serving.tokens,), kind_s=KIND_S, second_s=second_s)


__all__ = ["fresh_of"]
