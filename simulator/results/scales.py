"""How large errors are where clients wait: a scale that load, engine, device and model make wider or narrower.

The logarithm of a half-width is a sum: a base, and for each factor of a setting what its level adds. A level without evidence
adds what is not known of it (`Scale.unseen`), so a setting is the wider the less it shares with what was measured. Who
measured is one of the factors: a server of a source that is among the evidence (its host, launch scripts and client) is known
better than anybody else's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from hardware_profiles.records import dataclass

FACTORS = ("source", "load", "engine", "device", "model", "setting", "ranks")
"""Model: kind of model and width of its weights. Setting: engine, device and model together. Ranks: whether each has requests of
its own."""
TOLD = 1.15
"""By how much a level widens before words say so (assumed)."""


@dataclass(frozen=True)
class Scale:
    """Half-widths of a metric.

    log_base_width : logarithm of the log half-width of an even mixture of what was measured. factors : what the levels of each
    factor add to it. unseen : what a level of it adds that was not measured. log_ratio : logarithm of measured over predicted in
    the median source, about which lie the errors of one that was not measured. experiments, sources : behind it.
    """

    log_base_width: float
    factors: Mapping[str, Mapping[str, float]]
    unseen: Mapping[str, float]
    log_ratio: float = 0.0
    experiments: int = 0
    sources: int = 0

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> Scale:
        """From its JSON form (`as_dict`)."""
        return cls(**stored)

    def as_dict(self) -> dict[str, Any]:
        """Its JSON form, rounded."""
        told = asdict(self)
        told["log_base_width"], told["log_ratio"] = round(self.log_base_width, 4), round(self.log_ratio, 4)
        told["factors"] = {name: {k: round(v, 4) for k, v in sorted(of.items())} for name, of in self.factors.items()}
        told["unseen"] = {name: round(value, 4) for name, value in self.unseen.items()}
        return told

    def added(self, factor: str, level: str) -> float:
        """What a level adds to the logarithm of the width."""
        return self.factors.get(factor, {}).get(level, self.unseen.get(factor, 0.0))

    def half_width(self, levels: Mapping[str, str]) -> float:
        """Log half-width of a setting: the level of each factor."""
        return math.exp(self.log_base_width + sum(self.added(factor, level) for factor, level in levels.items()))

    def center(self, levels: Mapping[str, str]) -> float:
        """Logarithm of the middle of an interval over the predicted value."""
        return 0.0 if levels.get("source") in self.factors.get("source", {}) else self.log_ratio

    def reasons(self, levels: Mapping[str, str]) -> list[str]:
        """What makes a setting wider than the mixture, in words, the most first; then what was never measured."""
        known = {f: self.added(f, level) for f, level in levels.items() if level in self.factors.get(f, {})}
        wider = sorted((f for f in known if known[f] > math.log(TOLD)), key=lambda f: -known[f])
        words = {f: "such runs" if f == "setting" else levels[f] for f in levels}
        out = [f"{words[f]} err {math.exp(known[f]):.1f} times as much" for f in wider]
        missing = [levels[f] for f in ("load", "engine", "device", "model") if f in levels and f not in known]
        if not missing and "setting" in levels and "setting" not in known:
            missing = ["this engine, device, kind of model and format together"]
        return [*out, *([f"never measured: {'; '.join(missing)}"] if missing else [])]
