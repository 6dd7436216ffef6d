"""Replay recorded decisions of routers through their policies.

A decision is equal if the recorded worker is one that the rule allows: equal costs, random choices and power of two permit
several. After each the policy takes the recorded worker, whatever it would have chosen. Workers are listed to the policy in the
order in which the recorded router listed them (`listed_order`); that of servers with a role is not recorded, and learned from
their first round. Rings over workers whose names are not recorded are free in the first choice for a key, and bound by it.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Series
from random import Random
from typing import Any
from zlib import crc32

from simulator.cluster.routing.breakers import BreakerRules, Breakers
from simulator.cluster.routing.dynamo import Gate, KvRouter
from simulator.cluster.routing.policy import Arrival, InTurn, LoadPolicy, Policy, Run
from simulator.cluster.routing.production_stack import Rated, Rates
from simulator.cluster.routing.sglang_router import PolledPowerOfTwo
from simulator.cluster.routing.system import Flag, Flags, RouterSystem
from simulator.validation.recordings import STEP_LINES, Recording

Line = Mapping[str, Any]
Difference = dict[str, Any]

TIMES_EQUAL = 1e-9
"""Costs this near are equal."""
CHARACTERS = 20_000
"""Different characters of recorded texts."""
TICK_S = 1e-6
"""Time that passes between two decisions [s]: recordings have no clock but their pauses."""


def replay(recording: Recording, system: RouterSystem) -> dict[str, Any]:
    """Replay the decisions of a router; as of `simulator.validation.schedules.replay`."""
    run = (
        KvReplay(recording.config, system)
        if "env" in recording.config
        else TextReplay(recording.config, system)
    )
    steps = equal = 0
    first: Difference | None = None
    for line, following in zip(recording.lines, [*recording.lines[1:], {"type": ""}], strict=True):
        difference = run.take(line, following)
        if line["type"] not in STEP_LINES:
            continue
        if difference is None:
            equal += 1
        elif first is None:
            first = {"step": steps, **difference}
        steps += 1
    return {
        "name": recording.name,
        "engine": recording.engine,
        "steps": steps,
        "equal": equal,
        "first_difference": first,
    }


def _unlike(what: str, recorded: object, simulated: object) -> Difference:
    return {"what": what, "recorded": recorded, "simulated": simulated}


def _flags(system: RouterSystem, given: Mapping[str, str]) -> Flags:
    """Flags of a recording, whose values are texts."""
    kinds = {flag.name: flag for flag in system.flags}
    return system.read({name: _typed(kinds.get(name), text) for name, text in given.items()}, "args")


def _typed(flag: Flag | None, text: str) -> object:
    kind = None if flag is None else flag.default if flag.default is not None else flag.like
    if isinstance(kind, bool):
        return text.lower() in ("true", "1")
    if isinstance(kind, int) and text.lstrip("-").isdigit():
        return int(text)
    return float(text) if isinstance(kind, int | float) else text


def _arguments(words: Series[str]) -> dict[str, str]:
    """Values of flags by their names in snake_case; a flag without one is true."""
    given: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name = word[2:].replace("-", "_")
            given[name] = "true"
        else:
            given[name] = word
    return given


class LearnedTurn(InTurn):
    """In turn, in an order that the first round shows."""

    def __init__(self, workers: int, draw: Random) -> None:
        super().__init__(workers, draw)
        self._order: list[int] = []

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base; whoever has not had a turn in the first round."""
        if self.chosen < self.workers:
            return [worker for worker in self.up if worker not in self._order]
        return (self._order[self.chosen % self.workers],)

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        super().sent(arrival, worker, now_s)
        if len(self._order) < self.workers:
            self._order.append(worker)


class RecordedRates(Rates):
    """Rates as the recorded router had them, printed to a tenth: workers whose rates are printed alike may be in any order."""

    def __init__(self, of: Mapping[int, float]) -> None:
        super().__init__(len(of), 1.0)
        self._of = of

    def lowest(self, workers: Series[int], now_s: float) -> Series[int]:
        """As of the base."""
        new = next((worker for worker in workers if worker not in self._of), None)
        if new is not None:
            return (new,)
        least = min(self._of[worker] for worker in workers)
        return [worker for worker in workers if self._of[worker] == least]

    def sent(self, worker: int, now_s: float) -> None:
        """As of the base: nothing is counted."""


class Side:
    """Workers of a kind, as their policy numbers them."""

    def __init__(self, workers: list[int], policy: Policy) -> None:
        self.workers = workers
        self.number = {worker: i for i, worker in enumerate(workers)}
        self.policy = policy
        self.sent: dict[str, tuple[Arrival, int]] = {}


class TextReplay:
    """A router that gets texts: `req`, `done`, pauses, failures, and who is available."""

    def __init__(self, config: Line, system: RouterSystem) -> None:
        self._system = system
        given = _arguments([str(word) for word in config.get("args", ())])
        for key, name in (
            ("router", "routing_logic"),
            ("prefix_min_match_length", "prefix_min_match_length"),
        ):
            if key in config:
                given[name] = str(config[key])
        named = {role: given.pop(f"{role}_policy", None) for role in ("prefill", "decode")}
        given.pop("kv_connector", None)
        flags = _flags(system, given)
        order = [int(worker) for worker in config.get("listed_order", range(config["workers"]))]
        draw, names = Random(0), config.get("urls")
        self._sides: dict[str, Side] = {}
        if config.get("kinds"):
            as_given = order if system.holds_prefill else sorted(order)
            for role, own in named.items():
                mine = [worker for worker in as_given if config["kinds"][worker] == role[0]]
                assert system.paired is not None
                policy = system.paired(own or flags.word(system.policy_flag), flags, len(mine), draw, names)
                self._sides[role] = Side(
                    mine, LearnedTurn(len(mine), draw) if type(policy) is InTurn else policy
                )
        else:
            self._sides["worker"] = Side(order, system.policy(flags, len(order), draw, names))
        self._headers = (config["session_key"],) if "session_key" in config else system.key_headers
        self._breakers: Breakers | None = None
        if system.breaks and not flags.on("disable_circuit_breaker"):
            rules = BreakerRules(
                int(flags.number("cb_failure_threshold")),
                int(flags.number("cb_success_threshold")),
                flags.number("cb_timeout_duration_secs"),
            )
            self._breakers = Breakers(len(order), rules)
        self._failing: set[int] = set()
        self._characters: dict[int, list[Run]] = {}
        self._now_s = 0.0
        self._requests = 0

    def take(self, line: Line, following: Line) -> Difference | None:
        """Take in a line; return how a decision differs from the rule."""
        kind = line["type"]
        if kind == "sleep":
            self._now_s += line["s"]
        elif kind == "fail":
            self._failing.add(line["worker"])
        elif kind == "heal":
            self._failing.discard(line["worker"])
        elif kind == "available":
            for side in self._sides.values():
                side.policy.set_up([side.number[worker] for worker in line["workers"]])
        elif kind == "done":
            self._done(line["id"])
        elif kind == "req":
            return self._decide(line)
        return None

    def _text(self, segments: Series[Series[int]]) -> tuple[Run, ...]:
        """The characters of a request: segments are made of 20,000 of them, and so may begin alike."""
        made = self._characters
        out: list[Run] = []
        for segment, offset, length in segments:
            have = made.setdefault(segment, [])
            while len(have) < offset + length:
                have.append((crc32(f"{segment}:{len(have)}".encode()) % CHARACTERS, 0, 1))
            out += have[offset : offset + length]
        return tuple(out)

    def _done(self, name: str) -> None:
        for side in self._sides.values():
            if name in side.sent:
                arrival, worker = side.sent.pop(name)
                side.policy.ended(arrival, worker, self._now_s)
                self._note(side, worker, success=True)

    def _note(self, side: Side, worker: int, *, success: bool) -> None:
        """Let the breaker of a worker know; servers of roles have none that a recording shows."""
        if self._breakers is None or len(self._sides) > 1:
            return
        if self._breakers.note(worker, self._now_s, success=success):
            side.policy.set_up(self._breakers.up())

    def _decide(self, line: Line) -> Difference | None:
        self._now_s += TICK_S
        headers = {name.lower(): value for name, value in line.get("headers", {}).items()}
        header = next((name.lower() for name in self._headers if name.lower() in headers), "")
        arrival = Arrival(
            self._requests, int(line["n"]), self._text(line["segments"]), headers.get(header), header
        )
        self._requests += 1
        found: Difference | None = None
        for what, side in self._sides.items():
            policy = side.policy
            if self._breakers is not None and self._breakers.back(self._now_s):
                policy.set_up(self._breakers.up())
            self._see(side, line)
            policy.tick(self._now_s)
            for failed in line.get("failed_on", ()):
                found = found or self._chosen(side, arrival, failed, "failed_on", fails=True)
                if policy.up:
                    policy.sent(arrival, side.number[failed], self._now_s)
                    policy.ended(arrival, side.number[failed], self._now_s)
                self._note(side, side.number[failed], success=False)
            if policy.up and not line.get("failed_on") and line[what] is None:
                found = found or _unlike(what, None, policy.up)
            if line[what] is None:  # every try failed, or nobody is up
                continue
            found = found or self._chosen(side, arrival, line[what], what, fails=False)
            worker = side.number[line[what]]
            if not policy.up:
                continue
            policy.sent(arrival, worker, self._now_s)
            if what == "prefill" and not self._system.holds_prefill:
                policy.ended(arrival, worker, self._now_s)
            else:
                side.sent[line["id"]] = arrival, worker
        return found

    def _chosen(
        self, side: Side, arrival: Arrival, worker: int, what: str, *, fails: bool
    ) -> Difference | None:
        """How a recorded choice differs from the rule: it is not allowed, or it went otherwise than the worker's state says."""
        allowed = [side.workers[i] for i in side.policy.allowed(arrival, self._now_s)] if side.policy.up else []
        possible = [w for w in allowed if (w in self._failing) == fails]
        return None if worker in possible else _unlike(what, worker, possible)

    def _see(self, side: Side, line: Line) -> None:
        """Show a policy what the recorded router saw: polled loads, rates, and counts that differ from the requests held."""
        policy = side.policy
        if isinstance(policy, PolledPowerOfTwo) and "polled_tokens" in line:
            policy.polled = [line["polled_tokens"][worker] for worker in side.workers]
        if isinstance(policy, Rated) and "qps" in line:
            policy.rates = RecordedRates({side.number[int(w)]: rate for w, rate in line["qps"].items()})
        if isinstance(policy, LoadPolicy) and policy.counts and "router_load" in line:
            for i, worker in enumerate(side.workers):
                policy.loads.add(i, line["router_load"][worker] - policy.loads.of[i])


class KvReplay:
    """A router that gets names of KV blocks, and events of the engines' caches."""

    def __init__(self, config: Line, system: RouterSystem) -> None:
        own = {_environment(flag.name): flag.name for flag in system.flags}
        given = {"kv_cache_block_size": str(config["block_size"])}
        for name, value in config["env"].items():
            given[own.get(name, name)] = str(value)
        flags = _flags(system, given)
        policy = system.policy(flags, int(config["workers"]), Random(0), None)
        assert isinstance(policy, KvRouter)
        self._router = policy
        self._gate = Gate(policy, flags, int(config["worker"]["max_num_batched_tokens"]))
        self._arrivals: dict[str, Arrival] = {}
        self._names: dict[int, str] = {}
        self._at: dict[str, int] = {}
        self._now_s = 0.0

    def take(self, line: Line, following: Line) -> Difference | None:
        """Take in a line; return how a decision differs from the rule."""
        kind, router = line["type"], self._router
        if kind == "kv_stored":
            router.index.store(line["worker"], line["parent"], line["bids"])
        elif kind == "kv_removed":
            router.index.remove(line["worker"], line["bids"])
        elif kind == "prefill_done":
            router.first_token(self._arrivals[line["id"]], self._at[line["id"]], self._now_s)
        elif kind == "free":
            router.ended(self._arrivals[line["id"]], self._at.pop(line["id"], 0), self._now_s)
        elif kind == "output_block":
            router.output_block(self._arrivals[line["id"]], line["decay"])
        elif kind == "sleep":
            self._now_s += line["s"]
        elif kind == "req":
            return self._request(line)
        elif kind == "dequeued":
            return self._dequeued(line, last=following["type"] != "dequeued")
        return None

    def _request(self, line: Line) -> Difference | None:
        self._now_s += TICK_S
        arrival = Arrival(
            len(self._arrivals), int(line["isl"]), blocks=line["bids"], jump_s=line.get("priority_jump", 0.0)
        )
        arrival.priority = line.get("strict_priority", 0)
        self._arrivals[line["id"]] = arrival
        self._names[arrival.index] = line["id"]
        router = self._router
        router.tick(self._now_s)
        overlap = router.index.leading(arrival.blocks).tolist()
        waits = self._gate.must_wait()
        if line.get("queued"):
            self._gate.push(arrival, self._now_s)
        found = None
        if waits != line.get("queued", False):
            found = _unlike("queued", line.get("queued", False), waits)
        elif overlap != line["overlap_blocks"]:
            found = _unlike("overlap_blocks", line["overlap_blocks"], overlap)
        after = self._after(line) if "worker" not in line else self._decided(line, arrival)
        return found or after

    def _dequeued(self, line: Line, *, last: bool) -> Difference | None:
        """A request that has waited is decided; what is printed behind it is the state after all that were decided with it."""
        ready = self._gate.waiting.head() if self._gate.ready() else None
        arrival = self._arrivals[line["id"]]
        self._gate.waiting.take(arrival)
        found = self._decided(line, arrival, last=last)
        return found if ready is arrival else _unlike("id", line["id"], ready and self._names[ready.index])

    def _decided(self, line: Line, arrival: Arrival, *, last: bool = True) -> Difference | None:
        router, worker = self._router, int(line["worker"])
        allowed = router.allowed(arrival, self._now_s)
        cost = float(router.costs(arrival)[worker])
        router.sent(arrival, worker, self._now_s)
        self._at[line["id"]] = worker
        if worker not in allowed:
            return _unlike("worker", worker, list(allowed))
        if abs(cost - line["cost"]) > TIMES_EQUAL:
            return _unlike("cost", line["cost"], cost)
        return self._after(line) if last else None

    def _after(self, line: Line) -> Difference | None:
        router = self._router
        after = {
            "prefill": router.pending.tolist(),
            "decode": router.blocks.tolist(),
            "active": router.active.tolist(),
            "pending": len(self._gate.waiting),
        }
        return None if after == line["after"] else _unlike("after", line["after"], after)


def _environment(flag: str) -> str:
    """The environment variable of a flag."""
    short = flag.removeprefix("router_")
    kv = "KV_" if short.startswith("overlap_score_credit") else ""
    return f"DYN_ROUTER_{kv}{short}".upper()
