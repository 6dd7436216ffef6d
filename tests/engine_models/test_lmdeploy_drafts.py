"""Drafts in LMDeploy's PyTorch engine: timelines worked by hand from its source, memory, flags and refusals.

Lines are those of InternLM/lmdeploy at 1263d5cd, below `lmdeploy/pytorch`.
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.engines.known import parse_engine_args
from engine_models.engines.lmdeploy_flags import FLAGS
from engine_models.flags import reconcile
from engine_models.memory.block_trie import TrieBlocks
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.alternating import AlternatingBatch, AlternatingRules, AlternatingScheduler
from engine_models.schedulers.alternating_drafted import DraftedAlternatingScheduler
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.run import simulate
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import feed, sharing, token_steps
from tests.engine_models.test_alternating import CLOCK, conserved
from tests.engine_models.test_declarations import prepared


class Drafted:
    """What became of requests, given as (arrival [s], prompt, answer, group that shares the first `shared` tokens)."""

    def __init__(
        self,
        rules: AlternatingRules,
        kv: TrieBlocks,
        asked: list[tuple[float, int, int, int]],
        drafts: int,
        accepted: float = 1.0,
        shared: int = 100,
    ) -> None:
        self.scheduler = DraftedAlternatingScheduler(rules, kv, drafts=drafts)
        self.batches: list[AlternatingBatch] = []
        self.seqs = sharing(asked, shared)
        streams = AcceptanceStreams(tuple(accepted**i for i in range(1, drafts + 1)), key=3)
        for seq in self.seqs:
            seq.acceptance = streams.of(seq.index)
        replica = Replica([self.scheduler], RecordedClock(CLOCK), depth=2, on_batch=self._settled)
        feed(replica, self.seqs, 0.5)
        self.scheduler.close()
        self.tokens = token_steps(self.seqs)

    def _settled(self, batch: Batch) -> None:
        assert isinstance(batch, AlternatingBatch)
        self.batches.append(batch)
        conserved(self.scheduler)

    def served(self) -> list[tuple[str, int]]:
        """Kinds and tokens of all steps."""
        return [(batch.kind, batch.tokens) for batch in self.batches]


# Timelines ------------------------------------------------------------------------------------------------------


def test_a_row_gets_what_it_accepts_and_holds_memory_for_what_is_in_flight() -> None:
    """Three drafts, all accepted; blocks of 4 tokens, two steps ahead (`strategies/ar_spec/engine.py` 15-30).

    Admission holds 10 + 2 x 4 tokens (5 blocks). A step needs 2 x 3 + 1 tokens beyond those known, drafts among them
    (`paging/scheduler.py` 873): the first 10 + 7 (what the prompt yields is not known); the second 11 + 3 + 7 = 21, and takes
    11 + 3 + 8 = 22 (6 blocks); the third, in vain, 15 + 3 + 7, and takes 26 (7 blocks).
    """
    done = Drafted(AlternatingRules(8, 64, prefill_interval=2), TrieBlocks(20, 4, prefix_caching=False), [(0, 10, 9, 0)], 3)
    assert done.tokens == [[0, 1, 1, 1, 1, 2, 2, 2, 2]]
    assert done.served() == [("prefill", 10), ("decode", 4), ("decode", 4), ("decode", 4)]
    assert [20 - batch.free_blocks for batch in done.batches] == [5, 5, 6, 7]
    assert (done.scheduler.verifications, done.scheduler.accepted_drafts) == (2, 6)


def test_who_lacks_a_block_loses_what_is_in_flight_and_its_blocks_to_a_step_in_vain() -> None:
    """One draft, accepted; 7 blocks of 4 tokens, two steps ahead; two prompts of 6 tokens, answers of 8.

    Step 3 needs 9 + 1 + 3 = 13 tokens a row (4 blocks). The later row is asked first and takes the last block (`schedule_running`
    goes from the end); the first goes back to the queue without the two tokens of step 2, with its blocks. Step 5 verifies the
    second row in vain (its end is in flight), needs 13 + 1 + 3 = 17 and takes the blocks of the one that waits, which
    then computes its nine tokens again.
    """
    rules, kv = AlternatingRules(8, 64, prefill_interval=2), TrieBlocks(7, 4, prefix_caching=False)
    done = Drafted(rules, kv, [(0, 6, 8, 0), (0, 6, 8, 0)], 1)
    assert done.tokens == [[0, 1, 1, 6, 7, 7, 8, 8], [0, 1, 1, 2, 2, 3, 3, 4]]
    assert [batch.tokens for batch in done.batches] == [12, 4, 4, 2, 2, 2, 9, 2, 2, 2]
    assert [seq.preemptions for seq in done.seqs] == [1, 0]


def test_the_block_before_the_last_is_computed_again() -> None:
    """`get_prefix_cache_max_match_step` (`messages.py` 934): 13 tokens have three whole blocks of 4, of which two are found; of a
    prompt that shares less, all that it shares."""
    rules = AlternatingRules(8, 64, prefill_interval=2)
    asked = [(0.0, 13, 2, 1), (1.0, 13, 2, 1)]
    for shared, found in ((13, 8), (9, 8), (5, 4)):
        done = Drafted(rules, TrieBlocks(40, 4, prefix_caching=True), asked, 2, shared=shared)
        assert [hit for batch in done.batches for _, hit in batch.hits] == [found]


@settings(max_examples=examples(60), deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 120), st.integers(1, 60), st.integers(0, 2)), min_size=1, max_size=16),
    st.integers(1, 4),
    st.floats(0, 1),
    st.sampled_from([40, 60, 1000]),
    st.booleans(),
    st.sampled_from([2, 16]),
)
def test_every_request_gets_its_tokens_and_gives_its_memory_back(
    drawn: list[tuple[int, int, int, int]], drafts: int, accepted: float, blocks: int, caching: bool, interval: int
) -> None:
    asked = [(at / 100, prompt, output, group) for at, prompt, output, group in sorted(drawn)]
    rules, kv = AlternatingRules(6, 100, prefill_interval=interval), TrieBlocks(blocks, 8, prefix_caching=caching)
    done = Drafted(rules, kv, asked, drafts, accepted)
    assert [len(tokens) for tokens in done.tokens] == [output for _, _, output, _ in asked]
    assert all(tokens == sorted(tokens) for tokens in done.tokens)
    assert done.scheduler.state()[:3] == (0, 0, 0)
    assert done.scheduler.accepted_drafts <= done.scheduler.verified_drafts


def test_drafts_that_are_never_accepted_leave_the_tokens_where_they_were() -> None:
    asked = [(i / 50, 5 + 13 * i, 30, 0) for i in range(9)]
    rules = AlternatingRules(6, 64)
    plain = AlternatingScheduler(rules, TrieBlocks(1000, 8, prefix_caching=False), aggregate=False)
    seqs = [Sequence(index, prompt, output, at) for index, (at, prompt, output, _) in enumerate(asked)]
    feed(Replica([plain], RecordedClock(CLOCK | {"c": 0.0, "d": 0.0}), depth=2), seqs, 0.5)
    plain.close()
    drafted = DraftedAlternatingScheduler(rules, TrieBlocks(1000, 8, prefix_caching=False), drafts=2)
    others = [Sequence(index, prompt, output, at) for index, (at, prompt, output, _) in enumerate(asked)]
    feed(Replica([drafted], RecordedClock(CLOCK | {"c": 0.0, "d": 0.0}), depth=2), others, 0.5)
    drafted.close()
    assert token_steps(others) == token_steps(seqs)


# Pools ----------------------------------------------------------------------------------------------------------


DRAFTS = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}


def test_the_drafter_takes_memory_and_is_whole_on_every_rank() -> None:
    engine = {"engine": "lmdeploy", "engine_args": {"backend": "pytorch"}, "tensor_parallel": 2}
    drafted, plain = (prepared("llama-3.1-8b", speculative=s, **engine).plan for s in (DRAFTS, None))
    assert drafted.speculation is not None
    assert drafted.speculation.tensor_parallel == 1
    assert drafted.memory.bytes_of("draft") == drafted.speculation.weight_bytes() > 0
    assert drafted.memory.kv_bytes_per_token == plain.memory.kv_bytes_per_token + drafted.speculation.kv_bytes_per_token()
    assert drafted.limits.kv_tokens < plain.limits.kv_tokens
    tight = prepared("llama-3.1-8b", speculative=DRAFTS, **{**engine, "tensor_parallel": 1, "hardware": "l4-24gb"}).plan.limits
    assert tight.row_tokens == tight.kv_tokens - (3 + 16 * 4)  # room for the drafts of 16 steps (prefill_interval)


def test_flags_state_the_drafts() -> None:
    def read(command: str, stated: dict[str, Any] | None = None) -> Any:
        keys = {**dict.fromkeys(typed.key for typed in FLAGS.typed.values()), "speculative": stated}
        return reconcile(FLAGS, keys, parse_engine_args("lmdeploy", command), given=set()).get("speculative")

    pasted = "lmdeploy serve api_server m --backend pytorch --speculative-algorithm eagle3 --speculative-draft-model d"
    assert read(f"{pasted} --speculative-num-draft-tokens 3") == {"method": "eagle3", "num_speculative_tokens": 3, "model": "d"}
    assert read("--backend pytorch --speculative-algorithm deepseek_mtp") == {"method": "mtp", "num_speculative_tokens": 1}
    assert read("--backend pytorch") is None
    with pytest.raises(InputError, match="cannot be 'medusa'"):
        read("--backend pytorch --speculative-algorithm medusa")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"speculative": DRAFTS}, "TurboMind, which LMDeploy takes .* has no speculative decoding"),
        ({"speculative": {**DRAFTS, "method": "ngram"}, "engine_args": {"backend": "pytorch"}}, "LMDeploy with ngram drafts"),
        ({"speculative": {**DRAFTS, "eagle_topk": 2}, "engine_args": {"backend": "pytorch"}}, "LMDeploy drafts chains"),
    ],
)
def test_what_it_does_not_draft_is_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepared("llama-3.1-8b", engine="lmdeploy", **keys)


def test_drafts_that_are_accepted_make_a_run_faster() -> None:
    load = {"arrivals": {"kind": "poisson", "rate": 4}, "prompt_tokens": 200, "output_tokens": 80, "requests": 40}
    deployment = {"engine": "lmdeploy", "hardware": "h100-sxm-80gb", "engine_args": {"backend": "pytorch"}}
    scenario: dict[str, Any] = {"model": "llama-3.1-8b", "workload": load}
    tpot_ms = {}
    for accepted in (None, 0.0, 0.9):
        drafts = {"speculative": {**DRAFTS, "acceptance": accepted}} if accepted is not None else {}
        run = simulate(load_scenario({**scenario, "deployment": {**deployment, **drafts}}))
        tpot_ms[accepted] = run.result["metrics"]["tpot_ms"]["mean"]
    assert tpot_ms[0.9] < 0.6 * tpot_ms[None] < tpot_ms[None] < tpot_ms[0.0]
