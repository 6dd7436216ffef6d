"""How drafts are made, by name, and which settings of `deployment.speculative` an engine takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine_models.model.blocks import Architecture
from hardware_profiles.errors import InputError

WHERE = "deployment.speculative"
METHODS = ("ngram", "eagle", "eagle3", "mtp", "draft_model", "medusa", "lookahead")
CHAINS = METHODS[:-1]
"""Methods whose drafts may form a chain."""
KEEPS_KV = ("eagle", "eagle3", "mtp", "draft_model")
"""Methods whose drafter has layers with a KV cache of its own."""
ON_DEVICE = KEEPS_KV
"""Methods that vLLM schedules asynchronously; the others need the sampled tokens on the host before they can draft."""


def chains_only(
    title: str, methods: tuple[str, ...] = CHAINS
) -> Callable[[Mapping[str, Any], Architecture, Mapping[str, Any]], dict[str, Any]]:
    """The settings as they are, of an engine whose drafts form chains, by one of `methods`; InputError for others."""

    def checked(settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
        for key in ("eagle_topk", "num_draft_tokens"):
            if key in settings:
                raise InputError(
                    f"{title} drafts chains, `{key}` is a tree's",
                    where=f"{WHERE}.{key}",
                    mend="remove it; num_speculative_tokens is the number of drafts",
                )
        if settings.get("method", methods[0]) in set(METHODS) - set(methods):
            raise InputError(
                f"{title} with {settings['method']} drafts is not modelled",
                where=f"{WHERE}.method",
                mend=f"one of {', '.join(methods)}",
            )
        return dict(settings)

    return checked
