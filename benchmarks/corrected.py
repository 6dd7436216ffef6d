"""Cases of `capacity-plan validate reports` as their pages have them, where the list says otherwise.

    python benchmarks/corrected.py ../shared/data/reports/cases.jsonl --output cases.jsonl

What is corrected, and by which heading of the page, is printed to stderr. Nothing of the list is kept in the project.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Correction:
    """Words of the scenarios of a page that the page contradicts, what it says instead, and of which reported TPOT [ms]."""

    page: str
    tpot_mean_ms: tuple[float, ...]
    written: str
    right: str
    heading: str


CORRECTIONS = (
    Correction(
        "docs/autoregressive/Google/Gemma4.md",
        (24.13, 82.51, 9.78, 41.23),
        "hardware: h200-sxm-141gb",
        "hardware: mi300x-192gb",
        "5.1 titles these runs (1x MI300X, TP=1), sgl-cookbook at 7b5bd9c, 2026-05-01",
    ),
)


def corrected(entry: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A case as its page has it, and the heading that says so; "" where the list is right."""
    for c in CORRECTIONS:
        if c.page in entry.get("source", "") and entry["reported"].get("tpot_mean_ms") in c.tpot_mean_ms:
            return {**entry, "scenario": entry["scenario"].replace(c.written, c.right)}, c.heading
    return entry, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    lines = []
    for line in asked.cases.read_text(encoding="utf-8").splitlines():
        entry, heading = corrected(json.loads(line))
        lines.append(json.dumps(entry))
        if heading:
            print(f"{entry['id']}: {heading}", file=sys.stderr)
    asked.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
