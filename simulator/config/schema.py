"""What a scenario may say, as pydantic models: frozen, strict, complete with defaults.

Importing this module imports pydantic; the command line does so only when it loads a scenario. Names of
engines, hardware, models and number formats pass as text: the catalogues judge them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, GetJsonSchemaHandler, Strict, Tag, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from simulator.config.fields import (
    MAX_REPLICAS,
    AboveZero,
    Bool,
    Group,
    Name,
    NotNegative,
    Ranks,
    Text,
    Whole,
)
from simulator.config.overrides import AROUND_POOLS
from simulator.later import later
from simulator.workload.spec import Slo, WorkloadSpec

if TYPE_CHECKING:
    from simulator.config.features import (
        Admission,
        Failures,
        KvTier,
        Lora,
        Offload,
        Retries,
        Router,
        Scaler,
        Speculative,
        Swap,
        Transfer,
    )
else:
    _FEATURES = "simulator.config.features"
    Admission, Failures, KvTier, Lora, Offload = later(_FEATURES, "Admission", "Failures", "KvTier", "Lora", "Offload")
    Retries, Router, Scaler, Speculative = later(_FEATURES, "Retries", "Router", "Scaler", "Speculative")
    Swap, Transfer = later(_FEATURES, "Swap", "Transfer")

Commitment = Literal["on_demand", "reserved_1y", "reserved_3y", "spot"]


class Pool(Group):
    """Replicas of one engine on one kind of hardware.

    `tensor_parallel` x `pipeline_parallel` x `data_parallel` devices make one replica; `expert_parallel` is
    true, false, or the number of ranks that share the experts. `weights`, `activations` and `kv_cache` name
    number formats, null being the checkpoint's or the engine's own. `engine_args` are the engine's own flags:
    by name, as a pasted launch command, as a list of its words, or as a container of a compose file or a manifest.
    Pools of role `prefill` compute prompts, those of role `decode` take the requests over for their answers, those of role
    `encode` encode images for the others; a pool with `replicas: 0` is not there. Replicas fill nodes of `gpus_per_node`
    devices (the device's own by default) in order, each pool nodes of its own, or those left over by the pool that `colocate`
    names. `model` is what it serves, if that is not the scenario's; with `prompt_tokens` it is only given requests with
    prompts of so many tokens, both bounds included;
    `context_length_range` is the label of its servers by which llm-d's `context-length-aware` prefers them. `models` take turns
    on its devices, as `swap` says; `swap_s` is the time of a change, which is predicted otherwise. `calibration` names a file of
    `capacity-plan calibrate` with measurements of such a deployment, whose scales its step times then have. `host_speed` is
    that of one core of the host, in units of the core on which front ends were measured; `power_limit_w` is that of each
    device, where it is below its own. `peer_access` says whether cards over PCIe read each other's memory. Servers with
    `cold_start` have compiled nothing yet when they begin to serve, and their first requests wait for it.
    """

    name: Name
    model: Text | dict[str, Any] | None = None
    models: Annotated[tuple[Text, ...], Field(min_length=2)] | None = None
    swap: Swap | None = None
    swap_s: NotNegative | None = None
    prompt_tokens: tuple[Annotated[int, Strict(), Field(ge=0)], Annotated[int, Strict(), Field(ge=1)]] | None = None
    context_length_range: tuple[Annotated[int, Strict(), Field(ge=0)], Annotated[int, Strict(), Field(ge=0)]] | None = None
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
    peer_access: Bool | None = None
    cold_start: Bool = False

    @model_validator(mode="after")
    def _lengths(self) -> Pool:
        for name, span in (("prompt_tokens", self.prompt_tokens), ("context_length_range", self.context_length_range)):
            if span is not None and span[0] > span[1]:
                raise ValueError(f"{name} [{span[0]}, {span[1]}] leaves out every prompt; write [low, high]")
        if self.models is None and (self.swap is not None or self.swap_s is not None):
            raise ValueError("nothing takes turns: `swap` and `swap_s` need `models`, a list of two or more; name them")
        if self.models is not None and self.model is not None:
            raise ValueError("`model` and `models` are both given; name all that take turns under `models`")
        if self.swap_s is not None and self.swap is not None and self.swap.by is not None:
            raise ValueError("`swap_s` states the time that `swap.by` would predict; keep one of the two")
        return self


IdealRule = Literal["round_robin", "random", "least_requests", "least_tokens", "session"]


def _one_or_list(value: object) -> str:
    return "list" if isinstance(value, list | tuple) else "one"


def _kind_of_router(value: object) -> str:
    return "product" if isinstance(value, dict | BaseModel) else "word"


class Deployment(Group):
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
        if roles == {"encode"}:
            raise ValueError("role: encode stands without a pool that answers; add one with role: mixed")
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


class Client(Group):
    """What the client sends, what it adds to TTFT and end-to-end latency [ms], how long it waits, and when it tries again."""

    route: Literal["chat", "completions"] = "chat"
    overhead_ms: NotNegative = 0.0
    network_rtt_ms: NotNegative = 0.0
    timeout_s: AboveZero | None = None
    retries: Retries | None = None


class Cost(Group):
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


class Scenario(Group):
    """A model, a deployment that serves it, and the load it must carry.

    `model` is a catalogue name (also one with a tag, as `llama3.1:8b`, or of a repository of GGUF files), a path to a Hugging
    Face config.json (or its folder) or to a GGUF file, or its fields inline.
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
