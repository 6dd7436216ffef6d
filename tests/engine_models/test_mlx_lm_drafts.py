"""Drafts in MLX LM's server: timelines worked by hand from its source, the price of a step, flags, refusals.

Lines are those of `mlx_lm/generate.py` at d78bf58e, of `server.py` where it is named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Shard
from engine_models.engines.known import parse_engine_args
from engine_models.engines.mlx_lm_flags import FLAGS
from engine_models.flags import reconcile
from engine_models.memory.prompt_copies import PromptCopies
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.schedulers.polled_turns import TurnBatch, TurnRules
from engine_models.schedulers.polled_turns_drafted import DraftedTurnsScheduler
from hardware_profiles.errors import InputError
from simulator.prepare import Prepared
from simulator.run import simulate
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, sharing
from tests.engine_models.test_declarations import prepared
from tests.engine_models.test_polled_turns import CLOCK, Asked


class Drafted(Fed[DraftedTurnsScheduler, TurnBatch]):
    """What became of requests of which each draft is accepted with probability `accepted`."""

    def __init__(
        self,
        asked: list[Asked],
        drafts: int = 3,
        accepted: float = 1.0,
        *,
        limit_tokens: int = 0,
        chunk: int = 64,
        usual: int = 512,
    ) -> None:
        rules = TurnRules(decode_concurrency=1, prompt_concurrency=1, prefill_step_size=chunk, alone=True)
        scheduler = DraftedTurnsScheduler(rules, PromptCopies(10), drafts=drafts, answer_tokens=usual)
        seqs = sharing(asked, 100, limit_tokens=limit_tokens)
        streams = AcceptanceStreams(tuple(accepted**i for i in range(1, drafts + 1)), key=3)
        for seq in seqs:
            seq.acceptance = streams.of(seq.index)
        super().__init__(scheduler, seqs, RecordedClock(CLOCK), TurnBatch)


def test_the_first_step_begins_with_the_prompts_last_token_and_yields_its_drafts() -> None:
    """570 and 603: all of a prompt but its last token in pieces of 64, then three drafts behind that token, and a token more."""
    done = Drafted([(0, 100, 9, 0)])
    assert [batch.tokens for batch in done.batches] == [64, 35, 4, 4, 4]
    assert done.tokens == [[2] * 4 + [3] * 4 + [4]]
    assert [batch.decode_kv_tokens for batch in done.batches[2:]] == [103, 107, 111]
    none = Drafted([(0, 100, 3, 0)], accepted=0.0)
    assert none.tokens == [[2, 3, 4]]
    assert [batch.decode_kv_tokens for batch in none.batches[2:]] == [103, 104, 105]  # what was rejected is cut off (580)
    assert (none.scheduler.verified_drafts, none.scheduler.accepted_drafts) == (9, 0)


def test_no_more_is_drafted_than_the_limit_leaves_and_at_it_no_token_is_added() -> None:
    """604: `min(max_tokens - ntoks, num_draft_tokens)`; 622: no token behind the drafts where they reach the limit."""
    done = Drafted([(0, 2, 6, 0)], limit_tokens=6)
    assert [batch.tokens for batch in done.batches] == [1, 4, 3]
    assert done.tokens == [[1] * 4 + [2] * 2]
    assert (done.scheduler.verified_drafts, done.scheduler.accepted_drafts) == (5, 5)  # both drafts of the last step count
    usual = Drafted([(0, 2, 6, 0)], usual=6)
    assert [batch.tokens for batch in usual.batches] == [1, 4, 3]


def test_requests_are_served_one_after_the_other_and_find_what_was_kept() -> None:
    """`server.py` 353: beside a draft model nothing is batched; 911: a copy of both caches begins the next prompt."""
    done = Drafted([(0, 100, 4, 0), (0, 120, 4, 0), (0.001, 100, 4, 0)], chunk=2048)
    assert done.tokens == [[1] * 4, [3] * 4, [5] * 4]
    again = Drafted([(0, 100, 4, 1), (1, 140, 4, 1)], chunk=2048)
    assert [batch.tokens for batch in again.batches] == [99, 4, 39, 4]  # 100 tokens are shared


@settings(max_examples=examples(80))
@given(
    st.lists(
        st.tuples(st.sampled_from([0.0, 0.5, 2.0]), st.integers(1, 300), st.integers(1, 60), st.sampled_from([0, 1])),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_request_gets_its_tokens_and_nothing_stays(asked: list[Asked], drafts: int, accepted: float) -> None:
    done = Drafted(asked, drafts, accepted)
    assert [len(steps) for steps in done.tokens] == [answer for _, _, answer, _ in asked]
    assert all(steps.count(step) <= 1 + drafts for steps in done.tokens for step in steps)
    scheduler = done.scheduler
    assert not scheduler.has_work()
    assert scheduler._active_tokens() == 0
    assert not scheduler._got
    assert not scheduler._running
    served = [{index for index, steps in enumerate(done.tokens) if number in steps} for number in range(len(done.batches))]
    assert all(len(each) <= 1 for each in served)


# -- the pool -----------------------------------------------------------------------------------------------

DRAFTS = {"model": "mlx-community/Qwen2.5-0.5B-Instruct-4bit", "acceptance": 0.7}
QWEN = "Qwen/Qwen2.5-32B-Instruct"
MAC: dict[str, Any] = {"engine": "mlx_lm", "hardware": "apple-m4-max-40c-128gb", "weights": "mlx_4bit"}


def pool(drafts: dict[str, Any] | None = DRAFTS, **flags: Any) -> Prepared:
    more = {} if drafts is None else {"speculative": drafts}
    return prepared(QWEN, **MAC, engine_args=flags, **more)


def test_a_step_is_its_passes_and_the_verification() -> None:
    plain, found = pool(None, decode_concurrency=1, prompt_concurrency=1), pool()
    assert found.plan.limits.rows == 1
    assert found.plan.speculation is not None
    assert (found.plan.speculation.tokens, found.plan.speculation.apart) == (3, 0)  # the server's default
    decode = Batch(0, 1, 4, 1004, tokens=4)
    costs = found.plan.costs.with_terms(query_tokens=4, sampled_tokens=4)
    shard = Shard(costs.arch, found.kernels, costs.formats, costs.parallel, costs.terms)
    verified_s = StepTimeModel(shard, costs.up_to).step_s([decode])[0]
    drafted_s = found.times().step_s([decode])[0]
    small = prepared(DRAFTS["model"], **{**MAC, "weights": "mlx_4bit"}, engine_args={"prompt_concurrency": 1}).times()
    one_s = small.step_s([Batch(0, 1, 1, 1001, tokens=1)])[0]
    assert drafted_s - verified_s == pytest.approx(3 * one_s, rel=0.05)
    prompt = Batch(0, tokens=500)
    prompt.prefill = [(500, 0)]
    prompt_s = small.step_s([prompt])[0]
    assert found.times().step_s([prompt])[0] - plain.times().step_s([prompt])[0] == pytest.approx(prompt_s, rel=0.05)
    two, none = (Batch(0, 1, 1 + drafts, 1001 + drafts, tokens=1 + drafts) for drafts in (2, 0))
    model = StepTimeModel(shard, costs.up_to)
    assert found.times().step_s([two])[0] - model.step_s([two])[0] == pytest.approx(2 * one_s, rel=0.05)
    assert found.times().step_s([none])[0] == model.step_s([none])[0]  # near the limit fewer are drafted


def test_a_drafter_has_weights_and_a_cache_of_its_own() -> None:
    plain, drafted = pool(None).plan, pool().plan
    assert drafted.speculation is not None
    assert drafted.memory.kv_bytes_per_token == plain.memory.kv_bytes_per_token + drafted.speculation.kv_bytes_per_token()
    assert drafted.memory.bytes_of("draft") == drafted.speculation.weight_bytes() > 0


def test_jumps_and_steps_are_the_same_and_users_wait_for_each_other() -> None:
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 200, "output_tokens": {"kind": "uniform", "low": 20, "high": 60}}
    scenario = {"model": QWEN, "deployment": {**MAC, "speculative": DRAFTS}, "workload": {**load, "requests": 4}}
    jumped, stepped = (simulate(scenario, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.result == stepped.result
    for name, column in jumped.timeline.items():
        np.testing.assert_array_equal(stepped.timeline[name], column, err_msg=name)
    assert jumped.result["metrics"]["ttft_ms"]["max"] > 3 * jumped.result["metrics"]["ttft_ms"]["min"]


def test_flags_state_the_drafts() -> None:
    def read(command: str, stated: dict[str, Any] | None = None) -> Any:
        keys = {**dict.fromkeys(typed.key for typed in FLAGS.typed.values()), "speculative": stated}
        return reconcile(FLAGS, keys, parse_engine_args("mlx_lm", command), given=set()).get("speculative")

    assert read("mlx_lm.server --model m --draft-model mlx-community/Qwen2.5-0.5B-Instruct-4bit --num-draft-tokens 4") == {
        "method": "draft_model",
        "model": "mlx-community/Qwen2.5-0.5B-Instruct-4bit",
        "num_speculative_tokens": 4,
    }
    assert read("mlx_lm.server --model m --num-draft-tokens 4") is None
    assert read("mlx_lm.server --model m --num-draft-tokens 4", {"method": "draft_model", "model": "x"}) == {
        "method": "draft_model",
        "model": "x",
        "num_speculative_tokens": 4,
    }


def test_what_is_not_simulated_is_refused() -> None:
    with pytest.raises(InputError, match="MLX LM with mtp drafts is not modelled"):
        pool({**DRAFTS, "method": "mtp"})
    with pytest.raises(InputError, match="beside a quantized KV cache"):
        pool(kv_bits=8)
    with pytest.raises(InputError, match="drafts with caches that can be cut only"):
        prepared("google/gemma-3-27b-it", **MAC, speculative={"model": "google/gemma-3-1b-it", "acceptance": 0.5})
