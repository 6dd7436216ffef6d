"""Devices without tables and without kin: the datasheet's rates times efficiencies, by kind of device."""

from __future__ import annotations

import numpy as np
import pytest

from hardware_profiles.device import load_device
from hardware_profiles.kernel_model import KernelModel
from hardware_profiles.kernel_physics import DEFAULT_PARAMETERS, LINK_EFFICIENCY, peaks_of
from hardware_profiles.kernels import operations_in_node, operations_of
from hardware_profiles.ops import Ops
from hardware_profiles.roofline import EXPERT_REGIONS, NETWORK_BYTES_PER_S, RCCL_LATENCY_S, REGION_S, Roofline

XEON = load_device("xeon-8480-2s")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("h100-sxm-80gb", KernelModel), ("l4-24gb", KernelModel), ("gaudi-3-128gb", Roofline), ("xeon-8480-2s", Roofline)],
)
def test_one_place_chooses(name: str, kind: type[Ops]) -> None:
    """Own tables, else those of the nearest kin, else the datasheet."""
    assert isinstance(operations_of(load_device(name), "vllm"), kind)


def test_what_is_said_of_a_device_in_a_node() -> None:
    assert operations_in_node(load_device("h100-sxm-80gb"), "vllm", 8)[1] == ()
    (said,) = operations_in_node(load_device("l40s-48gb"), "vllm", 4)[1]
    assert "collectives of more than two" in said
    (said,) = operations_in_node(load_device("l4-24gb"), "vllm", 1)[1]
    assert "borrowed from l40s-48gb" in said
    assert operations_in_node(XEON, "vllm", 4)[1] == ()


def test_a_cpu_pays_for_parallel_regions_and_not_for_launches_or_blocks_of_threads() -> None:
    cpu = operations_of(XEON, "vllm")
    gpu = Roofline.of_gpu(XEON.name, "vllm", peaks_of(XEON))
    assert float(cpu.elementwise_s(1.0)) == pytest.approx(REGION_S, rel=1e-3)
    assert float(cpu.moe_s("bf16", 64, 64, 1, 2, 1, 1, 1)) == pytest.approx(EXPERT_REGIONS * REGION_S, rel=0.01)
    # many rows of many KV heads of a few tokens: blocks of threads cost a GPU 2 ns each
    blocks = 1024 * 32 * DEFAULT_PARAMETERS["attention_decode"]["unit_s"]
    rows = (*("bf16", 32, 32, 64, 0), np.array([1024.0]), np.array([1.0]))
    more = float(gpu.decode_attention_s(*rows)[0] - cpu.decode_attention_s(*rows)[0])
    assert more == pytest.approx(blocks + DEFAULT_PARAMETERS["attention_decode"]["latency_s"] - REGION_S)
    # one query after a long prior leaves a GPU's multiprocessors idle
    chunk = ("bf16", "bf16", 8, 8, 128, 0, 1, 100_000)
    assert float(gpu.prefill_attention_s(*chunk)) > 1.5 * float(cpu.prefill_attention_s(*chunk))


def test_a_cpu_is_bound_by_its_memory_and_its_arithmetic() -> None:
    cpu = operations_of(XEON, "vllm")
    n, k = 28672, 8192
    assert float(cpu.gemm_s("bf16", 1, n, k)) == pytest.approx(2 * n * k / (0.8 * 6.144e11), rel=0.01)
    assert float(cpu.gemm_s("bf16", 16384, n, k)) == pytest.approx(2 * 16384 * n * k / (0.75 * 2.294e14), rel=0.01)
    assert float(cpu.gemm_s("int4", 1, n, k)) == pytest.approx(0.2578 * float(cpu.gemm_s("bf16", 1, n, k)), rel=0.02)


def test_machines_without_a_link_talk_over_the_network() -> None:
    cpu = operations_of(XEON, "vllm")
    assert float(cpu.all_reduce_s(1, 1e9)) == 0.0
    assert float(cpu.all_reduce_s(2, 1e9)) == pytest.approx(1e9 / (0.8 * NETWORK_BYTES_PER_S), rel=1e-3)
    assert float(cpu.p2p_s(1e9)) == pytest.approx(1e9 / (0.8 * NETWORK_BYTES_PER_S), rel=1e-3)


def test_two_devices_of_a_mesh_have_one_link_between_them() -> None:
    """MI300X: 64 GB/s to each of seven peers, 448 to all of them; an all-reduce passes its bytes twice over a ring."""
    ops = operations_of(load_device("mi300x"), "vllm")
    size = 2.0**28
    two, eight = (float(ops.all_reduce_s(gpus, size)) for gpus in (2, 8))
    assert two == pytest.approx(size / (LINK_EFFICIENCY * 64e9), rel=0.01)
    assert eight == pytest.approx(2 * 7 / 8 * size / (LINK_EFFICIENCY * 448e9), rel=0.01)
    assert float(ops.p2p_s(size)) == pytest.approx(size / (LINK_EFFICIENCY * 64e9), rel=0.01)
    assert peaks_of(load_device("h100")).among(2) == peaks_of(load_device("h100")).among(8)


def test_radeon_cards_pay_for_every_collective_of_rccl() -> None:
    names = ("r9700", "mi300x", "gaudi-3")
    least = {name: float(operations_of(load_device(name), "vllm").all_reduce_s(2, 1.0)) for name in names}
    assert least["r9700"] == pytest.approx(RCCL_LATENCY_S, rel=0.01)
    assert max(least["mi300x"], least["gaudi-3"]) < 2e-5


@pytest.mark.parametrize(("tp", "ep"), [(8, 1), (1, 8)])
def test_gaudi_reads_every_expert_for_a_single_row(tp: int, ep: int) -> None:
    """Of 160 experts one of eight devices has the eighth of the bytes, at half of the bandwidth, however many rows choose."""
    gaudi, peer = operations_of(load_device("gaudi-3"), "vllm"), operations_of(load_device("b200"), "vllm")
    of_few = [gaudi.moe_s("bf16", 5120, 1536, 8, 160, tp, ep, rows) for rows in (1.0, 4.0)]
    read_s = 160 / 8 * 3 * 5120 * 1536 * 2 / (0.5 * 3.675e12)
    assert [float(t) for t in of_few] == pytest.approx([read_s, read_s], rel=0.05)
    assert float(peer.moe_s("bf16", 5120, 1536, 8, 160, tp, ep, 1.0)) < 0.3 * read_s
