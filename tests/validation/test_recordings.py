"""Recordings of kinds without a model: their true steps are counted, and the reason is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.cli.validate import schedules_command
from simulator.validation.recordings import WALL_CLOCK, read
from simulator.validation.schedules import replay

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "conformance"


def write(path: Path, engine: str, kinds: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [{"type": "config", "engine": engine, "scenario": path.stem}, *({"type": kind} for kind in kinds)]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("kinds", "steps"),
    [
        (["request", "step", "step", "result", "summary"], 2),
        (["request", "iter", "iter", "iter"], 3),
        (["req", "prefill_done", "req", "kv_stored", "dequeued", "free"], 3),
        (["step", "oom", "step"], 2),
        (["step", "step", "stopped", "step"], 2),
    ],
)
def test_steps_of_a_kind_without_a_model_are_counted(tmp_path: Path, kinds: list[str], steps: int) -> None:
    entry = replay(write(tmp_path / "one.jsonl", "some-engine", kinds))
    assert (entry["name"], entry["engine"]) == ("one", "some-engine")
    assert (entry["steps"], entry["equal"]) == (steps, 0)
    assert "some-engine" in entry["first_difference"]["reason"]


def test_wall_clock_files_have_no_steps(tmp_path: Path) -> None:
    path = write(tmp_path / "wall_two.jsonl", "litserve", ["request", "step", "step"])
    assert read(path).steps == []
    entry = replay(path)
    assert (entry["steps"], entry["equal"], entry["first_difference"]["reason"]) == (0, 0, WALL_CLOCK)


def test_folders_of_files_are_walked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "a" / "one.jsonl", "a", ["step"] * 3)
    write(tmp_path / "b" / "deeper" / "two.jsonl", "b", ["iter"] * 4)
    schedules_command(tmp_path, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["equal"]) == (7, 0)
    assert [(s["name"], s["steps"]) for s in found["scenarios"]] == [("one", 3), ("two", 4)]


def test_true_steps_of_the_shared_recordings() -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no recordings beside the checkout ({SHARED})")
    steps = {
        folder: sum(len(read(path).steps) for path in sorted((SHARED / folder).glob("*.jsonl")))
        for folder in ("tgi", "llama_cpp", "litserve", "routers", "openvino", "sglang_pd")
    }
    # 2,344 decisions and 7 of requests that had waited; 845 predict calls, 105 of them under a wall clock
    assert steps == {
        "tgi": 4804,
        "llama_cpp": 4220,
        "litserve": 740,
        "routers": 2351,
        "openvino": 7925,
        "sglang_pd": 2734,
    }
