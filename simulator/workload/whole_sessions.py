"""Recorded sessions that begin at other times than recorded: each is replayed whole, its calls after those that they wait for.

The sessions of a trace are taken in order of their begins, and again from the first once all were, then with contents that only
they have under other names; what several sessions share, as a system prompt, they share with those that come again too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.workload import arrivals
from simulator.workload.agents import TOGETHER, trees_of
from simulator.workload.columns import NO_PREDECESSOR, Content, FloatArray, IntArray, take_content
from simulator.workload.drawn import FASTEST_REQUEST_S, FASTEST_TOKEN_S, arrival_process
from simulator.workload.laws import residuals, time_sampler
from simulator.workload.parts import COLUMNS, Part, Requests, join
from simulator.workload.spec import Load, WorkloadSpec
from simulator.workload.streams import stream
from simulator.workload.synthetic import NO_THINKING, BatchArrivals, ClosedLoopArrivals


@dataclass(frozen=True)
class _Session:
    """A recorded session: its rows in order, those at its end, and the least time that it can take [s]."""

    rows: IntArray
    leaves: IntArray
    least_s: float


def whole_sessions(
    found: Requests,
    spec: WorkloadSpec,
    load: Load,
    *,
    seed: int,
    base_dir: Path,
    prefix: str,
    weight: float,
    requests: int | None,
    most: int,
) -> Requests:
    """The sessions of a trace, which begin as `load.arrivals` say: openly, all at once, or one after another's end.

    Raises
    ------
    InputError : no session, or more requests than `most`.
    """
    recorded = join(list(found.parts))
    sessions = _sessions(recorded)
    until_s = spec.duration if spec.duration is not None else math.inf
    starts, clients = _starts(load, sessions, seed, base_dir, prefix, weight, until_s, requests)
    if not len(starts):
        raise InputError("no session begins", where="workload", mend="lengthen duration, or raise the rate")
    taken = [sessions[number % len(sessions)] for number in range(len(starts))]
    rows = np.concatenate([each.rows for each in taken])
    if len(rows) > most:
        raise InputError(
            f"the load asks for {len(rows):,} requests of {len(taken):,} sessions; a run holds at most {most:,}",
            where="workload.arrivals",
            mend="lower the rate or shorten the duration",
        )
    part = _laid_out(recorded, taken, starts, rows, len(sessions))
    if clients:
        part = _one_after_another(part, taken, starts, clients, _pauses(load, seed, base_dir, prefix, len(starts)))
    else:
        part = _by_begin(part)
    said = [text for text in found.warnings if TOGETHER not in text]
    if len(taken) > len(sessions):
        said.append(
            f"sessions of the trace ({len(sessions):,}) come again once all have begun, their own contents new each time"
        )
    if requests is not None:
        part = _first(part, requests)
    return Requests(
        [part], found.classes, len(part), until_s, {**found.source, "sessions": len(taken)}, said
    )


def _sessions(recorded: Part) -> list[_Session]:
    """The sessions of recorded requests, in order of their begins."""
    n = len(recorded)
    later = np.flatnonzero(recorded.predecessor >= 0)
    links = list(zip(recorded.predecessor[later].tolist(), later.tolist(), strict=True))
    links += [] if recorded.edges is None else [(one, other) for one, other in recorded.edges.tolist()]
    first: dict[int, int] = {}
    named = [(first.setdefault(session, row), row) for row, session in enumerate(recorded.session_id.tolist()) if session >= 0]
    trees = trees_of(n, [*links, *named])
    leaf = np.ones(n, np.bool_)
    leaf[[before for before, _ in links]] = False
    before: dict[int, list[int]] = {}
    for one, other in links:
        before.setdefault(other, []).append(one)
    order = np.lexsort((np.arange(n), recorded.anchor_s, trees))
    least_s = FASTEST_REQUEST_S + FASTEST_TOKEN_S * recorded.output_tokens + recorded.gap_s
    for row in order.tolist():
        least_s[row] += max((least_s[other] for other in before.get(row, ())), default=0.0)
    bounds = np.flatnonzero(np.concatenate(([True], trees[order][1:] != trees[order][:-1], [True])))
    found = [order[a:b] for a, b in pairwise(bounds)]
    found.sort(key=lambda rows: (float(recorded.anchor_s[rows[0]]), int(rows[0])))
    return [_Session(rows, np.flatnonzero(leaf[rows]), float(least_s[rows].max())) for rows in found]


def _starts(
    load: Load,
    sessions: list[_Session],
    seed: int,
    base_dir: Path,
    prefix: str,
    weight: float,
    until_s: float,
    requests: int | None,
) -> tuple[FloatArray, int]:
    """When sessions begin [s], and how many clients hold them, 0 without any; of those that a client opens later, its first."""
    spec = load.arrivals
    assert spec is not None
    needed = None if requests is None else _needed(sessions, requests)
    if needed is None and math.isinf(until_s):
        needed = len(sessions)  # nothing else ends them: each once
    if isinstance(spec, BatchArrivals):
        return np.zeros(needed if needed is not None else len(sessions)), 0
    if not isinstance(spec, ClosedLoopArrivals):
        process = arrival_process(spec, stream(seed, prefix + "arrivals"), weight)
        return arrivals.until(process, until_s, needed), 0
    clients = max(1, round(spec.concurrency * weight))
    first_s = np.zeros(clients)
    if spec.think_time_s != NO_THINKING:
        rng = stream(seed, prefix + "first_sends")
        first_s = np.sort(residuals(spec.think_time_s, rng, base_dir, clients))
    first_s = first_s[first_s <= until_s]
    if needed is None:
        least_s = float(np.mean([session.least_s for session in sessions]))
        needed = clients * (2 + math.ceil(until_s / least_s))
    return np.append(first_s[:needed], np.full(max(0, needed - len(first_s)), first_s.max(initial=0.0))), len(first_s)


def _needed(sessions: list[_Session], requests: int) -> int:
    """How many sessions hold so many requests."""
    sizes = np.cumsum([len(session.rows) for session in sessions])
    whole, rest = divmod(requests, int(sizes[-1]))
    return whole * len(sessions) + (int(np.searchsorted(sizes, rest)) + 1 if rest else 0)


def _pauses(load: Load, seed: int, base_dir: Path, prefix: str, n: int) -> FloatArray:
    """How long clients pause before each session [s]."""
    spec = load.arrivals
    if not isinstance(spec, ClosedLoopArrivals) or spec.think_time_s == NO_THINKING:
        return np.zeros(n)
    return time_sampler(spec.think_time_s, stream(seed, prefix + "think_time_s"), base_dir)(n)


def _laid_out(recorded: Part, taken: list[_Session], starts: FloatArray, rows: IntArray, different: int) -> Part:
    """The sessions one after the other, each moved to its start; so many are `different`, then they come again."""
    sizes = np.array([len(session.rows) for session in taken])
    firsts = np.cumsum(sizes) - sizes
    owner = np.repeat(np.arange(len(taken)), sizes)
    place = np.zeros(len(recorded), np.int64)
    begins = np.zeros(len(taken))
    edges: list[IntArray] = []
    own = _own_edges(recorded, taken)
    predecessor = np.full(len(rows), NO_PREDECESSOR, np.int64)
    for number, session in enumerate(taken):
        mine = slice(firsts[number], firsts[number] + sizes[number])
        place[session.rows] = firsts[number] + np.arange(sizes[number])
        before = recorded.predecessor[session.rows]
        predecessor[mine] = np.where(before >= 0, place[before], before)
        begins[number] = recorded.anchor_s[session.rows[0]]
        edges.append(place[own[int(session.rows[0])]])
    anchor = recorded.anchor_s[rows] - begins[owner] + starts[owner]
    columns = {name: getattr(recorded, name)[rows] for name in COLUMNS}
    columns |= {
        "anchor_s": anchor,
        "arrival_s": np.where(predecessor >= 0, np.nan, anchor),
        "predecessor": predecessor,
        "session_id": owner.astype(np.int64),
        "not_before_s": np.zeros(len(rows)),
    }
    ids = recorded.request_ids
    fresh = owner // different
    return Part(
        **columns,
        content=None if recorded.content is None else _again(recorded.content, rows, fresh, owner),
        request_ids=None if ids is None else tuple(_names(ids, rows, fresh)),
        edges=np.concatenate(edges).reshape(-1, 2),
        adapter=None if recorded.adapter is None else recorded.adapter[rows],
        images=None if recorded.images is None else recorded.images[rows],
    )


def _own_edges(recorded: Part, taken: list[_Session]) -> dict[int, IntArray]:
    """The edges of each session, by its first row."""
    found: dict[int, list[list[int]]] = {}
    session_of = {row: int(session.rows[0]) for session in taken for row in session.rows.tolist()}
    for pair in recorded.edges.tolist() if recorded.edges is not None else ():
        if pair[1] in session_of:
            found.setdefault(session_of[pair[1]], []).append(pair)
    return {
        int(session.rows[0]): np.array(found.get(int(session.rows[0]), []), np.int64).reshape(-1, 2) for session in taken
    }


def _names(ids: tuple[str, ...], rows: IntArray, fresh: IntArray) -> Iterator[str]:
    for row, times in zip(rows.tolist(), fresh.tolist(), strict=True):
        yield f"{ids[row]}#{times + 1}" if times else ids[row]


def _again(content: Content, rows: IntArray, fresh: IntArray, owner: IntArray) -> Content:
    """The content of rows, of which those of a session that comes for the n-th time have own names for what only it has."""
    taken = replace(take_content(content, rows), found=None, output_found=None)
    if not fresh.any():
        return taken
    counts = np.diff(taken.start)
    named, by = np.concatenate((taken.segment, taken.output_segment)), np.concatenate((np.repeat(owner, counts), owner))
    once = np.concatenate((np.repeat(fresh, counts), fresh)) == 0
    size = 1 + int(named.max(initial=0))
    low, high = np.full(size, np.iinfo(np.int64).max), np.full(size, -1)
    known = once & (named >= 0)
    np.minimum.at(low, named[known], by[known])
    np.maximum.at(high, named[known], by[known])
    private = low == high

    def renamed(segments: IntArray, times: IntArray) -> IntArray:
        return np.where((segments >= 0) & private[segments], segments + times * size, segments)

    return replace(
        taken,
        segment=renamed(taken.segment, np.repeat(fresh, counts)),
        output_segment=renamed(taken.output_segment, fresh),
    )


def _by_begin(part: Part) -> Part:
    """The rows in order of their anchors."""
    order = np.argsort(part.anchor_s, kind="stable")
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    moved = {name: getattr(part, name)[order] for name in COLUMNS}
    moved["predecessor"] = np.where(moved["predecessor"] >= 0, place[moved["predecessor"]], moved["predecessor"])
    ids = part.request_ids
    return Part(
        **moved,
        content=None if part.content is None else take_content(part.content, order),
        request_ids=None if ids is None else tuple(ids[i] for i in order.tolist()),
        edges=None if part.edges is None else place[part.edges],
        adapter=None if part.adapter is None else part.adapter[order],
        images=None if part.images is None else part.images[order],
    )


def _one_after_another(part: Part, taken: list[_Session], starts: FloatArray, clients: int, pauses_s: FloatArray) -> Part:
    """Let each client's next session begin when its last has ended, all of it, and its pause is over."""
    firsts = np.cumsum([0, *(len(session.rows) for session in taken)])
    predecessor, gap_s, arrival_s = part.predecessor.copy(), part.gap_s.copy(), part.arrival_s.copy()
    edges = [part.edges] if part.edges is not None else []
    for number in range(clients, len(taken)):
        ends = firsts[number - clients] + taken[number - clients].leaves
        roots = firsts[number] + np.flatnonzero(predecessor[firsts[number] : firsts[number + 1]] < 0)
        predecessor[roots] = ends[0]
        gap_s[roots] = pauses_s[number] + part.anchor_s[roots] - starts[number]
        arrival_s[roots] = np.nan
        edges += [np.column_stack((ends[1:], np.full(len(ends) - 1, root))) for root in roots.tolist()]
    anchor = np.maximum.accumulate(np.where(np.isnan(arrival_s), 0.0, part.anchor_s))
    known = np.flatnonzero(~np.isnan(arrival_s))
    late = (np.diff(arrival_s[known]) < 0).any()
    moved = replace(
        part, predecessor=predecessor, gap_s=gap_s, arrival_s=arrival_s, edges=np.concatenate(edges), anchor_s=anchor
    )
    return _by_begin(replace(moved, anchor_s=np.where(np.isnan(arrival_s), np.nanmax(arrival_s), arrival_s))) if late else moved


def _first(part: Part, requests: int) -> Part:
    """The first requests of a part."""
    if len(part) <= requests:
        return part
    from simulator.workload.parts import between

    return between(part, 0, requests)
