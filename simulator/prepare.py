"""A scenario resolved to facts: engine, architecture, formats, memory, kernels, price; nothing is simulated."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine_models.cost.terms import Formats
from engine_models.declaration import FEATURES, Engine, EnginePlan, FrontEnd, Handover, Lockstep, PoolRequest
from engine_models.engines.known import engine_named, loading, on_kind, parse_engine_args, split, with_feature
from engine_models.engines.known import plan as plan_pool
from engine_models.flags import EngineFlags
from engine_models.model import tags
from engine_models.model.architecture import (
    FP8_BLOCK,
    check_parallelism,
    load_architecture,
    uneven_block_width,
)
from engine_models.model.blocks import Architecture
from engine_models.model.formats import FORMATS, format_named
from hardware_profiles.device import Device, device_names, load_device
from hardware_profiles.errors import InputError, PlanError
from hardware_profiles.kernels import operations_in_node
from hardware_profiles.packed_formats import EXAMPLES
from hardware_profiles.power import limit_words, limited
from hardware_profiles.scaled_ops import ScaledOps
from simulator.calibrated import calibrated, calibration_of, calibration_words, check_law
from simulator.cluster.router import Routing
from simulator.encoders import check_encoders, encoded_elsewhere, with_encoders
from simulator.launched import beside
from simulator.pools import (
    blended_price,
    check_roles,
    encoder_connector_of,
    handover_of,
    joint_limits,
    paths_of,
    told,
    unique,
)
from simulator.prepared import Prepared
from simulator.price import OWNED, unit_price
from simulator.routed import check_computed_once, check_paired, check_timeout, routing_of
from simulator.served import check_services, models_of, side_by_side
from simulator.services import fleet_of, stands_alone
from simulator.tiers import empty_tiers, rate_of, tiers_of, with_store
from simulator.turns import check_turns, each_model, with_turns

if TYPE_CHECKING:
    from engine_models.cost.drafting import Speculation
    from simulator.config.schema import Pool, Scenario

GIB = 1 << 30


def expert_ranks(pool: Pool) -> int:
    """Number of ranks that share the experts."""
    if isinstance(pool.expert_parallel, bool):
        return pool.tensor_parallel * pool.data_parallel if pool.expert_parallel else 1
    return pool.expert_parallel


def lockstep_ranks(pool: Pool, engine: Engine, arch: Architecture, flags: EngineFlags) -> int:
    """Data-parallel ranks of one replica that share experts and so step together; 1 where data parallelism means copies."""
    lockstep = engine.lockstep
    if pool.data_parallel == 1 or not arch.has_experts or lockstep is None:
        return 1
    return pool.data_parallel if lockstep.applies(flags.values, pool.tensor_parallel, expert_ranks(pool)) else 1


def _check_style(engine: Engine, style: str | None, handover: Handover | None) -> None:
    """Refuse a schedule style that is not the engine's."""
    if style is None or handover is None or handover.reserves == (style == "generation_first"):
        return
    order = "to both servers at once" if handover.reserves else "to the decode server when their prompts are computed"
    raise InputError(
        f"{engine.title} knows no {style}: its requests go {order}",
        where="deployment.transfer.schedule_style",
        mend="leave it out",
    )


def _check_lockstep(pool: Pool, engine: Engine) -> None:
    """Refuse what is not modelled beside data-parallel attention."""
    if pool.pipeline_parallel > 1:
        raise InputError(
            "data-parallel attention across pipeline stages is not modelled yet",
            where="deployment.pipeline_parallel",
            mend="use tensor_parallel within a rank instead",
        )
    if pool.lora is not None and "data_parallel" not in engine.adapters_beside:
        raise InputError(
            "`lora` beside data-parallel attention is not modelled yet",
            where="deployment.lora",
            mend="remove `deployment.lora`, or use tensor_parallel",
        )


def lockstep_notes(ranks: int, pool: Pool, lockstep: Lockstep, *, routed: bool) -> list[str]:
    """What is assumed of data-parallel attention."""
    devices = ranks * pool.tensor_parallel
    rank_devices = "one device" if pool.tensor_parallel == 1 else f"{pool.tensor_parallel} devices"
    experts = expert_ranks(pool)
    split = "whole experts spread over them" if experts >= devices else "each expert's width split over them"
    if 1 < experts < devices:
        split = f"experts spread over {experts} of them, their width split over the rest"
    launch = lockstep.launch(devices, ranks)
    spoken = f" ({launch})" if launch else ""
    exchange = (
        "tokens go to the ranks of their experts and back, and those compute no others, as DeepEP and its experts were timed on "
        "one node (more ranks: as many more bytes, assumed; formats without times: by NCCL's curves)"
        if routed
        else "the exchange around a layer of experts is an all-gather and a reduce-scatter of 16-bit activations over the ranks, "
        "priced from NCCL's measured curves (assumed also where another all-to-all backend is asked for)"
    )
    return [
        f"data-parallel attention: {ranks} ranks of {rank_devices} step together and share the experts of {devices} devices, "
        f"{split}{spoken}; limits and KV blocks are of one rank",
        f"{exchange}; dense layers, shared experts and LM head are timed as computed by every rank for its own tokens "
        f"({lockstep.dense})",
    ]


def resolve_formats(
    pool: Pool, arch: Architecture, device: Device, engine: Engine, flags: EngineFlags
) -> tuple[Formats, list[str]]:
    """Number formats of weights, activations and KV cache, checked against the device; and notes on them."""
    notes: list[str] = []
    _check_checkpoint_format(pool, arch, engine, flags)
    dtype = "fp32" if pool.weights == "fp32" else arch.dtype
    filed = engine.files.get(arch.quantization or "")
    chosen = pool.weights or filed or arch.quantization or engine.weights or dtype
    if arch.quantization == "fp8_block" and pool.weights == "fp8" and "quantization" in flags.values:
        chosen = arch.quantization  # the flag reads the checkpoint as it is
    weights = format_named(str(chosen), where="deployment.weights")
    if pool.weights is None and chosen == engine.weights != arch.quantization:
        notes.append(f"weights in {weights.name}, as most files for {engine.title} are; `weights` states another format")
    if pool.weights is None and filed is not None:
        notes.append(f"weights in {weights.name}, as files for {engine.title} are of checkpoints in {arch.quantization}")
    native = set(device.formats) | ({"mxfp8"} if "fp4" in device.formats else set())  # blocks are scaled by the same cores
    version, of_activations = engine.release(split(pool.engine)[1]), engine.activation_format
    quantised = of_activations(device, arch, weights, flags.values, version) if of_activations is not None else None
    wide = weights.weight_only or (weights.name == "mxfp4" and device.vendor == "nvidia")  # priced so, unless an engine says so
    act_name = pool.activations or quantised or ("bf16" if wide else weights.compute)
    if quantised is not None and pool.activations is None:
        where = f"as {engine.title} does on {device.title}"
        notes.append(f"activations are quantised to {quantised} before weights in {weights.name}, {where}")
    if weights.compute not in native and weights.compute not in ("bf16", "fp16"):
        if pool.activations and format_named(pool.activations).compute == weights.compute:
            raise InputError(
                f"{device.title} has no {weights.compute} arithmetic; activations: {pool.activations} cannot run",
                where="deployment.activations",
                mend=f"leave activations out (weights in {weights.name} then run weight-only), or use hardware with "
                f"{weights.compute}",
            )
        act_name = "bf16"
        notes.append(
            f"{device.title} has no {weights.compute} arithmetic: {weights.name} weights run weight-only"
        )
    activations = format_named(act_name, where="deployment.activations")
    if activations.compute not in native and activations.compute not in ("bf16", "fp16", "fp32"):
        raise InputError(
            f"{device.title} has no {activations.compute} arithmetic; activations: {activations.name} cannot run",
            where="deployment.activations",
            mend=f"one of {', '.join(sorted(native))}",
        )
    own = pool.kv_cache in (None, "auto")
    auto = dtype if pool.weights == "fp32" else arch.kv_format
    by_engine = engine.kv_format(device, arch) if own and engine.kv_format is not None else None
    stated = arch.kv_quantization or ""
    since, able = engine.keeps_stated_kv.get(stated), bool(stated) and format_named(stated).compute in native
    if own and by_engine is None and able and since is not None and version >= since:
        auto = stated
        notes.append(f"the KV cache is kept in {auto}, as the checkpoint states for {engine.title}")
    elif own and by_engine is None and since is not None and version >= since:
        notes.append(
            f"the checkpoint states a KV cache in {arch.kv_quantization}, for which {device.title} has no arithmetic: here it is "
            f"kept in {auto}; servers there are reported not to start with it unless told otherwise (an RTX 3090, 2025-10)"
        )
    if by_engine is not None:
        notes.append(f"the KV cache is kept in {by_engine}, as {engine.title} does on {device.title} unless told otherwise")
    kv = format_named(by_engine or auto if own else str(pool.kv_cache), where="deployment.kv_cache")
    if own and by_engine is None and auto == arch.kv_format != dtype:
        notes.append(f"the KV cache of {arch.name} is kept in {kv.name}, as engines do for compressed attention")
    if not kv.kv_cache:
        raise InputError(
            f"no engine keeps its KV cache in {kv.name}",
            where="deployment.kv_cache",
            mend=f"use one of {', '.join(f.name for f in FORMATS.values() if f.kv_cache)}",
        )
    if kv.compute == "fp4" and "fp4" not in native:
        raise InputError(
            f"{device.title} cannot keep a KV cache in {kv.name}: its attention kernels need fp4 arithmetic",
            where="deployment.kv_cache",
            mend="use fp8 or bf16, or a Blackwell GPU",
        )
    return Formats(weights, activations, kv), notes


def _check_checkpoint_format(pool: Pool, arch: Architecture, engine: Engine, flags: EngineFlags) -> None:
    """Refuse a flag that leaves the weights' format to a checkpoint that is not quantized."""
    if pool.weights is not None or arch.quantization is not None:
        return
    known = [EXAMPLES.get(name, name) for name in engine.formats if name not in ("fp32", "bf16", "fp16")]
    for flag, typed in engine.flags().typed.items():
        value = flags.values.get(flag)
        if typed.key == "weights" and flag != "dtype" and value is not None and value not in ("unquant", "none"):
            raise InputError(
                f"flag `{flag}` ({value}) takes the checkpoint's number format, and {arch.name} is not quantized",
                where=f"deployment.engine_args.{flag}",
                mend=f"name the quantized checkpoint under `model`, or state its format, such as weights: {known[0]}",
            )


def prepare(scenario: Scenario, base_dir: Path | None = None) -> Prepared:
    """Resolve a scenario to facts and refuse what cannot be served; nothing is simulated.

    Raises InputError on names and combinations that cannot be, InfeasibleError if the model does not fit.
    """
    base, pools = base_dir or Path.cwd(), scenario.deployment.pools
    alone = scenario.deployment.autoscaler is not None and len(pools) == 1
    running = [number for number, pool in enumerate(pools) if pool.replicas or pool.autoscaler is not None or alone]
    check_encoders(scenario.deployment)
    check_roles(scenario.deployment)
    with_index = len(pools) > 1
    found = [each for number in running for each in _prepare_pool(scenario, number, base, with_index=with_index)]
    encoders = [each for each in found if each.pool.role == "encode"]
    whole = _joined(scenario, [each for each in found if each.pool.role != "encode"])
    return with_encoders(scenario, whole, encoders) if encoders else whole


def _joined(scenario: Scenario, found: list[Prepared]) -> Prepared:
    """The deployment of pools that answer requests, each by itself or several together."""
    pools = scenario.deployment.pools
    asked = [(kind.name, kind.model) for kind in scenario.workload.classes or ()]
    if len(found) == 1 and found[0].pool.prompt_tokens is None:
        models_of(found[0], asked)
        changes = (scenario.deployment.failures, scenario.deployment.autoscaler, pools[0].failures, pools[0].autoscaler)
        if all(each is None for each in changes):
            return found[0]
        from simulator.elastic import with_elasticity

        return with_elasticity(found[0])
    if all(each.pool.role == "mixed" for each in found):
        from simulator.elastic import with_pools

        return with_pools(side_by_side(scenario, with_store(found)))
    if not stands_alone(found):
        fleet = fleet_of(scenario, found)
        models_of(fleet, asked)
        check_services(fleet)
        return fleet
    models_of(found[0], asked)
    found = with_store(found)
    handover = found[0].plan.handover
    reserves, computes = (handover.reserves, handover.computes) if handover is not None else (False, False)
    check_paired(found[0].routing, at_once=reserves, computes=computes)
    check_computed_once(found[0].routing, images=images_asked(scenario))
    from simulator.elastic import disturbances_of, with_roles

    found.sort(key=lambda each: each.pool.role == "decode")
    found, elastic, changing = with_roles(scenario, found)
    disturbed, said = disturbances_of(scenario, found)
    sides = [[e.plan.limits for e in found if e.pool.role == role] for role in ("prefill", "decode")]
    limits = joint_limits(*sides, whole=handover is not None and handover.whole_requests)
    return replace(
        found[-1],
        plan=replace(found[-1].plan, limits=limits),
        replicas=sum(each.replicas for each in found),
        devices=sum(each.devices for each in found),
        price=blended_price([(each.price, each.devices) for each in found]),
        warnings=tuple(told(found, lambda each: each.warnings)),
        assumptions=unique((*told(found, lambda each: each.assumptions), *said, *changing)),
        pools=tuple(found),
        paths=paths_of(scenario.deployment, found),
        disturbances=disturbed,
        elastic=elastic,
    )


def front_words(front: FrontEnd, speed: float | None) -> list[str]:
    """What is assumed of a front end that is one event loop, for requests and tokens."""
    loop = front.loop
    if loop is None or not loop.request_s:
        return []
    taken_s = loop.request_s + loop.hand_over_s + (loop.chat_s if front.chat else 0.0)
    host = "as `host_speed` says" if speed is not None else "assumed; `host_speed` states another"
    return [
        f"front end: one event loop takes {taken_s / loop.speed * 1e3:.2g} ms a request ({loop.idle_factor:.2g} times as long if "
        f"idle) and {loop.row_s / loop.speed * 1e6:.2g} us a row of a step, requests first; its core has {loop.speed:g} of the "
        f"speed at which they were measured ({host})"
    ]


AROUND = ("deployment.router", "deployment.transfer", "deployment.admission")
"""Keys that stand around the pools, and in none."""
WHERE_TIERS = "deployment.kv_tiers"
"""A key of pools, and of a store around them."""


def _prepare_pool(scenario: Scenario, number: int, base: Path, *, with_index: bool) -> list[Prepared]:
    """Resolve one pool, each of its models by itself; errors about it name its index where there are several."""
    pool = scenario.deployment.pools[number]
    try:
        found = [_resolve(scenario, each, base) for each in each_model(pool)]
        if pool.models is None:
            return found
        check_turns(scenario, pool)
        return with_turns(pool, found)
    except PlanError as error:
        if error.where == "hardware" or (error.where == "model" and pool.model is not None):
            error.where = f"deployment.{error.where}"
        of_store = not pool.kv_tiers or (error.where == WHERE_TIERS and _fits_without_store(scenario, pool, base))
        around = (*AROUND, WHERE_TIERS) if of_store else AROUND
        if not with_index or error.where is None or error.where.startswith(around):
            raise
        where = re.sub(r"^deployment(?=\.|$)", f"deployment.pools.{number}", error.where)
        mend = error.mend.replace("`deployment.", f"`deployment.pools.{number}.") if error.mend else error.mend
        raise type(error)(error.message, where=where, mend=mend) from None


def _fits_without_store(scenario: Scenario, pool: Pool, base: Path) -> bool:
    """Whether a pool that cannot be as it is could be without the store around the pools."""
    deployment = scenario.deployment
    if not deployment.kv_tiers:
        return False
    alone = scenario.model_copy(update={"deployment": deployment.model_copy(update={"kv_tiers": None})})
    try:
        for each in each_model(pool):
            _resolve(alone, each, base)
    except PlanError:
        return False
    return True


def _architecture(model: Any, base: Path, engine: Engine) -> Architecture:
    """The model; a family's name alone, such as gpt-oss, is that of a packed file only where the engine loads such files."""
    arch = load_architecture(model, base)
    packed = format_named(arch.quantization).family if arch.quantization is not None else ""
    alone = tags.unpacked(model) if packed and packed not in engine.formats and isinstance(model, str) else None
    return arch if alone is None else load_architecture(alone)


def _resolve(scenario: Scenario, pool: Pool, base: Path) -> Prepared:
    """Resolve one pool."""
    engine, version = engine_named(pool.engine, where="deployment.engine"), split(pool.engine)[1]
    try:
        engine.version(version)
    except InputError as error:
        error.where = "deployment.engine"
        raise
    arch = _architecture(pool.model or scenario.model, base, engine)
    if not any(block.cache for block in arch.attention):
        raise InputError(
            f"no layer of {arch.name} keeps a KV cache, and engines that serve such models are not modelled",
            where="model",
            mend="use a model with attention layers",
        )
    device = _linked(load_device(pool.hardware), pool)
    if device.kind not in engine.devices:
        raise InputError(
            f"{engine.name} does not run on {device.title}",
            where="deployment.hardware",
            mend=f"use an engine that does ({', '.join(e.name for e in on_kind(device.kind))}), or give {engine.name} a device "
            f"of another kind ({', '.join(engine.devices)}; `capacity-plan list hardware`)",
        )
    flags = parse_engine_args(pool.engine, pool.engine_args, pool.name)
    warnings = [*flags.warnings, *beside(scenario.deployment, pool, flags)]
    experts = expert_ranks(pool)
    ranks = lockstep_ranks(pool, engine, arch, flags)
    answers = pool.role != "encode"
    masked, images = answers and structured_asked(scenario), images_asked(scenario)
    _check_features(pool, engine, device, structured=masked, images=images)
    if masked:
        refusal = f"structured output beside {{key}} is not modelled for {engine.title} yet"
        _check_beside(pool, engine.masks_beside, refusal, "workload.structured_output")
    if images and answers:
        refusal = f"images in prompts beside {{key}} are not modelled for {engine.title} yet"
        _check_beside(pool, engine.images_beside, refusal, "workload.images")
    if ranks > 1:
        _check_lockstep(pool, engine)
    check_parallelism(
        arch,
        pool.tensor_parallel,
        pool.pipeline_parallel,
        experts,
        data_parallel=ranks,
        where="deployment.tensor_parallel",
    )
    formats, notes = resolve_formats(pool, arch, device, engine, flags)
    _check_format(engine, version, device, formats, None if pool.weights is not None else arch.quantization)
    uneven = uneven_block_width(arch, formats.weights, pool.tensor_parallel, experts, ranks)
    if uneven is not None:
        raise InputError(
            f"each rank would hold {uneven} columns of every expert of {arch.name}, which fp8 blocks of {FP8_BLOCK} do not "
            "divide; engines refuse to load it",
            where="deployment.tensor_parallel",
            mend="set expert_parallel: true (whole experts on each rank), or a smaller tensor_parallel",
        )
    paired, encoded = pool.role in ("prefill", "decode"), images and encoded_elsewhere(scenario.deployment, pool)
    connector, style = handover_of(scenario.deployment, pool.name) if paired else (None, None)
    request = PoolRequest(
        arch=arch,
        formats=formats,
        device_name=device.name,
        device_memory_bytes=int(device.memory_bytes.value),
        device_kind=device.kind,
        device_cores=int(device.multiprocessors.value) if device.kind == "cpu" and device.multiprocessors else 0,
        host_link_bytes_per_s=device.pcie_bytes_per_s_per_direction.value if device.pcie_bytes_per_s_per_direction else 0.0,
        network_bytes_per_s=rate_of(device.inter_node_bytes_per_s_per_direction),
        tensor_parallel=pool.tensor_parallel,
        pipeline_parallel=pool.pipeline_parallel,
        data_parallel=ranks,
        expert_parallel=experts,
        flags=flags.values,
        speculation=_speculation(pool, engine, flags, arch, formats, base, ranks),
        tiers=tiers_of(scenario.deployment, pool, device),
        lora=_adapters(scenario, pool) if answers else None,
        structured=masked,
        images=images,
        encoded=encoded,
        encoder_connector=encoder_connector_of(scenario.deployment, pool.name) if encoded or not answers else None,
        role=pool.role,
        connector=connector,
        schedule_style=style,
    )
    plan = plan_pool(engine, request, version)
    _check_style(engine, style, plan.handover)
    _check_adapters(scenario, engine, plan)
    if pool.cold_start:
        plan = _fresh(plan, engine, request)
    elif plan.first_use is not None and plan.first_use.grid:
        counts = "" if ranks > 1 else "; `cold_start: true` counts it"
        plan = replace(plan, notes=(*plan.notes, f"{WARM}{counts}"))
    plan = replace(plan, front=plan.front.served(chat=scenario.client.route == "chat", speed=pool.host_speed))
    kernels, lent = operations_in_node(
        device,
        plan.kernels or engine.kernels,
        pool.tensor_parallel * ranks,
        pool.pipeline_parallel,
        pool.gpus_per_node,
        pool.tensor_parallel if ranks > 1 else 1,
        plan.version if plan.kernels in ("", engine.name) and engine.kernels == engine.name else "",
    )
    warnings += [f"{said}, on {device.title}; it was ignored" for said in plan.costs.unserved(kernels)]
    if pool.power_limit_w is not None:
        slower = limited(device, pool.power_limit_w, where="deployment.power_limit_w")
        kernels, lent = ScaledOps.of(kernels, slower), (*lent, limit_words(pool.power_limit_w, slower))
    calibration = calibration_of(pool, plan, device, base)
    if calibration is not None:
        kernels, plan = calibrated(calibration, kernels, plan, arch.name)
        lent = (*lent, calibration_words(calibration, arch.name))
    replicas = pool.replicas * (1 if ranks > 1 else pool.data_parallel)
    from simulator.config.fields import MAX_REPLICAS

    if replicas > MAX_REPLICAS:
        raise InputError(
            f"data parallelism of {pool.data_parallel:,} makes {replicas:,} replicas; a pool has at most {MAX_REPLICAS:,}",
            where="deployment.data_parallel",
            mend="lower data_parallel or replicas",
        )
    devices = replicas * ranks * pool.tensor_parallel * pool.pipeline_parallel
    read_as = [*_read_as(pool.hardware, device.name), *_version_as(engine.name, version, plan.version)]
    assumptions = [*(f"model: {said}" for said in arch.assumed), *read_as, *flags.notes, *notes, *lent, *plan.notes]
    if ranks > 1 and engine.lockstep is not None:
        assumptions += lockstep_notes(ranks, pool, engine.lockstep, routed=plan.costs.terms.routed)
    if answers:
        check_timeout(scenario.client, plan)
    roles = any(each.role in ("prefill", "decode") and each.replicas for each in scenario.deployment.pools)
    labelled = any(each.context_length_range is not None for each in scenario.deployment.pools)
    routing, routed = Routing(), list[str]()
    if answers:
        routing, routed = routing_of(
            scenario.deployment.router, plan, scenario.seed, role=pool.role, roles=roles, labelled=labelled
        )
        assumptions += [*routed, *front_words(plan.front, pool.host_speed)]
    price = unit_price(scenario, device, pool)
    prepared = Prepared(
        scenario=scenario,
        base_dir=base,
        pool=pool,
        arch=arch,
        device=device,
        formats=formats,
        plan=plan,
        kernels=kernels,
        replicas=replicas,
        devices=devices,
        price=price,
        warnings=(*warnings, *plan.warnings, *_unused_costs(scenario, owns=price is not None and price.commitment == OWNED)),
        assumptions=(*assumptions, *empty_tiers(scenario.deployment, pool)),
        routing=routing,
        calibration=calibration,
    )
    return check_law(prepared)


def features_asked(pool: Pool, *, structured: bool, images: bool) -> tuple[str, ...]:
    """What a pool asks of its engine, by the names of `FEATURES`."""
    asked = {
        "speculative": pool.speculative is not None,
        "lora": pool.lora is not None,
        "structured": structured,
        "images": images,
        "offload": pool.offload is not None or bool(pool.kv_tiers),
        "pipeline_parallel": pool.pipeline_parallel > 1,
        "handover": pool.role in ("prefill", "decode"),
        "encoders": pool.role == "encode",
    }
    return tuple(feature for feature, wanted in asked.items() if wanted)


WARM = "servers are warm: what the first requests of a fresh one wait until kernels of experts are compiled is not counted"


def _fresh(plan: EnginePlan, engine: Engine, request: PoolRequest) -> EnginePlan:
    """The plan of servers that have just started; InputError where it is not known what they wait for."""
    where, law = "deployment.cold_start", plan.first_use
    if law is None or request.data_parallel > 1:
        beside = "data-parallel ranks that share experts" if law is not None else "this deployment"
        raise InputError(
            f"what the first requests of a fresh server of {engine.title} wait for is not known for {beside}",
            where=where,
            mend="remove it, and give workload.warmup: the figures are those of servers that have compiled everything",
        )
    return replace(plan, costs=replace(plan.costs, first_use=law), notes=(*plan.notes, law.words))


def _check_features(pool: Pool, engine: Engine, device: Device, *, structured: bool, images: bool) -> None:
    """Refuse what the engine lacks, or lacks on this kind of device."""
    for feature in features_asked(pool, structured=structured, images=images):
        words, where = FEATURES[feature]
        support = engine.features.get(feature)
        if support is None:
            able = with_feature(feature)
            raise InputError(
                f"{words} is modelled for {', '.join(e.title for e in able)}, not for {engine.name} yet",
                where=where,
                mend=f"remove `{where}`, or use one of these engines: {', '.join(e.name for e in able)}",
            )
        if device.kind not in support.kinds:
            raise InputError(
                f"{engine.title} has no {words} on {device.title}",
                where=where,
                mend=f"remove `{where}`, or use hardware of another kind ({', '.join(sorted(support.kinds))})",
            )


def _check_format(engine: Engine, version: str | None, device: Device, formats: Formats, of_model: str | None) -> None:
    """Refuse weights in a format that the engine does not load, or not on this kind of device; `of_model`: that of its name."""
    name, kv, release = formats.weights.name, formats.kv_cache, engine.release(version)
    support = engine.formats.get(name) or engine.formats.get(formats.weights.family)
    if support is None or not support.on(device, release):
        able = [
            f"{EXAMPLES[key]} (and others of {key})" if key in EXAMPLES else key
            for key, entry in engine.formats.items()
            if entry.on(device, release)
        ]
        last = () if support is None else support.last
        gone = bool(last) and release[: len(last)] > last
        on_device = "" if support is None else f" since {_next(last)}" if gone else f" on {device.title}"
        named = ", the format of what `model` names" if of_model == name else ""
        raise InputError(
            f"{engine.title} does not load weights in {name}{on_device}{named}",
            where="deployment.weights",
            mend=f"one of {', '.join(able)}"
            + (f", or an engine that does: {', '.join(others)}" if (others := loading(formats.weights, device.kind)) else ""),
        )
    narrow, kept = kv.bits_per_weight < 16 and not kv.family, engine.kv_formats
    if (kv.family and kv.family not in engine.formats) or (narrow and kept is not None and kv.name not in kept):
        offered = ", ".join(kept or ()) or "16 bits"
        raise InputError(
            f"{engine.title} keeps no KV cache in {kv.name}",
            where="deployment.kv_cache",
            mend=f"leave it out for the engine's own, or use one that it has ({offered})",
        )


def _next(last: tuple[int, ...]) -> str:
    """The version after the last one that has something."""
    return ".".join(map(str, (*last[:-1], last[-1] + 1)))


def structured_asked(scenario: Scenario) -> bool:
    """Whether grammars constrain some answers."""
    return any(load.structured_output is not None for load in scenario.workload.loads())


def images_asked(scenario: Scenario) -> bool:
    """Whether some prompts hold images that are encoded."""
    return any(load.images is not None for load in scenario.workload.loads())


def _check_beside(pool: Pool, modelled: tuple[str, ...], refusal: str, where: str) -> None:
    """Refuse what stands at `where` beside keys of a pool but those with which it is modelled; `refusal` names a {key}."""
    for key in (key for key, there in _beside(pool).items() if there and key not in modelled):
        raise InputError(refusal.format(key=f"`{key}`"), where=where, mend="take one of the two out")


def _beside(pool: Pool) -> dict[str, bool]:
    """Which keys a pool has beside which some features are not simulated."""
    given = {key: getattr(pool, key) is not None for key in ("speculative", "offload", "kv_tiers")}
    return given | {"role": pool.role != "mixed", "pipeline_parallel": pool.pipeline_parallel > 1}


def _adapters(scenario: Scenario, pool: Pool) -> dict[str, Any] | None:
    """The pool's settings of adapters, None where it has none; InputError where requests name adapters that nobody serves."""
    if pool.lora is None:
        if any(load.adapters is not None for load in scenario.workload.loads()):
            raise InputError(
                f"requests name adapters (workload.adapters), and pool {pool.name} serves none",
                where="deployment.lora",
                mend="say what it serves, such as lora: {max_loras: 4, rank: 16}, or take workload.adapters out",
            )
        return None
    engine, given = engine_named(pool.engine), _beside(pool)
    for key in (key for key, there in given.items() if there and key not in engine.adapters_beside):
        others = [each.title for each in with_feature("lora") if key in each.adapters_beside]
        raise InputError(
            f"LoRA adapters beside `{key}` are not simulated for {engine.title}"
            + (f" ({', '.join(others)} {'has' if len(others) == 1 else 'have'} both)" if others else ""),
            where="deployment.lora",
            mend=f"remove lora or {key}",
        )
    return {key: value for key, value in pool.lora.model_dump().items() if value is not None}


def _check_adapters(scenario: Scenario, engine: Engine, plan: EnginePlan) -> None:
    """Refuse requests that name more adapters than an engine has that holds all of its own."""
    adapters = plan.costs.adapters
    if adapters is None or not adapters.all_there:
        return
    stages = scenario.workload.stages or (scenario.workload,)
    named = max(sum(load.adapters.count for load in stage.loads() if load.adapters is not None) for stage in stages)
    kept = int(adapters.limits.counts_model)  # the model's own place
    if named > adapters.limits.on_device - kept:
        raise InputError(
            f"requests name {named} adapters, and {engine.title} serves only the {adapters.limits.on_device - kept} that it has "
            "loaded",
            where="deployment.lora.max_loras",
            mend=f"set deployment.lora.max_loras to {named + kept} or more, or make workload.adapters.count smaller",
        )


def _speculation(
    pool: Pool, engine: Engine, flags: EngineFlags, arch: Architecture, formats: Formats, base: Path, ranks: int
) -> Speculation | None:
    """The pool's speculative decoding, resolved; None where it has none."""
    if pool.speculative is None:
        return None
    from engine_models.cost.drafting import speculation_of

    settings = {key: value for key, value in pool.speculative.model_dump().items() if value is not None}
    return speculation_of(
        settings if engine.drafts is None else engine.drafts(settings, arch, flags.values),
        arch,
        formats,
        load=lambda name: load_architecture(name, base),
        tensor_parallel=pool.tensor_parallel,
        expert_parallel=expert_ranks(pool),
        data_parallel=ranks,
    )


def _unused_costs(scenario: Scenario, *, owns: bool) -> list[str]:
    """Cost settings that a run does not price: those of owned hardware, unless it `owns` for lack of a rental price."""
    owned = ("purchase_usd_per_gpu", "amortisation_years", "power_usd_per_kwh", "pue")
    given = [name for name in owned if not owns and getattr(scenario.cost, name) is not None]
    return (
        [f"cost.{', cost.'.join(given)}: used by `capacity-plan cost` only, not in this figure"]
        if given
        else []
    )


def _version_as(name: str, asked: str | None, taken: str) -> list[str]:
    """An assumption where a version was asked for that is not one of those modelled."""
    if asked is None or asked.lstrip("v") in ("", taken):
        return []
    return [f"{name} {asked} is simulated by the rules of {taken}, the modelled version that stands for it"]


def _linked(device: Device, pool: Pool) -> Device:
    """The device, with the access to its peers' memory that the pool states."""
    if pool.peer_access is None:
        return device
    if device.link is None or device.link.topology != "pcie":
        has = "no link to others" if device.link is None else f"its peers' memory over {device.link.kind}"
        raise InputError(
            f"{device.title} has {has}",
            where="deployment.peer_access",
            mend="remove it: it is of cards that only PCIe joins",
        )
    return replace(device, link=replace(device.link, peer_access=pool.peer_access))


def _read_as(written: str, device: str) -> list[str]:
    """Say which device a short name was taken for, unless the name holds all of it."""
    words = set(re.split(r"[^a-z0-9.]+", Path(written).stem.lower() if written.endswith((".yaml", ".yml")) else written.lower()))
    if set(device.split("-")) <= words:
        return []
    shared = words & set(device.split("-"))
    others = [name for name in device_names() if name != device and shared and shared <= set(name.split("-"))]
    also = f" (not {', '.join(others)})" if others else ""
    return [f"hardware '{written}' is taken for {device}{also}"]


def deployment_summary(prepared: Prepared) -> dict[str, Any]:
    """What was deployed, for reports: devices, parallelism, formats, memory."""
    pool = prepared.pool
    memory, limits = prepared.plan.memory, prepared.plan.limits
    return {
        "model": prepared.arch.name,
        "engine": prepared.plan.engine,
        "engine_version": prepared.plan.version,
        "hardware": prepared.device.name,
        **({"power_limit_w": pool.power_limit_w} if pool.power_limit_w is not None else {}),
        **({"peer_access": pool.peer_access} if pool.peer_access is not None else {}),
        "replicas": prepared.replicas,
        "tensor_parallel": pool.tensor_parallel,
        "pipeline_parallel": pool.pipeline_parallel,
        **({"data_parallel": prepared.ranks} if prepared.ranks > 1 else {}),
        "devices": prepared.devices,
        "weights": prepared.formats.weights.name,
        "activations": prepared.formats.activations.name,
        "kv_cache": prepared.formats.kv_cache.name,
        "kv_blocks": limits.kv_blocks,
        "kv_block_tokens": limits.block_tokens,
        "kv_tokens": limits.told_tokens,
        "weight_bytes_per_device": memory.bytes_of("weight"),
        "kv_bytes_per_device": memory.kv_bytes,
        "max_num_batched_tokens": limits.step_tokens,
        "max_num_seqs": limits.rows,
        "max_model_len": limits.context_tokens,
        "start_up": _start_up(prepared),
        **({"pools": [_pool_summary(each) for each in prepared.pools]} if prepared.pools else {}),
        **({"encoders": [_pool_summary(each) for each in prepared.encoders]} if prepared.encoders else {}),
    }


def _start_up(prepared: Prepared) -> dict[str, Any]:
    """How long a server takes until it serves: weights from the host's disk, no compilation cache."""
    found, notes = prepared.plan.start_up()
    parts = {name: seconds for name, seconds in found.parts().items() if name not in ("provisioning_s", "image_s")}
    return {"server_s": found.server_s, **parts, "weights_from": "disk", "notes": notes}


def _pool_summary(prepared: Prepared) -> dict[str, Any]:
    """What was deployed in one of several pools."""
    taken = prepared.pool.prompt_tokens
    return {
        "name": prepared.pool.name,
        "role": prepared.pool.role,
        **({"prompt_tokens": list(taken)} if taken is not None else {}),
        **({"takes_turns_on": prepared.turns.place} if prepared.turns is not None else {}),
        **deployment_summary(prepared),
    }
