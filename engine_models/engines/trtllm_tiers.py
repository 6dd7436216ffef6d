"""TensorRT-LLM's host memory behind its KV blocks: `kv_cache_config.host_cache_size`, bytes of each rank."""

from __future__ import annotations

from math import inf

from engine_models.declaration import MemoryBudget, PoolRequest
from engine_models.engines.trtllm_flags import group
from engine_models.engines.trtllm_states import reuses
from engine_models.schedulers.memory_then_tokens_tiered import HostCopies
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

PRIORITY, LEAST_PRIORITY = 35, 30
"""Of blocks whose request states none, and from which blocks are copied unless `secondary_offload_min_priority` says it
(datasheet: `executor.h`, `evictionPolicy.cpp` at 05a91919, read 2026-11)."""


@dataclass(frozen=True)
class HostMemory:
    """`blocks` of a rank in host memory, what their copies cost, and whether prompts hold what they find before any moves.

    `shares` says what part of a replica's memory that is.
    """

    blocks: int
    copies: HostCopies
    claims_first: bool
    shares: str = ""

    @property
    def note(self) -> str:
        """What is said of it."""
        rate = "" if self.copies.bytes_per_s == inf else f" at {self.copies.bytes_per_s / 1e9:g} GB/s"
        return (
            f"host memory of {self.blocks:,} blocks a rank{self.shares}: every used block that the device gives up is copied "
            f"there, and back"
            f"{rate} where a prompt finds it; steps wait for copies (assumed: the link's full rate; rules read, not recorded)"
        )


def host_of(
    request: PoolRequest, memory: MemoryBudget, block_tokens: int, *, claims_first: bool
) -> tuple[HostMemory | None, str]:
    """The host memory that a pool asks for, by `kv_tiers`, `offload` or TensorRT-LLM's own key, None for none; and what is to be
    said where a flag keeps it empty. InputError for what cannot be.
    """
    kv, ranks = group(request.flags, "kv_cache_config"), request.tensor_parallel * request.pipeline_parallel
    asked, rate, shares = int(kv["host_cache_size"] or 0), request.host_link_bytes_per_s, ""
    for tier in request.tiers:
        if tier.kind != "host" or tier.connector is not None or tier.write not in (None, "back") or tier.latency_s:
            raise InputError(
                f"TensorRT-LLM is simulated with blocks in host memory alone, which go there when the device gives them up, not "
                f"with a tier of kind: {tier.kind}"
                + (f", connector: {tier.connector}" if tier.connector else "")
                + (f", write: {tier.write}" if tier.write else ""),
                where="deployment.kv_tiers",
                mend="one tier of kind: host, with bytes and perhaps bytes_per_s",
            )
        if asked:
            raise InputError(
                "kv_cache_config.host_cache_size says the same as the pool's tier in host memory, and both are given",
                where="deployment.engine_args.kv_cache_config.host_cache_size",
                mend="leave one of the two out (the flag counts bytes of a rank, the tier those of a replica)",
            )
        asked, rate = int(tier.capacity_bytes / ranks), tier.bytes_per_s
        if ranks > 1:
            shares = f" (one of {ranks} equal parts of the tier, {asked / 1e9:.3g} GB; host_cache_size counts bytes of a rank)"
    blocks = int(asked // memory.kv_bytes_per_token // block_tokens)
    if not blocks:
        small = f"{asked:,} bytes of host memory hold no block of {block_tokens} tokens: none is kept there"
        return None, small if asked else ""
    newer, older = kv["cold_tier_offload_min_priority"], kv["secondary_offload_min_priority"]  # two names of the same
    least = older if newer is None else newer
    if not reuses(request)[0]:
        return None, "host_cache_size changes nothing without block reuse: nothing is found again"
    if kv["onboard_blocks"] is False or (LEAST_PRIORITY if least is None else least) > PRIORITY:
        return None, (
            f"host_cache_size changes nothing: onboard_blocks is off, or blocks have priority {PRIORITY} and "
            "secondary_offload_min_priority is above that"
        )
    return HostMemory(blocks, HostCopies(memory.kv_bytes_per_token, ranks, rate or inf), claims_first, shares), ""


__all__ = ["HostMemory", "host_of"]
