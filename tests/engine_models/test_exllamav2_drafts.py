"""Drafts in ExLlamaV2: timelines worked by hand from its source, pages, the price of a step, flags, refusals.

Lines are those of `exllamav2/generator/dynamic.py` of 0.3.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Shard
from engine_models.engines.exllamav2_flags import FLAGS
from engine_models.engines.known import parse_engine_args
from engine_models.flags import reconcile
from engine_models.memory.chained_pages import PAGE_TOKENS, ChainedPages
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.bounded_bypass import BypassBatch, BypassRules
from engine_models.schedulers.bounded_bypass_drafted import DraftedBypassScheduler
from hardware_profiles.errors import InputError
from simulator.prepare import Prepared
from simulator.run import simulate
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, sharing
from tests.engine_models.test_bounded_bypass import CLOCK, Asked, conserved, loads
from tests.engine_models.test_declarations import prepared


class Drafted(Fed[DraftedBypassScheduler, BypassBatch]):
    """What became of requests of which each draft is accepted with probability `accepted`."""

    def __init__(
        self,
        asked: list[Asked],
        pages: int = 60,
        drafts: int = 3,
        accepted: float = 1.0,
        *,
        seqs: list[Sequence] | None = None,
        **rules: Any,
    ) -> None:
        knobs = {"max_batch_size": 256, "max_chunk_size": 2048, "max_seq_len": pages * PAGE_TOKENS, **rules}
        scheduler = DraftedBypassScheduler(BypassRules(**knobs), ChainedPages(pages), drafts=drafts)
        seqs = sharing(asked, 700) if seqs is None else seqs
        streams = AcceptanceStreams(tuple(accepted**i for i in range(1, drafts + 1)), key=3)
        for seq in seqs:
            seq.acceptance = streams.of(seq.index)
        super().__init__(scheduler, seqs, RecordedClock(CLOCK), BypassBatch, pace_s=0.3)

    def settled(self, batch: BypassBatch) -> None:
        conserved(self.scheduler)


def test_rows_verify_their_drafts_together_behind_the_chunks_of_prompts() -> None:
    """987 to 991: a chunk of each prompt but its last token, then drafts of all rows, verified in one call (1252)."""
    done = Drafted([(0, 100, 9, 0), (0, 50, 4, 0)])
    assert [batch.tokens for batch in done.batches] == [99, 49, 8, 4, 4]
    assert done.tokens == [[2] * 4 + [3] * 4 + [4], [2] * 4]
    none = Drafted([(0, 100, 3, 0), (0, 50, 2, 0)], accepted=0.0)
    assert none.tokens == [[2, 3, 4], [2, 3]]
    kv = [batch.decode_kv_tokens for batch in none.batches[2:]]
    assert kv == [99 + 49 + 8, 100 + 50 + 8, 101 + 4]  # what was rejected is taken off (1270)


def test_pages_that_drafts_fill_are_found_by_the_next_turn_of_a_chat() -> None:
    """250 tokens and 20 more fill a page within a verification, and 13 places of the next: the last token is never computed."""
    chat = Sequence(0, 250, 20, 0.0, runs=((7, 0, 270),), shareable_tokens=250, output_shared=True)
    goes_on = Sequence(1, 300, 4, 5.0, runs=((7, 0, 270), (8, 0, 34)), shareable_tokens=300, output_shared=True)
    done = Drafted([], seqs=[chat, goes_on])
    assert goes_on.first_hit_tokens == PAGE_TOKENS + 13
    assert [batch.tokens for batch in done.batches] == [249, 4, 4, 4, 4, 4, 30, 4]


@settings(max_examples=examples(40))
@given(loads())
def test_every_request_gets_its_tokens_and_pages_are_conserved(load: tuple[int, dict[str, Any], list[Asked]]) -> None:
    pages, rules, asked = load
    most = pages * PAGE_TOKENS
    fits = [each for each in asked if each[1] + each[2] + 8 < most] if rules["paged"] else asked
    for accepted in (0.0, 0.7, 1.0):
        done = Drafted(fits, pages, 4, accepted, **rules)
        assert [len(steps) for steps in done.tokens] == [answer for _, _, answer, _ in fits]
        assert all(steps.count(step) <= 5 for steps in done.tokens for step in set(steps))
        assert not done.scheduler.has_work()
        assert not done.scheduler._verified.gains
        assert done.scheduler.kv.used_blocks == 0


# -- the pool -----------------------------------------------------------------------------------------------

QWEN, SMALL = "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct"
DRAFTS = {"model": SMALL, "weights": "exl2_4.0", "acceptance": 0.7}
CARD: dict[str, Any] = {"engine": "exllamav2", "hardware": "rtx-4090-24gb", "weights": "exl2_4.0"}


def pool(drafts: dict[str, Any] | None = DRAFTS, **flags: Any) -> Prepared:
    more = {} if drafts is None else {"speculative": drafts}
    return prepared(QWEN, **CARD, engine_args={"max_seq_len": 8192, "cache_size": 8192, **flags}, **more)


def test_a_step_makes_a_pass_more_than_drafts() -> None:
    """1108 to 1133: a pass a draft, and one for the keys and values of the last."""
    found = pool()
    assert found.plan.speculation is not None
    assert (found.plan.speculation.tokens, found.plan.speculation.apart) == (4, 1)
    decode = Batch(0, 2, 10, 4010, tokens=10)
    costs = found.plan.costs.with_terms(query_tokens=5, sampled_tokens=5)
    verified_s = StepTimeModel(Shard(costs.arch, found.kernels, costs.formats, costs.parallel, costs.terms), costs.up_to)
    small = prepared(SMALL, **CARD, engine_args={"max_seq_len": 8192, "cache_size": 8192}).times()
    one_s = small.step_s([Batch(0, 2, 2, 4004, tokens=2)])[0]
    passes_s = found.times().step_s([decode])[0] - verified_s.step_s([decode])[0]
    assert passes_s == pytest.approx(5 * one_s, rel=0.05)


def test_a_drafter_has_weights_and_a_cache_of_its_own() -> None:
    plain, drafted, narrow = pool(None).plan, pool().plan, pool(draft_cache_mode="Q4").plan
    assert drafted.speculation is not None
    assert drafted.memory.kv_bytes_per_token == plain.memory.kv_bytes_per_token + drafted.speculation.kv_bytes_per_token()
    assert narrow.memory.kv_bytes_per_token < drafted.memory.kv_bytes_per_token
    assert drafted.memory.bytes_of("draft") > 0


def test_jumps_and_steps_are_the_same_and_one_user_gains() -> None:
    load = {"arrivals": {"kind": "closed_loop", "concurrency": 1}, "prompt_tokens": 200, "output_tokens": 60, "requests": 4}
    args = {"max_seq_len": 8192, "cache_size": 8192}

    def run(drafts: dict[str, Any] | None, **how: Any) -> Any:
        more = {} if drafts is None else {"speculative": drafts}
        return simulate({"model": QWEN, "deployment": {**CARD, "engine_args": args, **more}, "workload": load}, **how)

    jumped, stepped = run(DRAFTS), run(DRAFTS, aggregate=False)
    assert jumped.result == stepped.result
    for name, column in jumped.timeline.items():
        np.testing.assert_array_equal(stepped.timeline[name], column, err_msg=name)
    tpot = [each.result["metrics"]["tpot_ms"]["mean"] for each in (run({**DRAFTS, "acceptance": 0.0}), run(None), jumped)]
    assert tpot[0] > tpot[1] > 1.2 * tpot[2]


def test_flags_state_the_drafts() -> None:
    def read(command: str, stated: dict[str, Any] | None = None) -> Any:
        keys = {**dict.fromkeys(typed.key for typed in FLAGS.typed.values()), "speculative": stated}
        return reconcile(FLAGS, keys, parse_engine_args("exllamav2", command), given=set()).get("speculative")

    assert read("python main.py --model-name m --draft-model-name Qwen2.5-0.5B-exl2 --draft-num-tokens 3") == {
        "method": "draft_model",
        "model": "Qwen2.5-0.5B-exl2",
        "num_speculative_tokens": 3,
    }
    assert read("python main.py --model-name m --draft-num-tokens 3") is None


def test_what_is_not_simulated_is_refused() -> None:
    with pytest.raises(InputError, match="verifies at most 8 drafts of a row, not 9"):
        pool({**DRAFTS, "num_speculative_tokens": 9})
    with pytest.raises(InputError, match="ExLlamaV2 with eagle3 drafts is not modelled"):
        pool({**DRAFTS, "method": "eagle3"})
    with pytest.raises(InputError, match="drafts beside tensor parallelism"):
        prepared(QWEN, **CARD, tensor_parallel=2, speculative=DRAFTS)
