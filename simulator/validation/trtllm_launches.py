"""What is published of measured TensorRT-LLM runs, and the rows do not say: launch flags.

Facts of the launches, the same for every row of a kind. Sources, read 2026-11: github.com/SemiAnalysisAI/InferenceX (Apache-2.0),
`benchmarks/single_node/*_trt.sh`. Of NVIDIA's own runs no launch is published: their flags are an inference (marked below).
Rows of attention data parallelism are refused, by the flag that launches it.
"""

from __future__ import annotations

from typing import Any

from engine_models.engines.trtllm import ENGINE
from simulator.validation.launches import is_gap_analysis, is_inferencex
from simulator.validation.published import Published, Row, number, parts
from simulator.validation.spellings import Unplayable

GRAPH_ROWS = 512
"""Largest captured batch of the scripts of DeepSeek-R1 on B200; larger than the users of any row of a kind that names fewer."""


def launch_flags(row: Row, hardware: str, ranks: int) -> dict[str, Any]:
    """Flags with which the server of a row was launched.

    InferenceX: by model and hardware; no block reuse, padded CUDA graphs. NVIDIA's own runs (inference): the same, with chunks.
    """
    graphs = {"cuda_graph_config": {"enable_padding": True, "max_batch_size": GRAPH_ROWS}}
    if is_gap_analysis(row):
        return {**graphs, "enable_chunked_prefill": True, "kv_cache_config": {"enable_block_reuse": False}}
    if not is_inferencex(row):
        return {}
    model, prompt, users = str(row["model"]), int(row.get("prompt_tokens_mean", 0)), int(row.get("concurrency", 0))
    cache: dict[str, Any] = {"enable_block_reuse": False}
    if "DeepSeek-" in model:
        cache["free_gpu_memory_fraction"] = 0.75 if hardware.startswith("h200") or row.get("precision") == "fp8" else 0.8
        tokens = prompt + 64 + max(64, users)
    elif "gpt-oss" in model:
        cache["free_gpu_memory_fraction"], tokens = 0.85, 20_000
    elif "Llama-3.1-70B" in model:
        tokens = 16_384
        waits = prompt <= 1024 and ranks < 8
        waiting = {"batch_wait_timeout_iters": 20, "batch_wait_max_tokens_ratio": 0.9} if waits else {}
        sizes = {"cuda_graph_config": {"enable_padding": True, "max_batch_size": 1024}}
        return {**sizes, **waiting, "kv_cache_dtype": "fp8", "kv_cache_config": cache, "max_num_tokens": tokens}
    else:
        return {}
    kv = {} if "gpt-oss" in model and hardware.startswith("h200") else {"kv_cache_dtype": "fp8"}
    if "gpt-oss" in model and hardware.startswith("b200"):
        kv["activations"] = "fp8"  # experts of the TRTLLM backend, which the script asks for, take mxfp8
    return {**graphs, **kv, "kv_cache_config": cache, "max_num_tokens": tokens}


def release(stated: str) -> str:
    """The modelled version for a stated one: release candidates stand for what they lead to."""
    if parts(stated) < (0, 20):
        raise Unplayable(f"{ENGINE.title} {stated} is older than the modelled versions")
    return stated


def columns(row: Row) -> dict[str, Any]:
    """Flags that a row's columns state."""
    names = {"max_model_len": "max_seq_len", "max_num_seqs": "max_batch_size", "max_num_batched_tokens": "max_num_tokens"}
    return {flag: int(row[name]) for name, flag in names.items() if number(row, name)}


TRTLLM = Published(release=release, columns=columns, launch=launch_flags, ranks={"enable_attention_dp": True})
