"""What is known of measured TensorRT-LLM runs: flags of launches, versions, refusals."""

from __future__ import annotations

from typing import Any

import pytest

from simulator.validation.engines import engine_release
from simulator.validation.launches import Launch
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


YAML = {
    "kv_cache_config": {"dtype": "fp8", "enable_block_reuse": False, "free_gpu_memory_fraction": 0.8},
    "moe_config": {"backend": "TRTLLM"},
}
LAUNCH = Launch(confidence="exact", tensor_ranks=4, flags={"tp_size": 4, "max_num_tokens": 1152, "extra_llm_api_options": YAML})


def test_flags_of_the_command_and_of_its_file() -> None:
    pool = pool_of({**ROW, "launch": LAUNCH})
    assert (pool["engine"], pool["tensor_parallel"]) == ("trtllm@1.1.0", 4)
    assert pool["engine_args"] == {"tp_size": 4, "max_num_tokens": 1152, **YAML}
    oss = {**ROW, "model": "openai/gpt-oss-120b", "precision": "fp4", "launch": LAUNCH}
    assert "activations" not in pool_of({**oss, "hardware": "B200-180GB"})  # the engine's rule, not a launch's


def test_rows_of_other_sources_have_what_their_columns_say() -> None:
    other = {**ROW, "source": "mine", "max_num_seqs": 64, "max_num_batched_tokens": 4096, "max_model_len": 9000}
    assert pool_of(other)["engine_args"] == {"max_batch_size": 64, "max_num_tokens": 4096, "max_seq_len": 9000}


def test_versions_too_old_are_not_replayed() -> None:
    assert engine_release(ROW) == "1.1.0"
    assert engine_release({**ROW, "engine_version": "gpt-oss-dev"}) == ""
    with pytest.raises(Unplayable, match=r"TensorRT-LLM 0\.16\.0 is older"):
        engine_release({**ROW, "engine_version": "0.16.0"})


@pytest.mark.parametrize(
    ("tag", "version"), [("0.5.1-rc0.pre3", "1.1"), ("0.8.1.post2", "1.2"), ("1.1.0-dev.2", "1.3"), ("0.4.0", "")]
)
def test_an_image_of_dynamo_holds_the_engine_of_its_matrix(tag: str, version: str) -> None:
    launch = Launch(image=f"nvcr.io/nvidia/ai-dynamo/tensorrtllm-runtime:{tag}")
    assert engine_release({**ROW, "engine_version": tag, "launch": launch}) == version


def test_ranks_times_ranks_of_experts_are_not_all_devices() -> None:
    """A row of four ranks with two of experts is a run on two, though a script of four holds its users."""
    base = {"id": "x", "source": "s", "engine": "tensorrt-llm", "hardware": "H200-SXM-141GB", "model": "openai/gpt-oss-120b"}
    found = Launch(confidence="exact", image="tensorrt-llm/release:1.2.0", tensor_ranks=4, flags={"tp_size": 4, "ep_size": 4})
    two = pool_of({**base, "precision": "fp4", "tp": 4.0, "ep": 2.0, "launch": found})
    assert (two["tensor_parallel"], two["engine_args"]["ep_size"]) == (2, 2)
    four = pool_of({**base, "precision": "fp4", "tp": 16.0, "ep": 4.0, "launch": found})
    assert (four["tensor_parallel"], four["engine_args"]["ep_size"]) == (4, 4)
