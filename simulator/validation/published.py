"""What suites and published launches may say of an engine, beside what it declares: the form, filled in by `*_launches.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from hardware_profiles.records import dataclass
from simulator.validation.launches import launch_of

Row = dict[str, Any]
"""A row of a suite."""

Unknowns = dict[str, tuple[str, float, str]]
"""Name of an unknown -> unit, step of the finite difference, meaning."""


@dataclass(frozen=True)
class Fitting:
    """What of an engine's overheads is fitted to measured runs, and to which.

    unknowns : what is fitted.
    targets : metrics of a run that tell it: time per output token first, time to first token last.
    told : the targets of one row, from it, its flags and whether runs on its hardware stand behind the engine's overheads.
    runs : whose and where the runs are: an unknown and the rows that were used -> what ran, where, and the suites.
    least_runs : what a fit needs.
    eager : whether it takes the runs without CUDA graphs, or the others.
    """

    unknowns: Unknowns
    targets: tuple[str, ...]
    told: Callable[[Row, Mapping[str, Any], bool], tuple[str, ...]]
    runs: Callable[[str, list[Row]], tuple[str, str, str]]
    least_runs: int = 5
    eager: bool = False


@dataclass(frozen=True, kw_only=True)
class Published:
    """What is known of the measured runs of one engine.

    release : the modelled version that stands for a stated one ("" for the newest); raises `Unplayable`.
    unstated : version of a row that states none, "" if unknown.
    columns : flags that the columns of a row state.
    launch : flags of the script that launched a row's server, and on which device; `activations` among them is a pool's key.
    parallel : a pool's keys of the ranks of a row's launch, empty where the launch says nothing.
    ranks : flags of data-parallel ranks that share experts, by how many they are.
    instances : independent servers behind one router that a row counts as data-parallel ranks.
    front, costs : what client and environment do that no flag says: fields of `FrontEnd` and `StepCosts`.
    start_s : how much longer the first request of each user waits when the closed loop of a row starts [s].
    fresh : whether a run begins on a server that has served nothing yet, which its first requests show.
    compiles_while_measured : whether a run measured what its server compiled on first use.
    fittings : by the suffix of the fit's name, "" for the engine's own; fitted : the words on them; chosen : the words on what
        else was set by looking at end-to-end runs.
    """

    release: Callable[[str], str]
    unstated: Callable[[Row], str] = lambda row: ""
    columns: Callable[[Row], dict[str, Any]]
    launch: Callable[[Row, str], dict[str, Any]] = lambda row, device: dict(launch_of(row).flags)
    parallel: Callable[[Row], dict[str, int]] = lambda row: tensor_ranks(launch_of(row).tensor_ranks)
    ranks: Callable[[int], Mapping[str, Any]] = lambda ranks: {}
    instances: Callable[[Row], int] = lambda row: 1
    front: Callable[[Row], dict[str, Any]] = lambda row: {}
    costs: Callable[[Row], dict[str, Any]] = lambda row: {}
    start_s: Callable[[Row], float] = lambda row: 0.0
    fresh: Callable[[Row], bool] = lambda row: False
    compiles_while_measured: Callable[[Row], bool] = lambda row: False
    fittings: Mapping[str, Fitting] = field(default_factory=dict)
    fitted: str = ""
    chosen: str = ""


def tensor_ranks(ranks: int) -> dict[str, int]:
    """A pool's keys of so many tensor-parallel ranks; none of 0."""
    return {"tensor_parallel": ranks} if ranks else {}


def number(row: Row, name: str) -> float | None:
    """A row's number, None where it has none."""
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def parts(release: str) -> tuple[int, ...]:
    """The first two numbers of a version."""
    return tuple(int(part) for part in release.split(".")[:2])
