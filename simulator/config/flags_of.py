"""The engine's own flags of each pool, reconciled with the pool's typed keys."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine_models.declaration import Engine
from engine_models.engines.known import find, parse_engine_args, split
from engine_models.flags import EngineFlags, reconcile
from hardware_profiles.errors import InputError
from simulator.config.located import Located
from simulator.config.problems import locate, raise_all

if TYPE_CHECKING:
    from pydantic import BaseModel

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
            pools.append(_filled(pool, pool.model or scenario.model, alone=len(scenario.deployment.pools) == 1))
        except InputError as error:
            problems.append(_at_flag(error, path, node))
            pools.append(pool)
    raise_all(problems)
    if all(new is old for new, old in zip(pools, scenario.deployment.pools, strict=True)):
        return scenario
    deployment = scenario.deployment.model_copy(update={"pools": tuple(pools)})
    return scenario.model_copy(update={"deployment": deployment})


def flag_problems(root: Located) -> list[InputError]:
    """Return what is wrong with the engine's own flags of each pool, as far as they can be read beside other problems."""
    pools = locate(root, ("deployment", "pools"))[1].value
    count = len(pools) if isinstance(pools, list) else 1
    problems: list[InputError] = []
    for i in range(count):
        _, pool = locate(root, ("deployment", "pools", i))
        path, node = locate(root, ("deployment", "pools", i, "engine_args"))
        engine = pool.value.get("engine") if isinstance(pool.value, dict) else None
        if path[-1:] != ("engine_args",) or engine is None or not isinstance(engine.value, str):
            continue
        args = node.plain()
        if not isinstance(args, str | dict | list):
            continue
        name = pool.value.get("name")
        try:
            parse_engine_args(engine.value, args, str(name.value) if name is not None else None)
        except InputError as error:
            problems.append(_at_flag(error, path, node))
    return problems


def _at_flag(error: InputError, path: tuple[str | int, ...], node: Located) -> InputError:
    """The error at the place of its flag in the file."""
    name = ".".join(str(part) for part in path)
    where = node.value[error.where].where if _has(node, error.where) else node.where
    return InputError(f"`{name}`: {error.message}", where=where, mend=error.mend)


def _has(node: Located, key: str | None) -> bool:
    return isinstance(node.value, dict) and key in node.value


def _filled(pool: Pool, model: str | dict[str, Any], *, alone: bool) -> Pool:
    if not pool.engine_args:
        return pool
    flags, engine = parse_engine_args(pool.engine, pool.engine_args, pool.name), find(pool.engine)
    if engine is None:
        return pool
    from simulator.config.features import Lora, Offload, Speculative

    updates = reconcile(engine.flags(), pool.model_dump(), flags, given=pool.model_fields_set, model=model)
    updates |= _version(engine, pool, flags)
    updates |= _role(pool, flags, alone=alone)
    updates |= _replicas(pool, flags)
    if "offload" in updates:
        updates["offload"] = Offload.model_validate(updates["offload"])
    if "speculative" in updates:
        updates["speculative"] = _checked(Speculative, updates["speculative"], "speculative decoding")
    if "lora" in updates:
        updates["lora"] = _checked(Lora, updates["lora"], "lora")
    return pool.model_copy(update=updates) if updates else pool


def _version(engine: Engine, pool: Pool, flags: EngineFlags) -> dict[str, str]:
    """The pool's `engine` with the version that an image's tag states; InputError if it is another than the key's."""
    if flags.version is None:
        return {}
    name, typed = split(pool.engine)
    try:
        engine.version(flags.version)
    except InputError as error:
        oldest = engine.releases[0]
        raise InputError(
            f"the launch command runs {flags.said}: {error.message}",
            mend=f"take the version out of the command and write engine: {name}@{oldest}, the nearest that is modelled",
        ) from None
    said, asked = engine.parts(flags.version), engine.parts(typed) if typed is not None else ()
    if said[: len(asked)] != asked[: len(said)]:
        raise InputError(
            f"the launch command runs version {flags.version} ({flags.said}), the pool's key `engine` says {pool.engine}",
            mend=f"write engine: {name}@{flags.version}, or engine: {name} to follow the command",
        )
    return {"engine": f"{name}@{flags.version}"} if len(asked) < len(said) else {}


def _replicas(pool: Pool, flags: EngineFlags) -> dict[str, int]:
    """The copies that a manifest asks for, where the pool's key says none: that may be varied."""
    if flags.replicas is None or "replicas" in pool.model_fields_set:
        return {}
    from simulator.config.fields import MAX_REPLICAS

    if not 0 <= flags.replicas <= MAX_REPLICAS:
        raise InputError(f"the manifest asks for {flags.replicas} replicas", mend=f"write 0 to {MAX_REPLICAS:,}")
    return {"replicas": flags.replicas}


def _role(pool: Pool, flags: EngineFlags, *, alone: bool) -> dict[str, str]:
    """The pool's `role` that its command states; InputError if it is another than the key's, or the pool stands alone."""
    role = flags.role
    if role == "either" and pool.role == "mixed" and "role" not in pool.model_fields_set:
        raise InputError(
            "the launch command starts one server of a pair: its connector hands KV blocks over to a peer, or takes them",
            mend="write two pools, role: prefill and role: decode, each with its command; role: mixed for a server by itself",
        )
    if role in (None, "either", pool.role):
        return {}
    if role == "encode" and (alone or "role" in pool.model_fields_set):
        raise InputError(
            f"the launch command starts a server that only encodes images, the pool's role is {pool.role}",
            mend="write role: encode, and beside it a pool that answers",
        )
    if alone or "role" in pool.model_fields_set:
        raise InputError(
            f"the launch command starts the {role} server of a pair, the pool's role is {pool.role}",
            mend="write two pools, role: prefill and role: decode, each with its own command as engine_args",
        )
    return {"role": role}


def _checked(kind: type[BaseModel], settings: dict[str, Any], words: str) -> Any:
    """Settings that flags state, checked as the scenario's own key is; InputError for a value out of range."""
    from pydantic import ValidationError

    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][:1])
        raise InputError(f"`{name}` of {words}: {first['msg'].lower()}", where=name, mend="check its value") from None
