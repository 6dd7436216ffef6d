"""Engine flags from keys and from pasted launch commands."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_models.engines.known import BUILT_IN, engine_named, flag_defaults, parse_engine_args, split
from engine_models.engines.vllm_flags import FLAGS as VLLM
from engine_models.flags import reconcile
from hardware_profiles.errors import InputError

POOL: dict[str, Any] = {
    "engine": "vllm",
    "tensor_parallel": 1,
    "pipeline_parallel": 1,
    "replicas": 1,
    "data_parallel": 1,
    "expert_parallel": False,
    "weights": None,
    "activations": None,
    "kv_cache": None,
    "speculative": None,
    "lora": None,
    "offload": None,
}

MULTI_LINE = """\
VLLM_ATTENTION_BACKEND=FLASHINFER CUDA_VISIBLE_DEVICES=0,1 vllm serve meta-llama/Llama-3.1-8B-Instruct \\
    --tensor-parallel-size 2 \\
    --gpu-memory-utilization 0.9 \\
    --no-enable-prefix-caching --port 8000 --host 0.0.0.0 \\
    --speculative-config '{"method": "eagle", "num_speculative_tokens": 3}' > log.txt 2>&1 &
"""
DOCKER = """\
docker run --runtime nvidia --gpus all -v ~/.cache/huggingface:/root/.cache/huggingface \\
    --env "HF_TOKEN=$HF_TOKEN" -p 8000:8000 --ipc=host --name vllm-server \\
    vllm/vllm-openai:v0.15.1 --model mistralai/Mistral-7B-v0.1 -q awq --max-model-len 16K
"""
SCRIPT = """\
#!/bin/bash
# start vllm serve here
export HF_HOME=/data   # where the weights are
cd /opt && source venv/bin/activate && \\
  vllm serve org/m -dp=2 -ep --async-scheduling; echo done and some more words
"""


@pytest.mark.parametrize(
    ("command", "values", "model"),
    [
        ("vllm serve org/m -tp 4", {"tensor_parallel_size": 4}, "org/m"),
        ("vllm serve -tp 4 org/m", {"tensor_parallel_size": 4}, "org/m"),
        ("vllm serve --model org/m -tp=4", {"tensor_parallel_size": 4}, "org/m"),
        ("/usr/bin/vllm serve org/m", {}, "org/m"),
        ("$ vllm serve org/m --max-num-seqs 8", {"max_num_seqs": 8}, "org/m"),
        ("serve org/m", {}, "org/m"),
        ("", {}, None),
        (
            "-tp 4 --max-num-batched-tokens=8192",
            {"tensor_parallel_size": 4, "max_num_batched_tokens": 8192},
            None,
        ),
        ("--max_num_seqs 8", {"max_num_seqs": 8}, None),
        ("--max-model-len 32k", {"max_model_len": 32_000}, None),
        ("--max-model-len 32K", {"max_model_len": 32_768}, None),
        ("--max-model-len 1M", {"max_model_len": 1_048_576}, None),
        ("--max-model-len 25.6k", {"max_model_len": 25_600}, None),
        ("--max-model-len -1", {"max_model_len": -1}, None),
        ("--max-model-len auto", {"max_model_len": "auto"}, None),
        ("--enable-prefix-caching", {"enable_prefix_caching": True}, None),
        ("--no-enable-prefix-caching", {"enable_prefix_caching": False}, None),
        (
            "--no-enable-chunked-prefill --enforce-eager",
            {"enable_chunked_prefill": False, "enforce_eager": True},
            None,
        ),
        ("--enable-chunked-prefill=False", {"enable_chunked_prefill": False}, None),
        ("--enable-chunked-prefill false", {"enable_chunked_prefill": False}, None),
        (
            "--scheduling-policy priority --watermark 0.01",
            {"scheduling_policy": "priority", "watermark": 0.01},
            None,
        ),
        (
            "--cudagraph-capture-sizes 1 2 4 --block-size 32",
            {"cudagraph_capture_sizes": [1, 2, 4], "block_size": 32},
            None,
        ),
        ("--cuda-graph-sizes 8", {"cuda_graph_sizes": [8]}, None),
        ("--trust-remote-code --served-model-name a b --port 1 org/m", {}, "org/m"),
        ("--kv-cache-dtype fp8 -pp 2", {"kv_cache_dtype": "fp8", "pipeline_parallel_size": 2}, None),
        (
            "-sc.num_speculative_tokens 3 -sc.method ngram",
            {"speculative_config": {"num_speculative_tokens": 3, "method": "ngram"}},
            None,
        ),
        (
            "python3 -m vllm.entrypoints.openai.api_server --model X --disable-log-requests --dtype half",
            {"dtype": "half"},
            "X",
        ),
        ("python vllm/entrypoints/openai/api_server.py --model X", {}, "X"),
        (
            MULTI_LINE,
            {
                "tensor_parallel_size": 2,
                "gpu_memory_utilization": 0.9,
                "enable_prefix_caching": False,
                "speculative_config": {"method": "eagle", "num_speculative_tokens": 3},
                "attention_backend": "FLASHINFER",
            },
            "meta-llama/Llama-3.1-8B-Instruct",
        ),
        (DOCKER, {"quantization": "awq", "max_model_len": 16_384}, "mistralai/Mistral-7B-v0.1"),
        (
            SCRIPT,
            {"data_parallel_size": 2, "enable_expert_parallel": True, "async_scheduling": True},
            "org/m",
        ),
        (
            "docker run --gpus all vllm/vllm-openai:latest serve org/m -tp 2",
            {"tensor_parallel_size": 2},
            "org/m",
        ),
        ("vllm serve org/m\\\r\n  -tp 2\\\r\n", {"tensor_parallel_size": 2}, "org/m"),
    ],
)
def test_a_pasted_command_is_read(command: str, values: dict[str, Any], model: str | None) -> None:
    flags = parse_engine_args("vllm@0.15.1", command)
    assert flags.values == values
    assert flags.model == model


@pytest.mark.parametrize(
    ("command", "named", "mend"),
    [
        ("vllm serve m --tensor-paralel-size 2", "--tensor-paralel-size", "`--tensor-parallel-size`"),
        ("vllm serve m --max-num-sequences 2", "--max-num-sequences", "`--max-num-seqs`"),
        ("vllm serve m --tp 2", "--tp", "`-tp`"),
        ("vllm serve m --no-max-num-seqs", "--no-max-num-seqs", "max-num-seqs"),
        ("vllm serve m -tp", "lacks its value", "-tp VALUE"),
        ("vllm serve m -tp --port 8", "lacks its value", "-tp VALUE"),
        ("vllm serve m --port", "lacks its value", "--port VALUE"),
        ("vllm serve m -tp $TP", "not in the text", "its value"),
        ("vllm serve m -tp two", "whole number", "value"),
        ("vllm serve m -tp 2.5", "whole number", "value"),
        ("vllm serve m -tp 0", "at least 1", "at least 1"),
        ("vllm serve m --gpu-memory-utilization 92", "at most 1", "at most 1"),
        ("vllm serve m --gpu-memory-utilization nan", "a number", "value"),
        ("vllm serve m --max-model-len 1.5K", "32768, 32k", "value"),
        ("vllm serve m --max-model-len 32kb", "32768, 32k", "value"),
        ("vllm serve m --scheduling-policy fifo", "cannot be 'fifo'", "'fcfs'"),
        ("vllm serve m --speculative-config {method", "JSON object", "value"),
        ("vllm serve m --speculative-config 3", "JSON object", "value"),
        ("vllm serve m --max-num-seqs.x 3", "has no parts", "VALUE"),
        ("vllm serve m other", "stands beside the model", "flag before it"),
        ("vllm serve m --enforce-eager maybe", "stands beside the model", "flag before it"),
        ("vllm serve m --dtype 'half", "quote", "close"),
        ("python -m sglang.launch_server --model-path m", "command of sglang, not of vllm", "engine: sglang"),
        ("mlc_llm serve m --tp 2", "command of mlc_llm, not of vllm", "engine: mlc_llm"),
        ("trtllm-serve m --tp_size 2", "command of trtllm, not of vllm", "engine: trtllm"),
        ("hello", "no launch command of vllm", "vllm serve MODEL"),
    ],
)
def test_a_wrong_command_is_refused_in_words(command: str, named: str, mend: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_engine_args("vllm", command)
    assert named in caught.value.message
    assert mend in str(caught.value.mend)


def test_an_environment_variable_that_a_key_states_names_the_key() -> None:
    said = parse_engine_args("vllm", "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1 vllm serve m").warnings
    assert said[0].endswith("is not read; write activations: fp8 in the pool")
    off = parse_engine_args("vllm", "VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=0 vllm serve m").warnings
    assert off[0].endswith("MXFP8 is not modelled; in the engine such may change the speed of kernels")
    marlin = parse_engine_args("vllm", "VLLM_MXFP4_USE_MARLIN=1 vllm serve m --moe-backend marlin")
    assert marlin.warnings[0].endswith("is not read; write --moe-backend marlin")
    assert marlin.values == {"moe_backend": "marlin"}


def test_variables_that_choose_kernels_of_experts_are_read() -> None:
    said = "VLLM_USE_FLASHINFER_MOE_FP8=1 VLLM_USE_FLASHINFER_MOE_FP4=0 VLLM_FLASHINFER_MOE_BACKEND=latency"
    flags = parse_engine_args("vllm", f"{said} VLLM_MOE_USE_DEEP_GEMM=0 vllm serve m")
    assert flags.values == {
        "use_flashinfer_moe_fp8": True,
        "use_flashinfer_moe_fp4": False,
        "flashinfer_moe_backend": "latency",
        "moe_use_deep_gemm": False,
    }
    assert not flags.warnings


def test_flags_that_are_not_modelled_warn_and_harmless_ones_do_not() -> None:
    flags = parse_engine_args(
        "vllm",
        "VLLM_USE_V1=1 VLLM_FUSED_MOE_CHUNK_SIZE=8 VLLM_USE_DEEP_GEMM=0 vllm serve m"
        " --enable-ep-weight-filter --api-key k --max-num-seqs 1 --max-num-seqs 2"
        " --enable-elastic-ep --disable-custom-all-reduce --linear-backend auto --no-enable-dbo",
    )
    assert flags.values == {"max_num_seqs": 2, "use_deep_gemm": False, "use_v1": True}
    assert [w.split(" not modelled")[0] for w in flags.warnings] == [
        "`--max-num-seqs` is given twice; the last value, 2, counts as in the engine",
        "environment variable VLLM_FUSED_MOE_CHUNK_SIZE is",
        "vllm flag `enable_ep_weight_filter` is",
        "vllm flags `enable_elastic_ep`, `disable_custom_all_reduce` are",
    ]


def test_keys_are_read_as_flags() -> None:
    args = {
        "max-num-seqs": 8,
        "max_model_len": "32k",
        "no_enable_prefix_caching": True,
        "port": 1,
        "enable_dbo": True,
    }
    flags = parse_engine_args("vllm", {**args, "speculative_config": {"k": 1}, "async_scheduling": None})
    assert flags.values == {
        "max_num_seqs": 8,
        "max_model_len": 32_000,
        "enable_prefix_caching": False,
        "speculative_config": {"k": 1},
    }
    assert len(flags.warnings) == 1


@pytest.mark.parametrize(
    "args",
    [
        {"max_num_sequences": 8},
        {"max_num_seqs": True},
        {"max_num_seqs": 2.5},
        {"max_num_seqs": "many"},
        {"max_num_seqs": 0},
        {"gpu_memory_utilization": "0.9x"},
        {"gpu_memory_utilization": True},
        {"enable_prefix_caching": 1},
        {"cudagraph_capture_sizes": [1, "x"]},
        {"speculative_config": [1]},
        {"max_num_seqs": 4, "max-num-seqs": 4},
        {"no_max_num_seqs": 4},
    ],
)
def test_wrong_keys_are_refused_at_the_key(args: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        parse_engine_args("vllm", args)
    assert caught.value.where in args
    assert caught.value.mend


def test_an_engine_without_a_table_keeps_its_keys_and_refuses_commands() -> None:
    assert parse_engine_args("other", {"max-inflight": 3}).values == {"max_inflight": 3}
    with pytest.raises(InputError, match="engine 'other' is not modelled"):
        parse_engine_args("other", "other serve m")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("vllm@0.8.5", ("vllm", "0.8.5")),
        ("vLLM 0.8.5", ("vllm", "0.8.5")),
        ("vllm==0.8.5", ("vllm", "0.8.5")),
        ("vllm-0.8.5", ("vllm", "0.8.5")),
        ("vllm:v0.8.5", ("vllm", "v0.8.5")),
        ("MLX LM", ("mlx_lm", None)),
        ("exllamav2", ("exllamav2", None)),
        ("lmdeploy-pytorch@0.18", ("lmdeploy", "0.18")),
        ("tensorrt-llm v1.0", ("trtllm", "1.0")),
        ("batch-2", ("batch-2", None)),  # a plug-in's
        ("batch-2@1.0", ("batch-2", "1.0")),
    ],
)
def test_engines_and_versions_are_read_as_people_spell_them(text: str, parts: tuple[str, str | None]) -> None:
    assert split(text) == parts


@given(st.sampled_from(sorted(VLLM.modelled)), st.integers(1, 10**6))
def test_dashes_underscores_and_equals_signs_say_the_same(name: str, number: int) -> None:
    if VLLM.modelled[name].kind not in ("int", "count"):
        return
    number = min(number, int(VLLM.modelled[name].high or number))
    dashed = name.replace("_", "-")
    commands = [
        f"--{dashed} {number}",
        f"--{dashed}={number}",
        f"--{name} {number}",
        f"vllm serve m --{name}={number}",
    ]
    read = [parse_engine_args("vllm", command).values for command in commands]
    assert read == [{name: number}] * 4
    assert parse_engine_args("vllm", {name: number}).values == {name: number}


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_in_words(text: str) -> None:
    for command in (text, "vllm serve m " + text):
        with contextlib.suppress(InputError):
            parse_engine_args("vllm", command)


def test_the_tables_do_not_overlap_and_name_what_exists() -> None:
    for table in (engine_named(name).flags() for name in BUILT_IN):
        assert not set(table.modelled) & set(table.unread)
        positive = {name.removeprefix("no_") for name in table.shorts.values() if not table.knows(name)}
        assert all(table.knows(name) and table.kind(name) == "pair" for name in positive)
        assert all(map(table.knows, {*table.aliases.values(), *table.environment.values()}))
        assert set(table.typed) <= set(table.modelled)
        assert {typed.key for typed in table.typed.values()} <= set(POOL)


def test_defaults_are_of_their_own_type() -> None:
    assert flag_defaults("vllm@0.33.0")["gpu_memory_utilization"] == 0.92
    assert flag_defaults("vllm")["block_size"] == 16
    for name, default in flag_defaults("vllm").items():
        if default is not None:
            assert parse_engine_args("vllm", {name: default}).values == {name: default}


# Reconciling ----------------------------------------------------------------------------------------------


def updates(command: str, model: Any = "org/m", **given_keys: Any) -> dict[str, Any]:
    flags = parse_engine_args("vllm", command)
    return reconcile(VLLM, {**POOL, **given_keys}, flags, given=set(given_keys), model=model)


@pytest.mark.parametrize(
    ("command", "filled"),
    [
        ("-tp 4 -pp 2 -dp 3", {"tensor_parallel": 4, "pipeline_parallel": 2, "data_parallel": 3}),
        ("-ep", {"expert_parallel": True}),
        ("-q fp8 --kv-cache-dtype fp8_e4m3", {"weights": "fp8", "kv_cache": "fp8"}),
        ("-q awq_marlin --kv-cache-dtype auto", {"weights": "awq"}),
        ("-q compressed-tensors", {}),
        ("--kv-cache-dtype bfloat16", {"kv_cache": "bf16"}),
        ("--dtype bfloat16", {}),
        ("--num-speculative-tokens 3", {"speculative": {"num_speculative_tokens": 3}}),
        ("--kv-offloading-size 8", {"offload": {"kv_offloading_size": 8.0}}),
        ("--enable-lora", {"lora": {}}),
        ("--max-num-seqs 4", {}),
        ("-tp 1", {}),
    ],
)
def test_flags_fill_the_keys_left_open(command: str, filled: dict[str, Any]) -> None:
    assert updates(command) == filled


@pytest.mark.parametrize(
    ("command", "given_keys", "flag"),
    [
        ("-tp 4", {"tensor_parallel": 2}, "tensor_parallel_size"),
        ("-tp 4", {"tensor_parallel": 1}, "tensor_parallel_size"),
        ("-ep", {"expert_parallel": False}, "enable_expert_parallel"),
        ("-q fp8", {"weights": "awq"}, "quantization"),
        ("--kv-cache-dtype fp8", {"kv_cache": "bf16"}, "kv_cache_dtype"),
        ("--dtype half", {"weights": "bf16"}, "dtype"),
        ("--dtype half", {"activations": "bf16"}, "dtype"),
    ],
)
def test_a_contradiction_names_the_flag_and_the_key(
    command: str, given_keys: dict[str, Any], flag: str
) -> None:
    with pytest.raises(InputError) as caught:
        updates(command, **given_keys)
    (key,) = given_keys
    assert f"`{flag}`" in caught.value.message
    assert f"`{key}`" in caught.value.message


@pytest.mark.parametrize(
    ("command", "given_keys"),
    [
        ("-tp 4", {"tensor_parallel": 4}),
        ("-q gptq_marlin", {"weights": "gptq"}),
        ("-q fp8", {"weights": "fp8_block"}),
        ("--kv-cache-dtype fp8_e5m2", {"kv_cache": "FP8"}),
        ("-ep", {"expert_parallel": 8}),
        ("--dtype bfloat16", {"weights": "fp8", "activations": "fp8"}),
    ],
)
def test_saying_the_same_twice_is_no_contradiction(command: str, given_keys: dict[str, Any]) -> None:
    assert updates(command, **given_keys) == {}


def test_the_command_may_not_serve_another_model() -> None:
    with pytest.raises(InputError, match="other/x"):
        updates("vllm serve other/x")
    assert updates("vllm serve Org/M") == {}
    assert updates("vllm serve m") == {}
    assert updates("vllm serve /models/whatever") == {}
    assert updates("vllm serve other/x", model={"hidden_size": 1}) == {}


@pytest.mark.parametrize("sizes", [[0, 8], [8, -4], "0 8"])
def test_every_item_of_a_list_keeps_the_bounds(sizes: object) -> None:
    with pytest.raises(InputError, match="must be at least 1"):
        parse_engine_args("vllm", {"cudagraph_capture_sizes": sizes})
    assert parse_engine_args("vllm", {"cudagraph_capture_sizes": [1, 8]}).values["cudagraph_capture_sizes"] == [1, 8]


def test_devices_of_all_ranks_that_contradict_those_of_one_are_told_apart() -> None:
    flags = parse_engine_args("sglang", "--tp-size 8 --dp-size 8 --enable-dp-attention")
    pool = {"engine": "sglang", "tensor_parallel": 8, "data_parallel": 1}
    with pytest.raises(InputError, match=r"\(8 over all ranks, 1 in each\) contradicts .*`tensor_parallel` \(8\)") as caught:
        reconcile(engine_named("sglang").flags(), pool, flags, given={"tensor_parallel"})
    assert "write tensor_parallel: 1" in (caught.value.mend or "")


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("vllm serve m -O.mode=3 -O.pass_config.fuse=true", {"compilation_config": {"mode": 3, "pass_config": {"fuse": True}}}),
        ("vllm serve m -O2", {"optimization_level": 2}),
        ("vllm serve m --limit-mm-per-prompt image=10,video=0", {"limit_mm_per_prompt": {"image": 10, "video": 0}}),
        ("vllm serve m --limit-mm-per-prompt.image 0", {"limit_mm_per_prompt": {"image": 0}}),
    ],
)
def test_older_spellings_of_vllm_are_read(command: str, values: dict[str, Any]) -> None:
    assert parse_engine_args("vllm", command).values == values


def test_the_everyday_beginnings_of_sglang_need_no_word() -> None:
    found = parse_engine_args("sglang", "sglang serve --model-path m --tp 8 --dp 2 --pp 1")
    ranks = {"tensor_parallel_size": 8, "data_parallel_size": 2, "pipeline_parallel_size": 1}
    assert (found.values, found.notes) == (ranks, [])


def test_a_flag_of_tgi_that_is_not_read_warns_from_the_environment_too() -> None:
    found = parse_engine_args("tgi", "ROPE_SCALING=linear DISABLE_CUSTOM_KERNELS=true text-generation-launcher --model-id m")
    words = [warning.partition(" is")[0] for warning in found.warnings]
    assert words == ["tgi flag `rope_scaling`", "tgi flag `disable_custom_kernels`"]


@pytest.mark.parametrize(
    ("engine", "command", "warned"),
    [
        ("lmdeploy", "lmdeploy serve api_server m --dp-rank 0 --empty-init --moe-a2a-backend auto", ""),
        ("lmdeploy", "lmdeploy serve api_server m --piecewise-cudagraph-max-tokens 512", "piecewise_cudagraph_max_tokens"),
        ("lmdeploy", """lmdeploy serve api_server m --kv-transfer-config '{"kv_connector": "X"}'""", "kv_transfer_config"),
        ("llama_cpp", "llama-server -m m.gguf -gan 1 --list-devices --direct-io --verbose-prompt", ""),
        ("llama_cpp", "llama-server -m m.gguf --grp-attn-n 4", "group_attn_n"),
    ],
)
def test_rarer_flags_are_known(engine: str, command: str, warned: str) -> None:
    warnings = parse_engine_args(engine, command).warnings
    assert len(warnings) == bool(warned)
    assert warned in "".join(warnings)
