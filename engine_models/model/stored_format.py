"""The number formats in which a checkpoint says it is stored (``quantization_config``), and the parts that it leaves alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from engine_models.model.config import Config
from hardware_profiles.errors import InputError
from hardware_profiles.packed_formats import MLX_BITS
from hardware_profiles.records import dataclass


def _group_bits(bits: int, group: Any, zero_bits: int) -> float:
    """Bits a weight with one 16-bit scale and `zero_bits` of zero point each `group` weights (<=0: none)."""
    if not isinstance(group, int) or group <= 0:
        return float(bits)
    return bits + (16 + zero_bits) / group


def _compressed_tensors(weights: Config, weight_only: bool) -> tuple[str, float] | None:
    """Format and bits of the weights entry of a compressed-tensors or modelopt config group, without activations or with."""
    bits, kind, group = weights.get("num_bits"), weights.get("type", "float"), weights.get("group_size")
    if kind == "float" and bits == 8:
        return ("fp8_block" if weights.get("strategy") == "block" else "fp8"), 0.0
    if kind == "float" and bits == 4:
        return ("mxfp4" if group == 32 else "nvfp4"), 0.0
    if kind == "int" and bits == 8:
        return ("int8_wo", _group_bits(8, group, 0)) if weight_only else ("int8", 0.0)
    if kind == "int" and bits == 4:
        return "int4", _group_bits(4, group, 0 if weights.get("symmetric", True) else 4)
    return None


def _stored_format(quantization: Config) -> tuple[str, float] | None:
    """Format name and bits (0: the format's own) of a ``quantization_config``; None if not recognised."""
    method = str(quantization.get("quant_method", "")).lower()
    algorithm = str(quantization.get("quant_algo", "")).upper()
    bits = quantization.get("bits", quantization.get("w_bit"))
    group = quantization.get("group_size", quantization.get("q_group_size"))
    if algorithm in ("FP8", "NVFP4"):
        return algorithm.lower(), 0.0
    if algorithm == "FP8_PB_WO":
        return "fp8_block", 0.0
    if method == "fp8":
        return ("fp8_block" if quantization.get("weight_block_size") else "fp8"), 0.0
    if method in ("fbgemm_fp8", "ptpc_fp8"):
        return "fp8", 0.0
    if method == "mxfp4":
        return "mxfp4", 0.0
    if method in ("awq", "gptq", "auto-round", "auto_round"):
        if bits == 8:
            return "int8_wo", _group_bits(8, group, 8)
        if bits in (None, 4):
            return ("awq" if method == "awq" else "gptq"), _group_bits(4, group or 128, 4)
        return None
    if method == "bitsandbytes":
        return ("int8" if quantization.get("load_in_8bit") else "nf4"), 0.0
    if not method and not algorithm and isinstance(bits, int) and isinstance(group, int) and bits in MLX_BITS:
        if quantization.get("mode", "affine") == "affine":  # MLX: a 16-bit scale and a 16-bit bias a group
            return f"mlx_{bits}bit", bits + 32 / group
        return ("mxfp4", 0.0) if quantization["mode"] == "mxfp4" else None
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping) and groups:
        group = next(iter(groups.values()))
        weights = group.get("weights")
        weight_only = group.get("input_activations") is None
        return _compressed_tensors(weights, weight_only) if isinstance(weights, Mapping) else None
    return None


def _matches(module: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if "*" in pattern:
        return fnmatch.fnmatchcase(module, pattern) or fnmatch.fnmatchcase(module, pattern + ".*")
    return f".{pattern}." in f".{module}."


def _unquantized(
    quantization: Config,
    dense: list[int],
    moe: list[int],
    layers: int,
    recurrence: str = "linear_attn.out_proj",
) -> tuple[str, ...]:
    """The parts whose main matrices the checkpoint leaves alone, probed by their usual module names."""
    ignored: list[str] = []
    for key in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers"):
        value = quantization.get(key)
        ignored += [str(v) for v in value] if isinstance(value, list) else []
    middle = layers // 2
    plain = dense[len(dense) // 2] if dense else 0
    routed = next((i for i in moe if i >= middle), middle)
    experts: tuple[str, ...] = (
        f"layers.{routed}.mlp.experts.0.down_proj",
        f"layers.{routed}.block_sparse_moe.experts.0.w2",
    )
    if routed in dense:  # beside an MLP
        experts = (f"layers.{routed}.experts.0.down_proj",)
    probes = {
        "attention": (f"layers.{middle}.self_attn.o_proj",),
        "linear_attention": (f"layers.{middle}.{recurrence}",),
        "mlp": (f"layers.{plain}.mlp.down_proj",),
        "experts": experts,
        "shared_expert": (
            f"layers.{routed}.mlp.shared_experts.down_proj",
            f"layers.{routed}.mlp.shared_expert.down_proj",
            f"layers.{routed}.feed_forward.shared_expert.down_proj",
        ),
    }
    prefixes = ("model.", "language_model.model.", "model.language_model.")
    return tuple(
        part
        for part, names in probes.items()
        if any(
            _matches(prefix + name, pattern) for name in names for prefix in prefixes for pattern in ignored
        )
    )


_PARTS = (
    ("shared_expert", re.compile(r"shared_?experts?")),
    ("experts", re.compile(r"experts|fc1_latent|fc2_latent")),
    ("linear_attention", re.compile(r"linear_attn|mamba|mixer\.(in|out)_proj")),
    ("attention", re.compile(r"attn|attention|mixer\.[qkvo]_proj")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|mixer\.(up|down)_proj")),
)
"""Parts of a model by the names of their modules, the first that fits."""
_ALGORITHMS = {
    "FP8": "fp8",
    "FP8_PB_WO": "fp8_block",
    "NVFP4": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "MXFP8": "fp8",
    "MXFP4": "mxfp4",
}
"""ModelOpt's words of number formats. MXFP8 (scales of 32 values) is counted as FP8 (assumed; 3 % more bytes)."""


def _mixed(quantization: Config, where: str) -> dict[str, str]:
    """Format of each part of a checkpoint that lists its layers one by one (ModelOpt's MIXED_PRECISION)."""
    found: dict[str, str] = {}
    for module, entry in quantization["quantized_layers"].items():
        algorithm = str(entry.get("quant_algo", "")).upper() if isinstance(entry, Mapping) else str(entry)
        if algorithm not in _ALGORITHMS:
            raise InputError(
                f"'quant_algo' {algorithm or '(none)'} of '{module}' is not known",
                where=where,
                mend=f"known are {', '.join(_ALGORITHMS)}; or name one format with 'weights' in the deployment",
            )
        part = next((part for part, names in _PARTS if names.search(module)), None)
        if part is not None:
            found.setdefault(part, _ALGORITHMS[algorithm])
    return found


@dataclass(frozen=True)
class Stored:
    """How a checkpoint is stored: fields of `Architecture` of the same names."""

    quantization: str | None = None
    quantization_bits: float = 0.0
    unquantized: tuple[str, ...] = ()
    part_formats: tuple[tuple[str, str], ...] = ()


def kv_quantization(config: Config) -> str | None:
    """Format in which ModelOpt's checkpoint wants its KV cache, or None.

    `hf_quant_config.json` says ``kv_cache_quant_algo``, and `config.json` ``kv_cache_scheme``, as a word or as what it is.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or not str(quantization.get("quant_method", "")).startswith("modelopt"):
        return None
    stated = quantization.get("kv_cache_quant_algo") or quantization.get("kv_cache_scheme")
    if isinstance(stated, Mapping):
        return "fp8" if (stated.get("num_bits"), stated.get("type")) == (8, "float") else None
    return "fp8" if str(stated).upper() == "FP8" else None


def stored_format(config: Config, dense: list[int], moe: list[int], layers: int, where: str) -> Stored:
    """What the config says of its number formats. dense, moe : layers with such an MLP."""
    quantization = config.get("quantization_config") or config.get("quantization")
    if quantization is None and isinstance(config.get("text_config"), Mapping):
        quantization = config["text_config"].get("quantization_config")
    if not isinstance(quantization, Mapping) or not quantization:
        return Stored()
    if isinstance(quantization.get("quantized_layers"), Mapping):
        return _stored_mixed(quantization, where)
    stored = _stored_format(quantization)
    if stored is None:
        raise InputError(
            f"quantization method '{quantization.get('quant_method')}' of the model config is not known",
            where=where,
            mend="name the format with 'weights' in the deployment and drop 'quantization_config'",
        )
    name, bits = stored
    parts = (("experts", "mxfp4"),) if config.get("expert_dtype") == "fp4" and name != "mxfp4" else ()
    inner = config.get("text_config")
    kimi = "linear_attn_config" in {**config, **(inner if isinstance(inner, Mapping) else {})}
    recurrence = "self_attn.o_proj" if kimi else "linear_attn.out_proj"
    return Stored(name, bits, _unquantized(quantization, dense, moe, layers, recurrence), parts)


def _stored_mixed(quantization: Config, where: str) -> Stored:
    """The format of most weights (experts, else MLPs) counts as the checkpoint's, the others as those of parts."""
    parts = _mixed(quantization, where)
    if str(quantization.get("quant_method", "")).lower() == "fp8":  # what is not listed is in blocks of FP8
        parts = {part: parts.get(part, "fp8_block") for part, _ in _PARTS}
    main = parts.get("experts") or parts.get("mlp") or next(iter(parts.values()), None)
    if main is None:
        return Stored()
    left = tuple(part for part, _ in _PARTS if part not in parts)
    return Stored(main, 0.0, left, tuple((part, name) for part, name in parts.items() if name != main))
