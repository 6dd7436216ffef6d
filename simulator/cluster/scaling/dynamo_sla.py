"""Dynamo's planner with ``optimization_target: sla``: replicas from predicted TTFT and ITL, of a prefill and a decode pool
together, or of one pool.

*By throughput*, every 180 s: the requests of the interval, their mean prompt and answer, are predicted for the next one, and
divided by what a replica serves. *By load*, if it is on, every 5 s: one replica more where the latency that is estimated of all
exceeds the SLA, one less where it would stay well below with one less; throughput then gives the least count.

The planner fits the time of a forward pass to those that it observes; here it knows the engine's own times. Workers that do
both have prompts computed beside their rows: as many tokens a pass as come in where as many requests come as end (of load
decisions an inference: it averages those that it sees).

Source: `dynamo/planner/core/{throughput_scaling,load_scaling}.py`, `core/perf_model/{prefill,decode}.py`,
`core/load/predictors.py` and `config/defaults.py` of `ai-dynamo` 1.6.1; of one pool `core/perf_model/agg.py`, `_throughput_agg`
and `_advance_load_agg` of public copies of 2026 (their discount for prefix hits is left out). Drafts:
`core/perf_model/aic_adapter.py` and `core/load_scaling.py` of later public copies, whose capacity and ITL are of a pass over the
tokens that it yields of a row (`accept_length`, observed; here its mean), where the workers tell how many they draft.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from collections.abc import Sequence as Series

from hardware_profiles.records import dataclass
from simulator.cluster.scaling.dynamo import (
    LOAD_S,
    SENSITIVITY_SHARE,
    Bounds,
    by_estimates,
    by_rate,
    near,
    within_budget,
)
from simulator.cluster.scaling.scaler import Autoscaler, Counts, JointScaler, Reading, Seen

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
    their KV tokens [s]; a decode worker takes `rows` and `kv_tokens` at most. A step yields `accepted_tokens` of each row.
    """

    prefill_s: Callable[[int], float]
    step_tokens: int
    decode_s: Callable[[int, int], float]
    rows: int
    kv_tokens: int
    accepted_tokens: float = 1.0

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
            low, high = (middle, high) if self.itl_s(middle, int(middle * context)) <= itl_s else (low, middle - 1)
        return low / (answer_tokens * self.itl_s(low, int(low * context)))

    def itl_s(self, rows: int, kv_tokens: int) -> float:
        """Time of a step for each token that it yields of a row [s]."""
        return self.decode_s(rows, kv_tokens) / self.accepted_tokens


@dataclass(frozen=True)
class MixedPasses:
    """What the planner knows of workers that compute prompts and answers.

    pass_s : time of a pass over so many prompt tokens beside so many rows that decode and their KV tokens [s]; it takes
    `step_tokens` prompt tokens at most, a worker `rows` and `kv_tokens`. A pass yields `accepted_tokens` of each row.
    """

    pass_s: Callable[[int, int, int], float]
    step_tokens: int
    rows: int
    kv_tokens: int
    accepted_tokens: float = 1.0

    def prompts_s(self, tokens: float, rows: int, kv_tokens: float) -> float:
        """Time to compute so many prompt tokens, in passes, while such rows decode."""
        whole, rest = divmod(math.ceil(tokens), self.step_tokens)
        each_s = self.pass_s(self.step_tokens, rows, int(kv_tokens)) if whole else 0.0
        return whole * each_s + (self.pass_s(rest, rows, int(kv_tokens)) if rest else 0.0)

    def beside(self, rows: float, prompt_tokens: float, answer_tokens: float) -> int:
        """Prompt tokens of a pass beside so many rows where as many requests come as end."""
        if answer_tokens <= 0:
            return 0
        return int(min(rows * self.accepted_tokens * prompt_tokens / answer_tokens, self.step_tokens))

    def per_s(self, prompt_tokens: float, answer_tokens: float, ttft_ms: float, itl_ms: float) -> float:
        """Requests a second that a worker serves with the most rows that keep both latencies, or with one.

        There are no more rows than its cache and its limit hold, nor so many that too little of a pass is left for prompts:
        beside drafts by what the prompts of all rows take of it, else by those of one.
        """
        context = prompt_tokens + answer_tokens / 2
        held = min(max(1, int(self.kv_tokens / max(context, 1.0))), self.rows, self.step_tokens - 1)
        balanced = math.floor(self.step_tokens - prompt_tokens / answer_tokens)
        if self.accepted_tokens > 1:
            balanced = math.floor(self.step_tokens / (1 + self.accepted_tokens * prompt_tokens / answer_tokens))
        low, high = 1, max(1, min(held, balanced))

        def pass_s(rows: int) -> float:
            return self.pass_s(self.beside(rows, prompt_tokens, answer_tokens), rows, int(rows * context))

        def keeps(rows: int) -> bool:
            ahead = self.beside(rows, prompt_tokens, answer_tokens) + prompt_tokens
            in_time = pass_s(rows) * 1e3 <= itl_ms * self.accepted_tokens
            return in_time and self.prompts_s(ahead, rows, rows * context) * 1e3 <= ttft_ms

        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if keeps(middle) else (low, middle - 1)
        return low * self.accepted_tokens / (answer_tokens * pass_s(low))


class Demand:
    """Requests, their prompts and answers, summed over intervals and predicted for the next one."""

    def __init__(self, predictor: Callable[[], Predictor], interval_s: float) -> None:
        self._requests, self.prompts, self.answers = predictor(), predictor(), predictor()
        self._sums = [0.0] * 4  # of the interval: requests, their prompt tokens, answers, their tokens
        self._interval_s = self._due_s = interval_s

    def add(self, come: Seen, gone: Seen) -> None:
        """Take in metrics of the pools where requests come and where they end."""
        for n, value in enumerate((come.arrivals, come.new_prompt_tokens, gone.ends, gone.new_output_tokens)):
            self._sums[n] += value

    def due(self, now_s: float) -> bool:
        """Whether an interval is over, which is the last one then."""
        if now_s < self._due_s:
            return False
        self._due_s += self._interval_s
        return True

    def next(self) -> tuple[float, float, float]:
        """Requests a second of the next interval, tokens of a prompt and of an answer; the one that is over counts now."""
        requests, prompts, ends, answers = self._sums
        self._sums = [0.0] * 4
        self._requests.add(requests)
        self.prompts.add(prompts / requests if requests else 0.0)
        self.answers.add(answers / ends if ends else 0.0)
        return self._requests.next() / self._interval_s, self.prompts.next(), self.answers.next()


@dataclass(frozen=True)
class Sla:
    """What is kept, and by which decisions: throughput every `throughput_s`, load every `every_s`."""

    ttft_ms: float
    itl_ms: float
    predictor: Callable[[], Predictor] = Constant
    by_throughput: bool = True
    by_load: bool = False
    throughput_s: float = THROUGHPUT_S
    every_s: float = LOAD_S


def by_ttft(passes: Passes, readings: Series[Reading], count: int, prompt_tokens: float, ttft_ms: float) -> int:
    """One more or less by TTFT: what waits is computed before the next prompt, whose own time does not shrink."""
    own_ms = passes.prompts_s(prompt_tokens) * 1e3
    more = count / (count - 1) if count > 1 else 1.0
    waits_ms = [passes.prompts_s(each.queued_tokens + prompt_tokens) * 1e3 for each in readings]
    then_ms = [passes.prompts_s(each.queued_tokens * more + prompt_tokens) * 1e3 for each in readings]
    if all(each > ttft_ms for each in waits_ms):
        return count + 1
    may = all(each - own_ms < (ttft_ms - own_ms) * SENSITIVITY_SHARE for each in then_ms)
    return count - 1 if count > 1 and may else count


def by_itl(passes: Passes, readings: Series[Reading], count: int, itl_ms: float) -> int:
    """One more or less by ITL: what waits decodes too, and has to fit into fewer caches."""
    more = count / (count - 1) if count > 1 else 1.0
    loads = [(each.running + each.waiting, each.kv_share * each.kv_tokens + each.queued_tokens) for each in readings]
    now_ms = [passes.itl_s(max(rows, 1), int(kv)) * 1e3 for rows, kv in loads]
    then_ms = [passes.itl_s(max(math.ceil(rows * more), 1), int(kv * more)) * 1e3 for rows, kv in loads]
    wanted = by_estimates(now_ms, then_ms, count, itl_ms)
    full = any(kv * more >= passes.kv_tokens for _, kv in loads)
    return count if wanted < count and full else wanted


class SlaPlanner(JointScaler):
    """The planner over a prefill and a decode pool.

    passes : what it knows of workers. sla : what it keeps. bounds : see `Bounds`.
    """

    reads_queued_tokens = True

    def __init__(self, passes: Passes, sla: Sla, bounds: Bounds) -> None:
        self._passes, self._sla, self._bounds = passes, sla, bounds
        self.accepted_tokens = passes.accepted_tokens
        self._demand = Demand(sla.predictor, sla.throughput_s)
        self._least = (0, 0)
        self.every_s = self.collect_s = sla.every_s

    def collected(self, seen: Series[Seen]) -> None:
        """As of the base."""
        self._demand.add(*seen)

    def desired(self, seen: Series[Seen], counts: Series[Counts], now_s: float) -> Series[int]:
        """As of the base."""
        now, sla = [count.wanted for count in counts], self._sla
        wanted = list(now)
        if sla.by_throughput and self._demand.due(now_s):
            found = self._by_demand()
            if found is not None and sla.by_load:
                self._least = found
            elif found is not None:
                wanted = list(found)
        if sla.by_load and all(c.ready == c.wanted == len(each.readings) for c, each in zip(counts, seen, strict=True)):
            first, last = seen
            prompt = self._demand.prompts.latest or first.prompt_tokens
            prefill = by_ttft(self._passes, first.readings, now[0], prompt, sla.ttft_ms)
            decode = by_itl(self._passes, last.readings, now[1], sla.itl_ms)
            wanted = [max(count, least) for count, least in zip((prefill, decode), self._least, strict=True)]
        return now if wanted == now else self._bounds.apply(now, wanted)

    def _by_demand(self) -> tuple[int, int] | None:
        """Replicas that carry what is predicted; None while nothing is known."""
        demand, prompt, answer = self._demand.next()
        if demand < 0 or prompt <= 0 or answer <= 0:
            return None
        prefill = by_rate(demand, self._passes.prefill_per_s(prompt))
        return prefill, by_rate(demand, self._passes.decode_per_s(prompt, answer, self._sla.itl_ms / 1e3))


class Judge(ABC):
    """How many replicas a pool needs that the planner sizes by itself; a pass yields `accepted_tokens` of each row there."""

    accepted_tokens = 1.0

    @abstractmethod
    def by_demand(self, per_s: float, prompt_tokens: float, answer_tokens: float) -> int | None:
        """Replicas that carry such requests; None while nothing is known."""

    @abstractmethod
    def by_load(self, seen: Seen, count: int, prompt_tokens: float, answer_tokens: float) -> int:
        """One replica more or less by what is estimated of all, or as many."""


class JudgeOfPrompts(Judge):
    """Of workers that compute prompts alone."""

    def __init__(self, passes: Passes, sla: Sla) -> None:
        self._passes, self._sla = passes, sla

    def by_demand(self, per_s: float, prompt_tokens: float, answer_tokens: float) -> int | None:
        """As of the base."""
        return by_rate(per_s, self._passes.prefill_per_s(prompt_tokens)) if prompt_tokens > 0 else None

    def by_load(self, seen: Seen, count: int, prompt_tokens: float, answer_tokens: float) -> int:
        """As of the base."""
        return by_ttft(self._passes, seen.readings, count, prompt_tokens, self._sla.ttft_ms)


class JudgeOfAnswers(Judge):
    """Of workers that compute answers alone."""

    def __init__(self, passes: Passes, sla: Sla) -> None:
        self._passes, self._sla, self.accepted_tokens = passes, sla, passes.accepted_tokens

    def by_demand(self, per_s: float, prompt_tokens: float, answer_tokens: float) -> int | None:
        """As of the base."""
        if prompt_tokens <= 0 or answer_tokens <= 0:
            return None
        return by_rate(per_s, self._passes.decode_per_s(prompt_tokens, answer_tokens, self._sla.itl_ms / 1e3))

    def by_load(self, seen: Seen, count: int, prompt_tokens: float, answer_tokens: float) -> int:
        """As of the base."""
        return by_itl(self._passes, seen.readings, count, self._sla.itl_ms)


class JudgeOfBoth(Judge):
    """Of workers that compute prompts and answers: one more by either latency, one less by both."""

    def __init__(self, passes: MixedPasses, sla: Sla) -> None:
        self._passes, self._sla, self.accepted_tokens = passes, sla, passes.accepted_tokens

    def by_demand(self, per_s: float, prompt_tokens: float, answer_tokens: float) -> int | None:
        """As of the base."""
        if prompt_tokens <= 0 or answer_tokens <= 0:
            return None
        return by_rate(per_s, self._passes.per_s(prompt_tokens, answer_tokens, self._sla.ttft_ms, self._sla.itl_ms))

    def by_load(self, seen: Seen, count: int, prompt_tokens: float, answer_tokens: float) -> int:
        """As of the base."""
        passes, sla, found = self._passes, self._sla, seen.readings
        more = count / (count - 1) if count > 1 else 1.0
        kv = [each.kv_share * each.kv_tokens for each in found]

        def ttft_ms(each: Reading, held_tokens: float, queued_tokens: float, spread: float) -> float:
            rows = math.ceil(each.running * spread)
            return passes.prompts_s(queued_tokens * spread + prompt_tokens, rows, held_tokens * spread) * 1e3

        def itl_ms(each: Reading, held_tokens: float, spread: float) -> float:
            rows = max(math.ceil((each.running + each.waiting) * spread), 1)
            beside = passes.beside(rows, prompt_tokens, answer_tokens)
            return passes.pass_s(beside, rows, int(held_tokens * spread)) * 1e3 / passes.accepted_tokens

        waits_ms = [ttft_ms(each, held, each.queued_tokens, 1.0) for each, held in zip(found, kv, strict=True)]
        steps_ms = [itl_ms(each, held, 1.0) for each, held in zip(found, kv, strict=True)]
        if all(each > sla.ttft_ms for each in waits_ms) or all(each > sla.itl_ms for each in steps_ms):
            return count + 1
        if count < 2:
            return count
        for each, held in zip(found, kv, strict=True):
            own_ms = ttft_ms(each, held, 0.0, more)
            queue_ms = ttft_ms(each, held, each.queued_tokens, more) - own_ms
            whole = held + each.queued_tokens
            late = queue_ms >= (sla.ttft_ms - own_ms) * SENSITIVITY_SHARE
            if late or whole * more >= passes.kv_tokens or itl_ms(each, whole, more) >= sla.itl_ms * SENSITIVITY_SHARE:
                return count
        return count - 1


class LoneSlaPlanner(Autoscaler):
    """The planner of one pool.

    judge : how many replicas it needs. sla : what it keeps. each : GPUs of a replica. least_gpus, most_gpus : bounds of all, -1
    for none. min_endpoint : fewest replicas.
    """

    reads_queued_tokens = True

    def __init__(
        self, judge: Judge, sla: Sla, each: int, *, least_gpus: int, most_gpus: int, min_endpoint: int
    ) -> None:
        self._judge, self._sla, self.accepted_tokens = judge, sla, judge.accepted_tokens
        self._each, self._bounds, self._fewest = each, (least_gpus, most_gpus), min_endpoint
        self._demand = Demand(sla.predictor, sla.throughput_s)
        self._least = 0
        self.every_s = self.collect_s = sla.every_s

    def collected(self, seen: Seen) -> None:
        """As of the base."""
        self._demand.add(seen, seen)

    def desired(self, seen: Seen, counts: Counts, now_s: float) -> int:
        """As of the base."""
        wanted = now = counts.wanted
        if self._sla.by_throughput and self._demand.due(now_s):
            per_s, prompt, answer = self._demand.next()
            found = self._judge.by_demand(per_s, prompt, answer) if per_s >= 0 else None
            if found is not None and self._sla.by_load:
                self._least = found
            elif found is not None:
                wanted = found
        if self._sla.by_load and counts.ready == now == len(seen.readings):
            prompt = self._demand.prompts.latest or seen.prompt_tokens
            answer = self._demand.answers.latest or seen.output_tokens
            wanted = max(self._judge.by_load(seen, now, prompt, answer), self._least)
        if wanted == now:
            return now
        return within_budget(max(near(wanted, now), self._fewest), self._each, *self._bounds, self._fewest)
