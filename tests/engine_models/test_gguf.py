"""Headers of GGUF files: architectures as those of config.json, bytes as those of the tensors, and what is no such file."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from engine_models.model.architecture import load_architecture, parameters, weight_bytes
from engine_models.model.formats import format_named
from engine_models.model.gguf import read_gguf
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare

Tensors = dict[str, tuple[list[int], int]]
F32, F16, Q4_K, Q6_K, Q8_0 = 0, 1, 12, 14, 8
BITS = {F32: 32.0, F16: 16.0, Q4_K: 4.5, Q6_K: 6.5625, Q8_0: 8.5}


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def value_of(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    if isinstance(value, list):
        kind = 8 if isinstance(value[0], str) else 5
        items = b"".join(text(item) if kind == 8 else struct.pack("<i", item) for item in value)
        return struct.pack("<IIQ", 9, kind, len(value)) + items
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    return struct.pack("<II", 4, value)


def write(path: Path, values: dict[str, Any], tensors: Tensors, version: int = 3) -> Path:
    data = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(values))
    data += b"".join(text(key) + value_of(value) for key, value in values.items())
    for name, (shape, kind) in tensors.items():
        data += text(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<IQ", kind, 0)
    path.write_bytes(data)
    return path


def llama(layers: int = 32, tied: bool = False) -> tuple[dict[str, Any], Tensors]:
    """Llama 3.1 8B as `llama-quantize` writes it in Q4_K_M, simplified: half of two matrices a layer in Q6_K."""
    values = {
        "general.architecture": "llama",
        "general.name": "Llama 3.1 8B",
        "general.file_type": 15,
        "llama.block_count": layers,
        "llama.context_length": 131072,
        "llama.embedding_length": 4096,
        "llama.feed_forward_length": 14336,
        "llama.attention.head_count": 32,
        "llama.attention.head_count_kv": 8,
        "llama.rope.freq_base": 500000.0,
        "tokenizer.ggml.tokens": ["a", "b"],
    }
    tensors: Tensors = {"token_embd.weight": ([4096, 128256], Q4_K), "output_norm.weight": ([4096], F32)}
    if not tied:
        tensors["output.weight"] = ([4096, 128256], Q6_K)
    for i in range(layers):
        more = Q6_K if i % 2 else Q4_K
        tensors |= {
            f"blk.{i}.attn_norm.weight": ([4096], F32),
            f"blk.{i}.ffn_norm.weight": ([4096], F32),
            f"blk.{i}.attn_q.weight": ([4096, 4096], Q4_K),
            f"blk.{i}.attn_k.weight": ([4096, 1024], Q4_K),
            f"blk.{i}.attn_v.weight": ([4096, 1024], more),
            f"blk.{i}.attn_output.weight": ([4096, 4096], Q4_K),
            f"blk.{i}.ffn_gate.weight": ([4096, 14336], Q4_K),
            f"blk.{i}.ffn_up.weight": ([4096, 14336], Q4_K),
            f"blk.{i}.ffn_down.weight": ([14336, 4096], more),
        }
    return values, tensors


def bytes_of(tensors: Tensors) -> float:
    total = 0.0
    for shape, kind in tensors.values():
        size = 1
        for length in shape:
            size *= length
        total += size * BITS[kind] / 8
    return total


def test_a_file_is_the_model_of_its_config(tmp_path: Path) -> None:
    values, tensors = llama()
    path = write(tmp_path / "Llama-3.1-8B-Q4_K_M.gguf", values, tensors)
    found, known = load_architecture(str(path)), load_architecture("meta-llama/Llama-3.1-8B-Instruct")
    assert (found.attention, found.mlp, found.layout) == (known.attention, known.mlp, known.layout)
    assert (found.hidden, found.vocab, found.tied_embeddings, found.max_context_tokens) == (4096, 128256, False, 131072)
    assert parameters(found) == parameters(known)
    assert (found.name, found.quantization) == ("Llama 3.1 8B", "q4_k_m")
    assert weight_bytes(found, format_named("q4_k_m")) == pytest.approx(bytes_of(tensors), rel=2e-3)
    assert read_gguf(path).bytes == pytest.approx(bytes_of(tensors), abs=1)
    assert load_architecture(str(write(tmp_path / "t.gguf", *llama(tied=True), version=2))).tied_embeddings


EXPERTS = {
    "attention.head_count": 32,
    "attention.head_count_kv": 4,
    "attention.key_length": 128,
    "block_count": 48,
    "context_length": 40960,
    "embedding_length": 2048,
    "expert_count": 128,
    "expert_feed_forward_length": 768,
    "expert_used_count": 8,
    "feed_forward_length": 6144,
}
GEMMA = {
    "attention.head_count": 8,
    "attention.head_count_kv": 4,
    "attention.key_length": 256,
    "attention.sliding_window": 1024,
    "block_count": 34,
    "context_length": 131072,
    "embedding_length": 2560,
    "feed_forward_length": 10240,
}


@pytest.mark.parametrize(
    ("architecture", "keys", "tensor", "known"),
    [
        ("qwen3moe", EXPERTS, ("output.weight", [2048, 151936]), "Qwen/Qwen3-30B-A3B"),
        ("gemma3", GEMMA, ("token_embd.weight", [2560, 262208]), "google/gemma-3-4b-it"),
        (
            "qwen2",
            {
                "attention.head_count": 28,
                "attention.head_count_kv": 4,
                "block_count": 28,
                "context_length": 32768,
                "embedding_length": 3584,
                "feed_forward_length": 18944,
            },
            ("output.weight", [3584, 152064]),
            "Qwen/Qwen2.5-7B-Instruct",
        ),
        (
            "gpt-oss",
            {
                "attention.head_count": 64,
                "attention.head_count_kv": 8,
                "attention.key_length": 64,
                "attention.sliding_window": 128,
                "block_count": 24,
                "context_length": 131072,
                "embedding_length": 2880,
                "expert_count": 32,
                "expert_feed_forward_length": 2880,
                "expert_used_count": 4,
                "feed_forward_length": 2880,
            },
            ("output.weight", [2880, 201088]),
            "openai/gpt-oss-20b",
        ),
    ],
)
def test_other_architectures(
    tmp_path: Path, architecture: str, keys: dict[str, int], tensor: tuple[str, list[int]], known: str
) -> None:
    values = {"general.architecture": architecture, "general.file_type": 15}
    values |= {f"{architecture}.{key}": value for key, value in keys.items()}
    hidden = keys["embedding_length"]
    tensors: Tensors = {
        "token_embd.weight": ([hidden, tensor[1][1]], Q4_K),
        tensor[0]: (tensor[1], Q6_K),
        "blk.0.attn_q.weight": ([hidden, hidden], Q4_K),
    }
    found = load_architecture(str(write(tmp_path / "m.gguf", values, tensors)))
    named = load_architecture(known)
    assert parameters(found) == parameters(named)
    assert [(b.kind, b.window_tokens, b.layers, b.kv_heads, b.head_dim) for b in found.attention] == [
        (b.kind, b.window_tokens, b.layers, b.kv_heads, b.head_dim) for b in named.attention
    ]


def test_a_scenario_takes_a_file_and_its_format(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", *llama())
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "llama_cpp", "hardware": "rtx-4090-24gb"}
    found = prepare(load_scenario({"model": "m.gguf", "deployment": pool, "workload": workload}), tmp_path)
    assert found.formats.weights.name == "q4_k_m"
    assert found.plan.memory.bytes_of("weight") == pytest.approx(bytes_of(llama()[1]), rel=3e-3)
    with pytest.raises(InputError, match="does not load weights in q4_k_m"):
        prepare(
            load_scenario({"model": "m.gguf", "deployment": {**pool, "engine": "tgi"}, "workload": workload}), tmp_path
        )


def test_parts_of_a_split_model_are_read_together(tmp_path: Path) -> None:
    values, tensors = llama(2)
    names = list(tensors)
    half = len(names) // 2
    first = {name: tensors[name] for name in names[:half]}
    rest = {name: tensors[name] for name in names[half:]}
    write(tmp_path / "m-00001-of-00002.gguf", {**values, "split.count": 2}, first)
    with pytest.raises(InputError, match=r"m-00002-of-00002\.gguf is not there"):
        load_architecture(str(tmp_path / "m-00001-of-00002.gguf"))
    write(tmp_path / "m-00002-of-00002.gguf", {"split.no": 1}, rest)
    assert read_gguf(tmp_path / "m-00001-of-00002.gguf").bytes == pytest.approx(bytes_of(tensors), abs=1)


def test_what_is_no_whole_file_is_refused_in_words(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", *llama(1))
    data = path.read_bytes()
    cases = {
        b"GGML" + data[4:]: "does not begin with GGUF",
        data[:4] + struct.pack("<I", 1) + data[8:]: "has version 1",
        data[: len(data) // 2]: "ends within its header",
        data[:8] + struct.pack("<Q", 1 << 60) + data[16:]: "is damaged",
        b"": "does not begin with GGUF",
    }
    for broken, words in cases.items():
        path.write_bytes(broken)
        with pytest.raises(InputError, match=words) as error:
            load_architecture(str(path))
        assert str(path) in str(error.value.where)
    with pytest.raises(InputError, match="no such file"):
        load_architecture(str(tmp_path / "other.gguf"))
    values, tensors = llama(1)
    for key, value, words in (
        ("general.architecture", "mamba", "architecture 'mamba' of a GGUF file is not read"),
        ("llama.attention.head_count_kv", [8, 4], "layers of several sizes"),
        ("llama.block_count", None, "lacks the key"),
    ):
        changed = {k: v for k, v in {**values, key: value}.items() if v is not None}
        with pytest.raises(InputError, match=words):
            load_architecture(str(write(path, changed, tensors)))
