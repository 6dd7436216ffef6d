"""Lists of measurements that others published, each beside its scenario: simulate and compare.

A list is a file of JSON lines, one case a line: `id`, `source`, `scenario` (YAML text), `reported` (metric -> value), and where
known `lengths`, the [prompt, output] tokens of each request in order, which replace the laws of the scenario. A `note` with the
words "not flushed" says that the runs of a source on one deployment followed each other on one server, with prompts of one
seed; one with "ShareGPT lengths by mean", that the scenario's laws have but the means of such pairs, which are drawn instead.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.errors import InfeasibleError, InputError, PlanError
from hardware_profiles.records import dataclass
from simulator.results.intervals import Evidence, center, half_width, interval
from simulator.validation.evidence import Kind
from simulator.validation.one_factor import one_factors
from simulator.validation.runs import UNREADABLE, predictions
from simulator.validation.sharegpt import like
from simulator.validation.unflushed import Lengths, left_by, of_the_seed
from simulator.workload.columns import FloatArray, Workload

if TYPE_CHECKING:
    from engine_models.parts.kept import Kept
    from simulator.config.schema import Scenario
    from simulator.prepared import Prepared
    from simulator.run import RunResult

OF_RUN = {
    "ttft_mean_ms": "ttft_mean_ms",
    "ttft_median_ms": "ttft_p50_ms",
    "tpot_mean_ms": "tpot_mean_ms",
    "itl_mean_ms": "itl_mean_ms",
    "output_tok_s": "output_throughput_tok_s",
    "total_tok_s": "total_throughput_tok_s",
    "e2e_s": "e2e_mean_ms",
}
"""Metric of a report -> column of a suite of runs."""
STARTS_UP = ("start_s", "weights_s", "compile_s", "graph_capture_s")
"""Times of a server to start, and its parts; nothing is simulated for them."""
METRICS = (*OF_RUN, *STARTS_UP, "prefill_tok_s", "decode_tok_s", "duration_s", "kv_tokens", "power_w", "rate_within_slo")
STARTS, FAILS = "starts", "does not start"
KV_ERROR = 0.027
"""Of what an engine tells of its KV cache, about the least and the most that is predicted: nine of eleven published start-up
lines err by no more (vLLM, 2026-11; the others are of older versions than their cases name)."""
SHAREGPT = "ShareGPT lengths by mean"
_LOAD = re.compile(r"_c(\d+)$|\.(.+)$")
"""Behind a metric: users of a closed loop, or the name of a stage."""


@dataclass(frozen=True)
class Case:
    """One case: `reported` are numbers, or the words "starts" and "does not start".

    unflushed : whether the server kept the prompts of the runs before, which are those of this one as far as both go.
    sharegpt : whether the lengths are those of ShareGPT's pairs, of which the scenario's laws have the means.
    """

    id: str
    source: str
    scenario: str
    reported: Mapping[str, Any]
    lengths: Lengths = ()
    unflushed: bool = False
    sharegpt: bool = False


Entry = dict[str, Any]
"""A case's metric in the JSON of `validate reports`."""
Outcome = tuple[list[Entry], list[dict[str, str]]]
"""What was compared, and what was skipped."""


def read_cases(path: Path) -> list[Case]:
    """Cases of a list. InputError names the line of one that cannot be read."""
    if not path.is_file():
        raise InputError("no such file", where=str(path), mend="name a file of JSON lines, one case a line")
    cases: list[Case] = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            lengths = tuple((int(p), int(o)) for p, o in entry.get("lengths") or ())
            reported = dict(entry["reported"])
            own = str(entry["id"]), str(entry.get("source", "")), str(entry["scenario"])
            note = str(entry.get("note", ""))
            cases.append(Case(*own, reported, lengths, "not flushed" in note, SHAREGPT in note))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"not a case: {type(error).__name__}: {error}"[:160],
                where=f"{path}, line {number}",
                mend="an object with id, source, scenario (YAML text) and reported (metric to value)",
            ) from None
    if not cases:
        raise InputError("it holds no case", where=str(path), mend="write one JSON object a line")
    return cases


def by_laws(cases: Sequence[Case]) -> list[Case]:
    """Cases whose pairs are drawn, with lengths by their laws: how far those lead astray that have but the means."""
    return [replace(case, id=f"{case.id}, by law", sharegpt=False) for case in cases if case.sharegpt and not case.lengths]


def validate_reports(
    path: Path, workers: int = 1, progress: Callable[[str], None] | None = None, *, laws: bool = False
) -> dict[str, Any]:
    """Simulate every case, and with `laws` some again, see `by_laws`.

    Returns the JSON form: `cases`, `skipped`, `medians` (absolute error [%] by metric), `one_factor`.
    """
    cases = read_cases(path)
    if laws:
        cases += by_laws(cases)
    if workers > 1 and len(cases) > workers:
        from joblib import Parallel, delayed

        outcomes: list[Outcome] = list(Parallel(n_jobs=workers)(delayed(judged)(*each) for each in with_history(cases)))
    else:
        outcomes = []
        for number, (case, fresh, served) in enumerate(with_history(cases), 1):
            if progress:
                progress(f"{number}/{len(cases)} {case.id}")
            outcomes.append(judged(case, fresh, served))
    compared = [entry for found, _ in outcomes for entry in found]
    errors: dict[str, list[float]] = {}
    for entry in compared:
        if entry["abs_pct_error"] is not None:
            errors.setdefault(entry["metric"], []).append(entry["abs_pct_error"])
    return {
        "cases": compared,
        "skipped": [entry for _, found in outcomes for entry in found],
        "medians": {metric: float(np.median(values)) for metric, values in errors.items()},
        "one_factor": [asdict(found) for found in one_factors(compared)],
    }


@dataclass(frozen=True)
class Errors:
    """Signed errors [percent] of some entries, and whether each lay in its interval (None: no interval)."""

    signed_percent: FloatArray
    inside: tuple[bool | None, ...]

    @property
    def figures(self) -> tuple[float, float, float]:
        """Median and 90th percentile of the absolute error, and the median of the signed one [%]."""
        size = np.abs(self.signed_percent)
        return float(np.median(size)), float(np.percentile(size, 90)), float(np.median(self.signed_percent))

    @property
    def coverage_pct(self) -> float | None:
        """Share of the reported values inside their intervals [%]."""
        known = [inside for inside in self.inside if inside is not None]
        return 100 * sum(known) / len(known) if known else None


def errors_by(entries: Iterable[Entry], key: Callable[[Entry], str]) -> dict[tuple[str, str], Errors]:
    """Errors by (group, metric), sorted; right-or-wrong entries are left out."""
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry["abs_pct_error"] is not None:
            groups.setdefault((key(entry), entry["metric"]), []).append(entry)
    return {
        name: Errors(
            np.array([(e["predicted"] / e["reported"] - 1) * 100 for e in found]), tuple(e["covered"] for e in found)
        )
        for name, found in sorted(groups.items())
    }


def with_history(cases: Iterable[Case]) -> Iterator[tuple[Case, bool, tuple[Lengths, ...]]]:
    """Cases, whether each is the first of its source with its model and deployment, and the runs of its server before it.

    Those after the first found the same server (assumed), and its cache where that was not flushed.
    """
    seen: dict[tuple[str, str], tuple[Lengths, ...]] = {}
    for case in cases:
        server = case.source, case.scenario.partition("workload:")[0].partition("\n")[2]
        before = seen.get(server)
        yield case, before is None, before or ()
        seen[server] = (*(before or ()), *((case.lengths,) if case.unflushed and case.lengths else ()))


def judged(case: Case, fresh: bool = True, served: tuple[Lengths, ...] = ()) -> Outcome:
    """Compare each reported metric of a case, on a server that has served nothing yet if `fresh`, else runs of these lengths.

    A suffix `_cN` asks for a closed loop of N users instead of the scenario's load. Where loads run one after the other
    (`workload.stages`) it asks for the stage with such a loop, and a suffix `.NAME` for the stage of that name.
    """
    compared: list[Entry] = []
    skipped: list[dict[str, str]] = []
    by_load: dict[str, dict[str, Any]] = {}
    staged = _staged(case)
    for name, value in case.reported.items():
        users = None if staged else _LOAD.search(name)
        known = _LOAD.sub("", name)
        number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")
        if known not in METRICS:
            skipped.append({"id": case.id, "metric": name, "reason": f"metric '{name}' is not known"})
        elif not number and not str(value).startswith((STARTS, FAILS)):
            skipped.append({"id": case.id, "metric": name, "reason": f"'{str(value)[:40]}' is no positive number"})
        else:
            by_load.setdefault((users[1] or "") if users else "", {})[name] = value
    for load, wanted in by_load.items():
        found, reason = _compare(case, load, wanted, fresh, served)
        compared += found
        skipped += [{"id": case.id, "metric": name, "reason": reason} for name in wanted if reason]
    return compared, skipped


def _staged(case: Case) -> bool:
    """Whether loads of the case run one after the other."""
    from simulator.config.load import load_scenario

    try:
        return load_scenario(_text(case.scenario)).workload.stages is not None
    except (PlanError, *UNREADABLE):
        return False  # told when it is compared


def _stage_of(scenario: Scenario, name: str) -> str:
    """Name of the stage whose metric is asked for; "" for those measured together. InputError if there is none, or several."""
    found, stages = _LOAD.search(name), scenario.workload.stages or ()
    if found is None or (found[1] and not stages):
        return ""
    if found[2] is not None:
        named = [stage.name for stage in stages if stage.name == found[2]]
    else:
        loops = [(stage.name, stage.arrivals) for stage in stages if stage.arrivals is not None]
        named = [own for own, sent in loops if sent.kind == "closed_loop" and sent.concurrency == int(found[1])]
    if len(named) != 1:
        raise InputError(
            f"{'no stage' if not named else 'more than one stage'} for '{found[0].lstrip('_.')}'",
            where=f"reported.{name}",
            mend=f"behind the metric `.NAME` of one of {', '.join(stage.name for stage in stages) or 'workload.stages'}",
        )
    return named[0]


def _compare(
    case: Case, users: str, wanted: Mapping[str, Any], fresh: bool, served: tuple[Lengths, ...]
) -> tuple[list[Entry], str]:
    """Compare the wanted metrics under one load; the reason why not all could be."""
    from simulator.config.load import load_scenario
    from simulator.elastic import start_of
    from simulator.prepare import prepare

    out: list[Entry] = []
    try:
        load = [f"workload.arrivals={{kind: closed_loop, concurrency: {users}}}"] if users else []
        scenario = load_scenario(_text(case.scenario), load)
        group = _group(case, scenario)
        try:
            prepared = prepare(scenario)
        except InfeasibleError as error:
            words = {name: value for name, value in wanted.items() if isinstance(value, str)}
            out = [_started(case, name, value, FAILS, group) for name, value in words.items()]
            return out, "" if len(words) == len(wanted) else error.message
        timed = {}
        for name, value in wanted.items():
            if isinstance(value, str):
                out.append(_started(case, name, value, STARTS, group))
            elif _LOAD.sub("", name) == "kv_tokens":
                limits = prepared.plan.limits
                most, least = limits.told_tokens * prepared.ranks, limits.least_stated
                bounds = None if least is None else [least * prepared.ranks * (1 - KV_ERROR), most * (1 + KV_ERROR)]
                out.append(_entry(case, name, float(value), (float(most), bounds), group))
            elif name in STARTS_UP:
                start = start_of(prepared, None)[0] if prepared.elastic is None else prepared.elastic.pools[0].start
                seconds = start.server_s if name == "start_s" else start.parts()[name]
                out.append(_entry(case, name, float(value), (seconds, None), group))
            else:
                timed[name] = float(value)
        if timed:
            asked = {name: _stage_of(scenario, name) for name in timed}
            lengths = case.lengths or (like(scenario.workload) if case.sharegpt else ())
            by_stage = simulated_by_stage(prepared, lengths, fresh=fresh, served=served if case.unflushed else None)
            if any(_LOAD.sub("", name) == "rate_within_slo" for name in timed):
                by_stage[""][0]["rate_within_slo"] = _highest_rate(prepared), None
            for name, value in timed.items():
                predicted, rests_on = by_stage[asked[name]]
                out.append(_entry(case, name, value, predicted[_LOAD.sub("", name)], group) | {"rests_on": rests_on})
    except PlanError as error:
        return out, error.message
    except (RuntimeError, NotImplementedError) as error:
        return out, f"not modelled: {error}"[:200]
    except UNREADABLE as error:
        return out, f"internal error: {type(error).__name__}: {error}"[:200]
    return out, ""


def _text(scenario: str) -> str:
    """YAML text as the loader tells it from a name."""
    return scenario if "\n" in scenario else scenario + "\n"


def _group(case: Case, scenario: Scenario) -> dict[str, str]:
    """Engine, device, model family and source of a case."""
    from engine_models.model.architecture import load_architecture

    pool = scenario.deployment.pools[0]
    arch = load_architecture(scenario.model)
    engine = pool.engine.partition("@")[0]
    return {"engine": engine, "gpu": pool.hardware, "family": arch.model_type or arch.name, "source": case.source}


def _started(case: Case, name: str, reported: str, predicted: str, group: dict[str, str]) -> Entry:
    """Whether a server starts: right or wrong."""
    right = reported.startswith(predicted)
    return {
        "id": case.id, "metric": name, "reported": reported, "predicted": predicted, "abs_pct_error": None,
        "interval": None, "covered": right, "group": group,
    }  # fmt: skip


def _entry(
    case: Case, name: str, reported: float, predicted: tuple[float, list[float] | None], group: dict[str, str]
) -> Entry:
    value = float(predicted[0])
    bounds = None if predicted[1] is None else [float(bound) for bound in predicted[1]]
    return {
        "id": case.id,
        "metric": name,
        "reported": reported,
        "predicted": value,
        "abs_pct_error": abs(value / reported - 1) * 100,
        "interval": bounds,
        "covered": bounds[0] <= reported <= bounds[1] if bounds else None,
        "group": group,
    }


Predicted = dict[str, tuple[float, list[float] | None]]
"""Value and 90 % interval by metric."""


def simulated(
    prepared: Prepared,
    lengths: Lengths,
    arrival_s: FloatArray | None = None,
    fresh: bool = False,
    served: tuple[Lengths, ...] | None = None,
) -> tuple[Predicted, dict[str, Any]]:
    """Simulate a scenario; the metrics, and what they rest on.

    lengths : [prompt, output] of each request in order instead of the scenario's laws; none: the laws.
    arrival_s : when each arrives, rising, instead of by the scenario's law.
    fresh : whether all at once are sent to a server that has compiled nothing yet.
    served : lengths of the runs before it on a server that is not flushed, None for one that is.
    """
    from simulator.run import run_prepared
    from simulator.workload.build import build_workload

    scenario = prepared.scenario
    load = build_workload(scenario.workload, seed=scenario.seed, base_dir=prepared.base_dir)
    if lengths:
        load = with_lengths(load, lengths)
    if arrival_s is not None:
        load = replace(load, arrival_s=arrival_s, duration_s=float(arrival_s[-1]))
    warm: list[Kept] = []
    if lengths and served is not None and prepared.plan.prefix_caching and prepared.replicas * prepared.ranks == 1:
        load = of_the_seed(load)
        warm = left_by(served, lengths, prepared.plan.limits.block_tokens)
    run = run_prepared(prepared, workload=load, warm=warm)
    by_law = not lengths and scenario.workload.lengths_by_law()
    return _figures(prepared, run, np.ones(len(load), dtype=bool), fresh, by_law)


def simulated_by_stage(
    prepared: Prepared, lengths: Lengths, fresh: bool = False, served: tuple[Lengths, ...] | None = None
) -> dict[str, tuple[Predicted, dict[str, Any]]]:
    """The same, "" of the whole run; where loads run one after the other also of each stage, by its name."""
    from simulator.io.tables import Coded
    from simulator.run import run_prepared

    if prepared.scenario.workload.stages is None:
        return {"": simulated(prepared, lengths, fresh=fresh, served=served)}
    if lengths:
        raise InputError("lengths do not go with stages", where="lengths", mend="give each stage its own load")
    run = run_prepared(prepared)
    assert not isinstance(run.requests, Path)
    stage = run.requests["stage"]
    assert isinstance(stage, Coded)
    begins = np.array([each["measured"] for each in run.result["stages"]])
    by_law = prepared.scenario.workload.lengths_by_law()
    out = {"": _figures(prepared, run, begins[stage.codes], fresh=False, by_law=by_law)}
    for number, each in enumerate(run.result["stages"]):
        told = replace(run, result={**run.result, **each})
        out[each["name"]] = _figures(prepared, told, stage.codes == number, fresh and number == 0, by_law)
    return out


def _figures(
    prepared: Prepared, run: RunResult, of: NDArray[np.bool_], fresh: bool, by_law: bool
) -> tuple[Predicted, dict[str, Any]]:
    """The metrics of some requests of a run, `run.result` theirs, and what they rest on."""
    from simulator.calibrated import used_ranges
    from simulator.results.domain import domain
    from simulator.results.latencies import latencies

    asked_s = run.workload.arrival_s[of]
    waits = bool(np.isnan(asked_s).any())
    batch = not waits and bool(np.ptp(asked_s) == 0)
    if batch and fresh:
        run = replace(run, raw=replace(run.raw, arrival_s=run.raw.arrival_s - prepared.plan.first_use_s))
    lat = latencies(run.raw, prepared.scenario.client.overhead_ms / 1e3)
    evidence, _ = domain(prepared, used_ranges(run.result))
    evidence = replace(evidence, closed_loop=waits or batch, batch=batch, by_law=by_law)
    of_run = predictions(run, lat, evidence, of)
    rests_on = next(iter(of_run.values())).rests_on if of_run else {}
    out = {metric: (of_run[column].value, of_run[column].interval) for metric, column in OF_RUN.items() if column in of_run}
    if "e2e_s" in out:
        value, bounds = out["e2e_s"]
        out["e2e_s"] = value / 1e3, None if bounds is None else [bound / 1e3 for bound in bounds]
    first_s, raw = run.raw.arrival_s + lat.ttft_ms / 1e3, run.raw
    answered = ~np.isnan(raw.end_s) & of
    prompts, answers = raw.prompt_tokens[answered].sum(), raw.output_tokens[answered].sum()
    spans = {
        "prefill_tok_s": (prompts, busy_s(raw.arrival_s[answered], first_s[answered])),
        "decode_tok_s": (answers - answered.sum(), busy_s(first_s[answered], raw.end_s[answered])),
    }
    for metric, (tokens, seconds) in spans.items():
        if tokens > 0 and seconds > 0:
            like = "ttft" if metric == "prefill_tok_s" else "tpot"
            width, middle = half_width(evidence, like, "mean")[0], -center(evidence, like)
            out[metric] = tokens / seconds, interval(tokens / seconds, width, middle)
    energy_j = run.result["server"]["energy_j"]
    if energy_j is not None:
        devices_s = run.result["totals"]["duration_s"] * prepared.devices
        out["power_w"] = energy_j / devices_s, None
    if answered.any():
        whole_s = float(raw.end_s[answered].max() - np.nanmin(raw.arrival_s[of]))
        rate = of_run["output_throughput_tok_s"]
        out["duration_s"] = whole_s, rate.interval and [whole_s * rate.value / bound for bound in reversed(rate.interval)]
    return out, rests_on


def _highest_rate(prepared: Prepared) -> float:
    """The highest rate of arrival that keeps the scenario's SLO [1/s]. InfeasibleError if none does."""
    from simulator.planning.headroom import headroom
    from simulator.run import run_prepared

    if not prepared.scenario.slo.bounds_ms():
        raise InputError("no SLO is given", where="slo", mend="give the bounds that the rate is to keep")
    found = headroom(prepared, run_prepared(prepared))
    if not found.within_slo:
        cause = f"no rate up to {found.tried:.3g}/s is the highest that keeps the SLO"
        raise InfeasibleError(cause, where="slo", mend="give other bounds")
    return found.within_slo


def busy_s(start_s: FloatArray, end_s: FloatArray) -> float:
    """Time that at least one of the intervals covers [s].

    >>> busy_s(np.array([0.0, 1.0, 5.0]), np.array([2.0, 3.0, 6.0]))
    4.0
    """
    order = np.argsort(start_s, kind="stable")
    start, end = start_s[order], end_s[order]
    reached = np.concatenate([start[:1], np.maximum.accumulate(end)[:-1]])
    return float(np.maximum(0.0, end - np.maximum(start, reached)).sum())


def with_lengths(load: Workload, lengths: Lengths) -> Workload:
    """The workload with the lengths of each request in order. InputError if they are not as many or prompts share content."""
    if len(lengths) != len(load):
        raise InputError(
            f"lengths of {len(lengths):,} requests, and the scenario sends {len(load):,}",
            where="lengths",
            mend="one [prompt, output] a request",
        )
    if load.content is not None:
        raise InputError("lengths do not go with prompts that share content", where="lengths", mend="remove either")
    prompt, output = np.array(lengths, dtype=np.int64).T
    if (prompt < 1).any() or (output < 1).any():
        raise InputError("a length is below one token", where="lengths", mend="at least 1")
    limit = np.where(load.max_output_tokens == load.output_tokens, output, load.max_output_tokens)
    return replace(load, prompt_tokens=prompt, output_tokens=output, max_output_tokens=limit)


def report_kinds(cases: Sequence[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Kind]]:
    """The `cases` of `validate reports` as experiments of a suite of runs, and what each is; other metrics are left out.

    Where a report has a median of TTFT, its mean is left out too: pages give both where the first prompts were cached.
    """
    has_median = {case["id"] for case in cases if case["metric"] == "ttft_median_ms"}
    experiments: list[dict[str, Any]] = []
    known: dict[str, Kind] = {}
    for case in cases:
        column = OF_RUN.get(case["metric"])
        if column is None or "rests_on" not in case or case["metric"] == "e2e_s":
            continue
        if case["metric"] == "ttft_mean_ms" and case["id"] in has_median:
            continue
        name, group = f"report/{case['id']}", case["group"]
        experiments.append({**case, "id": name, "metric": column, "measured": case["reported"]})
        known[name] = Kind(Evidence(**case["rests_on"]), group["family"], group["gpu"], "", group["source"], page=True)
    return experiments, known
