"""Cases of `capacity-plan validate reports` as their pages have them, where the list says otherwise.

    python benchmarks/corrected.py ../shared/data/reports/cases.jsonl --output cases.jsonl

What is corrected, and by which heading of the page, is printed to stderr. Nothing of the list is kept in the project.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Correction:
    """Words of the scenarios of a page that the page contradicts, what it says instead, and which reported values are meant."""

    page: str
    metric: str
    values: tuple[float | str, ...]
    words: Mapping[str, str]
    heading: str


_GEMMA = Correction(
    "docs/autoregressive/Google/Gemma4.md",
    "tpot_mean_ms",
    (24.13, 82.51, 9.78, 41.23),
    {"hardware: h200-sxm-141gb": "hardware: mi300x-192gb"},
    "5.1 titles these runs (1x MI300X, TP=1), sgl-cookbook at 7b5bd9c, 2026-05-01",
)

# Qwen3.5-9B on H100: the list has the recommended command, without a version, for each run of the page.
_PAGE = "docs/performance-lab/qwen3.5-9b/h100.md"
_AT = "gpustack at 47277d79; 'Engine Version', and the parameters above each result"
_COMMAND = "--performance-mode=throughput  --max-model-len=32768  --max-num-seqs=512"
_VLLM = {"engine: vllm\n": "engine: vllm@0.17.1\n"}
_FLAGS: Mapping[str, tuple[float, ...]] = {
    "--max-model-len=32768": (5202.94, 3285.25, 100.96, 1975.75),
    "--enable-prefix-caching --max-model-len=32768": (5066.42,),
    """--speculative-config='{"method":"mtp","num_speculative_tokens":4}' --max-model-len=32768""": (12792.49,),
    "--performance-mode=throughput --max-model-len=32768": (5189.06,),
    "--max-model-len=32768 --max-num-seqs=512": (5174.68,),
    "--max-model-len=32768 --max-num-seqs=1024": (5205.42,),
    "--max-model-len=32768 --max-num-seqs=2048": (5140.19,),
    "--performance-mode=throughput --max-model-len=32768 --max-num-batched-tokens=24576": (5196.51,),
    "--performance-mode=throughput --max-model-len=32768 --max-num-batched-tokens=32768": (5268.65,),
    "--performance-mode=throughput --max-model-len=32768 --max-num-seqs=256": (4973.66,),
    "--performance-mode=throughput --max-model-len=32768 --max-num-seqs=512": (5311.75, 3797.28, 101.71, 2010.1),
    "--performance-mode=throughput --max-model-len=32768 --max-num-batched-tokens=32768 --max-num-seqs=512": (5115.71,),
    "--performance-mode=throughput --max-model-len=32768 --max-num-batched-tokens=49152 --max-num-seqs=512": (5223.82,),
    "--performance-mode=throughput --max-model-len=32768 --max-num-batched-tokens=49152 --max-num-seqs=768": (5248.67,),
}
_QWEN = tuple(
    Correction(_PAGE, "output_tok_s", values, {**_VLLM, _COMMAND: flags}, _AT) for flags, values in _FLAGS.items()
)
_SGLANG = Correction(
    _PAGE,
    "output_tok_s",
    (2933.6,),
    {
        "engine: vllm\n": "engine: sglang@0.5.9\n",
        f"vllm serve Qwen/Qwen3.5-9B  --reasoning-parser=qwen3  {_COMMAND}": (
            "python3 -m sglang.launch_server --model-path Qwen/Qwen3.5-9B --reasoning-parser=qwen3 --context-length=32768"
        ),
    },
    _AT,
)
# Its answers are drawn: the latencies of the same requests at one a second (7.4 ms a token, h100-latency.md) have their median at
# 0.89 and their 99th percentile at 3.0 times the mean. Prompts are as wide as those of the list's other loads of ShareGPT.
_SHAREGPT = Correction(
    _PAGE,
    "output_tok_s",
    (2933.6, *(value for values in _FLAGS.values() for value in values if 4000 < value < 6000)),
    {
        "kind: constant\n    value: 342": "{kind: lognormal, mean: 342, p99: 1480, min: 4, max: 4096}",
        "kind: constant\n    value: 281": "{kind: lognormal, mean: 281, p99: 845, min: 4, max: 2048}",
    },
    "profile ShareGPT of the same page, P99 of the latencies of h100-latency.md beside it",
)
_RATE = Correction(
    _PAGE,
    "output_tok_s",
    (100.96, 101.71, 1975.75, 2010.1),
    {
        f"kind: closed_loop\n    concurrency: {users}": "kind: constant\n    rate: 1"
        for users in (9, 14, 18)
    },
    "'Benchmark Profiles': one request a second",
)
_GLM = tuple(
    Correction(
        "docs/autoregressive/GLM/GLM-5",
        "tpot_mean_ms",
        (tpot_ms,),
        {
            "model: zai-org/GLM-5.1\n": "model: zai-org/GLM-5.1-FP8\n",
            "model: zai-org/GLM-5\n": "model: zai-org/GLM-5-FP8\n",
            "mem_fraction_static: 0.8\n    chunked_prefill_size: 131072": (
                "mem_fraction_static: 0.85\n"
                f"  speculative: {{method: mtp, num_speculative_tokens: 3, acceptance_length: {accepted}}}"
            ),
        },
        "5.1: GLM-5-FP8, accept length printed; the command of 4 for H200 (the list's is AMD's), sgl-cookbook, 2026-05",
    )
    for tpot_ms, accepted in ((7.54, 3.48), (38.73, 3.5))
)
_GH200 = Correction(
    "LMCache/issues/1741",
    "ttft_mean_ms",
    (2824,),
    {"vllm@0.11.0": "vllm@0.10.2", "gh200-96gb": "gh200-144gb"},
    "vLLM 0.10.2 served 131,072 tokens of the 70B on two GH200 of one host, which is the board with 144 GB each",
)
_WHEEL = Correction(
    "vllm/issues/23278",
    "kv_tokens",
    ("does not start (KV memory below zero)",),
    {"hardware: h100-sxm-80gb\n": "hardware: h100-sxm-80gb\n  engine_args: {use_flashinfer_sampler: false}\n"},
    "its log is of a wheel under miniconda, which lacks FlashInfer (0.10.1); 27508 is the same with 0.11.0",
)
_VERSIONS = tuple(
    Correction(page, "kv_tokens", (tokens,), words, heading)
    for page, tokens, words, heading in (
        ("vllm/issues/21348", 178880, {"vllm@0.11.0": "vllm@0.9.2"}, "the list's own note: about 0.9.2 (issue of 2025-07-22)"),
        ("vllm/issues/10517", 31232, {"vllm@0.11.0": "vllm@0.6.4"}, "the list's own note: V0 0.6.4"),
        (
            "vllm/pull/12569",
            22096,
            {"vllm@0.11.0": "vllm@0.7.0", "  engine_args:\n": "  engine_args:\n    use_v1: true\n"},
            "pull request of 2025-01-30, VLLM_USE_V1=1 in its command",
        ),
    )
)
# 1,132 tokens a second at 70 ms each are 79 requests of some 330 tokens at once, the 26,000 tokens that are left: no server
# that holds so much takes 40,960 for one.
_LENGTH = Correction(
    "GPUStack lab qwen3-32b/h100",
    "kv_tokens",
    ("starts",),
    {"hardware: h100-sxm-80gb\n": "hardware: h100-sxm-80gb\n  engine_args: {max_model_len: 8192}\n"},
    "GPUStack passes --max-model-len 8192 where none is given (gpustack at 47277d79, worker/backends/vllm.py)",
)
# Post-releases, which the list cuts off: 0.5.6.post1 has another attention on B200 than 0.5.6.
_POST = tuple(
    Correction(page, "tpot_mean_ms", values, {"sglang@0.5.6\n": "sglang@0.5.6.post1\n"}, "5.1: 'SGLang Version', 2026-05")
    for page, values in (
        ("docs/autoregressive/GLM/GLM-4.6.md", (14.81, 24.24, 49.97, 14.92, 21.97, 33.47, 15.02, 25.37, 46.62)),
        ("docs/autoregressive/DeepSeek/DeepSeek-R1.md", (9.16, 17.56, 40.11, 9.21, 15.42, 25.94, 9.26, 19.06, 39.93)),
        ("docs/autoregressive/Moonshotai/Kimi-K2.md", (18.4, 97.23)),
    )
)
# SGLang sets memory aside for as long an answer as a request allows, and this client allows the length it means to get. Of the
# pages' other runs of SGLang the list says so.
_ASKED = Correction(
    "docs/performance-lab/deepseek-",
    "output_tok_s",
    (
        *(1060.1, 1427.44, 1987.11, 3481.55, 3458.68, 694.61, 3967.7, 4146.96, 4022.27, 4243.46, 2541.62),
        *(552.34, 1319.64, 978.37, 62.45, 2469.32),
    ),
    {"  drain_s: 30000": "  drain_s: 30000\n  max_output_tokens: equal"},
    "'Benchmark Script': vllm bench serve, which sends max_completion_tokens (gpustack at 47277d79)",
)
_WITHOUT_DEEPGEMM = tuple(
    Correction(
        page,
        metric,
        values,
        {
            "engine_args: vllm serve": "engine_args: VLLM_USE_DEEP_GEMM=0 vllm serve",
            "expert_parallel: true}": "expert_parallel: true, engine_args: {use_deep_gemm: false}}",
        },
        heading,
    )
    for page, metric, values, heading in (
        (
            "docs/performance-lab/deepseek-r1/h200.md",
            "output_tok_s",
            (2621.05, 48.33, 753.67, 843.71, 181.27, 196.81),
            "written 2025-10: neither wheels of vLLM nor GPUStack's images had DeepGEMM (gpustack/runner before 796089a)",
        ),
        ("docs/performance-lab/deepseek-v3.2/h200.md", "output_tok_s", (2632.38,), "'Turn off DeepGEMM in vLLM'"),
        ("vllm-project/recipes", "tpot_mean_ms", (15.85,), "'Installing vLLM': a wheel, which has no DeepGEMM"),
    )
)
CORRECTIONS = (
    *(_GEMMA, *_QWEN, _SGLANG, _SHAREGPT, _RATE, *_GLM, _GH200, _WHEEL, *_VERSIONS, _LENGTH),
    *(*_POST, _ASKED, *_WITHOUT_DEEPGEMM),
)


def corrected(entry: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """A case as its page has it, and the headings that say so; "" where the list is right."""
    scenario, headings = entry["scenario"], []
    for c in CORRECTIONS:
        if c.page in entry.get("source", "") and entry["reported"].get(c.metric) in c.values:
            for written, right in c.words.items():
                scenario = scenario.replace(written, right)
            headings.append(c.heading)
    return {**entry, "scenario": scenario}, "; ".join(headings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    asked = parser.parse_args()
    lines = []
    for line in asked.cases.read_text(encoding="utf-8").splitlines():
        entry, heading = corrected(json.loads(line))
        lines.append(json.dumps(entry))
        if heading:
            print(f"{entry['id']}: {heading}", file=sys.stderr)
    asked.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
