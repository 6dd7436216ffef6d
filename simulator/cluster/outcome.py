"""What became of the requests of a run, by column, and the totals of its replicas."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Series
from dataclasses import replace
from enum import IntEnum
from math import nan
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import Limits
from engine_models.lengths import Lengths, judged
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount, counted
from hardware_profiles.records import dataclass
from simulator.serving.emissions import Emissions, logs_of
from simulator.serving.log import StepLog
from simulator.serving.rank import Rank
from simulator.serving.replica import Replica
from simulator.workload.columns import Workload

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyIntArray = NDArray[np.signedinteger[Any]]

FINISHED, UNFINISHED, REJECTED, FAILED, NOT_ARRIVED = range(5)
STATUS_NAMES = ("finished", "unfinished", "rejected", "failed", "not_arrived")
"""How a request ended. One that has not arrived was never offered, and counts in no total."""


class Reason(IntEnum):
    """Why a request ended as it did; `STOP` and `LENGTH` are told apart in the table of requests."""

    STOP = 0
    LENGTH = 1
    NOT_ARRIVED = 2
    DRAIN_ENDED = 3
    INTERRUPTED = 4
    PROMPT_TOO_LONG = 5
    LIMIT_TOO_LONG = 6
    EXCEEDS_KV_CACHE = 7
    SHED_429 = 8
    SHED_503 = 9
    TIMED_OUT = 10
    CANCELLED = 11
    NODE_LOST = 12
    KV_LOAD_FAILED = 13
    OUT_OF_MEMORY = 14
    NO_POOL = 15


SHED = {"429": Reason.SHED_429, "503": Reason.SHED_503}
"""Why a request is rejected by a full front end, by what it answers."""


_STOP = int(Reason.STOP)
LOSSES = tuple(reason for reason in Reason if reason not in (Reason.STOP, Reason.LENGTH, Reason.NOT_ARRIVED))
"""Why a request that has arrived has no answer."""
REASON_NAMES = tuple(reason.name.lower() for reason in Reason)


@dataclass
class ClusterResult:
    """What happened to every request (arrays over the workload's rows) and what every rank did.

    Times in seconds on the client's clock; NaN where a request did not get that far. `replica` is the number of the rank that
    served a request last, `emissions` name the steps of logs in which requests emitted tokens. `stopped_at_s` is the time that
    all replicas had reached when the run was stopped from outside, None for a complete run.
    """

    status: AnyIntArray
    reason: AnyIntArray
    arrival_s: FloatArray
    engine_arrival_s: FloatArray
    first_scheduled_s: FloatArray
    first_token_s: FloatArray
    end_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    cached_tokens: AnyIntArray
    preemptions: AnyIntArray
    replica: AnyIntArray
    emissions: Emissions
    logs: list[StepLog]
    capacity_blocks: list[int]
    hit_tokens: int
    queried_tokens: int
    end_of_run_s: float
    stopped_at_s: float | None = None
    verifications: int = 0
    verified_drafts: int = 0
    accepted_drafts: int = 0
    host_hit_tokens: int = 0
    attempts: AnyIntArray | None = None
    handed: Handovers | None = None
    tiers: tuple[TierCount, ...] = ()
    encoded: Encodings | None = None

    def since(self, before: ClusterResult) -> ClusterResult:
        """The same requests, with what the replicas counted after `before`."""
        counters = ("hit_tokens", "queried_tokens", "host_hit_tokens", "verifications", "verified_drafts", "accepted_drafts")
        counted: dict[str, Any] = {name: vars(self)[name] - vars(before)[name] for name in counters}
        fresh = [TierCount(count.kind, 0, 0.0, 0.0) for count in self.tiers]
        return replace(self, **counted, tiers=tuple(map(TierCount.less, self.tiers, before.tiers or fresh)))


def in_a_row(parts: Series[ClusterResult]) -> ClusterResult:
    """Requests of several loads that followed each other, with the totals of all from the last of them."""
    columns: dict[str, Any] = {
        name: np.concatenate([vars(part)[name] for part in parts])
        for name, value in vars(parts[-1]).items()
        if isinstance(value, np.ndarray)
    }
    return replace(
        parts[-1],
        **columns,
        emissions=Emissions.joined([part.emissions for part in parts]),
        handed=_joined(part.handed for part in parts),
        encoded=_joined(part.encoded for part in parts),
    )


def rows_in_a_row(workload: Workload, limits: Limits, parts: Series[Rows]) -> Rows:
    """The rows of several loads that followed each other, which together are the `workload`."""
    columns = zip(*(part.lengths.columns() for part in parts), strict=True)
    lengths = Lengths(*(np.concatenate(column) for column in columns))
    nowhere = np.concatenate([part.refused & ~part.lengths.refused for part in parts])
    return Rows(workload, limits, lengths=lengths, nowhere=nowhere)


class Handovers:
    """How requests went from a server that computed their prompts to one that computes their answers, by column.

    `source` is the number of the rank that computed the prompt, -1 where none has taken the request; where one has computed
    prompt and answer it is that one, and the rest is empty. Times [s] are NaN where a request did not get that far: the end of
    the prompt, the arrival at the second server, begin and end of the transfer, and the first step there.
    """

    def __init__(self, n: int) -> None:
        self.source = np.full(n, -1, dtype=np.int32)
        self.prefill_end_s = np.full(n, np.nan)
        self.arrival_s = np.full(n, np.nan)
        self.transfer_start_s = np.full(n, np.nan)
        self.transfer_end_s = np.full(n, np.nan)
        self.transfer_bytes = np.full(n, np.nan)
        self.first_scheduled_s = np.full(n, np.nan)

    def forget(self, row: int) -> None:
        """A request begins anew."""
        for name, column in vars(self).items():
            column[row] = -1 if name == "source" else np.nan

    def moved(self, row: int) -> bool:
        """Whether a request has its prompt computed."""
        return not np.isnan(self.prefill_end_s[row])


class Encodings:
    """How the images of requests were encoded by servers of their own, by column [s, bytes]; NaN for those without images.

    Sent there; the begin and end of the step that encoded the last of them; arrival at the server that reads them, and the bytes
    that went there.
    """

    def __init__(self, n: int) -> None:
        self.sent_s, self.scheduled_s, self.encoded_s, self.arrived_s, self.bytes = (np.full(n, np.nan) for _ in range(5))

    def begin(self, row: int, now_s: float) -> None:
        """A request is sent there, for the first time or again."""
        for column in vars(self).values():
            column[row] = np.nan
        self.sent_s[row] = now_s


Columns = TypeVar("Columns", Handovers, Encodings)


def _joined(parts: Iterable[Columns | None]) -> Columns | None:
    """The columns of requests one part after the other; None if no part has any."""
    whole = [part for part in parts if part is not None]
    if not whole:
        return None
    joined = type(whole[0])(0)
    for column in vars(joined):
        setattr(joined, column, np.concatenate([vars(part)[column] for part in whole]))
    return joined


class Rows:
    """Requests `first`, `first` + 1, ... of a run and what became of them, as the columns of a `ClusterResult`.

    `lengths` are what the engine makes of their lengths (by `limits`, if not given), `nowhere` those that no pool is for,
    `accepted` the rows that are taken, `left` how many may still end or arrive. Those with a time of arrival arrive; the others
    count as not arrived until they do.
    """

    def __init__(
        self,
        workload: Workload,
        limits: Limits,
        first: int = 0,
        *,
        lengths: Lengths | None = None,
        nowhere: NDArray[np.bool_] | None = None,
    ) -> None:
        n = len(workload)
        self.first = first
        self.workload = workload
        if lengths is None:
            lengths = judged(workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens, limits)
        found = self.lengths = lengths
        self.refused = found.refused if nowhere is None else found.refused | nowhere
        self.accepted = np.flatnonzero(~self.refused)
        self.arrival_s = workload.arrival_s.copy()
        self.known = ~np.isnan(self.arrival_s)
        self.left = int(n - (self.refused & self.known).sum())
        self.status = np.full(n, NOT_ARRIVED, dtype=np.int8)
        self.reason = np.full(n, Reason.DRAIN_ENDED, dtype=np.int8)
        self.reason[found.never_fits] = Reason.EXCEEDS_KV_CACHE
        self.reason[found.asked_too_much] = Reason.LIMIT_TOO_LONG
        self.reason[found.too_long] = Reason.PROMPT_TOO_LONG
        if nowhere is not None:
            self.reason[nowhere] = Reason.NO_POOL
        self.status[self.known] = np.where(self.refused, REJECTED, UNFINISHED)[self.known]
        self.engine_arrival_s = np.full(n, np.nan)
        self.first_scheduled_s = np.full(n, np.nan)
        self.end_s = np.full(n, np.nan)
        self.cached = np.zeros(n, dtype=np.int32)
        self.preemptions = np.zeros(n, dtype=np.int32)
        self.replica = np.full(n, -1, dtype=np.int32)
        self.emissions = Emissions(n)
        self.handed: Handovers | None = None
        self.encoded: Encodings | None = None
        self.attempts = np.ones(n, dtype=np.int32)
        columns = (self.status, self.reason, self.engine_arrival_s, self.first_scheduled_s, self.end_s, self.cached, self.replica)
        views: list[Any] = [column.data for column in columns]  # one number is read and set quicker through them
        (self._status, self._reason, self._reached_s, self._scheduled_s, self._end_s, self._cached, self._replica) = views

    def arrive(self, row: int, now_s: float) -> bool:
        """Note that a released request arrives; return whether the engine takes it."""
        self.arrival_s[row] = now_s
        if self.refused[row]:
            self.status[row] = REJECTED
            self.left -= 1
            return False
        self.status[row] = UNFINISHED
        return True

    def deal(self, ranks: int, dealt: int = 0) -> list[IntArray]:
        """Deal the accepted requests to the ranks in turn, after `dealt` others; return the rows of each rank."""
        self.replica[self.accepted] = (dealt + np.arange(len(self.accepted))) % ranks
        return [self.accepted[(number - dealt) % ranks :: ranks] for number in range(ranks)]

    def keep(self, seq: Sequence) -> None:
        """Note what a request's object knows."""
        row, scheduled_s = seq.index - self.first, seq.first_scheduled_s if seq.first_scheduled_s >= 0 else nan
        if seq.preemptions:
            self.preemptions[row] += seq.preemptions
        if self.handed is not None and self.handed.moved(row):
            self.handed.first_scheduled_s[row] = scheduled_s
        else:
            self._reached_s[row] = seq.arrival_s
            self._scheduled_s[row] = scheduled_s
            self._cached[row] = seq.first_hit_tokens
            if self.handed is not None and self.handed.source[row] != self.replica[row]:
                return  # what a server that computes prompts samples is dropped
        self.emissions.note(row, seq.emissions, self._replica[row])

    def finish(self, seq: Sequence, end_s: float) -> None:
        """Note the end of a request."""
        row = seq.index - self.first
        self._status[row] = FINISHED
        self._reason[row] = _STOP
        self._end_s[row] = end_s
        self.left -= 1
        self.keep(seq)

    def end(self, row: int, status: int, reason: Reason) -> None:
        """Note that a request that has arrived ends without its answer."""
        self.status[row] = status
        self.reason[row] = reason
        self.left -= 1

    def cut(self, reached_s: float) -> IntArray:
        """Note that the run was stopped at `reached_s`; return the rows that arrive only later, and so have not arrived."""
        here = np.isin(self.status, (UNFINISHED, REJECTED))
        late = here & (self.arrival_s > reached_s)
        self.status[late] = NOT_ARRIVED
        self.reason[self.status == UNFINISHED] = Reason.INTERRUPTED
        return np.flatnonzero(late)


def reached_s(replicas: list[Replica], limit_s: float) -> float:
    """The time that all replicas have reached; `limit_s` if none has anything left to do."""
    return min((replica.clock_s for replica in replicas if replica.busy()), default=limit_s)


def leave(ranks: list[Rank], live: Iterable[Sequence], until_s: float) -> list[Sequence]:
    """End the bookkeeping of a run; return the requests left unfinished of which there is something to keep.

    A request that reaches the scheduler after `until_s`, the end of the run, has got no further than the front end.
    """
    for rank in ranks:
        rank.close()
    return [seq for seq in live if seq.first_scheduled_s >= 0 or seq.arrival_s <= until_s]


def last_step_s(ranks: list[Rank]) -> float:
    """When the last step that the logs hold ended, 0 without any."""
    return max((rank.log.end_s[-1] for rank in ranks if rank.log.end_s), default=0.0)


def outcome(
    rows: Rows, ranks: list[Rank], after_s: float, end_of_run_s: float, stopped_at_s: float | None
) -> ClusterResult:
    """What happened to `rows`, and the totals of the ranks whatever the requests; `after_s` is between step and client."""
    schedulers = [rank.scheduler for rank in ranks]
    reason = rows.reason
    reason[rows.status == NOT_ARRIVED] = Reason.NOT_ARRIVED
    return ClusterResult(
        status=rows.status,
        reason=reason,
        arrival_s=rows.arrival_s,
        engine_arrival_s=rows.engine_arrival_s,
        first_scheduled_s=rows.first_scheduled_s,
        first_token_s=_sent_s(rows.emissions.firsts(), ranks, after_s),
        end_s=_ends_s(rows, ranks, after_s),
        prompt_tokens=rows.workload.prompt_tokens,
        output_tokens=rows.lengths.output_tokens,
        cached_tokens=rows.cached,
        preemptions=rows.preemptions,
        replica=rows.replica,
        emissions=rows.emissions,
        logs=[rank.log for rank in ranks],
        capacity_blocks=[scheduler.state()[-1] for scheduler in schedulers],
        hit_tokens=sum(scheduler.hit_tokens for scheduler in schedulers),
        queried_tokens=sum(scheduler.queried_tokens for scheduler in schedulers),
        end_of_run_s=end_of_run_s,
        stopped_at_s=stopped_at_s,
        verifications=sum(scheduler.verifications for scheduler in schedulers),
        verified_drafts=sum(scheduler.verified_drafts for scheduler in schedulers),
        accepted_drafts=sum(scheduler.accepted_drafts for scheduler in schedulers),
        host_hit_tokens=sum(scheduler.host_hit_tokens for scheduler in schedulers),
        handed=rows.handed,
        encoded=rows.encoded,
        attempts=rows.attempts,
        tiers=counted([rank.lost_tiers for rank in ranks] + [scheduler.tier_counts() for scheduler in schedulers]),
    )


def _sent_s(tokens: tuple[NDArray[np.int32], IntArray], ranks: list[Rank], after_s: float) -> FloatArray:
    """When the client has tokens, named by log and step; NaN where the step has not begun."""
    log_of, step = tokens
    found = np.full(len(step), np.nan)
    for number in logs_of(log_of):
        rank, mine = ranks[number], np.flatnonzero(log_of == number)
        sent = np.frombuffer(rank.log.sent_s, dtype=np.float64)
        place = step[mine] - rank.log.retired_steps
        there = place < len(sent)
        found[mine[there]] = sent[place[there]] + after_s
        del sent  # a log whose buffer is in use cannot grow
    return found


def _ends_s(rows: Rows, ranks: list[Rank], after_s: float) -> FloatArray:
    """When the client has each finished request's last token; what was noted of the others."""
    if all(rank.loop is None for rank in ranks):
        return rows.end_s
    return np.where(rows.status == FINISHED, _sent_s(rows.emissions.lasts(), ranks, after_s), rows.end_s)
