"""Drafts in MLC-LLM: timelines worked by hand from its source, memory, the price of a step, flags and refusals.

Lines are those of mlc-ai/mlc-llm at 79d603f0, below `cpp/serve`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.engines.known import parse_engine_args
from engine_models.engines.mlc_llm_flags import AUTOMATIC, FLAGS
from engine_models.flags import reconcile
from engine_models.memory.forked_pages import ForkedPages
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.schedulers.hybrid_prefill import HybridRules
from engine_models.schedulers.hybrid_prefill_drafted import DraftedHybridScheduler
from hardware_profiles.errors import InputError
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import feed, sharing, token_steps
from tests.engine_models.test_declarations import prepared
from tests.engine_models.test_hybrid_prefill import CLOCK

Asked = list[tuple[float, int, int, int]]


class Drafted:
    """What became of requests, given as (arrival [s], prompt, answer, group that shares the first 100 tokens)."""

    def __init__(
        self,
        asked: Asked,
        drafts: int,
        accepted: float = 1.0,
        *,
        rows: int = 2,
        chunk: int = 1000,
        pages: int = 126,
        total: int = 2000,
        caching: bool = False,
        lengths: tuple[tuple[int, int], ...] = (),
    ) -> None:
        self.kv = ForkedPages(pages, 16, prefix_caching=caching, recycling=2)
        rules = HybridRules(rows, total, chunk, hybrid=False)
        self.scheduler = DraftedHybridScheduler(rules, self.kv, drafts=drafts, next_tokens=1, lengths=lengths)
        self.batches: list[Batch] = []
        self.seqs = sharing(asked, 100)
        streams = AcceptanceStreams(tuple(accepted**i for i in range(1, drafts + 1)), key=3)
        for seq in self.seqs:
            seq.acceptance = streams.of(seq.index)
        replica = Replica([self.scheduler], RecordedClock(CLOCK), on_batch=self._settled)
        feed(replica, self.seqs, 0.5)
        self.scheduler.close()
        self.tokens = token_steps(self.seqs)

    def _settled(self, batch: Batch) -> None:
        self.batches.append(batch)
        kv = self.kv
        assert kv.free_blocks + kv.shared_pages() + kv.own_pages(self.scheduler._cached) == kv.capacity_blocks
        assert kv.free_blocks >= 0


def test_a_row_counts_for_the_tokens_that_it_verifies() -> None:
    """`CanPrefill` (`batch_prefill_base.cc` 287): ten rows, four drafts: two requests at once. The third comes when they end."""
    done = Drafted([(0, 20, 8, 0), (0, 30, 8, 0), (0, 40, 8, 0)], 4)
    first = [0, 1, 1, 1, 1, 1, 2, 2]
    assert done.tokens == [first, first, [step + 3 for step in first]]
    assert [batch.tokens for batch in done.batches] == [50, 10, 10, 40, 5, 5]


def test_decodes_pause_while_prompts_are_computed() -> None:
    """`engine.cc` 449: with speculation prompts are not fused with decodes. No draft is accepted here."""
    done = Drafted([(0, 20, 4, 0), (0.001, 30, 3, 0)], 4, 0.0)
    assert done.tokens == [[0, 2, 3, 4], [1, 2, 3]]
    assert [(batch.tokens, batch.decode_rows) for batch in done.batches] == [(20, 0), (30, 0), (10, 2), (10, 2), (5, 1)]


def test_pages_for_the_drafts_of_every_row_are_free_before_a_step() -> None:
    """`GetDraftsToVerify` (`batch_verify.cc` 339): twenty drafts ask for two pages a row. Eight pages, prompts of one page.

    Step 1 finds six free and leaves three pages a row. Step 2 finds two: the row that came last goes and its answer becomes
    prompt (38 tokens, three pages). Step 3 has four free, one less than these and one for each row. The first ends there, and
    step 4 computes them.
    """
    done = Drafted([(0, 16, 50, 0), (0, 16, 50, 0)], 20, pages=8)
    assert done.tokens[0] == [0, *[1] * 21, *[2] * 21, *[3] * 7]
    assert done.tokens[1] == [0, *[1] * 21, 4, *[5] * 21, *[6] * 6]
    assert [batch.tokens for batch in done.batches] == [32, 42, 21, 21, 38, 21, 21]
    assert [seq.preemptions for seq in done.seqs] == [0, 1]
    assert (done.scheduler.verifications, done.scheduler.verified_drafts) == (6, 120)


def test_fewer_drafts_are_made_the_more_rows_there_are() -> None:
    """`CalculateDraftLength` (`auto_spec_decode.cc` 58): below ten rows four, below twenty three; none where that is more tokens
    than `max_num_sequence`, even if fewer drafts would not be. All may run (the length is 0 where prompts are let in)."""

    def steps(requests: int, rows: int) -> list[tuple[int, int]]:
        done = Drafted([(0, 20, 5, 0)] * requests, 4, rows=rows, lengths=AUTOMATIC)
        assert {len(tokens) for tokens in done.tokens} == {5}
        return [(batch.tokens, batch.decode_rows) for batch in done.batches]

    assert steps(10, 40) == [(200, 0), (40, 10)]  # ten rows of four tokens
    assert steps(10, 39) == [(200, 0), *[(10, 10)] * 4]
    assert steps(9, 40) == [(180, 0), *[(9, 9)] * 4]  # nine rows of five are 45
    assert steps(8, 40) == [(160, 0), (40, 8)]


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 150), st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=16),
    st.integers(1, 20),
    st.floats(0, 1),
    st.sampled_from([300, 500, 2000]),
    st.sampled_from([30, 1000]),
    st.booleans(),
)
def test_every_request_gets_its_tokens_and_gives_its_memory_back(
    drawn: Asked, drafts: int, accepted: float, total: int, chunk: int, caching: bool
) -> None:
    asked = [(at / 100, prompt, output, group) for at, prompt, output, group in sorted(drawn)]
    done = Drafted(asked, drafts, accepted, rows=4, chunk=chunk, pages=-(-total // 16) + 1, total=total, caching=caching)
    assert [len(tokens) for tokens in done.tokens] == [output for _, _, output, _ in asked]
    assert all(tokens == sorted(tokens) for tokens in done.tokens)
    assert done.scheduler.state()[:2] == (0, 0)
    assert done.scheduler.accepted_drafts <= done.scheduler.verified_drafts


# Pools ----------------------------------------------------------------------------------------------------------


DRAFTS = {"method": "draft_model", "model": "llama-3.2-1b", "num_speculative_tokens": 4, "acceptance": 0.7}


def pool(drafts: dict[str, Any] | None = DRAFTS, **args: Any) -> Any:
    flags = {"mode": "server", **args}
    return prepared("llama-3.1-8b", engine="mlc_llm", weights="q4f16_1", engine_args=flags, speculative=drafts)


def test_the_drafter_is_a_second_model_in_memory_and_few_rows_run() -> None:
    drafted, plain = pool().plan, pool(None).plan
    assert drafted.speculation is not None
    assert (plain.limits.rows, drafted.limits.rows) == (128, 25)  # a fifth of them
    assert drafted.memory.bytes_of("draft") == drafted.speculation.weight_bytes() > 1e9
    assert drafted.memory.kv_bytes_per_token == plain.memory.kv_bytes_per_token + drafted.speculation.kv_bytes_per_token() + 1.25
    assert drafted.memory.bytes_of("other") > plain.memory.bytes_of("other") + 48 * 2**20


def test_a_step_costs_the_passes_of_the_drafter_on_device_and_host() -> None:
    def step_s(drafts: dict[str, Any], batch: Batch) -> tuple[float, float]:
        times = pool(drafts).times()
        return times.step_s([batch])[0], times.host_s(batch)

    decodes = Batch(0, 4, 20, 4 * 5 * 500, tokens=20)
    none_s, all_s = (step_s(replaced, decodes) for replaced in ({**DRAFTS, "acceptance": 0.0}, {**DRAFTS, "acceptance": 1.0}))
    plan = pool().plan
    assert plan.speculation.by_host
    costs = replace(plan.costs, speculation=replace(plan.speculation, by_host=False))
    four = replace(pool(), plan=replace(plan, costs=costs)).times()
    passes_s = all_s[0] - none_s[0]  # where all drafts are accepted the drafter computes one token more
    assert passes_s > 0.0005
    assert none_s[0] == pytest.approx(four.step_s([decodes])[0])
    assert none_s[1] - four.host_s(decodes) == pytest.approx(4 * 0.0005)
    prompts = Batch(0, tokens=300)
    prompts.prefill = [(300, 0)]
    assert step_s(DRAFTS, prompts)[0] < four.step_s([prompts])[0]  # which drafts behind prompts too
    assert step_s(DRAFTS, prompts)[1] == four.host_s(prompts)


def test_flags_state_the_drafts() -> None:
    def read(command: str, stated: dict[str, Any] | None = None) -> Any:
        keys = {**dict.fromkeys(typed.key for typed in FLAGS.typed.values()), "speculative": stated}
        return reconcile(FLAGS, keys, parse_engine_args("mlc_llm", command), given=set()).get("speculative")

    pasted = "mlc_llm serve m --speculative-mode small_draft --additional-models HF://mlc-ai/Llama-3.2-1B-q4f16_1-MLC,lib.so"
    found = {"method": "draft_model", "num_speculative_tokens": 3, "model": "Llama-3.2-1B"}
    assert read(f'{pasted} --overrides "spec_draft_length=3;max_num_sequence=32"') == found
    eagle = {"method": "eagle", "num_speculative_tokens": 2}
    assert read('mlc_llm serve m --speculative-mode eagle --additional-models x --overrides "spec_draft_length=2"') == eagle
    assert read("mlc_llm serve m") is None
    assert read(pasted) == {**found, "num_speculative_tokens": 4}  # at most: their number goes by the rows
    with pytest.raises(InputError, match="does not choose the number of drafts by itself in mode eagle"):
        read("mlc_llm serve m --speculative-mode eagle --additional-models x")
    with pytest.raises(InputError, match="drafts in a tree"):
        read(f'{pasted} --overrides "spec_draft_length=3;spec_tree_width=2"')


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"speculative_mode": "disable"}, "`speculative_mode` .disable. contradicts the pool's key `speculative`"),
        ({"spec_draft_length": 2}, "`spec_draft_length` .2. contradicts the pool's key `speculative`"),
        ({"overrides": "spec_draft_length=2"}, "`spec_draft_length` .2. contradicts the pool's key `speculative`"),
        ({"spec_tree_width": 2}, "drafts in a tree are not simulated"),
    ],
)
def test_flags_may_not_contradict_the_drafts_that_the_pool_asks_for(flags: dict[str, Any], words: str) -> None:
    """Also where no flag asks for drafts: the pool's key does."""
    with pytest.raises(InputError, match=words):
        pool(**flags)


def test_where_the_number_of_drafts_goes_by_the_rows_steps_cost_what_they_verify() -> None:
    by_rows, fixed, plain = pool(spec_draft_length=0), pool(spec_draft_length=4), pool(None)
    assert (by_rows.plan.limits.rows, fixed.plan.limits.rows) == (128, 25)
    assert any("4 below 10, 3 below 20, 2 below 30" in note for note in by_rows.plan.notes)
    local = pool(spec_draft_length=0, mode="local").plan
    never = "no drafts are ever made: 4 and the token before them are more tokens than the 4 rows"
    assert any(never in note for note in local.notes)
    times = by_rows.times()
    for rows, drafts, same in ((6, 4, fixed), (40, 0, plain)):
        batch = Batch(0, rows, rows * (1 + drafts), rows * (1 + drafts) * 500, tokens=rows * (1 + drafts))
        assert times.step_s([batch])[0] == pytest.approx(same.times().step_s([batch])[0])
        assert times.host_s(batch) == pytest.approx(same.times().host_s(batch))
    prompts = Batch(0, tokens=300)
    prompts.prefill = [(300, 0)]
    assert times.step_s([prompts]) == fixed.times().step_s([prompts])
    with pytest.raises(InputError, match="chooses the number of drafts by itself for a small model only"):
        pool({**DRAFTS, "num_speculative_tokens": 3}, spec_draft_length=0)


def test_what_would_let_nobody_in_is_refused() -> None:
    with pytest.raises(InputError, match="lets nobody in: a row that verifies 5 tokens counts for as many of the 4 rows"):
        pool(mode="local")
    with pytest.raises(InputError, match="MLC-LLM with ngram drafts"):
        pool({**DRAFTS, "method": "ngram"})
