"""Recurrences, sparse and latent attention by measured kernels: what the tables say, what serving makes of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from engine_models.cost.attention import PrefillAttention
from engine_models.cost.terms import Formats, HostOverhead
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import FORMATS
from engine_models.parts.batch import Batch
from hardware_profiles.device import device_names, load_device
from hardware_profiles.kernel_fit.group import held_out_error
from hardware_profiles.kernel_fit.ops import OPS
from hardware_profiles.kernel_fit.origin import DEVICES, PEAKS
from hardware_profiles.kernel_fit.rows import fitted_versions, newest, op_rows, slices
from hardware_profiles.kernel_fit.surface import undisturbed
from hardware_profiles.kernel_model import fitted_models, load_kernel_model, version_of
from hardware_profiles.kernels import TABLED, operations_of
from hardware_profiles.ops import Ops, Recurrence, SparseLayer
from hardware_profiles.roofline import Roofline
from tests.step_times import shard_of

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kernels_2026"
needs_tables = pytest.mark.skipif(not TABLES.exists(), reason="measured kernel tables are not beside the checkout")

QWEN = Recurrence("gdn", 16, 32, 128, 128, 32 * 128 * 128 * 4, 8192)
KIMI = Recurrence("kda", 32, 32, 128, 128, 32 * 128 * 128 * 4, 12288)
MAMBA = Recurrence("mamba2", 8, 64, 128, 64, 64 * 64 * 128 * 4, 6144)
#: DeepSeek-V3.2 on one of eight devices.
SPARSE = SparseLayer("dsa-DeepSeek-V3.2", "fp8_block", "bf16", 16, ((2112, 7168), (3072, 1536), (4096, 512), (7168, 2048)))
PROMPTS = np.array([64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384])


#: What is left of a shortfall where projections are taken off a whole layer; steps flatten that too (see below).
LEFT_BY_PROJECTIONS = 0.03


def prompt_times(ops: Ops) -> list[np.ndarray]:
    """Seconds of prompts of :data:`PROMPTS` tokens through layers of every kind."""
    found = [ops.prefill_attention_s("bf16", "bf16", h, kv, d, w, PROMPTS, 0) for h, kv, d, w in SHAPES]
    found += [ops.mla_prefill_s("bf16", "bf16", heads, PROMPTS, 0) for heads in (8, 16, 32, 128)]
    found += [ops.recurrent_context_s(layer, PROMPTS) for layer in (QWEN, KIMI, MAMBA)]
    sparse = ops.sparse_context_s(SPARSE, PROMPTS, 0)
    return found if sparse is None else [*found, sparse]


SHAPES = ((32, 8, 128, 0), (8, 1, 128, 0), (64, 8, 64, 128), (16, 16, 256, 0))


@pytest.mark.slow
def test_longer_prompts_are_never_faster_on_any_device() -> None:
    fitted = {device for device, _ in fitted_models()}
    for name in device_names():
        device = load_device(name)
        for framework in TABLED if (device.kernel_profile or name) in fitted else TABLED[:1]:
            for i, times in enumerate(prompt_times(operations_of(device, framework))):
                assert np.all(np.diff(times) >= -LEFT_BY_PROJECTIONS * times[1:]), (name, framework, i, times)


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-R1", "deepseek-ai/DeepSeek-V3.2", "Qwen/Qwen3.5-35B-A3B"])
def test_longer_chunks_of_a_step_are_never_faster(model: str) -> None:
    """Strictly, for every measured GPU, whatever is cached before them."""
    arch, bf16 = load_architecture(model), FORMATS["bf16"]
    for device, framework in fitted_models():
        shard = shard_of(
            arch, load_kernel_model(device, framework), Formats(bf16, bf16, bf16), HostOverhead(0.0, 0.0), tensor_parallel=8
        )
        attention = PrefillAttention(shard, 4096, 32768)
        times = [
            [attention.batch_s(Batch(0, prefill=[(new, prior)], tokens=new)) for new in (1, 96, 128, 256, 1000, 4096)]
            for prior in (0, 1000, 16384)
        ]
        assert np.all(np.diff(times, axis=0) >= 0), (device, framework)
        assert np.all(np.diff(times, axis=1) >= 0), (device, framework)


def test_a_chunk_expands_the_latents_before_it() -> None:
    """DeepSeek on one of eight H200, 8,000 tokens cached: their projection takes a product of as many rows, and some passes."""
    arch, bf16 = load_architecture("deepseek-ai/DeepSeek-V3"), FORMATS["bf16"]
    kernels, formats = load_kernel_model("h200-sxm-141gb", "vllm"), Formats(bf16, bf16, bf16)
    times = []
    for expands in (False, True):
        host = HostOverhead(0.0, 0.0)
        shard = shard_of(arch, kernels, formats, host, tensor_parallel=8, expands_latents=expands)
        attention = PrefillAttention(shard, 256, 16384)
        times.append([attention.batch_s(Batch(0, prefill=[(200, prior)], tokens=200)) / arch.layers for prior in (0, 8000)])
    (first_s, after_s), (same_s, longer_s) = times
    assert first_s == same_s
    product_s = float(kernels.gemm_s("bf16", 8000, 4096, 512))
    assert product_s < longer_s - after_s < 2.5 * product_s


def test_a_step_with_little_before_it_is_computed_in_the_absorbed_form() -> None:
    """SGLang on Hopper: all rows of the step, if any has something cached and all together less than 8,192 tokens."""
    kernels, bf16 = load_kernel_model("h200-sxm-141gb", "sglang"), FORMATS["bf16"]
    arch, formats = load_architecture("deepseek-ai/DeepSeek-V3"), Formats(bf16, bf16, bf16)
    chunks = [(4000, 0), (4000, 0)]
    seconds = []
    for below in (0, 8192):
        host = HostOverhead(0.0, 0.0)
        shard = shard_of(arch, kernels, formats, host, tensor_parallel=8, expands_latents=True, absorbs_below=below)
        attention = PrefillAttention(shard, 8192, 16384)
        seconds.append([attention.batch_s(Batch(0, prefill=[*chunks, (190, prior)])) for prior in (0, 1, 8191, 8192)])
    expanded, absorbed = seconds
    assert (absorbed[0], absorbed[3]) == (expanded[0], expanded[3])
    assert 3.0 < absorbed[1] / expanded[1] < 3.4  # less what the layers take to launch
    host = HostOverhead(0.0, 0.0, prefill_graph_tokens=8000)
    captured = PrefillAttention(replace(shard, terms=replace(shard.terms, host=host, absorbs_captured=True)), 8192, 16384)
    held, beyond = (captured.batch_s(Batch(0, prefill=[(tokens, 0)], tokens=tokens)) for tokens in (8000, 8001))
    assert held > 3.0 * beyond


def test_a_disturbed_cell_of_a_table_is_not_served() -> None:
    """H200's prompts of 128 tokens in latent attention: 781 us in one table, 17 and 20 beside it."""
    for framework in TABLED:
        short_s, longer_s = load_kernel_model("h200-sxm-141gb", framework).mla_prefill_s("bf16", "bf16", 8, [128, 256], 0)
        assert 1e-5 < short_s <= longer_s < 3e-5
    values = np.array([[0.0, 0.1, 3.5, 0.2, 0.3], [0.1, 0.2, 0.3, 0.4, 0.5]])
    cleaned = undisturbed(values.reshape(1, -1), (2, 5)).reshape(2, 5)
    assert cleaned[0, 2] < 0.5
    assert np.array_equal(cleaned[1], values[1])


def test_latents_of_decoding_rows_are_read_from_memory() -> None:
    """32 rows of 2,048 tokens fit B200's cache: a replayed benchmark reads them there, a server does not."""
    kernels = load_kernel_model("b200-sxm-180gb", "sglang")
    bench_s, serving_s = (kernels.mla_decode_s("bf16", "bf16", 16, 32, 2048, c) for c in ("bench", "serving"))
    assert serving_s > 1.1 * bench_s
    bench_s, serving_s = (kernels.mla_decode_s("bf16", "bf16", 16, 256, 8192, c) for c in ("bench", "serving"))
    assert serving_s == pytest.approx(bench_s, rel=0.02)


@pytest.mark.parametrize("name", ["b300-sxm-288gb", "gb200-186gb", "gb300-288gb"])
def test_newest_gpus_have_tables_of_their_own(name: str) -> None:
    for framework in TABLED:
        assert (name, framework) in fitted_models()
        kernels = operations_of(load_device(name), framework)
        assert "borrowed_from_device" not in kernels.provenance
        groups = load_kernel_model(name, framework).groups
        assert {"gemm/nvfp4", "attention_decode/bfloat16/fp8", "recurrence_decode/gdn"} <= set(groups)


def test_recurrences_are_measured_and_bound_by_memory() -> None:
    kernels = load_kernel_model("h100-sxm-80gb", "vllm")
    rows = np.array([1.0, 64.0, 256.0])
    t = kernels.recurrent_decode_s(QWEN, rows)
    assert np.all(t > rows * 2 * QWEN.state_bytes / kernels.peaks.hbm_bytes_per_s)
    assert t[2] == pytest.approx(376e-6, rel=0.05)  # 364 us and 12 of the convolution in the table
    assert kernels.recurrent_context_s(QWEN, 8192) == pytest.approx(388e-6 + 127e-6, rel=0.05)
    assert np.all(kernels.recurrent_decode_s(QWEN, [0.0]) == 0.0)


def test_another_delta_rule_does_not_stand_for_one() -> None:
    """A100 has a table of gated delta nets only: Kimi's rule is by physics there, its convolution by the measured channels."""
    kernels = load_kernel_model("a100-sxm-80gb", "sglang")
    plain = Roofline.of_device(load_device("a100-sxm-80gb"), "sglang")
    rule = Recurrence("kda", 32, 32, 128, 128, KIMI.state_bytes, 0)
    assert kernels.recurrent_context_s(rule, 4096) == pytest.approx(plain.recurrent_context_s(rule, 4096))
    assert kernels.recurrent_decode_s(KIMI, 8) != pytest.approx(plain.recurrent_decode_s(KIMI, 8))


def test_a_sparse_layer_takes_what_its_table_leaves_beside_the_projections() -> None:
    kernels = load_kernel_model("h200-sxm-141gb", "vllm")
    beside = kernels.sparse_decode_s(SPARSE, [1, 32, 128], 4096)
    assert beside is not None
    products = sum(kernels.gemm_s("fp8_block", [1, 32, 128], n, k) for n, k in SPARSE.products)
    # between the tables' 8 and 128 heads on a device: 172 and 225 us at 32 rows, 221 and 344 at 128
    assert 165e-6 < (beside + products)[1] < 225e-6
    assert 215e-6 < (beside + products)[2] < 344e-6
    nobody = SparseLayer("dsa-DeepSeek-V3.2", "bf16", "bf16", 16, ())
    assert load_kernel_model("a100-sxm-80gb", "vllm").sparse_decode_s(nobody, 1, 4096) is None


def test_prompts_that_a_benchmark_launched_from_the_host_are_served_from_another_table() -> None:
    """SGLang's prompts of 512 tokens through such a layer took 800 us whatever the heads; the others' 200 with projections."""
    for name in ("b200-sxm-180gb", "h200-sxm-141gb"):
        found = load_kernel_model(name, "sglang").sparse_context_s(SPARSE, 512, 0)
        assert found is not None
        assert 5e-5 < found < 3e-4
    # what outlasts the launches is its own kernels' work: 4,600 us of MiniMax-M3's at 16,384 tokens, of vLLM's 1,000
    layer = SparseLayer("msa-MiniMax-M3", "bf16", "bf16", 8, ())
    long = load_kernel_model("b200-sxm-180gb", "sglang").sparse_context_s(layer, 16384, 0)
    assert long is not None
    assert 3e-3 < long < 5.5e-3


def versions() -> pd.DataFrame:
    rows = [("0.24.0", 1, 9.0), ("0.31.0", 1, 7.0), ("0.24.0", 2, 5.0), ("dev-1aa", 3, 1.0)]
    return pd.DataFrame(rows, columns=["framework_version", "m", "latency_us"])


def test_of_several_versions_the_newest_that_timed_a_cell_is_fitted() -> None:
    assert version_of("1.3.0rc20") < version_of("1.3.0rc23") < version_of("1.10")
    found = newest(versions(), ["m"])
    assert dict(zip(found.m, found.latency_us, strict=True)) == {1: 7.0, 2: 5.0}


def test_versions_that_are_no_better_evidence_are_left_out() -> None:
    frame = versions().iloc[:3].assign(dtype="bfloat16")
    newer = frame.iloc[1:2].assign(dtype="fp8_block")
    found = fitted_versions(pd.concat([frame, newer]), "B200-SXM", "vllm", "gemm", ["dtype"])
    assert sorted(zip(found.dtype, found.framework_version, strict=True)) == [
        ("bfloat16", "0.24.0"),
        ("bfloat16", "0.24.0"),
        ("fp8_block", "0.31.0"),
    ]
    assert len(fitted_versions(frame, "B300-SXM", "vllm", "gemm", ["dtype"])) == 3


@needs_tables
def test_products_timed_eagerly_are_not_fitted() -> None:
    frame = op_rows("gemm", TABLES, "L40S", "vllm")
    assert frame is not None
    assert set(frame["dtype"].astype(str)) == {"bfloat16", "fp8"}
    group = load_kernel_model("l40s-48gb", "vllm").groups["gemm/fp8_block"]
    assert (group["rows"], group["serving_from"]) == (0, "trtllm")


@needs_tables
@pytest.mark.parametrize(
    ("op", "gpu", "framework", "kind", "bound_pct"),
    [
        ("recurrence_decode", "H100-SXM", "vllm", "gdn", 1.5),
        ("recurrence_context", "H100-SXM", "vllm", "gdn", 5.0),
        pytest.param("recurrence_decode", "B300-SXM", "sglang", "kda", 10.0, marks=pytest.mark.slow),
        pytest.param("convolution_context", "B200-SXM", "vllm", "gdn", 3.0, marks=pytest.mark.slow),
        pytest.param("sparse_decode", "H200-SXM", "vllm", "dsa-DeepSeek-V3.2", 3.0, marks=pytest.mark.slow),
        pytest.param("sparse_decode", "B200-SXM", "vllm", "msa-MiniMax-M3", 11.0, marks=pytest.mark.slow),
        pytest.param("sparse_context", "GB200", "vllm", "dsa-GLM-5", 11.0, marks=pytest.mark.slow),
    ],
)
def test_heads_that_a_fit_never_saw(op: str, gpu: str, framework: str, kind: str, bound_pct: float) -> None:
    """The error of a group's first format on heads kept out of the fit."""
    frame = op_rows(op, TABLES, gpu, framework)
    assert frame is not None
    formats, part = next(x for x in slices(frame, OPS[op]) if x[0][0] == kind)
    error = held_out_error(op, formats, part, PEAKS[DEVICES[gpu]])
    assert error is not None
    assert error < bound_pct


@needs_tables
@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "gpu", "framework", "fmt", "bound_pct"),
    [
        ("gemm", "B300-SXM", "trtllm", "bfloat16", 6.0),
        ("gemm", "GB200", "vllm", "fp8", 4.0),
        ("gemm", "H200-SXM", "vllm", "bfloat16", 4.0),
        ("attention_decode", "B300-SXM", "vllm", "bfloat16", 3.5),
        ("attention_context", "H200-SXM", "vllm", "bfloat16", 5.0),
        ("moe", "B300-SXM", "vllm", "fp8_block", 8.0),
    ],
)
def test_shapes_that_a_fit_never_saw(op: str, gpu: str, framework: str, fmt: str, bound_pct: float) -> None:
    frame = op_rows(op, TABLES, gpu, framework)
    assert frame is not None
    formats, part = next(x for x in slices(frame, OPS[op]) if x[0][0] == fmt)
    error = held_out_error(op, formats, part, PEAKS[DEVICES[gpu]])
    assert error is not None
    assert error < bound_pct


@pytest.mark.parametrize(("device", "kv", "timed_us"), [("h200-sxm-141gb", "bf16", 2627.0), ("b200-sxm-180gb", "fp8", None)])
def test_prompts_of_sparse_attention_take_what_their_table_says(device: str, kv: str, timed_us: float | None) -> None:
    """Layers of GLM-5 under SGLang, 8 heads, 4,096 tokens; twice the prompt takes 1.5 to 2.5 times as long."""
    layer = SparseLayer("dsa-GLM-5", "fp8_block", kv, 8, ())
    ops = operations_of(load_device(device), "sglang")
    four, eight = (float(np.asarray(ops.sparse_context_s(layer, tokens, 0))) for tokens in (4096, 8192))
    assert 1.5 < eight / four < 2.5
    if timed_us is not None:
        assert four == pytest.approx(1e-6 * timed_us, rel=0.2)


def test_latents_of_rows_run_on_tritons_kernels_where_hardware_has_no_others() -> None:
    """vLLM has no table of them on RTX PRO 6000; SGLang's kernel is its kin, TensorRT-LLM's takes 20 times as long there."""
    long = ("bf16", "bf16", 16, 1, 32000)
    times = {name: float(operations_of(load_device("rtx-pro-6000-96gb"), name).mla_decode_s(*long)) for name in TABLED}
    assert times["vllm"] == times["sglang"] < 0.05 * times["trtllm"]


def test_experts_that_a_table_lacks_are_those_of_the_same_kernels_elsewhere() -> None:
    """Four bits of GB200 are B200's; FP8 by tensor under SGLang is its blocks' Triton, or vLLM's kernel of the same name."""
    layer = (2048, 768, 8, 128, 1, 1, np.array([1.0, 64.0, 4096.0]))
    four = {name: operations_of(load_device(name), "vllm").moe_s("int4_wo", *layer) for name in ("gb200-186gb", "b200-sxm-180gb")}
    assert four["gb200-186gb"] == pytest.approx(four["b200-sxm-180gb"], rel=0.15)
    hopper, stacked = (operations_of(load_device(name), "sglang") for name in ("h100-sxm-80gb", "b200-sxm-180gb"))
    assert hopper.moe_s("fp8", *layer, kernel="triton") == pytest.approx(
        hopper.moe_s("fp8_block", *layer, kernel="sglang_fused_moe_triton")
    )
    vllm = operations_of(load_device("b200-sxm-180gb"), "vllm")
    theirs = vllm.moe_s("fp8", *layer, kernel=vllm.expert_backend("fp8", "trtllm"))
    assert stacked.moe_s("fp8", *layer, kernel="trtllm") == pytest.approx(theirs)
    blocks = "those in fp8_block of sglang's table", hopper.held_out_error["moe/fp8_block"]
    assert hopper.lent_experts("fp8", "triton") == blocks
    where = operations_of(load_device("gb200-186gb"), "vllm").lent_experts("int4")
    assert where is not None
    assert where[0].endswith("on b200-sxm-180gb")


def test_what_lends_experts_is_what_prices_them() -> None:
    """SGLang's FP8 by tensor on GB200: Triton's are its own blocks', TensorRT-LLM's vLLM's; its int4 is B200's of each kind."""
    layer = (7168, 2048, 8, 384, 8, 1, np.array([1.0, 64.0, 4096.0]))
    sister, lender = (operations_of(load_device(name), "sglang") for name in ("gb200-186gb", "b200-sxm-180gb"))
    told = {word: sister.lent_experts("fp8", word) for word in ("triton", "trtllm")}
    assert told["triton"] == ("those in fp8_block of sglang's table", sister.held_out_error["moe/fp8_block"])
    assert told["trtllm"] is not None
    assert told["trtllm"][0] == "those in fp8 of vllm's table"
    own = sister.moe_s("int4_wo", *layer, kernel="trtllm")
    assert own == pytest.approx(lender.moe_s("int4_wo", *layer), rel=0.15)
    assert own[-1] < 0.7 * sister.moe_s("int4_wo", *layer)[-1]  # Marlin's
    there = "int4_wo of sglang's table on b200-sxm-180gb"
    assert sister.lent_experts("int4", "trtllm") == (f"those in {there}", lender.held_out_error["moe/int4_wo"])
    marlin = sister.lent_experts("int4", "vllm/marlin")
    assert marlin is not None
    assert marlin[0] == "Marlin's in int4_wo of vllm's table on b200-sxm-180gb"
