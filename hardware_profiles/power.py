"""Electric power of a device by its load: idle, and computing for so many rows.

    P = TDP (base + slope ln rows), at most TDP top, while it computes; its idle power (where unknown a share of the TDP) else

It is what the device draws, not the machine around it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from hardware_profiles.device import STACKED_MEMORY, Device


@dataclass(frozen=True)
class PowerLaw:
    """Shares of the TDP: idle; with one row, more for each e-fold of rows, and at most."""

    idle_share: float
    base_share: float
    slope_share: float
    top_share: float


#: GPUs with stacked memory. kind: fitted by eye, 2026-11, source: medians of ML.ENERGY's runs by batch on H100 and B200
#: (within 6 % from 10 to 500 rows), one H200 from 1 to 128 users (within 25 %); idle 0.10 to 0.19 of H100, H200, MI300X.
SERVER = PowerLaw(idle_share=0.13, base_share=0.5, slope_share=0.07, top_share=0.9)
#: Graphics cards, which decode a single row near their limit: median 499 of 575 W on RTX 5090, 332 of 320 on RTX 3080. kind:
#: measured, 2026-11, source: guruswami-ai/mlx-benchmarks@2e44a7c; idle assumed.
CARD = PowerLaw(idle_share=0.06, base_share=0.9, slope_share=0.02, top_share=1.0)
#: Apple's chips: GPU, CPU and neural engine of an M2 Ultra draw 17 W decoding and 64 W in prompts, of 150. kind: measured and
#: assumed, 2026-11.
APPLE = PowerLaw(idle_share=0.04, base_share=0.15, slope_share=0.1, top_share=0.6)
#: Processors with a GPU inside: 76 W decoding and 54 in prompts of 120 on Ryzen AI Max+ 395 (llama-bench). kind: measured,
#: 2026-11.
APU = PowerLaw(idle_share=0.08, base_share=0.6, slope_share=0.02, top_share=0.8)
#: Servers' CPUs and what nobody measured. kind: assumed, 2026-11.
CPU = PowerLaw(idle_share=0.35, base_share=0.8, slope_share=0.02, top_share=0.95)
OTHER = SERVER


def law_of(device: Device) -> PowerLaw:
    """The law of a device's class."""
    if device.kind == "gpu":
        return SERVER if device.name.startswith(STACKED_MEMORY) else CARD
    return {"apple": APPLE, "apu": APU, "cpu": CPU}.get(device.kind, OTHER)


def mean_power_w(device: Device, busy_share: float, rows: float) -> float:
    """Mean power of a device that computes for a share `busy_share` of the time, then for `rows` rows [W]."""
    law, tdp_w = law_of(device), device.tdp_w.value
    idle_w = device.idle_w.value if device.idle_w else law.idle_share * tdp_w
    loaded_w = tdp_w * min(law.base_share + law.slope_share * math.log(max(rows, 1.0)), law.top_share)
    return idle_w + busy_share * max(loaded_w - idle_w, 0.0)


__all__ = ["mean_power_w"]
