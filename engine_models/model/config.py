"""A Hugging Face ``config.json`` as the readers of families see it: spellings of one quantity, bounds, and what was never read.

Every key that a reader asks for is noted; what is left, and is not known to leave shapes alone, is listed (`unread`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

Config = Mapping[str, Any]

# Spellings of one quantity, the first being today's usual one.
SPELLINGS = {
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": (
        "num_attention_heads",
        "num_attention_heads_per_layer",
        "n_head",
        "n_heads",
        "num_heads",
        "attention_heads",
    ),
    "kv_heads": (
        "num_key_value_heads",
        "num_attention_groups",
        "num_kv_heads",
        "n_head_kv",
        "n_kv_heads",
        "kv_n_heads",
        "multi_query_group_num",
    ),
    "head_dim": ("head_dim", "kv_channels", "attention_head_dim"),
    "intermediate": ("intermediate_size", "ffn_hidden_size", "n_inner", "ffn_dim", "dff"),
    "dense_intermediate": (
        "intermediate_size_mlp",
        "dense_intermediate_size",
        "prefix_dense_intermediate_size",
    ),
    "vocab": ("vocab_size", "padded_vocab_size"),
    "context": (
        "max_position_embeddings",
        "n_positions",
        "max_sequence_length",
        "model_max_length",
        "max_seq_len",
        "seq_length",
        "n_ctx",
        "max_position_embedding",
    ),
    "experts": (
        "num_local_experts",
        "num_experts",
        "n_routed_experts",
        "moe_num_experts",
        "num_routed_experts",
    ),
    "experts_per_token": (
        "num_experts_per_tok",
        "experts_per_token",
        "num_experts_per_token",
        "moe_topk",
        "moe_top_k",
        "moe_k",
        "top_k_experts",
    ),
    "expert_intermediate": (
        "moe_intermediate_size",
        "expert_ffn_hidden_size",
        "moe_ffn_hidden_size",
        "expert_hidden_size",
    ),
    "shared_experts": ("n_shared_experts", "num_shared_experts", "moe_num_shared_experts", "num_shared_expert"),
    "shared_intermediate": (
        "shared_expert_intermediate_size",
        "shared_intermediate_size",
        "shared_experts_intermediate_size",
        "moe_shared_expert_intermediate_size",
        "share_expert_dim",
        "share_expert_dims",
    ),
    "latent": ("moe_latent_size", "routed_expert_hidden_size"),
    "zero_experts": ("zero_expert_num",),
    "expert_groups": ("n_group",),
    "groups_per_token": ("topk_group",),
    "dense_layers": ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index"),
    "window": ("sliding_window", "sliding_window_size", "window_size", "attention_window_size"),
    "activation": (
        "hidden_act",
        "mlp_hidden_act",
        "hidden_activation",
        "activation_function",
        "activation",
        "afn",
    ),
    "conv": (
        "conv_kernel",
        "mamba_d_conv",
        "conv_L_cache",
        "linear_conv_kernel_dim",
        "short_conv_kernel_size",
    ),
    "state": ("ssm_state_size", "mamba_d_state", "state_size"),
    "state_heads": ("mamba_num_heads", "mamba_n_heads", "n_mamba_heads"),
    "state_head_dim": ("mamba_head_dim", "mamba_d_head", "mamba_headdim"),
    "state_groups": ("mamba_n_groups", "n_groups", "mamba_ngroups"),
}

# No model has more; what a file says beyond is a slip, and would fill memory. Kind: assumed, 2026-11.
MOST_LAYERS = 1_000
MOST = 10**9

# Names, begins and ends of keys that leave shapes, memory and work alone, whatever they say: training, sampling, scales, rotary
# angles, tokens, names.
HARMLESS_FILE = Path(__file__).parent / "catalogue" / "harmless_keys.txt"
_TOWERS = ("audio_config", "vision_config")  # whole models, beside which keys that begin alike say nothing


def _harmless(key: str) -> bool:
    """Whether a key is one of `HARMLESS_FILE`."""
    names, begins, ends = _harmless_words()
    return key in names or key.endswith(ends) or (key.startswith(begins) and not key.startswith(_TOWERS))


@lru_cache(maxsize=1)
def _harmless_words() -> tuple[frozenset[str], tuple[str, ...], tuple[str, ...]]:
    words = HARMLESS_FILE.read_text(encoding="utf-8").split()
    begins, ends = [word[:-1] for word in words if word[-1] == "*"], [word[1:] for word in words if word[0] == "*"]
    return frozenset(words), tuple(begins), tuple(ends)


def _empty(value: Any) -> bool:
    return value is None or (isinstance(value, list | dict | str) and not value)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and bool(one == other)


@dataclass(frozen=True)
class ConfigReader:
    """A config with the family's defaults behind it, and the place errors should name.

    layer : the layer that is read, where layers differ: of a list of one value a layer its entry counts, and the layer's own
        entry of ``per_layer_config`` comes first.  seen : keys asked for so far.  told_apart : what was asked of the layer, and
        the answers: another layer of which all of it has the same answers reads the same (`alike`).
    """

    config: Config
    defaults: Config
    where: str
    layer: int | None = None
    own: Config = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    told_apart: list[tuple[Callable[[int], Any], Any]] = field(default_factory=list)

    def at(self, layer: int) -> ConfigReader:
        """The same for one layer."""
        listed = self.config.get("per_layer_config")
        self.seen.add("per_layer_config")
        told = replace(self, layer=layer, told_apart=[])
        if not isinstance(listed, Mapping):
            return told
        own = told.of_layer(lambda at: next((v for k, v in listed.items() if str(k).isdigit() and int(k) == at), {}), {})
        return replace(told, own=own if isinstance(own, Mapping) else {})

    def of_layer(self, ask: Callable[[int], Any], otherwise: Any) -> Any:
        """What `ask` says of the layer that is read, noted in `told_apart`; `otherwise` where none is."""
        if self.layer is None:
            return otherwise
        answer = ask(self.layer)
        self.told_apart.append((ask, answer))
        return answer

    def alike(self, layer: int) -> bool:
        """Whether all that was read at this layer so far would be the same at another."""
        return all(_same(ask(layer), answer) for ask, answer in self.told_apart)

    def raw(self, *keys: str) -> Any:
        """The first of the keys that is given and not null, else the family's default, else None."""
        self.seen.update(keys)
        for source in (self.own, self.config, self.defaults):
            for key in keys:
                if source.get(key) is not None:
                    return self._entry(source[key])
        return None

    def _entry(self, value: Any) -> Any:
        """The layer's entry of a list of one value a layer; any other value whole."""
        if isinstance(value, list) and value and not isinstance(value[0], list):
            return self.of_layer(lambda layer: value[min(layer, len(value) - 1)], value)
        return value

    def whole(self, value: Any, key: str, least: int, most: int = MOST) -> int:
        """`value` as a whole number within bounds; InputError that names the key."""
        good = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not good or isinstance(value, bool) or not least <= value <= most:
            shown = f"{value!r}" if len(repr(value)) < 60 else f"{repr(value)[:50]}..."
            raise InputError(
                f"'{key}' of the model config is {shown}",
                where=self.where,
                mend=f"give '{key}' a whole number, at least {least}"
                + (f", at most {most:,}" if good else ""),
            )
        return int(value)

    def lacks(self, key: str, others: tuple[str, ...] = ()) -> InputError:
        """The error that a key is absent."""
        also = f" (also read: {', '.join(others)})" if others else ""
        return InputError(
            f"the model config lacks '{key}'",
            where=self.where,
            mend=f"add '{key}'{also}, as in the model's Hugging Face config.json",
        )

    def count(self, what: str, default: int | None = None, prefix: str = "") -> int:
        """The quantity `what` of `SPELLINGS`, at least 1; a key with `prefix` comes first."""
        keys = SPELLINGS[what]
        if prefix:
            keys = (*(prefix + key for key in keys), *keys)
        value = self.raw(*keys)
        if value is None or (what == "head_dim" and value == 0):  # GLM-5.3-Flash writes 0 where latent attention says it
            if default is not None:
                return default
            raise self.lacks(SPELLINGS[what][0], SPELLINGS[what][1:])
        found = next(
            k for k in keys for source in (self.own, self.config, self.defaults) if source.get(k) is not None
        )
        return self.whole(value, found, 1, MOST_LAYERS if what == "layers" else MOST)

    def given(self, what: str) -> bool:
        """Whether the quantity stands in the config."""
        return self.raw(*SPELLINGS[what]) is not None

    def number(self, key: str, default: int | None = None) -> int:
        """The key itself, or the quantity of `SPELLINGS` that it names, at least 0."""
        keys = SPELLINGS.get(key, (key,))
        value = self.raw(*keys)
        if value is None:
            if default is None:
                raise self.lacks(keys[0], keys[1:])
            return default
        return self.whole(value, next((k for k in keys if self.config.get(k) is not None), keys[0]), 0)

    def flag(self, key: str, default: bool) -> bool:
        """The key as a truth value."""
        value = self.raw(key)
        return default if value is None else bool(value)

    def aside(self, *names: str) -> None:
        """Note keys, or quantities of `SPELLINGS`, that another key overrules or that this model has no use for."""
        for name in names:
            self.seen.update(SPELLINGS.get(name, (name,)))

    def unread(self) -> list[str]:
        """Keys with a value that no reader asked for and that are not known to leave shapes alone."""
        return sorted(
            key
            for key, value in self.config.items()
            if not (key in self.seen or _empty(value) or _harmless(key))
        )
