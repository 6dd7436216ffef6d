"""What a scenario may say of a synthetic load: lengths, think times, arrivals, shared prefixes, conversations, adapters, images.

Imported when such a key is given (`simulator.later`).
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from simulator.workload.fields import LARGEST_CV, Count, Group, NotNegative, Positive, Rate
from simulator.workload.lengths import lognormal_parameters
from simulator.workload.tables import is_number

# Lengths ------------------------------------------------------------------------------------------


class _Bounded(Group):
    """min, max: samples beyond a bound become the bound [tokens, or seconds]."""

    min: NotNegative | None = None
    max: Positive | None = None

    @model_validator(mode="after")
    def _ordered(self) -> _Bounded:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g}); give min at most max")
        return self


class ConstantLength(_Bounded):
    """Always `value` tokens."""

    kind: Literal["constant"]
    value: Positive


class UniformLength(_Bounded):
    """Whole numbers from `low` to `high`, both included."""

    kind: Literal["uniform"]
    low: Positive
    high: Positive

    @model_validator(mode="after")
    def _range(self) -> UniformLength:
        if math.ceil(self.low) > math.floor(self.high):
            raise ValueError(f"no whole number lies between low ({self.low:g}) and high ({self.high:g}); give low at most high")
        return self


class NormalLength(_Bounded):
    """Normal law, rounded, at least 1 token."""

    kind: Literal["normal"]
    mean: Positive
    std: NotNegative


class LognormalLength(_Bounded):
    """Log-normal law given by its mean and 99th percentile, both met exactly (before min and max)."""

    kind: Literal["lognormal"]
    mean: Positive
    p99: Positive

    @model_validator(mode="after")
    def _solvable(self) -> LognormalLength:
        lognormal_parameters(self.mean, self.p99)
        return self


_PERCENT = Annotated[dict[str, Positive], Field(min_length=2)]


class EmpiricalLength(_Bounded):
    """Measured lengths: `quantiles` ``{p0: 1, p50: 200, p100: 4000}`` joined by lines, or a `file`.

    The file holds one number a line, or is a CSV, JSONL or Parquet file whose column is named after the field
    (``prompt_tokens`` or ``output_tokens``); its values are drawn with replacement.
    """

    kind: Literal["empirical"]
    quantiles: _PERCENT | None = None
    file: str | None = None

    @model_validator(mode="after")
    def _one_source(self) -> EmpiricalLength:
        if (self.quantiles is None) == (self.file is None):
            raise ValueError("an empirical length takes either quantiles or file; give one of them")
        if self.quantiles is not None:
            points = quantile_points(self.quantiles)
            values = [value for _, value in points]
            if values != sorted(values):
                raise ValueError("quantiles decrease, a higher percentile has a smaller value; give them in rising order")
        return self


def quantile_points(quantiles: dict[str, float]) -> list[tuple[float, float]]:
    """Return (level in [0, 1], value), by level, from keys such as ``p99``, ``99`` or ``p99.9``.

    The ends extend flat: below the lowest level given its value holds, above the highest likewise.
    """
    points = []
    for key, value in quantiles.items():
        text = key.lower().removeprefix("p").replace("_", ".")
        if not is_number(text) or not 0 <= float(text) <= 100:
            raise ValueError(f"{key!r} is no percentile; write p0 to p100, such as p50 or p99.9")
        points.append((float(text) / 100, value))
    points.sort()
    if len({level for level, _ in points}) != len(points):
        raise ValueError("a percentile is given twice; keep one")
    return points


def _bare_number(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "constant", "value": value}
    return value


_Length = Annotated[
    ConstantLength | UniformLength | NormalLength | LognormalLength | EmpiricalLength,
    Field(discriminator="kind"),
]
Length = Annotated[_Length, BeforeValidator(_bare_number, json_schema_input_type=float | _Length)]


# Think times --------------------------------------------------------------------------------------


class ExponentialTime(_Bounded):
    """Exponential law [s], the one that forgets: what a bare number means."""

    kind: Literal["exponential"]
    mean: NotNegative


class ConstantTime(ConstantLength):
    """Always `value` seconds."""

    value: NotNegative


class UniformTime(_Bounded):
    """Any time from `low` to `high` [s]."""

    kind: Literal["uniform"]
    low: NotNegative
    high: NotNegative

    @model_validator(mode="after")
    def _range(self) -> UniformTime:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) is above high ({self.high:g}); give low at most high")
        return self


class NormalTime(NormalLength):
    """Normal law [s], at least zero."""


class LognormalTime(LognormalLength):
    """Log-normal law [s] given by its mean and 99th percentile, both met exactly (before min and max)."""


class EmpiricalTime(EmpiricalLength):
    """Measured times [s]: as for lengths, `quantiles` or a `file` (whose column is ``think_time_s``)."""

    quantiles: Annotated[dict[str, NotNegative], Field(min_length=2)] | None = None


def _bare_mean(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {"kind": "exponential", "mean": value}
    return value


_ThinkTime = Annotated[
    ExponentialTime | ConstantTime | UniformTime | NormalTime | LognormalTime | EmpiricalTime,
    Field(discriminator="kind"),
]
ThinkTime = Annotated[_ThinkTime, BeforeValidator(_bare_mean, json_schema_input_type=float | _ThinkTime)]
NO_THINKING: ThinkTime = ExponentialTime(kind="exponential", mean=0.0)


# Arrivals -----------------------------------------------------------------------------------------


class PoissonArrivals(Group):
    """Exponential gaps."""

    kind: Literal["poisson"]
    rate: Rate


class GammaArrivals(Group):
    """Gamma gaps with coefficient of variation `cv` (1 is Poisson, above is burstier)."""

    kind: Literal["gamma"]
    rate: Rate
    cv: Positive

    @model_validator(mode="after")
    def _bounded(self) -> GammaArrivals:
        if not 1 / LARGEST_CV <= self.cv <= LARGEST_CV:
            bounds = f"{1 / LARGEST_CV:g} to {LARGEST_CV:g} (recorded traces: up to 13)"
            raise ValueError(f"cv is {self.cv:g}; give a number from {bounds}")
        return self


class ConstantArrivals(Group):
    """Equal gaps, the first request at time 0."""

    kind: Literal["constant"]
    rate: Rate


class OnOffArrivals(Group):
    """Poisson arrivals whose rate alternates; the periods are exponential with means `on_s` and `off_s`."""

    kind: Literal["onoff"]
    rate_on: Rate
    rate_off: NotNegative
    on_s: Positive
    off_s: Positive


class DiurnalArrivals(Group):
    """Poisson arrivals whose rate is a sinusoid, lowest at time 0, of mean `rate`."""

    kind: Literal["diurnal"]
    rate: Rate
    peak_to_mean: Positive
    period_s: Positive = 86400.0

    @model_validator(mode="after")
    def _sinusoid(self) -> DiurnalArrivals:
        if not 1 <= self.peak_to_mean <= 2:
            raise ValueError(
                f"peak_to_mean is {self.peak_to_mean:g}; give 1 (flat) to 2 (a sinusoid that is zero at its trough)"
            )
        return self


class ClosedLoopArrivals(Group):
    """`concurrency` clients, each with one request at a time, who think for `think_time_s` before each of them.

    A number is the mean of an exponential law, 0 no thinking; another law has the form of a length's, such as
    ``{kind: constant, value: 20}``. The first requests are spread over the first think time.
    """

    kind: Literal["closed_loop"]
    concurrency: Count
    think_time_s: ThinkTime = NO_THINKING


class BatchArrivals(Group):
    """All at time zero."""

    kind: Literal["batch"]


Arrivals = Annotated[
    PoissonArrivals
    | GammaArrivals
    | ConstantArrivals
    | OnOffArrivals
    | DiurnalArrivals
    | ClosedLoopArrivals
    | BatchArrivals,
    Field(discriminator="kind"),
]


# What requests share -------------------------------------------------------------------------------


class SharedPrefix(Group):
    """Each request (or conversation) begins with one of `groups` equally likely prefixes of `tokens` tokens.

    They come on top of `prompt_tokens`, as in the prefix options of the benchmark clients.
    """

    groups: Count
    tokens: Count


class Sessions(Group):
    """Conversations.

    Synthetic: `turns` per conversation and `think_time_s` between the end of a turn and the next (a law as in a closed loop);
    `prompt_tokens` are then a turn's new tokens, the history comes on top, and the arrivals are those of
    conversations. Traces: `replay`, after the recorded gap (`gap`), or not before the recorded time
    (`absolute`). Beside a trace and `arrivals` these are of whole sessions, whose later requests follow by the recorded gaps.
    """

    turns: Length | None = None
    think_time_s: ThinkTime | None = None
    replay: Literal["gap", "absolute"] | None = None


class AdapterMix(Group):
    """Which LoRA adapters requests name: `share` of them one of `count`, the others the model itself.

    All are equally popular, or the k-th is named in proportion to k^-exponent (`zipf`). A conversation keeps its adapter.
    """

    count: Count
    popularity: Literal["uniform", "zipf"] = "uniform"
    exponent: Positive = 1.0
    share: Positive = 1.0

    @model_validator(mode="after")
    def _fraction(self) -> AdapterMix:
        if self.share > 1:
            raise ValueError(f"share is {self.share:g}; give a fraction, at most 1")
        if self.count > MOST_ADAPTERS:
            raise ValueError(f"count is {self.count:,}; give at most {MOST_ADAPTERS:,} adapters")
        return self


class ImageMix(Group):
    """Images in prompts: `share` of the prompts hold `count` of them, each of `tokens` tokens, which are part of the prompt's.

    They stand last in the prompt, each is another, and a prompt without the tokens for all holds fewer.
    """

    tokens: Length
    count: Length = ConstantLength(kind="constant", value=1)
    share: Positive = 1.0

    @model_validator(mode="after")
    def _fraction(self) -> ImageMix:
        if self.share > 1:
            raise ValueError(f"share is {self.share:g}; give a fraction, at most 1")
        return self


MOST_ADAPTERS = 100_000
"""Most adapters of a load; assumed, a guard against slips of the keyboard."""
