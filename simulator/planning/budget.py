"""The budget of a run: every figure with the arithmetic that gives it.

    budget(result, price, ...)   what the run's deployment costs, by the hour, the month and the token
    fleet(result, price, ...)    how many replicas a demand needs, what they cost, what a failure does

Rates, tokens and busy shares are the run's (its measured window); prices are the price list's or the scenario's.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from hardware_profiles import prices
from hardware_profiles.device import device_word, load_device
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.cost import AMORTISATION_YEARS, HOURS_PER_MONTH, HOURS_PER_YEAR, UnitPrice
from simulator.planning.demand import HOURS_PER_WEEK, Profile, replicas_for
from simulator.planning.points import judged, overload_of
from simulator.price import OWNED, drawn_w, stale

SECONDS_PER_DAY = 86400


@dataclass(frozen=True)
class Line:
    """One figure: what it is, how it comes about, its value and unit."""

    what: str
    arithmetic: str
    value: float | None
    unit: str


@dataclass
class Budget:
    """Figures in the order of reading, the offers of the price list, and remarks."""

    lines: list[Line] = field(default_factory=list)
    offers: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, what: str, arithmetic: str, value: float | None, unit: str) -> None:
        """Append a figure."""
        self.lines.append(Line(what, arithmetic, value, unit))

    def as_dict(self) -> dict[str, Any]:
        """The budget as plain data."""
        lines = [
            {"what": x.what, "arithmetic": x.arithmetic, "value": x.value, "unit": x.unit} for x in self.lines
        ]
        return {"lines": lines, "offers": self.offers, "notes": self.notes}


def counted(count: float, what: str) -> str:
    """A number of things: 1 GPU, 2,048 GPUs."""
    said = f"{count:,.4g}" if isinstance(count, float) else f"{count:,}"
    return f"{said} {what}" + ("" if count == 1 else "s")


def deployed(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """What was deployed; where replicas came and went, devices and replicas are means over the window."""
    found: Mapping[str, Any] = result["deployment"]
    if "fleet" not in result:
        return found
    devices = float(result["cost"]["devices"])
    return {**found, "devices": devices, "replicas": devices / devices_each(result)}


def devices_each(result: Mapping[str, Any]) -> int:
    """Devices of a replica, on average where pools differ."""
    found = result["deployment"]
    if "fleet" not in result:
        return int(found["devices"] // found["replicas"])
    return int(found["tensor_parallel"] * found["pipeline_parallel"] * found.get("data_parallel", 1))


def usd(value: float) -> str:
    """An amount with the digits it needs: $11,651, $15.96, $0.0547."""
    size = abs(value)
    if size < 1e-9:
        return "$0"
    return f"${value:,.0f}" if size >= 1000 else f"${value:,.2f}" if size >= 0.1 else f"${value:.3g}"


def millions(count: float) -> str:
    """A number of tokens in millions."""
    return f"{count / 1e6:,.4g} M"


def known(price: UnitPrice | None, hardware: str) -> UnitPrice:
    """Return the price, or raise InputError where there is none."""
    if price is None:
        raise InputError(
            f"no price is known for {hardware}",
            where="cost",
            mend="give one: --set cost.usd_per_gpu_hour=2.50 (`capacity-plan show hardware` lists the known); if it is bought, "
            "--set cost.purchase_usd_per_gpu=5000",
        )
    return price


def budget(
    result: Mapping[str, Any], price: UnitPrice, settings: Mapping[str, Any], today: dt.date
) -> Budget:
    """Return what the run's deployment costs.

    result : `result.json`. price : of one device. settings : the scenario's `cost` section (power, purchase).
    today : the day on which a price is judged stale.
    """
    out = Budget()
    totals, cost = result["totals"], result["cost"]
    devices, window = deployed(result)["devices"], totals["duration_s"]
    device = device_word(result["deployment"]["hardware"])
    unit = price.usd_per_gpu_hour
    hourly = devices * unit
    out.add(f"price of a {device}-hour", _price_words(price, today), unit, f"USD/{device}-hour")
    out.add("hour", f"{counted(devices, device)} x {usd(unit)}", hourly, "USD/hour")
    out.add("month", f"{usd(hourly)} x {HOURS_PER_MONTH:g} h", hourly * HOURS_PER_MONTH, "USD/month")
    bill = hourly * window / 3600
    out.add("window of the run", f"{usd(hourly)} x {window:,.0f} s / 3600", bill, "USD")
    _tokens(out, bill, totals, cost)
    for pool in result.get("pools") or () if "fleet" not in result else ():
        if "cost" in pool:  # pools side by side, each with a price
            _pool(out, pool)
    busy = result["server"]["gpu_busy_fraction"]
    out.add("idle", f"{device}s busy {busy:.1%}: {1 - busy:.1%} x {usd(hourly)}", (1 - busy) * hourly, "USD/hour")
    power = _power(out, result, settings, "the price" if price.commitment == OWNED else "a rental")
    _owned(out, result, settings, power)
    parts = parts_of(result)
    if len(parts) == 1:
        out.offers = offers(parts[0][0], devices, today)
    else:
        out.notes.append("of several kinds of devices no offers are listed: `capacity-plan show hardware` has those of each")
    _hosted(out, result)
    if any(offer["stale"] for offer in out.offers) or stale(price.date, today):
        out.notes.append("prices marked stale are older than 180 days: ask the provider")
    return out


def _price_words(price: UnitPrice, today: dt.date) -> str:
    parts = [price.provider, price.region, price.commitment, price.date or "no date", price.kind]
    return ", ".join(p for p in parts if p) + (" STALE" if stale(price.date, today) else "")


def _tokens(out: Budget, bill: float, totals: Mapping[str, Any], cost: Mapping[str, Any]) -> None:
    given, made = totals["window_input_tokens"], totals["window_output_tokens"]
    requests = totals["window_completed"]
    if requests:
        out.add("request", f"{usd(bill)} / {counted(requests, 'request')}", bill / requests, "USD/request")
    if given + made:
        words = f"{usd(bill)} / ({millions(given)} input + {millions(made)} output)"
        out.add("1M tokens, all", words, bill / (given + made) * 1e6, "USD/1M tokens")
    if made:
        out.add(
            "1M output tokens",
            f"{usd(bill)} / {millions(made)} output, input free",
            bill / made * 1e6,
            "USD/1M tokens",
        )
    share = cost["prefill_share_of_device_time"]
    if share is None:
        return
    if given:
        words = f"prefill took {share:.1%} of the device time: {usd(bill)} x {share:.4g} / {millions(given)}"
        out.add("  input apart", words, bill * share / given * 1e6, "USD/1M tokens")
    if made:
        words = f"decode took {1 - share:.1%}: {usd(bill)} x {1 - share:.4g} / {millions(made)}"
        out.add("  output apart", words, bill * (1 - share) / made * 1e6, "USD/1M tokens")


def _pool(out: Budget, pool: Mapping[str, Any]) -> None:
    """Add what one of several pools costs, and its tokens."""
    cost, device = pool["cost"], device_word(pool["hardware"])
    hourly, each = cost["usd_per_hour"], cost["usd_per_1m_total_tokens"]
    if hourly is None:
        return
    tokens = "no tokens" if each is None else f"{usd(each)} a million tokens"
    words = f"{counted(pool['devices'], device)} ({pool['hardware']}) x {usd(cost['ListUnitPrice'])}; {tokens}"
    out.add(f"  pool {pool['name']}", words, hourly, "USD/hour")


def parts_of(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """The kinds of devices deployed, and how many of each there are."""
    counts: dict[str, float] = {}
    for (hardware, _), devices in _under_limits(result).items():
        counts[hardware] = counts.get(hardware, 0) + devices
    return list(counts.items())


def _under_limits(result: Mapping[str, Any]) -> dict[tuple[str, float | None], float]:
    """Devices by kind and power limit [W], None where they have their own."""
    found = deployed(result)
    pools = found.get("pools") if "fleet" not in result else None
    counts: dict[tuple[str, float | None], float] = {}
    for pool in pools or [found]:
        key = pool["hardware"], pool.get("power_limit_w")
        counts[key] = counts.get(key, 0) + pool["devices"]
    return counts


def _power(out: Budget, result: Mapping[str, Any], settings: Mapping[str, Any], holder: str) -> float:
    """Add the power line, which says what holds it already, and return its cost [USD/hour]."""
    per_kwh = settings.get("power_usd_per_kwh")
    said = "" if per_kwh is not None else " (US average, assumed)"
    per_kwh = prices.electricity().value if per_kwh is None else per_kwh
    ratio = settings.get("pue") or prices.pue().value
    words, kilowatt = [], 0.0
    for (hardware, limit_w), devices in _under_limits(result).items():
        watt, source = drawn_w(load_device(hardware), limit_w)
        kilowatt += devices * watt * ratio / 1000
        words.append(f"{devices:.4g} x {watt:g} W ({source})")
    drawn = " + ".join(words) if len(words) == 1 else f"({' + '.join(words)})"
    out.add(
        "power",
        f"{drawn} x PUE {ratio:g} x {usd(per_kwh)}/kWh{said}; {holder} holds it",
        kilowatt * per_kwh,
        "USD/hour",
    )
    return float(kilowatt * per_kwh)


def _owned(out: Budget, result: Mapping[str, Any], settings: Mapping[str, Any], power: float) -> None:
    bought, words = 0.0, []
    for hardware, devices in parts_of(result):
        each, source = settings.get("purchase_usd_per_gpu"), "the scenario"
        if each is None:
            listed = prices.purchase_price(hardware)
            if listed is None:
                return
            each, source = listed.usd.value, f"{listed.item}, {listed.usd.date}"
        bought += devices * each
        words.append(f"{devices:.4g} x {usd(each)} ({source})")
    paid = " + ".join(words) if len(words) == 1 else f"({' + '.join(words)})"
    years = settings.get("amortisation_years")
    said = "" if years else " (assumed)"
    years = years or AMORTISATION_YEARS
    hourly = bought / (years * HOURS_PER_YEAR) + power
    out.add(
        "owned",
        f"{paid} / ({years:g} years{said} x {HOURS_PER_YEAR:,} h) + power; "
        "without host, network, staff",
        hourly,
        "USD/hour",
    )


def offers(hardware: str, devices: int, today: dt.date) -> list[dict[str, Any]]:
    """What the price list offers for the device: each commitment's listings, cheapest first, else an estimate."""
    found = []
    for commitment in prices.COMMITMENTS:
        listed = prices.prices_for(hardware, commitment)
        estimate = None if listed else prices.default_price(hardware, commitment)
        for price in [*listed, *([estimate] if estimate else [])]:
            q = price.usd_per_gpu_hour
            found.append(
                {
                    "commitment": price.commitment,
                    "provider": "estimate" if estimate and commitment != "on_demand" else price.provider,
                    "region": price.region or None,
                    "instance": price.instance or None,
                    "usd_per_gpu_hour": q.value,
                    "date": q.date,
                    "kind": q.kind,
                    "stale": prices.is_stale(price, today),
                    "usd_per_hour": q.value * devices,
                    "usd_per_month": q.value * devices * HOURS_PER_MONTH,
                    "note": q.note if estimate else "",
                }
            )
    return found


def _hosted(out: Budget, result: Mapping[str, Any]) -> None:
    """What hosted interfaces of the same model would charge for an hour of this load."""
    plain = result["deployment"]["model"].split("/")[-1].lower().removesuffix("-instruct")
    totals = result["totals"]
    hourly = [totals[name] * 3600 for name in ("input_throughput", "output_throughput")]
    for api in (a for a in prices.api_prices() if plain in a.model.lower()):
        given, made = api.usd_per_million_input.value, api.usd_per_million_output.value
        out.add(
            f"hosted: {api.provider}",
            f"{api.model} ({api.usd_per_million_input.date}): {millions(hourly[0])} x {usd(given)} + "
            f"{millions(hourly[1])} x {usd(made)}, per 1M",
            (hourly[0] * given + hourly[1] * made) / 1e6,
            "USD/hour",
        )


# -- demand -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sustained:
    """What one replica of a run carries [requests/s], and how far that is known."""

    per_replica_per_s: float
    words: str
    slo: str
    saturated: bool


def sustained(result: Mapping[str, Any]) -> Sustained:
    """Return the rate that a replica of the run sustains.

    With headroom found (``--headroom``) the highest rate that keeps the SLO. Else of an overloaded run the completion rate of
    its saturated window, an estimate of the most it can do, and of another run the rate that it completed: shown to work, but
    not the limit.
    """
    replicas = deployed(result)["replicas"]
    found = result.get("headroom") or {}
    if found.get("unit") == "requests/s" and found["judged"] and found["within_slo"]:
        limit = found["within_slo"]
        words = f"within the SLO: {limit:.4g}/s (headroom, an estimate) / {counted(replicas, 'replica')}"
        return Sustained(limit / replicas, words, "met", True)
    over = overload_of(result)
    slo = judged(result)[0]
    if over is not None:
        return Sustained(
            over[1] / replicas, f"saturated: {over[1]:.4g}/s (estimate) / {counted(replicas, 'replica')}", slo, True
        )
    rate = result["totals"]["request_throughput"]
    words = f"at least, not saturated: the run's {rate:.4g}/s / {counted(replicas, 'replica')}"
    return Sustained(rate / replicas, words, slo, False)


def fleet(
    result: Mapping[str, Any],
    price: UnitPrice,
    *,
    requests_per_day: float | None,
    headroom: float,
    profile: Profile | None = None,
) -> Budget:
    """Return the replicas that a demand needs, and what they cost.

    requests_per_day : mean demand; None: the run's load is the profile's busiest hour. headroom : capacity above the
    demand, as a fraction of it. profile : demand by hour of the week; without one every hour is alike.
    """
    out = Budget()
    carried = sustained(result)
    each = carried.per_replica_per_s
    if each <= 0:
        raise InputError("the run completed no request", where="cost", mend="cost a run that serves its load")
    mean, peak = _rates(out, result, requests_per_day, profile)
    replicas = replicas_for(peak, headroom, each)
    out.add("a replica carries", carried.words, each, "requests/s")
    words = f"{peak:.4g}/s x (1 + {headroom:g} headroom) / {each:.4g}/s, rounded up"
    out.add("replicas needed", words if carried.saturated else f"at most: {words}", replicas, "replicas")
    per_replica = devices_each(result)
    hourly = replicas * per_replica * price.usd_per_gpu_hour
    words = f"{replicas} x {counted(per_replica, device_word(result['deployment']['hardware']))} x {usd(price.usd_per_gpu_hour)}"
    out.add("hour", words, hourly, "USD/hour")
    monthly = hourly * HOURS_PER_MONTH
    out.add("month", f"{usd(hourly)} x {HOURS_PER_MONTH:g} h", monthly, "USD/month")
    if profile is not None:
        _following(out, result, price, profile, mean, headroom, each)
    _demand_tokens(out, result, mean, monthly)
    out.add("used", f"{mean:.4g}/s / ({replicas} x {each:.4g}/s)", mean / (replicas * each), "share")
    _failure(out, replicas, each, peak, hourly / replicas)
    _remarks(out, carried, profile, requests_per_day)
    return out


def _rates(
    out: Budget, result: Mapping[str, Any], requests_per_day: float | None, profile: Profile | None
) -> tuple[float, float]:
    top = profile.peak if profile else 1.0
    if requests_per_day is not None:
        mean = requests_per_day / SECONDS_PER_DAY
        out.add(
            "mean demand", f"{requests_per_day:,.0f} requests/day / {SECONDS_PER_DAY:,} s", mean, "requests/s"
        )
    else:
        over = overload_of(result)
        rate = over[0] if over else result["totals"]["request_throughput"]
        mean = rate / top
        out.add("mean demand", f"the run's {rate:.4g}/s is the busiest hour: / {top:.4g}", mean, "requests/s")
    if profile is not None:
        words = f"busiest hour of profile {profile.name}: {mean:.4g}/s x {top:.4g}"
        out.add("peak demand", words, mean * top, "requests/s")
    return mean, mean * top


def _following(
    out: Budget,
    result: Mapping[str, Any],
    price: UnitPrice,
    profile: Profile,
    mean: float,
    headroom: float,
    each: float,
) -> None:
    """The month if the fleet follows the profile hour by hour."""
    hours = sum(replicas_for(mean * share, headroom, each) for share in profile.hourly)
    per_replica = devices_each(result)
    weeks = HOURS_PER_MONTH / HOURS_PER_WEEK
    out.add(
        "month, scaled hourly",
        f"{counted(hours, 'replica-hour')}/week x {counted(per_replica, device_word(result['deployment']['hardware']))} x "
        f"{usd(price.usd_per_gpu_hour)} x {weeks:.4g} weeks",
        hours * per_replica * price.usd_per_gpu_hour * weeks,
        "USD/month",
    )


def _demand_tokens(out: Budget, result: Mapping[str, Any], mean: float, monthly: float) -> None:
    given, made = (result["metrics"][k]["mean"] or 0.0 for k in ("input_tokens", "output_tokens"))
    month = mean * 3600 * HOURS_PER_MONTH
    tokens = f"{millions(month)} requests x "
    if given + made:
        words = f"{usd(monthly)} / ({tokens}({given:,.4g} in + {made:,.4g} out))"
        out.add("1M tokens, all", words, monthly / (month * (given + made)) * 1e6, "USD/1M tokens")
    if made:
        words = f"{usd(monthly)} / ({tokens}{made:,.4g} out)"
        out.add("1M output tokens", words, monthly / (month * made) * 1e6, "USD/1M tokens")


def _failure(out: Budget, replicas: int, each: float, peak: float, hourly_each: float) -> None:
    left = (replicas - 1) * each
    words = f"({replicas} - 1) x {each:.4g}/s = {left:.4g}/s left against {peak:.4g}/s at the peak"
    out.add("one replica fails", words, left / peak, "share of the peak carried")
    if left >= peak * (1 - 1e-9):
        out.notes.append(
            "N+1 holds: with one replica lost the others still carry the peak at the rate of the run"
        )
        return
    needed = replicas_for(peak, 0.0, each) + 1
    more = (needed - replicas) * hourly_each
    out.notes.append(
        f"N+1 does not hold: the failure of a replica would break the SLO at the peak; {needed} replicas would keep it "
        f"({usd(more)}/hour more)"
    )


def _remarks(
    out: Budget, carried: Sustained, profile: Profile | None, requests_per_day: float | None
) -> None:
    if carried.slo == "missed":
        out.notes.append("the run misses its SLO: so many replicas carry the demand, but not within the SLO")
    elif carried.slo == "close":
        out.notes.append(
            "the run's SLO verdict is close: the bound lies within the error of the run or the model"
        )
    elif not carried.slo:
        out.notes.append("the run has no SLO: what a replica carries is judged by its rate alone")
    if not carried.saturated:
        out.notes.append(
            "a replica carries at least what the run offered it, perhaps more: the replicas, the hour and the month are "
            "upper bounds. Sweep the rate to find the highest that keeps the SLO, and cost that run"
        )
    if profile is None and requests_per_day is not None:
        out.notes.append(
            "without --profile the demand is even through day and week; real peaks need more replicas"
        )
