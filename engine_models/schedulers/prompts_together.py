"""Ranks that share experts begin prompts together: who has one waits until all have, since every prompt stops all ranks.

Before each step: if all ranks have a free row and a prompt that fits, they compute them; beside rows that generate on every
rank they may first wait `batching_wait_iters` steps for more. If only some have one, prompts wait, for at most `timeout_iters`
steps as the engine counts them: those without waiting prompts too, so that the wait is shorter in the mean. A rank on which
nobody generates ends the wait, for it is idle.

Source: `PyExecutor._balance_adp_requests` of TensorRT-LLM 1.1 (public copy, from memory: unconfirmed).
"""

from __future__ import annotations

from collections.abc import Sequence as Series

from engine_models.parts.protocols import Gate, Scheduler
from engine_models.schedulers.memory_then_tokens import TwoPassScheduler
from hardware_profiles.records import dataclass


@dataclass
class PromptsTogether(Gate):
    """The agreement of the ranks of one replica, in steps."""

    timeout_iters: int
    batching_wait_iters: int
    _since: int = 0
    _gathered: int = 0

    def agree(self, schedulers: Series[Scheduler]) -> None:
        """As of the base."""
        ranks = [rank for rank in schedulers if isinstance(rank, TwoPassScheduler)]
        held = self._held(ranks)
        for rank in ranks:
            rank.holds_prompts = held

    def _held(self, ranks: list[TwoPassScheduler]) -> bool:
        step = max(rank.next_number for rank in ranks)
        generate = all(rank.decodes.count for rank in ranks)
        if all(rank.prompts_fit() for rank in ranks):
            self._since = step
            if not generate or self._gathered >= self.batching_wait_iters:
                self._gathered = 0
                return False
            self._gathered += 1
            return True
        if generate and step - self._since < self.timeout_iters:
            return True
        self._since = step
        return False


__all__ = ["PromptsTogether"]
