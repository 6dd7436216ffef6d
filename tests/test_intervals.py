"""Error intervals: which measured runs stand behind one, and what queueing, borrowing and a closed loop do to it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.law_constants import METAL
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.results.domain import domain
from simulator.results.intervals import (
    INTERVAL_OF_MEAN_ERROR,
    QUEUE_ELASTICITY,
    RUN_OF_KERNELS,
    Evidence,
    Widths,
    add_intervals,
    center,
    coherent,
    half_width,
    queue_widening,
    rate_width,
    share_below,
    share_of_queue,
    shipped,
    table,
    why,
)
from simulator.results.scales import Scale


def entry(width: float) -> dict[str, float]:
    return {"log_half_width": width, "experiments": 10.0, "models": 3.0}


def scale(width: float, **factors: dict[str, float]) -> Scale:
    """Of a log half-width, times what levels say; ten times that of a device which was not measured."""
    logs = {factor: {level: math.log(times) for level, times in levels.items()} for factor, levels in factors.items()}
    return Scale(math.log(width), logs, {"device": math.log(10.0)})


WIDTHS = Widths(
    {
        "vllm/measured/open loop": {
            "tpot/mean": entry(0.09),
            "e2e/mean": entry(0.08),
            "ttft/mean": entry(0.15),
            "ttft/p99": entry(0.45),
            "throughput/mean": entry(0.03),
        },
    },
    {
        "tpot": scale(0.15, load={"batch, lengths by a law": 4.0, "disaggregated": 2.0}, device={"": 1.0}),
        "ttft": scale(0.6, engine={"sglang": 1.5}, device={"": 1.0}),
    },
)
SERVED = Evidence("vllm", "measured")
BEYOND = math.sqrt(0.15**2 - 0.09**2)


def width(evidence: Evidence, metric: str = "tpot", statistic: str = "mean", share: float = 0.0) -> float:
    return half_width(evidence, metric, statistic, share, widths=WIDTHS)[0]


def test_the_nearest_kind_of_run_stands_behind_an_interval() -> None:
    closed = Evidence("vllm", "kernels", closed_loop=True)
    assert width(SERVED) == 0.09
    assert width(replace(SERVED, closed_loop=True)) == pytest.approx(0.15)
    assert width(closed, "ttft") == pytest.approx(0.6)
    assert width(replace(closed, engine="sglang"), "ttft") == pytest.approx(0.9)
    assert width(Evidence("sglang", "kernels"), "ttft") == pytest.approx(0.9)
    assert width(replace(closed, setting="vllm/new device/attention, experts/16 bits")) == pytest.approx(1.5)
    assert rate_width(replace(closed, batch=True), 6.0, 60.0, False, WIDTHS) == pytest.approx(0.15)  # as TPOT
    assert width(replace(closed, split=True)) == pytest.approx(0.3)
    assert width(replace(SERVED, split=True)) == pytest.approx(0.3)


def test_lengths_by_a_law_say_little_of_what_requests_of_a_batch_share() -> None:
    """TPOT is a mean over requests, of which the short ones wait for the prompts of all."""
    batch = Evidence("vllm", "kernels", closed_loop=True, batch=True)
    assert width(replace(batch, by_law=True)) == pytest.approx(4 * width(batch))
    assert width(Evidence("vllm", "kernels", by_law=True)) == pytest.approx(width(Evidence("vllm", "kernels")))
    scales = shipped().scales["tpot"]
    known, law = (scales.half_width(replace(batch, by_law=by_law).levels()) for by_law in (False, True))
    assert law > 2 * known
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "requests": 1}
    for answers, by_law in ((8, False), ({"kind": "lognormal", "mean": 8, "p99": 20}, True)):
        deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
        case = {"model": "meta-llama/Llama-3.2-1B", "deployment": deployment, "workload": {**load, "output_tokens": answers}}
        assert domain(prepare(load_scenario(case)))[0].by_law is by_law


def test_words_say_why_an_interval_is_wide() -> None:
    assert why(SERVED, 0.1) == ""
    closed = Evidence("vllm", "kernels", closed_loop=True, setting="vllm/no such device/latent attention, experts/8 bits")
    said = why(closed, 0.4)
    middle = center(closed, "tpot")
    about = f", about {math.exp(middle):.2f} times the value, as in the median source" if abs(math.expm1(middle)) >= 0.005 else ""
    assert f"(a factor of 1.49 for TPOT{about}) hold nine of ten values" in said
    assert center(closed, "e2e", 0.5) == pytest.approx((middle + center(closed, "ttft")) / 2)
    assert (center(replace(closed, source="InferenceX"), "tpot"), center(SERVED, "tpot")) == (0.0, 0.0)
    assert said.endswith("never measured: no such device")
    assert "latent attention, experts, 8 bits err" in said
    assert "batch, lengths by a law err" in why(replace(closed, batch=True, by_law=True), 0.4)


@pytest.mark.parametrize(
    ("statistic", "like"), [("p50", "mean"), ("p75", "mean"), ("p95", "p99"), ("p99_9", "p99")]
)
def test_a_statistic_without_measurements_errs_as_its_neighbour(statistic: str, like: str) -> None:
    assert width(SERVED, "ttft", statistic) == width(SERVED, "ttft", like)


def test_a_server_on_hardware_known_by_kernels_adds_what_closed_loops_add_to_tpot() -> None:
    kernels = Evidence("vllm", "kernels")
    assert width(kernels) == pytest.approx(0.15)
    assert width(kernels, "ttft") == pytest.approx(math.hypot(0.15, BEYOND))
    assert width(kernels, "ttft", "p99") == pytest.approx(math.hypot(0.45, BEYOND))
    assert width(kernels, "e2e") == pytest.approx(math.hypot(0.08, BEYOND))


def test_a_tail_that_was_not_measured_is_wider_than_the_mean_as_elsewhere() -> None:
    closed = Evidence("vllm", "kernels", closed_loop=True)
    assert width(closed, "ttft", "p99") == pytest.approx(math.sqrt(0.6**2 + 0.45**2 - 0.15**2))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_where_clients_wait_e2e_errs_as_its_parts(share: float) -> None:
    closed = Evidence("vllm", "kernels", closed_loop=True)
    found, _ = half_width(closed, "e2e", "mean", ttft_share=share, widths=WIDTHS)
    assert found == pytest.approx(share * 0.6 + (1 - share) * 0.15)


@given(st.floats(0.01, 1.0))
def test_kernels_that_were_not_measured_widen_by_their_error(error: float) -> None:
    known = Evidence("vllm", "kernels")
    for assumed, multiple in ((False, RUN_OF_KERNELS), (True, INTERVAL_OF_MEAN_ERROR)):
        other = Evidence("vllm", "borrowed", kernel_error=error, error_assumed=assumed)
        assert half_width(other, "ttft", "p99", widths=WIDTHS) == (
            pytest.approx(math.hypot(width(known, "ttft", "p99"), math.log1p(multiple * error))),
            "assumed",
        )
    assert half_width(known, "ttft", "p99", widths=WIDTHS)[1] == "fitted"


def test_ninety_of_a_hundred_normal_errors_lie_within_the_stated_multiple_of_their_mean() -> None:
    import numpy as np

    errors = np.abs(np.random.default_rng(1).normal(size=200_000))
    assert np.mean(errors <= INTERVAL_OF_MEAN_ERROR * errors.mean()) == pytest.approx(0.9, abs=0.003)


def test_without_any_run_the_width_is_assumed() -> None:
    assert half_width(Evidence("vllm", "kernels"), "ttft", "mean", widths=Widths()) == (0.5, "assumed")


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_queueing_widens_by_its_share_where_arrivals_do_not_wait(share: float) -> None:
    assert queue_widening(0.1, share, 0.05) == pytest.approx(math.hypot(0.1, QUEUE_ELASTICITY * 0.05 * share))
    assert width(SERVED, "ttft", "mean", share) == pytest.approx(queue_widening(0.15, share, 0.09))
    assert width(replace(SERVED, closed_loop=True), "ttft", "mean", share) == pytest.approx(0.6)
    assert width(SERVED, "tpot", "mean", share) == 0.09


def test_the_share_of_queueing_is_beyond_one_step_and_at_most_all() -> None:
    assert share_of_queue(5.0, 10.0, 100.0) == 0.0
    assert share_of_queue(200.0, 10.0, 100.0) == 1.0
    assert share_of_queue(1.0, 0.0, 0.0) == 0.0


def test_arrivals_fix_throughput_but_for_the_requests_under_way() -> None:
    assert rate_width(SERVED, 6.0, 60.0, False, WIDTHS) == pytest.approx(math.hypot(0.03, 0.08 * 0.1))
    assert rate_width(SERVED, 90.0, 60.0, False, WIDTHS) == pytest.approx(math.hypot(0.03, 0.08))
    assert rate_width(SERVED, 6.0, 60.0, True, WIDTHS) == 0.09
    assert rate_width(replace(SERVED, closed_loop=True), 6.0, 60.0, False, WIDTHS) == pytest.approx(0.15)


@given(st.floats(-1.0, 12.0))
def test_the_share_below_a_bound_is_read_from_percentiles(bound: float) -> None:
    uniform = {"min": 0.0, "p10": 1.0, "p50": 5.0, "p99_9": 9.99, "max": 10.0, "mean": 5.0, "unit": "ms"}
    assert share_below(uniform, bound) == pytest.approx(min(1.0, max(0.0, bound / 10)))


def stats(value: float) -> dict[str, Any]:
    names = ("mean", "min", "p1", "p5", "p10", "p25", "p50", "p75", "p90", "p95", "p99", "p99_9", "max")
    return {**dict.fromkeys(names, value), "count": 100, "unit": "ms", "interval": None}


def a_result() -> dict[str, Any]:
    values = {"ttft_ms": 100.0, "tpot_ms": 10.0, "itl_ms": 10.0, "e2el_ms": 1000.0, "queue_ms": 5.0,
              "prefill_ms": 95.0, "decode_ms": 900.0}  # fmt: skip
    cost = ("usd_per_1m_total_tokens", "usd_per_1m_output_only", "usd_per_request", "usd_per_1m_input_tokens",
            "usd_per_1m_output_tokens")  # fmt: skip
    return {
        "metrics": {name: stats(value) for name, value in values.items()},
        "classes": [{"metrics": {name: stats(value) for name, value in values.items()}}],
        "totals": {
            "duration_s": 100.0,
            "request_throughput": 1.0,
            "output_throughput": 100.0,
            "total_token_throughput": 500.0,
            "request_goodput": 1.0,
            "goodput_fraction": 1.0,
            "offered": 100,
            "completed": 100,
            "slo": {"ttft_ms": 105.0},
        },
        "cost": dict.fromkeys(cost, 2.0),
        "warnings": [],
    }


def test_every_figure_of_every_kind_of_hardware_has_an_interval_around_it() -> None:
    kinds = [("measured", 0.0), ("kernels", 0.0), ("borrowed", 0.3), ("physics", 0.5)]
    widths = []
    for hardware, error in kinds:
        result = a_result()
        assumed = add_intervals(result, Evidence("vllm", hardware, kernel_error=error))
        assert any("assume" in text for text in assumed) == (error > 0)
        for metrics in (result["metrics"], result["classes"][0]["metrics"]):
            for name, found in metrics.items():
                for statistic in ("mean", "p50", "p90", "p95", "p99"):
                    low, high = found["interval"][statistic]
                    assert low < found[statistic] < high, name
        for name, bounds in (result["totals"]["interval"] | result["cost"]["interval"]).items():
            assert bounds is not None, name
            assert bounds[0] <= bounds[1]
        low, high = result["metrics"]["e2el_ms"]["interval"]["mean"]
        widths.append(high / low)
    assert widths == sorted(set(widths))  # the less is known, the wider


def test_goodput_may_fall_as_far_as_latencies_within_their_error_let_it() -> None:
    result = a_result()  # every TTFT 100 ms of the 105 allowed: 15 % more and none is good
    add_intervals(result, SERVED)
    assert result["totals"]["interval"]["goodput_fraction"] == [0.0, 1.0]
    wide = a_result()
    wide["totals"]["slo"] = {"ttft_ms": 1000.0}
    add_intervals(wide, SERVED)
    assert wide["totals"]["interval"]["goodput_fraction"] == [1.0, 1.0]


def test_an_overloaded_run_has_no_upper_bound_of_ttft() -> None:
    result = a_result()
    result["warnings"] = ["overload: more than it carries"]
    add_intervals(result, SERVED)
    assert result["metrics"]["ttft_ms"]["interval"]["p99"][1] is None
    assert result["metrics"]["tpot_ms"]["interval"]["p99"][1] is not None


@pytest.mark.parametrize(
    ("used", "widths"),
    [
        ({"rows": 1, "prompt_tokens": 512}, (METAL.within.prompt_width, METAL.within.decode_width)),
        ({"rows": 4, "prompt_tokens": 64}, (METAL.within.few_width, METAL.within.batch_width)),
        ({}, (METAL.within.few_width, METAL.within.batch_width)),
    ],
)
def test_kernels_by_a_law_err_as_on_chips_left_out_of_it(used: dict[str, float], widths: tuple[float, float]) -> None:
    """By the rows and prompts of a run; before one the wider hold."""
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "llama_cpp", "hardware": "apple-m2-8c-16gb", "weights": "q4_0"}
    prepared = prepare(load_scenario({"model": "meta-llama/Llama-3.2-1B", "deployment": pool, "workload": load}))
    evidence, _ = domain(prepared, used)
    for batch in (False, True):
        at_once = replace(evidence, closed_loop=True, batch=batch)
        assert tuple(half_width(at_once, metric, "mean") for metric in ("ttft", "tpot")) == tuple((w, "fitted") for w in widths)
    assert "chips left out of the law of Apple GPUs" in why(evidence, 0.1)


def test_the_shipped_widths_of_served_runs_are_useful() -> None:
    served = Evidence("vllm", "measured")
    assert table()["level"] == 0.9
    assert math.expm1(half_width(served, "e2e", "mean")[0]) <= 0.12
    assert half_width(served, "e2e", "mean")[0] <= half_width(served, "e2e", "p99")[0]
    assert half_width(served, "ttft", "mean")[0] <= half_width(served, "ttft", "p99")[0]


def test_intervals_contradict_no_other() -> None:
    """The true p95 is not below the true p90, and no request waits longer than its first token takes."""
    bounds: dict[str, list[Any] | None] = {
        "mean": [4.0, 5.0], "p50": [2.0, 9.0], "p90": [5.3, 7.0], "p95": [4.4, 9.5], "p99": [1.1, 190.0], "p99_9": None,
    }  # fmt: skip
    whole: dict[str, list[Any] | None] = {"mean": [30.0, 40.0], "p99": [85.0, 150.0], "p95": [50.0, None]}
    assert coherent(bounds, whole) == {
        "mean": [4.0, 5.0], "p50": [2.0, 7.0], "p90": [5.3, 7.0], "p95": [5.3, 9.5], "p99": [5.3, 150.0], "p99_9": None,
    }  # fmt: skip
    overloaded: dict[str, list[Any] | None] = {"p50": [2.0, None], "p99": [1.0, None]}
    assert coherent(overloaded) == {"p50": [2.0, None], "p99": [2.0, None]}


@pytest.mark.parametrize(("think_s", "waits"), [(0.0, True), (20.0, False)])
def test_clients_that_think_longer_than_they_wait_count_as_an_open_loop(think_s: float, waits: bool) -> None:
    """Their TTFT is that of Poisson arrivals of the same rate; those who never think keep the server full."""
    from simulator import simulate

    def run(arrivals: dict[str, Any]) -> dict[str, Any]:
        lengths = {"prompt_tokens": {"kind": "constant", "value": 300}, "output_tokens": {"kind": "constant", "value": 60}}
        workload = {"arrivals": arrivals, **lengths, "duration": 120}
        deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
        return simulate({"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": workload}).result

    closed = run({"kind": "closed_loop", "concurrency": 100, "think_time_s": think_s})
    opened = run({"kind": "poisson", "rate": closed["totals"]["request_throughput"]})
    first, second = (result["metrics"]["ttft_ms"] for result in (closed, opened))
    wide, narrow = (metric["interval"]["mean"][1] / metric["mean"] for metric in (first, second))
    setting = "vllm/h100-sxm-80gb/attention, no experts/16 bits"
    loop = replace(SERVED, closed_loop=True, setting=setting)
    of_loops = half_width(loop, "ttft", "mean")[0] + center(loop, "ttft")
    assert math.log(wide) == pytest.approx(of_loops if waits else math.log(narrow), rel=0.02)
    assert of_loops > 3 * math.log(narrow)
    if not waits:
        assert first["mean"] == pytest.approx(second["mean"], rel=0.1)


def test_a_format_that_the_lender_was_not_measured_in_errs_as_of_a_distant_kin() -> None:
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    found = []
    for weights in ("bf16", "int4"):
        pool = {"engine": "vllm", "hardware": "arc-b580-12gb", "weights": weights}
        scenario = load_scenario({"model": "meta-llama/Llama-3.2-1B", "deployment": pool, "workload": load})
        evidence, axes = domain(prepare(scenario))
        found.append((evidence.hardware, evidence.kernel_error, any("int4 were measured on arc-pro-b60" in a for a in axes)))
    assert found == [("borrowed", 0.1, False), ("borrowed", 0.3, True)]


@pytest.mark.parametrize(("hardware", "assumed"), [("rtx-4090-24gb", False), ("mi300x-192gb", False), ("gaudi-3-128gb", True)])
def test_only_errors_of_kernels_that_no_device_of_the_make_told_are_assumed(hardware: str, assumed: bool) -> None:
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "vllm", "hardware": hardware, "weights": "bf16"}
    evidence, _ = domain(prepare(load_scenario({"model": "meta-llama/Llama-3.2-1B", "deployment": pool, "workload": load})))
    assert (evidence.error_assumed, evidence.kernel_error > 0) == (assumed, True)


def test_experts_priced_by_another_frameworks_table_of_the_same_kernels_say_so() -> None:
    """Marlin's experts in mxfp4 on an A100 are those of SGLang's table in int4, not curves of 16 bits."""
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "vllm", "hardware": "a100-sxm-80gb", "tensor_parallel": 2}
    evidence, axes = domain(prepare(load_scenario({"model": "openai/gpt-oss-120b", "deployment": pool, "workload": load})))
    assert any("are Marlin's in int4_wo of sglang's table" in axis for axis in axes)
    assert not any("were measured on" in axis for axis in axes)
    assert evidence.kernel_error < 0.15
