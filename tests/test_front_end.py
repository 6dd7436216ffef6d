"""A front end that is one event loop: rounds of requests, passes of tokens, and what both do to a run."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as Series
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from engine_models.cost.event_loop import EventLoop
from engine_models.declaration import FrontEnd
from engine_models.memory.radix import RadixPool
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import INFINITY, FloatArray, StepCost
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstRules, PrefillFirstScheduler
from simulator import simulate
from simulator.results.latencies import OF_FIRST_TOKEN, latencies
from simulator.serving import front_end
from simulator.serving.front_end import LoopedFrontEnd
from simulator.serving.log import StepLog
from simulator.serving.replica import Replica

LOOP = EventLoop(
    request_s=4.0,
    chat_s=2.0,
    prompt_token_s=0.5,
    hand_over_s=1.0,
    step_s=2.0,
    row_s=3.0,
    merged_row_s=0.25,
    idle_factor=2.0,
)
PLAIN = FrontEnd(loop=LOOP, chat=False)


def reached_s(front: FrontEnd, *arrivals_s: float, prompt_tokens: int = 2) -> list[float]:
    """When requests reach the scheduler."""
    loop, ready = LoopedFrontEnd(front, StepLog(), list), deque[Sequence]()
    loop.coming.extend(Sequence(i, prompt_tokens, 5, at_s) for i, at_s in enumerate(arrivals_s))
    loop.rounds_until(INFINITY, ready)
    return [seq.arrival_s for seq in ready]


def sent_s(
    rounds: list[tuple[float, float]], *steps: tuple[list[float], int, int], seen_s: dict[int, float] | None = None
) -> list[float]:
    """When the tokens of steps are sent: their ends, rows and prompts; past rounds; by entry, when its last step is seen."""
    log = StepLog()
    loop = LoopedFrontEnd(PLAIN, log, list)
    loop._rounds.extend(rounds)
    for number, (ends_s, rows, prompts) in enumerate(steps):
        log.run(0.0, ends_s, 0.0, 0, 0, 0, 0, 0)
        loop.waiting.append((len(ends_s), rows, prompts))
        if seen_s and number in seen_s:
            loop.sees_late(seen_s[number])
    loop.send_until(INFINITY)
    return list(log.sent_s)


def test_requests_are_handed_over_when_their_round_is_taken_in() -> None:
    assert reached_s(PLAIN, 10.0) == [
        10 + (8 + 1) + 2
    ]  # alone, the loop idle: twice as long but for its tokens
    assert reached_s(PLAIN, 0.0, 0.0, 0.0) == [15.0 + 1, 16.0 + 1, 17.0 + 1]  # 3 x (4 + 1), then one by one
    # the second comes while the first is taken in, and waits for its round to end; the third likewise
    assert reached_s(PLAIN, 1.0, 2.0, 13.0) == [12.0, 12 + 5 + 1, 18 + 5 + 1]
    assert reached_s(replace(PLAIN, chat=True), 10.0) == [10 + (12 + 1) + 2]
    # two processes share all but what the first takes
    assert reached_s(replace(PLAIN, loop=replace(LOOP, share=0.5)), 0.0, 0.0) == [7.5 + 1, 8.0 + 1]


def test_prompts_are_tokenised_beside_the_loop() -> None:
    assert reached_s(replace(PLAIN, tokenise_token_s=10.0), 0.0, 0.0) == [5 + 20 + 1, 25 + 20 + 1]


def test_a_loop_that_tokenises_late_hands_requests_over_one_by_one() -> None:
    """Three are taken in before any prompt is dealt with; the first need not wait for the prompts of the others."""
    late = replace(PLAIN, tokenises_late=True)
    assert reached_s(late, 0.0, 0.0, 0.0) == [12.0 + 2, 14.0 + 2, 16.0 + 2]
    assert reached_s(late, 10.0) == reached_s(PLAIN, 10.0)
    loop = LoopedFrontEnd(late, StepLog(), list)
    loop.coming.append(Sequence(0, 2, 5, 1.0))
    assert loop.next_s() == 1 + 4 + (1 + 1)


def test_tokens_wait_until_their_step_is_seen() -> None:
    assert sent_s([], ([10.0], 1, 0), ([30.0], 1, 0), seen_s={0: 22.0}) == [22.0 + 5, 30.0 + 5]
    assert sent_s([], ([10.0], 1, 0), ([22.0], 1, 0), seen_s={0: 22.0}) == [22.0 + 5, 22 + 5 + 0.25]


class Launched(StepCost):
    """Prompts take 2 s of the device and 10 of the host, which launches them; steps that decode 6 s."""

    def step_s(self, batches: Series[Batch]) -> tuple[float, list[float]]:
        self.launch_s, self.launch_wait_s = (10.0, 8.0) if batches[0].prefill else (0.0, 0.0)
        return 10.0 if batches[0].prefill else 6.0, [0.0]

    def run_s(self, shapes: Series[Batch], steps: int) -> FloatArray:
        return np.full(steps, 6.0)

    def few_s(self, shapes: Series[Batch], steps: int) -> list[float]:
        return [6.0] * steps

    def host_s(self, batch: Batch) -> float:
        return 0.0


@pytest.mark.parametrize(("ahead", "ends_s", "sent_s"), [(False, 32.0, 27.0), (True, 26.0, 31.0)])
def test_a_prompt_is_launched_while_the_step_before_runs(ahead: bool, ends_s: float, sent_s: float) -> None:
    """The second prompt comes at 11, in the step of 10 to 16, and is launched from 16 to 26, when the step to 22 is seen."""
    scheduler = PrefillFirstScheduler(PrefillFirstRules(8, 1000, 1000, in_flight=2), RadixPool(1000))
    replica = Replica([scheduler], Launched(), depth=2, launches_ahead=ahead, front=FrontEnd(loop=replace(LOOP, request_s=0.0,
        prompt_token_s=0.0, hand_over_s=0.0), chat=False))
    for index, at_s in enumerate((0.0, 11.0)):
        replica.advance(at_s)
        replica.ranks[0].submit(Sequence(index, 20, 5, at_s))
    replica.advance(40.0)
    replica.ranks[0].send(40.0)
    assert list(replica.ranks[0].log.end_s)[:4] == [10.0, 16.0, 22.0, ends_s]
    assert replica.ranks[0].log.sent_s[2] == sent_s


@pytest.mark.parametrize(("ahead", "prompts"), [(False, [1, 1, 1, 1]), (True, [1, 1, 2])])
def test_who_comes_while_a_prompt_is_launched_is_in_the_next_step(ahead: bool, prompts: list[int]) -> None:
    """The host launches the second prompt from 16 to 26; two more come at 20 and 24."""
    formed: list[int] = []
    scheduler = PrefillFirstScheduler(PrefillFirstRules(8, 1000, 1000, in_flight=2), RadixPool(1000))
    replica = Replica([scheduler], Launched(), depth=2, launches_ahead=ahead,
        on_batch=lambda batch: formed.append(len(batch.prefill)))
    for index, at_s in enumerate((0.0, 11.0, 20.0, 24.0)):
        replica.advance(at_s)
        replica.ranks[0].submit(Sequence(index, 20, 5, at_s))
    replica.advance(90.0)
    assert [together for together in formed if together] == prompts


def test_tokens_leave_in_passes() -> None:
    assert sent_s([], ([10.0], 1, 0), ([30.0], 2, 1)) == [10 + 5, 30 + 11]
    # the pass of 11 waits for that of 10, the tokens of 12 join it, as those of a prompt do that ends at 13
    assert sent_s([], ([10.0, 11.0, 12.0], 1, 0), ([13.0], 0, 1)) == [15.0, 20.0, 20.25, 23.25]
    # a round that has begun goes first, and one that begins with the step's end or later does not
    assert sent_s([(9.0, 12.0), (20.0, 90.0)], ([10.0, 20.0], 1, 0)) == [17.0, 25.0]


def test_many_steps_are_sent_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    for spread in (1.0, 12.0):
        ends_s = np.cumsum(4 + rng.exponential(spread, 400)).tolist()
        rounds = [(ends_s[k] + 1.0, ends_s[k] + 30.0) for k in (3, 160, 191)]
        steps = [([end_s], 1 + k % 2, k % 3) for k, end_s in enumerate(ends_s)]
        seen_s = {k: ends_s[k + 1] for k in (0, 40, 41, 161, 398)}
        monkeypatch.setattr(front_end, "MANY", 10**9)
        one_by_one = sent_s(rounds, *steps, seen_s=seen_s)
        monkeypatch.setattr(front_end, "MANY", 0)
        assert sent_s(rounds, *steps, seen_s=seen_s) == one_by_one != sent_s(rounds, *steps)


def burst(engine: str, **more: Any) -> dict[str, Any]:
    return {
        "model": "Qwen/Qwen3-8B",
        "deployment": {"engine": engine, "hardware": "h100-sxm-80gb"},
        "workload": {
            "arrivals": {"kind": "batch"},
            "requests": 60,
            "prompt_tokens": 100,
            "output_tokens": 20,
        },
        **more,
    }


def test_chats_at_once_wait_for_the_templates_of_all() -> None:
    """vLLM 0.11.0 parses the template of each: 9.8 ms on the core of the measurement, which is 1.25 times as fast."""
    chats, prompts = (
        simulate(burst("vllm@0.11.0")),
        simulate(burst("vllm@0.11.0", client={"route": "completions"})),
    )
    longer_ms = (
        chats.result["metrics"]["ttft_front_ms"]["mean"] - prompts.result["metrics"]["ttft_front_ms"]["mean"]
    )
    assert longer_ms == pytest.approx((59 + 3) * (9.8 + 0.24) / 0.8, rel=0.02)
    newer = simulate(burst("vllm@0.11.1")).result["metrics"]["ttft_front_ms"]["mean"]
    assert newer == pytest.approx(
        prompts.result["metrics"]["ttft_front_ms"]["mean"] + 62 * 0.24 / 0.8, rel=0.05
    )


@pytest.mark.parametrize("engine", ["vllm@0.11.0", "sglang@0.5.6"])
def test_parts_of_ttft_are_the_whole_and_jumps_change_nothing(engine: str) -> None:
    given = burst(engine)
    given["workload"] |= {"arrivals": {"kind": "closed_loop", "concurrency": 9}, "max_output_tokens": "equal"}
    jumped, stepped = simulate(given), simulate(given, aggregate=False)
    assert jumped.result["metrics"] == stepped.result["metrics"]
    lat = latencies(jumped.raw)
    parts = [getattr(lat, name) for name in OF_FIRST_TOKEN]
    np.testing.assert_allclose(np.sum(parts, axis=0), lat.ttft_ms)
    assert all((part >= 0).all() for part in parts)
    launched = lat.ttft_launch_ms.max() > 0
    assert launched  # eagerly (SGLang), or beside the host's time of a step (vLLM 0.11)


def test_processes_and_hosts_share_the_work() -> None:
    def front_ms(**pool: Any) -> float:
        given = burst("vllm")
        given["deployment"] |= pool
        mean: float = simulate(given).result["metrics"]["ttft_front_ms"]["mean"]
        return mean

    assert front_ms(engine_args={"api_server_count": 4}) < 0.45 * front_ms()
    assert front_ms(host_speed=0.4) > 1.8 * front_ms()
