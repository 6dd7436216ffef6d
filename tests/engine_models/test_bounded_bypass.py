"""Reserved pages and bounded bypass: exact runs, conservation of pages, worked cases, pages found whole and in part."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.chained_pages import PAGE_TOKENS, ChainedPages
from engine_models.memory.radix import Content
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.bounded_bypass import BypassBatch, BypassRules, BypassScheduler
from simulator.validation.schedules import RecordedClock
from tests.engine_models.fed import Fed, sharing

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int, int]
"""Arrival [s], prompt and output tokens, and the group whose first 700 tokens it shares (0: none)."""


def conserved(scheduler: BypassScheduler) -> None:
    """Every page is used by whoever holds it, or free; names are known once; what is looked for is where it is."""
    kv = scheduler.kv
    users: dict[int, int] = {}
    for job in scheduler._active.values():
        for page in job.pages:
            users[id(page)] = users.get(id(page), 0) + 1
    used, free = list(kv._used.values()), list(kv._free.values())
    assert len({id(page) for page in (*used, *free)}) == len(used) + len(free) == kv.capacity_blocks
    assert {id(page): page.users for page in used} == users
    assert all(page.users == 0 for page in free)
    assert all(page.name is name for names in (kv._used, kv._free) for name, page in names.items())
    assert all(page.place == place for place, pages in kv._places.items() for page in pages)
    assert len(scheduler._active) <= scheduler.rules.max_batch_size


class Served(Fed[BypassScheduler, BypassBatch]):
    """What became of requests: ends [s], the numbers of the calls that gave tokens, and the iterations."""

    def __init__(
        self,
        asked: list[Asked],
        pages: int,
        *,
        aggregate: bool = True,
        record: bool = False,
        limit_tokens: int = 0,
        **rules: Any,
    ) -> None:
        knobs = {"max_batch_size": 256, "max_chunk_size": 2048, "max_seq_len": pages * PAGE_TOKENS, **rules}
        scheduler = BypassScheduler(BypassRules(**knobs), ChainedPages(pages), aggregate=aggregate, record_rows=record)
        self.iterations: list[BypassBatch] = []
        seqs = sharing(asked, 700, limit_tokens=limit_tokens)
        super().__init__(scheduler, seqs, RecordedClock(CLOCK), BypassBatch, pace_s=0.3)

    def settled(self, batch: BypassBatch) -> None:
        conserved(self.scheduler)
        if batch.closes:
            self.iterations.append(batch)


@st.composite
def loads(draw: st.DrawFn) -> tuple[int, dict[str, Any], list[Asked]]:
    """Few pages under pressure, prompts of several chunks, answers that fill pages."""
    rules = {
        "max_batch_size": draw(st.sampled_from([2, 5, 256])),
        "max_chunk_size": draw(st.sampled_from([256, 2048])),
        "max_skips": draw(st.sampled_from([0, 2, 4])),
        "paged": draw(st.sampled_from([True, True, True, False])),
    }
    gap_s = draw(st.sampled_from([0.0, 0.05, 0.5]))
    asked = [
        (i * gap_s, draw(st.integers(1, 1500)), draw(st.integers(1, 600)), draw(st.sampled_from([0, 1, 2])))
        for i in range(draw(st.integers(1, 20)))
    ]
    return draw(st.sampled_from([9, 16, 60])), rules, asked


@settings(max_examples=25, derandomize=True)
@given(loads())
def test_runs_equal_steps_and_pages_are_conserved(load: tuple[int, dict[str, Any], list[Asked]]) -> None:
    pages, rules, asked = load
    if not rules["paged"]:
        pages, rules["max_batch_size"] = 1, 1
    jumped, stepped = (Served(asked, pages, aggregate=aggregate, **rules) for aggregate in (True, False))
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output, _ in asked]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.hit_tokens == stepped.scheduler.hit_tokens
    assert jumped.scheduler.state()[:3] == (0, 0, 0)


def test_a_prompt_that_is_computed_stops_the_others() -> None:
    """Two prompts of two chunks each, beside a row: three calls an iteration; their last tokens go with the generating rows."""
    served = Served([(0.0, 100, 30, 0), (0.02, 3000, 5, 0), (0.02, 3000, 5, 0)], 60, record=True)
    first = next(i for i, batch in enumerate(served.iterations) if len(batch.started) == 2)
    rows = [
        [(seq.index, new, before) for seq, new, before in it.rows or ()] for it in served.iterations[first:]
    ]
    assert rows[0][:2] == [(1, 2048, 0), (2, 2048, 0)]
    assert [row[0] for row in rows[0][2:]] == [0]
    assert rows[1][:2] == [(1, 951, 2048), (2, 951, 2048)]
    assert [row[0] for row in rows[1][2:]] == [0, 1, 2]
    assert rows[1][3:] == [(1, 1, 2999), (2, 1, 2999)]


def test_pages_are_set_aside_for_the_longest_answer() -> None:
    """Ten pages; requests of 300 and 100 tokens need two each, with a limit of 2,000 tokens nine."""
    asked = [(0.0, 300, 100, 0)] * 3
    assert len(Served(asked, 10, record=True).iterations[0].started) == 3
    assert len(Served(asked, 10, record=True, limit_tokens=2000).iterations[0].started) == 1


def test_a_request_is_passed_over_so_often_and_no_more() -> None:
    """A large request waits for eight of ten pages while small ones of one page each go past it, twice."""
    asked = [(0.0, 600, 400, 0), (0.01, 1500, 400, 0), *[(0.1 + i / 10, 50, 20, 0) for i in range(4)]]
    served = Served(asked, 10, record=True, max_skips=2)
    order = [seq.index for batch in served.iterations for seq in batch.started]
    assert order == [0, 2, 3, 1, 4, 5]
    counts = [count for batch in served.iterations for count in batch.skips.values()]
    assert counts == [1, 2]
    strict = Served(asked, 10, record=True, max_skips=0)
    assert [seq.index for batch in strict.iterations for seq in batch.started] == [0, 1, 2, 3, 4, 5]


def test_a_request_that_goes_gives_back_its_pages() -> None:
    scheduler = BypassScheduler(BypassRules(4, 2048, 4096), ChainedPages(16))
    seqs = [Sequence(i, 100, 400, 0.0) for i in range(3)]
    for seq in seqs:
        scheduler.add(seq)
    assert scheduler.cancel(seqs[0])
    chunk = scheduler.schedule(0.0)
    assert chunk is not None
    assert not scheduler.cancel(seqs[1])  # in the midst of an iteration
    assert scheduler.settle(chunk) == []
    for _ in range(2):
        batch = scheduler.schedule(0.1)
        assert batch is not None
        gone = scheduler.settle(batch)
    assert gone == [seqs[1]]
    assert scheduler.cancel(seqs[2])
    assert seqs[2].emissions == [2, 2]
    assert scheduler.state() == (0, 0, 0, 16)


def test_a_page_is_copied_as_far_as_another_has_its_beginning() -> None:
    """Of 700 shared tokens two pages are shared and 188 tokens copied; what runs at the same time is found too."""
    served = Served([(0.0, 900, 5, 1), (0.0, 800, 5, 1)], 20, record=True)
    rows = [(seq.index, new, before) for seq, new, before in served.iterations[0].rows or ()]
    assert rows == [(0, 899, 0), (1, 99, 700), (0, 1, 899), (1, 1, 799)]
    assert [(seq.index, found) for seq, found in served.iterations[0].hits] == [(1, 700)]


def test_without_pages_a_request_finds_the_beginning_of_the_one_before() -> None:
    asked = [(0.0, 900, 5, 1), (0.0, 800, 5, 1), (0.0, 50, 5, 0), (0.0, 900, 5, 1)]
    served = Served(asked, 1, record=True, paged=False, max_batch_size=1, max_chunk_size=512)
    rows = [
        (seq.index, new, before)
        for batch in served.iterations
        for seq, new, before in batch.rows or ()
        if new > 1
    ]
    assert rows == [(0, 512, 0), (0, 387, 512), (1, 99, 700), (2, 49, 0), (3, 512, 0), (3, 387, 512)]


# -- pages --------------------------------------------------------------------------------------------------


def content(*segments: tuple[int, int]) -> Content:
    return Content(tuple((segment, 0, tokens) for segment, tokens in segments))


def filled(kv: ChainedPages, text: Content, tokens: int) -> None:
    """Compute the first tokens of a content in pages that are then free."""
    whole = tokens // PAGE_TOKENS
    pages = kv.take(kv.names(text, whole), 1)
    for number in range(whole + 1):
        kv.write(pages, number, text, min(PAGE_TOKENS, tokens - number * PAGE_TOKENS))
        kv.follow(pages, number)
    kv.release(pages)


def test_a_part_of_a_page_is_found_behind_the_same_page_only() -> None:
    kv = ChainedPages(8)
    filled(kv, content((1, 300), (2, 500)), 400)
    text = content((1, 300), (3, 500))
    pages = kv.take(kv.names(text, 1), 2)
    assert pages[0].filled == PAGE_TOKENS
    assert kv.match(pages, 1, text, 700) == 300 - PAGE_TOKENS
    other = content((4, PAGE_TOKENS), (1, 44))
    pages = kv.take(kv.names(other, 1), 1)
    assert kv.match(pages, 1, other, 300) == 0


def test_a_page_that_was_not_written_gets_its_old_identity_back() -> None:
    kv = ChainedPages(2)
    text = content((1, 600))
    filled(kv, text, 256)
    pages = kv.take([], 2)
    assert kv.missing(kv.names(text, 1)) == 1
    kv.release(pages)
    assert kv.take(kv.names(text, 1), 0)[0].filled == PAGE_TOKENS


def test_a_page_that_others_have_is_given_up_for_theirs() -> None:
    kv = ChainedPages(6)
    text = content((1, 600))
    one, two = kv.take([], 2), kv.take([], 2)
    kv.complete(one, 0, text)
    assert kv.free_blocks == 2
    kv.complete(two, 0, text)
    assert two[0] is one[0]
    assert (one[0].users, kv.free_blocks) == (2, 3)


def test_the_oldest_page_is_taken_first() -> None:
    kv = ChainedPages(3)
    texts = [content((segment, 256)) for segment in (1, 2, 3)]
    for text in texts:
        kv.release(kv.take(kv.names(text, 1), 0))
    kv.release(kv.take(kv.names(texts[0], 1), 0))  # used again
    kv.release(kv.take(kv.names(content((4, 256)), 1), 0))
    names = [kv.names(text, 1)[0] for text in texts]
    assert [name in kv._free for name in names] == [True, False, True]
