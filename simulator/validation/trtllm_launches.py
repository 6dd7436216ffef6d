"""What is known of measured TensorRT-LLM runs beside rows and launches.

Rows of attention data parallelism are refused, by the flag that launches it.
"""

from __future__ import annotations

from typing import Any

from engine_models.engines.trtllm import ENGINE
from engine_models.engines.trtllm_flags import OWN_KERNELS
from simulator.validation.launches import launch_of
from simulator.validation.published import Published, Row, number, parts
from simulator.validation.spellings import Unplayable


def launch_flags(row: Row, device: str) -> dict[str, Any]:
    """Flags with which a row's server was launched: those of the command and those of its YAML file.

    Experts of the TRTLLM backend in mxfp4 take activations in mxfp8 on Blackwell.
    """
    flags = dict(launch_of(row).flags)
    flags |= flags.pop("extra_llm_api_options", {})
    backend = (flags.get("moe_config") or {}).get("backend")
    if backend == OWN_KERNELS and "gpt-oss" in str(row["model"]) and device.startswith("b200"):
        flags["activations"] = "fp8"
    return flags


def release(stated: str) -> str:
    """The modelled version for a stated one: release candidates stand for what they lead to."""
    if parts(stated) < (0, 20):
        raise Unplayable(f"{ENGINE.title} {stated} is older than the modelled versions")
    return stated


def columns(row: Row) -> dict[str, Any]:
    """Flags that a row's columns state."""
    names = {"max_model_len": "max_seq_len", "max_num_seqs": "max_batch_size", "max_num_batched_tokens": "max_num_tokens"}
    return {flag: int(row[name]) for name, flag in names.items() if number(row, name)}


TRTLLM = Published(release=release, columns=columns, launch=launch_flags, ranks={"enable_attention_dp": True})
