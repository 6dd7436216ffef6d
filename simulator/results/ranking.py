"""How sure an order of two predictions is: that the one predicted to be lower is.

Errors of predictions of one model in one format are partly alike, so their ratio is surer than each of them. With log half-widths
w, of normal errors, and a correlation r the ratio's is sqrt(w1^2 + w2^2 - 2 r w1 w2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hardware_profiles.records import dataclass
from simulator.results.intervals import LEVEL

ALIKE_SETTING, ALIKE_MODEL = 0.35, 0.25
"""Correlation of the errors of one engine, device, model and format under different loads and parallelism, and of one model and
format on another device or engine; of others none. Kind: fitted, 2026-11, to TPOT of closed loops of 33 such settings (0.36; 0.16
to 0.30; -0.2 to 0.1)."""
QUANTILE = 1.645
"""Half-width of a 90 % interval over the standard deviation, of a normal distribution."""


@dataclass(frozen=True)
class Estimate:
    """A prediction with the log half-width of its 90 % interval, and what it is of."""

    value: float
    log_half_width: float
    engine: str
    hardware: str
    model: str
    weights: str

    @classmethod
    def of(
        cls, value: float | None, bounds: Sequence[float | None] | None, deployed: Mapping[str, Any]
    ) -> Estimate | None:
        """From its interval (without a lower end the upper counts) and a summary of the deployment; None where either lacks."""
        low, high = bounds or (None, None)
        if not value or not high:
            return None
        named = (str(deployed.get(name, "")) for name in ("engine", "hardware", "model", "weights"))
        return cls(value, math.log(high / low) / 2 if low else math.log(high / value), *named)


def alike(one: Estimate, other: Estimate) -> float:
    """Correlation of the errors of two predictions."""
    if (one.model, one.weights) != (other.model, other.weights):
        return 0.0
    return ALIKE_SETTING if (one.engine, one.hardware) == (other.engine, other.hardware) else ALIKE_MODEL


def confidence(low: Estimate, high: Estimate) -> float:
    """Probability that the first is truly below the second, by the model's error alone.

    >>> one, same = Estimate(1.0, 0.2, "e", "h", "m", "w"), Estimate(1.0, 0.2, "e", "i", "m", "w")
    >>> confidence(one, same)
    0.5
    """
    first, second = low.log_half_width, high.log_half_width
    spread = math.sqrt(first**2 + second**2 - 2 * alike(low, high) * first * second) / QUANTILE
    ratio = math.log(high.value / low.value)
    if spread == 0:
        return 0.5 if ratio == 0 else float(ratio > 0)
    return 0.5 * (1 + math.erf(ratio / spread / math.sqrt(2)))


def sure(share: float) -> bool:
    """Whether an order is told as certain: at the level of the intervals."""
    return share >= LEVEL


def percent(share: float) -> str:
    """A probability in words, never certain.

    >>> percent(0.9999), percent(0.62)
    ('over 99 %', '62 %')
    """
    return "over 99 %" if share > 0.99 else "under 1 %" if share < 0.01 else f"{100 * share:.0f} %"
