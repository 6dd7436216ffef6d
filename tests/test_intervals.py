"""Error intervals: which measured runs stand behind one, and what queueing does to it."""

from __future__ import annotations

import math

import pytest

from simulator.intervals import Evidence, find_half_width, groups_of, queue_widening


def entry(width: float) -> dict[str, float]:
    return {"log_half_width": width, "n": 10.0}


def test_the_nearest_kind_of_run_stands_behind_an_interval() -> None:
    groups = {
        "vllm/measured/dense": {"tpot/mean": entry(0.1)},
        "vllm/kernels/any": {"tpot/mean": entry(0.2), "ttft/p99": entry(0.5)},
        "any/kernels/moe": {"tpot/mean": entry(0.3)},
    }

    def width(engine: str, hardware: str, model: str, metric: str = "tpot", statistic: str = "mean") -> float | None:
        return find_half_width(groups, Evidence(engine, hardware, model), metric, statistic)

    assert width("vllm", "measured", "dense") == 0.1
    assert width("vllm", "measured", "moe") == 0.2  # the same engine before the same class of model
    assert width("sglang", "kernels", "moe") == 0.3  # runs of other engines where there are none of its own
    assert width("sglang", "kernels", "dense") is None
    assert width("vllm", "physics", "dense") is None
    assert width("vllm", "measured", "dense", "ttft", "mean") == 0.5  # the widest of the metric
    assert width("vllm", "measured", "dense", "e2e") == 0.1  # E2E as TPOT


def test_a_run_counts_for_its_own_group_and_the_wider_ones() -> None:
    assert groups_of(Evidence("vllm", "kernels", "moe")) == [
        "vllm/kernels/moe",
        "vllm/kernels/any",
        "any/kernels/moe",
        "any/kernels/any",
    ]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_queueing_widens_by_its_share(share: float) -> None:
    widened = queue_widening(0.1, share * 200.0, 200.0, 0.05)
    assert widened == pytest.approx(math.hypot(0.1, 5.0 * 0.05 * share))
    assert queue_widening(0.1, -50.0, 200.0, 0.05) == 0.1
