"""A trace's prompts in order at other times, and pools of prompts that come again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

import simulator.run
from simulator.cluster.content import SharedContents
from simulator.io.tables import read_columns
from simulator.run import simulate
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.spec import WorkloadSpec
from simulator.workload.streaming import open_stream
from tests.effort import examples

LENGTHS = {
    "prompt_tokens": {"kind": "lognormal", "mean": 100, "p99": 700},
    "output_tokens": {"kind": "lognormal", "mean": 50, "p99": 300},
}
PROMPTS, OUTPUTS = [500, 300, 800, 200, 900], [9, 7, 5, 3, 8]
BATCH = {"kind": "batch"}
LOOP = {"kind": "closed_loop", "concurrency": 2}
POISSON = {"kind": "poisson", "rate": 5}


def build(base: Path, seed: int = 0, **spec: Any) -> Workload:
    return build_workload(WorkloadSpec.model_validate(spec), seed=seed, base_dir=base)


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    rows = zip([0, 100, 200, 300, 400], PROMPTS, OUTPUTS, ["1 2", "1 3", "", "1 2 4", ""], strict=True)
    text = "arrival_s,prompt_tokens,output_tokens,prefix_ids\n" + "".join(f"{a},{b},{c},{d}\n" for a, b, c, d in rows)
    (tmp_path / "t.csv").write_text(text)
    return tmp_path


@pytest.mark.parametrize("arrivals", [BATCH, LOOP, POISSON, {"kind": "gamma", "rate": 3, "cv": 2}], ids=str)
def test_a_trace_gives_its_lengths_in_order_and_the_arrivals_their_times(arrivals: Any, trace: Path) -> None:
    w = build(trace, trace="t.csv", prefix_block_tokens=64, arrivals=arrivals)
    assert w.prompt_tokens.tolist() == PROMPTS
    assert w.output_tokens.tolist() == OUTPUTS
    assert w.content is not None
    shared = [SharedContents(w.content, w.prompt_tokens, w.output_tokens).of(row)[1] for row in range(5)]
    assert shared == [128, 64, 0, 128, 0]
    assert w.source["kind"] == "trace"
    known = w.arrival_s[~np.isnan(w.arrival_s)]
    assert known.max() < 100  # not the recorded times
    if arrivals == LOOP:
        assert w.predecessor.tolist() == [-1, -1, -2, -2, -2]
    if arrivals == POISSON:  # those of any load of this rate
        assert known.tolist() == build(trace, arrivals=POISSON, **LENGTHS, requests=5).arrival_s.tolist()


def test_what_cuts_a_trace_cuts_its_prompts(trace: Path) -> None:
    timed = {"trace": "t.csv", "prefix_block_tokens": 64, "arrivals": BATCH}
    assert build(trace, **timed, limit=3).prompt_tokens.tolist() == PROMPTS[:3]
    assert build(trace, **timed, requests=2).prompt_tokens.tolist() == PROMPTS[:2]
    assert build(trace, **timed, window=[100, 350]).prompt_tokens.tolist() == PROMPTS[1:4]
    cut = build(trace, **timed, max_output_tokens=6)
    assert cut.output_tokens.tolist() == [6, 6, 5, 3, 6]
    assert any("3 outputs are cut" in text for text in cut.warnings)
    assert any("1 output is cut" in text for text in build(trace, **timed, max_output_tokens=8).warnings)
    weighted = [{"name": "a", "weight": 3, **timed, "arrivals": LOOP}, {"name": "b", "arrivals": POISSON, **LENGTHS}]
    both = build(trace, classes=weighted, duration=50)
    assert both.prompt_tokens[both.class_index == 0].tolist() == PROMPTS


def test_sessions_of_a_trace_keep_their_content_and_lose_their_times(tmp_path: Path) -> None:
    rows = [{"arrival_s": 9.0 * i, "prompt_tokens": 100 + 50 * i, "output_tokens": 10, "session_id": 1} for i in range(4)]
    (tmp_path / "s.jsonl").write_text("\n".join(map(json.dumps, rows)))
    w = build(tmp_path, trace="s.jsonl", arrivals=BATCH)
    assert not w.arrival_s.any()
    assert (w.session_id == -1).all()
    assert w.content is not None
    shared = SharedContents(w.content, w.prompt_tokens, w.output_tokens)
    assert [shared.of(row)[1] for row in (1, 2)] == [150, 200]


def test_max_concurrency_over_a_trace_runs_to_its_end(trace: Path) -> None:
    scenario = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
        "workload": {"trace": str(trace / "t.csv"), "prefix_block_tokens": 64, "arrivals": LOOP},
    }
    run = simulate(scenario)
    assert run.result["totals"]["completed"] == 5
    assert run.result["totals"]["max_concurrent_requests"] == 2
    more = simulate({**scenario, "workload": {**scenario["workload"], "requests": 9}})  # type: ignore[dict-item]
    assert any("4 of 9 requests were never sent" in text for text in more.result["warnings"])
    again = simulate({**scenario, "workload": {**scenario["workload"], "requests": 9, "prompt_pool": 4}})  # type: ignore[dict-item]
    table = again.requests_frame()
    assert table["prompt_tokens"].tolist() == (PROMPTS[:4] * 3)[:9]
    # all but the last token of what was there before is found, whole blocks of 16
    assert table["cached_tokens"].tolist()[4:8] == [(p - 1) // 16 * 16 for p in PROMPTS[:4]]


@given(n=st.integers(1, 30), requests=st.integers(1, 90), groups=st.integers(0, 3), seed=st.integers(0, 50))
@settings(max_examples=examples(40))
def test_a_pool_is_the_first_prompts_again_and_again(n: int, requests: int, groups: int, seed: int) -> None:
    extra = {"shared_prefix": {"groups": groups, "tokens": 32}} if groups else {}
    load = {"arrivals": POISSON, **LENGTHS, **extra, "requests": requests}
    plain, w = build(Path(), seed, **load), build(Path(), seed, **load, prompt_pool=n)
    place = np.arange(requests) % n
    for name in ("prompt_tokens", "output_tokens"):
        first = min(n, requests)
        assert np.array_equal(getattr(w, name), getattr(w, name)[place])
        assert np.array_equal(getattr(w, name)[:first], getattr(plain, name)[:first])
    assert np.array_equal(w.arrival_s, plain.arrival_s)
    assert w.content is not None
    ends = np.add.reduceat(w.content.length, w.content.start[:-1])
    assert np.array_equal(ends, w.prompt_tokens)
    last = w.content.segment[w.content.start[1:] - 1]
    assert (last[:, None] == last[None, :]).tolist() == (place[:, None] == place[None, :]).tolist()


@pytest.mark.parametrize("loop", [POISSON, {**LOOP, "think_time_s": 0.1}, BATCH], ids=str)
def test_a_streamed_pool_is_the_built_one(loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = WorkloadSpec.model_validate({"arrivals": loop, **LENGTHS, "requests": 3000, "prompt_pool": 70})
    assert open_stream(spec, seed=1, base_dir=tmp_path, above=1000) is not None
    scenario = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
        "workload": spec.model_dump(mode="json") | {"requests": 400},
    }
    whole = simulate(scenario)
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 100)
    parts = simulate(scenario)
    assert isinstance(parts.requests, Path)
    found = read_columns(parts.requests)
    for name in ("arrival_s", "prompt_tokens", "cached_tokens", "end_s"):
        assert np.array_equal(np.asarray(found[name], float), np.asarray(whole.requests[name], float), equal_nan=True)  # type: ignore[index]


@pytest.mark.parametrize(
    ("load", "words"),
    [
        ({"trace": "t.csv", "arrivals": BATCH, "rate_scale": 2}, "rate_scale belongs to recorded times"),
        ({"trace": "t.csv", "arrivals": BATCH, "jitter_s": 2}, "jitter_s belongs to recorded times"),
        ({"trace": "t.csv", "arrivals": BATCH, "sessions": {"replay": "absolute"}}, "absolute belongs to recorded times"),
        ({"trace": "t.csv", "arrivals": BATCH, "prompt_tokens": 3}, "give one form or the other"),
        ({"trace": "t.csv", "prompt_pool": 3}, "prompt_pool belongs to arrivals"),
        ({"arrivals": LOOP, **LENGTHS, "requests": 9, "prompt_pool": 3, "sessions": {"turns": 2}}, "exclude each other"),
        ({"trace": "t.csv", "arrivals": BATCH, "prompt_pool": 3}, "batch arrivals need requests"),
    ],
)
def test_what_does_not_go_together_is_refused(load: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        WorkloadSpec.model_validate(load)
