"""Devices of a user's own: from a spec sheet, and from kernels timed on the machine."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hardware_profiles.device import load_device, read_device
from hardware_profiles.device_bench import KernelTime, Machine
from hardware_profiles.device_fit import device_text, errors_of, fit_device
from hardware_profiles.errors import InputError
from hardware_profiles.kernels import operations_of
from simulator.cli.device import _timed_so_far
from simulator.config.load import load_scenario, scenario_hash
from simulator.prepare import prepare
from simulator.results.domain import domain


def sheet(rate: float) -> dict[str, Any]:
    def number(value: float, unit: str) -> dict[str, Any]:
        return {"value": value, "unit": unit, "kind": "datasheet", "source": "sheet"}

    return {
        "title": "A card",
        "vendor": "nvidia",
        "kind": "gpu",
        "architecture": "ada",
        "formats": ["bf16"],
        "peak_flops_per_s": {"bf16": number(1.8e14, "FLOP/s")},
        "memory_bytes": number(5e10, "byte"),
        "memory_bandwidth_bytes_per_s": number(rate, "byte/s"),
        "tdp_w": number(300, "W"),
        "node_size": number(1, "device"),
        "sources": {"sheet": {"ref": "page 2", "date": "2026-11-29"}},
    }


def scenario(hardware: str) -> dict[str, Any]:
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 100, "output_tokens": 10, "requests": 4}
    return {"model": "Qwen/Qwen3-8B", "deployment": {"engine": "vllm", "hardware": hardware}, "workload": workload}


def test_a_file_is_a_device(tmp_path: Path) -> None:
    steps = []
    hashes = set()
    for name, rate in (("my-card", 1e12), ("my-slow-card", 5e11)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(sheet(rate)))
        prepared = prepare(load_scenario(scenario(str(path))))
        assert prepared.device.name == name
        assert not any("is taken for" in text for text in prepared.assumptions)
        assert load_device(name).memory_bandwidth_bytes_per_s.value == rate
        steps.append(float(prepared.kernels.gemm_s("bf16", [1], 4096, 4096)[0]))
        hashes.add(scenario_hash(prepared.scenario, "1"))
    assert steps[1] == pytest.approx(2 * steps[0], rel=0.2)
    assert len(hashes) == 2


@pytest.mark.parametrize("profile", [{}, {"kernel_profile": "l40s-48gb"}])
def test_two_devices_of_a_file_talk_over_its_link(profile: dict[str, str], tmp_path: Path) -> None:
    """Nobody said otherwise, whatever link the device has whose kernels it borrows; a deployment may."""
    rate = {"value": 6.4e10, "unit": "byte/s", "kind": "datasheet", "source": "sheet"}
    link = {"kind": "pcie5", "topology": "pcie", "bytes_per_s_per_direction": rate}
    path = tmp_path / "my-pair.yaml"
    path.write_text(yaml.safe_dump({**sheet(1e12), **profile, "link": link, "node_size": {**rate, "value": 2, "unit": "device"}}))
    said = []
    for more in ({}, {"peer_access": True}, {"peer_access": False}):
        given = scenario(str(path))
        given["deployment"] |= {"tensor_parallel": 2, **more}
        said.append(any("as the deployment says" in text for text in prepare(load_scenario(given)).assumptions))
    assert said == [False, False, True]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory_bandwidth_bytes_per_s": None}, "a number needs value"),
        ({"kind": "card"}, "unknown kind 'card'"),
        ({"tdp": 300}, "unknown key 'tdp'"),
        ({"tdp_w": {"value": 0, "unit": "W", "kind": "datasheet", "source": "sheet"}}, "tdp_w is 0"),
        ({"memory_bytes": {"value": 48, "unit": "GB", "kind": "datasheet", "source": "sheet"}}, "memory_bytes is in GB"),
        (
            {"peak_flops_per_s": {"bf16": {"value": 180, "unit": "FLOP/s", "kind": "datasheet", "source": "sheet"}}},
            "bf16 cannot be 180 FLOP/s",
        ),
        ({"link": "pcie4"}, "'pcie4' is no mapping"),
        ({"link": {"kind": "pcie4", "topology": "pcie"}}, "'bytes_per_s_per_direction' is missing"),
        ({"formats": "bf16"}, "'bf16' is no list"),
        ({"formats": ["fp7"]}, "unknown formats 'fp7'"),
        ({"peak_flops_per_s": {}}, "no peak in bf16, fp16 or fp32"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "my-card.yaml"
    path.write_text(yaml.safe_dump(sheet(1e12) | change))
    with pytest.raises(InputError, match=words):
        prepare(load_scenario(scenario(str(path))))


def test_a_file_that_is_not_there_or_has_a_shipped_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no"):
        load_device(str(tmp_path / "none.yaml"))
    (tmp_path / "l40s-48gb.yaml").write_text(yaml.safe_dump(sheet(1e12)))
    with pytest.raises(InputError, match="is the name of a shipped device"):
        load_device(str(tmp_path / "l40s-48gb.yaml"))


def test_a_device_is_fitted_to_kernels_and_its_error_is_the_intervals(tmp_path: Path) -> None:
    like = load_device("epyc-9755-1s")
    true = load_device("epyc-9654-1s")  # slower in both
    planned = [KernelTime("stream", (1 << 28,), 1.0)]
    planned += [KernelTime("gemm", (m, n, 4096), 1.0) for m in (1, 16, 256, 4096) for n in (4096, 11008)]
    planned += [KernelTime("decode", (8, c), 1.0) for c in (512, 4096)] + [KernelTime("prompt", (m,), 1.0) for m in (256, 2048)]
    times = [each._replace(took_s=each.predicted_s(operations_of(true, "vllm"))) for each in planned]
    made = fit_device(like, times, "2026-11-29", "a test")
    assert made.device.memory_bandwidth_bytes_per_s.value == pytest.approx(true.memory_bandwidth_bytes_per_s.value, rel=0.02)
    assert made.device.peak_flops_per_s["bf16"].value == pytest.approx(true.peak_flops_per_s["bf16"].value, rel=0.02)
    assert max(map(abs, made.errors)) < 0.05 < max(map(abs, errors_of(operations_of(like, "vllm"), times)))
    noisy = [each._replace(took_s=each.took_s * (0.8, 1.1, 1.3)[number % 3]) for number, each in enumerate(times)]
    made = fit_device(like, noisy, "2026-11-29", "a test")
    path = tmp_path / "mine.yaml"
    machine = Machine("cpu", "cpu", "", "a machine", 1 << 36, 2, "2.0")
    path.write_text(device_text(made, machine, noisy, like.name, "2026-11-29"))
    device = read_device(path, "mine")
    assert device.kernel_error is not None
    assert 0.05 < device.kernel_error.value < 0.5
    evidence, axes = domain(prepare(load_scenario(scenario(str(path)))))
    assert evidence.kernel_error == pytest.approx(device.kernel_error.value)
    assert not any("no kernel of mine was measured" in text for text in axes)


def test_kernels_that_do_not_tell_a_rate_are_refused() -> None:
    """Products of few rows say nothing of arithmetic, of many rows alone nothing of memory."""
    like = load_device("epyc-9755-1s")
    for rows, word in (((1, 2, 4), "arithmetic"), ((1024, 2048, 4096), "memory")):
        planned = [KernelTime("gemm", (m, n, 4096), 1.0) for m in rows for n in (4096, 8192, 11008)]
        planned += [KernelTime("stream", (1 << 28,), 1.0), KernelTime("decode", (1, 512), 1.0)]
        times = [each._replace(took_s=each.predicted_s(operations_of(like, "vllm"))) for each in planned]
        with pytest.raises(InputError, match=f"as long as its {word} asks"):
            fit_device(like, times, "2026-11-30", "a test")


def test_an_interrupted_timing_goes_on_from_its_file(tmp_path: Path) -> None:
    """A cut line is left out; a file of another machine is refused."""
    machine = Machine("cpu", "cpu", "", "a machine", 1 << 36, 2, "2.0")
    path = tmp_path / "mine.kernels.jsonl"
    assert _timed_so_far(path, machine) == []
    head = '{"machine": "a machine", "pytorch": "2.0"}'
    path.write_text(head + '\n{"op": "gemm", "sizes": [1, 8, 8], "took_s": 0.5}\n{"op": "gemm", "si')
    assert _timed_so_far(path, machine) == [KernelTime("gemm", (1, 8, 8), 0.5)]
    with pytest.raises(InputError, match="holds no kernels timed on another"):
        _timed_so_far(path, replace(machine, title="another"))


def test_without_pytorch_the_command_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from simulator.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr("sys.argv", ["capacity-plan", "calibrate", "device", "--like", "epyc-9755-1s"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "llama-bench" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
