"""Pools of SGLang's layers with windows beside that of the others."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.schedulers.prefill_first_windowed import WindowedPrefillFirstScheduler
from tests.engine_models.test_declarations import prepared


def kv_tokens(model: str, version: str = "0.5.14", hardware: str = "h100-sxm-80gb", **flags: Any) -> tuple[int, int]:
    plan = prepared(engine=f"sglang@{version}", model=model, hardware=hardware, tensor_parallel=2, engine_args=flags).plan
    return plan.memory.kv_bytes_per_token, plan.limits.kv_tokens


def test_layers_with_windows_keep_four_tokens_of_five() -> None:
    # gpt-oss-120b on two GPUs: 36 layers, every second with a window; 4 KV heads a rank x 2 x 64 values of 2 bytes a layer
    layer = 4 * 2 * 64 * 2
    pooled, tokens = kv_tokens("openai/gpt-oss-120b")
    assert pooled == 18 * layer + round(0.8 * 18 * layer + 0.5)
    whole, fewer = kv_tokens("openai/gpt-oss-120b", disable_hybrid_swa_memory=True)
    assert whole == 36 * layer
    assert tokens == pytest.approx(fewer / 0.9, rel=1e-4)
    assert kv_tokens("openai/gpt-oss-120b", swa_full_tokens_ratio=0.25)[0] == 18 * layer + 18 * layer // 4


def test_gemma_takes_what_a_server_has_said() -> None:
    # a public log of Gemma-4-26B-A4B: 5 layers of 4,096 bytes a token, 25 with windows of 8,192, a ratio of 0.8, 184,320 together
    memory = prepared(engine="sglang@0.5.14", model="google/gemma-4-26B-A4B-it", hardware="h100-sxm-80gb").plan.memory
    assert memory.kv_bytes_per_token == 184_320


@pytest.mark.parametrize(
    ("model", "version", "hardware", "flags", "pooled"),
    [
        ("openai/gpt-oss-120b", "0.5.7", "h100-sxm-80gb", {}, False),
        ("openai/gpt-oss-120b", "0.5.8", "h100-sxm-80gb", {}, True),
        ("openai/gpt-oss-120b", "0.5.9", "b200-sxm-180gb", {}, False),
        ("openai/gpt-oss-120b", "0.5.10", "b200-sxm-180gb", {}, True),
        ("openai/gpt-oss-120b", "0.5.9", "b200-sxm-180gb", {"attention_backend": "triton"}, True),
        ("google/gemma-4-26B-A4B-it", "0.5.10", "h100-sxm-80gb", {}, False),
        ("google/gemma-3-27b-it", "0.5.14", "h100-sxm-80gb", {}, False),
    ],
)
def test_pools_come_with_releases_and_kernels(
    model: str, version: str, hardware: str, flags: dict[str, Any], pooled: bool
) -> None:
    whole = kv_tokens(model, version, hardware, disable_hybrid_swa_memory=True, **flags)
    assert (kv_tokens(model, version, hardware, **flags) != whole) is pooled


def test_steps_follow_both_pools() -> None:
    # a window of 128 is counted without the token that sees it; Llama 4's chunks are whole
    for model, span in (("openai/gpt-oss-120b", 127), ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 8192)):
        ready = prepared(engine="sglang@0.5.23", model=model, hardware="h200-sxm-141gb", tensor_parallel=4)
        scheduler = ready.plan.scheduler("jump")
        assert isinstance(scheduler, WindowedPrefillFirstScheduler)
        assert scheduler.pools.span_tokens == span
        assert scheduler.pools.window_capacity == pytest.approx(0.8 * ready.plan.limits.kv_tokens, abs=1)
        assert not any("never runs short" in note for note in ready.plan.notes)
    whole = {"disable_hybrid_swa_memory": True}
    plain = prepared(engine="sglang@0.5.23", model="openai/gpt-oss-120b", tensor_parallel=2, engine_args=whole).plan
    assert not isinstance(plain.scheduler("jump"), WindowedPrefillFirstScheduler)
