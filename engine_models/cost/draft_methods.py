"""How drafts are made, by name, and which settings of `deployment.speculative` an engine takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine_models.model.blocks import Architecture
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

WHERE = "deployment.speculative"
METHODS = ("ngram", "eagle", "eagle3", "mtp", "draft_model", "medusa", "lookahead")
CHAINS = METHODS[:-1]
"""Methods whose drafts may form a chain."""
KEEPS_KV = ("eagle", "eagle3", "mtp", "draft_model")
"""Methods whose drafter has layers with a KV cache of its own."""
ON_DEVICE = KEEPS_KV
"""Methods that vLLM schedules asynchronously; the others need the sampled tokens on the host before they can draft."""
PADDING = 1024
"""Rows by which tables of one tokeniser may differ where a server compares no more than the tokenisers (assumed: 128 to 512 are
seen)."""


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


@dataclass(frozen=True)
class SecondModel:
    """Drafts of an engine whose server drafts with a second model and by no other method.

    title : the engine in words. model, number : flags that name the model, and say how many drafts a step has. default : how
    many where nobody says.
    """

    title: str
    model: str
    number: str
    default: int

    def said(self, _value: Any, flags: Mapping[str, Any], pool: Mapping[str, Any]) -> dict[str, Any] | None:
        """What the flags say together of a pool's `speculative`."""
        given = pool.get("speculative") or {}
        if not flags.get(self.model) and not given:
            return None  # a number of drafts alone drafts nothing
        found: dict[str, Any] = {} if given.get("method") else {"method": "draft_model"}
        if flags.get(self.model) and not given.get("model"):
            found["model"] = flags[self.model]
        if self.number in flags:
            found["num_speculative_tokens"] = flags[self.number]
        return found

    def settings(self, settings: Mapping[str, Any], arch: Architecture, flags: Mapping[str, Any]) -> dict[str, Any]:
        """Settings of drafts, with what is left out of them; InputError for what the engine does not do."""
        checked = chains_only(self.title, ("draft_model",))(settings, arch, flags)
        number = int(flags.get(self.number, self.default))
        return {"method": "draft_model", "num_speculative_tokens": number, "vocab_difference": PADDING} | checked
