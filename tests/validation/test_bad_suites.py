"""Damaged and contradictory suites: what is wrong is named and counted, the rest is judged, nothing crashes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.validation.contradictions import sift
from simulator.validation.runs import validate_runs
from tests.effort import examples
from tests.terminal import typed

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
RECORDINGS = Path(__file__).resolve().parents[1] / "fixtures" / "conformance"
Row = dict[str, Any]


def row(name: str = "good", **changed: Any) -> Row:
    """One measured run of 40 requests, with `changed` fields."""
    plain: Row = {
        "id": name,
        "engine": "vllm",
        "engine_version": "0.15.1",
        "hardware": "h100-sxm-80gb",
        "model": MODEL,
        "tp": 1,
        "precision": "bf16",
        "request_rate_rps": 4.0,
        "num_requests": 40,
        "prompt_tokens_mean": 200.0,
        "output_tokens_mean": 10.0,
        "ttft_mean_ms": 20.0,
        "e2e_mean_ms": 100.0,
        "tpot_mean_ms": 8.0,
    }
    return plain | changed


def write(folder: Path, rows: list[Row], requests: dict[str, dict[str, Any]] | None = None) -> Path:
    """Write a suite."""
    (folder / "requests").mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(key for one in rows for key in one))
    table = pa.table({key: [one.get(key) for one in rows] for key in columns})
    pq.write_table(table, folder / "experiments.parquet")
    for name, columns in (requests or {}).items():
        pq.write_table(pa.table(columns), folder / "requests" / name)
    return folder


def recorded(n: int = 40, **changed: Any) -> dict[str, Any]:
    """The columns of a per-request file."""
    plain = {
        "arrival_time_us": np.arange(n) * 250_000.0,
        "prompt_tokens": np.full(n, 200),
        "output_tokens": np.full(n, 10),
    }
    return {k: v for k, v in (plain | changed).items() if v is not None}


def judged(folder: Path) -> tuple[set[str], dict[str, str]]:
    """Ids that were compared, and the reasons by id of those left out."""
    found = validate_runs(folder)
    return {e["id"] for e in found["experiments"]}, {s["id"]: s["reason"] for s in found["skipped"]}


# -- whole suites -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"id": "a", "engine": "vllm"}], "columns missing: hardware, model"),
        ([{"engine": "vllm", "hardware": "h100", "model": MODEL}], "columns missing: id"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, rows: list[Row], words: str) -> None:
    with pytest.raises(InputError, match=words):
        validate_runs(write(tmp_path, rows))


def test_an_empty_table_is_named(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([row()]).slice(0, 0), tmp_path / "experiments.parquet")
    with pytest.raises(InputError, match="holds no experiment"):
        validate_runs(tmp_path)


def test_a_csv_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiments.csv").write_text("id,engine\n")
    with pytest.raises(InputError) as caught:
        validate_runs(tmp_path)
    assert "experiments.csv" in caught.value.message
    assert "as Parquet" in str(caught.value.mend)


@pytest.mark.parametrize("content", [b"", b"id,engine\na,vllm\n", b"PAR1 broken PAR1"])
def test_a_file_that_is_no_parquet_is_named(
    tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiments.parquet").write_bytes(content)
    code, out, err = typed(monkeypatch, capsys, "validate", "runs", str(tmp_path), "--json")
    assert code == 2
    assert "not a readable Parquet file" in json.loads(out)["error"]["message"]
    assert "Traceback" not in err


# -- single rows --------------------------------------------------------------------------------------------

BAD_ROWS = [
    ({"engine": "quixotic"}, "engine 'quixotic' is not modelled"),
    ({"engine": "vllm (fork of 2023)"}, "this variant of vllm is not modelled"),
    ({"engine": " "}, "names no engine"),
    ({"engine": None}, "names no engine"),
    ({"model": "nobody/Never-1B"}, "Never-1B"),
    ({"model": None}, "names no model"),
    ({"hardware": "abacus-9000"}, "unknown hardware 'abacus-9000'"),
    ({"precision": "fp3"}, "number format 'fp3' is unknown"),
    ({"ttft_mean_ms": 500.0}, "e2e_mean_ms 100 is below ttft_mean_ms 500"),
    ({"ttft_p50_ms": 30.0, "ttft_p99_ms": 10.0}, "ttft_p50_ms 30 is above ttft_p99_ms 10"),
    ({"tpot_mean_ms": -8.0}, "tpot_mean_ms is -8: negative"),
    ({"e2e_mean_ms": float("inf")}, "e2e_mean_ms is not finite"),
    ({"prompt_tokens_mean": None}, "length unknown"),
    ({"prompt_tokens_mean": 0.0}, "length"),
    ({"output_tokens_mean": 1e12}, "impossible"),
    ({"prompt_tokens_mean": 5e6}, "context"),
    ({"request_rate_rps": None}, "neither arrival rate nor concurrency"),
    ({"request_rate_rps": -4.0}, "negative"),
    ({"request_rate_rps": 4e9, "duration_s": 600.0}, "more than 1,000,000 requests"),
    ({"tp": 3}, "tensor"),
    ({"rate_stages": "nonsense"}, "cannot be read"),
    ({"per_request_file": "requests/gone.parquet"}, "requests/gone.parquet is missing"),
]


@pytest.mark.parametrize(("changed", "words"), BAD_ROWS)
def test_a_bad_row_is_named_and_the_others_are_judged(tmp_path: Path, changed: Row, words: str) -> None:
    kept, left_out = judged(write(tmp_path, [row(), row("bad", **changed)]))
    assert kept == {"good"}
    assert list(left_out) == ["bad"]
    assert words in left_out["bad"]


def test_text_where_numbers_belong_is_named(tmp_path: Path) -> None:
    kept, left_out = judged(
        write(tmp_path, [row("bad", ttft_mean_ms="fast"), row("other", ttft_mean_ms="20")])
    )
    assert not kept
    assert "ttft_mean_ms is 'fast', not a number" in left_out["bad"]


def test_rows_of_one_id_that_differ_are_all_left_out() -> None:
    kept, left_out = sift([row(), row("twice"), row("twice", ttft_mean_ms=21.0)])
    assert [r["id"] for r in kept] == ["good"]
    assert [s["id"] for s in left_out] == ["twice", "twice"]
    assert "contradict each other in ttft_mean_ms" in left_out[0]["reason"]


def test_a_row_that_stands_twice_counts_once() -> None:
    kept, left_out = sift([row(), row()])
    assert [r["id"] for r in kept] == ["good"]
    assert [s["reason"] for s in left_out] == ["the row stands twice; counted once"]


def test_a_row_without_id_is_named_by_its_place(tmp_path: Path) -> None:
    kept, left_out = judged(write(tmp_path, [row(), row("bad", id=None)]))
    assert kept == {"good"}
    assert left_out == {"row 2": "the row has no id"}


@settings(max_examples=examples(60))
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from([*row(), "ttft_p50_ms", "ttft_p99_ms", "concurrency"]),
            st.one_of(st.none(), st.floats(), st.text(max_size=3), st.booleans(), st.integers(-5, 5)),
            max_size=4,
        ),
        max_size=5,
    )
)
def test_every_row_is_kept_or_named_once(changes: list[Row]) -> None:
    rows = [
        {k: v for k, v in row(f"r{i}", **changed).items() if v is not None}
        for i, changed in enumerate(changes)
    ]
    kept, left_out = sift(rows)
    assert len(kept) + len(left_out) == len(rows)
    assert all(entry["reason"] for entry in left_out)


# -- per-request files --------------------------------------------------------------------------------------

BAD_REQUESTS = [
    (recorded(39), "num_requests is 40, the per-request file holds 39"),
    (recorded(arrival_time_us=None), "no arrival times"),
    (recorded(prompt_tokens=None), "no token counts"),
    (recorded(prompt_tokens=np.where(np.arange(40) == 3, -1, 200)), "zero, negative"),
    (recorded(output_tokens=np.where(np.arange(40) == 3, np.nan, 10.0)), "token counts are missing"),
    (recorded(arrival_time_us=np.where(np.arange(40) == 3, np.nan, 1e6)), "arrival times are missing"),
    (recorded(0), "no request of this run"),
]


@pytest.mark.parametrize(("columns", "words"), BAD_REQUESTS)
def test_a_bad_per_request_file_is_named(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    rows = [
        row(per_request_file="requests/good.parquet"),
        row("bad", per_request_file="requests/bad.parquet"),
    ]
    kept, left_out = judged(write(tmp_path, rows, {"good.parquet": recorded(), "bad.parquet": columns}))
    assert kept == {"good"}
    assert words in left_out["bad"]


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"PAR1" + b"\0" * 50 + b"PAR1"])
def test_a_damaged_per_request_file_is_named(tmp_path: Path, content: bytes) -> None:
    write(tmp_path, [row(), row("bad", per_request_file="requests/bad.parquet")])
    (tmp_path / "requests" / "bad.parquet").write_bytes(content)
    kept, left_out = judged(tmp_path)
    assert kept == {"good"}
    assert "requests/bad.parquet is damaged" in left_out["bad"]


def test_a_suite_of_bad_rows_only_ends_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path / "suite",
        [row("a", hardware="abacus"), row("b", engine="quixotic"), row("c", ttft_mean_ms=-1.0)],
    )
    output = ("--output", str(tmp_path / "v.parquet"))
    code, out, _ = typed(monkeypatch, capsys, "validate", "runs", str(tmp_path / "suite"), *output)
    assert code == 0
    assert out.count("skipped 1 row") == 3


def test_runs_that_are_off_by_one_factor_at_every_load_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Open loops of ten tokens a request, said to have yielded five."""
    rates = (1.0, 2.0, 4.0, 8.0, 16.0)
    write(tmp_path, [row(f"{rate}", request_rate_rps=rate, output_throughput_tok_s=5.0 * rate) for rate in rates])
    _, out, _ = typed(monkeypatch, capsys, "validate", "runs", str(tmp_path), "--output", str(tmp_path / "v.parquet"))
    words = " ".join(out.split())
    assert "by vllm on h100-sxm-80gb: at every load output_throughput_tok_s is 2." in words
    assert "5 values), as of another host" in words


# -- schedules ----------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def recordings(folder: Path, change: Any) -> Path:
    """A good recording, and one whose lines `change` has damaged."""
    good = sorted(RECORDINGS.glob("*.jsonl"))[0]
    shutil.copy(good, folder / "good.jsonl")
    lines = lines_of(good)
    damaged = change(lines)
    text = damaged if isinstance(damaged, str) else "\n".join(json.dumps(line) for line in damaged)
    (folder / "bad.jsonl").write_text(text)
    return folder


def without(kind: str) -> Any:
    return lambda lines: [line for line in lines if line["type"] != kind]


def with_field(kind: str, key: str, value: Any) -> Any:
    return lambda lines: [{**line, key: value} if line["type"] == kind else line for line in lines]


BAD_RECORDINGS = [
    (lambda lines: "", "no config line"),
    (lambda lines: "type,step\n", "not a recorded schedule"),
    (lambda lines: '"text"\n', "not a recorded schedule"),
    (without("config"), "no config line"),
    (without("request"), "holds no request"),
    (without("step"), "holds no step"),
    (with_field("config", "engine", "quixotic"), "no model of engine 'quixotic'"),
    (with_field("config", "config", {}), "cannot be replayed"),
    (with_field("config", "version", "nine"), "nine"),
    (with_field("request", "prompt_len", -4), "prompt_len is -4"),
    (with_field("request", "output_len", "ten"), "output_len is 'ten'"),
    (with_field("request", "id", "same"), "two requests are named same"),
    (with_field("request", "segments", None), "cannot be replayed"),
    (with_field("step", "sched", None), "cannot be replayed"),
]


@pytest.mark.parametrize(("change", "words"), BAD_RECORDINGS)
def test_a_bad_recording_is_named_and_the_others_are_replayed(
    tmp_path: Path,
    change: Any,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = typed(
        monkeypatch, capsys, "validate", "schedules", str(recordings(tmp_path, change)), "--json"
    )
    assert code == 0, err
    good, bad = sorted(json.loads(out)["scenarios"], key=lambda s: s["equal"], reverse=True)
    assert good["equal"] == good["steps"] > 0
    assert bad["equal"] == 0
    assert words in bad["first_difference"]["reason"]


def test_recordings_that_are_all_unreadable_are_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jsonl").write_text("{")
    code, _, err = typed(monkeypatch, capsys, "validate", "schedules", str(tmp_path))
    assert code == 2
    assert "mend:" in err


# -- kernels ------------------------------------------------------------------------------------------------


def gemm(**changed: Any) -> dict[str, Any]:
    """Twenty rows of a GEMM table at 60 % of an H100's dense peak of 989 Tflop/s."""
    m = np.repeat([1024, 2048, 4096, 8192], 5)
    plain: dict[str, Any] = {
        "gpu": ["H100-SXM"] * 20,
        "framework": ["vllm"] * 20,
        "framework_version": ["0.14.0"] * 20,
        "dtype": ["bfloat16"] * 20,
        "kernel": ["torch.nn.functional.linear"] * 20,
        "m": m,
        "n": np.full(20, 4096),
        "k": np.full(20, 4096),
        "latency_us": 2.0 * m * 4096 * 4096 / (0.6 * 989e12) * 1e6,
        "source": ["made"] * 20,
    }
    return {k: v for k, v in (plain | changed).items() if v is not None}


def mixed(column: str, *values: Any) -> dict[str, Any]:
    """A GEMM table whose first rows hold other values in `column`."""
    table = gemm()
    table[column] = [*values, *list(table[column])[len(values) :]]
    return table


BAD_KERNELS = [
    (mixed("latency_us", *list(gemm()["latency_us"][:5] * 0.3)), 5, "above the roofline"),
    (mixed("latency_us", *list(gemm()["latency_us"][:5] / 1e3)), 5, "wrong unit"),
    (mixed("latency_us", -1.0, 0.0, float("nan"), float("inf")), 4, "not finite"),
    (mixed("gpu", "ABACUS-9000", "ABACUS-9000"), 2, "no fitted model"),
    (mixed("dtype", "fp3", "fp3", "fp3"), 3, "without a fitted model"),
    (mixed("framework", "quixotic"), 1, "no fitted model"),
]


@pytest.mark.parametrize(("columns", "count", "words"), BAD_KERNELS)
def test_bad_kernel_rows_are_counted_and_the_others_judged(
    tmp_path: Path,
    columns: dict[str, Any],
    count: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pq.write_table(pa.table(columns), tmp_path / "gemm.parquet")
    code, out, err = typed(monkeypatch, capsys, "validate", "kernels", str(tmp_path), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert sum(group["rows"] for group in found["groups"]) == 20 - count
    assert sum(group["rows"] for group in found["skipped"]) == count
    assert words in found["skipped"][0]["reason"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: pq.write_table(pa.table(gemm(latency_us=None)), folder / "moe.parquet"),
        lambda folder: pq.write_table(pa.table(gemm(gpu=None)), folder / "mla.parquet"),
        lambda folder: pq.write_table(pa.table(gemm()).slice(0, 0), folder / "quantize.parquet"),
        lambda folder: (folder / "moe.parquet").write_bytes(b"a,b"),
        lambda folder: (folder / "allreduce.parquet").write_bytes(b""),
    ],
)
def test_a_damaged_kernel_table_is_named_and_the_others_judged(
    tmp_path: Path, damage: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pq.write_table(pa.table(gemm()), tmp_path / "gemm.parquet")
    damage(tmp_path)
    code, out, err = typed(monkeypatch, capsys, "validate", "kernels", str(tmp_path), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [group["rows"] for group in found["groups"]] == [20]
    assert all(entry["reason"] for entry in found["skipped"])
    assert len(found["skipped"]) == 1
