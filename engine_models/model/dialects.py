"""How quantisers write which number format a tensor is in: compressed-tensors, ModelOpt, Quark, torchao, AutoRound and the rest.

Each reader answers with a name of :data:`engine_models.model.formats.FORMATS` and the bits a weight that the file states (0: the
format's own), or with None where the format is none of these. Source: what vLLM 0.33 (`model_executor/layers/quantization`) and
SGLang 0.5.23 (`srt/layers/quantization`) read of the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from engine_models.model.config import Config
from hardware_profiles.packed_formats import MLX_BITS

Found = tuple[str, float]

MODELOPT = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8_block",
    "FP8_BLOCK_SCALES": "fp8_block",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_NVFP4": "nvfp4a16",
    "MXFP8": "mxfp8",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "W4A8_MXFP4_MXFP8": "mxfp4",
    "W4A8_AWQ": "w4afp8",
    "W4A16_AWQ": "int4",
    "INT4_AWQ": "int4",
    "W8A16": "int8_wo",
    "INT8_SQ": "int8",
}
"""ModelOpt's words of number formats (`quant_algo`)."""

_MX_GROUP = 32
_TORCHAO = {
    "int8weightonly": "int8_wo",
    "int8dynamicactivationint8weight": "int8",
    "float8weightonly": "fp8a16",
    "float8dynamicactivationfloat8weight": "fp8",
    "float8staticactivationfloat8weight": "fp8",
}


def group_bits(bits: int, group: Any, zero_bits: int) -> float:
    """Bits a weight with one 16-bit scale and `zero_bits` of zero point each `group` weights (<=0: none)."""
    if not isinstance(group, int) or group <= 0:
        return float(bits)
    return bits + (16 + zero_bits) / group


def of_tensors(weights: Config, inputs: Config | None) -> Found | None:
    """Entries ``weights`` and ``input_activations`` of a group of compressed-tensors, or of ModelOpt's."""
    bits, kind, group = weights.get("num_bits"), weights.get("type", "float"), weights.get("group_size")
    if kind == "float" and bits == 8:
        if group == _MX_GROUP:
            return "mxfp8", 0.0
        if weights.get("strategy") == "block":
            return "fp8_block", 0.0
        return ("fp8" if inputs is not None else "fp8a16"), 0.0
    if kind == "float" and bits == 4:
        if group == _MX_GROUP:
            return "mxfp4", 0.0
        return ("nvfp4" if inputs is not None else "nvfp4a16"), 0.0
    if kind == "int" and bits == 8:
        return ("int8", 0.0) if inputs is not None else ("int8_wo", group_bits(8, group, 0))
    if kind == "int" and bits == 4:
        stored = group_bits(4, group, 0 if weights.get("symmetric", True) else 4)
        if inputs is None:
            return "int4", stored
        return ("w4afp8", stored) if inputs.get("type") == "float" and inputs.get("num_bits") == 8 else None
    return None


def of_quark(entry: Config) -> Found | None:
    """A ``global_quant_config``, or an entry of ``layer_quant_config``, of AMD's Quark; None also where it holds no weights."""
    weights, inputs = entry.get("weight"), entry.get("input_tensors")
    if isinstance(weights, list):  # quantised twice: integers of 4 bits from 8-bit floats
        kinds = [str(each.get("dtype")) for each in weights if isinstance(each, Mapping)]
        return ("w4afp8", 0.0) if sorted(kinds) == ["fp8_e4m3", "int4"] else None
    if not isinstance(weights, Mapping):
        return None
    kind, group = str(weights.get("dtype")), weights.get("group_size")
    if kind == "fp8_e4m3":
        if weights.get("qscheme") in ("per_group", "per_block"):
            return ("mxfp8" if group == _MX_GROUP else "fp8_block"), 0.0
        return ("fp8" if inputs else "fp8a16"), 0.0
    if kind == "fp4":
        return ("mxfp4" if group == _MX_GROUP else "nvfp4" if inputs else "nvfp4a16"), 0.0
    if kind == "int8":
        return ("int8", 0.0) if inputs else ("int8_wo", group_bits(8, group, 0))
    if kind in ("int4", "uint4") and not inputs:
        return "int4", group_bits(4, group, 0 if kind == "int4" else 4)
    return None


def _of_torchao(quantization: Config) -> Found | None:
    """The one ``default`` of torchao's `quant_type`, by the name of its configuration."""
    stated = quantization.get("quant_type")
    stated = stated.get("default") if isinstance(stated, Mapping) else stated
    data: Mapping[str, Any] = {}
    if isinstance(stated, Mapping):
        data = stated.get("_data") or {}
        stated = stated.get("_type")
    name = str(stated).lower().replace("_", "").removesuffix("config")
    if name == "int4weightonly":
        return "int4", group_bits(4, data.get("group_size", 128), 16)
    found = _TORCHAO.get(name)
    return None if found is None else (found, 8.0 if found == "int8_wo" else 0.0)


def _of_groups(method: str, quantization: Config) -> Found | None:
    """GPTQ, AWQ and AutoRound: integers with a scale and a zero a group, or, of AutoRound, floats by `data_type`."""
    bits = quantization.get("bits", quantization.get("w_bit"))
    group = quantization.get("group_size", quantization.get("q_group_size"))
    kind = str(quantization.get("data_type", "int"))
    if kind.startswith(("mx_fp", "nv_fp", "fp")):
        named = {("mx_fp", 4): "mxfp4", ("mx_fp", 8): "mxfp8", ("nv_fp", 4): "nvfp4", ("fp", 8): "fp8"}
        found = next((name for (lead, wide), name in named.items() if kind.startswith(lead) and bits == wide), None)
        return None if found is None else (found, 0.0)
    if bits == 8:
        return "int8_wo", group_bits(8, group, 8)
    if bits in (None, 4):
        return ("awq" if method == "awq" else "gptq"), group_bits(4, group or 128, 4)
    return None


_BY_METHOD = {
    "fbgemm_fp8": "fp8",
    "ptpc_fp8": "fp8",
    "w8a8_fp8": "fp8",
    "w8a8_int8": "int8",
    "blockwise_int8": "int8",
    "mxfp4": "mxfp4",
    "mxfp8": "mxfp8",
    "modelopt_mxfp8": "mxfp8",
}


def of_quantization(quantization: Config) -> Found | None:
    """The one format of a ``quantization_config`` without groups."""
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", "")).upper()
    if algorithm in MODELOPT:
        name, group = MODELOPT[algorithm], quantization.get("group_size")
        if name == "nvfp4" and _weights_alone(quantization):
            name = "nvfp4a16"
        return name, group_bits(4, group, 0) if name in ("int4", "w4afp8") and isinstance(group, int) else 0.0
    if method in _BY_METHOD:
        return _BY_METHOD[method], 0.0
    if method == "fp8":
        block = quantization.get("weight_block_size")
        return ("fp8" if not block else "mxfp8" if block == [1, _MX_GROUP] else "fp8_block"), 0.0
    if method in ("awq", "gptq", "auto-round", "auto_round", "inc"):
        return _of_groups(method, quantization)
    if method == "bitsandbytes":
        return ("int8" if quantization.get("load_in_8bit") else "nf4"), 0.0
    if method == "torchao":
        return _of_torchao(quantization)
    bits, group = quantization.get("bits"), quantization.get("group_size")
    if not method and not algorithm and isinstance(bits, int) and isinstance(group, int) and bits in MLX_BITS:
        if quantization.get("mode", "affine") == "affine":  # MLX: a 16-bit scale and a 16-bit bias a group
            return f"mlx_{bits}bit", bits + 32 / group
        return ("mxfp4", 0.0) if quantization["mode"] == "mxfp4" else None
    return None


def _weights_alone(quantization: Config) -> bool:
    """Whether all of ModelOpt's groups have no `input_activations`, which a file that says NVFP4 may do."""
    groups = quantization.get("config_groups")
    found = [group for group in groups.values() if isinstance(group, Mapping)] if isinstance(groups, Mapping) else []
    return bool(found) and all("input_activations" in group and group["input_activations"] is None for group in found)


def overridden(quantization: Config, names: tuple[str, ...], whole: Found) -> Found | None:
    """The format of modules of these names where rules change it, None where these leave them alone; else that of `whole`.

    GPTQModel's ``dynamic`` has regular expressions from a name's beginning, "-:" before those that are left alone; AutoRound's
    ``extra_config`` has whole names, or expressions for any part of one (vLLM 0.33's `gptq_utils.py` and `inc/config_parser.py`).
    """
    dynamic, extra = quantization.get("dynamic"), quantization.get("extra_config")
    for pattern, said in dynamic.items() if isinstance(dynamic, Mapping) else ():
        rule = str(pattern)
        if _met(re.match, rule.removeprefix("-:").removeprefix("+:"), names):
            return None if rule.startswith("-:") else _changed(quantization, said, whole)
    for pattern, said in extra.items() if isinstance(extra, Mapping) else ():
        if pattern in names or (_SPECIAL & set(str(pattern)) and _met(re.search, str(pattern), names)):
            return _changed(quantization, said, whole)
    return whole


_SPECIAL = set(r"\*+?^$()[]{}|")


def _met(how: Callable[[str, str], re.Match[str] | None], pattern: str, names: tuple[str, ...]) -> bool:
    """Whether an expression matches one of `names`; one that is none matches nothing."""
    try:
        return any(how(pattern, name) is not None for name in names)
    except re.error:
        return False


def _changed(quantization: Config, said: Any, whole: Found) -> Found | None:
    """The format of a rule's own bits and group, None of 16 bits and more."""
    if not isinstance(said, Mapping) or not {"bits", "group_size"} & set(said):
        return whole
    if isinstance(said.get("bits"), int) and said["bits"] >= WIDE_BITS:
        return None
    return _of_groups(str(quantization.get("quant_method", "")).lower(), {**quantization, **said}) or whole


WIDE_BITS = 16
"""From so many bits on weights are not narrow."""


REFUSED = {
    "hqq": "no server that is modelled loads HQQ's files",
    "fp_quant": "FP-Quant's rotations before each product are not modelled",
    "aqlm": "AQLM's code books are not modelled",
    "quip": "QuIP's code books are not modelled",
    "vptq": "VPTQ's code books are not modelled",
    "higgs": "HIGGS's grids are not modelled",
    "spqr": "SpQR's outliers are not modelled",
    "modelslim": "ModelSlim's files are for Ascend NPUs, which are not modelled",
    "gguf": "a config.json with GGUF weights says no format: give the path of the GGUF file",
}
"""Quantisers whose files are refused, by their `quant_method`, and why."""
