"""What is published of measured TensorRT-LLM runs: flags by model and hardware, spellings, versions, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.validation.engines import engine_release
from simulator.validation.spellings import Unplayable
from simulator.validation.suite import pool_of

ROW: dict[str, Any] = {
    "id": "a",
    "engine": "tensorrt-llm",
    "engine_version": "1.1.0rc2.post2",
    "source": "ai-dynamo/aiconfigurator silicon_sample.csv (inferencex-dump)",
    "hardware": "H200-SXM-141GB",
    "model": "meta-llama/Llama-3.1-70B",
    "precision": "fp8",
    "tp": 4,
    "concurrency": 16,
    "prompt_tokens_mean": 1024,
    "output_tokens_mean": 1024,
}


def test_flags_of_the_scripts() -> None:
    pool = pool_of(ROW)
    assert (pool["engine"], pool["kv_cache"], pool["tensor_parallel"]) == ("trtllm@1.1.0", "fp8", 4)
    args = pool["engine_args"]
    assert (args["max_num_tokens"], args["batch_wait_timeout_iters"]) == (16_384, 20)
    assert args["kv_cache_config"] == {"enable_block_reuse": False}
    assert "batch_wait_timeout_iters" not in pool_of({**ROW, "prompt_tokens_mean": 8192})["engine_args"]
    assert "batch_wait_timeout_iters" not in pool_of({**ROW, "tp": 8})["engine_args"]
    deepseek = pool_of({**ROW, "model": "deepseek-ai/DeepSeek-R1", "tp": 8, "concurrency": 128, "hardware": "B200-180GB"})
    assert deepseek["engine_args"]["max_num_tokens"] == 1024 + 64 + 128
    assert deepseek["engine_args"]["kv_cache_config"]["free_gpu_memory_fraction"] == 0.75
    oss = {**ROW, "model": "openai/gpt-oss-120b", "precision": "fp4"}
    assert "kv_cache" not in pool_of(oss)
    assert pool_of({**oss, "hardware": "B200-180GB"})["kv_cache"] == "fp8"
    assert pool_of(oss)["engine_args"]["max_num_tokens"] == 20_000


def test_rows_of_other_sources_have_what_their_columns_say() -> None:
    own = {**ROW, "source": "ai-dynamo/aiconfigurator silicon_sample.csv (nvidia-gap-analysis)"}
    assert pool_of(own)["engine_args"]["enable_chunked_prefill"] is True
    other = {**ROW, "source": "mine", "max_num_seqs": 64, "max_num_batched_tokens": 4096, "max_model_len": 9000}
    assert pool_of(other)["engine_args"] == {"max_batch_size": 64, "max_num_tokens": 4096, "max_seq_len": 9000}


def test_versions_too_old_are_not_replayed() -> None:
    assert engine_release(ROW) == "1.1.0"
    assert engine_release({**ROW, "engine_version": "gpt-oss-dev"}) == ""
    with pytest.raises(Unplayable, match=r"TensorRT-LLM 0\.16\.0 is older"):
        engine_release({**ROW, "engine_version": "0.16.0"})
