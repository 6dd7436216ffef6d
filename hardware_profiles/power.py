"""Electric power of a device by its load: idle, and computing for so many rows.

    P = TDP (base + slope ln rows), at most TDP top, while it computes; its idle power (where unknown a share of the TDP) else

It is what the device draws, not the machine around it. A limit L below the TDP slows the clock of an NVIDIA GPU until it is kept.
Voltage follows the clock, so that what the clock moves takes its third power, beside what leaks and what memory takes:

    clock = ((L / TDP - STATIC_SHARE) / (1 - STATIC_SHARE))^(1/3)

Arithmetic follows the clock; memory has a clock of its own, and keeps its rate while caches and units ask quickly enough.
"""

from __future__ import annotations

import math

from hardware_profiles.device import STACKED_MEMORY, Device
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from hardware_profiles.scaled_ops import Scales


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


#: Share of the TDP that does not follow the clock. kind: fitted, 2026-11, source: prompts under limits of half the TDP and more:
#: RTX 3090 (four series, noonghunna/club-3090 docs/HARDWARE.md and issue 104, llmgarage.ai), RTX 5090 (there), RTX PRO 6000
#: (llama-bench at eight limits); Llama-2-70B, Mixtral and GPT-J of MLPerf 4.1 on H200 at 700 W and at 500 or 350 W
#: (`power_limit` of NVIDIA's MaxQ configurations). A device left out is off by 4 to 12 % in the median (at most 25).
STATIC_SHARE = 0.29
#: Clock, as a share, below which memory slows with it, and that of RTX 30 cards, which decode at their limit as it is (334 to 388
#: of 350 to 370 W). kind: fitted by eye, 2026-11, source: single streams on RTX 4090, 5060 Ti, 5090 and PRO 6000 (the same,
#: sudoingX/qwen38-mtp): 1 % in the median of 12, at most 11; on RTX 3090 (there, six) 10 %, three-bit weights at 0.54 of the TDP
#: 56. H200's draw less than any limit (arXiv 2605.11999). Nothing was fitted to 49 closed loops of vLLM on RTX 3090 at 220 and
#: 300 W: 8 % in the median, 28 without a limit.
ENOUGH_CLOCK, ENOUGH_CLOCK_AMPERE = 0.8, 1.0
#: Least limit, as a share of the TDP: below, the voltage falls no further, and clocks collapse. kind: assumed, 2026-11, source:
#: prompts on RTX 3090 at 0.43 and 0.29 of the TDP have 0.26 and 0.14 of their rate (llmgarage.ai).
LEAST_LIMIT = 0.5
LIMIT_ERROR_PCT = 12.0
"""What the law of limits is off by in the median on a device left out of it, the worst of four."""


def clock_share(power_share: float) -> float:
    """The clock, as a share, that a share of the power keeps which the whole clock takes.

    Below `LEAST_LIMIT` of it voltage falls no further, and the clock goes as the power (by the physics; not measured).
    """
    kept = max(min(power_share, 1.0), LEAST_LIMIT)
    voltage_share: float = ((kept - STATIC_SHARE) / (1.0 - STATIC_SHARE)) ** (1.0 / 3.0)
    return voltage_share * min(1.0, power_share / LEAST_LIMIT)


def limited(device: Device, limit_w: float, *, where: str) -> Scales:
    """How much longer a device takes under a power limit. Raises InputError for one that no measurement stands behind."""
    tdp_w = device.tdp_w.value
    if device.kind != "gpu" or device.vendor != "nvidia":
        raise InputError(
            f"what a power limit costs was measured on NVIDIA's GPUs, not on {device.title}",
            where=where,
            mend=f"remove `{where}`, and calibrate with measurements of the machine (`capacity-plan calibrate`)",
        )
    if not LEAST_LIMIT * tdp_w <= limit_w <= tdp_w:
        beside = "below half of" if limit_w < tdp_w else "above"
        raise InputError(
            f"a power limit of {limit_w:g} W is {beside} the {tdp_w:g} W of {device.title}",
            where=where,
            mend=f"give {LEAST_LIMIT * tdp_w:g} to {tdp_w:g}; below half of it clocks collapse, which is not modelled",
        )
    clock = clock_share(limit_w / tdp_w)
    cards = device.architecture == "ampere" and not device.name.startswith(STACKED_MEMORY)
    enough = ENOUGH_CLOCK_AMPERE if cards else ENOUGH_CLOCK
    return Scales(prompt_scale=1.0 / clock, decode_scale=max(1.0, enough / clock))


def limit_words(limit_w: float, scales: Scales) -> str:
    """What a limit does, for the assumptions of a run."""
    return (
        f"power limit {limit_w:g} W: arithmetic at {1 / scales.prompt_scale:.0%} of its rate, memory at "
        f"{1 / scales.decode_scale:.0%} (by the third power of the clock; GPUs left out of the fit are up to "
        f"{LIMIT_ERROR_PCT:.0f} % off in the median, and decoding of formats that take long to unpack slows more)"
    )


def mean_power_w(device: Device, busy_share: float, rows: float, limit_w: float | None = None) -> float:
    """Mean power of a device that computes for a share `busy_share` of the time, then for `rows` rows, under a limit [W]."""
    law, tdp_w = law_of(device), device.tdp_w.value
    idle_w = device.idle_w.value if device.idle_w else law.idle_share * tdp_w
    loaded_w = tdp_w * min(law.base_share + law.slope_share * math.log(max(rows, 1.0)), law.top_share)
    loaded_w = min(loaded_w, limit_w or tdp_w)
    return idle_w + busy_share * max(loaded_w - idle_w, 0.0)


__all__ = ["limit_words", "limited", "mean_power_w"]
