"""One rank of a replica as its surroundings see it: a mailbox behind a front end, a scheduler, and a log of its steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from engine_models.parts.protocols import INFINITY, Scheduler
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount, counted
from simulator.serving.log import StepLog


class Rank:
    """A scheduler with its mailbox and its log.

    Parameters
    ----------
    scheduler : forms the batches.
    tokenise_token_s : front-end time [s] for each token of a prompt. Prompts are tokenised one after the other, in order of
        arrival; the scheduler sees a request when its prompt is done.
    """

    def __init__(self, scheduler: Scheduler, tokenise_token_s: float = 0.0) -> None:
        self.scheduler = scheduler
        self.log = StepLog()
        self.inbox: deque[Sequence] = deque()
        self.in_service = 0  # submitted and not finished: what a router counts
        self.lost_tiers: tuple[TierCount, ...] = ()  # what became of those of earlier schedulers
        self.first_step = 0  # of the log, that is batch 0 of the scheduler
        self._source: Iterator[list[Sequence]] = iter(())
        self._tokenise_token_s = tokenise_token_s
        self._tokenised_s = 0.0  # when the front end has done the last prompt

    def renew(self, scheduler: Scheduler, now_s: float) -> None:
        """Begin anew with another scheduler: nothing waits or runs, counters and log go on."""
        before = self.scheduler
        scheduler.hit_tokens += before.hit_tokens
        scheduler.queried_tokens += before.queried_tokens
        scheduler.host_hit_tokens += before.host_hit_tokens
        scheduler.verifications += before.verifications
        scheduler.verified_drafts += before.verified_drafts
        scheduler.accepted_drafts += before.accepted_drafts
        self.lost_tiers = counted([self.lost_tiers, before.tier_counts()])
        self.scheduler = scheduler
        self.inbox.clear()
        self.in_service = 0
        self.first_step = self.log.retired_steps + len(self.log.end_s)
        self._tokenised_s = now_s

    def submit(self, seq: Sequence) -> None:
        """Hand over a request that reaches the front end at `seq.arrival_s` (not before the replica's clock)."""
        self._tokenise(seq)
        self.inbox.append(seq)
        self.in_service += 1

    def feed(self, source: Iterator[list[Sequence]]) -> None:
        """Hand over requests beforehand, in order of arrival, in chunks that are asked for when the last is used up."""
        self._source = source
        if not self.inbox:
            self.refill()

    def refill(self) -> bool:
        """Take the next chunk, if there is one: the mailbox is never empty as long as anything is to come."""
        chunk = next(self._source, None)
        if not chunk:
            return False
        for seq in chunk:
            self._tokenise(seq)
        self.inbox.extend(chunk)
        self.in_service += len(chunk)
        return True

    def _tokenise(self, seq: Sequence) -> None:
        """Move the arrival of a request to the time at which its prompt is tokenised."""
        begin_s = seq.arrival_s if seq.arrival_s > self._tokenised_s else self._tokenised_s
        seq.arrival_s = self._tokenised_s = begin_s + self._tokenise_token_s * seq.prompt_tokens

    def receive(self, now_s: float) -> None:
        """Hand the requests that have arrived to the scheduler."""
        inbox = self.inbox
        while inbox and inbox[0].arrival_s <= now_s:
            self.scheduler.add(inbox.popleft())
            if not inbox:
                self.refill()

    def next_arrival_s(self) -> float:
        """When the next known request reaches the scheduler."""
        return self.inbox[0].arrival_s if self.inbox else INFINITY

    def arrivals_until(self, until_s: float) -> Iterator[float]:
        """Arrivals at the scheduler up to a time, of requests not yet received."""
        at = 0
        while True:
            while at == len(self.inbox):
                if not self.refill():
                    return
            arrival_s = self.inbox[at].arrival_s
            if arrival_s > until_s:
                return
            yield arrival_s
            at += 1

    def busy(self) -> bool:
        """Whether anything waits or runs on this rank."""
        return bool(self.inbox) or self.scheduler.has_work()
