"""What DeepSpeed-Inference is told: fields of its configuration, and of ZeRO's for ZeRO-Inference.

They follow `deepspeed/inference/config.py`, `runtime/zero/config.py` and `offload_config.py` of 0.19.8. `batch_size`,
`max_length` and `kv_offload` are arguments of the program that calls it (DeepSpeedExamples' `zero_inference`);
`nvme_bytes_per_s` and `host_bytes_per_s` are rates of the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed, float32_weights, keys_of
from engine_models.launcher import Launcher
from hardware_profiles.errors import InputError

_DTYPES = ("auto", "float32", "float16", "bfloat16", "fp16", "bf16", "half", "int8")

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "batch_size": Flag("int", 1, low=1),
    "max_length": Flag("int", None, low=2),
    "dtype": Flag("str", "auto", choices=_DTYPES),
    "replace_with_kernel_inject": Flag("bool", False),
    "enable_cuda_graph": Flag("bool", False),
    "max_out_tokens": Flag("int", 1024, low=2),
    "tensor_parallel": Flag("json", None),
    "mp_size": Flag("int", 1, low=1),
    "zero": Flag("json", None),
    "kv_offload": Flag("bool", False),
    "host_bytes_per_s": Flag("float", None, low=1e6),
    "nvme_bytes_per_s": Flag("float", 5e9, low=1e6),
}

ZERO: dict[str, Flag] = {
    "stage": Flag("int", 3, low=0, high=3),
    "offload_param": Flag("json", None),
    "stage3_max_live_parameters": Flag("float", 1e9, low=1.0),
}
"""Keys of `zero` (`zero_optimization`) that are read."""

_ZERO_UNREAD = (
    *("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_reuse_distance"),
    *("contiguous_gradients", "overlap_comm", "reduce_bucket_size", "sub_group_size"),
)
_OFFLOAD = {"device": Flag("str", "none", choices=("none", "cpu", "nvme"))}
_OFFLOAD_UNREAD = ("nvme_path", "pin_memory", "buffer_count", "buffer_size", "max_in_cpu")

_HARMLESS = """
    base_dir checkpoint checkpoint_config injection_policy injection_policy_tuple keep_module_on_host min_out_tokens
    replace_method return_tuple save_mp_checkpoint_path set_empty_params training_mp_size transposed_mode triangular_masking
"""
_CHANGING = {"the speed of kernels": "use_triton triton_autotune"}
_REFUSED = {
    "which ranks hold which experts (not simulated for DeepSpeed-Inference)": "moe ep_size=1",
    "how weights are quantized (write weights: int8_wo, or int4 with zero)": "quant",
}
_KINDS = {
    name.partition("=")[0]: "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}


def _tensor_ranks(value: Any) -> int | None:
    """Ranks that `tensor_parallel` names: a number, or a group with `tp_size`."""
    ranks = value.get("tp_size", 1) if isinstance(value, Mapping) else value
    return int(ranks) if isinstance(ranks, int) and ranks > 1 else None


FLAGS = FlagTable(
    engine="deepspeed_inference",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(),
        example="deepspeed.init_inference(model, replace_with_kernel_inject=True, max_out_tokens=2048)",
        calls=("deepspeed.init_inference",),
        package="deepspeed",
    ),
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={"kernel_inject": "replace_with_kernel_inject", "max_tokens": "max_out_tokens", "zero_optimization": "zero"},
    typed={
        "dtype": Typed("weights", lambda value: "int8_wo" if value == "int8" else float32_weights(value)),
        "tensor_parallel": Typed("tensor_parallel", _tensor_ranks),
        "mp_size": Typed("tensor_parallel", lambda value: value if value > 1 else None),
    },
    abbreviated=False,
)


_WHOSE = "ZeRO-Inference's"


def zero(flags: Mapping[str, Any]) -> tuple[str, float]:
    """Where ZeRO-Inference keeps the weights ("none", "cpu" or "nvme"), and the most parameters that the device holds at once."""
    if flags.get("zero") is None:
        return "none", 0.0
    where = "deployment.engine_args.zero"
    found = keys_of(flags["zero"], ZERO, _WHOSE, where, _ZERO_UNREAD)
    offload = keys_of(found["offload_param"], _OFFLOAD, _WHOSE, f"{where}.offload_param", _OFFLOAD_UNREAD)
    place = str(offload["device"])
    if place != "none" and found["stage"] != 3:
        raise InputError(
            f"parameters are offloaded with ZeRO's stage 3 only, not with {found['stage']}",
            where=f"{where}.stage",
            mend="write stage: 3",
        )
    return place, float(found["stage3_max_live_parameters"])
