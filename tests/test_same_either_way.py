"""Runs that go wrong give the same, steps taken at once or one by one, and requests read whole or in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.parts.sequence import Sequence
from simulator import simulate
from simulator.cluster.elastic import Elastic
from simulator.serving.rank import Rank
from tests.clusters import jumps_as_it_steps, streams_alike
from tests.invariants.core_cases import plan

LOAD: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 12},
    "prompt_tokens": {"kind": "lognormal", "mean": 1500, "p99": 6000, "max": 7000},
    "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 200},
}
SGLANG = {"engine": "sglang", "hardware": "h100-sxm-80gb", "admission": {"max_inflight": 3, "on_full": "wait"}}


def scenario(deployment: dict[str, Any], seed: int, client: dict[str, Any], **load: Any) -> dict[str, Any]:
    work = {**LOAD, "duration": 5.0, **load}
    model = "meta-llama/Llama-3.1-8B-Instruct"
    return {"model": model, "seed": seed, "deployment": deployment, "client": client, "workload": work}


@pytest.mark.parametrize("seed", range(3))
def test_a_prompt_under_way_that_its_client_leaves_ends_with_its_step(seed: int) -> None:
    """Also where the prompt has joined those that decode to look how many steps are alike."""
    retries = {"attempts": 3, "on": ["timeout"], "backoff_s": 0.2, "jitter": 0.0}
    jumps_as_it_steps(scenario(SGLANG, seed, {"timeout_s": 0.7, "retries": retries}, duration=8.0))


def test_most_memory_is_held_before_a_step_in_vain_too() -> None:
    """The first step of a run still holds twice what a prompt under way shares with another."""
    few = {**SGLANG, "engine_args": {"max_running_requests": 4}}
    prefixes = {"shared_prefix": {"groups": 3, "tokens": 800}}
    jumps_as_it_steps(scenario(few, 1091, {}, duration=2.0, arrivals={"kind": "poisson", "rate": 6}, **prefixes))


def broken(seed: int) -> dict[str, Any]:
    engine = {"engine": "vllm", "hardware": "h100-sxm-80gb", "replicas": 2}
    pools = [{**engine, "name": name, "role": role} for name, role in (("p", "prefill"), ("d", "decode"))]
    loss = {"kind": "gpu", "pool": "d", "for_s": 0.2}
    events = [{**loss, "at_s": 2.0 + 0.7 * number, "replica": number % 2} for number in range(4)]
    retries = {"attempts": 4, "on": ["node_lost"], "backoff_s": 0.3, "jitter": 0.3}
    around = {"pools": pools, "failures": {"events": events, "start_up": 0.1}}
    return scenario(around, seed, {"retries": retries}, arrivals={"kind": "poisson", "rate": 25})


def test_requests_are_lost_in_their_order_however_they_were_read(monkeypatch: pytest.MonkeyPatch) -> None:
    streams_alike(broken(1), monkeypatch)
    lost: list[tuple[float, int]] = []
    plain = Elastic._lose_request

    def noted(self: Elastic, seq: Sequence, number: int) -> None:
        lost.append((self._clock.now_s, seq.index))
        plain(self, seq, number)

    monkeypatch.setattr(Elastic, "_lose_request", noted)
    simulate(broken(1))
    assert len(lost) > 15
    assert lost == sorted(lost)


@pytest.mark.parametrize(
    ("now_s", "left"), [(0.5, []), (1.0, [0, 0]), (1.6, [0, 0, 2, 2]), (2.0, [0, 0, 2, 2]), (3.0, [0, 0, 2, 3])]
)
@pytest.mark.parametrize("retired", [0, 1])
def test_a_batch_of_no_length_ends_before_the_one_under_way(now_s: float, left: list[int], retired: int) -> None:
    """As first tokens at TensorRT-LLM's decode servers, passed on while a step is under way: it stands before them in the log."""
    rank = Rank(plan(10).scheduler("jump"))
    for end_s in (1.0, 2.0, 1.5, 3.0):
        rank.log.run(end_s - 0.1, [end_s], 0.0, 1, 0, 1, 1, 1)
    rank.log.retire(retired, retired)
    seq = Sequence(0, 10, 10, 0.0)
    seq.emissions = [0, 0, 2, 3]
    rank.drop_unended(seq, now_s)
    assert seq.emissions == (left if left or not retired else [0, 0])


def test_who_is_passed_over_for_a_prefix_is_tried_again_at_tensorrt_llms_decode_servers() -> None:
    engine = {"engine": "trtllm", "hardware": "h100-sxm-80gb", "replicas": 2, "gpus_per_node": 1}
    pools = [{**engine, "name": name, "role": role} for name, role in (("p", "prefill"), ("d", "decode"))]
    lost = {"events": [{"at_s": 0.2, "kind": "gpu", "pool": "d", "replica": 1}]}
    load = {"arrivals": {"kind": "poisson", "rate": 25}, "duration": 1.0, "shared_prefix": {"groups": 3, "tokens": 800}}
    jumps_as_it_steps(scenario({"pools": pools, "failures": lost}, 8011, {}, **load))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_what_a_lost_server_has_counted_is_the_same(engine: str) -> None:
    """Drafts that were accepted, and bytes written to a tier, in the step before the one under way."""
    drafts = {"speculative": {"method": "eagle3", "num_speculative_tokens": 2, "acceptance": 0.6}}
    tiers = {"kv_tiers": [{"kind": "host", "bytes": 5e8}, {"kind": "nvme", "bytes": 5e9, "bytes_per_s": 5e9}]}
    few = {"num_gpu_blocks_override": 400, "max_model_len": 7100} if engine == "vllm" else {"max_total_tokens": 9000}
    for seed, own in enumerate((drafts, tiers, {**drafts, **tiers})):
        events = [{"kind": "gpu", "at_s": 1.03 + 0.4 * n, "for_s": 0.1, "replica": n % 2} for n in range(10)]
        pool = {"engine": engine, "hardware": "h100-sxm-80gb", "replicas": 2, "engine_args": few, **own}
        data = scenario({**pool, "failures": {"events": events, "start_up": 0.1}}, seed, {})
        data["workload"]["shared_prefix"] = {"groups": 3, "tokens": 400}
        jumps_as_it_steps(data)


def test_a_drain_ends_when_the_clock_says_though_some_were_never_sent() -> None:
    """Requests of a closed loop that would come after the duration are not sent; the drain goes by the duration nevertheless."""
    engine = {"engine": "trtllm", "hardware": "a100-sxm-80gb"}
    pools = [{**engine, "name": name, "role": role} for name, role in (("p", "prefill"), ("d", "decode"))]
    slow = {"events": [{"at_s": 3.252, "kind": "slow", "pool": "d", "replica": 0, "factor": 3.0}]}
    load = {"arrivals": {"kind": "closed_loop", "concurrency": 8}, "duration": 4.0, "drain_s": 2.0}
    data = scenario({"pools": pools, "failures": slow}, 0, {}, **load)
    jumps_as_it_steps(data)
    found = simulate(data)
    assert found.result["totals"]["unfinished"] > 0
    assert max(log.end_s[-1] for log in found.raw.logs) > 6.0 > np.nanmax(found.raw.arrival_s) + 2.0


def test_who_leaves_before_the_first_token_of_a_prompt_with_drafts_keeps_what_was_known() -> None:
    """Two steps are under way then: the prompt's last and the first that verifies. The token that is to come is in no block."""
    pool: dict[str, Any] = {"engine": "vllm", "hardware": "a100-sxm-80gb"}
    pool["engine_args"] = {"num_gpu_blocks_override": 3000, "max_model_len": 7100}
    pool["speculative"] = {"method": "eagle3", "num_speculative_tokens": 2, "acceptance": 0.6}
    whole = {"prompt_tokens": 15, "shared_prefix": {"groups": 1, "tokens": 352}, "sessions": {"turns": 2, "think_time_s": 0.0}}
    for timeout_s in (0.0405, 0.0415, 0.0425, 0.0435):
        load = {**whole, "arrivals": {"kind": "constant", "rate": 30}, "output_tokens": 30, "duration": 3.0}
        jumps_as_it_steps(scenario(pool, 1, {"timeout_s": timeout_s}, **load))


@pytest.mark.parametrize("seed", [4, 5])
def test_what_drafts_have_given_when_the_drain_ends_is_the_same(seed: int) -> None:
    """Steps but the last are taken in, though the drain is over while they last."""
    pool: dict[str, Any] = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
    pool["speculative"] = {"method": "eagle3", "num_speculative_tokens": 1, "acceptance": 0.6}
    for duration in (1.0, 1.35, 1.62):
        load = {"arrivals": {"kind": "closed_loop", "concurrency": 3}, "prompt_tokens": 300, "output_tokens": 190, "drain_s": 0.0}
        jumps_as_it_steps(scenario(pool, seed, {}, duration=duration, **load))


def test_who_gives_up_while_a_run_hears_nobody_had_been_heard() -> None:
    """OpenArc computes to the end for who leaves before the first token: for one that waits behind a run too."""
    names = ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B-Instruct"]
    pool = {"engine": "openarc", "hardware": "xeon-8480-2s", "models": names, "swap_s": 0.7}
    arrivals = {"kind": "onoff", "rate_on": 12.0, "rate_off": 0.5, "on_s": 1, "off_s": 1}
    prompts = {"kind": "lognormal", "mean": 300, "p99": 2500, "max": 3000}
    kinds = [{"name": name, "model": name, **LOAD, "arrivals": arrivals, "prompt_tokens": prompts} for name in names]
    for seed in range(4):
        data = scenario(pool, seed, {"timeout_s": 5.0})
        data["workload"] = {"classes": kinds, "duration": 4.0}
        del data["model"]
        jumps_as_it_steps(data)
