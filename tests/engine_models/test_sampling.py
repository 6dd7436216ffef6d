"""Truncated sampling: what it costs, by vLLM's way of doing it, against published times."""

from __future__ import annotations

import numpy as np
import pytest

from engine_models.cost.overheads import load_overheads
from engine_models.cost.sampling import COMPARISON_S, Sampler, truncates, truncation_s
from hardware_profiles.device import load_device
from hardware_profiles.kernel_model import load_kernel_model
from hardware_profiles.kernels import operations_of

HOST = load_overheads("vllm").host


def cost_s(sampler: Sampler, device: str, rows: int, vocab: int = 131_072) -> float:
    found = truncation_s(
        sampler,
        load_kernel_model(device, "vllm"),
        np.array([float(rows)]),
        vocab,
        HOST.sort_step_s,
        HOST.sort_cycles_per_logit,
    )
    return float(found[0])


@pytest.mark.parametrize(
    ("sampler", "rows", "published_s", "within"),
    [
        # vLLM pull request 40376 on B200, vocabulary 131,072; the sort's constants come from runs on H100
        ("sort", 64, 1.074e-3, 0.25),
        ("sort", 128, 2.318e-3, 0.25),
        ("pivot", 128, 0.528e-3, 0.1),
        ("pivot", 512, 2.013e-3, 0.1),
        ("rejection", 128, 0.139e-3, 0.1),
        ("rejection", 512, 0.372e-3, 0.1),
    ],
)
def test_published_times_on_b200(sampler: Sampler, rows: int, published_s: float, within: float) -> None:
    assert cost_s(sampler, "b200-sxm-180gb", rows) == pytest.approx(published_s, rel=within)


def test_cores_of_a_cpu_sort_a_row_each() -> None:
    cpu = operations_of(load_device("xeon-8480-2s"), "vllm")  # 112 cores
    one, all_busy, twice = truncation_s("cores", cpu, np.array([1.0, 112.0, 113.0]), 131_072, 1.0, 1.0)
    assert one == all_busy == pytest.approx(131_072 * 17 * COMPARISON_S)
    assert twice == 2 * one


def test_newer_versions_sample_quicker() -> None:
    sort, pivot, rejection = (cost_s(s, "h100-sxm-80gb", 128) for s in ("sort", "pivot", "rejection"))
    assert sort > 3 * pivot > 6 * rejection > 0


def test_below_eight_rows_the_search_is_a_sort() -> None:
    assert cost_s("pivot", "h100-sxm-80gb", 7) == cost_s("sort", "h100-sxm-80gb", 7)
    assert cost_s("pivot", "h100-sxm-80gb", 8) != cost_s("sort", "h100-sxm-80gb", 8)


def test_a_sort_is_bound_by_memory_only_where_that_is_slow() -> None:
    # L40S has more multiprocessors at a higher clock than A100 and less than half of its bandwidth
    kernels = load_kernel_model("l40s-48gb", "vllm")
    traffic = float(kernels.elementwise_s(235.0 * 48 * 131_072))
    assert cost_s("sort", "l40s-48gb", 48) == pytest.approx(traffic + HOST.sort_step_s)
    kernels = load_kernel_model("a100-sxm-80gb", "vllm")
    assert (
        cost_s("sort", "a100-sxm-80gb", 48)
        > float(kernels.elementwise_s(235.0 * 48 * 131_072)) + HOST.sort_step_s
    )


def test_families_that_truncate() -> None:
    assert truncates("meta-llama/Llama-2-7b-hf")
    assert truncates("Qwen/Qwen3-14B")
    assert not truncates("mistralai/Mixtral-8x7B-v0.1")
    assert not truncates("codellama/CodeLlama-34b-Instruct-hf")
