"""Continuous batching in two servers, the second of which reads the first one's blocks: vLLM with its NIXL connector.

The prefill server runs ordinary requests of one output token, and keeps the blocks of each when it has ended, until the reader
has them. The decode server gives a request blocks for its whole prompt, in its place in the waiting queue and without taking a
running row or tokens of the step; the read goes on beside the steps. When it has ended, the request is admitted before those
that hold nothing yet, and its last prompt token is computed again, for the first output token. A request that loses its memory
later is computed again here.

Where the prefill server pushes, as over Mooncake, a request is at both servers at once: the decode server gives it blocks in the
same way, and they are sent when both are done (`PrefillOfPush`, `DecodeOfPush`; `kv_connector/v1/mooncake`, and its proxy).

Where layers see windows, the prefill server keeps what its groups hold at the prompt's end; the decode server takes blocks for
what a token behind the prompt can see, and these are what is read: all of a prompt without a window, a window's end of it with
one. A note then counts tokens of single groups. The state of recurrent layers is that before the last token. Read, not
recorded; that the prefill server does not compute that token is left out.

Source: `distributed/kv_transfer/kv_connector/v1/nixl` and `v1/core/sched/scheduler.py` of vLLM 0.33.0, checked step by step
against recordings of both servers (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from engine_models.memory.hybrid_kv import HybridKV
from engine_models.parts.batch import Batch
from engine_models.parts.handover import Note, PullDecode, PullPrefill, ReservingDecode, SendingPrefill
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler

ARRIVED_S = -1.0
"""In `Sequence.loaded_s`: the content is there."""


class _Turning(ContinuousScheduler):
    """A continuous scheduler whose loop turns once more after a request has ended."""

    _ended = False  # requests have ended since the last decision
    _once_more = False

    def schedule(self, now_s: float) -> Batch | None:
        """As of the base."""
        self._once_more, self._ended = self._ended, False
        return super().schedule(now_s)

    def _free(self, seq: Sequence) -> None:
        self._ended = True
        super()._free(seq)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return not self.rules.pipelined

    def queued(self) -> list[Sequence]:
        """Requests that wait and hold nothing, in order."""
        return list(self._queue)


class PrefillOfPull(_Turning, PullPrefill):
    """The prefill server: blocks of ended requests stay until `release`. Parameters as of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.held: dict[Sequence, None] = {}
        self._released: list[Sequence] = []

    def schedule(self, now_s: float) -> Batch | None:
        """As of the base."""
        self.free_released()
        return super().schedule(now_s)

    def turns(self) -> float:
        """As of the base."""
        return INFINITY if self.held else float(self._once_more)

    def _free(self, seq: Sequence) -> None:
        self.held[seq] = None
        self._ended = True

    def release(self, seq: Sequence) -> None:
        """As of the base."""
        self._released.append(seq)
        self.blocked = False

    def free_to_be(self) -> int:
        """Free blocks when those released since the last step are freed too."""
        holders = Counter(block for seq in self._released for block in seq.blocks)
        shared: int = sum(block.holders == many for block, many in holders.items())
        own: int = sum(seq.extra_blocks for seq in self._released)
        free: int = self.kv.free_blocks
        return free + own + shared

    def still_held(self) -> list[Sequence]:
        """Ended requests whose blocks nobody has released."""
        return [seq for seq in self.held if seq not in self._released]

    def free_released(self) -> None:
        """Free the blocks of those released since the last step: what a step is told at once, it takes in order of name."""
        if self._released:
            for seq in sorted(self._released, key=lambda s: s.index):
                del self.held[seq]
                self.kv.release(seq)
            self._released = []


class DecodeOfPull(_Turning, PullDecode):
    """The decode server: reads prompts, computes answers. Parameters as of the base."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loads = True
        self._fences = self._async and self.rules.fences_loads
        self.notes: list[Note] = []
        self._own: set[Sequence] = set()  # whose prompts are computed here
        self._reads: set[Sequence] = set()  # of those that load: whose prompts come from the other server

    def turns(self) -> float:
        """As of the base."""
        return INFINITY if self._loading else float(self._once_more)

    def speaks_s(self, begin_s: float, *, expects: bool) -> float:
        """As of the base: a read begins with one that waits."""
        return begin_s if self._queue or expects else INFINITY

    def compute(self, seq: Sequence) -> None:
        """As of the base."""
        self._own.add(seq)

    def _free(self, seq: Sequence) -> None:
        self._own.discard(seq)
        super()._free(seq)

    def arrived(self, seq: Sequence) -> None:
        """As of the base."""
        seq.loaded_s = ARRIVED_S
        self.blocked = False

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; a read that fails is forgotten too."""
        self._own.discard(seq)
        if seq not in self._reads:
            return super().cancel(seq)
        self._reads.remove(seq)
        del self._loading[seq]
        self.kv.release(seq)
        seq.state = "finished"
        self.blocked = False
        return True

    def loading(self) -> Iterable[Sequence]:
        """Requests that hold blocks and wait, for what is read or for a row."""
        return self._loading

    def _admit(
        self, batch: Batch, served: list[tuple[Sequence, int]], budget: int, cap: int, now_s: float
    ) -> bool:
        blocked = super()._admit(batch, served, budget, cap, now_s)
        return blocked or (bool(self._loading) and len(self.running) >= self.rules.max_num_seqs)

    def _begin_load(self, seq: Sequence, found: Any, hit: int, now_s: float) -> str:
        """Let the queue's head read its prompt, or ask the tiers if it has done so before or computes it; as of the base."""
        if seq.preemptions or seq in self._own:
            return "" if self.tiers is None or self.tiers.in_step else super()._begin_load(seq, found, hit, now_s)
        kv = self.kv
        free = kv.free_blocks - (self._watermark_blocks if self.running else 0)
        grouped = isinstance(kv, HybridKV)
        coming = seq.length - kv.replayed_tokens if isinstance(kv, HybridKV) else seq.length
        if kv.admission_blocks(found, seq.length, whole=not grouped, computed_tokens=coming) + self._owed(self._loading) > free:
            return "full"
        self._queue.take()
        if hit or grouped:
            kv.hold(seq, found, coming)
        tokens = kv.missing(seq, seq.length) * kv.block_tokens if grouped else seq.length - hit
        kv.grow(seq, seq.length)
        seq.computed = hit
        seq.state = "loading"
        seq.loaded_s = INFINITY
        self._loading[seq] = seq.length
        self._reads.add(seq)
        self.notes.append(Note(seq, now_s, tokens))
        return "loading"

    def _end_load(self, seq: Sequence, tokens: int) -> None:
        """As of the base; of what was read there is nothing to note."""
        if seq in self._reads:
            self._reads.remove(seq)
        else:
            super()._end_load(seq, tokens)


class PrefillOfPush(PrefillOfPull, SendingPrefill):
    """The prefill server where it sends: a request is at both servers; its blocks go when it has ended and the other has room.

    It waits for nobody to begin. Parameters as of the base.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes: list[Note] = []
        self._wanted: set[Sequence] = set()

    def reserved(self, seq: Sequence) -> None:
        """As of the base."""
        self._wanted.add(seq)
        if seq in self.held:
            self._send(seq, 0.0)

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; those that the other server waits for are sent."""
        ended = super().settle(batch)
        for seq in ended:
            if seq in self._wanted:
                self._send(seq, batch.t_end)
        return ended

    def _send(self, seq: Sequence, at_s: float) -> None:
        groups = len(self.kv.windows) if isinstance(self.kv, HybridKV) else 1  # of each what the other server wants
        self.notes.append(Note(seq, at_s, groups * _whole_blocks(seq.prompt_tokens, self.kv.block_tokens)))

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        self._wanted.discard(seq)
        return super().cancel(seq)

    def sent(self, seq: Sequence) -> None:
        """As of the base."""
        self._wanted.discard(seq)
        self.release(seq)


class DecodeOfPush(DecodeOfPull, ReservingDecode):
    """The decode server of it: a request has its blocks in its turn, whether its prompt is computed or not.

    Parameters as of the base.
    """

    def _begin_load(self, seq: Sequence, found: Any, hit: int, now_s: float) -> str:
        outcome = super()._begin_load(seq, found, hit, now_s)
        if seq in self._reads and not isinstance(self.kv, HybridKV):
            self.notes[-1] = Note(seq, now_s, _whole_blocks(seq.length - hit, self.kv.block_tokens))
        return outcome


def _whole_blocks(tokens: int, block_tokens: int) -> int:
    """The tokens of the blocks that hold so many."""
    return -(-tokens // block_tokens) * block_tokens


__all__ = ["DecodeOfPull", "DecodeOfPush", "PrefillOfPull", "PrefillOfPush"]
