"""The header of a GGUF file: the model's architecture as a config, and the bytes of its tensors by their types.

A header names values by key (``llama.block_count``, ``general.file_type``) and lists the tensors with their shapes and types;
nothing of the weights is read. A model split over several files has its keys in the first and tensors in all. Layout:
ggml-org/ggml, docs/gguf.md (version 3; 2 has the same).
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from hardware_profiles.errors import InputError
from hardware_profiles.packed_formats import GGUF_BLOCK_BITS
from hardware_profiles.records import dataclass

_MAGIC = b"GGUF"
_MOST_ENTRIES, _MOST_TEXT, _MOST_ITEMS = 100_000, 50_000_000, 5_000_000
"""Most keys or tensors, bytes of a text and items of a list that are read; assumed, far above any."""
_NUMBERS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9

_TENSOR_TYPES = {
    0: "f32", 1: "f16", 2: "q4_0", 3: "q4_1", 6: "q5_0", 7: "q5_1", 8: "q8_0", 9: "q8_1", 10: "q2_k", 11: "q3_k", 12: "q4_k",
    13: "q5_k", 14: "q6_k", 15: "q8_k", 16: "iq2_xxs", 17: "iq2_xs", 18: "iq3_xxs", 19: "iq1_s", 20: "iq4_nl", 21: "iq3_s",
    22: "iq2_s", 23: "iq4_xs", 24: "i8", 25: "i16", 26: "i32", 27: "i64", 28: "f64", 29: "iq1_m", 30: "bf16", 34: "tq1_0",
    35: "tq2_0", 39: "mxfp4",
}  # fmt: skip
_BITS: Mapping[str, float] = {
    **GGUF_BLOCK_BITS,
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "f64": 64.0,
    "q8_1": 9.0,
    "q8_k": 9.125,
    "mxfp4": 4.25,
    "i8": 8.0,
    "i16": 16.0,
    "i32": 32.0,
    "i64": 64.0,
}
"""Types of tensors by number, and bits of a value (datasheet: `ggml.h`, `ggml-common.h` of llama.cpp, 2026-11)."""

_FILE_TYPES = {
    0: "fp32", 1: "fp16", 2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s", 12: "q3_k_m",
    13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k", 19: "iq2_xxs", 20: "iq2_xs",
    21: "q2_k_s", 22: "iq3_xs", 23: "iq3_xxs", 24: "iq1_s", 25: "iq4_nl", 26: "iq3_s", 27: "iq3_m", 28: "iq2_s", 29: "iq2_m",
    30: "iq4_xs", 31: "iq1_m", 32: "bf16", 36: "tq1_0", 37: "tq2_0", 38: "mxfp4_moe",
}  # fmt: skip
"""``general.file_type`` and the recipe that it means (datasheet: `llama.h`, `llama_ftype`, 2026-11)."""

_MODEL_TYPES = {
    "llama": "llama", "qwen2": "qwen2", "qwen2moe": "qwen2_moe", "qwen3": "qwen3", "qwen3moe": "qwen3_moe", "gemma": "gemma",
    "gemma2": "gemma2", "gemma3": "gemma3_text", "phi3": "phi3", "gpt-oss": "gpt_oss", "granite": "granite",
    "granitemoe": "granitemoe", "glm4": "glm4", "exaone": "exaone", "internlm2": "internlm2", "olmo2": "olmo2",
    "starcoder2": "starcoder2", "command-r": "cohere", "mistral3": "mistral", "smollm3": "smollm3", "seed_oss": "seed_oss",
}  # fmt: skip
"""``general.architecture`` and the model type of a Hugging Face config whose layers are the same."""

_COUNTS = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "context_length": "max_position_embeddings",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}
_NEEDED = ("embedding_length", "block_count", "attention.head_count", "context_length")


@dataclass(frozen=True)
class GgufFile:
    """What a header says: the model's name, its config as Hugging Face writes it, the recipe of its types, its tensors' bytes.

    bits_per_weight : in the layers' matrices, as stored.
    """

    name: str
    config: dict[str, Any]
    format: str
    bytes: int
    bits_per_weight: float


class _Header:
    """The keys and tensors of a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, Any] = {}
        self.tensors: dict[str, tuple[int, str]] = {}  # values and type
        try:
            with path.open("rb") as file:
                self._read(file)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise self.broken(f"cannot be read: {reason}") from None

    def broken(self, why: str) -> InputError:
        return InputError(f"the GGUF file {why}", where=str(self.path), mend="give a whole GGUF file, or a config.json")

    def _read(self, file: BinaryIO) -> None:
        if file.read(4) != _MAGIC:
            raise self.broken("does not begin with GGUF")
        version = self._number(file, 4)
        if version not in (2, 3):
            raise self.broken(f"has version {version}; 2 and 3 are read")
        tensors, keys = self._count(file, _MOST_ENTRIES), self._count(file, _MOST_ENTRIES)
        for _ in range(keys):
            key = self._text(file)
            self.values[key] = self._value(file, int(self._number(file, 4)))
        for _ in range(tensors):
            name = self._text(file)
            size = 1
            for _ in range(int(self._number(file, 4))):
                size *= self._count(file, 1 << 40)
            kind = int(self._number(file, 4))
            self._number(file, 10)
            if kind not in _TENSOR_TYPES:
                raise self.broken(f"has tensors of type {kind}, which is not known")
            self.tensors[name] = (size, _TENSOR_TYPES[kind])

    def _bytes(self, file: BinaryIO, count: int) -> bytes:
        data = file.read(count)
        if len(data) < count:
            raise self.broken("ends within its header")
        return data

    def _number(self, file: BinaryIO, kind: int) -> Any:
        layout = _NUMBERS[kind]
        (value,) = struct.unpack(layout, self._bytes(file, struct.calcsize(layout)))
        return value

    def _count(self, file: BinaryIO, most: int) -> int:
        found = int(self._number(file, 10))
        if found > most:
            raise self.broken(f"is damaged: it counts {found:,} entries")
        return found

    def _text(self, file: BinaryIO) -> str:
        return self._bytes(file, self._count(file, _MOST_TEXT)).decode("utf-8", "replace")

    def _value(self, file: BinaryIO, kind: int, depth: int = 0) -> Any:
        """A value; of a list of texts only how many there are."""
        if kind == _TEXT:
            return self._text(file)
        if kind == _LIST and depth < 2:
            of, count = int(self._number(file, 4)), self._count(file, _MOST_ITEMS)
            if of in (_TEXT, _LIST):
                for _ in range(count):
                    self._value(file, of, depth + 1)
                return count
            return [self._value(file, of, depth + 1) for _ in range(count)]
        if kind not in _NUMBERS:
            raise self.broken(f"is damaged: it has a value of kind {kind}")
        return self._number(file, kind)


def read_gguf(path: Path) -> GgufFile:
    """Read the header of a file, or of the first of several.

    Raises InputError for what is no whole GGUF file, lacks keys or is of an architecture that is not read.
    """
    header = _Header(path)
    tensors = dict(header.tensors)
    for part in _parts(header):
        tensors |= _Header(part).tensors
    config = _config(header, tensors)
    counted = Counter[str]()
    bits = layer_bits = weights = 0.0
    for name, (size, kind) in tensors.items():
        bits += size * _BITS[kind]
        if name.startswith("blk.") and size > config["hidden_size"] * 8:  # matrices
            counted[kind] += size
            layer_bits += size * _BITS[kind]
            weights += size
    if not weights:
        raise header.broken("holds no layers")
    named = _FILE_TYPES.get(header.values.get("general.file_type", -1))
    main = counted.most_common(1)[0][0]
    recipe = named or {"f16": "fp16", "f32": "fp32"}.get(main, main)
    name = str(header.values.get("general.name") or path.stem)
    return GgufFile(name, config, recipe, int(-(-bits // 8)), layer_bits / weights)


def _parts(header: _Header) -> list[Path]:
    """The further files of a split model."""
    count = int(header.values.get("split.count", 1) or 1)
    if count == 1:
        return []
    found = re.fullmatch(r"(.*)-00001-of-(\d{5})\.gguf", header.path.name)
    names = [f"{found[1]}-{i:05}-of-{found[2]}.gguf" for i in range(2, count + 1)] if found else []
    missing = [name for name in names if not header.path.with_name(name).is_file()]
    if found is None or missing:
        raise InputError(
            f"the model is split over {count} files" + (f", of which {missing[0]} is not there" if missing else ""),
            where=str(header.path),
            mend=f"name the first of them (...-00001-of-{count:05}.gguf), all beside each other",
        )
    return [header.path.with_name(name) for name in names]


def _config(header: _Header, tensors: Mapping[str, tuple[int, str]]) -> dict[str, Any]:
    """The keys of a header as a Hugging Face config has them."""
    values, architecture = header.values, str(header.values.get("general.architecture", ""))
    model_type = _MODEL_TYPES.get(architecture)
    if model_type is None:
        known = ", ".join(sorted(_MODEL_TYPES))
        raise InputError(
            f"the architecture '{architecture}' of a GGUF file is not read" if architecture else "no architecture is named",
            where=str(header.path),
            mend=f"give the model's config.json or its name, and its format as `weights`; read are {known}",
        )
    found: dict[str, Any] = {"model_type": model_type, "torch_dtype": "float16"}
    for key, own in _COUNTS.items():
        value = values.get(f"{architecture}.{key}")
        if isinstance(value, list):  # a number for each layer
            if len(set(value)) != 1:
                raise header.broken(f"has layers of several sizes (`{key}`), which is not read")
            value = value[0]
        if value is not None:
            found[own] = value
        elif key in _NEEDED:
            raise header.broken(f"lacks the key `{architecture}.{key}`")
    tokens = values.get("tokenizer.ggml.tokens", values.get(f"{architecture}.vocab_size"))
    embedding = tensors.get("token_embd.weight")
    if embedding is not None:
        tokens = embedding[0] // int(found["hidden_size"])
    if not isinstance(tokens, int) or tokens < 1:
        raise header.broken("does not say how many tokens its vocabulary has")
    found["vocab_size"] = tokens
    found["tie_word_embeddings"] = "output.weight" not in tensors
    if model_type == "llama" and found.get("num_experts", 0) > 1:
        found["model_type"] = "mixtral"
    if "num_experts" in found and found["model_type"] in ("mixtral", "gpt_oss", "granitemoe"):
        found["num_local_experts"] = found.pop("num_experts")
        found["intermediate_size"] = found.pop("moe_intermediate_size", found.get("intermediate_size"))
    if found["model_type"] == "llama" and not found.get("num_experts"):
        for unused in ("num_experts", "num_experts_per_tok"):
            found.pop(unused, None)
    return found
