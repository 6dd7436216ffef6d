"""Schedules of SGLang's own scheduler with its hierarchical cache, for `capacity-plan validate schedules`.

    python benchmarks/record_sglang_hicache.py OUT --first 0 --count 60    60 recordings, by their seeds
    capacity-plan validate schedules OUT                                   how many steps are reproduced

As `record_sglang.py`, whose environment it needs. The tree over device and host, what is written, evicted and loaded back,
and what is admitted are SGLang's; of its cache controller only the places in host memory are there: copies to the host have
ended when the scheduler next looks, loads take no time of their own.
"""

from __future__ import annotations

import importlib
import random
from types import SimpleNamespace
from typing import Any

import record_sglang
from record_sglang import srt
from recorded_load import Case, head, main


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: those of `record_sglang`, with host memory behind the tree."""
    draw = random.Random(f"hicache {seed}")
    longest, answer = draw.choice([200, 500, 1200, 3000]), draw.choice([3, 20, 80, 200])
    config = record_sglang.drawn_config(draw, longest, answer)
    config["disable_radix_cache"] = False
    if config["radix_eviction_policy"] == "mru":
        config["radix_eviction_policy"] = "lru"
    config |= {
        "hicache_write_policy": draw.choice(["write_through", "write_through", "write_through_selective", "write_back"]),
        "host_tokens": 0,
    }
    page = config["page_size"]
    one = longest + answer + 2 * page
    config["max_total_num_tokens"] = int(one * draw.choice([1.1, 1.3, 1.6, 2.5, 5])) // page * page
    config["host_tokens"] = int(config["max_total_num_tokens"] * draw.choice([1.1, 1.5, 2.0, 4.0])) // page * page
    by_priority = config["enable_priority_scheduling"] or config["radix_eviction_policy"] == "priority"
    requests = record_sglang.drawn_requests(draw, longest, answer, priorities=by_priority)
    return head("sglang", record_sglang.VERSION, seed, config), requests


class Done:
    """What stands for the end of a copy: it has come."""

    def query(self) -> bool:
        """Whether it has."""
        return True

    def synchronize(self) -> None:
        """Wait for it."""


class Controller:
    """The places of host memory, and copies that end at once."""

    def __init__(self, config: Case, device: Any) -> None:
        self.write_policy = config["hicache_write_policy"]
        self.enable_storage = False
        self.device = device
        self.free = list(range(config["host_tokens"]))
        self.mem_pool_host = self
        self.anchor_entry = SimpleNamespace(host_pool=SimpleNamespace(shared_allocation_domain=None), host_evict_fn=None)
        self.ack_write_queue: list[Any] = []
        self.ack_load_queue: list[Any] = []
        self.writing: list[int] = []
        self.loading: list[int] = []
        self.extra_host_mem_release_queues: Case = {}
        self.pp_prefetch_command_group = None

    def available_size(self) -> int:
        """Places that are free."""
        return len(self.free)

    def release(self, places: Any, **_: Any) -> None:
        """Places are free again."""
        self.free += places.tolist()

    def write(self, tokens: Any, node_id: int, **_: Any) -> Any:
        """Begin to copy a node to the host."""
        torch = importlib.import_module("torch")
        if len(tokens) > len(self.free):
            return None
        taken, self.free = self.free[: len(tokens)], self.free[len(tokens) :]
        self.writing.append(node_id)
        return torch.tensor(taken, dtype=torch.int64)

    def start_writing(self) -> None:
        """Hand over the copies that wait."""
        if self.writing:
            self.ack_write_queue.append(self.ended(self.writing))
            self.writing = []

    def load(self, host_indices: Any, node_id: int, **_: Any) -> Any:
        """Begin to copy a node to the device."""
        places = self.device.alloc(len(host_indices))
        if places is not None:
            self.loading.append(node_id)
        return places

    def start_loading(self) -> int:
        """Hand over the loads that wait."""
        if not self.loading:
            return -1
        self.ack_load_queue.append(self.ended(self.loading))
        self.loading = []
        return 0

    @staticmethod
    def ended(nodes: list[int]) -> Any:
        """What says that copies have ended."""
        untold = {"timing_enabled": False, "num_tokens_by_pool": None, "num_bytes": 0}
        return SimpleNamespace(finish_event=Done(), node_ids=list(nodes), **untold)


class Recorder(record_sglang.Recorder):
    """One run with host memory."""

    def __init__(self, head: Case, requests: list[Case]) -> None:
        super().__init__(head, requests)
        scheduler = self.scheduler
        cache = scheduler.tree_cache
        controller = self.controller = Controller(self.config, scheduler.token_to_kv_pool_allocator)
        cache.cache_controller = controller
        cache.host_pool_group = SimpleNamespace(free=controller.release, get_pool=lambda _: None)
        cache.tree_core.set_hicache_enabled()
        cache.tree_core.is_write_back = cache.is_write_back = controller.write_policy == "write_back"
        cache.write_through_threshold = 1 if controller.write_policy == "write_through" else 2
        cache.load_back_threshold = 10
        cache.components[srt("mem_cache.unified_cache.component_type").ComponentType.FULL]._full_kv_pool_host = controller
        scheduler.enable_hierarchical_cache = True

    def form(self, now_s: float) -> tuple[Any, Case | None]:
        """As of the base; the step says how much of the host is free."""
        batch, step = super().form(now_s)
        if step is not None:
            step["host_free"] = self.controller.available_size()
        return batch, step

    def settle(self, batch: Any, step: Case) -> None:
        """As of the base; copies to the host are handed over."""
        super().settle(batch, step)
        self.scheduler.tree_cache.flush_pending_backups()


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of SGLang's scheduler, and when each request ended."""
    return record_sglang.record(config, requests, Recorder)


if __name__ == "__main__":
    main(__doc__, drawn, record, ("leaving", "stopping"))
