"""Kernel times of a device that nobody measured, taken from its nearest kin that was.

The curves of a fitted device are efficiencies: shares of peak arithmetic and of memory bandwidth, with launch latencies
in seconds. Put over another device's datasheet rates they predict its kernels, as far as the two are alike. How far, tables
say that leave a GPU out (:data:`HELD_OUT_ERROR_PCT`): memory of the same type is a must (stacked HBM against GDDR and LPDDR:
B200 and RTX PRO 6000 are both Blackwell, and but for products predict each other worse than the datasheet does), the same
vendor too; then comes the generation, then the ratio of arithmetic to bandwidth. Within a generation curves are taken as they
are; from another generation every time is halfway, in its logarithm, between the borrowed one and the datasheet's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hardware_profiles import host_ring
from hardware_profiles.device import STACKED_MEMORY, Device, Link, device_names, load_device, written_ns
from hardware_profiles.kernel_model import (
    KERNELS_DIR,
    KernelModel,
    curve_s,
    fitted_models,
    load_kernel_model,
    load_links,
)
from hardware_profiles.kernel_physics import COMPUTE_FORMAT, DevicePeaks, peaks_of
from hardware_profiles.ops import Ops
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from hardware_profiles.roofline import Roofline

#: Mean error of borrowed kernels over products, decode and prompt attention and expert layers, by whether lender and
#: borrower are close: of one generation, and within :data:`CLOSE_RATIO`. Close: H100 SXM and H200 from each other (5 to 16 %;
#: the datasheet alone 32 to 42 %). Not close: L40S and RTX PRO 6000 from each other, halfway (20 to 34 %; the
#: datasheet alone 27 to 50 %). unit: %, kind: measured, 2026-11, source: the kernel tables of ``kernels/NOTICE.md``, each
#: GPU left out in turn (`capacity-plan calibrate kernels DIR --leave-out gpu`).
HELD_OUT_ERROR_PCT: Mapping[bool, float] = {True: 10.0, False: 30.0}

#: Ratios of arithmetic to bandwidth up to this many times apart are as far as the close pair shows (H100 to H200 1.43).
#: kind: assumed, 2026-11.
CLOSE_RATIO = 1.5

#: Share of its bus bandwidth over two GPUs that a host's all-reduce must keep over four and eight, for its curves to stand for
#: other hosts. RTX PRO 6000's keeps 0.62 and NVLink all of it; four A100 and four H100 bridged in pairs reach 0.74 and 0.76 of
#: their PCIe links, eight RTX 5090 0.44 (NCCL issue 1639). L40S's keeps 0.10, 2 GB/s: of that host, not of its links. kind:
#: assumed, 2026-11, source: the collectives of ``kernels/NOTICE.md``.
HOST_KEEPS = 0.5

#: Devices of a socket, and the share of a pair's bandwidth that a ring over PCIe keeps when it crosses to another socket. kind:
#: fitted by eye, 2026-11, source: Llama-3.1-70B and Mixtral-8x7B over four and eight L40S and A100 PCIe (TensorRT-LLM 0.14,
#: docs/source/performance/perf-overview.md: eight are about as quick as four); tried on Llama-2-70B over four L40S (MLPerf 4.1).
SOCKET_DEVICES, SOCKETS_KEEP = 4, 0.72

#: Kinds of device whose kernels are launched, tiled and cached alike. An accelerated processor borrows from GPUs of its
#: vendor; CPUs, Apple's GPUs and other accelerators keep the datasheet.
BORROWING_KINDS = ("gpu", "apu")

#: Order of generations, for the nearest one: compute capabilities 8.0/8.6, 8.9, 9.0, 10.0/12.0 (kind: datasheet).
GENERATIONS: Mapping[str, float] = {
    "ampere": 8.3,
    "ada": 8.9,
    "hopper": 9.0,
    "blackwell": 11.0,
}


@dataclass(frozen=True)
class Donor:
    """A fitted device that lends its kernels.

    profile : its folder under ``kernels/``; halfway : its curves are joined with the datasheet's; error_percent : what such
    borrowing erred by on GPUs left out [%].
    """

    profile: str
    device: Device
    halfway: bool
    error_percent: float


def device_of(profile: str) -> Device:
    """The device of a folder under ``kernels/``, whose name may lack the memory size."""
    names = device_names()
    return load_device(profile if profile in names else next(n for n in names if n.startswith(f"{profile}-")))


def _stacked(device: Device) -> bool:
    return device.name.startswith(STACKED_MEMORY)


def _rate(device: Device) -> float:
    """Dense 16-bit arithmetic [FLOP/s]; 0 where the datasheet names none."""
    known = device.peak_flops_per_s
    return known["bf16"].value if "bf16" in known else known["fp16"].value if "fp16" in known else 0.0


def kernel_donor(device: Device, without: frozenset[str] = frozenset()) -> Donor | None:
    """The fitted device whose kernels fit `device` best, or None where no physics carries over.

    The same type of memory and the same vendor are musts; then the nearest generation, then the nearest ratio of 16-bit
    arithmetic to memory bandwidth (in steps of a tenth of its logarithm), then the nearest bandwidth. without : folders that are
    not to lend (for a test of the rule).
    """
    if device.kind not in BORROWING_KINDS or _rate(device) <= 0:
        return None
    own_rate, own_bytes = _rate(device), device.memory_bandwidth_bytes_per_s.value
    ranked: list[tuple[tuple[float, float, float, str], Donor]] = []
    for profile in sorted({d for d, _ in fitted_models()} - without):
        other = device_of(profile)
        if other.vendor != device.vendor or _stacked(other) != _stacked(device):
            continue
        same = other.architecture == device.architecture
        apart = GENERATIONS.get(other.architecture, 0.0) - GENERATIONS.get(device.architecture, 0.0)
        bandwidth = math.log(other.memory_bandwidth_bytes_per_s.value / own_bytes)
        ratio = math.log(_rate(other) / own_rate) - bandwidth
        place = (0.0 if same else 1.0 + abs(apart), round(abs(ratio), 1), abs(bandwidth), profile)
        close = same and abs(ratio) <= math.log(CLOSE_RATIO)
        ranked.append((place, Donor(profile, other, not same, HELD_OUT_ERROR_PCT[close])))
    return min(ranked, key=lambda r: r[0])[1] if ranked else None


def host_share(links: Mapping[str, Any]) -> float:
    """Least bus bandwidth of a large all-reduce over more than two GPUs of a node, over that of two; 1 without both.

    In a ring every link carries ``2 (n - 1) / n`` of the message, about the same for any number n of GPUs: what is lost with
    more of them is lost in the host.
    """
    rates: dict[int, float] = {}
    for name, curve in links.get("collective/all_reduce", {}).get("curves", {}).items():
        _, _, gpus, nodes, topology, dtype = name.split("/")
        if nodes == "1" and topology == "intra_node" and dtype != "int8":
            n = int(gpus)
            rate = 2.0 ** curve["log2_bytes"][-1] / math.exp(curve["log_s"][-1]) * 2 * (n - 1) / n
            rates[n] = max(rates.get(n, 0.0), rate)
    two = rates.pop(2, 0.0)
    return min(rates.values()) / two if two and rates else 1.0


def on_its_links(model: KernelModel, device: Device) -> tuple[KernelModel, str | None]:
    """The model as other hosts than its benchmark's would have it, and a sentence if that changed it.

    Where the host of the benchmark kept less than :data:`HOST_KEEPS` of the bandwidth of two GPUs over more of them, the
    curves of more than two are lent by a device on the same bus, within what two of this one reach.
    """
    share = host_share(model.links)
    if device.link is None or share >= HOST_KEEPS or (lender := _link_donor(device, device.link)) is None:
        return model, None
    links = dict(model.links)
    for key, group in load_links(lender).items():
        if key.startswith("collective/"):
            two = {n: c for n, c in links.get(key, {}).get("curves", {}).items() if n.split("/")[2] == "2"}
            links[key] = {**group, "curves": {**two, **_over_more(group["curves"], two)}}
    said = (
        f"collectives of more than two {model.device} are those of {lender}, within its own links (assumed): its own were "
        f"measured on a host that keeps as little as {share:.0%} of the bandwidth between two of them"
    )
    return replace(model, links=links), said


def _over_more(lent: Mapping[str, Any], pair: Mapping[str, Any]) -> dict[str, Any]:
    """Curves over more than two devices on PCIe: another host's, but no quicker than a ring at the bandwidth of a `pair`.

    What the lender loses over more than two is lost in its host, and not in its links: it does not scale with theirs.
    """
    out: dict[str, Any] = {}
    for name, curve in lent.items():
        parts = name.split("/")
        gpus, two = int(parts[2]), pair.get("/".join((*parts[:2], "2", *parts[3:])))
        if gpus == 2:
            continue
        log_s = np.asarray(curve["log_s"], dtype=np.float64)
        if two is not None:
            keeps = SOCKETS_KEEP if gpus > SOCKET_DEVICES else 1.0
            ring_s = curve_s(two, 2.0 ** np.asarray(curve["log2_bytes"])) * 2.0 * (1.0 - 1.0 / gpus) / keeps
            log_s = np.maximum(log_s, np.log(ring_s))
        out[name] = {**curve, "log_s": log_s.tolist()}
    return out


def _link_donor(device: Device, link: Link) -> str | None:
    """Folder with collectives of a device of the same vendor on the same bus and topology; None without.

    The same generation of the bus comes first, then that of the device, then the nearest bandwidth. Hosts that keep less than
    :data:`HOST_KEEPS` do not lend.
    """
    found: list[tuple[bool, bool, float, str]] = []
    for path in sorted(KERNELS_DIR.glob("*/collectives.json")):
        other = device_of(path.parent.name)
        if other.vendor != device.vendor or other.link is None or other.name == device.name:
            continue
        if other.link.topology != link.topology or _bus(other.link) != _bus(link):
            continue
        links = load_links(path.parent.name)
        if not any(k.startswith("collective/") for k in links) or host_share(links) < HOST_KEEPS:
            continue
        bandwidth = abs(math.log(_one_way(other.link) / _one_way(link)))
        newer = (other.link.kind != link.kind, other.architecture != device.architecture)
        found.append((*newer, bandwidth, path.parent.name))
    return min(found)[3] if found else None


def _bus(link: Link) -> str:
    """Kind of a link without its generation: "pcie" of "pcie4"."""
    return link.kind.rstrip("0123456789")


def _lent_links(device: Device) -> Mapping[str, Any]:
    """Curves of collectives from the devices that lend theirs, scaled to the device's links; empty without.

    Cards bridged in pairs talk over the bridge when they are two, and over PCIe when they are more.
    """
    link = device.link
    if link is None:
        return {}
    if link.topology != "pairs":
        return _scaled_from(_link_donor(device, link), link)
    bridge = replace(link, topology="all_to_all")
    over: dict[str, Any] = {}
    slow = device.pcie_bytes_per_s_per_direction
    parts = [(bridge, True)]
    if slow is not None:
        parts.append((replace(link, kind="pcie", topology="pcie", bytes_per_s_per_direction=slow), False))
    for part, two in parts:
        for key, group in _scaled_from(_link_donor(device, part), part).items():
            if key.startswith("collective/"):
                kept = {n: c for n, c in group["curves"].items() if (n.split("/")[2] == "2") == two}
                over[key] = {**group, "curves": {**over.get(key, {}).get("curves", {}), **kept}}
    return over


def _scaled_from(lender: str | None, link: Link) -> Mapping[str, Any]:
    theirs = device_of(lender).link if lender else None
    if lender is None or theirs is None:
        return {}
    own = load_links(lender)
    scaled = scaled_links(own, _one_way(theirs) / _one_way(link))
    if not link.peer_access:
        return through_host(scaled, link)
    if link.topology != "pcie":
        return scaled
    out: dict[str, Any] = {}
    for key, group in scaled.items():
        if key.startswith("collective/"):
            two = {n: c for n, c in group["curves"].items() if n.split("/")[2] == "2"}
            group = {**group, "curves": {**two, **_over_more(own[key]["curves"], two)}}
        out[key] = group
    return out


def through_host(links: Mapping[str, Any], link: Link, at_least: int = 2) -> Mapping[str, Any]:
    """Curves of collectives between devices that do not read each other's memory, of `at_least` so many, over their `link`.

    Kernels take the way of :mod:`hardware_profiles.host_ring`, and are never quicker than those of who lends the curves.
    """
    out: dict[str, Any] = {}
    for key, group in links.items():
        op = key.removeprefix("collective/")
        curves = {}
        for name, curve in group["curves"].items():
            n = int(name.split("/")[2]) if op != key else 0
            if n >= at_least:
                slow = host_ring.seconds(op, n, 2.0 ** np.asarray(curve["log2_bytes"], dtype=np.float64), _one_way(link))
                log_s = np.maximum(np.asarray(curve["log_s"], dtype=np.float64), np.log(slow))
                curve = {**curve, "log_s": log_s.tolist()}
            curves[name] = curve
        out[key] = {**group, "curves": curves}
    return out


def on_stated_links(model: KernelModel, device: Device) -> tuple[KernelModel, str | None]:
    """The model over links that a deployment states otherwise than the device's file has them, and a sentence if it does.

    Devices whose own collectives were measured read each other's memory there, so that theirs go through the host now. Cards that
    read each other's by a driver that is not the vendor's do so if they are few, by NCCL (:data:`host_ring.READ_BELOW_ROOT`).
    """
    if device.link is None or device.link == load_device(device.name).link:
        return model, None
    reads, own = device.link.peer_access, load_links(model.device)
    if any(key.startswith("collective/") for key in own):
        links = through_host(on_its_links(model, device)[0].links, device.link)
    else:
        links = {**own, **_lent_links(device)}
        if reads:
            links = {**links, **through_host(links, device.link, host_ring.READ_BELOW_ROOT + 1)}
    said = f"{device.title}: devices {'read' if reads else 'do not read'} each other's memory over PCIe, as the deployment says"
    if reads:
        said += f"; more than {host_ring.READ_BELOW_ROOT} sum through the host's, as NCCL has it across the root of the bus"
    return replace(model, links=links), said


def _one_way(link: Link) -> float:
    return link.bytes_per_s_per_direction.value


def scaled_links(links: Mapping[str, Any], wire_ratio: float) -> Mapping[str, Any]:
    """Curves of collectives on links whose bytes take `wire_ratio` times as long.

    The time of the smallest message is launch and synchronisation and stays: ``t0 + (t - t0) wire_ratio``.
    """
    if wire_ratio == 1.0:
        return links
    out: dict[str, Any] = {}
    for key, group in links.items():
        curves = {}
        for name, curve in group["curves"].items():
            t = np.exp(np.asarray(curve["log_s"], dtype=np.float64))
            moved = t[0] + (t - t[0]) * wire_ratio
            curves[name] = {**curve, "log_s": np.log(np.maximum(moved, 1e-7)).tolist()}
        out[key] = {**group, "curves": curves}
    return out


def _lent(group_key: str, peaks: DevicePeaks) -> bool:
    """Whether a group runs in arithmetic that the borrower has too."""
    op, _, rest = group_key.partition("/")
    if op not in ("gemm", "moe", "attention_context"):
        return True
    return COMPUTE_FORMAT[rest.split("/")[0]] in peaks.flops_per_s


def _halfway(name: str) -> Callable[..., NDArray[np.float64]]:
    def method(self: HalfBorrowed, *args: Any, **options: Any) -> NDArray[np.float64]:
        assert self.whole is not None
        assert self.plain is not None
        lent, plain = (getattr(m, name)(*args, **options) for m in (self.whole, self.plain))
        return np.asarray(np.sqrt(lent * plain), dtype=np.float64)

    return method


@dataclass(frozen=True)
class HalfBorrowed(KernelModel):
    """Times halfway (geometric mean) between kernels borrowed whole and the datasheet's; both keep to the roofline."""

    whole: KernelModel | None = None
    plain: Roofline | None = None

    gemm_s = _halfway("gemm_s")
    decode_attention_s = _halfway("decode_attention_s")
    prefill_attention_s = _halfway("prefill_attention_s")
    moe_s = _halfway("moe_s")
    mla_prefill_s = _halfway("mla_prefill_s")
    mla_decode_s = _halfway("mla_decode_s")
    elementwise_s = _halfway("elementwise_s")
    recurrent_decode_s = _halfway("recurrent_decode_s")
    recurrent_context_s = _halfway("recurrent_context_s")


def power_share(device: Device, lender: Device) -> float:
    """What a lower power limit leaves of the share of its peak that a chip of the same architecture sustains.

    Work takes the same energy, so that the rate goes as the power: 0.65 on H100 PCIe (350 W of 700, 0.76 of the peak), 0.68 on
    H100 NVL. kind: assumed, 2026-11; MLPerf 4.1, Llama-2-70B, four systems: 0.38 to 0.73 of the H100's tokens a second.
    """
    if device.architecture != lender.architecture or device.kind != lender.kind:
        return 1.0
    own, theirs = (each.tdp_w.value / each.peak_flops_per_s["bf16"].value for each in (device, lender))
    return min(1.0, own / theirs)


def _whole(
    name: str, framework: str, donor: Donor, peaks: DevicePeaks, links: Mapping[str, Any], power: float
) -> KernelModel:
    """The donor's kernels over the borrower's rates; no error figure of the donor's goes with them."""
    model = load_kernel_model(donor.profile, framework)
    groups = {
        key: {k: v for k, v in group.items() if k != "held_out_mape_pct"}
        for key, group in model.groups.items()
        if _lent(key, peaks)
    }
    provenance = {
        **model.provenance,
        "kind": "assumed",
        "borrowed_from_device": donor.profile,
        "borrowed_error_pct": donor.error_percent,
        "borrowed_groups": sorted(key for key in groups if key.startswith(("gemm/", "moe/"))),
    }
    return KernelModel(name, framework, peaks, provenance, groups, model.path, links, model.peaks, power)


def borrowed_model(name: str, framework: str) -> KernelModel | None:
    """Kernel model of a device without fits of its own, by its name; None where there is nothing to borrow from.

    ``provenance`` names the donor (``borrowed_from_device``) and what such borrowing erred by (``borrowed_error_pct``).
    """
    return _borrowed(name, framework, written_ns(name))


@lru_cache(maxsize=64)
def _borrowed(name: str, framework: str, of_ns: int) -> KernelModel | None:
    device = load_device(name)
    return lent_model(device, framework, peaks_of(device))


def lent_model(
    device: Device, framework: str, peaks: DevicePeaks, without: frozenset[str] = frozenset()
) -> KernelModel | None:
    """As :func:`borrowed_model`, over any rates; `without` are folders that are not to lend (for a test of the rule)."""
    donor = kernel_donor(device, without)
    if donor is None:
        return None
    profile = device.kernel_profile or device.name
    links = load_links(profile)
    if not any(k.startswith("collective/") for k in links):
        links = {**_lent_links(device), **links}
    power = power_share(device, load_device(donor.profile))
    whole = _whole(profile, framework, donor, peaks, links, power)
    for tabled, other in fitted_models():
        if tabled == donor.profile and other != framework:
            whole._siblings[other] = _whole(profile, other, donor, peaks, links, power)
    if not donor.halfway:
        return whole
    from hardware_profiles.roofline import Roofline

    plain = Roofline.of_gpu(profile, framework, peaks)
    return HalfBorrowed(
        profile,
        framework,
        peaks,
        whole.provenance,
        whole.groups,
        links=links,
        _siblings=whole._siblings,
        whole=whole,
        plain=plain,
    )


def borrowing(model: Ops) -> str | None:
    """What a model borrowed from another device, as a sentence; None where its kernels are its own or the datasheet's."""
    donor = model.provenance.get("borrowed_from_device")
    if donor is None:
        return None
    how = (
        "halfway between its curves and the datasheet"
        if isinstance(model, HalfBorrowed)
        else "scaled by datasheet"
    )
    return (
        f"kernels of {model.device} borrowed from {donor}, {how}; "
        f"held-out error about {model.provenance['borrowed_error_pct']:.0f} %"
    )
