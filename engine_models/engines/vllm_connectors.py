"""What a ``--kv-transfer-config`` of vLLM names: a connector between servers, one beyond the device, or a `MultiConnector`.

A `MultiConnector` loads what a request lacks by the first of its connectors that has something, and stores by all (vLLM,
`kv_connector/v1/multi_connector.py`, public copies to 2026, read 2026-11).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware_profiles.errors import InputError

WHERE = "deployment.engine_args.kv_transfer_config"
MULTI = "MultiConnector"
OF_SEVERAL = (MULTI, "PdConnector")
"""Connectors that list others; Dynamo's has its block manager and NIXL, for prefill servers."""
TRANSFERS = ("NixlConnector", "NixlPushConnector", "MooncakeConnector", "P2pNcclConnector", "MoRIIOConnector")
"""Connectors that carry KV blocks from one server to another."""


def connectors(flags: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The connectors that are named, in order; InputError for a list that is none."""
    config = flags.get("kv_transfer_config") or {}
    if config.get("kv_connector") not in OF_SEVERAL:
        return [config] if config else []
    extra = config.get("kv_connector_extra_config")
    listed = extra.get("connectors") if isinstance(extra, Mapping) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(each, Mapping) for each in listed):
        raise InputError(
            f"{config['kv_connector']} lists no connectors",
            where=WHERE,
            mend='write kv_connector_extra_config: {"connectors": [{"kv_connector": "NixlConnector", ...}, ...]}',
        )
    return listed


def between(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """The connector between servers, empty without one; a role that it does not say is that of the whole."""
    found = _one([each for each in connectors(flags) if each.get("kv_connector") in TRANSFERS])
    return {"kv_role": flags["kv_transfer_config"].get("kv_role"), **found} if found else {}


def beyond(flags: Mapping[str, Any]) -> Mapping[str, Any]:
    """The connector that keeps blocks beyond the device; a connector between servers that stands alone, so that it is named."""
    listed = connectors(flags)
    return listed[0] if len(listed) == 1 else _one([each for each in listed if each.get("kv_connector") not in TRANSFERS])


def asks_tiers_first(flags: Mapping[str, Any]) -> bool:
    """Whether what lies beyond the device is asked before the other server."""
    names = [each.get("kv_connector") in TRANSFERS for each in connectors(flags)]
    return True in names[1:] and not names[0]


def encodes(flags: Mapping[str, Any]) -> bool:
    """Whether a server does nothing but encode images for others, as its own flags say."""
    return bool(flags.get("mm_encoder_only")) or (flags.get("ec_transfer_config") or {}).get("ec_role") == "ec_producer"


def _one(found: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    if len(found) > 1:
        names = " and ".join(str(each.get("kv_connector")) for each in found)
        raise InputError(
            f"a {MULTI} of {names} is not modelled: one connector between servers and one beyond the device",
            where=WHERE,
            mend="leave one of them out",
        )
    return found[0] if found else {}


__all__ = ["MULTI", "TRANSFERS", "asks_tiers_first", "between", "beyond", "connectors", "encodes"]
