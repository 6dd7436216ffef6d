"""Slots with drafts: timelines worked by hand from the source of llama.cpp's server, cells, the price of a step, flags, refusals.

Lines are those of llama.cpp at 0c1e57098: `server-context.cpp` below `tools/server`, `speculative.cpp` below `common`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Formats, HostOverhead, Parallelism, Shard
from engine_models.engines.known import parse_engine_args
from engine_models.engines.llama_cpp_flags import FLAGS
from engine_models.flags import reconcile
from engine_models.model.blocks import Architecture
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.schedulers.slots import SlotBatch, SlotRules, padded
from engine_models.schedulers.slots_drafted import DraftedSlotScheduler, DraftRules
from hardware_profiles.errors import InputError
from simulator.prepare import Prepared
from simulator.run import simulate
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, sharing
from tests.engine_models.test_declarations import prepared
from tests.engine_models.test_slots import TICK, Asked, conserved, loads


class Drafted(Fed[DraftedSlotScheduler, SlotBatch]):
    """What became of requests of which each draft is accepted with probability `accepted`."""

    def __init__(
        self, rules: SlotRules, asked: list[Asked], drafts: DraftRules, accepted: float = 1.0, *, limit_tokens: int = 0
    ) -> None:
        scheduler = DraftedSlotScheduler(rules, drafts=drafts)
        seqs = sharing(asked, 60, limit_tokens=limit_tokens)
        streams = AcceptanceStreams(tuple(accepted**i for i in range(1, drafts.n_max + 1)), key=3)
        for seq in seqs:
            seq.acceptance = streams.of(seq.index)
        super().__init__(scheduler, seqs, RecordedClock(TICK), SlotBatch, pace_s=40)

    def settled(self, batch: SlotBatch) -> None:
        conserved(self.scheduler)

    def passes(self) -> list[list[int]]:
        """Rows of each pass of the drafter, by iteration."""
        return [[sum(part.decode_rows for part in parts) for parts in batch.passes] for batch in self.batches]


ONE = SlotRules(1, 256)


def test_an_iteration_yields_what_was_accepted_and_a_token_more() -> None:
    """3820: a prompt's end yields one token and drafts nothing; then three drafts in as many passes, four tokens (3878)."""
    done = Drafted(ONE, [(0, 20, 8, 0)], DraftRules(3))
    assert done.tokens == [[0, 1, 1, 1, 1, 2, 2, 2]]
    assert [batch.tokens for batch in done.batches] == [20, 4, 4]
    assert done.passes() == [[], [1, 1, 1], [1, 1, 1]]
    none = Drafted(ONE, [(0, 20, 4, 0)], DraftRules(3), 0.0)
    assert none.tokens == [[0, 1, 2, 3]]
    assert [(batch.tokens, batch.decode_kv_tokens) for batch in none.batches] == [(20, 0), (4, 24), (4, 25), (4, 26)]
    assert (none.scheduler.verifications, none.scheduler.verified_drafts, none.scheduler.accepted_drafts) == (3, 9, 0)


def test_the_clients_limit_and_the_context_bound_the_drafts() -> None:
    """`get_n_draft_max` (452): as many as the limit leaves beside the token after them, and the context less two."""
    limited = Drafted(ONE, [(0, 20, 8, 0)], DraftRules(3), limit_tokens=8)
    assert [batch.tokens for batch in limited.batches] == [20, 4, 3]
    assert limited.passes()[2] == [1, 1]
    whole = Drafted(ONE, [(0, 20, 8, 0)], DraftRules(3, passes_whole=True), limit_tokens=8)
    assert [batch.tokens for batch in whole.batches] == [20, 4, 3]
    assert whole.passes()[2] == [1, 1, 1]  # 1640: a head drafts `n_max`, and what is too much is cut
    full = Drafted(SlotRules(1, 30), [(0, 20, 10, 0)], DraftRules(16))
    assert [batch.tokens for batch in full.batches] == [20, 9]
    assert full.tokens == [[0] + [1] * 9]


def test_fewer_drafts_than_the_least_are_dropped_after_they_were_made() -> None:
    """`speculative.cpp` 434."""
    done = Drafted(ONE, [(0, 20, 7, 0)], DraftRules(3, n_min=2), limit_tokens=7)
    assert done.tokens == [[0, 1, 1, 1, 1, 2, 3]]
    assert [batch.tokens for batch in done.batches] == [20, 4, 1, 1]
    assert done.passes() == [[], [1, 1, 1], [1], []]


def test_prompts_take_what_drafts_leave_of_the_batch() -> None:
    """3073: sampled tokens and drafts first; 3085: then prompts, slot by slot, up to `n_batch`. Slots draft together."""
    done = Drafted(SlotRules(3, 256, n_batch=32), [(0, 20, 9, 0), (0, 12, 9, 0), (1, 50, 2, 0)], DraftRules(3), 0.0)
    assert [batch.tokens for batch in done.batches][:4] == [32, 32, 32, 10]
    assert done.passes()[:4] == [[], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert [part.prefill for part in done.batches[1].parts if part.prefill] == [[(4, 0)], [(20, 4)]]


def test_a_call_that_holds_a_part_of_the_drafts_ends_all_that_runs() -> None:
    """3773 and `abort_all_slots`: the pool has no room for twelve tokens beside 50, the batch is halved, and drafts are cut."""
    asked: list[Asked] = [(0, 24, 9, 0), (0, 24, 9, 0)]
    rules = SlotRules(2, 60, pool_cells=60, n_batch=48, cont_batching=True)
    done = Drafted(rules, asked, DraftRules(5), 0.0)
    assert [seq.state for seq in done.seqs] == ["dropped", "dropped"]
    assert done.tokens == [[0, 1], [0, 1]]
    assert done.scheduler._cells == 0
    fewer = Drafted(rules, asked, DraftRules(1), 0.0)
    assert [len(steps) for steps in fewer.tokens] == [6, 6]  # 24 + 24 + 10 cells, and four tokens more do not fit


@settings(max_examples=examples(80))
@given(loads(), st.integers(1, 5), st.integers(0, 3), st.sampled_from([0.0, 0.6, 1.0]), st.booleans())
def test_every_request_ends_and_cells_are_conserved(
    load: tuple[SlotRules, list[Asked], int], n_max: int, n_min: int, accepted: float, whole: bool
) -> None:
    """Each has its tokens or was ended with all others; a row's tokens of an iteration are at most the drafts and one."""
    rules, asked, _ = load
    if rules.n_batch < rules.n_parallel * (1 + n_max):
        return
    done = Drafted(rules, asked, DraftRules(n_max, n_min, passes_whole=whole), accepted)
    assert not done.scheduler.has_work()
    assert set(done.ends) == set(range(len(asked)))
    for (_, prompt, answer, _), seq, steps in zip(asked, done.seqs, done.tokens, strict=True):
        assert steps == sorted(steps)
        assert all(steps.count(step) <= 1 + n_max for step in set(steps))
        if seq.state == "finished":
            assert len(steps) == (answer if rules.context_shift else min(answer, rules.slot_tokens - prompt))
    scheduler = done.scheduler
    assert scheduler.accepted_drafts <= scheduler.verified_drafts
    assert sum(batch.tokens_beyond for batch in done.batches) == scheduler.accepted_drafts


# -- the pool -----------------------------------------------------------------------------------------------

DRAFTS = {"model": "meta-llama/Llama-3.2-1B-Instruct", "weights": "q8_0", "num_speculative_tokens": 4, "acceptance": 0.7}


def pool(drafts: dict[str, Any] | None = DRAFTS, **flags: Any) -> Prepared:
    more = {} if drafts is None else {"speculative": drafts}
    args = {"parallel": 2, "ctx_size": 8192, **flags}
    return prepared(engine="llama_cpp", hardware="rtx-4090-24gb", weights="q4_k_m", engine_args=args, **more)


def test_a_drafter_has_weights_and_a_cache_of_its_own() -> None:
    plain, drafted = pool(None).plan, pool().plan
    assert drafted.speculation is not None
    own = drafted.speculation.kv_bytes_per_token()
    assert own == 16 * 2 * 8 * 64 * 2  # 16 layers, keys and values of 8 heads of 64, f16
    assert drafted.memory.kv_bytes_per_token == plain.memory.kv_bytes_per_token + own
    assert drafted.memory.bytes_of("draft") > drafted.speculation.weight_bytes() > 1.2e9
    narrow = pool(spec_draft_type_k="q8_0", spec_draft_type_v="q8_0").plan.speculation
    assert narrow is not None
    assert narrow.kv_bytes_per_token() < 0.6 * own


def test_a_step_is_the_passes_the_verification_and_the_drafters_own_pass() -> None:
    """2000 tokens a slot, two slots, four drafts each; pools of cells are each slot's own."""
    found = pool()
    plan, times = found.plan, found.times()
    speculation = plan.speculation
    assert speculation is not None
    assert speculation.draft is not None
    batch = SlotBatch(0)
    batch.decode_rows, batch.decode_tokens, batch.tokens = 2, 10, 10
    verified = Batch(0, 2, 10, 4010, tokens=10)
    verified.pool_cells = padded(2005)
    batch.parts = [verified]
    alone_s = times.step_s([batch])[0]
    for number in range(4):
        one = Batch(0, 2, 2, 4002 + 2 * number, tokens=2)
        one.pool_cells = padded(2001 + number)
        batch.passes.append([one])
    four_s = times.step_s([batch])[0]
    host = plan.costs.terms.host

    def own_s(arch: Architecture, formats: Formats, part: Batch, **terms: Any) -> float:
        costs = plan.costs.with_terms(host=HostOverhead(0.0, 0.0), **terms)
        return StepTimeModel(Shard(arch, found.kernels, formats, Parallelism(), costs.terms), costs.up_to).step_s([part])[0]

    passes_s = sum(own_s(speculation.draft, speculation.formats, each[0]) for each in batch.passes)
    assert four_s - alone_s == pytest.approx(passes_s)
    verified_s = own_s(plan.costs.arch, plan.costs.formats, verified, query_tokens=5, sampled_tokens=5)
    again_s = own_s(speculation.draft, speculation.formats, verified, query_tokens=5)
    assert alone_s == pytest.approx(verified_s + again_s)
    assert times.host_s(batch) == pytest.approx(2 * host.row_s + 8 * host.row_s)
    batch.tokens_beyond = 5
    assert times.host_s(batch) == pytest.approx(15 * host.row_s)


def scenario(speculative: dict[str, Any] | None) -> dict[str, Any]:
    more = {} if speculative is None else {"speculative": speculative}
    return {
        "model": "Qwen/Qwen2.5-32B-Instruct",
        "deployment": {
            "engine": "llama_cpp",
            "hardware": "rtx-4090-24gb",
            "weights": "q4_k_m",
            "engine_args": {"parallel": 1, "ctx_size": 8192},
            **more,
        },
        "workload": {
            "arrivals": {"kind": "closed_loop", "concurrency": 1},
            "prompt_tokens": 300,
            "output_tokens": {"kind": "uniform", "low": 50, "high": 150},
            "requests": 6,
        },
    }


def test_a_single_user_gains_by_what_is_accepted() -> None:
    """A small drafter beside a large model: faster where drafts are taken, slower where none is. Vocabularies differ by 128."""
    drafts = {"model": "Qwen/Qwen2.5-0.5B-Instruct", "weights": "q8_0"}
    tpot = {
        accepted: simulate(scenario(accepted and {**drafts, "acceptance": float(accepted)})).result["metrics"]["tpot_ms"]["mean"]
        for accepted in (None, "0.0", "0.9")
    }
    assert tpot["0.9"] < 0.7 * tpot[None] < tpot[None] < tpot["0.0"]


def test_jumps_and_steps_are_the_same() -> None:
    drafts = {"model": "Qwen/Qwen2.5-0.5B-Instruct", "weights": "q8_0", "acceptance": 0.7}
    jumped, stepped = (simulate(scenario(drafts), aggregate=aggregate) for aggregate in (True, False))
    assert jumped.result == stepped.result
    for name, column in jumped.timeline.items():
        np.testing.assert_array_equal(stepped.timeline[name], column, err_msg=name)


def test_flags_state_the_drafts() -> None:
    def read(command: str, stated: dict[str, Any] | None = None) -> Any:
        keys = {**dict.fromkeys(typed.key for typed in FLAGS.typed.values()), "speculative": stated}
        return reconcile(FLAGS, keys, parse_engine_args("llama_cpp", command), given=set()).get("speculative")

    small = {"method": "draft_model", "model": "Qwen3-0.6B", "weights": "q4_0"}
    assert read("llama-server -m a-Q4_K_M.gguf -md /models/Qwen3-0.6B-Q4_0.gguf --draft-max 8") == {
        **small,
        "num_speculative_tokens": 8,
    }
    assert read("llama-server -hf x -hfd unsloth/Qwen3-0.6B-GGUF:Q4_0") == small
    assert read("llama-server -hf x -hfd unsloth/Qwen3-0.6B-GGUF") == {**small, "weights": "q4_k_m"}
    assert read("llama-server -m a.gguf --spec-type draft-mtp --spec-draft-n-max 2") == {
        "method": "mtp",
        "num_speculative_tokens": 2,
    }
    assert read("llama-server -m a.gguf --spec-draft-n-max 2") is None
    assert read("llama-server -m a.gguf -md Qwen3-0.6B-Q4_0.gguf", {"model": "Qwen/Qwen3-0.6B", "weights": "q4_0"}) == {
        "method": "draft_model",
        "model": "Qwen/Qwen3-0.6B",
        "weights": "q4_0",
    }
    with pytest.raises(InputError, match="n-grams come only where the text repeats"):
        read("llama-server -m a.gguf --spec-type ngram-mod")
    with pytest.raises(InputError, match="several types together"):
        read("llama-server -m a.gguf --spec-type draft-mtp,ngram-simple")


def test_a_head_computes_no_logits_behind_the_model_and_is_sampled_on_the_device() -> None:
    """1623: the head's own pass over the batch asks for no output; its drafts are sampled by the backend (1388)."""
    slots = {"ctx_size": 8192, "parallel": 2}
    qwen: dict[str, Any] = {"engine": "llama_cpp", "hardware": "rtx-4090-24gb", "weights": "q4_k_m", "engine_args": slots}
    found = prepared("Qwen/Qwen3.5-27B", **qwen, speculative={"method": "mtp", "acceptance": 0.7})
    assert found.plan.speculation is not None
    assert found.plan.speculation.tokens == 3  # the server's default
    plain = prepared("Qwen/Qwen3.5-27B", **qwen)
    assert found.plan.memory.bytes_of("state") == 4 * plain.plan.memory.bytes_of("state")
    batch = SlotBatch(0)
    batch.decode_rows, batch.decode_tokens, batch.tokens = 1, 4, 4
    part = Batch(0, 1, 4, 1000, tokens=4)
    part.pool_cells = padded(1000)
    batch.parts = [part]
    one = Batch(0, 1, 1, 1000, tokens=1)
    one.pool_cells = padded(1000)
    times = found.times()
    before_s, host_s = times.step_s([batch])[0], times.host_s(batch)
    batch.passes = [[one]]
    pass_s = times.step_s([batch])[0] - before_s
    assert times.host_s(batch) == host_s
    whole = replace(found.plan.speculation, method="draft_model")
    with_logits = replace(found, plan=replace(found.plan, costs=replace(found.plan.costs, speculation=whole))).times()
    logits_s = with_logits.step_s([batch])[0] - times.step_s([batch])[0]
    assert 0.2 * pass_s < logits_s < pass_s


def test_what_is_not_simulated_is_refused() -> None:
    with pytest.raises(InputError, match="2 slots verify 10 tokens at once, more than a batch of 8: llama-server then fails"):
        pool(batch_size=8)
    with pytest.raises(InputError, match=r"llama.cpp with ngram drafts is not modelled"):
        pool({**DRAFTS, "method": "ngram"})
    with pytest.raises(InputError, match="a drafter's keys in q8_0 and values in f16"):
        pool(spec_draft_type_k="q8_0")
    with pytest.raises(InputError, match="verified the drafts of each slot in a call of its own"):
        prepared(engine="llama_cpp@0.0.5800", hardware="rtx-4090-24gb", weights="q4_k_m", speculative=DRAFTS)
    with pytest.raises(InputError, match=r"keeps states, which llama.cpp restores and computes again"):
        prepared(
            "Qwen/Qwen3.5-27B",
            engine="llama_cpp",
            hardware="rtx-4090-24gb",
            weights="q4_k_m",
            engine_args={"ctx_size": 8192},
            speculative={"model": "Qwen/Qwen3.5-0.8B", "acceptance": 0.5},
        )
