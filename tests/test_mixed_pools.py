"""Pools side by side: who may stand there, what is refused in words, and what each pool's figures say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.cli.summary import summary
from simulator.cluster.destinations import NOWHERE, Destinations, Takes
from simulator.workload.build import build_workload
from tests.clusters import is_refused

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
LOAD: dict[str, Any] = {
    "arrivals": {"kind": "constant", "rate": 20},
    "prompt_tokens": {"kind": "uniform", "low": 100, "high": 3000},
    "output_tokens": 20,
}
DRAIN = {"events": [{"at_s": 1, "kind": "drain"}]}
SHORT, LONG = {"prompt_tokens": [1, 1000]}, {"prompt_tokens": [1001, 5000]}


def pool(name: str, **keys: Any) -> dict[str, Any]:
    return {"name": name, "engine": "vllm", "hardware": "h100-sxm-80gb", **keys}


def scenario(*pools: dict[str, Any], classes: list[dict[str, Any]] | None = None, **around: Any) -> dict[str, Any]:
    work = {"classes": classes, "duration": 3} if classes else {**LOAD, "duration": 3}
    return {"model": LLAMA, "deployment": {"pools": list(pools), **around}, "workload": work}


def kind(name: str, **keys: Any) -> dict[str, Any]:
    return {**LOAD, "name": name, **keys}


def test_groups_follow_models_and_lengths() -> None:
    pools = [Takes(0, 0, 1000), Takes(0, 500), Takes(1, 100, 200)]
    destinations = Destinations(pools, models=[0, 1])
    checked = load_scenario(scenario(pool("a"), classes=[kind("one"), kind("two", prompt_tokens=150), kind("three")]))
    load = build_workload(checked.workload, seed=0, base_dir=Path())
    model = [0, 1, 1]
    found = Destinations(pools, models=model).of(load)
    for row, group in enumerate(found.tolist()):
        prompt, asked = int(load.prompt_tokens[row]), model[int(load.class_index[row])]
        expected = tuple(n for n, each in enumerate(pools) if each.takes(asked, prompt))
        assert (destinations.groups[group] if group != NOWHERE else ()) == expected
    assert {NOWHERE, 0, 1, 2, 3} == set(found.tolist())


REFUSED = {
    "unknown-model": (
        scenario(pool("a"), pool("b", model=QWEN), classes=[kind("x", model="Qwen/Qwen2.5-7B-Instrct")]),
        "class 'x' asks for the model Qwen/Qwen2.5-7B-Instrct, and no pool serves it",
    ),
    "unknown-model-of-one-pool": (scenario(pool("a"), classes=[kind("x", model=QWEN)]), "no pool serves it"),
    "no-model-at-the-top": (
        scenario(pool("a", model=QWEN), pool("b", model=QWEN), classes=[kind("x")]),
        "class 'x' names no model, which means",
    ),
    "a-planner-of-both-roles": (
        scenario(pool("a"), pool("b"), autoscaler={"kind": "dynamo"}),
        "kind: dynamo around several pools decides about one prefill and one decode pool",
    ),
    "failures-twice": (
        scenario(pool("a"), pool("b", failures=DRAIN), failures=DRAIN),
        "pool 'b' has `failures` of its own beside that of the deployment",
    ),
    "a-link-between-nobody": (
        scenario(pool("a"), pool("b", failures={"events": [{"at_s": 1, "kind": "link"}]})),
        "kind: link needs prefill and decode pools",
    ),
    "the-replica-of-another": (
        scenario(pool("a"), pool("b", failures={"events": [{"at_s": 1, "kind": "drain", "pool": "a"}]})),
        "there is no pool 'a'",
    ),
    "two-that-find-out": (
        scenario(pool("a", failures=DRAIN), pool("b", failures={**DRAIN, "detected_after_s": 3})),
        "`detected_after_s` of two pools differ",
    ),
    "transfer": (scenario(pool("a"), pool("b"), transfer={"latency_s": 1}), "deployment.transfer` with several pools"),
    "a-product-over-pools-in-part-alike": (
        scenario(pool("a", **SHORT), pool("b"), router={"system": "sglang-router", "policy": "random"}),
        "a router of sglang-router before pools of which one takes requests that others take only in part",
    ),
    "blocks-of-two-sizes": (
        scenario(pool("a"), pool("b", engine_args={"block_size": 32}), router={"system": "dynamo", "policy": "kv"}),
        "KV blocks of several sizes",
    ),
    "beside-roles": (
        scenario(pool("p", role="prefill"), pool("d", role="decode"), pool("m")),
        "pools 'p', 'd', 'm' are for the same requests",
    ),
    "roles-of-two-models": (
        scenario(pool("p", role="prefill"), pool("d", role="decode", model=QWEN)),
        "prefill pool 'p' serves meta-llama/Llama-3.1-8B-Instruct and prompts of any length, and no decode pool serves the same",
    ),
    "roles-by-length": (
        scenario(pool("p", role="prefill", **SHORT), pool("d", role="decode")),
        "prompts of 1 to 1000 tokens, and no decode pool serves the same",
    ),
    "no-lengths": (scenario(pool("a", prompt_tokens=[5, 1])), "prompt_tokens [5, 1] leaves out every prompt"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said(name: str) -> None:
    is_refused(*REFUSED[name])


def test_prompts_that_no_pool_takes() -> None:
    run = simulate(scenario(pool("a", prompt_tokens=[1, 2000])))
    lost = run.result["totals"]["reasons"]["no_pool"]
    assert 0 < lost == run.result["totals"]["rejected"]
    assert f"{lost} of 60 requests refused: no pool takes prompts of" in " ".join(run.result["warnings"])
    assert int((run.requests_frame()["prompt_tokens"] > 2000).sum()) == lost
    with pytest.raises(InputError, match="no pool takes any of the requests"):
        simulate(scenario(pool("a", prompt_tokens=[1, 50])))


def test_a_pool_refuses_what_is_too_long_for_it_alone() -> None:
    small = pool("small", engine_args={"max_model_len": 2000})
    run = simulate(scenario(small, pool("large"), router="round_robin"))
    frame = run.requests_frame()
    refused = frame[frame["status"] == "rejected"]
    served = frame[frame["status"] == "finished"]
    assert run.result["totals"]["reasons"] == {"prompt_too_long": len(refused)}
    assert len(refused) > 5
    assert (refused["prompt_tokens"] >= 2000).all()
    assert (served[served["pool"] == "large"]["prompt_tokens"] >= 2000).sum() > 5
    assert set(refused["pool"]) == {"small"}
    assert (refused["instance_id"] == 0).all()
    told = " ".join(run.result["warnings"])
    assert "prompt longer than the context of 2000 or 131072 tokens" in told
    assert "`prompt_tokens: [low, high]` in a pool keeps it away" in told


def test_what_no_server_takes_is_not_blamed_on_the_router() -> None:
    few = {"engine_args": {"max_model_len": 2000}}
    small = pool("small", **few), pool("qwen", model=QWEN)
    for pools in ((small[0], pool("too", **few)), small):
        run = simulate(scenario(*pools, router="round_robin"))
        assert run.result["totals"]["rejected"] > 5
        assert not any("routers do not look" in text for text in run.result["warnings"])


def test_a_trace_names_models(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    rows = [f"{i / 5},{100 + i},20,{LLAMA if i % 3 else QWEN}" for i in range(30)]
    trace.write_text("arrival_s,prompt_tokens,output_tokens,model\n" + "\n".join(rows))
    pools = scenario(pool("a"), pool("b", model=QWEN))
    run = simulate({**pools, "workload": {"trace": str(trace)}})
    frame = run.requests_frame()
    assert (frame["pool"].to_numpy() == ["b" if i % 3 == 0 else "a" for i in range(30)]).all()
    assert [(each["name"], each["requests"]) for each in run.result["classes"]] == [(QWEN, 10), (LLAMA, 20)]
    for pools in (scenario(pool("a")), scenario(pool("a"), pool("c", model="Qwen/Qwen3-8B"))):
        with pytest.raises(InputError, match=rf"trace\.csv, line 2: the trace asks for the model {QWEN}, and no pool serves it"):
            simulate({**pools, "workload": {"trace": str(trace)}})


def test_what_is_of_one_pool_is_told_with_its_name() -> None:
    small = pool("small", hardware="l40s-48gb", prompt_tokens=[0, 600])
    run = simulate(scenario(pool("one", prompt_tokens=[601, 8000]), pool("two", prompt_tokens=[601, 8000]), small))
    large, few = (each["kv_tokens"] for each in run.result["deployment"]["pools"][1:])
    words = " ".join(summary(run.result, run.manifest).split())
    assert f"of {large:,} (one, two) or {few:,} (small) tokens a replica" in words
    told = run.result["assumptions"]
    assert any(text.startswith("pools 'one', 'two': vLLM") for text in told)
    assert any(text.startswith("pool 'small': vLLM") for text in told)
    assert sum("front end: one event loop" in text for text in told) == 1
    assert "pool 'small': kernels: vllm on l40s-48gb, error on unseen shapes" in words
    (other,) = run.manifest["other_pools"]
    assert (other["pool"], other["hardware_profile"]["id"], other["engine_model"]["id"]) == ("small", "l40s-48gb", "vllm")
    alike = simulate(scenario(pool("one", prompt_tokens=[601, 8000]), pool("two", prompt_tokens=[0, 600])))
    assert f"of {large:,} tokens a replica" in " ".join(summary(alike.result, alike.manifest).split())
    assert not any("pool '" in text for text in alike.result["assumptions"])
    assert "other_pools" not in alike.manifest


def test_the_pools_add_up_and_have_their_own_prices() -> None:
    pools = [pool("a", usd_per_gpu_hour=4.0, **SHORT), pool("b", replicas=2, usd_per_gpu_hour=1.0, **LONG)]
    run = simulate({**scenario(*pools), "slo": {"ttft_ms": {"p90": 60}}})
    parts, result = run.result["pools"], run.result
    assert [each["cost"]["usd_per_hour"] for each in parts] == [4.0, 2.0]
    assert result["cost"]["usd_per_hour"] == pytest.approx(6.0)
    for total, name in (
        ("window_completed", "window_completed"),
        ("window_input_tokens", "window_input_tokens"),
        ("window_output_tokens", "window_output_tokens"),
        ("completed", "requests"),
    ):
        assert sum(each[name] for each in parts) == result["totals"][total]
    assert result["server"]["energy_j"] == pytest.approx(sum(each["energy_j"] for each in parts))
    good = sum(each["goodput_fraction"] * each["requests"] for each in parts) / result["totals"]["completed"]
    assert good == pytest.approx(result["totals"]["goodput_fraction"])
    assert parts[0]["metrics"]["ttft_ms"]["mean"] < parts[1]["metrics"]["ttft_ms"]["mean"]


def test_a_pool_in_two_groups_is_seen_by_both_routers() -> None:
    classes = [kind("short", prompt_tokens=100, output_tokens=400), kind("long", prompt_tokens=2000, output_tokens=400)]
    run = simulate(scenario(pool("any", replicas=2), pool("little", **SHORT), classes=classes, router="least_requests"))
    frame = run.requests_frame()
    assert set(frame[frame["class"] == "long"]["pool"]) == {"any"}
    here = frame[frame["class"] == "short"]["pool"].value_counts()
    assert here["little"] > 1.3 * here["any"]  # those of role any are busy with long prompts, as their other router knows


def test_a_pool_to_which_nothing_was_sent_is_told() -> None:
    """Prompts of 100 to 3,000 tokens, and a pool that takes longer ones alone."""
    pools = pool("all", prompt_tokens=[1, 4000]), pool("longer", prompt_tokens=[4001, 9000], tensor_parallel=2)
    words = "pool 'longer' computed nothing in the measured window, though the cost counts its 2 devices"
    found = simulate(load_scenario(scenario(*pools))).result
    assert [text for text in found["warnings"] if "computed nothing" in text] == [words]
    busy = simulate(load_scenario(scenario(*(each | {"prompt_tokens": [1, 9000]} for each in pools)))).result
    assert not any("computed nothing" in text for text in busy["warnings"])
