"""The deployment that was measured: a scenario, and what of its load a result file replaces."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.prepared import Prepared
from simulator.workload.build import build_workload
from simulator.workload.columns import IntArray


@dataclass(frozen=True)
class Deployment:
    """A scenario as text or file, with overrides; it has one pool, and no calibration yet."""

    source: Path | str
    overrides: tuple[str, ...] = ()

    @cached_property
    def prepared(self) -> Prepared:
        """The deployment under the scenario's own load. Raises InputError for one that cannot be calibrated."""
        found = prepare(load_scenario(self.source, self.overrides))
        if found.pools or found.elastic is not None:
            raise InputError(
                "results of several pools, or of replicas that come and go, tell no scale of one",
                where="deployment",
                mend="describe and measure one pool of a fixed size",
            )
        if found.calibration is not None:
            raise InputError(
                "the scenario has a calibration already",
                where="deployment.calibration",
                mend="remove it: scales are those of the profile",
            )
        if found.pool.power_limit_w is not None:
            raise InputError(
                "measurements hold the power limit under which they were made",
                where="deployment.power_limit_w",
                mend="remove it: scales are those of the profile",
            )
        return found

    @cached_property
    def tokens(self) -> tuple[IntArray, IntArray]:
        """Prompts and outputs of the scenario's own load."""
        scenario = self.prepared.scenario
        load = build_workload(scenario.workload, seed=scenario.seed, base_dir=self.prepared.base_dir)
        return load.prompt_tokens, load.output_tokens

    def at_width(self, ranks: int) -> Deployment:
        """The same at another tensor parallelism."""
        return replace(self, overrides=(*self.overrides, f"deployment.tensor_parallel={ranks}"))

    def under(self, **workload: Any) -> Prepared:
        """The deployment under another load: keys of `workload` replaced, or all of it where lengths are given too."""
        whole = "prompt_tokens" in workload
        texts = [f"workload={json.dumps(workload)}"] if whole else [f"workload.{k}={json.dumps(v)}" for k, v in workload.items()]
        return prepare(load_scenario(self.source, [*self.overrides, *texts]))


__all__ = ["Deployment"]
