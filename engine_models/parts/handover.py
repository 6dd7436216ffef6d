"""What schedulers promise that share a request: one server computes its prompt, another its answer.

What they do that a peer has to hear of stands in `notes`, which whoever runs them empties; what a peer does to them comes by the
other methods, between two steps.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from engine_models.parts.protocols import Scheduler
from engine_models.parts.sequence import Sequence


class Note(NamedTuple):
    """Something that a peer has to hear of: the request, when [s], and tokens of its prompt that are meant."""

    seq: Sequence
    at_s: float
    tokens: int


class Peer(Scheduler):
    """A scheduler that shares requests with another server's.

    Its loop goes on turning every `turn_s`, without anything to compute, as long as `turns` says so: what comes from outside is
    noticed at the end of such a turn.
    """

    turn_s: float = 1e-3

    @abstractmethod
    def turns(self) -> bool:
        """Whether the loop goes on turning when nothing can be computed now."""


class PullPrefill(Peer):
    """Computes prompts and holds their memory until the reader has it."""

    @abstractmethod
    def release(self, seq: Sequence) -> None:
        """The reader has a held request's memory, or will never want it."""


class PullDecode(Peer):
    """Takes over requests whose prompts another server holds; `notes` are the reads that it begins."""

    notes: list[Note]

    @abstractmethod
    def idle(self) -> bool:
        """Whether no request is here that may begin a read."""

    @abstractmethod
    def arrived(self, seq: Sequence) -> None:
        """What was read is here."""


__all__ = ["Note", "Peer", "PullDecode", "PullPrefill"]
