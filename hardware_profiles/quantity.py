"""A number that knows where it comes from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

Kind = Literal["datasheet", "measured", "fitted", "assumed"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Quantity:
    """A value with its unit and provenance.

    value : the number, in `unit`.
    unit : ``byte``, ``byte/s``, ``FLOP/s``, ``W``, ``USD/GPU-hour``...
    source : the document, file or listing it was read in.
    date : date of that source, ``YYYY[-MM[-DD]]``.
    kind : ``datasheet`` (the vendor's or provider's figure as read in the source), ``measured``, ``fitted``,
        ``assumed`` (nothing at hand confirms it, or a rule of thumb that the note states).
    note : what a reader should know besides.
    """

    value: float
    unit: str
    source: str
    date: str
    kind: Kind
    note: str = ""

    def __float__(self) -> float:
        return float(self.value)

    def provenance(self, what: str) -> dict[str, Any]:
        """Return the quantity as a flat record for manifests and ``show``, `what` naming it."""
        return {
            "what": what,
            "value": self.value,
            "unit": self.unit,
            "kind": self.kind,
            "source": self.source,
            "date": self.date,
            "note": self.note,
        }


def read_quantity(raw: Any, sources: Mapping[str, Mapping[str, str]], where: str) -> Quantity:
    """Return the quantity written as ``{value, unit, kind, source[, note]}``; `source` is a key of `sources`.

    Raises InputError, naming `where`, when a part is missing, the kind is unknown or the value is not finite.
    """
    if not isinstance(raw, Mapping) or not {"value", "unit", "kind", "source"} <= set(raw):
        raise InputError("a number needs value, unit, kind and source", where=where, mend="write all four")
    extra = set(raw) - {"value", "unit", "kind", "source", "note"}
    if extra:
        raise InputError(f"unknown key '{min(extra)}' beside a number", where=where, mend="remove it")
    value, kind, source = raw["value"], raw["kind"], sources.get(raw["source"])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"'{value}' is not a finite number", where=where, mend="write for example 3.35e+12")
    if kind not in KINDS:
        raise InputError(f"unknown kind '{kind}'", where=where, mend=f"one of {', '.join(KINDS)}")
    if source is None or not source.get("ref") or not source.get("date"):
        raise InputError(
            f"source '{raw['source']}' is not described",
            where=where,
            mend="give its ref and date under sources",
        )
    return Quantity(value, raw["unit"], source["ref"], str(source["date"]), kind, raw.get("note", ""))
