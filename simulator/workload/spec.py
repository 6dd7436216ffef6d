"""What a scenario may say under ``workload``.

Three forms, and none mixes with another: a recorded or shipped `trace`, a synthetic load (`arrivals`,
`prompt_tokens`, `output_tokens`), or a list of `classes`, each of which is one of the former. Rates are
per second, times in seconds, lengths in tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from simulator.later import later
from simulator.workload.fields import Count, Group, NotNegative, Positive, Rate

if TYPE_CHECKING:
    from simulator.workload.synthetic import AdapterMix, Arrivals, ImageMix, Length, Sessions, SharedPrefix
else:
    AdapterMix, Arrivals, ImageMix, Length, Sessions, SharedPrefix = later(
        "simulator.workload.synthetic", "AdapterMix", "Arrivals", "ImageMix", "Length", "Sessions", "SharedPrefix"
    )

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


class Load(Group):
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
    images: ImageMix | Literal["recorded"] | None = None
    structured_output: Positive | None = None

    def arrives_anew(self) -> bool:
        """Whether single requests of a trace arrive by a law, without what stood beside them."""
        return self.arrivals is not None and self.sessions is None

    def arrives(self, kind: str) -> bool:
        """Whether its requests arrive by this kind of law."""
        return self.arrivals is not None and self.arrivals.kind == kind

    def _check_load(self) -> None:
        if self.structured_output is not None and self.structured_output > 1:
            raise ValueError(f"structured_output is {self.structured_output:g}; give a share of the requests, at most 1")
        if self.images == "recorded" and (self.trace is None or self.prompt_pool is not None or self.arrives_anew()):
            raise ValueError("images: recorded belongs to a trace at its own times; give images: {tokens: 1000}")
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


class Slo(Group):
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
            own = ("sessions", "prefix_block_tokens", "prompt_pool", "adapters", "images", "structured_output")
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
    of the one before it is answered. Their times count from their own begin; failures and autoscalers go by the clock of the run.
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
        lengths = (of for load in self.loads() for of in (load.prompt_tokens, load.output_tokens))
        return any(of is not None and of.kind in ("normal", "lognormal") for of in lengths)

    def holds_sessions(self) -> bool:
        """Whether so many recorded sessions are alive at all times, however many requests each has under way."""
        return all(
            load.trace is not None and load.sessions is not None and load.arrives("closed_loop")
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
