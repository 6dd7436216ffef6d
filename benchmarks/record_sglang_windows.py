"""Schedules of SGLang's own scheduler with a second pool for layers with windows, for `capacity-plan validate schedules`.

    python benchmarks/record_sglang_windows.py OUT --first 0 --count 40

As `record_sglang.py`, and in the same environment. The allocator of both pools, the tree's component of windows and the budgets
of a prefill are SGLang's; that a page's tokens are freed together, a kernel of the device's, is done here on the host. Pools are
tight: some draws end with requests that SGLang never lets in, and are not recorded.
"""

from __future__ import annotations

import importlib
import random
from typing import Any

import record_sglang
from record_sglang import Recorder, drawn_config, drawn_requests, record, srt
from recorded_load import Case, head, main


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed."""
    draw = random.Random(f"windows {seed}")
    longest, answer = draw.choice([200, 500, 1200, 3000]), draw.choice([20, 80, 200, 400])
    config = drawn_config(draw, longest, answer)
    page = config["page_size"]
    config["sliding_window_size"] = draw.choice([16, 64, 128, 128, 512])
    config["swa_full_tokens_ratio"] = draw.choice([0.15, 0.3, 0.5, 0.8, 1.0])
    config["swa_tokens"] = int(config["max_total_num_tokens"] * config["swa_full_tokens_ratio"]) // page * page
    by_priority = config["enable_priority_scheduling"] or config["radix_eviction_policy"] == "priority"
    requests = drawn_requests(draw, longest, answer, priorities=by_priority)
    return head("sglang", record_sglang.VERSION, seed, config), requests


def pages_of(slots: Any, mapping: Any, page: int, check: bool = False) -> tuple[Any, Any, None]:
    """SGLang's kernel that finds the windows' pages behind slots of the other pool, and forgets them."""
    torch = importlib.import_module("torch")
    slots = slots.to(torch.int64)
    found = mapping[slots]
    for first in (slots // page * page).tolist():
        mapping[first : first + page] = 0
    return found // page, found > 0, None


def pools(config: Case, page: int) -> tuple[Any, Any, Any]:
    """SGLang's table of requests, allocator of both pools and radix cache."""
    torch = importlib.import_module("torch")
    memory, windows, base = srt("mem_cache.memory_pool"), srt("mem_cache.allocator.swa"), srt("mem_cache.base_swa_memory_pool")
    rows = memory.ReqToTokenPool(config["max_running_requests"], config["max_context_len"] + 8, "cpu", enable_memory_saver=False)

    def noted(self: Any, mapping: Any) -> None:
        self.full_to_swa_index_mapping = mapping

    members: dict[str, Any] = dict.fromkeys(getattr(base.BaseSWAKVPool, "__abstractmethods__", ()), lambda self, *_, **__: None)
    members |= {
        "__init__": lambda self: None,
        "full_kv_pool": None,
        "swa_kv_pool": None,
        "swa_req_ring_size": None,
        "register_mapping": noted,
        "translate_loc_from_full_to_swa": lambda self, slots: self.full_to_swa_index_mapping[slots],
    }
    values = type("Values", (base.BaseSWAKVPool,), members)()
    windows.get_and_clear_swa_pages = pages_of
    tokens = config["max_total_num_tokens"], config["swa_tokens"]
    kv = windows.SWATokenToKVPoolAllocator(*tokens, page, torch.float16, "cpu", values, False)
    for allocator in (kv.full_attn_allocator, kv.swa_attn_allocator):
        if page > 1:
            allocator.use_triton_kernels = False
    kind = srt("mem_cache.unified_cache.component_type").ComponentType
    params = srt("mem_cache.cache_init_params").CacheInitParams(
        disable=config.get("disable_radix_cache", False),
        req_to_token_pool=rows,
        token_to_kv_pool_allocator=kv,
        page_size=page,
        eviction_policy=config.get("radix_eviction_policy", "lru"),
        chunked_prefill_size=config.get("chunked_prefill_size"),
        sliding_window_size=config["sliding_window_size"],
        tree_components=(kind.FULL, kind.SWA),
    )
    return rows, kv, srt("mem_cache.unified_radix_cache").UnifiedRadixCache(params)


class WindowRecorder(Recorder):
    """`Recorder` with two pools; its tokens are those of the layers without windows."""

    def __init__(self, head: Case, requests: list[Case]) -> None:
        super().__init__(head, requests)
        self.scheduler.is_hybrid_swa = True
        self.scheduler.sliding_window_size = self.config["sliding_window_size"]

    def free(self) -> tuple[int, int]:
        """As of the base."""
        scheduler = self.scheduler
        return scheduler.token_to_kv_pool_allocator.full_available_size(), scheduler.tree_cache.full_evictable_size()

    def form(self, now_s: float) -> tuple[Any, Case | None]:
        """As of the base, with what is free of the windows' pool and what the tree would give up there."""
        batch, step = super().form(now_s)
        if step is not None:
            step["swa_free"] = self.scheduler.token_to_kv_pool_allocator.swa_available_size()
            step["swa_evictable"] = self.scheduler.tree_cache.swa_evictable_size()
        return batch, step

    def settle(self, batch: Any, step: Case) -> None:
        """As of the base; who waits for an answer that was given up goes on too."""
        super().settle(batch, step)
        self.ended(step["aborted"], step["t_end"])


if __name__ == "__main__":
    record_sglang.pools = pools
    main(__doc__, drawn, lambda config, requests: record(config, requests, WindowRecorder))
