"""Which attention SGLang runs, by version, architecture and GPU, unless a flag says otherwise.

Read 2026-11 in SGLang's `server_args.py` of 0.5.3 to 0.5.23 (0.5.6 and its post-releases one by one).
"""

from __future__ import annotations

from typing import NamedTuple

from engine_models.declaration import PoolRequest
from engine_models.engines.sglang_memory import caches_states_alone
from hardware_profiles.device import load_device, stacked_blackwell

_PLAIN = {"hopper": "fa3", "ada": "flashinfer", "ampere": "flashinfer"}
_LATENT = {"hopper": "fa3", "blackwell": "trtllm_mla", "ada": "triton", "ampere": "triton"}
"""Generation -> attention backend that SGLang picks by itself, without and with latent attention; on Blackwell the plain one has
a rule of its own. Blackwell without HBM has those of Ada, AMD's have aiter."""
_TRTLLM_SINCE = (0, 5, 6, 1)
"""First version (0.5.6.post1) that picks TensorRT-LLM's kernel for plain attention on data-centre Blackwell."""
_TRTLLM_BEFORE = ("gpt_oss", "llama4")
"""Types of model with a rule of their own, which is older."""
_TRITON, _TRITON_BUT_HOPPER = "gemma4", ("gpt_oss", "llama4")
"""Types of model that it gives Triton's kernels but on data-centre Blackwell, and on Hopper (`arg_groups/model_overrides`)."""
_TWO_BUFFERS = ("qwen3_next", "qwen3_5", "qwen3_5_moe")
"""Types of model with states that it gives Triton's kernels on data-centre Blackwell where these are cached alone."""
_FLASHINFER, _FLASHINFER_SINCE, _FLASHINFER_UNTIL = "nemotron_h", (0, 5, 14), (0, 5, 20)
"""Type of model that it gives FlashInfer's there, and in which versions."""
_PAGES = {"trtllm_mha": ((16, 32, 64), 64), "trtllm_mla": ((32, 64), 64), "cutlass_mla": ((128,), 128), "flashmla": ((64,), 64)}
"""Backend -> sizes of the cache's pages that it takes, and the one that any other is turned into."""


class Attention(NamedTuple):
    """Backends of prompts and decoding rows and SGLang's own choice, "" where nothing is known."""

    prompts: str
    decodes: str
    own: str

    @property
    def by_flag(self) -> bool:
        """Whether a flag asks for another than its own."""
        return {self.prompts, self.decodes} != {self.own}

    def page_tokens(self, asked: int) -> int:
        """Tokens of a page of the cache, where `asked` are asked for."""
        for backend in (self.decodes, self.prompts):
            taken, otherwise = _PAGES.get(backend, ((), 0))
            if taken and asked not in taken:
                asked = otherwise
        return asked


def attention_of(request: PoolRequest, version: tuple[int, ...]) -> Attention:
    """What a pool's prompts and decoding rows run on; `version` as `Engine.parts` gives it."""
    own, flags = _own_choice(request, version), request.flags
    both = str(flags.get("attention_backend") or "auto")
    words = [str(flags.get(name) or "auto") for name in ("prefill_attention_backend", "decode_attention_backend")]
    asked = [word if word != "auto" else both for word in words]
    prompts, decodes = [own if word == "auto" else word for word in asked]
    return Attention(prompts, decodes, own)


_LONG_CONTEXT_TOKENS, _SHARE_OF_LONG = 8192, 0.85


def share_factor(request: PoolRequest, version: tuple[int, ...], context: int) -> float:
    """Factor of `mem_fraction_static`, given or not: 0.85 with AMD's attention where a request may pass 8,192 tokens.

    Source: `model_runner.py` of 2025, `server_args.py` since (`mem_fraction_static *= 0.85`), read 2026-11.
    """
    backend = str(request.flags.get("attention_backend") or "auto")
    chosen = _own_choice(request, version) if backend == "auto" else backend
    return _SHARE_OF_LONG if chosen == "aiter" and context > _LONG_CONTEXT_TOKENS else 1.0


def is_latent(request: PoolRequest) -> bool:
    """Whether the model has latent attention."""
    return request.arch.has("mla")


def _own_choice(request: PoolRequest, version: tuple[int, ...]) -> str:
    device, latent = load_device(request.device_name), is_latent(request)
    if device.vendor == "amd":
        return "aiter"
    generation = device.architecture
    if generation == "blackwell" and not stacked_blackwell(device):
        generation = "ada"
    if latent:
        return _LATENT.get(generation, "")
    family = request.arch.family
    if generation != "blackwell":
        if family == _TRITON or (family in _TRITON_BUT_HOPPER and generation != "hopper"):
            return "triton"
        return _PLAIN.get(generation, "")
    if family in _TWO_BUFFERS:
        return "triton" if caches_states_alone(request, version) else "trtllm_mha"
    if family == _FLASHINFER and _FLASHINFER_SINCE <= version < _FLASHINFER_UNTIL:
        return "flashinfer"
    return "trtllm_mha" if version >= _TRTLLM_SINCE or family in _TRTLLM_BEFORE else "flashinfer"


def absorbs_captured(request: PoolRequest) -> bool:
    """Whether prompts of latent attention take the absorbed form where a CUDA graph holds them, whose launches must not depend on
    lengths (not AMD's)."""
    return is_latent(request) and request.device_vendor == "nvidia"


def warn_of_attention(request: PoolRequest, attention: Attention, warnings: list[str]) -> None:
    """A warning if flags choose another latent attention than the engine itself would: it is priced as of its own choice."""
    if not is_latent(request) or not attention.by_flag:
        return
    own = attention.own
    asked = " and ".join(sorted({attention.prompts, attention.decodes} - {own}))
    warnings.append(
        f"sglang flag `attention_backend` ({asked}) is not modelled; in the engine it changes the speed of kernels, which are "
        f"priced as of SGLang's own choice{f', {own}' if own else ''}"
    )


CHUNKED_PREFIX_TOKENS = 8192
"""Tokens cached before the rows of a step from which they are expanded; fewer, and the step's prompts are computed in the
absorbed form (datasheet: ``chunked_prefix_cache_threshold``, SGLang 0.5.3 to 0.5.23, `deepseek_v2.py`, later
`attention_backend_handler.py`)."""
_EXPANDS = ("fa3", "flashinfer", "flashmla", "cutlass_mla")
"""Backends of latent attention that do so. Triton's expands nothing cached, others all of it."""
NEVER = 1 << 40
_DENSE_SINCE = (0, 5, 6)
"""First version whose short prompts of sparse latent attention are dense (pull requests 11892, 12788; `nsa_backend.py`), but for
those that a graph holds (`set_dsa_prefill_impl` of 0.5.13 to 0.5.23; before there were none)."""


def dense_prompts(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether prompts of sparse latent attention attend to all tokens where there are no more than may be chosen."""
    device = load_device(request.device_name)
    return version >= _DENSE_SINCE and (device.architecture == "hopper" or stacked_blackwell(device))


def absorbs_below(request: PoolRequest, attention: Attention) -> int:
    """Tokens cached before a step's rows below which prompts of latent attention take the absorbed form, see `Terms`."""
    if not is_latent(request) or any(block.indexer is not None for block in request.arch.attention):
        return 0
    if attention.prompts in _EXPANDS and not request.flags.get("disable_chunked_prefix_cache"):
        return CHUNKED_PREFIX_TOKENS
    return NEVER if attention.prompts in ("triton", *_EXPANDS) else 0
