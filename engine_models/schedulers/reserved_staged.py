"""A prefill server of `reserved` over the stages of a pipeline: micro-batches of prompts take turns (`prefill_first_staged`).

There are no running rows: a lane's batch is a prefill, or its turn is empty. The pieces of a long prompt go through the
pipeline one behind the other. Each is sent when its results are there; every stage sends the layers that it holds, side by side
(the engine's stages begin to send when they form their next batch, the first ones sooner: by less than a pass of the pipeline).

Source: `event_loop_pp_disagg_prefill` in `managers/scheduler_pp_mixin.py`, `process_prefill_chunk` in `disaggregation/prefill.py`
of SGLang (public copies, read 2026-11), compared with no recording.
"""

from __future__ import annotations

from typing import Any

from engine_models.schedulers.prefill_first_staged import StagedPrefillFirstScheduler
from engine_models.schedulers.reserved import SendingPrefillScheduler


class StagedSendingPrefillScheduler(SendingPrefillScheduler, StagedPrefillFirstScheduler):
    """`SendingPrefillScheduler` over stages. Parameters as of the bases."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._sends_late = True

    @property
    def cancels(self) -> bool:
        """As of the base that sends: what is computed is computed to its end."""
        return True

    def _free_slots(self) -> int:
        """As of the bases: a lane has room, and rows are left; prompts on their way to the other server keep theirs."""
        return min(StagedPrefillFirstScheduler._free_slots(self), SendingPrefillScheduler._free_slots(self) - len(self.running))


__all__ = ["StagedSendingPrefillScheduler"]
