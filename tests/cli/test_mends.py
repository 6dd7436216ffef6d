"""What a user reads after a slip: each error leads to the right form, each silent assumption is said."""

from __future__ import annotations

import ast
import datetime as dt
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_models.declaration import EnginePlan
from engine_models.engines.known import parse_engine_args
from engine_models.lengths import judged
from hardware_profiles.errors import InputError
from simulator.cli.check import pool_lines
from simulator.cli.cost import amount, share_of
from simulator.config import features, fields, schema
from simulator.config.load import load_scenario
from simulator.planning.budget import counted, sustained
from simulator.prepare import prepare
from simulator.results.latencies import token_gaps
from simulator.results.statistics import weighted_batches
from simulator.run import simulate
from simulator.workload import fields as numbers
from simulator.workload import spec, synthetic
from simulator.workload.traces import read_trace
from tests.terminal import typed

SMALL: dict[str, Any] = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 6},
        "prompt_tokens": {"kind": "constant", "value": 300},
        "output_tokens": {"kind": "constant", "value": 20},
        "duration": 20,
    },
}


def first_error(*overrides: str, varied: tuple[str, ...] = ()) -> InputError:
    with pytest.raises(InputError) as caught:
        load_scenario(SMALL, overrides, varied=varied)
    return caught.value


# -- paths --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("rate=3", "workload.arrivals.rate"),
        ("qps=3", "workload.arrivals.rate"),
        ("workload.rate=3", "workload.arrivals.rate"),
        ("tp=2", "deployment.tensor_parallel"),
        ("deployment.tp=2", "deployment.tensor_parallel"),
        ("hardware=h100", "deployment.hardware"),
        ("gpu=h100", "deployment.hardware"),
        ("replica=3", "deployment.replicas"),
        ("turns=3", "workload.sessions.turns"),
        ("max_num_seqs=3", "deployment.engine_args.max_num_seqs"),
        ("deployment.max-num-seqs=3", "deployment.engine_args.max_num_seqs"),
        ("slo.ttft.p99=300", "slo.ttft_ms"),
        ("deployment.speculative.speculative_tokens=3", "deployment.speculative.num_speculative_tokens"),
        ("usd_per_gpu_hour=2", "deployment.usd_per_gpu_hour"),
    ],
)
def test_a_wrong_path_leads_to_the_right_leaf(override: str, meant: str) -> None:
    error = first_error(override)
    assert f"did you mean `{meant}`?" in str(error.mend)


def test_the_meant_leaf_of_classes_is_in_a_class() -> None:
    load = {key: SMALL["workload"][key] for key in ("arrivals", "prompt_tokens", "output_tokens")}
    classes = {**SMALL, "workload": {"classes": [{"name": "a", **load}], "duration": 20}}
    with pytest.raises(InputError) as caught:
        load_scenario(classes, ["rate=3"])
    assert "`workload.classes.0.arrivals.rate`" in str(caught.value.mend)


def test_a_warmup_as_long_as_the_run_says_what_to_change() -> None:
    assert "shorter warmup" in str(first_error("workload.warmup=20").mend)


def test_an_unjudged_slo_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(SMALL))
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n0,100,5\n1,100,5\n")
    words = ("simulate", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "out"))
    assert "not judged: none given" in typed(monkeypatch, capsys, *words)[1]
    workload = f"workload={{trace: {tmp_path / 't.csv'}, duration: 20, warmup: 10}}"
    asked = typed(monkeypatch, capsys, *words, "--set", workload, "--set", "slo.ttft_ms.p99=100")
    assert "not judged: no request in the measured window" in asked[1]


def test_the_latencies_of_a_run_that_lost_requests_say_whose_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(SMALL))
    words = ("simulate", str(tmp_path / "s.yaml"), "--output", str(tmp_path / "out"))
    assert "those lost" not in typed(monkeypatch, capsys, *words)[1]
    long = "workload.prompt_tokens={kind: uniform, low: 100, high: 600}"
    cut = ("--set", long, "--set", "deployment.engine_args.max_model_len=400")
    _, out, _ = typed(monkeypatch, capsys, *words, *cut)
    assert " rejected; window" in out
    assert "those lost as infinitely late" in out


def test_the_facts_of_a_trace_are_text_and_a_warning_stands_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "t.csv").write_text("arrival_s,prompt_tokens,output_tokens\n5,100,5\n1,100,5\n")
    code, out, _ = typed(monkeypatch, capsys, "trace", "describe", str(tmp_path / "t.csv"))
    assert code == 0
    assert "None" not in out
    assert re.search(r"^rank_correlation +-$", out, re.M)
    assert out.count("out of order") == 1


@pytest.mark.parametrize(("asked", "told"), [("9.9.0", True), ("0.16.2", True), ("0.15.1", False), ("", False)])
def test_a_version_that_is_not_modelled_is_said_to_be_taken_for_one(asked: str, told: bool) -> None:
    engine = f"vllm@{asked}" if asked else "vllm"
    prepared = prepare(load_scenario(SMALL, [f"deployment.engine={engine}"]))
    said = f"vllm {asked} is simulated by the rules of {prepared.plan.version}"
    assert any(text.startswith(said) for text in prepared.assumptions) is told


def test_check_of_sglang_names_its_own_flag(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(SMALL))
    words = ("check", str(tmp_path / "s.yaml"))
    assert ", max_num_seqs)" in typed(monkeypatch, capsys, *words)[1]
    _, out, _ = typed(monkeypatch, capsys, *words, "--set", "deployment.engine=sglang")
    assert ", max_running_requests)" in out
    assert "peak of one step" not in out


def test_a_key_like_none_lists_the_valid_ones() -> None:
    assert "valid keys: name, seed, model" in str(first_error("zzz=1").mend)


def test_a_bound_without_its_percentile_is_given_one() -> None:
    error = first_error("slo.ttft_ms=500")
    assert "`slo.ttft_ms.p99=500`" in str(error.mend)
    assert load_scenario(SMALL, ["slo.ttft_ms.p99=500"]).slo.bounds_ms() == {"ttft_ms": {"p99": 500.0}}


@pytest.mark.parametrize(
    ("key", "named"),
    [("ttft_p99_ms", "ttft_ms.p99"), ("p95_tpot_ms", "tpot_ms.p95"), ("e2e_p90", "e2el_ms.p90"), ("itl_ms_p50", "itl_ms.p50")],
)
def test_a_percentile_within_a_bounds_name_is_led_below_it(key: str, named: str) -> None:
    assert first_error(f"slo.{key}=700").mend == f"name the percentile: `slo.{named}=700`"


def test_a_wrong_axis_names_vary_and_the_form_of_a_range() -> None:
    error = first_error(varied=("deployment.replicas=1-4",))
    assert error.where == "--vary deployment.replicas"
    assert "--vary deployment.replicas=1:4" in str(error.mend)


def test_a_range_in_set_leads_to_a_sweep() -> None:
    error = first_error("deployment.replicas=1-4")
    assert error.where == "--set deployment.replicas"
    assert "--vary deployment.replicas=1:4" in str(error.mend)


def test_flag_errors_stand_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    deployment = "{engine: vllm, hardware: h100, replica: 2, engine_args: {max_num_sqs: 3}}"
    path.write_text(json.dumps(SMALL).replace('{"engine": "vllm", "hardware": "h100-sxm-80gb"}', deployment))
    with pytest.raises(InputError) as caught:
        load_scenario(path)
    assert "unknown key `replica`" in str(caught.value)
    assert "no flag `max_num_sqs`" in str(caught.value)


# -- cost and compare ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "share"), [("0.3", 0.3), ("30%", 0.3), ("0", 0.0), ("1", 1.0), ("150 %", 1.5)]
)
def test_a_headroom_is_a_share_or_percent(text: str, share: float) -> None:
    assert share_of(text) == pytest.approx(share)


@pytest.mark.parametrize(
    ("text", "mend"), [("30", "write 0.3 or 30%"), ("-1", "0.3 or 30%"), ("much", "30%"), ("nan", "30%")]
)
def test_a_headroom_that_is_no_share_is_refused(text: str, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        share_of(text)
    assert mend in str(caught.value.mend)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of which one point keeps the SLO and one misses it."""
    from simulator.planning.sweep import plan_sweep, run_sweep

    folder = tmp_path_factory.mktemp("sweep") / "out"
    scenario = {**SMALL, "slo": {"tpot_ms": {"p50": 12}}, "cost": {"usd_per_gpu_hour": 2.0}}
    run_sweep(plan_sweep(scenario, ["workload.arrivals.rate=4,300"]), folder, workers=1)
    return folder


def test_a_point_that_misses_the_slo_gets_no_fleet(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("cost", str(swept), "--demand-requests-per-day", "1000000")
    code, out, _ = typed(monkeypatch, capsys, *words, "--json")
    assert code == 0
    points = {p["slo"]: p for p in json.loads(out)["points"]}
    assert points["missed"]["replicas"] is None
    assert "misses the SLO" in points["missed"]["reason"]
    assert points["met"]["replicas"] > 0
    assert points["met"]["saturated"] is False
    code, out, _ = typed(monkeypatch, capsys, *words)
    assert "a point that misses the SLO gets no fleet" in out
    assert f"<= {points['met']['replicas']}" in out
    assert "at least, not saturated" in out


def test_what_an_overloaded_run_carries_is_its_saturated_rate() -> None:
    totals = {"request_throughput": 3.0}
    result = {"deployment": {"replicas": 2}, "totals": totals, "slo": None, "classes": []}
    found = sustained(result)
    assert (found.per_replica_per_s, found.saturated) == (1.5, False)
    found = sustained({**result, "overload": {"offered_per_s": 9.0, "sustainable_per_s": 5.0}})
    assert (found.per_replica_per_s, found.saturated) == (2.5, True)


def test_comparing_a_sweep_names_its_runs(
    swept: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = typed(monkeypatch, capsys, "compare", str(swept))
    assert code == 2
    assert "a sweep of 2 runs" in err
    for run in sorted((swept / "runs").iterdir()):
        assert str(run) in err


# -- lengths ------------------------------------------------------------------------------------------------


def plan(engine: str, context: int) -> EnginePlan:
    flag = {"vllm": "max_model_len", "sglang": "context_length"}[engine]
    return prepare(
        load_scenario(SMALL, [f"deployment.engine={engine}", f"deployment.engine_args.{flag}={context}"])
    ).plan


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_prompt_is_refused_by_its_own_length(engine: str) -> None:
    prompts = np.array([10, 999, 1000, 5000])
    ones = np.ones(4, np.int64)
    found = judged(prompts, ones, 0 * ones, plan(engine, 1000).limits)
    # SGLang keeps 6 tokens of the context back: prompts of 994 and more are refused
    assert found.too_long.tolist() == (
        [False, False, True, True] if engine == "vllm" else [False, True, True, True]
    )
    assert (found.refused == found.too_long).all()


@pytest.mark.parametrize(("engine", "total"), [("vllm", 1000), ("sglang", 998)])
def test_an_answer_without_a_limit_is_cut_where_the_context_ends(engine: str, total: int) -> None:
    prompts, outputs = np.array([400, 400, 400]), np.array([10, 598, 9000])
    found = judged(prompts, outputs, np.zeros(3, np.int64), plan(engine, 1000).limits)
    assert not found.refused.any()
    assert found.output_tokens.tolist() == [10, 598, total - 400]
    assert found.cut.tolist() == [False, False, True]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_limit_beyond_the_context_is_refused_whatever_the_answer(engine: str) -> None:
    prompts, outputs, asked = np.full(3, 400), np.full(3, 10), np.array([500, 600, 601])
    found = judged(prompts, outputs, asked, plan(engine, 1000).limits)
    assert found.asked_too_much.tolist() == [False, False, True]
    assert found.output_tokens.tolist() == [10, 10, 10]


def test_what_is_refused_and_cut_is_counted() -> None:
    scenario = {**SMALL, "deployment": {**SMALL["deployment"], "engine_args": {"max_model_len": 310}}}
    result = simulate(scenario).result
    offered = result["totals"]["offered"]
    assert result["totals"]["completed"] == offered
    assert any(
        text.startswith(f"{offered} answers cut where the context of 310 tokens ends")
        for text in result["warnings"]
    )
    assert result["metrics"]["output_tokens"]["max"] == 10


# -- engines, traces, hardware ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "mend"), [(7, "write 16"), (8, "write 16"), (40, "write 32"), (100, "write 96")]
)
def test_a_block_size_that_no_backend_takes_is_refused(tokens: int, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        prepare(load_scenario(SMALL, [f"deployment.engine_args.block_size={tokens}"]))
    assert mend in str(caught.value.mend)


@pytest.mark.parametrize("tokens", [16, 32, 48, 64, 128])
def test_multiples_of_sixteen_are_taken(tokens: int) -> None:
    assert (
        prepare(load_scenario(SMALL, [f"deployment.engine_args.block_size={tokens}"])).plan.limits.block_tokens
        == tokens
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [("h100", True), ("H100 PCIe", True), ("h100-sxm-80gb", False), ("H100_SXM_80GB", False)],
)
def test_a_short_name_says_which_device_it_meant(name: str, said: bool) -> None:
    prepared = prepare(load_scenario(SMALL, [f"deployment.hardware={name}"]))
    told = [text for text in prepared.assumptions if "is taken for" in text]
    assert bool(told) == said
    assert all(prepared.device.name in text for text in told)


def test_columns_that_nothing_reads_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,max_tokens,colour\n0,9,9,9,red\n1,9,9,9,blue\n")
    told = [text for text in read_trace(path).warnings if "nothing reads" in text]
    assert told == [
        "columns of the trace that nothing reads: max_tokens (rename it max_output_tokens, if it holds that), colour"
    ]


def test_a_column_under_another_name_is_pointed_at(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,input_length,output_tokens\n0,9,9\n")
    with pytest.raises(InputError, match="lacks prompt_tokens; nearest to prompt_tokens is 'input_length'"):
        read_trace(path)


# -- figures ------------------------------------------------------------------------------------------------


def test_goodput_counts_as_throughput_does() -> None:
    everything = {**SMALL, "slo": {"e2el_ms": {"p50": 1e9}}}
    totals = simulate(everything, seed=3).result["totals"]
    assert totals["request_goodput"] == totals["request_throughput"]
    assert totals["goodput_fraction"] == 1


def test_gaps_of_several_replicas_come_in_order_of_time(tmp_path: Path) -> None:
    """A rate that quadruples half-way gives slower steps in the second half, on every replica alike."""
    times = np.concatenate([np.linspace(0, 20, 800, endpoint=False), np.linspace(20, 40, 3200)])
    trace = tmp_path / "t.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n" + "".join(f"{t:.4f},300,20\n" for t in times))
    deployment = {**SMALL["deployment"], "replicas": 4}
    rising = {**SMALL, "deployment": deployment, "workload": {"trace": str(trace)}}
    raw = simulate(rising).raw
    gaps, weights = token_gaps(raw, np.ones(len(raw.status), bool))
    batches = weighted_batches(gaps, weights)
    assert batches is not None
    assert batches[:3].max() < batches[5:].min()


# -- check --------------------------------------------------------------------------------------------------


def test_check_says_what_its_numbers_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "s.yaml").write_text(json.dumps(SMALL))
    code, out, _ = typed(monkeypatch, capsys, "check", str(tmp_path / "s.yaml"))
    assert code == 0
    out = " ".join(out.split())
    assert "GB = 1e9 bytes" in out
    assert "bytes on each device of it" in out
    assert "if each is that long (at most 1,024, max_num_seqs)" in out
    assert "PP 1" not in out


# -- file and line of what only the engine's side can find -----------------------------------------------------


Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Typed:
    """Types a command; exit code, stdout and stderr."""
    return lambda *words: typed(monkeypatch, capsys, *words)


def scenario_file(folder: Path, **changes: str) -> Path:
    text = """model: meta-llama/Llama-3.1-8B-Instruct
deployment:
  engine: vllm
  hardware: HARDWARE
  kv_cache: KV
workload:
  arrivals: {kind: poisson, rate: 2}
  prompt_tokens: {kind: PROMPT}
  output_tokens: {kind: constant, value: 20}
  requests: 40
"""
    given = {"HARDWARE": "h100-sxm-80gb", "KV": "bf16", "PROMPT": "constant, value: 512"} | changes
    for key, value in given.items():
        text = text.replace(key, value)
    path = folder / "s.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("command", ["check", "simulate"])
def test_a_cache_format_that_the_device_lacks_is_refused_at_its_line(tmp_path: Path, line: Typed, command: str) -> None:
    path = scenario_file(tmp_path, HARDWARE="l40s-48gb", KV="nvfp4")
    code, _, err = line(command, str(path))
    assert code == 2
    assert f"error: {path}:5: deployment.kv_cache: NVIDIA L40S 48 GB cannot keep a KV cache in nvfp4" in err
    on_blackwell = scenario_file(tmp_path, HARDWARE="b200-sxm-180gb", KV="nvfp4")
    assert line("check", str(on_blackwell))[0] == 0


@pytest.mark.parametrize("command", ["check", "simulate"])
def test_prompts_that_are_all_too_long_are_refused_at_their_line(tmp_path: Path, line: Typed, command: str) -> None:
    path = scenario_file(tmp_path, PROMPT="constant, value: 200000")
    code, _, err = line(command, str(path))
    assert code == 2
    assert f"{path}:8: workload.prompt_tokens: all 40 requests are refused" in err


def test_check_counts_prompts_that_are_too_long(tmp_path: Path, line: Typed) -> None:
    path = scenario_file(tmp_path, PROMPT="uniform, low: 1000, high: 200000")
    code, out, _ = line("check", str(path))
    assert code == 0
    assert "refused: prompt longer than the context of 131072 tokens (of 40)" in " ".join(out.split())


def test_an_error_of_an_override_names_the_override(tmp_path: Path, line: Typed) -> None:
    path = scenario_file(tmp_path)
    _, _, err = line("check", str(path), "--set", "deployment.tensor_parallel=3")
    assert "error: --set deployment.tensor_parallel: tensor_parallel 3 does not divide" in err


# -- words of other engines, percentiles, one of a thing, old prices -------------------------------------------


@pytest.mark.parametrize(
    ("engine", "given", "own"),
    [
        ("sglang", "max_num_seqs", "max_running_requests"),
        ("sglang", "max_model_len", "context_length"),
        ("sglang", "gpu_memory_utilization", "mem_fraction_static"),
        ("vllm", "max_running_requests", "max_num_seqs"),
        ("vllm", "context_length", "max_model_len"),
    ],
)
def test_flags_of_the_other_engine_lead_to_the_engines_own(engine: str, given: str, own: str) -> None:
    with pytest.raises(InputError, match=f"{engine} has no flag `{given}`") as caught:
        parse_engine_args(engine, {given: 8})
    assert caught.value.mend == f"did you mean `{own}`?"


@pytest.mark.parametrize("key", ["p101", "p98", "p100", "99"])
def test_a_percentile_that_no_slo_may_name_leads_to_those_it_may(key: str) -> None:
    error = first_error(f"slo={{ttft_ms: {{{key}: 300}}}}")
    assert error.mend == "percentiles allowed: p50, p90, p95, p99"


def test_one_of_a_thing_is_no_plural() -> None:
    assert [counted(n, "GPU") for n in (1, 2, 2048)] == ["1 GPU", "2 GPUs", "2,048 GPUs"]
    assert amount(1, "replicas") == "1 replica"
    assert amount(2, "replicas") == "2 replicas"


def test_the_summary_marks_an_old_price(tmp_path: Path, line: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scenario_file(tmp_path)
    for day, marked in (("2026-11-21", False), ("2028-01-01", True)):
        seconds = int(dt.datetime.fromisoformat(day).replace(tzinfo=dt.UTC).timestamp())
        monkeypatch.setenv("SOURCE_DATE_EPOCH", str(seconds))
        _, out, _ = line("simulate", str(path), "--output", str(tmp_path / day))
        assert ("STALE" in out) is marked


def test_a_run_too_large_for_plots_says_how_large_and_what_to_do(
    tmp_path: Path, line: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulator.run.STREAM_ABOVE", 20)
    path = scenario_file(tmp_path)
    code, _, err = line("simulate", str(path), "--plots", "--output", str(tmp_path / "runs"))
    assert code == 0
    assert "no plots: a run of more than 20 requests is counted without being held" in err
    assert "mend: for plots simulate a part of it" in err


def test_experts_that_fp8_blocks_do_not_divide_lead_to_expert_parallelism(tmp_path: Path, line: Typed) -> None:
    path = scenario_file(tmp_path, HARDWARE="h200-sxm-141gb")
    path.write_text(path.read_text().replace("meta-llama/Llama-3.1-8B-Instruct", "MiniMaxAI/MiniMax-M2.5"))
    eight = ("--set", "deployment.tensor_parallel=8")
    code, _, err = line("check", str(path), *eight)
    assert code == 2
    assert "192 columns of every expert" in err
    assert "set expert_parallel: true" in err
    assert line("check", str(path), *eight, "--set", "deployment.expert_parallel=8")[0] == 0
    assert line("check", str(path), "--set", "deployment.tensor_parallel=4")[0] == 0


@pytest.mark.parametrize(
    ("word", "answer"),
    [("plan", "sweep SCENARIO --vary"), ("Plan", "sweep SCENARIO --vary"), ("REPORT", "simulate SCENARIO --plots")],
)
def test_words_that_people_try_are_answered_in_any_case(word: str, answer: str, line: Typed) -> None:
    code, _, err = line(word)
    assert code == 2
    assert f"that is asked as `capacity-plan {answer}" in err


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("trace", "stats", "a.csv"), "that is asked as `capacity-plan trace describe"),
        (("trace", "generate"), "that is asked as `capacity-plan trace synthesize"),
        (("trace", "xyz"), "capacity-plan trace --help` lists what it takes"),
        (("simulate",), "one of `capacity-plan list scenarios`"),
        (("show", "vllm"), "`capacity-plan show engine NAME`"),
        (("sim", "a.yaml"), "that is asked as `capacity-plan simulate"),
        (("version",), "that is asked as `capacity-plan --version"),
        (("simulate", "a.yaml", "--replicas", "4"), "keys of the scenario are given so: --set deployment.replicas=2"),
        (("sweep", "a.yaml", "--gpus", "1,2"), "deployment.tensor_parallel=4 for GPUs of one"),
        (("list", "models", "--model", "m"), "capacity-plan list --help` lists what it takes"),
        (("compare",), "folders that `capacity-plan simulate` wrote"),
    ],
)
def test_words_below_a_command_and_missing_ones_are_answered(words: tuple[str, ...], answer: str, line: Typed) -> None:
    code, _, err = line(*words)
    assert code == 2
    assert answer in " ".join(err.split())


@pytest.mark.parametrize(
    ("override", "mend"),
    [
        ("workload.input_len=500", "`workload.prompt_tokens`"),  # not output_tokens, which is nearer by its letters
        ("workload.osl=500", "`workload.output_tokens`"),
        ("workload.time=500", "`workload.duration`"),
        ("workload.timeout=5", "`client.timeout_s`"),
        ("workload.deadline=5", "slo: {e2el_ms: {p99: MILLISECONDS}}"),
        ("workload.system_prompt=5", "shared_prefix: {groups: 1, tokens: N}"),
        ("workload.prompt_tokens='2,000'", "write 2000"),
        ("workload.arrivals=3/s", "write how requests come: {kind: poisson, rate: 2}"),
        ("workload.prompt_tokens=[1, 2]", "write a number, or a group that gives its law: {kind: lognormal"),
        ("workload.arrivals={kind: gamma, rate: 2}", "add `cv: 2`"),
        ("deployment.gpus=4", "tensor_parallel for the GPUs of one server, and replicas for the servers"),
        ("deployment.nodes=4", "`deployment.replicas`"),
        ("deployment.precision=fp8", "`deployment.weights`"),
        ("deployment.gpu_type=h100", "`deployment.hardware`"),
        ("deployment.image=x", "`deployment.engine_args`"),
        ("slo.latency=5", "ttft_ms (to the first token)"),
        ("slo.p99=5", "name the latency: ttft_ms: {p99: 500}"),
        ("cost.price=5", "`cost.usd_per_gpu_hour`"),
        ("description=x", "as a comment"),
    ],
)
def test_words_of_other_tools_are_answered_with_what_is_meant(override: str, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        load_scenario(SMALL, [override])
    assert mend in str(caught.value.mend)


@pytest.mark.parametrize(
    ("key", "value", "place", "words"),
    [
        ("deployment.hardware", "2x h100", "scenario.yaml:3: deployment.hardware", "with tensor_parallel: 2 for one server"),
        ("deployment.hardware", "H100 x 4", "scenario.yaml:3: deployment.hardware", "replicas: 4"),
        ("deployment.hardware", "p5.48xlarge", "'p5.48xlarge' is a machine", "write hardware: h100-sxm-80gb; it has 8"),
        ("deployment.hardware", "Standard_NC24ads_A100_v4", "is a machine", "write hardware: a100-pcie-80gb"),
        ("model", "gpt-oss:20b-cloud", "scenario.yaml:1: model", "did you mean 'gpt-oss-20b'"),
    ],
)
def test_what_is_no_device_and_no_model_is_told_with_its_line(
    key: str, value: str, place: str, words: str, tmp_path: Path, line: Typed
) -> None:
    lines = ["model: Qwen/Qwen3-8B", "deployment:", "  hardware: h100", "  engine: vllm", "workload: {trace: azure-conv-2023}"]
    at = {"model": 0, "deployment.hardware": 2}[key]
    lines[at] = f"{lines[at].partition(':')[0]}: {value}"
    path = tmp_path / "scenario.yaml"
    path.write_text("\n".join(lines))
    code, _, err = line("check", str(path))
    assert code == 2
    assert place in err
    assert words in err


def test_a_file_that_is_named_without_its_ending_and_a_key_without_value_are_told_so(
    tmp_path: Path, line: Typed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "model:\ndeployment: {engine: vllm, hardware: h100}\nworkload: {trace: azure-conv-2023}\n"
    (tmp_path / "mine.yaml").write_text(text)
    code, _, err = line("check", "mine")
    assert code == 2
    assert "did you mean 'mine.yaml'?" in err
    code, _, err = line("check", "mine.yaml")
    assert code == 2
    assert "mine.yaml:1: `model` is empty" in err
    assert "write model: meta-llama/Llama-3.1-8B-Instruct" in err


def test_a_dense_model_has_no_experts_to_spread() -> None:
    with pytest.raises(InputError) as caught:
        prepare(load_scenario(SMALL, ("deployment.tensor_parallel=2", "deployment.expert_parallel=true")))
    assert caught.value.where is not None
    assert caught.value.where.endswith("deployment.expert_parallel")
    assert "leave expert_parallel out" in (caught.value.mend or "")


@pytest.mark.parametrize(
    ("command", "engine", "model"),
    [
        ("vllm serve Qwen/Qwen3-8B -dp 2", "vllm", "Qwen/Qwen3-8B"),
        ("python3 -m sglang.launch_server --model-path Qwen/Qwen3-8B --tp 2", "sglang", "Qwen/Qwen3-8B"),
        ("--max-num-seqs 4", "vllm", "meta-llama/Llama-3.1-8B-Instruct"),
        ("vllm serve Qwen/Qwen3-8B --no-such-flag", "vllm", "meta-llama/Llama-3.1-8B-Instruct"),
    ],
)
def test_what_a_pasted_command_names_is_proposed_for_missing_keys(
    command: str, engine: str, model: str, tmp_path: Path, line: Typed
) -> None:
    path = tmp_path / "pasted.yaml"
    path.write_text(f"deployment: {{hardware: h100-sxm-80gb, engine_args: '{command}'}}\nworkload: {{trace: azure-conv-2023}}\n")
    code, _, err = line("check", str(path))
    assert code == 2
    assert f"add `model: {model}`" in err
    assert f"add `engine: {engine}`" in err


@pytest.mark.parametrize(
    ("engine", "flags", "prompt", "flag"),
    [
        ("trtllm", {"max_seq_len": 16384}, 9000, "max_num_tokens"),
        ("tgi", {"max_total_tokens": 8192, "max_input_tokens": 4000}, 5000, "max_input_tokens"),
        (
            "tgi@2.4.1",
            {"max_total_tokens": 8192, "max_batch_prefill_tokens": 2048, "max_input_tokens": 4000},
            3000,
            "max_batch_prefill_tokens",
        ),
        ("openvino", {"dynamic_split_fuse": "false", "max_num_batched_tokens": 300}, 400, "max_num_batched_tokens"),
        ("triton", {"model_engine": "trtllm", "build_config": "{max_num_tokens: 999}"}, 3000, "max_num_tokens"),
        ("triton", {"model_engine": "trtllm", "build_config": "{max_input_len: 512, max_seq_len: 4096}"}, 3000, "max_input_len"),
    ],
)
def test_prompts_that_a_flag_refuses_name_the_flag(engine: str, flags: dict[str, Any], prompt: int, flag: str) -> None:
    hardware = "xeon-8592-1s" if engine == "openvino" else "h100-sxm-80gb"
    overrides = [f"deployment.engine={engine}", f"deployment.hardware={hardware}", f"workload.prompt_tokens={prompt}"]
    overrides += [f"deployment.engine_args.{name}={value}" for name, value in flags.items()]
    with pytest.raises(InputError, match=rf"that a prompt may have \({flag}\)") as caught:
        simulate(load_scenario(SMALL, overrides))
    assert f"raise {flag}" in str(caught.value.mend)


def test_rows_that_follow_from_two_flags_name_both() -> None:
    mac = {"engine": "mlx_lm", "hardware": "apple-m4-max-40c-64gb"}
    shown = " ".join(" ".join(pool_lines(prepare(load_scenario({**SMALL, "deployment": mac})))).split())
    assert "at most 39, by decode_concurrency 32 and prompt_concurrency 8" in shown


SAYS_WHAT_TO_DO = re.compile(
    r"""f?['"].+(?:; |: )(?:give|write|remove|change|set|use|keep|name|add|spell|move|leave|raise|lower|check|turn)\b.+['"]"""
)


def test_every_check_of_a_scenario_says_what_to_do() -> None:
    """Words of a model's own check are ``cause; mend`` or ``cause: give mend``; without a mend nobody knows what to write."""
    told = []
    for module in (features, fields, schema, numbers, spec, synthetic):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) == "ValueError":
                told.append(ast.unparse(node.exc.args[0]))
    assert [words for words in told if not SAYS_WHAT_TO_DO.fullmatch(words)] == []
    assert len(told) > 30
    for words in ("'a; b is wrong'", "'a is b'", "'a; '", "'give a'", "f'{a} is b; c'"):
        assert not SAYS_WHAT_TO_DO.fullmatch(words), words


def test_what_a_load_lacks_is_written_out(tmp_path: Path) -> None:
    scenario = {**SMALL, "workload": {"duration": 20, "output_tokens": 3}}
    with pytest.raises(InputError) as caught:
        load_scenario(scenario)
    assert caught.value.mend == "add arrivals: {kind: poisson, rate: 2}, prompt_tokens: 500"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "0,100,10\n1,2e2,20\n", "the first line holds numbers"),
        ("a.txt", "arrival_s,prompt_tokens,output_tokens\n0,1,1\n", "is text without JSON"),
    ],
)
def test_a_table_without_names_or_ending_is_told_so(name: str, text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_trace(path)
    assert caught.value.mend


@pytest.mark.parametrize("header", ["time,prompt_len,completion_len", "Timestamp,Prompt Tokens,Completion Tokens"])
def test_columns_by_other_names_are_named(header: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"{header}\n0,100,10\n")
    with pytest.raises(InputError, match="closest is the plain one") as caught:
        read_trace(path)
    for own, theirs in zip(("arrival_s", "prompt_tokens", "output_tokens"), header.split(","), strict=True):
        assert f"nearest to {own} is '{theirs}'" in str(caught.value)
    path.write_text("when,tokens_in,made\n0,100,10\n")
    with pytest.raises(InputError, match=r"closest is the plain one, .* nearest to prompt_tokens is 'tokens_in'"):
        read_trace(path)


@pytest.mark.parametrize(
    ("word", "command"), [("plan", "sweep SCENARIO"), ("report", "simulate SCENARIO --plots"), ("nonsense", "--help")]
)
def test_a_command_that_there_is_not_leads_to_the_one_that_answers(
    word: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, said = typed(monkeypatch, capsys, word, "x.yaml")
    assert code == 2
    assert command in said
