"""Flags of OpenVINO Model Server and names of OpenVINO GenAI's `SchedulerConfig`, and what they say of a pool's keys.

They follow `src/graph_export/graph_cli_parser.cpp`, `src/cli_parser.cpp` and `src/llm/llm_calculator.proto` of
openvinotoolkit/model_server at 7e4df0c7 and `scheduler_config.hpp` of openvino.genai at da1db864 (2026-08). `num_kv_blocks` is a
field of the library only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.engines.openvino_genai import KV_FORMATS
from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher

_WEIGHTS = ("fp32", "fp16", "int8", "int4")
_GROUP = re.compile(r"--group-size[ =](-?\d+)")
_RATIO = re.compile(r"--ratio[ =]([\d.]+)")


def _weights(value: str, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> str:
    """The format by which the server converts a checkpoint: ``--weight-format`` and ``--extra_quantization_params``."""
    if value != "int4":
        return "nncf_int8" if value == "int8" else value
    said = str(flags.get("extra_quantization_params") or "")
    group, ratio = _GROUP.search(said), _RATIO.search(said)
    size = group[1] if group else "128"
    share = f"{float(ratio[1]):g}" if ratio else "1"
    name = f"nncf_int4_{'sym' if '--sym' in said.split() else 'asym'}_{'channel' if size == '-1' else size}"
    return name + (f"_r{share}" if share != "1" else "")


_CONVERTED = {
    "int4": "nncf_int4_asym_128", "int4-cw": "nncf_int4_sym_channel", "int8": "nncf_int8", "fp16": "fp16", "bf16": "bf16"
}  # fmt: skip
"""Names of converted models end in these and ``-ov``: their formats (its own model cards, from memory, 2026-11: assumed)."""

MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "max_num_batched_tokens": Flag("int", 256, low=1),
    "max_num_seqs": Flag("int", 256, low=1),
    "cache_size": Flag("int", 0, low=0),
    "num_kv_blocks": Flag("int", 0, low=0),
    "dynamic_split_fuse": Flag("bool", True),
    "enable_prefix_caching": Flag("bool", True),
    "rest_workers": Flag("int", None, low=2, high=10_000),
    "kv_cache_precision": Flag("str", None, choices=("", *KV_FORMATS)),
    "weight_format": Flag("str", None, choices=_WEIGHTS),
    "extra_quantization_params": Flag("str", None),
    "target_device": Flag("str", None),
}

_SWITCHES = """
    pull configure list_models overwrite_models add_to_config remove_from_config metrics_enable verbose_response
    allow_credentials enable_tool_guided_generation trust_remote_code help version
"""
_HARMLESS = """
    allow_credentials allowed_headers allowed_local_media_path allowed_media_domains allowed_methods allowed_origins
    api_key_file cache_dir cache_interval_multiplier config_path configure cpu_extension
    custom_node_resources_cleaner_interval_seconds file_system_poll_wait_seconds grpc_bind_address grpc_channel_arguments
    grpc_max_threads grpc_memory_quota grpc_workers gguf_filename log_level log_path max_prompt_len metrics_enable metrics_list
    model_name model_path model_repository_path models_path model_version_policy nireq overwrite_models port pull
    reasoning_parser rest_bind_address rest_port task=text_generation tool_parser trust_remote_code
    verbose_response best_of_limit
"""
_CHANGING = {
    "the host's time": "enable_tool_guided_generation",
    "which answers clients may ask for": "max_tokens_limit",
    "how a model is spread over sockets or devices": "model_distribution_policy",
    "settings of OpenVINO's device plugin": "plugin_config={}",
}
_REFUSED = {
    "how many tokens a step yields (drafts are not simulated for OpenVINO)": "draft_source_model draft_models_path",
    "which blocks of the KV cache are kept": "use_cache_eviction cache_eviction_config",
    "what prompts attend to": "use_sparse_attention sparse_attention_config",
    "how requests are batched: other pipelines serve one at a time": "pipeline_type=auto|lm_cb",
}
_KINDS = {
    name.partition("=")[0]: "switch" if name.partition("=")[0] in _SWITCHES.split() else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}

_LAUNCHER = Launcher(
    programs=(r"ovms", r"/ovms/bin/ovms"),
    example="ovms --source_model MODEL --rest_port 8000 --flag value",
    image=r"[^\s:=]*openvino/model_server[^\s:=]*",
    published=r"openvino/model_server",
    enters=True,
    package="openvino-genai",
)

FLAGS = FlagTable(
    engine="openvino",
    modelled=MODELLED,
    launcher=_LAUNCHER,
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={"device": "target_device", "source_model": "model"},
    typed={
        "kv_cache_precision": Typed("kv_cache", lambda value: KV_FORMATS.get(value)),
        "weight_format": Typed("weights", beside=_weights),
    },
    abbreviated=False,
    converted=rf"(?i:.*?-({'|'.join(sorted(_CONVERTED, reverse=True))})-ov)",
    stored_as=_CONVERTED,
)
