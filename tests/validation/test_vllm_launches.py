"""What the launch scripts of published vLLM runs add to the rows of a suite."""

from __future__ import annotations

from typing import Any

from simulator.validation.suite import pool_of
from simulator.validation.vllm_launches import vllm_flags, vllm_instances, vllm_version

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
    assert vllm_flags(row("meta-llama/Llama-3.1-70B", "B200", source="someone else"), "b200-sxm-180gb") == {}
    assert vllm_version(row("meta-llama/Llama-3.1-70B", "B200")) == ""


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
    assert vllm_instances(artifact) == pool["replicas"] == 2
    assert pool["engine"] == "vllm@0.13.0"
    assert pool["engine_args"]["enforce_eager"] is True
