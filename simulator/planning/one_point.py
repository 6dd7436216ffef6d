"""One point of a sweep: what it is, and its simulation, in whatever process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware_profiles.errors import InfeasibleError, InputError, PlanError
from hardware_profiles.records import dataclass
from simulator.io.rundir import run_directory, write_run
from simulator.io.text import plain
from simulator.planning.axes import Point
from simulator.planning.points import outcome_columns
from simulator.planning.store import RUNS

if TYPE_CHECKING:
    from simulator.config.schema import Scenario
    from simulator.prepared import Prepared
    from simulator.workload.columns import Workload


@dataclass(frozen=True)
class PlannedPoint:
    """One point with its scenario, or with the reason why there is none; `headroom`: how far it is from full is asked for."""

    point: Point
    scenario: Scenario | None
    digest: str
    error: PlanError | None = None
    headroom: bool = False

    @property
    def name(self) -> str:
        """Name of the point's run directory."""
        label = self.scenario.name if self.scenario else "invalid"
        return run_directory(Path(), label, self.digest).name

    def run(self, folder: Path, command_line: Sequence[str]) -> dict[str, Any]:
        """Simulate it, in the folder of its sweep."""
        assert self.scenario is not None
        return run_point(self.scenario, folder / RUNS / self.name, command_line, self.headroom)


KEPT = 128
"""Deployments kept for later points (assumed)."""
_resolved: dict[str, Prepared] = {}
"""The last ones, each by all of its scenario but when requests arrive, which decides nothing before a run."""


def shared_deployment(scenario: Scenario) -> Prepared:
    """Return the scenario resolved, once for points that differ in when requests arrive: that is all that is replaced.

    Several pools, and replicas that come and go, hold the scenario in further places: they are resolved each time.
    """
    from simulator.prepare import prepare

    load = scenario.workload
    rest = scenario.model_copy(update={"workload": load.model_copy(update={"arrivals": None})})
    key = rest.model_dump_json(exclude_unset=True)  # what is said and equals a default is not what is left unsaid
    found = _resolved.get(key)
    if found is not None:
        return replace(found, scenario=scenario)
    made = prepare(scenario)
    if made.elastic is None and not made.pools:
        if len(_resolved) >= KEPT:
            _resolved.pop(next(iter(_resolved)), None)
        _resolved[key] = made
    return made


_built: dict[str, Workload] = {}
"""The last workload, which most points of a sweep share."""


_sweep = ""
"""The sweep that asked last."""


def begin(sweep: str = "") -> None:
    """Points of a sweep follow, named if others of it may have been before them.

    What points of another one have left is forgotten: files that they named may have been changed since.
    """
    global _sweep
    if not sweep or sweep != _sweep:
        _resolved.clear()
        _built.clear()
    _sweep = sweep


def shared_workload(scenario: Scenario) -> Workload | None:
    """Return the scenario's requests, built once for points that share them; they are never changed.

    None where the run builds them: stages, and requests whose contents a cache may hold from before.
    """
    from simulator.workload.build import build_workload

    if scenario.workload.stages is not None or any(pool.warm_cache for pool in scenario.deployment.pools):
        return None
    key = f"{scenario.seed} {scenario.workload.model_dump_json()}"
    found = _built.get(key)  # threads of one worker may be here at once
    if found is None:
        found = build_workload(scenario.workload, seed=scenario.seed, base_dir=Path.cwd())
        _built.clear()
        _built[key] = found
    return found


def run_point(
    scenario: Scenario, directory: Path | None, command_line: Sequence[str], with_headroom: bool = False
) -> dict[str, Any]:
    """Simulate one point, write its run directory, if it is to have one; return its status, reason and outcome columns.

    What the scenario itself forbids becomes a status. Errors of the place of writing (a full disk) are raised.
    """
    from simulator.planning.headroom import headroom as find_headroom
    from simulator.run import run_prepared

    try:
        prepared = shared_deployment(scenario)
        run = run_prepared(prepared, workload=shared_workload(scenario))
        if with_headroom:
            run.result["headroom"] = find_headroom(prepared, run).as_dict()
    except InfeasibleError as error:
        return {"status": "infeasible", "reason": in_words(error)}
    except InputError as error:
        return {"status": "invalid", "reason": in_words(error)}
    except Exception as error:
        return {"status": "failed", "reason": f"internal error: {type(error).__name__}: {error}"}
    if directory is not None:
        run.manifest["run"]["command_line"] = list(command_line)
        write_run(
            directory, result=run.result, manifest=run.manifest, requests=run.requests, timeline=run.timeline
        )
    return {"status": "ok", "reason": "", "outcome": plain(outcome_columns(run.result))}


def in_words(error: PlanError) -> str:
    """An error in one line."""
    place = f"{error.where}: " if error.where else ""
    return f"{place}{error.message}" + (f" (mend: {error.mend})" if error.mend else "")
