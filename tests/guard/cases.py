"""Small runs that between them reach every part of the simulator whose results may not move unnoticed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

LLAMA_8B = "meta-llama/Llama-3.1-8B-Instruct"
LENGTHS = {
    "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 2000},
    "output_tokens": {"kind": "lognormal", "mean": 100, "p99": 500},
}
SLO = {"ttft_ms": {"p99": 500}, "tpot_ms": {"p99": 30}, "itl_ms": {"p99": 60}, "attainment": 0.9}
TRACE = "trace.csv"
"""A trace with prefix ids and limits, beside which the scenarios are run."""


@dataclass(frozen=True)
class Case:
    """One run: its scenario, and the requests above which it is streamed, in blocks of a quarter of that (None: never).

    `at_base` is False for what the base commit cannot run yet: such a run is held by its integers alone.
    """

    scenario: dict[str, Any]
    stream_above: int | None = None
    at_base: bool = True


def poisson(rate: float) -> dict[str, Any]:
    """Poisson arrivals."""
    return {"kind": "poisson", "rate": rate}


def given(
    deployment: dict[str, Any], workload: dict[str, Any], model: str = LLAMA_8B, **more: Any
) -> dict[str, Any]:
    """Return a scenario: vLLM on one H100 and 200 requests of `LENGTHS` where nothing else is said.

    Lengths, arrivals and requests that are given as None are left out.
    """
    load = {"arrivals": poisson(20), **LENGTHS, "requests": 200, **workload}
    return {
        "seed": 7,
        "model": model,
        "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb", **deployment},
        "workload": {key: value for key, value in load.items() if value is not None},
        "slo": SLO,
        **more,
    }


def args(**flags: Any) -> dict[str, Any]:
    """Return the engine's own flags as a part of a deployment."""
    return {"engine_args": flags}


NOT_DRAWN = {"arrivals": None, "prompt_tokens": None, "output_tokens": None, "requests": None}
TIGHT = {"max_model_len": 4096, "gpu_memory_utilization": 0.24}
CHATS = {"arrivals": poisson(2), "sessions": {"turns": 5, "think_time_s": 2}, "requests": 120}
CLASSES = {
    **NOT_DRAWN,
    "duration": 6,
    "warmup": 1,
    "classes": [
        {
            "name": "chat",
            "priority": 0,
            "slo": {"ttft_ms": {"p99": 800}},
            "arrivals": poisson(25),
            **LENGTHS,
        },
        {
            "name": "batch",
            "priority": 10,
            "slo": {"e2el_ms": {"p90": 20000}},
            "arrivals": {"kind": "onoff", "rate_on": 40, "rate_off": 1, "on_s": 2, "off_s": 2},
            "prompt_tokens": {"kind": "lognormal", "mean": 900, "p99": 3000},
            "output_tokens": {"kind": "uniform", "low": 50, "high": 300},
        },
    ],
}
EAGLE3 = {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.7}
NGRAM = {"method": "ngram", "num_speculative_tokens": 4, "acceptance": [0.5, 0.4, 0.4, 0.3]}
DRAFTER = {
    "method": "draft_model",
    "model": "meta-llama/Llama-3.2-1B",
    "num_speculative_tokens": 2,
    "acceptance_length": 2.2,
}
RANKS = {"tensor_parallel": 1, "data_parallel": 4, "expert_parallel": 4}
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"
V2_LITE = "deepseek-ai/DeepSeek-V2-Lite"

CASES: dict[str, Case] = {
    # vLLM: one replica, by version, flags and load
    "vllm-client": Case(
        given({}, {"warmup": 2}, client={"overhead_ms": 3.0, "network_rtt_ms": 20.0}, cost={"spot": True})
    ),
    "vllm-0.11": Case(given({"engine": "vllm@0.11"}, {"arrivals": {"kind": "gamma", "rate": 20, "cv": 3}})),
    "vllm-0.15-pasted": Case(
        given(
            {
                "engine": "vllm@0.15",
                "engine_args": "vllm serve Qwen/Qwen3-32B --tensor-parallel-size 2 --max-model-len 32k "
                "--max-num-seqs 24 --max-num-batched-tokens 512 --port 8000",
            },
            {"arrivals": {"kind": "constant", "rate": 6}, "requests": 80},
            "Qwen/Qwen3-32B",
        )
    ),
    "vllm-0.24-fp8": Case(
        given(
            {"engine": "vllm@0.24", "weights": "fp8", "kv_cache": "fp8", **args(watermark=0.02, **TIGHT)},
            {"arrivals": {"kind": "diurnal", "rate": 30, "peak_to_mean": 1.8, "period_s": 8}},
        )
    ),
    "sync-eager": Case(given(args(async_scheduling=False, enforce_eager=True, stream_interval=4), {})),
    "not-chunked": Case(
        given(args(enable_chunked_prefill=False, enable_prefix_caching=False, max_model_len=8192), {})
    ),
    "preemptions": Case(given(args(**TIGHT), {"arrivals": poisson(60), "requests": 250})),
    "priorities": Case(given(args(scheduling_policy="priority", **TIGHT), CLASSES)),
    "rejected-and-cut": Case(
        given(
            args(max_model_len=1024),
            {
                "arrivals": {"kind": "batch"},
                "prompt_tokens": {"kind": "lognormal", "mean": 500, "p99": 1800},
                "max_output_tokens": {"kind": "uniform", "low": 20, "high": 400},
            },
        )
    ),
    "overload": Case(
        given(args(max_num_seqs=8), {"arrivals": poisson(40), "duration": 6, "requests": None, "drain_s": 3})
    ),
    # loads that answer
    "closed-loop": Case(
        given(
            {}, {"arrivals": {"kind": "closed_loop", "concurrency": 24, "think_time_s": 0.5}, "requests": 200}
        )
    ),
    "closed-loop-replicas": Case(
        given(
            {"engine": "vllm@0.19.1", "replicas": 2, "router": "least_requests"},
            {"arrivals": {"kind": "closed_loop", "concurrency": 32}, "duration": 8, "requests": None},
        )
    ),
    "sessions": Case(given(args(max_model_len=32768), CHATS)),
    "sessions-16-replicas": Case(
        given(
            {"replicas": 16, "router": "least_requests"},
            {
                **CHATS,
                "arrivals": poisson(20),
                "sessions": {"turns": {"kind": "uniform", "low": 1, "high": 6}, "think_time_s": 1},
            },
        )
    ),
    "shared-prefixes": Case(
        given(args(**TIGHT), {"shared_prefix": {"groups": 30, "tokens": 1000}, "arrivals": poisson(30)})
    ),
    "prefix-trace": Case(
        given(
            {"replicas": 2},
            {**NOT_DRAWN, "trace": TRACE, "prefix_block_tokens": 64, "rate_scale": 1.5, "limit": 120},
        )
    ),
    # replicas
    "round-robin": Case(given({"replicas": 3}, {"arrivals": poisson(60)})),
    "least-requests": Case(given({"replicas": 4, "router": "least_requests"}, {"arrivals": poisson(80)})),
    # models and devices
    "gemma-windows": Case(
        given(
            args(max_model_len=8192),
            {"prompt_tokens": {"kind": "uniform", "low": 100, "high": 3000}},
            "google/gemma-3-4b-it",
        )
    ),
    "gemma-windows-tight": Case(
        given(
            args(num_gpu_blocks_override=1500, max_model_len=4096),
            {"arrivals": poisson(40)},
            "google/gemma-2-9b",
        )
    ),
    "gpt-oss": Case(given(args(max_model_len=8192), {}, "openai/gpt-oss-20b")),
    "mixtral": Case(given({"tensor_parallel": 2, "expert_parallel": True}, {"requests": 80}, MIXTRAL)),
    "mla": Case(given({"hardware": "h200-sxm-141gb"}, {}, V2_LITE)),
    "float32-router": Case(
        given(
            {"engine": "vllm@0.24", "hardware": "h200-sxm-141gb", "tensor_parallel": 4},
            {},
            "MiniMaxAI/MiniMax-M2",
        )
    ),
    "a100-int8": Case(given({"hardware": "a100-sxm-80gb", "weights": "int8"}, {})),
    "b200-nvfp4": Case(given({"hardware": "b200-sxm-180gb", "weights": "nvfp4"}, {}, "Qwen/Qwen3-32B")),
    "borrowed-mi300x": Case(given({"hardware": "mi300x-192gb"}, {})),
    "cpu": Case(
        given(
            {"hardware": "xeon-8480-2s"},
            {"arrivals": poisson(1), "requests": 30},
            "Qwen/Qwen2.5-1.5B-Instruct",
        )
    ),
    # stages, ranks, drafts, host memory
    "pipeline": Case(given({"pipeline_parallel": 2}, {"requests": 80})),
    "pipeline-tight": Case(
        given(
            {"pipeline_parallel": 2, "replicas": 2, **args(gpu_memory_utilization=0.13, max_model_len=4096)},
            {"arrivals": poisson(60)},
        )
    ),
    "ranks": Case(given({**RANKS, "replicas": 2}, {"requests": 80}, MIXTRAL)),
    "ranks-mla": Case(given({**RANKS, "hardware": "h200-sxm-141gb"}, {"requests": 80}, V2_LITE)),
    "ngram": Case(given({"speculative": NGRAM}, {"requests": 80})),
    "eagle3": Case(
        given(
            {"speculative": EAGLE3, **args(**{**TIGHT, "gpu_memory_utilization": 0.26})},
            {"arrivals": poisson(60)},
        )
    ),
    "draft-model": Case(given({"speculative": DRAFTER, "replicas": 2}, {"requests": 80})),
    "offload": Case(
        given(
            {
                "engine": "vllm@0.19.1",
                "hardware": "l40s-48gb",
                "offload": {"kv_offloading_size": 16},
                **args(max_model_len=16384, gpu_memory_utilization=0.45),
            },
            CHATS,
        )
    ),
    # SGLang
    "sglang": Case(given({"engine": "sglang"}, {})),
    "sglang-sessions": Case(
        given({"engine": "sglang", "replicas": 2, "router": "least_requests", **args(page_size=16)}, CHATS)
    ),
    "sglang-tight": Case(
        given(
            {
                "engine": "sglang",
                **args(
                    max_total_tokens=9000,
                    schedule_conservativeness=0.1,
                    schedule_policy="lpm",
                    max_running_requests=64,
                ),
            },
            {
                "arrivals": poisson(60),
                "shared_prefix": {"groups": 20, "tokens": 100},
                "prompt_tokens": {"kind": "lognormal", "mean": 200, "p99": 1000},
                "output_tokens": {"kind": "lognormal", "mean": 300, "p99": 1200},
                "max_output_tokens": "equal",
            },
        )
    ),
    "sglang-evicting": Case(
        given(
            {
                "engine": "sglang",
                **args(max_total_tokens=16000, radix_eviction_policy="slru", schedule_policy="hrrn"),
            },
            {
                "arrivals": poisson(60),
                "shared_prefix": {"groups": 12, "tokens": 500},
                "max_output_tokens": {"kind": "uniform", "low": 100, "high": 6000},
            },
        )
    ),
    "sglang-refused-batch": Case(
        given(
            {"engine": "sglang", **args(context_length=2048, schedule_policy="lpm")},
            {
                "requests": 100,
                "arrivals": {"kind": "batch"},
                "shared_prefix": {"groups": 40, "tokens": 50},
                "max_output_tokens": {"kind": "uniform", "low": 20, "high": 1800},
            },
        )
    ),
    "sglang-mla": Case(
        given(
            {"engine": "sglang", "hardware": "h200-sxm-141gb"},
            {"prompt_tokens": {"kind": "uniform", "low": 200, "high": 4000}},
            V2_LITE,
        )
    ),
    "sglang-mixed-priorities": Case(
        given(
            {
                "engine": "sglang",
                **args(
                    enable_mixed_chunk=True,
                    chunked_prefill_size=512,
                    enable_priority_scheduling=True,
                    priority_scheduling_preemption_threshold=5,
                    schedule_low_priority_values_first=True,
                    max_running_requests=16,
                ),
            },
            CLASSES,
        )
    ),
    "sglang-ranks": Case(
        given(
            {
                "engine": "sglang",
                "hardware": "h200-sxm-141gb",
                **RANKS,
                **args(enable_dp_attention=True, max_total_tokens=6000),
            },
            {"max_output_tokens": {"kind": "uniform", "low": 500, "high": 1500}, "requests": 120},
            V2_LITE,
        )
    ),
    # more requests than are held in memory
    "streamed": Case(
        given({"replicas": 3, "router": "least_requests"}, {"arrivals": poisson(60), "requests": 600}),
        stream_above=400,
    ),
    "streamed-sglang": Case(
        given({"engine": "sglang", "replicas": 2}, {"arrivals": poisson(40), "requests": 500}),
        stream_above=400,
    ),
}


def write_trace(folder: Path) -> Path:
    """Write `TRACE`: 150 requests that repeat the first blocks of earlier ones, by whole numbers alone."""
    lines = ["arrival_s,prompt_tokens,output_tokens,max_output_tokens,prefix_ids"]
    state = 12345
    fresh = 1000
    at_ms = 0
    earlier: list[list[int]] = []
    for _ in range(150):
        draws = []
        for _ in range(5):
            state = (state * 1103515245 + 12345) % 2**31
            draws.append(state >> 8)
        at_ms += draws[0] % 120
        prompt = 65 + draws[1] % 1500
        ids = earlier[draws[2] % len(earlier)][: draws[3] % 12] if earlier else []
        blocks = -(-prompt // 64)
        ids = ids[:blocks]
        ids = [*ids, *range(fresh, fresh + blocks - len(ids))]
        fresh += blocks
        earlier.append(ids)
        output = 10 + draws[4] % 200
        lines.append(f"{at_ms / 1000},{prompt},{output},{output + draws[3] % 2},{' '.join(map(str, ids))}")
    path = folder / TRACE
    path.write_text("\n".join(lines) + "\n")
    return path
