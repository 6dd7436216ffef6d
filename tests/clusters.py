"""What several tests of clusters ask of any scenario."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest

import simulator.run
from hardware_profiles.errors import PlanError
from simulator import load_scenario, simulate
from simulator.cluster.outcome import FINISHED, NOT_ARRIVED, UNFINISHED, ClusterResult
from simulator.prepare import prepare
from simulator.run import RunResult, _cluster
from simulator.workload import streaming
from simulator.workload.build import build_workload

C = TypeVar("C")

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


def ran(data: dict[str, Any], *, aggregate: bool = True) -> tuple[Any, ClusterResult]:
    """The cluster, and what became of its requests."""
    checked = load_scenario(data)
    work = build_workload(checked.workload, seed=checked.seed, base_dir=None)
    cluster = _cluster(prepare(checked), work, aggregate=aggregate, should_stop=None)
    return cluster, cluster.run()


def answered(data: dict[str, Any], kind: type[C], *, aggregate: bool = True) -> tuple[C, ClusterResult]:
    """The cluster, one of a `kind`, and what became of its requests: whoever ended has all tokens, and nothing is left behind."""
    cluster, result = ran(data, aggregate=aggregate)
    assert isinstance(cluster, kind)
    for row in np.flatnonzero(result.status == FINISHED).tolist():
        assert sum(last - first + 1 for _, first, last in result.emissions.of(row)) == result.output_tokens[row]
    if not (result.status[result.status != NOT_ARRIVED] == UNFINISHED).any():
        assert not cluster._live
        assert not cluster._reads
        assert not cluster._unwanted
        for left in ("_between", "_targets", "_door"):  # which not every cluster has
            assert not len(getattr(cluster, left, None) or ()), left
        assert all(rank.scheduler.state()[:2] == (0, 0) and not rank.in_service for rank in cluster.ranks)
        assert not any(flow._inside for flow in cluster._flows)
    return cluster, result


def jumps_as_it_steps(data: dict[str, Any]) -> None:
    """Many proven steps taken as one event give what each taken by itself gives."""
    one, other = (simulate(data, aggregate=aggregate) for aggregate in (True, False))
    frame, plain = one.requests_frame(), other.requests_frame()
    assert [column for column in frame if not frame[column].equals(plain[column])] == []
    assert one.result == other.result
    assert one.timeline_frame().equals(other.timeline_frame())
