"""Keys that most scenarios leave out: drafts, adapters, memory beyond the device, failures, autoscalers, models that take turns,
links between servers, products' routers, admission, and clients that try again.

Imported when such a key is given (`simulator.later`), since to make these models takes as long as all else of a scenario.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Discriminator, Field, Strict, Tag, model_validator

from simulator.config.fields import (
    MAX_REPLICAS,
    AboveZero,
    Bool,
    BytesPerSecond,
    Delay,
    Group,
    NotNegative,
    Ranks,
    Share,
    Text,
    Whole,
    as_text,
)

Drafts = Annotated[int, Strict(), Field(ge=1, le=128)]
"""Most drafts of a step: MAX_SPEC_LEN of vLLM's rejection sampler."""


class Speculative(Group):
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


class Lora(Group):
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


class Offload(Group):
    """KV blocks in host memory behind the device's prefix cache (vLLM's native connector).

    `kv_offloading_size` is the host memory of a replica for them, `bytes_per_s` the rate of a copy from host to one device.
    """

    kv_offloading_size: AboveZero
    bytes_per_s: BytesPerSecond | None = None


class KvTier(Group):
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


class StartUp(Group):
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


class FailureEvent(Group):
    """Something that goes wrong at `at_s`, counted from the begin of the run, or of a `stage` of `workload.stages`.

    A `node` is lost with all its replicas, or a `gpu` with its own; a `reclaim` takes a node back `notice_s` after it is
    announced; `slow` makes the steps of a replica take `factor` times as long; a `drain` restarts a replica once it has ended
    what it has, at most `notice_s` later, and without `replica` all of them, one after the other. `for_s` is how long devices are
    away (or slow).
    """

    at_s: NotNegative
    stage: Text | None = None
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


class Failures(Group):
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


class _Scaling(Group):
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
            raise ValueError(
                f"min_replicas ({self.min_replicas}) is above max_replicas ({self.max_replicas}); "
                f"give min_replicas at most {self.max_replicas}, or a larger max_replicas"
            )
        return self


class ScalingPolicy(Group):
    """By how many `Pods`, or `Percent` of them, a count may change in a period."""

    type: Literal["Pods", "Percent"]
    value: Annotated[int, Strict(), Field(ge=1, le=10**6)]
    period_seconds: Annotated[int, Strict(), Field(ge=1, le=1800)]


class ScalingRules(Group):
    """How fast a count may rise, or fall; null is Kubernetes' default."""

    stabilization_window_seconds: Annotated[int, Strict(), Field(ge=0, le=3600)] | None = None
    select_policy: Literal["Max", "Min", "Disabled"] = "Max"
    policies: Annotated[tuple[ScalingPolicy, ...], Field(min_length=1)] | None = None


class ScalingBehavior(Group):
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
            raise ValueError(
                f"idle_replicas ({self.idle_replicas}) must be below min_replicas ({least}); give min_replicas above it"
            )
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

    `min_replicas` and `max_replicas`, which it does not know, bound the count besides. With `optimization_target: sla`, of one
    pool or around a prefill and a decode pool, replicas follow predicted load every `throughput_adjustment_interval_s`, and
    estimates of TTFT and ITL every `load_adjustment_interval_s`.
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


class Swap(Group):
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


class Transfer(Group):
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


class Router(Group):
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


class Admission(Group):
    """Limits of the router; a replica's own are its engine's flags.

    `max_inflight` are the requests in flight at each replica. Where none has room, a request is answered `on_full`, or waits, by
    class priority and then in order of arrival: at most `max_queue` of them, `queue_timeout_s` long. `rate_per_s` are let in a
    second, `burst` at once after a pause.
    """

    max_inflight: Whole | None = None
    max_queue: Annotated[int, Strict(), Field(ge=0)] | None = None
    on_full: Annotated[Literal["429", "503", "wait"], BeforeValidator(as_text)] = "429"
    rate_per_s: AboveZero | None = None
    burst: Whole = 1
    queue_timeout_s: AboveZero | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Admission:
        if self.max_inflight is None and self.rate_per_s is None:
            waits = " (max_queue counts those that wait for them)" if self.max_queue is not None else ""
            raise ValueError(f"admission limits nothing; give max_inflight or rate_per_s{waits}")
        if self.on_full != "wait" and (self.max_queue is not None or self.queue_timeout_s is not None):
            raise ValueError("nobody waits: max_queue and queue_timeout_s need on_full: wait; write it, or remove them")
        if self.burst > 1 and self.rate_per_s is None:
            raise ValueError("burst needs rate_per_s; give rate_per_s, or remove it")
        return self


class Retries(Group):
    """When a client sends a request again that was turned away or lost with its server: `attempts` in all.

    The first new one follows after `backoff_s`, each later one after `factor` times as long, give or take the share `jitter`.
    `on` are the answers after which it tries again.
    """

    attempts: Annotated[int, Strict(), Field(ge=2, le=1000)]
    backoff_s: Delay = 0.5
    factor: Annotated[float, Strict(), Field(ge=1, allow_inf_nan=False)] = 2.0
    jitter: Share = 0.0
    on: Annotated[
        tuple[Annotated[Literal["429", "503", "timeout", "node_lost"], BeforeValidator(as_text)], ...], Field(min_length=1)
    ] = ("429", "503", "node_lost")
