"""Versions of vLLM: which declaration stands for a version that somebody wrote."""

from __future__ import annotations

from dataclasses import replace

import pytest

from engine_models.cost.overheads import load_overheads
from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Formats, HostOverhead
from engine_models.declaration import PoolRequest
from engine_models.engines.vllm import version_of
from engine_models.engines.vllm_profile import WORKSPACE_BYTES, profiled_images
from engine_models.engines.vllm_versions import VERSIONS, graph_sizes
from engine_models.model.activations import activation_bytes
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate
from tests.engine_models.test_declarations import prepared

NEWEST = version_of(None)


@pytest.mark.parametrize("name", list(VERSIONS))
def test_two_parts_name_a_series(name: str) -> None:
    assert version_of(name).name == name
    series = name.rsplit(".", 1)[0]
    assert version_of(series).name.startswith(f"{series}.")


def test_between_declared_versions_the_older_one_stands() -> None:
    assert version_of("0.15.0").name != "0.15.1"
    assert version_of("99.0") == NEWEST
    with pytest.raises(InputError, match="older than the oldest"):
        version_of("0.5.4")


@pytest.mark.parametrize(
    ("asked", "use_v1", "name"),
    [("0.9.1", None, "0.8.0"), ("0.9.1", False, "0.6.0"), ("0.7.3", True, "0.8.0"), ("0.7.3", None, "0.6.0")],
)
def test_versions_with_both_engines_start_the_one_that_is_asked_for(asked: str, use_v1: bool | None, name: str) -> None:
    version = version_of(asked, use_v1)
    assert (version.name, version.first_engine, version.number) == (name, name == "0.6.0", tuple(map(int, asked.split("."))))


@pytest.mark.parametrize(("asked", "use_v1"), [("0.11.0", False), ("0.33.0", False), ("0.6.3", True)])
def test_an_engine_that_a_version_lacks_is_refused(asked: str, use_v1: bool) -> None:
    with pytest.raises(InputError, match=r"has no (first|second) engine"):
        version_of(asked, use_v1)


def test_graphs_reach_as_far_as_the_largest_size_asked_for() -> None:
    assert max(graph_sizes(NEWEST, 1024, 8192)) == 512
    more = graph_sizes(NEWEST, 4, 8192, largest=2048)
    assert max(more) == 2048
    assert {size for size in more if size > 256} == set(range(272, 2049, 16))
    assert max(graph_sizes(NEWEST, 1024, 1000, largest=2048)) <= 1000  # no more than the budget
    assert graph_sizes(NEWEST, 1024, 8192, largest=0) == ()


def host_of(**flags: object) -> HostOverhead:
    scenario = {
        "name": "x",
        "model": "meta-llama/Llama-3.1-8B",
        "deployment": {"engine": "vllm@0.19.1", "hardware": "h100-sxm-80gb", "engine_args": flags},
        "workload": {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1},
    }
    return prepare(load_scenario(scenario)).plan.costs.terms.host


def test_prompts_beyond_the_graphs_are_launched() -> None:
    """What the graphs hold is not launched, what they do not is, and an eager engine launches all its steps alike."""
    assert host_of().prefill_launch_s == load_overheads("vllm").host.prefill_launch_s > 0
    assert host_of().prefill_graph_tokens == 512
    assert host_of(max_cudagraph_capture_size=2048).prefill_graph_tokens == 2048
    eager = host_of(enforce_eager=True)
    assert (eager.prefill_launch_s, eager.prefill_graph_tokens) == (0.0, 0)


def test_a_cpu_has_its_own_defaults_and_no_graphs() -> None:
    pool = {"engine": "vllm", "hardware": "xeon-8480-2s", "tensor_parallel": 2}
    workload = {"arrivals": {"kind": "poisson", "rate": 1}, "prompt_tokens": 10, "output_tokens": 10, "duration": 1}
    plan = prepare(
        load_scenario({"model": "Qwen/Qwen2.5-1.5B-Instruct", "deployment": pool, "workload": workload})
    ).plan
    assert (plan.limits.step_tokens, plan.limits.rows) == (4096, 256)
    assert plan.costs.terms.graph_sizes == ()
    own = plan.costs.terms.host
    assert own == HostOverhead(own.step_s, own.row_s)  # nothing of launches, copies, kernels
    assert plan.costs.terms.sampler == "cores"
    assert not [line for line in plan.memory.lines if "CUDA" in line.label]


@pytest.mark.parametrize(
    ("engine", "flags", "hardware", "gib"),
    [
        ("vllm", {}, "xeon-8480-2s", 256),  # half of a socket's 512 GiB
        ("vllm", {}, "xeon-8480-1s", 256),
        ("vllm@0.11.0", {}, "xeon-8480-2s", 4),
        ("vllm@0.11.0", {"cpu_kvcache_space": 40}, "xeon-8480-2s", 40),
        ("vllm", {"cpu_kvcache_space": 40}, "xeon-8480-2s", 40),
        ("vllm", {"gpu_memory_utilization": 0.2}, "xeon-8480-2s", 256),
    ],
)
def test_the_cache_of_a_cpu_takes_what_it_is_told_or_half_a_node(
    engine: str, flags: dict[str, object], hardware: str, gib: int
) -> None:
    pool = {"engine": engine, "hardware": hardware, "engine_args": flags}
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 10, "output_tokens": 10, "requests": 1}
    plan = prepare(
        load_scenario({"model": "Qwen/Qwen2.5-1.5B-Instruct", "deployment": pool, "workload": workload})
    ).plan
    assert plan.memory.kv_bytes == gib * 2**30
    assert plan.memory.block_bytes == 128 * plan.memory.kv_bytes_per_token
    assert any("has no effect on CPUs" in warning for warning in plan.warnings) == ("gpu_memory_utilization" in flags)


def test_a_cache_that_the_weights_of_a_cpu_leave_no_room_for_is_refused() -> None:
    pool = {"engine": "vllm", "hardware": "xeon-8480-1s"}
    pool["engine_args"] = "VLLM_CPU_KVCACHE_SPACE=600 vllm serve Qwen/Qwen2.5-1.5B-Instruct"
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 10, "output_tokens": 10, "requests": 1}
    scenario = {"model": "Qwen/Qwen2.5-1.5B-Instruct", "deployment": pool, "workload": workload}
    with pytest.raises(InfeasibleError, match=r"the KV cache takes 600\.0 GiB") as refused:
        prepare(load_scenario(scenario))
    assert "VLLM_CPU_KVCACHE_SPACE" in refused.value.mend


@pytest.mark.parametrize(
    ("hardware", "tokens"),
    [("h200-sxm-141gb", 64), ("b200-sxm-180gb", 64), ("a100-sxm-80gb", 16), ("l40s-48gb", 16), ("mi300x-192gb", 16)],
)
def test_blocks_of_latent_attention_are_those_of_the_kernels_that_the_gpu_gets(hardware: str, tokens: int) -> None:
    pool = {"engine": "vllm", "hardware": hardware, "engine_args": {"max_model_len": 8192}}
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 10, "output_tokens": 10, "requests": 1}
    plan = prepare(
        load_scenario({"model": "deepseek-ai/DeepSeek-V2-Lite", "deployment": pool, "workload": workload})
    ).plan
    assert plan.memory.block_bytes == tokens * plan.memory.kv_bytes_per_token


@pytest.mark.parametrize(
    ("hardware", "warned"),
    [("mi210-64gb", True), ("rx-7900-xtx-24gb", True), ("mi300x-192gb", False), ("rx-9070-xt-16gb", False)],
)
def test_fp8_on_an_amd_gpu_without_its_arithmetic_is_warned_of(hardware: str, warned: bool) -> None:
    pool = {"engine": "vllm", "hardware": hardware, "weights": "fp8"}
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 10, "output_tokens": 10, "requests": 1}
    scenario = {"model": "Qwen/Qwen2.5-1.5B-Instruct", "deployment": pool, "workload": workload}
    assert any("no kernels for fp8" in line for line in prepare(load_scenario(scenario)).plan.warnings) == warned


@pytest.mark.parametrize(("prompt", "completed"), [(950, 3), (1040, 0)])
def test_what_the_blocks_asked_for_never_hold_in_all_groups_is_refused(prompt: int, completed: int) -> None:
    """Gemma 3 has six groups of layers: 399 blocks of 16 tokens hold 66 blocks of each, 1,056 tokens."""
    lengths = {"prompt_tokens": prompt, "output_tokens": 50}
    workload = {
        "arrivals": {"kind": "batch"},
        **{key: {"kind": "constant", "value": value} for key, value in lengths.items()},
        "requests": 3,
    }
    flags = {"num_gpu_blocks_override": 400, "max_model_len": 4096}
    pool = {"engine": "vllm", "hardware": "h100-sxm-80gb", "engine_args": flags}
    scenario = {"model": "google/gemma-3-12b-it", "deployment": pool, "workload": workload}
    if not completed:
        with pytest.raises(InputError, match="longer than the KV cache of a replica, 1056 tokens"):
            simulate(scenario)
        return
    assert simulate(scenario).result["totals"]["completed"] == completed


def kv_tokens(engine: str, rows: int) -> int:
    flags = {"max_num_seqs": rows, "max_num_batched_tokens": 8192, "max_model_len": 8192, "gpu_memory_utilization": 0.9}
    pool = {"engine": engine, "hardware": "b200", "weights": "nvfp4", "kv_cache": "fp8", "engine_args": flags}
    model = "meta-llama/Llama-3.3-70B-Instruct"
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    found = prepare(load_scenario({"model": model, "deployment": pool, "workload": load})).plan.memory
    return found.kv_bytes // found.kv_bytes_per_token


def test_sampling_takes_memory_only_where_it_needs_more_than_the_step_before_it() -> None:
    """What vLLM 0.15.0 printed on B200: as many tokens for 16 as for 128 rows, 7,680 fewer for 512 than for 256."""
    assert kv_tokens("vllm@0.15.0", 16) == kv_tokens("vllm@0.15.0", 128) == pytest.approx(782_160, rel=0.01)
    assert kv_tokens("vllm@0.15.0", 512) - kv_tokens("vllm@0.15.0", 1024) == pytest.approx(2 * 7_680, rel=0.02)
    assert kv_tokens("vllm@0.19.1", 512) == kv_tokens("vllm@0.19.1", 16)  # nothing is sorted


def test_wheels_without_flashinfer_sort() -> None:
    """gpt-oss-120b on one H100 under 0.10.1: an image starts with half its context, a wheel does not (issue 23278 of vLLM)."""

    def pool(**flags: object) -> dict[str, object]:
        load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
        own = {"engine": "vllm@0.10.1", "hardware": "h100-sxm-80gb", "engine_args": {"max_model_len": 65536, **flags}}
        return {"model": "openai/gpt-oss-120b", "deployment": own, "workload": load}

    assert any("its wheels lack FlashInfer" in words for words in prepare(load_scenario(pool())).plan.warnings)
    with pytest.raises(InfeasibleError, match="does not fit"):
        prepare(load_scenario(pool(use_flashinfer_sampler=False)))


def test_the_largest_image_is_profiled_where_images_are_admitted() -> None:
    """Qwen3.5-35B: 4 patches a token, of 1,536 values, three times 1,152 and an MLP twice as wide as 4,304; without, a text's."""

    def activations(version: str = "0.19.1", **flags: object) -> tuple[int, int]:
        limits = {"max_num_seqs": 4, "max_num_batched_tokens": 2048, "max_model_len": 8192}
        own = {"engine": f"vllm@{version}", "hardware": "h100-sxm-80gb", "engine_args": {**limits, **flags}}
        load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
        memory = prepare(load_scenario({"model": "Qwen/Qwen3.5-35B-A3B", "deployment": own, "workload": load})).plan.memory
        return memory.bytes_of("activation"), memory.bytes_of("weight")

    image, weights = activations()
    text, _ = activations(limit_mm_per_prompt={"image": 0, "video": 0})
    tower, vocab, of_experts = 2 * 16384 * 4 * (1536 + 3 * 1152 + 2 * 4304), 248320, 2 * 2048 * 8 * (2048 + 2048)
    assert image == tower + WORKSPACE_BYTES
    # four rows are sorted, beside the hidden states and the place of eight experts a token: 1.49 GiB, where users of Qwen3.6-35B,
    # whose flags are not known, read 1.56 of start-up lines
    assert image - text == tower - 2 * 2048 * 2048 - 4 * vocab * 38 - of_experts
    assert activations(skip_mm_profiling=True) == (text, weights)
    assert activations(language_model_only=True)[0] == text
    assert 0.8e9 < weights - activations(language_model_only=True)[1] < 1.0e9


def test_images_are_profiled_by_the_budget_of_a_step_and_kept_by_version() -> None:
    """Gemma 3: as many of 256 tokens as a step has room for; Qwen2.5-VL a video of seven pairs; Qwen3-VL in 0.11 its stamps."""

    def passed(model: str, tokens: int, context: int, *version: int) -> tuple[int, int]:
        bf16 = format_named("bf16")
        request = PoolRequest(load_architecture(model), Formats(bf16, bf16, bf16), "h100-sxm-80gb", 80 << 30)
        return profiled_images(request, tokens, context, version)

    gemma, patches = 2 * 5376, 4096
    peak = 2 * 32 * patches * (588 + 3 * 1152 + 2 * 4304)
    assert passed("google/gemma-3-27b-it", 8192, 32768, 0, 13) == (peak, 8192 * gemma)
    assert passed("google/gemma-3-27b-it", 8192, 32768, 0, 12)[1] == 32 * 8192 * gemma
    video, one = (passed("Qwen/Qwen2.5-VL-7B-Instruct", 2048, context, 0, 11) for context in (128_000, 32767))
    assert video == (7 * one[0], 7 * one[1])
    assert one[1] == 16384 * 2 * 3584
    assert passed("Qwen/Qwen3-VL-8B-Instruct", 8192, 32768, 0, 11)[1] == 153_600 * 4 * 2 * 4096  # "a budget of 153600 tokens"
    assert passed("Qwen/Qwen3-VL-8B-Instruct", 8192, 32768, 0, 13)[1] == 16384 * 4 * 2 * 4096
    assert passed("Qwen/Qwen3-8B", 8192, 32768, 0, 13) == (0, 0)


def test_experts_write_an_output_for_each_choice() -> None:
    """As wide as the hidden state where that is wider than the two halves of an expert."""
    arch = load_architecture("Qwen/Qwen3-30B-A3B")
    halved = replace(arch, mlp=tuple(replace(mlp, expert_intermediate=384) for mlp in arch.mlp))
    assert activation_bytes(arch, 1, 0, 1) == 2 * (8 * (2048 + 768) + 4 * 2048)
    assert activation_bytes(arch, 1, 0, 1) - activation_bytes(halved, 1, 0, 1) == 2 * 8 * 384


def test_states_beside_a_prompt_take_its_kernel_until_0_23() -> None:
    """A decoding row moves the state of each gated delta net eight times, not twice; drafts and steps without prompts do not."""

    def steps(version: str) -> StepTimeModel:
        scenario = {
            "model": "Qwen/Qwen3.5-9B",
            "deployment": {
                "engine": f"vllm@{version}",
                "hardware": "h100-sxm-80gb",
                "engine_args": {"max_model_len": 8192, "max_num_seqs": 256},
            },
            "workload": {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1},
        }
        found = prepare(load_scenario(scenario)).times()
        assert isinstance(found, StepTimeModel)
        return found

    def seconds(model: StepTimeModel, prompt: list[tuple[int, int]]) -> float:
        tokens = 128 + sum(new for new, _ in prompt)
        rows = Batch(0, tokens=tokens, decode_rows=128, decode_tokens=128, decode_kv_tokens=128 * 500, prefill=prompt)
        return model.step_s([rows])[0]

    old, new = steps("0.22.1"), steps("0.23.0")
    states = 24 * 128 * 32 * 128 * 128 * 4  # bytes: layers, rows, heads of 128 by 128 numbers
    more = seconds(old, [(2048, 0)]) - seconds(new, [(2048, 0)])
    assert 6 * states / 3.35e12 < more < 9 * states / 3.35e12
    assert seconds(old, []) == seconds(new, [])
    chunk = Batch(0, tokens=16, decode_rows=0, decode_tokens=0, decode_kv_tokens=0, prefill=[(16, 0)])
    assert new.step_s([chunk])[0] == pytest.approx(24 * 35 * new.host.launch_s)  # launched between the pieces of its graph


@pytest.mark.parametrize(
    ("hardware", "weights", "words"),
    [
        ("v100-sxm-32gb", "awq", "no kernel for weights in awq on NVIDIA V100"),
        ("v100-sxm-32gb", "fp8", "no kernel for weights in fp8"),
        ("v100-sxm-32gb", "fp16", ""),
        ("v100-sxm-32gb", "gptq", ""),
        ("t4-16gb", "awq", ""),
        ("mi50-32gb", "fp16", "from MI200 and RX 7900 on"),
        ("rx-6800-16gb", "fp16", "from MI200 and RX 7900 on"),
        ("mi210-64gb", "fp16", ""),
        ("rx-7900-xt-20gb", "fp16", ""),
    ],
)
def test_devices_and_formats_that_no_release_serves_are_refused(hardware: str, weights: str, words: str) -> None:
    deployment = {"engine": "vllm", "hardware": hardware, "weights": weights, "engine_args": {"max_model_len": 2048}}
    workload = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 10, "output_tokens": 10}
    scenario = load_scenario({"model": "Llama-3.2-1B", "deployment": deployment, "workload": workload})
    if words:
        with pytest.raises(InputError, match=words):
            prepare(scenario)
    else:
        assert prepare(scenario).formats.weights.name == weights


@pytest.mark.parametrize(
    ("engine", "method", "drops"),
    [
        ("vllm@0.31.0", "eagle3", True),
        ("vllm@0.11.0", "eagle", True),
        ("vllm@0.31.0", "ngram", False),
        ("vllm@0.33.0", "eagle3", False),
        ("vllm", "eagle3", False),
    ],
)
def test_the_last_block_found_is_dropped_beside_drafters_that_read_ahead(engine: str, method: str, drops: bool) -> None:
    drafts = {"method": method, "num_speculative_tokens": 2, "acceptance": 0.5}
    kv = prepared(engine=engine, speculative=drafts).plan.scheduler("step").kv
    hits = []
    for _ in range(2):  # 100 tokens of one content twice: six whole blocks of 16
        seq = Sequence(0, 100, 10, 0.0, runs=((1, 0, 100),), shareable_tokens=100)
        found = kv.find(seq)
        hits.append(kv.hit_tokens(found))
        kv.hold(seq, found)
        kv.grow(seq, 100)
        kv.register(seq, 100)
        kv.release(seq)
    assert hits == [0, 16 * (6 - drops)]
