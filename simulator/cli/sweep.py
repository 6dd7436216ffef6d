"""`sweep`: one scenario at every combination of some fields' values, as a table sorted by cost."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.planning.points import SEVERAL, WARNING_ENDS

if TYPE_CHECKING:
    from simulator.planning.parted import PartedPlan
    from simulator.planning.sweep import SweepPlan, SweepResult

MAX_SHOWN = 60
"""Rows of the table on the terminal; all are in sweep.csv."""
LEAST_WANTED = ("busy", "TPOT p50", "TTFT p50", "req/s", "$/hour")
"""Columns that a narrow terminal goes without, the first of them first."""
AXES_OUTSIDE = re.compile(r"; (?=[A-Za-z ]+: )")
"""Between two of a row's reasons, ``axis: what was measured and what not``, joined by semicolons."""
TITLES = {"ttft_ms": "TTFT", "tpot_ms": "TPOT", "itl_ms": "ITL", "e2el_ms": "E2E"}
NUMBER = re.compile(r"\d[\d,.]*")
MAX_WARNINGS = 8
"""Kinds of warnings on the terminal."""


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command()
    def sweep(
        scenario: Annotated[str, typer.Argument(help="Scenario file, or the name of a shipped scenario.")],
        vary: Annotated[
            list[str] | None,
            typer.Option(
                "--vary",
                metavar="PATH=VALUES",
                help="An axis: deployment.replicas=1,2,4 or 1:8 or 1:64:x2; linked fields a,b=1:8,2:4.",
            ),
        ] = None,
        set_: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="PATH=VALUE", help="Replace a field at every point."),
        ] = None,
        output: Annotated[
            str | None,
            typer.Option(help="Folder of the sweep, or the URL of one (s3://, gs://); sweeps/NAME-HASH by default."),
        ] = None,
        workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
        backend: Annotated[
            str, typer.Option(help="process: this machine. ray, dask: a cluster that runs already.")
        ] = "process",
        address: Annotated[
            str | None, typer.Option(help="Of the cluster; RAY_ADDRESS or DASK_SCHEDULER_ADDRESS by default.")
        ] = None,
        resume: Annotated[bool, typer.Option("--resume", help="Keep finished points, also of fewer values.")] = False,
        plots: Annotated[bool, typer.Option("--plots", help="Add PNG plots under plots/.")] = False,
        headroom: Annotated[
            bool,
            typer.Option(
                "--headroom", help="Find the highest load of each point that it sustains and that keeps the SLO."
            ),
        ] = False,
        strict: Annotated[
            bool, typer.Option("--strict", help="Exit 4 outside the calibrated domain.")
        ] = False,
        fail_on_slo: Annotated[
            bool, typer.Option("--fail-on-slo", help="Exit 3 if no point meets the SLO.")
        ] = False,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object and nothing else.")
        ] = False,
    ) -> None:
        """What if: simulate a scenario over a grid of any of its fields; which point is cheapest."""
        check_backend(backend, address, workers)
        cluster = None if backend == "process" else (backend, address)
        run(scenario, vary or [], set_ or [], output, workers, cluster, resume, plots, headroom, strict, fail_on_slo, as_json)


def check_backend(backend: str, address: str | None, workers: int | None) -> None:
    """Refuse backends that are not there, and options that are of another, in words."""
    from hardware_profiles.errors import InputError, nearest
    from simulator.planning.backends import CLUSTERS

    if backend == "process":
        if address is not None:
            raise InputError(
                "an address is of a cluster", where="--address", mend="add --backend ray or --backend dask"
            )
    elif backend not in CLUSTERS:
        near = nearest(backend, ["process", *CLUSTERS])
        raise InputError(
            f"there is no backend '{backend}'",
            where="--backend",
            mend=f"did you mean '{near}'?" if near else f"one of process, {', '.join(CLUSTERS)}",
        )
    elif workers is not None:
        raise InputError(
            f"a cluster of {backend} has its own workers",
            where="--workers",
            mend="leave it out; points in hand are twice the cluster's cores",
        )


def run(
    scenario: str,
    vary: Sequence[str],
    overrides: Sequence[str],
    output: str | None,
    workers: int | None,
    cluster: tuple[str, str | None] | None,
    resume: bool,
    plots: bool,
    headroom: bool,
    strict: bool,
    fail_on_slo: bool,
    as_json: bool,
) -> None:
    """Run the sweep, print its table, end with the exit code it earned."""
    from hardware_profiles.errors import InputError
    from simulator.cli.errors import InterruptedRun
    from simulator.cli.progress import progress, progress_done
    from simulator.io.rundir import is_remote
    from simulator.io.text import json_text
    from simulator.planning.axes import count_of, parse_axes
    from simulator.planning.parted import MOST_IN_ONE, PartedPlan, plan_parts, run_parts
    from simulator.planning.store import POINTS, akin, place
    from simulator.planning.sweep import SweepPlan, plan_sweep, run_sweep

    if not vary:
        raise InputError(
            "nothing to vary", where="--vary", mend="give an axis, for example --vary deployment.replicas=1:8"
        )
    kwargs: dict[str, Any] = {"workers": workers, "cluster": cluster, "resume": resume, "progress": progress}
    plan: SweepPlan | PartedPlan
    if count_of(parse_axes(vary)) > MOST_IN_ONE:
        plan = plan_parts(scenario, vary, overrides, headroom=headroom)
        print(f"note: {plan.points:,} points, simulated in parts and without run directories", file=sys.stderr)
    else:
        plan = plan_sweep(scenario, vary, overrides, headroom=headroom)
    folder = place(output) if output else Path("sweeps") / f"{plan.name}-{plan.digest[:10]}"
    if plots and isinstance(plan, PartedPlan):
        raise InputError(f"no plots are made of more than {MOST_IN_ONE:,} points", where="--plots", mend="leave it out")
    if plots and is_remote(folder):
        raise InputError("plots are written to a folder", where="--plots", mend="leave it out, or name a folder")
    if isinstance(plan, SweepPlan) and resume and output is None and not folder.exists():
        folder = akin(folder, plan.runs) or folder
    try:
        result = run_parts(plan, folder, **kwargs) if isinstance(plan, PartedPlan) else run_sweep(plan, folder, **kwargs)
    except BaseException as error:
        progress_done()
        if isinstance(plan, PartedPlan):
            kept, words = 1, f"the parts that are finished are kept in {folder / POINTS}"
        else:
            kept = len({p.digest for p in plan.points if (folder / "runs" / p.name).is_dir()})
            words = f"{kept} of {len(plan.points)} points are finished and kept in {folder}"
        mend = "give the same command with --resume to go on"
        if isinstance(error, KeyboardInterrupt):
            raise InterruptedRun(f"interrupted; {words}", mend=mend) from None
        if kept and not isinstance(error, InputError):
            print(f"stopped: {words}; {mend}", file=sys.stderr)
        raise
    progress_done()
    if plots and isinstance(plan, SweepPlan):
        from simulator.report.sweep_plot import write_plots

        write_plots(plan, result, folder / "plots")
    for note in result.notes:
        print(f"note: {note}", file=sys.stderr)
    if as_json and result.error is None:
        print(json_text(as_object(plan, result)), end="")
    elif not as_json:
        print(text(plan, result))
    if result.error is not None:
        raise result.error
    left = [text for text in (*(row["outside"] for row in result.rows), result.outside) if text]
    if strict and left:
        print(f"outside the calibrated domain: {'; '.join(dict.fromkeys(left))}", file=sys.stderr)
        raise SystemExit(4)
    if (
        fail_on_slo
        and any(row["slo"] for row in result.rows)
        and not any(r["slo_holds"] for r in result.rows)
    ):
        print("no point meets the SLO", file=sys.stderr)
        raise SystemExit(3)


def as_object(plan: SweepPlan | PartedPlan, result: SweepResult) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "folder": str(result.folder),
        "digest": plan.digest,
        "axes": [{"paths": list(axis.paths), "values": [list(s) for s in axis.steps]} for axis in plan.axes],
        "cost": result.cost,
        "latency": result.latency,
        "cheapest": result.cheapest["point"] if result.cheapest else None,
        "points": list(result.rows),
        "notes": list(result.notes),
    }


# -- the table ----------------------------------------------------------------------------------------------


def text(plan: SweepPlan | PartedPlan, result: SweepResult) -> str:
    """The table as a manager reads it: the answer first, then the points from the cheapest to the dearest."""
    from simulator.cli.layout import table, wrapped
    from simulator.planning.store import POINTS

    names = short_names(plan.paths)
    rows = sorted(result.rows, key=lambda row: _by_cost(row, result))
    finished = [row for row in rows if row["status"] == "ok"]
    failed = [row for row in rows if row["status"] != "ok"]
    lines = [*(wrapped(line, "  ") for line in answer(names, result, plan.slo())), ""]
    if finished:
        devices = _devices(finished)
        columns = _columns(
            names, plan.slo(), f"{devices}s", jobs=any(row["would_end_s"] is not None for row in finished)
        )
        if any(row["headroom_used"] is not None for row in finished):
            columns.insert([title for title, _ in columns].index("SLO") + 1, ("used", _used))
        cells = [[show(row) for _, show in columns] for row in finished]
        alike = 0
        if len(finished) > MAX_SHOWN:
            cells, alike = _distinct(cells, len(names))
        beyond_shown = len(cells) - MAX_SHOWN
        cells = cells[:MAX_SHOWN]
        titles = [title for title, _ in columns]
        texts = [i for i, column in enumerate(names) if any(isinstance(row[column], str | dict | list) for row in finished)]
        last = ("$/month", "$/1M") if result.cost == "usd_per_1m_total_tokens" else ("$/1M", "good/s")
        unasked = [title for title in titles if title in ("TTFT p99", "TPOT p99") and title not in _asked(plan.slo())]
        drop = [titles.index(title) for title in (*LEAST_WANTED, *last, *(unasked if plan.slo() else ()), f"{devices}s")]
        lines += table(titles, cells, words=texts, drop=drop, elsewhere="sweep.csv")
        if beyond_shown > 0:
            lines.append(f"  ... and {beyond_shown:,} more in sweep.csv")
        if alike:
            lines.append(f"  left out: {alike:,} points with the figures of a row above (sweep.csv)")
        lines += [
            "",
            wrapped(
                f"* on the Pareto front of {result.cost} against {result.latency}: no point is both cheaper and quicker", "  "
            ),
        ]
    if any(row["warnings"] for row in finished):
        lines.append(wrapped("! warned about, see below", "  "))
    overloaded = [row for row in finished if row["overloaded"]]
    if overloaded:
        lines.append(wrapped("overload: the row says what the deployment carries, not what was offered", "  "))
    if any(row["headroom_used"] is not None for row in finished):
        kept = "that keeps the SLO" if plan.slo() else "that is sustained"
        lines.append(wrapped(f"used: the load offered over the highest {kept}, an estimate by short runs", "  "))
    turned_away = [row for row in finished if row["rejected"] or row["failed"]]
    lost = [f"{_values(names, row)}: {row['lost'].replace('_', ' ')}" for row in turned_away]
    if lost:
        more = f"; and {len(lost) - 4} more in sweep.csv" if len(lost) > 4 else ""
        lines.append(wrapped(f"lost      {'. '.join(lost[:4])}{more}", " " * 10))
    beyond = Counter(axis for row in finished for axis in AXES_OUTSIDE.split(row["outside"]) if axis)
    if beyond:
        for axis, n in beyond.items():
            some = f" ({n} of {len(finished)} points)" if n < len(finished) else ""
            lines.append(wrapped(f"outside   {axis}{some}", " " * 10))
    lines += warning_lines(names, finished)
    if result.statuses is not None:
        points = sum(result.statuses.values())
        lines.append(wrapped(f"parts     shown is what stands out of {points:,} points; all are in {POINTS}/*.parquet", " " * 10))
    if failed:
        ends = result.statuses or Counter(row["status"] for row in rows)
        points = sum(ends.values())
        lines.append(f"{points - ends['ok']:,} of {points:,} points have no result{'' if points == len(rows) else ', as'}:")
        reasons: dict[str, list[str]] = {}
        for row in sorted(failed, key=lambda row: row["point"]):
            reasons.setdefault(f"{row['status']}: {row['reason']}", []).append(_values(names, row))
        for reason, values in reasons.items():
            shown = "; ".join(values[:4]) + (f"; and {len(values) - 4} more" if len(values) > 4 else "")
            lines.append(wrapped(f"  {shown}: {reason}", "    "))
    each = "runs" if result.statuses is None else POINTS
    lines += [
        wrapped(_price_line(finished), " " * 10),
        wrapped(f"written   {result.folder} (sweep.csv, sweep.parquet, {each}/)", " " * 10),
    ]
    return "\n".join(line for line in lines if line is not None)


def _distinct(cells: Sequence[list[str]], n_axes: int) -> tuple[list[list[str]], int]:
    """The first row of those that differ in the varied fields (first `n_axes` cells) or marks (last) alone; how many more."""
    first: dict[tuple[str, ...], list[str]] = {}
    for row in cells:
        first.setdefault(tuple(row[n_axes:-1]), row)
    return list(first.values()), len(cells) - len(first)


def warning_lines(names: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the points are warned about; warnings that differ in their numbers alone are told once."""
    from simulator.cli.layout import wrapped

    alike: dict[str, list[tuple[str, str]]] = {}
    for row in rows:
        for text in filter(None, row["warnings"].split(WARNING_ENDS)):
            alike.setdefault(NUMBER.sub("#", text), []).append((_values(names, row), text))
    lines = []
    for found in list(alike.values())[:MAX_WARNINGS]:
        values, text = found[0]
        points = len({point for point, _ in found})
        some = "" if points == len(rows) else f"{values}: "
        more = f" (in {points} of {len(rows)} points)" if 1 < points < len(rows) else ""
        lines.append(wrapped(f"warning   {some}{text}{more}", " " * 10))
    if len(alike) > MAX_WARNINGS:
        lines.append(f"warning   ... and {len(alike) - MAX_WARNINGS} more kinds in sweep.csv")
    return lines


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """Columns of the varied fields and their short titles: the end of the path, from the last word on with which it is clear."""
    from simulator.planning.points import axis_column

    def title(path: str) -> str:
        parts = path.split(".")
        ends = (".".join(parts[at:]) for at in range(len(parts) - 1, 0, -1) if not parts[at].isdigit())
        return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in paths) == 1), path)

    return {axis_column(path): title(path) for path in paths}


def answer(names: Mapping[str, str], result: SweepResult, slo: Mapping[str, Mapping[str, float]]) -> list[str]:
    """The sweep's answer in words; `slo` are its bounds [ms]."""
    from simulator.report.numbers import dollars, short
    from simulator.results.ranking import percent

    if not any(row["slo"] for row in result.rows):
        return [
            "No SLO is given: the table shows what each point does, none is judged (slo: in the scenario)."
        ]

    unjudged = [row for row in result.rows if row["slo"] == "not judged"]
    why = "no request in the measured window"
    lower = "lower workload.warmup or give more requests"
    if unjudged and all(row["slo"] in ("", "not judged") for row in result.rows):
        return [f"The SLO is not judged: {why} of any point; {lower}."]

    def words(row: Mapping[str, Any]) -> str:
        price = "price unknown" if row["usd_per_hour"] is None else f"{dollars(row['usd_per_hour'])}/hour"
        late = row[result.latency]
        return (
            f"{_values(names, row)}: {row['devices']} x {row['hardware']}, {price}, "
            f"{TITLES[result.latency.rpartition('_')[0]]} {result.latency.rpartition('_')[2]} {short(late)} ms"
        )

    def warned(row: Mapping[str, Any]) -> list[str]:
        return [f"  it is warned: {text}" for text in row["warnings"].split(WARNING_ENDS) if text]

    lines = []
    if result.cheapest:
        unpriced = result.cheapest["usd_per_hour"] is None
        title = "Quickest of the fewest devices that meet the SLO" if unpriced else "Cheapest that meets the SLO"
        lines += [f"{title}: {words(result.cheapest)}", *warned(result.cheapest)]
        if (order := runner_up(result)) is not None:
            row, share = order
            lines.append(f"Next: {words(row)}; that it is dearer a token is {percent(share)} sure by the model's error")
    elif result.close:
        lines.append("No point meets the SLO for certain.")
    else:
        lines += ["No point meets the SLO.", *never_kept(names, result.rows, slo)]
    if result.close:
        title = "Cheaper but close" if result.cheapest else "Closest"
        lines.append(f"{title}: {words(result.close)}; its verdict lies within the error of the run or the model")
        lines += warned(result.close)
    if unjudged:
        points = "; ".join(_values(names, row) for row in unjudged[:4]) + ("; ..." if len(unjudged) > 4 else "")
        lines.append(f"Not judged, {why}: {points}; {lower}.")
    return lines


def runner_up(result: SweepResult) -> tuple[Mapping[str, Any], float] | None:
    """The next cheapest point that meets the SLO, and the probability that it is dearer a token; None where prices decide.

    Of points under one load the dearer an hour is the dearer, whatever the model's error.
    """
    from simulator.planning.pareto import cheapest
    from simulator.planning.points import COST_HIGH
    from simulator.results.ranking import Estimate, confidence

    cost = result.cost
    if cost != "usd_per_1m_total_tokens" or result.cheapest is None:
        return None
    others = [row for row in result.rows if row["point"] != result.cheapest["point"]]
    row = cheapest(others, cost, result.latency)
    if row is None:
        return None
    best, other = (Estimate.of(each[cost], (None, each[COST_HIGH]), each) for each in (result.cheapest, row))
    return None if best is None or other is None else (row, confidence(best, other))


def never_kept(
    names: Mapping[str, str], rows: Sequence[Mapping[str, Any]], slo: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """The bounds that no point keeps, and who comes nearest to each; or that it is never the same point that keeps them."""
    from simulator.report.numbers import short

    lines = []
    for metric, named in slo.items():
        for percentile, bound in named.items():
            column = f"{metric}_{percentile}"
            known = [row for row in rows if row.get(column) is not None]
            best = min(known, key=lambda row: float(row[column]), default=None)
            if best is not None and best[column] > bound:
                title = f"{TITLES[metric]} {percentile}"
                lines.append(f"  {title} is {short(best[column])} ms at best, of {short(bound)} ms: {_values(names, best)}")
    return lines or (["  Each bound is kept by some point, all by none."] if slo else [])


def _values(names: Mapping[str, str], row: Mapping[str, Any]) -> str:
    from simulator.planning.axes import text_of

    return ", ".join(f"{name} {text_of(row[column])}" for column, name in names.items())


def _by_cost(row: Mapping[str, Any], result: SweepResult) -> tuple[bool, float, float, int]:
    cost, late = row[result.cost], row[result.latency]
    infinite = float("inf")
    return (
        row["status"] != "ok",
        infinite if cost is None else cost,
        infinite if late is None else late,
        row["point"],
    )


def _devices(rows: Sequence[Mapping[str, Any]]) -> str:
    """What one device of these rows is called."""
    from hardware_profiles.device import device_word

    words = {device_word(name) for row in rows for name in row["hardware"].split(SEVERAL)}
    return words.pop() if len(words) == 1 else "device"


def _ends(row: Mapping[str, Any]) -> str:
    """When a batch ends, or would."""
    from simulator.planning.sweep import duration

    return f"~{duration(row['would_end_s'])}" if row["would_end_s"] is not None else duration(row["vllm_duration_s"])


def _columns(
    names: Mapping[str, str], slo: Mapping[str, Mapping[str, float]], devices: str, *, jobs: bool
) -> list[tuple[str, Any]]:
    from simulator.planning.axes import text_of
    from simulator.report.numbers import dollars, short

    def plain(column: str) -> Any:
        return lambda row: "-" if row[column] is None else text_of(row[column])

    def number(column: str) -> Any:
        return lambda row: short(row[column])

    def share(column: str) -> Any:
        return lambda row: "-" if row[column] is None else f"{row[column]:.0%}"

    def money(column: str) -> Any:
        return lambda row: dollars(row[column])

    shown = [("ttft_ms", "p50"), ("ttft_ms", "p99"), ("tpot_ms", "p50"), ("tpot_ms", "p99")]
    for metric, named in slo.items():
        shown += [
            (metric, p) for p in named if p in ("p50", "p90", "p95", "p99") and (metric, p) not in shown
        ]
    order = list(TITLES)
    shown.sort(key=lambda pair: (order.index(pair[0]), pair[1]))
    return [
        *((name, plain(column)) for column, name in names.items()),
        (devices, plain("devices")),
        ("SLO", _verdict),
        *((f"{TITLES[m]} {p}", number(f"{m}_{p}")) for m, p in shown),
        *((("ends", _ends),) if jobs else ()),
        ("req/s", number("request_throughput")),
        ("good/s", number("request_goodput")),
        ("busy", share("gpu_busy_fraction")),
        ("$/hour", money("usd_per_hour")),
        ("$/month", money("usd_per_month")),
        ("$/1M", money("usd_per_1m_total_tokens")),
        ("", lambda row: ("*" if row["pareto"] else "") + ("!" if row["warnings"] else "")),
    ]


def _asked(slo: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Titles of the latencies that an SLO names."""
    return {f"{TITLES[metric]} {percentile}" for metric, named in slo.items() for percentile in named}


def _used(row: Mapping[str, Any]) -> str:
    return "-" if row["headroom_used"] is None else f"{row['headroom_used']:.0%}"


def _verdict(row: Mapping[str, Any]) -> str:
    if row["would_end_s"] is not None:
        return "unfinished"
    if row["overloaded"]:
        return "overload" if row["slo"] in ("missed", "") else f"{row['slo']}, overload"
    return str(row["slo"] or "-")


def _price_line(rows: Sequence[Mapping[str, Any]]) -> str:
    from simulator.report.numbers import dollars

    prices = dict.fromkeys((row["hardware"], row["usd_per_gpu_hour"], row["price_date"]) for row in rows)
    known = [
        f"{hardware} {dollars(usd)}" + (" on average" if SEVERAL in hardware else "") + (f" ({date})" if date else "")
        for hardware, usd, date in prices
        if usd is not None
    ]
    unknown = [hardware for hardware, usd, _ in prices if usd is None]
    parts = [f"{', '.join(known)} a {_devices(rows)}-hour"] if known else []
    if unknown:
        parts.append(f"none known for {', '.join(unknown)}: set cost.usd_per_gpu_hour")
    return (
        "prices    "
        + ("; ".join(parts) or "-")
        + ". $/month: 730 h; $/1M: a million tokens, input and output; latencies in ms"
    )
