"""Happy paths: what a run prints and writes, that it repeats itself, and that no request is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from .conftest import SCENARIO, Cli

FILES = {"result.json", "manifest.json", "requests.parquet", "timeline.parquet"}
REQUEST_COLUMNS = [
    "request_id", "session_id", "turn", "arrival_s", "queue_start_s", "first_scheduled_s", "first_token_s", "end_s",
    "prompt_tokens", "cached_tokens", "output_tokens", "ttft_ms", "tpot_ms", "e2el_ms", "queue_ms", "preemptions",
    "instance_id", "prefill_instance_id", "finish_reason", "slo_ok",
]  # fmt: skip
TIMELINE_COLUMNS = {
    "instance_id", "t_s", "running", "waiting", "kv_usage", "batch_tokens", "prefill_tokens", "decode_tokens",
    "preemptions", "busy_fraction",
}  # fmt: skip
RESULT_KEYS = {
    "schema_version", "kind", "name", "run_id", "metrics", "totals", "server", "slo", "classes", "overload", "cost", "deployment",
    "warnings", "assumptions", "extrapolation",
}  # fmt: skip
METRICS = {
    "ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "queue_ms", "prefill_ms", "decode_ms", "input_tokens", "output_tokens",
    "cached_tokens", "ttft_front_ms", "ttft_queue_ms", "ttft_launch_ms", "ttft_kernel_ms",
}  # fmt: skip
STATISTICS = [
    "mean",
    "std",
    "min",
    "p1",
    "p5",
    "p10",
    "p25",
    "p50",
    "p75",
    "p90",
    "p95",
    "p99",
    "p99_9",
    "max",
]


def in_own_process(
    *arguments: str | Path, hash_seed: int = 0, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    root = str(Path(__file__).resolve().parents[2])
    code = "from simulator.cli import command; command()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": root},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def only_run(base: Path) -> Path:
    """The one run directory below `base`/runs."""
    (folder,) = (base / "runs").iterdir()
    return folder


def test_a_saved_cache_is_written_over_nothing(cli: Cli, tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("precious")
    cli("simulate", "azure-conv-h100", "--save-cache", str(mine)).refused(2, "there already", "mine.yaml")
    assert mine.read_text() == "precious"
    assert not (tmp_path / "runs").exists()


def check_conserved(result: dict[str, Any], columns: dict[str, Any]) -> None:
    """Every offered request has exactly one fate, in the result and in the table."""
    totals = result["totals"]
    fates = totals["completed"] + totals["rejected"] + totals["failed"] + totals["unfinished"]
    assert fates == totals["offered"] > 0
    reasons = columns["finish_reason"]
    assert (reasons == "rejected").sum() == totals["rejected"]
    assert (reasons == "unfinished").sum() == totals["unfinished"]
    assert (reasons == "not_arrived").sum() == totals["not_arrived"]
    names = {"finished": "completed", "rejected": "rejected", "failed": "failed", "unfinished": "unfinished"}
    for status, name in names.items():
        assert (columns["status"] == status).sum() == totals[name]
    assert sum(totals["reasons"].values()) == totals["offered"] - totals["completed"]
    for reason, count in totals["reasons"].items():
        assert (columns["reason"] == reason).sum() == count
    done = np.isin(reasons, ["stop", "length"])
    assert done.sum() == totals["completed"]
    assert np.isnan(columns["e2el_ms"].astype(float)[~done]).all()
    for earlier, later in (
        ("arrival_s", "first_scheduled_s"),
        ("first_scheduled_s", "first_token_s"),
        ("first_token_s", "end_s"),
    ):
        assert (columns[earlier][done] <= columns[later][done]).all(), (earlier, later)


def shipped() -> list[str]:
    from simulator.config.load import shipped_scenarios

    return sorted(shipped_scenarios())


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario(name: str, cli: Cli, tmp_path: Path) -> None:
    from simulator.io.tables import read_columns

    split = name.startswith("disaggregate-")
    pauses = name == "office-ollama-4090"  # of several minutes
    length_s = 40 if split else 2400 if pauses else 240
    shorter = [] if name == "deepseek-r1-8-h100" else ["--set", f"workload.duration={length_s}"]
    shorter += ["--set", "workload.warmup=30"] if shorter else []
    if name in ("night-batch-cpu", "offline-zero-inference-a6000"):  # all are there at time zero
        shorter = ["--set", "workload.requests=200"]
    run = cli("simulate", name, *shorter)
    if name == "deepseek-r1-8-h100":
        run.refused(3, "DeepSeek-R1 does not fit", "GB too much on each of 8 devices")
        cli("check", name).refused(3, "h200-sxm-141gb")
        return
    assert (run.code, run.err) == (0, "")
    for word in (
        "SLO",
        "TTFT",
        "TPOT",
        "ITL",
        "E2E",
        "queue",
        "KV cache",
        "busy",
        "cost",
        "sources",
        "written",
    ):
        assert word in run.out
    folder = only_run(tmp_path)
    assert {path.name for path in folder.iterdir()} == FILES
    result = json.loads((folder / "result.json").read_text())
    encoded = name == "pages-encoders-h100"
    changes = {"fleet"} if name == "node-failure-h100" else {"encoders"} if encoded else set()
    several = split or name == "mixed-fleet"
    assert set(result) == RESULT_KEYS | ({"pools"} if several else set()) | changes
    passed_on = {"transfer_ms", "decode_queue_ms"} if split else set()
    passed_on |= {"encode_queue_ms", "encode_ms", "encode_transfer_ms"} if encoded else set()
    assert set(result["metrics"]) == METRICS | passed_on
    for name_, stats in result["metrics"].items():
        assert set(stats) >= {"unit", "count", "ci95", "interval", *STATISTICS}, name_
        if name_ == "itl_ms" and not stats["count"]:  # answers are seen as a whole
            continue
        ordered = [stats[key] for key in ("min", *STATISTICS[3:])]
        assert ordered == sorted(ordered), name_
    columns = read_columns(folder / "requests.parquet")
    assert list(columns)[: len(REQUEST_COLUMNS)] == REQUEST_COLUMNS
    check_conserved(result, columns)
    lines = read_columns(folder / "timeline.parquet")
    assert set(lines) == TIMELINE_COLUMNS
    assert (lines["kv_usage"] <= 1 + 1e-9).all()
    assert (lines["busy_fraction"] <= 1).all()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["run"]) >= {"wall_s", "command_line"}
    assert folder.name == f"{name}-{manifest['scenario_sha256'][:10]}"
    assert all(source["source"] for source in manifest["hardware_profile"]["sources"])


def test_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    outputs = []
    for seed in (1, 2):
        base = tmp_path / str(seed)
        base.mkdir()
        (base / "small.yaml").write_text(yaml.safe_dump(SCENARIO, sort_keys=False))
        ran = in_own_process(
            "simulate", "small.yaml", "--set", "workload.sessions={turns: 3, think_time_s: 2}",
            "--set", "workload.shared_prefix={groups: 3, tokens: 200}", "--plots", hash_seed=seed, cwd=base,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        folder = only_run(base)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest.pop("run")
        found = {
            str(p.relative_to(folder)): p.read_bytes()
            for p in folder.rglob("*.*")
            if p.name != "manifest.json"
        }
        outputs.append((folder.name, manifest, found))
    assert outputs[0] == outputs[1]
    assert set(outputs[0][2]) > {"plots/latency.png", "plots/load.png", "plots/throughput.png"}


def test_a_rerun_takes_the_same_folder_and_another_seed_another(cli: Cli, tmp_path: Path) -> None:
    for _ in range(2):
        assert cli("simulate", "small.yaml").code == 0
    only_run(tmp_path)
    assert cli("simulate", "small.yaml", "--seed", "7").code == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_json_is_the_result_file_and_nothing_else(cli: Cli, tmp_path: Path) -> None:
    run = cli("simulate", "small.yaml", "--json")
    assert (run.code, run.err) == (0, "")
    assert run.out == (only_run(tmp_path) / "result.json").read_text()


def test_a_trace_file_takes_the_place_of_the_generator(cli: Cli, tmp_path: Path) -> None:
    from simulator.io.tables import read_columns

    (tmp_path / "mine.csv").write_text(
        "arrival_s,prompt_tokens,output_tokens\n"
        + "".join(f"{i / 2},{100 + i},{5 + i % 3}\n" for i in range(40))
    )
    run = cli(
        "simulate",
        "azure-conv-h100",
        "--json",
        "--set",
        "workload.trace=mine.csv",
        "--set",
        "workload.warmup=0",
    )
    assert run.code == 0
    columns = read_columns(only_run(tmp_path) / "requests.parquet")
    assert columns["prompt_tokens"].tolist() == [100 + i for i in range(40)]
    assert columns["output_tokens"].tolist() == [5 + i % 3 for i in range(40)]
    assert columns["arrival_s"].tolist() == [i / 2 for i in range(40)]


AZURE = Path(__file__).resolve().parents[2].parent / "shared/data/traces/azure2023_conv.parquet"


@pytest.mark.skipif(
    not AZURE.is_file(), reason="the original trace stands beside the development checkout only"
)
def test_the_original_azure_trace_replays(cli: Cli) -> None:
    replaced = ["--set", f"workload.trace={AZURE}", "--set", "workload.limit=1000"]
    run = cli("simulate", "azure-conv-h100", "--json", *replaced)
    assert run.code == 0
    assert run.json()["totals"]["offered"] == 1000
    assert run.json()["slo"]["holds"]


def test_a_pasted_launch_command(cli: Cli) -> None:
    command = "vllm serve meta-llama/Llama-3.1-8B-Instruct --tensor-parallel-size 2 --max-num-seqs 64 --max-model-len 8192"
    run = cli("simulate", "small.yaml", "--json", "--set", f"deployment.engine_args={command}")
    assert run.code == 0
    deployment = run.json()["deployment"]
    assert (deployment["tensor_parallel"], deployment["max_num_seqs"], deployment["max_model_len"]) == (
        2,
        64,
        8192,
    )


def test_check_says_what_would_be_deployed(cli: Cli, tmp_path: Path) -> None:
    run = cli("check", "small.yaml", "--json")
    assert run.code == 0
    facts = run.json()
    memory = facts["memory"]
    assert facts["fits"] is True
    assert memory["weight_bytes"] == pytest.approx(16.06e9, rel=0.01)  # 8.03e9 parameters of two bytes
    assert memory["kv_bytes_per_token"] == 2 * 32 * 8 * 128 * 2
    fit = facts["requests_that_fit_by_context_tokens"]
    assert fit["8192"] == facts["kv_tokens_per_replica"] // 8192
    assert not (tmp_path / "runs").exists()


def test_strict_and_fail_on_slo(cli: Cli) -> None:
    missed, kept = "slo={ttft_ms: {p50: 0.001}}", "slo={ttft_ms: {p50: 60000}}"
    assert cli("simulate", "small.yaml", "--set", missed).code == 0
    assert cli("simulate", "small.yaml", "--set", missed, "--fail-on-slo").code == 3
    assert cli("simulate", "small.yaml", "--set", kept, "--fail-on-slo").code == 0
    assert cli("simulate", "small.yaml", "--fail-on-slo").code == 0
    physics = cli("simulate", "small.yaml", "--strict", "--set", "deployment.hardware=mi300x-192gb")
    assert physics.code == 4
    assert physics.err.startswith("outside the calibrated domain: hardware: ")
    assert "written" in physics.out


def test_fail_on_slo_hears_every_class(cli: Cli) -> None:
    load = {key: SCENARIO["workload"][key] for key in ("arrivals", "prompt_tokens", "output_tokens")}
    for bound, code in ((0.001, 3), (60000, 0)):
        classes = [
            {"name": "fast", "slo": {"ttft_ms": {"p50": bound}}, **load},
            {"name": "slow", "slo": {"ttft_ms": {"p50": 60000}}, **load},
        ]
        workload = yaml.safe_dump({"classes": classes, "duration": 20}, default_flow_style=True, width=10_000)
        run = cli("simulate", "small.yaml", "--set", f"workload={workload}", "--fail-on-slo")
        assert run.code == code
        assert f"fast: {'MISSED' if code else 'MET'}" in run.out or "CLOSE" in run.out


def test_overload_is_named_with_what_it_could_sustain(cli: Cli) -> None:
    run = cli(
        "simulate", "small.yaml", "--json", "--set", "workload.arrivals.rate=400", "--set", "workload.duration=15",
        "--set", "workload.drain_s=1",
    )  # fmt: skip
    assert run.code == 0
    result = run.json()
    (text,) = [text for text in result["warnings"] if text.startswith("overload")]
    assert "requests/s offered" in text
    assert "estimate" in text
    assert result["totals"]["unfinished"] > 0
    assert any("unfinished after 1 s of drain" in text for text in result["warnings"])
    check_conserved_totals(result["totals"])


def check_conserved_totals(totals: dict[str, Any]) -> None:
    """Fates add up."""
    assert totals["offered"] == sum(totals[key] for key in ("completed", "rejected", "failed", "unfinished"))


def test_the_library_gives_what_the_command_gives(cli: Cli, tmp_path: Path) -> None:
    from simulator.run import simulate

    printed = cli("simulate", "small.yaml", "--json").json()
    run = simulate(tmp_path / "small.yaml")
    assert run.result["totals"] == printed["totals"]
    assert len(run.requests_frame()) == printed["totals"]["offered"]
    assert set(run.timeline_frame().columns) == TIMELINE_COLUMNS


def test_version_and_schema(cli: Cli) -> None:
    from simulator.version import VERSION, build

    assert cli("--version").out == f"capacity-plan {VERSION} ({build()})\n"
    schema = cli("schema").json()
    assert {"model", "deployment", "workload"} <= set(schema["properties"])


@pytest.mark.parametrize("kind", ["engines", "hardware", pytest.param("models", marks=pytest.mark.slow), "traces", "scenarios"])
def test_list(kind: str, cli: Cli) -> None:
    entries = cli("list", kind, "--json").json()
    names = [entry["name"] for entry in entries]
    plain = cli("list", kind)
    assert plain.code == 0
    assert all(name in plain.out for name in names)
    shown = cli("show", kind.removesuffix("s") if kind != "hardware" else kind, names[0])
    assert shown.code == 0
    assert names[0] in shown.out


HEAVY = (
    "numpy",
    "pandas",
    "pyarrow",
    "scipy",
    "matplotlib",
    "simpy",
    "yaml",
)  # Typer itself may import pydantic


@pytest.mark.parametrize("arguments", [["--help"], ["simulate", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom simulator.cli import main\n"
        "try:\n    main()\nexcept SystemExit as leaving:\n    assert not leaving.code, leaving.code\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    root = str(Path(__file__).resolve().parents[2])
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.stderr == "[]\n"
    assert ran.stdout


@pytest.mark.parametrize(("words", "code"), [(["list", "engines"], 0), (["check", "nowhere.yaml"], 2), (["simulate"], 2)])
def test_a_process_ends_with_its_code_once_what_waits_for_its_end_has_run(words: list[str], code: int) -> None:
    program = (
        "import atexit\nfrom simulator import cli\nordinary = cli.main\n"
        "def main():\n    atexit.register(print, 'the end')\n    ordinary()\n"
        "cli.main = main\ncli.command()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program, *words],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == code
    assert ran.stdout.endswith("the end\n")


def test_a_reader_that_goes_away_is_no_error() -> None:
    root = str(Path(__file__).resolve().parents[2])
    code = "from simulator.cli import command; command()"
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        ran = subprocess.run(
            [sys.executable, "-c", code, "schema"],
            env={**os.environ, "PYTHONPATH": root},
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (ran.returncode, ran.stderr) == (1, "")


def test_queueing_is_in_the_interval_of_e2e_too() -> None:
    """A queue that may be half as long takes as much off E2E as off TTFT."""
    from simulator import simulate

    busy = {"arrivals": {"kind": "batch"}, "requests": 400, "prompt_tokens": 2000, "output_tokens": 20}
    scenario = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
        "workload": busy,
    }
    metrics = simulate(scenario).result["metrics"]
    ttft, e2e = metrics["ttft_ms"], metrics["e2el_ms"]
    assert metrics["queue_ms"]["mean"] > 0.5 * e2e["mean"]
    assert e2e["interval"]["mean"][0] <= ttft["interval"]["mean"][0] + (e2e["mean"] - ttft["mean"])
