"""Prefix caches that outlive a run: saved, and filled in again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hardware_profiles.errors import InputError
from simulator import RunResult, load_scenario, simulate
from simulator.caches import cache_words, warm
from simulator.caches import saved as written
from simulator.io.text import dense_json
from simulator.prepare import prepare
from simulator.run import run_prepared
from simulator.serving.rank import Rank
from simulator.workload.naming import SegmentNumbers

SHARED: dict[str, Any] = {
    "arrivals": {"kind": "poisson", "rate": 6},
    "prompt_tokens": {"kind": "constant", "value": 300},
    "output_tokens": {"kind": "uniform", "low": 20, "high": 60},
    "shared_prefix": {"groups": 3, "tokens": 1600},
    "requests": 40,
}
ENGINES = ("vllm", "sglang", "trtllm")


def scenario(workload: dict[str, Any], **pool: Any) -> dict[str, Any]:
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", **pool}
    return {"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": deployment, "workload": workload}


def saved(workload: dict[str, Any], path: Path, **pool: Any) -> RunResult:
    run = run_prepared(prepare(load_scenario(scenario(workload, **pool))), save_cache=True)
    assert run.cache is not None
    path.write_text(dense_json(run.cache))
    return run


def hits(run: RunResult) -> list[int]:
    found: list[int] = run.requests_frame().cached_tokens.tolist()
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_a_saved_cache_goes_on_as_a_second_stage(engine: str, tmp_path: Path) -> None:
    """The run with the cache of another is the second of two stages: hits to the token, steps to the bit."""
    path = tmp_path / "cache.json"
    first = saved(SHARED, path, engine=engine, replicas=2)
    assert first.raw.end_s.tolist() == simulate(scenario(SHARED, engine=engine, replicas=2)).raw.end_s.tolist()
    both = simulate(scenario({"stages": [SHARED, {**SHARED, "requests": 30}]}, engine=engine, replicas=2))
    fields = scenario({**SHARED, "requests": 30}, engine=engine, replicas=2, warm_cache=str(path))
    warm, cold = simulate(fields), simulate({**fields, "deployment": {**fields["deployment"], "warm_cache": None}})
    assert sum(hits(cold)) < sum(hits(warm)) == sum(hits(both)[40:]) == 30 * 1600
    assert warm.result["metrics"]["ttft_ms"]["mean"] < cold.result["metrics"]["ttft_ms"]["mean"]
    assert any("2 of 2 prefix caches of pool 'pool0' begin filled" in text for text in warm.result["assumptions"])
    plain = simulate(fields, aggregate=False)
    assert plain.raw.end_s.tolist() == warm.raw.end_s.tolist()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_cache_that_is_saved_and_loaded_is_the_same_cache(engine: str, tmp_path: Path) -> None:
    """Also where it is full, and much of it is contents that nobody finds again."""
    load = {**SHARED, "shared_prefix": {"groups": 40, "tokens": 1600}, "requests": 120}
    args = {
        "vllm": {"num_gpu_blocks_override": 3000, "max_model_len": 4000},
        "sglang": {"max_total_tokens": 48000},
        "trtllm": {},
    }[engine]
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    saved(load, one, engine=engine, engine_args=args)
    fields = scenario(load, engine=engine, engine_args=args, warm_cache=str(one))
    prepared = prepare(load_scenario(fields))
    numbers, rank = SegmentNumbers(), Rank(prepared.plan.scheduler("jump"))
    warm(prepared, [rank], numbers)
    two.write_text(dense_json(written(prepared, [rank], numbers)))
    before, after = (json.loads(path.read_text()) for path in (one, two))
    assert cache_words(after) == cache_words(before)
    assert after["sources"] == before["sources"]
    assert after["caches"] == before["caches"]


def test_a_trace_is_found_again_by_its_ids(tmp_path: Path) -> None:
    lines = [
        f'{{"timestamp": {500 * i}, "input_length": 1536, "output_length": 16, "hash_ids": [0, {2 * i + 1}, {2 * i + 2}]}}'
        for i in range(6)
    ]
    trace, cache = tmp_path / "trace.jsonl", tmp_path / "cache.json"
    trace.write_text("\n".join(lines))
    load = {"trace": str(trace), "trace_format": "mooncake", "jitter_s": 0}
    saved({**load, "limit": 3}, cache)
    found = simulate(scenario(load, warm_cache=str(cache)))
    assert hits(found) == [1520] * 3 + [512] * 3
    trace.write_text("\n".join([*lines, lines[0]]))  # another file: another source
    assert hits(simulate(scenario(load, warm_cache=str(cache))))[0] == 0


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_a_smaller_cache_holds_the_latest_used(engine: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    saved(SHARED, path, engine=engine)
    args = {
        "vllm": {"num_gpu_blocks_override": 400, "max_model_len": 4000},
        "sglang": {"max_total_tokens": 6400, "context_length": 4000},
    }[engine]
    fields = scenario(SHARED, engine=engine, engine_args=args)
    cold = simulate(fields)
    fields["deployment"]["warm_cache"] = str(path)
    found = simulate(fields)
    assert found.result["totals"]["completed"] == 40
    assert sum(hits(found)[:10]) > sum(hits(cold)[:10])


def test_routers_hear_of_a_cache_that_begins_filled(tmp_path: Path) -> None:
    """A KV-aware router sends requests to where their prefixes are from the first on."""
    path = tmp_path / "cache.json"
    router = {"system": "dynamo", "policy": "kv"}
    load = {**SHARED, "shared_prefix": {"groups": 8, "tokens": 1600}}
    load["arrivals"] = {"kind": "poisson", "rate": 1}
    saved(load, path, replicas=2, router=router)
    aware, blind = (
        hits(simulate(scenario(load, replicas=2, router=rule, warm_cache=str(path)))) for rule in (router, "random")
    )
    assert aware[:2] == [1600, 1600]
    assert aware.count(0) <= 2 < blind.count(0)


def test_other_caches_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    saved({**SHARED, "requests": 5}, path)
    for other, said in (
        ({"engine": "sglang"}, "is the cache of engine vllm, this pool has sglang"),
        ({"engine_args": {"block_size": 32}}, "is the cache of blocks 16 tokens, this pool has 32"),
        ({"kv_cache": "fp8"}, "is the cache of a KV cache in bf16, this pool has fp8"),
        ({"engine_args": {"enable_prefix_caching": False}}, "it has none, or it is off"),
        ({"engine": "tgi"}, "cannot be saved or loaded here"),
    ):
        with pytest.raises(InputError, match=said):
            simulate(scenario(SHARED, **other, warm_cache=str(path)))
    fields = {**scenario(SHARED, warm_cache=str(path)), "model": "Qwen/Qwen2.5-7B-Instruct"}
    with pytest.raises(InputError, match="is the cache of model"):
        simulate(fields)


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "capacity-plan cache"}', '{"kind": "x", "caches": []}'])
def test_files_that_are_no_caches(content: str, tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    path.write_text(content)
    with pytest.raises(InputError, match="is no cache that"):
        simulate(scenario(SHARED, warm_cache=str(path)))
    saved({**SHARED, "requests": 5}, path)
    broken = json.loads(path.read_text())
    broken["caches"][0]["pieces"][0][0] = 0  # after itself
    path.write_text(json.dumps(broken))
    with pytest.raises(InputError, match="follows itself"):
        simulate(scenario(SHARED, warm_cache=str(path)))
