"""Servers of roles whose caches go on beyond the device: what comes from there is sent with its piece, and nothing is lost."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from engine_models.memory.radix import RadixPool, content_of
from engine_models.memory.tiered_radix import FurtherTier, TokenStore
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import Link
from engine_models.schedulers.reserved import ReservingRules
from engine_models.schedulers.reserved_offloading import OffloadingReservingScheduler
from engine_models.schedulers.reserved_tiered import TieredSendingPrefillScheduler
from engine_models.schedulers.store_behind import UsesStore
from simulator import load_scenario, simulate
from simulator.cluster.elastic_handover import ElasticHandover
from simulator.cluster.outcome import FINISHED
from simulator.prepare import prepare
from tests.clusters import answered, is_refused, jumps_as_it_steps, ran, streams_alike
from tests.effort import some

HOST = [{"kind": "host", "bytes": 2e11}]
CHATS: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 0.5},
    "prompt_tokens": {"kind": "lognormal", "mean": 5000, "p99": 14000, "max": 18000},
    "output_tokens": 30,
    "sessions": {"turns": 5, "think_time_s": 10},
    "duration": 60,
}
TOKEN_BYTES = 131_072


def scenario(tiers: Any = HOST, work: dict[str, Any] = CHATS, client: Any = None, **keys: Any) -> dict[str, Any]:
    prefill = {"name": "p", "role": "prefill", "engine": "sglang", "hardware": "l40s-48gb", **keys}
    decode = {"name": "d", "role": "decode", "engine": "sglang", "hardware": "h100-sxm-80gb"}
    pools = [prefill | ({"kv_tiers": tiers} if tiers is not None else {}), decode]
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": {"pools": pools}, "workload": work, "client": client or {}}


@pytest.mark.parametrize("tokens", [1, 64])
def test_jumping_is_stepping_and_every_token_is_sent_once(tokens: int) -> None:
    data = scenario(engine_args={"page_size": tokens})
    if tokens > 1:
        data["deployment"]["pools"][1]["engine_args"] = {"page_size": tokens}
    one, other = (simulate(data, aggregate=aggregate) for aggregate in (True, False))
    frame, plain = one.requests_frame(), other.requests_frame()
    assert [column for column in frame if not frame[column].equals(plain[column])] == []
    assert one.result == other.result
    frame = frame[frame["status"].notna()]  # sent within the duration
    assert len(frame) > 50
    assert (frame["status"] == "finished").all()
    pages = -(-frame["prompt_tokens"] // tokens) * tokens
    assert frame["transfer_bytes"].tolist() == (pages * TOKEN_BYTES).tolist()
    (host,) = one.result["server"]["kv_tiers"]
    assert host["hit_rate"] > 0.1
    assert one.result["metrics"]["ttft_ms"]["mean"] < simulate(scenario(None)).result["metrics"]["ttft_ms"]["mean"]


def test_a_host_that_nobody_needs_changes_nothing() -> None:
    work = {name: value for name, value in CHATS.items() if name != "sessions"} | {"duration": 20}
    plain, tiered = (simulate(scenario(tiers, work)).requests_frame() for tiers in (None, HOST))
    assert len(plain) > 5
    assert [column for column in plain if not plain[column].equals(tiered[column])] == []


def test_what_the_host_gives_is_sent_with_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    early_of = TieredSendingPrefillScheduler._early_tokens

    def early(self: TieredSendingPrefillScheduler, seq: Sequence, known: int) -> int:
        seen.append((known, early_of(self, seq, known)))
        return seen[-1][1]

    monkeypatch.setattr(TieredSendingPrefillScheduler, "_early_tokens", early)
    run = simulate(scenario())
    (host,) = run.result["server"]["kv_tiers"]
    assert any(early < known for known, early in seen)
    assert any(early == known for known, early in seen)
    assert host["read_bytes"] == pytest.approx(sum(known - early for known, early in seen) * TOKEN_BYTES)


def test_clients_that_go_leave_nothing_behind() -> None:
    data = scenario(client={"timeout_s": 4.0, "retries": {"attempts": 2, "on": ["timeout"]}})
    found = []
    for aggregate in (True, False):
        cluster, result = ran(data, aggregate=aggregate)
        found.append(result)
        assert not cluster._live
        for rank in cluster.ranks:
            assert rank.scheduler.state()[:3] == (0, 0, 0)
    assert 0 < (found[0].status == FINISHED).sum() < len(found[0].status)
    assert np.array_equal(found[0].status, found[1].status)
    assert np.array_equal(found[0].end_s, found[1].end_s, equal_nan=True)


LM, MOONCAKE = {"connector": "LMCacheConnectorV1"}, {"connector": "MooncakeStoreConnector"}
SMALL_HOST, DISK = {"kind": "host", "bytes": 2e9}, {"kind": "nvme", "bytes": 60e9}
STORE = {"kind": "shared", "bytes": 100e9, "bytes_per_s": 20e9}
BUSY: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 2.5},
    "sessions": {"turns": {"kind": "constant", "value": 5}, "think_time_s": {"kind": "constant", "value": 4}},
    "prompt_tokens": {"kind": "lognormal", "mean": 600, "p99": 2500},
    "output_tokens": {"kind": "lognormal", "mean": 100, "p99": 400},
    "requests": 60,
}


def stored(
    prefill: Any,
    decode: Any = None,
    around: Any = None,
    *,
    engine: str = "vllm",
    work: dict[str, Any] = BUSY,
    **keys: Any,
) -> dict[str, Any]:
    """Prefill and decode servers with little memory, which conversations reach in turn."""
    small = {
        "vllm": [{"num_gpu_blocks_override": 900, "max_model_len": 8192}] * 2,
        "sglang": [{"max_total_tokens": tokens, "context_length": 8192, "page_size": 16} for tokens in (14400, 40000)],
    }[engine]
    pools = [
        {"name": role[0], "role": role, "engine": engine, "hardware": "h100-sxm-80gb", "replicas": 2, "engine_args": args}
        | ({"kv_tiers": tiers} if tiers else {})
        for role, args, tiers in zip(("prefill", "decode"), small, (prefill, decode), strict=True)
    ]
    around = {"kv_tiers": around} if around else {}
    return {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"pools": pools, **around, **keys},
        "workload": work,
    }


def beside() -> dict[str, Any]:
    """Prefill and decode servers for long prompts, a mixed one for short ones, whose conversations grow from these to those."""
    data = stored(None, None, [STORE | MOONCAKE])
    pools = data["deployment"]["pools"]
    pools.append({**pools[1], "name": "m", "role": "mixed", "prompt_tokens": [0, 800]})
    for each in pools[:2]:
        each["prompt_tokens"] = [801, 100_000]
    return data


def offloading(**more: Any) -> dict[str, Any]:
    """SGLang's servers around a store, to which those that answer write too."""
    data = stored([SMALL_HOST], None, [STORE], engine="sglang", **more)
    data["deployment"]["pools"][1]["engine_args"]["disaggregation_decode_enable_offload_kvcache"] = True
    return data


STORED = {
    "beside": beside(),
    "lmcache": stored([SMALL_HOST | LM], [SMALL_HOST | LM], [STORE | LM]),
    "mooncake": stored(None, None, [STORE | MOONCAKE], transfer={"connector": "MooncakeConnector"}),
    "native": stored([SMALL_HOST, DISK]),
    "kvbm": stored([SMALL_HOST | {"connector": "DynamoConnector"}, DISK | {"connector": "DynamoConnector", "write": "through"}]),
    "hicache": stored([SMALL_HOST], None, [STORE], engine="sglang"),
    "hicache answers": offloading(),
    "hicache on disks": stored([SMALL_HOST, DISK], engine="sglang"),
}


@pytest.mark.parametrize("name", some(STORED))
def test_stores_and_disks_serve_pools_of_roles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps by runs are steps one by one, blocks of requests all of them; the last tier is read and saves time."""
    data = STORED[name]
    jumps_as_it_steps(data)
    whole, _ = streams_alike(data, monkeypatch)
    *_, last = whole.result["server"]["kv_tiers"]
    assert last["hit_rate"] > 0.01
    engine = data["deployment"]["pools"][0]["engine"]
    plain = simulate(stored(None, engine=engine, transfer=data["deployment"].get("transfer"))).result["metrics"]["ttft_ms"]
    if name == "beside":
        pools = whole.requests_frame().groupby("pool")["cached_tokens"].sum()
        assert (pools[["d", "m"]] > 0).all()
    if name in ("mooncake", "hicache", "hicache answers"):
        assert whole.result["metrics"]["ttft_ms"]["mean"] < plain["mean"]


@pytest.mark.parametrize("name", [*STORED, "of decode servers"])
def test_what_is_shared_is_used_in_order_of_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody comes to a store or a disk at a time that another has passed."""
    used: dict[Link, list[float]] = {}
    send = Link.send

    def noted(self: Link, takes_s: float, now_s: float) -> float:
        used.setdefault(self, []).append(now_s)
        return send(self, takes_s, now_s)

    monkeypatch.setattr(Link, "send", noted)
    alone = {key: value for key, value in BUSY.items() if key != "sessions"} | {"arrivals": {"kind": "poisson", "rate": 8}}
    data = STORED.get(name) or stored(None, [STORE | MOONCAKE], work=alone)
    cluster, _ = ran(data)
    last = [last_of(rank.scheduler) for rank in cluster.ranks if rank.scheduler.tier_counts()]
    ways = {way for tier in last for way in (*tier.reads, *tier.writes)}
    assert sum(len(used.get(way, ())) for way in ways) > 50
    for way in ways:
        times_s = used.get(way, [])
        assert times_s == sorted(times_s)


def last_of(scheduler: Any) -> Any:
    """The last tier of a scheduler."""
    return scheduler.further if isinstance(scheduler, UsesStore) else scheduler.tiers.levels[-1]


def test_answers_in_a_store_are_found_by_the_next_turn() -> None:
    """A turn's prompt holds the answer before it: without it the store is found up to the prompt before."""
    with_answers, without = (
        simulate(data).result["server"] for data in (offloading(), stored([SMALL_HOST], None, [STORE], engine="sglang"))
    )
    found, before = (server["kv_tiers"][-1] for server in (with_answers, without))
    assert found["hit_rate"] > 1.05 * before["hit_rate"]
    assert found["written_bytes"] > before["written_bytes"]


def test_a_decode_server_writes_whole_pages_behind_those_of_the_prompt() -> None:
    """`decode_kvcache_offload_manager.py` 196 and 220: of 64 tokens the last is not computed; pages of 16 go from 32 on."""
    kv, store = RadixPool(1600, 16, prefix_caching=False), TokenStore(10_000, 16)
    further = FurtherTier("shared", store, 100.0, [Link(1e6)], [Link(1e6)])
    rules = ReservingRules(8, 0, 8, 1000, num_reserved_decode_tokens=8, handshake_s=0.0)
    server = OffloadingReservingScheduler(rules, kv, further=further)
    seqs = [
        Sequence(i, 40, 24, 0.0, runs=((i, 0, 64),), shareable_tokens=40, output_shared=True) for i in range(2)
    ]
    store.put(content_of(seqs[0]), 32, 0.0)  # the prefill server's, of the first alone
    for seq in seqs:
        server.add(seq)
    now_s = 0.0
    while server.has_work():
        now_s += 0.1
        batch = server.schedule(now_s)
        for seq in [seq for seq, here in server.transfer.items() if not here]:
            server.arrived(seq)
        if batch is not None:
            batch.t_end = now_s + 0.05
            server.settle(batch)
    assert further.written_bytes == 2 * 16 * 100.0  # 63 tokens: a page from 32 to 48 of each
    ended_s = now_s + 0.05
    assert [store.find(content_of(seq), 63, ended_s + 0.01) for seq in seqs] == [48, 0]
    assert server.kv.free_tokens == 1600


def test_servers_find_in_a_store_what_another_has_written() -> None:
    """A store of all prefill servers holds more for each than one of its own in which it finds its prompts alone."""
    pools = [stored([STORE | MOONCAKE])["deployment"]["pools"][0] | {"name": name, "replicas": 1} for name in "ab"]
    together, apart = stored(None, None, [STORE | MOONCAKE]), stored(None)
    apart["deployment"]["pools"] = [*pools, apart["deployment"]["pools"][1]]
    one, other = (simulate(data).result["server"]["kv_tiers"][0]["hit_rate"] for data in (together, apart))
    assert one > 1.5 * other > 0


@pytest.mark.parametrize("name", some(STORED, 1))
def test_stores_outlive_the_servers(name: str) -> None:
    """A server that comes back finds what its store or its disk held; clients that go leave nothing behind."""
    data = copy.deepcopy(STORED[name])
    event = {"at_s": 8, "kind": "node", "for_s": 1, "pool": "p", "replica": 0}
    data["deployment"]["failures"] = {"events": [event], "start_up": 1}
    data["client"] = {"timeout_s": 4.0, "retries": {"attempts": 2, "on": ["timeout", "node_lost"]}}
    runs = [answered(data, ElasticHandover, aggregate=aggregate) for aggregate in (True, False)]
    found = [result for _, result in runs]
    kept = {id(last_of(rank.scheduler).store) for rank in runs[0][0].ranks if rank.scheduler.tier_counts()}
    assert (len(kept) == 1) == ("kv_tiers" in data["deployment"])
    assert np.array_equal(found[0].end_s, found[1].end_s, equal_nan=True)
    assert found[0].tiers == found[1].tiers
    assert found[0].tiers[-1].hit_tokens > 0


def test_a_store_is_read_ahead_while_the_decode_server_has_no_memory() -> None:
    """The read begins when a request comes, so that it has ended when the reservation is there."""
    checked = load_scenario(stored([SMALL_HOST, STORE], engine="sglang"))
    scheduler = prepare(checked).pools[0].plan.scheduler("step")
    assert isinstance(scheduler, TieredSendingPrefillScheduler)
    seq = Sequence(0, 4000, 5, 1.0)
    seq.runs, seq.shareable_tokens = ((7, 0, 4000),), 4000
    further = scheduler.kv.tree.further
    assert further is not None
    further.store.put(content_of(seq), 4000, 0.0)
    scheduler.add(seq)
    assert scheduler.schedule(1.0) is None
    there_s = scheduler._reading[seq].there_s
    assert 1.0 < there_s < 1.1
    scheduler.reserved(seq)
    batch = scheduler.schedule(there_s)
    assert batch is not None
    assert batch.tokens < 100
    assert further.hit_tokens == 4000 - batch.tokens


def test_what_both_connectors_are_is_read() -> None:
    """Dynamo's `PdConnector` is its block manager and NIXL; a decode server may list LMCache behind NIXL."""
    listed = [{"kv_connector": "DynamoConnector"}, {"kv_connector": "NixlConnector"}]
    data = stored(None)
    for pool, connector, inner in zip(
        data["deployment"]["pools"],
        ("PdConnector", "MultiConnector"),
        (listed, [{"kv_connector": "NixlConnector"}, {"kv_connector": "LMCacheConnectorV1"}]),
        strict=True,
    ):
        config = {"kv_connector": connector, "kv_role": "kv_both", "kv_connector_extra_config": {"connectors": inner}}
        pool["engine_args"] = pool["engine_args"] | {"kv_transfer_config": config}
    data["deployment"]["pools"][0]["engine_args"] |= {"dyn_kvbm_cpu_cache_gb": 20}
    found = prepare(load_scenario(data))
    assert [each.plan.tiers for each in found.pools] == [("host",), ("host",)]
    notes = " ".join(found.assumptions)
    assert "KV tiers by DynamoConnector" in notes
    assert "KV tiers by LMCacheConnectorV1" in notes


def test_what_is_not_modelled_is_said() -> None:
    decode = scenario(None)
    decode["deployment"]["pools"][1]["kv_tiers"] = HOST
    unlike = stored(None, None, [STORE | MOONCAKE])
    unlike["deployment"]["pools"][1]["tensor_parallel"] = 2
    flagged = scenario()
    flagged["deployment"]["pools"][1]["engine_args"] = {"enable_hierarchical_cache": True}
    flagged["deployment"]["kv_tiers"] = [STORE]
    beside = "beside decode pools"
    alone = offloading()
    del alone["deployment"]["kv_tiers"]
    wrong = offloading()
    wrong["deployment"]["pools"][0]["engine_args"] |= {"disaggregation_decode_enable_offload_kvcache": True}
    states = {**offloading(), "model": "Qwen/Qwen3.5-9B"}
    for data, words in (
        (decode, beside),
        (flagged, beside),
        (unlike, "cannot share a store of KV blocks: tensor parallelism"),
        (alone, "needs a store that the prefill servers read"),
        (wrong, "is a decode server's"),
        (states, "write no caches like those of"),
    ):
        is_refused(data, words)


def test_rows_that_wait_for_blocks_yield_nothing_meanwhile() -> None:
    """The last row keeps its blocks while a step in flight writes them; the next serves none but those whose prompts came."""
    data = stored([SMALL_HOST | {"bytes": 3e9}], [SMALL_HOST | {"bytes": 3e9}], admission={"max_inflight": 4, "on_full": "wait"})
    pools = data["deployment"]["pools"]
    pools[1]["replicas"] = 1
    pools.append({**pools[0], "name": "m", "role": "mixed", "replicas": 3, "prompt_tokens": [0, 800]})
    for each in pools[:2]:
        each["prompt_tokens"] = [801, 100_000]
    data["deployment"] |= {"router": "least_requests"}
    data["deployment"]["admission"]["max_queue"] = 5
    data["seed"] = 2051
    data["workload"] = {
        "arrivals": {"kind": "poisson", "rate": 25},
        "prompt_tokens": {"kind": "lognormal", "mean": 1200, "p99": 5000, "max": 6000},
        "output_tokens": {"kind": "lognormal", "mean": 50, "p99": 250},
        "shared_prefix": {"groups": 4, "tokens": 800},
        "duration": 7,
    }
    _, result = ran(data)
    for row in np.flatnonzero(result.status == FINISHED).tolist():
        assert sum(last - first + 1 for _, first, last in result.emissions.of(row)) == result.output_tokens[row]
