"""Structured output: which rows carry a mask, what filling and applying it costs, and when it is hidden."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.cost.token_masks import BYTES_PER_LOGIT, FILL_S, OUTLINES_FILL_S, TokenMasks
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import InputError
from simulator.cluster.content import is_structured
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate

DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.6}
EAGLE = {**DRAFTS, "method": "eagle3"}
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


def test_drafts_have_a_mask_for_each_token_that_is_verified() -> None:
    """Closed form: 1 + k masks a row, filled by one thread while the model runs, then the drafter's passes."""
    pool = {"speculative": EAGLE, "engine_args": {"max_num_seqs": 256}}
    constrained = prepare(scenario({**LOAD, "structured_output": 1.0}, **pool))
    rows = 100
    batch = Batch(0, rows, 4 * rows, 100 * rows, tokens=4 * rows)
    times = constrained.times()
    drafting = times._inner  # type: ignore[attr-defined]
    free_s, model_s = times.step_s([batch])[0], drafting.model.step_s([batch])[0]
    batch.masked_rows = 4 * rows
    assert 4 * rows * FILL_S > model_s
    apply_s = BYTES_PER_LOGIT * 128_256 * 4 * rows / 3.35e12
    assert times.step_s([batch])[0] - free_s == pytest.approx(4 * rows * FILL_S - model_s + apply_s, rel=0.01)
    scheduler = constrained.plan.scheduler("step")
    request = Sequence(0, 50, 40, 0.0, masked=True, acceptance=lambda number: 3)
    scheduler.add(request)
    masks = []
    for _ in range(4):
        found = scheduler.schedule(0.0)
        assert found is not None
        scheduler.settle(found)
        masks.append(found.masked_rows)
    assert masks == [1, 4, 4, 4]


@pytest.mark.parametrize("engine", ["sglang", "trtllm"])
def test_other_engines_that_draft_count_their_masks_too(engine: str) -> None:
    """Two requests, one under a grammar: a mask where its prompt ends, then one for each of four tokens that a step verifies."""
    scheduler = prepare(scenario({**LOAD, "structured_output": 1.0}, engine=engine, speculative=EAGLE)).plan.scheduler("jump")
    for index in (0, 1):
        scheduler.add(Sequence(index, 50, 40, 0.0, masked=index == 0, acceptance=lambda number: 3))
    masks = []
    for _ in range(4):
        found = scheduler.schedule(0.0)
        assert found is not None
        scheduler.settle(found)
        masks.append((found.masked_rows, len(found.prefill), found.decode_rows))
    assert masks == [(1, 2, 0), *[(4, 0, 2)] * 3]
    run = simulate(scenario({**LOAD, "structured_output": 0.5}, engine=engine, speculative=EAGLE))
    assert run.result["totals"]["completed"] == LOAD["requests"]


def test_ranks_wait_for_the_one_with_most_masks() -> None:
    """More rows than the step hides, on one of four ranks: the step lasts as long as that one's masks."""
    ranks = {"engine": "sglang", "tensor_parallel": 1, "data_parallel": 4, "expert_parallel": 4}
    deployment = {"hardware": "h100-sxm-80gb", **ranks, "engine_args": {"enable_dp_attention": True}}
    load = {**LOAD, "structured_output": 1.0}
    given = load_scenario({"model": "mistralai/Mixtral-8x7B-v0.1", "deployment": deployment, "workload": load})
    times, batches = prepare(given).times(), [Batch(0, rows, rows, 50 * rows, tokens=rows) for rows in (16, 32, 16, 16)]
    free_s = times.step_s(batches)[0]
    for batch, masks in zip(batches, (10, 4000, 10, 10), strict=True):
        batch.masked_rows = masks
    assert free_s < 0.5 * 4000 * FILL_S
    assert times.step_s(batches)[0] == pytest.approx(4000 * FILL_S, rel=0.01)
    jumped, stepped = (simulate(given, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.result["metrics"] == stepped.result["metrics"]
    assert jumped.result["totals"]["completed"] == LOAD["requests"]


@pytest.mark.parametrize("model", ["openai/gpt-oss-20b", "google/gemma-3-27b-it"])
def test_rows_over_sliding_windows_are_served_as_without_grammars(model: str) -> None:
    """A share that no request falls into changes nothing; half of them little."""
    lengths = {"prompt_tokens": {"kind": "uniform", "low": 100, "high": 3000}, "output_tokens": 60}
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": {"max_model_len": 8192}}

    def run(**more: float) -> dict[str, Any]:
        load = {**LOAD, **lengths, "shared_prefix": {"groups": 4, "tokens": 90}, **more}
        found = simulate(load_scenario({"model": model, "deployment": deployment, "workload": load}))
        return {**found.result["metrics"], "completed": found.result["totals"]["completed"]}

    free, nobody, half = run(), run(structured_output=1e-9), run(structured_output=0.5)
    assert nobody == free
    assert half["tpot_ms"] != free["tpot_ms"]
    assert half["tpot_ms"]["mean"] == pytest.approx(free["tpot_ms"]["mean"], rel=0.03)  # masks are hidden behind the model
    assert half["completed"] == LOAD["requests"]


@pytest.mark.parametrize("pool", [{"speculative": EAGLE}, {"pipeline_parallel": 2}])
def test_drafts_and_stages_of_vllm_beside_grammars_run(pool: dict[str, Any]) -> None:
    constrained, free = scenario({**LOAD, "structured_output": 0.5}, **pool), scenario(LOAD, **pool)
    jumped, stepped = (simulate(constrained, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.result["metrics"] == stepped.result["metrics"]
    assert jumped.result["totals"]["completed"] == LOAD["requests"]
    assert jumped.result["metrics"]["tpot_ms"]["mean"] > simulate(free).result["metrics"]["tpot_ms"]["mean"]


@pytest.mark.parametrize(
    ("workload", "pool", "words"),
    [
        ({"structured_output": 1.5}, {}, "at most 1"),
        ({"structured_output": 1.0}, {"engine": "mlc_llm"}, "structured output is modelled for"),
        ({"structured_output": 1.0}, {"engine": "tgi", "engine_args": {"disable_grammar_support": True}}, "when told so"),
        ({"structured_output": 1.0}, {"engine": "tgi", "speculative": DRAFTS}, "beside `speculative`"),
    ],
)
def test_what_is_not_modelled_is_refused_in_words(workload: dict[str, Any], pool: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(scenario({**LOAD, **workload}, **pool))
