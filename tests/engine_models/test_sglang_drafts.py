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
from engine_models.memory.radix import Content, RadixPool, paired
from engine_models.model.architecture import load_architecture
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstRules
from engine_models.schedulers.prefill_first_drafted import DraftedPrefillFirstScheduler
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.serving.replica import Replica
from tests.effort import examples
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
@settings(max_examples=examples(60))
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
    # the step in vain goes on behind all three that the second accepted, as the device does not know of the limit
    assert [(b.tokens, b.decode_kv_tokens) for b in stepped(2, certain=False)] == [(10, 0), (3, 13), (3, 16), (3, 19)]


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


def kept_of(output: int, accepted: int, *, page: int = 1, pairs: bool = False, depth: int = 1) -> int:
    """Tokens that the tree keeps of one request of 30 tokens and its answer, whose steps accept so many drafts each."""
    seq = Sequence(0, 30, output, 0.0, stop_known=True, acceptance=lambda _: accepted)
    pool = RadixPool(200, page, pairs=pairs)
    serve(PrefillFirstRules(4, 64, in_flight=depth), pool, [seq], 3)
    assert pool.free_tokens + pool.tree.evictable_tokens == pool.capacity_tokens
    return pool.tree.evictable_tokens


@pytest.mark.parametrize("depth", [1, 2])
def test_the_last_token_is_kept_if_a_draft_was_accepted_behind_it(depth: int) -> None:
    # 1 token by the prompt, 4 and 4 by verifications: the ninth token is the last that was sampled, without keys and values
    assert kept_of(9, 3, depth=depth) == 30 + 8
    # the eighth is followed by the ninth, which nobody gets
    assert kept_of(8, 3, depth=depth) == 30 + 8
    assert kept_of(7, 3, depth=depth) == 30 + 7
    assert kept_of(1, 3, depth=depth) == 30


def test_keys_are_pairs_of_tokens_where_the_drafter_reads_them() -> None:
    assert kept_of(8, 3, pairs=True) == 30 + 7
    # 32 tokens are 31 pairs, which fill one page of 16
    assert kept_of(2, 3, page=16) == 32
    assert kept_of(2, 3, page=16, pairs=True) == 16


RUNS = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 3), st.integers(1, 4)), min_size=1, max_size=5)


@given(RUNS, RUNS)
def test_contents_by_pairs_agree_as_far_as_their_pairs_do(first: list[Any], second: list[Any]) -> None:
    a, b = Content(tuple(first)), Content(tuple(second))
    equal = a.common(0, a.length, b.slice(0, b.length))
    pairs = [paired(content) for content in (a, b)]
    assert [content.length for content in pairs] == [a.length - 1, b.length - 1]
    if min(a.length, b.length) > 1:
        assert pairs[0].common(0, pairs[0].length, pairs[1].slice(0, pairs[1].length)) == max(0, equal - 1)


def test_room_is_made_for_a_page_a_row_more_than_is_written() -> None:
    pool = RadixPool(64, 16)
    kept = Content(((9, 0, 32),))
    pool.free_tokens -= 32
    pool.tree.insert(kept, 32)
    scheduler = DraftedPrefillFirstScheduler(PrefillFirstRules(4, 64), pool, row_tokens=2, step_slots=2)
    scheduler.add(Sequence(0, 13, 8, 0.0, acceptance=lambda _: 0))
    prompt = scheduler.schedule(0.0)
    assert prompt is not None
    scheduler.settle(prompt)
    assert (pool.free_tokens, pool.tree.evictable_tokens) == (16, 32)
    # 13 + 4 tokens need one page more; 19 places up to its end and a page for the row are asked for, all that was kept goes
    assert scheduler.schedule(1.0) is not None
    assert (pool.free_tokens, pool.tree.evictable_tokens) == (32, 0)


def test_a_client_that_leaves_ends_with_the_step_under_way_and_is_verified_once_more_in_vain() -> None:
    pool = RadixPool(400)
    scheduler = DraftedPrefillFirstScheduler(PrefillFirstRules(4, 256, in_flight=2), pool, row_tokens=3, step_slots=3)
    seq = Sequence(0, 10, 90, 0.0, acceptance=lambda _: 2)
    scheduler.add(seq)
    batches = []
    for number in range(4):
        batch = scheduler.schedule(0.0)
        assert batch is not None
        batches.append(batch)
        if number:
            scheduler.settle(batches[number - 1])
    assert scheduler.cancel(seq)  # the fourth batch is under way
    vain = scheduler.schedule(0.0)
    assert vain is not None
    assert vain.decode_rows == 1
    scheduler.settle(batches[3])
    assert seq.state == "finished"
    assert pool.tree.evictable_tokens == 10 + 9
    assert pool.free_tokens == 400 - 19
    assert scheduler.schedule(0.0) is None


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
