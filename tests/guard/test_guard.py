"""The guard's cases on any machine: whole numbers against stored digests, and each case reaches what it is there for.

Floating-point results differ in their last digits between processors and library versions, so that only columns of whole
numbers and words are held here; `compare.py` holds the rest, to the bit, by running both commits on one machine. A whole
number can follow a last digit as well, where two times that decide something are equal but for it: no case has such a tie
as far as is known (the digests are the same with numpy's vector units switched off); one that shows it needs another seed.

CAPACITY_PLAN_GUARD=1 python -m pytest -n 0 tests/guard/test_guard.py writes integers.json anew, after a change that means
to move results.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.guard.cases import CASES, write_trace
from tests.guard.compare import written
from tests.guard.side import simulate_case, write

INTEGERS = Path(__file__).with_name("integers.json")
RECORD = os.environ.get("CAPACITY_PLAN_GUARD") == "1"
COLUMNS = (
    "session_id", "turn", "prompt_tokens", "cached_tokens", "output_tokens", "preemptions", "instance_id",
    "prefill_instance_id", "finish_reason", "class",
)  # fmt: skip
TOTALS = (
    "offered", "completed", "failed", "rejected", "unfinished", "not_arrived", "total_input_tokens", "total_output_tokens",
    "window_input_tokens", "window_output_tokens", "window_completed", "max_concurrent_requests",
)  # fmt: skip

Written = dict[str, Any]


def drafted(run: Any, found: Written) -> bool:
    server = run.result["server"]
    return 0 < server["spec_decode_num_accepted_tokens"] < server["spec_decode_num_draft_tokens"]


def hit(run: Any, found: Written) -> bool:
    return bool(found["requests.cached_tokens"].sum() > 0)


def preempted(run: Any, found: Written) -> bool:
    return bool(found["requests.preemptions"].sum() > 2)


def interrupted(run: Any, found: Written) -> bool:
    """A prompt stood between two tokens of a request."""
    return any(len(run.raw.emissions.of(row)) > 1 for row in range(len(run.raw.emissions)))


def spread(run: Any, found: Written) -> bool:
    """Every log has steps, and requests went to each."""
    numbers = {int(number) for number in found["requests.instance_id"] if number >= 0}
    return len(numbers) > 1 and all(found[f"steps.count.{number}"][0] > 0 for number in numbers)


def warned(word: str) -> Callable[[Any, Written], bool]:
    return lambda run, found: any(
        word in line for line in [*run.result["warnings"], *run.result["assumptions"]]
    )


def counted(*names: str) -> Callable[[Any, Written], bool]:
    return lambda run, found: all(run.result["totals"][name] > 0 for name in names)


REACHES: dict[str, tuple[Callable[[Any, Written], bool], ...]] = {
    "preemptions": (lambda run, found: found["requests.preemptions"].sum() > 20,),
    "priorities": (preempted, lambda run, found: len(run.result["classes"]) == 2),
    "rejected-and-cut": (counted("rejected", "completed"), warned("cut")),
    "overload": (counted("unfinished"), warned("overload")),
    "closed-loop-replicas": (counted("not_arrived"), spread),
    "sessions": (hit,),
    "sessions-16-replicas": (hit, spread),
    "shared-prefixes": (hit, preempted),
    "prefix-trace": (hit, spread),
    "round-robin": (spread,),
    "least-requests": (spread,),
    "gemma-windows-tight": (preempted,),
    "borrowed-mi300x": (warned("AMD Instinct"),),
    "pipeline-tight": (preempted, spread),
    "ranks": (spread, warned("data-parallel attention")),
    "ranks-mla": (spread,),
    "ngram": (drafted,),
    "eagle3": (drafted, preempted),
    "draft-model": (drafted, spread),
    "offload": (hit, lambda run, found: run.result["server"]["external_prefix_cache_hit_rate"] > 0),
    "sglang": (interrupted,),
    "sglang-sessions": (hit, spread),
    "sglang-tight": (preempted, hit),
    "sglang-evicting": (hit,),
    "sglang-refused-batch": (hit, counted("rejected", "completed")),
    "sglang-mixed-priorities": (preempted, lambda run, found: len(run.result["classes"]) == 2),
    "sglang-ranks": (spread,),
    "streamed": (spread, warned("histograms")),
    "streamed-sglang": (spread, warned("histograms")),
}


def digest(values: np.ndarray[Any, Any]) -> str:
    """Digest of a column of whole numbers or words."""
    assert values.dtype.kind in "iO", values.dtype
    return hashlib.sha256(json.dumps(values.tolist()).encode()).hexdigest()[:16]


def integers(found: Written) -> dict[str, Any]:
    """Digests of columns, counts, and the number of steps of each log."""
    held: dict[str, Any] = {f"requests.{name}": digest(found[f"requests.{name}"]) for name in COLUMNS}
    held |= {f"totals.{name}": found[f"result.totals.{name}"] for name in TOTALS}
    held |= {key: value for key, value in found.items() if key.startswith("result.server.spec_decode_num_")}
    counts = [key for key in found if key.startswith("steps.count.")]
    return {**held, "steps": [int(found[key][0]) for key in counts]}


@pytest.mark.parametrize("name", list(CASES))
def test_whole_numbers_are_those_stored_and_the_case_reaches_what_it_is_there_for(
    name: str, tmp_path: Path
) -> None:
    write_trace(tmp_path)
    case = CASES[name]
    run = simulate_case({"name": name, **case.scenario}, tmp_path, case.stream_above)
    write(run, tmp_path / name)
    found = written(tmp_path / name)
    assert [reached for reached in REACHES.get(name, ()) if not reached(run, found)] == []
    stored = json.loads(INTEGERS.read_text()) if INTEGERS.exists() else {}
    if RECORD:
        assert "PYTEST_XDIST_WORKER" not in os.environ, "one process writes integers.json: pytest -n 0"
        stored[name] = integers(found)
        lines = [f"{json.dumps(key)}: {json.dumps(stored[key])}" for key in CASES if key in stored]
        INTEGERS.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        return
    here = integers(found)
    moved = {key: (value, here.get(key)) for key, value in stored[name].items() if here.get(key) != value}
    assert not moved, f"stored, found: {moved}; CAPACITY_PLAN_GUARD=1 stores what is found, if that is meant"


def test_stored_are_the_cases() -> None:
    assert list(json.loads(INTEGERS.read_text())) == list(CASES)
    assert set(REACHES) <= set(CASES)
