"""Kernels of devices without tables: who lends, what is scaled, what is said."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hardware_profiles import host_ring
from hardware_profiles import kernel_borrow as kb
from hardware_profiles import kernel_model as km
from hardware_profiles import kernel_validate as kv
from hardware_profiles.device import all_devices, load_device
from hardware_profiles.errors import InputError
from hardware_profiles.expert_ranks import EVEN, Deal
from hardware_profiles.kernel_model import KernelModel, load_kernel_model
from hardware_profiles.kernel_physics import peaks_of
from hardware_profiles.kernels import operations_in_node, operations_of
from hardware_profiles.ops import Ops, Recurrence
from hardware_profiles.roofline import Roofline
from simulator import load_scenario, simulate
from simulator.prepare import prepare
from simulator.results.domain import domain
from tests.effort import examples

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "kernels"
needs_tables = pytest.mark.skipif(
    not SHARED.is_dir(), reason="kernel tables (../shared/data/kernels) are absent"
)


def borrower(name: str, framework: str = "vllm", bandwidth_ratio: float = 1.0) -> KernelModel:
    peaks = peaks_of(load_device(name))
    faster = replace(peaks, hbm_bytes_per_s=peaks.hbm_bytes_per_s * bandwidth_ratio)
    lent = kb.lent_model(load_device(name), framework, faster)
    assert lent is not None
    return lent


@pytest.mark.parametrize(
    ("name", "donor", "halfway"),
    [
        ("a100-sxm-40gb", "a100-sxm-80gb", False),
        ("a30-24gb", "a100-sxm-80gb", False),
        ("h100-pcie-80gb", "h100-sxm-80gb", False),
        ("h20-sxm-96gb", "h200-sxm-141gb", False),
        ("l4-24gb", "l40s-48gb", False),
        ("rtx-4090-24gb", "l40s-48gb", False),
        ("rtx-5090-32gb", "rtx-pro-6000-96gb", False),
        ("a10g-24gb", "l40s-48gb", True),
        ("arc-b580-12gb", "arc-pro-b60", False),
    ],
)
def test_the_nearest_kin_lends(name: str, donor: str, halfway: bool) -> None:
    """Memory type and vendor first (no A100 for an A10, no B200 for an RTX 5090), then generation, then the ratio."""
    model = borrower(name)
    assert model.provenance["borrowed_from_device"] == donor
    assert isinstance(model, kb.HalfBorrowed) == halfway
    assert model.device == name
    assert f"kernels of {name} borrowed from {donor}" in (kb.borrowing(model) or "")


def test_only_gpus_borrow_and_physics_is_kept_elsewhere() -> None:
    for device in all_devices():
        if device.kind in ("cpu", "apple", "asic") or device.vendor == "amd":
            assert kb.kernel_donor(device) is None, device.name
    gaudi = operations_of(load_device("gaudi-3-128gb"), "vllm")
    assert isinstance(gaudi, Roofline)
    assert kb.borrowing(gaudi) is None


@pytest.mark.parametrize(("device", "framework"), [("h100-sxm-80gb", "vllm"), ("b200-sxm-180gb", "sglang")])
def test_what_was_computed_before_changes_nothing(device: str, framework: str) -> None:
    """Residuals are cached by shape: formats of one table, backends with another floor and copies of experts keep their own."""
    formats = ("bfloat16", "fp8", "fp8_block", "w4afp8", "int8_wo", "int4_wo", "nvfp4", "mxfp8", "mxfp4", "sq")
    m = np.array([1.0, 3, 17, 64, 500, 4096])
    asked: list[Callable[[km.KernelModel], Any]] = []
    for fmt in formats:
        asked.append(lambda k, fmt=fmt: k.gemm_s(fmt, m, 6144, 4096))
        asked.append(lambda k, fmt=fmt: k.prefill_attention_s(fmt, "bfloat16", 32, 8, 128, 0, m, 0))
        asked.append(lambda k, fmt=fmt: k.prefill_attention_s(fmt, "fp8", 32, 8, 128, 0, m, 0))
        asked.append(lambda k, fmt=fmt: k.mla_prefill_s(fmt, "fp8", 16, m, 0))
        for kernel in (None, "marlin", "cutlass"):
            for deal in (EVEN, Deal(copies=64, balanced=True)):
                asked.append(lambda k, fmt=fmt, n=kernel, d=deal: k.moe_s(fmt, 4096, 1536, 8, 128, 1, 8, m, kernel=n, deal=d))
    each = len(asked) // len(formats)
    orders = [asked[first:] + asked[:first] for first in range(0, len(asked), each)]
    shared = [km._load.__wrapped__(device, framework, km.KERNELS_DIR) for _ in orders]
    for model, order in zip(shared, orders, strict=True):
        for question in order:
            question(model)
    for question in asked:
        fresh = question(km._load.__wrapped__(device, framework, km.KERNELS_DIR)).tolist()
        assert all(question(model).tolist() == fresh for model in shared)


def test_a_lender_stays_as_it_is_to_the_last_bit() -> None:
    """Residuals are cached by shape: the borrower's rates must not reach the lender's."""
    own = load_kernel_model("h100-sxm-80gb", "vllm")
    fresh = km._load.__wrapped__("h100-sxm-80gb", "vllm", km.KERNELS_DIR)
    m = np.array([1.0, 3, 17, 64, 500, 4096])
    near = borrower("h100-pcie-80gb").gemm_s("fp8", m, 6144, 4096)
    assert own.gemm_s("fp8", m, 6144, 4096).tolist() == fresh.gemm_s("fp8", m, 6144, 4096).tolist()
    assert np.all(near > own.gemm_s("fp8", m, 6144, 4096))
    assert kb.borrowing(own) is None


def test_the_same_datasheet_gives_the_lenders_times() -> None:
    """H800's datasheet is H100's but for the rounding of two rates: within a tenth of a percent."""
    m = np.array([1.0, 16, 256, 4096])
    lender, other = load_kernel_model("h100-sxm-80gb", "vllm"), borrower("h800-sxm-80gb")
    assert other.gemm_s("bf16", m, 6144, 4096) == pytest.approx(
        lender.gemm_s("bf16", m, 6144, 4096), rel=1e-3
    )
    args = ("bf16", 32, 8, 128, 0, m[:3], 2000.0)
    assert other.decode_attention_s(*args) == pytest.approx(lender.decode_attention_s(*args), rel=1e-3)


def test_a_format_without_its_arithmetic_is_not_borrowed() -> None:
    a10 = borrower("a10-24gb")
    assert "gemm/bfloat16" in a10.groups
    assert "gemm/fp8" not in a10.groups
    assert "attention_decode/bfloat16/fp8" in a10.groups  # stored in fp8, computed in bfloat16


@settings(max_examples=examples(40))
@given(
    st.sampled_from(["a100-sxm-40gb", "l4-24gb", "rtx-4090-24gb", "a10-24gb"]),
    st.integers(1, 256),
    st.floats(1.05, 4.0),
)
def test_more_bandwidth_never_costs_more(name: str, rows: int, ratio: float) -> None:
    slow, fast = borrower(name), borrower(name, bandwidth_ratio=ratio)
    assert fast.gemm_s("bf16", rows, 6144, 4096) <= slow.gemm_s("bf16", rows, 6144, 4096) * (1 + 1e-9)
    args = ("bf16", 32, 8, 128, 0, rows, 3000.0)
    assert fast.decode_attention_s(*args) <= slow.decode_attention_s(*args) * (1 + 1e-9)


@pytest.mark.parametrize("name", ["a100-sxm-40gb", "rtx-3090-24gb"])
def test_borrowed_kernels_keep_to_the_roofline(name: str) -> None:
    k = borrower(name)
    m = np.array([1.0, 7, 64, 300, 4096])
    t = k.gemm_s("bf16", m, 28672, 8192)
    assert np.all(t * k.peaks.rate("bfloat16") >= 2 * m * 28672 * 8192 * (1 - 1e-9))
    assert np.all(t * k.peaks.hbm_bytes_per_s >= 2.0 * 28672 * 8192)


def test_halfway_is_the_geometric_mean() -> None:
    k = borrower("a10-24gb")
    assert isinstance(k, kb.HalfBorrowed)
    assert k.whole is not None
    assert k.plain is not None
    product = k.whole.gemm_s("bf16", 8, 4096, 4096) * k.plain.gemm_s("bf16", 8, 4096, 4096)
    assert float(k.gemm_s("bf16", 8, 4096, 4096)) ** 2 == pytest.approx(float(product))


def link_donor(name: str) -> str | None:
    device = load_device(name)
    assert device.link is not None
    return kb._link_donor(device, device.link)


def test_collectives_keep_their_floor_and_scale_with_the_wire() -> None:
    curve = {"log2_bytes": [10.0, 20.0, 30.0], "log_s": np.log([1e-5, 3e-5, 1e-2]).tolist()}
    links = {"collective/all_reduce": {"curves": {"nccl/graph/2/1/intra_node/half": curve}}}
    got = kb.scaled_links(links, 2.0)["collective/all_reduce"]["curves"]["nccl/graph/2/1/intra_node/half"]
    assert np.exp(got["log_s"]) == pytest.approx([1e-5, 5e-5, 1e-5 + 2 * (1e-2 - 1e-5)])
    assert kb.scaled_links(links, 1.0) is links
    assert link_donor("a100-sxm-40gb") == "a100-sxm-80gb"
    assert link_donor("rtx-4090-24gb") == "rtx-pro-6000-96gb"
    assert link_donor("mi300x-192gb") is None
    # measured curves of a device without kernel tables are its own
    assert borrower("gb200-186gb").links == km.load_links("gb200-186gb")


@pytest.mark.parametrize(
    ("name", "known", "measured", "within"),
    [
        # four A100 and four H100 bridged in pairs, whose ring crosses PCIe (kernels/NOTICE.md)
        (
            "a100-pcie-80gb",
            "a100-sxm-80gb",
            "nccl_via_torch/kineto_kernel_time/4/1/a100_pairwise_nvlink/float16",
            1.3,
        ),
        (
            "h100-nvl-94gb",
            "h100-sxm-80gb",
            "nccl_via_torch/kineto_kernel_time/4/1/h100_pairwise_nvlink/float16",
            2.0,
        ),
    ],
)
def test_four_gpus_over_pcie_are_as_quick_as_other_hosts_are(name: str, known: str, measured: str, within: float) -> None:
    sizes = np.array([4e6, 16e6, 64e6])
    lent = borrower(name).all_reduce_s(4, sizes)
    curve = km.load_links(known)["collective/all_reduce"]["curves"][measured]
    assert np.all(np.abs(np.log(lent / km.curve_s(curve, sizes))) < np.log(within))


def test_a_host_that_loses_bandwidth_lends_to_no_other() -> None:
    assert (
        kb.host_share(km.load_links("l40s-48gb"))
        < kb.HOST_KEEPS
        < kb.host_share(km.load_links("rtx-pro-6000-96gb"))
    )
    assert kb.host_share({}) == 1.0
    own = km.load_kernel_model("l40s-48gb", "vllm")
    served, said = kb.on_its_links(own, load_device("l40s-48gb"))
    assert said is not None
    assert "keeps as little as 11%" in said
    sizes = np.array([1e5, 4e6, 64e6])
    assert np.array_equal(served.all_reduce_s(2, sizes), own.all_reduce_s(2, sizes))
    quicker = own.all_reduce_s(4, sizes) / served.all_reduce_s(4, sizes)
    assert np.all(quicker > [1.0, 3.0, 3.0])
    # what RTX PRO 6000's host loses is not lost on links of half the rate; a ring across sockets keeps less than one within
    lender = km.load_kernel_model("rtx-pro-6000-96gb", "vllm")
    assert np.all(served.all_reduce_s(4, sizes) <= 1.6 * lender.all_reduce_s(4, sizes))
    rate = {n: float(2 * (1 - 1 / n) / served.all_reduce_s(n, sizes[-1:])[0]) for n in (2, 4, 8)}
    assert rate[4] == pytest.approx(rate[2], rel=0.02)
    assert rate[8] == pytest.approx(kb.SOCKETS_KEEP * rate[2], rel=0.02)
    for name in ("rtx-pro-6000-96gb", "h100-sxm-80gb"):
        model = km.load_kernel_model(name, "vllm")
        assert kb.on_its_links(model, load_device(name)) == (model, None)


def test_pairs_talk_over_their_bridge_and_beyond_it_over_pcie() -> None:
    pairs = borrower("h100-nvl-94gb")
    size = np.array([64e6])
    rate = {n: float(size[0] / pairs.all_reduce_s(n, size)[0] * 2 * (n - 1) / n) for n in (2, 4, 8)}
    assert rate[2] > 0.4 * 300e9
    assert max(rate[4], rate[8]) < 64e9


@pytest.mark.slow
@needs_tables
def test_leaving_a_gpu_out_keeps_to_the_stated_error() -> None:
    """H200 from H100, and L40S from RTX PRO 6000: mean over operations, and better than the datasheet alone."""
    for gpu, close in (("h200-sxm-141gb", True), ("l40s-48gb", False)):
        groups = kv.leave_out(SHARED, "gpu", [gpu])
        assert groups
        by_op = {g["op"]: [e for e in groups if e["op"] == g["op"]] for g in groups}
        errors = {op: float(np.mean([e["mape"] for e in some])) for op, some in by_op.items()}
        plain = {op: float(np.mean([e["datasheet_mape"] for e in some])) for op, some in by_op.items()}
        assert np.mean(list(errors.values())) <= 1.1 * kb.HELD_OUT_ERROR_PCT[close]
        assert all(errors[op] < plain[op] for op in errors)


def test_a_run_says_what_was_borrowed_and_claims_no_measurement() -> None:
    from simulator.config.load import load_scenario

    fields = {
        "name": "t",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {"engine": "vllm", "hardware": "l4-24gb", "engine_args": {"max_model_len": 2048}},
        "workload": {
            "requests": 4,
            "arrivals": {"kind": "poisson", "rate": 1.0},
            "prompt_tokens": {"kind": "constant", "value": 100},
            "output_tokens": {"kind": "constant", "value": 10},
        },
    }
    prepared = prepare(load_scenario(fields))
    said = "kernels of l4-24gb borrowed from l40s-48gb, scaled by datasheet; held-out error about 10 %"
    assert said in prepared.assumptions
    evidence, axes = domain(prepared)
    assert (evidence.hardware, evidence.kernel_error) == ("borrowed", 0.1)
    assert any("no kernel of l4-24gb was measured" in axis and "l40s-48gb" in axis for axis in axes)


def test_show_hardware_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    from simulator.cli.catalogues import show_command

    show_command("hardware", "l4-24gb", False)
    assert "borrowed from l40s-48gb" in capsys.readouterr().out
    show_command("hardware", "xeon-8480-2s", False)
    said = capsys.readouterr().out
    assert "typical efficiencies" in said
    assert "llama_cpp        15       18" in said
    show_command("hardware", "mi300x-192gb", False)
    assert "about 12 % off" in " ".join(capsys.readouterr().out.split())


def test_borrowing_costs_milliseconds() -> None:
    kb._borrowed.cache_clear()
    device = load_device("rtx-4090-24gb")
    begin = time.process_time()
    operations_of(device, "vllm")
    assert time.process_time() - begin < 0.1


HOST_SUMS_US: tuple[tuple[int, dict[int, float]], ...] = (
    (2, {4: 11.8, 16: 23.4, 64: 59.6, 256: 163.5}),
    (2, {4: 12.2, 16: 17.3, 64: 43.8, 256: 97.4}),
    (2, {4: 11.8, 16: 17.1, 64: 40.0, 256: 86.4}),
    (4, {4: 20.7, 16: 31.7, 64: 80.5, 256: 211.2}),
)
"""Cards, and kB to us of NCCL's sums through the host: RTX 4090 below a switch, across sockets, RTX 2080 Ti, four RTX 4090
(kalavai-net's page; a test report of AutoDL)."""


def test_cards_without_peer_access_pay_for_the_way_through_the_host() -> None:
    """As tables of other hosts have it, within what these differ by; RTX A6000 has the bus of RTX 4090, and access."""
    plain, through = (
        {n: operations_in_node(load_device(name), "vllm", n)[0] for n in (2, 4)} for name in ("rtx-a6000-48gb", "rtx-4090-24gb")
    )
    for n, table in HOST_SUMS_US:
        sizes = np.array([1024.0 * kb for kb in table])
        slow, quick = through[n].all_reduce_s(n, sizes), plain[n].all_reduce_s(n, sizes)
        ratio = slow / (1e-6 * np.array(list(table.values())))
        assert np.all((ratio[:3] > 0.65) & (ratio[:3] < 1.5))
        assert 0.35 < ratio[3] < 0.8  # a guest's memory; other hosts are quicker
        assert np.all(slow > 1.3 * quick)
    more = [float(through[n].all_reduce_s(n, 65536.0)) for n in (2, 4)]
    assert more[1] > 1.5 * more[0]


def test_a_sum_through_the_host_by_hand() -> None:
    """Two of 16 kB poll: 7 us, two steps of 2 us and 16 kB at 1.25 GB/s. Four of 16 MB go in chunks: six steps, 24 MB at 9 GB/s,
    or the share of a narrow link; a gather of as many makes three steps and sends 12 MB."""

    def us(op: str, n: int, size: float, link: float = 3.2e10) -> float:
        return 1e6 * float(host_ring.seconds(op, n, np.array(size), link))

    assert us("all_reduce", 2, 16e3) == pytest.approx(7 + 2 * 2 + 16e3 / 1.25e3)
    assert us("all_reduce", 4, 16e6) == pytest.approx(7 + 6 * 13 + 24e6 / 9e3)
    assert us("all_reduce", 4, 16e6, 1e9) == pytest.approx(7 + 6 * 13 + 24e6 / 0.8e3)
    assert us("all_gather", 4, 16e6) == pytest.approx(7 + 3 * 13 + 12e6 / 9e3)


def test_a_deployment_says_otherwise_than_the_profile_who_reads_whose_memory() -> None:
    """A patched driver takes two RTX 3090 off the way through the host, not four (NCCL); a virtual machine puts L40S on it."""
    for name, access in (("rtx-3090-24gb", True), ("l40s-48gb", False)):
        device = load_device(name)
        assert device.link is not None
        stated = replace(device, link=replace(device.link, peer_access=access))
        for gpus in (2, 4):
            (plain, by_profile), (other, said) = (operations_in_node(each, "vllm", gpus) for each in (device, stated))
            slow, quick = (plain, other) if access else (other, plain)
            ratio = float(slow.all_reduce_s(gpus, 32768.0)) / float(quick.all_reduce_s(gpus, 32768.0))
            assert ratio == pytest.approx(1.0) if access and gpus == 4 else ratio > 1.5
            assert any("as the deployment says" in text for text in said)
            assert any("sum through the host's memory by NCCL" in text for text in (by_profile if access else said))
            assert float(plain.gemm_s("bf16", 8, 4096, 4096)) == float(other.gemm_s("bf16", 8, 4096, 4096))


def test_cards_under_a_patched_driver_beside_measured() -> None:
    """Gemma-4-12B in FP8 over two and four RTX 3090 at 220 W, one user, four and eight (vLLM 0.23). Without such a driver a step
    of two is a tenth longer (club-3090, pull request 928: 7 to 12 % of the rate, with a larger model)."""
    for gpus, users, measured_ms in ((2, 1, 14.4), (2, 4, 16.4), (4, 1, 11.16), (4, 4, 14.46), (4, 8, 20.07)):
        deployment = {"engine": "vllm", "hardware": "rtx-3090-24gb", "weights": "fp8", "tensor_parallel": gpus,
                      "power_limit_w": 220}  # fmt: skip
        load = {"arrivals": {"kind": "closed_loop", "concurrency": users}, "prompt_tokens": 512, "output_tokens": 256,
                "max_output_tokens": "equal", "requests": 4 * users}  # fmt: skip
        through, read = (
            simulate(load_scenario({"model": "google/gemma-4-12B-it", "deployment": {**deployment, **more}, "workload": load}))
            for more in ({}, {"peer_access": True})
        )
        tpot_ms, without_ms = (run.result["metrics"]["tpot_ms"]["mean"] for run in (read, through))
        assert tpot_ms == pytest.approx(measured_ms, rel=0.06)
        assert 1.04 * tpot_ms < without_ms < 1.3 * tpot_ms if gpus == 2 else without_ms == pytest.approx(tpot_ms)
        assert read.result["deployment"]["peer_access"] is True


def test_only_cards_over_pcie_have_peers_to_tell_of() -> None:
    for name in ("h100-sxm-80gb", "xeon-8480-2s"):
        deployment = {"engine": "vllm", "hardware": name, "peer_access": False}
        load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 9, "output_tokens": 9}
        with pytest.raises(InputError, match=r"has (no link|its peers)"):
            prepare(load_scenario({"model": "Qwen/Qwen3-8B", "deployment": deployment, "workload": load}))


@pytest.mark.parametrize(("name", "halves"), [("rtx-4090-24gb", True), ("rtx-3090-24gb", True), ("rtx-6000-ada-48gb", False)])
def test_cards_that_halve_sums_in_32_bits_reach_the_rate_they_are_left_with(name: str, halves: bool) -> None:
    """Shares of peak are of the tensor cores' full rate: a lender's half of it is all that such a card has."""
    card, peaks = operations_of(load_device(name), "vllm"), peaks_of(load_device(name))
    work = 2.0 * 4096 * 8192 * 8192
    share = work / float(card.gemm_s("bf16", 4096, 8192, 8192)) / peaks.rate("bfloat16")
    assert 0.95 <= share <= 1.0 if halves else share < 0.7
    assert peaks.pipe_rate("bfloat16") == pytest.approx((2.0 if halves else 1.0) * peaks.rate("bfloat16"), rel=0.02)
    if "fp8" in peaks.flops_per_s:
        assert float(card.gemm_s("fp8", 4096, 8192, 8192)) < float(card.gemm_s("bf16", 4096, 8192, 8192))


def test_devices_with_tables_are_priced_at_their_datasheet() -> None:
    for name in ("a100-sxm-80gb", "h100-sxm-80gb", "l40s-48gb", "b200-sxm-180gb", "rtx-pro-6000-96gb", "b300-sxm-288gb"):
        peaks = peaks_of(load_device(name))
        assert all(peaks.pipe_rate(fmt) == peaks.rate(fmt) for fmt in ("bfloat16", "fp8", "int4_wo", "sq"))


def test_a_card_whose_sums_are_halved_is_as_quick_as_its_twin_where_memory_decides() -> None:
    """RTX 5090 and RTX PRO 6000 have one memory; kernels that reach a tenth of the tensor cores do not feel that half of them is
    closed: recurrences in blocks, decoding rows of many query heads, latent attention."""
    halved, whole = (operations_of(load_device(name), "vllm") for name in ("rtx-5090-32gb", "rtx-pro-6000-96gb"))
    rule = Recurrence("gdn", 16, 32, 128, 128, 32 * 128 * 128 * 4.0, 8192)

    def times_s(ops: Ops) -> list[float]:
        recurrent_s = ops.recurrent_context_s(rule, 8192.0)
        few_s = ops.decode_attention_s("bf16", 48, 1, 128, 0, 32.0, 4096.0)
        latent_s = ops.mla_decode_s("bf16", "bf16", 16, 32.0, 4096.0)
        return [float(each) for each in (recurrent_s, few_s, latent_s)]

    assert times_s(halved) == pytest.approx(times_s(whole), rel=0.15)
    peaks = halved.peaks
    assert peaks.reached("bfloat16", 0.9) == peaks.rate("bfloat16")
    assert peaks.reached("bfloat16", 0.1) == pytest.approx(0.1 * peaks.pipe_rate("bfloat16"))


def test_a_borrower_finds_its_own_framework_by_name() -> None:
    card, layer = kb.borrowed_model("h20-sxm-96gb", "trtllm"), ("w4a16_mxfp4", 2880, 2880, 4, 128, 1, 1, 64)
    assert card is not None
    assert card.expert_backend("w4a16_mxfp4", "trtllm/triton") == load_kernel_model("h200-sxm-141gb", "trtllm").expert_backend(
        "w4a16_mxfp4", "trtllm/triton"
    )
    assert card.moe_s(*layer, kernel="trtllm/triton") == card.moe_s(*layer)
