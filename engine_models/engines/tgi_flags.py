"""Flags of Text Generation Inference's launcher: names, types and defaults, and what they say of a pool's keys.

They follow the launcher of 3.3.7 (`launcher/src/main.rs`). Each may also be set in the environment, by its name in capitals;
`attention`, `prefill_chunking`, `prefix_caching` and `tgi_wiggle_room` only there.
"""

from __future__ import annotations

from engine_models.flags import Flag, FlagTable, Typed, by_arity

BLOCK_TOKENS = {"flashinfer": 1, "flashdecoding": 256, "flashdecoding-ipex": 64, "paged": 16}
"""Attention -> tokens of a page (datasheet: `server/text_generation_server/models/globals.py` at db931fcf, 2026-01)."""

_WEIGHTS = {
    "awq": "awq",
    "gptq": "gptq",
    "marlin": "gptq",
    "fp8": "fp8",
    "eetq": "int8_wo",
    "bitsandbytes": "int8_wo",
    "bitsandbytes-nf4": "int4",
    "bitsandbytes-fp4": "int4",
    "compressed-tensors": None,
    "exl2": None,
}
"""Values of ``--quantize`` and the format they fix; None leaves it to the checkpoint."""

_KV_CACHE = {"fp8_e4m3fn": "fp8", "fp8_e5m2": "fp8"}

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "num_shard": Flag("int", None, low=1),
    "quantize": Flag("str", None, choices=tuple(_WEIGHTS)),
    "kv_cache_dtype": Flag("str", None, choices=tuple(_KV_CACHE)),
    "max_concurrent_requests": Flag("int", 128, low=1),
    "max_input_tokens": Flag("int", None, low=1),
    "max_total_tokens": Flag("int", None, low=2),
    "waiting_served_ratio": Flag("float", 0.3, low=0.0),
    "max_batch_prefill_tokens": Flag("int", None, low=1),
    "max_batch_total_tokens": Flag("int", None, low=1),
    "max_waiting_tokens": Flag("int", 20, low=0),
    "max_batch_size": Flag("int", None, low=1),
    "cuda_graphs": Flag("ints", [1, 2, 4, 8, 16, 32], low=0),
    "cuda_memory_fraction": Flag("float", 1.0, low=1e-3, high=1.0),
    "attention": Flag("str", None, choices=tuple(BLOCK_TOKENS)),
    "prefill_chunking": Flag("bool", True),
    "prefix_caching": Flag("bool", None),
    "tgi_wiggle_room": Flag("float", 0.9, low=1e-3, high=0.999),
}

# Of the flags below the simulation reads none; each group is named by the number of values its flags take.
_HARMLESS_SWITCHES = "disable_grammar_support env json_output ngrok trust_remote_code"
_HARMLESS_VALUES = """
    api_key cors_allow_origin dtype graceful_termination_timeout hf_token hostname huggingface_hub_cache master_addr master_port
    max_best_of max_client_batch_size max_stop_sequences max_top_n_tokens ngrok_authtoken ngrok_edge otlp_endpoint
    otlp_service_name payload_limit port prometheus_port revision shard_uds_path sharded tokenizer_config_path usage_stats
    validation_workers watermark_delta watermark_gamma weights_cache_override
"""
_UNMODELLED_SWITCHES = "disable_custom_kernels enable_prefill_logprobs"
_UNMODELLED_VALUES = "lora_adapters rope_factor rope_scaling speculate"

_ALIASES = {"model_id": "model", "max_input_length": "max_input_tokens"}


def _launched(words: list[str]) -> list[str] | None:
    """Arguments after ``text-generation-launcher`` or behind the container image, after what the environment says."""
    for i, word in enumerate(words):
        base = word.rpartition("/")[2]
        if base == "text-generation-launcher" or base.partition(":")[0] == "text-generation-inference":
            after = words[i + 1 :]
            if after and after[0] == "text-generation-launcher":
                after = after[1:]
            return [*_from_environment(words[:i]), *after]
    return words if words and words[0].startswith("-") else None


def _from_environment(words: list[str]) -> list[str]:
    """Flags as the environment sets them: ``NAME=VALUE`` before the command, or ``-e NAME=VALUE`` of a container."""
    out: list[str] = []
    for i, word in enumerate(words):
        name, equals, value = word.removeprefix("--env=").partition("=")
        named_in_place = not word.startswith("-") and (i == 0 or "=" in words[i - 1] or words[i - 1] == "env")
        given = named_in_place or word.startswith("--env=") or words[i - 1] in ("-e", "--env")
        flag = _ALIASES.get(name.lower(), name.lower())
        if equals and value and given and name.isupper() and flag in _MODELLED:
            out += [f"--{flag.replace('_', '-')}={_switched(flag, value)}"]
    return out


def _switched(flag: str, value: str) -> str:
    """Switches are 1 or 0 in the environment."""
    return {"1": "true", "0": "false"}.get(value, value) if _MODELLED[flag].kind == "bool" else value




FLAGS = FlagTable(
    engine="tgi",
    modelled=_MODELLED,
    harmless=by_arity((_HARMLESS_SWITCHES, 0), (_HARMLESS_VALUES, 1)),
    unmodelled=by_arity((_UNMODELLED_SWITCHES, 0), (_UNMODELLED_VALUES, 1)),
    shorts={"p": "port", "e": "env"},
    aliases=_ALIASES,
    typed={
        "num_shard": Typed("tensor_parallel"),
        "quantize": Typed("weights", _WEIGHTS.get),
        "kv_cache_dtype": Typed("kv_cache", _KV_CACHE.get),
    },
    launched=_launched,
    launch_example="text-generation-launcher --model-id MODEL --flag value",
    launch_words=("text-generation-launcher", "text-generation-inference"),
)
