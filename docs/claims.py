# ruff: noqa: E501  a table of sentences
"""Write docs/background/published-claims.md: claims of guides to serving, beside what a simulation says.

    python docs/claims.py      some forty runs, a minute or two

The claims are from four guides of 2024 and 2025, A to D, that name no measurement; what a guide leaves open is filled in and said.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from simulator import simulate  # noqa: E402

PAGE = ROOT / "docs" / "background" / "published-claims.md"
LLAMA_70B, LLAMA_8B = "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"
NEAR = 0.25
"""Relative distance at which a claim counts as supported; assumed: what a set-up that is not fully stated leaves open."""


@cache
def run(
    model: str,
    engine: str,
    hardware: str,
    users: int,
    prompt: int = 512,
    output: int = 128,
    tp: int = 1,
    prefix: int = 0,
    weights: str | None = None,
    mode: str | None = None,
    spread: bool = False,
) -> dict[str, Any]:
    """`result.json` of so many users in a closed loop without think time, lengths spread by a quarter of their mean."""
    length: dict[str, Any] = {"kind": "normal", "mean": output, "std": output / 4, "min": 1}
    if spread:
        length = {"kind": "lognormal", "mean": output, "p99": 6 * output}
    workload: dict[str, Any] = {
        "arrivals": {"kind": "closed_loop", "concurrency": users},
        "prompt_tokens": {"kind": "normal", "mean": prompt, "std": prompt / 4, "min": 1},
        "output_tokens": length,
        "max_output_tokens": "equal",
        "requests": max(40, 6 * users),
    }
    if prefix:
        workload["shared_prefix"] = {"groups": 1, "tokens": prefix}
    args: dict[str, Any] = {"mode": mode, **({"batch_size": users} if mode == "static" else {})} if mode else {"backend": "pytorch"} if engine == "lmdeploy" else {}
    pool: dict[str, Any] = {"engine": engine, "hardware": hardware, "tensor_parallel": tp, "engine_args": args}
    if weights:
        pool["weights"] = weights
    return simulate({"model": model, "deployment": pool, "workload": workload}).result


Figure = tuple[float, float, float]
"""A simulated figure, and its 90 % interval."""


def tokens(result: dict[str, Any]) -> Figure:
    """Output tokens per second."""
    totals = result["totals"]
    return totals["output_throughput"], *totals["interval"]["output_throughput"]


def latency(name: str, statistic: str = "mean") -> Callable[[dict[str, Any]], Figure]:
    """A latency in milliseconds."""

    def of(result: dict[str, Any]) -> Figure:
        metric = result["metrics"][name]
        low, high = metric["interval"][statistic]
        return metric[statistic], low, high if high is not None else float("inf")

    return of


def ratio(one: Figure, other: Figure) -> Figure:
    """`one` over `other`, their errors taken to be independent."""
    half = ((one[2] / one[0] - 1) ** 2 + (other[2] / other[0] - 1) ** 2) ** 0.5
    value = one[0] / other[0]
    return value, value / (1 + half), value * (1 + half)


@dataclass(frozen=True)
class Claim:
    """What a guide says, within `low` and `high`; what the simulation says; the physics in a sentence."""

    guide: str
    words: str
    low: float
    high: float
    found: Figure
    unit: str
    why: str

    @property
    def verdict(self) -> str:
        """By whether the claimed range comes near the figure, or only into its interval."""
        value, low, high = self.found
        if self.low <= value * (1 + NEAR) and self.high >= value * (1 - NEAR):
            return "supported"
        return "not excluded" if self.low <= high and self.high >= low else "contradicted"

    def row(self) -> str:
        """A line of the table."""
        said = f"{self.low:,g}" if self.low == self.high else f"{self.low:,g} to {self.high:,g}"
        value, low, high = self.found
        simulated = f"{short(value)} ({short(low)} to {short(high)})"
        return f"| {self.guide} | {self.words} | {said} {self.unit} | {simulated} | **{self.verdict}** | {self.why} |"


def short(value: float) -> str:
    """Three digits."""
    return "-" if value == float("inf") else f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def claims() -> list[Claim]:
    """All that a simulation can speak to."""
    out: list[Claim] = []
    said = {
        "vllm": ((45, 420, 2100, 4200), (85, 120, 280, 520)),
        "trtllm": ((52, 480, 2400, 4800), (65, 95, 210, 380)),
        "sglang": ((48, 450, 2200, 4400), (75, 105, 240, 450)),
        "tgi": ((38, 350, 1600, 3200), (95, 145, 380, 720)),
    }
    setup = "Llama-3.1-70B on 8 x A100, 512 in, 128 out"
    large: dict[tuple[str, int], dict[str, Any]] = {}
    for engine, (rates, firsts) in said.items():
        for users, rate, first in zip((1, 10, 50, 100), rates, firsts, strict=True):
            result = large[engine, users] = run(LLAMA_70B, engine, "a100-sxm-80gb", users, tp=8)
            why = (
                "eight cards read 141 GB of weights in 9 ms; collectives and launches add to it"
                if users == 1
                else "100 users need 3 PFLOP/s for output tokens at this rate, of 2.5 that there are: it can only count prompts too"
                if users == 100
                else "the same weights are read for all rows, but each answer also has a prompt of four times its length to compute"
            )
            out.append(Claim("A", f"{engine}, {setup}, {users} users", rate, rate, tokens(result), "tokens/s", why))
            why = "a prompt of 512 takes 58 ms at half the peak; behind others it waits for their prompts"
            out.append(
                Claim("A", f"{engine}, the same, {users} users: TTFT", first, first, latency("ttft_ms")(result), "ms", why)
            )
    at_100 = {engine: tokens(large[engine, 100]) for engine in said}
    compared = "at 100 users of the table above"
    out += [
        Claim("A", f"TensorRT-LLM over vLLM, {compared}", 1.2, 1.4, ratio(at_100["trtllm"], at_100["vllm"]), "x",
              "both run the same matrix products at the same peak; what differs is the host's work and the attention kernels"),
        Claim("A", f"vLLM over TGI, {compared}", 1.1, 1.3, ratio(at_100["vllm"], at_100["tgi"]), "x",
              "TGI pauses decoding for prompts, or splits them into more steps"),
        Claim("B", f"SGLang over vLLM, {compared}", 3.1, 3.1, ratio(at_100["sglang"], at_100["vllm"]), "x",
              "without shared prefixes nothing is left out of the arithmetic; three times as quick would be above the peak"),
        Claim("D", f"SGLang over vLLM, {compared}", 1.1, 1.3, ratio(at_100["sglang"], at_100["vllm"]), "x",
              "host time between steps is the difference, and it is hidden in both"),
    ]  # fmt: skip
    fast = run(LLAMA_70B, "vllm", "h100-sxm-80gb", 1, tp=4)
    trt = run(LLAMA_70B, "trtllm", "h100-sxm-80gb", 1, tp=4)
    out += [
        Claim("C", "vLLM, 70B on 4 x H100, one user: a token", 40, 40, latency("itl_ms")(fast), "ms",
              "141 GB over 13.4 TB/s are 10.5 ms; 40 ms would be a quarter of the bandwidth"),
        Claim("C", "TensorRT-LLM, the same", 25, 25, latency("itl_ms")(trt), "ms", "the same bound"),
    ]  # fmt: skip
    small = {"vllm": (44, 3412, 48, 13), "sglang": (42, 3847, 42, 11), "trtllm": (32, 3234, 38, 10), "lmdeploy": (45, 3198, 51, 14)}
    for engine, (users, rate, first, gap) in small.items():
        result = run(LLAMA_8B, engine, "h100-sxm-80gb", users)
        words = f"{engine}, Llama-3.1-8B on one H100 ({users} users, as rate x ITL says; 512 in, 128 out assumed)"
        why = "16 GB of weights in 4.8 ms and the cache of 44 rows: a step of 7 to 9 ms"
        out += [
            Claim("D", words, rate, rate, tokens(result), "tokens/s", why),
            Claim("D", f"{engine}, the same: TTFT p50", first, first, latency("ttft_ms", "p50")(result), "ms",
                  "a prompt of 512 takes 12 ms, and waits for a step to end"),
            Claim("D", f"{engine}, the same: ITL p50", gap, gap, latency("itl_ms", "p50")(result), "ms", why),
        ]  # fmt: skip
    for engine, rate, first in (("vllm", 12500, 45), ("trtllm", 14200, 32), ("sglang", 13800, 38)):
        result = run(LLAMA_8B, engine, "h100-sxm-80gb", 100)
        words = f"{engine}, Llama-3.1-8B, 100 users (H100; 512 in, 128 out assumed)"
        out += [
            Claim("A", words, rate, rate, tokens(result), "tokens/s",
                  "three and a half times guide D's figure for the same model: only a load of short prompts comes near it"),
            Claim("A", f"{engine}, the same: TTFT", first, first, latency("ttft_ms")(result), "ms",
                  "of 100 users some always wait behind others' prompts"),
        ]  # fmt: skip
    static = run(LLAMA_8B, "transformers", "h100-sxm-80gb", 32, mode="static", spread=True)
    moving = run(LLAMA_8B, "transformers", "h100-sxm-80gb", 32, mode="continuous", spread=True)
    out.append(
        Claim("D", "continuous over static batches (transformers, 8B on H100, 32 users, answers of lognormal length)", 2, 4,
              ratio(tokens(moving), tokens(static)), "x", "a static batch computes until its longest answer ends; ended rows are padding"),
    )  # fmt: skip
    for users, low, high in ((1, 2, 3), (100, 2, 3)):
        whole = run(LLAMA_8B, "vllm", "h100-sxm-80gb", users)
        packed = run(LLAMA_8B, "vllm", "h100-sxm-80gb", users, weights="awq")
        why = (
            "a single row is bound by the bytes of the weights, of which a quarter is left"
            if users == 1
            else "many rows are bound by arithmetic, which 4-bit weights do not make quicker: they are unpacked to 16 bits"
        )
        out.append(
            Claim("D", f"4-bit weights over bf16 (vLLM, AWQ, 8B on H100, {users} users)", low, high,
                  ratio(tokens(packed), tokens(whole)), "x", why)
        )  # fmt: skip
    cold = run(LLAMA_8B, "vllm", "h100-sxm-80gb", 16, prompt=4224)
    shared = run(LLAMA_8B, "vllm", "h100-sxm-80gb", 16, prompt=128, prefix=4096)
    out += [
        Claim("D", "a shared prefix of 4,096 tokens, 128 of one's own (vLLM, 8B on H100, 16 users): TTFT", 3, 10,
              ratio(latency("ttft_ms")(cold), latency("ttft_ms")(shared)), "x",
              "32 of 33 parts of the prompt are found; what is left is the floor of a step and of the front end"),
        Claim("D", "the same: tokens/s", 3, 10, ratio(tokens(shared), tokens(cold)), "x",
              "the prompts' share of the time goes, that of the answers stays, and attends to as much"),
    ]  # fmt: skip
    return out


NOT_TESTABLE = (
    ("A", "70B in FP8: 4,741 tokens/s, TTFT 123 ms, 'p99' 450 ms", "neither hardware nor lengths are stated; the p99 holds 16 tokens, so it is no end-to-end latency"),
    ("A", "memory grows by 10 to 17 GB with 100 users", "these engines take the whole KV pool at start: what the driver reports does not grow"),
    ("A", "a score of 0.40 for llama.cpp's throughput", "a score has no unit"),
    ("B", "2.7 times the previous version; five times faster TTFT than TGI", "versions and load are not stated; the guide's own table gives 1.7"),
    ("B", "70B on 4 x H100: 12,500, 11,200, 8,900, 6,800 tokens/s", "no load is stated: at some number of users each is true"),
    ("B", "llama.cpp serves a 70B at 3,200 tokens/s on a CPU", "451 TFLOP/s of arithmetic, ten times what a server CPU has"),
    ("B", "80 % of the KV cache is shared", "a hit rate is of a workload, not of an engine"),
    ("C", "64, 32 and 8 concurrent requests on one A100", "settings, not limits: the memory holds far more"),
    ("D", "32 heads make 512 KB of cache a token for Llama-3.1-8B", "it has 8 KV heads: 128 KiB (`capacity-plan check` prints it)"),
    ("D", "$0.20, $0.24, $0.65 and $0.05 a million tokens", "each on another basis: [why such tables disagree](published-cost-tables.md)"),
    ("D", "10 to 50 ms a token, 10 to 100 users on one GPU", "a range that any deployment is in"),
)  # fmt: skip


def page() -> str:
    """The whole page."""
    found = claims()
    count = Counter(claim.verdict for claim in found)
    lines = [
        "# Published claims, simulated",
        "",
        "Guides to serving language models are full of figures without a measurement behind them. These are from four of them (A to D, of",
        "2024 and 2025), each beside what this tool says of the same set-up, with the 90 % interval of its own error. *Supported*: the claim",
        f"comes within {NEAR:.0%} of the figure, which is what a set-up that is not fully stated leaves open; *not excluded*: only into the",
        "interval; *contradicted*: not even there. Lengths vary by a quarter of their mean, as users without think time would otherwise",
        "move in step. Engines are the newest that are modelled, which favours them over the versions of the guides.",
        "",
        f"Of {len(found)} claims {count['supported']} are supported, {count['not excluded']} not excluded, {count['contradicted']} contradicted.",
        "Written by `python docs/claims.py`; do not edit.",
        "",
        "| guide | claim | claimed | simulated (90 %) | verdict | why |",
        "|---|---|---|---|---|---|",
        *(claim.row() for claim in found),
        "",
        "## Not testable",
        "",
        "| guide | claim | why not |",
        "|---|---|---|",
        *(f"| {guide} | {words} | {why} |" for guide, words, why in NOT_TESTABLE),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(ROOT)}")
