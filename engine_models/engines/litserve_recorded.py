"""Batches of LitServe's loops as the recorder writes them, under its clock: a model that takes so long for a batch.

The continuous loop is a user's own engine behind LitServe's reader of the queue; its rule is here alone.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from collections.abc import Sequence as Series
from dataclasses import replace
from itertools import count
from typing import Any

from engine_models.parts.protocols import INFINITY
from engine_models.schedulers.worker_windows import Collectors, WindowRules
from hardware_profiles.records import dataclass

COLUMNS = ("worker", "batch", "reason", "queued_after")
SLOT_COLUMNS = ("batch", "admitted", "pending")
READ_S, SLEEP_S = 1.0, 0.001
"""Longest wait of the continuous loop for the queue, and between two looks whether anything is active (datasheet:
`ContinuousBatchingLoop` of LitServe 0.2.19)."""

Requests = Series[Mapping[str, Any]]


@dataclass(frozen=True)
class _Call:
    """A call of the model, the time of each of its tokens, and how many are left."""

    step: dict[str, Any]
    token_s: float
    tokens: int


def decisions(knobs: Mapping[str, Any], requests: Requests) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """The steps of a recording again, from the knobs of its `config` line, and the columns that are compared."""
    model = knobs["model"]
    if "no_pending_requests" in knobs:
        return _slots(knobs, requests, model["t0"], model["per_item"]), SLOT_COLUMNS
    return _windows(knobs, requests, model["t0"], model["per_item"]), COLUMNS


def _windows(
    knobs: Mapping[str, Any], requests: Requests, fixed_s: float, each_s: float
) -> list[dict[str, Any]]:
    timeout_s = knobs["request_timeout"]
    rules = WindowRules(
        knobs["workers_per_device"],
        knobs["max_batch_size"],
        knobs["batch_timeout"],
        INFINITY if timeout_s in (False, -1) else timeout_s,
    )
    collectors = Collectors[Mapping[str, Any]](rules)
    computing: list[tuple[float, int, _Call]] = []  # by the end of a token, then by turn
    turns = count()
    steps: list[dict[str, Any]] = []
    coming = sorted(requests, key=lambda request: (request["arrival"], request["idx"]))[::-1]

    def ends(at_s: float) -> None:
        """Let the calls that end by now end. A worker sleeps token by token: of two whose calls end at one time the one
        goes first that has begun its last token first."""
        while computing and computing[0][0] <= at_s:
            end_s, _, call = heapq.heappop(computing)
            if call.tokens > 1:
                sleeps(end_s, replace(call, tokens=call.tokens - 1))
                continue
            step = call.step
            forms(end_s)
            step["queued_after"] = [request["id"] for _, request in collectors.queue]
            steps.append(step)
            collectors.free(step["worker"], end_s)
            forms(end_s)

    def forms(at_s: float) -> None:
        for formed in collectors.until(at_s):
            answer = max(request["output_len"] for request in formed.requests) if knobs["stream"] else 1
            token_s = fixed_s + each_s * len(formed.requests)
            step = {
                "worker": formed.worker,
                "batch": [request["id"] for request in formed.requests],
                "reason": formed.reason,
                "t_end": formed.at_s + token_s * answer,
            }
            sleeps(formed.at_s, _Call(step, token_s, answer))

    def sleeps(at_s: float, call: _Call) -> None:
        end_s = at_s + call.token_s if call.tokens > 1 else call.step["t_end"]
        heapq.heappush(computing, (end_s, next(turns), call))

    while coming or computing or collectors.taken or collectors.queue:
        due_s = coming[-1]["arrival"] if coming else INFINITY
        now_s = min(due_s, collectors.wakes_s(), computing[0][0] if computing else INFINITY)
        if now_s == INFINITY:
            break
        if now_s == due_s:  # who comes at the end of a call comes before it
            collectors.add(due_s, coming.pop())
        else:
            ends(now_s)
        forms(now_s)
    return steps


def _slots(
    knobs: Mapping[str, Any], requests: Requests, fixed_s: float, each_s: float
) -> list[dict[str, Any]]:
    """A reader takes one request after the other while steps run; who finds no slot is pending until the reader begins anew,
    which it does after such a request, or a wait of `READ_S`: with the next request, or when the next step has begun. Others
    overtake him meanwhile."""
    slots, alone = knobs["max_batch_size"], knobs["no_pending_requests"]
    coming = sorted(requests, key=lambda request: (request["arrival"], request["idx"]))[::-1]
    active: dict[str, int] = {}
    pending: list[Mapping[str, Any]] = []
    admitted: list[list[Any]] = []
    steps: list[dict[str, Any]] = []
    now_s = read_s = 0.0  # of the steps; since when the reader waits
    begins = False  # whether the reader begins anew when the step has ended

    def admit(request: Mapping[str, Any], at_s: float) -> None:
        active[request["id"]] = request["output_len"]
        admitted.append([request["id"], round(at_s, 6)])

    def begin(at_s: float) -> None:
        nonlocal begins, read_s
        begins, read_s = False, at_s
        while pending and len(active) < slots:
            admit(pending.pop(0), at_s)

    def event_s() -> float:
        """When the reader next hears of something."""
        due_s = max(coming[-1]["arrival"], read_s) if coming else INFINITY
        return min(due_s, read_s + READ_S)

    def read(until_s: float) -> None:
        """Let the reader work up to a time."""
        nonlocal begins, read_s
        while not (alone and active):
            if begins and coming and coming[-1]["arrival"] <= until_s:
                begin(coming[-1]["arrival"])
            at_s = event_s()
            if begins or at_s > until_s:
                return
            if coming and coming[-1]["arrival"] <= at_s:
                request, read_s = coming.pop(), at_s
                if len(active) < slots:
                    admit(request, at_s)
                    continue
                pending.append(request)
            begins = True
            if not active:
                begin(at_s)

    while coming or active or pending:
        if not active:
            read(now_s)
        if not active:
            now_s = max(now_s, event_s())
            read(now_s)
            continue
        batch = list(active)
        if begins:
            begin(now_s)
        now_s += fixed_s + each_s * len(batch)
        read(now_s)
        for name in batch:
            active[name] -= 1
            if not active[name]:
                del active[name]
        steps.append(
            {"batch": batch, "admitted": admitted, "pending": [request["id"] for request in pending]}
        )
        admitted = []
        if begins and not active:
            begin(now_s)
        elif alone and not active:
            while read_s < now_s:
                read_s += SLEEP_S
    return steps
