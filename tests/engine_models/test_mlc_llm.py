"""MLC-LLM: memory by its own estimate, modes, flags and launch commands, refusals, and what its default mode does to a
desktop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.mlc_llm import plan
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.schedulers.hybrid_prefill import HybridPrefillScheduler, HybridRules
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import RunResult, simulate

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
MAC = "apple-m2-ultra-76c-192gb"


def request_of(
    model: str = LLAMA, device: str = "rtx-4090-24gb", tp: int = 1, weights: str = "q4f16_1", kv: str = "fp16", **flags: Any
) -> PoolRequest:
    fp16 = format_named("fp16")
    found = load_device(device)
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), fp16, format_named(kv)),
        device_name=found.name,
        device_memory_bytes=int(found.memory_bytes.value),
        device_kind=found.kind,
        tensor_parallel=tp,
        flags=flags,
    )


def rules_of(found: EnginePlan) -> HybridRules:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, HybridPrefillScheduler)
    return scheduler.rules


def test_a_mode_decides_rows_tokens_and_chunk() -> None:
    """config.cc:655-770: local has 4 rows and 8,192 tokens, interactive one row and one context, server all that memory holds."""
    assert rules_of(plan(request_of())) == HybridRules(4, 8192, 8192)
    assert rules_of(plan(request_of(mode="interactive", context_window_size=4096))) == HybridRules(1, 4096, 4096)
    found = plan(request_of(mode="server"))
    rules = rules_of(found)
    assert (rules.max_num_sequence, rules.prefill_chunk_size) == (128, 8192)
    memory = found.memory
    free = int(0.85 * memory.device_bytes) - sum(line.bytes for line in memory.lines if line.key != "unused")
    assert rules.max_total_sequence_length == int(free / 131_073.25)  # 4 bytes a value of a key, and 1.25
    assert found.limits.kv_blocks == -(-rules.max_total_sequence_length // 16) + 1
    two = rules_of(plan(request_of(device="h100-sxm-80gb", mode="server", max_num_sequence=2)))
    assert two.max_total_sequence_length == 262_144


def test_a_chunk_below_the_rows_bounds_them() -> None:
    """A step has no more tokens than a chunk, and a row has at least one: the limits say what may run at once."""
    found = plan(request_of(mode="server", prefill_chunk_size=16))
    assert rules_of(found).rows == found.limits.rows == found.costs.up_to.rows == 16


def test_the_estimate_of_memory() -> None:
    """config.cc:700-720, of 4 rows, chunks of 8,192, 32 heads of 128, 8 of keys and values, 128,256 tokens."""
    memory = plan(request_of()).memory
    attention = 5 * 88 + 8192 * 33 * 8 + 8192 * 128 * 40 * 4 + 48 * 2**20
    model = 8192 * 4 + 4 * 4 + (2 * 8192 + 4) * 4096 * 2
    assert memory.bytes_of("other") == attention + model + int(80 + 4 * 128_256 * 16.125)
    assert memory.bytes_of("weight") == pytest.approx(8.03e9 * 4.5 / 8, rel=0.01)
    assert memory.kv_bytes == int(8192 * 131_073.25)


def test_metal_holds_few_tokens() -> None:
    assert rules_of(plan(request_of(device=MAC, mode="server"))).max_total_sequence_length == 32_768


def test_kept_sequences_are_as_many_as_rows_unless_told_otherwise() -> None:
    def kept(**flags: Any) -> tuple[bool, int | None]:
        scheduler = plan(request_of(**flags)).scheduler("jump")
        assert isinstance(scheduler, HybridPrefillScheduler)
        return scheduler.kv.prefix_caching, scheduler.kv.recycling

    assert kept() == (True, 4)
    assert kept(prefix_cache_max_num_recycling_seqs=-1) == (True, None)
    assert kept(prefix_cache_max_num_recycling_seqs=0) == (True, 0)
    assert kept(prefix_cache_mode="disable") == (False, 4)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"model": "deepseek-ai/DeepSeek-V2-Lite"}, "latent or sparse attention"),
        ({"kv": "fp8"}, "keeps the KV cache in 16 bits"),
        ({"overrides": "max_num_seq=4"}, "no override `max_num_seq`"),
        ({"overrides": "sliding_window_size=1024"}, "`sliding_window_size=1024` in overrides is not simulated"),
        ({"overrides": "max_num_sequence=4", "max_num_sequence": 8}, "`max_num_sequence` is 8, and 4 in `overrides`"),
    ],
)
def test_what_it_lacks_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        plan(request_of(**request_))
    assert error.value.mend


def test_what_does_not_fit() -> None:
    with pytest.raises(InfeasibleError, match="too much on each of 1 devices"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct"))
    with pytest.raises(InfeasibleError, match=r"max_total_seq_length 900,000 is more than the [\d,]+ tokens"):
        plan(request_of(max_total_seq_length=900_000))
    with pytest.raises(InfeasibleError, match="no request fits"):
        plan(request_of(max_total_seq_length=25))


def test_a_format_of_another_family_is_refused() -> None:
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "mlc", "hardware": "rtx-4090-24gb", "weights": "q4_k_m"}
    with pytest.raises(InputError, match="does not load weights in q4_k_m"):
        prepare(load_scenario({"model": LLAMA, "deployment": pool, "workload": workload}))


def test_launch_commands() -> None:
    command = (
        'mlc_llm serve HF://mlc-ai/Llama-3.1-8B-Instruct-q4f16_1-MLC --mode server --overrides "max_num_sequence=32;'
        'tensor_parallel_shards=2" --port 8080'
    )
    found = parse_engine_args("mlc_llm", command)
    assert found.values == {"mode": "server", "overrides": "max_num_sequence=32;tensor_parallel_shards=2"}
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "mlc_llm", "hardware": "rtx-4090-24gb", "engine_args": command}
    scenario = load_scenario({"model": LLAMA, "deployment": pool, "workload": workload})
    resolved = prepare(scenario)
    assert (resolved.plan.costs.formats.weights.name, resolved.plan.costs.parallel.tensor) == ("q4f16_1", 2)
    assert resolved.plan.limits.rows == 32
    with pytest.raises(InputError, match="launch command of mlc_llm, not of vllm"):
        parse_engine_args("vllm", "mlc_llm serve m")


def served(scenario: dict[str, Any], **flags: Any) -> RunResult:
    pool = {**scenario["deployment"], "engine_args": {**scenario["deployment"]["engine_args"], **flags}}
    return simulate({**scenario, "deployment": pool})


def test_an_office_waits_in_mode_local() -> None:
    """The shipped scenario: four rows are not enough, and with all memory's nobody waits; the next turn of a chat is taken up."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "desktop-mlc-4090.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    local, server = served(scenario), served(scenario, mode="server")
    waits = [found.result["metrics"]["ttft_ms"]["p90"] for found in (local, server)]
    assert waits[0] > 5 * waits[1]
    assert local.result["server"]["num_requests_running_peak"] == 4
    hits = [found.result["server"]["prefix_cache_hit_rate"] for found in (server, served(scenario, mode="server",
        prefix_cache_mode="disable"))]  # fmt: skip
    assert hits[0] > 0.5
    assert not hits[1]
