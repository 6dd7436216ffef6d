"""What a continuous-batching scheduler may do, and what it forms: the rules and the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.typing import NDArray

from engine_models.parts.sequence import Sequence


@dataclass(frozen=True)
class ContinuousRules:
    """What a continuous-batching scheduler may do. Names of knobs are vLLM's; switches name a behaviour.

    Attributes
    ----------
    max_num_batched_tokens : token budget of a step.
    max_num_seqs : rows that may run at once.
    max_model_len : context limit in tokens.
    in_flight : batches scheduled ahead (1 synchronous, 2 async scheduling, pipeline stages).
    policy : "fcfs" or "priority".
    chunked_prefill : whether a prompt may be computed in several steps.
    long_prefill_token_threshold : most tokens of one request in a step, 0 for no cap.
    lone_request_ignores_threshold : the cap does not bind when only one request is there (0.33).
    reserve_full_prompt : admission needs blocks for the whole known sequence (from 0.19).
    watermark : fraction of blocks kept free at admission while something runs (from 0.24).
    self_preemption_continues : under priority a row that preempts itself does not stop the loop, and the
        place of one that is lost before it was served is no longer the next one's (0.33).
    preempted_tokens_return : the budget gets back the tokens of a victim already scheduled (from 0.14).
    unfit_prompt_is_skipped : without chunking, a prompt over the budget lets the next one try (0.11).
    wasted_row_after_limit : async mode schedules one row more even where the end is certain (0.11).
    pipelined : `in_flight` are the stages of a pipeline: a row is in one batch at a time.
    speculative_tokens : drafts proposed after every step of a row that emits (0: no speculative decoding).
    lookahead_tokens : slots reserved beyond a row's tokens, for drafters that keep a KV cache of their own.
    first_admission_lookahead : those slots are reserved at admission too (from 0.24).
    pads_lone_token : a request admitted for one token brings a full set of drafts (0.33).
    fences_loads : where blocks are loaded, those that a step in flight may write go to nobody before its end (0.33).
    aligned_tokens : a piece of a prompt ends where states of recurrent layers can be kept, at multiples of so many tokens, and
        behind the last of these goes on in a step of its own (0: states are not kept).
    checkpoints : it need not, as the step that ends a prompt leaves the state before its end too.
    unreadable_is_skipped : a waiting prompt whose next image has no room lets the next one try (0.33).
    adapters_of_all_running : adapters of all running rows count against the limit, not only those of a step's rows (0.33).
    """

    max_num_batched_tokens: int
    max_num_seqs: int
    max_model_len: int
    in_flight: int = 1
    policy: str = "fcfs"
    chunked_prefill: bool = True
    long_prefill_token_threshold: int = 0
    lone_request_ignores_threshold: bool = True
    reserve_full_prompt: bool = True
    watermark: float = 0.0
    self_preemption_continues: bool = True
    preempted_tokens_return: bool = True
    unfit_prompt_is_skipped: bool = False
    wasted_row_after_limit: bool = False
    pipelined: bool = False
    speculative_tokens: int = 0
    lookahead_tokens: int = 0
    first_admission_lookahead: bool = True
    pads_lone_token: bool = True
    fences_loads: bool = True
    aligned_tokens: int = 0
    checkpoints: bool = False
    unreadable_is_skipped: bool = True
    adapters_of_all_running: bool = True


class Span(NamedTuple):
    """What the decode rows of a step attend to in layers of one window.

    tokens : sum over the rows of min(KV tokens, window_tokens). grows : the rows below the window, so many tokens more are
    attended to in the next step of the same rows.
    """

    window_tokens: int
    tokens: int
    grows: int


class AdapterUse(NamedTuple):
    """What a batch does with adapters.

    adapters, tokens : how many it reads, for how many of its tokens. copied, read : how many are copied to the device before it,
    and how many of these are read from the host's disk.
    """

    adapters: int
    tokens: int
    copied: int = 0
    read: int = 0


@mypyc_attr(allow_interpreted_subclasses=True)
class Batch:
    """One scheduled step (or, after a jump, the last of several equal ones): who is served, and the shape that is priced.

    `decode_tokens` counts the tokens of the decode rows, one a row and its drafts; `decode_kv_tokens` sums, over
    these rows, the tokens attended to; `prefill` lists (new, prior) tokens. `finishing` are the rows whose last token this
    batch yields, in batch order; with drafts in play it is known only once the batch has been processed.
    `itemised` lists rows served one by one until processed: (row, tokens, drafts, preemptions so far), drafts -1
    where the row emits nothing.
    `spans` are those of the windows that the scheduler knows of, by rising window. `padded_tokens` are the tokens after padding,
    of engines that compute padding (0: none do). `gathers` says that the KV cache of its rows is copied first. `launchers` are
    the processes that launch steps for the device side by side. `pool_cells` are the cells that each decode row reads where
    attention runs over a whole pool of them (0: its own KV). `stall_s` prolongs the step, for copies of KV blocks that it waits
    for; beside it others go on for `streams_s`, which it cannot be shorter than. Where the host first has to post what came
    before, which takes `posts_s`, it has launched the step at `launched_s`. See `grows` for what one more step adds; in
    the shape of a run whose rows grow unevenly `kv_by_step` has `decode_kv_tokens` of all its steps instead. `adapters`
    says what it does with adapters, None if it reads none. `masked_rows` yield tokens that a grammar constrains. `encodes`
    are the tokens of each image that a vision tower encodes before the step.
    """

    __slots__ = (
        "adapters",
        "decode_kv_tokens",
        "decode_rows",
        "decode_tokens",
        "encodes",
        "finishing",
        "free_blocks",
        "gathers",
        "hits",
        "itemised",
        "kv_by_step",
        "launched_s",
        "launchers",
        "masked_rows",
        "number",
        "padded_tokens",
        "pool_cells",
        "posts_s",
        "preempted",
        "prefill",
        "rows",
        "spans",
        "stall_s",
        "streams_s",
        "t_end",
        "t_sched",
        "t_start",
        "tokens",
    )

    def __init__(
        self,
        number: int,
        decode_rows: int = 0,
        decode_tokens: int = 0,
        decode_kv_tokens: int = 0,
        prefill: list[tuple[int, int]] | None = None,
        tokens: int = 0,
    ) -> None:
        self.number = number
        self.decode_rows = decode_rows
        self.decode_tokens = decode_tokens
        self.decode_kv_tokens = decode_kv_tokens
        self.prefill: list[tuple[int, int]] = [] if prefill is None else prefill
        self.finishing: list[Sequence] = []
        self.itemised: tuple[tuple[Sequence, int, int, int], ...] = ()
        self.rows: list[tuple[Sequence, int, int]] | None = None
        self.hits: tuple[tuple[Sequence, int], ...] = ()  # a tuple that is empty costs nothing
        self.preempted: tuple[Sequence, ...] = ()
        self.tokens = tokens
        self.free_blocks = 0
        self.t_sched = self.t_start = self.t_end = 0.0
        self.spans: tuple[Span, ...] = ()
        self.padded_tokens = self.pool_cells = 0
        self.gathers = False
        self.launchers = 1
        self.adapters: AdapterUse | None = None
        self.masked_rows = 0
        self.encodes: tuple[int, ...] = ()
        self.stall_s = self.streams_s = self.posts_s = self.launched_s = 0.0
        self.kv_by_step: NDArray[np.int64] | None = None

    @property
    def grows(self) -> int:
        """KV tokens that the next step of the same rows attends to besides: one a row, unless all read a whole pool."""
        return 0 if self.pool_cells else self.decode_rows

    def serve(self, tokens: int, prior: int, *, decodes: bool) -> None:
        """Count a row that is served `tokens` tokens after `prior` others, as a decode or a prefill row."""
        self.tokens += tokens
        if decodes:
            self.decode_rows += 1
            self.decode_tokens += tokens
            self.decode_kv_tokens += prior + tokens
            if self.spans:
                self.attend(prior + tokens)
        else:
            self.prefill.append((tokens, prior))

    def as_decodes(self) -> Batch:
        """The shape that is priced where its prefill rows, of one new token each, run as rows that decode."""
        lone = len(self.prefill)
        attended = self.decode_kv_tokens + sum([new + prior for new, prior in self.prefill])
        shape = Batch(self.number, self.decode_rows + lone, self.decode_tokens + lone, attended, tokens=self.tokens)
        shape.padded_tokens, shape.gathers, shape.launchers, shape.spans = (
            self.padded_tokens, self.gathers, self.launchers, self.spans
        )
        for new, prior in self.prefill if self.spans else ():
            shape.attend(new + prior)
        return shape

    def order_finishing(self) -> None:
        """Bring `finishing` into the order of admission."""
        if len(self.finishing) > 1:
            self.finishing.sort(key=lambda seq: seq.order)

    def attend(self, kv_tokens: int) -> None:
        """Count what one more decode row of so many tokens attends to in windows."""
        self.spans = tuple(
            [Span(w, n + (kv_tokens if kv_tokens < w else w), up + (kv_tokens < w)) for w, n, up in self.spans]
        )


@mypyc_attr(allow_interpreted_subclasses=True)
class PartedBatch(Batch):
    """A step that the device computes in `parts` one after the other, each of which reads the weights and has its own shape.

    `copied_tokens` are those whose states are copied between device and host before it. With drafts, `passes` are those of the
    drafter before it, each as parts, and `tokens_beyond` what its decode rows yield besides one a row.
    """

    __slots__ = ("copied_tokens", "parts", "passes", "tokens_beyond")

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.parts: list[Batch] = []
        self.passes: list[list[Batch]] = []
        self.copied_tokens = self.tokens_beyond = 0
