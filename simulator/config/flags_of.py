"""The engine's own flags of each pool, reconciled with the pool's typed keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine_models.flags import parse_engine_args, reconcile
from hardware_profiles.errors import InputError
from simulator.config.located import Located
from simulator.config.problems import locate, raise_all

if TYPE_CHECKING:
    from simulator.config.schema import Pool, Scenario


def fill_from_flags(scenario: Scenario, root: Located) -> Scenario:
    """Return `scenario` with the typed keys that its pools leave open filled from their `engine_args`.

    Raises InputError, at the flags' place, for flags that are unknown, malformed or contradict a typed key.
    """
    problems: list[InputError] = []
    pools = []
    for i, pool in enumerate(scenario.deployment.pools):
        path, node = locate(root, ("deployment", "pools", i, "engine_args"))
        try:
            pools.append(_filled(pool, scenario.model))
        except InputError as error:
            name = ".".join(str(part) for part in path)
            where = node.value[error.where].where if _has(node, error.where) else node.where
            problems.append(InputError(f"`{name}`: {error.message}", where=where, mend=error.mend))
            pools.append(pool)
    raise_all(problems)
    if all(new is old for new, old in zip(pools, scenario.deployment.pools, strict=True)):
        return scenario
    deployment = scenario.deployment.model_copy(update={"pools": tuple(pools)})
    return scenario.model_copy(update={"deployment": deployment})


def _has(node: Located, key: str | None) -> bool:
    return isinstance(node.value, dict) and key in node.value


def _filled(pool: Pool, model: str | dict[str, Any]) -> Pool:
    if not pool.engine_args:
        return pool
    flags = parse_engine_args(pool.engine, pool.engine_args)
    updates = reconcile(pool.model_dump(), flags, given=pool.model_fields_set, model=model)
    return pool.model_copy(update=updates) if updates else pool
