"""Triton: keys of its model configuration, refusals, what instances cost, the shipped scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_models.engines.known import parse_engine_args
from engine_models.engines.triton_batcher import rules_of
from engine_models.schedulers.dynamic_batcher import QueuePolicy
from hardware_profiles.errors import InputError
from simulator.run import simulate

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "batcher-triton-a100.yaml"
LOAD = {
    "prompt_tokens": {"kind": "constant", "value": 200},
    "output_tokens": {"kind": "constant", "value": 50},
}


def served(
    arrivals: dict[str, Any], requests: int, pool: dict[str, Any] | None = None, **flags: Any
) -> dict[str, Any]:
    deployment = {"engine": "triton", "hardware": "h100-sxm-80gb", "engine_args": flags, **(pool or {})}
    load = {**LOAD, "arrivals": arrivals, "requests": requests}
    result: dict[str, Any] = simulate({"model": LLAMA, "deployment": deployment, "workload": load}).result
    return result


def test_defaults() -> None:
    """Without dynamic_batching one by one; with it, the largest batch is the preferred one, and there is no delay."""
    alone, batching = rules_of({"max_batch_size": 8}), rules_of({"max_batch_size": 8, "dynamic_batching": {}})
    assert (alone.max_batch_size, alone.instances, alone.prefetches) == (1, 1, True)
    assert (batching.max_batch_size, batching.preferred_batch_sizes, batching.max_queue_delay_s) == (
        8,
        (8,),
        0.0,
    )
    given = {
        "priority_levels": 2,
        "default_priority_level": 2,
        "default_queue_policy": {"max_queue_size": 9},
        "priority_queue_policy": {1: {"default_timeout_microseconds": 2500, "timeout_action": "DELAY"}},
    }
    policies = rules_of({"max_batch_size": 8, "dynamic_batching": given}).policies
    assert policies == (QueuePolicy(0, 0.0025, "DELAY"), QueuePolicy(9))


def test_a_delay_is_waited_for_by_lone_requests() -> None:
    """Requests every 20 s wait the whole delay for others, and none without one; the window of LitServe costs half of itself."""
    slow = {"kind": "constant", "rate": 0.05}
    plain, delayed = (
        served(slow, 20, max_batch_size=8, dynamic_batching={"max_queue_delay_microseconds": us})
        for us in (0, 2_000_000)
    )
    extra_ms = delayed["metrics"]["e2el_ms"]["mean"] - plain["metrics"]["e2el_ms"]["mean"]
    assert extra_ms == pytest.approx(2000, rel=0.001)


def test_a_batch_is_what_came_while_the_instance_was_busy() -> None:
    totals = [
        served({"kind": "poisson", "rate": 3}, 100, max_batch_size=rows, dynamic_batching={})["totals"][
            "duration_s"
        ]
        for rows in (1, 16)
    ]
    assert totals[0] > 2 * totals[1]


def test_a_full_queue_answers_503() -> None:
    policy = {"default_queue_policy": {"max_queue_size": 5}}
    totals = served({"kind": "batch"}, 60, max_batch_size=4, dynamic_batching=policy)["totals"]
    assert totals["rejected"] == totals["reasons"]["shed_503"] > 20
    assert totals["completed"] + totals["rejected"] == 60


def test_what_triton_would_not_load_is_refused() -> None:
    for flags, words in (
        (
            {"max_batch_size": 4, "dynamic_batching": {"preferred_batch_size": [8]}},
            "more than max_batch_size 4",
        ),
        ({"dynamic_batching": {"priority_levels": 2}}, "none of the 2 priority_levels"),
        ({"dynamic_batching": {"preferred_batchsize": [8]}}, "no key `preferred_batchsize`"),
        ({"dynamic_batching": {"default_queue_policy": {"timeout_action": "DROP"}}}, "cannot be 'DROP'"),
        ({"instance_group": {"count": 0}}, "at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            rules_of(flags)
    with pytest.raises(InputError, match="does not run on"):
        served({"kind": "batch"}, 1, {"hardware": "apple-m2-ultra-76c-192gb"})


def test_launch_commands_say_nothing_of_batches() -> None:
    words = "docker run --gpus=1 nvcr.io/nvidia/tritonserver:26.06-py3 tritonserver --model-repository=/models --http-port 8000"
    assert parse_engine_args("triton", words).values == {}
    with pytest.raises(InputError, match="without the model"):
        parse_engine_args(
            "triton", "tritonserver --model-repository=/models --cache-config local,size=1048576"
        )
    with pytest.raises(InputError, match="no flag"):
        parse_engine_args("triton", {"max_num_seqs": 4})


def test_the_shipped_scenario_refuses_some() -> None:
    scenario = yaml.safe_load(SCENARIO.read_text(encoding="utf-8"))
    reasons = simulate(scenario).result["totals"]["reasons"]
    assert reasons["shed_503"] > 0
    assert set(reasons) <= {"shed_503", "timed_out"}
