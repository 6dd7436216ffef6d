"""Traces of agents: what waits for what, what is shared, and sessions that begin at other times than recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.convert import write_workload
from simulator.workload.traces import read_trace

MODEL = "meta-llama/Llama-3.1-8B-Instruct"
AGENTIC: list[dict[str, Any]] = [
    {"request_id": "a", "session_id": "r", "timestamp": 1000.0, "input_length": 200, "output_length": 20,
     "hash_ids": [0, 1, 2, 3]},
    {"request_id": "c1", "session_id": "r:c", "wait_for": ["a"], "delay": 5, "tool_wait_ms": 20, "input_length": 150,
     "output_length": 90, "hash_ids": [0, 1, 9]},
    {"request_id": "c2", "session_id": "r:d", "wait_for": ["a"], "delay": 5, "input_length": 140, "output_length": 0,
     "hash_ids": [0, 1, 8]},
    {"request_id": "b", "session_id": "r", "wait_for": ["c1", "c2"], "delay": 1, "tool_wait_ms": 100, "input_length": 300,
     "output_length": 5, "hash_ids": [0, 1, 2, 3, 4]},
    {"request_id": "z", "session_id": "q", "timestamp": 3000.0, "input_length": 100, "output_length": 20, "hash_ids": [0, 7]},
]  # fmt: skip
STAMP = 1_777_312_800_000


def served(session: str, above: str | None, begin_ms: int, took_ms: int, ids: list[int], tokens: int) -> dict[str, Any]:
    """A record of Dynamo's."""
    about = {"session_id": session, **({"parent_session_id": above} if above else {})}
    replay = {"trace_block_size": 64, "input_length": tokens, "input_sequence_hashes": ids}
    request = {"output_tokens": 9, "request_received_ms": STAMP + begin_ms, "total_time_ms": took_ms, "replay": replay}
    end_ms = STAMP + begin_ms + took_ms
    event = {"event_type": "request_end", "event_time_unix_ms": end_ms, "agent_context": about, "request": request}
    return {"timestamp": 1, "event": event}


SERVED = [
    served("m", None, 0, 1000, [1, 2], 128),
    served("t", "m", 1400, 2000, [1, 5], 100),
    served("s", "m", 1500, 500, [1, 3], 128),
    served("s", "m", 2200, 300, [1, 3, 4], 150),
    served("m", None, 4000, 800, [1, 2, 6], 180),
    {"timestamp": 2, "event": {"event_type": "tool_end"}},
]


def asked(begin_s: float, took_s: float, ids: list[int], tokens: int, output: int = 9) -> dict[str, Any]:
    """A request of Weka's."""
    return {"t": begin_s, "type": "n", "in": tokens, "out": output, "hash_ids": ids, "api_time": took_s}


INNER = [asked(2.0, 1.0, [7, 8], 100), asked(3.5, 0.5, [7, 9], 120)]
RUN: dict[str, Any] = {
    "id": "w",
    "models": ["x"],
    "block_size": 64,
    "hash_id_scope": "local",
    "requests": [
        asked(0.0, 1.0, [1, 2], 128),
        {"t": 2.0, "type": "subagent", "agent_id": "q", "requests": INNER},
        asked(5.0, 1.0, [1, 2, 3], 190),
    ],
}


def said(text: str, **keys: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 10, **keys}


TALKS: list[dict[str, Any]] = [
    {"session_id": "root", "turns": [said("x" * 400, forks=["fork"])]},
    {"session_id": "fork", "turns": [said("q" * 100), said("w" * 100, delay=500)]},
    {"session_id": "other", "turns": [
        said("x" * 400, spawns=["near", {"children": ["far"], "join_at": 2}]), said("r" * 100), said("t" * 100)
    ]},
    {"session_id": "near", "turns": [said("q" * 100)]},
    {"session_id": "far", "turns": [said("q" * 100)]},
]  # fmt: skip


def written(folder: Path, name: str, records: list[dict[str, Any]]) -> Path:
    path = folder / name
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def links(path: Path) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Of each request, by prompt and output tokens, those that it waits for."""
    rows = read_trace(path)
    assert rows.edges is not None
    names = list(zip(rows.prompt_tokens.tolist(), rows.output_tokens.tolist(), strict=True))
    found: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for before, after in rows.edges.tolist():
        found.setdefault(names[after], []).append(names[before])
    return {name: sorted(before) for name, before in found.items()}


def test_mooncake_lines_say_what_they_wait_for(tmp_path: Path) -> None:
    path = written(tmp_path, "agents.jsonl", AGENTIC)
    assert links(path) == {(150, 90): [(200, 20)], (140, 1): [(200, 20)], (300, 5): [(140, 1), (150, 90)]}
    rows = read_trace(path)
    assert rows.prefix_block_tokens == 64  # by the prompts: 512 would not do
    assert rows.session is not None
    assert len(set(rows.session.tolist())) == 2  # runs, whatever their threads are called
    assert rows.wait_s is not None
    assert dict(zip(rows.prompt_tokens.tolist(), rows.wait_s.round(6).tolist(), strict=True))[300] == 0.101


def test_sessions_of_mooncake_follow_the_delay_or_the_recorded_gap(tmp_path: Path) -> None:
    base = {"input_length": 100, "output_length": 5, "hash_ids": [0]}
    lines = [
        {"session_id": "s", "timestamp": 0, **base},
        {"session_id": "s", "timestamp": 700, **base},
        {"session_id": "s", "delay": 250, **base},
    ]
    scenario = {"model": MODEL, "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"}}
    path = written(tmp_path, "sessions.jsonl", lines)
    frame = simulate({**scenario, "workload": {"trace": str(path)}}).requests_frame()
    gaps = frame["arrival_s"].to_numpy()[1:] - frame["end_s"].to_numpy()[:-1]
    assert gaps == pytest.approx([0.7, 0.25])


def test_records_of_dynamo_are_linked_by_their_times(tmp_path: Path) -> None:
    path = written(tmp_path, "trace.jsonl", SERVED)
    assert links(path) == {
        (100, 9): [(128, 9)],
        (128, 9): [(128, 9)],
        (150, 9): [(128, 9)],
        (180, 9): [(100, 9), (128, 9), (150, 9)],  # the parent waits for both of the sessions below
    }
    rows = read_trace(path)
    assert rows.wait_s is not None
    assert rows.wait_s[rows.prompt_tokens == 180].round(6).tolist() == [0.6]
    assert rows.session is not None
    assert set(rows.session.tolist()) == {0}


def test_runs_of_weka_have_their_own_blocks_and_wait_for_subagents(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.json").write_text(json.dumps(RUN))
    path = tmp_path / "0.json"
    expected = {(100, 9): [(128, 9)], (120, 9): [(100, 9)], (190, 9): [(120, 9), (128, 9)]}
    assert links(path) == expected
    both = read_trace(tmp_path)
    assert both.prefix_ids is not None
    assert both.edges is not None
    assert len(both.edges) == 2 * 4
    assert len(set(both.prefix_ids.tolist())) == 2 * len({1, 2, 3, 7, 8, 9})
    relative = {**RUN, "requests": [RUN["requests"][0], {**RUN["requests"][1]}, RUN["requests"][2]]}
    inner = [{**each, "t": each["t"] - 2.0} for each in INNER]
    relative["requests"][1]["requests"] = inner  # times of subagents that count from their own begin
    (tmp_path / "0.json").write_text(json.dumps(relative))
    assert links(path) == expected


def test_conversations_fork_spawn_and_join(tmp_path: Path) -> None:
    rows = read_trace(written(tmp_path, "talks.jsonl", TALKS))
    assert rows.prompt_tokens.tolist() == [100, 135, 100, 25, 25, 135, 170, 170]
    assert rows.edges is not None
    assert sorted(rows.edges.tolist()) == [[0, 1], [1, 7], [2, 3], [2, 4], [2, 5], [3, 5], [4, 6], [5, 6]]
    assert rows.content is not None
    runs = [rows.content.segment[a:b].tolist() for a, b in zip(rows.content.start[:-1], rows.content.start[1:], strict=True)]
    assert runs[1][:1] == runs[0] == runs[2]
    assert runs[1][1] == rows.content.output_segment[0]  # a fork goes on from the answer, a spawn does not
    assert len(runs[3]) == 1


BROKEN = {
    "nobody": ([{**AGENTIC[0], "wait_for": ["q"]}], "waits for 'q', and no row has that request_id"),
    "circle": (
        [{**AGENTIC[0], "wait_for": ["z"]}, {**AGENTIC[4], "wait_for": ["a"]}],
        "requests wait for each other in a circle",
    ),
    "no-length": ([{**RUN, "requests": [{"t": 0.0, "out": 3}]}], "in is missing"),
    "no-object": ([{**RUN, "requests": [3]}], "a request is no object"),
    "sizes": ([RUN, {**RUN, "block_size": 16}], "blocks of 16 and 64 tokens"),
    "no-call": ([{"timestamp": 1, "event": {"event_type": "tool_end"}}], "holds no call of a model"),
    "no-child": ([{"session_id": "r", "turns": [said("x", forks=["y"])]}], "no conversation is called 'y'"),
    "itself": ([{"session_id": "r", "turns": [said("x", forks=["r"])]}], "branches off from itself"),
    "no-limit": ([{"session_id": "r", "turns": [{"messages": [{"content": "x"}]}]}], "max_tokens is missing"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_trace_is_said(name: str, tmp_path: Path) -> None:
    records, words = BROKEN[name]
    with pytest.raises(InputError) as caught:
        read_trace(written(tmp_path, "trace.jsonl", records))
    assert words in str(caught.value)
    assert "trace.jsonl" in str(caught.value)
    assert caught.value.mend


def workload(path: Path, **keys: Any) -> Workload:
    data = {"model": MODEL, "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"}}
    checked = load_scenario({**data, "workload": {"trace": str(path), "sessions": {"replay": "gap"}, **keys}})
    return build_workload(checked.workload, seed=3, base_dir=path.parent)


def test_whole_sessions_come_by_the_arrivals_and_again(tmp_path: Path) -> None:
    path = written(tmp_path, "agents.jsonl", AGENTIC)
    found = workload(path, arrivals={"kind": "constant", "rate": 2}, duration=3)
    opens = np.flatnonzero(found.turn == 0)
    assert found.arrival_s[opens].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    assert np.isnan(found.arrival_s[found.turn > 0]).all()
    assert np.bincount(found.session_id).tolist() == [4, 1, 4, 1, 4, 1]
    assert found.content is not None
    first, again = (set(found.content.segment[found.content.start[row] : found.content.start[row + 1]]) for row in opens[[0, 2]])
    assert first & again  # what both sessions of the trace have, block 0
    assert "sessions of the trace (2) come again" in " ".join(found.warnings)
    assert len(workload(path, arrivals={"kind": "poisson", "rate": 1})) == 5  # each session once
    cut = workload(path, arrivals={"kind": "batch"}, requests=6)
    assert len(cut) == 6
    assert (cut.arrival_s[~np.isnan(cut.arrival_s)] == 0).all()


def test_what_only_a_session_has_is_new_when_it_comes_again(tmp_path: Path) -> None:
    path = written(tmp_path, "runs.jsonl", [RUN])
    data = {"model": MODEL, "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"}}
    work = {"trace": str(path), "sessions": {"replay": "gap"}, "arrivals": {"kind": "constant", "rate": 0.1}, "duration": 25}
    frame = simulate({**data, "workload": work}).requests_frame()
    hits = frame.groupby("session_id")["cached_tokens"].apply(list).tolist()
    assert hits == [[0, 0, 64, 128]] * 3


@pytest.mark.parametrize("arrivals", [{"kind": "poisson", "rate": 3}, {"kind": "closed_loop", "concurrency": 3}])
def test_no_call_begins_before_all_that_it_waits_for(arrivals: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, "agents.jsonl", AGENTIC)
    data = {"model": MODEL, "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 2}}
    work = {"trace": str(path), "sessions": {"replay": "gap"}, "arrivals": arrivals, "duration": 8}
    run = simulate({**data, "workload": work})
    load, frame = run.workload, run.requests_frame()
    assert frame.equals(simulate({**data, "workload": work}, aggregate=False).requests_frame())
    arrived, end_s = frame["arrival_s"].to_numpy(), frame["end_s"].to_numpy()
    waits: dict[int, list[int]] = {row: [before] for row, before in enumerate(load.predecessor.tolist()) if before >= 0}
    assert load.edges is not None
    for before, row in load.edges.tolist():
        waits[row].append(before)
    came = 0
    for row, before in waits.items():
        if not np.isnan(arrived[row]):
            came += 1
            assert arrived[row] == pytest.approx(max(end_s[other] for other in before) + load.gap_s[row], abs=1e-9)
    assert came > 20
    joins = [row for row, before in waits.items() if len(before) == 2 and not np.isnan(arrived[row])]
    assert len(joins) > 5
    totals = run.result["totals"]
    assert totals["offered"] == totals["completed"] == int((~np.isnan(arrived)).sum())
    if arrivals["kind"] == "closed_loop":
        sessions = frame[~np.isnan(arrived)].groupby("session_id")
        opened, closed = sessions["arrival_s"].min().to_numpy(), sessions["end_s"].max().to_numpy()
        assert max(int(((opened <= at) & (closed > at)).sum()) for at in opened) == 3


def test_what_branches_is_written_as_lines_that_wait(tmp_path: Path) -> None:
    path = written(tmp_path, "trace.jsonl", SERVED)
    data = {"model": MODEL, "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"}, "workload": {"trace": str(path)}}
    found = build_workload(load_scenario(data).workload, seed=0, base_dir=tmp_path)
    again = tmp_path / "again.jsonl"
    write_workload(found, again, trace_format="mooncake")
    assert links(again) == links(path)
    rows, before = read_trace(again), read_trace(path)
    waits = [
        sorted(zip(each.prompt_tokens.tolist(), np.nan_to_num(np.asarray(each.wait_s)).round(6).tolist(), strict=True))
        for each in (rows, before)
    ]
    assert waits[0] == waits[1]
    with pytest.raises(InputError, match="cannot be written as columns"):
        write_workload(found, tmp_path / "again.csv")


def test_arrivals_of_sessions_have_no_recorded_times() -> None:
    data = {"model": MODEL, "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"}}
    work = {"trace": "x.csv", "sessions": {"replay": "absolute"}, "arrivals": {"kind": "batch"}}
    with pytest.raises(InputError, match=r"sessions\.replay: absolute belongs to recorded times"):
        load_scenario({**data, "workload": work})
