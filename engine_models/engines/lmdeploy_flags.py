"""Flags of LMDeploy's API server: names, types and defaults, and what they say of a pool's keys.

They follow `lmdeploy/cli/serve.py` and `cli/utils.py` at 1263d5cd (2026-08) and of 0.18.0 on PyPI. `prefill_interval` is a
field of the engine's configuration only, `ttft_policy`, `ttft_short_turns` and `ttft_aging_sec` are variables of the
environment. One command line serves both engines; each ignores what is the other's, and so do they here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed, Worker
from engine_models.launcher import CALL, Launcher

_WEIGHTS = {"hf": None, "awq": "awq", "gptq": "gptq", "compressed-tensors": "int4", "fp8": "fp8_block", "mxfp4": "mxfp4"}
"""Values of ``--model-format``, and the format they fix; None leaves it to the checkpoint."""

_KV_CACHE = {"4": "int4", "int4": "int4", "8": "int8", "int8": "int8", "16": "fp8", "fp8": "fp8", "17": "fp8", "fp8_e5m2": "fp8"}
"""Values of ``--quant-policy`` and the format of the KV cache that they fix."""

DRAFT_METHODS = {"eagle": "eagle", "eagle3": "eagle3", "deepseek_mtp": "mtp", "qwen3_5_mtp": "mtp", "hy3_mtp": "mtp"}
"""Values of ``--speculative-algorithm``, and methods of a pool's `speculative`."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "backend": Flag("str", "turbomind", choices=("pytorch", "turbomind")),
    "tp": Flag("int", 1, low=1),
    "session_len": Flag("int", None, low=2),
    "max_batch_size": Flag("int", None, low=1),
    "cache_max_entry_count": Flag("float", 0.8, low=1e-3, high=0.999),
    "cache_block_seq_len": Flag("int", 64, low=16),
    "enable_prefix_caching": Flag("bool", False),
    "max_prefill_token_num": Flag("int", 8192, low=1),
    "cudagraph_capture_batch_sizes": Flag("ints", None, low=1),
    "eager_mode": Flag("bool", False),
    "async": Flag("int", 1, low=0, high=1),
    "quant_policy": Flag("str", "0", choices=("0", "none", *_KV_CACHE)),
    "model_format": Flag("str", None, choices=tuple(_WEIGHTS)),
    "prefill_interval": Flag("int", 16, low=1),
    "adapters": Flag("texts", None),
    "speculative_algorithm": Flag("str", None, choices=tuple(DRAFT_METHODS)),
    "speculative_draft_model": Flag("str", None),
    "speculative_num_draft_tokens": Flag("int", 1, low=1),
    "ttft_policy": Flag("str", "size", choices=("size", "fifo")),
    "ttft_short_turns": Flag("int", 3, low=1),
    "ttft_aging_sec": Flag("float", 2.0, low=1e-3),
}

PYTORCH_ONLY = (
    *("cudagraph_capture_batch_sizes", "eager_mode", "prefill_interval"),
    *("ttft_policy", "ttft_short_turns", "ttft_aging_sec"),
)
"""Flags that change nothing where TurboMind serves (datasheet: `cli/serve.py` at 1263d5cd, 2026-08)."""
TURBOMIND_ONLY = ("async",)
"""Those that change nothing where the PyTorch engine does (the same source)."""

_SWITCHES = """
    allow_credentials allow_terminate_by_client disable_fastapi_docs disable_metrics enable_abort_handling enable_eplb
    empty_init enable_microbatch enable_return_routed_experts language_model_only ssl trust_remote_code
"""
_LISTS = "allow_headers allow_methods allow_origins allowed_media_domains api_keys"
_HARMLESS = """
    allow_credentials allow_headers allow_methods allow_origins allow_terminate_by_client allowed_media_domains api_keys
    chat_template communicator disable_fastapi_docs disable_metrics dist_init_addr distributed_executor_backend
    download_dir dp_rank dtype empty_init enable_abort_handling generation_config kernel_block_size language_model_only log_level
    max_log_len max_prefill_iters migration_backend model_name num_tokens_per_iter prefix_cache_decode_state_interval
    prefix_cache_state_budget proxy_url reasoning_parser revision rope_scaling_factor server_name server_port ssl
    speculative_dflash_block_size tool_call_parser trust_remote_code vision_max_batch_size
"""
_CHANGING = {
    "the model's configuration": "hf_overrides",
    "how many answers that are not streamed are in work at once": "max_concurrent_requests",
    "the host's time": "logprobs_mode enable_return_routed_experts",
    "how experts are placed and overlapped": "enable_eplb enable_microbatch",
    "the speed of kernels": "piecewise_cudagraph_max_tokens",
    "the speed of the exchange between devices": "moe_a2a_backend=auto|default",
    "which prompts are found in memory outside of the device; here they are computed anew": "kv_transfer_config",
}
_REFUSED = {
    "how a diffusion model yields its tokens": (
        "dllm_block_length dllm_unmasking_strategy dllm_denoising_steps dllm_confidence_threshold"
    ),
    "which ranks share attention and experts (not simulated for LMDeploy)": "dp=1 ep=1 cp=1",
    "how a server is spread over nodes": "nnodes=1 node_rank=0",
    "which part of a request a server computes": "role=hybrid",
    "the kind of device": "device=cuda",
    "how many tokens the KV cache holds": "num_gpu_blocks=0",
}
_KINDS = {
    name.partition("=")[0]: "switch"
    if name in _SWITCHES.split()
    else "list"
    if name in _LISTS.split()
    else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}


def _drafts(algorithm: str, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any]:
    """What the flags of drafts say of a pool's `speculative`."""
    drafts: dict[str, Any] = {"method": DRAFT_METHODS[algorithm]}
    model = flags.get("speculative_draft_model")
    stated = (pool.get("speculative") or {}).get("num_speculative_tokens")
    number = flags.get("speculative_num_draft_tokens", stated or 1)
    return drafts | {"num_speculative_tokens": number} | ({"model": model} if model else {})


_GROUPS = {"TurbomindEngineConfig": {"backend": "turbomind"}, "PytorchEngineConfig": {"backend": "pytorch"}}
_OF_GROUPS = {"block_size": "cache_block_seq_len", "device_type": "device", "async_": "async"}
_OF_DRAFTS = {
    "method": "speculative_algorithm",
    "model": "speculative_draft_model",
    "num_speculative_tokens": "speculative_num_draft_tokens",
}
"""Keys of settings in a program and the flags that say the same (`lmdeploy/messages.py` at 1263d5cd, 2026-08)."""
_NAMES_OF_CALLS = """
    chat_template_config custom_module_map devices enable_metrics enable_mp_engine enable_transfer_obj_ref gen_config
    mp_engine_backend thread_safe vision_config
"""
_CHANGING_IN_CALLS = {
    "what the prefix cache keeps": (
        "cache_prompt=auto cache_generation=auto cache_checkpoint_interval=4096 cache_prompt_boundary_skip=1 num_cpu_blocks=0"
    ),
    "the memory of the device": "cache_chunk_size=-1",
    "what attention computes": "use_logn_attn=false",
}
_REFUSED_IN_CALLS = {
    "which ranks share attention and experts (not simulated for LMDeploy)": (
        "attn_tp_size attn_cp_size attn_dp_size mlp_tp_size mlp_dp_size moe_tp_size outer_dp_size device_num"
    ),
}
_KINDS_OF_CALLS = {
    name.partition("=")[0]: "value"
    for text in (_NAMES_OF_CALLS, *_CHANGING_IN_CALLS.values(), *_REFUSED_IN_CALLS.values())
    for name in text.split()
}


def _of_call(keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    """The keywords of ``pipeline(...)`` as flags: groups of settings stand with the others."""
    renamed = {"backend_config": _OF_GROUPS, "speculative_config": _OF_DRAFTS}
    flags: dict[str, Any] = {
        name: value for name, value in keywords.items() if name not in renamed or not isinstance(value, Mapping)
    }
    for group, names in renamed.items():
        inside = keywords.get(group)
        for name, value in (inside if isinstance(inside, Mapping) else {}).items():
            flags[names.get(str(name), str(name))] = value
    if isinstance(flags.get("adapters"), Mapping):
        flags["adapters"] = list(flags["adapters"].values())
    return {name: value for name, value in flags.items() if value is not None}


_LAUNCHER = Launcher(
    programs=(r"lmdeploy serve api_server", r"-m lmdeploy serve api_server"),
    example="lmdeploy serve api_server MODEL --flag value",
    image=r"[^\s:=]*openmmlab/lmdeploy[^\s:=]*",
    published=r"openmmlab/lmdeploy",
    package="lmdeploy",
    calls=("lmdeploy.pipeline", "lmdeploy.api.pipeline"),
    groups=_GROUPS,
    called=_of_call,
)

FLAGS = FlagTable(
    engine="lmdeploy",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={"model_path": "model"},
    typed={
        "tp": Typed("tensor_parallel"),
        "model_format": Typed("weights", _WEIGHTS.get),
        "quant_policy": Typed("kv_cache", _KV_CACHE.get),
        "speculative_algorithm": Typed("speculative", beside=_drafts),
        "adapters": Typed("lora", lambda paths: {"max_loras": len(paths)} if paths else None),
    },
    environment={
        f"LMDEPLOY_PT_{name.upper()}": name for name in ("ttft_policy", "ttft_short_turns", "ttft_aging_sec")
    },
    workers={
        CALL: Worker(unread=classified(_KINDS_OF_CALLS, _NAMES_OF_CALLS, _CHANGING_IN_CALLS, _REFUSED_IN_CALLS)),
    },
)
