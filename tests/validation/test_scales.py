"""Scales of errors on known hierarchies: what is recovered, how it shrinks, and what a source left out falls inside."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simulator.results.scales import FACTORS, Scale
from simulator.validation.scales import (
    ALIKE,
    OTHER_ENGINE,
    SPREAD,
    Sized,
    by_cluster,
    by_source,
    cells_of,
    derive_scale,
    fit_scale,
    weighted_quantile,
)


def levels(device: str = "d", source: str = "") -> tuple[str, ...]:
    told = {"source": source, "device": device, "setting": f"e/{device}"}
    return tuple(told.get(factor, factor) for factor in FACTORS)


def drawn(rng: np.random.Generator, device: str, scale: float, clusters: int, each: int, first: int = 0) -> list[Sized]:
    """Laplace errors of clusters on a device, each of a source of its own."""
    sizes = rng.laplace(0, scale, (clusters, each))
    return [Sized((f"s{first + c}",), levels(device), float(size)) for c in range(clusters) for size in sizes[c]]


def width(scale: Scale, device: str = "d", source: str = "") -> float:
    return scale.half_width(dict(zip(FACTORS, levels(device, source), strict=True)))


def test_one_class_has_the_quantile_of_its_errors() -> None:
    """Of a Laplace law of mean size m nine of ten lie within m ln 10."""
    found = derive_scale(drawn(np.random.default_rng(1), "d", 0.05, 16, 60), 0.9)
    assert width(found) == pytest.approx(0.05 * math.log(10), rel=0.1)
    assert abs(found.log_ratio) < 0.01
    assert (found.experiments, found.sources) == (960, 16)


def test_the_mode_balances_evidence_and_prior() -> None:
    """At the mode of each level: sum of values times (size / scale - 1) = effect / spread squared."""
    told = {"far": (3, 0.3), "near": (5, 0.02)}
    values = [Sized((name,), levels(name), size) for name, (count, size) in told.items() for _ in range(count)]
    found = fit_scale(cells_of(values))
    for name, (count, size) in told.items():
        apart = dict(zip(SPREAD, Sized((name,), levels(name), size).effects, strict=True))
        scale = math.exp(found.log_base_width + sum(found.factors[f][level] for f, level in apart.items()))
        left = count * (size / scale - 1)
        for factor in ("source", "device", "setting", "cluster"):
            assert left == pytest.approx(found.factors[factor][apart[factor]] / SPREAD[factor] ** 2, abs=1e-4)
    few, many = (
        [Sized((f"{name}{i}",), levels(name), size) for name, size in (("far", 0.3), ("near", 0.1)) for i in range(count)]
        for count in (1, 40)
    )
    assert 1.02 < width(fit_scale(cells_of(few)), "far") / width(fit_scale(cells_of(few)), "near") < 1.5
    assert 2.4 < width(fit_scale(cells_of(many)), "far") / width(fit_scale(cells_of(many)), "near") < 3.0


def test_devices_that_err_unlike_are_covered_alike() -> None:
    """Where one scale for both would hold all values of the one and too few of the other."""
    rng = np.random.default_rng(5)
    known = [*drawn(rng, "good", 0.03, 16, 16), *drawn(rng, "bad", 0.12, 8, 16, first=50)]
    found = derive_scale(known, 0.9)
    pooled = weighted_quantile(np.array([abs(v.log_error) for v in known]), np.ones(len(known)), 0.9)
    inside = {}
    for device, scale in (("good", 0.03), ("bad", 0.12)):
        new = np.abs([v.log_error for v in drawn(rng, device, scale, 200, 5)])
        inside[device] = float(np.mean(new <= width(found, device))), float(np.mean(new <= pooled))
    assert all(0.85 <= share <= 0.95 for share, _ in inside.values())
    assert inside["good"][1] > 0.97
    assert inside["bad"][1] < 0.8


def publishers(rng: np.random.Generator, sources: int, large: int, bias: float) -> list[Sized]:
    """A source of many clusters that is told, and others of one: each errs by an amount of its own, about a common bias.

    Members of a cluster differ by 0.03, clusters of a source by 0.05, sources by 0.15.
    """
    out = []
    for number in range(sources):
        name, own = f"s{number}", rng.normal(bias if number else 0.0, 0.15 if number else 0.0)
        for cluster in range(large if number == 0 else 1):
            at = own + rng.normal(0, 0.05)
            told = levels(source="" if number else name)
            out += [Sized((name, f"m{cluster}"), told, at + rng.normal(0, 0.03)) for _ in range(8)]
    return out


def test_a_further_source_is_held_however_many_rows_another_has() -> None:
    """About nine of ten values of sources that were not seen, and of models of the one that was, in the mean of some trials; one
    width for all rows alike, half of them of one source, holds fewer of the first."""
    rng = np.random.default_rng(3)
    further, own, alike = [], [], []
    for _ in range(12):
        known = publishers(rng, 16, 16, bias=-0.1)
        found = derive_scale(known, 0.9)
        pooled = weighted_quantile(np.abs([v.log_error for v in known]), np.ones(len(known)), 0.9)
        new = np.array([v.log_error for v in publishers(rng, 60, 0, bias=-0.1)])
        further.append(np.mean(np.abs(new + found.log_ratio) <= width(found)))
        alike.append(np.mean(np.abs(new) <= pooled))
        models = np.array([v.log_error for v in publishers(rng, 1, 60, bias=0.0)])
        own.append(np.mean(np.abs(models) <= width(found, source="s0")))
        assert width(found) > 1.2 * width(found, source="s0")
    assert 0.84 <= np.mean(further) <= 0.95
    assert 0.84 <= np.mean(own) <= 0.95
    assert np.mean(alike) < np.mean(further) - 0.04


def test_intervals_of_further_sources_lie_about_their_median_and_of_a_known_one_about_the_prediction() -> None:
    found = derive_scale(publishers(np.random.default_rng(4), 30, 5, bias=-0.2), 0.9)
    told, other = (dict(zip(FACTORS, levels(source=source), strict=True)) for source in ("s0", "another"))
    assert found.center(other) == pytest.approx(0.2, abs=0.08)
    assert found.center(told) == 0.0
    assert found.factors["source"].keys() == {"s0"}


def test_what_was_never_measured_is_wider_and_said() -> None:
    found = derive_scale(drawn(np.random.default_rng(2), "d", 0.05, 15, 5), 0.9)
    here, there = (dict(zip(FACTORS, levels(name), strict=True)) for name in ("d", "new"))
    unseen = (SPREAD["device"] ** 2 + SPREAD["setting"] ** 2) / 2
    known = found.factors["device"]["d"] + found.factors["setting"]["e/d"]
    assert found.half_width(there) == pytest.approx(found.half_width(here) * math.exp(unseen - known))
    assert found.half_width(there) > found.half_width(here)
    other = found.half_width(here | {"engine": "x"}) / found.half_width(here)
    assert other == pytest.approx(math.exp(OTHER_ENGINE - found.factors["engine"]["engine"]))
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
    assert by_cluster(alike).sum() == pytest.approx(10 / (1 + 9 * ALIKE))
    assert by_cluster(apart).sum() == 10
    assert by_source([*alike, *apart]).sum() == pytest.approx(11)
