"""LitServe: a server around a user's `predict`, which is the `generate` of a model here.

The rule by which its workers form batches is `engine_models.schedulers.worker_windows`; what they compute is a group of
`engine_models.schedulers.static`, in memory and time as `engine_models.engines.generate` says.

Behaviour and defaults of 0.2.19 (2026-11: `server.py`, `api.py`, `loops/`), checked batch by batch against recordings of it
(`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.declaration import Engine, EnginePlan, FrontEnd, Mode, PoolRequest, Support
from engine_models.engines.generate import Groups, plan_groups
from engine_models.engines.litserve_flags import FLAGS
from engine_models.engines.litserve_recorded import decisions
from engine_models.parts.protocols import INFINITY, Scheduler
from engine_models.schedulers.worker_groups import WorkerGroups
from engine_models.schedulers.worker_windows import Collectors, WindowRules
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError


def rules_of(flags: dict[str, Any]) -> WindowRules:
    """How the workers collect; InputError for a window that is longer than requests may wait."""
    rows, window_s = int(flags.get("max_batch_size", 1)), float(flags.get("batch_timeout", 0.0))
    asked = flags.get("timeout", 30.0)
    timeout_s = INFINITY if asked is False or asked == -1 else float(asked)
    if window_s > timeout_s:
        raise InputError(
            f"batch_timeout {window_s:g} s is longer than timeout {timeout_s:g} s, which LitServe refuses",
            where="deployment.engine_args.batch_timeout",
            mend="make it shorter, or timeout longer",
        )
    # one request at a time is taken without a window
    return WindowRules(
        int(flags.get("workers_per_device", 1)), rows, window_s if rows > 1 else 0.0, timeout_s
    )


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one pool: the workers of one device, and the groups that they compute.

    Raises InfeasibleError if the workers' models do not fit, InputError on what the engine or this model of it lacks.
    """
    rules, stream = rules_of(request.flags), bool(request.flags.get("stream", False))

    def scheduler(tokens: int, windows: tuple[int, ...]) -> Callable[[Mode], Scheduler]:
        return lambda mode: WorkerGroups(
            Collectors(rules),
            rules.workers,
            tokens,
            windows=windows,
            at_once=not stream,
            aggregate=mode == "jump",
        )

    rows, workers = rules.max_batch_size, rules.workers
    taking = (
        "one request at a time"
        if rows == 1
        else f"what is queued, at most {rows:,} requests"
        if not rules.batch_timeout_s
        else f"at most {rows:,} requests in windows of {1e3 * rules.batch_timeout_s:g} ms, which begin when a worker is free"
    )
    notes = (
        f"LitServe: {workers} worker{'s' * (workers > 1)} a device, each taking {taking}; who has waited longer than "
        f"{rules.timeout_s:g} s is answered 504 when he is taken",
        "predict is generate of transformers: groups padded to the longest, computed until the last ends; above {tokens} tokens, "
        "padding included, a group fails for lack of memory",
        "tokens are seen as they come"
        if stream
        else "answers are seen when the whole batch has ended (stream: false)",
        *(
            [
                "the steps of several workers take turns on the device, each launches its own meanwhile (assumed)"
            ]
            if workers > 1
            else []
        ),
    )
    front = FrontEnd(load_overheads(ENGINE.name, ENGINE.overheads_from).front_end_s)
    groups = Groups(rows, workers, scheduler, "max_batch_size")
    return plan_groups(request, ENGINE.name, ENGINE.version(version_text), groups, front, notes)


_SOURCE = "litserve 0.2.19 (2026-11)"
_ANY: frozenset[DeviceKind] = frozenset({"gpu", "cpu", "apple"})

ENGINE = Engine(
    name="litserve",
    title="LitServe",
    rule=(
        "Workers take from one queue, each in a window of its own that begins when it is free, and compute what they "
        "took to the end; who has waited too long is sent away with 504 when it is taken."
    ),
    versions={"0.2.19": {}},
    oldest="0.2.16",
    devices={
        "gpu": f"{_SOURCE}: accelerator cuda",
        "cpu": f"{_SOURCE}: accelerator cpu",
        "apple": f"{_SOURCE}: accelerator mps",
    },
    formats={
        name: Support(_ANY, f"{_SOURCE}: the user's model, transformers 5.24.0: dtype")
        for name in ("bf16", "fp16", "fp32")
    },
    kv_formats=(),
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "max_batch_size", "context": "max_length"},
    kernels="vllm",
    overheads_from="transformers",
    plan=plan,
    decisions=decisions,
)
