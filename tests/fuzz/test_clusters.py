"""Clusters drawn at random: no request is lost, devices are counted over time, and a streamed run is one in memory."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest

import simulator.run
from simulator import simulate
from simulator.io.tables import read_columns
from simulator.workload import streaming
from tests.clusters import jumps_as_it_steps

START = {"start_up": 1}
SCALERS: list[dict[str, Any]] = [
    {"kind": "hpa", "metric": "requests_in_flight", "target": 2, "max_replicas": 6, "sync_period_s": 2, "scrape_s": 1, **START},
    {"kind": "keda", "metric": "num_requests_waiting", "target": 2, "max_replicas": 6, "polling_interval_s": 2, **START},
    {"kind": "knative", "metric": "concurrency", "target": 2, "max_replicas": 6, "stable_window_s": 6, **START},
    {"kind": "wva", "max_replicas": 6, **START},
]
DOORS: list[dict[str, Any]] = [
    {"max_inflight": 3, "on_full": "429"},
    {"rate_per_s": 8, "burst": 2, "on_full": "wait"},
    {"max_inflight": 4, "on_full": "wait", "max_queue": 3},
    {"max_inflight": 2, "on_full": "wait", "queue_timeout_s": 1.0},
]
ROUTERS: list[Any] = ["random", "least_requests", "session", {"system": "vllm-router", "policy": "cache_aware"}]
ARRIVALS: list[dict[str, Any]] = [
    {"kind": "poisson", "rate": 8},
    {"kind": "onoff", "rate_on": 20, "rate_off": 0.5, "on_s": 3, "off_s": 5},
    {"kind": "closed_loop", "concurrency": 7},
    {"kind": "batch"},
]
TABLED = ("arrival_s", "first_scheduled_s", "end_s", "output_tokens", "instance_id", "transfer_end_s", "attempts", "reason")


def drawn(seed: int) -> dict[str, Any]:
    """A scenario: pools alone, of roles or side by side, behind a router, with whatever may go wrong."""
    draw = Random(seed)

    def maybe(share: float, name: str, choices: list[Any]) -> dict[str, Any]:
        return {name: draw.choice(choices)} if draw.random() < share else {}

    engine = draw.choice(["vllm", "vllm", "sglang", "trtllm"])
    shapes = [[{}], [{"role": "prefill"}, {"role": "decode"}], [{"prompt_tokens": [0, 600]}, {"prompt_tokens": [400, 99999]}]]
    common = {"engine": engine, "hardware": "h100-sxm-80gb"}
    pools = [
        {"name": f"p{number}", "replicas": draw.randint(1, 3), **common, **own, **maybe(0.4, "gpus_per_node", [1, 2])}
        for number, own in enumerate(draw.choice(shapes))
    ]
    deployment: dict[str, Any] = {"pools": pools, **maybe(0.3, "admission", DOORS), **maybe(0.3, "autoscaler", SCALERS)}
    deployment |= maybe(0.6, "router", ROUTERS[: 4 if engine == "vllm" and "prompt_tokens" not in pools[0] else 3])
    if draw.random() < 0.5:
        kinds = ["node", "gpu", "reclaim", "drain", "slow"]
        events = [{"at_s": draw.uniform(0, 12), "kind": draw.choice(kinds), "for_s": draw.uniform(0, 5)} for _ in range(3)]
        for event in events:
            event |= {"pool": draw.choice(pools)["name"], "replica": 0}
            event |= {"notice_s": 2.0} if event["kind"] in ("reclaim", "drain") else {}
            event |= {"factor": 5.0} if event["kind"] == "slow" else {}
        deployment["failures"] = {"events": events, **START, **maybe(0.3, "detected_after_s", [1.5])}
        if draw.random() < 0.5:
            deployment["failures"] |= {"mtbf_h": 0.005, "of": "replica", "repair_s": 2.0}
    load = {
        "arrivals": draw.choice(ARRIVALS),
        "prompt_tokens": {"kind": "uniform", "low": 1, "high": 2500},
        "output_tokens": {"kind": "uniform", "low": 1, "high": 150},
        "requests": draw.randint(25, 70),
        **maybe(0.3, "shared_prefix", [{"groups": 3, "tokens": 700}]),
        **maybe(0.3, "sessions", [{"turns": 3, "think_time_s": 1}, {"turns": 4, "think_time_s": 0}]),
        **maybe(0.3, "drain_s", [0, 3]),
        **maybe(0.3, "max_output_tokens", ["equal"]),
    }
    retries = [{"attempts": 3, "backoff_s": 0.5, "on": ["429", "503", "timeout", "node_lost"]}]
    client = {**maybe(0.3, "timeout_s", [0.5, 3, 50]), **maybe(0.4, "retries", retries)}
    run = {"deployment": deployment, "workload": load, "client": client}
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "seed": seed, **run}


def device_hours(fleet: dict[str, Any], end_s: float) -> float:
    """The integral of the devices that were there up to a time."""
    over = fleet["over_time"]
    steps = [*zip(over["at_s"], over["devices"], strict=True), (end_s, 0)]
    return sum((min(to_s, end_s) - min(at_s, end_s)) * many for (at_s, many), (to_s, _) in pairwise(steps)) / 3600


@pytest.mark.slow
def test_loads_that_follow_each_other_before_clusters_drawn_at_random() -> None:
    for seed in range(2000, 2030):
        data = drawn(seed)
        load = data["workload"]
        drain_s = load.pop("drain_s", 600.0)
        second = {**load, "requests": 20, "arrivals": ARRIVALS[seed % 4]}
        data["workload"] = {"stages": [load, second], "drain_s": drain_s}
        jumps_as_it_steps(data)
        run = simulate(data)
        whole, parts = run.result, run.result["stages"]
        for name in ("offered", "completed", "rejected", "failed", "unfinished", "total_output_tokens"):
            assert whole["totals"][name] == sum(stage["totals"][name] for stage in parts), (seed, name)
        for name in ("added", "removed", "attempts_lost", "tokens_lost"):
            lost = [stage.get("fleet", {}).get(name, 0) for stage in parts]
            assert whole.get("fleet", {}).get(name, 0) == sum(lost), (seed, name)
        frame = run.requests_frame()
        ends = frame[frame["stage"] == "stage1"]["end_s"].max()
        assert not (frame[frame["stage"] == "stage2"]["arrival_s"] < ends).any(), seed


@pytest.mark.slow
def test_clusters_drawn_at_random(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "BLOCK", 16)
    for seed in range(60):
        monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 10**9)
        whole = simulate(drawn(seed))
        totals, frame = whole.result["totals"], whole.requests_frame()
        came = frame[frame.status != "not_arrived"]
        fates = Counter(came.status)
        assert len(came) == totals["offered"] == sum(fates.values()), seed
        assert fates["finished"] == totals["completed"], seed
        assert (came.end_s[came.status == "finished"] >= came.arrival_s[came.status == "finished"]).all(), seed
        monkeypatch.setattr(simulator.run, "STREAM_ABOVE", 1)
        parts = simulate(drawn(seed))
        fleet, other = (run.result.get("fleet") for run in (whole, parts))
        assert fleet == other, seed
        if fleet:
            assert fleet["device_hours"] == pytest.approx(device_hours(fleet, totals["duration_s"]), rel=1e-9), seed
        if isinstance(parts.requests, Path):
            columns = read_columns(parts.requests)
            for name in TABLED:
                if name in columns:
                    mine, theirs = frame[name].tolist()[: len(columns[name])], list(columns[name])
                    assert [str(value) for value in mine] == [str(value) for value in theirs], (seed, name)


ENGINES: dict[str, dict[str, Any]] = {
    **{name: {"hardware": "h100-sxm-80gb"} for name in ("tgi", "trtllm", "sglang", "vllm", "triton")},
    **{name: {"hardware": "a100-sxm-80gb"} for name in ("litserve", "deepspeed_mii", "mlc_llm", "llama_cpp", "ollama")},
    "lmdeploy": {"hardware": "a100-sxm-80gb", "engine_args": {"backend": "pytorch"}},
    "transformers": {"hardware": "a100-sxm-80gb", "engine_args": {"mode": "continuous"}},
    "exllamav2": {"hardware": "rtx-4090-24gb", "weights": "exl2_4.0"},
    "mlx_lm": {"hardware": "apple-m2-ultra-76c-192gb"},
    **{name: {"hardware": "xeon-8480-2s"} for name in ("openvino", "openarc")},
}
NAMES = ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"]


def of_any_engine(engine: str, seed: int) -> dict[str, Any]:
    """Servers of an engine, which may be lost or take turns or both, and clients that may give up."""
    draw = Random(f"{engine} {seed}")
    pool: dict[str, Any] = {"name": "p", "engine": engine, **ENGINES[engine], "replicas": draw.randint(1, 3)}
    deployment: dict[str, Any] = {"pools": [pool], "router": draw.choice(["random", "least_requests", "session"])}
    load: dict[str, Any] = {
        "arrivals": draw.choice([{**ARRIVALS[0], "rate": draw.choice([2, 8])}, *ARRIVALS[1:3]]),
        "prompt_tokens": {"kind": "uniform", "low": 1, "high": 1500},
        "output_tokens": {"kind": "uniform", "low": 1, "high": 120},
    }
    work: dict[str, Any] = {**load, "requests": draw.randint(20, 45)}
    turns = draw.random() < 0.4
    if turns:
        pool |= {"models": NAMES, "swap_s": draw.choice([0.0, 0.7])}
        kinds = [{"name": name, "model": name, **load} for name in NAMES]
        work = {"classes": kinds, "requests": work["requests"]}
    if draw.random() < (0.8 if turns else 0.6):
        kinds_of_loss, events = ["node", "gpu", "drain", "slow", *["reclaim"] * turns], []
        for _ in range(draw.randint(1, 4) if turns else 1):
            event: dict[str, Any] = {"at_s": draw.uniform(0.2, 5), "kind": draw.choice(kinds_of_loss), "pool": "p"}
            event["replica"] = draw.randrange(pool["replicas"]) if turns else 0
            event |= {"for_s": draw.uniform(0, 4), **({"factor": 3.0} if event["kind"] == "slow" else {})}
            events.append(event)
        deployment["failures"] = {"events": events, **START}
        if turns:
            deployment["failures"] |= {"detected_after_s": draw.choice([0.0, 1.0]), "notice_s": draw.choice([0.0, 2.0])}
    client: dict[str, Any] = {}
    if engine not in ("litserve", "deepspeed_mii", "mlc_llm", "triton"):  # whose servers cannot drop a request
        client = {"timeout_s": draw.choice([0.5, 2.0, 6.0])}
        client["retries"] = {"attempts": 3, "backoff_s": 0.2, "on": ["timeout", "node_lost"]}
    around = {} if turns else {"model": NAMES[0]}
    return {**around, "seed": seed, "deployment": deployment, "workload": work, "client": client}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_servers_of_any_engine_lose_nobody_however_steps_are_taken(engine: str) -> None:
    for seed in range(2):
        data = of_any_engine(engine, seed)
        jumps_as_it_steps(data)
        run = simulate(data)
        came = Counter(run.requests_frame().status)
        totals = run.result["totals"]
        assert totals["offered"] == sum(count for status, count in came.items() if status != "not_arrived"), seed
        assert totals["completed"] == came["finished"], seed
