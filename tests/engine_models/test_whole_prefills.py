"""Whole prompts first: exact runs, timelines worked by hand from the source, and vLLM's versions that do so."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler
from engine_models.schedulers.whole_prefills import WholePrefillRules, WholePrefillScheduler
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.prepared import Prepared
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import Served

CLOCK = {"a": 0.008, "b": 2.5e-5, "c": 1e-4, "d": 2e-8}
Asked = tuple[float, int, int]
"""Arrival [s], prompt and output tokens."""


def served(knobs: tuple[int, int, int], asked: list[Asked], *, aggregate: bool = False, record: bool = False) -> Served:
    """What becomes of requests under so many tokens and rows a step, and blocks."""
    tokens, rows, blocks = knobs
    rules = WholePrefillRules(tokens, rows)
    scheduler = WholePrefillScheduler(rules, blocks, 16, aggregate=aggregate, record_rows=record)
    return Served(scheduler, asked, RecordedClock(CLOCK))


loads = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.3]), st.integers(1, 200), st.integers(1, 90)), min_size=1, max_size=25)


@settings(max_examples=examples(40), derandomize=True)
@given(st.tuples(st.sampled_from([300, 900]), st.sampled_from([1, 3, 16]), st.sampled_from([20, 45, 400])), loads)
def test_runs_equal_steps(knobs: tuple[int, int, int], load: list[tuple[float, int, int]]) -> None:
    at_s, asked = 0.0, []
    for gap_s, prompt, output in load:
        at_s += gap_s
        asked.append((at_s, prompt, output))
    jumped, stepped = (served(knobs, asked, aggregate=aggregate) for aggregate in (True, False))
    assert jumped.tokens == stepped.tokens
    assert [len(tokens) for tokens in jumped.tokens] == [output for _, _, output in asked]
    assert jumped.ends == stepped.ends
    assert jumped.log.end_s == stepped.log.end_s
    for name, column in jumped.log.records().items():
        assert column.tolist() == stepped.log.records()[name].tolist(), name
    assert jumped.scheduler.state() == (0, 0, 0, knobs[2])


def test_a_timeline_of_prompts_before_decodes() -> None:
    """scheduler.py, `_schedule_default`: nobody decodes in a step that begins prompts, and a prompt is begun as soon as it is
    there."""
    found = served((512, 8, 100), [(0.0, 100, 3), (0.001, 50, 2)], record=True)
    assert found.rows() == [[(0, 100, 0)], [(1, 50, 0)], [(0, 1, 100), (1, 1, 50)], [(0, 1, 101)]]


def test_a_timeline_of_the_budget() -> None:
    """scheduler.py, `_schedule_prefills`: two prompts of 100 tokens go within 256, the third waits for the next step; three rows
    are let in."""
    found = served((256, 3, 100), [(0.0, 100, 2)] * 4, record=True)
    assert [[index for index, _, _ in rows] for rows in found.rows()] == [[0, 1], [2], [0, 1, 2], [3], [3]]


def test_a_timeline_of_preemption() -> None:
    """scheduler.py, `_schedule_running`: a row without need of a block asks for a free one too; the last row gives way and
    computes its prompt and its answer as one prompt, before the others decode again."""
    found = served((256, 8, 10), [(0.0, 64, 4), (0.0, 64, 4)], record=True)
    assert found.rows() == [
        [(0, 64, 0), (1, 64, 0)],
        [(0, 1, 64), (1, 1, 64)],
        [(0, 1, 65)],
        [(1, 66, 0)],
        [(0, 1, 66)],
        [(1, 67, 0)],
    ]
    assert [seq.preemptions for seq in found.seqs] == [0, 2]


def test_a_request_can_be_dropped() -> None:
    scheduler = WholePrefillScheduler(WholePrefillRules(512, 2), 100, 16)
    seqs = [Sequence(index, 100, 5, 0.0) for index in range(3)]
    for seq in seqs:
        scheduler.add(seq)
    batch = scheduler.schedule(0.0)
    assert batch is not None
    scheduler.settle(batch)
    assert all(scheduler.cancel(seq) for seq in seqs)
    assert not scheduler.has_work()
    assert scheduler.state() == (0, 0, 0, 100)


def prepared(engine: str, **deployment: Any) -> Prepared:
    scenario = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"engine": engine, "hardware": "h100-sxm-80gb", **deployment},
        "workload": {"requests": 4, "arrivals": {"kind": "batch"}, "prompt_tokens": 100, "output_tokens": 5},
    }
    return prepare(load_scenario(scenario))


def test_the_first_engine_cuts_prompts_of_long_contexts_only() -> None:
    short, long = (prepared("vllm@0.6.3", engine_args={"max_model_len": n}).plan for n in (8192, 65536))
    assert isinstance(short.scheduler("jump"), WholePrefillScheduler)
    assert (short.limits.step_tokens, short.limits.rows, short.prefix_caching) == (8192, 256, False)
    assert isinstance(long.scheduler("jump"), ContinuousScheduler)
    assert (long.limits.step_tokens, long.executor.depth) == (512, 1)


@pytest.mark.parametrize(("version", "rules"), [("0.6.3", "the rules of its first engine"), ("0.8.5", "0.11.0's rules")])
def test_what_was_never_measured_is_said(version: str, rules: str) -> None:
    plan = prepared(f"vllm@{version}").plan
    assert any(f"vLLM {version} is taken to follow {rules}" in text for text in plan.warnings)
    assert plan.outside == (f"version: runs of vLLM 0.11.0 and later were measured, not of {version}",)
    assert isinstance(plan.scheduler("jump"), ContinuousScheduler)


def test_what_the_first_engine_is_not_modelled_with_is_refused() -> None:
    with pytest.raises(InputError, match=r"prefix caching in vLLM 0\.6\.0, whose first engine"):
        prepared("vllm@0.7.3", engine_args={"enable_prefix_caching": True})
    with pytest.raises(InputError, match="pipeline parallelism"):
        prepared("vllm@0.6.3", pipeline_parallel=2)
