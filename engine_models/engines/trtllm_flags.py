"""TensorRT-LLM's flags: those of ``trtllm-serve``, and the keys of the YAML file that it takes (``LlmArgs``).

Names and defaults are those of `tensorrt_llm/commands/serve.py` and `tensorrt_llm/llmapi/llm_args.py` of 2026 (1.2, 1.3); the
lists of all names are its own (`tests/unittest/api_stability/references/trtllm_serve_cli.yaml`,
`tensorrt_llm/usage/llm_args_golden_manifest.json`; read 2026-11), with those of 0.18 to 1.0 that are gone
(`references/llm.yaml` of these). The groups of the file (`kv_cache_config`, `scheduler_config`, `cuda_graph_config`,
`moe_config`) are flags whose value is a group of keys; `GROUPS` says which are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.engines.bench_loads import bench
from engine_models.engines.dynamo_workers import worker
from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed, typed_value
from engine_models.launcher import Launcher
from hardware_profiles.errors import InputError, nearest

KV_FORMATS = ("auto", "float16", "bfloat16", "fp8", "nvfp4")

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "tensor_parallel_size": Flag("int", 1, low=1),
    "pipeline_parallel_size": Flag("int", 1, low=1),
    "moe_expert_parallel_size": Flag("int", None, low=1),
    "moe_tensor_parallel_size": Flag("int", None, low=1),
    "max_batch_size": Flag("int", 2048, low=1),
    "max_num_tokens": Flag("int", 8192, low=1),
    "max_seq_len": Flag("int", None, low=2),
    "free_gpu_memory_fraction": Flag("float", 0.9, low=1e-3, high=0.999),
    "enable_chunked_prefill": Flag("bool", False),
    "disable_overlap_scheduler": Flag("bool", False),
    "batch_wait_timeout_iters": Flag("int", 0, low=0),
    "batch_wait_max_tokens_ratio": Flag("float", 0.0, low=0.0, high=1.0),
    "kv_cache_config": Flag("json", None),
    "kv_cache_dtype": Flag("str", "auto", choices=KV_FORMATS),
    "scheduler_config": Flag("json", None),
    "cuda_graph_config": Flag("json", None, special=("none",)),
    "moe_config": Flag("json", None),
    "speculative_config": Flag("json", None),
    "enable_attention_dp": Flag("bool", False),
    "attention_dp_config": Flag("json", None),
    "server_role": Flag("str", None, choices=("CONTEXT", "GENERATION", "context", "generation")),
    "cache_transceiver_config": Flag("json", None),
    "enable_lora": Flag("bool", False),
    "lora_config": Flag("json", None),
    "peft_cache_config": Flag("json", None),
    "sparse_attention_config": Flag("json", None),
    "nvfp4_gemm_config": Flag("json", None),
}

_KV = {
    "free_gpu_memory_fraction": Flag("float", 0.9, low=1e-3, high=0.999),
    "max_tokens": Flag("int", None, low=1),
    "enable_block_reuse": Flag("bool", True),
    "enable_partial_reuse": Flag("bool", True),
    "copy_on_partial_reuse": Flag("bool", True),
    "tokens_per_block": Flag("int", 32, low=1),
    "dtype": Flag("str", "auto", choices=KV_FORMATS),
    "host_cache_size": Flag("int", None, low=0),
    "onboard_blocks": Flag("bool", True),
    "mamba_ssm_cache_dtype": Flag("str", "auto", choices=("auto", "float16", "bfloat16", "float32")),
    "secondary_offload_min_priority": Flag("int", None, low=0, high=100),
    "cold_tier_offload_min_priority": Flag("int", None, low=0, high=100),
    "max_attention_window": Flag("ints", None, low=1),
}
_SCHEDULER = {
    "capacity_scheduler_policy": Flag("str", "GUARANTEED_NO_EVICT"),
    "context_chunking_policy": Flag("str", None),
}
_GRAPHS = {
    "enable_padding": Flag("bool", False),
    "max_batch_size": Flag("int", None, low=0),
    "batch_sizes": Flag("ints", None, low=1),
}
_BALANCE = {
    "enable_balance": Flag("bool", False),
    "timeout_iters": Flag("int", 50, low=0),
    "batching_wait_iters": Flag("int", 10, low=0),
}
_LORA = {
    "max_lora_rank": Flag("int", None, low=1),
    "max_loras": Flag("int", None, low=1),
    "max_cpu_loras": Flag("int", None, low=1),
    "lora_target_modules": Flag("texts", None),
}
_PEFT = {
    "device_cache_percent": Flag("float", 0.02, low=1e-6, high=1.0),
    "host_cache_size": Flag("int", 2**30, low=1),
    "optimal_adapter_size": Flag("int", 8, low=1),
}


def _all(names: str) -> dict[str, tuple[Any, ...]]:
    """Keys of which every value is taken."""
    return dict.fromkeys(names.split(), ())


_TRANSCEIVER = {"backend": Flag("str", "DEFAULT"), "kv_transfer_timeout_ms": Flag("int", 60_000, low=1)}
GROUPS: Mapping[str, tuple[Mapping[str, Flag], Mapping[str, tuple[Any, ...]]]] = {
    "kv_cache_config": (
        _KV,
        {
            "disk_cache_size": (0, None),
            "max_gpu_total_bytes": (0, None),
            "sink_token_length": (0, None),
            "use_uvm": (False, None),
            "mixed_precision_first_n": (0, None),
            **_all("event_buffer_max_size attention_dp_events_gather_period_ms kv_events_config disk_io_threads"),
            **_all("disk_cache_path disk_keep_copy_after_restore disk_write_through disk_protected_copy_fraction"),
            **_all("host_cache_bind_to_gpu_numa_node"),
            **_all("kv_cache_event_hash_algo iteration_stats_interval cross_kv_cache_fraction disk_prefetch_num_reqs"),
            **_all("avg_seq_len max_util_for_resume pool_ratio enable_kv_pool_rebalance use_kv_cache_manager_v2"),
            **_all("mamba_ssm_philox_rounds mamba_ssm_stochastic_rounding mamba_state_cache_interval"),
            **_all("mamba_state_config"),
        },
    ),
    "scheduler_config": (
        _SCHEDULER,
        {"waiting_queue_policy": ("fcfs", "FCFS", None), **_all("dynamic_batch_config use_python_scheduler")},
    ),
    "cuda_graph_config": (_GRAPHS, {"mode": ("decode", None), **_all("max_num_token max_seq_len num_tokens seq_lens")}),
    "attention_dp_config": (
        _BALANCE,
        _all(
            "kv_cache_routing_account_for_in_transfer kv_cache_routing_cold_start_warmup kv_cache_routing_conversation_affinity "
            "kv_cache_routing_fair_share_multiplier kv_cache_routing_load_balance_weight kv_cache_routing_match_rate_threshold "
            "kv_cache_routing_max_sessions"
        ),
    ),
    "cache_transceiver_config": (
        _TRANSCEIVER,
        _all(
            "max_tokens_in_buffer transceiver_runtime kv_cache_bounce_size_mb kv_transfer_poll_interval_ms "
            "kv_transfer_sender_future_timeout_ms"
        ),
    ),
    "lora_config": (
        _LORA,
        {
            "lora_dir": (),
            "lora_ckpt_source": (),
            "trtllm_modules_to_hf_modules": (),
            "swap_gate_up_proj_lora_b_weight": (),
        },
    ),
    "peft_cache_config": (
        _PEFT,
        {
            "num_host_module_layer": (0, None),
            "num_device_module_layer": (0, None),
            "max_adapter_size": (),
            "num_put_workers": (),
            "num_ensure_workers": (),
            "num_copy_streams": (),
            "max_pages_per_block_host": (),
            "max_pages_per_block_device": (),
        },
    ),
    "moe_config": ({"backend": Flag("str", "AUTO"), "load_balancer": Flag("json", None)}, _all("max_num_tokens")),
}
"""Group -> the keys that are read, and those that are not, each with the values that are taken (none named: all)."""

WARNED: Mapping[str, Mapping[str, str]] = {
    "kv_cache_config": {
        "block_reuse_config": "which prompts are found in memory",
        "block_reuse_policy": "which prompts are found in memory",
        "enable_swa_scratch_reuse": "the memory of the device",
    },
    "scheduler_config": {"enable_prefix_aware_scheduling": "which requests a step serves"},
    "attention_dp_config": {"enable_kv_cache_aware_routing": "how requests are dealt to the ranks"},
    "moe_config": {
        "disable_finalize_fusion": "the speed of kernels",
        "use_low_precision_moe_combine": "the speed of the exchange between devices",
    },
}
"""Group -> keys that are not read, and what they change where they are set."""
NEUTRAL = ("all_reusable",)
"""Values of these keys that are the default."""

DRAFT_METHODS = {"mtp": "mtp", "eagle3": "eagle3", "eagle": "eagle3", "ngram": "ngram", "drafttarget": "draft_model"}
"""``decoding_type`` in lower case, without underscores -> method of a pool's `speculative`. Of Eagle its doc says that it means
EAGLE-3 (docs/source/features/speculative-decoding.md, read 2026-11)."""
DRAFT_KEYS = {
    "max_draft_len": "num_speculative_tokens",
    "num_nextn_predict_layers": "num_speculative_tokens",
    "speculative_model": "model",
    "speculative_model_dir": "model",
    "pytorch_weights_path": "model",
    "prompt_lookup_num_tokens": "num_speculative_tokens",
}
DRAFTS_HARMLESS = """
    decoding_type eagle3_one_model use_relaxed_acceptance_for_thinking relaxed_topk relaxed_delta max_matching_ngram_size
    is_public_pool is_keep_all is_use_oldest eagle3_layers_to_capture load_format draft_tensor_parallel_size acceptance_window
    use_mtp_vanilla mtp_eagle_one_model begin_thinking_phase_token end_thinking_phase_token acceptance_length_threshold
    allow_advanced_sampling use_rejection_sampling eagle3_model_arch num_eagle_layers greedy_sampling posterior_threshold
"""
"""Other keys, which change nothing but which drafts are accepted (that is given) or how they are launched."""

_SWITCHES = """
    fail_fast_on_attention_window_too_large print_iter_log trust_remote_code allow_request_chat_template enable_visual_gen grpc
    enable_iter_perf_stats enable_min_latency use_torch_sampler skip_tokenizer_init
"""
_PAIRS = "telemetry"
_HARMLESS = """
    allow_request_chat_template chat_template checkpoint_format checkpoint_loader custom_module_dirs custom_tokenizer
    disable_mm_encoder enable_energy_metrics enable_iter_perf_stats enable_iter_req_stats enable_layerwise_nvtx_marker
    enable_sleep
    enable_speculative_beam_history_d2h encoder_max_batch_size encoder_max_num_tokens fail_fast_on_attention_window_too_large
    gms_config gpus_per_node grpc guided_decoding_backend host iter_stats_max_iterations layer_wise_benchmarks_config log_level
    max_input_len max_stats_len media_io_kwargs media_load_workers metadata_server_config_file middleware mx_config
    orchestrator_type otlp_traces_endpoint perf_metrics_max_requests port postprocess_tokenizer_dir print_iter_log
    prometheus_metrics_config ray_placement_config ray_worker_extension_cls ray_worker_nsight_options reasoning_parser
    request_stats_max_iterations return_perf_metrics revision served_model_name skip_tokenizer_init sleep_config telemetry
    telemetry_config tokenizer tokenizer_mode tokenizer_revision tool_parser trust_remote_code
    use_kv_cache
"""
_CHANGING = {
    "the speed of kernels": """
        allreduce_strategy attn_backend disable_flashinfer_sampling enable_autotuner=true enable_min_latency load_format=auto|0
        autotuner_enabled=true enable_mixed_sampler enable_trtllm_sampler env_overrides mixed_sampler
        moe_cluster_parallel_size sampler_type torch_compile_config torch_compile_enabled
        use_cuda_graph=true use_cute_dsl_bf16_bmm use_cute_dsl_bf16_gemm use_cute_dsl_blockscaling_bmm
        use_cute_dsl_blockscaling_mm use_torch_sampler
    """,
    "the speed of the exchange between devices": "dwdp_config enable_lm_head_tp_in_adp",
    "the host's time": """
        batched_logits_processor enable_overlap_scheduler=true garbage_collection_gen0_threshold gather_generation_logits
        input_processor_workers normalize_log_probs num_postprocess_workers=0 num_serve_frontends=1
        post_processor_hook sampler_force_async_worker
    """,
    "how tokens are bundled for the client": "enable_early_first_token_response stream_interval=1",
    "which requests a step serves": (
        "agent_percentage=0|0.0 agent_types batching_type=inflight enable_resource_governor reorder_policy_config"
    ),
    "which prompts are found in memory outside of the device; here they are computed anew": "kv_connector_config",
    "how layers are split over the stages": "pp_partition",
    "what images, video and sound cost; requests are text here": "video_pruning_rate",
    "flags in a file that cannot be seen": "extra_llm_api_options",
}
_REFUSED = {
    "what ranks compute together (context parallelism is not simulated)": "context_parallel_size=1 cp_config",
    "the engine (its PyTorch backend is simulated)": "backend=pytorch",
    "how many sequences a request has": "max_beam_width=1",
    "which servers there are (pools of a scenario say it)": "disagg_cluster_uri disagg_cluster config_file",
    "when prompts start (waiting by time is not simulated)": "batch_wait_timeout_ms=0|0.0",
    "the limits of a step (write them as flags of their own)": "build_config",
    "the number formats (state them by the keys `weights` and `kv_cache` of the pool)": (
        "dtype=auto|bfloat16|float16|bf16|fp16 quant_config force_dynamic_quantization"
    ),
    "what the KV cache holds": "kv_cache_compression_config",
    "the task (only text generation is simulated)": "enable_visual_gen visual_gen_args encode_only mm_encoder_only",
    "how many tokens a step yields": "decoding_config",
}
_KINDS = {
    name.partition("=")[0]: "switch" if name in _SWITCHES.split() else "pair" if name in _PAIRS.split() else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}
_ALIASES = {
    "tp_size": "tensor_parallel_size",
    "pp_size": "pipeline_parallel_size",
    "ep_size": "moe_expert_parallel_size",
    "cp_size": "context_parallel_size",
    "cluster_size": "moe_cluster_parallel_size",
    "kv_cache_free_gpu_memory_fraction": "free_gpu_memory_fraction",
    "config": "extra_llm_api_options",
    "hf_revision": "revision",
    "cuda_graph_padding_enabled": "cuda_graph_config.enable_padding",
    "cuda_graph_batch_sizes": "cuda_graph_config.batch_sizes",
    "cuda_graph_max_batch_size": "cuda_graph_config.max_batch_size",
    "moe_backend": "moe_config.backend",
    "moe_max_num_tokens": "moe_config.max_num_tokens",
    "moe_load_balancer": "moe_config.load_balancer",
}

_DYNAMO, _BENCH = r"-m dynamo\.trtllm", r"(?:\S*/)?trtllm-bench(?! build)"
_OF_BENCH = {
    "tp": "tensor_parallel_size",
    "pp": "pipeline_parallel_size",
    "ep": "moe_expert_parallel_size",
    "kv_cache_free_gpu_mem_fraction": "free_gpu_memory_fraction",
    "beam_width": "max_beam_width",
    "enable_chunked_context": "enable_chunked_prefill",
    "scheduler_policy": "scheduler_config.capacity_scheduler_policy",
}
_LAUNCHER = Launcher(
    programs=(r"trtllm-serve serve", r"trtllm-serve"),
    example="trtllm-serve MODEL --flag value",
    image=r"[^\s:=]*(?<!ai-dynamo/)(?:tensorrt-llm|tensorrtllm)[^\s:=]*",
    published=r"nvcr\.io/nvidia/tensorrt-llm/release",
    calls=("tensorrt_llm.LLM", "tensorrt_llm.llmapi.LLM"),
    workers=(_DYNAMO, _BENCH),
)


def _attention_ranks(tensor_ranks: int, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> int:
    """Tensor-parallel ranks of one data-parallel rank: under attention data parallelism each device is a rank of its own."""
    return 1 if flags.get("enable_attention_dp") else tensor_ranks


def _ranks(shared: bool, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> int | None:
    """Data-parallel ranks that share the experts: all that the command counts as tensor-parallel."""
    return int(flags.get("tensor_parallel_size") or pool["data_parallel"]) if shared else None


def _kv_named(name: Any) -> str | None:
    return None if name in (None, *KV_FORMATS[:3]) else str(name)  # in 16 bits as the model's activations


def _kv_format(config: Mapping[str, Any]) -> str | None:
    return _kv_named(config.get("dtype")) if isinstance(config, Mapping) else None


def _experts_left(split: int, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> int | None:
    """Ranks over which whole experts are spread, where only those that split each expert are said (datasheet: `mapping.py`)."""
    ranks = int(flags.get("tensor_parallel_size") or pool["tensor_parallel"]) // split
    return ranks if ranks > 1 and "moe_expert_parallel_size" not in flags else None


def _drafts(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``speculative_config`` as a pool's `speculative` settings; InputError for what is not modelled."""
    where = "speculative_config"
    kind = str(config.get("decoding_type", "")).lower().replace("_", "")
    if kind not in DRAFT_METHODS:
        raise InputError(
            f"speculative_config with decoding_type {config.get('decoding_type') or '(none)'} is not simulated",
            where=where,
            mend="one of MTP, Eagle3, NGram, DraftTarget; the PyTorch backend has no Medusa",
        )
    found: dict[str, Any] = {"method": DRAFT_METHODS[kind]}
    for key, value in config.items():
        if key in DRAFT_KEYS:
            if value is not None:
                found[DRAFT_KEYS[key]] = value
        elif key not in DRAFTS_HARMLESS.split() and value not in (None, False):
            near = nearest(key, [*DRAFT_KEYS, *DRAFTS_HARMLESS.split()])
            raise InputError(
                f"`speculative_config.{key}` ({value}) is not simulated",
                where=where,
                mend=f"did you mean `{near}`?" if near else "remove it: chains of a fixed length are simulated",
            )
    if found["method"] == "mtp":
        found.setdefault("num_speculative_tokens", 1)
    return found


TARGETS = {
    "attn_q": ("q_proj",),
    "attn_k": ("k_proj",),
    "attn_v": ("v_proj",),
    "attn_qkv": ("q_proj", "k_proj", "v_proj"),
    "attn_dense": ("o_proj",),
    "mlp_h_to_4h": ("gate_proj",),
    "mlp_gate": ("up_proj",),
    "mlp_gate_up": ("gate_proj", "up_proj"),
    "mlp_4h_to_h": ("down_proj",),
}
"""`lora_target_modules` -> modules by PEFT's names (datasheet: `lora_manager.py`, read 2026-11)."""


def _lora(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``lora_config`` as a pool's `lora` settings; InputError for modules that are not modelled."""
    found = group({"lora_config": config}, "lora_config")
    targets = found.pop("lora_target_modules")
    settings = {key: value for key, value in found.items() if value is not None}
    for name in targets or ():
        if name not in TARGETS:
            near = nearest(name, list(TARGETS))
            raise InputError(
                f"adapters of `{name}` are not modelled" + (f"; did you mean `{near}`?" if near else ""),
                where="lora_config.lora_target_modules",
                mend=f"some of {', '.join(TARGETS)}",
            )
    if targets:
        settings["target_modules"] = [module for name in targets for module in TARGETS[name]]
    return settings


_ROLES = {"CONTEXT": "prefill", "GENERATION": "decode"}
"""``--server_role`` -> a pool's role."""

FLAGS = FlagTable(
    engine="trtllm",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    shorts={"c": "config_file"},
    aliases=_ALIASES,
    typed={
        "tensor_parallel_size": Typed("tensor_parallel", beside=_attention_ranks),
        "enable_attention_dp": Typed("data_parallel", beside=_ranks),
        "pipeline_parallel_size": Typed("pipeline_parallel"),
        "moe_expert_parallel_size": Typed("expert_parallel", lambda v: v if v > 1 else None),
        "moe_tensor_parallel_size": Typed("expert_parallel", beside=_experts_left),
        "kv_cache_config": Typed("kv_cache", _kv_format),
        "kv_cache_dtype": Typed("kv_cache", _kv_named),
        "speculative_config": Typed("speculative", _drafts),
        "enable_lora": Typed("lora", lambda v: {} if v else None),
        "lora_config": Typed("lora", _lora),
    },
    role=lambda flags: _ROLES.get(str(flags.get("server_role") or "").upper()),
    prefixes=("TRTLLM_", "TLLM_"),
    quiet=r"LOG|PROFILE|TEST|DEBUG|_PORT|HOST|SERVER_DISABLE_GC",
    settings_file="extra_llm_api_options",
    unfolded=("pytorch_backend_config",),
    abbreviated=False,
    workers={
        _DYNAMO: worker(
            modelled={"override_engine_args": Flag("json", None)},
            aliases={
                "extra_engine_args": "extra_llm_api_options",
                "expert_parallel_size": "moe_expert_parallel_size",
                "kv_block_size": "kv_cache_config.tokens_per_block",
                "model_path": "model",
            },
            unfolded=("override_engine_args",),
        ),
        _BENCH: bench(
            {**_MODELLED, **_KINDS},
            _OF_BENCH,
            parts=("throughput", "latency"),
            shorts={"m": "model", "w": "workspace"},
            besides="; rows and tokens of a step that it does not state are the server's, where it fits them to the load",
        ),
    },
)


def group(flags: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keys of a group with their defaults; InputError for a key that there is not, or a value that is not simulated."""
    given = flags.get(name) or {}
    where = f"deployment.engine_args.{name}"
    if not isinstance(given, Mapping):
        raise InputError(f"`{name}` is no group of keys", where=where, mend=f"write {name}: {{key: value}}")
    read, unread = GROUPS[name]
    found = {key: flag.default for key, flag in read.items()}
    for key, value in given.items():
        if key in read:
            if value is not None:
                found[key] = typed_value(read[key], f"{name}.{key}", value)
        elif key not in unread and key not in WARNED.get(name, ()):
            close = nearest(key, [*read, *unread, *WARNED.get(name, ())])
            raise InputError(
                f"TensorRT-LLM's `{name}` has no key `{key}` that is known here",
                where=f"{where}.{key}",
                mend=f"did you mean `{close}`?" if close else "remove it, or check its spelling",
            )
        elif unread.get(key) and value not in unread[key]:
            raise InputError(
                f"`{name}.{key}` ({value}) is not simulated for TensorRT-LLM",
                where=f"{where}.{key}",
                mend="remove it",
            )
    return found


def unread_in_groups(flags: Mapping[str, Any]) -> list[str]:
    """Words on keys of groups that are set and not read."""
    return [
        f"trtllm flag `{name}` ({key}) is not modelled; in the engine it changes {changes}"
        for name, keys in WARNED.items()
        for key, changes in keys.items()
        if (value := (flags.get(name) or {}).get(key)) and value not in NEUTRAL
    ]
