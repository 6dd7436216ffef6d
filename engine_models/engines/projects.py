"""What is known of the engines' projects beside their rules: licence, how alive, and how much of the model is proven.

kind: datasheet, 2026-11. Licences: the licence file of each repository or the metadata of its package; those of MLC-LLM and
OpenArc are from memory (assumed). Dates: the newest release or commit that was seen, so a project may be more alive than that.
"""

from __future__ import annotations

from collections.abc import Mapping

from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Project:
    """An engine's project.

    licence : SPDX identifier. alive : year and month of the newest release or commit that was seen. seen : what that was.
    state : what the project says of itself, "" for nothing. steps : recorded steps of real code that the model reproduces, all of
    those there are; 0: compared with nothing but timelines worked by hand.
    """

    licence: str
    alive: str
    seen: str
    state: str = ""
    steps: int = 0


PROJECTS: Mapping[str, Project] = {
    "vllm": Project("Apache-2.0", "2026-11", "release 0.33.0", steps=12_081),
    "sglang": Project("Apache-2.0", "2026-10", "release 0.5.23", steps=13_738),
    "tgi": Project("Apache-2.0", "2026-01", "commit db931fcf", "maintenance only since 2025-12", steps=4_804),
    "trtllm": Project("Apache-2.0", "2026-11", "main of 1.3.0rc, read 2026-11", steps=5_944),
    "lmdeploy": Project("Apache-2.0", "2026-09", "release 0.18.0", steps=5_822),
    "transformers": Project("Apache-2.0", "2026-11", "release 5.24.0", steps=6_773),
    "litserve": Project("Apache-2.0", "2026-06", "release 0.2.19", steps=740),
    "deepspeed_mii": Project("Apache-2.0", "2025-06", "release 0.3.3", "dormant", steps=4_245),
    "deepspeed_inference": Project("Apache-2.0", "2026-11", "release 0.19.8"),
    "inferflow": Project("MIT", "2024-03", "commit 14ff95e", "dormant"),
    "mlc_llm": Project("Apache-2.0", "2026-07", "commit 79d603f0"),
    "mlx_lm": Project("MIT", "2026-10", "release 0.32.2", steps=4_757),
    "openvino": Project("Apache-2.0", "2026-10", "release 2026.4.1", steps=7_925),
    "llama_cpp": Project("MIT", "2026-08", "build b10488", steps=4_220),
    "ollama": Project("MIT", "2026-08", "tag v0.33.0-rc2"),
    "openarc": Project("Apache-2.0", "2026-08", "release 2.0.4"),
    "exllamav2": Project("MIT", "2025-12", "release 0.3.2", "succeeded by exllamav3, which is not simulated", steps=4_080),
    "triton": Project("BSD-3-Clause", "2026-06", "commit 73aad7c of its core"),
}
