"""Which layers of a model are of which kind, by the keys in which configs say it.

Mixers: "full", "sliding", "chunked", "linear" (the family's recurrence), "conv", "compressed" (DeepSeek-V4), "none". MLPs:
"dense", "moe", "none". A key that names a kind unknown here is an error, never taken for full attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from engine_models.model.config import ConfigReader
from hardware_profiles.errors import InputError

_MIXERS = {
    "full_attention": "full",
    "attention": "full",
    "global": "full",
    "hybrid": "full",
    "indexed_attention": "full",
    "deepseek_sparse_attention": "full",
    "full": "full",
    "sliding_attention": "sliding",
    "hybrid_sliding": "sliding",
    "local": "sliding",
    "chunked_attention": "chunked",
    "linear_attention": "linear",
    "recurrent": "linear",
    "mamba": "linear",
    "mamba2": "linear",
    "conv": "conv",
    "short_conv": "conv",
    "compressed_sparse_attention": "compressed",
    "heavily_compressed_attention": "compressed",
    "mlp": "none",
    "moe": "none",
    "M": "linear",
    "*": "full",
    "E": "none",
    "-": "none",
}
_ALONE = {"mlp": "dense", "moe": "moe", "E": "moe", "-": "dense"}
"""Layers that are an MLP alone, in models whose layers are a mixer or an MLP."""


_RULES = (
    *(
        "hybrid_override_pattern",
        "layers_block_type",
        "layer_types",
        "block_types",
        "attn_type_list",
        "hybrid_layer_pattern",
    ),
    *(
        "full_attn_idxs",
        "attn_layer_indices",
        "attn_layer_period",
        "attn_layer_offset",
        "full_attention_interval",
    ),
    *(
        "layer_group_size",
        "global_attn_every_n_layers",
        "attention_types",
        "attention_layers",
        "sliding_window_pattern",
    ),
    *(
        "_sliding_window_pattern",
        "use_sliding_window",
        "prefix_dense_sliding_window_pattern",
        "no_rope_layers",
        "window",
    ),
)
"""Keys that say which layer is of which kind: what one says overrules the others."""
_MOE_RULES = (
    *(
        "mlp_layer_types",
        "moe_layers",
        "moe_layers_enum",
        "interleave_moe_layer_step",
        "moe_layer_freq",
        "dense_layers",
    ),
    *(
        "moe_layer_end_index",
        "moe_layer_interval",
        "decoder_sparse_step",
        "mlp_only_layers",
        "num_hash_layers",
    ),
)


def _words(read: ConfigReader, layers: int) -> tuple[list[str], bool] | None:
    """The kinds as the config words them, and whether each layer is a mixer or an MLP alone; None where no key lists them."""
    pattern = read.raw("hybrid_override_pattern")
    if pattern is not None:
        return list(str(pattern)), True
    blocks = read.raw("layers_block_type")
    if isinstance(blocks, list):
        return [str(word) for word in blocks], any(word in _ALONE for word in blocks)
    types = read.raw("layer_types")
    if isinstance(types, list):
        return [str(word) for word in types], False
    cycle = read.raw("block_types")
    if isinstance(cycle, list) and cycle:
        return [str(cycle[i % len(cycle)]) for i in range(layers)], False
    return None


def _choose(chosen: Callable[[int], bool], yes: str, no: str) -> Callable[[int], str]:
    return lambda layer: yes if chosen(layer) else no


def _rule(read: ConfigReader, layers: int) -> Callable[[int], str] | None:
    """The kind of a layer by its number, from keys that state a rule or list one of two kinds."""
    listed: Any = read.raw("attn_type_list")
    if listed is not None:  # MiniMax-Text-01: 0 lightning, 1 softmax
        return _choose(lambda i: listed[i] == 0, "linear", "full")
    hybrid: Any = read.raw("hybrid_layer_pattern")
    if hybrid is not None:  # MiMo-V2: 1 window, 0 all
        return _choose(lambda i: hybrid[i] == 1, "sliding", "full")
    linear: Any = read.raw("linear_attn_config")
    if isinstance(linear, dict) and "full_attn_layers" in linear:  # Kimi Linear, counted from 1
        return _choose(lambda i: i + 1 in linear["full_attn_layers"], "full", "linear")
    for key, other in (("full_attn_idxs", "conv"), ("attn_layer_indices", "linear")):
        chosen: Any = read.raw(key)
        if chosen is not None:
            return _choose(lambda i, chosen=chosen: i in chosen, "full", other)  # type: ignore[misc]
    if read.raw("attn_layer_period") is not None:
        period, offset = max(1, read.number("attn_layer_period")), read.number("attn_layer_offset", 0)
        return _choose(lambda i: i % period == offset, "full", "linear")
    intervals = (
        ("full_attention_interval", "linear"),
        ("layer_group_size", "linear"),
        ("global_attn_every_n_layers", "sliding"),
    )
    for key, other in intervals:
        if read.raw(key) is not None:
            every = max(1, read.number(key))
            return _choose(lambda i, every=every: (i + 1) % every == 0, "full", other)  # type: ignore[misc]
    if read.raw("attention_types") is not None:  # GPT-Neo: [[["global", "local"], 12]]
        words = [w for kinds, times in read.raw("attention_types") for _ in range(times) for w in kinds]
        return _choose(lambda i: words[i] == "global", "full", "sliding")
    ratios: Any = read.raw("compress_ratios")
    if ratios is not None:
        return lambda i: "compressed"
    return None


def _windows(read: ConfigReader, layers: int, chunked_by_default: bool) -> Callable[[int], str]:
    """Full attention, or windows by `sliding_window` and its pattern."""
    if chunked_by_default:  # Llama 4
        no_rope: Any = read.raw("no_rope_layers") or [int((i + 1) % 4 != 0) for i in range(layers)]
        return _choose(lambda i: bool(no_rope[i]), "chunked", "full")
    window = read.number("window", 0)
    pattern = read.raw("sliding_window_pattern", "_sliding_window_pattern")
    if isinstance(pattern, str) and window and pattern:  # EXAONE 4: "LLLG"
        return _choose(lambda i: pattern[i % len(pattern)] == "L", "sliding", "full")
    if window and pattern:
        every = read.number("sliding_window_pattern")
        return _choose(lambda i: (i + 1) % every != 0, "sliding", "full")
    if not window or not read.flag("use_sliding_window", True):
        return lambda i: "full"
    first = read.number("max_window_layers", 0) if read.raw("use_sliding_window") else 0
    return _choose(lambda i: i >= first, "sliding", "full")


def number_of_layers(read: ConfigReader) -> int:
    """Layers of the model, by their number or by a list of them."""
    listed = read.raw("layers_block_type", "hybrid_override_pattern")
    return read.count("layers", len(listed) if isinstance(listed, list | str) and listed else None)


def mixer_kinds(
    read: ConfigReader, layers: int, chunked_by_default: bool
) -> tuple[list[str], list[str | None]]:
    """The mixer of each layer, and its MLP where the layer's kind settles it ("none" beside a mixer, or an MLP alone)."""
    read.aside(*_RULES)
    found = _words(read, layers)
    if found is None:
        rule = _rule(read, layers) or _windows(read, layers, chunked_by_default)
        try:
            return [rule(i) for i in range(layers)], [None] * layers
        except (IndexError, TypeError) as error:
            raise InputError(
                f"the model config does not say for each of {layers} layers which attention it has",
                where=read.where,
                mend="give the lists one entry a layer",
            ) from error
    words, alone = found
    if len(words) == layers + read.number(
        "num_nextn_predict_layers", 0
    ):  # those of multi-token prediction come last
        words = words[:layers]
    if len(words) != layers:
        raise InputError(
            f"'layer_types' lists {len(words)} layers, the model has {layers}",
            where=read.where,
            mend="give one entry a layer",
        )
    unknown = sorted({word for word in words if word not in _MIXERS})
    if unknown:
        raise InputError(
            f"layers of kind '{unknown[0]}' are not modelled",
            where=read.where,
            mend=f"kinds that are: {', '.join(word for word in _MIXERS if len(word) > 1)}",
        )
    return [_MIXERS[word] for word in words], [_ALONE.get(word, "none") if alone else None for word in words]


def _listed(read: ConfigReader, value: Any) -> set[int]:
    """Layer numbers given as a list or as text with commas."""
    items: Iterable[Any] = (
        value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    )
    numbers = (int(item) if isinstance(item, str) and item.strip().isdigit() else item for item in items)
    return {read.whole(number, "moe_layers", 0) for number in numbers}


def moe_layers(read: ConfigReader, layers: int, interleaved: bool) -> list[bool]:
    """Which layers are mixtures of experts. interleaved : every `interleave_moe_layer_step`-th (Llama 4)."""
    read.aside(*_MOE_RULES)
    types = read.raw("mlp_layer_types")
    if isinstance(types, list):
        if len(types) < layers or set(types) - {"dense", "sparse", "moe", "hash_moe"}:
            raise InputError(
                f"'mlp_layer_types' does not say dense or sparse for each of {layers} layers",
                where=read.where,
                mend="give one entry a layer",
            )
        return [types[i] != "dense" for i in range(layers)]
    listed = read.raw("moe_layers", "moe_layers_enum")
    if listed is None and interleaved:
        step = max(1, read.number("interleave_moe_layer_step", 1))
        listed = list(range(step - 1, layers, step))
    if listed is not None:
        chosen = _listed(read, listed)
        return [i in chosen for i in range(layers)]
    frequency = read.raw("moe_layer_freq")
    if isinstance(frequency, list):
        return [bool(frequency[i]) if i < len(frequency) else True for i in range(layers)]
    first, last = read.number("dense_layers", 0), read.number("moe_layer_end_index", layers)
    every = max(1, read.number("moe_layer_freq", 1))
    interval = max(1, read.number("moe_layer_interval", 1))
    step = max(1, read.number("decoder_sparse_step", 1))
    period, offset = max(1, read.number("expert_layer_period", 1)), read.number("expert_layer_offset", 0)
    dense = set(read.raw("mlp_only_layers") or ())
    return [
        first <= i <= last
        and i % every == 0
        and (i + 1) % step == 0
        and (i + 1) % interval == 0
        and i % period == offset
        and i not in dense
        for i in range(layers)
    ]
