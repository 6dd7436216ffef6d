"""Recorded decisions of routers, replayed: each is among those that the rule allows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.validation.schedules import replay


def decided(path: Path, config: dict[str, Any], *lines: dict[str, Any]) -> dict[str, Any]:
    config = {"type": "config", "scenario": "one", "workers": 2, **config}
    path.write_text("\n".join(json.dumps(line) for line in (config, *lines)) + "\n")
    return replay(path)


def req(name: str, worker: int | None, *segments: list[int], **more: Any) -> dict[str, Any]:
    n = sum(segment[2] for segment in segments)
    return {"type": "req", "id": name, "segments": list(segments), "n": n, "worker": worker, **more}


SGLANG = {"engine": "sglang-router", "listed_order": [1, 0]}


def test_the_recorded_worker_is_taken_whatever_the_rule_says(tmp_path: Path) -> None:
    """The first choice breaks the rule (worker 1 is listed first); those that follow are judged on what happened."""
    lines = [req("a", 0, [1, 0, 50]), req("b", 0, [1, 0, 50], [2, 0, 9]), req("c", 1, [3, 0, 50])]
    found = decided(tmp_path / "one.jsonl", {**SGLANG, "args": ["--policy", "cache_aware"]}, *lines)
    assert (found["steps"], found["equal"]) == (3, 2)
    assert found["first_difference"] == {"step": 0, "what": "worker", "recorded": 0, "simulated": [1]}


def test_a_request_that_fails_is_sent_on(tmp_path: Path) -> None:
    args = ["--policy", "round_robin", "--cb-failure-threshold", "1"]
    found = decided(
        tmp_path / "one.jsonl",
        {**SGLANG, "args": args},
        {"type": "fail", "worker": 0},
        req("a", 1, [1, 0, 5]),
        req("b", 1, [1, 0, 5], failed_on=[0]),
        req("c", 1, [1, 0, 5]),
        req("d", 0, [1, 0, 5]),
    )
    assert found["first_difference"] == {"step": 3, "what": "worker", "recorded": 0, "simulated": [1]}


def test_what_a_failing_worker_of_vllms_router_got_is_no_match(tmp_path: Path) -> None:
    """b's text is worker 1's alone when 1 fails: the least loaded gets it, and c finds it there, less loaded or not."""
    args = ["--policy", "cache_aware", "--cb-failure-threshold", "1"]
    found = decided(
        tmp_path / "one.jsonl",
        {"engine": "vllm-router", "workers": 3, "listed_order": [0, 1, 2], "args": args},
        req("a", 0, [1, 0, 50]),
        {"type": "fail", "worker": 1},
        req("b", 2, [2, 0, 50], failed_on=[1]),
        req("c", 2, [2, 0, 50], [3, 0, 10]),
        req("d", 0, [1, 0, 50], [4, 0, 10]),
    )
    assert (found["first_difference"], found["equal"]) == (None, 4)


@pytest.mark.parametrize(("cost", "equal"), [(4.0, 1), (4.0 + 1e-6, 0)])
def test_costs_are_compared(tmp_path: Path, cost: float, equal: int) -> None:
    """32 tokens in blocks of 16: two to compute and two to keep."""
    line = {
        "type": "req",
        "id": "a",
        "isl": 32,
        "bids": [1, 2],
        "overlap_blocks": [0, 0],
        "worker": 0,
        "cost": cost,
    }
    line["after"] = {"prefill": [32, 0], "decode": [2, 0], "active": [1, 0], "pending": 0}
    config = {
        "engine": "dynamo-kv-router",
        "block_size": 16,
        "env": {},
        "worker": {"max_num_batched_tokens": 64},
    }
    assert decided(tmp_path / "one.jsonl", config, line)["equal"] == equal


def test_a_flag_that_is_not_modelled_is_the_reason(tmp_path: Path) -> None:
    found = decided(
        tmp_path / "one.jsonl", {**SGLANG, "args": ["--no-such-flag", "1"]}, req("a", 1, [1, 0, 5])
    )
    assert (found["steps"], found["equal"]) == (1, 0)
    assert "no_such_flag" in found["first_difference"]["reason"]
