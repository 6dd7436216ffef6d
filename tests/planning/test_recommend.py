"""Which engine: who is left out and why, the order, and what is too close to call."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import pytest

from engine_models.engines.known import names
from engine_models.engines.projects import PROJECTS
from hardware_profiles.errors import InputError
from simulator.cli.recommend import text
from simulator.config.load import load_scenario
from simulator.planning import recommend as module
from simulator.planning.headroom import TOLERANCE, Search, _Outcome
from simulator.planning.recommend import Asked, Choice, Excluded, Recommendation, Wishes, judge, recommend
from simulator.results.ranking import ALIKE_MODEL
from simulator.run import run_prepared
from tests.planning.test_planning_cli import Shell

SCENARIO: dict[str, Any] = {
    "name": "chat",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": {"max_model_len": 8192}},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 8},
        "prompt_tokens": {"kind": "constant", "value": 300},
        "output_tokens": {"kind": "constant", "value": 20},
        "max_output_tokens": "equal",
        "duration": 15,
    },
    "slo": {"ttft_ms": {"p90": 500}},
    "cost": {"usd_per_gpu_hour": 3.0},
}


COST = (("cost", 1.0),)


def stub(costs: dict[str, float | None]) -> Any:
    """A `judge` that knows what each engine costs, None where it breaks the SLO at every load."""

    def judged(asked: Asked, near: float | None) -> Choice | str:
        spelled = asked.spelled
        if spelled not in costs:
            return "not tried here"
        cost = costs[spelled]
        return Choice(
            engine=spelled,
            version="1",
            implied={},
            weights="bf16",
            flags={},
            slo="met",
            p99_ttft_ms=1.0 / (cost or 1.0),
            p99_tpot_ms=1.0,
            p99_e2e_ms=1.0,
            used_share=None if cost is None else 0.5,
            highest=0.0 if cost is None else 10.0,
            unit="requests/s",
            devices=1,
            devices_needed=1,
            cost_usd=cost,
            cost_interval_usd=None if cost is None else (0.8 * cost, 1.25 * cost),
            proven_steps=0,
            measured=False,
            reserves=False,
            totals={"offered": 9, "rejected": 2, "reasons": {"prompt_too_long": 2}} if cost is None else {},
        )

    return judged


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "judge", stub({"vllm": 1.0, "sglang": 1.1, "tgi": 2.0, "trtllm": None}))


@pytest.mark.usefixtures("costs")
def test_the_cheapest_comes_first_and_what_is_not_surely_dearer_is_too_close_to_call() -> None:
    found = recommend(load_scenario(SCENARIO), Wishes(), workers=1)
    assert [c.engine for c in found.ranked] == ["vllm", "sglang", "tgi"]
    assert [c.close for c in found.ranked] == [False, True, False]
    ratio = math.log(1.1) / (math.log(1.25) / 1.645 * math.sqrt(2 - 2 * ALIKE_MODEL))
    assert found.ranked[1].sure_share == pytest.approx(NormalDist().cdf(ratio))
    assert [c.engine for c in found.never] == ["trtllm"]


@pytest.mark.usefixtures("costs")
def test_weights_turn_the_order() -> None:
    """TTFT is 1 / cost in the stub: weighed twice, the dearest is the best."""
    wishes = Wishes(weights=(("cost", 1.0), ("ttft", 2.0)))
    assert [c.engine for c in recommend(load_scenario(SCENARIO), wishes, workers=1).ranked] == ["tgi", "sglang", "vllm"]


@pytest.mark.usefixtures("costs")
def test_every_engine_is_ranked_or_left_out_with_a_reason() -> None:
    found = recommend(load_scenario(SCENARIO), Wishes(), workers=1)
    told = {c.engine for c in (*found.ranked, *found.never)} | {e.engine for e in found.excluded}
    assert told == set(names())
    reasons = {e.engine: e.reason for e in found.excluded}
    assert reasons["mlx_lm"] == "mlx_lm does not run on NVIDIA H100 SXM5 80 GB"
    assert all(reasons.values())


def test_engines_that_one_reason_excludes_are_told_together() -> None:
    away = [Excluded(name, f"{name} does not run on a Mac") for name in ("vllm", "tgi")]
    alone = Excluded("openvino", "openvino does not run on Mars")
    shown = text("x", Recommendation((), (), (*away, alone), ()))
    assert "vllm, tgi: do not run on a Mac" in shown
    formats = [Excluded("mlc_llm", "MLC-LLM does not load weights in x"), Excluded("ollama", "Ollama does not load weights in x")]
    assert "mlc_llm, ollama: do not load weights in x" in text("x", Recommendation((), (), tuple(formats), ()))
    assert "openvino: openvino does not run on Mars" in shown


@pytest.mark.parametrize(("weights", "runs"), [((("cost", 1.0),), 2), ((("cost", 1.0), ("ttft", 0.1)), 5)])
def test_tuning_keeps_the_flag_that_carries_most(
    weights: tuple[tuple[str, float], ...], runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where cost alone counts, only a flag that carries more in one short run is simulated at the offered load."""
    tokens, whole = {512: 1.0, 2048: 2.0, 8192: 4.0, 32768: 8.0}, []

    def limit_of(prepared: Any) -> float:
        args = prepared.scenario.deployment.pools[0].engine_args
        assert args["max_model_len"] == 8192  # what the scenario says is kept
        return tokens[int(args.get("max_num_batched_tokens", 8192))] * (1.0 if args.get("max_num_seqs", 1024) == 1024 else 0.5)

    class Ideal(Search):
        def _simulated(self, factor: float) -> Any:
            return _Outcome(factor * self._outcome(self._run).rate, True, factor <= limit_of(self._prepared), None)

    def simulated(prepared: Any) -> Any:
        whole.append(prepared)
        return run_prepared(prepared)

    monkeypatch.setattr("simulator.run.run_prepared", simulated)
    monkeypatch.setattr("simulator.planning.headroom.Search", Ideal)
    tries = (*({"max_num_batched_tokens": n} for n in (512, 2048, 32768)), {"max_num_seqs": 16})
    found = judge(Asked("vllm", load_scenario(SCENARIO), tries, weights), 3.0)
    assert isinstance(found, Choice)
    assert found.flags == {"max_num_batched_tokens": 32768}
    assert found.used_share == pytest.approx(1 / 8.0, rel=TOLERANCE)
    assert len(whole) == runs


@pytest.mark.usefixtures("costs")
@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        (Wishes(licences=("MIT",)), {"vllm": "licence Apache-2.0"}),
        (Wishes(alive_since="2026-06"), {"tgi": "no sign of life since 2026-01 (commit db931fcf)"}),
        (Wishes(features=("speculative",)), {"deepspeed_mii": "without speculative decoding (not simulated)"}),
    ],
)
def test_a_constraint_leaves_out_with_its_reason(wishes: Wishes, left: dict[str, str]) -> None:
    found = recommend(load_scenario(SCENARIO), wishes, workers=1)
    reasons = {e.engine: e.reason for e in found.excluded}
    assert left.items() <= reasons.items()


@pytest.mark.usefixtures("costs")
def test_engines_that_lack_what_the_pool_asks_are_named_together() -> None:
    deployment = {**SCENARIO["deployment"], "lora": {"max_loras": 2}}
    found = recommend(load_scenario({**SCENARIO, "deployment": deployment}), Wishes(), workers=1)
    without = [each.engine for each in found.excluded if each.reason == "without LoRA adapters (not simulated)"]
    assert {"mlc_llm", "litserve", "transformers"} <= set(without)
    said = " ".join(text("mine", found).split())
    assert said.count("without LoRA adapters") == 1
    assert f"{', '.join(without)}: without LoRA adapters (not simulated)" in said


@pytest.mark.usefixtures("costs")
def test_the_context_is_said_to_others_in_their_words(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def spy(asked: Asked, near: float | None) -> str:
        seen[asked.spelled] = asked.scenario.deployment.pools[0].engine_args
        return "seen"

    monkeypatch.setattr(module, "judge", spy)
    scenario = {**SCENARIO, "deployment": {**SCENARIO["deployment"], "engine_args": {"max_model_len": 8192, "max_num_seqs": 64}}}
    found = recommend(load_scenario(scenario), Wishes(), workers=1)
    assert seen["sglang"] == {"context_length": 8192}
    assert seen["lmdeploy_pytorch"]["backend"] == "pytorch"
    assert "flags of vllm are not said to the others: max_num_seqs" in found.notes


@pytest.mark.parametrize(("model", "ways"), [("google/gemma-3-4b-it", 1), ("meta-llama/Llama-3.1-8B-Instruct", 2)])
def test_a_way_that_an_engine_takes_anyway_is_listed_once(model: str, ways: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDeploy serves with its PyTorch engine what its other one lacks."""
    seen: list[str] = []
    monkeypatch.setattr(module, "judge", lambda asked, near: seen.append(asked.spelled) or "seen")
    monkeypatch.setattr(module, "names", lambda: ["lmdeploy"])
    recommend(load_scenario({**SCENARIO, "model": model}), Wishes(), workers=1)
    assert len([spelled for spelled in seen if spelled.startswith("lmdeploy")]) == ways


@pytest.mark.slow
def test_the_cost_at_the_slo_is_that_of_the_load_which_it_keeps() -> None:
    """The run's own cost times the share in use: filled up, the same hour serves so many more tokens."""
    scenario = load_scenario(SCENARIO)
    found = judge(Asked("vllm", scenario, (), COST), None)
    assert isinstance(found, Choice)
    from simulator import simulate

    whole = simulate(scenario).result["cost"]["usd_per_1m_total_tokens"]
    assert found.used_share is not None
    assert 0 < found.used_share < 1
    assert found.cost_usd == pytest.approx(whole * found.used_share)
    assert found.cost_interval_usd is not None
    assert found.cost_interval_usd[0] < found.cost_usd < found.cost_interval_usd[1]
    assert found.measured
    other = load_scenario({**SCENARIO, "deployment": {"engine": "tgi", "hardware": "h100-sxm-80gb"}})
    slower = judge(Asked("tgi", other, (), COST), 1 / found.used_share)
    assert isinstance(slower, Choice)
    assert not slower.measured


@pytest.mark.slow
def test_the_cost_at_the_slo_does_not_follow_from_the_load_that_is_offered() -> None:
    """What an overloaded run served costs what it cost; the rest of the offered load was not served."""
    served = {**SCENARIO, "deployment": {"engine": "mlc_llm", "hardware": "h100-sxm-80gb"}}
    loads = [{**SCENARIO["workload"], "arrivals": {"kind": "poisson", "rate": rate}} for rate in (2, 60)]
    few, many = (judge(Asked("mlc_llm", load_scenario({**served, "workload": load}), (), COST), None) for load in loads)
    assert isinstance(few, Choice)
    assert isinstance(many, Choice)
    assert few.cost_usd is not None
    assert many.cost_usd == pytest.approx(few.cost_usd, rel=0.3)


def test_every_engine_has_its_project() -> None:
    assert set(names()) <= set(PROJECTS) | {"static_batch"}


def test_unknown_words_are_refused_with_the_nearest() -> None:
    scenario = load_scenario(SCENARIO)
    for wishes in (Wishes(licences=("mit",)), Wishes(features=("speculativ",)), Wishes(weights=(("costs", 1.0),))):
        with pytest.raises(InputError) as caught:
            recommend(scenario, wishes, workers=1)
        assert "did you mean" in caught.value.message
    two = {"pools": [{"name": "a", "engine": "vllm", "hardware": "h100-sxm-80gb"}] * 2}
    with pytest.raises(InputError):
        recommend(load_scenario({**SCENARIO, "deployment": two}), Wishes(), workers=1)


@pytest.fixture
def typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Shell:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(json.dumps(SCENARIO))
    monkeypatch.setattr(module, "judge", stub({"vllm": 1.0, "sglang": 1.1, "tgi": 2.0, "trtllm": None}))
    return Shell(monkeypatch, capsys, tmp_path)


def test_the_answer_comes_first(typed: Shell) -> None:
    code, out, err = typed("recommend", "s.yaml", "--workers", "1")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[:2] == ["chat: vllm 1 at $1.00 a million tokens", "too close to call (how sure the order is): sglang 1 72 %"]
    assert (
        "never trtllm 1: no load was found at which it keeps the SLO; of 9 requests offered it rejects 2: prompt too long"
    ) in " ".join(out.split())
    assert max(map(len, lines)) <= 80


def test_json_is_one_object(typed: Shell) -> None:
    _, out, _ = typed("recommend", "s.yaml", "--workers", "1", "--json")
    assert [c["engine"] for c in json.loads(out)["ranked"]] == ["vllm", "sglang", "tgi"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--weight", "cost=nan"], 2, "no weight"),
        (["--weight", "cost=1", "--weight", "cost=2"], 2, "two weights"),
        (["--set", "deployment.hardware=m99"], 2, "unknown hardware 'm99'"),
        (["--set", "model=nobody/nothing"], 2, "nobody/nothing"),
        (["--alive-since", "2026"], 2, "no month"),
        (["--licence", "GPL-3.0-only"], 2, "is not known"),
        (["--licence", "BSD-3-Clause"], 3, ""),
    ],
)
def test_exit_codes(typed: Shell, words: list[str], code: int, said: str) -> None:
    found, _, err = typed("recommend", "s.yaml", "--workers", "1", *words)
    assert found == code
    assert said in err
