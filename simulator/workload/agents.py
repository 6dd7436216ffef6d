"""Traces of agents: calls that wait for others and for tools, branch into parallel calls and join again.

    Mooncake     JSON lines with ``session_id`` and ``delay``; Dynamo's agentic ones with ``wait_for`` and ``tool_wait_ms``
    Dynamo       ``request_end`` records of its request or agent traces (`dynamo.request.trace.v1`, `dynamo.agent.trace.v1`)
    Weka         one JSON object a run: ``requests``, among them subagents with requests of their own (kv-cache-tester, AgentX)
    aiperf       ``dag_jsonl`` and ``multi_turn``: conversations as text, whose turns fork others, spawn them and wait for them

What waits for what is read where the file says it. Dynamo's and Weka's records only say when calls began and ended: there a
call follows the latest call of its own thread that had ended when it began, and every thread below that had ended since; the
first call of a thread follows the latest call of the thread above (as Dynamo's own converter infers it). The rest of the gap is
what the agent waited for tools and people. Formats by the documentation of ai-dynamo/dynamo and ai-dynamo/aiperf, 2026.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from itertools import count
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.workload.columns import Content, FloatArray, IntArray
from simulator.workload.rows import Raw
from simulator.workload.tables import Table

BLOCK_SIZES = (512, 64, 16, 32, 128, 256, 1024, 2048, 4096)
"""Tokens of a block that traces have, those of Mooncake first, then in the order of tools that write them."""
CHARACTERS_PER_TOKEN = 4.0
"""Assumed where a trace holds text without token counts (common rule of thumb for English, 2023)."""
TOGETHER = "all begin at time zero (arrivals with sessions spreads them)"
MOST_CALLS = 1_000_000
"""Calls of a trace of nested objects (assumed, a guard)."""

Record = Mapping[str, Any]


@dataclass
class Call:
    """One call of a recorded agent.

    `line` is the record's place in the table, `thread` the chain of calls that it belongs to, `above` the chain that this one
    branches off from, `tree` the whole run. `after` are the calls that it waits for, by number, and `wait_s` how long then.
    """

    line: int
    thread: str
    tree: str
    begin_s: float
    end_s: float
    prompt: float
    output: float
    above: str | None = None
    blocks: Sequence[Any] = ()
    after: list[int] = field(default_factory=list)
    wait_s: float = float("nan")


# Links ---------------------------------------------------------------------------------------------


def infer_links(calls: list[Call]) -> None:
    """Let each call follow those that had ended when it began, as the head of this module says."""
    threads: dict[str, list[int]] = {}
    for number in sorted(range(len(calls)), key=lambda n: (calls[n].begin_s, n)):
        threads.setdefault(calls[number].thread, []).append(number)
    below: dict[str, list[str]] = {}
    for name, mine in threads.items():
        above = calls[mine[0]].above
        if above is not None and above in threads and above != name:
            below.setdefault(above, []).append(name)
    last_of = {name: max(mine, key=lambda n: calls[n].end_s) for name, mine in threads.items()}

    def latest(of: Iterable[int], by_s: float) -> int | None:
        return max((n for n in of if calls[n].end_s <= by_s), key=lambda n: calls[n].end_s, default=None)

    for name, mine in threads.items():
        for place, number in enumerate(mine):
            call = calls[number]
            own = latest(mine[:place], call.begin_s)
            if own is None and call.above in threads and call.above != name:
                own = latest(threads[call.above], call.begin_s)
            since_s = calls[own].end_s if own is not None else -np.inf
            joined = [last_of[child] for child in below.get(name, ())]
            call.after = [own] if own is not None else []
            call.after += [n for n in joined if since_s < calls[n].end_s <= call.begin_s]
            if call.after:
                call.wait_s = call.begin_s - max(calls[n].end_s for n in call.after)


def trees_of(calls: int, links: Iterable[tuple[int, int]]) -> IntArray:
    """The tree of each call, numbered in order of appearance: calls that are linked in any way are of one."""
    root = list(range(calls))

    def find(n: int) -> int:
        while root[n] != n:
            root[n] = root[root[n]]
            n = root[n]
        return n

    for one, other in links:
        first, second = sorted((find(one), find(other)))
        root[second] = first
    _, trees = np.unique([find(n) for n in range(calls)], return_inverse=True)
    return trees.astype(np.int64)


def filled(begin_s: FloatArray, after: Sequence[Sequence[int]], wait_s: FloatArray) -> FloatArray:
    """Times of calls that have none: after the times of those that they wait for; zero where they wait for none.

    Raises
    ------
    ValueError : calls wait for each other in a circle.
    """
    out = begin_s.copy()
    open_calls = [n for n in range(len(out)) if np.isnan(out[n])]
    while open_calls:
        known = [n for n in open_calls if not any(np.isnan(out[m]) for m in after[n])]
        if not known:
            raise ValueError(open_calls[0])
        for n in known:
            out[n] = max((out[m] for m in after[n]), default=0.0) + np.nan_to_num(wait_s[n])
        open_calls = [n for n in open_calls if np.isnan(out[n])]
    return out


def _check_circles(table: Table, after: Sequence[Sequence[int]]) -> None:
    """Refuse calls that wait for each other."""
    left = {n: len(set(before)) for n, before in enumerate(after) if before}
    below: dict[int, list[int]] = {}
    for n, before in enumerate(after):
        for m in set(before):
            below.setdefault(m, []).append(n)
    free = [n for n in range(len(after)) if n not in left]
    while free:
        for n in below.get(free.pop(), ()):
            left[n] -= 1
            if not left[n]:
                del left[n]
                free.append(n)
    if left:
        raise InputError(
            "requests wait for each other in a circle", where=table.where(min(left)), mend="correct what this one waits for"
        )


def _edges(after: Sequence[Sequence[int]]) -> IntArray:
    pairs = [(m, n) for n, before in enumerate(after) for m in dict.fromkeys(before)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _raw(table: Table, calls: list[Call], block_tokens: int, warnings: Sequence[str], content: Content | None = None) -> Raw:
    """The columns of recorded calls."""
    if not calls:
        raise InputError("holds no call of a model", where=table.path, mend="check what it is")
    names: dict[Any, int] = {}
    lists = [[names.setdefault(block, len(names)) for block in call.blocks] for call in calls]
    start = np.concatenate(([0], np.cumsum([len(ids) for ids in lists]))).astype(np.int64)
    ids = np.array([name for mine in lists for name in mine], np.int64)
    silent = sum(call.output < 1 for call in calls)
    said = [f"{silent} calls are recorded with no output and get one token"] if silent else []
    after = [call.after for call in calls]
    return Raw(
        np.array([call.begin_s for call in calls]),
        np.array([call.prompt for call in calls], np.float64),
        np.array([max(call.output, 1.0) for call in calls], np.float64),
        ("the begin of a call", "its prompt's tokens", "its output's tokens"),
        session=[call.tree for call in calls],
        lasted_s=np.array([call.end_s - call.begin_s for call in calls]),
        blocks=(start, ids) if len(ids) else None,
        block_tokens=block_tokens,
        lines=table.lines[np.array([call.line for call in calls])],
        edges=_edges(after),
        wait_s=np.array([call.wait_s for call in calls]),
        content=content,
        warnings=(*warnings, *said),
    )


# Mooncake and Dynamo's agentic lines --------------------------------------------------------------


def linked_lines(table: Table, raw: Raw) -> Raw:
    """A Mooncake trace of sessions: a row waits for `wait_for`, or in files without it for the row before it of its session."""
    columns = table.columns
    n = len(table)

    def ms(name: str) -> FloatArray:
        return np.nan_to_num(table.number(name)) / 1e3 if name in columns else np.zeros(n)

    sessions = [value if value not in (None, "") else None for value in columns.get("session_id", [None] * n)]
    names = [None if value in (None, "") else str(value) for value in columns.get("request_id", [None] * n)]
    after: list[list[int]] = [[] for _ in range(n)]
    wait_s = np.full(n, np.nan)
    before: dict[Any, int] = {}
    row_of = {name: row for row, name in enumerate(names) if name is not None}
    explicit = "wait_for" in columns
    stated = table.number("delay") if "delay" in columns else np.full(n, np.nan)
    for row in range(n):
        if explicit:
            asked = columns["wait_for"][row] or []
            for name in asked if isinstance(asked, list) else [asked]:
                if str(name) not in row_of:
                    raise InputError(
                        f"waits for {str(name)[:40]!r}, and no row has that request_id",
                        where=table.where(row),
                        mend="correct wait_for, or keep whole sessions",
                    )
                after[row].append(row_of[str(name)])
        elif sessions[row] is not None and sessions[row] in before:
            after[row] = [before[sessions[row]]]
        if sessions[row] is not None:
            before[sessions[row]] = row
    given = explicit or "tool_wait_ms" in columns
    waits_s = ms("delay") + ms("tool_wait_ms")
    for row in range(n):
        if after[row] and (given or not np.isnan(stated[row])):
            wait_s[row] = waits_s[row]
    _check_circles(table, after)
    begin_s = raw.arrival_s if raw.arrival_s is not None else np.full(n, np.nan)
    said = []
    if np.isnan(begin_s).all():
        said.append(f"the trace records no times of its sessions: {TOGETHER}")
    links = [(m, row) for row, mine in enumerate(after) for m in mine]
    links += [(first, row) for row, name in enumerate(sessions) if name is not None and (first := sessions.index(name)) != row]
    return replace(
        raw,
        arrival_s=filled(begin_s, after, wait_s),
        session=[int(tree) for tree in trees_of(n, links)],
        request_ids=names if all(name is not None for name in names) else None,
        edges=_edges(after),
        wait_s=wait_s,
        jitter_s=0.0,
        warnings=(*raw.warnings, *said),
    )


def block_tokens_of(prompt_tokens: FloatArray, start: IntArray, usual: int) -> int:
    """Tokens of a block: the usual number if it fits the prompts, else the first that fits all, else the usual."""
    counts = np.diff(start)
    named = counts > 0
    for size in (usual, *BLOCK_SIZES):
        if (np.ceil(prompt_tokens[named] / size) == counts[named]).all():
            return size
    return usual


# Dynamo's records ---------------------------------------------------------------------------------


def dynamo(table: Table) -> Raw:
    """Records of requests that Dynamo served, each of a session, or of a trajectory of one."""
    events = table.columns.get("event")
    records: list[Record] = [
        (events[i] if isinstance(events[i], Mapping) else {})
        if events is not None
        else {name: values[i] for name, values in table.columns.items()}
        for i in range(len(table))
    ]
    calls, sizes, bare = [], set(), 0
    for line, record in enumerate(records):
        request, about = _group(record, "request"), _group(record, "agent_context")
        if record.get("event_type") != "request_end":
            continue
        replay = _group(request, "replay")
        prompt = _first(replay.get("input_length"), request.get("input_tokens"))
        if prompt is None:
            bare += 1
            continue
        end_ms = _number(table, line, "event_time_unix_ms", record.get("event_time_unix_ms"))
        lasted = _number(table, line, "total_time_ms", request.get("total_time_ms"), 0.0)
        begin_ms = _number(table, line, "request_received_ms", request.get("request_received_ms"), end_ms - lasted)
        thread = str(_first(about.get("trajectory_id"), about.get("session_id"), f"call {line}"))
        above = _first(about.get("parent_trajectory_id"), about.get("parent_session_id"))
        sizes.add(int(_number(table, line, "trace_block_size", replay.get("trace_block_size"), 0.0)))
        calls.append(
            Call(
                line,
                thread,
                thread,
                begin_ms / 1e3,
                end_ms / 1e3,
                _number(table, line, "input_length", prompt),
                _number(table, line, "output_tokens", request.get("output_tokens"), 1.0),
                None if above is None else str(above),
                _listed(replay.get("input_sequence_hashes")),
            )
        )
    sizes.discard(0)
    if len(sizes) > 1:
        raise InputError(
            f"its records have blocks of {' and '.join(map(str, sorted(sizes)))} tokens",
            where=table.path,
            mend="keep the records of one server in a file",
        )
    infer_links(calls)
    _name_trees(calls)
    said = [f"{bare} records without a prompt's length are left out"] if bare else []
    return _raw(table, calls, next(iter(sizes), 0), said)


def _name_trees(calls: list[Call]) -> None:
    """Name the whole run of each call."""
    first: dict[str, int] = {}
    links = []
    for number, call in enumerate(calls):
        links += [(n, number) for n in call.after]
        links.append((first.setdefault(call.thread, number), number))
    for call, tree in zip(calls, trees_of(len(calls), links).tolist(), strict=True):
        call.tree = str(tree)


# Weka's runs --------------------------------------------------------------------------------------


def weka(table: Table) -> Raw:
    """Recorded runs of coding agents, one a record, with the requests of their subagents."""
    calls: list[Call] = []
    sizes = set()
    numbers = count()
    for line, requests in enumerate(table.columns["requests"]):
        about = {name: values[line] for name, values in table.columns.items() if not isinstance(values, np.ndarray)}
        run = f"{line}"
        sizes.add(int(_number(table, line, "block_size", about.get("block_size"), 64.0)))
        scope = None if about.get("hash_id_scope") == "global" else line
        mine: list[Call] = []
        _weka_calls(table, line, requests, run, None, run, 0.0, scope, mine, numbers)
        infer_links(mine)
        for call in mine:
            call.after = [n + len(calls) for n in call.after]
        calls += mine
    if len(sizes) > 1:
        raise InputError(
            f"its runs have blocks of {' and '.join(map(str, sorted(sizes)))} tokens",
            where=table.path,
            mend="keep runs with blocks of one size in a file",
        )
    runs = len(table)
    said = [f"each of the {runs} runs has a clock of its own: {TOGETHER}"] if runs > 1 else []
    return _raw(table, calls, next(iter(sizes), 64), said)


def _weka_calls(
    table: Table,
    line: int,
    requests: Any,
    thread: str,
    above: str | None,
    run: str,
    shift_s: float,
    scope: int | None,
    out: list[Call],
    numbers: Iterable[int],
) -> None:
    """The calls of a thread and of its subagents; `shift_s` is what their times count from."""
    if not isinstance(requests, list):
        raise InputError("requests is no list", where=table.where(line), mend="correct that record")
    for request in requests:
        if not isinstance(request, Mapping):
            raise InputError("a request is no object", where=table.where(line), mend="correct that record")
        begin_s = shift_s + _number(table, line, "t", request.get("t"), 0.0)
        inner = request.get("requests")
        if isinstance(inner, list):
            starts = [_number(table, line, "t", each.get("t"), 0.0) for each in inner if isinstance(each, Mapping)]
            later = 0.0 if not starts or min(starts) + shift_s >= begin_s - 1e-6 else begin_s - shift_s
            name = f"{thread}/{next(iter(numbers))}"
            _weka_calls(table, line, inner, name, thread, run, shift_s + later, scope, out, numbers)
            continue
        if len(out) >= MOST_CALLS:
            raise InputError(f"holds more than {MOST_CALLS:,} calls", where=table.path, mend="split the file")
        lasted_s = _number(table, line, "api_time", request.get("api_time"), 0.0)
        out.append(
            Call(
                line,
                thread,
                run,
                begin_s,
                begin_s + max(lasted_s, 0.0),
                _number(table, line, "in", _first(request.get("in"), request.get("input_length"))),
                _number(table, line, "out", _first(request.get("out"), request.get("output_length")), 0.0),
                above,
                [(scope, block) for block in _listed(request.get("hash_ids"))],
            )
        )


# aiperf's conversations ---------------------------------------------------------------------------


def conversations(table: Table) -> Raw:
    """Conversations as text: a fork goes on from all that was said, a spawn begins anew, and turns wait for spawns to end."""
    return _Conversations(table).raw()


class _Conversations:
    """Reads the conversations of a file, each below the turn that branches into it."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._turns: dict[str, list[Record]] = {}
        self._line: dict[str, int] = {}
        self._calls: list[Call] = []
        self._runs: list[list[tuple[int, int, int]]] = []
        self._answers: list[tuple[int, int]] = []
        self._segments: dict[Any, int] = {}
        self._lasts: dict[str, list[int]] = {}  # by conversation: the calls with which it and its forks end
        self._open: set[str] = set()
        self._estimated = 0
        for line, (name, turns) in enumerate(zip(table.columns["session_id"], table.columns["turns"], strict=True)):
            if not isinstance(turns, list) or not all(isinstance(turn, Mapping) for turn in turns):
                raise InputError("turns is no list of objects", where=table.where(line), mend="correct that record")
            self._turns[str(name)], self._line[str(name)] = turns, line

    def raw(self) -> Raw:
        children = {
            child for turns in self._turns.values() for turn in turns for child, _, _ in self._branches(turn, 0, "")
        }
        for name in [name for name in self._turns if name not in children]:
            self._read(name, [], [], 0.0, name)
        for name in self._turns:
            if name not in self._lasts:
                raise InputError(
                    f"conversation {name[:40]!r} branches off from itself",
                    where=self._table.where(self._line[name]),
                    mend="let each conversation be forked or spawned by one that came before",
                )
        said = [
            f"texts carry no token counts; lengths are estimated at {CHARACTERS_PER_TOKEN:g} characters a token (assumed)",
            f"the trace records no times of its sessions: {TOGETHER}",
        ]
        starts = filled(
            np.full(len(self._calls), np.nan),
            [call.after for call in self._calls],
            np.array([call.wait_s for call in self._calls]),
        )
        for call, begin_s in zip(self._calls, starts.tolist(), strict=True):
            call.begin_s = call.end_s = begin_s
        raw = _raw(self._table, self._calls, 0, said, self._content())
        return replace(raw, lasted_s=None)

    def _branches(self, turn: Record, place: int, name: str) -> list[tuple[str, str, int]]:
        """Conversations that a turn branches into: name, how, and the turn that waits for it (-1: none)."""
        found = []
        for entry in _listed(turn.get("forks")):
            child = entry.get("child") if isinstance(entry, Mapping) else entry
            found.append((str(child), "fork", -1))
        for entry in _listed(turn.get("spawns")):
            if isinstance(entry, Mapping):
                joins = int(entry.get("join_at", -1))
                found += [(str(child), "spawn", joins) for child in _listed(entry.get("children"))]
            else:
                found.append((str(entry), "spawn", place + 1))
        return found

    def _read(self, name: str, after: list[int], history: list[tuple[int, int, int]], wait_s: float, tree: str) -> None:
        """Read a conversation that begins after some calls, with what was said before."""
        table, line = self._table, self._line.get(name)
        if line is None:
            raise InputError(f"no conversation is called {name[:40]!r}", where=table.path, mend="correct forks or spawns")
        if name in self._open or name in self._lasts:
            raise InputError(
                f"conversation {name[:40]!r} is branched into twice", where=table.where(line), mend="give each branch its own"
            )
        self._open.add(name)
        history = list(history)
        waits: dict[int, list[int]] = {}
        ends: list[int] = []
        for place, turn in enumerate(self._turns[name]):
            history += self._said(turn, line)
            output = _number(
                table, line, "max_tokens", _first(turn.get("max_tokens"), turn.get("output_length"), turn.get("osl"))
            )
            tokens = sum(length for _, _, length in history)
            if not tokens:
                raise InputError("a turn says nothing", where=table.where(line), mend="give it messages or text")
            delay_s = max(_number(table, line, "delay", turn.get("delay"), 0.0) / 1e3, 0.0)
            before = [*after, *waits.pop(place, ())]
            number = len(self._calls)
            call = Call(line, name, tree, 0.0, 0.0, tokens, output, after=before)
            call.wait_s = delay_s + (wait_s if not place else 0.0)
            self._calls.append(call)
            self._runs.append(list(history))
            answer = self._segment(("answer", number))
            self._answers.append((answer, 0))
            history = [*history, (answer, 0, max(int(output), 1))]
            after, ends = [number], [number]
            for child, how, joins in self._branches(turn, place, name):
                self._read(child, [number], history if how == "fork" else [], 0.0, tree)
                if how == "fork":
                    ends += self._lasts[child]
                elif 0 <= joins < len(self._turns[name]):
                    waits.setdefault(joins, []).extend(self._lasts[child])
        self._open.discard(name)
        self._lasts[name] = ends

    def _said(self, turn: Record, line: int) -> list[tuple[int, int, int]]:
        """What a turn adds to its conversation, a run a text."""
        texts = [each.get("content", each) if isinstance(each, Mapping) else each for each in _listed(turn.get("messages"))]
        texts += [turn[key] for key in ("text",) if turn.get(key)] + _listed(turn.get("texts"))
        out = []
        for text in texts:
            words = text if isinstance(text, str) else repr(text)
            if words:
                tokens = int(np.ceil(len(words) / CHARACTERS_PER_TOKEN))
                out.append((self._segment(words), 0, tokens))
        return out

    def _segment(self, key: Any) -> int:
        return self._segments.setdefault(key, len(self._segments))

    def _content(self) -> Content:
        flat = np.array([run for runs in self._runs for run in runs], np.int64).reshape(-1, 3)
        start = np.concatenate(([0], np.cumsum([len(runs) for runs in self._runs]))).astype(np.int64)
        answers = np.array(self._answers, np.int64).reshape(-1, 2)
        columns = (flat[:, 0].copy(), flat[:, 1].copy(), flat[:, 2].copy(), answers[:, 0].copy(), answers[:, 1].copy())
        return Content(start, *columns)


# Values -------------------------------------------------------------------------------------------


def _group(record: Record, name: str) -> Record:
    value = record.get(name)
    return value if isinstance(value, Mapping) else {}


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def _number(table: Table, line: int, name: str, value: Any, default: float | None = None) -> float:
    """A value as a number; InputError where it is none, or is missing and has no default."""
    if value is None and default is not None:
        return default
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63:
        return float(value)
    shown = "is missing" if value is None else f"is {str(value)[:40]!r}, not a number"
    raise InputError(f"{name} {shown}", where=table.where(line), mend="correct that record")
