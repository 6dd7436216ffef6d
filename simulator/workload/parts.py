"""Requests of a load, a part at a time: joined, cut, and merged with those of other loads by time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.records import dataclass
from simulator.workload.columns import (
    NO_PREDECESSOR,
    Content,
    FloatArray,
    IntArray,
    RequestClass,
    join_contents,
    same_float,
    same_int,
    take_content,
)
from simulator.workload.streams import stream

if TYPE_CHECKING:
    from simulator.workload.synthetic import Length

    Limit = Length | Literal["equal"] | None


@dataclass(frozen=True)
class Part:
    """Successive requests as the columns of a `Workload`.

    `anchor_s` is the time that orders requests among those of other loads; predecessors are counted from the first of all, and so
    are the (m, 2) `edges`: requests, the second of which waits for the first too, beside its predecessor.
    """

    anchor_s: FloatArray
    arrival_s: FloatArray
    prompt_tokens: IntArray
    output_tokens: IntArray
    max_output_tokens: IntArray
    predecessor: IntArray
    gap_s: FloatArray
    not_before_s: FloatArray
    session_id: IntArray
    turn: IntArray
    class_index: IntArray
    think_s: FloatArray
    content: Content | None = None
    request_ids: tuple[str, ...] | None = None
    adapter: IntArray | None = None
    edges: IntArray | None = None
    images: IntArray | None = None

    def __len__(self) -> int:
        return len(self.arrival_s)


COLUMNS = (
    "anchor_s",
    "arrival_s",
    "prompt_tokens",
    "output_tokens",
    "max_output_tokens",
    "predecessor",
    "gap_s",
    "not_before_s",
    "session_id",
    "turn",
    "class_index",
    "think_s",
)


@dataclass
class Requests:
    """A load's requests and what is known of them.

    Parameters
    ----------
    parts : the requests, to be taken once.
    classes : of `class_index`.
    expected_requests : about how many requests there are.
    end_s : end of the arrivals [s].
    source, warnings : see `Workload`.
    outputs_cut : outputs that the client's limit has cut so far.
    images_left_out : images for which prompts had no tokens so far.
    loads : the classes that these are merged from.
    sessions : counts the conversations, if there are any; for loads that come in several parts.
    """

    parts: Iterable[Part]
    classes: tuple[RequestClass, ...]
    expected_requests: float
    end_s: float
    source: dict[str, Any]
    warnings: list[str] = field(default_factory=list)
    outputs_cut: int = 0
    images_left_out: int = 0
    loads: Sequence[Requests] = ()
    sessions: Callable[[], int] | None = None

    def said(self) -> list[str]:
        """The warnings; what was cut is known once the parts were taken."""
        if len(self.loads) == 1:
            return self.loads[0].said()
        if self.loads:
            return [f"{load.classes[0].name}: {text}" for load in self.loads for text in load.said()]
        many = f"{self.outputs_cut:,} outputs are" if self.outputs_cut > 1 else "1 output is"
        cut = [f"{many} cut at max_output_tokens"] if self.outputs_cut else []
        out = f"{self.images_left_out:,} images are left out: their prompts have not the tokens for them"
        left = [out] if self.images_left_out else []
        return [*self.warnings, *cut, *left]


def by_clock(
    arrival_s: FloatArray,
    prompt_tokens: IntArray,
    output_tokens: IntArray,
    max_output_tokens: IntArray | None = None,
    request_ids: tuple[str, ...] | None = None,
) -> Part:
    """Requests that arrive at their own times and share nothing."""
    n = len(arrival_s)
    none, zero = same_float(0.0, n), same_int(0, n)
    limit = zero if max_output_tokens is None else max_output_tokens
    return Part(
        arrival_s,
        arrival_s,
        prompt_tokens,
        output_tokens,
        limit,
        same_int(NO_PREDECESSOR, n),
        none,
        none,
        same_int(-1, n),
        zero,
        zero,
        none,
        None,
        request_ids,
    )


def join(parts: Sequence[Part]) -> Part:
    """Successive parts as one."""
    parts = [part for part in parts if len(part)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        nothing = np.zeros(0, np.int64)
        return by_clock(np.zeros(0), nothing, nothing)
    named = any(part.request_ids is not None for part in parts)
    return Part(
        **{name: _joined([getattr(part, name) for part in parts]) for name in COLUMNS},
        content=join_contents([part.content for part in parts], [len(part) for part in parts]),
        request_ids=tuple(name for part in parts for name in part.request_ids or ()) if named else None,
        adapter=_joined_optional([part.adapter for part in parts], parts),
        edges=_linked(part.edges for part in parts),
        images=_joined_optional([part.images for part in parts], parts),
    )


def _joined_optional(columns: Sequence[IntArray | None], parts: Sequence[Part]) -> IntArray | None:
    """Columns of these parts one after the other, zeros for those that a part lacks; None where all lack it."""
    known = [column for column in columns if column is not None]
    if not known:
        return None
    rest = known[0].shape[1:]
    filled = [np.zeros((len(part), *rest), np.int64) if own is None else own for own, part in zip(columns, parts, strict=True)]
    return np.concatenate(filled)


def _linked(edges: Iterable[IntArray | None]) -> IntArray | None:
    """All of these edges, None without any."""
    found = [each for each in edges if each is not None and len(each)]
    return np.concatenate(found) if found else None


def _joined(columns: list[NDArray[Any]]) -> NDArray[Any]:
    """The columns one after the other; equal values that take no memory still take none."""
    value = columns[0][:1]
    if all(column.strides == (0,) and np.array_equal(column[:1], value) for column in columns):
        return np.broadcast_to(value[0], sum(len(column) for column in columns))
    return np.concatenate(columns)


def between(part: Part, start: int, stop: int) -> Part:
    """Rows `start` to `stop` of a part."""
    if start == 0 and stop >= len(part):
        return part
    some = slice(start, stop)
    ids = part.request_ids
    return Part(
        **{name: getattr(part, name)[some] for name in COLUMNS},
        content=None if part.content is None else take_content(part.content, np.arange(len(part))[some]),
        request_ids=None if ids is None else ids[some],
        adapter=None if part.adapter is None else part.adapter[some],
        edges=None if part.edges is None else part.edges[(part.edges[:, 1] >= start) & (part.edges[:, 1] < stop)],
        images=None if part.images is None else part.images[some],
    )


def head(parts: Iterable[Part], requests: int | None) -> Iterator[Part]:
    """The first `requests` rows; a row's predecessor stands before it, so none is lost."""
    left = requests
    for part in parts:
        if left is None:
            yield part
            continue
        if left <= 0:
            return
        yield between(part, 0, left)
        left -= len(part)


def in_parts_of(parts: Iterable[Part], size: int) -> Iterator[Part]:
    """The same rows in parts of `size`, the last one shorter."""
    held: list[Part] = []
    n = 0
    for part in parts:
        if not len(part):
            continue
        held.append(part)
        n += len(part)
        if n < size:
            continue
        joined = join(held)
        whole = n - n % size
        for start in range(0, whole, size):
            yield between(joined, start, start + size)
        n -= whole
        held = [between(joined, whole, whole + n)] if n else []
    if n:
        yield join(held)


def merged(loads: Sequence[Requests], names: Sequence[str]) -> Iterator[Part]:
    """Rows of several loads in order of their anchors, of the earlier load where these are equal, as soon as they are known.

    A row's predecessor must have its anchor if the load comes in several parts.
    """
    coming = [iter(load.parts) for load in loads]
    held: list[list[Part]] = [[] for _ in loads]
    ended = [False] * len(loads)
    counts = [load.sessions() if load.sessions is not None else 0 for load in loads[:-1]]
    merging = _Merging(names, counts)

    def more(number: int) -> None:
        part = next(coming[number], None)
        ended[number] = part is None
        if part is not None and len(part):
            held[number].append(part)

    while True:
        for number in range(len(loads)):
            while not held[number] and not ended[number]:
                more(number)
        known_s = [
            np.inf if done else float(mine[-1].anchor_s[-1]) for mine, done in zip(held, ended, strict=True)
        ]
        until_s = min(known_s)
        if np.isfinite(until_s) and all(not mine or mine[0].anchor_s[0] >= until_s for mine in held):
            more(known_s.index(until_s))
            continue
        pieces = []
        for number, mine in enumerate(held):
            whole = join(mine)
            at = int(np.searchsorted(whole.anchor_s, until_s, side="left"))
            pieces.append(between(whole, 0, at))
            held[number] = [between(whole, at, len(whole))] if at < len(whole) else []
        if any(len(piece) for piece in pieces):
            yield merging.merge(pieces)
        if np.isinf(until_s):
            return


class _Merging:
    """Merges pieces of loads, of which all but the last have so many conversations."""

    def __init__(self, names: Sequence[str], sessions: list[int]) -> None:
        self._names = names
        self._sessions = np.cumsum([0, *sessions]).tolist()
        self._taken = [0] * len(names)
        self._rows = 0

    def merge(self, pieces: list[Part]) -> Part:
        """Return the next rows of each load as one part."""
        loads, sizes = len(pieces), [len(piece) for piece in pieces]
        order = np.argsort(np.concatenate([piece.anchor_s for piece in pieces]), kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        shifts = np.cumsum([0, *sizes[:-1]]) - self._taken
        before = np.concatenate(
            [
                np.where(piece.predecessor >= 0, piece.predecessor + shift, piece.predecessor)
                for piece, shift in zip(pieces, shifts, strict=True)
            ]
        )
        before = np.where(before >= 0, place[before] + self._rows, before)
        sessions = np.concatenate(
            [
                np.where(piece.session_id >= 0, piece.session_id + first, -1)
                for piece, first in zip(pieces, self._sessions, strict=True)
            ]
        )
        content = join_contents(
            [
                None if piece.content is None else piece.content.renumbered(loads, number)
                for number, piece in enumerate(pieces)
            ],
            sizes,
        )
        joined = {name: np.concatenate([getattr(piece, name) for piece in pieces])[order] for name in COLUMNS}
        joined |= {
            "predecessor": before[order],
            "session_id": sessions[order],
            "class_index": np.repeat(np.arange(loads), sizes)[order],
        }
        edges = _linked(
            None if piece.edges is None else place[piece.edges + shift] + self._rows
            for piece, shift in zip(pieces, shifts, strict=True)
        )
        images = _joined_optional([piece.images for piece in pieces], pieces)
        part = Part(
            **joined,
            content=None if content is None else take_content(content, order),
            request_ids=self._ids(pieces, order),
            adapter=self._adapters(pieces, order),
            edges=edges,
            images=None if images is None else images[order],
        )
        self._rows += len(order)
        self._taken = [taken + size for taken, size in zip(self._taken, sizes, strict=True)]
        return part

    def _adapters(self, pieces: list[Part], order: IntArray) -> IntArray | None:
        """Adapters of each load are its own: their numbers are told apart."""
        loads = len(pieces)
        own = [
            None if piece.adapter is None else np.where(piece.adapter > 0, piece.adapter * loads + number, 0)
            for number, piece in enumerate(pieces)
        ]
        joined = _joined_optional(own, pieces)
        return None if joined is None else joined[order]

    def _ids(self, pieces: list[Part], order: IntArray) -> tuple[str, ...] | None:
        if all(piece.request_ids is None for piece in pieces):
            return None
        every = [
            name
            for piece, load, taken in zip(pieces, self._names, self._taken, strict=True)
            for name in piece.request_ids or (f"{load}/r{taken + i}" for i in range(len(piece)))
        ]
        return tuple(every[i] for i in order.tolist())


def as_class(load: Requests, kind: RequestClass) -> None:
    """Make a load a class of its own: its requests are of this class and named after it."""
    parts = load.parts

    def of_class() -> Iterator[Part]:
        for part in parts:
            ids = part.request_ids
            yield replace(
                part,
                class_index=same_int(0, len(part)),
                request_ids=None if ids is None else tuple(f"{kind.name}/{name}" for name in ids),
            )

    load.parts, load.classes = of_class(), (kind,)


def client_limits(
    limit: Limit, seed: int, base_dir: Path, prefix: str = ""
) -> Callable[[IntArray], IntArray | None]:
    """Return what gives the client's limits of the next requests by their outputs; None for no limit."""
    if limit is None:
        return lambda outputs: None
    if limit == "equal":
        return lambda outputs: outputs.copy()
    from simulator.workload.laws import sampler

    draw = sampler(limit, stream(seed, prefix + "max_output_tokens"), base_dir, "max_output_tokens")
    return lambda outputs: draw(len(outputs))


def limit_outputs(load: Requests, limited: Callable[[IntArray], IntArray | None]) -> None:
    """Apply the client's limit to recorded requests; recorded prompts stay as they are."""
    parts = load.parts

    def cut() -> Iterator[Part]:
        for part in parts:
            limits = limited(part.output_tokens)
            if limits is None:
                limits = part.max_output_tokens
            over = (limits > 0) & (part.output_tokens > limits)
            load.outputs_cut += int(over.sum())
            outputs = np.where(over, limits, part.output_tokens)
            yield replace(part, output_tokens=outputs, max_output_tokens=limits)

    load.parts = cut()


def together(loads: Sequence[Requests], requests: int | None, *, at_once: bool) -> Requests:
    """The first `requests` rows of classes, merged by time, all `at_once` or part by part."""
    names = [load.classes[0].name for load in loads]

    def parts() -> Iterator[Part]:
        if len(loads) == 1:
            yield from loads[0].parts
        elif at_once:
            whole = [join(list(load.parts)) for load in loads]
            sessions = [int(part.session_id.max(initial=-1)) + 1 for part in whole[:-1]]
            yield _Merging(names, sessions).merge(whole)
        else:
            yield from merged(loads, names)

    return Requests(
        head(parts(), requests),
        tuple(load.classes[0] for load in loads),
        min(sum(load.expected_requests for load in loads), np.inf if requests is None else requests),
        max(load.end_s for load in loads),
        {"kind": "classes", "classes": {name: load.source for name, load in zip(names, loads, strict=True)}},
        loads=loads,
    )
