"""Which rank gets a request: a router over replicas, then the engine's rule over the ranks of a replica.

Requests for a router that looks at nothing, every rank in turn, are dealt beforehand.

Ranks are numbered so that rank r of replica n of N is number r N + n.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Series
from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from simulator.cluster.routing.system import Flags, RouterSystem


@mypyc_attr(allow_interpreted_subclasses=True)
class Router:
    """Chooses for each request, in order of the times at which they reach the engine."""

    reads_text = False
    """Whether the contents of prompts matter."""
    keeps_up = False
    """Whether all replicas have been advanced as far as it matters to anybody outside when a choice is made."""
    filters = False
    """Whether it may have nobody for a request, whatever its replicas do."""
    seed = 0
    """Of random choices beside the policy's."""

    @abstractmethod
    def choose(self, now_s: float, seq: Sequence, session: int) -> int:
        """Return the number of the rank that gets a request which reaches the engine at `now_s`; -1 is no session."""

    def keeps(self, now_s: float, seq: Sequence, session: int) -> int | None:
        """The number of the rank that computes a prompt and its answer, which gets it; None where two servers share it."""
        return None

    def note(self, replica: int) -> None:
        """Take in that a replica was submitted to, or advanced; one that looks for itself need not."""

    def looks_s(self) -> float:
        """When it reads next what replicas say of themselves; none is advanced beyond without `look`."""
        return INFINITY

    def look(self, now_s: float) -> None:
        """Read what replicas say of themselves, if it is time for that by now."""

    def took(self, replica: int) -> None:
        """Take in that a replica was submitted to, and that nothing else has changed there since it was noted last."""
        self.note(replica)

    def ended(self, seq: Sequence, now_s: float) -> None:
        """Take in that a request has ended."""

    def lost(self, seq: Sequence, now_s: float) -> None:
        """Take in that a request's replica was lost, or that it was thrown out there."""
        self.ended(seq, now_s)

    def serving(self, replicas: Series[int]) -> None:
        """From now on only these replicas may be chosen."""
        raise NotImplementedError(f"{type(self).__name__} takes no replica out")

    def renewed(self, replica: int) -> None:
        """Take in that a replica begins anew, with nothing that it kept."""
        raise NotImplementedError(f"{type(self).__name__} takes no replica out")

    def warmed(self) -> None:
        """Take in that caches begin filled."""

    def refused(self, seq: Sequence, now_s: float) -> float | None:
        """Take in that the replica chosen last refused a request; return when the router tries again, None if it does not."""
        return None

    def has_room(self, now_s: float, seq: Sequence | None = None) -> bool:
        """Whether some replica may get a request, or the one given, now."""
        return True

    def turns_away(self, seq: Sequence) -> bool:
        """Whether a filter leaves none of the replicas that serve for a request."""
        return False

    def serves(self, seq: Sequence) -> bool:
        """Whether some replica that may get a request serves, with room or not."""
        return True

    def shared(self, seq: Sequence, session: int, replica: int, now_s: float) -> None:
        """Take in that another router gave a request to one of these replicas."""
        raise NotImplementedError(f"{type(self).__name__} shares no replica")


class InTurn(Router):
    """Every rank in turn."""

    def __init__(self, ranks: int) -> None:
        self._ranks = ranks
        self.chosen = 0

    def choose(self, now_s: float, seq: Sequence, session: int) -> int:
        """As of the base."""
        self.chosen += 1
        return (self.chosen - 1) % self._ranks


KV_NEWS_S = 0.005
"""Time until a router has heard what an engine's cache says [s] (assumed: 1 to 10 ms over ZMQ or NATS)."""


@dataclass(frozen=True)
class Routing:
    """How requests are routed: an ideal rule by its word, or a product's policy by its flags.

    `unit` are the units of text a token where a product reads text, `seed` draws that of its random choices, `news_s` the time
    until it hears of an engine's blocks, `hop_s` what it adds to the way of a request, before it decides. `role` is that of the
    replicas, prefill or decode, where they have one. `adapter_places` are the LoRA adapters that a replica's devices hold.
    `reads_blocks` : whether it asks each replica how many KV blocks it has.
    """

    rule: str = "round_robin"
    system: RouterSystem | None = None
    flags: Flags | None = None
    unit: int = 1
    seed: Callable[[], int] = int
    news_s: float = KV_NEWS_S
    block_tokens: int = 1
    hop_s: float = 0.0
    role: str = ""
    adapter_places: int = 0
    reads_blocks: bool = False

    @property
    def computes(self) -> bool:
        """Whether some prompts are computed by decode servers."""
        system, flags = self.system, self.flags
        return system is not None and (
            system.decides or (system.keeps is not None and flags is not None and system.keeps(flags))
        )
