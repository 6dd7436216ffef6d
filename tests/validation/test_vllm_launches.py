"""What the launch scripts of published vLLM runs add to the rows of a suite."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_models.engines.vllm_flags import PLAIN_SAMPLING
from simulator.validation.evidence import kinds
from simulator.validation.launches import Launch
from simulator.validation.recipes import ranks_of, sides_of
from simulator.validation.runs import predict
from simulator.validation.spellings import Unplayable
from simulator.validation.suite import plan_experiment, pool_of, pools_of
from simulator.validation.vllm_launches import (
    DRAWN_TOKEN_S,
    client_facts,
    host_cores,
    instances,
    is_serving_sim_bench,
    launch_facts,
    launch_flags,
    unstated_version,
)


def row(model: str, hardware: str, **more: Any) -> dict[str, Any]:
    base = {"id": "x", "source": "somewhere", "engine": "vllm", "hardware": hardware, "model": model, "tp": 4.0}
    return base | {"concurrency": 16.0, "prompt_tokens_mean": 8192.0, "output_tokens_mean": 1024.0} | more


def launched(base: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return base | {"launch": Launch(confidence="exact", **fields)}


def test_variables_of_the_environment_are_flags_or_terms() -> None:
    oss = row("openai/gpt-oss-120b", "H100-SXM-80GB", precision="fp4")
    flags = {"max_num_seqs": 16}
    assert pool_of(launched(oss, flags=flags))["engine_args"] == {**flags, **PLAIN_SAMPLING, "max_model_len": -1}
    marlin = launched(oss, flags=flags, environment={"VLLM_MXFP4_USE_MARLIN": "1"})
    assert pool_of(marlin)["engine_args"]["moe_backend"] == "marlin"
    refused = launched(oss, environment={"VLLM_MOE_USE_DEEP_GEMM": "0", "VLLM_USE_FLASHINFER_MOE_FP8": "1"})
    assert launch_flags(refused, "h100-sxm-80gb") == {"moe_use_deep_gemm": False, "use_flashinfer_moe_fp8": True}
    wide = launched(oss, flags=flags, environment={"VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8": "1"})
    assert pool_of(wide)["activations"] == "fp8"
    assert launch_facts(launched(oss, environment={"VLLM_FLOAT32_MATMUL_PRECISION": "high"})) == {"fp32_router": "tf32"}
    assert launch_facts(oss) == {}


def test_a_checkpoint_of_modelopt_has_its_cache_in_fp8() -> None:
    base = row("moonshotai/Kimi-K2.5", "B200", precision="fp4")
    names = ("nvidia/Kimi-K2.5-NVFP4", "moonshotai/x")
    own = {name: launch_flags(launched(base, model=name), "b200-sxm-180gb") for name in names}
    assert own == {"nvidia/Kimi-K2.5-NVFP4": {"kv_cache_dtype": "fp8"}, "moonshotai/x": {}}
    said = launched(base, model="nvidia/Kimi-K2.5-NVFP4", flags={"kv_cache_dtype": "bfloat16"})
    assert launch_flags(said, "b200-sxm-180gb")["kv_cache_dtype"] == "bfloat16"


def test_other_sources_get_nothing() -> None:
    assert launch_flags(row("meta-llama/Llama-3.1-70B", "B200"), "b200-sxm-180gb") == {}
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


def test_drawn_tokens_are_tokenised_more_slowly() -> None:
    """Alone on the server a prompt of 8,192 tokens at most waits that long for the front end, and no other part changes."""
    base = row("openai/gpt-oss-120b", "H100-SXM-80GB", precision="fp4", concurrency=1.0, num_requests=4.0, output_tokens_mean=8.0)
    base = launched(base, client={"dataset": "random"})
    drawn = plan_experiment((base,), Path(), {})
    prose = replace(drawn, front={"chat": False})
    longer_ms = predict(drawn)["x"]["ttft_mean_ms"].value - predict(prose)["x"]["ttft_mean_ms"][0]
    assert client_facts(base) == {"chat": False, "tokenise_token_s": DRAWN_TOKEN_S}
    assert longer_ms == pytest.approx(3e-3 * float(drawn.workload.prompt_tokens.mean()), rel=0.05)
    assert client_facts(launched(base)) == {"chat": False}


def test_the_bench_of_llmservingsim_asks_for_greedy_decoding() -> None:
    bench = {"source": "casys-kaist/LLMServingSim", "model": "meta-llama/Llama-3.1-8B"}
    assert launch_flags(bench, "rtx-pro-6000-96gb") == {"generation_config": "vllm"}
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


def test_the_ranks_of_data_parallel_attention_are_those_of_the_side() -> None:
    changed = {"prefill_num_workers": 1, "decode_num_workers": 1, "decode_tp_size": 1, "decode_attention_dp_size": 8}
    pools = pools_of(row("moonshotai/Kimi-K2.5", "GB200", precision="fp4", disagg=json.dumps({**LAYOUT, **changed})))
    assert [(pool["tensor_parallel"], pool.get("data_parallel")) for pool in pools] == [(4, None), (1, 8)]


def test_what_is_not_said_of_such_a_run_is_not_guessed() -> None:
    with pytest.raises(Unplayable, match="not how many servers"):
        pools_of(row("moonshotai/Kimi-K2.5", "GB200", precision="fp4", disagg=json.dumps(LAYOUT)))


def test_the_recipe_of_split_servers_states_their_ranks() -> None:
    """What a layout calls sixteen tensor ranks are sixteen of data-parallel attention; one of other users says nothing."""
    layout = {"recipe": {"CONFIG_FILE": "recipes/vllm/kimi-k2.5/1k1k/disagg-gb200-1p1d-dep4-dep16.yaml"}}
    stated = {"prefill_num_workers": 1, "decode_num_workers": 1, "decode_tp_size": 16, "decode_moe_ep_size": 16}
    base = row("moonshotai/Kimi-K2.5", "GB200", precision="fp4", concurrency=512.0, disagg=json.dumps({**LAYOUT, **stated}))
    pools = pools_of({**base, "launch": Launch(layout=layout)})
    told = [(pool["tensor_parallel"], pool["data_parallel"], pool["expert_parallel"]) for pool in pools]
    assert told == [(1, 4, 4), (1, 16, 16)]
    path = "recipes/trtllm/h200/1k1k/stp/c1_ctx1_gen9_tep8_batch1_eplb0_mtp0.yaml"
    known = {"recipe": {"CONFIG_FILE": path}, "decode": {"num-worker": 9}}
    assert ranks_of(known, 9, "fp8", "decode") == {"tp": 8, "dp": 1, "ep": 8}
    assert ranks_of(known, 36, "fp8", "decode") == {}


def test_the_recipe_of_split_servers_states_their_flags() -> None:
    """A recipe that lists other users and has no places for a run's is not its recipe."""
    path = "recipes/trtllm/h200/1k1k/stp/c1_ctx1_gen9_tep8_batch1_eplb0_mtp0.yaml"
    layout = {"recipe": {"CONFIG_FILE": path}, "decode": {"num-worker": 9}}
    assert [sides_of(layout, users)["decode"]["max_batch_size"] for users in (9, 11)] == [1, 1]
    assert sides_of(layout, 36) == {}
    stated = {"recipe": {"DECODE_MAX_BATCH_SIZE": "32", "PREFILL_MAX_NUM_TOKENS": "8448"}}
    assert sides_of(stated, 6) == {"prefill": {"max_num_tokens": 8448}, "decode": {"max_batch_size": 32}}


@pytest.mark.parametrize(
    ("mode", "prefill", "decode", "experts"),
    [("1k1k-low-latency", (4, 1, 1), (4, 1, 1), "flashinfer_trtllm"), ("8k1k-max-tpt", (4, 1, 1), (1, 24, 24), None)],
)
def test_the_script_of_split_servers_states_their_ranks(
    mode: str, prefill: tuple[int, ...], decode: tuple[int, ...], experts: str | None
) -> None:
    """Its nodes are shared among the servers of a side."""
    own = {"SCRIPT_MODE": mode, "PREFILL_NODES": "3", "DECODE_NODES": "6"}
    sides = {"prefill": {"num-worker": 3}, "decode": {"num-worker": 6 if decode[0] == 4 else 1}}
    layout = {"recipe": own, **sides}
    found = [tuple(ranks_of(layout, 8, "fp4", side).values()) for side in ("prefill", "decode")]
    assert found == [prefill, decode]
    if experts:
        assert sides_of(layout, 8, "fp4")["decode"]["moe_runner_backend"] == experts
    assert ranks_of(layout, 8, "int4", "decode") == {}
