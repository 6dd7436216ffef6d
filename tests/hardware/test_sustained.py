"""Arithmetic that a device sustains, against the tables that were timed with weights that cost no power."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hardware_profiles.device import load_device
from hardware_profiles.kernel_borrow import borrowed_model, power_share
from hardware_profiles.kernel_model import load_kernel_model
from hardware_profiles.sustained import SUSTAINED_SHARE, sustained_share

GEMM = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kernels" / "gemm.parquet"
NAMES = {"a100-sxm-80gb": "A100-SXM-80GB", "b200-sxm-180gb": "B200-SXM", "h100-sxm-80gb": "H100-SXM"}
NAMES |= {"h200-sxm-141gb": "H200-SXM", "l40s-48gb": "L40S", "rtx-pro-6000-96gb": "RTX-PRO-6000-Server"}
NEWER = GEMM.parents[1] / "kernels_2026" / "gemm.parquet"
NEWER_NAMES = {"b300-sxm-288gb": "B300-SXM", "gb200-186gb": "GB200", "gb300-288gb": "GB300"}


@pytest.mark.parametrize("device", sorted(SUSTAINED_SHARE))
def test_long_products_in_serving_take_no_less_than_the_sustained_rate(device: str) -> None:
    kernels = load_kernel_model(device, "vllm")
    for fmt, share in SUSTAINED_SHARE[device].items():
        m, n, k = 8192, 28672, 8192
        held_s = 2.0 * m * n * k / (share * kernels.peaks.rate(fmt))
        assert kernels.gemm_s(fmt, m, n, k) >= held_s * (1 - 1e-12)


def test_experts_take_no_less_than_the_sustained_rate() -> None:
    """Tables of experts were timed as those of plain products."""
    kernels = load_kernel_model("h100-sxm-80gb", "trtllm")
    held_s = 6.0 * 8192 * 2 * 4096 * 14336 / (SUSTAINED_SHARE["h100-sxm-80gb"]["fp8"] * kernels.peaks.rate("fp8"))
    assert kernels.moe_s("fp8", 4096, 14336, 2, 8, 1, 1, 8192) >= held_s * (1 - 1e-12)


def test_short_products_keep_their_table() -> None:
    """Decode reads weights: the bound on arithmetic does not reach it."""
    kernels = load_kernel_model("h200-sxm-141gb", "vllm")
    m, n, k = 16, 28672, 8192
    arithmetic_s = 2.0 * m * n * k / (SUSTAINED_SHARE["h200-sxm-141gb"]["fp8"] * kernels.peaks.rate("fp8"))
    assert kernels.gemm_s("fp8", m, n, k) > 5 * arithmetic_s


def test_a_table_is_judged_as_it_was_measured() -> None:
    kernels = load_kernel_model("b200-sxm-180gb", "vllm")
    m, n, k = 16384, 57344, 8192
    assert kernels.gemm_s("fp8", m, n, k, condition="bench") < kernels.gemm_s("fp8", m, n, k)


def test_tables_with_random_weights_are_left_alone() -> None:
    assert sustained_share("sglang", "h200-sxm-141gb", "bfloat16") is None
    assert sustained_share("vllm", "h200-sxm-141gb", "bfloat16") == 0.703
    assert sustained_share("vllm", "", "bfloat16") is None


def test_a_borrowed_table_is_bounded_by_its_lender() -> None:
    kernels = borrowed_model("h800-sxm-80gb", "vllm")
    assert kernels is not None
    assert kernels.path is not None
    share = SUSTAINED_SHARE[kernels.path.parent.name]["bfloat16"]
    m, n, k = 8192, 28672, 8192
    held_s = 2.0 * m * n * k / (share * kernels.peaks.rate("bfloat16"))
    assert kernels.gemm_s("bfloat16", m, n, k) >= held_s * (1 - 1e-12)


def test_a_lower_power_limit_leaves_less_of_what_the_chip_sustains() -> None:
    """350 W for 0.76 of the peak that 700 W feed; nothing where the limit is as high, or the architecture another."""
    sxm, pcie = load_device("h100-sxm-80gb"), load_device("h100-pcie-80gb")
    assert power_share(pcie, sxm) == pytest.approx(350 / 700 * 989 / 756, rel=0.01)
    assert power_share(load_device("gh200-144gb"), sxm) == 1.0
    assert power_share(load_device("l4-24gb"), sxm) == 1.0
    kernels, share = borrowed_model("h100-pcie-80gb", "trtllm"), SUSTAINED_SHARE["h100-sxm-80gb"]["fp8"]
    assert kernels is not None
    held_s = 2.0 * 8192 * 28672 * 8192 / (share * power_share(pcie, sxm) * kernels.peaks.rate("fp8"))
    assert kernels.gemm_s("fp8", 8192, 28672, 8192) >= held_s * (1 - 1e-12)
    quicker = borrowed_model("a100-pcie-80gb", "sglang"), load_kernel_model("a100-sxm-80gb", "sglang")
    assert quicker[0] is not None
    long_s = [float(ops.gemm_s("bfloat16", 8192, 28672, 8192)) for ops in quicker if ops]
    assert long_s[0] == pytest.approx(long_s[1] / 0.75, rel=0.1)  # 300 W of 400


def test_experts_move_their_rows_beside_products_at_the_sustained_rate() -> None:
    """Mixtral's on H100, in TensorRT-LLM: FP8 0.44 of the peak in all where dense products sustain 0.548."""
    kernels, layer = load_kernel_model("h100-sxm-80gb", "trtllm"), (4096, 14336, 2, 8, 1, 1)
    for fmt, share in SUSTAINED_SHARE["h100-sxm-80gb"].items():
        rate = 6.0 * 4096 * 14336 * 2 * 4096 / float(kernels.moe_s(fmt, *layer, 4096)) / kernels.peaks.rate(fmt)
        assert 0.75 * share < rate < 0.95 * share


@pytest.mark.skipif(not GEMM.is_file(), reason="shared/data/kernels is not beside the checkout")
@pytest.mark.parametrize(("table", "names"), [(GEMM, NAMES), (NEWER, NEWER_NAMES)])
def test_the_shares_are_those_of_the_tables(table: Path, names: dict[str, str]) -> None:
    import pyarrow.parquet as pq

    columns = ["gpu", "framework", "dtype", "m", "n", "k", "latency_us"]
    wanted = [("m", ">=", 2048), ("gpu", "in", list(names.values()))]
    frame = pq.read_table(table, columns=columns, filters=wanted).to_pandas()
    work = 2.0 * frame.m.astype(float) * frame.n * frame.k
    frame = frame.assign(rate=work / (frame.latency_us * 1e-6))[work >= 3e12]
    for device, name in names.items():
        for fmt, share in SUSTAINED_SHARE[device].items():
            of = frame[(frame.gpu == name) & (frame.dtype == fmt)]
            peak = load_kernel_model(device, "vllm").peaks.rate(fmt)
            found = [of[of.framework == other].rate.median() / peak for other in ("sglang", "trtllm")]
            assert np.mean(found) == pytest.approx(share, abs=0.01), (device, fmt)
            if fmt == "bfloat16":  # the same library in all three
                assert of[of.framework == "vllm"].rate.median() / peak > share * 1.04
