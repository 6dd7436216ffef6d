"""The router's indexed choice is that of a scan over all replicas, ties included, near-sighted or far-sighted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.declaration import FrontEnd
from engine_models.parts.sequence import Sequence
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import ClusterResult
from simulator.cluster.router import Router
from simulator.cluster.routers import router_of
from simulator.run import simulate
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.invariants.core_cases import CLOCK, Case, cases, plan_of, workload_of


class Scan(Router):
    """The rule itself: ask every replica."""

    def __init__(self, replicas: list[Replica], *_: object) -> None:
        self._replicas = replicas

    def choose(self, now_s: float, seq: Sequence, session: int) -> int:
        for replica in self._replicas:
            replica.advance(now_s)
        return min(range(len(self._replicas)), key=lambda number: self._replicas[number].ranks[0].in_service)


def result(
    case: Case,
    made: Callable[..., Router],
    monkeypatch: pytest.MonkeyPatch,
    tokenise_token_s: float = 0.0,
) -> ClusterResult:
    monkeypatch.setattr("simulator.cluster.cluster.router_of", made)
    cluster = Cluster(
        workload_of(case),
        replace(plan_of(case), front=FrontEnd(tokenise_token_s=tokenise_token_s)),
        RecordedClock(CLOCK),
        replicas=5,
        router="least_requests",
        before_s=0.003,
    )
    return cluster.run()


@settings(max_examples=examples(60), derandomize=True)
@given(cases(), st.sampled_from([0.0, 1e-4, 1e-2]))
def test_choice_is_that_of_a_scan(case: Case, tokenise_token_s: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        runs: list[Any] = [
            result(case, made, patch, tokenise_token_s)
            for made in (Scan, router_of)
        ]
    for name in ("status", "replica", "first_token_s", "end_s", "preemptions", "cached_tokens"):
        wanted = getattr(runs[0], name)
        for run in runs[1:]:
            np.testing.assert_array_equal(getattr(run, name), wanted, err_msg=name)


def test_all_replicas_end_together_where_nothing_drains() -> None:
    """A router that looks at few replicas leaves none behind, though the last request arrives when the run ends."""
    lengths = {"kind": "normal", "mean": 200, "std": 80, "min": 1}
    waits = {"arrivals": {"kind": "closed_loop", "concurrency": 30, "think_time_s": 0}}
    one = {"prompt_tokens": {"kind": "constant", "value": 1}, "output_tokens": {"kind": "constant", "value": 700}}
    comes = {"arrivals": {"kind": "constant", "rate": 40}, "prompt_tokens": lengths, "output_tokens": lengths}
    scenario = {
        "seed": 372,
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {
            "engine": "sglang",
            "hardware": "h100-sxm-80gb",
            "replicas": 3,
            "router": "least_requests",
            "tensor_parallel": 2,
            "engine_args": {"max_running_requests": 16, "max_total_tokens": 16000},
        },
        "workload": {
            "classes": [
                {"name": "a", "priority": 0, **waits, **one},
                {"name": "b", "priority": 3, **comes},
            ],
            "requests": 200,
            "drain_s": 0,
        },
    }
    assert simulate(scenario).result == simulate(scenario, aggregate=False).result
