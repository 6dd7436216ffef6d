from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.cli.cost import offer_table
from simulator.config.load import load_scenario
from simulator.cost import UnitPrice
from simulator.planning.budget import Budget, budget, fleet, known, stale, sustained
from simulator.planning.demand import read_profile, replicas_for
from simulator.prepare import prepare

TODAY = dt.date(2026, 11, 21)
PRICE = UnitPrice(2.5, "scenario", "", "on_demand", "the scenario", "", "assumed")


def result(**change: Any) -> dict[str, Any]:
    """A run of 2 replicas of 2 GPUs: 1,000 s at 10 requests/s of 500 + 200 tokens, busy 80 %, a quarter prefill."""
    made: dict[str, Any] = {
        "name": "x",
        "run_id": "x-1",
        "warnings": [],
        "metrics": {"input_tokens": {"mean": 500.0}, "output_tokens": {"mean": 200.0}},
        "classes": [],
        "slo": {"holds": True, "close": False},
        "deployment": {"model": "meta-llama/Llama-3.1-8B-Instruct", "hardware": "h100-sxm-80gb", "devices": 4, "replicas": 2},
        "totals": {
            "duration_s": 1000.0, "window_input_tokens": 5_000_000, "window_output_tokens": 2_000_000,
            "window_completed": 10_000, "request_throughput": 10.0, "input_throughput": 5000.0,
            "output_throughput": 2000.0,
        },
        "server": {"gpu_busy_fraction": 0.8},
        "cost": {"prefill_share_of_device_time": 0.25},
    }  # fmt: skip
    return {**made, **change}


def value(found: Budget, what: str) -> float:
    (line,) = [line for line in found.lines if line.what.strip() == what]
    assert line.value is not None
    return line.value


def test_the_budget_by_hand() -> None:
    found = budget(result(), PRICE, {"power_usd_per_kwh": 0.1, "pue": 1.5}, TODAY)
    assert value(found, "hour") == 10.0
    assert value(found, "month") == 7300.0
    bill = 10.0 * 1000 / 3600
    assert value(found, "1M tokens, all") == pytest.approx(bill / 7)
    assert value(found, "1M output tokens") == pytest.approx(bill / 2)
    assert value(found, "input apart") == pytest.approx(bill * 0.25 / 5)
    assert value(found, "output apart") == pytest.approx(bill * 0.75 / 2)
    assert value(found, "idle") == pytest.approx(2.0)
    assert value(found, "power") == pytest.approx(4 * 0.7 * 1.5 * 0.1)
    apart = value(found, "input apart") * 5 + value(found, "output apart") * 2
    assert apart == pytest.approx(bill)


def test_an_offer_is_one_row_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its provider and its price a month, not in two tables of which one knows no provider."""
    monkeypatch.setenv("COLUMNS", "80")
    lines = offer_table(budget(result(), PRICE, {}, TODAY), "GPU")
    assert sum(line.startswith("  offers") for line in lines) == 1
    assert "$/month" in " ".join(lines)
    assert max(map(len, lines)) <= 80


def test_owned_hardware_is_written_off_and_powered() -> None:
    settings = {
        "purchase_usd_per_gpu": 35_040.0,
        "amortisation_years": 4.0,
        "power_usd_per_kwh": 0.1,
        "pue": 1.0,
    }
    found = budget(result(), PRICE, settings, TODAY)
    assert value(found, "owned") == pytest.approx(4 * 1.0 + 0.28)


def test_every_line_shows_its_arithmetic() -> None:
    found = budget(result(), PRICE, {}, TODAY)
    assert all(line.arithmetic for line in found.lines)
    assert {offer["commitment"] for offer in found.offers} >= {"on_demand", "spot"}
    assert all(offer["date"] for offer in found.offers)
    assert all(
        offer["usd_per_month"] == pytest.approx(offer["usd_per_gpu_hour"] * 4 * 730) for offer in found.offers
    )


@pytest.mark.parametrize(
    ("date", "old"), [("2026-11-01", False), ("2026-01-01", True), ("2024", True), ("", False)]
)
def test_old_prices_are_flagged(date: str, old: bool) -> None:
    assert stale(date, TODAY) is old


def test_an_unknown_price_is_refused_in_words() -> None:
    with pytest.raises(InputError, match="no price is known") as caught:
        known(None, "h800-sxm-80gb")
    assert "usd_per_gpu_hour" in str(caught.value.mend)
    assert "cost.purchase_usd_per_gpu" in str(caught.value.mend)


@pytest.mark.parametrize(
    ("hardware", "price", "owned"), [("apple-m4-max-40c-64gb", 3_504.0, True), ("h100-sxm-80gb", 30_000.0, False)]
)
def test_bought_hardware_without_a_rent_is_written_off(hardware: str, price: float, owned: bool) -> None:
    """$3,504 over four years of 8,760 h are $0.10 an hour, 100 W x PUE 1.5 at $0.20/kWh $0.03; a rent that is listed stands."""
    cost = {"purchase_usd_per_gpu": price, "amortisation_years": 4.0, "power_usd_per_kwh": 0.2, "pue": 1.5}
    workload = {"arrivals": {"kind": "batch"}, "requests": 2, "prompt_tokens": 10, "output_tokens": 10}
    engine = "mlx_lm" if owned else "vllm"
    deployment = {"engine": engine, "hardware": hardware}
    scenario = {"model": "Llama-3.1-8B", "deployment": deployment, "workload": workload, "cost": cost}
    prepared = prepare(load_scenario(scenario))
    assert prepared.price is not None
    assert (prepared.price.commitment == "owned") is owned
    assert any("cost.purchase_usd_per_gpu" in text for text in prepared.warnings) is not owned
    if owned:
        assert prepared.device.tdp_w.value == 100.0
        assert prepared.price.usd_per_gpu_hour == pytest.approx(0.10 + 0.03)
        asked = {**scenario, "cost": {**cost, "spot": True}}  # which nobody offers
        assert prepare(load_scenario(asked)).price is None


def test_a_million_requests_a_day_by_hand() -> None:
    """1,000,000 / 86,400 = 11.57/s; with 30 % headroom 15.05/s; at 5/s a replica 4 replicas = 8 GPUs = $20/hour."""
    found = fleet(result(), PRICE, requests_per_day=1_000_000, headroom=0.3)
    assert value(found, "mean demand") == pytest.approx(11.574074)
    assert value(found, "replicas needed") == 4
    assert value(found, "hour") == 20.0
    assert value(found, "month") == 14_600.0
    requests = 1_000_000 * 730 / 24
    assert value(found, "1M output tokens") == pytest.approx(14_600 / (requests * 200 / 1e6))
    assert value(found, "used") == pytest.approx(11.574074 / 20)
    assert any("N+1 holds" in note for note in found.notes)


def test_a_failure_that_breaks_the_slo_is_said() -> None:
    found = fleet(result(), PRICE, requests_per_day=1_600_000, headroom=0.05)
    assert value(found, "replicas needed") == 4  # 18.5 * 1.05 / 5 = 3.9
    assert value(found, "one replica fails") == pytest.approx(15 / (1_600_000 / 86_400))
    assert any("N+1 does not hold" in note and "5 replicas" in note for note in found.notes)


def test_an_overloaded_run_carries_what_it_completed() -> None:
    over = result(
        overload={"offered_per_s": 30.0, "sustainable_per_s": 8.0, "backlog": 99}, slo={"holds": False, "close": False}
    )
    assert sustained(over).per_replica_per_s == 4.0
    found = fleet(over, PRICE, requests_per_day=1_000_000, headroom=0.0)
    assert value(found, "replicas needed") == 3
    assert any("misses its SLO" in note for note in found.notes)
    recorded = result(overload={"offered_per_s": 30.0, "sustainable_per_s": 6.0, "backlog": 9})
    assert sustained(recorded).per_replica_per_s == 3.0


def test_a_run_without_a_completed_request_cannot_be_scaled() -> None:
    totals = {**result()["totals"], "request_throughput": 0.0}
    with pytest.raises(InputError, match="completed no request"):
        fleet(result(totals=totals), PRICE, requests_per_day=10, headroom=0.0)


@given(st.floats(0.01, 1e4), st.floats(0, 3), st.floats(0.01, 100))
def test_replicas_carry_the_demand_and_one_fewer_would_not(rate: float, headroom: float, each: float) -> None:
    n = replicas_for(rate, headroom, each)
    assert n * each >= rate * (1 + headroom) * (1 - 1e-6)
    assert n == 1 or (n - 1) * each < rate * (1 + headroom)


def write(tmp_path: Path, name: str, text: str) -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_a_profile_by_hour_and_weekday(tmp_path: Path) -> None:
    hours = [1] * 12 + [3] * 12
    found = read_profile(write(tmp_path, "p.yaml", f"hours: {hours}\nweekdays: {{sat: 0, sun: 0}}\n"))
    assert sum(found.hourly) == pytest.approx(168)
    assert found.peak == pytest.approx(3 / (2 * 5 / 7))
    assert found.hourly[5 * 24] == 0
    rows = [f"{day},{hour},{0 if day in ('sat', 'sun') else hours[hour]}"
            for day in ("mon", "tue", "wed", "thu", "fri", "sat", "sun") for hour in range(24)]  # fmt: skip
    same = read_profile(write(tmp_path, "p.csv", "weekday,hour,demand\n" + "\n".join(rows)))
    assert same.hourly == pytest.approx(found.hourly)


def test_a_flat_profile_changes_nothing(tmp_path: Path) -> None:
    flat = read_profile(write(tmp_path, "p.yaml", f"hours: {[2] * 24}\n"))
    plain = fleet(result(), PRICE, requests_per_day=1_000_000, headroom=0.3)
    with_profile = fleet(result(), PRICE, requests_per_day=1_000_000, headroom=0.3, profile=flat)
    assert value(with_profile, "replicas needed") == value(plain, "replicas needed")
    assert value(with_profile, "month, scaled hourly") == pytest.approx(value(plain, "month"))


def test_following_a_profile_costs_less_than_its_peak(tmp_path: Path) -> None:
    day = read_profile(write(tmp_path, "p.yaml", f"hours: {[1] * 12 + [3] * 12}\n"))
    found = fleet(result(), PRICE, requests_per_day=1_000_000, headroom=0.0, profile=day)
    low, high = math.ceil(11.574 * 0.5 / 5), math.ceil(11.574 * 1.5 / 5)
    assert value(found, "replicas needed") == high
    assert value(found, "month, scaled hourly") == pytest.approx((low + high) / 2 * 2 * 2.5 * 730)


def test_without_a_demand_the_run_is_the_busiest_hour(tmp_path: Path) -> None:
    day = read_profile(write(tmp_path, "p.yaml", f"hours: {[1] * 12 + [3] * 12}\n"))
    found = fleet(result(), PRICE, requests_per_day=None, headroom=0.0, profile=day)
    assert value(found, "peak demand") == pytest.approx(10.0)
    assert value(found, "replicas needed") == 2


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.yaml", "hours: [1, 2]\n", "24 numbers"),
        ("p.yaml", "ours: [1]\n", "24 numbers"),
        ("p.yaml", f"hours: {[0] * 24}\n", "not all zero"),
        ("p.yaml", f"hours: {[-1] * 24}\n", "numbers from 1e-12 to 1e+12"),
        ("p.yaml", f"hours: {[1e308] * 24}\n", "numbers from 1e-12 to 1e+12"),
        ("p.yaml", f"hours: {['x'] * 24}\n", "not a number"),
        ("p.yaml", f"hours: {[1] * 24}\nweekdays: {{som: 1}}\n", "no weekday"),
        ("p.yaml", f"hours: {[1] * 24}\ndays: 3\n", "unknown key"),
        ("p.csv", "time,load\n1,2\n", "columns hour and demand"),
        ("p.csv", "hour,demand\n25,2\n", "no hour"),
        ("p.csv", "hour,demand\n1,2\n1,3\n", "twice"),
        ("p.csv", "hour,demand\n1,2\n", "missing"),
    ],
)
def test_bad_profiles_are_refused_in_words(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_profile(write(tmp_path, name, text))
    assert words in caught.value.message


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        read_profile(tmp_path / "none.yaml")
