"""Which kernels SGLang's experts run: by version, model, number format and GPU, or by its flag."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.cost.terms import Shard, experts
from simulator import load_scenario
from simulator.prepare import Prepared, prepare

GLM, QWEN, R1 = "zai-org/GLM-4.6", "Qwen/Qwen3-235B-A22B", "deepseek-ai/DeepSeek-R1"
WORKLOAD = {"arrivals": {"kind": "batch"}, "prompt_tokens": 100, "output_tokens": 10, "requests": 4}


def prepared(model: str, version: str, hardware: str, **pool: Any) -> Prepared:
    """A pool of eight devices of SGLang."""
    deployment = {"engine": f"sglang@{version}", "hardware": hardware, "tensor_parallel": 8, **pool}
    return prepare(load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD}))


@pytest.mark.parametrize(
    ("model", "version", "hardware", "pool", "wanted"),
    [
        (GLM, "0.5.6", "b200-sxm-180gb", {}, "triton"),
        (GLM, "0.5.20", "b200-sxm-180gb", {}, "trtllm"),
        (GLM, "0.5.20", "b200-sxm-180gb", {"weights": "fp8"}, "triton"),
        (QWEN, "0.5.5", "b200-sxm-180gb", {"weights": "fp8"}, "triton"),
        (QWEN, "0.5.6", "b200-sxm-180gb", {"weights": "fp8"}, "trtllm"),
        (QWEN, "0.5.6", "b200-sxm-180gb", {}, "triton"),
        (QWEN, "0.5.8", "b200-sxm-180gb", {}, "trtllm"),
        (QWEN, "0.5.8", "h200-sxm-141gb", {}, "triton"),
        (R1, "0.5.5", "b200-sxm-180gb", {}, "trtllm"),
        (R1, "0.5.5", "h200-sxm-141gb", {}, "triton"),
        (GLM, "0.5.6", "b200-sxm-180gb", {"weights": "nvfp4"}, "trtllm"),
        (GLM, "0.5.6", "h200-sxm-141gb", {"weights": "int4"}, "marlin"),
        (GLM, "0.5.6", "b200-sxm-180gb", {"engine_args": {"moe_runner_backend": "flashinfer_trtllm"}}, "trtllm"),
        (GLM, "0.5.6", "mi300x-192gb", {}, None),
        ("Qwen/Qwen3-32B", "0.5.6", "b200-sxm-180gb", {}, None),
    ],
)
def test_the_experts_kernels_follow_the_engines_rules(
    model: str, version: str, hardware: str, pool: dict[str, Any], wanted: str | None
) -> None:
    plan = prepared(model, version, hardware, **pool).plan
    assert plan.costs.terms.moe_backend == wanted
    said = [note for note in plan.notes if note.startswith("experts run on")]
    assert len(said) == (wanted is not None)


def test_triton_takes_longer_on_blackwell_at_few_rows() -> None:
    """The same model, device and format: of the tables' two backends the rule's one is priced."""
    slow, quick = (prepared(QWEN, version, "b200-sxm-180gb") for version in ("0.5.6", "0.5.8"))

    def experts_s(each: Prepared) -> float:
        costs = each.plan.costs
        shard = Shard(costs.arch, each.kernels, costs.formats, costs.parallel, costs.terms)
        return float(sum(values[0] for _, values in experts(shard, np.array([1]))))

    assert experts_s(slow) > 2 * experts_s(quick)


def test_a_backend_that_is_not_modelled_is_named() -> None:
    plan = prepared(GLM, "0.5.6", "b200-sxm-180gb", engine_args={"moe_runner_backend": "flashinfer_cutedsl"}).plan
    assert any("flashinfer_cutedsl" in text for text in plan.warnings)
    assert plan.costs.terms.moe_backend == "triton"
