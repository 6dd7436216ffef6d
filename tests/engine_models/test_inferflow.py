"""Inferflow: caches of whole contexts, its configuration, refusals, and who is turned away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import PoolRequest
from engine_models.engines.inferflow import plan
from engine_models.engines.known import parse_engine_args
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.schedulers.soft_budget import SoftBudgetRules, SoftBudgetScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate

LLAMA = "meta-llama/Llama-2-7b-hf"


def request_of(
    model: str = LLAMA, device: str = "rtx-4090-24gb", weights: str = "q8_b32t2", kv: str = "fp16", **flags: Any
) -> PoolRequest:
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), format_named("fp16"), format_named(kv)),
        device_name=device,
        device_memory_bytes=int(load_device(device).memory_bytes.value),
        flags={"max_context_len": 2048, **flags},
    )


def test_each_query_has_a_cache_of_a_whole_context() -> None:
    found = plan(request_of())
    scheduler, memory = found.scheduler("jump"), found.memory
    assert isinstance(scheduler, SoftBudgetScheduler)
    assert scheduler.rules == SoftBudgetRules(6, 256)
    assert memory.kv_bytes == 6 * 2048 * 524_288
    assert (memory.blocks, found.front.inflight, found.front.on_full) == (6, 6, "503")
    assert (found.limits.prompt_tokens, found.limits.row_tokens, found.limits.kv_blocks) == (2048, 2049, 6)
    in_8_bits = plan(request_of(kv="q8_b32t2")).memory
    assert in_8_bits.kv_bytes == pytest.approx(memory.kv_bytes * 8.5 / 16)
    with pytest.raises(InfeasibleError, match="6 caches of 4,096 tokens"):
        plan(request_of(max_context_len=4096, weights="fp16"))


def test_the_embedding_stays_on_the_host() -> None:
    on_host, on_device = (plan(request_of(be_host_embeddings=host)).memory.bytes_of("weight") for host in (True, False))
    assert on_device - on_host == 32_000 * 4096 * 2


def test_sixteen_queries_at_most_and_one_a_thread() -> None:
    found = plan(request_of(max_concurrent_queries=40, max_context_len=512))
    assert (found.limits.rows, found.front.inflight) == (16, 16)
    assert any("more than its 16 caches" in note for note in found.notes)
    few = plan(request_of(worker_count=4))
    assert (few.limits.rows, few.front.inflight, few.memory.blocks) == (4, None, 6)


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"device": "mi300x-192gb"}, "runs on NVIDIA GPUs"),
        ({"devices": "0;1"}, "spread over several stages"),
        ({"kv": "fp8"}, "keeps the KV cache in F16 or Q8"),
        ({"model": "deepseek-ai/DeepSeek-V2-Lite"}, "no latent or sparse attention"),
    ],
)
def test_what_it_lacks_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        plan(request_of(**request_))
    assert error.value.mend


def test_its_configuration_says_formats_and_devices() -> None:
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    items = {"devices": "0&1", "device_weight_data_type": "Q3H", "device_kv_cache_data_type": "Q8", "max_context_len": 2048}
    pool = {"engine": "inferflow", "hardware": "rtx-4090-24gb", "engine_args": items}
    found = prepare(load_scenario({"model": LLAMA, "deployment": pool, "workload": workload})).plan
    formats = found.costs.formats
    assert (formats.weights.name, formats.kv_cache.name, found.costs.parallel.tensor) == ("q3h_b64t1", "q8_b32t2", 2)
    prepare(load_scenario({"model": LLAMA, "deployment": {**pool, "engine_args": "inferflow_service chat.ini --devices 0 "
        "--max-context-len 2048"}, "workload": workload}))  # fmt: skip
    with pytest.raises(InputError, match="host memory is not simulated"):
        parse_engine_args("inferflow", {"host_kv_cache_percent": 50})
    with pytest.raises(InputError, match="the CPU computes"):
        parse_engine_args("inferflow", {"decoder_cpu_layer_count": 4})
    with pytest.raises(InputError, match="no flag"):
        parse_engine_args("inferflow", {"max_num_seqs": 4})


def test_the_seventh_is_turned_away() -> None:
    """The shipped scenario, and the same on vLLM, where nobody is."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "shared-desk-inferflow-4090.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    totals = simulate(scenario).result["totals"]
    assert totals["reasons"]["shed_503"] > 0.02 * totals["offered"]
    other = {"engine": "vllm", "hardware": "rtx-4090-24gb", "weights": "int8_wo", "engine_args": {"max_model_len": 2048}}
    assert simulate({**scenario, "deployment": other}).result["totals"]["rejected"] == 0
