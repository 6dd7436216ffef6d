"""How a checkpoint asks to be sampled, and what that costs on the device.

Servers that follow the checkpoint's generation_config.json (vLLM's `generation_config: auto`, the default) sample with its
top-p or top-k unless the client says otherwise. Greedy or plain sampling does none of what follows. How the logits of a row are
cut off changed with vLLM:

sort       before 0.8 and from 0.11.1 to 0.15: the whole vocabulary of every row is sorted, by a chain of launches.
               t = t0 + max( bytes / bandwidth, cycles a logit / (multiprocessors x clock) ) x logits
           The radix sort moves some 235 bytes a logit, yet is bound by its arithmetic wherever memory is quick: on B200, with
           2.3 times the bandwidth of H100, it takes as long (1.07 ms for 64 rows of 131,072; by bandwidth 0.55 ms).
pivot      from 0.16: a Triton kernel searches the threshold, one program a row; below 8 rows the sort stays.
               t = t0 + cycles a logit x vocabulary / clock x ceil( rows / multiprocessors )
rejection  from 0.20, and in 0.8 to 0.11.0 where it is installed, as in the images (off by pull request 26859): FlashInfer draws
           and rejects, without a threshold.
               t = t0 + bytes x logits / bandwidth

CPUs sort in every version, rows side by side, each by one core:
               t = s a comparison x vocabulary x log2( vocabulary ) x ceil( rows / cores )
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hardware_profiles.device import load_device
from hardware_profiles.errors import PlanError
from hardware_profiles.ops import Ops

FloatArray = NDArray[np.float64]
Sampler = Literal["sort", "pivot", "rejection", "cores"]

_UNREAD = "assumed: from memory of the published file, 2026-11"
TRUNCATING: dict[str, str] = {
    "llama-2": f"{_UNREAD}; its measured step times carry the cost",
    "llama-3": "top_p 0.9: generation_config.json of Llama-3.1-8B-Instruct (copy in FastMindAPI's DEVELOPMENT.md, read 2026-11)",
    "meta-llama-3": "as llama-3",
    "llama-4": f"{_UNREAD}; its measured step times carry the cost",
    "qwen2.5": "top_p 0.8, top_k 20: generation config printed by a server of Qwen2.5 (LlamaFactory issue 8453, 2025-06)",
    "qwen3": _UNREAD,
    "qwq": _UNREAD,
    "deepseek-r1": "top_p 0.95: printed by a server of DeepSeek-R1-Distill-Qwen-1.5B (a published log, 2025-06)",
    "deepseek-v3.1": _UNREAD,
    "gemma-3": _UNREAD,
    "glm-4": _UNREAD,
    "minimax-m2": "top_p 0.95, top_k 40: printed by a server of MiniMax-M2.5 (a published log, 2026-03)",
}
"""Beginning of a model's name -> what says that its generation_config.json truncates. Measured step times of Mixtral, CodeLlama,
Mistral-Nemo and Yi carry no such cost."""

#: Memory traffic of the sort a logit. kind: assumed, 2026-11: counted over PyTorch's kernels for fewer than 128 rows: pairs
#: sorted by key in four passes and by row in one (156), softmax (14), running sum (8), comparison and mask (14), scatter
#: (24, with the copy it writes to), softmax again (19).
SORT_BYTES_PER_LOGIT = 235.0
#: The search for the threshold, one program a row. kind: fitted, 2026-11, source: 0.53 and 2.01 ms for 128 and 512 rows of
#: 131,072 logits, 0.18 ms for 48 and 56 rows of 32,768 (vLLM pull requests 40376 on B200, and 33538).
PIVOT_S, PIVOT_CYCLES_PER_LOGIT = 7e-5, 6.7
#: Rows below which vLLM keeps the sort. kind: datasheet, 2026-11, source: vLLM pull request 54502, which names the gate.
PIVOT_ROWS = 8
#: FlashInfer's sampler. kind: fitted, 2026-11, source: 0.139 and 0.372 ms for 128 and 512 rows of 131,072 logits on B200
#: (vLLM pull request 40376).
REJECTION_S, REJECTION_BYTES_PER_LOGIT = 6e-5, 32.0
#: Time of one of the n log2(n) comparisons of a sort of keys with their places, by one core of a CPU [s]. kind: assumed, 2026-11:
#: sorts in vectors of 512 bits take about a nanosecond or less, scalar ones some four.
COMPARISON_S = 5e-10
#: Clock of a device whose profile names none [Hz]. kind: assumed, 2026-11: NVIDIA's data-centre GPUs boost to 1.4 to 2.5
#: GHz.
CLOCK_HZ = 1.8e9


def truncates(model: str) -> bool:
    """Whether the checkpoint's own generation_config.json asks for top-p or top-k sampling."""
    name = model.lower().rsplit("/", 1)[-1]
    return name.startswith(tuple(TRUNCATING))


def truncation_s(
    sampler: Sampler,
    kernels: Ops,
    rows: FloatArray,
    vocab: int,
    sort_step_s: float,
    sort_cycles_per_logit: float,
) -> FloatArray:
    """Device seconds that truncated sampling adds to plain sampling, for steps of `rows` sampled rows."""
    processors = float(kernels.peaks.multiprocessors)
    if sampler == "cores":
        row_s = COMPARISON_S * vocab * math.log2(vocab)
        return np.asarray(row_s * np.ceil(rows / processors), dtype=np.float64)
    clock = clock_hz(kernels)
    logits = rows * float(vocab)
    if sampler == "rejection":
        return REJECTION_S + kernels.elementwise_s(REJECTION_BYTES_PER_LOGIT * logits)
    arithmetic = sort_cycles_per_logit * logits / (processors * clock)
    sort = sort_step_s + np.maximum(kernels.elementwise_s(SORT_BYTES_PER_LOGIT * logits), arithmetic)
    if sampler == "sort":
        return sort
    search = PIVOT_S + PIVOT_CYCLES_PER_LOGIT * vocab / clock * np.ceil(rows / processors)
    return np.where(rows < PIVOT_ROWS, sort, search)


def clock_hz(kernels: Ops) -> float:
    """Highest clock of the device that the kernels are of [Hz]."""
    try:
        known = load_device(kernels.device).clock_hz
    except PlanError:
        known = None
    return known.value if known is not None else CLOCK_HZ
