"""Where the tables of kernel times come from, and the datasheet rates of the devices they were measured on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hardware_profiles import kernel_physics as kp

#: Name of a GPU in the tables -> name of the device here.
DEVICES: Mapping[str, str] = {
    "A100-SXM-80GB": "a100-sxm-80gb",
    "H100-SXM": "h100-sxm-80gb",
    "H200-SXM": "h200-sxm-141gb",
    "L40S": "l40s-48gb",
    "B200-SXM": "b200-sxm-180gb",
    "RTX-PRO-6000-Server": "rtx-pro-6000-96gb",
    "Arc-Pro-B60": "arc-pro-b60",
    "B300-SXM": "b300-sxm-288gb",
    "GB200": "gb200-186gb",
    "GB300": "gb300-288gb",
}

#: GPUs with collective or point-to-point tables only.
LINK_ONLY: Mapping[str, str] = {"A40": "a40-48gb"}
FRAMEWORKS = ("vllm", "sglang", "trtllm")

#: Datasheet rates, dense. kind: datasheet. bfloat16, fp8, fp4 and memory bandwidth as in the aiconfigurator
#: system files (commit 095f58a5, 2026). int8, L2, multiprocessors and links (one way: NVLink 300, 450, 900
#: GB/s; PCIe 4 and 5 x16) from the vendors' product descriptions, not checked against a second source.
PEAKS: Mapping[str, kp.DevicePeaks] = {
    "a100-sxm-80gb": kp.DevicePeaks({"bfloat16": 312e12, "int8": 624e12}, 2039e9, 40e6, 300e9, 108),
    "h100-sxm-80gb": kp.DevicePeaks(
        {"bfloat16": 989e12, "fp8": 1979e12, "int8": 1979e12}, 3350e9, 50e6, 450e9, 132
    ),
    "h200-sxm-141gb": kp.DevicePeaks(
        {"bfloat16": 989e12, "fp8": 1979e12, "int8": 1979e12}, 4800e9, 50e6, 450e9, 132
    ),
    "l40s-48gb": kp.DevicePeaks({"bfloat16": 362e12, "fp8": 733e12, "int8": 733e12}, 864e9, 96e6, 32e9, 142),
    "b200-sxm-180gb": kp.DevicePeaks(
        {"bfloat16": 2250e12, "fp8": 4500e12, "int8": 4500e12, "fp4": 9000e12}, 7700e9, 126e6, 900e9, 148
    ),
    "rtx-pro-6000-96gb": kp.DevicePeaks(
        {"bfloat16": 468e12, "fp8": 936e12, "int8": 936e12, "fp4": 1871e12}, 1792e9, 128e6, 64e9, 188
    ),
    "arc-pro-b60": kp.DevicePeaks({"bfloat16": 98e12, "fp8": 98e12, "int8": 197e12}, 456e9, 18e6, 32e9, 20),
    "b300-sxm-288gb": kp.DevicePeaks(
        {"bfloat16": 2250e12, "fp8": 4500e12, "int8": 153.5e12, "fp4": 14000e12}, 7750e9, 126e6, 900e9, 148
    ),
    "gb200-186gb": kp.DevicePeaks(
        {"bfloat16": 2500e12, "fp8": 5000e12, "int8": 5000e12, "fp4": 10000e12}, 8000e9, 126e6, 900e9, 148
    ),
    "gb300-288gb": kp.DevicePeaks(
        {"bfloat16": 2500e12, "fp8": 5000e12, "int8": 166e12, "fp4": 15000e12}, 8000e9, 126e6, 900e9, 148
    ),
}

SOURCES: Sequence[Mapping[str, str]] = (
    {
        "repository": "https://pypi.org/project/aisimulate",
        "commit": "0.13.0",
        "licence": "Apache-2.0",
        "holder": "NVIDIA CORPORATION & AFFILIATES",
    },
    {
        "repository": "https://github.com/ai-dynamo/aiconfigurator",
        "commit": "095f58a5",
        "licence": "Apache-2.0",
        "holder": "NVIDIA CORPORATION & AFFILIATES",
    },
    {
        "repository": "https://github.com/casys-kaist/LLMServingSim",
        "commit": "5daddb21",
        "licence": "MIT",
        "holder": "CASYS, KAIST",
    },
    {
        "repository": "https://github.com/microsoft/vidur",
        "commit": "7d475133",
        "licence": "MIT",
        "holder": "Microsoft Corporation",
    },
)
FITTED_ON = "2026-11-29"


def peaks_json(peaks: kp.DevicePeaks) -> dict[str, Any]:
    """The datasheet rates as they stand in the files."""
    return {
        "flops_per_s": dict(peaks.flops_per_s),
        "hbm_bytes_per_s": peaks.hbm_bytes_per_s,
        "l2_bytes": peaks.l2_bytes,
        "link_bytes_per_s": peaks.link_bytes_per_s,
        "multiprocessors": peaks.multiprocessors,
    }
