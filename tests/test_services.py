"""Prefill and decode pools beside others in one cluster: each request is served as by its own pools alone, and none is lost."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.schedulers.continuous import ContinuousScheduler
from engine_models.schedulers.prefill_first import PrefillFirstScheduler
from engine_models.schedulers.pulled import PrefillOfPull
from engine_models.schedulers.transferred import ContextServer, GenerationServer
from simulator import load_scenario, simulate
from simulator.cli.summary import first_token_lines
from simulator.cluster.outcome import FINISHED, NOT_ARRIVED
from simulator.cluster.services import Fleet
from simulator.prepare import prepare
from simulator.run import _cluster
from simulator.workload.build import build_workload
from tests.clusters import fares_as_alone, is_refused, jumps_as_it_steps, streams_alike
from tests.effort import some

LLAMA, QWEN = "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"
SHORT, LONG = {"prompt_tokens": [1, 800]}, {"prompt_tokens": [801, 100_000]}
KNOWN = ContinuousScheduler | PrefillFirstScheduler | ContextServer | GenerationServer
LLM_D = {"system": "llm-d", "non_cached_tokens": 700}


def pool(name: str, engine: str = "vllm", **keys: Any) -> dict[str, Any]:
    return {"name": name, "engine": engine, "hardware": "h100-sxm-80gb", **keys}


def pair(engine: str = "vllm", decode: int = 1, name: str = "", **keys: Any) -> list[dict[str, Any]]:
    return [
        pool(f"{name}p", engine, role="prefill", **keys),
        pool(f"{name}d", engine, role="decode", replicas=decode, **keys),
    ]


def load(name: str, rate: float = 9, **keys: Any) -> dict[str, Any]:
    return {
        "name": name,
        "arrivals": {"kind": "poisson", "rate": rate},
        "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 5000, "max": 7000},
        "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
        **keys,
    }


def scenario(pools: list[dict[str, Any]], loads: list[dict[str, Any]], **around: Any) -> dict[str, Any]:
    client = {"client": around.pop("client")} if "client" in around else {}
    work = {"classes": loads, "duration": 6}
    return {"model": LLAMA, "deployment": {"pools": pools, **around}, "workload": work, **client}


CHATS = {"sessions": {"turns": 3, "think_time_s": 0.5}, "shared_prefix": {"groups": 3, "tokens": 400}}
TWO = [load("llama"), load("qwen", model=QWEN, **CHATS)]
QWENS = [pool("qwens", replicas=2, model=QWEN)]
CASES = {
    "two-models": scenario([*pair(decode=2), *QWENS], TWO, router="least_requests"),
    "two-pairs": scenario([*pair(), *pair(decode=2, name="q", model=QWEN), pool("more", **SHORT, model=QWEN, replicas=0)], TWO),
    "by-length": scenario([*pair(**LONG), pool("plain", **SHORT, engine_args={"max_num_seqs": 4})], [load("all", 14, **CHATS)]),
    "sglang-by-length": scenario(
        [*pair("sglang", **LONG), pool("plain", "sglang", **SHORT, replicas=2)], [load("all", 14)], router="least_requests"
    ),
    "trtllm-beside-tgi": scenario(
        [*pair("trtllm", 2), pool("tgi", "tgi", model=QWEN, engine_args={"max_concurrent_requests": 3})], TWO
    ),
    "closed-loop": scenario(
        [*pair("sglang"), *QWENS],
        [load("llama", arrivals={"kind": "closed_loop", "concurrency": 6}), load("qwen", model=QWEN)],
    ),
    "llm-d": scenario([*pair(decode=2), pool("whole", replicas=2)], [load("all", 20, **CHATS)], router=LLM_D),
    "llm-d-and-another": scenario([*pair(), pool("whole"), *QWENS], TWO, router={**LLM_D, "scorers": {"queue-scorer": 1}}),
    "dynamo": scenario(
        [*pair(decode=2), *QWENS],
        [load("llama", **CHATS), load("qwen", model=QWEN, **CHATS)],
        router={"system": "dynamo", "conditional_disagg_enabled": True},
    ),
    "short-of-blocks": scenario(
        [*pair(decode=2, engine_args={"num_gpu_blocks_override": 700, "max_model_len": 8192}), *QWENS], TWO
    ),
}


@pytest.mark.parametrize("name", some(CASES))
def test_jumping_is_stepping(name: str) -> None:
    jumps_as_it_steps(CASES[name])


@pytest.mark.parametrize("name", some(CASES, 1))
def test_requests_and_blocks_are_conserved(name: str) -> None:
    checked = load_scenario(CASES[name])
    work = build_workload(checked.workload, seed=checked.seed, base_dir=None)
    cluster = _cluster(prepare(checked), work, aggregate=True, should_stop=None)
    assert isinstance(cluster, Fleet)
    result = cluster.run()
    came = result.status != NOT_ARRIVED
    served = result.status == FINISHED
    shed = int((came & ~served).sum())
    assert (shed > 0) == (name == "trtllm-beside-tgi")  # TGI's limit, and nobody else's
    tokens = sum(last - first + 1 for row in range(len(result.status)) for _, first, last in result.emissions.of(row))
    assert tokens == int(result.output_tokens[served].sum())
    assert not cluster._live
    assert not cluster._sources
    assert not cluster._reads
    for rank in cluster.ranks:
        scheduler = rank.scheduler
        if isinstance(scheduler, PrefillOfPull):
            scheduler.free_released()
        assert not scheduler.has_work()
        assert scheduler.state()[:2] == (0, 0)
        if isinstance(scheduler, KNOWN):
            assert scheduler.kv.free_blocks == scheduler.kv.capacity_blocks


@pytest.mark.parametrize("name", ["two-models", "by-length", "llm-d"])
def test_streamed_requests_are_those_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams_alike(CASES[name], monkeypatch)


@pytest.mark.parametrize("engine", ["vllm", "sglang", "trtllm"])
@pytest.mark.parametrize("router", ["round_robin", "least_requests"])
def test_each_model_fares_as_in_a_run_of_its_own(engine: str, router: str) -> None:
    first, second = pair(engine, 2), pair(engine, name="q", model=QWEN)
    llama, qwen = load("llama"), load("qwen", 6, model=QWEN)
    for others in (QWENS, second):
        whole = simulate(scenario([*first, *others], [llama, qwen], router=router)).requests_frame()
        fares_as_alone(whole, "llama", scenario(first, [llama], router=router))
        fares_as_alone(whole, "qwen", scenario(others, [qwen], router=router))


def test_behind_dynamo_each_model_fares_as_in_a_run_of_its_own() -> None:
    router = {"system": "dynamo", "conditional_disagg_enabled": True}
    loads = [load("llama", **CHATS), load("qwen", model=QWEN, **CHATS)]
    whole = simulate(CASES["dynamo"]).requests_frame()
    apart = scenario(pair(decode=2), loads[:1], router=router), scenario(QWENS, loads[1:], router={"system": "dynamo"})
    for kind, own in zip(("llama", "qwen"), apart, strict=True):
        fares_as_alone(whole, kind, own)
    kept = (whole["class"] == "llama") & (whole["status"] == "finished") & whole["transfer_bytes"].isna()
    assert kept.sum() > 5
    assert (whole[whole["class"] == "llama"]["transfer_bytes"] > 0).sum() > 20


def test_lengths_say_who_has_prompts_computed_apart() -> None:
    frame = simulate(CASES["by-length"]).requests_frame()
    frame = frame[frame["status"] == "finished"]
    plain = frame["pool"] == "plain"
    assert plain.sum() > 20
    assert (~plain).sum() > 20
    assert frame[plain]["prompt_tokens"].max() <= 800 < frame[~plain]["prompt_tokens"].min()
    assert frame[plain]["transfer_bytes"].isna().all()
    assert (frame[~plain]["transfer_bytes"] > 0).all()
    assert (frame[plain]["instance_id"] == frame[plain]["prefill_instance_id"]).all()
    assert (frame[~plain]["instance_id"] != frame[~plain]["prefill_instance_id"]).all()


def test_llm_d_chooses_among_decode_servers_and_mixed_ones() -> None:
    frame = simulate(CASES["llm-d"]).requests_frame()
    whole, moved = frame["pool"] == "whole", frame["transfer_bytes"] > 0
    assert whole.sum() > 20
    assert not (whole & moved).any()  # a server that passes nothing on computes what it is given
    assert moved.sum() > 5
    assert (~whole & ~moved).sum() > 5  # decode servers compute short prompts
    assert frame[moved]["prompt_tokens"].min() >= 700


def test_a_mixed_server_refuses_what_is_too_long_for_it() -> None:
    pools = [*pair(decode=2), pool("whole", replicas=2, engine_args={"max_model_len": 1500})]
    run = simulate(scenario(pools, [load("all", 20)], router=LLM_D))
    frame = run.requests_frame()
    refused = frame[frame["status"] == "rejected"]
    assert run.result["totals"]["reasons"] == {"prompt_too_long": len(refused)}
    assert set(refused["pool"]) == {"whole"}
    assert refused["prompt_tokens"].min() >= 1500 < frame[frame["pool"] == "d"]["prompt_tokens"].max()
    assert any("`prompt_tokens: [low, high]` in a pool keeps it away" in text for text in run.result["warnings"])


@pytest.mark.parametrize(("length", "moved"), [(300, False), (900, True)])
def test_the_parts_of_a_first_token_are_told_where_nobody_passes_a_prompt_on(length: int, moved: bool) -> None:
    loads = [load("all", prompt_tokens={"kind": "constant", "value": length})]
    metrics = simulate(scenario([*pair(**LONG), pool("plain", **SHORT)], loads)).result["metrics"]
    told = " ".join(" ".join(first_token_lines(metrics, turns=False)).split())
    assert (metrics["transfer_ms"]["count"] > 0) == ("transfer 0 +" not in told) == moved
    assert "prefill" in told


REFUSED = {
    "nobody-says": (scenario([*pair(), pool("m")], [load("a")]), "are for the same requests, and nothing says which"),
    "sglang-router": (
        scenario([*pair("sglang"), pool("m", "sglang")], [load("a")], router={"system": "sglang-router"}),
        "are for the same requests",
    ),
    "in-part": (
        scenario([*pair(**LONG), pool("m")], [load("a")], router=LLM_D),
        "a router of llm-d before pools of which one takes requests that others take only in part",
    ),
    "one-side": (
        scenario([pool("p", role="prefill", **SHORT), pool("d", role="decode")], [load("a")]),
        "and prompts of 1 to 800 tokens, and no decode pool serves the same",
    ),
    "two-ways": (
        scenario([*pair(), *pair("sglang", name="q", model=QWEN)], TWO),
        "whose hand-over differs (engine: vllm of meta-llama/Llama-3.1-8B-Instruct, sglang of Qwen/Qwen2.5-7B-Instruct)",
    ),
    "turns": (
        scenario([*pair(), pool("q", models=[QWEN, "Qwen/Qwen3-4B"])], TWO),
        "`deployment.pools.2.models` around prefill and decode pools beside others",
    ),
    "no-way": (
        scenario([*pair(), *QWENS], TWO, transfer=[{"from": "p", "to": "qwens", "bytes_per_s": 1e9}]),
        "no request passes from 'p' to 'qwens'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said(name: str) -> None:
    is_refused(*REFUSED[name])
