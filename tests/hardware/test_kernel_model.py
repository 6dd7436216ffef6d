"""Kernel models: physics they must keep, fallbacks, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles import kernel_model as km
from hardware_profiles import kernel_physics as kp
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from hardware_profiles.expert_ranks import loaded_rank
from hardware_profiles.kernel_model import load_kernel_model
from hardware_profiles.kernel_physics import DevicePeaks
from hardware_profiles.kernels import operations_of
from hardware_profiles.roofline import Roofline
from tests.effort import examples

FITTED = km.fitted_models()


@pytest.mark.parametrize(("device", "framework"), FITTED)
def test_serving_never_beats_the_roofline(device: str, framework: str) -> None:
    """Weights and KV come from device memory, arithmetic runs at most at the dense peak."""
    k = load_kernel_model(device, framework)
    m = np.array([1.0, 7, 64, 300, 4096, 100_000])
    for fmt in ("bfloat16", "fp8", "nvfp4"):
        for n, kk in ((32, 32), (4096, 4096), (6144, 4096), (28672, 8192), (200_000, 9000)):
            t = k.gemm_s(fmt, m, n, kk)
            assert np.all(t * k.peaks.rate(fmt) >= 2 * m * n * kk * (1 - 1e-9))
            assert np.all(t * k.peaks.hbm_bytes_per_s >= n * kk * kp.WEIGHT_BYTES[fmt])
    batch, context = np.array([[1.0], [16], [200], [3000]]), np.array([1.0, 100, 5000, 200_000])
    for heads, kv, dim in ((32, 8, 128), (8, 1, 128), (64, 8, 64), (7, 7, 96)):
        t = k.decode_attention_s("bfloat16", heads, kv, dim, 0, batch, context)
        assert t.shape == (4, 4)
        assert np.all(t * k.peaks.hbm_bytes_per_s >= 4 * kv * dim * batch * context)
        q = k.prefill_attention_s("bfloat16", "bfloat16", heads, kv, dim, 0, m, 5000)
        pairs = m * 5000 + m * (m + 1) / 2
        assert np.all(q * k.peaks.rate("bfloat16") >= 4 * heads * dim * pairs * (1 - 1e-9))


@pytest.mark.parametrize(("device", "framework"), FITTED)
def test_serving_is_not_faster_than_bench_where_caches_help(device: str, framework: str) -> None:
    k = load_kernel_model(device, framework)
    batch, context = np.array([1.0, 8, 64, 256]), np.array([[100.0], [1000.0], [4000.0]])
    bench = k.decode_attention_s("bfloat16", 32, 8, 128, 0, batch, context, "bench")
    assert np.all(k.decode_attention_s("bfloat16", 32, 8, 128, 0, batch, context) >= bench * (1 - 1e-9))


@settings(max_examples=examples(60))
@given(
    st.sampled_from(FITTED),
    st.integers(1, 8000),
    st.sampled_from([(4096, 4096), (6144, 4096), (28672, 4096), (5120, 13824)]),
)
def test_eight_times_the_rows_never_cost_less(which: tuple[str, str], m: int, shape: tuple[int, int]) -> None:
    """Monotone up to tolerance: measured kernels step down a little where the library changes kernel."""
    t = load_kernel_model(*which).gemm_s("bfloat16", [m, 8 * m], *shape)
    assert t[1] >= 0.85 * t[0]


@settings(max_examples=examples(60))
@given(st.sampled_from(FITTED), st.integers(1, 512), st.integers(256, 60_000))
def test_four_times_the_context_never_costs_less(which: tuple[str, str], batch: int, context: int) -> None:
    """Up to a tolerance: TensorRT-LLM on H200 is measured to step down where it begins to split the context."""
    t = load_kernel_model(*which).decode_attention_s("bfloat16", 32, 8, 128, 0, batch, [context, 4 * context])
    assert t[1] >= 0.90 * t[0]


def test_one_call_for_many_equals_many_calls() -> None:
    k = load_kernel_model("h100-sxm-80gb", "vllm")
    context = np.linspace(50.0, 9000.0, 37)
    many = k.decode_attention_s("fp8", 32, 8, 128, 0, 17, context)
    assert [float(k.decode_attention_s("fp8", 32, 8, 128, 0, 17, float(c))) for c in context] == many.tolist()
    m = np.arange(1.0, 300.0, 7.0)
    each = [float(k.gemm_s("bf16", float(x), 6144, 4096)) for x in m]
    assert each == k.gemm_s("bf16", m, 6144, 4096).tolist()


def test_nothing_to_do_takes_no_time() -> None:
    k = load_kernel_model("h100-sxm-80gb", "vllm")
    assert k.gemm_s("bf16", [0, 1], 64, 64)[0] == 0.0
    assert k.decode_attention_s("bf16", 8, 8, 128, 0, 0, 100) == 0.0
    assert k.all_reduce_s(1, 1e6) == 0.0
    assert k.elementwise_s(0) == 0.0


def test_copies_of_weights_fill_the_cache() -> None:
    """An L2 of 96 MB holds 3 x 32 MiB exactly; five copies at most, one where the weights exceed it."""
    peaks = DevicePeaks({"bfloat16": 362e12}, 864e9, 96e6)
    mib = 2.0**20
    sizes = np.array([2.0, 32.0, 33.0, 48.0, 50.0, 96.0, 200.0]) * mib
    got = kp.replayed_bytes({"most_copies": 5.0}, peaks, sizes)
    assert got == pytest.approx(np.array([10.0, 96.0, 99.0, 96.0, 100.0, 96.0, 200.0]) * mib)
    assert np.array_equal(np.asarray(kp.replayed_bytes({}, peaks, sizes)), sizes)


def test_the_cache_is_lost_as_abruptly_as_said() -> None:
    peaks = DevicePeaks({"bfloat16": 362e12}, 864e9, 100e6)
    p = {"cache_gain": 2.0, "cache_share": 1.0}
    size = np.array([50e6, 90e6, 100e6, 110e6, 200e6])
    soft, sharp = (
        kp.cache_factor(p, peaks, size),
        kp.cache_factor({**p, "cache_sharpness": 40.0}, peaks, size),
    )
    assert np.asarray(soft) == pytest.approx(1.0 - 0.5 / (1.0 + (size / 100e6) ** 4))
    assert np.asarray(sharp) == pytest.approx([0.5, 0.507, 0.75, 0.989, 1.0], abs=1e-3)


def test_serving_knows_no_warm_weights() -> None:
    """The cold base is the same whatever the benchmark's copies and cache were."""
    peaks = DevicePeaks({"bfloat16": 362e12}, 864e9, 96e6)
    p = {"latency_s": 3e-6, "compute_efficiency": 0.6, "memory_efficiency": 0.8}
    cached = {**p, "cache_gain": 3.0, "cache_share": 1.0, "cache_sharpness": 30.0, "most_copies": 5.0}
    m, n, k = np.array([1.0, 64.0]), np.float64(4096), np.float64(4096)
    cold = kp.gemm_base_s(p, peaks, "bfloat16", m, n, k)
    assert np.array_equal(kp.gemm_base_s(cached, peaks, "bfloat16", m, n, k, warm=False), cold)
    assert np.all(kp.gemm_base_s(cached, peaks, "bfloat16", m, n, k) < cold)


@pytest.mark.parametrize(
    ("new", "prior", "window"), [(5, 0, 0), (5, 7, 0), (5, 7, 9), (40, 3, 10), (4, 90, 8)]
)
def test_causal_pairs_count(new: int, prior: int, window: int) -> None:
    exact = sum(min(prior + i, window) if window else prior + i for i in range(1, new + 1))
    got = kp.causal_pairs(np.array(float(new)), np.array(float(prior)), np.float64(window))
    assert float(got) == pytest.approx(exact)


@given(st.integers(1, 5000), st.sampled_from([0, 128, 1024]))
def test_equivalent_prompt_inverts_pairs(tokens: int, window: int) -> None:
    pairs = kp.causal_pairs(np.array(float(tokens)), np.array(0.0), np.float64(window))
    assert float(kp.equivalent_prompt(pairs, float(window))) == pytest.approx(tokens, rel=1e-6)


def test_chunks_cost_at_least_the_whole_prompt() -> None:
    """Cutting a prompt into chunks does not save attention time."""
    k = load_kernel_model("h100-sxm-80gb", "vllm")
    prior = np.arange(0, 16384, 1024)
    chunks = k.prefill_attention_s("bf16", "bf16", 32, 8, 128, 0, 1024, prior).sum()
    assert chunks >= 0.97 * float(k.prefill_attention_s("bf16", "bf16", 32, 8, 128, 0, 16384, 0))


def test_physics_only_from_datasheet_rates() -> None:
    k = Roofline.of_gpu("some-new-gpu", "vllm", DevicePeaks({"bfloat16": 100e12}, 1e12))
    assert k.held_out_error == {}
    # far from the latency floor, a weight-bound product takes bytes / (0.8 B): 2e9 bytes -> 2.5 ms
    assert float(k.gemm_s("bf16", 1, 100_000, 10_000)) == pytest.approx(2.5e-3, rel=0.01)
    assert float(k.moe_s("bf16", 2048, 768, 8, 128, 1, 1, 64)) > 0
    assert float(k.mla_decode_s("bf16", "bf16", 16, 8, 1000)) > 0


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(InputError, match="h100-sxm-80gb"):
        load_kernel_model("h100-sxm-80", "vllm")


def test_unknown_format_is_an_input_error() -> None:
    with pytest.raises(InputError, match="bf17"):
        load_kernel_model("h100-sxm-80gb", "vllm").gemm_s("bf17", 1, 64, 64)


def test_another_framework_is_borrowed_and_said() -> None:
    k = load_kernel_model("arc-pro-b60", "sglang")
    assert k.provenance["borrowed_from"] == "vllm"


def test_every_file_says_where_it_comes_from() -> None:
    assert len(FITTED) >= 19
    for device, framework in FITTED:
        k = load_kernel_model(device, framework)
        assert {s["licence"] for s in k.provenance["sources"]} == {"Apache-2.0", "MIT"}
        for key, group in k.groups.items():
            assert group["rows"] > 0 or "serving_from" in group, key
            assert "held_out_mape_pct" in group or key == "elementwise" or not group["rows"]


def test_shipped_files_stay_small() -> None:
    total = sum(p.stat().st_size for p in km.KERNELS_DIR.rglob("*") if p.is_file())
    assert total < 40e6


def test_import_and_use_need_numpy_only() -> None:
    code = (
        "import sys; from hardware_profiles.kernel_model import load_kernel_model as l;"
        "k = l('h100-sxm-80gb', 'vllm'); k.gemm_s('fp8', [1, 8], 4096, 4096); k.all_reduce_s(8, 1e6);"
        "print([m for m in ('scipy', 'pandas', 'pyarrow', 'matplotlib') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.mark.parametrize(("device", "framework"), FITTED)
def test_more_kv_heads_are_more_sequences(device: str, framework: str) -> None:
    """32 KV heads of 10 sequences do the work of 8 KV heads of 40, at the same group size."""
    k = load_kernel_model(device, framework)
    if "attention_decode/bfloat16/bfloat16" in k.groups:
        assert k.groups["attention_decode/bfloat16/bfloat16"]["reference_kv_heads"] == 8
        wide = k.decode_attention_s("bf16", 32, 32, 128, 0, [1, 10, 83], 700)
        assert np.allclose(wide, k.decode_attention_s("bf16", 8, 8, 128, 0, [4, 40, 332], 700))
        grouped = k.decode_attention_s("bf16", 160, 40, 128, 0, [2, 20], [[300], [5000]])
        assert np.allclose(grouped, k.decode_attention_s("bf16", 32, 8, 128, 0, [10, 100], [[300], [5000]]))
    if "attention_context/bfloat16/bfloat16" in k.groups:
        most = k.groups["attention_context/bfloat16/bfloat16"]["reference_kv_heads"]
        wide = k.prefill_attention_s("bf16", "bf16", 3 * most, 3 * most, 128, 0, 512, 0)
        assert np.allclose(wide, k.prefill_attention_s("bf16", "bf16", most, most, 128, 0, 512, 0, batch=3))


#: hidden, intermediate, experts a token, experts. kind: datasheet, source: the models' config.json.
EXPERT_MODELS = {
    "Mixtral-8x7B": (4096, 14336, 2, 8),
    "Mixtral-8x22B": (6144, 16384, 2, 8),
    "Llama-4-Scout": (5120, 8192, 1, 16),
    "Llama-4-Maverick": (5120, 8192, 1, 128),
    "Qwen3-30B-A3B": (2048, 768, 8, 128),
    "Qwen3-235B-A22B": (4096, 1536, 8, 128),
    "DeepSeek-V3": (7168, 2048, 8, 256),
    "gpt-oss-20b": (2880, 2880, 4, 32),
    "gpt-oss-120b": (2880, 2880, 4, 128),
    "Kimi-K2": (7168, 2048, 8, 384),
    "MiniMax-M2": (3072, 1536, 8, 256),
    "GLM-4.5": (5120, 1536, 8, 160),
}
TOKENS = np.unique(np.round(2.0 ** np.arange(0.0, 12.01, 0.5)))


@pytest.mark.parametrize(("device", "framework"), FITTED)
def test_experts_of_real_models_are_within_physics(device: str, framework: str) -> None:
    """Between reading the expected experts at memory speed and six times that, a launch and the arithmetic;
    twenty times for formats measured with one or two models, whose kernels are slow themselves."""
    k = load_kernel_model(device, framework)
    for key in k.groups:
        op, _, fmt = key.partition("/")
        for hidden, inter, topk, experts in EXPERT_MODELS.values() if op == "moe" else ():
            for tp in (1, 2, 4, 8):
                t = k.moe_s(fmt, hidden, inter, topk, experts, tp, 1, TOKENS)
                shape = (*(np.float64(v) for v in (hidden, inter, topk, experts, tp, 1, 1)),)
                read = kp.moe_weight_bytes(fmt, TOKENS, *shape) / k.peaks.hbm_bytes_per_s
                work = 6.0 * hidden * inter / tp * topk * TOKENS / k.peaks.rate(fmt)
                rows = 8.0 * hidden * topk * TOKENS / k.peaks.hbm_bytes_per_s
                assert np.all(t >= read * (1 - 1e-9)), key
                few = k.groups[key]["shapes"] < 160 and device != "a100-sxm-80gb"
                most = (20.0 if few else 6.0) * (read + work) + 4.0 * rows + 1.5e-4
                assert np.all(t <= most), (key, hidden, tp, t / most)
                assert np.all(t >= np.maximum.accumulate(t) / 1.1), (key, hidden, tp)


@pytest.mark.parametrize("device", ["h100-sxm-80gb", "h200-sxm-141gb"])
def test_a_backend_slower_than_bfloat16_is_not_served(device: str) -> None:
    """The per-tensor fp8 table of vLLM on Hopper is four times the memory bound: serving takes the block kernel."""
    k = load_kernel_model(device, "vllm")
    for hidden, inter, topk, experts in EXPERT_MODELS.values():
        shape = (hidden, inter, topk, experts, 2, 1)
        plain, fp8 = (k.moe_s(f, *shape, TOKENS) for f in ("bf16", "fp8"))
        assert np.all(fp8 <= 1.25 * plain)
        assert np.array_equal(fp8, k.moe_s("fp8_block", *shape, TOKENS))
    scout = (5120, 8192, 1, 16, 2, 1, 16)
    assert 48 * float(k.moe_s("fp8", *scout)) < 0.016
    assert float(k.moe_s("fp8", *scout, condition="bench")) > 3 * float(k.moe_s("fp8", *scout))


@pytest.mark.parametrize("device", ["h100-sxm-80gb", "h200-sxm-141gb", "b200-sxm-180gb"])
def test_marlin_for_experts_of_another_model_takes_the_floor_of_fewer_experts(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's mxfp4 table of Marlin holds 896 experts; gpt-oss launches in the time of Marlin's int4 table (384)."""
    k = load_kernel_model(device, "vllm")
    marlin = k.expert_backend("mxfp4", "marlin")
    assert marlin is not None
    assert "_marlin_" in marlin
    group, oss = k.groups["moe/w4a16_mxfp4"], (2880, 2880, 4, 128)
    own = float(group["kernels"][marlin]["latency_s"])
    least = float(k.groups["moe/int4_wo"]["parameters"]["latency_s"])
    assert least < own
    for tp in (1, 2, 4, 8):
        chosen = k.moe_s("mxfp4", *oss, tp, 1, TOKENS, kernel=marlin)
        with monkeypatch.context() as patch:
            patch.setattr(type(k), "_chosen_floor", lambda self, backend, p: p)
            own_floor = load_kernel_model(device, "vllm").moe_s("mxfp4", *oss, tp, 1, TOKENS, kernel=marlin)
        # the residual is a factor of the base, floor included: it lies between 0.4 and 1.6 at the first token
        assert np.all(own_floor >= chosen)
        assert 0.4 * (own - least) < float(own_floor[0] - chosen[0]) < 1.6 * (own - least)
        assert float(chosen[0]) > least
        # weight-only: no less than bf16's arithmetic at its peak
        work = 6.0 * 2880 * 2880 / tp * 4 * TOKENS / k.peaks.rate("bfloat16")
        assert np.all(chosen >= work)
        assert np.all(chosen >= np.maximum.accumulate(chosen) / 1.1)


def test_naming_the_backend_that_a_layer_runs_on_changes_nothing() -> None:
    """Marlin where it is the default (896 experts), and formats with one backend, which cannot be named."""
    k = load_kernel_model("h100-sxm-80gb", "vllm")
    shape = (3584, 3072, 16, 896, 8, 1, TOKENS)
    marlin = k.expert_backend("mxfp4", "marlin")
    assert np.array_equal(k.moe_s("mxfp4", *shape, kernel=marlin), k.moe_s("mxfp4", *shape))
    assert k.expert_backend("int4", "marlin") is None
    assert k.expert_backend("mxfp4", "arlin") is None
    triton = k.expert_backend("mxfp4", "triton")
    oss = (2880, 2880, 4, 128, 2, 1, TOKENS)
    assert np.array_equal(k.moe_s("mxfp4", *oss, kernel=triton), k.moe_s("mxfp4", *oss))


def test_marlin_of_another_framework_serves_experts_that_an_own_table_lacks() -> None:
    """vLLM's tables of A100 have no experts in four bits, SGLang's have Marlin's; mxfp4 is padded to whole tiles."""
    tokens = np.array([1.0, 16.0, 2048.0])
    own, lender = (load_kernel_model("a100-sxm-80gb", framework) for framework in ("vllm", "sglang"))
    lent = own.moe_s("mxfp4", 2880, 2880, 4, 128, 1, 1, tokens)
    assert np.array_equal(lent, lender.moe_s("int4", 3072, 2944, 4, 128, 1, 1, tokens))
    assert not np.array_equal(lent, load_kernel_model("a100-sxm-80gb", "trtllm").moe_s("mxfp4", 2880, 2880, 4, 128, 1, 1, tokens))


@pytest.mark.parametrize("framework", ["vllm", "sglang"])
def test_experts_in_nvfp4_are_marlins_without_such_arithmetic(framework: str) -> None:
    """Both engines run them on Marlin before Blackwell, whose tables hold its int4; on Blackwell they have their own kernels."""
    shape = (4096, 1536, 8, 128, 2, 1, [1, 64, 4096])
    hopper, blackwell = (load_kernel_model(device, framework) for device in ("h100-sxm-80gb", "b200-sxm-180gb"))
    assert np.array_equal(hopper.moe_s("nvfp4", *shape), hopper.moe_s("int4", *shape))
    assert (blackwell.moe_s("nvfp4", *shape) != blackwell.moe_s("int4", *shape)).all()


def test_experts_of_unequal_popularity_leave_tiles_in_part_empty() -> None:
    """With 64 rows on average half the experts begin a second tile of 64; the equal ones of the benchmark fill theirs."""
    rng = np.random.default_rng(1)
    rows = rng.poisson(64 * rng.gamma(2.0, 0.5, 200_000))
    one, eight, many = kp.marlin_tiles(np.array([2048.0, 256.0, 2.0**20]), 4.0, 128.0)
    assert one == pytest.approx(np.mean(np.ceil(rows / 64)), rel=0.02)
    assert 1.0 <= eight < 1.1
    assert many == pytest.approx(1.0, abs=0.01)
    lender = load_kernel_model("a100-sxm-80gb", "sglang")
    served, equal = (lender.moe_s("int4", 4096, 1536, 8, 128, 1, 1, [1024.0], kind)[0] for kind in ("independent", "balanced"))
    assert 1.25 * equal < served < 1.6 * equal


def test_independent_rows_touch_fewer_experts_than_dealt_ones() -> None:
    """At as many rows as experts: all of them, or 1 - (1 + 1/a)**-a; at few rows or many, the same."""
    rows = np.array([1.0, 256.0, 1e5])
    a = kp.POPULARITY_SHAPE
    dealt = kp.moe_active_experts(np.float64(256), rows, 1.0)
    free = kp.moe_active_experts(np.float64(256), rows)
    assert dealt == pytest.approx([1.0, 256.0 * 2**-0.125, 256.0], rel=1e-6)
    assert free == pytest.approx([1.0, 256.0 * (1 - (1 + 1 / a) ** -a), 256.0], rel=4e-3)
    k = load_kernel_model("h100-sxm-80gb", "vllm")
    shape = (4096, 1536, 8, 128, 1, 1)
    m = np.array([1.0, 16.0, 1024.0])
    ratio = k.moe_s("bf16", *shape, m) / k.moe_s("bf16", *shape, m, "balanced")
    assert ratio[0] == pytest.approx(1.0, abs=0.05)
    assert 0.55 < ratio[1] < 0.75
    assert ratio[2] == pytest.approx(1.0, abs=0.01)


def test_experts_of_gamma_distributed_popularity() -> None:
    """The closed form against a draw: 2 million experts, rows by Poisson of gamma-distributed means."""
    rng = np.random.default_rng(1)
    for share in (0.25, 1.0, 4.0):
        means = share * rng.gamma(kp.POPULARITY_SHAPE, 1.0 / kp.POPULARITY_SHAPE, 2_000_000)
        drawn = np.mean(rng.poisson(means) > 0)
        assert kp.moe_active_experts(np.float64(1), np.array([share]))[0] == pytest.approx(drawn, rel=4e-3)


def test_one_token_touches_as_many_experts_as_it_chooses() -> None:
    for topk, experts in ((2.0, 8.0), (8.0, 256.0), (1.0, 16.0)):
        one, many = kp.moe_active_experts(np.float64(experts), np.array([topk, 1e6]), 0.0, topk / experts)
        assert one == pytest.approx(topk)
        assert many == pytest.approx(experts, rel=1e-3)


def test_ranks_that_share_experts_wait_for_the_most_loaded() -> None:
    """The closed form against 200 draws each of 256 experts over eight ranks: 2.56, 1.74, 1.42, 1.25 and 1.18."""
    tokens = np.array([1.0, 4.0, 16.0, 64.0, 1024.0])
    loaded = loaded_rank(tokens, 8, 256, 8)
    assert loaded == pytest.approx([2.56, 1.74, 1.42, 1.25, 1.18], rel=0.09)
    assert np.all(np.diff(tokens * loaded) > 0)
    k = load_kernel_model("h200-sxm-141gb", "vllm")
    split_s = k.moe_s("fp8_block", 3072, 1536, 8, 256, 1, 8, [4, 8192])
    assert np.all(split_s > [48e-6, 640e-6])  # the mean rank alone: 44 and 586 us


def test_serving_does_not_pay_spikes_over_the_rows() -> None:
    """Padding bounds a product: no row count costs over 1.15 times (and the interpolation) a larger one."""
    k = load_kernel_model("b200-sxm-180gb", "vllm")
    m = 2.0 ** np.arange(0, 13)
    for n, kk in ((10240, 8192), (8192, 8192), (57344, 8192), (8192, 28672), (4096, 4096), (1280, 8192)):
        t = k.gemm_s("fp8", m, n, kk)
        assert np.all(t <= 1.3 * np.minimum.accumulate(t[::-1])[::-1])
        bench = k.gemm_s("fp8", m, n, kk, "bench")
        assert float(t[0]) <= 1.15 * float(t[1]) + 1e-6
        assert n > 2e4 or float(bench[0]) > 1.3 * float(bench[1])


@pytest.mark.parametrize(("device", "framework"), FITTED)
def test_weight_only_formats_save_bytes_and_not_products(device: str, framework: str) -> None:
    """At many rows they cost what bf16 costs (within its own arithmetic share), at one row less."""
    k = load_kernel_model(device, framework)
    m = np.array([1.0, 16384.0])
    for n, kk in ((6144, 4096), (28672, 4096), (8192, 8192)):
        plain = k.gemm_s("bf16", m, n, kk)
        for fmt in ("int4", "int8_wo"):
            t = k.gemm_s(fmt, m, n, kk)
            assert t[0] < plain[0]
            assert t[1] > 0.93 * plain[1], (fmt, n, kk)
            assert t[1] >= 2.0 * m[1] * n * kk / k.peaks.rate("bfloat16")
    if f"moe/{kp.canonical_format('int4')}" not in k.groups and "moe/bfloat16" in k.groups:
        shape = (4096, 1536, 8, 128, 1, 1)
        t, plain = (k.moe_s(f, *shape, np.array([16384.0])) for f in ("int4", "bf16"))
        assert t[0] > 0.6 * plain[0]


@pytest.mark.parametrize("device", ["h100-sxm-80gb", "h200-sxm-141gb", "l40s-48gb", "a100-sxm-80gb"])
def test_serving_does_not_pay_the_launches_of_an_eager_table(device: str) -> None:
    """vLLM's latent-attention tables were taken without CUDA graphs: 100 us and more that serving does not pay."""
    eager, graph = (load_kernel_model(device, f) for f in ("vllm", "trtllm"))
    bench = eager.mla_decode_s("bf16", "bf16", 16, [1, 8], 64, "bench")
    serving = eager.mla_decode_s("bf16", "bf16", 16, [1, 8], 64)
    assert np.all(bench > 1e-4)
    assert np.all(serving < 3e-5)
    # work that outlasts the launches is paid as measured, but for at most the floors' difference
    long, other = (k.mla_decode_s("bf16", "bf16", 16, 512, 16384) for k in (eager, graph))
    whole = eager.mla_decode_s("bf16", "bf16", 16, 512, 16384, "bench")
    assert long <= whole * (1 + 1e-4)
    assert long >= min(float(whole) - 3.5e-4, float(other)) * 0.9


@pytest.mark.parametrize("device", ["h100-sxm-80gb", "b200-sxm-180gb"])
def test_tables_taken_in_graphs_keep_their_floor(device: str) -> None:
    t = np.array([1.0, 2.0])
    for framework in ("vllm", "sglang"):
        k = load_kernel_model(device, framework)
        for key in ("gemm/bfloat16", "gemm/fp8"):
            assert k._in_graph_s(key, t, t, lambda other: t * 0.0) is t


def test_blocks_of_fp8_on_b200_start_as_quickly_as_the_same_kernel_elsewhere() -> None:
    """DeepGEMM's floor under SGLang is at most half above TensorRT-LLM's; vLLM's own products by blocks are served from it."""
    vllm, sglang, trtllm = (load_kernel_model("b200-sxm-180gb", f) for f in ("vllm", "sglang", "trtllm"))
    for n, k in ((2112, 7168), (7168, 2048), (4096, 4096)):
        t, least = (m.gemm_s("fp8_block", [1, 64], n, k) for m in (sglang, trtllm))
        assert np.all(t < 1.5 * least)
        assert np.array_equal(vllm.gemm_s("fp8_block", [1, 64], n, k), t)


@pytest.mark.parametrize("device", ["h100-sxm-80gb", "h200-sxm-141gb", "l40s-48gb", "rtx-pro-6000-96gb"])
def test_prompts_of_latent_attention_take_the_expanded_form(device: str) -> None:
    """SGLang's table timed the absorbed one, 3.4 times the arithmetic; in serving all frameworks agree."""
    times = [
        load_kernel_model(device, f).mla_prefill_s("bf16", "bf16", 16, 8192) for f in ("sglang", "trtllm")
    ]
    assert times[0] == pytest.approx(times[1], rel=0.3)
    bench = load_kernel_model(device, "sglang").mla_prefill_s("bf16", "bf16", 16, 8192, condition="bench")
    assert bench > 2.0 * times[0]


def test_latent_attention_measured_with_its_projections_only_is_borrowed() -> None:
    """vLLM's tables for B200 hold whole modules: the kernel alone comes from another framework of the device."""
    own, other = (load_kernel_model("b200-sxm-180gb", f) for f in ("vllm", "trtllm"))
    assert not any(key.startswith("mla/kernel") for key in own.groups)
    for kv in ("bf16", "fp8"):
        assert own.mla_decode_s("bf16", kv, 16, 8, 1000) == other.mla_decode_s("bf16", kv, 16, 8, 1000)


def test_integer_products_cost_what_8_bit_floats_do_where_only_those_were_measured() -> None:
    m = np.array([1.0, 64, 8192])
    for name, alike in (("h100-sxm-80gb", True), ("arc-pro-b60", False)):  # B60 has no arithmetic in fp8
        kernels = km.load_kernel_model(name, "vllm")
        same = np.allclose(kernels.gemm_s("int8", m, 14336, 4096), kernels.gemm_s("fp8", m, 14336, 4096), rtol=1e-12)
        assert same == alike
        assert np.all(kernels.gemm_s("int8", m, 14336, 4096) <= kernels.gemm_s("bf16", m, 14336, 4096))


def test_static_scales_are_not_sought() -> None:
    """TensorRT-LLM's fp8 table finds the scale of activations in every product; a server's checkpoint has it."""
    k = load_kernel_model("h200-sxm-141gb", "trtllm")
    rows = np.array([64.0, 256.0])
    saved = k.gemm_s("fp8", rows, 8192, 8192, condition="bench") - k.gemm_s("fp8", rows, 8192, 8192)
    assert np.all((saved > 7e-6) & (saved < 10e-6))
    bf16 = k.gemm_s("bf16", rows, 8192, 8192) / k.gemm_s("bf16", rows, 8192, 8192, condition="bench")
    assert np.all(bf16 > 0.98)


def test_one_kernel_for_every_shape_is_not_what_a_tuner_serves() -> None:
    own, other = (load_kernel_model("b200-sxm-180gb", name) for name in ("trtllm", "vllm"))
    rows = np.array([4.0, 64.0])
    assert np.array_equal(own.gemm_s("nvfp4", rows, 10240, 8192), other.gemm_s("nvfp4", rows, 10240, 8192))
    assert np.all(own.gemm_s("nvfp4", rows, 10240, 8192) < 0.7 * own.gemm_s("nvfp4", rows, 10240, 8192, condition="bench"))


@pytest.mark.parametrize("device", ["b200-sxm-180gb", "gb300-288gb", "h800-sxm-80gb"])
def test_experts_of_another_framework_are_named_with_it(device: str) -> None:
    k, other = (operations_of(load_device(device), name) for name in ("trtllm", "vllm"))
    shape = (7168, 2048, 8, 256, 8, 1, TOKENS)
    word = "triton" if device.startswith("h") else "trtllm"
    named = k.expert_backend("fp8_block", f"vllm/{word}")
    assert named is not None
    lent = other.moe_s("fp8_block", *shape, kernel=other.expert_backend("fp8_block", word))
    assert np.array_equal(k.moe_s("fp8_block", *shape, kernel=named), lent)
    assert k.expert_backend("fp8_block", "vllm/none") is None


def test_experts_without_tuned_tiles_take_longer() -> None:
    """128 experts of width 768 have tuned tiles under SGLang on H100, of width 736 they have not; nobody tuned them on B300."""
    rows = np.array([8192.0])
    for device, ratio in (("h100-sxm-80gb", 1.15), ("b300-sxm-288gb", 0.9)):
        k = km.load_kernel_model(device, "sglang")
        tuned, generic = (float(k.moe_s("bf16", 4096, i, 8, 128, 1, 1, rows)[0]) / i for i in (768, 736))
        assert generic > ratio * tuned
        assert generic < 1.15 * tuned or device.startswith("h100")


def test_all_reduces_are_those_of_the_engines_version() -> None:
    """vLLM's own kernel in graphs of few rows, 16 kB over eight H200: 0.24 takes half as long again as 0.31, which stands on."""
    k = load_kernel_model("h200-sxm-141gb", "vllm")
    unsaid, old, new, newest = (float(replace(k, release=v).all_reduce_s(8, 16384)) for v in ("", "0.30.0", "0.31.0", "0.33.0"))
    assert unsaid == old > 1.4 * new
    assert new == newest
    assert float(replace(k, release="0.33.0").all_gather_s(8, 16384)) == float(k.all_gather_s(8, 16384))
