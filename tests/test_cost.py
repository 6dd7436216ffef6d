"""The arithmetic of cost, by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.cluster.devices import DeviceHistory
from simulator.cost import UnitPrice, Usage, run_cost

PRICE = UnitPrice(3.0, "someone", "somewhere", "on_demand", "a list", "2026-11-01", "datasheet")
USAGE = Usage(
    devices=4,
    window_s=1800.0,
    input_tokens=3_000_000,
    output_tokens=1_000_000,
    requests=2000,
    busy_prefill_s=600.0,
    busy_decode_s=1800.0,
)


def test_by_hand() -> None:
    """Four devices at $3 for half an hour: $6; a quarter of the busy time is prefill."""
    cost = run_cost(PRICE, USAGE)
    assert cost["BilledCost"] == pytest.approx(6.0)
    assert cost["PricingQuantity"] == pytest.approx(2.0)
    assert cost["usd_per_hour"] == pytest.approx(12.0)
    assert cost["usd_per_month"] == pytest.approx(12.0 * 730)
    assert cost["usd_per_request"] == pytest.approx(0.003)
    assert cost["usd_per_1m_total_tokens"] == pytest.approx(1.5)
    assert cost["usd_per_1m_output_only"] == pytest.approx(6.0)
    assert cost["prefill_share_of_device_time"] == pytest.approx(0.25)
    assert cost["usd_per_1m_input_tokens"] == pytest.approx(0.5)
    assert cost["usd_per_1m_output_tokens"] == pytest.approx(4.5)


@given(
    prefill=st.floats(0.001, 1e5),
    decode=st.floats(0.001, 1e5),
    inputs=st.integers(1, 10**9),
    outputs=st.integers(1, 10**9),
)
def test_input_and_output_apart_make_up_the_bill(
    prefill: float, decode: float, inputs: int, outputs: int
) -> None:
    usage = replace(
        USAGE, busy_prefill_s=prefill, busy_decode_s=decode, input_tokens=inputs, output_tokens=outputs
    )
    cost = run_cost(PRICE, usage)
    parts = cost["usd_per_1m_input_tokens"] * inputs + cost["usd_per_1m_output_tokens"] * outputs
    assert parts / 1e6 == pytest.approx(cost["BilledCost"])
    assert cost["usd_per_1m_total_tokens"] * (inputs + outputs) / 1e6 == pytest.approx(cost["BilledCost"])


def test_no_price_no_figures() -> None:
    cost = run_cost(None, USAGE)
    assert cost["PricingQuantity"] == pytest.approx(2.0)
    assert all(value is None for name, value in cost.items() if name.startswith("usd_"))


def test_an_idle_window_has_a_bill_and_no_price_of_a_token() -> None:
    idle = replace(USAGE, input_tokens=0, output_tokens=0, requests=0, busy_prefill_s=0.0, busy_decode_s=0.0)
    cost = run_cost(PRICE, idle)
    assert cost["BilledCost"] == pytest.approx(6.0)
    assert {name for name, value in cost.items() if name.startswith("usd_") and value is not None} == {
        "usd_per_hour",
        "usd_per_month",
    }


# Devices over time --------------------------------------------------------------------------------------------


@given(
    changes=st.lists(st.tuples(st.floats(0, 50), st.integers(0, 64)), max_size=6),
    first=st.integers(0, 64),
    start=st.integers(0, 40),
    length=st.integers(1, 40),
)
def test_mean_devices_are_device_seconds_over_the_window(
    changes: list[tuple[float, int]], first: int, start: int, length: int
) -> None:
    history = DeviceHistory(first)
    changes = sorted((round(at_s), devices) for at_s, devices in changes)
    for at_s, devices in changes:
        history.change(at_s, devices)
    each_second = [
        next((n for at_s, n in reversed(changes) if at_s <= second), first)
        for second in range(start, start + length)
    ]
    assert history.mean(start, start + length) == pytest.approx(sum(each_second) / length)


def test_devices_that_do_not_change_are_counted_whole() -> None:
    assert DeviceHistory(24).mean(0.1, 7.3) == 24
    history = DeviceHistory(8)
    history.change(5.0, 16)
    assert [history.mean(4.0, 4.0), history.mean(5.0, 5.0)] == [8, 16]
    assert history.mean(0.0, 10.0) == 12
