"""LitServe: its recordings, flags and refusals, workers in memory and time, the shipped scenario."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_models.cost.overheads import load_overheads
from engine_models.cost.terms import Formats
from engine_models.declaration import PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.litserve import plan, rules_of
from engine_models.engines.litserve_recorded import decisions
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.protocols import INFINITY
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.run import simulate

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "windows-litserve-l40s.yaml"
LOAD = {
    "prompt_tokens": {"kind": "constant", "value": 200},
    "output_tokens": {"kind": "constant", "value": 50},
}


def request_of(**flags: Any) -> PoolRequest:
    bf16 = format_named("bf16")
    return PoolRequest(
        arch=load_architecture(LLAMA),
        formats=Formats(bf16, bf16, bf16),
        device_name="h100-sxm-80gb",
        device_memory_bytes=int(load_device("h100-sxm-80gb").memory_bytes.value),
        flags=flags,
    )


def served(arrivals: dict[str, Any], requests: int, **flags: Any) -> dict[str, Any]:
    pool = {"engine": "litserve", "hardware": "h100-sxm-80gb", "engine_args": flags}
    load = {**LOAD, "arrivals": arrivals, "requests": requests}
    result: dict[str, Any] = simulate({"model": LLAMA, "deployment": pool, "workload": load}).result
    return result


def test_defaults_take_one_request_at_a_time_and_no_window() -> None:
    rules = rules_of({})
    assert (rules.workers, rules.max_batch_size, rules.batch_timeout_s, rules.timeout_s) == (1, 1, 0.0, 30.0)
    assert (
        rules_of({"batch_timeout": 5.0}).batch_timeout_s == 0.0
    )  # with one request at a time there is no window
    assert rules_of({"max_batch_size": 4, "batch_timeout": 0.05, "timeout": False}).timeout_s == INFINITY
    assert rules_of({"timeout": -1}).timeout_s == INFINITY


def test_a_window_costs_half_of_itself_on_an_idle_server_and_all_of_itself_on_a_busy_one() -> None:
    """A window of 2 s: requests every 20 s wait 1 s on average; in a closed loop of one each waits for all of it."""
    slow = {"kind": "poisson", "rate": 0.05}
    plain, window = (served(slow, 200, max_batch_size=8, batch_timeout=each) for each in (0.0, 2.0))
    extra_ms = window["metrics"]["e2el_ms"]["mean"] - plain["metrics"]["e2el_ms"]["mean"]
    assert extra_ms == pytest.approx(1000, rel=0.1)
    loop = {"kind": "closed_loop", "concurrency": 1, "think_time_s": {"kind": "constant", "value": 0}}
    plain, window = (served(loop, 30, max_batch_size=8, batch_timeout=each) for each in (0.0, 2.0))
    extra_ms = window["metrics"]["e2el_ms"]["p50"] - plain["metrics"]["e2el_ms"]["p50"]
    assert extra_ms == pytest.approx(2000, rel=0.02)


def test_who_has_waited_too_long_is_answered_504() -> None:
    totals = served({"kind": "batch"}, 60, timeout=10.0)["totals"]
    assert totals["failed"] == totals["reasons"]["timed_out"] > 30
    assert totals["completed"] + totals["failed"] == 60


def test_two_workers_hold_two_models_and_launch_side_by_side() -> None:
    """The host's launches are what a step takes, so a second process nearly doubles the tokens; on memory it costs a model."""
    one, two = (plan(request_of(workers_per_device=workers)) for workers in (1, 2))
    assert two.memory.bytes_of("weight") == 2 * one.memory.bytes_of("weight")
    assert two.limits.kv_tokens < one.limits.kv_tokens
    rates = [
        served({"kind": "batch"}, 40, workers_per_device=workers, timeout=False)["totals"][
            "output_throughput"
        ]
        for workers in (1, 2)
    ]
    assert 1.6 < rates[1] / rates[0] < 2.0
    with pytest.raises(InfeasibleError, match="6 copies of the weights"):
        plan(request_of(workers_per_device=6))


def test_answers_come_at_once_unless_they_are_streamed() -> None:
    first = [
        served({"kind": "batch"}, 1, stream=stream)["metrics"]["ttft_ms"]["mean"] for stream in (False, True)
    ]
    assert first[0] > 20 * first[1]


def test_flags_and_refusals() -> None:
    assert parse_engine_args(
        "litserve", {"max_batch_size": 8, "timeout": False, "fast_queue": True}
    ).values == {
        "max_batch_size": 8,
        "timeout": False,
    }
    for flags, words in (
        ({"devices": 4}, "which devices share the queue"),
        ({"loop": "mine"}, "who forms the batches"),
        ({"model_engine": "vllm"}, "cannot be 'vllm'"),
        ({"max_num_seqs": 4}, "no flag"),
        ({"max_batch_size": 0}, "at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            parse_engine_args("litserve", flags)
    with pytest.raises(InputError, match="longer than timeout"):
        rules_of({"max_batch_size": 2, "batch_timeout": 60.0})


PROGRAM = """
import litserve as ls

class Chat(ls.LitAPI):
    def predict(self, prompt):
        return self.model(prompt)

api = Chat(max_batch_size=16, batch_timeout=0.01, folder=where())
ls.LitServer(api, accelerator="gpu", workers_per_device=2, timeout=60).run(port=8000)
"""


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        (PROGRAM, {"max_batch_size": 16, "batch_timeout": 0.01, "workers_per_device": 2, "timeout": 60.0}),
        ("ls.LitServer(Chat(stream=True), max_batch_size=8)", {"max_batch_size": 8, "stream": True}),
    ],
)
def test_a_program_that_serves_is_read(text: str, flags: dict[str, Any]) -> None:
    found = parse_engine_args("litserve", text)
    assert found.values == flags
    assert found.notes == []


def test_requests_that_find_no_slot_wait_for_the_reader() -> None:
    """One slot: b comes while a runs and is pending; a ends, and the slot stays empty until the reader has waited a second."""
    knobs = {
        "max_batch_size": 1,
        "batch_timeout": 0.0,
        "workers_per_device": 1,
        "stream": True,
        "request_timeout": 30,
        "no_pending_requests": False,
        "model": {"t0": 0.01, "per_item": 0.0},
    }
    requests = [
        {"id": "a", "idx": 0, "arrival": 0.0, "output_len": 5},
        {"id": "b", "idx": 1, "arrival": 0.012, "output_len": 1},
    ]
    steps, _ = decisions(knobs, requests)
    assert [step["batch"] for step in steps] == [["a"]] * 5 + [["b"]]
    assert steps[5]["admitted"] == [["b", 1.02]]  # the reader began anew with the third step


def test_of_streams_that_end_together_the_one_goes_on_first_that_began_its_last_token_first() -> None:
    """A token takes 1/8 s, and 1/8 s for each stream. Worker 0 has a from 0 on, its last token from 0.75 to 1; worker 1 has d
    until 0.25, then b and c, their last token from 0.625 to 1, and so takes who waits then."""
    knobs = {
        "max_batch_size": 2,
        "batch_timeout": 0.0,
        "workers_per_device": 2,
        "stream": True,
        "request_timeout": -1,
        "model": {"t0": 0.125, "per_item": 0.125},
    }
    given = [("a", 0.0, 4), ("d", 0.0, 1), ("b", 0.1, 2), ("c", 0.1, 2), ("e", 0.5, 1), ("f", 0.5, 1), ("g", 0.5, 1)]
    requests = [{"id": name, "idx": at, "arrival": at_s, "output_len": n} for at, (name, at_s, n) in enumerate(given)]
    steps, _ = decisions(knobs, requests)
    done = [(step["worker"], step["batch"], step["t_end"]) for step in steps]
    assert done[:3] == [(1, ["d"], 0.25), (1, ["b", "c"], 1.0), (0, ["a"], 1.0)]
    assert sorted(done[3:]) == [(0, ["g"], 1.25), (1, ["e", "f"], 1.375)]


def test_mean_answers_are_those_of_the_real_server() -> None:
    """Its recordings on a wall clock: 3.5 ms before a batch and 3.9 after it, as the front end has it, are within 5 ms."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "conformance" / "litserve"
    if not folder.is_dir():
        pytest.skip(f"no recordings beside the checkout ({folder})")
    before_s, after_s = 0.0035, 0.0039
    assert load_overheads("litserve").front_end_s == pytest.approx(before_s + after_s)
    for path in sorted(folder.glob("wall_*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        results = {line["id"]: line for line in lines if line["type"] == "result"}
        requests = [
            {**line, "arrival": results[line["id"]]["arrival"] + before_s}
            for line in lines
            if line["type"] == "request"
        ]
        steps, _ = decisions(lines[0]["config"], requests)
        ends = {name: step["t_end"] + after_s for step in steps for name in step["batch"]}
        late_s = [ends[name] - result["finish"] for name, result in results.items()]
        assert abs(sum(late_s) / len(late_s)) < 0.005, path.name


def test_the_shipped_scenario_sends_some_away() -> None:
    scenario = yaml.safe_load(SCENARIO.read_text(encoding="utf-8"))
    totals = simulate(scenario).result["totals"]
    assert set(totals["reasons"]) == {"timed_out"}
    scenario["deployment"]["engine_args"]["timeout"] = False
    assert simulate(scenario).result["totals"]["failed"] == 0
