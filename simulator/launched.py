"""What the text of a pool's launch command starts beside its servers: a router, an autoscaler, servers of other engines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine_models.flags import EngineFlags

if TYPE_CHECKING:
    from simulator.config.schema import Deployment, Pool

_IDEAL = {"round-robin": "round_robin", "roundrobin": "round_robin", "random": "random"}
"""Policies that are the same in every product, as a scenario names them."""


def beside(deployment: Deployment, pool: Pool, flags: EngineFlags) -> list[str]:
    """Words on what a pool's text starts that the scenario does not state; empty where it states all of it."""
    said = []
    servers = sum(each.replicas for each in deployment.pools)
    router = _router(flags) if "router" not in deployment.model_fields_set else None
    if router is not None and (servers > 1 or pool.autoscaler or deployment.autoscaler):
        program, asked = router
        if asked != "round_robin":
            said.append(
                f"the launch command starts a router ({program}), which a pool cannot state: requests go round in turn here; "
                f"write router: {asked} under deployment"
            )
    scaled = flags.copies not in (None, (pool.replicas, pool.replicas))
    if flags.copies is not None and scaled and pool.autoscaler is None and deployment.autoscaler is None:
        low, high = flags.copies
        bounds = " and ".join(f"{word} {end}" for word, end in (("at least", low), ("at most", high)) if end is not None)
        keys = ", ".join(f"{key}: {end}" for key, end in (("min_replicas", low), ("max_replicas", high)) if end is not None)
        said.append(
            f"the manifest's autoscaler keeps {bounds} replicas; here they stay {pool.replicas}: write "
            f"autoscaler: {{kind: hpa, metric: num_requests_waiting, target: 5, {keys}}} (or keda, knative) to have them vary"
        )
    return said


def _router(flags: EngineFlags) -> tuple[str, str] | None:
    """The router's program and what a scenario's key `router` says of its policy; None if the text starts none."""
    if not flags.others:
        return None
    from simulator.cluster.routing.systems import PROGRAMS

    for command in flags.others:
        text = " ".join(command)
        for pattern, system, flag, default in PROGRAMS:
            program = re.search(rf"(?<!\S)(?:{pattern})(?!\S)", text)
            policy = re.search(rf"--(?:router[-_])?{flag.replace('_', '[-_]')}[=\s](\S+)|(?<!\S)DYN_{flag.upper()}=(\S+)", text)
            asked = (policy[1] or policy[2]) if policy else default
            if program is not None and asked is not None:
                return program[0].removeprefix("-m "), _IDEAL.get(asked) or f"{{system: {system}, {flag}: {asked}}}"
    return None
