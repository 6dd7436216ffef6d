"""Published facts of measured runs, and that the suite's reader applies them to those rows alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_models.engines.sglang_flags import FLAGS
from simulator.validation.engines import PUBLISHED, compiles_while_measured
from simulator.validation.evidence import kinds
from simulator.validation.launches import is_gap_analysis, is_inferencex, tensor_ranks
from simulator.validation.report import fidelity
from simulator.validation.runs import predict
from simulator.validation.sglang_launches import launch_flags, start_s
from simulator.validation.suite import plan_experiment

ROW: dict[str, Any] = {
    "id": "x/all",
    "source": "ai-dynamo/aiconfigurator silicon_sample.csv (inferencex-dump)",
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
}
OTHER = {"source": "somewhere else"}


def test_only_rows_of_that_source() -> None:
    assert is_inferencex(ROW)
    assert not is_inferencex(ROW | OTHER)
    assert not is_inferencex({"source": "SemiAnalysisAI/InferenceX experimental/token_position_decode_slo"})
    analysis = {"source": "ai-dynamo/aiconfigurator silicon_sample.csv (nvidia-gap-analysis)"}
    assert not is_inferencex(ROW | analysis)
    assert is_inferencex(
        ROW | analysis | {"source_path": "source_file=kimi-k2.5-gap-analysis.csv; silicon_concurrency=4"}
    )
    assert launch_flags(ROW | OTHER, "b200-sxm-180gb", 4) == {}
    assert launch_flags(ROW | {"model": "meta-llama/Llama-3.1-8B"}, "b200-sxm-180gb", 4) == {}


@pytest.mark.parametrize(
    ("tp", "ep", "ranks"), [(16, 4, 4), (64, 8, 8), (8, 8, 8), (4, 4, 4), (8, 1, 8), (72, 1, 72), (4, 2, 4)]
)
def test_ranks_multiplied_by_the_sample_are_divided_again(tp: int, ep: int, ranks: int) -> None:
    assert tensor_ranks(ROW, tp, ep) == ranks
    assert tensor_ranks(ROW | OTHER, tp, ep) == tp


@pytest.mark.parametrize("hardware", ["h200-sxm-141gb", "b200-sxm-180gb"])
@pytest.mark.parametrize("precision", ["fp4", "fp8"])
@pytest.mark.parametrize("ranks", [4, 8])
def test_every_launch_is_made_of_modelled_flags(hardware: str, precision: str, ranks: int) -> None:
    assert set(launch_flags(ROW | {"precision": precision}, hardware, ranks)) <= set(FLAGS.modelled)


def test_few_users_are_received_sooner() -> None:
    interval = [
        launch_flags(ROW | {"concurrency": users}, "b200-sxm-180gb", 8)["scheduler_recv_interval"]
        for users in (4, 8, 16, 128)
    ]
    assert interval == [10, 10, 30, 30]


def test_reader_applies_them() -> None:
    experiment = plan_experiment((ROW,), Path("."), {})
    pool = experiment.scenario["deployment"]
    assert (pool["tensor_parallel"], pool["expert_parallel"], pool["kv_cache"]) == (4, 4, "fp8")
    assert pool["engine_args"]["scheduler_recv_interval"] == 30
    assert "kv_cache_dtype" not in pool["engine_args"]
    lengths = experiment.workload.prompt_tokens
    assert len(lengths) == 160
    assert (lengths.min(), lengths.max()) == (pytest.approx(800, abs=15), pytest.approx(1000, abs=15))
    assert experiment.workload.output_tokens.max() <= 500


def test_other_closed_loops_have_the_stated_length() -> None:
    experiment = plan_experiment((ROW | OTHER | {"tp": 8.0, "ep": 1.0},), Path("."), {})
    assert np.unique(experiment.workload.prompt_tokens).tolist() == [1000]
    assert "scheduler_recv_interval" not in experiment.scenario["deployment"]["engine_args"]


def test_flags_of_the_row_win() -> None:
    experiment = plan_experiment((ROW | {"max_num_seqs": 7.0},), Path("."), {})
    assert experiment.scenario["deployment"]["engine_args"]["max_running_requests"] == 7


GAP: dict[str, Any] = ROW | {
    "source": "ai-dynamo/aiconfigurator silicon_sample.csv (nvidia-gap-analysis)",
    "hardware": "H200-SXM-141GB",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "precision": "fp8",
    "tp": 1.0,
    "ep": 1.0,
}


def test_generated_servers_mix_prefill_with_decode_and_do_not_overlap() -> None:
    flags = launch_flags(GAP, "h200-sxm-141gb", 1)
    assert flags == {"enable_mixed_chunk": True, "max_prefill_tokens": 2500, "disable_overlap_schedule": True}
    assert set(flags) <= set(FLAGS.modelled)
    restated = GAP | {"source_path": "source_file=kimi-k2.5-gap-analysis.csv"}
    assert not is_gap_analysis(restated)
    assert is_gap_analysis(GAP)
    assert not is_gap_analysis(ROW)


@pytest.mark.parametrize(
    ("change", "cold"),
    [
        ({"measured_on": "2025-11-10 00:00:00"}, True),
        ({"measured_on": "2025-12-31"}, True),
        ({"measured_on": "2026-01-27"}, False),
        ({"measured_on": "2026-03-25"}, False),
        ({}, False),
        ({"measured_on": "2025-11-10", "engine": "vllm"}, False),
        ({"measured_on": "2025-11-10"} | OTHER, False),
    ],
)
def test_runs_before_the_client_warmed_up_are_no_evidence(change: dict[str, Any], cold: bool) -> None:
    row = ROW | {"tp": 4.0} | change
    assert compiles_while_measured(row) is cold
    assert (row["id"] in kinds([row])) is not cold
    error = {"id": row["id"], "metric": "ttft_mean_ms", "measured": 2.0, "predicted": 1.0, "abs_pct_error": 50.0}
    page = fidelity(Path("."), [row], {"experiments": [error], "skipped": []}, [])
    assert ("| the server compiled kernels while it was measured (no warm-up) | 50.0 (1) |" in page) is cold


def test_first_request_of_each_user_waits_longer_where_that_was_seen() -> None:
    """The mean over ten requests a user moves by a tenth of the delay, time per output token by nothing."""
    row = ROW | {"tp": 4.0, "concurrency": 4.0, "output_tokens_mean": 20.0}
    experiment = plan_experiment((row,), Path("."), {})
    assert experiment.start_s == start_s(row) > 0
    assert start_s(GAP) == PUBLISHED["vllm"].start_s(row) == start_s(row | OTHER) == 0.0
    late = predict(experiment)[row["id"]]
    prompt = predict(replace(experiment, start_s=0.0))[row["id"]]
    for name in ("ttft_mean_ms", "e2e_mean_ms"):
        assert late[name][0] - prompt[name][0] == pytest.approx(experiment.start_s * 1e3 / 10)
    assert late["tpot_mean_ms"][0] == pytest.approx(prompt["tpot_mean_ms"][0])
