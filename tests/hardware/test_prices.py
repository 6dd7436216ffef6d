"""Prices: every figure sourced and dated, the default follows its stated rule, old prices are noticed."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hardware_profiles.device import device_names
from hardware_profiles.errors import InputError
from hardware_profiles.prices import (
    COMMITMENTS,
    PRICES_FILE,
    api_prices,
    default_price,
    electricity,
    first_day,
    is_stale,
    market_ranges,
    prices_for,
    pue,
    purchase_price,
    read_prices,
    wall_power_w,
)
from hardware_profiles.quantity import KINDS, Quantity

BOOK = read_prices()


def quantities() -> list[Quantity]:
    return [
        *(p.usd_per_gpu_hour for p in BOOK.rentals),
        *(p.usd for p in BOOK.purchases.values()),
        *(q for m in BOOK.market for q in (m.low_usd_per_gpu_hour, m.high_usd_per_gpu_hour)),
        *(q for a in BOOK.apis for q in (a.usd_per_million_input, a.usd_per_million_output)),
        *(q for _, _, q in BOOK.discounts.values()),
        *BOOK.wall_power_w.values(),
        *BOOK.electricity.values(),
        BOOK.pue,
    ]


def test_every_figure_is_sourced_and_dated() -> None:
    assert len(quantities()) > 100
    for q in quantities():
        assert q.unit
        assert q.source.strip()
        assert q.kind in KINDS
        assert re.fullmatch(r"20\d\d(-\d{2}){0,2}", q.date), q
        assert q.value > 0


def test_prices_name_known_devices() -> None:
    known = set(device_names())
    assert {p.device for p in BOOK.rentals} <= known
    assert set(BOOK.purchases) <= known
    assert set(BOOK.wall_power_w) <= known
    assert {m.device for m in BOOK.market} <= known


def test_rental_prices_are_plausible() -> None:
    for p in BOOK.rentals:
        assert 0.1 <= p.usd_per_gpu_hour.value <= 20, p
        assert p.gpus_per_instance in (1, 2, 4, 8), p
        assert p.commitment in COMMITMENTS
    for low, high, _ in BOOK.discounts.values():
        assert 0 < low < high < 1


def test_prices_are_filtered_and_sorted() -> None:
    on_demand = prices_for("H100", "on_demand")
    values = [p.usd_per_gpu_hour.value for p in on_demand]
    assert values == sorted(values)
    assert {p.commitment for p in on_demand} == {"on_demand"}
    at_aws = prices_for("h100-sxm-80gb", "on_demand", "aws")
    assert {p.provider for p in at_aws} == {"AWS"}
    assert 6.88 in [p.usd_per_gpu_hour.value for p in at_aws]  # p5.48xlarge: 55.04 USD/h for eight
    assert prices_for("a30") == []


def test_the_default_is_the_median_over_providers_by_hand() -> None:
    price = default_price("h100-sxm-80gb")
    assert price is not None
    # AWS 6.88, Azure 12.29, GCP 10.98, Lambda 3.99, Nebius 3.85, RunPod 2.69 and 3.99, Vast 2.40, dstack 2.95
    assert price.usd_per_gpu_hour.value == 3.99
    assert price.provider == "median of 9 providers"
    assert "Lambda 3.99" in price.usd_per_gpu_hour.note
    assert price.usd_per_gpu_hour.kind == "assumed"


def test_one_provider_is_its_own_median() -> None:
    price = default_price("mi325x")
    assert price is not None
    assert (price.provider, price.usd_per_gpu_hour.value) == ("TensorWave", 1.95)
    assert price.gpus_per_instance == 1


def test_the_newest_listing_of_a_provider_counts() -> None:
    price = default_price("a10g")  # 1.21 in 2024, 1.006 in 2026
    assert price is not None
    assert price.usd_per_gpu_hour.value == 1.006


def test_a_device_without_a_price_has_none() -> None:
    assert default_price("a30-24gb") is None
    assert default_price("a30-24gb", "spot") is None
    assert purchase_price("a30-24gb") is None


def test_spot_keeps_the_ratio_that_a_provider_lists() -> None:
    base, spot = default_price("h100"), default_price("h100", "spot")
    assert base is not None
    assert spot is not None
    # GCP lists a3-highgpu-1g at 10.9791 on demand and 6.571 spot
    assert spot.usd_per_gpu_hour.value == pytest.approx(base.usd_per_gpu_hour.value * 6.571 / 10.9791)
    assert spot.commitment == "spot"
    assert "GCP" in spot.usd_per_gpu_hour.note


def test_a_commitment_without_listings_takes_the_middle_of_the_discount() -> None:
    base, reserved = default_price("mi300x"), default_price("mi300x", "reserved_3y")
    assert base is not None
    assert reserved is not None
    assert reserved.usd_per_gpu_hour.value == pytest.approx(
        base.usd_per_gpu_hour.value * 0.5
    )  # 30 to 70 % off
    assert "30% to 70%" in reserved.usd_per_gpu_hour.note
    assert reserved.usd_per_gpu_hour.kind == "assumed"


@pytest.mark.parametrize("device", sorted({p.device for p in BOOK.rentals}))
def test_committing_is_never_dearer_than_on_demand(device: str) -> None:
    base = default_price(device)
    assert base is not None
    for commitment in COMMITMENTS[1:]:
        price = default_price(device, commitment)
        assert price is not None
        assert 0 < price.usd_per_gpu_hour.value < base.usd_per_gpu_hour.value


def test_a_named_provider_is_taken_or_refused_in_words() -> None:
    price = default_price("h100", provider="lambda")
    assert price is not None
    assert price.usd_per_gpu_hour.value == 3.99
    with pytest.raises(InputError, match="no on_demand price of h100-sxm-80gb at 'Acme'") as caught:
        default_price("h100", provider="Acme")
    assert "AWS" in (caught.value.mend or "")


def test_unknown_words_are_input_errors() -> None:
    with pytest.raises(InputError, match="unknown commitment 'on-demand'") as caught:
        prices_for("h100", "on-demand")
    assert "on_demand" in (caught.value.mend or "")
    with pytest.raises(InputError, match="no electricity price"):
        electricity("atlantis")
    with pytest.raises(InputError, match="unknown hardware"):
        default_price("no-such-gpu")


@pytest.mark.parametrize(
    ("date", "day"), [("2025", (2025, 1, 1)), ("2026-03", (2026, 3, 1)), ("2026-11-09", (2026, 11, 9))]
)
def test_a_date_without_a_day_counts_from_its_first(date: str, day: tuple[int, int, int]) -> None:
    assert first_day(date) == dt.date(*day)


def test_old_prices_are_noticed() -> None:
    aws = next(p for p in prices_for("h100", "on_demand", "AWS") if p.instance == "p5.48xlarge")  # 2026-11-09
    assert not is_stale(aws, dt.date(2026, 11, 21))
    assert not is_stale(aws, dt.date(2026, 11, 9) + dt.timedelta(days=180))
    assert is_stale(aws, dt.date(2026, 11, 9) + dt.timedelta(days=181))
    assert is_stale(aws, dt.date(2026, 11, 21), days=7)
    assert is_stale(electricity("us"), dt.date(2026, 11, 21))


def test_owning() -> None:
    h100 = purchase_price("h100")
    assert h100 is not None
    assert h100.usd.value == 30000
    assert 0.02 < electricity("us").value < electricity("EU").value < 1
    assert 1 < pue().value < 3
    mac = wall_power_w("apple-m3-ultra-80c-512gb")
    assert mac is not None
    assert (mac.value, mac.kind) == (227, "measured")


def test_api_prices() -> None:
    prices = api_prices()
    outputs = [a.usd_per_million_output.value for a in prices]
    assert outputs == sorted(outputs)
    assert all(a.usd_per_million_input.value < a.usd_per_million_output.value for a in prices)
    mini = next(a for a in prices if a.model == "gpt-4o-mini")
    assert (mini.usd_per_million_input.value, mini.usd_per_million_output.value) == (0.15, 0.6)


def test_defaults_lie_near_what_surveys_say() -> None:
    for device in ("a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb"):
        price = default_price(device)
        assert price is not None
        low = min(m.low_usd_per_gpu_hour.value for m in market_ranges(device))
        high = max(m.high_usd_per_gpu_hour.value for m in market_ranges(device))
        assert low <= price.usd_per_gpu_hour.value <= high


def test_a_price_without_a_source_is_refused(tmp_path: Path) -> None:
    text = PRICES_FILE.read_text()
    path = tmp_path / "prices.yaml"
    path.write_text(text.replace("source: lambda-plans}", "source: nowhere}", 1))
    with pytest.raises(InputError, match="incomplete price") as caught:
        read_prices(path)
    assert "rentals" in (caught.value.where or "")


def test_prices_of_one_device_are_read_by_themselves() -> None:
    for device in {price.device for price in BOOK.rentals}:
        listed = [price for price in BOOK.rentals if price.device == device]
        assert prices_for(device) == sorted(listed, key=lambda p: (p.usd_per_gpu_hour.value, p.provider, p.instance))
    assert prices_for("xeon-8592-1s") == []


def test_no_heavy_module_is_loaded() -> None:
    code = """
import sys
from hardware_profiles.prices import default_price
assert default_price("h100") is not None
heavy = {"pandas", "pydantic", "pyarrow", "scipy", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
