"""One request as a scheduler sees it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable
from typing import Any


class Sequence:
    """A request inside one replica: its token counts, its place in the queues, the KV blocks it holds.

    `length` counts the tokens that exist or are certain to exist (prompt, generated, and outputs in flight);
    `computed` counts the tokens whose keys and values exist or are scheduled. A row that only decodes is kept
    in the scheduler's `DecodeSet`; while it is there its `length` and `computed` follow from the set's counter and
    `offset`, and the two fields here are stale.

    The true output length is `final_length - prompt_tokens`; the scheduler may read it only to know that a row
    has ended, never to decide what to admit. `stop_known` says whether the end is certain beforehand
    (the client's limit or the context), as an end by EOS is not; `limit_tokens` is the client's limit, 0 for none.
    `adapter` is the number of the LoRA adapter that it names, 0 for none; `masked` says whether a grammar constrains its answer.
    `images` are the places of its images in the prompt, first token and end, in order.

    With speculative decoding a row carries `drafts` proposed tokens; a step may verify them, and `acceptance` says how
    many of them the model accepts at the row's n-th verification (counted from 0), a cap that the drafts
    actually scheduled bound from above. `pending` counts the outputs in flight that `length` already includes,
    drafts among them; `in_flight_tokens` the tokens scheduled and not yet processed.
    """

    __slots__ = (
        "acceptance",
        "adapter",
        "arrival_s",
        "blocks",
        "computed",
        "drafts",
        "emissions",
        "extra_blocks",
        "final_length",
        "first_hit_tokens",
        "first_scheduled_s",
        "group_state",
        "hashed_blocks",
        "host_blocks",
        "host_run",
        "images",
        "in_flight_tokens",
        "index",
        "junction_tokens",
        "keys",
        "length",
        "limit_tokens",
        "loaded_s",
        "masked",
        "offset",
        "order",
        "output_shared",
        "pending",
        "preemptions",
        "priority",
        "prompt_tokens",
        "ready_batch",
        "runs",
        "shareable_tokens",
        "state",
        "stop_known",
        "verifications",
    )

    def __init__(
        self,
        index: int,
        prompt_tokens: int,
        output_tokens: int,
        arrival_s: float,
        *,
        priority: int = 0,
        stop_known: bool = True,
        limit_tokens: int = 0,
        runs: tuple[tuple[int, int, int], ...] = (),
        shareable_tokens: int = 0,
        output_shared: bool = False,
        acceptance: Callable[[int], int] | None = None,
        adapter: int = 0,
        masked: bool = False,
    ) -> None:
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.final_length = prompt_tokens + output_tokens
        self.arrival_s = arrival_s
        self.priority = priority
        self.stop_known = stop_known
        self.limit_tokens = limit_tokens
        self.length = prompt_tokens
        self.computed = 0
        self.offset = 0
        self.order = -1
        self.state = "waiting"  # waiting, running, decoding (in the decode set), ending, finished
        self.ready_batch = -1  # not schedulable before this batch has been processed
        self.preemptions = 0
        self.first_scheduled_s = -1.0
        self.first_hit_tokens = 0
        # content: merged runs (segment, offset, length) of the part that others may share; with
        # `output_shared` they cover the whole prompt and the output too
        self.runs = runs
        self.shareable_tokens = shareable_tokens  # of the prompt, among `runs`
        self.keys: list[int] | None = None
        self.output_shared = output_shared
        # blocks held: keyed ones in order, then a count of the rest
        self.blocks: list[Any] = []
        self.extra_blocks = 0
        self.hashed_blocks = 0
        self.group_state: Any = None  # what a cache of several groups, or a scheduler, keeps of the row
        # emitted tokens as inclusive ranges of the replica's batch numbers, the first and the last of each in turn; a
        # batch that emits several tokens is named by as many ranges
        self.emissions: list[int] = []
        self.acceptance = acceptance
        self.adapter = adapter
        self.masked = masked
        self.images: tuple[tuple[int, int], ...] = ()
        self.verifications = 0
        self.drafts = 0
        self.pending = 0
        self.in_flight_tokens = 0
        self.host_blocks = 0  # copied to the host tier so far
        self.host_run: Any = None
        self.loaded_s = 0.0
        self.junction_tokens = 0  # where a shared prefix was seen to end

    def image_tokens(self) -> int:
        """Tokens of the prompt that stand for images."""
        return sum([end - first for first, end in self.images])

    def emit(self, first: int, last: int) -> None:
        """Note that each batch from `first` to `last` yields a token; the range is open while `last` is `first` - 1."""
        steps = self.emissions
        if steps and steps[-1] == first - 1:
            steps[-1] = last
        else:
            steps += (first, last)

    def emit_at_once(self, number: int, tokens: int) -> None:
        """Note that a batch yields so many tokens: several are a range each, none for what was in vain."""
        if tokens == 1:
            self.emit(number, number)
        else:
            self.emissions += [number, number] * tokens

    def emit_between(self, last: int, pauses: list[int]) -> None:
        """Note that each batch after the latest range up to `last` yields a token, but those of `pauses`, which rise."""
        steps = self.emissions
        first = begin = steps[-1] + 1
        at = bisect_left(pauses, first)
        for end in (*pauses[at : bisect_right(pauses, last, at)], last + 1):
            if begin < end:
                if begin == first:  # the latest range goes on
                    steps[-1] = end - 1
                else:
                    steps += (begin, end - 1)
            begin = end + 1

    def end_emissions(self, last: int) -> None:
        """Let the latest range end at batch `last`; it goes if nothing is left of it."""
        steps = self.emissions
        steps[-1] = last
        if steps[-2] > last:
            del steps[-2:]

    def ranges(self) -> list[tuple[int, int]]:
        """First and last batch of each range."""
        return list(zip(self.emissions[::2], self.emissions[1::2], strict=True))

    def emitted_tokens(self) -> int:
        """Tokens in all ranges."""
        return sum(self.emissions[1::2]) - sum(self.emissions[::2]) + len(self.emissions) // 2

    def __repr__(self) -> str:
        return (
            f"Sequence({self.index}, {self.state}, {self.computed}/{self.length} of {self.final_length}, "
            f"{len(self.blocks)}+{self.extra_blocks} blocks)"
        )
