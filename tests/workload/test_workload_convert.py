from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator.workload.build import build_workload
from simulator.workload.columns import Workload
from simulator.workload.convert import write_workload
from simulator.workload.describe import cached_tokens, describe, index_of_dispersion, rank_correlation
from simulator.workload.spec import WorkloadSpec

LENGTHS = {"prompt_tokens": {"kind": "uniform", "low": 5, "high": 200}, "output_tokens": 20}
POISSON = {"kind": "poisson", "rate": 5}


def build(base: Path = Path(), **spec: Any) -> Workload:
    return build_workload(WorkloadSpec.model_validate(spec), seed=1, base_dir=base)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"shared_prefix": {"groups": 3, "tokens": 64}},
        {"sessions": {"turns": 3, "think_time_s": 2.0}},
        {"sessions": {"turns": 3, "think_time_s": 2.0}, "shared_prefix": {"groups": 3, "tokens": 64}},
        {"max_output_tokens": 30},
    ],
)
def test_own_columns_round_trip(tmp_path: Path, suffix: str, extra: dict[str, Any]) -> None:
    w = build(arrivals=POISSON, **LENGTHS, requests=60, **extra)
    path = tmp_path / f"w.{suffix}"
    write_workload(w, path, block_tokens=16)
    blocks = {"prefix_block_tokens": 16} if "shared_prefix" in extra else {}
    back = build(tmp_path, trace=path.name, **blocks)
    assert sorted(back.prompt_tokens.tolist()) == sorted(w.prompt_tokens.tolist())
    assert back.max_output_tokens.sum() == w.max_output_tokens.sum()
    known = w.arrival_s[~np.isnan(w.arrival_s)]
    assert back.arrival_s[~np.isnan(back.arrival_s)] == pytest.approx(known - known[0])
    assert back.gap_s.max() == pytest.approx(w.gap_s.max())
    assert len(np.unique(back.session_id)) == len(np.unique(w.session_id))
    if "shared_prefix" in extra and "sessions" not in extra:
        assert w.content is not None
        assert back.content is not None
        ours = cached_tokens(w.content, w.prompt_tokens, w.output_tokens)
        theirs = cached_tokens(back.content, back.prompt_tokens, back.output_tokens)
        assert np.array_equal(ours, theirs)


def test_mooncake_round_trip(tmp_path: Path) -> None:
    w = build(trace="mooncake-conversation", duration=300)
    write_workload(w, tmp_path / "m.jsonl", trace_format="mooncake")
    back = build(tmp_path, trace="m.jsonl", jitter_s=0)
    assert np.array_equal(back.prompt_tokens, w.prompt_tokens)
    assert back.arrival_s == pytest.approx(w.arrival_s - w.arrival_s[0], abs=1.1e-3)
    # Only whole blocks are written, so what a block's first tokens share is lost.
    ours, theirs = (describe(x)["prefix_hit_potential"] for x in (w, back))
    assert theirs == pytest.approx(ours, abs=1e-3)
    assert theirs <= ours


def test_refusals(tmp_path: Path) -> None:
    loop = build(arrivals={"kind": "closed_loop", "concurrency": 2}, **LENGTHS, requests=5)
    with pytest.raises(InputError, match="closed loop"):
        write_workload(loop, tmp_path / "x.csv")
    w = build(arrivals=POISSON, **LENGTHS, requests=5)
    with pytest.raises(InputError, match="names no format"):
        write_workload(w, tmp_path / "x.xml")
    with pytest.raises(InputError, match="JSON lines"):
        write_workload(w, tmp_path / "x.csv", trace_format="mooncake")
    with pytest.raises(InputError, match="choose"):
        write_workload(w, tmp_path / "x.csv", trace_format="azure")
    assert list(tmp_path.iterdir()) == []


def test_statistics_against_hand_counts() -> None:
    times = np.asarray([0.1, 0.2, 0.3, 2.5])
    assert index_of_dispersion(times, 1.0, 4.0) == pytest.approx(np.var([3, 0, 1, 0]) / 1.0)
    assert np.isnan(index_of_dispersion(times, 10.0, 4.0))
    x = np.asarray([1, 2, 2, 9])
    assert rank_correlation(x, x * 3) == pytest.approx(1)
    assert rank_correlation(x, -x) == pytest.approx(-1)
    assert rank_correlation(x, np.asarray([5, 5, 5, 5])) is None


def test_describe_a_closed_loop_claims_no_rate() -> None:
    s = describe(build(arrivals={"kind": "closed_loop", "concurrency": 2}, **LENGTHS, requests=5))
    assert s["rate_per_s"] is None
    assert s["requests"] == 5
    assert s["idc"] == {}
