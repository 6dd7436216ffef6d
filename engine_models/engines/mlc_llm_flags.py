"""What MLC-LLM is told: flags of ``mlc_llm serve``, and the values that its ``--overrides`` lists, which are flags of their own
too.

They follow `python/mlc_llm/cli/serve.py` and `serve/config.py` at 79d603f0 (2026-07). `max_batch_size` is a value of
``mlc_llm gen_config``, which the compiled model fixes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed, snake, typed_value
from engine_models.launcher import Launcher
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.packed_formats import MLC_BITS

OVERRIDES: dict[str, Flag] = {
    "max_num_sequence": Flag("int", None, low=1),
    "max_total_seq_length": Flag("int", None, low=48),
    "prefill_chunk_size": Flag("int", None, low=1),
    "gpu_memory_utilization": Flag("float", 0.85, low=1e-3, high=0.999),
    "context_window_size": Flag("int", None, low=2),
    "tensor_parallel_shards": Flag("int", 1, low=1),
    "prefix_cache_max_num_recycling_seqs": Flag("int", None, low=-1),
    "spec_draft_length": Flag("int", None, low=0),
    "spec_tree_width": Flag("int", 1, low=1),
}
_IGNORED = ("max_history_size", "prefix_cache_mode", "prefill_mode", "opt")
"""Of those that may be listed: of recurrent models, or read from the flags of the same name instead."""
DRAFT_METHODS = {"small_draft": "draft_model", "eagle": "eagle", "medusa": "medusa"}
"""Values of ``--speculative-mode``, and methods of a pool's `speculative`."""
AUTOMATIC = ((10, 4), (20, 3), (30, 2))
"""Numbers of rows below which a small model makes so many drafts where `spec_draft_length` is 0, its default (datasheet:
`auto_spec_decode.cc`, 79d603f0)."""
TREES = "drafts in a tree are not simulated for MLC-LLM"
_NEVER = ("sliding_window_size", "attention_sink_size", "pipeline_parallel_stages")

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "mode": Flag("str", "local", choices=("local", "interactive", "server")),
    "overrides": Flag("str", None),
    "prefix_cache_mode": Flag("str", "radix", choices=("radix", "disable")),
    "prefill_mode": Flag("str", "hybrid", choices=("hybrid", "chunked")),
    "kv_cache_page_size": Flag("int", 16, low=16, high=16),
    "max_batch_size": Flag("int", 128, low=1),
    "speculative_mode": Flag("str", "disable", choices=("disable", *DRAFT_METHODS)),
    "additional_models": Flag("texts", None),
    **OVERRIDES,
}

_SWITCHES = "allow_credentials enable_debug enable_tracing"
_HARMLESS = """
    allow_credentials allow_headers allow_methods allow_origins api_key device embedding_model embedding_model_lib enable_debug
    host model_lib port
"""
_CHANGING = {"the host's time": "enable_tracing"}
_REFUSED = {
    "how long a token is seen, and which layers a device has (not simulated for MLC-LLM)": " ".join(
        f"{name}=-1|1" for name in _NEVER
    ),
}
_KINDS = {
    name.partition("=")[0]: "switch" if name in _SWITCHES.split() else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}


def overridden(text: Any) -> dict[str, Any]:
    """The values in ``--overrides "a=1;b=2"``; InputError for names and values that there are not."""
    found: dict[str, Any] = {}
    where = "deployment.engine_args.overrides"
    for part in filter(None, (part.strip() for part in str(text or "").split(";"))):
        name, equals, value = part.partition("=")
        key = snake(name)
        if key in _NEVER or not equals:
            raise InputError(f"`{part}` in overrides is not simulated", where=where, mend="remove it")
        if key in OVERRIDES:
            found[key] = typed_value(OVERRIDES[key], key, value)
        elif key not in _IGNORED:
            close = nearest(key, [*OVERRIDES, *_IGNORED])
            raise InputError(
                f"MLC-LLM has no override `{key}`",
                where=where,
                mend=f"did you mean `{close}`?" if close else "remove it, or check its spelling",
            )
    return found


def settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """All flags with their defaults; what `overrides` lists may not contradict a flag."""
    listed = overridden(flags.get("overrides"))
    for name, value in listed.items():
        if flags.get(name, value) != value:
            raise InputError(
                f"`{name}` is {flags[name]}, and {value} in `overrides`",
                where=f"deployment.engine_args.{name}",
                mend="remove one of the two",
            )
    return {name: flag.default for name, flag in _MODELLED.items()} | dict(flags) | listed


def _drafts(mode: str, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the flags of drafts say of a pool's `speculative`."""
    if mode == "disable":
        return None
    given = {**flags, **overridden(flags.get("overrides"))}
    length = given.get("spec_draft_length")
    if not length and mode != "small_draft":
        raise InputError(
            f"MLC-LLM does not choose the number of drafts by itself in mode {mode}",
            where="deployment.engine_args.spec_draft_length",
            mend="give a number, such as spec_draft_length: 4",
        )
    if given.get("spec_tree_width", 1) > 1:
        raise InputError(
            TREES,
            where="deployment.engine_args.spec_tree_width",
            mend="leave spec_tree_width out",
        )
    found: dict[str, Any] = {"method": DRAFT_METHODS[mode], "num_speculative_tokens": length or AUTOMATIC[0][1]}
    models = given.get("additional_models")
    if models and mode == "small_draft" and not (pool.get("speculative") or {}).get("model"):
        found["model"] = re.sub(_COMPILED, "", str(models[0]).partition(",")[0].rsplit("/", 1)[-1])
    return found


_COMPILED = rf"(?i)-({'|'.join(MLC_BITS)})-mlc$"
"""What a compiled model's name adds to that of the model."""

FLAGS = FlagTable(
    engine="mlc_llm",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(r"mlc_llm serve", r"-m mlc_llm serve"),
        example='mlc_llm serve MODEL --mode server --overrides "max_num_sequence=32"',
        package="mlc-llm",
    ),
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={"max_total_sequence_length": "max_total_seq_length"},
    typed={
        "tensor_parallel_shards": Typed("tensor_parallel"),
        "speculative_mode": Typed("speculative", beside=_drafts),
        "overrides": Typed("tensor_parallel", lambda text: overridden(text).get("tensor_parallel_shards")),
    },
    converted=rf"(?i:.*-({'|'.join(MLC_BITS)})-mlc)",
)
