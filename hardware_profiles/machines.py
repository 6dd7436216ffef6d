"""Machines that clouds rent by a name: which devices they hold, and how many; for mends alone.

Sources, read 2026-11: AWS's and Azure's types in RAPIDS' list of accelerated instances and Hugging Face's page of supported
hardware, prices of hyperscalers of 2026-11-09 (GPU and memory of p4d, p4de, p5 and the NC sizes), Google's release notes of A3
Ultra; those of Google's other types follow from their names and memory (assumed).
"""

from __future__ import annotations

import re

_MACHINES: tuple[tuple[str, str, int], ...] = (
    (r"p5\.48xlarge|a3-(?:high|mega)gpu-8g|(?:standard_)?nd96isr_h100_v5", "h100-sxm-80gb", 8),
    (r"p5en\.48xlarge|a3-ultragpu-8g|(?:standard_)?nd96isr_h200_v5", "h200-sxm-141gb", 8),
    (r"p4de\.24xlarge|a2-ultragpu-8g|(?:standard_)?nd96amsr_a100_v4", "a100-sxm-80gb", 8),
    (r"p4d\.24xlarge|a2-highgpu-8g|(?:standard_)?nd96asr_v4", "a100-sxm-40gb", 8),
    (r"(?:standard_)?nc24ads_a100_v4", "a100-pcie-80gb", 1),
    (r"(?:standard_)?nc48ads_a100_v4", "a100-pcie-80gb", 2),
    (r"(?:standard_)?nc96ads_a100_v4", "a100-pcie-80gb", 4),
    (r"(?:standard_)?nc40ads_h100_v5", "h100-nvl-94gb", 1),
    (r"(?:standard_)?nc80adis_h100_v5", "h100-nvl-94gb", 2),
    (r"g6\.(?:x|2x|4x|8x|16x)large|gr6\.(?:4x|8x)large|g2-standard-(?:4|8|12|16|32)", "l4-24gb", 1),
    (r"g6\.(?:12x|24x)large", "l4-24gb", 4),
    (r"g6\.48xlarge|g2-standard-96", "l4-24gb", 8),
    (r"g5\.(?:x|2x|4x|8x|16x)large", "a10g-24gb", 1),
    (r"g5\.(?:12x|24x)large", "a10g-24gb", 4),
    (r"g5\.48xlarge", "a10g-24gb", 8),
    (r"g4dn\.(?:x|2x|4x|8x|16x)large|(?:standard_)?nc(?:4|8|16)as_t4_v3", "t4-16gb", 1),
    (r"g4dn\.12xlarge|(?:standard_)?nc64as_t4_v3", "t4-16gb", 4),
)
"""Patterns of names, in lower case; the device; how many."""


def machine_named(name: str) -> tuple[str, int] | None:
    """The devices of a cloud's machine and their count; None for any other name.

    >>> machine_named("p5.48xlarge")
    ('h100-sxm-80gb', 8)
    """
    text = name.strip().lower()
    return next(((device, count) for pattern, device, count in _MACHINES if re.fullmatch(pattern, text)), None)
