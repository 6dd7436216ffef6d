"""Continuous batching in two servers of prompts with images: `pulled`, whose prefill server encodes by the rules of `encoding`.

The decode server reads the blocks of a whole prompt, images and all, and encodes none.

Source: vLLM 0.33.0's `v1/core/sched/scheduler.py` (`_try_schedule_encoder_inputs` passes over images whose tokens are computed),
not recorded.
"""

from __future__ import annotations

from engine_models.parts.sequence import Sequence
from engine_models.schedulers.encoding import EncodingScheduler
from engine_models.schedulers.pulled import PrefillOfPull, PrefillOfPush


class EncodingPrefillOfPull(PrefillOfPull, EncodingScheduler):
    """`PrefillOfPull` with images."""

    def _free(self, seq: Sequence) -> None:
        super()._free(seq)
        self._let_go(seq)


class EncodingPrefillOfPush(PrefillOfPush, EncodingScheduler):
    """`PrefillOfPush` with images."""

    def _free(self, seq: Sequence) -> None:
        super()._free(seq)
        self._let_go(seq)


__all__ = ["EncodingPrefillOfPull", "EncodingPrefillOfPush"]
