"""The price of a device-hour that a scenario pays."""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING

from hardware_profiles.device import Device
from hardware_profiles.errors import InputError
from hardware_profiles.quantity import Quantity
from simulator.cost import AMORTISATION_YEARS, HOURS_PER_YEAR, UnitPrice

if TYPE_CHECKING:
    from simulator.config.schema import Cost, Pool, Scenario


OWNED = "owned"
"""The commitment of devices that are bought."""


def unit_price(scenario: Scenario, device: Device, pool: Pool) -> UnitPrice | None:
    """Price of a device-hour: the pool's own, else the deployment's, the scenario's, the price list's, what it costs to own.

    None if none is known. Owning counts where no rental price is and none of a kind was asked for: `cost.purchase_usd_per_gpu`
    over its years, and power.
    """
    cost, own = scenario.cost, (pool, scenario.deployment)
    asked = [each.commitment for each in own if each.commitment is not None]
    commitment = asked[0] if asked else "spot" if cost.spot else (cost.commitment or "on_demand")
    stated = [each.usd_per_gpu_hour for each in (*own, cost) if each.usd_per_gpu_hour is not None]
    if stated:
        return UnitPrice(
            stated[0],
            cost.provider or "scenario",
            cost.region or "",
            commitment,
            "the scenario",
            "",
            "assumed",
        )
    from hardware_profiles.prices import default_price, prices_for

    if cost.region is None:
        price = default_price(device.name, commitment, cost.provider)
    else:
        offers = prices_for(device.name, commitment=commitment, provider=cost.provider)
        known = sorted({offer.region for offer in offers if offer.region})
        offers = [offer for offer in offers if offer.region == cost.region]
        if not offers:
            raise InputError(
                f"no {commitment} price of {device.name} in region '{cost.region}'",
                where="cost.region",
                mend=f"known regions: {', '.join(known) or 'none'}; or give cost.usd_per_gpu_hour",
            )
        price = min(offers, key=lambda offer: offer.usd_per_gpu_hour.value)
    if price is None:
        rented = asked or cost.spot or cost.commitment or cost.provider
        return None if rented else _owned(cost, device, pool.power_limit_w)
    q = price.usd_per_gpu_hour
    # A commitment without a provider is the on-demand median scaled, whatever its providers list for the commitment.
    scaled = commitment != "on_demand" and cost.provider is None and cost.region is None
    provider = f"estimate from on_demand ({price.provider})" if scaled else price.provider
    return UnitPrice(q.value, provider, price.region or "", price.commitment, q.source, q.date, q.kind)


def _owned(cost: Cost, device: Device, limit_w: float | None) -> UnitPrice | None:
    """Purchase over its years and power, for an hour of a device [USD]; None where the scenario names no purchase."""
    from hardware_profiles.prices import electricity, pue

    if cost.purchase_usd_per_gpu is None:
        return None
    watt, _ = drawn_w(device, limit_w)
    per_kwh = electricity().value if cost.power_usd_per_kwh is None else cost.power_usd_per_kwh
    years = cost.amortisation_years or AMORTISATION_YEARS
    hourly = cost.purchase_usd_per_gpu / (years * HOURS_PER_YEAR) + watt / 1000 * (cost.pue or pue().value) * per_kwh
    return UnitPrice(hourly, f"purchase over {years:g} years and power", "", OWNED, "the scenario", "", "assumed")


def drawn_w(device: Device, limit_w: float | None) -> tuple[float, str]:
    """Power that a device is charged for [W], and in words which: its limit, the whole machine's, or the most it draws."""
    from hardware_profiles.prices import wall_power_w

    if limit_w is not None:
        return limit_w, "power limit"
    wall = wall_power_w(device.name)
    return (wall.value, "at the wall") if wall else (device.tdp_w.value, "TDP: the most it draws")


def reading_day() -> dt.date:
    """The day on which prices are judged stale: today, or that of SOURCE_DATE_EPOCH for output that must not change."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    return dt.datetime.fromtimestamp(int(epoch), dt.UTC).date() if epoch.isdigit() else dt.date.today()


def stale(date: str, today: dt.date) -> bool:
    """Whether a price of that date is old; one without a date is the user's own and never is."""
    from hardware_profiles import prices

    return bool(date) and prices.is_stale(Quantity(1.0, "", "", date, "assumed", ""), today)
