"""Fitting and judging kernel models: synthetic tables with a known answer, measured ones where they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hardware_profiles import kernel_fit as kf
from hardware_profiles import kernel_model as km
from hardware_profiles import kernel_validate as kv
from hardware_profiles.errors import InputError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kernels"
needs_tables = pytest.mark.skipif(
    not SHARED.exists(), reason="measured kernel tables are not beside the checkout"
)


def gemm_table(gpu: str = "H100-SXM", framework: str = "vllm") -> pd.DataFrame:
    """A machine that obeys a roofline exactly: 3 us + hypot(compute, memory)."""
    m, n, k = (
        a.ravel()
        for a in np.meshgrid(2.0 ** np.arange(0, 13), 2.0 ** np.arange(7, 15), 2.0 ** np.arange(7, 15))
    )
    p = {"latency_s": 3e-6, "compute_efficiency": 0.7, "memory_efficiency": 0.8}
    t = km.gemm_base_s(p, kf.PEAKS["h100-sxm-80gb"], "bfloat16", m, n, k)
    frame = pd.DataFrame({"m": m, "n": n, "k": k}).astype("int32")
    return frame.assign(gpu=gpu, framework=framework, dtype="bfloat16", latency_us=t * 1e6)


def test_an_exact_roofline_is_found_again() -> None:
    frame = gemm_table()
    arrays, p, error = kf.fit_group("gemm", ("bfloat16",), frame, kf.PEAKS["h100-sxm-80gb"])
    assert p["compute_efficiency"] == pytest.approx(0.7, rel=0.02)
    assert p["memory_efficiency"] == pytest.approx(0.8, rel=0.02)
    assert error < 0.5
    unseen = frame.iloc[:40].assign(n=3000, k=5000)
    got = kf.predict_rows("gemm", km.surface_of(arrays), p, ("bfloat16",), unseen, kf.PEAKS["h100-sxm-80gb"])
    truth = {"latency_s": 3e-6, "compute_efficiency": 0.7, "memory_efficiency": 0.8}
    m = unseen["m"].to_numpy(dtype=float)
    want = km.gemm_base_s(truth, kf.PEAKS["h100-sxm-80gb"], "bfloat16", m, np.float64(3000), np.float64(5000))
    assert np.allclose(got, want, rtol=0.02)


def test_one_spike_does_not_bend_the_fit() -> None:
    frame = gemm_table()
    spiked = frame.copy()
    spiked.loc[400, "latency_us"] *= 8.0
    a, p, _ = kf.fit_group("gemm", ("bfloat16",), spiked, kf.PEAKS["h100-sxm-80gb"])
    got = kf.predict_rows("gemm", km.surface_of(a), p, ("bfloat16",), frame, kf.PEAKS["h100-sxm-80gb"])
    off = np.abs(got / (frame["latency_us"].to_numpy() * 1e-6) - 1)
    assert off.max() < 0.2


def test_the_same_tables_give_the_same_bytes(tmp_path: Path) -> None:
    tables = tmp_path / "tables"
    tables.mkdir()
    gemm_table().to_parquet(tables / "gemm.parquet")
    for out in ("one", "two"):
        kf.fit_kernels(tables, tmp_path / out, ["h100-sxm-80gb"])
    files = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert [f.name for f in files] == ["vllm.json", "vllm.npz"]
    for f in files:
        assert (tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes()


def test_leave_groups_out_equals_refitting() -> None:
    rng = np.random.default_rng(0)
    x, z = rng.normal(size=(12, 2)), rng.normal(size=(12, 3))
    groups = np.arange(12) // 2
    cov = km.shape_kernel(x, x, np.array([1.0]), np.array([[0.7, 0.4]])) + 0.1 * np.eye(12)
    fast = kf.leave_groups_out(np.linalg.inv(cov), z, groups)
    for g in range(6):
        a, b = groups != g, groups == g
        slow = z[b] - cov[np.ix_(b, a)] @ np.linalg.solve(cov[np.ix_(a, a)], z[a])
        assert np.allclose(fast[b], slow)


def test_validation_counts_what_it_leaves_out(tmp_path: Path) -> None:
    model = km.load_kernel_model("h100-sxm-80gb", "vllm")
    frame = gemm_table()
    frame = frame[(frame["n"] >= 4096) & (frame["k"] >= 4096)].reset_index(drop=True)
    frame["latency_us"] = [
        1e6 * float(model.gemm_s("bf16", m, n, k, "bench"))
        for m, n, k in frame[["m", "n", "k"]].itertuples(index=False)
    ]
    frame.loc[0, "latency_us"] = -1.0
    frame.loc[1, "latency_us"] *= 1e-3
    big = int(frame["m"].idxmax())
    frame.loc[big, "latency_us"] *= 0.4
    strange = frame.head(5).assign(gpu="Abacus-3000")
    pd.concat([frame, strange]).to_parquet(tmp_path / "gemm.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "splitwise_phase.parquet")
    got = kv.validate_kernels(tmp_path)
    (group,) = got["groups"]
    assert (group["op"], group["gpu"], group["framework"], group["dtype"]) == (
        "gemm",
        "H100-SXM",
        "vllm",
        "bfloat16",
    )
    assert group["rows"] == len(frame) - 3
    assert group["mape"] < 0.01
    reasons = {(s["op"], s["gpu"]): s["rows"] for s in got["skipped"] if s["gpu"] != "H100-SXM"}
    assert reasons == {("gemm", "Abacus-3000"): 5, ("splitwise_phase", ""): 1}
    assert sorted(s["rows"] for s in got["skipped"] if s["gpu"] == "H100-SXM") == [1, 1, 1]


def test_no_tables_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no \.parquet tables"):
        kv.validate_kernels(tmp_path)


@needs_tables
@pytest.mark.parametrize(
    ("op", "bound_pct"), [("gemm", 4.5), ("attention_decode", 3.5), ("attention_context", 5.5), ("moe", 14.0)]
)
def test_unseen_shapes_on_h100_vllm_bfloat16(op: str, bound_pct: float) -> None:
    frame = kf.op_rows(op, SHARED, "H100-SXM", "vllm")
    assert frame is not None
    formats, part = next(kf.slices(frame, kf.OPS[op]))
    assert formats[0] == "bfloat16"
    error = kf.held_out_error(op, formats, part, kf.PEAKS["h100-sxm-80gb"])
    assert error is not None
    assert error < bound_pct


@needs_tables
def test_shipped_file_is_what_the_tables_give() -> None:
    """Refitting one small group gives the shipped bytes."""
    frame = kf.op_rows("quantize", SHARED, "H100-SXM", "vllm")
    assert frame is not None
    formats, part = next(kf.slices(frame, kf.OPS["quantize"]))
    arrays, p, _ = kf.fit_group("quantize", formats, part, kf.PEAKS["h100-sxm-80gb"])
    model = km.load_kernel_model("h100-sxm-80gb", "vllm")
    key = "/".join(("quantize", *formats))
    assert model.groups[key]["parameters"] == p
    assert model.path is not None
    with np.load(model.path) as shipped:
        for name, array in arrays.items():
            assert shipped[f"{key.replace('/', '-')}.{name}"].tobytes() == array.tobytes()


def test_isolated_spikes_go_and_common_ones_stay() -> None:
    """Where many cells are disturbed the spikes are taken out; a step that all shapes share is kept."""
    rng = np.random.default_rng(1)
    values = 0.01 * rng.normal(size=(40, 20))
    values[:, 7] += 1.0  # all shapes alike: the kernel is slow there
    assert kf.unspiked(values) is values
    spiked = values.copy()
    at = rng.permutation(800)[:40]
    spiked.ravel()[at] += 0.8
    assert np.isnan(kf.unspiked(spiked)).sum() >= 36
    assert np.isnan(kf.unspiked(spiked)[:, 7]).sum() <= 4


def test_slow_backends_are_replaced_by_kernels_that_run_their_checkpoints() -> None:
    """Per-tensor fp8 may run on the block kernel, not the reverse, and only where it loses to bfloat16."""
    shape = dict.fromkeys(kf.OPS["moe"].shape, 1.0)

    def table(**us: float) -> pd.DataFrame:
        rows = [
            {**shape, "num_tokens": m, "dtype": d, "latency_us": t * m} for d, t in us.items() for m in (1, 8)
        ]
        return pd.DataFrame(rows)

    got = kf.serving_experts({"vllm": table(bfloat16=2.0, fp8=5.0, fp8_block=1.0)})
    assert got["vllm", "fp8"]["serving_as"] == ["vllm", "fp8_block"]
    assert kf.serving_experts({"vllm": table(bfloat16=2.0, fp8=1.5, fp8_block=1.0)}) == {}
    assert kf.serving_experts({"vllm": table(bfloat16=2.0, fp8=1.0, fp8_block=5.0)}) == {}


@needs_tables
def test_a_format_with_one_model_leans_on_bfloat16() -> None:
    """Tied parameters lie nearer to bfloat16's, and the residual fades far from the model."""
    frame = kf.op_rows("moe", SHARED, "H100-SXM", "vllm")
    assert frame is not None
    parts = dict(kf.slices(frame, kf.OPS["moe"]))
    model = km.load_kernel_model("h100-sxm-80gb", "vllm")
    p = model.groups["moe/bfloat16"]["parameters"]
    terms = ((1.0, (12.0, 12.0, 6.0, 6.0, 12.0, 4.0, 6.0)),)
    arrays, tied, _ = kf.fit_group(
        "moe", ("int4_wo",), parts[("int4_wo",)], kf.PEAKS["h100-sxm-80gb"], kf.Kin(p, terms)
    )
    _, free, _ = kf.fit_group("moe", ("int4_wo",), parts[("int4_wo",)], kf.PEAKS["h100-sxm-80gb"])
    assert 0.35 <= tied["memory_efficiency"] <= 0.95
    names = [n for n in p if n != "latency_s"]
    distance = [sum(np.log(q[n] / p[n]) ** 2 for n in names) for q in (tied, free)]
    assert distance[0] < distance[1]
    surface = km.surface_of(arrays)
    near, far = (surface.rows(surface.features[:1] + d)[0] for d in (0.0, np.r_[-9.0, np.zeros(6)]))
    assert np.abs(far).max() < 0.2 * np.abs(near).max()
