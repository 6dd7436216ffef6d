"""Number formats of weights, activations and KV cache: the bits a value takes, the arithmetic it needs.

`FORMATS` holds what servers of GPUs load; formats of packed files (GGUF, EXL2, EXL3, MLX, MLC) stand in
:mod:`hardware_profiles.packed_formats`, and `format_named` knows both.
"""

from __future__ import annotations

import re
from functools import lru_cache

from hardware_profiles.errors import InputError, nearest
from hardware_profiles.packed_formats import PACKED_FORMATS, packed_format
from hardware_profiles.records import dataclass


@dataclass(frozen=True)
class Format:
    """One number format.

    name : the name a scenario uses.
    bits_per_weight : stored bits per value, scales and zero points included [bits].
    compute : the arithmetic the matrix units run, a name of the hardware profile ("bf16", "fp8", ...).
    weight_only : the values are widened before the multiplication, so that only memory traffic shrinks.
    kv_cache : engines offer the format for the KV cache too.
    family : of the packed files that have it ("gguf", "mlx", "exl", "mlc", "blockwise"), by which an engine may say that it
        loads them all; "" else.
    parts : formats of the parts of a model that are in another one, by name.
    rare : few checkpoints have it: others are offered where weights are too large.
    """

    name: str
    bits_per_weight: float
    compute: str
    weight_only: bool
    kv_cache: bool = False
    family: str = ""
    parts: tuple[tuple[str, str], ...] = ()
    rare: bool = False


# Bits follow from the storage layouts (kind: datasheet, by arithmetic; read 2025-11):
#   fp8        one scale a tensor or channel, < 0.01 bit a weight, taken as 0 (vLLM docs, FP8 W8A8)
#   fp8_block  one fp32 scale per 128 x 128 block: 8 + 32/16384 (DeepSeek-V3 report, arXiv:2412.19437, 3.3.2)
#   int8       one scale a channel, taken as 0 (vLLM docs, INT8 W8A8)
#   int8_wo    weight-only, group of 128, one 16-bit scale (GPTQ in 8 bits, W8A16)
#   int4       group of 128, one 16-bit scale, symmetric: 4 + 16/128 (compressed-tensors W4A16 default)
#   nf4        bitsandbytes': blocks of 64 with an 8-bit scale, whose own scale serves 256 blocks (QLoRA, arXiv:2305.14314)
#   awq, gptq  group of 128, one 16-bit scale and one 4-bit zero: 4 + 20/128
#              (AWQ arXiv:2306.00978; GPTQ arXiv:2210.17323; the files' qweight, qzeros, scales)
#   nvfp4      group of 16, one fp8 scale: 4 + 8/16 (NVIDIA NVFP4; the fp32 scale of a tensor is < 1e-6)
#   mxfp4      group of 32, one 8-bit exponent: 4 + 8/32 (OCP Microscaling Formats v1.0, 2023-09)
#   mxfp8      the same with 8 bits: 8 + 8/32; tensor cores scale its blocks where they scale those of fp4 (compute "mxfp8")
#   w4afp8     4-bit integers in groups of 128 with one 16-bit scale, multiplied in fp8: 4 + 16/128 (SGLang's `w4afp8.py`, vLLM's
#              `compressed_tensors_w4a8_fp8.py`, ModelOpt's W4A8_AWQ)
#   fp8a16, nvfp4a16  the files of fp8 and nvfp4 without activations in them: widened to 16 bits before the product
# A checkpoint that states another group size carries its own bits (`Architecture.quantization_bits`).
FORMATS: dict[str, Format] = {
    f.name: f
    for f in (
        Format("fp32", 32.0, "fp32", weight_only=False, kv_cache=True),
        Format("bf16", 16.0, "bf16", weight_only=False, kv_cache=True),
        Format("fp16", 16.0, "fp16", weight_only=False, kv_cache=True),
        Format("fp8", 8.0, "fp8", weight_only=False, kv_cache=True),
        Format("fp8_block", 8.0 + 32.0 / (128 * 128), "fp8", weight_only=False),
        Format("int8", 8.0, "int8", weight_only=False, kv_cache=True),
        Format("int8_wo", 8.0 + 16.0 / 128, "bf16", weight_only=True),
        Format("int4", 4.0 + 16.0 / 128, "bf16", weight_only=True, kv_cache=True),
        Format("nf4", 4.0 + 8.0 / 64 + 32.0 / (64 * 256), "bf16", weight_only=True),
        Format("awq", 4.0 + 20.0 / 128, "bf16", weight_only=True),
        Format("gptq", 4.0 + 20.0 / 128, "bf16", weight_only=True),
        Format("nvfp4", 4.0 + 8.0 / 16, "fp4", weight_only=False, kv_cache=True),
        Format("mxfp4", 4.0 + 8.0 / 32, "fp4", weight_only=False),
        Format("mxfp8", 8.0 + 8.0 / 32, "mxfp8", weight_only=False, rare=True),
        Format("w4afp8", 4.0 + 16.0 / 128, "fp8", weight_only=False, rare=True),
        Format("fp8a16", 8.0, "bf16", weight_only=True, rare=True),
        Format("nvfp4a16", 4.0 + 8.0 / 16, "bf16", weight_only=True, rare=True),
    )
}

# Spellings of engines and checkpoints for the same formats.
_ALIASES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "float8_e4m3fn": "fp8",
    "w8a8": "int8",
    "w8a16": "int8_wo",
    "w4a16": "int4",
    "fp4": "nvfp4",
    "w4a8_awq": "w4afp8",
    "f16": "fp16",
    "f32": "fp32",
}


def format_named(name: str, *, where: str | None = None) -> Format:
    """Return the format called `name` (case, dashes and common spellings forgiven).

    Raises InputError naming the nearest known format.

    >>> format_named("NVFP4").bits_per_weight
    4.5
    """
    key = str(name).strip().lower().replace("-", "_")
    found = FORMATS.get(_ALIASES.get(key, key)) or _packed(key)
    if found is None:
        near = nearest(key, [*FORMATS, *PACKED_FORMATS])
        hint = f"did you mean '{near}'? " if near else ""
        raise InputError(
            f"unknown number format '{name}'",
            where=where,
            mend=f"{hint}known formats: {', '.join(FORMATS)}, and "
            "those of packed files: q4_k_m (GGUF), mlx_4bit, exl2_4.0...",
        )
    return found


@lru_cache(maxsize=256)
def _packed(name: str) -> Format | None:
    packed = packed_format(name)
    if packed is None:
        return None
    return Format(
        packed.name,
        packed.bits_per_weight,
        "fp16",
        weight_only=True,
        kv_cache=packed.kv_cache,
        family=packed.family,
        parts=tuple(packed.parts.items()),
    )


_QUANT = re.compile(
    r"(?:^|[-._])((?:i?q[1-8]|tq[12])_[0-9a-z]+(?:_[a-z]+)?|mxfp4(?:_moe)?|bf16|f16|f32|fp16)(?=[-._]|$)"
)


def quant_of(name: str) -> str | None:
    """The number format that the name of a GGUF file or of a repository's tag states; None if it states none we know."""
    words = re.sub(r"\.gguf$|-\d{5}-of-\d{5}", "", name.lower().rpartition("/")[2])
    for found in reversed(_QUANT.findall(words)):
        try:
            return format_named(found).name
        except InputError:
            continue
    return None
