"""Speculative decoding from a scenario to its result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator.results.latencies import token_gaps
from simulator.run import RunResult, simulate

SCENARIO: dict[str, Any] = {
    "name": "drafts",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 6},
        "prompt_tokens": {"kind": "lognormal", "mean": 300, "p99": 1500},
        "output_tokens": {"kind": "lognormal", "mean": 120, "p99": 500},
        "requests": 60,
    },
}


def run(speculative: dict[str, Any] | None, aggregate: bool = True, **deployment: Any) -> RunResult:
    pool = {**SCENARIO["deployment"], **deployment}
    if speculative is not None:
        pool["speculative"] = {"method": "eagle3", "num_speculative_tokens": 3, **speculative}
    return simulate({**SCENARIO, "deployment": pool}, aggregate=aggregate)


def tokens_of(result: RunResult, row: int) -> list[int]:
    """Batch of every token of a request."""
    spans = result.raw.emissions.of(row)
    return [batch for _, first, last in spans for batch in range(first, last + 1)]


@pytest.mark.parametrize("method", ["eagle3", "ngram"])
@pytest.mark.parametrize("a", [0.0, 0.7, 1.0])
def test_every_request_gets_exactly_its_tokens_in_order(method: str, a: float) -> None:
    result = run({"method": method, "acceptance": a}, host_speed=1e9)  # tokens are sent at once
    raw = result.raw
    assert (raw.status == 0).all()
    for row in range(len(raw.status)):
        batches = tokens_of(result, row)
        assert len(batches) == raw.output_tokens[row]
        assert batches == sorted(batches)
        ends = np.frombuffer(raw.logs[0].end_s)
        assert ends[batches[0]] + 0 == pytest.approx(raw.first_token_s[row])
        assert ends[batches[-1]] == pytest.approx(raw.end_s[row])


def test_all_accepted_gives_one_more_than_the_drafts_a_step_until_the_limit() -> None:
    result = run({"acceptance": 1.0})
    assert result.result["server"]["spec_decode_mean_acceptance_length"] == 4
    for row in range(60):
        _, counts = np.unique(tokens_of(result, row), return_counts=True)
        assert counts[0] == 1  # the prompt's own step has nothing to verify
        assert (counts[1:-1] == 4).all()
        assert (
            counts[-1] == (result.raw.output_tokens[row] - 2) % 4 + 1 or len(counts) == 1
        )  # the surplus is dropped


def test_clients_that_leave_take_their_rows_out_of_the_aggregate() -> None:
    pool = {**SCENARIO["deployment"], "speculative": {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}}
    jump, step = (
        simulate({**SCENARIO, "deployment": pool, "client": {"timeout_s": 0.3}}, aggregate=jump) for jump in (True, False)
    )
    assert 5 < jump.result["totals"]["reasons"]["timed_out"] < 55
    assert jump.result == step.result


def test_nothing_accepted_costs_more_and_gains_nothing() -> None:
    plain, drafted = run(None), run({"acceptance": 0.0})
    assert drafted.result["server"]["spec_decode_mean_acceptance_length"] == 1
    assert drafted.result["server"]["spec_decode_num_accepted_tokens"] == 0
    for metric in ("tpot_ms", "itl_ms", "e2el_ms"):
        assert drafted.result["metrics"][metric]["mean"] > plain.result["metrics"][metric]["mean"]
    assert "spec_decode_num_drafts" not in plain.result["server"]


def test_mean_length_is_leviathans_and_more_acceptance_is_never_slower() -> None:
    tpot = []
    for a in (0.3, 0.6, 0.9):
        result = run({"acceptance": a}).result
        server = result["server"]
        n = server["spec_decode_num_drafts"]
        assert server["spec_decode_num_draft_tokens"] == 3 * n
        assert server["spec_decode_mean_acceptance_length"] == pytest.approx(
            (1 - a**4) / (1 - a), abs=6 / n**0.5
        )
        tpot.append(result["metrics"]["tpot_ms"]["mean"])
    assert tpot[0] > tpot[1] > tpot[2]


def test_stepping_plainly_and_running_again_give_the_same() -> None:
    one, two, plain = (
        run({"acceptance": 0.7}),
        run({"acceptance": 0.7}),
        run({"acceptance": 0.7}, aggregate=False),
    )
    for other in (two, plain):
        assert np.array_equal(one.raw.end_s, other.raw.end_s)
        assert one.result["metrics"] == other.result["metrics"]


def test_a_request_accepts_the_same_on_however_many_replicas() -> None:
    """Its stream is its own: only the steps in which others take part differ."""
    one, many = run({"acceptance": 0.7}), run({"acceptance": 0.7}, replicas=3)
    for row in range(60):
        a, b = (np.unique(tokens_of(r, row), return_counts=True)[1] for r in (one, many))
        assert a.tolist() == b.tolist()


def test_tokens_of_one_step_are_one_chunk_to_the_client() -> None:
    result = run({"acceptance": 1.0})
    gaps, weights = token_gaps(result.raw, np.ones(60, dtype=bool))
    steps = sum(len(set(tokens_of(result, row))) for row in range(60))
    assert weights.sum() == steps - 60
    assert gaps.min() > 0


def test_drafts_live_through_preemption() -> None:
    args = {"num_gpu_blocks_override": 120, "max_model_len": 1800}
    result = run({"acceptance": 0.7}, engine_args=args)
    assert result.raw.preemptions.sum() > 0
    finished = result.raw.status == 0
    assert finished.sum() > 50
    for row in np.flatnonzero(finished):
        assert len(tokens_of(result, row)) == result.raw.output_tokens[row]


def test_results_say_that_no_such_run_was_measured() -> None:
    result = run({"acceptance": 0.7}).result
    assert any("speculative" in axis for axis in result["extrapolation"]["axes"])
    assert any("2.53 tokens a verification" in text for text in result["assumptions"])


def test_a_pasted_command_needs_the_acceptance_beside_it() -> None:
    command = """vllm serve meta-llama/Llama-3.1-8B-Instruct -sc '{"method": "eagle", "num_speculative_tokens": 2}'"""
    with pytest.raises(InputError, match="no acceptance is given"):
        simulate({**SCENARIO, "deployment": {**SCENARIO["deployment"], "engine_args": command}})
    pool = {**SCENARIO["deployment"], "engine_args": command, "speculative": {"acceptance_length": 2.2}}
    server = simulate({**SCENARIO, "deployment": pool}).result["server"]
    assert server["spec_decode_mean_acceptance_length"] == pytest.approx(2.2, abs=0.06)
