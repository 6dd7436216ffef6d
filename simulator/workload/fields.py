"""Numbers of a load, with their bounds and what is said where they are beyond."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from simulator.workload.tables import is_number


class Group(BaseModel):
    """A group of keys: frozen, complete with defaults, no key that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


SMALLEST, LARGEST = 1e-12, 1e12
"""Bounds of every number of a load but zero: seconds, tokens, requests, weights (assumed). A clock of 64 bits that has
counted 1e12 s (31,700 years) still tells 0.1 ms from the next, and no prompt has 1e12 tokens."""
SLOWEST = 1e-9
"""Lowest rate [1/s], one request in 32 years (assumed)."""
LARGEST_CV = 1000.0
"""Largest coefficient of variation of gaps (assumed): requests then come in bursts of about half its square."""


def _number(value: Any) -> Any:
    """Refuse what is no number in words, before pydantic's own terser message."""
    if isinstance(value, bool) or (isinstance(value, str) and not is_number(value)):
        raise ValueError(f"{value!r} is not a number; give one")
    return value


def _finite(value: float) -> float:
    if value != value:
        raise ValueError("is NaN; give a number")
    if abs(value) > LARGEST:
        if isinstance(value, float) and math.isinf(value):
            raise ValueError("is infinite; give a finite number")
        shown = f"{value:.3g}" if abs(value) < 1e300 else "beyond all bounds"  # such a whole number is no float
        raise ValueError(f"is {shown}; give a number of at most {LARGEST:g}")
    return value


def _positive(value: float) -> float:
    if _finite(value) <= 0:
        raise ValueError(f"is {value:g}; give a number above zero")
    if value < SMALLEST:
        raise ValueError(f"is {value:g}; give a number of at least {SMALLEST:g}")
    return value


def _not_negative(value: float) -> float:
    if _finite(value) < 0:
        raise ValueError(f"is negative ({value:g}); give zero or more")
    return value


def _rate(value: float) -> float:
    if _finite(value) < 0:
        raise ValueError(f"a rate of {value:g} per second is negative; give a rate above zero")
    if value == 0:
        raise ValueError("a rate of zero offers no request; give a rate above zero")
    if value < SLOWEST:
        raise ValueError(f"a rate of {value:g} per second offers no request in a lifetime; give at least {SLOWEST:g}")
    return value


Positive = Annotated[float, BeforeValidator(_number), AfterValidator(_positive)]
NotNegative = Annotated[float, BeforeValidator(_number), AfterValidator(_not_negative)]
Rate = Annotated[float, BeforeValidator(_number), AfterValidator(_rate)]
Count = Annotated[int, BeforeValidator(_number), AfterValidator(_positive)]
