"""What would hold a model that does not fit."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.cli.check import what_would_hold
from simulator.config.load import load_scenario
from simulator.config.schema import Scenario
from simulator.planning.holding import more_of_the_same, other_hardware, smaller_weights


def scenario(model: str, **deployment: Any) -> Scenario:
    return load_scenario(
        {
            "model": model,
            "deployment": {"engine": "vllm", "hardware": "rtx-4090-24gb", **deployment},
            "workload": {
                "arrivals": {"kind": "poisson", "rate": 1},
                "prompt_tokens": 100,
                "output_tokens": 10,
                "duration": 10,
            },
        }
    )


def test_more_of_the_same_card_comes_first_and_names_the_key() -> None:
    asked = scenario("Qwen/Qwen2.5-32B-Instruct")
    same = more_of_the_same(asked)
    assert same is not None
    assert (same.hardware, same.devices, same.pipeline_parallel) == ("rtx-4090-24gb", 4, 1)
    assert what_would_hold(asked).startswith("more of the same: 4 x rtx-4090-24gb $")
    assert "(tensor_parallel: 4)" in what_would_hold(asked)


def test_what_one_node_does_not_hold_two_may() -> None:
    same = more_of_the_same(scenario("deepseek-ai/DeepSeek-R1", hardware="h100-sxm-80gb", tensor_parallel=8))
    assert same is not None
    assert (same.tensor_parallel, same.pipeline_parallel) == (8, 2)


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-32B-Instruct", "deepseek-ai/DeepSeek-R1"])
def test_other_hardware_is_ordered_by_price(model: str) -> None:
    found = other_hardware(scenario(model))
    assert found
    assert "rtx-4090-24gb" not in {h.hardware for h in found}
    for native in (True, False):
        prices = [h.usd_per_hour for h in found if h.native is native]
        known = [p for p in prices if p is not None]
        assert known == sorted(known)
        assert prices == known + [None] * (len(prices) - len(known)), "those without a price come last"


def test_smaller_weights_are_those_that_start_as_deployed() -> None:
    assert smaller_weights(scenario("Qwen/Qwen2.5-32B-Instruct", tensor_parallel=2)) == ["awq", "gptq", "int4"]
    assert smaller_weights(scenario("Qwen/Qwen2.5-32B-Instruct")) == [], "nothing is left for the KV cache of a context"
