"""Schedules of llama.cpp's server as the recorder writes them, from the server's own debug log, iteration by iteration.

Which iteration a request met, and which a client left before, depended on the wall clock: both are facts that a replay is given.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any
from zlib import crc32

from engine_models.declaration import Line, Replay
from engine_models.memory.whole_prompts import WholePrompts
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.slots import Call, End, SlotBatch, SlotRules, SlotScheduler, Task, Wish, padded

COLUMNS = (*("tasks", "start", "prompt", "decode", "calls", "shift", "emit", "finished", "pop_deferred"),)
STATE_BYTES = 4096 + 12
"""Of a token of the recorded model in host memory: keys and values of 8 layers, and 12 beside (measured, 2026-11)."""
ENTRY_BYTES = 236
"""Of a saved state besides (measured, 2026-11: slots of 5 to 100 tokens in files, whose heads and tokens are not in memory)."""
OUTPUT_SEGMENTS = 20000
FIRST_TOKEN, PROMPT_TOKENS, FIRST_OUTPUT = 300, 7500, 7800
"""Tokens of prompts, and the first one of an answer, as recordings define them."""
MIB = 1 << 20

Leaving = dict[int, list[tuple[int, str]]]
"""Iteration -> clients that leave before it: after so many tasks were taken, which request."""


class _Scripted(SlotScheduler):
    """The scheduler of a recording whose clients leave where they left."""

    leaving: Leaving
    ids: Mapping[str, int]

    def _take_tasks(self) -> None:
        leaving, taken = deque(self.leaving.get(self.next_number, ())), 0
        while self._queue or leaving:
            if leaving and (leaving[0][0] <= taken or not self._queue):
                index = self.ids[leaving.popleft()[1]]
                self.cancel(next(seq for seq in self._rows if seq.index == index))
            else:
                self._take(self._queue.popleft())
                taken += 1
        self.leaving.pop(self.next_number, None)


def transcribe(config: Line, requests: list[Line], steps: list[Line]) -> tuple[Line, list[Line], list[Line]]:
    """A recording as those of other engines are written: times are iterations, steps have all columns."""
    order = {entry["id"]: (entry["arrive_iter"], place) for place, entry in enumerate(requests)}
    for step in steps:
        met = [task["id"] for task in step.get("tasks", ()) if not task.get("from_deferred")]
        order |= {name: (step["i"], place) for place, name in enumerate(met) if order[name][0] == step["i"]}
    ordered = sorted(requests, key=lambda entry: order[entry["id"]])
    wishes = {index: _wish(entry) for index, entry in enumerate(ordered)}
    knobs = {
        **config["config"],
        "args": config["args"],
        "wishes": wishes,
        "leaving": {step["i"]: _leaving(step) for step in steps if "cancelled_before" in step},
        "ids": {entry["id"]: index for index, entry in enumerate(ordered)},
    }
    given = [
        {
            "idx": index,
            "id": entry["id"],
            "arrival": float(entry["arrive_iter"]),
            "prompt_len": entry["prompt_len"],
            "output_len": entry["n_predict"],
            "segments": _by_token(entry["segments"]),
            "out_seg": OUTPUT_SEGMENTS + entry["idx"],
            "output": [[FIRST_OUTPUT + entry["idx"], 0, 1]] * entry["n_predict"],
        }
        for index, entry in enumerate(ordered)
    ]
    clock = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}
    return {**config, "config": knobs, "step_time": clock}, given, [_columns(step) for step in steps]


def _by_token(segments: list[list[int]]) -> list[list[int]]:
    """A prompt token by token, each a segment of its own: tokens of different segments may be equal by chance."""
    return [
        [_token(segment, first + place), 0, 1] for segment, first, many in segments for place in range(many)
    ]


def _token(segment: int, place: int) -> int:
    """A token as the recorder made it; a recorded answer is one token again and again."""
    if segment >= OUTPUT_SEGMENTS:
        return FIRST_OUTPUT + segment - OUTPUT_SEGMENTS
    return FIRST_TOKEN + crc32(f"{segment}:{place}".encode()) % PROMPT_TOKENS


def _wish(entry: Line) -> Wish:
    said = entry.get("opts", {})
    return Wish(
        slot=said.get("id_slot"),
        cache_prompt=said.get("cache_prompt"),
        answers=entry.get("n", 1),
        n_keep=said.get("n_keep"),
        n_discard=said.get("n_discard", 0),
    )


def _leaving(step: Line) -> list[tuple[int, str]]:
    """Clients that left before an iteration, each after as many tasks as did not see its slot free.

    Those that saw it are the one that it brought, those that took it, compared it or saved it, and those that were deferred when
    it had brought none.
    """
    tasks = step.get("tasks", ())
    brought = [entry["id"] for entry in step.get("pop_deferred", ())]
    places = {task["id"]: place for place, task in enumerate(tasks) if task.get("from_deferred")}
    out = []
    for entry in step["cancelled_before"]:
        name = next((name for name in brought if name in places), None)
        if name is not None:
            brought.remove(name)
            out.append((places[name], entry["id"]))
            continue
        slot = entry["slot"]
        seen = (place for place, task in enumerate(tasks) if task.get("deferred") or _saw(task, slot))
        out.append((next(seen, len(tasks)), entry["id"]))
    return out


def _saw(task: Line, slot: int) -> bool:
    """Whether a task found a slot free."""
    compared = [each[0] for each in task.get("sims", ())]
    return task.get("slot") == slot or slot in compared or ["idle_slot", slot] in task.get("ram", ())


def _columns(step: Line) -> Line:
    """The compared columns of a recorded iteration."""
    return {
        "tasks": [
            {
                "id": task["id"],
                "slot": task.get("slot"),
                "by": task.get("by"),
                "deferred": task.get("deferred", False),
                "ram": task.get("ram", []),
            }
            for task in step.get("tasks", ())
        ],
        "start": step.get("start", []),
        "prompt": step.get("prompt", []),
        "decode": step.get("decode", []),
        "calls": [
            {key: value for key, value in call.items() if key != "purged_tokens"}
            for call in step.get("calls", ())
        ],
        "shift": [
            {key: value for key, value in shift.items() if key != "n_left"} for shift in step.get("shift", ())
        ],
        "emit": step.get("emit", []),
        "finished": step.get("finished", []),
        "pop_deferred": [entry["id"] for entry in step.get("pop_deferred", ())],
    }


def replay(knobs: Mapping[str, Any], flags: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line and the server's flags."""
    cells = int(flags.get("ctx_size", 0)) or knobs["n_ctx_slot"]
    if "ctx_size" not in flags and "kv_unified_per_slot" in flags:
        cells = knobs["n_slots"] * int(flags["kv_unified_per_slot"])
    ram_mib = int(flags.get("cache_ram", 8192))
    n_batch = min(int(flags.get("batch_size", 2048)), int(flags.get("ctx_size", 0)) or cells)
    rules = SlotRules(
        n_parallel=knobs["n_slots"],
        slot_tokens=knobs["n_ctx_slot"],
        pool_cells=padded(cells) if knobs["kv_unified"] else 0,
        n_batch=n_batch,
        n_ubatch=min(int(flags.get("ubatch_size", 512)), n_batch),
        cont_batching=bool(flags.get("cont_batching", True)),
        slot_prompt_similarity=float(flags.get("slot_prompt_similarity", 0.1)),
        cache_prompt=bool(flags.get("cache_prompt", True)),
        cache_reuse=int(flags.get("cache_reuse", 0)),
        cache_idle_slots=bool(flags.get("cache_idle_slots", True)),
        context_shift=bool(flags.get("context_shift", False)),
        n_keep=int(flags.get("keep", 0)),
    )
    whole = padded(cells) if knobs["kv_unified"] else knobs["n_slots"] * knobs["n_ctx_slot"]
    limits = (ram_mib * MIB, float("inf")) if ram_mib > 0 else (float("inf"), whole)
    prompts = WholePrompts(limits[0], STATE_BYTES, limits[1], ENTRY_BYTES) if ram_mib else None
    scheduler = _Scripted(rules, prompts, wishes=knobs["wishes"], record_rows=True)
    scheduler.leaving, scheduler.ids = dict(knobs["leaving"]), knobs["ids"]
    return Replay(scheduler, 1, COLUMNS, as_recorded)


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> Line:
    """A settled iteration as the recordings write it."""
    assert isinstance(batch, SlotBatch)

    def name(seq: Sequence, answer: int) -> str:
        return ids[seq.index] + (f".{answer}" if answer else "")

    def task(each: Task) -> Line:
        return {
            "id": ids[each.row.seq.index],
            "slot": each.slot,
            "by": each.by,
            "deferred": each.slot is None,
            "ram": [list(event) for event in each.events],
        }

    def end(each: End) -> Line:
        row = each.row
        cut = int(each.why == "context_full" or row.shifted)
        return {
            "id": name(row.seq, row.answer),
            "slot": each.slot.index,
            "why": each.why,
            "slot_tokens": each.left,
            "truncated": cut,
        }

    starts = []
    for start in batch.starts:
        entry = {
            "slot": start.slot,
            "id": ids[start.row.seq.index],
            "prompt": start.row.prompt,
            "n_past": start.found,
        }
        starts.append({**entry, "chunks": [list(run) for run in start.moved]} if start.moved else entry)
    generating = [entry for entry in batch.entries if entry.decodes]
    return {
        "tasks": [task(each) for each in batch.tasks],
        "start": starts,
        "decode": [[e.slot.index, name(e.row.seq, e.row.answer), e.first] for e in generating],
        "prompt": [
            [e.slot.index, ids[e.row.seq.index], e.tokens, e.first] for e in batch.entries if not e.decodes
        ],
        "calls": [_call(each) for each in batch.calls],
        "shift": [
            {"slot": slot, "id": ids[row.seq.index], "n_keep": keep, "n_discard": dropped}
            for slot, row, keep, dropped in batch.shifts
        ],
        "emit": [name(row.seq, row.answer) for row in batch.emitted],
        "finished": [end(each) for each in batch.ends],
        "pop_deferred": [ids[row.seq.index] for row in batch.popped],
    }


def _call(call: Call) -> Line:
    parts = [[list(entry) for entry in part] for part in call.parts]
    found: Line = {
        "n_batch": call.n_batch,
        "off": call.at,
        "n": call.tokens,
        "ubatches": parts,
        "ok": call.ok,
    }
    if not call.ok:
        if call.emptied is not None:
            found["purged_slot"] = call.emptied
        if call.next_n_batch is None:
            found["exceeded"] = True
        else:
            found["next_n_batch"] = call.next_n_batch
    return found
