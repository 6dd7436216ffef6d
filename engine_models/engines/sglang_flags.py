"""SGLang's flags: names, types and defaults, and what they say of a pool's keys.

They follow SGLang 0.5.23 (`server_args.py`, `arg_groups/fields`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.flags import Flag, FlagTable, Typed, by_arity
from engine_models.memory.radix import EVICTION_POLICIES
from engine_models.model.formats import format_named
from engine_models.schedulers.prefill_first import POLICIES
from hardware_profiles.errors import InputError

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "tensor_parallel_size": Flag("int", 1, low=1),
    "pipeline_parallel_size": Flag("int", 1, low=1),
    "data_parallel_size": Flag("int", 1, low=1),
    "expert_parallel_size": Flag("int", 1, low=1),
    "context_length": Flag("int", None, low=1),
    "mem_fraction_static": Flag("float", None, low=1e-3, high=1.0),
    "max_running_requests": Flag("int", None, low=1),
    "max_total_tokens": Flag("int", None, low=1),
    "max_prefill_tokens": Flag("int", 16384, low=1),
    "chunked_prefill_size": Flag("int", None, low=-1),
    "prefill_max_requests": Flag("int", None, low=1),
    "scheduler_recv_interval": Flag("int", 1, low=1),
    "page_size": Flag("int", 1, low=1),
    "schedule_policy": Flag("str", "fcfs", choices=POLICIES),
    "schedule_conservativeness": Flag("float", 1.0, low=0.0),
    "enable_mixed_chunk": Flag("bool", False),
    "disable_radix_cache": Flag("bool", False),
    "radix_eviction_policy": Flag("str", "lru", choices=EVICTION_POLICIES),
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
}

# Of the flags below the simulation reads none; each group is named by the number of values its flags take.
_HARMLESS_SWITCHES = """
    enable_cache_report enable_metrics enable_metrics_for_all_schedulers log_requests skip_server_warmup
    skip_tokenizer_init trust_remote_code show_time_cost disable_fast_image_processor enable_request_time_stats_logging
"""
_HARMLESS_VALUES = """
    api_key chat_template completion_template decode_log_interval dist_init_addr download_dir file_storage_path host
    load_format log_level log_level_http log_requests_level model_loader_extra_config nccl_port port random_seed
    reasoning_parser revision served_model_name tokenizer_mode tokenizer_path tool_call_parser watchdog_timeout
"""
_UNMODELLED_SWITCHES = """
    disable_chunked_prefix_cache disable_custom_all_reduce disable_hybrid_swa_memory disable_cuda_graph_padding
    enable_dp_lm_head enable_ep_moe enable_eplb enable_flashinfer_allreduce_fusion
    enable_hierarchical_cache enable_lora enable_memory_saver enable_mscclpp enable_nccl_nvls enable_nan_detection
    enable_p2p_check enable_symm_mem enable_tokenizer_batch_encode enable_torch_compile enable_two_batch_overlap
"""
_UNMODELLED_VALUES = """
    attention_backend attn_cp_size base_gpu_id constrained_json_whitespace_pattern cpu_offload_gb decode_attention_backend
    deepep_mode device disaggregation_mode disaggregation_transfer_backend ep_num_redundant_experts grammar_backend
    hicache_ratio hicache_size hicache_storage_backend hicache_write_policy json_model_override_args
    load_balance_method lora_backend max_lora_rank max_loras_per_batch max_queued_requests mm_attention_backend
    moe_a2a_backend moe_runner_backend nnodes node_rank num_continuous_decode_steps num_reserved_decode_tokens
    prefill_attention_backend sampling_backend speculative_algorithm speculative_draft_model_path
    speculative_eagle_topk speculative_num_draft_tokens speculative_num_steps swa_full_tokens_ratio tokenizer_worker_num
    torch_compile_max_bs
"""
_UNMODELLED_LISTS = "cuda_graph_bs lora_paths lora_target_modules"


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
}
"""Values of SGLang's ``--quantization`` that fix the weights' format; others leave it to the checkpoint."""


def _kv_format(value: str) -> str | None:
    return None if value == "auto" else format_named(value, where="kv_cache_dtype").name


def _launched(words: list[str]) -> list[str] | None:
    """Arguments after ``python -m sglang.launch_server`` or ``sglang serve``, also inside a container's command."""
    for i, word in enumerate(words):
        base = word.rpartition("/")[2]
        if word == "-m" and i + 1 < len(words) and words[i + 1].startswith("sglang.launch_server"):
            return words[i + 2 :]
        if base == "sglang" and i + 1 < len(words) and words[i + 1] == "serve":
            return words[i + 2 :]
        if base == "launch_server.py":
            return words[i + 1 :]
    return words if words and words[0].startswith("-") else None


def _attention_ranks(tensor_ranks: int, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> int:
    """Tensor-parallel ranks of one data-parallel rank: SGLang's ``--tp-size`` counts those of all under DP attention."""
    if not flags.get("enable_dp_attention"):
        return tensor_ranks
    ranks = int(flags.get("data_parallel_size") or pool["data_parallel"])
    if tensor_ranks % ranks:
        raise InputError(
            f"tensor_parallel_size {tensor_ranks} does not divide by data_parallel_size {ranks} under enable_dp_attention",
            where="tensor_parallel_size",
            mend=f"give a multiple of {ranks}",
        )
    return tensor_ranks // ranks


FLAGS = FlagTable(
    engine="sglang",
    modelled=_MODELLED,
    harmless=by_arity((_HARMLESS_SWITCHES, 0), (_HARMLESS_VALUES, 1)),
    unmodelled=by_arity((_UNMODELLED_SWITCHES, 0), (_UNMODELLED_VALUES, 1), (_UNMODELLED_LISTS, -1)),
    shorts={},
    aliases={
        "model_path": "model",
        "tp": "tensor_parallel_size",
        "tp_size": "tensor_parallel_size",
        "pp": "pipeline_parallel_size",
        "pp_size": "pipeline_parallel_size",
        "dp": "data_parallel_size",
        "dp_size": "data_parallel_size",
        "ep": "expert_parallel_size",
        "ep_size": "expert_parallel_size",
        "disable_overlap": "disable_overlap_schedule",
        "cuda_graph_max_bs_decode": "cuda_graph_max_bs",
    },
    typed={
        "tensor_parallel_size": Typed("tensor_parallel", beside=_attention_ranks),
        "pipeline_parallel_size": Typed("pipeline_parallel"),
        "data_parallel_size": Typed("data_parallel"),
        "expert_parallel_size": Typed("expert_parallel", lambda v: v if v > 1 else None),
        "quantization": Typed("weights", _QUANTIZED_WEIGHTS.get),
        "kv_cache_dtype": Typed("kv_cache", _kv_format),
    },
    launched=_launched,
    launch_example="python -m sglang.launch_server --model-path MODEL --flag value",
    launch_words=("sglang",),
)
