"""What InferenceX publishes of its benchmark, and the rows sampled from it do not say: lengths, launch flags, ranks.

Facts of the workload, the same for every row of a kind. One is an inference (marked below): the row limits of DeepSeek-R1 in fp8
on eight B200, of which no script of the runs' date was found. Source, read 2026-11:
github.com/SemiAnalysisAI/InferenceX (Apache-2.0), `utils/bench_serving/benchmark_serving.py`, `benchmarks/benchmark_lib.sh` and
`benchmarks/single_node/`.
"""

from __future__ import annotations

from typing import Any

RANGE_RATIO = 0.8
"""Lengths are uniform from this share of the stated one up to it (`--random-range-ratio`, function `sample_random_requests`)."""

NODE_GPUS = 8
"""GPUs of the machines of the single-node runs."""


RESTATED = "kimi-k2.5-gap-analysis.csv"
"""File of the sample that restates InferenceX runs under another source: the same figures, rounded to two decimals."""


def is_inferencex(row: dict[str, Any]) -> bool:
    """Whether a row is an InferenceX run in the sample of aiconfigurator."""
    source = str(row.get("source", "")).lower()
    return "aiconfigurator" in source and (
        "inferencex" in source or RESTATED in str(row.get("source_path", ""))
    )


def tensor_ranks(row: dict[str, Any], tensor_parallel: int, expert_parallel: int) -> int:
    """Ranks over which a row's model is split, given what the row says.

    Where experts are split as well, the sample multiplies the two: 16 = 4 x 4 and 64 = 8 x 8 on machines of 8 GPUs, with the
    very measurements that other rows give for 4 and for 8 ranks.
    """
    multiplied = tensor_parallel > NODE_GPUS and tensor_parallel == expert_parallel * expert_parallel
    return expert_parallel if multiplied and is_inferencex(row) else tensor_parallel


def sglang_flags(row: dict[str, Any], hardware: str, ranks: int) -> dict[str, Any]:
    """Flags with which SGLang is launched for DeepSeek-R1 (scripts `dsr1_{fp4,fp8}_{b200,h200}.sh`), by hardware and load."""
    if not is_inferencex(row) or not str(row["model"]).startswith("deepseek-ai/DeepSeek-"):
        return {}
    users, prompt = int(row.get("concurrency", 0)), float(row.get("prompt_tokens_mean", 0))
    rows = 512 if prompt <= 1024 else 256
    if hardware.startswith("h200"):
        return _flags(rows, 0.82, 32768, 32768)
    if not hardware.startswith("b200"):
        return {}
    here = {"kv_cache_dtype": "fp8_e4m3", "scheduler_recv_interval": 30 if users >= 16 else 10}
    if row.get("precision") == "fp4":
        return _flags(256, 0.85, 16384, 16384) | here
    if ranks == 4:
        return _flags(32, 0.95, 8192, 8192) | here | {"scheduler_recv_interval": 10}
    # the script as found stops at 128 rows; runs with up to 512 users were made before: limits of the H200 script
    return _flags(rows, 0.82, 32768, 32768) | here


def _flags(rows: int, memory_fraction: float, chunk_tokens: int, prefill_tokens: int) -> dict[str, Any]:
    return {
        "disable_radix_cache": True,
        "max_running_requests": rows,
        "cuda_graph_max_bs": rows,
        "mem_fraction_static": memory_fraction,
        "chunked_prefill_size": chunk_tokens,
        "max_prefill_tokens": prefill_tokens,
    }
