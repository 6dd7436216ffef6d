"""What a scenario may say under ``workload``.

Three forms, and none mixes with another: a recorded or shipped `trace`, a synthetic load (`arrivals`,
`prompt_tokens`, `output_tokens`), or a list of `classes`, each of which is one of the former. Rates are
per second, times in seconds, lengths in tokens.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from simulator.workload.lengths import lognormal_parameters
from simulator.workload.tables import is_number


class _Model(BaseModel):
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


def _after(check: Any) -> Any:
    from pydantic import AfterValidator

    return AfterValidator(check)


Positive = Annotated[float, BeforeValidator(_number), _after(_positive)]
NotNegative = Annotated[float, BeforeValidator(_number), _after(_not_negative)]
Rate = Annotated[float, BeforeValidator(_number), _after(_rate)]
Count = Annotated[int, BeforeValidator(_number), _after(_positive)]


# Lengths ------------------------------------------------------------------------------------------


class _Bounded(_Model):
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


class PoissonArrivals(_Model):
    """Exponential gaps."""

    kind: Literal["poisson"]
    rate: Rate


class GammaArrivals(_Model):
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


class ConstantArrivals(_Model):
    """Equal gaps, the first request at time 0."""

    kind: Literal["constant"]
    rate: Rate


class OnOffArrivals(_Model):
    """Poisson arrivals whose rate alternates; the periods are exponential with means `on_s` and `off_s`."""

    kind: Literal["onoff"]
    rate_on: Rate
    rate_off: NotNegative
    on_s: Positive
    off_s: Positive


class DiurnalArrivals(_Model):
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


class ClosedLoopArrivals(_Model):
    """`concurrency` clients, each with one request at a time, who think for `think_time_s` before each of them.

    A number is the mean of an exponential law, 0 no thinking; another law has the form of a length's, such as
    ``{kind: constant, value: 20}``. The first requests are spread over the first think time.
    """

    kind: Literal["closed_loop"]
    concurrency: Count
    think_time_s: ThinkTime = NO_THINKING


class BatchArrivals(_Model):
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


# The load -----------------------------------------------------------------------------------------


class SharedPrefix(_Model):
    """Each request (or conversation) begins with one of `groups` equally likely prefixes of `tokens` tokens.

    They come on top of `prompt_tokens`, as in the prefix options of the benchmark clients.
    """

    groups: Count
    tokens: Count


class Sessions(_Model):
    """Conversations.

    Synthetic: `turns` per conversation and `think_time_s` between the end of a turn and the next (a law as in a closed loop);
    `prompt_tokens` are then a turn's new tokens, the history comes on top, and the arrivals are those of
    conversations. Traces: `replay`, after the recorded gap (`gap`), or not before the recorded time
    (`absolute`). Beside a trace and `arrivals` these are of whole sessions, whose later requests follow by the recorded gaps.
    """

    turns: Length | None = None
    think_time_s: ThinkTime | None = None
    replay: Literal["gap", "absolute"] | None = None


class AdapterMix(_Model):
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


MOST_ADAPTERS = 100_000
"""Most adapters of a load; assumed, a guard against slips of the keyboard."""

TraceFormat = Literal[
    "azure",
    "mooncake",
    "burstgpt",
    "servegen",
    "sharegpt",
    "vllm-bench",
    "sglang-bench",
    "aiperf",
    "guidellm",
    "inference-perf",
    "dynamo",
    "weka",
    "aiperf-dag",
    "bailian",
    "columns",
]

_TIMES_KEYS = ("rate_scale", "jitter_s")
_TRACE_KEYS = (*_TIMES_KEYS, "window", "limit", "trace_format")
_SYNTHETIC_KEYS = ("arrivals", "prompt_tokens", "output_tokens", "shared_prefix")


_EXAMPLES = {
    "arrivals": "arrivals: {kind: poisson, rate: 2}",
    "prompt_tokens": "prompt_tokens: 500",
    "output_tokens": "output_tokens: 200",
}


class Load(_Model):
    """A trace or a synthetic load: what a workload and each of its classes have in common."""

    trace: str | None = None
    rate_scale: Rate | None = None
    window: tuple[NotNegative, NotNegative] | None = None
    limit: Count | None = None
    trace_format: TraceFormat | None = None
    jitter_s: NotNegative | None = None
    arrivals: Arrivals | None = None
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None
    shared_prefix: SharedPrefix | None = None
    sessions: Sessions | None = None
    max_output_tokens: Length | Literal["equal"] | None = None
    prefix_block_tokens: Count | None = None
    prompt_pool: Count | None = None
    adapters: AdapterMix | None = None
    structured_output: Positive | None = None

    def _check_load(self) -> None:
        if self.structured_output is not None and self.structured_output > 1:
            raise ValueError(f"structured_output is {self.structured_output:g}; give a share of the requests, at most 1")
        traced = [k for k in ("trace", *_TRACE_KEYS) if getattr(self, k) is not None]
        synthetic = [k for k in _SYNTHETIC_KEYS if getattr(self, k) is not None]
        if self.prompt_pool is not None and self.sessions is not None:
            raise ValueError("prompt_pool and sessions exclude each other: give one of them")
        if self.trace is not None and synthetic == ["arrivals"]:
            self._check_trace(traced)
            timed = [k for k in _TIMES_KEYS if getattr(self, k) is not None]
            timed += ["sessions.replay: absolute"] if self.sessions is not None and self.sessions.replay == "absolute" else []
            if timed:
                raise ValueError(f"{timed[0]} belongs to recorded times, which arrivals replace; remove one of them")
            return
        if self.prompt_pool is not None and not synthetic:
            raise ValueError("prompt_pool belongs to arrivals; give arrivals, or remove it")
        if traced and synthetic:
            raise ValueError(
                f"{traced[0]} belongs to a trace and {synthetic[0]} to a synthetic load; "
                "give one form or the other, not both"
            )
        if traced:
            self._check_trace(traced)
        elif synthetic:
            self._check_synthetic()
        else:
            raise ValueError("names no load: give trace, or arrivals with prompt_tokens and output_tokens")

    def _check_trace(self, given: list[str]) -> None:
        if self.trace is None:
            raise ValueError(f"{given[0]} belongs to a trace, but no trace is named; give trace, or remove it")
        if not self.trace.strip():
            raise ValueError("trace is empty; give a shipped name or a file")
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(
                f"window [{self.window[0]:g}, {self.window[1]:g}] is empty; write [a, b] with b above a"
            )
        if self.sessions is not None and (self.sessions.turns or self.sessions.think_time_s is not None):
            raise ValueError(
                "turns and think_time_s belong to a synthetic load; give replay (gap or absolute) for a trace's sessions"
            )

    def _check_synthetic(self) -> None:
        missing = [k for k in ("arrivals", "prompt_tokens", "output_tokens") if getattr(self, k) is None]
        if missing:
            raise ValueError(f"a synthetic load needs {' and '.join(missing)}; add {', '.join(_EXAMPLES[k] for k in missing)}")
        if self.prefix_block_tokens is not None:
            raise ValueError("prefix_block_tokens belongs to a trace with prefix_ids; use shared_prefix here")
        if self.sessions is not None:
            if self.sessions.replay is not None:
                raise ValueError(
                    "sessions.replay belongs to a trace; give turns and think_time_s for a synthetic load"
                )
            if self.sessions.turns is None:
                raise ValueError("sessions needs turns, the number of requests in a conversation; give turns: 5")


Percentile = Literal["p50", "p90", "p95", "p99"]
_Bounds = Annotated[dict[Percentile, Positive], Field(min_length=1)]


class Slo(_Model):
    """Latency bounds [ms] by percentile, and the fraction of requests that must be good."""

    ttft_ms: _Bounds | None = None
    tpot_ms: _Bounds | None = None
    itl_ms: _Bounds | None = None
    e2el_ms: _Bounds | None = None
    attainment: Positive | None = None

    @model_validator(mode="after")
    def _fraction(self) -> Slo:
        if self.attainment is not None and self.attainment > 1:
            raise ValueError(f"attainment is {self.attainment:g}; give a fraction, at most 1")
        return self

    def bounds_ms(self) -> dict[str, dict[str, float]]:
        """Return the bounds by metric and percentile, without those not given."""
        metrics = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")
        found = {metric: getattr(self, metric) for metric in metrics}
        return {metric: dict(bounds) for metric, bounds in found.items() if bounds is not None}


class ClassLoad(Load):
    """One class: a load of its own, with its name, service objective and priority.

    `weight` multiplies the class's rate (its concurrency in a closed loop; its share of `requests` in a
    batch). `model` is the model that it asks for, where pools serve several.
    """

    name: Annotated[str, Field(min_length=1)]
    model: Annotated[str, Field(min_length=1)] | None = None
    weight: Positive = 1.0
    slo: Slo | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0

    @model_validator(mode="after")
    def _form(self) -> ClassLoad:
        self._check_load()
        return self


class TimedLoad(Load):
    """A load with an end: what a workload and each of its stages have in common."""

    classes: Annotated[tuple[ClassLoad, ...], Field(min_length=1)] | None = None
    duration: Positive | None = None
    requests: Count | None = None
    warmup: NotNegative = 0.0

    def _check_whole(self) -> None:
        if self.classes is None:
            self._check_load()
        else:
            own = ("sessions", "prefix_block_tokens", "prompt_pool", "adapters", "structured_output")
            keys = ("trace", *_TRACE_KEYS, *_SYNTHETIC_KEYS, *own)
            mixed = [k for k in keys if getattr(self, k) is not None]
            if mixed:
                raise ValueError(
                    f"{mixed[0]} stands beside classes; move it into the classes, each of which carries its own load"
                )
            names = [c.name for c in self.classes]
            twice = [n for n in names if names.count(n) > 1]
            if twice:
                raise ValueError(f"two classes are named {twice[0]!r}; give each a name of its own")
        for load in self.loads():
            self._check_end(load)
        if self.duration is not None and self.warmup >= self.duration:
            raise ValueError(
                f"warmup ({self.warmup:g} s) leaves nothing of the duration ({self.duration:g} s) to measure; "
                "give a shorter warmup or a longer duration"
            )

    def _check_end(self, load: Load) -> None:
        if load.arrivals is None or (load.trace is not None and load.prompt_pool is None):
            return
        if self.requests is None and load.arrivals.kind == "batch":
            raise ValueError("batch arrivals need requests, the number that arrive at time zero; give requests: 100")
        if self.requests is None and self.duration is None:
            raise ValueError("nothing ends the arrivals: give duration (seconds) or requests (a number)")

    def loads(self) -> tuple[Load, ...]:
        """Return the classes, or the single load itself."""
        return self.classes if self.classes is not None else (self,)


class Stage(TimedLoad):
    """One of several loads that run one after the other; what is not `measured` only warms the servers up."""

    name: Annotated[str, Field(min_length=1)]
    measured: bool = True

    @model_validator(mode="after")
    def _form(self) -> Stage:
        self._check_whole()
        return self


class WorkloadSpec(TimedLoad):
    """The `workload` section.

    `stages` are loads that run one after the other on the same servers, whose caches are kept: each begins when the last request
    of the one before it is answered. Their times count from their own begin.
    """

    stages: Annotated[tuple[Stage, ...], Field(min_length=1)] | None = None
    drain_s: NotNegative = 600.0

    @model_validator(mode="before")
    @classmethod
    def _name_stages(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("stages"), list | tuple):
            numbered = enumerate(data["stages"], 1)
            stages = [{"name": f"stage{n}", **each} if isinstance(each, dict) else each for n, each in numbered]
            return {**data, "stages": stages}
        return data

    @model_validator(mode="after")
    def _form(self) -> WorkloadSpec:
        if self.stages is None:
            self._check_whole()
            return self
        beside = sorted(self.model_fields_set - {"stages", "drain_s"})
        given = [key for key in beside if getattr(self, key) not in (None, type(self).model_fields[key].default)]
        if given:
            raise ValueError(f"{given[0]} stands beside stages; move it into the stages, each of which carries its own load")
        names = [stage.name for stage in self.stages]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two stages are named {twice[0]!r}; give each a name of its own")
        measured = [stage.measured for stage in self.stages]
        if True not in measured or False in measured[measured.index(True) :]:
            raise ValueError("measured: false belongs to the first stages, which warm servers up; remove it from the last")
        return self

    def loads(self) -> tuple[Load, ...]:
        """Return the classes, or the single load itself; those of all stages."""
        return super().loads() if self.stages is None else tuple(load for stage in self.stages for load in stage.loads())

    def lengths_by_law(self) -> bool:
        """Whether lengths are drawn by a law of two numbers, which stands for lengths that are not known one by one."""
        laws = (NormalLength, LognormalLength)
        return any(isinstance(of, laws) for load in self.loads() for of in (load.prompt_tokens, load.output_tokens))

    def holds_sessions(self) -> bool:
        """Whether so many recorded sessions are alive at all times, however many requests each has under way."""
        return all(
            load.trace is not None and load.sessions is not None and isinstance(load.arrivals, ClosedLoopArrivals)
            for load in self.loads()
        )

    def users(self) -> float:
        """Concurrency of the closed loops, those of classes by their weight; 0 where stages follow each other."""
        if self.stages is not None:
            return 0.0
        return float(
            sum(
                load.arrivals.concurrency * getattr(load, "weight", 1.0)
                for load in self.loads()
                if load.arrivals is not None and load.arrivals.kind == "closed_loop"
            )
        )
