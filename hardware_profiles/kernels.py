"""The operations of a device: its own tables, else those of its nearest kin, else the datasheet. The one place that chooses."""

from __future__ import annotations

from dataclasses import replace

from hardware_profiles import host_ring
from hardware_profiles.device import STACKED_MEMORY, Device
from hardware_profiles.kernel_borrow import borrowed_model, borrowing, on_its_links, on_stated_links
from hardware_profiles.kernel_model import KERNELS_DIR, KernelModel, load_kernel_model
from hardware_profiles.ops import Ops

TABLED = ("vllm", "sglang", "trtllm")
"""Frameworks whose kernels were measured; one without tables has other kernels than these."""


def operations_of(device: Device, framework: str) -> Ops:
    """Return the operations of a device under a framework (``vllm``, ``sglang``, ``trtllm``; ``llama_cpp``, ``mlx``...).

    Order: the law of its class, for kernels that an engine brings itself, said in ``provenance["law"]``; the tables measured on
    it under the framework; under another one, said in ``provenance["borrowed_from"]``; the nearest fitted device's kernels over
    its rates, said in ``provenance["borrowed_from_device"]``; the datasheet. Rates fitted to the device's own kernels
    (`kernel_error`) need no other's. Frameworks without tables have the first or last.
    """
    if framework not in TABLED:
        return _by_law(device, framework)
    if device.vendor == "amd" and device.name.startswith(STACKED_MEMORY):
        from hardware_profiles.instinct import Instinct

        return Instinct.of(device, framework)
    if device.kernel_error is not None:
        return _by_datasheet(device, framework)
    profile = device.kernel_profile or device.name
    if any(path.stem != "collectives" for path in (KERNELS_DIR / profile).glob("*.json")):
        return load_kernel_model(profile, framework)
    from hardware_profiles.roofline import BY_ARCHITECTURE

    lent = None if device.architecture in BY_ARCHITECTURE else borrowed_model(device.name, framework)
    return lent or _by_datasheet(device, framework)


def _by_datasheet(device: Device, framework: str) -> Ops:
    from hardware_profiles.roofline import Roofline

    return Roofline.of_device(device, framework)


def _by_law(device: Device, framework: str) -> Ops:
    """Kernels that an engine brings itself: by the law of the device's class, or the datasheet."""
    from hardware_profiles.device_laws import LawOps
    from hardware_profiles.law_constants import law_of

    law = law_of(device, framework)
    return _by_datasheet(device, framework) if law is None else LawOps.under(law, device, framework)


def operations_in_node(
    device: Device,
    framework: str,
    gpus: int,
    stages: int = 1,
    node_devices: int | None = None,
    rank_devices: int = 1,
    release: str = "",
) -> tuple[Ops, tuple[str, ...]]:
    """The operations of a device of which `gpus` work together in each of `stages`, and sentences on what in them is another
    device's; in nodes of `node_devices` (None: as the device's are), in data-parallel ranks of `rank_devices`, in a `release` of
    the framework ("": none in particular)."""
    ops = operations_of(device, framework)
    if release and gpus > 1 and isinstance(ops, KernelModel):
        ops = replace(ops, release=release)
    said = stated = None
    if gpus > 1 and isinstance(ops, KernelModel):
        ops, stated = on_stated_links(ops, device)
        if device.link is not None and not device.link.peer_access:
            stated = "; ".join(text for text in (stated, host_ring.WORDS) if text)
    node = node_devices or int(device.node_size.value)
    if device.kind != "cpu" and gpus * stages > node:
        from hardware_profiles.network import Network
        from hardware_profiles.roofline import Roofline

        between = device.inter_node_bytes_per_s_per_direction
        rate = between.value if between else NIC_BYTES_PER_S
        network = Network(node, rate, stages > 1 and gpus >= node, rank_devices=rank_devices)
        if isinstance(ops, KernelModel | Roofline):
            ops = replace(ops, network=network)
            return ops, tuple(text for text in (borrowing(ops), stated, network.words) if text)
    if gpus > 2 and isinstance(ops, KernelModel) and stated is None:
        ops, said = on_its_links(ops, device)
    if "law" in ops.provenance:
        said = (
            f"kernels of {ops.device} by the law of {ops.provenance['law']}, fitted to published rates; where it was not "
            f"fitted, half of the values are within about {ops.provenance['law_error_pct']:.0f} %"
        )
    return ops, tuple(s for s in (borrowing(ops), stated, said) if s)


NIC_BYTES_PER_S = 2.5e10
"""Rate of an interface where the device's profile has none [byte/s] (assumed, 2026-11: 200 Gb/s)."""

__all__ = ["operations_in_node", "operations_of"]
