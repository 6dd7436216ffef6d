"""Autoscalers' formulae: worked numbers, those of the planner from its own code."""

from __future__ import annotations

import math
from typing import Any

import pytest

from simulator.cluster.scaling.dynamo import (
    EASY,
    Bounds,
    PairPlanner,
    by_estimates,
    by_rate,
    by_thresholds,
    near,
    pair_within_budget,
    stays_below,
    within_budget,
)
from simulator.cluster.scaling.dynamo_sla import (
    PREDICTORS,
    JudgeOfBoth,
    LoneSlaPlanner,
    MixedPasses,
    Passes,
    Sla,
    SlaPlanner,
    by_itl,
)
from simulator.cluster.scaling.hpa import (
    DOWN,
    TOLERANCE,
    Behaviour,
    Direction,
    Hpa,
    by_average_value,
    by_pods,
)
from simulator.cluster.scaling.keda import Keda
from simulator.cluster.scaling.knative import Decider, Knative, KnativeRules
from simulator.cluster.scaling.scaler import Autoscaler, Counts, Reading, Seen
from simulator.cluster.scaling.wva import (
    QueueModel,
    Saturation,
    ServiceLaw,
    Variants,
    by_saturation,
    by_tokens,
    shared_out,
)

# HPA ---------------------------------------------------------------------------------------------------------


def pods(ratio: float, current: int, **more: int) -> int:
    return by_pods([ratio * 10.0] * current, 10.0, current, **{"missing": 0, "unready": 0, **more}, tolerance=TOLERANCE)


@pytest.mark.parametrize(
    ("ratio", "current", "wanted"),
    [(1.09, 4, 4), (1.11, 4, 5), (0.91, 4, 4), (0.89, 4, 4), (0.5, 10, 5), (2.7, 3, 9)],
)
def test_hpa_of_a_metric_of_pods(ratio: float, current: int, wanted: int) -> None:
    assert pods(ratio, current) == wanted


@pytest.mark.parametrize(("whole", "current", "wanted"), [(95, 3, 10), (32, 3, 3), (34, 3, 4), (40, 8, 4)])
def test_hpa_of_an_external_metric(whole: float, current: int, wanted: int) -> None:
    assert by_average_value(whole, 10, current, TOLERANCE) == wanted


def test_hpa_counts_pods_without_a_sample_against_the_direction() -> None:
    """Six pods are ready, two more start: up, they count as idle; two without a sample count as 100 % down, as idle up."""
    assert by_pods([20.0] * 6, 10.0, 8, missing=0, unready=2, tolerance=TOLERANCE) == 12  # 2.0 -> 1.5 over 8
    assert by_pods([14.0] * 6, 10.0, 8, missing=0, unready=2, tolerance=TOLERANCE) == 8  # 1.4 -> 1.05: keep
    assert by_pods([12.0] * 6, 10.0, 8, missing=0, unready=2, tolerance=TOLERANCE) == 8  # 1.2 -> 0.9: the other direction
    assert by_pods([5.0] * 6, 10.0, 8, missing=0, unready=2, tolerance=TOLERANCE) == 3  # down, they are left out
    assert by_pods([5.0] * 6, 10.0, 8, missing=2, unready=0, tolerance=TOLERANCE) == 5  # (30 + 20) / 80
    assert by_pods([20.0] * 6, 10.0, 8, missing=2, unready=0, tolerance=TOLERANCE) == 12


def test_hpa_rises_as_its_policies_allow() -> None:
    behaviour = Behaviour(1, 100)
    assert behaviour.settle(9, 3, 0.0) == 7
    assert behaviour.settle(9, 7, 15.0) == 9
    behaviour = Behaviour(1, 100)
    assert behaviour.settle(10, 3, 0.0) == 7
    assert behaviour.settle(10, 7, 5.0) == 7, "within the period what was added counts"


def test_hpa_falls_when_the_window_is_over() -> None:
    """6, 6, 2, 2, ... every 15 s: at the first sync at which the last 6 has left the window of 300 s."""
    behaviour, count, fell_s = Behaviour(1, 100), 6, None
    for at_s in range(0, 600, 15):
        count = behaviour.settle(6 if at_s < 30 else 2, count, float(at_s))
        if count == 2 and fell_s is None:
            fell_s = at_s
    assert fell_s == 315
    behaviour, counts = Behaviour(1, 100), []
    for at_s in range(0, 330, 15):
        counts.append(behaviour.settle(pods(0.5, 10), 10, float(at_s)))
    assert counts == [10] * 20 + [5] * 2, "half the load is believed after 300 s"


def seen(*readings: Reading, held: int = 0, at_s: float = 0.0, **more: Any) -> Seen:
    return Seen(at_s, readings, held, **more)


def waiting(count: int) -> Reading:
    return Reading(0, count, 0.0, 100_000)


def run(scaler: Autoscaler, queue: Any, until_s: int, start_s: float = 0.0) -> dict[int, int]:
    """Counts at each decision, with pods that start in `start_s` and a queue that is given at any time."""
    count = ready = 1 if isinstance(scaler, Hpa) else 0
    coming: list[tuple[float, int]] = []
    out = {}
    step = round(scaler.every_s)
    for at_s in range(0, until_s, step):
        while coming and coming[0][0] <= at_s:
            ready = min(coming.pop(0)[1], count)
        metrics = seen(*[waiting(0)] * ready, held=queue(at_s), at_s=float(at_s))
        wanted = scaler.desired(metrics, Counts(count, ready), float(at_s))
        if wanted > count:
            coming.append((at_s + start_s, wanted))
        count, ready = wanted, min(ready, wanted)
        out[at_s] = count
    return out


def test_hpa_of_a_burst_that_waits() -> None:
    """Target 5, 40 wait from the first second, pods take 180 s: 5, then 8; from an empty queue at T on until T + 300, then 1."""
    counts = run(Hpa("num_requests_waiting", 5.0, Behaviour(1, 100), per_pod=False), lambda at: 40 if at < 240 else 0, 900, 180.0)
    assert [counts[at_s] for at_s in (0, 15, 30, 240, 510, 525)] == [5, 8, 8, 8, 8, 1]


# KEDA --------------------------------------------------------------------------------------------------------


def test_keda_wakes_from_zero_and_goes_back() -> None:
    """12 wait from 31 s to 200 s: the poll at 60 s gives one replica, the HPA's next sync three; 1 at 500 s, none at 510 s."""
    hpa = Hpa("num_requests_waiting", 5.0, Behaviour(1, 8), per_pod=False)
    counts = run(Keda(hpa, "num_requests_waiting"), lambda at: 12 if 31 <= at < 200 else 0, 600)
    assert [counts[at_s] for at_s in (0, 30, 45, 60, 75)] == [0, 0, 0, 1, 3]
    assert [counts[at_s] for at_s in (480, 495, 510)] == [3, 1, 0]


def test_keda_keeps_its_least_and_its_idle_count() -> None:
    for least, idle, expected in ((1, None, [0, 1, 1]), (3, 1, [1, 3, 1]), (0, None, [0, 1, 0])):
        hpa = Hpa("num_requests_waiting", 5.0, Behaviour(max(1, least), 8), per_pod=False)
        keda = Keda(hpa, "num_requests_waiting", least=least, idle=idle)
        counts = run(keda, lambda at: 3 if 31 <= at < 100 else 0, 900)
        assert [counts[at_s] for at_s in (30, 60, 885)] == expected


# Knative -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ready", "stable", "panic", "wanted", "panics"),
    [
        (4, 200, 210, 3, False),
        (2, 90, 300, 5, True),
        (10, 100, 100, 5, False),
        (5, 100, 100, 2, False),
        (0, 5, 20, 1, False),
        (3, 420, 420, 6, True),
    ],
)
def test_knative(ready: int, stable: float, panic: float, wanted: int, panics: bool) -> None:
    decider = Decider(KnativeRules(target=70.0))
    assert decider.pods(ready, stable, panic, 0.0) == wanted
    assert decider.panics == panics


def test_knative_in_panic_never_falls_for_a_window() -> None:
    decider = Decider(KnativeRules(target=70.0))
    assert decider.pods(3, 420, 420, 0.0) == 6
    assert {decider.pods(6, 300, 10, at_s) for at_s in range(2, 61, 2)} == {6}
    assert decider.pods(6, 300, 10, 62.0) == 5
    assert not decider.panics


def test_knative_averages_what_there_is_and_goes_to_zero_after_the_grace_period() -> None:
    knative, count, counts = Knative(KnativeRules(target=70.0)), 1, {}
    for at_s in range(1, 140):
        knative.collected(seen(at_s=float(at_s), concurrency=140.0 if at_s <= 10 else 0.0))
        if at_s % 2 == 0:
            counts[at_s] = count = knative.desired(seen(), Counts(count, count), float(at_s))
    assert counts[2] == 2, "140 of two seconds, not of sixty"
    assert counts[60] >= 1
    gone_s = min(at_s for at_s, n in counts.items() if n == 0)
    # the last bucket with load leaves the stable window at 70 s; then the activator stays for 30 s
    assert gone_s == pytest.approx(70 + 30, abs=4)


# Dynamo ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loads", "count", "up", "wanted"),
    [((0.45, 0.3), 2, 1.0, 1), ((0.55, 0.1), 2, 1.0, 2), ((0.5, 0.5, 0.5), 3, 1.0, 2), ((0.09, 0.02), 4, 0.1, 4)],
)
def test_dynamo_removes_a_worker_if_the_others_can_take_its_load(
    loads: tuple[float, ...], count: int, up: float, wanted: int
) -> None:
    rules = EASY["throughput", "decode"] if up == 1.0 else EASY["latency", "prefill"]
    assert (count - 1 if stays_below(loads, count, rules) else count) == wanted


@pytest.mark.parametrize(
    ("mode", "side", "loads", "wanted"),
    [
        ("throughput", "prefill", (1.0, 0.0), 3),
        ("throughput", "decode", (1.0, 0.0), 2),
        ("throughput", "decode", (1.01, 0.0), 3),
        ("throughput", "prefill", (0.09, 0.09), 1),
        ("throughput", "decode", (0.59, 0.1), 2),
        ("throughput", "decode", (0.45, 0.6), 2),
        ("latency", "prefill", (0.1, 0.0), 3),
        ("latency", "prefill", (0.0, 0.0), 1),
        ("latency", "prefill", (0.01, 0.0), 2),
        ("latency", "decode", (0.41, 0.0), 3),
        ("latency", "decode", (0.09, 0.09), 1),
    ],
)
def test_dynamo_by_thresholds(mode: str, side: Any, loads: tuple[float, ...], wanted: int) -> None:
    assert by_thresholds(loads, 2, EASY[mode, side]) == wanted


def test_dynamo_by_estimates_of_latency() -> None:
    assert by_estimates([600, 700], [1200, 1400], 2, 500) == 3
    assert by_estimates([600, 400], [1200, 800], 2, 500) == 2
    assert by_estimates([100, 120], [200, 240], 2, 500) == 1
    assert by_estimates([501], [501], 1, 500) == 2


def test_dynamo_by_rate_and_not_too_far() -> None:
    assert by_rate(21.0, 5.0) == 5
    assert (near(20, 4), near(3, 12), near(9, 1)) == (12, 4, 9)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ((6, 6, 1, 1, -1, 8, 1), (4, 4)),
        ((10, 2, 1, 1, -1, 8, 1), (6, 2)),
        ((3, 5, 2, 1, -1, 8, 1), (2, 4)),
        ((1, 1, 4, 8, -1, 8, 1), (0, 0)),
        ((2, 9, 1, 2, -1, 16, 1), (1, 7)),
        ((1, 1, 1, 1, 8, 8, 1), (4, 4)),
        ((20, 4, 1, 1, -1, 8, 2), (6, 2)),
    ],
)
def test_dynamo_keeps_two_pools_within_a_budget(given: tuple[int, ...], found: tuple[int, int]) -> None:
    prefill, decode, prefill_gpus, decode_gpus, *bounds = given
    assert pair_within_budget((prefill, decode), (prefill_gpus, decode_gpus), *bounds) == found


@pytest.mark.parametrize(("given", "found"), [((12, 1, -1, 8), 8), ((5, 2, -1, 8), 4), ((3, 4, -1, 8), 2), ((1, 4, 8, 16), 1)])
def test_dynamo_keeps_one_pool_within_a_budget(given: tuple[int, int, int, int], found: int) -> None:
    assert within_budget(*given, 1) == found


# WVA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("usage", "more"),
    [((0.65, 0.72), 0), ((0.65, 0.76), 1), ((0.2, 0.3, 0.1), -1), ((0.85, 0.9), 1), ((0.65, 0.75), 0)],
)
def test_wva_by_saturation(usage: tuple[float, ...], more: int) -> None:
    assert by_saturation([(kv, 0.0) for kv in usage], Saturation()) == more


def test_wva_by_saturation_looks_at_queues() -> None:
    assert by_saturation([(0.1, 3.0), (0.1, 2.0)], Saturation()) == 1  # spare 2.5 < 3
    assert by_saturation([(0.1, 1.0), (0.1, 1.0)], Saturation()) == -1  # 2 on one: spare 3
    assert by_saturation([(0.1, 1.5), (0.1, 1.0)], Saturation()) == 0


@pytest.mark.parametrize(("demand", "more"), [(180_000, 1), (60_000, -1), (150_000, 0)])
def test_wva_by_tokens(demand: float, more: int) -> None:
    assert by_tokens(demand, 200_000, 125_000 * 0.8) == more


def test_wva_by_its_queueing_model() -> None:
    model = QueueModel(ServiceLaw(20, 0.5, 10, 0.02), 16, 512, 128)
    assert model.rate_per_ms(1) * 1e3 == pytest.approx(0.3811, abs=5e-5)
    assert model.rate_per_ms(16) * 1e3 == pytest.approx(4.290, abs=5e-4)
    assert model.most_per_s(500, math.inf) == pytest.approx(3.496, abs=5e-4)
    assert model.most_per_s(math.inf, 24) == pytest.approx(2.231, abs=5e-4)
    assert math.ceil(10 / model.most_per_s(500, 24)) == 5
    model = QueueModel(ServiceLaw(8, 0.2, 5, 0.01), 64, 1024, 256)
    most = model.most_per_s(300, 15)
    assert most == pytest.approx(7.300, abs=5e-4)
    assert model.latencies_ms(most / 1e3)[1] == pytest.approx(13.76, abs=5e-3)
    assert math.ceil(30 / most) == 5


def passes(fixed_s: float = 0.01) -> Passes:
    """A pass over prompts takes 10 ms and 50 us a token, a decode step 10 ms, 0.1 ms a row and 0.1 us a token of KV."""
    return Passes(
        lambda tokens: fixed_s + 50e-6 * tokens,
        step_tokens=2048,
        decode_s=lambda rows, kv: 0.01 + 1e-4 * rows + 1e-7 * kv,
        rows=256,
        kv_tokens=400_000,
    )


def test_dynamo_serves_what_one_prompt_after_the_other_and_the_largest_batch_allow() -> None:
    """1,000 tokens: 60 ms, 16.7/s; 5,000 in passes of 2,048: 2 x 112.4 + 55.2 ms = 280 ms."""
    found = passes()
    assert found.prefill_per_s(1000) == pytest.approx(1 / 0.06)
    assert found.prefill_per_s(5000) == pytest.approx(1 / 0.28)
    # context 1,000 + 200 / 2: a row costs 0.1 + 0.11 ms; (50 - 10) / 0.21 = 190 rows keep 50 ms: 190 / (200 x 49.9 ms)
    assert found.decode_per_s(1000, 200, 0.05) == pytest.approx(190 / (200 * 0.0499))
    # 20,000 tokens of context: 400,000 tokens hold 20 rows, which take 52 ms; one row 12.1 ms
    assert found.decode_per_s(19_900, 200, 0.06) == pytest.approx(20 / (200 * 0.052))
    assert found.decode_per_s(1000, 200, 0.001) == pytest.approx(1 / (200 * 0.01021)), "none keeps it: one row"


@pytest.mark.parametrize(("name", "wanted"), [("constant", 30.0), ("kalman", 35.6)])
def test_dynamo_predicts_the_next_interval(name: str, wanted: float) -> None:
    """Leading zeros are not recorded; a rising series goes on rising where its trend is filtered."""
    predictor = PREDICTORS[name]()
    assert predictor.next() == 0.0
    for value in (0.0, 0.0, 10.0, 20.0, 30.0):
        predictor.add(value)
    assert predictor.next() == pytest.approx(wanted, abs=5.0)
    steady = PREDICTORS[name]()
    for _ in range(50):
        steady.add(7.0)
    assert steady.next() == pytest.approx(7.0)


def planner(**more: Any) -> SlaPlanner:
    return SlaPlanner(passes(), Sla(500, 50, **more), Bounds((1, 1), -1, 16, 1, [(1, 16), (1, 16)]))


def of_both(pools: tuple[tuple[int, int, float, int], ...], requests: int = 0) -> list[Seen]:
    """Metrics of a prefill and a decode pool: workers, rows of each, share of the KV cache and queued tokens of each."""
    return [
        Seen(
            5.0,
            tuple(Reading(rows, 0, share, 400_000, queued) for _ in range(workers)),
            arrivals=requests,
            new_prompt_tokens=1000 * requests,
            ends=requests,
            new_output_tokens=200 * requests,
        )
        for workers, rows, share, queued in pools
    ]


def test_dynamo_by_an_sla_asks_for_what_carries_the_load() -> None:
    """8,990 requests of 1,000 and 200 tokens in 180 s, 49.9/s: over 16.7 and over 19.04 of a replica 3 and 3."""
    scaler, counts = planner(), [Counts(1, 1), Counts(1, 1)]
    idle = of_both(((1, 0, 0.0, 0), (1, 0, 0.0, 0)))
    assert list(scaler.desired(idle, counts, 175.0)) == [1, 1]
    scaler.collected(of_both(((1, 0, 0.0, 0), (1, 0, 0.0, 0)), 8000))
    scaler.collected(of_both(((1, 0, 0.0, 0), (1, 0, 0.0, 0)), 990))
    assert list(scaler.desired(idle, counts, 180.0)) == [3, 3]
    assert list(scaler.desired(idle, [Counts(3, 3), Counts(3, 3)], 185.0)) == [3, 3], "nothing between two intervals"
    scaler.collected(of_both(((3, 0, 0.0, 0), (3, 0, 0.0, 0)), 90_000))
    assert list(scaler.desired(idle, [Counts(3, 3), Counts(3, 3)], 360.0)) == [8, 8], "30 and 27 wanted, 8 more at most, 16 GPUs"


def test_dynamo_by_load_keeps_ttft_and_itl() -> None:
    """10,000 queued tokens take 0.55 s: all above 500 ms is one more, one of two below is none."""
    scaler = planner(by_throughput=False, by_load=True)
    scaler._demand.prompts.add(1000.0)
    settled = [Counts(2, 2), Counts(2, 2)]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 10_000), (2, 60, 0.3, 0))), settled, 5.0)) == [3, 2]
    mixed = of_both(((2, 1, 0.1, 10_000), (2, 60, 0.3, 0)))
    mixed[0] = Seen(5.0, (Reading(1, 0, 0.1, 400_000, 10_000), Reading(1, 0, 0.1, 400_000, 0)))
    assert list(scaler.desired(mixed, settled, 5.0)) == [2, 2]
    # 300 rows of 100,000 tokens: 10 + 30 + 10 = 50 ms is not above; 350 rows: 55 ms is
    assert list(scaler.desired(of_both(((2, 1, 0.1, 6000), (2, 300, 0.25, 0))), settled, 5.0)) == [2, 2]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 6000), (2, 350, 0.25, 0))), settled, 5.0)) == [2, 3]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 0), (2, 10, 0.1, 0))), settled, 5.0)) == [1, 1]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 0), (2, 10, 0.6, 0))), settled, 5.0)) == [1, 2], "one cache would be too full"
    assert list(scaler.desired(of_both(((1, 1, 0.1, 10_000), (2, 60, 0.3, 0))), [Counts(2, 1), Counts(2, 2)], 5.0)) == [2, 2]


def test_dynamo_by_thresholds_of_a_pair() -> None:
    """A prefill worker is judged by what waits over the context, a decode worker by its cache; both share the budget."""
    scaler = PairPlanner("throughput", 8192, Bounds((1, 1), -1, 8, 1, [(1, 8), (1, 8)]))
    settled = [Counts(2, 2), Counts(3, 3)]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 8192), (3, 9, 0.9, 0))), settled, 5.0)) == [3, 3]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 4096), (3, 9, 0.9, 80_000))), settled, 5.0)) == [2, 4]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 0), (3, 9, 0.3, 0))), settled, 5.0)) == [1, 2]
    full = [Counts(4, 4), Counts(4, 4)]
    assert list(scaler.desired(of_both(((4, 1, 0.1, 9000), (4, 9, 0.9, 0))), full, 5.0)) == [4, 4], "of 8 GPUs"
    assert list(scaler.desired(of_both(((4, 1, 0.1, 9000), (3, 9, 0.9, 0))), [Counts(4, 4), Counts(4, 3)], 5.0)) == [4, 4]


def mixed_passes(**more: Any) -> MixedPasses:
    """A pass of 10 ms, 0.05 ms a prompt token, 0.1 ms a row and 0.1 us a token of its cache."""

    def pass_s(tokens: int, rows: int, kv_tokens: int) -> float:
        return (10 + 0.05 * tokens + 0.1 * rows + 1e-4 * kv_tokens) / 1e3

    return MixedPasses(pass_s, **{"step_tokens": 2048, "rows": 1024, "kv_tokens": 400_000, **more})


def test_dynamo_serves_in_one_pool_what_keeps_both_latencies() -> None:
    """1,000 and 200 tokens: r rows bring 5 r prompt tokens a pass, 10 + 0.46 r ms; the next prompt waits 60 + 0.46 r ms."""
    found = mixed_passes()
    assert found.per_s(1000, 200, 500, 50) == pytest.approx(86 / (200 * (10 + 0.46 * 86) / 1e3))
    assert found.per_s(1000, 200, 90, 50) == pytest.approx(65 / (200 * (10 + 0.46 * 65) / 1e3)), "TTFT holds it"
    assert found.per_s(1000, 200, 50, 5) == pytest.approx(1 / (200 * 0.01046)), "none keeps it: one row"
    few = mixed_passes(rows=20)
    assert few.per_s(1000, 200, 500, 50) == pytest.approx(20 / (200 * (10 + 0.46 * 20) / 1e3))
    # passes of 32 tokens: 32 - 1,000 / 200 = 27 rows leave room for prompts
    assert mixed_passes(step_tokens=32).per_s(1000, 200, 1e6, 50) == pytest.approx(
        27 / (200 * (10 + 0.05 * 32 + 0.1 * 27 + 0.11 * 27) / 1e3)
    )


def test_dynamo_divides_a_pass_by_the_tokens_that_it_yields_of_a_row() -> None:
    """Three a pass: r rows bring 15 r prompt tokens, 10 + 0.96 r ms, a third of it a token."""
    found = mixed_passes(accepted_tokens=3.0)
    assert found.per_s(1000, 200, 1e6, 30) == pytest.approx(3 * 83 / (200 * (10 + 0.96 * 83) / 1e3))
    # passes of 320 tokens: 20 rows with 15 prompt tokens each fill one
    small = mixed_passes(accepted_tokens=3.0, step_tokens=320)
    assert small.per_s(1000, 200, 1e6, 50) == pytest.approx(3 * 20 / (200 * (10 + 0.96 * 20) / 1e3))
    decode = Passes(lambda tokens: 0.01, 2048, lambda rows, kv: (10 + rows) / 1e3, 1024, 400_000, 2.0)
    assert decode.decode_per_s(1000, 200, 0.02) == pytest.approx(2 * 30 / (200 * 0.04))
    readings = [Reading(50, 0, 0.1, 400_000, 0)] * 2
    assert by_itl(decode, readings, 2, 20) == 3, "60 ms a pass are 30 a token"
    assert by_itl(decode, readings, 2, 35) == 2
    assert by_itl(decode, readings, 2, 70) == 1, "110 ms a pass with one less, under four fifths of 140"


def lone(**more: Any) -> LoneSlaPlanner:
    sla = Sla(500, 50, **more)
    return LoneSlaPlanner(JudgeOfBoth(mixed_passes(), sla), sla, 1, least_gpus=-1, most_gpus=16, min_endpoint=1)


def test_dynamo_by_an_sla_sizes_a_pool_by_itself() -> None:
    """8,990 requests in 180 s are 49.9/s, of which a replica serves 8.68: six; with load scaling that is the least."""
    (idle,) = of_both(((1, 0, 0.0, 0),))
    (busy,) = of_both(((1, 0, 0.0, 0),), 8990)
    scaler = lone()
    scaler.collected(busy)
    assert scaler.desired(idle, Counts(1, 1), 179.0) == 1
    assert scaler.desired(idle, Counts(1, 1), 180.0) == 6
    both = lone(by_load=True)
    both.collected(busy)
    assert both.desired(idle, Counts(1, 1), 180.0) == 6
    (six,) = of_both(((6, 10, 0.05, 0),))
    assert both.desired(six, Counts(6, 6), 185.0) == 6, "one less would keep both, but not carry what is predicted"


@pytest.mark.parametrize(
    ("rows", "share", "queued", "wanted"),
    [
        (10, 0.05, 0, 1),  # prompts of 1,000 take 63 ms, a pass 15.5
        (10, 0.05, 9_000, 3),  # 10,000 tokens in five passes: 50 + 500 + 5 x 3 = 565 ms
        (100, 0.5, 0, 3),  # 10 + 25 + 10 + 20 = 65 ms a pass
        (60, 0.3, 0, 2),  # 43 ms now, 76 with one less
        (10, 0.6, 0, 2),  # one cache would hold more than it has
    ],
)
def test_dynamo_by_load_of_one_pool(rows: int, share: float, queued: int, wanted: int) -> None:
    readings = tuple(Reading(rows, 0, share, 400_000, queued) for _ in range(2))
    seen = Seen(5.0, readings, prompt_tokens=1000, output_tokens=200)
    assert lone(by_throughput=False, by_load=True).desired(seen, Counts(2, 2), 5.0) == wanted


@pytest.mark.parametrize(
    ("counts", "demand", "wanted"),
    [
        ([2, 1], 300_000, [2, 1]),  # 352,941 needed of 360,000; 428,571 before one may go
        ([2, 1], 400_000, [4, 1]),  # 470,588: two of 80,000 at 4 are cheaper than one of 200,000 at 12
        ([2, 1], 80_000, [2, 0]),  # 245,714 to spare: the dearest goes first, the rest is less than one of the others
        ([2, 0], 20_000, [1, 0]),  # 131,429 to spare: one, the last is kept
        ([1, 2], 20_000, [1, 0]),
    ],
)
def test_wva_by_tokens_of_several_variants(counts: list[int], demand: float, wanted: list[int]) -> None:
    assert shared_out(counts, [80_000, 200_000], [4.0, 12.0], ["small", "large"], demand) == wanted


def test_wva_by_tokens_knows_what_each_variant_carries() -> None:
    behaviours = [Behaviour(1, 8, down=Direction(0.0, DOWN.policies)) for _ in range(2)]
    scaler = Variants(["a", "b"], [4.0, 8.0], behaviours, Saturation(), tolerance=0.1, by_demand=True)
    settled = [Counts(2, 2), Counts(2, 2)]
    assert list(scaler.desired(of_both(((2, 1, 0.5, 0), (2, 9, 0.5, 0))), settled, 15.0)) == [2, 2]
    # all of a's caches full: 400,000 + 400,000 + 2 x 200,000 of 0.85 are 1,411,765, of 1,280,000: one of 320,000 at 4
    full = of_both(((2, 1, 1.0, 0), (2, 9, 0.5, 0)))
    assert list(scaler.desired(full, settled, 30.0)) == [3, 2]
    assert list(scaler.desired(of_both(((2, 1, 0.1, 0), (2, 9, 0.1, 0))), settled, 45.0)) == [1, 1], "its HPA keeps one of b"


def test_wva_knows_no_roles() -> None:
    """Saturated replicas of either pool ask for one of the cheaper, and the dearer gives one back."""

    def scaler() -> Variants:
        behaviours = [Behaviour(1, 8, down=Direction(0.0, DOWN.policies)) for _ in range(2)]
        return Variants(["prefill", "decode"], [4.0, 8.0], behaviours, Saturation(), tolerance=0.1)

    settled = [Counts(2, 2), Counts(2, 2)]
    assert list(scaler().desired(of_both(((2, 1, 0.1, 0), (2, 9, 0.95, 0))), settled, 15.0)) == [2, 1], "the full pool loses one"
    assert list(scaler().desired(of_both(((2, 1, 0.75, 0), (2, 9, 0.95, 0))), settled, 15.0)) == [3, 2]
    assert list(scaler().desired(of_both(((2, 1, 0.1, 0), (2, 9, 0.1, 0))), settled, 15.0)) == [2, 1]
    assert list(scaler().desired(of_both(((2, 1, 0.1, 0), (1, 9, 0.1, 0))), [Counts(2, 2), Counts(1, 1)], 15.0)) == [1, 1]
    assert list(scaler().desired(of_both(((2, 1, 0.1, 0), (1, 9, 0.1, 0))), [Counts(2, 2), Counts(2, 1)], 15.0)) == [2, 2]
