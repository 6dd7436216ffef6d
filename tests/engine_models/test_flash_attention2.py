"""FlashAttention 2: decoding rows beside a prompt, and rows of unequal length."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_models.cost import flash_attention2, small_tiles
from engine_models.cost.terms import Formats, HostOverhead
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from hardware_profiles.device import load_device
from hardware_profiles.kernel_model import KernelModel, load_kernel_model
from tests.step_times import step_time

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
BF16 = Formats(format_named("bf16"), format_named("bf16"), format_named("bf16"))
A100 = load_kernel_model("a100-sxm-80gb", "vllm")


@pytest.mark.parametrize(
    ("device", "served"),
    [
        ("a100-sxm-80gb", True),
        ("a10g-24gb", True),
        ("l40s-48gb", True),
        ("rtx-pro-6000-96gb", True),
        ("h100-sxm-80gb", False),
        ("b200-sxm-180gb", False),
        ("mi300x-192gb", False),
    ],
)
def test_devices_that_flash_attention_2_serves(device: str, served: bool) -> None:
    assert flash_attention2.serves(load_device(device)) is served


def beside(
    kernels: KernelModel, heads: int, kv_heads: int, rows: float, context: float
) -> tuple[float, float]:
    """Times of the rows alone and beside a prompt, the equal rows alone as the kernel model has them."""
    r, c = np.array([rows]), np.array([context])
    equal = kernels.decode_attention_s("bf16", heads, kv_heads, 128, 0, r, c)
    alone, together = flash_attention2.decode_s(kernels, "bf16", heads, kv_heads, 128, 0, r, c, equal)
    return float(alone[0]), float(together[0])


def test_without_shared_kv_heads_a_prompt_changes_nothing() -> None:
    alone, together = beside(A100, 32, 32, 48, 700)
    assert together == alone


def test_unpacked_heads_cost_by_query_heads_not_by_kv_heads() -> None:
    # 64 rows of 1,000 tokens on A100 are bound by the tiles, so that 4 or 8 KV heads below 32 query heads take the same
    _, few = beside(A100, 32, 4, 64, 1000)
    alone, more = beside(A100, 32, 8, 64, 1000)
    assert few == pytest.approx(more, rel=0.15)
    assert more > 1.7 * alone


@given(st.integers(1, 256), st.integers(16, 16000), st.sampled_from([2, 4, 8]))
def test_a_prompt_never_makes_decoding_cheaper(rows: int, context: int, group: int) -> None:
    alone, together = beside(A100, 32, 32 // group, float(rows), float(context))
    assert together >= alone > 0


@given(st.floats(1.0, 1e5))
def test_the_tail_is_bounded_and_fades(blocks: float) -> None:
    factor = float(flash_attention2.tail(np.array([blocks]), 108.0)[0])
    assert 1.0 <= factor <= 1.0 + flash_attention2.TAIL_BLOCKS / flash_attention2.TAIL_FROM
    if blocks > 108 * flash_attention2.TAIL_TO:
        assert factor == pytest.approx(1.0 + flash_attention2.TAIL_BLOCKS * 108.0 / blocks)


def test_only_steps_with_a_prompt_pay() -> None:
    arch = load_architecture("meta-llama/Llama-3.1-8B")

    def step(fixed: bool, chunk: int) -> float:
        times = step_time(
            arch, A100, BF16, HostOverhead(0.0, 0.0), max_step_tokens=2048, max_rows=64, max_context_tokens=4096,
            fixed_grid_attention=fixed,
        )  # fmt: skip
        batch = Batch(0, tokens=48 + chunk, decode_rows=48, decode_tokens=48, decode_kv_tokens=48 * 1000)
        if chunk:
            batch.prefill.append((chunk, 0))
        return times.step_s((batch,))[0]

    mixed = step(True, 256) - step(False, 256)
    pure = step(True, 0) - step(False, 0)
    assert mixed > 5e-3  # 32 layers, 48 rows of 1,000 tokens
    assert 0 < pure < 0.1 * mixed  # the tail of unequal rows only


def test_rows_with_drafts_are_unpacked_in_every_step() -> None:
    arch = load_architecture("meta-llama/Llama-3.1-8B")

    def step_s(fixed: bool, queries: int) -> float:
        times = step_time(
            arch, A100, BF16, HostOverhead(0.0, 0.0), max_step_tokens=2048, max_rows=64, max_context_tokens=4096,
            query_tokens=queries, sampled_tokens=queries, fixed_grid_attention=fixed,
        )  # fmt: skip
        return float(times.run_s((Batch(0, 48, 48, 48 * 1000, tokens=48),), 1)[0])

    assert step_s(True, 4) - step_s(False, 4) > 2e-3
    assert step_s(True, 1) - step_s(False, 1) < 1e-3


def test_mixed_batches_as_measured() -> None:
    """Attention of mixed batches of LLMServingSim on two GPUs, given its own times of prompt and rows alone."""
    path = SHARED / "data" / "kernels" / "llmservingsim_attention.parquet"
    if not path.is_file():
        pytest.skip("no measured attention beside the checkout")
    pd = pytest.importorskip("pandas")
    frame = pd.read_parquet(path)
    frame = frame[frame["method"].astype(str).str.startswith("vllm")]
    # RTX 4090 has no kernel tables of its own: its longest measured prompt gives the rate, as LONG_PROMPT_TOKENS would
    prompt_s = 2.0 * 32 * 128 * 8192 * 8193 / 142e12
    rtx_4090 = SimpleNamespace(
        peaks=SimpleNamespace(multiprocessors=128, l2_bytes=75.5e6),
        prefill_attention_s=lambda *_: np.array([prompt_s]),
    )
    measured: list[tuple[str, Any]] = [
        ("RTX-PRO-6000", load_kernel_model("rtx-pro-6000-96gb", "vllm")),
        ("RTX-4090", rtx_4090),
    ]
    for gpu, kernels in measured:
        for (model, tp), rows in frame[frame["gpu"] == gpu].groupby(["model", "tp"], observed=True):
            heads, kv_heads = int(rows["num_heads"].iloc[0]), int(rows["num_kv_heads"].iloc[0])
            alone = rows[rows["prefill_tokens"] == 0].set_index(["n_decode", "decode_kv_len"])["latency_us"]
            prompt = rows[rows["n_decode"] == 0].set_index(["prefill_tokens", "prefill_prior_kv"])[
                "latency_us"
            ]
            mixed = rows[
                (rows["n_decode"] >= 16)
                & rows["prefill_tokens"].between(1, 512)
                & (rows["decode_kv_len"] >= 256)
            ]
            mixed = mixed[mixed["prefill_prior_kv"] <= 2048]
            mixed = mixed.join(
                alone[~alone.index.duplicated()].rename("alone"), on=["n_decode", "decode_kv_len"]
            )
            mixed = mixed.join(
                prompt[~prompt.index.duplicated()].rename("prompt"), on=["prefill_tokens", "prefill_prior_kv"]
            )
            mixed = mixed.dropna(subset=["alone", "prompt"])
            _, together = flash_attention2.decode_s(
                kernels, "bf16", heads, kv_heads, 128, 0, mixed["n_decode"].to_numpy(float),
                mixed["decode_kv_len"].to_numpy(float), mixed["alone"].to_numpy(float) * 1e-6,
            )  # fmt: skip
            error = np.log((mixed["prompt"] + together * 1e6) / mixed["latency_us"])
            packed = np.log((mixed["prompt"] + mixed["alone"]) / mixed["latency_us"])
            assert abs(float(error.median())) < 0.15, (gpu, model, tp)
            assert float(error.abs().mean()) < 0.2 < 0.3 < float(packed.abs().mean()), (gpu, model, tp)


@pytest.mark.parametrize("device", ["a100-sxm-80gb", "l40s-48gb", "rtx-pro-6000-96gb"])
def test_a_thread_block_walks_its_context_as_fast_as_unpacked_decoding(device: str) -> None:
    """Without shared KV heads FlashAttention 2 packs nothing even for decoding rows alone: one block a head, as beside a prompt.

    The walk of one row is then measured on every device: 23, 19 and 20 ns a token.
    """
    kernels = load_kernel_model(device, "vllm")
    context = 16_383.0
    walked = float(kernels.decode_attention_s("bf16", 8, 8, 128, 0, 1.0, context)[()])
    rows, tokens = np.array([1.0]), np.array([context])
    _, together = flash_attention2.decode_s(kernels, "bf16", 8, 2, 128, 0, rows, tokens, np.array([1e-5]))
    assert float(together[0]) == pytest.approx(walked, rel=0.35)


def test_prompts_with_sinks_run_at_the_rate_of_small_tiles() -> None:
    """Triton's kernel with 16 rows a tile: 75 TFLOP/s on L40S and 106 on RTX PRO 6000 at 16,384 tokens, as tables have it."""
    new, none = np.array([16384.0]), np.array([0.0])
    for device, tflops in (("l40s-48gb", 74.8), ("rtx-pro-6000-96gb", 106.0)):
        seconds = small_tiles.prompt_s(load_kernel_model(device, "vllm"), 64, 192, 0, new, none)[0]
        assert 4 * 64 * 192 * 16384**2 / 2 / seconds / 1e12 == pytest.approx(tflops, rel=0.07)

    def chunk_s(fixed: bool) -> float:
        times = step_time(
            load_architecture("openai/gpt-oss-20b"), A100, BF16, HostOverhead(0.0, 0.0), max_step_tokens=2048, max_rows=4,
            max_context_tokens=40_000, fixed_grid_attention=fixed,
        )  # fmt: skip
        batch = Batch(0, tokens=2048)
        batch.prefill.append((2048, 30_000))
        return times.step_s((batch,))[0]

    pairs = 2048 * 30_000 + 2048**2 / 2
    assert chunk_s(True) - chunk_s(False) > 0.5 * 12 * 4 * 64 * 64 * pairs / (220 * 108 * 1.41e9)  # twelve layers see all
