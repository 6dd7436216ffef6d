"""A what-if sweep: one scenario at every combination of the axes' values, each simulated once.

    plan_sweep(scenario, vary)   every point's scenario, checked; nothing is simulated
    run_sweep(plan, folder)      simulates the points on local cores and writes the table

All points draw from the same named random streams of the scenario's seed, so they serve the same requests and differ
only in what was varied. A point is known by the hash of its resolved scenario: killed and resumed, none is done twice.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

from hardware_profiles.errors import InfeasibleError, InputError, PlanError
from hardware_profiles.records import dataclass
from simulator.io.rundir import write_file
from simulator.io.text import json_text
from simulator.planning import store
from simulator.planning.axes import Axis, count_of, parse_axes, point_at
from simulator.planning.backends import PACK, check_cluster, outcomes
from simulator.planning.one_point import PlannedPoint, in_words
from simulator.planning.pareto import answers, cost_column, latency_column, on_front_of
from simulator.planning.points import outcome_columns, row_of
from simulator.version import SCHEMA_VERSION, VERSION

Progress = Callable[[str], None]
Ended = TypeVar("Ended")
KEPT_FAILURES = ("infeasible", "invalid")
"""Failures that the same scenario meets again; others (a killed worker, an internal error) are tried again."""


@dataclass(frozen=True)
class SweepPlan:
    """What is to be simulated."""

    name: str
    axes: tuple[Axis, ...]
    points: tuple[PlannedPoint, ...]
    digest: str

    @property
    def paths(self) -> list[str]:
        """The varied fields."""
        return [path for axis in self.axes for path in axis.paths]

    @property
    def runs(self) -> list[str]:
        """Names of the points' run directories."""
        return [planned.name for planned in self.points]

    def slo(self) -> dict[str, dict[str, float]]:
        """Bounds of the first point's SLO [ms]: {metric: {percentile: bound}}."""
        first = next((p.scenario for p in self.points if p.scenario), None)
        return {} if first is None else dict(first.slo.bounds_ms())


@dataclass(frozen=True)
class SweepResult:
    """The table and what stands out in it; `cost` and `latency` name the columns traded against each other.

    Of a sweep in parts the rows are only what stands out; `statuses` then says how many of all points ended how, and `outside`
    where one of them left the calibrated domain.
    """

    folder: Path
    rows: tuple[dict[str, Any], ...]
    cost: str
    latency: str
    cheapest: Mapping[str, Any] | None
    close: Mapping[str, Any] | None
    notes: tuple[str, ...]
    error: PlanError | None = None
    statuses: Mapping[str, int] | None = None
    outside: str = ""

    def frame(self) -> Any:
        """The table as a pandas frame."""
        import pandas as pd

        return pd.DataFrame(list(self.rows))


# -- planning -----------------------------------------------------------------------------------------------


def plan_sweep(
    source: str | PathLike[str] | Mapping[str, Any],
    vary: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    headroom: bool = False,
) -> SweepPlan:
    """Return the points of a sweep, each scenario checked.

    vary : texts as ``--vary`` takes them (see `simulator.planning.axes`); overrides : as ``--set``, for every point;
    headroom : find the highest load of each (`simulator.planning.headroom`).
    A point whose values are wrong keeps its error; if all are wrong, the first error is raised.
    """
    from simulator.config.load import load_scenario, read_scenario, scenario_hash
    from simulator.planning.headroom import check_scalable

    axes, written = parse_axes(vary), read_scenario(source, overrides)
    planned: list[PlannedPoint] = []
    for point in (point_at(axes, index) for index in range(count_of(axes))):
        try:
            scenario = load_scenario(written, varied=point.overrides())
        except InputError as error:
            digest = hashlib.sha256(f"{VERSION} {point.overrides()}".encode()).hexdigest()
            planned.append(PlannedPoint(point, None, digest, error))
        else:
            if headroom:
                check_scalable(scenario.workload)
            planned.append(PlannedPoint(point, scenario, scenario_hash(scenario, VERSION), headroom=headroom))
    good = next((p.scenario for p in planned if p.scenario), None)
    if good is None:
        assert planned[0].error is not None
        raise planned[0].error
    listed = [[p.point.texts, p.digest] for p in planned]
    digest = hashlib.sha256(json.dumps([VERSION, listed]).encode()).hexdigest()
    return SweepPlan(good.name, axes, tuple(planned), digest)


# -- all points ---------------------------------------------------------------------------------------------


def run_sweep(
    plan: SweepPlan,
    folder: Path,
    *,
    workers: int | None = None,
    cluster: tuple[str, str | None] | None = None,
    resume: bool = False,
    progress: Progress = lambda text: None,
) -> SweepResult:
    """Simulate the points of `plan` and write the sweep's folder.

    workers : processes, by default one a core; 1 simulates in this process.
    cluster : `ray` or `dask` and its address, None for the one of its environment variable; this machine if not given.
    resume : take finished points from the folder, also from a sweep of other values there. Without it they are simulated anew.
    Raises InputError if the folder holds something else; a full disk or an interrupt keeps the finished points.
    """
    address = check_cluster(*cluster) if cluster is not None else None
    store.claim(folder, plan.digest, plan.runs if resume else ())
    write_file(folder / store.SWEEP, json_text(_record(plan, None)))
    notes: list[str] = []
    with store.locked(folder):
        store.sweep_away(folder)
        unique = {p.digest: p for p in plan.points}
        done = {p.digest: _invalid(p) for p in unique.values() if p.error}
        if resume:
            for p in unique.values():
                if p.digest not in done and (found := _found(folder, p, notes)):
                    done[p.digest] = found
        todo = [p for p in unique.values() if p.digest not in done]
        if resume:
            notes.append(f"{len(unique) - len(todo)} of {len(unique)} points were there already")
        ended = outcomes(todo, folder, workers, cluster[0] if cluster else None, address, pack=PACK)
        _simulate(ended, len(todo), folder, done, progress)
        result = _tabulate(plan, folder, done, notes)
        store.write_table(folder, result.rows)
        write_file(folder / store.SWEEP, json_text(_record(plan, result)))
    return result


def _invalid(planned: PlannedPoint) -> dict[str, Any]:
    assert planned.error is not None
    return {"status": "invalid", "reason": in_words(planned.error)}


def _found(folder: Path, planned: PlannedPoint, notes: list[str]) -> dict[str, Any] | None:
    directory = folder / store.RUNS / planned.name
    found = store.finished(directory, planned.digest)
    if isinstance(found, str):
        place = store.set_aside(directory)
        notes.append(f"{directory.name} was damaged ({found}): computed again, the old one is {place.name}")
        return None
    if found is not None and planned.headroom and "headroom" not in found:
        return None
    if found is not None:
        return {"status": "ok", "reason": "", "outcome": outcome_columns(found)}
    return store.read_failure(folder, planned.name)


def told(ended: Iterator[Ended], total: int, points: int, progress: Progress) -> Iterator[Ended]:
    """What ends of `total` jobs of `points` points each, saying how far it is."""
    started = time.monotonic()
    for count, each in enumerate(itertools.chain([None], ended)):
        spent = time.monotonic() - started
        left = f", about {duration(spent / count * (total - count))} left" if count else ""
        progress(f"{count * points} of {total * points} points, {duration(spent)}{left}")
        if each is not None:
            yield each


def _simulate(
    ended: Iterator[tuple[PlannedPoint, dict[str, Any]]],
    total: int,
    folder: Path,
    done: dict[str, dict[str, Any]],
    progress: Progress,
) -> None:
    for planned, outcome in told(ended, total, 1, progress):
        if outcome["status"] in KEPT_FAILURES:
            store.write_failure(
                folder, planned.name, {"status": outcome["status"], "reason": outcome["reason"]}
            )
        done[planned.digest] = outcome


def duration(time_s: float) -> str:
    """A time in words, of two or three digits."""
    if time_s < 100:
        return f"{time_s:.0f} s"
    return f"{time_s / 60:.0f} min" if time_s < 5400 else f"{time_s / 3600:.1f} h"


# -- the table ----------------------------------------------------------------------------------------------


def _tabulate(
    plan: SweepPlan, folder: Path, done: Mapping[str, dict[str, Any]], notes: list[str]
) -> SweepResult:
    rows = []
    for planned in plan.points:
        outcome = done[planned.digest]
        run = f"{store.RUNS}/{planned.name}" if outcome["status"] == "ok" else None
        rows.append({**row_of(planned.point, outcome), "pareto": False, "run": run})
    cost = cost_column(rows, plan.paths)
    latency = latency_column(rows, plan.slo())
    for row, on_front in zip(rows, on_front_of(rows, cost, latency), strict=True):
        row["pareto"] = on_front
    best, close = answers(rows, cost, latency)
    return SweepResult(folder, tuple(rows), cost, latency, best, close, tuple(notes), _error(plan, rows))


def _error(plan: SweepPlan, rows: Sequence[Mapping[str, Any]]) -> PlanError | None:
    """The error that the sweep as a whole ends with, its results written: wrong values, or no point that runs."""
    wrong = [p for p in plan.points if p.error]
    if wrong:
        assert wrong[0].error is not None
        first = wrong[0].error
        return InputError(
            f"{len(wrong)} of {len(rows)} points have wrong values and were left out; "
            f"the first, {wrong[0].point.label()}: {first.message}",
            where=first.where,
            mend=first.mend,
        )
    if any(row["status"] == "ok" for row in rows):
        return None
    return none_runs([row["status"] for row in rows], len(rows), rows[0]["reason"])


def none_runs(statuses: Iterable[str], points: int, reason: str) -> PlanError:
    """The error of a sweep no point of which has a result, by how its points ended."""
    found = set(statuses)
    kind: type[PlanError] = InfeasibleError if "infeasible" in found else InputError if "invalid" in found else PlanError
    return kind(f"none of the {points} points could be simulated; the first: {reason}")


def _record(plan: SweepPlan, result: SweepResult | None) -> dict[str, Any]:
    statuses = [row["status"] for row in result.rows] if result else [None] * len(plan.points)
    return {
        "schema_version": SCHEMA_VERSION,
        "tool_version": VERSION,
        "name": plan.name,
        "digest": plan.digest,
        "axes": [{"paths": list(axis.paths), "values": [list(s) for s in axis.steps]} for axis in plan.axes],
        "complete": result is not None,
        "cost": result.cost if result else None,
        "latency": result.latency if result else None,
        "points": [
            {"point": p.point.index, "values": dict(p.point.texts), "run": p.name, "status": status}
            for p, status in zip(plan.points, statuses, strict=True)
        ],
    }
