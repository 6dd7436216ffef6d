"""What a server that has just started makes its first requests wait for: kernels that are compiled when first used, first steps.

Triton compiles a kernel anew for every set of tiles, and for whether 16 divides each of its whole-number arguments. The two
products of a layer of experts have two such arguments that follow from a step's tokens: the chosen rows, tokens x experts a
token, and the length of their padded lists, rows + lists x (tile - 1), with tiles of a multiple of 16 rows. Tiles are those tuned
for the nearest number of tokens. What start-up runs is compiled there: the sizes of CUDA graphs, and vLLM's largest step. So the
first step of each kind waits, whatever the layer, and none after it.

How far that holds for measured runs on fresh servers: `docs/background/step_time.md`.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine_models.parts.batch import Batch
from engine_models.parts.protocols import FloatArray, StepCost
from hardware_profiles.records import dataclass

ALIGNED = 16
"""Triton compiles apart for arguments that this divides (datasheet: `triton/backends/compiler.py`, version 3)."""
FIRST_S = 0.055
"""Seconds that the first request of a server waits longer in its front end and first step. kind: measured, 2026-02, source: nine
runs of dense models in the same suite, 0.03 to 0.11, median 0.055; no cause known."""


@dataclass(frozen=True)
class FirstUse:
    """What a fresh server of a deployment waits for.

    Parameters
    ----------
    grid : tokens of a step for which tiles of experts are tuned; empty where no kernel is compiled on first use.
    lists, chosen : lists of rows that are padded, one an expert of a layer, and experts a token.
    captured_tokens : steps of up to so many tokens are padded to what was captured.
    tried : numbers of tokens that start-up runs besides.
    kind_s : seconds to compile both products for a kind of step.
    second_s : what the second step takes longer [s].
    """

    grid: tuple[int, ...] = ()
    lists: int = 0
    chosen: int = 0
    captured_tokens: int = 0
    tried: tuple[int, ...] = ()
    kind_s: float = 0.0
    second_s: float = 0.0

    def kind(self, tokens: int) -> tuple[int, bool, bool] | None:
        """What is compiled for a step of so many tokens; None where nothing is."""
        if not self.grid or tokens <= self.captured_tokens:
            return None
        tiles = min(self.grid, key=lambda size: abs(size - tokens))
        rows = tokens * self.chosen
        return tiles, (rows - self.lists) % ALIGNED == 0, rows % ALIGNED == 0

    @property
    def words(self) -> str:
        """What is waited for, for people."""
        second = f", the second step {self.second_s:.2g} s (cause unknown)" if self.second_s else ""
        kinds = f", the first step of each kind {self.kind_s:g} s until its kernels of experts are compiled" if self.grid else ""
        return (
            f"servers are cold: the first request waits {FIRST_S:g} s{second}{kinds}; measured on H100, elsewhere assumed; what "
            "else is compiled or tuned on first use is not counted"
        )

    @property
    def known(self) -> set[tuple[int, bool, bool]]:
        """Kinds that start-up has compiled."""
        return {kind for tokens in self.tried if (kind := self.kind(tokens)) is not None}


class Fresh(StepCost):
    """Step times of servers that have just started: each waits once for each of these (see the head of the module)."""

    def __init__(self, cost: StepCost, law: FirstUse) -> None:
        self._cost, self._law = cost, law
        self._known = law.known
        self._steps = 0
        self.taken_alone = 2

    def of_server(self) -> StepCost:
        """Of one that has compiled nothing yet."""
        return Fresh(self._cost, self._law)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base, and what is waited for; steps without prompts are those that start-up has captured."""
        device_s, prefills_s = self._cost.step_s(batches)
        self.launch_s, self.launch_wait_s = self._cost.launch_s, self._cost.launch_wait_s
        self.first_s, self.last_s = self._cost.first_s, self._cost.last_s
        waits_s = FIRST_S if self._steps == 0 else self._law.second_s if self._steps == 1 else 0.0
        self._steps += 1
        for batch in batches:
            kind = self._law.kind(batch.tokens) if batch.prefill else None
            if kind is not None and kind not in self._known:
                self._known.add(kind)
                waits_s += self._law.kind_s
        if not waits_s:
            return device_s, prefills_s
        return device_s + waits_s, [each and each + waits_s for each in prefills_s]

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        return self._cost.run_s(shapes, steps)

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        return self._cost.few_s(shapes, steps)

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self._cost.host_s(batch)


__all__ = ["FIRST_S", "FirstUse", "Fresh"]
