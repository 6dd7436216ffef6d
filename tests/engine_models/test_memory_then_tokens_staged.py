"""Memory first, then tokens, over the stages of a pipeline: worked cases, conservation of blocks, exact runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.block_tree import BlockTree
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import (
    EQUAL_PROGRESS,
    FIRST_COME,
    GUARANTEED,
    STATIC,
    TwoPassBatch,
    TwoPassRules,
)
from engine_models.schedulers.memory_then_tokens_staged import StagedTwoPassScheduler
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import feed, sharing, token_steps

RULES = TwoPassRules(max_batch_size=2, max_num_tokens=64, max_seq_len=400, overlap=False)
SECOND = RecordedClock({"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0})
CLOCK = RecordedClock({"a": 0.01, "b": 1e-4, "c": 1e-3, "d": 1e-5})
LLAMA = "meta-llama/Llama-3.3-70B-Instruct"
PAUSING = {"scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"}}
DRAFTS = {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.5}


class Run:
    """Requests (arrival [s], prompt, answer, group) over a pipeline: `ends` [s], `tokens` by batch, noted `batches`, `log`."""

    def __init__(
        self,
        asked: list[tuple[float, int, int, int]],
        stages: int,
        rules: TwoPassRules = RULES,
        *,
        blocks: int = 400,
        follow: bool = True,
        aggregate: bool = True,
        clock: RecordedClock = SECOND,
        pace_s: float = 0.05,
        known: bool = True,
    ) -> None:
        self.kv = BlockTree(blocks, 4)
        self.scheduler = StagedTwoPassScheduler(
            rules, self.kv, stages=stages, pieces_follow=follow, aggregate=aggregate, windows=(24,)
        )
        self.ends: dict[int, float] = {}
        self.batches: list[Batch] = []
        self.seqs = sharing(asked, 12, limit_tokens=0 if known else 40)
        for seq in self.seqs:
            seq.stop_known = known
        self.replica = Replica(
            [self.scheduler], clock, depth=stages, stages=stages, on_finish=self._ended, on_batch=self._settled
        )
        feed(self.replica, self.seqs, pace_s)
        self.scheduler.close()
        self.tokens = token_steps(self.seqs)
        self.log = self.replica.ranks[0].log

    def _ended(self, seq: Sequence, now_s: float) -> None:
        self.ends[seq.index] = now_s

    def _settled(self, batch: Batch) -> None:
        rules = self.scheduler.rules
        assert batch.tokens <= rules.max_num_tokens or len(batch.prefill) == 1
        assert batch.decode_rows + len(batch.prefill) <= rules.max_batch_size
        assert len(self.scheduler.active) <= self.scheduler.max_active
        assert self.scheduler._owed >= 0
        self.batches.append(batch)


def test_rows_in_flight_are_left_out_and_slots_take_turns() -> None:
    """Two stages of a second each, two rows a micro-batch, three requests at once; worked by hand from `_executor_loop_pp`.

    Slot 0 takes the first two (`max_batch_size`), slot 1 the third, since the others are in flight (`_add_inflight_ids`). The
    batch of slot 1 enters when the first stage is free, at 1 s. The loop then waits for the batch of the next slot
    (`executed_microbatch_id`, a stage's number behind), whose rows it serves again: at 2 s slot 0, at 3 s slot 1, at 4 s slot 0.
    """
    run = Run([(0.0, 8, 3, 0), (0.0, 8, 2, 0), (0.0, 8, 2, 0)], 2)
    assert [(batch.t_start, batch.t_end) for batch in run.batches] == [(0, 2), (1, 3), (2, 4), (3, 5), (4, 6)]
    assert [(len(batch.prefill), batch.decode_rows) for batch in run.batches] == [(2, 0), (1, 0), (0, 2), (0, 1), (0, 1)]
    assert run.tokens == [[0, 2, 4], [0, 2], [1, 3]]
    assert run.ends == {1: 4.0, 2: 5.0, 0: 6.0}


@pytest.mark.parametrize(
    ("follow", "starts", "end_s"),
    [(True, [0, 1, 2], 5.0), (False, [0, 3, 6], 9.0)],
)
def test_pieces_of_a_prompt_follow_each_other_or_wait(follow: bool, starts: list[float], end_s: float) -> None:
    """40 tokens in pieces of 16 over three stages of a second: since 1.x only who samples is in flight."""
    rules = replace(RULES, max_num_tokens=16, context_chunking_policy=FIRST_COME)
    run = Run([(0.0, 40, 1, 0)], 3, rules, follow=follow)
    assert [batch.prefill for batch in run.batches] == [[(16, 0)], [(16, 16)], [(8, 32)]]
    assert ([batch.t_start for batch in run.batches], run.ends[0]) == (starts, end_s)


def test_the_active_list_is_longer_by_the_stages_and_a_lone_row_passes_all_of_them() -> None:
    """Closed form: a row alone takes a pipeline's whole length for each token, whatever is in the other slots."""
    run = Run([(0.0, 8, 5, 0)], 4)
    assert run.ends == {0: 5 * 4.0}
    eight = Run([(0.0, 8, 5, 0)] * 8, 4)
    assert eight.scheduler.max_active == 8
    assert [len(batch.prefill) for batch in eight.batches[:4]] == [2] * 4
    assert sorted(eight.ends.values())[-1] == 5 * 4 + 3  # four full slots: the last enters three seconds after the first


CASE = st.fixed_dictionaries(
    {
        "policy": st.sampled_from([GUARANTEED, STATIC]),
        "chunking": st.sampled_from([None, FIRST_COME, EQUAL_PROGRESS]),
        "stages": st.integers(2, 4),
        "rows": st.integers(1, 5),
        "tokens": st.sampled_from([24, 48]),
        "blocks": st.integers(24, 60),
        "follow": st.booleans(),
        "known": st.booleans(),
        "pace_s": st.sampled_from([0.004, 0.05, 3.0]),
        "requests": st.lists(
            st.tuples(st.floats(0, 2), st.integers(1, 22), st.integers(1, 40), st.integers(0, 3)), min_size=1, max_size=20
        ),
    }
)


@settings(max_examples=examples(120), deadline=None)
@given(CASE)
def test_blocks_are_conserved_and_jumps_are_steps(case: dict[str, Any]) -> None:
    rules = replace(
        RULES,
        max_batch_size=case["rows"],
        max_num_tokens=case["tokens"],
        max_seq_len=96,
        capacity_scheduler_policy=case["policy"],
        context_chunking_policy=case["chunking"],
    )
    runs = [
        Run(
            sorted(case["requests"]),
            case["stages"],
            rules,
            blocks=case["blocks"],
            follow=case["follow"],
            aggregate=aggregate,
            clock=CLOCK,
            pace_s=case["pace_s"],
            known=case["known"],
        )
        for aggregate in (True, False)
    ]
    jumped, stepped = runs
    for run in runs:
        assert run.kv.free_blocks == run.kv.capacity_blocks
        assert run.scheduler._owed == 0
        assert not run.scheduler._slot_of
        for seq, tokens in zip(run.seqs, run.tokens, strict=True):
            assert (seq.state, len(tokens)) == ("finished", seq.final_length - seq.prompt_tokens)
            assert tokens == sorted(set(tokens))
    assert jumped.ends == stepped.ends
    assert jumped.tokens == stepped.tokens
    assert jumped.log.end_s == stepped.log.end_s


@settings(max_examples=examples(80), deadline=None)
@given(CASE, st.lists(st.tuples(st.integers(0, 40), st.integers(0, 19)), max_size=8))
def test_those_who_leave_at_any_time_leave_no_block_behind(case: dict[str, Any], leaving: list[tuple[int, int]]) -> None:
    """Requests are forgotten before a turn, in whatever state they are; the others end with all their tokens."""
    rules = replace(RULES, max_batch_size=case["rows"], max_num_tokens=case["tokens"], max_seq_len=96)
    rules = replace(rules, context_chunking_policy=case["chunking"])
    kv = BlockTree(case["blocks"], 4)
    scheduler = StagedTwoPassScheduler(rules, kv, stages=case["stages"], pieces_follow=case["follow"])
    seqs = sharing(sorted(case["requests"]), 12, limit_tokens=40)
    for seq in seqs:
        scheduler.add(seq)
    flight: list[Batch] = []
    gone: set[Sequence] = set()
    turn = 0
    while scheduler.has_work():
        for at, index in leaving:
            if at == turn and index < len(seqs) and seqs[index].state != "finished" and scheduler.cancel(seqs[index]):
                gone.add(seqs[index])
        batch = scheduler.schedule(0.0)
        if batch is not None:
            flight.append(batch)
        if flight and (batch is None or len(flight) == case["stages"]):
            scheduler.settle(flight.pop(0))
        turn += 1
    for batch in flight:
        scheduler.settle(batch)
    assert kv.free_blocks == kv.capacity_blocks
    assert (scheduler._owed, scheduler._slot_of, scheduler._pieces) == (0, {}, set())
    for seq, tokens in zip(seqs, token_steps(seqs), strict=True):
        assert seq.state == "finished"
        assert seq in gone or len(tokens) == seq.final_length - seq.prompt_tokens


def prepared(**pool: Any) -> Prepared:
    constant = {"kind": "constant", "value": 500}
    return prepare(
        load_scenario(
            {
                "model": LLAMA,
                "deployment": {"engine": "trtllm", "hardware": "h100-sxm-80gb", **pool},
                "workload": {
                    "arrivals": {"kind": "batch"}, "requests": 10, "prompt_tokens": constant, "output_tokens": constant,
                },
            }
        )
    )


def test_a_command_with_stages_divides_weights_and_cache() -> None:
    """A stage's memory, twice the places, the step of the slowest stage; older versions hold a prompt back for each piece."""
    command = f"trtllm-serve serve {LLAMA} --tp_size 2 --pp_size 4 --max_batch_size 32 --max_num_tokens 4096"
    found = prepared(engine_args=command)
    plan = found.plan
    assert (plan.executor.depth, plan.executor.stages, plan.costs.parallel.pipeline) == (4, 4, 4)
    assert (plan.limits.rows, plan.limits.step_tokens) == (128, 4096)
    whole = prepared(tensor_parallel=8).plan
    weights = plan.memory.bytes_of("weight"), whole.memory.bytes_of("weight")
    assert weights[0] == pytest.approx(weights[1], rel=0.03)  # eight devices either way; the head is the last stage's
    scheduler = plan.scheduler("jump")
    assert isinstance(scheduler, StagedTwoPassScheduler)
    assert scheduler._pieces_follow
    older = prepared(engine="trtllm@1.0", tensor_parallel=2, pipeline_parallel=4).plan.scheduler("jump")
    assert isinstance(older, StagedTwoPassScheduler)
    assert not older._pieces_follow
    assert any("4 micro-batches" in note for note in plan.notes)


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"engine_args": PAUSING}, "MAX_UTILIZATION beside pipeline"),
        ({"speculative": DRAFTS}, "speculative decoding beside pipeline"),
    ],
)
def test_what_is_not_modelled_beside_stages_is_refused(pool: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepared(tensor_parallel=2, pipeline_parallel=4, **pool)


def test_a_batch_is_one_of_two_passes() -> None:
    scheduler = StagedTwoPassScheduler(RULES, BlockTree(40, 4), stages=2, pieces_follow=True)
    for seq in sharing([(0.0, 8, 3, 0)], 0):
        scheduler.add(seq)
    batch = scheduler.schedule(0.0)
    assert isinstance(batch, TwoPassBatch)
    assert scheduler.schedule(0.0) is None
