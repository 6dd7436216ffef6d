"""What schedulers promise that share a request: one server computes its prompt, another its answer.

What they do that a peer has to hear of stands in `notes`, which whoever runs them empties; what a peer does to them comes by the
other methods, between two steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Series
from typing import NamedTuple

from engine_models.parts.protocols import INFINITY, Scheduler
from engine_models.parts.sequence import Sequence


class Note(NamedTuple):
    """Something that a peer has to hear of: the request, when [s], and tokens of its prompt that are meant.

    Where groups of layers have blocks of their own, and do not hold the same tokens, those of each group count. Who reserves
    memory for a prompt may have so many tokens of its beginning (`known`), which are not sent.
    """

    seq: Sequence
    at_s: float
    tokens: int
    known: int = 0


class Peer(Scheduler):
    """A scheduler that shares requests with another server's.

    Its loop goes on turning every `turn_s`, without anything to compute, as often as `turns` says: what comes from outside is
    noticed at the end of such a turn.

    Where first tokens come with requests it calls `at_once` when they go out: the time [s], how many, and the requests that
    ended with theirs. They count as a batch of no length, which has a number.
    """

    turn_s: float = 1e-3
    notes: Series[Note] = ()
    at_once: Callable[[float, int, list[Sequence]], None] | None = None

    @abstractmethod
    def turns(self) -> float:
        """How often the loop turns when nothing can be computed now: not at all (0), once, or until something comes."""

    def speaks_s(self, begin_s: float, *, expects: bool) -> float:
        """A time before which no decision says something to a peer, infinite where that takes something from a peer first.

        `begin_s` is when the next batch may be formed, `expects` whether requests are on their way here. What the results of a
        batch say comes at its end.
        """
        return begin_s

    def turned(self, turns: int) -> None:
        """Take in that the loop has turned so many times more without a decision that could differ from the latest."""


class PullPrefill(Peer):
    """Computes prompts and holds their memory until the reader has it."""

    @abstractmethod
    def release(self, seq: Sequence) -> None:
        """The reader has a held request's memory, or will never want it."""

    def speaks_s(self, begin_s: float, *, expects: bool) -> float:
        """As of the base: it has nothing to say."""
        return INFINITY


class PullDecode(Peer):
    """Takes over requests whose prompts another server holds; `notes` are the reads that it begins."""

    notes: list[Note]

    def compute(self, seq: Sequence) -> None:
        """A request that comes next has its prompt computed here."""
        raise NotImplementedError(f"{type(self).__name__} computes no prompts")

    @abstractmethod
    def arrived(self, seq: Sequence) -> None:
        """What was read is here."""


class ReservingDecode(Peer):
    """Takes over requests whose prompts are computed after it has reserved memory for them; `notes` are these reservations."""

    notes: list[Note]

    @abstractmethod
    def arrived(self, seq: Sequence) -> None:
        """All of a prompt is here."""


class SendingPrefill(Peer):
    """Computes prompts for which memory is reserved elsewhere, and sends them piece by piece; `notes` are the pieces."""

    notes: list[Note]

    @abstractmethod
    def reserved(self, seq: Sequence) -> None:
        """A request's memory at the other server is reserved."""

    @abstractmethod
    def sent(self, seq: Sequence) -> None:
        """All of a prompt is at the other server."""


__all__ = ["Note", "Peer", "PullDecode", "PullPrefill", "ReservingDecode", "SendingPrefill"]
