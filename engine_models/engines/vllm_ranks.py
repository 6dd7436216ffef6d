"""Rules and KV cache of one of vLLM's ranks, of a pool or of a recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine_models.declaration import Mode, Role
from engine_models.engines.vllm_tiers import TierPlan, recorded_tiers
from engine_models.engines.vllm_versions import Version, scheduling_switches, window_switches
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.adapters import AdapterLimits
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.schedulers.continuous import ContinuousScheduler

if TYPE_CHECKING:
    from engine_models.memory.hybrid_kv import HybridKV


@dataclass(frozen=True)
class Rank:
    """Rules and KV cache of one rank: what a fresh scheduler is built from.

    `windows` and `switches` are those of the cache's groups (`kv_layout`, `window_switches`), `tiers` what lies beyond the
    device, None without any. A `role` other than "mixed" shares requests with another server, `at_once` from their arrival on.
    """

    rules: ContinuousRules
    blocks: int
    block_tokens: int
    prefix_caching: bool = True
    unhashed_to_head: bool = True
    windows: tuple[int | None, ...] = (None,)
    switches: Mapping[str, bool] = field(default_factory=dict)
    tiers: TierPlan | None = None
    role: Role = "mixed"
    at_once: bool = False
    adapters: AdapterLimits | None = None

    def paged(self) -> PagedKV:
        """Build a cache of one group."""
        return PagedKV(
            self.blocks,
            self.block_tokens,
            prefix_caching=self.prefix_caching,
            unhashed_to_head=self.unhashed_to_head,
        )

    def scheduler(self, mode: Mode) -> ContinuousScheduler:
        """Build a scheduler with its cache."""
        if self.role != "mixed":
            from engine_models.schedulers.pulled import (
                DecodeOfPull,
                DecodeOfPush,
                PrefillOfPull,
                PrefillOfPush,
            )

            prefill, decode = (PrefillOfPush, DecodeOfPush) if self.at_once else (PrefillOfPull, DecodeOfPull)
            kind = prefill if self.role == "prefill" else decode
            held = self.tiers.build() if self.tiers is not None else None
            return kind(self.rules, self.paged(), aggregate=mode != "step", record_rows=mode == "record", tiers=held)
        if self.adapters is not None:
            from engine_models.schedulers.adapted import AdaptedScheduler

            steps, records = mode == "step", mode == "record"
            tiers = self.tiers.build() if self.tiers is not None else None
            return AdaptedScheduler(
                self.rules, self.paged(), self.adapters, aggregate=not steps, record_rows=records, tiers=tiers
            )
        kv: PagedKV | HybridKV
        spans = tuple(sorted({window for window in self.windows if window is not None}))
        if self.windows == (None,):
            kv = self.paged()
        else:
            from engine_models.memory.hybrid_kv import HybridKV
            from engine_models.schedulers.windowed import WindowedScheduler

            kv = HybridKV(
                self.blocks,
                self.block_tokens,
                self.windows,
                prefix_caching=self.prefix_caching,
                unhashed_to_head=self.unhashed_to_head,
                most_in_flight_tokens=self.rules.in_flight * self.rules.max_num_batched_tokens,
                max_model_len=self.rules.max_model_len,
                **self.switches,
            )
            if mode == "jump" and self.tiers is None and WindowedScheduler.serves(self.rules):
                return WindowedScheduler(self.rules, kv, spans)
        if mode == "jump" and self.tiers is None and isinstance(kv, PagedKV):
            if self.rules.speculative_tokens:
                from engine_models.schedulers.drafted import DraftedScheduler

                if DraftedScheduler.serves(self.rules):
                    return DraftedScheduler(self.rules, kv)
            elif self.rules.pipelined:
                from engine_models.schedulers.staged import StagedScheduler

                return StagedScheduler(self.rules, kv)
        tiers = self.tiers.build() if self.tiers is not None else None
        return ContinuousScheduler(
            self.rules, kv, aggregate=mode != "step", record_rows=mode == "record", tiers=tiers, windows=spans
        )


def recorded_rank(version: Version, knobs: Mapping[str, Any]) -> Rank:
    """Rules and cache of a recorded scheduler, from the knobs of its `config` line."""
    rules = ContinuousRules(
        **scheduling_switches(version),
        max_num_batched_tokens=knobs["max_num_batched_tokens"],
        max_num_seqs=knobs["max_num_seqs"],
        max_model_len=knobs["max_model_len"],
        in_flight=2 if knobs.get("async_scheduling") else 1,
        policy=knobs.get("policy", "fcfs"),
        chunked_prefill=knobs.get("enable_chunked_prefill", True),
        long_prefill_token_threshold=knobs.get("long_prefill_token_threshold", 0),
        reserve_full_prompt=knobs.get("scheduler_reserve_full_isl", True) and version.reserve_full_prompt,
        watermark=knobs.get("watermark", 0.0) if version.has_watermark else 0.0,
        speculative_tokens=knobs.get("num_speculative_tokens") or 0,
        lookahead_tokens=knobs.get("num_lookahead_tokens") or 0,
    )
    return Rank(
        rules=rules,
        blocks=knobs["num_gpu_blocks"] - 1,
        block_tokens=knobs["block_size"],
        prefix_caching=knobs.get("enable_prefix_caching", True),
        unhashed_to_head=version.unhashed_to_head,
        windows=tuple(group.get("window") for group in knobs.get("kv_groups") or [{"type": "full"}]),
        switches=window_switches(version),
        adapters=AdapterLimits(knobs["max_loras"]) if "max_loras" in knobs else None,
        tiers=recorded_tiers(knobs) if "host_blocks" in knobs else None,
    )


def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A step as the recorder writes it."""
    assert batch.rows is not None
    return {
        "sched": [[ids[s.index], n, before] for s, n, before in batch.rows],
        "hits": {ids[s.index]: hit for s, hit in batch.hits},
        "preempted": [ids[s.index] for s in batch.preempted],
        "free_blocks": batch.free_blocks,
    }
