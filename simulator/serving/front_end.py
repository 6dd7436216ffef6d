"""The front end of a rank: an event loop that takes requests in and sends tokens out, beside a tokeniser.

The loop works in rounds. All requests that are there when a round begins are taken in one after the other; then they are handed
to the scheduler, each when its prompt is tokenised, which another thread does, one prompt after the other, or the loop itself as
it hands them over. Who comes meanwhile waits for the next round. The tokens of a step are sent in a pass that begins when the
loop is free of the round under way and of the pass before; tokens of steps that end before a pass begins are sent with it.
Requests never wait for passes: they go first.

What comes in depends on arrivals alone and what goes out on the ends of steps and on the rounds begun before them, so that both
can be computed late, in any portions, with the same result to the bit: that is what lets steps be taken many at once.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from itertools import chain

import numpy as np

from engine_models.declaration import FrontEnd
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from simulator.serving.log import StepLog

MANY = 64
"""More entries of steps than so many are sent by arrays (assumed: quicker)."""
MOST = 4096
"""Entries of steps that may wait to be sent (assumed: little memory)."""


class LoopedFrontEnd:
    """Requests on their way in, and tokens on their way out.

    `coming` are the requests that have reached the server and are in no round yet, `waiting` the steps whose tokens are to be
    sent, in the order of the log: how many, and in each the rows that decode and the prompts that yield one.

    Parameters
    ----------
    front : its times.
    log : of the rank whose tokens it sends; it keeps when in `log.sent_s`.
    more : the next chunk of those requests that are known beforehand, empty where there is none.
    """

    def __init__(self, front: FrontEnd, log: StepLog, more: Callable[[], list[Sequence]]) -> None:
        loop = front.loop
        assert loop is not None
        log.sent_s = array("d")
        self._log = log
        slow = 1.0 / loop.speed
        self._request_s = (loop.request_s + (loop.chat_s if front.chat else 0.0)) * slow
        self._token_s, self._hand_over_s = loop.prompt_token_s * slow, loop.hand_over_s * slow
        self._step_s, self._row_s = loop.step_s * slow, loop.row_s * loop.share * slow
        self._merged_row_s = loop.merged_row_s * loop.share * slow
        self._idle_factor, self._share = loop.idle_factor, loop.share
        self._tokenise_token_s, self._late = front.tokenise_token_s, front.tokenises_late
        self._tokenise_request_s, self._image_token_s = front.tokenise_request_s, front.image_token_s
        self.coming: deque[Sequence] = deque()
        self._more = more
        self._free_s = self._tokenised_s = 0.0  # when the loop, and the tokeniser, have done what is known
        self._rounds: deque[tuple[float, float]] = deque()  # begin and end of those that passes may have to wait for
        self.waiting: list[tuple[int, int, int]] = []  # not sent yet: steps, rows that decode and prompts in each
        self._begin_s = self._end_s = 0.0  # of the latest pass
        self._seen_s: dict[int, float] = {}  # of steps whose results are seen later than they end, by number

    # -- requests in ----------------------------------------------------------------------------------------

    def known_to(self, at_s: float) -> None:
        """Have all requests that reach the server up to a time among those that are coming, as far as they are known at all."""
        coming = self.coming
        while not coming or coming[-1].arrival_s <= at_s:
            chunk = self._more()
            if not chunk:
                return
            coming.extend(chunk)

    def next_s(self) -> float:
        """A time before which none of those that are coming is handed over."""
        if not self.coming:
            return INFINITY
        first = self.coming[0]
        begin_s = first.arrival_s if first.arrival_s > self._free_s else self._free_s
        tokens_s = self._token_s * first.prompt_tokens
        if self._late:
            return (begin_s + self._request_s) + (self._hand_over_s + tokens_s)
        return begin_s + (self._request_s + tokens_s) + self._hand_over_s

    def rounds_until(self, until_s: float, ready: deque[Sequence], enough: int = sys.maxsize) -> None:
        """Add to `ready` those taken in by rounds that begin before a time; their arrival becomes that at the scheduler.

        Once there are `enough` no further chunk of requests is asked for: rounds that need it are left for later.
        """
        coming, share = self.coming, self._share
        request_s, hand_over_s = self._request_s * self._idle_factor, self._hand_over_s * self._idle_factor  # of an idle loop
        while coming:
            first_s = coming[0].arrival_s
            idle = first_s > self._free_s
            begin_s = first_s if idle else self._free_s
            if begin_s >= until_s:
                return
            if coming[-1].arrival_s <= begin_s:
                if len(ready) >= enough:
                    return
                self.known_to(begin_s)
            if idle and (len(coming) == 1 or coming[1].arrival_s > begin_s):  # alone, and the loop waits for it
                seq = coming.popleft()
                taken_s = begin_s + (request_s + self._token_s * seq.prompt_tokens)
                tokenise_s = taken_s if taken_s > self._tokenised_s else self._tokenised_s
                tokenised_s = tokenise_s + (self._tokenise_token_s * seq.prompt_tokens + self._tokenise_request_s)
                if seq.images:
                    tokenised_s += self._image_token_s * seq.image_tokens()
                self._tokenised_s = tokenised_s
                seq.arrival_s = (taken_s if taken_s > tokenised_s else tokenised_s) + hand_over_s
                ready.append(seq)
                self._free_s = taken_s + hand_over_s * share
                self._rounds.append((begin_s, self._free_s))
                continue
            at_s = begin_s
            early_s, late_s = (0.0, self._token_s) if self._late else (self._token_s, 0.0)
            taken: list[tuple[Sequence, float]] = []
            while coming and coming[0].arrival_s <= begin_s:
                seq = coming.popleft()
                tokens_s = early_s * seq.prompt_tokens
                if taken:
                    at_s += (self._request_s + tokens_s) * share
                else:
                    at_s += (request_s if idle else self._request_s) + tokens_s
                tokenise_s = at_s if at_s > self._tokenised_s else self._tokenised_s
                self._tokenised_s = tokenise_s + (self._tokenise_token_s * seq.prompt_tokens + self._tokenise_request_s)
                if seq.images:
                    self._tokenised_s += self._image_token_s * seq.image_tokens()
                taken.append((seq, self._tokenised_s))
            for seq, tokenised_s in taken:
                done_s = at_s if at_s > tokenised_s else tokenised_s
                handed_s = self._hand_over_s + late_s * seq.prompt_tokens
                seq.arrival_s = done_s + handed_s
                at_s += handed_s * share
                ready.append(seq)
            self._free_s = at_s
            self._rounds.append((begin_s, at_s))

    # -- tokens out -----------------------------------------------------------------------------------------

    @property
    def much_waits(self) -> bool:
        """Whether the tokens of so many steps wait that they should be sent, needed or not."""
        return len(self.waiting) > MOST

    def sees_late(self, at_s: float) -> None:
        """The results of the latest step in the log are not seen before a time."""
        self._seen_s[self._log.retired_steps + len(self._log.end_s) - 1] = at_s

    def send_until(self, until_s: float) -> None:
        """Send the tokens of the steps that end up to a time; the rank has been advanced as far."""
        queue, log = self.waiting, self._log
        if len(queue) > MANY:
            self._send_many(until_s)
        while queue:
            steps, rows, prompts = queue[0]
            at = len(log.sent_s)
            ends = log.end_s[at : at + steps]
            if ends[-1] > until_s:
                ends = ends[: bisect_right(ends, until_s)]
                if not ends:
                    return
            self._send(ends, rows, prompts)
            self._sent(len(ends))

    def _sent(self, steps: int) -> None:
        """So many steps wait no longer."""
        queue, at = self.waiting, 0
        while steps and queue[at][0] <= steps:
            steps -= queue[at][0]
            at += 1
        if steps:
            left, rows, prompts = queue[at]
            queue[at] = left - steps, rows, prompts
        del queue[:at]

    def _send(self, ends_s: array[float], rows: int, prompts: int) -> None:
        """Send the tokens of steps, all of the same rows."""
        rounds, sent = self._rounds, self._log.sent_s
        own_s = self._step_s + self._row_s * (rows + prompts)
        joined_s = self._merged_row_s * rows + self._row_s * prompts
        begin_s, done_s, late = self._begin_s, self._end_s, self._seen_s
        for end_s in ends_s:
            while rounds and rounds[0][1] <= end_s:
                rounds.popleft()
            seen_s = late.pop(self._log.retired_steps + len(sent), end_s) if late else end_s
            if seen_s > begin_s:
                begin_s = seen_s if seen_s > done_s else done_s
                if rounds and rounds[0][0] < end_s and rounds[0][1] > begin_s:
                    begin_s = rounds[0][1]
                done_s = begin_s + own_s
            else:
                done_s += joined_s
            sent.append(done_s)
        self._begin_s, self._end_s = begin_s, done_s

    def _send_many(self, until_s: float) -> None:
        """`send_until` where much waits: passes that nothing delays all at once, the others one by one."""
        rounds, sent = self._rounds, self._log.sent_s
        counts, rows, prompts = np.fromiter(chain.from_iterable(self.waiting), np.int64).reshape(-1, 3).T
        up_to = counts.cumsum()
        ends = np.array(self._log.end_s[len(sent) : len(sent) + int(up_to[-1])])
        total = int(np.searchsorted(ends, until_s, side="right"))
        if not total:
            return
        ends = ends[:total]
        own = np.repeat(self._step_s + self._row_s * (rows + prompts), counts)[:total]
        joined = np.repeat(self._merged_row_s * rows + self._row_s * prompts, counts)
        out = ends + own
        begun = ends.copy()
        inside = np.zeros(total, dtype=bool)  # of rounds in which several steps end
        if rounds:
            first, last = np.fromiter(chain.from_iterable(rounds), np.float64).reshape(-1, 2).T
            low, high = np.searchsorted(ends, first, side="right"), np.searchsorted(ends, last, side="left")
            only = low[high == low + 1]
            begun[only] = last[high == low + 1]
            out[only] = begun[only] + own[only]
            for at in np.flatnonzero(high > low + 1).tolist():
                inside[low[at] : high[at]] = True
        first_step = self._log.retired_steps + len(sent)
        late = {step - first_step: seen_s for step, seen_s in self._seen_s.items() if step - first_step < total}
        self._seen_s = {step: seen_s for step, seen_s in self._seen_s.items() if step - first_step >= total}
        inside[list(late)] = True
        delayed = np.flatnonzero(inside | (np.append(self._end_s, out[:-1]) > ends)).tolist()
        done = 0
        for at in delayed:
            if at < done:
                continue
            if at:
                self._begin_s, self._end_s = float(begun[at - 1]), float(out[at - 1])
            done = at
            while done < total:
                end_s = float(ends[done])
                while rounds and rounds[0][1] <= end_s:
                    rounds.popleft()
                under_way = bool(rounds) and rounds[0][0] < end_s
                if done > at and end_s >= self._end_s and end_s > self._begin_s and not inside[done]:
                    break  # as if nothing had been before it
                seen_s = late.get(done, end_s)
                if seen_s > self._begin_s:
                    self._begin_s = max(seen_s, self._end_s)
                    if under_way:
                        self._begin_s = max(self._begin_s, rounds[0][1])
                    self._end_s = self._begin_s + float(own[done])
                else:
                    self._end_s += float(joined[done])
                begun[done], out[done] = self._begin_s, self._end_s
                done += 1
        self._begin_s, self._end_s = float(begun[-1]), float(out[-1])
        sent.frombytes(out.tobytes())
        whole = int(np.searchsorted(up_to, total, side="right"))  # entries of which all steps are sent
        del self.waiting[:whole]
        self._sent(total - int(up_to[whole - 1]) if whole else total)
        while rounds and rounds[0][1] <= ends[-1]:
            rounds.popleft()

    # -- anew -----------------------------------------------------------------------------------------------

    def renew(self, now_s: float) -> None:
        """Begin anew: nobody is on the way, and the loop is free."""
        self.send_until(INFINITY)
        self.coming.clear()
        self._rounds.clear()
        self._seen_s.clear()
        self._free_s = self._tokenised_s = now_s
