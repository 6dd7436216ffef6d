"""Steps in parts with drafts: passes of the drafter before the model's step, and the same step by the drafter after it.

    T = sum over passes T_draft(one token a row) + T_model(step) + T_draft(step)

each as the sum over its parts (`sub_batches`). The drafter's layers compute the whole step again; logits it makes of one token of
it where it is a model of its own, of none where it is a head. The host samples what such a model drafts, one row after the other;
heads sample on the device (`common/speculative.cpp` of llama.cpp at 0c1e57098, 2026: `draft` and `process`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from engine_models.cost.drafting import Speculation, matrices_s
from engine_models.cost.step_time import StepTimeModel, TableRange
from engine_models.cost.sub_batches import Parts, SubBatches
from engine_models.cost.terms import HostOverhead, Parallelism, Shard, Terms
from engine_models.parts.batch import Batch, PartedBatch
from engine_models.parts.protocols import FloatArray, StepCost
from hardware_profiles.ops import Ops


class DraftedParts(StepCost):
    """Step times of a model in parts, and those of its drafter. All times in seconds.

    model : the model's steps in parts.
    speculation : what is drafted.
    terms : the model's, of which the drafter's are made.
    up_to : the range to tabulate, of sub-batches.
    """

    def __init__(
        self, model: StepCost, speculation: Speculation, ops: Ops, terms: Terms, parts: Parts, up_to: TableRange
    ) -> None:
        draft = speculation.draft
        if draft is None:
            raise ValueError("drafts in parts are a drafter's")
        self.model = model
        own = speculation.method == "draft_model"
        self._row_s = terms.host.row_s
        self._pass_row_s = self._row_s if own else 0.0
        bare = replace(terms, host=HostOverhead(0.0, 0.0, device_step_s=terms.host.device_step_s))
        pass_shard = Shard(draft, ops, speculation.formats, Parallelism(), bare)
        again = draft if own else replace(draft, has_lm_head=False)
        several = replace(bare, query_tokens=speculation.row_tokens)
        self._again = SubBatches(StepTimeModel(replace(pass_shard, arch=again, terms=several), up_to), parts)
        self._later = StepTimeModel(pass_shard, up_to)
        self._joins = matrices_s(ops, speculation.joins, up_to.step_tokens)
        self._first_joins = matrices_s(ops, (*speculation.joins, *speculation.first_joins), up_to.step_tokens)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base, of the one rank there is."""
        batch = _parted(batches)
        device_s, (prefill_s,) = self.model.step_s(batches)
        again_s, (again_prefill_s,) = self._again.step_s(batches)
        again_s += sum([float(self._first_joins[part.tokens]) for part in batch.parts])
        passes_s = 0.0
        for parts in batch.passes:
            for part in parts:
                passes_s += self._later.step_s((part,))[0] + float(self._joins[part.tokens])
        return device_s + again_s + passes_s, [prefill_s + again_prefill_s]

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """None are proven: rows with drafts are counted one by one."""
        raise NotImplementedError("steps with drafts in parts are priced one by one")

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As `run_s`."""
        raise NotImplementedError("steps with drafts in parts are priced one by one")

    def host_s(self, batch: Batch) -> float:
        """As of the base: the model's step, the host's part in drafting, and each token that is yielded beyond one a row."""
        parted = _parted((batch,))
        drafted = sum([part.decode_rows for parts in parted.passes for part in parts])
        return self.model.host_s(batch) + self._pass_row_s * drafted + self._row_s * parted.tokens_beyond


def _parted(batches: Sequence[Batch]) -> PartedBatch:
    (batch,) = batches
    assert isinstance(batch, PartedBatch)
    return batch


__all__ = ["DraftedParts"]
