from __future__ import annotations

import pytest
from pydantic import ValidationError

from simulator.workload.spec import WorkloadSpec

POISSON = {"kind": "poisson", "rate": 2}
LENGTHS = {
    "prompt_tokens": {"kind": "constant", "value": 10},
    "output_tokens": {"kind": "constant", "value": 5},
}
GOOD = {"arrivals": POISSON, **LENGTHS, "duration": 60}


def test_the_smallest_scenario_is_read() -> None:
    spec = WorkloadSpec.model_validate(GOOD)
    assert (spec.drain_s, spec.warmup, spec.duration) == (600, 0, 60)


def test_defaults_of_a_diurnal_day() -> None:
    arrivals = {"kind": "diurnal", "rate": 1, "peak_to_mean": 1.5}
    assert WorkloadSpec.model_validate({**GOOD, "arrivals": arrivals}).arrivals.period_s == 86400


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"arrivals": {"kind": "poisson", "rate": 0}}, "rate of zero"),
        ({"arrivals": {"kind": "poisson", "rate": -1}}, "negative"),
        ({"arrivals": {"kind": "poisson", "rate": float("nan")}}, "NaN"),
        ({"arrivals": {"kind": "poisson", "rate": float("inf")}}, "infinite"),
        ({"arrivals": {"kind": "poisson", "rate": "fast"}}, "not a number"),
        ({"arrivals": {"kind": "poison", "rate": 1}}, "poisson"),
        ({"arrivals": {"kind": "gamma", "rate": 1, "cv": 0}}, "above zero"),
        ({"arrivals": {"kind": "closed_loop", "concurrency": 0}}, "above zero"),
        ({"arrivals": {"kind": "diurnal", "rate": 1, "peak_to_mean": 3}}, "sinusoid"),
        ({"arrivals": {"kind": "batch"}}, "batch arrivals need requests"),
        ({"duration": None}, "nothing ends the arrivals"),
        ({"duration": -4}, "above zero"),
        ({"warmup": 60}, "leaves nothing"),
        ({"prompt_tokens": None}, "needs prompt_tokens"),
        ({"trace": "azure-conv-2023"}, "one form or the other"),
        ({"rate_scale": 2}, "one form or the other"),
        ({"classes": [{"name": "a", "arrivals": POISSON, **LENGTHS}]}, "beside classes"),
        ({"prefix_block_tokens": 16}, "belongs to a trace"),
        ({"sessions": {"replay": "gap"}}, "belongs to a trace"),
        ({"sessions": {"think_time_s": 3}}, "needs turns"),
        ({"burstiness": 2}, "burstiness"),
        ({"max_output_tokens": "same"}, "max_output_tokens"),
    ],
)
def test_refused_in_words(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        WorkloadSpec.model_validate({**GOOD, **change})


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "names no load"),
        ({"duration": 5}, "names no load"),
        ({"rate_scale": 2}, "no trace is named"),
        ({"trace": " "}, "trace is empty"),
        ({"trace": "x.csv", "rate_scale": 0}, "rate of zero"),
        ({"trace": "x.csv", "window": [5, 5]}, "is empty"),
        ({"trace": "x.csv", "trace_format": "azur"}, "azure"),
        ({"trace": "x.csv", "sessions": {"turns": 3}}, "belong to a synthetic"),
        ({"classes": []}, "classes"),
        ({"classes": [{"name": "a", **LENGTHS}]}, "needs arrivals"),
        ({"classes": [{"name": "a", "trace": "x"}] * 2}, "two classes are named 'a'"),
        ({"classes": [{"name": "a", "trace": "x", "weight": 0}]}, "above zero"),
        ({"classes": [{"name": "a", "trace": "x", "slo": {"ttft_ms": {"p98": 5}}}]}, "p9"),
        ({"classes": [{"name": "a", "trace": "x", "slo": {"attainment": 1.2}}]}, "fraction"),
    ],
)
def test_other_forms_refused_in_words(spec: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        WorkloadSpec.model_validate(spec)


def test_json_schema_exists() -> None:
    assert "arrivals" in WorkloadSpec.model_json_schema()["properties"]
