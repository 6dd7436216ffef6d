"""Rules, radix cache and limits of one of SGLang's ranks, of a pool or of a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from engine_models.cost.adapters import Adapters
from engine_models.declaration import Limits, Mode, PairReplay, PoolRequest, Replay, Role, Said
from engine_models.engines.sglang_drafts import Verifying, check_stages, step_slots, verifying
from engine_models.engines.sglang_handover import post_s_of, reserving
from engine_models.engines.sglang_images import image_cache_tokens
from engine_models.engines.sglang_memory import keeps_prefixes
from engine_models.engines.sglang_recorded import PairRecorder
from engine_models.engines.sglang_serving import Serving, rules_of
from engine_models.engines.sglang_tiers import TierPlan, recorded_tiers
from engine_models.engines.sglang_windows import window_pool
from engine_models.memory.radix import RadixPool
from engine_models.parts.adapters import NO_ADAPTERS, AdapterLimits, limits_in
from engine_models.parts.batch import Batch
from engine_models.parts.composed import composed
from engine_models.parts.handover import Peer
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules, PrefillFirstScheduler
from engine_models.schedulers.prefill_first_adapted import AdaptedPrefillFirstScheduler
from engine_models.schedulers.prefill_first_drafted import DraftedPrefillFirstScheduler
from engine_models.schedulers.prefill_first_drafted_adapted import DraftedAdaptedPrefillFirstScheduler
from engine_models.schedulers.prefill_first_staged import StagedPrefillFirstScheduler
from engine_models.schedulers.prefill_first_tiered import TieredPrefillFirstScheduler
from engine_models.schedulers.reserved import (
    ReservingDecodeScheduler,
    ReservingRules,
    SendingPrefillScheduler,
)
from engine_models.schedulers.reserved_drafted import DraftedReservingScheduler
from hardware_profiles.records import dataclass

SPARE_TOKENS = 5
"""Tokens that the scheduler keeps free behind a prompt (``max_req_input_len``; datasheet: SGLang 0.5 source, 2025)."""


@dataclass(frozen=True)
class Rank:
    """Rules and radix cache of one rank: what a fresh scheduler is built from."""

    rules: PrefillFirstRules
    kv_tokens: int
    page_tokens: int = 1
    prefix_caching: bool = True
    eviction_policy: str = "lru"
    windows: tuple[int, ...] = ()  # of the model's layers
    role: Role = "mixed"
    decode: ReservingRules | None = None  # of a decode server
    drafts: Verifying | None = None
    adapters: AdapterLimits | None = None
    tiers: TierPlan | None = None
    post_s: float = 0.0  # what a piece takes a prefill server's host to post
    lanes: int = 1  # micro-batches of a pipeline that take turns, of at most `lane_rows` rows each
    lane_rows: int = 0
    image_cache_tokens: int = 0  # of encoded images, 0 where prompts hold none
    window_pool: tuple[int, int] | None = None  # tokens of the pool that layers with windows have of their own, and of a window

    def scheduler(self, mode: Mode) -> PrefillFirstScheduler | ReservingDecodeScheduler:
        """Build a scheduler with its cache."""
        kv = RadixPool(
            self.kv_tokens,
            self.page_tokens,
            prefix_caching=self.prefix_caching,
            eviction_policy=self.eviction_policy,
            pairs=self.drafts is not None and self.drafts.pairs and self.decode is None,
        )
        if self.decode is not None:
            return self._answering(self.decode, kv, mode)
        return self._computing(kv, mode)

    def _answering(self, rules: ReservingRules, kv: RadixPool, mode: Mode) -> ReservingDecodeScheduler:
        """The scheduler of a decode server, by the rules that its pool asks for."""
        kinds: list[type[ReservingDecodeScheduler]] = []
        given: dict[str, Any] = {"record_rows": mode == "record", "windows": self.windows}
        if self.adapters not in (None, NO_ADAPTERS):
            from engine_models.schedulers.reserved_adapted import AdaptedReservingScheduler

            kinds.append(AdaptedReservingScheduler)
            given["limits"] = self.adapters
        if self.tiers is not None:
            from engine_models.schedulers.reserved_offloading import OffloadingReservingScheduler

            kinds.append(OffloadingReservingScheduler)
            given["further"] = self.tiers.further_tier(self.page_tokens)
        if self.drafts is not None:
            kinds.append(DraftedReservingScheduler)
            given |= {"row_tokens": self.drafts.row_tokens, "step_slots": self.drafts.step_slots}
            return composed(kinds)(rules, kv, **given)
        if self.prefix_caching:
            from engine_models.schedulers.reserved_cached import CachedReservingScheduler

            kinds.append(CachedReservingScheduler)
        masked = self.adapters is not None
        if self.lanes > 1:
            from engine_models.schedulers.reserved_turns import StagedReservingScheduler

            kinds.append(StagedReservingScheduler)
            given["lanes"] = self.lanes
        return composed(kinds or [ReservingDecodeScheduler])(rules, kv, aggregate=mode != "step", masked=masked, **given)

    def _computing(self, kv: RadixPool, mode: Mode) -> PrefillFirstScheduler:
        """The scheduler of a server that computes prompts, by the rules that its pool asks for, and what each needs."""
        rules: list[type[PrefillFirstScheduler]] = []
        given: dict[str, Any] = {"aggregate": mode != "step", "record_rows": mode == "record", "windows": self.windows}
        if self.window_pool is not None:
            from engine_models.memory.windowed_radix import WindowedPool
            from engine_models.schedulers.prefill_first_windowed import WindowedPrefillFirstScheduler

            rules.append(WindowedPrefillFirstScheduler)
            kv = WindowedPool(
                self.kv_tokens,
                self.page_tokens,
                *self.window_pool,
                prefix_caching=self.prefix_caching,
                eviction_policy=self.eviction_policy,
            )
        sends, drafts = self.role == "prefill", self.drafts if self.role != "prefill" else None
        if self.adapters is not None:
            rules.append(AdaptedPrefillFirstScheduler if drafts is None else DraftedAdaptedPrefillFirstScheduler)
            given["limits"] = self.adapters
        if drafts is not None:
            given |= {"row_tokens": drafts.row_tokens, "step_slots": drafts.step_slots}
            if self.adapters is None:
                rules.append(DraftedPrefillFirstScheduler)
        if self.image_cache_tokens:
            from engine_models.schedulers.prefill_first_encoding import EncodingPrefillFirstScheduler

            rules.append(EncodingPrefillFirstScheduler)
            given["image_cache_tokens"] = self.image_cache_tokens
        if sends:
            given |= {"metadata_buffers": self.rules.max_running_requests, "post_s": self.post_s}
            if self.lanes == 1 and self.tiers is None:
                rules.append(SendingPrefillScheduler)
        if self.lanes > 1:
            from engine_models.schedulers.reserved_staged import StagedSendingPrefillScheduler

            rules.append(StagedSendingPrefillScheduler if sends else StagedPrefillFirstScheduler)
            given |= {"lanes": self.lanes, "lane_rows": self.lane_rows}
            # adapters of rows in different lanes may drive one another off the device, step by step
            given["aggregate"] &= self.adapters in (None, NO_ADAPTERS)
        if self.tiers is not None:
            from engine_models.schedulers.reserved_tiered import TieredSendingPrefillScheduler

            rules.append(TieredSendingPrefillScheduler if sends else TieredPrefillFirstScheduler)
            given |= {"prefetch": self.tiers.prefetch, "ranks": self.tiers.ranks}
            kv = self.tiers.pool(
                self.kv_tokens, self.page_tokens, self.eviction_policy, pairs=drafts is not None and drafts.pairs
            )
        return composed(rules or [PrefillFirstScheduler])(self.rules, kv, **given)


def rank_of(
    request: PoolRequest, serving: Serving, tokens: int, rows: int, tiers: TierPlan | None, adapters: Adapters | None, said: Said
) -> Rank:
    """A rank of a pool, with a cache of `tokens` for `rows` rows; InputError for what is not modelled over stages."""
    flags, drafts, stages, decodes = request.flags, request.speculation, request.pipeline_parallel, request.role == "decode"
    lanes = stages + int(flags.get("pp_async_batch_depth") or 0) if stages > 1 else 1
    if stages > 1 and drafts:
        check_stages(drafts, request.role)
    if stages > 1:
        said.notes.append(f"{lanes} micro-batches take turns on {stages} stages; no step is formed ahead of its lane's results")
    return Rank(
        rules=rules_of(request, serving, rows),
        kv_tokens=tokens,
        page_tokens=serving.page,
        prefix_caching=keeps_prefixes(request) if decodes else not flags.get("disable_radix_cache", False),
        eviction_policy=str(flags.get("radix_eviction_policy", "lru")),
        windows=request.arch.windows_below(serving.context),
        role=request.role,
        decode=reserving(request, serving, rows) if decodes else None,
        post_s=post_s_of(request, serving.number),
        drafts=verifying(drafts, serving.page, request.arch) if drafts else None,
        adapters=limits_in(adapters, structured=request.structured),
        tiers=tiers,
        lanes=lanes,
        lane_rows=int(flags.get("pp_max_micro_batch_size") or max(1, rows // stages)),
        image_cache_tokens=image_cache_tokens(request) if request.encodes else 0,
        window_pool=window_pool(request, serving.number, tokens) if tiers is None else None,
    )


def limits_of(rank: Rank, step_tokens: int) -> Limits:
    """What a rank holds at most: it keeps a row within one token less than context and cache, the last of which is not stored."""
    context, page, drafts = rank.rules.max_model_len, rank.page_tokens, rank.drafts
    held = min(context, rank.kv_tokens) - 1
    backing = rank.decode.num_reserved_decode_tokens if rank.decode is not None else None
    return Limits(
        rows=rank.rules.max_running_requests,
        step_tokens=step_tokens,
        context_tokens=context,
        kv_tokens=rank.kv_tokens,
        kv_blocks=rank.kv_tokens // page,
        block_tokens=page,
        prompt_tokens=held - SPARE_TOKENS - 1,
        row_tokens=held - 1,
        request_tokens=(rank.kv_tokens - backing) // page * page if backing is not None else None,
        spare_tokens=2 * drafts.step_slots if drafts else 0,
        page_after_prompt=True,
    )


def replay_of(knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    depth = 2 if knobs.get("overlap") else 1
    chunk = knobs.get("chunked_prefill_size") or -1
    priority = bool(knobs.get("enable_priority_scheduling", False))
    rules = PrefillFirstRules(
        max_running_requests=knobs["max_running_requests"],
        max_model_len=knobs["max_context_len"],
        max_prefill_tokens=knobs["max_prefill_tokens"],
        chunked_prefill_size=chunk if chunk > 0 else None,
        in_flight=depth,
        schedule_policy=knobs.get("schedule_policy", "fcfs"),
        schedule_conservativeness=knobs.get("schedule_conservativeness", 1.0),
        mixed_chunk=knobs.get("enable_mixed_chunk", False) and chunk > 0,
        ignore_eos=knobs.get("ignore_eos", False),
        priority_scheduling=priority,
        low_priority_values_first=knobs.get("schedule_low_priority_values_first", False),
        preemption=priority and not knobs.get("disable_priority_preemption", False),
        preemption_threshold=knobs.get("priority_scheduling_preemption_threshold", 10),
        prefill_max_requests=knobs.get("prefill_max_requests"),
    )
    rank = Rank(
        rules,
        kv_tokens=knobs["max_total_num_tokens"],
        page_tokens=knobs.get("page_size", 1),
        prefix_caching=not knobs.get("disable_radix_cache", False),
        eviction_policy=knobs.get("radix_eviction_policy", "lru"),
        drafts=_recorded_drafts(knobs),
        tiers=recorded_tiers(knobs) if "host_tokens" in knobs else None,
        adapters=AdapterLimits(knobs["max_loras_per_batch"], counts_model=True) if "max_loras_per_batch" in knobs else None,
        window_pool=(knobs["swa_tokens"], knobs["sliding_window_size"]) if "swa_tokens" in knobs else None,
    )
    columns = ("sched", "retracted", "preempted", "hits", "free_tokens", "evictable")
    return Replay(rank.scheduler("record"), depth, columns, _recorder())


def _recorded_drafts(knobs: Mapping[str, Any]) -> Verifying | None:
    algorithm = knobs.get("speculative_algorithm")
    if algorithm is None:
        return None
    tokens = knobs["speculative_num_draft_tokens"]
    slots = step_slots(
        knobs["speculative_num_steps"],
        knobs["speculative_eagle_topk"],
        tokens,
        knobs.get("page_size", 1),
        layered=algorithm != "NGRAM",
    )
    return Verifying(tokens, slots, algorithm == "EAGLE")


def _recorder() -> Callable[[Batch, Mapping[int, str]], dict[str, Any]]:
    """What writes the steps of one recording."""
    cut: set[Sequence] = set()  # rows whose prompt was computed in pieces

    def as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
        assert isinstance(batch, PrefillFirstBatch)
        assert batch.rows is not None
        # the recorder names as a hit whatever a row of a prefill batch already has, unless its prompt was cut
        hits = {}
        if batch.mode != "DECODE":
            hits = {ids[s.index]: before for s, _, before in batch.rows if before and s not in cut}
        if batch.chunked is not None:
            cut.add(batch.chunked)
        retracted = set(batch.retracted)
        return {
            "sched": [[ids[s.index], n, before] for s, n, before in batch.rows],
            "hits": hits,
            "retracted": [ids[s.index] for s in batch.retracted],
            "preempted": [ids[s.index] for s in batch.preempted if s not in retracted],
            "free_tokens": batch.free_tokens,
            "evictable": batch.evictable_tokens,
            "mode": batch.mode,
            "chunked": ids[batch.chunked.index] if batch.chunked is not None else None,
            "batch_is_full": batch.batch_is_full,
            "new_token_ratio": round(batch.new_token_ratio, 9),
        }

    return as_recorded


def pair_replay_of(knobs: Mapping[str, Any]) -> PairReplay:
    """The schedulers of a recorded prefill and a recorded decode server; a recording has one of them."""
    tokens, page, rows = knobs["max_total_num_tokens"], knobs.get("page_size", 1), knobs["max_running_requests"]

    def prefill() -> Peer:
        chunk = knobs.get("chunked_prefill_size") or -1
        rules = PrefillFirstRules(
            max_running_requests=rows,
            max_model_len=knobs["context_len"],
            max_prefill_tokens=knobs["max_prefill_tokens"],
            chunked_prefill_size=chunk if chunk > 0 else None,
            schedule_policy=knobs.get("schedule_policy", "fcfs"),
        )
        return SendingPrefillScheduler(
            rules, RadixPool(tokens, page), metadata_buffers=knobs["metadata_buffers"], record_rows=True
        )

    def decode() -> Peer:
        rules = ReservingRules(
            max_running_requests=rows,
            pre_alloc_size=knobs["pre_alloc_size"],
            metadata_buffers=knobs["metadata_buffers"],
            max_model_len=knobs["context_len"],
            num_reserved_decode_tokens=knobs.get("num_reserved_decode_tokens", 512),
            polling_interval=knobs.get("polling_interval", 1),
        )
        cached = bool(knobs.get("decode_radix_cache"))
        kv, drafts = RadixPool(tokens, page, prefix_caching=cached), _recorded_drafts(knobs)
        if cached:
            from engine_models.schedulers.reserved_cached import CachedReservingScheduler

            return CachedReservingScheduler(rules, kv, record_rows=True)
        if drafts is not None:
            slots = drafts.step_slots
            return DraftedReservingScheduler(rules, kv, row_tokens=drafts.row_tokens, step_slots=slots, record_rows=True)
        return ReservingDecodeScheduler(rules, kv, record_rows=True)

    return PairReplay(prefill, decode, PairRecorder)
