"""A model's context as flags that override its config change it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.model.blocks import Architecture
from hardware_profiles.errors import InputError

_SHAPES = re.compile(r"layers|hidden|intermediate|heads|experts|head_dim|vocab|window|quantization")
"""Keys of a config that change a model's sizes."""
_NO_SIZES = ("architectures", "rope_theta", "head_dtype", "model_type")


def served_context(arch: Architecture, overrides: Mapping[str, Any], flag: str, warnings: list[str]) -> int:
    """Return the model's context with the keys of its config that `flag` overrides [tokens].

    Positions that are scaled by a factor reach that many times as far as the original ones (both engines do so unless a length is
    given). InputError for keys that change the model's sizes, a warning for others that are not read.
    """
    left = dict(overrides)
    for part in ("text_config", "llm_config"):
        inner = left.pop(part, None)
        left |= inner if isinstance(inner, dict) else {}
    scaling = left.pop("rope_parameters", None) or left.pop("rope_scaling", None)
    context = _length(left.pop("max_position_embeddings", None)) or arch.max_context_tokens
    left = {key: value for key, value in left.items() if key not in _NO_SIZES}
    for key in left:
        if _SHAPES.search(key):
            raise InputError(
                f"{flag} changes `{key}` of the model, which the scenario's key `model` states",
                where=f"deployment.engine_args.{flag}",
                mend="change it in the config that `model` names, and remove it here",
            )
    if left:
        warnings.append(
            f"`{flag}` ({', '.join(left)}) is not read; write what changes the model under `model`"
        )
    factor = scaling.get("factor") if isinstance(scaling, dict) else None
    if isinstance(factor, int | float) and 1 < factor < 1e6:
        return int(factor * (_length(scaling.get("original_max_position_embeddings")) or context))
    return context


def warn_of_longer(context: int, most: int, flag: str, engine: str, variable: str, warnings: list[str]) -> None:
    """Warn of a context [tokens] that is longer than the model's, with which the engine does not start by itself."""
    if context > most:
        warnings.append(
            f"`{flag}` {context:,} is above the model's context of {most:,}: {engine} refuses to start so unless {variable} "
            "is set, which is taken for granted here"
        )


def _length(value: Any) -> int | None:
    return value if isinstance(value, int) and 0 < value < 2**40 else None
