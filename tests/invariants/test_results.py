"""What a run says of itself does not depend on how its steps were taken: one by one, in jumps, or in jumps cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simulator.cluster.cluster
from engine_models.engines.known import BUILT_IN, split
from engine_models.parts.sequence import Sequence
from simulator.cluster.router import Router
from simulator.cluster.routers import router_of
from simulator.run import RunResult, simulate
from simulator.serving.replica import Replica
from simulator.workload import drawn, streaming
from tests.effort import some
from tests.guard.cases import CASES as GUARDED
from tests.guard.cases import CHATS, CLASSES, RANKS, TIGHT, V2_LITE, Case, args, given, poisson, write_trace

LOOP = {"arrivals": {"kind": "closed_loop", "concurrency": 12, "think_time_s": 0.3}, "requests": 150}
MTP = {"method": "mtp", "num_speculative_tokens": 2, "acceptance": 0.6}
LORA = {"lora": {"max_loras": 4, "max_cpu_loras": 6}}
TGI = {"engine": "tgi", **args(max_input_tokens=4000, max_total_tokens=5000)}
TRTLLM = {"engine": "trtllm", **args(max_seq_len=4000, kv_cache_config={"max_tokens": 9000})}
PAUSING = {
    "engine": "trtllm",
    **args(
        max_seq_len=4000,
        enable_chunked_prefill=True,
        kv_cache_config={"max_tokens": 6000},
        scheduler_config={"capacity_scheduler_policy": "MAX_UTILIZATION"},
    ),
}
SHEDDING = {**TGI, **args(max_input_tokens=4000, max_total_tokens=5000, max_concurrent_requests=6)}
TRANSFORMERS = {
    "engine": "transformers",
    **args(mode="continuous", page_size=16, num_blocks=420, max_batch_tokens=1000, max_requests_per_batch=60),
}
LMDEPLOY = {"engine": "lmdeploy", **args(backend="pytorch", max_batch_size=40, max_prefill_token_num=1000)}
MII = {
    "engine": "deepspeed_mii",
    **args(max_ragged_sequence_count=24, max_ragged_batch_size=256, memory_config={"mode": "allocate", "size": 70}),
}
MLX = {"engine": "mlx_lm", "hardware": "apple-m4-max-40c-64gb", **args(decode_concurrency=12, prompt_concurrency=4)}
OPENVINO = {"engine": "openvino", "hardware": "xeon-8592-1s", "weights": "int4"}
SLOTS = {"engine": "llama_cpp", "weights": "q4_k_m", "hardware": "rtx-4090-24gb"}
EXLLAMA = {
    "engine": "exllamav2",
    "hardware": "rtx-4090-24gb",
    "weights": "gptq",
    **args(max_seq_len=4096, cache_size=8192, cache_mode="Q4", max_batch_size=12),
}
MLC = {"engine": "mlc_llm", **args(mode="server", max_num_sequence=12, max_total_seq_length=4000, prefill_chunk_size=500)}
INFERFLOW = {"engine": "inferflow", **args(max_context_len=2048)}
ZERO = {"engine": "deepspeed_inference", **args(batch_size=8, zero={"stage": 3, "offload_param": {"device": "cpu"}})}
STREAMED = {
    "sessions": (CHATS, {"replicas": 2, "router": "least_requests"}),
    "sessions-sglang": (CHATS, {"engine": "sglang", "replicas": 2}),
    "loop": (LOOP, args(**TIGHT)),
    "classes": (CLASSES, {"replicas": 2}),
    "shared": ({"shared_prefix": {"groups": 20, "tokens": 100}}, args(**TIGHT)),
    "pipeline": ({}, {"pipeline_parallel": 2}),
    "drafts": ({}, {"speculative": {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.5}}),
    "adapters": ({**CHATS, "adapters": {"count": 9, "share": 0.8}}, {"replicas": 2, "lora": {"max_loras": 3}}),
    "tgi": (CHATS, {**SHEDDING, "replicas": 2}),
    "kv-aware": (CHATS, {"replicas": 2, "router": {"system": "dynamo"}}),
}
CASES = {
    **GUARDED,
    "tgi": Case(given(TGI, {"arrivals": poisson(30)})),
    "tgi-sheds": Case(given({**SHEDDING, "replicas": 2, "router": "least_requests"}, LOOP)),
    "adapters": Case(given({**LORA, "replicas": 2}, {**CHATS, "adapters": {"count": 9, "share": 0.8}})),
    "pipeline-sglang": Case(
        given(
            {"engine": "sglang", "pipeline_parallel": 2, **args(max_total_tokens=3000, chunked_prefill_size=256)},
            {"arrivals": poisson(30), "shared_prefix": {"groups": 6, "tokens": 100}},
        )
    ),
    "pipeline-sglang-late-host": Case(  # longer than a stage: steps are formed after the end of the one in flight longest
        given(
            {
                "engine": "sglang",
                "pipeline_parallel": 4,
                **args(max_running_requests=4, chunked_prefill_size=256, pp_async_batch_depth=1),
            },
            {"arrivals": {"kind": "closed_loop", "concurrency": 5}, "shared_prefix": {"groups": 6, "tokens": 100}},
        )
    ),
    "adapters-sglang": Case(given({**LORA, "engine": "sglang"}, {"arrivals": poisson(20), "adapters": {"count": 9}})),
    "adapters-drafts": Case(
        given(
            {**LORA, "speculative": {"method": "ngram", "num_speculative_tokens": 3, "acceptance": 0.6}},
            {"arrivals": poisson(20), "adapters": {"count": 9}},
        )
    ),
    "adapters-pipeline": Case(given({**LORA, "pipeline_parallel": 2}, {"arrivals": poisson(20), "adapters": {"count": 9}})),
    "adapters-offload": Case(
        given(
            {
                "lora": {"max_loras": 4},
                "offload": {"kv_offloading_size": 20},
                **args(gpu_memory_utilization=0.26, max_model_len=4000),
            },
            {**CHATS, "adapters": {"count": 9}},
        )
    ),
    "trtllm": Case(given(TRTLLM, {"arrivals": poisson(30), "shared_prefix": {"groups": 6, "tokens": 100}})),
    "ranks-mtp": Case(
        given({**RANKS, "hardware": "h200-sxm-141gb", "speculative": MTP}, {"requests": 120}, V2_LITE)
    ),
    "ranks-ngram-sglang": Case(
        given(
            {**RANKS, "engine": "sglang", "speculative": {**MTP, "method": "ngram"}, **args(enable_dp_attention=True)},
            {"requests": 100},
            V2_LITE,
        )
    ),
    "ranks-adapters-sglang": Case(
        given(
            {**RANKS, "engine": "sglang", "lora": {"max_loras": 4, "rank": 16}, **args(enable_dp_attention=True)},
            {"requests": 100, "adapters": {"count": 3, "share": 0.7}},
            V2_LITE,
        )
    ),
    "ranks-mtp-trtllm": Case(
        given(
            {**RANKS, "engine": "trtllm", "hardware": "h200-sxm-141gb", "speculative": MTP, **args(enable_attention_dp=True)},
            {"requests": 100},
            V2_LITE,
        )
    ),
    "pipeline-trtllm": Case(
        given(
            {
                "engine": "trtllm",
                "pipeline_parallel": 3,
                **args(max_seq_len=4000, max_batch_size=4, enable_chunked_prefill=True, max_num_tokens=512),
            },
            {"arrivals": poisson(25), "shared_prefix": {"groups": 6, "tokens": 100}},
        )
    ),
    "pipeline-trtllm-loop": Case(
        given({"engine": "trtllm@1.0", "pipeline_parallel": 2, "replicas": 2, **args(max_seq_len=4000, max_batch_size=4)}, LOOP)
    ),
    "trtllm-pauses": Case(given({**PAUSING, "replicas": 2, "router": "least_requests"}, LOOP)),
    "transformers": Case(given(TRANSFORMERS, {"arrivals": poisson(40), "shared_prefix": {"groups": 6, "tokens": 100}})),
    "transformers-static": Case(
        given({"engine": "transformers", "replicas": 2, "router": "least_requests", **args(batch_size=6)}, LOOP)
    ),
    "litserve": Case(
        given({"engine": "litserve", **args(max_batch_size=4, batch_timeout=0.3, timeout=20)}, {"arrivals": poisson(2)})
    ),
    "litserve-workers": Case(
        given(
            {
                "engine": "litserve", "replicas": 2, "router": "least_requests",
                **args(max_batch_size=4, batch_timeout=0.3, workers_per_device=2, stream=True),
            },
            LOOP,
        )
    ),
    "triton": Case(
        given(
            {
                "engine": "triton",
                **args(
                    max_batch_size=4,
                    dynamic_batching={"max_queue_delay_microseconds": 300000, "default_queue_policy": {"max_queue_size": 6}},
                ),
            },
            {"arrivals": poisson(2)},
        )
    ),
    "triton-executor": Case(
        given(
            {
                "engine": "triton",
                "replicas": 2,
                **args(
                    model_engine="trtllm",
                    max_batch_size=4,
                    max_queue_delay_microseconds=40000,
                    max_queue_size=9,
                    enable_kv_cache_reuse=True,
                    build_config={"max_batch_size": 12, "max_seq_len": 4000},
                ),
            },
            {"arrivals": poisson(60), "shared_prefix": {"groups": 6, "tokens": 100}},
        )
    ),
    "lmdeploy": Case(given(LMDEPLOY, {"arrivals": poisson(60)})),
    "lmdeploy-chats": Case(
        given(
            {
                **LMDEPLOY,
                **args(backend="pytorch", max_batch_size=12, enable_prefix_caching=True, cache_max_entry_count=0.03),
                "replicas": 2,
            },
            CHATS,
        )
    ),
    "turbomind": Case(
        given(
            {
                "engine": "lmdeploy",
                **args(max_prefill_token_num=400, max_batch_size=40, enable_prefix_caching=True, cache_max_entry_count=0.03),
                "replicas": 2,
            },
            CHATS,
        )
    ),
    "mii": Case(given(MII, {"arrivals": poisson(60)})),
    "mlx": Case(given({**MLX, "replicas": 2}, CHATS)),
    "openvino": Case(given({**OPENVINO, **args(num_kv_blocks=150, enable_prefix_caching=False)}, {"arrivals": poisson(2)})),
    "openvino-whole": Case(
        given(
            {**OPENVINO, **args(dynamic_split_fuse=False, max_num_batched_tokens=4096, max_num_seqs=6)},
            {"arrivals": poisson(2), "shared_prefix": {"groups": 6, "tokens": 100}},
        )
    ),
    "openarc": Case(given({**OPENVINO, "engine": "openarc"}, CHATS)),
    "openvino-chats": Case(given({**OPENVINO, **args(num_kv_blocks=300, rest_workers=4), "replicas": 2}, CHATS)),
    "slots": Case(
        given(
            {**SLOTS, **args(parallel=3, ctx_size=16384)},
            {"arrivals": poisson(4), "shared_prefix": {"groups": 4, "tokens": 200}},
        )
    ),
    "slots-end-together": Case(
        given(
            {**SLOTS, **args(parallel=6, ctx_size=16384)},
            {
                "arrivals": poisson(12),
                "prompt_tokens": 40,
                "output_tokens": 64,
                "shared_prefix": {"groups": 4, "tokens": 30},
            },
        )
    ),
    "slots-pool-runs-full": Case(given({**SLOTS, **args(ctx_size=3000)}, {"arrivals": poisson(6)})),
    "slots-shift": Case(
        given(
            {**SLOTS, **args(parallel=3, ctx_size=2304, context_shift=True)},
            {"arrivals": poisson(3), "requests": 80},
        )
    ),
    "slots-chats": Case(
        given({**SLOTS, **args(parallel=3, ctx_size=32768)}, {**CHATS, "arrivals": poisson(0.8)})
    ),
    "slots-loop": Case(
        given({**SLOTS, **args(parallel=8, ctx_size=32768), "replicas": 2, "router": "least_requests"}, LOOP)
    ),
    "exllama": Case(given({**EXLLAMA, "replicas": 2}, CHATS)),
    "mlc-chats": Case(given({**MLC, "replicas": 2}, CHATS)),
    "mlc": Case(given(MLC, {"arrivals": poisson(60), "shared_prefix": {"groups": 6, "tokens": 100}})),
    "inferflow": Case(given(INFERFLOW, {"arrivals": poisson(30)})),
    "kept-model": Case(
        given(
            {
                "engine": "ollama",
                "hardware": "rtx-4090-24gb",
                "replicas": 2,
                **args(num_parallel=2, num_ctx=2048, keep_alive="2s"),
            },
            {**CHATS, "arrivals": poisson(0.5)},
        )
    ),
    "zero-inference": Case(given({**ZERO, "replicas": 2}, {"arrivals": poisson(0.5)})),
    "sglang-loop": Case(given({"engine": "sglang", "replicas": 2}, LOOP)),
    "sglang-hrrn": Case(
        given(
            {"engine": "sglang", **args(max_total_tokens=9000, schedule_policy="hrrn")},
            {"arrivals": poisson(60), "shared_prefix": {"groups": 12, "tokens": 300}},
        )
    ),
    "gemma-chats": Case(given({"replicas": 2}, CHATS, "google/gemma-3-4b-it")),
    "cache-aware": Case(given({"replicas": 3, "router": {"system": "sglang-router"}}, CHATS)),
    "polled": Case(given({"replicas": 3, "router": {"system": "sglang-router", "policy": "power_of_two"}}, LOOP)),
    "kv-aware": Case(given({"replicas": 3, "router": {"system": "dynamo"}, **args(**TIGHT)}, CHATS)),
    "streamed-windows": Case(given({}, {}, "google/gemma-3-4b-it"), 80),
    "streamed-ranks": Case(given({"hardware": "h200-sxm-141gb", **RANKS}, {}, "deepseek-ai/DeepSeek-V2-Lite"), 80),
    **{f"streamed-{name}": Case(given(on, load), 80) for name, (load, on) in STREAMED.items()},
}
CUT = (
    "least-requests",
    "sessions",
    "sessions-16-replicas",
    "closed-loop-replicas",
    "sglang-sessions",
    "round-robin",
    "gemma-chats",
    "tgi-sheds",
    "trtllm-pauses",
    "slots-loop",
    "cache-aware",
    "polled",
    "kv-aware",
    "openvino-chats",
    "pipeline-tight",
    "pipeline-trtllm-loop",
    "draft-model",
    "streamed",
    "streamed-sessions",
    "streamed-classes",
)
"""Cases of several replicas, or of long runs, in which replicas are advanced at random."""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunResult]:
    """Run a case by its name."""
    write_trace(tmp_path)
    monkeypatch.chdir(tmp_path)

    def runs(name: str, **options: Any) -> RunResult:
        case = CASES[name]
        if case.stream_above is not None:
            monkeypatch.setattr("simulator.run.STREAM_ABOVE", case.stream_above)
            monkeypatch.setattr(streaming, "BLOCK", case.stream_above // 4)
            monkeypatch.setattr(drawn, "STRETCH", 16)
        found = simulate({"name": name, **case.scenario}, **options)
        assert isinstance(found.requests, Path) == (case.stream_above is not None)
        assert_sound(found)
        return found

    return runs


def assert_sound(found: RunResult) -> None:
    """Requests are conserved, nothing precedes its cause, the clock never runs back, memory and limits hold."""
    totals, frame = found.result["totals"], found.requests_frame()
    counts = frame["status"].value_counts().drop("not_arrived", errors="ignore")
    ends = {"finished": "completed", "rejected": "rejected", "failed": "failed", "unfinished": "unfinished"}
    assert {name: totals[key] for name, key in ends.items() if totals[key]} == counts.to_dict()
    assert totals["offered"] == len(frame) - totals["not_arrived"] == sum(totals[key] for key in ends.values())
    done = frame[frame["status"] == "finished"]
    assert (done["queue_start_s"] >= done["arrival_s"]).all()
    assert (done["first_scheduled_s"] >= done["queue_start_s"]).all()
    assert (done["first_token_s"] > done["first_scheduled_s"]).all()
    assert (done["end_s"] >= done["first_token_s"]).all()
    assert (done["cached_tokens"] < done["prompt_tokens"]).all()
    assert totals["total_output_tokens"] == done["output_tokens"].sum() > 0
    usage = found.timeline["kv_usage"]
    assert usage.min() >= 0.0
    assert usage.max() <= 1.0 + 1e-9
    for log in found.raw.logs:
        assert (np.diff(np.frombuffer(log.end_s)) >= 0).all()


def assert_same(one: RunResult, other: RunResult) -> None:
    """Compare result.json and both tables to the bit."""
    for section, value in one.result.items():
        assert json.dumps(value) == json.dumps(other.result[section]), section
    assert one.result.keys() == other.result.keys()
    for name, column in one.timeline.items():
        np.testing.assert_array_equal(other.timeline[name], column, err_msg=name)
    frames = one.requests_frame(), other.requests_frame()
    assert [name for name in frames[0] if not frames[0][name].equals(frames[1][name])] == []
    for mine, its in zip(one.raw.logs, other.raw.logs, strict=True):
        assert len(mine.end_s) + mine.retired_steps == len(its.end_s) + its.retired_steps


def test_every_engine_has_a_case() -> None:
    served = {split(case.scenario["deployment"].get("engine", "vllm"))[0] for case in CASES.values()}
    assert served == set(BUILT_IN)


@pytest.mark.parametrize("name", some(CASES))
def test_results_by_jumps_are_those_step_by_step(name: str, run: Callable[..., RunResult]) -> None:
    assert_same(run(name), run(name, aggregate=False))


class Nosy(Router):
    """Advances replicas at random before it does as another router does."""

    def __init__(self, replicas: list[Replica], inner: Router, rng: np.random.Generator) -> None:
        self._replicas, self._inner, self._rng = replicas, inner, rng
        self.reads_text = inner.reads_text
        self.cuts = 0

    def choose(self, now_s: float, seq: Sequence, session: int) -> int:
        for number in np.flatnonzero(self._rng.random(len(self._replicas)) < 0.4).tolist():
            self._replicas[number].advance(now_s)
            self._inner.note(number)
            self.cuts += 1
        return self._inner.choose(now_s, seq, session)

    def note(self, number: int) -> None:
        self._inner.note(number)

    def ended(self, seq: Sequence, now_s: float) -> None:
        self._inner.ended(seq, now_s)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", some(CUT))
def test_results_do_not_depend_on_where_jumps_are_cut(
    name: str, seed: int, run: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(name)
    rng = np.random.default_rng(seed)
    made: list[Nosy] = []

    def nosy(replicas: list[Replica], *options: Any) -> Router:
        made.append(Nosy(replicas, router_of(replicas, *options), rng))
        return made[-1]

    monkeypatch.setattr(simulator.cluster.cluster, "SLICES", int(rng.integers(1, 40)))
    assert_same(plain, run(name))
    monkeypatch.setattr(simulator.cluster.cluster, "router_of", nosy)
    assert_same(plain, run(name))
    assert made[0].cuts > 20
