"""The operations of a device: its own tables, else those of its nearest kin, else the datasheet. The one place that chooses."""

from __future__ import annotations

from hardware_profiles.device import STACKED_MEMORY, Device
from hardware_profiles.device_laws import LawOps
from hardware_profiles.instinct import Instinct
from hardware_profiles.kernel_borrow import borrowed_model, borrowing, on_its_links
from hardware_profiles.kernel_model import KERNELS_DIR, KernelModel, load_kernel_model
from hardware_profiles.law_constants import law_of
from hardware_profiles.ops import Ops
from hardware_profiles.roofline import Roofline

TABLED = ("vllm", "sglang", "trtllm")
"""Frameworks whose kernels were measured; one without tables has other kernels than these."""


def operations_of(device: Device, framework: str) -> Ops:
    """Return the operations of a device under a framework (``vllm``, ``sglang``, ``trtllm``; ``llama_cpp``, ``mlx``...).

    Order: the law of its class, for kernels that an engine brings itself, said in ``provenance["law"]``; the tables measured on
    it under the framework; under another one, said in ``provenance["borrowed_from"]``; the nearest fitted device's kernels over
    its rates, said in ``provenance["borrowed_from_device"]``; the datasheet. Rates fitted to the device's own kernels
    (`kernel_error`) need no other's. Frameworks without tables have the first or last.
    """
    law = law_of(device, framework)
    if law is not None:
        return LawOps.under(law, device, framework)
    if framework not in TABLED:
        return Roofline.of_device(device, framework)
    if device.vendor == "amd" and device.name.startswith(STACKED_MEMORY):
        return Instinct.of(device, framework)
    if device.kernel_error is not None:
        return Roofline.of_device(device, framework)
    profile = device.kernel_profile or device.name
    if any(path.stem != "collectives" for path in (KERNELS_DIR / profile).glob("*.json")):
        return load_kernel_model(profile, framework)
    return borrowed_model(device.name, framework) or Roofline.of_device(device, framework)


def operations_in_node(device: Device, framework: str, gpus: int) -> tuple[Ops, tuple[str, ...]]:
    """The operations of a device of which `gpus` work together, and sentences on what in them is another device's."""
    ops = operations_of(device, framework)
    said = None
    if gpus > 2 and isinstance(ops, KernelModel):
        ops, said = on_its_links(ops, device)
    if "law" in ops.provenance:
        said = (
            f"kernels of {ops.device} by the law of {ops.provenance['law']}, fitted to published rates; about "
            f"{ops.provenance['law_error_pct']:.0f} % off where it was not fitted"
        )
    return ops, tuple(s for s in (borrowing(ops), said) if s)


__all__ = ["operations_in_node", "operations_of"]
