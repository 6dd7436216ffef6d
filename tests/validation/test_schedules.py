"""Recorded schedules of the real scheduler, replayed step by step."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hardware_profiles.errors import InputError
from simulator.validation.schedules import drive, replay, replay_of

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "conformance"
RECORDED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "conformance"
KEPT = sorted(path.stem for path in FIXTURES.glob("*.jsonl"))


@pytest.mark.parametrize("name", KEPT)
def test_kept_recording_is_equal_at_every_step(name: str) -> None:
    result = replay(FIXTURES / f"{name}.jsonl")
    assert result["first_difference"] is None
    assert result["equal"] == result["steps"] > 20


def test_recordings_of_several_engines_are_kept() -> None:
    assert sum(name.startswith("sglang_") for name in KEPT) == 19
    assert sum(name.startswith("llama_cpp_") for name in KEPT) == 4
    assert len(KEPT) == 39


@pytest.mark.parametrize(
    ("folder", "files", "steps"),
    [
        ("vllm", 18, 8599),
        ("vllm_pd", 9, 3482),
        ("sglang", 17, 11004),
        ("sglang_pd", 10, 2734),
        ("tgi", 10, 4804),
        ("trtllm", 12, 5944),
        ("lmdeploy_pytorch", 11, 5822),
        ("transformers_cb", 12, 6773),
        ("litserve", 12, 740),
        ("deepspeed_mii", 9, 4245),
        ("mlx_lm", 9, 4757),
        ("openvino", 13, 7925),
        ("llama_cpp", 25, 4220),
        ("exllamav2", 7, 4080),
        ("routers", 36, 2351),
    ],
)
def test_all_recordings_are_equal_at_every_step(folder: str, files: int, steps: int) -> None:
    if not RECORDED.is_dir():
        pytest.skip(f"no recordings beside the checkout ({RECORDED})")
    results = [replay(path) for path in sorted((RECORDED / folder).glob("*.jsonl"))]
    assert {r["name"]: r["first_difference"] for r in results if r["equal"] != r["steps"]} == {}
    assert (len(results), sum(r["steps"] for r in results)) == (files, steps)


def simulate_recording(config: dict, requests: list[dict]) -> list[dict]:
    return drive(replay_of(config), config, requests)


def load(name: str) -> tuple[dict, list[dict], list[dict]]:
    lines = [json.loads(line) for line in (FIXTURES / f"{name}.jsonl").read_text().splitlines()]
    kinds = {kind: [e for e in lines if e["type"] == kind] for kind in ("config", "request", "step")}
    return kinds["config"][0], kinds["request"], kinds["step"]


@pytest.mark.parametrize(("version", "equal"), [("0.33.0", True), ("0.24.0", False), ("0.15.1", False)])
def test_older_versions_cap_a_lone_request(version: str, equal: bool) -> None:
    """Versions before 0.33 cap a lone request too: the recording of 0.33 differs from its first step on."""
    config, requests, steps = load("long_prefill_threshold")
    got = simulate_recording({**config, "version": version}, requests)
    assert (got[0]["sched"] == steps[0]["sched"]) == equal


def test_without_the_gate_on_the_whole_prompt_long_prompts_preempt() -> None:
    """vLLM 0.15.1, run on this workload, preempts 4 times in 202 steps and first differs at step 134."""
    config, requests, steps = load("long_prompts")
    got = simulate_recording({**config, "version": "0.15.1"}, requests)
    assert len(got) == 202
    assert sum(len(step["preempted"]) for step in got) == 4
    keys = ("sched", "hits", "preempted", "free_blocks")
    differs = [any(a[k] != b[k] for k in keys) for a, b in zip(got, steps, strict=False)]
    assert differs.index(True) == 134


@pytest.mark.parametrize("name", ["hybrid_swa", "spec_decode_k3"])
def test_0_15_1_schedules_these_as_0_33(name: str) -> None:
    config, requests, steps = load(name)
    got = simulate_recording({**config, "version": "0.15.1"}, requests)
    assert [(s["sched"], s["free_blocks"]) for s in got] == [
        ([row[:3] for row in s["sched"]], s["free_blocks"]) for s in steps
    ]


def test_asynchronous_speculation_costs_no_tokens() -> None:
    """Every request still gets all its tokens, in fewer steps than tokens, and all blocks come back."""
    config, requests, _ = load("spec_decode_k3")
    knobs = {**config["config"], "async_scheduling": True, "num_lookahead_tokens": 3, "num_gpu_blocks": 120}
    got = simulate_recording({**config, "config": knobs}, requests)
    last = {}
    for step in got:
        for rid, tokens, before in step["sched"]:
            last[rid] = before + tokens
    for entry in requests:
        assert last[entry["id"]] >= entry["prompt_len"] + entry["output_len"] - 1
    assert max(step["free_blocks"] for step in got) <= 119
    assert sum(len(step["preempted"]) for step in got) > 0


def test_not_a_recording_names_the_line(tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"type":"config","engine":"vllm"}\nnot json\n')
    with pytest.raises(InputError) as error:
        replay(bad)
    assert f"{bad}:2" in str(error.value.where)
