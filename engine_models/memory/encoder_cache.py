"""What a vision tower has made of images, kept until the language model has read it; counted in tokens of the images.

`EncoderCache`: an image is held by its request until all its tokens are computed, and can be found after that until its room is
needed: the one let go first goes first. Source: vLLM 0.33.0's `v1/core/encoder_cache_manager.py`.

`EncodedImages`: nobody holds any; the one that was encoded or read the longest time ago goes first. Source: SGLang 0.5.23's
`mem_cache/multimodal_cache.py`.

No two requests hold the same image here.
"""

from __future__ import annotations

from collections import OrderedDict

from engine_models.parts.sequence import Sequence

Image = tuple[Sequence, int]
"""A request and the number of its image."""


class EncoderCache:
    """`capacity_tokens` : of all images that are there at once.

    `free_tokens` are taken by nothing, `loose_tokens` by nothing or by images that nobody holds.
    """

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = self.free_tokens = self.loose_tokens = capacity_tokens
        self._held: dict[Image, int] = {}  # tokens of each
        self._loose: OrderedDict[Image, int] = OrderedDict()

    def finds(self, image: Image) -> bool:
        """Whether it is there; if so, its request holds it."""
        if image in self._held:
            return True
        tokens = self._loose.pop(image, None)
        if tokens is None:
            return False
        self._held[image] = tokens
        self.loose_tokens -= tokens
        return True

    def makes_room(self, tokens: int) -> bool:
        """Whether so many tokens may come; what nobody holds goes for them."""
        if tokens > self.loose_tokens:
            return False
        while tokens > self.free_tokens:
            self.free_tokens += self._loose.popitem(last=False)[1]
        return True

    def take(self, image: Image, tokens: int) -> None:
        """It is encoded, and held; `makes_room` has said so."""
        self._held[image] = tokens
        self.free_tokens -= tokens
        self.loose_tokens -= tokens

    def undo(self, image: Image) -> None:
        """It is not encoded after all."""
        tokens = self._held.pop(image)
        self.free_tokens += tokens
        self.loose_tokens += tokens

    def let_go(self, image: Image) -> None:
        """Its request holds it no longer."""
        tokens = self._held.pop(image, None)
        if tokens is not None:
            self._loose[image] = tokens
            self.loose_tokens += tokens

    def forget(self, seq: Sequence) -> None:
        """A request has ended: it can ask for its images no more, but they stay until their room is needed."""
        for number in range(len(seq.images)):
            self.let_go((seq, number))


class EncodedImages:
    """The images that were encoded or read last, of at most `capacity_tokens` in all; each is its request's own."""

    def __init__(self, capacity_tokens: int) -> None:
        self.capacity_tokens = capacity_tokens
        self.tokens = 0
        self._kept: OrderedDict[Image, int] = OrderedDict()

    def lacks(self, image: Image) -> bool:
        """Whether an image has to be encoded; it is the last that was read if not."""
        if image not in self._kept:
            return True
        self._kept.move_to_end(image)
        return False

    def keep(self, image: Image, tokens: int) -> None:
        """It was encoded."""
        if tokens > self.capacity_tokens:
            return
        while self.tokens + tokens > self.capacity_tokens:
            self.tokens -= self._kept.popitem(last=False)[1]
        self._kept[image] = tokens
        self.tokens += tokens


__all__ = ["EncodedImages", "EncoderCache"]
