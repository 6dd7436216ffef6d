"""Prefill and decode in two servers, where the second reserves memory before the first begins: SGLang's disaggregation.

A request is at both servers at once. The decode server gives it memory for its whole prompt in its turn, keeping back some for
what its rows will still generate; only then the prefill server may take it into its waiting queue. Pieces of the prompt are sent
as they are computed, and stay locked at the prefill server until all have arrived. Nothing is computed twice: the first token
comes from the prefill server, and goes out when the row joins the running batch. A row that loses its memory at the decode
server keeps its content in host memory.

Source: `srt/disaggregation/{prefill,decode}.py` of SGLang 0.5.23, checked loop by loop against recordings of both servers'
queues (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from engine_models.memory.radix import RadixPool
from engine_models.parts.adapters import MaskedDecodes
from engine_models.parts.batch import Batch
from engine_models.parts.decode_set import DecodeSet
from engine_models.parts.handover import Note, ReservingDecode, SendingPrefill
from engine_models.parts.protocols import INFINITY, Run, State
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import (
    CLIP_NEW_TOKENS,
    RETRACT_STEPS,
    PrefillFirstBatch,
    PrefillFirstScheduler,
)
from hardware_profiles.records import dataclass

NO_LATER_S = 1e-9
"""By so much a moment that is due may seem not to have come: what rounding adds to a sum of turns [s]."""


class SendingPrefillScheduler(PrefillFirstScheduler, SendingPrefill):
    """The prefill server: parameters as of the base, how many requests may be between reservation and arrival, and how long
    its host is kept by each piece that is sent [s]."""

    def __init__(self, *args: Any, metadata_buffers: int, post_s: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._post_s = post_s
        self._posted_s = 0.0  # until when the host posts
        self.notes: list[Note] = []
        self.bootstrap: dict[Sequence, None] = {}  # arrived, and not yet taken in
        self.inflight: dict[Sequence, None] = {}  # computed, and not yet seen at the other server
        self.loop: dict[str, Any] = {}  # what the latest loop did, where rows are recorded
        self._ready: set[Sequence] = set()  # memory is reserved for them
        self._buffers = metadata_buffers
        self._sent: dict[Sequence, int] = {}
        self._gone: set[Sequence] = set()
        self._rests = False  # the loop has nothing to decide until a peer says something
        self._sends_late = self._overlap  # a piece goes when its results are there, not before the next batch

    def turns(self) -> float:
        """As of the base: the loop never rests."""
        return INFINITY

    def has_work(self) -> bool:
        """As of the base; a request that waits for its reservation is none."""
        return super().has_work() or any(seq in self.bootstrap for seq in self._ready)

    def wake_s(self) -> float:
        """As of the base: a queue is looked through in every loop."""
        return 0.0 if self._waiting else INFINITY

    def add(self, seq: Sequence) -> None:
        """As of the base."""
        seq.state = "waiting"
        self.bootstrap[seq] = None

    def reserved(self, seq: Sequence) -> None:
        """As of the base."""
        self._ready.add(seq)

    def sent(self, seq: Sequence) -> None:
        """As of the base: seen at the end of the loop."""
        self._gone.add(seq)

    def speaks_s(self, begin_s: float, *, expects: bool) -> float:
        """As of the base: what a cache holds of a prompt is sent when that is taken up."""
        waits = self._ready or self._waiting or self._unreceived or self.chunked is not None
        return begin_s if waits else INFINITY

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base: a prompt that is being computed is computed to its end, and then sent nowhere (`sent`)."""
        if seq in self.bootstrap:
            del self.bootstrap[seq]
            self._ready.discard(seq)
        elif seq in self._waiting:
            self._waiting.remove(seq)
            self._buffers += 1
        else:
            return False
        seq.state = "finished"
        return True

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """As of the base."""
        if self._rests and not self._gone and not self._ready:
            return None
        records, kv = self.record_rows, self.kv
        seen, taken = self._see_sent(), list[Sequence]()
        if records:
            self.loop = {"seen": seen, "bootstrap": list(self.bootstrap)}
            self.loop |= {"free_before": kv.free_tokens, "evictable_before": kv.tree.evictable_tokens}
            self.loop |= {name: [] for name in ("sent_chunk", "sent_early", "sent_after")}
        for seq in [seq for seq in self.bootstrap if seq in self._ready] if self._ready else ():
            if not self._buffers:
                break
            self._buffers -= 1
            del self.bootstrap[seq]
            self._ready.remove(seq)
            taken.append(seq)
            self._receive(seq)
        if records:
            self.loop |= {"bootstrapped": taken, "waiting": list(self._waiting)}
        cut = self.chunked if self._last_extend and not self._sends_late else None
        if cut is not None:
            self._send(cut, cut.computed, now_s, "sent_chunk")
        batch = super().schedule(now_s)
        if batch is not None and self._posted_s > now_s:
            batch.posts_s = self._posted_s - now_s
        for seq, before in batch.hits if batch is not None else ():
            self._send(seq, self._early_tokens(seq, before), now_s, "sent_early")
        if records:
            self.loop["free"] = kv.free_tokens
        idle = batch is None and self.chunked is None and not super().has_work()
        self._rests = idle and not records and self.processed_number == self.next_number - 1
        return batch

    def _early_tokens(self, seq: Sequence, known: int) -> int:
        """How many of the tokens of a prompt that need not be computed are sent before its first piece is."""
        return known

    def _see_sent(self) -> list[Sequence]:
        """Free what has arrived at the other server since the last loop; return these requests."""
        gone = [seq for seq in self.inflight if seq in self._gone] if self._gone else []
        for seq in gone:
            del self.inflight[seq]
            self._buffers += 1
            self._release(seq)
        self._gone.clear()
        return gone

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base."""
        self._rests = False
        ended = super().settle(batch)
        latest = self._latest  # launched before the results are seen
        late = self._post_s > 0.0 and batch is not latest and latest.launched_s > batch.t_end
        self._posted_s = latest.launched_s if late else batch.t_end
        if self._sends_late and isinstance(batch, PrefillFirstBatch):
            for seq, computed, complete, _ in batch.extends:
                if not complete:
                    self._send(seq, computed, self._post(), "sent_chunk")
        for seq in ended:
            self._send(seq, seq.prompt_tokens, self._post(), "sent_after")
            self._sent.pop(seq)
        return ended

    @property
    def posts(self) -> bool:
        """As of the base."""
        return self._post_s > 0.0

    def _post(self) -> float:
        """When the host has posted a piece, after what it posts already [s]."""
        self._posted_s += self._post_s
        return self._posted_s

    def _free_slots(self) -> int:
        """As of the base; a prompt on its way to the other server keeps its row."""
        return self.rules.max_running_requests - len(self.inflight)

    def _finish(self, seq: Sequence) -> None:
        """As of the base, but the prompt stays locked."""
        self._checkpoint(seq, seq.prompt_tokens)
        self.inflight[seq] = None
        self.running.pop(seq, None)
        self._decoding.pop(seq, None)
        seq.state = "finished"

    def _send(self, seq: Sequence, to: int, now_s: float, moment: str) -> None:
        """Send a prompt's tokens up to `to` that were not sent before, in a moment of the loop that recordings name.

        Whole pages go; one that is filled in part waits for the next piece, and goes as it is with the last.
        """
        to = self.kv.paged(to) if to == seq.prompt_tokens else to - to % self.kv.page_tokens
        tokens = to - self._sent.get(seq, 0)
        self._sent[seq] = to
        if tokens > 0:
            if self.record_rows:
                self.loop[moment].append((seq, min(to, seq.prompt_tokens) - to + tokens))  # what of it is prompt
            self.notes.append(Note(seq, now_s, tokens))


@dataclass(frozen=True)
class ReservingRules:
    """What a decode server that reserves may do. Names of knobs are SGLang's.

    Attributes
    ----------
    max_running_requests : rows that decode at once.
    pre_alloc_size : rows beyond these that may hold memory.
    metadata_buffers : requests that may be between reservation and arrival.
    num_reserved_decode_tokens : kept back for each request that holds memory.
    polling_interval : reservations and arrivals are looked at in every so manieth loop.
    receive_interval : requests are taken in once in so many decode steps, and in any loop without one.
    max_model_len : context limit in tokens.
    handshake_s : time after the loop that took a request in until it may reserve [s].
    """

    max_running_requests: int
    pre_alloc_size: int
    metadata_buffers: int
    max_model_len: int
    num_reserved_decode_tokens: int = 512
    polling_interval: int = 1
    receive_interval: int = 1
    handshake_s: float = 1e-3


class ReservingDecodeScheduler(ReservingDecode):
    """The decode server, without a cache of prefixes.

    Parameters
    ----------
    rules : the knobs.
    kv : the pool; its tree stays empty.
    aggregate : allow many decode steps to be scheduled as one.
    record_rows : keep the ordered rows of every batch.
    windows : of the model's layers, whose spans a batch names.
    masked : whether a batch names the rows that a grammar constrains.
    """

    def __init__(
        self,
        rules: ReservingRules,
        kv: RadixPool,
        *,
        aggregate: bool = True,
        record_rows: bool = False,
        windows: tuple[int, ...] = (),
        masked: bool = False,
    ) -> None:
        self.rules = rules
        self.aggregate = aggregate
        self._run = Run(0, Batch(-1))
        self._orders = 0
        self._pauses: list[int] = []  # batches of first tokens alone
        self.kv = kv
        self.decodes = self._new_decodes(windows, masked=masked)
        self.notes: list[Note] = []
        self._unreceived: list[Sequence] = []
        self._since_receipt = 0
        self.prealloc: dict[Sequence, float] = {}  # waits for memory; from when it may have it
        self.transfer: dict[Sequence, bool] = {}  # has it; whether all is here
        self.waiting: list[Sequence] = []  # all is here, waits for a row
        self.retracted: list[Sequence] = []
        self.running: dict[Sequence, None] = {}
        self.next_number = 0
        self.loop: dict[str, Any] = {}  # what the latest loop did, where rows are recorded
        self._record_rows = record_rows
        self._ended: list[Sequence] = []  # with the last step; still count as running
        self._polls = 0
        self._now_s, self._polled_s = 0.0, -1.0
        self._news = False  # something has changed that the queues have not been looked at with
        self._most = 0  # tokens that any request so far may come to have

    def _new_decodes(self, windows: tuple[int, ...], *, masked: bool) -> DecodeSet:
        """An empty aggregate of rows."""
        return (MaskedDecodes if masked else DecodeSet)(self.kv.page_tokens, windows)

    # -- the outside ----------------------------------------------------------------------------------------

    def turns(self) -> float:
        """As of the base: the loop never rests."""
        return INFINITY

    def wake_s(self) -> float:
        """As of the base: when the next request may reserve; at once where the next loops may decide otherwise."""
        if self._news or self._unreceived:
            return 0.0
        return min((ready_s for ready_s in self.prealloc.values() if ready_s > self._now_s), default=INFINITY)

    def add(self, seq: Sequence) -> None:
        """As of the base."""
        seq.state, seq.group_state = "waiting", self._most_of(seq)
        self._most = max(self._most, seq.group_state)
        self._unreceived.append(seq)
        self._news = True

    def has_work(self) -> bool:
        """As of the base."""
        return bool(self._unreceived or self.prealloc or self.transfer or self.waiting or self.retracted or self.running)

    def state(self) -> State:
        """As of the base: tokens."""
        waiting = len(self._unreceived) + len(self.prealloc) + len(self.transfer) + len(self.waiting) + len(self.retracted)
        total = self.kv.capacity_blocks
        return len(self.running), waiting, total - self.kv.free_blocks, total

    def close(self) -> None:
        """As of the base."""
        for seq in list(self.running):
            if seq.state == "decoding":
                self._leave(seq, self.next_number - 1)

    def arrived(self, seq: Sequence) -> None:
        """As of the base."""
        self.transfer[seq] = self._news = True

    def speaks_s(self, begin_s: float, *, expects: bool) -> float:
        """As of the base: memory is given to one whose handshake is over."""
        ready_s = min(self.prealloc.values(), default=INFINITY) - NO_LATER_S
        if expects or self._unreceived:
            ready_s = min(ready_s, begin_s + self.rules.handshake_s - NO_LATER_S)
        return max(ready_s, begin_s)

    @property
    def cancels(self) -> bool:
        """As of the base."""
        return True

    def cancel(self, seq: Sequence) -> bool:
        """As of the base."""
        if seq in self.running:
            if seq.state != "decoding":  # its last token is in flight
                return False
            self._leave(seq, self.next_number - 1)
            del self.running[seq]
            self._hand_over(seq)
        elif seq in self.prealloc:
            del self.prealloc[seq]
        elif seq in self._unreceived:
            self._unreceived.remove(seq)
        elif seq in self.retracted:
            self.retracted.remove(seq)
        else:
            if self.transfer.pop(seq, None) is None:
                self.waiting.remove(seq)
            self._drop(seq, self.kv.paged(seq.prompt_tokens if seq.first_scheduled_s < 0 else seq.length - 1))
        seq.state = "finished"
        self._news = True
        return True

    def turned(self, turns: int) -> None:
        """As of the base."""
        if not self.retracted:
            self._polls = (self._polls + turns) % self.rules.polling_interval

    # -- the loop -------------------------------------------------------------------------------------------

    def schedule(self, now_s: float) -> Batch | None:
        """One loop: resume, reserve, take what has arrived, let rows join, decode."""
        kv, rules = self.kv, self.rules
        self._now_s = now_s
        self._since_receipt = (self._since_receipt + 1) % rules.receive_interval if self.running else 0
        if not self._since_receipt and self._unreceived:
            self.prealloc.update(dict.fromkeys(self._unreceived, now_s + rules.handshake_s))
            self._unreceived = []
        records = self._record_rows
        if records:
            self.loop = {"prealloc": list(self.prealloc), "free_before": kv.free_tokens}
        admitted, transferred = list[Sequence](), list[Sequence]()
        resumed = self._resume() if self.retracted else []
        self.waiting += resumed
        if not self.retracted:
            self._polls = (self._polls + 1) % rules.polling_interval
            if not self._polls:
                self._news, self._polled_s = self._ends_tell(), now_s  # those ended count for the last time
                admitted = self._reserve(now_s)
                transferred = self._take_arrived()
        self._news |= any(self._polled_s < ready_s <= now_s for ready_s in self.prealloc.values())
        free_tokens = kv.free_tokens
        places = rules.max_running_requests - len(self.running) - len(self._ended)
        joined, self.waiting = self.waiting[: max(0, places)], self.waiting[max(0, places) :]
        self._ended = []
        if joined:
            self._join(joined, now_s)
        batch = self._decode()
        if records:
            queues = {"resumed": resumed, "admitted": admitted, "transferred": transferred, "prebuilt": joined}
            queues["retracted"] = list(batch.preempted) if batch is not None else []
            self.loop |= {**queues, "free_after_queues": free_tokens, "free": kv.free_tokens}
        return batch

    def _held(self) -> int:
        """Requests for whose answers tokens are kept back: those that ended with the last step still count."""
        return len(self.running) + len(self._ended) + len(self.transfer) + len(self.waiting)

    def _rows_left(self) -> int:
        rows = self.rules.max_running_requests + self.rules.pre_alloc_size
        return rows - len(self.running) - len(self.transfer) - len(self.waiting)

    def _resume(self) -> list[Sequence]:
        """Give retracted rows their memory again, the first first."""
        kv, keep = self.kv, self.rules.num_reserved_decode_tokens
        resumed: list[Sequence] = []
        while self.retracted:
            seq = self.retracted[0]
            tokens = kv.paged(seq.length - 1)
            left = self._free_tokens() - keep * (self._held() + len(resumed))
            if self._rows_left() - len(resumed) <= 0 or tokens + keep > left:
                break
            self._take(tokens)
            resumed.append(self.retracted.pop(0))
        return resumed

    def _reserve(self, now_s: float) -> list[Sequence]:
        """Give waiting requests memory for their prompts, until the first that does not fit."""
        kv, rules = self.kv, self.rules
        keep, admitted = rules.num_reserved_decode_tokens, list[Sequence]()
        if not any(ready_s <= now_s + NO_LATER_S for ready_s in self.prealloc.values()):
            return admitted
        retractable = self._running_tokens() + sum(seq.length for seq in self._ended)
        longest, buffers = 0, rules.metadata_buffers - len(self.transfer)
        if self._most - retractable > keep * self._held():  # else what is kept back is more in any case
            longest = max([seq.group_state for seq in (*self.running, *self._ended)], default=retractable) - retractable
        for seq, ready_s in list(self.prealloc.items()):
            if now_s < ready_s - NO_LATER_S:
                continue
            if self._rows_left() <= 0 or buffers - len(admitted) <= 0:
                break
            if self._passes_over(seq):
                continue
            known = self._find(seq)
            left = self._free_tokens() - max(keep * self._held(), longest)
            tokens = kv.paged(seq.prompt_tokens) - known
            if max(tokens + keep, seq.group_state - retractable - known) > left:
                self._drop(seq, known)
                break
            self._take(tokens)
            del self.prealloc[seq]
            self.transfer[seq] = False
            self.notes.append(Note(seq, now_s, tokens, known))
            admitted.append(seq)
        return admitted

    def _passes_over(self, seq: Sequence) -> bool:
        """Whether a request gets no memory now, though there may be some, and others behind it do."""
        return False

    def _most_of(self, seq: Sequence) -> int:
        """Tokens that a request may come to have, as far as admission looks; then in `group_state`."""
        limit = seq.final_length - seq.prompt_tokens
        if not seq.stop_known:
            limit = self.rules.max_model_len - 1 - seq.prompt_tokens
        if seq.limit_tokens:
            limit = min(limit, seq.limit_tokens)
        kv = self.kv
        limit = min(limit, kv.capacity_tokens - kv.paged(seq.prompt_tokens) - kv.page_tokens - 1)
        seq.final_length = min(seq.final_length, seq.prompt_tokens + max(1, limit))
        return seq.prompt_tokens + min(limit, CLIP_NEW_TOKENS)

    def _take_arrived(self) -> list[Sequence]:
        taken = [seq for seq, here in self.transfer.items() if here]
        for seq in taken:
            del self.transfer[seq]
        self.waiting += taken
        return taken

    def _join(self, joined: list[Sequence], now_s: float) -> None:
        """Requests join the running rows; first tokens, which came with them, go out, as a batch of no length."""
        fresh = [seq for seq in joined if seq.first_scheduled_s < 0]
        ended = []
        for seq in fresh:
            seq.first_scheduled_s = now_s
            seq.length += 1
            seq.emit(self.next_number, self.next_number)
        if fresh:
            self._pauses.append(self.next_number)
            self.next_number += 1
        for seq in joined:
            if seq.length >= seq.final_length:
                self._hand_over_ended(seq)
                seq.state = "finished"
                ended.append(seq)
                self._news = True  # there is room for the next loop to give away
            else:
                self._hold(seq)
                self.running[seq] = None
                seq.order = self._orders
                self._orders += 1
                self._join_rows(seq)
        if fresh and self.at_once is not None:
            self.at_once(now_s, len(fresh), ended)

    def _decode(self) -> Batch | None:
        """One token for every running row, after those have lost their memory for which there is no room."""
        decodes = self.decodes
        if not self.running:
            return None
        batch = Batch(self.next_number)
        if self._free_tokens() < self._needed_tokens(self.running):
            self._retract(batch)
        decodes.serve(batch)
        if self._record_rows:
            batch.rows = [(seq, 1, decodes.length(seq) - 1) for seq in self.running]
        self._make_room(decodes.count * self.kv.page_tokens)  # the allocator makes room for a new page a row
        self._take(self._needed_tokens(self.running))
        decodes.steps += 1
        self.next_number += 1
        self._end_rows(batch)
        return batch

    def _end_rows(self, batch: Batch) -> None:
        """Rows whose last token a batch yields leave the aggregate."""
        ended = set(self.decodes.pop_ended())
        if ended:
            batch.finishing = [seq for seq in self.running if seq in ended]
            for seq in batch.finishing:
                self._leave(seq, batch.number)

    def _join_rows(self, seq: Sequence) -> None:
        """Let a row decode from the next step on."""
        seq.emit(self.next_number, self.next_number - 1)
        self.decodes.join(seq)

    def _running_tokens(self) -> int:
        """Tokens of the rows that decode, as far as they are known."""
        return self.decodes.kv_tokens()

    def _held_tokens(self, seq: Sequence) -> int:
        """Tokens of memory, in whole pages, that a row holds which decodes no longer."""
        return self.kv.paged(seq.length - 1)

    def _row_length(self, seq: Sequence) -> int:
        """Tokens of a row that decodes."""
        return self.decodes.length(seq)

    def _needed_tokens(self, rows: Iterable[Sequence]) -> int:
        """Tokens of memory, in whole pages, that a step of these rows takes."""
        return self.decodes.blocks_needed() * self.kv.page_tokens

    def _leave(self, seq: Sequence, last: int) -> None:
        """Take a row out of the aggregate, and note the batches up to `last` in which it emitted."""
        self.decodes.leave(seq)
        seq.emit_between(last, self._pauses)

    def _retract(self, batch: Batch) -> None:
        """Take the memory of rows: fewest generated tokens first, then longest prompts, until a step fits."""
        length = self._row_length
        rows = sorted(self.running, key=lambda seq: (length(seq) - seq.prompt_tokens, -seq.prompt_tokens), reverse=True)
        self._make_room(self._needed_tokens(rows))
        while len(rows) > 1:
            victim = rows.pop()
            self._leave(victim, self.next_number - 1)
            self._drop(victim, self._held_tokens(victim))
            victim.state = "preempted"
            victim.preemptions += 1
            batch.preempted += (victim,)
            self._make_room(len(rows) * RETRACT_STEPS)
            if self._free_tokens() >= self._needed_tokens(rows):
                break
        self.running = dict.fromkeys(rows)
        self.retracted += batch.preempted

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base."""
        self.processed_number = batch.number
        for seq in batch.finishing:
            del self.running[seq]
            self._hand_over(seq)
            seq.state = "finished"
        self._ended = list(batch.finishing)
        self._news = self._news or self._ends_tell()
        return batch.finishing

    def _ends_tell(self) -> bool:
        """Whether rows have ended whose room the next loops may give away, or after which the server has nothing to compute."""
        return bool(self._ended) and bool(self.prealloc or self.waiting or self.retracted or not self.running)

    # -- memory ---------------------------------------------------------------------------------------------

    def _free_tokens(self) -> int:
        """Tokens that may be taken."""
        return self.kv.free_tokens

    def _take(self, tokens: int) -> None:
        """Take so many tokens, which are there."""
        self.kv.free_tokens -= tokens

    def _make_room(self, tokens: int) -> None:
        """Evict what nobody holds until so many tokens are free: nothing, without a tree."""

    def _find(self, seq: Sequence) -> int:
        """How many tokens of a prompt are here already; they are held from now on."""
        return 0

    def _hold(self, seq: Sequence) -> None:
        """All that a row begins with is here."""

    def _drop(self, seq: Sequence, held_tokens: int) -> None:
        """Give up what a request holds: so many tokens with those found here."""
        self.kv.free_tokens += held_tokens

    def _hand_over(self, seq: Sequence) -> None:
        """A row has ended."""
        self.kv.free_tokens += self._held_tokens(seq)

    def _hand_over_ended(self, seq: Sequence) -> None:
        """A request has ended with its first token, and was no row."""
        self.kv.free_tokens += self.kv.paged(seq.length - 1)

    # -- jumping --------------------------------------------------------------------------------------------

    def run(self) -> Run | None:
        """Steps of the running rows while nobody may have memory, nothing has arrived, and none has lost its memory."""
        ready_s = min(self.prealloc.values(), default=INFINITY) - NO_LATER_S
        if (
            self._record_rows
            or not self.aggregate
            or not self.running
            or ready_s <= self._now_s
            or self._unreceived
            or self.retracted
            or self._news
            or (self.waiting and len(self.running) < self.rules.max_running_requests)
        ):
            return None
        steps = self.decodes.steps_within(self.decodes.steps_alike(), self._free_tokens() // self.kv.page_tokens)
        if steps < 2:
            return None
        run = self._run
        self.decodes.serve(run.shape)
        run.steps, run.until_s = steps, ready_s
        return run

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """As of the base."""
        kv, decodes = self.kv, self.decodes
        self._ended = []
        held = kv.capacity_blocks - kv.free_blocks
        need, summed = decodes.taken_over(steps)
        before_last = need - decodes.phases[(decodes.steps + steps - 1) % decodes.block_tokens]
        self._make_room((before_last + decodes.count) * kv.page_tokens)
        self._take(need * kv.page_tokens)
        decodes.steps += steps
        self.turned(steps)
        self._since_receipt = (self._since_receipt + steps) % self.rules.receive_interval
        self.next_number += steps
        batch = Batch(self.next_number - 1)
        self.processed_number = batch.number - 1
        batch.decode_rows = batch.tokens = batch.decode_tokens = decodes.count
        batch.decode_kv_tokens = decodes.kv_tokens() - decodes.count
        self._end_rows(batch)
        return batch, held * steps + summed, held + need


__all__ = ["ReservingDecodeScheduler", "ReservingRules", "SendingPrefillScheduler"]
