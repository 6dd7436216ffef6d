"""The items of Inferflow's ini file, by their own names; sections are left out.

They follow `docs/model_serving_config.md`, `InferenceEngine::LoadConfig` and `LoadModelSpec` at 14ff95e (2024-03). The server
is started by ``inferflow_service FILE.ini``: what the file says is written as keys.
"""

from __future__ import annotations

import re

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher

WEIGHTS = {
    "f16": None,
    "fp16": None,
    "q8": "q8_b32t2",
    "q6": "q6_b64t1",
    "q5": "q5_b64t1",
    "q4": "q4_b32t1",
    "q3h": "q3h_b64t1",
    "q3": "q3_b32t1",
    "q2": "q2_b32t1",
}
"""Short names of `device_weight_data_type` and the blocks they stand for (`TensorCommon::InitElementTypeMap`); None leaves the
model's."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "devices": Flag("str", "0"),
    "max_concurrent_queries": Flag("int", 6, low=1),
    "worker_count": Flag("int", 32, low=1),
    "max_context_len": Flag("int", 0, low=0),
    "device_weight_data_type": Flag("str", "F16"),
    "device_kv_cache_data_type": Flag("str", "F16", choices=("F16", "Q8", "f16", "q8")),
    "be_host_embeddings": Flag("bool", True),
}

_HARMLESS = """
    cpu_threads decoder_input_template decoding_strategy encoder_input_template global_model_dir host_kv_cache_data_type
    host_weight_data_type http_port is_study_mode model_dir model_specification_file models prompt_template show_tensors
    tensor_quant_threshold
"""
_CHANGING = {
    "the format of a few weights": "delta_tensor_ratio=0|0.0",
    "the host's time (logits of all tokens are copied to it)": "return_output_tensors=false",
}
_REFUSED = {
    "which layers the CPU computes (not simulated for Inferflow)": "decoder_cpu_layer_count=0 encoder_cpu_layer_count=0 "
    "cpu_layer_count=0",
    "where keys and values are kept (host memory is not simulated for Inferflow)": "host_kv_cache_percent=0",
}
_KINDS = {
    name.partition("=")[0]: "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}


def tensor_devices(devices: str) -> int:
    """Devices that share each layer: those that ``&`` joins, of the first stage."""
    return len(re.split("&", devices.split(";")[0]))


FLAGS = FlagTable(
    engine="inferflow",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(r"inferflow_service",),
        example="inferflow_service",
    ),
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    typed={
        "devices": Typed("tensor_parallel", tensor_devices),
        "device_weight_data_type": Typed("weights", lambda value: WEIGHTS.get(value.lower(), value.lower())),
        "device_kv_cache_data_type": Typed("kv_cache", lambda value: "q8_b32t2" if value.lower() == "q8" else None),
    },
    abbreviated=False,
    converted=r".*\.ini()",
)
