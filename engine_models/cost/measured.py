"""Step times from measured steps: a small law, fitted to microbenchmarks of one model on one machine.

    step = products(tokens) + output_s outputs + sum over rows of attention

`products` is a table over whole blocks of `block_tokens` tokens, linear between the measured ones; tokens beyond a whole
block cost `token_s` each (kernels that take several rows at a time and the rest one by one). Attention of a row of one token
costs `cell_s`, by the number of such rows, for each token it attends to. That of a chunk is computed in tiles of
`tile_tokens` by `tile_tokens` pairs, each whole where any of it is needed, for `tile_cell_s` a pair; of a chunk shorter than a
tile as that of one row.

All of it is linear in the unknowns, which are found by non-negative least squares of relative errors. What stands before the
scheduler (`front_s`, once a request) is one more of them, where steps were timed by a client.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from engine_models.cost.tables import FloatArray, PiecewiseLinear
from engine_models.cost.terms import HostOverhead
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass


class Part(NamedTuple):
    """What is computed at once: `rows` rows of `tokens` tokens after `prior_tokens` others (may be a mean); `outputs` yield."""

    rows: int
    tokens: int
    prior_tokens: float
    outputs: int


class MeasuredStep(NamedTuple):
    """Seconds that parts took one after the other, after `fronts` requests had passed what stands before the scheduler."""

    parts: tuple[Part, ...]
    took_s: float
    fronts: int = 0


@dataclass(frozen=True)
class StepLaw:
    """The fitted law: `products` are (tokens, seconds), `cells` (rows of one token, seconds a pair); both rise by the first."""

    block_tokens: int
    products: tuple[tuple[int, float], ...]
    token_s: float
    output_s: float
    cells: tuple[tuple[int, float], ...]
    tile_cell_s: float
    tile_tokens: int

    def errors(self, steps: Iterable[MeasuredStep]) -> FloatArray:
        """Relative errors, predicted over measured less one."""
        return FittedLaw(self, 0.0).errors(steps)


class FittedLaw(NamedTuple):
    """A law, and the time before the scheduler beside it [s]."""

    law: StepLaw
    front_s: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `fitted_from` reads it."""
        return {**asdict(self.law), "front_s": self.front_s}

    def errors(self, steps: Iterable[MeasuredStep]) -> FloatArray:
        """Relative errors, predicted over measured less one."""
        model = MeasuredSteps(self.law, HostOverhead(0.0, 0.0))
        return np.array(
            [(sum(map(model.part_s, step.parts)) + step.fronts * self.front_s) / step.took_s - 1 for step in steps]
        )


def fitted_from(data: Mapping[str, Any]) -> FittedLaw:
    """A law as JSON holds it (`as_dict`). Raises ValueError, KeyError or TypeError for what is none."""
    read = {name: float(data[name]) for name in ("token_s", "output_s", "tile_cell_s", "front_s")}
    block_tokens, tile_tokens = int(data["block_tokens"]), int(data["tile_tokens"])
    products, cells = (tuple((int(at), float(value)) for at, value in data[name]) for name in ("products", "cells"))
    numbers = [*read.values(), *(value for _, value in products + cells)]
    rising = all([at for at, _ in table] == sorted({at for at, _ in table}) for table in (products, cells))
    whole = products and cells and min(block_tokens, tile_tokens) > 0
    if not (whole and rising and all(0 <= value < float("inf") for value in numbers)):
        raise ValueError("a law of steps has rising tables and no negative times")
    law = StepLaw(block_tokens, products, read["token_s"], read["output_s"], cells, read["tile_cell_s"], tile_tokens)
    return FittedLaw(law, read["front_s"])


def fit_law(
    steps: Sequence[MeasuredStep], block_tokens: int = 1, output_share: float = 0.0, tile_tokens: int = 1
) -> StepLaw:
    """`fit_with_front` of steps that no client timed."""
    return fit_with_front(steps, block_tokens, output_share, tile_tokens).law


def fit_with_front(
    steps: Sequence[MeasuredStep],
    block_tokens: int = 1,
    output_share: float = 0.0,
    tile_tokens: int = 1,
    straight_from_tokens: float = float("inf"),
) -> FittedLaw:
    """Fit the law. Attention of counts of single rows that were measured over one context is taken from other counts.

    Products of more than `straight_from_tokens` tokens go on in a straight line, so that what bends beyond it is attention.

    An output costs `output_share` of a single token's products: the share of its weights' bytes.
    Raises InputError for a time that cannot be, and where the steps tell nothing of single rows over two contexts or
    of chunks at two depths.
    """
    for step in steps:
        if not 0.0 < step.took_s < float("inf"):
            raise InputError(
                f"a measured step took {step.took_s:g} seconds",
                where="measurements",
                mend="leave out what was not measured",
            )
    parts = [part for step in steps for part in step.parts]
    contexts = {(part.rows, part.prior_tokens) for part in parts if part.tokens == 1}
    singles = [rows for rows, times in sorted(Counter(rows for rows, _ in contexts).items()) if times > 1]
    chunks = {(part.tokens, part.prior_tokens) for part in parts if part.tokens > 1 and part.tokens >= tile_tokens}
    deep = len({prior for _, prior in chunks}) > 1 or len(chunks) > 2
    if not singles or not deep:
        lacking = "steps of rows that decode over two contexts" if not singles else "prompts after a context"
        raise InputError(
            f"these measurements have no {lacking}",
            where="measurements",
            mend="measure single rows by context, and prompts with and without a context before them",
        )
    nodes = sorted({0} | {_whole(part.rows * part.tokens, block_tokens) for part in parts})
    nodes = [node for at, node in enumerate(nodes) if at < 2 or node <= straight_from_tokens]
    matrix = np.array([_features(step, nodes, singles, tile_tokens, block_tokens, output_share) for step in steps])
    seconds = np.array([step.took_s for step in steps])
    from scipy.optimize import nnls

    found = nnls(matrix / seconds[:, None], np.ones(len(steps)))[0].tolist()
    products, rest = found[: len(nodes)], found[len(nodes) :]
    law = StepLaw(
        block_tokens,
        tuple(zip(nodes, np.cumsum(products).tolist(), strict=True)),
        rest[0],
        rest[0] * output_share,
        tuple(zip(singles, rest[2:-1], strict=True)),
        rest[1],
        tile_tokens,
    )
    return FittedLaw(law, rest[-1])


def cells_of(tokens: int, prior_tokens: float, tile_tokens: int) -> float:
    """Pairs of a token and what it attends to that are computed, in tiles if `tokens` fill one."""
    tile = tile_tokens if tokens >= tile_tokens else 1
    if tile == 1:
        return tokens * prior_tokens + tokens * (tokens + 1) / 2
    reached = (-(-(prior_tokens + min(tokens, end)) // tile) for end in range(tile, tokens + tile, tile))
    return tile * tile * sum(reached)


def _whole(tokens: int, block_tokens: int) -> int:
    return tokens - tokens % block_tokens


def _features(
    step: MeasuredStep, nodes: list[int], singles: list[int], tile_tokens: int, block_tokens: int, output_share: float
) -> list[float]:
    """Factors of the unknowns in a step: rises of the table, a token, a chunk's cell, a cell by rows, the front."""
    out = [0.0] * (len(nodes) + 2 + len(singles)) + [float(step.fronts)]
    for part in step.parts:
        tokens = part.rows * part.tokens
        whole = _whole(tokens, block_tokens)
        out[0] += 1.0
        for at, (node, after) in enumerate(pairwise(nodes), 1):
            share = max(0.0, (whole - node) / (after - node))
            out[at] += share if after == nodes[-1] else min(1.0, share)
        out[len(nodes)] += tokens - whole + output_share * part.outputs
        cells = part.rows * cells_of(part.tokens, part.prior_tokens, tile_tokens)
        if part.tokens > 1 and part.tokens >= tile_tokens:
            out[len(nodes) + 1] += cells
            continue
        for at, share in enumerate(_shares(part.rows if part.tokens == 1 else 1, singles)):
            out[len(nodes) + 2 + at] += share * cells
    return out


def _shares(rows: int, singles: list[int]) -> list[float]:
    """How a count of rows stands between those measured, as weights."""
    return [float(np.interp(rows, singles, [float(each == other) for other in singles])) for each in singles]


class MeasuredSteps(StepCost):
    """Step times of one rank by a law; every row reads its own keys and values. `host` adds the engine's own time of a step."""

    def __init__(self, law: StepLaw, host: HostOverhead) -> None:
        self.law = law
        self.host = host
        nodes = np.array(law.products)
        self._products = PiecewiseLinear(nodes[:, 0], nodes[:, 1]) if len(nodes) > 1 else None
        counts, costs = zip(*law.cells, strict=True)
        self._cell_s: list[float] = np.interp(np.arange(counts[-1] + 1), counts, costs).tolist()

    def _products_s(self, tokens: int, outputs: int) -> float:
        law = self.law
        rest = tokens % law.block_tokens
        table = law.products[0][1] if self._products is None else self._products.at(tokens - rest)
        return table + law.token_s * rest + law.output_s * outputs

    def _row_cell_s(self, rows: int) -> float:
        return self._cell_s[min(rows, len(self._cell_s) - 1)]

    def _chunk_s(self, tokens: int, prior: float, singles: int) -> float:
        cells = cells_of(tokens, prior, self.law.tile_tokens)
        if tokens > 1 and tokens >= self.law.tile_tokens:
            return self.law.tile_cell_s * cells
        return self._row_cell_s(singles if tokens == 1 else 1) * cells

    def part_s(self, part: Part) -> float:
        """Seconds of equal rows."""
        attention_s = part.rows * self._chunk_s(part.tokens, part.prior_tokens, part.rows)
        return self._products_s(part.rows * part.tokens, part.outputs) + attention_s

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """Device seconds of the step of the one rank there is, and the part attributed to its prefill rows."""
        (batch,) = batches
        chunks = batch.prefill
        begun = sum(tokens == 1 for tokens, _ in chunks)  # beside rows that decode: of a prompt's rest no token comes yet
        singles = batch.decode_rows + begun
        products_s = self._products_s(batch.tokens, batch.decode_rows + len(chunks) - begun)
        attention_s = self._row_cell_s(singles) * batch.decode_kv_tokens
        chunks_s = sum((self._chunk_s(tokens, prior, singles) for tokens, prior in chunks), 0.0)
        share = 1.0 - batch.decode_tokens / batch.tokens
        device_s = products_s + attention_s
        return device_s + chunks_s, [products_s * share + chunks_s]

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """Device seconds of `steps` decode steps that begin with the shape of the one rank there is."""
        (shape,) = shapes
        rows = shape.decode_rows
        products_s, cell_s = self._products_s(shape.tokens, rows), self._row_cell_s(rows)
        first = shape.decode_kv_tokens
        attended: Iterable[float] = (
            range(first, first + rows * steps, rows) if shape.kv_by_step is None else shape.kv_by_step[:steps].tolist()
        )
        return [products_s + cell_s * cells for cells in attended]

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """`few_s` in an array."""
        return np.array(self.few_s(shapes, steps))

    def host_s(self, batch: Batch) -> float:
        """Host seconds of a batch."""
        return self.host.step_s + self.host.row_s * (batch.decode_rows + len(batch.prefill))


__all__ = ["FittedLaw", "MeasuredStep", "MeasuredSteps", "Part", "StepLaw", "fit_law", "fit_with_front", "fitted_from"]
