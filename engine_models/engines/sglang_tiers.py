"""SGLang's hierarchical cache: host memory behind the radix tree, a storage backend behind it."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, Literal

from engine_models.declaration import PoolRequest, Said
from engine_models.engines.sglang_memory import state_bytes
from engine_models.engines.sglang_windows import pools_windows, window_share
from engine_models.memory.tiered_radix import FurtherTier, TieredPool, TieredTree, TokenStore
from engine_models.model.architecture import kv_groups
from engine_models.parts.tiers import KvTier, Link, StoreNames, TierKind, WritePolicy
from engine_models.refusals import none_of
from engine_models.schedulers.prefill_first_tiered import Prefetch, PrefetchPolicy
from engine_models.store_names import MODEL, store_names
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

GIB = 1 << 30
GB = 10**9
RATIO = 2.0
"""Host tokens over those of the device unless a size is given (datasheet: `hicache_ratio`, SGLang 0.5, `server_args.py`)."""
POLICIES: dict[str, WritePolicy] = {
    "write_through": "through",
    "write_through_selective": "selective",
    "write_back": "back",
}
LOCAL_BACKENDS = ("file",)
"""Backends on the disks of a machine; all others are shared."""
OFFLOADS = "disaggregation_decode_enable_offload_kvcache"
WHERE = "deployment.engine_args.hicache_storage_backend"
STORE_TELLS = (MODEL,)
"""What the names of pages in a store tell (datasheet: the prefix in `mem_cache/storage/mooncake_store/mooncake_store.py` at
00fe477f, read 2026-11; the rank that stands there too does not tell of how many)."""


@dataclass(frozen=True)
class TierPlan:
    """Tiers of a pool, resolved.

    `token_bytes`, and `end_bytes` of what only a prefix's end has, are of one rank, of which `ranks` load and store their parts
    side by side.
    """

    host_tokens: int
    write: WritePolicy
    further: KvTier | None
    prefetch: Prefetch
    token_bytes: float
    ranks: int
    host_bytes_per_s: float
    network_bytes_per_s: float
    end_bytes: float = 0.0
    writes_only: bool = False
    names: StoreNames | None = None

    def pool(self, tokens: int, page_tokens: int, eviction_policy: str, *, pairs: bool = False) -> TieredPool:
        """The pool of a replica and its tree."""
        tree = TieredTree(
            page_tokens,
            eviction_policy,
            host_tokens=self.host_tokens,
            write=self.write,
            further=self.further_tier(page_tokens) if self.further is not None else None,
        )
        link = Link(self.host_bytes_per_s)
        return TieredPool(tokens, page_tokens, tree, link, self.token_bytes, self.end_bytes, pairs=pairs)

    def further_tier(self, page_tokens: int) -> FurtherTier:
        """The store behind the host, as a replica uses it."""
        tier = self.further
        assert tier is not None
        token_bytes, end_bytes = self.token_bytes * self.ranks, self.end_bytes * self.ranks
        store = TokenStore(int(tier.capacity_bytes // token_bytes), page_tokens, token_bytes)
        read, write = (Link(tier.bytes_per_s, tier.latency_s) for _ in range(2))
        if tier.kind == "nvme":
            return FurtherTier("nvme", store, token_bytes, [read], [write], end_bytes)
        own = [Link(self.network_bytes_per_s or inf) for _ in range(2)]
        return FurtherTier("shared", store, token_bytes, [read, own[0]], [own[1], write], end_bytes)

    @property
    def kinds(self) -> tuple[TierKind, ...]:
        """The tiers; a decode server, which has no tokens in host memory, has the store alone."""
        found: tuple[TierKind, ...] = () if self.writes_only else ("host",)
        return found if self.further is None else (*found, self.further.kind)

    @property
    def notes(self) -> list[str]:
        """What is said of them."""
        if self.writes_only:
            return [
                "a decode server writes answers to the store, in whole pages behind those of the prompt, which the prefill "
                "servers write (rules read, not recorded): at the end of a row, as if host memory had room"
            ]
        behind = ""
        if self.further is not None:
            rate = "" if self.further.bytes_per_s == inf else f" at {self.further.bytes_per_s / GB:g} GB/s"
            behind = (
                f"; behind it {self.further.capacity_bytes / GIB:,.4g} GiB {self.further.kind}{rate}, read ahead "
                f"({self.prefetch.policy})"
            )
        return [
            f"hierarchical cache: {self.host_tokens:,} tokens in host memory, written {self.write}, loaded back at "
            f"{self.host_bytes_per_s / GB:g} GB/s a device beside the step that needs them{behind} "
            "(assumed: the link's full rate; writes to the host take less than a step)"
        ]


def recorded_tiers(knobs: Mapping[str, Any]) -> TierPlan:
    """The host's memory of a recorded scheduler, from the knobs of its `config` line; its loads take no time."""
    write = POLICIES[knobs["hicache_write_policy"]]
    return TierPlan(knobs["host_tokens"], write, None, Prefetch(), 1.0, 1, inf, inf)


def tiers_of(
    request: PoolRequest, version: tuple[int, ...], tokens: int, token_bytes: float, page_tokens: int, said: Said
) -> TierPlan | None:
    """The tiers that a pool asks for, by `kv_tiers` or by SGLang's flags; None for none, InputError for what cannot be."""
    tiers = _tier_plan(request, version, tokens, token_bytes, page_tokens)
    if tiers is None and request.tiers and request.role == "decode":
        said.notes.append("decode servers read no store: it is the prefill pools' alone, and what these would write is left out")
    if tiers is not None:
        said.notes += tiers.notes
        if tiers.end_bytes:
            said.notes.append(
                "windows and states of recurrent layers beside the hierarchical cache (rules read, not recorded): a load brings "
                "the window before its end alone (the engine may bring more) and one state; these are taken to have room in host "
                "memory"
            )
        if request.data_parallel > 1:
            said.notes.append("each data-parallel rank has a hierarchical cache of its own, of the stated size")
    return tiers


def _tier_plan(
    request: PoolRequest, version: tuple[int, ...], tokens: int, token_bytes: float, page_tokens: int
) -> TierPlan | None:
    flags = request.flags
    asked = {tier.kind: tier for tier in request.tiers}
    wanted, backend = bool(flags.get("enable_hierarchical_cache")), flags.get("hicache_storage_backend")
    if flags.get(OFFLOADS):
        store = asked.get("shared") if asked.keys() == {"shared"} else None
        return _written(request, version, store, token_bytes, page_tokens)
    if request.role == "decode" and asked.keys() == {"shared"} and not wanted:
        return None
    if not wanted and not asked:
        if backend:
            raise InputError(
                "hicache_storage_backend needs enable_hierarchical_cache", where=WHERE, mend="write both, or neither"
            )
        return None
    _check(request, asked, wanted=wanted)
    ranks = request.tensor_parallel * request.pipeline_parallel
    if "host" in asked:
        host_tokens = int(asked["host"].capacity_bytes // (token_bytes * ranks))
    elif flags.get("hicache_size"):
        host_tokens = int(float(flags["hicache_size"]) * GB // token_bytes)
    else:
        host_tokens = int(tokens * float(flags.get("hicache_ratio") or RATIO))
    host_tokens -= host_tokens % page_tokens
    write = POLICIES[str(flags.get("hicache_write_policy", "write_through"))]
    host_rate = asked["host"].bytes_per_s if "host" in asked else request.host_link_bytes_per_s or inf
    if "host" in asked and asked["host"].write is not None:
        write = asked["host"].write
    further = asked.get("nvme") or asked.get("shared")
    if backend:
        local = backend in LOCAL_BACKENDS
        if further is None or (further.kind == "nvme") != local:
            kind = "nvme" if local else "shared"
            raise InputError(
                f"the size of the storage backend {backend} is unknown",
                where=WHERE,
                mend=f"say it: kv_tiers: [{{kind: {kind}, bytes: 1.0e+12, bytes_per_s: 5.0e+9}}]",
            )
    every, end = _parts_of(request, version, token_bytes)
    network = request.network_bytes_per_s * ranks
    names = store_names(request, page_tokens, page_tokens, STORE_TELLS)
    return TierPlan(host_tokens, write, further, _prefetch(flags), every, ranks, host_rate, network, end, names=names)


def _written(
    request: PoolRequest, version: tuple[int, ...], store: KvTier | None, token_bytes: float, page_tokens: int
) -> TierPlan:
    """What a decode server writes its answers to; InputError where it does not."""
    where = f"deployment.engine_args.{OFFLOADS}"
    if request.role != "decode":
        raise InputError(f"{OFFLOADS} is a decode server's", where=where, mend="remove it here")
    if store is None:
        raise InputError(
            f"{OFFLOADS} needs a store that the prefill servers read",
            where=where,
            mend="put it around the pools: deployment.kv_tiers: [{kind: shared, bytes: 1.0e+12, bytes_per_s: 5.0e+9}]",
        )
    if request.arch.has("linear") or pools_windows(request, version):
        raise InputError(
            f"SGLang's decode servers write no caches like those of {request.arch.name} to a store (states, or windows in pools "
            "of their own)",
            where=where,
            mend="remove it",
        )
    ranks = request.tensor_parallel * request.pipeline_parallel
    network = request.network_bytes_per_s * ranks
    names = store_names(request, page_tokens, page_tokens, STORE_TELLS)
    prefetch = _prefetch(request.flags)
    return TierPlan(0, "through", store, prefetch, token_bytes, ranks, inf, network, writes_only=True, names=names)


def _parts_of(request: PoolRequest, version: tuple[int, ...], token_bytes: float) -> tuple[float, float]:
    """Of the bytes of a token those that all tokens of a prefix have; and the bytes that only its end has: windows, states."""
    groups = kv_groups(request.arch, request.formats.kv_cache, request.tensor_parallel, request.pipeline_parallel)
    slides = [group for group in groups if group.window_tokens]
    if not slides or not pools_windows(request, version):
        return token_bytes, state_bytes(request)
    share = window_share(request, version)
    seen = sum(group.bytes_per_token_per_rank for group in slides)
    whole = sum(group.bytes_per_token_per_rank for group in groups) - seen
    ends = sum(group.window_tokens * group.bytes_per_token_per_rank for group in slides)
    return token_bytes * whole / (whole + share * seen), ends + state_bytes(request)


def _prefetch(flags: dict[str, Any]) -> Prefetch:
    extra = flags.get("hicache_storage_backend_extra_config") or {}
    policy: PrefetchPolicy = flags.get("hicache_storage_prefetch_policy", "timeout")
    return Prefetch(
        policy,
        int(extra.get("prefetch_threshold", 256)),
        float(extra.get("prefetch_timeout_base", 1.0)),
        float(extra.get("prefetch_timeout_per_ki_token", 0.25)),
    )


def _check(request: PoolRequest, asked: dict[TierKind, KvTier], *, wanted: bool) -> None:
    """Refuse tiers where they are not modelled or cannot be."""
    flags = request.flags
    key: Literal["kv_tiers", "engine_args.enable_hierarchical_cache"] = (
        "engine_args.enable_hierarchical_cache" if wanted else "kv_tiers"
    )
    lacking = {
        "decode pools": request.role == "decode",
        "radix_eviction_policy mru": flags.get("radix_eviction_policy") == "mru",
        "disks and a shared store at once": "nvme" in asked and "shared" in asked,
    }
    cause = "SGLang's hierarchical cache beside {} is not modelled yet"
    none_of(lacking, cause, where=f"deployment.{key}", mend="leave one of the two out")
    if flags.get("disable_radix_cache"):
        raise InputError(
            "the hierarchical cache lies behind the radix tree, which is off",
            where="deployment.engine_args.disable_radix_cache",
            mend="leave the flag out, or the tiers",
        )
    if asked and "host" not in asked and not wanted:
        raise InputError(
            f"SGLang reaches {next(iter(asked))} by way of host memory alone",
            where="deployment.kv_tiers",
            mend="put a tier of kind: host before it, or write enable_hierarchical_cache: true",
        )
    for kind, tier in asked.items():
        if tier.connector is not None or (kind != "host" and tier.write not in (None, "through")):
            raise InputError(
                f"SGLang's tier {kind} takes no " + ("connector" if tier.connector else f"write: {tier.write}"),
                where="deployment.kv_tiers",
                mend="leave it out; hicache_write_policy is that of the host",
            )
