"""An engine of fixed groups: up to `max_batch_size` waiting requests are padded to the longest and computed until the last ends.

Every row costs as the longest prompt does, rows whose answer has ended still cost, and whoever arrives waits for the whole group.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.terms import HostOverhead, Parallelism, Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    Limits,
    MemoryBudget,
    MemoryLine,
    PoolRequest,
    Support,
)
from engine_models.flags import Flag, FlagTable
from engine_models.launcher import Launcher
from engine_models.model.architecture import kv_bytes_per_token, weight_bytes_per_rank
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import Run, Scheduler, State
from engine_models.parts.sequence import Sequence
from hardware_profiles.errors import InfeasibleError


class StaticBatchScheduler(Scheduler):
    """One group at a time."""

    def __init__(self, rows: int, context_tokens: int, *, jumps: bool) -> None:
        self.rows, self.context_tokens, self.jumps = rows, context_tokens, jumps
        self.waiting: deque[Sequence] = deque()
        self.group: list[Sequence] = []
        self.live: list[Sequence] = []
        self.steps = self.longest = 0  # answer tokens of the group so far; tokens of its longest prompt

    def add(self, seq: Sequence) -> None:
        self.waiting.append(seq)

    def has_work(self) -> bool:
        return bool(self.waiting or self.live)

    def schedule(self, now_s: float) -> Batch | None:
        if self.live:
            return self._decode(1)
        if not self.waiting:
            return None
        self.live = [self.waiting.popleft() for _ in range(min(self.rows, len(self.waiting)))]
        self.group, self.steps = list(self.live), 0
        self.longest = max(seq.prompt_tokens for seq in self.group)
        batch = Batch(self.next_number)
        for seq in self.group:
            seq.first_scheduled_s = now_s
            batch.serve(self.longest, 0, decodes=False)
        return self._emit(batch, 1)

    def _shape(self, number: int) -> Batch:
        batch, rows = Batch(number), len(self.group)
        batch.tokens = batch.decode_rows = batch.decode_tokens = rows
        batch.decode_kv_tokens = rows * (self.longest + self.steps)
        return batch

    def _decode(self, steps: int) -> Batch:
        self.steps += steps - 1
        return self._emit(self._shape(self.next_number + steps - 1), steps)

    def _emit(self, batch: Batch, steps: int) -> Batch:
        first, self.next_number = self.next_number, self.next_number + steps
        self.steps += 1
        for seq in self.live:
            seq.emit(first, batch.number)
        batch.finishing = [s for s in self.live if s.prompt_tokens + self.steps >= s.final_length]
        return batch

    def settle(self, batch: Batch) -> list[Sequence]:
        self.processed_number = batch.number
        self.live = [seq for seq in self.live if seq not in batch.finishing]
        return batch.finishing

    def state(self) -> State:
        used = len(self.group) * self.context_tokens if self.live else 0
        return len(self.live), len(self.waiting), used, self.rows * self.context_tokens

    def close(self) -> None:
        pass

    def run(self) -> Run | None:
        steps = min((s.final_length - s.prompt_tokens - self.steps for s in self.live), default=0)
        return Run(steps, self._shape(self.next_number), deaf=True) if self.jumps and steps > 1 else None

    def take(self, steps: int) -> tuple[Batch, int, int]:
        self.processed_number = self.next_number + steps - 2
        used = self.state()[2]
        return self._decode(steps), used * steps, used


def plan(request: PoolRequest, version: str | None) -> EnginePlan:
    arch, tp, device = request.arch, request.tensor_parallel, request.device_memory_bytes
    rows = int(request.flags.get("max_batch_size", 8))
    context = int(request.flags.get("max_length", min(arch.max_context_tokens, 4096)))
    weights = weight_bytes_per_rank(arch, request.formats.weights, tp, 1)
    per_token = kv_bytes_per_token(arch, request.formats.kv_cache) / tp
    cache = int(rows * context * per_token)
    if weights + cache > device:
        raise InfeasibleError(
            f"{rows} rows of {context} tokens do not fit", where="deployment", mend=request.more_memory
        )
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version),
        limits=Limits(rows, rows * context, context, rows * context, rows, context, context - 1, context),
        memory=MemoryBudget(
            device, device, (MemoryLine("weight", "weights", weights),), cache, per_token, cache // rows, rows
        ),
        scheduler=lambda mode: StaticBatchScheduler(rows, context, jumps=mode == "jump"),
        costs=StepCosts(
            arch, request.formats, Terms(HostOverhead(1e-3, 0.0)), TableRange(rows * context, rows, context), Parallelism(tp),
        ),
        notes=(f"static batches of up to {rows} rows; 1 ms of host time a step (assumed)",),
    )  # fmt: skip


FLAGS: dict[str, Any] = {"max_batch_size": Flag("int", 8, low=1), "max_length": Flag("int", None, low=2)}
ENGINE = Engine(
    name="static_batch",
    title="Static batch",
    versions={"1.0": {}},
    devices={"gpu": "any"},
    formats={name: Support(frozenset({"gpu"}), "any") for name in ("bf16", "fp16")},
    features={},
    flags=lambda: FlagTable("static_batch", FLAGS, Launcher(("static-batch",), example="static-batch --flag value")),
    same_as={"rows": "max_batch_size", "context": "max_length"},
    kernels="vllm",
    plan=plan,
)
