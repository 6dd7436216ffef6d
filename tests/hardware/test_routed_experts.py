"""Experts of ranks that are sent their rows: bounds of the device, the timed tables, and that engines use them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hardware_profiles.device import load_device
from hardware_profiles.kernels import operations_of
from hardware_profiles.ops import RoutedLayer
from hardware_profiles.routed_experts import (
    GRACE_WAIT_S,
    LAUNCH_S,
    SHARES,
    WAIT_S,
    received_share,
    routed_experts_s,
    shares_of,
)

TABLE = Path(__file__).parents[3] / "shared" / "data" / "kernels_2026" / "moe_wideep.parquet"
DEEPSEEK = (7168, 2048, 8, 256)


@pytest.mark.parametrize("name", ["h200-sxm-141gb", "gb200-186gb"])
@pytest.mark.parametrize("wait_s", [None, WAIT_S])
def test_no_rank_beats_its_device_and_more_rows_take_no_less(name: str, wait_s: float | None) -> None:
    device = load_device(name)
    peaks = operations_of(device, "sglang").peaks
    tokens = np.geomspace(1, 1e6, 60)
    for ranks in (2, 8, 32, 256):
        layer = RoutedLayer("fp8_block", *DEEPSEEK, ranks)
        times = routed_experts_s(SHARES[device.architecture], peaks, layer, tokens, wait_s)
        products_s = 6 * 7168 * 2048 * tokens * 8 / ranks / peaks.rate("fp8_block")
        assert (times > products_s).all()
        assert (np.diff(times) >= 0).all()
        many = np.array([1e5])
        every_weight_s = 256 / ranks * 3 * 7168 * 2048 / peaks.hbm_bytes_per_s
        assert routed_experts_s(SHARES[device.architecture], peaks, layer, many, wait_s) > every_weight_s


def test_tokens_go_once_to_each_rank_that_has_one_of_their_experts() -> None:
    assert received_share(8, 1) == 1.0
    assert received_share(8, 256) == pytest.approx(8 / 256, rel=0.02)  # hardly ever two experts on one rank
    assert 5.2 < 8 * received_share(8, 8) < 5.3


def test_formats_and_generations_that_nobody_timed_have_none() -> None:
    assert shares_of("ampere", "fp8_block") is shares_of("hopper", "nvfp4") is shares_of("blackwell", "bfloat16") is None
    ops = operations_of(load_device("a100-sxm-80gb"), "sglang")
    assert ops.routed_experts_s(RoutedLayer("fp8_block", *DEEPSEEK, 8), 64.0, captured=True) is None


def test_borrowed_kernels_exchange_as_between_the_ranks_they_were_timed_with() -> None:
    """GH200 has H200's tables, timed between eight devices, over links of its own, and a Grace CPU."""
    layer, tokens = RoutedLayer("fp8_block", *DEEPSEEK, 8), np.array([1e5])
    moved_bytes = []
    for name, wait_s in (("h200-sxm-141gb", WAIT_S), ("gh200-144gb", GRACE_WAIT_S)):
        ops = operations_of(load_device(name), "sglang")
        whole = ops.routed_experts_s(layer, tokens, captured=False)
        assert whole is not None
        exchange_s = whole - routed_experts_s(SHARES["hopper"], ops.peaks, layer, tokens, wait_s)
        moved_bytes.append(float(exchange_s[0]) * ops.peaks.link_bytes_per_s)
    assert moved_bytes[1] == pytest.approx(moved_bytes[0], rel=0.1)


def test_a_rank_that_is_sent_its_rows_is_quicker_than_one_that_has_all() -> None:
    """At 128 tokens a rank over 32 ranks; and its experts alone take what the tables say, the exchange 60 to 80 us more."""
    ops = operations_of(load_device("gb200-186gb"), "sglang")
    sent = ops.routed_experts_s(RoutedLayer("fp8_block", *DEEPSEEK, 32), np.array([4096.0]), captured=True)
    assert sent is not None
    assert sent < 0.5 * ops.moe_s("fp8_block", *DEEPSEEK, 1, 32, np.array([4096.0]))
    assert LAUNCH_S + 60e-6 < sent < 250e-6


@pytest.mark.skipif(not TABLE.exists(), reason="the timed tables are not here")
@pytest.mark.parametrize(
    ("name", "gpu", "most_pct"),
    [("h100-sxm-80gb", "H100-SXM", 8), ("h200-sxm-141gb", "H200-SXM", 8), ("gb200-186gb", "GB200", 9)],
)
def test_steps_in_graphs_are_those_of_the_tables(name: str, gpu: str, most_pct: float) -> None:
    import pandas as pd

    asked = {"gpu": gpu, "op": "wideep_generation_moe", "distribution": "uniform"}
    frame = pd.read_parquet(TABLE, filters=[(column, "==", value) for column, value in asked.items()])
    device = load_device(name)
    peaks, shares = operations_of(device, "sglang").peaks, SHARES[device.architecture]
    errors = []
    for row in frame.itertuples():
        rows = row.num_tokens * 8 / row.moe_ep_size
        local = 256 / row.moe_ep_size
        weights_s = local * -np.expm1(-rows / local) * 3 * 7168 * 2048 / (shares.weights_share * peaks.hbm_bytes_per_s)
        products_s = 6 * 7168 * 2048 * rows / (shares.arithmetic_share * peaks.rate("fp8_block"))
        errors.append(abs((LAUNCH_S + max(weights_s, products_s)) * 1e6 / row.latency_us - 1) * 100)
    assert np.median(errors) < most_pct
