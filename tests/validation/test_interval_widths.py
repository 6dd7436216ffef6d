"""Deriving interval widths: order statistics of the error, repeats once, and coverage of models left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.results.intervals import QUEUE_ELASTICITY, Evidence, Widths
from simulator.validation.evidence import Kind
from simulator.validation.intervals import (
    MIN_EXPERIMENTS,
    conformal_half_width,
    derive,
    seen,
    values_of,
)
from simulator.validation.report import EACH_SOURCE, coverage_by_holdout
from simulator.validation.reports import report_kinds
from simulator.validation.scales import COMPARED_ENGINE, OTHER_ENGINE

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
    assert derive(*suite(errors)).groups["vllm/measured/open loop"]["tpot/mean"]["experiments"] == MIN_EXPERIMENTS
    assert derive(*suite(errors[1:])) == Widths()
    assert derive(*suite(errors * 3, models=2)) == Widths()
    assert derive(*suite(errors[1:], evidence=CLOSED)) == Widths()


def test_an_outcome_that_a_suite_holds_twice_counts_once() -> None:
    runs, known = suite([0.01 * i for i in range(20)])
    far = [experiment(f"again{i}", 2.0, measured=77.0) for i in range(40)]
    known |= {r["id"]: Kind(OPEN, "m9", "gpu", "w0") for r in far}
    once = derive([*runs, far[0]], known)
    assert derive([*runs, *far], known) == once
    assert once.groups["vllm/measured/open loop"]["tpot/mean"]["log_half_width"] < 0.25


def test_closed_loops_have_a_scale_and_no_group() -> None:
    runs, known = suite([0.01 * i for i in range(20)], evidence=CLOSED)
    found = derive(runs, known)
    assert (dict(found.groups), set(found.scales)) == ({}, {"tpot"})
    assert found.scales["tpot"].factors["load"].keys() == {"closed loop"}
    assert (found.scales["tpot"].experiments, found.scales["tpot"].sources) == (20, 5)


def test_what_queueing_explains_is_taken_off_under_open_load() -> None:
    steps, known = suite([0.05] * 30)
    queues = [experiment(r["id"], 0.2, "ttft_mean_ms", 100.0 + i, 0.7) for i, r in enumerate(steps)]
    found = derive([*steps, *queues], known).groups[OPEN.group()]["ttft/mean"]["log_half_width"]
    explained = QUEUE_ELASTICITY * 0.05 * 0.7
    assert found == pytest.approx(math.sqrt(0.2**2 - explained**2), abs=1e-4)


def covered(runs: list[dict[str, Any]], known: dict[str, Kind]) -> dict[tuple[str, str], dict[str, Any]]:
    lines = coverage_by_holdout({"experiments": runs}, known)
    return {(line["group"], line["metric"]): line for line in lines if line["left_out"] == "family"}


@pytest.mark.parametrize(("evidence", "models"), [(OPEN, 20), (CLOSED, 5)])
def test_models_left_out_fall_inside_about_nine_times_in_ten(evidence: Evidence, models: int) -> None:
    rng = np.random.default_rng(7)
    runs, known = suite(list(rng.normal(0, 0.05, 400)), models=models, evidence=evidence)
    found = covered(runs, known)[evidence.group(), "TPOT"]
    assert found["n"] == 400
    assert 86 <= found["inside_pct"] <= 94
    assert found["half_width_pct"] == pytest.approx(100 * math.expm1(1.645 * 0.05), rel=0.12)


def test_each_source_counts_once_whatever_the_number_of_its_values() -> None:
    """Of five sources one is far off, which has ten values of ninety."""
    runs, known = suite([0.01] * 80, models=4, evidence=CLOSED)
    far = [experiment(f"far{i}", 3.0, measured=50.0 + i) for i in range(10)]
    known |= {r["id"]: Kind(CLOSED, "m9", "gpu", "w0", "s9") for r in far}
    lines = covered([*runs, *far], known)
    assert lines[EACH_SOURCE, "TPOT"]["inside_pct"] == pytest.approx(80.0)
    assert lines["vllm/closed loop", "TPOT"]["inside_pct"] == pytest.approx(100 * 80 / 90)
    assert ("m9", "TPOT") not in lines  # too few to say anything


def test_where_clients_wait_e2e_left_out_is_judged_by_its_parts() -> None:
    """Half of each E2E is TTFT, which errs by 0.5 where TPOT errs by 0.02: 0.26 is inside, TPOT's own error is not."""
    runs, known = suite([0.02] * 30, evidence=CLOSED)
    runs = [*runs, *(experiment(f"r{i}", 0.5, "ttft_mean_ms", 100.0 + i) for i in range(30))]
    for error, inside in ((0.26, 100.0), (0.02, 0.0)):
        whole = [experiment(f"r{i}", error, "e2e_mean_ms", 100.0 + i) | {"ttft_share": 0.5} for i in range(30)]
        assert covered([*runs, *whole], known)["vllm/closed loop", "E2E"]["inside_pct"] == inside


def test_an_engine_compared_in_one_metric_is_no_other_engine_in_the_next() -> None:
    runs, known = suite([0.01 * i for i in range(30)], evidence=CLOSED)
    runs += [experiment(f"r{i}", 0.01 * i, "output_throughput_tok_s", 200.0 + i) for i in range(30)]
    known |= {f"r{i}": replace(known[f"r{i}"], evidence=replace(CLOSED, engine="trtllm")) for i in range(0, 30, 2)}
    rates = [run for run in runs if run["metric"].startswith("output") and known[run["id"]].evidence.engine == "vllm"]
    scales = derive([*(run for run in runs if run["metric"].startswith("tpot")), *rates], known).scales
    assert scales["throughput"].experiments == 15
    assert scales["throughput"].factors["engine"]["trtllm"] == COMPARED_ENGINE
    assert scales["tpot"].factors["engine"]["trtllm"] != COMPARED_ENGINE
    levels = CLOSED.levels()
    known_engine, other = ({**levels, "engine": name} for name in ("trtllm", "another"))
    wider = scales["throughput"].half_width(other) / scales["throughput"].half_width(known_engine)
    assert wider == pytest.approx(math.exp(OTHER_ENGINE - COMPARED_ENGINE))


def test_settings_of_closed_loops_are_remembered() -> None:
    runs, known = suite([0.01 * i for i in range(12)], evidence=CLOSED)
    known = {name: replace(kind, evidence=replace(CLOSED, setting=f"s{i % 3}")) for i, (name, kind) in enumerate(known.items())}
    assert seen(values_of(runs, known)) == {"s0", "s1", "s2"}
    assert seen(values_of(runs, known, exclude=lambda name: name in ("r0", "r3", "r6", "r9"))) == {"s1", "s2"}


def test_launches_that_are_not_known_and_borrowed_kernels_tell_nothing_of_settings() -> None:
    runs, known = suite([0.02 * i for i in range(30)], evidence=replace(CLOSED, launch_known=False))
    assert derive(runs, known).scales["tpot"].factors["load"].keys() == {"launch unknown"}
    assert seen(values_of(runs, known)) == set()
    runs, known = suite([0.02 * i for i in range(30)], evidence=replace(CLOSED, kernel_error=0.3))
    assert derive(runs, known) == Widths()


def test_reports_count_as_experiments_of_their_page() -> None:
    rests_on = {"engine": "vllm", "hardware": "kernels", "closed_loop": True, "setting": "vllm/gpu/x/y"}
    group = {"engine": "vllm", "gpu": "gpu", "family": "llama", "source": "page"}
    case = {"id": "a", "metric": "tpot_mean_ms", "reported": 10.0, "predicted": 11.0, "group": group, "rests_on": rests_on}
    others = [case | {"metric": name} for name in ("kv_tokens", "output_tok_s")]
    experiments, known = report_kinds([case, *others])
    assert [e["metric"] for e in experiments] == ["tpot_mean_ms", "output_throughput_tok_s"]
    assert {e["id"] for e in experiments} == {"report/a"}
    (value, rate) = values_of(experiments, known)
    assert (value.cluster, value.evidence.setting, rate.metric) == (("page", "llama", "gpu"), "vllm/gpu/x/y", "throughput")
    assert value.log_error == pytest.approx(math.log(1.1))
