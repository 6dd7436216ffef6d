"""What became of the requests of a run, by column, and the totals of its replicas, whether it is held in memory or streamed."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan
from engine_models.lengths import judged
from engine_models.parts.sequence import Sequence
from simulator.serving.emissions import Emissions, Spans
from simulator.serving.replica import Replica, StepLog
from simulator.workload.columns import Workload

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
AnyIntArray = NDArray[np.signedinteger[Any]]

FINISHED, UNFINISHED, REJECTED, NOT_ARRIVED = 0, 1, 2, 3
STATUS_NAMES = ("finished", "unfinished", "rejected", "not_arrived")


@dataclass
class ClusterResult:
    """What happened to every request (arrays over the workload's rows) and what every replica did.

    Times in seconds on the client's clock; NaN where a request did not get that far. `emissions[i]` are the inclusive ranges of
    batch numbers of replica[i] in which request i emitted a token. `stopped_at_s` is the simulated time that all replicas had
    reached when the run was stopped from outside, None for a complete run.
    """

    status: AnyIntArray
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
    emissions: Series[Spans | None]
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


class Rows:
    """Requests `first`, `first` + 1, ... of a run and what became of them, as the columns of a `ClusterResult`.

    `limits` are what the engine makes of their lengths, `accepted` the rows that it takes, `left` how many of those have not
    ended. Every request counts as not arrived until `deal` or `arrive` says otherwise.
    """

    def __init__(self, workload: Workload, plan: EnginePlan, first: int = 0) -> None:
        n = len(workload)
        self.first = first
        self.workload = workload
        self.limits = judged(
            workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens, plan.limits
        )
        self.refused = self.limits.refused
        self.accepted = np.flatnonzero(~self.refused)
        self.left = len(self.accepted)
        self.arrival_s = workload.arrival_s.copy()
        self.status = np.full(n, NOT_ARRIVED, dtype=np.int8)
        self.engine_arrival_s = np.full(n, np.nan)
        self.first_scheduled_s = np.full(n, np.nan)
        self.end_s = np.full(n, np.nan)
        self.cached = np.zeros(n, dtype=np.int32)
        self.preemptions = np.zeros(n, dtype=np.int32)
        self.replica = np.full(n, -1, dtype=np.int32)
        self.emissions = Emissions(n)

    def all_arrive(self) -> None:
        """Note that all requests arrive, each at its time."""
        self.status[:] = np.where(self.refused, REJECTED, UNFINISHED)

    def deal(self, replicas: int, dealt: int = 0) -> list[IntArray]:
        """Deal the accepted requests to the replicas in turn, after `dealt` others; return the rows of each replica."""
        self.replica[self.accepted] = (dealt + np.arange(len(self.accepted))) % replicas
        return [self.accepted[(number - dealt) % replicas :: replicas] for number in range(replicas)]

    def keep(self, seq: Sequence) -> None:
        """Note what a request's object knows."""
        row = seq.index - self.first
        self.engine_arrival_s[row] = seq.arrival_s
        self.first_scheduled_s[row] = seq.first_scheduled_s if seq.first_scheduled_s >= 0 else np.nan
        self.cached[row] = seq.first_hit_tokens
        self.preemptions[row] = seq.preemptions
        self.emissions.note(row, seq.emissions)

    def finish(self, seq: Sequence, end_s: float) -> None:
        """Note the end of a request."""
        row = seq.index - self.first
        self.status[row] = FINISHED
        self.end_s[row] = end_s
        self.left -= 1
        self.keep(seq)

    def cut(self, reached_s: float, live: dict[int, Sequence]) -> None:
        """Note that the run was stopped at `reached_s`: what arrives later has not arrived, and lives no more."""
        late = np.isin(self.status, (UNFINISHED, REJECTED)) & (self.arrival_s > reached_s)
        self.status[late] = NOT_ARRIVED
        for row in (np.flatnonzero(late) + self.first).tolist():
            live.pop(row, None)


def reached_s(replicas: list[Replica], limit_s: float) -> float:
    """The time that all replicas have reached; `limit_s` if none has anything left to do."""
    return min((replica.clock_s for replica in replicas if replica.busy()), default=limit_s)


def leave(replicas: list[Replica], live: Iterable[Sequence], until_s: float) -> list[Sequence]:
    """End the bookkeeping of a run; return the requests left unfinished of which there is something to keep.

    A request that reaches the scheduler after `until_s`, the end of the run, has got no further than the front end.
    """
    for replica in replicas:
        scheduler = replica.scheduler
        for seq in list(scheduler.running):
            if seq.state == "decoding":
                scheduler._leave_decodes(seq, scheduler.next_number - 1)
    return [seq for seq in live if seq.first_scheduled_s >= 0 or seq.arrival_s <= until_s]


def last_step_s(replicas: list[Replica]) -> float:
    """When the last step that the logs hold ended, 0 without any."""
    return max((replica.log.end_s[-1] for replica in replicas if replica.log.end_s), default=0.0)


def outcome(
    rows: Rows, replicas: list[Replica], after_s: float, end_of_run_s: float, stopped_at_s: float | None
) -> ClusterResult:
    """What happened to `rows`, and the totals of the replicas whatever the requests; `after_s` is between step and client."""
    first_batch = rows.emissions.first_batch()
    first_token = np.full(len(first_batch), np.nan)
    for number, replica in enumerate(replicas):
        ends = np.frombuffer(replica.log.end_s, dtype=np.float64)
        place = first_batch - replica.log.retired_steps
        mine = (rows.replica == number) & (first_batch >= 0) & (place < len(ends))
        first_token[mine] = ends[place[mine]] + after_s
        del ends  # a log whose buffer is in use cannot grow
    schedulers = [replica.scheduler for replica in replicas]
    hosts = [getattr(scheduler, "host", None) for scheduler in schedulers]

    def total(name: str) -> int:
        return sum(getattr(scheduler, name, 0) for scheduler in schedulers)

    return ClusterResult(
        status=rows.status,
        arrival_s=rows.arrival_s,
        engine_arrival_s=rows.engine_arrival_s,
        first_scheduled_s=rows.first_scheduled_s,
        first_token_s=first_token,
        end_s=rows.end_s,
        prompt_tokens=rows.workload.prompt_tokens,
        output_tokens=rows.limits.output_tokens,
        cached_tokens=rows.cached,
        preemptions=rows.preemptions,
        replica=rows.replica,
        emissions=rows.emissions,
        logs=[replica.log for replica in replicas],
        capacity_blocks=[scheduler.kv.capacity_blocks for scheduler in schedulers],
        hit_tokens=total("hit_tokens"),
        queried_tokens=total("queried_tokens"),
        end_of_run_s=end_of_run_s,
        stopped_at_s=stopped_at_s,
        # not every scheduler can verify drafts or load from the host
        verifications=total("verifications"),
        verified_drafts=total("verified_drafts"),
        accepted_drafts=total("accepted_drafts"),
        host_hit_tokens=sum(host.hit_tokens for host in hosts if host is not None),
    )
