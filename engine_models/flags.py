"""Engine flags: names, types and defaults, read from keys or from a pasted launch command.

An engine is one `FlagTable`: the flags that the simulation reads, those that change nothing it predicts, and
those that do change something but are not modelled (they warn). vLLM's names, types and defaults follow
vLLM 0.33.0 (``vllm/config``, ``vllm/engine/arg_utils.py``, ``vllm/entrypoints/openai/cli_args.py``); flags of
older releases that people still paste stand beside them.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from engine_models.model.formats import format_named
from hardware_profiles.errors import InputError, nearest


@dataclass(frozen=True)
class Flag:
    """One flag that the simulation reads.

    kind : "int", "float", "str", "bool", "json", "ints" (a list), or "count" (an integer that may carry the
        suffix k, m, g for powers of 1000 or K, M, G for powers of 1024).
    default : the engine's default, None where the engine decides it from the hardware or the model.
    low, high : smallest and largest value (of every item of a list), None for no bound.
    choices : the values of a "str", empty for any.
    special : texts and numbers accepted beside the kind and bounds.
    """

    kind: str
    default: Any = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    special: tuple[Any, ...] = ()


@dataclass(frozen=True)
class FlagTable:
    """The flags of one engine, names in snake_case.

    modelled : flags the simulation reads.
    harmless : flags that change nothing it predicts, with the number of values they take (-1: any number).
    unmodelled : flags that change something it does not predict, likewise.
    shorts : short spellings without the dash, such as ``tp``.
    aliases : other long names.
    typed : flag name -> (pool key, reading of the flag as that key's value; None: says nothing).
    launched : finds the arguments among the words of a launch command, or returns None.
    launch_example : for the mend.
    """

    engine: str
    modelled: dict[str, Flag]
    harmless: dict[str, int]
    unmodelled: dict[str, int]
    shorts: dict[str, str]
    aliases: dict[str, str]
    typed: dict[str, tuple[str, Callable[[Any], Any]]]
    launched: Callable[[list[str]], list[str] | None]
    launch_example: str


@dataclass(frozen=True)
class EngineFlags:
    """Flags as given: snake_case names and typed values, the model of a launch command, warnings in words."""

    values: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    warnings: list[str] = field(default_factory=list)


def parse_engine_args(engine: str, args: dict[str, Any] | str) -> EngineFlags:
    """Return the flags in `args`: a dict of flag names, or a pasted launch command.

    `engine` may carry a version (``vllm@0.15.1``). For an engine without a table a dict passes unread.
    Raises InputError (its `where` the flag) for unknown flags, wrong values, and text that is no command.

    >>> parse_engine_args("vllm", "vllm serve org/m -tp 4 --max-model-len=32k").values
    {'tensor_parallel_size': 4, 'max_model_len': 32000}
    """
    name = engine.partition("@")[0].strip().lower()
    table = table_of(name)
    if isinstance(args, str):
        if not args.strip():
            return EngineFlags()
        if table is None:
            raise InputError(
                f"a pasted launch command of '{name}' cannot be read yet",
                mend="write the flags as keys: engine_args: {flag_name: value}",
            )
        return _Command(table).read(args)
    if table is None:
        return EngineFlags({_snake(key): value for key, value in args.items()})
    return _from_keys(table, args)


def flag_defaults(engine: str) -> dict[str, Any]:
    """Return every modelled flag of `engine` with its default (None: decided by hardware or model)."""
    table = table_of(engine)
    return {name: flag.default for name, flag in table.modelled.items()} if table else {}


# Keys -----------------------------------------------------------------------------------------------------


def _snake(name: str) -> str:
    return name.strip().lstrip("-").replace("-", "_")


def _from_keys(table: FlagTable, args: Mapping[str, Any]) -> EngineFlags:
    found = EngineFlags()
    for key, value in args.items():
        name, negated = _resolve(table, _snake(key), key)
        if name in found.values:
            raise InputError(f"flag `{name}` is given twice", where=key, mend="keep one of its spellings")
        if name not in table.modelled:
            _note(table, name, found)
            continue
        typed = _typed(table.modelled[name], key, value)
        if negated and not isinstance(typed, bool):
            raise InputError(f"`{key}` must be true or false", where=key, mend=f"write {key}: true")
        if typed is not None:
            found.values[name] = not typed if negated else typed
    model = found.values.pop("model", None)
    return EngineFlags(found.values, model, found.warnings)


def _resolve(table: FlagTable, name: str, shown: str) -> tuple[str, bool]:
    """Return the flag's own name and whether `name` is its ``no_`` form."""
    name = table.aliases.get(name, name)
    if name in table.modelled or name in table.harmless or name in table.unmodelled:
        return name, False
    if name.startswith("no_"):
        positive = table.aliases.get(name[3:], name[3:])
        flag = table.modelled.get(positive)
        if (
            (flag and flag.kind == "bool")
            or table.harmless.get(positive) == 0
            or table.unmodelled.get(positive) == 0
        ):
            return positive, True
    known = [*table.modelled, *table.harmless, *table.unmodelled]
    near = _own_word(table.engine, name) or nearest(name, known)
    dashed = shown.startswith("-")
    spelled = ("--" + near.replace("_", "-") if dashed else near) if near else None
    raise InputError(
        f"{table.engine} has no flag `{shown}`",
        where=shown,
        mend=f"did you mean `{spelled}`?" if spelled else "remove it, or check its spelling",
    )


_SAME_FLAGS = (
    {"vllm": "max_num_seqs", "sglang": "max_running_requests"},
    {"vllm": "max_model_len", "sglang": "context_length"},
    {"vllm": "max_num_batched_tokens", "sglang": "chunked_prefill_size"},
    {"vllm": "gpu_memory_utilization", "sglang": "mem_fraction_static"},
    {"vllm": "block_size", "sglang": "page_size"},
    {"vllm": "tensor_parallel_size", "sglang": "tp_size"},
    {"vllm": "data_parallel_size", "sglang": "dp_size"},
    {"vllm": "no_enable_prefix_caching", "sglang": "disable_radix_cache"},
    {"vllm": "enforce_eager", "sglang": "disable_cuda_graph"},
    {"vllm": "max_cudagraph_capture_size", "sglang": "cuda_graph_max_bs"},
)
"""Flags of the engines that say the same: a name from another engine is answered with the engine's own."""


def _own_word(engine: str, name: str) -> str | None:
    """The flag of `engine` that says what `name` says to another engine, if there is one."""
    same = next((flags for flags in _SAME_FLAGS if name in flags.values()), {})
    return same.get(engine)


def _note(table: FlagTable, name: str, found: EngineFlags) -> None:
    if name in table.unmodelled:
        found.warnings.append(f"{table.engine} flag `{name}` is not modelled and was ignored")


# Values ---------------------------------------------------------------------------------------------------

_COUNT = re.compile(r"([-+]?[0-9]+(?:\.[0-9]+)?)([kmgtKMGT]?)")
_POWER = {"k": 1, "m": 2, "g": 3, "t": 4}
_DESCRIBED = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "json": "a JSON object",
    "ints": "a list of whole numbers",
    "count": "a whole number (32768, 32k or 32K)",
}


def _typed(flag: Flag, shown: str, value: Any) -> Any:
    """Return `value` (from YAML or from a command line) as the flag's type; None stays None."""
    if value is None or any(value == s and type(value) is type(s) for s in flag.special):
        return value
    if isinstance(value, str):
        specials = {str(s): s for s in flag.special}
        if value in specials:
            return specials[value]
        if "$" in value and flag.kind != "str":
            raise InputError(
                f"`{shown}` is {value}, a variable of the shell", where=shown, mend="write its value instead"
            )
    read = _READERS[flag.kind](value)
    if read is None:
        raise InputError(
            f"`{shown}` must be {_DESCRIBED[flag.kind]}, not {value!r}", where=shown, mend="check the value"
        )
    if flag.choices and read not in flag.choices:
        near = nearest(read, list(flag.choices))
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(
            f"`{shown}` cannot be '{read}'", where=shown, mend=f"{hint}choices: {', '.join(flag.choices)}"
        )
    for number in read if isinstance(read, list) else [read]:
        if not isinstance(number, int | float) or isinstance(number, bool):
            continue
        low = flag.low is not None and number < flag.low
        if low or (flag.high is not None and number > flag.high):
            bound = f"at least {flag.low:g}" if low else f"at most {flag.high:g}"
            raise InputError(
                f"`{shown}` is {number:g}; it must be {bound}", where=shown, mend=f"give {bound}"
            )
    return read


def _int(value: Any) -> int | None:
    if isinstance(value, str):
        return int(value) if re.fullmatch(r"[-+]?[0-9]{1,18}", value) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _str(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value}"
    return value if isinstance(value, str) else None


def _bool(value: Any) -> bool | None:
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.lower())
    return value if isinstance(value, bool) else None


def _json(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return None
    return value if isinstance(value, dict) else None


def _ints(value: Any) -> list[int] | None:
    if isinstance(value, str):
        value = value.strip("[]").replace(",", " ").split()
    if isinstance(value, int):
        value = [value]
    if not isinstance(value, list | tuple) or not value:
        return None
    numbers = [_int(v) for v in value]
    return None if any(n is None for n in numbers) else [n for n in numbers if n is not None]


def _count(value: Any) -> int | None:
    if not isinstance(value, str):
        return _int(value)
    found = _COUNT.fullmatch(value)
    if found is None or len(value) > 18:
        return None
    digits, suffix = found[1], found[2]
    base = 1000 if suffix.islower() else 1024
    if "." in digits and base == 1024:
        return None  # vLLM takes decimals with the decimal suffixes only
    power = int(base ** _POWER[suffix.lower()]) if suffix else 1
    return round(float(digits) * power) if "." in digits else int(digits) * power


_READERS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "str": _str,
    "bool": _bool,
    "json": _json,
    "ints": _ints,
    "count": _count,
}


# Commands -------------------------------------------------------------------------------------------------

_ENVIRONMENT_KEYS = {
    "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1": "; write activations: fp8 in the pool",
    "VLLM_MXFP4_USE_MARLIN=1": "; write --moe-backend marlin",
}
"""Environment settings that a key of the pool or a flag states, with the words that say so (vLLM 0.15, `mxfp4.py`: on
Blackwell experts in mxfp4 keep bf16 activations unless the first is set, and the second chooses Marlin for them; later
versions take ``--moe-backend`` instead)."""

_REDIRECTION = re.compile(r"\s[0-9]?>>?\s*(&[0-9]|[^\s&|;]+)")
_ENDS_COMMAND = re.compile(r"[;&|]+")
_NUMBER = re.compile(r"-[0-9.]+")


class _Command:
    """Reads a launch command as the engine's own parser would; the last of repeated flags wins."""

    def __init__(self, table: FlagTable) -> None:
        self.table = table
        self.found = EngineFlags()
        self.model: str | None = None

    def read(self, text: str) -> EngineFlags:
        before: list[str] = []
        for words in _commands(text):
            arguments = self.table.launched(words)
            if arguments is not None:
                before += words[: len(words) - len(arguments)]
                break
            before += words
        else:
            raise InputError(
                f"this is no launch command of {self.table.engine}",
                where=before[0] if before else None,
                mend=f"paste the whole command (`{self.table.launch_example}`), or only its flags",
            )
        for word in before:
            named = re.match(rf"({self.table.engine.upper()}_[A-Z0-9_]+)=", word)
            if named:
                instead = _ENVIRONMENT_KEYS.get(word, "")
                self.found.warnings.append(
                    f"environment variable {named[1]} is not modelled and was ignored{instead}"
                )
        self.arguments(arguments)
        model = self.found.values.pop("model", None) or self.model
        return EngineFlags(self.found.values, model, self.found.warnings)

    def arguments(self, words: list[str]) -> None:
        at = 0
        while at < len(words):
            word = words[at]
            at += 1
            if not word.startswith("-") or word == "-":
                self.positional(word)
                continue
            shown, equals, inline = word.partition("=")
            name, inline_value = self.flag_name(shown, inline if equals else None)
            name, _, inside = name.partition(".")
            name, negated = _resolve(self.table, name, shown)
            flag = self.table.modelled.get(name)
            if flag is not None and flag.kind == "bool":
                value: Any = "true"
                if inline_value is not None:
                    value = inline_value
                elif not negated and at < len(words) and words[at].lower() in ("true", "false"):
                    value = words[at]
                    at += 1
                read = _typed(flag, shown, value)
                self.store(name, shown, (not read) if negated else read)
                continue
            count = 1 if flag is not None else self.arity(name)
            many = count == -1 or (flag is not None and flag.kind == "ints")
            values = [inline_value] if inline_value is not None else []
            while at < len(words) and (many or len(values) < count) and not _is_flag(words[at]):
                values.append(words[at])
                at += 1
            if len(values) < count or (flag is not None and not values):
                raise InputError(f"`{shown}` lacks its value", where=shown, mend=f"write {shown} VALUE")
            if flag is None:
                _note(self.table, name, self.found)
            elif inside:
                self.store_inside(name, inside, shown, values[0])
            else:
                self.store(
                    name, shown, _typed(flag, shown, " ".join(values) if flag.kind == "ints" else values[0])
                )

    def flag_name(self, shown: str, inline: str | None) -> tuple[str, str | None]:
        if shown.startswith("--"):
            return shown[2:].replace("-", "_"), inline
        short, dot, inside = shown[1:].partition(".")
        if short in self.table.shorts:
            return self.table.shorts[short] + dot + inside, inline
        glued = re.fullmatch(r"([A-Za-z])([0-9].*)", short)  # -O3
        if glued and glued[1] in self.table.shorts:
            return self.table.shorts[glued[1]], glued[2]
        return short.replace("-", "_"), inline

    def arity(self, name: str) -> int:
        return self.table.harmless.get(name, self.table.unmodelled.get(name, 0))

    def positional(self, word: str) -> None:
        if self.model is not None:
            raise InputError(
                f"'{word}' stands beside the model '{self.model}'",
                where=word,
                mend="check the flag before it: it takes no value, or its value is split by a space",
            )
        self.model = word

    def store(self, name: str, shown: str, value: Any) -> None:
        if name in self.found.values and self.found.values[name] != value:
            self.found.warnings.append(
                f"`{shown}` is given twice; the last value, {value}, counts as in the engine"
            )
        self.found.values[name] = value

    def store_inside(self, name: str, inside: str, shown: str, text: str) -> None:
        """``--speculative-config.num_speculative_tokens 3``: one key of a JSON flag."""
        if self.table.modelled[name].kind != "json":
            raise InputError(
                f"`{shown}` has no parts", where=shown, mend=f"write --{name.replace('_', '-')} VALUE"
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        place = self.found.values.setdefault(name, {})
        *outer, last = inside.split(".")
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = value


def _is_flag(word: str) -> bool:
    return word.startswith("-") and len(word) > 1 and not _NUMBER.fullmatch(word)


def _commands(text: str) -> list[list[str]]:
    """Split shell text into commands of words: continuations joined, comments and redirections dropped."""
    text = re.sub(r"(?m)^\s*#.*$|\s#\s.*$", "", text)
    joined = re.sub(r"\\[ \t]*\r?\n", " ", text.strip()).removesuffix("\\")
    joined = re.sub(r"(?m)^\s*[$>]\s+", "", joined)  # a prompt copied with the command
    lexer = shlex.shlex(_REDIRECTION.sub(" ", joined), posix=True, punctuation_chars=";&|")
    lexer.whitespace_split = True
    lexer.commenters = ""
    try:
        words = list(lexer)
    except ValueError:
        raise InputError("a quote in the launch command is not closed", mend="close the quote") from None
    commands: list[list[str]] = [[]]
    for word in words:
        if _ENDS_COMMAND.fullmatch(word):
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


# vLLM -----------------------------------------------------------------------------------------------------

_VLLM_MODELLED: dict[str, Flag] = {
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


def by_arity(*groups: tuple[str, int]) -> dict[str, int]:
    """Return name -> number of values (-1: any number) from lists of names in one text each."""
    return {name: arity for names, arity in groups for name in names.split()}


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


def _vllm_launched(words: list[str]) -> list[str] | None:
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


VLLM = FlagTable(
    engine="vllm",
    modelled=_VLLM_MODELLED,
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
        "tensor_parallel_size": ("tensor_parallel", lambda v: v),
        "pipeline_parallel_size": ("pipeline_parallel", lambda v: v),
        "data_parallel_size": ("data_parallel", lambda v: v),
        "enable_expert_parallel": ("expert_parallel", lambda v: v),
        "quantization": ("weights", _QUANTIZED_WEIGHTS.get),
        "kv_cache_dtype": ("kv_cache", _kv_format),
        "speculative_config": ("speculative", speculative_settings),
        "num_speculative_tokens": ("speculative", lambda v: {"num_speculative_tokens": v}),
        "enable_lora": ("lora", lambda v: {"enable_lora": True} if v else None),
        "kv_offloading_size": ("offload", lambda v: {"kv_offloading_size": v} if v else None),
        "kv_transfer_config": ("offload", offload_settings),
    },
    launched=_vllm_launched,
    launch_example="vllm serve MODEL --flag value",
)


def table_of(engine: str) -> FlagTable | None:
    """Return the flags of an engine, named with or without a version; None for an engine without a table."""
    name = engine.partition("@")[0].strip().lower()
    if name == "sglang":
        from engine_models.engines.sglang import SGLANG  # its module reads this one

        return SGLANG
    return {"vllm": VLLM}.get(name)


"""Flag tables by engine name."""


# Typed keys -----------------------------------------------------------------------------------------------


def reconcile(
    pool: Mapping[str, Any],
    flags: EngineFlags,
    *,
    given: Collection[str],
    model: str | dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the pool's typed keys that `flags` fill in, as a dict of the keys that change.

    Parameters
    ----------
    pool : the pool's keys and values, defaults included.
    given : the keys that the scenario states; a flag may not contradict those, and fills the others.
    model : the scenario's model, which a launch command may not contradict.

    Raises InputError naming the flag and the key when the two differ.
    """
    table = table_of(str(pool["engine"]))
    updates: dict[str, Any] = {}
    if table is None:
        return updates
    for flag, value in flags.values.items():
        if flag not in table.typed:
            continue
        key, reading = table.typed[flag]
        wanted = reading(value)
        if flag == "tensor_parallel_size":
            wanted = _attention_ranks(value, flags.values, pool)
        if wanted is None:
            continue
        present = updates.get(key, pool[key])
        if key in ("speculative", "offload"):
            updates[key] = _merged(flag, key, present, wanted)
            continue
        if (key in given or key in updates) and not _same(key, present, wanted):
            of_all = flag == "tensor_parallel_size" and wanted != value
            said = f"{_word(value)} over all ranks, {_word(wanted)} in each" if of_all else _word(value)
            raise InputError(
                f"flag `{flag}` ({said}) contradicts the pool's key `{key}` ({_word(present)})",
                where=flag,
                mend=f"remove one of the two, or write {key}: {_word(wanted)}",
            )
        if key not in given:
            updates[key] = wanted
    _check_dtype(pool, flags, given)
    _check_model(flags, model)
    return {key: value for key, value in updates.items() if pool[key] != value}


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


def _merged(
    flag: str, key: str, present: Mapping[str, Any] | None, wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a pool's key and of a flag together: what one leaves out the other may say."""
    merged = {name: value for name, value in (present or {}).items() if value is not None}
    for name, value in wanted.items():
        if name in merged and merged[name] != value and tuple_of(merged[name]) != tuple_of(value):
            raise InputError(
                f"flag `{flag}` ({name}: {_word(value)}) contradicts the pool's key `{key}` "
                f"({name}: {_word(merged[name])})",
                where=flag,
                mend="remove one of the two",
            )
        merged.setdefault(name, value)
    return merged


def tuple_of(value: Any) -> Any:
    """A list as a tuple, anything else as it is: YAML reads lists, the schema keeps tuples."""
    return tuple(value) if isinstance(value, list) else value


def _same(key: str, present: Any, wanted: Any) -> bool:
    if key in ("weights", "kv_cache") and isinstance(present, str):
        try:
            return format_named(present).name == format_named(wanted).name or present.startswith(f"{wanted}_")
        except InputError:
            return True  # not a format of this page; the catalogue will say so
    if key == "expert_parallel":
        return bool(present) == bool(wanted)
    return bool(present == wanted)


def _check_dtype(pool: Mapping[str, Any], flags: EngineFlags, given: Collection[str]) -> None:
    """``--dtype`` fixes the 16-bit arithmetic; it says nothing about quantized weights or activations."""
    dtype = flags.values.get("dtype", "auto")
    if dtype == "auto":
        return
    wide = ("bf16", "fp16", "fp32")
    wanted = format_named(dtype, where="dtype").name
    for key in ("weights", "activations"):
        present = pool.get(key)
        if key in given and present in wide and present != wanted:
            raise InputError(
                f"flag `dtype` ({dtype}) contradicts the pool's key `{key}` ({present})",
                where="dtype",
                mend=f"remove one of the two, or write {key}: {wanted}",
            )


def _check_model(flags: EngineFlags, model: str | dict[str, Any] | None) -> None:
    if (
        flags.model is None
        or not isinstance(model, str)
        or "$" in flags.model
        or "/" in (flags.model[0], model[0])
    ):
        return  # a folder's name says nothing about the model in it
    if _base(flags.model) != _base(model):
        raise InputError(
            f"the launch command serves '{flags.model}', the scenario's key `model` is '{model}'",
            where="model",
            mend=f"write model: {flags.model}, or paste the command of {model}",
        )


def _base(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
