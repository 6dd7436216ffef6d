"""Reading a Hugging Face ``config.json`` into an `Architecture`.

The way of a config: `ConfigReader` knows how quantities are spelled, `layer_kinds` which layer is of which kind, `families` what
a model type fixes and of which parts its layers are made. What is left unread is said in `Architecture.assumed`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from os.path import exists, isdir
from pathlib import Path
from typing import Any

from engine_models.model import layer_kinds, mixers
from engine_models.model.blocks import (
    Architecture,
    AttentionBlock,
    Extra,
    Layer,
    MlpBlock,
    Tower,
    Vision,
    parts_left_by_format,
)
from engine_models.model.catalogue import find_model, nearest_names, why_not_modelled
from engine_models.model.config import Config, ConfigReader
from engine_models.model.families import FAMILIES, REFUSED, REFUSED_KEYS
from engine_models.model.family import (
    IMAGES,
    NORMS_BESIDE_EXPERTS,
    Family,
    Mixers,
    Mlps,
    attention,
    dense_mlp,
    expert_mlp,
    is_gated,
    linear_layer,
)
from engine_models.model.rotary import table_values
from engine_models.model.stored_format import kv_quantization, stored_format
from hardware_profiles.errors import InputError
from hardware_profiles.files import parse_json, read_text

MOST_CONFIG_BYTES = 5_000_000
"""Longest config.json read [bytes]; assumed, far above any."""


def _layers(read: ConfigReader, family: Family, gated: bool, context: int) -> list[tuple[Mixers, Mlps]]:
    """Mixers and MLPs of each layer, in order."""
    layers = layer_kinds.number_of_layers(read)
    kinds, settled = layer_kinds.mixer_kinds(read, layers, family.chunked)
    experts = (
        read.given("experts")
        and read.number("num_local_experts", 1) > 0  # Granite 4 writes 0 where it has none
        and read.count("experts", 1) > 1
        and read.raw("is_moe", "enable_moe_block") is not False
    )
    if "conv" not in kinds and "linear" not in kinds:
        read.aside("conv", "conv_bias")
    if set(kinds) == {"linear"}:
        read.aside("heads", "kv_heads", "attention_bias")
    beside = read.flag("enable_moe_block", False)  # experts beside dense MLPs: the family adds them
    is_moe = (
        layer_kinds.moe_layers(read, layers, family.chunked) if experts and not beside else [False] * layers
    )
    found: list[tuple[Mixers, Mlps]] = []
    before: dict[tuple[str, str], list[tuple[ConfigReader, int]]] = {}  # layers that were read, each unlike the others
    for layer in range(layers):
        kind, mlp = kinds[layer], settled[layer] or ("moe" if is_moe[layer] else "dense")
        same = next((first for reader, first in before.get((kind, mlp), ()) if reader.alike(layer)), None)
        if same is not None:
            found.append(found[same])
            continue
        at = read.at(layer)
        before.setdefault((kind, mlp), []).append((at, layer))
        of_layer = _mixers(at, family, kind, context)
        mlps: Mlps = ()
        if mlp == "moe":
            mlps = (expert_mlp(at, family, gated),)
        elif mlp == "dense" and family.mlps:
            mlps = (dense_mlp(at, family, gated, beside_experts=experts and not beside),)
        if family.adjust is not None and of_layer:
            of_layer, mlps = family.adjust(at, family, of_layer, mlps)
        found.append((of_layer, mlps))
    return found


def _mixers(read: ConfigReader, family: Family, kind: str, context: int) -> Mixers:
    if kind == "none":
        return ()
    if kind == "linear":
        return ((family.recurrence or linear_layer)(read),)
    if kind == "conv":
        return (
            mixers.short_conv(read.count("hidden"), read.number("conv"), bias=read.flag("conv_bias", False)),
        )
    found = attention(read, family, kind, context)
    return (*found, family.beside(read)) if family.beside is not None else found


def _grouped(
    layers: list[tuple[Mixers, Mlps]],
) -> tuple[tuple[AttentionBlock, ...], tuple[MlpBlock, ...], tuple[Layer, ...]]:
    """Merge equal blocks, in order of first appearance, and say which layer has which."""
    of_mixers = Counter(block for found, _ in layers for block in found)
    of_mlps = Counter(block for _, found in layers for block in found)
    mixer_index = {block: i for i, block in enumerate(of_mixers)}
    mlp_index = {block: i for i, block in enumerate(of_mlps)}
    layout = tuple(
        (tuple(mixer_index[b] for b in found), tuple(mlp_index[b] for b in mlps)) for found, mlps in layers
    )
    return (
        tuple(replace(block, layers=number) for block, number in of_mixers.items()),
        tuple(replace(block, layers=number) for block, number in of_mlps.items()),
        layout,
    )


def _context(read: ConfigReader, model_type: str) -> int:
    """Tokens of context: the position count, stretched as vLLM does (YaRN from its original length)."""
    context = read.count("context")
    scaling = read.raw("rope_scaling", "rope_parameters")
    if not isinstance(scaling, Mapping):
        return context
    kind = scaling.get("rope_type", scaling.get("type"))
    factor = scaling.get("factor")
    if (
        not isinstance(factor, int | float)
        or kind in (None, "default", "su", "longrope", "llama3", "mrope")
        or "gemma3" in model_type
    ):
        return context
    if kind == "yarn":
        context = read.whole(
            scaling.get("original_max_position_embeddings", context), "original_max_position_embeddings", 1
        )
    return read.whole(int(context * factor) if factor < 1e9 else factor, "factor", 1)


def _dtype(config: Config) -> str:
    """bf16 or fp16; fp32 checkpoints are served in bf16."""
    name = config.get("torch_dtype") or config.get("dtype") or "bfloat16"
    return "fp16" if str(name).removeprefix("torch.") in ("float16", "half", "fp16") else "bf16"


def _extras(read: ConfigReader, family: Family) -> tuple[tuple[Extra, ...], Tower | None, list[str]]:
    """Tables and towers beside the layers, what a tower holds while it runs, and what is assumed of them."""
    found = family.extras(read) if family.extras is not None else ()
    notes, held = [], None
    vision = read.raw("vision_config")
    if isinstance(vision, Mapping) and vision:
        from engine_models.model.towers import running, vision_tower

        tower = vision_tower(vision, read.count("hidden"))
        if tower is None:
            notes.append("the vision tower is not counted: `vision_config` lacks its width or depth")
        else:
            tokens = read.raw("mm_tokens_per_image")
            found, held = (*found, tower), running(vision, tokens if isinstance(tokens, int) else None)
            size = tower.rows.units * tower.rows.size
            notes.append(
                f"vision tower: {size / 1e9:.2f} B parameters by its `vision_config` (a plain ViT)"
            )
    if read.raw("audio_config"):
        notes.append("the audio tower (`audio_config`) is not counted")
    return found, held, notes


def _vision_shape(read: ConfigReader) -> tuple[int, int] | None:
    """Layers and width of the vision tower, by these names alone."""
    vision = read.raw("vision_config")
    if not isinstance(vision, Mapping) or not vision:
        return None
    layers, width = (vision.get(key) for key in ("num_hidden_layers", "hidden_size"))
    return layers if isinstance(layers, int) else 0, width if isinstance(width, int) else 0


def _vision(read: ConfigReader, config: Config) -> Vision | None:
    """The layers of the vision tower, None without one or where the config does not tell them."""
    tower = read.raw("vision_config")
    if not isinstance(tower, Mapping) or not tower:
        return None
    from engine_models.model.towers import encoder

    return encoder(tower, config)


def _refuse(read: ConfigReader, model_type: str) -> None:
    """Refuse what cannot be read as layers of the parts that are modelled, by its reason."""
    reason = REFUSED.get(model_type)
    if reason is None and read.flag("is_encoder_decoder", False):
        reason = REFUSED["t5"]
    if reason is not None:
        raise InputError(
            f"model type '{model_type}' is not modelled: {reason}",
            where=read.where,
            mend="use a decoder of attention, recurrent and MLP (or expert) layers",
        )
    hidden = read.count("hidden")
    for key in ("word_embed_proj_dim", "embedding_size", "input_embedding_size"):
        if read.number(key, hidden) != hidden:
            raise InputError(
                f"embeddings of another width than the layers (`{key}`) are not modelled",
                where=read.where,
                mend="use a model whose embeddings are as wide as its layers",
            )
    for key, words in REFUSED_KEYS.items():
        if read.raw(key):
            raise InputError(
                f"{words} are not modelled",
                where=read.where,
                mend="use a model whose layers are alike, or of a few kinds",
            )


def _inner(config: Config) -> dict[str, Any]:
    """The language model's part of a multimodal config, over what stands around it."""
    text = next(
        (config[key] for key in ("text_config", "llm_config", "language_config") if key in config), None
    )
    return {**config, **text} if isinstance(text, Mapping) else dict(config)


def _unnested(config: dict[str, Any], family: Family) -> dict[str, Any]:
    nested = [config[key] for key in family.nested if isinstance(config.get(key), Mapping)]
    for part in nested:
        config = {**part, **config}
    for key in family.of_text:
        if isinstance(config.get(key), list) and len(config[key]) > 1:
            config = {**config, key: config[key][0], f"{IMAGES}{key}": config[key][1]}
    return config


def architecture_from_config(config: dict[str, Any], name: str, *, where: str | None = None) -> Architecture:
    """Read a Hugging Face config (or the same keys written inline) into an `Architecture`.

    config : the parsed ``config.json``; of a multimodal model the ``text_config`` is read.
    name : what the model is called in messages and results.
    where : the file, or the place in the scenario, that errors name (default: the model's name).

    Raises InputError naming the key, the place and the mend.
    """
    return _architecture(json.dumps(config, default=str), name, where or f"model {name}")


@lru_cache(maxsize=64)
def _architecture(config_json: str, name: str, place: str) -> Architecture:
    """`architecture_from_config`; a run asks for the same model many times."""
    config = json.loads(config_json)
    inner = _inner(config)
    model_type = str(inner.get("model_type") or "")
    known = FAMILIES.get(model_type)
    family = known or Family()
    read = ConfigReader(_unnested(inner, family), family.defaults, place)
    read.aside(*family.nested, *family.ignored)
    for named in (str(config.get("model_type") or ""), model_type):
        _refuse(read, named)
    context = _context(read, model_type)
    layers = _layers(read, family, is_gated(read, known), context)
    attention_blocks, mlp_blocks, layout = _grouped(layers)
    norms, summed_once = family.norms_per_layer, False
    if model_type == "falcon":
        parallel, newer = read.flag("parallel_attn", True), read.flag("new_decoder_architecture", False)
        norms = 1 if (parallel and not newer) or read.raw("num_ln_in_parallel_attn") == 1 else 2
        summed_once = parallel or newer
    norms += NORMS_BESIDE_EXPERTS if read.flag("enable_moe_block", False) else 0
    tied = read.raw("tie_word_embeddings")
    extras, tower, notes = _extras(read, family)
    dense = [i for i, (_, mlps) in enumerate(layers) if any(mlp.kind == "dense" for mlp in mlps)]
    moe = [i for i, (_, mlps) in enumerate(layers) if any(mlp.kind == "moe" for mlp in mlps)]
    stored = stored_format(config, dense, moe, len(layers), place)
    arch = Architecture(
        name=name,
        hidden=read.count("hidden"),
        layers=len(layers),
        vocab=read.count("vocab"),
        tied_embeddings=family.tied if tied is None else bool(tied),
        attention=attention_blocks,
        mlp=mlp_blocks,
        layout=layout,
        max_context_tokens=context,
        dtype=_dtype(inner),
        quantization=stored.quantization,
        quantization_bits=stored.quantization_bits,
        unquantized=stored.unquantized,
        part_formats=stored.part_formats,
        kv_quantization=kv_quantization(config),
        norms_per_layer=norms,
        norm_bias=family.norm_bias,
        final_norms=family.final_norms,
        summed_once=summed_once,
        positions=context + family.position_offset if family.learned_positions else 0,
        rotary_values=0 if family.learned_positions else table_values(read, context),
        lm_head_bias=read.flag("lm_head_bias", family.lm_head_bias),
        extras=extras,
        tower=tower,
        vision=_vision(read, config),
        vision_shape=_vision_shape(read),
        model_type=model_type,
    )
    for mlp in mlp_blocks:
        if mlp.zero_experts:
            notes.append(
                f"{mlp.zero_experts} of {mlp.experts + mlp.zero_experts} experts have no weights and are counted as none; of "
                f"{mlp.experts_per_token} a token they are chosen as often as the others"
            )
    if known is None:
        read_as = f"model type '{model_type}' is not known" if model_type else "no `model_type` is given"
        notes.insert(
            0,
            f"{read_as}: read as Llama-like ({'gated' if is_gated(read, None) else 'plain'} MLP, RMS norms)",
        )
    unread = read.unread()
    if unread:
        notes.append(f"keys of the model config that were not read: {', '.join(unread)}")
    return replace(arch, assumed=tuple(notes))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(read_text(path, MOST_CONFIG_BYTES))
    except json.JSONDecodeError as error:
        raise InputError(
            f"cannot read the model config: {error}",
            where=str(path),
            mend="give the path of a Hugging Face config.json",
        ) from error
    if not isinstance(found, dict):
        raise InputError("the model config is not a JSON object", where=str(path), mend="give a config.json")
    return found


def _from_file(path: Path) -> Architecture:
    if path.is_dir():
        path = path / "config.json"
    config = _read_json(path)
    beside = path.with_name("hf_quant_config.json")  # NVIDIA ModelOpt checkpoints state the format there
    if "quantization_config" not in config and beside.is_file():
        stated = _read_json(beside).get("quantization")
        if isinstance(stated, dict):
            config["quantization_config"] = {"quant_method": "modelopt", **stated}
    own = path.resolve().parent.name if path.name == "config.json" else path.stem
    name = str(config.get("_name_or_path") or own)
    return architecture_from_config(config, name, where=str(path))


def _from_gguf(path: Path) -> Architecture:
    """A model by its file's header, in the file's recipe with the bits that its layers have in it."""
    from engine_models.model.gguf import read_gguf

    file = read_gguf(path)
    arch = architecture_from_config(file.config, file.name, where=str(path))
    if file.format in ("fp16", "bf16", "fp32"):
        return replace(arch, dtype="bf16" if file.format == "bf16" else "fp16")
    return replace(arch, quantization=file.format, quantization_bits=file.bits_per_weight)


MODELOPT, MODELOPT_FORMATS, MODELOPT_WITHOUT = "nvidia/", ("fp8", "nvfp4"), ("deepseek_v4", "minimax_m3")
"""Organisation whose checkpoints in these formats want their KV cache in FP8, and types of models whose do not say so. kind:
datasheet, 2026-11: of 27 whose `hf_quant_config.json` aiconfigurator-core 0.12 has packed, 24 say so; assumed of others."""


NAMED_METHODS = ("w4afp8",)
"""Formats in a repository's name that are the `quant_method` of its config."""


def load_architecture(spec: str | dict[str, Any], base_dir: Path | None = None) -> Architecture:
    """Return the architecture a scenario's ``model`` names.

    spec : a catalogue name (case, organisation and suffixes such as -Instruct or -FP8 forgiven), the path of
        a ``config.json``, of its folder or of a GGUF file (relative to base_dir), or a dict of the same keys (and ``name``).

    A suffix that names a number format sets `Architecture.quantization`. Raises InputError with the nearest
    catalogue name.

    >>> load_architecture("llama-3.1-8b-instruct").layers
    32
    """
    if isinstance(spec, dict):
        return architecture_from_config(spec, str(spec.get("name", "inline model")), where="model")
    if not isinstance(spec, str) or not spec.strip():
        raise InputError(
            f"the model is {spec!r}", where="model", mend="give a catalogue name, a config.json or its fields"
        )
    path = Path(spec) if base_dir is None else base_dir / spec
    if spec.lower().endswith(".gguf"):
        if not exists(path):
            raise InputError(f"no such file: {path}", where="model", mend="correct the path of the GGUF file")
        return _from_gguf(path)
    if spec.endswith(".json") or isdir(path):
        if not exists(path):
            raise InputError(f"no such file: {path}", where="model", mend="correct the path of config.json")
        return _from_file(path)
    found = find_model(spec)
    if found is None:
        if (reason := why_not_modelled(spec)) is not None:
            raise InputError(
                f"model '{spec}' is not modelled: {reason}",
                where="model",
                mend="use a model that generates text token after token",
            )
        near = nearest_names(spec)
        hint = f"did you mean {' or '.join(repr(name) for name in near)}? " if near else ""
        raise InputError(
            f"model '{spec}' is not in the catalogue",
            where="model",
            mend=f"{hint}'capacity-plan list models' names them; or give a config.json or its fields inline",
        )
    config = found.config
    if found.quantization in NAMED_METHODS:  # a name that is a method's, which says itself what it leaves alone
        config = {**config, "quantization_config": {"quant_method": found.quantization}}
    arch = architecture_from_config(config, spec, where=f"catalogue entry {found.key}")
    arch = replace(arch, assumed=(*arch.assumed, *found.assumed)) if found.assumed else arch
    if found.quantization is None or found.quantization == arch.quantization:
        return arch
    if (
        found.quantization == "fp8" and arch.quantization == "fp8_block"
    ):  # the name says what the checkpoint is
        return arch
    stored = None if found.quantization in ("bf16", "fp16") else found.quantization
    left = tuple(sorted(parts_left_by_format(stored, arch))) if stored else ()
    states_kv = spec.lower().startswith(MODELOPT) and arch.family not in MODELOPT_WITHOUT
    kv = "fp8" if stored in MODELOPT_FORMATS and states_kv else None
    return replace(
        arch, quantization=stored, quantization_bits=0.0, unquantized=left, part_formats=(), kv_quantization=kv
    )
