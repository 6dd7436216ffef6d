"""Parts of a step: launches without CUDA graphs, query-key norms over all heads, routers in float32."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Formats, HostOverhead
from engine_models.model.architecture import load_architecture
from engine_models.model.blocks import Architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from hardware_profiles.device import load_device
from hardware_profiles.kernel_model import KernelModel, load_kernel_model
from tests.step_times import step_time

BF16 = Formats(format_named("bf16"), format_named("bf16"), format_named("bf16"))
HOST = HostOverhead(step_s=0.0, row_s=0.0, launch_s=22e-6)


@pytest.fixture(scope="module")
def h100() -> KernelModel:
    return load_kernel_model("h100-sxm-80gb", "vllm")


def model(
    arch: Architecture, kernels: KernelModel, tp: int, sizes: tuple[int, ...] = (), host: HostOverhead = HOST
) -> StepTimeModel:
    return step_time(
        arch,
        kernels,
        BF16,
        host,
        tensor_parallel=tp,
        graph_sizes=sizes,
        max_step_tokens=2048,
        max_rows=64,
        max_context_tokens=4096,
    )


def decode(rows: int, context: int) -> Batch:
    return Batch(0, tokens=rows, decode_rows=rows, decode_tokens=rows, decode_kv_tokens=rows * context)


def test_a_dense_layer_costs_twelve_launches(h100: KernelModel) -> None:
    # four linear layers, two norms, rotary, cache write, attention, activation, two all-reduces
    assert model(load_architecture("Llama-3.1-70B"), h100, 4).shard.launches() == 80 * 12
    # no all-reduce on one device
    assert model(load_architecture("Llama-3.1-8B"), h100, 1).shard.launches() == 32 * 10


def test_experts_cost_more_launches(h100: KernelModel) -> None:
    mixtral = model(load_architecture("mistralai/Mixtral-8x7B-v0.1"), h100, 4)
    assert mixtral.shard.launches() == 32 * (3 + 2 + 3 + 2 + mixtral.host.expert_launches)


def test_small_batches_without_graphs_are_bound_by_launches(h100: KernelModel) -> None:
    eager = model(load_architecture("Llama-3.1-70B"), h100, 4)
    floor = 960 * 22e-6
    assert eager.step_s((decode(1, 100),))[0] == pytest.approx(floor)
    assert eager.run_s((Batch(0, 4, 4, 400, tokens=4),), 3) == pytest.approx([floor] * 3)
    assert eager.few_s((decode(4, 100),), 3) == eager.run_s((decode(4, 100),), 3).tolist()


def test_graphs_and_long_steps_are_not_bound_by_launches(h100: KernelModel) -> None:
    arch = load_architecture("Llama-3.1-70B")
    graphs, eager = model(arch, h100, 4, (1, 2, 4, 8)), model(arch, h100, 4)
    assert graphs.step_s((decode(1, 100),))[0] < 0.9 * eager.step_s((decode(1, 100),))[0]
    chunk = Batch(0, tokens=2000, prefill=[(2000, 0)])
    free = model(arch, h100, 4, host=replace(HOST, launch_s=0.0))
    assert eager.step_s((chunk,)) == free.step_s((chunk,))


def test_batches_above_the_largest_graph_are_bound_by_launches(h100: KernelModel) -> None:
    graphs = model(load_architecture("Llama-3.1-70B"), h100, 4, (1, 2, 4, 8))
    floor = 960 * 22e-6
    assert graphs.step_s((decode(8, 100),))[0] < floor
    assert graphs.step_s((decode(9, 100),))[0] == floor
    assert graphs.few_s((decode(9, 100),), 2) == graphs.run_s((decode(9, 100),), 2).tolist() == [floor] * 2
    assert graphs.step_s((Batch(0, tokens=9, prefill=[(9, 0)]),))[0] == floor


def test_every_all_reduce_waits_for_the_slowest_rank(h100: KernelModel) -> None:
    """Two a layer under tensor parallelism, none without."""
    arch = load_architecture("meta-llama/Llama-3.1-8B-Instruct")
    m = np.array([1, 64, 2048])
    for tp, waits in ((1, 0), (2, 2 * arch.layers)):
        with_s, without_s = (
            sum(
                step_time(
                    arch, h100, BF16, HostOverhead(0.0, 0.0, reduce_wait_s=wait_s), tensor_parallel=tp, max_rows=4
                )
                .parts_s(m)
                .values()
            )
            for wait_s in (5e-6, 0.0)
        )
        assert with_s - without_s == pytest.approx(np.full(3, waits * 5e-6), abs=1e-12)


def test_a_layer_whose_mixer_and_mlp_stand_side_by_side_is_summed_once(h100: KernelModel) -> None:
    falcon = load_architecture("tiiuae/falcon-180B")
    assert falcon.summed_once
    m = np.array([1, 64, 2048])
    once, twice = (model(arch, h100, 8).parts_s(m)["collectives"] for arch in (falcon, replace(falcon, summed_once=False)))
    assert twice == pytest.approx(2 * once)


def test_norms_over_all_heads_reduce_two_sums_a_token_over_the_ranks(h100: KernelModel) -> None:
    full = load_architecture("MiniMaxAI/MiniMax-M2.5")
    none = replace(full, attention=tuple(replace(b, qk_norm="none") for b in full.attention))
    m = np.array([1, 64, 2048])
    with_norms, without = model(full, h100, 4).parts_s(m), model(none, h100, 4).parts_s(m)
    layers = sum(b.layers for b in full.attention)
    extra = with_norms["collectives"] - without["collectives"]
    assert extra == pytest.approx(layers * h100.all_reduce_s(4, 8.0 * m))
    assert (with_norms["norms"] > without["norms"]).all()
    assert "collectives" not in model(full, h100, 1).parts_s(m)


def test_a_router_in_float32_costs_its_arithmetic_at_the_rate_of_the_cuda_cores(h100: KernelModel) -> None:
    fp32 = load_architecture("MiniMaxAI/MiniMax-M2.5")
    assert all(mlp.router_fp32 for mlp in fp32.mlp)
    bf16 = replace(fp32, mlp=tuple(replace(mlp, router_fp32=False) for mlp in fp32.mlp))
    m = np.array([1, 64, 8192])
    slow = model(fp32, h100, 4).parts_s(m)["linear layers"]
    fast = model(bf16, h100, 4).parts_s(m)["linear layers"]
    assert (slow > fast).all()
    arithmetic = (
        fp32.layers
        * 2.0
        * 8192
        * fp32.hidden
        * 256
        / load_device("h100-sxm-80gb").peak_flops_per_s["fp32"].value
    )
    assert slow[2] - fast[2] > arithmetic  # below the peak of the cores, and a conversion before it


def router_s(kernels: KernelModel, arch: Architecture, how: str, m: list[int]) -> np.ndarray:
    """Seconds a layer of the router, by how it is computed."""
    tokens = np.array(m)
    bare = replace(arch, mlp=tuple(replace(mlp, router_fp32=False) for mlp in arch.mlp))
    tables = {"tensor_parallel": 4, "max_step_tokens": 2048, "max_rows": 64, "max_context_tokens": 4096}
    whole = step_time(arch, kernels, BF16, HOST, fp32_router=how, **tables).parts_s(tokens)["linear layers"]
    rest = step_time(bare, kernels, BF16, HOST, **tables).parts_s(tokens)["linear layers"]
    return (whole - rest) / arch.layers + kernels.gemm_s("bf16", tokens, 256, arch.hidden)


def test_a_router_in_float32_takes_the_time_that_was_measured() -> None:
    """torch.mm of 256 columns in float32 on GB200, depth 6,144 [us]: vLLM pull request 47973, without the conversion."""
    b200 = load_kernel_model("b200-sxm-180gb", "vllm")
    arch = replace(load_architecture("MiniMaxAI/MiniMax-M2.5"), hidden=6144)
    published = {8: 16.7, 16: 22.3, 32: 63.2, 64: 63.3, 128: 69.3, 256: 77.8, 512: 96.8, 1024: 111.0}
    m = np.array(list(published))
    found = (router_s(b200, arch, "cublas", list(published)) - b200.elementwise_s(6.0 * m * 6144)) * 1e6
    assert found == pytest.approx(list(published.values()), rel=0.25)
    in_tf32 = {8: 12.0, 16: 12.2, 32: 19.9, 64: 20.1, 128: 20.2, 256: 22.6, 512: 25.8, 1024: 32.8}
    found = (router_s(b200, arch, "tf32", list(in_tf32)) - b200.elementwise_s(6.0 * m * 6144)) * 1e6
    assert found == pytest.approx(list(in_tf32.values()), rel=0.2)


def test_newer_routers_in_float32_are_quicker(h100: KernelModel) -> None:
    arch = load_architecture("MiniMaxAI/MiniMax-M2.5")
    m = [1, 16, 32, 33, 256, 2048]
    cublas, small, thrice = (router_s(h100, arch, how, m) for how in ("cublas", "small", "bf16x3"))
    assert (small[:3] < cublas[:3]).all()
    assert small[3:] == pytest.approx(cublas[3:])
    assert (thrice <= cublas).all()
    assert (thrice >= h100.gemm_s("bf16", np.array(m), 256, arch.hidden) * (1 - 1e-9)).all()


def test_other_models_are_left_alone() -> None:
    for name in (
        "Llama-3.1-8B",
        "mistralai/Mixtral-8x7B-v0.1",
        "deepseek-ai/DeepSeek-R1",
        "openai/gpt-oss-120b",
    ):
        assert not any(mlp.router_fp32 for mlp in load_architecture(name).mlp)


@pytest.mark.parametrize(
    ("activations", "kernel"), [("bf16", "mxfp4"), ("nvfp4", "mxfp4"), ("fp8", "w4a8_mxfp4_mxfp8")]
)
def test_experts_in_mxfp4_multiply_in_fp8_where_activations_are_quantised(
    activations: str, kernel: str
) -> None:
    """vLLM on Blackwell keeps bf16 activations unless it is told otherwise; other parts of gpt-oss are bf16."""
    b200 = load_kernel_model("b200-sxm-180gb", "vllm")
    arch = load_architecture("openai/gpt-oss-120b")
    formats = Formats(format_named("mxfp4"), format_named(activations), format_named("bf16"))
    times = step_time(
        arch, b200, formats, HOST, max_step_tokens=2048, max_rows=64, max_context_tokens=4096
    )
    assert times.shard.weights_format("experts") == kernel
    assert times.shard.weights_format("attention") == "bf16"
    plain = step_time(
        arch,
        b200,
        replace(formats, activations=format_named("bf16")),
        HOST,
        max_step_tokens=2048,
        max_rows=64,
        max_context_tokens=4096,
    )
    tokens = np.array([64, 2048])
    faster = times.parts_s(tokens)["experts"] < 0.95 * plain.parts_s(tokens)["experts"]
    assert np.all(faster) == (activations == "fp8")


def test_the_chosen_backend_of_the_experts_is_the_one_that_is_timed(h100: KernelModel) -> None:
    """Marlin multiplies more slowly than Triton on Hopper; nothing but the experts changes, and only in their format."""
    arch = load_architecture("openai/gpt-oss-120b")
    formats = Formats(format_named("mxfp4"), format_named("bf16"), format_named("bf16"))
    tokens = np.array([1, 64, 2048])

    def parts(fmt: Formats, backend: str | None) -> dict[str, np.ndarray]:
        times = step_time(
            arch,
            h100,
            fmt,
            HOST,
            tensor_parallel=2,
            max_step_tokens=2048,
            max_rows=64,
            max_context_tokens=4096,
            moe_backend=backend,
        )
        return times.parts_s(tokens)

    usual, marlin = parts(formats, None), parts(formats, "marlin")
    assert marlin["experts"][2] > 1.6 * usual["experts"][2]
    assert all(np.array_equal(usual[name], marlin[name]) for name in usual if name != "experts")
    plain = parts(BF16, None)["experts"]
    assert np.array_equal(parts(BF16, "marlin")["experts"], plain)


@pytest.mark.parametrize(
    ("model_name", "hardware", "flags", "said"),
    [
        ("gpt-oss-120b", "h100-sxm-80gb", {"moe_backend": "marlin"}, None),
        ("gpt-oss-120b", "h100-sxm-80gb", {"moe_backend": "auto"}, None),
        ("Llama-3.1-8B", "h100-sxm-80gb", {"moe_backend": "marlin"}, None),
        ("gpt-oss-120b", "h100-sxm-80gb", {"moe_backend": "cutlass"}, "tables of experts in mxfp4 hold"),
        ("gpt-oss-120b", "h100-sxm-80gb", {"moe_backend": "deep_gemm"}, "(deep_gemm) is not modelled; it may change"),
        ("gpt-oss-20b", "l40s-48gb", {"moe_backend": "marlin"}, "tables of experts in mxfp4 hold"),
        ("Mixtral-8x7B-v0.1", "h100-sxm-80gb", {"moe_backend": "marlin"}, "tables of experts in bf16 hold"),
    ],
)
def test_a_backend_that_cannot_be_timed_is_said_to_be_ignored(
    model_name: str, hardware: str, flags: dict[str, str], said: str | None
) -> None:
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare

    scenario = {
        "name": "backend",
        "model": model_name,
        "deployment": {"engine": "vllm", "hardware": hardware, "tensor_parallel": 2, "engine_args": flags},
        "workload": {
            "arrivals": {"kind": "constant", "rate": 1.0},
            "prompt_tokens": 8,
            "output_tokens": 4,
            "requests": 6,
        },
        "cost": {"usd_per_gpu_hour": 1.0},
    }
    warnings = prepare(load_scenario(scenario)).warnings
    assert len(warnings) == (said is not None)
    assert all(str(said) in text for text in warnings)


def test_least_times_are_tabulated_as_they_are(h100: KernelModel) -> None:
    host = HostOverhead(0.0, 0.0, launch_s=2e-5, prefill_launch_s=3e-5, prefill_graph_tokens=4, prefill_graph_launch_s=1e-6)
    launches = model(load_architecture("Llama-3.1-8B"), h100, 1, (1, 2, 4, 8, 16), host).launches
    tables = launches.tables_s(40)
    assert tables[0] == [launches.least_s(tokens, False) for tokens in range(41)]
    assert tables[1] == [launches.least_s(tokens, True) for tokens in range(41)]
    assert len(set(tables[0])) == len(set(tables[1])) == 2


def test_rows_beyond_the_largest_graph_are_launched_as_a_prompt_is(h100: KernelModel) -> None:
    """SGLang's step of 1,000 rows of DeepSeek-R1 took 140 ms on eight H200, some 50 of them in kernels (GPUStack)."""
    host = HostOverhead(0.0, 0.0, launch_s=2e-5, prefill_launch_s=3e-5)
    arch = load_architecture("Llama-3.1-8B")
    beside = model(arch, h100, 1, (1, 2, 4, 8, 16), host).launches
    assert beside.least_s(16, False) == 0.0
    assert beside.least_s(17, False) == beside.least_s(17, True) > 0.0
    lighter = model(arch, h100, 1, (1, 2, 4, 8, 16), replace(host, decode_launch_s=2.5e-5)).launches
    assert lighter.least_s(17, False) == pytest.approx(lighter.least_s(17, True) * 5 / 6)
    assert lighter.tables_s(32)[0] == [lighter.least_s(tokens, False) for tokens in range(33)]
    without = model(arch, h100, 1, (), host).launches
    assert without.least_s(17, False) == pytest.approx(beside.least_s(17, False) * 2 / 3)


def test_weights_of_bitsandbytes_are_widened_for_every_use_but_a_row_of_its_own(h100: KernelModel) -> None:
    """A 1B on an A100 took 71 s in 4 bits where bf16 took 45 (vLLM issue 9535)."""
    arch = load_architecture("Llama-3.1-8B")

    def products_s(name: str) -> np.ndarray:
        formats = replace(BF16, weights=format_named(name))
        steps = step_time(arch, h100, formats, HOST, max_step_tokens=2048, max_rows=64, max_context_tokens=4096)
        return steps.parts_s(np.array([1, 2, 64]))["linear layers"]

    nf4, int4, bf16 = map(products_s, ("nf4", "int4", "bf16"))
    assert nf4[0] == pytest.approx(int4[0])
    assert np.all(nf4[1:] > bf16[1:] + 32 * 218e6 * 2.5 / 3.35e12)  # the weights of a layer, read in 4 bits and written in 16
