"""A streamed workload is the built one, to the last bit, whatever the blocks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.io.tables import write_columns
from simulator.workload import streaming
from simulator.workload.build import build_workload
from simulator.workload.spec import WorkloadSpec
from simulator.workload.streaming import open_stream

LENGTHS = {
    "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 2000},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 300},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 700)
    monkeypatch.setattr(streaming, "ROWS_READ", 900)


def assert_same(fields: dict[str, Any], base: Path, warnings: bool = True) -> None:
    spec = WorkloadSpec.model_validate(fields)
    whole = build_workload(spec, seed=5, base_dir=base)
    stream = open_stream(spec, seed=5, base_dir=base, above=1000)
    assert stream is not None
    blocks = list(stream.blocks())
    assert all(len(block) == 700 for block in blocks[:-1])
    for name in (
        "arrival_s",
        "prompt_tokens",
        "output_tokens",
        "max_output_tokens",
        "predecessor",
        "session_id",
        "turn",
    ):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)
    if whole.request_ids is not None:
        assert tuple(n for block in blocks for n in block.request_ids or ()) == whole.request_ids
    if np.isfinite(stream.duration_s):
        assert stream.duration_s == whole.duration_s
    else:
        assert float(blocks[-1].arrival_s[-1]) == whole.duration_s
    assert stream.source == whole.source
    assert sorted(stream.warnings) == sorted(whole.warnings)


@pytest.mark.parametrize(
    "arrivals",
    [
        {"kind": "poisson", "rate": 50},
        {"kind": "gamma", "rate": 50, "cv": 2},
        {"kind": "constant", "rate": 50},
        {"kind": "onoff", "rate_on": 90, "rate_off": 10, "on_s": 5, "off_s": 5},
        {"kind": "diurnal", "rate": 50, "peak_to_mean": 1.8, "period_s": 60},
    ],
    ids=lambda a: str(a["kind"]),
)
@pytest.mark.parametrize("end", [{"duration": 200}, {"requests": 5000}], ids=str)
@pytest.mark.parametrize(
    "limit", [{}, {"max_output_tokens": {"kind": "uniform", "low": 100, "high": 400}}], ids=["", "limit"]
)
def test_drawn_requests(
    arrivals: dict[str, Any], end: dict[str, Any], limit: dict[str, Any], tmp_path: Path
) -> None:
    assert_same({"arrivals": arrivals, **LENGTHS, **end, **limit}, tmp_path)


def columns(n: int = 3000) -> dict[str, Any]:
    rng = np.random.default_rng(2)
    return {
        "arrival_s": np.cumsum(rng.exponential(0.1, n)),
        "prompt_tokens": rng.integers(1, 900, n),
        "output_tokens": rng.integers(1, 300, n),
    }


def write(path: Path, data: dict[str, Any]) -> None:
    rows = [
        dict(zip(data, values, strict=True))
        for values in zip(*(c.tolist() for c in data.values()), strict=True)
    ]
    if path.suffix == ".parquet":
        write_columns(data, path)
        return
    if ".jsonl" in path.name:
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = ",".join(data) + "\n" + "".join(",".join(map(repr, row.values())) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.parquet", "t.csv.gz"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"window": [20, 250], "rate_scale": 2.0},
        {"limit": 1400, "max_output_tokens": {"kind": "constant", "value": 120}},
        {"duration": 150},
        {"duration": 5000},
    ],
    ids=str,
)
def test_recorded_requests(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path / name, columns())
    assert_same({"trace": name, **options}, tmp_path)


def test_calendar_times_count_from_the_first(tmp_path: Path) -> None:
    data = columns(2000)
    stamps = np.datetime64("2024-05-10T00:00:00.000009") + (data["arrival_s"] * 1e6).astype("timedelta64[us]")
    lines = [
        f"{t},{p},{o}" for t, p, o in zip(stamps, data["prompt_tokens"], data["output_tokens"], strict=True)
    ]
    lines[5] = f"{stamps[5]},7,0"  # dropped: no tokens
    (tmp_path / "azure.csv").write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(lines) + "\n")
    assert_same({"trace": "azure.csv"}, tmp_path)


@pytest.mark.parametrize(
    "fields",
    [
        {"arrivals": {"kind": "batch"}, **LENGTHS, "requests": 5000},
        {"arrivals": {"kind": "closed_loop", "concurrency": 4}, **LENGTHS, "requests": 5000},
        {
            "arrivals": {"kind": "poisson", "rate": 50},
            **LENGTHS,
            "duration": 200,
            "sessions": {"turns": {"kind": "constant", "value": 2}},
        },
        {
            "arrivals": {"kind": "poisson", "rate": 50},
            **LENGTHS,
            "duration": 200,
            "shared_prefix": {"groups": 1, "tokens": 10},
        },
        {"arrivals": {"kind": "poisson", "rate": 50}, **LENGTHS, "duration": 10},
        {"trace": "azure-conv-2023"},
    ],
    ids=["batch", "closed-loop", "sessions", "prefix", "few", "shipped"],
)
def test_what_cannot_be_streamed_is_built_whole(fields: dict[str, Any], tmp_path: Path) -> None:
    assert open_stream(WorkloadSpec.model_validate(fields), seed=1, base_dir=tmp_path, above=1000) is None


@pytest.mark.parametrize("change", ["order", "session", "few"])
def test_a_trace_that_needs_all_of_itself_is_built_whole(change: str, tmp_path: Path) -> None:
    data = columns(3000 if change != "few" else 1000)
    if change == "order":
        data["arrival_s"][2000] = 0.5
    if change == "session":
        data["session_id"] = np.arange(3000) // 2
    write(tmp_path / "t.csv", data)
    assert (
        open_stream(WorkloadSpec.model_validate({"trace": "t.csv"}), seed=1, base_dir=tmp_path, above=1000)
        is None
    )
