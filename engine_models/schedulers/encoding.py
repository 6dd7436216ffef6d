"""Continuous batching of prompts with images: the rules of `continuous`, with a budget and a cache of a vision tower.

An image is encoded whole, before the first step that computes one of its tokens. Where the step's budget of image tokens or the
cache has no room for it, the chunk of its prompt ends before it; if the chunk would begin with it, its request is not served in
this step. With `whole_images` no chunk ends within an image that it begins. A drafter that reads ahead of the chunk needs the
images of those tokens too, unless they find no room.

Source: vLLM 0.33.0's `v1/core/sched/scheduler.py` (`_try_schedule_encoder_inputs`).
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.encoder_cache import EncoderCache, Image
from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class EncoderLimits:
    """What a vision tower may do.

    step_tokens : image tokens of a step.  cache_tokens : of all images encoded and not computed yet.
    whole_images : see above.  received : other servers encode; what they have made takes room in the cache, none of the budget.
    ahead_tokens : tokens behind a chunk that a drafter reads.
    """

    step_tokens: int
    cache_tokens: int
    whole_images: bool = False
    received: bool = False
    ahead_tokens: int = 0


class EncodingScheduler(ContinuousScheduler):
    """`ContinuousScheduler` with images; while a prompt with images is computed, row by row."""

    def __init__(
        self,
        rules: ContinuousRules,
        kv: PagedKV | HybridKV,
        encoder: EncoderLimits,
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, **others)
        self.encoder = encoder
        self.images = EncoderCache(encoder.cache_tokens)
        self._left = 0  # of the step's budget
        self._new: dict[Sequence, list[Image]] = {}  # encoded for the step that is formed
        self._reading: dict[Sequence, int] = {}  # hold images; those before this number are let go
        self._rows: dict[int, list[Sequence]] = {}  # rows with images, by the batch that serves them

    def add(self, seq: Sequence) -> None:
        """As of the base; InputError for an image that a step can never encode."""
        most, longest = min(self.encoder.step_tokens, self.encoder.cache_tokens), max([e - f for f, e in seq.images], default=0)
        if longest > most:
            raise InputError(
                f"an image of {longest:,} tokens, and the largest that the model's processor leaves has {most:,}",
                where="workload.images.tokens",
                mend="give the tokens that are left of an image once it is scaled to the processor's limit",
            )
        super().add(seq)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return self.tiers is None and not self.rules.pipelined

    def schedule(self, now_s: float) -> Batch | None:
        """As of the base."""
        self._left = self.encoder.step_tokens
        batch = super().schedule(now_s)
        for seq in [*self._new]:  # rows that got no memory after all
            self._take_back(seq)
        return batch

    def _fits_together(self, budget: int, cap: int) -> bool:
        """As of the base; images have a budget of their own."""
        return not any(seq.images for seq in self.partial) and super()._fits_together(budget, cap)

    def _want(self, seq: Sequence, budget: int, cap: int) -> int:
        want = super()._want(seq, budget, cap)
        return self._readable(seq, seq.computed, want) if seq.images and want > 0 else want

    def _readable(self, seq: Sequence, computed: int, want: int) -> int:
        """As of the base: the images that these tokens need are encoded, as far as there is room."""
        if not seq.images:
            return want
        self._take_back(seq)  # a try that came to nothing
        limits, cache = self.encoder, self.images
        new: list[Image] = []
        end = computed + want
        seen = end + limits.ahead_tokens
        for number, (first, last) in enumerate(seq.images):
            if last <= computed:
                continue
            if first >= seen:
                break
            if limits.whole_images and computed <= first and end < last:
                want = max(0, first - computed - limits.ahead_tokens)
                break
            image = seq, number
            if cache.finds(image):
                self._reading.setdefault(seq, number)
                continue
            tokens = last - first
            if tokens > self._left or not cache.makes_room(tokens):
                want = min(want, first - computed) if computed < first else 0
                break
            cache.take(image, tokens)
            self._left -= 0 if limits.received else tokens
            new.append(image)
            self._reading.setdefault(seq, number)
        if new:
            self._new[seq] = new
        return want

    def _take_back(self, seq: Sequence) -> None:
        """What was to be encoded for a request in this step is not."""
        for image in self._new.pop(seq, ()):
            self.images.undo(image)
            first, end = seq.images[image[1]]
            self._left += 0 if self.encoder.received else end - first

    def _give_up(self, seq: Sequence) -> None:
        """A request is not served in this step after all, or starts over: what was encoded before stays to be found."""
        self._take_back(seq)
        self._let_go(seq)

    def _let_go(self, seq: Sequence) -> None:
        """A request holds no image any more."""
        self.images.forget(seq)
        self._reading.pop(seq, None)

    def _preempt(self, seq: Sequence, batch: Batch, fresh_blocks: int | None) -> None:
        if seq.images:
            self._give_up(seq)
        super()._preempt(seq, batch, fresh_blocks)

    def _admit(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int, now_s: float
    ) -> bool:
        blocked = super()._admit(batch, served, budget, cap, now_s)
        for seq in [seq for seq in self._reading if seq not in self.running]:
            self._give_up(seq)
        return blocked

    def _commit(self, batch: Batch, served: list[tuple[Sequence, int]]) -> None:
        rows = [seq for seq, _ in served if seq.images]
        if rows:
            self._rows[batch.number] = rows
        batch.encodes = tuple(
            [seq.images[number][1] - seq.images[number][0] for seq, _ in served for _, number in self._new.pop(seq, ())]
        )
        super()._commit(batch, served)

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; images are let go whose tokens are computed."""
        ended = super().settle(batch)
        self._read(batch.number)
        return ended

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """As of the base, with the results of the batches before."""
        taken = super().take(steps)
        for number in [number for number in self._rows if number <= self.processed_number]:
            self._read(number)
        return taken

    def _read(self, number: int) -> None:
        """Rows of a batch, whose results are known, let go the images that are computed."""
        for seq in self._rows.pop(number, ()):
            image = self._reading.get(seq)
            if image is None:
                continue
            known = seq.computed if seq.state != "decoding" else seq.prompt_tokens
            while image < len(seq.images) and seq.images[image][1] <= known:
                self.images.let_go((seq, image))
                image += 1
            if image < len(seq.images):
                self._reading[seq] = image
            else:
                del self._reading[seq]

    def _free(self, seq: Sequence) -> None:
        super()._free(seq)
        if seq.images:
            self._let_go(seq)

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        if seq.images:
            self._let_go(seq)
        return super().cancel(seq)


__all__ = ["EncoderLimits", "EncodingScheduler"]
