"""What several of vLLM's flags say together, or together with the model and the device: graphs, context, sampling, attention."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine_models.cost import flash_attention2
from engine_models.cost.sampling import truncates
from engine_models.declaration import PoolRequest
from engine_models.engines.vllm_flags import FLAGS
from engine_models.flags import Flag, typed_value
from engine_models.model.blocks import Architecture
from hardware_profiles.device import load_device


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
    "ampere": ({"FLASH_ATTN"}, {"TRITON_MLA"}),
}
"""Generation -> attention backends that vLLM picks by itself, without and with latent attention (datasheet: `platforms/cuda.py`
of 0.14 to 0.33); Blackwell without HBM has those of Ada."""


def warn_of_attention(request: PoolRequest, warnings: list[str]) -> None:
    """A warning if flags choose another attention than the engine itself would: kernels are priced as of its own choice."""
    asked = request.flags.get("attention_backend") or (request.flags.get("attention_config") or {}).get("backend")
    if asked is None or str(asked).lower() in ("auto", "none"):
        return
    device = load_device(request.device_name)
    generation = "ada" if flash_attention2.serves(device) else device.architecture
    own = _ATTENTION.get(generation, (set(), set()))[any(block.kind == "mla" for block in request.arch.attention)]
    word = str(asked).upper().replace("_VLLM_V1", "")
    if word not in own and not (word == "FLASHINFER" and generation == "ada" and request.formats.kv_cache.compute == "fp8"):
        chosen = f", {' or '.join(sorted(own))}" if own else ""
        warnings.append(
            f"vllm flag `attention_backend` ({asked}) is not modelled; in the engine it changes the speed of attention, which is "
            f"priced as of vLLM's own choice{chosen}"
        )
