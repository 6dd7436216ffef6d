"""Scales of errors on known hierarchies: what is recovered, how it shrinks, and what a cluster left out falls inside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.results.scales import FACTORS, Scale
from simulator.validation.scales import (
    ALIKE,
    SPREAD,
    Sized,
    cells_of,
    derive_scale,
    fit_scale,
    weighted_quantile,
    weights_of,
)


def levels(device: str = "d") -> tuple[str, ...]:
    return tuple({"device": device, "setting": f"e/{device}"}.get(factor, factor) for factor in FACTORS)


def drawn(rng: np.random.Generator, device: str, scale: float, clusters: int, each: int, first: int = 0) -> list[Sized]:
    """Laplace errors of clusters on a device."""
    sizes = rng.exponential(scale, (clusters, each))
    return [Sized((f"s{first + c}",), levels(device), float(size)) for c in range(clusters) for size in sizes[c]]


def width(scale: Scale, device: str = "d") -> float:
    return scale.half_width(dict(zip(FACTORS, levels(device), strict=True)))


def test_one_class_has_the_quantile_of_its_errors() -> None:
    """Of an exponential law with mean m nine of ten lie below m ln 10."""
    found = derive_scale(drawn(np.random.default_rng(1), "d", 0.05, 120, 1), 0.9)
    assert width(found) == pytest.approx(0.05 * math.log(10), rel=0.15)
    assert (found.experiments, found.sources) == (120, 120)


def test_the_mode_balances_evidence_and_prior() -> None:
    """At the mode of each level: sum of weights times (size / scale - 1) = effect / spread squared."""
    told = {"far": (3.0, 0.9), "near": (5.0, 0.1)}
    found = fit_scale({levels(name): cell for name, cell in told.items()})

    def mode(factor: str, level: str, weight: float) -> float:
        return found.factors[factor][level] - 1 / (weight + SPREAD[factor] ** -2) / 2

    for name, (weight, sizes) in told.items():
        named = dict(zip(FACTORS, levels(name), strict=True))
        apart = {f: mode(f, level, weight if f in ("device", "setting") else 8.0) for f, level in named.items()}
        left = sizes / math.exp(found.log_base_width + sum(apart.values())) - weight
        assert left == pytest.approx(apart["device"] / SPREAD["device"] ** 2, abs=1e-4)
        assert left == pytest.approx(apart["setting"] / SPREAD["setting"] ** 2, abs=1e-4)
    alone = fit_scale({levels(): (4.0, 0.2)})
    assert alone.log_base_width == pytest.approx(math.log(0.05), rel=1e-4)
    many = {levels("far"): (1e6, 3e5), levels("near"): (1e6, 1e5)}
    assert width(fit_scale(many), "far") / width(fit_scale(many), "near") == pytest.approx(3.0, rel=1e-3)
    few = fit_scale({levels("far"): (1.0, 0.3), levels("near"): (1.0, 0.1)})
    assert 1.05 < width(few, "far") / width(few, "near") < 1.5


def test_devices_that_err_unlike_are_covered_alike() -> None:
    """Where one scale for both would hold all values of the one and too few of the other."""
    rng = np.random.default_rng(5)
    known = [*drawn(rng, "good", 0.03, 30, 8), *drawn(rng, "bad", 0.12, 15, 8, first=50)]
    found = derive_scale(known, 0.9)
    pooled = weighted_quantile(np.array([v.log_error for v in known]), np.ones(len(known)), 0.9)
    inside = {}
    for device, scale in (("good", 0.03), ("bad", 0.12)):
        new = np.array([v.log_error for v in drawn(rng, device, scale, 200, 5)])
        inside[device] = float(np.mean(new <= width(found, device))), float(np.mean(new <= pooled))
    assert all(0.85 <= share <= 0.95 for share, _ in inside.values())
    assert inside["good"][1] > 0.97
    assert inside["bad"][1] < 0.8


def test_what_was_never_measured_is_wider_and_said() -> None:
    found = derive_scale(drawn(np.random.default_rng(2), "d", 0.05, 40, 5), 0.9)
    here, there = (dict(zip(FACTORS, levels(name), strict=True)) for name in ("d", "new"))
    unseen = (SPREAD["device"] ** 2 + SPREAD["setting"] ** 2) / 2
    known = found.factors["device"]["d"] + found.factors["setting"]["e/d"]
    assert found.half_width(there) == pytest.approx(found.half_width(here) * math.exp(unseen - known))
    assert found.half_width(there) > found.half_width(here)
    assert found.reasons(here) == []
    assert found.reasons(there) == ["never measured: new"]
    assert found.reasons(here | {"setting": "x"}) == ["never measured: this engine, device, kind of model and format together"]


def test_words_name_what_widens_most_first() -> None:
    factors = {"load": {"batch": math.log(2.4)}, "model": {"latent": math.log(1.6)}, "engine": {"e": 0.05}}
    scale = Scale(-1.5, factors, {"device": 0.03})
    said = scale.reasons({"load": "batch", "model": "latent", "engine": "e", "device": "d"})
    assert said == ["batch err 2.4 times as much", "latent err 1.6 times as much", "never measured: d"]
    assert Scale.read(scale.as_dict()).half_width({"load": "batch"}) == pytest.approx(2.4 * math.exp(-1.5), rel=1e-3)


def test_members_of_a_cluster_count_less_than_as_many_sources() -> None:
    alike = [Sized(("s",), levels(), 0.1)] * 10
    apart = [Sized((f"s{i}",), levels(), 0.1) for i in range(10)]
    assert sum(weights_of(alike)) == pytest.approx(10 / (1 + 9 * ALIKE))
    assert sum(weights_of(apart)) == 10
    assert cells_of(alike, weights_of(alike))[levels()][1] == pytest.approx(0.1 * sum(weights_of(alike)))
