"""What an engine's declaration yields for one pool: everything a replica is built from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from engine_models.cost.drafting import Speculation
from engine_models.cost.sampling import Sampler
from engine_models.cost.step_time import Formats, Fp32Router, HostOverhead
from engine_models.memory.host_tier import HostTier
from engine_models.memory.hybrid_kv import HybridKV
from engine_models.memory.paged_kv import PagedKV
from engine_models.model.blocks import Architecture
from engine_models.schedulers.continuous import ContinuousRules, ContinuousScheduler
from engine_models.schedulers.windowed import WindowedScheduler


@dataclass(frozen=True)
class PoolRequest:
    """What a scenario asks of an engine for one pool.

    `flags` are the engine's own flags by snake_case name, already parsed. `device_memory_bytes` is what the driver
    reports; `device_name` serves defaults that engines key to a product. `data_parallel` are the ranks that share the experts
    of one replica, each with its own attention, scheduler and KV cache (1: none).
    """

    arch: Architecture
    formats: Formats
    device_name: str
    device_memory_bytes: int
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    expert_parallel: int = 1
    flags: dict[str, Any] = field(default_factory=dict)
    speculation: Speculation | None = None
    offload: HostMemory | None = None

    @property
    def more_memory(self) -> str:
        """What to try where the model does not fit."""
        parallelism = "tensor or data parallelism" if self.data_parallel > 1 else "tensor parallelism"
        return f"more {parallelism}, a smaller number format, or larger devices"


@dataclass(frozen=True)
class HostMemory:
    """Host memory for KV blocks of one replica: bytes, and the rate of a copy to one device [byte/s]."""

    capacity_bytes: int
    link_bytes_per_s: float
    stores_outputs: bool = False


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of one device: what the engine may use, what it needs besides the KV cache, what is left.

    `draft_bytes` are the weights of a drafter (speculative decoding), beside `weight_bytes`.
    """

    device_bytes: int
    usable_bytes: int
    weight_bytes: int
    activation_bytes: int
    other_bytes: int
    graph_bytes: int
    kv_bytes: int
    kv_bytes_per_token: float
    block_bytes: int
    blocks: int
    draft_bytes: int = 0

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of one replica holds."""
        return 0 if not self.block_bytes else self.blocks * round(self.block_bytes / self.kv_bytes_per_token)


@dataclass(frozen=True)
class EnginePlan:
    """One pool's engine, resolved: scheduler rules, KV cache, executor, overheads, and what was assumed."""

    engine: str
    version: str
    rules: ContinuousRules
    memory: MemoryBudget
    capacity_blocks: int
    block_tokens: int
    prefix_caching: bool
    unhashed_to_head: bool
    depth: int
    graph_sizes: tuple[int, ...]
    host: HostOverhead
    front_end_s: float
    tokenise_token_s: float
    truncated_sampling: bool = False
    sampler: Sampler = "sort"
    kv_windows: tuple[int | None, ...] = (None,)
    window_switches: dict[str, bool] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    overhead_sources: dict[str, dict[str, Any]] = field(default_factory=dict)
    speculation: Speculation | None = None
    offload: HostMemory | None = None
    host_blocks: int = 0
    moe_backend: str | None = None
    fixed_grid_attention: bool = False  # prompts and decoding rows share a call of FlashAttention 2
    fp32_router: Fp32Router = "cublas"  # how a router that the model wants in float32 is computed
    rank_router: str = "least_loaded"  # of requests to data-parallel ranks; or "round_robin"

    def scheduler(self, *, aggregate: bool = True, record_rows: bool = False) -> ContinuousScheduler:
        """Build a fresh scheduler with its KV cache."""
        kv: PagedKV | HybridKV
        if self.kv_windows == (None,):
            kv = PagedKV(
                self.capacity_blocks,
                self.block_tokens,
                prefix_caching=self.prefix_caching,
                unhashed_to_head=self.unhashed_to_head,
            )
        else:
            kv = HybridKV(
                self.capacity_blocks,
                self.block_tokens,
                self.kv_windows,
                prefix_caching=self.prefix_caching,
                unhashed_to_head=self.unhashed_to_head,
                most_in_flight_tokens=self.depth * self.rules.max_num_batched_tokens,
                max_model_len=self.rules.max_model_len,
                **self.window_switches,
            )
        host: HostTier | None = None
        if self.offload is not None and self.host_blocks:
            host = HostTier(
                self.host_blocks,
                self.block_tokens,
                block_bytes=self.memory.block_bytes,
                link_bytes_per_s=self.offload.link_bytes_per_s,
                stores_outputs=self.offload.stores_outputs,
            )
        plain = host is None and aggregate and not record_rows
        if isinstance(kv, HybridKV) and plain and WindowedScheduler.serves(self.rules):
            return WindowedScheduler(self.rules, kv)
        return ContinuousScheduler(self.rules, kv, aggregate=aggregate, record_rows=record_rows, host=host)

    def tokens_held(self) -> int:
        """Tokens of full attention that the KV cache of one replica holds at once."""
        full = max(1, sum(window is None for window in self.kv_windows))
        return self.capacity_blocks // full * self.block_tokens
