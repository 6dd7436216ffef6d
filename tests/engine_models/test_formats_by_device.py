"""Formats that stand between others: what runs in the place of what, by device, and where they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.model.architecture import weight_bytes
from engine_models.model.catalogue import catalogue
from engine_models.model.formats import format_named
from engine_models.model.hf_config import load_architecture
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate

DENSE, EXPERTS = "Qwen/Qwen3-8B", "Qwen/Qwen3-30B-A3B"


def served(model: str, hardware: str, weights: str, engine: str = "vllm") -> dict[str, Any]:
    deployment = {"engine": engine, "hardware": hardware, "weights": weights}
    lengths = {"prompt_tokens": {"kind": "constant", "value": 2048}, "output_tokens": {"kind": "constant", "value": 16}}
    load = {"arrivals": {"kind": "batch"}, "requests": 4, **lengths}
    result: dict[str, Any] = simulate(load_scenario({"model": model, "deployment": deployment, "workload": load})).result
    return result


def times(*args: str, **kwargs: str) -> tuple[float, float]:
    metrics = served(*args, **kwargs)["metrics"]
    return metrics["tpot_ms"]["mean"], metrics["ttft_ms"]["mean"]


@pytest.mark.parametrize("model", [DENSE, EXPERTS])
def test_marlin_widens_what_has_no_activations_in_it(model: str) -> None:
    """On Hopper nothing multiplies nvfp4 or mxfp8: with and without activations in the file the same kernels run."""
    assert times(model, "h100-sxm-80gb", "nvfp4a16") == times(model, "h100-sxm-80gb", "nvfp4")
    assert times(model, "h100-sxm-80gb", "mxfp8") == times(model, "h100-sxm-80gb", "fp8a16")


def test_blackwell_multiplies_blocks_of_32() -> None:
    """As those of 128, by 3 % more bytes; not with weights alone."""
    step, prompts = times(DENSE, "b200-sxm-180gb", "mxfp8")
    blocks = times(DENSE, "b200-sxm-180gb", "fp8_block")
    assert (step, prompts) == pytest.approx(blocks, rel=0.05)
    assert prompts < 0.95 * times(DENSE, "b200-sxm-180gb", "fp8a16")[1]


def test_integers_of_four_bits_in_fp8_are_read_as_four_bits_and_computed_as_eight() -> None:
    step, prompts = times(DENSE, "h100-sxm-80gb", "w4afp8")
    assert step < 0.9 * times(DENSE, "h100-sxm-80gb", "fp8")[0]
    assert prompts == pytest.approx(times(DENSE, "h100-sxm-80gb", "fp8")[1], rel=0.1)


def test_what_no_kernel_was_timed_of_is_said() -> None:
    said = served(EXPERTS, "h100-sxm-80gb", "w4afp8", engine="sglang")
    assert "weights: no expert kernels in w4afp8 were measured on h100-sxm-80gb" in said["extrapolation"]["axes"]


@pytest.mark.parametrize(
    ("engine", "hardware", "weights"),
    [
        ("sglang", "h100-sxm-80gb", "mxfp8"),
        ("sglang", "b200-sxm-180gb", "w4afp8"),
        ("vllm", "b200-sxm-180gb", "w4afp8"),
        ("vllm", "mi300x-192gb", "mxfp8"),
        ("trtllm", "b200-sxm-180gb", "mxfp8"),
        ("vllm", "v100-sxm-32gb", "nvfp4a16"),
    ],
)
def test_formats_without_a_kernel_on_a_device_are_refused(engine: str, hardware: str, weights: str) -> None:
    with pytest.raises(InputError, match=f"does not load weights in {weights}"):
        served(DENSE, hardware, weights, engine=engine)


def test_a_format_that_a_version_dropped_is_refused_since() -> None:
    with pytest.raises(InputError, match=r"does not load weights in nf4 since 0\.28") as error:
        served(DENSE, "h100-sxm-80gb", "nf4")
    assert "nf4" not in str(error.value.mend).partition(", or an engine")[0]
    assert served(DENSE, "h100-sxm-80gb", "nf4", engine="vllm@0.27.1")["metrics"]["tpot_ms"]["mean"] > 0


def test_bytes_of_weights_with_their_scales() -> None:
    arch = load_architecture(DENSE)
    per_weight = {
        name: weight_bytes(arch, format_named(name)) - weight_bytes(arch, format_named("int8"))
        for name in ("mxfp8", "w4afp8", "fp8a16", "nvfp4a16")
    }
    matrices = weight_bytes(arch, format_named("bf16")) - weight_bytes(arch, format_named("int8"))  # one byte of each
    assert per_weight["mxfp8"] / matrices == pytest.approx(1 / 32, rel=1e-6)
    assert per_weight["w4afp8"] / matrices == pytest.approx(4.125 / 8 - 1, rel=1e-6)
    assert per_weight["nvfp4a16"] / matrices == pytest.approx(4.5 / 8 - 1, rel=1e-6)
    assert per_weight["fp8a16"] == 0


@pytest.mark.parametrize(
    ("engine", "hardware", "stated", "kept"),
    [
        ("vllm", "b200-sxm-180gb", "NVFP4", "nvfp4"),
        ("vllm", "h100-sxm-80gb", "NVFP4", "bf16"),  # no arithmetic
        ("sglang", "b200-sxm-180gb", "NVFP4", "bf16"),  # its `kv_cache_dtype.py` knows FP8 alone
        ("sglang", "b200-sxm-180gb", "FP8", "fp8"),
        ("vllm@0.20.0", "b200-sxm-180gb", "NVFP4", "bf16"),
    ],
)
def test_the_cache_that_a_checkpoint_states(engine: str, hardware: str, stated: str, kept: str) -> None:
    quantization = {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": stated}
    shapes = {key: value for key, value in catalogue()[DENSE].items() if key not in ("source", "aliases")}
    model = {**shapes, "quantization_config": quantization}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 9, "output_tokens": 9}
    deployment = {"engine": engine, "hardware": hardware}
    prepared = prepare(load_scenario({"model": model, "deployment": deployment, "workload": load}))
    assert prepared.formats.kv_cache.name == kept


def test_parts_in_fp8_are_multiplied_so_beside_what_is_widened() -> None:
    """A checkpoint with attention in FP8 and MLPs in NVFP4 without activations: on Hopper Marlin takes the MLPs alone."""
    shapes = {key: value for key, value in catalogue()[DENSE].items() if key not in ("source", "aliases")}
    layers = {
        f"model.layers.{i}.{name}": {"quant_algo": algorithm}
        for i in range(36)
        for name, algorithm in (("self_attn.o_proj", "FP8"), ("mlp.down_proj", "W4A16_NVFP4"))
    }
    met = {}
    for attention in ("FP8", "W4A16_NVFP4"):
        listed = {name: {"quant_algo": attention} if "attn" in name else said for name, said in layers.items()}
        quantization = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": listed}
        load = {"arrivals": {"kind": "batch"}, "requests": 4, "prompt_tokens": 2048, "output_tokens": 2}
        deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
        model = {**shapes, "quantization_config": quantization}
        result = simulate(load_scenario({"model": model, "deployment": deployment, "workload": load})).result
        met[attention] = result["metrics"]["ttft_ms"]["mean"]
    assert met["FP8"] < 0.95 * met["W4A16_NVFP4"]
