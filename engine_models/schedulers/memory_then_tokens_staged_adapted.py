"""Memory first, then tokens, over the stages of a pipeline with LoRA adapters, or grammars: the rules of both.

The first pass looks at all active requests, whichever slot they are in, and holds the adapters of all that generate.

Source: `_executor_loop_pp` in `py_executor.py` and `capacityScheduler.cpp` of TensorRT-LLM (public copies, read 2026-11),
compared with no recording.
"""

from __future__ import annotations

from engine_models.parts.adapters import NamingDecodes
from engine_models.schedulers.memory_then_tokens_adapted import AdaptedTwoPassScheduler
from engine_models.schedulers.memory_then_tokens_staged import StagedTwoPassScheduler
from engine_models.schedulers.staged import Lane


class NamingLane(NamingDecodes, Lane):
    """The generating rows of a slot, whose steps say which adapters they read and how many rows a grammar constrains."""


class StagedAdaptedTwoPassScheduler(AdaptedTwoPassScheduler, StagedTwoPassScheduler):
    """`StagedTwoPassScheduler` with adapters. Parameters as of the bases."""

    def _new_decodes(self, windows: tuple[int, ...]) -> NamingLane:
        return NamingLane(self.kv.block_tokens, windows)

    def _generating_names(self) -> set[int]:
        named: set[int] = set()
        for slot in self._slots:
            assert isinstance(slot.rows, NamingLane)
            named |= slot.rows.named()
        return named


__all__ = ["NamingLane", "StagedAdaptedTwoPassScheduler"]
