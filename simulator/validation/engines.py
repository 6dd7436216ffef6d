"""The engines of which measured runs are known, by name: the one mapping from a suite's engine to its facts."""

from __future__ import annotations

import re

from simulator.validation.launches import launch_of
from simulator.validation.published import Fitting, Published, Row
from simulator.validation.sglang_launches import SGLANG
from simulator.validation.spellings import engine_name
from simulator.validation.trtllm_launches import TRTLLM
from simulator.validation.vllm_launches import VLLM

PUBLISHED: dict[str, Published] = {"vllm": VLLM, "sglang": SGLANG, "trtllm": TRTLLM}

FITTINGS: dict[str, tuple[str, Fitting]] = {
    name + suffix: (name, fitting)
    for name, published in PUBLISHED.items()
    for suffix, fitting in published.fittings.items()
}
"""Name of a fit -> the engine in whose overheads its unknowns stand, and the fit."""

DYNAMO = "/ai-dynamo/tensorrtllm-runtime"
"""In the name of an image whose number is Dynamo's, not that of the engine in it."""

_RELEASE = re.compile(r"(?:^|[^a-z\d.]|\bv)(\d+\.\d+(?:\.\d+)*)")


def engine_release(row: Row) -> str:
    """Version of a row's engine that is modelled (``0.15.1``), "" where the row states none; raises `Unplayable`."""
    stated = str(row.get("engine_version") or " ".join(str(row["engine"]).split()[1:]) or launch_of(row).image).lower()
    found = _RELEASE.search(stated)
    published = PUBLISHED[engine_name(row)]
    if DYNAMO in launch_of(row).image:
        return published.unstated(row)
    return published.unstated(row) if found is None else published.release(found.group(1))


def compiles_while_measured(row: Row) -> bool:
    """Whether a run measured what its server compiled on first use, beside what it serves."""
    published = PUBLISHED.get(engine_name(row))
    return published is not None and published.compiles_while_measured(row)
