"""ExLlamaV2 behind TabbyAPI: defaults, memory, flags and launch commands, what it lacks, the scenario that shows its rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.exllamav2 import plan
from engine_models.engines.known import parse_engine_args
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.schedulers.bounded_bypass import BypassScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.run import RunResult, simulate

LLAMA, CARD = "meta-llama/Llama-3.1-8B-Instruct", "rtx-4090-24gb"
PER_TOKEN = 2 * 32 * 8 * 128
"""Values of keys and values of a token of the model."""
LENGTHS = {
    "prompt_tokens": {"kind": "constant", "value": 400},
    "output_tokens": {"kind": "constant", "value": 60},
}


def request_of(
    model: str = LLAMA, device: str = CARD, weights: str = "gptq", kv: str = "fp16", tp: int = 1, **flags: Any
) -> PoolRequest:
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), format_named("fp16"), format_named(kv)),
        device_name=device,
        device_memory_bytes=int(load_device(device).memory_bytes.value),
        tensor_parallel=tp,
        flags=flags,
    )


def scheduler_of(found: EnginePlan) -> BypassScheduler:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, BypassScheduler)
    return scheduler


def served(workload: dict[str, Any], kv: str = "fp16", **flags: Any) -> RunResult:
    pool = {"engine": "exllamav2", "hardware": CARD, "weights": "gptq", "kv_cache": kv, "engine_args": flags}
    return simulate({"model": LLAMA, "deployment": pool, "workload": {**LENGTHS, **workload}})


def column(outcome: RunResult, name: str) -> Any:
    requests: Any = outcome.requests
    return np.asarray(requests[name])


def test_defaults_are_small() -> None:
    """Without a context or a cache size TabbyAPI takes 4,096 tokens for both."""
    found = plan(request_of())
    scheduler = scheduler_of(found)
    rules = scheduler.rules
    assert (rules.max_batch_size, rules.max_chunk_size, rules.max_seq_len, rules.max_skips) == (
        256,
        2048,
        4096,
        4,
    )
    assert (scheduler.kv.capacity_blocks, found.limits.kv_tokens, found.limits.block_tokens) == (
        16,
        4096,
        256,
    )
    assert (found.limits.prompt_tokens, found.limits.row_tokens) == (4095, 4096)
    assert found.memory.kv_bytes == 4096 * PER_TOKEN * 2


def test_sizes_are_rounded_up_to_pages() -> None:
    found = plan(request_of(max_seq_len=5000, chunk_size=1000))
    rules = scheduler_of(found).rules
    assert (found.limits.kv_tokens, rules.max_seq_len, rules.max_chunk_size) == (5120, 5000, 1024)
    assert rules.max_batch_size == 128
    assert (
        scheduler_of(plan(request_of(chunk_size=9999))).rules.max_chunk_size == 4096
    )  # not above the context
    assert plan(request_of(max_seq_len=8192, cache_size=4096)).limits.row_tokens == 4096
    with pytest.raises(InputError, match="has room for"):
        plan(request_of(max_batch_size=257))


@pytest.mark.parametrize(("kv", "bits"), [("exl_q4", 4.5), ("exl_q6", 6.5), ("exl_q8", 8.5)])
def test_a_quantized_cache_needs_less_and_a_copy_of_one_layer(kv: str, bits: float) -> None:
    memory = plan(request_of(kv=kv, max_seq_len=32768)).memory
    assert memory.kv_bytes == 32768 * PER_TOKEN * bits / 8
    assert memory.bytes_of("widened") == 32768 * PER_TOKEN // 32 * 2
    assert plan(request_of()).memory.bytes_of("widened") == 0


def test_a_quantized_cache_costs_time() -> None:
    """It is widened before attention: long contexts take longer than with a cache in 16 bits."""
    load = {
        "arrivals": {"kind": "batch"},
        "requests": 1,
        "prompt_tokens": {"kind": "constant", "value": 12_000},
    }
    wide, narrow = (column(served(load, kv, max_seq_len=16384), "tpot_ms")[0] for kv in ("fp16", "exl_q4"))
    moved = 12_000 * PER_TOKEN * (4.5 / 8 + 2) / load_device(CARD).memory_bandwidth_bytes_per_s.value
    assert narrow - wide > 0.9 * moved * 1e3


def test_what_does_not_fit_says_what_would() -> None:
    with pytest.raises(InfeasibleError, match=r"a cache of 262,144 tokens, 34\.4 GB") as error:
        plan(request_of(cache_size=262_144))
    size = int(str(error.value.mend).split()[1].rstrip(","))
    plan(request_of(cache_size=size))
    with pytest.raises(InfeasibleError):
        plan(request_of(cache_size=size + 256))


def test_a_request_without_a_limit_takes_the_whole_cache() -> None:
    """So such requests are served one after the other, however short their answers are."""
    load = {"arrivals": {"kind": "batch"}, "requests": 4}
    alone = served(load)
    limited = served({**load, "max_output_tokens": {"kind": "constant", "value": 100}})
    ends, starts = column(alone, "end_s"), column(alone, "first_scheduled_s")
    assert (np.sort(starts)[1:] >= np.sort(ends)[:-1] - 1e-9).all()
    assert column(limited, "queue_ms").max() < 20


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"hardware": "rx-7900-xtx-24gb"}, "on NVIDIA GPUs"),
        ({"hardware": "apple-m4-max-40c-64gb"}, "does not run on"),
        ({"weights": "exl3_4.0"}, "EXL3 is ExLlamaV3's"),
        ({"weights": "fp8"}, "does not load weights in fp8"),
        ({"engine_args": {"gpu_split": [10, 12]}}, "how layers are spread over GPUs"),
        ({"engine_args": {"max_num_seqs": 4}}, "max_batch_size"),
        ({"model": "deepseek-ai/DeepSeek-V2-Lite"}, "has no model like"),
        ({"pipeline_parallel": 2}, "pipeline parallelism"),
    ],
)
def test_what_is_lacking_is_refused_in_words(pool: dict[str, Any], words: str) -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 1, **LENGTHS}
    model, own = pool.get("model", LLAMA), {key: value for key, value in pool.items() if key != "model"}
    deployment = {"engine": "exllamav2", "hardware": CARD, "weights": "gptq", **own}
    with pytest.raises(InputError, match=words) as error:
        simulate({"model": model, "deployment": deployment, "workload": load})
    assert error.value.mend


def test_cards_before_ampere_serve_one_request_at_a_time() -> None:
    """Without pages a request finds what it shares with the one before, and nothing of the one before that."""
    found = plan(request_of(device="t4-16gb", cache_size=65_536))
    assert (found.limits.rows, found.limits.kv_blocks, found.limits.kv_tokens) == (1, 1, 4096)
    load = {
        "arrivals": {"kind": "batch"},
        "requests": 4,
        "max_output_tokens": {"kind": "constant", "value": 100},
    }
    pool = {"engine": "exllamav2", "hardware": "t4-16gb", "weights": "exl2_4.0"}
    shared = {**LENGTHS, **load, "shared_prefix": {"groups": 1, "tokens": 300}}
    outcome = simulate({"model": LLAMA, "deployment": pool, "workload": shared})
    ends, starts = np.sort(column(outcome, "end_s")), np.sort(column(outcome, "first_scheduled_s"))
    assert starts[1:] == pytest.approx(ends[:-1], abs=1e-9)
    assert sorted(column(outcome, "cached_tokens")) == [0, 300, 300, 300]


def test_launch_commands() -> None:
    written = "python main.py --model-name Llama-3.1-8B-Instruct-exl2 --max-seq-len 32768 --cache-mode Q4 --cache-size 65536"
    found = parse_engine_args("exllamav2", written)
    assert found.model == "Llama-3.1-8B-Instruct-exl2"
    assert found.values == {"max_seq_len": 32768, "cache_mode": "Q4", "cache_size": 65536}
    for start in (
        "./start.sh",
        "docker run --gpus all -p 5000:5000 ghcr.io/theroyallab/tabbyapi:latest main.py",
    ):
        assert parse_engine_args("exllamav2", f"{start} --max-batch-size 4").values == {"max_batch_size": 4}
    with pytest.raises(InputError, match="config"):
        parse_engine_args("exllamav2", "python main.py --config my.yml")


def test_the_shipped_scenario_shows_prompts_that_stop_the_others() -> None:
    path = Path(__file__).resolve().parents[2] / "scenarios" / "characters-exllamav2-4090.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    scenario["workload"] |= {"duration": 200, "warmup": 20}
    roomy = simulate(scenario).result["metrics"]
    assert roomy["itl_ms"]["max"] > 10 * roomy["itl_ms"]["p50"]
    scenario["deployment"]["engine_args"]["cache_size"] = 16384
    assert simulate(scenario).result["metrics"]["queue_ms"]["p90"] > 1.5 * roomy["queue_ms"]["p90"]
