from __future__ import annotations
from typing import Any
from engine_models.parts.prefill_first import PrefillFirstRules, PrefillFirstScheduler
from engine_models.parts.radix import RadixPool

def scheduler_from_recording(version: str, knobs: dict[str, Any], **kw: Any) -> tuple[PrefillFirstScheduler, int]:
    depth = 2 if knobs.get("overlap") else 1
    chunk = knobs.get("chunked_prefill_size", -1)
    priority = bool(knobs.get("enable_priority_scheduling", False))
    rules = PrefillFirstRules(
        max_running_requests=knobs["max_running_requests"],
        max_model_len=knobs["max_context_len"],
        max_prefill_tokens=knobs["max_prefill_tokens"],
        chunked_prefill_size=chunk if chunk > 0 else None,
        in_flight=depth,
        schedule_policy=knobs.get("schedule_policy", "fcfs"),
        schedule_conservativeness=knobs.get("schedule_conservativeness", 1.0),
        mixed_chunk=knobs.get("enable_mixed_chunk", False),
        ignore_eos=knobs.get("ignore_eos", False),
        priority_scheduling=priority,
        low_priority_values_first=knobs.get("schedule_low_priority_values_first", False),
        preemption=priority,
        preemption_threshold=knobs.get("priority_scheduling_preemption_threshold", 10),
    )
    kv = RadixPool(
        knobs["max_total_num_tokens"],
        knobs.get("page_size", 1),
        prefix_caching=not knobs.get("disable_radix_cache", False),
        eviction_policy=knobs.get("radix_eviction_policy", "lru"),
    )
    return PrefillFirstScheduler(rules, kv, **({"record_rows": True} | kw)), depth
