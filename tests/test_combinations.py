"""Features of one engine beside one another: nobody is lost, no memory stays behind, and jumps give what steps give."""

from __future__ import annotations

from collections.abc import Sequence as Series
from typing import Any

import numpy as np
import pytest

from engine_models.cost.tables import FloatArray
from engine_models.memory.paged_kv import PagedKV
from engine_models.memory.radix import RadixPool
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.protocols import Scheduler, StepCost
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.continuous import ContinuousScheduler
from simulator import load_scenario, simulate
from simulator.cluster.outcome import FINISHED, REJECTED
from simulator.prepare import prepare
from simulator.serving.replica import Replica
from tests.clusters import jumps_as_it_steps, ran
from tests.effort import some
from tests.guard.cases import CHATS, LLAMA_8B, V2_LITE, args, given, poisson

DRAFTS = {"speculative": {"method": "eagle3", "num_speculative_tokens": 2, "acceptance": 0.6}}
MTP = {"method": "mtp", "num_speculative_tokens": 2, "acceptance": 0.6}
QWEN3_NEXT = "Qwen/Qwen3-Next-80B-A3B-Instruct"
LORA = {"lora": {"max_loras": 3, "rank": 16}}
ADAPTED = {"adapters": {"count": 6, "share": 0.8}}
MASKED = {"structured_output": 0.5}
SHORT = {"requests": 60, "max_output_tokens": 250, "arrivals": poisson(60), "shared_prefix": {"groups": 6, "tokens": 100}}
CROWD = {**CHATS, "max_output_tokens": 250, "arrivals": poisson(30), "sessions": {"turns": 3, "think_time_s": 0.5}}
SGLANG = {"engine": "sglang"}
HOST = {"enable_hierarchical_cache": True, "hicache_size": 1}
FEW = {"max_total_tokens": 3000, "chunked_prefill_size": 256, "schedule_conservativeness": 0.2}
STORE = {"kv_tiers": [{"kind": "host", "bytes": 5e8}, {"kind": "nvme", "bytes": 5e9, "bytes_per_s": 5e9}]}

SPILL = {"offload": {"kv_offloading_size": 8}}
PREFIXED = {"shared_prefix": {"groups": 12, "tokens": 600}, "arrivals": poisson(40), "requests": 120}

TRTLLM = {"engine": "trtllm"}
FIRM = {"max_seq_len": 3000, "kv_cache_config": {"max_tokens": 9000}}
PAUSING = {
    "max_seq_len": 3000,
    "enable_chunked_prefill": True,
    "kv_cache_config": {"max_tokens": 4000},
    "scheduler_config": {"capacity_scheduler_policy": "MAX_UTILIZATION"},
}
NGRAM = {"speculative": {"method": "ngram", "num_speculative_tokens": 2, "acceptance": 0.6}}

CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sglang-drafts-host": ({**SGLANG, **DRAFTS, **args(**FEW, **HOST)}, {**CROWD, "requests": 60}),
    "sglang-drafts-store": ({**SGLANG, **DRAFTS, **STORE, **args(**FEW)}, {**CROWD, "requests": 60}),
    "sglang-drafts-adapters": ({**SGLANG, **DRAFTS, **LORA, **args(**FEW)}, {**SHORT, **ADAPTED, **MASKED}),
    "sglang-drafts-adapters-store": ({**SGLANG, **DRAFTS, **LORA, **STORE, **args(**FEW)}, {**CROWD, "requests": 60, **ADAPTED}),
    "sglang-adapters-store": ({**SGLANG, **LORA, **STORE, **args(**FEW)}, {**CROWD, "requests": 60, **ADAPTED}),
    "sglang-masks-host": ({**SGLANG, **args(**FEW, **HOST)}, {**SHORT, **MASKED}),
    "sglang-pipeline-masks": ({**SGLANG, "pipeline_parallel": 2, **args(**FEW)}, {**SHORT, **MASKED, "arrivals": poisson(30)}),
    "sglang-pipeline-adapters": ({**SGLANG, **LORA, "pipeline_parallel": 2, **args(**FEW)}, {**SHORT, **ADAPTED}),
    "sglang-pipeline-host": ({**SGLANG, "pipeline_parallel": 2, **args(**FEW, **HOST)}, {**CROWD, "requests": 60}),
    "sglang-pipeline-adapters-store": (
        {**SGLANG, **LORA, **STORE, "pipeline_parallel": 2, **args(**FEW)},
        {**SHORT, **ADAPTED, **MASKED},
    ),
    "vllm-pipeline-drafts": (
        {**DRAFTS, "pipeline_parallel": 2, **args(num_gpu_blocks_override=260, max_model_len=3000)},
        PREFIXED,
    ),
    "vllm-pipeline-drafts-adapters": (
        {**DRAFTS, **LORA, "pipeline_parallel": 3, **args(max_model_len=3000)},
        {**SHORT, **ADAPTED},
    ),
    "trtllm-pauses-drafts": ({**TRTLLM, **DRAFTS, **args(**PAUSING)}, SHORT),
    "trtllm-pauses-ngram-masks": ({**TRTLLM, **NGRAM, **args(**PAUSING)}, {**SHORT, **MASKED}),
    "trtllm-pauses-adapters": ({**TRTLLM, "lora": {"max_loras": 2}, **args(**PAUSING)}, {**SHORT, **ADAPTED, **MASKED}),
    "trtllm-pauses-host": (
        {**TRTLLM, **args(**{**PAUSING, "kv_cache_config": {"max_tokens": 4000, "host_cache_size": 10**9}})},
        CROWD,
    ),
    "trtllm-pauses-masks": ({**TRTLLM, **args(**PAUSING)}, {**SHORT, **MASKED}),
    "trtllm-pipeline-masks": ({**TRTLLM, "pipeline_parallel": 2, **args(**FIRM)}, {**SHORT, **MASKED}),
    "trtllm-pipeline-adapters": (
        {**TRTLLM, "pipeline_parallel": 2, "lora": {"max_loras": 2}, **args(**FIRM)},
        {**SHORT, **ADAPTED, **MASKED, "arrivals": poisson(30)},
    ),
    "vllm-masks-offload": ({**SPILL, **args(num_gpu_blocks_override=260, max_model_len=3000)}, {**PREFIXED, **MASKED}),
    "vllm-masks-drafts-offload": (
        {**SPILL, **DRAFTS, **args(num_gpu_blocks_override=300, max_model_len=3000)},
        {**PREFIXED, **MASKED},
    ),
}


def pair(
    both: dict[str, Any], model: str = LLAMA_8B, load: dict[str, Any] = SHORT, style: str | None = None, **sides: dict[str, Any]
) -> dict[str, Any]:
    """A prefill and a decode server with what `both` and each of the `sides` have."""
    own = {"engine": "vllm", "hardware": "h100-sxm-80gb", **both}
    pools = [{**own, **sides.get(role, {}), "name": role, "role": role} for role in ("prefill", "decode")]
    transfer = {"transfer": {"schedule_style": style}} if style is not None else {}
    return {**given({}, load, model), "deployment": {"pools": pools, **transfer}}


SCENARIOS = {name: given(*case) for name, case in CASES.items()} | {
    "sglang-host-windows": given({**SGLANG, **args(**FEW, **HOST)}, CROWD, "openai/gpt-oss-20b"),
    "sglang-host-states-mtp": given(
        {**SGLANG, "speculative": MTP, "hardware": "h200-sxm-141gb", "tensor_parallel": 4, **args(max_total_tokens=9000, **HOST)},
        CROWD,
        QWEN3_NEXT,
    ),
    "sglang-store-states": given(
        {**SGLANG, **STORE, "hardware": "h200-sxm-141gb", "tensor_parallel": 4, **args(max_total_tokens=9000)}, CROWD, QWEN3_NEXT
    ),
    "sglang-pair-pipeline-mtp": pair(
        {**SGLANG, "speculative": MTP, "hardware": "h200-sxm-141gb", "tensor_parallel": 2, **args(**FEW)},
        V2_LITE,
        prefill={"pipeline_parallel": 2},
    ),
    "sglang-pair-states": pair({**SGLANG, "hardware": "h200-sxm-141gb", "tensor_parallel": 4, **args(**FEW)}, QWEN3_NEXT),
    "sglang-pair-states-mtp": pair(
        {**SGLANG, "speculative": MTP, "hardware": "h200-sxm-141gb", "tensor_parallel": 4, **args(max_total_tokens=6000)},
        QWEN3_NEXT,
    ),
    "trtllm-states-mtp": given(
        {**TRTLLM, "speculative": MTP, "hardware": "h200-sxm-141gb", "tensor_parallel": 4, **args(**FIRM, max_batch_size=24)},
        SHORT,
        QWEN3_NEXT,
    ),
    "trtllm-compressed": given(
        {**TRTLLM, "hardware": "b200-sxm-180gb", "tensor_parallel": 4, **args(**FIRM, max_batch_size=24)},
        CROWD,
        "deepseek-ai/DeepSeek-V4-Flash",
    ),
    "trtllm-pair-states": pair(
        {**TRTLLM, "hardware": "h200-sxm-141gb", "tensor_parallel": 4, **args(**FIRM, max_batch_size=24)}, QWEN3_NEXT
    ),
    "trtllm-pair-pipelines": pair({**TRTLLM, "pipeline_parallel": 2, **args(**FIRM)}, load={**SHORT, **MASKED}),
    "trtllm-pair-stages-at-once": pair(
        {**TRTLLM, **args(**FIRM, max_batch_size=6)}, style="generation_first", decode={"pipeline_parallel": 3}
    ),
    "trtllm-pair-stages": pair({**TRTLLM, **args(**FIRM, max_batch_size=5)}, load=CROWD, decode={"pipeline_parallel": 2}),
    "trtllm-pair-host": pair({**TRTLLM, **args(**{**FIRM, "kv_cache_config": {"max_tokens": 9000, "host_cache_size": 10**9}})}),
    "trtllm-pair-pauses": pair({**TRTLLM, **args(**PAUSING)}),
    "trtllm-pair-pauses-drafts": pair({**TRTLLM, **DRAFTS, **args(**PAUSING)}),
    "trtllm-pair-pauses-at-once": pair({**TRTLLM, **DRAFTS, **args(**PAUSING)}, style="generation_first"),
    "trtllm-pair-masks": pair({**TRTLLM, **args(**FIRM)}, load={**SHORT, **MASKED}),
    "trtllm-pair-pipeline": pair({**TRTLLM, **args(**FIRM)}, load={**SHORT, **MASKED}, prefill={"pipeline_parallel": 2}),
    "trtllm-pair-pipeline-at-once": pair(
        {**TRTLLM, **args(**FIRM)}, style="generation_first", prefill={"pipeline_parallel": 3}
    ),
    "vllm-windows-offload": given(
        {**SPILL, **args(num_gpu_blocks_override=700, max_model_len=6000)}, CROWD, "openai/gpt-oss-20b"
    ),
    "vllm-windows-drafts-offload": given(
        {**SPILL, **DRAFTS, **args(num_gpu_blocks_override=900, max_model_len=6000)}, CROWD, "google/gemma-3-4b-it"
    ),
    "vllm-pipeline-states-mtp-store": given(
        {
            "hardware": "h200-sxm-141gb", "tensor_parallel": 2, "pipeline_parallel": 2, "speculative": MTP,
            "kv_tiers": [{"kind": "shared", "bytes": 1e11, "bytes_per_s": 2e10, "connector": "MooncakeStoreConnector"}],
            **args(num_gpu_blocks_override=60, max_model_len=6000, enable_prefix_caching=True),
        },
        CROWD,
        QWEN3_NEXT,
    ),
    "vllm-pair-states": pair({"tensor_parallel": 4, **args(num_gpu_blocks_override=40, max_model_len=4000)}, QWEN3_NEXT),
    "vllm-pair-states-over-latents": pair(
        {"hardware": "h200-sxm-141gb", "tensor_parallel": 2, **args(max_model_len=4000)},
        "moonshotai/Kimi-Linear-48B-A3B-Instruct",
    ),
    "vllm-pair-windows-over-latents": pair(
        {"hardware": "b200-sxm-180gb", "tensor_parallel": 4, "speculative": MTP, **args(max_model_len=4000)},
        "deepseek-ai/DeepSeek-V4-Flash",
    ),
    "vllm-pair-states-mtp": pair({"tensor_parallel": 4, "speculative": MTP, **args(max_model_len=4000)}, QWEN3_NEXT),
    "vllm-pair-windows-drafts": pair({**DRAFTS, **args(num_gpu_blocks_override=900, max_model_len=4000)}, "openai/gpt-oss-20b"),
}


def left_behind(scheduler: Scheduler) -> list[str]:
    """What a scheduler without work still holds."""
    kv: Any = getattr(scheduler, "kv")  # noqa: B009 - every scheduler here has one
    if isinstance(kv, RadixPool):
        held = kv.capacity_tokens - kv.free_tokens - kv.tree.evictable_tokens
        locked = [node for node in kv.tree.nodes() if node.lock]
        return [f"{held} tokens"] * bool(held) + [f"{len(locked)} locks"] * bool(locked)
    held = kv.capacity_blocks - kv.free_blocks
    return [f"{held} blocks"] * bool(held)


@pytest.mark.parametrize("name", some(SCENARIOS, 1))
def test_whoever_arrives_is_answered_and_no_memory_stays_behind(name: str) -> None:
    cluster, result = ran(SCENARIOS[name])
    assert set(result.status.tolist()) <= {FINISHED, REJECTED}  # a chat may outgrow the cache
    finished = np.flatnonzero(result.status == FINISHED).tolist()
    assert len(finished) > 50
    for row in finished:
        assert sum(last - first + 1 for _, first, last in result.emissions.of(row)) == result.output_tokens[row]
    for rank in cluster.ranks:
        assert rank.scheduler.state()[:2] == (0, 0)
        assert left_behind(rank.scheduler) == []


@pytest.mark.parametrize("name", some(SCENARIOS))
def test_jumps_give_what_steps_give(name: str) -> None:
    jumps_as_it_steps(SCENARIOS[name])


def test_states_go_with_the_last_tokens_of_a_prompt() -> None:
    found = simulate(SCENARIOS["sglang-pair-states"])
    plan = prepare(load_scenario(SCENARIOS["sglang-pair-states"])).pools[0].plan
    assert plan.handover is not None
    state, page = plan.handover.request_bytes, plan.limits.block_tokens
    assert state > 1000 * plan.memory.kv_bytes_per_token  # 36 layers of states against 12 of keys and values
    frame = found.requests_frame()
    pages = -(-frame["prompt_tokens"] // page) * page
    assert (frame["transfer_bytes"] == 4 * (pages * plan.memory.kv_bytes_per_token + state)).all()


class TwoStages(StepCost):
    """A step of 3 s on each of two stages, and a drafter of 1 s behind it on the last."""

    def __init__(self) -> None:
        super().__init__()
        self.last_s = 1.0

    def step_s(self, batches: Series[Batch]) -> tuple[float, list[float]]:
        """As of the base."""
        return 4.0, [0.0] * len(batches)

    def run_s(self, shapes: Series[Batch], steps: int) -> FloatArray:
        """As of the base."""
        return np.full(steps, 4.0)

    def few_s(self, shapes: Series[Batch], steps: int) -> list[float]:
        """As of the base."""
        return [4.0] * steps

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return 0.0


def test_a_drafter_takes_time_of_the_last_stage_alone() -> None:
    """Worked by hand: two requests of 4 tokens, a draft each, all accepted, in two batches that take turns over two stages.

    A prompt's batch has 3 s on the first stage, 3 + 1 on the second: the first ends at 7, the second, formed at 0 too, has the
    first stage from 3 to 6 and waits for the second until 7: it ends at 11. Then each verifies twice: one from 7 to 10 and from
    11 to 15, the next from 15 to 18 and from 19 to 23, the other 4 s behind.
    """
    rules = ContinuousRules(8, 2, 64, in_flight=2, pipelined=True, speculative_tokens=1, pads_lone_token=False)
    scheduler = ContinuousScheduler(rules, PagedKV(100, 16, prefix_caching=False))
    replica = Replica([scheduler], TwoStages(), depth=2, stages=2)
    requests = [Sequence(number, 8, 4, 0.0, stop_known=True, acceptance=lambda _: 1) for number in range(2)]
    for seq in requests:
        replica.ranks[0].submit(seq)
    replica.advance(float("inf"))
    ends = list(replica.ranks[0].log.end_s)
    assert [[ends[last] for _, last in seq.ranges()] for seq in requests] == [[7, 15, 15, 23], [11, 19, 19, 27]]
