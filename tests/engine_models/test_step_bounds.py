"""Steps of every engine on every device: none beats the memory or the arithmetic, and no longer prompt is quicker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count

import pytest

from engine_models.cost.step_time import TableRange
from engine_models.cost.sub_batches import SubBatches
from engine_models.engines.known import BUILT_IN, engine_named
from engine_models.model.architecture import kv_bytes_per_token
from engine_models.model.formats import FORMATS, format_named
from engine_models.parts.batch import Batch, Span
from engine_models.schedulers.slots import padded
from hardware_profiles.device import all_devices
from hardware_profiles.errors import PlanError
from hardware_profiles.packed_formats import PACKED_FORMATS
from simulator.calibration.agreement import read_bound_s, token_bound_s
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare

MODELS = ("meta-llama/Llama-3.2-1B", "Qwen/Qwen3-30B-A3B", "meta-llama/Llama-3.1-8B", "openai/gpt-oss-20b",
          "google/gemma-3-4b-it")  # fmt: skip
CONTEXTS = {"exllamav2": {"max_seq_len": 8192}, "inferflow": {"max_context_len": 4096}}
PROMPTS = (1, 2, 3, 4, 8, 9, 16, 17, 31, 32, 33, 64, 65, 100, 128, 129, 256, 300, 512)
CONTEXT = 2048
SLACK = 1 - 1e-9


@cache
def pools() -> list[tuple[str, str, str, str]]:
    """Engine, device, format and model: each engine on each device that it runs on, in all of its formats."""
    return list(_pools())


def _pools() -> Iterator[tuple[str, str, str, str]]:
    turn, seen = count(), set()
    for device in all_devices():
        profile = device.name if device.kind == "cpu" else device.name.rpartition("-")[0]  # one size of memory
        if profile in seen:
            continue
        seen.add(profile)
        for engine in map(engine_named, BUILT_IN):
            loads = [name for name in (*FORMATS, *PACKED_FORMATS) if {name, format_named(name).family} & engine.formats.keys()]
            if device.kind in engine.devices:
                for weights in loads:
                    yield engine.name, device.name, weights, MODELS[next(turn) % len(MODELS)]


def prepared(engine: str, device: str, weights: str, model: str) -> Prepared | None:
    """The deployment, None where it is refused."""
    pool = {"engine": engine, "hardware": device, "weights": weights}
    if engine in CONTEXTS:
        pool["engine_args"] = CONTEXTS[engine]
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    try:
        return prepare(load_scenario({"model": model, "deployment": pool, "workload": load}))
    except PlanError:
        return None


def check(found: Prepared) -> None:
    """See the head of the file."""
    costs = replace(found.plan.costs, up_to=TableRange(PROMPTS[-1], 1, 2 * CONTEXT)).over(found.kernels)
    model = costs.model if isinstance(costs, SubBatches) else costs
    row = Batch(0, decode_rows=1, decode_tokens=1, decode_kv_tokens=CONTEXT, tokens=1)
    windows = found.arch.windows_below(CONTEXT)
    row.spans = tuple(Span(window, window, 0) for window in windows)
    row.pool_cells = padded(CONTEXT) if found.plan.costs.parts is not None else 0
    least_s = read_bound_s(found)
    if least_s and not windows:
        cached = CONTEXT * kv_bytes_per_token(found.arch, found.formats.kv_cache)
        least_s += cached / found.device.memory_bandwidth_bytes_per_s.value
    assert model.step_s([row])[0] >= SLACK * least_s
    token_s = token_bound_s(found)
    for prior in (0, CONTEXT):
        last_s = 0.0
        for tokens in PROMPTS:
            batch = Batch(0, prefill=[(tokens, prior)], tokens=tokens)
            step_s = model.step_s([batch])[0]
            assert step_s >= SLACK * max(last_s, tokens * token_s), (tokens, prior)
            if model.as_run(batch) is batch:  # one token is computed as a decoding row's, by the kernel that was timed for these
                last_s = step_s


SHARES = "Qwen/Qwen1.5-MoE-A2.7B"
"""Its shared expert is as wide as the routed ones of a token together, and runs beside them."""
QUICK = [
    ("llama_cpp", "apple-m4-10c-32gb", "mxfp4_moe", MODELS[3]),
    ("openvino", "xeon-8480-1s", "fp32", MODELS[0]),
    ("trtllm", "l40s-48gb", "bf16", SHARES),
]


@pytest.mark.parametrize("pool", QUICK)
def test_no_step_beats_the_device_and_no_longer_prompt_is_quicker(pool: tuple[str, str, str, str]) -> None:
    found = prepared(*pool)
    assert found is not None
    check(found)


@pytest.mark.slow
@pytest.mark.parametrize("engine", BUILT_IN)
def test_so_it_is_of_every_engine_on_every_device(engine: str) -> None:
    checked = 0
    for pool in (pool for pool in pools() if pool[0] == engine):
        if (found := prepared(*pool)) is not None:
            try:
                check(found)
            except AssertionError as error:
                raise AssertionError(pool) from error
            checked += 1
    assert checked >= 40
