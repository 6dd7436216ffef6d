"""Rates over the measured window: their sampling errors, and whether the load is more than the deployment carries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import numpy as np

from engine_models.cost.tables import distinct
from hardware_profiles.records import dataclass
from simulator.cluster.outcome import NOT_ARRIVED, REJECTED, ClusterResult
from simulator.results.statistics import BATCHES, BoolArray, FloatArray, IntArray, around, parts
from simulator.results.timeline import Window, widen

RATES = (
    "request_throughput",
    "input_throughput",
    "output_throughput",
    "total_token_throughput",
    "request_goodput",
)


class Times(ABC):
    """Amounts by the time at which they came."""

    @abstractmethod
    def add(self, times_s: FloatArray, amounts: IntArray | None = None) -> None:
        """Take in amounts, one each by default, at times that are not negative; those at NaN do not count."""

    @abstractmethod
    def between(self, edges_s: FloatArray) -> FloatArray:
        """Amount between successive edges, the last one included."""


class ExactTimes(Times):
    """Counts between the edges that `Rates` asks for over a window that is known beforehand."""

    def __init__(self, window: Window) -> None:
        self._edges_s = distinct(np.concatenate([_halves_s(window), _stretches_s(window)]))
        self._counts = np.zeros(max(1, len(self._edges_s) - 1))

    def add(self, times_s: FloatArray, amounts: IntArray | None = None) -> None:
        """As said by `Times`."""
        for part in parts(len(times_s)) if len(self._edges_s) > 1 else []:
            weights = None if amounts is None else amounts[part].astype(np.int64)
            self._counts += np.histogram(times_s[part], self._edges_s, weights=weights)[0]

    def between(self, edges_s: FloatArray) -> FloatArray:
        """As said by `Times`."""
        reached = np.concatenate(([0.0], np.cumsum(self._counts)))
        return np.diff(reached[np.searchsorted(self._edges_s, edges_s)])


class BinnedTimes(Times):
    """Keeps amounts in bins of equal width, doubled whenever there would be more than `MOST`; a cut bin counts by its share."""

    MOST = 1 << 14

    def __init__(self) -> None:
        self._width_s = 1.0
        self._sums = {"": np.zeros(self.MOST)}

    def add(self, times_s: FloatArray, amounts: IntArray | None = None) -> None:
        """As said by `Times`."""
        known = ~np.isnan(times_s)
        if not known.all():
            times_s, amounts = times_s[known], None if amounts is None else amounts[known]
        if not len(times_s):
            return
        latest = float(times_s.max())
        while latest >= self._width_s * self.MOST:
            self._width_s *= 2
            widen(self._sums)
        at = (times_s / self._width_s).astype(np.int64)
        self._sums[""] += np.bincount(at, weights=amounts, minlength=self.MOST)

    def between(self, edges_s: FloatArray) -> FloatArray:
        """As said by `Times`."""
        reached = np.concatenate(([0.0], np.cumsum(self._sums[""])))
        known = np.arange(self.MOST + 1) * self._width_s
        return np.diff(np.interp(edges_s, known, reached)).astype(np.float64)


def _stretches_s(window: Window) -> FloatArray:
    return np.linspace(window.start_s, window.end_s, BATCHES + 1)


def _halves_s(window: Window) -> FloatArray:
    """Edges of the time before the second half of a window, and of that half."""
    return np.array([0.0, window.middle_s, window.end_s])


@dataclass(frozen=True)
class Overload:
    """Offered load beyond capacity, and an estimate of what the deployment sustains; `shed` were turned away for want of room."""

    offered_per_s: float
    sustainable_per_s: float
    backlog: int
    shed: int = 0


class Rates:
    """When requests were offered, had their first token, ended, and were good, and when tokens appeared."""

    def __init__(self, make: Callable[[], Times]) -> None:
        self.offered, self.inputs, self.tokens, self.ended, self.good = (make() for _ in range(5))

    def add(self, raw: ClusterResult, good: BoolArray | None = None) -> None:
        """Take in requests; good ones, if any are judged, count when they end."""
        self.offered.add(raw.arrival_s[(raw.status != NOT_ARRIVED) & (raw.status != REJECTED)])
        self.inputs.add(raw.first_token_s, raw.prompt_tokens)
        self.ended.add(raw.end_s)
        if good is not None:
            self.good.add(raw.end_s[good])

    def ci95(self, window: Window, *, judged: bool) -> dict[str, list[float] | None]:
        """95 % confidence intervals of the window's rates [1/s], by the means of 20 stretches of its time.

        Requests count when they end, input tokens at the first token, output tokens when they appear; a null where the window
        has no length, and for the goodput if nothing is judged.
        """
        edges = _stretches_s(window)
        if window.length_s <= 0:
            return dict.fromkeys(RATES)
        width = window.length_s / BATCHES
        times = (self.ended, self.inputs, self.tokens, self.good)
        requests, inputs, outputs, good = (each.between(edges) / width for each in times)
        found = dict(zip(RATES, (requests, inputs, outputs, inputs + outputs, good), strict=True))
        return {
            name: around(float(rate.mean()), rate) if judged or rate is not good else None
            for name, rate in found.items()
        }

    def overload(self, window: Window, unfinished: int) -> Overload | None:
        """Tell whether the backlog grew through the second half of the window.

        Criterion: over the second half fewer than 95 % as many requests ended as arrived, more than 20 more were in the system
        at its end than in its middle, and requests waited. The sustainable rate is the completion rate of that half.
        """
        edges = _halves_s(window)
        arrivals, ends = self.offered.between(edges).tolist(), self.ended.between(edges).tolist()
        backlog = round(sum(arrivals) - sum(ends))
        arrived, ended, span = arrivals[1], ends[1], window.end_s - window.middle_s
        if span > 0 and ended < 0.95 * arrived and arrived - ended > 20 and (backlog > 20 or unfinished):
            return Overload(arrived / span, ended / span, backlog)
        return None


def lost_backlog(
    counts: dict[str, int], window: Window, end_of_run_s: float, stopped_at_s: float | None
) -> Overload | None:
    """Overload of loads that arrive early, such as a batch: more than one in twenty unfinished after the drain."""
    unfinished, offered = counts["unfinished"], sum(counts.values()) - counts["not_arrived"]
    if stopped_at_s is not None or unfinished <= 0.05 * offered:
        return None
    span = max(end_of_run_s - window.start_s, 1e-9)
    return Overload(offered / max(window.length_s, 1e-9), counts["finished"] / span, unfinished)


@dataclass(frozen=True)
class BatchCut:
    """A batch cut by the end of its drain: shares of its prompt and output tokens that were done, and an estimate of its end.

    `ends_s` is None before any work was done; `least` says that no answer has begun, so that it ends later.
    """

    prompt_share: float
    output_share: float
    ends_s: float | None
    least: bool


def batch_cut(work: Mapping[str, float], end_of_run_s: float) -> BatchCut:
    """What was done of a batch by the end of the drain, and when the rest would be at the speed so far.

    `work` holds tokens (`prompts` and `outputs` in all, `prefilled`, found in a cache as `cached`, `emitted`) and the device's
    time for each kind (`prefill_s`, `decode_s`). What is left takes as long a token as what was done.
    """
    left = max(0.0, work["prompts"] - work["cached"] - work["prefilled"])
    prompts = work["prompts"] - left
    least = not work["emitted"]
    left_s = left * work["prefill_s"] / max(1.0, work["prefilled"])
    if not least:
        left_s += (work["outputs"] - work["emitted"]) * work["decode_s"] / work["emitted"]
    busy_s = work["prefill_s"] + work["decode_s"]
    ends_s = end_of_run_s * (1 + left_s / busy_s) if busy_s > 0 else None
    return BatchCut(prompts / max(1.0, work["prompts"]), work["emitted"] / max(1.0, work["outputs"]), ends_s, least)


def shed_load(shed: int, offered: int, completed: int, window: Window) -> Overload | None:
    """Overload of servers that turn away what they have no room for: more than one request in twenty."""
    if shed <= 0.05 * offered:
        return None
    length_s = max(window.length_s, 1e-9)
    return Overload(offered / length_s, completed / length_s, 0, shed)
