"""Text Generation Inference: defaults as its launcher makes them, flags and launch commands, memory, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import engine_named, parse_engine_args
from engine_models.engines.tgi import plan, version_of
from engine_models.engines.tgi_launcher import default_prefill_tokens, serving_of
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.whole_lifetime import WholeLifetimeScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.run import simulate
from simulator.validation.schedules import replay

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "tgi"
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def request_of(model: str = LLAMA, device: str = "h100-sxm-80gb", tp: int = 1, **flags: Any) -> PoolRequest:
    bf16 = format_named("bf16")
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(bf16, bf16, bf16),
        device_name=device,
        device_memory_bytes=int(load_device(device).memory_bytes.value),
        tensor_parallel=tp,
        flags=flags,
    )


def scheduler_of(found: EnginePlan) -> WholeLifetimeScheduler:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, WholeLifetimeScheduler)
    return scheduler


@pytest.mark.parametrize(
    "name",
    [
        "chunked_long_prompts",
        "shared_prefix",
        "router_no_chunks_cache",
        "router_no_chunks_pages_of_16",
        "router_pages_of_256",
        "router_window",
    ],
)
def test_kept_recording_is_equal_at_every_step(name: str) -> None:
    result = replay(FIXTURES / f"{name}.jsonl")
    assert result["first_difference"] is None
    assert result["equal"] == result["steps"] > 150


def test_defaults_on_an_h100() -> None:
    """The prefill budget is a second's 900 TFLOP over 15.0 GFLOP a token; the pool what 0.90 of the memory leaves."""
    found = plan(request_of())
    rules = scheduler_of(found).rules
    assert rules.max_batch_prefill_tokens == 59_870
    assert (rules.waiting_served_ratio, rules.max_waiting_tokens, rules.max_batch_size) == (0.3, 20, None)
    assert (rules.chunked_prefill, rules.reserved_answer_tokens) == (True, 1024)
    assert (found.limits.context_tokens, found.limits.prompt_tokens) == (131_072, 131_071)
    assert (found.limits.block_tokens, found.prefix_caching) == (1, True)
    assert (found.front.inflight, found.front.on_full, found.executor.depth) == (128, "429", 1)
    memory = found.memory
    assert memory.usable_bytes == int(0.9 * memory.device_bytes)
    assert memory.kv_bytes == memory.usable_bytes - sum(line.bytes for line in memory.lines)
    assert rules.max_batch_total_tokens == memory.kv_bytes // 131_072 == found.limits.kv_blocks + 1


@pytest.mark.parametrize(
    ("device", "tp", "budget"),
    [
        ("a100-sxm-80gb", 1, 20_755),  # 312 TFLOP/s
        ("h100-sxm-80gb", 2, 119_741),
        ("h100-sxm-80gb", 4, 131_072),  # the context bounds it
        ("l4-24gb", 1, 8_049),  # 121 TFLOP/s
        ("rtx-3090-24gb", 1, 4_096),  # a card that the launcher does not know
        ("b200-sxm-180gb", 1, 4_096),
    ],
)
def test_default_prefill_budget_by_card(device: str, tp: int, budget: int) -> None:
    assert default_prefill_tokens(request_of(device=device, tp=tp), version_of(None)) == budget


def test_version_2_has_its_own_constants_and_says_that_it_is_not_proven() -> None:
    found = plan(request_of(), "2")
    rules = scheduler_of(found).rules
    assert found.version == "2.4.1"
    assert (rules.max_batch_prefill_tokens, rules.waiting_served_ratio) == (4096, 1.2)
    assert (rules.chunked_prefill, rules.reserved_answer_tokens) == (False, None)
    assert (found.limits.prompt_tokens, found.limits.context_tokens) == (1024, 2048)
    assert (found.limits.block_tokens, found.prefix_caching) == (16, False)
    assert any("no recording of it was compared" in note for note in found.notes)
    assert not any("no recording" in note for note in plan(request_of()).notes)
    assert any("no recording" in note for note in plan(request_of(), "3.0").notes)


@pytest.mark.parametrize(
    ("asked", "taken"),
    [("3", "3.3.6"), ("3.3.7", "3.3.6"), ("3.1.1", "3.0.0"), ("2", "2.4.1"), ("2.0.4", "2.4.1")],
)
def test_versions_stand_for_others(asked: str, taken: str) -> None:
    assert version_of(asked).name == taken


def test_older_than_two_is_refused() -> None:
    with pytest.raises(InputError, match=r"older than the oldest"):
        version_of("1.4.5")


@pytest.mark.parametrize(
    ("model", "device", "flags", "wanted"),
    [
        (LLAMA, "h100-sxm-80gb", {}, ("flashinfer", True, True)),
        (LLAMA, "h100-sxm-80gb", {"prefill_chunking": False}, ("flashinfer", True, False)),
        (LLAMA, "h100-sxm-80gb", {"prefix_caching": False}, ("flashinfer", False, True)),
        (LLAMA, "h100-sxm-80gb", {"attention": "paged"}, ("paged", False, False)),
        (LLAMA, "h100-sxm-80gb", {"attention": "flashdecoding"}, ("flashdecoding", True, True)),
        (LLAMA, "mi300x-192gb", {}, ("paged", False, False)),
        ("microsoft/Phi-3-mini-4k-instruct", "h100-sxm-80gb", {}, ("flashdecoding", False, True)),  # heads of 96
    ],
)
def test_attention_by_model_and_hardware(
    model: str, device: str, flags: dict[str, Any], wanted: tuple[str, bool, bool]
) -> None:
    found = serving_of(request_of(model, device, **flags), version_of(None))
    assert (found.attention, found.prefix_caching, found.chunked_prefill) == wanted


def test_without_chunks_prompts_are_bounded_by_the_prefill_budget() -> None:
    found = plan(request_of(prefill_chunking=False, max_batch_prefill_tokens=2000, max_total_tokens=8192))
    assert (found.limits.prompt_tokens, found.limits.context_tokens) == (2000, 8192)
    alone = plan(request_of(prefill_chunking=False, max_batch_prefill_tokens=2000))
    assert alone.limits.context_tokens == 2000  # as its warm-up held


def test_an_answer_without_a_limit_reserves_1024_tokens() -> None:
    """8B on 60,000 slots, 500 tokens in: 1,523 slots each, hence 39 at once."""
    scheduler = scheduler_of(plan(request_of(cuda_memory_fraction=0.4, max_batch_prefill_tokens=4096)))
    assert scheduler.kv.capacity_blocks > 60_000
    scheduler.kv.capacity_blocks = scheduler.kv.free_blocks = 60_000
    scheduler.rules = replace(scheduler.rules, max_batch_prefill_tokens=60_000)
    for index in range(60):
        scheduler.add(Sequence(index, 500, 30, 0.0, stop_known=False))
    batch = scheduler.schedule(0.0)
    assert batch is not None
    assert len(batch.new) == 39


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"max_input_tokens": 4096, "max_total_tokens": 4096}, "max_input_tokens 4096 is not below"),
        ({"prefix_caching": True, "attention": "paged"}, "no prefix cache with paged"),
    ],
)
def test_impossible_flags_are_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(request_of(**flags))


def test_models_without_a_class_are_refused() -> None:
    with pytest.raises(InputError, match="recurrent, indexed or compressed layers"):
        plan(request_of("Qwen/Qwen3-Next-80B-A3B-Instruct", tp=4))


def test_what_does_not_fit_is_refused_with_a_mend() -> None:
    with pytest.raises(InfeasibleError, match=r"does not fit: weights 16\.1 GB") as weights:
        plan(request_of(device="l4-24gb", max_batch_prefill_tokens=100_000))
    assert "max_batch_prefill_tokens" in str(weights.value.mend)
    with pytest.raises(InfeasibleError, match="one request of max_total_tokens") as total:
        plan(request_of(device="l4-24gb", max_total_tokens=100_000))
    assert "max_total_tokens to at most" in str(total.value.mend)


def test_given_pool_size_is_ignored_and_says_so() -> None:
    found = plan(request_of(max_batch_total_tokens=16_000))
    assert found.limits.kv_tokens == plan(request_of()).limits.kv_tokens
    assert "ignores" in found.warnings[0]


# flags and launch commands -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "values", "model"),
    [
        (
            "text-generation-launcher --model-id org/m --num-shard 2 --max-batch-prefill-tokens=4096 --waiting-served-ratio 1.2",
            {"num_shard": 2, "max_batch_prefill_tokens": 4096, "waiting_served_ratio": 1.2},
            "org/m",
        ),
        (
            "docker run --gpus all --shm-size 1g -p 8080:80 -v $PWD/data:/data "
            "ghcr.io/huggingface/text-generation-inference:3.3.5 --model-id org/m --max-total-tokens 8192 -p 80",
            {"max_total_tokens": 8192},
            "org/m",
        ),
        (
            "docker run -e MODEL_ID=org/m -e PREFILL_CHUNKING=0 --env MAX_CONCURRENT_REQUESTS=64 -e HF_TOKEN=x --env=NUM_SHARD=4 "
            "ghcr.io/huggingface/text-generation-inference:latest --max-input-length 3000",
            {
                "prefill_chunking": False,
                "max_concurrent_requests": 64,
                "num_shard": 4,
                "max_input_tokens": 3000,
            },
            "org/m",
        ),
        (
            "ATTENTION=paged PREFIX_CACHING=false text-generation-launcher --model-id org/m --cuda-graphs 1,2,4 --quantize awq",
            {"attention": "paged", "prefix_caching": False, "cuda_graphs": [1, 2, 4], "quantize": "awq"},
            "org/m",
        ),
        ("--model-id org/m --max-batch-size 8 --trust-remote-code", {"max_batch_size": 8}, "org/m"),
    ],
)
def test_launch_commands(command: str, values: dict[str, Any], model: str) -> None:
    found = parse_engine_args("tgi", command)
    assert (found.values, found.model, found.warnings) == (values, model, [])


def test_flags_that_are_not_modelled_warn_and_unknown_ones_are_refused() -> None:
    warned = parse_engine_args("tgi", {"rope_factor": 2.0, "max_waiting_tokens": 5})
    assert warned.values == {"max_waiting_tokens": 5}
    assert warned.warnings == [
        "tgi flag `rope_factor` is not modelled; in the engine it changes the model's context"
    ]
    assert parse_engine_args("tgi", {"speculate": 2}).values == {"speculate": 2}
    with pytest.raises(InputError) as wrong:
        parse_engine_args("tgi", {"max_num_seqs": 5})
    assert "max_concurrent_requests" in str(wrong.value.mend)
    with pytest.raises(InputError, match="command of vllm, not of tgi"):
        parse_engine_args("tgi", "vllm serve org/m")


def test_every_flag_has_its_launchers_default() -> None:
    table = engine_named("text-generation-inference").flags()
    defaults = {name: flag.default for name, flag in table.modelled.items() if flag.default is not None}
    assert defaults == {
        "max_concurrent_requests": 128,
        "waiting_served_ratio": 0.3,
        "max_waiting_tokens": 20,
        "cuda_graphs": [1, 2, 4, 8, 16, 32],
        "cuda_memory_fraction": 1.0,
        "prefill_chunking": True,
        "tgi_wiggle_room": 0.9,
        "disable_grammar_support": False,
    }


@pytest.mark.slow
def test_who_is_refused_leaves_time_for_the_others() -> None:
    """The shipped scenario, and the same on vLLM, where all wait for all."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "lectures-tgi-a100.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    bounded = simulate(scenario).result
    assert bounded["totals"]["reasons"]["shed_429"] > 0.1 * bounded["totals"]["offered"]
    waits = simulate({**scenario, "deployment": {**scenario["deployment"], "engine": "vllm"}}).result
    assert waits["totals"]["rejected"] == 0
    assert bounded["metrics"]["ttft_ms"]["p95"] < 0.5 * waits["metrics"]["ttft_ms"]["p95"]
