"""What a step's time is made of.

A step is the sum over the operations of the layer stack on one rank, each timed by the device's operations:

    step = sum over layers ( linear layers(m) + experts(m) + attention + collectives(m) + norms, rotary, activation(m) )
           + LM head(rows) + sampling(rows) + the device's fixed cost of a step

and, where no CUDA graph holds the batch (it has more tokens than the largest graph, or nothing is captured), no less than the
host takes to launch the operations one by one:

    step >= launches * host.launch_s

(with `host.prefill_launch_s` for steps that prefill and have no graph of their own, where those of decode steps do not hold
them; a step of more rows than the largest graph goes the same way, whether its rows are prompts or answers, unless
`host.decode_launch_s` is known).

m is the number of tokens in the step after padding, rows the number of sequences that yield a token. The terms that depend on m
or rows alone stand in :mod:`engine_models.cost.terms`, attention in :mod:`engine_models.cost.attention`.

All kernel times are tabulated once, when a deployment is set up; a step then costs a few look-ups. The same arithmetic serves
one step and a run of steps, so jumping and stepping agree to the last bit.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from engine_models.cost.attention import DecodeAttention, PrefillAttention
from engine_models.cost.tables import FloatArray, PiecewiseLinear, distinct, log_grid
from engine_models.cost.terms import ROW_TERMS, TOKEN_TERMS, IntArray, Shard, parts_s
from engine_models.model.architecture import kv_bytes_per_token
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost

FEW_IN_WINDOWS = 16
"""Up to so many steps plain numbers are quicker than arrays where layers have windows (timed, 2026-11)."""


@dataclass(frozen=True)
class TableRange:
    """Up to what a deployment's steps are tabulated."""

    step_tokens: int = 8192
    rows: int = 1024
    context_tokens: int = 131072


def gather_token_s(shard: Shard) -> float:
    """Seconds for each KV token of a step that gathers: its bytes in all layers, so many times over the memory."""
    passes = shard.terms.gather_factor
    if not passes:
        return 0.0
    token_bytes = passes * kv_bytes_per_token(
        shard.arch, shard.formats.kv_cache, shard.parallel.tensor, shard.parallel.pipeline
    )
    few, many = shard.ops.elementwise_s(np.array([1e9, 2e9])).tolist()
    return float(token_bytes * (many - few) / 1e9)


class Launches:
    """CUDA graphs of a shard: what they pad to, and the least time of a step whose operations the host launches one by one."""

    def __init__(self, shard: Shard, max_step_tokens: int) -> None:
        host, launches = shard.terms.host, shard.launches()
        self.sizes = sorted(size for size in shard.terms.graph_sizes if size <= max_step_tokens)
        self.largest = max(self.sizes, default=0)
        self._exact = set(self.sizes) if shard.terms.exact_graphs else None
        self._host = host
        self._step_s = host.launch_s * launches
        between = shard.recurrent_launches if shard.terms.splits_graphs else 0.0
        between_s = host.launch_s * between
        self._prefill_s = host.prefill_launch_s and host.prefill_launch_s * (launches - between) + between_s
        self._graph_s = host.prefill_graph_launch_s * (launches - between) + between_s
        if self.sizes:  # beside graphs one way is left, for answers as for prompts
            decode_s = host.decode_launch_s * (launches - between) + between_s if host.decode_launch_s else self._prefill_s
            self._step_s = max(self._step_s, decode_s)

    def least_s(self, tokens: int, prefills: bool) -> float:
        """Least device time of a step of so many tokens."""
        step_s = 0.0 if self._holds(tokens) else self._step_s
        if not prefills:
            return step_s
        return self._graph_s if tokens <= self._host.prefill_graph_tokens else max(step_s, self._prefill_s)

    def _holds(self, tokens: int) -> bool:
        return tokens <= self.largest if self._exact is None else tokens in self._exact

    def tables_s(self, max_tokens: int) -> tuple[list[float], list[float]]:
        """`least_s` for 0 to `max_tokens` tokens, of steps that only decode and of those that prefill."""
        begins = {0, self.largest + 1, self._host.prefill_graph_tokens + 1, max_tokens + 1}
        if self._exact is not None:
            begins |= {at for size in self._exact for at in (size, size + 1)}
        stretches = list(pairwise(sorted(at for at in begins if at <= max_tokens + 1)))

        def table(prefills: bool) -> list[float]:
            found: list[float] = []
            for at, to in stretches:
                found += [self.least_s(at, prefills)] * (to - at)
            return found

        return table(False), table(True)

    def captured(self, tokens: int, prefills: bool) -> bool:
        """Whether a graph may hold the step of ranks in lockstep."""
        if not self._holds(tokens):
            return False
        return not prefills or tokens <= self._host.prefill_graph_tokens or not self._host.prefill_launch_s

    def padded(self, tokens: int) -> int:
        """The graph that holds so many tokens."""
        return self.sizes[bisect_left(self.sizes, tokens)]


def attended_by(shape: Batch, steps: int) -> Sequence[float]:
    """KV tokens that the decoding rows of a run's shape attend to, by step, shape (steps,)."""
    if shape.kv_by_step is None:
        first, rows = shape.decode_kv_tokens, shape.decode_rows
        return range(first, first + rows * steps, rows)
    found: list[float] = shape.kv_by_step[:steps].astype(np.float64).tolist()
    return found


class StepTimeModel(StepCost):
    """Step times of one replica (one rank of it: ranks work alike, collectives included), or of one rank's own part.

    Parameters
    ----------
    shard : what a rank computes, with which operations; with a pipeline the times are those of its slowest stage.
    up_to : the range to tabulate.
    """

    def __init__(self, shard: Shard, up_to: TableRange) -> None:
        terms = shard.terms
        self.shard = shard
        self.host = terms.host
        self._host_step_s, self._host_row_s = terms.host.step_s, terms.host.row_s
        self._samples_drafts = terms.sampled_tokens > 1
        self._lone_decodes = terms.lone_tokens_decode
        self.launches = Launches(shard, up_to.step_tokens)
        self._linear_s = self._tabulated_tokens(up_to.step_tokens)
        self._rows_s = self._tabulated_rows(up_to.rows * terms.sampled_tokens)
        self._decode = DecodeAttention(shard, up_to.rows, up_to.context_tokens)
        self._prefill = PrefillAttention(shard, up_to.step_tokens, up_to.context_tokens)
        self._least_s, self._least_prefill_s = self.launches.tables_s(up_to.step_tokens)
        self._gather_token_s = gather_token_s(shard)

    def parts_s(self, m: IntArray) -> dict[str, FloatArray]:
        """Seconds of each token-wise operation of a stage for `m` tokens a step, summed over its layers."""
        return parts_s(TOKEN_TERMS, self.shard, m)

    def _tabulated_tokens(self, max_tokens: int) -> list[float]:
        sizes = np.array(self.launches.sizes or [0], dtype=np.int64)
        top = int(sizes[-1])
        beyond = log_grid(max(max_tokens, top + 1), 6)
        grid = distinct(np.concatenate([sizes[sizes > 0], beyond[beyond > top], [top + 1]]))
        values = sum(self.parts_s(grid).values(), np.zeros(len(grid)))
        table = PiecewiseLinear(grid.astype(float), np.maximum.accumulate(values))
        padded = np.arange(max_tokens + 1)
        if top and not self.shard.terms.exact_graphs:
            inside = padded <= top
            padded[inside] = sizes[np.searchsorted(sizes, padded[inside])]
        found: list[float] = table.over(padded.astype(float)).tolist()
        return found

    def _tabulated_rows(self, max_rows: int) -> list[float]:
        rows = log_grid(max_rows, 4)
        total = sum(parts_s(ROW_TERMS, self.shard, rows).values(), np.zeros(len(rows)))
        table = PiecewiseLinear(rows.astype(float), np.maximum.accumulate(total))
        found: list[float] = (table.over(np.arange(max_rows + 1, dtype=float)) + self.host.device_step_s).tolist()
        return found

    # -- steps ----------------------------------------------------------------------------------------------

    def as_run(self, batch: Batch) -> Batch:
        """The batch, or its shape as one of decoding rows where the engine runs it so (`Terms.lone_tokens_decode`)."""
        lone = len(batch.prefill)
        if not (lone and self._lone_decodes) or batch.tokens - lone != batch.decode_rows:
            return batch
        return batch.as_decodes()

    def own_s(self, batch: Batch, tokens: int) -> tuple[float, float, float]:
        """Device seconds of a batch padded to `tokens`, launches apart; of them those by tokens, and the attention of chunks."""
        rows = batch.decode_rows
        sampled = batch.decode_tokens if self._samples_drafts else rows
        linear_s = self._linear_s[tokens]
        attention_s = self._decode.batch_s(batch) if rows else 0.0
        chunks = batch.prefill
        if batch.gathers:
            attention_s += self._gather_token_s * (batch.decode_kv_tokens + sum(map(sum, chunks)))
        if not chunks:
            return linear_s + self._rows_s[sampled] + attention_s, linear_s, 0.0
        prefill_s = self._prefill.batch_s(batch)
        return linear_s + self._rows_s[sampled + len(chunks)] + attention_s + prefill_s, linear_s, prefill_s

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """Device seconds of the step of the one rank there is, and the part attributed to its prefill rows."""
        batch = self.as_run(batches[0])
        tokens = batch.padded_tokens or batch.tokens
        device_s, linear_s, prefill_s = self.own_s(batch, tokens)
        if not batch.prefill:
            self.launch_s = 0.0
            least_s = self._least_s[tokens] / batch.launchers
            return (device_s if device_s > least_s else least_s), [0.0]
        least_s = self._least_prefill_s[tokens] / batch.launchers
        self.launch_s = least_s if self.launches.sizes else 0.0
        self.launch_wait_s = least_s - device_s if least_s > device_s else 0.0
        share = (batch.tokens - batch.decode_tokens) / batch.tokens
        return (device_s if device_s > least_s else least_s), [linear_s * share + prefill_s]

    def own_run_s(self, shape: Batch, tokens: int, steps: int) -> FloatArray:
        """`own_s` of `steps` steps of a run that begins with `shape`, in an array."""
        sampled = shape.decode_tokens if self._samples_drafts else shape.decode_rows
        attention_s = self._decode.over(shape, steps)
        if shape.gathers:
            attended = shape.decode_kv_tokens + shape.grows * np.arange(steps)
            attention_s = attention_s + self._gather_token_s * attended
        return (self._linear_s[tokens] + self._rows_s[sampled]) + attention_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """Device seconds of `steps` pure decode steps that begin with the shape of the one rank there is."""
        shape = shapes[0]
        tokens = shape.padded_tokens or shape.tokens
        return np.maximum(self.own_run_s(shape, tokens, steps), self._least_s[tokens])

    def few_s(self, shapes: Sequence[Batch], steps: int, attended: Sequence[float] | None = None) -> list[float]:
        """`run_s` as plain numbers, equal to the last bit: quicker for few steps. `attended` is `attended_by`, if known."""
        shape = shapes[0]
        if shape.gathers or (steps > FEW_IN_WINDOWS and self._decode.windows):
            found: list[float] = self.run_s(shapes, steps).tolist()
            return found
        rows = shape.decode_rows
        tokens = shape.padded_tokens or shape.tokens
        fixed = self._linear_s[tokens] + self._rows_s[shape.decode_tokens if self._samples_drafts else rows]
        least = self._least_s[tokens]
        if self._decode.windows or shape.pool_cells:
            return [max(fixed + attention, least) for attention in self._decode.few(shape, steps)]
        if attended is None:
            first = shape.decode_kv_tokens
            attended = range(first, first + rows * steps, rows) if shape.kv_by_step is None else attended_by(shape, steps)
        return self._along(rows, fixed, least, attended)

    def passes_s(self, rows: int, attended: Sequence[float], passes: int = 1) -> list[float]:
        """Device seconds of so many passes in turn of `rows` rows of one token, each of which attends to that of the one before
        too, by the KV tokens that the first attends to, which rise.
        """
        fixed, least = self._linear_s[rows] + self._rows_s[rows], self._least_s[rows]
        if self._decode.windows:
            found = [0.0] * len(attended)
            for ahead in range(0, passes * rows, rows):
                each = [Batch(0, rows, rows, int(kv_tokens) + ahead, tokens=rows) for kv_tokens in attended]
                later_s = [max(fixed + self._decode.batch_s(batch), least) for batch in each]
                found = [sum_s + pass_s for sum_s, pass_s in zip(found, later_s, strict=True)]
            return found
        table = self._decode.full(rows)
        nodes = table.nodes
        i = bisect_right(nodes, float(attended[0])) or 1
        if i == len(nodes) or attended[-1] + (passes - 1) * rows < nodes[i]:  # all in one stretch: as `_along`, without its calls
            node, value, slope = nodes[i - 1], table.values[i - 1], table.slopes[i - 1]
            found = [fixed + (value + slope * (x - node)) for x in attended]
            if found[0] > least and slope >= 0.0:
                for ahead in range(rows, passes * rows, rows):
                    pairs = zip(found, attended, strict=True)
                    found = [sum_s + (fixed + (value + slope * (x + ahead - node))) for sum_s, x in pairs]
                return found
        found = self._along(rows, fixed, least, attended)
        for ahead in range(rows, passes * rows, rows):
            later_s = self._along(rows, fixed, least, [kv_tokens + ahead for kv_tokens in attended])
            found = [sum_s + pass_s for sum_s, pass_s in zip(found, later_s, strict=True)]
        return found

    def _along(self, rows: int, fixed: float, least: float, attended: Sequence[float]) -> list[float]:
        table = self._decode.full(rows)
        nodes, values, slopes = table.nodes, table.values, table.slopes
        i = bisect_right(nodes, float(attended[0])) or 1  # where the stretch that holds the first ends
        if i == len(nodes) or attended[-1] < nodes[i]:  # and all: they rise
            node, value, slope = nodes[i - 1], values[i - 1], slopes[i - 1]
            alike = [fixed + (value + slope * (x - node)) for x in attended]
            return alike if alike[0] > least else [max(device, least) for device in alike]
        at, steps = 0, len(attended)
        out: list[float] = []
        while at < steps:  # one stretch of the table after the other
            node, value, slope = nodes[i - 1], values[i - 1], slopes[i - 1]
            to = steps if i == len(nodes) or attended[-1] < nodes[i] else bisect_left(attended, nodes[i], at)
            out += [fixed + (value + slope * (x - node)) for x in attended[at:to]]
            at, i = to, i + 1
        return out if min(out) > least else [max(device, least) for device in out]

    def host_s(self, batch: Batch) -> float:
        """Host seconds of a batch."""
        return self._host_step_s + self._host_row_s * (batch.decode_rows + len(batch.prefill))
