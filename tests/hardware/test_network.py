"""Collectives over several nodes: beside measured ones, and what they may not do."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hardware_profiles.device import load_device
from hardware_profiles.kernel_model import curve_s, load_links
from hardware_profiles.kernels import operations_in_node
from hardware_profiles.network import HOP_S, Network

SIZES = 2.0 ** np.arange(11, 27)


def test_the_law_beside_nccl_over_two_dgx_a100() -> None:
    """Measured over two nodes with 2 to 8 of their GPUs each; one interface a node there, by the rate of a single message."""
    links = load_links("a100-sxm-80gb")
    reduces, messages = links["collective/all_reduce"]["curves"], links["p2p"]["curves"]["a100_dgx/inter_node"]
    least_s, most_s = curve_s(messages, np.array([2.0**11, 2.0**26])).tolist()
    alone, apart = 2.0**26 / most_s, []
    for each in (4, 8):
        inside = curve_s(reduces[f"nccl_via_torch/kineto_kernel_time/{each}/1/a100_dgx/float16"], SIZES)
        both = curve_s(reduces[f"nccl_via_torch/kineto_kernel_time/{2 * each}/2/a100_dgx/float16"], SIZES)
        law = inside + Network(each, alone / each / 0.69, hop_s=least_s).added_s("all_reduce", 2 * each, SIZES)
        apart.append(np.log(law / both))
    errors = np.concatenate(apart)
    assert np.median(np.abs(errors)) < math.log(1.35)
    assert np.abs(errors).max() < math.log(2.4)
    little = np.tile(SIZES < 2**15, 2)
    assert np.abs(errors[little]).max() < math.log(1.2)  # hops alone


@pytest.mark.parametrize("name", ["h100-sxm-80gb", "mi300x-192gb"])
def test_a_second_node_costs_hops_and_bytes(name: str) -> None:
    device = load_device(name)
    (one, _), (two, said) = (operations_in_node(device, "vllm", gpus) for gpus in (8, 16))
    for op in ("all_reduce_s", "all_gather_s", "reduce_scatter_s"):
        within, across = getattr(one, op)(8, SIZES), getattr(two, op)(16, SIZES)
        assert (across >= within + HOP_S - 1e-9).all() or name != "h100-sxm-80gb"
        assert (np.diff(across) > -1e-7).all()
        assert getattr(two, op)(8, SIZES) == pytest.approx(within)  # what stays in one node is as it was
    assert any("collectives over nodes of 8 devices" in text for text in said)
    assert float(two.all_reduce_s(16, 0.0)) == 0.0


def test_more_nodes_take_longer_and_trees_help_the_little() -> None:
    sizes = np.array([2.0**11, 2.0**27])
    times = [Network(8, 5e10).added_s("all_reduce", 8 * nodes, sizes) for nodes in (2, 4, 8)]
    assert (times[0] < times[1]).all()
    assert (times[1] < times[2]).all()
    assert times[2][0] == pytest.approx(6 * HOP_S, rel=0.01)  # up and down three levels, not fourteen steps round


def test_stages_and_ranks_in_nodes_of_their_own_send_over_the_network() -> None:
    device = load_device("h100-sxm-80gb")
    inside = operations_in_node(device, "vllm", 4, 2)[0]
    apart = operations_in_node(device, "vllm", 8, 2)[0]
    assert float(apart.p2p_s(2.0**20)) > 2 * float(inside.p2p_s(2.0**20))
    wide = operations_in_node(device, "vllm", 16, rank_devices=8)[0]  # two ranks of a node each
    assert float(wide.all_gather_s(2, 2.0**14)) > float(inside.all_gather_s(2, 2.0**14)) + HOP_S / 2
    assert float(wide.all_reduce_s(8, 2.0**14)) == float(inside.all_reduce_s(8, 2.0**14))
    close = operations_in_node(device, "vllm", 8, 1, 4)[0]  # nodes of four devices
    assert float(close.all_reduce_s(8, 2.0**14)) > 3 * float(operations_in_node(device, "vllm", 8)[0].all_reduce_s(8, 2.0**14))


@pytest.mark.parametrize("op", ["all_gather", "reduce_scatter"])
def test_small_messages_of_a_captured_collective_take_its_steps_over_all_devices(op: str) -> None:
    ops = operations_in_node(load_device("h100-sxm-80gb"), "vllm", 8)[0]
    two, four, eight = (float(ops.collective_s(op, devices, 512.0)) for devices in (2, 4, 8))
    assert two < four < eight
    assert (eight - four) / (four - two) == pytest.approx(2, rel=0.35)  # a ring has n - 1 steps
    assert eight == float(ops.collective_s(op, 8, 512.0, "nccl_tests_eager", "nccl"))
