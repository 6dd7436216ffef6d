"""Loads that run one after the other on the same servers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import InputError, PlanError
from simulator import RunResult, load_scenario, simulate
from simulator.config.load import load_scenario as load
from tests.clusters import jumps_as_it_steps

ONE: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 6},
    "prompt_tokens": {"kind": "constant", "value": 300},
    "output_tokens": {"kind": "uniform", "low": 20, "high": 60},
    "requests": 40,
}
SHARED = {**ONE, "shared_prefix": {"groups": 2, "tokens": 1600}}


def scenario(workload: dict[str, Any], **pool: Any) -> dict[str, Any]:
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", **pool}
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": workload}


def run(stages: list[dict[str, Any]], **pool: Any) -> RunResult:
    return simulate(scenario({"stages": stages}, **pool))


def test_one_stage_is_the_plain_run() -> None:
    plain, staged = simulate(scenario(SHARED)), run([SHARED])
    for name in ("metrics", "totals", "server", "cost"):
        assert staged.result[name] == plain.result[name], name
        assert staged.result["stages"][0][name] == plain.result[name], name
    np.testing.assert_array_equal(staged.raw.end_s, plain.raw.end_s)


def test_a_stage_begins_when_the_one_before_is_answered_and_finds_its_prefixes() -> None:
    for engine in ("vllm", "sglang"):
        found = run([{**SHARED, "name": "cold"}, {**SHARED, "name": "warm"}], engine=engine)
        cold, warm = found.result["stages"]
        table = found.requests_frame()
        ends, arrivals = table.groupby("stage").end_s.max(), table.groupby("stage").arrival_s.min()
        assert arrivals["warm"] > ends["cold"] == pytest.approx(warm["start_s"])
        assert cold["server"]["prefix_cache_hit_rate"] < warm["server"]["prefix_cache_hit_rate"]
        assert (table[table.stage == "warm"].cached_tokens == 1600).all()  # both groups are known by then
        assert found.result["totals"]["completed"] == 80
        both = found.result["server"]["prefix_cache_hit_rate"]
        rates = [stage["server"]["prefix_cache_hit_rate"] for stage in (cold, warm)]
        assert both == pytest.approx(sum(rates) / 2)


def test_stages_are_counted_by_themselves_and_what_is_not_measured_is_left_out() -> None:
    first, second = {**SHARED, "name": "cold", "measured": False}, {**SHARED, "name": "warm"}
    found = run([first, second])
    _, warm = found.result["stages"]
    for name in ("ttft_ms", "tpot_ms", "e2el_ms", "itl_ms"):
        assert found.result["metrics"][name] == warm["metrics"][name], name
    for name in ("request_throughput", "output_throughput", "duration_s"):
        assert found.result["totals"][name] == pytest.approx(warm["totals"][name]), name
    assert found.result["server"]["prefix_cache_hit_rate"] == warm["server"]["prefix_cache_hit_rate"]


def test_equal_stages_are_not_the_same_requests() -> None:
    table = run([ONE, ONE]).requests_frame()
    one, two = (table[table.stage == name].output_tokens.to_numpy() for name in ("stage1", "stage2"))
    assert (one != two).any()


def test_every_kind_of_load_follows_another() -> None:
    closed = {**ONE, "arrivals": {"kind": "closed_loop", "concurrency": 4}}
    turns = {**ONE, "sessions": {"turns": {"kind": "constant", "value": 4}, "think_time_s": 1.0}}
    classes = {"classes": [{**ONE, "name": "a", "requests": None}, {**closed, "name": "b", "requests": None}], "duration": 8}
    for each in classes["classes"]:
        del each["requests"]
    batch = {**ONE, "arrivals": {"kind": "batch"}}
    stages = [closed, turns, classes, batch, ONE]
    found, plain = run(stages, replicas=2), simulate(scenario({"stages": stages}, replicas=2), aggregate=False)
    np.testing.assert_array_equal(found.raw.end_s, plain.raw.end_s)
    raw = found.raw
    assert found.result["totals"]["unfinished"] == 0
    starts = [stage["start_s"] for stage in found.result["stages"]]
    assert starts == sorted(starts)
    assert (np.diff(np.flatnonzero(raw.arrival_s >= starts[-1])) == 1).all()
    assert {kind["name"] for kind in found.result["classes"]} == {"default", "a", "b"}


def test_a_trace_that_comes_again_finds_what_it_left(tmp_path: Path) -> None:
    lines = [
        f'{{"timestamp": {500 * i}, "input_length": 1536, "output_length": 16, "hash_ids": [{3 * i}, {3 * i + 1}, {3 * i + 2}]}}'
        for i in range(6)
    ]
    path = tmp_path / "once.jsonl"
    path.write_text("\n".join(lines))
    stage = {"trace": str(path), "trace_format": "mooncake"}
    table = run([{**stage, "limit": 4}, stage]).requests_frame()
    assert table.cached_tokens.tolist() == [0] * 4 + [1520] * 4 + [0] * 2  # all but the block of the last token


def test_disaggregated_pools_keep_their_caches() -> None:
    pools = [{"role": role, "engine": "vllm", "hardware": "h100-sxm-80gb"} for role in ("prefill", "decode")]
    fields = scenario({"stages": [SHARED, SHARED]})
    found = simulate({**fields, "deployment": {"pools": pools}})
    assert found.result["totals"]["completed"] == 80
    assert (found.requests_frame().cached_tokens[40:] == 1600).all()


def pool(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "engine": "vllm", "hardware": "h100-sxm-80gb", **keys}


QWEN = "Qwen/Qwen2.5-7B-Instruct"
PAIR = [pool("p", role="prefill"), pool("d", role="decode")]
FLEETS: dict[str, dict[str, Any]] = {
    "by-length": {"pools": [pool("short", prompt_tokens=[0, 800]), pool("long", prompt_tokens=[801, 99_999])]},
    "overlapping": {"pools": [pool("short", prompt_tokens=[0, 800]), pool("long", prompt_tokens=[400, 99_999])]},
    "alike": {"pools": [pool("a"), pool("b", hardware="a100-sxm-80gb")], "router": "least_requests"},
    "two-models": {"pools": [pool("a"), pool("q", model=QWEN)], "admission": {"max_inflight": 3, "on_full": "wait"}},
    "roles-beside": {"pools": [*PAIR, pool("q", model=QWEN)]},
    "pair-that-turns": {"pools": [{**each, "engine": "sglang"} for each in PAIR]},
    "turning-beside": {"pools": [*({**each, "engine": "sglang"} for each in PAIR), pool("q", model=QWEN)]},
    "deciding": {"pools": [*PAIR, pool("m")], "router": {"system": "llm-d", "non_cached_tokens": 400}},
}


@pytest.mark.parametrize("name", FLEETS)
def test_stages_over_several_pools(name: str) -> None:
    """Steps by runs are steps one by one, and each request goes where its model and length say."""
    varied = {**ONE, "prompt_tokens": {"kind": "uniform", "low": 50, "high": 1500}}
    classes: list[dict[str, Any]] = [{**varied, "name": "one"}, {**varied, "name": "two", "model": QWEN}]
    for each in classes:
        del each["requests"]
    two = any("model" in each for each in FLEETS[name]["pools"])
    last = {"classes": classes[::-1], "duration": 4} if two else {**SHARED, "arrivals": {"kind": "closed_loop", "concurrency": 4}}
    fields = {**scenario({"stages": [varied, last, varied]}), "deployment": FLEETS[name]}
    jumps_as_it_steps(fields)
    found = simulate(fields)
    table, names = found.requests_frame(), {each["name"] for each in FLEETS[name]["pools"]}
    assert (table["status"] == "finished").all()
    assert set(table["pool"]) == names - {"p"}
    assert [stage["totals"]["completed"] for stage in found.result["stages"]] == table.groupby("stage").size().tolist()
    if two:
        assert set(table[table["class"] == "two"]["pool"]) == {"q"}
        assert "q" not in set(table[table["class"] != "two"]["pool"])
    if name == "by-length":
        assert ((table["prompt_tokens"] > 800) == (table["pool"] == "long")).all()


def test_one_stage_over_several_pools_is_the_plain_run() -> None:
    for name in ("by-length", "roles-beside"):
        plain = simulate({**scenario(ONE), "deployment": FLEETS[name]})
        staged = simulate({**scenario({"stages": [ONE]}), "deployment": FLEETS[name]})
        for key in ("metrics", "totals", "server", "cost", "pools"):
            assert staged.result.get(key) == plain.result.get(key), key


def test_what_no_pool_takes_in_a_stage_is_refused_there() -> None:
    pools = [pool("short", prompt_tokens=[0, 800]), pool("q", model=QWEN)]
    mixed = {**ONE, "prompt_tokens": {"kind": "uniform", "low": 50, "high": 1500}}
    found = simulate({**scenario({"stages": [ONE, mixed]}), "deployment": {"pools": pools}})
    one, two = (stage["totals"]["rejected"] for stage in found.result["stages"])
    assert (one, found.result["totals"]["rejected"]) == (0, two)
    assert 5 < two < 35
    assert any(text.startswith("stage2: ") and "no pool takes prompts of" in text for text in found.result["warnings"])
    turns = {"pools": [pool("t", models=[QWEN, "Qwen/Qwen3-4B"]), pool("a")]}
    fields = {**scenario({"stages": [ONE, ONE]}), "deployment": turns}
    with pytest.raises(PlanError, match="models that take turns under a load of stages"):
        simulate(load_scenario(fields))


@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ({"stages": [ONE], "requests": 5}, "requests stands beside stages"),
        ({"stages": [{**ONE, "name": "a"}, {**ONE, "name": "a"}]}, "two stages are named 'a'"),
        ({"stages": [ONE, {**ONE, "measured": False}]}, "belongs to the first stages"),
        ({"stages": [{**ONE, "measured": False}]}, "belongs to the first stages"),
        ({"stages": [{**ONE, "stages": []}]}, "unknown key `stages`"),
        ({"stages": [{**ONE, "requests": None}]}, "nothing ends the arrivals"),
    ],
)
def test_stages_that_cannot_be(workload: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        load(scenario(workload))


def test_stages_beside_what_counts_from_the_begin_of_the_run() -> None:
    fields = scenario({"stages": [ONE, ONE]}, failures={"events": [{"at_s": 1, "kind": "node", "replica": 0}]})
    with pytest.raises(PlanError, match="under a load of stages is not modelled yet"):
        simulate(load_scenario(fields))
