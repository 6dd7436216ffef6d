"""Numbers as a person reads them: as many digits as mean something."""

from __future__ import annotations

import math

DIGITS = 4
"""Significant digits of a constant."""
PREFIXES = {-9: "n", -6: "u", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
SCALED = {"s": "s", "byte": "B", "byte/s": "B/s", "FLOP/s": "FLOP/s", "OP/s": "OP/s", "Hz": "Hz"}
"""Units that take a prefix, and how they are written with one."""


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separators, a dash for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """Three significant digits, plain notation down to a ten-thousandth, a dash for none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.3g}"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 2 - math.floor(math.log10(size))
    return f"{value:,.{digits}f}"


def dollars(value: float | None) -> str:
    """An amount in dollars."""
    if value is None:
        return "-"
    return f"${value:,.0f}" if value >= 1000 else f"${value:,.2f}" if value >= 0.1 else f"${value:,.4f}"


def constant(value: float) -> str:
    """A number of a datasheet or a fit: whole ones as they are, others to four significant digits."""
    if value == round(value) and abs(value) < 1e6:
        return f"{value:,.0f}"
    return f"{value:,.{max(0, DIGITS - 1 - math.floor(math.log10(abs(value))))}f}".rstrip("0").rstrip(".")


def quantity(value: float, unit: str) -> str:
    """A constant with its unit, in thousands or thousandths where the unit is counted so: ``85.02 GB``, ``23 us``."""
    if unit not in SCALED or value == 0:
        return f"{constant(value)} {unit}".rstrip()
    power = min(max(PREFIXES), max(min(PREFIXES), 3 * math.floor(math.log10(abs(value)) / 3)))
    if unit == "s" and power > 0:
        power = 0
    return f"{constant(value / 10**power)} {PREFIXES[power]}{SCALED[unit]}"


def count(value: float) -> str:
    """A large count in thousands, millions or billions: ``34.39 B``."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:,.{DIGITS - 1 - math.floor(math.log10(abs(value) / size))}f} {letter}"
    return f"{value:,.0f}"
