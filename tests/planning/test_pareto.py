from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cli.sweep import runner_up
from simulator.planning.pareto import cheapest, cost_column, latency_column, pareto_front
from simulator.planning.points import COST_HIGH
from simulator.planning.sweep import SweepResult
from simulator.results.ranking import ALIKE_MODEL

PAIRS = st.lists(
    st.tuples(st.one_of(st.none(), st.integers(0, 6)), st.one_of(st.none(), st.integers(0, 6))), max_size=12
)


@given(PAIRS)
def test_the_front_is_the_set_that_nothing_beats(pairs: list[tuple[int | None, int | None]]) -> None:
    def beaten(pair: tuple[int | None, int | None]) -> bool:
        if None in pair:
            return True
        return any(
            None not in other and other != pair and other[0] <= pair[0] and other[1] <= pair[1]  # type: ignore[operator]
            for other in pairs
        )

    assert pareto_front(pairs) == [not beaten(pair) for pair in pairs]


def row(
    point: int, usd: float | None, late: float | None, slo: str = "met", status: str = "ok"
) -> dict[str, object]:
    return {
        "point": point, "status": status, "slo": slo, "usd_per_hour": usd, "usd_per_1m_total_tokens": 1.0,
        "devices": point, "ttft_ms_p99": late,
    }  # fmt: skip


def test_the_cheapest_keeps_the_slo_and_ties_go_to_the_quicker() -> None:
    rows = [row(0, 1, 9, "missed"), row(1, 2, 9, "close"), row(2, 3, 8), row(3, 3, 7), row(4, 4, 1)]
    best = cheapest(rows, "usd_per_hour", "ttft_ms_p99")
    assert best is not None
    assert best["point"] == 3
    close = cheapest(rows, "usd_per_hour", "ttft_ms_p99", "close")
    assert close is not None
    assert close["point"] == 1
    assert cheapest(rows[:2], "usd_per_hour", "ttft_ms_p99") is None


def test_cost_is_of_the_hour_unless_the_load_varies_or_a_price_is_unknown() -> None:
    rows = [row(0, 1, 9), row(1, 2, 9)]
    assert cost_column(rows, ["deployment.replicas"]) == "usd_per_hour"
    assert cost_column(rows, ["workload.rate_scale"]) == "usd_per_1m_total_tokens"
    assert cost_column([*rows, row(2, None, 1)], ["deployment.replicas"]) == "devices"


def test_the_latency_is_the_slo_s_first_at_its_highest_percentile() -> None:
    rows = [{"ttft_ms_p99": 1, "ttft_ms_p50": 1, "e2el_ms_p99": 1}]
    assert latency_column(rows, {"ttft_ms": {"p50": 1, "p99": 2}}) == "ttft_ms_p99"
    assert latency_column(rows, {}) == "e2el_ms_p99"


def test_the_cheapest_a_token_says_how_sure_it_is_where_prices_do_not_decide() -> None:
    token = "usd_per_1m_total_tokens"

    def row(point: int, cost: float, **other: Any) -> dict[str, Any]:
        told = {"engine": "e", "hardware": "h100", "model": "m", "weights": "bf16", "slo": "met", "status": "ok"}
        return {**told, "point": point, "usd_per_hour": 1.0, token: cost, COST_HIGH: 1.25 * cost, "late": 1.0, **other}

    rows = (row(0, 1.1), row(1, 1.0, hardware="b200"), row(2, 1.05, slo="missed"))

    def found(cost: str) -> tuple[Any, float] | None:
        return runner_up(SweepResult(Path(), rows, cost, "late", rows[1], None, ()))

    next_best = found(token)
    assert next_best is not None
    assert next_best[0]["point"] == 0
    spread = math.log(1.25) / 1.645 * math.sqrt(2 - 2 * ALIKE_MODEL)
    assert next_best[1] == pytest.approx(NormalDist().cdf(math.log(1.1) / spread))
    assert found("usd_per_hour") is None
