"""Decode servers that keep prefixes: of a prompt only what they lack is sent, and no memory is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.memory.radix import RadixPool
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.reserved import ReservingRules
from engine_models.schedulers.reserved_cached import CachedReservingScheduler
from hardware_profiles.errors import PlanError
from simulator import load_scenario, simulate
from simulator.prepare import prepare
from tests.clusters import ran
from tests.effort import some

KEEPS = {"disaggregation_decode_enable_radix_cache": True}
TOKEN_BYTES = 131_072
CHATS: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 1.0},
    "prompt_tokens": {"kind": "lognormal", "mean": 2000, "p99": 9000, "max": 12000},
    "output_tokens": {"kind": "uniform", "low": 1, "high": 300},
    "sessions": {"turns": 5, "think_time_s": 5},
    "shared_prefix": {"groups": 2, "tokens": 500},
    "duration": 40,
}


def scenario(
    flags: dict[str, Any] | None = KEEPS, work: dict[str, Any] = CHATS, page: int = 1, client: Any = None, **around: Any
) -> dict[str, Any]:
    common = {"engine": "sglang", "hardware": "h100-sxm-80gb"}
    pages = {"page_size": page} if page > 1 else {}
    prefill = {"name": "p", "role": "prefill", "engine_args": pages, **common}
    decode = {"name": "d", "role": "decode", "replicas": 2, "engine_args": {**pages, **(flags or {})}, **common}
    deployment = {"pools": [prefill, decode], "router": "session", **around}
    model = "meta-llama/Llama-3.1-8B-Instruct"
    return {"model": model, "deployment": deployment, "workload": work, "client": client or {}}


LONG = {"duration": 8, "arrivals": {"kind": "poisson", "rate": 4}, "output_tokens": {"kind": "uniform", "low": 9, "high": 1500}}
TIGHT = {**KEEPS, "max_total_tokens": 40_000, "num_reserved_decode_tokens": 16}
CASES = {
    "plain": scenario(),
    "pages": scenario(page=64),
    "tight": scenario(TIGHT),
    "tight-pages": scenario(TIGHT, page=64),
    "retracting": scenario({**TIGHT, "max_total_tokens": 20_000}, CHATS | LONG),
    "impatient": scenario(TIGHT, client={"timeout_s": 3.0, "retries": {"attempts": 2, "on": ["timeout"]}}),
    "losses": scenario(TIGHT, failures={"events": [{"at_s": 20, "kind": "gpu", "pool": "d", "replica": 0, "for_s": 3}]}),
}


@pytest.mark.parametrize("name", some(CASES))
def test_jumping_is_stepping_and_no_memory_is_lost(name: str) -> None:
    found = []
    for aggregate in (True, False):
        cluster, result = ran(CASES[name], aggregate=aggregate)
        found.append(result)
        assert not cluster._live
        for rank in cluster.ranks:
            kv = rank.scheduler.kv
            assert rank.scheduler.state()[:2] == (0, 0)
            assert kv.free_blocks == kv.capacity_blocks
            assert kv.free_tokens + kv.tree.evictable_tokens == kv.capacity_tokens
            assert all(node.lock == 0 for node in kv.tree.nodes())
            assert sum(node.length for node in kv.tree.nodes()) == kv.tree.evictable_tokens
            assert not getattr(rank.scheduler, "_prefixes", None)
    one, other = found
    assert one.preemptions.sum() > 0 or name != "retracting"
    for column in ("status", "replica", "attempts", "preemptions"):
        assert np.array_equal(getattr(one, column), getattr(other, column)), column
    assert np.array_equal(one.end_s, other.end_s, equal_nan=True)
    assert np.array_equal(one.handed.transfer_bytes, other.handed.transfer_bytes, equal_nan=True)


@pytest.mark.parametrize("page", [1, 64])
def test_of_a_chats_next_prompt_what_was_said_since_is_sent(page: int) -> None:
    """Each session stays at a server with room for all of it, and its turns follow each other."""
    work = {name: value for name, value in CHATS.items() if name != "shared_prefix"}
    frame = simulate(scenario(work=work, page=page)).requests_frame()
    frame = frame[frame["status"] == "finished"].sort_values(["session_id", "turn"])
    sent = (frame["transfer_bytes"] / TOKEN_BYTES).astype(int).to_numpy()
    prompt, answer, turn = (frame[name].to_numpy() for name in ("prompt_tokens", "output_tokens", "turn"))
    before = np.concatenate([[0], (prompt + answer - 1)[:-1]])  # of the last token of an answer nothing is computed
    known = np.where(turn == 0, 0, before // page * page)
    assert (turn > 0).sum() > 50
    assert sent.tolist() == (-(-prompt // page) * page - known).tolist()


def test_without_a_repeat_it_changes_nothing() -> None:
    work = {name: value for name, value in CHATS.items() if name not in ("sessions", "shared_prefix")} | {"duration": 20}
    plain, kept = (simulate(scenario(flags, work)).requests_frame() for flags in (None, KEEPS))
    assert len(plain) > 10
    assert [column for column in plain if not plain[column].equals(kept[column])] == []


def test_a_whole_prompt_that_is_known_needs_no_bytes() -> None:
    """Pages of a prompt that another has sent before: the second is told when its prompt is computed, and nothing moves."""
    work = {
        "arrivals": {"kind": "constant", "rate": 0.5},
        "prompt_tokens": 512,
        "output_tokens": 20,
        "prompt_pool": 1,
        "duration": 10,
    }
    frame = simulate(scenario(work=work, page=64, router="round_robin")).requests_frame()
    assert (frame["status"] == "finished").all()
    assert frame["transfer_bytes"].tolist() == [512 * TOKEN_BYTES] * 2 + [0] * (len(frame) - 2)  # once to each server
    assert (frame["transfer_end_s"] >= frame["transfer_start_s"]).all()
    assert len(frame) > 3


def test_what_is_kept_counts_as_free_and_is_locked_while_it_is_used() -> None:
    """A pool of 100 tokens: after one prompt of 60 has ended another of 60, alike in 40, takes 20 more beside what it found."""
    kv = RadixPool(100, 1)
    scheduler = CachedReservingScheduler(ReservingRules(8, 0, 16, 200, num_reserved_decode_tokens=4, handshake_s=0.0), kv)

    def served(number: int, prompt: int, output: int) -> Sequence:
        seq = Sequence(number, prompt, output, 0.0, stop_known=True, limit_tokens=output, runs=((7, 0, 40),), shareable_tokens=40)
        scheduler.add(seq)
        return seq

    first = served(0, 60, 2)
    scheduler.schedule(0.0)
    assert [note[2:] for note in scheduler.notes] == [(60, 0)]
    assert (kv.free_tokens, kv.tree.evictable_tokens) == (40, 0)
    scheduler.arrived(first)
    batch = scheduler.schedule(1.0)
    assert batch is not None
    batch.t_end = 1.1
    scheduler.settle(batch)
    assert first.state == "finished"
    assert (kv.free_tokens, kv.tree.evictable_tokens) == (39, 61)
    second = served(1, 60, 2)
    scheduler.schedule(2.0)
    assert scheduler.notes[-1] == (second, 2.0, 20, 40)
    assert (kv.free_tokens, kv.tree.evictable_tokens) == (19, 21)
    third = served(2, 90, 2)  # like 40 tokens of them, 50 more do not fit beside
    scheduler.schedule(3.0)
    assert len(scheduler.notes) == 2
    assert third in scheduler.prealloc
    assert (kv.free_tokens, kv.tree.evictable_tokens) == (19, 21)
    scheduler.cancel(third)
    scheduler.cancel(second)
    assert (kv.free_tokens, kv.tree.evictable_tokens) == (39, 61)


def test_drafts_beside_it_are_refused() -> None:
    data = scenario()
    for pool in data["deployment"]["pools"]:
        pool["speculative"] = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.6}
    with pytest.raises(PlanError, match="disaggregation_decode_enable_radix_cache and speculative decoding"):
        prepare(load_scenario(data))
