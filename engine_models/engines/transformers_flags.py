"""Flags of transformers: those of `transformers serve`, fields of its configurations, and what they say of a pool's keys.

They follow `cli/serve.py` and `ContinuousBatchingConfig` of 5.24.0. `mode`, `batch_size` and `max_length` are no flags of the
server: `mode: continuous` is `--continuous-batching`, the others are arguments of `pipeline` and `generate`.
"""

from __future__ import annotations

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed, float32_weights
from engine_models.launcher import Launcher

_WEIGHTS = {"bnb-8bit": "int8", "bnb-4bit": "nf4"}
"""Values of ``--quantization`` and the format that they fix."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "mode": Flag("str", "static", choices=("static", "continuous")),
    "continuous_batching": Flag("bool", False),
    "batch_size": Flag("int", 1, low=1),
    "max_length": Flag("int", None, low=2),
    "attn_implementation": Flag("str", None),
    "dtype": Flag("str", "auto", choices=("auto", "float32", "float16", "bfloat16")),
    "quantization": Flag("str", None, choices=tuple(_WEIGHTS)),
    "page_size": Flag("int", 256, low=4),
    "num_blocks": Flag("int", None, low=1),
    "max_batch_tokens": Flag("int", None, low=1),
    "max_memory_percent": Flag("float", None, low=1e-3, high=1.0),
    "max_requests_per_batch": Flag("int", None, low=1),
    "max_blocks_per_request": Flag("int", None, low=0),
    "allow_block_sharing": Flag("bool", True),
    "use_async_batching": Flag("bool", None),
    "use_cuda_graph": Flag("bool", None),
    "q_padding_interval_size": Flag("int", 0, low=0),
    "scheduler_type": Flag("str", "fifo", choices=("fifo", "prefill_first")),
    "safety_margin": Flag("float", None, low=0.0, high=1.0),
}

STATIC_ONLY = ("batch_size", "max_length")
"""What only `generate` reads here."""
CONTINUOUS_ONLY = (
    *("page_size", "num_blocks", "max_batch_tokens", "max_memory_percent", "max_requests_per_batch"),
    *("max_blocks_per_request", "allow_block_sharing", "use_async_batching", "use_cuda_graph"),
    *("q_padding_interval_size", "scheduler_type", "safety_margin"),
)
"""What only continuous batching reads (datasheet: `ContinuousBatchingConfig` of 5.24.0)."""

_SWITCHES = "enable_cors non_blocking trust_remote_code compile return_logprobs"
_HARMLESS = """
    auto_switch_to_flash chat_template_kwargs cpu_group_timeout cpu_offload_space_safety_threshold decision_config default_seed
    device disable_nccl_graph_mixing drop_unsupported_processors enable_cors host kv_padding_interval_size log_level
    max_cached_graphs max_queue_size model_timeout non_blocking per_request_processors port reasoning seed trust_remote_code
    use_default_compile_configs
"""
_CHANGING = {
    "how the layers are compiled": "compile default_compile_level=0 varlen_compile_config decode_compile_config",
    "the host's time": "return_logprobs",
}
_REFUSED = {
    "where the KV cache of starved requests is kept (copies to the host are not priced)": "cpu_offload_space=0|0.0"
}
_KINDS = {
    name.partition("=")[0]: "switch" if name in _SWITCHES.split() else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}

FLAGS = FlagTable(
    engine="transformers",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(
            r"transformers serve",
            r"-m transformers\.cli\.transformers serve",
            r"transformers-cli serve",
        ),
        example="transformers serve MODEL --continuous-batching",
        image=r"[^\s:=]*huggingface/transformers-[^\s:=]*",
        package="transformers",
    ),
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={
        "force_model": "model",
        "block_size": "page_size",
        "cb_block_size": "page_size",
        "cb_num_blocks": "num_blocks",
        "cb_max_batch_tokens": "max_batch_tokens",
        "cb_max_memory_percent": "max_memory_percent",
        "cb_use_cuda_graph": "use_cuda_graph",
    },
    typed={
        "dtype": Typed("weights", float32_weights),
        "quantization": Typed("weights", _WEIGHTS.get),
    },
)
