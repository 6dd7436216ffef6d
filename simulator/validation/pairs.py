"""Replay recorded schedules of servers that share requests: one computes the prompt, another the answer.

The recording's own clock times steps, transfers and the proxy between the servers; each server is compared in its own order.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from collections.abc import Sequence as Series
from functools import partial
from itertools import count
from typing import Any

import numpy as np

from engine_models.declaration import PairReplay
from engine_models.parts.handover import Note, Peer, PullDecode, PullPrefill, ReservingDecode, SendingPrefill
from engine_models.parts.protocols import INFINITY, StepCost
from engine_models.parts.sequence import Sequence
from simulator.serving.turning import TurningReplica


class Server:
    """One server of a recording."""

    def __init__(self, scheduler: Peer, run: PairReplay, cost: StepCost, turn_s: float, ids: dict[int, str]) -> None:
        self.scheduler = scheduler
        scheduler.turn_s = turn_s
        self.recorder = run.recorder(scheduler, ids)
        self.ended: list[tuple[Sequence, float]] = []
        self.replica = TurningReplica(
            [scheduler],
            cost,
            on_finish=lambda seq, now_s: self.ended.append((seq, now_s)),
            on_batch=self.recorder.step,
        )
        self.replica.on_turn = self.recorder.turn

    @property
    def recorded(self) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
        """The steps as the recording writes them, and the columns to compare."""
        return self.recorder.lines, self.recorder.columns


class Drive:
    """Servers and what comes to them from outside, on one clock."""

    def __init__(self, requests: list[dict[str, Any]], accepted: Series[int] = (0,)) -> None:
        self._accepted = accepted  # drafts of a request's verifications, in turn
        self.requests = {entry["idx"]: entry for entry in requests}
        self.ids = {index: entry["id"] for index, entry in self.requests.items()}
        self.servers: dict[str, Server] = {}
        self._events: list[tuple[float, int, Any]] = []
        self._serials = count()

    def run(self) -> dict[str, Server]:
        """Run to the end; return the servers."""
        servers = self.servers.values()
        while True:
            due_s = min(server.replica.next_event_s() for server in servers)
            event_s = self._events[0][0] if self._events else INFINITY
            if event_s == due_s == INFINITY:
                for server in servers:  # the turn after the last end
                    if server.scheduler.has_work() or not isinstance(server.scheduler, ReservingDecode):
                        server.replica.advance(server.replica.clock_s + server.scheduler.turn_s)
                return self.servers
            if event_s <= due_s:
                for server in servers:
                    server.replica.advance(float(np.nextafter(event_s, -np.inf)))
                    self.take(server)
                if self._events[0][0] == event_s:
                    heapq.heappop(self._events)[2](event_s)
                continue
            limit_s = min(float(np.nextafter(due_s, np.inf)), event_s)
            for server in servers:
                server.replica.advance(limit_s, stop_after_finish=True)
                self.take(server)

    def at(self, when_s: float, what: Callable[[float], None]) -> None:
        """Call `what` at a time, with it."""
        heapq.heappush(self._events, (when_s, next(self._serials), what))

    def make(self, index: int, output_tokens: int, now_s: float) -> Sequence:
        """A request as a server sees it."""
        entry = self.requests[index]
        runs = tuple((int(s), int(o), int(n)) for s, o, n in entry.get("segments", ()))
        output = ((int(entry["out_seg"]), 0, output_tokens),) if "out_seg" in entry else ()
        return Sequence(
            index,
            entry["prompt_len"],
            output_tokens,
            now_s,
            runs=(*runs, *output),
            shareable_tokens=entry["prompt_len"] if runs else 0,
            output_shared=bool(output),
            acceptance=lambda verification: self._accepted[verification % len(self._accepted)],
        )

    def take(self, server: Server) -> None:
        """Carry on what a server has done."""
        raise NotImplementedError


class PulledPair(Drive):
    """Prefill and decode servers whose decode side reads: the recording's proxy and its link.

    A request goes to the prefill servers in turn; when its answer is there, `hop` later to the decode servers in turn. A read of
    n blocks takes ``xfer_fixed + xfer_block n``, whatever else is read.
    """

    def __init__(self, run: PairReplay, config: dict[str, Any], requests: list[dict[str, Any]], cost: StepCost) -> None:
        super().__init__(requests)
        self._clock, self._block_tokens = config["clock"], config["config"]["D"]["block_size"]
        turn_s = self._clock["empty"]
        names = config["config"]
        self._prefill = {name: Server(run.prefill(), run, cost, turn_s, self.ids) for name in names["prefill"]}
        self._decode = {name: Server(run.decode(), run, cost, turn_s, self.ids) for name in names["decode"]}
        self.servers = {**self._prefill, **self._decode}
        self._sources: dict[int, tuple[Server, Sequence]] = {}
        self._followers: dict[str, list[tuple[float, int]]] = {}
        self._sent = self._handed = 0
        for index, entry in sorted(self.requests.items()):
            if "after" in entry:
                self._followers.setdefault(entry["after"]["id"], []).append((entry["after"]["delay"], index))
            else:
                self.at(entry["arrival"], partial(self._arrive, index))

    def _arrive(self, index: int, now_s: float) -> None:
        server = list(self._prefill.values())[self._sent % len(self._prefill)]
        self._sent += 1
        server.replica.ranks[0].submit(self.make(index, 1, now_s))

    def _hand_over(self, index: int, now_s: float) -> None:
        server = list(self._decode.values())[self._handed % len(self._decode)]
        self._handed += 1
        server.replica.ranks[0].submit(self.make(index, self.requests[index]["output_len"], now_s))

    def take(self, server: Server) -> None:
        """Carry on what a server has done: answers of prompts, ends of requests, reads that begin."""
        ended, server.ended = server.ended, []
        for seq, now_s in ended:
            if isinstance(server.scheduler, PullPrefill):
                self._sources[seq.index] = server, seq
                self.at(now_s + self._clock["hop"], partial(self._hand_over, seq.index))
            else:
                for delay_s, index in self._followers.get(self.requests[seq.index]["id"], ()):
                    self.at(now_s + delay_s, partial(self._arrive, index))
        if isinstance(server.scheduler, PullDecode):
            notes, server.scheduler.notes = server.scheduler.notes, []
            for note in notes:
                self._read(server, note)

    def _read(self, server: Server, note: Note) -> None:
        blocks = -(-note.tokens // self._block_tokens)
        took_s = self._clock["xfer_fixed"] + self._clock["xfer_block"] * blocks
        self.at(note.at_s + took_s, partial(self._arrived, server, note.seq))

    def _arrived(self, server: Server, seq: Sequence, now_s: float) -> None:
        source, held = self._sources.pop(seq.index)
        assert isinstance(server.scheduler, PullDecode)
        assert isinstance(source.scheduler, PullPrefill)
        server.scheduler.arrived(seq)
        source.scheduler.release(held)
        for side, request in ((server, seq), (source, held)):
            side.replica.hear()
            side.recorder.heard(request, now_s)


class DecodeAlone(Drive):
    """A decode server that reserves: prompts are computed elsewhere, as soon as they may, without a queue."""

    def __init__(self, run: PairReplay, config: dict[str, Any], requests: list[dict[str, Any]], cost: StepCost) -> None:
        super().__init__(requests, config["config"].get("spec_accept") or (0,))
        self._clock = config["clock"]
        self.servers = {"": Server(run.decode(), run, cost, self._clock["empty"], self.ids)}
        for index, entry in sorted(self.requests.items()):
            if entry["prompt_len"] <= config["config"]["max_total_num_tokens"]:
                self.at(entry["arrival"], partial(self._arrive, index))

    def _arrive(self, index: int, now_s: float) -> None:
        self.servers[""].replica.ranks[0].submit(self.make(index, self.requests[index]["output_len"], now_s))

    def take(self, server: Server) -> None:
        """As of the base: reservations let prompts begin."""
        assert isinstance(server.scheduler, ReservingDecode)
        notes, server.scheduler.notes = server.scheduler.notes, []
        for seq, at_s, *_ in notes:  # the prompt's own tokens are computed, whatever pages they take here
            took_s = self._clock["prefill_fixed"] + self._clock["prefill_token"] * seq.prompt_tokens
            self.at(at_s + took_s, partial(self._arrived, server, seq))

    def _arrived(self, server: Server, seq: Sequence, now_s: float) -> None:
        assert isinstance(server.scheduler, ReservingDecode)
        server.scheduler.arrived(seq)
        server.replica.hear()


class PrefillAlone(Drive):
    """A prefill server that sends: when memory is reserved elsewhere is given, and how long a last piece takes."""

    def __init__(self, run: PairReplay, config: dict[str, Any], requests: list[dict[str, Any]], cost: StepCost) -> None:
        super().__init__(requests)
        self._clock = config["clock"]
        self._server = Server(run.prefill(), run, cost, self._clock["empty"], self.ids)
        self.servers = {"": self._server}
        self._came: dict[int, int] = {}
        for index, entry in sorted(self.requests.items()):
            if entry["prompt_len"] <= config["config"]["max_total_num_tokens"]:
                seq = self.make(index, 1, entry["arrival"])
                self.at(entry["arrival"], partial(self._arrive, seq))
                self.at(entry["decode_ready"], partial(self._reserved, seq))

    def run(self) -> dict[str, Server]:
        """As of the base; a recording ends with the loop that sees the last prompt sent."""
        servers = super().run()
        lines = self._server.recorder.lines
        while lines and not lines[-1]["done"] and not lines[-1]["sched"]:
            lines.pop()
        return servers

    def _arrive(self, seq: Sequence, now_s: float) -> None:
        self._server.replica.ranks[0].submit(seq)

    def _reserved(self, seq: Sequence, now_s: float) -> None:
        scheduler = self._server.scheduler
        assert isinstance(scheduler, SendingPrefill)
        scheduler.reserved(seq)
        self._server.replica.hear()

    def take(self, server: Server) -> None:
        """As of the base: a prompt is there a while after its last piece was sent."""
        assert isinstance(server.scheduler, SendingPrefill)
        notes, server.scheduler.notes = server.scheduler.notes, []
        for seq, at_s, tokens, _ in notes:
            came = self._came[seq.index] = self._came.get(seq.index, 0) + tokens
            if came >= seq.prompt_tokens:  # the last page is counted as far as it is filled
                tokens -= came - seq.prompt_tokens
                took_s = self._clock["xfer_fixed"] + self._clock["xfer_token"] * tokens
                self.at(at_s + took_s, partial(self._there, seq))

    def _there(self, seq: Sequence, now_s: float) -> None:
        scheduler = self._server.scheduler
        assert isinstance(scheduler, SendingPrefill)
        scheduler.sent(seq)
        self._server.replica.hear()
        self._server.recorder.heard(seq, now_s)


KINDS: dict[str, type[PulledPair | DecodeAlone | PrefillAlone]] = {
    "": PulledPair,
    "_decode": DecodeAlone,
    "_prefill": PrefillAlone,
}
"""What was recorded, by what its name adds to that of a pair."""


def replay_pair(
    kind: str, run: PairReplay, config: dict[str, Any], requests: list[dict[str, Any]], cost: StepCost
) -> dict[str, Server]:
    """Run a recording's servers again; return them by name."""
    return KINDS[kind](run, config, requests, cost).run()
