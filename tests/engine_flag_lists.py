"""Makes the lists of engine flags (`engine_models/engines/*_flags.json`) from the engines' own argument parsers.

    python tests/engine_flag_lists.py vllm vllm-0.11.0 vllm-0.33.0 ... > engine_models/engines/vllm_flags.json

Each folder is an unpacked source distribution or wheel whose name ends with ``-VERSION``, the oldest first. Nothing of it is
run: calls of ``add_argument`` and the fields of configuration classes are read from the syntax trees. Of a flag only its names,
the kind of its value and the releases that have it are kept.
"""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

PARSERS = {
    "vllm": (
        "vllm/engine/arg_utils.py",
        "vllm/entrypoints/common/cli_args.py",
        "vllm/entrypoints/openai/cli_args.py",
        "vllm/entrypoints/cli/serve.py",
    ),
    "sglang": ("sglang/srt/server_args.py", "sglang/srt/arg_groups/fields/*.py"),
}
"""Engine -> the modules that build the parser of its server."""
CONFIGS = {"vllm": ("vllm/config.py", "vllm/config/*.py"), "sglang": ()}
"""Engine -> modules with the classes whose fields become flags."""
OTHERS = {
    "vllm": ("vllm_omni/engine/arg_utils.py", "vllm_omni/entrypoints/cli/serve.py"),
    "sglang": ("sglang/multimodal_gen/runtime/server_args.py", "sglang/multimodal_gen/runtime/server_args/*.py"),
}
"""Engine -> modules with the parser of its server of images and video, which the same command starts (vLLM's: vllm-omni, laid
into a folder of vLLM)."""
ALL_FIELDS = ("FrontendArgs", "BaseFrontendArgs")
"""Classes of which every field is a flag (vLLM's front end)."""
APPENDED = ("middleware", "allowed_origins", "allowed_methods", "allowed_headers", "disable_access_log_for_endpoints")
"""Fields of those whose type is a list, given one value a flag."""

Kind = str  # "switch" without value, "pair" with a --no- form beside it, "value", "list", "optional" value


def kind_of_type(annotation: str) -> Kind:
    """The value of a flag from the annotation of its field, as both engines derive it."""
    if re.search(r"\bbool\b", annotation):
        return "optional" if re.search(r"\bstr\b", annotation) else "pair"
    outside_dicts = re.sub(r"\b[dD]ict\[(?:[^\[\]]|\[[^\[\]]*\])*\]", "", annotation)
    return "list" if re.search(r"\b(list|List|tuple|set)\b", outside_dicts) else "value"


def literal(node: ast.expr | None) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def kind_of_call(keywords: dict[str | None, ast.expr]) -> Kind | None:
    """The value of a flag from the arguments of its ``add_argument``; None if these do not say."""
    action = keywords.get("action")
    named = str(literal(action) or (ast.unparse(action) if action is not None else ""))
    if named in ("store_true", "store_false", "store_const", "count", "help", "version"):
        return "switch"
    if "BooleanOptional" in named:
        return "pair"
    nargs = literal(keywords.get("nargs"))
    if "action_kwargs" in keywords and "nargs" in ast.unparse(keywords["action_kwargs"]):
        return "list"
    if nargs == "?":
        return "optional"
    if nargs in ("*", "+") or ("nargs" in keywords and isinstance(nargs, int) and nargs > 0):
        return "list"
    if re.search(r"StoreTrue|StoreConst|NoOp|DeprecatedAction", named) and "nargs" not in keywords:
        return "switch"
    if re.search(r"StoreBoolean", named):
        return "optional"
    return "value" if {"type", "choices", "default", "action"} & set(keywords) else None


class Parser:
    """The flags of one release: name -> (kind, other spellings)."""

    def __init__(self, engine: str, folder: Path) -> None:
        self.classes: dict[str, dict[str, str]] = {}
        self.flags: dict[str, tuple[Kind, set[str]]] = {}
        self.shorts: dict[str, str] = {}
        for path in found(folder, CONFIGS[engine] + PARSERS[engine]):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    self.classes[node.name] = {
                        s.target.id: ast.unparse(s.annotation)
                        for s in node.body
                        if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)
                    }
        self.others: set[str] = set()
        for path in found(folder, OTHERS.get(engine, ())):
            for name in re.findall(r'"--([a-z][\w-]+)",', path.read_text(encoding="utf-8")):
                self.others.add(name.replace("-", "_"))
        for path in found(folder, PARSERS[engine]):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            self.from_calls(tree)
            self.from_annotated(tree)
        for name in ALL_FIELDS:
            for field, annotation in self.classes.get(name, {}).items():
                self.add([f"--{field}"], "value" if field in APPENDED else kind_of_type(annotation))

    def add(self, names: list[str], kind: Kind) -> None:
        long = [n[2:].replace("-", "_") for n in names if n.startswith("--")]
        self.shorts |= {n[1:]: long[0] for n in names if not n.startswith("--")}
        self.flags.setdefault(long[0], (kind, set()))[1].update(long[1:])

    def from_calls(self, tree: ast.Module) -> None:
        """Flags that are added one by one; ``**kwargs["field"]`` speaks of a configuration class."""
        sources: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                made = re.match(r"(?:_?get_kwargs)\((\w+)\)", ast.unparse(node.value))
                if made:
                    sources[node.targets[0].id] = made[1]
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument"):
                continue
            names = [str(literal(a)) for a in node.args if str(literal(a)).startswith("-")]
            if not names:
                continue
            keywords = {k.arg: k.value for k in node.keywords}
            kind = kind_of_call(keywords)
            if kind is None and None in keywords:
                inside = re.match(r"(\w+)\[['\"](\w+)['\"]\]", ast.unparse(keywords[None]))
                field = inside and self.classes.get(sources.get(inside[1], ""), {}).get(inside[2])
                kind = kind_of_type(field) if field else None
            self.add(names, kind or "value")

    def from_annotated(self, tree: ast.Module) -> None:
        """Flags that are fields annotated with their help (SGLang from 0.5.14)."""
        for node in ast.walk(tree):
            if not (isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)):
                continue
            hint = node.annotation
            if not (isinstance(hint, ast.Subscript) and ast.unparse(hint.value) in ("A", "Annotated")):
                continue
            assert isinstance(hint.slice, ast.Tuple)
            told = hint.slice.elts[1]
            keywords: dict[str | None, ast.expr] = (
                {k.arg: k.value for k in told.keywords} if isinstance(told, ast.Call) else {}
            )
            if (isinstance(told, ast.Call) and ast.unparse(told.func) != "Arg") or literal(keywords.get("no_cli")):
                continue
            name = str(literal(keywords.get("cli_name")) or f"--{node.target.id}")
            aliases = [str(a) for a in ast.literal_eval(keywords["aliases"])] if "aliases" in keywords else []
            kind = kind_of_call({k: v for k, v in keywords.items() if k in ("action", "action_kwargs", "nargs")})
            plain = kind_of_type(ast.unparse(hint.slice.elts[0]))
            self.add([name, *aliases], kind or {"pair": "switch", "optional": "switch"}.get(plain, plain))


def found(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(folder.glob(pattern))


def lists(engine: str, folders: list[Path]) -> dict[str, object]:
    """All releases together, the newest name of a flag for all of its spellings."""
    versions = [folder.name.partition("-")[2] for folder in folders]
    flags: dict[str, list[str]] = {}  # name -> kind, first and last release
    spellings: dict[str, str] = {}
    shorts: dict[str, str] = {}
    others: set[str] = set()
    for version, folder in zip(versions, folders, strict=True):
        parser = Parser(engine, folder)
        for name, (kind, others) in parser.flags.items():
            earlier = {spellings.get(word, word) for word in (name, *others)} & set(flags)
            first = min((flags.pop(word)[1] for word in earlier), key=versions.index, default=version)
            flags[name] = [kind, first, version]
            for word in [w for w, own in spellings.items() if own in earlier] + [*earlier, *others]:
                spellings[word] = name
            spellings.pop(name, None)
        shorts |= parser.shorts
        others |= parser.others
    return {
        "releases": versions,
        "flags": dict(sorted(flags.items())),
        "spellings": dict(sorted(spellings.items())),
        "shorts": {short: spellings.get(name, name) for short, name in sorted(shorts.items())},
        "of_images": sorted(others - set(flags) - set(spellings)),
    }


def main(engine: str, *folders: str) -> None:
    made = lists(engine, [Path(folder) for folder in folders])
    parts = [f' "{key}": {_lines(value) if isinstance(value, dict) else json.dumps(value)}' for key, value in made.items()]
    print("{\n" + ",\n".join(parts) + "\n}")


def _lines(entries: dict[str, object]) -> str:
    return "{\n" + ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in entries.items()) + "\n }"


if __name__ == "__main__":
    main(*sys.argv[1:])
