"""``--set path=value``: change one value of a scenario before it is checked."""

from __future__ import annotations

from functools import lru_cache

from hardware_profiles.errors import InputError
from simulator.config.located import Located, mapping, read_yaml, sequence

AROUND_POOLS = ("pools", "router", "admission", "transfer", "autoscaler", "failures", "commitment", "usd_per_gpu_hour")
"""Keys of a deployment that are not keys of a pool."""


def apply_override(
    root: Located, override: str, problems: list[InputError], option: str = "--set"
) -> Located:
    """Return `root` with the value at a dotted path replaced, as ``workload.arrivals.rate=20`` asks.

    Numbers in the path count list entries from 0. The value is YAML. A deployment written as one inline pool
    answers to ``deployment.pools.0.KEY`` as well as to ``deployment.KEY``, and so does a list of one pool.
    A key that the scenario lacks is added; whether it is a valid key, the schema decides later.
    Raises InputError for a path that leads nowhere. `option` is the option of the command line that said it.
    """
    path, equals, text = override.partition("=")
    path = path.strip()
    where = f"{option} {path}" if path else option
    if not equals or not path or not all(path.split(".")):
        raise InputError(
            f"'{override}' is not of the form path=value",
            where=option,
            mend=f"write, for example, {option} deployment.replicas=4",
        )
    value = _read_value(text, where, problems) if text.strip() else Located(None, where)
    return _put(root, _pool_path(root, path.split("."), where), value, (), where)


def _read_value(text: str, where: str, problems: list[InputError]) -> Located:
    value, found = _value(text, where)
    problems += found
    return value


@lru_cache(maxsize=1024)
def _value(text: str, where: str) -> tuple[Located, tuple[InputError, ...]]:
    """A value as written, never changed, and its problems; the points of a sweep share few."""
    found: list[InputError] = []
    try:
        value = read_yaml(text, where, found)
    except InputError as error:
        raise InputError(error.message, where=where, mend=error.mend) from None
    return _moved(value, where), tuple(InputError(p.message, where=where, mend=p.mend) for p in found)


def _moved(node: Located, where: str) -> Located:
    if isinstance(node.value, dict):
        return mapping({k: _moved(v, where) for k, v in node.value.items()}, where)
    if isinstance(node.value, list):
        return sequence([_moved(v, where) for v in node.value], where)
    return Located(node.value, where)


def _pool_path(root: Located, parts: list[str], where: str) -> list[str]:
    deployment = root.value.get("deployment") if isinstance(root.value, dict) else None
    if (
        parts[0] != "deployment"
        or len(parts) < 2
        or deployment is None
        or not isinstance(deployment.value, dict)
    ):
        return parts
    pools = deployment.value.get("pools")
    if pools is None:
        inline = set(deployment.value) - set(AROUND_POOLS)
        if parts[1] == "pools" and len(parts) > 2 and inline:
            if parts[2] != "0":
                raise InputError(
                    f"the deployment is one pool, there is no pool {parts[2]}",
                    where=where,
                    mend="use index 0",
                )
            return [parts[0], *parts[3:]]
        return parts
    if parts[1] in AROUND_POOLS or not isinstance(pools.value, list):
        return parts
    if len(pools.value) == 1:
        return ["deployment", "pools", "0", *parts[1:]]
    if parts[1] == "kv_tiers":  # a pool's own, or a store around several
        return parts
    raise InputError(
        f"the deployment has {len(pools.value)} pools, and `{parts[1]}` belongs to one of them",
        where=where,
        mend=f"name it by its index: --set deployment.pools.0.{'.'.join(parts[1:])}=...",
    )


def _put(node: Located, parts: list[str], new: Located, walked: tuple[str, ...], where: str) -> Located:
    if not parts:
        return new
    head, rest = parts[0], parts[1:]
    at = ".".join(walked) or "the scenario"
    if isinstance(node.value, list):
        count = len(node.value)
        if not head.isdigit() or int(head) >= count:
            valid = f"0 to {count - 1}" if count > 1 else "0"
            raise InputError(
                f"`{at}` is a list of {count}, and '{head}' is not one of its indices",
                where=where,
                mend=f"use an index of {valid}" if count else f"set {at} as a whole",
            )
        items = list(node.value)
        items[int(head)] = _put(items[int(head)], rest, new, (*walked, head), where)
        return sequence(items, node.where)
    if isinstance(node.value, dict) or node.value is None:
        children = dict(node.value or {})
        children[head] = _put(children.get(head, Located(None, where)), rest, new, (*walked, head), where)
        return mapping(children, node.where if node.value is not None else where)
    raise InputError(
        f"`{at}` is {node.value!r}, which has no key `{head}`",
        where=where,
        mend=f"set it as a whole: --set '{at}={{{head}: ...}}'",
    )
