"""LMDeploy's two engines: which serves a pool, defaults as their configurations make them, flags, launch commands, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.lmdeploy import plan
from engine_models.engines.lmdeploy_pytorch import graph_sizes
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.schedulers.alternating import AlternatingScheduler
from engine_models.schedulers.oldest_first import OldestFirstRules, OldestFirstScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.kernels import operations_of
from simulator.run import RunResult, simulate

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def request_of(
    model: str = LLAMA,
    device: str = "h100-sxm-80gb",
    tp: int = 1,
    weights: str = "bf16",
    kv: str = "bf16",
    **flags: Any,
) -> PoolRequest:
    bf16 = format_named("bf16")
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), bf16, format_named(kv)),
        device_name=device,
        device_memory_bytes=int(load_device(device).memory_bytes.value),
        tensor_parallel=tp,
        flags={"backend": "pytorch", **flags},
    )


def scheduler_of(found: EnginePlan) -> AlternatingScheduler:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, AlternatingScheduler)
    return scheduler


def served(workload: dict[str, Any], **flags: Any) -> RunResult:
    pool = {"engine": "lmdeploy", "hardware": "h100-sxm-80gb", "engine_args": {"backend": "pytorch", **flags}}
    return simulate({"model": LLAMA, "deployment": pool, "workload": workload})


def test_defaults_on_an_h100() -> None:
    """0.8 of what 16.1 GB of weights, the context and logits of 8,192 + 2 x 1,024 rows in two bytes leave."""
    found = plan(request_of())
    scheduler, memory = scheduler_of(found), found.memory
    rules = scheduler.rules
    assert (rules.max_batch_size, rules.max_prefill_token_num, rules.prefill_interval) == (1024, 8192, 16)
    assert (rules.ttft_policy, rules.ttft_short_turns, rules.ttft_aging_s, rules.handle_pool) == (
        "size",
        3,
        2.0,
        1024,
    )
    assert (found.executor.depth, found.prefix_caching, found.limits.block_tokens) == (2, False, 64)
    logits = (8192 + 2 * 1024) * 128_256 * 2
    assert memory.bytes_of("activation") == logits
    free = memory.device_bytes - memory.bytes_of("weight") - memory.bytes_of("other")
    assert memory.kv_bytes == int(0.8 * (free - logits))
    assert scheduler.kv.capacity_blocks == found.limits.kv_blocks == memory.kv_bytes // (64 * 131_072) - 1
    assert (found.limits.context_tokens, found.limits.prompt_tokens) == (131_072, 131_071)


@pytest.mark.parametrize(
    ("device", "rows"),
    [("a100-sxm-80gb", 384), ("h200-sxm-141gb", 1024), ("l40s-48gb", 128), ("b200-sxm-180gb", 128)],
)
def test_rows_by_card(device: str, rows: int) -> None:
    assert scheduler_of(plan(request_of(device=device))).rules.max_batch_size == rows


def test_graphs_are_of_powers_of_two_then_of_steps() -> None:
    assert graph_sizes(1024) == (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024)
    assert graph_sizes(100) == (1, 2, 4, 8, 16, 32, 64, 100)
    assert graph_sizes(1) == (1,)
    assert plan(request_of(eager_mode=True)).costs.terms.graph_sizes == ()
    assert plan(
        request_of(max_batch_size=40, cudagraph_capture_batch_sizes=[8, 64])
    ).costs.terms.graph_sizes == (8, 40)


def test_a_prefill_is_halved_where_few_blocks_are_left() -> None:
    """Ten blocks beside the logits are too few, and half the budget leaves many; of two or fewer it does not start."""
    device = "rtx-4090-24gb"
    whole = plan(request_of(device=device)).memory
    row, block = 128_256 * 2, 64 * 131_072
    free = whole.device_bytes - whole.bytes_of("weight") - whole.bytes_of("other")
    prefill = (free - int(10.5 * block / 0.8)) // row - 2 * 128
    found = plan(request_of(device=device, max_prefill_token_num=prefill))
    assert scheduler_of(found).rules.max_prefill_token_num == prefill // 2
    with pytest.raises(InfeasibleError, match="does not fit"):
        plan(request_of(device=device, max_prefill_token_num=prefill + 12 * block // row))
    with pytest.raises(InfeasibleError, match="does not fit"):
        plan(request_of("meta-llama/Llama-3.1-70B-Instruct"))


def test_session_length_cuts_answers_and_refuses_prompts() -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 3}
    fixed = {
        "prompt_tokens": {"kind": "constant", "value": 500},
        "output_tokens": {"kind": "constant", "value": 300},
    }
    asked = {"max_output_tokens": {"kind": "constant", "value": 4000}}
    outcome = served({**load, **fixed, **asked}, session_len=600)
    assert outcome.result["totals"]["total_output_tokens"] == 300  # 100 each, not refused
    long = {**fixed, "prompt_tokens": {"kind": "uniform", "low": 599, "high": 601}}
    totals = served({**load, **long, "requests": 30}, session_len=600).result["totals"]
    assert 0 < totals["rejected"] < 30


def test_prompts_pause_the_running_rows_until_they_go_first_again() -> None:
    """Two rows of two run: no prompt comes in; of four, half of the rows are free, and it comes in at once."""
    load = {
        "arrivals": {"kind": "constant", "rate": 20},
        "prompt_tokens": {"kind": "constant", "value": 400},
        "output_tokens": {"kind": "constant", "value": 60},
        "requests": 60,
    }
    waits = [float(np.mean(_ttft_ms(served(load, max_batch_size=rows)))) for rows in (8, 64)]
    assert waits[0] > waits[1]
    often = served(load, max_batch_size=8, prefill_interval=1)
    assert float(np.mean(_ttft_ms(often))) < waits[0]


def _ttft_ms(outcome: RunResult) -> Any:
    column: Any = outcome.requests
    return np.asarray(column["ttft_ms"])


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        ({"backend": "turbomind", "weights": "fp8"}, "TurboMind loads no weights in fp8"),
        ({"backend": "turbomind", "kv": "fp8"}, "not in fp8"),
        ({"backend": "turbomind", "model": "Qwen/Qwen3.5-27B"}, "TurboMind's checkpoints of recurrent states"),
        ({"weights": "gptq"}, "PyTorch engine loads no weights in gptq"),
        ({"device": "mi300x-192gb"}, "on NVIDIA GPUs"),
        ({"model": "Qwen/Qwen3-Next-80B-A3B-Instruct", "tp": 4}, "state caches"),
    ],
)
def test_what_is_not_simulated_is_refused(request_: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(request_of(**request_))


def test_turbomind_on_an_h100() -> None:
    """turbomind.cc:301: 0.8 of what weights and context leave, buffers come out of the rest; 173: a step has room for
    `max_prefill_token_num` and a token of each of 1,024 rows; 121: its prompts together are no longer than a session."""
    found = plan(request_of(backend="turbomind"))
    scheduler, memory = found.scheduler("jump"), found.memory
    assert isinstance(scheduler, OldestFirstScheduler)
    assert scheduler.rules == OldestFirstRules(1024, 8192 + 1024, 131_072)
    free = memory.device_bytes - memory.bytes_of("weight") - memory.bytes_of("other")
    assert memory.kv_bytes == int(0.8 * free)
    assert scheduler.kv.capacity_blocks == found.limits.kv_blocks == memory.kv_bytes // (64 * 131_072)
    assert (found.executor.depth, found.prefix_caching, found.costs.terms.graph_sizes) == (2, False, ())
    assert plan(request_of(backend="turbomind", **{"async": 0})).executor.depth == 1
    for kv, bytes_of_vector in (("int8", 128 + 4), ("int4", 64 + 4)):  # block.h: with scale and zero point of a vector
        narrow = plan(request_of(backend="turbomind", kv=kv)).memory
        assert narrow.kv_bytes_per_token == pytest.approx(131_072 * bytes_of_vector / 256)
    short = plan(request_of(backend="turbomind", session_len=1000, max_batch_size=1000, max_prefill_token_num=512, tp=8))
    built = short.scheduler("jump")
    assert isinstance(built, OldestFirstScheduler)
    assert built.rules == OldestFirstRules(1000, 1512, 1_000_000)


def test_a_narrow_cache_of_turbomind_saves_reading() -> None:
    """decoding.cu: rows read the cache as it is kept; unified_attention_layer.cc:632: prompts a copy of it in 16 bits."""
    device = load_device("a100-sxm-80gb")
    ops = operations_of(device, "vllm")
    decodes, prompt = Batch(0, 64, 64, 64 * 8000, tokens=64), Batch(0, prefill=[(4096, 20_000)], tokens=4096)
    seconds: dict[str, list[float]] = {}
    for kv in ("bf16", "int8", "int4"):
        found = plan(request_of(device=device.name, backend="turbomind", kv=kv)).costs
        seconds[kv] = [
            costs.over(ops).step_s([batch])[0]
            for costs, batch in ((found, decodes), (found, prompt), (found.with_terms(flattens_kv=False), prompt))
        ]
    wide, eight, four = (seconds[kv][0] for kv in ("bf16", "int8", "int4"))
    assert wide - eight == pytest.approx(2 * (eight - four), rel=0.15)  # 16, 8 and 4 bits of each value
    copied_s = seconds["bf16"][1] - seconds["bf16"][2]
    moved_bytes = 32 * 24_096 * 2 * 8 * 128 * (2 + 2)  # read and written
    assert copied_s == pytest.approx(moved_bytes / device.memory_bandwidth_bytes_per_s.value, rel=0.6)


def test_turbomind_serves_what_it_has() -> None:
    """archs.py:10: a model that TurboMind lacks goes to the PyTorch engine, whatever is asked for, and that is said."""
    assert isinstance(plan(request_of(backend="turbomind")).scheduler("jump"), OldestFirstScheduler)
    other = plan(request_of("mistralai/Mistral-7B-v0.1", backend="turbomind"))
    assert isinstance(other.scheduler("jump"), AlternatingScheduler)
    assert other.notes[0] == "TurboMind has no models of the type 'mistral': LMDeploy takes its PyTorch engine"
    assert isinstance(plan(request_of(weights="int8", backend="turbomind")).scheduler("jump"), AlternatingScheduler)
    assert "takes its" not in " ".join(plan(request_of()).notes)


def test_launch_commands() -> None:
    found = parse_engine_args(
        "lmdeploy",
        "lmdeploy serve api_server internlm/internlm2_5-7b-chat --backend pytorch --tp 2 --cache-max-entry-count 0.5 "
        "--session-len 32768 --server-port 23333 --enable-prefix-caching",
    )
    assert found.model == "internlm/internlm2_5-7b-chat"
    assert found.values == {
        "backend": "pytorch",
        "tp": 2,
        "cache_max_entry_count": 0.5,
        "session_len": 32768,
        "enable_prefix_caching": True,
    }
    image = "docker run --gpus all openmmlab/lmdeploy:v0.18.0 lmdeploy serve api_server m --backend pytorch"
    assert parse_engine_args("lmdeploy", image).values == {"backend": "pytorch"}
    variable = "LMDEPLOY_PT_TTFT_POLICY=fifo lmdeploy serve api_server m --backend pytorch --quant-policy 8"
    assert parse_engine_args("lmdeploy", variable).values == {
        "backend": "pytorch",
        "ttft_policy": "fifo",
        "quant_policy": "8",
    }
    with pytest.raises(InputError, match="which ranks share"):
        parse_engine_args("lmdeploy", "lmdeploy serve api_server m --dp 2")
    with pytest.raises(InputError, match="no flag"):
        parse_engine_args("lmdeploy", {"max_num_seqs": 4})


def test_short_prompts_go_ahead_of_a_documents_chunks() -> None:
    """The shipped scenario, and the same on an engine that computes a document's prompt before those that came later."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "documents-lmdeploy-h100.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    scenario["workload"] |= {"duration": 100, "warmup": 10}
    waits = []
    for pool in (scenario["deployment"], {"engine": "vllm", "hardware": "h100-sxm-80gb"}):
        outcome = simulate({**scenario, "deployment": pool})
        column: Any = outcome.requests
        chats = np.asarray(column["prompt_tokens"]) < 8192
        waits.append(float(np.quantile(np.asarray(column["ttft_ms"])[chats], 0.95)))
    assert waits[0] < 0.6 * waits[1]


def test_flags_that_only_the_other_engine_reads_are_said() -> None:
    """`cli/serve.py` of 1263d5cd hands each engine flags of its own; those of the other change nothing, without a word."""
    idle = {"eager_mode": True, "prefill_interval": 4}
    words = "eager_mode, prefill_interval: read by LMDeploy's PyTorch engine alone, without effect on TurboMind"
    assert plan(request_of(backend="turbomind", **idle)).warnings == (words,)
    assert plan(request_of(**idle)).warnings == ()
    assert plan(request_of(**{"async": 0})).warnings[0].startswith("async: read by TurboMind alone")
    assert plan(request_of(backend="turbomind", **{"async": 0})).warnings == ()


@pytest.mark.parametrize("backend", ["pytorch", "turbomind"])
def test_a_limit_of_requests_that_are_in_work_does_not_hold_for_streamed_answers(backend: str) -> None:
    """api_server.py:168 of 1263d5cd gives a place back when an answer begins, and streams begin at once; it is said."""
    given = parse_engine_args("lmdeploy", {"backend": backend, "max_concurrent_requests": 2})
    assert "max_concurrent_requests" not in given.values
    assert any("answers that are not streamed" in text for text in given.warnings)
