"""The table of requests: columns of `requests.parquet`, one row a request, in the order of the workload."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from simulator.cluster.outcome import (
    FAILED,
    FINISHED,
    NOT_ARRIVED,
    REASON_NAMES,
    REJECTED,
    STATUS_NAMES,
    UNFINISHED,
    ClusterResult,
    Reason,
)
from simulator.io.tables import Coded, Column, Numbered
from simulator.results.latencies import OF_ENCODING, Latencies
from simulator.workload.columns import Workload

FINISH_REASONS = ("stop", "length", "unfinished", "rejected", "not_arrived", "failed")


def request_table(
    workload: Workload,
    raw: ClusterResult,
    lat: Latencies,
    good: NDArray[np.bool_] | None,
    *,
    pools: Sequence[str],
    first: int = 0,
) -> dict[str, Column]:
    """Return the columns of the requests of `workload`; those without a name are r0, r1, ... counted from `first`.

    `pools` are those of the ranks by number.
    """
    n = len(workload)
    capped = np.minimum(workload.output_tokens, raw.output_tokens) < workload.output_tokens
    limited = (workload.max_output_tokens > 0) & (raw.output_tokens >= workload.max_output_tokens)
    code = (limited | capped).astype(np.int8)
    reason = np.where(raw.reason == Reason.STOP, code * int(Reason.LENGTH), raw.reason)
    for number, status in enumerate((UNFINISHED, REJECTED, NOT_ARRIVED, FAILED), start=2):
        code[raw.status == status] = number
    same = np.zeros(n, np.int8)
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
        "prefill_instance_id": raw.replica if raw.handed is None else raw.handed.source,
        "finish_reason": Coded(code, FINISH_REASONS),
        "slo_ok": good if good is not None else Coded(same - 1, ()),
        "status": Coded(np.where(raw.status == NOT_ARRIVED, -1, raw.status), STATUS_NAMES),
        "reason": Coded(reason, REASON_NAMES),
        "attempts": raw.attempts.astype(np.int64) if raw.attempts is not None else np.broadcast_to(np.int64(1), n),
        "pool": _pool_of(raw, pools),
    }
    handed, none = raw.handed, np.broadcast_to(np.float64(np.nan), n)
    columns |= {
        "transfer_start_s": none if handed is None else handed.transfer_start_s,
        "transfer_end_s": none if handed is None else handed.transfer_end_s,
        "transfer_bytes": none if handed is None else handed.transfer_bytes,
        "decode_queue_ms": none if handed is None else lat.decode_queue_ms,
    }
    if raw.encoded is not None:
        columns |= {
            "encode_start_s": raw.encoded.sent_s,
            "encode_end_s": raw.encoded.encoded_s,
            "embeddings_end_s": raw.encoded.arrived_s,
            "embedding_bytes": raw.encoded.bytes,
            **{name: getattr(lat, name) for name in OF_ENCODING},
        }
    if workload.classes:
        columns["class"] = Coded(workload.class_index, tuple(kind.name for kind in workload.classes))
    return columns


def _pool_of(raw: ClusterResult, pools: Sequence[str]) -> Coded:
    """The pool that had a request last; the first of them where none had it."""
    names = tuple(dict.fromkeys(pools))
    numbers = np.array([names.index(pool) for pool in pools], dtype=np.int8)
    return Coded(numbers[np.maximum(raw.replica, 0)], names)
