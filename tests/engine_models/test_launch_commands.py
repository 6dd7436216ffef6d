"""Launch commands as people write them: shell, containers, manifests; properties of generated ones."""

from __future__ import annotations

import contextlib
import copy
import json
import shlex
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.engines.known import BUILT_IN, OTHERS, engine_named, launched_by, parse_engine_args
from engine_models.flags import FlagTable
from engine_models.launch import find_launches
from engine_models.shell import read_script
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from tests.effort import examples

TABLES = {name: engine_named(name).flags() for name in BUILT_IN}
ARGUMENTS = "--model org/m --max-num-seqs 8 -tp 2"
READ = {"max_num_seqs": 8, "tensor_parallel_size": 2}

COMPOSE = f"""\
services:
  llm:
    image: vllm/vllm-openai:v0.15.1
    environment:
      - VLLM_ATTENTION_BACKEND=FLASHINFER
    command: >
      {ARGUMENTS}
  cache:
    image: redis:7
    command: redis-server --appendonly yes
"""
MANIFEST = """\
kind: Deployment
spec:
  template:
    spec:
      containers:
        - name: llm
          image: vllm/vllm-openai:v0.15.1
          command: ["python3", "-m", "vllm.entrypoints.openai.api_server"]
          args: ["--model=org/m", --max-num-seqs, 8, "--tensor-parallel-size=$(RANKS)"]
          env:
            - {name: RANKS, value: "2"}
---
kind: Service
spec: {ports: [{port: 80}]}
"""
DOCKERFILE = """\
FROM vllm/vllm-openai:v0.15.1
ENTRYPOINT ["vllm", "serve"]
CMD ["org/m", "--max-num-seqs", "8", \\
     "-tp", "2"]
"""
SETTINGS = """\
cat > /tmp/flags.yaml <<EOF
tensor-parallel-size: 2
max_num_seqs: 4
EOF
vllm serve org/m --config /tmp/flags.yaml --max-num-seqs 8
"""


@pytest.mark.parametrize(
    "written",
    [
        f"vllm serve {ARGUMENTS}",
        f"CUDA_VISIBLE_DEVICES=0 numactl --cpunodebind=0 --membind=0 uv run vllm serve {ARGUMENTS}",
        f'srun -N1 bash -c "export X=1 && vllm serve {ARGUMENTS}" &\nwait',
        f"ssh host 'cd /srv; vllm serve {ARGUMENTS} > log 2>&1'",
        "RANKS=2\nvllm serve ${MODEL:-org/m} \\  # the model\n  --max-num-seqs 8 \\\n  # ranks\n  -tp $RANKS | tee log",
        "extra=(--max-num-seqs 8)\nextra+=(-tp 2)\nvllm serve org/m \"${extra[@]}\"",
        "opts='--max-num-seqs 8'\nopts+=' -tp 2'\nvllm serve org/m $opts",
        "vllm serve org/m\n  --max-num-seqs 8\n  -tp 2\ncurl localhost:8000/health",
        "$ nvidia-smi\n| 550.54 | 81559MiB |\n$ vllm serve org/m --max-num-seqs 8 -tp 2\n# done",
        f"ray start --head --port 6379\nvllm serve {ARGUMENTS} --distributed-executor-backend=mp",
        f"```bash\nvllm serve {ARGUMENTS}\n```",
        "vllm serve org/m —max-num-seqs 8 -tp=2",
        "vllm serve org/m ^\n --max-num-seqs 8 `\n -tp 2",
        "if [ $BIG ]; then\n  R=2\nelse\n  R=1\nfi\nvllm serve org/m --max-num-seqs 8 -tp $R",
        f"docker run --gpus all -p 8000:8000 -e A=b vllm/vllm-openai:v0.15.1 {ARGUMENTS}",
        "docker run --gpus all vllm/vllm-openai:latest org/m --max-num-seqs 8 -tp 2",
        f"docker run -it --entrypoint /bin/bash vllm/vllm-openai:latest -c 'vllm serve {ARGUMENTS}'",
        f"podman run --entrypoint=python3 quay.io/vllm/vllm-openai:x -m vllm.entrypoints.openai.api_server {ARGUMENTS}",
        f"docker run -it --rm vllm/vllm-openai:v0.15.1 bash\nvllm serve {ARGUMENTS}",
        f"docker run --gpus all -v /x:/y $IMAGE {ARGUMENTS}",
        f"python3 -m vllm.entrypoints.cli.main serve {ARGUMENTS}",
        {"image": "vllm/vllm-openai:v1", "command": ["--model", "${M:-org/m}", "--max-num-seqs=$$" + "{R:-8}", "-tp", "2"]},
        "image: vllm/vllm-openai:v0.15.1\ncommand: sh -c 'vllm serve $${M:-org/m} --max-num-seqs 8 -tp 2'",
        f"ExecStart=/opt/venv/bin/vllm serve {ARGUMENTS}",
        '[Unit]\nAfter=x\n[Service]\nEnvironment="R=2"\nExecStart=vllm serve org/m --max-num-seqs 8 -tp $R\nRestart=always',
        "vllm serve “org/m” -–max-num-seqs ‘8’ -tp 2",
        f"docker run --rm --name vllm-cpu -e A=b vllm-cpu-env {ARGUMENTS}",
        ["vllm", "serve", *ARGUMENTS.split()],
        ["--model=org/m", "--max-num-seqs 8", "-tp", 2],
        {"image": "vllm/vllm-openai:v0.15.1", "command": ARGUMENTS, "ports": ["8000:8000"]},
        {"command": ["sh", "-c"], "args": [f"exec vllm serve {ARGUMENTS}"]},
        {"type": "service", "env": ["M=org/m"], "commands": ["pip list", "vllm serve $M --max-num-seqs 8 -tp 2"]},
        "x-base: &base\n  image: vllm/vllm-openai:v0.15.1\nservices:\n  a:\n    <<: *base\n    command: " + ARGUMENTS,
        MANIFEST,
        f"cat <<'EOF' | kubectl apply -f -\n{MANIFEST}EOF\n",
        DOCKERFILE,
        SETTINGS,
        "model: org/m\nmax-num-seqs: 8\ntensor_parallel_size: 2\n",
    ],
)
def test_a_command_is_read_wherever_it_stands(written: Any) -> None:
    found = parse_engine_args("vllm", written)
    assert {name: value for name, value in found.values.items() if name != "distributed_executor_backend"} == READ
    assert (found.model, found.warnings) == ("org/m", [])


@pytest.mark.parametrize(
    "written",
    [
        "RANKS=1\nvllm serve org/m --max-num-seqs $((RANKS * 16 / 2)) -tp $(( ($RANKS + 3) / 2 ))",
        {
            "command": ["bash", "-c"],
            "args": ["vllm serve org/m --max-num-seqs $((LOCAL * 4)) -tp $((${NONE:-0} + LOCAL))"],
            "env": [{"name": "LOCAL", "value": "2"}],
        },
        "A=8\ncat > f.yaml << EOF\nmax_num_seqs: $A\nEOF\ncat << EOF >> f.yaml\ntensor-parallel-size: $((A / 4))\nEOF\n"
        "vllm serve org/m --config f.yaml",
    ],
)
def test_sums_and_texts_of_variables_are_read(written: Any) -> None:
    found = parse_engine_args("vllm", written)
    assert (found.values, found.model, found.warnings) == (READ, "org/m", [])


@pytest.mark.parametrize("text", ["$((2 ** 9))", "$((RANKS * 2))", "$((1 / 0))", "$((__import__('os')))"])
def test_a_sum_that_is_not_known_stays_open(text: str) -> None:
    with pytest.raises(InputError, match="stands for a value that is not in the text"):
        parse_engine_args("vllm", f"vllm serve org/m --max-num-seqs {text}")


def test_a_here_document_whose_delimiter_is_quoted_keeps_its_variables() -> None:
    assert read_script("A=1\ncat > f << 'EOF'\n$A\nEOF\ncat > g << EOF\n$A $B\nEOF").files == {"f": "$A\n", "g": "1 $B\n"}


def test_the_commands_of_further_nodes_are_one_server() -> None:
    """vLLM's guide of data parallelism over nodes: the first node alone has API servers, the others are headless."""
    nodes = "vllm serve org/m -dp 16 -dpl 8 --api-server-count 8\nvllm serve org/m -dp 16 -dpl 8 --headless -dpr 8"
    for text in (nodes, "\n".join(reversed(nodes.splitlines()))):
        found = parse_engine_args("vllm", text)
        assert found.values == {"data_parallel_size": 16, "api_server_count": 8}


def test_arguments_of_kserve_are_those_of_its_vllm() -> None:
    manifest = """kind: InferenceService
spec:
  predictor:
    model:
      args: [--model_name=x, --model_id=org/m, --max-num-seqs=8, --tensor-parallel-size=2]
"""
    found = parse_engine_args("vllm", manifest)
    assert (found.values, found.model, found.warnings) == (READ, "org/m", [])


def test_a_program_of_windows_is_read() -> None:
    found = parse_engine_args("llama_cpp", ".\\llama-server.exe -m C:\\models\\x-Q4_K_M.gguf -c 4096")
    assert found.values["ctx_size"] == 4096


def test_an_engine_is_found_though_another_cannot_read_the_files_of_its_text() -> None:
    text = "cat > c.yml << EOF\nkv_cache_config: [$(seq 8)\nEOF\ntrtllm-serve org/m --config c.yml"
    assert launched_by(text) == "trtllm"
    with pytest.raises(InputError, match=r"c\.yml is no YAML"):
        parse_engine_args("trtllm", text)


def test_a_compose_file_gives_flags_environment_and_version() -> None:
    found = parse_engine_args("vllm", COMPOSE)
    assert (found.values, found.version) == ({**READ, "attention_backend": "FLASHINFER"}, "0.15.1")


@pytest.mark.parametrize(
    ("written", "version"),
    [
        ("docker run vllm/vllm-openai:v0.11.0 --model m", "0.11.0"),
        ("docker run docker.io/vllm/vllm-openai:v0.11.0-x86_64@sha256:ab12 --model m", "0.11.0"),
        ("docker run vllm/vllm-openai-rocm:v0.20.2 m", "0.20.2"),
        ("docker run nvcr.io/nvidia/vllm:25.09-py3 vllm serve m", None),  # the vendor's own numbers
        ("uv pip install 'vllm==0.14.1' --torch-backend auto\nvllm serve m", "0.14.1"),
        ("pip install 'vllm>=0.14.1'\nvllm serve m", None),
        ("docker pull vllm/vllm-openai:v0.9.0\ndocker run vllm/vllm-openai:v0.11.0 --model m", "0.11.0"),
        ("docker run vllm/vllm-openai:nightly-8bff83 --model m", None),
        ("docker run vllm/vllm-openai --model m", None),
        ("docker run lmsysorg/sglang:v0.5.9-cu126 python3 -m sglang.launch_server --model m", "0.5.9"),
        ("docker run lmsysorg/sglang:v0.5.4.post1-rocm630-mi30x sglang serve --model-path m", "0.5.4.post1"),
        ("docker run ghcr.io/huggingface/text-generation-inference:3.3.5 --model-id m", "3.3.5"),
    ],
)
def test_the_tag_of_an_image_is_the_version(written: str, version: str | None) -> None:
    engine = launched_by(written)
    assert engine is not None
    found = parse_engine_args(engine, written)
    assert found.version == version
    assert bool(found.notes) == (version is None and "vllm/vllm" in written)


def scenario(engine: str, args: Any, **pool: Any) -> dict[str, Any]:
    return {
        "model": "Qwen/Qwen3-8B",
        "deployment": {"engine": engine, "hardware": "h100-sxm-80gb", "engine_args": args, **pool},
        "workload": {"arrivals": {"kind": "poisson", "rate": 1}, "prompt_tokens": 10, "output_tokens": 10, "duration": 10},
    }


def test_the_version_of_the_command_is_that_of_the_pool() -> None:
    command = "docker run vllm/vllm-openai:v0.11.0 Qwen/Qwen3-8B"
    assert load_scenario(scenario("vllm", command)).deployment.pools[0].engine == "vllm@0.11.0"
    assert load_scenario(scenario("vllm@0.11", command)).deployment.pools[0].engine == "vllm@0.11.0"
    with pytest.raises(InputError, match=r"runs version 0\.11\.0 .*v0\.11\.0.*says vllm@0\.15\.1"):
        load_scenario(scenario("vllm@0.15.1", command))
    with pytest.raises(InputError, match=r"v0\.5\.4: vLLM 0\.5\.4 is older than the oldest modelled") as old:
        load_scenario(scenario("vllm", "docker run vllm/vllm-openai:v0.5.4 Qwen/Qwen3-8B"))
    assert "engine: vllm@0.6.0" in str(old.value.mend)
    newest = scenario("vllm@0.15.1", "docker run vllm/vllm-openai:nightly Qwen/Qwen3-8B")
    assert load_scenario(newest).deployment.pools[0].engine == "vllm@0.15.1"


@pytest.mark.parametrize(
    ("engine", "written", "message"),
    [
        ("vllm", "vllm serve a -tp 8\nvllm serve a -tp 4 -dp 2", "starts 2 servers whose flags differ"),
        (
            "vllm",
            """vllm serve a --kv-transfer-config '{"kv_connector": "P2pNcclConnector", "kv_role": "kv_producer"}' &
            vllm serve a --kv-transfer-config '{"kv_connector": "P2pNcclConnector", "kv_role": "kv_consumer"}' &""",
            "2 servers that share the work (decode, prefill)",
        ),
        (
            "vllm",
            """vllm serve a --port 1 --kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}' &
            vllm serve a --port 2 --kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}' &""",
            "2 servers that share the work",
        ),
        ("vllm", "vllm serve a --config flags.yaml", "cannot be seen"),
        ("vllm", "vllm serve a -pcp 8", "`-pcp` 8 is not modelled yet"),
        ("trtllm", "trtllm-serve disaggregated -c disagg.yaml -t 7200", "pools of a scenario say it"),
        ("vllm", "vllm serve a --offload-group-size 8", "not modelled yet"),
        ("vllm", "vllm serve a --runner pooling", "not modelled yet"),
        ("vllm", "vllm serve a --omni", "server of images, video and sound"),
        ("vllm", "vllm serve --help", "no launch command of vllm"),
        ("vllm", "docker run -it vllm/vllm-openai:latest bash", "no launch command of vllm"),
        ("vllm", "pkill -f 'vllm serve'", "no launch command of vllm"),
        ("vllm", "vllm bench serve --model m", "no launch command of vllm"),
        ("vllm", "docker run --entrypoint vllm vllm/vllm-openai:latest bench serve --model m", "no launch command of vllm"),
        ("vllm", "vllm serve a --max-num-seqs {{ .Values.rows }}", "stands for a value that is not in the text"),
        ("vllm", "vllm serve a --max-num-seqs <rows>", "stands for a value that is not in the text"),
        ("vllm", "services:\n  a: [", "begins like YAML, but is none"),
        ("vllm", "sglang serve --model-path m", "launch command of sglang, not of vllm"),
        ("sglang", "./docker-compose.yml", "names a file, which is not read"),
        ("sglang", "sglang serve --model-path m --speculative-adaptive", "how many tokens a step yields"),
        ("sglang", "sglang serve --model-path m --dit-cpu-offload true", "server of images and video"),
        ("sglang", "sglang serve --model-path m --cuda-graph-m 5", "is the beginning of"),
        ("tgi", "text-generation-launcher --model-id m --max-batch-si 4", "tgi has no flag"),  # its parser takes no beginnings
    ],
)
def test_what_cannot_be_predicted_from_a_command_is_refused_by_its_reason(engine: str, written: str, message: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_engine_args(engine, written)
    assert message in refused.value.message
    assert refused.value.mend


@pytest.mark.parametrize("word", ["aphrodite run m", "python -m dynamo.mocker --model-path m"])
def test_other_engines_are_named(word: str) -> None:
    with pytest.raises(InputError, match=f"launch command of ({'|'.join(OTHERS.values())}), not of vllm"):
        parse_engine_args("vllm", word)


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("python3 -m sglang.launch_server --model-path Qwen/Qwen3-8B --disaggregation-mode prefill", "prefill"),
        ("python3 -m sglang.launch_server --model-path Qwen/Qwen3-8B --disaggregation-mode decode", "decode"),
    ],
)
def test_a_server_of_a_pair_belongs_into_a_pool_of_its_role(command: str, role: str) -> None:
    with pytest.raises(InputError, match=f"starts the {role} server of a pair") as refused:
        load_scenario(scenario("sglang", command))
    assert "two pools" in str(refused.value.mend)


def test_a_server_whose_peers_decide_its_role_is_no_server_by_itself() -> None:
    def text(connector: str) -> str:
        return f"""vllm serve Qwen/Qwen3-8B --kv-transfer-config '{{"kv_connector": "{connector}", "kv_role": "kv_both"}}'"""

    with pytest.raises(InputError, match="starts one server of a pair") as refused:
        load_scenario(scenario("vllm", text("NixlConnector")))
    assert "two pools" in str(refused.value.mend)
    assert load_scenario(scenario("vllm", text("NixlConnector"), role="mixed")).deployment.pools[0].role == "mixed"
    assert load_scenario(scenario("vllm", text("OffloadingConnector"))).deployment.pools[0].role == "mixed"


def test_copies_of_a_manifest_are_the_replicas_that_no_key_states() -> None:
    container = {"image": "vllm/vllm-openai:v0.11.0", "args": ["Qwen/Qwen3-8B"]}
    kubernetes = {"kind": "Deployment", "spec": {"replicas": 4, "template": {"spec": {"containers": [container]}}}}
    compose = {"services": {"vllm": {**container, "deploy": {"replicas": 3}}}}
    for args, copies in ((kubernetes, 4), (compose, 3), ({"services": {"vllm": {**container, "scale": 2}}}, 2), (container, 1)):
        assert load_scenario(scenario("vllm", args)).deployment.pools[0].replicas == copies
    assert load_scenario(scenario("vllm", kubernetes, replicas=2)).deployment.pools[0].replicas == 2
    with pytest.raises(InputError, match="asks for -1 replicas"):
        load_scenario(scenario("vllm", {"services": {"vllm": {**container, "scale": -1}}}))


def test_nodes_of_one_server_are_one_command() -> None:
    nodes = [f"sglang serve --model-path m --tp 16 --nnodes 2 --node-rank {rank} --dist-init-addr a:1" for rank in (0, 1)]
    found = parse_engine_args("sglang", "\n".join(nodes))
    assert found.values == {"tensor_parallel_size": 16}
    assert "nodes of one server" in found.notes[-1]


def test_a_release_that_lacks_a_flag_is_told() -> None:
    assert parse_engine_args("vllm@0.11.0", "vllm serve m --performance-mode throughput").warnings == [
        "vllm 0.11.0 has no flag `performance_mode`; read as other releases have it"
    ]
    assert parse_engine_args("vllm@0.33.0", "vllm serve m --performance-mode throughput").warnings == []
    assert parse_engine_args("vllm@0.15.1", "vllm serve m --watermark 0.1").warnings != []


# Other products' workers, calls, manifests of several servers ----------------------------------------------

DYNAMO = """\
kind: DynamoGraphDeployment
metadata: {name: pair}
spec:
  services:
    Frontend:
      extraPodSpec:
        mainContainer: {image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.0.0, command: [python3, -m, dynamo.frontend]}
      envs: [{name: DYN_ROUTER_MODE, value: kv}]
    Decode:
      replicas: 2
      extraPodSpec:
        mainContainer:
          image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.0.0
          command: [python3, -m, dynamo.vllm]
          args: [--model, Qwen/Qwen3-8B, --max-num-seqs, "64"]
    Prefill:
      replicas: 3
      extraPodSpec:
        mainContainer:
          image: nvcr.io/nvidia/ai-dynamo/vllm-runtime:1.0.0
          command: [/bin/sh, -c]
          args: ["python3 -m dynamo.vllm --model Qwen/Qwen3-8B --disaggregation-mode prefill"]
"""
STACK = """\
servingEngineSpec:
  runtimeClassName: ""
  modelSpec:
  - name: big
    repository: vllm/vllm-openai
    tag: v0.15.1
    modelURL: org/m
    replicaCount: 3
    requestGPU: 2
    vllmConfig: {maxNumSeqs: 8, tensorParallelSize: 2, extraArgs: ["--disable-log-requests"]}
    keda: {enabled: true, minReplicaCount: 1, maxReplicaCount: 6}
  - name: small
    repository: vllm/vllm-openai
    tag: v0.11.0
    modelURL: org/s
    replicaCount: 1
    vllmConfig: {enablePrefixCaching: true}
    lmcacheConfig: {enabled: true, cpuOffloadingBufferSize: "60"}
routerSpec: {routingLogic: session, sessionKey: x-user-id}
"""


@pytest.mark.parametrize(
    ("engine", "command", "values", "role"),
    [
        ("vllm", "python3 -m dynamo.vllm --model m --enforce-eager --namespace a", {"enforce_eager": True}, None),
        ("vllm", "python -m dynamo.vllm --model m -tp 2 --is-prefill-worker", {"tensor_parallel_size": 2}, "prefill"),
        ("vllm", "python -m dynamo.vllm --model m --disaggregation-mode=decode --connector nixl", {}, "decode"),
        ("sglang", "python3 -m dynamo.sglang --model-path m --tp 2 --skip-tokenizer-init", {"tensor_parallel_size": 2}, None),
        (
            "sglang",
            "python3 -m dynamo.sglang --model-path m --disaggregation-mode decode --store-kv mem",
            {"disaggregation_mode": "decode"},
            "decode",
        ),
        (
            "trtllm",
            "python3 -m dynamo.trtllm --model-path m --kv-block-size 64 --disaggregation-mode prefill "
            """--override-engine-args '{"max_num_tokens": 4096, "kv_cache_config": {"enable_block_reuse": false}}'""",
            {"kv_cache_config": {"tokens_per_block": 64, "enable_block_reuse": False}, "max_num_tokens": 4096},
            "prefill",
        ),
        (
            "trtllm",
            "cat > a.yaml <<EOF\nmax_batch_size: 16\nEOF\npython3 -m dynamo.trtllm --model m --extra-engine-args a.yaml",
            {"max_batch_size": 16},
            None,
        ),
    ],
)
def test_workers_of_dynamo_are_servers_of_their_engine(engine: str, command: str, values: Any, role: str | None) -> None:
    found = parse_engine_args(engine, command)
    assert (found.values, found.role, found.model, found.warnings) == (values, role, "m", [])
    assert launched_by(command) == engine


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--is-prefil-worker", "did you mean `--is-prefill-worker`"),
        ("--multimodal-encode-worker", "images, video and embeddings"),
        ("--disaggregation-mode encode", "cannot be 'encode'"),
    ],
)
def test_flags_of_dynamos_workers_are_known_to_their_program_alone(flag: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_engine_args("vllm", f"python -m dynamo.vllm --model m {flag}")
    with pytest.raises(InputError, match="vllm has no flag"):
        parse_engine_args("vllm", "vllm serve m --is-decode-worker")
    assert "beyond the device" in parse_engine_args("vllm", "python -m dynamo.vllm --model m --connector kvbm nixl").warnings[0]


@pytest.mark.parametrize(
    ("engine", "text", "values"),
    [
        ("vllm", "from vllm import LLM\nllm = LLM(model='m', max_num_seqs=8, tensor_parallel_size=2)\nllm.generate(p)", READ),
        ("vllm", "import vllm\nTP = 2\nllm = vllm.LLM('m', max_num_seqs=8, tensor_parallel_size=TP)", READ),
        ("vllm", "llm = LLM('m', **dict(max_num_seqs=8), tensor_parallel_size=2)", READ),
        (
            "vllm",
            "from vllm.engine.arg_utils import AsyncEngineArgs as Args\nArgs(model='m', max_num_seqs=8, tensor_parallel_size=2)",
            READ,
        ),
        ("sglang", "import sglang as sgl\nllm = sgl.Engine(model_path='m', tp_size=2)", {"tensor_parallel_size": 2}),
        (
            "trtllm",
            "from tensorrt_llm import LLM\nllm = LLM('m', kv_cache_config=KvCacheConfig(free_gpu_memory_fraction=0.8))",
            {"kv_cache_config": {"free_gpu_memory_fraction": 0.8}},
        ),
    ],
)
def test_a_call_in_a_program_is_read_as_its_imports_say(engine: str, text: str, values: Any) -> None:
    found = parse_engine_args(engine, text)
    assert (found.values, found.model, found.warnings) == (values, "m", [])
    assert "has no front end" in found.notes[-1]
    assert launched_by(text) == (engine if "import" in text else None)


RAY = """\
from ray.serve.llm import LLMConfig, build_openai_app
config = LLMConfig(
    model_loading_config=dict(model_id="mine", model_source="org/m"),
    deployment_config=dict(autoscaling_config=dict(min_replicas=1, max_replicas=4)),
    engine_kwargs=dict(max_num_seqs=8, tensor_parallel_size=2),
    accelerator_type="A10G",
)
"""
RAY_FILE = """\
applications:
- name: llm
  import_path: ray.serve.llm:build_openai_app
  args:
    llm_configs:
    - model_loading_config: {model_id: mine, model_source: org/m}
      deployment_config: {autoscaling_config: {min_replicas: 1, max_replicas: 4}}
      engine_kwargs: {max_num_seqs: 8, tensor_parallel_size: 2}
"""


@pytest.mark.parametrize("text", [RAY, RAY_FILE])
def test_a_configuration_of_ray_serve_is_a_server_with_its_bounds(text: str) -> None:
    found = parse_engine_args("vllm", text)
    assert (found.values, found.model, found.copies, found.replicas) == (READ, "org/m", (1, 4), 1)
    with pytest.raises(InputError, match="did you mean `--tensor-parallel-size`"):
        parse_engine_args("vllm", text.replace("tensor_parallel_size", "tensor_paralel_size"))


def test_a_batch_of_requests_in_a_file_has_the_flags_of_its_engine() -> None:
    found = parse_engine_args("vllm", "vllm run-batch -i in.jsonl -o out.jsonl --model org/m --max-num-seqs 8 -tp 2")
    assert (found.values, found.model, found.warnings) == (READ, "org/m", [])


def test_a_call_of_another_package_is_that_ones() -> None:
    with pytest.raises(InputError, match="launch command of trtllm, not of vllm"):
        parse_engine_args("vllm", "from tensorrt_llm import LLM\nLLM('m')")
    with pytest.raises(InputError, match="did you mean `tensor_parallel_size`"):
        parse_engine_args("vllm", "from vllm import LLM\nLLM('m', tensor_paralel_size=2)")
    with pytest.raises(InputError, match="is no flag with a value"):
        parse_engine_args("vllm", "from vllm import LLM\nLLM('m', max_num_seqs=args.rows())")
    with pytest.raises(InputError, match="is no flag with a value"):
        parse_engine_args("vllm", "from vllm import LLM\nLLM(*given)")


@pytest.mark.parametrize(
    "text",
    [
        "$env:OLLAMA_NUM_PARALLEL = \"4\"\nollama serve",
        "set OLLAMA_NUM_PARALLEL=4\nollama serve",
        "launchctl setenv OLLAMA_NUM_PARALLEL 4\nollama serve",
        "OLLAMA_NUM_PARALLEL=4 ollama serve &\nollama run llama3.1:8b",
        "docker run -d --gpus=all -e OLLAMA_NUM_PARALLEL=4 ollama/ollama:0.33.0\ndocker exec -it ollama ollama run llama3.1:8b",
        {"services": {"ollama": {"image": "ollama/ollama:0.33.0", "environment": ["OLLAMA_NUM_PARALLEL=4"]}}},
    ],
)
def test_ollama_is_read_with_its_environment_wherever_that_is_set(text: Any) -> None:
    found = parse_engine_args("ollama", text)
    assert (found.values, found.warnings, found.notes) == ({"num_parallel": 4}, [], [])


def test_a_client_of_ollama_names_model_and_format() -> None:
    assert parse_engine_args("ollama", "ollama run --verbose qwen3:8b-q8_0 hello").model == "qwen3:8b-q8_0"
    pool = load_scenario(scenario("ollama", "ollama run qwen3:8b-q8_0", hardware="rtx-4090-24gb")).deployment.pools[0]
    assert pool.weights == "q8_0"


def test_the_server_of_a_pools_name_is_chosen_among_several() -> None:
    for name, values, version, copies, bounds in (("big", READ, "0.15.1", 3, (1, 6)), ("small", None, "0.11.0", 1, None)):
        found = parse_engine_args("vllm", STACK, name)
        assert (found.version, found.replicas, found.copies) == (version, copies, bounds)
        assert values is None or found.values == {**values, "enable_prefix_caching": False}  # the chart's own default
    assert found.values["lmcache_max_local_cpu_size"] == 60.0
    assert found.values["kv_transfer_config"]["kv_connector"] == "LMCacheConnectorV1"
    with pytest.raises(InputError, match=r"2 servers whose flags differ.*\n.*name each pool after its own \(big, small\)"):
        parse_engine_args("vllm", STACK)
    with pytest.raises(InputError, match="did you mean `--max-num-seqs`"):
        parse_engine_args("vllm", STACK.replace("maxNumSeqs", "maxNumSegs"), "big")


def test_a_router_with_its_servers_is_as_many_replicas() -> None:
    command = "python -m sglang_router.launch_server --model-path Qwen/Qwen3-8B --dp-size 4 --tp 2 --router-policy power_of_two"
    found = parse_engine_args("sglang", command)
    assert (found.values, found.replicas, found.warnings) == ({"tensor_parallel_size": 2}, 4, [])
    prepared = prepare(load_scenario(scenario("sglang", command)))
    assert (prepared.replicas, prepared.devices, prepared.pool.data_parallel) == (4, 8, 1)
    assert "write router: {system: sglang-router, policy: power_of_two}" in " ".join(prepared.warnings)
    with pytest.raises(InputError, match="pools of a scenario say it"):
        parse_engine_args("sglang", f"{command} --router-pd-disaggregation")
    with pytest.raises(InputError, match="did you mean `--router-policy`"):
        parse_engine_args("sglang", command.replace("router-policy", "router-polcy"))
    assert parse_engine_args("sglang", "sglang serve --model-path m --dp-size 4").values == {"data_parallel_size": 4}


def places(data: Any) -> list[tuple[Any, ...]]:
    """Where values stand in a document."""
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in inner for place in [(key,), *((key, *rest) for rest in places(value))]]


SERVICE = """\
kind: LLMInferenceService
metadata: {name: big}
spec:
  replicas: 3
  parallelism: {tensor: 2, expert: true}
  model: {uri: "hf://org/m"}
  template: {containers: [{args: [--max-num-seqs, "8"], env: [{name: VLLM_ADDITIONAL_ARGS, value: --port 1}]}]}
  prefill: {replicas: 1, template: {containers: [{args: [--port, "1"]}]}}
"""


@pytest.mark.parametrize("text", [STACK, DYNAMO, RAY_FILE, SERVICE])
def test_whatever_stands_in_a_manifest_is_read_or_refused_in_words(text: str) -> None:
    whole = yaml.safe_load(text)
    for place in places(whole):
        for value in (None, True, -1, 1.5, "60Gi", [], {}, ["a", {"b": 1}], {"a": [1]}, "{{ .V }}", "'unclosed"):
            changed = copy.deepcopy(whole)
            inside = changed
            for key in place[:-1]:
                inside = inside[key]
            inside[place[-1]] = value
            with contextlib.suppress(InputError):
                parse_engine_args("vllm", changed, "big")


def test_services_of_one_text_become_the_pools_of_their_names() -> None:
    data = scenario("vllm", DYNAMO)
    pool = data["deployment"]
    data["deployment"] = {"pools": [{**pool, "name": "Decode", "role": "decode"}, {**pool, "name": "Prefill"}]}
    decode, prefill = load_scenario(data).deployment.pools
    assert (decode.role, decode.replicas, prefill.role, prefill.replicas) == ("decode", 2, "prefill", 3)
    with pytest.raises(InputError, match=r"share the work \(prefill\)"):
        parse_engine_args("vllm", DYNAMO)


def test_a_service_of_kserve_has_its_ranks_and_added_arguments() -> None:
    added = [{"name": "VLLM_ADDITIONAL_ARGS", "value": "--max-num-seqs 8"}]
    spec = {
        "replicas": 3,
        "parallelism": {"tensor": 2},
        "model": {"uri": "hf://org/m", "name": "m"},
        "template": {"containers": [{"name": "main", "image": "vllm/vllm-openai:v0.11.0", "env": added}]},
    }
    found = parse_engine_args("vllm", {"kind": "LLMInferenceService", "metadata": {"name": "q"}, "spec": spec})
    assert (found.values, found.model, found.version, found.replicas, found.warnings) == (READ, "org/m", "0.11.0", 3, [])


def warned(args: Any, **deployment: Any) -> str:
    data = scenario("vllm", args)
    data["deployment"] |= deployment
    return "\n".join(prepare(load_scenario(data)).warnings)


def test_what_a_text_starts_beside_the_pool_is_said_unless_the_scenario_states_it() -> None:
    frontend = "python -m dynamo.frontend --router-mode kv --http-port 8000 &\npython3 -m dynamo.vllm --model Qwen/Qwen3-8B"
    assert "router: {system: dynamo, router_mode: kv}" in warned(frontend, replicas=2)
    assert "router:" not in warned(frontend)  # of one server nobody chooses
    assert "router:" not in warned(frontend, replicas=2, router="least_requests")
    assert "router:" not in warned(frontend.replace("kv", "round-robin"), replicas=2)
    scaled = {"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 8, "model": {"args": ["--port=1"]}}}}
    assert "at least 2 and at most 8 replicas; here they stay 2" in warned(scaled)
    scaler = {"kind": "hpa", "target": 4, "min_replicas": 2, "max_replicas": 8}
    assert "replicas; here" not in warned(scaled, autoscaler=scaler)
    always_two = {"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 2, "model": {"args": ["--port=1"]}}}}
    assert "replicas; here" not in warned(always_two)
    assert "replicas; here they stay 3" in warned(always_two, replicas=3)
    services = {
        "services": {
            "chat": {"image": "vllm/vllm-openai:v0.15.1", "command": "--model Qwen/Qwen3-8B"},
            "small": {"image": "lmsysorg/sglang:v0.5.9", "command": "python3 -m sglang.launch_server --model-path m"},
            "cache": {"image": "redis:7", "command": "redis-server"},
        }
    }
    assert warned(services).count("the text also starts a server") == 1
    assert "a server of sglang (small)" in warned(services)


@pytest.mark.parametrize(("target", "replicas", "copies"), [("a", 2, (1, 5)), ("b", 2, None)])
def test_an_autoscaler_by_itself_scales_what_it_names(target: str, replicas: int, copies: Any) -> None:
    deployment = {"kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 2, "template": {"args": ["--port=1"]}}}
    scaler = {"kind": "HorizontalPodAutoscaler", "spec": {"scaleTargetRef": {"name": target}, "minReplicas": 1, "maxReplicas": 5}}
    found = parse_engine_args("vllm", yaml.safe_dump_all([deployment, scaler]))
    assert (found.replicas, found.copies) == (replicas, copies)


# Properties -----------------------------------------------------------------------------------------------

VALUES = {"int": "3", "count": "3", "float": "0.5", "str": "x", "json": '{"a": 1}', "pairs": "a=1", "ints": "1 2", "texts": "a b"}


def accepted(table: FlagTable, name: str) -> list[str]:
    """Words that give a flag a value its reader takes."""
    flag = table.modelled.get(name)
    if flag is None:
        neutral = table.unread[name].neutral
        value = neutral[0] if neutral else "auto"
        return [] if table.kind(name) in ("switch", "pair", "optional") else [value]
    if flag.kind == "bool":
        return []
    value = flag.choices[0] if flag.choices else VALUES[flag.kind]
    return value.split() if table.kind(name) == "list" else [value]


def readable(table: FlagTable) -> list[str]:
    """Flags that stand alone without being refused."""
    return [name for name in [*table.modelled, *table.unread] if name in table.modelled or not table.unread[name].refused]


def outcome(engine: str, args: Any) -> Any:
    try:
        return parse_engine_args(engine, args)
    except InputError as refused:
        return refused.message


@st.composite
def flags_of(draw: st.DrawFn) -> tuple[str, list[list[str]]]:
    """An engine and some of its flags as words, each flag once."""
    engine = draw(st.sampled_from(sorted(name for name, table in TABLES.items() if table.launcher.programs)))
    table = TABLES[engine]
    names = draw(st.lists(st.sampled_from(readable(table)), max_size=6, unique=True))
    return engine, [[f"--{name.replace('_', '-')}", *accepted(table, name)] for name in names]


@given(flags_of(), st.randoms(use_true_random=False))
def test_the_order_of_flags_does_not_matter(drawn: tuple[str, list[list[str]]], random: Any) -> None:
    engine, groups = drawn
    shuffled = random.sample(groups, len(groups))
    one, other = (outcome(engine, [word for group in each for word in group]) for each in (groups, shuffled))
    if isinstance(one, str) or isinstance(other, str):
        assert type(one) is type(other)
    else:
        assert (one.values, one.model) == (other.values, other.model)


@given(flags_of())
def test_an_equals_sign_a_list_and_text_say_the_same(drawn: tuple[str, list[list[str]]]) -> None:
    engine, groups = drawn
    words = [word for group in groups for word in group]
    joined = [word for group in groups for word in (["=".join(group)] if len(group) == 2 else group)]
    text = f"{TABLES[engine].launcher.example.partition(' --')[0].removesuffix(' MODEL')} {shlex.join(words)}"
    assert outcome(engine, words) == outcome(engine, joined) == outcome(engine, text)


@given(st.data())
@settings(max_examples=examples(150))
def test_a_beginning_is_the_flag_if_it_is_the_only_one(data: st.DataObject) -> None:
    engine = data.draw(st.sampled_from(["vllm", "sglang"]))
    table = TABLES[engine]
    spelled = {word: table.aliases.get(word, word) for word in [*table.modelled, *table.unread, *table.aliases]}
    spelled |= {f"no_{word}": f"no_{own}" for word, own in spelled.items() if table.kind(own) == "pair"}
    word = data.draw(st.sampled_from(sorted(spelled)))
    begun = word[: data.draw(st.integers(2, len(word)))]
    meant = {own for other, own in spelled.items() if other.startswith(begun)}
    meant = {own for own in meant if table.releases.has(own.removeprefix("no_"), None)} or meant
    if begun in spelled:
        meant = {spelled[begun]}
    shown = "--" + begun.replace("_", "-")
    found = outcome(engine, [shown, *(accepted(table, next(iter(meant)).removeprefix("no_")) if len(meant) == 1 else [])])
    if len(meant) > 1:
        assert f"`{shown}` is the beginning of {len(meant)} flags" in found
    elif not isinstance(found, str):
        assert any(f"`{shown}` is read as" in note for note in found.notes) == (begun not in spelled)
    else:
        assert "has no flag" not in found
        assert "beginning of" not in found


@given(st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), min_size=1, max_size=8), min_size=1, max_size=5))
def test_quoted_words_come_back(words: list[str]) -> None:
    assert read_script(shlex.join(["x", *words])).commands == [["x", *words]]


KEYS = st.sampled_from(["image", "command", "args", "entrypoint", "env", "environment", "services", "run", "x"])
SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=30)


@given(st.recursive(SCALARS, lambda one: st.lists(one, max_size=3) | st.dictionaries(KEYS, one, max_size=4), max_leaves=12))
def test_any_data_is_read_or_refused_in_words(data: Any) -> None:
    for engine in BUILT_IN:
        with contextlib.suppress(InputError):
            find_launches(json.dumps(data), TABLES[engine].launcher)
        if isinstance(data, list | dict):
            outcome(engine, data)


@given(st.text(alphabet="abvllm serve-=\"'\\$<>|&;(){}[]#\n:`!.", max_size=80))
def test_any_shell_text_is_read_or_refused_in_words(text: str) -> None:
    outcome("vllm", f"vllm serve m {text}")
    outcome("vllm", text)


@pytest.mark.parametrize(
    "text",
    [
        "<a" * 10_000,
        "<<" * 10_000,
        "$(" * 10_000,
        "'" * 80_001,
        "vllm serve m\n" + "#\n" * 20_000 + "x",
        'CMD ["a", ' + "\\\n" * 30_000,
        "```\n" + " " * 80_000 + "x",
        "a: " + "[" * 900 + "]" * 900,
        "b0: &b0 {k: v}\n" + "".join(f"b{i + 1}: &b{i + 1} {{<<: [*b{i}, *b{i}]}}\n" for i in range(30)),
        "x" * 200_000,
    ],
    ids=lambda text: text[:8],
)
def test_no_text_takes_long_or_fills_the_stack(text: str) -> None:
    outcome("vllm", text)


# The lists ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vllm", "sglang"])
def test_every_flag_of_the_engines_parser_is_known_once(name: str) -> None:
    from importlib import import_module

    module: Any = import_module(f"engine_models.engines.{name}_flags")
    table, lists = TABLES[name], module._LISTS
    assert [flag for flag in lists.kinds if not table.knows(flag)] == []
    texts = [module._HARMLESS, *module._CHANGING.values(), *module._REFUSED.values()]
    words = [word.partition("=")[0] for text in texts for word in text.split()]
    assert sorted(words) == sorted({*words})
    assert not {*words} & {*table.modelled}
