"""SGLang's flags: names, types and defaults, and what they say of a pool's keys.

The list of all flags (``sglang_flags.json``) is made from the parsers of the releases that it names (wheels on PyPI, read
2026-11: `server_args.py`, `arg_groups/fields`); types and defaults are those of 0.5.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from engine_models.engines.bench_loads import bench
from engine_models.engines.dynamo_workers import worker
from engine_models.engines.sglang_with_router import WITH_ROUTER
from engine_models.flag_lists import classified, load_flag_lists
from engine_models.flags import Flag, FlagTable, Typed, float32_weights, number_format, settings_with
from engine_models.launcher import Launcher
from engine_models.memory.radix import EVICTION_POLICIES
from engine_models.schedulers.prefill_first import POLICIES
from hardware_profiles.errors import InputError

SPEC_V2 = {"1": True, "true": True, "True": True, "0": False, "false": False, "False": False}
"""Values of the environment's SGLANG_ENABLE_SPEC_V2, of releases before 0.5.14."""

ENVIRONMENT = {
    "SGLANG_ENABLE_SPEC_V2": "enable_spec_v2",
    "SGL_ENABLE_JIT_DEEPGEMM": "enable_jit_deepgemm",
    "SGLANG_ENABLE_JIT_DEEPGEMM": "enable_jit_deepgemm",
    "SGLANG_ENABLE_FLASHINFER_GEMM": "enable_flashinfer_gemm",
}
"""Variables of the environment that are read, by names of their own among the flags."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "encoder_only": Flag("bool", False),
    "language_only": Flag("bool", False),
    "encoder_transfer_backend": Flag(
        "str", "auto", choices=("auto", "zmq_to_scheduler", "zmq_to_tokenizer", "mooncake")
    ),
    "tensor_parallel_size": Flag("int", 1, low=1),
    "pipeline_parallel_size": Flag("int", 1, low=1),
    "pp_max_micro_batch_size": Flag("int", None, low=1),
    "pp_async_batch_depth": Flag("int", 0, low=0),
    "data_parallel_size": Flag("int", 1, low=1),
    "expert_parallel_size": Flag("int", 1, low=1),
    "context_length": Flag("int", None, low=1),
    "enable_multimodal": Flag("bool", False),
    "mem_fraction_static": Flag("float", None, low=1e-3, high=1.0),
    "max_running_requests": Flag("int", None, low=1),
    "max_total_tokens": Flag("int", None, low=1),
    "swa_full_tokens_ratio": Flag("float", None, low=1e-3, high=1.0),
    "disable_hybrid_swa_memory": Flag("bool", False),
    "max_prefill_tokens": Flag("int", 16384, low=1),
    "chunked_prefill_size": Flag("int", None, low=-1),
    "prefill_max_requests": Flag("int", None, low=1),
    "scheduler_recv_interval": Flag("int", 1, low=1),
    "page_size": Flag("int", 1, low=1),
    "schedule_policy": Flag("str", "fcfs", choices=POLICIES),
    "schedule_conservativeness": Flag("float", 1.0, low=0.0),
    "enable_mixed_chunk": Flag("bool", False),
    "moe_a2a_backend": Flag("str", "none"),
    "disable_radix_cache": Flag("bool", False),
    "disable_shared_experts_fusion": Flag("bool", False),
    "enable_flashinfer_allreduce_fusion": Flag("bool", False),
    "enable_nccl_nvls": Flag("bool", False),
    "enforce_disable_flashinfer_allreduce_fusion": Flag("bool", False),
    "radix_eviction_policy": Flag("str", "lru", choices=EVICTION_POLICIES),
    "enable_hierarchical_cache": Flag("bool", False),
    "hicache_ratio": Flag("float", 2.0, low=0.0),
    "hicache_size": Flag("int", 0, low=0),
    "hicache_write_policy": Flag(
        "str", "write_through", choices=("write_through", "write_through_selective", "write_back")
    ),
    "hicache_storage_backend": Flag("str", None),
    "hicache_storage_backend_extra_config": Flag("json", None),
    "hicache_storage_prefetch_policy": Flag(
        "str", "timeout", choices=("best_effort", "wait_complete", "timeout")
    ),
    "disable_overlap_schedule": Flag("bool", False),
    "enable_priority_scheduling": Flag("bool", False),
    "disable_priority_preemption": Flag("bool", False),
    "schedule_low_priority_values_first": Flag("bool", False),
    "priority_scheduling_preemption_threshold": Flag("int", 10, low=0),
    "disable_cuda_graph": Flag("bool", False),
    "disable_piecewise_cuda_graph": Flag("bool", False),
    "enable_piecewise_cuda_graph": Flag("bool", False),
    "piecewise_cuda_graph_max_tokens": Flag("int", None, low=1),
    "enable_dp_attention": Flag("bool", False),
    "cuda_graph_max_bs": Flag("int", None, low=1),
    "kv_cache_dtype": Flag("str", "auto"),
    "quantization": Flag("str", None),
    "dtype": Flag("str", "auto"),
    "stream_interval": Flag("int", 1, low=1),
    "tokenizer_worker_num": Flag("int", 1, low=1),
    "mamba_full_memory_ratio": Flag("float", 0.9, low=1e-3, high=1e3),
    "max_mamba_cache_size": Flag("int", None, low=1),
    "mamba_radix_cache_strategy": Flag(
        "str", "auto", choices=("auto", "no_buffer", "extra_buffer", "extra_buffer_lazy")
    ),
    "mamba_ssm_dtype": Flag("str", "float32", choices=("float32", "bfloat16", "float16")),
    "attn_dp_size": Flag("int", 1, low=1),
    "cuda_graph_bs": Flag("ints", None, low=1),
    "attention_backend": Flag("str", None),
    "prefill_attention_backend": Flag("str", None),
    "decode_attention_backend": Flag("str", None),
    "moe_runner_backend": Flag("str", "auto"),
    "cpu_offload_gb": Flag("int", 0, low=0),
    "dcp_size": Flag("int", 1, low=1),
    "enable_eplb": Flag("bool", False),
    "ep_num_redundant_experts": Flag("int", 0, low=0),
    "init_expert_location": Flag("str", "trivial"),
    "flashinfer_mxfp4_moe_precision": Flag("str", "default", choices=("default", "bf16")),
    "fp8_gemm_backend": Flag("str", "auto"),
    "enable_jit_deepgemm": Flag("bool", True),
    "enable_flashinfer_gemm": Flag("bool", False),
    "disable_chunked_prefix_cache": Flag("bool", False),
    "json_model_override_args": Flag("json", None),
    "enable_lora": Flag("bool", False),
    "lora_paths": Flag("texts", None),
    "max_loras_per_batch": Flag("int", 8, low=1),
    "max_lora_rank": Flag("int", None, low=1),
    "max_loaded_loras": Flag("int", None, low=1),
    "lora_target_modules": Flag("texts", None),
    "disaggregation_mode": Flag("str", "null", choices=("null", "prefill", "decode")),
    "disaggregation_transfer_backend": Flag("str", "mooncake"),
    "num_reserved_decode_tokens": Flag("int", 512, low=0),
    "disaggregation_decode_polling_interval": Flag("int", 1, low=1),
    "disaggregation_decode_allocation_policy": Flag("str", "early"),
    "disaggregation_decode_enable_radix_cache": Flag("bool", False),
    "disaggregation_decode_enable_offload_kvcache": Flag("bool", False),
    "disaggregation_decode_extra_slots": Flag("int", None, low=0),
    "disaggregation_decode_retraction_backup": Flag("str", "cpu_tensor"),
    "optimistic_prefill_attempts": Flag("int", 0, low=0),
    "speculative_algorithm": Flag("str", None),
    "speculative_draft_model_path": Flag("str", None),
    "speculative_draft_model_quantization": Flag("str", None),
    "speculative_num_steps": Flag("int", None, low=1),
    "speculative_eagle_topk": Flag("int", None, low=1),
    "speculative_num_draft_tokens": Flag("int", None, low=2),
    "enable_spec_v2": Flag("str", None, choices=tuple(SPEC_V2)),
}

_HARMLESS = """
    abort_on_priority_when_disabled admin_api_key allow_auto_truncate allowed_media_domains api_key asr_max_buffer_seconds
    asr_max_concurrent_sessions base_gpu_id batch_notify_size bucket_e2e_request_latency bucket_inter_token_latency
    bucket_time_to_first_token chat_template checkpoint_engine_wait_weights_before_ready collect_tokens_histogram
    completion_template constrained_json_disable_any_whitespace constrained_json_max_whitespace_cnt
    constrained_json_whitespace_pattern crash_dump_folder custom_sigquit_handler custom_weight_loader debug_cuda_graph
    debug_tensor_dump_inject debug_tensor_dump_input_file debug_tensor_dump_layers debug_tensor_dump_output_folder
    debug_tensor_dump_prefill_only decode_log_interval decrypted_config_file decrypted_draft_config_file
    default_chat_template_kwargs default_priority_value delete_ckpt_after_loading disable_disk_cache
    disable_fast_image_processor disable_hicache_numa_detect disable_jump_forward
    disable_nan_detection disable_outlines_disk_cache dist_init_addr dist_timeout download_dir elastic_ep_backend
    elastic_ep_initial_size elastic_ep_join_mode elastic_ep_join_rank_offset elastic_ep_rejoin elastic_ep_scale_timeout
    enable_cache_report enable_cudagraph_gc enable_custom_logit_processor enable_draft_weights_cpu_backup
    enable_elastic_expert_backup enable_expert_distribution_metrics enable_forward_pass_metrics enable_http2
    enable_http_worker_reuseport enable_layerwise_nvtx_marker enable_linker_mla_dedup enable_memory_saver enable_metrics
    enable_metrics_for_all_schedulers enable_mfu_metrics enable_mis enable_p2p_check enable_profile_cuda_graph
    enable_request_time_stats_logging enable_response_store enable_ssl_refresh enable_streaming_session
    enable_strict_thinking enable_torch_compile_debug_mode enable_trace enable_watermark enable_weights_cpu_backup
    engine_info_bootstrap_port eplb_algorithm eplb_min_rebalancing_utilization_threshold eplb_rebalance_layers_per_chunk
    eplb_rebalance_num_iterations expert_balancedness_report_mode expert_distribution_recorder_buffer_size
    expert_distribution_recorder_mode export_metrics_to_file export_metrics_to_file_dir extra_metric_labels
    fastapi_root_path file_storage_path file_storage_pth flashinfer_autotune_skip_ops
    forward_hooks forward_pass_metrics_ipc_name forward_pass_metrics_worker_id gated_launch_port gc_threshold
    gc_warning_threshold_secs generation_tokens_buckets gpu_id_step grammar_backend grpc_mode grpc_port
    grpc_response_timeout_secs hf_chat_template_name host http2_initial_connection_window_size http2_max_concurrent_streams
    incremental_streaming_output kv_canary kv_canary_real_data kv_canary_sweep_interval
    kv_events_config load_format load_publish_endpoint load_snapshot_publish_interval load_watch_interval log_level
    log_level_http log_requests log_requests_format log_requests_level log_requests_target max_ep_size
    mlx_enable_sampling model_checksum model_config_parser model_loader_extra_config modelexpress_config
    modelopt_checkpoint_restore_path modelopt_checkpoint_save_path modelopt_export_path mooncake_ib_device
    msprobe_dump_config multi_item_scoring_delimiter nccl_port nnodes node_rank numa_node oltp_traces_endpoint
    otlp_service_name otlp_traces_endpoint pdlb_url port pre_warm_nccl preferred_sampling_params
    prefill_delayer_forward_passes_buckets prefill_delayer_wait_seconds_buckets prompt_tokens_buckets
    quantization_param_path radix_eviction_policy_config random_seed reasoning_parser
    remote_instance_weight_loader_backend remote_instance_weight_loader_seed_instance_ip
    remote_instance_weight_loader_seed_instance_service_port remote_instance_weight_loader_send_weights_group_ports
    remote_instance_weight_loader_start_seed_via_transfer_engine return_input_ids return_output_ids revision
    rl_on_policy_target rl_quant_profile sampling_defaults sampling_mask_max_tokens served_model_name show_time_cost sidecar
    sidecar_args skip_server_warmup skip_tokenizer_init sleep_on_idle smg_grpc_mode smg_http_sidecar_port
    soft_watchdog_timeout spec_trace_dir ssl_ca_certs ssl_certfile ssl_keyfile ssl_keyfile_password
    startup_weight_load_mode stream_output stream_response_default_include_usage strip_thinking_cache
    tbo_token_distribution_threshold tokenizer_metrics_allowed_custom_labels tokenizer_metrics_custom_labels_header
    tokenizer_mode tokenizer_path tool_call_parser tool_server trace_modules
    trust_mm_content_hashes trust_remote_code trust_request_chat_template use_ray uvicorn_access_log_exclude_prefixes
    warmups watchdog_timeout watermark_config weight_cache_mode weight_cache_socket weight_cache_timeout
    weight_loader_disable_mmap weight_loader_drop_cache_after_load weight_loader_prefetch_checkpoints
    weight_loader_prefetch_num_threads weight_version

    cp_strategy dcp_comm_backend dcp_replicate_q_proj dsa_prefill_cp_mode nsa_prefill_cp_mode prefill_cp_mode
    decoupled_spec_bind_endpoint decoupled_spec_connect_endpoints decoupled_spec_rank decoupled_spec_role
    dllm_algorithm_config dllm_block_size dllm_fdfo ds_channel_config_path ds_heavy_channel_num ds_heavy_channel_type
    ds_heavy_token_num ds_sparse_decode_threshold enable_beta_spec enable_gdn_replayssm_spec enable_linear_replayssm_spec
    kt_amx_method kt_amx_weight_path kt_cpuinfer kt_max_deferred_experts_per_token
    kt_num_gpu_experts kt_threadpool_count offload_num_in_group offload_prefetch_step speculative_accept_threshold_acc
    speculative_accept_threshold_single speculative_adaptive_config speculative_attention_mode
    speculative_dflash_block_size speculative_dflash_draft_window_size speculative_domino_candidate_pool_size
    speculative_draft_attention_backend speculative_draft_kv_cache_dtype speculative_draft_load_format
    speculative_draft_model_revision
    speculative_draft_sink_size speculative_draft_window_size speculative_dsa_topk_backend
    speculative_dspark_align_verify_tokens_to_graph_tier speculative_dspark_block_size
    speculative_dspark_confidence_sts_path speculative_dspark_sps_table_path
    speculative_enable_w4a4_mxfp4_megamoe speculative_moe_a2a_backend speculative_moe_runner_backend
    speculative_ngram_branch_length speculative_ngram_capacity speculative_ngram_external_corpus_max_tokens
    speculative_ngram_external_corpus_path speculative_ngram_external_sam_budget speculative_ngram_match_type
    speculative_ngram_max_bfs_breadth speculative_ngram_max_match_window_size speculative_ngram_max_trie_depth
    speculative_ngram_min_bfs_breadth speculative_ngram_min_match_window_size speculative_skip_dp_mlp_sync
    speculative_token_map speculative_use_block_verification speculative_use_rejection_sampling
    disaggregation_bootstrap_port disaggregation_decode_dp disaggregation_decode_enable_fake_auto
    disaggregation_decode_host_receive_threshold disaggregation_decode_tp
    disaggregation_enable_kv_checksum disaggregation_ib_device disaggregation_prefill_pp encoder_bootstrap_port
    enable_pd_role_switch optimistic_prefill_retries encoder_urls
"""
"""Flags that change nothing that is predicted; at the end those that do nothing without a flag that is refused or states the
pool's role. Sizes over several nodes are stated by the sizes themselves."""

_CHANGING = {
    "the speed of kernels": """
        bf16_gemm_backend boundary_reduction cuda_graph_backend_decode=full cuda_graph_backend_prefill cuda_graph_bs_prefill
        cuda_graph_config cuda_graph_max_seq_len_prefill cuda_graph_prefill_max_context cuda_graph_tc_compiler
        disable_aiter_allreduce_fusion_in_decode disable_aiter_allreduce_fusion_in_prefill disable_cuda_graph_padding
        disable_decode_cuda_graph disable_flashinfer disable_flashinfer_autotune
        disable_flashinfer_cutlass_moe_fp4_allgather disable_flashinfer_sampling disable_mla
        dsa_decode_backend dsa_paged_mqa_logits_backend dsa_prefill_backend dsa_topk_backend dsa_triton_union
        dsv4_attn_backend dsv4_prefill_backend enable_aiter_allreduce_fusion enable_amd_monokernel
        enable_breakable_cuda_graph enable_decoder_swa_bounded_replay enable_deepseek_v4_fp4_indexer
        enable_deterministic_inference enable_dsa_cache_layer_split enable_dsa_fused_indexer enable_encoder_swa_bounded_replay
        enable_flashinfer_autotune enable_flashinfer_cutedsl_moe
        enable_flashinfer_cutlass_moe enable_flashinfer_mla enable_flashinfer_mxfp4_moe enable_flashinfer_trtllm_moe
        enable_flashmla enable_fp32_lm_head enable_fused_moe_sum_all_reduce enable_fused_qk_norm_rope enable_hisparse
        enable_layernorm_sp enable_lean_attention enable_linear_replayssm enable_megamoe_for_layernorm_sp
        enable_nan_detection enable_nvidia_megakernel enable_precise_embedding_interpolation enable_scattered_sconv
        enable_tf32_matmul enable_torch_compile enable_triton_kernel_moe enable_w4a4_mxfp4_megamoe
        enforce_piecewise_cuda_graph enforce_shared_experts_fusion
        experts_shared_outer_loras flashinfer_allreduce_fusion_backend fp4_gemm_backend
        hisparse_config linear_attn_backend linear_attn_decode_backend linear_attn_prefill_backend
        linear_attn_verify_backend linear_replayssm_cache_len mamba_backend model_impl=auto|sglang monokernel_backend
        n_share_experts_fusion=0 nsa_decode_backend nsa_prefill_backend piecewise_cuda_graph_compiler
        piecewise_cuda_graph_tokens prefill_kv_cache_dequant_dtype qsa_indexer_dtype sampling_backend
        torch_compile_max_bs triton_attention_num_kv_splits triton_attention_reduce_in_fp32 triton_attention_split_tile_size
        flashinfer_mla_disable_ragged
    """,
    "the speed of the exchange between devices": """
        deepep_config deepep_dispatcher_output_dtype deepep_mode deepep_v2_mode disable_attn_tp_gather
        disable_custom_all_reduce dwdp_size=1 enable_attn_tp_input_scattered enable_deepep_moe enable_deepep_waterfill
        enable_dense_mlp_attn_tp enable_dp_attention_local_control_broadcast enable_dp_lm_head enable_ep_moe
        enable_mscclpp enable_quant_communications enable_shared_experts_attn_tp
        enable_single_batch_overlap enable_symm_mem enable_torch_symm_mem enable_tp_lm_head_all_to_all
        enable_two_batch_overlap enable_waterfill flashinfer_a2a_dispatch_type fuseep_mode moe_dense_tp_size
        moe_dp_size=1 shared_experts_tp_size
    """,
    "the balance of the experts": "ep_dispatch_algorithm=static|dynamic",
    "how requests are dealt to the ranks": """
        enable_kv_cache_sharding load_balance_method=auto|round_robin prefill_round_robin_balance
    """,
    "the host's time": """
        detokenizer_worker_num=1 disable_tokenizer_batch_decode dynamic_batch_tokenizer_batch_size
        dynamic_batch_tokenizer_batch_timeout enable_dynamic_batch_tokenizer enable_tokenizer_batch_encode
        enable_return_aux_hidden_states enable_return_hidden_states enable_return_indexer_topk
        enable_return_routed_experts return_aux_hidden_state_layer_ids return_hidden_states return_hidden_states_mode
        tokenizer_backend
    """,
    "the memory of the device": """
        c128_page_size device=auto|cuda|rocm|hip|cpu|xpu|npu enable_int8_mamba_checkpoint
        enable_mamba_cache_stochastic_rounding enable_page_major_kv_layout enable_unified_memory hybrid_kvcache_ratio
        int8_mamba_ckpt_size mamba_cache_philox_rounds mamba_max_states_per_path
        mamba_track_interval
        modelopt_quant ple_offload_backend ple_offload_dir ple_offload_embedding prefill_only_disable_kv_cache
        quantize_and_serve swa_prefix_tails enable_session_radix_cache
    """,
    "which prompts are found in memory outside of the device; here they are computed anew": """
        enable_flexkv enable_lmcache enable_unified_cache_external_linker flexkv_config_file
        hicache_host_memory_fraction hicache_host_memory_mode
        hicache_storage_prefetch_retry_max_attempts hicache_storage_prefetch_retry_poll_interval
        lmcache_config_file radix_cache_backend unified_cache_external_linker_backend
        unified_cache_external_linker_config
    """,
    "how quickly KV tokens are copied between host and device; here at the full rate of the link": """
        hicache_io_backend hicache_mem_layout
    """,
    "which requests a step serves": """
        enable_dynamic_chunking enable_overlap_schedule enable_pdmux enable_prefill_delayer
        max_micro_batch_size max_queued_requests min_free_slots_delay num_continuous_decode_steps=1 pdmux_config_path
        prefill_decode_interval prefill_decode_interval_min_bs
        prefill_delayer_max_delay_ms prefill_delayer_max_delay_passes prefill_delayer_queue_min_ratio
        prefill_delayer_token_usage_low_watermark prefill_only_one_req retraction_policy sm_group_num
    """,
    "what images, video and sound cost": """
        enable_adaptive_dispatch_to_encoder enable_broadcast_mm_inputs_process enable_mm_global_cache enable_prefix_mm_cache
        encoder_register_urls image_processor_backend keep_mm_feature_on_device
        language_model_only limit_mm_data_per_request media_url_max_file_size_mb mm_attention_backend
        mm_enable_dp_encoder mm_feature_transport mm_global_cache_backend mm_io_worker_num mm_max_concurrent_calls
        mm_per_request_timeout mm_preprocess_cache_size_mb mm_process_config mm_processor_worker_num
    """,
    "how adapters are loaded and computed": """
        enable_lora_overlap_loading lora_backend lora_drain_wait_threshold lora_eviction_policy lora_strict_loading
        lora_use_virtual_experts max_lora_chunk_size uno_lora_path
    """,
}
"""What flags change that is not modelled -> these flags, with the values that leave all as it is (`arg_groups/fields`)."""

_REFUSED = {
    "how many tokens a step yields": "speculative_adaptive enable_multi_layer_eagle",
    "where the KV cache lies and what attention costs": """
        attn_cp_size=1 enable_prefill_cp enable_prefill_context_parallel enable_cp_decode_attn_tp
        enable_dsa_prefill_context_parallel enable_nsa_prefill_context_parallel
    """,
    "the time of a step (weights are read from the host)": """
        offload_group_size=-1|0 offload_mode kt_method kt_weight_path enable_paged_experts
        paged_experts_num_resident
    """,
    "the weights' format": "torchao_config",
    "attention (only a part of the tokens is read)": "enable_double_sparsity",
    "the task (only text generation is simulated)": """
        dllm_algorithm is_embedding model_type=auto|llm
    """,
    "flags that stand in a file": "config",
}
"""The same for flags without which a prediction would be wrong by more than its stated error: they are refused."""


_QUANTIZED_WEIGHTS = {
    "fp8": "fp8",
    "w8a8_fp8": "fp8",
    "modelopt": "fp8",
    "modelopt_fp8": "fp8",
    "modelopt_fp4": "nvfp4",
    "awq": "awq",
    "awq_marlin": "awq",
    "gptq": "gptq",
    "gptq_marlin": "gptq",
    "mxfp4": "mxfp4",
    "nvfp4_online": "nvfp4",
    "petit_nvfp4": "nvfp4",
    "w8a8_int8": "int8",
    "mxfp8": "mxfp8",
    "w4afp8": None,
    **dict.fromkeys(("compressed-tensors", "quark", "modelopt_mixed", "moe_wna16", "auto-round", "auto-round-int8", "unquant")),
}
"""Values of SGLang's ``--quantization`` and the weights' format that they fix, None for that of the checkpoint."""

_KV_FORMATS = {"auto": None, "fp4_e2m1": "nvfp4", "fp4_mx_block16": "nvfp4", "mxfp8": "fp8"}
"""Values of ``--kv-cache-dtype``; of mxfp8 the scales of 32 values (3 %) are left out."""


_DYNAMO, _ROUTED = r"-m dynamo\.sglang", r"-m sglang_router\.launch_server"
_BENCH = r"-m sglang\.bench_(?:one_batch|offline_throughput|latency)"
_LAUNCHER = Launcher(
    programs=(r"-m sglang\.launch_server", r"sglang serve", r"sglang\.launch_server", r"launch_server\.py"),
    example="python -m sglang.launch_server --model-path MODEL --flag value",
    image=r"[^\s:=]*(?<!ai-dynamo/)sglang[^\s:=]*",
    published=r"lmsysorg/sglang(?:-\w+)?",
    package="sglang",
    calls=("sglang.Engine", "sglang.Runtime", "sglang.ServerArgs", "sglang.srt.server_args.ServerArgs"),
    workers=(_DYNAMO, _ROUTED, _BENCH),
)


def dp_attention(flags: Mapping[str, Any]) -> bool:
    """Whether data-parallel ranks share the devices of one ``--tp-size``: as a switch, and by its successor's size."""
    return bool(flags.get("enable_dp_attention")) or int(flags.get("attn_dp_size") or 1) > 1


def _attention_ranks(tensor_ranks: int, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> int:
    """Tensor-parallel ranks of one data-parallel rank: SGLang's ``--tp-size`` counts those of all under DP attention."""
    if not dp_attention(flags):
        return tensor_ranks
    ranks = int(flags.get("attn_dp_size") or flags.get("data_parallel_size") or pool["data_parallel"])
    if tensor_ranks % ranks:
        raise InputError(
            f"tensor_parallel_size {tensor_ranks} does not divide by data_parallel_size {ranks} under enable_dp_attention",
            where="tensor_parallel_size",
            mend=f"give a multiple of {ranks}",
        )
    return tensor_ranks // ranks


_OVER_ALL = frozenset({
    "ascend_fuseep", "deepep", "deepep_v2", "flashinfer", "flashinfer_megamoe", "megamoe", "mooncake", "mori", "nixl", "pplx",
})  # fmt: skip
"""Exchanges whose experts lie on all ranks of tensor parallelism, whatever ``ep_size`` says (datasheet: `_a2a_ep_size` of
`arg_groups/overrides.py`, 0.5.23)."""

_LORA = {
    "max_loras_per_batch": "max_loras",
    "max_lora_rank": "max_lora_rank",
    "max_loaded_loras": "max_cpu_loras",
    "lora_target_modules": "target_modules",
}
_METHODS = {"EAGLE": "eagle", "NEXTN": "mtp", "EAGLE3": "eagle3", "STANDALONE": "draft_model", "NGRAM": "ngram"}
"""Values of ``--speculative-algorithm`` that are simulated -> methods of a pool's `speculative`."""


def _draft_method(algorithm: str, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any] | None:
    """The method of an algorithm; EAGLE without a drafter's path, or with one that says so, is the model's own MTP layer."""
    name = algorithm.upper()
    if name in ("NONE", ""):
        return None
    if name not in _METHODS:
        raise InputError(
            f"speculative_algorithm {algorithm} is not simulated",
            where="speculative_algorithm",
            mend=f"one of {', '.join(_METHODS)}",
        )
    path = str(flags.get("speculative_draft_model_path") or "nextn").lower()
    own_layer = name == "EAGLE" and any(word in path for word in ("nextn", "mtp"))
    stated = (pool.get("speculative") or {}).get("method")
    method = "mtp" if own_layer else _METHODS[name]
    return {"method": stated if name == "EAGLE" and stated in ("eagle", "mtp") else method}


def _where_drafted(key: str) -> Callable[[Any, Mapping[str, Any], Mapping[str, Any]], dict[str, Any] | None]:
    """What a flag says of a pool's `speculative`, where drafts are asked for at all."""
    return lambda value, flags, pool: {key: value} if flags.get("speculative_algorithm") or pool.get("speculative") else None


def _draft_weights(value: str, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any] | None:
    found = number_format("speculative_draft_model_quantization", value, {**_QUANTIZED_WEIGHTS, "unquant": "bf16"})
    return _where_drafted("weights")(found, flags, pool) if found else None


_QUIET = r"""(?x)LOG|CACHE|_PORT|HOST|TIMEOUT|API_KEY|MODELSCOPE|USAGE|ALLOW_|_PATH|_DIR\b|IMAGE|MODEL|VERSION|PROFILE|TEST|DEBUG
    |SKIP"""
"""Variables of the environment that change nothing that is predicted."""

_RENAMED = {
    "model_path": "model",
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "dp_size": "data_parallel_size",
    "ep_size": "expert_parallel_size",
    "cuda_graph_max_bs_decode": "cuda_graph_max_bs",
    "cuda_graph_bs_decode": "cuda_graph_bs",
    "disable_prefill_cuda_graph": "disable_piecewise_cuda_graph",
    "cuda_graph_max_bs_prefill": "piecewise_cuda_graph_max_tokens",
    "mamba_scheduler_strategy": "mamba_radix_cache_strategy",
}
"""Names of the newest parser, or of older ones -> the names that are read here."""

_COMMON = {"tp": "tensor_parallel_size", "dp": "data_parallel_size", "pp": "pipeline_parallel_size"}
"""Beginnings of flags that everybody writes: they need no word."""

_LISTS = load_flag_lists(Path(__file__).with_name("sglang_flags.json"), _RENAMED)

def _role(flags: Mapping[str, Any]) -> str | None:
    """The role of a server that a command starts."""
    if flags.get("encoder_only"):
        return "encode"
    return {"prefill": "prefill", "decode": "decode"}.get(flags.get("disaggregation_mode", "null"))


FLAGS = FlagTable(
    engine="sglang",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified({**_LISTS.kinds, "model_type": "value"}, _HARMLESS, _CHANGING, _REFUSED),
    aliases={**_LISTS.spellings, "disable_overlap": "disable_overlap_schedule", **_COMMON},
    elsewhere=dict.fromkeys(_LISTS.of_images, "a flag of its server of images and video, which is not simulated"),
    typed={
        "tensor_parallel_size": Typed("tensor_parallel", beside=_attention_ranks),
        "pipeline_parallel_size": Typed("pipeline_parallel"),
        "data_parallel_size": Typed("data_parallel"),
        "attn_dp_size": Typed("data_parallel", lambda v: v if v > 1 else None),
        "expert_parallel_size": Typed("expert_parallel", lambda v: v if v > 1 else None),
        "moe_a2a_backend": Typed("expert_parallel", lambda v: True if v in _OVER_ALL else None),
        "dtype": Typed("weights", float32_weights),
        "quantization": Typed("weights", lambda v: number_format("quantization", v, _QUANTIZED_WEIGHTS)),
        "kv_cache_dtype": Typed("kv_cache", lambda v: number_format("kv_cache_dtype", v, _KV_FORMATS)),
        "enable_lora": Typed("lora", lambda v: {} if v else None),
        "lora_paths": Typed("lora", lambda v: {}),
        **{flag: settings_with("lora", key, "enable_lora", "lora_paths") for flag, key in _LORA.items()},
        "speculative_algorithm": Typed("speculative", beside=_draft_method),
        **{
            f"speculative_{flag}": Typed("speculative", beside=_where_drafted(key))
            for flag, key in {
                "draft_model_path": "model",
                "num_steps": "num_speculative_tokens",
                "eagle_topk": "eagle_topk",
                "num_draft_tokens": "num_draft_tokens",
            }.items()
        },
        "speculative_draft_model_quantization": Typed("speculative", beside=_draft_weights),
    },
    role=_role,
    environment=ENVIRONMENT,
    prefixes=("SGLANG_", "SGL_"),
    quiet=_QUIET,
    settings_file="config",
    workers={_DYNAMO: worker(own_mode=True), _ROUTED: WITH_ROUTER, _BENCH: bench({**_MODELLED, **_LISTS.kinds}, below=True)},
    releases=_LISTS.releases,
)
