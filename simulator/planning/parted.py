"""A sweep of more points than one table holds: its points are simulated in parts, and each part is a table.

    plan_parts(scenario, vary)   the grid, its first good point checked; nothing is simulated
    run_parts(plan, folder)      simulates the parts and writes `points/part-NUMBER.parquet`, a row a point

Whoever simulates a part makes its scenarios too and keeps no run directories: the one who gives the parts out holds only what
stands out. A part is written whole or not at all, and a sweep that is begun again goes on with the parts that lack. What stands
out is the Pareto front, the cheapest points that keep the SLO, and the first points that have no result; it follows from what
stands out in each part, as neither the front nor the cheapest of a whole can be missing from those of its parts.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.errors import InputError, PlanError
from hardware_profiles.records import dataclass
from simulator.io.rundir import write_file
from simulator.io.text import json_text
from simulator.planning import store
from simulator.planning.axes import Axis, count_of, parse_axes, point_at, value_of
from simulator.planning.backends import check_cluster, outcomes
from simulator.planning.one_point import in_words, run_point
from simulator.planning.pareto import answers, cost_column, latency_column, on_front_of
from simulator.planning.points import axis_column, row_of, varied_columns, whole
from simulator.planning.sweep import Progress, SweepResult, none_runs, told
from simulator.version import SCHEMA_VERSION, VERSION

if TYPE_CHECKING:
    from simulator.config.load import Written
    from simulator.config.schema import Scenario

MOST_IN_ONE = 10_000
"""Points of a sweep with one table and a run directory each, some 100 kB; beyond it comes in parts (assumed)."""
PART = 256
"""Points of a part: what is computed again where a worker dies (assumed)."""
YOUNG_OBJECTS = 20_000
"""New objects after which the garbage of a part's points is looked for: fifty replicas leave some thousands a point (assumed)."""
FIRST_FAILURES = 3
"""Points without a result that stand out of a part."""
TOGETHER = 64
"""Parts whose standing rows are kept until those that stand out of all of them are chosen (assumed)."""


@dataclass(frozen=True)
class PartedPlan:
    """What is to be simulated; `first` is the first scenario whose values are right."""

    written: Written
    axes: tuple[Axis, ...]
    first: Scenario
    digest: str
    headroom: bool

    @property
    def name(self) -> str:
        """Of the scenario."""
        return self.first.name

    @property
    def points(self) -> int:
        """How many."""
        return count_of(self.axes)

    @property
    def paths(self) -> list[str]:
        """The varied fields."""
        return [path for axis in self.axes for path in axis.paths]

    def slo(self) -> dict[str, dict[str, float]]:
        """Bounds of the SLO [ms]: {metric: {percentile: bound}}."""
        return dict(self.first.slo.bounds_ms())

    def parts(self) -> Iterator[Part]:
        """The grid, cut."""
        for number in range(-(-self.points // PART)):
            yield Part(self, number)


@dataclass(frozen=True)
class Part:
    """Points `PART` x `number` and on."""

    plan: PartedPlan
    number: int

    @property
    def digest(self) -> str:
        """What it is known by."""
        return f"{self.plan.digest}-{self.number}"

    def path(self, folder: Path) -> Path:
        """Its table."""
        return folder / store.POINTS / f"part-{self.number:06}.parquet"

    def run(self, folder: Path, command_line: Sequence[str]) -> dict[str, Any]:
        """Simulate its points and write its table; return what stands out of them."""
        from simulator.cluster.cluster import rare_collections

        first = self.number * PART
        with rare_collections(YOUNG_OBJECTS):
            rows = [self._row(index, command_line) for index in range(first, min(first + PART, self.plan.points))]
        store.write_part(self.path(folder), rows, _kinds(self.plan.axes))
        return {"status": "ok", "reason": "", **_standing_out(rows, self.plan)}

    def found(self, folder: Path) -> dict[str, Any] | None:
        """What stands out of it where its table is there already."""
        rows = store.read_part(self.path(folder))
        if rows is None:
            return None
        for row in rows:  # a column holds all numbers alike, 4 as 4.0
            row |= varied_columns(point_at(self.plan.axes, row["point"]))
            row["devices"] = whole(row["devices"])
        return _standing_out(rows, self.plan)

    def _row(self, index: int, command_line: Sequence[str]) -> dict[str, Any]:
        from simulator.config.load import load_scenario

        point = point_at(self.plan.axes, index)
        try:
            scenario = load_scenario(self.plan.written, varied=point.overrides())
        except InputError as error:
            return row_of(point, {"status": "invalid", "reason": in_words(error)})
        return row_of(point, run_point(scenario, None, command_line, self.plan.headroom))


def plan_parts(
    source: str | PathLike[str] | Mapping[str, Any],
    vary: Sequence[str],
    overrides: Sequence[str] = (),
    *,
    headroom: bool = False,
) -> PartedPlan:
    """Return the grid; arguments as in `plan_sweep`. Raises the first point's error if none of a part's worth is right."""
    from simulator.config.load import load_scenario, read_scenario, scenario_hash
    from simulator.planning.headroom import check_scalable

    axes, written = parse_axes(vary), read_scenario(source, overrides)
    wrong: InputError | None = None
    for index in range(min(PART, count_of(axes))):
        try:
            first = load_scenario(written, varied=point_at(axes, index).overrides())
        except InputError as error:
            wrong = wrong or error
            continue
        if headroom:
            check_scalable(first.workload)
        steps = [[axis.paths, axis.steps] for axis in axes]
        text = json.dumps([VERSION, scenario_hash(first, VERSION), index, list(overrides), steps, headroom])
        digest = hashlib.sha256(text.encode()).hexdigest()
        return PartedPlan(written, axes, first, digest, headroom)
    assert wrong is not None
    raise wrong


def run_parts(
    plan: PartedPlan,
    folder: Path,
    *,
    workers: int | None = None,
    cluster: tuple[str, str | None] | None = None,
    resume: bool = False,
    progress: Progress = lambda text: None,
) -> SweepResult:
    """Simulate the parts of `plan` into the sweep's folder; arguments and errors as in `run_sweep`.

    With `resume` the parts that are there are taken, of the same sweep alone. The rows of the result are what stands out.
    """
    address = check_cluster(*cluster) if cluster is not None else None
    store.claim(folder, plan.digest)
    write_file(folder / store.SWEEP, json_text(_record(plan, None)))
    notes: list[str] = []
    standing: list[dict[str, Any]] = []
    failed: list[str] = []
    taken = 0
    with store.locked(folder):
        todo: list[Part] = []
        for part in plan.parts():
            found = part.found(folder) if resume else None
            if found is None:
                todo.append(part)
            else:
                standing = _joined([*standing, found], plan)
                taken += 1
        if resume:
            notes.append(f"{taken} of {taken + len(todo)} parts were there already")
        ended = outcomes(todo, folder, workers, cluster[0] if cluster else None, address)
        for _, outcome in told(ended, len(todo), PART, progress):
            if outcome["status"] == "ok":
                standing = _joined([*standing, outcome], plan)
            else:
                failed.append(outcome["reason"])
        result = _result(plan, folder, standing, failed, notes)
        if result.rows:
            store.write_table(folder, result.rows)
        write_file(folder / store.SWEEP, json_text(_record(plan, result)))
    return result


# -- what stands out ----------------------------------------------------------------------------------------


def _standing_out(rows: Sequence[Mapping[str, Any]], plan: PartedPlan) -> dict[str, Any]:
    """Of some rows: how many ended how, whether a price is unknown, and the rows that may stand out of the whole.

    What is cheap goes by price, or by devices where the price of any point is unknown, which only the whole tells: both count.
    """
    latency = latency_column(rows, plan.slo())
    chosen: dict[int, Mapping[str, Any]] = {}
    for cost in {"devices", cost_column([], plan.paths)}:
        priced = [row for row in rows if row["status"] != "ok" or row[cost] is not None]
        best = [row for row, on_front in zip(priced, on_front_of(priced, cost, latency), strict=True) if on_front]
        best += [row for row in answers(priced, cost, latency) if row is not None]
        chosen |= {row["point"]: row for row in best}
    lacking = [row for row in rows if row["status"] != "ok"][:FIRST_FAILURES]
    return {
        "rows": [*chosen.values(), *lacking],
        "unpriced": any(row["status"] == "ok" and row["usd_per_hour"] is None for row in rows),
        "outside": next((row["outside"] for row in rows if row["outside"]), ""),
        "statuses": Counter(row["status"] for row in rows),
    }


def _merged(standing: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What stands out of some parts, all of it, as if they were one."""
    return {
        "rows": [row for found in standing for row in found["rows"]],
        "unpriced": any(found["unpriced"] for found in standing),
        "outside": next((found["outside"] for found in standing if found["outside"]), ""),
        "statuses": sum((Counter(found["statuses"]) for found in standing), Counter[str]()),
    }


def _joined(standing: list[dict[str, Any]], plan: PartedPlan) -> list[dict[str, Any]]:
    """What stands out of some parts, as one where they have become many: memory holds no more, however many there are."""
    if len(standing) < TOGETHER:
        return standing
    merged = _merged(standing)
    return [merged | {"rows": _standing_out(sorted(merged["rows"], key=_number), plan)["rows"]}]


def _result(
    plan: PartedPlan, folder: Path, standing: Sequence[Mapping[str, Any]], failed: Sequence[str], notes: list[str]
) -> SweepResult:
    merged = _merged(standing)
    rows, statuses, unpriced, outside = (merged[key] for key in ("rows", "statuses", "unpriced", "outside"))
    cost = "devices" if unpriced else cost_column([], plan.paths)
    latency = latency_column(rows, plan.slo())
    best, close = answers(rows, cost, latency)
    shown = []
    for row, on_front in zip(rows, on_front_of(rows, cost, latency), strict=True):
        if on_front or row is best or row is close:
            shown.append({**row, "pareto": on_front, "run": None})
    lacking = [row for row in rows if row["status"] != "ok"]
    shown += [{**row, "pareto": False, "run": None} for row in sorted(lacking, key=_number)[:FIRST_FAILURES]]
    error: PlanError | None = None
    if failed:
        error = PlanError(
            f"{len(failed)} of {-(-plan.points // PART)} parts of {PART} points have no result; the first: {failed[0]}",
            mend="give the same command with --resume to try them again",
        )
    elif not statuses["ok"]:
        error = none_runs(statuses, plan.points, shown[0]["reason"])
    shown.sort(key=_number)
    return SweepResult(folder, tuple(shown), cost, latency, best, close, tuple(notes), error, statuses, outside)


def _number(row: Mapping[str, Any]) -> int:
    return int(row["point"])


def _kinds(axes: Sequence[Axis]) -> dict[str, str]:
    """Kind of each varied column, the same in all parts: number, text, or json where values are anything else or mixed."""
    kinds = {}
    for axis in axes:
        for place, path in enumerate(axis.paths):
            values = [value_of(step[place]) for step in axis.steps]
            numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
            words = all(isinstance(v, str) for v in values)
            kinds[axis_column(path)] = "number" if numbers else "text" if words else "json"
    return kinds


def _record(plan: PartedPlan, result: SweepResult | None) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tool_version": VERSION,
        "name": plan.name,
        "digest": plan.digest,
        "axes": [{"paths": list(axis.paths), "values": [list(s) for s in axis.steps]} for axis in plan.axes],
        "complete": result is not None and result.error is None,
        "cost": result.cost if result else None,
        "latency": result.latency if result else None,
        "points": [],
        "in_parts": plan.points,
    }
