"""The figures of a run whose requests are not kept: counted block by block, as `results.figures` counts them at once.

Counts, sums, means, extremes, verdicts and goodput are exact. Percentiles come from histograms (`results.sketch`), sampling
errors from batches that differ from the exact ones by some thousand values. What needs the window's end before it is known (a
run that ends with its last request, or is interrupted) takes the window as open; only then rates differ by what ended beyond it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.outcome import (
    FINISHED,
    NOT_ARRIVED,
    REJECTED,
    STATUS_NAMES,
    UNFINISHED,
    ClusterResult,
    Reason,
)
from simulator.results import metrics
from simulator.results.figures import (
    LATENCIES,
    Figures,
    losses,
    lost_backlog,
    measured_window,
    named_losses,
    peak_of,
    slo_dict,
)
from simulator.results.sketch import RELATIVE_ERROR, LogHistogram
from simulator.results.timeline import Bins, WindowLoad, table, widen
from simulator.serving.emissions import Ranges
from simulator.serving.log import StepLog

if TYPE_CHECKING:
    from simulator.config.schema import Scenario

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

PIECE = 4096
"""Values whose mean is kept for the sampling error."""
OPEN_END_S = 1e18
"""End of a window whose end is not known yet."""


class Batches:
    """Sums of successive values, from which the means of `metrics.BATCHES` stretches of about equal weight are made."""

    def __init__(self) -> None:
        self._sums: list[float] = []
        self._weights: list[float] = []
        self._values = 0

    def add(self, values: FloatArray, weights: NDArray[Any] | None = None) -> None:
        """Append values, each `weights` times."""
        if not len(values):
            return
        at = np.arange(0, len(values), PIECE)
        counted = np.ones(len(values)) if weights is None else weights.astype(float)
        self._sums += np.add.reduceat(values * counted, at).tolist()
        self._weights += np.add.reduceat(counted, at).tolist()
        self._values += len(values)

    def means(self) -> FloatArray | None:
        """Means of the stretches; None where there are too few values."""
        weights, sums = np.array(self._weights), np.array(self._sums)
        if self._values < 2 * metrics.BATCHES or len(weights) < 2 * metrics.BATCHES:
            return None
        before = np.cumsum(weights) - weights
        batch = np.minimum(before * metrics.BATCHES // weights.sum(), metrics.BATCHES - 1).astype(np.int64)
        weight = np.bincount(batch, weights=weights, minlength=metrics.BATCHES)
        found = np.bincount(batch, weights=sums, minlength=metrics.BATCHES).astype(np.float64)
        return found / weight if weight.all() else None


class Statistic:
    """One metric: its histogram, moments and batches."""

    def __init__(self) -> None:
        self.histogram = LogHistogram()
        self.batches = Batches()
        self._mean = self._square = 0.0

    def add(self, values: FloatArray, weights: NDArray[Any] | None = None) -> None:
        """Take in values without NaN, each `weights` times (at least once)."""
        if not len(values):
            return
        before = self.histogram.count
        self.histogram.add(values, weights)
        self.batches.add(values, weights)
        n = self.histogram.count - before
        mean = float(np.average(values, weights=weights))
        square = float(np.average((values - mean) ** 2, weights=weights)) * n
        # Chan, Golub and LeVeque, The American Statistician 37 (1983)
        total, apart = before + n, mean - self._mean
        self._square += square + apart * apart * before * n / total
        self._mean += apart * n / total

    def summary(self, unit: str) -> dict[str, Any]:
        """As `metrics.statistics`."""
        out = metrics.statistics(np.zeros(0), unit)
        count = self.histogram.count
        if not count:
            return out
        out["mean"], out["std"] = self._mean, float(np.sqrt(self._square / count))
        out["min"], out["max"], out["count"] = self.histogram.least, self.histogram.greatest, count
        names = [metrics.percentile_name(p) for p in metrics.PERCENTILES]
        out.update(zip(names, self.histogram.quantiles(metrics.PERCENTILES), strict=True))
        means = self.batches.means()
        out["ci95"] = None if means is None else metrics.around(self._mean, means)
        return out


class TimeBins:
    """Amounts by time in bins of equal width, doubled whenever there would be more than `MOST`."""

    MOST = 1 << 14

    def __init__(self, names: tuple[str, ...]) -> None:
        self._width_s = 1.0
        self._sums = {name: np.zeros(self.MOST) for name in names}

    def add(self, name: str, times_s: FloatArray, weights: NDArray[Any] | None = None) -> None:
        """Add amounts (one each by default) at times that are not negative."""
        if not len(times_s):
            return
        latest = float(times_s.max())
        while latest >= self._width_s * self.MOST:
            self._width_s *= 2
            widen(self._sums)
        at = (times_s / self._width_s).astype(np.int64)
        self._sums[name] += np.bincount(at, weights=weights, minlength=self.MOST)

    def between(self, name: str, edges_s: FloatArray) -> FloatArray:
        """Amount between successive edges; a bin that an edge cuts counts by its share."""
        reached = np.concatenate(([0.0], np.cumsum(self._sums[name])))
        known = np.arange(self.MOST + 1) * self._width_s
        return np.diff(np.interp(edges_s, known, reached)).astype(np.float64)


class Check:
    """One bound of the SLO: how many values lie beyond it, in batches."""

    def __init__(self, metric: str, name: str, bound_ms: float) -> None:
        self.metric, self.name, self.bound_ms = metric, name, bound_ms
        self.percent = float(name[1:].replace("_", "."))
        self.beyond = self.total = 0
        self.batches = Batches()

    def add(self, values: FloatArray, weights: NDArray[Any] | None = None) -> None:
        """Take in values [ms], lost requests infinite."""
        over = values > self.bound_ms
        self.beyond += int(over.sum() if weights is None else weights[over].sum(dtype=np.int64))
        self.total += int(len(values) if weights is None else weights.sum(dtype=np.int64))
        self.batches.add(over.astype(float), weights)

    def lose(self, times: int) -> None:
        """Count infinite values."""
        self.beyond += times
        self.total += times

    def verdict(self, actual_ms: float) -> dict[str, Any]:
        """As a check of `metrics.verdict`; `actual_ms` is the percentile by the histogram, made to agree with the count."""
        rank = int(np.ceil(self.percent / 100 * (self.total - 1)))
        holds = self.total > 0 and self.total - self.beyond > rank
        actual = (
            min(actual_ms, self.bound_ms)
            if holds
            else max(actual_ms, float(np.nextafter(self.bound_ms, np.inf)))
        )
        return {
            "metric": self.metric,
            "percentile": self.name,
            "bound_ms": self.bound_ms,
            "actual_ms": actual if np.isfinite(actual) else None,
            "holds": holds,
            "close": metrics.open_share(
                self.batches.means(), self.beyond, self.total, 1 - self.percent / 100
            ),
        }


class ReplicaSteps:
    """Steps of one replica that are still needed: how many gaps and tokens fall on each, and its timeline."""

    def __init__(self, log: StepLog, kv_total: int) -> None:
        self.log = log
        self.kv_total = kv_total
        self._gaps = np.zeros(1, dtype=np.int64)  # changes of the number of gaps, by step
        self._tokens = np.zeros(1, dtype=np.int64)
        self.bins = Bins(kv_total)

    def ends(self) -> FloatArray:
        """End times of the steps that are kept."""
        return np.frombuffer(self.log.end_s, dtype=np.float64)

    def count(self, gaps_first: Any, gaps_last: Any, first: Any, last: Any) -> None:
        """Count the tokens of ranges of kept steps, and the gaps between tokens of (other) ranges."""
        size = len(self.log.end_s) + 1
        self._gaps, self._tokens = _grown(self._gaps, size), _grown(self._tokens, size)
        np.add.at(self._gaps, gaps_first, 1)
        np.subtract.at(self._gaps, gaps_last, 1)
        np.add.at(self._tokens, first, 1)
        np.subtract.at(self._tokens, last + 1, 1)

    def retire(
        self,
        before_s: float,
        load: WindowLoad,
        seen: Callable[[FloatArray, NDArray[Any], FloatArray, NDArray[Any]], None],
    ) -> None:
        """Count and drop the records that end before a time; the gaps and tokens on their steps are known by then.

        `seen` gets the gaps [s] with their weights, and the ends of the steps with their tokens.
        """
        log, ends = self.log, self.ends()
        steps = np.cumsum(np.frombuffer(log.steps, dtype=np.int32), dtype=np.int64)
        if not len(steps):
            return
        done = np.isinf(before_s)
        records = len(steps) if done else int(np.searchsorted(ends[steps - 1], before_s, side="left")) - 1
        if records <= 0:
            return
        n = int(steps[records - 1])
        size = len(ends) + 1
        self._gaps, self._tokens = _grown(self._gaps, size), _grown(self._tokens, size)
        gaps, tokens = np.cumsum(self._gaps[:n]), np.cumsum(self._tokens[:n])
        some = np.flatnonzero(gaps[: len(ends) - 1] > 0)
        seen(ends[some + 1] - ends[some], gaps[some], ends[:n].copy(), tokens)
        self._gaps, self._tokens = self._gaps[n:].copy(), self._tokens[n:].copy()
        self._gaps[0] += gaps[-1]
        self._tokens[0] += tokens[-1]
        found = log.records(records)
        load.add(found, self.kv_total)
        self.bins.add(found)
        del ends, found
        log.retire(records, n)


def _grown(values: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    return values if len(values) >= size else np.concatenate([values, np.zeros(size - len(values), np.int64)])


class Tally:
    """Counts blocks of requests and the steps behind them; `figures` and `timeline` give what came of it."""

    def __init__(
        self, scenario: Scenario, warmup_s: float, duration_s: float, replicas: list[ReplicaSteps]
    ) -> None:
        spec = scenario.workload
        self._scenario = scenario
        self._slo = slo_dict(scenario.slo)
        known = spec.requests is None and np.isfinite(duration_s) and duration_s > warmup_s
        self.window = metrics.Window(warmup_s, duration_s if known else OPEN_END_S)
        self._replicas = replicas
        self._load = WindowLoad(self.window)
        self._stats = {
            name: Statistic()
            for name in (*LATENCIES, "itl_ms", "input_tokens", "output_tokens", "cached_tokens")
        }
        self._checks = [
            Check(metric, name, float(bound))
            for metric, named in self._slo.items()
            if metric != "attainment" and named
            for name, bound in named.items()
        ]
        self._counts = dict.fromkeys(STATUS_NAMES, 0)
        self._losses = np.zeros(len(Reason), dtype=np.int64)
        self._sums = dict.fromkeys(
            (
                "inside",
                "good",
                "window_good",
                "completed",
                "inputs",
                "tokens",
                "total_in",
                "total_out",
                "lost",
                "preempted",
            ),
            0,
        )
        self._good = Batches()
        self._bins = TimeBins(("ended", "inputs", "tokens", "good", "offered"))
        self._first_arrival_s, self._last_arrival_s, self._last_end_s = np.inf, -np.inf, 0.0
        self._level = self._peak = 0
        self._began, self._ended = np.zeros(0), np.zeros(0)

    def add(self, raw: ClusterResult, lat: metrics.Latencies, good: BoolArray) -> None:
        """Take in a block of requests, all of which have ended or will not; blocks come in order of arrival."""
        window, sums, status = self.window, self._sums, raw.status
        for code, name in enumerate(STATUS_NAMES):
            self._counts[name] += int((status == code).sum())
        self._losses += losses(raw)
        arrived, finished = status != NOT_ARRIVED, status == FINISHED
        inside = arrived & (raw.arrival_s >= window.start_s) & (raw.arrival_s <= window.end_s)
        for name in LATENCIES:
            values = getattr(lat, name)[inside]
            self._stats[name].add(values[~np.isnan(values)])
        chosen = inside & (status != REJECTED)
        for name in ("prompt_tokens", "output_tokens", "cached_tokens"):
            self._stats[name.replace("prompt", "input")].add(getattr(raw, name)[chosen].astype(float))
        self._judge(lat, inside, good)
        with np.errstate(invalid="ignore"):
            visible = (raw.end_s >= window.start_s) & (raw.end_s <= window.end_s)
            first = (raw.first_token_s >= window.start_s) & (raw.first_token_s <= window.end_s)
        sums["inside"] += int(inside.sum())
        sums["good"] += int((good & inside).sum())
        sums["window_good"] += int((good & visible).sum())
        sums["completed"] += int(visible.sum())
        sums["inputs"] += int(raw.prompt_tokens[first].sum())
        sums["total_in"] += int(raw.prompt_tokens[finished].sum())
        sums["total_out"] += int(raw.output_tokens[finished].sum())
        sums["lost"] += int((inside & np.isnan(lat.e2el_ms)).sum())
        sums["preempted"] += int(raw.preemptions.sum())
        ended = raw.end_s[finished]
        self._bins.add("ended", ended)
        self._bins.add("good", raw.end_s[good])
        self._bins.add("offered", raw.arrival_s[arrived & (status != REJECTED)])
        seen = ~np.isnan(raw.first_token_s)
        self._bins.add("inputs", raw.first_token_s[seen], raw.prompt_tokens[seen])
        if arrived.any():
            self._first_arrival_s = min(self._first_arrival_s, float(raw.arrival_s[arrived].min()))
            self._last_arrival_s = max(self._last_arrival_s, float(raw.arrival_s[arrived].max()))
        if len(ended):
            self._last_end_s = max(self._last_end_s, float(ended.max()))
        self._began = np.concatenate([self._began, raw.arrival_s[finished | (status == UNFINISHED)]])
        self._ended = np.concatenate([self._ended, ended])
        self._tokens(raw, inside & finished)

    def _judge(self, lat: metrics.Latencies, inside: BoolArray, good: BoolArray) -> None:
        self._good.add((~good[inside]).astype(float))
        for check in self._checks:
            if check.metric == "itl_ms":
                continue
            values = getattr(lat, check.metric)[inside]
            lost = np.isnan(lat.e2el_ms[inside])
            if check.metric == "tpot_ms":
                values, lost = values[lost | ~np.isnan(values)], lost[lost | ~np.isnan(values)]
            check.add(np.where(np.isnan(values), np.inf, values))

    def _tokens(self, raw: ClusterResult, rows: BoolArray) -> None:
        window = self.window
        spans = raw.emissions.ranges(np.arange(len(rows)))
        dropped = np.array([steps.log.retired_steps for steps in self._replicas])[spans.log]
        spans = spans._replace(first=spans.first - dropped, last=spans.last - dropped)
        chosen = rows[spans.owner]
        counted = Ranges(spans.log[chosen], spans.first[chosen], spans.last[chosen], spans.owner[chosen])
        clocks = [steps.ends() for steps in self._replicas]
        for number, steps in enumerate(self._replicas):
            first, last = spans.of_log(number)
            if not len(first):
                continue
            low = int(np.searchsorted(clocks[number], window.start_s, side="left"))
            high = int(np.searchsorted(clocks[number], window.end_s, side="right")) - 1
            self._sums["tokens"] += int(
                np.maximum(np.minimum(last, high) - np.maximum(first, low) + 1, 0).sum()
            )
            steps.count(*counted.of_log(number), first, last)
            pauses, _ = metrics.pauses_s(counted, clocks, number)
            if len(pauses):
                self._gap(pauses, np.ones(len(pauses), np.int64))

    def _gap(self, gaps_s: FloatArray, weights: NDArray[Any]) -> None:
        self._stats["itl_ms"].add(gaps_s * 1e3, weights)
        for check in self._checks:
            if check.metric == "itl_ms":
                check.add(gaps_s * 1e3, weights)

    def _seen(
        self, gaps_s: FloatArray, weights: NDArray[Any], ends_s: FloatArray, tokens: NDArray[Any]
    ) -> None:
        self._gap(gaps_s, weights)
        self._bins.add("tokens", ends_s, tokens)

    def retire(self, before_s: float) -> None:
        """Count and drop what no block that is still to come can name: all requests of those arrive at `before_s` or later."""
        for steps in self._replicas:
            steps.retire(before_s, self._load, self._seen)
        began, ended = self._began < before_s, self._ended < before_s
        if began.any() or ended.any():
            peak, self._level = peak_of(self._began[began], self._ended[ended], self._level)
            self._peak = max(self._peak, peak)
            self._began, self._ended = self._began[~began], self._ended[~ended]

    def figures(
        self, end_of_run_s: float, stopped_at_s: float | None, duration_s: float, limits: Any
    ) -> Figures:
        """What the run amounts to, once everything was retired."""
        sums, counts, stats = self._sums, self._counts, self._stats
        requests = sum(counts.values())
        window = measured_window(
            requests, duration_s, self.window.start_s, end_of_run_s, stopped_at_s, self._scenario.workload
        )
        judged = bool(self._slo)
        each = max(1, round(stats["itl_ms"].histogram.count / max(1, sums["inside"] - sums["lost"])))
        can_judge = judged and stopped_at_s is None and sums["inside"] > 0
        return Figures(
            window=window,
            counts=counts,
            reasons=named_losses(self._losses),
            inside=sums["inside"],
            completed_inside=sums["inside"] - sums["lost"],
            stats={
                name: s.summary("tokens" if name.endswith("tokens") else "ms") for name, s in stats.items()
            },
            server=self._load.averages(window.length_s, len(self._replicas)),
            first_arrival_s=self._first_arrival_s if np.isfinite(self._first_arrival_s) else 0.0,
            last_end_s=self._last_end_s,
            total_input_tokens=sums["total_in"],
            total_output_tokens=sums["total_out"],
            window_input_tokens=sums["inputs"],
            window_output_tokens=sums["tokens"],
            window_completed=sums["completed"],
            good_inside=sums["good"] if judged else None,
            window_good=sums["window_good"] if judged else None,
            max_concurrent=self._peak,
            preemptions=sums["preempted"],
            overload=self._overload(window, end_of_run_s, stopped_at_s),
            verdict=self._verdict(each) if can_judge else None,
            rates_ci95=self._rates_ci95(window, judged),
            open_loop=self._last_arrival_s > self._first_arrival_s,
            quantile_error=RELATIVE_ERROR,
            limits=limits,
        )

    def _verdict(self, each: int) -> dict[str, Any]:
        lost, inside, checks = self._sums["lost"], self._sums["inside"], []
        for check in self._checks:
            infinite = lost
            if check.metric == "itl_ms":
                infinite = lost * each
                check.lose(infinite)
            actual = self._stats[check.metric].histogram.quantiles((check.percent,), infinite)[0]
            checks.append(check.verdict(actual))
        wanted = self._slo.get("attainment")
        attainment = self._sums["good"] / inside
        kept, near = True, False
        if wanted is not None:
            kept = attainment >= wanted
            near = metrics.open_share(self._good.means(), inside - self._sums["good"], inside, 1 - wanted)
        return metrics.judgement(checks, attainment, wanted, kept, near)

    def _rates_ci95(self, window: metrics.Window, judged: bool) -> dict[str, list[float] | None]:
        edges = np.linspace(window.start_s, window.end_s, metrics.BATCHES + 1)
        names = {
            "request_throughput": ("ended",),
            "input_throughput": ("inputs",),
            "output_throughput": ("tokens",),
            "total_token_throughput": ("inputs", "tokens"),
            "request_goodput": ("good",),
        }
        if window.length_s <= 0:
            return dict.fromkeys(names)
        width = window.length_s / metrics.BATCHES
        out: dict[str, list[float] | None] = {}
        for name, parts in names.items():
            rate = np.add.reduce([self._bins.between(part, edges) for part in parts]) / width
            out[name] = (
                metrics.around(float(rate.mean()), rate) if judged or name != "request_goodput" else None
            )
        return out

    def _overload(
        self, window: metrics.Window, end_of_run_s: float, stopped_at_s: float | None
    ) -> metrics.Overload | None:
        """As `metrics.overload` and `figures.lost_backlog`, by bins of time."""
        edges = np.array([0.0, window.middle_s, window.end_s])
        arrivals = self._bins.between("offered", edges).tolist()
        ends = self._bins.between("ended", edges).tolist()
        backlog = round(sum(arrivals) - sum(ends))
        return metrics.growing_backlog(
            window, arrivals[1], ends[1], backlog, self._counts["unfinished"]
        ) or lost_backlog(self._counts, window, end_of_run_s, stopped_at_s)

    def timeline(self, end_of_run_s: float) -> dict[str, NDArray[Any]]:
        """Columns of `timeline.parquet`."""
        return table([steps.bins for steps in self._replicas], end_of_run_s)


__all__ = ["Batches", "Check", "ReplicaSteps", "Statistic", "Tally", "TimeBins"]
