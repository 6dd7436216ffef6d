"""Flags of MLX LM's server: names, types and defaults, and what they say of a pool's keys.

They follow `mlx_lm/server.py` of 0.32.2 (2026-08).
"""

from __future__ import annotations

import re

from engine_models.cost.draft_methods import SecondModel
from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher
from hardware_profiles.errors import InputError

DRAFTS = SecondModel("MLX LM", "draft_model", "num_draft_tokens", 3)
"""Drafts of a step where nobody says: 3 (datasheet: `--num-draft-tokens`)."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "max_tokens": Flag("int", 512, low=1),
    "decode_concurrency": Flag("int", 32, low=1),
    "prompt_concurrency": Flag("int", 8, low=1),
    "prefill_step_size": Flag("int", 2048, low=1),
    "prompt_cache_size": Flag("int", 10, low=1),
    "prompt_cache_bytes": Flag("str"),
    "kv_bits": Flag("int", None, low=2, high=8),
    "quantized_kv_start": Flag("int", 5000, low=0),
    DRAFTS.model: Flag("str"),
    DRAFTS.number: Flag("int", DRAFTS.default, low=1, high=128),
}

_HARMLESS = """
    allowed_origins chat_template chat_template_args host kv_group_size log_level min_p port
    temp top_k top_p trust_remote_code use_default_chat_template
"""
_CHANGING = {"adapters, which are not simulated": "adapter_path"}
_REFUSED = {
    "how a model is spread over machines": "pipeline",
}
_SWITCHES = ("trust_remote_code", "use_default_chat_template", "pipeline")
_KINDS = {
    name: "switch" if name in _SWITCHES else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}

_SIZES = {"": 1, "M": 10**6, "MB": 10**6, "G": 10**9, "GB": 10**9}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(|M|MB|G|GB)", re.IGNORECASE)

_LAUNCHER = Launcher(
    programs=(r"mlx_lm\.server", r"mlx_lm server", r"-m mlx_lm\.server", r"-m mlx_lm server"),
    example="mlx_lm.server --model MODEL --flag value",
    package="mlx-lm",
)

FLAGS = FlagTable(
    engine="mlx_lm",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    typed={
        "kv_bits": Typed("kv_cache", lambda bits: f"mlx_{bits}bit"),
        DRAFTS.model: Typed("speculative", beside=DRAFTS.said),
        DRAFTS.number: Typed("speculative", beside=DRAFTS.said),
    },
)


def size_bytes(flag: str, text: str) -> int:
    """Bytes of a size as the server writes it (``4GB``, ``500M``, a number); InputError for others."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"{flag}: '{text}' is no size",
            where=f"deployment.engine_args.{flag}",
            mend="write it as 4GB, 500M, or as a number of bytes",
        )
    return int(float(found[1]) * _SIZES[found[2].upper()])


__all__ = ["DRAFTS", "FLAGS", "size_bytes"]
