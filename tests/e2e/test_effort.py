"""What a run will take is said beforehand where it is much, and what cannot be held is refused before it is begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator import effort, run
from simulator.workload.build import build_workload
from simulator.workload.spec import WorkloadSpec
from simulator.workload.streaming import open_stream

from .conftest import Cli, files_below

LOAD = {"prompt_tokens": 100, "output_tokens": 2}


def test_a_large_run_is_announced_and_a_small_one_is_not(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "about" not in cli("simulate", "small.yaml").err
    monkeypatch.setattr(effort, "LONG_S", 0.0)
    told = cli("simulate", "small.yaml", "--json")
    assert (told.code, told.err.startswith("note: about ")) == (0, True)
    assert told.err.count("\n") == 1
    assert told.json()["totals"]["offered"] > 0


def test_a_batch_beyond_memory_is_refused_before_it_is_drawn(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = "workload={arrivals: {kind: batch}, requests: 200000000, prompt_tokens: 9, output_tokens: 9}"
    monkeypatch.setattr(run, "machine_bytes", lambda: 16e9)
    cli("simulate", "small.yaml", "--set", load).refused(
        2, "200,000,000 requests", "80 GB", "this machine has 16"
    )
    assert files_below(tmp_path) == {"small.yaml"}


@pytest.mark.parametrize("extra", [{}, {"shared_prefix": {"groups": 3, "tokens": 64}}])
def test_a_stream_is_estimated_like_the_same_requests_in_memory(extra: dict[str, object]) -> None:
    fields = {"arrivals": {"kind": "poisson", "rate": 100}, "duration": 100, **LOAD, **extra}
    spec = WorkloadSpec.model_validate(fields)
    stream = open_stream(spec, seed=0, base_dir=Path(), above=1000)
    assert stream is not None
    streamed, held = effort.effort_of(stream), effort.effort_of(build_workload(spec, seed=0, base_dir=Path()))
    assert streamed.requests == pytest.approx(held.requests, rel=0.05)
    assert streamed.processor_s == pytest.approx(held.processor_s, rel=0.05)
    assert streamed.memory_bytes < held.memory_bytes
    assert (held.processor_s > 4) == bool(extra)


def test_the_words_of_an_estimate() -> None:
    assert effort.Effort(2e6, 160.0, 1.5e8).said() == (
        "about 2,000,000 requests: some 3 minutes of one processor and 0.1 GB of memory "
        "(estimated; long queues and long prompts take more)"
    )
    assert "2.8 hours" in str(effort.Effort(1e8, 1e4, 1e10).said())
    assert effort.Effort(1e4, 1.0, 1e8).said() is None
