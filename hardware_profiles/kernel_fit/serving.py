"""What serving takes in place of a table: another kernel, or the table of another framework."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hardware_profiles.kernel_fit.ops import OPS

if TYPE_CHECKING:
    import pandas as pd

#: How the serving condition departs from the tables; said in every file.
SERVING: Mapping[str, str] = {
    "gemm": "cold L2; a row count over 1.15 times dearer than a larger one (a kernel chosen badly, a disturbed "
    "measurement: vLLM's fp8 rows on B200 at m = 1 cost 13 us more than at m = 2) takes the larger one's time, since "
    "rows can be padded; tables timed without a CUDA graph are replaced (serving_from)",
    "attention": "cold L2; more KV heads than reference_kv_heads count as more sequences of that many",
    "moe": "cold L2; rows that a benchmark counted otherwise (_all_tokens, _grouped_deal) are not taken; experts are "
    "chosen independently and are unequally popular, where the balanced benchmark deals rows out in turn; a backend slower "
    "than bfloat16 is replaced by the framework's other kernel that runs the format (serving_as, serving_reason)",
}


#: A quantised expert kernel slower than bfloat16 by this factor (median over the same shapes and loads) is not what
#: a deployment chooses. unit: 1, kind: assumed, 2026-11.
SLOWER = 1.15

#: Formats whose checkpoints a kernel of another format runs too: a product with a scale a block takes one scale a
#: tensor (all blocks alike), not the reverse.
ALSO_RUNS: Mapping[str, str] = {"fp8": "fp8_block"}


def serving_experts(frames: Mapping[str, pd.DataFrame]) -> dict[tuple[str, str], dict[str, Any]]:
    """For each (framework, format) of expert tables slower than bfloat16: what serving takes instead, and why.

    The faster kernel of :data:`ALSO_RUNS`, of the same framework before the others. A backend measured at several
    times the memory bound (the one of vLLM's table for per-tensor fp8 on Hopper) is thus kept for bench only.
    """
    keys = [c for c in (*OPS["moe"].shape, *OPS["moe"].load) if c not in ("kernel", "tuned")]
    times = {}
    for framework, frame in frames.items():
        for fmt, part in frame.groupby(frame["dtype"].astype(str), sort=True):
            times[framework, str(fmt)] = part.groupby(keys)["latency_us"].mean()
    out: dict[tuple[str, str], dict[str, Any]] = {}
    for (framework, fmt), own in times.items():
        plain = times.get((framework, "bfloat16"))
        ratio = (own / plain).dropna() if plain is not None and fmt != "bfloat16" else None
        if ratio is None or ratio.empty or ratio.median() <= SLOWER:
            continue
        best: tuple[int, float, tuple[str, str]] | None = None
        for (place, other), time in times.items():
            if other != ALSO_RUNS.get(fmt):
                continue
            faster = (time / own).dropna()
            if len(faster) and faster.median() < 1.0:
                rank = (int(place != framework), float(faster.median()), (place, other))
                best = min(best, rank) if best else rank
        if best:
            out[framework, fmt] = {
                "serving_as": list(best[2]),
                "serving_reason": f"median time {ratio.median():.2f} of bfloat16, {1.0 / best[1]:.2f} of the substitute",
            }
    return out


#: Formats that serving takes as another framework timed the same kernels. vLLM's tables of products by blocks were timed without
#: a CUDA graph (:data:`TIMED_EAGERLY`), or with the quantisation of the activations as a kernel apart, which its compiler fuses
#: into norms and activations: they take 1.02 to 1.6 times as long, and servers do not (278 runs of MiniMax-M2.5 in FP8 on B200).
EAGER: Mapping[tuple[str, str], tuple[str, ...]] = {("vllm", "gemm/fp8_block"): ("sglang", "trtllm")}

#: The same of a table of one device that one kernel was timed for whatever the shape: TensorRT-LLM's nvfp4 on data-centre
#: Blackwell takes 22 us (B200, GB200) at a depth of 8,192 for 1,280 to 10,240 columns and 55 to 64 us at 28,672, where the other
#: two take 13 and 30, and its tuner has their kernels too.
ONE_KERNEL: Mapping[tuple[str, str, str], tuple[str, ...]] = {
    (device, "trtllm", "gemm/nvfp4"): ("vllm", "sglang")
    for device in ("b200-sxm-180gb", "b300-sxm-288gb", "gb200-186gb", "gb300-288gb")
}
