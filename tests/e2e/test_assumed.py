"""What of a model's config was not read is said in every output."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.run import simulate

from .conftest import Cli

KEY = "attention_sink_width"
MODEL = {
    "model_type": "brandnew",
    "hidden_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    KEY: 16,
}
WORKLOAD = {"arrivals": {"kind": "poisson", "rate": 2}, "prompt_tokens": 50, "output_tokens": 4, "duration": 5}
SAID = ("model type 'brandnew' is not known", KEY)


def scenario(folder: Path) -> Path:
    model = folder / "config.json"
    model.write_text(json.dumps(MODEL))
    path = folder / "s.yaml"
    fields = {"model": str(model), "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"}, "workload": WORKLOAD}
    path.write_text(json.dumps(fields))
    return path


def test_results_and_manifest_list_it(tmp_path: Path) -> None:
    run = simulate(scenario(tmp_path))
    for words in SAID:
        assert words in " ".join(run.result["assumptions"])
        assert words in " ".join(run.manifest["assumptions"])


@pytest.mark.parametrize("command", ["check", "simulate"])
def test_commands_print_it(command: str, tmp_path: Path, cli: Cli) -> None:
    ended = cli(command, scenario(tmp_path))
    assert ended.code == 0, ended.err
    for words in SAID:
        assert words in " ".join(ended.out.split())


def test_show_model_prints_it(tmp_path: Path, cli: Cli) -> None:
    scenario(tmp_path)
    shown = cli("show", "model", tmp_path / "config.json")
    assert shown.code == 0
    for words in SAID:
        assert words in " ".join(shown.out.split())
