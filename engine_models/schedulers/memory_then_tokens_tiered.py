"""Memory first, then tokens, with host memory behind the blocks: the rules of `memory_then_tokens` over a `HostedTree`.

The prompts that begin with a step hold what they find before any block moves. Copies wait until the steps launched before have
ended, and the step waits for its copies; those to the host and those from it go side by side. So a step lasts as much longer as
the slower of the two.

Source: TensorRT-LLM (`pyexecutor/resource_manager.py`: `prepare_resources`; `kvCacheTransferManager.cpp`:
`syncWithBufferManager`, `syncTransfers`; public copies, read 2026-11). A copy is taken to have the link's full rate (assumed).
"""

from __future__ import annotations

from typing import Any

from engine_models.memory.hosted_tree import HostedTree
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount
from engine_models.schedulers.memory_then_tokens import TwoPassBatch, TwoPassRules, TwoPassScheduler
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class HostCopies:
    """What a copy costs: `token_bytes` of each of `ranks`, which copy their parts side by side at `bytes_per_s`."""

    token_bytes: float
    ranks: int
    bytes_per_s: float


class TieredTwoPassScheduler(TwoPassScheduler):
    """`TwoPassScheduler` over a `HostedTree`, with `host`: what its copies cost."""

    kv: HostedTree

    def __init__(self, rules: TwoPassRules, kv: HostedTree, *, host: HostCopies, **others: Any) -> None:
        super().__init__(rules, kv, **others)
        self.kv = kv
        self._host = host
        self._counted = 0, 0  # tokens sent and brought that steps have waited for
        self._found_there = 0

    def schedule(self, now_s: float) -> TwoPassBatch | None:
        """As of the base."""
        batch = super().schedule(now_s)
        if batch is not None and batch.tokens:
            (sent, brought), kv, host = self._counted, self.kv, self._host
            tokens = max(kv.sent_tokens - sent, kv.brought_tokens - brought)
            self._counted = kv.sent_tokens, kv.brought_tokens
            batch.stall_s += tokens * host.token_bytes / host.bytes_per_s
        return batch

    def _start_all(self, batch: TwoPassBatch, starting: list[Sequence], now_s: float) -> None:
        if self.kv.claims_first:
            for seq in starting:
                row = self._contexts[seq]
                self.kv.claim(seq, row.content, row.prompt)
        super()._start_all(batch, starting, now_s)

    def _start(self, batch: TwoPassBatch, seq: Sequence, now_s: float) -> None:
        entered = seq.first_scheduled_s < 0
        super()._start(batch, seq, now_s)
        if entered:
            there = self.kv.found_there
            self.host_hit_tokens += there
            self.hit_tokens -= there  # the base counts it as found on the device
            self._found_there += there

    def tier_counts(self) -> list[TierCount]:
        """As of the base."""
        kv, size = self.kv, self._host.token_bytes * self._host.ranks
        return [TierCount("host", self._found_there, kv.brought_tokens * size, kv.sent_tokens * size)]


__all__ = ["HostCopies", "TieredTwoPassScheduler"]
