"""How vLLM's prefill servers pass requests on: by its NIXL connectors, or over Mooncake."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine_models.declaration import Handover, PoolRequest, Said
from engine_models.engines.vllm_connectors import asks_tiers_first, between
from engine_models.memory.hybrid_kv import STATE_WINDOW
from engine_models.model.architecture import kv_bytes_per_token
from engine_models.parts.handover import Peer
from engine_models.refusals import no_pools_with
from hardware_profiles.errors import InputError

if TYPE_CHECKING:
    from engine_models.engines.vllm_cache import Cache
    from engine_models.engines.vllm_versions import Version

CONNECTOR, PUSHING, MOONCAKE = "NixlConnector", "NixlPushConnector", "MooncakeConnector"
DESCRIPTOR_S = 1.5e-6
"""What a descriptor adds to a read, one a block, layer and K or V [s] (measured: vLLM issue 50913, 2026-08: about 5,000 tokens
take 105 ms in blocks of 16 and 47 ms in blocks of 64 tokens; 80 layers assumed, from descriptors of 8 KB in "tens of
thousands")."""
HANDOVER_S = 0.15
"""Between the prompt's end and the decode server's taking the request, beside transfer and front end [s] (measured: the same
issue has 263 and 197 ms from end to end, 158 and 150 ms beside the transfers)."""
LEASE_S = (30.0, 20.0)
"""`kv_lease_duration`, from a prompt's end, and what a sign of the decode server extends it to at least, two thirds (datasheet:
vLLM 0.33.0 `kv_connector/v1/nixl`, read 2026-11). The latest sign before a loss is taken to come with it: it may be 5 s old."""
MOONCAKE_RATE_SHARE, MOONCAKE_PART_S = 0.72, 5.6e-6
"""Share of the network's rate that Mooncake reaches between vLLM's servers, and what each layer's keys or values add to a
transfer [s] (measured: kvcache-ai/Mooncake@3b5a594, `docs/source/performance/vllm`, Qwen3-8B over 8 x RoCE, 20 MB to 4.5 GB)."""
UNSENT_S = 480.0
"""From a prompt's end until a prefill server over Mooncake frees it, where no decode server has asked for it (datasheet:
`VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT`, vLLM 0.33.0, read 2026-11)."""
GROUPS_SINCE, GROUPS_BY_DEFAULT_SINCE = (0, 18), (0, 23)
"""Versions since which the NIXL connectors move the blocks of each KV group, and since which that is the default (datasheet:
vLLM pull requests 35758, 2026-03, and 41847, 2026-05-26; their first releases are inferred from the dates, the later of two)."""
MOONCAKE_GROUPS_SINCE = (0, 33)
"""Version since which Mooncake's connector moves the blocks of each KV group, clipped to windows as NIXL's, and a prefill server
behind it may have pipeline stages (datasheet: pull requests 46807 and 44528, 2026-06; earlier releases with them are not told
apart)."""
STATES_SINCE = (0, 33)
"""Version whose connectors were read to move the states of recurrent layers, as the prompt but for its last token leaves them;
the decode server computes it (datasheet: `_prefill_backoff` in `kv_connector/v1/nixl/base_scheduler.py` and
`mooncake/mooncake_connector.py` of 0.33.0); earlier releases with them are not told apart."""
_ROLES = {"kv_producer": "prefill", "kv_consumer": "decode"}


def handover_of(request: PoolRequest, version: Version, cache: Cache, read_at: str, said: Said) -> Handover:
    """How a pool with a role passes requests on; InputError where that is not modelled.

    `read_at` is the version whose rules were read.
    """
    handover = _handover(request, version, cache)
    said.notes.append(_note(handover, read_at))
    if handover.token_bytes is not None:
        said.notes.append(
            f"recurrent layers over {handover.connector} (rules read at vLLM {read_at}, not recorded): a decode server reads the "
            "prompt's blocks and the states before its last token, which it computes; that the prefill server leaves that token "
            "out is not modelled"
            if STATE_WINDOW in cache.windows
            else f"sliding windows over {handover.connector} (rules read at vLLM {read_at}, not recorded): a prefill server "
            "keeps what its windows hold at a prompt's end; a decode server reads, of layers with a window, the last blocks that "
            f"a token behind the prompt sees; {len(cache.windows)} groups of layers have blocks of their own"
        )
    return handover


def _handover(request: PoolRequest, version: Version, cache: Cache) -> Handover:
    config = between(request.flags) or request.flags.get("kv_transfer_config") or {}
    where = "deployment.engine_args.kv_transfer_config"
    if request.role == "decode" and asks_tiers_first(request.flags):
        raise InputError(
            "a decode pool whose MultiConnector asks what lies beyond the device before the other server is not modelled",
            where=where,
            mend="list the connector between the servers first",
        )
    connector = str(config.get("kv_connector") or request.connector or CONNECTOR)
    if request.connector not in (None, connector):
        raise InputError(
            f"kv_transfer_config names {connector}, deployment.transfer {request.connector}",
            where=where,
            mend="name one connector in both, or leave one out",
        )
    if connector not in (CONNECTOR, PUSHING, MOONCAKE):
        in_flags, known = bool(config.get("kv_connector")), f"{CONNECTOR}, {PUSHING} or {MOONCAKE}"
        raise InputError(
            f"prefill and decode pools over {connector} are not modelled",
            where=where if in_flags else "deployment.transfer.connector",
            mend=f"write kv_connector: {known}, or leave kv_transfer_config out" if in_flags else f"write {known}",
        )
    said = _ROLES.get(str(config.get("kv_role")))
    if said is not None and said != request.role:
        raise InputError(
            f"kv_role {config['kv_role']} is that of a {said} server, the pool's role is {request.role}",
            where=where,
            mend=f"write kv_role: kv_both, or role: {said}",
        )
    _check_stages(request, connector, version)
    parts = sum(block.layers * (1 if block.kind == "mla" else 2) for block in request.arch.attention if block.kind != "linear")
    drafts = request.speculation
    agreed = {
        "speculative decoding": "none" if drafts is None else f"{drafts.method} with {drafts.row_tokens - 1} drafts",
        "windows of the KV groups": ", ".join(map(_seen, cache.windows)),
    }
    token_bytes = None
    if cache.windows != (None,):
        _check_windows(request, version, cache, connector)
        token_bytes = cache.block_bytes / cache.block
        # one tensor for the layers of the same place in all groups
        held = kv_bytes_per_token(request.arch, request.formats.kv_cache, request.tensor_parallel)
        parts = round(parts * token_bytes / held)
    if connector == MOONCAKE:
        return Handover(
            connector,
            cache.block,
            token_bytes=token_bytes,
            latency_s=MOONCAKE_PART_S * parts,
            rate_share=MOONCAKE_RATE_SHARE,
            reserves=True,
            agreed=agreed,
            lease_s=(UNSENT_S, 0.0),
            drops=request.pipeline_parallel == 1,
        )
    return Handover(
        connector,
        cache.block,
        unit_s=DESCRIPTOR_S * parts,
        token_bytes=token_bytes,
        hop_s=HANDOVER_S,
        agreed=agreed,
        lease_s=LEASE_S,
        computes=True,
        drops=request.pipeline_parallel == 1,
    )


def _seen(window: int | None) -> str:
    """What layers of a group see, in a word."""
    return "none" if window is None else "states" if window == STATE_WINDOW else str(window)


def _check_windows(request: PoolRequest, version: Version, cache: Cache, connector: str) -> None:
    """Refuse sliding windows where vLLM does not move them group by group, and what is not modelled of it."""
    uneven = not request.arch.compresses and cache.told is not None and len({tokens for *_, tokens in cache.told[0].kinds}) > 1
    no_pools_with(
        {
            "sliding windows over Mooncake before vLLM 0.33": connector == MOONCAKE and version.number < MOONCAKE_GROUPS_SINCE,
            "recurrent layers before vLLM 0.33": STATE_WINDOW in cache.windows and version.number < STATES_SINCE,
            "sliding windows or recurrent layers and pipeline stages": request.pipeline_parallel > 1,
            "sliding windows over layers of unequal size": uneven,
        }
    )
    kept = request.flags.get("disable_hybrid_kv_cache_manager") is False
    if version.number >= GROUPS_BY_DEFAULT_SINCE or (kept and version.number >= GROUPS_SINCE):
        return
    first, told = (".".join(map(str, since)) for since in (GROUPS_SINCE, GROUPS_BY_DEFAULT_SINCE))
    raise InputError(
        f"vLLM {version.name} keeps whole sequences in the sliding windows of {request.arch.name} beside {connector}, which is "
        f"not modelled: it moves windows alone from {first} on where told so, by itself from {told} on",
        where="deployment.engine_args.disable_hybrid_kv_cache_manager",
        mend=f"give version {first} or later and --no-disable-hybrid-kv-cache-manager, or version {told} or later",
    )


def _check_stages(request: PoolRequest, connector: str, version: Version) -> None:
    """Refuse pipeline stages where vLLM does: only a prefill server that pushes has them.

    Source: pull requests 45880 (2026-06, which plans none on the side that answers), 53360 (2026-08, open) and, of Mooncake,
    44528 (2026-06: on the side of prompts alone).
    """
    pushes = connector == PUSHING or (connector == MOONCAKE and version.number >= MOONCAKE_GROUPS_SINCE)
    if request.pipeline_parallel == 1 or (pushes and request.role == "prefill"):
        return
    raise InputError(
        f"vLLM's {connector} knows no pipeline stages in a {request.role} pool: a prefill pool whose blocks {PUSHING} or (from "
        f"0.33 on) {MOONCAKE} sends may have some, a decode pool never",
        where="deployment.pipeline_parallel",
        mend="use tensor_parallel" + (f", or transfer: {{connector: {PUSHING}}}" if request.role == "prefill" else ""),
    )


def _note(handover: Handover, read_at: str) -> str:
    """What is assumed of it."""
    if handover.reserves:
        return (
            f"{handover.connector} (rules read at vLLM {read_at}): its proxy sends a request to both servers at once; blocks are "
            "sent when its prompt is computed and the decode server has place for them, which computes the last token again; an "
            f"engine that waits for its peer looks every {Peer.turn_s * 1e3:g} ms (assumed); what proxy and connections take is "
            "left out: a published table has 32 to 39 ms more to the first token of up to 2,048 tokens"
        )
    return (
        f"{handover.connector} (rules read and recorded at vLLM {read_at}): a decode server reads the blocks of a "
        "whole prompt when it has place for them, and computes the last token again; an engine that waits for its peer "
        f"looks every {Peer.turn_s * 1e3:g} ms; between a prompt's end and its arrival there {HANDOVER_S:g} s pass besides "
        "the transfer, as one published measurement has it (vLLM issue 50913: assumed for other proxies and models)"
    )
