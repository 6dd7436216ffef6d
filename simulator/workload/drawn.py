"""Synthetic loads, drawn a stretch at a time; the requests are the same whatever the stretches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.errors import InputError
from simulator.workload import arrivals
from simulator.workload.columns import (
    ANY_OF_CLASS,
    NO_PREDECESSOR,
    FloatArray,
    IntArray,
    Named,
    RequestClass,
    same_float,
    same_int,
)
from simulator.workload.content import content_of_turns
from simulator.workload.laws import Draw, residuals, sampler, time_sampler
from simulator.workload.parts import Part, Requests, client_limits
from simulator.workload.prompts import Prompts, pool
from simulator.workload.spec import Load, WorkloadSpec
from simulator.workload.streams import stream
from simulator.workload.synthetic import (
    NO_THINKING,
    Arrivals,
    BatchArrivals,
    ClosedLoopArrivals,
    ConstantArrivals,
    DiurnalArrivals,
    GammaArrivals,
    Length,
    OnOffArrivals,
    PoissonArrivals,
    ThinkTime,
)

if TYPE_CHECKING:
    from simulator.workload.parts import Limit

STRETCH = 1 << 12
"""Conversations, or requests outside of any, that are drawn at a time (any number gives the same requests)."""
FASTEST_REQUEST_S = 0.005
FASTEST_TOKEN_S = 0.002
"""A closed loop's pool of requests is sized as if each took at least these times, whatever serves it
(assumed, 2026, not measured; a run that is faster uses the pool up before the duration)."""

ROWS = 1 << 16
"""Requests that are drawn at a time at most, or those of one conversation."""
MOST_CLIENTS = 1_000_000
MOST_TURNS = 100_000
"""Clients of a closed loop and turns of a conversation (assumed, far above any that are observed)."""
MOST_PERIODS = 1e6
"""Periods of one load that are drawn (assumed: some ten seconds)."""
CROWDED, CROWDED_REQUESTS = 10.0, 1_000_000
"""Requests drawn at most: so many times those of the mean rate, and these (assumed)."""
HARDLY_VARIES = 0.1
"""Coefficient of variation below which a think time counts as constant (assumed)."""


# Arrivals -----------------------------------------------------------------------------------------


def mean_rate(spec: Arrivals) -> float:
    """Mean rate [1/s] of an open process; 0 for a batch or a closed loop."""
    if isinstance(spec, OnOffArrivals):
        return (spec.rate_on * spec.on_s + spec.rate_off * spec.off_s) / (spec.on_s + spec.off_s)
    return 0.0 if isinstance(spec, BatchArrivals | ClosedLoopArrivals) else spec.rate


def arrival_process(
    spec: PoissonArrivals | GammaArrivals | ConstantArrivals | OnOffArrivals | DiurnalArrivals,
    rng: np.random.Generator,
    weight: float,
) -> arrivals.Stretches:
    """The arrivals of an open process of `weight` times its rate."""
    if isinstance(spec, OnOffArrivals):
        on, off = spec.rate_on * weight, spec.rate_off * weight
        return arrivals.onoff_process(rng, on, off, spec.on_s, spec.off_s)
    rate = spec.rate * weight
    if isinstance(spec, GammaArrivals):
        return arrivals.gamma_process(rng, rate, spec.cv)
    if isinstance(spec, ConstantArrivals):
        return arrivals.constant_process(rate)
    if isinstance(spec, DiurnalArrivals):
        return arrivals.diurnal_process(rng, rate, spec.peak_to_mean, spec.period_s)
    return arrivals.poisson_process(rng, rate)


# The load -----------------------------------------------------------------------------------------


class Drawn:
    """A synthetic load.

    Parameters
    ----------
    limit : of the client.
    prefix : of the names of its random streams.
    weight : multiplies its rate, or its concurrency.
    requests : that end it, or None.
    prompts : in order, instead of drawn ones.
    largest_pool : requests or conversations prepared for a closed loop at most.
    """

    def __init__(
        self,
        spec: WorkloadSpec,
        load: Load,
        limit: Limit,
        seed: int,
        base_dir: Path,
        prefix: str,
        weight: float,
        requests: int | None,
        largest_pool: int,
        prompts: Prompts | None = None,
        source: dict[str, Any] | None = None,
    ) -> None:
        assert load.arrivals is not None
        self._load, self._limit, self._arrivals = load, limit, load.arrivals
        self._seed, self._base_dir, self._prefix = seed, base_dir, prefix
        self._prompts = prompts
        if prompts is None and load.prompt_pool is not None:
            self._prompts = self._drawn_pool(load.prompt_pool)
        elif prompts is not None and not prompts.again:
            requests = len(prompts) if requests is None else min(requests, len(prompts))
        self._weight, self._requests = weight, requests
        self._until_s = spec.duration if spec.duration is not None else math.inf
        self._pool = 0
        self._sizes = None if load.sessions is None else load.sessions.turns
        self._turn_think = (load.sessions.think_time_s if load.sessions is not None else None) or NO_THINKING
        self._think = NO_THINKING
        self._first_s = np.zeros(0)  # when each client of a closed loop sends for the first time, ascending
        warnings: list[str] = []
        if isinstance(self._arrivals, ClosedLoopArrivals):
            self._think = self._arrivals.think_time_s
            clients = max(1, round(self._arrivals.concurrency * weight))
            if clients > MOST_CLIENTS:
                raise InputError(
                    f"the closed loop has {clients:,} clients; a run holds at most {MOST_CLIENTS:,}",
                    where="workload.arrivals",
                    mend="lower concurrency, or give poisson arrivals of the rate that so many make",
                )
            largest_pool = max(1, int(largest_pool / self._mean_turns()))
            self._first_s = self._first_sends(clients)
            self._pool = self._pool_size(clients, largest_pool, warnings) if len(self._first_s) else 0
        elif isinstance(self._arrivals, BatchArrivals):
            self._pool = requests or 0
        warnings += self._synchronised()
        self.requests = Requests(
            self._parts(),
            (RequestClass("default"),),
            self._expected(),
            self._until_s,
            source or {"name": "synthetic", "kind": "synthetic"},
            warnings,
            sessions=self._count if self._sizes is not None else None,
        )

    def _drawn_pool(self, n: int) -> Prompts:
        """The first n prompts of the load, which come again."""
        load = self._load
        prompts = self._sampler(load.prompt_tokens, "prompt_tokens")(n)
        outputs = self._sampler(load.output_tokens, "output_tokens")(n)
        content = None
        if load.shared_prefix is not None:
            head = same_int(load.shared_prefix.tokens, n)
            groups = stream(self._seed, self._prefix + "prefix_groups")
            group = groups.integers(0, load.shared_prefix.groups, n).astype(np.int64)
            prompts = prompts + head
            content = replace(content_of_turns(same_int(-1, n), prompts, group, head), named=self._groups(group))
        return pool(prompts, outputs, same_int(0, n), content)

    def _groups(self, group: IntArray | None) -> tuple[Named, ...]:
        """The prefixes of the groups of these requests, which other loads name too."""
        if group is None:
            return ()
        groups = np.unique(group)
        return (Named(f"{self._prefix}shared_prefix", groups, groups),)

    def _count(self) -> int:
        """Count the conversations by drawing their openings once more."""
        return sum(len(starts) for starts, _ in self._openings())

    def _sampler(self, spec: Length | None, name: str) -> Callable[[int], IntArray]:
        assert spec is not None
        return sampler(spec, stream(self._seed, self._prefix + name), self._base_dir, name)

    def _mean_turns(self) -> float:
        return 1.0 if self._sizes is None else float(self._sampler(self._sizes, "turns")(1000).mean())

    def _expected(self) -> float:
        turns = self._mean_turns()
        openings = float(self._pool)
        if rate := mean_rate(self._arrivals):
            openings = rate * self._weight * self._until_s
        return min(openings * turns, math.inf if self._requests is None else self._requests)

    def _thinker(self, spec: ThinkTime, name: str) -> Draw:
        if spec == NO_THINKING:
            return lambda n: same_float(0.0, n)
        return time_sampler(spec, stream(self._seed, self._prefix + name), self._base_dir)

    def _first_sends(self, clients: int) -> FloatArray:
        """When the clients of a closed loop send first [s], ascending, up to the end: as if all had been thinking for long."""
        think = self._turn_think if self._think == NO_THINKING else self._think
        if think == NO_THINKING:
            return np.zeros(clients)
        rng = stream(self._seed, self._prefix + "first_sends")
        first_s = np.sort(residuals(think, rng, self._base_dir, clients))
        return first_s[first_s <= self._until_s]

    def _synchronised(self) -> list[str]:
        """A warning if those who begin together, or think equally long, stay in step for ever."""
        together = isinstance(self._arrivals, BatchArrivals)
        if not together and len(self._first_s) < 2:
            return []
        laws = [(self._think, "think_time_s"), (self._turn_think, "sessions.think_time_s")]
        draws = [drawn for spec, name in laws if (drawn := self._thinker(spec, name)(1000)).any()]
        if not draws or any(drawn.std() > HARDLY_VARIES * drawn.mean() for drawn in draws):
            return []
        kept = "all begin at time zero" if together else "keep the distances at which they began"
        return [
            f"the population stays synchronised: its think time hardly varies, so clients {kept}, those who meet in a queue stay "
            "together, and tails are theirs; a number (think_time_s: 20) is the mean of an exponential time, which mixes them"
        ]

    def _pool_size(self, clients: int, largest: int, warnings: list[str]) -> int:
        """How many requests (or conversations) a closed loop can possibly use up before its end.

        A client ends at most ``t / mean + variance / mean^2 + 1`` cycles in a time t, on average (Lorden, Annals of Mathematical
        Statistics 41, 1970), and all together hardly more than six standard deviations above that.
        """
        if math.isinf(self._until_s):
            return self._requests or 0
        if self._prompts is not None:
            outputs = self._prompts.output_tokens
        else:
            outputs = self._sampler(self._load.output_tokens, "output_tokens")(1000)
        thinks_s = self._thinker(self._think, "think_time_s")(1000)
        turn_s = FASTEST_REQUEST_S + FASTEST_TOKEN_S * float(outputs.mean())
        cycle_s, variance = turn_s + float(thinks_s.mean()), float(thinks_s.var())
        if self._sizes is not None:  # a conversation: more turns, and a pause before each
            more = self._sampler(self._sizes, "turns")(1000) - 1
            pauses_s = self._thinker(self._turn_think, "sessions.think_time_s")(1000)
            turn_s += float(pauses_s.mean())
            cycle_s += float(more.mean()) * turn_s
            variance += float(more.mean() * pauses_s.var() + more.var() * turn_s**2)
        excess = variance / cycle_s**2
        spread = 6 * math.sqrt(clients * self._until_s / cycle_s * excess)
        needed = clients * (2 + math.ceil(self._until_s / cycle_s)) + math.ceil(clients * excess + spread)
        if needed > largest and self._requests is None:
            warnings.append(
                f"the closed loop is prepared for {largest} requests; "
                "a faster run ends before the duration: shorten the duration"
            )
        most = max(largest, clients)
        return min(needed, most, self._requests if self._requests is not None else needed)

    def _starts(self) -> Iterator[FloatArray]:
        """Starts of the conversations [s]; of those that a closed loop opens later, that of the last client."""
        spec = self._arrivals
        if isinstance(spec, BatchArrivals | ClosedLoopArrivals):
            last_s = float(self._first_s[-1]) if len(self._first_s) else 0.0
            for first in range(0, self._pool, STRETCH):
                many = min(STRETCH, self._pool - first)
                starts = self._first_s[first : first + many]
                yield np.append(starts, np.full(many - len(starts), last_s))
            return
        self._refuse_endless(spec)
        process = arrival_process(spec, stream(self._seed, self._prefix + "arrivals"), self._weight)
        held: list[FloatArray] = []
        n = 0
        left = CROWDED_REQUESTS + CROWDED * self.requests.expected_requests
        for part in arrivals.parts(process, self._until_s, self._requests):
            held.append(part)
            n += len(part)
            left -= len(part)
            if left < 0:
                raise InputError(
                    f"bursts crowd far more than the {self.requests.expected_requests:.3g} requests of the mean rate",
                    where="workload.arrivals",
                    mend="lower cv, or give requests",
                )
            if n >= STRETCH:
                yield np.concatenate(held)
                held, n = [], 0
        if n:
            yield np.concatenate(held)

    def _refuse_endless(self, spec: Arrivals) -> None:
        """Refuse periods so short that drawing them would take long."""
        if not isinstance(spec, OnOffArrivals):
            return
        span_s = min(self._until_s, (self._requests or math.inf) / (mean_rate(spec) * self._weight))
        periods = 2 * span_s / (spec.on_s + spec.off_s)
        if periods > MOST_PERIODS:
            raise InputError(
                f"on_s of {spec.on_s:g} and off_s of {spec.off_s:g} s make {periods:.3g} periods, of {MOST_PERIODS:g} at most",
                where="workload.arrivals",
                mend="lengthen them, or use poisson arrivals of the mean rate, which these are like",
            )

    def _openings(self) -> Iterator[tuple[FloatArray, IntArray]]:
        """Starts of conversations and how many turns each has, the last one cut where the requests end."""
        draw = self._sampler(self._sizes, "turns") if self._sizes is not None else None
        left = math.inf if self._requests is None else self._requests
        for starts in self._starts():
            turns = np.ones(len(starts), np.int64) if draw is None else draw(len(starts))
            reached = np.cumsum(turns)
            if reached[-1] > left:
                n = int(np.searchsorted(reached, left)) + 1
                starts, turns, over = starts[:n], turns[:n], int(reached[n - 1] - left)
                turns[-1] -= over
            left -= int(reached[len(turns) - 1])
            if turns.max() > MOST_TURNS:
                raise InputError(
                    f"a conversation has {turns.max():,} turns; a run takes at most {MOST_TURNS:,}",
                    where="workload.sessions.turns",
                    mend="lower turns",
                )
            places = np.flatnonzero(np.diff(np.cumsum(turns) // ROWS)) + 1  # that no piece is long, whatever the turns
            yield from zip(np.split(starts, places), np.split(turns, places), strict=True)
            if left <= 0:
                return

    def _parts(self) -> Iterator[Part]:
        load = self._load
        given = self._prompts
        if given is None:
            draw_fresh = self._sampler(load.prompt_tokens, "prompt_tokens")
            draw_output = self._sampler(load.output_tokens, "output_tokens")
        limited = client_limits(self._limit, self._seed, self._base_dir, self._prefix)
        groups = stream(self._seed, self._prefix + "prefix_groups")
        draw_think = self._thinker(self._think, "think_time_s")
        draw_turn_think = self._thinker(self._turn_think, "sessions.think_time_s")
        clients = len(self._first_s)
        rows = conversations = 0
        lasts = np.zeros(0, np.int64)  # the last rows of as many conversations as there are clients
        for starts, turns in self._openings():
            n, many = int(turns.sum()), len(starts)
            if given is None:
                fresh, outputs, limits, content = draw_fresh(n), draw_output(n), same_int(0, n), None
            else:
                taken = given.take(rows, n)
                fresh, outputs, content = taken.prompt_tokens, taken.output_tokens, taken.content
                limits = taken.max_output_tokens
            asked = limited(outputs)
            limits = limits if asked is None else asked
            over = (limits > 0) & (outputs > limits)
            if over.any():
                self.requests.outputs_cut += int(over.sum())
                outputs = np.where(over, limits, outputs)
            prompts, turn, session = fresh, same_int(0, n), same_int(-1, n)
            predecessor, gap_s, think_s = same_int(NO_PREDECESSOR, n), same_float(0.0, n), same_float(0.0, n)
            first = conversation = np.arange(many)
            anchor = arrival = starts
            if load.sessions is not None:
                conversation = np.repeat(conversation, turns)
                first = np.cumsum(turns) - turns
                turn = np.arange(n) - first[conversation]
                session = conversation + conversations
                # history: all that came before in the conversation
                spoken = np.cumsum(fresh + outputs) - (fresh + outputs)
                prompts = fresh + spoken - spoken[first[conversation]]
                anchor, later = starts[conversation], turn > 0
                arrival = np.where(later, np.nan, anchor)
                predecessor = np.where(later, rows + np.arange(n) - 1, NO_PREDECESSOR)
                gap_s = np.where(later, draw_turn_think(n), 0.0)
            if given is None and (load.shared_prefix is not None or load.sessions is not None):
                prefixes, head, group = 0, same_int(0, n), None
                if load.shared_prefix is not None:
                    prefixes, head = load.shared_prefix.groups, same_int(load.shared_prefix.tokens, n)
                    group = groups.integers(0, prefixes, many)[conversation].astype(np.int64)
                    prompts = prompts + head
                names = np.where(session >= 0, session + prefixes, -1)
                content = content_of_turns(names, prompts, group, head, (turns > 1)[conversation])
                content = replace(content, named=self._groups(group))
            if clients:
                opens = np.flatnonzero((turn == 0) & (conversation + conversations >= clients))
                arrival, predecessor = arrival.copy(), predecessor.copy()
                arrival[opens] = np.nan
                if load.sessions is None:
                    predecessor[opens], think_s = ANY_OF_CLASS, draw_think(n)
                else:
                    # each client holds one conversation after another: its next opens when its last has ended
                    gap_s = gap_s.copy()
                    gap_s[opens] = draw_think(many)[conversation[opens]]
                    lasts = np.concatenate((lasts, rows + first + turns - 1))
                    predecessor[opens] = lasts[conversation[opens] + len(lasts) - many - clients]
                    lasts = lasts[-clients:]
            yield Part(
                anchor,
                arrival,
                prompts,
                outputs,
                limits,
                predecessor,
                gap_s,
                same_float(0.0, n),
                session,
                turn,
                same_int(0, n),
                think_s,
                content,
            )
            rows, conversations = rows + n, conversations + many
