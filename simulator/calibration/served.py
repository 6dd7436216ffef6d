"""Result files of benchmark clients as points of a calibration: a load, simulated under given scales.

What the file says of its load replaces the scenario's: rate or number of clients, times and lengths of each request where it has
them. Where it has only means, the scenario's laws of length stand, if their means are those.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.files import read_text, without_cut_line
from hardware_profiles.records import dataclass
from hardware_profiles.scaled_ops import Scales
from simulator.calibrated import with_scales
from simulator.calibration.agreement import ALIKE, check_model
from simulator.calibration.deployment import Deployment
from simulator.calibration.fit import Point
from simulator.config.load import load_scenario
from simulator.planning.measured_files import Measured, read_measured
from simulator.prepare import prepare
from simulator.prepared import Prepared
from simulator.validation.reports import METRICS as TIMED
from simulator.validation.reports import read_cases, simulated
from simulator.workload.build import build_workload
from simulator.workload.columns import FloatArray
from simulator.workload.formats import FORMATS, sniff
from simulator.workload.rows import Raw
from simulator.workload.tables import Table, json_line_tables, read_table

FEWEST = 5
"""Requests of a measurement (assumed: a mean of fewer is one of accidents)."""
MOST_REQUESTS = 1000
"""Requests that are simulated of a measurement (assumed: the mean of the first thousand is that of all)."""
FULL = 0.85
"""Mean number in flight over the most from which a recording is of so many clients that wait (assumed)."""
METRICS = {
    "ttft_ms": "ttft_mean_ms", "tpot_ms": "tpot_mean_ms", "itl_ms": "itl_mean_ms", "e2el_ms": "e2e_ms",
    "output_throughput": "output_tok_s",
}  # fmt: skip
"""Metric of a result file -> of a simulation."""
PICKED = (("ttft_ms", "tpot_ms"), ("ttft_ms", "itl_ms"), ("tpot_ms",), ("itl_ms",), ("e2el_ms",), ("ttft_ms",))
"""Metrics that are fitted, the first of these that a file has: TPOT before ITL, which counts chunks; E2E, and the rate of output
tokens, only where they are all."""
Lengths = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Left:
    """A measurement that is left out, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class Sent:
    """Requests of a measurement as recorded: when, where the file tells, [prompt, output] tokens, the most and mean in flight."""

    arrival_s: FloatArray | None
    lengths: Lengths
    in_flight: tuple[float, float] | None


def points_of_results(path: Path, deployment: Deployment) -> tuple[list[Point], list[Left], list[str]]:
    """A point for each measurement in a file, those left out, and notes.

    Raises InputError for a file of another kind, or where the scenario does not describe what was measured.
    """
    found = read_measured(path)
    records = _records(path, len(found))
    points: list[Point] = []
    left: list[Left] = []
    notes: list[str] = []
    for number, one in enumerate(found):
        notes += _check_model(one, path, deployment.prepared)
        done = one.totals.get("completed", math.inf)
        lost = one.totals.get("failed", 0.0)
        if one.not_numbers:
            left.append(Left(one.label, f"{', '.join(one.not_numbers)}: NaN is no measurement, and is not taken"))
        values, below = _values(one), next((name for name, each in one.metrics.items() if each.get("mean", 0.0) < 0), None)
        if below is not None:
            left.append(Left(one.label, f"its mean {below} is {one.metrics[below]['mean']:g}, and no time is below zero"))
        elif done < FEWEST:
            left.append(Left(one.label, f"{done:.0f} requests are too few, {FEWEST} are needed"))
        elif lost > 0.1 * done:
            left.append(Left(one.label, f"{lost:.0f} requests failed, of {done + lost:.0f}"))
        elif not values:
            left.append(Left(one.label, "no mean TTFT, TPOT, ITL or E2E, and no rate of output tokens"))
        else:
            points.append(_point(one, records[number], path, deployment, values))
    return points, left, list(dict.fromkeys(notes))


def _values(one: Measured) -> dict[str, float]:
    for names in PICKED:
        values = {name: one.metrics[name]["mean"] for name in names if one.metrics.get(name, {}).get("mean", 0.0) > 0}
        if len(values) == len(names):
            return values
    rate = one.totals.get("output_throughput", 0.0)
    return {"output_throughput": rate} if rate > 0 else {}


def _point(one: Measured, sent: Sent | None, path: Path, deployment: Deployment, values: dict[str, float]) -> Point:
    """The point of a measurement."""
    arrivals, arrival_s = _arrivals(one.facts, sent)
    done = int(one.totals.get("completed", MOST_REQUESTS))
    requests = min(len(sent.lengths) if sent else done, MOST_REQUESTS)
    load: dict[str, Any] = {"requests": requests, "duration": None, "warmup": 0}
    load |= {"arrivals": arrivals} if arrivals else {}
    lengths: Lengths = ()
    if sent:
        lengths = sent.lengths[:requests]
        prompt, output = (max(1, round(float(np.mean(side)))) for side in zip(*lengths, strict=True))
        load = {"arrivals": {"kind": "batch"}, **load, "prompt_tokens": prompt, "output_tokens": output}
        load = {key: value for key, value in load.items() if value is not None} | {"max_output_tokens": "equal"}
    else:
        _check_lengths(one, path, deployment)
    prepared = deployment.under(**load)
    count = one.totals.get("completed", 0.0)
    noise = {
        METRICS[name]: one.metrics.get(name, {}).get("std", 0.0) / value / math.sqrt(max(count, 1.0))
        for name, value in values.items()
    }
    together = float(arrivals["concurrency"]) if arrivals.get("kind") == "closed_loop" else _little(one)
    prompts, outputs = np.array(lengths).T if lengths else deployment.tokens
    longest, longest_answer = float(np.percentile(prompts, 99)), float(np.percentile(outputs, 99))
    ranges = {"prompt_tokens": longest, "context_tokens": longest + longest_answer, "rows": together / prepared.replicas}
    ranges["mean_prompt_tokens"] = float(np.mean(prompts))
    measured = {METRICS[name]: value for name, value in values.items()}
    return Point(one.label, measured, _predicted(prepared, lengths, arrival_s), noise, ranges)


def points_of_cases(path: Path, deployment: Deployment) -> list[Point]:
    """A point for each case of a list of `validate reports`, which brings a scenario of its own: several models of one machine.

    Raises InputError for a case of another engine or device, and for a list without a figure that is simulated.
    """
    own, points = deployment.prepared, []
    known: Mapping[str, float] = {}
    for case in read_cases(path):
        prepared = prepare(load_scenario(f"{case.scenario}\n"))
        for here, there in ((own.plan.engine, prepared.plan.engine), (own.device.name, prepared.device.name)):
            if here != there:
                raise InputError(
                    f"{case.id} was measured on {there}, and the scenario has {here}",
                    where=str(path),
                    mend="give cases of one engine on one device",
                )
        predict = _predicted(prepared, case.lengths, None)
        known = predict(Scales())
        measured = {
            name: float(value) for name, value in case.reported.items() if isinstance(value, int | float) and name in known
        }
        load = build_workload(prepared.scenario.workload, seed=prepared.scenario.seed, base_dir=prepared.base_dir)
        prompts, outputs = np.array(case.lengths).T if case.lengths else (load.prompt_tokens, load.output_tokens)
        longest = float(np.percentile(prompts, 99))
        ranges = {"prompt_tokens": longest, "context_tokens": longest + float(np.percentile(outputs, 99))}
        if known.keys() >= {"e2e_s", "duration_s"}:
            ranges["rows"] = in_flight(known, len(prompts)) / prepared.replicas
        points += [Point(case.id, measured, predict, {}, ranges, prepared.arch.name)] if measured else []
    if not points:
        timed = ", ".join(name for name in TIMED if name in known)
        raise InputError("no case has a figure that follows the time of steps", where=str(path), mend=f"give one of {timed}")
    return points


def in_flight(known: Mapping[str, float], requests: int) -> float:
    """Requests at once, in the mean of a run whose figures are `known`, by Little's law."""
    return max(1.0, requests * known["e2e_s"] / known["duration_s"])


def _little(one: Measured) -> float:
    """Requests in flight by Little's law, 1 where the file does not tell."""
    rate, answer_ms = one.totals.get("request_throughput", 0.0), one.metrics.get("e2el_ms", {}).get("mean", 0.0)
    return max(1.0, rate * answer_ms / 1e3)


def _predicted(prepared: Prepared, lengths: Lengths, arrival_s: FloatArray | None) -> Callable[[Scales], Mapping[str, float]]:
    @lru_cache(maxsize=32)
    def predict(scales: Scales) -> Mapping[str, float]:
        found, _ = simulated(with_scales(prepared, scales), lengths, arrival_s)
        values = {name: value for name, (value, _) in found.items()}
        return {**values, "e2e_ms": 1e3 * values.get("e2e_s", math.nan)}

    return predict


# -- what a file says of its load -------------------------------------------------------------------------


def _arrivals(facts: Mapping[str, Any], sent: Sent | None) -> tuple[dict[str, Any], FloatArray | None]:
    """The law of arrivals, empty where the file tells none, and recorded times where they tell more.

    A limit of clients that is reached all the time makes a closed loop, whatever the rate.
    """
    rate = _positive(facts.get("request_rate", facts.get("rate", facts.get("requested_rate"))))
    clients = _positive(facts.get("max_concurrency", facts.get("streams")))
    kind = str(facts.get("type_", facts.get("arrivals", "")))
    if kind == "synchronous":
        clients = 1.0
    bound = sent is not None and sent.in_flight is not None and sent.in_flight[1] >= FULL * sent.in_flight[0]
    if clients and (rate is None or math.isinf(rate) or (bound and sent and sent.in_flight and sent.in_flight[0] >= clients)):
        return {"kind": "closed_loop", "concurrency": round(clients)}, None
    if sent and sent.arrival_s is not None and rate is None and bound and sent.in_flight:
        return {"kind": "closed_loop", "concurrency": max(1, round(sent.in_flight[0]))}, None
    if sent and sent.arrival_s is not None:
        return {}, sent.arrival_s
    if rate is None:
        return {}, None
    if math.isinf(rate):
        return {"kind": "batch"}, None
    burstiness = _positive(facts.get("burstiness")) or 1.0
    if kind in ("constant", "async"):
        return {"kind": "constant", "rate": rate}, None
    if burstiness != 1.0:
        return {"kind": "gamma", "rate": rate, "cv": burstiness**-0.5}, None
    return {"kind": "poisson", "rate": rate}, None


def _positive(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if number > 0 else None


# -- requests ---------------------------------------------------------------------------------------------


def _records(path: Path, count: int) -> list[Sent | None]:
    """The requests of each of `count` measurements in a file, None where it has no requests."""
    try:
        text = read_text(path)
        whole = without_cut_line(text)
        table = read_table(path) if whole == text else next(json_line_tables(whole.splitlines(), str(path), None))
        name = sniff(table)
    except InputError:
        return [None] * count
    return [_sent(part, name) for part in _parts(table, count)]


def _parts(table: Table, count: int) -> Iterator[Table]:
    """The table of each measurement: a line of lists, or a benchmark of a report."""
    if count == 1:
        yield table
        return
    for number in range(count):
        columns = {name: [values[number]] for name, values in table.columns.items() if number < len(values)}
        yield replace(table, columns=columns, lines=table.lines[number : number + 1])


def _sent(table: Table, name: str) -> Sent | None:
    try:
        raw = FORMATS[name](table)
    except InputError:
        return None
    keep = np.ones(len(raw.prompt), bool) if raw.keep is None else np.asarray(raw.keep, bool)
    keep &= np.isfinite(raw.prompt) & np.isfinite(raw.output) & (raw.prompt >= 1) & (raw.output >= 1)
    if not keep.any() or raw.session is not None:  # what conversations share is not told
        return None
    arrival_s = _times(raw, keep)
    order = np.flatnonzero(keep) if arrival_s is None else np.flatnonzero(keep)[np.argsort(arrival_s, kind="stable")]
    lengths = tuple(zip(raw.prompt[order].astype(int).tolist(), raw.output[order].astype(int).tolist(), strict=True))
    if arrival_s is None:
        return Sent(None, lengths, None)
    rising = np.sort(arrival_s, kind="stable")
    return Sent(rising[:MOST_REQUESTS] - rising[0], lengths, _in_flight(raw, keep))


def _times(raw: Raw, keep: np.ndarray[Any, Any]) -> FloatArray | None:
    if raw.arrival_s is None:
        return None
    found = np.asarray(raw.arrival_s, np.float64)[keep]
    return found if np.isfinite(found).all() else None


def _in_flight(raw: Raw, keep: np.ndarray[Any, Any]) -> tuple[float, float] | None:
    """The most requests in flight, and their mean while new ones are sent; None where ends are not told."""
    if raw.lasted_s is None or raw.arrival_s is None:
        return None
    start = np.asarray(raw.arrival_s, np.float64)[keep]
    end = start + np.asarray(raw.lasted_s, np.float64)[keep]
    if not np.isfinite(end).all():
        return None
    times = np.sort(start)
    counts = [float(((start <= at) & (end > at)).sum()) for at in times[len(times) // 4 :][:500]]
    return (max(counts), float(np.mean(counts))) if counts else None


# -- whether the scenario describes it --------------------------------------------------------------------


def _check_model(one: Measured, path: Path, prepared: Prepared) -> list[str]:
    """Raise InputError where a file names another model, or other devices; return what cannot be checked."""
    ranks = one.facts.get("tensor_parallel_size")
    if isinstance(ranks, int) and ranks != prepared.pool.tensor_parallel:
        raise InputError(
            f"measured at tensor parallelism {ranks}, and the scenario has {prepared.pool.tensor_parallel}",
            where=str(path),
            mend="state the measured deployment in the scenario",
        )
    named = one.facts.get("model_id")
    if not isinstance(named, str):
        return []
    if not check_model(named, prepared, str(path)):
        return [f"{path.name} names its model {named}, which the catalogue does not know: it is taken for {prepared.arch.name}"]
    return []


def _check_lengths(one: Measured, path: Path, deployment: Deployment) -> None:
    """Raise InputError where the means of the lengths are not the scenario's."""
    for side, words, tokens in zip(("input", "output"), ("prompts", "outputs"), deployment.tokens, strict=True):
        mean, own = one.metrics.get(f"{side}_tokens", {}).get("mean"), float(tokens.mean())
        if mean and abs(mean / own - 1) > ALIKE:
            raise InputError(
                f"{words} of {mean:,.0f} tokens were measured in the mean, and the scenario's have {own:,.0f}",
                where=str(path),
                mend="describe the measured load under `workload`, or give results with each request (--save-detailed...)",
            )


__all__ = ["Left", "points_of_cases", "points_of_results"]
