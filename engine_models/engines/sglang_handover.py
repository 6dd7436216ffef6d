"""How SGLang's prefill servers pass requests on: a decode server reserves memory for each before it is computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from engine_models.declaration import Handover, PoolRequest, Said
from engine_models.refusals import no_pools_with
from engine_models.schedulers.reserved import ReservingRules
from hardware_profiles.errors import InputError

HANDOVER_NOTE = (
    "SGLang's servers (rules read and recorded at 0.5.23) look for news every 1 ms (assumed), a request may reserve 65 ms after "
    "it has arrived: the handshake of its servers (measured); a decode server forms a batch when the one before it has ended, "
    "its host time hidden"
)
HANDSHAKE_S = 0.065
"""Between a request's arrival and the reservation of its memory [s]: bootstrap, messages between the servers, loops that poll all
ranks (measured: Mooncake's benchmark of SGLang, one prefill and one decode server of Qwen3-235B, has 126 to 134 ms to the
first token of prompts of 128 to 1,024 tokens, of which 2 to 4 are the transfer and 56 to 74 computing and front ends by
prediction: kvcache-ai/Mooncake@3b5a594, docs/source/performance/sglang/sglang-benchmark-results-v1.md). The recorded queues have
1 ms, since nothing there has to be sent."""
HEARTBEATS_S, WAITING_TIMEOUT_S = (5.0, 2), 300.0
"""Between two health checks of a prefill server by a decode server [s], and how many that fail let it fail the rooms of that
server; how long a reservation waits for its prompt [s] (datasheet: `SGLANG_DISAGGREGATION_HEARTBEAT_INTERVAL`,
`_HEARTBEAT_MAX_FAILURE`, `_WAITING_TIMEOUT` in `srt/environ.py`, read 2026-11). A transfer that fails lets the prefill server
free the prompt (`process_disagg_prefill_inflight_queue`), and whoever fails answers 500."""
CONNECTOR = "mooncake"
PREALLOCATED = 2
"""Rows that may hold memory beyond those that run, for each of these, where they are at most `MOST_PREALLOCATING` (datasheet:
SGLang 0.5.23 `pre_alloc_size`)."""
MOST_PREALLOCATING = 32
BUFFERS = 2
"""Metadata buffers of a decode server for each of its rows (datasheet: SGLang 0.5.23)."""
MOONCAKE_RATE_SHARE, MOONCAKE_PART_S = 0.78, 7e-6
"""Share of the network's rate that Mooncake reaches, and what each layer's keys or values add to a transfer [s] (measured: two
tables of kvcache-ai/Mooncake@3b5a594, `docs/source/performance`, 20 MB to 12.6 GB, one between SGLang servers over 4 x 400 GbE,
94 layers (0.84, 8.5 us), one between vLLM servers over 8 x RoCE, 36 layers (0.72, 5.6 us); the geometric means: 7 % off in the
median of 17 rows)."""


def handover_of(request: PoolRequest, page: int, said: Said) -> Handover:
    """How a pool with a role passes requests on; InputError where that is not modelled."""
    handover = _handover(request, page)
    said.notes.append(HANDOVER_NOTE)
    if request.pipeline_parallel > 1:
        said.notes.append(
            "a prefill server over pipeline stages (rules read, not recorded): each stage sends its layers of a piece of a "
            "prompt over interfaces of its own, when the last stage has computed it (assumed: the first may begin sooner)"
        )
    return handover


def _handover(request: PoolRequest, page: int) -> Handover:
    flags = request.flags
    connector = str(flags.get("disaggregation_transfer_backend") or request.connector or CONNECTOR)
    if request.connector not in (None, connector):
        raise InputError(
            f"disaggregation_transfer_backend is {connector}, deployment.transfer names {request.connector}",
            where="deployment.engine_args.disaggregation_transfer_backend",
            mend="name one connector in both, or leave one out",
        )
    if connector not in (CONNECTOR, "nixl"):
        raise InputError(
            f"prefill and decode pools over {connector} are not modelled",
            where="deployment.transfer.connector",
            mend=f"use {CONNECTOR} or nixl",
        )
    lacking = {
        "pipeline parallelism on the side that answers": request.pipeline_parallel > 1 and request.role == "decode",
        "recurrent layers": request.arch.has("linear"),
        "disaggregation_decode_allocation_policy other than early": flags.get("disaggregation_decode_allocation_policy", "early")
        != "early",
        "disaggregation_decode_enable_radix_cache": bool(flags.get("disaggregation_decode_enable_radix_cache")),
        "disaggregation_decode_extra_slots": flags.get("disaggregation_decode_extra_slots") is not None,
        "disaggregation_decode_retraction_backup none": flags.get("disaggregation_decode_retraction_backup") == "none",
        "optimistic_prefill_attempts": bool(flags.get("optimistic_prefill_attempts")),
    }
    no_pools_with(lacking)
    drafts = request.speculation
    found = Handover(
        connector,
        page,
        reserves=True,
        whole_requests=True,
        # a drafter with layers has keys and values of the prompt too
        agreed={"drafter": drafts.method if drafts is not None and drafts.draft is not None else "none"},
        beats_s=HEARTBEATS_S,
        gives_up_s=WAITING_TIMEOUT_S,
    )
    if connector != CONNECTOR:
        return found
    parts = sum(block.layers * (1 if block.kind == "mla" else 2) for block in request.arch.attention)
    return replace(found, rate_share=MOONCAKE_RATE_SHARE, latency_s=MOONCAKE_PART_S * parts)


def reserving(flags: Mapping[str, Any], rows: int, context: int) -> ReservingRules:
    """The rules of a decode server."""
    return ReservingRules(
        max_running_requests=rows,
        pre_alloc_size=PREALLOCATED * rows if rows <= MOST_PREALLOCATING else 0,
        metadata_buffers=BUFFERS * rows,
        max_model_len=context,
        num_reserved_decode_tokens=int(flags.get("num_reserved_decode_tokens", 512)),
        polling_interval=int(flags.get("disaggregation_decode_polling_interval", 1)),
        receive_interval=int(flags.get("scheduler_recv_interval", 1)),
        handshake_s=HANDSHAKE_S,
    )
