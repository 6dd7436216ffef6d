"""What Triton is told: keys of a model's `config.pbtxt`, and flags of `tritonserver`, which say nothing of batches.

They follow `model_config.proto` and the command line of server 2.71 (core at 73aad7c, 2026-06). `model_engine` and `max_length`
are no keys of Triton: they say whose `generate` the model calls, and up to which length. Keys of the TensorRT-LLM backend are
named as `fill_template.py` and `docs/model_config.md` of tensorrtllm_backend name them (1.0, 2025), `build_config` as the
`config.json` of a built engine; `called` is the model of the repository that clients call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, keys_of
from engine_models.launcher import Launcher

POLICY: dict[str, Flag] = {
    "timeout_action": Flag("str", "REJECT", choices=("REJECT", "DELAY")),
    "default_timeout_microseconds": Flag("int", 0, low=0),
    "allow_timeout_override": Flag("bool", False),
    "max_queue_size": Flag("int", 0, low=0),
}
BATCHING: dict[str, Flag] = {
    "preferred_batch_size": Flag("ints", None, low=1),
    "max_queue_delay_microseconds": Flag("int", 0, low=0),
    "preserve_ordering": Flag("bool", False),
    "priority_levels": Flag("int", 0, low=0),
    "default_priority_level": Flag("int", 0, low=0),
    "default_queue_policy": Flag("json"),
    "priority_queue_policy": Flag("json"),
}
GROUP: dict[str, Flag] = {
    "count": Flag("int", 1, low=1),
    "kind": Flag("str", "KIND_AUTO", choices=("KIND_AUTO", "KIND_GPU", "KIND_CPU")),
    "gpus": Flag("ints"),
}
"""Keys of a queue policy, of `dynamic_batching` and of an `instance_group`."""

BUILD: dict[str, Flag] = {
    "version": Flag("str", None),
    "max_batch_size": Flag("int", 2048, low=1),
    "max_num_tokens": Flag("int", 8192, low=1),
    "max_seq_len": Flag("int", None, low=2),
    "max_input_len": Flag("int", None, low=1),
    "tokens_per_block": Flag("int", 32, low=1),
}
"""The version of TensorRT-LLM that built an engine, and keys of `build_config` that are read (datasheet:
`tensorrt_llm/builder.py`, `trtllm-build` of 1.0; older ones had 64 tokens a block); the others change kernels, or nothing."""

ENSEMBLE, BLS = "ensemble", "tensorrt_llm_bls"
EXECUTOR: dict[str, Flag] = {
    "called": Flag("str", ENSEMBLE, choices=(ENSEMBLE, BLS, "tensorrt_llm")),
    "bls_instance_count": Flag("int", 1, low=1),
    "batching_strategy": Flag(
        "str", "inflight_fused_batching", choices=("inflight_fused_batching", "inflight_batching", "V1")
    ),
    "batch_scheduler_policy": Flag(
        "str", "guaranteed_no_evict", choices=("guaranteed_no_evict", "max_utilization", "static_batch")
    ),
    "kv_cache_free_gpu_mem_fraction": Flag("float", 0.9, low=1e-3, high=0.999),
    "max_tokens_in_paged_kv_cache": Flag("int", None, low=1),
    "enable_kv_cache_reuse": Flag("bool", False),
    "enable_chunked_context": Flag("bool", False),
    "max_queue_delay_microseconds": Flag("int", None, low=0),
    "max_queue_size": Flag("int", None, low=0),
    "build_config": Flag("json"),
    "decoding_mode": Flag("str", None, choices=("auto", "top_k", "top_p", "top_k_top_p", "medusa", "eagle", "lookahead")),
    "medusa_choices": Flag("str"),
    "eagle_choices": Flag("str"),
    "lookahead_window_size": Flag("int", None, low=1),
    "lookahead_ngram_size": Flag("int", None, low=2),
    "lookahead_verification_set_size": Flag("int", None, low=1),
}
"""Keys of the TensorRT-LLM backend and of the models around it."""
STATIONS: dict[str, Flag] = {
    "preprocessing_instance_count": Flag("int", None, low=1),
    "postprocessing_instance_count": Flag("int", None, low=1),
}
"""Instances of the models before and after the one that computes; None: none (of the TensorRT-LLM backend: one each)."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "model_engine": Flag("str", "transformers", choices=("transformers", "trtllm")),
    "max_length": Flag("int", None, low=2),
    "max_batch_size": Flag("int", 0, low=0),
    "instance_group": Flag("json"),
    "dynamic_batching": Flag("json"),
    "decoupled": Flag("bool", False),
    **STATIONS,
    **EXECUTOR,
}

_HARMLESS = """
    add_special_tokens allow_cpu_metrics allow_gpu_metrics allow_grpc allow_http allow_metrics backend backend_config
    backend_directory batching_type buffer_manager_thread_count cancellation_check_period_ms cuda_memory_pool_byte_size
    disable_auto_complete_config encoder_input_features_data_type engine_dir exclude_input_in_output executor_worker_path
    exit_on_error exit_timeout_secs FORCE_CPU_ONLY_INPUT_TENSORS gpt_model_path gpu_device_ids grpc_address grpc_port
    guided_decoding_backend host_policy http_address http_port http_thread_count id iter_stats_max_iterations
    kv_cache_onboard_blocks load_model log_error log_file log_info log_verbose log_warning logits_datatype
    lora_cache_gpu_memory_fraction lora_cache_host_memory_bytes lora_cache_max_adapter_size lora_cache_optimal_adapter_size
    lora_prefetch_dir metrics_interval_ms metrics_port min_supported_compute_capability model_control_mode
    model_load_thread_count model_namespacing name normalize_log_probs participant_ids pinned_memory_pool_byte_size platform
    recv_poll_period_ms repoagent_directory repository_poll_secs request_stats_max_iterations reuse_grpc_port
    reuse_http_port skip_special_tokens stats_check_period_ms strict_model_config strict_readiness tensorrt_llm_model_name
    tokenizer_dir tokenizer_type trace_config xgrammar_tokenizer_info_path
"""
_CHANGING = {
    "what the configurations of its models say (the folder was not found here)": "model_repository model_store",
    "the time after a token (all tokens of an answer are detokenised at each)": "accumulate_tokens",
    "the speed of kernels": "cuda_graph_mode cuda_graph_cache_size enable_context_fmha_fp32_acc multi_block_mode=true",
}
_REFUSED = {
    "how many sequences a request has": "max_beam_width=1",
    "what attention keeps": "max_attention_window_size sink_token_length=0",
    "where keys and values are kept": "kv_cache_host_memory_bytes=0 cross_kv_cache_fraction",
    "where weights are kept": "gpu_weights_percent=1|1.0",
    "how tokens are drafted (Medusa, EAGLE and lookahead are simulated)": "tensorrt_llm_draft_model_name",
    "how a server is spread over nodes": "num_nodes=1",
    "which requests are answered without the model": "cache_config response_cache response_cache_byte_size",
    "which instances may run at once": "rate_limit=off rate_limit_resource rate_limiter",
    "how a request is passed from model to model": "ensemble_scheduling sequence_batching",
}
_KINDS = {
    name.partition("=")[0]: "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}

FLAGS = FlagTable(
    engine="triton",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(r"tritonserver",),
        example="tritonserver --model-repository /models",
        image=r"[^\s:=]*nvidia/tritonserver[^\s:=]*",
    ),
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={"triton_max_batch_size": "max_batch_size", "decoupled_mode": "decoupled", "gpt_model_type": "batching_strategy"},
)


def group(given: Any, known: Mapping[str, Flag], where: str) -> dict[str, Any]:
    """Keys of a group with their defaults; InputError for keys that there are not, and for values that cannot be."""
    return keys_of(given, known, "Triton's", where)
