"""Arithmetic that a device sustains in matrix products, where a table was timed with weights that cost no power.

vLLM's tables of plain products were taken with weights that nobody filled (bf16) or that are all alike (fp8: 0.01), SGLang's and
TensorRT-LLM's with random ones. Bits that do not toggle draw no power, so the first run at clocks that a server under load does
not hold: the same cuBLAS product in bf16 is as quick in all three up to 1e11 FLOP (1-5 %), and 10 to 25 % quicker in vLLM's
table from 3e12 FLOP, where a kernel is long enough for the power limit to act (7 % on RTX PRO 6000). A server's weights are as
good as random, and a prompt keeps the device busy for long.

Experts are products as others are: the same share bounds them, and what brings rows to the experts, activates them and adds them
up comes on top, as kernels of their own. TensorRT-LLM's table of experts in FP8 reaches 0.73 of an H100's peak in all, above any
dense product there; Mixtral-8x7B of MLPerf 4.1 on H100 and H200 then comes out 1.5 times too quick.
"""

from __future__ import annotations

from collections.abc import Mapping

SUSTAINED_SHARE: Mapping[str, Mapping[str, float]] = {
    "a100-sxm-80gb": {"bfloat16": 0.815},
    "b200-sxm-180gb": {"bfloat16": 0.631, "fp8": 0.503, "nvfp4": 0.446},
    "b300-sxm-288gb": {"bfloat16": 0.651, "fp8": 0.524, "nvfp4": 0.381},
    "gb200-186gb": {"bfloat16": 0.587, "fp8": 0.411, "nvfp4": 0.485},
    "gb300-288gb": {"bfloat16": 0.711, "fp8": 0.584, "nvfp4": 0.398},
    "h100-sxm-80gb": {"bfloat16": 0.733, "fp8": 0.548},
    "h200-sxm-141gb": {"bfloat16": 0.703, "fp8": 0.587},
    "l40s-48gb": {"bfloat16": 0.518, "fp8": 0.398},
    "rtx-pro-6000-96gb": {"bfloat16": 0.833, "fp8": 0.736, "nvfp4": 0.697},
}
"""Device of the table -> format -> share of the datasheet's dense peak that products sustain. unit: 1, kind: measured: mean of
SGLang's and TensorRT-LLM's medians over products of 3e12 FLOP and more; source: aiconfigurator 095f58a (Apache-2.0), tables of
linear layers, vLLM 0.24.0, SGLang 0.5.14 (A100: 0.5.10), TensorRT-LLM 1.3.0rc20 (A100: 1.0.0); B300, GB200 and GB300: aisimulate
0.13.0 (Apache-2.0), SGLang 0.5.20 and 0.5.17, TensorRT-LLM 1.3.0rc20; 2026-11."""

WITHOUT_POWER: Mapping[str, tuple[str, ...]] = {
    "vllm": ("bfloat16", "fp8", "nvfp4"),
    "trtllm": ("fp8",),
    "trtllm/moe": ("bfloat16", "fp8"),
}
"""Frameworks (and operations there) and formats whose tables were timed with weights that cost no power, or rest for the pass
that finds scales. TensorRT-LLM's experts in bf16 reach 0.73 to 0.85 of the peak on Hopper and Blackwell, above dense products."""


def sustained_share(framework: str, table: str, fmt: str, op: str = "gemm", *, lower_power: bool = False) -> float | None:
    """Share of peak that bounds products of one format in serving, None where the table says it itself.

    framework, table : framework and device that the table was taken with. op : ``gemm`` or ``moe``.
    lower_power : for a device of a lower limit.
    """
    told = not lower_power and fmt not in WITHOUT_POWER.get(f"{framework}/{op}", WITHOUT_POWER.get(framework, ()))
    return None if told else SUSTAINED_SHARE.get(table, {}).get(fmt)
