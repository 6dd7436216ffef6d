"""How far a deployment is from full: the highest load that it sustains and that keeps the SLO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.planning.budget import sustained
from simulator.planning.headroom import (
    FARTHEST,
    TOLERANCE,
    Headroom,
    Search,
    _Outcome,
    check_scalable,
    headroom,
    scaled,
)
from simulator.prepare import prepare
from simulator.run import run_prepared
from simulator.workload.spec import WorkloadSpec
from tests.effort import examples
from tests.terminal import typed

LENGTHS = {"prompt_tokens": 500, "output_tokens": 8}
SMALL: dict[str, Any] = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "l4-24gb", "engine_args": {"max_num_seqs": 4, "max_model_len": 2048}},
    "workload": {**LENGTHS, "arrivals": {"kind": "poisson", "rate": 2}, "duration": 60},
    "slo": {"ttft_ms": {"p99": 2000}},
}


def found(**changes: Any) -> Headroom:
    prepared = prepare(load_scenario({**SMALL, **changes}))
    return headroom(prepared, run_prepared(prepared))


def result_at(rate: float, **changes: Any) -> dict[str, Any]:
    workload = {**LENGTHS, "arrivals": {"kind": "poisson", "rate": rate}, "duration": 240}
    return run_prepared(prepare(load_scenario({**SMALL, "workload": workload, **changes}))).result


def test_above_the_limits_the_queue_grows_and_the_slo_breaks_and_below_neither() -> None:
    """Longer runs at other draws agree with the estimate to within a fifth."""
    limits = found()
    assert limits.unit == "requests/s"
    assert limits.sustainable is not None
    assert limits.within_slo is not None
    assert 2 < limits.within_slo <= limits.sustainable
    assert limits.used_share == limits.offered / limits.within_slo
    assert result_at(limits.sustainable * 1.2)["overload"] is not None
    assert result_at(limits.sustainable * 0.8)["overload"] is None
    assert not result_at(limits.within_slo * 1.2)["slo"]["holds"]
    assert result_at(limits.within_slo * 0.8)["slo"]["holds"]


def test_an_overloaded_run_finds_the_limit_below_it() -> None:
    above, below = found(workload={**SMALL["workload"], "arrivals": {"kind": "poisson", "rate": 15}}), found()
    assert above.used_share is not None
    assert above.used_share > 1
    assert above.sustainable == pytest.approx(below.sustainable, rel=0.15)
    assert above.within_slo == pytest.approx(below.within_slo, rel=0.15)


def test_an_slo_that_no_load_keeps_leaves_nothing() -> None:
    limits = found(slo={"ttft_ms": {"p50": 1}})
    assert limits.within_slo == 0
    assert limits.used_share is None
    assert limits.sustainable


def test_a_closed_loop_is_told_in_users() -> None:
    """4 rows: more users than that stand in the queue."""
    loop = {**SMALL["workload"], "arrivals": {"kind": "closed_loop", "concurrency": 2}}
    limits = found(workload=loop, slo={})
    assert (limits.unit, limits.offered, limits.judged) == ("users", 2, False)
    assert limits.sustainable is not None
    assert 4 <= limits.sustainable <= 6


def test_a_file_that_ends_too_soon_ends_the_search(tmp_path: Path) -> None:
    rows = "\n".join(f"{i / 2},200,20" for i in range(240))
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows + "\n")
    quick = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
    prepared = prepare(load_scenario({**SMALL, "deployment": quick, "workload": {"trace": str(tmp_path / "t.csv")}}))
    limits = headroom(prepared, run_prepared(prepared))
    assert limits.sustainable is None, "four times as fast it lasts 30 s"
    assert 4 < limits.tried < 10


@pytest.mark.parametrize(
    ("load", "key", "value"),
    [
        ({"arrivals": {"kind": "gamma", "rate": 2, "cv": 2}}, "rate", 6.0),
        ({"arrivals": {"kind": "onoff", "rate_on": 2, "rate_off": 1, "on_s": 1, "off_s": 1}}, "rate_off", 3.0),
        ({"arrivals": {"kind": "closed_loop", "concurrency": 5}}, "concurrency", 15),
    ],
)
def test_rates_and_concurrency_are_scaled(load: dict[str, Any], key: str, value: float) -> None:
    spec = WorkloadSpec.model_validate({**LENGTHS, **load, "duration": 10})
    assert getattr(scaled(spec, 3.0).arrivals, key) == value
    several = WorkloadSpec.model_validate({"classes": [{**LENGTHS, **load, "name": "a"}], "duration": 10})
    classes = scaled(several, 3.0).classes
    assert classes is not None
    assert getattr(classes[0].arrivals, key) == value


def test_a_trace_is_scaled_by_its_rate() -> None:
    spec = WorkloadSpec.model_validate({"trace": "azure-conv-2023", "rate_scale": 0.5})
    assert scaled(spec, 3.0).rate_scale == 1.5


def test_a_batch_has_no_rate() -> None:
    spec = WorkloadSpec.model_validate({**LENGTHS, "arrivals": {"kind": "batch"}, "requests": 10})
    with pytest.raises(InputError, match="a batch has no rate"):
        check_scalable(spec)


class Threshold(Search):
    """A search whose runs are sustained up to a factor."""

    def __init__(self, limit: float) -> None:
        self._limit, self._closed, self._spec = limit, False, WorkloadSpec.model_validate({"trace": "azure-conv-2023"})
        self.seen = {1.0: self._at(1.0)}

    def _at(self, factor: float) -> _Outcome:
        return _Outcome(factor, factor <= self._limit, None, None)

    def probe(self, factor: float) -> _Outcome | None:
        return self.seen.setdefault(factor, self._at(factor))


@settings(max_examples=examples(200))
@given(st.floats(-4, 4), st.none() | st.floats(-1, 1))
def test_bisection_ends_at_the_limit(exponent: float, near: float | None) -> None:
    """Wherever it begins."""
    limit = 10.0**exponent
    search = Threshold(limit)
    factor = search.highest(lambda outcome: outcome.sustained, None if near is None else 10.0**near)
    if limit >= FARTHEST:
        assert factor is None
    elif limit < 1 / FARTHEST:
        assert factor == 0
    else:
        assert factor is not None
        assert factor <= limit <= factor * (1 + TOLERANCE) * (1 + 1e-9)
    assert len(search.seen) < 24


# On the command line ----------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "small.yaml"
    path.write_text(json.dumps(SMALL))
    return path


def test_simulate_says_how_full_it_is(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = typed(monkeypatch, capsys, "simulate", str(small), "--headroom")
    assert code == 0
    (run,) = Path("runs").iterdir()
    result = json.loads((run / "result.json").read_text())
    limits = result["headroom"]
    assert limits["kind"] == "estimate"
    assert f"{limits['used']:.0%} used" in out
    assert "that keep the SLO" in out
    assert sustained(result).per_replica_per_s == limits["within_slo"]
    code, _, err = typed(
        monkeypatch, capsys, "simulate", str(small), "--headroom",
        "--set", "workload={arrivals: {kind: batch}, requests: 5, prompt_tokens: 10, output_tokens: 5}",
    )  # fmt: skip
    assert code == 2
    assert "a batch has no rate" in err


def test_a_sweep_has_a_column_of_it_and_resumes_what_lacks_it(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", str(small), "--vary", "deployment.replicas=1,2", "--output", "s", "--workers", "1"]
    code, out, _ = typed(monkeypatch, capsys, *words)
    assert code == 0
    assert "used" not in out
    code, out, err = typed(monkeypatch, capsys, *words, "--headroom", "--resume", "--json")
    assert code == 0
    assert "note: 0 of 2 points were there already" in err
    one, two = json.loads(out)["points"]
    assert two["headroom_used"] < one["headroom_used"] / 1.7
    code, out, err = typed(monkeypatch, capsys, *words, "--headroom", "--resume")
    assert "note: 2 of 2 points were there already" in err
    assert "used: the load offered over the highest that keeps the SLO" in " ".join(out.split())
