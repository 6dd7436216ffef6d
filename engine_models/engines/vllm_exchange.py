"""How vLLM's data-parallel ranks exchange tokens around experts that they share (`--all2all-backend`)."""

from __future__ import annotations

from typing import Any

from engine_models.cost.one_sided import joined
from engine_models.declaration import PoolRequest, Said
from engine_models.engines.vllm_flags import GATHER, ONE_SIDED
from hardware_profiles.device import load_device

SENT_BYTES = {"nvfp4": 0.5625, "fp8_block": 1.03125, "mxfp4": 1.03125}
"""Weights of experts -> bytes of a value that is sent to the ranks of its experts, scales included: activations are quantised
before it where experts compute in as few bits (mxfp4: in FP8), else it has two. kind: datasheet, source: vLLM 0.33.0
`fused_moe/all2all_utils.py` (`flashinfer_one_sided_dispatch_layout`), read 2026-11."""


def exchange(request: PoolRequest, said: Said) -> dict[str, Any]:
    """The `Terms` of the exchange between ranks, and what the summary says of it."""
    asked, ranks = str(request.flags.get("all2all_backend") or GATHER), request.data_parallel
    if ranks == 1 or asked == GATHER or not request.arch.has_experts:
        return {}
    if asked != ONE_SIDED:
        said.warnings.append(
            f"flag `all2all_backend` ({asked}) is not modelled here; in the engine it changes the speed of the exchange between "
            f"devices, which is priced as {GATHER}"
        )
        return {}
    whole = request.tensor_parallel == 1 and request.expert_parallel == ranks
    if not (whole and joined(load_device(request.device_name), ranks)):
        said.warnings.append(
            f"flag `all2all_backend` ({asked}) is modelled for one rank a device, whole experts on each (enable_expert_parallel) "
            f"and one NVLink switch between them; the exchange is priced as {GATHER}"
        )
        return {}
    said.notes.append("ranks write tokens to the ranks of their experts over NVLink, and read the sums from there")
    formats = request.formats
    narrow = formats.weights.name != "mxfp4" or formats.activations.compute == "fp8"
    return {"one_sided": True, "gathered_bytes": SENT_BYTES.get(formats.weights.name, 2.0) if narrow else 2.0}


__all__ = ["SENT_BYTES", "exchange"]
