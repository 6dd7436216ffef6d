"""OpenVINO: memory and defaults by device, flags and launch commands, refusals, and what its rules give in a scenario."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.openvino import plan
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.schedulers.one_list import OneListRules, OneListScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare
from simulator.run import simulate

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
XEON = "xeon-8592-1s"
GIB = 1 << 30


def request_of(
    model: str = LLAMA, device: str = XEON, kv: str = "int8", tp: int = 1, **flags: Any
) -> PoolRequest:
    found = load_device(device)
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named("nncf_int4_sym_128"), format_named("bf16"), format_named(kv)),
        device_name=device,
        device_memory_bytes=int(found.memory_bytes.value),
        device_kind=found.kind,
        device_cores=int(found.multiprocessors.value) if found.kind == "cpu" and found.multiprocessors else 0,
        tensor_parallel=tp,
        flags=flags,
    )


def prepared(**pool: Any) -> Prepared:
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "openvino", "hardware": XEON, **pool}
    return prepare(load_scenario({"model": LLAMA, "deployment": pool, "workload": load}))


def test_defaults_on_a_cpu() -> None:
    """The pool grows from nothing to what the weights leave; a token has 8-bit keys and values and two fp32 a head of each."""
    found = plan(request_of())
    scheduler, memory = found.scheduler("jump"), found.memory
    assert isinstance(scheduler, OneListScheduler)
    assert scheduler.rules == OneListRules(256, 256, workers=64)
    assert (scheduler.kv.capacity_blocks, scheduler.kv.most_blocks) == (0, memory.blocks)
    assert memory.kv_bytes_per_token == 32 * 8 * 2 * (128 + 8)
    assert memory.block_bytes == 32 * memory.kv_bytes_per_token
    assert found.prefix_caching
    assert (found.limits.rows, found.limits.step_tokens, found.limits.prompt_tokens) == (64, 256, 131_071)
    assert found.costs.terms.sampler == "cores"
    assert not plan(request_of(enable_prefix_caching=False)).prefix_caching


def test_defaults_on_an_intel_gpu() -> None:
    """Blocks of 16 tokens: keys with a scale a channel and block, values a head and token. No worker is counted."""
    found = plan(request_of(device="arc-pro-b60-24gb"))
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, OneListScheduler)
    assert scheduler.rules.workers is None
    assert scheduler.kv.block_tokens == 16
    assert found.memory.kv_bytes_per_token == 32 * 8 * (128 * (1 + 4 / 16) + 128 + 4)
    assert plan(request_of(device="arc-pro-b60-24gb", kv="fp16")).memory.kv_bytes_per_token == 131_072


def test_rows_are_limited_without_split_fuse_only_and_that_is_said() -> None:
    """With split-fuse the token budget alone bounds a step, as recordings of the scheduler have it."""
    words = "max_num_seqs: read by schedules of whole prompts alone, without effect on split-fuse"
    assert words in plan(request_of(max_num_seqs=8)).warnings
    assert plan(request_of(max_num_seqs=8)).limits.rows == plan(request_of()).limits.rows
    assert words not in plan(request_of()).warnings
    whole = plan(request_of(max_num_seqs=8, dynamic_split_fuse=False))
    assert words not in whole.warnings
    assert whole.limits.rows == 8


def test_partial_preemption_is_off_on_gpus_without_split_fuse() -> None:
    for device, partial in ((XEON, True), ("arc-pro-b60-24gb", False)):
        scheduler = plan(request_of(device=device, dynamic_split_fuse=False)).scheduler("step")
        assert isinstance(scheduler, OneListScheduler)
        assert scheduler.rules.partial_preemption is partial


def test_keys_and_values_have_eight_bits_but_on_arm_or_if_told_otherwise() -> None:
    assert prepared().formats.kv_cache.name == "int8"
    assert prepared(hardware="graviton4-1s").formats.kv_cache.name == "fp16"
    assert prepared(engine_args={"kv_cache_precision": "f16"}).formats.kv_cache.name == "fp16"
    assert prepared(kv_cache="bf16").formats.kv_cache.name == "bf16"
    assert any("kept in int8, as OpenVINO does" in said for said in prepared().assumptions)


def test_keys_and_values_in_four_bits_have_the_scales_of_eight() -> None:
    assert plan(request_of(kv="u4")).memory.kv_bytes_per_token == 32 * 8 * 2 * (64 + 8)
    with pytest.raises(InputError, match="in 4 bits are simulated on CPUs"):
        plan(request_of(device="arc-pro-b60-24gb", kv="u4"))


@pytest.mark.parametrize(
    ("args", "weights", "bits"),
    [
        ({"weight_format": "int8"}, "nncf_int8", 8.0),
        ({"weight_format": "int4"}, "nncf_int4_asym_128", 4 + 20 / 128),
        (
            {"weight_format": "int4", "extra_quantization_params": "--sym --group-size 64"},
            "nncf_int4_sym_64",
            4 + 16 / 64,
        ),
        (
            {"weight_format": "int4", "extra_quantization_params": "--group-size -1 --ratio 0.8 --awq"},
            "nncf_int4_asym_channel_r0.8",
            0.8 * 4 + 0.2 * 8,
        ),
    ],
)
def test_weights_as_the_server_converts_them(args: dict[str, Any], weights: str, bits: float) -> None:
    """Embedding and head, 2 x 128,256 x 4,096 values, have 8 bits; norms 16."""
    found = prepared(engine_args=args)
    assert (found.formats.weights.name, found.formats.weights.bits_per_weight) == (
        weights,
        pytest.approx(bits),
    )
    ends, norms = 2 * 128_256 * 4096, 65 * 4096
    layers = 8_030_261_248 - ends - norms
    assert found.plan.memory.bytes_of("weight") == pytest.approx(
        ends + 2 * norms + layers * bits / 8, rel=1e-6
    )


def test_a_cache_of_fixed_size() -> None:
    found = plan(request_of(cache_size=8))
    assert found.memory.blocks == 8 * GIB // found.memory.block_bytes
    assert found.scheduler("step").state()[-1] == found.memory.blocks
    both = plan(request_of(cache_size=8, num_kv_blocks=500))
    assert both.memory.blocks == 500
    assert any("drops all requests" in said for said in both.warnings)
    with pytest.raises(InfeasibleError, match=r"asked for, 800\.0 GiB"):
        plan(request_of(cache_size=800))


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"device": "h100-sxm-80gb"}, "on CPUs and Intel GPUs, not on h100"),
        ({"device": "mi300x-192gb"}, "on CPUs and Intel GPUs"),
        ({"tp": 2}, "over several devices"),
        ({"model": "deepseek-ai/DeepSeek-V2-Lite"}, "latents, states and sparse attention"),
        ({"target_device": "GPU"}, "target_device GPU is not the hardware of the pool"),
        ({"target_device": "NPU"}, "target_device NPU"),
        ({"dynamic_split_fuse": False, "max_num_batched_tokens": 100}, "max_num_seqs 256 is more than"),
    ],
)
def test_what_it_lacks_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        plan(request_of(**request_))
    assert error.value.mend


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(InfeasibleError, match="does not fit: weights"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct", "arc-b580-12gb"))


def test_launch_commands() -> None:
    command = "ovms --rest_port 8000 --source_model OpenVINO/Qwen3-8B --target_device CPU --cache_size 8 --max_num_seqs=64"
    assert parse_engine_args("openvino", command).values == {
        "target_device": "CPU",
        "cache_size": 8,
        "max_num_seqs": 64,
    }
    image = (
        "docker run -d --rm -p 8000:8000 -v $(pwd)/models:/models openvino/model_server:weekly --model_repository_path /models "
        "--source_model m --rest_port 8000 --enable_prefix_caching false --dynamic_split_fuse true --kv_cache_precision u8"
    )
    found = parse_engine_args("ovms", image)
    assert found.values == {
        "enable_prefix_caching": False,
        "dynamic_split_fuse": True,
        "kv_cache_precision": "u8",
    }
    assert found.model == "m"
    with pytest.raises(InputError, match="drafts are not simulated"):
        parse_engine_args("openvino", "ovms --source_model m --draft_source_model n")
    with pytest.raises(InputError, match="launch command of openvino, not of vllm"):
        parse_engine_args("vllm", command)
    with pytest.raises(InputError, match="no flag"):
        parse_engine_args("openvino", {"max_model_len": 4})
    warned = parse_engine_args("openvino", {"max_tokens_limit": 4})
    assert any("which answers clients may ask for" in said for said in warned.warnings)


def test_requests_that_the_engine_drops_have_failed() -> None:
    """A prompt of 3,000 tokens in 64 blocks of 32: everybody is dropped when nothing can go on, and later ones are served."""
    load = {
        "arrivals": {"kind": "constant", "rate": 0.5},
        "prompt_tokens": {
            "kind": "empirical",
            "quantiles": {"p0": 100, "p90": 100, "p91": 3000, "p100": 3000},
        },
        "output_tokens": 50,
        "requests": 60,
    }
    pool = {"engine": "openvino", "hardware": XEON, "weights": "int4", "engine_args": {"num_kv_blocks": 64}}
    totals = simulate({"model": LLAMA, "deployment": pool, "workload": load}).result["totals"]
    assert totals["reasons"] == {"out_of_memory": totals["failed"]}
    assert 0 < totals["failed"] < 20
    assert totals["completed"] == 60 - totals["failed"]


def test_a_scenario_of_a_night() -> None:
    """The shipped scenario, and the same without split-fuse: then prompts stop those who are answered, for a second and more."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "night-openvino-xeon.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    scenario["workload"] |= {"duration": 600, "warmup": 60}
    pauses = []
    for args in ({}, {"dynamic_split_fuse": False, "max_num_batched_tokens": 131_072}):
        found = simulate({**scenario, "deployment": {**scenario["deployment"], "engine_args": args}})
        pauses.append(found.result["metrics"]["itl_ms"]["p99"])
    assert pauses[0] < 0.6 * pauses[1]


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("OpenVINO/Qwen3-8B-int4-ov", "nncf_int4_asym_128"),
        ("OpenVINO/Qwen3-8B-int4-cw-ov", "nncf_int4_sym_channel"),
        ("OpenVINO/Qwen3-8B-int8-ov", "nncf_int8"),
        ("Qwen/Qwen3-8B", "bf16"),
    ],
)
def test_a_converted_model_has_the_format_of_its_name(name: str, weights: str) -> None:
    pool = {"engine": "openvino", "hardware": "xeon-8480-2s", "engine_args": f"ovms --source_model {name} --rest_port 8000"}
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    prepared = prepare(load_scenario({"model": "Qwen/Qwen3-8B", "deployment": pool, "workload": load}))
    assert prepared.formats.weights.name == weights
