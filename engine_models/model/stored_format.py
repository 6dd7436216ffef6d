"""The number formats in which a checkpoint says it is stored (``quantization_config``), and the parts that it leaves alone."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping
from typing import Any

from engine_models.model.config import Config
from engine_models.model.dialects import (
    MODELOPT,
    REFUSED,
    Found,
    of_quantization,
    of_quark,
    of_tensors,
    overridden,
)
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass


def _matches(module: str, pattern: str) -> bool:
    if pattern.startswith("re:"):
        return re.match(pattern[3:], module) is not None
    if "*" in pattern:
        return fnmatch.fnmatchcase(module, pattern) or fnmatch.fnmatchcase(module, pattern + ".*")
    return f".{pattern}." in f".{module}."


_PREFIXES = ("model.", "language_model.model.", "model.language_model.")


def _probes(dense: list[int], moe: list[int], layers: int, recurrence: str) -> dict[str, tuple[str, ...]]:
    """Usual names of a module of each part, with all beginnings. dense, moe : layers with such an MLP."""
    middle = layers // 2
    plain = dense[len(dense) // 2] if dense else 0
    routed = next((i for i in moe if i >= middle), middle)
    experts: tuple[str, ...] = (
        f"layers.{routed}.mlp.experts.0.down_proj",
        f"layers.{routed}.block_sparse_moe.experts.0.w2",
    )
    if routed in dense:  # beside an MLP
        experts = (f"layers.{routed}.experts.0.down_proj",)
    names = {
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
    return {part: tuple(prefix + name for name in found for prefix in _PREFIXES) for part, found in names.items()}


def _unquantized(quantization: Config, probes: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """The parts whose main matrices the checkpoint leaves alone, probed by their usual module names."""
    ignored: list[str] = []
    for key in ("modules_to_not_convert", "ignore", "exclude_modules", "ignored_layers", "exclude", "llm_int8_skip_modules"):
        value = quantization.get(key)
        ignored += [str(v) for v in value] if isinstance(value, list) else []
    return tuple(part for part, names in probes.items() if any(_matches(name, pattern) for name in names for pattern in ignored))


_PARTS = (
    ("shared_expert", re.compile(r"shared_?experts?")),
    ("experts", re.compile(r"experts|fc1_latent|fc2_latent")),
    ("linear_attention", re.compile(r"linear_attn|mamba|mixer\.(in|out)_proj")),
    ("attention", re.compile(r"attn|attention|mixer\.[qkvo]_proj")),
    ("mlp", re.compile(r"mlp|ffn|feed_forward|mixer\.(up|down)_proj")),
)
"""Parts of a model by the names of their modules, the first that fits."""


def _mixed(quantization: Config, where: str) -> dict[str, str]:
    """Format of each part of a checkpoint that lists its layers one by one (ModelOpt's MIXED_PRECISION)."""
    found: dict[str, str] = {}
    for module, entry in quantization["quantized_layers"].items():
        algorithm = str(entry.get("quant_algo", "")).upper() if isinstance(entry, Mapping) else str(entry)
        if algorithm not in MODELOPT:
            raise InputError(
                f"'quant_algo' {algorithm or '(none)'} of '{module}' is not known",
                where=where,
                mend=f"known are {', '.join(MODELOPT)}; or name one format with 'weights' in the deployment",
            )
        part = next((part for part, names in _PARTS if names.search(module)), None)
        if part is not None:
            found.setdefault(part, MODELOPT[algorithm])
    return found


@dataclass(frozen=True)
class Stored:
    """How a checkpoint is stored: fields of `Architecture` of the same names."""

    quantization: str | None = None
    quantization_bits: float = 0.0
    unquantized: tuple[str, ...] = ()
    part_formats: tuple[tuple[str, str], ...] = ()


_STATES_KV = ("modelopt", "compressed-tensors")
"""Beginnings of `quant_method` of checkpoints whose statement on the KV cache engines keep to (vLLM 0.33's `attention.py`, SGLang
0.5.23's `compressed_tensors.py`)."""


def kv_quantization(config: Config) -> str | None:
    """Format in which the checkpoint of ModelOpt or compressed-tensors wants its KV cache, or None.

    `hf_quant_config.json` says ``kv_cache_quant_algo``, and `config.json` ``kv_cache_scheme``, as a word or as what it is.
    """
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping) or not str(quantization.get("quant_method", "")).startswith(_STATES_KV):
        return None
    stated = quantization.get("kv_cache_quant_algo") or quantization.get("kv_cache_scheme")
    if isinstance(stated, Mapping):
        found = {8: "fp8", 4: "nvfp4"}.get(stated.get("num_bits", 0)) if stated.get("type") == "float" else None
        return None if found == "nvfp4" and quantization["quant_method"] == "compressed-tensors" else found
    return {"FP8": "fp8", "NVFP4": "nvfp4"}.get(str(stated).upper())


def stored_format(config: Config, dense: list[int], moe: list[int], layers: int, where: str) -> Stored:
    """What the config says of its number formats. dense, moe : layers with such an MLP."""
    quantization = config.get("quantization_config") or config.get("quantization")
    if quantization is None and isinstance(config.get("text_config"), Mapping):
        quantization = config["text_config"].get("quantization_config")
    if not isinstance(quantization, Mapping) or not quantization:
        return Stored()
    if isinstance(quantization.get("quantized_layers"), Mapping):
        return _stored_mixed(quantization, where)
    inner = config.get("text_config")
    kimi = "linear_attn_config" in {**config, **(inner if isinstance(inner, Mapping) else {})}
    probes = _probes(dense, moe, layers, "self_attn.o_proj" if kimi else "linear_attn.out_proj")
    found = _by_parts(quantization, probes)
    if found is None:
        reason = REFUSED.get(str(quantization.get("quant_method")).lower()) or _unknown_group(quantization)
        raise InputError(
            f"quantization method '{quantization.get('quant_method')}' of the model config is not "
            + (f"modelled: {reason}" if reason else "known"),
            where=where,
            mend="name the format with 'weights' in the deployment and drop 'quantization_config'",
        )
    left = (*_unquantized(quantization, probes), *(part for part in probes if part not in found))
    there = [part for part, kept in (("experts", moe), ("mlp", dense)) if kept and part not in left and part in found]
    name, bits = found[there[0]] if there else next(iter(found.values()))
    parts = {part: stored for part, (stored, _) in found.items() if part not in left and stored != name}
    if config.get("expert_dtype", quantization.get("expert_dtype")) == "fp4" and name != "mxfp4":
        parts["experts"] = "mxfp4"
    return Stored(name, bits, left, tuple(parts.items()))


def _unknown_group(quantization: Config) -> str | None:
    """In words, what a group of tensors has that is not known; None where it is something else."""
    groups = quantization.get("config_groups")
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights, inputs = (group.get(key) for key in ("weights", "input_activations"))
        if isinstance(weights, Mapping) and of_tensors(weights, inputs) is None:
            kinds = [f"{each.get('num_bits')}-bit {each.get('type', 'float')}" for each in (weights, inputs) if each]
            return "no kernel is known of weights in " + " with activations in ".join(kinds)
    return None


def _by_parts(quantization: Config, probes: Mapping[str, tuple[str, ...]]) -> dict[str, Found] | None:
    """Format and bits of each part; None where one is not known."""
    method, groups = str(quantization.get("quant_method", "")).lower(), quantization.get("config_groups")
    if method == "w4afp8":  # SGLang's: experts alone, what else there is in blocks of FP8 (`w4afp8.py`)
        return {part: ("w4afp8" if part == "experts" else "fp8_block", 0.0) for part in probes}
    if method == "quark":
        return _of_layers(quantization.get("layer_quant_config"), quantization.get("global_quant_config"), probes)
    alone = of_quantization(quantization)
    if alone is not None:
        return {part: own for part, names in probes.items() if (own := overridden(quantization, names, alone)) is not None}
    if not isinstance(groups, Mapping) or not groups:
        return None
    read = [
        (group.get("targets") or [], of_tensors(group["weights"], group.get("input_activations")))
        for group in groups.values()
        if isinstance(group, Mapping) and isinstance(group.get("weights"), Mapping)
    ]
    if not read or any(found is None for _, found in read):
        return None
    whole = next((found for targets, found in read if not targets or "Linear" in targets), read[0][1])
    return {part: found for part, names in probes.items() if (found := _targeted(read, names) or whole) is not None}


def _targeted(read: list[tuple[Any, Found | None]], names: tuple[str, ...]) -> Found | None:
    """The first group whose targets name one of `names`."""
    for targets, found in read:
        if any(_matches(name, str(target)) for name in names for target in targets if target != "Linear"):
            return found
    return None


def _of_layers(listed: Any, whole: Any, probes: Mapping[str, tuple[str, ...]]) -> dict[str, Found] | None:
    """Quark: the first pattern of ``layer_quant_config`` that names a part, else ``global_quant_config``."""
    entries = [([pattern], of_quark(entry)) for pattern, entry in listed.items()] if isinstance(listed, Mapping) else []
    others = of_quark(whole) if isinstance(whole, Mapping) else None
    if others is None or any(found is None for _, found in entries):
        return None
    return {part: _targeted(entries, names) or others for part, names in probes.items()}


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
