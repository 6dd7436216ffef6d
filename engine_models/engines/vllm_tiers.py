"""vLLM's KV cache beyond the device: which connector keeps it, in which tiers, and by which rule it comes back.

Rules of the connectors: `OffloadingConnector` (host memory, later disks and stores behind it), LMCache's `LMCacheConnectorV1`,
`MooncakeStoreConnector`, and `DynamoConnector`, Dynamo's block manager (KVBM), whose tiers G1 to G3 are the device, host memory
and disks; see `engine_models.memory.kv_tiers` for what was read. Dynamo's is `kvbm/.../connector/leader/slot.rs` (read 2026-11):
every full block that a step fills, of answers too, goes to the host unless it was found somewhere; from there to the disk as its
filter says; a request asks the host, then the disk for what follows, and both are copied to the device in the background.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from engine_models.declaration import PoolRequest, Said
from engine_models.engines.vllm_connectors import beyond
from engine_models.engines.vllm_versions import Version
from engine_models.parts.tiers import NVME_BYTES_PER_S, KvTier, Link, StoreNames, WritePolicy
from engine_models.refusals import none_of
from engine_models.store_names import BLOCK, FORMAT, MODEL, RANKS, STAGES, TENSOR, UNIT, store_names
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from engine_models.engines.vllm_cache import Cache
    from engine_models.memory.kv_tiers import KvTiers, Level

GIB = 1 << 30
NATIVE, LMCACHE, MOONCAKE, KVBM = "OffloadingConnector", "LMCacheConnectorV1", "MooncakeStoreConnector", "DynamoConnector"
LMCACHE_CHUNK_TOKENS = 256
"""Tokens of a chunk unless `chunk_size` says otherwise (datasheet: LMCache's `config.py`, read 2026-11)."""
LMCACHE_HOST_GIB = 5.0
"""Host memory of a rank unless `max_local_cpu_size` says otherwise [GiB] (datasheet: as above)."""
OFFLOAD_BYTES_SINCE = (0, 14)
"""First version whose own connector takes the size of host memory in bytes (datasheet: releases and vLLM's blog of 2026-01)."""
SPANS_SINCE = (0, 33)
"""Version whose own connector and Mooncake's store were read to keep the blocks of each KV group; LMCache's connector keeps
none of windows (`SupportsHMA` in `kv_connector/v1`). Earlier releases that do are not told apart."""
WHERE_FLAG = "deployment.engine_args.kv_transfer_config"
STORE_TELLS = {
    NATIVE: (MODEL, TENSOR, STAGES, BLOCK, UNIT),
    LMCACHE: (MODEL, RANKS, FORMAT, UNIT),
    MOONCAKE: (MODEL,),
}
"""What the names of blocks in a store tell by connector; a block of another size has another hash, and in Mooncake's a group
(datasheet: `FileMapper` of `v1/kv_offload/file_mapper.py` at 0078e9d2, LMCache's `CacheEngineKey` of `utils.py` at 0353be82,
`PoolKey` of `kv_connector/v1/mooncake/store/data.py` at 015cb3c6; read 2026-11)."""


@dataclass(frozen=True)
class TierPlan:
    """Tiers of a pool, resolved: what a fresh replica's are built from, and what is said of them."""

    tiers: tuple[KvTier, ...]
    connector: str
    block_tokens: int
    unit_blocks: int
    block_bytes: int
    ranks: int
    host_bytes_per_s: float
    network_bytes_per_s: float
    stores_outputs: bool
    ranked: bool = False
    needed_blocks: int = 0  # whose windows' and states' blocks it takes to resume behind them, 0 without any
    asked_blocks: int = 0  # of these, as many must be there: a window of 17 tokens over blocks of 16 asks for two and keeps one
    side_bytes: float = 0.0  # of these blocks of one place, on one rank
    names: StoreNames | None = None  # in a shared store

    @property
    def unit_bytes(self) -> int:
        """Bytes of a unit, all ranks together."""
        return self.block_bytes * self.unit_blocks * self.ranks

    @property
    def first_blocks(self) -> int:
        """Blocks of the device's cache that the first tier holds."""
        return self._units(self.tiers[0]) * self.unit_blocks

    def _units(self, tier: KvTier) -> int:
        return int(tier.capacity_bytes // self.unit_bytes)

    def build(self) -> KvTiers:
        """The tiers of a replica."""
        from engine_models.memory.kv_tiers import KvTiers

        if self.ranked:
            from engine_models.memory.ranked_host import RankedHost

            return RankedHost(
                self._level(self.tiers[0]),
                self.block_tokens,
                block_bytes=self.unit_bytes,
                rank_block_bytes=self.block_bytes,
                device_link=Link(self.host_bytes_per_s),
            )
        kind: type[KvTiers] = KvTiers
        sides: dict[str, Any] = {}
        if self.needed_blocks:
            from engine_models.memory.resumable_tiers import ResumableTiers

            kind = ResumableTiers
            needed, asked = (
                -(-blocks // self.unit_blocks) for blocks in (self.needed_blocks, self.asked_blocks or self.needed_blocks)
            )
            sides = {"needed_units": needed, "asked_units": asked, "side_units": self.side_bytes / self.block_bytes}
        return kind(
            [self._level(tier) for tier in self.tiers],
            self.block_tokens,
            **sides,
            unit_blocks=self.unit_blocks,
            unit_bytes=self.unit_bytes,
            rank_unit_bytes=self.block_bytes * self.unit_blocks,
            device_link=Link(self.host_bytes_per_s),
            stores_outputs=self.stores_outputs,
            staged=self.connector == NATIVE,
            in_step=self.connector == LMCACHE,
            from_start=self.connector not in (NATIVE, KVBM),
            in_order=self.connector == KVBM,
        )

    def _level(self, tier: KvTier) -> Level:
        from engine_models.memory.kv_tiers import BlockStore, FrequencyFilter, Level

        store, rate, latency_s = BlockStore(self._units(tier)), tier.bytes_per_s, tier.latency_s
        if tier.kind == "host":
            return Level("host", store)
        if tier.kind == "nvme":
            filtered = self.connector == KVBM and tier.write != "through"
            lets_in = FrequencyFilter() if filtered else None
            return Level("nvme", store, [Link(rate, latency_s)], [Link(rate, latency_s)], lets_in)
        own = [Link(self.network_bytes_per_s or inf) for _ in range(2)]
        store = BlockStore(self._units(tier), self.unit_bytes, int(tier.capacity_bytes))
        return Level("shared", store, [Link(rate, latency_s), own[0]], [own[1], Link(rate, latency_s)])

    @property
    def notes(self) -> list[str]:
        """What is said of them."""
        if self.connector == NATIVE and len(self.tiers) == 1:
            return [
                f"KV offload: {self.first_blocks:,} blocks in host memory, copied at {self.host_bytes_per_s / 1e9:g} GB/s "
                "a device beside the computation (assumed: the link's full rate, none of it taken by others)"
            ]
        way = {
            NATIVE: "loaded in the background, from further down by way of host memory",
            LMCACHE: f"chunks of {self.unit_blocks * self.block_tokens} tokens, which the step waits for as they are copied",
            MOONCAKE: "loaded in the background",
            KVBM: "loaded in the background, from the disk past the host; the disk gets what has come twice in some ten minutes "
            "(write: through or DYN_KVBM_DISABLE_DISK_OFFLOAD_FILTER gives it all)",
        }[self.connector]
        held = " + ".join(f"{tier_words(tier)} ({self._units(tier) * self.unit_blocks:,} blocks)" for tier in self.tiers)
        return [
            f"KV tiers by {self.connector}: {held}; {way}; copies to the device at {self.host_bytes_per_s / 1e9:g} GB/s "
            "(assumed: the link's full rate, none of it taken by others)",
        ]


def recorded_tiers(knobs: Mapping[str, Any]) -> TierPlan:
    """Host memory of a recorded scheduler, from the knobs of its `config` line; a block is a byte."""
    windows = [group["window"] for group in knobs.get("kv_groups") or () if "window" in group]
    return TierPlan(
        tiers=(KvTier("host", float(knobs["host_blocks"]), inf),),
        connector=NATIVE,
        block_tokens=knobs["block_size"],
        unit_blocks=1,
        block_bytes=1,
        ranks=1,
        host_bytes_per_s=1 / knobs["load_block_s"],
        network_bytes_per_s=0.0,
        stores_outputs=not knobs["offload_prompt_only"],
        ranked=not windows,
        needed_blocks=_needed_blocks(windows, knobs["block_size"]),
        asked_blocks=_asked_blocks(windows, knobs["block_size"]),
        side_bytes=len(windows),
    )


def tier_words(tier: KvTier) -> str:
    """A tier, its size and its rate."""
    rate = "" if tier.kind == "host" or tier.bytes_per_s == inf else f" at {tier.bytes_per_s / 1e9:g} GB/s"
    return f"{tier.capacity_bytes / GIB:,.4g} GiB {tier.kind}{rate}"


def tiers_of(
    request: PoolRequest,
    version: Version,
    cache: Cache,
    said: Said,
) -> TierPlan | None:
    """The tiers that a pool asks for, None for none; InputError for what is not modelled or cannot be."""
    flags = request.flags
    tiers = _tier_plan(request, version, cache)
    config = beyond(flags)
    if config.get("kv_connector") == NATIVE:
        unread = sorted(_extra(flags).keys() - _NATIVE_KEYS)
        said.warnings += [f"kv_connector_extra_config `{key}` is not modelled and was ignored" for key in unread]
    if tiers is not None:
        said.notes += tiers.notes
        if tiers.needed_blocks:
            said.notes.append(
                "KV offload of windows and states (rules of vLLM 0.33; states and Mooncake's store not recorded): what they need "
                "is kept before a prompt's end and where shared prefixes were seen to end; a prefix is found up to such a place"
            )
        if request.data_parallel > 1:
            said.notes.append("KV offload: each data-parallel rank is an engine with host memory of its own, of the stated size")
    elif config and request.role == "mixed":
        said.warnings.append(
            f"vllm flag `kv_transfer_config` is modelled for {NATIVE} with its size, {LMCACHE}, {MOONCAKE} and "
            f"{KVBM} with kv_tiers; transfers of KV blocks by {config.get('kv_connector')} to and from elsewhere are not"
        )
    return tiers


def _tier_plan(request: PoolRequest, version: Version, cache: Cache) -> TierPlan | None:
    flags, has_tiers = request.flags, version.offloads_further
    block_tokens, several = cache.block, cache.windows != (None,)
    block_bytes = int(cache.block_bytes * cache.full_groups)
    connector = _connector(request, has_tiers)
    chunk = _chunk_tokens(flags, connector, block_tokens)
    if connector == NATIVE:
        counts_blocks = version.number < OFFLOAD_BYTES_SINCE
        tiers = _native_tiers(request, block_bytes * chunk // block_tokens, counts_blocks=counts_blocks)
    else:
        tiers = {LMCACHE: _lmcache_tiers, KVBM: _kvbm_tiers}.get(connector or "", lambda asked: asked.tiers)(request)
    if not tiers or connector is None:
        return None
    kinds = [tier.kind for tier in tiers]
    _check(request, version, cache, tiers, connector)
    if connector == NATIVE and kinds[0] != "host":
        raise InputError(
            f"{NATIVE} brings everything by way of host memory, and kv_tiers begins with {kinds[0]}",
            where="deployment.kv_tiers",
            mend=f"put a tier of kind: host before it, or name connector: {LMCACHE}",
        )
    if connector == NATIVE and len(tiers) > 1 and not has_tiers:
        raise InputError(
            f"{NATIVE} of this version of vLLM has host memory alone",
            where="deployment.kv_tiers",
            mend=f"use vllm@0.24.0 or later, or connector: {LMCACHE}",
        )
    if connector == KVBM and kinds not in (["host"], ["host", "nvme"]):
        raise InputError(
            f"{KVBM} is modelled with host memory and disks behind it, and kv_tiers names {', '.join(kinds)}",
            where="deployment.kv_tiers",
            mend="give kind: host, then kind: nvme if there are disks",
        )
    if connector == MOONCAKE and kinds != ["shared"]:
        raise InputError(
            f"{MOONCAKE} keeps KV blocks in one shared store, and kv_tiers names {', '.join(kinds)}",
            where="deployment.kv_tiers",
            mend="leave the others out",
        )
    ranks = request.tensor_parallel * request.pipeline_parallel
    plan = TierPlan(
        tiers,
        connector,
        block_tokens,
        chunk // block_tokens,
        block_bytes,
        ranks,
        next((tier.bytes_per_s for tier in tiers if tier.kind == "host"), request.host_link_bytes_per_s or inf),
        request.network_bytes_per_s * ranks,
        (version.offloads_outputs and connector == NATIVE) or connector == KVBM,
        ranked=version.offload_ranks_requests
        and connector == NATIVE
        and kinds == ["host"]
        and chunk == block_tokens
        and not several,
        needed_blocks=_needed_blocks(cache.windows, block_tokens),
        asked_blocks=_asked_blocks(cache.windows, block_tokens) if connector == NATIVE else 0,
        side_bytes=cache.block_bytes * sum(window is not None for window in cache.windows),
        names=store_names(request, block_tokens, chunk, STORE_TELLS[connector]) if "shared" in kinds else None,
    )
    for tier in tiers:
        if tier.capacity_bytes < plan.unit_bytes:
            raise InputError(
                f"{int(tier.capacity_bytes):,} bytes of {tier.kind} memory hold less than one block of {plan.unit_bytes:,}",
                where="deployment.offload.kv_offloading_size" if kinds == ["host"] else "deployment.kv_tiers",
                mend="give more, or leave the tier out (0)",
            )
    return plan


def _needed_blocks(windows: Iterable[int | None], block_tokens: int) -> int:
    """Blocks before a place whose parts in the windows, the widest, or states it takes to resume there; 0 without any."""
    return max((max(1, -(-(window - 1) // block_tokens)) for window in windows if window is not None), default=0)


def _asked_blocks(windows: Iterable[int | None], block_tokens: int) -> int:
    """Blocks in a row that the connector looks for before such a place (`get_sliding_window_size_in_chunks`, 0.33)."""
    return max((-(-window // block_tokens) for window in windows if window is not None), default=0)


def _chunk_tokens(flags: Mapping[str, Any], connector: str | None, block_tokens: int) -> int:
    """Tokens of what is kept beyond the device as one."""
    chunk, where = block_tokens, "deployment.engine_args.lmcache_chunk_size"
    if connector == LMCACHE:
        chunk = int(flags.get("lmcache_chunk_size") or LMCACHE_CHUNK_TOKENS)
    elif connector == NATIVE:
        chunk, where = int(_extra(flags).get("block_size") or block_tokens), f"{WHERE_FLAG}.kv_connector_extra_config.block_size"
    if chunk % block_tokens:
        raise InputError(
            f"chunks of {chunk} tokens are no whole number of blocks of {block_tokens}",
            where=where,
            mend=f"give a multiple of {block_tokens}",
        )
    return chunk


_NATIVE_KEYS = {"cpu_bytes_to_use", "num_cpu_blocks", "block_size", "spec_name"}


def _extra(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    found = beyond(flags).get("kv_connector_extra_config")
    return found if isinstance(found, Mapping) else {}


def _native_tiers(request: PoolRequest, chunk_bytes: int, *, counts_blocks: bool) -> tuple[KvTier, ...]:
    """Host memory in blocks of its own, as vLLM's connector counted it before 0.14, where the pool does not say the tiers."""
    blocks = _extra(request.flags).get("num_cpu_blocks")
    if request.tiers or blocks is None:
        return request.tiers
    where = f"{WHERE_FLAG}.kv_connector_extra_config.num_cpu_blocks"
    if not counts_blocks:
        raise InputError(
            f"{NATIVE} takes its host memory in bytes since vLLM 0.14", where=where, mend="give cpu_bytes_to_use instead"
        )
    if not isinstance(blocks, int) or blocks < 1:
        raise InputError(f"num_cpu_blocks {blocks!r} is no number of blocks", where=where, mend="give 1 or more")
    size = blocks * chunk_bytes * request.tensor_parallel * request.pipeline_parallel
    return (KvTier("host", size, request.host_link_bytes_per_s or inf),)


def _connector(request: PoolRequest, has_tiers: bool) -> str | None:
    """The connector that keeps KV blocks beyond the device; None where the flags name one of another kind."""
    flags = request.flags
    named = str(beyond(flags).get("kv_connector") or "")
    asked = {tier.connector for tier in request.tiers if tier.connector}
    if len(asked | ({named} if named else set())) > 1:
        raise InputError(
            f"kv_tiers and flags name the connectors {', '.join(sorted(asked | {named} - {''}))}",
            where="deployment.kv_tiers",
            mend="name one connector for all tiers",
        )
    backend = LMCACHE if flags.get("kv_offloading_backend", "native") == "lmcache" else NATIVE
    if backend == LMCACHE and has_tiers and not named:
        raise InputError(
            "kv_offloading_backend: lmcache is a process of its own since vLLM 0.24, to which the flag does not pass the size on",
            where="deployment.engine_args.kv_offloading_backend",
            mend=f"write kv_transfer_config: {{kv_connector: {LMCACHE}, kv_role: kv_both}}, or leave the flag out",
        )
    connector = named or next(iter(asked), backend)
    if connector in (NATIVE, LMCACHE, MOONCAKE, KVBM):
        return connector
    if request.tiers:
        raise InputError(
            f"KV tiers by {connector} are not modelled, only by {NATIVE}, {LMCACHE}, {MOONCAKE} and {KVBM}",
            where=WHERE_FLAG if named else "deployment.kv_tiers",
            mend="name one of these, or remove the tiers",
        )
    return None


def _check(request: PoolRequest, version: Version, cache: Cache, tiers: tuple[KvTier, ...], connector: str) -> None:
    """Refuse tiers where they are not modelled or cannot be."""
    if not cache.prefix_caching:
        raise InputError(
            "KV offload finds blocks by the hashes of the prefix cache, which is off",
            where="deployment.engine_args.enable_prefix_caching",
            mend="write enable_prefix_caching: true, or leave offload out",
        )
    key = "offload" if [tier.kind for tier in tiers] == ["host"] else "kv_tiers"
    several = cache.windows != (None,)
    spans = {
        "models with sliding windows or recurrent layers before vLLM 0.33": several and version.number < SPANS_SINCE,
        "models with sliding windows or recurrent layers": several and connector not in (NATIVE, MOONCAKE),
    }
    cause = f"KV offload by {connector} for {{}} is not modelled"
    none_of(spans, cause, where=f"deployment.{key}", mend=f"remove `deployment.{key}`")
    # vLLM's own names of blocks tell adapters apart; whether the others' do was not read
    beside = {"LoRA adapters": request.lora is not None and connector != NATIVE}
    cause = f"KV offload by {connector} beside {{}} is not modelled yet"
    none_of(beside, cause, where=f"deployment.{key}", mend="leave one of the two out")
    if connector == LMCACHE and request.pipeline_parallel > 1:
        raise InputError(
            "LMCache beside pipeline parallelism is not modelled yet",
            where="deployment.pipeline_parallel",
            mend="use tensor_parallel within a rank instead",
        )
    for tier in tiers:
        if tier.write not in (None, "through") and not (connector == KVBM and (tier.kind, tier.write) == ("nvme", "selective")):
            raise InputError(
                f"{connector} writes every block through to all tiers, not `write: {tier.write}`",
                where="deployment.kv_tiers",
                mend="leave `write` out",
            )


def _kvbm_tiers(request: PoolRequest) -> tuple[KvTier, ...]:
    """The tiers of Dynamo's block manager by its own settings [GB], where the pool does not say them."""
    flags = request.flags
    if request.tiers:
        return request.tiers
    write: WritePolicy = "through" if flags.get("dyn_kvbm_disable_disk_offload_filter") else "selective"
    host, disk = (1e9 * float(flags.get(f"dyn_kvbm_{place}_cache_gb") or 0.0) for place in ("cpu", "disk"))
    found = KvTier("host", host, request.host_link_bytes_per_s or inf), KvTier("nvme", disk, NVME_BYTES_PER_S, write=write)
    return tuple(tier for tier in found if tier.capacity_bytes)


def _lmcache_tiers(request: PoolRequest) -> tuple[KvTier, ...]:
    """LMCache's tiers by its own settings, where the pool does not say them."""
    flags, asked = request.flags, request.tiers
    kinds = {tier.kind: tier for tier in asked}
    ranks = request.tensor_parallel * request.pipeline_parallel
    settings = lmcache_settings(flags)
    if "host" not in kinds and settings.get("local_cpu", True) and not asked:
        size = float(settings.get("max_local_cpu_size", LMCACHE_HOST_GIB)) * GIB * ranks
        kinds["host"] = KvTier("host", size, request.host_link_bytes_per_s or inf)
    if "nvme" not in kinds and settings.get("local_disk"):
        size = float(settings.get("max_local_disk_size", 0.0)) * GIB * ranks
        if size:
            kinds["nvme"] = KvTier("nvme", size, NVME_BYTES_PER_S)
    if "shared" not in kinds and settings.get("remote_url"):
        raise InputError(
            f"LMCache's remote store {settings['remote_url']} is of unknown size",
            where="deployment.kv_tiers",
            mend="say it: kv_tiers: [{kind: shared, bytes: 1.0e+12, bytes_per_s: 25.0e+9}]",
        )
    return tuple(kinds[kind] for kind in ("host", "nvme", "shared") if kind in kinds)


def lmcache_settings(flags: Mapping[str, Any]) -> dict[str, Any]:
    """LMCache's settings: flags of its variables of the environment, and ``lmcache.*`` of the connector's config."""
    inside = {key.removeprefix("lmcache."): value for key, value in _extra(flags).items() if str(key).startswith("lmcache.")}
    stated = {key.removeprefix("lmcache_"): value for key, value in flags.items() if key.startswith("lmcache_")}
    return {**inside, **stated}
