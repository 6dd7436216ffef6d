"""Think times: laws of their own stream, and first requests of a closed loop as if its clients had been at it for long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.spec import WorkloadSpec
from tests.effort import examples

LENGTHS = {
    "prompt_tokens": {"kind": "lognormal", "mean": 100, "p99": 700},
    "output_tokens": {"kind": "lognormal", "mean": 50, "p99": 300},
}
CONSTANT = {"kind": "constant", "value": 20}


def build(seed: int = 0, **spec: Any) -> Workload:
    return build_workload(WorkloadSpec.model_validate({**LENGTHS, **spec}), seed=seed, base_dir=Path())


def closed(concurrency: int, think_time_s: Any) -> dict[str, Any]:
    return {"kind": "closed_loop", "concurrency": concurrency, "think_time_s": think_time_s}


times = st.floats(0.01, 100)
laws = st.one_of(
    times,
    st.builds(lambda mean: {"kind": "exponential", "mean": mean}, times),
    st.builds(lambda value: {"kind": "constant", "value": value}, times),
    st.builds(lambda low, more: {"kind": "uniform", "low": low, "high": low + more}, times, times),
    st.builds(lambda mean, std: {"kind": "normal", "mean": mean, "std": std}, times, times),
    st.builds(lambda mean, tail: {"kind": "lognormal", "mean": mean, "p99": mean * tail}, times, st.floats(1.1, 10)),
    st.builds(lambda a, b: {"kind": "empirical", "quantiles": {"p0": 0, "p50": a, "p100": a + b}}, times, times),
)


@given(law=laws, clients=st.integers(1, 40), more=st.integers(0, 60), seed=st.integers(0, 99))
@settings(max_examples=examples(60))
def test_thinking_moves_nothing_else(law: Any, clients: int, more: int, seed: int) -> None:
    quiet = build(seed, arrivals=closed(clients, 0), requests=clients + more)
    w = build(seed, arrivals=closed(clients, law), requests=clients + more)
    for name in ("prompt_tokens", "output_tokens", "predecessor"):
        assert np.array_equal(getattr(w, name), getattr(quiet, name)), name
    assert not quiet.arrival_s[:clients].any()
    assert (np.diff(w.arrival_s[:clients]) >= 0).all()
    assert w.think_s is not None
    assert (w.think_s >= 0).all()
    # the k-th request is followed by the same thought, however many clients there are
    other = build(seed, arrivals=closed(clients + 7, law), requests=clients + more)
    assert other.think_s is not None
    assert np.array_equal(other.think_s, w.think_s)


@pytest.mark.parametrize(
    ("law", "mean_s", "cv"),
    [
        (20, 20, 1),
        ({"kind": "exponential", "mean": 20}, 20, 1),
        (CONSTANT, 20, 0),
        ({"kind": "uniform", "low": 10, "high": 30}, 20, 1 / 12**0.5),
        ({"kind": "lognormal", "mean": 20, "p99": 100}, 20, 0.978),
        ({"kind": "empirical", "quantiles": {"p0": 0, "p100": 40}}, 20, 1 / 3**0.5),
        ({"kind": "exponential", "mean": 20, "min": 20}, 20 + 20 / np.e, None),
    ],
    ids=str,
)
def test_clients_come_at_one_rate_from_the_start(law: Any, mean_s: float, cv: float | None) -> None:
    """The mean and spread of the law, and first requests at N / mean a second at once: neither together nor late."""
    w = build(3, arrivals=closed(20_000, law), requests=40_000)
    assert w.think_s is not None
    assert w.think_s.mean() == pytest.approx(mean_s, rel=0.03)
    if cv is not None:
        assert w.think_s.std() / w.think_s.mean() == pytest.approx(cv, abs=0.05)
    first_s = w.arrival_s[:20_000]
    assert np.count_nonzero(first_s < mean_s / 20) == pytest.approx(1000, rel=0.12)
    # the residual's mean (Feller II, XI.4): E[X^2] / (2 E[X])
    assert first_s.mean() == pytest.approx((w.think_s**2).mean() / 2 / w.think_s.mean(), rel=0.08)


def test_turns_of_a_session_think_by_a_law() -> None:
    poisson = {"kind": "poisson", "rate": 50}
    w = build(arrivals=poisson, sessions={"turns": 5, "think_time_s": 4}, requests=20_000)
    gaps = w.gap_s[w.turn > 0]
    assert gaps.mean() == pytest.approx(4, rel=0.03)
    assert gaps.std() == pytest.approx(4, rel=0.05)
    assert not w.gap_s[w.turn == 0].any()
    same = build(arrivals=poisson, sessions={"turns": 5, "think_time_s": CONSTANT}, requests=20_000)
    assert (same.gap_s[same.turn > 0] == 20).all()
    assert np.array_equal(same.prompt_tokens, w.prompt_tokens)
    # and a loop of conversations without a pause of its own is spread over that between turns
    loop = build(arrivals=closed(500, 0), sessions={"turns": 5, "think_time_s": 4}, requests=5000)
    opens = loop.arrival_s[~np.isnan(loop.arrival_s)]
    assert len(opens) == 500
    assert opens.mean() == pytest.approx(4, rel=0.15)


@pytest.mark.parametrize(
    ("load", "said"),
    [
        ({"arrivals": closed(9, CONSTANT)}, True),
        ({"arrivals": closed(9, {"kind": "uniform", "low": 19, "high": 20})}, True),
        ({"arrivals": closed(9, 0), "sessions": {"turns": 3, "think_time_s": CONSTANT}}, True),
        ({"arrivals": {"kind": "batch"}, "sessions": {"turns": 3, "think_time_s": CONSTANT}}, True),
        ({"classes": [{"name": "a", "arrivals": closed(9, CONSTANT), **LENGTHS}]}, True),
        ({"arrivals": closed(9, 20)}, False),
        ({"arrivals": closed(1, CONSTANT)}, False),
        ({"arrivals": closed(9, 0)}, False),
        ({"arrivals": closed(9, {"kind": "constant", "value": 0})}, False),
        ({"arrivals": closed(9, CONSTANT), "sessions": {"turns": 3, "think_time_s": 20}}, False),
        ({"arrivals": {"kind": "poisson", "rate": 1}, "sessions": {"turns": 3, "think_time_s": CONSTANT}}, False),
        ({"arrivals": {"kind": "batch"}, "sessions": {"turns": 3, "think_time_s": 20}}, False),
    ],
    ids=str,
)
def test_a_population_in_step_is_warned_about(load: dict[str, Any], said: bool) -> None:
    lengths = {} if "classes" in load else LENGTHS
    spec = WorkloadSpec.model_validate({**lengths, **load, "requests": 90})
    found = build_workload(spec, seed=1, base_dir=Path()).warnings
    assert any("synchronised" in text for text in found) is said


def test_a_short_loop_holds_those_who_come_in_time() -> None:
    w = build(1, arrivals=closed(300, 1000), duration=100)
    known = w.arrival_s[~np.isnan(w.arrival_s)]
    assert 10 < len(known) < 50
    assert known.max() <= 100
    with pytest.raises(InputError, match="no request arrives"):
        build(1, arrivals=closed(1, {"kind": "constant", "value": 1e9}), duration=1)


def test_a_file_of_think_times(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("0\n0.5\n4\n")
    law = {"kind": "empirical", "file": "t.txt"}
    spec = WorkloadSpec.model_validate({**LENGTHS, "arrivals": closed(3, law), "requests": 300})
    w = build_workload(spec, seed=0, base_dir=tmp_path)
    assert w.think_s is not None
    assert set(w.think_s.tolist()) == {0, 0.5, 4}
