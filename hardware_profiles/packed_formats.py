"""Formats of weights that are stored packed and widened before the multiplication, by the families of files they come in.

A GGUF file mixes block types by a recipe (`q4_k_m`: mostly Q4_K, some matrices in Q6_K); its embedding and its output matrix have
types of their own. Bits are those of the layers' matrices, scales included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field, replace
from functools import lru_cache
from itertools import product
from typing import Literal

from hardware_profiles.records import dataclass

PackedFamily = Literal["gguf", "mlx", "exl", "mlc", "blockwise", "nncf"]


@dataclass(frozen=True)
class PackedFormat:
    """A format of packed weights.

    bits_per_weight : of the layers, scales and mixed-in larger types included [bits].
    block : the type that most of them are in, which decides how they are unpacked.
    parts : types of parts of the model that are in another: ``embedding``, ``lm_head``, ``router``, ``experts``.
    kv_cache : the family's engines keep keys and values in it too.
    """

    name: str
    family: PackedFamily
    bits_per_weight: float
    block: str
    parts: Mapping[str, str] = field(default_factory=dict)
    kv_cache: bool = False

    def of_rows(self, columns: int) -> PackedFormat:
        """The format of matrices whose rows have so many weights: another where blocks of a GGUF file do not divide them.

        Larger types that are mixed in grow alike (assumed).
        """
        other = GGUF_UNDIVIDED.get(self.block) if self.family == "gguf" and columns % GGUF_SUPERBLOCK else None
        if other is None:
            return self
        grown = self.bits_per_weight / GGUF_BLOCK_BITS[self.block] * GGUF_BLOCK_BITS[other]
        return replace(self, bits_per_weight=min(grown, GGUF_BLOCK_BITS["q8_0"]), block=other)


#: Bits of a weight by block type: bytes of a block times 8 over its weights. kind: datasheet, by arithmetic, 2026-11, source:
#: layouts of blocks in llama.cpp (ggml-common.h): 18, 20, 22, 24, 34 bytes a 32 weights (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0), 84, 110,
#: 144, 176, 210 bytes a 256 (Q2_K to Q6_K), 50 to 136 a 256 (IQ1_S to IQ4_XS), 54, 66 (ternary), 17 a 32 (MXFP4).
GGUF_BLOCK_BITS: Mapping[str, float] = {
    "q4_0": 4.5,
    "q4_1": 5.0,
    "q5_0": 5.5,
    "q5_1": 6.0,
    "q8_0": 8.5,
    "q2_k": 2.625,
    "q3_k": 3.4375,
    "q4_k": 4.5,
    "q5_k": 5.5,
    "q6_k": 6.5625,
    "iq1_s": 1.5625,
    "iq1_m": 1.75,
    "iq2_xxs": 2.0625,
    "iq2_xs": 2.3125,
    "iq2_s": 2.5625,
    "iq3_xxs": 3.0625,
    "iq3_s": 3.4375,
    "iq4_nl": 4.5,
    "iq4_xs": 4.25,
    "tq1_0": 1.6875,
    "tq2_0": 2.0625,
}

#: Weights of a block that divides no row of another length, and the type that such matrices are in instead. kind: datasheet,
#: 2026-11, source: `tensor_type_fallback` of llama.cpp's `llama-quant.cpp`.
GGUF_SUPERBLOCK = 256
GGUF_UNDIVIDED: Mapping[str, str] = {
    "q4_k": "q5_0",
    "q5_k": "q5_1",
    "q6_k": "q8_0",
    **dict.fromkeys(("q2_k", "q3_k", "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq4_xs"), "iq4_nl"),
    **dict.fromkeys(("tq1_0", "tq2_0"), "q4_0"),
}

#: Recipe of a file -> bits of the layers, main block type, types of embedding and head. Bits: what remains of the whole file's
#: (Llama-3.1-8B) after embedding and head. unit: bits, kind: measured, 2026-11, source: table of `llama-quantize`
#: (ggml-org/llama.cpp@311c2c9f, tools/quantize/README.md; Q3_K_M: 3.74 GiB of the same model); types: its `llama-quant.cpp`.
GGUF_RECIPES: Mapping[str, tuple[float, str, str, str]] = {
    "iq1_s": (1.694, "iq1_s", "q2_k", "q5_k"),
    "iq1_m": (1.858, "iq1_m", "q2_k", "q5_k"),
    "iq2_xxs": (2.130, "iq2_xxs", "q2_k", "q5_k"),
    "iq2_xs": (2.366, "iq2_xs", "q2_k", "q5_k"),
    "iq2_s": (2.480, "iq2_s", "iq3_s", "q5_k"),
    "iq2_m": (2.698, "iq2_s", "iq3_s", "q5_k"),
    "iq3_xxs": (2.992, "iq3_xxs", "iq3_s", "q6_k"),
    "iq3_xs": (3.272, "iq3_xxs", "iq3_s", "q6_k"),
    "iq3_s": (3.459, "iq3_s", "iq3_s", "q6_k"),
    "iq3_m": (3.577, "iq3_s", "iq3_s", "q6_k"),
    "iq4_xs": (4.317, "iq4_xs", "iq4_xs", "q6_k"),
    "iq4_nl": (4.554, "iq4_nl", "iq4_nl", "q6_k"),
    "q2_k_s": (2.725, "q2_k", "q2_k", "q6_k"),
    "q2_k": (2.943, "q2_k", "q2_k", "q6_k"),
    "q3_k_s": (3.439, "q3_k", "q3_k", "q6_k"),
    "q3_k_m": (3.845, "q3_k", "q3_k", "q6_k"),
    "q3_k_l": (4.192, "q3_k", "q3_k", "q6_k"),
    "q4_0": (4.5, "q4_0", "q4_0", "q6_k"),
    "q4_1": (5.0, "q4_1", "q4_1", "q6_k"),
    "q4_k_s": (4.537, "q4_k", "q4_k", "q6_k"),
    "q4_k_m": (4.799, "q4_k", "q4_k", "q6_k"),
    "q5_0": (5.5, "q5_0", "q5_0", "q6_k"),
    "q5_1": (6.0, "q5_1", "q5_1", "q6_k"),
    "q5_k_s": (5.501, "q5_k", "q5_k", "q6_k"),
    "q5_k_m": (5.654, "q5_k", "q5_k", "q6_k"),
    "q6_k": (6.564, "q6_k", "q6_k", "q6_k"),
    "q8_0": (8.5, "q8_0", "q8_0", "q8_0"),
    "tq1_0": (1.6875, "tq1_0", "q4_k", "q6_k"),
    "tq2_0": (2.0625, "tq2_0", "q4_k", "q6_k"),
}

#: Block types that llama.cpp keeps keys and values in. kind: datasheet, 2026-11, source: its flag `--cache-type-k`.
GGUF_KV_TYPES = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")

#: MLX's affine formats: groups of 64 weights with a 16-bit scale and a 16-bit bias, embedding and head included, routers in 8
#: bits. kind: datasheet, 2026-11, source: `mlx.core.quantize` (documentation), by arithmetic; `mlx_lm.convert` (routers).
MLX_BITS = (2, 3, 4, 5, 6, 8)

#: MLC-LLM's group formats, embedding and head included but in ``q4f16_2``: 4 bits and a 16-bit scale for 32 weights; ten
#: weights of 3 bits in 32, and a 16-bit scale for 40; ``q4f16_ft`` has a scale a channel, taken as 0. kind: datasheet, by
#: arithmetic, 2026-11, source: mlc-ai/mlc-llm@79d603f0, python/mlc_llm/quantization/quantization.py.
MLC_BITS: Mapping[str, float] = {
    "q4f16_0": 4.5,
    "q4f16_1": 4.5,
    "q4bf16_0": 4.5,
    "q4bf16_1": 4.5,
    "q4f32_1": 4.5,
    "q4f16_2": 4.5,
    "q3f16_0": 3.6,
    "q3f16_1": 3.6,
    "q4f16_ft": 4.0,
}

#: Blocks of 32 or 64 weights with a base and a scale, the head in them too, the embedding left alone. kind: datasheet, by
#: arithmetic, 2026-11, source: inferflow/inferflow@14ff95e, src/common/quant_types.h.
BLOCKWISE_BITS: Mapping[str, float] = {
    "q8_b32t1": 9.0,
    "q8_b32t2": 8.5,
    "q6_b64t1": 6.5,
    "q5_b64t1": 5.5,
    "q5_b32t1": 6.0,
    "q4_b32t1": 5.0,
    "q4_b32t2": 4.5,
    "q4_b64t1": 4.5,
    "q3h_b64t1": 4.0,
    "q3_b32t1": 4.0,
    "q2_b32t1": 3.0,
}

#: Least and most bits of an EXL2 or EXL3 file, and the bits of its head. kind: datasheet, 2026-11, source: exllamav2
#: `doc/convert.md` (`-b`, `-hb`: 6), exllamav3 `doc/convert.md`.
EXL_BITS, EXL_HEAD_BITS = (1.0, 8.0), 6

#: Bits of a value of ExLlamaV2's quantized KV cache: 4 or 8 and a 16-bit scale a 32 values; in Q6 keys have 8, values 4. kind:
#: datasheet, 2026-11, source: exllamav2 `cache.py` (`ExLlamaV2Cache_Q4`, `_Q6`, `_Q8`), by arithmetic.
EXL_KV_BITS: Mapping[str, float] = {"exl_q4": 4.5, "exl_q6": 6.5, "exl_q8": 8.5}

#: NNCF's formats, as OpenVINO loads them: 8 bits with a scale and a zero point a channel, which count as nothing; 4 bits in
#: groups with a 16-bit scale, if asymmetric a 4-bit zero point, in a share of the layers (`--ratio`), the others, embedding and
#: head in 8. ``u4`` is of keys and values; their scales an engine adds. kind: datasheet, by arithmetic, 2026-11, source: NNCF
#: (`compress_weights`, documentation), optimum-intel (`--weight-format`, `--sym`, `--group-size`, `--ratio`: int4 is asymmetric
#: in groups of 128 unless told otherwise).
NNCF_GROUPS: Mapping[str, int] = {"32": 32, "64": 64, "128": 128, "channel": 0}
NNCF_RATIOS = ("", "_r0.9", "_r0.8", "_r0.7", "_r0.6", "_r0.5")

_EXL = re.compile(r"(exl[23])_(\d(?:\.\d{1,2})?)(?:bpw)?")


def _gguf(name: str, recipe: tuple[float, str, str, str]) -> PackedFormat:
    bits, block, embedding, head = recipe
    parts = {"embedding": embedding, "lm_head": head}
    return PackedFormat(name, "gguf", bits, block, parts, kv_cache=name in GGUF_KV_TYPES)


def _mlx(bits: int) -> PackedFormat:
    name = f"mlx_{bits}bit"
    parts = {"embedding": name, "lm_head": name, "router": "mlx_8bit"}
    return PackedFormat(name, "mlx", bits + 0.5, name, parts, kv_cache=bits in (4, 8))


def _nncf(kind: str, group: str, ratio: str) -> PackedFormat:
    name = f"nncf_int4_{kind}_{group}{ratio}"
    size, share = NNCF_GROUPS[group], float(ratio[2:] or 1)
    bits = 4 + ((20 if kind == "asym" else 16) / size if size else 0)
    parts = {"embedding": "nncf_int8", "lm_head": "nncf_int8"}
    return PackedFormat(name, "nncf", share * bits + (1 - share) * 8, "nncf_int4", parts)


#: Formats with a name of their own; EXL2 and EXL3 come in any number of bits, see `packed_format`. ``mxfp4_moe`` is llama.cpp's
#: file of gpt-oss: experts in MXFP4, the rest in Q8_0 (kind: measured: 11.27 GiB of 20.9e9 parameters, 2026-11).
PACKED_FORMATS: Mapping[str, PackedFormat] = {
    **{name: _gguf(name, recipe) for name, recipe in GGUF_RECIPES.items()},
    **{
        name: PackedFormat(name, "gguf", bits, name, {"embedding": name, "lm_head": name})
        for name, bits in GGUF_BLOCK_BITS.items()
        if name not in GGUF_RECIPES
    },
    "mxfp4_moe": PackedFormat(
        "mxfp4_moe", "gguf", 8.5, "q8_0", {"embedding": "q8_0", "lm_head": "q8_0", "experts": "mxfp4"}
    ),
    **{f"mlx_{bits}bit": _mlx(bits) for bits in MLX_BITS},
    **{name: PackedFormat(name, "exl", bits, name, kv_cache=True) for name, bits in EXL_KV_BITS.items()},
    **{
        name: PackedFormat(name, "mlc", bits, name, {} if name == "q4f16_2" else {"embedding": name, "lm_head": name})
        for name, bits in MLC_BITS.items()
    },
    **{
        name: PackedFormat(name, "blockwise", bits, name, {"lm_head": name}, kv_cache=name == "q8_b32t2")
        for name, bits in BLOCKWISE_BITS.items()
    },
    "nncf_int8": PackedFormat(
        "nncf_int8", "nncf", 8.0, "nncf_int8", {"embedding": "nncf_int8", "lm_head": "nncf_int8"}
    ),
    **{each.name: each for each in (_nncf(*of) for of in product(("sym", "asym"), NNCF_GROUPS, NNCF_RATIOS))},
    "u4": PackedFormat("u4", "nncf", 4.0, "u4", kv_cache=True),
}


EXAMPLES: Mapping[str, str] = {
    "gguf": "q4_k_m",
    "mlx": "mlx_4bit",
    "exl": "exl2_4.0",
    "mlc": "q4f16_1",
    "blockwise": "q4_b32t1",
    "nncf": "nncf_int8",
}
"""A format of each family, for words."""


@lru_cache(maxsize=256)
def packed_format(name: str) -> PackedFormat | None:
    """The packed format of that name, None where it is none: ``q4_k_m``, ``mlx_4bit``, ``exl2_4.65``."""
    known = PACKED_FORMATS.get(name)
    found = None if known else _EXL.fullmatch(name)
    if found is None:
        return known
    kind, bits = found[1], float(found[2])
    if not EXL_BITS[0] <= bits <= EXL_BITS[1]:
        return None
    head = {"lm_head": f"{kind}_{max(EXL_HEAD_BITS, round(bits))}"}
    return PackedFormat(f"{kind}_{bits:g}", "exl", bits, kind, head)


__all__ = ["MLX_BITS", "PACKED_FORMATS", "PackedFamily", "PackedFormat", "packed_format"]
