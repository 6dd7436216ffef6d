"""How published vLLM measurements were launched, where the rows of a suite do not say: flags, version, instances.

Facts of the launch scripts and logs that the sources publish, the same for every row of a script. One departs from them (marked
below): the KV format of Llama-3.1-70B on H100, where the script asks for fp8 and the measured queues are those of bf16.
Sources, read 2026-11: github.com/SemiAnalysisAI/InferenceX (Apache-2.0), `benchmarks/single_node/minimaxm2.5_{fp8,fp4}_b200.sh`,
`benchmarks/single_node/gptoss_fp4_{b200,h100,h200}.sh`, `benchmarks/70b_{fp8,fp4}_b200_docker.sh`,
`benchmarks/70b_fp8_h200_slurm.sh`; github.com/casys-kaist/LLMServingSim (MIT) at e0f4911, `evaluation/artifacts`: server logs
under `figure_6/raw_data` and `figure_7/raw_data`, budget in `figure_8/logs`.
"""

from __future__ import annotations

import re
from typing import Any

from simulator.validation.launches import is_inferencex


def is_serving_sim_artifact(row: dict[str, Any]) -> bool:
    """Whether a row is a reference measurement of the LLMServingSim 2.0 artifact."""
    source = str(row.get("source", ""))
    return "LLMServingSim" in source and "artifact" in source


def vllm_version(row: dict[str, Any]) -> str:
    """Version of a row that states none ("" if unknown): the one in the server logs of its source."""
    return "0.13.0" if is_serving_sim_artifact(row) else ""


def vllm_instances(row: dict[str, Any]) -> int:
    """Independent servers behind one router that a row counts as data parallel ranks: `agg (2 instances)`; else 1."""
    found = re.search(r"\((\d+) instances\)", str(row.get("mode", "")))
    return int(found.group(1)) if found else 1


def vllm_flags(row: dict[str, Any], hardware: str) -> dict[str, Any]:
    """Flags of the script that launched a row's server; what the row states itself goes before them."""
    if is_serving_sim_artifact(row):
        return {"enforce_eager": True, "max_num_batched_tokens": 2048, "max_num_seqs": 128}
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
        # VLLM_MXFP4_USE_MARLIN=1 on H100 and H200: vLLM's later --moe-backend marlin
        hopper = {"moe_backend": "marlin"}
        # VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1 on B200 quantises the experts' activations
        b200 = {"kv_cache_dtype": "fp8", "activations": "fp8", "max_num_seqs": 512}
        return flags | (b200 if hardware.startswith("b200") else hopper)
    if "minimax-m2" in model and hardware.startswith("b200"):
        if str(row.get("engine_version", "")).startswith("0.17"):  # experts are split whatever the row's own count of ranks
            return {"gpu_memory_utilization": 0.95, "enable_expert_parallel": True}
        return {"kv_cache_dtype": "fp8", "max_num_batched_tokens": 2 * prompt, "gpu_memory_utilization": 0.9}
    return {}
