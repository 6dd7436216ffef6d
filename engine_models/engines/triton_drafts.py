"""How Triton's TensorRT-LLM backend drafts: Medusa, EAGLE (chains or trees of choices) and lookahead, by its keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.cost.draft_methods import chains_only
from engine_models.model.blocks import Architecture
from hardware_profiles.errors import InputError

_WHERE = "deployment.engine_args"
TREES = {"medusa": "medusa_choices", "eagle": "eagle_choices"}
"""Method -> the key that states its tree."""
LOOKAHEAD = ("lookahead_window_size", "lookahead_ngram_size", "lookahead_verification_set_size")


def drafts(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of Medusa, EAGLE (their chains, or the trees of their choices) or lookahead, as keys of the backend complete them.

    InputError for what the backend does not draft by, and where keys contradict the method.
    """
    mode, stated = str(flags.get("decoding_mode") or ""), settings.get("method")
    asked = {method for method, key in TREES.items() if flags.get(key)} | {mode} & {*TREES, "lookahead"}
    if any(flags.get(key) for key in LOOKAHEAD):
        asked.add("lookahead")
    method = str(stated or next(iter(sorted(asked)), "medusa"))
    if asked - {method}:
        raise InputError(
            f"{' and '.join(sorted(asked))} beside the method {method}",
            where=f"{_WHERE}.{TREES.get(next(iter(asked - {method})), LOOKAHEAD[0])}",
            mend="state one way to draft, by decoding_mode or speculative.method",
        )
    settings = {**settings, "method": method}
    if method == "lookahead":
        return {**settings, **_lookahead(flags)}
    choices = str(flags.get(TREES.get(method, "")) or "")
    if not choices:
        return chains_only("Triton's TensorRT-LLM backend", (*TREES, "lookahead"))(settings, arch, flags)
    paths = [[int(n) for n in re.findall(r"\d+", path)] for path in re.findall(r"[\[{]([\d\s,]+)[\]}]", choices)]
    if not paths:
        raise InputError(
            f"{TREES[method]} '{choices}' is no tree",
            where=f"{_WHERE}.{TREES[method]}",
            mend='write paths of ranks, such as "{0}, {0, 0}, {1}"',
        )
    tree = {
        "num_speculative_tokens": max(map(len, paths)),
        "num_draft_tokens": 1 + len(paths),
        "eagle_topk": 1 + max(max(path) for path in paths),
    }
    return {**settings, **tree}


def _lookahead(flags: Mapping[str, Any]) -> dict[str, int]:
    """A step's tokens of a row: for n-grams of n, a window w and a verification set g, ``n - 2 + (w - 1 + g) (n - 1)`` beside the
    last one (two public configurations bear it out, 2026-11: 27 for 5, 4, 3; 61 for 32, 1, 1); at most n - 1 are accepted."""
    missing = [key for key in LOOKAHEAD if not flags.get(key)]
    if missing:
        raise InputError(
            f"lookahead without {' and '.join(missing)}",
            where=f"{_WHERE}.{missing[0]}",
            mend="give lookahead_window_size, lookahead_ngram_size and lookahead_verification_set_size, such as 4, 5 and 3",
        )
    window, ngram, verified = (int(flags[key]) for key in LOOKAHEAD)
    guessed = ngram - 2 + (window - 1 + verified) * (ngram - 1)
    return {"num_speculative_tokens": ngram - 1, "num_draft_tokens": 1 + guessed, "eagle_topk": window + verified}


__all__ = ["drafts"]
