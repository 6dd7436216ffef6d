"""How other suites may spell engines, versions, hardware, models and number formats, and what becomes of each row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.validation.engines import engine_release
from simulator.validation.evidence import model_class
from simulator.validation.runs import validate_runs
from simulator.validation.spellings import (
    Unplayable,
    engine_name,
    engine_variant,
    hardware_name,
    weights_format,
)
from simulator.validation.suite import pool_of


def row(**more: Any) -> dict[str, Any]:
    base = {
        "id": "x",
        "engine": "vllm",
        "hardware": "H100-SXM-80GB",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "precision": "bf16",
        "concurrency": 2.0,
        "num_requests": 4.0,
        "prompt_tokens_mean": 128.0,
        "output_tokens_mean": 16.0,
        "tpot_mean_ms": 10.0,
    }
    return base | more


@pytest.mark.parametrize(
    ("stated", "release"),
    [
        ("0.15.1", "0.15.1"),
        ("v0.12.0", "0.12.0"),
        ("v0.19.0-cu130", "0.19.0"),
        ("0.15.1+cu128", "0.15.1"),
        ("vLLM 0.12.0", "0.12.0"),
        ("0.11.1rc1.dev", "0.11.1"),
        ("0.10.2", "0.10.2"),
        ("0.8.5.post1", "0.8.5"),
        ("latest", ""),
        ("nightly", ""),
    ],
)
def test_versions_of_vllm(stated: str, release: str) -> None:
    assert engine_release(row(engine_version=stated)) == release


def test_a_version_beside_the_engine_counts() -> None:
    assert engine_release(row(engine="vLLM 0.12.0")) == "0.12.0"
    assert engine_name(row(engine="vllm-openai")) == "vllm"
    assert engine_variant(row(engine="vllm V1")) is None
    assert engine_variant(row(engine="vllm (Splitwise fork, 2023)")) is not None


def test_engines_of_another_build_are_left_out() -> None:
    with pytest.raises(Unplayable, match=r"vLLM 0\.5\.4 is older"):
        engine_release(row(engine_version="0.5.4"))
    with pytest.raises(Unplayable, match=r"SGLang 0\.3"):
        engine_release(row(engine="sglang", engine_version="0.3.6"))
    assert engine_release(row(engine="sglang", engine_version="0.4.6.post5")) == ""
    assert engine_release(row(engine="SGLang", engine_version="v0.5.8.post1")) == "0.5.8"


@pytest.mark.parametrize(
    ("spelling", "device"),
    [
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("A100-SXM4-80G", "a100-sxm-80gb"),
        ("A100 80GB", "a100-sxm-80gb"),
        ("A100 PCIe", "a100-pcie-80gb"),
        ("A100-PCIE-40GB", "a100-pcie-40gb"),
        ("A800-SXM4-80GB", "a800-sxm-80gb"),
        ("NVIDIA L40S", "l40s-48gb"),
        ("NVIDIA A10G", "a10g-24gb"),
        ("H100 NVL", "h100-nvl-94gb"),
        ("NVIDIA H100 PCIe", "h100-pcie-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("8x NVIDIA H100 80GB HBM3", "h100-sxm-80gb"),
        ("8xH200", "h200-sxm-141gb"),
        ("H100x8", "h100-sxm-80gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090-24gb"),
        ("MI300X", "mi300x-192gb"),
        ("gb200_sxm", "gb200-186gb"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
    ],
)
def test_hardware(spelling: str, device: str) -> None:
    assert pool_of(row(hardware=spelling))["hardware"] == device


def test_a_count_is_no_part_of_a_name() -> None:
    assert hardware_name(row(hardware="RTX 4090")) == "RTX 4090"
    assert hardware_name(row(hardware="4 x L40S")) == "L40S"


@pytest.mark.parametrize(
    ("label", "stored", "meant"),
    [
        ("fp16", None, "bf16"),
        ("bf16/fp16 (FP16 label)", None, "bf16"),
        (None, None, "bf16"),
        (None, "awq", "awq"),
        ("fp16", "awq", "awq"),
        ("bf16", "mxfp4", "mxfp4"),
        ("w8a8", None, "int8"),
        ("W8A8", "fp8", "fp8"),
        ("w8a8_int8", None, "int8"),
        ("w8a8-fp8", None, "fp8"),
        ("INT8", "int8", "int8"),
        ("W8A16", None, "int8_wo"),
        ("w4a16", "gptq", "gptq"),
        ("AWQ", None, "awq"),
        ("int4", "awq", "awq"),
        ("fp8", "fp8_block", "fp8_block"),
        ("fp8_block", None, "fp8_block"),
        ("FP8 (block)", None, "fp8_block"),
        ("FP8-dynamic", None, "fp8"),
        ("fp8 (checkpoint)", "fp8_block", "fp8_block"),
        ("fp4", "mxfp4", "mxfp4"),
        ("fp4", "fp8_block", "nvfp4"),
        ("mixed", "fp8", "fp8"),
    ],
)
def test_formats(label: str | None, stored: str | None, meant: str) -> None:
    told = {} if label is None else {"precision": label}
    bare = {key: value for key, value in row().items() if key != "precision"}
    assert weights_format(bare | told, stored) == meant


@pytest.mark.parametrize("label", ["mixed", "w4a8", "gguf q4_k_m", "8-bit", "fp32"])
def test_formats_that_say_too_little_are_left_out(label: str) -> None:
    with pytest.raises(Unplayable, match="is unknown"):
        weights_format(row(precision=label), None)


def test_a_quantized_checkpoint_is_no_dense_one() -> None:
    assert model_class(row()) == "dense"
    assert model_class(row(precision="w4a16")) == "quantized"
    assert model_class(row(model="hugging-quants/Meta-Llama-3.1-8B-Instruct-AWQ-INT4", precision="fp16")) == "quantized"
    assert model_class(row(precision="mixed")) == "unknown"


def test_several_gpus_without_a_split_are_left_out() -> None:
    with pytest.raises(Unplayable, match="8 GPUs, and not how"):
        pool_of(row(gpus=8.0))
    assert pool_of(row(gpus=8.0, tp=8.0))["tensor_parallel"] == 8
    assert pool_of(row(gpus=1.0))["tensor_parallel"] == 1


def test_a_suite_of_other_hardware_models_and_formats_is_replayed_or_answered(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        row(id="a100 awq", hardware="NVIDIA A100-SXM4-80GB", model="Qwen/Qwen2.5-7B-Instruct-AWQ", precision="fp16"),
        row(id="a100 int8", hardware="A100 80GB", precision="w8a8", engine_version="0.8.5"),
        row(id="a100 fp8 runs weight-only", hardware="A100", precision="fp8"),
        row(id="l40s fp8", hardware="L40S", model="Qwen/Qwen3-8B-FP8", precision=None, engine_version="v0.12.0"),
        row(id="hopper nvfp4", model="nvidia/Qwen3-32B-NVFP4", precision="nvfp4"),
        row(id="gpt-oss", hardware="H100 NVL", model="gpt-oss-20b", precision="bf16", engine_version="nightly"),
        row(id="hybrid", hardware="H200", model="Qwen3-Next-80B-A3B-Instruct", tp=2.0),
        row(id="sglang", engine="SGLang", hardware="H100", model="google/gemma-2-9b-it", engine_version="0.4.6"),
        row(id="too old", engine_version="0.5.4"),
        row(id="unknown model", model="acme/Roadrunner-9B"),
        row(id="unknown device", hardware="Voodoo 2"),
        row(id="too large", model="meta-llama/Llama-3.1-405B"),
        row(id="uneven", model="Qwen3-32B", tp=3.0),
    ]
    names = sorted({key for each in rows for key in each})
    table = pa.Table.from_pylist([{name: each.get(name) for name in names} for each in rows])
    pq.write_table(table, tmp_path / "experiments.parquet")
    report = json.loads(json.dumps(validate_runs(tmp_path)))
    reasons = {entry["id"]: entry["reason"] for entry in report["skipped"]}
    assert {e["id"] for e in report["experiments"]} == {r["id"] for r in rows[:8]}
    assert all(0.5 < e["predicted"] < 100 for e in report["experiments"])
    assert set(reasons) == {r["id"] for r in rows[8:]}
    assert not any("internal error" in reason or "cannot be read" in reason for reason in reasons.values())
    assert "is older than the modelled versions" in reasons["too old"]
    assert "does not fit" in reasons["too large"]
    assert "does not divide" in reasons["uneven"]
