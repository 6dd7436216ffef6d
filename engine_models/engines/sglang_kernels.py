"""Which kernels SGLang runs beside attention, by version, architecture, number format and GPU, unless a flag says otherwise.

Read 2026-11 in SGLang's sources of 0.5.5 to 0.5.23 (`server_args.py`, `layers/quantization/`, `arg_groups/`). An architecture's
own rule stands before that of the number format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.declaration import PoolRequest
from engine_models.engines.sglang_norms import TORCH_ROUTING, routes_in_torch
from engine_models.model.architecture import format_of_part
from engine_models.model.blocks import Architecture, MlpBlock
from engine_models.model.formats import Format
from hardware_profiles.device import Device, load_device, stacked_blackwell
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

_MARLIN = ("ampere", "ada", "hopper", "blackwell")
ONLY_ON = {"mxfp8": ("blackwell", "cdna4"), "w4afp8": ("hopper",), "fp8a16": _MARLIN, "nvfp4a16": _MARLIN}
"""Formats with kernels on few architectures. kind: datasheet, 2026-11, source: SGLang 0.5.23's `quantization/fp8.py` (mxfp8 from
SM100 on, and gfx95), `w4afp8.py` (CUTLASS's grouped kernels of SM90), `compressed_tensors` (Marlin)."""
_FP8, _FP4, _WIDE = ("fp8", "fp8_block"), ("nvfp4",), ("bf16", "fp16")


@dataclass(frozen=True)
class Since:
    """From `version` on, experts in `formats` run TensorRT-LLM's kernels on data-centre Blackwell."""

    version: tuple[int, ...]
    formats: tuple[str, ...]


_QWEN = (Since((0, 5, 6), _FP8 + _FP4), Since((0, 5, 8), _WIDE))
_DEEPSEEK = (Since((0, 5, 5), _FP8 + _FP4), Since((0, 5, 14), (*_WIDE, "int4")))
_TRTLLM_ON_BLACKWELL: dict[str, tuple[Since, ...]] = {
    "qwen3_moe": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "qwen3_next": _QWEN,
    "qwen3_5_moe": (Since((0, 5, 9), _FP8 + _FP4 + _WIDE),),
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "glm_moe_dsa"), _DEEPSEEK),
    "glm4_moe": (Since((0, 5, 8), _FP4), Since((0, 5, 20), _WIDE)),
    "llama4": (Since((0, 5, 5), _FP8),),
    "gemma4": (Since((0, 5, 14), _FP4),),
    "nemotron_h": (Since((0, 5, 14), _FP8 + _FP4 + _WIDE),),
    "mimo_v2_flash": (Since((0, 5, 20), _FP8),),
    "deepseek_v4": (Since((0, 5, 19), ("mxfp4",)),),
    "gpt_oss": (Since((0, 5, 2), ("mxfp4",)),),
}
"""Type of model -> its rules. Of what stands in none, experts in nvfp4 run TensorRT-LLM's kernels, int4 Marlin's, the rest
Triton's."""
_CUTLASS_ELSEWHERE, _CUTLASS_SINCE = "nemotron_h", (0, 5, 14)
"""Type of model whose experts run FlashInfer's CUTLASS kernels on NVIDIA's other GPUs, but in nvfp4 before Blackwell, and since
when (`arg_groups/nemotron_h_hook.py`, `model_overrides/nemotron_h.py`)."""

_WORDS = {
    "flashinfer_trtllm": "trtllm",
    "flashinfer_trtllm_routed": "trtllm",
    "flashinfer_mxfp4": "trtllm",
    "flashinfer_cutlass": "cutlass",
    "triton": "triton",
    "marlin": "marlin",
}
"""Value of ``--moe-runner-backend`` -> how kernel tables call it."""
EXPERTS = {
    "trtllm": "FlashInfer's TensorRT-LLM kernels",
    "cutlass": "FlashInfer's CUTLASS kernels",
    "trtllm/cutlass": "FlashInfer's CUTLASS kernels",
    "triton": "Triton kernels",
    "vllm/triton": "triton_kernels as timed under vLLM",
    "marlin": "Marlin kernels",
    "vllm/marlin": "Marlin kernels",
}
"""The same in words."""
_TUNED_CUTLASS = "trtllm/cutlass"
"""FlashInfer's CUTLASS kernels, which are TensorRT-LLM's, as SGLang tunes them at its start since 0.5.14
(`model_executor/runner/base_runner.py`; not in 0.5.10). Its own tables timed them untuned: 4.1 ms for 32 tokens of a layer of
Nemotron-3-Nano on an H100, where TensorRT-LLM's take 0.88 and vLLM's in Triton 0.85."""
CUTLASS = ("cutlass", _TUNED_CUTLASS)
_LENT_MARLIN = "vllm/marlin"
"""Marlin's on data-centre Blackwell, where SGLang's table of int4 holds TensorRT-LLM's kernels and vLLM's Marlin's, one code."""
_PACKAGE = "vllm/triton"
"""The grouped products of the package `triton_kernels`: vLLM's table holds them, SGLang's holds its own Triton kernel instead,
whose weights are widened before."""
_WIDENS_MXFP4 = "hopper"
"""Generation on which that package widens mxfp4 within its product."""


_SMALL_CUTLASS_SINCE = (0, 5, 17)
_SMALL_BLACKWELL = {
    "gpt_oss": ((_SMALL_CUTLASS_SINCE, _TUNED_CUTLASS), ((0, 5, 14), "marlin")),
    "deepseek_v4": (((0, 5, 16), _TUNED_CUTLASS), ((0, 5, 13), "marlin")),
}
"""Type of model -> since when its experts in mxfp4 run on which kernels on Blackwell without HBM (`server_args.py` of 0.5.12 to
0.5.15, `arg_groups/overrides.py` of 0.5.15 to 0.5.17); before on Triton's."""
_MXFP4_BACKENDS = ("auto", "flashinfer_mxfp4")
_EMULATES_MXFP4 = ("ampere", "ada")
"""Generations on which Triton has no product of such narrow formats (`triton_kernels`, SGLang's choice for gpt-oss there:
`server_args.py` of 0.5.3 and 0.5.6). The batch that the warning tells of: 330 tokens/s, steps of 6.7 s with prompts, where 1,550
are predicted (GPUStack's performance lab)."""


def experts(request: PoolRequest, version: tuple[int, ...], warnings: list[str]) -> str | None:
    """The kernels of a model's experts, as tables call them; None where it has none or nothing is known of the GPU's."""
    arch, flags = request.arch, request.flags
    device = load_device(request.device_name)
    if not arch.has_experts or device.vendor != "nvidia":
        return None
    asked = str(flags.get("moe_runner_backend") or "auto")
    small_blackwell = device.architecture == "blackwell" and not stacked_blackwell(device)
    if asked == "flashinfer_mxfp4" and small_blackwell:
        return _TUNED_CUTLASS  # the others are of data-centre GPUs alone
    if asked != "auto":
        if asked == "triton_kernel" and request.expert_parallel > 1:
            raise InputError(
                "SGLang's `triton_kernel` does not split experts by number",  # `server_args.py` asserts it
                where="deployment.engine_args.moe_runner_backend",
                mend="leave it out, or expert_parallel",
            )
        if asked == "triton_kernel" and _by_package(request):
            return _PACKAGE
        if asked not in _WORDS:
            warnings.append(
                f"sglang flag `moe_runner_backend` ({asked}) is not modelled; in the engine it changes the speed of the experts, "
                "which are priced as of SGLang's own choice"
            )
        else:
            return _LENT_MARLIN if asked == "marlin" and stacked_blackwell(device) else _WORDS[asked]
    if request.formats.weights.name == "mxfp4" and device.architecture in _EMULATES_MXFP4:
        warnings.append(
            f"experts in mxfp4 are emulated on {device.title}, which no table holds: a published batch of gpt-oss-120b on A100 "
            "took five times as long as it is priced"
        )
    if arch.family == "gpt_oss" and _by_package(request):
        return _PACKAGE
    weights = format_of_part(arch, request.formats.weights, "experts")
    if arch.family in _SMALL_BLACKWELL and weights.name == "mxfp4" and small_blackwell:
        return next((kernels for since, kernels in _SMALL_BLACKWELL[arch.family] if version >= since), "triton")
    return _own_choice(arch.family, weights, version, device)


def activation_format(
    device: Device, arch: Architecture, weights: Format, flags: Mapping[str, Any], version: tuple[int, ...]
) -> str | None:
    """FP8 before gpt-oss's experts in mxfp4 on FlashInfer's kernels, on data-centre Blackwell unless
    ``--flashinfer-mxfp4-moe-precision`` is bf16 (`quantization/mxfp4.py`)."""
    runs = arch.family == "gpt_oss" and weights.name == "mxfp4" and device.architecture == "blackwell"
    if not runs or str(flags.get("moe_runner_backend") or "auto") not in _MXFP4_BACKENDS:
        return None
    if stacked_blackwell(device):
        return "fp8" if flags.get("flashinfer_mxfp4_moe_precision") != "bf16" else None
    return "fp8" if version >= _SMALL_CUTLASS_SINCE else None


def _by_package(request: PoolRequest) -> bool:
    """Whether experts in mxfp4 can run on `triton_kernels`, which SGLang takes for gpt-oss unless ranks share the experts by
    number (`server_args.py` of 0.5.2 to 0.5.9, `arg_groups/model_overrides` after)."""
    hopper = load_device(request.device_name).architecture == _WIDENS_MXFP4
    return hopper and request.formats.weights.name == "mxfp4" and request.expert_parallel == 1


def _own_choice(family: str, weights: Format, version: tuple[int, ...], device: Device) -> str:
    blackwell = stacked_blackwell(device)
    rules = _TRTLLM_ON_BLACKWELL.get(family, ()) if blackwell else ()
    if any(version >= rule.version and weights.name in rule.formats for rule in rules):
        return "trtllm"
    if weights.name in _FP4:
        if device.architecture == "blackwell":
            return "trtllm" if blackwell else "cutlass"
        return "marlin"
    if family == _CUTLASS_ELSEWHERE and version >= _CUTLASS_SINCE and not blackwell and weights.name in _FP8 + _WIDE:
        return _TUNED_CUTLASS
    if weights.weight_only and weights.name != "mxfp4":
        return _LENT_MARLIN if blackwell else "marlin"
    return "triton"


_PRODUCTS_WITHOUT_DEEPGEMM_SINCE = (0, 5, 7)
"""First version whose own choice on Blackwell is FlashInfer's kernel where DeepGEMM is switched off, Triton's before (SGLang pull
request 14844, 2025-12)."""


def token_tiles(request: PoolRequest, version: tuple[int, ...], warnings: list[str]) -> bool:
    """Whether products with weights in FP8 blocks run on FlashInfer's TensorRT-LLM kernel, not on DeepGEMM: on data-centre
    Blackwell, where flag or environment ask for it (`quantization/fp8_utils.py`)."""
    if request.formats.weights.name != "fp8_block":
        return False
    flags, blackwell = request.flags, stacked_blackwell(load_device(request.device_name))
    asked, without = str(flags.get("fp8_gemm_backend") or "auto"), not flags.get("enable_jit_deepgemm", True)
    if blackwell and (asked == "flashinfer_trtllm" or (asked == "auto" and flags.get("enable_flashinfer_gemm"))):
        return True
    if blackwell and asked == "auto" and without and version >= _PRODUCTS_WITHOUT_DEEPGEMM_SINCE:
        return True
    if asked not in ("auto", "deep_gemm") or without:
        words = f"flag `fp8_gemm_backend` ({asked})" if asked != "auto" else "without DeepGEMM"
        warnings.append(
            f"sglang {words} is not modelled here; in the engine it changes the speed of products, which are priced as DeepGEMM's"
        )
    return False


def compiles_products(request: PoolRequest, *, tiled: bool) -> bool:
    """Whether DeepGEMM computes the products: FP8 blocks on Hopper and data-centre Blackwell, unless they are `tiled`."""
    device = load_device(request.device_name)
    able = device.architecture == "hopper" or stacked_blackwell(device)
    return able and request.formats.weights.name == "fp8_block" and not tiled


def quantises_apart(request: PoolRequest, *, tiled: bool) -> tuple[str, ...]:
    """Formats whose products SGLang's tables time without the kernel that quantises their input: those of DeepGEMM, and of
    FlashInfer in NVFP4 (with few tokens 2 to 3 us below vLLM's tables of the same kernels, which hold it)."""
    narrow = ("nvfp4",) if load_device(request.device_name).architecture == "blackwell" else ()
    return (("fp8_block",) if compiles_products(request, tiled=tiled) else ()) + narrow


_SHARE_EXPERTS = ("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "glm_moe_dsa", "glm4_moe")
_TWO_STREAMS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25", "glm_moe_dsa"), (0, 5)),
    "glm4_moe": (0, 5, 6),
    **dict.fromkeys(("qwen2_moe", "qwen3_next", "qwen3_5_moe"), (0, 5, 3)),
}
_BESIDE_TOKENS = 1024
"""Type of model -> since when its shared expert, where it is none of the routed ones, runs beside them in a second stream of
captured steps of up to so many tokens (`forward_normal_dual_stream` of `models/deepseek_v2.py`, `qwen2_moe.py`, `glm4_moe.py`;
the latter by pull request 13786, which tells of 60.4 -> 66.3 tokens/s of GLM-4.6 in FP8; read 2026-11)."""


def beside_tokens(request: PoolRequest, version: tuple[int, ...]) -> int:
    """Most tokens of a captured step in which a shared expert runs beside the routed ones."""
    beside = request.device_vendor == "nvidia" and version >= _TWO_STREAMS.get(request.arch.family, (99,))
    return _BESIDE_TOKENS if beside else 0


_FUSE_REDUCES: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    **dict.fromkeys(("deepseek_v3", "kimi_k2"), ((0, 5, 7), (0, 5, 5))),
    "deepseek_v32": ((0, 5, 7), (0, 5, 6)),
    "gpt_oss": ((0, 5, 7), (0, 5, 3)),
    **dict.fromkeys(("glm4_moe", "qwen3_moe"), ((0, 5, 7), (0, 5, 7))),
    "kimi_k25": ((0, 5, 9), (0, 5, 9)),
    **dict.fromkeys(("glm_moe_dsa", "qwen3_5_moe"), ((0, 5, 10), (0, 5, 10))),
}
"""Type of model -> versions that fuse its reductions by themselves, on Hopper and on data-centre Blackwell (`server_args.py` of
0.5.3 to 0.5.10, read 2026-11)."""
FUSED_TOKENS = 2048
"""Most tokens of a step whose reductions are fused (datasheet: ``FUSE_ALLREDUCE_MAX_BATCH_SIZE``, SGLang 0.5.3 to 0.5.23)."""


_OWN_SUMS_SINCE = (0, 5, 12)
"""First version whose own all-reduce is written anew (``CustomAllReduceV2``, SGLang pull requests 19880, 24363, 2026-05); tables
of Hopper and Blackwell are of later ones. Before it ran vLLM's: on A100, where both were timed, they are alike within 4 %."""


def earlier_sums(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether sums over tensor ranks run in that earlier kernel, on GPUs behind a switch, whose table holds the later one."""
    device = load_device(request.device_name)
    switched = device.link is not None and device.link.topology == "all_to_all"
    return version < _OWN_SUMS_SINCE and switched and device.architecture in ("hopper", "blackwell")


EXPERT_LAUNCHES = {"trtllm": 7.0, **dict.fromkeys((*CUTLASS, "triton", "marlin", _LENT_MARLIN), 13.0)}
"""Kernels of experts -> launches that a layer of them costs the host in a prompt's step, in plain operations. kind: fitted,
2026-11, source: Triton's by the TTFT of Qwen3-235B with one user on B200 (92 to 109 ms, sgl-cookbook); SGLang 0.5.9's
`fused_moe_triton` launches eight, of which Triton's two products cost twice; TensorRT-LLM's are one call (as counted for that
engine); others: assumed as Triton's."""
_LATENT_LAUNCHES = {"hopper": 8.0}
_OTHER_LATENT_LAUNCHES = 28.0
"""The same of latent attention beside its products, by architecture: norms, copies that join rotated and plain parts, and on
Blackwell the wrappers of FlashInfer's and TensorRT-LLM's kernels. kind: fitted, 2026-11, source: TTFT of DeepSeek-R1 with one
user, 108.5 ms on H200 (SGLang pull request 14918) and 126 to 141 ms on B200 (sgl-cookbook); AMD's: assumed as Blackwell's."""
RECURRENT_LAUNCHES = 57.0
"""The same of a gated delta net beside its products: a dozen Triton kernels, each about five plain operations. kind: fitted,
2026-11, source: TTFT of Qwen3-Next with one user on B200 (133 ms, sgl-cookbook)."""
_SELECTION_KERNELS = 10
"""Kernels in which PyTorch selects a token's experts by sigmoid and bias (kind: by count, 2026-11, source: SGLang 0.5.9
`layers/moe/topk.py`, `biased_grouped_topk_impl`)."""
_SELECTION_SORTS, _SORT_PASSES = 3, 4
"""Those of them that are ``torch.topk``, and how many plain kernels one takes as long as: it looks at its row several times, in
one block (kind: fitted, 2026-11, source: GLM-4.6's TPOT with one user on B200, 14.8 ms, 12.9 if each were a plain one, 10.8
without the ten; sgl-cookbook). All nine loads of that page are 1.5 % off in the median, 13 before; GLM-4.5-Air on A100 (GPUStack)
3.8 % in throughput, 2.3 before, its bias 0.6 for 2.2."""
_SELECTED_IN_TORCH = ("glm4_moe", "glm_moe_dsa", "mimo_v2_flash")
"""Types whose experts form one group of more than SGLang's own kernel holds (32, a power of two); Kimi-K2 has its own
(MiMo-V2-Flash: `models/mimo_v2_flash.py`, and pull request 26303, which tells of it)."""
_SELECTED_IN_ONE_SINCE = (0, 5, 23)
"""Version whose kernel (FlashInfer's) selects of any power of two beside a shared expert; not yet 0.5.10, none read between."""
_UNSHARED_IN_ONE_SINCE, _IN_ONE_EXPERTS = (0, 5, 14), 512
"""Version whose kernel (`jit_kernel/grouped_topk.py`) selects of one group of so many where no shared expert is one of the
routed; not yet 0.5.10, none read between (2026-11)."""


def selection_kernels(request: PoolRequest, version: tuple[int, ...], backend: str | None) -> tuple[int, int]:
    """Kernels that select the experts of a layer beyond the one that engines have written for it, and their time in plain ones
    (AMD's aiter has one)."""
    if request.arch.has_experts and routes_in_torch(request, version):
        return TORCH_ROUTING, TORCH_ROUTING + _SORT_PASSES - 1
    if request.arch.family not in _SELECTED_IN_TORCH or backend in (None, "trtllm"):
        return 0, 0
    number = max(block.experts for block in request.arch.mlp)
    if backend == "triton" and _shares_experts(request):
        in_one = version >= _SELECTED_IN_ONE_SINCE and number & (number - 1) == 0
    else:
        in_one = version >= _UNSHARED_IN_ONE_SINCE and number <= _IN_ONE_EXPERTS
    if in_one:
        return 0, 0
    return _SELECTION_KERNELS, _SELECTION_KERNELS + _SELECTION_SORTS * (_SORT_PASSES - 1)


_HEADS_NORMED_IN_PLACE_SINCE = (0, 5, 7)
"""First version that normalises queries and keys in one kernel, where they stand (`models/utils.py`, `apply_qk_norm`)."""
_HEADS_COPIED = ("qwen3", "qwen3_moe", "glm4_moe")
"""Types of model whose code copied them before (`models/qwen3.py`, `qwen3_moe.py`, `glm4_moe.py` of 0.5.3 and 0.5.6)."""


def copies_heads(request: PoolRequest, version: tuple[int, ...]) -> bool:
    """Whether queries and keys are copied before their norms by head, both at once in two streams."""
    return request.arch.family in _HEADS_COPIED and version < _HEADS_NORMED_IN_PLACE_SINCE


def latent_launches(request: PoolRequest) -> float:
    """Launches that latent attention costs the host beside its products."""
    return _LATENT_LAUNCHES.get(load_device(request.device_name).architecture, _OTHER_LATENT_LAUNCHES)


def as_run(request: PoolRequest, version: tuple[int, ...], backend: str | None) -> tuple[Architecture, tuple[str, ...]]:
    """The model's layers as their kernels are launched, and that in words.

    A shared expert of the experts' width is one of them, chosen by every token, in Triton's kernels (TensorRT-LLM's switch that
    off).
    """
    arch, said = request.arch, []
    if backend == "triton" and _shares_experts(request):
        arch = replace(arch, mlp=tuple(_with_shared(block) for block in arch.mlp))
        said.append("the shared expert is computed as one of the routed ones")
    if fused_norm_tokens(request, version):
        said.append(f"norms are fused with the reductions over the ranks in steps of up to {FUSED_TOKENS} tokens")
    return arch, tuple(said)


_OTHER_TILES = "vllm/triton"


def other_tiles(request: PoolRequest, backend: str | None) -> str:
    """Triton's experts as another table has them, "" where SGLang's own holds.

    Its table of FP8 blocks on Hopper was timed without the shared expert among the routed, in tiles of another file than servers
    take that have it there: ``E=256,N=256`` of Triton 3.1 beside ``E=257,N=256`` of 3.2 to 3.5 (`fused_moe_triton/configs`, read
    2026-11). On H200 a layer takes 168 us for 16 rows in those, which 8 and 32 rows and an H100 say should be 125; vLLM's 123 to
    142. The servers' own tiles, tuned for the layer, are taken to be no slower than either (an inference, 2026-11).
    """
    hopper = load_device(request.device_name).architecture == "hopper"
    blocks = request.formats.weights.name == "fp8_block"
    return _OTHER_TILES if backend == "triton" and blocks and hopper and _shares_experts(request) else ""


def _shares_experts(request: PoolRequest) -> bool:
    blocks = [block for block in request.arch.mlp if block.kind == "moe"]
    return (
        request.arch.family in _SHARE_EXPERTS
        and not request.flags.get("disable_shared_experts_fusion")
        and all(block.shared_intermediate == block.expert_intermediate for block in blocks)
        and request.expert_parallel == request.data_parallel == 1
    )


def fused_norm_tokens(request: PoolRequest, version: tuple[int, ...]) -> int:
    """Up to how many tokens of a step norms are part of the reductions before them, by the flag or by itself; 0: of none."""
    flags, device = request.flags, load_device(request.device_name)
    hopper = device.architecture == "hopper"
    able = hopper or stacked_blackwell(device)
    since = _FUSE_REDUCES.get(request.arch.family)
    asked = (since is not None and version >= since[not hopper]) or bool(flags.get("enable_flashinfer_allreduce_fusion"))
    off = bool(flags.get("enforce_disable_flashinfer_allreduce_fusion"))
    fuses = able and asked and not off and request.tensor_parallel > 1 and request.data_parallel == 1
    return FUSED_TOKENS if fuses else 0


def _with_shared(block: MlpBlock) -> MlpBlock:
    if block.kind != "moe":
        return block
    return replace(
        block, experts=block.experts + 1, experts_per_token=block.experts_per_token + 1, shared_intermediate=0
    )
