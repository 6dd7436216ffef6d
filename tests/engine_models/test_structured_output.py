"""Structured output: which rows carry a mask, what filling and applying it costs, and when it is hidden."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.cost.token_masks import FILL_S, OUTLINES_FILL_S, TokenMasks
from engine_models.parts.batch import Batch
from hardware_profiles.errors import InputError
from simulator.cluster.content import is_structured
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate

LOAD = {"arrivals": {"kind": "poisson", "rate": 20}, "prompt_tokens": 60, "output_tokens": 40, "requests": 60}


def scenario(workload: dict[str, Any], **pool: Any) -> Any:
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", **pool}
    return load_scenario({"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": workload})


def test_a_share_of_the_requests_is_constrained() -> None:
    assert sum(is_structured(index, 0.3) for index in range(4000)) == pytest.approx(1200, rel=0.06)
    assert not any(is_structured(index, 0.0) for index in range(50))
    assert all(is_structured(index, 1.0) for index in range(50))


def step_s(rows: int, tokens: int, **pool: Any) -> float:
    batch = Batch(0, tokens, tokens, 50 * tokens, tokens=tokens)
    batch.masked_rows = rows
    return float(prepare(scenario({**LOAD, "structured_output": 1.0}, **pool)).times().step_s([batch])[0])


def test_masks_are_hidden_behind_the_model_where_the_engine_overlaps_them() -> None:
    hidden = step_s(8, 8) - step_s(0, 8)
    assert 0 < hidden < 20e-6  # what is applied on the device
    assert step_s(200, 256) - step_s(0, 256) < 0.5e-3  # eight threads
    shown = step_s(8, 8, engine="vllm@0.11.0") - step_s(0, 8, engine="vllm@0.11.0")
    assert shown == pytest.approx(8 * FILL_S, rel=0.1)
    outlines = step_s(3, 8, engine="tgi") - step_s(0, 8, engine="tgi")
    assert outlines == pytest.approx(3 * OUTLINES_FILL_S, rel=0.01)  # row after row, once the logits are there
    serial = {"engine": "sglang", "engine_args": {"disable_overlap_schedule": True}}
    assert step_s(8, 8, **serial) - step_s(0, 8, **serial) < 20e-6  # filled once the model is launched
    assert 0 < step_s(8, 8, engine="trtllm") - step_s(0, 8, engine="trtllm") < 20e-6
    # more rows than the model's time hides
    exposed = step_s(300, 256, engine="sglang")
    assert exposed >= 300 * FILL_S > step_s(0, 256, engine="sglang")
    eight = TokenMasks(True, threads=8, alone_rows=128, share_rows=16)
    # a thread takes sixteen rows at a time: nine shares are two rounds
    assert [round(eight.fill_s(rows) / FILL_S) for rows in (128, 129, 140, 200, 256, 257)] == [128, 17, 28, 32, 32, 33]


def test_masks_delay_the_batch_that_is_formed_while_the_model_runs() -> None:
    batch = Batch(0, 50, 50, 2500, tokens=50)
    serial = {"engine": "vllm", "engine_args": {"async_scheduling": False}}
    for pool, delay_s in (({"engine": "vllm"}, 50 * FILL_S), ({"engine": "sglang"}, 50 * FILL_S), (serial, 0.0)):
        times = prepare(scenario({**LOAD, "structured_output": 1.0}, **pool)).times()
        batch.masked_rows = 0
        free_s = times.host_s(batch)
        batch.masked_rows = 50
        assert times.host_s(batch) - free_s == pytest.approx(delay_s)


@pytest.mark.parametrize("engine", ["vllm@0.11.0", "sglang", "trtllm", "tgi", "tgi@2", "lmdeploy", "lmdeploy_pytorch"])
def test_a_run_says_what_it_took_and_jumps_equal_steps(engine: str) -> None:
    name, _, backend = engine.partition("_")
    args = {"backend": backend} if backend else {}
    constrained = scenario({**LOAD, "structured_output": 0.5}, engine=name, engine_args=args)
    jumped, stepped = (simulate(constrained, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.result["metrics"] == stepped.result["metrics"]
    if engine in ("vllm@0.11.0", "tgi", "tgi@2"):
        free = simulate(scenario(LOAD, engine=engine))
        assert jumped.result["metrics"]["tpot_ms"]["mean"] > free.result["metrics"]["tpot_ms"]["mean"]


@pytest.mark.parametrize(
    ("workload", "pool", "words"),
    [
        ({"structured_output": 1.5}, {}, "at most 1"),
        ({"structured_output": 1.0}, {"engine": "mlc_llm"}, "structured output is modelled for"),
        ({"structured_output": 1.0}, {"engine": "tgi", "engine_args": {"disable_grammar_support": True}}, "when told so"),
        ({"structured_output": 1.0}, {"offload": {"kv_offloading_size": 8}}, "beside drafts, KV offload"),
    ],
)
def test_what_is_not_modelled_is_refused_in_words(workload: dict[str, Any], pool: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(scenario({**LOAD, **workload}, **pool))
