"""Launches in programs, in jobs of schedulers, and in what tools of clouds and clusters run."""

from __future__ import annotations

import contextlib
import re

import pytest

from engine_models.engines.known import launched_by, parse_engine_args
from engine_models.python_commands import read_commands
from hardware_profiles.errors import InputError

FLAGS = {"max_num_seqs": 8, "tensor_parallel_size": 2}
MODAL = """\
import modal

image = modal.Image.debian_slim().uv_pip_install("vllm==0.13.0")
MODEL_NAME = "org/m"
N_GPU = 2
EAGER = False
app = modal.App("serving")


@app.function(image=image, gpu=f"H100:{N_GPU}")
@modal.web_server(port=8000)
def serve():
    import subprocess

    cmd = ["vllm", "serve", MODEL_NAME, "--served-model-name", MODEL_NAME, "llm", "--max-num-seqs", "8"]
    cmd += ["--enforce-eager" if EAGER else "--no-enforce-eager"]
    cmd += ["--tensor-parallel-size", str(N_GPU)]
    subprocess.Popen(" ".join(cmd), shell=True)
"""
BENTO = """\
import bentoml

@bentoml.service(resources={"gpu": 2})
class Served:
    model = bentoml.models.HuggingFaceModel("org/m")

    def __command__(self):
        return ["vllm", "serve", self.model, "--max-num-seqs", "8", "-tp", "2", "--host", self.host]
"""
SCRIPTS = {
    "a list": "import subprocess\nM = 'org/m'\nsubprocess.Popen(['vllm', 'serve', M, '--max-num-seqs', '8', '-tp', '2'])",
    "a text": "import os\nos.system(f'vllm serve org/m --max-num-seqs {8} -tp 2')",
    "from the environment": (
        "import os, subprocess\nM = os.environ.get('MODEL', 'org/m')\ntp = os.getenv('TP', '2')\n"
        "with subprocess.Popen(['vllm', 'serve', M, '--max-num-seqs=8', '--tensor-parallel-size', tp]) as server:\n    pass"
    ),
    "lists added": (
        "import subprocess\nmore = ['-tp', '2']\ncmd = ['vllm', 'serve', 'org/m'] + more\nBIG = True\n"
        "if BIG:\n    cmd.extend(['--max-num-seqs', '8'])\nelse:\n    cmd.append('--enforce-eager')\nsubprocess.run(cmd)"
    ),
    "a coroutine": (
        "import asyncio\nasync def main():\n"
        "    await asyncio.create_subprocess_exec('vllm', 'serve', 'org/m', '--max-num-seqs', '8', '-tp', '2')"
    ),
    "options of its own": (
        "import argparse, subprocess, sys\nap = argparse.ArgumentParser()\nap.add_argument('--model', default='org/m')\n"
        "ap.add_argument('--quantization')\nap.add_argument('--tensor-parallel-size', type=int, default=2)\n"
        "ap.add_argument('--eager', action='store_true')\nargs = ap.parse_args()\n"
        "cmd = [sys.executable, '-m', 'vllm.entrypoints.openai.api_server', '--model', args.model, '--max-num-seqs=8']\n"
        "if args.quantization:\n    cmd += ['--quantization', args.quantization]\n"
        "if args.eager:\n    cmd.append('--enforce-eager')\n"
        "if args.tensor_parallel_size > 1:\n    cmd.extend(['--tensor-parallel-size', str(args.tensor_parallel_size)])\n"
        "subprocess.call(cmd)"
    ),
    "parameters": (
        "import subprocess\ndef serve(model='org/m', port=8000, tool=None, *, tp=2):\n    more = ['--max-num-seqs', '8']\n"
        "    if tool is not None:\n        more.append('--enforce-eager')\n"
        "    subprocess.Popen(['vllm', 'serve', model, *more, '--port', str(port), '-tp', str(tp)])"
    ),
    "a container": (
        "import subprocess\nsubprocess.run(['docker', 'run', '--gpus', 'all', 'vllm/vllm-openai:latest', '--model', 'org/m', "
        "'--max-num-seqs', '8', '-tp', '2'])"
    ),
    "words of a text": (
        "import shlex, subprocess\nMORE = '--max-num-seqs 8'\nargs = 'org/m -tp 2'.split()\n"
        "subprocess.Popen(['vllm', 'serve', *args, *shlex.split(MORE)])"
    ),
    "a mapping": (
        "import subprocess\nC = {'model': 'org/m', 'tp': 2}\n"
        "subprocess.Popen(['vllm', 'serve', C['model'], '-tp', str(C['tp']), '--max-num-seqs', '8'])"
    ),
    "a notebook": "!pip install something\n!vllm serve org/m --max-num-seqs 8 -tp 2 &",
    "Modal": MODAL,
    "BentoML": BENTO,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_command_in_a_program_is_read(name: str) -> None:
    assert launched_by(SCRIPTS[name]) == "vllm"
    flags = parse_engine_args("vllm", SCRIPTS[name])
    assert flags.model == "org/m"
    assert {key: flags.values[key] for key in FLAGS} == FLAGS
    assert not flags.values.get("enforce_eager")
    assert flags.version == ("0.13.0" if name == "Modal" else None)


def test_a_condition_that_the_text_does_not_say_is_named() -> None:
    text = "import sys\ncmd = ['vllm', 'serve', 'org/m']\nif len(sys.argv) > 1:\n    cmd += ['--enforce-eager']\n"
    with pytest.raises(InputError, match=r"depend on whether `len\(sys\.argv\) > 1`, which the text does not say"):
        parse_engine_args("vllm", text)
    other = text.replace("    cmd", "    other = ['x']\n    other")
    assert parse_engine_args("vllm", other).model == "org/m"


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        ("for key, value in settings.items():\n    cmd += [f'--{key}', value]", "settings.items()"),
        ("cmd.extend(extra)", "extra"),
        ("cmd = ['vllm', 'serve', 'org/m', *extra]", "extra"),
    ],
)
def test_words_from_elsewhere_are_named(rest: str, what: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"depend on what `{what}` is")):
        parse_engine_args("vllm", f"import subprocess\ncmd = ['vllm', 'serve', 'org/m']\n{rest}\nsubprocess.Popen(cmd)")


def test_what_only_a_run_knows_is_asked_for() -> None:
    text = "import torch\ncmd = ['vllm', 'serve', 'org/m', '-tp', str(torch.cuda.device_count())]"
    with pytest.raises(InputError, match="not in the text"):
        parse_engine_args("vllm", text)


def test_shell_text_is_no_program() -> None:
    assert read_commands("vllm serve org/m") == []
    assert read_commands("x = ['vllm', 'serve']") == []


BATCH = """\
#!/bin/bash
#SBATCH --job-name=vllm
{directives}
export MODEL=${{MODEL:-org/m}}
srun apptainer exec --nv --bind /scratch vllm.sif vllm serve "$MODEL" --max-num-seqs 8 {flags} &
VLLM_PID=$!
"""


@pytest.mark.parametrize(
    ("directives", "flags"),
    [
        ("#SBATCH --gpus-per-node=2", "--tensor-parallel-size $SLURM_GPUS_ON_NODE"),
        ("#SBATCH --gres=gpu:a100:2", "--tensor-parallel-size ${SLURM_GPUS_ON_NODE}"),
        ("#SBATCH -N 2\n#SBATCH -G H100:4", "--tensor-parallel-size $SLURM_GPUS_ON_NODE"),
        ("#SBATCH --nodes 2\n#SBATCH --gpus-per-task=1\n#SBATCH --ntasks-per-node=2", "-tp $SLURM_GPUS_ON_NODE"),
        ("#SBATCH --nodes=2", "-tp $SLURM_NNODES"),
        ("#SBATCH -N2\n#SBATCH --gres=gpu:1", "-tp $((SLURM_NNODES * SLURM_GPUS_ON_NODE))"),
    ],
)
def test_a_batch_job_says_its_variables(directives: str, flags: str) -> None:
    found = parse_engine_args("vllm", BATCH.format(directives=directives, flags=flags))
    assert found.model == "org/m"
    assert {key: found.values[key] for key in FLAGS} == FLAGS
    assert not found.warnings


@pytest.mark.parametrize("directives", ["", "#SBATCH --nodes=1-2\n#SBATCH -G 4", "#SBATCH --nodes=3\n#SBATCH -G 4"])
def test_gpus_of_a_node_that_a_batch_job_leaves_open_stay_so(directives: str) -> None:
    with pytest.raises(InputError, match="not in the text"):
        parse_engine_args("vllm", BATCH.format(directives=directives, flags="-tp $SLURM_GPUS_ON_NODE"))


SKY = """\
envs: {{MODEL: org/m}}
resources: {{accelerators: {accelerators}}}
run: |
  vllm serve $MODEL --max-num-seqs 8 --tensor-parallel-size $SKYPILOT_NUM_GPUS_PER_NODE
"""
DSTACK = """\
type: service
image: vllm/vllm-openai:v0.11.0
commands: [vllm serve org/m --max-num-seqs 8 --tensor-parallel-size $DSTACK_GPUS_NUM]
resources: {{gpu: {gpu}}}
"""


@pytest.mark.parametrize("asked", ["{L4:2, H100:2}", "{H100: 2}", "H100:2", "[H100:2, 'A100-80GB:2']"])
def test_a_task_of_skypilot_says_its_accelerators(asked: str) -> None:
    found = parse_engine_args("vllm", SKY.format(accelerators=asked))
    assert {key: found.values[key] for key in FLAGS} == FLAGS


@pytest.mark.parametrize(
    "beside",
    ["setup: |\n  uv pip install 'vllm==0.11.0' hf_transfer\n", "setup: pip install vllm[audio]==0.11.0\n"],
    ids=["quoted", "extra"],
)
def test_what_a_task_installs_is_the_version(beside: str) -> None:
    assert parse_engine_args("vllm", beside + SKY.format(accelerators="H100:2")).version == "0.11.0"


def test_the_image_of_a_task_is_the_version() -> None:
    text = SKY.format(accelerators="H100:2").replace("H100:2}", f"H100:2, image_id: 'docker:{IMAGE}'}}")
    assert parse_engine_args("vllm", text).version == "0.11.0"


def test_copies_of_services_are_the_replicas() -> None:
    sky, dstack = SKY.format(accelerators="H100:2"), DSTACK.format(gpu="2")
    assert parse_engine_args("vllm", sky + "service: {replicas: 3, readiness_probe: /health}\n").replicas == 3
    assert parse_engine_args("vllm", dstack + "replicas: 3\n").replicas == 3
    assert parse_engine_args("vllm", dstack + "replicas: 1..4\n").copies == (1, 4)


@pytest.mark.parametrize("asked", ["2", "A100:40GB:2", "{name: A100, count: 2}", "80GB:2"])
def test_a_service_of_dstack_says_its_gpus(asked: str) -> None:
    found = parse_engine_args("vllm", DSTACK.format(gpu=asked))
    assert {key: found.values[key] for key in FLAGS} == FLAGS


@pytest.mark.parametrize("text", [SKY.format(accelerators="{L4:4, H100:1}"), DSTACK.format(gpu="'H100:1..2'")])
def test_a_choice_of_numbers_stays_open(text: str) -> None:
    with pytest.raises(InputError, match="not in the text"):
        parse_engine_args("vllm", text)


IMAGE, ARGUMENTS = "vllm/vllm-openai:v0.11.0", "--model org/m --max-num-seqs 8 -tp 2"
QUADLET = f"[Unit]\nDescription=vLLM\n[Container]\nImage=docker.io/{IMAGE}\nEnvironment=HF_HOME=/data\nExec={ARGUMENTS}\n"
CHART = """\
image: {registry: docker.io, repository: vllm/vllm-openai, tag: v0.11.0}
replicaCount: 3
args: ["--model", "org/m", "--max-num-seqs=8", "-tp", "2"]
"""


@pytest.mark.parametrize(
    "text",
    [
        f"kubectl run vllm --image={IMAGE} --restart=Never -- {ARGUMENTS}",
        f"oc run vllm --image {IMAGE} -- {ARGUMENTS}",
        f'gcloud run deploy x --image {IMAGE} --gpu 1 --args="--model=org/m,--max-num-seqs=8,-tp=2" --region us-central1',
        f"vastai create instance 7 --image {IMAGE} --disk 50 --args {ARGUMENTS}",
        f'FROM {IMAGE}\nENV HF_HOME=/data\nCMD ["--model", "org/m", "--max-num-seqs", "8", "-tp", "2"]',
        f'FROM {IMAGE}\nENTRYPOINT ["vllm", "serve"]\nCMD ["org/m", "--max-num-seqs", "8", "-tp", "2"]',
        QUADLET,
        CHART,
    ],
    ids=["kubectl", "oc", "gcloud", "vastai", "CMD", "ENTRYPOINT", "quadlet", "chart"],
)
def test_an_image_that_a_tool_runs_is_a_server(text: str) -> None:
    assert launched_by(text) == "vllm"
    found = parse_engine_args("vllm", text)
    assert (found.model, found.version) == ("org/m", "0.11.0")
    assert {key: found.values[key] for key in FLAGS} == FLAGS
    assert found.replicas == (3 if text is CHART else None)


@pytest.mark.parametrize("container", ["apptainer run --nv ./vllm-openai.sif", f"singularity run --nv docker://{IMAGE}"])
def test_an_image_of_apptainer_enters_its_server(container: str) -> None:
    found = parse_engine_args("vllm", f"{container} {ARGUMENTS}")
    assert {key: found.values[key] for key in FLAGS} == FLAGS


def test_a_program_of_supervisord_is_read() -> None:
    text = "[program:vllm]\ncommand=/opt/bin/python -m vllm.entrypoints.openai.api_server --model org/m\nautostart=true\n"
    assert parse_engine_args("vllm", text).model == "org/m"


def test_a_model_repository_of_triton_says_flags_by_name() -> None:
    stated = '{"model": "org/m", "max_num_seqs": 8, "tensor_parallel_size": 2, "disable_log_requests": true}'
    found = parse_engine_args("vllm", stated)
    assert found.model == "org/m"
    assert {key: found.values[key] for key in FLAGS} == FLAGS


RUNTIME = """\
apiVersion: serving.kserve.io/v1alpha1
kind: ServingRuntime
metadata: {name: own-runtime}
spec:
  containers:
  - name: kserve-container
    image: vllm/vllm-openai:v0.11.0
    command: [python, -m, vllm.entrypoints.openai.api_server]
    args: [--port=8080, --model=/mnt/models, "--served-model-name={{.Name}}"]
---
"""
SERVICE = """\
apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata: {name: chat}
spec:
  predictor:
    minReplicas: 2
    maxReplicas: 4
    model:
      modelFormat: {name: vLLM}
      runtime: own-runtime
      storageUri: hf://org/m
      args: [--max-num-seqs=8, --tensor-parallel-size=2]
"""


KSERVES_OWN = SERVICE.replace("vLLM", "huggingface").replace("-num-seqs=8", "-num-seqs=8, --backend=vllm")


@pytest.mark.parametrize("text", [RUNTIME + SERVICE, KSERVES_OWN], ids=["runtime", "own"])
def test_a_service_of_kserve_goes_on_with_its_runtimes_arguments(text: str) -> None:
    assert launched_by(text) == "vllm"
    found = parse_engine_args("vllm", text)
    assert (found.model, found.replicas, found.copies) == ("org/m", 2, (2, 4))
    assert {key: found.values[key] for key in FLAGS} == FLAGS
    assert found.version == ("0.11.0" if text.startswith(RUNTIME) else None)


def test_a_runtime_without_its_service_is_a_server_of_its_own() -> None:
    other = SERVICE.replace("own-runtime", "another-runtime").replace("modelFormat: {name: vLLM}", "modelFormat: {name: pytorch}")
    assert parse_engine_args("vllm", RUNTIME.rstrip("-\n")).version == "0.11.0"
    with pytest.raises(InputError, match="2 servers whose flags differ"):
        parse_engine_args("vllm", RUNTIME + other)


def test_a_service_over_the_transformers_library_is_refused() -> None:
    text = SERVICE.replace("vLLM", "huggingface").replace("-num-seqs=8", "-num-seqs=8, --backend=huggingface")
    with pytest.raises(InputError, match="transformers library"):
        parse_engine_args("vllm", text)


@pytest.mark.parametrize(
    "text",
    [
        "import x\n" + "".join(f"n{i + 1} = n{i} + n{i}\n" for i in range(60)) + "cmd = [n60]",
        "import x\na = ['vllm', 'serve']\n" + "a = a + a\n" * 60,
        "import x\na = ['vllm', 'serve']\n" + "a += a\n" * 60,
        "import x\nos.system('a' " + "+ 'a' " * 20_000 + ")",
        "import x\n" + "(" * 500,
    ],
    ids=["names", "sums", "added", "long", "deep"],
)
def test_no_program_takes_long_or_fills_the_memory(text: str) -> None:
    for engine in ("vllm", "sglang"):
        with contextlib.suppress(InputError):
            parse_engine_args(engine, text)
