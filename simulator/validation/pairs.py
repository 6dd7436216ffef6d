"""Replay recorded schedules of servers that share requests: one computes the prompt, another the answer.

The recording's own clock times steps, transfers and the proxy between the servers; each server is compared in its own order.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Any

import numpy as np

from engine_models.declaration import PairReplay
from engine_models.parts.handover import Note, Peer, PullDecode, PullPrefill
from engine_models.parts.protocols import INFINITY, StepCost
from engine_models.parts.sequence import Sequence
from simulator.serving.turning import TurningReplica

Line = dict[str, Any]


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


class PulledPair:
    """Prefill and decode servers whose decode side reads: the recording's proxy and its link.

    A request goes to the prefill servers in turn; when its answer is there, `hop` later to the decode servers in turn. A read of
    n blocks takes ``xfer_fixed + xfer_block n``, whatever else is read.
    """

    def __init__(self, run: PairReplay, config: dict[str, Any], requests: list[dict[str, Any]], cost: StepCost) -> None:
        self._clock, self._block_tokens = config["clock"], config["config"]["D"]["block_size"]
        self._requests = {entry["idx"]: entry for entry in requests}
        ids = {index: entry["id"] for index, entry in self._requests.items()}
        turn_s = self._clock["empty"]
        self._prefill = {name: Server(run.prefill(), run, cost, turn_s, ids) for name in config["config"]["prefill"]}
        self._decode = {name: Server(run.decode(), run, cost, turn_s, ids) for name in config["config"]["decode"]}
        self.servers = {**self._prefill, **self._decode}
        self._events: list[tuple[float, int, Any]] = []
        self._serials = count()
        self._sources: dict[int, tuple[Server, Sequence]] = {}
        self._followers: dict[str, list[tuple[float, int]]] = {}
        self._sent = self._handed = 0
        for index, entry in sorted(self._requests.items()):
            if "after" in entry:
                self._followers.setdefault(entry["after"]["id"], []).append((entry["after"]["delay"], index))
            else:
                self._at(entry["arrival"], lambda now_s, index=index: self._arrive(index, now_s))

    def drive(self) -> dict[str, list[Line]]:
        """Run to the end; return the steps by server."""
        servers = self.servers.values()
        while True:
            due_s = min(server.replica.next_event_s() for server in servers)
            event_s = self._events[0][0] if self._events else INFINITY
            if event_s == due_s == INFINITY:
                for server in servers:  # the turn after the last end
                    server.replica.advance(server.replica.clock_s + server.scheduler.turn_s)
                return {name: server.recorder.lines for name, server in self.servers.items()}
            if event_s <= due_s:
                for server in servers:
                    server.replica.advance(float(np.nextafter(event_s, -np.inf)))
                    self._take(server)
                if self._events[0][0] == event_s:
                    heapq.heappop(self._events)[2](event_s)
                continue
            limit_s = min(float(np.nextafter(due_s, np.inf)), event_s)
            for server in servers:
                server.replica.advance(limit_s, stop_after_finish=True)
                self._take(server)

    def _at(self, when_s: float, what: Any) -> None:
        heapq.heappush(self._events, (when_s, next(self._serials), what))

    def _make(self, index: int, output_tokens: int, now_s: float) -> Sequence:
        entry = self._requests[index]
        runs = tuple((int(s), int(o), int(n)) for s, o, n in entry["segments"])
        output = (int(entry["out_seg"]), 0, output_tokens)
        return Sequence(
            index,
            entry["prompt_len"],
            output_tokens,
            now_s,
            runs=(*runs, output),
            shareable_tokens=entry["prompt_len"],
            output_shared=True,
        )

    def _arrive(self, index: int, now_s: float) -> None:
        server = list(self._prefill.values())[self._sent % len(self._prefill)]
        self._sent += 1
        server.replica.ranks[0].submit(self._make(index, 1, now_s))

    def _hand_over(self, index: int, now_s: float) -> None:
        server = list(self._decode.values())[self._handed % len(self._decode)]
        self._handed += 1
        server.replica.ranks[0].submit(self._make(index, self._requests[index]["output_len"], now_s))

    def _take(self, server: Server) -> None:
        """Carry on what a server has done: answers of prompts, ends of requests, reads that begin."""
        ended, server.ended = server.ended, []
        for seq, now_s in ended:
            if isinstance(server.scheduler, PullPrefill):
                self._sources[seq.index] = server, seq
                self._at(now_s + self._clock["hop"], lambda at_s, index=seq.index: self._hand_over(index, at_s))
            else:
                for delay_s, index in self._followers.get(self._requests[seq.index]["id"], ()):
                    self._at(now_s + delay_s, lambda at_s, index=index: self._arrive(index, at_s))
        if isinstance(server.scheduler, PullDecode):
            notes, server.scheduler.notes = server.scheduler.notes, []
            for note in notes:
                self._read(server, note)

    def _read(self, server: Server, note: Note) -> None:
        blocks = -(-note.tokens // self._block_tokens)
        took_s = self._clock["xfer_fixed"] + self._clock["xfer_block"] * blocks
        self._at(note.at_s + took_s, lambda now_s: self._arrived(server, note.seq, now_s))

    def _arrived(self, server: Server, seq: Sequence, now_s: float) -> None:
        source, held = self._sources.pop(seq.index)
        assert isinstance(server.scheduler, PullDecode)
        assert isinstance(source.scheduler, PullPrefill)
        server.scheduler.arrived(seq)
        source.scheduler.release(held)
        for side, request in ((server, seq), (source, held)):
            side.replica.hear()
            side.recorder.heard(request, now_s)


def replay_pair(run: PairReplay, config: dict[str, Any], requests: list[dict[str, Any]], cost: StepCost) -> dict[str, list[Line]]:
    """Run a recording's servers again; return their steps by server."""
    return PulledPair(run, config, requests, cost).drive()
