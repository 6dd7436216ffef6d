"""What vLLM's profiling run leaves for the KV cache, against start-up lines that tell the parts."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.cost.terms import Formats
from engine_models.declaration import MemoryBudget, PoolRequest
from engine_models.engines.vllm_profile import kept_bytes
from engine_models.engines.vllm_runner import second_runner
from engine_models.model.architecture import architecture_from_config, load_architecture, rotary_table_bytes
from engine_models.model.formats import format_named
from simulator.config.load import load_scenario
from simulator.prepare import prepare

GIB = 2**30


def started(version: str, model: str, hardware: str = "h100-sxm-80gb", tp: int = 1, **flags: object) -> tuple[MemoryBudget, int]:
    """The memory of a rank, and the tokens that the start-up line tells."""
    flags = {"max_model_len": 8192, **flags}
    pool = {"engine": f"vllm@{version}", "hardware": hardware, "tensor_parallel": tp, "engine_args": flags}
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    plan = prepare(load_scenario({"model": model, "deployment": pool, "workload": load})).plan
    return plan.memory, plan.limits.told_tokens


@pytest.mark.parametrize(
    ("version", "model", "tp", "weights", "activation", "tokens"),
    [
        ("0.19.0", "meta-llama/Llama-3.1-8B-Instruct", 1, 14.99, 1.89, 476_016),
        ("0.19.0", "meta-llama/Llama-3.1-8B-Instruct", 2, 7.51, 1.89, 1_044_688),
        ("0.19.0", "google/gemma-2-27b-it", 1, 50.72, 3.66, 58_672),
        ("0.19.0", "Qwen/Qwen3-30B-A3B", 1, 56.88, 2.68, 168_288),
        ("0.19.0", "mistralai/Mixtral-8x7B-Instruct-v0.1", 2, 43.51, 1.21, 465_936),
        ("0.19.0", "openai/gpt-oss-20b", 2, 7.01, 2.87, 2_764_768),
        ("0.19.0", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", 1, 44.76, 2.03, 184_752),
        ("0.19.0", "microsoft/phi-4", 1, 27.39, 1.52, 241_568),
        ("0.17.0", "Qwen/Qwen3-14B", 1, 27.52, 2.23, 297_152),
        ("0.16.0", "Qwen/Qwen3-14B", 1, 27.52, 5.64, 274_848),
        ("0.15.0", "Qwen/Qwen3-14B", 1, 27.52, 5.64, 274_848),
    ],
)
def test_parts_are_those_of_start_up_lines(
    version: str, model: str, tp: int, weights: float, activation: float, tokens: int
) -> None:
    """H100 at 0.95 (llm-d-planner, pull request 205, 2026-04): weights [GiB], PyTorch's peak [GiB] and tokens."""
    memory, told = started(version, model, tp=tp, gpu_memory_utilization=0.95)
    assert memory.bytes_of("weight") / GIB == pytest.approx(weights, abs=0.25)
    assert memory.bytes_of("activation") / GIB == pytest.approx(activation, abs=0.1)
    assert told == pytest.approx(tokens, rel=0.005)


@pytest.mark.parametrize(
    ("version", "model", "hardware", "tp", "flags", "tokens"),
    [
        ("0.6.6", "Qwen/Qwen2.5-0.5B-Instruct", "t4-16gb", 1, {"max_model_len": 32768}, 58_059 * 16),
        ("0.7.3", "Qwen/Qwen2.5-1.5B-Instruct", "t4-16gb", 1, {"max_model_len": 32768, "gpu_memory_utilization": 0.5}, 88_304),
        ("0.7.3", "Qwen/Qwen2.5-1.5B-Instruct", "a10g-24gb", 1, {"max_model_len": 4096}, 36_332 * 16),
        ("0.7.2", "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B", "rtx-4090-24gb", 2, {"gpu_memory_utilization": 0.98}, 81_536),
    ],
)
def test_the_first_engine_starts_as_its_lines_tell(
    version: str, model: str, hardware: str, tp: int, flags: dict[str, object], tokens: int
) -> None:
    """Lines of 2025 in public repositories, the last in vLLM's issue 13061 (whose longer context asks for no other memory)."""
    assert started(version, model, hardware, tp, **flags)[1] == pytest.approx(tokens, rel=0.02)


def test_the_context_counts_where_all_that_is_used_does() -> None:
    """vLLM's issue 10517: 3.81 GiB under 0.6.4 where a step takes 20,000 tokens; 0.6.3 and 0.6.5 leave out what CUDA takes."""
    flags = {"max_model_len": 20000, "enable_chunked_prefill": False}
    memory, told = started("0.6.4", "meta-llama/Llama-3.1-8B", "rtx-3090-24gb", **flags)
    assert memory.kv_bytes / GIB == pytest.approx(3.81, abs=0.1)
    assert told == pytest.approx(31_232, rel=0.02)
    for version in ("0.6.3", "0.6.5"):
        without, _ = started(version, "meta-llama/Llama-3.1-8B", "rtx-3090-24gb", **flags)
        assert without.kv_bytes - memory.kv_bytes == pytest.approx(82 * 3.5 * 2**20, abs=1e6)


def test_the_second_engines_alpha_does_not_sample_in_its_profiling_run() -> None:
    """vLLM's pull request 12569: 22,096 tokens on a first start, which leaves up to 7 % less; logits of 8,192 tokens, from 0.7.3
    of 1,024 rows, from 0.8 with what sorts them."""
    flags = {"max_model_len": 2048, "gpu_memory_utilization": 0.98, "use_v1": True, "use_flashinfer_sampler": False}
    pool = {"engine": "vllm@0.7.0", "hardware": "h100-sxm-80gb", "weights": "int8", "engine_args": flags}
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    scenario = load_scenario({"model": "meta-llama/Llama-3.1-70B", "deployment": pool, "workload": load})
    tokens = prepare(scenario).plan.limits.told_tokens
    assert 0.93 * tokens < 22_096 < tokens
    peaks = [
        started(version, "Qwen/Qwen2.5-0.5B-Instruct", use_v1=True, use_flashinfer_sampler=False)[0].bytes_of("activation")
        for version in ("0.7.0", "0.7.3", "0.8.0")
    ]
    logits = 2 * 151_936
    assert peaks[0] - 8192 * logits == pytest.approx(0, abs=0.1 * GIB)
    assert peaks[1] < 0.6 * GIB
    assert peaks[2] == pytest.approx(38 * 1024 * 151_936, abs=0.1 * GIB)


def test_default_limits_of_the_second_engine_go_by_name_before_0_8_5() -> None:
    def limits(version: str, hardware: str) -> tuple[int, int]:
        pool = {"engine": f"vllm@{version}", "hardware": hardware}
        load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
        model = "Qwen/Qwen2.5-7B-Instruct"
        found = prepare(load_scenario({"model": model, "deployment": pool, "workload": load})).plan.limits
        return found.step_tokens, found.rows

    assert {limits(version, "h100-sxm-80gb") for version in ("0.8.3", "0.8.5", "0.9.2")} == {(8192, 1024)}
    assert limits("0.8.3", "a100-sxm-80gb") == (2048, 1024)
    assert limits("0.8.4", "a100-sxm-80gb") == (2048, 256)
    assert limits("0.8.5", "a100-sxm-80gb") == (8192, 1024)
    assert limits("0.9.2", "a100-sxm-80gb") == (2048, 256)


def test_ranks_of_the_second_engine_are_set_up_after_its_first_look_at_memory_before_0_11() -> None:
    """vLLM's issue 21348: 8.11 GiB and 178,880 tokens under 0.9.2 (by its date), on four H100, without FlashInfer (assumed)."""
    pool = {"engine": "vllm@0.9.2", "hardware": "h100-sxm-80gb", "tensor_parallel": 4, "weights": "fp8_block"}
    pool["engine_args"] = {"use_flashinfer_sampler": False}
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    plan = prepare(load_scenario({"model": "Qwen/Qwen3-235B-A22B", "deployment": pool, "workload": load})).plan
    assert plan.limits.told_tokens == pytest.approx(178_880, rel=0.02)


def test_other_vendors_have_no_flashinfer() -> None:
    """A start of Gemma 3 on MI300X (2025-09, a public repository): 1,024 rows are sorted, where an image on H200 samples them."""
    flags = {"max_model_len": 4096, "limit_mm_per_prompt": {"image": 2}}
    model = "google/gemma-3-27b-it"
    assert started("0.11.0", model, "mi300x-192gb", **flags)[1] == pytest.approx(205_696, rel=0.02)
    peaks = [started("0.11.0", model, device, **flags)[0].bytes_of("activation") for device in ("mi300x-192gb", "h200-sxm-141gb")]
    assert peaks[0] - peaks[1] > 5 * GIB


def test_tables_of_positions_are_weights() -> None:
    """A row a position that the config names, times the factor of linear scaling, four times with three coordinates."""
    shape = {"model_type": "qwen2", "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 2, "vocab_size": 1000}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 4096}

    def table(**keys: object) -> int:
        return rotary_table_bytes(architecture_from_config({**shape, **heads, **keys}, "tiny"))

    assert table() == 2 * 4096 * 64
    assert table(rope_scaling={"rope_type": "llama3", "factor": 8.0}) == table()
    assert table(rope_scaling={"rope_type": "linear", "factor": 8.0}) == 8 * table()
    assert table(rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=1e4) == 9 * table()
    assert table(rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}) == 2 * table()
    assert table(rope_scaling={"type": "mrope", "mrope_section": [8, 12, 12]}) == 4 * table()
    assert table(partial_rotary_factor=0.5) == table() // 2
    assert rotary_table_bytes(load_architecture("meta-llama/Llama-4-Scout-17B-16E-Instruct")) == 10_485_760 * 128 * 2
    assert rotary_table_bytes(load_architecture("openai-community/gpt2")) == 0  # learned positions


def test_collectives_count_by_version_and_link() -> None:
    """What ranks set up counts until 0.10, where the first look at memory comes before; without links there is little of it."""

    def other(version: str, hardware: str = "h100-sxm-80gb", tp: int = 2) -> float:
        return started(version, "Qwen/Qwen3-8B", hardware, tp)[0].bytes_of("other") / GIB

    assert other("0.11.0") == pytest.approx(1.38, abs=0.01)
    assert other("0.10.2") == other("0.9.1") == pytest.approx(2.58, abs=0.01)
    assert other("0.7.0") < 1
    assert other("0.10.2", "l40s-48gb") == other("0.11.0", "l40s-48gb")
    assert other("0.12.0") == pytest.approx(0.54, abs=0.01)
    assert other("0.19.0") == pytest.approx(2.1, abs=0.03)
    assert other("0.19.0", tp=1) == 0.25
    assert other("0.11.0", "l40s-48gb") < 0.5


def test_graphs_count_from_0_20_and_not_those_of_the_second_runner_before_it_reserved_them() -> None:
    def graphs(version: str, model: str = "Qwen/Qwen3-8B", **flags: object) -> int:
        return started(version, model, **flags)[0].bytes_of("graph")

    assert graphs("0.19.1") == 0
    assert graphs("0.20.0") == 51 * 36 * 500_000
    assert graphs("0.20.0", enforce_eager=True) == 0
    assert graphs("0.22.0") == 0 < graphs("0.22.0", "meta-llama/Llama-3.1-8B-Instruct")
    assert graphs("0.26.0") == 0 < graphs("0.26.0", "Qwen/Qwen3-30B-A3B")
    assert graphs("0.29.0") == graphs("0.20.0")


def test_the_second_runner_serves_models_by_name_then_dense_ones_then_all() -> None:
    def second(version: tuple[int, ...], model: str, weights: str = "bf16", **pool: Any) -> bool:
        formats = Formats(format_named(weights), format_named("bf16"), format_named("bf16"))
        request = PoolRequest(load_architecture(model), formats, "h100-sxm-80gb", 80 << 30, **pool)
        return second_runner(request, version)

    llama, qwen, gemma, experts = "llama-3.1-8b", "Qwen/Qwen3-8B", "google/gemma-3-27b-it", "Qwen/Qwen3-30B-A3B"
    since = {
        model: next(minor for minor in range(20, 34) if second((0, minor, 0), model)) for model in (llama, qwen, gemma, experts)
    }
    assert since == {llama: 23, qwen: 22, gemma: 25, experts: 29}
    assert second((0, 24, 0), "deepseek-ai/DeepSeek-V2-Lite")
    assert not second((0, 23, 0), llama, "fp8")
    assert second((0, 24, 0), llama, "fp8")
    assert not second((0, 28, 0), "Qwen/Qwen3.5-9B")
    assert not second((0, 33, 0), llama, device_kind="cpu")


def test_sampling_is_shared_by_ranks_from_0_29_and_sorts_few_rows() -> None:
    def activation(version: str, tp: int = 1, rows: int = 1024) -> int:
        flags = {"max_num_seqs": rows, "max_num_batched_tokens": 1024}
        return started(version, "Qwen/Qwen3-8B", tp=tp, **flags)[0].bytes_of("activation")

    vocab = 151_936
    # before 0.33 the second runner profiles without sampling parameters, before 0.28 with a copy in float32; states for penalties
    # count from 0.27 on, and are each rank's
    assert activation("0.33.0") - activation("0.33.0", 2) == 512 * vocab * 6
    assert activation("0.33.0") - activation("0.28.0") == 1024 * vocab * 4
    assert activation("0.33.0") == activation("0.27.0") == activation("0.26.0") + int(1024 * vocab * 4.125)
    assert activation("0.32.0") == activation("0.28.0") == activation("0.28.0", 2)
    assert activation("0.19.0", rows=9) - activation("0.19.0", rows=8) == 14 * vocab
    assert activation("0.19.0", rows=8) > activation("0.19.0", rows=7) + 132 * 4 * vocab - 7 * 38 * vocab


def test_experts_keep_a_place_that_is_as_wide_as_they_write() -> None:
    arch = load_architecture("Qwen/Qwen3-30B-A3B")
    assert kept_bytes(arch, 1, 1) == 2 * 8 * (2048 + 2048)
    assert kept_bytes(load_architecture("mistralai/Mixtral-8x7B-Instruct-v0.1"), 1, 2) == 2 * 2 * (14336 + 7168)
    dense = load_architecture("Qwen/Qwen3-8B")
    assert kept_bytes(dense, 1, 1) == kept_bytes(dense, 1, 1, fused=True) == 0
    assert kept_bytes(arch, 1, 1, fused=True) == 2 * 2048  # FlashInfer's kernels
    rest = {
        name: started("0.19.0", "Qwen/Qwen3-30B-A3B", "b200-sxm-180gb", moe_backend=name)[0].bytes_of("activation")
        for name in ("triton", "flashinfer_trtllm")
    }
    assert rest["triton"] - rest["flashinfer_trtllm"] == 8192 * 2 * (8 * (2048 + 2048) - 2048)
    assert started("0.19.0", "Qwen/Qwen3-30B-A3B")[0].bytes_of("activation") > 2.5 * GIB
    assert started("0.13.0", "Qwen/Qwen3-30B-A3B")[0].bytes_of("activation") == pytest.approx(5.58 * GIB, rel=0.01)
    # what a server of 0.15.1 printed, in the public files of inference-sim
    flags = {"max_model_len": 4096, "max_num_seqs": 128, "max_num_batched_tokens": 2048, "gpu_memory_utilization": 0.9}
    assert started("0.15.1", "mistralai/Mixtral-8x7B-v0.1", tp=2, **flags)[0].blocks == pytest.approx(27_510, rel=0.002)


def test_requests_of_compressed_attention_take_blocks_of_windows_and_of_what_is_compressed() -> None:
    """vllm-project/vllm#51454 tells 20.43 requests of 1,048,576 tokens over eight tensor ranks, 156.9 over eight data ranks."""
    flags = {"gpu_memory_utilization": 0.95, "max_num_batched_tokens": 8192, "max_num_seqs": 256, "kv_cache_dtype": "fp8"}

    def requests(**pool: object) -> float:
        device = {"engine": "vllm@0.25.0", "hardware": "b200-sxm-180gb"}
        deployment = {**device, "expert_parallel": True, "engine_args": flags, **pool}
        load = {"arrivals": {"kind": "poisson", "rate": 1}, "prompt_tokens": 128, "output_tokens": 16, "requests": 2}
        model = "deepseek-ai/DeepSeek-V4-Flash"
        limits = prepare(load_scenario({"model": model, "deployment": deployment, "workload": load})).plan.limits
        return limits.told_tokens / 1_048_576

    assert requests(tensor_parallel=8) == pytest.approx(20.43, rel=0.03)
    assert requests(data_parallel=8) == pytest.approx(156.9 / 8, rel=0.03)


def test_blocks_of_latents_beside_states_are_as_long_as_kernels_of_latents_want() -> None:
    """Kimi-Linear: 75,840 tokens in 2.30 GiB a GPU, 79 blocks of 960 tokens in each of four groups (vllm-project/vllm#28228)."""
    model, memory = "moonshotai/Kimi-Linear-48B-A3B-Instruct", int(2.30 * (1 << 30))
    flags = {"max_model_len": 60_000, "kv_cache_memory_bytes": memory}
    assert started("0.11.1", model, tp=2, **flags)[1] == pytest.approx(75_840, rel=0.02)
    assert started("0.11.1", model, tp=2, **flags)[1] % 960 == 0
    assert started("0.33.0", model, tp=2, **flags)[0].block_bytes == 1024 * 7 * 2 * 576
