"""What a run costs: from the price of a device-hour to the price of a million tokens.

    hourly cost        = devices * price per device-hour, devices as the mean over the window
    $ / 1M tokens      = hourly cost / (tokens per hour) * 1e6       over all tokens, and over output tokens only
    input/output apart = each step's device time is attributed to its prefill and its decode rows; idle time in
                         the same ratio; the two shares of the cost are divided by input and by output tokens
"""

from __future__ import annotations

from typing import Any

from hardware_profiles.records import dataclass

HOURS_PER_MONTH = 730.0
"""365 * 24 / 12, the month of cloud price lists."""
HOURS_PER_YEAR = 8760
AMORTISATION_YEARS = 4.0
"""Years over which bought hardware is written off [years]; assumed where the scenario names none."""


@dataclass(frozen=True)
class UnitPrice:
    """Price of one device for one hour, and where it is from."""

    usd_per_gpu_hour: float
    provider: str
    region: str
    commitment: str
    source: str
    date: str
    kind: str


@dataclass(frozen=True)
class Usage:
    """What the measured window used and served; `devices` is their mean number over its time."""

    devices: float
    window_s: float
    input_tokens: int
    output_tokens: int
    requests: int
    busy_prefill_s: float
    busy_decode_s: float


def _per_million(usd: float, tokens: int) -> float | None:
    return usd / tokens * 1e6 if tokens else None


def run_cost(price: UnitPrice | None, usage: Usage) -> dict[str, Any]:
    """Cost of the window, FOCUS 1.2 column names for the bill itself; figures are null where no price is known."""
    hours = usage.window_s / 3600.0
    quantity = usage.devices * hours
    unit = price.usd_per_gpu_hour if price else None
    bill = unit * quantity if unit is not None else None
    busy = usage.busy_prefill_s + usage.busy_decode_s
    share = usage.busy_prefill_s / busy if busy else 0.0
    out: dict[str, Any] = {
        "BillingCurrency": "USD",
        "BilledCost": bill,
        "ListCost": bill,
        "EffectiveCost": bill,
        "ChargePeriodStart": None,
        "ChargePeriodEnd": None,
        "ChargeCategory": "Usage",
        "PricingUnit": "GPU-hour",
        "PricingQuantity": quantity,
        "ListUnitPrice": unit,
        "SkuId": price.commitment if price else None,
        "RegionId": price.region if price else None,
        "devices": usage.devices,
        "usd_per_hour": unit * usage.devices if unit is not None else None,
        "usd_per_month": unit * usage.devices * HOURS_PER_MONTH if unit is not None else None,
        "usd_per_request": bill / usage.requests if bill is not None and usage.requests else None,
        "usd_per_1m_total_tokens": None,
        "usd_per_1m_output_only": None,
        "usd_per_1m_input_tokens": None,
        "usd_per_1m_output_tokens": None,
        "prefill_share_of_device_time": share if busy else None,
        "method": (
            "total: bill / (input + output tokens); output_only: bill / output tokens; input, output: the bill split by the "
            "device time attributed to prefill and decode rows, idle time in the same ratio"
        ),
        "price_provider": price.provider if price else None,
        "price_source": price.source if price else None,
        "price_date": price.date if price else None,
        "price_kind": price.kind if price else None,
    }
    if bill is not None:
        out["usd_per_1m_total_tokens"] = _per_million(bill, usage.input_tokens + usage.output_tokens)
        out["usd_per_1m_output_only"] = _per_million(bill, usage.output_tokens)
        if busy:
            out["usd_per_1m_input_tokens"] = _per_million(bill * share, usage.input_tokens)
            out["usd_per_1m_output_tokens"] = _per_million(bill * (1 - share), usage.output_tokens)
    return out
