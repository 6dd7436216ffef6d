"""The run directory: atomic, byte-equal, readable; errors in words."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import InputError, PlanError
from simulator.config.problems import ScenarioError
from simulator.io import rundir
from simulator.io.errors import error_as_dict
from simulator.io.rundir import read_run, run_directory, write_file, write_run
from simulator.io.tables import read_columns, write_columns
from simulator.io.text import json_text

REQUESTS: dict[str, Any] = {
    "request_id": ["r0", "r1", "ü"],
    "arrival_s": np.array([0.0, 0.5, 1e-9]),
    "ttft_ms": np.array([1.5, np.nan, 2.5]),
    "prompt_tokens": np.array([1, 2, 3], dtype=np.int32),
    "slo_ok": np.array([True, False, True]),
    "finish_reason": np.array(["stop", None, "length"], dtype=object),
    "itl_ms": [[1.0, 2.0], None, []],
}
TIMELINE: dict[str, Any] = {"time_s": np.arange(4.0), "running": np.arange(4)}
RESULT: dict[str, Any] = {"b": 1, "a": [0.1, float("nan"), np.float32(0.5)], "n": np.int64(3), "none": None}
MANIFEST: dict[str, Any] = {"run": {"host": "x"}, "seed": 0}


def write(directory: Path, **changes: Any) -> Path:
    parts = {"result": RESULT, "manifest": MANIFEST, "requests": REQUESTS, "timeline": TIMELINE, **changes}
    return write_run(directory, **parts)


def bytes_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


def test_two_writes_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = write(tmp_path / "a"), write(tmp_path / "deep" / "er" / "b")
    assert sorted(bytes_of(first)) == ["manifest.json", "requests.parquet", "result.json", "timeline.parquet"]
    assert bytes_of(first) == bytes_of(second)


def test_another_process_writes_the_same_bytes(tmp_path: Path) -> None:
    here = write(tmp_path / "here")
    code = (
        "from pathlib import Path; from tests.io.test_rundir import write; write(Path(sys.argv[1]));"
        "assert 'pandas' not in sys.modules"
    )
    root = str(Path(__file__).resolve().parents[2])
    script = f"import sys; sys.path.insert(0, {root!r}); {code}"
    environment = {**os.environ, "PYTHONHASHSEED": "77", "PYTHONPATH": root}
    subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "there")], env=environment, check=True, cwd=root
    )
    assert bytes_of(here) == bytes_of(tmp_path / "there")


def test_the_tables_read_back(tmp_path: Path) -> None:
    write_columns(REQUESTS, tmp_path / "t.parquet")
    read = read_columns(tmp_path / "t.parquet")
    assert list(read) == list(REQUESTS)
    assert read["request_id"].tolist() == ["r0", "r1", "ü"]
    assert read["finish_reason"].tolist() == ["stop", None, "length"]
    np.testing.assert_array_equal(read["ttft_ms"], REQUESTS["ttft_ms"])
    np.testing.assert_array_equal(read["prompt_tokens"], REQUESTS["prompt_tokens"])
    assert read["slo_ok"].tolist() == [True, False, True]
    assert [None if v is None else list(v) for v in read["itl_ms"]] == [[1.0, 2.0], None, []]


def test_empty_tables_are_written(tmp_path: Path) -> None:
    write_columns({"a": np.empty(0), "n": np.empty(0, np.int64), "s": []}, tmp_path / "t.parquet")
    assert {
        name: len(column) for name, column in read_columns(tmp_path / "t.parquet").items()
    } == dict.fromkeys("ans", 0)


def test_strided_and_byte_swapped_columns_are_copied_right(tmp_path: Path) -> None:
    grid = np.arange(12.0).reshape(6, 2)
    write_columns({"a": grid[:, 1], "b": np.arange(6, dtype=">i4")[::-1]}, tmp_path / "t.parquet")
    read = read_columns(tmp_path / "t.parquet")
    assert read["a"].tolist() == grid[:, 1].tolist()
    assert read["b"].tolist() == [5, 4, 3, 2, 1, 0]


def test_unequal_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="differ in length"):
        write_columns({"a": np.arange(2), "b": np.arange(3)}, tmp_path / "t.parquet")


def test_json_keeps_order_and_turns_nan_into_null() -> None:
    text = json_text(RESULT)
    assert list(json.loads(text)) == ["b", "a", "n", "none"]
    assert json.loads(text)["a"] == [0.1, None, 0.5]
    assert text.endswith("}\n")
    with pytest.raises(TypeError):
        json_text({"a": {1, 2}})


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_json_floats_read_back_exactly(number: float) -> None:
    assert json.loads(json_text([number, np.float64(number)])) == [number, number]


def test_the_directory_is_named_by_scenario_and_hash() -> None:
    assert run_directory(Path("runs"), "my run/../x", "a" * 64) == Path("runs/my-run-..-x-aaaaaaaaaa")
    assert run_directory(Path("r"), "../..", "b" * 64) == Path("r/scenario-bbbbbbbbbb")
    assert len(run_directory(Path("r"), "n" * 500, "b" * 64).name) <= 100


def test_a_run_replaces_the_run_before_it(tmp_path: Path) -> None:
    directory = write(tmp_path / "a")
    (directory / "report.html").write_text("old")
    write(directory, result={"new": 1})
    assert read_run(directory)["result"] == {"new": 1}
    assert not (directory / "report.html").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_partial_run_is_marked_and_goes_when_the_whole_one_comes(tmp_path: Path) -> None:
    partial = write(tmp_path / "a", partial=True)
    assert partial == tmp_path / "a-partial"
    assert read_run(partial)["partial"] is True
    whole = write(tmp_path / "a")
    assert read_run(whole)["partial"] is False
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_what_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    (tmp_path / "f").write_text("a file")
    for name in ("a", "f", "f/below"):
        with pytest.raises(InputError) as caught:
            write(tmp_path / name)
        assert str(tmp_path) in str(caught.value.where)
        assert caught.value.mend
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "f").read_text() == "a file"


@pytest.mark.parametrize("function", ["write_columns", "write_text", "rename"])
@pytest.mark.parametrize(
    ("code", "exit_code"), [(errno.ENOSPC, 1), (errno.EACCES, 2), (errno.EROFS, 2), (errno.EIO, 1)]
)
def test_a_failing_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str, code: int, exit_code: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    owner: Any = {"write_columns": rundir, "write_text": Path, "rename": os}[function]
    with monkeypatch.context() as patched:
        patched.setattr(owner, function, fail)
        with pytest.raises(PlanError) as caught:
            write(tmp_path / "runs" / "a")
    assert caught.value.exit_code == exit_code
    assert caught.value.mend
    assert str(tmp_path / "runs" / "a") in str(caught.value.where)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_run_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = bytes_of(write(tmp_path / "a"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(rundir, "write_columns", full)
        with pytest.raises(PlanError, match="disk is full"):
            write(tmp_path / "a", result={"new": 1})
    assert bytes_of(tmp_path / "a") == before
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_interruption_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(rundir, "write_columns", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "runs" / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_real_full_disk_is_told_in_words(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        write_columns(REQUESTS, full)
    assert caught.value.errno == errno.ENOSPC


def test_one_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "x" / "report.html", "one")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(PlanError, match="disk is full"):
        write_file(tmp_path / "x" / "report.html", "two")
    assert bytes_of(tmp_path / "x") == {"report.html": b"one"}


def test_reading_a_run_gives_its_parts(tmp_path: Path) -> None:
    run = read_run(write(tmp_path / "a"))
    assert run["manifest"] == MANIFEST
    assert run["requests"] == tmp_path / "a" / "requests.parquet"
    (tmp_path / "a" / "timeline.parquet").unlink()
    assert read_run(tmp_path / "a")["timeline"] is None


def test_the_runs_in_a_folder_that_is_none_are_named(tmp_path: Path) -> None:
    write(tmp_path / "a")
    with pytest.raises(InputError, match="is not a run") as caught:
        read_run(tmp_path)
    assert caught.value.mend == f"name the run in it: {tmp_path / 'a'}"


def test_reading_what_is_no_run_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InputError) as caught:
            read_run(path)
        assert caught.value.where == str(path)
    (tmp_path / "result.json").write_text("{broken")
    with pytest.raises(InputError, match="cannot read"):
        read_run(tmp_path)
    (tmp_path / "t.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match="cannot read the table"):
        read_columns(tmp_path / "t.parquet")


def test_errors_become_three_keys() -> None:
    first, second = InputError("one", where="a:1", mend="do"), InputError("two", where="a:2")
    assert error_as_dict(first) == {"error": {"message": "one", "where": "a:1", "mend": "do"}}
    both = error_as_dict(ScenarioError([first, second]))["error"]
    assert both == {"message": "one; also a:2: two", "where": "a:1", "mend": "do"}
    assert error_as_dict(ValueError()) == {"error": {"message": "ValueError", "where": None, "mend": None}}


@given(st.sets(st.sampled_from(["notes.txt", ".hidden", "sub/deep.txt", "plots/mine.png"]), min_size=1))
@settings(max_examples=12)
def test_what_others_put_beside_a_run_stays(names: set[str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        directory = Path(base) / "a"
        for partial in (False, True, False):
            place = write(directory, partial=partial)
            for name in names:
                (place / name).parent.mkdir(exist_ok=True)
                (place / name).write_text(f"mine {place.name}")
        write(directory, result={"new": 1})
        assert read_run(directory)["result"] == {"new": 1}
        assert not (directory.with_name("a-partial") / "result.json").exists()
        for place in (directory, directory.with_name("a-partial")):
            assert {name: (place / name).read_text() for name in names} == dict.fromkeys(names, f"mine {place.name}")
        assert sorted(path.name for path in Path(base).iterdir()) == ["a", "a-partial"]
