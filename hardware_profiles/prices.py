"""Prices: renting and buying hardware, power, hosted APIs; each figure with its source and date.

The list is ``prices.yaml``. Rental prices of one GPU differ severalfold between providers, so the default is
the median over providers, said in words in its note; who knows better names a provider or sets a price.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

from hardware_profiles.device import resolve_device
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.quantity import KINDS, Quantity
from hardware_profiles.records import dataclass

try:
    from yaml import CSafeLoader as _Loader
except ImportError:  # PyYAML built without libyaml: slower, the same result
    from yaml import SafeLoader as _Loader  # type: ignore[assignment]

PRICES_FILE = Path(__file__).parent / "prices.yaml"

Commitment = Literal["on_demand", "reserved_1y", "reserved_3y", "spot"]
COMMITMENTS: tuple[str, ...] = get_args(Commitment)

#: Prices older than this against the newest of the same device do not enter its median: they describe another
#: market. kind: assumed, 2026-11-21.
MEDIAN_WINDOW_DAYS = 730


@dataclass(frozen=True)
class Price:
    """What one device costs to rent [USD/GPU-hour]; a CPU device is a whole machine.

    `instance` and `gpus_per_instance` say in what unit it is sold ("" and 1 where the listing does not).
    """

    provider: str
    region: str
    device: str
    commitment: Commitment
    usd_per_gpu_hour: Quantity
    instance: str = ""
    gpus_per_instance: int = 1


@dataclass(frozen=True)
class Purchase:
    """What one device costs to own: a card alone, or the whole machine where `item` is one [USD]."""

    device: str
    item: str
    usd: Quantity


@dataclass(frozen=True)
class ApiPrice:
    """What a hosted API charges [USD per million tokens]."""

    provider: str
    model: str
    usd_per_million_input: Quantity
    usd_per_million_output: Quantity


@dataclass(frozen=True)
class MarketRange:
    """What the market as a whole asks for a device [USD/GPU-hour], `what` naming the survey."""

    device: str
    what: str
    low_usd_per_gpu_hour: Quantity
    high_usd_per_gpu_hour: Quantity


@dataclass(frozen=True)
class PriceBook:
    """The whole list; `discounts` holds (low, high, provenance) as fractions off the on-demand price."""

    rentals: tuple[Price, ...]
    discounts: Mapping[str, tuple[float, float, Quantity]]
    market: tuple[MarketRange, ...]
    purchases: Mapping[str, Purchase]
    wall_power_w: Mapping[str, Quantity]
    electricity: Mapping[str, Quantity]
    pue: Quantity
    apis: tuple[ApiPrice, ...]


def first_day(date: str) -> dt.date:
    """Return the first day of ``YYYY``, ``YYYY-MM`` or ``YYYY-MM-DD``."""
    parts = [int(p) for p in date.split("-")]
    return dt.date(*[*parts, 1, 1][:3])


def _quantity(
    row: Mapping[str, Any], key: str, unit: str, sources: Mapping[str, str], where: str
) -> Quantity:
    try:
        value, date, kind, source = float(row[key]), str(row["date"]), row["kind"], sources[row["source"]]
        first_day(date)
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"incomplete price: {error}", where=where, mend="give value, date, kind, source"
        ) from None
    if kind not in KINDS or not value > 0:
        raise InputError(f"price of {value} of kind '{kind}'", where=where, mend=f"kinds: {', '.join(KINDS)}")
    return Quantity(value, unit, source, date, kind, row.get("note", ""))


def _rental(row: Mapping[str, Any], sources: Mapping[str, str], file: str) -> Price:
    if row["commitment"] not in COMMITMENTS:
        raise InputError(f"unknown commitment '{row['commitment']}'", where=f"{file}: {row['device']}")
    usd = _quantity(row, "usd_per_gpu_hour", "USD/GPU-hour", sources, f"{file}: rentals {row['device']}")
    sold = (row.get("instance", ""), row.get("gpus_per_instance", 1))
    return Price(row["provider"], row.get("region", ""), row["device"], row["commitment"], usd, *sold)


@lru_cache(maxsize=1)
def _sections() -> dict[str, str]:
    """The text of the list by its keys."""
    text = PRICES_FILE.read_text(encoding="utf-8")
    return {found[1]: found[0] for found in re.finditer(r"^(\w+):(?:.*\n)(?:[ #].*\n)*", text, re.MULTILINE)}


@lru_cache(maxsize=1)
def _sources() -> dict[str, str]:
    sources: dict[str, str] = yaml.load(_sections()["sources"], Loader=_Loader)["sources"]
    return sources


@cache
def _rentals(device: str) -> tuple[Price, ...]:
    """The listed rental prices of a device. Each stands on a line of its own, and to parse the other lines takes time."""
    rows = [line for line in _sections()["rentals"].splitlines() if line.startswith(f"  - {{device: {device},")]
    return tuple(_rental(row, _sources(), PRICES_FILE.name) for row in yaml.load("\n".join(rows), Loader=_Loader) or ())


@lru_cache(maxsize=2)
def read_prices(path: Path = PRICES_FILE) -> PriceBook:
    """Return the price list of `path`; raises InputError naming the row when a part of a price is missing."""
    raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    sources: Mapping[str, str] = raw["sources"]

    def q(row: Mapping[str, Any], key: str, unit: str, section: str) -> Quantity:
        name = row.get("device") or row.get("model") or row.get("region") or ""
        return _quantity(row, key, unit, sources, f"{path.name}: {section} {name}".rstrip())

    discounts = {
        c: (float(r["low"]), float(r["high"]), q(r, "low", "fraction off", "discounts"))
        for r in raw["discounts"]
        for c in r["commitments"]
    }
    market = [
        MarketRange(
            r["device"],
            r.get("note", ""),
            q(r, "low", "USD/GPU-hour", "market"),
            q(r, "high", "USD/GPU-hour", "market"),
        )
        for r in raw["market"]
    ]
    apis = [
        ApiPrice(
            r["provider"],
            r["model"],
            q(r, "usd_per_million_input", "USD/Mtoken", "apis"),
            q(r, "usd_per_million_output", "USD/Mtoken", "apis"),
        )
        for r in raw["apis"]
    ]
    return PriceBook(
        rentals=tuple(_rental(row, sources, path.name) for row in raw["rentals"]),
        discounts=discounts,
        market=tuple(market),
        purchases={
            r["device"]: Purchase(r["device"], r["item"], q(r, "usd", "USD", "purchases"))
            for r in raw["purchases"]
        },
        wall_power_w={r["device"]: q(r, "watt", "W", "wall_power") for r in raw["wall_power"]},
        electricity={r["region"]: q(r, "usd_per_kwh", "USD/kWh", "electricity") for r in raw["electricity"]},
        pue=q(raw["pue"], "ratio", "ratio", "pue"),
        apis=tuple(apis),
    )


def _check_commitment(commitment: str) -> None:
    if commitment not in COMMITMENTS:
        near = nearest(commitment, list(COMMITMENTS))
        raise InputError(
            f"unknown commitment '{commitment}'",
            where="cost.commitment",
            mend=f"did you mean '{near}'?" if near else f"one of {', '.join(COMMITMENTS)}",
        )


def prices_for(device: str, commitment: str | None = None, provider: str | None = None) -> list[Price]:
    """Return the listed rental prices of a device, cheapest first; empty where none is known.

    commitment, provider : keep only these (provider without regard to case). An unknown device or commitment
    raises InputError.
    """
    name = resolve_device(device)
    if commitment is not None:
        _check_commitment(commitment)
    found = [
        p
        for p in _rentals(name)
        if (commitment is None or p.commitment == commitment)
        and (provider is None or p.provider.lower() == provider.lower())
    ]
    return sorted(found, key=lambda p: (p.usd_per_gpu_hour.value, p.provider, p.instance))


def _median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])


def _date(price: Price) -> dt.date:
    return first_day(price.usd_per_gpu_hour.date)


def _one_per_provider(listed: Sequence[Price]) -> list[Price]:
    """The cheapest of each provider's newest prices, of the confirmed ones where there are any."""
    listed = [p for p in listed if p.usd_per_gpu_hour.kind != "assumed"] or list(listed)
    newest = max(map(_date, listed))
    recent = [p for p in listed if (newest - _date(p)).days <= MEDIAN_WINDOW_DAYS]
    chosen: dict[str, Price] = {}
    for p in sorted(recent, key=lambda p: (-_date(p).toordinal(), p.usd_per_gpu_hour.value)):
        held = chosen.get(p.provider)
        near = held is not None and (_date(held) - _date(p)).days <= 31
        if held is None or (near and p.usd_per_gpu_hour.value < held.usd_per_gpu_hour.value):
            chosen[p.provider] = p
    return sorted(chosen.values(), key=lambda p: p.provider)


@lru_cache(maxsize=64)
def _median_on_demand(name: str) -> Price | None:
    listed = [p for p in _rentals(name) if p.commitment == "on_demand"]
    if not listed:
        return None
    chosen = _one_per_provider(listed)
    if len(chosen) == 1:
        return chosen[0]
    dates = [p.usd_per_gpu_hour.date for p in chosen]
    said = ", ".join(f"{p.provider} {p.usd_per_gpu_hour.value:g}" for p in chosen)
    quantity = Quantity(
        value=_median(p.usd_per_gpu_hour.value for p in chosen),
        unit="USD/GPU-hour",
        source="; ".join(sorted({p.usd_per_gpu_hour.source for p in chosen})),
        date=max(dates, key=first_day),
        kind="assumed",
        note=f"median over providers: {said}; listed {min(dates)} to {max(dates)}",
    )
    return Price(f"median of {len(chosen)} providers", "", name, "on_demand", quantity)


def default_price(device: str, commitment: str = "on_demand", provider: str | None = None) -> Price | None:
    """Return the rental price that a plan uses unless told otherwise, or None where no price is known.

    On demand: the median over providers, of each the cheapest of its newest listings; listings more than
    :data:`MEDIAN_WINDOW_DAYS` older than the newest are left out, and unconfirmed ones where a confirmed one
    exists. Another commitment: that price times the share of their on-demand price which providers listing
    both ask for it (median), else less the middle of the discount range; the note says which. With
    `provider`: its cheapest listing, and InputError where it has none.
    """
    _check_commitment(commitment)
    name = resolve_device(device)
    if provider is not None:
        listed = prices_for(name, commitment, provider)
        if not listed:
            known = sorted({p.provider for p in prices_for(name)})
            raise InputError(
                f"no {commitment} price of {name} at '{provider}'",
                where="cost.provider",
                mend=f"known: {', '.join(known) or 'none'}; or set cost.usd_per_gpu_hour",
            )
        return listed[0]
    base = _median_on_demand(name)
    if base is None or commitment == "on_demand":
        return base
    return _committed(base, name, commitment)


def _committed(base: Price, name: str, commitment: str) -> Price:
    pairs = [
        (p.provider, p.usd_per_gpu_hour.value / o.usd_per_gpu_hour.value, p.usd_per_gpu_hour)
        for p in prices_for(name, commitment)
        for o in prices_for(name, "on_demand", p.provider)
        if p.instance and p.instance == o.instance
    ]
    usd = base.usd_per_gpu_hour
    if pairs:
        share = _median(s for _, s, _ in pairs)
        why = f"{share:.3f} of the on-demand price, as at {', '.join(p for p, _, _ in pairs)}"
        source, date = "; ".join(sorted({q.source for _, _, q in pairs})), max(q.date for _, _, q in pairs)
    else:
        low, high, quantity = read_prices().discounts[commitment]
        share = 1.0 - 0.5 * (low + high)
        why = f"{low:.0%} to {high:.0%} off the on-demand price, the middle of it"
        source, date = quantity.source, quantity.date
    note = f"{why}; on demand {usd.value:g} ({base.provider})"
    quantity = Quantity(usd.value * share, "USD/GPU-hour", f"{usd.source}; {source}", date, "assumed", note)
    return replace(base, commitment=commitment, usd_per_gpu_hour=quantity)  # type: ignore[arg-type]


def is_stale(price: Price | Quantity, today: dt.date, days: int = 180) -> bool:
    """Return whether a price is older than `days` on `today`; a date without a day counts from its first."""
    quantity = price.usd_per_gpu_hour if isinstance(price, Price) else price
    return (today - first_day(quantity.date)).days > days


def purchase_price(device: str) -> Purchase | None:
    """Return what the device costs to own, or None where no figure is known."""
    return read_prices().purchases.get(resolve_device(device))


def wall_power_w(device: str) -> Quantity | None:
    """Return the measured power of a whole machine with this device under load [W], or None."""
    return read_prices().wall_power_w.get(resolve_device(device))


def electricity(region: str = "us") -> Quantity:
    """Return the price of electricity of a region [USD/kWh]; an unknown region raises InputError."""
    known = read_prices().electricity
    if region.lower() not in known:
        raise InputError(
            f"no electricity price for region '{region}'",
            where="cost.region",
            mend=f"known: {', '.join(known)}; or set cost.power_usd_per_kwh",
        )
    return known[region.lower()]


def pue() -> Quantity:
    """Return the assumed power usage effectiveness: facility power over machine power [ratio]."""
    return read_prices().pue


def api_prices() -> list[ApiPrice]:
    """Return what hosted APIs charge, cheapest output first."""
    return sorted(read_prices().apis, key=lambda a: (a.usd_per_million_output.value, a.provider, a.model))


def market_ranges(device: str) -> list[MarketRange]:
    """Return what surveys say the market asks for a device, to set a default price beside."""
    name = resolve_device(device)
    return [m for m in read_prices().market if m.device == name]
