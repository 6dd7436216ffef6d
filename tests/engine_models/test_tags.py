"""Names with a tag and repositories of GGUF files: model and number format, as the library's file has them."""

from __future__ import annotations

import pytest

from engine_models.model import tags
from engine_models.model.architecture import weight_bytes
from engine_models.model.formats import format_named
from engine_models.model.hf_config import load_architecture
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare

OTHERS = ("q4_0", "q4_k_m", "q5_k_m", "q8_0", "mxfp4_moe")


@pytest.mark.parametrize("name", [name for name in tags.library() if ":" in name and not name.endswith(":latest")])
def test_a_tag_is_of_the_format_whose_weights_are_its_file(name: str) -> None:
    tagged = tags.library()[name]
    arch = load_architecture(tagged.model)
    off = {form: abs(weight_bytes(arch, format_named(form)) / 1e9 / tagged.file_gb - 1) for form in (*OTHERS, tagged.format)}
    assert min(off, key=lambda form: off[form]) == tagged.format
    assert off[tagged.format] < 0.05


@pytest.mark.parametrize(
    ("name", "key", "stored"),
    [
        ("llama3.1:8b", "Llama-3.1-8B", "q4_k_m"),
        ("llama3.1", "Llama-3.1-8B", "q4_k_m"),
        ("library/llama3.2:1b", "Llama-3.2-1B", "q8_0"),
        ("Llama3.1:8b-instruct-q4_K_M", "Llama-3.1-8B", "q4_k_m"),
        ("qwen3:14b-q8_0", "Qwen3-14B", "q8_0"),
        ("mistral-nemo:latest", "Mistral-Nemo", "q4_0"),
        ("gpt-oss:20b", "gpt-oss-20b", "mxfp4"),
        ("deepseek-r1:32b", "DeepSeek-R1-Distill-Qwen-32B", "q4_k_m"),
        ("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "Llama-3.1-8B", "q4_k_m"),
        ("hf.co/unsloth/Qwen3-8B-GGUF:Q5_K_M", "Qwen3-8B", "q5_k_m"),
        ("ggml-org/gpt-oss-20b-GGUF", "gpt-oss-20b", "mxfp4_moe"),
    ],
)
def test_names_as_they_are_pulled(name: str, key: str, stored: str) -> None:
    deployment = {"engine": "ollama", "hardware": "rtx-pro-6000-96gb"}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 9, "output_tokens": 9}
    prepared = prepare(load_scenario({"model": name, "deployment": deployment, "workload": load}))
    assert prepared.formats.weights.name == stored
    named = [model for model in tags.library().values() if key in model.model]
    assert named or key in ("Qwen3-8B",)
    assert prepared.arch.layers == load_architecture(named[0].model if named else key).layers


@pytest.mark.parametrize("name", ["qwen3:0.6b", "gemma3:12b-it-qat", "llama3.1:8b-instruct-fp16", "llama3.1:8b-q9_9", "foo:8b",
                                  "a/foo-GGUF", "unsloth/Qwen3-8B-GGUF:Q9_9", "llama3.1:9b"])  # fmt: skip
def test_what_no_file_is_known_of_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="is not in the catalogue"):
        load_architecture(name)


def test_an_engine_that_loads_no_such_file_says_so() -> None:
    deployment = {"engine": "vllm", "hardware": "rtx-4090-24gb"}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 9, "output_tokens": 9}
    with pytest.raises(InputError, match="not load weights in q4_k_m, the format of what `model` names"):
        prepare(load_scenario({"model": "llama3.1:8b", "deployment": deployment, "workload": load}))


def test_a_family_alone_is_the_model_where_files_are_not_loaded() -> None:
    """As Ollama pulls it, qwen3 is a file in GGUF; a server that loads none serves the checkpoint."""
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 9, "output_tokens": 9}
    stored = {}
    for engine in ("vllm", "ollama"):
        deployment = {"engine": engine, "hardware": "rtx-pro-6000-96gb"}
        prepared = prepare(load_scenario({"model": "qwen3", "deployment": deployment, "workload": load}))
        stored[engine] = prepared.formats.weights.name
    assert stored == {"vllm": "bf16", "ollama": "q4_k_m"}
