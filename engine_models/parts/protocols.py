"""What the executor asks of a scheduler and of a step's cost: base classes of abstract methods with their conditions.

They are base classes, not `typing.Protocol`, so that a compiler of typed Python can dispatch their methods directly and an
interpreted plug-in may still subclass them. None is an `abc.ABC`: compiled classes share what that remembers of `isinstance`, so
that what was found of one would be answered for another. Type checkers ask for the abstract methods all the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence as Series

import numpy as np
from mypy_extensions import mypyc_attr
from numpy.typing import NDArray

from engine_models.parts.batch import Batch
from engine_models.parts.block_names import BlockEvents, ChainKeys
from engine_models.parts.kept import Kept
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount, TierKind

FloatArray = NDArray[np.float64]
INFINITY = float("inf")


class Run:
    """A proven repetition: the next `steps` steps serve the same rows, admit nobody, end nobody before the last, and find memory.

    `shape` is the first of these steps as a batch without rows (its number is not used). The proof holds for steps that are
    formed before `until_s`. An arrival ends it, unless the run is `deaf`: then arrivals change nothing in it. A scheduler may
    return the same object each time: what it says is read before the next call.

    `vain` says that the rows that end with the last step are perhaps served once more, in vain, by the step after it, which then
    serves the same rows: `take_vain` decides.

    In a pipeline batches take turns: `turns` are the shapes of the steps after the first, until its rows are served again. Such a
    run is taken by `take_turns`; somebody may end with any step of the last turn, none of which waits for the results of another.
    """

    __slots__ = ("deaf", "shape", "steps", "turns", "until_s", "vain")

    def __init__(self, steps: int, shape: Batch, until_s: float = INFINITY, *, deaf: bool = False) -> None:
        self.steps = steps
        self.shape = shape
        self.turns: tuple[Batch, ...] = ()
        self.until_s = until_s
        self.deaf = deaf
        self.vain = False


State = tuple[int, int, int, int]
"""What others may read of a scheduler: requests running and waiting, KV units (blocks or pages) held and there at all."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Gate:
    """What the ranks of a replica agree on before they form a step together."""

    @abstractmethod
    def agree(self, schedulers: Series[Scheduler]) -> None:
        """Tell the schedulers of all ranks, each of which then forms its batch or has none."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler:
    """Waiting and running requests of one rank, their memory, and the rule that forms the next batch.

    Batches are numbered from 0 without gaps, in the order in which they are formed; the executor settles them in that order.
    Counters that an engine does not have stay 0.
    """

    #: Number of the next batch.
    next_number: int = 0
    #: Number of the latest batch whose results are known, -1 before the first.
    processed_number: int = -1
    hit_tokens: int = 0
    queried_tokens: int = 0
    host_hit_tokens: int = 0
    verifications: int = 0
    verified_drafts: int = 0
    accepted_drafts: int = 0

    def note_verified(self, seq: Sequence, gains: Series[tuple[int, int]], drafts: int) -> None:
        """Note what verifications of so many drafts each gave a row: numbers of batches, and tokens, none for one in vain."""
        for number, gain in gains:
            seq.emit_at_once(number, gain)
            if gain:
                self.verifications += 1
                self.verified_drafts += drafts
                self.accepted_drafts += gain - 1

    @property
    def reserves_answers(self) -> bool:
        """Whether memory for the whole answer is set aside at admission: the client's limit or, without one, the context left."""
        return False

    def stuck(self) -> str | None:
        """Why nothing that it holds can ever run, in words for people, where the engine itself would stop so."""
        return None

    @property
    def hears_in_step(self) -> bool:
        """Whether a request that arrives while a step runs is to be handed over before that step's results, for it looks at once
        for what the memory holds of its prompt.
        """
        return False

    @property
    def posts(self) -> bool:
        """Whether the host does work for results before it launches the next step (`Batch.posts_s`)."""
        return False

    @abstractmethod
    def add(self, seq: Sequence) -> None:
        """Take in a request that has arrived.

        Before: `seq` is nowhere else; calls come in order of arrival. After: it waits, and `has_work` holds.
        """

    @abstractmethod
    def has_work(self) -> bool:
        """Whether any request waits, runs or is being ended here."""

    @abstractmethod
    def schedule(self, now_s: float) -> Batch | None:
        """Form the next batch at `now_s`, which never falls.

        None: nothing can run now. A batch without tokens: rows only lost their memory, and it takes no number; the executor
        asks again at once; rows in its `finishing` have ended without an answer, in the state "dropped" (for want of memory),
        "expired" (they have waited too long) or "shed" (the queue was full). Else `next_number` has risen by one, and the rows
        whose last token the batch may yield stand in `finishing` if that is certain.
        """

    @abstractmethod
    def settle(self, batch: Batch) -> list[Sequence]:
        """Take in the results of a batch; return the requests that ended with it, their memory freed, in batch order.

        Before: all earlier batches are settled. After: `processed_number` is this batch's number.
        """

    @abstractmethod
    def state(self) -> State:
        """Counts of now, after the latest `schedule`, `take` or `settle`."""

    @abstractmethod
    def close(self) -> None:
        """End the bookkeeping of a run: each request's `emissions` name all tokens it has got in batches formed so far."""

    def run(self) -> Run | None:
        """Proven repetition from here on; None to form the next step by `schedule`.

        The default of every scheduler: exact, merely slower.
        """
        return None

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """Commit `steps` steps (at least one) of the `run` just proven, which may be taken in several parts.

        Return the last of them, the sum over the steps of the KV units then held, and the most of them. The state is as after so
        many times `schedule`, and `settle` of all but the last: of the batch in flight before it too, which the executor drops.
        """
        raise NotImplementedError("a scheduler that proves runs takes their steps")

    def take_vain(self, after: Batch) -> tuple[Batch, int] | None:
        """Form the step after `after`, the last of a `vain` run just taken; None if it does not serve the same rows.

        Nothing has arrived since, and no result was seen. Return it and the KV units then held.
        """
        return None

    def take_turns(self, steps: int, flying: deque[Batch]) -> list[int]:
        """Commit `steps` steps (at least one) of the `run` just proven, in which batches take turns.

        `flying` are the batches in flight, as many as the run has `turns`: each step but the first settles the one that is there
        longest, and joins them. Batches that would come and go meanwhile need not be made. Return the KV units held when each
        step is formed, shape (steps,). The default takes one step after the other.
        """
        held: list[int] = []
        for number in range(steps):
            if number:
                self.settle(flying.popleft())
            batch, kv_units, _ = self.take(1)
            flying.append(batch)
            held.append(kv_units)
        return held

    def wake_s(self) -> float:
        """When, without an arrival or a result, waiting alone lets `schedule` form a batch; infinity if never."""
        return INFINITY

    def sheds(self, now_s: float, coming: int) -> bool:
        """Whether a request that reaches the server now is answered with an error; `coming` others have just been let in."""
        return False

    def report_blocks(self, chain: ChainKeys) -> BlockEvents | None:
        """Name blocks by `chain` from now on, and note in the list returned which can be found and which no longer.

        None where a cache cannot tell; called before the first request.
        """
        return None

    def cached(self) -> list[Kept] | None:
        """What the prefix cache holds, the least recently used first; None where there is none, or it cannot tell."""
        return None

    def warm(self, pieces: Series[Kept]) -> None:
        """Begin with what another scheduler's cache has kept; called before the first request, where `cached` tells."""
        raise NotImplementedError(f"{type(self).__name__} cannot begin with a filled cache")

    def tier_counts(self) -> list[TierCount]:
        """What became of the tiers beyond the device, the nearest first; none where there are none."""
        return []

    def join(self, other: Scheduler, kind: TierKind) -> None:
        """Share the tiers of a kind with another replica's scheduler, which joins nobody; called before the first request."""
        raise NotImplementedError(f"{type(self).__name__} has no tiers beyond the device")

    def beside(self, other: Scheduler) -> None:
        """Use the room and the rate of another's shared store, nothing that is in it; called before anybody joins this."""
        raise NotImplementedError(f"{type(self).__name__} has no store beyond the device")

    @property
    def cancels(self) -> bool:
        """Whether `cancel` can be called."""
        return False

    def cancel(self, seq: Sequence) -> bool:
        """Forget a request (its client has gone, its node was lost): its memory is freed, its tokens so far stay noted.

        Called between steps. False: it ends by itself, when its last token is settled: that is in flight, or the engine
        does not notice that it computes for nobody.
        """
        raise NotImplementedError(f"{type(self).__name__} cannot drop a request")


@mypyc_attr(allow_interpreted_subclasses=True)
class StepCost:
    """Seconds of a step of ranks that step together, one in most engines; ranks without work are left out of the lists.

    The three device times agree to the last bit for equal steps: a run is the same sums in the same order. Of the step priced
    last (by `step_s`) `launch_s` is what the host takes to launch it, where its operations queue up behind those of the step
    before (else 0), and `launch_wait_s` the part in which the device waits for launches that begin with it; both 0 where a cost
    does not know. `first_s` and `last_s` are what of its device time the first and the last stage of a pipeline spend alone.
    `taken_alone` : so many first steps of a server are priced one by one.
    """

    launch_s: float = 0.0
    launch_wait_s: float = 0.0
    first_s: float = 0.0
    last_s: float = 0.0
    taken_alone: int = 0

    def of_server(self) -> StepCost:
        """Step times of one server that starts; others may share what knows nothing of the steps before."""
        return self

    @abstractmethod
    def step_s(self, batches: Series[Batch]) -> tuple[float, list[float]]:
        """Device time of a step, and the part of it that is attributed to each rank's prefill rows."""

    @abstractmethod
    def run_s(self, shapes: Series[Batch], steps: int) -> FloatArray:
        """Device times of `steps` steps of a run that begins with `shapes`, shape (steps,)."""

    @abstractmethod
    def few_s(self, shapes: Series[Batch], steps: int) -> list[float]:
        """`run_s` as plain numbers, in a list that is the caller's."""

    @abstractmethod
    def host_s(self, batch: Batch) -> float:
        """Host time of one rank to form, launch and read back a batch."""


__all__ = ["INFINITY", "Run", "Scheduler", "State", "StepCost"]
