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
from tests.effort import some

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


@pytest.mark.parametrize("name", some(FLEETS))
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


# -- servers that come and go -------------------------------------------------------------------------------

HPA = {"kind": "hpa", "metric": "num_requests_waiting", "target": 1, "min_replicas": 1, "max_replicas": 4, "start_up": 2}
BUSY = {**ONE, "arrivals": {"kind": "poisson", "rate": 25}, "duration": 20.0}
del BUSY["requests"]
FEW = {"engine_args": {"max_num_seqs": 4}, "gpus_per_node": 1}


def lost(at_s: float, **event: Any) -> dict[str, Any]:
    return {"failures": {"events": [{"at_s": at_s, "kind": "gpu", "replica": 0, **event}], "start_up": 0.5}}


def test_what_never_comes_changes_no_stage() -> None:
    never = {**lost(1e9), "autoscaler": {**HPA, "target": 1e6, "min_replicas": 2, "max_replicas": 2}}
    stages = [SHARED, {**ONE, "arrivals": {"kind": "closed_loop", "concurrency": 4}}, BUSY]
    plain, held = run(stages, replicas=2), run(stages, replicas=2, **never)
    for name in ("metrics", "totals", "server", "cost", "stages"):
        assert held.result[name] == plain.result[name], name
    assert held.requests_frame().equals(plain.requests_frame())


def test_one_stage_of_a_fleet_that_changes_is_the_plain_run() -> None:
    fleet = {"replicas": 2, **FEW, **lost(3.0, for_s=4.0), "autoscaler": HPA}
    load = {**ONE, "arrivals": {"kind": "poisson", "rate": 25}, "requests": 500}
    plain, staged = simulate(scenario(load, **fleet)), run([load], **fleet)
    assert plain.result["fleet"]["added"] > 0
    for name in ("metrics", "totals", "server", "cost", "fleet"):
        assert staged.result[name] == plain.result[name], name
        assert staged.result["stages"][0][name] == plain.result[name], name


def test_the_next_stage_finds_the_replicas_that_were_added_and_those_that_are_lost() -> None:
    crowd = {**BUSY, "arrivals": {"kind": "poisson", "rate": 40}}
    found = run([crowd, BUSY], replicas=2, **FEW, **lost(15.0, for_s=30.0), autoscaler=HPA)
    one, two = (stage["fleet"] for stage in found.result["stages"])
    begin_s = found.result["stages"][1]["start_s"]
    assert one["over_time"]["up"][0] == 2 < one["serving_max"]
    assert two["over_time"]["at_s"][0] == begin_s
    assert begin_s < 45.0  # when the devices of the lost one are back
    assert (two["over_time"]["up"][0], two["over_time"]["coming"][0]) == (one["serving_max"], 1)
    assert two["over_time"]["at_s"][1:3] == [45.0, 45.5]
    assert (one["faults"], two["faults"]) == ({"gpu": 1}, {})
    for name in ("added", "removed", "attempts_lost", "tokens_lost"):
        assert one[name] + two[name] == found.result["fleet"][name], name


@pytest.mark.parametrize(("event", "struck"), [({}, 0), ({"stage": "stage2"}, 1)])
def test_a_failure_counts_from_the_begin_of_the_run_or_of_the_stage_that_it_names(event: dict[str, Any], struck: int) -> None:
    found = run([BUSY, BUSY], **lost(5.0, for_s=3.0, **event))
    stages = found.result["stages"]
    assert [stage["fleet"]["faults"] if "fleet" in stage else {} for stage in stages] == [
        {"gpu": 1} if number == struck else {} for number in range(2)
    ]
    levels = stages[struck]["fleet"]["over_time"]
    assert levels["up"] == [1, 0, 0, 1]
    assert levels["at_s"][1:] == pytest.approx([stages[struck]["start_s"] + at_s for at_s in (5.0, 8.0, 8.5)])


def test_a_prompt_that_waits_for_the_one_before_keeps_its_stage_open() -> None:
    """Also while nobody is served, and with the autoscaler asked meanwhile."""
    turns = {**ONE, "requests": 12, "sessions": {"turns": {"kind": "constant", "value": 4}, "think_time_s": 40.0}}
    found = run([turns, ONE], autoscaler=HPA)
    first, second = found.result["stages"]
    assert (first["totals"]["completed"], first["totals"]["not_arrived"]) == (12, 0)
    assert second["start_s"] > 100


def test_stages_end_where_no_server_comes_back() -> None:
    found = run([{**BUSY, "name": "one"}, ONE], **lost(2.0), admission={"max_inflight": 2, "on_full": "wait"})
    assert [stage["name"] for stage in found.result["stages"]] == ["one"]
    assert found.result["totals"]["unfinished"] > 400
    assert any(text.startswith("one: the stages after it did not begin") for text in found.result["warnings"])


CHANGING: dict[str, dict[str, Any]] = {
    "alone": {"pools": [pool("a", replicas=2, **FEW)], "router": "least_requests"},
    "side-by-side": {"pools": [pool("a", **FEW), pool("b", engine="sglang", gpus_per_node=1)]},
    "pair": {"pools": [{**each, "replicas": 2, "gpus_per_node": 1} for each in PAIR]},
    "pair-that-turns": {"pools": [{**each, "replicas": 2, "engine": "sglang", "gpus_per_node": 1} for each in PAIR]},
    "turning-beside": FLEETS["turning-beside"],
    "deciding": FLEETS["deciding"],
}


@pytest.mark.parametrize("name", some(CHANGING))
def test_stages_over_servers_that_come_and_go(name: str) -> None:
    """Steps by runs are steps one by one, and what is under way when a stage ends goes on in the next."""
    first = CHANGING[name]["pools"][0]["name"]
    events = [{"at_s": 1.5, "for_s": 2.0, "pool": first}, {"at_s": 0.5, "for_s": 60.0, "pool": first, "stage": "stage3"}]
    failures = {"events": [{"kind": "gpu", "replica": 0, **event} for event in events], "start_up": 0.5}
    around = {"failures": failures, "autoscaler": {**HPA, "max_replicas": 3}}
    closed = {**SHARED, "arrivals": {"kind": "closed_loop", "concurrency": 4}}
    stages = [SHARED, closed, {**ONE, "arrivals": {"kind": "batch"}}]
    fields = {**scenario({"stages": stages}), "deployment": {**CHANGING[name], **around}}
    fields["client"] = {"timeout_s": 30, "retries": {"attempts": 4, "on": ["node_lost", "503"], "backoff_s": 1.0}}
    jumps_as_it_steps(fields)
    found = simulate(fields)
    assert found.result["fleet"]["faults"] == {"gpu": 2}
    struck = [stage.get("fleet", {}).get("faults", {}) for stage in found.result["stages"]]
    assert struck == [{"gpu": 1}, {}, {"gpu": 1}]
    assert sum(stage["totals"]["offered"] for stage in found.result["stages"]) == 120


def test_a_link_that_fails_in_a_later_stage() -> None:
    """Servers that nobody takes away: only what passes between them stands still."""
    failures = {"events": [{"at_s": 1.0, "for_s": 3.0, "kind": "link", "stage": "stage2"}]}
    fields = {**scenario({"stages": [ONE, ONE]}), "deployment": {"pools": PAIR, "failures": failures}}
    jumps_as_it_steps(fields)
    found, free = simulate(fields), simulate({**fields, "deployment": {"pools": PAIR}})
    one, two = (stage["metrics"]["transfer_ms"]["max"] for stage in found.result["stages"])
    assert one < 100 < 2000 < two
    assert found.result["stages"][0]["metrics"] == free.result["stages"][0]["metrics"]


def test_models_that_take_turns_in_stages() -> None:
    both: list[dict[str, Any]] = [{**BUSY, "name": "one"}, {**BUSY, "name": "two", "model": QWEN}]
    for each in both:
        del each["duration"]
    models = ["meta-llama/Llama-3.1-8B-Instruct", QWEN]
    classes = {"classes": both, "requests": 60}
    fields = scenario({"stages": [ONE, classes, ONE]}, models=models, swap_s=1.0)
    jumps_as_it_steps(fields)
    found = simulate(fields)
    changes = [stage["turns"]["changes"] for stage in found.result["stages"]]
    assert changes[0] == 0 < changes[1]
    assert sum(changes) == found.result["turns"]["changes"]
    assert found.result["totals"]["completed"] == found.result["totals"]["offered"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [([ONE, ONE], "there is no stage 'warm'"), (None, "`stage` belongs to a load of workload.stages")],
)
def test_a_failure_in_a_stage_that_is_not_there(stages: list[dict[str, Any]] | None, said: str) -> None:
    fields = scenario(ONE if stages is None else {"stages": stages}, **lost(1.0, stage="warm"))
    with pytest.raises(PlanError, match=said):
        simulate(load_scenario(fields))
