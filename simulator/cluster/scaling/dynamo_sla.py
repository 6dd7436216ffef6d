"""Dynamo's planner with ``optimization_target: sla``: prefill and decode replicas from predicted TTFT and ITL.

*By throughput*, every 180 s: the requests of the interval, their mean prompt and answer, are predicted for the next one, and
divided by what a replica serves. *By load*, if it is on, every 5 s: one replica more where the latency that is estimated of all
exceeds the SLA, one less where it would stay well below with one less; throughput then gives the least count.

The planner fits the time of a forward pass to those that it observes; here it knows the engine's own times.

Source: `dynamo/planner/core/{throughput_scaling,load_scaling}.py`, `core/perf_model/{prefill,decode}.py`,
`core/load/predictors.py` and `config/defaults.py` of `ai-dynamo` 1.6.1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Series

from hardware_profiles.records import dataclass
from simulator.cluster.scaling.dynamo import LOAD_S, SENSITIVITY_SHARE, Bounds, by_estimates, by_rate
from simulator.cluster.scaling.scaler import Counts, JointScaler, Reading, Seen

THROUGHPUT_S = 180.0
"""Time between two decisions by throughput [s] (datasheet: `throughput_adjustment_interval_seconds`)."""


class Predictor(ABC):
    """Says the next value of a series; zeros before the first other value are not in it."""

    def __init__(self) -> None:
        self.latest = 0.0
        self._begun = False

    def add(self, value: float) -> None:
        """Take in a value."""
        self._begun = self._begun or value != 0.0
        if self._begun:
            self.latest = value
            self._update(value)

    @abstractmethod
    def _update(self, value: float) -> None:
        """Take in a value of the series."""

    @abstractmethod
    def next(self) -> float:
        """The next value."""


class Constant(Predictor):
    """The latest value."""

    def _update(self, value: float) -> None:
        pass

    def next(self) -> float:
        """As of the base."""
        return self.latest


Q_LEVEL, Q_TREND, NOISE, FIRST_VARIANCE = 1.0, 0.1, 10.0, 1000.0
"""Variances of the level's and the trend's steps, of an observation, and of both at the begin (datasheet: `kalman_q_level`,
`kalman_q_trend`, `kalman_r`; `P *= 1000`)."""


class Kalman(Predictor):
    """A level with a trend, filtered."""

    def __init__(self) -> None:
        super().__init__()
        self._level: float | None = None
        self._trend = 0.0
        self._p = (FIRST_VARIANCE, 0.0, FIRST_VARIANCE)  # variance of the level, covariance, variance of the trend

    def _update(self, value: float) -> None:
        if self._level is None:
            self._level = value
            return
        a, b, c = self._p
        a, b, c = a + 2 * b + c + Q_LEVEL, b + c, c + Q_TREND
        level, off = self._level + self._trend, value - self._level - self._trend
        gains = a / (a + NOISE), b / (a + NOISE)
        self._level, self._trend = level + gains[0] * off, self._trend + gains[1] * off
        self._p = (1 - gains[0]) * a, (1 - gains[0]) * b, c - gains[1] * b

    def next(self) -> float:
        """As of the base."""
        return self.latest if self._level is None else self._level + self._trend


PREDICTORS: dict[str, Callable[[], Predictor]] = {"constant": Constant, "kalman": Kalman}
"""By `load_predictor`."""


@dataclass(frozen=True)
class Passes:
    """What the planner knows of workers.

    prefill_s : time of a pass over so many prompt tokens, `step_tokens` at most [s]. decode_s : time of a decode step by rows and
    their KV tokens [s]; a decode worker takes `rows` and `kv_tokens` at most.
    """

    prefill_s: Callable[[int], float]
    step_tokens: int
    decode_s: Callable[[int, int], float]
    rows: int
    kv_tokens: int

    def prompts_s(self, tokens: float) -> float:
        """Time to compute so many prompt tokens, in passes."""
        whole, rest = divmod(math.ceil(tokens), self.step_tokens)
        return whole * (self.prefill_s(self.step_tokens) if whole else 0.0) + (self.prefill_s(rest) if rest else 0.0)

    def prefill_per_s(self, prompt_tokens: float) -> float:
        """Requests a second whose prompts a worker computes one after the other."""
        return 1.0 / self.prompts_s(prompt_tokens)

    def decode_per_s(self, prompt_tokens: float, answer_tokens: float, itl_s: float) -> float:
        """Requests a second that a worker answers with the largest batch whose ITL is at most so long, or with one row."""
        context = prompt_tokens + answer_tokens / 2
        low, high = 1, max(1, min(int(self.kv_tokens / context), self.rows))
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.decode_s(middle, int(middle * context)) <= itl_s else (low, middle - 1)
        return low / (answer_tokens * self.decode_s(low, int(low * context)))


class SlaPlanner(JointScaler):
    """The planner over a prefill and a decode pool.

    passes : what it knows of workers. ttft_ms, itl_ms : the SLA. bounds : see `Bounds`. predictor : of requests, prompt tokens
    and answer tokens. by_throughput, by_load : which decisions it takes, every `throughput_s` and every `every_s`.
    """

    reads_queued_tokens = True

    def __init__(
        self,
        passes: Passes,
        ttft_ms: float,
        itl_ms: float,
        bounds: Bounds,
        *,
        predictor: Callable[[], Predictor] = Constant,
        by_throughput: bool = True,
        by_load: bool = False,
        throughput_s: float = THROUGHPUT_S,
        every_s: float = LOAD_S,
    ) -> None:
        self._passes, self._ttft_ms, self._itl_ms, self._bounds = passes, ttft_ms, itl_ms, bounds
        self._by_throughput, self._by_load, self._throughput_s = by_throughput, by_load, throughput_s
        self._requests, self._prompts, self._answers = predictor(), predictor(), predictor()
        self._sums = [0.0] * 4  # of the interval: requests, their prompt tokens, answers, their tokens
        self._due_s = throughput_s
        self._least = (0, 0)
        self.every_s = self.collect_s = every_s

    def collected(self, seen: Series[Seen]) -> None:
        """As of the base."""
        first, last = seen
        for n, value in enumerate((first.arrivals, first.new_prompt_tokens, last.ends, last.new_output_tokens)):
            self._sums[n] += value

    def desired(self, seen: Series[Seen], counts: Series[Counts], now_s: float) -> Series[int]:
        """As of the base."""
        now = [count.wanted for count in counts]
        wanted = list(now)
        if self._by_throughput and now_s >= self._due_s:
            self._due_s += self._throughput_s
            found = self._by_demand()
            if found is not None and self._by_load:
                self._least = found
            elif found is not None:
                wanted = list(found)
        settled = all(c.ready == c.wanted == len(each.readings) for c, each in zip(counts, seen, strict=True))
        if self._by_load and settled:
            prefill, decode = (
                decide(each.readings, count)
                for decide, each, count in zip((self._prefill_count, self._decode_count), seen, now, strict=True)
            )
            wanted = [max(count, least) for count, least in zip((prefill, decode), self._least, strict=True)]
        return now if wanted == now else self._bounds.apply(now, wanted)

    def _by_demand(self) -> tuple[int, int] | None:
        """Replicas that carry what is predicted; None while nothing is known."""
        requests, prompts, ends, answers = self._sums
        self._sums = [0.0] * 4
        self._requests.add(requests)
        self._prompts.add(prompts / requests if requests else 0.0)
        self._answers.add(answers / ends if ends else 0.0)
        demand = self._requests.next() / self._throughput_s
        prompt, answer = self._prompts.next(), self._answers.next()
        if demand < 0 or prompt <= 0 or answer <= 0:
            return None
        prefill = by_rate(demand, self._passes.prefill_per_s(prompt))
        return prefill, by_rate(demand, self._passes.decode_per_s(prompt, answer, self._itl_ms / 1e3))

    def _prefill_count(self, readings: Series[Reading], count: int) -> int:
        """One more or less by TTFT: what waits is computed before the next prompt, whose own time does not shrink."""
        own_ms = self._passes.prompts_s(self._prompts.latest) * 1e3
        more = count / (count - 1) if count > 1 else 1.0
        waits_ms = [self._passes.prompts_s(each.queued_tokens + self._prompts.latest) * 1e3 for each in readings]
        then_ms = [self._passes.prompts_s(each.queued_tokens * more + self._prompts.latest) * 1e3 for each in readings]
        if all(each > self._ttft_ms for each in waits_ms):
            return count + 1
        may = all(each - own_ms < (self._ttft_ms - own_ms) * SENSITIVITY_SHARE for each in then_ms)
        return count - 1 if count > 1 and may else count

    def _decode_count(self, readings: Series[Reading], count: int) -> int:
        """One more or less by ITL: what waits decodes too, and has to fit into fewer caches."""
        more = count / (count - 1) if count > 1 else 1.0
        loads = [(each.running + each.waiting, each.kv_share * each.kv_tokens + each.queued_tokens) for each in readings]
        now_ms = [self._passes.decode_s(max(rows, 1), int(kv)) * 1e3 for rows, kv in loads]
        then_ms = [self._passes.decode_s(max(math.ceil(rows * more), 1), int(kv * more)) * 1e3 for rows, kv in loads]
        wanted = by_estimates(now_ms, then_ms, count, self._itl_ms)
        full = any(kv * more >= self._passes.kv_tokens for _, kv in loads)
        return count if wanted < count and full else wanted
