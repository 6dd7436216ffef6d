"""Flags of llama.cpp's server: names, types and defaults, and what they say of a pool's keys.

They follow `tools/server/README.md` and `common/arg.cpp` of 2026 (build 11669 and later); flags that were removed since 2023 are
known too.
Each may also be set in the environment, as ``LLAMA_ARG_`` and its name or a shorter one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher
from engine_models.model.formats import quant_of
from engine_models.model.tags import HUB_DEFAULT
from hardware_profiles.errors import InputError, nearest

KV_TYPES = {
    "f32": "fp32",
    "f16": "fp16",
    "bf16": "bf16",
    **{name: name for name in ("q8_0", "q4_0", "q4_1", "iq4_nl", "q5_0", "q5_1")},
}
"""Values of ``--cache-type-k`` and the format of the KV cache that they fix."""

_ONE_FILE = re.compile(r"ggml-org/gpt-oss-\w+-GGUF", re.IGNORECASE)
"""Repositories without such a file, but with one of experts in the checkpoint's mxfp4, which is taken (datasheet: cards)."""

N_MAX = 3
"""Drafts of a slot and iteration where nobody says (datasheet: `common_params_speculative_draft` of `common/common.h`)."""
DRAFT_TYPES = {"draft-simple": "draft_model", "draft-mtp": "mtp", "draft-eagle3": "eagle3"}
"""Values of ``--spec-type`` and methods of a pool's `speculative`."""
_UNKNOWN_TYPES = (
    "drafts by n-grams come only where the text repeats, as many as 48 at once, and how often is no key of a scenario; "
    "dflash, dspark and several types together are not modelled"
)
_PACKED = re.compile(r"(?i)[-_.](?:UD-)?(?:I?Q\d\w*|F16|BF16|F32|MXFP4\w*)?\.gguf$|[-_]GGUF$")
"""What a packed file's or repository's name adds to that of the model."""

_MODELLED: dict[str, Flag] = {
    "model_file": Flag("str"),
    "hf_repo": Flag("str"),
    "hf_file": Flag("str"),
    "ctx_size": Flag("int", 0, low=0),
    "parallel": Flag("int", -1, low=-1),
    "batch_size": Flag("int", 2048, low=1),
    "ubatch_size": Flag("int", 512, low=1),
    "keep": Flag("int", 0, low=-1),
    "swa_full": Flag("bool", False),
    "cont_batching": Flag("bool", True),
    "cache_prompt": Flag("bool", True),
    "cache_reuse": Flag("int", 0, low=0),
    "cache_ram": Flag("int", 8192, low=-1),
    "cache_idle_slots": Flag("bool", True),
    "kv_unified": Flag("bool", None),
    "kv_unified_per_slot": Flag("int", None, low=1),
    "context_shift": Flag("bool", False),
    "slot_prompt_similarity": Flag("float", 0.1, low=0.0, high=1.0),
    "cache_type_k": Flag("str", "f16", choices=tuple(KV_TYPES)),
    "cache_type_v": Flag("str", "f16", choices=tuple(KV_TYPES)),
    "gpu_layers": Flag("int", None, low=0, special=("auto", "all", -1)),
    "cpu_moe": Flag("bool", False),
    "n_cpu_moe": Flag("int", 0, low=0),
    "op_offload": Flag("bool", True),
    "host_cpu": Flag("str", None),
    "threads": Flag("int", -1, low=-1),
    "device": Flag("str", None),
    "hipblaslt": Flag("bool", None),
    "flash_attn": Flag("str", None, choices=("on", "off", "auto", "1", "0", "true", "false"), special=(True, False), bare="on"),
    "fit": Flag("str", "on", choices=("on", "off")),
    "fit_target": Flag("ints", [1024], low=0),
    "fit_ctx": Flag("int", 4096, low=1),
    "spec_type": Flag("str", "none"),
    "spec_draft_model": Flag("str", None),
    "spec_draft_hf": Flag("str", None),
    "spec_draft_n_max": Flag("int", N_MAX, low=1, high=128),
    "spec_draft_n_min": Flag("int", 0, low=0),
    "spec_draft_type_k": Flag("str", "f16", choices=tuple(KV_TYPES)),
    "spec_draft_type_v": Flag("str", "f16", choices=tuple(KV_TYPES)),
}

_SWITCHES = """
    agent backend_sampling check_tensors cors_credentials cpu_moe_draft embedding escape fim_qwen_1.5b_default
    fim_qwen_14b_spec fim_qwen_30b_default fim_qwen_3b_default fim_qwen_7b_default fim_qwen_7b_spec gpt_oss_120b_default
    gpt_oss_20b_default ignore_eos jinja kv_offload log_disable log_jsonl log_prefix log_timestamps lora_init_without_apply
    metrics mlock mmap mmproj_auto mmproj_offload models_autoload no_host offline perf prefill_assistant props
    reasoning_preserve repack rerank reuse_port server skip_chat_parsing slots spec_default spec_draft_backend_sampling special
    spm_infill ui ui_mcp_proxy verbose vision_gemma_12b_default vision_gemma_4b_default warmup
    embd_gemma_default direct_io list_devices log_append log_new memory_f32 tts_oute_default tts_use_guide_tokens verbose_prompt
    cache_list dump_kv_cache penalize_nl slots_endpoint_disable
"""
_OPTIONAL = "log_colors reasoning"
_HARMLESS = """
    agent alias api_key api_key_file api_prefix chat_template chat_template_file chat_template_kwargs check_tensors
    cors_credentials cors_headers cors_methods cors_origins defrag_thold docker_repo escape hf_token host jinja load_mode
    log_colors log_disable log_file log_jsonl log_prefix log_prompts_dir log_timestamps main_gpu mcp_servers_config
    mcp_servers_json media_path metrics mlock mmap mmproj mmproj_auto mmproj_device mmproj_offload mmproj_url model_url
    mtmd_batch_max_tokens image_max_tokens image_min_tokens offline path perf pooling embd_normalize port prefill_assistant
    props reasoning reasoning_effort reasoning_format reasoning_preserve reuse_port reverse_prompt seed server
    skip_chat_parsing slot_save_path slots special spm_infill sse_ping_interval ssl_cert_file ssl_key_file tags
    temp threads_http timeout tools tools_runtime ui ui_config ui_config_file ui_mcp_proxy verbose verbosity video_ffmpeg_dir
    video_fps video_timestamp_interval warmup ignore_eos top_k top_p min_p top_n_sigma xtc_probability xtc_threshold
    typical_p repeat_last_n repeat_penalty presence_penalty frequency_penalty dry_multiplier dry_base dry_allowed_length
    dry_penalty_last_n dry_sequence_breaker adaptive_target adaptive_decay dynatemp_range dynatemp_exp mirostat mirostat_lr
    mirostat_ent cache_list direct_io dump_kv_cache hf_file_v hf_repo_v list_devices log_append log_format log_new memory_f32
    model_vocoder penalize_nl slots_endpoint_disable static_path system_prompt_file verbose_prompt
    spec_draft_p_split samplers sampler_seq logit_bias control_vector control_vector_scaled control_vector_layer_range
"""
_CHANGING = {
    "the speed of a CPU": (
        "threads_batch=-1 cpu_mask cpu_range cpu_strict prio poll cpu_mask_batch cpu_range_batch cpu_strict_batch "
        "prio_batch poll_batch numa repack=true no_host"
    ),
    "the host's time": "grammar grammar_file json_schema json_schema_file backend_sampling",
    "how long an answer is where the client asks for no limit": "predict=-1 reasoning_budget=-1 reasoning_budget_message",
    "the model's context": (
        "rope_scaling rope_scale rope_freq_base rope_freq_scale yarn_orig_ctx yarn_ext_factor yarn_attn_factor "
        "yarn_beta_slow yarn_beta_fast"
    ),
    "the model's configuration": "override_kv",
    "when prompts of a model with sliding windows or states are found again": (
        "ctx_checkpoints=32 checkpoint_min_step=8192"
    ),
    "which positions attention sees": "group_attn_n=1 group_attn_w",
    "where rarely used tensors are read from": "lazy_mode=auto|off",
    "which devices compute": "tensor_split",
    "adapters, which are not simulated": "lora lora_scaled lora_init_without_apply",
    "the memory of the drafter's cache (here it holds the server's context)": "ctx_size_draft=0",
    "how many drafts are made where the drafter is less sure": "spec_draft_p_min=0|0.0",
    "how fast the drafter is on a CPU": (
        "spec_draft_threads spec_draft_threads_batch spec_draft_cpu_mask spec_draft_cpu_range spec_draft_cpu_strict "
        "spec_draft_prio spec_draft_poll spec_draft_cpu_mask_batch spec_draft_cpu_range_batch spec_draft_cpu_strict_batch "
        "spec_draft_prio_batch spec_draft_poll_batch"
    ),
    "where drafts are sampled": "spec_draft_backend_sampling=true",
}
_REFUSED = {
    "how the model is split over several devices": "split_mode=layer|none rpc",
    "which part of the model the CPU computes": (
        "override_tensor n_cpu_ffn=0 moe_cache_mib=0 kv_offload=true"
    ),
    "where the drafter computes": (
        "spec_draft_device spec_draft_ngl=auto|all|99|999|-1 spec_draft_override_tensor cpu_moe_draft spec_draft_n_cpu_moe=0"
    ),
    "how often there are drafts: those found in the text come only where it repeats": (
        "spec_default spec_ngram_mod_n_min spec_ngram_mod_n_max spec_ngram_mod_n_match "
        "spec_ngram_simple_size_n spec_ngram_simple_size_m spec_ngram_simple_min_hits spec_ngram_map_k_size_n "
        "spec_ngram_map_k_size_m spec_ngram_map_k_min_hits spec_ngram_map_k4v_size_n spec_ngram_map_k4v_size_m "
        "spec_ngram_map_k4v_min_hits spec_ngram_size_n spec_ngram_size_m spec_ngram_min_hits "
        "lookup_cache_static lookup_cache_dynamic"
    ),
    "how many drafts are accepted, by chance (give it as the pool's `speculative`)": "spec_synth_len spec_synth_rates",
    "what the server computes": "embedding rerank embd_gemma_default tts_oute_default tts_use_guide_tokens",
    "which models a server holds": (
        "models_dir models_preset models_max=1 models_autoload fim_qwen_1.5b_default fim_qwen_3b_default fim_qwen_7b_default "
        "fim_qwen_7b_spec fim_qwen_14b_spec fim_qwen_30b_default gpt_oss_20b_default gpt_oss_120b_default "
        "vision_gemma_4b_default vision_gemma_12b_default"
    ),
    "when the model is unloaded": "sleep_idle_seconds=-1",
}
_PAIRS = """
    agent cors_credentials direct_io escape jinja kv_offload log_jsonl log_prefix log_timestamps mmap mmproj_auto mmproj_offload
    models_autoload perf prefill_assistant reasoning_preserve repack skip_chat_parsing slots
    spec_draft_backend_sampling ui ui_mcp_proxy warmup
"""
_NAMES = [
    name.partition("=")[0]
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
]


def _kind(name: str) -> str:
    if name in _PAIRS.split():
        return "pair"
    if name in _SWITCHES.split():
        return "switch"
    return "optional" if name in _OPTIONAL.split() else "value"


_ALIASES = {
    "model": "model_file",
    "hfr": "hf_repo",
    "n_gpu_layers": "gpu_layers",
    "n_predict": "predict",
    "temperature": "temp",
    "typical": "typical_p",
    "top_nsigma": "top_n_sigma",
    "sampling_seq": "sampler_seq",
    "log_verbose": "verbose",
    "log_verbosity": "verbosity",
    "embeddings": "embedding",
    "reranking": "rerank",
    "swa_checkpoints": "ctx_checkpoints",
    "webui": "ui",
    "webui_config": "ui_config",
    "webui_config_file": "ui_config_file",
    "webui_mcp_proxy": "ui_mcp_proxy",
    "model_draft": "spec_draft_model",
    "hf_repo_draft": "spec_draft_hf",
    "threads_draft": "spec_draft_threads",
    "threads_batch_draft": "spec_draft_threads_batch",
    "cpu_mask_draft": "spec_draft_cpu_mask",
    "cpu_range_draft": "spec_draft_cpu_range",
    "cpu_strict_draft": "spec_draft_cpu_strict",
    "prio_draft": "spec_draft_prio",
    "poll_draft": "spec_draft_poll",
    "cpu_mask_batch_draft": "spec_draft_cpu_mask_batch",
    "cpu_strict_batch_draft": "spec_draft_cpu_strict_batch",
    "prio_batch_draft": "spec_draft_prio_batch",
    "poll_batch_draft": "spec_draft_poll_batch",
    "override_tensor_draft": "spec_draft_override_tensor",
    "spec_draft_cpu_moe": "cpu_moe_draft",
    "spec_draft_ncmoe": "spec_draft_n_cpu_moe",
    "n_cpu_moe_draft": "spec_draft_n_cpu_moe",
    "draft_p_split": "spec_draft_p_split",
    "draft_p_min": "spec_draft_p_min",
    "device_draft": "spec_draft_device",
    "gpu_layers_draft": "spec_draft_ngl",
    "n_gpu_layers_draft": "spec_draft_ngl",
    "cache_type_k_draft": "spec_draft_type_k",
    "cache_type_v_draft": "spec_draft_type_v",
    "draft": "spec_draft_n_max",
    "draft_n": "spec_draft_n_max",
    "draft_max": "spec_draft_n_max",
    "draft_min": "spec_draft_n_min",
    "draft_n_min": "spec_draft_n_min",
    "n_parallel": "parallel",
    "n_ctx": "ctx_size",
    "n_batch": "batch_size",
    "n_ubatch": "ubatch_size",
    "grp_attn_n": "group_attn_n",
    "grp_attn_w": "group_attn_w",
}
_SHORTS = {
    "m": "model_file", "hf": "hf_repo", "hfr": "hf_repo", "hff": "hf_file", "hft": "hf_token", "mu": "model_url",
    "dr": "docker_repo", "c": "ctx_size", "np": "parallel", "b": "batch_size", "ub": "ubatch_size", "n": "predict",
    "fa": "flash_attn", "ngl": "gpu_layers", "ctk": "cache_type_k", "ctv": "cache_type_v", "sps": "slot_prompt_similarity",
    "cram": "cache_ram", "kvu": "kv_unified", "no-kvu": "no_kv_unified", "cb": "cont_batching", "nocb": "no_cont_batching",
    "kvo": "kv_offload", "nkvo": "no_kv_offload", "nr": "no_repack", "t": "threads", "tb": "threads_batch", "C": "cpu_mask",
    "Cr": "cpu_range", "Cb": "cpu_mask_batch", "Crb": "cpu_range_batch", "e": "escape", "dt": "defrag_thold",
    "lm": "load_mode", "lzm": "lazy_mode", "dev": "device", "ot": "override_tensor", "cmoe": "cpu_moe", "ncmoe": "n_cpu_moe",
    "ncffn": "n_cpu_ffn", "sm": "split_mode", "ts": "tensor_split", "mg": "main_gpu", "fit": "fit", "fitt": "fit_target",
    "fitc": "fit_ctx", "v": "verbose", "lv": "verbosity", "s": "seed", "l": "logit_bias", "j": "json_schema",
    "jf": "json_schema_file", "bs": "backend_sampling", "lcs": "lookup_cache_static", "lcd": "lookup_cache_dynamic",
    "ctxcp": "ctx_checkpoints", "cms": "checkpoint_min_step", "r": "reverse_prompt", "sp": "special", "mm": "mmproj",
    "mmu": "mmproj_url", "mmdev": "mmproj_device", "a": "alias", "ag": "agent", "no-ag": "no_agent", "to": "timeout",
    "rea": "reasoning", "md": "spec_draft_model", "hfd": "spec_draft_hf", "hfrd": "spec_draft_hf",
    "td": "spec_draft_threads", "tbd": "spec_draft_threads_batch", "Cd": "spec_draft_cpu_mask", "Crd": "spec_draft_cpu_range",
    "Cbd": "spec_draft_cpu_mask_batch", "otd": "spec_draft_override_tensor", "cmoed": "cpu_moe_draft",
    "ncmoed": "spec_draft_n_cpu_moe", "devd": "spec_draft_device", "ngld": "spec_draft_ngl", "ctkd": "spec_draft_type_k",
    "ctvd": "spec_draft_type_v", "gan": "group_attn_n", "gaw": "group_attn_w", "dio": "direct_io", "ndio": "no_direct_io",
    "cl": "cache_list", "mv": "model_vocoder", "hfrv": "hf_repo_v", "hffv": "hf_file_v", "spf": "system_prompt_file",
}  # fmt: skip
_ENVIRONMENT = {
    "N_PARALLEL": "parallel",
    "BATCH": "batch_size",
    "UBATCH": "ubatch_size",
    "N_GPU_LAYERS": "gpu_layers",
    "MODEL": "model_file",
    "N_PREDICT": "predict",
    "LOG_VERBOSITY": "verbosity",
    "ENDPOINT_METRICS": "metrics",
    "ENDPOINT_SLOTS": "slots",
    "ENDPOINT_PROPS": "props",
    "THINK": "reasoning_format",
    "EMBEDDINGS": "embedding",
    "RERANKING": "rerank",
}


def _of_repository(value: str, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> str | None:
    """The format of a repository's file, which a flag of its own may name."""
    if flags.get("hf_file"):
        return quant_of(str(flags["hf_file"]))
    _, colon, tag = value.partition(":")
    if colon:
        return quant_of(tag)
    return quant_of(value) or ("mxfp4_moe" if _ONE_FILE.fullmatch(value) else HUB_DEFAULT)


def _drafts(_value: Any, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the flags of drafts say together of a pool's `speculative`."""
    given = pool.get("speculative") or {}
    words = [word.strip() for word in str(flags.get("spec_type") or "none").split(",")]
    types = [word for word in words if word != "none"]
    drafter = flags.get("spec_draft_hf") or flags.get("spec_draft_model")
    if not types and not drafter and not given:
        return None  # as the server: a number of drafts alone drafts nothing
    if len(types) > 1 or (types and types[0] not in DRAFT_TYPES):
        near = None if types[0].startswith("ngram") else nearest(types[0], list(DRAFT_TYPES))
        raise InputError(
            f"--spec-type {','.join(types)} is not simulated: {_UNKNOWN_TYPES}",
            where="deployment.engine_args.spec_type",
            mend=f"did you mean {near}?" if near and len(types) == 1 else f"remove it, or use one of {', '.join(DRAFT_TYPES)}",
        )
    found: dict[str, Any] = {}
    if types:
        found["method"] = DRAFT_TYPES[types[0]]
    elif not given.get("method"):
        found["method"] = "eagle3" if "eagle3" in str(drafter).lower().replace("-", "") else "draft_model"
    if "spec_draft_n_max" in flags:
        found["num_speculative_tokens"] = flags["spec_draft_n_max"]
    if drafter and (found.get("method") or given.get("method")) == "draft_model":
        stem = str(drafter).rstrip("/").rpartition("/")[2]
        if not given.get("model"):
            found["model"] = re.sub(_PACKED, "", stem.partition(":")[0])
        if not given.get("weights"):
            tag = stem.partition(":")[2]
            quant = quant_of(tag) if tag else quant_of(stem)
            if quant or flags.get("spec_draft_hf"):
                found["weights"] = quant or HUB_DEFAULT
    return found


_LAUNCHER = Launcher(
    programs=(r"llama-server(?:-[0-9a-f]{6,40}|-b[0-9]+|-latest)?(?:\.exe)?", r"llama serve", r"llama-cpp-server"),
    example="llama-server --model MODEL.gguf --flag value",
    image=r"[^\s:=]*(?:ggml-org|ggerganov)/llama\.cpp[^\s:=]*",
    enters=True,
)

FLAGS = FlagTable(
    engine="llama_cpp",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified({name: _kind(name) for name in _NAMES}, _HARMLESS, _CHANGING, _REFUSED),
    shorts=_SHORTS,
    aliases=_ALIASES,
    typed={
        "model_file": Typed("weights", quant_of),
        "hf_repo": Typed("weights", beside=_of_repository),
        "hf_file": Typed("weights", quant_of),
        "cache_type_k": Typed("kv_cache", KV_TYPES.get),
        "cache_type_v": Typed("kv_cache", KV_TYPES.get),
        **{
            name: Typed("speculative", beside=_drafts)
            for name in ("spec_type", "spec_draft_model", "spec_draft_hf", "spec_draft_n_max")
        },
    },
    environment={
        **{f"LLAMA_ARG_{name.upper()}": name for name in (*_MODELLED, *_NAMES)},
        **{f"LLAMA_ARG_{variable}": name for variable, name in _ENVIRONMENT.items()},
        "ROCBLAS_USE_HIPBLASLT": "hipblaslt",
    },
    prefixes=("LLAMA_ARG_",),
    abbreviated=False,
)
