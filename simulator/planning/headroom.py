"""How far a deployment is from full: the offered load over the highest that it sustains, found by bisection of short runs.

Two limits are looked for. Above the *sustainable* load the queue grows without bound (open loops: the backlog grows through the
window, or requests are turned away) or requests stand in it all the time (closed loops, which never overflow: more than one waits
at a replica on the average). Above the load *within the SLO* a percentile of the SLO is broken. Both are estimates: a short run
has a sampling error of its own, and each limit is known to `TOLERANCE`.

The load is scaled as a user would: rates of arrival, `rate_scale` of traces, the concurrency of closed loops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.planning.points import judged, overload_of
from simulator.run import RunResult, run_prepared
from simulator.workload.build import build_workload, resolve_trace
from simulator.workload.spec import Load, WorkloadSpec

if TYPE_CHECKING:
    from simulator.config.schema import Scenario
    from simulator.prepared import Prepared

TOLERANCE = 0.05
"""Relative distance at which bisection ends; assumed: below the sampling error of a short run."""
SHORTEST_S = 120.0
"""Window of a short run at least [s]; assumed."""
LONGEST_S = 600.0
"""Window of a short run at most [s], unless the scenario's is longer; assumed."""
REQUESTS = 1000
"""Requests in the window of a short run that are enough [requests]; assumed: ten beyond the 99th percentile."""
MANY = 3000
"""Requests in the window of a brief run up to which it is as long as its answers need [requests]; assumed."""
FEWEST = 30
"""Requests in the window of a short run below which nothing is judged [requests]; assumed."""
ANSWERS = 30.0
"""Window of a short run in mean times of service of the full one, at least; assumed: a full server is several times slower."""
WARMUP_ANSWERS = 10.0
"""Warm-up kept of a load of single requests in mean times of service; assumed as above. Conversations keep all of it."""
NEAR = 1.1
"""First step on the load where the limit is guessed; assumed: engines of one kind are mostly that near."""
FARTHEST = 1024.0
"""Factor on the load up to which, and down to whose inverse, is looked."""


@dataclass(frozen=True)
class Headroom:
    """The offered load and its two limits, in `unit`; a limit is None where none was found within `FARTHEST`.

    within_slo : None also where no SLO is given; 0 if even the lowest load tried breaks it.
    tried : the highest load tried. runs : short runs simulated, with a window of `window_s` at the offered load [s].
    """

    unit: str
    offered: float
    sustainable: float | None
    within_slo: float | None
    tried: float
    runs: int
    window_s: float
    judged: bool
    """Whether an SLO is given."""

    @property
    def used_share(self) -> float | None:
        """Offered load over the highest within the SLO, without an SLO over the sustainable one; None where none is known."""
        limit = self.within_slo if self.judged else self.sustainable
        return self.offered / limit if limit else None

    def as_dict(self) -> dict[str, Any]:
        """For `result.json`."""
        return {**asdict(self), "used": self.used_share, "tolerance": TOLERANCE, "kind": "estimate"}


def check_scalable(spec: WorkloadSpec) -> None:
    """Raise InputError for a load without a rate."""
    if spec.stages is not None:
        raise InputError(
            "loads that follow each other have no one rate",
            where="--headroom",
            mend="give one of the stages as the workload",
        )
    if any(load.arrivals is not None and load.arrivals.kind == "batch" for load in spec.loads()):
        raise InputError(
            "a batch has no rate that could be raised: all its requests are there at time zero",
            where="--headroom",
            mend="leave --headroom out; the run itself says when the batch ends",
        )


def scaled(spec: WorkloadSpec, factor: float) -> WorkloadSpec:
    """The load times `factor`: rates, `rate_scale` of traces, concurrency (rounded, at least one)."""
    if spec.classes is None:
        return spec.model_copy(update=_scaled(spec, factor))
    return spec.model_copy(update={"classes": tuple(c.model_copy(update=_scaled(c, factor)) for c in spec.classes)})


def _scaled(load: Load, factor: float) -> dict[str, Any]:
    if load.trace is not None:
        return {"rate_scale": (load.rate_scale or 1.0) * factor}
    arrivals = load.arrivals
    assert arrivals is not None
    if arrivals.kind == "closed_loop":
        return {"arrivals": arrivals.model_copy(update={"concurrency": max(1, round(arrivals.concurrency * factor))})}
    rates = ("rate_on", "rate_off") if arrivals.kind == "onoff" else ("rate",)
    return {"arrivals": arrivals.model_copy(update={name: getattr(arrivals, name) * factor for name in rates})}


@dataclass(frozen=True)
class _Outcome:
    """What a run shows: the requests offered in its window [1/s], whether they are sustained, whether the SLO holds (None without
    one), and of an overloaded run what it served [1/s].
    """

    rate: float
    sustained: bool
    holds: bool | None
    served_per_s: float | None


class Search:
    """Short runs of a prepared scenario at other loads, each made once; `brief`: as short as `REQUESTS` twice over allow."""

    def __init__(
        self,
        prepared: Prepared,
        run: RunResult,
        stop: Callable[[], bool] = lambda: False,
        tell: Callable[[str], None] = lambda text: None,
        brief: bool = False,
    ) -> None:
        check_scalable(prepared.scenario.workload)
        self._brief = brief
        self._prepared, self._stop, self._tell = prepared, stop, tell
        self._spec = prepared.scenario.workload
        self._span_s = _span_of_files_s(prepared)
        self._closed = _closed(self._spec)
        self._run = run
        self._period_s = max((_period_s(load) for load in self._spec.loads()), default=0.0)
        self.asked = judged(run.result)[1] is not None
        self.seen = {1.0: self._outcome(run)}
        self._length_s = float(run.result["totals"]["duration_s"])
        metrics = run.result["metrics"]
        self._answer_s = ((metrics["e2el_ms"]["mean"] or 0.0) - (metrics["queue_ms"]["mean"] or 0.0)) / 1e3

    def window_s(self, factor: float) -> float:
        """Window of the run at that load [s]."""
        if any(load.arrivals is not None and load.arrivals.kind == "diurnal" for load in self._spec.loads()):
            return self._length_s
        enough = REQUESTS / max(self.seen[1.0].rate * (1.0 if self._closed else factor), 1e-9)
        shortest_s = min(SHORTEST_S, max(2 * enough, 2 * self._period_s)) if self._brief else SHORTEST_S
        answers_s = min(ANSWERS * self._answer_s, MANY / REQUESTS * enough) if self._brief else ANSWERS * self._answer_s
        least = max(shortest_s, answers_s, enough)
        return min(least, max(LONGEST_S, self._length_s))

    def _outcome(self, run: RunResult) -> _Outcome:
        result = run.result
        waits = self._closed and result["server"]["num_requests_waiting"] > 1
        over = overload_of(result)
        by_count = run is self._run and self._spec.duration is None and not self._closed
        rate = _offered_per_s(run, by_count=by_count)
        return _Outcome(rate, over is None and not waits, judged(result)[1], over[1] if over else None)

    def probe(self, factor: float) -> _Outcome | None:
        """The outcome at that load; None where files end too soon for it, or too few requests would come to judge by."""
        if factor not in self.seen:
            found = self._simulated(factor)
            if found is None:
                return None
            self.seen[factor] = found
        return self.seen[factor]

    def _simulated(self, factor: float) -> _Outcome | None:
        if not self._closed and self.seen[1.0].rate * factor * self.window_s(factor) < FEWEST:
            return None
        spec, scenario = self._spec, self._prepared.scenario
        single = all(load.sessions is None and load.shared_prefix is None for load in spec.loads())
        warmup_s = min(spec.warmup, max(WARMUP_ANSWERS * self._answer_s, 10.0)) if single else spec.warmup
        if self._brief and all(load.sessions is None for load in spec.loads()):
            warmup_s /= max(1.0, factor)  # as many requests fill the caches
        duration_s = warmup_s + self.window_s(factor)
        if self._span_s is not None:
            if self._span_s / factor < warmup_s + SHORTEST_S / 4:
                return None
            duration_s = min(duration_s, self._span_s / factor)
        short = scaled(spec, factor).model_copy(update={"duration": duration_s, "warmup": warmup_s, "requests": None})
        self._tell(f"looking for the highest load: run {len(self.seen)}, {factor:.3g} times the offered one ...")
        changed: Scenario = scenario.model_copy(update={"workload": short})
        found = self._outcome(run_prepared(replace(self._prepared, scenario=changed), should_stop=self._stop))
        if self._stop():
            raise KeyboardInterrupt
        return found

    def highest(self, good: Callable[[_Outcome], bool], near_factor: float | None = None) -> float | None:
        """The highest factor at which `good` holds, to `TOLERANCE`; 0 if it never does, None if it always does.

        near_factor : where it is looked for first, by steps that grow up to twice the load.
        """
        step = 2.0
        if near_factor is not None and self.probe(near_factor) is not None:
            step = NEAR
        low = max((f for f, outcome in self.seen.items() if good(outcome)), default=None)
        high = min((f for f, outcome in self.seen.items() if not good(outcome)), default=None)
        up = near_factor is None or good(self.seen.get(near_factor, self.seen[1.0]))
        while low is None or high is None or (high / low > 1 + TOLERANCE and not self._same(low, high)):
            if high is None or (up and low is not None):
                assert low is not None
                at, aim = low, min(low * step, FARTHEST)
            else:
                at, aim = high, max(high / step, 1 / FARTHEST)
            if low is not None and high is not None:
                aim = (min if at == low else max)(aim, math.sqrt(low * high))
            outcome = self.probe(aim) if aim != at else None
            if outcome is None:
                return None if high is None else low or 0.0
            up, step = good(outcome), min(step * step, 2.0)
            low, high = (aim, high) if up else (low, aim)
        return low

    def served_per_s(self) -> float:
        """The most that an overloaded run served; 0 if none was overloaded."""
        return max((o.served_per_s for o in self.seen.values() if o.served_per_s is not None), default=0.0)

    def sustains(self, outcome: _Outcome) -> bool:
        """Whether the backlog stays bounded: also where it grew in a burst, at a mean rate below what was served elsewhere."""
        return outcome.sustained or outcome.rate < self.served_per_s()

    def keeps(self, outcome: _Outcome) -> bool:
        """Whether the SLO holds, if there is one, and the backlog stays bounded."""
        return outcome.holds is not False and self.sustains(outcome)

    def limit(self, near_factor: float | None = None) -> Headroom:
        """The highest load within the SLO alone, without one the highest that is sustained; `near_factor`: where to begin."""
        whole = self.seen[1.0]
        if whole.served_per_s:  # overloaded: no more than it served
            near_factor = min(near_factor or math.inf, whole.served_per_s / whole.rate)
        highest = self.highest(self.keeps, near_factor)
        return self.found(None, highest) if self.asked else self.found(highest, None)

    def exceeded_by(self, other: Prepared) -> bool:
        """Whether another deployment carries more than the highest load that was found, by one run of it."""
        held = [f for f, outcome in self.seen.items() if self.keeps(outcome)]
        aim = max(held) * (1 + TOLERANCE) if held else min(self.seen)
        if held and self._closed:
            aim = max(aim, max(held) + 1 / self._spec.users())
        outcome = Search(other, self._run, self._stop, self._tell, self._brief)._simulated(aim)
        return outcome is not None and self.keeps(outcome)

    def found(self, sustained_factor: float | None, within_factor: float | None) -> Headroom:
        """Factors as loads."""
        offered = self._spec.users() if self._closed else self.seen[1.0].rate

        def load(factor: float | None) -> float | None:
            if factor is None or factor == 0:
                return factor
            if self._closed:
                return float(round(offered * factor))
            return min(self.seen[factor].rate, self.served_per_s() or math.inf)

        return Headroom(
            "users" if self._closed else "requests/s",
            offered,
            load(sustained_factor),
            load(within_factor),
            float(round(offered * max(self.seen))) if self._closed else max(outcome.rate for outcome in self.seen.values()),
            len(self.seen) - 1,
            self.window_s(1.0),
            self.asked,
        )

    def _same(self, low: float, high: float) -> bool:
        """Whether no whole number of users lies between two loads."""
        users = self._spec.users()
        return self._closed and round(users * high) - round(users * low) <= 1


def _offered_per_s(run: RunResult, *, by_count: bool) -> float:
    """Requests that arrived in the window of a run [1/s]; of a streamed run, which does not hold them, those that ended there.

    by_count : whether a number of requests ends the arrivals, long before the window if they come faster than they are served.
    """
    start_s, length_s, arrival_s = run.workload.warmup_s, float(run.result["totals"]["duration_s"]), run.raw.arrival_s
    inside = int(np.sum((arrival_s >= start_s) & (arrival_s <= start_s + length_s)))
    if by_count and inside > 1:
        length_s = min(length_s, float(np.nanmax(arrival_s)) - start_s)
    return inside / max(length_s, 1e-9) if inside else float(run.result["totals"]["request_throughput"])


def _closed(spec: WorkloadSpec) -> bool:
    return all(load.arrivals is not None and load.arrivals.kind == "closed_loop" for load in spec.loads())


def _period_s(load: Load) -> float:
    """After which a load repeats itself [s]; 0 for one without bursts."""
    arrivals = load.arrivals
    return arrivals.on_s + arrivals.off_s if arrivals is not None and arrivals.kind == "onoff" else 0.0


def _span_of_files_s(prepared: Prepared) -> float | None:
    """Time that the trace files of a load last as they are offered [s]; None where nothing is read from a file."""
    spec, base = prepared.scenario.workload, prepared.base_dir
    if not any(load.trace is not None and resolve_trace(load.trace, base) is not None for load in spec.loads()):
        return None
    whole = spec.model_copy(update={"duration": None, "warmup": 0.0})
    return build_workload(whole, seed=prepared.scenario.seed, base_dir=base).duration_s


def headroom(
    prepared: Prepared,
    run: RunResult,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    tell: Callable[[str], None] = lambda text: None,
) -> Headroom:
    """Find the limits of the deployment of `run`, a full run of `prepared`, by short runs at other loads.

    Raises InputError for a load without a rate, KeyboardInterrupt once `should_stop` says so.
    """
    search = Search(prepared, run, should_stop, tell)
    sustained = search.highest(search.sustains)
    return search.found(sustained, search.highest(search.keeps) if search.asked else None)
