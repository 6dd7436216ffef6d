"""Values of a scenario's keys: texts, and numbers with their bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict


class Group(BaseModel):
    """A group of keys: frozen, complete with defaults, no key that is not known."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


def _as_name(value: Any) -> Any:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _least(bound: float) -> AfterValidator:
    """Refuse positive numbers below a bound; those of zero and less are named otherwise."""

    def check(value: float) -> float:
        if value < bound:
            raise ValueError(f"is {value:g}; give a number of at least {bound:g}")
        return value

    return AfterValidator(check)


Text = Annotated[str, Strict(), Field(min_length=1)]
Name = Annotated[str, Strict(), BeforeValidator(_as_name), Field(min_length=1)]
"""A name may be a number: `hardware: 4090`."""
Whole = Annotated[int, Strict(), Field(ge=1, le=10**12)]
NotNegative = Annotated[float, Strict(), Field(ge=0, le=1e15, allow_inf_nan=False)]
AboveZero = Annotated[float, Strict(), Field(gt=0, le=1e15, allow_inf_nan=False), _least(1e-15)]
"""Bounds of a deployment's numbers, whatever their unit (assumed, far above what any device or price has)."""
BytesPerSecond = Annotated[float, Strict(), Field(gt=0, le=1e15, allow_inf_nan=False), _least(1e3)]
"""No slower than a modem's (assumed): what waits for a transfer looks for it again and again."""
Delay = Annotated[float, Strict(), Field(ge=0, le=3600, allow_inf_nan=False)]
"""At most an hour [s] (assumed)."""
Bool = Annotated[bool, Strict()]

MAX_REPLICAS = 10_000
"""Most replicas of a pool, and ranks of one; assumed, a guard against slips of the keyboard."""
Ranks = Annotated[int, Strict(), Field(ge=1, le=MAX_REPLICAS)]
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]


def as_text(value: object) -> object:
    """A word that was written as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
