"""Drafts in TensorRT-LLM: tokens of a step, reserved memory, overlap, its configuration and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.engines.trtllm_flags import FLAGS
from engine_models.memory.block_tree import BlockTree
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import GUARANTEED, UTILIZATION, TwoPassRules
from engine_models.schedulers.memory_then_tokens_drafted import DraftedTwoPassScheduler
from hardware_profiles.errors import InputError
from simulator.serving.replica import Replica
from tests.effort import examples
from tests.engine_models.test_declarations import prepared
from tests.engine_models.test_sglang import CLOCK, REQUEST, build
from tests.invariants.core_cases import SpannedClock


def serve(
    rules: TwoPassRules, kv: BlockTree, requests: list[Sequence], drafts: int
) -> tuple[DraftedTwoPassScheduler, list[Batch]]:
    scheduler = DraftedTwoPassScheduler(rules, kv, row_tokens=1 + drafts, windows=(24,))
    batches: list[Batch] = []
    replica = Replica([scheduler], SpannedClock(CLOCK), depth=2 if rules.overlap else 1, on_batch=batches.append)
    for seq in requests:
        replica.advance(seq.arrival_s)
        replica.ranks[0].submit(seq)
    replica.advance(float("inf"))
    return scheduler, batches


@given(
    st.lists(REQUEST, min_size=1, max_size=20),
    st.booleans(),
    st.sampled_from([None, "FIRST_COME_FIRST_SERVED"]),
    st.sampled_from([GUARANTEED, UTILIZATION]),
    st.integers(20, 60),
    st.integers(1, 5),
    st.floats(0, 1),
)
@settings(max_examples=examples(120))
def test_every_request_gets_its_tokens_and_gives_its_memory_back(
    drawn: list[Any], overlap: bool, chunking: str | None, policy: str, blocks: int, drafts: int, acceptance: float
) -> None:
    requests = build(drawn)
    streams = AcceptanceStreams(tuple(acceptance**i for i in range(1, drafts + 1)), key=3)
    for seq in requests:
        seq.acceptance = streams.of(seq.index)
    kv = BlockTree(blocks, 16)
    rules = TwoPassRules(
        6, 160, 240, capacity_scheduler_policy=policy, context_chunking_policy=chunking, overlap=overlap
    )
    scheduler, batches = serve(rules, kv, requests, drafts)
    assert not scheduler.has_work()
    assert kv.free_blocks == kv.capacity_blocks
    assert scheduler._owed == 0
    for seq in requests:
        emitted = [number for first, last in seq.ranges() for number in range(first, last + 1)]
        assert emitted == sorted(emitted)
        assert len(emitted) == seq.final_length - seq.prompt_tokens
    assert all(batch.decode_tokens == batch.decode_rows * (1 + drafts) for batch in batches)
    assert all(batch.tokens <= 160 or len(batch.prefill) == 1 for batch in batches)


def test_a_row_that_may_have_ended_is_verified_once_more_in_vain() -> None:
    def tokens(output: int, *, overlap: bool) -> list[int]:
        seq = Sequence(0, 10, output, 0.0, acceptance=lambda _: 2)
        return [b.tokens for b in serve(TwoPassRules(4, 64, 64, overlap=overlap), BlockTree(9, 16), [seq], 2)[1]]

    assert tokens(5, overlap=False) == [10, 3, 3]
    assert tokens(5, overlap=True) == [10, 3, 3]  # one token was left: its end is certain
    assert tokens(6, overlap=True) == [10, 3, 3, 3]


def test_a_row_that_is_paused_comes_back_with_all_that_its_drafts_gave_it() -> None:
    """Worked by hand (`getNeededBlocksOneStep`): six blocks of 4 tokens, two prompts of 8, 9 tokens each, 3 drafts, all accepted.

    Step 0 computes both prompts (2 blocks each). A verification asks for the blocks of 4 tokens more: one each, which are there.
    Then both lack one, and the later row gives back its three; the other ends. It comes back with 8 + 5 tokens as its prompt,
    whose computing gives the sixth, and a verification the three that are left.
    """
    seqs = [Sequence(number, 8, 9, 0.0, acceptance=lambda _: 3, stop_known=True) for number in range(2)]
    rules = TwoPassRules(4, 64, 64, capacity_scheduler_policy=UTILIZATION, overlap=False)
    scheduler, batches = serve(rules, BlockTree(6, 4, prefix_caching=False), seqs, 3)
    assert [(batch.prefill, batch.decode_rows) for batch in batches] == [
        ([(8, 0), (8, 0)], 0), ([], 2), ([], 1), ([(13, 0)], 0), ([], 1)
    ]
    assert [[first for first, _ in seq.ranges()] for seq in seqs] == [[0, *[1] * 4, *[2] * 4], [0, *[1] * 4, 3, *[4] * 3]]
    assert [seq.preemptions for seq in seqs] == [0, 1]
    assert scheduler.kv.free_blocks == 6


def test_its_configuration_states_the_drafts() -> None:
    def read(**config: Any) -> Any:
        return FLAGS.typed["speculative_config"].read(config)

    assert read(decoding_type="MTP", num_nextn_predict_layers=3) == {"method": "mtp", "num_speculative_tokens": 3}
    eagle = read(decoding_type="Eagle", max_draft_len=4, speculative_model_dir="d", eagle3_one_model=True)
    assert eagle == {"method": "eagle3", "num_speculative_tokens": 4, "model": "d"}
    assert read(decoding_type="NGram", max_draft_len=4, max_matching_ngram_size=2)["method"] == "ngram"
    for config in ({"decoding_type": "Medusa"}, {}, {"decoding_type": "Eagle3", "use_dynamic_tree": True}):
        with pytest.raises(InputError, match="is not simulated"):
            read(**config)


def test_plans_with_drafts() -> None:
    drafts = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}
    plan, plain = (prepared(engine="trtllm", speculative=each).plan for each in (drafts, None))
    assert plan.memory.bytes_of("draft") > 0
    assert plan.memory.kv_bytes_per_token > plain.memory.kv_bytes_per_token
    assert plan.costs.terms.graph_sizes[0] == 4
    assert plan.executor.depth == 2
    assert prepared(engine="trtllm", speculative={**drafts, "method": "ngram"}).plan.executor.depth == 1
    for speculative, args in (
        ({**drafts, "method": "medusa"}, {}),
        ({**drafts, "eagle_topk": 4}, {}),
    ):
        with pytest.raises(InputError):
            prepared(engine="trtllm", speculative=speculative, engine_args=args)
