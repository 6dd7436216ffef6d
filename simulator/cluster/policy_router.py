"""A policy over replicas, the ideal ones and those of products.

A policy hears what its router would: the requests that it sends, their ends and first tokens, loads that are polled, and what the
engines' caches say. Before a choice only those replicas are advanced in which one of these may have happened since, by a heap of
the times before which nothing can; a choice costs the logarithm of the number of replicas for every replica that changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence as Series
from itertools import count
from random import Random

from engine_models.declaration import Executor
from engine_models.parts.block_names import BlockEvents, ChainKeys
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from simulator.cluster.admission import Backoff
from simulator.cluster.router import Router, Routing
from simulator.cluster.routing.breakers import BreakerRules, Breakers
from simulator.cluster.routing.ideal import RULES
from simulator.cluster.routing.policy import STALE, Arrival, Policy, Run
from simulator.cluster.routing.sglang_router import PolledPowerOfTwo
from simulator.cluster.routing.system import Flags, RouterSystem
from simulator.serving.rank import Rank
from simulator.serving.replica import Replica

WAITING_WEIGHT = 4
"""A waiting request counts as much as so many running ones where vLLM balances its data-parallel ranks (datasheet:
`DPLBAsyncMPClient.get_core_engine_for_request`, vLLM 0.10 to 0.33)."""
COUNTS_S = 0.1
"""Time between two publications of the ranks' counts to vLLM's front end (datasheet: `min_stats_update_interval_ms` of its
coordinator)."""


class RankChoice:
    """One of the data-parallel ranks of a replica that was chosen.

    In turn (SGLang), the one with fewest requests (TensorRT-LLM), or by load (vLLM), as the replica's engine does: least
    ``4 waiting + running``, the first among equals, from counts that are up to 100 ms old and to which the front end adds what it
    has sent since.
    """

    def __init__(self, replicas: list[Replica], executors: Series[Executor]) -> None:
        self._replicas = replicas
        self._by_load = [executor.rank_router == "least_loaded" for executor in executors]
        self._fewest = [executor.rank_router == "fewest" for executor in executors]
        self._turns = [0] * len(replicas)
        self._scores: list[list[int]] = [[] for _ in replicas]
        self._counted_s = [-COUNTS_S] * len(replicas)

    def number(self, replica: int, now_s: float) -> int:
        """The number of the rank of a replica that gets a request."""
        ranks = self._replicas[replica].ranks
        if self._fewest[replica]:
            self._replicas[replica].advance(now_s)
            held = [rank.in_service for rank in ranks]
            rank = held.index(min(held))
        elif not self._by_load[replica]:
            rank = self._turns[replica] % len(ranks)
            self._turns[replica] += 1
        else:
            if now_s - self._counted_s[replica] >= COUNTS_S:
                self._replicas[replica].advance(now_s)
                self._scores[replica] = [_score(rank) for rank in ranks]
                self._counted_s[replica] = now_s
            scores = self._scores[replica]
            rank = scores.index(min(scores))
            scores[rank] += WAITING_WEIGHT
        return rank * len(self._replicas) + replica


def _score(rank: Rank) -> int:
    running = rank.scheduler.state()[0]
    return WAITING_WEIGHT * (rank.in_service - running) + running


class BlockNews:
    """What the engines' caches say of their blocks, and when it is heard.

    A replica's news are sent with the first tokens and ends of its requests, and heard `delay_s` later.
    """

    def __init__(self, replicas: list[Replica], policy: Policy, chain: ChainKeys, delay_s: float) -> None:
        self._policy = policy
        self._replicas, self._chain = replicas, chain
        self._delay_s = delay_s
        self._said = [self._reports(replica) for replica in replicas]
        self._coming: list[tuple[float, int, int, BlockEvents]] = []
        self._order = count()

    def _reports(self, replica: Replica) -> BlockEvents:
        said = replica.ranks[0].scheduler.report_blocks(self._chain)
        assert said is not None, "prepare refuses caches that do not tell"
        return said

    def renewed(self, replica: int) -> None:
        """A replica begins anew; what it said before and nobody has heard is forgotten."""
        self._said[replica] = self._reports(self._replicas[replica])
        self._coming = [entry for entry in self._coming if entry[2] != replica]
        heapq.heapify(self._coming)

    def sent(self, replica: int, now_s: float) -> None:
        """A replica speaks."""
        said = self._said[replica]
        if said:
            heapq.heappush(self._coming, (now_s + self._delay_s, next(self._order), replica, said.copy()))
            said.clear()

    def hear(self, now_s: float) -> None:
        """Let the router know of what has come up to now."""
        while self._coming and self._coming[0][0] <= now_s:
            _, _, replica, said = heapq.heappop(self._coming)
            for block, stored in said:
                if stored:
                    self._policy.stored(replica, block, stored)
                elif block is not None:
                    self._policy.removed(replica, block)


class PolicyRouter(Router):
    """A policy over replicas.

    Parameters
    ----------
    replicas : in the order in which the router lists them.
    policy : the rule.
    ranks : chooses among the ranks of a replica, None where each has one.
    unit : units of text a token, where the policy reads text.
    chain, news : names of blocks and what the caches say, where the policy follows them.
    block_tokens : tokens of an engine's block, by which its load is polled.
    limit : requests in flight at which a replica gets no more, None for no limit.
    adapter_places : LoRA adapters that a replica's devices hold.
    breakers, retries : what the router does about replicas that refuse requests, if anything.
    """

    def __init__(
        self,
        replicas: list[Replica],
        policy: Policy,
        ranks: RankChoice | None,
        *,
        unit: int = 1,
        chain: ChainKeys | None = None,
        news: BlockNews | None = None,
        block_tokens: int = 1,
        limit: int | None = None,
        adapter_places: int = 0,
        breakers: Breakers | None = None,
        retries: Backoff | None = None,
        seed: int = 0,
    ) -> None:
        self._replicas = replicas
        self.policy = policy
        self._choice = ranks
        self._unit = unit
        self._chain, self._news = chain, news
        self._block_tokens = block_tokens
        self.reads_text = policy.reads_text or policy.block_tokens > 0
        self.filters = policy.filters
        self._polled = policy if isinstance(policy, PolledPowerOfTwo) else None
        self._poll_s = 0.0
        self._limit, self._breakers, self._retries = limit, breakers, retries
        self._adapter_places = adapter_places
        self._flying = [0] * len(replicas)
        self._serving: Series[int] = range(len(replicas))
        self._tries: dict[int, int] = {}
        self.seed, self._draw = seed, Random(seed)
        self._hears = policy.hears_ends or limit is not None or breakers is not None
        self._lags = all(replica.may_lag for replica in replicas)
        self.keeps_up = self._hears and self._lags
        self._sent: dict[int, tuple[Arrival, int, Sequence]] = {}
        self._unanswered: list[dict[int, tuple[Sequence, int]]] = [{} for _ in replicas]
        self._due_s = [INFINITY] * len(replicas)  # before when the policy hears nothing of each
        self._changes: list[tuple[float, int]] = []  # the same as a heap; those out of date are passed over

    def note(self, replica: int) -> None:
        """As of the base."""
        if self._hears:
            self._expect(replica, self._next_s(replica))

    def took(self, replica: int) -> None:
        """As of the base: nothing else happens sooner for it."""
        if self._hears:
            heard_s = self._replicas[replica].heard_s()
            if heard_s < self._due_s[replica]:
                self._expect(replica, heard_s)

    def _expect(self, replica: int, due_s: float) -> None:
        """The policy hears nothing of a replica before a time."""
        self._due_s[replica] = due_s
        if due_s == INFINITY:
            return
        changes = self._changes
        heapq.heappush(changes, (due_s, replica))
        if len(changes) > STALE * len(self._replicas):
            changes[:] = [(due_s, number) for number, due_s in enumerate(self._due_s) if due_s < INFINITY]
            heapq.heapify(changes)

    def _next_s(self, number: int) -> float:
        """A time before which the policy hears nothing of a replica."""
        replica = self._replicas[number]
        waiting = self._unanswered[number]
        if not waiting:
            return replica.visible_s()
        return min(replica.settles_s(), *(self._answered_s(number, *entry) for entry in waiting.values()))

    def _answered_s(self, number: int, seq: Sequence, rank: int) -> float:
        """When the first token of a request has come or will, as far as that is known."""
        if not seq.emissions:
            return INFINITY
        log = self._replicas[number].ranks[rank].log
        place = self._replicas[number].ranks[rank].first_step + seq.emissions[0] - log.retired_steps
        return log.end_s[place] if place < len(log.end_s) else INFINITY

    def _catch_up(self, now_s: float) -> None:
        """Hear what has happened up to now."""
        changes = self._changes
        if not changes or changes[0][0] > now_s:
            return
        heard: list[tuple[int, float]] = []  # replicas, and when each may say something next; -1 where it has to be asked
        while changes and changes[0][0] <= now_s:
            due_s, number = heapq.heappop(changes)
            if due_s != self._due_s[number]:
                continue
            self._due_s[number] = INFINITY  # an entry that stands twice counts once
            replica = self._replicas[number]
            if self._lags and not self._unanswered[number]:
                heard.append((number, replica.follow(now_s)))
            else:
                replica.advance(now_s)
                heard.append((number, -1.0))
        for number, due_s in heard:
            if due_s < 0.0:
                self._answers(number, now_s)
                due_s = self._next_s(number)
            self._expect(number, due_s)

    def _answers(self, number: int, now_s: float) -> None:
        """Hear the first tokens that a replica has given."""
        waiting = self._unanswered[number]
        for index, (seq, rank) in list(waiting.items()):
            answered_s = self._answered_s(number, seq, rank)
            if answered_s <= now_s:
                del waiting[index]
                self.policy.first_token(self._sent[index][0], number, answered_s)
                if self._news is not None:
                    self._news.sent(number, answered_s)

    def looks_s(self) -> float:
        """As of the base."""
        return self._poll_s if self.policy.polls_s else INFINITY

    def look(self, now_s: float) -> None:
        """As of the base."""
        if self.policy.polls_s and now_s >= self._poll_s:
            self._scrape(now_s)

    def _poll(self, now_s: float) -> None:
        """Look at the replicas' loads, if it is time: tokens in their KV caches, and of prompts that wait."""
        self.look(now_s)
        polled = self._polled
        if polled is None or now_s < self._poll_s:
            return
        every_s = polled.polls_tokens_s
        self._poll_s = now_s - now_s % every_s + every_s
        tokens: list[float | None] = []
        for number, replica in enumerate(self._replicas):
            replica.advance(now_s)
            self.note(number)
            tokens.append(sum(rank.scheduler.state()[2] for rank in replica.ranks) * self._block_tokens)
        for _, number, seq in self._sent.values():
            if seq.first_scheduled_s < 0:
                tokens[number] = (tokens[number] or 0) + seq.prompt_tokens
        polled.polled = tokens

    def _scrape(self, now_s: float) -> None:
        """Read what the replicas said at the last time of the grid."""
        at_s = now_s - now_s % self.policy.polls_s
        self._poll_s = at_s + self.policy.polls_s
        states = []
        for number, replica in enumerate(self._replicas):
            replica.advance(at_s)
            self.note(number)
            states.append([sum(column) for column in zip(*replica.states(), strict=True)])
        running, waiting, used, whole = zip(*states, strict=True)
        self.policy.saw(waiting, running, [held / max(all_, 1) for held, all_ in zip(used, whole, strict=True)])
        if self.policy.reads_adapters:
            run, wait = ([set[int]() for _ in self._replicas] for _ in range(2))
            for _, number, seq in self._sent.values():
                if seq.adapter:
                    (run if seq.first_scheduled_s >= 0 else wait)[number].add(seq.adapter)
            self.policy.saw_adapters(run, wait, self._adapter_places)

    def choose(self, now_s: float, seq: Sequence, session: int) -> int:
        """As of the base."""
        arrival = self._look(now_s, seq, session)
        full = self._limit is not None and not self.policy.up
        if full:  # it is under way, and has to go on
            self._set_up(full_too=True)
        number = self._give(arrival, self.policy.choose(arrival, now_s), seq, now_s)
        if full:
            self._set_up()
        return number

    def keeps(self, now_s: float, seq: Sequence, session: int) -> int | None:
        """As of the base."""
        arrival = self._look(now_s, seq, session)
        replica = self.policy.keeps(arrival, now_s)
        return None if replica is None else self._give(arrival, replica, seq, now_s)

    def _look(self, now_s: float, seq: Sequence, session: int) -> Arrival:
        """Hear all that the policy would have heard by now; return the request as it reads it."""
        self._poll(now_s)
        self._catch_up(now_s)
        if self._news is not None:
            self._news.hear(now_s)
        if self._breakers is not None and self._breakers.back(now_s):
            self._set_up()
        self.policy.tick(now_s)
        return self._arrival(seq, session)

    def _give(self, arrival: Arrival, replica: int, seq: Sequence, now_s: float) -> int:
        """A replica gets a request; return the number of its rank."""
        policy = self.policy
        policy.sent(arrival, replica, now_s)
        number = replica if self._choice is None else self._choice.number(replica, now_s)
        if self._hears:
            self._fly(arrival, replica, seq)
            if policy.hears_first_tokens:
                self._unanswered[replica][seq.index] = seq, number // len(self._replicas)
        return number

    def _fly(self, arrival: Arrival, replica: int, seq: Sequence) -> None:
        """A request is at a replica from now on."""
        self._sent[seq.index] = arrival, replica, seq
        self._flying[replica] += 1
        if self._flying[replica] == self._limit:
            self._set_up()

    def shared(self, seq: Sequence, session: int, replica: int, now_s: float) -> None:
        """As of the base."""
        arrival = self._arrival(seq, session)
        self.policy.loaded(arrival, replica)
        if self._hears:
            self._fly(arrival, replica, seq)

    def ended(self, seq: Sequence, now_s: float) -> None:
        """As of the base."""
        found = self._sent.pop(seq.index, None)
        if found is None:
            return
        arrival, number, _ = found
        self._gone(arrival, number, seq, now_s)
        if self._breakers is not None:
            self._breakers.note(number, now_s, success=True)
            self._tries.pop(seq.index, None)
        if self._news is not None:
            self._news.sent(number, now_s)

    def _gone(self, arrival: Arrival, number: int, seq: Sequence, now_s: float) -> None:
        """A request is no longer at a replica."""
        self._flying[number] -= 1
        if self._flying[number] + 1 == self._limit:
            self._set_up()
        if self._unanswered[number].pop(seq.index, None) is not None:
            self.policy.first_token(arrival, number, now_s)
        self.policy.ended(arrival, number, now_s)

    def lost(self, seq: Sequence, now_s: float) -> None:
        """As of the base; a breaker counts it as a failure."""
        arrival, number, _ = self._sent.pop(seq.index, None) or (None, 0, None)
        if arrival is None:
            return
        self._gone(arrival, number, seq, now_s)
        self._tries.pop(seq.index, None)
        if self._breakers is not None and self._breakers.note(number, now_s, success=False):
            self._set_up()

    def serving(self, replicas: Series[int]) -> None:
        """As of the base."""
        self._serving = replicas
        self._set_up()

    def warmed(self) -> None:
        """As of the base: the router has followed the caches since they were filled."""
        if self._news is not None:
            for replica in range(len(self._replicas)):
                self._news.sent(replica, -INFINITY)
            self._news.hear(0.0)

    def renewed(self, replica: int) -> None:
        """As of the base."""
        self.policy.forget(replica)
        if self._news is not None:
            self._news.renewed(replica)

    def refused(self, seq: Sequence, now_s: float) -> float | None:
        """As of the base: by the product's back-off; a breaker counts it as a failure."""
        arrival, number, _ = self._sent.pop(seq.index, None) or (None, 0, None)
        if arrival is not None:
            self._gone(arrival, number, seq, now_s)
        if self._breakers is not None and self._breakers.note(number, now_s, success=False):
            self._set_up()
        failed = self._tries[seq.index] = self._tries.get(seq.index, 0) + 1
        if self._retries is None or failed >= self._retries.attempts or not self.policy.up:
            del self._tries[seq.index]
            return None
        return now_s + self._retries.delay_s(failed, self._draw)

    def _set_up(self, *, full_too: bool = False) -> None:
        """Let the policy know who may be chosen: they serve, breakers closed, and below the limit, or at it if `full_too`."""
        closed = set(self._breakers.up()) if self._breakers is not None else self._serving
        limit = INFINITY if self._limit is None or full_too else self._limit
        up = [n for n in self._serving if n in closed and self._flying[n] < limit]
        self.policy.set_up(up)

    def serves(self, seq: Sequence) -> bool:
        """As of the base."""
        return bool(self._serving)

    def has_room(self, now_s: float, seq: Sequence | None = None) -> bool:
        """As of the base."""
        if not self._room(seq):
            self.look(now_s)
            self._catch_up(now_s)
        if self._breakers is not None and self._breakers.back(now_s):
            self._set_up()
        return self._room(seq)

    def _room(self, seq: Sequence | None) -> bool:
        """Whether a server is up, as far as has been heard, that the policy's filters leave for a request."""
        if seq is not None and self.filters:
            return self._suited(seq, self.policy.up)
        return bool(self.policy.up)

    def turns_away(self, seq: Sequence) -> bool:
        """As of the base; while nobody serves a request waits for those that are meant for it."""
        return not self._suited(seq, self._serving or range(len(self._flying)))

    def _suited(self, seq: Sequence, workers: Series[int]) -> bool:
        """Whether the policy's filters leave some of these for a request."""
        arrival = Arrival(seq.index, seq.prompt_tokens * self._unit)
        return any(self.policy.takes(arrival, worker) for worker in workers)

    def _arrival(self, seq: Sequence, session: int) -> Arrival:
        """A request as the policy reads it."""
        policy, unit = self.policy, self._unit
        key = f"s{session}" if session >= 0 and policy.reads_key else None
        arrival = Arrival(seq.index, seq.prompt_tokens * unit, key=key, adapter=seq.adapter)
        if self._chain is not None:
            size = policy.block_tokens
            shared = seq.shareable_tokens // size
            if shared:
                arrival.blocks = names = self._chain.keys(seq.runs, shared)
                if self._news is not None:
                    seq.keys = names.copy()  # the engine has the same names for them
            arrival.private_blocks = seq.prompt_tokens // size - len(arrival.blocks)
        if policy.reads_text:
            arrival.runs = _text(seq, unit)
        return arrival


def _text(seq: Sequence, unit: int) -> tuple[Run, ...]:
    """The prompt of a request: what others may share, and a rest of its own."""
    runs: list[Run] = []
    left = seq.shareable_tokens
    for segment, offset, length in seq.runs:
        if left <= 0:
            break
        taken = min(left, length)
        runs.append((segment, offset * unit, taken * unit))
        left -= taken
    rest = seq.prompt_tokens - seq.shareable_tokens
    if rest > 0:
        runs.append((-1 - seq.index, 0, rest * unit))
    return tuple(runs)


def policy_router(
    replicas: list[Replica], routing: Routing, executors: Series[Executor], limit: int | None
) -> PolicyRouter:
    """The policy of a rule; `limit` are the requests in flight at which a replica gets no more."""
    seed, n = routing.seed(), len(replicas)
    draw = Random(seed)
    choice = RankChoice(replicas, executors) if max(len(replica.ranks) for replica in replicas) > 1 else None
    if routing.system is None or routing.flags is None:
        return PolicyRouter(replicas, RULES[routing.rule](n, draw), choice, limit=limit, seed=seed)
    policy = _policy(routing.system, routing.flags, routing.role, n, draw)
    chain = news = None
    if routing.reads_blocks:
        policy.told_blocks([replica.ranks[0].scheduler.state()[-1] for replica in replicas])
    policy.told_ranges([replica.meant_for for replica in replicas])
    if policy.block_tokens:
        chain = ChainKeys(policy.block_tokens)
        news = BlockNews(replicas, policy, chain, routing.news_s) if policy.follows_events else None
    return PolicyRouter(
        replicas,
        policy,
        choice,
        unit=routing.unit,
        chain=chain,
        news=news,
        block_tokens=routing.block_tokens,
        limit=limit,
        adapter_places=routing.adapter_places,
        breakers=_breakers(routing.system, routing.flags, n),
        retries=_retries(routing.system, routing.flags),
        seed=seed,
    )


def _policy(system: RouterSystem, flags: Flags, role: str, workers: int, draw: Random) -> Policy:
    """A product's policy over the replicas of a role; their names matter where they are hashed."""
    names = [f"http://{role or 'replica'}-{number}:8000" for number in range(workers)]
    if role in system.roles:
        return system.roles[role](flags, workers, draw, names)
    if not role or system.paired is None:
        return system.policy(flags, workers, draw, names)
    own = flags.values.get(f"{role}_policy")
    return system.paired(str(own) if own else flags.word(system.policy_flag), flags, workers, draw, names)


def _breakers(system: RouterSystem, flags: Flags, workers: int) -> Breakers | None:
    """A product's breakers, if it has any and they are on."""
    if not system.breaks or flags.on("disable_circuit_breaker"):
        return None
    rules = BreakerRules(
        int(flags.number("cb_failure_threshold")),
        int(flags.number("cb_success_threshold")),
        flags.number("cb_timeout_duration_secs"),
    )
    return Breakers(workers, rules)


def _retries(system: RouterSystem, flags: Flags) -> Backoff | None:
    """A product's retries, if it has any and they are on."""
    if not system.breaks or flags.on("disable_retries"):
        return None
    return Backoff(
        attempts=max(1, int(flags.number("retry_max_retries"))),
        first_s=flags.number("retry_initial_backoff_ms") / 1e3,
        factor=flags.number("retry_backoff_multiplier"),
        jitter_share=flags.number("retry_jitter_factor"),
        most_s=flags.number("retry_max_backoff_ms") / 1e3,
    )
