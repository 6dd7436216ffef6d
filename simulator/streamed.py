"""A run of more requests than are held: blocks of requests come from the workload, are served, counted, written and dropped.

The replicas do exactly what they do in `simulator.cluster`: a block's requests are handed to them, they advance to its last
arrival, and blocks whose requests have all ended leave from the front, in order. Steps that end before the first arrival of the
oldest block that is left are counted and dropped too. What is held is the requests in the system and the blocks they belong to.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan
from engine_models.lengths import Lengths
from engine_models.parts.sequence import Sequence
from simulator.cluster.cluster import CHUNK, Stopped, pool, route, router_of
from simulator.cluster.outcome import (
    NOT_ARRIVED,
    UNFINISHED,
    ClusterResult,
    Rows,
    last_step_s,
    leave,
    outcome,
    reached_s,
)
from simulator.io.tables import TableWriter
from simulator.results import metrics
from simulator.results.figures import Figures, slo_dict
from simulator.results.request_table import request_table
from simulator.results.streamed_figures import ReplicaSteps, Tally
from simulator.serving.replica import StepTimes
from simulator.serving.step_group import GroupTimes
from simulator.workload.columns import Workload
from simulator.workload.streaming import BLOCK, WorkloadStream

if TYPE_CHECKING:
    from simulator.config.schema import Scenario


class Scratch:
    """A folder for what is written while a run goes; it is removed with this object, or before."""

    def __init__(self, parent: Path | None) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=".capacity-plan.", dir=parent))
        self._remove = weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder."""
        self._remove()


@dataclass
class StreamedRun:
    """A finished run: its figures, its timeline, the file of its request table in a scratch folder, and its totals."""

    figures: Figures
    timeline: dict[str, NDArray[Any]]
    table: Path
    raw: ClusterResult
    scratch: Scratch


class _Feed(Iterator[list[Sequence]]):
    """Requests for one replica in small lots; empty for now is not the end."""

    def __init__(self) -> None:
        self._lots: deque[Callable[[], list[Sequence]]] = deque()

    def append(self, lot: Callable[[], list[Sequence]]) -> None:
        """Add a lot, made when it is asked for."""
        self._lots.append(lot)

    def __next__(self) -> list[Sequence]:
        if not self._lots:
            raise StopIteration
        return self._lots.popleft()()


class StreamedCluster:
    """A pool of replicas as `simulator.cluster.cluster.Cluster`, of which it takes the parameters, over a stream of requests.

    `account` gets every block, in order, once its requests have ended or the run has; `retire` the time before which no block
    that is still to come has a request.
    """

    def __init__(
        self,
        plan: EnginePlan,
        times: StepTimes | GroupTimes,
        *,
        replicas: int,
        ranks: int = 1,
        router: str,
        before_s: float,
        after_s: float,
        stages: int,
        aggregate: bool,
        should_stop: Callable[[], bool] | None,
        acceptance: Callable[[int], Callable[[int], int]] | None,
        block: int = BLOCK,
    ) -> None:
        self.plan = plan
        self.before_s, self.after_s = before_s, after_s
        self._should_stop, self._acceptance = should_stop, acceptance
        self.replicas = pool(plan, times, replicas, ranks, stages, aggregate, self._finished)
        self._router = router_of(self.replicas, ranks, router, plan)
        self.stopped_at_s: float | None = None
        self.duration_s = 0.0
        self.last_step_s = 0.0
        self.any_unfinished = False
        self._limit_s = 0.0
        self._block = block
        self._blocks: deque[Rows] = deque()
        self._live: dict[int, Sequence] = {}
        self._feeds = [_Feed() for _ in self.replicas]
        self._accepted = 0

    def run(
        self, workload: WorkloadStream, account: Callable[[Rows], None], retire: Callable[[float], None]
    ) -> None:
        """Run to the end of the drain, or until `should_stop` says so."""
        router = self._router
        last_s = 0.0
        first = 0
        try:
            for requests in workload.blocks():
                block = Rows(requests, self.plan, first)
                block.all_arrive()
                first += len(requests)
                self._blocks.append(block)
                last_s = float(requests.arrival_s[-1])
                self._limit_s = last_s + self.before_s
                if router is None:
                    self._feed(block)
                    for replica in self.replicas:
                        replica.advance(self._limit_s)
                else:
                    for lot in self._lots(block, block.accepted):
                        for seq in lot():
                            block.replica[seq.index - block.first] = route(router, self.replicas, seq)
                self._settle(account, retire, last_s)
            self.duration_s = workload.duration_s if np.isfinite(workload.duration_s) else last_s
            self._limit_s = self.duration_s + workload.drain_s
            for replica in self.replicas:
                replica.advance(self._limit_s)
        except Stopped:
            self.stopped_at_s = self._limit_s = reached_s(self.replicas, self._limit_s)
            for block in self._blocks:
                block.cut(self.stopped_at_s, self._live)
        self._end(account, retire)

    def _feed(self, block: Rows) -> None:
        """Deal the requests of a block to the replicas in turn."""
        dealt = block.deal(len(self.replicas), self._accepted)
        for replica, feed, rows in zip(self.replicas, self._feeds, dealt, strict=True):
            for lot in self._lots(block, rows):
                feed.append(lot)
            replica.feed(feed)
        self._accepted += len(block.accepted)

    def _lots(self, block: Rows, rows: NDArray[np.int64]) -> Iterator[Callable[[], list[Sequence]]]:
        for start in range(0, len(rows), CHUNK):
            yield lambda some=rows[start : start + CHUNK]: self._sequences(block, some)  # type: ignore[misc]

    def _sequences(self, block: Rows, rows: NDArray[np.int64]) -> list[Sequence]:
        columns = (
            rows + block.first,
            block.workload.prompt_tokens[rows],
            block.limits.output_tokens[rows],
            block.arrival_s[rows] + self.before_s,
            block.limits.stop_known[rows],
        )
        made = []
        for row, prompt, output, engine_s, known in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            accept = self._acceptance(row) if self._acceptance is not None else None
            seq = Sequence(row, prompt, output, engine_s, stop_known=known, acceptance=accept)
            self._live[row] = seq
            made.append(seq)
        return made

    def _of(self, row: int) -> Rows:
        return self._blocks[(row - self._blocks[0].first) // self._block]

    def _finished(self, seq: Sequence, now_s: float) -> None:
        self._of(seq.index).finish(seq, now_s + self.after_s)
        del self._live[seq.index]
        if self._should_stop is not None and self._should_stop():
            raise Stopped

    def _settle(
        self, account: Callable[[Rows], None], retire: Callable[[float], None], next_s: float
    ) -> None:
        """Account for the blocks in front whose requests have all ended."""
        settled = False
        while self._blocks and not self._blocks[0].left:
            account(self._blocks.popleft())
            settled = True
        if settled:
            retire(float(self._blocks[0].workload.arrival_s[0]) if self._blocks else next_s)

    def _end(self, account: Callable[[Rows], None], retire: Callable[[float], None]) -> None:
        self.last_step_s = last_step_s(self.replicas)
        for seq in leave(self.replicas, self._live.values(), self._limit_s):
            self._of(seq.index).keep(seq)
        while self._blocks:
            block = self._blocks.popleft()
            self.any_unfinished |= bool((block.status == UNFINISHED).any())
            account(block)
        retire(float("inf"))

    def end_of_run_s(self) -> float:
        """When the last step ended, or the drain if requests are left."""
        drained_s = self._limit_s if self.stopped_at_s is None and self.any_unfinished else 0.0
        return max(drained_s, self.last_step_s)

    def result(self, block: Rows | None) -> ClusterResult:
        """What happened to the requests of a block, and totals of all replicas; of no request if None."""
        rows = block if block is not None else Rows(_nothing(), self.plan)
        return outcome(rows, self.replicas, self.after_s, self.end_of_run_s(), self.stopped_at_s)


def _nothing() -> Workload:
    empty = WorkloadStream(lambda header: iter(()), (), 0.0, 0.0, 0.0, {})
    return empty.columns_of_none()


def run_streamed(
    scenario: Scenario,
    workload: WorkloadStream,
    plan: EnginePlan,
    times: StepTimes | GroupTimes,
    *,
    scratch: Path | None = None,
    **options: Any,
) -> StreamedRun:
    """Run a streamed workload; `options` are those of `StreamedCluster`. The table stands in a folder below `scratch`."""
    folder = Scratch(scratch)
    path = folder.path / "requests.parquet"
    slo = slo_dict(scenario.slo)
    overhead_s = scenario.client.overhead_ms / 1e3
    counted = np.zeros(4, dtype=np.int64)
    try:
        cluster = StreamedCluster(plan, times, **options)
        steps = [ReplicaSteps(r.log, r.scheduler.kv.capacity_blocks) for r in cluster.replicas]
        tally = Tally(scenario, workload.warmup_s, workload.duration_s, steps)
        with TableWriter(path) as writer:

            def account(block: Rows) -> None:
                raw = cluster.result(block)
                lat = metrics.latencies(raw, overhead_s)
                good = metrics.good_requests(lat, slo)
                tally.add(raw, lat, good)
                writer.write(request_table(block.workload, raw, lat, good if slo else None, block.first))
                arrived, found = raw.status != NOT_ARRIVED, block.limits
                for i, mask in enumerate((found.too_long, found.asked_too_much, found.never_fits, found.cut)):
                    counted[i] += int((mask & arrived).sum())

            cluster.run(workload, account, tally.retire)
        totals = cluster.result(None)
        end_s = cluster.end_of_run_s()
        figures = tally.figures(end_s, cluster.stopped_at_s, cluster.duration_s, _counted(counted.tolist()))
        return StreamedRun(figures, tally.timeline(end_s), path, totals, folder)
    except BaseException:
        folder.close()
        raise


def _counted(numbers: list[int]) -> Lengths:
    """Limits that only say how many requests each of them meets, in columns that take no memory."""
    nothing = np.zeros(0, np.int64)
    too_long, asked, never, cut = (np.broadcast_to(np.True_, number) for number in numbers)
    return Lengths(nothing, nothing.astype(bool), too_long, asked, never, cut)


__all__ = ["StreamedCluster", "StreamedRun", "run_streamed"]
