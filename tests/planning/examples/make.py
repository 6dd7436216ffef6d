"""Write the example files of the tools: one made-up measurement in each tool's documented schema.

All describe the same three requests (TTFT 50, 60, 70 ms; 101 tokens each, 10, 11 and 12 ms apart), so that what
`compare` must read from them follows by arithmetic.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

TTFT_MS = np.array([50.0, 60.0, 70.0])
GAP_MS = np.array([10.0, 11.0, 12.0])
TOKENS = 101
E2E_MS = TTFT_MS + GAP_MS * (TOKENS - 1)
NTPOT_MS = E2E_MS / TOKENS
ITL_MS = np.repeat(GAP_MS, TOKENS - 1)
PROMPT = np.array([200.0, 300.0, 400.0])
DURATION_S = 2.5
PERCENTS = (1, 5, 10, 25, 50, 75, 90, 95, 99)


def vllm() -> dict[str, object]:
    """`vllm bench serve --save-result --percentile-metrics ttft,tpot,itl,e2el --metric-percentiles 50,90,99`."""
    out: dict[str, object] = {
        "date": "20261101-120000", "endpoint_type": "openai", "backend": "openai", "label": None,
        "model_id": "meta-llama/Llama-3.1-8B-Instruct", "tokenizer_id": "meta-llama/Llama-3.1-8B-Instruct",
        "num_prompts": 3, "request_rate": 1.2, "burstiness": 1.0, "max_concurrency": None,
        "duration": DURATION_S, "completed": 3, "failed": 0, "total_input_tokens": int(PROMPT.sum()),
        "total_output_tokens": 3 * TOKENS, "request_throughput": 3 / DURATION_S, "request_goodput": None,
        "output_throughput": 3 * TOKENS / DURATION_S,
        "total_token_throughput": (3 * TOKENS + PROMPT.sum()) / DURATION_S,
        "max_output_tokens_per_s": 200.0, "max_concurrent_requests": 3,
    }  # fmt: skip
    for name, values in (("ttft", TTFT_MS), ("tpot", GAP_MS), ("itl", ITL_MS), ("e2el", E2E_MS)):
        out |= {f"mean_{name}_ms": values.mean(), f"median_{name}_ms": np.median(values)}
        out |= {f"std_{name}_ms": values.std()}
        out |= {f"p{p}_{name}_ms": np.percentile(values, p) for p in (50, 90, 99)}
    return out


def aiperf() -> dict[str, object]:
    """`profile_export_aiperf.json`."""

    def block(values: np.ndarray, unit: str) -> dict[str, object]:
        named = {f"p{p}": np.percentile(values, p) for p in PERCENTS}
        return {"unit": unit, "avg": values.mean(), **named, "min": values.min(), "max": values.max(),
                "std": values.std(), "count": len(values), "sum": values.sum()}  # fmt: skip

    return {
        "schema_version": "1.4", "aiperf_version": "0.13.0", "benchmark_id": "example",
        "start_time": "2026-11-01T12:00:00", "end_time": "2026-11-01T12:00:03", "was_cancelled": False,
        "is_complete": True, "input_config": {"endpoint": {"model_names": ["meta-llama/Llama-3.1-8B-Instruct"]}},
        "request_throughput": {"unit": "requests/sec", "avg": 3 / DURATION_S},
        "request_latency": block(E2E_MS, "ms"), "request_count": {"unit": "requests", "avg": 3.0},
        "time_to_first_token": block(TTFT_MS, "ms"), "inter_token_latency": block(GAP_MS, "ms"),
        "inter_chunk_latency": block(ITL_MS, "ms"),
        "output_token_throughput": {"unit": "tokens/sec", "avg": 3 * TOKENS / DURATION_S},
        "total_token_throughput": {"unit": "tokens/sec", "avg": (3 * TOKENS + PROMPT.sum()) / DURATION_S},
        "output_sequence_length": block(np.full(3, float(TOKENS)), "tokens"),
        "input_sequence_length": block(PROMPT, "tokens"), "benchmark_duration": {"unit": "sec", "avg": DURATION_S},
    }  # fmt: skip


def guidellm() -> dict[str, object]:
    """`benchmarks.json`, report version 2, one benchmark."""

    def block(values: np.ndarray) -> dict[str, object]:
        named = {"p001": 0.1, "p01": 1, "p05": 5, "p10": 10, "p25": 25, "p50": 50, "p75": 75, "p90": 90,
                 "p95": 95, "p99": 99, "p999": 99.9}  # fmt: skip
        stats = {
            "mean": values.mean(), "median": np.median(values), "mode": values[0], "variance": values.var(),
            "std_dev": values.std(), "min": values.min(), "max": values.max(), "count": len(values),
            "total_sum": values.sum(), "percentiles": {k: np.percentile(values, p) for k, p in named.items()},
        }  # fmt: skip
        return {"successful": stats, "errored": {**stats, "count": 0}, "incomplete": {**stats, "count": 0}}

    metrics: dict[str, object] = {
        "requests_per_second": block(np.full(3, 3 / DURATION_S)),
        "request_latency": block(E2E_MS / 1e3),
        "prompt_token_count": block(PROMPT),
        "output_token_count": block(np.full(3, float(TOKENS))),
        "time_to_first_token_ms": block(TTFT_MS),
        "time_per_output_token_ms": block(NTPOT_MS),
        "inter_token_latency_ms": block(GAP_MS),
        "output_tokens_per_second": block(np.full(3, 3 * TOKENS / DURATION_S)),
        "tokens_per_second": block(np.full(3, (3 * TOKENS + PROMPT.sum()) / DURATION_S)),
        "request_totals": {"successful": 3, "errored": 0, "incomplete": 0, "total": 3},
    }
    one = {"config": {"strategy": {"type_": "constant", "rate": 1.2}}, "metrics": metrics, "requests": {}}
    return {"metadata": {"version": 2, "guidellm_version": "0.8.1"}, "config": {}, "benchmarks": [one]}


def sglang() -> dict[str, object]:
    """`python -m sglang.bench_serving --output-file`, a line."""
    measured = vllm()
    out: dict[str, object] = {"backend": "sglang", "dataset_name": "random", "sharegpt_output_len": None}
    shared = ("request_rate", "max_concurrency", "duration", "completed", "total_input_tokens", "total_output_tokens")
    out |= {key: measured[key] for key in (*shared, "request_throughput", "output_throughput")}
    out |= {"input_throughput": PROMPT.sum() / DURATION_S}
    return out | {key.replace("e2el", "e2e_latency"): value for key, value in measured.items() if key.endswith("_ms")}


def inference_perf() -> dict[str, object]:
    """`summary_lifecycle_metrics.json` of 0.7."""

    def block(values: np.ndarray) -> dict[str, object]:
        named = {"p0.1": 0.1, **{f"p{p}": p for p in PERCENTS if p != 50}, "p99.9": 99.9}
        percentiles = {k: np.percentile(values, p) for k, p in named.items()}
        return {"mean": values.mean(), "min": values.min(), **percentiles, "median": np.median(values),
                "max": values.max()}  # fmt: skip

    latency = {
        "request_latency": block(E2E_MS / 1e3), "normalized_time_per_output_token": block(NTPOT_MS / 1e3),
        "time_per_output_token": block(GAP_MS / 1e3), "time_to_first_token": block(TTFT_MS / 1e3),
        "inter_token_latency": block(ITL_MS / 1e3),
    }  # fmt: skip
    throughput = {
        "input_tokens_per_sec": PROMPT.sum() / DURATION_S, "output_tokens_per_sec": 3 * TOKENS / DURATION_S,
        "total_tokens_per_sec": (3 * TOKENS + PROMPT.sum()) / DURATION_S, "requests_per_sec": 3 / DURATION_S,
    }  # fmt: skip
    return {
        "benchmark_time_seconds": DURATION_S,
        "load_summary": {"count": 3, "schedule_delay": block(np.zeros(3)), "send_duration": 2.0,
                         "requested_rate": 1.2, "achieved_rate": 1.2},
        "successes": {"count": 3, "latency": latency, "throughput": throughput,
                      "prompt_tokens": {"total": 900.0, "cached": 0.0, "uncached": 900.0, **block(PROMPT)},
                      "output_len": block(np.full(3, float(TOKENS + 1))),
                      "output_tokens": {"total": 303.0, **block(np.full(3, float(TOKENS)))}},
        "failures": {"count": 0, "request_latency": None, "prompt_tokens": {"total": 0.0, "cached": 0.0, "uncached": 0.0}},
    }  # fmt: skip


def write_examples(folder: Path) -> dict[str, Path]:
    """Write the files and return their paths by tool."""
    made = {
        "vllm bench serve": ("vllm_bench_serve.json", vllm()),
        "SGLang bench_serving": ("sglang_bench.jsonl", sglang()),
        "aiperf": ("profile_export_aiperf.json", aiperf()),
        "guidellm": ("benchmarks.json", guidellm()),
        "inference-perf": ("summary_lifecycle_metrics.json", inference_perf()),
    }
    paths = {}
    for kind, (name, document) in made.items():
        paths[kind] = folder / name
        indent = None if name.endswith(".jsonl") else 1
        paths[kind].write_text(json.dumps(document, indent=indent, default=float) + "\n")
    return paths


if __name__ == "__main__":
    write_examples(Path(__file__).parent)
