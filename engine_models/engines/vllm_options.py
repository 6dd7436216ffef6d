"""What several of vLLM's flags say together, or together with the model and the device: graphs, sampling, attention, states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.balancer import with_balancer
from engine_models.cost import flash_attention2
from engine_models.cost.sampling import truncates
from engine_models.declaration import PoolRequest
from engine_models.engines.vllm_flags import FLAGS
from engine_models.flags import Flag, typed_value
from engine_models.model.architecture import with_state_values, without_towers
from engine_models.model.blocks import Architecture
from engine_models.model.mixers import with_plain_latents
from hardware_profiles.device import Device, load_device, stacked_blackwell
from hardware_profiles.errors import InputError, PlanError
from hardware_profiles.records import dataclass

PLAIN_SINCE, PLAIN_FEW_HEADS_SINCE, FEW_HEADS = (0, 19), (0, 17), 16
"""First version that keeps 8-bit latents of sparse attention in FlashInfer's layout on data-centre Blackwell, and first that does
so up to so many heads a rank; FlashMLA's has a scale for each 128 values and the rotary part in 16 bit (datasheet:
`platforms/cuda.py` and `MLAAttentionSpec` of 0.16.0, 0.17.1, 0.18.1 and 0.19.0)."""


def plain_latents(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether 8-bit latents of sparse attention take a byte a value."""
    flags, backend = request.flags, str(request.flags.get("attention_backend") or "").upper()
    if request.device_kind != "gpu" or not stacked_blackwell(load_device(request.device_name)):
        return False
    if flags.get("kv_cache_dtype") == "fp8_ds_mla" or backend == "FLASHMLA_SPARSE":
        return False
    heads = max(block.heads for block in request.arch.attention) // request.tensor_parallel
    return version >= PLAIN_SINCE or (version >= PLAIN_FEW_HEADS_SINCE and heads <= FEW_HEADS) or "FLASHINFER" in backend


def as_loaded(request: PoolRequest, version: tuple[int, ...]) -> PoolRequest:
    """The pool with its model as flags let it be loaded: the width of its states and latents, without towers."""
    values, arch = str(request.flags.get("mamba_ssm_cache_dtype") or "auto"), request.arch
    arch = arch if values == "auto" else with_state_values(arch, 4 if values == "float32" else 2)
    arch = with_plain_latents(arch) if plain_latents(request, version) else arch
    request = replace(request, arch=without_towers(arch) if request.flags.get("language_model_only") else arch)
    copies, balanced = expert_copies(request.flags)
    return with_balancer(request, copies, balanced=balanced, flag="enable_eplb")


def expert_copies(flags: Mapping[str, Any]) -> tuple[int, bool]:
    """Copies of experts by ``--eplb-config`` or, up to 0.10, a flag of its own; whether a balancer places them all.

    Other keys of the group say how often and by which way experts move (datasheet: `config/parallel.py`, 0.33.0).
    """
    config, where = flags.get("eplb_config") or {}, "deployment.engine_args.eplb_config"
    if not isinstance(config, Mapping):
        raise InputError("`eplb_config` is no group of keys", where=where, mend="write eplb_config: {num_redundant_experts: 32}")
    key, on = "num_redundant_experts", bool(flags.get("enable_eplb"))
    copies = typed_value(FLAGS.modelled[key], f"eplb_config.{key}", config.get(key)) or int(flags.get(key) or 0)
    if copies and not on:
        cause = f"vLLM takes {copies} redundant experts with its balancer alone"
        raise InputError(cause, where=where, mend="set enable_eplb: true")
    return copies, on




@dataclass(frozen=True)
class Graphs:
    """CUDA graphs as flags ask for them: none at all (`eager`), whether prefills have some, sizes or the largest, if given."""

    eager: bool
    of_prefills: bool = True
    sizes: tuple[int, ...] = ()
    largest: int | None = None


def cuda_graphs(flags: Mapping[str, Any], warnings: list[str]) -> Graphs:
    """CUDA graphs by ``--enforce-eager``, ``-O0``, ``--compilation-config`` and the flags of sizes.

    Of ``compilation_config`` its modes of graphs and its sizes are read; other keys choose among compiled kernels.
    """
    config = flags.get("compilation_config")
    config = config if isinstance(config, dict) else {} if config is None else {"level": config}
    mode = str(config.get("cudagraph_mode") or "").upper()
    level = flags.get("optimization_level", config.get("mode", config.get("level")))
    unread = sorted({*config} - {"cudagraph_mode", "cudagraph_capture_sizes", "max_cudagraph_capture_size", "mode", "level"})
    if unread or mode == "PIECEWISE" or level == 1:
        words = ", ".join(unread) or ("PIECEWISE" if mode else "level 1")
        warnings.append(
            f"vllm flag `compilation_config` ({words}) is not modelled; in the engine it changes the speed of kernels"
        )
    given, largest = (
        flags.get(name) or typed_value(FLAGS.modelled[name], name, config.get(name))
        for name in ("cudagraph_capture_sizes", "max_cudagraph_capture_size")
    )
    older = flags.get("cuda_graph_sizes") or ()  # up to 0.11: one number is the largest, several are the sizes
    given, largest = (given or older, largest) if len(older) > 1 else (given, largest or max(older, default=None))
    none_left = mode == "NONE" or (not mode and level == 0)
    return Graphs(
        eager=bool(flags.get("enforce_eager", False)) or none_left,
        of_prefills=mode != "FULL_DECODE_ONLY",
        sizes=tuple(sorted(given)) if given else (),
        largest=largest,
    )


def truncates_samples(arch: Architecture, flags: Mapping[str, Any]) -> bool:
    """Whether requests are sampled with top-p or top-k: as the checkpoint asks, or as ``--override-generation-config`` says."""
    given = flags.get("override_generation_config") or {}
    if "top_p" in given or "top_k" in given:
        p, k = (typed_value(Flag("float"), f"override_generation_config {key}", given.get(key)) for key in ("top_p", "top_k"))
        return bool((p is not None and p < 1) or (k is not None and k > 0))
    return str(flags.get("generation_config") or "auto") != "vllm" and truncates(arch.name)


_ATTENTION = {
    "hopper": ({"FLASH_ATTN"}, {"FLASH_ATTN_MLA", "FLASHMLA"}),
    "blackwell": ({"FLASHINFER"}, {"FLASHINFER_MLA", "CUTLASS_MLA"}),
    "ada": ({"FLASH_ATTN"}, {"TRITON_MLA"}),
    "amd": ({"ROCM_ATTN", "TRITON_ATTN"}, {"TRITON_MLA"}),
}
"""Generation -> attention backends that vLLM picks by itself, without and with latent attention (datasheet: `platforms/cuda.py`
of 0.14 to 0.33, `platforms/rocm.py` of 2026 without AITER's kernels); Ampere and Blackwell without HBM have those of Ada."""


AMD_FP8 = ("cdna3", "cdna4", "rdna4")
"""AMD's architectures whose FP8 arithmetic vLLM uses (datasheet: `platforms/rocm.py` of 2026, `supports_fp8`)."""


def _generation(device: Device) -> str:
    if device.vendor == "amd":
        return "amd"
    return "ada" if flash_attention2.serves(device) else device.architecture


def latent_block_tokens(request: PoolRequest) -> int:
    """Default tokens of a block of latent attention: 64, of FlashMLA (Hopper) and FlashInfer (Blackwell with HBM).

    16 with Triton's kernels (datasheet: `platforms/cuda.py` of 0.11, `backends/mla` of 2026); 64 is assumed on all other devices.
    """
    try:
        own = _ATTENTION.get(_generation(load_device(request.device_name)), (set(), set()))[1]
    except PlanError:
        return 64
    return 16 if own == {"TRITON_MLA"} else 64


def warn_of_weights(request: PoolRequest, warnings: list[str]) -> None:
    """A warning if weights in FP8 meet an AMD GPU without such arithmetic (datasheet: vLLM's pull requests 51021, 52985)."""
    weights = request.formats.weights
    if request.device_kind == "cpu" or weights.compute != "fp8":
        return
    try:
        device = load_device(request.device_name)
    except PlanError:
        return
    if device.vendor == "amd" and device.architecture not in AMD_FP8:
        warnings.append(
            f"vLLM has no kernels for {weights.name} weights on {device.title}: older versions fail (torch._scaled_mm), those of "
            "2026 widen the weights to bf16 in every step, which is slower than priced; int4 (awq, gptq) has kernels"
        )


def warn_of_attention(request: PoolRequest, warnings: list[str]) -> None:
    """A warning if flags choose another attention than the engine itself would: kernels are priced as of its own choice."""
    asked = request.flags.get("attention_backend") or (request.flags.get("attention_config") or {}).get("backend")
    if asked is None or str(asked).lower() in ("auto", "none"):
        return
    device = load_device(request.device_name)
    generation = _generation(device)
    own = _ATTENTION.get(generation, (set(), set()))[request.arch.has("mla")]
    word = str(asked).upper().replace("_VLLM_V1", "")
    if word not in own and not (word == "FLASHINFER" and generation == "ada" and request.formats.kv_cache.compute == "fp8"):
        chosen = f", {' or '.join(sorted(own))}" if own else ""
        warnings.append(
            f"vllm flag `attention_backend` ({asked}) is not modelled; in the engine it changes the speed of attention, which is "
            f"priced as of vLLM's own choice{chosen}"
        )
