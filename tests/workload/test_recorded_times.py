"""A recording begins at its first request: what its clock counted from, and in which unit, changes nothing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.describe import describe
from simulator.workload.spec import WorkloadSpec
from simulator.workload.streaming import open_stream
from tests.effort import examples

EPOCH_S = 1_764_400_000
MS = st.lists(st.integers(0, 100_000_000), min_size=2, max_size=30, unique=True)
"""Send times of a recording of up to 28 hours [ms]."""


def spec(path: Path) -> WorkloadSpec:
    return WorkloadSpec.model_validate({"trace": path.name})


def read(stamps: Sequence[float | int], lengths: Sequence[int] | None = None) -> Workload:
    """A trace of these stamps, each request told by its prompt."""
    rows = [
        {"arrival_s": stamp, "prompt_tokens": tokens, "output_tokens": 7}
        for stamp, tokens in zip(stamps, lengths or range(1, len(stamps) + 1), strict=True)
    ]
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return build_workload(spec(path), seed=0, base_dir=path.parent)


def same(one: Workload, other: Workload, within_s: float) -> None:
    assert one.arrival_s[0] == other.arrival_s[0] == 0
    np.testing.assert_allclose(one.arrival_s, other.arrival_s, rtol=0, atol=within_s)
    assert one.prompt_tokens.tolist() == other.prompt_tokens.tolist()
    assert one.duration_s == pytest.approx(other.duration_s, abs=within_s)


@settings(max_examples=examples(40))
@given(MS, st.integers(-(10**9), 10**9))
def test_any_offset_gives_the_same_requests(times_ms: list[int], offset_s: int) -> None:
    same(read([ms / 1e3 for ms in times_ms]), read([offset_s + ms / 1e3 for ms in times_ms]), 1e-6)


@settings(max_examples=examples(40))
@given(MS, st.sampled_from([1, 1_000, 1_000_000, 1_000_000_000]))
def test_any_unit_since_1970_gives_the_same_requests(times_ms: list[int], per_second: int) -> None:
    stamps = [EPOCH_S * per_second + ms * per_second / 1_000 for ms in times_ms]
    found = read([int(stamp) for stamp in stamps] if per_second > 1 else stamps)
    same(read([ms / 1e3 for ms in times_ms]), found, 1e-6)
    assert any("1970" in text for text in found.warnings)


@settings(max_examples=examples(40))
@given(MS, st.randoms(use_true_random=False))
def test_any_order_of_rows_gives_the_same_requests(times_ms: list[int], random: object) -> None:
    numbers = list(range(len(times_ms)))
    shuffled = random.sample(numbers, len(numbers))  # type: ignore[attr-defined]
    found = read([times_ms[i] / 1e3 for i in shuffled], [i + 1 for i in shuffled])
    same(read([ms / 1e3 for ms in times_ms]), found, 0.0)


def test_calendar_times_of_several_units_are_told_apart_by_their_size() -> None:
    found = read([EPOCH_S, (EPOCH_S + 1) * 1_000, (EPOCH_S + 2) * 1_000_000, (EPOCH_S + 3) * 1_000_000_000])
    assert found.arrival_s.tolist() == [0, 1, 2, 3]
    assert any("several units" in text for text in found.warnings)


def test_a_late_start_and_a_wild_stamp_are_named() -> None:
    assert any("stands at 5.27041e+06 s" in text for text in read([5270414, 5270445, 5270518]).warnings)
    assert read([5, 45, 118]).warnings == ()
    (said,) = read([3, 4, 5, 900_000]).warnings
    assert "t.jsonl, line 4: no request arrives for" in said


def test_a_wild_stamp_costs_no_memory() -> None:
    """Held by the second, 1e12 of them would take 8 TB."""
    found = describe(read([0, 1, 1e12]))
    assert found["span_s"] == 1e12
    assert found["idc"]["60s"] == pytest.approx(2.0)  # the last one ends the span


@pytest.mark.parametrize("stamp", ["0", "1764400000000", "-86400.5"])
def test_a_stream_counts_as_a_workload_in_memory(tmp_path: Path, stamp: str) -> None:
    first = float(stamp)
    step = 500 if first > 1e12 else 0.5
    path = tmp_path / "t.csv"
    rows = "".join(f"{first + i * step:.1f},{i % 50 + 1},3\n" for i in range(3_000))
    path.write_text(f"arrival_s,prompt_tokens,output_tokens\n{rows}")
    whole = build_workload(spec(path), seed=0, base_dir=tmp_path)
    stream = open_stream(spec(path), seed=0, base_dir=tmp_path, above=1_000)
    assert stream is not None
    times = np.concatenate([block.arrival_s for block in stream.blocks()])
    assert times.tolist() == whole.arrival_s.tolist()
    assert (times[0], times[-1]) == (0.0, 1499.5)
    assert (stream.duration_s, tuple(stream.warnings)) == (whole.duration_s, whole.warnings)
