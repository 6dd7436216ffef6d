"""What an engine decides about the time of a step; with a device's operations it makes step times."""

from __future__ import annotations

from dataclasses import field, replace
from threading import get_ident
from typing import TYPE_CHECKING, Any

from engine_models.cost.step_time import StepTimeModel, TableRange
from engine_models.cost.terms import Formats, Parallelism, Shard, Terms, kernel_format
from engine_models.model.blocks import Architecture
from engine_models.parts.protocols import StepCost
from hardware_profiles.ops import Ops
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from engine_models.cost.adapters import Adapters, AdapterTimes
    from engine_models.cost.drafting import Drafting, Speculation
    from engine_models.cost.first_use import FirstUse
    from engine_models.cost.host_layers import HostLayers
    from engine_models.cost.images import ImageLoad, Images
    from engine_models.cost.measured import StepLaw
    from engine_models.cost.sub_batches import Parts
    from engine_models.cost.token_masks import TokenMasks
    from engine_models.cost.weight_stream import InPlace, Stream


@dataclass(frozen=True)
class StepCosts:
    """The cost of a step up to the device's operations: the model, its formats and parallelism, the engine's terms, drafts.

    `up_to` is the range to tabulate. `parts`: steps are computed in parts, None where they are not. `stream`: what comes over
    the link to the host in every step, None for nothing. `host_layers`: those that come before `arch`, of steps in
    parts; None: the device has all. `measured`: steps are timed by this law of whole steps, not by the device's operations.
    `adapters`: LoRA adapters that batches may read. `masks`: how those of structured output are made.
    `images`: how a vision tower encodes those of prompts; `encodes_only`: servers do nothing else. `image_load`: how steps read
    what others have made of them. `in_place`: weights that kernels read in host memory.
    `first_use`: what servers that have just started wait for, None for servers that are warm.
    """

    arch: Architecture
    formats: Formats
    terms: Terms
    up_to: TableRange
    parallel: Parallelism = field(default_factory=Parallelism)
    speculation: Speculation | None = None
    parts: Parts | None = None
    stream: Stream | None = None
    host_layers: HostLayers | None = None
    measured: StepLaw | None = None
    adapters: Adapters | None = None
    masks: TokenMasks | None = None
    images: Images | None = None
    encodes_only: bool = False
    image_load: ImageLoad | None = None
    in_place: InPlace | None = None
    first_use: FirstUse | None = None

    def with_terms(self, **changed: Any) -> StepCosts:
        """The same with other terms, by the names of `Terms`."""
        return replace(self, terms=replace(self.terms, **changed))

    def over(self, ops: Ops) -> StepCost:
        """Step times of one replica on a device with these operations."""
        if self.first_use is not None:
            from engine_models.cost.first_use import Fresh

            return Fresh(replace(self, first_use=None).over(ops), self.first_use)
        terms, drafts = self.terms, self.speculation
        if self.measured is not None:
            from engine_models.cost.measured import MeasuredSteps

            return self._in_parts(MeasuredSteps(self.measured, terms.host))
        if drafts is not None and drafts.lengths:
            return self._by_drafts(drafts, ops)
        ops = ops.on_threads(terms.threads) if terms.threads else ops
        ops = ops.with_attention(*terms.attention) if any(terms.attention) else ops
        if drafts is not None:
            verified = drafts.row_tokens
            terms = replace(terms, query_tokens=verified, sampled_tokens=verified)
        shard = Shard(self.arch, ops, self.formats, self.parallel, terms)
        model = StepTimeModel(shard, self.up_to)
        if self.parts is not None:
            layers = self.host_layers
            after = model if layers is None else layers.before(model, ops, self.formats, terms, self.up_to)
            in_parts = self._in_parts(after)
            if drafts is None:
                return in_parts
            from engine_models.cost.drafted_parts import DraftedParts

            return DraftedParts(in_parts, drafts, ops, self.terms, self.parts, self.up_to)
        if self.stream is not None:
            from engine_models.cost.weight_stream import Streamed

            return Streamed(model, self.stream)
        own: StepTimeModel | Drafting = model
        if drafts is not None:
            from engine_models.cost.drafting import Drafting

            own = Drafting(model, drafts, self.up_to)
        whole: StepCost = own
        of_adapters: AdapterTimes | None = None
        if self.adapters is not None:
            from engine_models.cost.adapters import AdapterTimes

            of_adapters = AdapterTimes(self.adapters, shard, self.up_to)
        if self.parallel.ranks > 1:
            from engine_models.cost.lockstep import Lockstep

            whole = Lockstep(own, shard, self.up_to, of_adapters)
        elif of_adapters is not None:
            from engine_models.cost.adapters import WithAdapters

            whole = WithAdapters(own, of_adapters)
        if self.masks is not None:
            from engine_models.cost.token_masks import WithMasks

            whole = WithMasks(whole, self.masks, shard)
        if self.images is not None:
            from engine_models.cost.images import OnlyImages, WithImages

            whole = (OnlyImages if self.encodes_only else WithImages)(whole, self.images, shard)
        if self.image_load is not None:
            from engine_models.cost.images import WithLoads

            whole = WithLoads(whole, self.image_load)
        if self.in_place is not None:
            from engine_models.cost.weight_stream import ReadInPlace

            whole = ReadInPlace(whole, self.in_place)
        return whole

    def _by_drafts(self, drafts: Speculation, ops: Ops) -> StepCost:
        """Step times where the number of drafts goes by the rows."""
        from engine_models.cost.drafting import DraftingByRows

        found = {0: replace(self, speculation=None).over(ops)}
        found |= {number: replace(self, speculation=drafts.of_length(number)).over(ops) for _, number in drafts.lengths}
        return DraftingByRows(found)

    def _in_parts(self, whole: StepCost) -> StepCost:
        if self.parts is None:
            return whole
        from engine_models.cost.sub_batches import SubBatches

        return SubBatches(whole, self.parts)

    def unserved(self, ops: Ops) -> tuple[str, ...]:
        """Warnings on what flags choose and the device's operations do not tell apart."""
        return (*self._unserved_experts(ops), *self._unserved_attention(ops))

    def _unserved_experts(self, ops: Ops) -> tuple[str, ...]:
        word = self.terms.moe_backend
        if word is None or not self.terms.moe_by_flag or not self.arch.has_experts:
            return ()
        fmt = kernel_format(self.arch, self.formats, "experts")
        if ops.expert_backend(fmt, word) is not None:
            return ()
        return (f"moe_backend {word}: the tables of experts in {fmt} hold one backend only, or not this one",)

    def _unserved_attention(self, ops: Ops) -> tuple[str, ...]:
        if not self.terms.attention_by_flag:
            return ()
        widths = {block.head_dim for block in self.arch.attention if block.kind != "linear"}
        known = {word for word in self.terms.attention if word}
        lacking = {word for word in known if not all(ops.times_attention(word, width) for width in widths)}
        return tuple(f"attention backend {word}: the tables do not hold it, or not heads so wide" for word in sorted(lacking))


KEPT = 128
"""Step times kept for later runs, some 0.4 MB each (assumed)."""
_kept: dict[tuple[StepCosts, int, int], tuple[Ops, StepTimeModel]] = {}
"""By what they follow from, the operations by identity; each thread has its own, as what a step took is read after it."""


def step_times(costs: StepCosts, ops: Ops) -> StepCost:
    """`costs.over(ops)`, made once for runs in a row that differ in their load; what its last step took is all that changes."""
    own = (costs.parts, costs.stream, costs.measured, costs.adapters, costs.masks, costs.images, costs.image_load)
    if costs.speculation or any(own):
        return costs.over(ops)
    key = costs, id(ops), get_ident()
    if (found := _kept.get(key)) is not None:
        model = found[1]
        model.launch_s = model.launch_wait_s = 0.0
        return model
    made = costs.over(ops)
    if isinstance(made, StepTimeModel):
        if len(_kept) >= KEPT:
            _kept.pop(next(iter(_kept)), None)
        _kept[key] = ops, made
    return made


__all__ = ["StepCosts", "step_times"]
