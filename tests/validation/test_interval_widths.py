"""Deriving interval widths: order statistics of the error, repeats once, and coverage of models left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.intervals import QUEUE_ELASTICITY, Evidence
from simulator.validation.evidence import Kind
from simulator.validation.intervals import (
    MIN_EXPERIMENTS,
    clustered_half_width,
    conformal_half_width,
    derive,
    seen,
    values_of,
)
from simulator.validation.report import coverage_by_holdout
from simulator.validation.reports import report_kinds

OPEN = Evidence("vllm", "measured")
CLOSED = Evidence("vllm", "kernels", closed_loop=True)


def experiment(
    run: str, error: float, metric: str = "tpot_mean_ms", measured: float = 10.0, share: float = 0.0
) -> dict[str, Any]:
    return {
        "id": run,
        "metric": metric,
        "measured": measured,
        "predicted": measured * math.exp(error),
        "queue_share": share,
    }


def suite(
    errors: list[float], models: int = 5, evidence: Evidence = OPEN, **more: Any
) -> tuple[list[dict[str, Any]], dict[str, Kind]]:
    runs = [experiment(f"r{i}", e, measured=10.0 + i, **more) for i, e in enumerate(errors)]
    return runs, {r["id"]: Kind(evidence, f"m{i % models}", "gpu", f"w{i % 3}", f"s{i % models}") for i, r in enumerate(runs)}


@given(st.lists(st.floats(-1, 1), min_size=9, max_size=60))
def test_the_width_is_an_order_statistic_that_nine_in_ten_do_not_pass(errors: list[float]) -> None:
    found = conformal_half_width(errors)
    assert found is not None
    assert sum(abs(e) <= found for e in errors) >= math.ceil(0.9 * (len(errors) + 1) - 1e-9)
    assert found in [abs(e) for e in errors]


def test_too_few_experiments_or_models_have_no_width_of_their_own() -> None:
    errors = [0.01 * i for i in range(MIN_EXPERIMENTS)]
    assert derive(*suite(errors))["vllm/measured/open loop"]["tpot/mean"]["experiments"] == MIN_EXPERIMENTS
    assert derive(*suite(errors[1:])) == {}
    assert derive(*suite(errors * 3, models=2)) == {}


def test_an_outcome_that_a_suite_holds_twice_counts_once() -> None:
    runs, known = suite([0.01 * i for i in range(20)])
    far = [experiment(f"again{i}", 2.0, measured=77.0) for i in range(40)]
    known |= {r["id"]: Kind(OPEN, "m9", "gpu", "w0") for r in far}
    once = derive([*runs, far[0]], known)
    assert derive([*runs, *far], known) == once
    assert once["vllm/measured/open loop"]["tpot/mean"]["log_half_width"] < 0.25


def test_closed_loops_count_for_their_engine_and_for_all_together() -> None:
    runs, known = suite([0.01 * i for i in range(20)], evidence=CLOSED)
    assert set(derive(runs, known)) == {"vllm/closed loop", "any/closed loop"}


@pytest.mark.parametrize(("evidence", "left"), [(OPEN, True), (CLOSED, False)])
def test_what_queueing_explains_is_taken_off_under_open_load(evidence: Evidence, left: bool) -> None:
    steps, known = suite([0.05] * 30, evidence=evidence)
    queues = [experiment(r["id"], 0.2, "ttft_mean_ms", 100.0 + i, 0.7) for i, r in enumerate(steps)]
    found = derive([*steps, *queues], known)[evidence.group()]["ttft/mean"]["log_half_width"]
    explained = QUEUE_ELASTICITY * 0.05 * 0.7
    assert found == pytest.approx(math.sqrt(0.2**2 - explained**2) if left else 0.2, abs=1e-4)


def test_models_left_out_fall_inside_about_nine_times_in_ten() -> None:
    rng = np.random.default_rng(7)
    errors = rng.normal(0, 0.05, 400)
    runs, known = suite(list(errors), models=20)
    lines = {
        c["group"]: c for c in coverage_by_holdout({"experiments": runs}, known) if c["metric"] == "TPOT"
    }
    found = lines["one model: vllm/measured/open loop"]
    assert found["n"] == 400
    assert 87 <= found["inside_pct"] <= 93
    assert found["half_width_pct"] == pytest.approx(100 * math.expm1(1.645 * 0.05), rel=0.1)


def test_experiments_count_once_whatever_the_number_of_their_metrics() -> None:
    runs, known = suite([0.01 * i for i in range(30)])
    many = [experiment(r["id"], 3.0, m, 50.0 + i) for i, r in enumerate(runs[:3]) for m in
            ("ttft_mean_ms", "ttft_p90_ms", "ttft_p99_ms", "e2e_p99_ms")]  # fmt: skip
    lines = coverage_by_holdout({"experiments": [*runs, *many]}, known)
    total = next(c for c in lines if c["group"].startswith("one model") and c["metric"].startswith("all"))
    assert total["inside_pct"] > 80  # by values it would be below 70


def test_where_clients_wait_e2e_left_out_is_judged_by_its_parts() -> None:
    """Half of each E2E is TTFT, which errs by 0.5 where TPOT errs by 0.02: 0.25 is inside, as the stated interval says."""
    runs, known = suite([0.02] * 30, evidence=CLOSED)
    for metric, error, share in (("ttft_mean_ms", 0.5, 0.0), ("e2e_mean_ms", 0.25, 0.5)):
        more = [experiment(f"r{i}", error, metric, 100.0 + i) | {"ttft_share": share} for i in range(30)]
        runs = [*runs, *more]
    lines = coverage_by_holdout({"experiments": runs}, known)
    found = next(c for c in lines if c["group"].startswith("one model") and c["metric"] == "E2E mean")
    assert found["inside_pct"] == 100.0
    assert found["half_width_pct"] == pytest.approx(100 * math.expm1(0.26), rel=1e-3)


def test_a_new_source_is_inside_as_often_as_a_large_one() -> None:
    """Nine sources of five values and one of ninety of two models: the many do not decide, nor does one value far off."""
    small = {(f"s{i}", "m", "gpu"): [0.1 * (i + 1)] * 5 for i in range(9)}
    large = {("big", "m", "gpu"): [0.01] * 44 + [7.0], ("big", "n", "gpu"): [0.02] * 45}
    assert clustered_half_width(small | large) == pytest.approx(0.8)
    assert conformal_half_width(e for errors in (small | large).values() for e in errors) == pytest.approx(0.7)
    assert clustered_half_width(large) == pytest.approx(0.02)
    assert clustered_half_width(large | {("s", "m", "g"): [9.0] * 5}) == 9.0
    assert clustered_half_width(large | small | {("s", "m", "g"): [9.0]}) < 1.0  # weighs a fifth


def test_settings_of_closed_loops_are_remembered() -> None:
    runs, known = suite([0.01 * i for i in range(12)], evidence=CLOSED)
    known = {name: replace(kind, setting=f"s{i % 3}") for i, (name, kind) in enumerate(known.items())}
    assert seen(values_of(runs, known)) == {"s0", "s1", "s2"}
    assert seen(values_of(runs, known, exclude=lambda name: name in ("r0", "r3", "r6", "r9"))) == {"s1", "s2"}


def test_launches_that_are_not_known_and_borrowed_kernels_tell_nothing_of_settings() -> None:
    runs, known = suite([0.02 * i for i in range(30)], evidence=replace(CLOSED, launch_known=False))
    assert set(derive(runs, known)) == {"vllm/launch unknown", "any/launch unknown"}
    assert seen(values_of(runs, known)) == set()
    runs, known = suite([0.02 * i for i in range(30)], evidence=replace(CLOSED, kernel_error=0.3))
    assert derive(runs, known) == {}


def test_reports_count_as_experiments_of_their_page() -> None:
    rests_on = {"engine": "vllm", "hardware": "kernels", "closed_loop": True, "setting": "vllm/gpu/x/y"}
    group = {"engine": "vllm", "gpu": "gpu", "family": "llama", "source": "page"}
    case = {"id": "a", "metric": "tpot_mean_ms", "reported": 10.0, "predicted": 11.0, "group": group, "rests_on": rests_on}
    others = [case | {"metric": name} for name in ("kv_tokens", "output_tok_s")]
    experiments, known = report_kinds([case, *others])
    assert [e["metric"] for e in experiments] == ["tpot_mean_ms", "output_throughput_tok_s"]
    assert {e["id"] for e in experiments} == {"report/a"}
    (value, rate) = values_of(experiments, known)
    assert (value.cluster, value.setting, rate.metric) == (("page", "llama", "gpu"), "vllm/gpu/x/y", "throughput")
    assert value.log_error == pytest.approx(math.log(1.1))
