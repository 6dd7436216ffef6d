"""Documents of products that start servers by keys of their own, and calls in programs with groups of settings."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from engine_models.engines.known import launched_by, parse_engine_args
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario

READ = {"max_num_seqs": 8, "tensor_parallel_size": 2}
RAY_SERVICE = """\
apiVersion: ray.io/v1
kind: RayService
metadata: {name: chat}
spec:
  serveConfigV2: |
    applications:
    - name: llm
      import_path: ray.serve.llm:build_openai_app
      args:
        llm_configs:
        - model_loading_config: {model_id: mine, model_source: org/m}
          deployment_config: {autoscaling_config: {min_replicas: 2, max_replicas: 4}}
          engine_kwargs: {max_num_seqs: 8, tensor_parallel_size: 2}
  rayClusterConfig:
    workerGroupSpecs:
    - template: {spec: {containers: [{name: worker, image: rayproject/ray-vllm:2.52.0}]}}
"""
CHART = """\
modelArtifacts: {name: org/m, uri: "hf://org/m"}
decode:
  replicas: 3
  parallelism: {tensor: 2}
  containers: [{name: vllm, modelCommand: vllmServe, args: [--max-num-seqs, "8", --kv-transfer-config, &link '{"kv_connector":
    "NixlConnector", "kv_role": "kv_both"}']}]
prefill:
  replicas: 1
  parallelism: {tensor: 4}
  containers: [{name: vllm, modelCommand: vllmServe, args: [--kv-transfer-config, *link]}]
"""
MODEL = {
    "apiVersion": "kubeai.org/v1",
    "kind": "Model",
    "metadata": {"name": "chat"},
    "spec": {
        "url": "hf://org/m",
        "engine": "VLLM",
        "args": ["--max-num-seqs=8", "--tensor-parallel-size=2"],
        "env": {"VLLM_ATTENTION_BACKEND": "FLASHINFER"},
        "minReplicas": 0,
        "maxReplicas": 3,
    },
}
SWAPPED = """\
macros:
  server: /opt/llama-server-ec9e0301 --port ${PORT}
  context: 4096
models:
  small:
    macros: {context: 8192}
    cmd: |
      ${server} --model m.gguf
      # of all slots
      --ctx-size ${context}
  large:
    cmd: ${server} --model l.gguf --ctx-size ${context}
"""


def test_a_service_of_ray_is_the_server_that_it_configures() -> None:
    found = parse_engine_args("vllm", RAY_SERVICE)
    assert (found.values, found.model, found.replicas, found.copies) == (READ, "org/m", 2, (2, 4))
    assert launched_by(RAY_SERVICE) == "vllm"


def test_a_service_of_ray_that_serves_a_program_is_refused_by_it() -> None:
    program = RAY_SERVICE.replace("llm_configs", "settings").replace("ray.serve.llm:build_openai_app", "mine:deployment")
    with pytest.raises(InputError, match="serves `mine:deployment`: a program"):
        parse_engine_args("vllm", program)


def test_both_sides_of_llm_ds_chart_have_its_model_and_ranks() -> None:
    pool = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": CHART}
    pools = [{**pool, "name": side, "role": side} for side in ("decode", "prefill")]
    data: dict[str, Any] = {
        "model": "Qwen/Qwen3-8B",
        "deployment": {"pools": pools},
        "workload": {"arrivals": {"kind": "poisson", "rate": 1}, "prompt_tokens": 9, "output_tokens": 9, "duration": 9},
    }
    with pytest.raises(InputError, match="the launch command serves 'org/m'"):
        load_scenario(data)
    data["deployment"] = yaml.safe_load(yaml.safe_dump(data["deployment"]).replace("org/m", "Qwen/Qwen3-8B"))
    decode, prefill = load_scenario(data).deployment.pools
    assert (decode.tensor_parallel, decode.replicas, prefill.tensor_parallel, prefill.replicas) == (2, 3, 4, 1)


def test_a_command_of_ones_own_in_llm_ds_chart_reads_its_ranks_from_the_environment() -> None:
    side = {
        "parallelism": {"tensor": 2, "dataLocal": 4, "workers": 2},
        "containers": [{"command": ["/bin/sh", "-c"], "args": ["vllm serve org/m -tp $TP_SIZE --data-parallel-size $DP_SIZE"]}],
    }
    found = parse_engine_args("vllm", yaml.safe_dump({"modelArtifacts": {"name": "org/m"}, "decode": side}))
    assert (found.values, found.model) == ({"tensor_parallel_size": 2, "data_parallel_size": 8}, "org/m")


def test_a_model_of_kubeai_is_one_server_and_its_bounds() -> None:
    found = parse_engine_args("vllm", yaml.safe_dump(MODEL))
    assert found.values == {**READ, "attention_backend": "FLASHINFER"}
    assert (found.model, found.replicas, found.copies, found.notes) == ("org/m", 1, (0, 3), [])
    other = {**MODEL, "spec": {"url": "ollama://gemma2:2b", "engine": "OLlama", "env": {"OLLAMA_NUM_PARALLEL": "4"}}}
    kept = parse_engine_args("ollama", yaml.safe_dump(other))
    assert (kept.values, kept.model) == ({"keep_alive": "999999h", "num_parallel": 4}, "gemma2:2b")
    assert kept.warnings == []
    assert launched_by(yaml.safe_dump(other)) == "ollama"


def test_a_model_of_kubeais_catalogue_is_chosen_by_its_name() -> None:
    spec = MODEL["spec"]
    catalogue = yaml.safe_dump({"catalog": {"a": spec, "b": {**spec, "args": ["--offload-group-size=60"]}}})  # type: ignore[dict-item]
    assert parse_engine_args("vllm", catalogue, "a").values["max_num_seqs"] == 8
    with pytest.raises(InputError, match="offload-group-size"):
        parse_engine_args("vllm", catalogue, "b")


def test_models_of_a_proxy_that_swaps_them_are_servers_by_name() -> None:
    with pytest.raises(InputError, match=r"name each pool after its own \(small, large\)"):
        parse_engine_args("llama_cpp", SWAPPED)
    assert parse_engine_args("llama_cpp", SWAPPED, "small").values["ctx_size"] == 8192
    assert parse_engine_args("llama_cpp", SWAPPED, "large").values["ctx_size"] == 4096


def test_a_macro_of_itself_is_no_endless_text() -> None:
    text = "macros: {a: '%s'}\nmodels: {m: {cmd: 'llama-server -m m.gguf --alias ${a}'}}"
    assert parse_engine_args("llama_cpp", text % "x${a}").values == {"model_file": "m.gguf"}
    with pytest.raises(InputError, match="longer than"):
        parse_engine_args("llama_cpp", text % ("${a}" * 99))


PIPELINE = """\
from lmdeploy import PytorchEngineConfig, TurbomindEngineConfig, pipeline
from lmdeploy.messages import SpeculativeConfig
"""


@pytest.mark.parametrize(
    ("call", "values"),
    [
        ("pipeline('m', log_level='INFO')", {}),
        (
            "settings = PytorchEngineConfig(tp=2, block_size=32, quant_policy=8)\npipeline('m', backend_config=settings)",
            {"backend": "pytorch", "tp": 2, "cache_block_seq_len": 32, "quant_policy": "8"},
        ),
        (
            "pipeline('m', TurbomindEngineConfig(session_len=8192))".replace("('m', T", "('m', backend_config=T"),
            {"backend": "turbomind", "session_len": 8192},
        ),
        (
            "pipeline('m', speculative_config=SpeculativeConfig(method='eagle3', model='d', num_speculative_tokens=3))",
            {"speculative_algorithm": "eagle3", "speculative_draft_model": "d", "speculative_num_draft_tokens": 3},
        ),
        (
            "pipeline('m', backend_config=PytorchEngineConfig(adapters={'a': 'org/a'}))",
            {"backend": "pytorch", "adapters": ["org/a"]},
        ),
    ],
)
def test_a_pipeline_in_a_program_has_the_flags_of_its_settings(call: str, values: Any) -> None:
    found = parse_engine_args("lmdeploy", PIPELINE + call)
    assert (found.values, found.model, found.warnings) == (values, "m", [])
    assert launched_by(PIPELINE + call) == "lmdeploy"


def test_what_only_a_program_can_set_is_no_flag_of_the_server() -> None:
    with pytest.raises(InputError, match="has no flag `--thread-safe`"):
        parse_engine_args("lmdeploy", "lmdeploy serve api_server m --thread-safe 1")
    with pytest.raises(InputError, match="`device` ascend is not modelled"):
        parse_engine_args("lmdeploy", PIPELINE + "pipeline('m', backend_config=PytorchEngineConfig(device_type='ascend'))")


@pytest.mark.parametrize("command", ["cmake --build build -t llama-server llama-cli", "cp build/llama-server dist/llama-cli bin"])
def test_a_program_that_is_built_or_copied_is_not_started(command: str) -> None:
    assert launched_by(command) is None
    assert parse_engine_args("llama_cpp", f"{command}\nllama-server -m m.gguf -c 4096").values["ctx_size"] == 4096


MOUNTED = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data:
  worker.yaml: |
    max-running-requests: 64
    tp-size: 2
---
kind: DynamoGraphDeployment
spec:
  components:
  - name: Worker
    podTemplate:
      spec:
        containers:
        - {name: main, command: [python3, -m, dynamo.sglang], args: [--model-path, org/m, --config, /etc/sglang/worker.yaml]}
"""


def test_flags_that_a_config_map_of_the_text_holds_are_read() -> None:
    found = parse_engine_args("sglang", MOUNTED)
    assert found.values == {"max_running_requests": 64, "tensor_parallel_size": 2}
    other = MOUNTED.partition("---")[0].replace("64", "32").replace("settings", "others")
    for text in (MOUNTED.replace("worker.yaml: |", "other.yaml: |"), f"{other}---\n{MOUNTED}"):  # not there, or one of two
        with pytest.raises(InputError, match="the flags in that file cannot be seen"):
            parse_engine_args("sglang", text)


def test_a_file_that_the_text_writes_is_found_where_the_command_names_its_folder() -> None:
    text = "cat > flags.yaml <<EOF\nmax-num-seqs: 8\nEOF\nvllm serve org/m --config ./flags.yaml -tp 2"
    found = parse_engine_args("vllm", text)
    assert found.values == READ


@pytest.mark.parametrize(
    ("ranks", "mend"),
    [
        ("$TP", "write its value instead, or set it before the command: TP=..."),
        ("${TP}", "write its value instead, or set it before the command: TP=..."),
        ("$(nproc)", "write its value instead"),
        ("$4", "write its value instead"),
    ],
)
def test_a_variable_that_is_set_elsewhere_is_told_how_to_be_given(ranks: str, mend: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_engine_args("vllm", f"vllm serve org/m -tp {ranks}")
    assert refused.value.mend == mend
    assert parse_engine_args("vllm", "TP=4\nvllm serve org/m -tp $TP").values == {"tensor_parallel_size": 4}
