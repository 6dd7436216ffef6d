"""How published vLLM measurements were launched, where the rows of a suite do not say: flags, version, instances.

Facts of the launch scripts and logs that the sources publish, the same for every row of a script. One departs from them (marked
below): the KV format of Llama-3.1-70B on H100, where the script asks for fp8 and the measured queues are those of bf16.
Sources, read 2026-11: github.com/SemiAnalysisAI/InferenceX (Apache-2.0), `benchmarks/single_node/minimaxm2.5_{fp8,fp4}_b200.sh`,
`benchmarks/single_node/gptoss_fp4_{b200,h100,h200}.sh`, `benchmarks/70b_{fp8,fp4}_b200_docker.sh`,
`benchmarks/70b_fp8_h200_slurm.sh`, `benchmarks/single_node/minimaxm2.5_fp8_{h100,h200}.sh`,
`benchmarks/single_node/kimik2.5_{fp4_b200,int4_b200,int4_h200}.sh`,
`experimental/token_position_decode_slo/minimax-m2.5/*.sh`; github.com/casys-kaist/LLMServingSim (MIT) at e0f4911,
`evaluation/artifacts`: server logs under `figure_6/raw_data` and `figure_7/raw_data`, budget in `figure_8/logs`; at fbda276
and 3b21cc5, `bench/core/runner.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.engines.vllm import ENGINE
from engine_models.engines.vllm_flags import PLAIN_SAMPLING
from simulator.validation.launches import is_gap_analysis, is_inferencex, measured_on
from simulator.validation.published import Fitting, Published, Row, Unknowns, number, parts
from simulator.validation.spellings import Unplayable

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


CAPTURED_TOKENS = 2048
"""``max-cudagraph-capture-size`` of the scripts of gpt-oss and of MiniMax-M2.5 on B200."""


DRAWN_TOKEN_S = 5e-6
"""Front end's time for each token of a prompt made of drawn vocabulary entries [s] (InferenceX's `sample_random_requests`), one
prompt after the other. kind: fitted, 2026-11, source: gpt-oss-120b, 8,192 tokens, four users, H100, H200 and B200, TP 1 to 8:
at the 2 us of plain text 11 to 33 ms of the time to first token are left over, whether a prefill takes 24 or 290 ms. Such text
is slower than prose: it has about seven bytes a token and no word twice."""

REPEATED_PROMPTS = 100
"""Prompts that the load generator of NVIDIA's own vLLM runs had and drew from. kind: assumed, 2026-11: the default of genai-perf
and aiperf. Were all prompts new, Llama-3.1-8B in FP8 would compute 118,000 of their tokens a second on one H200, 89 % of its
peak in the linear layers alone, and yield a token every 10 ms beside; with hits in the prefix cache the predicted time per token
is 6 % off, not 90."""


def is_serving_sim_artifact(row: dict[str, Any]) -> bool:
    """Whether a row is a reference measurement of the LLMServingSim 2.0 artifact."""
    source = str(row.get("source", ""))
    return "LLMServingSim" in source and "artifact" in source


def is_serving_sim_bench(row: dict[str, Any]) -> bool:
    """Whether a row is a run of LLMServingSim's bench, which drives the engine in its own process."""
    source = str(row.get("source", ""))
    return "LLMServingSim" in source and "artifact" not in source


def unstated_version(row: dict[str, Any]) -> str:
    """Version of a row that states none ("" if unknown): the one in the server logs of its source."""
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
    """What a row's client does to the front end: fields of `FrontEnd`."""
    return {"tokenise_token_s": DRAWN_TOKEN_S} if is_inferencex(row) else {}


def repeated_prompts(row: dict[str, Any]) -> int:
    """Prompts that a row's client draws from, the same ones again and again; 0: all are new."""
    return REPEATED_PROMPTS if is_gap_analysis(row) else 0


def launch_facts(row: dict[str, Any], hardware: str) -> dict[str, Any]:
    """What the environment of a launch says that no flag does: fields of `Terms`.

    MiniMax-M2.5 on B200 runs since the second half of April 2026 with ``VLLM_FLOAT32_MATMUL_PRECISION=high`` (InferenceX pull
    request 1069 and vLLM's recipe, pull request 353): its router in TF32.
    """
    on_b200 = is_inferencex(row) and hardware.startswith("b200") and "minimax-m2" in str(row["model"]).lower()
    return {"fp32_router": "tf32"} if on_b200 and measured_on(row) >= "2026-04-15" else {}


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


def launch_flags(row: dict[str, Any], hardware: str, ranks: int) -> dict[str, Any]:
    """Flags of the script that launched a row's server; what the row states itself goes before them."""
    if is_serving_sim_artifact(row):
        return {"enforce_eager": True, "max_num_batched_tokens": 2048, "max_num_seqs": 128}
    if is_serving_sim_bench(row):  # its runner asks for temperature 0
        return dict(PLAIN_SAMPLING)
    if not is_inferencex(row):
        return {}
    model, users = str(row["model"]).lower(), max(1, int(row.get("concurrency", 1)))
    prompt = int(row.get("prompt_tokens_mean", 0))
    if "llama-3.1-70b" in model and hardware.startswith(("b200", "h200")):
        # the script for H100 asks for an fp8 cache too, but its runs queue as with one of half as many tokens
        rows = 512 if hardware.startswith("b200") else users
        return {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 8192, "max_num_seqs": rows, "gpu_memory_utilization": 0.9}
    if "gpt-oss" in model and hardware.startswith(("b200", "h100", "h200")):
        flags = {"max_num_batched_tokens": 8192, "max_num_seqs": users, "gpu_memory_utilization": 0.9}
        flags["max_cudagraph_capture_size"] = CAPTURED_TOKENS
        # VLLM_MXFP4_USE_MARLIN=1 on H100 and H200: vLLM's later --moe-backend marlin
        hopper = {"moe_backend": "marlin"}
        # VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1 on B200 quantises the experts' activations
        b200 = {"kv_cache_dtype": "fp8", "activations": "fp8", "max_num_seqs": 512}
        return flags | (b200 if hardware.startswith("b200") else hopper)
    if "minimax-m2" in model and hardware.startswith("b200"):
        if str(row.get("engine_version", "")).startswith("0.17"):  # experts are split whatever the row's own count of ranks
            return {"gpu_memory_utilization": 0.95, "enable_expert_parallel": True}
        script = {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 2 * prompt, "gpu_memory_utilization": 0.9}
        # the nightly builds ran before the script captured more: their prompts of 1,024 tokens take 35 ms longer
        nightly = NIGHTLY.match(str(row.get("engine_version", "")).lower())
        return script if nightly else script | {"max_cudagraph_capture_size": CAPTURED_TOKENS}
    if "minimax-m2" in model and hardware.startswith("h200"):
        return {"gpu_memory_utilization": 0.95}
    if "minimax-m2" in model and hardware.startswith("h100"):
        return {"gpu_memory_utilization": 0.9, "max_num_seqs": 256}
    if "kimi-k2" in model and row.get("precision") == "fp4" and hardware.startswith("b200"):
        return {"gpu_memory_utilization": 0.9, "max_num_seqs": users}
    if "kimi-k2" in model and row.get("precision") == "int4" and hardware.startswith("h200"):
        return {"gpu_memory_utilization": 0.95, "max_num_seqs": users}
    if "kimi-k2" in model and row.get("precision") == "int4" and hardware.startswith("b200"):
        return {"gpu_memory_utilization": 0.97}
    return {}


def release(stated: str) -> str:
    """The modelled version for a stated one.

    0.8 to 0.10 ran the V1 engine by default and are taken for 0.11, the oldest modelled (assumed; their defaults of batch size
    are 0.11's).
    """
    if parts(stated) < (0, 8):
        raise Unplayable(f"{ENGINE.title} {stated} ran the V0 engine by default, which is not modelled")
    return ENGINE.releases[0] if parts(stated) < (0, 11) else stated


def columns(row: Row) -> dict[str, Any]:
    """Flags that a row's columns state."""
    known = ("max_num_seqs", "max_num_batched_tokens", "block_size")
    args: dict[str, Any] = {name: int(row[name]) for name in known if number(row, name)}
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
    "front_end_s": ("s", 0.004, "client, HTTP, detokeniser, hand-over to the engine: added to TTFT and E2E"),
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
    repeated_prompts=repeated_prompts,
    fittings={
        "": Fitting(UNKNOWNS, TARGETS, _told, _runs),
        "-eager": Fitting(EAGER_UNKNOWNS, EAGER_TARGETS, _told_eager, _eager_runs, least_runs=2, eager=True),
    },
    fitted="three constants (front end, sort of the truncated sampler, wait at an all-reduce) and the host time of a step on the "
    "H100 runs of inference-sim, and the cost of launches outside CUDA graphs on the eager runs of LLMServingSim",
)
