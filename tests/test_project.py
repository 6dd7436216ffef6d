"""The project as a whole: imports point down, help is light, what is shipped runs, pages say what is true."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from hardware_profiles.errors import InfeasibleError
from simulator.config.load import load_scenario, shipped_scenarios
from simulator.prepare import prepare
from simulator.run import run_prepared

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("refresh", ROOT / "docs" / "refresh.py")
assert _spec is not None
assert _spec.loader is not None
refresh = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(refresh)

PACKAGES = ("simulator", "engine_models", "hardware_profiles")
HEAVY = {"pandas", "scipy", "pyarrow", "matplotlib", "simpy", "joblib", "pydantic", "numpy"}
INFEASIBLE = {"deepseek-r1-8-h100"}


# Imports ----------------------------------------------------------------------------------------------------


def test_imports_point_down() -> None:
    """The contracts stand in pyproject.toml."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_modules_import_each_other() -> None:
    """Also not in a function or for the sake of types."""
    import grimp

    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    circles = {
        (module, other)
        for module in graph.modules
        for other in graph.find_modules_directly_imported_by(module)
        if graph.chain_exists(importer=other, imported=module)
    }
    assert not circles


@pytest.mark.parametrize("words", [["--help"], ["simulate", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """Pydantic alone is let through below the top: Typer itself asks for it where a command has typed options."""
    code = (
        "import sys\n"
        f"sys.argv = ['capacity-plan', *{words!r}]\n"
        "from simulator.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip(), done.stderr
    loaded = HEAVY & set(done.stderr.split())
    assert not loaded - ({"pydantic"} if words == ["simulate", "--help"] else set())


def test_simulating_imports_no_table_library_before_it_writes() -> None:
    code = (
        "import sys\n"
        "from simulator.run import simulate\n"
        "simulate({'model': 'meta-llama/Llama-3.1-8B-Instruct',"
        " 'deployment': {'engine': 'vllm', 'hardware': 'h100-sxm-80gb'},"
        " 'workload': {'arrivals': {'kind': 'batch'}, 'prompt_tokens': 64, 'output_tokens': 8, 'requests': 4}})\n"
        "print(*{name.split('.')[0] for name in sys.modules})\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not {"pandas", "scipy", "pyarrow", "matplotlib", "joblib"} & set(done.stdout.split())


def test_models_of_keys_that_are_not_given_are_not_made(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,10,2\n")
    code = (
        "import sys\n"
        "from simulator.config.load import load_scenario\n"
        f"load = {{'trace': {str(trace)!r}}}\n"
        "pool = {'engine': 'vllm', 'hardware': 'h100-sxm-80gb'}\n"
        "plain = {'model': 'meta-llama/Llama-3.1-8B-Instruct', 'deployment': pool, 'workload': load}\n"
        "rare = ('simulator.config.features', 'simulator.workload.synthetic')\n"
        "load_scenario(plain)\n"
        "assert not set(rare) & set(sys.modules)\n"
        "drafts = {'method': 'ngram', 'num_speculative_tokens': 2, 'acceptance': 0.5}\n"
        "drafted = load_scenario({**plain, 'deployment': {**pool, 'speculative': drafts}})\n"
        "from simulator.config.features import Speculative\n"
        "assert drafted.deployment.pools[0].speculative == Speculative(**drafts)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# What is shipped --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_shipped_scenario_asks_a_question(name: str) -> None:
    lines = shipped_scenarios()[name].read_text().splitlines()
    head = lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]
    assert head[0].startswith("# yaml-language-server: $schema="), (
        "the first line names the schema, for editors"
    )
    assert any("?" in line for line in head), "the header asks the question that the scenario answers"
    assert load_scenario(name).name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(shipped_scenarios()))
def test_shipped_scenario_runs_whole(name: str) -> None:
    """Shorter loads of each are tested quickly, with what they print and write."""
    scenario = load_scenario(name)
    if name in INFEASIBLE:
        with pytest.raises(InfeasibleError):
            prepare(scenario)
        return
    run = run_prepared(prepare(scenario))
    totals = run.result["totals"]
    assert totals["completed"] > 0
    assert totals["offered"] == sum(totals[k] for k in ("completed", "failed", "rejected", "unfinished"))
    assert run.result["metrics"]["ttft_ms"]["p99"] > 0


def test_shipped_schema_is_the_scenarios() -> None:
    """Editors read scenarios/scenario.schema.json; `capacity-plan schema` makes it."""
    import json

    from simulator.config.load import json_schema

    shipped = json.loads((ROOT / "scenarios" / "scenario.schema.json").read_text())
    assert shipped == json_schema(), "run: python docs/refresh.py"


# Pages ------------------------------------------------------------------------------------------------------

PAGES = {str(page.relative_to(ROOT)): page for page in refresh.pages()}
CODE = re.compile(r"^```(bash|python)$|^<!-- output", re.M)


SLOW_PAGES = {
    "docs/engines/trtllm.md",
    "docs/how-to/agents.md",
    "docs/how-to/budget.md",
    "docs/how-to/calibrate-with-your-measurements.md",
    "docs/how-to/chat-for-users.md",
    "docs/how-to/choose-a-router.md",
    "docs/how-to/classes-and-priorities.md",
    "docs/how-to/compare-with-measurement.md",
    "docs/how-to/data-parallel-attention.md",
    "docs/how-to/disaggregate.md",
    "docs/how-to/does-it-fit.md",
    "docs/how-to/highest-rate.md",
    "docs/how-to/images.md",
    "docs/how-to/kv-offload.md",
    "docs/how-to/lora-adapters.md",
    "docs/how-to/mac-for-a-team.md",
    "docs/how-to/mixed-fleet.md",
    "docs/how-to/nightly-batch.md",
    "docs/how-to/own-device.md",
    "docs/how-to/own-model.md",
    "docs/how-to/pasted-vllm-command.md",
    "docs/how-to/prefix-caching.md",
    "docs/how-to/replay-a-trace.md",
    "docs/how-to/reproduce-a-run.md",
    "docs/how-to/scale-with-the-load.md",
    "docs/how-to/size-a-fleet.md",
    "docs/how-to/speculative-decoding.md",
    "docs/how-to/survive-failures.md",
    "docs/how-to/warm-caches.md",
    "docs/reference/hardware.md",
    "docs/reference/result-files.md",
    "docs/tutorial/first-plan.md",
}
"""Pages whose code takes several seconds; quickly tested are their scenarios, commands and options."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW_PAGES else name
        for name, page in sorted(PAGES.items())
        if CODE.search(page.read_text())
    ],
)
def test_code_of_a_page_runs_and_prints_what_it_shows(name: str) -> None:
    """In words; of the slow pages in numbers too, and of the others in the slow test below."""
    for match, printed in refresh.shown_and_printed(PAGES[name]):
        assert refresh.words_of(match["body"]) == refresh.words_of(printed), (
            f"{name} shows another output; run: python docs/refresh.py {name}"
        )
        if name in SLOW_PAGES:
            assert not refresh.strayed(match["body"], printed), f"run: python docs/refresh.py {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(n for n in PAGES.keys() - SLOW_PAGES if CODE.search(PAGES[n].read_text())))
def test_numbers_of_a_page_are_those_printed(name: str) -> None:
    for match, printed in refresh.shown_and_printed(PAGES[name]):
        assert not refresh.strayed(match["body"], printed), f"run: python docs/refresh.py {name}"


def test_a_number_that_strayed_is_found() -> None:
    assert refresh.strayed("TTFT 4,633 ms, run-0123456789", "TTFT 4,634 ms, run-9876543210") == []
    assert refresh.strayed("p99 123", "p99 133") == ["123, 133"]


@pytest.mark.parametrize("name", sorted(PAGES))
def test_commands_in_the_text_of_a_page_are_known(name: str) -> None:
    """In back-quotes and in blocks that are not run: the command and its options are in the reference."""
    text = PAGES[name].read_text()
    unrun = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.S | re.M)
    plain = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    quoted = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", plain)]
    known = refresh.CLI_PAGE.read_text()
    for line in [*quoted, *"".join(unrun).replace("\\\n", " ").splitlines()]:
        for command in re.findall(r"capacity-plan ([a-z][^|#&]*)", line):
            assert re.search(rf"^## capacity-plan {command.split()[0]}\b", known, flags=re.M), command
            assert not {o for o in re.findall(r"(?<!\S)--[a-z][\w-]*", command) if o not in known}, command


@pytest.mark.parametrize("name", sorted(n for n in SLOW_PAGES if re.search("^```(bash|sh)$", PAGES[n].read_text(), re.M)))
def test_code_of_a_page_names_what_there_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scenarios can be prepared; its commands and their options are in the reference."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```$", PAGES[name].read_text(), flags=re.S | re.M)
    code = "".join(blocks).replace("\\\n", " ")
    written = re.compile(r"^cat > (\S+) <<'EOF'\n(.*?)^EOF$", re.S | re.M)
    for file, text in written.findall(code):
        Path(file).write_text(text)
    for file, text in written.findall(code):
        if file.endswith(".yaml") and "deployment:" in text:  # the budget's demand is no scenario
            prepare(load_scenario(Path(file)), tmp_path)
    known = refresh.CLI_PAGE.read_text()
    commands = re.findall(r"capacity-plan ([^|\n]*)", written.sub("", code))
    assert commands
    for command in commands:
        assert re.search(rf"^## capacity-plan {command.split()[0]}\b", known, flags=re.M), command
        unknown = {option for option in re.findall(r"(?<=\s)--[a-z][\w-]*", command) if option not in known}
        assert not unknown, command


def test_scenario_reference_is_the_schemas() -> None:
    assert refresh.SCENARIO_PAGE.read_text() == refresh.scenario_reference(), "run: python docs/refresh.py"


def test_flags_reference_is_the_tables() -> None:
    assert refresh.FLAGS_PAGE.read_text() == refresh.flags_reference(), "run: python docs/refresh.py"


def test_router_reference_is_the_tables() -> None:
    assert refresh.ROUTERS_PAGE.read_text() == refresh.routers_reference(), "run: python docs/refresh.py"


def test_the_matrix_is_the_declarations() -> None:
    assert refresh.MATRIX_PAGE.read_text() == refresh.matrix_reference(), "run: python docs/refresh.py"


def test_command_reference_is_the_programs() -> None:
    told, true = refresh.CLI_PAGE.read_text(), refresh.cli_reference()
    assert refresh.words_of(told) == refresh.words_of(true), "run: python docs/refresh.py"


@pytest.mark.parametrize("name", sorted(PAGES))
def test_links_of_a_page_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing


def test_files_that_pages_name_exist() -> None:
    """Paths in back-quotes that start with a folder of the project."""
    folders = "simulator|engine_models|hardware_profiles|scenarios|tests|docs|benchmarks"
    named = re.compile(rf"`((?:{folders})/[\w./+-]+?)`")
    missing = {
        f"{name}: {path}"
        for name, page in PAGES.items()
        for path in named.findall(page.read_text())
        if not (ROOT / path).exists()
    }
    assert not missing


def test_names_in_the_reading_guide_are_in_the_code() -> None:
    """Classes, functions, constants and files in back-quotes of docs/architecture.md; NAME stands for any."""
    text = re.sub(r"^```.*?^```$", "", (ROOT / "docs" / "architecture.md").read_text(), flags=re.S | re.M)
    modules = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    words = set(re.findall(r"\w+", "".join(path.read_text() for path in modules))) | {"ABC", "typing", "Protocol"}
    files = {path.name for path in modules} | {"pyproject.toml", "hatch_build.py", "config.json", "manifest.json", "prices.yaml"}
    named = set(re.findall(r"`([A-Za-z_][\w.]*)(?:\([^`]*\))?`", text))
    assert len(named) > 100
    missing = {
        name
        for name in named
        if not name.startswith("NAME")
        and (name not in files if name.endswith((".py", ".toml", ".json", ".yaml")) else set(name.split(".")) - words)
    }
    assert not missing


def test_every_page_is_reached_from_the_index() -> None:
    linked = set()
    for page in PAGES.values():
        for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text()):
            linked.add((page.parent / target).resolve())
    alone = [
        name
        for name, page in PAGES.items()
        if page.resolve() not in linked and name not in ("README.md", "docs/index.md")
    ]
    assert not alone


# Invariants -------------------------------------------------------------------------------------------------


def test_every_invariant_has_its_test_and_every_test_its_invariant() -> None:
    """docs/invariants.md numbers them and names the tests of each, as `tests/invariants/FILE.py::TEST`."""
    text = (ROOT / "docs" / "invariants.md").read_text()
    numbered = re.findall(r"^## (\d+)\. ", text, flags=re.M)
    assert numbered == [str(i + 1) for i in range(len(numbered))]
    assert numbered
    sections = re.split(r"^## \d+\. ", text, flags=re.M)[1:]
    named = [set(re.findall(r"`(tests/invariants/\w+\.py::\w+)`", section)) for section in sections]
    without = [s.splitlines()[0] for s, tests in zip(sections, named, strict=True) if not tests]
    assert not without
    there = {
        f"tests/invariants/{path.name}::{test}"
        for path in (ROOT / "tests" / "invariants").glob("test_*.py")
        for test in re.findall(r"^def (test_\w+)", path.read_text(), flags=re.M)
    }
    assert set().union(*named) == there


# Units ------------------------------------------------------------------------------------------------------

UNIT = re.compile(
    r"(^|_)(s|ms|us|bytes|nbytes|tokens|hz|w|j|kwh|gb|years|blocks|flops|usd|hours?|days|requests|percent|devices|steps|cycles|launches|devices)(_per_\w+)?$"
)
PURE_NUMBER = re.compile(
    r"(^|_)(share|fraction|levels?|cv|factor|ratio|scale|errors?|weights?|width|noise|strength|reach|attainment|watermark)$"
)
KNOWN = {
    # dimensionless by definition, or in the unit that the caller chooses
    "bits_per_weight", "gpu_memory_utilization", "quantization_bits", "peak_to_mean", "noise", "schedule_conservativeness",
    "slot_prompt_similarity", "bits", "layer_bits",
    # of laws of device classes: shares of a rate, multiples, rows
    "fill", "expert_fill", "spread", "kv", "attention", "widened", "traffic", "overlap",
    "low", "high", "value", "values", "ordered_values", "x", "y", "mean", "std", "p99", "offset", "output", "prompt", "profile",
    "stamps", "first_stamp", "number", "count", "devices", "bound", "predicted", "measured", "confidence", "headroom", "pue",
    # of autoscalers, in the unit of the metric, or as the product names it
    "target", "tolerance", "whole", "load", "more", "less", "stable", "panic", "concurrency", "max_scale_up_rate",
    "max_scale_down_rate", "kv_cache_threshold", "queue_length_threshold", "kv_spare_trigger", "queue_spare_trigger",
    # shapes of kernels
    "ep", "tp", "topk", "experts", "gated", "head_dim", "heads", "kv_heads", "hidden", "inter", "window", "skewed",
    "kv_bytes_min", "n", "k", "rows", "context", "multiprocessors",
    # times and rates as the contract or queueing theory names them
    "speed", "rate", "rate_on", "rate_off", "t_end", "t_sched", "t_start", "offered", "sustainable", "within_slo", "tried",
    "highest",
}  # fmt: skip


def _unitless(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            named = [(node.target.id, node.annotation)]
        elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            named = [(a.arg, a.annotation) for a in (*node.args.args, *node.args.kwonlyargs) if a.annotation]
        else:
            continue
        for name, annotation in named:
            if ast.unparse(annotation) not in ("float", "float | None", "FloatArray") or name.startswith("_"):
                continue
            if UNIT.search(name) or PURE_NUMBER.search(name) or name in KNOWN:
                continue
            found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    return found


def test_quantities_carry_their_unit_in_their_name() -> None:
    """Annotated floats, in classes and public functions, end in a unit, or are pure numbers by name."""
    found = [
        line
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        for line in _unitless(path)
    ]
    assert not found, "\n".join(found)


def _compiled() -> list[Path]:
    """The modules that a compiled build compiles."""
    builds = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    assert len(builds["include"]) > 30
    return [ROOT / module.lstrip("/") for module in builds["include"]]


def test_no_compiled_class_is_one_of_abc() -> None:
    """Compiled, they share what `ABC` remembers of `isinstance`, and answer for one another."""
    for module in _compiled():
        assert not re.search(r"\bABC(Meta)?\b", module.read_text().split('"""', 2)[2]), module


def test_compiled_classes_say_that_interpreted_ones_build_on_them() -> None:
    """A class that does not is refused as a base when the interpreted module is imported."""
    compiled = _compiled()
    closed = {
        (module, node.name)
        for module in compiled
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.ClassDef)
        and "mypyc_attr(allow_interpreted_subclasses=True)" not in map(ast.unparse, node.decorator_list)
    }
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path not in compiled):
        text = path.read_text()
        if not re.search(r"^\s*class \w+\(", text, re.MULTILINE):
            continue
        tree = ast.parse(text)
        bases = {ast.unparse(base) for node in ast.walk(tree) if isinstance(node, ast.ClassDef) for base in node.bases}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                module = ROOT / f"{node.module.replace('.', '/')}.py"
                for alias in node.names:
                    assert not ((module, alias.name) in closed and (alias.asname or alias.name) in bases), (path, alias.name)
