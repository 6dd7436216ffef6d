"""Validation errors in words: what is wrong, in which file and line, and the mend."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from hardware_profiles.errors import InputError, nearest
from simulator.config.located import Located
from simulator.config.overrides import AROUND_POOLS

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]


class ScenarioError(InputError):
    """All problems of one scenario; `message`, `where` and `mend` are those of the first.

    Parameters
    ----------
    problems : at least one, in the order to show.
    """

    def __init__(self, problems: Sequence[InputError]) -> None:
        first = problems[0]
        super().__init__(first.message, where=first.where, mend=first.mend)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        return "\n".join(str(InputError(p.message, where=p.where, mend=p.mend)) for p in self.problems)


def raise_all(problems: Sequence[InputError]) -> None:
    """Raise `problems` together, by line of the file; do nothing if there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ScenarioError(sorted(problems, key=_place_order))


def _place_order(problem: InputError) -> tuple[bool, int]:
    line = re.search(r":(\d+)$", problem.where or "")
    return (line is None, int(line[1]) if line else 0)


def locate(root: Located, loc: Sequence[str | int]) -> tuple[Path, Located]:
    """Follow `loc` as far as the data has it; return the path taken and the value there.

    Parts that are not in the data are skipped: the names of a union's branches, and ``pools.0`` where the
    deployment is one pool inline.
    """
    node, path = root, []
    for part in loc:
        in_dict = isinstance(node.value, dict) and part in node.value
        if in_dict or (isinstance(node.value, list) and isinstance(part, int) and part < len(node.value)):
            node = node.value[part]
            path.append(part)
    return tuple(path), node


def explain(error: ValidationError, root: Located, model: type[BaseModel]) -> list[InputError]:
    """Turn pydantic's errors on `root` into problems, one for each place, unknown keys first.

    Raises nothing; `model` is the model that refused the data.
    """
    groups: dict[Path, list[dict[str, Any]]] = {}
    for item in error.errors(include_url=False, include_context=True):
        item_dict: dict[str, Any] = dict(item)
        loc = item_dict["loc"]
        if _said_elsewhere(item_dict):
            continue
        path, node = locate(root, loc[:-1] if item_dict["type"] == "missing" else loc)
        if item_dict["type"] == "missing":
            path = (*path, loc[-1])
        groups.setdefault(path, []).append(item_dict | {"node": node})
    problems: list[InputError] = []
    missing: list[tuple[Path, InputError]] = []
    suggested: set[Path] = set()
    for path, items in groups.items():
        deeper = any(other[: len(path)] == path and other != path for other in groups)
        for found in _of_matching_branch(items, deeper):
            if found["type"] == "missing":
                missing.append((path, _missing(path, found, root)))
            elif found["type"] == "extra_forbidden":
                problem, near = _unknown(path, found, model, root)
                problems.append(problem)
                if near is not None:
                    suggested.add(near)
            else:
                problems.append(_other(path, found | {"kinds": kinds_at(model, found["loc"])}))
    problems += [problem for path, problem in missing if path not in suggested]
    return problems


def _said_elsewhere(item: dict[str, Any]) -> bool:
    """Infinite numbers were reported by the reader; pydantic counts only a list's valid entries."""
    value = item["input"]
    if isinstance(value, float) and not math.isfinite(value):
        return True
    return item["type"] == "too_short" and len(value) > int(item["ctx"]["actual_length"])


_TYPE_ERRORS = ("_type", "_parsing", "literal_error", "int_from_float")


def _of_matching_branch(items: list[dict[str, Any]], deeper: bool) -> list[dict[str, Any]]:
    """Of the complaints about one value, keep those of the union's branch that was meant."""
    types = [item for item in items if item["type"].endswith(_TYPE_ERRORS)]
    rest = [item for item in items if not item["type"].endswith(_TYPE_ERRORS)]
    if rest:
        return rest
    if deeper and types and isinstance(types[0]["node"].value, dict | list):
        return []
    if len(types) < 2:
        return types
    wanted = list(dict.fromkeys(_wanted(item) for item in types))
    return [types[0] | {"wanted": " or ".join(wanted)}]


def _name(path: Path) -> str:
    return ".".join(str(part) for part in path) or "the scenario"


def _examples() -> dict[str, str]:
    """What a mend shows for a missing key."""
    from engine_models.engines.known import EXAMPLE

    return {
        "engine": EXAMPLE,
        "hardware": "h100-sxm-80gb",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": f"{{engine: {EXAMPLE}, hardware: h100-sxm-80gb}}",
        "workload": "{trace: azure-conv-2023, duration: 600}",
    }


def _pasted(root: Located) -> dict[str, str]:
    """The `engine` and the `model` that a pasted launch command of the first pool names, as far as it does."""
    from engine_models.engines.known import launched_by, parse_engine_args

    path, node = locate(root, ("deployment", "pools", 0, "engine_args"))
    args = node.plain()
    if path[-1:] != ("engine_args",) or not isinstance(args, str | list | dict):
        return {}
    engine = launched_by(args)
    if engine is None:
        return {}
    try:
        model = parse_engine_args(engine, args).model
    except InputError:
        model = None
    return {"engine": engine, **({"model": model} if model else {})}


def _missing(path: Path, item: dict[str, Any], root: Located) -> InputError:
    key = path[-1]
    under = f" under `{_name(path[:-1])}`" if path[:-1] else ""
    example = (_examples() | _pasted(root)).get(str(key), _NUMBERS.get(str(key), "..."))
    mean = _number_at(root, (*path[:-1], "mean"))
    if key == "p99" and mean is not None:
        example = f"{mean * _NUMBERS['p99'] / _NUMBERS['mean']:.0f}"
    return InputError(
        f"`{_name(path)}` is missing", where=item["node"].where, mend=f"add `{key}: {example}`{under}"
    )


PLANNED = {
    "pool": ("colocate",),
    "deployment": ("dynamo", "wva", "colocate"),
}
"""Keys by section that are right and not simulated yet; those of an inline pool stand under `deployment`."""


def _section(path: Path) -> str:
    """The section of a key, "pool" for an entry of `pools`."""
    return "pool" if path[:2] == ("deployment", "pools") and len(path) == 4 else _name(path[:-1])


def _unknown(
    path: Path, item: dict[str, Any], model: type[BaseModel], root: Located
) -> tuple[InputError, Path | None]:
    """The problem of an unknown key, and the path of the key that was meant."""
    key, where = str(path[-1]), item["node"].where
    if key in PLANNED.get(_section(path), ()):
        name = _name(path)
        return InputError(f"`{name}` is not modelled yet", where=where, mend=f"remove `{name}`"), None
    known = keys_at(model, item["loc"][:-1])
    deployment, _ = locate(root, ("deployment", "pools"))
    inline = deployment == ("deployment",)
    if path[0] == "deployment" and len(path) == 2:
        pool = keys_at(model, ("deployment", "pools", 0))
        if inline:
            known = [*known, *(k for k in AROUND_POOLS if k not in known)]
        elif key in pool:
            mend = f"move `{key}` into the entries of `pools`"
            return InputError(f"`{key}` belongs to a pool, not beside `pools`", where=where, mend=mend), None
    joined = _PERCENTILE_IN_KEY.search(key.lower())
    if path[:-1] == ("slo",) and joined:
        bound = nearest(key.lower().replace(joined[0], ""), list(_LATENCY_BOUNDS))
        if bound is not None:
            value = getattr(item["node"], "value", None)
            mend = _percentile(("slo", bound), joined[1], value if isinstance(value, int | float) else 500, where)
            return InputError(f"unknown key `{key}` under `slo`", where=where, mend=mend), (*path[:-1], bound)
    problem, near = unknown_key(key, path[:-1], known, where)
    p99 = _p99_of(key, root, path[:-1]) if "p99" in known else None
    if p99 is not None:
        mend = f"a log-normal law is given by mean and p99: write `p99: {p99:.0f}` in place of `{key}`"
        return InputError(problem.message, where=where, mend=mend), (*path[:-1], "p99")
    meant = _meant(key, path, known, model, root) if near != f"{key}s" else []  # in the singular, it is that one
    said = IN_WORDS.get(key.lower())
    if said is not None and not any(other[:-1] == path[:-1] for other in meant):
        return InputError(problem.message, where=where, mend=said), None
    if not meant and near is None:
        spelled = difflib.get_close_matches(
            key, sorted({str(leaf[-1]) for leaf in leaf_paths(model)}), 1, CLOSE_SPELLING
        )
        meant = elsewhere(spelled[0], path, model, root) if spelled else []
    if not meant and near is not None:
        meant = [(*path[:-1], near)]
    if not meant:
        return problem, None
    short = not where.startswith("--") and len(meant) == 1 and meant[0][:-1] == path[:-1]
    shown = " or ".join(f"`{meant[0][-1] if short else _name(other)}`" for other in meant)
    top = " at the top of the scenario" if len(meant) == len(meant[0]) == 1 and len(path) > 1 else ""
    return InputError(problem.message, where=where, mend=f"did you mean {shown}{top}?"), meant[0]


def _number_at(root: Located, path: Path) -> float | None:
    """The positive number that stands at `path`, or None."""
    at, node = locate(root, path)
    value = node.value
    return float(value) if at == path and type(value) in (int, float) and 0 < value < math.inf else None


def _p99_of(key: str, root: Located, at: Path) -> float | None:
    """The 99th percentile of the log-normal law at `at` whose width is given as `key`, or None if it is none."""
    from simulator.workload.lengths import lognormal_p99

    width, mean = _number_at(root, (*at, key)), _number_at(root, (*at, "mean"))
    if width is None or mean is None or key not in ("sigma", "cv", "std"):
        return None
    cv = width / mean if key == "std" else width
    try:
        return lognormal_p99(mean, width if key == "sigma" else math.sqrt(math.log1p(cv * cv)))
    except ValueError:
        return None


def _meant(key: str, path: Path, known: list[str], model: type[BaseModel], root: Located) -> list[Path]:
    """Return the places of a key that is right elsewhere, that other tools name so, or that is the engine's own flag.

    Keys of the same section that have `key` as one of their words are preferred to one of another section.
    """
    from engine_models.engines.known import flag_defaults

    name = key.replace("-", "_")
    other = SHORT_NAMES.get(name.lower(), "")
    for word in (other, name) if other in known else (name, other):
        if word in known:
            return [(*path[:-1], word)]
        away = elsewhere(word, path, model, root) if word else []
        if away and all(other[: len(path) - 1] != path[:-1] for other in away):
            beside = [other for other in known if word in other.split("_")]
            if 1 <= len(beside) <= MOST_PLACES:
                return [(*path[:-1], other) for other in beside]
        if away:
            return away
    pool, node = locate(root, ("deployment", "pools", 0))
    engine = node.value.get("engine") if isinstance(node.value, dict) else None
    if engine is not None and name in flag_defaults(str(engine.value)):
        return [(*pool, "engine_args", name)]
    return []


SHORT_NAMES = {
    "tp": "tensor_parallel",
    "pp": "pipeline_parallel",
    "dp": "data_parallel",
    "ep": "expert_parallel",
    "tensor_parallel_size": "tensor_parallel",
    "pipeline_parallel_size": "pipeline_parallel",
    "data_parallel_size": "data_parallel",
    "qps": "rate",
    "rps": "rate",
    "request_rate": "rate",
    "gpu": "hardware",
    "device": "hardware",
    "users": "concurrency",
    "max_tokens": "max_output_tokens",
    "input_tokens": "prompt_tokens",
    "ttft": "ttft_ms",
    "tpot": "tpot_ms",
    "itl": "itl_ms",
    "e2e": "e2el_ms",
    "e2el": "e2el_ms",
    **dict.fromkeys(("isl", "input", "input_len", "input_length", "prompt_len", "prompt_length"), "prompt_tokens"),
    "random_input_len": "prompt_tokens",
    **dict.fromkeys(("osl", "output_len", "output_length", "random_output_len"), "output_tokens"),
    **dict.fromkeys(("gpu_type", "accelerator", "gpu_name"), "hardware"),
    **dict.fromkeys(("framework", "backend", "server"), "engine"),
    **dict.fromkeys(("instances", "count", "nodes", "num_replicas", "servers", "copies"), "replicas"),
    **dict.fromkeys(("command", "image"), "engine_args"),
    **dict.fromkeys(("num_prompts", "num_requests", "n_requests", "request_count"), "requests"),
    **dict.fromkeys(("dataset", "dataset_path", "file", "trace_file"), "trace"),
    "precision": "weights",
    "time": "duration",
    "timeout": "timeout_s",
    **dict.fromkeys(("price", "price_per_hour"), "usd_per_gpu_hour"),
    **dict.fromkeys(("electricity", "usd_per_kwh"), "power_usd_per_kwh"),
}
"""What other tools call keys of the scenario -> the key."""

IN_WORDS = {
    **dict.fromkeys(
        ("gpus", "num_gpus", "n_gpus", "gpu_count", "num_devices"),
        "write tensor_parallel for the GPUs of one server, and replicas for the servers",
    ),
    "deadline": "the summary says when a load is done; slo: {e2el_ms: {p99: MILLISECONDS}} judges it",
    "system_prompt": "write shared_prefix: {groups: 1, tokens: N} for a prompt that all have in common",
    "latency": "write ttft_ms (to the first token), tpot_ms (a token after it) or e2el_ms (the whole answer)",
    **dict.fromkeys(("p50", "p90", "p95", "p99"), "name the latency: ttft_ms: {p99: 500}"),
    **dict.fromkeys(
        ("throughput", "goodput"),
        "it is told, not asked for: attainment states the share of requests that must keep the latencies",
    ),
    **dict.fromkeys(
        ("disaggregation", "disaggregated", "disagg", "pd_disaggregation"),
        "write pools: one of role: prefill, one of role: decode",
    ),
    "prefix_caching": "shared_prefix or sessions say what prompts have in common, a flag of the engine whether it is cached",
    **dict.fromkeys(
        ("batch_size", "max_batch_size"),
        "its limit is a flag of the engine, in engine_args; arrivals: {kind: closed_loop, concurrency: N} keeps N going",
    ),
    **dict.fromkeys(
        ("max_context", "context", "context_length", "context_len", "ctx"),
        "the longest context is a flag of the engine, in engine_args",
    ),
    "currency": "prices are in US dollars; remove it",
    "budget": "`capacity-plan cost SCENARIO` says what it costs a month; remove it",
    **dict.fromkeys(("description", "title", "notes", "comment"), "write it as a comment (# ...), or a short one as `name`"),
}
"""What people ask for that is no key of a scenario -> the mend."""

CLOSE_SPELLING = 0.75
"""Least likeness (difflib's ratio) of a key to one of another place that it is taken for (assumed)."""
OF_THEIR_OWN = ("events",)
"""Lists whose keys are offered nowhere else."""
MOST_PLACES = 3
"""Places that a mend names for one key (assumed: more is no help)."""


def leaf_paths(model: type[BaseModel]) -> list[Path]:
    """Return the path of every key that `model` knows, at any depth; list entries and an inline pool without their index."""
    found: dict[Path, None] = {}

    def walk(outer: type[BaseModel], at: Path, above: tuple[type[BaseModel], ...]) -> None:
        for name in outer.model_fields:
            path = (*at, name) if at[-1:] != ("pools",) else (*at[:-1], name)
            found.setdefault(path)
            for inner in _models_of(outer, name):
                if inner not in above and name not in OF_THEIR_OWN:
                    walk(inner, path, (*above, inner))

    walk(model, (), (model,))
    return list(found)


def elsewhere(key: str, path: Path, model: type[BaseModel], root: Located) -> list[Path]:
    """Return where else `key` would be valid: at places that the data has first, then the least deep ones."""
    found = [leaf for leaf in leaf_paths(model) if leaf[-1] == key and leaf != path]
    classes, _ = locate(root, ("workload", "classes"))
    if classes == ("workload", "classes"):
        found = [(*leaf[:2], 0, *leaf[2:]) if leaf[:2] == classes else leaf for leaf in found]
        inside = [leaf for leaf in found if leaf[:2] == classes]
        found = inside or found
    else:
        found = [leaf for leaf in found if leaf[:2] != ("workload", "classes")] or found
    pools, node = locate(root, ("deployment", "pools"))
    if pools == ("deployment", "pools") and isinstance(node.value, list) and len(node.value) > 1:
        in_pool = set(keys_at(model, ("deployment", "pools", 0)))
        found = [
            (*pools, 0, *leaf[1:]) if leaf[0] == "deployment" and leaf[1:2] and leaf[1] in in_pool else leaf
            for leaf in found
        ]

    def there(leaf: Path) -> int:
        return len(locate(root, leaf[:-1])[0]) - len(leaf[:-1])

    if not found:
        return []
    best = max(there(leaf) for leaf in found)
    kept = [leaf for leaf in found if there(leaf) == best]
    least = min(map(len, kept))
    return [leaf for leaf in kept if len(leaf) == least][:MOST_PLACES]


def unknown_key(key: str, at: Path, known: list[str], where: str) -> tuple[InputError, str | None]:
    """Return the problem of a key that nothing reads, and the valid key nearest to it."""
    near = nearest(key, known)
    place = f"under `{_name(at)}`" if at else "at the top of the scenario"
    listed = f"valid keys: {', '.join(known)}" if known else "remove it"
    mend = f"did you mean `{near}`?" if near else listed
    return InputError(f"unknown key `{key}` {place}", where=where, mend=mend), near


def keys_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the keys that `model` accepts at `loc`, a location as pydantic writes it (with branch names)."""
    return list(dict.fromkeys(key for m in _models_at(model, loc) for key in m.model_fields))


def kinds_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the values of ``kind:`` that `model` accepts at `loc`."""
    fields = [m.model_fields["kind"] for m in _models_at(model, loc) if "kind" in m.model_fields]
    return [str(kind) for field in fields for kind in get_args(field.annotation)]


def _models_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[type[BaseModel]]:
    models = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        inner = [m for outer in models if part in outer.model_fields for m in _models_of(outer, part)]
        if inner:
            models = inner
        elif any(part in outer.model_fields for outer in models):
            return []
        else:
            models = [m for m in models if _is_branch(m, part)] or models
    return models


def _models_of(model: type[BaseModel], field: str) -> list[type[BaseModel]]:
    from pydantic import BaseModel

    from simulator.later import Later

    found: list[type[BaseModel]] = []
    pending: list[Any] = [model.model_fields[field].annotation, *model.model_fields[field].metadata]
    while pending:
        annotation = pending.pop(0)
        if isinstance(annotation, Later):
            pending.append(annotation.meant)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        elif get_origin(annotation) is not Literal:
            pending += get_args(annotation)
    return found


def _is_branch(model: type[BaseModel], tag: str) -> bool:
    literals = [f.annotation for f in model.model_fields.values() if get_origin(f.annotation) is Literal]
    return model.__name__ == tag or any(tag in get_args(literal) for literal in literals)


def _wanted(item: dict[str, Any]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "literal_error":
        return str(context["expected"]).replace("'", "")
    if kind.startswith(("int", "float")) or (kind == "value_error" and "number" in item["msg"]):
        return "a whole number" if kind.startswith("int") else "a number"
    if kind.startswith("bool"):
        return "true or false"
    if kind.startswith("string"):
        return "text"
    if kind.startswith(("tuple", "list")):
        return "a list"
    if kind.startswith(("model", "dict")):
        return "a group of keys"
    return str(item["msg"])


def _shown(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a group of keys"
    if isinstance(value, list | tuple):
        return "a list"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


_COMPARISONS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def _other(path: Path, item: dict[str, Any]) -> InputError:
    kind, context, node = item["type"], item.get("ctx", {}), item["node"]
    name, value, where = _name(path), item["input"], node.where
    if item["loc"] and item["loc"][-1] == "[key]":
        known = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        key_where = node.value[value].where if isinstance(node.value, dict) and value in node.value else where
        at = path[:-1] if path[-1:] == (value,) else path
        if at[-1:] and at[-1] in _LATENCY_BOUNDS and re.fullmatch(r"[pP]?\d+(\.\d+)?", str(value)):
            words = f"unknown key `{value}` under `{_name(at)}`"
            return InputError(words, where=key_where, mend=f"percentiles allowed: {', '.join(known)}")
        return unknown_key(str(value), at, known, key_where)[0]
    if kind in _COMPARISONS:
        bound, words = _COMPARISONS[kind]
        limit = (
            f"{words} {context[bound]:g}"
            if isinstance(context[bound], float)
            else f"{words} {context[bound]}"
        )
        return InputError(
            f"`{name}` is {_shown(value)}; it must be {limit}", where=where, mend=f"give a number {limit}"
        )
    if kind == "union_tag_not_found":
        choices = " or ".join(item["kinds"]) or "..."
        return InputError(f"`{name}` names no kind", where=where, mend=f"add `kind:` with {choices}")
    if kind == "union_tag_invalid":
        tags = item["kinds"]
        place = node.value["kind"].where if isinstance(node.value, dict) and "kind" in node.value else where
        return _not_a_choice(f"{name}.kind", str(context.get("tag")), tags, place)
    if kind == "literal_error" and "wanted" not in item and isinstance(value, str):
        problem = _not_a_choice(name, value, re.findall(r"'([^']*)'", str(context["expected"])), where)
        if path[-1:] == ("router",) and (products := _products(value)):
            return InputError(problem.message, where=where, mend=f"write router: {' or '.join(products)}")
        return problem
    if kind == "too_short" and context["actual_length"] == 0:
        least = context["min_length"]
        return InputError(f"`{name}` is empty", where=where, mend=f"give {least} or more entries")
    if kind in ("too_short", "too_long"):
        bound = (
            f"at least {context['min_length']}" if kind == "too_short" else f"at most {context['max_length']}"
        )
        return InputError(
            f"`{name}` has {len(value)} entries; it takes {bound}", where=where, mend=f"give {bound} entries"
        )
    if kind == "string_too_short":
        return InputError(
            f"`{name}` is an empty text", where=where, mend="write its value, or remove the key"
        )
    if kind == "finite_number":
        return InputError(f"`{name}` is not a finite number", where=where, mend="write a finite number")
    number = kind.startswith(("int", "float")) or (kind == "value_error" and "is not a number" in item["msg"])
    if number and "wanted" not in item:
        return _not_a_number(path, value, where, whole=kind.startswith("int"))
    key = str(path[-1]) if path else ""
    if value is None and key in _examples():
        return InputError(f"`{name}` is empty", where=where, mend=f"write {key}: {_examples()[key]}")
    if kind == "value_error":
        return _said(name, str(item["msg"]).removeprefix("Value error, "), node)
    wanted = item.get("wanted") or _wanted(item)
    if (
        wanted == "a group of keys"
        and path[-1:]
        and path[-1] in _LATENCY_BOUNDS
        and isinstance(value, int | float | str)
    ):
        form = _percentile(path, "p99", value, where)
        return InputError(
            f"`{name}` must say which percentile, not only {_shown(value)}", where=where, mend=form
        )
    example = _GROUPS.get(str(path[-1])) if path and "a group of keys" in wanted else None
    if isinstance(value, str) and value and example in (None, _LENGTHS):
        near = nearest(value, [word for word in wanted.split(" or ") if " " not in word])
        mend = f"did you mean '{near}'?" if near else _number_in(path, value)
        if mend:
            return InputError(f"`{name}` must be {wanted}, not {_shown(value)}", where=where, mend=mend)
    return InputError(f"`{name}` must be {wanted}, not {_shown(value)}", where=where, mend=f"write {example or wanted}")


_LENGTHS = "a number, or a group that gives its law: {kind: lognormal, mean: 500, p99: 3000}"
_GROUPS = {
    "arrivals": "how requests come: {kind: poisson, rate: 2}, or {kind: closed_loop, concurrency: 16}",
    **dict.fromkeys(("prompt_tokens", "output_tokens", "max_output_tokens"), _LENGTHS),
    "sessions": "{turns: 4, think_time_s: 20}",
    "shared_prefix": "{groups: 1, tokens: 500}",
    "images": "{tokens: 1000}, or recorded for those of a trace",
    "lora": "{max_loras: 4, max_lora_rank: 16}",
    "autoscaler": "{kind: hpa, metric: num_requests_waiting, target: 5, min_replicas: 1, max_replicas: 4}",
    "slo": "{ttft_ms: {p99: 1000}, tpot_ms: {p99: 50}}",
    "deployment": "{engine: NAME, hardware: h100-sxm-80gb}",
    "workload": "{arrivals: {kind: poisson, rate: 2}, prompt_tokens: 500, output_tokens: 200, duration: 300}",
}
"""Groups of keys as an example, for mends."""
_NUMBERS = {"rate": 2, "rate_on": 8, "rate_off": 1, "on_s": 30, "off_s": 90, "cv": 2, "peak_to_mean": 1.5, "concurrency": 16,
            "value": 500, "mean": 500, "std": 200, "p99": 3000, "low": 100, "high": 1000, "turns": 4, "groups": 1, "tokens": 500,
            "count": 8, "target": 5}  # fmt: skip
"""Numbers of keys that may be missing, for mends."""


def _percentile(path: Path, percentile: str, value: object, where: str) -> str:
    """How a bound of the SLO names its percentile, in a file or on the command line."""
    if where.startswith("--") and not where.startswith("--set slo="):
        return f"name the percentile: `{_name(path)}.{percentile}={value}`"
    return f"name the percentile: {path[-1]}: {{{percentile}: {value}}}"


_PERCENTILE_IN_KEY = re.compile(r"_?(p\d+)(?=_|$)")
_LATENCY_BOUNDS = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms")


def _not_a_choice(name: str, value: str, choices: list[str], where: str) -> InputError:
    near = nearest(value, choices)
    listed = f"choices: {', '.join(choices)}"
    return InputError(
        f"`{name}` is '{value}', which is not a choice",
        where=where,
        mend=f"did you mean '{near}'? ({listed})" if near else listed,
    )


def _products(router: str) -> list[str]:
    """The router products that are meant by a word, as a scenario names them; at most `MOST_PLACES`."""
    from simulator.cluster.routing.systems import spelled_out

    return spelled_out(router)[:MOST_PLACES]


def _said(name: str, words: str, node: Located) -> InputError:
    """Words of a model's own check, ``cause; mend`` or ``cause: give mend``, at the first key they name."""
    cause, mend = (*re.split(r"; |: (?=give )", words, maxsplit=1), "")[:2]
    where = node.where
    if isinstance(node.value, dict):
        named = [word for word in re.findall(r"[a-z_0-9]+", cause) if word in node.value]
        where = node.value[named[0]].where if named else where
    joined = f"`{name}` {cause}" if cause.startswith(("is ", "names ")) else f"`{name}`: {cause}"
    return InputError(joined, where=where, mend=mend or "change the value so that this holds no longer")


_TIMES_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_FACTORS = {"k": 1e3, "K": 1e3, "M": 1e6, "%": 0.01}
_NAMED_TIMES_S = ("duration", "warmup", "window")


def _time_unit(path: Path) -> tuple[str, float] | None:
    for part in reversed(path):
        text = str(part)
        if text.endswith("_ms"):
            return "milliseconds", 1e-3
        if text.endswith("_s") or text in _NAMED_TIMES_S:
            return "seconds", 1.0
    return None


def _not_a_number(path: Path, value: Any, where: str, *, whole: bool) -> InputError:
    wanted = "a whole number" if whole else "a number"
    message = f"`{_name(path)}` must be {wanted}, not {_shown(value)}"
    mend = f"write {wanted}"
    if isinstance(value, float) and whole:
        mend = f"write a whole number, such as {round(value)}"
    elif isinstance(value, str):
        mend = _range_in(path, value, where) or _number_in(path, value) or mend
    return InputError(message, where=where, mend=mend)


def _range_in(path: Path, text: str, where: str) -> str | None:
    """Return the mend for a range of numbers, which only the axis of a sweep takes, or None."""
    number = r"([0-9]+(?:\.[0-9]+)?)"
    found = re.fullmatch(rf"\s*{number}\s*(?:-|\.\.+|:|to)\s*{number}\s*", text)
    if not found:
        return None
    if where.startswith("--vary"):
        return f"write the range with a colon: {where}={found[1]}:{found[2]}"
    return f"write one number; a sweep takes ranges: --vary {_name(path)}={found[1]}:{found[2]}"


def _number_in(path: Path, text: str) -> str | None:
    """Return the mend for a number written as text, perhaps with a unit, or None if it is no number."""
    if re.fullmatch(r"\s*\d{1,3}(,\d{3})+\s*", text):
        return f"write {text.replace(',', '').strip()}"
    found = re.fullmatch(
        r"\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*([a-zA-Zµ%/]*)\s*", text
    )
    return _without_unit(float(found[1]), found[2], _time_unit(path)) if found else None


def _without_unit(number: float, unit: str, key_unit: tuple[str, float] | None) -> str:
    if not unit:
        return f"remove the quotes: {number:.12g}"
    if key_unit is not None and unit in _TIMES_S:
        return f"write {number * _TIMES_S[unit] / key_unit[1]:.12g}, in {key_unit[0]}, without the unit"
    if unit in _FACTORS:
        return f"write {number * _FACTORS[unit]:.12g}"
    return f"write the number alone, without '{unit}'"
