"""Prompts and decodes in turns: exact runs, conservation of blocks, the rule's worked cases."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.block_trie import TrieBlocks
from engine_models.schedulers.alternating import AlternatingBatch, AlternatingRules, AlternatingScheduler
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, sharing

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int, int]
"""Arrival [s], prompt and output tokens, and the group whose first 100 tokens it shares (0: none)."""


def conserved(scheduler: AlternatingScheduler) -> None:
    """Every block is free, in the trie, or a row's own; the counters are those of the trie and the rows."""
    kv = scheduler.kv
    nodes = list(kv.nodes())
    held = [row.held for row in scheduler._rows.values()]
    assert kv.free_blocks + len(nodes) + sum(of.own for of in held) == kv.capacity_blocks
    assert kv.free_blocks >= 0
    assert kv.trie_blocks == len(nodes)
    assert kv.evictable_blocks == sum(not node.rows for node in nodes)
    assert sum(node.rows for node in nodes) == sum(len(of.path) for of in held)
    assert len(scheduler._running) <= scheduler.rules.max_batch_size
    assert len(scheduler._rows) <= scheduler.rules.handle_pool


class Served(Fed[AlternatingScheduler, AlternatingBatch]):
    """What became of requests: ends [s], the numbers of the batches that gave tokens, and the batches."""

    def __init__(
        self,
        rules: AlternatingRules,
        kv: TrieBlocks,
        asked: list[Asked],
        *,
        aggregate: bool = True,
        record: bool = False,
    ) -> None:
        scheduler = AlternatingScheduler(rules, kv, aggregate=aggregate, record_rows=record)
        super().__init__(scheduler, sharing(asked, 100), RecordedClock(CLOCK), AlternatingBatch, depth=2)

    def settled(self, batch: AlternatingBatch) -> None:
        conserved(self.scheduler)

    def kinds(self) -> list[str]:
        return [batch.kind for batch in self.batches]


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], list[Asked]]:
    """Small pools under pressure, long prompts among them."""
    rows = draw(st.sampled_from([2, 6, 40]))
    rules = {
        "max_batch_size": rows,
        "max_prefill_token_num": draw(st.sampled_from([64, 200, 1000])),
        "prefill_interval": draw(st.sampled_from([1, 4, 16, 40])),
        "ttft_policy": draw(st.sampled_from(["size", "fifo"])),
        "ttft_short_turns": draw(st.sampled_from([1, 3])),
        "ttft_aging_s": draw(st.sampled_from([0.05, 2.0])),
        "handle_pool": draw(st.sampled_from([rows, 1000])),
    }
    window = draw(st.sampled_from([0, 0, 0, 50]))
    kv = {
        "capacity_blocks": draw(st.sampled_from([60, 90, 1000])),
        "block_tokens": draw(st.sampled_from([8, 16])),
        "prefix_caching": not window and draw(st.booleans()),
        "window_tokens": window,
    }
    number, rate = draw(st.integers(1, 25)), draw(st.sampled_from([0.0, 0.02, 0.2]))
    asked = [
        (i * rate, draw(st.integers(1, 250)), draw(st.integers(1, 150)), draw(st.sampled_from([0, 1, 2])))
        for i in range(number)
    ]
    return rules, kv, asked


def assert_exact(rules: dict[str, Any], kv: dict[str, Any], asked: list[Asked]) -> None:
    """Runs give what steps give, and all tokens that were asked for."""
    jumped, stepped = (
        Served(AlternatingRules(**rules), TrieBlocks(**kv), asked, aggregate=aggregate)
        for aggregate in (True, False)
    )
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output, _ in asked]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.hit_tokens == stepped.scheduler.hit_tokens
    assert jumped.scheduler._decode_count == stepped.scheduler._decode_count
    assert jumped.scheduler.state()[:3] == (0, 0, 0)


@settings(max_examples=examples(40), derandomize=True)
@given(loads())
def test_runs_equal_steps_and_blocks_are_conserved(
    load: tuple[dict[str, Any], dict[str, Any], list[Asked]],
) -> None:
    assert_exact(*load)


@pytest.mark.parametrize("seed", range(6))
def test_many_rows_that_come_and_go(seed: int) -> None:
    """Memory for a part of the rows: many are preempted, some return within a step."""
    rng = random.Random(seed)
    rows = rng.choice([6, 40, 200])
    rules = {
        "max_batch_size": rows,
        "max_prefill_token_num": rng.choice([64, 200, 1000]),
        "prefill_interval": rng.choice([1, 4, 16, 40]),
        "handle_pool": rng.choice([rows, 1000]),
    }
    kv = {
        "capacity_blocks": rng.choice([100, 160, 300, 500]),
        "block_tokens": rng.choice([8, 16]),
        "prefix_caching": rng.random() < 0.5,
    }
    gap_s = rng.choice([0.0, 0.005, 0.02])
    asked = [
        (i * gap_s, rng.randint(1, 250), rng.randint(1, 150), rng.choice([0, 1, 2]))
        for i in range(rng.randint(30, 160))
    ]
    assert_exact(rules, kv, asked)
