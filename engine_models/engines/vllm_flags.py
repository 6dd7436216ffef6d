"""vLLM's flags: names, types and defaults, and what they say of a pool's keys.

They follow vLLM 0.33.0 (``vllm/config``, ``vllm/engine/arg_utils.py``, ``vllm/entrypoints/openai/cli_args.py``); flags of older
releases that people still paste stand beside them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flags import Flag, FlagTable, Typed, by_arity
from engine_models.model.formats import format_named
from hardware_profiles.errors import InputError

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "tensor_parallel_size": Flag("int", 1, low=1),
    "pipeline_parallel_size": Flag("int", 1, low=1),
    "data_parallel_size": Flag("int", 1, low=1),
    "enable_expert_parallel": Flag("bool", False),
    "max_num_seqs": Flag("int", None, low=1),
    "max_num_batched_tokens": Flag("count", None, low=1),
    "max_model_len": Flag("count", None, low=1, special=(-1, "auto")),
    "gpu_memory_utilization": Flag("float", 0.92, low=1e-3, high=1.0),
    "kv_cache_memory_bytes": Flag("count", None, low=1),
    "num_gpu_blocks_override": Flag("int", None, low=1),
    "block_size": Flag("int", 16, low=1),
    "enable_prefix_caching": Flag("bool", True),
    "enable_chunked_prefill": Flag("bool", True),
    "long_prefill_token_threshold": Flag("count", 0, low=0),
    "scheduling_policy": Flag("str", "fcfs", choices=("fcfs", "priority")),
    "async_scheduling": Flag("bool", None),
    "scheduler_reserve_full_isl": Flag("bool", True),
    "watermark": Flag("float", 0.0, low=0.0, high=1.0),
    "kv_cache_dtype": Flag("str", "auto"),
    "quantization": Flag("str", None),
    "dtype": Flag("str", "auto"),
    "enforce_eager": Flag("bool", False),
    "generation_config": Flag("str", "auto"),
    "cudagraph_capture_sizes": Flag("ints", None, low=1),
    "max_cudagraph_capture_size": Flag("int", None, low=0),
    "stream_interval": Flag("int", 1, low=1),
    "speculative_config": Flag("json", None),
    "num_speculative_tokens": Flag("int", None, low=1),
    "enable_lora": Flag("bool", False),
    "max_loras": Flag("int", 1, low=1),
    "max_lora_rank": Flag("int", 16, low=1),
    "max_cpu_loras": Flag("int", None, low=1),
    "kv_offloading_size": Flag("float", None, low=0.0),
    "kv_offloading_backend": Flag("str", "native", choices=("native", "lmcache")),
    "kv_transfer_config": Flag("json", None),
    "moe_backend": Flag("str", "auto"),
}

# Of the flags below the simulation reads none; each group is named by the number of values its flags take.
_HARMLESS_SWITCHES = """
    aggregate_engine_logging allow_credentials allow_deprecated_quantization cudagraph_metrics
    disable_fastapi_docs disable_frontend_multiprocessing disable_log_requests disable_log_stats
    disable_uvicorn_access_log enable_auto_tool_choice enable_force_include_usage enable_log_deltas
    enable_log_outputs enable_log_requests enable_logging_iteration_details enable_mfu_metrics
    enable_offline_docs enable_per_request_metrics enable_prompt_tokens_details enable_reasoning
    enable_request_id_headers enable_server_load_tracking enable_sleep_mode enable_ssl_refresh
    enable_tokenizer_info_endpoint exclude_tools_when_tool_choice_none fail_on_environ_validation headless
    kv_cache_metrics log_error_stack ray_workers_use_nsight return_tokens_as_token_ids skip_tokenizer_init
    tokens_only trust_remote_code trust_request_chat_template use_tqdm_on_load use_v2_block_manager
"""
_HARMLESS_VALUES = """
    allowed_headers allowed_local_media_path allowed_media_domains allowed_methods allowed_origins
    chat_template chat_template_content_format code_revision config config_format data_parallel_address
    data_parallel_rpc_port default_chat_template_kwargs disable_access_log_for_endpoints
    distributed_executor_backend distributed_timeout_seconds download_dir fingerprint_mode fingerprint_value
    h11_max_header_count h11_max_incomplete_event_size hf_config_path hf_token host
    kv_cache_metrics_sample load_format log_config_file logprobs_mode master_addr master_port max_log_len
    max_logprobs max_parallel_loading_workers model_loader_extra_config otlp_traces_endpoint
    override_generation_config port prefix_caching_hash_algo profiler_config pt_load_map_location
    reasoning_parser reasoning_parser_plugin response_role revision root_path runner
    safetensors_load_strategy seed show_hidden_metrics_for_version shutdown_timeout ssl_ca_certs
    ssl_cert_reqs ssl_certfile ssl_ciphers ssl_keyfile task tokenizer tokenizer_mode tokenizer_revision
    tool_call_parser tool_parser_plugin tool_server uds uvicorn_log_level
"""
_HARMLESS_LISTS = "api_key collect_detailed_traces ignore_patterns lora_modules middleware served_model_name"
_UNMODELLED_SWITCHES = """
    calculate_kv_scales data_parallel_external_lb data_parallel_hybrid_lb disable_async_output_proc
    disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce disable_hybrid_kv_cache_manager
    disable_nccl_for_dp_synchronization disable_sliding_window enable_dbo enable_elastic_ep
    enable_ep_weight_filter enable_eplb enable_flashinfer_autotune enable_layerwise_nvtx_tracing
    enable_mamba_cache_stochastic_rounding enable_mm_embeds enable_prompt_embeds
    enable_return_routed_experts enable_tower_connector_lora fully_sharded_loras interleave_mm_strings
    kv_sharing_fast_prefill language_model_only mm_encoder_only numa_bind skip_mm_profiling
    specialize_active_lora
"""
_UNMODELLED_VALUES = """
    additional_config all2all_backend api_server_count attention_backend attention_config compilation_config
    cp_kv_cache_interleave_size cpu_offload_gb data_parallel_backend data_parallel_rank
    data_parallel_size_local data_parallel_start_rank dbo_decode_token_threshold dbo_prefill_token_threshold
    dcp_comm_backend dcp_kv_cache_interleave_size decode_context_parallel_size default_mm_loras device
    ec_transfer_config eplb_config expert_placement_strategy gdn_prefill_backend guided_decoding_backend
    hf_overrides ir_op_priority kernel_config kv_events_config limit_mm_per_prompt
    logits_processors lora_dtype lora_extra_vocab_size mamba_backend mamba_block_size mamba_cache_dtype
    mamba_cache_mode mamba_cache_philox_rounds mamba_ssm_cache_dtype max_long_partial_prefills
    max_num_active_seqs max_num_partial_prefills max_num_queued_reqs max_num_queued_tokens
    max_seq_len_to_capture media_io_kwargs mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_tp_mode
    mm_processor_cache_gb mm_processor_cache_type mm_processor_kwargs mm_shm_cache_max_object_size_mb
    mm_tensor_ipc model_impl ngram_prompt_lookup_max ngram_prompt_lookup_min nnodes node_rank
    num_lookahead_slots num_scheduler_steps numa_bind_cpus numa_bind_nodes offload_backend
    offload_group_size offload_num_in_group offload_prefetch_step optimization_level
    override_attention_dtype override_neuron_config override_pooler_config performance_mode pooler_config
    preemption_mode prefill_context_parallel_size prefill_schedule_interval prefix_cache_retention_interval
    quantization_config reasoning_config renderer_num_workers rope_scaling rope_theta scheduler_cls
    scheduler_delay_factor speculative_model speculative_draft_tensor_parallel_size
    structured_outputs_config swap_space ubatch_size video_pruning_rate weight_transfer_config worker_cls
    worker_extension_cls
"""
_UNMODELLED_LISTS = "cpu_offload_params kv_cache_dtype_skip_layers lora_target_modules offload_params"


_QUANTIZED_WEIGHTS = {
    "fp8": "fp8",
    "fbgemm_fp8": "fp8",
    "ptpc_fp8": "fp8",
    "modelopt": "fp8",
    "modelopt_fp4": "nvfp4",
    "awq": "awq",
    "awq_marlin": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "mxfp4": "mxfp4",
}
"""Values of vLLM's ``--quantization`` that fix the weights' format; others leave it to the checkpoint."""

_KV_FORMATS = {"auto": None, "fp8_inc": "fp8", "fp8_ds_mla": "fp8"}


def _kv_format(value: str) -> str | None:
    return _KV_FORMATS[value] if value in _KV_FORMATS else format_named(value, where="kv_cache_dtype").name


SPECULATIVE_KEYS = {
    "method": "method",
    "model": "model",
    "num_speculative_tokens": "num_speculative_tokens",
    "draft_tensor_parallel_size": "draft_tensor_parallel_size",
    "quantization": "weights",
    "synthetic_acceptance_rates": "acceptance_rates",
    "synthetic_acceptance_length": "acceptance_rates",
}
"""Keys of vLLM's ``--speculative-config`` that are simulated -> keys of a pool's `speculative`."""

SPECULATIVE_HARMLESS = (
    "prompt_lookup_max",
    "prompt_lookup_min",
    "revision",
    "code_revision",
    "draft_load_config",
    "rejection_sample_method",
    "draft_sample_method",
    "attention_backend",
    "moe_backend",
    "hf_overrides",
)
"""Keys of it that change nothing that is predicted here: what they change is the acceptance, which is given."""


def speculative_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a ``--speculative-config`` as a pool's `speculative` settings.

    ``synthetic_acceptance_length`` L is spread over the positions as vLLM spreads it: the first floor(L) - 1 drafts are
    always accepted, the next with the rest as its probability (`SpeculativeConfig._acceptance_length_to_rates`).
    """
    found = {
        SPECULATIVE_KEYS[key]: value
        for key, value in config.items()
        if key in SPECULATIVE_KEYS and value is not None
    }
    if "weights" in found:
        found["weights"] = _QUANTIZED_WEIGHTS.get(str(found["weights"]), found["weights"])
    length, tokens = config.get("synthetic_acceptance_length"), config.get("num_speculative_tokens")
    if length is not None:
        if (
            not isinstance(length, int | float)
            or not isinstance(tokens, int)
            or not 1 <= length <= tokens + 1
        ):
            raise InputError(
                f"synthetic_acceptance_length {length} is not between 1 and 1 + num_speculative_tokens",
                where="speculative_config",
                mend="give the mean number of tokens a verification yields, the model's own included",
            )
        found["acceptance_rates"] = [min(1.0, max(0.0, length - 1 - i)) for i in range(tokens)]
    return found


def offload_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a ``--kv-transfer-config`` as a pool's `offload` settings; None for connectors other than the native offload.

    Its size stands in ``kv_connector_extra_config.cpu_bytes_to_use``, in bytes.
    """
    extra = config.get("kv_connector_extra_config")
    size_bytes = extra.get("cpu_bytes_to_use") if isinstance(extra, Mapping) else None
    if config.get("kv_connector") != "OffloadingConnector" or not isinstance(size_bytes, int | float):
        return None
    return {"kv_offloading_size": size_bytes / (1 << 30)} if size_bytes > 0 else None


def _launched(words: list[str]) -> list[str] | None:
    for i, word in enumerate(words):
        base = word.rpartition("/")[2]
        if base == "vllm" and i + 1 < len(words) and words[i + 1] == "serve":
            return words[i + 2 :]
        if word == "-m" and i + 1 < len(words) and words[i + 1].startswith("vllm.entrypoints"):
            return words[i + 2 :]
        if base == "api_server.py":
            return words[i + 1 :]
    if words and words[0].rpartition("/")[2] in ("docker", "podman", "nerdctl", "sudo"):
        words = _after_image(words)
    if words and (words[0].startswith("-") or words[0] == "serve"):
        return words[words[0] == "serve" :]
    return None


_CONTAINER_VALUES = ("-v", "--volume", "-e", "--env", "--name", "--mount", "-w", "--env-file", "--hostname")


def _after_image(words: list[str]) -> list[str]:
    """Return what follows the image of a ``docker run``: a name that holds "vllm" and a slash or a tag."""
    for i in range(1, len(words)):
        word = words[i]
        named = "vllm" in word.lower() and ("/" in word or ":" in word) and "=" not in word
        if named and not word.startswith("-") and words[i - 1] not in _CONTAINER_VALUES:
            return words[i + 1 :]
    return []


_ENVIRONMENT = {
    "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1": "; write activations: fp8 in the pool",
    "VLLM_MXFP4_USE_MARLIN=1": "; write --moe-backend marlin",
}
"""Environment settings that a key of the pool or a flag states, with the words that say so (vLLM 0.15, `mxfp4.py`: on
Blackwell experts in mxfp4 keep bf16 activations unless the first is set, and the second chooses Marlin for them; later
versions take ``--moe-backend`` instead)."""

PLAIN_SAMPLING = {"generation_config": "vllm"}
"""The flag by which requests are not sampled as the checkpoint asks."""

FLAGS = FlagTable(
    engine="vllm",
    modelled=_MODELLED,
    harmless=by_arity((_HARMLESS_SWITCHES, 0), (_HARMLESS_VALUES, 1), (_HARMLESS_LISTS, -1)),
    unmodelled=by_arity((_UNMODELLED_SWITCHES, 0), (_UNMODELLED_VALUES, 1), (_UNMODELLED_LISTS, -1)),
    shorts={
        "tp": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "dp": "data_parallel_size",
        "dpn": "data_parallel_rank",
        "dpl": "data_parallel_size_local",
        "dpr": "data_parallel_start_rank",
        "dpa": "data_parallel_address",
        "dpp": "data_parallel_rpc_port",
        "dpb": "data_parallel_backend",
        "dph": "data_parallel_hybrid_lb",
        "dpe": "data_parallel_external_lb",
        "dcp": "decode_context_parallel_size",
        "pcp": "prefill_context_parallel_size",
        "ep": "enable_expert_parallel",
        "asc": "api_server_count",
        "q": "quantization",
        "O": "optimization_level",
        "cc": "compilation_config",
        "sc": "speculative_config",
        "ac": "attention_config",
        "n": "nnodes",
        "r": "node_rank",
    },
    aliases={"model_tag": "model", "cuda_graph_sizes": "cudagraph_capture_sizes"},
    typed={
        "tensor_parallel_size": Typed("tensor_parallel"),
        "pipeline_parallel_size": Typed("pipeline_parallel"),
        "data_parallel_size": Typed("data_parallel"),
        "enable_expert_parallel": Typed("expert_parallel"),
        "quantization": Typed("weights", _QUANTIZED_WEIGHTS.get),
        "kv_cache_dtype": Typed("kv_cache", _kv_format),
        "speculative_config": Typed("speculative", speculative_settings),
        "num_speculative_tokens": Typed("speculative", lambda v: {"num_speculative_tokens": v}),
        "enable_lora": Typed("lora", lambda v: {"enable_lora": True} if v else None),
        "kv_offloading_size": Typed("offload", lambda v: {"kv_offloading_size": v} if v else None),
        "kv_transfer_config": Typed("offload", offload_settings),
    },
    launched=_launched,
    launch_example="vllm serve MODEL --flag value",
    launch_words=("vllm",),
    environment=_ENVIRONMENT,
)
