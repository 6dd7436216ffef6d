"""Reads every launch command of folders of published recipes through the product's own reader, and counts the verdicts.

    python tests/published_commands.py FOLDER... [--list VERDICT]

Commands stand in fenced blocks of Markdown and YAML files, in lists of arguments (``args:``, ``extra_args:``) of YAML files, in
template texts of JavaScript, and are whole shell scripts, manifests and compose files. Each is read as the `engine_args` of a
scenario whose engine is the one that it starts, on a GPU that every engine runs on. Nothing of the folders is kept.

Verdicts: read; notes (read with notes or warnings); refused (a flag, task or deployment that is not simulated, said so); unknown
(a flag that no release of the engine has); other (starts a server of an engine that is not simulated, said so); failed (anything
else).
"""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine_models.engines.known import BUILT_IN, engine_named, launched_by, parse_engine_args
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario

FENCE = re.compile(r"^([ \t]*)(```+|~~~+)[ \t]*([\w+-]*)[^\n]*\n(.*?)^[ \t]*\2[ \t]*$", re.DOTALL | re.MULTILINE)
LAUNCHES = re.compile(
    r"vllm serve|vllm\.entrypoints|vllm/vllm-|sglang\.launch_server|sglang serve|lmsysorg/sglang|"
    r"text-generation-(?:launcher|inference)|trtllm-serve"
)
LISTS = re.compile(r"^([ \t]*)(?:\w*args|command):[ \t]*\n((?:\1[ \t]*-[ \t].*\n)+)", re.MULTILINE)
TEMPLATE = re.compile(r"`(\s*(?:[A-Z_]+=\S+\s+)*(?:sglang serve|python3? -m sglang\.launch_server|vllm serve)[^`]*)`", re.DOTALL)
REFUSED = re.compile(
    r"not modelled yet|is not modelled, which|not simulated|older than the oldest|starts the \w+ server of a pair|"
    r"servers that share the work|whose flags differ|not in the text|changes `\w+` of the model|beginning of \d+ flags|"
    r"cannot be seen|is no YAML|number format is not modelled"
)
STARTS = re.compile(
    r"vllm serve \S|vllm\.entrypoints\S*api_server|sglang\.launch_server|sglang serve -|text-generation-launcher|trtllm-serve \S"
)
SUFFIXES = (".md", ".mdx", ".yaml", ".yml", ".js", ".jsx", ".ipynb", ".sh")
WORKLOAD = {"arrivals": {"kind": "poisson", "rate": 1}, "prompt_tokens": 10, "output_tokens": 10, "duration": 10}
OTHER = re.compile(r"this is a launch command of (?!vllm|sglang|tgi|trtllm)|starts no server")


def commands(folder: Path) -> Iterator[tuple[str, Any]]:
    """Every launch command below `folder`, with the file that holds it."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in SUFFIXES or ".git" in path.parts or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        name = str(path.relative_to(folder.parent))
        if path.suffix in (".js", ".jsx"):
            yield from ((name, re.sub(r"\$\{[^}]*\}", "$VALUE", found[1])) for found in TEMPLATE.finditer(text))
            continue
        manifest = re.search(r"^(kind|services|image|containers):", text, re.MULTILINE)
        if path.suffix == ".sh" or (manifest and path.suffix in (".yaml", ".yml")):
            if LAUNCHES.search(text):
                yield name, text
            continue
        for found in FENCE.finditer(text):
            yield from ((name, part) for part in parts(textwrap.dedent(found[4])))
        if path.suffix in (".yaml", ".yml"):
            for found in LISTS.finditer(text):
                items = [item.strip("'\"") for item in re.findall(r"^[ \t]*-[ \t]+(.*?)[ \t]*$", found[2], re.MULTILINE)]
                if items and items[0].startswith("--"):
                    yield f"{name} ({'vllm' if 'vllm' in text.lower() else 'sglang'})", items


def parts(block: str) -> Iterator[str]:
    """A block as its commands: one a paragraph of shell that starts a server, or the whole block if it assigns variables."""
    if not LAUNCHES.search(block):
        return
    if len(LAUNCHES.findall(block)) == 1 or re.search(r"^\s*(export )?[A-Z_]+=|EOF|^\w+:", block, re.MULTILINE):
        yield block
        return
    for part in re.split(r"\n(?=\s*(?:#|vllm serve|python3? -m|sglang serve|docker run|\$ ))|\n\s*\n", block):
        if LAUNCHES.search(part) and not part.lstrip().startswith(("docker pull", "docker tag")):
            yield part


def verdict(name: str, command: Any) -> tuple[str, str]:
    """What the reader makes of a command, and its words."""
    if isinstance(command, list):
        engine: str | None = name.rpartition("(")[2].rstrip(")")
    else:
        engine = launched_by(command)
    if engine is None:
        return ("failed", "no launch command found") if STARTS.search(re.sub(r"(?m)^\s*#.*$", "", str(command))) else ("none", "")
    try:
        flags = parse_engine_args(engine, command)
        load_scenario(
            {
                "model": flags.model if flags.model and not re.search(r"^[/~.]|[$<{]", flags.model) else "Qwen/Qwen3-8B",
                "deployment": {"engine": engine, "hardware": "h100-sxm-80gb", "engine_args": command},
                "workload": WORKLOAD,
            }
        )
    except InputError as error:
        words = str(error).replace("\n", " | ")
        if "has no flag" in words:
            return "unknown", words
        return ("refused" if REFUSED.search(words) else "other" if OTHER.search(words) else "failed"), words
    words = "; ".join([*flags.notes, *flags.warnings])
    return ("notes" if words else "read"), words


def reason(words: str) -> str:
    """The words of a refusal without the names that it is about."""
    return re.sub(r"`[^`]*`|'[^']*'|\d[\d.]*", "_", words.partition(" | ")[0].partition(": ")[2])[:150]


def main(*arguments: str) -> None:
    listed = arguments[arguments.index("--list") + 1] if "--list" in arguments else "failed"
    folders = [Path(a) for a in arguments if a != "--list" and a != listed]
    assert all(engine_named(name) for name in BUILT_IN)
    for folder in folders:
        found = [(name, command, *verdict(name, command)) for name, command in commands(folder)]
        found = [entry for entry in found if entry[2] != "none"]
        counts = Counter(entry[2] for entry in found)
        total = max(1, len(found))
        good = total - counts["failed"]
        print(f"{folder.name}: {len(found)} commands, {100 * good / total:.1f} % read or refused by their reason: {dict(counts)}")
        for words, count in Counter(reason(entry[3]) for entry in found if entry[2] == "refused").most_common():
            print(f"  {count:4d} refused: {words}")
        for name, command, judged, words in found:
            if judged == listed:
                print(f"\n--- {name}: {words}\n{command}")


if __name__ == "__main__":
    main(*sys.argv[1:])
