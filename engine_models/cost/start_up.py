"""What a server does before it serves, or falls asleep and wakes up, and how long that takes.

Weights are read at a rate that depends on where they lie, each device its own part at once; compilation, graph capture and
warm-up are constants of an engine. The constants, their sources and how far each is off where it was held out: `start_up.json`.
"""

from __future__ import annotations

import json
from dataclasses import fields
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from hardware_profiles.records import dataclass

Place = Literal["cache", "disk", "network"]
"""Where weights lie: in the page cache of the host, on its disk, on a shared file system."""


@dataclass(frozen=True)
class StartUp:
    """Seconds of each part, one after the other. The devices are there, and billed, once they are provisioned."""

    provisioning_s: float
    image_s: float
    weights_s: float
    compile_s: float
    graph_capture_s: float
    warm_up_s: float

    @property
    def server_s(self) -> float:
        """Time on devices that are there."""
        return sum(self.parts().values()) - self.provisioning_s

    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return {each.name: float(getattr(self, each.name)) for each in fields(self)}


@cache
def constants() -> dict[str, Any]:
    """The constants as shipped."""
    raw: dict[str, Any] = json.loads(files("engine_models.cost").joinpath("start_up.json").read_text())
    return raw


def predicted(
    engine: str,
    weight_bytes: float,
    *,
    place: Place = "disk",
    compiled: bool = False,
    captures: bool = True,
    compiles: bool = True,
    compiles_products: bool = False,
) -> tuple[StartUp, list[str]]:
    """How long a server of an engine takes to start, and what is assumed.

    Parameters
    ----------
    engine : its name.
    weight_bytes : of one device.
    place : where the weights lie. compiled : whether a filled compilation cache is there.
    captures : whether it captures graphs; most of those that do not compile nothing either.
    compiles : whether it compiles its model, if its engine does, which has a time for it of its own.
    compiles_products : whether kernels of products are compiled for each number of rows while graphs are captured.
    """
    raw = constants()
    engines, own, lender = raw["engines"], raw["engines"].get(engine, {}), raw["lender"]
    like = [giver for giver, others in raw["without_trial_run"]["lenders"].items() if engine in others]
    lenders = {"graph_capture_s": lender, "warm_up_s": like[0] if like else lender}
    compilation = "compile_cached_s" if compiled else "compile_s"
    keys = ["graph_capture_s", "warm_up_s"] if captures else ["warm_up_s"]
    if compiles and own.keys() & {"compile_s", "compile_cached_s"} and (captures or engine in raw["compiles_without_graphs"]):
        keys.insert(0, compilation)
        lenders[compilation] = lender
    entries = {key: own.get(key) or engines[lenders[key]][key] for key in keys}
    found = {key: entry["value"] for key, entry in entries.items()}
    if captures and compiles_products and not compiled:
        found["graph_capture_s"] += own["compile_products_s"]["value"]
    borrowed = [key for key in keys if key not in own]
    notes = [
        f"start-up: {', '.join(key for key in borrowed if lenders[key] == giver)} of {engine} taken over from {giver} (assumed)"
        for giver in dict.fromkeys(lenders[key] for key in borrowed)
    ]
    notes += [
        f"start-up: {key} of {engine} may be {entry['range'][0]:g} to {entry['range'][1]:g} s ({entry['kind']})"
        for key, entry in entries.items()
        if "range" in entry
    ]
    start_up = StartUp(
        provisioning_s=0.0,
        image_s=0.0,
        weights_s=weight_bytes / raw["weights"][place]["value"],
        compile_s=found.get(compilation, 0.0),
        graph_capture_s=found.get("graph_capture_s", 0.0),
        warm_up_s=found["warm_up_s"],
    )
    return start_up, notes


def asleep(level: int, weight_bytes: float, host_link_bytes_per_s: float, place: Place) -> tuple[float, float]:
    """Seconds in which a server falls asleep, and in which it wakes up.

    Parameters
    ----------
    level : 1 keeps the weights in host memory, 2 gives them up. weight_bytes : of one device.
    host_link_bytes_per_s : nominal rate of a device's link to the host, one way. place : where weights given up lie.
    """
    raw = constants()
    if level == 1:
        out, back = (raw["sleep"][name]["value"] * host_link_bytes_per_s for name in ("out_share", "in_share"))
        return weight_bytes / out, weight_bytes / back
    return raw["sleep"]["discard_s"]["value"], weight_bytes / raw["weights"][place]["value"]
