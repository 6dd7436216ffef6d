"""Power of devices by load, and the energy of a run."""

from __future__ import annotations

import pytest

from hardware_profiles.device import all_devices, load_device
from hardware_profiles.power import mean_power_w
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
