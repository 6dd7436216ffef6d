from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from hardware_profiles.errors import InputError
from simulator.workload.laws import sampler
from simulator.workload.lengths import Z99, lognormal_parameters, to_tokens
from simulator.workload.synthetic import Length

LENGTH = TypeAdapter(Length)
HERE = Path()


def draw(n: int = 200_000, seed: int = 0, base: Path = HERE, **spec: object) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return sampler(LENGTH.validate_python(spec), rng, base, "prompt_tokens")(n)


@given(mean=st.floats(1, 1e6), ratio=st.floats(1.0, 14.9))
def test_lognormal_meets_mean_and_p99_exactly(mean: float, ratio: float) -> None:
    mu, sigma = lognormal_parameters(mean, mean * ratio)
    assert math.exp(mu + sigma**2 / 2) == pytest.approx(mean, rel=1e-9)
    assert math.exp(mu + Z99 * sigma) == pytest.approx(mean * ratio, rel=1e-9)
    assert 0 <= sigma <= Z99


def test_lognormal_samples_agree() -> None:
    x = draw(kind="lognormal", mean=512, p99=4000)
    assert x.mean() == pytest.approx(512, rel=0.02)
    assert np.percentile(x, 99) == pytest.approx(4000, rel=0.03)


def test_lognormal_out_of_reach_says_why() -> None:
    with pytest.raises(ValueError, match="reaches at most"):
        LENGTH.validate_python({"kind": "lognormal", "mean": 100, "p99": 1600})
    with pytest.raises(ValueError, match="below the mean"):
        LENGTH.validate_python({"kind": "lognormal", "mean": 100, "p99": 50})


def test_other_kinds_have_their_moments() -> None:
    assert set(draw(10, kind="constant", value=7).tolist()) == {7}
    x = draw(kind="uniform", low=10, high=20)
    assert (x.min(), x.max()) == (10, 20)
    assert x.mean() == pytest.approx(15, rel=0.01)
    y = draw(kind="normal", mean=1000, std=100)
    assert y.mean() == pytest.approx(1000, rel=0.01)
    assert y.std() == pytest.approx(100, rel=0.02)


def test_quantiles_hold_their_atoms_and_lines() -> None:
    x = draw(kind="empirical", quantiles={"p0": 1, "p25": 100, "p75": 100, "p100": 1001})
    assert (x == 100).mean() == pytest.approx(0.5, abs=0.01)
    assert np.percentile(x, 87.5) == pytest.approx(550, rel=0.03)


def test_empirical_files(tmp_path: Path) -> None:
    (tmp_path / "lengths.txt").write_text("5\n5\n9\n")
    (tmp_path / "lengths.csv").write_text("prompt_tokens,output_tokens\n5,1\n9,1\n")
    assert draw(kind="empirical", file="lengths.txt", base=tmp_path).mean() == pytest.approx(19 / 3, rel=0.01)
    assert set(draw(kind="empirical", file="lengths.csv", base=tmp_path).tolist()) == {5, 9}
    (tmp_path / "bad.txt").write_text("5\nx\n")
    with pytest.raises(InputError, match="no number"):
        draw(kind="empirical", file="bad.txt", base=tmp_path)
    with pytest.raises(InputError, match="No such file"):
        draw(kind="empirical", file="none.txt", base=tmp_path)


def test_bounds_clip() -> None:
    x = draw(kind="normal", mean=100, std=50, min=90, max=110)
    assert (x.min(), x.max()) == (90, 110)
    assert (x == 90).mean() == pytest.approx(0.417, abs=0.01)  # Phi((90.5 - 100) / 50)
    assert to_tokens(np.asarray([-3.0, 0.2]), None, None).tolist() == [1, 1]


def test_a_bare_number_is_constant() -> None:
    assert LENGTH.validate_python(12).value == 12


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"kind": "constant", "value": 0}, "above zero"),
        ({"kind": "constant", "value": float("nan")}, "NaN"),
        ({"kind": "constant", "value": "many"}, "not a number"),
        ({"kind": "uniform", "low": 5, "high": 4}, "no whole number"),
        ({"kind": "normal", "mean": 5, "std": -1}, "negative"),
        ({"kind": "normal", "mean": 5, "std": 1, "min": 9, "max": 3}, "min .* above max"),
        ({"kind": "empirical"}, "either quantiles or file"),
        ({"kind": "empirical", "quantiles": {"p50": 9, "p99": 3}}, "decrease"),
        ({"kind": "empirical", "quantiles": {"p50": 9, "p101": 30}}, "no percentile"),
        ({"kind": "empirical", "quantiles": {"p50": 9, "50": 30}}, "given twice"),
    ],
)
def test_impossible_lengths(spec: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LENGTH.validate_python(spec)
