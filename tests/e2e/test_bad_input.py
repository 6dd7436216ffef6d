"""Bad input: the exit code, the cause, the mend, and nothing written."""

from __future__ import annotations

import errno
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from .conftest import SCENARIO, Cli, files_below

REFUSED: dict[str, tuple[list[str], int, list[str]]] = {
    "weights do not fit": (
        ["model=meta-llama/Llama-3.1-70B-Instruct"],
        3,
        ["does not fit", "too much on each of 1 devices", "tensor parallelism"],
    ),
    "tensor parallelism does not divide the heads": (
        ["deployment.tensor_parallel=3"],
        2,
        ["deployment.tensor_parallel", "does not divide 32 attention heads", "1, 2, 4, 8"],
    ),
    "fp8 activations on an A100": (
        ["deployment.hardware=a100-sxm-80gb", "deployment.weights=fp8", "deployment.activations=fp8"],
        2,
        ["deployment.activations", "A100", "no fp8 arithmetic", "weight-only"],
    ),
    "unknown number format": (["deployment.weights=fp7"], 2, ["fp7", "fp8"]),
    "unknown engine": (["deployment.engine=vlm"], 2, ["'vlm'", "did you mean 'vllm'"]),
    "unknown engine version": (["deployment.engine=vllm@0.0.1"], 2, ["--set deployment.engine: ", "0.0.1", "0.11"]),
    "no engine version": (["deployment.engine=vllm@new"], 2, ["--set deployment.engine: 'new' is not a version"]),
    "unknown hardware": (["deployment.hardware=h100-sxm-81gb"], 2, ["h100-sxm-81gb", "h100-sxm-80gb"]),
    "unknown model": (
        ["model=meta-llama/Llama-3.1-9B-Instruct"],
        2,
        ["Llama-3.1-9B-Instruct", "did you mean"],
    ),
    "unknown trace": (["workload={trace: azure-conv-2032}"], 2, ["azure-conv-2032", "azure-conv-2023"]),
    "missing trace": (["workload={trace: none.csv}"], 2, ["no file 'none.csv'"]),
    "engine that has no backend there": (
        ["deployment.hardware=apple-m2-ultra-76c-192gb"],
        2,
        ["vllm does not run on Apple M2 Ultra"],
    ),
    "unknown key": (["workload.durration=5"], 2, ["durration", "duration"]),
    "zero rate": (["workload.arrivals.rate=0"], 2, ["workload.arrivals.rate", "zero"]),
    "NaN": (["workload.arrivals.rate=.nan"], 2, ["NaN"]),
    "infinite": (["workload.duration=.inf"], 2, ["workload.duration"]),
    "negative time": (["workload.duration=-5"], 2, ["workload.duration", "above zero"]),
    "unit in a number": (["workload.duration=10min"], 2, ["'10min'", "600"]),
    "a percentile that is none": (["slo={ttft_ms: {p101: 5}}"], 2, ["p101"]),
    "endless prompts": (
        ["workload.prompt_tokens={kind: constant, value: 10000000}"],
        2,
        ["requests are refused", "context of 131072"],
    ),
    "cache too small": (
        ["deployment.engine_args={gpu_memory_utilization: 0.25}"],
        3,
        ["does not fit", "max_model_len"],
    ),
    "flag against key": (
        ["deployment.tensor_parallel=1", "deployment.engine_args={tensor_parallel_size: 2}"],
        2,
        ["tensor_parallel_size", "contradicts"],
    ),
    "unknown flag": (["deployment.engine_args={max_num_seqz: 2}"], 2, ["max_num_seqz", "max_num_seqs"]),
    "override without a value": (["deployment.replicas"], 2, ["path=value"]),
    "two loads at once": (["workload.trace=azure-conv-2023"], 2, ["workload"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_scenario_is_refused_in_words(case: str, cli: Cli, tmp_path: Path) -> None:
    overrides, code, words = REFUSED[case]
    arguments = [part for override in overrides for part in ("--set", override)]
    cli("simulate", "small.yaml", "--json", *arguments).refused(code, *words)
    assert files_below(tmp_path) == {"small.yaml"}


TRACES: dict[str, tuple[str, bytes, list[str]]] = {
    "no bytes": ("t.csv", b"", ["empty"]),
    "no request": ("t.csv", b"arrival_s,prompt_tokens,output_tokens\n", ["no request"]),
    "NaN length": ("t.csv", b"arrival_s,prompt_tokens,output_tokens\n0,nan,1\n", ["line 2", "prompt_tokens"]),
    "NaN time": ("t.csv", b"arrival_s,prompt_tokens,output_tokens\nnan,5,1\n", ["line 2", "arrival_s"]),
    "endless time": ("t.csv", b"arrival_s,prompt_tokens,output_tokens\n0,5,1\n1e300,5,1\n", ["line 3", "1e+12 s"]),
    "duplicate id": (
        "t.csv",
        b"request_id,arrival_s,prompt_tokens,output_tokens\na,0,5,1\na,1,5,1\n",
        ["line 3", "'a'", "twice", "line 2"],
    ),
    "cut row": ("t.csv", b"arrival_s,prompt_tokens,output_tokens\n0,5,1\n1,5", ["line 3", "cut short"]),
    "cut JSON": ("t.jsonl", b'{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1}\n{"arr', ["line 2"]),
    "binary": ("t.csv", bytes(np.random.default_rng(1).integers(0, 256, 4000, np.uint8)), ["binary"]),
    "no Parquet": ("t.parquet", b"PAR1" + b"\0" * 100, ["Parquet"]),
    "all endless": ("t.csv", b"arrival_s,prompt_tokens,output_tokens\n0,10000000,1\n", ["refused"]),
}


@pytest.mark.parametrize("case", TRACES)
def test_trace_is_refused_in_words(case: str, cli: Cli, tmp_path: Path) -> None:
    name, content, words = TRACES[case]
    (tmp_path / name).write_bytes(content)
    cli("simulate", "small.yaml", "--set", f"workload={{trace: {name}}}", "--json").refused(2, *words)
    assert files_below(tmp_path) == {"small.yaml", name}


def test_truncated_parquet_trace(cli: Cli, tmp_path: Path) -> None:
    columns = "arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{i},{i % 50 + 1},3\n" for i in range(500))
    (tmp_path / "t.csv").write_text(columns)
    assert cli("trace", "convert", "t.csv", "t.parquet").code == 0
    whole = (tmp_path / "t.parquet").read_bytes()
    (tmp_path / "t.parquet").write_bytes(whole[: len(whole) // 2])
    cli("simulate", "small.yaml", "--set", "workload={trace: t.parquet}").refused(2, "t.parquet", "cut short")


SCENARIO_FILES: dict[str, tuple[bytes, list[str]]] = {
    "YAML bomb": (
        b"\n".join(
            [b"a: &a [x, x, x, x, x, x, x, x, x]"]
            + [b"%c: &%c [%s]" % (c, c, b", ".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghi"]
        ),
        ["aliases"],
    ),
    "binary": (b"model: x\n\0\1\2", ["binary"]),
    "not UTF-8": (b"model: \xff\xfe\n", ["UTF-8"]),
    "not YAML": (b"model: [x\n", ["x.yaml:"]),
    "empty": (b"", ["scenario"]),
    "a list": (b"- model: x\n", ["group of keys"]),
    "code": (b"model: !!python/object/apply:os.system ['true']\n", ["x.yaml:1"]),
}


@pytest.mark.parametrize("case", SCENARIO_FILES)
def test_scenario_file_is_refused_in_words(case: str, cli: Cli, tmp_path: Path) -> None:
    content, words = SCENARIO_FILES[case]
    (tmp_path / "x.yaml").write_bytes(content)
    cli("simulate", "x.yaml", "--json").refused(2, *words)
    assert files_below(tmp_path) == {"small.yaml", "x.yaml"}


@pytest.mark.parametrize("command", ["simulate", "check"])
def test_no_such_scenario_names_the_nearest(command: str, cli: Cli) -> None:
    cli(command, "azure-conv-h10").refused(2, "no scenario 'azure-conv-h10'", "azure-conv-h100")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate", "small.yaml", "--frobnicate"], ["--frobnicate", "simulate --help"]),
        (["simulate"], ["scenario"]),
        (["simulate", "small.yaml", "--seed", "-1"], ["--seed"]),
        (["simulat", "small.yaml"], ["simulat"]),
        (["list", "engine-room"], ["engine-room", "engines"]),
        (["show", "model", "llama-99"], ["llama-99"]),
        (["validate", "schedules", "nowhere"], ["nowhere"]),
        (["trace", "describe", "nowhere.csv"], ["nowhere.csv"]),
    ],
)
def test_usage_errors_also_under_json(arguments: list[str], words: list[str], cli: Cli) -> None:
    plain, as_json = cli(*arguments), cli(*arguments, "--json")
    assert (plain.out, plain.err) == ("", as_json.err)
    assert as_json.out
    plain.refused(2, *words)
    as_json.refused(2, *words)


def test_several_problems_are_all_told(cli: Cli) -> None:
    told = cli("simulate", "small.yaml", "--set", "workload.foo=1", "--set", "deployment.bar=2", "--json")
    assert told.code == 2
    assert [line[:7] for line in told.err.splitlines()] == ["error: ", "  mend:"] * 2
    assert "foo" in told.json()["error"]["message"]
    assert "bar" in told.json()["error"]["message"]


def test_a_few_endless_prompts_are_counted_and_the_rest_is_served(cli: Cli, tmp_path: Path) -> None:
    rows = "".join(f"{i},{10_000_000 if i % 5 == 0 else 100},10\n" for i in range(20))
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + rows)
    run = cli("simulate", "small.yaml", "--set", "workload={trace: t.csv}", "--json")
    assert run.code == 0
    totals = run.json()["totals"]
    assert (totals["offered"], totals["completed"], totals["rejected"]) == (20, 16, 4)
    assert any(text.startswith("4 requests refused") for text in run.json()["warnings"])
    assert run.json()["metrics"]["ttft_ms"]["count"] == 16


def test_a_trace_out_of_order_is_sorted_with_a_warning(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,9,2\n3,9,2\n2,9,2\n")
    run = cli("simulate", "small.yaml", "--set", "workload={trace: t.csv}", "--json")
    assert run.code == 0
    assert any("sort" in text for text in run.json()["warnings"])


def test_fp8_weights_on_an_a100_run_weight_only(cli: Cli) -> None:
    run = cli(
        "simulate",
        "small.yaml",
        "--json",
        "--set",
        "deployment.hardware=a100-sxm-80gb",
        "--set",
        "deployment.weights=fp8",
    )
    assert run.code == 0
    assert run.json()["deployment"]["activations"] == "bf16"
    assert any("weight-only" in text for text in run.json()["assumptions"])


def test_closed_loop_that_uses_up_its_requests_says_so(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.workload import drawn

    loop = "workload.arrivals={kind: closed_loop, concurrency: 2, think_time_s: 0}"
    assert "used up" not in cli("simulate", "small.yaml", "--set", loop, "--json").out
    monkeypatch.setattr(drawn, "FASTEST_REQUEST_S", 5.0)
    run = cli("simulate", "small.yaml", "--set", loop, "--json")
    assert run.code == 0
    assert any("used up its" in text and "shorten the duration" in text for text in run.json()["warnings"])


# The place of the results ---------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["small.yaml", "small.yaml/runs"])
def test_output_below_a_file_is_refused_before_any_work(
    place: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import simulator.run

    monkeypatch.setattr(simulator.run, "run_prepared", None)  # calling it would be an internal error
    cli("simulate", "small.yaml", "--output", place, "--json").refused(2, "cannot write there", "--output")
    assert files_below(tmp_path) == {"small.yaml"}


@pytest.mark.parametrize("stage", ["result.json", "requests.parquet", "timeline.parquet", "plots"])
def test_full_disk(stage: str, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    from simulator.io import rundir, tables

    if stage == "result.json":
        monkeypatch.setattr(Path, "write_text", full)
    elif stage == "plots":
        monkeypatch.setattr(Path, "write_bytes", full)
    else:
        real = tables.write_columns
        monkeypatch.setattr(rundir, "write_columns", lambda c, p: full() if p.name == stage else real(c, p))
    cli("simulate", "small.yaml", "--json", "--plots").refused(1, "disk is full", "free some space")
    left = {name for name in files_below(tmp_path) if not name.startswith("runs/small-") or "plots" in name}
    assert left == ({"small.yaml", "runs"} if stage == "plots" else {"small.yaml"})


def test_internal_errors_have_no_traceback(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.cli import simulate

    def broken(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(simulate, "prepare", broken)
    cli("simulate", "small.yaml", "--json").refused(
        1, "internal error: ZeroDivisionError", "CAPACITY_PLAN_TRACEBACK=1"
    )


# Ctrl-C ---------------------------------------------------------------------------------------------------


def _interrupt_after(requests: int, monkeypatch: pytest.MonkeyPatch, times: int = 1) -> None:
    """Send SIGINT to this process when so many requests have ended."""
    from simulator.cluster.outcome import Rows

    real = Rows.keep
    ended = 0

    def keep(self: Rows, seq: Any) -> None:
        nonlocal ended
        real(self, seq)
        ended += 1
        if requests <= ended < requests + times:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Rows, "keep", keep)


def test_interrupted_soon_nothing_is_written(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(signal.SIGINT)
    _interrupt_after(10, monkeypatch)
    run = cli("simulate", "small.yaml", "--json")
    assert (run.code, run.err) == (130, "error: interrupted; nothing was written\n")
    assert run.json()["error"]["message"] == "interrupted; nothing was written"
    assert files_below(tmp_path) == {"small.yaml"}
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize(
    "arrivals", ["{kind: poisson, rate: 4}", "{kind: closed_loop, concurrency: 3, think_time_s: 0.1}"]
)
def test_interrupted_after_long_work_the_part_is_kept(
    arrivals: str, replicas: int, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from simulator.cli import interrupt
    from simulator.io.rundir import read_run
    from simulator.io.tables import read_columns

    monkeypatch.setattr(interrupt, "KEEP_AFTER_S", 0.0)
    _interrupt_after(40, monkeypatch)
    chosen = ["--set", f"workload.arrivals={arrivals}", "--set", f"deployment.replicas={replicas}"]
    run = cli("simulate", "small.yaml", *chosen, "--set", "slo={ttft_ms: {p50: 200}}")
    assert run.code == 130
    assert "Traceback" not in run.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-partial")
    assert str(folder.relative_to(tmp_path)) in run.err
    part = read_run(folder)
    assert part["partial"]
    totals, result = part["result"]["totals"], part["result"]
    assert 40 <= totals["completed"] <= 41
    assert (
        totals["completed"] + totals["unfinished"] + totals["rejected"] + totals["failed"]
        == totals["offered"]
    )
    assert 0 < totals["duration_s"] < 20
    assert result["slo"] is None
    assert any(text.startswith("interrupted after") for text in result["warnings"])
    columns = read_columns(folder / "requests.parquet")
    assert (columns["finish_reason"] == "not_arrived").sum() == totals["not_arrived"] > 0


def test_second_interrupt_keeps_nothing(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.cli import interrupt

    monkeypatch.setattr(interrupt, "KEEP_AFTER_S", 0.0)
    from simulator.cluster.outcome import Rows

    monkeypatch.setattr(Rows, "cut", lambda *_: signal.raise_signal(signal.SIGINT))
    _interrupt_after(10, monkeypatch)
    run = cli("simulate", "small.yaml")
    assert run.code == 130
    assert run.err.endswith("error: interrupted; nothing was written\n")
    assert files_below(tmp_path) == {"small.yaml"}


def test_a_complete_run_replaces_the_partial_one(cli: Cli, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        from simulator.cli import interrupt

        patch.setattr(interrupt, "KEEP_AFTER_S", 0.0)
        _interrupt_after(20, patch)
        assert cli("simulate", "small.yaml").code == 130
    assert cli("simulate", "small.yaml").code == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert not folder.name.endswith("-partial")


def test_scenarios_of_these_tests_run(cli: Cli, tmp_path: Path) -> None:
    assert cli("check", "small.yaml").code == 0
    assert yaml.safe_load((tmp_path / "small.yaml").read_text()) == SCENARIO
