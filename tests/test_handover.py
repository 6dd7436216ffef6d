"""Prefill and decode pools: the way of a request between them, memory on both sides, and the network."""

from __future__ import annotations

import copy
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from engine_models.engines.sglang_handover import POST_S
from engine_models.memory.radix import RadixPool
from engine_models.parts.adapters import AdapterLimits
from engine_models.parts.batch import AdapterUse
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.pulled import DecodeOfPull, PrefillOfPull
from engine_models.schedulers.reserved import (
    ReservingDecodeScheduler,
    ReservingRules,
    SendingPrefillScheduler,
)
from engine_models.schedulers.reserved_adapted import AdaptedReservingScheduler
from engine_models.schedulers.reserved_turns import StagedReservingScheduler
from engine_models.schedulers.transferred import ContextServer, GenerationServer
from hardware_profiles.errors import PlanError
from simulator import load_scenario, simulate
from simulator.cluster.clock import ARRIVALS, Clock
from simulator.cluster.handover import HandoverCluster
from simulator.cluster.outcome import FINISHED, NOT_ARRIVED
from simulator.cluster.transfer import Network, Paths, Route, Side
from simulator.prepare import prepare
from simulator.run import _cluster
from simulator.serving.turning import TurningReplica
from simulator.workload.build import build_workload
from tests.clusters import is_refused, jumps_as_it_steps, streams_alike
from tests.effort import some

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
WORKLOAD: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 10},
    "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 4000},
    "output_tokens": {"kind": "lognormal", "mean": 60, "p99": 300},
    "duration": 12,
}
SHARED = {"shared_prefix": {"groups": 3, "tokens": 700}}
CLOSED = {"arrivals": {"kind": "closed_loop", "concurrency": 40}, "requests": 150, "duration": None}
KNOWN = PrefillOfPull | DecodeOfPull | ReservingDecodeScheduler | SendingPrefillScheduler | ContextServer | GenerationServer
SLOW = {"kind": "poisson", "rate": 1}
GENERATION_FIRST = {"transfer": {"schedule_style": "generation_first"}}
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.6}
EAGLE = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}
BRIEF = {"duration": 2, "arrivals": {"kind": "poisson", "rate": 30}}
LEAST = {"router": "least_requests"}
ONE_STORE = {"kind": "shared", "bytes": 1e12, "bytes_per_s": 1e10}
PUSHED = {"transfer": {"connector": "MooncakeConnector"}}
NIXL_PUSHED = {"transfer": {"connector": "NixlPushConnector"}}
OFFLOAD = {"kv_offloading_size": 4}
LONGER = {"output_tokens": {"kind": "lognormal", "mean": 200, "p99": 800}}
SHORT = {"kind": "uniform", "low": 1, "high": 3}
CHATS = {"sessions": {"turns": 4, "think_time_s": 1}, "arrivals": {"kind": "poisson", "rate": 3}}


def pool(role: str, replicas: int = 1, engine: str = "vllm", **args: Any) -> dict[str, Any]:
    keys = {"engine": engine, "hardware": "h100-sxm-80gb", "role": role, "name": role, "replicas": replicas}
    parallel = ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel")
    own = (*parallel, "lora", "colocate", "hardware", "speculative", "offload", "kv_tiers")
    return {**keys, **{k: args.pop(k) for k in own if k in args}, "engine_args": args}


def sglang(role: str, replicas: int = 1, **args: Any) -> dict[str, Any]:
    return pool(role, replicas, "sglang", **args)


def trtllm(role: str, replicas: int = 1, **args: Any) -> dict[str, Any]:
    return pool(role, replicas, "trtllm", **args)


def scenario(*pools: dict[str, Any], around: dict[str, Any] | None = None, **workload: Any) -> dict[str, Any]:
    load = {key: value for key, value in {**WORKLOAD, **workload}.items() if value is not None}
    return {"model": LLAMA, "deployment": {"pools": list(pools), **(around or {})}, "workload": load}


def cluster_of(data: dict[str, Any]) -> HandoverCluster:
    checked = load_scenario(data)
    work = build_workload(checked.workload, seed=checked.seed, base_dir=None)
    found = _cluster(prepare(checked), work, aggregate=True, should_stop=None)
    assert isinstance(found, HandoverCluster)
    return found


def test_transfers_of_older_sglang_over_nixl_are_posted_one_after_the_other() -> None:
    """Six prompts that are computed together: the n-th is posted behind n - 1 others; the next ones wait for all of them."""

    def first_s(version: str, requests: int, connector: str = "nixl", **flags: Any) -> list[float]:
        args = {"disaggregation_transfer_backend": connector, "chunked_prefill_size": 6000, "max_prefill_tokens": 6000, **flags}
        pools = [pool(role, engine=f"sglang@{version}", **args) for role in ("prefill", "decode")]
        load = {"arrivals": {"kind": "batch"}, "requests": requests, "prompt_tokens": 1000, "output_tokens": 2, "duration": None}
        run = simulate(scenario(*pools, **load))
        return sorted(float(value) / 1e3 for value in run.requests["ttft_ms"])

    for flags in ({}, {"disable_overlap_schedule": True}):
        posted, apart = first_s("0.5.11", 6, **flags), first_s("0.5.12", 6, **flags)
        later = np.array(posted) - np.array(apart)
        assert later == pytest.approx(POST_S * np.arange(6), abs=0.02)
        assert first_s("0.5.11", 1, **flags)[0] == pytest.approx(first_s("0.5.12", 1, **flags)[0], abs=0.02)
    assert first_s("0.5.11", 6, "mooncake") == first_s("0.5.12", 6, "mooncake")


def test_a_prefill_server_launches_when_it_has_posted() -> None:
    """Two batches of six short prompts: the second is launched behind the six posts of the first, and posted behind its own."""
    args = {"disaggregation_transfer_backend": "nixl", "chunked_prefill_size": 600, "max_prefill_tokens": 600}
    pools = [pool(role, engine="sglang@0.5.11", **args, disable_overlap_schedule=True) for role in ("prefill", "decode")]
    load = {"arrivals": {"kind": "batch"}, "requests": 12, "prompt_tokens": 100, "output_tokens": 2, "duration": None}
    told = sorted(float(value) / 1e3 for value in simulate(scenario(*pools, **load)).requests["ttft_ms"])
    assert np.diff(told)[[0, 1, 2, 3, 4, 6, 7, 8, 9, 10]] == pytest.approx(np.full(10, POST_S), abs=0.015)
    assert told[6] - told[5] > POST_S


MIXTRAL = {"tensor_parallel": 1, "data_parallel": 4, "expert_parallel": 4}
"""Ranks with attention of their own, which share the experts."""


def of_ranks(*pools: dict[str, Any], **workload: Any) -> dict[str, Any]:
    """A scenario whose model has experts."""
    return {**scenario(*pools, **workload), "model": "mistralai/Mixtral-8x7B-Instruct-v0.1"}


def of_windows(*pools: dict[str, Any], around: dict[str, Any] | None = None, **workload: Any) -> dict[str, Any]:
    """A scenario whose model has sliding windows."""
    return {**scenario(*pools, around=around, **workload), "model": "openai/gpt-oss-20b"}


CASES = {
    "1P1D": scenario(pool("prefill"), pool("decode")),
    "decode-short-of-blocks": scenario(pool("prefill"), pool("decode", num_gpu_blocks_override=700, max_model_len=8192)),
    "prefill-short-of-blocks": scenario(
        pool("prefill", num_gpu_blocks_override=600, max_model_len=8192),
        pool("decode"),
        around={"transfer": {"bytes_per_s": 2e9}},
    ),
    "few-rows": scenario(pool("prefill"), pool("decode", max_num_seqs=4)),
    "synchronous": scenario(pool("prefill", async_scheduling=False), pool("decode", async_scheduling=False)),
    "2P3D-least": scenario(pool("prefill", 2), pool("decode", 3), around={"router": "least_requests"}, **SHARED),
    "closed-loop": scenario(pool("prefill"), pool("decode", 2), **CLOSED),
    "conversations": scenario(pool("prefill", 2), pool("decode"), **CHATS),
    "mooncake-short-of-blocks": scenario(
        pool("prefill", num_gpu_blocks_override=600, max_model_len=8192),
        pool("decode", 2, num_gpu_blocks_override=700, max_model_len=8192),
        around=PUSHED,
        **{**SHARED, **BRIEF},
    ),
    "prefill-offload": scenario(
        pool("prefill", offload={"kv_offloading_size": 4}, num_gpu_blocks_override=600, max_model_len=8192),
        pool("decode", max_model_len=8192),
        **{**BRIEF, "shared_prefix": {"groups": 12, "tokens": 700}},
    ),
    "decode-offload": scenario(
        pool("prefill"), pool("decode", offload=OFFLOAD, num_gpu_blocks_override=600, max_model_len=8192), **{**BRIEF, **LONGER}
    ),
    "decode-offload-mooncake": scenario(
        pool("prefill", 2),
        pool("decode", 2, offload=OFFLOAD, num_gpu_blocks_override=600, max_model_len=8192),
        around=PUSHED,
        **{**SHARED, **BRIEF, **LONGER},
    ),
    "adapters": scenario(
        pool("prefill", 2, lora={"max_loras": 2}),
        pool("decode", lora={"max_loras": 3}, max_num_seqs=16),
        **{**SHARED, **BRIEF, "adapters": {"count": 6, "share": 0.8}},
    ),
    "adapters-mooncake": scenario(
        pool("prefill", lora={"max_loras": 2}),
        pool("decode", 2, lora={"max_loras": 2}, num_gpu_blocks_override=700, max_model_len=8192),
        around=PUSHED,
        **{**BRIEF, "adapters": {"count": 5}},
    ),
    "grammars": scenario(
        pool("prefill"),
        pool("decode", 2, num_gpu_blocks_override=700, max_model_len=8192),
        **{**SHARED, **BRIEF, "structured_output": 0.6},
    ),
    "sglang-grammars": scenario(
        sglang("prefill"), sglang("decode", 2, max_total_tokens=11_000), **{**SHARED, **BRIEF, "structured_output": 0.6}
    ),
    "sglang-adapters": scenario(
        sglang("prefill", 2, lora={"max_loras": 2}),
        sglang("decode", lora={"max_loras": 3}, max_total_tokens=11_000),
        **{**SHARED, **BRIEF, "adapters": {"count": 6, "share": 0.8}},
    ),
    "sglang-adapters-retracting": scenario(
        sglang("prefill", lora={"max_loras": 4}),
        sglang("decode", lora={"max_loras": 2}, max_total_tokens=6000, context_length=8192, num_reserved_decode_tokens=8),
        **{**BRIEF, "adapters": {"count": 3}, "structured_output": 0.5},
    ),
    "sglang-adapters-drafts": scenario(
        sglang("prefill", speculative=EAGLE, lora={"max_loras": 4}),
        sglang("decode", 2, speculative=EAGLE, lora={"max_loras": 2}, max_total_tokens=11_000),
        **{**BRIEF, "adapters": {"count": 6, "share": 0.8}, "structured_output": 0.6},
    ),
    "sglang-adapters-prefixes": scenario(
        sglang("prefill", lora={"max_loras": 4}),
        sglang("decode", lora={"max_loras": 2}, disaggregation_decode_enable_radix_cache=True, max_total_tokens=11_000),
        **{**SHARED, **BRIEF, "adapters": {"count": 4}},
    ),
    "sglang-grammars-drafts": scenario(
        sglang("prefill", speculative=EAGLE), sglang("decode", speculative=EAGLE), **{**BRIEF, "structured_output": 0.6}
    ),
    "grammars-drafts": scenario(
        pool("prefill", speculative=DRAFTS), pool("decode", speculative=DRAFTS), **{**BRIEF, "structured_output": 0.6}
    ),
    "stages-push": scenario(
        pool("prefill", pipeline_parallel=2, num_gpu_blocks_override=900, max_model_len=8192),
        pool("decode", 2, tensor_parallel=2, max_model_len=8192),
        around={"transfer": {"connector": "NixlPushConnector", "bytes_per_s": 4e9}},
        **{**SHARED, **BRIEF},
    ),
    "windows": of_windows(
        pool("prefill", num_gpu_blocks_override=900, max_model_len=8192),
        pool("decode", 2, num_gpu_blocks_override=900, max_model_len=8192),
        around={"transfer": {"bytes_per_s": 2e9}},
        **{**SHARED, **BRIEF},
    ),
    "windows-conversations": of_windows(pool("prefill"), pool("decode", max_num_seqs=8, async_scheduling=False), **CHATS),
    "windows-of-0.23": of_windows(
        pool("prefill", engine="vllm@0.23.0"), pool("decode", engine="vllm@0.23.0", max_num_seqs=8), around=NIXL_PUSHED, **BRIEF
    ),
    "windows-mooncake": of_windows(
        pool("prefill", num_gpu_blocks_override=900, max_model_len=8192),
        pool("decode", 2, num_gpu_blocks_override=900, max_model_len=8192),
        around={"transfer": {"connector": "MooncakeConnector", "bytes_per_s": 2e9}},
        **{**SHARED, **BRIEF},
    ),
    "windows-mooncake-conversations": of_windows(
        pool("prefill"), pool("decode", max_num_seqs=8, async_scheduling=False), around=PUSHED, **CHATS
    ),
    "stages-mooncake": scenario(
        pool("prefill", pipeline_parallel=2, num_gpu_blocks_override=900, max_model_len=8192),
        pool("decode", 2, tensor_parallel=2, max_model_len=8192),
        around={"transfer": {"connector": "MooncakeConnector", "bytes_per_s": 4e9}},
        **{**SHARED, **BRIEF},
    ),
    "windows-adapters": of_windows(
        pool("prefill", lora={"max_loras": 2}), pool("decode", lora={"max_loras": 3}), **BRIEF, adapters={"count": 6}
    ),
    "sglang-in-pieces": scenario(sglang("prefill", chunked_prefill_size=512), sglang("decode"), **SHARED),
    "sglang-serial": scenario(sglang("prefill", disable_overlap_schedule=True), sglang("decode")),
    "sglang-reserving": scenario(sglang("prefill"), sglang("decode", max_total_tokens=9000, context_length=8192)),
    "sglang-retracting": scenario(
        sglang("prefill"), sglang("decode", max_total_tokens=6000, context_length=8192, num_reserved_decode_tokens=8)
    ),
    "sglang-small-prefill": scenario(
        sglang("prefill", max_total_tokens=6000, context_length=8192),
        sglang("decode", 2),
        around={"transfer": {"bytes_per_s": 4e9}},
    ),
    "sglang-few-rows": scenario(
        sglang("prefill", 2), sglang("decode", max_running_requests=4), around={"router": "least_requests"}
    ),
    "sglang-closed-loop": scenario(sglang("prefill"), sglang("decode", 2), **CLOSED),
    "ranks": of_ranks(pool("prefill", tensor_parallel=4), pool("decode", **MIXTRAL), **SHARED),
    "ranks-on-both-sides": of_ranks(pool("prefill", 2, **MIXTRAL), pool("decode", 2, **MIXTRAL), around=LEAST),
    "sglang-ranks": of_ranks(sglang("prefill", **MIXTRAL), sglang("decode", **MIXTRAL)),
    "sglang-ranks-retracting": of_ranks(
        sglang("prefill", tensor_parallel=4),
        sglang("decode", **MIXTRAL, max_total_tokens=6000, context_length=8192, num_reserved_decode_tokens=8),
    ),
    "drafts": scenario(
        pool("prefill", speculative=DRAFTS),
        pool("decode", 2, speculative=DRAFTS, num_gpu_blocks_override=700, max_model_len=8192),
        **BRIEF,
    ),
    "trtllm-few-rows": scenario(
        trtllm("prefill"), trtllm("decode", 2, max_batch_size=4), **{**SHARED, **BRIEF, "output_tokens": SHORT}
    ),
    "trtllm-generation-first": scenario(
        trtllm("prefill", max_batch_size=2), trtllm("decode", max_batch_size=8), around=GENERATION_FIRST, **BRIEF
    ),
    "trtllm-ranks": of_ranks(trtllm("prefill", **MIXTRAL), trtllm("decode", **MIXTRAL), around=GENERATION_FIRST, **BRIEF),
    "trtllm-drafts": scenario(trtllm("prefill"), trtllm("decode", 2, speculative=DRAFTS), **SHARED, **BRIEF),
    "sglang-drafts": scenario(
        sglang("prefill", speculative=EAGLE),
        sglang(
            "decode", 2, speculative=EAGLE, max_total_tokens=6000, context_length=8192, num_reserved_decode_tokens=8
        ),
        **{**BRIEF, "arrivals": {"kind": "poisson", "rate": 60}},
    ),
    "sglang-pages": scenario(
        sglang("prefill", 2, page_size=64, chunked_prefill_size=512),
        sglang("decode", page_size=64, max_total_tokens=9000, context_length=8192),
        **{**SHARED, **BRIEF},
    ),
    "sglang-pages-retracting": scenario(
        sglang("prefill", page_size=16, max_total_tokens=6000, context_length=8192),
        sglang("decode", page_size=16, max_total_tokens=6000, context_length=8192, num_reserved_decode_tokens=8),
        around={"transfer": {"bytes_per_s": 4e9}},
    ),
    "sglang-pages-drafts": scenario(
        sglang("prefill", page_size=32, speculative=EAGLE),
        sglang("decode", 2, page_size=32, speculative=EAGLE, max_total_tokens=6000, context_length=8192),
        **BRIEF,
    ),
    "sglang-stages": scenario(
        sglang("prefill", 2, pipeline_parallel=2, chunked_prefill_size=512),
        sglang("decode", max_total_tokens=9000, context_length=8192),
        **{**SHARED, **BRIEF},
    ),
    "sglang-stages-small": scenario(
        sglang("prefill", pipeline_parallel=4, max_total_tokens=9000, context_length=8192, pp_max_micro_batch_size=2),
        sglang("decode", 2, tensor_parallel=2),
        around={"transfer": {"bytes_per_s": 4e9}},
        **CHATS,
    ),
    "sglang-conversations": scenario(sglang("prefill", 2), sglang("decode"), **{**CHATS, "output_tokens": SHORT}),
}


@pytest.mark.parametrize("name", some(CASES))
def test_jumping_is_stepping(name: str) -> None:
    jumps_as_it_steps(CASES[name])


@pytest.mark.parametrize("name", ["2P3D-least", "conversations", "sglang-in-pieces"])
def test_streamed_requests_are_those_in_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    streams_alike(CASES[name], monkeypatch)


@pytest.mark.parametrize("name", some(CASES, 1))
def test_requests_and_blocks_are_conserved(name: str) -> None:
    cluster = cluster_of(CASES[name])
    result = cluster.run()
    came = result.status != NOT_ARRIVED
    assert (result.status[came] == FINISHED).all()
    tokens = sum(last - first + 1 for row in range(len(result.status)) for _, first, last in result.emissions.of(row))
    assert tokens == int(result.output_tokens[came].sum())
    for rank in cluster.ranks:
        scheduler = rank.scheduler
        assert isinstance(scheduler, KNOWN)
        if isinstance(scheduler, PrefillOfPull):
            scheduler.free_released()
        assert scheduler.kv.free_blocks == scheduler.kv.capacity_blocks
        assert not scheduler.has_work()
    handed = result.handed
    assert handed is not None
    order = [result.arrival_s, handed.arrival_s, handed.transfer_start_s, handed.transfer_end_s]
    assert (result.arrival_s <= handed.prefill_end_s)[came].all()
    assert (handed.prefill_end_s <= handed.transfer_end_s)[came].all()
    order += [handed.first_scheduled_s, result.first_token_s, result.end_s]
    for before, after in pairwise(order):
        assert (after >= before)[came].all()


def server(found: Any, ends: dict[int, float]) -> TurningReplica:
    """A server of a pool alone, stepping plainly, which notes the ends of its requests."""

    def ended(seq: Sequence, now_s: float) -> None:
        ends[seq.index] = now_s

    front, depth = found.plan.front, found.plan.executor.depth
    return TurningReplica(
        [found.plan.scheduler("step")], found.times(), depth=depth, front=front.unqueued(), on_finish=ended
    )


class FreePaths(Paths):
    """Ways that take no time."""

    def of(self, source: int, target: int, tokens: int) -> tuple[dict[Any, tuple[float, float]], float, int]:
        return {source: (0.0, 1.0)}, 0.0, tokens


def test_a_pair_with_free_links_is_two_servers_in_a_row() -> None:
    """Each server alone, the second fed by the first's ends, ends every request at the same time to the bit."""
    data = scenario(pool("prefill"), pool("decode"), max_output_tokens="equal")
    cluster = cluster_of(data)
    cluster._paths = FreePaths([], {}, {})
    result = cluster.run()
    handed, rows = result.handed, range(len(result.status))
    assert handed is not None
    assert (handed.transfer_end_s == handed.transfer_start_s).all()
    first, second = prepare(load_scenario(data)).pools
    before_s = first.plan.front.unqueued().before_s
    assert second.plan.handover is not None
    hop_s = second.plan.handover.hop_s + second.plan.front.unqueued().before_s
    prompts: dict[int, float] = {}
    one = server(first, prompts)
    holder = one.ranks[0].scheduler
    assert isinstance(holder, PrefillOfPull)
    prompt, reached_s = result.prompt_tokens.tolist(), (result.arrival_s + before_s).tolist()
    asked = {row: Sequence(row, prompt[row], 1, reached_s[row]) for row in rows}
    events = [(seq.arrival_s, 1, seq.index) for seq in asked.values()]
    for at_s, arrives, row in sorted([*events, *((float(handed.transfer_end_s[row]), 0, row) for row in rows)]):
        one.advance(at_s)
        if arrives:
            one.ranks[0].submit(asked[row])
        else:
            holder.release(asked[row])
            one.hear()
    assert [prompts[row] for row in rows] == handed.prefill_end_s.tolist()
    answers: dict[int, float] = {}
    two = server(second, answers)
    reader = two.ranks[0].scheduler
    assert isinstance(reader, DecodeOfPull)
    for row in sorted(prompts, key=lambda row: prompts[row]):  # of one step in the order in which they ended
        at_s = prompts[row] + hop_s
        _run(two, reader, at_s)
        two.ranks[0].submit(Sequence(row, prompt[row], int(result.output_tokens[row]), at_s))
    _run(two, reader, 1e3)
    assert [answers[row] for row in rows] == result.end_s.tolist()


def _run(replica: TurningReplica, reader: DecodeOfPull, until_s: float) -> None:
    """Advance a decode server whose reads take no time."""
    while (due_s := replica.next_event_s()) < until_s:
        replica.advance(float(np.nextafter(due_s, np.inf)))
        notes, reader.notes = reader.notes, []
        for note in notes:
            reader.arrived(note.seq)
            replica.hear()
    replica.advance(until_s)


def test_one_mixed_pool_beside_others_without_replicas_is_the_plain_run() -> None:
    beside = simulate(scenario(pool("prefill", 0), pool("decode", 0), pool("mixed", 2)))
    plain = simulate(scenario(pool("mixed", 2)))
    assert beside.requests_frame().equals(plain.requests_frame())
    assert beside.result["metrics"] == plain.result["metrics"]
    assert beside.result["cost"] == plain.result["cost"]


@pytest.mark.parametrize("model", [LLAMA, "openai/gpt-oss-20b"])
def test_the_commands_of_both_servers_state_their_roles(model: str) -> None:
    """The commands of vLLM's own example for a prefill and a decode server, pasted."""
    launch = f"vllm serve {model} --max-model-len 16384 --kv-transfer-config "
    connector = '\'{"kv_connector": "NixlConnector", "kv_role": "'
    sides = [f"{launch}{connector}{role}\"}}'" for role in ("kv_producer", "kv_consumer")]
    pools = [{"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": text} for text in sides]
    checked = load_scenario({**scenario(*pools), "model": model})
    assert [each.role for each in checked.deployment.pools] == ["prefill", "decode"]
    assert not any("kv_transfer_config" in warning for warning in prepare(checked).warnings)
    with pytest.raises(PlanError, match="starts the decode server"):
        load_scenario({**scenario(pools[0], {**pools[1], "role": "prefill"}), "model": model})


# The network ----------------------------------------------------------------------------------------------


def ends_of(*flows: tuple[float, dict[str, tuple[float, float]]], latency_s: float = 0.0) -> list[float]:
    """Ends of transfers, each given by its begin and its bytes and rate at both ends."""
    clock, ends = Clock(), [0.0] * len(flows)
    network = Network(clock)
    for number, (at_s, between) in enumerate(flows):
        send = partial(network.send, at_s, dict(between), latency_s, partial(ends.__setitem__, number))
        clock.at(at_s, ARRIVALS, send)
    while clock.step():
        pass
    return ends


def test_a_transfer_lasts_bytes_over_rate_and_the_latency() -> None:
    assert ends_of((1.0, {"a": (6e9, 2e9), "b": (6e9, 3e9)}), latency_s=0.25) == [pytest.approx(4.25)]


def test_two_transfers_at_once_share_an_interface() -> None:
    both = {"a": (2e9, 1e9), "b": (2e9, 1e9)}
    assert ends_of((0.0, both), (0.0, both)) == [pytest.approx(4.0), pytest.approx(4.0)]
    assert ends_of((0.0, both), (1.0, both)) == [pytest.approx(3.0), pytest.approx(4.0)]
    assert ends_of((0.0, both), (0.0, {"a": (1e9, 1e9), "c": (1e9, 1e9)})) == [pytest.approx(3.0), pytest.approx(2.0)]


def test_a_prefill_server_finds_in_host_memory_what_its_device_lost() -> None:
    load = {**BRIEF, "shared_prefix": {"groups": 12, "tokens": 700}}
    alone = scenario(pool("prefill", num_gpu_blocks_override=600, max_model_len=8192), pool("decode", max_model_len=8192), **load)
    tiered, plain = (simulate(data).requests_frame() for data in (CASES["prefill-offload"], alone))
    assert tiered.cached_tokens.sum() > 1.3 * plain.cached_tokens.sum()
    assert tiered.ttft_ms.mean() < plain.ttft_ms.mean()


LMCACHE = {"kind": "host", "bytes": 40e9, "connector": "LMCacheConnectorV1"}
CONDITIONAL = scenario(
    pool("prefill"),
    pool("decode", 2, offload=OFFLOAD, num_gpu_blocks_override=600, max_model_len=8192),
    around={"router": {"system": "dynamo", "conditional_disagg_enabled": True}},
    **CHATS,
)


def test_a_decode_server_finds_in_host_memory_what_its_device_lost() -> None:
    """Rows that lost their memory load it, and prompts that it computes; who keeps what it is sent finds nothing."""
    roomy = {**BRIEF, **LONGER}
    kept, plain = (simulate(scenario(pool("prefill"), pool("decode", **args), **roomy)) for args in ({"offload": OFFLOAD}, {}))
    assert kept.requests_frame().equals(plain.requests_frame())
    assert kept.result["server"]["kv_tiers"][0]["read_bytes"] == 0 < kept.result["server"]["kv_tiers"][0]["written_bytes"]
    by_lmcache = copy.deepcopy(CONDITIONAL)
    del by_lmcache["deployment"]["pools"][1]["offload"]
    by_lmcache["deployment"]["pools"][1]["kv_tiers"] = [LMCACHE]
    for data in (CASES["decode-offload"], by_lmcache, CONDITIONAL):
        without = {**data, "deployment": {**data["deployment"], "pools": [dict(each) for each in data["deployment"]["pools"]]}}
        for key in ("offload", "kv_tiers"):
            without["deployment"]["pools"][1].pop(key, None)
        run, other = simulate(data), simulate(without)
        computed, more = (sum(int(log.column("prefill_tokens").sum()) for log in each.raw.logs[1:]) for each in (run, other))
        assert run.result["server"]["kv_tiers"][0]["read_bytes"] > 1e8
        assert computed < 0.8 * more
        assert run.result["totals"]["completed"] == run.result["totals"]["offered"]
        stepped = simulate(data, aggregate=False)
        assert stepped.requests_frame().equals(run.requests_frame())
        assert stepped.result == run.result


NIXL = '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'
TO_HOST = '{"kv_connector": "OffloadingConnector", "kv_role": "kv_both", "kv_connector_extra_config": {"cpu_bytes_to_use": %d}}'
HOST = TO_HOST % (4 << 30)


def launched(role: str, *connectors: str) -> dict[str, Any]:
    """A server by its command, with a `MultiConnector`."""
    inside = f'"kv_connector_extra_config": {{"connectors": [{", ".join(connectors)}]}}' if connectors else '"engine_id": "x"'
    config = f'{{"kv_connector": "MultiConnector", "kv_role": "kv_both", {inside}}}'
    command = f"vllm serve {LLAMA} --num-gpu-blocks-override 600 --max-model-len 8192 --kv-transfer-config '{config}'"
    return {**pool(role), "engine_args": command}


def test_a_multi_connector_is_one_between_servers_and_one_to_the_host() -> None:
    small = {"offload": OFFLOAD, "num_gpu_blocks_override": 600, "max_model_len": 8192}
    load = {**BRIEF, **LONGER}
    pasted = simulate(scenario(*(launched(role, NIXL, HOST) for role in ("prefill", "decode")), **load))
    typed = simulate(scenario(*(pool(role, **small) for role in ("prefill", "decode")), **load))
    assert pasted.requests_frame().equals(typed.requests_frame())
    assert pasted.result["server"] == typed.result["server"]
    assert pasted.result["server"]["kv_tiers"][0]["read_bytes"] > 0


@pytest.mark.parametrize(
    ("connectors", "words"),
    [
        ((HOST, NIXL), "asks what lies beyond the device before the other server"),
        ((NIXL, NIXL), "a MultiConnector of NixlConnector and NixlConnector is not modelled"),
        ((), "MultiConnector lists no connectors"),
    ],
)
def test_a_multi_connector_that_is_not_modelled_is_refused(connectors: tuple[str, ...], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        prepare(load_scenario(scenario(launched("prefill", HOST, NIXL), launched("decode", *connectors))))


@pytest.mark.parametrize("kind", [pool, sglang])
def test_grammars_that_nobody_has_change_nothing_in_a_pair(kind: Any) -> None:
    pools = kind("prefill"), kind("decode", 2)
    free, nobody, all_of_them = (
        simulate(scenario(*pools, **BRIEF, **more)) for more in ({}, {"structured_output": 1e-9}, {"structured_output": 1.0})
    )
    assert nobody.result["metrics"] == free.result["metrics"]
    assert all_of_them.result["metrics"]["tpot_ms"]["mean"] > free.result["metrics"]["tpot_ms"]["mean"]


def test_masks_are_made_where_tokens_are_drawn() -> None:
    """The first token of an answer at the prefill server, with the prompt's last piece, the others at the decode server."""
    pair = prepare(load_scenario(scenario(sglang("prefill"), sglang("decode"), structured_output=1.0))).pools
    sender, reader = (each.plan.scheduler("step") for each in pair)
    assert isinstance(sender, SendingPrefillScheduler)
    assert isinstance(reader, ReservingDecodeScheduler)
    prompt, answer = (Sequence(0, 10_000, tokens, 0.0, limit_tokens=tokens, masked=True) for tokens in (1, 5))
    sender.add(prompt)
    sender.reserved(prompt)
    rows = []
    while prompt.computed < 10_000:
        batch = sender.schedule(0.0)
        assert batch is not None
        rows.append(batch.masked_rows)
    assert rows == [0] * (len(rows) - 1) + [1]
    assert len(rows) > 1
    reader.add(answer)
    reader.schedule(0.0)
    reader.schedule(1.0)
    reader.arrived(answer)
    batch = reader.schedule(2.0)
    assert batch is not None
    assert batch.masked_rows == 1


def test_a_decode_server_has_no_more_adapters_in_a_step_than_places() -> None:
    """With one place requests wait for another's rows to end, though their blocks have come; with a place each nobody does."""
    load = {"adapters": {"count": 4}, **BRIEF}
    waits = []
    for places in (1, 4):
        pools = pool("prefill", lora={"max_loras": 4}), pool("decode", lora={"max_loras": places})
        run = simulate(scenario(*pools, **load))
        assert run.result["totals"]["completed"] == run.result["totals"]["offered"]
        waits.append(run.requests_frame().decode_queue_ms.mean())
    assert waits[0] > 5 * waits[1]


def test_an_sglang_decode_server_gives_memory_to_no_more_adapters_than_places() -> None:
    """With one place requests of another adapter get memory when all rows of the first have ended; with a place each at once."""
    load = {"adapters": {"count": 4}, **BRIEF}
    waits = []
    for places in (1, 4):
        pools = sglang("prefill", lora={"max_loras": 4}), sglang("decode", lora={"max_loras": places})
        run = simulate(scenario(*pools, **load))
        assert run.result["totals"]["completed"] == run.result["totals"]["offered"]
        waits.append(run.requests_frame().ttft_ms.mean())
    assert waits[0] > 5 * waits[1]


def test_who_names_an_adapter_too_many_is_passed_over() -> None:
    """`decode.py` 1460: the third waits though there is memory, the fourth behind it does not; until the others have ended."""
    rules = ReservingRules(8, 0, 8, 1000, num_reserved_decode_tokens=8, handshake_s=0.0)
    kv = RadixPool(2000, prefix_caching=False)
    server = AdaptedReservingScheduler(rules, kv, limits=AdapterLimits(2, counts_model=True))
    seqs = [Sequence(i, 20, 2, 0.0, adapter=adapter) for i, adapter in enumerate((1, 2, 3, 2))]
    for seq in seqs:
        server.add(seq)
    server.schedule(0.0)
    server.schedule(0.1)
    assert list(server.transfer) == [seqs[0], seqs[1], seqs[3]]
    for seq in (seqs[0], seqs[1], seqs[3]):
        server.arrived(seq)
    batch = server.schedule(0.2)
    assert batch is not None
    assert batch.adapters == AdapterUse(2, 3, 2, 0)
    server.settle(batch)
    server.schedule(0.3)  # those that ended count once more
    assert list(server.prealloc) == [seqs[2]]
    server.schedule(0.4)
    assert list(server.transfer) == [seqs[2]]


def test_over_mooncake_blocks_go_when_both_servers_are_done() -> None:
    """No hop between the servers; only what the reader lacks is sent, when the prompt is computed and it has room."""
    data = scenario(pool("prefill"), pool("decode", max_num_seqs=4), around=PUSHED, **SHARED, duration=3)
    frame = simulate(data).requests_frame()
    cluster = cluster_of(data)
    cluster.run()
    handed = cluster._blocks[0].handed
    assert handed is not None
    lag_s = handed.transfer_start_s - handed.prefill_end_s
    assert (lag_s >= 0).all()
    assert (lag_s == 0).sum() > 5
    assert (lag_s > 0).sum() > 5  # no row is free
    whole = -(-frame.prompt_tokens // 16) * 16 * 131072
    assert (frame.transfer_bytes <= whole).all()
    assert (frame.transfer_bytes < whole - 700 * 131072 + 32 * 131072).sum() > len(frame) / 3
    pushed = scenario(pool("prefill"), pool("decode"), around={"transfer": {"connector": "NixlPushConnector"}}, duration=3)
    pulled = simulate(scenario(pool("prefill"), pool("decode"), duration=3)).requests_frame()
    assert simulate(pushed).requests_frame().equals(pulled)


def test_what_a_busier_end_leaves_goes_to_the_others() -> None:
    """Three flows into one target, one of whose sources also feeds another target: that flow gets two thirds, not a half."""
    ends = [("x", "t"), ("y", "t"), ("z", "t"), ("z", "u")]
    assert ends_of(*((0.0, dict.fromkeys(pair, (1e9, 1e9))) for pair in ends))[3] == pytest.approx(1.5)


def test_every_rank_reads_its_part() -> None:
    """Four ranks read from two: each of the sources sends twice what a target receives."""
    sides = [Side("p", 0, 2, 64.0), Side("d", 1, 4, 32.0)]
    ends, latency_s, size = Paths(sides, {("p", "d"): Route(1e9, 2e9, 0.5)}, {}).of(0, 1, 100)
    assert sorted(ends.values()) == [(3200.0, 2e9), (6400.0, 1e9)]
    assert (latency_s, size) == (0.5, 12800)


def test_transfers_of_a_run_last_as_long_as_their_bytes() -> None:
    rate = 4e9
    frame = simulate(scenario(pool("prefill"), pool("decode"), around={"transfer": {"bytes_per_s": rate, "latency_s": 0.01}}))
    frame = frame.requests_frame()
    alone = frame.transfer_bytes / rate + 0.01
    lasted = frame.transfer_end_s - frame.transfer_start_s
    assert (lasted >= alone * (1 - 1e-9)).all()
    assert (lasted - alone < 1e-9).sum() > len(frame) / 3
    blocks = -(-frame.prompt_tokens // 16)
    assert (frame.transfer_bytes == blocks * 16 * 131072).all()


@pytest.mark.parametrize("around", [{}, PUSHED], ids=["nixl", "mooncake"])
@pytest.mark.parametrize(
    ("model", "hardware", "groups", "layers", "heads", "head", "window"),
    [("openai/gpt-oss-20b", "h100-sxm-80gb", 1, 12, 8, 64, 128), ("google/gemma-3-4b-it", "h100-sxm-80gb", 6, 5, 4, 256, 1024)],
)
def test_of_windows_their_end_is_read(
    model: str, hardware: str, groups: int, layers: int, heads: int, head: int, window: int, around: dict[str, Any]
) -> None:
    """Closed form: all blocks of a prompt for layers without a window, those that its next token sees for each group with one."""
    frame = simulate({**scenario(pool("prefill"), pool("decode"), around=around), "model": model}).requests_frame()
    tokens = frame.prompt_tokens
    blocks = -(-tokens // 16)
    seen = blocks - (tokens - window + 1).clip(lower=0) // 16
    block_bytes = layers * 2 * heads * head * 2 * 16
    assert (frame.transfer_bytes == (blocks + groups * seen) * block_bytes).all()
    assert (seen < blocks).any()
    assert (seen == blocks).any() or window < tokens.min()


def test_before_0_23_groups_are_moved_where_vllm_is_told_so() -> None:
    told = {"disable_hybrid_kv_cache_manager": False}
    pools = [pool(role, engine="vllm@0.19.1", **told) for role in ("prefill", "decode")]
    newest = [pool(role) for role in ("prefill", "decode")]
    moved, own = (simulate(of_windows(*each, **BRIEF)).requests_frame().transfer_bytes for each in (pools, newest))
    assert (moved == own).all()


def test_descriptors_of_windows_are_those_that_vllm_prints() -> None:
    """Gemma-3-4B and a prompt of 63 blocks of 64 tokens: 1650 descriptors by group, 4284 of whole layers (pull request 35758)."""
    pools = [pool(role, block_size=64) for role in ("prefill", "decode")]
    data = {**scenario(*pools, prompt_tokens={"kind": "constant", "value": 4000}, arrivals=SLOW), "model": "google/gemma-3-4b-it"}
    frame = simulate(data).requests_frame()
    lasted = (frame.transfer_end_s - frame.transfer_start_s - frame.transfer_bytes / 5e10).min()
    assert lasted == pytest.approx(1650 * 1.5e-6, rel=1e-6)
    assert frame.transfer_bytes.iloc[0] / 4284 == pytest.approx(1650 / 4284 * 64 * 4 * 256 * 2)


def test_descriptors_count_where_no_rate_is_stated() -> None:
    """Reads in blocks of 64 tokens have a quarter of the descriptors of those in blocks of 16."""

    def excess_s(block_size: int) -> float:
        pools = [pool(role, block_size=block_size) for role in ("prefill", "decode")]
        frame = simulate(scenario(*pools, prompt_tokens={"kind": "constant", "value": 4800}, arrivals=SLOW)).requests_frame()
        return float((frame.transfer_end_s - frame.transfer_start_s - frame.transfer_bytes / 5e10).min())

    assert excess_s(16) == pytest.approx(300 * 64 * 1.5e-6, rel=1e-6)  # 32 layers, K and V
    assert excess_s(64) == pytest.approx(75 * 64 * 1.5e-6, rel=1e-6)


@pytest.mark.parametrize("connector", ["NixlPushConnector", "MooncakeConnector"])
def test_stages_send_their_own_layers_side_by_side(connector: str) -> None:
    """Closed form: each of two stages sends half of a prompt over an interface of its own, each of two ranks reads half."""

    def of(**prefill: int) -> Any:
        pools = pool("prefill", **prefill), pool("decode", tensor_parallel=2)
        around = {"transfer": {"connector": connector, "bytes_per_s": 1e9}}
        load = {"prompt_tokens": {"kind": "constant", "value": 4800}, "arrivals": {"kind": "constant", "rate": 0.5}}
        return simulate(scenario(*pools, around=around, **load)).requests_frame()

    staged, whole = of(pipeline_parallel=2), of()
    for frame, senders in ((staged, 2), (whole, 1)):
        assert (frame.transfer_bytes == 4800 * 131072).all()
        lasted_s = frame.transfer_end_s - frame.transfer_start_s
        assert np.allclose(lasted_s, 4800 * 131072 / senders / 1e9, rtol=1e-6)
    # a prompt passes both stages, as in a pipeline that answers itself
    load = {"prompt_tokens": {"kind": "constant", "value": 4800}, "arrivals": {"kind": "constant", "rate": 0.5}}
    alone = [simulate(scenario(pool("mixed", **stages), **load)).requests_frame() for stages in ({"pipeline_parallel": 2}, {})]
    later_s = (staged.transfer_start_s - staged.first_scheduled_s) - (whole.transfer_start_s - whole.first_scheduled_s)
    in_one_s = [(frame.first_token_s - frame.first_scheduled_s).mean() for frame in alone]
    assert later_s.mean() == pytest.approx(in_one_s[0] - in_one_s[1], abs=1e-4)
    assert in_one_s[0] > 0.1


def test_whole_pages_are_sent_and_the_last_as_it_is() -> None:
    """Closed form: a prompt of 1,000 tokens is 16 pages of 64 at either server, or 1,000 tokens where a page is one."""

    def of(page: int, **decode: int) -> Any:
        pools = sglang("prefill", page_size=page, chunked_prefill_size=512), sglang("decode", page_size=page, **decode)
        around = {"transfer": {"bytes_per_s": 2e10}}
        return simulate(scenario(*pools, around=around, prompt_tokens=1000, arrivals=SLOW)).requests_frame()

    assert set(of(64).transfer_bytes) == {1024 * 131072}
    assert set(of(1).transfer_bytes) == {1000 * 131072}
    last_s = [float((frame.transfer_end_s - frame.first_scheduled_s).min()) for frame in (of(64), of(1))]
    assert last_s[0] - last_s[1] == pytest.approx(24 * 131072 / 2e10, rel=1e-6)  # of the second piece, which is a page longer


def test_the_page_of_a_pair_is_that_of_its_attention() -> None:
    pools = [{**sglang(role), "hardware": "b200-sxm-180gb", "tensor_parallel": 8} for role in ("prefill", "decode")]
    found = prepare(load_scenario({**scenario(*pools), "model": "deepseek-ai/DeepSeek-R1"})).pools
    assert [each.plan.limits.block_tokens for each in found] == [64, 64]  # trtllm_mla


def test_pieces_of_a_prompt_follow_each_other_through_the_stages_of_a_sender() -> None:
    """Two stages of SGLang send half each, a piece while the next is computed; their pass is that of a mixed pipeline."""

    def of(chunk: int, **prefill: int) -> Any:
        pools = sglang("prefill", chunked_prefill_size=chunk, **prefill), sglang("decode", tensor_parallel=2)
        load = {"prompt_tokens": {"kind": "constant", "value": 16384}, "arrivals": {"kind": "constant", "rate": 0.5}}
        return simulate(scenario(*pools, around={"transfer": {"bytes_per_s": 2e10}}, **load)).requests_frame()

    load = {"prompt_tokens": {"kind": "constant", "value": 16384}, "arrivals": {"kind": "constant", "rate": 0.5}}
    piece_s = 2048 * 131072 / 2 / 2e10  # of one stage to one rank
    staged, whole = of(2048, pipeline_parallel=2), of(2048)
    assert (staged.transfer_bytes == 16384 * 131072).all()
    alone = simulate(scenario(sglang("mixed", pipeline_parallel=2, chunked_prefill_size=2048), **load)).requests_frame()
    in_alone_s = (alone.first_token_s - alone.first_scheduled_s).mean()
    # the last piece goes when the last stage has computed it
    assert (staged.transfer_end_s - staged.first_scheduled_s).mean() == pytest.approx(in_alone_s + piece_s, abs=2e-3)
    assert (staged.transfer_start_s - staged.first_scheduled_s).mean() < in_alone_s / 4
    took_s = [(frame.transfer_end_s - frame.first_scheduled_s).mean() for frame in (staged, whole)]
    assert took_s[0] < 0.65 * took_s[1]  # eight pieces on two stages: nine turns of half the layers, not sixteen


def test_mooncake_reaches_a_part_of_the_network_and_hands_over_layer_by_layer() -> None:
    pools = [sglang("prefill"), sglang("decode")]
    frame = simulate(scenario(*pools, prompt_tokens=2000, arrivals=SLOW)).requests_frame()
    took_s = (frame.transfer_end_s - frame.transfer_start_s).min()
    assert took_s == pytest.approx(2000 * 131072 / (0.78 * 5e10) + 64 * 7e-6, rel=1e-6)


# What cannot be -------------------------------------------------------------------------------------------

STAGED = pool("prefill", pipeline_parallel=2)
STAGES = (("prefill", 2), ("decode", 1))
AWQ = pool("decode") | {"kv_cache": "fp8"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (scenario(pool("prefill", 0), pool("decode", 0)), "no pool has a replica"),
        (scenario(pool("prefill", 1), pool("decode", 0)), "no decode pool has any"),
        (scenario(pool("prefill"), pool("decode"), pool("mixed")), "'prefill', 'decode', 'mixed' are for the same requests"),
        (scenario(pool("prefill"), AWQ), "KV format bf16 and fp8"),
        (scenario(pool("prefill"), sglang("decode")), "engine vllm and sglang"),
        (scenario(sglang("prefill"), sglang("decode", page_size=64)), "tokens of a block 1 and 64"),
        (scenario(sglang("prefill"), sglang("decode", pipeline_parallel=2)), "pipeline parallelism 1 and 2"),
        (scenario(sglang("prefill", pipeline_parallel=4), sglang("decode", pipeline_parallel=2)), "pipeline parallelism 4 and 2"),
        (
            scenario(
                sglang("prefill", pipeline_parallel=2),
                sglang("decode", pipeline_parallel=2, disaggregation_decode_enable_radix_cache=True),
            ),
            "pipeline parallelism on the side that answers and a cache of prefixes",
        ),
        (scenario(sglang("prefill"), sglang("decode", max_total_tokens=4500)), "'decode' holds 3,988 tokens"),
        (scenario(pool("prefill"), pool("decode", block_size=32)), "tokens of a block 16 and 32"),
        (
            scenario(pool("prefill"), pool("decode"), around={"transfer": {"connector": "P2pNcclConnector"}}),
            "deployment.transfer.connector: prefill and decode pools over P2p",
        ),
        (
            scenario(pool("prefill"), pool("decode"), around={"kv_tiers": [ONE_STORE]}),
            "deployment.kv_tiers: OffloadingConnector brings",
        ),
        (scenario(STAGED, pool("decode"), around={**PUSHED, "admission": {"max_inflight": 4}}), "over Mooncake"),
        (scenario(pool("prefill"), pool("decode"), around={"transfer": {"from": "nobody"}}), "no pool 'nobody'"),
        (scenario(pool("prefill"), pool("decode", gpu_memory_utilization=0.25)), "deployment.pools.1"),
        (scenario(pool("prefill"), pool("decode", num_gpu_blocks_override=50)), "'decode' holds 784 tokens"),
        (scenario(sglang("prefill"), sglang("decode", max_total_tokens=4500)), "or limit the context by context_length"),
        (scenario(pool("prefill"), pool("decode"), around={"transfer": {"bytes_per_s": 0}}), "bytes_per_s` is 0"),
        (scenario(pool("prefill"), pool("decode", colocate="nobody")), "colocate: nobody"),
        (scenario(pool("prefill"), pool("decode"), around=GENERATION_FIRST), "vLLM knows no generation_first"),
        (scenario(STAGED, pool("decode")), "NixlConnector knows no pipeline stages in a prefill pool"),
        (scenario(pool("prefill"), pool("decode", pipeline_parallel=2)), "stages in a decode pool"),
        (
            scenario(*(pool(role, engine="vllm@0.24.0", pipeline_parallel=stages) for role, stages in STAGES), around=PUSHED),
            "MooncakeConnector knows no pipeline",
        ),
        (scenario(pool("prefill"), pool("decode", pipeline_parallel=2), around=NIXL_PUSHED), "a decode pool never"),
        (scenario(STAGED, pool("decode"), around={**NIXL_PUSHED, "admission": {"max_inflight": 4}}), "over NixlPush"),
        (scenario(pool("prefill"), pool("decode", speculative=DRAFTS)), "speculative decoding none and ngram with 3 drafts"),
        (scenario(sglang("prefill"), sglang("decode", speculative=EAGLE)), "drafter none and eagle3"),
        (
            of_windows(*(pool(role, engine="vllm@0.24.0") for role in ("prefill", "decode")), around=PUSHED),
            "sliding windows over Mooncake before vLLM 0.33",
        ),
        (of_windows(*(pool(role, engine="vllm@0.22.0") for role in ("prefill", "decode"))), "moves windows alone from 0.18 on"),
        (of_windows(pool("prefill"), pool("decode", max_model_len=100)), "windows of the KV groups none, 128 and none"),
    ],
)
def test_what_cannot_be_is_refused_in_words(data: dict[str, Any], words: str) -> None:
    is_refused(data, words, on_start=True)


@pytest.mark.parametrize(
    ("decode", "around", "load", "said"),
    [
        ({}, {}, {"arrivals": {"kind": "poisson", "rate": 80}}, "prefill pool 'prefill'"),
        ({}, {"transfer": {"bytes_per_s": 1e8}}, {}, "the transfer between the pools"),
        ({"num_gpu_blocks_override": 600, "max_num_seqs": 4}, {}, LONGER, "decode pool 'decode'"),
    ],
)
def test_an_overload_names_the_stage_that_requests_wait_for(
    decode: dict[str, Any], around: dict[str, Any], load: dict[str, Any], said: str
) -> None:
    run = simulate(scenario(pool("prefill"), pool("decode", **decode), around=around, **{"duration": 30, **load}))
    (warning,) = [text for text in run.result["warnings"] if text.startswith("overload")]
    assert warning.endswith(f"most of the wait is for {said}")


STAGED_LOADS = {
    "many": ({}, {"arrivals": {"kind": "poisson", "rate": 40}, "output_tokens": {"kind": "uniform", "low": 1, "high": 300}}, {}),
    "tight": (
        {"max_total_tokens": 5000, "num_reserved_decode_tokens": 1},
        {"arrivals": {"kind": "batch"}, "output_tokens": {"kind": "uniform", "low": 300, "high": 600}},
        {},
    ),
    "few": ({"max_running_requests": 3, "pp_async_batch_depth": 1}, {"arrivals": {"kind": "closed_loop", "concurrency": 9}}, {}),
    "impatient": (
        {"max_total_tokens": 8000},
        {"arrivals": {"kind": "poisson", "rate": 30}},
        {"timeout_s": 0.7, "retries": {"attempts": 2, "on": ["timeout"], "backoff_s": 0.2}},
    ),
}


@pytest.mark.parametrize("name", STAGED_LOADS)
def test_sglangs_decode_servers_over_stages_lose_nothing(name: str) -> None:
    args, load, client = STAGED_LOADS[name]
    prompts, answers = ({"kind": "uniform", "low": 1, "high": most} for most in (1500, 90))
    lengths = {"prompt_tokens": prompts, "output_tokens": answers}
    servers = sglang("prefill", pipeline_parallel=2), sglang("decode", pipeline_parallel=2, context_length=4000, **args)
    data = {**scenario(*servers, **{"requests": 60, "duration": None, **lengths, **load}), "client": client}
    jumps_as_it_steps(data)
    cluster = cluster_of(data)
    result = cluster.run()
    assert not cluster._live
    assert not cluster._reads
    answered = np.flatnonzero(result.status == FINISHED).tolist()
    assert len(answered) == 60 or client
    for row in answered:
        assert sum(last - first + 1 for _, first, last in result.emissions.of(row)) == result.output_tokens[row]
    for rank in cluster.ranks:
        assert rank.scheduler.state()[:2] == (0, 0)
        if isinstance(rank.scheduler, StagedReservingScheduler):
            assert rank.scheduler.kv.free_tokens == rank.scheduler.kv.capacity_tokens
    if name == "tight":
        assert simulate(data).requests_frame()["preemptions"].sum() > 0


def test_sglangs_decode_servers_answer_over_stages_as_they_compute() -> None:
    """One request: each token takes a pass through the stages, whose layers are split; without stages it is a little quicker."""
    alone = {"arrivals": {"kind": "batch"}, "requests": 1, "duration": None, "prompt_tokens": 1000, "output_tokens": 50}
    one, two = (
        simulate(scenario(sglang("prefill", pipeline_parallel=n), sglang("decode", pipeline_parallel=n), **alone)) for n in (1, 2)
    )
    plain, staged = (run.requests_frame()["tpot_ms"].iloc[0] for run in (one, two))
    assert plain < staged < 1.15 * plain
