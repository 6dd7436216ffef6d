"""Commands of benchmarks: those that start an engine are launches, those that only send are told by what they send."""

from __future__ import annotations

from typing import Any

import pytest

from engine_models.engines.bench_loads import load_of
from engine_models.engines.known import launched_by, parse_engine_args
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario

RANDOM = "--dataset-name random --num-prompts 100 --random-input-len 1024 --random-output-len 128"


@pytest.mark.parametrize(
    ("engine", "command", "values", "load"),
    [
        ("vllm", f"vllm bench throughput --model org/m -tp 2 {RANDOM}", {"tensor_parallel_size": 2}, "prompt_tokens: 1024"),
        (
            "vllm",
            "python benchmarks/benchmark_latency.py --model org/m --batch-size 32 --input-len 512 --output-len 16",
            {},
            "requests: 32",
        ),
        ("sglang", f"python -m sglang.bench_offline_throughput --model-path org/m {RANDOM}", {}, "low: 1, high: 1024"),
        (
            "sglang",
            "python -m sglang.bench_one_batch --model org/m --batch-size 4 8 --input-len 256 512 --output-len 32",
            {},
            "prompt_tokens: 256",
        ),
        (
            "trtllm",
            "trtllm-bench -m org/m throughput --dataset d.txt --tp 2 --max_batch_size 64 --concurrency 8 --streaming",
            {"tensor_parallel_size": 2, "max_batch_size": 64},
            "fits them to the load",
        ),
    ],
)
def test_a_benchmark_that_starts_an_engine_is_a_launch(engine: str, command: str, values: Any, load: str) -> None:
    found = parse_engine_args(engine, command)
    assert (found.values, found.model, found.warnings) == (values, "org/m", [])
    assert load in found.notes[0]
    assert launched_by(command) == engine
    with pytest.raises(InputError, match="has no flag"):
        parse_engine_args(engine, f"{command} --no-such-flag 1")


@pytest.mark.parametrize("program", ["vllm serve", "python -m sglang.launch_server --model-path", "trtllm-serve"])
def test_flags_of_a_benchmark_are_none_of_the_server(program: str) -> None:
    engine = launched_by(f"{program} org/m")
    assert engine is not None
    with pytest.raises(InputError, match="has no flag `--num-iters`"):
        parse_engine_args(engine, f"{program} org/m --num-iters 3")


@pytest.mark.parametrize(
    ("command", "workload"),
    [
        (
            f"vllm bench serve --model m {RANDOM} --request-rate 4 --random-range-ratio 0.5",
            {
                "arrivals": {"kind": "poisson", "rate": 4},
                "prompt_tokens": {"kind": "uniform", "low": 512, "high": 1536},
                "output_tokens": {"kind": "uniform", "low": 64, "high": 192},
                "requests": 100,
            },
        ),
        (
            "-m sglang.bench_serving --random-input 512 --random-output 64 \\\n --random-range-ratio 1 --max-concurrency 16",
            {"arrivals": {"kind": "closed_loop", "concurrency": 16}, "prompt_tokens": 512, "output_tokens": 64},
        ),
        (
            'guidellm benchmark --rate-type constant --rate 10 --max-seconds 30 --data "prompt_tokens=256,output_tokens=128"',
            {"arrivals": {"kind": "constant", "rate": 10}, "prompt_tokens": 256, "output_tokens": 128, "duration": 30},
        ),
        (
            "aiperf profile -m m --concurrency 8 --isl 512 --osl 128 --request-count 100",
            {"arrivals": {"kind": "closed_loop", "concurrency": 8}, "prompt_tokens": 512, "requests": 100},
        ),
        ("genai-perf profile --synthetic-input-tokens-mean 200 --output-tokens-mean 9", {"arrivals": {"kind": "batch"}}),
    ],
)
def test_a_client_is_told_by_the_load_that_it_sends(command: str, workload: Any) -> None:
    import yaml

    with pytest.raises(InputError, match=r"no launch command of vllm: .* sends requests to a server") as refused:
        parse_engine_args("vllm", command)
    text = str(refused.value).partition("workload: ")[2].rpartition(", and here")[0]
    written = yaml.safe_load(text)
    assert {key: written[key] for key in workload} == workload
    ends = {} if {"requests", "duration"} & {*written} else {"requests": 10}
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb"}
    load_scenario({"model": "Qwen/Qwen3-8B", "deployment": deployment, "workload": written | ends})


def test_a_client_beside_its_server_is_no_refusal() -> None:
    found = parse_engine_args("vllm", "vllm serve org/m --max-num-seqs 8 &\nvllm bench serve --model org/m --num-prompts 9")
    assert found.values == {"max_num_seqs": 8}


def test_data_without_lengths_state_no_load() -> None:
    assert load_of(["--dataset-name", "sharegpt", "--dataset-path", "f.json", "--request-rate", "2"]) is None
    with pytest.raises(InputError, match="the scenario's workload, and here the server's command"):
        parse_engine_args("sglang", "inference-perf --config_file config.yml")
