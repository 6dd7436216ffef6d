"""One pass over all who could run: exact runs, conservation of blocks, the rule's worked cases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.sector_kv import LayerGroup, SectorKV, SectorPool
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.first_fit import FirstFitBatch, FirstFitRules, FirstFitScheduler
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, sharing

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int, int]
"""Arrival [s], prompt and output tokens, and the group whose first 100 tokens it shares (0: none)."""
ROOMY = {
    "max_batch_tokens": 2048,
    "max_requests_per_batch": 64,
    "max_tokens_read": 1 << 20,
    "max_decode_fast_path_length": 512,
    "safety_margin_share": 0.15,
}
ALL_SEE_ALL = (LayerGroup(1),)


def conserved(scheduler: FirstFitScheduler) -> None:
    """Every block is free, cached, or held by as many rows as are counted."""
    kv = scheduler.kv
    rows = list(scheduler._rows.values())
    held: dict[tuple[int, int], int] = {}
    for row in rows:
        for group, table in enumerate(row.held.tables):
            for block in table:
                held[group, block] = held.get((group, block), 0) + 1
    assert {block: count for (_, block), count in held.items() if count > 1} == kv._holders
    taken = [sum(1 for of, _ in held if of == group) for group in range(len(kv.groups))]
    sectors = len(kv.pool.free_sectors)
    for group, layers in enumerate(kv.groups):
        cached = len(kv.cached) if not group else 0
        blocks = taken[group] + kv.pool.loose[group] + cached
        assert blocks % layers.blocks_per_sector == 0
        sectors += blocks // layers.blocks_per_sector
    assert sectors == kv.pool.sectors
    assert not set(kv.cached) & {block for _, block in held}


class Served(Fed[FirstFitScheduler, FirstFitBatch]):
    """What became of requests: ends [s], the numbers of the batches that gave tokens, and the batches."""

    def __init__(
        self,
        rules: dict[str, Any],
        kv: dict[str, Any],
        asked: list[Asked],
        *,
        depth: int = 1,
        aggregate: bool = True,
        record: bool = False,
        host_sectors: int = 0,
    ) -> None:
        blocks = SectorKV(**kv)
        host = SectorPool(host_sectors, blocks.pool.sizes) if host_sectors else None
        scheduler = FirstFitScheduler(FirstFitRules(**rules), blocks, host, aggregate=aggregate, record_rows=record)
        super().__init__(scheduler, sharing(asked, 100), RecordedClock(CLOCK), FirstFitBatch, depth=depth)

    def settled(self, batch: FirstFitBatch) -> None:
        conserved(self.scheduler)


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], list[Asked], int]:
    """Small pools under pressure, windows and several groups among them."""
    budget = draw(st.sampled_from([32, 200, 2048]))
    rows = draw(st.sampled_from([3, 8, 100]))
    groups = draw(
        st.sampled_from([ALL_SEE_ALL, ALL_SEE_ALL, (LayerGroup(2), LayerGroup(1, 50)), (LayerGroup(1, 50),)])
    )
    sectors = draw(st.sampled_from([60, 90, 400]))
    page = draw(st.sampled_from([8, 16]))
    plain = groups == ALL_SEE_ALL
    rules = {
        "max_batch_tokens": budget,
        "max_requests_per_batch": min(rows, budget),
        "max_tokens_read": page * sectors * max(group.blocks_per_sector for group in groups),
        "max_decode_fast_path_length": draw(st.sampled_from([0, 128, 512])) if plain else 0,
        "safety_margin_share": draw(st.sampled_from([0.0, 0.15, 0.5])),
        "prefill_first": draw(st.booleans()),
        "read_window_tokens": groups[0].window_tokens if len(groups) == 1 else None,
    }
    kv = {"sectors": sectors, "block_tokens": page, "groups": groups, "sharing": draw(st.booleans())}
    number, rate = draw(st.integers(1, 25)), draw(st.sampled_from([0.0, 0.02, 0.2]))
    asked = [
        (i * rate, draw(st.integers(1, 250)), draw(st.integers(1, 150)), draw(st.sampled_from([0, 1, 2])))
        for i in range(number)
    ]
    return rules, kv, asked, draw(st.sampled_from([1, 2]))


def assert_exact(load: tuple[dict[str, Any], dict[str, Any], list[Asked], int]) -> None:
    """Runs give what steps give, and all tokens that were asked for."""
    rules, kv, asked, depth = load
    jumped, stepped = (
        Served(rules, kv, asked, depth=depth, aggregate=aggregate) for aggregate in (True, False)
    )
    assert jumped.tokens == stepped.tokens
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in stepped.log.records().items():
        assert (jumped.log.records()[name] == column).all(), name
    for seq, tokens, (_, _, output, _) in zip(stepped.seqs, stepped.tokens, asked, strict=True):
        assert len(tokens) == output
        assert seq.state == "finished"
    assert stepped.scheduler.kv.free_share() == 1.0 or stepped.scheduler.kv.cached


@given(loads())
@settings(max_examples=examples(40))
def test_runs_equal_steps_and_blocks_are_conserved(
    load: tuple[dict[str, Any], dict[str, Any], list[Asked], int],
) -> None:
    assert_exact(load)


@pytest.mark.slow
@given(loads())
@settings(max_examples=examples(1500))
def test_runs_equal_steps_in_many_pools(
    load: tuple[dict[str, Any], dict[str, Any], list[Asked], int],
) -> None:
    assert_exact(load)


@given(loads())
@settings(max_examples=20)
def test_memory_on_the_host_loses_no_token(
    load: tuple[dict[str, Any], dict[str, Any], list[Asked], int],
) -> None:
    rules, kv, asked, depth = load
    served = Served(rules, kv, asked, depth=depth, host_sectors=30)
    assert [len(tokens) for tokens in served.tokens] == [output for _, _, output, _ in asked]
    assert served.scheduler.host is not None
    served.scheduler.host.gather()
    assert len(served.scheduler.host.free_sectors) == 30


def test_who_does_not_fit_is_passed_over() -> None:
    """Of 20 blocks of 16 the first takes 10; the second, of 15, does not fit, the third, of 5, goes first."""
    kv = {"sectors": 20, "block_tokens": 16, "groups": ALL_SEE_ALL, "sharing": False}
    asked = [(0.0, 150, 8, 0), (0.0, 230, 8, 0), (0.0, 70, 8, 0)]
    served = Served({**ROOMY, "safety_margin_share": 0.0}, kv, asked, record=True)
    first = served.batches[0].rows
    assert first is not None
    assert [(seq.index, tokens) for seq, tokens, _ in first] == [(0, 150), (2, 70)]
    assert served.ends[2] < served.ends[1]


def test_below_the_margin_nobody_is_admitted_beside_others() -> None:
    """12 of 20 blocks are held: with a margin of half the second waits for the first's end, without it does not."""
    kv = {"sectors": 20, "block_tokens": 16, "groups": ALL_SEE_ALL, "sharing": False}
    asked = [(0.0, 180, 8, 0), (0.001, 30, 8, 0)]
    waits = [
        Served({**ROOMY, "safety_margin_share": margin}, kv, asked).seqs[1].first_scheduled_s
        for margin in (0.5, 0.1)
    ]
    assert waits[0] > 7 * 0.008 > waits[1]


def test_the_last_starved_row_computes_everything_anew() -> None:
    """Two rows of 80 tokens fill ten blocks; both need an eleventh: the second gives its five back, and nobody is let in."""
    kv = {"sectors": 10, "block_tokens": 16, "groups": ALL_SEE_ALL, "sharing": False}
    asked = [(0.0, 79, 20, 0), (0.0, 79, 20, 0), (0.0, 10, 4, 0)]
    served = Served({**ROOMY, "safety_margin_share": 0.0}, kv, asked, record=True)
    lost = next(batch for batch in served.batches if batch.preempted)
    assert [seq.index for seq in lost.preempted] == [1]
    assert lost.stopped
    assert lost.rows is not None
    assert [(seq.index, before) for seq, _, before in lost.rows] == [(0, 80)]
    assert [seq.index for seq in lost.waiting] == [2, 1]
    again = next(
        rows for batch in served.batches[lost.number + 1 :] if (rows := batch.rows) and len(rows) > 1
    )
    assert (again[-1][0].index, again[-1][1]) == (1, 81)  # the prompt and the two tokens that it had
    assert served.seqs[1].preemptions == 1


def test_a_step_reads_no_more_cache_than_its_index_holds() -> None:
    """Off the fast path a row that does not fit what is left of the index is passed over."""
    kv = {"sectors": 200, "block_tokens": 16, "groups": ALL_SEE_ALL, "sharing": False}
    asked = [(0.0, 100, 4, 0), (0.0, 100, 4, 0), (0.0, 20, 4, 0)]
    rules = {**ROOMY, "max_decode_fast_path_length": 0, "max_tokens_read": 130}
    second = Served(rules, kv, asked, record=True).batches[1].rows
    assert second is not None
    assert [seq.index for seq, _, _ in second] == [0, 2]


def test_rows_shorter_than_the_window_read_what_they_have() -> None:
    """Decodes of 100 and 10 cached tokens read 74 with a window of 64: the 40 of the cut prompt still fit in 139."""
    kv = {"sectors": 200, "block_tokens": 16, "groups": (LayerGroup(1, 64),), "sharing": False}
    rules = {**ROOMY, "max_batch_tokens": 150, "max_decode_fast_path_length": 0, "max_tokens_read": 139}
    served = Served({**rules, "read_window_tokens": 64}, kv, [(0.0, n, 4, 0) for n in (100, 10, 70)], record=True)
    second = served.batches[1].rows
    assert second is not None
    assert [(seq.index, before) for seq, _, before in second] == [(0, 100), (1, 10), (2, 40)]


def test_prompts_are_shared_from_the_step_after_the_one_that_computed_them() -> None:
    """Two requests of one batch compute the same 100 tokens, and then hold the same six blocks; the third finds them."""
    kv = {"sectors": 100, "block_tokens": 16, "groups": ALL_SEE_ALL, "sharing": True}
    served = Served(ROOMY, kv, [(0.0, 110, 30, 1), (0.0, 110, 30, 1), (0.05, 110, 30, 1)], record=True)
    assert not served.batches[0].hits
    free, _ = served.batches[0].after
    assert free == [100 - 2 * 7 + 6]
    hits = [(seq.index, found) for batch in served.batches for seq, found in batch.hits]
    assert hits == [(2, 96)]


def test_a_row_whose_last_token_is_in_flight_ends_once() -> None:
    """The first's last token is in flight when it needs a seventh block for nothing: the second gives its six back for it."""
    kv = {"sectors": 12, "block_tokens": 16, "groups": ALL_SEE_ALL, "sharing": False}
    asked = [(0.0, 79, 18, 0), (0.0, 79, 40, 0)]
    served = Served({**ROOMY, "safety_margin_share": 0.0}, kv, asked, depth=2)
    assert [len(tokens) for tokens in served.tokens] == [18, 40]
    assert served.seqs[1].preemptions == 1


def test_who_leaves_when_the_last_token_is_two_steps_back_ends_by_himself() -> None:
    kv = SectorKV(sectors=40, block_tokens=16, groups=ALL_SEE_ALL, sharing=False)
    scheduler = FirstFitScheduler(FirstFitRules(**ROOMY), kv)
    first, other = Sequence(0, 20, 1, 0.0), Sequence(1, 20, 9, 0.0)
    scheduler.add(first)
    scheduler.add(other)
    batches = [scheduler.schedule(0.0), scheduler.schedule(0.1)]  # the second is formed while the first is under way
    assert [batch.finishing for batch in batches if batch is not None] == [[first], []]
    assert not scheduler.cancel(first)
    assert scheduler.cancel(other)
    assert [scheduler.settle(batch) for batch in batches if batch is not None] == [[first], []]
