"""Flags of Text Generation Inference's launcher: names, types and defaults, and what they say of a pool's keys.

They follow the launcher of 3.3.7 (`launcher/src/main.rs`). Each may also be set in the environment, by its name in capitals;
`attention`, `prefill_chunking`, `prefix_caching` and `tgi_wiggle_room` only there.
"""

from __future__ import annotations

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher

BLOCK_TOKENS = {"flashinfer": 1, "flashdecoding": 256, "flashdecoding-ipex": 64, "paged": 16}
"""Attention -> tokens of a page (datasheet: `server/text_generation_server/models/globals.py` at db931fcf, 2026-01)."""

_WEIGHTS = {
    "awq": "awq",
    "gptq": "gptq",
    "marlin": "gptq",
    "fp8": "fp8",
    "eetq": "int8_wo",
    "bitsandbytes": "int8_wo",
    "bitsandbytes-nf4": "nf4",
    "bitsandbytes-fp4": "nf4",
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
    "disable_grammar_support": Flag("bool", False),
    "tgi_wiggle_room": Flag("float", 0.9, low=1e-3, high=0.999),
    "lora_adapters": Flag("str", None),
    "speculate": Flag("int", None, low=0),
}

_SWITCHES = """
    disable_custom_kernels enable_prefill_logprobs env json_output ngrok trust_remote_code
"""
_HARMLESS = """
    api_key cors_allow_origin dtype env graceful_termination_timeout hf_token hostname
    huggingface_hub_cache json_output master_addr master_port max_best_of max_client_batch_size max_stop_sequences
    max_top_n_tokens ngrok ngrok_authtoken ngrok_edge otlp_endpoint otlp_service_name payload_limit port prometheus_port
    revision shard_uds_path sharded tokenizer_config_path trust_remote_code usage_stats validation_workers watermark_delta
    watermark_gamma weights_cache_override
"""
_CHANGING = {
    "the speed of kernels": "disable_custom_kernels",
    "the host's time": "enable_prefill_logprobs",
    "the model's context": "rope_factor=1|1.0 rope_scaling",
}
_KINDS = {
    name.partition("=")[0]: "switch" if name in _SWITCHES.split() else "value"
    for text in (_HARMLESS, *_CHANGING.values())
    for name in text.split()
}

_ALIASES = {"model_id": "model", "max_input_length": "max_input_tokens"}


_LAUNCHER = Launcher(
    programs=(r"text-generation-launcher",),
    example="text-generation-launcher --model-id MODEL --flag value",
    image=r"[^\s:=]*text-generation-inference[^\s:=]*",
    published=r"huggingface/text-generation-inference",
    enters=True,
)

FLAGS = FlagTable(
    engine="tgi",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified(_KINDS, _HARMLESS, _CHANGING, {}),
    shorts={"p": "port", "e": "env"},
    aliases=_ALIASES,
    typed={
        "num_shard": Typed("tensor_parallel"),
        "quantize": Typed("weights", _WEIGHTS.get),
        "kv_cache_dtype": Typed("kv_cache", _KV_CACHE.get),
        "lora_adapters": Typed("lora", lambda names: {"max_loras": len(names.split(","))} if names else None),
        "speculate": Typed("speculative", lambda drafts: {"num_speculative_tokens": drafts} if drafts else None),
    },
    environment={name.upper(): _ALIASES.get(name, name) for name in (*_MODELLED, *_ALIASES, *_KINDS)},
    abbreviated=False,
)
