from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles.errors import InputError
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.describe import cached_tokens, prefix_hit_potential
from simulator.workload.spec import WorkloadSpec
from tests.effort import examples

POISSON = {"kind": "poisson", "rate": 5}
LENGTHS = {
    "prompt_tokens": {"kind": "lognormal", "mean": 100, "p99": 700},
    "output_tokens": {"kind": "lognormal", "mean": 50, "p99": 300},
}


def build(seed: int = 0, **spec: Any) -> Workload:
    return build_workload(WorkloadSpec.model_validate(spec), seed=seed, base_dir=Path())


def raw_column(value: Any) -> Any:
    return value.tobytes() if isinstance(value, np.ndarray) else str(value)


def raw(w: Workload) -> dict[str, Any]:
    out = {}
    for field in dataclasses.fields(w):
        value = getattr(w, field.name)
        if dataclasses.is_dataclass(value):
            value = {f.name: raw_column(getattr(value, f.name)) for f in dataclasses.fields(value)}
        out[field.name] = raw_column(value)
    return out


FULL: dict[str, Any] = {
    "duration": 60,
    "classes": [
        {"name": "chat", "arrivals": POISSON, "sessions": {"turns": 3, "think_time_s": {"kind": "constant", "value": 2}},
         "shared_prefix": {"groups": 3, "tokens": 64}, **LENGTHS, "weight": 2, "priority": 1,
         "slo": {"ttft_ms": {"p99": 500}, "attainment": 0.9}},
        {"name": "replay", "trace": "mooncake-conversation", "max_output_tokens": "equal"},
        {"name": "loop", "arrivals": {"kind": "closed_loop", "concurrency": 4, "think_time_s": 1}, **LENGTHS},
    ],
}  # fmt: skip


def test_same_seed_same_bytes_another_seed_others() -> None:
    assert raw(build(3, **FULL)) == raw(build(3, **FULL))
    assert raw(build(3, **FULL))["prompt_tokens"] != raw(build(4, **FULL))["prompt_tokens"]


def test_classes_are_merged_in_order_and_keep_their_links() -> None:
    w = build(**FULL)
    known = w.arrival_s[~np.isnan(w.arrival_s)]
    assert (np.diff(known) >= 0).all()
    assert [c.name for c in w.classes] == ["chat", "replay", "loop"]
    assert w.classes[0].slo == {"ttft_ms": {"p99": 500.0}}
    assert w.classes[0].attainment == 0.9
    assert w.classes[0].priority == 1
    chat = w.class_index == 0
    later = np.flatnonzero(chat & (w.turn > 0))
    before = w.predecessor[later]
    assert (w.session_id[later] == w.session_id[before]).all()
    assert (w.turn[later] == w.turn[before] + 1).all()
    assert (w.gap_s[later] == 2).all()
    replay = w.class_index == 1
    assert (w.max_output_tokens[replay] == w.output_tokens[replay]).all()
    assert (w.max_output_tokens[~replay] == 0).all()
    loop = np.flatnonzero(w.class_index == 2)
    assert (w.arrival_s[loop][:4] > 0).all()
    assert (w.predecessor[loop][4:] == -2).all()


def test_a_further_class_changes_no_other() -> None:
    alone = build(**{**FULL, "classes": FULL["classes"][:1]})
    both = build(**{**FULL, "classes": FULL["classes"][:2]})
    chat = both.class_index == 0
    for name in ("arrival_s", "prompt_tokens", "output_tokens", "gap_s", "turn"):
        assert np.array_equal(getattr(alone, name), getattr(both, name)[chat], equal_nan=True), name


def test_weights_multiply_rates() -> None:
    classes = [{"name": n, "arrivals": POISSON, **LENGTHS, "weight": k} for n, k in (("a", 1), ("b", 3))]
    w = build(classes=classes, duration=2000)
    counts = np.bincount(w.class_index)
    assert counts[0] == pytest.approx(10_000, rel=0.05)
    assert counts[1] == pytest.approx(30_000, rel=0.05)


def test_requests_cut_the_merged_classes() -> None:
    classes = [{"name": n, "arrivals": POISSON, **LENGTHS, "weight": k} for n, k in (("a", 1), ("b", 3))]
    w = build(classes=classes, requests=400)
    assert len(w) == 400
    assert np.bincount(w.class_index)[1] == pytest.approx(300, abs=40)
    batch = [
        {"name": n, "arrivals": {"kind": "batch"}, **LENGTHS, "weight": k} for n, k in (("a", 1), ("b", 2))
    ]
    assert np.bincount(build(classes=batch, requests=10).class_index).tolist() == [3, 7]


def test_lengths_do_not_move_when_the_rate_does() -> None:
    slow = build(arrivals=POISSON, **LENGTHS, duration=50)
    fast = build(arrivals={"kind": "poisson", "rate": 10}, **LENGTHS, duration=50)
    n = len(slow)
    assert np.array_equal(slow.prompt_tokens, fast.prompt_tokens[:n])
    assert np.array_equal(slow.output_tokens, fast.output_tokens[:n])
    assert slow.arrival_s[:100] == pytest.approx(2 * fast.arrival_s[:100])


def test_batch_and_closed_loop() -> None:
    w = build(arrivals={"kind": "batch"}, **LENGTHS, requests=7)
    assert w.arrival_s.tolist() == [0] * 7
    loop = {"kind": "closed_loop", "concurrency": 3, "think_time_s": {"kind": "constant", "value": 0.5}}
    w = build(arrivals=loop, **LENGTHS, requests=8)
    assert w.predecessor.tolist() == [-1] * 3 + [-2] * 5
    assert w.think_s is not None
    assert w.think_s.tolist() == [0.5] * 8
    assert (w.arrival_s[:3] < 0.5).all()
    assert w.duration_s == np.inf
    w = build(arrivals=loop, **LENGTHS, duration=100)
    assert w.duration_s == 100
    assert len(w) > 3 * 100 / (0.5 + 50 * 0.004)  # more than 4 ms a token could use up


def test_closed_loop_of_conversations_keeps_one_per_client() -> None:
    loop = {"kind": "closed_loop", "concurrency": 2, "think_time_s": {"kind": "constant", "value": 9}}
    turns = {"turns": 2, "think_time_s": {"kind": "constant", "value": 1}}
    w = build(arrivals=loop, sessions=turns, **LENGTHS, requests=8)
    assert w.predecessor.tolist() == [-1, 0, -1, 2, 1, 4, 3, 6]
    assert w.gap_s.tolist() == [0, 1, 0, 1, 9, 1, 9, 1]


def test_max_output_tokens() -> None:
    w = build(arrivals=POISSON, **LENGTHS, duration=50, max_output_tokens="equal")
    assert np.array_equal(w.max_output_tokens, w.output_tokens)
    w = build(arrivals=POISSON, **LENGTHS, duration=50, max_output_tokens={"kind": "constant", "value": 64})
    assert w.output_tokens.max() == 64
    assert (w.max_output_tokens == 64).all()
    assert not build(arrivals=POISSON, **LENGTHS, duration=50).max_output_tokens.any()


def test_shared_prefix_comes_on_top() -> None:
    plain = build(arrivals=POISSON, **LENGTHS, duration=200)
    w = build(arrivals=POISSON, **LENGTHS, duration=200, shared_prefix={"groups": 4, "tokens": 256})
    assert np.array_equal(w.prompt_tokens, plain.prompt_tokens + 256)
    assert w.content is not None
    # All but the first request of each group find the prefix.
    hits = cached_tokens(w.content, w.prompt_tokens, w.output_tokens)
    assert sorted(set(hits.tolist())) == [0, 256]
    assert (hits == 0).sum() == 4


@given(seed=st.integers(0, 1000), turns=st.integers(1, 6), groups=st.integers(0, 3))
@settings(max_examples=examples(30))
def test_conversations_contain_their_history(seed: int, turns: int, groups: int) -> None:
    extra = {"shared_prefix": {"groups": groups, "tokens": 32}} if groups else {}
    sessions = {"turns": {"kind": "uniform", "low": 1, "high": turns}, "think_time_s": 3}
    w = build(seed, arrivals=POISSON, **LENGTHS, sessions=sessions, requests=40, **extra)
    assert len(w) == 40
    assert w.content is not None
    hits = cached_tokens(w.content, w.prompt_tokens, w.output_tokens)
    for i in range(40):
        before = w.predecessor[i]
        if before >= 0:
            history = w.prompt_tokens[before] + w.output_tokens[before]
            assert w.prompt_tokens[i] > history
            assert hits[i] == history
    assert 0 <= prefix_hit_potential(w) < 1


def test_building_loads_no_heavy_module() -> None:
    code = (
        "import sys; from pathlib import Path; from simulator.workload.build import build_workload; "
        "from simulator.workload.spec import WorkloadSpec; "
        "build_workload(WorkloadSpec(trace='mooncake-conversation', duration=10), seed=0, base_dir=Path()); "
        "print([m for m in ('pandas', 'pyarrow', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_prefixes_that_no_request_has_take_no_memory() -> None:
    few = build(arrivals=POISSON, **LENGTHS, requests=30, shared_prefix={"groups": 10**12, "tokens": 64})
    assert few.content is not None
    assert [len(each.ids) for each in few.content.named] == [30]


def test_a_mistyped_rate_is_refused_before_it_fills_memory() -> None:
    with pytest.raises(InputError, match="at most 5,000,000"):
        build(arrivals={"kind": "poisson", "rate": 1e9}, **LENGTHS, duration=600)
    with pytest.raises(InputError, match="no request arrives"):
        build(arrivals={"kind": "poisson", "rate": 1e-9}, **LENGTHS, duration=1)


def test_generator_keys_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="belongs to trace files"):
        build(trace="azure-conv-2023", jitter_s=1)
