"""`benchmarks/by_class.py`: errors of classes of hardware, each chip once, beside what they may be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "by_class.py"

pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks are not in this copy")


def stream(number: int, chip: str, rate: float) -> str:
    """A published rate of decoding on a chip, as a line of a list of cases."""
    scenario = f"""
model: meta-llama/Llama-2-7b-hf
deployment: {{engine: llama_cpp, hardware: {chip}, weights: q4_0}}
workload: {{arrivals: {{kind: batch}}, requests: 1, prompt_tokens: 1, output_tokens: 16, max_output_tokens: equal}}
"""
    return json.dumps({"id": f"llamacpp_apple-{number}", "scenario": scenario, "reported": {"decode_tok_s": rate}})


def table(folder: Path, *lines: str) -> list[list[str]]:
    """Words of the lines that it prints, without the head."""
    path = folder / "cases.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    run = subprocess.run([sys.executable, str(SCRIPT), str(path), "Apple", "--chips"], check=True, capture_output=True, text=True)
    return [line.split() for line in run.stdout.splitlines()[1:]]


def test_every_chip_counts_once(tmp_path: Path) -> None:
    """Three rows of a chip weigh as much as one of another: a class has the middle of both, marked where that is too much."""
    many = [stream(number, "apple-m2-max-38c-96gb", 66.0) for number in range(3)]
    whole, one, other = table(tmp_path, *many, stream(3, "apple-m1-max-32c-64gb", 15.0))
    assert whole[:4] == ["Apple", "GPUs,", "llama.cpp:", "decoding"]
    chips = {row[0]: (int(row[2]), float(row[3].rstrip("!"))) for row in (one, other)}
    assert chips["apple-m2-max-38c-96gb"][0] == 3
    middle = sum(error for _, error in chips.values()) / 2
    assert float(whole[6].rstrip("!")) == pytest.approx(middle, abs=0.06)
    assert whole[4:6] == ["2", "4"]
    assert whole[6].endswith("!")
    assert whole[7] == "6"
