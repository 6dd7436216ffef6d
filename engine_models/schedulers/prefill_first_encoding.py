"""Prefill before decode with images in prompts: the rules of `prefill_first`, which images leave alone, and what a step encodes.

A step encodes, together, the images of which its prompts compute a token, but those that an earlier one has left in a cache: it
keeps what was encoded or read last. An image larger than the cache is encoded again for every chunk that it reaches into.

Source: SGLang 0.5.23's `managers/mm_schedule.py` and `mem_cache/multimodal_cache.py`, read 2026-11, compared with no recording.
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.encoder_cache import EncodedImages
from engine_models.memory.radix import RadixPool
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler


class EncodingPrefillFirstScheduler(PrefillFirstScheduler):
    """`PrefillFirstScheduler` with images, whose cache has room for so many tokens of them."""

    def __init__(self, rules: PrefillFirstRules, kv: RadixPool, *, image_cache_tokens: int, **others: Any) -> None:
        super().__init__(rules, kv, **others)
        self.images = EncodedImages(image_cache_tokens)

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """As of the base."""
        batch = super().schedule(now_s)
        if batch is None or not batch.extends:
            return batch
        lacking = [
            ((seq, number), end - first)
            for (seq, *_), (new, prior) in zip(batch.extends, batch.prefill, strict=True)
            for number, (first, end) in enumerate(seq.images)
            if first < prior + new and end > prior and self.images.lacks((seq, number))
        ]
        for image, tokens in lacking:
            self.images.keep(image, tokens)
        batch.encodes = tuple([tokens for _, tokens in lacking])
        return batch


__all__ = ["EncodingPrefillFirstScheduler"]
