"""The schedulers of TensorRT-LLM's ranks by the role of their server, and how servers share requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from engine_models.declaration import Executor, Handover, Mode, PoolRequest, Role
from engine_models.engines.trtllm_compressed import request_bytes
from engine_models.engines.trtllm_flags import group
from engine_models.engines.trtllm_states import state_bytes
from engine_models.engines.trtllm_tiers import HostMemory
from engine_models.memory.block_tree import BlockTree
from engine_models.memory.hosted_tree import HostedTree
from engine_models.parts.adapters import AdapterLimits
from engine_models.parts.composed import composed
from engine_models.refusals import no_pools_with
from engine_models.schedulers.memory_then_tokens import (
    CAPACITY_POLICIES,
    CHUNKING_POLICIES,
    FIRST_COME,
    STATIC,
    UTILIZATION,
    TwoPassRules,
    TwoPassScheduler,
)
from engine_models.schedulers.memory_then_tokens_adapted import AdaptedTwoPassScheduler
from engine_models.schedulers.memory_then_tokens_drafted import DraftedTwoPassScheduler
from engine_models.schedulers.memory_then_tokens_staged import StagedTwoPassScheduler
from engine_models.schedulers.memory_then_tokens_staged_adapted import StagedAdaptedTwoPassScheduler
from engine_models.schedulers.memory_then_tokens_tiered import TieredTwoPassScheduler
from engine_models.schedulers.prompts_together import PromptsTogether
from engine_models.schedulers.transferred import (
    ContextServer,
    DraftedGenerationServer,
    DraftedReservingGenerationServer,
    GenerationServer,
    ReservingGenerationServer,
    WaitingContextServer,
)
from engine_models.schedulers.transferred_staged import (
    StagedGenerationServer,
    StagedReservingGenerationServer,
)
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.records import dataclass

SERVERS: dict[tuple[Role, bool], type[TwoPassScheduler]] = {
    ("prefill", False): ContextServer,
    ("prefill", True): WaitingContextServer,
    ("decode", False): GenerationServer,
    ("decode", True): ReservingGenerationServer,
}
DRAFTED: dict[tuple[Role, bool], type[DraftedTwoPassScheduler]] = {
    ("mixed", False): DraftedTwoPassScheduler,
    ("decode", False): DraftedGenerationServer,
    ("decode", True): DraftedReservingGenerationServer,
}
STAGED: dict[bool, type[TwoPassScheduler]] = {False: StagedGenerationServer, True: StagedReservingGenerationServer}
"""The scheduler of a role, by whether memory is reserved before a prompt is computed; the second with drafts, the third that of a
generation server over stages."""


@dataclass(frozen=True)
class Rank:
    """Rules and blocks of one rank: what a fresh scheduler is built from."""

    rules: TwoPassRules
    blocks: int
    block_tokens: int
    reuse: bool
    partial: bool = True
    copies: bool = True
    windows: tuple[int, ...] = ()  # of the model's layers
    row_tokens: int = 1  # that a step verifies, with drafts
    role: Role = "mixed"
    reserves: bool = False  # servers that share a request get it at once
    together: bool = False  # ranks begin prompts together: what they agree on is by steps, none of which is left out
    adapters: AdapterLimits | None = None  # None: batches say nothing of adapters and masks
    stages: int = 1  # of a pipeline
    pieces_follow: bool = True  # whether a prompt's next piece enters it behind the one in flight
    host: HostMemory | None = None  # behind the device's blocks

    def scheduler(self, mode: Mode) -> TwoPassScheduler:
        """Build a scheduler with its blocks."""
        rules: list[type[TwoPassScheduler]] = []
        given: dict[str, Any] = {"windows": self.windows}
        reuse: dict[str, bool] = {
            "prefix_caching": self.reuse,
            "partial": self.partial,
            "copies": self.copies,
            "returns": self.rules.capacity_scheduler_policy == UTILIZATION,
        }
        if self.host is None:
            kv = BlockTree(self.blocks, self.block_tokens, **reuse)
        else:
            behind = self.host
            kv = HostedTree(
                self.blocks, self.block_tokens, host_blocks=behind.blocks, claims_first=behind.claims_first, **reuse
            )
            rules.append(TieredTwoPassScheduler)
            given["host"] = behind.copies
        if self.row_tokens > 1 and self.role != "prefill":
            rules.append(DRAFTED[self.role, self.reserves])
            given["row_tokens"] = self.row_tokens
            return composed(rules)(self.rules, kv, **given)
        given |= {"aggregate": mode != "step" and not self.together, "record_rows": mode == "record"}
        if self.adapters is not None:
            rules.append(StagedAdaptedTwoPassScheduler if self.stages > 1 else AdaptedTwoPassScheduler)
            given["limits"] = self.adapters
        if self.stages > 1:
            given |= {"stages": self.stages, "pieces_follow": self.pieces_follow}
            if self.adapters is None and self.role != "decode":
                rules.append(StagedTwoPassScheduler)
        if self.role != "mixed":
            staged = self.stages > 1 and self.role == "decode"
            rules.append(STAGED[self.reserves] if staged else SERVERS[self.role, self.reserves])
        return composed(rules or [TwoPassScheduler])(self.rules, kv, **given)


def policies(flags: Mapping[str, Any]) -> tuple[str, str]:
    """The capacity policy and the chunking policy of a pool's flags."""
    scheduling = group(flags, "scheduler_config")
    return (
        _policy("capacity_scheduler_policy", scheduling["capacity_scheduler_policy"], CAPACITY_POLICIES),
        _policy("context_chunking_policy", scheduling["context_chunking_policy"] or FIRST_COME, CHUNKING_POLICIES),
    )


def _policy(name: str, value: str, known: tuple[str, ...]) -> str:
    if value.upper() in known:
        return value.upper()
    close = nearest(value.upper(), list(known))
    raise InputError(
        f"{name} {value} is not simulated for TensorRT-LLM",
        where=f"deployment.engine_args.scheduler_config.{name}",
        mend=(f"did you mean {close}? " if close else "") + f"one of {', '.join(known)}",
    )


GENERATION_FIRST = "generation_first"
CONNECTORS = {"DEFAULT": "NIXL", "NIXL": "NIXL", "UCX": "UCX", "MPI": "MPI"}
"""``cache_transceiver_config.backend`` -> what moves the cache."""


def handover_of(request: PoolRequest, policy: str, block_tokens: int) -> Handover:
    """How a pool with a role passes requests on; InputError where that is not modelled."""
    transceiver = group(request.flags, "cache_transceiver_config")
    named = request.connector or str(transceiver["backend"]).upper()
    if named.upper() not in CONNECTORS:
        raise InputError(
            f"context and generation servers over {named} are not modelled",
            where="deployment.transfer.connector",
            mend=f"use one of {', '.join(CONNECTORS)}",
        )
    no_pools_with({f"{STATIC} (TensorRT-LLM)": policy == STATIC})
    late_s, reserves = transceiver["kv_transfer_timeout_ms"] / 1e3, request.schedule_style == GENERATION_FIRST
    lease_s = None if reserves else (late_s, 0.0)  # both servers cancel what is not sent or read in time
    return Handover(
        CONNECTORS[named.upper()],
        block_tokens,
        reserves=reserves,
        lease_s=lease_s,
        tells=False,
        gives_up_s=late_s,
        request_bytes=request_bytes(request, block_tokens) if request.arch.compresses else state_bytes(request),
    )


def executor_of(flags: Mapping[str, Any], rank: Rank, ranks: int) -> Executor:
    """Ranks of attention data parallelism get a request by their number of them, and may begin prompts together."""
    depth = rank.stages if rank.stages > 1 else 2 if rank.rules.overlap else 1
    executor = Executor(depth=depth, stages=rank.stages, ranks=ranks, rank_router="fewest")
    if not rank.together:
        return executor
    balance = group(flags, "attention_dp_config")
    waits = int(balance["timeout_iters"]), int(balance["batching_wait_iters"])
    return replace(executor, gate=partial(PromptsTogether, *waits))


__all__ = ["Rank", "executor_of", "handover_of", "policies"]
