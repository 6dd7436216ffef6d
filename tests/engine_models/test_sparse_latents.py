"""What an entry of the cache of sparse latent attention takes in 8 bits, by engine, version, GPU and flag."""

from __future__ import annotations

from typing import Any

import pytest

from simulator import load_scenario
from simulator.prepare import prepare

INDEX_BYTES = 132
"""Of an indexer's key: 128 values of 8 bits and a float32 scale."""


def entry_bytes(engine: str, hardware: str, flags: dict[str, Any], ranks: int = 8) -> float:
    """Bytes of a token of DeepSeek-V3.2 in one layer, the indexer's key left out."""
    deployment = {"engine": engine, "hardware": hardware, "tensor_parallel": ranks, "engine_args": flags}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 8, "output_tokens": 1}
    found = prepare(load_scenario({"model": "deepseek-ai/DeepSeek-V3.2", "deployment": deployment, "workload": load}))
    assert found.formats.kv_cache.name == "fp8"
    return found.plan.memory.kv_bytes / found.plan.limits.kv_tokens / found.arch.layers - INDEX_BYTES


@pytest.mark.parametrize(
    ("engine", "hardware", "flags", "wanted"),
    [
        ("vllm@0.33.0", "b200-sxm-180gb", {"kv_cache_dtype": "fp8"}, 576),
        ("vllm@0.33.0", "h200-sxm-141gb", {"kv_cache_dtype": "fp8"}, 656),
        ("vllm@0.33.0", "b200-sxm-180gb", {"kv_cache_dtype": "fp8_ds_mla"}, 656),
        ("vllm@0.33.0", "b200-sxm-180gb", {"kv_cache_dtype": "fp8", "attention_backend": "FLASHMLA_SPARSE"}, 656),
        ("vllm@0.18.0", "b200-sxm-180gb", {"kv_cache_dtype": "fp8"}, 576),  # 16 heads on each rank
        ("vllm@0.16.0", "b200-sxm-180gb", {"kv_cache_dtype": "fp8"}, 656),
        ("sglang@0.5.10", "b200-sxm-180gb", {}, 576),
        ("sglang@0.5.9", "b200-sxm-180gb", {}, 656),
        ("sglang@0.5.23", "h200-sxm-141gb", {"kv_cache_dtype": "fp8_e4m3"}, 656),
        ("trtllm", "h200-sxm-141gb", {"kv_cache_config": {"dtype": "fp8"}}, 576),
    ],
)
def test_an_entry_takes_what_the_kernels_keep(engine: str, hardware: str, flags: dict[str, Any], wanted: int) -> None:
    assert entry_bytes(engine, hardware, flags) == pytest.approx(wanted, abs=1)


def test_more_heads_a_rank_wait_for_the_later_rule() -> None:
    """DeepSeek-V3.2 on four ranks has 32 heads on each."""
    fp8 = {"kv_cache_dtype": "fp8"}
    found = [entry_bytes(f"vllm@{version}", "b300-sxm-288gb", fp8, ranks=4) for version in ("0.18.0", "0.19.0")]
    assert found == pytest.approx([656, 576], abs=1)
