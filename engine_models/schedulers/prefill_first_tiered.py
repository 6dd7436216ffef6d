"""Prefill before decode over a tree in several tiers: SGLang's scheduler with its hierarchical cache.

A request that is sure of its place in a step loads what the host holds of its prompt behind what the device holds, at least
`LEAST_LOAD_TOKENS` tokens, all of it or nothing; the copy goes on layer by layer beside the step, which cannot be shorter. Where
a store stands behind the host, a request that arrives and lacks enough tokens has them read into the host, if the store has as
many; it is passed over until they are there, or for as long as the policy has patience, and keeps what has come by then.
"""

from __future__ import annotations

from typing import Any, Literal

from engine_models.memory.radix import Content, Node
from engine_models.memory.tiered_radix import LEAST_LOAD_TOKENS, FurtherTier, TieredPool
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import INFINITY
from engine_models.parts.sequence import Sequence
from engine_models.parts.tiers import TierCount
from engine_models.schedulers.prefill_first import (
    PrefillFirstBatch,
    PrefillFirstRules,
    PrefillFirstScheduler,
    _Row,
)
from engine_models.schedulers.store_behind import UsesStore
from hardware_profiles.records import dataclass

PrefetchPolicy = Literal["best_effort", "wait_complete", "timeout"]


@dataclass(frozen=True)
class Prefetch:
    """When a store is read ahead, and how long a request waits for it. Names are SGLang's.

    Attributes
    ----------
    policy : `best_effort` waits for nothing, `wait_complete` for all, `timeout` for as long as below.
    threshold_tokens : tokens that must be lacking, and found, for a read.
    timeout_base_s, timeout_ki_token_s : a read has so long, and so long for every 1,024 tokens.
    """

    policy: PrefetchPolicy = "timeout"
    threshold_tokens: int = 256
    timeout_base_s: float = 1.0
    timeout_ki_token_s: float = 0.25


@dataclass
class _Reading:
    """A read for one request: from which of its tokens to which, when it began and ends, and when patience does [s]."""

    first: int
    last: int
    begin_s: float
    there_s: float
    until_s: float


class TieredPrefillFirstScheduler(UsesStore, PrefillFirstScheduler):
    """The rule over a `TieredPool`. Parameters as of the base, and

    prefetch : how the store behind the host is read ahead. ranks : that load their parts side by side.
    """

    kv: TieredPool

    def __init__(
        self,
        rules: PrefillFirstRules,
        kv: TieredPool,
        *,
        prefetch: Prefetch,
        ranks: int = 1,
        **others: Any,
    ) -> None:
        super().__init__(rules, kv, **others)
        self.kv = kv
        self._prefetch, self._ranks = prefetch, ranks
        self._reading: dict[Sequence, _Reading] = {}
        self._loaded: dict[Sequence, list[tuple[int, str]]] = {}  # for the batch that is formed: tokens, where they come from
        self._now_s = 0.0

    def schedule(self, now_s: float) -> PrefillFirstBatch | None:
        """As of the base."""
        self._now_s = self.kv.tree.now_s = now_s
        self.kv.tree.loads_ended()
        return super().schedule(now_s)

    def take(self, steps: int) -> tuple[Batch, int, int]:
        """As of the base."""
        self.kv.tree.loads_ended()
        return super().take(steps)

    # -- the store ------------------------------------------------------------------------------------------

    @property
    def further(self) -> FurtherTier | None:
        """As of the base."""
        return self.kv.tree.further

    def _receive(self, seq: Sequence) -> None:
        super()._receive(seq)
        self._look_ahead(seq)

    def _look_ahead(self, seq: Sequence) -> None:
        """A request is taken into the waiting queue: see what the store has of it."""
        self._read_ahead(seq, seq.group_state.content, max(seq.arrival_s, self._now_s))

    def _read_ahead(self, seq: Sequence, content: Content, now_s: float) -> None:
        """Begin to read what the store has of a prompt behind what is here, if that is enough."""
        tree = self.kv.tree
        further, rule = tree.further, self._prefetch
        if further is None:
            return
        limit = self.kv.keys(seq.length) // self.kv.page_tokens * self.kv.page_tokens
        position, node = tree.match(content, limit)
        known = position + sum(each.length for each in tree.below(content, limit, node, position))
        if limit - known < rule.threshold_tokens:
            return
        found = further.store.find(content, limit, now_s)
        if found - known < rule.threshold_tokens:
            return
        there_s = further.read(found - known, now_s)
        patience_s = {
            "best_effort": 0.0,
            "wait_complete": INFINITY,
            "timeout": rule.timeout_base_s + rule.timeout_ki_token_s * (found - known) / 1024,
        }[rule.policy]
        self._reading[seq] = _Reading(known, found, now_s, there_s, now_s + patience_s)

    def cancel(self, seq: Sequence) -> bool:
        """As of the base; what a store has read for it so far is not kept (assumed)."""
        self._reading.pop(seq, None)
        return super().cancel(seq)

    def _passes_over(self, seq: Sequence, admitted: list[tuple[Sequence, int, int, bool]]) -> bool:
        reading = self._reading.get(seq)
        if reading is None:
            return False
        if self._now_s < min(reading.there_s, reading.until_s):
            return True
        del self._reading[seq]
        tree = self.kv.tree
        assert tree.further is not None
        share = 1.0
        if self._now_s < reading.there_s:
            share = (self._now_s - reading.begin_s) / (reading.there_s - reading.begin_s)
        tokens = int((reading.last - reading.first) * share)
        last = reading.first + tokens - tokens % self.kv.page_tokens
        tree.add_away(seq.group_state.content, reading.first, last, tree.further.kind)
        return False

    def wake_s(self) -> float:
        """When the next read has ended, or patience with it has."""
        due = (min(each.there_s, each.until_s) for each in self._reading.values())
        return min((due_s for due_s in due if due_s > self._now_s), default=INFINITY)

    # -- the host -------------------------------------------------------------------------------------------

    def _below(self, seq: Sequence, row: _Row, node: Node, position: int) -> list[Node]:
        """What the host has of a request's tokens behind what the device has, which ends at a node."""
        limit = self.kv.keys(seq.length - 1)
        return self.kv.tree.below(row.content, limit - limit % self.kv.page_tokens, node, position)

    def _away_tokens(self, seq: Sequence, row: _Row, node: Node) -> int:
        """As of the base: of the host."""
        return sum(each.length for each in self._below(seq, row, node, row.matched))

    def _look_up(self, seq: Sequence) -> int:
        """As of the base; what the host has counts in the order of the queue."""
        row: _Row = seq.group_state
        found = super()._look_up(seq)
        row.matched = min(found + sum(each.length for each in self._below(seq, row, row.node, found)), seq.length - 1)
        return found

    def _bring(self, seq: Sequence, row: _Row, node: Node) -> tuple[int, Node]:
        kv = self.kv
        nodes = self._below(seq, row, node, row.matched)
        tokens = sum(each.length for each in nodes)
        if tokens < LEAST_LOAD_TOKENS or not kv.load(nodes):
            return 0, node
        kv.tree.unlock(node)
        kv.tree.lock(nodes[-1])
        self._loaded[seq] = [(each.length, each.origin) for each in nodes]
        for each in nodes:
            each.origin = "host"
        return tokens, nodes[-1]

    def _launch_prefill(
        self, batch: PrefillFirstBatch, admitted: list[tuple[Sequence, int, int, bool]], now_s: float
    ) -> None:
        kv, further = self.kv, self.kv.tree.further
        entered = {seq for seq, _, _, fresh in admitted if fresh and seq.first_scheduled_s < 0}
        copied = 0
        for seq, loaded in self._loaded.items():
            for tokens, origin in loaded:
                copied += tokens
                if seq not in entered:
                    continue
                self.host_hit_tokens += tokens
                self.hit_tokens -= tokens  # the base counts it as found on the device
                if further is not None and origin == further.kind:
                    further.hit_tokens += tokens
                else:
                    kv.hit_tokens += tokens
        batch.streams_s = kv.copy_s(copied, len(self._loaded))
        self._loaded = {}
        super()._launch_prefill(batch, admitted, now_s)

    def settle(self, batch: Batch) -> list[Sequence]:
        """As of the base; what enters the tree is copied to the host from then on."""
        self.kv.tree.now_s = batch.t_end
        return super().settle(batch)

    def tier_counts(self) -> list[TierCount]:
        """As of the base."""
        return self.kv.counts(self._ranks)
