"""Step times of ranks that share experts: data-parallel attention (vLLM's data parallelism of MoE models, SGLang's DP attention).

Each of D data-parallel ranks (of TP devices) computes attention and dense layers for its own rows; before a layer of experts the
hidden states of all ranks are gathered, after it every rank gets back its own sums. A layer of experts waits for all ranks, so

    step = max over ranks ( dense layers(m_r) + attention_r + LM head and sampling(rows_r) )
           + sum over layers of experts ( all-gather(T) + experts(T) + reduce-scatter(T) )

m_r are the tokens of rank r, T those of all ranks. In a CUDA graph all ranks are padded to the size that holds the largest
(vLLM `coordinate_batch_across_dp`, SGLang's `MAX_LEN` padding), so T = D m; outside of graphs each brings its own tokens, an
idle rank one dummy token. The transfers are an all-gather and a reduce-scatter over the D ranks of activations in 16 bit
(vLLM's default `allgather_reducescatter`, SGLang's gather and scatter without an all-to-all backend). Where vLLM's ranks are of
several devices and split experts whole, each device takes a part of its rank's tokens to the experts (`Terms.parts_tokens`):
both are over all devices, and the parts are gathered by the tensor ranks afterwards, whose sums need no reduction then. With
one (`Terms.routed`) a token goes to the ranks of its experts alone, and those compute no others: `Ops.routed_experts_s`, where
such kernels were timed. Elsewhere a rank receives topk / D of what it would gather, at most all of it, at the speed of the same
curves (assumed). Where ranks write into each other's memory (`Terms.one_sided`) the exchange is that of
:mod:`engine_models.cost.one_sided`.

With drafts a rank's own time includes its drafter. A drafter that is a layer of experts like the model's (multi-token prediction)
waits for all ranks too, in each pass: the first over the tokens of the step, the k - 1 others over one token a row, padded
alike where a CUDA graph holds the step (k drafts).

Source: vLLM `v1/worker/dp_utils.py`, `distributed/device_communicators/all2all.py`; SGLang `layers/dp_attention.py`,
`managers/scheduler_dp_attn_mixin.py` (public copies, read 2026-11).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from engine_models.cost import one_sided
from engine_models.cost.drafting import Drafting
from engine_models.cost.step_time import StepTimeModel, TableRange
from engine_models.cost.tables import FloatArray, IntArray, PiecewiseLinear, log_grid
from engine_models.cost.terms import Shard, experts_s, sum_s
from engine_models.model.architecture import MoeShape, moe_shapes
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.ops import RoutedLayer

#: Bytes of a value that the ranks exchange: activations travel in 16 bit. kind: datasheet (the engines' code, above).
EXCHANGED_BYTES = 2.0
#: Bytes of one choice of an expert that travels with a token: index and weight, 32 bit each. kind: datasheet (likewise).
CHOICE_BYTES = 8.0


def shared_parts_s(shard: Shard, tokens: IntArray, *, captured: bool = True) -> dict[str, FloatArray]:
    """Seconds of the layers of experts and of the exchange around them for `tokens` tokens of all ranks together.

    captured : whether a CUDA graph holds the step, of which tokens that are routed know other kernels.
    """
    ops, ranks = shard.ops, shard.parallel.ranks
    shapes = moe_shapes(shard.stage, shard.parallel.tensor, shard.parallel.expert, ranks)
    if shard.terms.routed and (routed_s := _routed_s(shard, shapes, tokens, captured)) is not None:
        return {"experts": routed_s}
    values = np.asarray(tokens, dtype=np.float64) * shard.stage.hidden
    sent, width = values * shard.terms.gathered_bytes, values * EXCHANGED_BYTES
    exchange = np.zeros(len(tokens))
    if shard.terms.exchanges_over_all:
        exchange = sum(moe.layers for moe in shapes) * _over_all_s(shard, width, captured)
        return {"experts": experts_s(shard, shapes, tokens), "exchange between ranks": exchange}
    waits_s = 2.0 * shard.terms.host.reduce_wait_s  # as at the two all-reduces of a layer under tensor parallelism
    devices, tensor = ranks, shard.parallel.tensor
    if shard.terms.parts_tokens:
        devices, waits_s = ranks * tensor, 1.5 * waits_s
        exchange += sum(moe.layers for moe in shapes) * ops.all_gather_s(tensor, width / ranks)
    for moe in shapes:
        choices = CHOICE_BYTES * moe.topk * np.asarray(tokens, dtype=np.float64)
        if shard.terms.one_sided:
            between_s = one_sided.exchange_s(ops, ranks, moe.reached_share, tokens, sent + choices, width)
            exchange += moe.layers * (between_s + waits_s)
            continue
        share = min(moe.topk / ranks, 1.0) if shard.terms.routed else 1.0
        gather_s = ops.all_gather_s(devices, share * (sent + choices))
        scatter_s = ops.reduce_scatter_s(devices, share * width)
        exchange += moe.layers * (gather_s + scatter_s + waits_s)
    return {"experts": experts_s(shard, shapes, tokens), "exchange between ranks": exchange}


def _over_all_s(shard: Shard, whole: FloatArray, captured: bool) -> FloatArray:
    """The exchange around a layer of experts over all devices, the sums over tensor ranks in it; `whole` bytes of all tokens.

    In a CUDA graph tokens are padded alike, and each tensor rank has a part of its rank's: these are reduced and scattered,
    gathered, and back again. Outside of one both ways are all-reduces of the whole, which a rank fills with its own tokens.
    """
    ops, ranks, tensor = shard.ops, shard.parallel.ranks, shard.parallel.tensor
    devices, own, wait_s, copied = ranks * tensor, whole / ranks, shard.terms.host.reduce_wait_s, shard.ops.elementwise_s
    added_s, taken_s = copied(3.0 * own), copied(own) + copied(2.0 * own)
    if not captured:
        filled_s = copied(whole) + copied(2.0 * own) + copied(2.0 * whole)
        return added_s + filled_s + (2 if tensor > 1 else 1) * taken_s + 2.0 * sum_s(shard, devices, whole)
    between_s: FloatArray = ops.all_gather_s(devices, whole) + ops.reduce_scatter_s(devices, whole) + 2.0 * wait_s
    if tensor == 1:
        return added_s + between_s
    return added_s + between_s + ops.reduce_scatter_s(tensor, own) + ops.all_gather_s(tensor, own) + 2.0 * wait_s + taken_s


def _routed_s(shard: Shard, shapes: list[MoeShape], tokens: IntArray, captured: bool) -> FloatArray | None:
    """The layers of experts with their all-to-all, as timed; None where it was not, or experts are split."""
    fmt, total = shard.weights_format("experts"), np.zeros(len(tokens))
    for moe in shapes:
        layer = RoutedLayer(fmt, moe.hidden, moe.intermediate, moe.topk, moe.experts, moe.ep, moe.deal)
        found = shard.ops.routed_experts_s(layer, tokens, captured=captured) if moe.tp == 1 else None
        if found is None:
            return None
        total = total + moe.layers * found
    return total


def _tabulated(shard: Shard, most: int) -> tuple[list[float], list[float]]:
    """Seconds of the parts that ranks share by all their tokens, up to `most`: of steps in CUDA graphs, and of others."""
    grid = log_grid(most, 8)

    def of(captured: bool) -> list[float]:
        values = sum(shared_parts_s(shard, grid, captured=captured).values(), np.zeros(len(grid)))
        table = PiecewiseLinear(grid.astype(float), np.maximum.accumulate(values))
        each: list[float] = table.over(np.arange(most + 1, dtype=float)).tolist()
        return each

    shared_s = of(True)
    return shared_s, of(False) if shard.terms.routed or shard.terms.exchanges_over_all else shared_s


class Lockstep(StepCost):
    """Step times of `shard.parallel.ranks` ranks that share experts.

    own : what a rank does for its own tokens, experts left out; with drafts the drafter's passes too.
    up_to : the range to tabulate, of one rank.
    adapters_s : what a rank's batch does with LoRA adapters besides [s], None without.
    """

    def __init__(
        self,
        own: StepTimeModel | Drafting,
        shard: Shard,
        up_to: TableRange,
        adapters_s: Callable[[Batch], float] | None = None,
    ) -> None:
        self._own = own
        self._adapters_s = adapters_s
        self._ranks = shard.parallel.ranks
        self._launches = own.launches
        self._shared_s, self._launched_s = _tabulated(shard, self._ranks * up_to.step_tokens)
        drafter = own.shared if isinstance(own, Drafting) else None
        self._draft_s: dict[bool, list[float]] = {}
        if drafter is not None and isinstance(own, Drafting):
            self._more, self._branches = own.passes
            most = max(up_to.step_tokens, up_to.rows * self._branches)
            self._draft_s[True], self._draft_s[False] = _tabulated(drafter, self._ranks * most)

    def _of_group(self, tokens: list[int], prefills: bool) -> tuple[int, int]:
        """Tokens of a rank after padding (0: each its own), and those of all ranks."""
        most = max(tokens)
        if self._launches.captured(most, prefills):
            padded = self._launches.padded(most)
            return padded, padded * self._ranks
        return 0, sum(tokens) + self._ranks - len(tokens)

    def _waited_s(self, padded: int, total: int, rows: list[int]) -> float:
        """What all ranks wait for together, whose steps have `total` tokens and `rows` rows."""
        shared = (self._shared_s if padded else self._launched_s)[total]
        if self._draft_s:
            drafted = self._draft_s[bool(padded)]
            proposers = max(rows) * self._ranks if padded else sum(rows) + self._ranks - len(rows)
            shared += drafted[total] + self._more * drafted[proposers * self._branches]
        return shared

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """Device seconds of one step of the group, and the part of it attributed to prefill rows, for each rank.

        `batches` are those of the ranks that have work. All wait for the slowest rank's prompts, and spend that time alike. They
        launch alike too: one that prefills outside of graphs takes the others with it.
        """
        if isinstance(self._own, StepTimeModel):
            batches = [self._own.as_run(batch) for batch in batches]
        prefills = any(batch.prefill for batch in batches)
        tokens = [batch.padded_tokens or batch.tokens for batch in batches]
        padded, total = self._of_group(tokens, prefills)
        shared = self._waited_s(padded, total, [batch.decode_rows + len(batch.prefill) for batch in batches])
        slowest = of_prompts = 0.0
        for batch, own_tokens in zip(batches, tokens, strict=True):
            own, linear, prefill = self._own.own_s(batch, padded or own_tokens)
            if self._adapters_s is not None:
                more = self._adapters_s(batch)
                own += more
                linear += more
            if own > slowest:
                slowest = own
                of_prompts = linear * (1 - batch.decode_tokens / batch.tokens) + prefill
        of_prompts += shared * (1 - sum(b.decode_tokens for b in batches) / sum(b.tokens for b in batches))
        least = self._launches.least_s(max(tokens), prefills)
        self.launch_s = least if prefills and self._launches.sizes else 0.0
        self.launch_wait_s = max(0.0, least - (slowest + shared))
        return max(slowest + shared, least), [of_prompts] * len(batches)

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """Device seconds of `steps` pure decode steps that begin with the shapes of the ranks that have work."""
        tokens = [shape.padded_tokens or shape.tokens for shape in shapes]
        padded, total = self._of_group(tokens, False)
        slowest = np.zeros(steps)
        for shape, own_tokens in zip(shapes, tokens, strict=True):
            own = self._own.own_run_s(shape, padded or own_tokens, steps)
            if self._adapters_s is not None:
                own = own + self._adapters_s(shape)
            slowest = np.maximum(slowest, own)
        shared = self._waited_s(padded, total, [shape.decode_rows for shape in shapes])
        return np.maximum(slowest + shared, self._launches.least_s(max(tokens), False))

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """`run_s` as plain numbers."""
        few: list[float] = self.run_s(shapes, steps).tolist()
        return few

    def host_s(self, batch: Batch) -> float:
        """Host time of one rank."""
        return self._own.host_s(batch)


__all__ = ["CHOICE_BYTES", "EXCHANGED_BYTES", "Lockstep", "shared_parts_s"]
