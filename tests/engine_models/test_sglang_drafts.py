"""Drafts in SGLang: its scheduling, the memory that rows hold ahead, its flags, defaults and refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.engines.known import parse_engine_args
from engine_models.engines.sglang_drafts import draft_defaults, drafted_graph_rows
from engine_models.engines.sglang_flags import FLAGS
from engine_models.flags import reconcile
from engine_models.memory.radix import RadixPool
from engine_models.model.architecture import load_architecture
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstRules
from engine_models.schedulers.prefill_first_drafted import DraftedPrefillFirstScheduler
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.serving.replica import Replica
from tests.engine_models.test_declarations import prepared
from tests.engine_models.test_sglang import CLOCK, REQUEST, build
from tests.invariants.core_cases import SpannedClock

LLAMA = load_architecture("llama-3.1-8b")
POOL = {"speculative": None, "tensor_parallel": 1}


def serve(
    rules: PrefillFirstRules, pool: RadixPool, requests: list[Sequence], drafts: int
) -> tuple[DraftedPrefillFirstScheduler, list[Batch]]:
    scheduler = DraftedPrefillFirstScheduler(rules, pool, row_tokens=1 + drafts, step_slots=1 + drafts, windows=(24, 100))
    batches: list[Batch] = []
    replica = Replica([scheduler], SpannedClock(CLOCK), depth=rules.in_flight, on_batch=batches.append)
    for seq in requests:
        replica.advance(seq.arrival_s)
        replica.ranks[0].submit(seq)
    replica.advance(float("inf"))
    assert (np.diff(np.frombuffer(replica.ranks[0].log.end_s)) >= 0).all()
    return scheduler, batches


@given(
    st.lists(REQUEST, min_size=1, max_size=20),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 16]),
    st.integers(450, 1500),
    st.integers(1, 5),
    st.floats(0, 1),
)
@settings(max_examples=60)
def test_every_request_gets_its_tokens_and_gives_its_memory_back(
    drawn: list[Any], depth: int, page: int, capacity: int, drafts: int, acceptance: float
) -> None:
    requests = build(drawn)
    streams = AcceptanceStreams(tuple(acceptance**i for i in range(1, drafts + 1)), key=7)
    for seq in requests:
        seq.acceptance = streams.of(seq.index)
    pool = RadixPool(capacity, page)
    rules = PrefillFirstRules(5, 256, chunked_prefill_size=64, in_flight=depth)
    scheduler, batches = serve(rules, pool, requests, drafts)
    assert not scheduler.has_work()
    assert pool.free_tokens + pool.tree.evictable_tokens == pool.capacity_tokens
    assert not any(node.lock for node in pool.tree.nodes())
    for seq in requests:
        emitted = [number for first, last in seq.ranges() for number in range(first, last + 1)]
        assert emitted == sorted(emitted)
        assert len(emitted) == seq.final_length - seq.prompt_tokens
        assert max(emitted.count(number) for number in emitted) <= 1 + drafts
    assert all(batch.decode_tokens == batch.decode_rows * (1 + drafts) for batch in batches)
    assert scheduler.verified_drafts == drafts * scheduler.verifications


def stepped(depth: int, *, certain: bool) -> list[Batch]:
    """Batches of one request of 10 tokens and 5 more, whose two drafts are all accepted."""
    seq = Sequence(0, 10, 5, 0.0, stop_known=certain, acceptance=lambda _: 2)
    pool = RadixPool(100, prefix_caching=False)
    return serve(PrefillFirstRules(4, 64, in_flight=depth), pool, [seq], 2)[1]


def test_a_step_verifies_all_drafts_and_an_unknown_end_is_verified_once_more_in_vain() -> None:
    # the prompt yields one token, a verification three: two of them, the second cut to one token
    assert [(b.tokens, b.decode_kv_tokens) for b in stepped(1, certain=True)] == [(10, 0), (3, 13), (3, 16)]
    # ahead of its results a step yields one token for certain: with the second in flight 4 + 1 are known
    assert [(b.tokens, b.decode_kv_tokens) for b in stepped(2, certain=True)] == [(10, 0), (3, 13), (3, 16)]
    assert [(b.tokens, b.decode_kv_tokens) for b in stepped(2, certain=False)] == [(10, 0), (3, 13), (3, 16), (3, 17)]


def test_rows_hold_twice_what_a_step_may_write_beyond_what_is_known() -> None:
    seq = Sequence(0, 10, 50, 0.0, acceptance=lambda _: 2)
    pool = RadixPool(100, prefix_caching=False)
    scheduler = DraftedPrefillFirstScheduler(PrefillFirstRules(4, 64, in_flight=2), pool, row_tokens=3, step_slots=3)
    scheduler.add(seq)
    held = []
    batches = []
    for number in range(4):
        batch = scheduler.schedule(0.0)
        assert batch is not None
        batches.append(batch)
        held.append(100 - pool.free_tokens)
        if number:  # the step before has ended
            scheduler.settle(batches[number - 1])
    # prompt; then 6 more than the 10, 10 and 13 tokens known to have keys and values
    assert held == [10, 16, 16, 19]


def settings_of(command: str, **pool: Any) -> dict[str, Any]:
    flags = parse_engine_args("sglang", command)
    found = reconcile(FLAGS, {**dict.fromkeys(typed.key for typed in FLAGS.typed.values()), **POOL, **pool}, flags, given=set())
    return dict(found.get("speculative") or {})


def test_flags_state_the_drafts() -> None:
    eagle3 = "--model m --speculative-algorithm EAGLE3 --speculative-draft-model-path d --speculative-num-steps 4"
    tree = settings_of(f"{eagle3} --speculative-eagle-topk 4 --speculative-num-draft-tokens 16")
    assert tree == {"method": "eagle3", "model": "d", "num_speculative_tokens": 4, "eagle_topk": 4, "num_draft_tokens": 16}
    assert settings_of("--model m --speculative-algorithm EAGLE") == {"method": "mtp"}
    assert settings_of("--model m --speculative-algorithm NEXTN --speculative-num-steps 2")["method"] == "mtp"
    assert settings_of("--model m --speculative-algorithm EAGLE --speculative-draft-model-path d")["method"] == "eagle"
    assert settings_of("--model m --speculative-algorithm NGRAM --speculative-num-draft-tokens 8")["num_draft_tokens"] == 8
    assert settings_of("--model m --speculative-num-steps 2") == {}
    with pytest.raises(InputError, match="DFLASH is not simulated"):
        settings_of("--model m --speculative-algorithm DFLASH")


def test_defaults_are_those_of_the_engine() -> None:
    found = draft_defaults({"method": "eagle3"}, LLAMA, {})
    assert (found["num_speculative_tokens"], found["eagle_topk"], found["num_draft_tokens"]) == (5, 4, 8)
    assert draft_defaults({"method": "draft_model"}, LLAMA, {})["num_speculative_tokens"] == 3
    assert draft_defaults({"method": "ngram"}, LLAMA, {})["num_speculative_tokens"] == 11
    # of a chain as many are verified as are drafted, whatever is said
    chain = draft_defaults({"method": "eagle", "num_speculative_tokens": 2, "num_draft_tokens": 8}, LLAMA, {})
    assert chain["num_draft_tokens"] == 3
    for wrong, flags in (
        ({"method": "medusa"}, {}),
        ({"method": "eagle", "eagle_topk": 4}, {}),
        ({"method": "eagle", "eagle_topk": 4, "num_speculative_tokens": 3}, {}),
        ({"method": "eagle"}, {"enable_mixed_chunk": True}),
    ):
        with pytest.raises(InputError):
            draft_defaults(wrong, LLAMA, flags)
    assert drafted_graph_rows(48) == (*range(1, 9), *range(10, 33, 2), 40, 44, 48)


@pytest.mark.parametrize(
    ("version", "args", "depth"),
    [
        ("0.5.6", {}, 1),
        ("0.5.6", {"enable_spec_v2": "1"}, 2),
        ("0.5.12", {}, 2),
        ("0.5.12", {"enable_spec_v2": "0"}, 1),
        ("0.5.23", {"disable_overlap_schedule": True}, 1),
        ("0.5.23", {}, 2),
    ],
)
def test_steps_with_drafts_are_scheduled_ahead_by_version(version: str, args: dict[str, Any], depth: int) -> None:
    drafts = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}
    plan = prepared(engine=f"sglang@{version}", speculative=drafts, engine_args=args).plan
    assert plan.executor.depth == depth
    assert plan.limits.rows == 48
    assert plan.memory.kv_bytes_per_token > prepared(engine=f"sglang@{version}").plan.memory.kv_bytes_per_token
    assert plan.memory.bytes_of("draft") > 0


def test_a_drafter_that_the_reserve_has_no_room_for_is_refused_where_it_lies_there() -> None:
    drafts = {"method": "draft_model", "model": "Qwen/Qwen3-14B", "num_speculative_tokens": 3, "acceptance": 0.7}
    pool = {"weights": "fp8", "speculative": drafts}
    with pytest.raises(InfeasibleError, match=r"drafter.s weights take 29\.5 GB, and 20.*where this version loads them"):
        prepared("Qwen/Qwen3-32B", engine="sglang@0.5.12", **pool)
    memory = prepared("Qwen/Qwen3-32B", engine="sglang@0.5.14", **pool).plan.memory
    assert memory.bytes_of("draft") == pytest.approx(29.5e9, rel=0.01)
    roomy = {"engine_args": {"mem_fraction_static": 0.5}}
    assert prepared("Qwen/Qwen3-32B", engine="sglang@0.5.12", **pool, **roomy).plan.memory.bytes_of("activation") > 0
