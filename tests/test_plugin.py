"""An engine from another package: found by its entry point, simulated from a scenario, refused in words where it is broken."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_models.engines import known
from hardware_profiles.errors import InputError
from simulator.run import RunResult, simulate

PLUGIN = Path(__file__).parent / "plugins" / "capacity_plan_static_batch"
SCENARIO = """
model: meta-llama/Llama-3.1-8B-Instruct
deployment: {engine: static_batch, hardware: h100-sxm-80gb, engine_args: {max_batch_size: 4}}
workload:
  arrivals: {kind: batch}
  prompt_tokens: {kind: uniform, low: 100, high: 500}
  output_tokens: {kind: uniform, low: 5, high: 60}
  requests: 10
"""
Install = Callable[[str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Offer a module under the plug-in's entry point, as an installed package would."""

    def offer(code: str) -> None:
        project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
        (group, points), = project["entry-points"].items()
        package = tmp_path / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
        package.mkdir()
        (package / "METADATA").write_text(f"Name: {project['name']}\nVersion: {project['version']}\n")
        lines = [f"{name} = {module}" for name, module in points.items()]
        (package / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
        for module in points.values():
            (tmp_path / f"{module}.py").write_text(code)
            monkeypatch.delitem(sys.modules, module, raising=False)
        monkeypatch.syspath_prepend(str(tmp_path))

    known._plug_ins.cache_clear()
    known._plugged.cache_clear()
    yield offer
    known._plug_ins.cache_clear()
    known._plugged.cache_clear()


@pytest.fixture
def plugin(install: Install) -> Any:
    install((PLUGIN / "capacity_plan_static_batch.py").read_text())
    return import_module("capacity_plan_static_batch")


def run(tmp_path: Path, *, rate: str = "batch", aggregate: bool = True) -> RunResult:
    path = tmp_path / "scenario.yaml"
    path.write_text(SCENARIO.replace("kind: batch", f"kind: {rate}"))
    return simulate(path, aggregate=aggregate)


def column(outcome: RunResult, name: str) -> np.ndarray:
    assert isinstance(outcome.requests, Mapping)
    return np.asarray(outcome.requests[name])


def test_groups_of_a_plugin_start_and_end_together(plugin: Any, tmp_path: Path) -> None:
    assert "static_batch" in known.names()
    outcome = run(tmp_path)
    assert outcome.result["totals"]["completed"] == 10
    assert any("static batches of up to 4 rows" in text for text in outcome.result["assumptions"])
    first, end = column(outcome, "first_token_s"), column(outcome, "end_s")
    tokens = column(outcome, "output_tokens")
    for group in (slice(0, 4), slice(4, 8), slice(8, 10)):
        assert len(set(first[group])) == 1
        longest = first[group].argmin() + tokens[group].argmax()
        assert end[group].max() == end[group][longest]
        gap_s = (end - first)[group] / (tokens[group] - 1)  # rows that have ended still cost
        assert gap_s.max() < 1.02 * gap_s.min()
    assert first[4] > end[:4].max()
    assert first[8] > end[4:8].max()


@pytest.mark.parametrize("rate", ["batch", "poisson, rate: 4"])
def test_runs_of_a_plugin_equal_its_steps(plugin: Any, tmp_path: Path, rate: str) -> None:
    jumped, stepped = run(tmp_path, rate=rate), run(tmp_path, rate=rate, aggregate=False)
    assert jumped.result == stepped.result
    for name in ("first_token_s", "end_s", "first_scheduled_s"):
        assert (column(jumped, name) == column(stepped, name)).all()
    if rate != "batch":  # whoever comes while a group runs waits for its end
        assert column(jumped, "queue_ms").max() > 200


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("from collections", "raise OSError('no licence')\nfrom collections"), r"cannot be loaded: OSError: no licence"),
        (("ENGINE = Engine(", "THE_ENGINE = Engine("), r"has no ENGINE"),
        (("name=\"static_batch\"", "name=\"other\""), r"declares the engine 'other' under the entry point"),
        (("    kernels=\"vllm\",\n", ""), r"cannot be loaded: TypeError: .*kernels"),
        (("ENGINE = Engine(", "ENGINE = dict("), r"its ENGINE is of type dict, no .*Engine"),
        (("return EnginePlan(", "return dict("), r"its plan\(\) returns a value of type dict, no EnginePlan"),
        (("devices={\"gpu\"", "devices={\"abacus\""), r"its `devices` are abacus"),
        (("versions={\"1.0\": {}}", "versions={}"), r"`versions` are empty"),
        (("    def settle(", "    def settled("), r"scheduler cannot be built: .*settle"),
        (("(Scheduler):", ":"), r"its scheduler is of type StaticBatchScheduler, no .*Scheduler"),
        (("request.flags.get(\"max_batch_size\", 8)", "request.flags[\"rows\"]"), r"its plan\(\) failed: KeyError"),
    ],
)
def test_a_broken_plugin_is_named_with_what_it_broke(
    install: Install, tmp_path: Path, change: tuple[str, str], words: str
) -> None:
    code = (PLUGIN / "capacity_plan_static_batch.py").read_text()
    assert change[0] in code
    install(code.replace(*change, 1))
    with pytest.raises(InputError, match=rf"plug-in 'static_batch': .*{words}") as error:
        run(tmp_path)
    assert "uninstall the package" in str(error.value.mend)
