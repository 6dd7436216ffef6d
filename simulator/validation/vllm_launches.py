"""What is known of measured vLLM runs beside rows and launches: versions, instances, hosts, and what is fitted to them.

Facts of the sources, the same for every row of a kind. Read 2026-11: github.com/casys-kaist/LLMServingSim (MIT) at e0f4911,
`evaluation/artifacts`: server logs under `figure_6/raw_data` and `figure_7/raw_data`, budget in `figure_8/logs`; at fbda276
and 3b21cc5, `bench/core/runner.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.engines.vllm import ENGINE
from engine_models.engines.vllm_flags import (
    EXPERT_VARIABLES,
    FP32_VARIABLE,
    MARLIN_VARIABLE,
    MXFP8_VARIABLE,
    PLAIN_SAMPLING,
)
from simulator.validation.launches import launch_of, measured_on
from simulator.validation.published import Fitting, Published, Row, Unknowns, number, parts
from simulator.validation.spellings import Unplayable

MODELOPT = "nvidia/"
"""Publisher of the checkpoints that ModelOpt quantised."""
NIGHTLY = re.compile(r"nightly|main\b|dev\b")
RELEASES = (
    ("2025-10", "0.11.0"),
    ("2026-01", "0.14.1"),
    ("2026-02", "0.15.1"),
    ("2026-04", "0.19.1"),
    ("2026-06", "0.24.0"),
    ("2026-11", "0.33.0"),
)
"""Month from which a build of the main branch is that of a modelled version: the month of its release (tags on GitHub; 0.33.0:
known by then)."""


DRAWN_TOKEN_S = 5e-6
"""Front end's time for each token of a prompt made of drawn vocabulary entries [s] (InferenceX's `sample_random_requests`), one
prompt after the other. kind: fitted, 2026-11, source: gpt-oss-120b, 8,192 tokens, four users, H100, H200 and B200, TP 1 to 8:
at the 2 us of plain text 11 to 33 ms of the time to first token are left over, whether a prefill takes 24 or 290 ms. Such text
is slower than prose: it has about seven bytes a token and no word twice."""


def is_serving_sim_artifact(row: dict[str, Any]) -> bool:
    """Whether a row is a reference measurement of the LLMServingSim 2.0 artifact."""
    source = str(row.get("source", ""))
    return "LLMServingSim" in source and "artifact" in source


def is_serving_sim_bench(row: dict[str, Any]) -> bool:
    """Whether a row is a run of LLMServingSim's bench, which drives the engine in its own process."""
    source = str(row.get("source", ""))
    return "LLMServingSim" in source and "artifact" not in source


def unstated_version(row: dict[str, Any]) -> str:
    """Version of a row that states none ("" if unknown): of its month's nightly build, or in the server logs of its source."""
    if is_serving_sim_artifact(row):
        return "0.13.0"
    if not NIGHTLY.match(str(row.get("engine_version", "")).lower()):
        return ""
    month = (re.search(r"20\d\d-\d\d", str(row["engine_version"])) or re.search(r"20\d\d-\d\d", measured_on(row)) or [""])[0]
    return next((version for since, version in reversed(RELEASES) if since <= month), "")


def host_cores(row: dict[str, Any]) -> int | None:
    """Cores that the batch job of a row's server had, where its ranks had to share them; None: as many as it wants.

    The jobs of `token_position_decode_slo` ask Slurm for eight GPUs and no CPUs, which then gives one core a task (sbatch's
    default; an inference, the cluster could be set otherwise). The measurements are those of a starved host: a step takes
    0.3 to 0.45 s whether it prefills 1,024 tokens or 8,192, the time that eight ranks need to launch its operations in turn,
    and the same model on the same GPUs takes 0.11 s to the first of 1,024 tokens in InferenceX's own runs.
    """
    return 1 if "token_position_decode_slo" in str(row.get("source", "")) else None


def client_facts(row: dict[str, Any]) -> dict[str, Any]:
    """What a row's client does to the front end: fields of `FrontEnd`; all of them send prompts, not chats."""
    drawn = {"tokenise_token_s": DRAWN_TOKEN_S} if launch_of(row).client.get("dataset") == "random" else {}
    return {"chat": False} | drawn


def launch_facts(row: dict[str, Any]) -> dict[str, Any]:
    """What the environment of a launch says that no flag does: fields of `Terms`."""
    precise = launch_of(row).environment.get(FP32_VARIABLE)
    return {"fp32_router": "tf32"} if precise == "high" else {}


def instances(row: dict[str, Any]) -> int:
    """Independent servers behind one router that a row counts as data parallel ranks: `agg (2 instances)`; else 1.

    The runs of inference-sim too (an inference): Mixtral with tensor parallelism 2 and two data-parallel ranks takes 17.7 and
    19.8 ms a token at 8 and 20 requests/s, which one server of two GPUs takes at 4 and 10; ranks that share experts would read
    half the weights and take 11.
    """
    found = re.search(r"\((\d+) instances\)", str(row.get("mode", "")))
    if "inference-sim" in str(row.get("source", "")) and isinstance(row.get("dp"), int | float):
        return max(1, int(row["dp"]))
    return int(found.group(1)) if found else 1


def launch_flags(row: dict[str, Any], device: str) -> dict[str, Any]:
    """Flags with which a row's server was launched; what the row states itself goes before them.

    Variables of the environment that are later flags of vLLM or of the pool, or choose kernels, are among them. A checkpoint of
    ModelOpt has its KV cache in FP8 unless a flag says otherwise (vLLM reads `kv_cache_quant_algo` of `hf_quant_config.json`).
    """
    if is_serving_sim_artifact(row):
        return {"enforce_eager": True, "max_num_batched_tokens": 2048, "max_num_seqs": 128}
    if is_serving_sim_bench(row):  # its runner asks for temperature 0
        return dict(PLAIN_SAMPLING)
    launch = launch_of(row)
    flags = dict(launch.flags)
    set_here = {name: launch.environment.get(variable) for variable, name in EXPERT_VARIABLES.items()}
    flags |= {name: value == "1" for name, value in set_here.items() if value is not None}
    if launch.environment.get(MARLIN_VARIABLE) == "1":
        flags["moe_backend"] = "marlin"
    if launch.environment.get(MXFP8_VARIABLE) == "1":
        flags["activations"] = "fp8"
    if launch.model.startswith(MODELOPT) and row.get("precision") in ("fp8", "fp4", "nvfp4"):
        flags.setdefault("kv_cache_dtype", "fp8")
    return flags


def release(stated: str) -> str:
    """The modelled version for a stated one; raises `Unplayable` on those before the oldest."""
    if parts(stated) < parts(ENGINE.releases[0]):
        raise Unplayable(f"{ENGINE.title} {stated} is older than the modelled versions")
    return stated


def columns(row: Row) -> dict[str, Any]:
    """Flags that a row's columns state."""
    known = ("max_num_seqs", "max_num_batched_tokens", "block_size")
    args: dict[str, Any] = {name: int(row[name]) for name in known if number(row, name)}
    if number(row, "max_model_len") or "max_model_len" not in launch_of(row).flags:
        args["max_model_len"] = int(number(row, "max_model_len") or -1)  # unknown: the model's own, or what fits
    if number(row, "concurrency"):
        args |= PLAIN_SAMPLING  # benchmark clients of the closed-loop kind ask for greedy decoding
    if number(row, "gpu_mem_util"):
        args["gpu_memory_utilization"] = float(row["gpu_mem_util"])
    if number(row, "kv_blocks_gpu"):
        args["num_gpu_blocks_override"] = int(row["kv_blocks_gpu"])
    if row.get("prefix_caching") is not None:
        args["enable_prefix_caching"] = bool(row["prefix_caching"])
    if row.get("chunked_prefill") is not None and not row["chunked_prefill"]:
        args["enable_chunked_prefill"] = False
    return args


UNKNOWNS: Unknowns = {
    "front_end_s": ("s", 0.004, "client, network, hand-over between processes, beside the event loop: added to TTFT and E2E"),
    "sort_cycles_per_logit": ("cycle", 8.0, "truncated sampling by sorting: cycles of one multiprocessor a logit"),
    "reduce_wait_s": (
        "s",
        1e-6,
        "wait for the slowest rank at an all-reduce, beyond its time in a benchmark of aligned ranks",
    ),
}

EAGER_UNKNOWNS: Unknowns = {
    "launch_s": ("s", 2e-6, "host time to launch one operation outside CUDA graphs (enforce_eager)"),
    "expert_launches": (
        "launch",
        2.0,
        "launches that the experts of a layer cost the host outside CUDA graphs, counted in plain operations",
    ),
}

TARGETS = ("itl_mean_corrected_ms", "ttft_mean_ms")
EAGER_TARGETS = ("tpot_mean_ms",)


def _told(row: Row, flags: Mapping[str, Any], measured: bool) -> tuple[str, ...]:
    """Both metrics of runs of open load on hardware with runs behind it."""
    return TARGETS if measured and all(target in row for target in TARGETS) else ()


def _told_eager(row: Row, flags: Mapping[str, Any], measured: bool) -> tuple[str, ...]:
    """What a launch costs shows in the time per output token of runs without CUDA graphs."""
    return EAGER_TARGETS if EAGER_TARGETS[0] in row else ()


def _runs(name: str, rows: list[Row]) -> tuple[str, str, str]:
    return ENGINE.name, "H100", "inference-sim, training and sim-to-real suites"


def _eager_runs(name: str, rows: list[Row]) -> tuple[str, str, str]:
    suites = f"LLMServingSim 2.0 artifact, figure 8, TPOT; a {ENGINE.title} of 2023, eager too, has that of 30 us (splitwise-sim)"
    return f"{ENGINE.name} 0.13 with --enforce-eager", "H100", suites


VLLM = Published(
    release=release,
    unstated=unstated_version,
    columns=columns,
    launch=launch_flags,
    instances=instances,
    front=client_facts,
    costs=launch_facts,
    fresh=lambda row: "inference-perf" in str(row.get("arrival_process", "")),  # its first requests wait (README of the suite)
    fittings={
        "": Fitting(UNKNOWNS, TARGETS, _told, _runs),
        "-eager": Fitting(EAGER_UNKNOWNS, EAGER_TARGETS, _told_eager, _eager_runs, least_runs=2, eager=True),
    },
    fitted="three constants (front end, sort of the truncated sampler, wait at an all-reduce) and the host time of a step on the "
    "H100 runs of inference-sim, and the cost of launches outside CUDA graphs on the eager runs of LLMServingSim",
    chosen="the tokeniser's 5 us a drawn token (gpt-oss-120b of InferenceX, in its replays alone), the launch time of "
    "uncaptured prefills (taken over from another engine, since measured TTFTs imply it), the time of a hand-over "
    "between servers (one published run), independent choice of experts and the time of another kernel than the tables' "
    "own for FP8 experts on Hopper (runs of Llama-4-Scout), the launch floor of Marlin's experts (gpt-oss-120b of "
    "InferenceX), how quick a host's cores are beside the one that the front end was timed on (one published batch of 1,000 "
    "requests)",
)
