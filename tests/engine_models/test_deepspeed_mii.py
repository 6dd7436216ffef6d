"""DeepSpeed-MII: memory as its configuration makes it, flags, calls and launch commands, refusals, and what SplitFuse gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import PoolRequest
from engine_models.engines.deepspeed_mii import plan
from engine_models.engines.known import parse_engine_args
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.schedulers.split_fuse import SplitFuseRules, SplitFuseScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.run import simulate

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
ARGS = "deployment.engine_args"


def request_of(model: str = LLAMA, device: str = "a100-sxm-80gb", tp: int = 1, kv: str = "bf16", **flags: Any) -> PoolRequest:
    bf16 = format_named("bf16")
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(bf16, bf16, format_named(kv)),
        device_name=device,
        device_memory_bytes=int(load_device(device).memory_bytes.value),
        tensor_parallel=tp,
        flags=flags,
    )


def test_defaults_on_an_a100() -> None:
    """All that weights, context and buffers leave, less a reserve of 10^9 bytes, in blocks of 64 tokens."""
    found = plan(request_of())
    scheduler, memory = found.scheduler("jump"), found.memory
    assert isinstance(scheduler, SplitFuseScheduler)
    assert scheduler.rules == SplitFuseRules(768, 512, 2048)
    assert memory.bytes_of("reserve") == 1_000_000_000
    free = memory.device_bytes - sum(line.bytes for line in memory.lines)
    assert memory.kv_bytes == free
    assert scheduler.capacity_blocks == memory.blocks == free // (64 * 131_072)
    assert (found.executor.depth, found.costs.terms.graph_sizes, found.prefix_caching) == (1, (), False)
    assert (found.limits.prompt_tokens, found.limits.row_tokens) == (131_071, 131_073)


def test_a_fixed_number_of_blocks() -> None:
    memory = {"mode": "allocate", "size": 500}
    assert plan(request_of(memory_config=memory)).memory.blocks == 500
    nested = {"state_manager": {"memory_config": memory, "max_ragged_batch_size": 512}}
    found = plan(request_of(inference_engine_config=nested))
    assert (found.memory.blocks, found.limits.step_tokens, found.limits.row_tokens) == (500, 512, 500 * 64 + 1)
    with pytest.raises(InfeasibleError, match="20,000 KV blocks"):
        plan(request_of(memory_config={"mode": "allocate", "size": 20_000}))


def test_narrow_heads_have_larger_blocks_and_windows_are_not_known() -> None:
    assert plan(request_of("facebook/opt-125m")).limits.block_tokens == 128
    windowed = plan(request_of("mistralai/Mistral-7B-v0.1"))
    assert all(block.window_tokens == 0 for block in windowed.costs.arch.attention)


def test_max_length_leaves_one_token_more() -> None:
    """The last token of an answer is in no cache, and the engine counts what is."""
    pool = {"engine": "deepspeed_mii", "hardware": "a100-sxm-80gb", "engine_args": {"max_length": 384}}
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 300, "output_tokens": 200, "requests": 2}
    totals = simulate({"model": LLAMA, "deployment": pool, "workload": load}).result["totals"]
    assert totals["total_output_tokens"] == 2 * 85
    refused = simulate({"model": LLAMA, "deployment": pool, "workload": {**load, "prompt_tokens": {
        "kind": "uniform", "low": 383, "high": 384}, "requests": 20}}).result["totals"]  # fmt: skip
    assert 0 < refused["rejected"] < 20


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"device": "mi300x-192gb"}, "on NVIDIA GPUs from Ampere"),
        ({"model": "google/gemma-3-4b-it"}, "no implementation of models of type gemma3"),
        ({"kv": "fp8"}, "keeps the KV cache in 16 bits"),
        ({"max_ragged_batch_size": 256}, "max_ragged_sequence_count 512 is more than max_ragged_batch_size 256"),
        ({"inference_engine_config": {"state_manager": {"offload": True}}}, "does not keep KV blocks in host memory"),
        ({"inference_engine_config": {"state_manager": {"max_ragged_batch": 9}}}, "no key `max_ragged_batch`"),
        ({"memory_config": {"mode": "grow"}}, "mode"),
    ],
)
def test_what_it_lacks_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        plan(request_of(**request_))
    assert error.value.mend


def test_weights_that_do_not_fit() -> None:
    with pytest.raises(InfeasibleError, match="too much on each of 1 devices"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct"))


def test_launch_commands_and_calls() -> None:
    found = parse_engine_args(
        "deepspeed_mii",
        'import mii\nclient = mii.serve("mistralai/Mistral-7B-v0.1", tensor_parallel=2, replica_num=2, restful_api_port=28080)',
    )
    assert (found.model, found.values) == ("mistralai/Mistral-7B-v0.1", {"tensor_parallel": 2, "replica_num": 2})
    server = "python -m mii.entrypoints.openai_api_server --model m --tensor-parallel 2 --max-length 4096 --port 8000"
    assert parse_engine_args("fastgen", server).values == {"tensor_parallel": 2, "max_length": 4096}
    with pytest.raises(InputError, match="`tp` in the call is no flag with a value"):
        parse_engine_args("deepspeed_mii", 'mii.serve("m", tensor_parallel=tp)')
    with pytest.raises(InputError, match="starts 2 servers"):
        parse_engine_args("deepspeed_mii", 'mii.serve("m")\nmii.serve("n")')
    with pytest.raises(InputError, match="FP6 is not simulated"):
        parse_engine_args("deepspeed_mii", 'mii.serve("m", quantization_mode="wf6af16")')
    with pytest.raises(InputError, match="launch command of deepspeed_mii, not of vllm"):
        parse_engine_args("vllm", 'mii.serve("m")')
    with pytest.raises(InputError, match="no flag"):
        parse_engine_args("deepspeed_mii", {"max_num_seqs": 4})


def test_long_prompts_beside_answers_that_stream() -> None:
    """The shipped scenario, and the same on vLLM, whose steps take 2,048 prompt tokens: the longest pause between two tokens."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "splitfuse-mii-a100.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    scenario["workload"] |= {"duration": 60, "warmup": 5}
    pauses = []
    for engine in ("deepspeed_mii", "vllm"):
        found = simulate({**scenario, "deployment": {**scenario["deployment"], "engine": engine}})
        pauses.append(float(np.asarray(found.result["metrics"]["itl_ms"]["p99"])))
    assert pauses[0] < 0.6 * pauses[1]
