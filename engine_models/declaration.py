"""What an engine's declaration yields for one pool: everything a replica is built from, and nothing of the engine's own rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from engine_models.cost.drafting import Speculation
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import Formats
from engine_models.model.blocks import Architecture

Mode = Literal["jump", "step", "record"]
"""How a scheduler runs: proving runs of equal steps; plainly, the reference; or noting the rows of every batch."""


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


@dataclass(frozen=True)
class MemoryLine:
    """One use of device memory before the KV cache: its key in reports, its words, its bytes."""

    key: str
    label: str
    bytes: int


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of one device: what the engine may use, what it needs besides the KV cache, what is left in whole blocks.

    `lines` are the uses before the KV cache in the engine's own words. `host_blocks` are the blocks of the cache that host memory
    holds besides.
    """

    device_bytes: int
    usable_bytes: int
    lines: tuple[MemoryLine, ...]
    kv_bytes: int
    kv_bytes_per_token: float
    block_bytes: int
    blocks: int
    host_blocks: int = 0

    def bytes_of(self, key: str) -> int:
        """Bytes of the line with this key, 0 where the engine has none."""
        return sum(line.bytes for line in self.lines if line.key == key)

    def as_dict(self) -> dict[str, int | float]:
        """The budget by key; uses that every engine may have are always there."""
        used = {f"{key}_bytes": 0 for key in ("weight", "activation", "other", "graph", "draft")}
        return {
            "device_bytes": self.device_bytes,
            "usable_bytes": self.usable_bytes,
            **used,
            **{f"{line.key}_bytes": line.bytes for line in self.lines},
            "kv_bytes": self.kv_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "block_bytes": self.block_bytes,
            "blocks": self.blocks,
        }


@dataclass(frozen=True)
class Limits:
    """What one rank takes, in requests and tokens.

    rows : requests that run at once.
    step_tokens : most tokens of a step.
    context_tokens : the engine's context; a prompt with its asked-for limit may not be longer.
    kv_tokens : tokens of full attention that the KV cache holds at once.
    kv_blocks, block_tokens : the blocks (or pages) in which the cache is handed out, and the tokens of one.
    prompt_tokens : longest prompt that is taken.
    row_tokens : longest prompt and answer together; an answer is cut there.
    spare_tokens : memory that a row's last step may hold beyond its own tokens, for drafts that come to nothing [tokens].
    """

    rows: int
    step_tokens: int
    context_tokens: int
    kv_tokens: int
    kv_blocks: int
    block_tokens: int
    prompt_tokens: int
    row_tokens: int
    spare_tokens: int = 0


@dataclass(frozen=True)
class Executor:
    """How a replica executes: batches scheduled ahead, pipeline stages, ranks that step together, and who of them gets a request.

    rank_router : "least_loaded", or "round_robin".
    """

    depth: int = 1
    stages: int = 1
    ranks: int = 1
    rank_router: Literal["least_loaded", "round_robin"] = "least_loaded"


@dataclass(frozen=True)
class FrontEnd:
    """What stands before the scheduler of a replica.

    before_s : time of a request in it [s].
    tokenise_token_s : time of the one tokeniser for each token of a prompt, one prompt after the other [s].
    inflight : requests that it lets in at once, None for no limit; what becomes of the others is `on_full`.
    timeout_s : longest time of a request in the server, None for no limit.
    """

    before_s: float = 0.0
    tokenise_token_s: float = 0.0
    inflight: int | None = None
    on_full: Literal["429", "503", "wait"] = "wait"
    timeout_s: float | None = None


@dataclass(frozen=True)
class EnginePlan:
    """One pool's engine, resolved: what others may read of it.

    `scheduler` builds a fresh scheduler of one rank with its KV cache. `prefix_caching` says whether equal contents of two
    requests matter to it. `speculation` is what is drafted, if anything. `sources` are those of the overheads.
    """

    engine: str
    version: str
    limits: Limits
    memory: MemoryBudget
    scheduler: Callable[[Mode], Any]
    costs: StepCosts
    executor: Executor = field(default_factory=Executor)
    front: FrontEnd = field(default_factory=FrontEnd)
    prefix_caching: bool = False
    speculation: Speculation | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    sources: Mapping[str, dict[str, Any]] = field(default_factory=dict)
