"""Memory for a request's whole life: the real allocator's answers, the rule's worked cases, exact runs, conservation."""

from __future__ import annotations

import heapq
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.lifetime_pages import LifetimePages
from engine_models.memory.radix import Content
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.whole_lifetime import LifetimeBatch, LifetimeRules, WholeLifetimeScheduler
from engine_models.schedulers.whole_lifetime_drafted import DraftedLifetimeScheduler
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models import fed

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tgi"
RULES = LifetimeRules(max_batch_prefill_tokens=64, max_batch_total_tokens=600, max_total_tokens=400)


def test_pages_are_found_taken_and_evicted_as_by_the_real_allocator() -> None:
    pools = 0
    refused = found = 0
    held: dict[int, tuple[Sequence, Content]] = {}
    for line in (FIXTURES / "allocator.jsonl").read_text().splitlines():
        call = json.loads(line)
        if "pages" in call:
            kv = LifetimePages(call["pages"] - 1, call["page_tokens"], prefix_caching=True)
            held, pools = {}, pools + 1
            continue
        if "give" in call:
            kv.give_back(*held.pop(call["give"]))
        else:
            content = Content(tuple(tuple(run) for run in call["runs"]))
            seq = Sequence(call["take"], content.length, 1, 0.0)
            got = kv.take(seq, content, content.length, call["tokens"])
            assert got == call["found"], line
            if got is not None:
                held[call["take"]] = seq, content
            refused += got is None
            found += bool(got)
        assert kv.distinct_blocks(seq for seq, _ in held.values()) == call["held"], line
        conserved(kv)
    assert (pools, refused > 100, found > 100) == (4, True, True)


def conserved(kv: LifetimePages) -> None:
    """Every page is free, in the trie, or a request's own."""
    cached = sum(node.length for node in kv.trie.nodes())
    own = sum(held.pages for held in kv._held.values())
    assert kv.free_blocks * kv.block_tokens + cached + own * kv.block_tokens == (
        kv.capacity_blocks * kv.block_tokens
    )
    assert kv.free_blocks >= 0
    assert kv.trie.evictable_tokens == sum(node.length for node in kv.trie.nodes() if not node.lock)


# a small executor, on a clock of whole nanoseconds ------------------------------------------------------------


class Served:
    """What became of the requests under a linear step time; every step, and the numbers by which tokens came."""

    def __init__(
        self,
        scheduler: WholeLifetimeScheduler,
        arrivals: list[tuple[int, Sequence]],
        followers: dict[int, list[tuple[int, Sequence]]] | None = None,
        step_ns: tuple[int, int, int, int] = (8_000_000, 25_000, 100_000, 20),
    ) -> None:
        self.batches: list[LifetimeBatch] = []
        self.finished: list[list[Sequence]] = []
        self.ends_ns: list[int] = []
        self.used: list[int] = []
        self.jumps = 0
        self._step_ns = step_ns
        due = [(at, seq.index, seq) for at, seq in arrivals]
        heapq.heapify(due)
        now = 0
        while due or scheduler.has_work():
            while due and due[0][0] <= now:
                scheduler.add(heapq.heappop(due)[2])
            run = scheduler.run()
            steps = 0
            if run is not None:
                ends = [now]
                while len(ends) <= run.steps and (run.deaf or not due or ends[-1] < due[0][0]):
                    rows = run.shape.decode_rows
                    ends.append(ends[-1] + self._ns(0, rows, run.shape.decode_kv_tokens + rows * (len(ends) - 1)))
                steps = len(ends) - 1
            if steps >= 2:
                batch, _, used = scheduler.take(steps)
                self.jumps += 1
                self.used += [used] * steps
                now = ends[-1]
                self.ends_ns += ends[1:]
            else:
                formed = scheduler.schedule(now * 1e-9)
                if formed is None:
                    now = due[0][0]
                    continue
                batch = formed
                self.used.append(scheduler.state()[2])
                attended = batch.decode_kv_tokens + sum(new + prior for new, prior in batch.prefill)
                now += self._ns(sum(new for new, _ in batch.prefill), batch.decode_rows, attended)
                self.ends_ns.append(now)
            self.batches.append(batch)
            self.finished.append(list(scheduler.settle(batch)))
            for seq in self.finished[-1]:
                for delay, follower in (followers or {}).get(seq.index, ()):
                    heapq.heappush(due, (now + delay, follower.index, follower))
            conserved(scheduler.kv)
        scheduler.close()

    def _ns(self, prefill_tokens: int, rows: int, attended: int) -> int:
        base, token, row, kv_token = self._step_ns
        return base + token * prefill_tokens + row * rows + kv_token * attended


# the rule ------------------------------------------------------------------------------------------------------


def scheduler_of(
    rules: LifetimeRules, pages: int, page_tokens: int = 1, *, caching: bool = True, **options: bool
) -> WholeLifetimeScheduler:
    return WholeLifetimeScheduler(
        rules, LifetimePages(pages, page_tokens, prefix_caching=caching), **options
    )


def rows_of(batch: LifetimeBatch | None) -> list[tuple[int, int, int]]:
    assert batch is not None
    assert batch.rows is not None
    return [(seq.index, new, before) for seq, new, before in batch.rows]


def step(scheduler: WholeLifetimeScheduler) -> LifetimeBatch:
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    return batch


def test_a_long_prompt_lets_others_in_with_what_its_next_chunk_leaves() -> None:
    rules = LifetimeRules(4096, 60_000, 60_000)
    scheduler = scheduler_of(rules, 59_999, record_rows=True)
    scheduler.add(Sequence(0, 10_000, 50, 0.0))
    assert rows_of(step(scheduler)) == [(0, 4096, 0)]
    scheduler.add(Sequence(1, 100, 50, 0.0))
    assert rows_of(step(scheduler)) == [(0, 4096, 4096)]
    fused = step(scheduler)
    assert rows_of(fused) == [(0, 1808, 8192), (1, 100, 0)]
    assert [seq.emissions for seq, _, _ in fused.rows or []] == [[2, 2], [2, 2]]


def test_without_chunks_few_wait_for_others_or_for_twenty_steps() -> None:
    rules = LifetimeRules(4096, 60_000, 60_000, 0.3, 20, chunked_prefill=False)
    scheduler = scheduler_of(rules, 3_000, 16, caching=False, record_rows=True)
    for index in range(10):
        scheduler.add(Sequence(index, 10, 200, 0.0))
    assert len(rows_of(step(scheduler))) == 10
    scheduler.add(Sequence(10, 10, 200, 0.0))
    decodes = 0
    while not (batch := step(scheduler)).admits:
        decodes += 1
    assert decodes == 19  # the counter stands at one after a prefill
    assert rows_of(batch) == [(10, 10, 0)]  # alone: the ten sit it out
    assert len(rows_of(step(scheduler))) == 11
    for index in range(11, 14):
        scheduler.add(Sequence(index, 10, 200, 0.0))
    assert [index for index, _, _ in rows_of(step(scheduler))] == [11, 12, 13]  # three are 0.3 of eleven


def test_answers_are_reserved_in_parts() -> None:
    """8B on a cache of 60,000 slots: 500 tokens in and no limit reserve 1,523 slots each, hence 39 at once."""
    rules = LifetimeRules(60_000, 60_000, 8192, reserved_answer_tokens=1024)
    scheduler = scheduler_of(rules, 59_999)
    for index in range(60):
        scheduler.add(Sequence(index, 500, 30, 0.0, stop_known=False))
    step(scheduler)
    assert (scheduler.state()[0], scheduler.state()[2]) == (39, 39 * 1523)


def test_an_answer_longer_than_its_part_queues_again_at_the_end() -> None:
    rules = LifetimeRules(100, 400, 400, reserved_answer_tokens=8)
    scheduler = scheduler_of(rules, 50, record_rows=True)
    long, other = Sequence(0, 20, 20, 0.0), Sequence(1, 40, 3, 0.0)
    scheduler.add(long)
    served = [rows_of(step(scheduler))]
    scheduler.add(other)  # 42 slots: not while the first holds 27
    while scheduler.has_work():
        served.append(rows_of(step(scheduler)))
    scheduler.close()
    # 8 tokens, then the other one, then the prompt with the 8 tokens, of which the other one left 8 in the cache
    assert served[:8] == [[(0, 20, 0)], *([(0, 1, 19 + k)] for k in range(1, 8))]
    assert served[8:12] == [[(1, 40, 0)], [(1, 1, 40)], [(1, 1, 41)], [(0, 20, 8)]]
    assert sum(last - first + 1 for first, last in long.ranges()) == 20
    assert long.state == other.state == "finished"


@pytest.mark.parametrize("after", [1, 4, 8, 9])
def test_a_request_dropped_at_any_time_leaves_nothing(after: int) -> None:
    """With a step in flight, the eighth of which ends a part of the answer: then it leaves with that step."""
    scheduler = scheduler_of(LifetimeRules(100, 400, 400, reserved_answer_tokens=8), 50)
    seq = Sequence(0, 20, 20, 0.0)
    scheduler.add(seq)
    for _ in range(after - 1):
        step(scheduler)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    gone = scheduler.cancel(seq)
    assert (gone, scheduler.settle(batch)) == ((False, [seq]) if after == 8 else (True, []))
    assert scheduler.state()[:3] == (0, 0, 0)
    assert not scheduler.has_work()


def test_a_prompt_put_back_can_be_found_though_never_computed() -> None:
    rules = LifetimeRules(16, 600, 400, chunked_prefill=False)
    scheduler = scheduler_of(rules, 300, record_rows=True)
    scheduler.add(Sequence(0, 10, 3, 0.0))
    scheduler.add(Sequence(1, 12, 3, 0.0))
    assert rows_of(step(scheduler)) == [(0, 10, 0)]  # together they exceed the budget
    batch = step(scheduler)
    assert rows_of(batch) == [(1, 1, 11)]
    assert [found for _, found in batch.hits] == [11]


def test_the_head_blocks_all_and_holders_of_found_pages_count_for_each() -> None:
    rules = replace(RULES, max_batch_total_tokens=60)
    scheduler = scheduler_of(rules, 59)
    shared = ((7, 0, 30),)
    scheduler.add(Sequence(0, 30, 1, 0.0, runs=shared, shareable_tokens=30))
    step(scheduler)
    for index in (1, 2, 3):
        scheduler.add(Sequence(index, 30, 5, 0.0, runs=shared, shareable_tokens=30))
    assert [seq.index for seq in step(scheduler).new] == [1, 2, 3]  # 30 found pages and 12 of their own
    scheduler.add(Sequence(4, 1, 1, 0.0))
    assert step(scheduler).new == []  # 3 x 34 tokens are held by name, more than the 60 there are
    assert scheduler.run() is not None


def test_a_prompt_that_could_never_be_placed_beside_a_cached_one_is_placed() -> None:
    """It finds 10 of 40 cached tokens, all 40 of which its holder pins: with them its 95 others do not fit."""
    scheduler = scheduler_of(replace(RULES, max_total_tokens=105), 110, record_rows=True)
    scheduler.add(Sequence(0, 40, 1, 0.0, runs=((7, 0, 40),), shareable_tokens=40))
    step(scheduler)
    scheduler.add(Sequence(1, 10, 95, 0.0, runs=((7, 0, 10),), shareable_tokens=10))
    assert rows_of(step(scheduler)) == [(1, 10, 0)]


def test_a_client_that_leaves_frees_its_pages_when_a_token_for_it_comes() -> None:
    """`filter_send_generations` of `backends/v3/src/backend.rs`; 293 random loads of the real router agree."""
    scheduler = scheduler_of(RULES, 599)
    seqs = [Sequence(index, 30, 10, 0.0) for index in range(4)]
    for seq in seqs:
        scheduler.add(seq)
    step(scheduler)  # two prompts, and four tokens of the third
    for seq, gone in ((seqs[3], True), (seqs[2], False), (seqs[0], True)):
        assert scheduler.cancel(seq) is gone
        conserved(scheduler.kv)
    assert scheduler.state()[:2] == (2, 0)
    assert step(scheduler).finishing == [seqs[2]]  # its prompt is computed to its end
    assert scheduler.state()[:2] == (1, 0)
    while scheduler.has_work():
        step(scheduler)
    assert scheduler.state()[2] == 0
    assert [sum(b - a + 1 for a, b in seq.ranges()) for seq in seqs] == [1, 10, 1, 0]


@pytest.mark.parametrize("aggregate", [False, True])
def test_a_paused_row_whose_client_leaves_decodes_once_more(aggregate: bool) -> None:
    rules = replace(RULES, chunked_prefill=False, max_batch_prefill_tokens=100)
    scheduler = scheduler_of(rules, 599, record_rows=not aggregate)
    paused, new = Sequence(0, 30, 20, 0.0), Sequence(1, 40, 20, 0.0)
    scheduler.add(paused)
    step(scheduler)
    scheduler.add(new)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert batch.new == [new]
    assert not scheduler.cancel(paused)
    scheduler.settle(batch)
    assert scheduler.run() is None
    assert step(scheduler).finishing == [paused]
    assert scheduler.state()[:1] == (1,)
    assert (scheduler.run() is not None) == aggregate


# runs ----------------------------------------------------------------------------------------------------------

REQUEST = st.tuples(
    st.integers(1, 120),  # prompt
    st.integers(1, 90),  # answer
    st.integers(0, 400_000_000),  # pause before it [ns]
    st.integers(0, 3),  # shared prefix, 0: none
    st.booleans(),  # whether its end is certain
)


def requests_of(drawn: list[Any]) -> list[tuple[int, Sequence]]:
    out: list[tuple[int, Sequence]] = []
    now = 0
    for index, (prompt, answer, pause, prefix, certain) in enumerate(drawn):
        now += pause if index % 3 else pause // 20  # bursts
        head = min(prompt, 50) if prefix else 0
        runs = ((prefix, 0, head), (100 + index, 0, prompt - head + answer))
        seq = Sequence(
            index, prompt, answer, now * 1e-9, runs=runs, output_shared=index % 2 == 0,
            shareable_tokens=prompt, stop_known=certain,
        )  # fmt: skip
        out.append((now, seq))
    return out


@settings(max_examples=examples(150))
@given(
    st.lists(REQUEST, min_size=1, max_size=40),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 4, 16]),
    st.integers(250, 900),
    st.sampled_from([(0.0, 3), (0.3, 7), (1.2, 20)]),
    st.sampled_from([None, 1, 4]),
    st.sampled_from([None, 25]),
)
def test_runs_equal_steps(
    drawn: list[Any],
    chunked: bool,
    caching: bool,
    page: int,
    tokens: int,
    gate: tuple[float, int],
    most: int | None,
    part: int | None,
) -> None:
    rules = LifetimeRules(
        max_batch_prefill_tokens=130,
        max_batch_total_tokens=tokens,
        max_total_tokens=215,
        waiting_served_ratio=gate[0],
        max_waiting_tokens=gate[1],
        max_batch_size=most,
        chunked_prefill=chunked,
        reserved_answer_tokens=part,
    )
    outcome = []
    for aggregate in (True, False):
        scheduler = scheduler_of(rules, tokens // page - 1, page, caching=caching, aggregate=aggregate)
        arrivals = requests_of(drawn)
        served = Served(scheduler, arrivals)
        seqs = [seq for _, seq in arrivals]
        assert all(seq.state == "finished" for seq in seqs)
        assert [sum(b - a + 1 for a, b in seq.ranges()) for seq in seqs] == [answer for _, answer, *_ in drawn]
        assert scheduler.state()[:3] == (0, 0, 0)
        outcome.append(
            (
                served.ends_ns,
                served.used,
                [seq.emissions for seq in seqs],
                [(seq.first_scheduled_s, seq.first_hit_tokens) for seq in seqs],
                scheduler.hit_tokens,
                scheduler.next_number,
            )
        )
        assert aggregate or not served.jumps
    assert outcome[0] == outcome[1]


@given(st.lists(st.tuples(st.floats(0, 0.4), st.integers(1, 60), st.integers(1, 70)), min_size=1, max_size=12))
@settings(max_examples=12)
def test_drafts_of_which_none_is_accepted_leave_the_schedule_as_it_is(asked: list[tuple[float, int, int]]) -> None:
    """But for the memory of a step's drafts, of which there is enough; parts of answers end and queue again alike."""
    rules = replace(RULES, chunked_prefill=False, reserved_answer_tokens=20)
    clock = RecordedClock({"a": 0.001, "b": 0.0, "c": 0.0, "d": 0.0})
    asked = sorted(asked)
    plain = fed.Served(WholeLifetimeScheduler(rules, LifetimePages(5000, 1, prefix_caching=False)), asked, clock)
    rows = DraftedLifetimeScheduler(rules, LifetimePages(5000, 1, prefix_caching=False), row_tokens=4)
    drafted = fed.Served(rows, asked, clock)
    assert (drafted.ends, drafted.tokens) == (plain.ends, plain.tokens)
    assert drafted.scheduler.state() == plain.scheduler.state() == (0, 0, 0, 5000)


def test_accepted_drafts_end_an_answer_sooner() -> None:
    """Reserved with the drafts of a step (queue.rs: input + max_new + speculate - 1); three tokens a step, two at its end."""
    rules = replace(RULES, chunked_prefill=False)
    scheduler = DraftedLifetimeScheduler(rules, LifetimePages(5000, 1, prefix_caching=False), row_tokens=4)
    seq = Sequence(0, 10, 9, 0.0, limit_tokens=9, acceptance=lambda verification: 2)
    scheduler.add(seq)
    batches = []
    while scheduler.has_work():
        batch = scheduler.schedule(0.0)
        assert batch is not None
        batches.append((batch.tokens, scheduler.state()[2]))
        scheduler.settle(batch)
    assert batches == [(10, 21), (4, 21), (4, 21), (4, 21)]
    assert seq.ranges() == [(0, 0), *[(step, step) for step in (1, 1, 1, 2, 2, 2, 3, 3)]]
    assert (scheduler.verifications, scheduler.accepted_drafts) == (3, 5)
