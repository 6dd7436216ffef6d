"""Which prompts hold images, and how many tokens of them these are: drawn from a scenario's mix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hardware_profiles.errors import InputError
from simulator.workload.laws import sampler
from simulator.workload.parts import Part, Requests
from simulator.workload.rows import Rows
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from simulator.workload.synthetic import ImageMix


def assign(load: Requests, mix: ImageMix, seed: int, base_dir: Path, prefix: str) -> None:
    """Let prompts of a load hold images: as many as drawn, or fewer where a prompt has not the tokens for them."""
    parts = load.parts
    number = sampler(mix.count, stream(seed, prefix + "images.count"), base_dir, "images.count")
    size = sampler(mix.tokens, stream(seed, prefix + "images.tokens"), base_dir, "images.tokens")
    which = stream(seed, prefix + "images.share")

    def assigned() -> Iterator[Part]:
        for part in parts:
            n = len(part)
            asked, tokens = np.where(which.random(n) < mix.share, number(n), 0), size(n)
            count = np.minimum(asked, np.maximum(part.prompt_tokens - 1, 0) // tokens)
            load.images_left_out += int((asked - count).sum())
            yield replace(part, images=np.stack([count, count * tokens], axis=1).astype(np.int64))

    load.parts = assigned()


def as_asked(rows: Rows, *, wanted: bool) -> Rows:
    """Recorded requests with their images, or without and with a warning; InputError where none are recorded that are wanted."""
    if wanted and rows.images is None:
        raise InputError(
            "images: recorded, and the trace has no column image_tokens",
            where="workload.images",
            mend="add the columns image_count and image_tokens, or give images: {tokens: 1000}",
        )
    if wanted or rows.images is None:
        return rows
    said = "the trace records images, which are taken for text; `images: recorded` under workload encodes them"
    return replace(rows, images=None, warnings=(*rows.warnings, said))


__all__ = ["as_asked", "assign"]
