"""The time until a server serves: its parts, and constants that follow from the logs that they name."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import geometric_mean, mean

import pytest

from engine_models.cost.start_up import constants, predicted

LOGS = Path(__file__).resolve().parents[3] / "shared" / "data" / "published" / "measured_startup.csv"
GIB = 2**30
R1_BYTES = 688.6e9
"""Weights of DeepSeek-R1 as published, of which each of eight devices loads an eighth."""


def test_every_constant_says_where_it_is_from_and_how_far_it_is_off() -> None:
    raw = constants()
    found = [*raw["weights"].values(), *(each for engine in raw["engines"].values() for each in engine.values())]
    assert len(found) >= 8
    for entry in found:
        assert entry["value"] > 0
        assert entry.keys() - {"range"} == {"value", "unit", "kind", "date", "meaning", "source", "held_out"}
        low, high = entry.get("range", (entry["value"],) * 2)
        assert low <= entry["value"] <= high
        assert entry["kind"] != "assumed" or "range" in entry
        assert entry["kind"] in ("fitted", "measured", "assumed")


@pytest.mark.skipif(not LOGS.exists(), reason="the published logs are not here")
def test_constants_are_those_of_the_logs() -> None:
    with LOGS.open(newline="") as file:
        rows = list(csv.DictReader(file))

    def of(engine: str, model: str, hardware: str = "") -> list[dict[str, str]]:
        kept = (row for row in rows if row["engine"].startswith(engine) and model in row["model"] and hardware in row["hardware"])
        return list({tuple(row.values()): row for row in kept}.values())

    def rates(some: list[dict[str, str]]) -> list[float]:
        return [float(row["model_gib_per_gpu"]) * GIB / float(row["weights_load_s"]) for row in some]

    raw, own = constants(), constants()["engines"]["vllm"]
    cold, *warm = sorted(of("vLLM", "Llama-3.1-8B"), key=lambda row: -float(row["weights_load_s"]))
    large = of("vLLM", "Qwen3.5-122B")
    weights = {name: entry["value"] for name, entry in raw["weights"].items()}
    assert weights["cache"] == pytest.approx(geometric_mean(rates(warm)), rel=0.01)
    assert weights["disk"] == pytest.approx(geometric_mean(rates([cold, *large])), rel=0.01)
    shared = geometric_mean([rates(of("vLLM", name, "GB300"))[0] for name in ("DeepSeek-V4-Pro", "Kimi")])
    sglang = of("SGLang", "DeepSeek-R1")
    other = geometric_mean([R1_BYTES / 8 / float(row["sgl_load_s"]) for row in sglang])
    assert weights["network"] == pytest.approx(geometric_mean([shared, other]), rel=0.02)
    assert own["compile_s"]["value"] == pytest.approx(sum(float(large[0][key]) for key in ("dynamo_s", "compile_s")), abs=0.1)
    cached = [of("vLLM", name, "GB300")[0] for name in ("DeepSeek-V4-Pro", "Kimi")]
    assert own["compile_cached_s"]["value"] == pytest.approx(
        geometric_mean([float(row["dynamo_s"]) + float(row["compile_s"]) for row in cached]), abs=0.1
    )
    eight = [cold, *warm]
    captures = [mean(float(row["graph_capture_s"]) for row in eight)]
    captures += [float(row["graph_capture_s"]) for row in (*cached, *of("vLLM", "Qwen3-8B"))]
    assert own["graph_capture_s"]["value"] == pytest.approx(geometric_mean(captures), abs=0.1)
    left_out = [geometric_mean([c for c in captures if c != each]) / each - 1 for each in captures]
    assert sorted(round(abs(error), 2) for error in left_out)[:3] == [0.38, 0.49, 0.76], "as its `held_out` says"
    rest = mean(float(row["init_engine_s"]) - float(row["graph_capture_s"]) for row in eight)
    assert own["warm_up_s"]["value"] == pytest.approx(rest, abs=0.2)
    compiled = mean(float(row["compile_s"]) for row in sglang)
    assert raw["engines"]["sglang"]["compile_s"]["value"] == pytest.approx(compiled, abs=0.1)
    captured = mean(float(row["sgl_capture_s"]) for row in sglang)
    products_s = raw["engines"]["sglang"]["compile_products_s"]["value"]
    assert products_s + own["graph_capture_s"]["value"] == pytest.approx(captured, abs=0.1)


def test_parts_follow_from_weights_engine_and_caches() -> None:
    bytes_ = 16e9
    disk, said = predicted("vllm", bytes_)
    cache, _ = predicted("vllm", bytes_, place="cache", compiled=True)
    assert disk.weights_s == pytest.approx(16e9 / 2.11e9)
    assert cache.weights_s < disk.weights_s / 5
    assert (disk.compile_s, cache.compile_s) == (94.5, 9.7)
    assert disk.server_s == pytest.approx(sum(disk.parts().values()))
    assert not said
    eager, _ = predicted("vllm", bytes_, captures=False)
    assert (eager.compile_s, eager.graph_capture_s) == (0, 0)
    _, said = predicted("tgi", bytes_)
    assert "taken over from vllm" in said[0]
    assert "compile" not in said[0]
    static, said = predicted("transformers", bytes_, captures=False)
    assert predicted("llama_cpp", bytes_, captures=False)[0].warm_up_s < static.warm_up_s < disk.warm_up_s
    assert said == ["start-up: warm_up_s of transformers may be 3 to 15 s (assumed)"]
    others, said = predicted("litserve", bytes_, captures=False)
    assert others.warm_up_s == static.warm_up_s
    assert said[0] == "start-up: warm_up_s of litserve taken over from transformers (assumed)"
    assert "may be 3 to 15 s" in said[1]
    # a library of its own, which a cache spares, though nothing is captured
    mlc, mlc_cached = (predicted("mlc_llm", bytes_, captures=False, compiled=compiled)[0] for compiled in (False, True))
    assert (mlc.compile_s, mlc.graph_capture_s) == (86.0, 0.0)
    assert mlc_cached.server_s < mlc.server_s - 80
    first, _ = predicted("sglang", bytes_, compiles_products=True)
    later, _ = predicted("sglang", bytes_, compiles_products=True, compiled=True)
    assert first.graph_capture_s == pytest.approx(later.graph_capture_s + 949.9)
    uncompiled, _ = predicted("sglang", bytes_, compiles=False)
    assert uncompiled.compile_s == 0.0
