"""A scenario that names a calibration: its scales, its intervals, and what leaves it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine_models.parts.batch import Batch
from hardware_profiles.calibration import Calibration, read_calibration
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from hardware_profiles.kernels import operations_of
from hardware_profiles.ops import Ops
from hardware_profiles.scaled_ops import ScaledOps, Scales
from simulator.calibrated import measured_on, with_scales
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate

SCENARIO: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "closed_loop", "concurrency": 4},
        "prompt_tokens": 512,
        "output_tokens": 16,
        "requests": 16,
    },
}


def calibration(**changed: Any) -> Calibration:
    """A calibration of the scenario above."""
    made = Calibration(
        scales={"decode": 1.2},
        log_std={"decode": 0.03},
        unidentified={"prompt": "no prompt was measured", "host": "no step waits for it"},
        interval={"tpot": 0.07},
        measured_on=measured_on(prepare(load_scenario(SCENARIO))),
        domain={"prompt_tokens": (256.0, 512.0), "rows": (1.0, 4.0)},
        points=3,
        held_out_error=0.02,
        table=(),
        provenance={"files": []},
    )
    return replace(made, **changed)


def with_file(path: Path, **workload: Any) -> dict[str, Any]:
    """The scenario with a calibration."""
    deployment = {**SCENARIO["deployment"], "calibration": str(path)}
    return {**SCENARIO, "deployment": deployment, "workload": {**SCENARIO["workload"], **workload}}


def test_scales_split_a_product_into_reading_and_arithmetic() -> None:
    ops = prepare(load_scenario(SCENARIO)).kernels
    slow = ScaledOps.of(ops, Scales(prompt_scale=3.0, decode_scale=2.0))
    one, many = (np.atleast_1d(ops.gemm_s("bf16", m, 4096, 4096))[0] for m in (1, 8192))
    scaled = slow.gemm_s("bf16", np.array([1, 8192]), 4096, 4096)
    assert scaled == pytest.approx([2 * one, 2 * one + 3 * (many - one)])
    reduced = slow.all_reduce_s(4, 1e6)
    assert np.all(reduced == ops.all_reduce_s(4, 1e6))


def test_the_host_scale_leaves_the_device_alone() -> None:
    plain = prepare(load_scenario(SCENARIO))
    slow = with_scales(plain, Scales(host_scale=2.0))
    batch = Batch(0, decode_rows=4, decode_tokens=4, decode_kv_tokens=2048, tokens=4)
    assert slow.times().host_s(batch) == pytest.approx(2 * plain.times().host_s(batch))
    assert slow.times().step_s([batch])[0] == pytest.approx(plain.times().step_s([batch])[0], rel=1e-12)


def test_a_run_by_a_calibration_is_slower_and_has_its_interval(tmp_path: Path) -> None:
    calibration().write(tmp_path / "mine.json")
    plain, mine = simulate(SCENARIO).result, simulate(with_file(tmp_path / "mine.json")).result
    tpot = mine["metrics"]["tpot_ms"]
    assert 1.1 < tpot["mean"] / plain["metrics"]["tpot_ms"]["mean"] < 1.21
    assert tpot["interval"]["mean"] == pytest.approx([tpot["mean"] / np.exp(0.07), tpot["mean"] * np.exp(0.07)])
    assert mine["extrapolation"]["inside_calibration"]
    assert any("times the profile's: decode 1.2; not told by them: prompt, host" in text for text in mine["assumptions"])


def test_another_model_on_the_machine_has_a_part_of_the_scales(tmp_path: Path) -> None:
    calibration(elsewhere_share=0.3).write(tmp_path / "mine.json")
    calibration(elsewhere_share=1.0).write(tmp_path / "all.json")
    tpot = {}
    for name in ("", "mine.json", "all.json"):
        named = with_file(tmp_path / name) if name else SCENARIO
        found = simulate({**named, "model": "meta-llama/Llama-3.1-8B-Instruct"}).result
        tpot[name] = found["metrics"]["tpot_ms"]["mean"]
        said = " ".join(found["assumptions"])
        assert ("decode 1.06 (of another model: its scales to the power 0.3)" in said) == (name == "mine.json")
    assert np.log(tpot["mine.json"] / tpot[""]) == pytest.approx(0.3 * np.log(tpot["all.json"] / tpot[""]), rel=0.1)
    text = (tmp_path / "mine.json").read_text()
    (tmp_path / "mine.json").write_text(text.replace('"elsewhere": 0.3', '"elsewhere": 3'))
    with pytest.raises(InputError, match="elsewhere is between 0 and 1"):
        read_calibration(tmp_path / "mine.json")


def test_outside_of_what_was_measured_it_says_so_and_is_as_wide_as_without(tmp_path: Path) -> None:
    calibration().write(tmp_path / "mine.json")
    longer = simulate(with_file(tmp_path / "mine.json", prompt_tokens=2048)).result
    assert longer["extrapolation"]["axes"][0] == "calibration: prompts of 512 tokens were measured, not prompts of 2,048 tokens"
    plain = simulate({**SCENARIO, "workload": {**SCENARIO["workload"], "prompt_tokens": 2048}}).result
    with_it, without = (np.log(np.divide(*run["metrics"]["tpot_ms"]["interval"]["mean"][::-1])) for run in (longer, plain))
    assert with_it == pytest.approx(without, rel=0.02)
    changed = load_scenario(with_file(tmp_path / "mine.json"), ["deployment.weights=fp8"])
    assert "calibration: weights bf16 was measured, not fp8" in simulate(changed).result["extrapolation"]["axes"]


def test_calibrations_of_other_devices_and_files_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    calibration().write(path)
    with pytest.raises(InputError, match="was measured on vllm on h100-sxm-80gb, and this is vllm on a100"):
        prepare(load_scenario(with_file(path), ["deployment.hardware=a100-sxm-80gb"]))
    with pytest.raises(InputError, match="there already"):
        calibration().write(path)
    assert read_calibration(path) == replace(calibration(), name="mine.json")
    path.write_text(path.read_text().replace('"value": 1.2', '"value": 1e9'))
    with pytest.raises(InputError, match="scales are prompt, decode, host"):
        read_calibration(path)


def test_operations_by_scales_answer_all_that_is_asked_of_operations() -> None:
    asked = {name for name in vars(Ops) if not name.startswith("_")}
    assert asked <= vars(ScaledOps).keys()
    ops = operations_of(load_device("gb200-186gb"), "sglang")
    lent = ScaledOps.of(ops, Scales(prompt_scale=3.0)).lent_experts("int4", "trtllm")
    assert lent == ops.lent_experts("int4", "trtllm") is not None
