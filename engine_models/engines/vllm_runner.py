"""Which of vLLM's two model runners serves a model by default; they differ in what their profiling run holds.

Read in `config/vllm.py` (`use_v2_model_runner`) and `v1/worker/gpu/` of 0.22.1 to 0.33.0, 2026-11. On ROCm, where some models
keep the first one, the same is taken (assumed). """

from __future__ import annotations

from engine_models.declaration import PoolRequest

_PLAIN = ("bf16", "fp16", "fp32")
_NAMED = (
    ((0, 28), ("deepseek_v2", "qwen2_moe", "granitemoe", "kimi_k3", "deepseek_v4")),
    ((0, 27), ("deepseek_v2", "qwen2_moe", "granitemoe", "kimi_k3")),
    ((0, 25), ("deepseek_v2", "qwen2_moe", "granitemoe")),
    ((0, 24), ("llama", "mistral", "qwen3", "deepseek_v2", "qwen2_moe", "granitemoe")),
    ((0, 23), ("llama", "mistral", "qwen3")),
    ((0, 22), ("qwen3",)),
)
"""Since each version, types of models on the second runner by name; before 0.24 in 16 bits alone."""
_DENSE_SINCE, _ALL_SINCE, _IN_ANY_FORMAT_SINCE = (0, 25), (0, 29), (0, 24)
"""First versions that serve all models on it but those with experts or recurrent layers, and all models."""
IMAGES_SINCE = (0, 27)
"""First version whose second runner profiles images."""
GRAPHS_COUNTED_SINCE = (0, 29)
"""First version whose second runner sets memory aside for graphs."""
SAMPLED_SINCE = (0, 33)
"""First version whose second runner profiles with sampling parameters."""
_LOGIT_BYTES, _LOGIT_BYTES_NOW = (((0, 28), 6), (SAMPLED_SINCE, 2)), 6
"""Memory of a logit in its profiling run before each version, and since: as the model gave it, with a copy in float32, which
sampling without parameters does not need from 0.28 on. FlashInfer draws from the copy."""
STATE_BYTES, STATE_COUNTED_SINCE = 4.125, (0, 27)
"""Of a row and a word, kept for penalties: a count in 32 bits and a bit. It is allocated behind the weights, and counts since
memory is profiled as a whole (`mem_utils.py`). kind: datasheet; a start of Llama-3.1-8B of 2026-10 held 10.3 to 10.9 bytes a
logit, 6 + 4.125 here."""


def second_runner(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether the second model runner serves the pool."""
    if request.device_kind == "cpu" or (request.speculation is not None and request.speculation.method == "ngram"):
        return False
    arch = request.arch
    if version >= _ALL_SINCE:
        return True
    plain = version >= _IN_ANY_FORMAT_SINCE or request.formats.weights.name in _PLAIN
    named = next((names for since, names in _NAMED if version >= since), ())
    if arch.family in named and plain:
        return True
    return version >= _DENSE_SINCE and not (arch.has_experts or arch.has("linear"))


def logit_bytes(version: tuple[int, ...]) -> int:
    """Memory of a logit in the second runner's profiling run [bytes]."""
    return next((each for before, each in _LOGIT_BYTES if version < before), _LOGIT_BYTES_NOW)


def state_bytes(version: tuple[int, ...], rows: int, vocab: int) -> int:
    """What the second runner keeps for penalties, as far as it counts [bytes]."""
    return int(STATE_BYTES * rows * vocab) if version >= STATE_COUNTED_SINCE else 0
