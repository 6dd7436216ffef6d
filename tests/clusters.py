"""What several tests of clusters ask of any scenario."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

import simulator.run
from hardware_profiles.errors import PlanError
from simulator import load_scenario, simulate
from simulator.prepare import prepare
from simulator.run import RunResult
from simulator.workload import streaming

OF_THE_WHOLE = ("request_id", "session_id", "instance_id", "prefill_instance_id", "class", "pool")
"""Columns that name what the whole run has."""
TIMES = ("first_token_s", "end_s", "prefill_instance_id", "instance_id")
MOVED = ("transfer_start_s", "transfer_end_s", "decode_queue_ms")
"""Columns of requests that are served, and of those that are handed over."""


def streams_alike(
    data: dict[str, Any], monkeypatch: pytest.MonkeyPatch, columns: tuple[str, ...] = (*TIMES, *MOVED)
) -> tuple[RunResult, RunResult]:
    """Requests that are read in blocks fare as those that are all in memory; both runs."""
    whole = simulate(data)
    monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 20)
    monkeypatch.setattr(streaming, "BLOCK", 25)
    parts = simulate(data)
    frame, other = whole.requests_frame(), parts.requests_frame()
    assert len(other) == len(frame) > 50
    for column in columns:
        assert other[column].astype(float).equals(frame[column].astype(float)), column
    return whole, parts


def fares_as_alone(whole: pd.DataFrame, kind: str, own: dict[str, Any]) -> RunResult:
    """Of a run the requests of the class `kind` fare as in the run of `own` by itself, which is returned."""
    run = simulate(own)
    alone, mine = run.requests_frame(), whole[whole["class"] == kind].reset_index(drop=True)
    assert len(alone) == len(mine) > 20
    for column in (name for name in alone if name not in OF_THE_WHOLE):
        assert alone[column].astype(str).equals(mine[column].astype(str)), (kind, column)
    return run


def is_refused(data: dict[str, Any], words: str, *, on_start: bool = False) -> None:
    """The scenario is refused in these words, with a mend, when it is resolved, or (`on_start`) when it is run."""
    with pytest.raises(PlanError) as caught:
        (simulate if on_start else prepare)(load_scenario(data))
    assert words in str(caught.value)
    assert caught.value.mend


def jumps_as_it_steps(data: dict[str, Any]) -> None:
    """Many proven steps taken as one event give what each taken by itself gives."""
    one, other = (simulate(data, aggregate=aggregate) for aggregate in (True, False))
    frame, plain = one.requests_frame(), other.requests_frame()
    assert [column for column in frame if not frame[column].equals(plain[column])] == []
    assert one.result == other.result
    assert one.timeline_frame().equals(other.timeline_frame())
