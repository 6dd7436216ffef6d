"""Words for a deployment that plots and terminal share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shape_of(deployment: Mapping[str, Any]) -> str:
    """How the devices of a replica share the work: ``TP 4 PP 2``, ``TP 1 x DP 8`` with data-parallel attention."""
    pipeline, ranks = deployment["pipeline_parallel"], deployment.get("data_parallel", 1)
    words = f"TP {deployment['tensor_parallel']}" + (f" PP {pipeline}" if pipeline > 1 else "")
    return words + (f" x DP {ranks}" if ranks > 1 else "")


def holder_of(deployment: Mapping[str, Any]) -> str:
    """What has a KV cache and rows of its own: a replica, or each of its data-parallel ranks."""
    return "rank" if deployment.get("data_parallel", 1) > 1 else "replica"
