"""Loops of a prefill and of a decode server of SGLang as the recorder of both writes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from engine_models.parts.batch import Batch
from engine_models.parts.handover import Peer
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch
from engine_models.schedulers.reserved import ReservingDecodeScheduler, SendingPrefillScheduler

DECODE = (
    *("prealloc", "admitted", "transferred", "resumed", "prebuilt", "retracted", "decode", "kv_tokens"),
    *("transfer_queue", "waiting", "free_before", "free_after_queues", "free", "finished", "free_end"),
)
PREFILL = (
    *("bootstrap", "bootstrapped", "waiting", "sched", "chunked", "sent_chunk", "sent_early", "sent_after", "inflight", "done"),
    *("free_before", "free", "free_end", "evictable_end"),
)
"""What is compared."""


class PairRecorder:
    """Writes the loops of one server into `lines`. Parameters: its scheduler, and the requests' names by index.

    A loop without a batch is written if something has happened in it, or if the queues are others than after the one before.
    """

    def __init__(self, scheduler: Peer, ids: Mapping[int, str]) -> None:
        assert isinstance(scheduler, SendingPrefillScheduler | ReservingDecodeScheduler)
        self.columns: tuple[str, ...] = PREFILL if isinstance(scheduler, SendingPrefillScheduler) else DECODE
        self.lines: list[dict[str, Any]] = []
        self._scheduler, self._ids = scheduler, ids
        self._state: list[Any] = []
        self._latest: dict[str, Any] | None = None
        self._loop: dict[str, Any] = {}

    def turn(self, end_s: float) -> None:
        """As of `engine_models.declaration.PairRecorder`."""
        self._latest = self._line(None)

    def step(self, batch: Batch) -> None:
        """As of `engine_models.declaration.PairRecorder`."""
        self._latest = self._line(batch)

    def heard(self, seq: Sequence, at_s: float) -> None:
        """As of `engine_models.declaration.PairRecorder`: the scheduler itself says what it has seen before a loop."""

    def _complete(self, scheduler: SendingPrefillScheduler) -> None:
        """Add to the latest line what was seen at its end."""
        latest, loop = self._latest, scheduler.loop
        if latest is None or loop is self._loop:
            return
        self._loop = loop
        latest["done"] = self._named(loop["seen"])
        latest |= {"free_end": loop["free_before"], "evictable_end": loop["evictable_before"]}
        latest["inflight"] = [name for name in latest["inflight"] if name not in latest["done"]]
        self._state = self._state_of(latest)
        if latest["done"] and self.lines[-1] is not latest:
            self.lines.append(latest)

    def _line(self, batch: Batch | None) -> dict[str, Any]:
        if isinstance(self._scheduler, SendingPrefillScheduler):
            self._complete(self._scheduler)
            line = self._prefill_line(self._scheduler, batch)
        else:
            line = self._decode_line(self._scheduler, batch)
        happened = ("bootstrapped", "sent_chunk", "sent_early", "admitted", "transferred", "resumed", "prebuilt")
        state = self._state_of(line)
        if batch is not None or state != self._state or any(line.get(name) for name in happened):
            self.lines.append(line)
        self._state = state
        return line

    def _state_of(self, line: Mapping[str, Any]) -> list[Any]:
        names = ("bootstrap", "waiting", "inflight", "prealloc", "transfer_queue", "free", "evictable_end")
        return [line.get(name) for name in names]

    def _decode_line(self, scheduler: ReservingDecodeScheduler, batch: Batch | None) -> dict[str, Any]:
        loop = scheduler.loop
        queues = ("prealloc", "admitted", "transferred", "resumed", "prebuilt", "retracted")
        alone = [seq for seq in loop["prebuilt"] if seq.length >= seq.final_length and seq.prompt_tokens + 1 == seq.final_length]
        return {
            **{name: self._named(loop[name]) for name in queues},
            **{name: loop[name] for name in ("free_before", "free_after_queues", "free")},
            "decode": self._named(seq for seq, _, _ in (batch.rows or ())) if batch is not None else [],
            "kv_tokens": batch.decode_kv_tokens if batch is not None else 0,
            "transfer_queue": self._named(scheduler.transfer),
            "waiting": self._named(scheduler.waiting),
            "finished": self._named([*alone, *(batch.finishing if batch is not None else ())]),
            "free_end": scheduler.kv.free_tokens,
        }

    def _prefill_line(self, scheduler: SendingPrefillScheduler, batch: Batch | None) -> dict[str, Any]:
        loop = scheduler.loop
        assert batch is None or isinstance(batch, PrefillFirstBatch)
        rows = batch.rows or [] if batch is not None else []
        chunked = batch.chunked if batch is not None else scheduler.chunked
        return {
            **{name: self._named(loop[name]) for name in ("bootstrap", "bootstrapped", "waiting")},
            **{
                name: [[self._ids[seq.index], tokens] for seq, tokens in loop[name]]
                for name in ("sent_chunk", "sent_early", "sent_after")
            },
            **{name: loop[name] for name in ("free_before", "free")},
            "sched": [[self._ids[seq.index], n, before] for seq, n, before in rows],
            "chunked": self._ids[chunked.index] if chunked is not None else None,
            "done": [],
            "inflight": self._named(scheduler.inflight),
            "free_end": scheduler.kv.free_tokens,
            "evictable_end": scheduler.kv.tree.evictable_tokens,
        }

    def _named(self, rows: Iterable[Sequence]) -> list[str]:
        return [self._ids[seq.index] for seq in rows]
