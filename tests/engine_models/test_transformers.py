"""transformers: defaults as its configuration makes them, memory by its formula, devices, flags and commands, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.transformers import plan
from engine_models.memory.sector_kv import LayerGroup
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.schedulers.first_fit import FirstFitScheduler
from engine_models.schedulers.static import StaticScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.kernels import operations_of
from simulator.run import RunResult, simulate
from simulator.validation.schedules import drive, replay_of

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
SCENARIO = Path(__file__).resolve().parents[2] / "scenarios" / "groups-transformers-a100.yaml"


def request_of(model: str = LLAMA, device: str = "h100-sxm-80gb", **flags: Any) -> PoolRequest:
    bf16, found = format_named("bf16"), load_device(device)
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(bf16, bf16, bf16),
        device_name=device,
        device_memory_bytes=int(found.memory_bytes.value),
        device_kind=found.kind,
        flags={"mode": "continuous", **flags},
    )


def scheduler_of(found: EnginePlan) -> FirstFitScheduler:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, FirstFitScheduler)
    return scheduler


def served(pool: dict[str, Any], workload: dict[str, Any]) -> RunResult:
    pool = {"engine": "transformers", "hardware": "a100-sxm-80gb", **pool}
    return simulate({"model": LLAMA, "deployment": pool, "workload": workload})


def test_defaults_of_continuous_batching_on_an_h100() -> None:
    """FlashAttention brings the fast path up to 32 blocks of 256, graphs, and batches chosen ahead."""
    found = plan(request_of())
    rules = scheduler_of(found).rules
    assert (rules.max_batch_tokens, rules.max_requests_per_batch, rules.safety_margin_share) == (
        8192,
        1024,
        0.15,
    )
    assert (rules.max_decode_fast_path_length, rules.prefill_first) == (8192, False)
    assert (found.executor.depth, found.prefix_caching, found.limits.block_tokens) == (2, True, 256)
    assert rules.max_tokens_read == 256 * found.limits.kv_blocks == found.limits.kv_tokens
    assert (rules.pads_to_powers, rules.pads_to_tokens) == (1024, 64)
    assert scheduler_of(plan(request_of(scheduler_type="prefill_first"))).rules.safety_margin_share == 0.0


def test_memory_follows_the_engines_own_formula() -> None:
    """0.9 of what weights leave, less 8,192 batch tokens, 1,024 rows of logits and two sectors; a sector costs its copies too."""
    request = request_of()
    memory, arch = plan(request).memory, request.arch
    token = 2 * (4096 + (32 + 4 * 8) * 128) + 2 * (8 * 4 + 32 * 4 + 16)
    step = 8192 * token + 1024 * (2 * 4096 + 4 * arch.vocab)
    sector, beside = 256 * 131_072, 256 * (2 * 8 * 128 * 2 + 2 * 8)
    free = memory.device_bytes - memory.bytes_of("weight") - memory.bytes_of("other")
    assert memory.blocks == (int(0.9 * free) - step - 2 * sector) // (sector + beside)
    assert memory.kv_bytes == memory.blocks * sector


def test_where_there_is_no_flash_attention_every_step_copies_the_cache() -> None:
    """A CPU, Apple's GPUs and AMD's: no fast path, no graphs, one batch at a time; masks of the whole cache take memory."""
    for device in ("xeon-8480-2s", "apple-m2-ultra-76c-192gb", "mi300x-192gb"):
        found = plan(request_of(device=device))
        rules = scheduler_of(found).rules
        assert (rules.max_decode_fast_path_length, rules.pads_to_powers, found.executor.depth) == (0, 0, 1)
        assert found.costs.terms.gather_factor == 2 + 2 * 32 / 8
        assert found.costs.terms.graph_sizes == ()
    asked = plan(request_of(device="mi300x-192gb", attn_implementation="flash_attention_2"))
    assert scheduler_of(asked).rules.max_decode_fast_path_length == 8192
    shares = [
        plan(request_of(device=device)).memory for device in ("apple-m2-ultra-76c-192gb", "mi300x-192gb")
    ]
    used = [(m.kv_bytes + m.bytes_of("activation")) / (m.device_bytes - m.bytes_of("weight")) for m in shares]
    assert used[0] < 0.61 < 0.88 < used[1] < 0.9


def test_layers_with_windows_share_sectors_and_find_nothing() -> None:
    """Gemma 3 4B: 5 full and 29 sliding layers; a sector is the least that both divide."""
    found = plan(request_of("google/gemma-3-4b-it"))
    kv = scheduler_of(found).kv
    assert set(kv.groups) == {LayerGroup(29), LayerGroup(5, 1024)}
    assert not kv.sharing
    assert scheduler_of(found).rules.max_decode_fast_path_length == 0


def test_what_is_copied_takes_its_time() -> None:
    """A step of 64 rows of 2,000 tokens off the fast path moves 16.8 GB twice: 10 ms on an H100."""
    costs = plan(request_of()).costs
    cost = costs.over(operations_of(load_device("h100-sxm-80gb"), "vllm"))
    plain, gathering = (Batch(0, 64, 64, 64 * 2000, tokens=64) for _ in range(2))
    gathering.gathers = True
    times = [cost.step_s([batch])[0] for batch in (plain, gathering)]
    assert 0.008 < times[1] - times[0] < 0.016
    assert cost.few_s([gathering], 3)[0] == cost.run_s([gathering], 60)[0] == times[1]


def test_static_is_one_request_at_a_time_unless_told_otherwise() -> None:
    found = plan(replace(request_of(), flags={}))
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, StaticScheduler)
    assert (scheduler.rows, found.executor.depth, found.prefix_caching) == (1, 1, False)
    assert found.limits.kv_tokens * 131_072 < found.memory.device_bytes


@pytest.mark.parametrize(
    ("weights", "rate", "within"),
    [("fp16", 46.4, 0.02), ("int8", 6.98, 0.02), ("int4", 21.7, 0.04)],
)
def test_a_single_row_takes_what_was_measured(weights: str, rate: float, within: float) -> None:
    """Tokens a second of Llama-2-7B on an A100 80 GB, batch 1, to which the launches are fitted; bitsandbytes at the end."""
    pool = {"engine": "transformers", "hardware": "a100-sxm-80gb", "weights": weights}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 64, "output_tokens": 256}
    outcome = simulate({"model": "meta-llama/Llama-2-7b-hf", "deployment": pool, "workload": load})
    assert 1000 / outcome.result["metrics"]["tpot_ms"]["mean"] == pytest.approx(rate, rel=within)


def test_groups_wait_where_continuous_batching_does_not() -> None:
    """The shipped scenario in both modes: the median wait is seconds in groups and a step otherwise."""
    scenario = yaml.safe_load(SCENARIO.read_text(encoding="utf-8"))
    scenario["workload"] |= {"duration": 200, "warmup": 10}
    medians = []
    for mode in ("static", "continuous"):
        scenario["deployment"]["engine_args"]["mode"] = mode
        medians.append(simulate(scenario).result["metrics"]["ttft_ms"]["p50"])
    assert medians[0] > 2000 > 100 > medians[1]


def test_a_group_that_outgrows_the_device_fails_and_is_counted() -> None:
    """The first prompt that is tokenised makes a group of its own; the other 63 are one that grows beyond 284,077 tokens."""
    load = {
        "arrivals": {"kind": "batch"},
        "requests": 64,
        "prompt_tokens": {"kind": "constant", "value": 4000},
        "output_tokens": {"kind": "constant", "value": 2000},
    }
    totals = served({"engine_args": {"batch_size": 64}}, load).result["totals"]
    assert (totals["failed"], totals["reasons"]) == (63, {"out_of_memory": 63})
    assert served({"engine_args": {"batch_size": 16}}, load).result["totals"]["failed"] == 0


@pytest.mark.parametrize(
    ("flags", "model", "words"),
    [
        ({"mode": "static", "continuous_batching": True}, LLAMA, "contradicts"),
        ({}, "deepseek-ai/DeepSeek-V2-Lite", "latent, recurrent or sparse"),
    ],
)
def test_what_is_not_simulated_is_refused(flags: dict[str, Any], model: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(replace(request_of(model), flags=flags))


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    with pytest.raises(InfeasibleError, match=r"weights .* do not fit"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct"))
    with pytest.raises(InfeasibleError, match=r"steps of 4,000,000 tokens"):
        plan(request_of(max_batch_tokens=4_000_000))
    with pytest.raises(InfeasibleError, match="no memory for 900,000 rows"):
        plan(replace(request_of(), flags={"batch_size": 900_000}))


def test_flags_of_the_other_mode_are_said_to_do_nothing() -> None:
    """`transformers serve` hands its ``--cb-`` flags to continuous batching, and calls generate for one request at a time."""
    alone = plan(request_of(mode="static", page_size=64, use_cuda_graph=True)).warnings
    reader = "continuous batching (`continuous_batching`)"
    assert f"page_size, use_cuda_graph: read by {reader} alone, without effect on generate" in alone
    assert not any("without effect" in text for text in plan(request_of(page_size=64)).warnings)
    batched = plan(request_of(batch_size=4, max_length=64)).warnings
    assert "batch_size, max_length: read by generate alone, without effect on continuous batching" in batched


def test_launch_commands() -> None:
    found = parse_engine_args(
        "transformers",
        "transformers serve Qwen/Qwen3-8B --continuous-batching --cb-block-size 128 --cb-max-batch-tokens 4096 --port 8001 "
        "--attn-implementation flash_attention_2",
    )
    assert found.model == "Qwen/Qwen3-8B"
    assert found.values == {
        "continuous_batching": True,
        "page_size": 128,
        "max_batch_tokens": 4096,
        "attn_implementation": "flash_attention_2",
    }
    assert parse_engine_args("transformers_cb", {"safety_margin": 0.3}).values == {
        "mode": "continuous",
        "safety_margin": 0.3,
    }
    assert parse_engine_args("transformers-cb", {"mode": "static"}).values == {"mode": "static"}
    assert parse_engine_args("transformers", {"compile": True}).warnings
    with pytest.raises(InputError, match="copies to the host"):
        parse_engine_args("transformers", {"cpu_offload_space": 8})
    with pytest.raises(InputError, match="no flag"):
        parse_engine_args("transformers", {"max_num_seqs": 4})


def test_formats_of_a_gpu_are_refused_on_a_cpu() -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 8, "output_tokens": 8}
    with pytest.raises(InputError, match="does not load weights in awq"):
        served({"hardware": "xeon-8480-2s", "weights": "awq"}, load)
    with pytest.raises(InputError, match="float32"):
        served({"weights": "fp32"}, load)
    assert np.isfinite(served({"hardware": "xeon-8480-2s"}, load).result["metrics"]["tpot_ms"]["mean"])


def test_a_batch_that_ran_for_nothing_is_taken_in_after_the_next_choice() -> None:
    """Before a pause the row whose last token was in flight ran once more; what is free after it counts the next request."""
    knobs: dict[str, Any] = {"page_size": 16, "num_sectors": 50, "max_batch_tokens": 2048, "max_requests_per_batch": 64}
    knobs |= {"max_tokens_read": 800, "max_decode_fast_path_length": 512, "safety_margin": 0.15, "cpu_pool_sectors": 0}
    knobs |= {"scheduler_type": "fifo", "prefix_sharing_active": False, "use_async_batching": True}
    knobs["allocators"] = [{"blocks_per_sector": 1, "window": None}]
    clock = {"a": 0.008, "b": 0.0, "c": 0.0, "d": 0.0}
    config = {"engine": "transformers_cb", "version": "5.24.0", "config": knobs, "step_time": clock}
    asked: dict[str, Any] = {"segments": [[1, 0, 30]], "prompt_len": 30, "output_len": 2, "out_seg": 9}
    requests = [{**asked, "idx": index, "id": f"r{index}", "arrival": float(index)} for index in range(2)]
    steps = drive(replay_of(config), config, requests)
    assert [step["free_blocks_after_update"] for step in steps] == [[48], [50], [48], [48], [50], [50]]
