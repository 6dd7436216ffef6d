"""What the sources of sampled rows publish of their benchmarks, and the rows do not say: lengths, launch flags, ranks, warm-up.

Facts of the workload, the same for every row of a kind. Two are inferences (marked below): the row limits of DeepSeek-R1 in fp8
on eight B200, of which no script of the runs' date was found, and the synchronous scheduling of SGLang in NVIDIA's own runs.
Sources, read 2026-11: github.com/SemiAnalysisAI/InferenceX (Apache-2.0), `utils/bench_serving/benchmark_serving.py`,
`benchmarks/benchmark_lib.sh` and `benchmarks/single_node/`; github.com/ai-dynamo/aiconfigurator (Apache-2.0),
`src/aiconfigurator/generator`: `rule_plugin/sglang.rule`, `config/backend_templates`.
"""

from __future__ import annotations

import re
from typing import Any

RANGE_RATIO = 0.8
"""Lengths are uniform from this share of the stated one up to it (`--random-range-ratio`, function `sample_random_requests`)."""

NODE_GPUS = 8
"""GPUs of the machines of the single-node runs."""


WARMED_SINCE = "2026-01-27"
"""InferenceX runs its load twice over before it measures since this day (`--num-warmups`, pull request 480, opened on the 17th to
be merged ten days later). Before, one request went ahead."""

RESTATED = "kimi-k2.5-gap-analysis.csv"
"""File of the sample that restates InferenceX runs under another source: the same figures, rounded to two decimals."""


def is_inferencex(row: dict[str, Any]) -> bool:
    """Whether a row is an InferenceX run in the sample of aiconfigurator."""
    source = str(row.get("source", "")).lower()
    return "aiconfigurator" in source and (
        "inferencex" in source or RESTATED in str(row.get("source_path", ""))
    )


def is_gap_analysis(row: dict[str, Any]) -> bool:
    """Whether a row is a run of NVIDIA's own (not one that restates InferenceX): servers that aiconfigurator generates."""
    return "nvidia-gap-analysis" in str(row.get("source", "")).lower() and not is_inferencex(row)


def measured_on(row: dict[str, Any]) -> str:
    """Day on which a row was measured, by its column or by its source path (`measured=2026-04-22`); "" if neither states it."""
    stated = re.search(r"\d{4}-\d{2}-\d{2}", str(row.get("measured_on") or ""))
    found = stated or re.search(r"(?<=measured=)\d{4}-\d{2}-\d{2}", str(row.get("source_path", "")))
    return found.group() if found else ""


def compiles_while_measured(row: dict[str, Any]) -> bool:
    """Whether a run measured what its server compiled on first use, beside what it serves.

    SGLang warms up with one short request, so without a warm-up by the client the first prefills of a run compile kernels for
    their shapes. Rows of B200 whose prefills fill a chunk wait once for 50 to 90 s (nvfp4, 10 November 2025) or 10 to 20 s (the
    others), whatever their load and length: 5 to 9 s and 1 to 2 s on a mean over ten requests a user, where 0.3 to 2 s are
    served. Prompts of 1,024 tokens by up to 16 users, which fill none, wait 2 to 5 s. vLLM tries its largest batch at start-up.
    """
    sglang = str(row.get("engine", "")).lower().startswith("sglang")
    return sglang and is_inferencex(row) and "" < measured_on(row) < WARMED_SINCE


def start_s(row: dict[str, Any]) -> float:
    """How much longer the first request of each user waits when the closed loop of a row starts [s].

    InferenceX's figures are means over ten requests a user, the first of which are sent at once. Under SGLang some of these wait
    1 to 2 s longer than their prefill takes (issue 870: the 99th percentile of 80 requests by 8 users is 1.98 s, the mean
    0.33 s), under vLLM with gpt-oss none does. The cause is not known; with one user a request has no such delay.
    """
    from engine_models.cost.overheads import own_overheads

    sglang = str(row.get("engine", "")).lower().startswith("sglang")
    return float(own_overheads("sglang")["start_s"]["value"]) if sglang and is_inferencex(row) else 0.0


def tensor_ranks(row: dict[str, Any], tensor_parallel: int, expert_parallel: int) -> int:
    """Ranks over which a row's model is split, given what the row says.

    Where experts are split as well, the sample multiplies the two: 16 = 4 x 4 and 64 = 8 x 8 on machines of 8 GPUs, with the
    very measurements that other rows give for 4 and for 8 ranks.
    """
    multiplied = tensor_parallel > NODE_GPUS and tensor_parallel == expert_parallel * expert_parallel
    return expert_parallel if multiplied and is_inferencex(row) else tensor_parallel


def shared_ranks(
    row: dict[str, Any], tensor_parallel: int, data_parallel: int, expert_parallel: int
) -> tuple[int, int, int]:
    """Tensor-, data- and expert-parallel ranks of a row that counts data-parallel ranks, given what the row says.

    The sample of InferenceX multiplies counts where experts are split. Rows of 2 x 2 and 4 x 4 (tensor x data ranks) repeat
    runs that other rows give as tensor parallelism of 2 and 4 with as many expert ranks, within 2 % in TPOT; they ran
    on 2 and 4 GPUs with ``--tensor-parallel-size N --enable-expert-parallel``, no data-parallel attention. Rows of one
    tensor rank are data-parallel attention: 64 ranks of 8 experts' shares are the 8 of other rows with the same measurements.
    """
    if not is_inferencex(row):
        return tensor_parallel, data_parallel, expert_parallel
    if tensor_parallel > 1:
        return tensor_parallel, 1, tensor_parallel
    ranks = expert_parallel if data_parallel == expert_parallel * expert_parallel else data_parallel
    return 1, ranks, expert_parallel


def sglang_flags(row: dict[str, Any], hardware: str, ranks: int) -> dict[str, Any]:
    """Flags with which SGLang is launched.

    InferenceX: DeepSeek-R1 by hardware and load (scripts `dsr1_{fp4,fp8}_{b200,h200}.sh`). NVIDIA's own runs: what aiconfigurator
    writes for a server that prefills and decodes, and no overlap of host and device (an inference: a step takes longer than
    its kernels by about 3 ms and 13 us a row, on one, two, four and eight GPUs alike).
    """
    if is_gap_analysis(row):
        most = int(row.get("prompt_tokens_mean", 0)) + 1500
        return {"enable_mixed_chunk": True, "max_prefill_tokens": most, "disable_overlap_schedule": True}
    if not is_inferencex(row) or not str(row["model"]).startswith("deepseek-ai/DeepSeek-"):
        return {}
    users, prompt = int(row.get("concurrency", 0)), float(row.get("prompt_tokens_mean", 0))
    rows = 512 if prompt <= 1024 else 256
    # a row without a version is of a time before prefills were captured
    old = {} if row.get("engine_version") else {"disable_piecewise_cuda_graph": True}
    if hardware.startswith("h200"):
        return _flags(rows, 0.82, 32768, 32768) | old
    if not hardware.startswith("b200"):
        return {}
    here = {"kv_cache_dtype": "fp8_e4m3", "scheduler_recv_interval": 30 if users >= 16 else 10} | old
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
