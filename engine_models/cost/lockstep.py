"""Step times of ranks that share experts: data-parallel attention (vLLM's data parallelism of MoE models, SGLang's DP attention).

Each of D data-parallel ranks (of TP devices) computes attention and dense layers for its own rows; before a layer of experts the
hidden states of all ranks are gathered, after it every rank gets back its own sums. A layer of experts waits for all ranks, so

    step = max over ranks ( dense layers(m_r) + attention_r + LM head and sampling(rows_r) )
           + sum over layers of experts ( all-gather(T) + experts(T) + reduce-scatter(T) )

m_r are the tokens of rank r, T those of all ranks. In a CUDA graph all ranks are padded to the size that holds the largest
(vLLM `coordinate_batch_across_dp`, SGLang's `MAX_LEN` padding), so T = D m; outside of graphs each brings its own tokens, an
idle rank one dummy token. The transfers are an all-gather and a reduce-scatter over the D ranks of activations in 16 bit
(vLLM's default `allgather_reducescatter`, SGLang's gather and scatter without an all-to-all backend).

Source: vLLM `v1/worker/dp_utils.py`, `distributed/device_communicators/all2all.py`; SGLang `layers/dp_attention.py`,
`managers/scheduler_dp_attn_mixin.py` (public copies, read 2026-11).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine_models.cost.step_time import (
    FloatArray,
    Formats,
    HostOverhead,
    IntArray,
    PiecewiseLinear,
    StepTimeModel,
    log_grid,
)
from engine_models.model.architecture import moe_shapes
from engine_models.model.blocks import Architecture
from engine_models.parts.batch import Batch
from hardware_profiles.ops import Ops

#: Bytes of a value that the ranks exchange: activations travel in 16 bit. kind: datasheet (the engines' code, above).
EXCHANGED_BYTES = 2.0
#: Bytes of one choice of an expert that travels with a token: index and weight, 32 bit each. kind: datasheet (likewise).
CHOICE_BYTES = 8.0
#: Operations that the host launches for the exchange around a layer of experts: gather, scatter. kind: by construction.
EXCHANGE_LAUNCHES = 2


class DataParallelTimes(StepTimeModel):
    """Step times of a group of `data_parallel` ranks that share experts; the other parameters as of `StepTimeModel`.

    `parts_s` holds what a rank does for its own tokens, `shared_parts_s` what all ranks do for the tokens of all.
    """

    def __init__(
        self,
        arch: Architecture,
        kernels: Ops,
        formats: Formats,
        host: HostOverhead,
        *,
        data_parallel: int,
        graph_sizes: tuple[int, ...] = (),
        max_step_tokens: int = 8192,
        **options: Any,
    ) -> None:
        self._ranks = data_parallel
        super().__init__(
            arch, kernels, formats, host, graph_sizes=graph_sizes, max_step_tokens=max_step_tokens, **options
        )
        self._graph_sizes = sorted(size for size in graph_sizes if size <= max_step_tokens)
        grid = log_grid(data_parallel * max_step_tokens, 8)
        values = sum(self.shared_parts_s(grid).values())
        assert isinstance(values, np.ndarray)
        table = PiecewiseLinear(grid.astype(float), np.maximum.accumulate(values))
        self._shared_s: list[float] = table.over(
            np.arange(data_parallel * max_step_tokens + 1, dtype=float)
        ).tolist()

    def launches(self) -> float:
        """Operations that the host launches in a step of a rank without CUDA graphs."""
        exchanged = sum(mlp.layers for mlp in self._stage.mlp if mlp.kind == "moe")
        return super().launches() + EXCHANGE_LAUNCHES * exchanged

    def expert_parts_s(self, m: IntArray) -> dict[str, FloatArray]:
        """Nothing: experts are not timed by the tokens of one rank."""
        return {}

    def shared_parts_s(self, tokens: IntArray) -> dict[str, FloatArray]:
        """Seconds of the layers of experts and of the exchange around them for `tokens` tokens of all ranks together."""
        kernels, ranks = self._kernels, self._ranks
        shapes = moe_shapes(self._stage, self._tp, self._ep, ranks)
        width = np.asarray(tokens, dtype=np.float64) * self._stage.hidden * EXCHANGED_BYTES
        exchange = np.zeros(len(tokens))
        waits_s = (
            2.0 * self.host.reduce_wait_s if ranks > 1 else 0.0
        )  # as at the two all-reduces of a layer under TP
        for moe in shapes:
            choices = CHOICE_BYTES * moe.topk * np.asarray(tokens, dtype=np.float64)
            gather_s, scatter_s = (
                kernels.all_gather_s(ranks, width + choices),
                kernels.reduce_scatter_s(ranks, width),
            )
            exchange += moe.layers * (gather_s + scatter_s + waits_s)
        return {"experts": self.experts_s(shapes, tokens), "exchange between ranks": exchange}

    def _of_group(self, tokens: list[int], captured: bool) -> tuple[int, int]:
        """Most tokens of a rank after padding (0: each its own), and the tokens of all ranks."""
        most = max(tokens)
        if captured and most <= self._graph_tokens:
            padded = self._graph_sizes[bisect_left(self._graph_sizes, most)]
            return padded, padded * self._ranks
        return 0, sum(tokens) + self._ranks - len(tokens)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """Device seconds of one step of the group, and the part of it attributed to prefill rows, for each rank.

        `batches` are those of the ranks that have work. All wait for the slowest rank's prompts, and spend that time alike.
        """
        prefills = any(batch.prefill for batch in batches)
        most = max(batch.tokens for batch in batches)
        held = most <= self.host.prefill_graph_tokens  # a step with a prefill, by a graph
        captured = not prefills or held or not self.host.prefill_launch_s
        padded, total = self._of_group([batch.tokens for batch in batches], captured)
        shared = self._shared_s[total]
        slowest = of_prompts = 0.0
        for batch in batches:
            rows = batch.decode_rows
            linear = self._linear_s[padded or batch.tokens]
            table = self._decode_table(rows, bool(batch.prefill)) if rows else None
            attention = table.at(float(batch.decode_kv_tokens)) if table is not None else 0.0
            prefill = 0.0
            for new, prior in batch.prefill:
                prefill += self.prefill_attention_s(new, prior) - self._prefill_floor_s
            if batch.prefill and not rows:
                prefill += self._prefill_floor_s
            own = linear + self._rows_s[rows + len(batch.prefill)] + attention + prefill
            if own > slowest:
                slowest = own
                of_prompts = linear * (1 - batch.decode_tokens / batch.tokens) + prefill
        of_prompts += shared * (1 - sum(b.decode_tokens for b in batches) / sum(b.tokens for b in batches))
        least = self._least_s(most)
        if prefills:  # the ranks launch alike: one that prefills outside of graphs takes the others with it
            least = self._launches_graph_s if held else max(least, self._launches_prefill_s)
        return max(slowest + shared, least), [of_prompts] * len(batches)

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """Device seconds of `steps` pure decode steps that begin with the shapes of the ranks that have work."""
        padded, total = self._of_group([shape.decode_rows for shape in shapes], True)
        slowest = np.zeros(steps)
        for shape in shapes:
            rows = shape.decode_rows
            attended = (shape.decode_kv_tokens + rows * np.arange(steps)).astype(np.float64)
            fixed = self._linear_s[padded or rows] + self._rows_s[rows]
            slowest = np.maximum(slowest, fixed + self._decode_table(rows).over(attended))
        least = self._least_s(max(shape.decode_rows for shape in shapes))
        return np.maximum(slowest + self._shared_s[total], least)

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """`run_s` as plain numbers."""
        few: list[float] = self.run_s(shapes, steps).tolist()
        return few

    # the same by the numbers of the batches

    def group_s(self, batches: list[Batch]) -> tuple[float, list[float]]:
        """`step_s` of the group."""
        return self.step_s(batches)

    def group_decode_run_s(self, loads: list[tuple[int, int]], steps: int) -> FloatArray:
        """`run_s` of the group; `loads` are rows and KV tokens of each rank that has work."""
        return self.run_s([Batch(0, rows, rows, kv_tokens) for rows, kv_tokens in loads], steps)
