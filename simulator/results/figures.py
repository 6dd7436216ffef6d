"""What a run amounts to: counts, statistics, verdict, timeline and the table of requests, from blocks of requests and logs.

A run in memory is one block, counted exactly; a streamed one is many, whose requests and steps are dropped as they are counted.
The two differ in the statistics that they keep, and in where the table goes. What needs the window's end before it is known (a
streamed run that ends with its last request, or is interrupted) takes the window as open; only then rates differ by what ended
beyond it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass
from simulator.cluster.outcome import (
    FINISHED,
    LOSSES,
    NOT_ARRIVED,
    REJECTED,
    STATUS_NAMES,
    UNFINISHED,
    ClusterResult,
    Reason,
    Rows,
)
from simulator.io.tables import Column
from simulator.limits import counted_lengths
from simulator.results.first_requests import FirstRequests
from simulator.results.latencies import (
    LATENCIES,
    OF_ENCODING,
    OF_HANDOVER,
    Covered,
    Latencies,
    TokenGaps,
    kept_ranges,
    latencies,
)
from simulator.results.rates import (
    BatchCut,
    BinnedTimes,
    ExactTimes,
    Overload,
    Rates,
    batch_cut,
    lost_backlog,
    shed_load,
)
from simulator.results.request_table import request_table
from simulator.results.sketch import RELATIVE_ERROR
from simulator.results.statistics import BoolArray, Exact, FloatArray, IntArray, Sketched, Statistic
from simulator.results.timeline import NO_KV, Bins, Window, WindowLoad, table, table_of
from simulator.results.verdict import class_slo, good_requests, named_bounds, slo_dict, verdict
from simulator.serving.emissions import Emissions
from simulator.serving.log import StepLog
from simulator.workload.columns import RequestClass

if TYPE_CHECKING:
    from simulator.config.schema import Scenario
    from simulator.workload.spec import WorkloadSpec

OF_A_CLASS = ("ttft_ms", "tpot_ms", "e2el_ms", "queue_ms")
"""Latencies of each class."""
LENGTHS = {
    "input_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
    "cached_tokens": "cached_tokens",
}
OPEN_END_S = 1e18
"""End of a window whose end is not known yet."""


@dataclass
class Figures:
    """Counts, statistics and verdict of a run.

    `counts` are requests by how they ended, `reasons` those that arrived and have no answer, by why, `lengths` those that the
    engine refuses or cuts for their length, by the names of `limits.counted_lengths`. `inside` are those that arrived in the
    measured window, `good_inside` those of them that kept the SLO (None without one); `window_completed` ended in the window,
    whenever they arrived, and `window_good` of those kept the SLO. Tokens are counted in the window as they become visible, and
    in `total_*` for finished requests of the whole run. `quantile_error` is the relative error that the percentiles may have, 0
    where they are exact. `unlimited` requests arrived without a limit of the client's, `never_sent` were asked for by a number of
    requests, and the end came before. `first_requests` are latencies of those that came first, where servers were cold, beside
    those of the others. `pools` are the loads of each pool, where there are several.
    """

    window: Window
    counts: dict[str, int]
    reasons: dict[str, int]
    lengths: Mapping[str, int]
    inside: int
    stats: dict[str, dict[str, Any]]
    server: dict[str, Any]
    pools: list[dict[str, Any]]
    encoders: list[dict[str, Any]]
    first_arrival_s: float
    last_end_s: float
    total_input_tokens: int
    total_output_tokens: int
    window_input_tokens: int
    window_output_tokens: int
    window_completed: int
    window_good: int | None
    good_inside: int | None
    max_concurrent: int
    preemptions: int
    overload: Overload | None
    batch_cut: BatchCut | None
    verdict: dict[str, Any] | None
    rates_ci95: dict[str, list[float] | None]
    open_loop: bool
    at_once: bool
    used_up_at_s: float | None
    classes: list[dict[str, Any]]
    quantile_error: float
    unlimited: int
    never_sent: int
    first_requests: dict[str, Any] | None

    @property
    def offered(self) -> int:
        """Requests that arrived."""
        return sum(self.counts.values()) - self.counts["not_arrived"]

    @property
    def refused(self) -> int:
        """Requests that arrived and that the engine refused for their length."""
        names = (
            r.name.lower() for r in (Reason.PROMPT_TOO_LONG, Reason.LIMIT_TOO_LONG, Reason.EXCEEDS_KV_CACHE)
        )
        return sum(self.reasons.get(name, 0) for name in names)


def measured_window(
    requests: int,
    duration_s: float,
    warmup_s: float,
    end_of_run_s: float,
    stopped_at_s: float | None,
    spec: WorkloadSpec,
) -> Window:
    """Return [warmup, duration], or to the end of the run where the number of requests ends it."""
    end = duration_s
    by_count = spec.requests is not None and requests >= spec.requests
    has_duration = (spec.duration is not None or spec.trace is not None) and not by_count
    if not has_duration or not np.isfinite(end) or end <= warmup_s:
        end = end_of_run_s
    if stopped_at_s is not None:
        end = min(end, stopped_at_s)
    return Window(warmup_s, max(end, warmup_s))


def last_seen_s(block: ClusterResult) -> float:
    """When the last of a block's requests came, or the last answer was complete; 0 without any."""
    came, ended = block.arrival_s[block.status != NOT_ARRIVED], block.end_s[block.status == FINISHED]
    return float(max(np.max(came, initial=0.0), np.max(ended, initial=0.0)))


class Judged:
    """Statistics of requests that are judged together, all of a run or those of a class, and of the gaps between their tokens."""

    def __init__(
        self,
        slo: dict[str, Any],
        names: Iterable[str],
        make: Callable[[Iterable[float]], Statistic],
        logs: Sequence[StepLog],
    ) -> None:
        self._slo, self._names = slo, tuple(names)
        bounds: dict[str, list[float]] = {}
        for metric, _, bound in named_bounds(slo):
            bounds.setdefault(metric, []).append(bound)
        self.stats = {
            name: make(bounds.get(name, ())) for name in dict.fromkeys((*self._names, *bounds, "itl_ms"))
        }
        self._late = make((0.5,))
        self._gaps = TokenGaps(logs)
        self.requests = self.lost = 0

    def add(self, lat: Latencies, inside: BoolArray) -> None:
        """Take in the latencies of the chosen requests of a block."""
        lost = np.isnan(lat.e2el_ms[inside])
        self.requests += len(lost)
        self.lost += int(lost.sum())
        for name, stat in self.stats.items():
            if name != "itl_ms":
                values = getattr(lat, name)[inside]
                values[lost] = np.inf
                stat.add(values[~np.isnan(values)] if name == "tpot_ms" else values)
        if self._slo:
            self._late.add((~good_requests(lat, self._slo)[inside]).astype(float))

    def count(self, emissions: Emissions, finished: BoolArray) -> None:
        """Take in the gaps between the tokens of the chosen requests of a block."""
        self._gaps.count(emissions, finished)

    def retire(self, steps: Sequence[int]) -> None:
        """Count the gaps between tokens on the first kept steps of each log."""
        gaps, weights = self._gaps.take(steps)
        gaps *= 1e3
        self.stats["itl_ms"].add(gaps, weights)

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Statistics by metric."""
        return {name: self.stats[name].summary("ms") for name in (*self._names, "itl_ms")}

    def verdict(self) -> dict[str, Any] | None:
        """Judge the SLO, None without one."""
        if not self._slo:
            return None
        itl = self.stats["itl_ms"]
        if self.lost:  # a lost request counts as many infinite gaps as the others have on average
            itl.lose(self.lost * max(1, round(itl.count / max(1, self.requests - self.lost))))
        return verdict(self.stats, self._late.beyond(0.5), self._slo)

    def goodput_fraction(self) -> float | None:
        """Share of good requests, None without an SLO or requests."""
        late = self._late.beyond(0.5)
        return (late.total - late.beyond) / late.total if late.total else None


@dataclass
class PoolRequests:
    """The requests that one of several pools served, judged together, and sums of what it did in the window."""

    judged: Judged
    completed: int = 0
    good: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def figures(self, *, judged: bool) -> dict[str, Any]:
        """Their figures; how many of them were good if an SLO is `judged`."""
        requests = self.judged.requests
        return {
            "requests": requests,
            "window_completed": self.completed,
            "window_input_tokens": self.input_tokens,
            "window_output_tokens": self.output_tokens,
            "goodput_fraction": self.good / requests if judged and requests else None,
            "metrics": self.judged.summaries(),
        }


class Collector:
    """The sink of a cluster that counts a run: takes blocks of requests, drops what has been counted, and yields figures.

    Parameters
    ----------
    scenario : what was asked.
    classes : of the requests.
    warmup_s, duration_s : begin of the measured window, and end of the arrivals, infinite where their number ends them.
    logs : of all ranks; capacities : KV units of each.
    write : takes the columns of the request table, a block at a time.
    exact : keep everything (a run of one block, which comes when the run is over), and drop no step.
    pools : the pool of each rank.
    hands_over : whether requests go from a pool that computes prompts to one that computes answers.
    begin_s : when the load begins; what the logs hold of before is not its own.
    apart : whether each request is served by one pool, whose requests are judged apart.
    encoders : pool and log of each server that only encodes; they stand after the ranks in the timeline.
    firsts : so many that come first are judged apart.
    """

    def __init__(
        self,
        scenario: Scenario,
        classes: Sequence[RequestClass],
        warmup_s: float,
        duration_s: float,
        logs: Sequence[StepLog],
        capacities: Sequence[int],
        write: Callable[[Mapping[str, Column]], None],
        *,
        exact: bool,
        pools: Sequence[str],
        hands_over: bool = False,
        begin_s: float = 0.0,
        apart: bool = False,
        encoders: Sequence[tuple[str, StepLog]] = (),
        firsts: int = 0,
    ) -> None:
        self._firsts = FirstRequests(firsts, Exact if exact else Sketched) if firsts else None
        self._encoders = encoders
        self._begin_s = begin_s
        spec = self._spec = scenario.workload
        self._overhead_s = scenario.client.overhead_ms / 1e3
        self._pools, self._hands_over = pools, hands_over
        self._exact, self._write = exact, write
        self._duration_s = duration_s
        known = spec.requests is None and np.isfinite(duration_s) and duration_s > warmup_s
        self.window = Window(warmup_s, duration_s if known else OPEN_END_S)
        self._load = WindowLoad(self.window)
        self._of_pools = {name: WindowLoad(self.window) for name in pools}
        self._logs, self._capacities = logs, capacities
        self._bins = [] if exact else [Bins(capacity) for capacity in capacities]
        make: type[Statistic] = Exact if exact else Sketched
        self.held: ClusterResult | None = None
        self.held_rows: Rows | None = None
        self._rates = Rates(BinnedTimes)
        slo = self._slo = slo_dict(scenario.slo)
        self._slos = [class_slo(kind, slo) for kind in classes] or [slo]
        further = (*(OF_HANDOVER if hands_over else ()), *(OF_ENCODING if encoders else ()))
        self._all = Judged(slo, (*LATENCIES, *further), make, logs)
        kinds = classes if spec.classes is not None or len(classes) > 1 else ()
        self._apart = [
            (kind, Judged(bounds, OF_A_CLASS, make, logs))
            for kind, bounds in zip(kinds, self._slos, strict=False)
        ]
        self._served = {name: PoolRequests(Judged(slo, OF_A_CLASS, make, logs)) for name in pools if apart}
        self._lengths = {name: make(()) for name in LENGTHS}
        self._tokens = [Covered() for _ in logs]
        self._statuses = np.zeros(len(STATUS_NAMES), dtype=np.int64)
        self._reasons = np.zeros(len(Reason), dtype=np.int64)
        self._refused: Counter[str] = Counter()
        self._sums: Counter[str] = Counter()
        self._work = dict.fromkeys(("prompts", "outputs", "cached", "prefilled", "emitted", "prefill_s", "decode_s"), 0.0)
        self._first_arrival_s, self._last_end_s, self._last_seen_s = np.inf, 0.0, 0.0
        self._known_s = np.zeros(0)  # first and last arrival that is known beforehand
        self._level = self._peak = 0
        self._began, self._ended = np.zeros(0), np.zeros(0)

    @property
    def _judged_at_all(self) -> bool:
        return any(self._slos)

    def _numbers_of(self, pool: str) -> list[int]:
        """The ranks of a pool."""
        return [number for number, name in enumerate(self._pools) if name == pool]

    # -- taking in ------------------------------------------------------------------------------------------

    def account(self, block: ClusterResult, rows: Rows) -> None:
        """Take in a block of requests, all of which have ended or will not; blocks come in order of arrival."""
        if self._exact:
            self.held, self.held_rows = block, rows
            last_s = max(block.end_of_run_s, last_seen_s(block))
            self.window = self._window(len(block.status), self._duration_s, last_s, block.stopped_at_s)
            self._load = WindowLoad(self.window)
            self._of_pools = {name: WindowLoad(self.window) for name in self._pools}
            self._rates = Rates(partial(ExactTimes, self.window))
        window, sums, status, workload = self.window, self._sums, block.status, rows.workload
        arrived, finished = status != NOT_ARRIVED, status == FINISHED
        inside = arrived & (block.arrival_s >= window.start_s) & (block.arrival_s <= window.end_s)
        lat = latencies(block, self._overhead_s)
        if self._firsts is not None:
            self._firsts.add(block.arrival_s, arrived, inside, lat)
        good = np.zeros(len(status), dtype=bool)
        for number, bounds in enumerate(self._slos):
            good |= good_requests(lat, bounds) & (workload.class_index == number)
        self._write(
            request_table(
                workload, block, lat, good if self._judged_at_all else None, pools=self._pools, first=rows.first
            )
        )
        together = [(self._all, inside)]
        together += [(one, inside & (workload.class_index == i)) for i, (_, one) in enumerate(self._apart)]
        by_pool = {name: np.isin(block.replica, self._numbers_of(name)) for name in self._served}
        together += [(self._served[name].judged, inside & mine) for name, mine in by_pool.items()]
        for judged, mine in together:
            judged.add(lat, mine)
            judged.count(block.emissions, mine & finished)
        chosen = inside & (status != REJECTED)
        for name, column in LENGTHS.items():
            self._lengths[name].add(getattr(block, column)[chosen].astype(float))
        self._rates.add(block, good if self._judged_at_all else None)
        self._statuses += np.bincount(status, minlength=len(STATUS_NAMES))
        self._reasons += np.bincount(block.reason, minlength=len(Reason))
        self._refused.update(counted_lengths(rows.lengths, arrived))
        visible = (block.end_s >= window.start_s) & (block.end_s <= window.end_s)
        first = (block.first_token_s >= window.start_s) & (block.first_token_s <= window.end_s)
        for name, mine in by_pool.items():
            served = self._served[name]
            served.completed += int((visible & mine).sum())
            served.good += int((good & inside & mine).sum())
            served.input_tokens += int(block.prompt_tokens[first & mine].sum())
        sums["good"] += int((good & inside).sum())
        sums["window_good"] += int((good & visible).sum())
        sums["completed"] += int(visible.sum())
        sums["inputs"] += int(block.prompt_tokens[first].sum())
        sums["total_in"] += int(block.prompt_tokens[finished].sum())
        sums["total_out"] += int(block.output_tokens[finished].sum())
        sums["preempted"] += int(block.preemptions.sum())
        sums["unlimited"] += int((arrived & (workload.max_output_tokens <= 0)).sum())
        work, taken = self._work, ~rows.refused
        work["prompts"] += float(block.prompt_tokens[taken].sum())
        work["outputs"] += float(block.output_tokens[taken].sum())
        work["cached"] += float(block.cached_tokens.sum())
        unknown = np.isnan(workload.arrival_s)
        pooled = unknown & (workload.predecessor < 0)
        sums["released"] += int(unknown.sum())
        sums["pooled"] += int(pooled.sum())
        sums["left"] += int((pooled & ~arrived).sum())
        known = np.concatenate([self._known_s, workload.arrival_s[~unknown]])
        self._known_s = np.array([known.min(), known.max()]) if len(known) else known
        self._first_arrival_s = float(np.min(block.arrival_s[arrived], initial=self._first_arrival_s))
        ended = block.end_s[finished]
        self._last_end_s = float(np.max(ended, initial=self._last_end_s))
        self._last_seen_s = max(self._last_seen_s, last_seen_s(block))
        self._began = np.concatenate([self._began, block.arrival_s[finished | (status == UNFINISHED)]])
        self._ended = np.concatenate([self._ended, ended])
        for spans in kept_ranges(block.emissions, np.arange(len(status)), self._logs):
            for number in spans.logs():
                begin, last = spans.of_log(number)
                self._tokens[number].add(begin, last + 1, len(self._logs[number].end_s))

    def retire(self, before_s: float) -> None:
        """Count and drop what no block that is still to come can name: all requests of those arrive at `before_s` or later."""
        done = np.isinf(before_s)
        records, steps = [], []
        for number, log in enumerate(self._logs):
            if not log.end_s:
                records.append(0)
                steps.append(0)
                continue
            ends = np.frombuffer(log.end_s, dtype=np.float64)
            reached = np.cumsum(log.column("steps"), dtype=np.int64)
            sent = int(np.searchsorted(reached, len(log.sent_s), side="right"))
            count = (
                len(reached)
                if done
                else min(int(np.searchsorted(ends[reached - 1], before_s, side="left")), sent) - 1
            )
            records.append(max(0, count))
            steps.append(int(reached[count - 1]) if count > 0 else 0)
            if count > 0:
                self._count_steps(number, count, ends[: steps[-1]])
            del ends  # a log whose buffer is in use cannot grow
        apart = (judged for _, judged in self._apart)
        for judged in (self._all, *apart, *(served.judged for served in self._served.values())):
            judged.retire(steps)
        if not self._exact:
            for log, count, n in zip(self._logs, records, steps, strict=True):
                log.retire(count, n)
        began, ended = self._began < before_s, self._ended < before_s
        peak, self._level = _peak_of(self._began[began], self._ended[ended], self._level)
        self._peak = max(self._peak, peak)
        self._began, self._ended = self._began[~began], self._ended[~ended]

    def _count_steps(self, number: int, records: int, ends: FloatArray) -> None:
        """Count the first records of a log: the time and state of their steps, which end at `ends`, and the tokens they yield."""
        window, found = self.window, self._logs[number].records(records)
        self._load.add(found, self._capacities[number])
        if len(self._of_pools) > 1:
            self._of_pools[self._pools[number]].add(found, self._capacities[number])
        if not self._exact:
            self._bins[number].add(found)
        tokens = self._tokens[number].take(len(ends))
        low = int(np.searchsorted(ends, window.start_s, side="left"))
        high = int(np.searchsorted(ends, window.end_s, side="right"))
        emitted = int(tokens[low:high].sum(dtype=np.int64))
        self._sums["tokens"] += emitted
        if self._served:
            self._served[self._pools[number]].output_tokens += emitted
        if self._begin_s:
            own = int(np.searchsorted(found["start_s"], self._begin_s))
            found = {name: column[own:] for name, column in found.items()}
        work, prefill_s = self._work, float(found["prefill_s"].sum())
        work["emitted"] += float(tokens.sum(dtype=np.int64))
        work["prefilled"] += float(found["prefill_tokens"].sum())
        work["prefill_s"] += prefill_s
        work["decode_s"] += float(found["device_s"].sum()) - prefill_s
        self._rates.tokens.add(ends, tokens)

    # -- giving ---------------------------------------------------------------------------------------------

    def _window(
        self, requests: int, duration_s: float, end_of_run_s: float, stopped_at_s: float | None
    ) -> Window:
        start_s = self.window.start_s
        return measured_window(requests, duration_s, start_s, end_of_run_s, stopped_at_s, self._spec)

    def figures(
        self,
        end_of_run_s: float,
        stopped_at_s: float | None,
        duration_s: float,
        ranks_in: Callable[[float, float, str | None], float] | None = None,
    ) -> Figures:
        """What the run amounts to, once everything was retired.

        `ranks_in` is how many ranks there were on average, of a pool or (None) of all; without it all count.
        """
        sums, judged_at_all, everything = self._sums, self._judged_at_all, self._all
        counts = dict(zip(STATUS_NAMES, self._statuses.tolist(), strict=True))
        window = (
            self.window
            if self._exact
            else self._window(sum(counts.values()), duration_s, max(end_of_run_s, self._last_seen_s), stopped_at_s)
        )
        ranks = len(self._logs) if ranks_in is None else ranks_in(window.start_s, window.end_s, None)
        by_pool = {
            name: self._pools.count(name) if ranks_in is None else ranks_in(window.start_s, window.end_s, name)
            for name in self._of_pools
        }
        verdict = everything.verdict() if stopped_at_s is None else None
        spec = self._spec
        cut = counts["unfinished"] > 0 and stopped_at_s is None and is_batch(spec)
        lost = None if cut else lost_backlog(counts, window, end_of_run_s, stopped_at_s)
        used_up = sums["pooled"] and not sums["left"] and end_of_run_s < self._duration_s
        return Figures(
            window=window,
            counts=counts,
            reasons={r.name.lower(): int(self._reasons[r]) for r in LOSSES if self._reasons[r]},
            lengths=self._refused,
            inside=everything.requests,
            stats=everything.summaries()
            | {name: stat.summary("tokens") for name, stat in self._lengths.items()},
            server=self._load.averages(window.length_s, ranks),
            pools=[
                {
                    "name": name,
                    **load.averages(window.length_s, by_pool[name]),
                    **(self._served[name].figures(judged=judged_at_all) if self._served else {}),
                }
                for name, load in self._of_pools.items()
                if len(self._of_pools) > 1
            ],
            encoders=self._encoded(window),
            first_arrival_s=self._first_arrival_s if np.isfinite(self._first_arrival_s) else 0.0,
            last_end_s=self._last_end_s,
            total_input_tokens=sums["total_in"],
            total_output_tokens=sums["total_out"],
            window_input_tokens=sums["inputs"],
            window_output_tokens=sums["tokens"],
            window_completed=sums["completed"],
            window_good=sums["window_good"] if judged_at_all else None,
            good_inside=sums["good"] if judged_at_all else None,
            max_concurrent=self._peak,
            preemptions=sums["preempted"],
            overload=(None if spec.holds_sessions() else self._rates.overload(window, counts["unfinished"]))
            or lost
            or shed_load(
                int(self._reasons[Reason.SHED_429] + self._reasons[Reason.SHED_503]),
                sum(counts.values()) - counts["not_arrived"],
                sums["completed"],
                window,
            ),
            batch_cut=batch_cut(self._work, end_of_run_s) if cut else None,
            verdict=verdict,
            rates_ci95=self._rates.ci95(window, judged=judged_at_all),
            open_loop=not sums["released"] and bool(np.ptp(self._known_s) > 0),
            at_once=not sums["released"] and not np.ptp(self._known_s),
            used_up_at_s=end_of_run_s
            if used_up and self._spec.requests is None and stopped_at_s is None
            else None,
            classes=[
                {
                    "name": kind.name,
                    "priority": kind.priority,
                    "requests": judged.requests,
                    "metrics": judged.summaries(),
                    "slo": judged.verdict() if stopped_at_s is None else None,
                    "goodput_fraction": judged.goodput_fraction(),
                }
                for kind, judged in self._apart
            ],
            quantile_error=0.0 if self._exact else RELATIVE_ERROR,
            first_requests=self._firsts.summary() if self._firsts is not None else None,
            unlimited=sums["unlimited"],
            never_sent=max(0, (spec.requests or 0) - sum(counts.values()) + counts["not_arrived"])
            if stopped_at_s is None
            else 0,
        )

    def _encoded(self, window: Window) -> list[dict[str, Any]]:
        """What each pool did that only encodes, over the window; there is no KV cache of which it could tell."""
        found = []
        for name in dict.fromkeys(name for name, _ in self._encoders):
            load, mine = WindowLoad(window), [log for pool, log in self._encoders if pool == name]
            tokens = 0
            for log in mine:
                records = log.records()
                load.add(records, 1)
                inside = (records["start_s"] >= window.start_s) & (records["start_s"] <= window.end_s)
                tokens += int(records["prefill_tokens"][inside].sum())
            averages = load.averages(window.length_s, len(mine))
            kept = {key: value for key, value in averages.items() if not key.startswith("kv_") and key != "num_preemptions"}
            found.append({"name": name, **kept, "image_tokens": tokens})
        return found

    def timeline(self, end_of_run_s: float, ranks: int | None = None) -> Callable[[], dict[str, NDArray[Any]]]:
        """What makes the columns of `timeline.parquet`, of the first `ranks`, all if None."""
        beside = [log for _, log in self._encoders]
        if self._exact:  # the logs keep all
            logs, capacities = [*self._logs[:ranks], *beside], [*self._capacities[:ranks], *(NO_KV for _ in beside)]
            return partial(table_of, logs, capacities, end_of_run_s)
        bins = list(self._bins[:ranks])
        for log in beside:
            bins.append(Bins(NO_KV))
            bins[-1].add(log.records())
        return partial(table, bins, end_of_run_s)


def is_batch(spec: WorkloadSpec) -> bool:
    """Whether all requests are there at time zero."""
    return all(load.arrivals is not None and load.arrivals.kind == "batch" for load in spec.loads())


def _peak_of(began: FloatArray, ended: FloatArray, before: int) -> tuple[int, int]:
    """Most at once, and how many are left, of `before` and those that begin and end at these times; ends count first."""
    times = np.concatenate([ended, began])
    change = np.concatenate([np.full(len(ended), -1, np.int8), np.ones(len(began), np.int8)])
    level: IntArray = np.cumsum(change[np.lexsort((change, times))], dtype=np.int64)
    return before + int(level.max(initial=0)), before + len(began) - len(ended)


__all__ = ["Collector", "Figures", "Judged", "measured_window"]
