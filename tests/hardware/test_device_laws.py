"""Laws of device classes: their bounds over all profiles and formats, and that each constant does what it says."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from engine_models.engines.known import BUILT_IN, engine_named
from engine_models.model.formats import FORMATS
from hardware_profiles.device import all_devices, device_names, load_device
from hardware_profiles.device_laws import LawOps, weight_bytes
from hardware_profiles.errors import InputError
from hardware_profiles.instinct import BLOCK_S, LINK_LATENCY_S, ROW_S
from hardware_profiles.kernel_physics import canonical_format
from hardware_profiles.kernels import TABLED, operations_in_node, operations_of
from hardware_profiles.law_constants import BACKENDS, law_of, laws_of
from hardware_profiles.ops import Ops
from hardware_profiles.packed_formats import PACKED_FORMATS
from hardware_profiles.roofline import Roofline
from simulator.config.load import load_scenario
from simulator.run import simulate

BRINGING = (
    *("llama_cpp", "llama_cpp_2025", "llama_cpp_2024", "mlx", "exllamav2", "mlc", "blockwise", "openvino"),
    *(f"llama_cpp{build}_{backend}" for build in ("", "_2025") for backend in BACKENDS),
)
TABLED_FORMATS = (
    *("fp32", "bf16", "fp8", "fp8_block", "int8", "int8_wo", "int4", "nvfp4", "mxfp4"),
    *("w4afp8", "nvfp4a16", "mxfp8"),
)
ROWS = np.array([1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 32, 64, 100, 128, 129, 256, 512, 513, 1024, 2048, 8192], dtype=float)
N, K = 14336, 4096


def laws() -> list[tuple[str, str]]:
    """Devices and families; of old builds those whose kernels are not the newest's."""
    found = [(d, f, law_of(d, f)) for d in all_devices() for f in BRINGING]
    return [
        (d.name, f)
        for d, f, law in found
        if law is not None and not (f.startswith("llama_cpp_") and law is law_of(d, "llama_cpp"))
    ]


def test_nine_of_ten_values_are_further_off_than_the_median() -> None:
    for law in {law.title: law for device in all_devices() for law in laws_of(device).values()}.values():
        of_steps, of_prompts = (math.log1p(percent / 100) for percent in law.off_pct)
        assert of_steps < law.within.decode_width, law.title
        assert of_prompts < max(law.within.prompt_width, law.within.few_width), law.title


def bounded(ops: Ops, fmt: str, size_bytes: float) -> None:
    """No product is quicker than its memory or its arithmetic, none is quicker with more rows; attention and experts alike."""
    peaks = ops.peaks
    own = [ops.fp32_flops_per_s, *ops.matrix_peak.values()] if isinstance(ops, LawOps) else []
    best = max([*peaks.flops_per_s.values(), *own])
    t = ops.gemm_s(fmt, ROWS, N, K)
    assert np.all(t * peaks.hbm_bytes_per_s >= 0.999 * N * K * size_bytes)
    assert np.all(t * best >= 0.999 * 2.0 * ROWS * N * K)
    assert np.all(np.diff(t) >= -1e-12)
    experts = ops.moe_s(fmt, 2048, 768, 8, 128, 1, 1, ROWS)
    assert np.all(np.diff(experts) >= -1e-12)
    assert np.all(experts * best >= 0.999 * 6.0 * 2048 * 768 * 8 * ROWS)


@pytest.mark.slow
@pytest.mark.parametrize("framework", BRINGING)
def test_no_step_beats_memory_or_arithmetic_and_more_rows_take_no_less(framework: str) -> None:
    """Over all profiles that have a law, and all formats."""
    formats = {name: packed.bits_per_weight / 8 for name, packed in PACKED_FORMATS.items()} | {"exl2_4.65": 4.65 / 8}
    formats |= {name: weight_bytes(name) for name in TABLED_FORMATS}
    met = [name for name, family in laws() if family == framework]
    assert met
    for name in met:
        ops = operations_of(load_device(name), framework)
        for fmt, size in formats.items():
            bounded(ops, fmt, size)
        contexts = np.array([1.0, 16, 300, 5000, 100_000])
        t = ops.decode_attention_s("bf16", 32, 8, 128, 0, 4, contexts)
        assert np.all(np.diff(t) > 0)
        assert np.all(t * ops.peaks.hbm_bytes_per_s >= 4 * contexts * 2 * 8 * 128 * 2)
        prompts = ops.prefill_attention_s("bf16", "bf16", 32, 8, 128, 0, ROWS, 0)
        assert np.all(np.diff(prompts) >= 0)
        assert np.all(ops.prefill_attention_s("bf16", "bf16", 32, 8, 128, 0, ROWS, 8192) >= prompts)


def test_the_families_and_formats_of_all_engines_are_tested() -> None:
    """Those that an engine may name, of any version, and every format of weights; aliases count as what they are priced as."""
    engines = [engine_named(name) for name in BUILT_IN]
    families = {engine.kernels for engine in engines}
    families |= {engine.switches(version).get("kernels", "") for engine in engines for version in engine.versions}
    assert families - {""} <= {*BRINGING, *TABLED}
    tested = {canonical_format(name) for name in TABLED_FORMATS}
    assert {canonical_format(name) for name in FORMATS} <= tested


@pytest.mark.slow
@pytest.mark.parametrize("framework", TABLED)
def test_the_same_of_devices_whose_kernels_are_tabled_borrowed_or_the_datasheet(framework: str) -> None:
    """Tables may fall by a few percent between rows: as the kernels that were measured do."""
    contexts = np.array([1.0, 16, 300, 5000, 100_000])
    for name in device_names():
        ops = operations_of(load_device(name), framework)
        bandwidth, best = ops.peaks.hbm_bytes_per_s, max(ops.peaks.flops_per_s.values())
        for fmt in TABLED_FORMATS:
            t = ops.gemm_s(fmt, ROWS, N, K)
            assert np.all(t * bandwidth >= 0.999 * N * K * weight_bytes(fmt)), (name, fmt)
            assert np.all(t * best >= 0.999 * 2 * ROWS * N * K), (name, fmt)
            assert np.all(np.maximum.accumulate(t) <= 1.3 * t), (name, fmt)
        decoding = ops.decode_attention_s("bf16", 32, 8, 128, 0, 4, contexts)
        assert np.all(decoding * bandwidth >= 0.999 * 4 * contexts * 2 * 8 * 128 * 2), name
        prompts = ops.prefill_attention_s("bf16", "bf16", 32, 8, 128, 0, ROWS, 0)
        assert np.all(prompts * best >= 0.999 * 2 * 32 * 128 * ROWS**2), name
        experts = ops.moe_s("bf16", 2048, 768, 8, 128, 1, 1, ROWS)
        assert np.all(experts * best >= 0.999 * 6 * 2048 * 768 * 8 * ROWS), name
        for t in (decoding, prompts, experts):
            assert np.all(np.maximum.accumulate(t) <= 1.3 * t), name


def test_packed_weights_are_quicker_to_read_and_slower_to_unpack() -> None:
    apple = operations_of(load_device("apple-m2-max-38c-96gb"), "llama_cpp")
    half, quarter, dense = (float(apple.gemm_s(fmt, 1, N, K)) for fmt in ("fp16", "q4_0", "q4_k_m"))
    assert 0.2 * half < quarter < 0.4 * half
    assert dense > 1.2 * quarter  # bound by unpacking, not by 7 % more bytes


def test_a_second_row_costs_less_than_the_first_and_the_matrix_kernel_takes_over() -> None:
    card = operations_of(load_device("rtx-3090-24gb"), "llama_cpp")
    t = card.gemm_s("q4_0", np.arange(1, 65), N, K)
    assert t[1] - t[0] < 0.3 * t[0]
    assert 1.8 < t[7] / t[0] < 3.0
    assert t[63] < 4 * t[7]


def test_old_builds_widen_the_weights_of_prompts() -> None:
    device = load_device("rtx-3090-24gb")
    new, old = (operations_of(device, f) for f in ("llama_cpp", "llama_cpp_2024"))
    assert isinstance(old, LawOps)
    moved = old.law.widened_bytes * N * K / device.memory_bandwidth_bytes_per_s.value
    assert float(old.gemm_s("q4_k_m", 512, N, K)) > moved
    narrow = replace(old, law=replace(old.law, widened_bytes=0.0))
    more = old.gemm_s("q4_k_m", ROWS, N, K) - narrow.gemm_s("q4_k_m", ROWS, N, K)
    assert more[-1] == pytest.approx(moved)
    assert more[0] == 0.0
    assert float(new.gemm_s("fp16", 512, N, K)) == pytest.approx(float(old.gemm_s("fp16", 512, N, K)), rel=0.01)


APU = "ryzen-ai-max-395-128gb"


def test_a_librarys_product_on_widened_weights_takes_over_at_64_rows() -> None:
    """ROCm builds of 2025: a step up at 64 rows, rocBLAS four times as slow as hipBLASLt beyond, alike below; none by Vulkan."""
    own, default, vulkan = (operations_of(load_device(APU), f"llama_cpp_2025_{b}") for b in ("rocm", "rocblas", "vulkan"))
    rows = np.array([63.0, 64.0, 512.0])
    t = own.gemm_s("q4_k_m", rows, N, K)
    assert t[1] > 1.2 * t[0]
    assert t[0] == float(default.gemm_s("q4_k_m", 63, N, K))
    assert 3 < float(default.gemm_s("q4_k_m", 512, N, K)) / t[2] < 4.5
    assert np.diff(vulkan.gemm_s("q4_k_m", rows[:2], N, K))[0] < 0.05 * t[0]


def test_tiles_of_prompts_pass_over_keys_that_no_cache_holds() -> None:
    """512 tokens after 65,536: 32 query heads pass over eight of keys together under ROCm, one by one by Vulkan."""
    rocm, vulkan = (operations_of(load_device(APU), f"llama_cpp_{b}") for b in ("rocm", "vulkan"))

    def after(ops: Ops, tokens: int, kv_heads: int) -> float:
        return float(ops.prefill_attention_s("bf16", "fp16", 32, kv_heads, 128, 0, 512, tokens))

    assert after(rocm, 65_536, 32) > 3 * after(rocm, 65_536, 8)
    assert after(vulkan, 65_536, 32) < 1.2 * after(vulkan, 65_536, 8)
    assert after(vulkan, 65_536, 8) > 3 * after(rocm, 65_536, 8)
    assert after(vulkan, 1024, 8) < 1.3 * after(rocm, 1024, 8)


def test_experts_by_vulkan_pay_for_tiles_where_no_kernel_takes_few_rows() -> None:
    """Builds of 2025 from two tokens on, bf16 from the first; ROCm and today's other formats never."""

    def per_token(family: str, fmt: str) -> list[float]:
        ops = operations_of(load_device(APU), family)
        return [float(ops.moe_s(fmt, 4096, 1408, 8, 128, 1, 1, tokens)) / tokens for tokens in (1, 2)]

    one, two = per_token("llama_cpp_2025_vulkan", "q4_k_m")
    assert two > 2.0 * one
    for family, fmt in (("llama_cpp_vulkan", "q4_k_m"), ("llama_cpp_2025_rocm", "q4_k_m"), ("llama_cpp_rocm", "bf16")):
        one, two = per_token(family, fmt)
        assert two < 1.1 * one
    by_tiles, by_rows = per_token("llama_cpp_vulkan-bf16", "bf16")[0], per_token("llama_cpp_rocm", "bf16")[0]
    assert by_tiles > 2.0 * by_rows


def test_experts_reach_less_of_the_matrix_units_than_other_products() -> None:
    """64 rows of each of 64 experts on AMD's builds of 2026; under CUDA, and before, they reach as much."""

    def ratio(device: str, family: str) -> float:
        ops = operations_of(load_device(device), family)
        assert isinstance(ops, LawOps)
        plain = replace(ops, law=replace(ops.law, expert_share=1.0))
        one, other = (float(of.moe_s("q4_k_m", 4096, 1408, 8, 64, 1, 1, 512)) for of in (ops, plain))
        return one / other

    assert ratio(APU, "llama_cpp_vulkan") > 1.7
    assert ratio("radeon-ai-pro-r9700-32gb", "llama_cpp_rocm") > 1.5
    assert ratio(APU, "llama_cpp_2025_rocm") == ratio("rtx-4090-24gb", "llama_cpp") == 1.0


def test_ways_to_compute_on_a_card_differ() -> None:
    """By ROCm a step of small products takes longer and a prompt less than by Vulkan."""
    ops = {way: operations_of(load_device("rx-7900-xtx-24gb"), f"llama_cpp_{way}") for way in ("vulkan", "rocm")}
    assert float(ops["rocm"].gemm_s("q4_0", 1, N, K)) > 1.05 * float(ops["vulkan"].gemm_s("q4_0", 1, N, K))
    assert float(ops["rocm"].gemm_s("q4_k_m", 512, N, K)) < 0.85 * float(ops["vulkan"].gemm_s("q4_k_m", 512, N, K))


def test_bf16_by_vulkan_has_no_matrix_units_on_a_processor() -> None:
    wide, half = (operations_of(load_device(APU), f"llama_cpp_{b}") for b in ("vulkan-bf16", "vulkan"))
    assert float(wide.gemm_s("bf16", 512, N, K)) > 3 * float(half.gemm_s("bf16", 512, N, K))


def test_prompts_attend_to_latent_keys_under_llama_cpp_and_to_expanded_ones_under_mlx() -> None:
    """1,088 products of each head and cell, and 320."""
    ops = operations_of(load_device("apple-m2-max-38c-96gb"), "llama_cpp")
    assert isinstance(ops, LawOps)
    expanded = replace(ops, law=replace(ops.law, latent_prompts=False))
    more = [each.mla_prefill_s("bf16", "bf16", 128, 512, 32_768) for each in (ops, expanded)]
    assert float(more[0] / more[1]) == pytest.approx(1088 / 320, rel=0.01)
    mlx = law_of(load_device("apple-m2-max-38c-96gb"), "mlx")
    assert mlx is not None
    assert not mlx.latent_prompts


def test_threads_of_a_cpu() -> None:
    """Arithmetic goes by the threads, which disturb each other, memory only as far as few of them can read."""
    cpu = operations_of(load_device("ryzen-9-7950x-1s"), "llama_cpp")
    law = law_of(load_device("ryzen-9-7950x-1s"), "llama_cpp")
    assert law is not None
    quicker = 8 * (1 + 2 * law.crowding_share) / (1 + 16 * law.crowding_share)
    assert quicker < 7.5
    two, all_of_them, more = (cpu.on_threads(n) for n in (2, 16, 64))
    assert float(two.gemm_s("q4_k_m", 512, N, K)) == pytest.approx(quicker * float(cpu.gemm_s("q4_k_m", 512, N, K)), rel=0.05)
    assert float(two.gemm_s("fp16", 1, N, K)) == pytest.approx(float(cpu.gemm_s("fp16", 1, N, K)), rel=0.15)
    assert float(cpu.on_threads(1).gemm_s("fp16", 1, N, K)) > 1.9 * float(cpu.gemm_s("fp16", 1, N, K))
    assert float(all_of_them.gemm_s("q8_0", 1, N, K)) == float(cpu.gemm_s("q8_0", 1, N, K))
    assert float(more.gemm_s("q8_0", 1, N, K)) == float(cpu.gemm_s("q8_0", 1, N, K))
    gpu = operations_of(load_device("h100"), "vllm")
    assert gpu.on_threads(4) is gpu


def test_a_version_and_its_threads_change_the_times_of_its_steps() -> None:
    def took_s(engine: str, hardware: str, **args: int) -> float:
        deployment = {"engine": engine, "hardware": hardware, "weights": "q4_k_m", "engine_args": {"ctx_size": 8192, **args}}
        load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 4000, "output_tokens": 1}
        run = simulate(load_scenario({"model": "Llama-3.2-1B", "deployment": deployment, "workload": load}))
        return float(run.result["metrics"]["ttft_ms"]["mean"]) / 1e3

    assert took_s("llama_cpp@0.0.2800", "rtx-3090-24gb") > 1.1 * took_s("llama_cpp", "rtx-3090-24gb")
    assert took_s("llama_cpp@0.0.5800", "ryzen-ai-max-395-128gb") > 1.3 * took_s("llama_cpp", "ryzen-ai-max-395-128gb")
    assert took_s("llama_cpp", "ryzen-9-7950x-1s", threads=4) > 3 * took_s("llama_cpp", "ryzen-9-7950x-1s")


def test_two_sockets_read_less_than_twice_one() -> None:
    one, two = (operations_of(load_device(f"xeon-8375c-{n}s"), "llama_cpp") for n in (1, 2))
    assert 0.8 < float(one.gemm_s("fp16", 1, N, K)) / float(two.gemm_s("fp16", 1, N, K)) < 1.3


def test_what_is_said_of_a_law() -> None:
    (said,) = operations_in_node(load_device("rtx-4080-16gb"), "llama_cpp", 1)[1]
    assert said == (
        "kernels of rtx-4080-16gb by the law of NVIDIA cards with GDDR under llama.cpp, fitted to published rates; "
        "where it was not fitted, half of the values are within about 9 %"
    )
    assert law_of(load_device("h100"), "mlx") is None
    assert law_of(load_device("h100"), "vllm") is None


def test_a_cpu_without_16_bit_arithmetic_computes_in_32_bit() -> None:
    old = operations_of(load_device("xeon-6138-2s"), "vllm")
    assert old.peaks.rate("bfloat16") == load_device("xeon-6138-2s").peak_flops_per_s["fp32"].value
    assert np.isfinite(old.gemm_s("bf16", ROWS, N, K)).all()


def test_instinct_gpus_start_late_and_pay_for_rows() -> None:
    """Products of few rows, rows whatever they read, and small all-reduces take longer than the bytes ask for."""
    device = load_device("mi300x")
    ops = operations_of(device, "vllm")
    assert float(ops.gemm_s("fp8", 1, 1024, 8192)) > 3 * 1024 * 8192 / device.memory_bandwidth_bytes_per_s.value
    one, more = (float(ops.decode_attention_s("fp8", 8, 1, 128, 0, rows, 16)) for rows in (1, 129))
    assert more - one == pytest.approx(128 * ROW_S, rel=0.05)
    assert float(ops.all_reduce_s(8, 128)) == pytest.approx(LINK_LATENCY_S, rel=0.01)
    bounded(ops, "fp8", 1.0)
    assert "AMD Instinct" in operations_in_node(device, "sglang", 8)[1][0]


def test_products_by_blocks_pay_on_cdna3_alone() -> None:
    """A dense layer at one row is slower by blocks than in 16 bits there; CDNA4 and no rows pay nothing."""
    older, newer = (operations_of(load_device(name), "vllm") for name in ("mi300x", "mi355x"))
    assert isinstance(older, Roofline)
    blocks, plain = (float(older.gemm_s(fmt, 1, 5120, 5120)) for fmt in ("fp8_block", "bf16"))
    assert blocks > plain
    assert blocks - float(Roofline.gemm_s(older, "fp8_block", 1, 5120, 5120)) == pytest.approx(BLOCK_S["cdna3"][0])
    assert isinstance(newer, Roofline)
    assert float(newer.gemm_s("fp8_block", 1, 5120, 5120)) == float(Roofline.gemm_s(newer, "fp8_block", 1, 5120, 5120))
    experts = [float(older.moe_s(fmt, 7168, 2048, 8, 256, 8, 1, 4)) for fmt in ("fp8_block", "fp8")]
    assert experts[0] - experts[1] == pytest.approx(BLOCK_S["cdna3"][1])
    assert float(older.gemm_s("fp8_block", 0, 5120, 5120)) == 0.0


@pytest.mark.parametrize(
    ("model", "weights", "published_per_s"),
    [
        ("Qwen/Qwen2.5-Coder-7B-Instruct", "q8_0", 2276),
        ("google/gemma-3-4b-it", "q4_0", 5713),
        ("openai/gpt-oss-20b", "mxfp4_moe", 3783),
    ],
)
def test_prompts_on_a_spark_are_about_what_llama_cpp_publishes(model: str, weights: str, published_per_s: float) -> None:
    """Tokens per second of 2,048: the engine's own `benches/dgx-spark.md`; they were up to 69 % too quick."""
    served = {"engine": "llama_cpp", "hardware": "dgx-spark-128gb", "weights": weights, "engine_args": {"ubatch_size": 2048}}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 2048, "output_tokens": 2}
    found = simulate(load_scenario({"model": model, "deployment": served, "workload": load}))
    assert 2048 / (found.requests["ttft_ms"][0] / 1e3) == pytest.approx(published_per_s, rel=0.25)


@pytest.mark.parametrize(
    ("name", "weights", "tok_s"), [("apple-m4-10c-16gb", 8.03e9, 20.9), ("apple-m3-max-40c-64gb", 70.6e9, 7.5)]
)
def test_k_formats_unpack_beside_floats_from_the_m3_on(name: str, weights: float, tok_s: float) -> None:
    """One product as large as Llama-3.1-8B or 70B takes no longer than measured steps of them; an M1 unpacks longer."""
    newer, older = operations_of(load_device(name), "llama_cpp"), operations_of(load_device("apple-m1-8c-16gb"), "llama_cpp")
    assert isinstance(newer, LawOps)
    assert isinstance(older, LawOps)
    assert newer.law.unpack[""] == pytest.approx(0.6 * older.law.unpack[""])
    assert float(newer.product_s("q4_k", weights, np.ones(1), 1.0, 0.0)[0]) < 1.0 / tok_s


def test_further_rows_under_mlx_unpack_beside_floats_from_the_m3_on() -> None:
    """Beyond the first a row takes 0.6 of the 32-bit rate's part that it takes on an M2; in 16 bits the same part."""

    def further(name: str, fmt: str) -> float:
        device = load_device(name)
        one_s, four_s = operations_of(device, "mlx").gemm_s(fmt, [1, 4], 27648, 5120).tolist()
        return float((four_s - one_s) * device.peak_flops_per_s["fp32"].value)

    older, newer = "apple-m2-max-38c-96gb", "apple-m4-max-40c-128gb"
    assert further(newer, "mlx_4bit") == pytest.approx(0.6 * further(older, "mlx_4bit"))
    assert further(newer, "bf16") == pytest.approx(further(older, "bf16"), rel=0.3)


def test_mlx_reads_packed_keys_where_that_pays() -> None:
    """A layer of Qwen2.5-7B on an M2 Ultra: alike up to 6,000 tokens, 1.75 times as quick after 120,000; four bits as eight."""
    ops = operations_of(load_device("apple-m2-ultra-76c-192gb"), "mlx")
    wide, eight, four = (
        [float(ops.decode_attention_s(fmt, 28, 4, 128, 0, 1, tokens)) for tokens in (1000, 5500, 120_000)]
        for fmt in ("bf16", "mlx_8bit", "mlx_4bit")
    )
    assert eight == four
    assert (eight[0], eight[1]) == (wide[0], wide[1])
    assert wide[2] / eight[2] == pytest.approx(1.75, rel=0.05)


def test_the_first_arc_cards_reach_half_of_what_their_successors_do() -> None:
    """Shares of the bandwidth that 4-bit weights are read at, by the engines that served on both."""
    for engine, most in (("vllm", 0.46), ("llama_cpp", 0.33)):
        devices = [load_device(name) for name in ("arc-a770", "arc-b580")]
        took = [float(operations_of(device, engine).gemm_s("int4", 1, 2**14, 2**14)) for device in devices]
        read = [2.0**28 * weight_bytes("int4") / device.memory_bandwidth_bytes_per_s.value for device in devices]
        first, second = (least / seconds for least, seconds in zip(read, took, strict=True))
        assert 0.25 < first < most < 0.65 < second


def test_experts_in_mxfp4_are_read_less_well_where_they_are_widened() -> None:
    """All 128 experts of gpt-oss-120b: at 0.45 of MI300X's bandwidth after 40 us, at 0.78 where 4 bits are multiplied."""
    old, new = (operations_of(load_device(name), "vllm") for name in ("mi300x", "mi355x"))
    held_bytes = 128 * 3 * 2880 * 2880 * (0.5 + 1 / 32)
    took = [float(ops.moe_s("mxfp4", 2880, 2880, 4, 128, 1, 1, 512)) for ops in (old, new)]
    assert took[0] > 4e-5 + held_bytes / (0.45 * 5.3e12)
    assert took[1] < 0.5 * took[0]


def test_weights_in_mxfp4_are_computed_in_4_bits_where_the_device_can() -> None:
    """A prompt of 8,192 rows: CDNA4's 4-bit rate is four times the 16-bit one; CDNA3 widens."""
    older, newer = (operations_of(load_device(name), "vllm") for name in ("mi300x", "mi355x"))
    for ops, quicker in ((older, False), (newer, True)):
        narrow, wide = (float(ops.gemm_s(fmt, 8192, 16384, 16384)) for fmt in ("mxfp4", "bf16"))
        assert (narrow < 0.3 * wide) == quicker
        narrow, wide = (float(ops.moe_s(fmt, 7168, 2048, 8, 64, 1, 1, 8192)) for fmt in ("mxfp4", "bf16"))
        assert (narrow < 0.4 * wide) == quicker


def test_a_large_product_in_few_bits_is_quicker_on_cdna4_and_a_deep_one_slower() -> None:
    """A layer of 51,200 by 5,120 weights reads at two thirds of the memory's rate in FP8 (aiter's table has 0.74) and costs
    less than in 16 bits in all narrow formats; a tile sums over the depth in sequence.
    """
    ops = operations_of(load_device("mi355x-288gb"), "vllm")
    rows, wide_s = np.array([1, 8, 32]), ops.gemm_s("bf16", np.array([1, 8, 32]), 51_200, 5_120)
    for fmt, most in (("fp8", 0.7), ("fp8_block", 0.7), ("int8", 0.7), ("mxfp4", 0.5)):
        assert (ops.gemm_s(fmt, rows, 51_200, 5_120) < most * wide_s).all(), fmt
        assert float(ops.gemm_s(fmt, 1, 5_120, 51_200)) > 1.2 * float(ops.gemm_s(fmt, 1, 51_200, 5_120)), fmt
    least_s = 51_200 * 5_120 / ops.peaks.hbm_bytes_per_s
    assert float(ops.gemm_s("fp8", 1, 51_200, 5_120)) < 1.5 * least_s


def test_an_interval_widens_where_kernels_differ_by_version() -> None:
    """By blocks of FP8 a model is less sure on MI300X than in FP8 as a whole, and the result says why; CDNA4 is as sure."""
    load = {"prompt_tokens": 200, "output_tokens": 20, "requests": 20, "arrivals": {"kind": "poisson", "rate": 1}}

    def said(device: str, weights: str) -> tuple[float, bool]:
        deployment = {"engine": "vllm", "hardware": device, "weights": weights}
        result = simulate(load_scenario({"model": "Qwen3-32B", "deployment": deployment, "workload": load})).result
        low, high = result["metrics"]["tpot_ms"]["interval"]["mean"]
        return high / low, "differ by version" in " ".join(result["extrapolation"]["axes"])

    whole, blocks, newer = said("mi300x", "fp8"), said("mi300x", "fp8_block"), said("mi355x", "fp8_block")
    assert blocks[0] > 1.3 * whole[0]
    assert whole[0] == pytest.approx(newer[0], rel=1e-6)
    assert (whole[1], blocks[1], newer[1]) == (False, True, False)


def test_a_gpu_without_matrix_units_of_bytes_widens_weights_for_many_rows() -> None:
    """Llama-3-8B in Q5_0 on V100, 512 to 64 tokens at once (llama.cpp pull request 24127), to which nothing is fitted."""
    measured = {512: 3331, 256: 2425, 128: 1472, 64: 824}
    ops = operations_of(load_device("v100-pcie-32gb"), "llama_cpp")
    shapes = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
    for tokens, rate in measured.items():
        step_s = 32 * sum(float(ops.gemm_s("q5_0", tokens, n, k)) for n, k in shapes)
        assert 0.85 < tokens / step_s / rate < 1.35  # the products alone
    few = [float(ops.gemm_s("q5_0", rows, 28672, 4096)) for rows in (32, 63, 64, 65, 512)]
    assert few == sorted(few)


def test_experts_under_sycl_are_widened_and_multiplied_one_after_another() -> None:
    """512 tokens of a layer of Qwen3-30B-A3B touch nearly all of its experts, each of which starts by itself; eight do not."""
    ops = operations_of(load_device("arc-pro-b70-32gb"), "llama_cpp")
    assert isinstance(ops, LawOps)
    at_once = replace(ops, law=replace(ops.law, library_start_s=0.0))

    def started_s(tokens: float, experts: int) -> float:
        one, other = (float(of.moe_s("q4_k_m", 2048, 768, 8, experts, 1, 1, tokens)) for of in (ops, at_once))
        return one - other

    assert 120 * ops.law.library_start_s < started_s(512, 128) <= 128 * ops.law.library_start_s
    assert started_s(512, 256) > 1.8 * started_s(512, 128)
    assert started_s(1, 128) == 0.0


@pytest.mark.parametrize(
    ("name", "engine", "model", "weights", "metric", "tok_s"),
    [
        ("arc-b390-32gb", "llama_cpp", "Qwen/Qwen3-8B", "q4_k_m", "prompt", 1022),
        ("arc-pro-b65-32gb", "llama_cpp", "Qwen/Qwen3.5-27B", "q4_k_m", "long prompt", 16384 / 20.5),
        ("arc-graphics-8c-32gb", "llama_cpp", "meta-llama/Llama-2-7b-hf", "q4_0", "decoding", 16),
        ("arc-140t-32gb", "llama_cpp", "meta-llama/Llama-2-7b-hf", "q4_0", "decoding", 17),
        ("arc-graphics-8c-32gb", "openarc", "Qwen/Qwen3-8B", "nncf_int4_sym_channel", "decoding", 16.5),
    ],
)
def test_published_rates_of_intels_graphics(
    name: str, engine: str, model: str, weights: str, metric: str, tok_s: float
) -> None:
    """Within a quarter (sources: law_constants.py, and llama.cpp pull request 27471, 2026-08; its SYCL page, 2025-02)."""
    prompt, output = {"prompt": (512, 1), "long prompt": (16384, 1), "decoding": (16, 64)}[metric]
    args = "{parallel: 1, ctx_size: 16640, ubatch_size: 2048}" if metric == "long prompt" else "{}"
    run = simulate(
        load_scenario(
            f"model: {model}\n"
            f"deployment: {{engine: {engine}, hardware: {name}, weights: {weights}, engine_args: {args}}}\n"
            f"workload: {{arrivals: {{kind: batch}}, requests: 1, prompt_tokens: {prompt}, output_tokens: {output}}}\n"
        )
    )
    metrics = run.result["metrics"]
    found = 1e3 / metrics["tpot_ms"]["mean"] if metric == "decoding" else 1e3 * prompt / metrics["ttft_ms"]["mean"]
    assert found == pytest.approx(tok_s, rel=0.25)


@pytest.mark.parametrize(
    ("name", "weights", "fmt", "tok_s"),
    [
        ("tesla-p40-24gb", 6.6e9, "q4_0", 56.8),
        ("tesla-p40-24gb", 6.6e9, "q3_k_s", 30.9),
        ("gtx-1050-ti-4gb", 3.2e9, "q4_k_m", 20.8),
    ],
)
def test_what_unpacks_takes_the_place_of_arithmetic_before_turing(name: str, weights: float, fmt: str, tok_s: float) -> None:
    """One product as large as llama-7B or Llama-3.2-3B is within a quarter of a measured step; an RTX 3060 reads more."""
    ops, later = operations_of(load_device(name), "llama_cpp"), operations_of(load_device("rtx-3060-12gb"), "llama_cpp")
    assert isinstance(ops, LawOps)
    assert isinstance(later, LawOps)
    step_s = float(ops.product_s(fmt, weights, np.ones(1), 1.0, 0.0)[0])
    assert 0.75 < step_s * tok_s < 1.25
    held = weights * weight_bytes(fmt)
    assert step_s * ops.peaks.hbm_bytes_per_s > 1.3 * held
    later_s = float(later.product_s(fmt, weights, np.ones(1), 1.0, 0.0)[0])
    assert later_s * later.peaks.hbm_bytes_per_s < 0.9 * step_s * ops.peaks.hbm_bytes_per_s


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tgi", "trtllm", "lmdeploy", "exllamav2"])
def test_servers_without_kernels_for_pascal_say_so(engine: str) -> None:
    deployment = {"engine": engine, "hardware": "gtx-1080-ti-11gb"}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 10, "output_tokens": 10}
    with pytest.raises(InputError, match="from Volta on, not on gtx-1080-ti-11gb"):
        simulate(load_scenario({"model": "meta-llama/Llama-3.2-1B", "deployment": deployment, "workload": load}))


def test_a_token_under_openvino_costs_its_arithmetic_beside_the_weights() -> None:
    """More rows cost their arithmetic more, from the second on; a CPU unpacks 8-bit weights, and reads 16 bits as they are."""
    rows = np.array([1.0, 9.0, 17.0])
    for name, peak in (("xeon-8480-1s", "bf16"), ("arc-b580-12gb", "fp16")):
        device = load_device(name)
        ops = operations_of(device, "openvino")
        t = ops.gemm_s("fp16", rows, N, K)
        assert t[2] - t[1] == pytest.approx(8 * 2.0 * N * K / (0.37 * device.peak_flops_per_s[peak].value), rel=0.01)
        assert t[1] - t[0] > t[2] - t[1]  # the first row's too
    xeon = operations_of(load_device("xeon-8480-1s"), "openvino")
    whole, half, quarter = (float(xeon.gemm_s(fmt, 1.0, N, K)) for fmt in ("fp16", "int8_wo", "int4"))
    assert 0.75 * whole < half < whole
    assert quarter < 0.65 * half
    assert law_of(load_device("h100-sxm-80gb"), "openvino") is None


def test_rows_that_superblocks_do_not_divide_are_in_another_type() -> None:
    """llama.cpp's files have Q4_K's as Q5_0, Q6_K's as Q8_0, small types as IQ4_NL; experts whose width alone does so in a third
    of their weights."""
    kept = {name: name for name in ("q8_0", "q4_0")}
    for name, odd in ({"q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0", "iq3_s": "iq4_nl"} | kept).items():
        stored = PACKED_FORMATS[name] if name in PACKED_FORMATS else next(p for p in PACKED_FORMATS.values() if p.block == name)
        assert stored.of_rows(896).block == odd
        assert stored.of_rows(4864) is stored
    ops = operations_of(load_device("rtx-3090-24gb"), "llama_cpp")
    wide, odd_s = (float(ops.gemm_s("q6_k", 1.0, 4096, k)) / k for k in (2816, 2880))
    assert odd_s / wide > 1.1
    even, mixed, whole = (float(ops.moe_s("q6_k", *shape, 4, 8, 1, 1, 1.0)) / (shape[0] * shape[1])
                          for shape in ((2816, 1408 + 128), (2816, 1408), (2880, 1408)))  # fmt: skip
    assert even < mixed < whole


def test_openvino_uses_one_of_two_sockets() -> None:
    two, one = (operations_of(load_device(f"xeon-8480-{n}s"), "openvino") for n in (2, 1))
    for fmt in ("bf16", "nncf_int8", "nncf_int4_sym_128"):
        assert np.allclose(two.gemm_s(fmt, ROWS, N, K), one.gemm_s(fmt, ROWS, N, K), rtol=0.02), fmt
    for fmt in ("bf16", "int8"):
        read = [float(ops.decode_attention_s(fmt, 32, 8, 128, 0, 8.0, 8e3)) for ops in (two, one)]
        assert math.isclose(*read, rel_tol=0.02), fmt
        prompts = [float(ops.prefill_attention_s("bf16", fmt, 32, 8, 128, 0, 1e3, 1e3)) for ops in (two, one)]
        assert math.isclose(*prompts, rel_tol=0.02), fmt


def test_cards_with_much_arithmetic_for_a_watt_multiply_slower_in_16_bits() -> None:
    """RTX 6000 Ada: 364e12 16-bit operations a second for 300 W keep 0.36 of the power that their clock takes, below a half of it
    in proportion."""
    law, card = law_of(load_device("rtx-6000-ada-48gb"), "llama_cpp"), load_device("rtx-6000-ada-48gb")
    assert law is not None
    cool, peak = law.cool_flops_per_j["ada"], 0.5 * card.peak_flops_per_s["int8"].value
    clock = ((0.5 - 0.29) / 0.71) ** (1 / 3) * (cool * 300 / peak) / 0.5
    new, warm = LawOps.under(law, card, "llama_cpp"), LawOps.under(replace(law, cool_flops_per_j={}), card, "llama_cpp")
    assert new.matrix_peak["16"] == pytest.approx(clock * peak)
    assert new.matrix_peak[""] == warm.matrix_peak[""] == 2 * peak
    old = law_of(card, "llama_cpp_2024")
    assert old is not None
    widened = LawOps.under(old, card, "llama_cpp_2024")
    assert widened.matrix_peak[""] == pytest.approx(clock * 2 * peak)
    desktop = load_device("rtx-4080-16gb")
    kept = LawOps.under(law, desktop, "llama_cpp").matrix_peak["16"] / (0.5 * desktop.peak_flops_per_s["int8"].value)
    assert kept == pytest.approx(((cool * 320 / 194.9e12 - 0.29) / 0.71) ** (1 / 3), rel=1e-3)


def test_attention_of_2025_builds_reads_keys_many_times_slower_where_it_is_not_fused() -> None:
    """2,048 tokens of one row: 8.4 MB of keys and values a layer of 32 own heads, a quarter of it where four share them."""
    ops = {family: operations_of(load_device(APU), f"llama_cpp_2025{family}") for family in ("_vulkan", "_fused_vulkan", "_rocm")}

    def read_s(family: str, kv_heads: int) -> float:
        found = ops[family]
        assert isinstance(found, LawOps)
        return float(found.decode_attention_s("fp16", 32, kv_heads, 128, 0, 1, 2048)) - found.launch_s

    own_bytes, bandwidth = 2048 * 2 * 32 * 128 * 2, 2.56e11
    assert read_s("_vulkan", 32) == pytest.approx(own_bytes / (0.125 * bandwidth), rel=0.01)
    assert read_s("_fused_vulkan", 32) == pytest.approx(own_bytes / (0.78 * bandwidth), rel=0.01)
    assert read_s("_vulkan", 8) == pytest.approx(own_bytes / 4 / (0.17 * bandwidth), rel=0.01)
    assert read_s("_rocm", 8) == pytest.approx(own_bytes / 4 / (0.085 * bandwidth), rel=0.01)
