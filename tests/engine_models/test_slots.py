"""Slots: exact runs, conservation of cells, and the rule's worked cases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.radix import Content
from engine_models.memory.whole_prompts import WholePrompts, alike
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.slots import SlotBatch, SlotRules, SlotScheduler, Wish, padded
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, sharing

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
TICK = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}
Asked = tuple[float, int, int, int]
"""Arrival [s], prompt and output tokens, and the group whose first 60 tokens it shares (0: none)."""


def conserved(scheduler: SlotScheduler) -> None:
    """Cells are those of the slots, within the pool or each slot's own; a slot in use has one request."""
    rules = scheduler.rules
    assert scheduler._cells == sum(slot.cells for slot in scheduler.slots)
    assert all(0 <= slot.cells <= slot.tokens <= rules.slot_tokens for slot in scheduler.slots)
    if rules.pool_cells:
        assert scheduler._cells <= rules.pool_cells
    assert scheduler._busy == sum(slot.row is not None for slot in scheduler.slots)
    waiting, _, held, total = scheduler.state()[1], *scheduler.state()[1:]
    assert held <= total
    assert waiting + scheduler._busy == len(scheduler._rows)
    prompts = scheduler.prompts
    if prompts is not None:
        assert prompts.tokens * prompts.token_bytes <= prompts.limit_bytes
        assert prompts.tokens == sum(content.length for content in prompts._entries.values())


class Served(Fed[SlotScheduler, SlotBatch]):
    """What became of requests: ends [s], how, the numbers of the batches that gave tokens, and the batches."""

    def __init__(
        self,
        rules: SlotRules,
        asked: list[Asked],
        *,
        ram_tokens: int = 0,
        clock: dict[str, float] = TICK,
        aggregate: bool = True,
        record: bool = False,
    ) -> None:
        prompts = WholePrompts(ram_tokens, 1) if ram_tokens else None
        scheduler = SlotScheduler(rules, prompts, aggregate=aggregate, record_rows=record)
        super().__init__(scheduler, sharing(asked, 60), RecordedClock(clock), SlotBatch, pace_s=40)

    def settled(self, batch: SlotBatch) -> None:
        conserved(self.scheduler)

    def parts(self, number: int) -> list[list[tuple[int, int, int, int]]]:
        """Sub-batches of a recorded iteration."""
        return [part for call in self.batches[number].calls if call.ok for part in call.parts]

    def slots(self) -> dict[int, int]:
        """The slot that each request got."""
        return {
            task.row.seq.index: task.slot
            for batch in self.batches
            for task in batch.tasks
            if task.slot is not None
        }


@st.composite
def loads(draw: st.DrawFn) -> tuple[SlotRules, list[Asked], int]:
    """Few slots under pressure, pools that run full, shifts, cached prompts."""
    slots = draw(st.sampled_from([1, 2, 3, 6]))
    context = draw(st.sampled_from([256, 512]))
    pool = draw(st.sampled_from([0, 0, context]))
    rules = SlotRules(
        n_parallel=slots,
        slot_tokens=context,
        pool_cells=pool,
        n_batch=draw(st.sampled_from([32, 100, 2048])),
        n_ubatch=draw(st.sampled_from([16, 512])),
        cont_batching=draw(st.sampled_from([True, True, False])),
        slot_prompt_similarity=draw(st.sampled_from([0.0, 0.1, 0.5])),
        cache_reuse=draw(st.sampled_from([0, 8])),
        rolls_back=draw(st.sampled_from([True, True, False])),
        context_shift=draw(st.sampled_from([False, False, True])),
        n_keep=draw(st.sampled_from([0, 16, -1])),
    )
    number, gap = draw(st.integers(1, 20)), draw(st.sampled_from([0.0, 1.0, 7.0, 40.0]))
    asked = [
        (
            i // 2 * gap,
            draw(st.integers(1, 250)),
            draw(st.sampled_from([1, 20, 20, 150])),
            draw(st.sampled_from([0, 1, 2])),
        )
        for i in range(number)
    ]
    return rules, asked, draw(st.sampled_from([0, 400, 10_000]))


@settings(max_examples=examples(120))
@given(loads())
def test_runs_equal_steps_and_cells_are_conserved(load: tuple[SlotRules, list[Asked], int]) -> None:
    """Jumps give the same tokens at the same times; every request ends with all its tokens, or as slot or pool end it."""
    rules, asked, ram_tokens = load
    runs = [
        Served(rules, asked, ram_tokens=ram_tokens, clock=CLOCK, aggregate=aggregate)
        for aggregate in (True, False)
    ]
    assert runs[0].ends == runs[1].ends
    assert runs[0].tokens == runs[1].tokens
    assert list(runs[0].log.end_s) == list(runs[1].log.end_s)
    for seq, tokens in zip(runs[0].seqs, runs[0].tokens, strict=True):
        output = seq.final_length - seq.prompt_tokens
        if seq.state == "dropped":
            assert seq.prompt_tokens >= rules.slot_tokens or rules.pool_cells
        elif rules.context_shift:
            assert len(tokens) == output
        else:
            assert len(tokens) == min(output, rules.slot_tokens - seq.prompt_tokens)
    scheduler = runs[0].scheduler
    assert not scheduler.has_work()
    assert scheduler.state()[:3] == (0, 0, 0)


def test_a_long_prompt_leaves_nothing_to_those_behind_it() -> None:
    """Slot 0's 250 tokens fill two batches of 100 and half of the third; slot 1 begins there."""
    run = Served(SlotRules(2, 512, n_batch=100), [(0, 250, 2, 0), (0, 40, 2, 0)], record=True)
    served = [[(e.slot.index, e.tokens) for e in batch.entries] for batch in run.batches[:4]]
    assert served == [[(0, 100)], [(0, 100)], [(0, 50), (1, 40)], [(0, 1), (1, 1)]]
    assert run.tokens == [[2, 3], [2, 3]]


def test_split_slots_share_a_sub_batch_only_with_their_next() -> None:
    """A row beside a prompt of the next slot makes a sub-batch of one token each; slots 0 and 2 never share one."""
    rules = SlotRules(3, 512, n_ubatch=16)
    run = Served(rules, [(0, 5, 9, 0), (1, 5, 4, 0), (2, 40, 9, 0)], record=True)
    assert run.parts(2) == [
        [(0, 1, 6, 1), (1, 1, 5, 1), (2, 1, 0, 0)],
        [(2, 16, 1, 0)],
        [(2, 16, 17, 0)],
        [(2, 7, 33, 1)],
    ]
    assert run.parts(6) == [[(0, 1, 10, 1)], [(2, 1, 43, 1)]]  # slot 1 has ended


def test_a_pool_is_cut_in_order() -> None:
    rules = SlotRules(2, 512, pool_cells=512, n_ubatch=16)
    run = Served(rules, [(0, 5, 9, 0), (0, 5, 2, 0), (2, 40, 9, 0)], record=True)
    assert run.parts(0) == [[(0, 5, 0, 1), (1, 5, 0, 1)]]
    assert [[entry[:2] for entry in part] for part in run.parts(2)] == [
        [(0, 1), (1, 15)],
        [(1, 16)],
        [(1, 9)],
    ]


def test_attention_reads_the_pool_or_the_longest_slot() -> None:
    """300 and 10 tokens: a pool is read to cell 310, of split slots the longer's 300; 256 cells at once."""
    asked = [(0.0, 300, 5, 0), (0.0, 10, 5, 0)]
    pool = Served(SlotRules(2, 1024, pool_cells=1024), asked, aggregate=False)
    split = Served(SlotRules(2, 1024), asked, aggregate=False)
    alone = Served(SlotRules(2, 1024), asked[1:], aggregate=False)
    assert [run.batches[1].parts[0].pool_cells for run in (pool, split, alone)] == [512, 512, 256]
    assert (padded(0), padded(256), padded(257)) == (256, 256, 512)
    many = Served(SlotRules(4, 1024, pool_cells=1024), [(0.0, 200, 5, 0)] * 4, aggregate=False)
    apart = Served(SlotRules(4, 1024), [(0.0, 200, 5, 0)] * 4, aggregate=False)
    assert [run.batches[1].parts[0].pool_cells for run in (many, apart)] == [1024, 256]


def test_a_prompt_goes_to_the_slot_that_holds_most_of_it() -> None:
    """Groups 1 and 2 end in slots 0 and 1; group 2's next prompt takes slot 1 and computes what it lacks."""
    asked = [(0.0, 100, 2, 1), (0.0, 100, 4, 2), (20.0, 100, 2, 2), (30.0, 100, 2, 3)]
    run = Served(SlotRules(2, 512), asked, record=True)
    assert run.slots() == {0: 0, 1: 1, 2: 1, 3: 0}  # the last finds nothing, and the slot idle longest is 0
    assert [seq.first_hit_tokens for seq in run.seqs] == [0, 0, 60, 0]
    dull = Served(SlotRules(2, 512, slot_prompt_similarity=0.6), asked, record=True)
    assert dull.slots()[2] == 0  # 60 of 100 are not more than 0.6
    assert dull.seqs[2].first_hit_tokens == 0


def test_two_slots_that_free_at_once_bring_two_deferred_requests_in_turned_order() -> None:
    """Each goes to the front of the queue: the second comes first, also where they arrive within a jump."""
    asked = [(0.0, 10, 30, 0), (0.0, 10, 30, 0), (5.0, 60, 2, 0), (6.0, 60, 2, 0)]
    for aggregate in (True, False):
        run = Served(SlotRules(2, 512, n_batch=64), asked, aggregate=aggregate)
        assert [seq.emissions[0] for seq in run.seqs[2:]] == [31, 30]


def test_a_full_slot_ends_its_answer_or_shifts() -> None:
    """Prompt and answer come to 256 at the 56th token; with shift 127 of 255 tokens go, and all 120 come."""
    asked = [(0.0, 200, 120, 0)]
    assert len(Served(SlotRules(1, 256), asked).tokens[0]) == 56
    shifted = Served(SlotRules(1, 256, context_shift=True, n_keep=16), asked, record=True)
    assert len(shifted.tokens[0]) == 120
    shifts = [(number, shift[2:]) for number, batch in enumerate(shifted.batches) for shift in batch.shifts]
    assert shifts == [(56, (16, 119))]  # (255 - 16) // 2


def test_a_pool_without_room_empties_idle_slots_then_fails_all() -> None:
    """The idle slot's 103 cells go first; when 256 cells are full with two requests, both fail."""
    rules = SlotRules(3, 256, pool_cells=256)
    run = Served(rules, [(0.0, 100, 4, 0), (10.0, 60, 200, 0), (10.0, 60, 200, 0)], record=True)
    emptied = [call.emptied for batch in run.batches for call in batch.calls if call.emptied is not None]
    assert emptied == [0]
    assert [seq.state for seq in run.seqs] == ["finished", "dropped", "dropped"]
    assert len(run.tokens[1]) == len(run.tokens[2]) == 256 // 2 - 60 + 1
    assert all(slot.tokens == 0 for slot in run.scheduler.slots)
    tries = [call.n_batch for call in run.batches[-1].calls]
    assert tries == [2048, 1024, 512, 256, 128, 64, 32, 16, 8, 4, 2, 1]


def test_a_batch_is_halved_where_the_rest_of_it_fits() -> None:
    """230 + 26 cells: the second prompt's 60 tokens come in 16, 8 and 2, then no more; the first has its token by then."""
    run = Served(
        SlotRules(2, 256, pool_cells=256, n_batch=64), [(0.0, 230, 1, 0), (0.0, 60, 3, 0)], record=True
    )
    assert run.seqs[0].state == "finished"
    assert [run.seqs[1].state, len(run.tokens[1])] == ["finished", 3]  # the first, idle by then, is emptied
    both = Served(
        SlotRules(2, 256, pool_cells=256, n_batch=64), [(0.0, 230, 5, 0), (0.0, 60, 3, 0)], record=True
    )
    assert {seq.state for seq in both.seqs} == {"dropped"}


def test_prompts_in_host_memory_come_back() -> None:
    """One slot, two conversations in turn: each turn saves the other's cache and takes its own out."""
    asked = [(0.0, 100, 5, 1), (50.0, 100, 5, 2), (100.0, 100, 5, 1)]
    kept = Served(SlotRules(1, 512), asked, ram_tokens=1000, record=True)
    assert [seq.first_hit_tokens for seq in kept.seqs] == [0, 0, 60]
    assert kept.scheduler.host_hit_tokens == 60
    events = [task.events for batch in kept.batches for task in batch.tasks]
    assert events == [
        [("state", 0)],
        [("save", 104), ("state", 1)],
        [("save", 104), ("better", 0.577, 0.6), ("state", 1)],
    ]
    assert [batch.copied_tokens for batch in kept.batches if batch.copied_tokens] == [104, 208]
    lost = Served(SlotRules(1, 512), asked)
    assert lost.seqs[2].first_hit_tokens == 0


def test_whole_prompts_drop_what_begins_the_new_and_the_oldest() -> None:
    prompts = WholePrompts(100, 1)
    one, longer, other = Content(((1, 0, 40),)), Content(((1, 0, 60),)), Content(((2, 0, 50),))
    assert prompts.save(one)[:3] == (False, (), False)
    assert prompts.save(longer)[:2] == (False, (40,))
    assert prompts.save(one).already
    assert prompts.save(other).evicted == 1
    assert (len(prompts), prompts.tokens) == (1, 50)
    assert prompts.save(Content(((2, 0, 101),))) == (False, (), True, 0)  # what begins it stays
    assert prompts.take(other, 50, -1.0, 0.0) is not None
    assert len(prompts) == 0
    assert alike(longer, 60, one, 40) == 40
    prompts.save(longer)
    assert (
        prompts.take(Content(((1, 0, 14), (9, 0, 6))), 20, -1.0, 0.0) is None
    )  # 14 of 60 are less than a quarter


def test_slots_of_further_answers_are_free_where_the_prompt_is_too_long() -> None:
    scheduler = SlotScheduler(SlotRules(2, 100), None, wishes={0: Wish(answers=2)}, record_rows=True)
    scheduler.add(Sequence(0, 120, 9, 0.0, runs=((7, 0, 129),), shareable_tokens=120))
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    assert scheduler.schedule(0.0) is None


def test_a_saved_state_has_bytes_of_its_own() -> None:
    prompts = WholePrompts(100, 1, entry_bytes=10)
    first, second = (Content(((segment, 0, 40),)) for segment in (1, 2))
    assert prompts.save(first).evicted == 0
    assert prompts.save(second).evicted == 0  # 80 tokens and 20 bytes
    assert prompts.save(Content(((3, 0, 1),))).evicted == 1


@pytest.mark.parametrize(("similarity", "saved"), [(0.0, False), (0.5, False), (0.9, True)])
def test_a_pinned_slot_unlike_the_prompt_is_saved_though_all_of_it_is_kept(similarity: float, saved: bool) -> None:
    rules = SlotRules(2, 512, cache_idle_slots=False, slot_prompt_similarity=similarity)
    scheduler = SlotScheduler(rules, WholePrompts(900, 1), wishes={0: Wish(slot=0)}, record_rows=True)
    slot = scheduler.slots[0]
    slot.content, slot.tokens, slot.cells = Content(((7, 0, 60),)), 60, 60
    scheduler.add(Sequence(0, 100, 9, 0.0, runs=((7, 0, 60), (8, 0, 49)), shareable_tokens=100))
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert (("save", 60) in batch.tasks[0].events) == saved


def test_a_prompt_for_which_the_pool_has_no_room_stays_in_host_memory() -> None:
    rules = SlotRules(2, 512, pool_cells=512, cache_idle_slots=False)
    scheduler = SlotScheduler(rules, WholePrompts(900, 1), record_rows=True)
    assert scheduler.prompts is not None
    scheduler.prompts.save(Content(((7, 0, 300),)))
    other = Sequence(0, 250, 9, 0.0)
    asked = Sequence(1, 310, 9, 1.0, runs=((7, 0, 300), (8, 0, 19)), shareable_tokens=310)
    scheduler.add(other)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    scheduler.add(asked)
    batch = scheduler.schedule(1.0)
    assert batch is not None
    assert batch.tasks[0].events == [("better", 1.0, 0.968), ("clear", 1, 0), ("state", 1)]
    assert asked.first_hit_tokens == 0


def test_prompts_without_a_limit_of_bytes_hold_the_context_and_at_least_one() -> None:
    prompts = WholePrompts(float("inf"), 1, 100)
    for segment in (1, 2, 3):
        prompts.save(Content(((segment, 0, 60),)))
    assert (prompts.trim(), len(prompts)) == (2, 1)
    prompts.save(Content(((4, 0, 140),)))
    assert (prompts.trim(), prompts.tokens) == (1, 140)


@pytest.mark.parametrize(
    ("wish", "happens"), [(Wish(slot=0), ["save", "state"]), (Wish(answers=2), ["save", "state", "save", "state"])]
)
def test_caches_of_pinned_slots_and_of_further_answers_are_saved(wish: Wish, happens: list[str]) -> None:
    rules = SlotRules(2, 256, cache_idle_slots=False, context_shift=True)
    scheduler = SlotScheduler(rules, WholePrompts(200, 1), wishes={2: wish}, record_rows=True)
    for slot in scheduler.slots:
        slot.content, slot.tokens, slot.cells = Content(((slot.index, 0, 60),)), 60, 60
    asked = Sequence(2, 100, 200, 0.0)  # two answers: 100 prompt tokens each, until the context is full
    scheduler.add(asked)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert [event[0] for event in batch.tasks[0].events] == happens
    while wish.answers > 1 and batch is not None:  # answers that share a prompt do not shift
        scheduler.settle(batch)
        batch = scheduler.schedule(0.0)
    assert (asked.state == "dropped") == (wish.answers > 1)


def test_moved_runs_are_not_computed_again() -> None:
    """The prompt lacks tokens 20..39 of the cache: what follows them moves there if it is long enough."""

    def found(least: int) -> int:
        scheduler = SlotScheduler(SlotRules(1, 512, cache_reuse=least))
        for index, runs in enumerate((((1, 0, 100),), ((1, 0, 20), (1, 40, 50)))):
            prompt = sum(run[2] for run in runs)
            scheduler.add(Sequence(index, prompt, 1, 0.0, runs=runs, shareable_tokens=prompt))
            batch = scheduler.schedule(float(index))
            assert batch is not None
            scheduler.settle(batch)
        return batch.entries[0].first if batch.entries else scheduler.slots[0].cells - batch.tokens

    assert [found(least) for least in (0, 50, 51)] == [20, 69, 20]


def test_without_continuous_batching_prompts_wait_for_those_that_generate() -> None:
    asked: list[Asked] = [(0.0, 10, 20, 0), (1.0, 10, 5, 0)]
    starts: Any = [Served(SlotRules(2, 512, cont_batching=on), asked).tokens[1][0] for on in (True, False)]
    assert starts == [1, 20]


def test_a_request_that_leaves_frees_its_slot_and_keeps_the_cache() -> None:
    scheduler = SlotScheduler(SlotRules(1, 512))
    first, second = Sequence(0, 50, 10, 0.0), Sequence(1, 50, 10, 0.0)
    scheduler.add(first)
    scheduler.add(second)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    assert scheduler.cancel(first)
    assert (scheduler.slots[0].tokens, scheduler.state()[:2]) == (50, (0, 1))
    assert scheduler.schedule(1.0) is not None
    assert scheduler.slots[0].row is not None
    assert scheduler.slots[0].row.seq is second
    assert first.emissions == [0, 0]


def test_one_that_a_free_slot_brought_and_that_leaves_makes_room_for_the_next() -> None:
    """All between two iterations, when the server has not released the slot yet."""
    scheduler = SlotScheduler(SlotRules(1, 512))
    runs, brought, last = (Sequence(index, 50, 10, 0.0) for index in range(3))
    for seq in (runs, brought, last):
        scheduler.add(seq)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    assert scheduler.cancel(runs)
    assert scheduler.cancel(brought)
    assert scheduler.schedule(1.0) is not None
    assert scheduler.slots[0].row is not None
    assert scheduler.slots[0].row.seq is last


@pytest.mark.parametrize("holds", [True, False])
def test_a_cache_that_cannot_be_cut_goes_on_whole(holds: bool) -> None:
    """The second prompt has all of the first and its answer, or less."""
    scheduler = SlotScheduler(SlotRules(1, 512, rolls_back=False))
    runs = ((1, 0, 60),) if holds else ((1, 0, 30), (2, 0, 30))
    for index, (prompt, of) in enumerate(((40, ((1, 0, 41),)), (60, runs))):
        scheduler.add(Sequence(index, prompt, 1, 0.0, runs=of, shareable_tokens=60, output_shared=index == 0))
        batch = scheduler.schedule(float(index))
        assert batch is not None
        scheduler.settle(batch)
    assert scheduler.hit_tokens == (40 if holds else 0)
