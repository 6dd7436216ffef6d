"""One rank of a replica as its surroundings see it: a mailbox behind a front end, a scheduler, and a log of its steps."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from engine_models.declaration import FrontEnd
from engine_models.parts.protocols import INFINITY, Scheduler
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount, counted
from simulator.serving.front_end import LoopedFrontEnd
from simulator.serving.log import StepLog

NO_FRONT_END = FrontEnd()


class Rank:
    """A scheduler with its mailbox and its log.

    Parameters
    ----------
    scheduler : forms the batches.
    front : what requests and tokens pass. Without a loop in it prompts are tokenised one after the other, in order of arrival;
        the scheduler sees a request when its prompt is done.
    """

    def __init__(self, scheduler: Scheduler, front: FrontEnd = NO_FRONT_END) -> None:
        self.scheduler = scheduler
        self.log = StepLog()
        self.inbox: deque[Sequence] = deque()
        self.in_service = 0  # submitted and not finished: what a router counts
        self.lost_tiers: tuple[TierCount, ...] = ()  # what became of those of earlier schedulers
        self.first_step = 0  # of the log, that is batch 0 of the scheduler
        self._source: Iterator[list[Sequence]] = iter(())
        self._tokenise_token_s, self._tokenise_request_s = front.tokenise_token_s, front.tokenise_request_s
        self._image_token_s = front.image_token_s
        self._tokenised_s = 0.0  # when the front end has done the last prompt
        self.loop = LoopedFrontEnd(front, self.log, self._chunk) if front.loop is not None else None
        self.reached_s = 0.0  # the time to which the replica is being advanced

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
        if self.loop is not None:
            self.loop.renew(now_s)

    def submit(self, seq: Sequence) -> None:
        """Hand over a request that reaches the front end at `seq.arrival_s` (not before the replica's clock)."""
        self.in_service += 1
        if self.loop is not None:
            self.loop.coming.append(seq)
            return
        self._tokenise(seq)
        self.inbox.append(seq)

    def feed(self, source: Iterator[list[Sequence]]) -> None:
        """Hand over requests beforehand, in order of arrival, in chunks that are asked for when the last is used up."""
        self._source = source
        if not self.inbox:
            self.refill()

    def _chunk(self) -> list[Sequence]:
        """The next chunk of those handed over beforehand; empty if there is none."""
        chunk = next(self._source, None) or []
        self.in_service += len(chunk)
        return chunk

    def refill(self) -> bool:
        """Take the next chunk, if there is one: the mailbox is never empty as long as anything is to come."""
        if self.loop is not None:
            before = len(self.inbox)
            self.loop.known_to(-INFINITY)
            self.loop.rounds_until(self.reached_s, self.inbox, before + 1)
            return len(self.inbox) > before
        chunk = self._chunk()
        for seq in chunk:
            self._tokenise(seq)
        self.inbox.extend(chunk)
        return bool(chunk)

    def reach(self, until_s: float) -> None:
        """The replica is about to be advanced to `until_s`: all requests that come before are known."""
        if self.loop is not None:
            self.reached_s = until_s
            self.loop.rounds_until(until_s, self.inbox, enough=1)

    def sent_s(self, now_s: float) -> float:
        """When the tokens of the latest step that has ended by now, to which the replica was advanced, leave the server."""
        self.send(now_s)
        sent = self.log.sent_s
        return now_s if self.loop is None else sent[-1]

    def send(self, now_s: float) -> None:
        """Let the front end send the tokens of all steps that have ended by now, to which the replica was advanced."""
        if self.loop is not None:
            self.loop.known_to(now_s)
            self.loop.rounds_until(now_s, self.inbox)
            self.loop.send_until(now_s)

    def emits(self, steps: int, rows: int, prompts: int) -> None:
        """Say what the steps that come next in the log yield: tokens of decoding rows and of prompts, in each."""
        if self.loop is not None:
            self.loop.waiting.append((steps, rows, prompts))

    def drop_unended(self, seq: Sequence, now_s: float) -> None:
        """Forget what batches that have not ended by now would yield of a request: an executor may have settled one ahead.

        A batch of no length may end before the one under way that stands before it in the log.
        """
        ends, shift = self.log.end_s, self.first_step - self.log.retired_steps
        while seq.emissions:
            last = seq.emissions[-1]
            place = last + shift
            if place < 0 or (place < len(ends) and ends[place] <= now_s):
                break
            seq.end_emissions(last - 1)

    def forget(self, seq: Sequence) -> bool:
        """Take back a request that has not reached the scheduler; False if it has."""
        for box in (self.inbox,) if self.loop is None else (self.inbox, self.loop.coming):
            if seq in box:
                box.remove(seq)
                self.in_service -= 1
                return True
        return False

    @property
    def expected(self) -> int:
        """Requests that are known and have not reached the scheduler."""
        return len(self.inbox) + (len(self.loop.coming) if self.loop is not None else 0)

    def close(self) -> None:
        """End the bookkeeping of a run."""
        self.scheduler.close()
        if self.loop is not None:
            self.loop.send_until(INFINITY)
            for seq in self.loop.coming:
                seq.arrival_s = INFINITY  # nobody knows when it would have reached the scheduler

    def _tokenise(self, seq: Sequence) -> None:
        """Move the arrival of a request to the time at which its prompt is tokenised."""
        begin_s = seq.arrival_s if seq.arrival_s > self._tokenised_s else self._tokenised_s
        own_s = self._tokenise_token_s * seq.prompt_tokens + self._tokenise_request_s
        if seq.images:
            own_s += self._image_token_s * seq.image_tokens()
        seq.arrival_s = self._tokenised_s = begin_s + own_s

    def receive(self, now_s: float) -> None:
        """Hand the requests that have arrived to the scheduler."""
        inbox = self.inbox
        if self.loop is not None and self.loop.much_waits:
            self.send(now_s)
        while inbox and inbox[0].arrival_s <= now_s:
            self.scheduler.add(inbox.popleft())
            if not inbox:
                self.refill()

    def next_arrival_s(self) -> float:
        """When the next known request reaches the scheduler; not before then, where it has to pass a loop yet."""
        if self.inbox:
            return self.inbox[0].arrival_s
        return self.loop.next_s() if self.loop is not None else INFINITY

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
        return bool(self.expected) or self.scheduler.has_work()
