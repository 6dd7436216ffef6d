"""Keep the pages true: run their code blocks, refresh the outputs they show, write the references made from the code.

    python docs/refresh.py            refresh every page
    python docs/refresh.py PAGE...    refresh these

A ```bash or ```python block is run, each page in a folder of its own, its blocks in order; a ```sh block is not (it
installs, or needs another machine). ``<!-- output -->`` before a ```text block says that the block shows what the last
command printed; ``<!-- output: COMMAND -->`` names the command. tests/test_project.py runs the same code and compares the
words, and in slow runs (`-m slow`) the numbers too.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SCHEMA = ROOT / "scenarios" / "scenario.schema.json"
CLI_PAGE = DOCS / "reference" / "cli.md"
SCENARIO_PAGE = DOCS / "reference" / "scenario.md"
FLAGS_PAGE = DOCS / "reference" / "engine-flags.md"
ROUTERS_PAGE = DOCS / "reference" / "router-flags.md"
MATRIX_PAGE = DOCS / "reference" / "what-runs-where.md"
TIMEOUT_S = 300
READ_ON = 1795219200
"""The day on which prices are judged stale, 2026-11-21 [s since 1970], so that pages do not change with the calendar."""

BLOCK = re.compile(
    r"(?:<!-- output(?:: (?P<command>[^\n]+?))? -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$", re.S | re.M
)


class Failed(Exception):
    """A block of a page that does not run."""


def pages() -> list[Path]:
    """README and every page below docs/."""
    return [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def _run(language: str, body: str, folder: Path) -> str:
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "COLUMNS": "80",
        "SOURCE_DATE_EPOCH": str(READ_ON),
        "NO_COLOR": "1",
        "TERM": "dumb",
    }
    words = {"bash": ["bash", "-eu", "-c", body], "python": [sys.executable, "-c", body]}[language]
    done = subprocess.run(
        words,
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=TIMEOUT_S,
    )
    if done.returncode:
        raise Failed(f"exit {done.returncode}\n{body}\n{done.stdout}\n{done.stderr}")
    return "\n".join(line.rstrip() for line in done.stdout.splitlines()) + "\n"


def shown_and_printed(page: Path) -> Iterator[tuple[re.Match[str], str]]:
    """Run a page; yield each shown output (the match in the page's text) and what was printed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        last = ""
        for match in BLOCK.finditer(page.read_text()):
            language = match["language"]
            if language in ("bash", "python"):
                last = _run(language, match["body"], folder)
            elif language == "text" and match[0].startswith("<!--"):
                yield match, _run("bash", match["command"], folder) if match["command"] else last


def refresh(page: Path) -> bool:
    """Write what the commands print into the page; True if it changed."""
    text = page.read_text()
    out, at = [], 0
    for match, printed in shown_and_printed(page):
        out += [text[at : match.start("body")], printed]
        at = match.end("body")
    new = "".join([*out, text[at:]])
    page.write_text(new)
    return new != text


def words_of(text: str) -> str:
    """Text without its numbers and spacing: what has to stay the same from one platform to another."""
    plain = re.sub(r"-[0-9a-f]{10}\b", "-#", text)  # the digest in a run directory's name
    return re.sub(r"\s+", " ", re.sub(r"\d[\d.,]*\d|\d", "#", plain))


NUMBER = re.compile(r"\d[\d,]*\.?\d*(?:e[+-]?\d+)?")
CLOSE = 0.02
"""Relative distance at which numbers of a page count as those printed: the last of three digits, and another platform's sums."""


def strayed(shown: str, printed: str) -> list[str]:
    """Numbers of a shown output that differ from those printed, as ``shown, printed``; the words are taken to be the same."""
    pairs = zip(*(NUMBER.findall(re.sub(r"-[0-9a-f]{10}\b", "", text)) for text in (shown, printed)), strict=True)
    values = [(a, b, *(float(word.replace(",", "")) for word in (a, b))) for a, b in pairs]
    return [f"{a}, {b}" for a, b, x, y in values if abs(x - y) > CLOSE * max(abs(x), abs(y))]


# The scenario reference -------------------------------------------------------------------------------------

SECTIONS = (
    ("Scenario", "The scenario"),
    ("Deployment", "`deployment`"),
    ("Router", "`router`, a product"),
    ("Admission", "`admission`"),
    ("Pool", "A pool"),
    ("Swap", "`swap`"),
    ("Speculative", "`speculative`"),
    ("Lora", "`lora`"),
    ("Offload", "`offload`"),
    ("KvTier", "A tier of `kv_tiers`"),
    ("Transfer", "`transfer`"),
    ("HpaScaler", "Autoscaler: `kind: hpa`"),
    ("KedaScaler", "Autoscaler: `kind: keda`"),
    ("KnativeScaler", "Autoscaler: `kind: knative`"),
    ("DynamoScaler", "Autoscaler: `kind: dynamo`"),
    ("WvaScaler", "Autoscaler: `kind: wva`"),
    ("ScalingBehavior", "`behavior`"),
    ("ScalingRules", "`scale_up` and `scale_down`"),
    ("ScalingPolicy", "A policy of these"),
    ("Failures", "`failures`"),
    ("FailureEvent", "An event of `failures`"),
    ("StartUp", "`start_up`"),
    ("WorkloadSpec", "`workload`"),
    ("ClassLoad", "A class"),
    ("AdapterMix", "`adapters`"),
    ("Stage", "A stage"),
    ("PoissonArrivals", "Arrivals: `kind: poisson`"),
    ("GammaArrivals", "Arrivals: `kind: gamma`"),
    ("ConstantArrivals", "Arrivals: `kind: constant`"),
    ("OnOffArrivals", "Arrivals: `kind: onoff`"),
    ("DiurnalArrivals", "Arrivals: `kind: diurnal`"),
    ("ClosedLoopArrivals", "Arrivals: `kind: closed_loop`"),
    ("BatchArrivals", "Arrivals: `kind: batch`"),
    ("ConstantLength", "Lengths: `kind: constant`"),
    ("UniformLength", "Lengths: `kind: uniform`"),
    ("NormalLength", "Lengths: `kind: normal`"),
    ("LognormalLength", "Lengths: `kind: lognormal`"),
    ("EmpiricalLength", "Lengths: `kind: empirical`"),
    ("ExponentialTime", "Think times: `kind: exponential`"),
    ("ConstantTime", "Think times: `kind: constant`"),
    ("UniformTime", "Think times: `kind: uniform`"),
    ("NormalTime", "Think times: `kind: normal`"),
    ("LognormalTime", "Think times: `kind: lognormal`"),
    ("EmpiricalTime", "Think times: `kind: empirical`"),
    ("SharedPrefix", "`shared_prefix`"),
    ("Sessions", "`sessions`"),
    ("Slo", "`slo`"),
    ("Client", "`client`"),
    ("Retries", "`retries` of a client"),
    ("Cost", "`cost`"),
)


def scenario_reference() -> str:
    """The page of every key of the scenario: from the schema, with the meanings of scenario-keys.yaml."""
    import yaml

    from simulator.config.load import json_schema

    schema = json_schema()
    models: dict[str, Any] = {"Scenario": schema, **schema["$defs"]}
    models["Deployment"] = next(form for form in models["Deployment"]["anyOf"] if form["title"] == "Pools")
    meanings: dict[str, dict[str, str]] = yaml.safe_load(
        (SCENARIO_PAGE.parent / "scenario-keys.yaml").read_text()
    )
    intro = (SCENARIO_PAGE.parent / "scenario-intro.txt").read_text().rstrip()
    lines = [intro, ""]
    told = set()
    for name, title in SECTIONS:
        model = models[name]
        lines += [f"## {title}", "", _sentence(model.get("description", "")), ""]
        known = meanings.get(name, {})
        rows = []
        for key, prop in model.get("properties", {}).items():
            if "const" in prop:  # it names the section
                continue
            meaning = known.get(key) or meanings["Load"].get(key)
            if not meaning:
                raise Failed(f"docs/reference/scenario-keys.yaml does not say what {name}.{key} means")
            told |= {(name, key)}
            required = key in model.get("required", ())
            rows.append(
                f"| `{key}` | {_type(prop)} | {'required' if required else _default(prop)} | {meaning} |"
            )
        if rows:
            lines += ["| key | value | default | meaning |", "|---|---|---|---|", *rows, ""]
        stray = [key for key in known if (name, key) not in told]
        if stray:
            raise Failed(
                f"docs/reference/scenario-keys.yaml explains keys that {name} does not have: {stray}"
            )
    return "\n".join(lines).rstrip() + "\n"


def _sentence(text: str) -> str:
    return re.sub(r"\s+", " ", text.replace("``", "`")).strip()


def _default(prop: dict[str, Any]) -> str:
    value = prop.get("default")
    if value is None or value == {} or "$ref" in prop:
        return "-"
    if isinstance(value, dict):
        return "`{" + ", ".join(f"{k}: {v}" for k, v in value.items() if v is not None) + "}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _type(prop: dict[str, Any]) -> str:
    if "$ref" in prop:
        name = prop["$ref"].rsplit("/", 1)[1]
        title = dict(SECTIONS).get(name, "")
        return (
            "length"
            if name.endswith("Length")
            else "think time"
            if name.endswith("Time")
            else "arrivals"
            if name.endswith("Arrivals")
            else title or name
        )
    for key in ("anyOf", "oneOf"):
        if key in prop:
            return " or ".join(dict.fromkeys(_type(p) for p in prop[key] if p.get("type") != "null"))
    if "enum" in prop or "const" in prop:
        return ", ".join(f"`{v}`" for v in prop.get("enum", [prop.get("const")]))
    kind = prop.get("type")
    if kind == "array":
        return "two numbers" if "prefixItems" in prop else "list"
    if kind == "object" and "propertyNames" in prop:
        inner = prop["propertyNames"]
        return "{" + ", ".join(inner["enum"]) + "}" if "enum" in inner else "mapping"
    names = {
        "string": "text",
        "integer": "integer",
        "number": "number",
        "boolean": "true or false",
        "object": "mapping",
    }
    return names.get(str(kind), "any")


def cli_reference() -> str:
    """The page of every command: its own help, recursively."""
    import typer
    from typer.main import get_command

    from simulator.cli.app import whole_app

    lines = [(CLI_PAGE.parent / "cli-intro.txt").read_text().rstrip(), ""]

    def tell(command: Any, words: str) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            context = typer.Context(command, info_name=words, max_content_width=100, terminal_width=100)
            text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
            lines.extend([f"## {words}", "", "```text", text, "```", ""])
        for name, child in (inner or {}).items():
            tell(child, f"{words} {name}")

    tell(get_command(whole_app()), "capacity-plan")
    return "\n".join(lines).rstrip() + "\n"


def flags_reference() -> str:
    """The page of every engine's flags: from the tables that also make the parser."""
    from engine_models.engines.known import BUILT_IN, engine_named

    kinds = {
        "int": "integer", "float": "number", "str": "text", "bool": "true or false", "json": "JSON object",
        "pairs": "JSON object, or `name=number,...`",
        "ints": "list of integers", "texts": "list of texts", "count": "integer, also 32k or 32K",
    }  # fmt: skip
    lines = [(FLAGS_PAGE.parent / "engine-flags-intro.txt").read_text().rstrip(), ""]
    for name in BUILT_IN:
        engine = engine_named(name)
        table = engine.flags()
        lines += [f"## {engine.title}", "", "| flag | value | default | states |", "|---|---|---|---|"]
        for flag, spec in table.modelled.items():
            bounds = [f"from {spec.low:g}"] if spec.low is not None else []
            bounds += [f"to {spec.high:g}"] if spec.high is not None else []
            values = ", ".join(f"`{v}`" for v in (*spec.choices, *spec.special))
            value = ", ".join(filter(None, [kinds[spec.kind] if not spec.choices else "", *bounds, values]))
            default = "engine's choice" if spec.default is None else f"`{str(spec.default).lower()}`"
            key = f"`{table.typed[flag].key}`" if flag in table.typed else ""
            lines.append(f"| `{flag}` | {value} | {default} | {key} |")
        spelled = {f"-{k}": v for k, v in table.shorts.items()} | table.aliases
        lines += ["", "Also spelled: " + ", ".join(f"`{k}` for `{v}`" for k, v in spelled.items()) + "."] if spelled else []
        if table.releases.looked_at:
            lines += ["", "Known are the flags of the parsers of " + ", ".join(table.releases.looked_at) + "."]
        groups: dict[str, list[str]] = {}
        for flag, unread in sorted(table.unread.items()):
            verdict = "Refused" if unread.refused else "A warning"
            left = f" (not `{'`, `'.join(unread.neutral)}`)" if unread.neutral else ""
            changes = f"{verdict}, since in the engine they change {unread.changes}"
            words = changes if unread.changes else "Change nothing that is predicted (no word)"
            groups.setdefault(words, []).append(f"`{flag}`{left}")
        for words in sorted(groups, key=lambda words: (words.startswith("Change"), not words.startswith("Refused"))):
            lines += ["", f"{words}: " + ", ".join(groups[words]) + "."]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def routers_reference() -> str:
    """The page of every router's flags: from the tables that also read them."""
    from simulator.cluster.routing.llm_d import Plugins
    from simulator.cluster.routing.systems import MODULES, system_named

    lines = [(ROUTERS_PAGE.parent / "router-flags-intro.txt").read_text().rstrip(), ""]
    for name in MODULES:
        system = system_named(name)
        assert system is not None
        lines += [f"## {name} {system.version}", "", "| flag | value | default |", "|---|---|---|"]
        for flag in system.flags:
            like = flag.default if flag.default is not None else flag.like
            kinds: dict[type, str] = {bool: "true or false", int: "integer", float: "number", str: "text"}
            kind = kinds.get(type(like), "a list of plugins" if isinstance(flag, Plugins) else "plugins with weights")
            bounds = [f"from {flag.low:g}"] if flag.low is not None else []
            bounds += [f"to {flag.high:g}"] if flag.high is not None else []
            value = ", ".join(f"`{choice}`" for choice in flag.choices) or ", ".join([kind, *bounds])
            default = "null" if flag.default is None else str(flag.default).lower()
            if isinstance(flag, Plugins):
                default = "[]"
            elif isinstance(flag.default, tuple):
                default = "{" + ", ".join(f"{plugin}: {weight:g}" for plugin, weight in flag.default) + "}"
            lines.append(f"| `{flag.name}` | {value} | `{default}` |")
        for why in dict.fromkeys(system.unmodelled.values()):
            names = ", ".join(f"`{flag}`" for flag, said in system.unmodelled.items() if said == why)
            lines += ["", f"Refused, since {why}: {names}."]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def matrix_reference() -> str:
    """The page of what each engine runs on, loads and has: from the declarations."""
    from engine_models.declaration import FEATURES
    from engine_models.engines.known import BUILT_IN, engine_named
    from engine_models.engines.projects import PROJECTS

    engines = [engine_named(name) for name in BUILT_IN]
    kinds = list(dict.fromkeys(kind for engine in engines for kind in engine.devices))
    head = ["engine", *kinds, *(FEATURES[key][0] for key in FEATURES), "licence", "seen alive", "recorded steps equal"]
    lines = [(MATRIX_PAGE.parent / "what-runs-where-intro.txt").read_text().rstrip(), ""]
    lines += [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for engine in engines:
        project = PROJECTS[engine.name]
        cells = [f"[{engine.title}](#{engine.name}) {engine.newest}"]
        cells += ["yes" if kind in engine.devices else "-" for kind in kinds]
        for key in FEATURES:
            support = engine.features.get(key)
            everywhere = support is not None and support.kinds >= set(engine.devices)
            cells.append("-" if support is None else "yes" if everywhere else " ".join(sorted(support.kinds)))
        state = f" ({project.state})" if project.state else ""
        cells += [project.licence, f"{project.alive}{state}", f"{project.steps:,}" if project.steps else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    for engine in engines:
        lines += ["", f"## {engine.name}", "", "| what | where | source |", "|---|---|---|"]
        lines += [f"| device: {kind} | | {source} |" for kind, source in engine.devices.items()]
        for (where, source), names in _by_support(engine.formats).items():
            lines.append(f"| weights: {', '.join(names)} | {where} | {source} |")
        for (where, source), names in _by_support(engine.features).items():
            lines.append(f"| {', '.join(FEATURES[name][0] for name in names)} | {where} | {source} |")
    return "\n".join(lines) + "\n"


def _by_support(table: Any) -> dict[tuple[str, str], list[str]]:
    """Names of a table by where they are supported, and the source."""
    out: dict[tuple[str, str], list[str]] = {}
    for name, support in table.items():
        out.setdefault((support.words.replace(" ", ", ", len(support.kinds) - 1), support.source), []).append(name)
    return out


def schema_text() -> str:
    """The JSON Schema that stands beside the scenarios, for editors."""
    import json

    from simulator.config.load import json_schema

    return json.dumps(json_schema(), indent=1) + "\n"


def main() -> None:
    """Refresh the pages named on the command line, or all."""
    chosen = [Path(word).resolve() for word in sys.argv[1:]] or pages()
    SCENARIO_PAGE.write_text(scenario_reference())
    CLI_PAGE.write_text(cli_reference())
    FLAGS_PAGE.write_text(flags_reference())
    ROUTERS_PAGE.write_text(routers_reference())
    MATRIX_PAGE.write_text(matrix_reference())
    SCHEMA.write_text(schema_text())
    for page in chosen:
        print(f"{page.relative_to(ROOT)}{' changed' if refresh(page) else ''}")


if __name__ == "__main__":
    main()
