"""Decode context parallelism of vLLM and SGLang: tokens of the cache, blocks, what a step pays and saves, what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.cost import context_parallel
from engine_models.cost.attention import DecodeAttention, PrefillAttention
from engine_models.cost.terms import Formats, HostOverhead, Parallelism, Shard, Terms
from engine_models.model.formats import format_named
from engine_models.model.hf_config import load_architecture
from hardware_profiles.errors import InputError
from hardware_profiles.kernel_model import load_kernel_model
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare
from simulator.run import simulate

FLAG = "decode_context_parallel_size"


def scenario(model: str, ranks: int, engine: str = "vllm", workload: dict[str, Any] | None = None, **pool: Any) -> Any:
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": {"kind": "constant", "value": 64}, "requests": 4}
    deployment = {"engine": engine, "hardware": "h200-sxm-141gb", "tensor_parallel": 8, "engine_args": {FLAG: ranks}, **pool}
    return load_scenario(
        {
            "model": model,
            "deployment": deployment,
            "workload": {**load, "output_tokens": {"kind": "constant", "value": 4}, **(workload or {})},
        }
    )


def prepared(model: str, ranks: int, **more: Any) -> Prepared:
    return prepare(scenario(model, ranks, **more))


def shard(model: str, ranks: int) -> Shard:
    bf16, host = format_named("bf16"), HostOverhead(0.0, 0.0)
    formats = Formats(bf16, bf16, bf16)
    terms = Terms(host, graph_sizes=(1, 2, 4, 8), expands_latents=True)
    ops = load_kernel_model("h200-sxm-141gb", "vllm")
    return Shard(load_architecture(model), ops, formats, Parallelism(8, 1, 1, 1, ranks), terms)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_the_cache_holds_as_many_times_the_tokens_in_the_same_bytes(ranks: int) -> None:
    plain, shared = prepared("DeepSeek-R1", 1), prepared("DeepSeek-R1", ranks)
    assert (shared.plan.memory.blocks, shared.plan.memory.kv_bytes) == (plain.plan.memory.blocks, plain.plan.memory.kv_bytes)
    assert shared.plan.limits.kv_tokens == ranks * plain.plan.limits.kv_tokens
    assert shared.plan.memory.kv_bytes_per_token == plain.plan.memory.kv_bytes_per_token / ranks


def test_start_up_lines_of_a_pair_of_servers() -> None:
    """Kimi-K2-Thinking on eight H200, a nightly of November 2025 (vllm-project/recipes): 715,072 and 5,721,088 tokens."""
    for ranks, told in ((1, 715_072), (8, 5_721_088)):
        plan = prepared("moonshotai/Kimi-K2-Thinking", ranks, engine="vllm@0.11.1").plan
        assert plan.limits.kv_tokens == pytest.approx(told, rel=0.03)


def test_a_prefix_is_found_in_blocks_of_all_ranks() -> None:
    """A block has 64 tokens for each of two ranks (latents on Hopper): of a shared prefix of 200 128 are found, 192 without."""
    load = {"shared_prefix": {"groups": 1, "tokens": 200}, "arrivals": {"kind": "constant", "rate": 0.5}}
    found = [
        simulate(scenario("DeepSeek-R1", ranks, workload={**load, "prompt_tokens": {"kind": "constant", "value": 264}}))
        for ranks in (1, 2)
    ]
    assert [run.requests["cached_tokens"].max() for run in found] == [192, 128]


@pytest.mark.parametrize("model", ["DeepSeek-R1", "Qwen3-235B-A22B"])
def test_decoding_reads_a_part_of_the_context_and_pays_the_exchange(model: str) -> None:
    """Qwen3-235B has four KV heads: two of eight tensor ranks hold the same ones."""
    ranks = 8 if model == "DeepSeek-R1" else 2
    plain, shared = shard(model, 1), shard(model, ranks)
    block = plain.stage.attention[0]
    rows = np.array([8.0])
    exchange_s = float(context_parallel.exchange_s(shared, block, rows)[0])
    alone, parted = DecodeAttention(plain, 64, 131072), DecodeAttention(shared, 64, 131072)
    layers, lengths = plain.stage.layers, (16, 131072)
    short, long = (alone._full.of(8).at(8.0 * tokens) / layers for tokens in lengths)
    short_parted, long_parted = (parted._full.of(8).at(8.0 * tokens) / layers for tokens in lengths)
    assert short_parted == pytest.approx(short + exchange_s, rel=0.25)
    assert long_parted < 0.75 * long
    heads = block.heads // 8 * ranks * 8.0
    wide, out = (576, 512) if model == "DeepSeek-R1" else (128, 128)
    by_hand = (
        shared.ops.all_gather_s(ranks, 2 * wide * heads)
        + shared.ops.all_gather_s(ranks, 4 * ranks * heads)
        + shared.ops.reduce_scatter_s(ranks, 2 * out * heads)
        + shared.ops.elementwise_s(4 * out * heads)
    )
    assert exchange_s == pytest.approx(float(by_hand))


def test_chunks_gather_the_latents_before_them() -> None:
    plain, shared = (PrefillAttention(shard("DeepSeek-R1", ranks), 8192, 131072) for ranks in (1, 8))
    assert shared._table.at(8192, 0) == plain._table.at(8192, 0)
    latents = 61 * 65536 * 576 * 2 / 450e9  # over NVLink, a direction at its nominal rate
    assert latents < shared._table.at(8192, 65536) - plain._table.at(8192, 65536) < 6 * latents


def test_sglang_shares_pages_of_its_tree() -> None:
    """Of a shared prefix of 200 tokens 192 are found in pages of 64, 128 in pages of two ranks; no prefill is captured."""
    flags = {"page_size": 64, "attention_backend": "flashinfer", "disable_piecewise_cuda_graph": True}
    load = {"shared_prefix": {"groups": 1, "tokens": 200}, "arrivals": {"kind": "constant", "rate": 0.5}}
    workload = {**load, "prompt_tokens": {"kind": "constant", "value": 264}}
    scenarios = [
        scenario("DeepSeek-R1", 1, "sglang", workload, engine_args={**flags, "dcp_size": ranks}) for ranks in (1, 2)
    ]
    assert [simulate(each).requests["cached_tokens"].max() for each in scenarios] == [192, 128]
    plain, shared = (prepare(each) for each in scenarios)
    assert shared.plan.limits.kv_tokens == pytest.approx(2 * plain.plan.limits.kv_tokens, rel=1e-3)
    assert (plain.plan.costs.parallel.context, shared.plan.costs.parallel.context) == (1, 2)
    captured = prepare(scenario("DeepSeek-R1", 1, "sglang", engine_args={"page_size": 64, "attention_backend": "flashinfer"}))
    without = prepare(scenario("DeepSeek-R1", 1, "sglang", engine_args={"page_size": 64, "dcp_size": 2}))
    assert (captured.plan.compiles, without.plan.compiles) == (True, False)
    with pytest.raises(InputError, match="modelled for latent attention"):
        prepare(scenario("Qwen3-235B-A22B", 1, "sglang", engine_args={"dcp_size": 2}))
    with pytest.raises(InputError, match=r"from 0\.5\.17 on"):
        prepare(scenario("DeepSeek-R1", 1, "sglang@0.5.10", engine_args={"dcp_size": 2}))


REFUSED: list[tuple[str, int, dict[str, Any], str]] = [
    ("DeepSeek-R1", 3, {}, "no multiple"),
    ("Llama-3.1-70B-Instruct", 2, {}, "1 tensor-parallel ranks hold the same"),
    ("Qwen3-235B-A22B", 4, {}, "2 tensor-parallel ranks hold the same"),
    ("gpt-oss-120b", 2, {}, "beside windows"),
    ("DeepSeek-V3.2", 2, {}, "beside windows, recurrent or sparse"),
    ("DeepSeek-R1", 8, {"engine": "vllm@0.9.2"}, "from 0.10.2 on"),
    ("DeepSeek-R1", 8, {"speculative": {"method": "mtp", "num_speculative_tokens": 1, "acceptance": 0.8}}, "beside drafts"),
    ("DeepSeek-R1", 8, {"offload": {"kv_offloading_size": 100}}, "beside KV tiers"),
]


@pytest.mark.parametrize(("model", "ranks", "pool", "words"), REFUSED)
def test_what_the_engine_or_the_model_cannot_is_refused(model: str, ranks: int, pool: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepared(model, ranks, **pool)
