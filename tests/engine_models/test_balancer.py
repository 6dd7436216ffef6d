"""Experts that a balancer places: what is left on the most loaded rank, what copies take, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.model.expert_groups import group_spread
from hardware_profiles.errors import InputError
from hardware_profiles.expert_ranks import EVEN, Deal, balanced_excess, loaded_rank
from hardware_profiles.kernel_model import load_kernel_model
from hardware_profiles.kernel_physics import POPULARITY_SHAPE
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare

BALANCED: dict[str, dict[str, Any]] = {
    "vllm": {"enable_eplb": True, "eplb_config": {"num_redundant_experts": 32}},
    "sglang": {"enable_eplb": True, "ep_num_redundant_experts": 32, "dp_size": 32, "enable_dp_attention": True},
    "trtllm": {
        "enable_attention_dp": True,
        "moe_config": {"load_balancer": {"num_slots": 288, "layer_updates_per_iter": 1}},
    },
}


def prepared(engine: str, flags: dict[str, Any], model: str = "DeepSeek-V3", **pool: Any) -> Prepared:
    deployment = {"engine": engine, "hardware": "h200-sxm-141gb", "data_parallel": 32, "expert_parallel": True, **pool}
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": {"kind": "constant", "value": 64}, "requests": 4}
    scenario = {
        "model": model,
        "deployment": {**deployment, "engine_args": flags},
        "workload": {**workload, "output_tokens": {"kind": "constant", "value": 4}},
    }
    return prepare(load_scenario(scenario))


def without(flags: dict[str, Any]) -> dict[str, Any]:
    words = ("eplb", "redundant", "moe_config")
    return {name: value for name, value in flags.items() if not any(word in name for word in words)}


def test_what_is_left_is_what_was_counted_on_balanced_ranks() -> None:
    """TensorRT-LLM's table of DeepSeek-R1: 0.109 more on the most loaded of 32 ranks (32 copies, 1,024 rows a rank)."""
    tokens, choices = np.array([1024.0 * 32 / 8]), group_spread(256, 8, 8, 4, 32)
    left = float(loaded_rank(tokens, 8, 256, 32, Deal(choices, 32, True))[0]) - 1.0
    assert left == pytest.approx(0.109, abs=0.04)
    assert float(loaded_rank(tokens, 8, 256, 32, Deal(choices))[0]) - 1.0 > 0.5


def test_the_excess_is_that_of_placing_drawn_popularities() -> None:
    """Against draws of the law itself, copied and dealt out one by one."""
    rng, found = np.random.default_rng(5), []
    for _ in range(40):
        rows, held = rng.gamma(POPULARITY_SHAPE, size=64), np.ones(64)
        for _ in range(16):
            held[np.argmax(rows / held)] += 1
        pieces = sorted(np.repeat(rows / held, held.astype(int)), reverse=True)
        load, room = np.zeros(16), np.full(16, 5)
        for piece in pieces:
            at = np.argmin(np.where(room > 0, load, np.inf))
            load[at], room[at] = load[at] + piece, room[at] - 1
        found.append(load.max() / load.mean() - 1.0)
    assert balanced_excess(64, 16, 16) == pytest.approx(np.mean(found), abs=0.02)


@pytest.mark.parametrize(("experts", "copies", "ranks"), [(256, 0, 8), (256, 32, 32), (128, 0, 128), (64, 64, 64), (8, 0, 8)])
def test_a_balancer_never_loads_a_rank_more(experts: int, copies: int, ranks: int) -> None:
    tokens = np.array([1.0, 16.0, 256.0, 4096.0, 65536.0])
    balanced = loaded_rank(tokens, min(8, experts), experts, ranks, Deal(copies=copies, balanced=True))
    assert np.all(balanced <= loaded_rank(tokens, min(8, experts), experts, ranks, EVEN))
    assert np.all(balanced >= 1.0)


@pytest.mark.parametrize("engine", BALANCED)
def test_flags_of_each_engine_make_large_steps_shorter_and_weights_larger(engine: str) -> None:
    flags = BALANCED[engine]
    plain, balanced = prepared(engine, without(flags)), prepared(engine, flags)
    more = balanced.plan.memory.bytes_of("weight") - plain.plan.memory.bytes_of("weight")
    one = 3 * 7168 * 2048  # bytes of an expert of a layer in FP8
    assert more == pytest.approx(58 * one + (9 * one if engine == "vllm" else 0), rel=2e-3)
    assert any("balancer deals 288 experts" in note for note in balanced.plan.notes)
    assert not any("balance" in warning for warning in balanced.warnings)
    shapes = [moe for moe in _shapes(balanced) if moe.deal.balanced]
    assert [moe.deal.copies for moe in shapes] == [32]
    kernels, layer = load_kernel_model("h200-sxm-141gb", engine), ("fp8_block", 7168, 2048, 8, 256, 1, 32, [32768])
    plain_s = kernels.moe_s(*layer, deal=Deal(shapes[0].deal.spread))
    assert kernels.moe_s(*layer, deal=shapes[0].deal)[0] < 0.85 * plain_s[0]


def _shapes(one: Prepared) -> list[Any]:
    from engine_models.model.architecture import moe_shapes

    return moe_shapes(one.plan.costs.arch, 1, 32, 32)


REFUSED: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("vllm", {"enable_eplb": True, "eplb_config": {"num_redundant_experts": 5}}, {}, "256 experts and 5 copies"),
    ("vllm", {"eplb_config": {"num_redundant_experts": 32}}, {}, "with its balancer alone"),
    ("vllm", {"enable_eplb": True}, {"data_parallel": 1, "tensor_parallel": 8, "expert_parallel": False}, "lies on all"),
    ("vllm", {"enable_eplb": True}, {"model": "Llama-3.1-8B-Instruct", "data_parallel": 1, "expert_parallel": False}, "has none"),
    ("trtllm", {"moe_config": {"load_balancer": {"num_slots": 128}}}, {}, "fewer than the 256 experts"),
    ("trtllm", {"moe_config": {"load_balancer": {"slots": 288}}}, {}, "no key `slots`"),
]


@pytest.mark.parametrize(("engine", "flags", "pool", "words"), REFUSED)
def test_places_that_cannot_be_are_refused(engine: str, flags: dict[str, Any], pool: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepared(engine, flags, **pool)


def test_copies_alone_change_no_load() -> None:
    """SGLang places them in order unless its balancer runs or a file says where."""
    flags = without(BALANCED["sglang"])
    shape = _shapes(prepared("sglang", {**flags, "ep_num_redundant_experts": 32}))[0]
    assert (shape.deal.copies, shape.deal.balanced) == (32, False)
    placed = _shapes(prepared("sglang", {**flags, "init_expert_location": "counts.json"}))[0]
    assert (placed.deal.copies, placed.deal.balanced) == (0, True)
