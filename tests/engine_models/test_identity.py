"""What is particular to an engine stands in its module: no other code names one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine_models.engines.known import BUILT_IN, engine_named

ROOT = Path(__file__).resolve().parents[2]
NAMES = re.compile(
    rf"(?<![a-z])({'|'.join([*BUILT_IN, *(engine_named(name).title for name in BUILT_IN)])})(?![a-z])",
    re.IGNORECASE,
)
EXCEPT = (
    ("simulator/validation/engines.py", ".*", "the mapping to what is published of measured runs"),
    ("simulator/validation/spellings.py", ".*", "how suites spell engines"),
    ("simulator/cluster/routing/systems.py", ".*(vllm|sglang).router.*|vllm-production-stack", "the mapping to router products"),
    ("simulator/planning/measured_files.py", ".*", "file formats of benchmark tools"),
    ("simulator/cli/compare.py", ".*result files of vllm bench serve.*", "file formats of benchmark tools"),
    ("simulator/cli/calibrate_results.py", "Results of vllm bench serve.*", "file formats of benchmark tools"),
    ("simulator/**/*.py", "vllm.duration.s", "a key of result.json"),
    ("simulator/workload/*.py", "(vllm|sglang)-bench|a summary of .*bench.serv(e|ing)", "a trace format"),
)
"""Files, constants in them that may name an engine, and what they are instead."""


def constants(path: Path) -> Iterator[tuple[int, str]]:
    """Line and value of every text in a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = {
        id(statement.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for statement in node.body
        if isinstance(statement, ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in described:
            yield node.lineno, node.value


def excepted(path: Path, value: str) -> str | None:
    """The exception that lets `value` stand there; None without one."""
    inside = path.relative_to(ROOT)
    return next(
        (
            why
            for files, pattern, why in EXCEPT
            if inside in {p.relative_to(ROOT) for p in ROOT.glob(files)} and re.fullmatch(pattern, value, re.S)
        ),
        None,
    )


@pytest.fixture(scope="module")
def named() -> list[tuple[Path, int, str]]:
    """Every text outside `engine_models/engines/` that names an engine."""
    modules = [*(ROOT / "simulator").rglob("*.py"), *(ROOT / "engine_models").rglob("*.py")]
    return [
        (path, line, value)
        for path in modules
        if ROOT / "engine_models" / "engines" not in path.parents
        for line, value in constants(path)
        if NAMES.search(value)
    ]


def test_no_engine_is_named_outside_its_module(named: list[tuple[Path, int, str]]) -> None:
    strays = [f"{p.relative_to(ROOT)}:{line}: {v!r}" for p, line, v in named if excepted(p, v) is None]
    assert not strays, "\n".join(strays)


def test_every_exception_is_needed(named: list[tuple[Path, int, str]]) -> None:
    assert {excepted(path, value) for path, _, value in named} == {why for _, _, why in EXCEPT}


def imported(path: Path) -> set[str]:
    """The modules that a module imports, by their dotted names."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    origins = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return plain | {f"{node.module}{end}" for node in origins for end in ("", *(f".{alias.name}" for alias in node.names))}


def test_no_engine_imports_another() -> None:
    """Engines share parts, and modules beside theirs; what one is made of does not hang on another."""
    engines = set(BUILT_IN.values())
    modules = (ROOT / "engine_models").rglob("*.py")
    assert {str(path.relative_to(ROOT)): found for path in modules if (found := imported(path) & engines)} == {}


def test_a_name_would_be_found() -> None:
    assert NAMES.search("engine == 'vllm'")
    assert NAMES.search("not modelled for SGLang")
    assert not NAMES.search("notvllmx")
