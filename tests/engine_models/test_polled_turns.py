"""Turns of calls behind a polled queue: exact runs, the rule's worked cases, stored prompts, rectangles of keys and values."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.padded_rows import PaddedRows
from engine_models.memory.prompt_copies import Kind, PromptCopies
from engine_models.memory.radix import Content
from engine_models.parts.batch import Span
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.polled_turns import PolledTurnsScheduler, TurnBatch, TurnRules, no_system
from hardware_profiles.errors import InfeasibleError
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Fed, sharing

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int, int]
"""Arrival [s], prompt and output tokens, and the group whose first 100 tokens it shares (0: none)."""


class Served(Fed[PolledTurnsScheduler, TurnBatch]):
    """What became of requests: ends [s], the numbers of the calls that gave tokens, and the calls."""

    def __init__(
        self,
        asked: list[Asked],
        *,
        aggregate: bool = True,
        record: bool = False,
        copies: PromptCopies | None = None,
        windows: tuple[int, ...] = (),
        **rules: Any,
    ) -> None:
        scheduler = PolledTurnsScheduler(
            TurnRules(**rules),
            copies or PromptCopies(10),
            aggregate=aggregate,
            record_rows=record,
            windows=windows,
        )
        super().__init__(scheduler, sharing(asked, 100), RecordedClock(CLOCK), TurnBatch, pace_s=0.3)


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], list[Asked]]:
    """Few rows under pressure, prompts of several pieces, stores that overflow."""
    rules = {
        "decode_concurrency": draw(st.sampled_from([1, 3, 32])),
        "prompt_concurrency": draw(st.sampled_from([1, 2, 8])),
        "prefill_step_size": draw(st.sampled_from([64, 2048])),
        "prompt_cache_tokens": draw(st.sampled_from([None, 900])),
        "time_budget_s": draw(st.sampled_from([0.02, 0.1, 0.5])),
        "held_tokens": draw(st.sampled_from([None, 60_000])),
        "padded": draw(st.booleans()),
        "alone": draw(st.sampled_from([False, False, True])),
    }
    store = {"most": draw(st.sampled_from([1, 4, 10])), "uncut_from": draw(st.sampled_from([None, 150]))}
    gap_s = draw(st.sampled_from([0.0, 0.02, 0.2]))
    asked = [
        (i * gap_s, draw(st.integers(1, 250)), draw(st.integers(1, 150)), draw(st.sampled_from([0, 1, 2])))
        for i in range(draw(st.integers(1, 25)))
    ]
    return rules, store, asked


@settings(max_examples=examples(40), derandomize=True)
@given(loads())
def test_runs_equal_steps(load: tuple[dict[str, Any], dict[str, Any], list[Asked]]) -> None:
    rules, store, asked = load
    windows = (200,) if rules["padded"] else ()
    jumped, stepped = (
        Served(asked, aggregate=aggregate, copies=PromptCopies(**store), windows=windows, **rules)
        for aggregate in (True, False)
    )
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output, _ in asked]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.hit_tokens == stepped.scheduler.hit_tokens
    assert list(jumped.scheduler.copies) == list(stepped.scheduler.copies)
    assert jumped.scheduler.state()[:2] == (0, 0)
    assert jumped.scheduler.state()[2] == jumped.scheduler.copies.tokens


def test_a_turn_decodes_then_starts_rows_then_computes_prompts() -> None:
    """The second request is taken in after the budget; its two calls come behind a decode each, and its token a turn later."""
    served = Served([(0.0, 100, 60, 0), (0.01, 3000, 3, 0)], record=True, time_budget_s=0.1)
    modes = [call.mode for call in served.batches]
    assert modes[:3] == ["prompt", "first_token", "decode"]
    at = modes.index("prompt", 1)
    assert modes[at - 1 : at + 6] == [
        "decode",
        "prompt",
        "decode",
        "prompt",
        "decode",
        "first_token",
        "decode",
    ]
    taken = next(call for call in served.batches[1:] if call.taken)
    assert taken.number == at - 1
    assert (
        taken.t_sched > 0.1 >= taken.t_sched - (taken.t_end - taken.t_sched)
    )  # the first turn after the budget
    assert [call.closes for call in served.batches[at - 1 : at + 6]] == [
        False,
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert served.tokens[1][0] == at + 5


def test_a_row_is_computed_once_more_for_nothing() -> None:
    served = Served([(0.0, 10, 4, 0)], record=True)
    assert [call.mode for call in served.batches] == ["prompt", "first_token", *["decode"] * 4]
    assert [(before, new) for call in served.batches for _, new, before in call.rows or ()][-1] == (13, 1)
    assert served.tokens == [[2, 3, 4, 5]]


def test_the_queue_is_looked_at_when_a_last_token_is_launched() -> None:
    """A turn of last tokens alone is not waited for: who comes while it is computed has to wait for the next look."""
    prompt_s = CLOCK["a"] + 999 * (CLOCK["b"] + CLOCK["d"])
    asked = [(0.0, 1000, 30, 0), (prompt_s + 0.001, 50, 5, 0)]
    served = Served(asked, record=True, time_budget_s=0.02)
    taken = [call.number for call in served.batches if call.taken]
    assert (served.batches[1].mode, served.batches[1].closes) == ("first_token", True)
    assert served.batches[2].mode == "decode"
    assert taken[1] > 2


def test_rows_bound_prompts_and_may_be_more_by_those_in_work() -> None:
    """Three rows run when long prompts come in, one a turn, of which each could be the fourth: all three become rows at once."""
    asked = [(0.0, prompt, 40, 0) for prompt in (100, 100, 100, 9000, 6900, 4800, 100)]
    served = Served(asked, record=True, decode_concurrency=4, prompt_concurrency=3)
    running = [len(call.running) for call in served.batches if call.closes]
    assert max(running) == 6
    assert any(call.waiting for call in served.batches if call.closes and len(call.running) == 6)


def test_what_is_padded_is_computed_and_read() -> None:
    calls = Served([(0.0, 1000, 3, 0), (0.0, 10, 3, 0)], windows=(512,)).batches
    assert (calls[0].prefill, calls[0].padded_tokens, calls[0].tokens) == ([(999, 0)] * 2, 1998, 1008)
    assert (calls[1].prefill, calls[1].tokens) == ([(1, 999)] * 2, 2)
    assert calls[2].decode_kv_tokens == 2 * 1001
    assert calls[2].spans == (Span(512, 1024, 0),)
    true = Served([(0.0, 1000, 3, 0), (0.0, 10, 3, 0)], padded=False).batches
    assert (true[0].prefill, true[2].decode_kv_tokens) == ([(999, 0), (9, 0)], 1001 + 11)


def test_more_than_memory_holds_ends_the_run_in_words() -> None:
    Served([(0.0, 500, 300, 0)] * 2, held_tokens=5000)
    with pytest.raises(InfeasibleError, match="runs out of memory: 2 rows of 1,024 tokens") as error:
        Served([(0.0, 500, 300, 0)] * 2, held_tokens=2600)
    assert "decode_concurrency" in str(error.value.mend)


def test_a_request_that_goes_gives_back_its_place() -> None:
    scheduler = PolledTurnsScheduler(TurnRules(), PromptCopies(10))
    seqs = [Sequence(i, 100, 50, 0.0) for i in range(3)]
    for seq in seqs:
        scheduler.add(seq)
    assert scheduler.cancel(seqs[0])
    first = scheduler.schedule(0.0)
    assert first is not None
    assert not scheduler.cancel(seqs[1])  # in the midst of a turn
    assert scheduler.settle(first) == [seqs[1]]
    for now_s in (0.1, 0.2, 0.3):
        batch = scheduler.schedule(now_s)
        assert batch is not None
        assert batch.tokens == 1
        scheduler.settle(batch)
    assert scheduler.cancel(seqs[2])
    assert seqs[2].emissions == [2, 3]
    assert not scheduler.has_work()
    assert scheduler.state()[2] == scheduler.copies.tokens == 198


# -- stored prompts -----------------------------------------------------------------------------------------


def content(*segments: tuple[int, int]) -> Content:
    return Content(tuple((segment, 0, tokens) for segment, tokens in segments))


def test_a_longer_entry_is_cut_if_it_shares_more() -> None:
    copies = PromptCopies(10)
    copies.store("assistant", content((1, 100)), 100)
    copies.store("assistant", content((1, 100), (2, 80)), 150)  # takes the first out, which is its beginning
    assert [(copy.kind, copy.tokens) for copy in copies] == [("assistant", 150)]
    assert copies.find(content((1, 100), (3, 50)), 150) == (100, 150)
    assert copies.find(content((1, 100), (2, 20)), 120) == (119, 150)  # the last token is always computed
    assert copies.find(content((3, 50)), 50) == (0, 0)


def test_what_cannot_be_cut_is_found_whole_or_not_at_all() -> None:
    copies = PromptCopies(10, uncut_from=120)
    copies.store("system", content((1, 100)), 100)
    assert copies.store("user", content((1, 100), (2, 80)), 150) == []  # the system prompt stays
    assert copies.find(content((1, 100), (3, 50)), 150) == (100, 100)
    assert copies.find(content((1, 100), (2, 80)), 170) == (150, 150)
    assert copies.tokens == 250
    copies.store("user", content((4, 1)), 1)
    assert copies.find(content((4, 50)), 50) == (1, 1)  # cut out of it
    always = PromptCopies(10, uncut_from=1)
    always.store("user", content((4, 1)), 1)
    assert always.find(content((4, 50)), 50) == (0, 0)


def test_the_oldest_of_the_kind_with_most_goes() -> None:
    """Answers go while there are as many as users' prompts, then these while there are as many as system prompts, then those."""
    copies = PromptCopies(3)
    kinds: tuple[Kind, ...] = ("assistant", "user", "user")
    for segment, kind in enumerate(kinds, 1):
        copies.store(kind, content((segment, 10 * segment)), 10 * segment)
    assert copies.store("system", content((4, 40)), 40) == [("evicted", 20)]  # one answer, two users' prompts
    assert copies.store("assistant", content((5, 50)), 50) == [("evicted", 10)]
    assert copies.trim(90) == [("evicted", 50)]
    assert copies.trim(60) == [("evicted", 30)]
    assert copies.trim(-5) == [("evicted", 40)]
    assert (len(copies), copies.tokens) == (0, 0)


# -- rectangles ---------------------------------------------------------------------------------------------


def test_a_rectangle_grows_in_steps_and_loses_padding() -> None:
    """As the real class does it: from 234 tokens to steps of 256 behind them; rows that leave take their padding along."""
    rows = PaddedRows(2, 0)
    rows.grow(234)
    assert (rows.longest, rows.room, rows.held) == (234, 256, 512)
    rows.grow(300)
    assert (rows.longest, rows.room) == (534, 234 + 512)
    rows.join(PaddedRows(1, 800))
    assert (rows.rows, rows.longest, rows.room) == (3, 800, 800)
    rows.grow(1)
    assert (rows.longest, rows.room) == (801, 1056)
    rows.keep(2, 535)
    assert (rows.longest, rows.room, rows.held) == (535, 790, 1580)
    rows.keep(0, 0)
    assert rows.held == 0


@given(rows=st.integers(1, 5), longest=st.integers(1, 600), steps=st.integers(1, 700))
def test_many_steps_hold_what_single_ones_hold(rows: int, longest: int, steps: int) -> None:
    one, many = PaddedRows(rows, longest), PaddedRows(rows, longest)
    held = 0
    for _ in range(steps):
        one.grow(1)
        held += one.held
    assert many.held_over(steps) == held
    assert (many.longest, many.room) == (one.longest, one.room)


def test_a_completion_is_one_segment() -> None:
    served = Served([(0.0, 100, 3, 1)] * 2, record=True, system_tokens=no_system)
    stored = [entry for call in served.batches for entry in call.stored]
    assert {kind for kind, _ in stored} == {"assistant"}


def test_requests_served_alone_come_one_by_one_and_are_stored_when_they_end() -> None:
    served = Served(
        [(0.0, 300, 10, 1)] * 3, record=True, alone=True, decode_concurrency=1, prompt_concurrency=1
    )
    taken = [call.number for call in served.batches if call.taken]
    assert taken == [0, 12, 24]  # a prompt, its last token, ten decodes each
    assert [entry for call in served.batches for entry in call.stored] == [("assistant", 310)] * 2
    assert [found for call in served.batches for _, found in call.hits] == [100, 100]
