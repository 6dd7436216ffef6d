"""What the sources of sampled rows publish of their benchmarks, whatever the engine, and the rows do not say: lengths, ranks.

Facts of the workload, the same for every row of a kind. Sources, read 2026-11: github.com/SemiAnalysisAI/InferenceX (Apache-2.0),
`utils/bench_serving/benchmark_serving.py`, `benchmarks/benchmark_lib.sh` and `benchmarks/single_node/`.
"""

from __future__ import annotations

import re
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


def is_gap_analysis(row: dict[str, Any]) -> bool:
    """Whether a row is a run of NVIDIA's own (not one that restates InferenceX): servers that aiconfigurator generates."""
    return "nvidia-gap-analysis" in str(row.get("source", "")).lower() and not is_inferencex(row)


def measured_on(row: dict[str, Any]) -> str:
    """Day on which a row was measured, by its column or by its source path (`measured=2026-04-22`); "" if neither states it."""
    stated = re.search(r"\d{4}-\d{2}-\d{2}", str(row.get("measured_on") or ""))
    found = stated or re.search(r"(?<=measured=)\d{4}-\d{2}-\d{2}", str(row.get("source_path", "")))
    return found.group() if found else ""


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
