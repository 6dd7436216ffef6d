"""Closed populations against the closed forms of queueing theory, and their bookkeeping."""

from __future__ import annotations

from dataclasses import replace
from math import factorial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import FINISHED, NOT_ARRIVED, ClusterResult
from simulator.validation.schedules import RecordedClock
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.spec import WorkloadSpec
from tests.effort import examples, some
from tests.invariants.core_cases import CLOCK, plan

SERVICE_S = {"a": 0.01, "b": 0.0, "c": 0.0, "d": 0.0}  # a step takes 10 ms whatever it holds


def population(clients: int, think_time_s: Any, requests: int, seed: int = 0, **load: Any) -> Workload:
    """A closed loop of prompts of 8 tokens."""
    fields = {
        "arrivals": {"kind": "closed_loop", "concurrency": clients, "think_time_s": think_time_s},
        "prompt_tokens": 8,
        "output_tokens": {"kind": "uniform", "low": 1, "high": 40},
        "requests": requests,
        **load,
    }
    return build_workload(WorkloadSpec.model_validate(fields), seed=seed, base_dir=Path())


def means(result: ClusterResult) -> tuple[float, float]:
    """Requests that end a second, and mean response time [s], in the middle of a run."""
    end_s = np.sort(result.end_s)
    a, b = end_s[len(end_s) // 10], end_s[len(end_s) * 9 // 10]
    inside = (result.end_s > a) & (result.end_s <= b)
    return float(inside.sum() / (b - a)), float((result.end_s - result.arrival_s)[inside].mean())


@pytest.mark.parametrize("clients", [4, *(pytest.param(clients, marks=pytest.mark.slow) for clients in (1, 10, 30))])
def test_one_row_is_the_machine_repairman(clients: int) -> None:
    """M/M/1//N (Kleinrock I, 3.8): geometric service near exponential, mean 0.3 s; exponential thinking, mean 2 s."""
    service_s, think_s, count = 0.3, 2.0, 12_000
    workload = population(clients, think_s, count)
    output = np.random.default_rng(5).geometric(0.01 / service_s, count)
    result = Cluster(replace(workload, output_tokens=output), plan(1000, max_num_seqs=1), RecordedClock(SERVICE_S)).run()
    assert (result.status == FINISHED).all()
    weights = [factorial(clients) / factorial(clients - n) * (service_s / think_s) ** n for n in range(clients + 1)]
    throughput = (1 - 1 / sum(weights)) / service_s
    found, response_s = means(result)
    assert found == pytest.approx(throughput, rel=0.04)
    assert response_s == pytest.approx(clients / throughput - think_s, rel=0.07)


LAWS: tuple[Any, ...] = (
    1.0,
    {"kind": "uniform", "low": 0, "high": 2},
    {"kind": "lognormal", "mean": 1, "p99": 5},
    {"kind": "constant", "value": 1},
)


@pytest.mark.parametrize("law", some(LAWS), ids=str)
@pytest.mark.parametrize("rows", [2, 64])
def test_the_interactive_response_time_law(law: Any, rows: int) -> None:
    """R = N / X - Z (Denning and Buzen 1978), whatever the law and however many are served at once."""
    workload = population(20, law, 4000, output_tokens={"kind": "uniform", "low": 1, "high": 60})
    result = Cluster(workload, plan(1000, max_num_seqs=rows), RecordedClock(SERVICE_S)).run()
    assert workload.think_s is not None
    throughput, response_s = means(result)
    assert response_s == pytest.approx(20 / throughput - workload.think_s.mean(), rel=0.03)


@given(
    clients=st.integers(1, 20),
    requests=st.integers(1, 80),
    law=st.sampled_from((0, *LAWS)),
    turns=st.integers(0, 4),
    seed=st.integers(0, 99),
    replicas=st.integers(1, 3),
)
@settings(max_examples=examples(40), derandomize=True)
def test_a_loop_runs_to_its_count_and_never_above_its_population(
    clients: int, requests: int, law: Any, turns: int, seed: int, replicas: int
) -> None:
    chats = {"sessions": {"turns": {"kind": "uniform", "low": 1, "high": turns}, "think_time_s": law}} if turns else {}
    workload = replace(population(clients, law, requests, seed, **chats), drain_s=5.0)
    engine = plan(2000, max_num_seqs=3)
    jumped, stepped = (
        Cluster(workload, engine, RecordedClock(CLOCK), replicas=replicas, aggregate=a).run() for a in (True, False)
    )
    assert (jumped.status == FINISHED).all()
    assert np.array_equal(jumped.arrival_s, stepped.arrival_s)
    assert np.array_equal(jumped.end_s, stepped.end_s)
    if not turns:
        assert (np.diff(jumped.arrival_s[clients:]) >= 0).all()
    times = np.concatenate([jumped.end_s, jumped.arrival_s])
    change = np.repeat([-1, 1], requests)
    assert np.cumsum(change[np.lexsort((change, times))]).max() <= clients


def test_a_loop_longer_than_its_drain_is_sent_whole() -> None:
    """The drain counts from the last request, not from time zero; what comes after the duration never arrives."""
    workload = population(2, 1.0, 400)
    assert workload.drain_s == 600
    short = replace(workload, drain_s=1e-3)
    engine = plan(1000, max_num_seqs=1)
    result = Cluster(short, engine, RecordedClock({**SERVICE_S, "a": 0.05})).run()
    assert (result.status == FINISHED).sum() >= 398
    assert result.arrival_s.max() > 300
    cut = Cluster(replace(workload, duration_s=100.0), engine, RecordedClock(SERVICE_S)).run()
    assert (cut.status == NOT_ARRIVED).any()
    assert np.nanmax(cut.arrival_s) <= 100
