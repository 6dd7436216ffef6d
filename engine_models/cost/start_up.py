"""What a server does before it serves, or falls asleep and wakes up, and how long that takes.

Weights are read at a rate that depends on where they lie, each device its own part at once; compilation, graph capture and
warm-up are constants of an engine. The constants, their sources and how far each is off where it was held out: `start_up.json`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from typing import Any, Literal

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
    captures : whether it captures graphs; one that does not compiles nothing either.
    compiles : whether it compiles its model, if its engine does, which has a time for it of its own.
    compiles_products : whether kernels of products are compiled for each number of rows while graphs are captured.
    """
    raw = constants()
    own, quick, lender = raw["engines"].get(engine, {}), raw["without_trial_run"], raw["lender"]
    lent = raw["engines"][lender] | (raw["engines"][quick["lender"]] if engine in quick["engines"] else {})
    compilation = "compile_cached_s" if compiled else "compile_s"
    keys = ["graph_capture_s", "warm_up_s"] if captures else ["warm_up_s"]
    if captures and compiles and own.keys() & {"compile_s", "compile_cached_s"}:
        keys.insert(0, compilation)
    found = {key: (own.get(key) or lent[key])["value"] for key in keys}
    borrowed = [key for key in found if key not in own]
    if captures and compiles_products and not compiled:
        found["graph_capture_s"] += own["compile_products_s"]["value"]
    of_quick = ["warm_up_s"] if engine in quick["engines"] else []
    notes = [
        f"start-up: {', '.join(keys)} of {engine} taken over from {giver} (assumed)"
        for giver, keys in ((lender, [key for key in borrowed if key not in of_quick]), (quick["lender"], of_quick))
        if keys
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
