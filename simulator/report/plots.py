"""PNG plots of a run: latency distributions, load and memory over time, throughput.

The same run gives the same bytes under one version of matplotlib: default style, no dates, no software name.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass
from simulator.cluster.outcome import FINISHED
from simulator.report.drawing import SHADE, bare, png
from simulator.report.numbers import short
from simulator.report.words import shape_of
from simulator.results.latencies import token_gaps

if TYPE_CHECKING:
    from simulator.run import RunResult

FloatArray = NDArray[np.float64]

COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#57606a")
BOUND, MUTED = "#cf222e", "#57606a"
LATENCIES = (
    ("ttft_ms", "time to first token, TTFT [ms]"),
    ("tpot_ms", "time per output token, TPOT [ms]"),
    ("e2el_ms", "end-to-end latency, E2E [ms]"),
)
GAPS = ("itl_ms", "gaps between tokens, ITL [ms]")
"""Drawn where an SLO names them."""
MAX_POINTS = 240
"""Points of a curve over time; finer bins are drawn as their mean within a band."""
MAX_LINES = 4
"""Replicas drawn one by one; more are drawn as their mean within a band."""
OF_LETTER = 0.008
"""Share of a curve's width that a letter of a stage's name takes, at most."""
DPI = 120
TITLE, NAME = 140, 20
"""Letters of a line of the title, and of a class's name in a legend, at most."""
LABEL_AT = (25, 55, 85)
"""Heights at which a bound may be named [% of requests], the preferred first."""


def write_plots(run: RunResult, directory: Path) -> list[Path]:
    """Write ``latency.png``, ``load.png`` and ``throughput.png`` into `directory` and return their paths.

    Where replicas came or went, ``fleet.png`` too.

    Raises InputError if the place cannot be written, PlanError if the disk is full, TypeError for a streamed run, whose
    requests are not held.
    """
    import matplotlib.style

    from simulator.io.rundir import write_file

    paths = []
    with matplotlib.style.context("default", after_reset=True):
        drawn = {"latency": _latency, "load": _load, "throughput": _throughput}
        if "fleet" in run.result:
            drawn["fleet"] = _fleet
        for name, draw in drawn.items():
            path = directory / f"{name}.png"
            write_file(path, _png(draw, run))
            paths.append(path)
    return paths


def _png(draw: Callable[[Any, RunResult], None], run: RunResult) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = 11.0, 7.0
    if draw is _latency:
        width, height = 11 / 3 * len(_panels(run)), 4.2 + 0.18 * len(run.result["classes"])
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure, run)
    return png(figure, DPI)


def _column(run: RunResult, name: str) -> Any:
    if isinstance(run.requests, Path):
        raise TypeError("a streamed run has no requests to draw")
    return run.requests[name]


def _title(run: RunResult) -> str:
    d = run.result["deployment"]
    whole = [*(d.get("pools") or [d]), *d.get("encoders", [])]
    pools = [f"{p['replicas']} x ({shape_of(p)}) {p['hardware']}" for p in whole]
    where = f"{' + '.join(pools)}, {d['engine']} {d['engine_version']}"
    return textwrap.fill(f"{run.name}: {d['model']} on {where}", TITLE, break_long_words=True, break_on_hyphens=False)


def _window(run: RunResult) -> tuple[float, float]:
    start_s = run.workload.warmup_s
    return start_s, start_s + run.result["totals"]["duration_s"]


# Latency --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Requests to draw together: the requests of the measured window, their figures as the summary has them, their verdict."""

    name: str
    rows: NDArray[np.bool_]
    metrics: Mapping[str, Mapping[str, Any]]
    slo: dict[str, Any] | None


def _groups(run: RunResult) -> list[Group]:
    """All requests, or those of each class."""
    start_s, end_s = _window(run)
    arrival = run.raw.arrival_s
    reasons = np.array(_column(run, "finish_reason"), dtype=object)
    inside = (arrival >= start_s) & (arrival <= end_s) & (reasons != "not_arrived")
    kinds = run.result["classes"]
    if not kinds:
        return [Group("", inside, run.result["metrics"], run.result["slo"])]
    index = run.workload.class_index
    names = [textwrap.shorten(kind["name"], NAME, placeholder="...") for kind in kinds]
    return [
        Group(name, inside & (index == i), kind["metrics"], kind["slo"])
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ]


def _panels(run: RunResult) -> tuple[tuple[str, str], ...]:
    """The latencies that are drawn, and their labels."""
    verdicts = [kind["slo"] for kind in run.result["classes"]] or [run.result["slo"]]
    asked = any(check["metric"] == GAPS[0] for verdict in verdicts if verdict for check in verdict["checks"])
    return (*LATENCIES, GAPS) if asked else LATENCIES


def _latency(figure: Any, run: RunResult) -> None:
    groups = _groups(run)
    panels = _panels(run)
    of_gaps = " (of gaps, for ITL)" if GAPS in panels else ""
    figure.suptitle(f"{_title(run)}\nshare of requests{of_gaps} that took at most so long", fontsize=10)
    for axes, (metric, label) in zip(figure.subplots(1, len(panels), sharey=True), panels, strict=True):
        bare(axes)
        curves = []
        for colour, group in zip(_cycle(len(groups)), groups, strict=True):
            if metric == GAPS[0]:
                curves.append(_gaps(axes, run, group, colour))
                continue
            values = np.asarray(_column(run, metric), dtype=np.float64)[group.rows]
            if metric == "tpot_ms":  # an output of one token has none
                values = values[~(np.isnan(values) & (np.asarray(_column(run, "output_tokens"))[group.rows] == 1))]
            curves.append(_distribution(axes, values, group.metrics[metric], colour, group.name))
        _bounds(axes, metric, groups, curves)
        axes.set_xlabel(label)
        axes.set_ylim(0, 100.5)
        axes.set_yticks([0, 25, 50, 75, 90, 100])
        axes.legend(frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.1)
    figure.axes[0].set_ylabel("requests [%]")


Curve = tuple[FloatArray, FloatArray]
"""Values in ascending order, and the share of requests [%] that took at most so long."""


def _distribution(axes: Any, values: FloatArray, stats: Mapping[str, Any], colour: str, name: str) -> Curve:
    """Draw the cumulative share; lost requests (NaN) never arrive at it, so the curve ends below 100 %.

    The percentiles named are those of the summary: of the requests served.
    """
    done = np.sort(values[~np.isnan(values)])
    share = np.arange(1, len(done) + 1) / max(1, len(values)) * 100
    return _curve(axes, (done, share), stats, colour, name, lost=len(values) - len(done))


def _gaps(axes: Any, run: RunResult, group: Group, colour: str) -> Curve:
    """Draw the cumulative share of the gaps between tokens, of finished requests."""
    gaps_s, counts = token_gaps(run.raw, group.rows & (run.raw.status == FINISHED))
    order = np.argsort(gaps_s)
    share = np.cumsum(counts[order]) / max(1, counts.sum()) * 100
    return _curve(axes, (gaps_s[order] * 1e3, share), group.metrics[GAPS[0]], colour, group.name)


def _curve(axes: Any, curve: Curve, stats: Mapping[str, Any], colour: str, name: str, lost: int = 0) -> Curve:
    """Draw a cumulative share with its percentiles; `lost` requests stand in no value of it."""
    done, share = curve
    if not len(done):
        axes.plot([], [], color=colour, label=f"{name} ({'none completed' if lost else 'none in the window'})".lstrip())
        return curve
    if done[0] > 0 and done[-1] / done[0] > 20:
        axes.set_xscale("log")
    for percent in (50, 90, 99):
        axes.plot(stats[f"p{percent}"], percent * share[-1] / 100, "o", color=colour, markersize=3.5)
    label = (f"{name}: " if name else "") + ", ".join(f"{p} {short(stats[p])}" for p in ("p50", "p90", "p99"))
    axes.step(done, share, where="post", color=colour, linewidth=1.5, label=label + (f"; {lost:,} lost" if lost else ""))
    return curve


def _bounds(axes: Any, metric: str, groups: Sequence[Group], curves: Sequence[Curve]) -> None:
    """Draw the SLO's bounds, equal ones once, each named where the curves and the names before it leave the most room."""
    asked: dict[float, dict[str, str]] = {}  # bound: percentile: colour
    for colour, group in zip(_cycle(len(groups)), groups, strict=True):
        for check in (group.slo or {}).get("checks", ()):
            if check["metric"] == metric:
                asked.setdefault(check["bound_ms"], {})[check["percentile"]] = colour if group.name else BOUND
    free = list(LABEL_AT)
    for bound, named in sorted(asked.items()):
        colour = BOUND if len(set(named.values())) > 1 else next(iter(named.values()))
        met = [float(np.interp(bound, *curve, left=0.0)) for curve in curves if len(curve[0])]
        at = max(free or LABEL_AT, key=lambda at: min((abs(at - share) for share in met), default=0.0))
        free = [height for height in free if height != at]
        axes.axvline(bound, color=colour, linewidth=1, linestyle="--")
        axes.annotate(
            f"SLO {', '.join(named)} {short(bound)}",
            (bound, at),
            ha="center",
            va="center",
            rotation=90,
            fontsize=8,
            color=colour,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def _cycle(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]


# Over time ------------------------------------------------------------------------------------------------


def _instances(run: RunResult) -> int:
    """Replicas of the timeline."""
    return int(run.timeline["instance_id"][-1]) + 1


def _series(run: RunResult, name: str) -> tuple[FloatArray, FloatArray, float]:
    """Bin starts [s], values (replicas, bins), and the width of a bin [s]."""
    replicas = _instances(run)
    times = np.asarray(run.timeline["t_s"]).reshape(replicas, -1)[0]
    values = np.asarray(run.timeline[name], dtype=np.float64).reshape(replicas, -1)
    span_s = max(run.raw.end_of_run_s, 1.0)
    return times, values, span_s / len(times)


def _coarse(values: FloatArray) -> list[FloatArray]:
    """Split the bins (last axis) into at most `MAX_POINTS` groups of as many neighbours each, the last of what is left."""
    bins = values.shape[-1]
    return np.split(values, range(-(-bins // MAX_POINTS), bins, -(-bins // MAX_POINTS)), axis=-1)


def _curves(axes: Any, times: FloatArray, values: FloatArray, lines: Sequence[Line]) -> None:
    """Draw values (replicas, bins): of the replicas of each line their mean, in a band from lowest to highest."""
    at = np.array([group[0] for group in _coarse(times)])
    for colour, (name, replicas) in zip(_cycle(len(lines)), lines, strict=True):
        groups = _coarse(values[replicas])
        low, high = [group.min() for group in groups], [group.max() for group in groups]
        axes.fill_between(at, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(at, [group.mean() for group in groups], color=colour, linewidth=1.1, label=name or None)


Line = tuple[str, slice]
"""A line's name and the replicas it stands for."""


def _lines(run: RunResult) -> list[Line]:
    """A line for each pool where there are several, else for each of a few replicas, else for all together."""
    count = _instances(run)
    lines, first, deployment = [], 0, run.result["deployment"]
    encoders = deployment.get("encoders", [])
    alone = [{**deployment, "name": run.pools[0]}] if encoders else []
    for pool in [*deployment.get("pools", alone), *encoders]:
        replicas = pool["replicas"] * pool.get("data_parallel", 1)
        name = textwrap.shorten(pool["name"], NAME, placeholder="...")
        lines.append((f"{name}, mean of {replicas}" if replicas > 1 else name, slice(first, first + replicas)))
        first += replicas
    if lines and first == count:
        return lines
    if count == 1:
        return [("", slice(0, 1))]
    if count <= MAX_LINES:
        return [(f"replica {i}", slice(i, i + 1)) for i in range(count)]
    return [(f"mean of {count} replicas", slice(0, count))]


def _rows(figure: Any, run: RunResult, labels: Sequence[str]) -> list[Any]:
    """Stacked axes over time, what lies outside the measured window shaded."""
    start_s, end_s = _window(run)
    last_s = max(run.raw.end_of_run_s, 1.0)
    rows = list(figure.subplots(len(labels), 1, sharex=True))
    for axes, label in zip(rows, labels, strict=True):
        bare(axes)
        axes.set_ylabel(label)
        axes.set_xlim(0, last_s)
        for low, high in ((0.0, start_s), (end_s, last_s)):
            if high > low:
                axes.axvspan(low, high, color=SHADE, linewidth=0, zorder=0)
    for at_s, name in _begun(run):
        for axes in rows:
            axes.axvline(at_s, color=MUTED, linewidth=0.8, linestyle=":")
        where = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
        rows[0].annotate(name, (at_s, 1), xytext=(3, -2), va="top", fontsize=8, **where)
    rows[-1].set_xlabel("time [s]" + (" (shaded: not measured)" if start_s > 0 or last_s > end_s + 1 else ""))
    figure.align_ylabels(rows)
    return rows


def _begun(run: RunResult) -> list[tuple[float, str]]:
    """When each of several stages began [s], and its name, "" where there is no room for that."""
    stages = run.result.get("stages") or []
    begun = [stage["start_s"] for stage in stages]
    ends = [*begun[1:], max(run.raw.end_of_run_s, 1.0)]
    names = [textwrap.shorten(stage["name"], NAME, placeholder="...") for stage in stages]
    return [
        (at_s, name if (end_s - at_s) / ends[-1] > OF_LETTER * (len(name) + 2) else "")
        for at_s, end_s, name in zip(begun, ends, names, strict=False)  # without stages there is an end alone
    ]


def _finish(rows: Sequence[Any]) -> None:
    for axes in rows:
        axes.set_ylim(bottom=0)
        if axes.get_legend_handles_labels()[0]:
            axes.legend(
                frameon=False, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), ncols=6, borderaxespad=0.1
            )


def _load(figure: Any, run: RunResult) -> None:
    figure.suptitle(f"{_title(run)}\nload of a replica while it works; band: lowest to highest second", fontsize=10)
    labels = ("running\n[requests]", "waiting\n[requests]", "KV cache in use\n[%]")
    rows = _rows(figure, run, labels)
    lines = _lines(run)
    for axes, (name, scale) in zip(rows, (("running", 1), ("waiting", 1), ("kv_usage", 100)), strict=True):
        times, values, _ = _series(run, name)
        _curves(axes, times, values * scale, lines)
    for axes in rows[1:]:
        legend = axes.get_legend_handles_labels()[0]
        for artist in legend:
            artist.set_label("_")
    rows[1].set_ylim(top=max(1.0, rows[1].get_ylim()[1]))
    rows[2].set_ylim(top=min(105.0, max(5.0, rows[2].get_ylim()[1])))
    _finish(rows)


def _fleet(figure: Any, run: RunResult) -> None:
    figure.suptitle(f"{_title(run)}\nreplicas, and the requests at all of them", fontsize=10)
    rows = _rows(figure, run, ("replicas", "running\n[requests]", "waiting\n[requests]"))
    found = run.result["fleet"]["over_time"]
    edges = [*found["at_s"], max(found["at_s"][-1], run.raw.end_of_run_s)]
    for name, colour, words in (
        ("up", COLOURS[0], "serve"),
        ("coming", COLOURS[1], "away, ordered or starting"),
        ("draining", COLOURS[3], "drain"),
    ):
        if any(found[name]):
            rows[0].stairs(found[name], edges, color=colour, linewidth=1.4, label=words, baseline=None)
    for axes, name in zip(rows[1:], ("running", "waiting"), strict=True):
        times, values, _ = _series(run, name)
        _curves(axes, times, values.sum(axis=0, keepdims=True), [("", slice(0, 1))])
    _finish(rows)


def _throughput(figure: Any, run: RunResult) -> None:
    figure.suptitle(f"{_title(run)}\nthroughput of the deployment", fontsize=10)
    rows = _rows(figure, run, ("requests\n[1/s]", "input tokens\ncomputed [1/s]", "output tokens\n[1/s]"))
    span_s = max(run.raw.end_of_run_s, 1.0)
    edges = np.linspace(0.0, span_s, min(60, max(1, int(span_s))) + 1)
    width = edges[1] - edges[0]
    for label, colour, found in (
        ("offered", MUTED, run.raw.arrival_s[~np.isnan(run.raw.arrival_s)]),
        ("completed", COLOURS[0], run.raw.end_s[~np.isnan(run.raw.end_s)]),
    ):
        rows[0].stairs(np.histogram(found, edges)[0] / width, edges, color=colour, linewidth=1.2, label=label, baseline=None)
    for axes, name in zip(rows[1:], ("prefill_tokens", "decode_tokens"), strict=True):
        times, values, bin_s = _series(run, name)
        _curves(axes, times, values.sum(axis=0, keepdims=True) / bin_s, [("", slice(0, 1))])
    _finish(rows)
