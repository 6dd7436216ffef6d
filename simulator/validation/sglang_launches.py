"""What is published of measured SGLang runs, and the rows do not say: launch flags, warm-up, and what is fitted to them.

Facts of the launches, the same for every row of a kind. Two are inferences (marked below): the row limits of DeepSeek-R1 in fp8
on eight B200, of which no script of the runs' date was found, and the synchronous scheduling in NVIDIA's own runs.
Sources, read 2026-11: github.com/SemiAnalysisAI/InferenceX (Apache-2.0), `benchmarks/benchmark_lib.sh` and
`benchmarks/single_node/`; github.com/ai-dynamo/aiconfigurator (Apache-2.0), `src/aiconfigurator/generator`:
`rule_plugin/sglang.rule`, `config/backend_templates`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.overheads import own_overheads
from engine_models.engines.sglang import ENGINE
from simulator.validation.launches import is_gap_analysis, is_inferencex, measured_on
from simulator.validation.published import Fitting, Published, Row, Unknowns, number, parts
from simulator.validation.spellings import Unplayable

WARMED_SINCE = "2026-01-27"
"""InferenceX runs its load twice over before it measures since this day (`--num-warmups`, pull request 480, opened on the 17th to
be merged ten days later). Before, one request went ahead."""


def compiles_while_measured(row: dict[str, Any]) -> bool:
    """Whether a run measured what its server compiled on first use, beside what it serves.

    SGLang warms up with one short request, so without a warm-up by the client the first prefills of a run compile kernels for
    their shapes. Rows of B200 whose prefills fill a chunk wait once for 50 to 90 s (nvfp4, 10 November 2025) or 10 to 20 s (the
    others), whatever their load and length: 5 to 9 s and 1 to 2 s on a mean over ten requests a user, where 0.3 to 2 s are
    served. Prompts of 1,024 tokens by up to 16 users, which fill none, wait 2 to 5 s. vLLM tries its largest batch at start-up.
    """
    return is_inferencex(row) and "" < measured_on(row) < WARMED_SINCE


def start_s(row: dict[str, Any]) -> float:
    """How much longer the first request of each user waits when the closed loop of a row starts [s].

    InferenceX's figures are means over ten requests a user, the first of which are sent at once. Under SGLang some of these wait
    1 to 2 s longer than their prefill takes (issue 870: the 99th percentile of 80 requests by 8 users is 1.98 s, the mean
    0.33 s), under vLLM with gpt-oss none does. The cause is not known; with one user a request has no such delay.
    """
    return float(own_overheads(ENGINE.name)["start_s"]["value"]) if is_inferencex(row) else 0.0


def launch_flags(row: dict[str, Any], hardware: str, ranks: int) -> dict[str, Any]:
    """Flags with which the server of a row was launched.

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


def release(stated: str) -> str:
    """The modelled version for a stated one: 0.4, which has the overlapped scheduler of today, is taken for the newest."""
    if parts(stated) < (0, 4):
        raise Unplayable(f"{ENGINE.title} {stated} scheduled otherwise than the modelled versions")
    return "" if parts(stated) < (0, 5) else stated


def columns(row: Row) -> dict[str, Any]:
    """Flags that a row's columns state."""
    names = {
        "max_model_len": "context_length",
        "max_num_seqs": "max_running_requests",
        "max_num_batched_tokens": "chunked_prefill_size",
        "block_size": "page_size",
    }
    args: dict[str, Any] = {flag: int(row[name]) for name, flag in names.items() if number(row, name)}
    if number(row, "gpu_mem_util"):
        args["mem_fraction_static"] = float(row["gpu_mem_util"])
    if row.get("prefix_caching") is not None and not row["prefix_caching"]:
        args["disable_radix_cache"] = True
    return args


UNKNOWNS: Unknowns = {
    "serial_step_s": (
        "s",
        0.001,
        "host time of a step where it does not overlap with the device: batch, inputs, launch, read-back, results",
    ),
    "row_s": ("s", 1e-5, "host time of a step per row: results, streaming, next batch; hidden under overlap"),
    "start_s": (
        "s",
        0.5,
        "what the first request of each user waits longer when a closed loop starts; replays of InferenceX only, "
        "in no simulation",
    ),
}


def _told(row: Row, flags: Mapping[str, Any], measured: bool) -> tuple[str, ...]:
    """Time per output token where the host's time does not overlap, TTFT where closed loops start late.

    Those in fp8 on B200 are left out: their prefill kernels are too quick by more than the unknown is.
    """
    token, first = TARGETS
    if flags.get("disable_overlap_schedule", False):
        return (token,) if token in row else ()
    off = row.get("precision") == "fp8" and str(row["hardware"]).lower().startswith("b200")
    return (first,) if first in row and start_s(row) and not off and not compiles_while_measured(row) else ()


def _runs(name: str, rows: list[Row]) -> tuple[str, str, str]:
    where = " and ".join(sorted({str(row["hardware"]).split("-")[0] for row in rows}))
    by_nvidia = "NVIDIA's own, through Dynamo, scheduling taken for synchronous"
    return ENGINE.name, where, f"silicon sample of aiconfigurator: {'InferenceX' if name == 'start_s' else by_nvidia}"


TARGETS = ("tpot_mean_ms", "ttft_mean_ms")

SGLANG = Published(
    release=release,
    columns=columns,
    launch=launch_flags,
    ranks={"enable_dp_attention": True},
    start_s=start_s,
    compiles_while_measured=compiles_while_measured,
    fittings={"": Fitting(UNKNOWNS, TARGETS, _told, _runs)},
    fitted="the host time of a step on NVIDIA's runs of Llama-3.1-8B, and what "
    "a closed loop of InferenceX waits longer at its start (in these replays alone) on runs of DeepSeek-R1",
)
