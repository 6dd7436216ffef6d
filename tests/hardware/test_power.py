"""Power of devices by load, and the energy of a run."""

from __future__ import annotations

import pytest

from hardware_profiles.device import all_devices, load_device
from hardware_profiles.errors import InputError
from hardware_profiles.power import limited, mean_power_w
from simulator.calibration.deployment import Deployment
from simulator.config.load import load_scenario
from simulator.run import simulate


def test_power_by_hand() -> None:
    h100 = load_device("h100-sxm-80gb")
    assert mean_power_w(h100, 0.0, 0.0) == 70.0  # idle_w of the profile
    assert mean_power_w(h100, 1.0, 1.0) == pytest.approx(350.0)
    assert mean_power_w(h100, 1.0, 32.0) == pytest.approx(700 * (0.5 + 0.07 * 3.4657), rel=1e-3)
    assert mean_power_w(h100, 1.0, 1e9) == pytest.approx(630.0)
    assert mean_power_w(h100, 0.5, 1.0) == pytest.approx(210.0)


@pytest.mark.parametrize(
    ("name", "rows", "watt"),
    [("h100-sxm-80gb", 128, 582), ("b200-sxm-180gb", 32, 676), ("h200-sxm-141gb", 4, 463), ("rtx-5090-32gb", 1, 499)],
)
def test_power_beside_measured(name: str, rows: int, watt: float) -> None:
    """Medians of ML.ENERGY by batch, one H200, single streams of RTX 5090."""
    assert mean_power_w(load_device(name), 1.0, rows) == pytest.approx(watt, rel=0.12)


def test_power_lies_between_idle_and_the_limit() -> None:
    for device in all_devices():
        found = [mean_power_w(device, busy, rows) for busy, rows in ((0, 0), (0.3, 4), (1, 4), (1, 400))]
        assert 0 < found[0] < found[1] < found[2] <= found[3] <= device.tdp_w.value


def test_a_run_reports_the_energy_of_its_devices() -> None:
    load = {"arrivals": {"kind": "poisson", "rate": 2}, "prompt_tokens": 200, "output_tokens": 50, "duration": 30}
    deployment = {"engine": "vllm", "hardware": "h100-sxm-80gb", "tensor_parallel": 2}
    spec = {"model": "Llama-3.1-8B", "deployment": deployment, "workload": load}
    result = simulate(load_scenario(spec)).result
    server, seconds = result["server"], result["totals"]["duration_s"]
    rows = server["num_requests_running"] / server["gpu_busy_fraction"]
    each_w = mean_power_w(load_device("h100"), server["gpu_busy_fraction"], rows)
    assert server["energy_j"] == pytest.approx(2 * seconds * each_w)


def test_a_limit_by_hand() -> None:
    """An RTX 4090 (450 W) at 300 W: (2/3 - 0.29) / 0.71 is 0.5305, its third root 0.8095; at 225 W the root is 0.6662."""
    card = load_device("rtx-4090")
    scales = limited(card, 300.0, where="x")
    assert (scales.prompt_scale, scales.decode_scale, scales.host_scale) == (pytest.approx(1 / 0.8095, rel=1e-3), 1.0, 1.0)
    assert limited(card, 225.0, where="x").decode_scale == pytest.approx(0.8 / 0.6662, rel=1e-3)
    assert limited(card, 450.0, where="x").prompt_scale == pytest.approx(1.0)
    assert mean_power_w(card, 1.0, 4, 300.0) == 300.0


@pytest.mark.parametrize(
    ("name", "share", "measured"),
    [("rtx-3090", 0.676, 0.863), ("rtx-5090", 0.667, 0.839), ("rtx-pro-6000", 0.667, 0.915), ("h200", 0.714, 0.807)],
)
def test_prompts_under_a_limit_beside_measured(name: str, share: float, measured: float) -> None:
    """Rates over those at the TDP: llama.cpp, vLLM, llama-bench, MLPerf's Llama-2-70B offline."""
    device = load_device(name)
    assert 1 / limited(device, share * device.tdp_w.value, where="x").prompt_scale == pytest.approx(measured, rel=0.13)


@pytest.mark.parametrize(("name", "watt"), [("rtx-4090", 200), ("rtx-4090", 500), ("mi300x", 500), ("dgx-spark", 80)])
def test_limits_that_nobody_measured_are_refused(name: str, watt: float) -> None:
    with pytest.raises(InputError, match=r"power limit"):
        limited(load_device(name), watt, where="deployment.power_limit_w")


def test_a_run_under_a_limit_is_slower_and_draws_less() -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 4, "prompt_tokens": 2000, "output_tokens": 50}
    deployment = {"engine": "vllm", "hardware": "rtx-4090", "weights": "awq", "engine_args": {"max_model_len": 4096}}
    plain, slow = (
        simulate(load_scenario({"model": "Llama-3.1-8B", "deployment": {**deployment, **more}, "workload": load})).result
        for more in ({}, {"power_limit_w": 300})
    )
    assert slow["metrics"]["ttft_ms"]["mean"] > 1.15 * plain["metrics"]["ttft_ms"]["mean"]
    assert slow["server"]["energy_j"] < plain["server"]["energy_j"]
    assert (slow["deployment"]["power_limit_w"], plain["deployment"].get("power_limit_w")) == (300, None)


def test_measurements_hold_the_limit_they_were_made_under() -> None:
    load = "workload: {arrivals: {kind: batch}, requests: 1, prompt_tokens: 9, output_tokens: 9}"
    deployment = "deployment: {engine: vllm, hardware: l40s, power_limit_w: 300}"
    with pytest.raises(InputError, match=r"hold the power limit"):
        _ = Deployment(f"model: Qwen/Qwen3-8B\n{deployment}\n{load}\n").prepared
