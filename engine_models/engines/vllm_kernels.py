"""Which kernels vLLM's experts run on: by version, number format and GPU, unless a flag says otherwise.

Read 2026-11 in vLLM's sources of 0.10 to 0.19, 0.22, 0.24, 0.27, 0.31 and 0.33 (`fused_moe/oracle/`,
`fused_moe/experts/`, `quantization/fp8.py`, `utils/deep_gemm.py`).
The first of its list that supports the device, the format and the parallel layout; what routing excludes is left to the tables.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engine_models.cost import recurrence
from engine_models.declaration import PoolRequest, Said
from engine_models.model.formats import Format
from hardware_profiles.device import load_device, stacked_blackwell

_WORDS = {
    "triton": "triton",
    "marlin": "marlin",
    "flashinfer_trtllm": "trtllm",
    "flashinfer_cutlass": "cutlass",
    "cutlass": "cutlass",
}
"""Value of ``--moe-backend`` -> how kernel tables call it."""
EXPERTS = {
    "trtllm": "FlashInfer's TensorRT-LLM kernels",
    "cutlass": "CUTLASS kernels",
    "triton": "Triton kernels",
    "marlin": "Marlin kernels",
    "trtllm/cutlass": "CUTLASS kernels",
}
"""The same in words; `LENT_CUTLASS` below."""
MXFP4_TILES = {"marlin": (128, 256), "trtllm": (256, 256), "cutlass": (128, 128), "triton": (64, 1)}
"""Multiples to which experts in mxfp4 pad a rank's width and the hidden size, by kernel; on AMD as "trtllm".

kind: datasheet (`quantization/mxfp4.py`, 2026-11). With Marlin's gpt-oss-120b takes 65.9 GiB on one GPU and gpt-oss-20b 13.7:
vLLM 0.10.1 on H100 and 0.19 on A100 printed 65.97 and 13.72.
"""
TRITON_MXFP4_SINCE, SCALES_FREED_SINCE = (0, 12), (0, 26)
"""Triton's kernels for mxfp4 come with vLLM; before, neither its wheels nor its images had them, and Hopper fell back to Marlin.
They free the scales as loaded once their own copy is laid out (read in 0.24 and 0.26): gpt-oss-120b takes 3.3 GiB more until
then, 64.1 on an H100, where 0.14.1 printed 64.38.

kind: datasheet (`utils/import_utils.py`, `docker/Dockerfile`, `quantization/mxfp4.py`, `fused_moe/oracle/mxfp4.py`), 2026-11.
"""
MXFP4_SCALE_BITS = 8 / 32
"""Of a weight (one exponent for 32)."""
PLAIN_LIST_SINCE, HOPPER_TRITON_SINCE = (0, 22), (0, 24)
"""Experts in 16 bits choose from a list (before: Triton everywhere); on Hopper Triton stands first in it again."""
FP8_LIST_SINCE, HOPPER_BLOCKS_SINCE = (0, 15), (0, 17)
"""FP8 and nvfp4 choose from their lists without an environment variable, FlashInfer's CUTLASS kernels first on Hopper; blocks
there in Triton unless experts are split over ranks. Before: DeepGEMM, whatever the batch, where tensor parallelism is below 8 or
experts are split."""
SWITCHES = {"fp8": "use_flashinfer_moe_fp8", "fp8_block": "use_flashinfer_moe_fp8", "nvfp4": "use_flashinfer_moe_fp4"}
SWITCHES_UNTIL = (0, 21)
"""Format -> the variable by which FlashInfer's kernels are asked for or refused (`envs.py` of 0.11 to 0.20; 0.24 has none).
Before the lists nothing else chooses them: nvfp4 runs on vLLM's own CUTLASS kernels, priced as FlashInfer's (assumed)."""
LATENCY_SINCE, TRITON_BLOCKS_SINCE = (0, 13), (0, 14)
"""FlashInfer's TensorRT-LLM kernels, not its CUTLASS ones, are what those variables mean unless `flashinfer_moe_backend` says
otherwise (0.11.0: CUTLASS; 0.12 was not read). FP8 blocks on data-centre Blackwell without FlashInfer and DeepGEMM run in Triton
(before: on vLLM's own CUTLASS kernel, which nobody timed)."""
DEEPGEMM_SINCE, PADDED = (0, 11), ((0, 10, 2), (0, 11, 1))
"""DeepGEMM is used unless an environment variable says no, before only where it says so (`envs.py` of 0.10.1, 0.10.2, 0.11.0).
Since and before which CUTLASS's products of FP8 blocks copy their input to pad it, whatever its rows (`fp8_utils.py`)."""
NARROW = ("nf4", "fp8", "fp8_block", "nvfp4", "mxfp4")
"""Formats that accelerators alone load."""
KEEPS_STATED_KV = {"fp8": (0, 14), "nvfp4": (0, 33)}
"""Formats of a KV cache that a checkpoint states and a server keeps, and since when. kind: datasheet, 2026-11, source: pull
request 30785 (0.13.0 does without, which took 29980 back); `utils/torch_utils.py` of 0.33.0 (of nvfp4 older ones were not
read)."""
LAST = {"nf4": (0, 27)}
"""Last versions with a reader of a format. kind: datasheet, 2026-11, source: `model_executor/layers/quantization` of 0.27.1,
which has bitsandbytes.py, and of 0.28.0 and 0.33.0, which have not."""
_MARLIN = ("ampere", "ada", "hopper", "blackwell")
ONLY_ON = {
    "mxfp8": (*_MARLIN, "cdna4"),
    "w4afp8": ("hopper",),
    "fp8a16": _MARLIN,
    "nvfp4a16": _MARLIN,
}
"""Formats with kernels on few architectures. kind: datasheet, 2026-11, source: vLLM 0.33's `kernels/linear` (products in mxfp8 on
Blackwell and gfx950, widened by Marlin elsewhere; on older AMD cards they are emulated) and `compressed_tensors.py` (integers of
4 bits with activations in fp8: CUTLASS's kernels of SM90)."""
MACHETE, AWQ_CHOOSES_SINCE = ("gptq", "int4", "int8_wo"), (0, 19)
"""Formats of dense products that Machete takes on Hopper before Marlin does (`mixed_precision/` of 0.11 to 0.33), and since when
AWQ with its zero points is offered to it too: `awq_marlin.py` of 0.18.0 calls Marlin itself, of 0.19.0 it asks the list (pull
request 36505; `auto_awq.py` of 0.24 and 0.33). Experts stay with Marlin."""
LENT_CUTLASS = "trtllm/cutlass"
"""Those CUTLASS kernels over blocks where every rank holds a slice of each expert: vLLM's tables time them for experts split over
ranks only, TensorRT-LLM's, from which FlashInfer took them, both ways. kind: assumed, 2026-11; compared with ten runs of
MiniMax-M2.5 (vLLM 0.16, four H200): with Triton's their tokens come 31 to 4 % too quick at 4 to 64 users."""

RECURRENT_LAUNCHES, FLASHINFER_RECURRENT_LAUNCHES = 58.0, 35.0
"""Launches of a gated delta net beside its products in a step with a prompt, counted in plain operations, a Triton kernel as
five: convolution, gates, two norms (20), the prompts' rule (30, or one kernel of FlashInfer's), and what PyTorch does by itself:
copies of queries, keys, values, states and outputs, masks. kind: by count, 2026-11, source: vLLM 0.17.1 `qwen3_next.py`; assumed
of later versions and Kimi delta attention. SGLang's, fitted to a time to first token, are 57."""
FLASHINFER_RECURRENT_SINCE = (0, 17)
"""On Hopper (0.16 was not read)."""
LATENT_LAUNCHES, NARROW_LATENT_LAUNCHES = 10.0, 3.0
"""Launches of latent attention beside its products in a step with a prompt, counted in plain operations, and how many more over
a cache in FP8. Prompts and decoding rows go different ways through a layer, and both are launched: norms of both latents (2), a
copy of rotated queries, the prompts' keys joined and their output copied (3), the decoding rows' queries absorbed and joined,
their attention, its output expanded and copied (5); in FP8 two parts of the queries made narrow and a copy (3). kind: by count,
2026-11, source: vLLM `v1/attention/backends/mla/common.py` (0.11), later `layers/attention/mla_attention.py`. Half of the ten
where nothing decodes, which is not told apart."""


def latent_launches(kv_cache: Format) -> float:
    """Launches of a layer of latent attention in a step with a prompt, over a cache of this format."""
    return LATENT_LAUNCHES + (NARROW_LATENT_LAUNCHES if kv_cache.name.startswith("fp8") else 0.0)


def recurrent_launches(request: PoolRequest, version: tuple[int, ...]) -> float:
    """Launches of a recurrent layer in a step with a prompt."""
    flashinfer = load_device(request.device_name).architecture == "hopper" and version >= FLASHINFER_RECURRENT_SINCE
    return recurrence.launches(request.arch, FLASHINFER_RECURRENT_LAUNCHES if flashinfer else RECURRENT_LAUNCHES)


def experts(
    request: PoolRequest, flags: dict[str, Any], version: tuple[int, ...], warnings: list[str]
) -> str | None:
    """The kernels of a model's experts, as tables call them; None where it has none or nothing is known of the device's."""
    asked = str(flags.get("moe_backend") or "auto")
    if asked in _WORDS:
        return _WORDS[asked]
    device = load_device(request.device_name)
    known = request.arch.has_experts and device.vendor == "nvidia"
    if asked != "auto":
        warnings.append(
            f"vllm flag `moe_backend` ({asked}) is not modelled; it may change the speed of the experts, which are priced as of "
            "vLLM's own choice"
        )
    return _own_choice(request, version) if known else None


def expert_tiles(request: PoolRequest, backend: str | None) -> tuple[int, int]:
    """Multiples to which the kernels pad a rank's width of an expert and the hidden size in memory."""
    if request.formats.weights.name != "mxfp4":
        return 1, 1
    if load_device(request.device_name).vendor == "amd":
        backend = "trtllm"
    return MXFP4_TILES.get(backend or "", (1, 1))


def held_weights(request: PoolRequest, backend: str | None, version: tuple[int, ...]) -> Format:
    """The weights' format with what a rank holds besides: scales that are kept twice."""
    weights = request.formats.weights
    twice = weights.name == "mxfp4" and backend == "triton" and TRITON_MXFP4_SINCE <= version < SCALES_FREED_SINCE
    return replace(weights, bits_per_weight=weights.bits_per_weight + MXFP4_SCALE_BITS) if twice else weights


def _own_choice(request: PoolRequest, version: tuple[int, ...]) -> str | None:
    device, fmt = load_device(request.device_name), request.formats.weights.name
    generation = device.architecture
    newest = ("trtllm" if stacked_blackwell(device) else "cutlass") if generation == "blackwell" else None
    if fmt in ("bf16", "fp16"):
        if version < PLAIN_LIST_SINCE:
            return "triton"
        if generation == "hopper":
            return "triton" if version >= HOPPER_TRITON_SINCE else "cutlass"
        return newest or "triton"
    if fmt in ("fp8", "fp8_block"):
        if generation == "hopper":
            return _hopper_fp8(request, fmt, version)
        return _blackwell(request, fmt, version) if newest else "triton" if generation == "ada" else "marlin"
    if fmt == "nvfp4":
        return _blackwell(request, fmt, version) if newest else "marlin"
    if fmt == "mxfp4":
        if generation == "hopper" and version >= TRITON_MXFP4_SINCE:
            return "triton"
        return "trtllm" if newest == "trtllm" else "marlin"
    if fmt == "mxfp8":
        return newest or "marlin"
    return "marlin" if fmt in ("int4", "nvfp4a16") else None


def _asked(request: PoolRequest, fmt: str, version: tuple[int, ...]) -> bool | None:
    """Whether FlashInfer's kernels for experts of `fmt` are asked for or refused; None where nothing is said."""
    asked = request.flags.get(SWITCHES[fmt])
    return None if asked is None or version >= SWITCHES_UNTIL else bool(asked)


def _blackwell(request: PoolRequest, fmt: str, version: tuple[int, ...]) -> str | None:
    """Kernels of experts in FP8 or nvfp4, FlashInfer's or, without them, vLLM's own; None of those that nobody timed."""
    stacked = stacked_blackwell(load_device(request.device_name))
    asked = _asked(request, fmt, version)
    if asked is None and version >= FP8_LIST_SINCE:
        if _deepgemm_asked(request, fmt, version):
            return None
        return "trtllm" if stacked else "cutlass"
    if asked:
        usual = "latency" if version >= LATENCY_SINCE else "throughput"
        latency = fmt == "fp8_block" or (request.flags.get("flashinfer_moe_backend") or usual) == "latency"
        return "trtllm" if stacked and latency else "cutlass"
    if fmt == "nvfp4":
        return "cutlass"
    if fmt == "fp8" or not stacked:
        return "triton"
    return None if _deepgemm_experts(request, version) or version < TRITON_BLOCKS_SINCE else "triton"


def _deepgemm(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether DeepGEMM is used: it is part of the images (`docker/Dockerfile`), not of the wheels (0.11.0: `has_deep_gemm`)."""
    asked = request.flags.get("use_deep_gemm")
    return version >= DEEPGEMM_SINCE if asked is None else bool(asked)


def _deepgemm_experts(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether experts in FP8 blocks that are not FlashInfer's run on it: not by itself where eight ranks slice each of them."""
    asked = request.flags.get("moe_use_deep_gemm")
    sliced = request.tensor_parallel >= 8 and request.expert_parallel == 1 and version < FP8_LIST_SINCE
    return _deepgemm(request, version) and (not sliced if asked is None else bool(asked))


def _deepgemm_asked(request: PoolRequest, fmt: str, version: tuple[int, ...]) -> bool:
    """Whether a variable asks for DeepGEMM's experts, and none refuses it: that goes before the list, not before FlashInfer's
    variable (`fused_moe/oracle/fp8.py` of 0.19 to 0.33)."""
    said = [request.flags.get(name) for name in ("use_deep_gemm", "moe_use_deep_gemm")]
    return fmt == "fp8_block" and version >= FP8_LIST_SINCE and True in said and False not in said


def machete(version: tuple[int, ...]) -> tuple[str, ...]:
    """Formats whose dense products run on Machete where the device is a Hopper."""
    return (*MACHETE, "awq") if version >= AWQ_CHOOSES_SINCE else MACHETE


def cutlass_products(request: PoolRequest, version: tuple[int, ...], said: Said) -> bool:
    """Whether products with weights in FP8 blocks run on CUTLASS's kernel for Hopper: DeepGEMM is switched off, or not there."""
    if _deepgemm(request, version) or request.formats.weights.name != "fp8_block":
        return False
    if load_device(request.device_name).architecture == "hopper":
        said.notes.append("products of FP8 blocks run on CUTLASS's kernel, since DeepGEMM is not used")
        return True
    if request.flags.get("use_deep_gemm") is False:
        said.warnings.append(
            "vllm flag `use_deep_gemm` (false) is modelled on Hopper alone; in the engine it changes the speed of products, which"
            " are priced as DeepGEMM's"
        )
    return False


def _hopper_fp8(request: PoolRequest, fmt: str, version: tuple[int, ...]) -> str | None:
    if fmt == "fp8":
        return "cutlass"
    split = request.expert_parallel > 1
    asked = _asked(request, fmt, version)
    if not asked and _deepgemm_asked(request, fmt, version):
        return None
    if version >= HOPPER_BLOCKS_SINCE and not split and not asked:  # first of its list, whether or not FlashInfer's are in it
        return "triton"
    if asked or (asked is None and version >= FP8_LIST_SINCE):
        return "cutlass" if split else LENT_CUTLASS
    return None if _deepgemm_experts(request, version) else "triton"  # DeepGEMM, which nobody timed


__all__ = ["EXPERTS", "PADDED", "cutlass_products", "expert_tiles", "experts", "held_weights", "machete"]
