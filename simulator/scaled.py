"""A scenario's autoscaler resolved: whose rules, between which bounds."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Series
from functools import partial
from typing import TYPE_CHECKING, Literal

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.errors import InputError
from simulator.cluster.scaling.dynamo import Bounds, PairPlanner, Planner
from simulator.cluster.scaling.dynamo_sla import (
    PREDICTORS,
    Judge,
    JudgeOfAnswers,
    JudgeOfBoth,
    JudgeOfPrompts,
    LoneSlaPlanner,
    MixedPasses,
    Passes,
    Sla,
    SlaPlanner,
)
from simulator.cluster.scaling.hpa import DOWN, UP, Behaviour, Direction, Hpa, Policy
from simulator.cluster.scaling.keda import Keda
from simulator.cluster.scaling.knative import Knative, KnativeRules
from simulator.cluster.scaling.scaler import AT_ROUTER, Alone, Autoscaler, JointScaler, Scaling
from simulator.cluster.scaling.wva import Saturation, ServiceLaw, Targets, Variants, Wva
from simulator.pools import unique
from simulator.prepared import Prepared

if TYPE_CHECKING:
    from simulator.config import features, schema

WHERE = "deployment.autoscaler"
Maker = Callable[[], Autoscaler]
SELECT: dict[str, Literal["max", "min", "disabled"]] = {"Max": "max", "Min": "min", "Disabled": "disabled"}
KEDA_MOST = 100
"""Default of `maxReplicaCount` (datasheet)."""
IN_FLIGHT, PER_SECOND = 100.0, 200.0
"""Knative's default targets of a replica (datasheet: `config-autoscaler`)."""


def bounds(prepared: Prepared, given: features.Scaler) -> tuple[int, int]:
    """Fewest and most replicas.

    Raises
    ------
    InputError : bounds that leave out the first count, or that are not there.
    """
    least, most = _bounds(prepared, given)
    first = prepared.replicas
    if not least <= first <= most:
        raise InputError(
            f"replicas: {first} is the first count, and outside of the autoscaler's bounds, {least} to {most}",
            where="deployment.replicas",
            mend=f"give a count from {least} to {most}",
        )
    if given.kind == "keda" and least == 0 and given.metric not in AT_ROUTER:
        raise InputError(
            f"nothing would wake the pool from zero: without a replica there is no {given.metric}",
            where=f"{WHERE}.metric",
            mend=f"use {' or '.join(AT_ROUTER)}, in which requests count that wait at the router, or min_replicas: 1",
        )
    return least, most


def _bounds(prepared: Prepared, given: features.Scaler) -> tuple[int, int]:
    least, most = given.min_replicas, given.max_replicas or 0
    if given.kind == "dynamo":
        fit = given.max_gpu_budget // prepared.devices_each if given.max_gpu_budget >= 0 else most
        most = min(fit, most) if most else fit
        least = max(given.min_endpoint, least or 0)
    if least is None:
        least = 0 if given.kind in ("keda", "knative") else 1
    elif not least and given.kind in ("hpa", "wva"):
        raise InputError(
            f"kind: {given.kind} does not scale to zero",
            where=f"{WHERE}.min_replicas",
            mend="give 1 or more, or use keda or knative",
        )
    if given.max_replicas is None and given.kind in ("hpa", "knative", "wva"):
        raise InputError(f"kind: {given.kind} needs max_replicas", where=WHERE, mend="give `deployment.autoscaler.max_replicas`")
    if given.max_replicas is None and given.kind == "keda":
        most = KEDA_MOST
    if least > most:
        raise InputError(
            f"at least {least} replicas are wanted, and at most {most} may be there",
            where=WHERE,
            mend=f"allow {least} or more, or fewer at least",
        )
    return least, most


def maker(prepared: Prepared, given: features.Scaler, between: tuple[int, int]) -> Maker:
    """What makes the autoscaler of one pool for a run, between so many replicas and so many."""
    least, most = between
    if given.kind == "hpa":
        return lambda: _hpa(given, least, most, given.target, per_pod=given.metric_type == "pods", metric=given.metric)
    if given.kind == "keda":
        return lambda: Keda(
            _hpa(given, max(1, least), most, given.target, per_pod=False, metric=given.metric),
            given.metric,
            activation=given.activation_threshold,
            least=least,
            idle=given.idle_replicas,
            polling_s=given.polling_interval_s,
            cooldown_s=given.cooldown_period_s,
            initial_cooldown_s=given.initial_cooldown_period_s,
        )
    if given.kind == "knative":
        return partial(Knative, _knative(given, least, most), by_rate=given.metric == "rps")
    if given.kind == "wva":
        rules = _saturation(given)
        targets = _targets(given, prepared.plan.limits.rows) if given.analyzer == "queue_model" else None
        return lambda: Wva(
            _behaviour(given.behavior, least, most),
            rules,
            by_demand=given.analyzer == "tokens",
            targets=targets,
            tolerance=given.tolerance,
        )
    gpus = {"least_gpus": given.min_gpu_budget, "most_gpus": most * prepared.devices_each, "min_endpoint": least}
    if given.optimization_target == "sla":
        return partial(LoneSlaPlanner, _judge(prepared, _sla(given)), _sla(given), prepared.devices_each, **gpus)
    return partial(
        Planner,
        given.optimization_target,
        prepared.pool.role,
        prepared.plan.limits.context_tokens,
        prepared.devices_each,
        every_s=given.load_adjustment_interval_s,
        **gpus,
    )


def _sla(given: features.DynamoScaler) -> Sla:
    return Sla(
        given.ttft_ms,
        given.itl_ms,
        PREDICTORS[given.load_predictor],
        given.enable_throughput_scaling,
        given.enable_load_scaling,
        given.throughput_adjustment_interval_s,
        given.load_adjustment_interval_s,
    )


def _judge(prepared: Prepared, sla: Sla) -> Judge:
    """What sizes a pool by itself, by its role."""
    if prepared.pool.role == "mixed":
        return JudgeOfBoth(_mixed_passes(prepared), sla)
    passes = _passes(prepared, prepared)
    return JudgeOfPrompts(passes, sla) if prepared.pool.role == "prefill" else JudgeOfAnswers(passes, sla)


def _saturation(given: features.WvaScaler) -> Saturation:
    return Saturation(
        given.kv_cache_threshold, given.queue_length_threshold, given.kv_spare_trigger, given.queue_spare_trigger
    )


def _targets(given: features.WvaScaler, rows: int) -> Targets:
    alpha_ms, beta_ms, gamma_ms, delta_ms, ttft_ms, itl_ms = (
        value or 0.0
        for value in (given.alpha_ms, given.beta_ms, given.gamma_ms, given.delta_ms, given.ttft_ms, given.itl_ms)
    )
    return Targets(ServiceLaw(alpha_ms, beta_ms, gamma_ms, delta_ms), rows, ttft_ms, itl_ms)


def _hpa(
    given: features.HpaScaler | features.KedaScaler, least: int, most: int, target: float, *, per_pod: bool, metric: str
) -> Hpa:
    return Hpa(
        metric,
        target,
        _behaviour(given.behavior, least, most),
        per_pod=per_pod,
        tolerance=given.tolerance,
        sync_s=given.sync_period_s,
        collect_s=given.scrape_s,
    )


def _behaviour(given: features.ScalingBehavior, least: int, most: int) -> Behaviour:
    return Behaviour(least, most, _direction(given.scale_up, UP), _direction(given.scale_down, DOWN))


def _direction(given: features.ScalingRules, default: Direction) -> Direction:
    window_s, policies = given.stabilization_window_seconds, default.policies
    if given.policies is not None:
        policies = tuple(
            Policy("pods" if each.type == "Pods" else "percent", each.value, float(each.period_seconds))
            for each in given.policies
        )
    return Direction(default.window_s if window_s is None else float(window_s), policies, SELECT[given.select_policy])


def _knative(given: features.KnativeScaler, least: int, most: int) -> KnativeRules:
    by_rate = given.metric == "rps"
    target = given.target or (PER_SECOND if by_rate else IN_FLIGHT)
    return KnativeRules(
        target=target if by_rate else target * given.target_utilization_percentage / 100,
        stable_window_s=given.stable_window_s,
        panic_window_share=given.panic_window_percentage / 100,
        panic_threshold_ratio=given.panic_threshold_percentage / 100,
        max_scale_up_rate=given.max_scale_up_rate,
        max_scale_down_rate=given.max_scale_down_rate,
        scale_down_delay_s=given.scale_down_delay_s,
        scale_to_zero_grace_period_s=given.scale_to_zero_grace_period_s,
        activation_scale=given.activation_scale,
        min_scale=least,
        max_scale=most,
    )


Scalings = list[tuple["features.Scaler", tuple[int, ...]]]
"""Autoscalers, and the numbers of the pools about which each decides."""


def scalings_of(around: schema.Deployment, pools: Series[Prepared]) -> Scalings:
    """The autoscalers of several pools: around them `dynamo` decides about the prefill and the decode pool of a model (in this
    order), or its only pool, `wva` about all pools of a model, by its queueing model and all others about each.

    A planner of `dynamo` is of one deployment, which serves one model (Dynamo 1.6.1, `components/src/dynamo/planner`): with
    several models each has one, with the budget that is given.

    Raises
    ------
    InputError : one stands in a pool and around the pools, or it is for one pool of each role and there are others.
    """
    own = [(number, each.pool.autoscaler) for number, each in enumerate(pools)]
    given = around.autoscaler
    inside: Scalings = [(scaler, (number,)) for number, scaler in own if scaler is not None]
    if given is None and not inside:
        return []
    if given is not None and inside:
        raise InputError(
            "a pool has an `autoscaler` of its own beside that of the deployment", where=WHERE, mend="keep one of the two"
        )
    models = dict.fromkeys(each.arch.name for each in pools)
    of_models = [tuple(n for n, each in enumerate(pools) if each.arch.name == model) for model in models]
    if given is not None and given.kind == "dynamo":
        for numbers in of_models:
            if len(numbers) > 1 and [pools[n].pool.role for n in numbers] != ["prefill", "decode"]:
                raise InputError(
                    "kind: dynamo around several pools decides about one prefill and one decode pool of each model",
                    where=WHERE,
                    mend="give each pool an autoscaler of its own, or use another kind",
                )
    found = inside if given is None else _around(given, of_models)
    for scaler, numbers in found:
        roles = {pools[n].pool.role for n in numbers} - {"mixed"}
        if roles and scaler.kind == "wva" and scaler.analyzer == "queue_model":
            raise InputError(
                "analyzer: queue_model knows servers that compute prompts and answers, and a pool has "
                f"role: {' and '.join(sorted(roles))}",
                where=f"{WHERE}.analyzer",
                mend="use saturation or tokens",
            )
    return found


def _around(given: features.Scaler, of_models: Series[tuple[int, ...]]) -> Scalings:
    """An autoscaler around several pools: who decides about which."""
    if given.kind == "dynamo" or (given.kind == "wva" and given.analyzer != "queue_model"):
        return [(given, numbers) for numbers in of_models]
    return [(given, (number,)) for numbers in of_models for number in numbers]


def joint(scalings: Scalings, pools: Series[Prepared]) -> tuple[Callable[[], list[Scaling]] | None, bool, list[str]]:
    """What makes the autoscalers of several pools; whether requests wait for servers; what is assumed."""
    if not scalings:
        return None, False, []
    between = {number: bounds(pools[number], given) for given, numbers in scalings for number in numbers}
    makers = [
        (numbers, _together(given, [pools[n] for n in numbers], [between[n] for n in numbers]) if len(numbers) > 1 else
         _by_itself(maker(pools[numbers[0]], given, between[numbers[0]])))
        for given, numbers in scalings
    ]
    said = unique(text for (given, _), (_, made) in zip(scalings, makers, strict=True) for text in words(given, made()))
    holds = any(least == 0 for least, _ in between.values())
    return lambda: [Scaling(numbers, made()) for numbers, made in makers], holds, list(said)


def _by_itself(made: Maker) -> Callable[[], JointScaler]:
    return lambda: Alone(made())


def _together(
    given: features.Scaler, pools: Series[Prepared], between: Series[tuple[int, int]]
) -> Callable[[], JointScaler]:
    """What makes an autoscaler that decides about several pools at once."""
    if given.kind == "wva":
        costs = [each.devices_each * (each.price.usd_per_gpu_hour if each.price is not None else 1.0) for each in pools]
        names = [each.pool.name for each in pools]
        behaviours = [partial(_behaviour, given.behavior, least, most) for least, most in between]
        rules, by_demand = _saturation(given), given.analyzer == "tokens"
        return lambda: Variants(
            names, costs, [made() for made in behaviours], rules, tolerance=given.tolerance, by_demand=by_demand
        )
    assert given.kind == "dynamo"
    budget = Bounds(
        (pools[0].devices_each, pools[1].devices_each),
        given.min_gpu_budget,
        given.max_gpu_budget,
        given.min_endpoint,
        between,
    )
    if given.optimization_target != "sla":
        context = pools[0].plan.limits.context_tokens
        return partial(PairPlanner, given.optimization_target, context, budget, every_s=given.load_adjustment_interval_s)
    return partial(SlaPlanner, _passes(*pools), _sla(given), budget)


def _passes(prefill: Prepared, decode: Prepared) -> Passes:
    """What the planner knows of workers: the engine's own times of forward passes."""
    first, second, accepted_tokens = prefill.times(), decode.times(), _accepted(decode)

    def prefill_s(tokens: int) -> float:
        batch = Batch(0)
        batch.serve(tokens, 0, decodes=False)
        return _pass_s(first, batch, prefill.plan.executor.depth)

    def decode_s(rows: int, kv_tokens: int) -> float:
        return _pass_s(second, _decodes(decode, rows, kv_tokens), decode.plan.executor.depth)

    limits = decode.plan.limits
    return Passes(prefill_s, prefill.plan.limits.step_tokens, decode_s, limits.rows, limits.kv_tokens, accepted_tokens)


def _mixed_passes(prepared: Prepared) -> MixedPasses:
    """The same of workers that compute prompts and answers."""
    times, limits = prepared.times(), prepared.plan.limits

    def pass_s(tokens: int, rows: int, kv_tokens: int) -> float:
        batch = _decodes(prepared, rows, kv_tokens)
        if tokens:
            batch.serve(tokens, 0, decodes=False)
        return _pass_s(times, batch, prepared.plan.executor.depth)

    return MixedPasses(pass_s, limits.step_tokens, limits.rows, limits.kv_tokens, _accepted(prepared))


def _accepted(prepared: Prepared) -> float:
    """Tokens that a pass yields of a row on average, its drafts among them."""
    drafts = prepared.plan.speculation
    if drafts is not None and drafts.lengths:
        raise InputError(
            "optimization_target: sla beside drafts whose number goes by the rows is not modelled yet",
            where=f"{WHERE}.optimization_target",
            mend="use throughput (the default) or latency, another kind, or one number of drafts",
        )
    return 1.0 if drafts is None else drafts.mean_length


def _decodes(prepared: Prepared, rows: int, kv_tokens: int) -> Batch:
    """A batch of rows that decode, with their drafts."""
    drafts = prepared.plan.speculation
    each = 1 if drafts is None else drafts.row_tokens
    return Batch(0, rows, rows * each, kv_tokens + rows * (each - 1), tokens=rows * each)


def _pass_s(cost: StepCost, batch: Batch, depth: int) -> float:
    """Time of a pass: the host's share is hidden where steps are launched ahead."""
    device_s, host_s = cost.step_s([batch])[0], cost.host_s(batch)
    return max(device_s, host_s) if depth > 1 else device_s + host_s


def words(given: features.Scaler, made: Autoscaler | JointScaler) -> list[str]:
    """What is assumed of an autoscaler."""
    said = [
        f"{given.kind} decides every {made.every_s:g} s by metrics collected every {made.collect_s:g} s; a replica that it sends "
        f"away has {given.grace_s:g} s to end what it has (grace_s), then the rest is lost"
    ]
    if given.kind == "dynamo" and given.optimization_target == "sla":
        said.append(
            "the planner is taken to know the engine's times of forward passes, which it fits to those that it observes, and to "
            f"predict load by load_predictor: {given.load_predictor} (its default, arima, is not modelled)"
        )
    if isinstance(made, SlaPlanner | LoneSlaPlanner) and made.accepted_tokens > 1:
        said.append(
            f"the planner divides the time of a pass by the {made.accepted_tokens:.3g} tokens that it yields of a row on "
            "average, as workers report it; it is taken to be one that knows drafts"
        )
    return said
