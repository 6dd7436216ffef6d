"""Which adapter each request names: drawn from a scenario's mix, one for all turns of a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from engine_models.parts.acceptance import mixed_over
from simulator.workload.columns import FloatArray, IntArray
from simulator.workload.parts import Part, Requests
from simulator.workload.streams import stream
from simulator.workload.synthetic import AdapterMix

CONVERSATION = 1 << 40
"""Counters of conversations begin here, those of single requests at zero."""


def shares(mix: AdapterMix) -> FloatArray:
    """Share of the requests that name each adapter, most popular first; they sum to the mix's `share`.

    uniform : all alike. zipf : the k-th is named in proportion to k^-exponent.
    """
    ranks = np.arange(1, mix.count + 1, dtype=np.float64)
    weights = ranks ** -(mix.exponent if mix.popularity == "zipf" else 0.0)
    named_share: FloatArray = mix.share * weights / weights.sum()
    return named_share


def assign(load: Requests, mix: AdapterMix, seed: int, prefix: str) -> None:
    """Let each request of a load name an adapter, numbered from 1, or none (0)."""
    parts = load.parts
    bounds = np.cumsum(shares(mix))
    key = np.uint64(int(stream(seed, prefix + "adapters").integers(2**63)))

    def drawn(counters: IntArray) -> IntArray:
        uniform = (mixed_over(counters.astype(np.uint64) ^ key) >> np.uint64(11)) * 2.0**-53
        number = np.searchsorted(bounds, uniform, side="right") + 1
        return np.where(uniform < mix.share, np.minimum(number, mix.count), 0).astype(np.int64)

    def assigned() -> Iterator[Part]:
        rows = 0
        for part in parts:
            own = np.arange(rows, rows + len(part))
            rows += len(part)
            yield replace(part, adapter=drawn(np.where(part.session_id >= 0, part.session_id + CONVERSATION, own)))

    load.parts = assigned()
