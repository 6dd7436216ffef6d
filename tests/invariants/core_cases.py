"""Random workloads and scheduler knobs for the invariants of the core, built by hand: no scenario, no kernel model."""

from __future__ import annotations

from collections.abc import Sequence as Series
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from engine_models.cost.event_loop import EventLoop
from engine_models.declaration import EnginePlan, Executor, FrontEnd, Limits
from engine_models.engines.vllm_ranks import Rank
from engine_models.memory.hybrid_kv import STATE_WINDOW
from engine_models.parts.batch import Batch, ContinuousRules
from simulator.cluster.cluster import Cluster
from simulator.cluster.outcome import ClusterResult
from simulator.validation.schedules import RecordedClock
from simulator.workload.columns import Content, RequestClass, Workload

FloatArray = NDArray[np.float64]

CLOCK = {"a": 0.006, "b": 2.5e-5, "c": 2e-5, "d": 2e-8}


class SpannedClock(RecordedClock):
    """A clock that also prices what decode rows attend to in windows, and so tells whether a shape names it rightly."""

    SPAN_S = 3e-8

    def step_s(self, batches: Series[Batch]) -> tuple[float, list[float]]:
        """As of the base."""
        slowest = 0.0
        for batch in batches:
            spans_s = self.SPAN_S * sum(span.tokens for span in batch.spans)
            slowest = max(slowest, spans_s + super().step_s([batch])[0])
        return slowest, [0.0] * len(batches)

    def run_s(self, shapes: Series[Batch], steps: int) -> FloatArray:
        """As of the base."""
        slowest = np.zeros(steps)
        for shape in shapes:
            tokens, grows = sum(s.tokens for s in shape.spans), sum(s.grows for s in shape.spans)
            spans_s = self.SPAN_S * (tokens + grows * np.arange(steps))
            slowest = np.maximum(slowest, spans_s + super().run_s([shape], steps))
        return slowest


@dataclass(frozen=True)
class Case:
    """One random run: the seed of its workload, how it is fed, and the scheduler's knobs."""

    seed: int
    requests: int
    rate_per_s: float
    feed: str  # open, sessions, closed
    shared: bool
    priorities: bool
    replicas: int
    depth: int
    blocks: int
    caching: bool
    limits: bool
    knobs: tuple[tuple[str, Any], ...]
    windows: tuple[int | None, ...] = (None,)
    switches: tuple[tuple[str, bool], ...] = ()
    to_head: bool = True


@st.composite
def cases(draw: st.DrawFn, *, feeds: tuple[str, ...] = ("open", "sessions", "closed")) -> Case:
    """Small runs under pressure: few blocks, few rows, small budgets."""
    priorities = draw(st.booleans())
    chunked = draw(st.sampled_from([True, True, True, False]))
    knobs: dict[str, Any] = {
        "max_num_batched_tokens": 1024 if not chunked else draw(st.sampled_from([48, 100, 300, 2048])),
        "max_num_seqs": draw(st.sampled_from([2, 5, 16, 256])),
        "policy": "priority" if priorities else "fcfs",
        "chunked_prefill": chunked,
        "long_prefill_token_threshold": draw(st.sampled_from([0, 0, 40])),
        "watermark": draw(st.sampled_from([0.0, 0.0, 0.05])),
        "reserve_full_prompt": draw(st.booleans()),
    }
    return Case(
        seed=draw(st.integers(0, 10_000)),
        requests=draw(st.integers(1, 60)),
        rate_per_s=draw(st.sampled_from([5.0, 40.0, 400.0])),
        feed=draw(st.sampled_from(feeds)),
        shared=draw(st.booleans()),
        priorities=priorities,
        replicas=draw(st.integers(1, 3)),
        depth=draw(st.sampled_from([1, 2])),
        blocks=draw(st.sampled_from([40, 60, 100, 2000])),
        caching=draw(st.booleans()),
        limits=draw(st.booleans()),
        knobs=tuple(sorted(knobs.items())),
    )


@st.composite
def windowed_cases(draw: st.DrawFn, *, feeds: tuple[str, ...] = ("open", "sessions", "closed")) -> Case:
    """Runs over several KV groups, windows from less than a block to more than a context, of old and new versions."""
    case = draw(cases(feeds=feeds))
    windows = draw(
        st.sampled_from(
            [
                (None, 40),
                (None, 128),
                (None, 5),
                (None, None, 64, 64, 64),
                (33,),
                (None, 2000),
                (None, 48, 100),
                (20, None, 70),
            ]
        )
    )
    switches = {
        name: draw(st.booleans()) for name in ("capped_admission", "frees_processed", "sparse_windows")
    }
    return replace(
        case,
        windows=windows,
        switches=tuple(switches.items()),
        to_head=draw(st.sampled_from([True, True, False])),
        blocks=40 * len(windows) * draw(st.sampled_from([1, 1, 2, 3, 20])) + draw(st.integers(0, 20)),
    )


@st.composite
def state_cases(draw: st.DrawFn, *, feeds: tuple[str, ...] = ("open", "sessions", "closed")) -> Case:
    """Runs over groups of attention and of states, which are kept if prefixes are cached."""
    case = draw(windowed_cases(feeds=feeds))
    windows = (*draw(st.sampled_from([(None,), (None,), (None, 40)])), *[STATE_WINDOW] * draw(st.integers(1, 3)))
    knobs = dict(case.knobs)
    if case.caching:
        knobs |= {"chunked_prefill": True, "aligned_tokens": 16}
    blocks = 45 * len(windows) * draw(st.sampled_from([1, 1, 2, 3, 20])) + draw(st.integers(0, 20))
    return replace(case, windows=windows, knobs=tuple(sorted(knobs.items())), blocks=blocks)


def workload_of(case: Case) -> Workload:
    """Columns of a case: prompts to 300 tokens, outputs to 120, shared prefixes, conversations, closed loops."""
    rng = np.random.default_rng(case.seed)
    n = case.requests
    arrival = np.cumsum(rng.exponential(1 / case.rate_per_s, n))
    prompt = rng.integers(1, 300, n)
    output = rng.integers(1, 120, n)
    predecessor = np.full(n, -1)
    gap = np.zeros(n)
    out_segment = np.full(n, -1)
    out_offset = np.zeros(n, np.int64)
    runs: list[list[tuple[int, int, int]]] = [[(100 + i, 0, int(prompt[i]))] for i in range(n)]
    if case.shared:
        for i in range(n):
            common = int(rng.integers(1, 160))
            if rng.random() < 0.7:
                runs[i] = [(int(rng.integers(0, 3)), 0, common), (100 + i, 0, int(prompt[i]))]
                prompt[i] += common
    if case.feed == "sessions":  # every third request follows the one before it and contains its conversation
        for i in range(1, n):
            if i % 3 == 0:
                continue
            before = i - 1
            predecessor[i], gap[i], arrival[i] = before, float(rng.choice([0.0, 0.02, 0.5])), np.nan
            start = int(prompt[before])
            if start + output[before] + 40 > 500:
                continue
            out_segment[before], out_offset[before] = 10_000 + before, 0
            more = int(rng.integers(1, 40))
            runs[i] = [*runs[before], (10_000 + before, 0, int(output[before])), (20_000 + i, 0, more)]
            prompt[i] = start + int(output[before]) + more
    elif case.feed == "closed":
        predecessor[4:], arrival[4:] = -2, np.nan
    class_index = rng.integers(0, 2 if case.priorities else 1, n)
    class_index[:4] = ([0, 1, 0, 1] if case.priorities else [0] * 4)[
        :n
    ]  # a closed loop of either class gets going
    starts = np.concatenate([[0], np.cumsum([len(r) for r in runs])])
    flat = np.array([run for r in runs for run in r], dtype=np.int64)
    zeros = np.zeros(n, np.int64)
    classes = (RequestClass("a", 0), RequestClass("b", 2)) if case.priorities else (RequestClass("a"),)
    return Workload(
        arrival_s=arrival,
        prompt_tokens=prompt.astype(np.int64),
        output_tokens=output.astype(np.int64),
        max_output_tokens=output.astype(np.int64) + rng.integers(0, 2, n) if case.limits else zeros,
        predecessor=predecessor.astype(np.int64),
        gap_s=gap,
        not_before_s=np.zeros(n),
        session_id=zeros - 1,
        turn=zeros,
        class_index=class_index.astype(np.int64),
        classes=classes,
        content=Content(
            start=starts,
            segment=flat[:, 0].copy(),
            offset=flat[:, 1].copy(),
            length=flat[:, 2].copy(),
            output_segment=out_segment,
            output_offset=out_offset,
        ),
        request_ids=None,
        duration_s=1e4,
        warmup_s=0.0,
        drain_s=1e4,
    )


def plain_workload(arrival_s: np.ndarray, prompt: np.ndarray, output: np.ndarray) -> Workload:
    """An open workload without shared content."""
    n = len(arrival_s)
    zeros = np.zeros(n, np.int64)
    return Workload(
        arrival_s=np.asarray(arrival_s, float),
        prompt_tokens=np.asarray(prompt, np.int64),
        output_tokens=np.asarray(output, np.int64),
        max_output_tokens=zeros,
        predecessor=zeros - 1,
        gap_s=np.zeros(n),
        not_before_s=np.zeros(n),
        session_id=zeros - 1,
        turn=zeros,
        class_index=zeros,
        classes=(RequestClass("a"),),
        content=None,
        request_ids=None,
        duration_s=float(np.nanmax(arrival_s)) + 1.0,
        warmup_s=0.0,
        drain_s=1e9,
    )


def plan_of(case: Case) -> EnginePlan:
    """The engine of a case."""
    made = plan(
        case.blocks,
        case.depth,
        caching=case.caching,
        to_head=case.to_head,
        windows=case.windows,
        switches=dict(case.switches),
        **dict(case.knobs),
    )
    return replace(made, front=replace(made.front, loop=LOOP))


def plan(
    blocks: int,
    depth: int = 1,
    *,
    caching: bool = False,
    to_head: bool = True,
    windows: tuple[int | None, ...] = (None,),
    switches: dict[str, bool] | None = None,
    drops_block: bool = False,
    **knobs: Any,
) -> EnginePlan:
    """An engine plan of which only the scheduler, the cache and the executor matter."""
    settings: dict[str, Any] = {"max_num_batched_tokens": 8192, "max_num_seqs": 256, "max_model_len": 4096}
    rules = ContinuousRules(**{**settings, "in_flight": depth, **knobs})
    rank = Rank(rules, blocks, 16, caching, to_head, windows, switches or {}, drops_block=drops_block)
    held = blocks // max(1, sum(window is None for window in windows)) * 16
    return plan_around(rank.scheduler, rules.max_num_seqs, rules.max_num_batched_tokens, held, depth, caching)


def plan_around(
    scheduler: Any, rows: int, step_tokens: int, kv_tokens: int, depth: int, caching: bool
) -> EnginePlan:
    """An engine plan around a scheduler with a context of 4,096 tokens."""
    unused: Any = None
    return EnginePlan(
        engine="vllm",
        version="test",
        limits=Limits(
            rows=rows,
            step_tokens=step_tokens,
            context_tokens=4096,
            kv_tokens=kv_tokens,
            kv_blocks=kv_tokens // 16,
            block_tokens=16,
            prompt_tokens=4095,
            row_tokens=4096,
        ),
        memory=unused,
        scheduler=scheduler,
        costs=unused,
        executor=Executor(depth=depth),
        front=FrontEnd(tokenise_token_s=2e-5),
        prefix_caching=caching,
    )


LOOP = EventLoop(
    request_s=1e-3,
    chat_s=0.0,
    prompt_token_s=1e-6,
    hand_over_s=5e-4,
    step_s=2e-3,
    row_s=5e-4,
    merged_row_s=1e-4,
    idle_factor=2.0,
    share=0.75,
)
"""So slow that passes run into each other and rounds into passes."""


def run(case: Case, **options: Any) -> ClusterResult:
    """Run a case to its end."""
    return Cluster(
        workload_of(case), plan_of(case), SpannedClock(CLOCK), replicas=case.replicas, **options
    ).run()
