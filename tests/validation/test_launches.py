"""Launches of measured runs are read beside the rows, and rows without one are replayed by their columns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hardware_profiles.errors import InputError
from simulator.validation.engines import PUBLISHED, compiles_while_measured, engine_release
from simulator.validation.evidence import kinds
from simulator.validation.launches import Launch, launch_of, read_launches
from simulator.validation.report import fidelity
from simulator.validation.runs import predict
from simulator.validation.sglang_launches import start_s
from simulator.validation.spellings import Unplayable
from simulator.validation.suite import plan_experiment, pool_of, read_suite

CLIENT = {
    "dataset": "random",
    "range_ratio": 0.8,
    "num_prompts_per_user": 10,
    "num_warmups_per_user": 2,
    "warmup_prompt": "the first prompt of the run, repeated",
}
LAUNCH = Launch(
    confidence="exact",
    model="nvidia/DeepSeek-R1-0528-FP4-V2",
    image="lmsysorg/sglang:v0.5.9-cu130",
    tensor_ranks=4,
    flags={
        "tensor_parallel_size": 4,
        "expert_parallel_size": 4,
        "kv_cache_dtype": "fp8_e4m3",
        "max_running_requests": 256,
        "scheduler_recv_interval": 30,
        "disable_radix_cache": True,
    },
    client=CLIENT,
)
ROW: dict[str, Any] = {
    "id": "x/all",
    "source": "somewhere",
    "engine": "sglang",
    "hardware": "B200-180GB",
    "model": "deepseek-ai/DeepSeek-R1",
    "precision": "fp4",
    "tp": 16.0,
    "ep": 4.0,
    "dp": 1.0,
    "concurrency": 16.0,
    "prompt_tokens_mean": 1000.0,
    "output_tokens_mean": 500.0,
    "launch": LAUNCH,
}
UNSTATED = {"launch": Launch(), "tp": 8.0, "ep": 1.0}


def launched(row: dict[str, Any] = ROW, **changed: Any) -> dict[str, Any]:
    """The row with another launch."""
    return row | {"launch": replace(launch_of(row), **changed)}


def test_switches_of_an_environment_are_flags() -> None:
    """InferenceX's scripts for FP8 on B200 switch DeepGEMM off in the environment."""
    environment = {"SGL_ENABLE_JIT_DEEPGEMM": "false", "SGLANG_ENABLE_FLASHINFER_GEMM": "true", "NCCL_NVLS_ENABLE": "1"}
    args = pool_of({**ROW, "launch": replace(LAUNCH, environment=environment)})["engine_args"]
    assert {name: args[name] for name in args if "gemm" in name} == {"enable_jit_deepgemm": False, "enable_flashinfer_gemm": True}


def test_a_table_beside_the_rows_is_read(tmp_path: Path) -> None:
    """Dotted flags are nested, JSON texts are read, and what the table says of a row is the row's launch."""
    pq.write_table(pa.table({k: [v] for k, v in ROW.items() if k != "launch"}), tmp_path / "experiments.parquet")
    assert launch_of(read_suite(tmp_path)[0]) == Launch()
    entry = {
        "id": "x/all", "confidence": "near", "image": "a:v1.2.3", "tp": 4, "mislabelled": False, "speculative": "none",
        "engine_flags": '{"a.b": 1, "c": 2}', "environment": '{"E": "1"}', "client": '{"range_ratio": 0.5}',
    }  # fmt: skip
    pq.write_table(pa.table({k: [v] for k, v in entry.items()}), tmp_path / "launches.parquet")
    found = launch_of(read_suite(tmp_path)[0])
    wanted = Launch("near", "", "a:v1.2.3", 4, {"a": {"b": 1}, "c": 2}, {"E": "1"}, {"range_ratio": 0.5})
    assert found == wanted
    (tmp_path / "launches.parquet").write_text("nonsense")
    with pytest.raises(InputError, match="table of launches"):
        read_launches(tmp_path)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"mislabelled": True, "mislabelled_reason": "another configuration"}, "mislabelled: another configuration"),
        ({"speculative": "mtp"}, "multi-token prediction without a stated acceptance"),
        ({"speculative": "unknown"}, "nothing tells which"),
        ({"note": "concurrency is outside the search space of that day"}, "what limited them is not public"),
    ],
)
def test_rows_that_are_not_what_their_label_says_are_left_out_by_name(
    tmp_path: Path, entry: dict[str, Any], words: str
) -> None:
    pq.write_table(pa.table({k: [v] for k, v in ({"id": "x"} | entry).items()}), tmp_path / "launches.parquet")
    with pytest.raises(Unplayable, match=words):
        pool_of(ROW | {"launch": read_launches(tmp_path)["x"]})


def test_flags_and_ranks_are_those_of_the_launch() -> None:
    """A sample that multiplies ranks (16 = 4 x 4) is put right; the image tells the version."""
    experiment = plan_experiment((ROW,), Path("."), {})
    pool = experiment.scenario["deployment"]
    assert (pool["engine"], pool["tensor_parallel"]) == ("sglang@0.5.9", 4)
    assert "expert_parallel" not in pool
    assert pool["engine_args"] == LAUNCH.flags
    lengths = experiment.workload.prompt_tokens
    assert len(lengths) == 160
    assert (lengths.min(), lengths.max()) == (pytest.approx(800, abs=15), pytest.approx(1000, abs=15))
    assert experiment.workload.output_tokens.max() <= 500
    more = plan_experiment((launched(client=CLIENT | {"num_prompts_per_user": 50}),), Path("."), {})
    assert len(more.workload.prompt_tokens) == 800


def test_without_a_launch_the_columns_say_all() -> None:
    experiment = plan_experiment((ROW | UNSTATED,), Path("."), {})
    assert np.unique(experiment.workload.prompt_tokens).tolist() == [1000]
    assert experiment.scenario["deployment"]["engine_args"] == {}
    assert experiment.scenario["deployment"]["tensor_parallel"] == 8
    assert engine_release(ROW | UNSTATED) == ""


def test_what_the_row_states_goes_before_the_launch() -> None:
    pool = pool_of(ROW | {"max_num_seqs": 7.0, "kv_dtype": "bf16"})
    assert pool["engine_args"]["max_running_requests"] == 7
    assert pool["kv_cache"] == "bf16"
    assert "kv_cache_dtype" not in pool["engine_args"]


@pytest.mark.parametrize(
    ("changes", "warmups", "cold"),
    [
        ({}, 0, True),
        ({}, 2, False),
        ({"hardware": "B200-180GB"}, 0, False),
        ({"model": "meta-llama/Llama-3.1-70B-Instruct"}, 0, False),
        ({"model": "openai/gpt-oss-120b", "precision": "fp4"}, 0, False),
    ],
)
def test_cold_servers_of_tensorrt_llm_compile_products_of_fp8_blocks_on_hopper(
    changes: dict[str, Any], warmups: int, cold: bool
) -> None:
    row = launched(client=CLIENT | {"num_warmups_per_user": warmups})
    row |= {"engine": "tensorrt-llm", "hardware": "H200-SXM-141GB", "precision": "fp8", **changes}
    assert compiles_while_measured(row) is cold


@pytest.mark.parametrize(
    ("change", "cold"),
    [
        ({"client": CLIENT | {"num_warmups_per_user": 0}}, True),
        ({}, False),
        ({"client": {}}, False),
    ],
)
def test_runs_before_the_client_warmed_up_are_no_evidence(change: dict[str, Any], cold: bool) -> None:
    row = launched(**change)
    assert compiles_while_measured(row) is cold
    assert not compiles_while_measured(row | {"engine": "vllm"})
    assert (row["id"] in kinds([row])) is not cold
    error = {"id": row["id"], "metric": "ttft_mean_ms", "measured": 2.0, "predicted": 1.0, "abs_pct_error": 50.0}
    page = fidelity(Path("."), [row], {"experiments": [error], "skipped": []}, [])
    assert ("| the server compiled kernels while it was measured (no warm-up) | 50.0, 50, -50, - (1) |" in page) is cold


def test_first_request_of_each_user_waits_longer_where_that_was_seen() -> None:
    """The mean over ten requests a user moves by a tenth of the delay, time per output token by nothing."""
    row = ROW | {"hardware": "H200-SXM-141GB", "concurrency": 4.0, "output_tokens_mean": 20.0}
    experiment = plan_experiment((row,), Path("."), {})
    assert experiment.start_s == start_s(row) > 0 == start_s(ROW)
    assert start_s(launched(client={})) == PUBLISHED["vllm"].start_s(row) == start_s(row | UNSTATED) == 0.0
    late = predict(experiment)[row["id"]]
    prompt = predict(replace(experiment, start_s=0.0))[row["id"]]
    for name in ("ttft_mean_ms", "e2e_mean_ms"):
        assert late[name].value - prompt[name].value == pytest.approx(experiment.start_s * 1e3 / 10)
    assert late["tpot_mean_ms"].value == pytest.approx(prompt["tpot_mean_ms"].value)


SUITE = Path(__file__).resolve().parents[3] / "shared" / "data" / "measured"


@pytest.mark.skipif(not SUITE.is_dir(), reason="the measured suite is not here")
def test_every_launch_of_the_suite_is_read_by_the_engines_own_flags() -> None:
    """No flag of a public script is unknown; those that change the answer and are not modelled are refused by name."""
    from engine_models.engines.known import parse_engine_args
    from simulator.validation.spellings import engine_name

    reasons = set()
    seen: set[str] = set()
    for row in read_suite(SUITE):
        if not launch_of(row).flags or row.get("disagg"):
            continue
        name = engine_name(row)
        args = PUBLISHED[name].launch(row, "b200-sxm-180gb")
        args.pop("activations", None)
        if str(args) in seen:
            continue
        seen.add(str(args))
        try:
            parse_engine_args(name, args)
        except InputError as error:
            reasons.add(error.message.split("`")[1])
    assert reasons <= {"attention_dp_config", "enable_attention_dp", "speculative_config", "speculative_algorithm"}
    assert len(seen) > 100
