from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.workload import arrivals
from simulator.workload.describe import index_of_dispersion
from simulator.workload.streams import stream


def rng(seed: int = 1) -> np.random.Generator:
    return stream(seed, "arrivals")


def test_poisson_counts_have_mean_and_variance() -> None:
    times = arrivals.poisson(rng(), 10.0, 20_000.0)
    counts = np.bincount(times.astype(int), minlength=20_000)
    assert counts.mean() == pytest.approx(10, rel=0.02)
    assert counts.var() == pytest.approx(10, rel=0.04)
    gaps = np.diff(times)
    assert gaps.std() / gaps.mean() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("cv", [0.3, 1.0, 3.0])
def test_gamma_gaps_have_mean_and_cv(cv: float) -> None:
    gaps = np.diff(arrivals.gamma(rng(), 5.0, cv, math.inf, 300_000))
    assert gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.02)


def test_constant_is_a_grid() -> None:
    assert arrivals.constant(4.0, 1.0).tolist() == [0, 0.25, 0.5, 0.75]
    assert arrivals.constant(4.0, math.inf, 3).tolist() == [0, 0.25, 0.5]


def test_onoff_mean_rate_and_burstiness() -> None:
    times = arrivals.onoff(rng(), 20.0, 2.0, 30.0, 60.0, 200_000.0)
    assert len(times) / 200_000 == pytest.approx((20 * 30 + 2 * 60) / 90, rel=0.03)
    # Counts over windows far longer than the periods: the modulation adds
    # 2 (rate_on - rate_off)^2 (on off)^2 / (on + off)^3 / mean to the Poisson index of 1.
    mean = 8.0
    expected = 1 + 2 * 18**2 * (30 * 60) ** 2 / 90**3 / mean
    assert index_of_dispersion(times, 1000.0, 200_000.0) == pytest.approx(expected, rel=0.25)


def test_diurnal_mean_peak_and_trough() -> None:
    period = 10_000.0
    times = arrivals.diurnal(rng(), 5.0, 1.8, period, 20 * period)
    assert len(times) / (20 * period) == pytest.approx(5, rel=0.01)
    phase = times % period / period
    near_peak = np.abs(phase - 0.5) < 0.02
    near_trough = (phase < 0.02) | (phase > 0.98)
    assert near_peak.sum() / (20 * period * 0.04) == pytest.approx(9, rel=0.03)
    assert near_trough.sum() / (20 * period * 0.04) == pytest.approx(1, rel=0.1)


def test_bins_hold_their_counts() -> None:
    times = arrivals.fill_bins(rng(), np.asarray([0, 100, 300]), 10.0, 25.0)
    assert (np.diff(times) >= 0).all()
    assert ((times >= 10) & (times < 20)).sum() == 100
    assert (times >= 20).sum() == pytest.approx(150, abs=40)
    assert times.max() < 25


PROCESSES = {
    "poisson": lambda g, until, n: arrivals.poisson(g, 3.0, until, n),
    "gamma": lambda g, until, n: arrivals.gamma(g, 3.0, 2.0, until, n),
    "onoff": lambda g, until, n: arrivals.onoff(g, 6.0, 0.0, 5.0, 5.0, until, n),
    "diurnal": lambda g, until, n: arrivals.diurnal(g, 3.0, 2.0, 60.0, until, n),
}


@pytest.mark.parametrize("kind", PROCESSES)
@given(seed=st.integers(0, 2**32), short=st.floats(0.1, 300), more=st.floats(0, 3000))
@settings(max_examples=20)
def test_a_longer_horizon_only_appends(kind: str, seed: int, short: float, more: float) -> None:
    process = PROCESSES[kind]
    a, b = process(rng(seed), short, None), process(rng(seed), short + more, None)
    assert np.array_equal(a, b[: len(a)])
    assert (np.diff(b) >= 0).all()
    assert not len(b) or (b[0] >= 0 and b[-1] < short + more)
    assert np.array_equal(process(rng(seed), math.inf, len(a)), a)


@given(seed=st.integers(0, 2**63), names=st.lists(st.text(), min_size=2, max_size=5, unique=True))
def test_streams_do_not_depend_on_each_other(seed: int, names: list[str]) -> None:
    alone = stream(seed, names[0]).random(8)
    for name in names[1:]:
        stream(seed, name).random(100)
    assert np.array_equal(stream(seed, names[0]).random(8), alone)
    assert not np.array_equal(stream(seed + 1, names[0]).random(8), alone)
