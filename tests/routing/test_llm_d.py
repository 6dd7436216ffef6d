"""llm-d's scorers and pickers: numbers worked from their formulae, and runs behind them."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.cluster.routing.llm_d import SYSTEM, Scored, TextIndex
from simulator.cluster.routing.policy import Arrival
from simulator.prepare import prepare
from tests.clusters import jumps_as_it_steps
from tests.guard.cases import given, poisson


def scored(workers: int, scorers: dict[str, float] | None = None, **flags: Any) -> Scored:
    named = {"scorers": scorers} if scorers else {}
    return Scored(workers, Random(1), SYSTEM.read({**named, **flags}, "deployment.router"))


def text(index: int, length: int, segment: int = 1, **keys: Any) -> Arrival:
    return Arrival(index, length, runs=((segment, 0, length),), **keys)


@pytest.mark.parametrize(
    ("waiting", "used", "prefix", "expected"),
    [
        ((0, 0, 0), (0.2, 0.5, 0.9), (0, 0, 0), (3.6, 3.0, 2.2)),
        ((0, 3, 6), (0.2, 0.5, 0.9), (0, 0.25, 1), (3.6, 2.75, 3.2)),
        ((0, 1), (0.10, 0.60), (0, 0.9), (3.8, 3.5)),
        ((0, 1), (0.10, 0.15), (0, 1), (3.8, 4.7)),
        ((10, 11, 30), (0.7, 0.7, 0.7), (0, 0.8, 1), (2.6, 4.9, 3.6)),
    ],
)
def test_the_default_profile(
    waiting: tuple[int, ...], used: tuple[float, ...], prefix: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    """`prefix` are shares of a text of twenty blocks."""
    policy = scored(len(waiting))
    policy.saw(waiting, waiting, used)
    asked = text(9, 20 * 64)
    for worker, share in enumerate(prefix):
        policy.index.insert(policy.index.blocks(asked)[: round(20 * share)], worker)
    assert policy.scores(asked) == pytest.approx(expected)
    assert policy.allowed(asked, 0.0) == [int(np.argmax(expected))]


def test_scorers_one_by_one() -> None:
    def of(name: str, policy: Scored, arrival: Arrival | None = None) -> list[float]:
        return [float(each) for each in policy.scores(arrival or text(5, 640))]

    aware = scored(6, {"load-aware-scorer": 1})
    aware.saw((0, 1, 32, 64, 128, 300), (0,) * 6, (0,) * 6)
    assert of("load", aware) == pytest.approx([0.5, 0.49609375, 0.375, 0.25, 0, 0])

    def active(counts: tuple[int, ...], **flags: Any) -> list[float]:
        policy = scored(len(counts), {"active-request-scorer": 1}, **flags)
        for worker, count in enumerate(counts):
            for _ in range(count):
                policy.loaded(text(0, 64), worker)
        return of("active", policy)

    assert active((0, 2, 4)) == [1, 0.5, 0]
    assert active((1, 2, 4)) == [0.75, 0.5, 0]
    assert active((3, 3, 3)) == [0, 0, 0]
    assert active((0, 2, 4), max_busy_score=0.5) == [1, 0.25, 0]
    assert active((1, 2, 4), max_busy_score=0.5, idle_threshold=1) == [1, 0.25, 0]
    tokens = scored(4, {"token-load-scorer": 1})
    for worker, in_flight in enumerate((0, 100_000, 1_048_576, 5_000_000)):
        tokens.loaded(text(0, int(in_flight * 4 / 2.5)), worker)
    assert of("tokens", tokens) == pytest.approx([1, 0.976158, 0.75, 0], abs=1e-6)
    adapted = scored(4, {"lora-affinity-scorer": 1})
    adapted.saw_adapters([{7, 8}, {8}, {8, 9}, {8}], [set(), set(), {7}, {9, 6}], 2)
    assert of("lora", adapted, text(0, 64, adapter=7)) == [1, 0.8, 0.6, 0]
    sticks = scored(3, {"session-affinity-scorer": 1})
    assert of("session", sticks, text(0, 64, key="a")) == [0, 0, 0]
    sticks.sent(text(0, 64, key="a"), 2, 0.0)
    assert of("session", sticks, text(1, 64, key="a")) == [0, 0, 1]
    assert of("session", sticks, text(1, 64, key="b")) == [0, 0, 0]


def test_texts_that_nobody_has_go_round() -> None:
    policy = scored(4, {"no-hit-lru-scorer": 1})
    expected = [(1, 2 / 3, 1 / 3, 0), (0, 1, 2 / 3, 1 / 3), (1 / 3, 0, 1, 2 / 3), (2 / 3, 1 / 3, 0, 1), (1, 2 / 3, 1 / 3, 0)]
    for number, (scores, worker) in enumerate(zip(expected, (0, 1, 2, 3, 0), strict=True)):
        cold = text(number, 640, segment=number + 1)
        assert policy.scores(cold) == pytest.approx(scores)
        assert policy.allowed(cold, 0.0) == [worker]
        policy.sent(cold, worker, 0.0)
    assert policy.scores(text(9, 1280, segment=2)) == pytest.approx((0.5,) * 4)  # somebody has its begin


def test_blocks_of_text() -> None:
    index = TextIndex(2, 64, 31_250, 256)
    first = text(0, 640)
    index.insert(index.blocks(first), 1)
    second = Arrival(1, 650, runs=((1, 0, 320), (-2, 0, 330)))
    names = index.blocks(second)
    assert (len(names), index.matched(names)) == (11, [0, 5])
    longer = index.blocks(text(2, 704))
    assert (len(longer), index.matched(longer)) == (11, [0, 10])
    partial = index.blocks(text(3, 100))
    index.insert(partial, 0)
    assert index.matched(index.blocks(text(4, 100))) == [2, 1]  # the same text: its last block too
    assert index.matched(index.blocks(text(5, 110))) == [1, 1]
    assert index.blocks(text(6, 63)) == []
    assert len(index.blocks(text(7, 100_000))) == 256


def test_a_worker_forgets_what_was_used_longest_ago_the_begin_first() -> None:
    index = TextIndex(1, 64, 12, 256)
    old, new = text(0, 640), text(1, 320, segment=2)
    index.insert(index.blocks(old), 0)
    index.insert(index.blocks(new), 0)
    assert index.matched(index.blocks(new)) == [5]
    assert index.matched(index.blocks(old)) == [0]  # its first three are gone
    index.forget(0)
    assert index.matched(index.blocks(new)) == [0]


def test_each_worker_knows_as_many_blocks_as_it_has() -> None:
    policy = scored(2, {"prefix-cache-scorer": 1})
    policy.told_blocks([10, 20])
    for index in range(2):
        for worker in range(2):
            policy.sent(text(10 * index + worker, 640, segment=index), worker, 0.0)
    assert policy.matched(text(99, 640, segment=0)).tolist() == [0.0, 1.0]
    assert policy.matched(text(98, 640, segment=1)).tolist() == [1.0, 1.0]


def unlike(small: int, **router: Any) -> dict[str, Any]:
    """Two pools for the same requests, one of which has a small KV cache, before which a few long texts take turns."""
    pools = [
        {"name": name, "engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": {"max_model_len": 4096, **args}}
        for name, args in (("large", {}), ("small", {"num_gpu_blocks_override": small}))
    ]
    load = {
        "arrivals": {"kind": "constant", "rate": 2},
        "shared_prefix": {"groups": 12, "tokens": 2000},
        "prompt_tokens": 100,
        "output_tokens": 10,
        "requests": 60,
    }
    around = {"pools": pools, "router": {"system": "llm-d", "scorers": {"prefix-cache-scorer": 1}, **router}}
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": around, "workload": load}


def test_servers_with_unlike_caches_forget_each_by_its_own() -> None:
    """The router is tuned to each: a small server loses texts that a large one keeps, unless one count is stated for both."""
    small = simulate(unlike(300)).requests_frame()
    stated = simulate(unlike(300, lru_capacity_per_server=31_250)).requests_frame()
    share = [(frame["pool"] == "small").mean() for frame in (small, stated)]
    assert share[0] < share[1]
    assert small["cached_tokens"].sum() > stated["cached_tokens"].sum()
    one, other = (simulate(unlike(300), aggregate=aggregate).requests_frame() for aggregate in (True, False))
    assert one.equals(other)


@pytest.mark.parametrize("seed", [5, 6])
def test_what_is_scraped_is_of_the_time_of_the_scrape(seed: int) -> None:
    """However far the servers are when it is asked for: steps by runs are steps one by one where requests wait for others."""
    load = {
        "arrivals": {"kind": "closed_loop", "concurrency": 12, "think_time_s": 0.2},
        "prompt_tokens": {"kind": "lognormal", "mean": 800, "p99": 4000},
        "output_tokens": {"kind": "lognormal", "mean": 60, "p99": 300},
        "requests": 60,
    }
    servers = {"engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 3, "router": {"system": "llm-d"}}
    jumps_as_it_steps({"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": servers, "workload": load, "seed": seed})


def test_pickers() -> None:
    weighted = scored(3, {"kv-cache-utilization-scorer": 1}, picker="weighted-random-picker")
    weighted.saw((0,) * 3, (0,) * 3, (0.4, 0.7, 1.0))
    drawn = Counter(weighted.choose(text(n, 640), 0.0) for n in range(3000))
    assert drawn[0] / 3000 == pytest.approx(2 / 3, abs=0.04)
    assert drawn[2] == 0
    assert weighted.allowed(text(0, 640), 0.0) == [0, 1]
    assert scored(3, picker="random-picker").allowed(text(0, 640), 0.0) == [0, 1, 2]
    weighted.set_up([1, 2])
    assert weighted.allowed(text(0, 640), 0.0) == [1]


@pytest.mark.slow
def test_adapters_find_the_servers_that_serve_them() -> None:
    load = {"arrivals": poisson(12.0), "requests": 200, "adapters": {"count": 8}}
    lora = {"max_loras": 2, "rank": 16}

    def kinds(scorers: dict[str, float]) -> float:
        router = {"system": "llm-d", "scorers": scorers}
        run = simulate(given({"replicas": 4, "router": router, "lora": lora}, load))
        pairs = set(zip(run.raw.replica.tolist(), np.asarray(run.workload.adapter).tolist(), strict=True))
        return len(pairs) / 4

    assert kinds({"lora-affinity-scorer": 1}) < kinds({"active-request-scorer": 1})


@pytest.mark.slow
def test_scrapes_are_stale_and_say_so() -> None:
    """A burst within a scrape sees the same queues: without counts of its own the picker tells nobody apart."""
    load = {"arrivals": poisson(200.0), "requests": 200}

    def follows(scorers: dict[str, float], every_ms: float) -> float:
        router = {"system": "llm-d", "scorers": scorers, "refresh_metrics_interval_ms": every_ms}
        chosen = simulate(given({"replicas": 4, "router": router}, load)).raw.replica[40:]
        return float(np.mean(chosen[1:] == chosen[:-1]))

    assert follows({"kv-cache-utilization-scorer": 1}, 250.0) > 0.9
    assert follows({"active-request-scorer": 1}, 250.0) < 0.4
    inference_gateway = given({"replicas": 4, "router": {"system": "gateway-api-inference-extension"}}, load)
    notes = prepare(load_scenario(inference_gateway)).assumptions
    assert any("reads the servers' metrics every 50 ms" in note for note in notes)


@pytest.mark.parametrize(
    ("router", "said"),
    [
        ({"scorers": {"queue": 2}}, "no scorer `queue`"),
        ({"scorers": {}}, "not plugins with weights"),
        ({"scorers": {"queue-scorer": -1}}, "the weight of queue-scorer is -1"),
        ({"scorers": {"latency-scorer": 1}}, "`latency-scorer` is not modelled"),
        ({"filters": ["x"]}, "no filter `x`"),
        ({"filters": 3}, "not a list of plugins"),
        ({"filters": ["decode-filter"]}, "`decode-filter` is not modelled: pools say their `role`"),
        ({"scorers": {"context-length-aware": 1}}, "no pool has a `context_length_range`"),
        ({"scorers": {"precise-prefix-cache-scorer": 1}, "filters": ["prefix-cache-affinity-filter"]}, "for its filters"),
        ({"scorers": {"precise-prefix-cache-scorer": 1}, "block_size_tokens": 64}, "blocks have 16 tokens, the router's 64"),
        ({"enable_filtering": True}, "`enable_filtering` is a parameter of `context-length-aware`"),
        ({"filters": ["utilization-detector"], "affinity_threshold": 0.5}, "of `prefix-cache-affinity-filter`, which neither"),
        ({"decider": "always-disagg-pd-decider"}, "`decider` without pools of roles"),
        ({"picker": "best"}, "^deployment.router.picker: `picker` is 'best', not one of its choices"),
    ],
)
def test_what_cannot_be_is_said(router: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(load_scenario(given({"router": {"system": "llm-d", **router}}, {"requests": 3})))


# -- ranges of lengths, filters, the precise index ----------------------------------------------------------


@pytest.mark.parametrize(
    ("span", "tokens", "expected"),
    [
        ((0, 2048), 1000, 0.3 + 0.7 * (0.7 / 1.2048 + 0.3 * 1048 / 2048)),
        ((0, 2048), 2048, 0.3 + 0.7 * 0.7 / 1.2048),
        ((500, 500), 500, 1.0),
        ((0, 2048), 3048, 0.3 / 2.0),
        ((4096, 8192), 1596, 0.3 / 3.5),
        (None, 1000, 0.5),
    ],
)
def test_ranges_of_lengths(span: tuple[int, int] | None, tokens: int, expected: float) -> None:
    policy = scored(2, {"context-length-aware": 1})
    policy.told_ranges([span, None])
    assert policy.scores(text(1, 4 * tokens)) == pytest.approx([expected, 0.5])


def test_a_filter_leaves_out_servers_whose_range_does_not_hold_the_prompt() -> None:
    policy = scored(3, {"context-length-aware": 1}, enable_filtering=True)
    policy.told_ranges([(0, 2048), (2049, 8192), None])
    assert policy.filters
    for tokens, left in ((1000, [0, 2]), (2048, [0, 2]), (5000, [1, 2]), (9000, [2])):
        assert policy.filtered(text(tokens, 4 * tokens)) == left
    assert not scored(1, {"context-length-aware": 1}).filters
    assert not scored(1, enable_filtering=True).filters


def test_a_filter_keeps_texts_where_they_are_but_for_some() -> None:
    policy = scored(3, {"queue-scorer": 1}, filters=["prefix-cache-affinity-filter"], exploration_probability=0.25)
    policy.saw((9, 0, 0), (0,) * 3, (0,) * 3)
    asked = text(9, 20 * 64)
    assert policy.filtered(asked) == [0, 1, 2]
    names = policy.index.blocks(asked)
    policy.index.insert(names[:16], 0)
    policy.index.insert(names[:15], 1)
    assert policy.filtered(asked) == policy.allowed(asked, 0.0) == [0]  # four fifths, however long its queue
    went = Counter(policy.choose(asked, 0.0) for _ in range(2000))
    assert 0.2 < 1 - went[0] / 2000 < 0.3


def test_a_filter_spares_full_servers_unless_all_are() -> None:
    policy = scored(3, {"running-requests-size-scorer": 1}, filters=["utilization-detector"], headroom=0.2)
    assert policy.polls_s == 0.05
    policy.saw((5, 6, 0), (0, 0, 9), (0.1, 0.1, 0.97))
    assert policy.filtered(text(1, 64)) == policy.allowed(text(1, 64), 0.0) == [0]
    policy.saw((6, 6, 0), (0, 0, 9), (0.1, 0.1, 0.97))
    assert policy.filtered(text(1, 64)) == [0, 1, 2]


def ranged(**router: Any) -> dict[str, Any]:
    """Servers for short and for long prompts."""
    pools = [
        {"name": name, "engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 2, "context_length_range": span}
        for name, span in (("short", [0, 1000]), ("long", [800, 5000]))
    ]
    load = {"arrivals": poisson(20), "prompt_tokens": {"kind": "uniform", "low": 100, "high": 6000}, "output_tokens": 30}
    around = {"pools": pools, "router": {"system": "llm-d", "scorers": {"context-length-aware": 1}, **router}}
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": around, "workload": {**load, "requests": 200}}


def test_prompts_go_where_their_lengths_are_meant_to() -> None:
    table = simulate(ranged()).requests_frame()
    assert (table["pool"] == np.where(table["prompt_tokens"] < 800, "short", "long")).all()  # the one with room
    assert (table["status"] == "finished").all()
    jumps_as_it_steps(ranged(enable_filtering=True))
    for admission in ({}, {"max_inflight": 2, "on_full": "wait"}):
        data = ranged(enable_filtering=True)
        data["deployment"]["admission"] = admission or None
        found = simulate(data)
        table = found.requests_frame()
        long = table["prompt_tokens"] > 5000
        assert 10 < long.sum() < 70
        assert (table["status"] == np.where(long, "rejected", "finished")).all()
        assert found.result["totals"]["reasons"] == {"shed_429": int(long.sum())}


def test_a_prompt_that_no_server_is_meant_for_does_not_wait_for_one() -> None:
    """Not while all are lost either: it would wait for ever."""
    data = ranged(enable_filtering=True)
    lost = {"at_s": 0.0, "kind": "gpu", "for_s": 20.0}
    events = [{**lost, "pool": name, "replica": number} for name in ("short", "long") for number in (0, 1)]
    for pool in data["deployment"]["pools"]:
        pool["gpus_per_node"] = 1
    data["deployment"] |= {"failures": {"events": events, "start_up": 1}, "admission": {"max_inflight": 9, "on_full": "wait"}}
    table = simulate(data).requests_frame()
    long = table["prompt_tokens"] > 5000
    assert (table["status"] == np.where(long, "rejected", "finished")).all()
    assert (table["reason"][long] == "shed_429").all()


def test_a_filter_leaves_those_that_have_become_free_meanwhile() -> None:
    """Clients that come again while one pool is full and the other's answers have ended unheard."""
    data = ranged(
        scorers={"context-length-aware": 3, "load-aware-scorer": 0.5, "prefix-cache-scorer": 0.5},
        filters=["context-length-aware", "prefix-cache-affinity-filter"],
    )
    data["deployment"]["admission"] = {"max_inflight": 4, "on_full": "wait", "max_queue": 3}
    data["client"] = {"retries": {"attempts": 3, "backoff_s": 0.5, "on": ["429"]}}
    data["deployment"]["pools"][0]["context_length_range"] = [0, 900]
    del data["deployment"]["pools"][1]["context_length_range"]
    data["seed"] = 171
    data["workload"] = {
        "arrivals": {"kind": "batch"},
        "prompt_tokens": {"kind": "uniform", "low": 1, "high": 2500},
        "output_tokens": {"kind": "uniform", "low": 1, "high": 150},
        "requests": 33,
    }
    jumps_as_it_steps(data)


def test_a_label_that_nobody_reads_is_said() -> None:
    data = ranged()
    data["deployment"]["router"] = "least_requests"
    notes = prepare(load_scenario(data)).assumptions
    assert any(note.startswith("`context_length_range` has no effect") for note in notes)


def test_the_precise_index_goes_by_what_the_engines_hold() -> None:
    """Prompts of prefixes that a small cache has evicted are found nowhere; the index by texts takes them to be there."""
    data = {**unlike(300), "seed": 4}
    for pool in data["deployment"]["pools"]:
        pool["engine_args"] = {"max_model_len": 4096, "num_gpu_blocks_override": 300}
    data["deployment"]["router"] = {"system": "llm-d", "scorers": {"precise-prefix-cache-scorer": 1, "no-hit-lru-scorer": 0.1}}
    jumps_as_it_steps(data)
    precise = simulate(data).result["server"]["prefix_cache_hit_rate"]
    data["deployment"]["router"] = "random"
    assert precise > simulate(data).result["server"]["prefix_cache_hit_rate"]
    policy = scored(2, {"precise-prefix-cache-scorer": 1})
    policy.stored(1, None, [7, 8, 9])
    policy.removed(1, 9)
    asked = Arrival(1, 4 * 16 * 4, blocks=[7, 8, 9], private_blocks=1)
    assert policy.scores(asked).tolist() == [0.0, 0.5]


def test_the_decider_counts_tokens_that_are_new_to_the_decode_server() -> None:
    """A prompt of 400 bytes, six full blocks of 16 tokens and a seventh, under a threshold of 16 tokens."""
    flags = SYSTEM.read({"non_cached_tokens": 16, "auto_tune": False}, "router")
    policy = Scored(1, Random(0), flags)
    prompt = text(0, 400)
    assert policy.lacks(prompt, 0)
    names = policy.index.blocks(prompt)
    for known, apart in ((5, True), (6, False), (7, False)):
        policy = Scored(1, Random(0), flags)
        policy._names = 0, names
        policy.index.insert(names[:known], 0)
        assert policy.lacks(prompt, 0) == apart
    assert not policy.lacks(text(1, 60), 0)
    assert not Scored(1, Random(0), SYSTEM.read({"auto_tune": False}, "router")).lacks(prompt, 0)  # 0: never


def split(engine: str = "vllm", router: dict[str, Any] | None = None, **around: Any) -> dict[str, Any]:
    """Conversations before a prefill and two decode servers."""
    pools = [
        {"name": role, "role": role, "engine": engine, "hardware": "h100-sxm-80gb", "replicas": count}
        for role, count in (("prefill", 1), ("decode", 2))
    ]
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"pools": pools, "router": {"system": "llm-d", **(router or {})}, **around},
        "workload": {
            "arrivals": {"kind": "poisson", "rate": 2},
            "sessions": {"turns": 4, "think_time_s": 1},
            "prompt_tokens": {"kind": "lognormal", "mean": 500, "p99": 2500},
            "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 100},
            "duration": 4,
        },
    }


def test_decode_servers_compute_what_they_lack_little_of() -> None:
    own = []
    for router in ({"decider": "always-disagg-pd-decider"}, {"non_cached_tokens": 400}, {}):
        run, plain = (simulate(split(router=router), aggregate=aggregate) for aggregate in (True, False))
        assert run.result == plain.result
        frame = run.requests_frame()
        frame = frame[frame["status"] == "finished"]
        assert len(frame) == run.result["totals"]["offered"]
        alone = frame["transfer_start_s"].isna()
        own.append(alone.mean())
        assert (frame["ttft_ms"] > 0).all()
        assert (frame["ttft_ms"] >= frame["queue_ms"]).all()
        assert run.result["metrics"]["ttft_kernel_ms"]["mean"] > 0
        assert not alone.any() or (frame[alone]["prompt_tokens"] > 400).any()  # whose begin is known there
    assert own[0] == 0 < own[1] < 1 == own[2]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (split("sglang"), "this router before prefill and decode pools of these servers"),
        (split("trtllm"), "this router before prefill and decode pools of these servers"),
    ],
)
def test_deciders_are_refused_where_they_are_not_modelled(data: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        prepare(load_scenario(data))
    assert "llm-d" not in str(caught.value.mend)


SCALED = {"kind": "hpa", "metric": "num_requests_waiting", "target": 2, "max_replicas": 6, "start_up": 1}


@pytest.mark.parametrize("autoscaler", [None, SCALED])
def test_who_waits_before_a_full_server_is_told_as_if_it_went_step_by_step(autoscaler: dict[str, Any] | None) -> None:
    scenario = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {
            "engine": "vllm",
            "hardware": "h100-sxm-80gb",
            "replicas": 4,
            "engine_args": {"max_num_seqs": 4},
            "router": {"system": "llm-d"},
            **({"autoscaler": autoscaler} if autoscaler else {}),
        },
        "workload": {
            "arrivals": {"kind": "poisson", "rate": 30},
            "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 5000, "max": 7000},
            "output_tokens": {"kind": "lognormal", "mean": 100, "p99": 500},
            "duration": 8,
        },
    }
    run, plain = (simulate(scenario, aggregate=aggregate) for aggregate in (True, False))
    assert run.result == plain.result
