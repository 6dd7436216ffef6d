"""A run of more requests than are held: blocks of requests come from the workload, are served, counted, written and dropped.

Blocks whose requests have all ended leave from the front, in order. Steps that end before the first arrival of the oldest block
that is left are counted and dropped too. What is held is the requests in the system and the blocks they belong to.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engine_models.declaration import EnginePlan
from engine_models.lengths import Lengths
from engine_models.parts.protocols import StepCost
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import NOT_ARRIVED, ClusterResult, Rows
from simulator.io.tables import TableWriter
from simulator.results import metrics
from simulator.results.figures import Figures, slo_dict
from simulator.results.request_table import request_table
from simulator.results.streamed_figures import ReplicaSteps, Tally
from simulator.workload.streaming import WorkloadStream

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


class _Sink:
    """Counts blocks and writes their requests to the table."""

    def __init__(self, tally: Tally, writer: TableWriter, scenario: Scenario) -> None:
        self._tally, self._writer = tally, writer
        self._slo = slo_dict(scenario.slo)
        self._pool = scenario.deployment.pools[0].name
        self._overhead_s = scenario.client.overhead_ms / 1e3
        self.counted = np.zeros(4, dtype=np.int64)

    def account(self, block: ClusterResult, rows: Rows) -> None:
        """Count a block."""
        lat = metrics.latencies(block, self._overhead_s)
        good = metrics.good_requests(lat, self._slo)
        self._tally.add(block, lat, good)
        pool = self._pool
        self._writer.write(request_table(rows.workload, block, lat, good if self._slo else None, pool=pool, first=rows.first))
        arrived, found = block.status != NOT_ARRIVED, rows.lengths
        for i, mask in enumerate((found.too_long, found.asked_too_much, found.never_fits, found.cut)):
            self.counted[i] += int((mask & arrived).sum())

    def retire(self, before_s: float) -> None:
        """Drop what is not needed any more."""
        self._tally.retire(before_s)


def run_streamed(
    scenario: Scenario,
    workload: WorkloadStream,
    plan: EnginePlan,
    cost: StepCost,
    *,
    scratch: Path | None = None,
    **options: Any,
) -> StreamedRun:
    """Run a streamed workload; `options` are those of `Cluster`. The table stands in a folder below `scratch`."""
    folder = Scratch(scratch)
    path = folder.path / "requests.parquet"
    try:
        cluster = Cluster(workload, plan, cost, **options)
        steps = [ReplicaSteps(r.log, r.scheduler.state()[-1]) for r in cluster.ranks]
        tally = Tally(scenario, workload.warmup_s, workload.duration_s, steps)
        with TableWriter(path) as writer:
            sink = _Sink(tally, writer, scenario)
            cluster.stream(sink)
        totals = cluster.totals()
        end_s = cluster.end_of_run_s()
        counted = _counted(sink.counted.tolist())
        figures = tally.figures(end_s, cluster.stopped_at_s, cluster.duration_s, counted)
        return StreamedRun(figures, tally.timeline(end_s), path, totals, folder)
    except BaseException:
        folder.close()
        raise


def _counted(numbers: list[int]) -> Lengths:
    """Limits that only say how many requests each of them meets, in columns that take no memory."""
    nothing = np.zeros(0, np.int64)
    too_long, asked, never, cut = (np.broadcast_to(np.True_, number) for number in numbers)
    return Lengths(nothing, nothing.astype(bool), too_long, asked, never, cut)


__all__ = ["StreamedRun", "run_streamed"]
