"""Engines as they are declared: what each has, and what is refused in words."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import pytest

from engine_models.declaration import FEATURES
from engine_models.engines import known
from engine_models.engines.known import BUILT_IN, engine_named, split
from engine_models.model.formats import FORMATS, format_named
from engine_models.parts.protocols import Scheduler
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError
from hardware_profiles.packed_formats import EXAMPLES, PackedFamily
from simulator.config.load import load_scenario
from simulator.prepare import Prepared, prepare

CHOICES: dict[str, dict[str, Any]] = {
    "mlx_lm": {"hardware": "apple-m4-max-40c-64gb"},
    "openvino": {"hardware": "xeon-8480-2s"},
    "openarc": {"hardware": "xeon-8480-2s"},
    "exllamav2": {"engine_args": {"max_seq_len": 8192}},
    "inferflow": {"engine_args": {"max_context_len": 4096}},
}
"""What a pool has to say besides the engine."""


def prepared(model: str = "meta-llama/Llama-3.1-8B-Instruct", **pool: Any) -> Prepared:
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    deployment = {"hardware": "h100-sxm-80gb", **pool}
    return prepare(load_scenario({"model": model, "deployment": deployment, "workload": workload}))


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_declaration_reads_in_a_page(name: str) -> None:
    """What has a concept of its own has a module beside it (docs/architecture.md)."""
    assert len(Path(str(import_module(BUILT_IN[name]).__file__)).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_declaration_names_what_exists(name: str) -> None:
    engine = engine_named(name)
    assert engine.name == engine.flags().engine == name
    assert set(engine.devices) <= set(get_args(DeviceKind))
    assert set(engine.formats) <= {*FORMATS, *get_args(PackedFamily)}
    assert set(engine.features) <= set(FEATURES)
    for support in (*engine.formats.values(), *engine.features.values()):
        assert support.kinds <= set(engine.devices)
        assert support.source
    table = engine.flags()
    own = {*table.modelled, *table.aliases, *(f"no_{flag}" for flag in table.modelled)}
    assert set(engine.same_as.values()) <= own
    assert "rows" in engine.same_as
    assert engine.rule.endswith(".")


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_a_plan_builds_a_fresh_scheduler_in_every_mode(name: str) -> None:
    plan = prepared(engine=name, **CHOICES.get(name, {})).plan
    built = [plan.scheduler(mode) for mode in ("jump", "step", "record")]
    assert all(isinstance(scheduler, Scheduler) for scheduler in built)
    assert len({id(scheduler) for scheduler in built}) == 3
    assert plan.limits.prompt_tokens < plan.limits.row_tokens
    assert plan.limits.row_tokens <= plan.limits.context_tokens or plan.limits.cuts_prompts  # a context that shifts
    memory = plan.memory
    spent = sum(line.bytes for line in memory.lines)
    assert memory.usable_bytes - spent == pytest.approx(memory.kv_bytes, abs=1)


@pytest.mark.parametrize("name", list(BUILT_IN))
def test_an_older_version_is_a_few_lines(name: str) -> None:
    engine = engine_named(name)
    versions = list(engine.versions)
    assert engine.version(None) == engine.newest == versions[0]
    assert sorted(versions, key=engine.parts, reverse=True) == versions
    for version in versions[1:]:
        assert len(engine.versions[version]) <= 12
        assert set(engine.versions[version]) <= set(engine.switches(version))
        assert prepared(engine=f"{name}@{version}", **CHOICES.get(name, {})).plan.version == version


def test_spellings_lead_to_engines_that_exist() -> None:
    assert set(known.SPELLINGS.values()) <= set(BUILT_IN)
    assert split(" vLLM@v0.15.1 ") == ("vllm", "v0.15.1")
    with pytest.raises(InputError, match="engine 'vlm' is not modelled; did you mean 'vllm'"):
        engine_named("vlm")


def test_a_launch_command_names_its_engine() -> None:
    assert known.launched_by("docker run vllm/vllm-openai --model m --tool-call-parser sglang") == "vllm"
    assert known.launched_by("python -m sglang.launch_server --note vllm") == "sglang"
    assert known.launched_by("./serve m") is None


@pytest.mark.parametrize(
    ("pool", "words"),
    [
        ({"engine": "lmdeploy", "pipeline_parallel": 2}, "pipeline parallelism is modelled for vLLM.* not for lmdeploy"),
        ({"engine": "tgi", "offload": {"kv_offloading_size": 8}}, "KV offload is modelled for vLLM.*, not for tgi"),
        (
            {"engine": "deepspeed_mii", "speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.5}},
            "speculative decoding is modelled for .*vLLM.*, not for deepspeed_mii",
        ),
        ({"engine": "vllm", "hardware": "xeon-8480-2s", "weights": "fp8"}, "vLLM does not load weights in fp8 on"),
        (
            {"engine": "vllm", "hardware": "xeon-8480-2s", "offload": {"kv_offloading_size": 8}},
            "vLLM has no KV offload on",
        ),
        ({"engine": "sglang", "hardware": "xeon-8480-2s"}, "sglang does not run on"),
        (
            {
                "engine": "tgi",
                "speculative": {"num_speculative_tokens": 2, "acceptance": 0.5},
                "engine_args": {"prefill_chunking": True},
            },
            "TGI does not cut prompts into chunks where it drafts",
        ),
        ({"engine": "tgi", "kv_cache": "int8"}, "TGI keeps no KV cache in int8"),
        ({"engine": "trtllm", "kv_cache": "int4"}, "TensorRT-LLM keeps no KV cache in int4"),
    ],
)
def test_what_an_engine_lacks_is_refused_in_words(pool: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        prepared(**pool)
    assert error.value.mend


def test_a_packed_format_is_refused_by_an_engine_that_does_not_load_its_family() -> None:
    with pytest.raises(InputError, match="does not load weights in q4_k_m"):
        prepared(engine="vllm", weights="q4_k_m")
    with pytest.raises(InputError, match="keeps no KV cache in q8_0"):
        prepared(engine="vllm", kv_cache="q8_0")


@pytest.mark.parametrize("engine", ["mlc_llm", "llama_cpp", "exllamav2"])
def test_formats_that_a_refusal_offers_can_be_asked_for(engine: str) -> None:
    """A family's name is none of a format: an example stands for it."""
    with pytest.raises(InputError, match="does not load weights in nf4") as error:
        prepared(engine=engine, weights="nf4")
    offered = error.value.mend.removeprefix("one of ").partition(", or an engine")[0].split(", ")
    assert any(" (and others of " in name for name in offered)
    for name in offered:
        assert format_named(name.partition(" (")[0]).name


def test_the_example_of_a_family_is_one_of_it() -> None:
    assert {name: format_named(example).family for name, example in EXAMPLES.items()} == {
        family: family for family in get_args(PackedFamily)
    }


def test_the_series_of_the_newest_release_is_that_release() -> None:
    sglang = engine_named("sglang")
    assert sglang.release("v0.5") == sglang.release("0.5") == sglang.release(None) == sglang.parts(sglang.newest)
    assert sglang.release("0.5.2") == (0, 5, 2)
    assert prepared(engine="sglang@0.5").plan.memory == prepared(engine="sglang").plan.memory
    assert prepared(engine="sglang@0.5.2").plan.memory != prepared(engine="sglang").plan.memory
