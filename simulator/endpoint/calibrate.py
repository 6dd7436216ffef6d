"""A deployment's step times from a live server: the experiment, the fit, and how the simulator did before and does after."""

from __future__ import annotations

import datetime
import hashlib
import math
import secrets
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.calibration import Calibration
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.calibrated import measured_on, with_law
from simulator.calibration.agreement import check_bound, read_bound_s, token_bound_s
from simulator.endpoint.client import Client
from simulator.endpoint.experiment import (
    Budget,
    Limits,
    Measurement,
    Notebook,
    Point,
    design,
    measure,
    probe,
    rounds,
)
from simulator.endpoint.fit import Fit, Seen, finds_prefixes, fit, output_share, seen
from simulator.prepared import Prepared
from simulator.results.latencies import latencies, token_gaps
from simulator.results.statistics import weighted_quantiles
from simulator.run import run_prepared
from simulator.version import VERSION
from simulator.workload.build import build_workload
from simulator.workload.columns import NO_PREDECESSOR, Workload, same_float, same_int

LEAST_POINTS = 6
"""Points without which nothing is fitted (assumed)."""
FRONT_TOKENS = 16
"""Prompts below which are there to tell the front end; without one of them it is another (assumed)."""
LEAST_WIDTH = 0.02
"""Narrowest 90 % interval, logarithmic (assumed: a client's clock and load are never as good)."""


@dataclass(frozen=True)
class Options:
    """How long and how much is asked."""

    most_s: float = 600.0
    max_requests: int = 600
    max_rows: int = 32
    repeats: int = 3


@dataclass(frozen=True)
class Outcome:
    """The calibration, and what a person should know: what the server contradicts, what was not measured."""

    calibration: Calibration
    notes: tuple[str, ...]


def check_scenario(prepared: Prepared) -> Prepared:
    """The scenario's deployment as one server. Raises InputError for one whose steps are not those of one rank."""
    plan = prepared.plan
    several = {
        "prefill and decode pools": bool(prepared.pools),
        "data-parallel attention": prepared.ranks > 1,
        "pipeline parallelism": plan.executor.stages > 1,
        "speculative decoding": plan.speculation is not None,
    }
    for words in (words for words, there in several.items() if there):
        raise InputError(
            f"with {words} a step is not one measurement, and a server is calibrated by its steps",
            where="deployment",
            mend="calibrate a server without, or give result files to `capacity-plan calibrate results`",
        )
    return replace(prepared, replicas=1, devices=prepared.devices_each, elastic=None)


async def experiment(
    client: Client, prepared: Prepared, options: Options, path: Path, tell: Callable[[str], None]
) -> tuple[list[Measurement], dict[str, Any], list[str]]:
    """Measure what the file lacks; all measurements, what is known of the server, and what was left out.

    Raises InputError for a server that fails; what was measured until then is in the file.
    """
    asking, wording = await probe(client, prepared, secrets.randbits(32))
    plan = list(rounds(design(limits_of(prepared), options.max_rows, wording.fewest), options.repeats))
    head = {
        "server": asking.target.base,
        "model": asking.target.model,
        "api": asking.target.api,
        "prompts": "text" if wording.ids is None else "token ids",
    }
    book = Notebook(path, head)
    if book.found:
        client.say(f"{book.found} measurements of {path} are taken over")
    whole = await measure(asking, wording, plan, book, Budget(options.most_s, options.max_requests), tell)
    left = [f"{point.name}, round {repeat + 1}" for point, repeat in plan if not book.has(point, repeat)]
    if whole:
        return book.made, head, []
    cut = f"time or requests ran out: {len(left)} of {len(plan)} measurements were not made"
    return book.made, head, [f"{cut}; another --output with --measurements {path} goes on from there"]


def limits_of(prepared: Prepared) -> Limits:
    """What the scenario says of the server, and the longest prompt of its load."""
    limits, scenario = prepared.plan.limits, prepared.scenario
    load = build_workload(scenario.workload, seed=scenario.seed, base_dir=prepared.base_dir)
    longest = int(load.prompt_tokens.max())
    return Limits(limits.rows, limits.kv_tokens, limits.step_tokens, min(longest, limits.prompt_tokens), limits.row_tokens)


def calibrate(
    prepared: Prepared, measurements: list[Measurement], head: dict[str, Any], path: Path, notes: list[str]
) -> Outcome:
    """Fit the measurements. Raises InputError for too few of them, or what cannot be of the scenario's server."""
    found = seen(measurements, prepared.plan)
    for each in found:
        least_s = read_bound_s(prepared)
        if each.metric == "ttft":
            least_s = max(least_s, token_bound_s(prepared) * each.point.prompt)
        check_bound(f"{each.metric}_ms", 1e3 * each.took_s, 1e3 * least_s, prepared, each.point.name)
    points = {each.point for each in found}
    if len(points) < LEAST_POINTS:
        raise InputError(
            f"{len(points)} points were measured, and a fit needs {LEAST_POINTS}",
            where=str(path),
            mend="run the command again with more --max-seconds or --max-requests; it goes on where it ended",
        )
    made = fit(found, output_share(prepared.arch))
    after = with_law(prepared, made.fitted)
    rows = [_row(each, prepared, after, error, held) for each, error, held in zip(found, made.errors, made.held_out, strict=True)]
    calibration = Calibration(
        scales={},
        log_std={},
        unidentified=_unidentified(found),
        interval=_interval(found, made),
        measured_on=measured_on(prepared),
        domain=_domain(found),
        points=len(found),
        held_out_error=_median(made.held_out),
        table=tuple(rows),
        provenance={
            "tool": f"capacity-plan {VERSION}",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "server": head,
            "files": [{"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}],
            "fit": {"block_tokens": made.fitted.law.block_tokens, "tile_tokens": made.fitted.law.tile_tokens},
        },
        name=path.name,
        steps=made.fitted.as_dict(),
    )
    return Outcome(calibration, (*notes, *_contradictions(prepared, measurements, found)))


def _row(each: Seen, before: Prepared, after: Prepared, error: float, held: float) -> dict[str, Any]:
    return {
        "point": each.point.name,
        "metric": f"{each.metric}_ms",
        "measured": each.took_s * 1e3,
        "before": simulated_s(before, each) * 1e3,
        "after": simulated_s(after, each) * 1e3,
        "fit_error_pct": 100 * error,
        "held_out_error_pct": None if math.isnan(held) else 100 * held,
    }


def simulated_s(prepared: Prepared, each: Seen) -> float:
    """What a client of the simulated server sees at a point [s]."""
    run = run_prepared(prepared, workload=_at_once(each.point))
    if each.metric == "ttft":
        return float(np.median(latencies(run.raw).ttft_ms)) / 1e3
    gaps, weights = token_gaps(run.raw, np.ones(each.point.rows, bool))
    return weighted_quantiles(gaps, weights, (50.0,))[0]


def _at_once(point: Point) -> Workload:
    """A point's requests."""
    n = point.rows
    return Workload(
        arrival_s=np.zeros(n),
        prompt_tokens=same_int(point.prompt, n),
        output_tokens=same_int(point.output, n),
        max_output_tokens=same_int(point.output, n),
        predecessor=same_int(NO_PREDECESSOR, n),
        gap_s=same_float(0.0, n),
        not_before_s=same_float(0.0, n),
        session_id=same_int(-1, n),
        turn=same_int(0, n),
        class_index=same_int(0, n),
        classes=(),
        content=None,
        request_ids=None,
        duration_s=1.0,
        warmup_s=0.0,
        drain_s=3600.0,
    )


def _interval(found: list[Seen], made: Fit) -> dict[str, float]:
    """Half-widths of what nine in ten points left out stay within, by metric; of the fit where none was left out.

    Of prompts those count that are no shorter than `FRONT_TOKENS`.
    """
    out = {}
    for metric, name in (("ttft", "ttft"), ("itl", "tpot")):
        of_metric = [all_of for all_of in zip(found, made.errors, made.held_out, strict=True) if all_of[0].metric == metric]
        long = [all_of for all_of in of_metric if metric == "itl" or all_of[0].point.prompt >= FRONT_TOKENS]
        errors = [
            abs(math.log1p(max(-0.99, fitted if math.isnan(held) else held))) for _, fitted, held in long or of_metric
        ]
        if errors:
            out[name] = max(LEAST_WIDTH, float(np.quantile(errors, 0.9, method="higher")))
    return out


def _domain(found: list[Seen]) -> dict[str, tuple[float, float]]:
    prompts = [each.point.prompt for each in found if each.metric == "ttft"] or [each.point.prompt for each in found]
    contexts = [each.point.prompt + each.point.output for each in found]
    rows = [each.point.rows for each in found]
    spans = {"prompt_tokens": prompts, "context_tokens": contexts, "rows": rows}
    return {name: (float(min(values)), float(max(values))) for name, values in spans.items()}


def _median(errors: list[float]) -> float | None:
    known = [abs(error) for error in errors if not math.isnan(error)]
    return float(np.median(known)) if known else None


def _unidentified(found: list[Seen]) -> dict[str, str]:
    short = min(each.point.prompt for each in found if each.metric == "ttft")
    most = max(each.point.rows for each in found)
    out = {"tokeniser": "its time by the length of a prompt is counted in the steps"}
    if short > most:
        out["front end"] = f"no prompt is as short as a step of {most} rows; what it takes may be counted in the steps of prompts"
    return out


def _contradictions(prepared: Prepared, measurements: list[Measurement], found: list[Seen]) -> list[str]:
    """What the server does otherwise than the scenario says."""
    out = []
    finds, says = finds_prefixes(measurements), prepared.plan.prefix_caching
    if finds is not None and finds != says:
        server = "finds a prompt again that it has computed" if finds else "computes a prompt again that it had"
        out.append(f"the server {server}; the scenario's does {'find it' if says else 'not'}: check its flags for prefix caching")
    return out


__all__ = ["Options", "Outcome", "calibrate", "check_scenario", "experiment", "limits_of", "simulated_s"]
