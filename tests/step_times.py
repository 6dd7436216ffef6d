"""Step times of tests, composed from flat options: fields of `Terms` by their names, parallelism and range in short."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from engine_models.cost.drafting import Drafting
from engine_models.cost.lockstep import Lockstep
from engine_models.cost.step_time import StepTimeModel, TableRange
from engine_models.cost.terms import Formats, HostOverhead, Parallelism, Shard, Terms
from engine_models.model.blocks import Architecture
from hardware_profiles.ops import Ops

PARALLEL = {
    "tensor_parallel": "tensor",
    "pipeline_parallel": "pipeline",
    "expert_parallel": "expert",
    "data_parallel": "ranks",
}
RANGE = {"max_step_tokens": "step_tokens", "max_rows": "rows", "max_context_tokens": "context_tokens"}


def up_to(options: dict[str, Any]) -> TableRange:
    """The range among flat options."""
    return TableRange(**{short: options[name] for name, short in RANGE.items() if name in options})


def shard_of(
    arch: Architecture, ops: Ops, formats: Formats, host: HostOverhead, **options: Any
) -> Shard:
    """The shard of flat options."""
    known = {f.name for f in fields(Terms)}
    assert set(options) <= known | set(PARALLEL) | set(RANGE), options
    terms = Terms(host, **{name: value for name, value in options.items() if name in known})
    parallel = Parallelism(**{short: options[name] for name, short in PARALLEL.items() if name in options})
    return Shard(arch, ops, formats, parallel, terms)


def step_time(
    arch: Architecture, ops: Ops, formats: Formats, host: HostOverhead, **options: Any
) -> StepTimeModel:
    """Step times of one rank's own part."""
    return StepTimeModel(shard_of(arch, ops, formats, host, **options), up_to(options))


def lockstep(own: StepTimeModel | Drafting, *, shard: Shard | None = None, **options: Any) -> Lockstep:
    """Those of its ranks together; `shard` is that of `own` unless it drafts."""
    if shard is None:
        assert isinstance(own, StepTimeModel)
        shard = own.shard
    return Lockstep(own, shard, up_to(options))
