"""What benchmark clients recorded of each request replays as it was sent, whichever client wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.spec import WorkloadSpec

Requests = list[tuple[int, int, int]]
"""Send time [ms], prompt, output."""
START_NS = 1_795_917_715_690_281_434
REQUESTS = st.lists(
    st.tuples(st.integers(0, 10**7), st.integers(1, 10**5), st.integers(1, 10**4)), min_size=1, max_size=20
).map(lambda rows: sorted(rows))


def aiperf(requests: Requests, **metadata: Any) -> str:
    rows = [
        {
            "metadata": {
                "request_start_ns": START_NS + ms * 10**6,
                "request_end_ns": START_NS + (ms + 5) * 10**6,
                **metadata,
            },
            "metrics": {
                "input_sequence_length": {"value": prompt, "unit": "tokens"},
                "output_sequence_length": {"value": output, "unit": "tokens"},
            },
            "error": None,
        }
        for ms, prompt, output in requests
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def guidellm(requests: Requests) -> dict[str, Any]:
    good = [
        {
            "request_id": str(i),
            "info": {
                "timings": {
                    "request_start": 1.7959177e9 + ms / 1e3,
                    "request_end": 1.7959177e9 + ms / 1e3 + 0.005,
                }
            },
            "prompt_tokens": prompt,
            "output_tokens": output,
        }
        for i, (ms, prompt, output) in enumerate(requests)
    ]
    bad = [{"request_id": "x", "info": {"timings": {}}, "prompt_tokens": None, "output_tokens": None}]
    return {
        "benchmarks": [{"metrics": {}, "requests": {"successful": good, "errored": bad, "incomplete": []}}]
    }


def bench(requests: Requests, **more: Any) -> str:
    times, prompts, outputs = zip(*requests, strict=True)
    return json.dumps(
        {
            "input_lens": prompts,
            "output_lens": outputs,
            "start_times": [83.25 + ms / 1e3 for ms in times],
            **more,
        }
    )


def own(requests: Requests) -> str:
    return "arrival_s,prompt_tokens,output_tokens\n" + "".join(
        f"{ms / 1e3},{p},{o}\n" for ms, p, o in requests
    )


def build(path: Path, text: str, **spec: Any) -> Workload:
    path.write_text(text)
    return build_workload(
        WorkloadSpec.model_validate({"trace": path.name, **spec}), seed=0, base_dir=path.parent
    )


@settings(max_examples=15)
@given(REQUESTS)
def test_every_client_tells_the_same_requests(
    tmp_path_factory: pytest.TempPathFactory, requests: Requests
) -> None:
    folder = tmp_path_factory.getbasetemp()
    expected = build(folder / "own.csv", own(requests))
    files = {
        "aiperf.jsonl": ("aiperf", aiperf(requests)),
        "guidellm.json": ("guidellm", json.dumps(guidellm(requests))),
        "guidellm.yaml": ("guidellm", yaml.safe_dump(guidellm(requests))),
        "vllm.json": ("vllm-bench", bench(requests)),
        "vllm.jsonl": ("vllm-bench", bench(requests) + "\n"),
        "sglang.jsonl": (
            "sglang-bench",
            bench(requests, mean_e2e_latency_ms=3.0, errors=[""] * len(requests)) + "\n",
        ),
    }
    for name, (kind, text) in files.items():
        found = build(folder / name, text)
        assert found.source["format"] == kind
        assert found.arrival_s == pytest.approx(expected.arrival_s, abs=1e-6), name
        assert sorted(zip(found.prompt_tokens, found.output_tokens, strict=True)) == sorted(
            (p, o) for _, p, o in requests
        )
        assert found.duration_s == pytest.approx(expected.duration_s, abs=1e-6)


def test_what_failed_or_only_warmed_up_is_left_out(tmp_path: Path) -> None:
    good = aiperf([(0, 5, 6), (1000, 7, 8)])
    bad = aiperf([(500, 50, 60)], was_cancelled=True) + aiperf([(-900, 9, 9)], benchmark_phase="warmup")
    failed = json.dumps({"metadata": {}, "metrics": {}, "error": {"code": 500}}) + "\n"
    found = build(tmp_path / "profile_export.jsonl", bad + good + failed)
    assert found.arrival_s.tolist() == pytest.approx([0, 1])
    assert any(
        "3 of 5 rows dropped (failed, cancelled or warm-up requests)" in text for text in found.warnings
    )


def test_conversations_keep_their_turns(tmp_path: Path) -> None:
    text = "".join(
        aiperf([(ms, 10 + 20 * turn, 6)], conversation_id=talk, turn_index=turn)
        for ms, talk, turn in ((0, "a", 0), (100, "b", 0), (2000, "a", 1))
    )
    found = build(tmp_path / "t.jsonl", text)
    assert found.predecessor.tolist() == [-1, -1, 0]
    assert found.gap_s.tolist() == pytest.approx([0, 0, 1.995])  # from the end of the turn before
    assert found.session_id.tolist() == [0, -1, 0]


def test_benchmarks_one_after_the_other_are_named(tmp_path: Path) -> None:
    report = {"benchmarks": guidellm([(0, 5, 6)])["benchmarks"] + guidellm([(60_000, 7, 8)])["benchmarks"]}
    found = build(tmp_path / "benchmarks.json", json.dumps(report))
    assert found.arrival_s.tolist() == pytest.approx([0, 60], abs=1e-6)
    assert any("2 benchmarks follow one another" in text for text in found.warnings)


REFUSED: dict[str, tuple[str, str, str]] = {
    "summary of SGLang": ("s.jsonl", '{"mean_e2e_latency_ms": 3, "mean_ttft_ms": 3}\n', "SGLang's bench_serving"),
    "summary of vLLM": ("s.json", '{"mean_ttft_ms": 3, "duration": 4}', "vllm bench serve"),
    "summary of aiperf": ("s.json", '{"request_latency": {"unit": "ms"}, "request_throughput": {}}', "aiperf"),
    "summary of guidellm": ("s.csv", "Run Info,Request Latency\nRun ID,Successful Sec\n,Mean\nx,1.5\n", "guidellm"),
    "report without requests": ("s.json", '{"benchmarks": [{"metrics": {}}]}', "no requests"),
    "two results": ("s.jsonl", (bench([(0, 1, 1)]) + "\n") * 2, "2 results"),
    "no time": ("s.jsonl", '{"metadata": {}, "metrics": {}}\n', "request_start_ns is empty"),
    "an alias bomb": ("s.yaml", "a: &a [x]\nbenchmarks: [*a, *a]\n", "alias"),
    "endless YAML": ("s.yaml", "[" * 5000, "no valid YAML"),
    "deep YAML": ("s.yaml", "[" * 90 + "]" * 90, "deeper than 64"),
    "no YAML": ("s.yaml", "a: [1\n", "no valid YAML"),
    "a day that is none": ("s.yaml", "a: 2026-99-99\n", "no valid YAML"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_tells_no_requests_is_refused_in_words(case: str, tmp_path: Path) -> None:
    name, text, words = REFUSED[case]
    with pytest.raises(InputError, match=words) as caught:
        build(tmp_path / name, text)
    assert caught.value.mend
