"""How SGLang's prefill servers pass requests on: a decode server reserves memory for each before it is computed."""

from __future__ import annotations

from dataclasses import replace

from engine_models.declaration import Handover, PoolRequest, Said
from engine_models.engines.sglang_memory import keeps_prefixes, state_bytes
from engine_models.engines.sglang_serving import Serving
from engine_models.engines.sglang_tiers import OFFLOADS
from engine_models.refusals import no_pools_with
from engine_models.schedulers.reserved import ReservingRules
from hardware_profiles.errors import InputError

HANDOVER_NOTE = (
    "SGLang's servers (rules read and recorded at 0.5.23) look for news every 1 ms (assumed), a request may reserve 65 ms after "
    "it has arrived: the handshake of its servers (measured); a decode server forms a batch when the one before it has ended, "
    "its host time hidden"
)
POSTS_NOTE = (
    "over NIXL before 0.5.12 the prefill server's scheduler posts every transfer itself, 60 ms each one after the other, and "
    "a request may reserve 5 ms after it has arrived, not 65 (fitted to measured runs; the place by its source)"
)
HANDSHAKE_S = 0.065
"""Between a request's arrival and the reservation of its memory [s]: bootstrap, messages between the servers, loops that poll all
ranks (measured: Mooncake's benchmark of SGLang, one prefill and one decode server of Qwen3-235B, has 126 to 134 ms to the
first token of prompts of 128 to 1,024 tokens, of which 2 to 4 are the transfer and 56 to 74 computing and front ends by
prediction: kvcache-ai/Mooncake@3b5a594, docs/source/performance/sglang/sglang-benchmark-results-v1.md). The recorded queues have
1 ms, since nothing there has to be sent."""
ASYNCHRONOUS = (0, 5, 12)
"""First version whose NIXL transfers are posted by threads of their own; before, the prefill server's scheduler posts each, one
after the other, before it launches what comes next (pull request 23967 of 2026-04: transfers of Qwen3-32B 162 -> 41 ms in the
mean; datasheet: `disaggregation/nixl/conn.py`, where `add_transfer_request` posts by itself in 0.5.5 to 0.5.11, and fills
queues in 0.5.12)."""
POST_S = 0.06
"""What posting a piece of a prompt takes of the scheduler then [s]; a single request waits as long as before, since the handshake
is as much shorter. kind: fitted, 2026-11, source: 24 runs of DeepSeek-R1 with up to 128 users on B200 and GB200, FP4 and FP8,
1,024 and 8,192 tokens (SGLang 0.5.5 and 0.5.8, InferenceX): mean TTFT 31 -> 12 % off, in each of the five groups by GPU, format
and length less (29 -> 6 and 33 -> 15 at 1,024 tokens, 27 to 31 -> 24 to 29 at 8,192); the groups at 1,024 tokens, which tell it,
choose 55 to 65 ms each alone. It does not grow with the prompt, though each run of pages is a descriptor in every layer: two
pairs on B200 in FP8 that 64 and 128 users keep full pass a prompt of 7,373 tokens each 0.34 and 0.32 s, where one server takes
0.26 to 0.30. On H200, kept apart, two runs of three are better, and a saturated one worse. That the time goes where the pull
request says is inferred, since nobody traced a server."""
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


def handover_of(request: PoolRequest, page: int, number: tuple[int, ...], said: Said) -> Handover:
    """How a pool with a role passes requests on; InputError where that is not modelled."""
    handover = _handover(request, page)
    said.notes.append(HANDOVER_NOTE)
    if post_s_of(request, number):
        said.notes.append(POSTS_NOTE)
    if keeps_prefixes(request):
        said.notes.append(
            "decode servers keep prefixes, and of a prompt that one has the begin of the rest is sent (rules read, not recorded)"
        )
    if request.pipeline_parallel > 1 and request.role == "decode":
        said.notes.append(
            "a decode server over pipeline stages (rules read, not recorded): requests have memory, and prompts that have come a "
            "row, one round of the micro-batches after all stages could have seen it, and join the one whose turn is next"
        )
    elif request.pipeline_parallel > 1:
        said.notes.append(
            "a prefill server over pipeline stages (rules read, not recorded): each stage sends its layers of a piece of a "
            "prompt over interfaces of its own, when the last stage has computed it (assumed: the first may begin sooner)"
        )
    if request.arch.has("linear"):
        said.notes.append(
            "recurrent layers in prefill and decode servers (rules read, not recorded): a request's states are sent with the "
            "last tokens of its prompt; a decode server keeps one state a request, without a tree of prefixes (assumed)"
        )
    return handover


def _agreed(request: PoolRequest) -> dict[str, str]:
    """What both sides have to have alike: a drafter with layers, which has keys and values of the prompt too, and the stages of
    a decode server that has any (datasheet: `_resolve_rank_mapping` in `disaggregation/common/conn.py`, public copy, 2026-11).
    """
    drafts, stages = request.speculation, request.pipeline_parallel
    agreed = {"drafter": drafts.method if drafts is not None and drafts.draft is not None else "none"}
    if stages > 1 or request.role != "decode":
        agreed["pipeline parallelism"] = str(stages)
    return agreed


def _handover(request: PoolRequest, page: int) -> Handover:
    flags = request.flags
    connector = _connector(request)
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
    staged = request.pipeline_parallel > 1 and request.role == "decode"
    lacking = {
        "pipeline parallelism on the side that answers and a cache of prefixes there": staged and keeps_prefixes(request),
        "pipeline parallelism on the side that answers and LoRA adapters": staged and request.lora is not None,
        "pipeline parallelism on the side that answers and answers written to a store": staged and bool(flags.get(OFFLOADS)),
        "disaggregation_decode_enable_radix_cache and recurrent layers": keeps_prefixes(request) and request.arch.has("linear"),
        "disaggregation_decode_allocation_policy other than early": flags.get("disaggregation_decode_allocation_policy", "early")
        != "early",
        "disaggregation_decode_enable_radix_cache and speculative decoding": keeps_prefixes(request)
        and request.speculation is not None,
        "disaggregation_decode_extra_slots": flags.get("disaggregation_decode_extra_slots") is not None,
        "disaggregation_decode_retraction_backup none": flags.get("disaggregation_decode_retraction_backup") == "none",
        "optimistic_prefill_attempts": bool(flags.get("optimistic_prefill_attempts")),
    }
    no_pools_with(lacking)
    found = Handover(
        connector,
        page,
        reserves=True,
        whole_requests=True,
        agreed=_agreed(request),
        request_bytes=state_bytes(request),
        beats_s=HEARTBEATS_S,
        gives_up_s=WAITING_TIMEOUT_S,
    )
    if connector != CONNECTOR:
        return found
    parts = sum(block.layers * (1 if block.kind == "mla" else 2) for block in request.arch.attention)
    return replace(found, rate_share=MOONCAKE_RATE_SHARE, latency_s=MOONCAKE_PART_S * parts)


def post_s_of(request: PoolRequest, number: tuple[int, ...]) -> float:
    """What posting a piece of a prompt takes of a scheduler of that version [s]."""
    return POST_S if _connector(request) == "nixl" and number < ASYNCHRONOUS else 0.0


def _connector(request: PoolRequest) -> str:
    return str(request.flags.get("disaggregation_transfer_backend") or request.connector or CONNECTOR)


def reserving(request: PoolRequest, serving: Serving, rows: int) -> ReservingRules:
    """The rules of a decode server."""
    flags = request.flags
    return ReservingRules(
        max_running_requests=rows,
        pre_alloc_size=PREALLOCATED * rows if rows <= MOST_PREALLOCATING else 0,
        metadata_buffers=BUFFERS * rows,
        max_model_len=serving.context,
        num_reserved_decode_tokens=int(flags.get("num_reserved_decode_tokens", 512)),
        polling_interval=int(flags.get("disaggregation_decode_polling_interval", 1)),
        receive_interval=int(flags.get("scheduler_recv_interval", 1)),
        handshake_s=HANDSHAKE_S - post_s_of(request, serving.number),
    )
