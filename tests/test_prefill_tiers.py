"""Prefill servers whose caches go on in host memory: what comes from there is sent with its piece, and nothing is lost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine_models.parts.sequence import Sequence
from engine_models.schedulers.reserved_tiered import TieredSendingPrefillScheduler
from hardware_profiles.errors import PlanError
from simulator import load_scenario, simulate
from simulator.cluster.outcome import FINISHED
from simulator.prepare import prepare
from tests.clusters import ran

HOST = [{"kind": "host", "bytes": 2e11}]
CHATS: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 0.5},
    "prompt_tokens": {"kind": "lognormal", "mean": 5000, "p99": 14000, "max": 18000},
    "output_tokens": 30,
    "sessions": {"turns": 5, "think_time_s": 10},
    "duration": 60,
}
TOKEN_BYTES = 131_072


def scenario(tiers: Any = HOST, work: dict[str, Any] = CHATS, client: Any = None, **keys: Any) -> dict[str, Any]:
    prefill = {"name": "p", "role": "prefill", "engine": "sglang", "hardware": "l40s-48gb", **keys}
    decode = {"name": "d", "role": "decode", "engine": "sglang", "hardware": "h100-sxm-80gb"}
    pools = [prefill | ({"kv_tiers": tiers} if tiers is not None else {}), decode]
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": {"pools": pools}, "workload": work, "client": client or {}}


@pytest.mark.parametrize("tokens", [1, 64])
def test_jumping_is_stepping_and_every_token_is_sent_once(tokens: int) -> None:
    data = scenario(engine_args={"page_size": tokens})
    if tokens > 1:
        data["deployment"]["pools"][1]["engine_args"] = {"page_size": tokens}
    one, other = (simulate(data, aggregate=aggregate) for aggregate in (True, False))
    frame, plain = one.requests_frame(), other.requests_frame()
    assert [column for column in frame if not frame[column].equals(plain[column])] == []
    assert one.result == other.result
    frame = frame[frame["status"].notna()]  # sent within the duration
    assert len(frame) > 50
    assert (frame["status"] == "finished").all()
    pages = -(-frame["prompt_tokens"] // tokens) * tokens
    assert frame["transfer_bytes"].tolist() == (pages * TOKEN_BYTES).tolist()
    (host,) = one.result["server"]["kv_tiers"]
    assert host["hit_rate"] > 0.1
    assert one.result["metrics"]["ttft_ms"]["mean"] < simulate(scenario(None)).result["metrics"]["ttft_ms"]["mean"]


def test_a_host_that_nobody_needs_changes_nothing() -> None:
    work = {name: value for name, value in CHATS.items() if name != "sessions"} | {"duration": 20}
    plain, tiered = (simulate(scenario(tiers, work)).requests_frame() for tiers in (None, HOST))
    assert len(plain) > 5
    assert [column for column in plain if not plain[column].equals(tiered[column])] == []


def test_what_the_host_gives_is_sent_with_the_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    early_of = TieredSendingPrefillScheduler._early_tokens

    def early(self: TieredSendingPrefillScheduler, seq: Sequence, known: int) -> int:
        seen.append((known, early_of(self, seq, known)))
        return seen[-1][1]

    monkeypatch.setattr(TieredSendingPrefillScheduler, "_early_tokens", early)
    run = simulate(scenario())
    (host,) = run.result["server"]["kv_tiers"]
    assert any(early < known for known, early in seen)
    assert any(early == known for known, early in seen)
    assert host["read_bytes"] == pytest.approx(sum(known - early for known, early in seen) * TOKEN_BYTES)


def test_clients_that_go_leave_nothing_behind() -> None:
    data = scenario(client={"timeout_s": 4.0, "retries": {"attempts": 2, "on": ["timeout"]}})
    found = []
    for aggregate in (True, False):
        cluster, result = ran(data, aggregate=aggregate)
        found.append(result)
        assert not cluster._live
        for rank in cluster.ranks:
            assert rank.scheduler.state()[:3] == (0, 0, 0)
    assert 0 < (found[0].status == FINISHED).sum() < len(found[0].status)
    assert np.array_equal(found[0].status, found[1].status)
    assert np.array_equal(found[0].end_s, found[1].end_s, equal_nan=True)


def test_what_is_not_modelled_is_said() -> None:
    shared = [*HOST, {"kind": "shared", "bytes": 1e12, "bytes_per_s": 1e10}]
    decode = scenario(None)
    decode["deployment"]["pools"][1]["kv_tiers"] = HOST
    for data, words in ((scenario(shared), "beside prefill pools and a store or disks"), (decode, "beside decode pools")):
        with pytest.raises(PlanError, match=words):
            prepare(load_scenario(data))
