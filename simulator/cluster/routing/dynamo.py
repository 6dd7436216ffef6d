"""Dynamo's KV router (ai-dynamo-runtime 1.6.1), with its flags and defaults.

A worker's cost, in blocks, is what its prefill has before it with this request, less what it holds of the request's prefix, and
the blocks of the requests that decode there with this one:

    scale max(0, (pending + isl) / block - credit overlap / (1 + decay excess / ceil(isl / block))) + blocks + weight active

with `excess` the pending prefill above the least of all workers, in blocks. The cheapest wins, or one is drawn by the softmax of
``-cost / ((max - min) temperature)``. What waits for its first token is pending; blocks of a prefix that several live requests of
a worker have count once.

Before servers with roles there are two such routers: of prefill workers without blocks, of decode workers by blocks alone.

Sources: `lib/kv-router/src/scheduling/{selector/default,queue,policy}.rs` and `sequences/*.rs`, for servers with roles
`lib/llm/src/kv_router/prefill_router/*.rs` and `lib/kv-router/src/conditional_disagg.rs` (read 2026-11), the wheel's
`kv_router_args.py` for flags and defaults (datasheet), and recordings of decisions without roles (to 1e-9).
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence as Series
from itertools import count
from random import Random

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.routing.kv_index import KvIndex, LiveBlocks, LiveNode
from simulator.cluster.routing.policy import Arrival, Policy
from simulator.cluster.routing.system import Flag, Flags, RouterSystem

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

FLAGS = (
    Flag("router_mode", "kv", ("kv",)),
    Flag("kv_cache_block_size", 16, low=1),
    Flag("overlap_score_credit", 1.0, low=0.0),
    Flag("overlap_score_credit_decay", 0.0, low=0.0),
    Flag("prefill_load_scale", 1.0, low=0.0),
    Flag("decode_active_request_weight", 0.0, low=0.0),
    Flag("router_temperature", 0.0, low=0.0),
    Flag("use_kv_events", True),
    Flag("router_track_active_blocks", True),
    Flag("router_track_output_blocks", False),
    Flag("router_track_prefill_tokens", True),
    Flag("router_assume_kv_reuse", True),
    Flag("router_ttl_secs", 120.0, low=0.0),
    Flag("router_queue_threshold", None, low=0.0, like=16.0),
    Flag("router_queue_policy", "fcfs", ("fcfs", "lcfs", "wspt")),
    Flag("conditional_disagg_enabled", False),
    Flag("conditional_disagg_policy", "isl_bounding", ("isl_bounding",)),
    Flag("conditional_disagg_eff_isl_threshold", 2048, low=0),
    Flag("conditional_disagg_eff_isl_ratio_threshold", 0.7, low=0.0),
)


UNMODELLED = {
    "host_cache_hit_weight": "blocks in host memory are not told to the router yet",
    "disk_cache_hit_weight": "blocks on disks are not simulated yet",
    "router_predicted_ttl_secs": "blocks count as cached when the engine says so",
    "router_approximate_cache_policy": "without events blocks are kept for a time, not by use",
    "router_prefill_load_model": "pending prefill is counted in tokens",
    "router_replica_sync": "there is one router",
    "conditional_disagg_decode_busy_threshold": "the blocks that a worker has in all are not told to the router here",
    "conditional_disagg_prefill_busy_threshold": "it belongs to policies by load, which are not simulated",
    "router_policy_config": "classes of requests have no policies of their own yet",
}


class Live:
    """A request that a worker serves: its prompt's blocks, tokens that wait for its prefill, and blocks of its output."""

    __slots__ = ("outputs", "pending", "private", "private_weight", "tail", "worker")

    def __init__(self, worker: int, tail: LiveNode, private: int, pending: int) -> None:
        self.worker = worker
        self.tail = tail
        self.private = private
        self.private_weight = 1.0  # of each private block
        self.pending = pending
        self.outputs: list[float] = []


class KvRouter(Policy):
    """The cost above, over an index that follows the engines' events, or, without them, over what was routed of late."""

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw)
        self.hears_ends = self.hears_first_tokens = True
        self.block_tokens = int(flags.number("kv_cache_block_size"))
        self._credit = flags.number("overlap_score_credit")
        self._decay = flags.number("overlap_score_credit_decay")
        self._scale = flags.number("prefill_load_scale")
        self._weight = flags.number("decode_active_request_weight")
        self._temperature = flags.number("router_temperature")
        self.follows_events = flags.on("use_kv_events")
        self._track_blocks = flags.on("router_track_active_blocks")
        self.tracks_output = flags.on("router_track_output_blocks")
        self._track_prefill = flags.on("router_track_prefill_tokens")
        self._reuse = flags.on("router_assume_kv_reuse")
        self._ttl_s = flags.number("router_ttl_secs")
        self.index = KvIndex(workers)
        self._routed: deque[tuple[float, int, Series[int]]] = deque()
        self._expires: dict[tuple[int, int], float] = {}
        self._resident = LiveBlocks(workers)
        self.pending = np.zeros(workers, dtype=np.int64)
        self._own = np.zeros(workers)  # weighted blocks that are no prompt's others may share
        self.active = np.zeros(workers, dtype=np.int64)
        self.blocks = np.zeros(workers, dtype=np.int64)
        """Blocks of the live requests of each worker, rounded."""
        self._live: dict[int, Live] = {}
        self._overlaps: dict[int, IntArray] = {}  # of requests that wait, as they were found

    # -- deciding -------------------------------------------------------------------------------------------

    def overlap(self, arrival: Arrival) -> IntArray:
        """Leading blocks of the request that each worker holds; of one that has waited, as it was found before."""
        found = self._overlaps.get(arrival.index)
        return self.index.leading(arrival.blocks) if found is None else found

    def keep_overlap(self, arrival: Arrival) -> IntArray:
        """Look the request's overlap up now, for when it is decided later."""
        found = self._overlaps[arrival.index] = self.index.leading(arrival.blocks)
        return found

    def _count(self, worker: int) -> None:
        """Round the blocks of a worker's live requests anew."""
        self.blocks[worker] = math.floor(self._resident.total[worker] + self._own[worker] + 0.5)

    def costs(self, arrival: Arrival) -> FloatArray:
        """Cost of each worker [blocks]."""
        blocks = self.blocks
        if self._track_blocks:
            blocks = blocks + len(arrival.blocks) + arrival.private_blocks
            if self._reuse:
                blocks = blocks - self._resident.leading(arrival.blocks)
        busy = self._weight * self.active if self._weight else 0.0
        overlap = self.overlap(arrival)
        if not self._track_prefill:
            decode_blocks: FloatArray = np.maximum(blocks - self._credit * overlap, 0.0) + busy
            return decode_blocks
        size = self.block_tokens
        credit: FloatArray | float = self._credit
        if self._decay:
            excess = (self.pending - self.pending[self.up].min()) / size
            credit = self._credit / (1.0 + self._decay * (excess / math.ceil(arrival.length / size)))
        prefill = np.maximum((self.pending + arrival.length) / size - credit * overlap, 0.0)
        cost_blocks: FloatArray = self._scale * prefill + blocks + busy
        return cost_blocks

    def allowed(self, arrival: Arrival, now_s: float) -> Series[int]:
        """As of the base: the cheapest; at a temperature, all."""
        if self._temperature:
            return self.up
        costs = self.costs(arrival)
        if len(self.up) < self.workers:
            return [worker for worker in self.up if costs[worker] == costs[self.up].min()]
        found: list[int] = np.flatnonzero(costs == costs.min()).tolist()
        return found

    def choose(self, arrival: Arrival, now_s: float) -> int:
        """As of the base; at a temperature by the softmax of the costs over their range."""
        if not self._temperature:
            return super().choose(arrival, now_s)
        costs = self.costs(arrival)[self.up]
        apart = costs.max() - costs.min()
        if not apart:
            return self.up[self.draw.randrange(len(self.up))]
        weights = np.exp((costs.min() - costs) / (apart * self._temperature))
        return self.draw.choices(self.up, weights.tolist())[0]

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        cached = int(self.overlap(arrival)[worker]) * self.block_tokens
        self._overlaps.pop(arrival.index, None)
        pending = max(arrival.length - cached, 0) if self._track_prefill else 0
        private = (
            arrival.private_blocks + (0 if self._reuse else len(arrival.blocks)) if self._track_blocks else 0
        )
        tail = self._resident.enter(worker, arrival.blocks if self._track_blocks and self._reuse else ())
        self._live[arrival.index] = Live(worker, tail, private, pending)
        self._own[worker] += private
        self._count(worker)
        self.pending[worker] += pending
        self.active[worker] += 1
        if not self.follows_events:
            self._assume_kept(arrival, worker, now_s)

    def _assume_kept(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """Take a worker to keep what it was sent, for a time."""
        self.index.store(worker, None, arrival.blocks)
        self._routed.append((now_s, worker, arrival.blocks))
        for block in arrival.blocks:
            self._expires[worker, block] = now_s

    def stored(self, worker: int, parent: int | None, blocks: Series[int]) -> None:
        """As of the base."""
        self.index.store(worker, parent, blocks)

    def removed(self, worker: int, block: int) -> None:
        """As of the base."""
        self.index.remove(worker, (block,))

    # -- what comes back ------------------------------------------------------------------------------------

    def first_token(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base: its prefill is over."""
        live = self._live.get(arrival.index)
        if live is not None:
            self.pending[live.worker] -= live.pending
            live.pending = 0

    def output_block(self, arrival: Arrival, fraction: float | None) -> None:
        """A request has filled another block; `fraction` is what the blocks that only it has are to count for from now on."""
        live = self._live[arrival.index]
        live.outputs.append(1.0)
        worker = live.worker
        self._own[worker] += 1.0
        if fraction is None:
            self._count(worker)
            return
        self._own[worker] += sum(fraction - weight for weight in live.outputs)
        self._own[worker] += live.private * (fraction - live.private_weight)
        live.outputs = [fraction] * len(live.outputs)
        live.private_weight = fraction
        self._resident.weigh(worker, live.tail, fraction)
        self._count(worker)

    def ended(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        live = self._live.pop(arrival.index, None)
        if live is None:
            return
        worker = live.worker
        self.pending[worker] -= live.pending
        self.active[worker] -= 1
        self._resident.leave(worker, live.tail)
        self._own[worker] -= live.private * live.private_weight + sum(live.outputs)
        if not self.active[worker]:
            self._own[worker] = self._resident.total[worker] = 0.0
        self._count(worker)

    def forget(self, worker: int) -> None:
        """As of the base."""
        self.index.forget(worker)
        for key in [key for key in self._expires if key[0] == worker]:
            del self._expires[key]

    def tick(self, now_s: float) -> None:
        """As of the base: what was routed long ago counts as cached no longer."""
        routed = self._routed
        while routed and now_s - routed[0][0] >= self._ttl_s:
            at_s, worker, blocks = routed.popleft()
            due = [block for block in blocks if self._expires.get((worker, block)) == at_s]
            for block in due:
                del self._expires[worker, block]
            self.index.remove(worker, due)


PREFILL = {"router_track_active_blocks": False}
"""Flags of the router of prefill workers: nobody decodes there."""
REMOTE = {"overlap_score_credit": 0.0, "router_assume_kv_reuse": False, "router_track_prefill_tokens": False}
"""Flags by which a decode worker is chosen for a prompt that another computes: by its blocks alone, each request's its own."""


class DecodeRouter(KvRouter):
    """The router of decode workers, whose prompts others compute."""

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw, Flags({**flags.values, **REMOTE, "use_kv_events": False}))

    def overlap(self, arrival: Arrival) -> IntArray:
        """As of the base: nothing that counts."""
        return np.zeros(self.workers, dtype=np.int64)

    def _assume_kept(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base: nobody asks."""


class ConditionalRouter(KvRouter):
    """The router of decode workers that compute a prompt themselves if they hold enough of it (conditional disaggregation).

    The worker is chosen as if all were computed there; if what it lacks of the prompt is less than `eff_isl_threshold` tokens and
    less than the share `eff_isl_ratio_threshold`, it gets the request. Else that choice is forgotten, and when the prompt is
    computed one is chosen by `REMOTE`.
    """

    def __init__(self, workers: int, draw: Random, flags: Flags) -> None:
        super().__init__(workers, draw, flags)
        self._most_tokens = flags.number("conditional_disagg_eff_isl_threshold")
        self._most_share = flags.number("conditional_disagg_eff_isl_ratio_threshold")
        self._whole = self._credit, self._reuse, self._track_prefill
        self._set(kept=False)

    def _set(self, *, kept: bool) -> None:
        self._credit, self._reuse, self._track_prefill = self._whole if kept else (0.0, False, False)

    def keeps(self, arrival: Arrival, now_s: float) -> int | None:
        """As of the base."""
        self._set(kept=True)
        worker = self.choose(arrival, now_s)
        lacking = max(arrival.length - int(self.overlap(arrival)[worker]) * self.block_tokens, 0)
        if lacking < self._most_tokens and lacking / max(arrival.length, 1) < self._most_share:
            return worker
        self._set(kept=False)
        return None

    def sent(self, arrival: Arrival, worker: int, now_s: float) -> None:
        """As of the base."""
        super().sent(arrival, worker, now_s)
        self._set(kept=False)


class Waiting:
    """Requests that wait until a worker has room for prefill, highest first: by arrival, its reverse, or the shortest first."""

    def __init__(self, policy: str) -> None:
        self._policy = policy
        self._heap: list[tuple[int, float, int, Arrival]] = []
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, arrival: Arrival, arrived_s: float, uncached_tokens: int) -> None:
        """Queue a request; `uncached_tokens` of its prompt are in no cache."""
        jump_s = max(arrival.jump_s, 0.0)
        if self._policy == "wspt":
            key = (1.0 + jump_s) / max(uncached_tokens, 1)
        else:
            key = jump_s - arrived_s if self._policy == "fcfs" else jump_s + arrived_s
        heapq.heappush(self._heap, (-arrival.priority, -key, next(self._order), arrival))

    def head(self) -> Arrival:
        """The next."""
        return self._heap[0][3]

    def pop(self) -> Arrival:
        """Take the next."""
        return heapq.heappop(self._heap)[3]

    def take(self, arrival: Arrival) -> None:
        """Take one out, whatever its turn."""
        self._heap = [entry for entry in self._heap if entry[3] is not arrival]
        heapq.heapify(self._heap)


class Gate:
    """Dynamo's router queue: requests wait while every worker has more than a share of a step's tokens pending."""

    def __init__(self, router: KvRouter, flags: Flags, step_tokens: int) -> None:
        threshold = flags.maybe("router_queue_threshold")
        self.waiting = Waiting(flags.word("router_queue_policy"))
        self._router = router
        self._limit = None if threshold is None else threshold * step_tokens

    def busy(self) -> bool:
        """Whether every worker has too much before it."""
        return self._limit is not None and bool((self._router.pending[self._router.up] > self._limit).all())

    def must_wait(self) -> bool:
        """Whether a request that comes now has to wait: behind others, or for a worker."""
        return self._limit is not None and (bool(self.waiting) or self.busy())

    def push(self, arrival: Arrival, now_s: float) -> None:
        """Let a request wait."""
        best = int(self._router.keep_overlap(arrival).max()) * self._router.block_tokens
        self.waiting.push(arrival, now_s, max(arrival.length - best, 0))

    def ready(self) -> bool:
        """Whether the next may go now."""
        return bool(self.waiting) and not self.busy()


def policy(flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    """The policy of servers that have no role."""
    return KvRouter(workers, draw, flags)


def _prefill(flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    return KvRouter(workers, draw, Flags({**flags.values, **PREFILL}))


def _decode(flags: Flags, workers: int, draw: Random, names: Series[str] | None) -> Policy:
    kind = ConditionalRouter if flags.on("conditional_disagg_enabled") else DecodeRouter
    return kind(workers, draw, flags)


SYSTEM = RouterSystem(
    version="1.6.1",
    flags=FLAGS,
    policy=policy,
    roles={"prefill": _prefill, "decode": _decode},
    keeps=lambda flags: flags.on("conditional_disagg_enabled"),
    holds_prefill=False,
    policy_flag="router_mode",
    reads_characters=False,
    unmodelled=UNMODELLED,
    tuned={"kv_cache_block_size": lambda limits: limits.block_tokens},
    blocks_by="kv_cache_block_size",
    events_off=(
        "use_kv_events",
        "set use_kv_events: false (the router then assumes that what it sent is kept for router_ttl_secs)",
    ),
)
