"""vLLM's flags: names, types and defaults, and what they say of a pool's keys.

The list of all flags (``vllm_flags.json``) is made from the parsers of the releases that it names (source distributions on PyPI,
read 2026-11: ``vllm/engine/arg_utils.py``, ``vllm/entrypoints``, ``vllm/config``); types and defaults are those of 0.33.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_models.engines.bench_loads import bench
from engine_models.engines.dynamo_workers import worker
from engine_models.engines.vllm_connectors import between, beyond, encodes
from engine_models.engines.vllm_manifests import RAY, as_containers
from engine_models.flag_lists import classified, load_flag_lists
from engine_models.flags import (
    Flag,
    FlagTable,
    Typed,
    Unread,
    Worker,
    float32_weights,
    number_format,
    settings_with,
)
from engine_models.launcher import Launcher
from hardware_profiles.errors import InputError

GATHER, ONE_SIDED = "allgather_reducescatter", "flashinfer_nvlink_one_sided"
"""Values of `all2all_backend` that are modelled: ranks gather all tokens and scatter the sums, or write to each other."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "tensor_parallel_size": Flag("int", 1, low=1),
    "pipeline_parallel_size": Flag("int", 1, low=1),
    "data_parallel_size": Flag("int", 1, low=1),
    "cpu_offload_gb": Flag("float", 0.0, low=0.0),
    "cpu_offload_params": Flag("texts", None),
    "decode_context_parallel_size": Flag("int", 1, low=1),
    "enable_expert_parallel": Flag("bool", False),
    "enable_eplb": Flag("bool", False),
    "eplb_config": Flag("json", None),
    "num_redundant_experts": Flag("int", 0, low=0),
    "all2all_backend": Flag("str", GATHER),
    "max_num_seqs": Flag("int", None, low=1),
    "max_num_batched_tokens": Flag("count", None, low=1),
    "max_model_len": Flag("count", None, low=1, special=(-1, "auto")),
    "cpu_kvcache_space": Flag("int", None, low=1),
    "use_flashinfer_sampler": Flag("bool", None),
    "use_deep_gemm": Flag("bool", None),
    "moe_use_deep_gemm": Flag("bool", None),
    "use_flashinfer_moe_fp8": Flag("bool", None),
    "use_flashinfer_moe_fp4": Flag("bool", None),
    "flashinfer_moe_backend": Flag("str", None, choices=("latency", "throughput", "masked_gemm")),
    "use_v1": Flag("bool", None),
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
    "enable_sleep_mode": Flag("bool", False),
    "generation_config": Flag("str", "auto"),
    "language_model_only": Flag("bool", False),
    "skip_mm_profiling": Flag("bool", False),
    "limit_mm_per_prompt": Flag("pairs", None),
    "disable_chunked_mm_input": Flag("bool", False),
    "mm_encoder_only": Flag("bool", False),
    "ec_transfer_config": Flag("json", None),
    "cudagraph_capture_sizes": Flag("ints", None, low=1),
    "cuda_graph_sizes": Flag("ints", None, low=1),
    "max_cudagraph_capture_size": Flag("int", None, low=0),
    "stream_interval": Flag("int", 1, low=1),
    "mamba_ssm_cache_dtype": Flag("str", "auto", choices=("auto", "float32", "float16")),
    "speculative_config": Flag("json", None),
    "num_speculative_tokens": Flag("int", None, low=1),
    "enable_lora": Flag("bool", False),
    "max_loras": Flag("int", 1, low=1),
    "max_lora_rank": Flag("int", 16, low=1),
    "max_cpu_loras": Flag("int", None, low=1),
    "lora_dtype": Flag("str", "auto", choices=("auto", "float16", "bfloat16", "float32")),
    "fully_sharded_loras": Flag("bool", False),
    "lora_target_modules": Flag("texts", None),
    "kv_offloading_size": Flag("float", None, low=0.0),
    "kv_offloading_backend": Flag("str", "native", choices=("native", "lmcache")),
    "kv_transfer_config": Flag("json", None),
    "lmcache_chunk_size": Flag("int", 256, low=1),
    "lmcache_local_cpu": Flag("bool", True),
    "lmcache_max_local_cpu_size": Flag("float", 5.0, low=0.0),
    "lmcache_local_disk": Flag("str", None),
    "lmcache_max_local_disk_size": Flag("float", 0.0, low=0.0),
    "lmcache_remote_url": Flag("str", None),
    "dyn_kvbm_cpu_cache_gb": Flag("float", 0.0, low=0.0),
    "dyn_kvbm_disk_cache_gb": Flag("float", 0.0, low=0.0),
    "dyn_kvbm_disable_disk_offload_filter": Flag("bool", False),
    "moe_backend": Flag("str", "auto"),
    "attention_backend": Flag("str", None),
    "attention_config": Flag("json", None),
    "compilation_config": Flag("json", None, special=(0, 1, 2, 3)),
    "optimization_level": Flag("int", 2, low=0, high=3),
    "performance_mode": Flag("str", "balanced", choices=("balanced", "interactivity", "throughput")),
    "max_num_scheduled_tokens": Flag("count", None, low=1),
    "max_num_active_seqs": Flag("int", None, low=1),
    "max_num_queued_reqs": Flag("int", None, low=1),
    "api_server_count": Flag("int", None, low=1),
    "distributed_executor_backend": Flag("str", None),
    "disable_hybrid_kv_cache_manager": Flag("bool", False),
    "override_generation_config": Flag("json", None),
    "hf_overrides": Flag("json", None),
    "rope_scaling": Flag("json", None),
    "spec_method": Flag("str", None),
    "spec_model": Flag("str", None),
    "spec_tokens": Flag("int", None, low=1),
    "speculative_model": Flag("str", None),
    "speculative_draft_tensor_parallel_size": Flag("int", None, low=1),
}

_HARMLESS = """
    aggregate_engine_logging allow_credentials allow_deprecated_quantization allowed_headers allowed_local_media_path
    allowed_media_domains allowed_methods allowed_origins anthropic_disabled_thinking_effort api_key aux_output_config
    calculate_kv_scales chat_template chat_template_content_format code_revision cohere_format cohere_is_reasoning_model
    collect_detailed_traces config_format cpu_distributed_timeout_seconds cudagraph_metrics custom_histogram_buckets
    data_parallel_address data_parallel_backend data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port
    data_parallel_size_local data_parallel_start_rank data_parallel_supervisor_port default_chat_template_kwargs device_ids
    disable_access_log_for_endpoints disable_cascade_attn disable_fastapi_docs disable_log_requests disable_log_stats
    disable_logprobs_during_spec_decoding disable_uvicorn_access_log distributed_timeout_seconds download_dir
    dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s
    enable_auto_tool_choice enable_cumem_allocator enable_fault_tolerance enable_flash_late_interaction
    enable_force_include_usage enable_log_deltas enable_log_outputs enable_log_requests enable_logging_iteration_details
    enable_mfu_metrics enable_nccl_comm_suspend enable_offline_docs enable_per_request_metrics enable_prompt_embeds
    enable_prompt_tokens_details enable_reasoning enable_request_id_headers enable_scale_out enable_server_load_tracking
    enable_ssl_refresh enable_tokenizer_info_endpoint enable_trace_replay eplb_log_balancedness
    exclude_tools_when_tool_choice_none expand_tools_even_if_tool_choice_none fail_on_environ_validation
    fault_tolerance_config fingerprint_mode fingerprint_value grpc grpc_port guided_decoding_backend
    guided_decoding_disable_additional_properties guided_decoding_disable_any_whitespace guided_decoding_disable_fallback
    h11_max_header_count h11_max_incomplete_event_size headless hf_config_path hf_token host ignore_patterns
    io_processor_plugin jit_monitor_mode jit_monitor_verbose kv_cache_metrics kv_cache_metrics_sample kv_events_config
    load_format log_config_file log_error_stack log_level logging_config logits_processor_pattern logprobs_mode lora_modules
    master_addr master_port max_log_len max_logprobs max_parallel_loading_workers middleware model_loader_extra_config
    multi_step_stream_outputs nnodes node_rank otlp_traces_endpoint per_request_spec_decode_metrics port
    prefix_caching_hash_algo profiler_config pt_load_map_location quantization_param_path ray_workers_use_nsight
    reasoning_config reasoning_effort_map reasoning_parser reasoning_parser_plugin response_role return_tokens_as_token_ids
    revision rope_theta root_path safetensors_load_strategy safetensors_prefetch_block_size safetensors_prefetch_num_threads
    seed served_model_name show_hidden_metrics_for_version shutdown_timeout skip_tokenizer_init sleep_mode_backend
    sleep_mode_offload_cudagraph sleep_preserve_parameter_names sse_keep_alive_interval ssl_ca_certs ssl_cert_reqs
    ssl_certfile ssl_ciphers ssl_keyfile structured_outputs_config tokenizer tokenizer_mode tokenizer_revision tokens_only
    tool_call_parser tool_parser_plugin tool_server tool_strict_level trust_remote_code trust_request_chat_template
    trust_request_mm_kwargs uds use_gpu_for_pooling_score use_tqdm_on_load uvicorn_log_level watchdog_config
    watermark_config weight_transfer_config worker_cls worker_extension_cls

    cp_kv_cache_interleave_size dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate
    offload_backend offload_num_in_group offload_params offload_prefetch_step
    device override_pooler_config pooler_config swap_space use_v2_block_manager worker_use_ray
"""
"""Flags that change nothing that is predicted; at the end those that do nothing without a flag that is refused, and those that
the releases simulated here do not heed. Sizes over several nodes are stated by the sizes themselves; cascade attention (on by
default up to 0.15) is not simulated."""

_CHANGING = {
    "the speed of kernels": """
        additional_config enable_batch_sharded_sampling enable_bf16x3_router_gemm enable_flashinfer_autotune=true
        gdn_prefill_backend ir_op_priority kda_decode_backend kda_prefill_backend kernel_config linear_backend mamba_backend
        mamba_ssu_algorithm model_impl=auto|vllm monokernel override_attention_dtype override_neuron_config
        sparse_indexer_topk_backend use_fp64_gumbel use_replayssm replayssm_buffer_len engram_config enable_hc_sp
        kv_sharing_fast_prefill model_class_overrides
    """,
    "the speed of the exchange between devices": """
        disable_custom_all_reduce disable_nccl_for_dp_synchronization enable_dbo dbo_decode_token_threshold
        dbo_prefill_token_threshold dp_sync_interval=16|32 ubatch_size=0|1 elastic_ep_max_dp_size enable_elastic_ep
    """,
    "the balance of the experts": """
        enable_ep_weight_filter eplb_step_interval eplb_window_size expert_placement_strategy=linear
    """,
    "how requests are dealt to the ranks": "data_parallel_external_lb data_parallel_hybrid_lb",
    "the host's time": """
        disable_async_output_proc disable_frontend_multiprocessing enable_layerwise_nvtx_tracing
        enable_return_routed_experts enable_shm_tensor_arena logits_processors numa_bind numa_bind_cpus numa_bind_nodes
        renderer_num_workers=1 return_sampling_mask tokenizer_pool_extra_config tokenizer_pool_size=0 tokenizer_pool_type
    """,
    "the memory of the device": """
        enable_mamba_cache_stochastic_rounding enable_mamba_shared_prefix_checkpoint kv_cache_dtype_skip_layers
        mamba_block_size mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds
        max_seq_len_to_capture prefix_cache_retention_interval prefix_match_unit quantization_config
        disable_sliding_window swa_bounded_replay=true
    """,
    "which requests a step serves": """
        long_prefill_token_threshold_adaptive max_long_partial_prefills=1 max_num_partial_prefills=1
        max_num_queued_tokens num_lookahead_slots=0 num_scheduler_steps=1 preemption_mode=recompute
        prefill_schedule_interval=1 scheduler_cls scheduler_delay_factor=0|0.0
    """,
    "what images, video and sound cost": """
        disable_mm_preprocessor_cache ec_manager_config enable_mm_embeds
        enable_multimodal_encoder_data_parallel interleave_mm_strings media_io_kwargs
        mm_device_do_normalize mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path
        mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path mm_encoder_tp_mode=weights mm_hasher_algorithm
        mm_ipc_gpu_memory_gb=0 mm_processor_cache_gb mm_processor_cache_type mm_processor_device mm_processor_kwargs
        mm_shm_cache_max_object_size_mb mm_tensor_ipc video_pruning_method video_pruning_rate
    """,
    "what adapters change and how they are kept": """
        default_mm_loras enable_lora_bias enable_mixed_moe_lora_format enable_moe_shared_loras enable_prompt_adapter
        enable_tower_connector_lora long_lora_scaling_factors lora_extra_vocab_size max_lora_cls_labels
        max_prompt_adapter_token max_prompt_adapters prompt_adapters qlora_adapter_name_or_path specialize_active_lora
    """,
    "how many drafts are accepted, which is given": """
        ngram_prompt_lookup_max ngram_prompt_lookup_min spec_decoding_acceptance_method speculative_disable_by_batch_size
        speculative_disable_mqa_scorer speculative_max_model_len speculative_model_quantization
        typical_acceptance_sampler_posterior_alpha typical_acceptance_sampler_posterior_threshold
    """,
}
"""What flags change that is not modelled -> these flags, with the values that leave all as it is (0.33.0: `vllm/config`)."""

_REFUSED = {
    "where the KV cache lies and what attention costs": "prefill_context_parallel_size=1",
    "the time of a step (weights are read from the host)": "offload_group_size=0",
    "the task (only text generation is simulated)": """
        task=auto|generate runner=auto|generate|draft convert=auto|none diffusion_config
    """,
    "flags that stand in a file": "config",
}
"""The same for flags without which a prediction would be wrong by more than its stated error: they are refused."""


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
    "gptq_bitblas": "gptq",
    "bitsandbytes": "nf4",
    "mxfp4": "mxfp4",
    "gpt_oss_mxfp4": "mxfp4",
    "deepgemm_fp8": "fp8_block",
    "mxfp8": "mxfp8",
    "modelopt_mxfp8": "mxfp8",
    "fp8_per_tensor": "fp8",
    "fp8_per_block": "fp8_block",
    **dict.fromkeys(
        ("compressed-tensors", "quark", "modelopt_mixed", "moe_wna16", "torchao", "auto-round", "auto_round", "inc", "bitblas")
    ),
    "deepseek_v4_fp8": None,
    "int8_per_channel_weight_only": "int8_wo",
}
"""Values of vLLM's ``--quantization`` and the weights' format that they fix, None for that of the checkpoint."""

_KV_FORMATS = {
    "auto": None,
    "fp8_inc": "fp8",
    "fp8_ds_mla": "fp8",
    "fp8_per_token_head": "fp8",
    "int8_per_token_head": "int8",
}
"""Values of ``--kv-cache-dtype``; a scale for each token and head (at most 3 % more) is left out."""


_LORA = ("max_loras", "max_lora_rank", "max_cpu_loras", "lora_dtype", "fully_sharded_loras")

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


def _old_draft_model(name: str) -> dict[str, Any]:
    """``--speculative-model`` of the releases before ``--speculative-config``: a model, or a method in brackets."""
    return {"method": name.strip("[]")} if name.startswith("[") else {"model": name}


def offload_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return a ``--kv-transfer-config`` as a pool's `offload` settings; None for connectors other than the native offload.

    Its size stands in ``kv_connector_extra_config.cpu_bytes_to_use``, in bytes.
    """
    config = beyond({"kv_transfer_config": config})
    extra = config.get("kv_connector_extra_config")
    size_bytes = extra.get("cpu_bytes_to_use") if isinstance(extra, Mapping) else None
    if config.get("kv_connector") != "OffloadingConnector" or not isinstance(size_bytes, int | float):
        return None
    return {"kv_offloading_size": size_bytes / (1 << 30)} if size_bytes > 0 else None


def _role(flags: Mapping[str, Any]) -> str | None:
    """Role of a server whose KV cache goes to or comes from another one; "either" where its peers decide."""
    if encodes(flags):
        return "encode"
    sends = between(flags)
    config = sends or flags.get("kv_transfer_config") or {}
    role = {"kv_producer": "prefill", "kv_consumer": "decode", "kv_both": "either"}.get(str(config.get("kv_role")))
    return None if role == "either" and not sends else role


_DYNAMO, _BATCH = r"-m dynamo\.vllm", r"(?:\S*/)?vllm run-batch|-m vllm\.entrypoints\.openai\.run_batch"
_BENCH = r"(?:\S*/)?vllm bench (?:throughput|latency)|(?:\S*/)?benchmark_(?:throughput|latency)\.py"
_OF_BATCHES = ("input_file", "output_file", "output_tmp_dir", "url", "enable_metrics")
"""Flags of ``vllm run-batch`` beside the engine's: where the requests of a batch come from."""
_ARGUMENTS = ("EngineArgs", "AsyncEngineArgs")
_LAUNCHER = Launcher(
    programs=(
        r"vllm serve",
        r"-m vllm(?:\.entrypoints\.cli\.main)? serve",
        r"-m vllm\.entrypoints\.\S*api_server",
        r"api_server\.py",
    ),
    example="vllm serve MODEL --flag value",
    image=r"[^\s:=]*(?<!ai-dynamo/)vllm[^\s:=]*",
    published=r"vllm/vllm-[\w-]+|vllm-cpu-release-repo",
    enters=True,
    package="vllm",
    calls=("vllm.LLM", *(f"vllm.{at}{name}" for at in ("", "engine.arg_utils.") for name in _ARGUMENTS), RAY),
    workers=(_DYNAMO, _BATCH, _BENCH),
    written=as_containers,
)

MARLIN_VARIABLE, MXFP8_VARIABLE = "VLLM_MXFP4_USE_MARLIN", "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8"
FP32_VARIABLE = "VLLM_FLOAT32_MATMUL_PRECISION"
"""Variables of the environment: experts in mxfp4 by Marlin; their activations in mxfp8; products in float32 ("high": TF32)."""
EXPERT_VARIABLES = {
    "VLLM_USE_FLASHINFER_MOE_FP8": "use_flashinfer_moe_fp8",
    "VLLM_USE_FLASHINFER_MOE_FP4": "use_flashinfer_moe_fp4",
    "VLLM_MOE_USE_DEEP_GEMM": "moe_use_deep_gemm",
}
"""Variables, 0 or 1, that choose kernels of experts -> what they are called among flags."""

_HINTS = {
    f"{MXFP8_VARIABLE}=1": "write activations: fp8 in the pool",
    f"{MARLIN_VARIABLE}=1": "write --moe-backend marlin",
}
"""Environment settings that a key of the pool or a flag states, with the words that say so (vLLM 0.15, `mxfp4.py`: on
Blackwell experts in mxfp4 keep bf16 activations unless the first is set, and the second chooses Marlin for them; later
versions take ``--moe-backend`` instead)."""

PLAIN_SAMPLING = {"generation_config": "vllm"}
"""The flag by which requests are not sampled as the checkpoint asks."""

_QUIET = r"""(?x)LOG|CACHE_ROOT|CONFIG_ROOT|_PORT|HOST_IP|ALLOW_|TIMEOUT|API_KEY|MODELSCOPE|DO_NOT_TRACK|USAGE
    |TARGET_DEVICE|MULTIPROC_METHOD|DEV_MODE|ASSETS|FETCH|_PATH|_DIR\b|_PID\b|IMAGE|MODEL|VERSION"""
"""Variables of the environment that change nothing that is predicted."""

_KSERVE = {"model_id": "model", "model_name": "served_model_name"}
"""Flags of KServe's server over vLLM (`huggingfaceserver`), which takes vLLM's besides."""

_LISTS = load_flag_lists(Path(__file__).with_name("vllm_flags.json"), {})

FLAGS = FlagTable(
    engine="vllm",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified(_LISTS.kinds, _HARMLESS, _CHANGING, _REFUSED),
    shorts={**_LISTS.shorts, "O": "optimization_level"},
    aliases={**_LISTS.spellings, "model_tag": "model", **_KSERVE},
    with_parts={"O": _LISTS.shorts["O"]},
    elsewhere=dict.fromkeys(_LISTS.of_images, "a flag of its server of images, video and sound, which is not simulated"),
    typed={
        "tensor_parallel_size": Typed("tensor_parallel"),
        "pipeline_parallel_size": Typed("pipeline_parallel"),
        "data_parallel_size": Typed("data_parallel"),
        "enable_expert_parallel": Typed("expert_parallel"),
        "dtype": Typed("weights", float32_weights),
        "quantization": Typed("weights", lambda v: number_format("quantization", v, _QUANTIZED_WEIGHTS)),
        "kv_cache_dtype": Typed("kv_cache", lambda v: number_format("kv_cache_dtype", v, _KV_FORMATS)),
        "speculative_config": Typed("speculative", speculative_settings),
        "num_speculative_tokens": Typed("speculative", lambda v: {"num_speculative_tokens": v}),
        "spec_tokens": Typed("speculative", lambda v: {"num_speculative_tokens": v}),
        "spec_method": Typed("speculative", lambda v: {"method": v}),
        "spec_model": Typed("speculative", lambda v: {"model": v}),
        "speculative_model": Typed("speculative", _old_draft_model),
        "speculative_draft_tensor_parallel_size": Typed("speculative", lambda v: {"draft_tensor_parallel_size": v}),
        "enable_lora": Typed("lora", lambda v: {} if v else None),
        **{flag: settings_with("lora", flag, "enable_lora") for flag in _LORA},
        "lora_target_modules": settings_with("lora", "target_modules", "enable_lora"),
        "kv_offloading_size": Typed("offload", lambda v: {"kv_offloading_size": v} if v else None),
        "kv_transfer_config": Typed("offload", offload_settings),
    },
    role=_role,
    environment={
        "VLLM_ATTENTION_BACKEND": "attention_backend",
        "VLLM_CPU_KVCACHE_SPACE": "cpu_kvcache_space",
        "VLLM_USE_FLASHINFER_SAMPLER": "use_flashinfer_sampler",
        "VLLM_USE_DEEP_GEMM": "use_deep_gemm",
        **EXPERT_VARIABLES,
        "VLLM_FLASHINFER_MOE_BACKEND": "flashinfer_moe_backend",
        "VLLM_USE_V1": "use_v1",
        **{name.upper(): name for name in _MODELLED if name.startswith(("lmcache_", "dyn_kvbm_"))},
    },
    hints=_HINTS,
    prefixes=("VLLM_", "LMCACHE_", "DYN_KVBM_"),
    quiet=_QUIET,
    settings_file="config",
    of_first_node=("api_server_count",),
    releases=_LISTS.releases,
    workers={
        _DYNAMO: worker(),
        _BENCH: bench({**_MODELLED, **_LISTS.kinds}),
        _BATCH: Worker(unread=dict.fromkeys(_OF_BATCHES, Unread("value")), shorts={"i": "input_file", "o": "output_file"}),
    },
)
