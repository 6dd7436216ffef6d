"""Words for a deployment that plots and terminal share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

REASONS = {
    "rejected": {
        "prompt_too_long": "prompt too long",
        "limit_too_long": "limit too long",
        "exceeds_kv_cache": "beyond the KV cache",
        "shed_429": "shed (429)",
        "shed_503": "shed (503)",
        "no_pool": "no pool for them",
    },
    "failed": {
        "timed_out": "timed out",
        "cancelled": "cancelled",
        "node_lost": "node lost",
        "kv_load_failed": "KV load failed",
        "out_of_memory": "out of memory",
    },
    "unfinished": {"drain_ended": "drain ended", "interrupted": "interrupted"},
}
"""What became of requests without an answer, by the names of `totals`, and why, by those of `totals.reasons`."""


def reasons_of(totals: Mapping[str, Any], status: str) -> str:
    """Why requests were lost in one way, the most frequent first: ``30 shed (429), 7 prompt too long``; empty if none was,
    or in a run of a version that did not note it.
    """
    known = {words: totals.get("reasons", {}).get(name, 0) for name, words in REASONS[status].items()}
    counted = sorted(((words, count) for words, count in known.items() if count), key=lambda pair: -pair[1])
    return counted[0][0] if len(counted) == 1 else ", ".join(f"{count:,} {words}" for words, count in counted)


def shape_of(deployment: Mapping[str, Any]) -> str:
    """How the devices of a replica share the work: ``TP 4 PP 2``, ``TP 1 x DP 8`` with data-parallel attention."""
    pipeline, ranks = deployment["pipeline_parallel"], deployment.get("data_parallel", 1)
    words = f"TP {deployment['tensor_parallel']}" + (f" PP {pipeline}" if pipeline > 1 else "")
    return words + (f" x DP {ranks}" if ranks > 1 else "")


def holder_of(deployment: Mapping[str, Any]) -> str:
    """What has a KV cache and rows of its own: a replica, or each of its data-parallel ranks."""
    return "rank" if deployment.get("data_parallel", 1) > 1 else "replica"


def cache_words(deployment: Mapping[str, Any]) -> str:
    """How many tokens the KV cache of a replica or rank has, of each pool where these differ."""
    pools: dict[tuple[int, str], list[str]] = {}
    for pool in deployment.get("pools") or [{**deployment, "name": ""}]:
        pools.setdefault((pool["kv_tokens"], holder_of(pool)), []).append(pool["name"])
    holders = list(dict.fromkeys(holder for _, holder in pools))
    each = f" tokens a {holders[0]}" if len(holders) == 1 else ""
    if len(pools) == 1:
        return f"{next(iter(pools))[0]:,}{each}"
    sizes = (
        f"{tokens:,}{'' if each else f' tokens a {holder}'} ({', '.join(names)})" for (tokens, holder), names in pools.items()
    )
    return f"{' or '.join(sizes)}{each}"
