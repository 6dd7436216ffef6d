"""Which kernels TensorRT-LLM runs: experts by `moe_config.backend`, version, model and GPU; what it fuses.

Read 2026-11 in the repository of 1.0 to 1.3 (`tensorrt_llm/_torch/models/modeling_*.py`, `modules/`, `llmapi/llm_args.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.balancer import with_balancer
from engine_models.cost import marlin
from engine_models.cost.one_sided import joined
from engine_models.cost.terms import HostOverhead, Terms
from engine_models.declaration import PoolRequest
from engine_models.engines.trtllm_flags import group
from engine_models.engines.trtllm_serving import Serving, widens_weights
from engine_models.flags import Flag, typed_value
from engine_models.model.blocks import Architecture
from engine_models.model.formats import Format
from hardware_profiles.device import Device, load_device, stacked_blackwell
from hardware_profiles.errors import InputError

OWN_KERNELS = "TRTLLM"
"""Value of ``moe_config.backend`` by which experts run TensorRT-LLM's generated kernels (Blackwell)."""
_TABLES = {
    "CUTLASS": "cutlass",
    "TRTLLM": "vllm/trtllm",
    "TRITON": "vllm/triton",
    "DEEPGEMM": "deepgemm",
}
"""Backend -> how kernel tables call it. TensorRT-LLM's tables hold CUTLASS's experts (by blocks of FP8 on Blackwell DeepGEMM's);
those that it generates and Triton's are the kernels that another framework's tables were timed with (``framework/kernel``)."""
_OWN_TRITON = "trtllm/triton"
"""Triton's in mxfp4 on Hopper, which TensorRT-LLM's own table was timed with (datasheet: `collector/trtllm/collect_moe.py` of
ai-dynamo/aiconfigurator, read 2026-11). Above some thousand tokens its layer takes 1.4 to 2 times as long as under vLLM."""


MARLIN = "vllm/marlin"
"""Marlin's experts and products, which widen weights to 16 bits: those that another framework's tables were timed with."""


def experts(request: PoolRequest, asked: str, generates_blocks: bool, warnings: list[str]) -> str | None:
    """The kernels of a model's experts, as tables call them; None where it has none. generates_blocks : see `trtllm_versions`."""
    if not request.arch.has_experts:
        return None
    own = _own_choice(request, generates_blocks)
    if widens_weights(request):
        return MARLIN
    backend = own if asked.upper() == "AUTO" else asked.upper()
    if backend not in _TABLES:
        warnings.append(
            f"`moe_config.backend` {asked} is not modelled; in the engine it changes the speed of the experts, which are priced "
            f"as those of {own}"
        )
        backend = own
    hopper = load_device(request.device_name).architecture == "hopper"
    if backend == "TRITON" and hopper and request.formats.weights.name == "mxfp4":
        return _OWN_TRITON
    return _TABLES[backend]


EXPERT_LAUNCHES = {MARLIN: 17.0, "cutlass": 17.0, "vllm/trtllm": 7.0, "vllm/triton": 38.0, _OWN_TRITON: 38.0, "deepgemm": 17.0}
"""Kernels -> launches that a layer of experts costs the host in a prompt's step, in plain operations: one call for the generated
ones, Python around several for Triton's. kind: fitted, 2026-11, source: TTFT of 1,024 tokens with up to 16 users, gpt-oss-120b on
B200 and H200 (InferenceX); the other two as another engine's count."""
LATENT_LAUNCHES = 28.0
"""The same of latent attention with a shared expert, beside their products: norms, copies, streams. kind: fitted, 2026-11,
source: as above, DeepSeek-R1 on B200."""


def _own_choice(request: PoolRequest, generates_blocks: bool) -> str:
    """What `AUTO` means: on data-centre Blackwell gpt-oss, and FP8 by blocks, run generated kernels, the rest CUTLASS's."""
    device, family = load_device(request.device_name), request.arch.family
    blocks = generates_blocks and request.formats.weights.name == "fp8_block"
    if stacked_blackwell(device) and (blocks or family == "gpt_oss"):
        return OWN_KERNELS
    return "TRITON" if family == "gpt_oss" and device.architecture == "hopper" else "CUTLASS"


_GATHERED_BYTES = {"nvfp4": 0.5625, "fp8": 1.0, "mxfp4": 1.03125}
"""Weights of experts -> bytes of a value that ranks gather: they quantise before it (mxfp4: where the activations are in FP8)."""


XQA_SINCE, XQA_WIDE_SINCE = (0, 8), (0, 12)
XQA_GROUPS, XQA_WIDTHS = (1, 8), (128, 256)
"""First version of built engines with a decode kernel that reads the cache once for a group of query heads, and the groups and
head widths that it takes up to the second version (`decoderXQARunner.h`, public copies of 2024; which version is the first that
takes others is inferred)."""


UNGROUPED_BYTES_PER_S = 4.2e12
"""Rate at which the other kernel passes the cache, once for every query head; on devices whose memory is slower than what a group
shares of it (L40S) it costs nothing. kind: fitted, 2026-11, source: throughput of Mistral-7B (4 heads a group) under TensorRT-LLM
0.8 and 0.9 on A100, H100 and H200, one rate for the three; without a further constant Llama-70B (8) under 0.6 and 0.7 comes from
60 to 6 % on H100, Falcon-180B (29) from 41 to 4 and 54 to -4 % on H100 and H200 (NVIDIA's overviews)."""


def reads_by_head(arch: Architecture, tensor_parallel: int, version: str | None) -> bool:
    """Whether decoding rows of an engine built by that version (None: the newest) read the cache for every query head.

    Raises InputError for what is no version.
    """
    found = re.match(r"v?(\d+)\.(\d+)", version or "99.0")
    if found is None:
        raise InputError(
            f"`{version}` is no version of TensorRT-LLM",
            where="deployment.engine_args.build_config.version",
            mend="write it as the built engine's config.json does, such as 0.9.0",
        )
    built = int(found[1]), int(found[2])
    if built >= XQA_WIDE_SINCE:
        return False
    blocks = [block for block in arch.attention if block.kind != "linear"]
    groups = {(block.heads // tensor_parallel) // max(1, block.kv_heads // tensor_parallel) for block in blocks}
    known = groups <= set(XQA_GROUPS) and {block.head_dim for block in blocks} <= set(XQA_WIDTHS)
    return groups != {1} and not (known and built >= XQA_SINCE)


def activation_format(
    device: Device, arch: Architecture, weights: Format, flags: Mapping[str, Any], version: tuple[int, ...]
) -> str | None:
    """FP8 before experts in mxfp4 on Blackwell, whatever their backend (`ModelConfig.get_mxfp4_quant_algo`)."""
    return "fp8" if weights.name == "mxfp4" and arch.has_experts and device.architecture == "blackwell" else None


def gathered_bytes(request: PoolRequest) -> float:
    """Bytes of a value of the activations that ranks of attention data parallelism gather before experts."""
    formats = request.formats
    wide = formats.weights.name == "mxfp4" and formats.activations.compute != "fp8"
    return 2.0 if wide else _GATHERED_BYTES.get(formats.weights.name, 2.0)


def one_sided(request: PoolRequest, version: Mapping[str, Any], backend: str | None) -> bool:
    """Whether ranks of attention data parallelism write into each other's memory: whole experts on each of them, over one NVLink
    switch (`MnnvlMemory.supports_mnnvl`: all links of a device are up), and not where kernels gather (`trtllm_versions`)."""
    ranks = request.data_parallel
    whole = 1 < ranks == request.expert_parallel
    return whole and joined(load_device(request.device_name), ranks) and backend in version["one_sided"]


def as_run(request: PoolRequest) -> Architecture:
    """The model's layers as their kernels are launched: reductions over the ranks hold the norms beside them.

    `AllReduceFusionOp.RESIDUAL_RMS_NORM` and its quantising forms, in the layers of Llama, gpt-oss, DeepSeek and Qwen.
    """
    fused = request.tensor_parallel > 1 and request.data_parallel == 1
    return replace(request.arch, norms_per_layer=0) if fused else request.arch


def with_placed_experts(request: PoolRequest) -> PoolRequest:
    """The pool with the slots for experts that ``moe_config.load_balancer`` gives its ranks (datasheet: `MoeLoadBalancerConfig`).

    0 slots turn it off; it moves experts while it serves, or has them placed from statistics, else they lie in order.
    """
    given, flag = group(request.flags, "moe_config")["load_balancer"], "moe_config.load_balancer"
    if not given or not given.get("num_slots", 1):
        return request
    where = f"deployment.engine_args.{flag}"
    if unknown := sorted({*given} - {"num_slots", "initial_global_assignments", "layer_updates_per_iter"}):
        raise InputError(
            f"TensorRT-LLM's `{flag}` has no key `{unknown[0]}`", where=where, mend="give num_slots and layer_updates_per_iter"
        )
    experts = max((block.experts for block in request.arch.mlp), default=0)
    slots, moved = (
        typed_value(Flag("int", low=0), f"{flag}.{key}", given.get(key)) for key in ("num_slots", "layer_updates_per_iter")
    )
    if slots is not None and slots < experts:
        raise InputError(f"{slots} slots are fewer than the {experts} experts", where=where, mend=f"give {experts} or more, or 0")
    balanced = bool(moved or given.get("initial_global_assignments"))
    return with_balancer(request, (slots or experts) - experts, balanced=balanced, flag=flag)


def _marlin_share(request: PoolRequest) -> float:
    return marlin.share_of(load_device(request.device_name), request.formats.weights) if widens_weights(request) else 0.0


def terms_of(
    request: PoolRequest, version: Mapping[str, Any], serving: Serving, host: HostOverhead, warnings: list[str]
) -> Terms:
    """What the engine decides about the time of a step."""
    asked = str(group(request.flags, "moe_config")["backend"])
    backend = experts(request, asked, version["generates_blocks"], warnings)
    return Terms(
        host,
        graph_sizes=tuple(serving.row_tokens * size for size in serving.graphs),
        exact_graphs=bool(serving.graphs) and not serving.padded,
        small_kernels=True,
        moe_backend=backend,
        expands_latents=True,
        moe_by_flag=False,
        rotary_in_attention=True,
        gathered_bytes=gathered_bytes(request),
        one_sided=one_sided(request, version, backend),
        beside_tokens=serving.row_tokens * max(serving.graphs, default=0),
        expert_launches=EXPERT_LAUNCHES.get(backend or ""),
        latent_launches=LATENT_LAUNCHES,
        marlin_share=_marlin_share(request),
        serial_quantisation=version["serial_quantisation"] and stacked_blackwell(load_device(request.device_name)),
    )
