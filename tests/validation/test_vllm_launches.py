"""What the launch scripts of published vLLM runs add to the rows of a suite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulator.validation.evidence import kinds
from simulator.validation.runs import predict
from simulator.validation.spellings import Unplayable
from simulator.validation.suite import plan_experiment, pool_of, pools_of
from simulator.validation.vllm_launches import (
    DRAWN_TOKEN_S,
    REPEATED_PROMPTS,
    client_facts,
    host_cores,
    instances,
    is_serving_sim_bench,
    launch_facts,
    launch_flags,
    unstated_version,
)

INFERENCEX = "ai-dynamo/aiconfigurator silicon_sample.csv (inferencex-dump)"


def row(model: str, hardware: str, **more: Any) -> dict[str, Any]:
    base = {"id": "x", "source": INFERENCEX, "engine": "vllm", "hardware": hardware, "model": model, "tp": 4.0}
    return base | {"concurrency": 16.0, "prompt_tokens_mean": 8192.0, "output_tokens_mean": 1024.0} | more


def test_the_cache_is_fp8_where_the_script_says_so() -> None:
    for hardware, kv in (("B200-180GB", "fp8"), ("H200-SXM-141GB", "fp8"), ("H100-SXM-80GB", None)):
        assert pool_of(row("meta-llama/Llama-3.1-70B", hardware, precision="fp8")).get("kv_cache") == kv


def test_what_the_row_states_goes_before_the_script() -> None:
    pool = pool_of(row("meta-llama/Llama-3.1-70B", "B200-180GB", precision="fp8", kv_dtype="bf16", max_num_seqs=64.0))
    assert pool["kv_cache"] == "bf16"
    assert pool["engine_args"]["max_num_seqs"] == 64


def test_the_budget_of_minimax_follows_the_prompt() -> None:
    pool = pool_of(row("MiniMaxAI/MiniMax-M2.5", "B200-180GB", precision="fp8", engine_version="0.19.0"))
    assert pool["engine_args"]["max_num_batched_tokens"] == 16384
    assert "expert_parallel" not in pool
    older = pool_of(row("MiniMaxAI/MiniMax-M2.5", "B200-180GB", precision="fp8", engine_version="0.17.0"))
    assert older["expert_parallel"] == 4


def test_gpt_oss_ran_on_marlin_on_hopper_only() -> None:
    scripts = {"H100-SXM-80GB": "marlin", "H200-SXM-141GB": "marlin", "B200-180GB": None}
    for hardware, backend in scripts.items():
        pool = pool_of(row("openai/gpt-oss-120b", hardware, precision="fp4"))
        assert pool["engine_args"].get("moe_backend") == backend


def test_other_sources_get_nothing() -> None:
    assert launch_flags(row("meta-llama/Llama-3.1-70B", "B200", source="someone else"), "b200-sxm-180gb", 1) == {}
    assert unstated_version(row("meta-llama/Llama-3.1-70B", "B200")) == ""


def test_the_artifact_ran_without_graphs_and_counts_instances_as_ranks() -> None:
    artifact = row(
        "meta-llama/Llama-3.1-70B",
        "H100-80GB",
        source="casys-kaist/LLMServingSim (2.0 artifact)",
        mode="agg (2 instances)",
        dp=2.0,
        precision="fp16/bf16",
    )
    pool = pool_of(artifact)
    assert instances(artifact) == pool["replicas"] == 2
    assert pool["engine"] == "vllm@0.13.0"
    assert pool["engine_args"]["enforce_eager"] is True


STARVED = {"source": "SemiAnalysisAI/InferenceX experimental/token_position_decode_slo", "tp": 8.0, "ep": 8.0}


def test_ranks_that_share_a_core_launch_in_turn() -> None:
    """Prefill steps of one core take the launches of eight ranks, whatever they compute; graphs of decode steps do not."""
    short = {"prompt_tokens_mean": 1024.0, "output_tokens_mean": 128.0, "concurrency": 1.0, "num_requests": 8.0}
    base = row("MiniMaxAI/MiniMax-M2.5", "H200-141GB", precision="fp8", engine_version="nightly 2026-02", **short)
    free, starved = (
        predict(plan_experiment((base | source | {"tp": 8.0, "ep": 8.0},), Path(), {}))["x"]
        for source in ({"source": "elsewhere"}, STARVED)
    )
    assert host_cores(base | STARVED) == 1
    assert host_cores(base) is None
    assert starved["ttft_mean_ms"][0] - free["ttft_mean_ms"][0] > 200
    assert starved["tpot_mean_ms"][0] == pytest.approx(free["tpot_mean_ms"][0], rel=0.02)


def test_a_starved_host_is_no_evidence() -> None:
    base = row("MiniMaxAI/MiniMax-M2.5", "H200-141GB", precision="fp8")
    assert "x" in kinds([base])
    assert kinds([base | STARVED]) == {}


def test_experts_that_blocks_do_not_divide_were_spread_over_the_ranks() -> None:
    model = "MiniMaxAI/MiniMax-M2.5"
    assert pool_of(row(model, "H200-141GB", precision="fp8", tp=8.0, ep=1.0))["expert_parallel"] == 8
    assert "expert_parallel" not in pool_of(row(model, "H200-141GB", precision="fp8", tp=4.0, ep=1.0))


@pytest.mark.parametrize(
    ("stated", "path", "version"),
    [
        ("nightly 2026-02", "", "0.15.1"),
        ("nightly-5b8c30d62b754b57", "source_file=a.csv; measured=2026-04-03; wip=True", "0.19.1"),
        ("nightly", "", ""),
        ("0.12.0", "measured=2026-04-03", ""),
        ("nightly 2027-01", "", "0.33.0"),
    ],
)
def test_a_nightly_build_is_the_version_of_its_month(stated: str, path: str, version: str) -> None:
    assert unstated_version(row("meta-llama/Llama-3.1-70B", "H200", engine_version=stated, source_path=path)) == version


def test_the_router_of_minimax_ran_in_tf32_on_b200_from_a_date() -> None:
    model = "MiniMaxAI/MiniMax-M2.5"
    late = row(model, "B200-180GB", source_path="db-dump; measured=2026-04-22T00:00:00.000Z")
    assert launch_facts(late, "b200-sxm-180gb") == {"fp32_router": "tf32"}
    assert launch_facts(late, "h200-sxm-141gb") == {}
    early = late | {"source_path": "measured=2026-04-08"}
    assert launch_facts(early, "b200-sxm-180gb") == {}


def test_scripts_that_capture_more_say_so() -> None:
    captured = "max_cudagraph_capture_size"
    assert launch_flags(row("openai/gpt-oss-120b", "H200"), "h200-sxm-141gb", 1)[captured] == 2048
    minimax = row("MiniMaxAI/MiniMax-M2.5", "B200", engine_version="0.19.0")
    assert launch_flags(minimax, "b200-sxm-180gb", 1)[captured] == 2048
    assert captured not in launch_flags(minimax | {"engine_version": "nightly-5b8c"}, "b200-sxm-180gb", 1)
    assert captured not in launch_flags(row("meta-llama/Llama-3.1-70B", "B200"), "b200-sxm-180gb", 1)


def test_rows_of_kimi_are_limited_to_the_users() -> None:
    flags = launch_flags(row("moonshotai/Kimi-K2.5", "B200", precision="fp4"), "b200-sxm-180gb", 1)
    assert (flags["max_num_seqs"], flags["gpu_memory_utilization"]) == (16, 0.9)
    assert "max_num_seqs" not in launch_flags(row("moonshotai/Kimi-K2.5", "B200", precision="int4"), "b200-sxm-180gb", 1)


def test_drawn_tokens_are_tokenised_more_slowly() -> None:
    """Alone on the server a prompt of 8,192 tokens at most waits that long for the front end, and no other part changes."""
    base = row("openai/gpt-oss-120b", "H100-SXM-80GB", precision="fp4", concurrency=1.0, num_requests=4.0, output_tokens_mean=8.0)
    drawn = plan_experiment((base,), Path(), {})
    prose = replace(drawn, front={})
    longer_ms = predict(drawn)["x"]["ttft_mean_ms"][0] - predict(prose)["x"]["ttft_mean_ms"][0]
    assert client_facts(base) == {"tokenise_token_s": DRAWN_TOKEN_S}
    assert longer_ms == pytest.approx(3e-3 * float(drawn.workload.prompt_tokens.mean()), rel=0.05)
    assert client_facts(base | {"source": "elsewhere"}) == {}


def test_nvidias_own_runs_repeat_their_prompts() -> None:
    own = row(
        "nvidia/Llama-3.1-8B-Instruct-FP8",
        "H200-SXM-141GB",
        source="ai-dynamo/aiconfigurator silicon_sample.csv (nvidia-gap-analysis)",
        precision="fp8",
        prompt_tokens_mean=2000.0,
        output_tokens_mean=100.0,
        concurrency=64.0,
        tp=1.0,
    )
    content = plan_experiment((own,), Path(), {}).workload.content
    assert content is not None
    assert len(set(content.segment.tolist())) <= REPEATED_PROMPTS
    for other in (own | {"engine": "sglang"}, own | {"source": INFERENCEX}):
        assert plan_experiment((other,), Path(), {}).workload.content is None


def test_the_bench_of_llmservingsim_asks_for_greedy_decoding() -> None:
    bench = {"source": "casys-kaist/LLMServingSim", "model": "meta-llama/Llama-3.1-8B"}
    assert launch_flags(bench, "rtx-pro-6000-96gb", 1) == {"generation_config": "vllm"}
    assert is_serving_sim_bench(bench)
    assert not is_serving_sim_bench(bench | {"source": "casys-kaist/LLMServingSim (2.0 artifact)"})
    assert not is_serving_sim_bench({"source": "inference-sim/training"})


LAYOUT = {
    f"{side}_{name}": value
    for side, ranks in (("prefill", 4), ("decode", 8))
    for name, value in {"tp_size": ranks, "pp_size": 1, "attention_dp_size": 1, "moe_ep_size": ranks}.items()
}


def test_a_run_with_prefill_and_decode_apart_has_a_pool_of_each() -> None:
    workers = {"prefill_num_workers": 1, "decode_num_workers": 4}
    pools = pools_of(row("moonshotai/Kimi-K2.5", "GB200", precision="fp4", disagg=json.dumps({**LAYOUT, **workers})))
    told = [(pool["role"], pool["replicas"], pool["tensor_parallel"], pool["expert_parallel"]) for pool in pools]
    assert told == [("prefill", 1, 4, 4), ("decode", 4, 8, 8)]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({}, "not how many servers"),
        ({"prefill_num_workers": 1, "decode_num_workers": 1, "decode_attention_dp_size": 8}, "data-parallel attention"),
    ],
)
def test_what_is_not_said_of_such_a_run_is_not_guessed(changed: dict[str, int], words: str) -> None:
    with pytest.raises(Unplayable, match=words):
        pools_of(row("moonshotai/Kimi-K2.5", "GB200", precision="fp4", disagg=json.dumps({**LAYOUT, **changed})))
