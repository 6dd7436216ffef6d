"""A streamed workload is the built one, to the last bit, whatever the blocks."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulator.cluster.content import Shared, SharedContents
from simulator.io.tables import write_columns
from simulator.workload import drawn, streaming
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
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


def shared(blocks: list[Workload]) -> list[Shared | None]:
    """The shared contents of the rows, with segments numbered as they come."""
    numbers: dict[int, int] = {}
    found: list[Shared | None] = []
    for block in blocks:
        if block.content is None:
            found += [None] * len(block)
            continue
        contents = SharedContents(block.content, block.prompt_tokens, block.output_tokens)
        for row in range(len(block)):
            runs, tokens, output = contents.of(row)
            named = tuple((numbers.setdefault(run[0], len(numbers)), *run[1:]) for run in runs)
            found.append((named, tokens, output))
    return found


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
        "gap_s",
        "not_before_s",
        "think_s",
        "session_id",
        "turn",
        "class_index",
    ):
        joined = np.concatenate([getattr(block, name) for block in blocks])
        np.testing.assert_array_equal(joined, getattr(whole, name), err_msg=name)
    assert shared(blocks) == shared([whole])
    assert all(block.classes == whole.classes for block in blocks)
    if whole.request_ids is not None:
        assert tuple(n for block in blocks for n in block.request_ids or ()) == whole.request_ids
    if np.isfinite(stream.duration_s) or np.isnan(whole.arrival_s).any():
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
    (tmp_path / "own.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + "\n".join(lines[6:]) + "\n")
    assert_same({"trace": "own.csv"}, tmp_path)


def poisson(rate: float) -> dict[str, Any]:
    return {"kind": "poisson", "rate": rate}


def closed(concurrency: int, think_time_s: float | dict[str, Any] = 0.0) -> dict[str, Any]:
    return {"kind": "closed_loop", "concurrency": concurrency, "think_time_s": think_time_s}


CHATS = {"turns": {"kind": "uniform", "low": 1, "high": 6}, "think_time_s": 1.5}
PREFIX = {"groups": 7, "tokens": 90}
LIMIT = {"kind": "uniform", "low": 100, "high": 400}
KINDS: dict[str, dict[str, Any]] = {
    "sessions": {"arrivals": poisson(20), "sessions": CHATS, "duration": 60},
    "sessions-by-number": {"arrivals": poisson(20), "sessions": CHATS, "requests": 3011},
    "chats-over-a-prefix": {
        "arrivals": poisson(20),
        "sessions": CHATS,
        "shared_prefix": PREFIX,
        "duration": 60,
    },
    "prefixes": {
        "arrivals": poisson(50),
        "shared_prefix": PREFIX,
        "requests": 3000,
        "max_output_tokens": LIMIT,
    },
    "batch": {"arrivals": {"kind": "batch"}, "requests": 3000},
    "batch-of-chats": {"arrivals": {"kind": "batch"}, "sessions": CHATS, "requests": 3000},
    "loop": {"arrivals": closed(8, 0.3), "requests": 3000},
    "loop-for-a-time": {"arrivals": closed(32), "duration": 30},
    "loop-of-another-law": {
        "arrivals": closed(900, {"kind": "lognormal", "mean": 2, "p99": 20, "min": 0.1}),
        "duration": 15,
    },
    "loop-of-many": {"arrivals": closed(1500), "requests": 5000},
    "loop-of-chats": {"arrivals": closed(8, 0.3), "sessions": CHATS, "requests": 3000},
    "loop-of-many-chats": {
        "arrivals": closed(900),
        "sessions": CHATS,
        "shared_prefix": PREFIX,
        "duration": 1,
    },
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stretch", [300, 4096])
def test_requests_that_share_or_wait(
    kind: str, stretch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drawn, "STRETCH", stretch)
    assert_same({**LENGTHS, **KINDS[kind]}, tmp_path)


@pytest.mark.parametrize(
    "end", [{"duration": 40}, {"requests": 2900}, {"duration": 60, "requests": 3000}], ids=str
)
@pytest.mark.parametrize("batch", [False, True], ids=["", "batch"])
def test_classes(end: dict[str, Any], batch: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn, "STRETCH", 300)
    classes = [
        {"name": "a", "arrivals": poisson(60), "priority": 1, "max_output_tokens": "equal"},
        {
            "name": "b",
            "arrivals": poisson(8),
            "weight": 2.0,
            "slo": {"ttft_ms": {"p99": 50}},
            "sessions": CHATS,
        },
        {
            "name": "c",
            "arrivals": {"kind": "constant", "rate": 9},
            "shared_prefix": PREFIX,
            "sessions": CHATS,
        },
    ]
    if batch and "requests" in end:
        classes[1]["arrivals"] = {"kind": "batch"}
    assert_same({"classes": [{**LENGTHS, **kind} for kind in classes], **end}, tmp_path)


def test_what_a_loop_waits_for_is_said_in_time(tmp_path: Path) -> None:
    """No request of a later block waits for one before the row that its block names."""
    spec = WorkloadSpec.model_validate({**LENGTHS, **KINDS["loop-of-many-chats"]})
    stream = open_stream(spec, seed=5, base_dir=tmp_path, above=1000)
    assert stream is not None
    from_row = 0
    by_clock = True
    for block in stream.blocks():
        later = block.predecessor[block.turn == 0]
        assert (later[later >= 0] >= from_row).all()
        assert by_clock or np.isnan(block.arrival_s).all()
        assert block.more is not None
        from_row, by_clock = block.more.waits_from, block.more.by_clock
    assert not by_clock


@pytest.mark.parametrize(
    "fields",
    [
        {"arrivals": {"kind": "poisson", "rate": 50}, **LENGTHS, "duration": 10},
        {"trace": "azure-conv-2023"},
        {
            "classes": [
                {"name": "a", "arrivals": poisson(50), **LENGTHS},
                {"name": "b", "arrivals": closed(4), **LENGTHS},
            ],
            "duration": 200,
        },
        {"classes": [{"name": "a", "trace": "azure-conv-2023"}], "duration": 2000},
    ],
    ids=["few", "shipped", "loop-beside-others", "class-of-a-trace"],
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
