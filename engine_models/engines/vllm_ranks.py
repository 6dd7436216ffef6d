"""Rules, KV cache and limits of one of vLLM's ranks, of a pool or of a recording."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

from engine_models.declaration import Limits, Mode, PairReplay, PoolRequest, Replay, Role
from engine_models.engines import vllm_v0
from engine_models.engines.vllm_cache import Cache
from engine_models.engines.vllm_serving import Serving, rules_of
from engine_models.engines.vllm_tiers import TierPlan, recorded_tiers
from engine_models.engines.vllm_versions import Version, scheduling_switches, window_switches
from engine_models.memory.hybrid_kv import STATE_WINDOW
from engine_models.memory.paged_kv import PagedKV
from engine_models.parts.adapters import AdapterLimits, limits_in
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.composed import composed
from engine_models.schedulers.continuous import ContinuousScheduler
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from engine_models.cost.adapters import Adapters
    from engine_models.declaration import Handover
    from engine_models.memory.hybrid_kv import HybridKV
    from engine_models.schedulers.encoding import EncoderLimits


READ_AHEAD = ("eagle", "eagle3", "mtp")
"""Drafts whose layers keep of a token what depends on the one behind it (datasheet: `needs_eagle_block_drop` in
`config/speculative.py` of 0.33.0)."""
NAMES_COVER_NEXT_SINCE = (0, 33)
"""First release whose names of blocks cover the token behind, except beside KV connectors; before, the last one found is dropped
(datasheet: `num_hash_lookahead_tokens` in `config/vllm.py` of 0.33.0; 0.11 to 0.31 have none, 0.32 was not read)."""


@dataclass(frozen=True)
class Rank:
    """Rules and KV cache of one rank: what a fresh scheduler is built from.

    `windows` and `switches` are those of the cache's groups (`Cache`, `window_switches`), `tiers` what lies beyond the
    device, None without any, `encoder` those of a vision tower, None where prompts hold no images. A `role` other than
    "mixed" shares requests with another server, `at_once` from their arrival on.
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
    encoder: EncoderLimits | None = None
    drops_block: bool = False  # the last that is found

    def paged(self) -> PagedKV:
        """Build a cache of one group."""
        return PagedKV(
            self.blocks,
            self.block_tokens,
            prefix_caching=self.prefix_caching,
            unhashed_to_head=self.unhashed_to_head,
            drops_block=self.drops_block,
        )

    def hybrid(self) -> HybridKV:
        """Build a cache of several groups."""
        from engine_models.memory.hybrid_kv import HybridKV

        return HybridKV(
            self.blocks,
            self.block_tokens,
            self.windows,
            prefix_caching=self.prefix_caching,
            unhashed_to_head=self.unhashed_to_head,
            drops_block=self.drops_block,
            most_in_flight_tokens=self.rules.in_flight * self.rules.max_num_batched_tokens,
            max_model_len=self.rules.max_model_len,
            states=self.windows.count(STATE_WINDOW),
            checkpoints=self.rules.checkpoints,
            drafts=self.rules.speculative_tokens if STATE_WINDOW in self.windows else 0,
            lookahead_tokens=self.rules.lookahead_tokens,
            replayed_tokens=int(STATE_WINDOW in self.windows),
            **self.switches,
        )

    def scheduler(self, mode: Mode) -> ContinuousScheduler:
        """Build a scheduler with its cache."""
        if self.role != "mixed":
            return self._of_pair(mode)
        kv, spans = self._cache()
        if self.encoder is not None or self.adapters is not None:
            return self._by_several_rules(mode, kv, spans)
        if mode == "jump" and self.tiers is None and not isinstance(kv, PagedKV):
            from engine_models.schedulers.windowed import WindowedScheduler

            if WindowedScheduler.serves(self.rules):
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

    def _by_several_rules(self, mode: Mode, kv: PagedKV | HybridKV, spans: tuple[int, ...]) -> ContinuousScheduler:
        """The scheduler of a server with images, adapters or both."""
        kinds, given = self._further()
        return self._built(kinds, given, mode, kv, spans)

    def _further(self) -> tuple[list[type[ContinuousScheduler]], dict[str, Any]]:
        """The rules of images and adapters, where there are some, and what each needs."""
        kinds: list[type[ContinuousScheduler]] = []
        given: dict[str, Any] = {}
        if self.encoder is not None:
            from engine_models.schedulers.encoding import EncodingScheduler

            kinds.append(EncodingScheduler)
            given["encoder"] = self.encoder
        if self.adapters is not None:
            from engine_models.schedulers.adapted import AdaptedScheduler

            kinds.append(AdaptedScheduler)
            given["limits"] = self.adapters
        return kinds, given

    def _of_pair(self, mode: Mode) -> ContinuousScheduler:
        """The scheduler of one of two servers that share requests."""
        from engine_models.schedulers.pulled import DecodeOfPull, DecodeOfPush, PrefillOfPull, PrefillOfPush

        pairs: tuple[type[ContinuousScheduler], ...] = PrefillOfPull, DecodeOfPull, PrefillOfPush, DecodeOfPush
        kinds, given = self._further()
        return self._built([pairs[2 * self.at_once + (self.role == "decode")], *kinds], given, mode, *self._cache())

    def _built(
        self,
        kinds: list[type[ContinuousScheduler]],
        given: dict[str, Any],
        mode: Mode,
        kv: PagedKV | HybridKV,
        spans: tuple[int, ...],
    ) -> ContinuousScheduler:
        """A scheduler that follows all these rules."""
        return composed(kinds)(
            self.rules,
            kv,
            aggregate=mode != "step" and isinstance(kv, PagedKV),
            record_rows=mode == "record",
            tiers=self.tiers.build() if self.tiers is not None else None,
            windows=spans,
            **given,
        )

    def _cache(self) -> tuple[PagedKV | HybridKV, tuple[int, ...]]:
        """A cache, and the windows that its groups see, in ascending order."""
        spans = tuple(sorted({window for window in self.windows if window not in (None, STATE_WINDOW)}))
        return self.paged() if self.windows == (None,) else self.hybrid(), spans


def rank_of(
    request: PoolRequest,
    version: Version,
    serving: Serving,
    cache: Cache,
    blocks: int,
    context: int,
    tiers: TierPlan | None,
    handover: Handover | None,
    adapters: Adapters | None,
) -> Rank:
    """A rank of a pool, with `blocks` of memory for requests of up to `context` tokens; one block stays empty."""
    rules = rules_of(request, version, serving, context)
    return Rank(
        rules=keeping_states(rules, cache.block, checkpoints=cache.checkpoints) if cache.keeps_states else rules,
        blocks=blocks - 1,
        block_tokens=cache.block,
        prefix_caching=cache.prefix_caching,
        unhashed_to_head=version.unhashed_to_head,
        windows=cache.windows,
        switches=window_switches(version),
        tiers=tiers,
        role=request.role,
        at_once=handover is not None and handover.reserves,
        adapters=limits_in(adapters, structured=request.structured),
        encoder=_encoder(request, serving) if request.images and request.role != "decode" else None,
        drops_block=tiers is None and drops_block(request, version),
    )


def drops_block(request: PoolRequest, version: Version) -> bool:
    """Whether the last block that is found of a prompt is computed again, for the drafter."""
    drafts = request.speculation
    if drafts is None or drafts.method not in READ_AHEAD or version.first_engine:
        return False
    return version.number < NAMES_COVER_NEXT_SINCE or request.role != "mixed"


def keeping_states(rules: ContinuousRules, block_tokens: int, *, checkpoints: bool) -> ContinuousRules:
    """The rules where states of recurrent layers are kept at ends of blocks, a prompt's last by the step that ends it or not."""
    return replace(rules, aligned_tokens=block_tokens, checkpoints=checkpoints)


def _encoder(request: PoolRequest, serving: Serving) -> EncoderLimits:
    from engine_models.engines.vllm_images import encoder_limits

    return encoder_limits(request, serving)


def limits_of(rank: Rank, version: Version, serving: Serving, cache: Cache, least_share: float) -> Limits:
    """What a rank holds at most; `least_share` of its tokens may be all that a server has."""
    rules = rank.rules
    context, longest = rules.max_model_len, vllm_v0.longest_blocks(rank.blocks) if version.first_engine else rank.blocks
    # a request shorter than the windows takes blocks in all groups alike
    whole = max(0, longest - cache.window_blocks(serving)) // cache.full_groups
    request_blocks = max(whole, longest // max(1, len(cache.windows)))
    kv_tokens = rank.blocks // cache.full_groups * cache.block
    stated = cache.stated_tokens(rank.blocks + 1, context, serving.tokens, version.number)
    return Limits(
        rows=serving.rows,
        step_tokens=serving.tokens,
        context_tokens=context,
        kv_tokens=kv_tokens,
        kv_blocks=rank.blocks,
        block_tokens=cache.block,
        prompt_tokens=context - 1,
        row_tokens=context,
        spare_tokens=rules.speculative_tokens + rules.lookahead_tokens,
        row_blocks=cache.states * (1 + rules.speculative_tokens),
        request_tokens=request_blocks * cache.block,
        stated_tokens=stated,
        least_stated=int(least_share * (kv_tokens if stated is None else stated)) if least_share < 1 else None,
    )


def _recorded_rank(version: Version, knobs: Mapping[str, Any]) -> Rank:
    """Rules and cache of a recorded scheduler, from the knobs of its `config` line."""
    rules = ContinuousRules(
        **scheduling_switches(version),
        max_num_batched_tokens=knobs["max_num_batched_tokens"],
        max_num_seqs=knobs["max_num_seqs"],
        max_model_len=knobs["max_model_len"],
        in_flight=knobs.get("pipeline_parallel_size", 2 if knobs.get("async_scheduling") else 1),
        pipelined="pipeline_parallel_size" in knobs,
        policy=knobs.get("policy", "fcfs"),
        chunked_prefill=knobs.get("enable_chunked_prefill", True),
        long_prefill_token_threshold=knobs.get("long_prefill_token_threshold", 0),
        reserve_full_prompt=knobs.get("scheduler_reserve_full_isl", True) and version.reserve_full_prompt,
        watermark=knobs.get("watermark", 0.0) if version.has_watermark else 0.0,
        speculative_tokens=knobs.get("num_speculative_tokens") or 0,
        lookahead_tokens=knobs.get("num_lookahead_tokens") or 0,
    )
    caching, groups = knobs.get("enable_prefix_caching", True), knobs.get("kv_groups") or [{"type": "full"}]
    windows = tuple(STATE_WINDOW if group["type"] == "states" else group.get("window") for group in groups)
    return Rank(
        rules=keeping_states(rules, knobs["block_size"], checkpoints="state_checkpoints" in knobs)
        if caching and STATE_WINDOW in windows
        else rules,
        blocks=knobs["num_gpu_blocks"] - 1,
        block_tokens=knobs["block_size"],
        prefix_caching=caching,
        unhashed_to_head=version.unhashed_to_head,
        windows=windows,
        switches=window_switches(version),
        adapters=AdapterLimits(knobs["max_loras"]) if "max_loras" in knobs else None,
        encoder=_recorded_encoder(knobs) if "encoder_tokens" in knobs else None,
        tiers=recorded_tiers(knobs) if "host_blocks" in knobs else None,
        drops_block=knobs.get("eagle_block_drop", False),
    )


def _recorded_encoder(knobs: Mapping[str, Any]) -> EncoderLimits:
    from engine_models.schedulers.encoding import EncoderLimits

    return EncoderLimits(
        knobs["encoder_tokens"],
        knobs["encoder_cache_tokens"],
        whole_images=knobs.get("disable_chunked_mm_input", False),
        ahead_tokens=knobs.get("num_prefill_lookahead_tokens", 0),
    )


def _as_recorded(batch: Batch, ids: Mapping[int, str]) -> dict[str, Any]:
    """A step as the recorder writes it."""
    assert batch.rows is not None
    step = {
        "sched": [[ids[s.index], n, before] for s, n, before in batch.rows],
        "hits": {ids[s.index]: hit for s, hit in batch.hits},
        "preempted": [ids[s.index] for s in batch.preempted],
        "free_blocks": batch.free_blocks,
    }
    return step | {"encoded": list(batch.encodes)}


def replay_of(version: Version, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from the knobs of its `config` line."""
    rank = _recorded_rank(version, knobs)
    columns = ("sched", "preempted", "hits", "free_blocks", *(("encoded",) if rank.encoder is not None else ()))
    return Replay(rank.scheduler("record"), rank.rules.in_flight, columns, _as_recorded)


def pair_replay_of(version: Version, config: Mapping[str, Any]) -> PairReplay:
    """The schedulers of a recorded prefill and a recorded decode server."""
    from engine_models.engines.vllm_recorded import PairRecorder
    from engine_models.parts.handover import Peer

    def side(role: Role, name: str) -> Peer:
        scheduler = replace(_recorded_rank(version, config[name]), role=role).scheduler("record")
        assert isinstance(scheduler, Peer)
        return scheduler

    return PairReplay(lambda: side("prefill", "P"), lambda: side("decode", "D"), PairRecorder)
