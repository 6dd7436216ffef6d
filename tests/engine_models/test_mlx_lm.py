"""MLX LM's server: defaults, memory, flags and launch commands, what it lacks, the scenario that shows its rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.mlx_lm import plan
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.schedulers.polled_turns import PolledTurnsScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.run import RunResult, simulate

QWEN, MAC = "Qwen/Qwen3-4B", "apple-m4-max-40c-64gb"
VALUES = 2 * 36 * 8 * 128
"""Keys and values of a token of the model."""
LENGTHS = {
    "prompt_tokens": {"kind": "constant", "value": 400},
    "output_tokens": {"kind": "constant", "value": 60},
}


def request_of(
    model: str = QWEN, device: str = MAC, weights: str = "bf16", kv: str = "bf16", **flags: Any
) -> PoolRequest:
    bf16 = format_named("bf16")
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), bf16, format_named(kv)),
        device_name=device,
        device_kind="apple",
        device_memory_bytes=int(load_device(device).memory_bytes.value),
        flags=flags,
    )


def scheduler_of(found: EnginePlan) -> PolledTurnsScheduler:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, PolledTurnsScheduler)
    return scheduler


def served(workload: dict[str, Any], **flags: Any) -> RunResult:
    pool = {"engine": "mlx_lm", "hardware": MAC, "engine_args": flags}
    return simulate({"model": QWEN, "deployment": pool, "workload": {**LENGTHS, **workload}})


def column(outcome: RunResult, name: str) -> Any:
    requests: Any = outcome.requests
    return np.asarray(requests[name])


def test_defaults() -> None:
    found = plan(request_of())
    scheduler, memory = scheduler_of(found), found.memory
    rules = scheduler.rules
    assert (rules.decode_concurrency, rules.prompt_concurrency, rules.prefill_step_size) == (32, 8, 2048)
    assert (rules.time_budget_s, rules.prompt_cache_tokens, rules.padded) == (0.5, None, True)
    assert (scheduler.copies.most, scheduler.copies.uncut_from) == (10, None)
    assert (found.executor.depth, found.limits.rows, found.limits.step_tokens) == (1, 39, 16_384)
    assert (found.limits.answer_tokens, found.prefix_caching) == (512, True)
    assert memory.kv_bytes_per_token == VALUES * 2
    assert rules.held_tokens == memory.blocks == memory.kv_bytes // (VALUES * 2)


def test_a_quantized_cache_holds_more_and_serves_one_at_a_time() -> None:
    """8.5 of 16 bits a value, but for the first 5,000 tokens of the row and of each of the ten copies."""
    found = plan(request_of(kv="mlx_8bit"))
    rules, memory = scheduler_of(found).rules, found.memory
    assert (rules.alone, found.limits.rows, found.limits.step_tokens) == (True, 1, 2048)
    assert memory.kv_bytes_per_token == VALUES * 8.5 / 8
    assert memory.bytes_of("other") == int((1 + 1 + 10) * 5000 * VALUES * (2 - 8.5 / 8))
    assert plan(request_of(kv="mlx_8bit", quantized_kv_start=0)).memory.bytes_of("other") == 0
    load = {"arrivals": {"kind": "batch"}, "requests": 3}
    outcome = served(load, kv_bits=8)
    ends, starts = np.sort(column(outcome, "end_s")), np.sort(column(outcome, "first_scheduled_s"))
    assert starts[1:] == pytest.approx(ends[:-1], abs=1e-9)


def test_windows_and_states_are_kept_whole() -> None:
    """Copies of a model with windows are cut below the window only, of one with states never; rows have room for both."""
    gemma = plan(request_of("google/gemma-3-4b-it"))
    assert scheduler_of(gemma).copies.uncut_from == 1024
    assert gemma.memory.bytes_of("other") == (39 + 8 + 10) * 1024 * 2 * 29 * 4 * 256 * 2
    states = plan(request_of("Qwen/Qwen3-Next-80B-A3B-Instruct", "apple-m3-ultra-80c-512gb"))
    assert scheduler_of(states).copies.uncut_from == 1
    assert states.memory.bytes_of("other") > 0


def test_sizes_of_the_store() -> None:
    for written, size in (("2GB", 2e9), ("1.5g", 1.5e9), ("500M", 5e8), ("1000000000", 1e9)):
        found = scheduler_of(plan(request_of(prompt_cache_bytes=written)))
        assert found.rules.prompt_cache_tokens == int(size / (VALUES * 2))
    with pytest.raises(InputError, match="'many' is no size"):
        plan(request_of(prompt_cache_bytes="many"))


def test_who_comes_waits_for_the_next_look_at_the_queue() -> None:
    """A chat decodes when another comes 0.38 s before the next look, and then one every 0.125 s: four are taken in together."""
    load = {
        "arrivals": {"kind": "constant", "rate": 8},
        "requests": 5,
        "output_tokens": {"kind": "constant", "value": 200},
    }
    waits = column(served(load), "queue_ms")
    assert waits[0] == 0
    assert 375 < waits[1] < 400
    assert waits[1:] == pytest.approx(waits[1] - 125 * np.arange(4), abs=1e-6)


def test_an_answer_without_a_limit_ends_after_max_tokens() -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 2, "output_tokens": {"kind": "constant", "value": 700}}
    assert served(load).result["totals"]["total_output_tokens"] == 2 * 512
    assert served(load, max_tokens=100).result["totals"]["total_output_tokens"] == 200
    asked = {**load, "max_output_tokens": {"kind": "constant", "value": 800}}
    assert served(asked).result["totals"]["total_output_tokens"] == 1400


def test_padding_costs() -> None:
    """Prompts that are computed together are all as long as the longest of them."""
    lengths = {"prompt_tokens": {"kind": "uniform", "low": 20, "high": 2000}}
    load = {**lengths, "arrivals": {"kind": "batch"}, "requests": 16}
    together, alone = (served(load, prompt_concurrency=most) for most in (8, 1))
    assert column(together, "ttft_ms").max() > 1.3 * column(alone, "ttft_ms").max()


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"tensor_parallel": 2}, "several machines"),
        ({"hardware": "h100-sxm-80gb"}, "does not run on"),
        ({"weights": "awq"}, "does not load weights in awq"),
        ({"weights": "q4_k_m"}, "does not load weights in q4_k_m"),
        ({"engine_args": {"draft_model": "m"}}, "drafts"),
        ({"model": "google/gemma-3-4b-it", "engine_args": {"kv_bits": 8}}, "quantizes no cache with windows"),
        ({"kv_cache": "int8"}, "keeps no KV cache in int8"),
        ({"engine_args": {"max_num_seqs": 4}}, "decode_concurrency"),
        ({"engine": "mlx_lm@0.28"}, "older than the oldest modelled version"),
        ({"model": "deepseek-ai/DeepSeek-V3.2", "weights": "mlx_4bit"}, "sparse attention"),
    ],
)
def test_what_is_lacking_is_refused_in_words(pool: dict[str, Any], words: str) -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 1, **LENGTHS}
    model = pool.pop("model", QWEN)
    with pytest.raises(InputError, match=words) as error:
        simulate(
            {"model": model, "deployment": {"engine": "mlx_lm", "hardware": MAC, **pool}, "workload": load}
        )
    assert error.value.mend


def test_a_model_that_is_too_large() -> None:
    with pytest.raises(InfeasibleError, match="that the GPU may use"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct"))


def test_launch_commands() -> None:
    found = parse_engine_args(
        "mlx_lm",
        "mlx_lm.server --model mlx-community/Qwen3-4B-4bit --decode-concurrency 16 --prompt-cache-bytes 4GB --port 8080",
    )
    assert found.model == "mlx-community/Qwen3-4B-4bit"
    assert found.values == {"decode_concurrency": 16, "prompt_cache_bytes": "4GB"}
    for written in (
        "python3 -m mlx_lm.server --prompt-concurrency 4",
        "python -m mlx_lm server --prompt-concurrency=4",
    ):
        assert parse_engine_args("mlx_lm", written).values == {"prompt_concurrency": 4}
    with pytest.raises(InputError, match="spread over machines"):
        parse_engine_args("mlx_lm", "mlx_lm.server --model m --pipeline")


def test_the_shipped_scenario_shows_the_polls_and_the_stops() -> None:
    """Who comes waits a good part of the budget, and a prompt stops those who decode for many steps."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "mac-team-mlx.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    scenario["workload"] |= {"duration": 200, "warmup": 20}
    metrics = simulate(scenario).result["metrics"]
    assert 100 < metrics["queue_ms"]["p50"] < 500 < 1.5 * metrics["queue_ms"]["p90"]
    assert metrics["itl_ms"]["max"] > 10 * metrics["itl_ms"]["p50"]
