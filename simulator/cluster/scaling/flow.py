"""Requests that come and go, as autoscalers count them."""

from __future__ import annotations

from engine_models.parts.sequence import Sequence
from simulator.cluster.scaling.scaler import Reading, Seen


class Flow:
    """How many requests are in flight, integrated over time, and what they are like.

    The integral up to a time is the number in flight times that time, less the times at which all came, plus those at which
    others went: ends may be heard of late and in any order.
    """

    def __init__(self) -> None:
        self._inside: set[int] = set()
        self._came_s = 0.0  # times of those that came less those of others that went
        self._came = self._came_before = self._ended = 0
        self._prompts = self._outputs = 0
        self._before = (0, 0, 0)  # ended, tokens of prompts and of answers when it was collected before
        self._until_s = self._whole_s = 0.0

    def enter(self, seq: Sequence, now_s: float) -> None:
        """A request comes."""
        self._inside.add(seq.index)
        self._came_s += now_s
        self._came += 1
        self._prompts += seq.prompt_tokens

    def leave(self, seq: Sequence, now_s: float) -> None:
        """A request goes, if it is here."""
        if seq.index in self._inside:
            self._inside.remove(seq.index)
            self._came_s -= now_s

    def moved(self, seq: Sequence, now_s: float) -> bool:
        """A request goes to another pool, if it is here; whether it was."""
        if seq.index not in self._inside:
            return False
        self.leave(seq, now_s)
        self._came -= 1
        self._prompts -= seq.prompt_tokens
        return True

    def ended(self, seq: Sequence) -> None:
        """A request that went has its whole answer."""
        self._ended += 1
        self._outputs += seq.final_length - seq.prompt_tokens

    def seen(self, now_s: float, readings: tuple[Reading, ...], held: int) -> Seen:
        """What is collected now."""
        whole_s = len(self._inside) * now_s - self._came_s
        passed_s = now_s - self._until_s
        sums = self._ended, self._prompts, self._outputs
        ends, prompts, outputs = (now - before for now, before in zip(sums, self._before, strict=True))
        self._before = sums
        found = Seen(
            now_s,
            readings,
            held,
            concurrency=(whole_s - self._whole_s) / passed_s if passed_s > 0 else float(len(self._inside)),
            arrivals=max(self._came - self._came_before, 0),  # some may have moved on since
            prompt_tokens=self._prompts / self._came if self._came else 0.0,
            output_tokens=self._outputs / self._ended if self._ended else 0.0,
            new_prompt_tokens=max(prompts, 0),
            ends=ends,
            new_output_tokens=outputs,
        )
        self._until_s, self._whole_s, self._came_before = now_s, whole_s, self._came
        return found
