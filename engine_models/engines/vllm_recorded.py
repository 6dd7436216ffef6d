"""Steps of a prefill and of a decode server of vLLM as the recorder of both writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.parts.batch import Batch
from engine_models.parts.handover import Peer
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.pulled import DecodeOfPull, PrefillOfPull

COLUMNS = (
    *("sched", "new", "loads", "preempted", "kv_waiting", "waiting", "free_blocks"),
    *("recv_done", "send_done", "held", "free_after"),
)
"""What is compared."""


class PairRecorder:
    """Writes the steps of one server into `lines`. Parameters: its scheduler, and the requests' names by index."""

    def __init__(self, scheduler: Peer, ids: Mapping[int, str]) -> None:
        assert isinstance(scheduler, PrefillOfPull | DecodeOfPull)
        self.columns: tuple[str, ...] = COLUMNS
        self.lines: list[dict[str, Any]] = []
        self._scheduler, self._ids = scheduler, ids
        self._done = "recv_done" if isinstance(scheduler, DecodeOfPull) else "send_done"
        self._started: set[Sequence] = set()
        self._begun: set[Sequence] = set()
        self._heard: list[Sequence] = []
        self._state: list[Any] = []
        self._losses: dict[Sequence, int] = {}  # how often a waiting request had lost its memory when it was last seen
        self._turn: dict[str, Any] | None = None  # the latest, which ends at `_turn_end_s`
        self._turn_end_s = 0.0

    def turn(self, end_s: float) -> None:
        """A turn without a batch ends at `end_s`; it is written if it changes something."""
        self._turn, self._turn_end_s = self._line(None), end_s

    def step(self, batch: Batch) -> None:
        """A batch has been settled."""
        self._turn = None
        line = self._line(batch)
        line[self._done] = sorted(self._named(self._heard))
        self._heard = []

    def heard(self, seq: Sequence, at_s: float) -> None:
        """A peer is done with a request at `at_s`, which the step then going on notices."""
        if self._turn is None or at_s > self._turn_end_s:
            self._heard.append(seq)
            return
        self._turn[self._done] = sorted([*self._turn[self._done], self._ids[seq.index]])
        self._turn |= self._ending()
        if self.lines[-1] is not self._turn:
            self.lines.append(self._turn)

    def _line(self, batch: Batch | None) -> dict[str, Any]:
        scheduler = self._scheduler
        rows = (batch.rows or []) if batch is not None else []
        new = [(seq, before) for seq, _, before in rows if seq not in self._started]
        self._started.update(seq for seq, _ in new)
        loads, loading = self._loads()
        queued = scheduler.queued()
        lost = [seq for seq in reversed(queued) if seq.preemptions != self._losses.get(seq, 0)]
        self._losses |= {seq: seq.preemptions for seq in lost}
        line = {
            "sched": [[self._ids[seq.index], n, before] for seq, n, before in rows],
            "new": [[self._ids[seq.index], before] for seq, before in new],
            "loads": loads,
            "preempted": self._named(batch.preempted if batch is not None else lost),
            "kv_waiting": loading,
            "waiting": self._named(queued),
            "free_blocks": scheduler.kv.free_blocks if batch is None else batch.free_blocks,
            "recv_done": [],
            "send_done": [],
            **self._ending(),
        }
        running = {*scheduler.running, *(batch.finishing if batch is not None else ())}
        state = [running, *(line[name] for name in ("kv_waiting", "waiting", "free_blocks"))]
        if batch is not None or loads or state != self._state:
            self.lines.append(line)
        self._state = state
        return line

    def _ending(self) -> dict[str, Any]:
        """What is true when a step has ended."""
        scheduler = self._scheduler
        if isinstance(scheduler, PrefillOfPull):  # what a step hears of is freed together, in order of name
            return {"held": sorted(self._named(scheduler.still_held())), "free_after": scheduler.free_to_be()}
        return {"held": [], "free_after": scheduler.kv.free_blocks}

    def _loads(self) -> tuple[list[Any], list[str]]:
        """Reads that have begun: blocks found here, and read; and all requests that hold blocks for one."""
        scheduler = self._scheduler
        if not isinstance(scheduler, DecodeOfPull):
            return [], []
        size, loading = scheduler.kv.block_tokens, list(scheduler.loading())
        begun = [
            [self._ids[seq.index], seq.computed // size, -(-seq.length // size) - seq.computed // size]
            for seq in loading
            if seq not in self._begun
        ]
        self._begun.update(loading)
        return begun, self._named(loading)

    def _named(self, rows: Any) -> list[str]:
        return [self._ids[seq.index] for seq in rows]
