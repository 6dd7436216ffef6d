"""How suites spell engines, versions, hardware and number formats, and what each spelling means here.

The one place for it; what is not known raises `Unplayable` with the reason, nothing is guessed silently.
"""

from __future__ import annotations

import re
from typing import Any


class Unplayable(Exception):
    """An experiment that cannot be replayed, and why."""


# -- engines ------------------------------------------------------------------------------------------------

_ENGINES = {
    "vllm-openai": "vllm",
    "vllm-v1": "vllm",
    "vllm_v1": "vllm",
    "sgl": "sglang",
    "tensorrt-llm": "trtllm",
    "tensorrt_llm": "trtllm",
    "trt": "trtllm",
}
_VARIANT = re.compile(r"v?\d+(\.\w+)*")


def engine_name(row: dict[str, Any]) -> str:
    """Name of a row's engine, without what a suite writes behind it."""
    words = str(row["engine"]).lower().split()
    return _ENGINES.get(words[0], words[0]) if words else ""


def engine_variant(row: dict[str, Any]) -> str | None:
    """What a suite writes behind the engine's name where it is no version, else None."""
    words = str(row["engine"]).lower().split()[1:]
    return None if all(_VARIANT.fullmatch(word) for word in words) else " ".join(words)


# -- hardware -----------------------------------------------------------------------------------------------

_COUNT = re.compile(r"^\s*\d+\s*[x×]\s*|(?<![a-z])\s*[x×]\s*\d{1,3}\s*$", re.IGNORECASE)


def hardware_name(row: dict[str, Any]) -> str:
    """Name of a row's device without a count of devices (``8x H100``)."""
    return _COUNT.sub("", str(row["hardware"])).strip()


# -- number formats -----------------------------------------------------------------------------------------

_SIXTEEN = ("bf16", "fp16", "bfloat16", "float16", "half", "16bit", "unquantized", "none", "auto", "")
_LABELS: dict[str, tuple[str, ...]] = {
    "fp8": ("fp8", "fp8_block"),
    "float8": ("fp8", "fp8_block"),
    "e4m3": ("fp8", "fp8_block"),
    "fp8_block": ("fp8_block",),
    "blockfp8": ("fp8_block",),
    "fp4": ("nvfp4", "mxfp4"),
    "nvfp4": ("nvfp4",),
    "mxfp4": ("mxfp4",),
    "int8": ("int8",),
    "w8a8": ("int8", "fp8", "fp8_block"),
    "w8a16": ("int8_wo",),
    "int4": ("int4", "awq", "gptq"),
    "w4a16": ("int4", "awq", "gptq"),
    "awq": ("awq", "int4"),
    "gptq": ("gptq", "int4"),
}
"""Label -> the formats it may mean; the checkpoint's own if it is one of them, else the first."""
# fmt: off
_BESIDE = frozenset({
    "dynamic", "static", "checkpoint", "block", "blockwise", "scale", "kv", "cache", "weights", "weight",
    "only", "wo", "activations", "act", "label", "quantized", "quantization", "online", "per", "tensor",
    "channel", "token", "e4m3fn", "marlin",
})
# fmt: on
"""Words beside a format that do not change it ("block" does, which `_label` reads)."""


def _label(text: str) -> str | None:
    """The label of `_LABELS` or "16bit" that a spelling means; None if it is none of them."""
    words = [word for word in re.split(r"[^a-z0-9]+", text.lower().replace("16-bit", "16bit")) if word]
    if all(word in _SIXTEEN for word in words):
        return "16bit"
    formats = [word for word in words if word in _LABELS or word in _SIXTEEN]
    rest = [word for word in words if word not in formats and word not in _BESIDE]
    if not formats or rest:
        return None
    named = "fp8" if set(formats) <= {"fp8", "w8a8", "e4m3", "float8"} and formats != ["w8a8"] else formats[0]
    if set(formats) <= {"int8", "w8a8"} and "int8" in formats:
        named = "int8"
    if named in _SIXTEEN:
        return "16bit"
    if named == "int8" and ("wo" in words or "only" in words):
        return "w8a16"
    return "fp8_block" if named == "fp8" and ("block" in words or "blockwise" in words) else named


def weights_format(row: dict[str, Any], quantization: str | None) -> str:
    """Format of a row's weights; `quantization` is the checkpoint's own (None: 16 bits).

    A 16-bit label, or none, of a checkpoint that is stored quantized speaks of its activations: engines load it as it is.
    """
    text = str(row.get("precision", ""))
    label = _label(text)
    if label == "16bit":
        return quantization or "bf16"
    if label is not None:
        formats = _LABELS[label]
        return quantization if quantization in formats else formats[0]
    if quantization:
        return quantization
    raise Unplayable(f"number format '{text}' is unknown")


def formats_of(row: dict[str, Any], quantization: str | None) -> dict[str, str]:
    """Weights and KV format of a row, keys of a pool; `quantization` is the checkpoint's own."""
    pool = {"weights": weights_format(row, quantization)}
    kv = (str(row.get("kv_dtype", "auto")).lower().split() or ["auto"])[0]
    if kv not in ("auto", "none", "default", "same", "model"):
        pool["kv_cache"] = "fp8" if kv.startswith("fp8") else kv
    return pool
