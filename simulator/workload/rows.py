"""What a trace reader or a generator yields: recorded requests before they become a workload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from hardware_profiles.records import dataclass
from simulator.workload.columns import BoolArray, Content, FloatArray, IntArray


@dataclass(frozen=True)
class Rows:
    """n recorded requests, sorted by arrival.

    Parameters
    ----------
    arrival_s : (n,) [s], the first at 0 or later.
    prompt_tokens, output_tokens : (n,) at least 1.
    max_output_tokens : (n,) or None where the trace does not say; 0 none given.
    session, turn : (n,) session number, -1 outside sessions, and turn in it, or None.
    end_s : (n,) recorded completion [s], NaN unknown, or None; it turns arrivals into think times.
    prefix_start, prefix_ids : CSR lists of content blocks per request, or None.
    prefix_block_tokens : tokens per block [tokens], 0 if there are no blocks.
    content : runs, where the source knows them directly.
    edges : (m, 2) pairs of records, the second of which waits for the first to end, or None where sessions go by `turn`; wait_s :
        (n,) how long after the last of these a record arrives [s], NaN for as recorded.
    class_names : (n,) or None. models : (n,) names of what is asked for, or None; named_at : where each is named first, file and
        line. request_ids : (n,) or None.
    adapter : (n,) number of the adapter that a request names, from 1, 0 for none; or None.
    images : (n, 2) images in the prompt, and how many of its tokens they are; or None.
    span_s : length of the recording [s].
    """

    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    span_s: float
    max_output_tokens: IntArray | None = None
    session: IntArray | None = None
    turn: IntArray | None = None
    end_s: FloatArray | None = None
    prefix_start: IntArray | None = None
    prefix_ids: IntArray | None = None
    prefix_block_tokens: int = 0
    content: Content | None = None
    edges: IntArray | None = None
    wait_s: FloatArray | None = None
    class_names: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    named_at: Mapping[str, str] = field(default_factory=dict)
    request_ids: tuple[str, ...] | None = None
    adapter: IntArray | None = None
    images: IntArray | None = None
    source: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.prompt_tokens)


@dataclass(frozen=True)
class Raw:
    """A format's columns before checking; `keep` says which records count, `drops` why others do not.

    `arrival_s` counts from any start, or is calendar times in any unit; `lasted_s` is what a request took. `images` are their
    number in each prompt, and their tokens.
    """

    arrival_s: FloatArray | None
    prompt: FloatArray
    output: FloatArray
    names: tuple[str, str, str]
    keep: BoolArray | None = None
    drops: str = ""
    max_output: FloatArray | None = None
    session: list[Any] | None = None
    turn: FloatArray | None = None
    lasted_s: FloatArray | None = None
    blocks: Any = None
    block_tokens: int = 0
    class_names: list[Any] | None = None
    models: list[Any] | None = None
    request_ids: list[Any] | None = None
    adapters: list[Any] | None = None
    images: tuple[FloatArray, FloatArray] | None = None
    content: Content | None = None
    edges: IntArray | None = None
    wait_s: FloatArray | None = None
    licence: str | None = None
    jitter_s: float = 0.0
    lines: IntArray | None = None
    warnings: tuple[str, ...] = ()
