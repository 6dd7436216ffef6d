"""The table of requests: columns of `requests.parquet`, one row a request, in the order of the workload."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.outcome import FINISHED, NOT_ARRIVED, REJECTED, UNFINISHED, ClusterResult
from simulator.io.tables import Coded, Column, Numbered
from simulator.results.metrics import Latencies
from simulator.workload.columns import Workload

REASONS = ("stop", "length", "unfinished", "rejected", "not_arrived")


def request_table(
    workload: Workload, raw: ClusterResult, lat: Latencies, good: NDArray[np.bool_] | None, first: int = 0
) -> dict[str, Column]:
    """Return the columns of the requests of `workload`; those without a name are r0, r1, ... counted from `first`."""
    n = len(workload)
    capped = np.minimum(workload.output_tokens, raw.output_tokens) < workload.output_tokens
    limited = (workload.max_output_tokens > 0) & (raw.output_tokens >= workload.max_output_tokens)
    code = (limited | capped).astype(np.int8)
    for number, status in enumerate((UNFINISHED, REJECTED, NOT_ARRIVED), start=2):
        code[raw.status == status] = number
    columns: dict[str, Column] = {
        "request_id": workload.request_ids if workload.request_ids is not None else Numbered("r", first, n),
        "session_id": workload.session_id,
        "turn": workload.turn,
        "arrival_s": raw.arrival_s,
        "queue_start_s": raw.engine_arrival_s,
        "first_scheduled_s": raw.first_scheduled_s,
        "first_token_s": raw.first_token_s,
        "end_s": raw.end_s,
        "prompt_tokens": workload.prompt_tokens,
        "cached_tokens": raw.cached_tokens,
        "output_tokens": np.where(raw.status == FINISHED, raw.output_tokens, 0),
        "ttft_ms": lat.ttft_ms,
        "tpot_ms": lat.tpot_ms,
        "e2el_ms": lat.e2el_ms,
        "queue_ms": lat.queue_ms,
        "preemptions": raw.preemptions,
        "instance_id": raw.replica,
        "prefill_instance_id": raw.replica,
        "finish_reason": Coded(code, REASONS),
        "slo_ok": good if good is not None else Coded(np.full(n, -1, np.int8), ()),
    }
    if workload.classes:
        columns["class"] = Coded(workload.class_index, tuple(kind.name for kind in workload.classes))
    return columns
