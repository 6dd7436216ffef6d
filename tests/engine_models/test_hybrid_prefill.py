"""Prompts fused with decodes, kept sequences: exact runs, conservation of pages, timelines worked by hand from the source."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.forked_pages import ForkedPages
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.hybrid_prefill import HybridPrefillScheduler, HybridRules
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Runs = tuple[tuple[int, int, int], ...]
Asked = tuple[float, int, int, Runs]
"""Arrival [s], prompt and output tokens, and what the prompt is made of (nothing: nobody shares it)."""


class Served(Fed[HybridPrefillScheduler, Batch]):
    """What became of requests: ends [s], the numbers of the batches that gave tokens, and the batches."""

    def __init__(
        self,
        rules: dict[str, Any],
        kv: dict[str, Any],
        asked: list[Asked],
        *,
        aggregate: bool = False,
        record: bool = False,
    ) -> None:
        self.kv = ForkedPages(**kv)
        scheduler = HybridPrefillScheduler(HybridRules(**rules), self.kv, aggregate=aggregate, record_rows=record)
        seqs = [
            Sequence(index, prompt, output, at, runs=runs, shareable_tokens=prompt if runs else 0, output_shared=bool(runs))
            for index, (at, prompt, output, runs) in enumerate(asked)
        ]
        super().__init__(scheduler, seqs, RecordedClock(CLOCK), Batch)

    def settled(self, batch: Batch) -> None:
        kv, scheduler = self.kv, self.scheduler
        assert kv.free_blocks + kv.shared_pages() + kv.own_pages(scheduler._cached) == kv.capacity_blocks
        assert kv.free_blocks >= 0
        assert kv.recycling is None or len(kv.recycled) <= kv.recycling
        assert kv._kept_pages == sum(map(kv._own_pages, kv.recycled.values()))
        assert batch.tokens <= max(scheduler.rules.prefill_chunk_size, batch.decode_rows)
        assert len(scheduler.running) <= scheduler.rules.rows

    def hits(self) -> list[tuple[int, int]]:
        """Who found how many tokens."""
        return [(seq.index, found) for batch in self.batches for seq, found in batch.hits]


def rules_of(**changed: Any) -> dict[str, Any]:
    return {"max_num_sequence": 4, "max_total_sequence_length": 2000, "prefill_chunk_size": 1000, **changed}


def pages_of(**changed: Any) -> dict[str, Any]:
    return {"capacity_blocks": 126, "block_tokens": 16, "prefix_caching": True, "recycling": 4, **changed}


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], list[Asked]]:
    """Small pools under pressure, some of whose prompts begin alike or go on from each other."""
    total = draw(st.sampled_from([430, 700, 1500, 9000]))
    rules = {
        "max_num_sequence": draw(st.sampled_from([2, 5, 30])),
        "max_total_sequence_length": total,
        "prefill_chunk_size": draw(st.sampled_from([30, 64, 200, 1000])),
        "hybrid": draw(st.booleans()),
    }
    kv = {
        "capacity_blocks": -(-total // 16) + 1,
        "block_tokens": 16,
        "prefix_caching": draw(st.booleans()),
        "recycling": draw(st.sampled_from([0, 2, 5, None])),
    }
    number, gap_s = draw(st.integers(1, 25)), draw(st.sampled_from([0.0, 0.02, 0.2]))
    asked: list[Asked] = []
    for i in range(number):
        prompt, output = draw(st.integers(1, 250)), draw(st.integers(1, 150))
        common = min(draw(st.sampled_from([0, 0, 5, 16, 40, 100, 249])), prompt)
        group = draw(st.integers(1, 2))
        runs = ((group, 0, common), (100 + i, 0, prompt - common), (1000 + i, 0, output)) if common else ()
        asked.append((i * gap_s, prompt, output, runs))
    return rules, kv, asked


@settings(max_examples=examples(40), derandomize=True)
@given(loads())
def test_runs_equal_steps_and_pages_are_conserved(load: tuple[dict[str, Any], dict[str, Any], list[Asked]]) -> None:
    jumped, stepped = (Served(*load, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output, _ in load[2]]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.hit_tokens == stepped.scheduler.hit_tokens
    assert jumped.kv.free_blocks == stepped.kv.free_blocks
    assert list(jumped.kv.recycled) == [jumped.seqs[seq.index] for seq in stepped.kv.recycled]
    assert jumped.scheduler.state()[:2] == (0, 0)


def test_a_timeline_of_fused_prompts() -> None:
    """Chunk of 100. `GetRequestStateEntriesToPrefill` (batch_prefill_base.cc:73-79, 133-137, 164-205): decodes count one token
    each, the prompt that is too long is cut to what is left and stops the choice, the next goes on with it first, decodes come
    last."""
    asked: list[Asked] = [(0.0, 30, 5, ()), (0.001, 150, 3, ()), (0.002, 20, 2, ())]
    found = Served(rules_of(prefill_chunk_size=100), pages_of(), asked, record=True)
    assert found.rows() == [
        [(0, 30, 0)],
        [(1, 99, 0), (0, 1, 30)],
        [(1, 51, 99), (2, 20, 0), (0, 1, 31)],
        [(0, 1, 32), (1, 1, 150), (2, 1, 20)],
        [(0, 1, 33), (1, 1, 151)],
    ]


def test_a_timeline_of_prompts_that_pause_decodes() -> None:
    """prefill_mode chunked: the running rows are counted (line 75) and not appended (line 233)."""
    rules = rules_of(prefill_chunk_size=100, hybrid=False)
    found = Served(rules, pages_of(), [(0.0, 30, 3, ()), (0.001, 150, 2, ())], record=True)
    assert found.rows() == [[(0, 30, 0)], [(1, 99, 0)], [(1, 51, 99)], [(0, 1, 30), (1, 1, 150)], [(0, 1, 31)]]
    assert found.tokens[0] == [0, 3, 4]


def test_a_timeline_of_the_watermark_and_preemption() -> None:
    """Six pages of 16, 80 tokens. `HasPrefillSpace` (batch_prefill_base.cc:18-27): 2 + 2 pages and one for each of two rows are
    there, for a third of one page besides not. `CanDecode` (batch_decode.cc:206): two rows need two free pages whether they
    take them or not; with 33 tokens each nothing is free, so the last row goes (line 56), to the front of the queue, and comes
    back with its answer as prompt when the first has ended: 3 + 1 pages and one for each of the two."""
    asked: list[Asked] = [(0.0, 20, 20, ()), (0.0, 20, 18, ()), (0.0, 9, 1, ())]
    rules = rules_of(max_total_sequence_length=80)
    found = Served(rules, pages_of(capacity_blocks=6, recycling=0), asked, record=True)
    assert found.rows()[0] == [(0, 20, 0), (1, 20, 0)]
    assert found.rows()[1:14] == [[(0, 1, n), (1, 1, n)] for n in range(20, 33)]
    assert found.rows()[14:20] == [[(0, 1, n)] for n in range(33, 39)]
    assert found.rows()[20:22] == [[(1, 34, 0), (2, 9, 0)], [(1, 1, 34)]]
    assert [seq.preemptions for seq in found.seqs] == [0, 1, 0]


def test_room_for_eight_tokens_of_every_row_is_asked_for() -> None:
    """`HasPrefillSpace`: 40 + 50 tokens fit 100, 8 more of each of two rows do not; of 44 they do."""
    for prompt, together in ((50, 1), (44, 2)):
        asked: list[Asked] = [(0.0, 40, 3, ()), (0.0, prompt, 2, ())]
        found = Served(rules_of(max_total_sequence_length=100), pages_of(capacity_blocks=20, recycling=0), asked, record=True)
        assert len(found.rows()[0]) == together


def test_a_timeline_of_kept_sequences() -> None:
    """prefix_cache.cc:85-130: the next turn takes the ended sequence over in place; another with the same beginning is forked
    from it, and copies a page that it shares in part; who asks for less than 0.9 of a kept sequence is forked, not given it."""
    chat: Runs = ((1, 0, 40), (11, 0, 10))
    asked: list[Asked] = [
        (0.0, 40, 10, chat),
        (1.0, 70, 5, ((1, 0, 40), (11, 0, 10), (12, 0, 20), (13, 0, 5))),
        (2.0, 60, 5, ((1, 0, 40), (14, 0, 20), (15, 0, 5))),
    ]
    found = Served(rules_of(), pages_of(), asked)
    # 40 + 9 tokens are in the cache: the last of an answer never is (action_commons.cc:296)
    assert found.hits() == [(1, 49), (2, 40)]
    # 74 tokens of the second turn, 64 of the third, of which 2 pages are shared
    assert list(found.kv.recycled) == [found.seqs[1], found.seqs[2]]
    assert found.kv.shared_pages() == 2
    assert found.kv.capacity_blocks - found.kv.free_blocks == 5 + 4 - 2


def test_ended_sequences_are_kept_up_to_a_number_and_make_room() -> None:
    asked: list[Asked] = [(i * 1.0, 100, 2, ((50 + i, 0, 100), (60 + i, 0, 2))) for i in range(6)]
    kept = Served(rules_of(), pages_of(recycling=2), asked).kv
    assert [seq.index for seq in kept.recycled] == [4, 5]
    last: Asked = (10.0, 1700, 1, ())
    room = Served(rules_of(prefill_chunk_size=1800), pages_of(recycling=None), [*asked, last]).kv
    assert [seq.index for seq in room.recycled] == [4, 5, 6]  # 1,700 + 8 and two of 101 tokens are 2,000 at most
    assert not Served(rules_of(), pages_of(recycling=0), asked).kv.recycled


@pytest.mark.parametrize(("rows", "together"), [(4, 4), (1, 1)])
def test_rows_are_bounded(rows: int, together: int) -> None:
    found = Served(rules_of(max_num_sequence=rows), pages_of(), [(0.0, 10, 3, ())] * 6)
    assert max(len(batch.prefill) + batch.decode_rows for batch in found.batches) == together
