"""Loads that run one after the other on the same servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass
from simulator.workload.build import build_workload
from simulator.workload.columns import RequestClass, Workload
from simulator.workload.fields import LARGEST
from simulator.workload.naming import SegmentNumbers
from simulator.workload.spec import WorkloadSpec
from simulator.workload.streams import stream


@dataclass(frozen=True)
class StageLoad:
    """A stage: what was asked of it, and its requests, whose times count from its begin."""

    name: str
    measured: bool
    spec: WorkloadSpec
    workload: Workload


def stage_specs(spec: WorkloadSpec, *, lasting_s: float = LARGEST) -> list[WorkloadSpec]:
    """Each stage as a workload of its own; all but the last drain until their last answer, for at most `lasting_s`."""
    assert spec.stages is not None
    last = len(spec.stages) - 1
    return [
        WorkloadSpec.model_validate(stage.model_dump(exclude={"name", "measured"})).model_copy(
            update={"drain_s": spec.drain_s if number == last else max(lasting_s, spec.drain_s)}
        )
        for number, stage in enumerate(spec.stages)
    ]


def build_stages(
    spec: WorkloadSpec, numbers: SegmentNumbers, *, seed: int, base_dir: Path, lasting_s: float = LARGEST
) -> list[StageLoad]:
    """The requests of each stage; contents that several name alike have equal `numbers`.

    Stages have random streams of their own, so that equal ones are not the same requests once more; the first has the run's.
    `lasting_s` : how long each but the last may drain.
    """
    assert spec.stages is not None
    built = []
    for number, (stage, own) in enumerate(zip(spec.stages, stage_specs(spec, lasting_s=lasting_s), strict=True)):
        own_seed = int(stream(seed, f"stage.{number}").integers(2**63)) if number else seed
        workload = build_workload(own, seed=own_seed, base_dir=base_dir, named=True)
        if workload.content is not None:
            workload = replace(workload, content=numbers.renumber(workload.content))
        built.append(StageLoad(stage.name, stage.measured, own, workload))
    return built


def begun(workload: Workload, at_s: float, rows: int, sessions: int) -> Workload:
    """A stage's requests on the clock of the run: it begins at `at_s`, after `rows` requests and `sessions` conversations."""
    return replace(
        workload,
        arrival_s=workload.arrival_s + at_s,
        not_before_s=workload.not_before_s + at_s,
        predecessor=np.where(workload.predecessor >= 0, workload.predecessor + rows, workload.predecessor),
        edges=None if workload.edges is None else workload.edges + rows,
        session_id=np.where(workload.session_id >= 0, workload.session_id + sessions, -1),
        duration_s=workload.duration_s + at_s,
        warmup_s=workload.warmup_s + at_s,
    )


def in_a_row(loads: Sequence[tuple[str, Workload]], warmup_s: float) -> Workload:
    """Begun stages, by their names, as one workload, measured from `warmup_s` on; its contents are not told."""
    classes: list[RequestClass] = []
    numbers = []
    for _, each in loads:
        classes += [kind for kind in each.classes if kind not in classes]
        numbers.append(np.array([classes.index(kind) for kind in each.classes])[each.class_index])

    def joined(column: str) -> NDArray[Any]:
        return np.concatenate([getattr(each, column) for _, each in loads])

    last = loads[-1][1]
    named = any(each.request_ids is not None for _, each in loads)
    ids = [
        f"{name}/{own}"
        for name, each in loads
        for own in each.request_ids or (f"r{row}" for row in range(len(each)))
    ]
    return Workload(
        joined("arrival_s"),
        joined("prompt_tokens"),
        joined("output_tokens"),
        joined("max_output_tokens"),
        joined("predecessor"),
        joined("gap_s"),
        joined("not_before_s"),
        joined("session_id"),
        joined("turn"),
        class_index=np.concatenate(numbers),
        classes=tuple(classes),
        content=None,
        request_ids=tuple(ids) if named else None,
        duration_s=last.duration_s,
        warmup_s=warmup_s,
        drain_s=last.drain_s,
        source={"kind": "stages", "stages": {name: each.source for name, each in loads}},
    )
