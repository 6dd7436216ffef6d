"""The trace of a run for Perfetto: nothing is lost, spans nest, and it says what it leaves out."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from simulator import simulate
from simulator.report import perfetto
from simulator.run import RunResult

CHAT: dict[str, Any] = {
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 2},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 20},
        "prompt_tokens": {"kind": "constant", "value": 300},
        "output_tokens": {"kind": "uniform", "low": 5, "high": 60},
        "duration": 5,
    },
}
POOL = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
SPLIT = {**CHAT, "deployment": {"pools": [{"name": "p", "role": "prefill", **POOL}, {"name": "d", "role": "decode", **POOL}]}}


def events(run: RunResult) -> tuple[list[dict[str, Any]], str]:
    names = [f"r{row}" for row in range(len(run.workload))]
    data, left_out = perfetto.trace(run.raw, names, run.pools)
    return json.loads(gzip.decompress(data))["traceEvents"], left_out


@pytest.fixture(scope="module")
def chat() -> RunResult:
    return simulate(CHAT)


def test_all_steps_and_tokens_are_there(chat: RunResult) -> None:
    found, left_out = events(chat)
    slices = [e for e in found if e["ph"] == "X"]
    assert sum(e["args"]["steps"] for e in slices) == sum(len(log.end_s) for log in chat.raw.logs)
    assert sum(e["args"]["prompt tokens"] for e in slices) == int(chat.raw.prompt_tokens.sum())
    assert left_out == ""
    assert {e["pid"] for e in slices} == {1, 2}


def test_spans_of_a_request_open_and_close_and_cover_its_life(chat: RunResult) -> None:
    found, _ = events(chat)
    begun, ended = Counter(), Counter()
    whole: dict[str, list[float]] = {}
    for event in found:
        if event["ph"] in "be":
            (begun if event["ph"] == "b" else ended)[event["id"], event["name"]] += 1
            if event["name"] == event["id"]:
                whole.setdefault(event["id"], []).append(event["ts"])
    assert begun == ended
    for row, (start, end) in enumerate(whole[f"r{row}"] for row in range(len(chat.workload))):
        assert start == pytest.approx(1e6 * chat.raw.arrival_s[row], abs=1e-3)
        assert end == pytest.approx(1e6 * chat.raw.end_s[row], abs=1e-3)


def test_transfers_have_a_track_of_their_own() -> None:
    run = simulate(SPLIT)
    found, _ = events(run)
    track = next(e["pid"] for e in found if e["ph"] == "M" and e["args"]["name"] == "KV transfers")
    moved = [e["args"]["bytes"] for e in found if e["ph"] == "b" and e["pid"] == track]
    assert run.raw.handed is not None
    assert sorted(moved) == sorted(run.raw.handed.transfer_bytes.tolist())
    stages = {e["name"] for e in found if e["ph"] == "b" and e["id"] == "r3" and e["pid"] != track}
    assert stages >= {"prefill", "hand-over", "decode queue", "decode"}


def test_what_is_left_out_is_said(chat: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perfetto, "MAX_REQUESTS", 10)
    monkeypatch.setattr(perfetto, "MAX_RECORDS", 5)
    found, left_out = events(chat)
    assert len({e["id"] for e in found if e["ph"] == "b"}) == 10
    assert sum(e["ph"] == "X" for e in found) <= 6
    assert left_out.startswith("steps after ")
    assert left_out.endswith(" s; requests after the first 10")


def test_the_command_writes_it_and_off_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.cli import main

    (tmp_path / "s.yaml").write_text(json.dumps(CHAT))
    monkeypatch.chdir(tmp_path)
    for words in ([], ["--trace"]):
        monkeypatch.setattr("sys.argv", ["capacity-plan", "simulate", "s.yaml", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        written = list(tmp_path.glob("runs/*/trace.json.gz"))
        assert len(written) == len(words)
    assert json.loads(gzip.decompress(written[0].read_bytes()))["displayTimeUnit"] == "ms"
