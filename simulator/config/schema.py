"""What a scenario may say, as pydantic models: frozen, strict, complete with defaults.

Importing this module imports pydantic; the command line does so only when it loads a scenario. Names of
engines, hardware, models and number formats pass as text: the catalogues judge them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    Strict,
    Tag,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from simulator.config.overrides import AROUND_POOLS
from simulator.workload.spec import Slo, WorkloadSpec


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
Settings = dict[str, Any]
"""Keys that are accepted by name; `not_modelled` refuses them until they are simulated."""

MAX_REPLICAS = 10_000
"""Most replicas of a pool, and ranks of one; assumed, a guard against slips of the keyboard."""
Ranks = Annotated[int, Strict(), Field(ge=1, le=MAX_REPLICAS)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)


Drafts = Annotated[int, Strict(), Field(ge=1, le=128)]
"""Most drafts of a step: MAX_SPEC_LEN of vLLM's rejection sampler."""
Share = Annotated[float, Strict(), Field(ge=0, le=1, allow_inf_nan=False)]


class Speculative(_Model):
    """Speculative decoding of a pool, named as in vLLM's ``--speculative-config``, and how many drafts are accepted.

    Acceptance is one of: `acceptance`, the probability of each draft if those before it were accepted (one for all positions
    or a list), `acceptance_rates`, the share of steps in which the first 1, 2, ... drafts were all accepted, and
    `acceptance_length`, the mean number of tokens a verification yields, or `task`, that of a published table. There is no
    default. Where drafts form a tree, `num_speculative_tokens` is its depth, `eagle_topk` the tokens that each drafting step goes
    on from, and `num_draft_tokens` the tokens of a row that a step verifies.
    """

    method: Text | None = None
    num_speculative_tokens: Drafts | None = None
    model: Text | None = None
    weights: Text | None = None
    draft_tensor_parallel_size: Whole | None = None
    acceptance: Share | tuple[Share, ...] | None = None
    acceptance_rates: tuple[Share, ...] | None = None
    acceptance_length: Annotated[float, Strict(), Field(ge=1, allow_inf_nan=False)] | None = None
    task: Text | None = None
    eagle_topk: Annotated[int, Strict(), Field(ge=1, le=64)] | None = None
    num_draft_tokens: Annotated[int, Strict(), Field(ge=2, le=257)] | None = None


class Lora(_Model):
    """LoRA adapters of a pool: how many the engine holds, of which rank, and what they are.

    `max_loras` are those on a device, which a step may name; `max_cpu_loras` those that the host's memory holds, the others lie
    on its disk; `max_lora_rank` is the largest rank that is taken (vLLM's flags; SGLang's are `max_loras_per_batch`,
    `max_loaded_loras`, `max_lora_rank`). `rank` and `target_modules` are the adapters' own. `bytes_per_s` is the rate of a copy
    from the host to one device, `disk_bytes_per_s` that of the disk. Which requests name one stands in `workload.adapters`.
    """

    max_loras: Whole | None = None
    max_lora_rank: Annotated[int, Strict(), Field(ge=1, le=4096)] | None = None
    max_cpu_loras: Whole | None = None
    lora_dtype: Literal["auto", "float16", "bfloat16", "float32"] | None = None
    fully_sharded_loras: Bool | None = None
    rank: Annotated[int, Strict(), Field(ge=1, le=4096)] | None = None
    target_modules: tuple[Text, ...] | None = None
    bytes_per_s: BytesPerSecond | None = None
    disk_bytes_per_s: BytesPerSecond | None = None


class Offload(_Model):
    """KV blocks in host memory behind the device's prefix cache (vLLM's native connector).

    `kv_offloading_size` is the host memory of a replica for them, `bytes_per_s` the rate of a copy from host to one device.
    """

    kv_offloading_size: AboveZero
    bytes_per_s: BytesPerSecond | None = None


class KvTier(_Model):
    """A place for KV blocks beyond the device: `bytes` of each replica, of a `shared` store those of all together.

    `bytes_per_s` is the rate of a copy: between host memory and one device, of a node's disks, of the whole store (whose way to
    a replica is its devices' network besides).
    """

    kind: Literal["host", "nvme", "shared"]
    bytes: NotNegative
    bytes_per_s: BytesPerSecond | None = None
    latency_s: Delay = 0.0
    write: Literal["through", "back", "selective"] | None = None
    connector: Text | None = None


class StartUp(_Model):
    """Parts of the time until a new server serves [s]; null is predicted, those not predicted are 0.

    `provisioning_s` until the devices are there (and billed), `image_s` until the container's image is, `weights_s` to load the
    weights, which lie on the host's disk, on a shared file system or in the page cache (`weights_from`), then compilation, with a
    filled cache or without (`compile_cache`), capture of graphs, and warm-up.
    """

    provisioning_s: NotNegative = 0.0
    image_s: NotNegative = 0.0
    weights_from: Literal["disk", "network", "cache"] = "disk"
    weights_s: NotNegative | None = None
    compile_cache: Bool = False
    compile_s: NotNegative | None = None
    graph_capture_s: NotNegative | None = None
    warm_up_s: NotNegative | None = None


def _number_or_parts(value: object) -> str:
    return "parts" if isinstance(value, dict | StartUp) else "seconds"


StartTime = Annotated[
    Annotated[NotNegative, Tag("seconds")] | Annotated[StartUp, Tag("parts")], Discriminator(_number_or_parts)
]


class FailureEvent(_Model):
    """Something that goes wrong at `at_s`.

    A `node` is lost with all its replicas, or a `gpu` with its own; a `reclaim` takes a node back `notice_s` after it is
    announced; `slow` makes the steps of a replica take `factor` times as long; a `drain` restarts a replica once it has ended
    what it has, at most `notice_s` later, and without `replica` all of them, one after the other. `for_s` is how long devices are
    away (or slow).
    """

    at_s: NotNegative
    pool: Text | None = None
    replica: Annotated[int, Strict(), Field(ge=0)] | None = None
    kind: Literal["node", "gpu", "link", "slow", "reclaim", "drain"]
    for_s: NotNegative | None = None
    factor: Annotated[float, Strict(), Field(gt=1, le=1e6, allow_inf_nan=False)] | None = None
    notice_s: NotNegative | None = None
    from_: Text | None = Field(default=None, alias="from", serialization_alias="from")
    to: Text | None = None

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, populate_by_name=True)

    @model_validator(mode="after")
    def _consistent(self) -> FailureEvent:
        if (self.kind == "slow") != (self.factor is not None):
            raise ValueError("kind: slow needs a factor, and no other kind has one; give factor beside kind: slow alone")
        if self.notice_s is not None and self.kind not in ("reclaim", "drain"):
            raise ValueError("notice_s belongs to kind: reclaim or drain; remove it, or change the kind")
        if self.replica is None and self.kind not in ("link", "drain"):
            raise ValueError(f"kind: {self.kind} needs a replica; give its number, replica: 0 for the first")
        return self


class Failures(_Model):
    """What goes wrong: listed `events`, and what comes at random.

    Each `device`, `node` or `replica` (`of`) fails every `mtbf_h` hours on average and is away for `repair_s`; each is taken back
    `reclaims_per_hour` times an hour, `notice_s` after it is announced. Lost capacity returns after `replaced_after_s` where an
    event does not say for how long it is away, and never without either; a server then takes `start_up` until it serves. That a
    node is lost is noticed `detected_after_s` later: until then it is sent requests, and none of its clients hears of anything.
    """

    events: tuple[FailureEvent, ...] = ()
    mtbf_h: AboveZero | None = None
    repair_s: NotNegative | None = None
    reclaims_per_hour: AboveZero | None = None
    notice_s: NotNegative = 120.0
    of: Literal["device", "node", "replica"] | None = None
    replaced_after_s: NotNegative | None = None
    detected_after_s: NotNegative = 0.0
    start_up: StartTime | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Failures:
        if not self.events and self.mtbf_h is None and self.reclaims_per_hour is None:
            raise ValueError("failures name nothing that goes wrong; give events, mtbf_h or reclaims_per_hour")
        if (self.mtbf_h is not None or self.reclaims_per_hour is not None) != (self.of is not None):
            raise ValueError("mtbf_h and reclaims_per_hour need `of` (device, node or replica), and it one of them; give both")
        if self.repair_s is not None and self.mtbf_h is None:
            raise ValueError("repair_s needs mtbf_h; give the mean hours between failures")
        return self


class _Scaling(_Model):
    """What every autoscaler has.

    `min_replicas` and `max_replicas` bound the count, `replicas` is the first. A new replica takes `start_up`; one that is sent
    away gets nothing new and has `grace_s` to end what it has.
    """

    min_replicas: Annotated[int, Strict(), Field(ge=0, le=MAX_REPLICAS)] | None = None
    max_replicas: Ranks | None = None
    start_up: StartTime | None = None
    grace_s: NotNegative = 30.0

    @model_validator(mode="after")
    def _bounds(self) -> _Scaling:
        if self.min_replicas is not None and self.max_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas}); give fewer")
        return self


class ScalingPolicy(_Model):
    """By how many `Pods`, or `Percent` of them, a count may change in a period."""

    type: Literal["Pods", "Percent"]
    value: Annotated[int, Strict(), Field(ge=1, le=10**6)]
    period_seconds: Annotated[int, Strict(), Field(ge=1, le=1800)]


class ScalingRules(_Model):
    """How fast a count may rise, or fall; null is Kubernetes' default."""

    stabilization_window_seconds: Annotated[int, Strict(), Field(ge=0, le=3600)] | None = None
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: Annotated[tuple[ScalingPolicy, ...], Field(min_length=1)] | None = None


class ScalingBehavior(_Model):
    """`behavior` of an HPA, in snake_case."""

    scale_up: ScalingRules = ScalingRules()
    scale_down: ScalingRules = ScalingRules()


Gauge = Literal["num_requests_waiting", "num_requests_running", "kv_cache_usage_perc", "requests_in_flight"]


class _ByHpa(_Scaling):
    tolerance: Share = 0.1
    behavior: ScalingBehavior = ScalingBehavior()


class HpaScaler(_ByHpa):
    """Kubernetes' Horizontal Pod Autoscaler over one metric, of each pod (`pods`) or in all (`external`, of type AverageValue).

    Metrics are those of the latest scrape, one every `scrape_s`.
    """

    kind: Literal["hpa"]
    metric: Gauge = "num_requests_waiting"
    metric_type: Literal["pods", "external"] = "pods"
    target: AboveZero
    sync_period_s: AboveZero = 15.0
    scrape_s: AboveZero = 15.0


class KedaScaler(_ByHpa):
    """A scaled object of KEDA with one trigger on the total of a metric, requests at the router included.

    `target` is the trigger's threshold. Between none and one replica it decides itself, above by an HPA.
    """

    kind: Literal["keda"]
    metric: Gauge = "num_requests_waiting"
    target: AboveZero
    activation_threshold: NotNegative = 0.0
    sync_period_s: AboveZero = 15.0
    scrape_s: AboveZero = 15.0
    idle_replicas: Annotated[int, Strict(), Field(ge=0, le=MAX_REPLICAS)] | None = None
    polling_interval_s: AboveZero = 30.0
    cooldown_period_s: NotNegative = 300.0
    initial_cooldown_period_s: NotNegative = 0.0

    @model_validator(mode="after")
    def _idle_below(self) -> KedaScaler:
        if self.idle_replicas is not None and self.idle_replicas >= (self.min_replicas or 0):
            least = self.min_replicas or 0
            raise ValueError(f"idle_replicas ({self.idle_replicas}) must be below min_replicas ({least}); give fewer")
        return self


class KnativeScaler(_Scaling):
    """Knative's autoscaler: requests in flight (`concurrency`) or a second (`rps`), over a stable and a panic window.

    `target` is per replica: 100 in flight, of which `target_utilization_percentage` counts, or 200 a second by default.
    """

    kind: Literal["knative"]
    metric: Literal["concurrency", "rps"] = "concurrency"
    target: AboveZero | None = None
    target_utilization_percentage: Annotated[float, Strict(), Field(gt=0, le=100)] = 70.0
    stable_window_s: Annotated[float, Strict(), Field(ge=6, le=3600)] = 60.0
    panic_window_percentage: Annotated[float, Strict(), Field(ge=1, le=100)] = 10.0
    panic_threshold_percentage: Annotated[float, Strict(), Field(ge=110, le=1000)] = 200.0
    max_scale_up_rate: Annotated[float, Strict(), Field(gt=1, le=1e6)] = 1000.0
    max_scale_down_rate: Annotated[float, Strict(), Field(gt=1, le=1e6)] = 2.0
    scale_down_delay_s: Delay = 0.0
    scale_to_zero_grace_period_s: NotNegative = 30.0
    activation_scale: Ranks = 1


class DynamoScaler(_Scaling):
    """Dynamo's planner, by load and static thresholds (its default), or by an SLA; budgets are of all GPUs, -1 for none.

    `min_replicas` and `max_replicas`, which it does not know, bound the count besides. With `optimization_target: sla`, around a
    prefill and a decode pool, replicas follow predicted load every `throughput_adjustment_interval_s`, and estimates of TTFT and
    ITL every `load_adjustment_interval_s`.
    """

    kind: Literal["dynamo"]
    optimization_target: Literal["throughput", "latency", "sla"] = "throughput"
    load_adjustment_interval_s: AboveZero = 5.0
    throughput_adjustment_interval_s: AboveZero = 180.0
    ttft_ms: AboveZero = 500.0
    itl_ms: AboveZero = 50.0
    enable_throughput_scaling: Bool = True
    enable_load_scaling: Bool = False
    load_predictor: Literal["constant", "kalman", "arima", "prophet"] = "constant"
    min_gpu_budget: Annotated[int, Strict(), Field(ge=-1, le=10**6)] = -1
    max_gpu_budget: Annotated[int, Strict(), Field(ge=-1, le=10**6)] = 8
    min_endpoint: Ranks = 1

    @model_validator(mode="after")
    def _budgets(self) -> DynamoScaler:
        if 0 <= self.max_gpu_budget < self.min_gpu_budget:
            raise ValueError(f"min_gpu_budget ({self.min_gpu_budget}) is above max_gpu_budget ({self.max_gpu_budget}); give less")
        if self.load_predictor in ("arima", "prophet"):
            raise ValueError(f"load_predictor: {self.load_predictor} is not modelled yet; use constant or kalman")
        of_sla = ("throughput_adjustment_interval_s", "ttft_ms", "itl_ms", "enable_throughput_scaling", "enable_load_scaling")
        given = [key for key in (*of_sla, "load_predictor") if key in self.model_fields_set]
        if given and self.optimization_target != "sla":
            raise ValueError(f"{', '.join(given)} belong to optimization_target: sla; write that, or remove them")
        if self.optimization_target == "sla" and not (self.enable_throughput_scaling or self.enable_load_scaling):
            raise ValueError("the planner decides nothing; set enable_throughput_scaling or enable_load_scaling")
        return self


QUEUE_MODEL = ("alpha_ms", "beta_ms", "gamma_ms", "delta_ms", "ttft_ms", "itl_ms")


class WvaScaler(_ByHpa):
    """llm-d's variant autoscaler, which an HPA follows: by `saturation` of replicas, `tokens` in demand, or a `queue_model`.

    The model takes a decode step of n rows as ``alpha_ms + beta_ms n`` and a prompt as ``gamma_ms + delta_ms tokens n``, and
    asks for so many replicas that the means of TTFT and ITL stay below `ttft_ms` and `itl_ms`.
    """

    kind: Literal["wva"]
    analyzer: Literal["saturation", "tokens", "queue_model"] = "saturation"
    kv_cache_threshold: Share = 0.8
    queue_length_threshold: AboveZero = 5.0
    kv_spare_trigger: Share = 0.1
    queue_spare_trigger: NotNegative = 3.0
    alpha_ms: AboveZero | None = None
    beta_ms: AboveZero | None = None
    gamma_ms: NotNegative | None = None
    delta_ms: NotNegative | None = None
    ttft_ms: AboveZero | None = None
    itl_ms: AboveZero | None = None

    @model_validator(mode="after")
    def _law(self) -> WvaScaler:
        given = [getattr(self, key) is not None for key in QUEUE_MODEL]
        if self.analyzer == "queue_model" and not all(given):
            raise ValueError(f"analyzer: queue_model needs {', '.join(QUEUE_MODEL)}; give them")
        if self.analyzer != "queue_model" and any(given):
            raise ValueError(f"{', '.join(QUEUE_MODEL)} belong to analyzer: queue_model; write that, or remove them")
        return self


Scaler = Annotated[HpaScaler | KedaScaler | KnativeScaler | DynamoScaler | WvaScaler, Field(discriminator="kind")]


Commitment = Literal["on_demand", "reserved_1y", "reserved_3y", "spot"]


class Swap(_Model):
    """How the models of a pool take turns on its devices.

    `by` is how one makes room: its server stops and starts again (`restart`), or falls asleep, with its weights in host memory
    (`sleep_1`) or given up (`sleep_2`); by default as the engine's flags allow. `weights_from` says where given-up weights lie,
    `compile_cache` whether a server that starts finds a filled one. Requests are served in order of arrival: a model stays until
    one for another is the first to wait and its own have ended; with `stay_s` for so long at least, as long as it has any.
    """

    by: Literal["restart", "sleep_1", "sleep_2"] | None = None
    weights_from: Literal["disk", "network", "cache"] = "disk"
    compile_cache: Bool = True
    stay_s: NotNegative = 0.0


class Pool(_Model):
    """Replicas of one engine on one kind of hardware.

    `tensor_parallel` x `pipeline_parallel` x `data_parallel` devices make one replica; `expert_parallel` is
    true, false, or the number of ranks that share the experts. `weights`, `activations` and `kv_cache` name
    number formats, null being the checkpoint's or the engine's own. `engine_args` are the engine's own flags:
    by name, as a pasted launch command, as a list of its words, or as a container of a compose file or a manifest.
    Pools of role `prefill` compute prompts, those of role `decode` take the requests over for their answers; a pool with
    `replicas: 0` is not there. Replicas fill nodes of `gpus_per_node` devices (the device's own by default) in order, each
    pool nodes of its own, or those left over by the pool that `colocate` names. `model` is what it serves, if that is not the
    scenario's; with `prompt_tokens` it is only given requests with prompts of so many tokens, both bounds included. `models` take
    turns on its devices, as `swap` says; `swap_s` is the time of a change, which is predicted otherwise. `calibration`
    names a file of `capacity-plan calibrate` with measurements of such a deployment, whose scales its step times then have.
    `host_speed` is that of one core of the host, in units of the core on which front ends were measured; `power_limit_w` is
    that of each device, where it is below its own.
    """

    name: Name
    model: Text | dict[str, Any] | None = None
    models: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    swap: Swap | None = None
    swap_s: NotNegative | None = None
    prompt_tokens: tuple[Annotated[int, Strict(), Field(ge=0)], Annotated[int, Strict(), Field(ge=1)]] | None = None
    role: Literal["mixed", "prefill", "decode", "encode"] = "mixed"
    replicas: Annotated[int, Strict(), Field(ge=0, le=MAX_REPLICAS)] = 1
    engine: Text
    hardware: Name
    tensor_parallel: Ranks = 1
    pipeline_parallel: Ranks = 1
    data_parallel: Ranks = 1
    expert_parallel: Bool | Ranks = False
    weights: Text | None = None
    activations: Text | None = None
    kv_cache: Text | None = None
    engine_args: Annotated[str, Strict()] | dict[str, Any] | tuple[str | int | float, ...] = Field(default_factory=dict)
    speculative: Speculative | None = None
    lora: Lora | None = None
    offload: Offload | None = None
    kv_tiers: tuple[KvTier, ...] | None = None
    gpus_per_node: Whole | None = None
    colocate: Text | None = None
    autoscaler: Scaler | None = None
    failures: Failures | None = None
    calibration: Text | None = None
    warm_cache: Text | None = None
    commitment: Commitment | None = None
    usd_per_gpu_hour: NotNegative | None = None
    host_speed: AboveZero | None = None
    power_limit_w: AboveZero | None = None

    @model_validator(mode="after")
    def _lengths(self) -> Pool:
        if self.prompt_tokens is not None and self.prompt_tokens[0] > self.prompt_tokens[1]:
            low, high = self.prompt_tokens
            raise ValueError(f"prompt_tokens [{low}, {high}] leaves out every prompt; write [low, high]")
        if self.models is None and (self.swap is not None or self.swap_s is not None):
            raise ValueError("nothing takes turns: `swap` and `swap_s` need `models`, a list of two or more; name them")
        if self.models is not None and self.model is not None:
            raise ValueError("`model` and `models` are both given; name all that take turns under `models`")
        if self.swap_s is not None and self.swap is not None and self.swap.by is not None:
            raise ValueError("`swap_s` states the time that `swap.by` would predict; keep one of the two")
        return self


class Transfer(_Model):
    """How KV blocks go from prefill to decode pools.

    `connector` is the engine's own name of the protocol and must agree with `engine_args`. `bytes_per_s` is the rate of one
    interface in one direction, one interface a device; by default that of the `link`, as the device's profile has it: between
    nodes or, where both replicas stand in one node, inside of it. `latency_s` is added to each transfer. `schedule_style` says
    who of two servers gets a request first, where an engine leaves that open. In a list, `from` and `to` name the pools.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True, populate_by_name=True)

    connector: Text | None = None
    schedule_style: Literal["context_first", "generation_first"] | None = None
    link: Literal["inter_node", "nvlink", "pcie"] | None = None
    bytes_per_s: BytesPerSecond | None = None
    latency_s: Delay = 0.0
    from_: Text | None = Field(default=None, alias="from", serialization_alias="from")
    to: Text | None = None


def _as_text(value: object) -> object:
    """A status that was written as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class Router(_Model):
    """How a router product routes: its policy and flags by its own names in snake_case, which may all be given here.

    `system` is the product, `policy` what its own flag for the policy may be. `hop_s` is the time that it adds to the way of a
    request, `bytes_per_token` the length of text that it sees for a token, `kv_event_delay_s` the time until it hears what the
    engines' caches keep.
    """

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    system: Text
    version: Text | None = None
    policy: Text | None = None
    hop_s: Delay = 0.0
    bytes_per_token: Whole = 4
    kv_event_delay_s: Delay = 0.005


class Admission(_Model):
    """Limits of the router; a replica's own are its engine's flags.

    `max_inflight` are the requests in flight at each replica. Where none has room, a request is answered `on_full`, or waits, by
    class priority and then in order of arrival: at most `max_queue` of them, `queue_timeout_s` long. `rate_per_s` are let in a
    second, `burst` at once after a pause.
    """

    max_inflight: Whole | None = None
    max_queue: Annotated[int, Strict(), Field(ge=0)] | None = None
    on_full: Annotated[Literal["429", "503", "wait"], BeforeValidator(_as_text)] = "429"
    rate_per_s: AboveZero | None = None
    burst: Whole = 1
    queue_timeout_s: AboveZero | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Admission:
        if self.max_inflight is None and self.rate_per_s is None:
            raise ValueError("admission limits nothing; give max_inflight or rate_per_s")
        if self.on_full != "wait" and (self.max_queue is not None or self.queue_timeout_s is not None):
            raise ValueError("nobody waits: max_queue and queue_timeout_s need on_full: wait; write it, or remove them")
        if self.burst > 1 and self.rate_per_s is None:
            raise ValueError("burst needs rate_per_s; give rate_per_s, or remove it")
        return self


IdealRule = Literal["round_robin", "random", "least_requests", "least_tokens", "session"]


def _one_or_list(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "one"


def _kind_of_router(value: object) -> str:
    return "product" if isinstance(value, dict | Router) else "word"


class Deployment(_Model):
    """One pool inline, or `pools`, with what stands around them.

    The router is a word for an ideal rule on exact state: `round_robin` (the default), `random`, `least_requests` in flight,
    `least_tokens` of prompts in flight, `session` (a session stays where it began); or a product's. Pools without a name are
    called pool0, pool1, ...
    """

    pools: Annotated[tuple[Pool, ...], Field(min_length=1)]
    router: Annotated[
        Annotated[IdealRule, Tag("word")] | Annotated[Router, Tag("product")], Discriminator(_kind_of_router)
    ] = "round_robin"
    admission: Admission | None = None
    transfer: (
        Annotated[
            Annotated[Transfer, Tag("one")] | Annotated[tuple[Transfer, ...], Tag("list")], Discriminator(_one_or_list)
        ]
        | None
    ) = None
    autoscaler: Scaler | None = None
    failures: Failures | None = None
    commitment: Commitment | None = None
    usd_per_gpu_hour: NotNegative | None = None
    kv_tiers: tuple[KvTier, ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _as_pools(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "pools" not in data:
            around = {key: value for key, value in data.items() if key in AROUND_POOLS}
            data = {"pools": [{k: v for k, v in data.items() if k not in AROUND_POOLS}], **around}
        if isinstance(data["pools"], list | tuple):
            named = [
                {"name": f"pool{i}", **pool} if isinstance(pool, dict) else pool
                for i, pool in enumerate(data["pools"])
            ]
            data = {**data, "pools": named}
        return data

    @model_validator(mode="after")
    def _consistent(self) -> Deployment:
        names = [pool.name for pool in self.pools]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two pools are named '{twice}'; give each pool its own name")
        if any(pool.engine_args and "role" not in pool.model_fields_set for pool in self.pools):
            return self  # flags may say it
        roles = {pool.role for pool in self.pools}
        for role, other in (("prefill", "decode"), ("decode", "prefill")):
            if role in roles and other not in roles:
                raise ValueError(f"role: {role} stands without a {other} pool; add one with role: {other}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        listed = handler.resolve_ref_schema(handler(core_schema))
        pool = handler.resolve_ref_schema(listed["properties"]["pools"]["items"])
        pool["required"] = [key for key in pool["required"] if key != "name"]
        around = {key: value for key, value in listed["properties"].items() if key != "pools"}
        inline = {**pool, "title": "One pool inline", "properties": {**pool["properties"], **around}}
        both = {
            "title": "Deployment",
            "description": listed.get("description", ""),
            "anyOf": [dict(listed), inline],
        }
        both["anyOf"][0]["title"] = "Pools"
        listed.clear()
        listed.update(both)
        return listed


class Retries(_Model):
    """When a client sends a request again that was turned away or lost with its server: `attempts` in all.

    The first new one follows after `backoff_s`, each later one after `factor` times as long, give or take the share `jitter`.
    `on` are the answers after which it tries again.
    """

    attempts: Annotated[int, Strict(), Field(ge=2, le=1000)]
    backoff_s: Delay = 0.5
    factor: Annotated[float, Strict(), Field(ge=1, allow_inf_nan=False)] = 2.0
    jitter: Share = 0.0
    on: Annotated[
        tuple[Annotated[Literal["429", "503", "timeout", "node_lost"], BeforeValidator(_as_text)], ...], Field(min_length=1)
    ] = ("429", "503", "node_lost")


class Client(_Model):
    """What the client sends, what it adds to TTFT and end-to-end latency [ms], how long it waits, and when it tries again."""

    route: Literal["chat", "completions"] = "chat"
    overhead_ms: NotNegative = 0.0
    network_rtt_ms: NotNegative = 0.0
    timeout_s: AboveZero | None = None
    retries: Retries | None = None


class Cost(_Model):
    """Overrides of the price list; null leaves the list's value.

    `usd_per_gpu_hour` replaces the rental price of every pool's devices. `spot: true` sets `commitment` to
    ``spot``. Owned hardware: `purchase_usd_per_gpu` spread over `amortisation_years`, with power
    at `power_usd_per_kwh` times `pue`, the data centre's power over that of its computers; it is
    the price where no rental one is known.
    """

    usd_per_gpu_hour: NotNegative | None = None
    commitment: Commitment | None = None
    spot: Bool | None = None
    provider: Text | None = None
    region: Text | None = None
    purchase_usd_per_gpu: NotNegative | None = None
    amortisation_years: AboveZero | None = None
    power_usd_per_kwh: NotNegative | None = None
    pue: Annotated[float, Strict(), Field(ge=1, allow_inf_nan=False)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _spot_is_a_commitment(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("spot") is True and data.get("commitment") is None:
            return {**data, "commitment": "spot"}
        return data

    @model_validator(mode="after")
    def _one_commitment(self) -> Cost:
        if self.spot is not None and self.commitment is not None and self.spot != (self.commitment == "spot"):
            spot = str(self.spot).lower()
            raise ValueError(f"spot: {spot} contradicts commitment: {self.commitment}; keep one of the two")
        return self


def _first_of(pool: dict[str, Any]) -> Any:
    """The first model that a pool names."""
    several = pool.get("models")
    return several[0] if isinstance(several, list | tuple) and several else pool.get("model")


class Scenario(_Model):
    """A model, a deployment that serves it, and the load it must carry.

    `model` is a catalogue name, a path to a Hugging Face config.json (or its folder) or to a GGUF file, or its fields inline.
    Pools and classes that name none have this one; it may be left out where every pool names its own, and is the first's then.
    """

    name: Name = "scenario"
    seed: Annotated[int, Strict(), Field(ge=0, lt=2**63)] = 0
    model: Text | dict[str, Any]
    deployment: Deployment
    workload: WorkloadSpec
    client: Client = Client()
    slo: Slo = Slo()
    cost: Cost = Cost()

    @model_validator(mode="before")
    @classmethod
    def _first_model(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "model" in data:
            return data
        deployment = data.get("deployment")
        pools = deployment.get("pools") if isinstance(deployment, dict) else None
        listed = pools if isinstance(pools, list) else [deployment] if isinstance(deployment, dict) else []
        named = [_first_of(pool) if isinstance(pool, dict) else None for pool in listed]
        return {"model": named[0], **data} if named and all(name is not None for name in named) else data


NOT_MODELLED_AROUND: tuple[str, ...] = ()
NOT_MODELLED_IN_POOL: tuple[str, ...] = ()
NOT_MODELLED_ROLES = ("encode",)


def not_modelled(scenario: Scenario) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Yield (path, value to name) of every setting that is a valid name but is not simulated yet."""
    for key in NOT_MODELLED_AROUND:
        if getattr(scenario.deployment, key) is not None:
            yield ("deployment", key), ""
    for i, pool in enumerate(scenario.deployment.pools):
        for key in NOT_MODELLED_IN_POOL:
            if getattr(pool, key) is not None:
                yield ("deployment", "pools", i, key), ""
        if pool.role in NOT_MODELLED_ROLES:
            yield ("deployment", "pools", i, "role"), pool.role
