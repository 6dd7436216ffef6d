"""The commands as a user types them: exit codes, streams, words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.cli import main

EXAMPLES = Path(__file__).parent / "examples"
YAML = """
name: small
model: meta-llama/Llama-3.1-8B-Instruct
deployment: {engine: vllm, hardware: h100-sxm-80gb}
workload:
  arrivals: {kind: poisson, rate: 8}
  prompt_tokens: {kind: constant, value: 300}
  output_tokens: {kind: constant, value: 20}
  duration: 20
slo: {ttft_ms: {p90: 500}}
"""
Typed = tuple[int, str, str]


class Shell:
    """Runs `capacity-plan` in a folder of its own."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
    ) -> None:
        self.monkeypatch, self.capsys, self.folder = monkeypatch, capsys, folder

    def __call__(self, *words: str) -> Typed:
        self.monkeypatch.setattr("sys.argv", ["capacity-plan", *words])
        self.monkeypatch.chdir(self.folder)
        try:
            main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = self.capsys.readouterr()
        return int(code), out, err


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Shell:
    (tmp_path / "s.yaml").write_text(YAML)
    return Shell(monkeypatch, capsys, tmp_path)


def sweep(typed: Shell, *words: str) -> Typed:
    return typed("sweep", "s.yaml", "--workers", "1", "--output", "out", *words)


def test_a_sweep_answers_in_a_table(typed: Shell) -> None:
    code, out, err = sweep(typed, "--vary", "deployment.replicas=1:3")
    assert code == 0
    assert out.startswith("Cheapest that meets the SLO: replicas 1: 1 x h100-sxm-80gb, $")
    assert err == ""
    assert "Pareto front" in out
    assert {p.name for p in (typed.folder / "out").iterdir()} >= {
        "sweep.csv",
        "sweep.parquet",
        "sweep.json",
        "runs",
    }


def test_json_is_one_object(typed: Shell) -> None:
    code, out, _ = sweep(typed, "--vary", "deployment.replicas=1:3", "--json")
    data = json.loads(out)
    assert code == 0
    assert data["cheapest"] == 0
    assert [p["deployment.replicas"] for p in data["points"]] == [1, 2, 3]


def test_plots(typed: Shell) -> None:
    assert sweep(typed, "--vary", "deployment.replicas=1:2", "--plots")[0] == 0
    image = (typed.folder / "out" / "plots" / "cost-latency.png").read_bytes()
    assert image.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ([], 2, "nothing to vary"),
        (["--vary", "deployment.replica=1,2"], 2, "replicas"),
        (["--vary", "deployment.replicas="], 2, "empty"),
        (["--vary", "deployment.replicas=1", "--vary", "deployment.replicas=2"], 2, "two axes"),
        (["--vary", "deployment.replicas=1,2", "--address", "head:6379"], 2, "--backend ray"),
        (["--vary", "deployment.replicas=1,2", "--backend", "ray"], 2, "has its own workers"),
        (["--vary", "deployment.replicas=1,2", "--backend", "proces"], 2, "'process'"),
        (["--vary", "deployment.replicas=1,x"], 2, "1 of 2 points"),
        (["--vary", "deployment.tensor_parallel=3,5"], 2, "none of the 2 points"),
        (["--vary", "model=meta-llama/Llama-3.1-70B-Instruct"], 3, "does not fit"),
        (["--vary", "slo.ttft_ms.p90=1,2", "--fail-on-slo"], 3, "no point meets the SLO"),
        (["--vary", "slo.ttft_ms.p90=1,5000", "--fail-on-slo"], 0, ""),
    ],
)
def test_exit_codes(typed: Shell, words: list[str], code: int, said: str) -> None:
    found, _, err = sweep(typed, *words)
    assert found == code
    assert said in err
    assert "Traceback" not in err


def test_an_error_under_json_is_an_object(typed: Shell) -> None:
    code, out, _ = sweep(typed, "--vary", "deployment.replicas=1,x", "--json")
    assert code == 2
    assert set(json.loads(out)) == {"error"}
    assert (typed.folder / "out" / "sweep.csv").is_file()


def test_a_refused_sweep_leaves_no_folder(typed: Shell) -> None:
    assert sweep(typed, "--vary", "deployment.replica=1,2")[0] == 2
    assert not (typed.folder / "out").exists()


def test_cost_of_a_scenario_of_its_run_and_of_a_sweep(typed: Shell) -> None:
    price = ("--set", "cost.usd_per_gpu_hour=4")
    code, out, _ = typed("cost", "s.yaml", *price, "--json")
    assert code == 0
    of_scenario = {line["what"]: line["value"] for line in json.loads(out)["lines"]}
    assert of_scenario["month"] == 2920.0
    assert sweep(typed, "--vary", "deployment.replicas=1:2", *price)[0] == 0
    run = next((typed.folder / "out" / "runs").iterdir())
    code, out, _ = typed("cost", str(run), "--set", "cost.usd_per_gpu_hour=8", "--json")
    assert {line["what"]: line["value"] for line in json.loads(out)["lines"]}["price of a GPU-hour"] == 8.0
    code, out, _ = typed("cost", "out", "--demand-requests-per-day", "1000000", "--headroom", "0.2")
    assert code == 0
    assert "replicas needed" in out
    assert "N+1" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["s.yaml", "--demand-requests-per-day", "0"], "above zero"),
        (["s.yaml", "--demand-requests-per-day", "nan"], "demand-requests-per-day"),
        (["s.yaml", "--headroom", "inf"], "headroom"),
        (["s.yaml", "--set", "cost.usd_per_gpu_hours=3"], "usd_per_gpu_hour"),
        (["s.yaml", "--set", "deployment.hardware=h800-sxm-80gb"], "no price is known"),
        (["nothing"], "nothing"),
        (["s.yaml", "--profile", "none.yaml"], "cannot read"),
    ],
)
def test_cost_refuses_in_words(typed: Shell, words: list[str], said: str) -> None:
    code, _, err = typed("cost", *words)
    assert code == 2
    assert said in err


def test_of_a_finished_run_only_the_cost_can_be_set(typed: Shell) -> None:
    sweep(typed, "--vary", "deployment.replicas=1")
    run = next((typed.folder / "out" / "runs").iterdir())
    code, _, err = typed("cost", str(run), "--set", "deployment.replicas=2")
    assert code == 2
    assert "only cost.*" in err


def test_compare(typed: Shell) -> None:
    sweep(typed, "--vary", "deployment.replicas=1:2")
    runs = sorted(str(p) for p in (typed.folder / "out" / "runs").iterdir())
    code, out, _ = typed("compare", *runs, str(EXAMPLES / "vllm_bench_serve.json"))
    assert code == 0
    named = {line[line.find("(") :] for line in out.splitlines()}
    assert {"(simulated; SLO holds, replicas 1)", "(simulated; SLO holds, replicas 2)"} < named
    code, out, _ = typed("compare", *runs, "--json")
    data = json.loads(out)
    assert data["scenario_changes"][0]["field"] == "deployment.replicas"
    assert typed("compare", runs[0])[0] == 2
    (typed.folder / "other.json").write_text("{}")
    code, _, err = typed("compare", runs[0], "other.json")
    assert code == 2
    assert "guidellm" in err


def test_help_is_there(typed: Shell) -> None:
    for command in ("sweep", "cost", "compare"):
        code, out, _ = typed(command, "--help")
        assert code == 0
        assert "Usage" in out


def test_every_price_of_a_varied_one_is_named(typed: Shell) -> None:
    _, out, _ = sweep(typed, "--vary", "cost.usd_per_gpu_hour=2.40,6.88")
    assert "h100-sxm-80gb $2.40, h100-sxm-80gb $6.88 a GPU-hour" in out


def test_a_spot_price_that_is_scaled_is_called_an_estimate(typed: Shell) -> None:
    _, out, _ = typed("cost", "s.yaml", "--set", "cost.spot=true")
    assert "estimate from on_demand (median of" in out
    _, out, _ = typed("cost", "s.yaml", "--set", "cost.spot=true", "--set", "cost.provider=GCP")
    assert "estimate from on_demand" not in out


def test_the_table_says_which_points_lie_outside_what_was_measured(typed: Shell) -> None:
    _, out, _ = sweep(typed, "--vary", "deployment.tensor_parallel=1,8")
    assert "outside   parallelism:" in out
    assert "not 8 (1 of 2 points)" in out.replace("\n          ", " ")
    _, out, _ = sweep(typed, "--vary", "deployment.replicas=1,2")
    assert "outside" not in out
