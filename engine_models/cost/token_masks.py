"""Structured output: what a grammar's mask over the vocabulary costs a step.

For each constrained row a library (XGrammar) fills a mask of one bit a token on the host, which is copied to the device and
applied to the logits. An engine that launches the model first fills the masks while it runs, and samples when both are there;
else the masks are filled before. With n constrained rows

    T = max(T_model, fill n) + apply(n)     or     T_model + fill n + apply(n)

A grammar is compiled once, before its first request is scheduled, and kept: that time is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine_models.cost.tables import FloatArray
from engine_models.cost.terms import Shard
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost

FILL_S = 40e-6
"""Time to fill the mask of a row [s]. Kind: measured, by XGrammar's authors (Dong et al. 2024, arXiv:2411.15100: under 40 us a
token for JSON grammars on one core); other grammars and hosts differ."""
BYTES_PER_LOGIT = 8.125
"""Read and write of a logit in float32 and its bit [bytes]. Kind: by construction."""


@dataclass(frozen=True)
class TokenMasks:
    """How an engine fills masks.

    overlaps : while the model runs. threads : that fill them once there are more rows than `alone_rows`.
    """

    overlaps: bool
    threads: int = 1
    alone_rows: int = 0

    def fill_s(self, rows: int) -> float:
        """Seconds to fill the masks of so many rows."""
        return FILL_S * rows / (self.threads if rows > self.alone_rows else 1)


class WithMasks(StepCost):
    """Step times with the masks of constrained rows. All times in seconds."""

    def __init__(self, inner: StepCost, masks: TokenMasks, shard: Shard) -> None:
        self._inner, self._masks = inner, masks
        self._ops, self._row_bytes = shard.ops, BYTES_PER_LOGIT * shard.arch.vocab
        self._known: dict[int, tuple[float, float]] = {}

    def _times_s(self, rows: int) -> tuple[float, float]:
        """To fill and to apply the masks of so many rows."""
        found = self._known.get(rows)
        if found is None:
            apply_s = float(self._ops.elementwise_s(np.array([rows * self._row_bytes]))[0])
            found = self._known[rows] = self._masks.fill_s(rows), apply_s
        return found

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base."""
        device_s, prefills_s = self._inner.step_s(batches)
        rows = batches[0].masked_rows
        if rows:
            fill_s, apply_s = self._times_s(rows)
            device_s = (max(device_s, fill_s) if self._masks.overlaps else device_s + fill_s) + apply_s
        return device_s, prefills_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        device_s = self._inner.run_s(shapes, steps)
        rows = shapes[0].masked_rows
        if rows:
            fill_s, apply_s = self._times_s(rows)
            device_s = (np.maximum(device_s, fill_s) if self._masks.overlaps else device_s + fill_s) + apply_s
        return device_s

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        device_s, rows = self._inner.few_s(shapes, steps), shapes[0].masked_rows
        if not rows:
            return device_s
        fill_s, apply_s = self._times_s(rows)
        if self._masks.overlaps:
            return [max(step_s, fill_s) + apply_s for step_s in device_s]
        return [step_s + fill_s + apply_s for step_s in device_s]

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self._inner.host_s(batch)


def summary_note(masks: TokenMasks) -> str:
    """One line on what is assumed of them."""
    when = "while the model runs" if masks.overlaps else "before the model runs"
    return (
        f"structured output: the mask of a constrained row takes the host {FILL_S * 1e6:g} us (measured by XGrammar's authors "
        f"for JSON, 2024; assumed for other grammars and hosts), filled {when}; compilation of grammars is left out"
    )


__all__ = ["FILL_S", "TokenMasks", "WithMasks", "summary_note"]
