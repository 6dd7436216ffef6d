"""Variables that a scheduler of jobs sets for what it starts, as far as the text that it is given says them.

Read are directives of Slurm (`#SBATCH`; `sbatch`'s manual), tasks of SkyPilot (`resources.accelerators`, `num_nodes`) and of
dstack (`resources.gpu`, `nodes`), as their documentation has them in 2026-11.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

_DIRECTIVE = re.compile(r"(?m)^[ \t]*#SBATCH[ \t]+(--[a-z][a-z-]*(?=[= \t])|-[NnG])[= \t]*([^\s#]+)")
_LONG = {"-N": "--nodes", "-n": "--ntasks", "-G": "--gpus"}
_GPUS = re.compile(r"(?:gpu:)?(?:[A-Za-z]\w*:)?(\d+)(?:\(.*\))?")
"""A number of GPUs, with their kind before it."""


def of_script(text: str) -> dict[str, str]:
    """The variables that Slurm sets by the directives in a script.

    >>> of_script("#SBATCH -N 2\\n#SBATCH --gres=gpu:a100:4\\n")
    {'SLURM_NNODES': '2', 'SLURM_JOB_NUM_NODES': '2', 'SLURM_GPUS_ON_NODE': '4'}
    """
    asked = {_LONG.get(found[1], found[1]): found[2] for found in _DIRECTIVE.finditer(text)}
    if not asked:
        return {}
    nodes, near, tasks = (_whole(asked.get(name)) for name in ("--nodes", "--ntasks-per-node", "--ntasks"))
    if nodes is None and "--nodes" not in asked:
        nodes = 1
    all_gpus, near_gpus, own_gpus = (_gpus(asked.get(name)) for name in ("--gpus", "--gpus-per-node", "--gpus-per-task"))
    if near is None and tasks and nodes and tasks % nodes == 0:
        near = tasks // nodes
    on_node = near_gpus or _gpus(asked.get("--gres"))
    if on_node is None and all_gpus and nodes and all_gpus % nodes == 0:
        on_node = all_gpus // nodes
    if on_node is None and own_gpus:
        on_node = own_gpus * (near or 1)
    found = {
        "SLURM_NNODES": nodes,
        "SLURM_JOB_NUM_NODES": nodes,
        "SLURM_GPUS_ON_NODE": on_node,
        "SLURM_GPUS_PER_NODE": near_gpus,
        "SLURM_GPUS": all_gpus,
        "SLURM_GPUS_PER_TASK": own_gpus,
        "SLURM_NTASKS_PER_NODE": near if "--ntasks-per-node" in asked else None,
        "SLURM_NTASKS": tasks or (nodes * near if nodes and near else None),
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def of_document(task: Mapping[Any, Any]) -> dict[str, str]:
    """The variables that SkyPilot or dstack sets by the keys of a task or service.

    >>> of_document({"resources": {"accelerators": {"H100": 2, "A100": 2}}, "num_nodes": 2})
    {'SKYPILOT_NUM_GPUS_PER_NODE': '2', 'SKYPILOT_NUM_NODES': '2'}
    """
    asked = task.get("resources")
    if not isinstance(asked, Mapping):
        return {}
    found: dict[str, int] = {}
    if len(counts := {*_accelerators(asked.get("accelerators"))}) == 1 and None not in counts:
        found["SKYPILOT_NUM_GPUS_PER_NODE"] = counts.pop() or 0
        found["SKYPILOT_NUM_NODES"] = _whole(task.get("num_nodes")) or 1
    gpus = _of_dstack(asked["gpu"]) if "gpu" in asked else None
    if gpus is not None:
        nodes = _whole(task.get("nodes")) or 1
        found |= {"DSTACK_GPUS_PER_NODE": gpus, "DSTACK_NODES_NUM": nodes, "DSTACK_GPUS_NUM": gpus * nodes}
    return {name: str(count) for name, count in found.items()}


def copies_of(task: Mapping[Any, Any]) -> int | None:
    """The copies of a service of SkyPilot that has always as many; None for any other task."""
    service = task.get("service")
    copies = service.get("replicas") if isinstance(service, Mapping) else None
    return _whole(copies) if type(copies) is int else None


def _accelerators(asked: Any) -> Iterator[int | None]:
    """The numbers of accelerators of the kinds that may be taken; None for one that is not said."""
    kinds: list[Any] = [asked] if isinstance(asked, str) else asked if isinstance(asked, list) else []
    if isinstance(asked, Mapping):
        yield from (_whole(count) for count in asked.values() if count is not None)
        kinds = [kind for kind, count in asked.items() if count is None]  # `{L4:1}` of YAML
    for kind in kinds:
        _, colon, count = str(kind).partition(":")
        yield _whole(count) if colon else 1


def _of_dstack(asked: Any) -> int | None:
    """GPUs of ``A100:40GB:2``, of 2, or of a mapping; None for a range."""
    if isinstance(asked, Mapping):
        return _whole(asked.get("count", 1))
    parts = str(asked).split(":")
    counts = [part for part in parts if re.fullmatch(r"\d+(\.\.\d*)?", part)]
    return _whole(counts[0]) if counts else 1


def _gpus(asked: str | None) -> int | None:
    found = [match for part in (asked or "").split(",") if (match := _GPUS.fullmatch(part))]
    return int(found[0][1]) if len(found) == 1 else None


def _whole(value: Any) -> int | None:
    text = str(value)
    return int(text) if re.fullmatch(r"\d{1,6}", text) else None
