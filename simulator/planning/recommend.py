"""Which engine for a scenario: who can serve it at all, and what each costs where it is as full as the SLO lets it be.

Every engine is given the scenario's own load, model, hardware and parallelism, and its own defaults. What the scenario itself or
a constraint forbids is an exclusion with its reason. Of the others the highest load within the SLO (without one, the highest
that is sustained) is looked for by short runs (`simulator.planning.headroom`); the *cost at the SLO* is that of a million
tokens there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_models.declaration import FEATURES
from engine_models.engines.known import IMPLIED, engine_named, names, split
from engine_models.engines.projects import PROJECTS
from engine_models.model.architecture import load_architecture
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError, PlanError, nearest
from hardware_profiles.records import dataclass
from simulator.planning.backends import in_processes
from simulator.planning.points import judged
from simulator.results.ranking import Estimate, confidence, sure

if TYPE_CHECKING:
    from engine_models.declaration import EnginePlan
    from simulator.config.schema import Pool, Scenario
    from simulator.planning.headroom import Headroom
    from simulator.prepared import Prepared

TUNED = ("rows", "step_tokens")
"""Words for the flags that `tune` tries other values of, where an engine has them: requests at once, tokens of a step."""
FACTORS = (0.25, 4.0)
"""Values tried of each, as multiples of the default; assumed: a coarse search, one flag at a time."""
CARRIED = ("context",)
"""Words for flags of the scenario's engine that are said to the others in their own words; other flags are its own affair."""
CRITERIA = ("cost", "ttft", "tpot", "e2e")


@dataclass(frozen=True)
class Wishes:
    """What is asked beside the scenario.

    licences : SPDX identifiers that are allowed, all if empty. alive_since : year and month of the oldest sign of life allowed.
    features : of `FEATURES`, those that must be there, used or not. weights : of `CRITERIA`, how much each counts.
    tune : try other values of the flags of `TUNED`.
    """

    licences: tuple[str, ...] = ()
    alive_since: str = ""
    features: tuple[str, ...] = ()
    weights: tuple[tuple[str, float], ...] = (("cost", 1.0),)
    tune: bool = False


@dataclass(frozen=True)
class Choice:
    """An engine that can serve the scenario, at the flags that serve it best.

    highest : the highest load within the SLO in `unit`, None if none was found, 0 if every load breaks it.
    used_share : the offered load over it. cost_usd : of a million tokens there; cost_interval_usd : with the model's 90 % error.
    slo and latencies : at the offered load. proven_steps : recorded steps that the engine's model reproduces. measured : whether
    its costs were fitted on this device. reserves : whether it sets memory aside for all that a client may ask for.
    """

    engine: str
    version: str
    implied: Mapping[str, str]
    weights: str
    flags: Mapping[str, Any]
    slo: str
    p99_ttft_ms: float | None
    p99_tpot_ms: float | None
    p99_e2e_ms: float | None
    used_share: float | None
    highest: float | None
    unit: str
    devices: int
    devices_needed: int
    cost_usd: float | None
    cost_interval_usd: tuple[float, float] | None
    proven_steps: int
    measured: bool
    reserves: bool
    totals: Mapping[str, Any] = field(default_factory=dict)
    """Of the requests at the offered load, how many were offered and rejected, and the reasons."""
    sure_share: float = 1.0
    """Probability that the best is cheaper, by the model's error."""

    @property
    def close(self) -> bool:
        """Whether it may well be as cheap as the best."""
        return not sure(self.sure_share)

    @property
    def name(self) -> str:
        """The engine, its version, and which of its ways to serve."""
        return " ".join([self.engine, self.version, *self.implied.values()])


@dataclass(frozen=True)
class Excluded:
    """An engine that is left out, and why."""

    engine: str
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """Engines from the best to the worst, those that break the SLO at every load after them, and those that are left out."""

    ranked: tuple[Choice, ...]
    never: tuple[Choice, ...]
    excluded: tuple[Excluded, ...]
    notes: tuple[str, ...]


def recommend(
    scenario: Scenario, wishes: Wishes, *, workers: int | None = None, tell: Callable[[str], None] = lambda text: None
) -> Recommendation:
    """Compare all engines under the scenario's load.

    Raises InputError for a scenario of several pools or a constraint that nothing is known of.
    """
    if len(scenario.deployment.pools) > 1:
        raise InputError(
            "engines are compared for a deployment of one pool",
            where="deployment.pools",
            mend="describe one of them inline under `deployment`",
        )
    from simulator.prepare import features_asked, images_asked, structured_asked

    _check(wishes)
    pool = scenario.deployment.pools[0]
    engine_named(pool.engine, where="deployment.engine")
    load_device(pool.hardware)  # what no engine could mend is an error, not an exclusion
    load_architecture(scenario.model, Path.cwd())
    mine, _ = split(pool.engine)
    features = (*wishes.features, *features_asked(pool, structured=structured_asked(scenario), images=images_asked(scenario)))
    excluded: list[Excluded] = []
    asked: list[Asked] = []
    ways: dict[str, list[EnginePlan]] = {}
    for spelled in (*names(), *IMPLIED):
        name = split(spelled)[0]
        why = _unwanted(name, wishes, features)
        if why is None:
            try:
                changed, default, plan = _with_engine(scenario, pool, name, IMPLIED.get(spelled, {}))
            except PlanError as error:
                why = error.message
            else:
                if any(_alike(plan, other) for other in ways.setdefault(name, [])):
                    continue  # the engine takes this way by itself
                ways[name].append(plan)
        if why is not None:
            excluded.append(Excluded(name, why))
            continue
        asked.append(Asked(spelled, changed, tuple(default) if wishes.tune else (), wishes.weights))
    notes = []
    if flags := _own_flags(pool, mine):
        notes.append(f"flags of {mine} are not said to the others: {', '.join(flags)}")
    if pool.calibration is not None:
        notes.append(f"the calibration is of {mine}; the others are not calibrated")
    asked.sort(key=lambda each: each.spelled != mine)  # the others start where it ends
    best: list[Choice] = []
    for spelled, outcome in _all(asked, workers, tell):
        if isinstance(outcome, str):
            excluded.append(Excluded(split(spelled)[0], outcome))
        else:
            best.append(outcome)
    never = tuple(c for c in best if c.used_share is None and c.highest == 0)
    able = [c for c in best if c not in never]
    least = {key: min((v for c in able if (v := _criteria(c)[key])), default=1.0) for key in CRITERIA}
    able.sort(key=lambda c: _badness(c, wishes.weights, least))
    ranked = tuple(replace(c, sure_share=_surety(able[0], c) if n else 1.0) for n, c in enumerate(able))
    held = sorted({c.engine for c in best if c.reserves})
    if held and any(load.max_output_tokens is None for load in scenario.workload.loads()):
        who = f"{', '.join(held)} {'set' if len(held) > 1 else 'sets'} memory aside"
        notes.append(f"{who} for an answer's limit: state workload.max_output_tokens if clients do")
    left = {e.engine: e for e in reversed(excluded) if e.engine not in {c.engine for c in best}}
    return Recommendation(ranked, never, tuple(left.values())[::-1], tuple(notes))


def _check(wishes: Wishes) -> None:
    known = {p.licence for p in PROJECTS.values()}
    for text, allowed, where in (
        *((name, known, "--licence") for name in wishes.licences),
        *((name, set(FEATURES), "--need") for name in wishes.features),
        *((name, set(CRITERIA), "--weight") for name, _ in wishes.weights),
    ):
        if text not in allowed:
            close = nearest(text, sorted(allowed))
            raise InputError(
                f"'{text}' is not known" + (f"; did you mean '{close}'?" if close else ""),
                where=where,
                mend=f"one of {', '.join(sorted(allowed))}",
            )


def _unwanted(name: str, wishes: Wishes, features: Sequence[str]) -> str | None:
    """Why a constraint, or a feature that is asked for, excludes an engine; None if none does."""
    project = PROJECTS.get(name)
    if wishes.licences and (project is None or project.licence not in wishes.licences):
        return f"licence {project.licence if project else 'unknown'}"
    if wishes.alive_since and (project is None or project.alive < wishes.alive_since):
        return f"no sign of life since {f'{project.alive} ({project.seen})' if project else 'ever'}"
    there = engine_named(name).features
    lacking = [FEATURES[feature][0] for feature in dict.fromkeys(features) if feature not in there]
    return f"without {' and '.join(lacking)} (not simulated)" if lacking else None


def _with_engine(
    scenario: Scenario, pool: Pool, name: str, implied: Mapping[str, str]
) -> tuple[Scenario, list[dict[str, Any]], EnginePlan]:
    """The scenario under another engine's defaults, flags worth trying, and how it is served; raises what refuses it."""
    from simulator.prepare import prepare

    mine, _ = split(pool.engine)
    if name == mine and not implied:
        changed = scenario
    else:
        mapped = {**implied, **_carried(pool, mine, name)}
        changed = _replaced(scenario, pool.model_copy(update={"engine": name, "engine_args": mapped, "calibration": None}))
    plan = prepare(changed).plan
    limits = plan.limits
    defaults = {"rows": limits.rows, "step_tokens": limits.step_tokens}
    own = engine_named(name).same_as
    tries = [
        {own[word]: max(1, round(defaults[word] * factor))} for word in TUNED if word in own for factor in FACTORS
    ]
    return changed, tries, plan


def _alike(one: EnginePlan, other: EnginePlan) -> bool:
    """Whether two pools of an engine are served alike."""
    return (one.limits, one.memory, one.costs, one.executor) == (other.limits, other.memory, other.costs, other.executor)


def _carried(pool: Pool, mine: str, name: str) -> dict[str, Any]:
    """Flags of the scenario's engine that another is told in its own words."""
    said = _flags(pool)
    own, other = engine_named(mine).same_as, engine_named(name).same_as
    return {
        other[word]: said[own[word]] for word in CARRIED if word in own and word in other and own[word] in said
    }


def _flags(pool: Pool) -> dict[str, Any]:
    from engine_models.engines.known import parse_engine_args

    return dict(parse_engine_args(pool.engine, pool.engine_args, pool.name).values)


def _own_flags(pool: Pool, mine: str) -> list[str]:
    own = engine_named(mine).same_as
    return sorted(set(_flags(pool)) - {own[word] for word in CARRIED if word in own})


def _replaced(scenario: Scenario, pool: Pool) -> Scenario:
    deployment = scenario.deployment.model_copy(update={"pools": (pool,)})
    return scenario.model_copy(update={"deployment": deployment})


def _flagged(scenario: Scenario, flags: Mapping[str, Any]) -> Scenario:
    pool = scenario.deployment.pools[0]
    return _replaced(scenario, pool.model_copy(update={"engine_args": {**_flags(pool), **flags}}))


# -- one engine ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A candidate: its spelling, the scenario under its defaults, flags to try other values of, the weights of criteria."""

    spelled: str
    scenario: Scenario
    tries: tuple[Mapping[str, Any], ...]
    weights: tuple[tuple[str, float], ...]


def _all(asked: Sequence[Asked], workers: int | None, tell: Callable[[str], None]) -> list[tuple[str, Choice | str]]:
    """Each candidate's outcome, in order: the first in this process, the others near what it carries, perhaps in several."""
    workers = min(workers or os.cpu_count() or 1, max(1, len(asked) - 1))
    if not asked:
        return []
    tell(f"0 of {len(asked)} candidates simulated ...")
    first = judge(asked[0], None)
    near_factor = 1 / first.used_share if isinstance(first, Choice) and first.used_share else None
    out: dict[int, Choice | str] = {0: first}
    others = range(1, len(asked))
    if workers <= 1:
        found: Iterable[tuple[int, Choice | str]] = ((number, judge(asked[number], near_factor)) for number in others)
    else:
        found = in_processes(others, lambda pool, number: pool.submit(judge, asked[number], near_factor), workers)
    for number, outcome in found:
        out[number] = outcome
        tell(f"{len(out)} of {len(asked)} candidates simulated ...")
    return [(each.spelled, out[number]) for number, each in enumerate(asked)]


def judge(asked: Asked, near_factor: float | None) -> Choice | str:
    """Fill one candidate to its limit, with the best of the flags; why it is left out, if it cannot be.

    near_factor : the factor on the load at which the limit is sought first. Where cost alone counts, other values of a flag are
    looked into only if one short run shows that they carry more.
    """
    from simulator.planning.headroom import Search
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    by_cost = all(name == "cost" for name, _ in asked.weights)
    best: Choice | str = ""
    search: Search | None = None
    for flags in ({}, *asked.tries):
        try:
            prepared = prepare(_flagged(asked.scenario, flags) if flags else asked.scenario)
            if by_cost and search is not None and not search.exceeded_by(prepared):
                continue
            run = run_prepared(prepared)
            batch = any(load.arrivals is not None and load.arrivals.kind == "batch" for load in asked.scenario.workload.loads())
            filled = None if batch else Search(prepared, run, brief=True)
            choice = _choice(asked.spelled, flags, prepared, run.result, filled.limit(near_factor) if filled else None)
        except PlanError as error:
            best = best or error.message
            continue
        if isinstance(best, str) or _badness(choice, asked.weights, None) < _badness(best, asked.weights, None):
            best, search = choice, filled
            near_factor = 1 / choice.used_share if choice.used_share else near_factor
    return best


def _choice(
    spelled: str, flags: Mapping[str, Any], prepared: Prepared, result: Mapping[str, Any], room: Headroom | None
) -> Choice:
    name, plan = split(spelled)[0], prepared.plan
    metrics, cost = result["metrics"], result["cost"]["usd_per_1m_total_tokens"]
    used = room.used_share if room else None
    limit = None if room is None else room.within_slo if room.judged else room.sustainable
    if room is not None and limit == 0:
        cost = None
    elif cost is not None and room is not None and limit:
        served = room.offered
        if room.unit == "requests/s" and (result["overload"] or prepared.scenario.workload.duration is None):
            served = result["totals"]["request_throughput"]  # the run's cost is that of what it served
        cost *= served / limit
    interval = None
    step = metrics["tpot_ms"]
    bounds = (step.get("interval") or {}).get("mean")
    if cost is not None and bounds and step["mean"]:
        interval = (cost * bounds[0] / step["mean"], cost * bounds[1] / step["mean"])
    project = PROJECTS.get(name)
    return Choice(
        engine=name,
        version=plan.version,
        implied=IMPLIED.get(spelled, {}),
        weights=prepared.formats.weights.name,
        flags=flags,
        slo=judged(result)[0],
        p99_ttft_ms=metrics["ttft_ms"]["p99"],
        p99_tpot_ms=step["p99"],
        p99_e2e_ms=metrics["e2el_ms"]["p99"],
        used_share=used,
        highest=limit,
        unit=room.unit if room else "",
        devices=prepared.devices,
        devices_needed=math.ceil(prepared.devices * used - 1e-9) if used else prepared.devices,
        cost_usd=cost,
        cost_interval_usd=interval,
        proven_steps=project.steps if project and plan.recorded else 0,
        measured=prepared.device.name in engine_named(name).measured,
        reserves=plan.scheduler("jump").reserves_answers,
        totals={name: result["totals"][name] for name in ("offered", "rejected", "reasons")},
    )


# -- the order ----------------------------------------------------------------------------------------------


def _criteria(choice: Choice) -> dict[str, float | None]:
    return {
        "cost": choice.cost_usd,
        "ttft": choice.p99_ttft_ms,
        "tpot": choice.p99_tpot_ms,
        "e2e": choice.p99_e2e_ms,
    }


def _badness(
    choice: Choice, weights: Sequence[tuple[str, float]], least: Mapping[str, float] | None
) -> tuple[float, str]:
    """Weighted sum of the logarithms of each criterion over the best engine's: twice as dear weighs as much as twice as slow."""
    found = _criteria(choice)
    total = 0.0
    for name, weight in weights:
        value = found[name]
        if value is None:
            return math.inf, choice.name
        total += weight * math.log(max(value, 1e-12) / (least[name] if least else 1.0))
    return total, choice.name


def _surety(best: Choice, other: Choice) -> float:
    """Probability that the best is cheaper: engines serve one model on one device, so their errors are partly alike."""
    first, second = (
        Estimate.of(c.cost_usd, c.cost_interval_usd, {"engine": c.name, "weights": c.weights})
        for c in (best, other)
    )
    return 0.5 if first is None or second is None else confidence(first, second)
