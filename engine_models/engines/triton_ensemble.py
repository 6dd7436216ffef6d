"""Models around the one that computes, in Triton: a tokeniser before it, a detokeniser after it, each with instances of its own.

An ensemble, or a model that calls others (BLS), passes a request from one to the next; each waits in the next one's queue. An
instance deals with one request after the other. Where tokens stream, each is a request of its own to the model behind.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine_models.cost.event_loop import EventLoop
from engine_models.cost.overheads import own_overheads
from engine_models.declaration import FrontEnd

_OVERHEADS = "triton"


def front_of(flags: Mapping[str, Any], default: int | None, *, streams: bool) -> tuple[FrontEnd, tuple[str, ...]]:
    """The front end of a server with such models, and what is said of it; `default` instances where the flags say none.

    n instances are taken as one that is n times as quick, and the rest of its time as a delay.
    """
    seconds = {name: float(entry["value"]) for name, entry in own_overheads(_OVERHEADS).items()}
    before = flags.get("preprocessing_instance_count", default)
    after = flags.get("postprocessing_instance_count", default)
    delay_s, notes = seconds["front_end_s"], []
    serial_s, loop = 0.0, None
    if before:
        serial_s = seconds["preprocess_s"] / before
        delay_s += seconds["front_end_s"] + seconds["preprocess_s"] - serial_s
        notes.append(f"a tokeniser's model before it: {before} x 1 request per {1e3 * seconds['preprocess_s']:g} ms")
    if after:
        own_s = seconds["postprocess_s"] / after
        delay_s += seconds["postprocess_s"] - own_s
        if streams:
            loop = EventLoop(0.0, 0.0, 0.0, 0.0, step_s=0.0, row_s=own_s, merged_row_s=own_s, idle_factor=1.0)
            notes.append(f"a detokeniser's model after it: at most {1 / own_s:,.0f} tokens/s leave")
        else:
            delay_s += own_s
    if notes:
        notes.append("times of the models around it are assumed (`capacity-plan show engine triton`)")
    return FrontEnd(delay_s, tokenise_request_s=serial_s, loop=loop), tuple(notes)


__all__ = ["front_of"]
