"""SGLang's pool of windows: exact jumps, conservation in both pools, what is found again, and who waits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.memory.radix import content_of
from engine_models.memory.windowed_radix import WindowedPool, WindowNode
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import POLICIES, PrefillFirstRules
from engine_models.schedulers.prefill_first_windowed import WindowedPrefillFirstScheduler
from hardware_profiles.errors import InfeasibleError
from simulator.serving.replica import Replica
from tests.effort import examples
from tests.invariants.core_cases import SpannedClock

CLOCK = {"a": 0.008, "b": 2.5e-05, "c": 0.0001, "d": 2e-08}


def row(index: int, runs: tuple[tuple[int, int, int], ...], output: int, at_s: float, **more: Any) -> Sequence:
    prompt = sum(run[2] for run in runs)
    return Sequence(index, prompt, output, at_s, runs=runs, shareable_tokens=prompt, **more)


def serve(
    rules: PrefillFirstRules, pool: WindowedPool, requests: list[Sequence], *, aggregate: bool
) -> tuple[Replica, WindowedPrefillFirstScheduler]:
    scheduler = WindowedPrefillFirstScheduler(rules, pool, aggregate=aggregate)
    replica = Replica([scheduler], SpannedClock(CLOCK), depth=rules.in_flight)
    for seq in requests:
        replica.advance(seq.arrival_s)
        replica.ranks[0].submit(seq)
    replica.advance(float("inf"))
    return replica, scheduler


DRAWN = st.tuples(
    st.integers(0, 1),
    st.sampled_from((20, 60, 90, 200)),
    st.integers(1, 80),
    st.integers(1, 500),
    st.integers(0, 20),
    st.booleans(),
)


@given(
    st.lists(DRAWN, min_size=1, max_size=12),
    st.builds(
        PrefillFirstRules,
        max_running_requests=st.sampled_from((1, 3, 64)),
        max_model_len=st.just(4096),
        chunked_prefill_size=st.sampled_from((None, 64, 256)),
        in_flight=st.sampled_from((1, 2)),
        schedule_policy=st.sampled_from([policy for policy in POLICIES if policy not in ("random", "routing-key")]),
        schedule_conservativeness=st.sampled_from((0.1, 1.0)),
        mixed_chunk=st.booleans(),
    ),
    st.sampled_from((1, 4, 16)),
    st.sampled_from((1000, 3000, 9000)),
    st.sampled_from((512, 768, 1024, 4096)),
    st.sampled_from((4, 16, 64)),
    st.booleans(),
)
@settings(max_examples=examples(200), deadline=None)
def test_jumps_equal_steps_and_both_pools_keep_their_tokens(
    drawn: list[Any], rules: PrefillFirstRules, page: int, capacity: int, window_tokens: int, span: int, caching: bool
) -> None:
    runs = []
    for aggregate in (False, True):
        at_s, requests = 0.0, []
        for index, (head, shared, prompt, output, gap, known) in enumerate(drawn):
            at_s += gap * 0.05
            content = ((head, 0, shared), (100 + index, 0, prompt))
            requests.append(row(index, content, output, at_s, stop_known=known))
        pool = WindowedPool(capacity, page, min(window_tokens, capacity), span, prefix_caching=caching)
        replica, scheduler = serve(rules, pool, requests, aggregate=aggregate)
        assert not scheduler.has_work()
        tree = pool.windows
        assert pool.free_tokens + tree.evictable_tokens == pool.capacity_tokens
        assert tree.window_free + tree.window_evictable == pool.window_capacity
        kept = [(node.length, node.live) for node in tree.nodes() if isinstance(node, WindowNode)]
        assert sum(length for length, live in kept if live) == tree.window_evictable
        assert not any(node.lock or (isinstance(node, WindowNode) and node.window_lock) for node in tree.nodes())
        steps = np.frombuffer(replica.ranks[0].log.end_s)
        emitted = [seq.emissions for seq in requests]
        runs.append((steps.tobytes(), emitted, scheduler.ratio, [seq.preemptions for seq in requests], sorted(kept)))
    assert runs[0] == runs[1]


def test_a_shared_prefix_is_found_from_the_third_request_on() -> None:
    """The first leaves the window before its own end, the second computes the prefix again and leaves that before the fork."""
    rules = PrefillFirstRules(max_running_requests=4, max_model_len=4096)
    requests = [row(index, ((7, 0, 300), (10 + index, 0, 200)), 4, 10.0 * index) for index in range(4)]
    serve(rules, WindowedPool(8000, 1, 6400, 64), requests, aggregate=True)
    assert [seq.first_hit_tokens for seq in requests] == [0, 0, 300, 300]


def test_a_longer_prompt_finds_a_whole_prompt_at_once() -> None:
    rules = PrefillFirstRules(max_running_requests=4, max_model_len=4096)
    turns = [row(0, ((7, 0, 300),), 4, 0.0), row(1, ((7, 0, 300), (8, 0, 100)), 4, 10.0)]
    serve(rules, WindowedPool(8000, 1, 6400, 64), turns, aggregate=True)
    assert turns[1].first_hit_tokens == 300


def test_a_small_pool_of_windows_holds_requests_back() -> None:
    """Each of the rows asks for a window and a token; the pool of three windows lets two run at once, the other pool all."""
    ends = {}
    for window_tokens in (6400, 320):
        rules = PrefillFirstRules(max_running_requests=8, max_model_len=4096)
        requests = [row(index, ((10 + index, 0, 100),), 100, 0.0) for index in range(4)]
        serve(rules, WindowedPool(8000, 1, window_tokens, 100), requests, aggregate=True)
        ends[window_tokens] = [seq.emissions[0] for seq in requests]
    assert len(set(ends[6400])) == 1
    assert len(set(ends[320])) > 1


def test_what_never_fits_the_pool_of_windows_is_said() -> None:
    rules = PrefillFirstRules(max_running_requests=4, max_model_len=4096, chunked_prefill_size=None)
    with pytest.raises(InfeasibleError, match="layers with windows"):
        serve(rules, WindowedPool(8000, 1, 200, 64), [row(0, ((7, 0, 600),), 4, 0.0)], aggregate=True)


def test_windows_go_before_the_rest_of_a_node() -> None:
    pool = WindowedPool(1000, 1, 300, 16)
    tree = pool.windows
    seq = row(0, ((7, 0, 200),), 1, 0.0)
    pool.take(200)
    _, node = tree.enter(content_of(seq), 200, counted=0, priority=0, protected=0, slid=0)
    held = tree.lock(node)
    assert tree.window_free == 100
    assert tree.window_evictable == 184  # the last 16 are held
    assert not pool.make_room(290)
    assert tree.window_free == 284
    assert tree.match(content_of(seq), 200)[0] == 200
    assert tree.match(content_of(seq), 190)[0] == 0  # all of it is there, but the windows only of its last 6 tokens
    assert tree.reached == 190
    tree.unlock(node, held)
    assert tree.window_evictable == 16
    assert pool.make_room(300)
    assert tree.evictable_tokens == 190  # the unlocked leaf went as a whole
