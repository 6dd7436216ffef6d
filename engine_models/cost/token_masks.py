"""Structured output: what a grammar's mask over the vocabulary costs a step.

For each constrained row a library (XGrammar) fills a mask of one bit a token on the host, with drafts one for each token that is
verified. It is copied to the device and applied to the logits. An engine that launches the model first fills the masks while it
runs, and samples when both are there; else the masks are filled before. With n masks

    T = max(T_model, fill n) + apply(n)     or     T_model + fill n + apply(n)

and T_model without a drafter's passes, which come after. Ranks that step together wait for the one that has most to fill.

An engine that forms a batch while another runs does so in the thread that fills, once the tokens of the batch before are there
and the masks are filled: its host time of a step grows by `fill n`, and binds where both together take longer than the device.
A grammar is compiled once, before its first request is scheduled, and kept: that time is left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from engine_models.cost.drafting import Drafting
from engine_models.cost.tables import FloatArray
from engine_models.cost.terms import Shard
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.records import dataclass

FILL_S = 40e-6
"""Time to fill the mask of a row [s]. Kind: assumed, between those that XGrammar's developers state for JSON on CPUs of theirs:
3 us (arrays of integers) and 19 (pull request 897, 2026-09), 14 (issue 852, 2026-08), 132 to 144 (30 properties; pull request
913, 2026-09). Bounded strings took milliseconds before its version 0.2.6 (issue 852)."""
OUTLINES_FILL_S = 59.4e-3
"""The same of Outlines 0.1.13, whose states list the tokens that they allow [s]. Kind: measured, mean over the tokens of JSON
documents under some 4,300 schemas, one thread on an EPYC 7V13; half of the tokens take 0.12 ms and less, a quarter 134 ms and
more, where nearly every token is allowed. Source: guidance-ai/jsonschemabench@00c3d018, maskbench/README.md (2025)."""
BYTES_PER_LOGIT = 8.125
"""Read and write of a logit in float32 and its bit [bytes]. Kind: by construction."""


@dataclass(frozen=True)
class TokenMasks:
    """How an engine fills masks.

    overlaps : while the model runs. delays_next : in the thread that then forms the next batch, beside the device.
    threads : that fill them once there are more rows than `alone_rows`, `share_rows` at a time.
    row_s : time of a row [s], whose source `words` tell.
    """

    overlaps: bool
    delays_next: bool = False
    threads: int = 1
    alone_rows: int = 0
    share_rows: int = 1
    row_s: float = FILL_S
    words: str = "assumed: 3 to 144 us are stated for JSON schemas by XGrammar's developers, 2026"

    def fill_s(self, rows: int) -> float:
        """Seconds to fill the masks of so many rows: those of the thread that has most."""
        if rows <= self.alone_rows or self.threads == 1:
            return self.row_s * rows
        rounds = (rows - 1) // (self.share_rows * self.threads)
        return self.row_s * (rounds * self.share_rows + min(self.share_rows, rows - rounds * self.share_rows * self.threads))


class WithMasks(StepCost):
    """Step times with the masks of constrained rows, which with drafts are no runs. All times in seconds."""

    def __init__(self, inner: StepCost, masks: TokenMasks, shard: Shard) -> None:
        self._inner, self._masks = inner, masks
        self._model = inner.model if isinstance(inner, Drafting) else None  # what a drafter's passes follow
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
        self.launch_s, self.launch_wait_s = self._inner.launch_s, self._inner.launch_wait_s
        self.last_s = self._inner.last_s
        rows = max([batch.masked_rows for batch in batches])
        if rows:
            fill_s, apply_s = self._times_s(rows)
            if self._model is not None and self._masks.overlaps:
                device_s += max(0.0, fill_s - self._model.step_s(batches)[0]) + apply_s
            else:
                device_s = (max(device_s, fill_s) if self._masks.overlaps else device_s + fill_s) + apply_s
        return device_s, prefills_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        device_s = self._inner.run_s(shapes, steps)
        rows = max([shape.masked_rows for shape in shapes])
        if rows:
            fill_s, apply_s = self._times_s(rows)
            device_s = (np.maximum(device_s, fill_s) if self._masks.overlaps else device_s + fill_s) + apply_s
        return device_s

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        device_s, rows = self._inner.few_s(shapes, steps), max([shape.masked_rows for shape in shapes])
        if not rows:
            return device_s
        fill_s, apply_s = self._times_s(rows)
        if self._masks.overlaps:
            return [max(step_s, fill_s) + apply_s for step_s in device_s]
        return [step_s + fill_s + apply_s for step_s in device_s]

    def host_s(self, batch: Batch) -> float:
        """As of the base, with the masks where they are filled in its thread."""
        host_s = self._inner.host_s(batch)
        return host_s + self._masks.fill_s(batch.masked_rows) if self._masks.delays_next else host_s


def summary_note(masks: TokenMasks) -> str:
    """One line on what is assumed of them."""
    when = "while the model runs" if masks.overlaps else "while the device waits"
    return (
        f"structured output: the mask of a constrained row takes the host {masks.row_s * 1e6:,.6g} us ({masks.words}), filled "
        f"{when}; compilation of grammars is left out"
    )


OUTLINES = TokenMasks(
    False,
    row_s=OUTLINES_FILL_S,
    words="Outlines 0.1.13, the mean of a public benchmark of JSON schemas; half of the tokens take 118 us and less",
)
"""Masks that Outlines fills row after row once the logits are there."""

__all__ = ["FILL_S", "OUTLINES", "TokenMasks", "WithMasks", "summary_note"]
