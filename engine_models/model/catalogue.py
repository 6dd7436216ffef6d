"""The models known by name: Hugging Face config keys in ``catalogue/models.json``, read when first needed.

Each entry is keyed by its Hugging Face id and holds the keys of its ``config.json`` that matter, ``source``
(where the values were checked) and, if wanted, ``aliases``. An entry with ``like`` takes the other keys of
the entry it names.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine_models.model import tags
from hardware_profiles.errors import nearest
from hardware_profiles.records import dataclass

MODELS_FILE = Path(__file__).parent / "catalogue" / "models.json"

# Suffixes of repository names that say how the weights are stored, longest first.
_FORMAT_SUFFIXES = {
    "-fp8-dynamic": "fp8",
    "-fp8-block": "fp8_block",
    "-fp8-static": "fp8",
    "-int4-sym-gptq-inc": "gptq",
    "-unsloth-bnb-4bit": "nf4",
    "-w-mxfp4-a-fp8": "mxfp4",
    "-qat-w4a16-ct": "int4",
    "-int4-autoround": "int4",
    "-gptq-int4": "gptq",
    "-gptq-int8": "int8_wo",
    "-gptq-4bit": "gptq",
    "-awq-int4": "awq",
    "-int4-awq": "awq",
    "-awq-4bit": "awq",
    "-4bit-awq": "mlx_4bit",
    "-awq-8bit": "int8_wo",
    "-mxfp4-asq": "mxfp4",
    "-mxfp4-q4": "mxfp4",
    "-mxfp4-q8": "mxfp4",
    "-int4-ov": "int4",
    "-int8-ov": "int8_wo",
    "-fp16-ov": "fp16",
    "-w4a16-g128": "int4",
    "-bnb-4bit": "nf4",
    "-quantized.w8a8": "int8",
    "-quantized.w4a16": "int4",
    "-quantized.w8a16": "int8_wo",
    "-fp8-kv": "fp8",
    "-nvfp4a16": "nvfp4a16",
    "-nvfp4-w4a4": "nvfp4",
    "-nvfp4-qad": "nvfp4",
    "-w4afp8": "w4afp8",
    "-w4a8-fp8": "w4afp8",
    "-mxfp8": "mxfp8",
    "-nvfp4": "nvfp4",
    "-mxfp4": "mxfp4",
    "-w8a8": "int8",
    "-w4a16": "int4",
    ".w8a8": "int8",
    "-bf16": "bf16",
    "-gptq": "gptq",
    "-int8": "int8",
    "-int4": "int4",
    "-fp8": "fp8",
    "-fp4": "nvfp4",
    "-awq": "awq",
}

# Names of packed files: MLX's by bits, EXL2's and EXL3's by bits a weight.
_PACKED = (
    (re.compile(r"-(?:mlx-)?(?:qat-)?([234568])bit(?:-dwq)?$"), "mlx_{}bit"),
    (re.compile(r"-(q[34]f16-[012])-mlc$"), "{}"),
    (re.compile(r"-([1-8](?:\.\d{1,2})?)bpw(?:-h\d)?-exl2$"), "exl2_{}"),
    (re.compile(r"-exl2-([1-8](?:\.\d{1,2})?)bpw(?:-h\d)?$"), "exl2_{}"),
    (re.compile(r"-exl3-([1-8](?:\.\d{1,2})?)bpw(?:-h\d)?$"), "exl3_{}"),
)

# Organisations whose own "-FP8" repositories scale by 128 x 128 blocks (their model cards).
_BLOCK_FP8_ORGANISATIONS = ("qwen", "deepseek-ai", "minimaxai", "moonshotai")

# Suffixes of variants with the same shapes.
_VARIANT = re.compile(
    r"-(instruct|it|hf|chat|base|pt|thinking|reasoning|preview|v\d+(\.\d+)?|2[45]\d\d|0324|0528|0905)$"
)

_LLAMA = re.compile(r"(^|/)meta-llama-")

# What stands behind a format where a checkpoint was made again: "-NVFP4-v2", "-MXFP4-Preview".
_ISSUE = re.compile(r"-(v\d+|preview)$")

# Names of models that are no decoders, or decode as no scheduler here does, and why they are refused.
_NOT_MODELLED = (
    (
        r"llada|diffusiongemma|(^|/)dream-",
        "it fills in the tokens of a block in several passes (diffusion), which no scheduler here runs",
    ),
    (
        r"stable-diffusion|stable-audio|diffusers$|(^|/)(flux|wan2|ltx|z-image|cosmos3|qwen-image|glm-image|longcat-image)",
        "it makes images, sound or video by diffusion, which no scheduler here runs",
    ),
    (
        r"whisper|voxtral|-(asr|tts)(-|d|$)|transcribe|voicegenerator|soundeffect",
        "it hears or speaks, whose steps are not modelled",
    ),
    (
        r"embed|rerank|(^|/)(bge|e5|gte|mxbai|all-minilm)-",
        "its answer is a vector or a score: it generates no tokens",
    ),
    (
        r"eagle3?(-|$)|-assistant$|-dflash(-|$)|speculator",
        "it drafts for another model: name that one, and this one as its draft",
    ),
    (r"nemotron-(super-49b|ultra-253b)", "its layers are of unequal shape"),
    (r"llama-3\.2-(11|90)b-vision", "its decoder attends to the image across stacks"),
    (r"(^|/)deepseek-v4\.1", "its layers share caches and read tables of n-grams, which are not modelled"),
    (r"qwen3\.8-flash-next|(^|/)qwen4-exp", "its layers read tables of n-grams and mix streams as none that is modelled"),
    (r"(^|/)inkling-small", "the heads of its windows stand nowhere that could be read; its config.json as `model` is exact"),
    (r"unlimited-ocr", "its windows keep the image's tokens, which is not modelled"),
)


@dataclass(frozen=True)
class CatalogueModel:
    """An entry found by name: its id, its config, and the format the name's suffix states (None: none)."""

    key: str
    config: dict[str, Any]
    quantization: str | None

    @property
    def source(self) -> str:
        """Where its numbers come from."""
        return str(self.config.get("source", "-"))

    @property
    def assumed(self) -> tuple[str, ...]:
        """In words, that numbers were written from memory; empty where all have a source."""
        if "from memory" not in self.source:
            return ()
        return (f"shapes not all from its config.json: {self.source}; that file as `model` is exact",)


@lru_cache(maxsize=1)
def catalogue() -> dict[str, dict[str, Any]]:
    """Return all entries by Hugging Face id."""
    stored: dict[str, dict[str, Any]] = json.loads(MODELS_FILE.read_text(encoding="utf-8"))
    return {key: _whole(entry, stored) for key, entry in stored.items()}


def _whole(entry: dict[str, Any], stored: dict[str, dict[str, Any]]) -> dict[str, Any]:
    if "like" not in entry:
        return entry
    inherited = {key: value for key, value in _whole(stored[entry["like"]], stored).items() if key != "aliases"}
    return {**inherited, **{key: value for key, value in entry.items() if key != "like"}}


def model_names() -> list[str]:
    """Return the Hugging Face ids of the catalogue, sorted."""
    return sorted(catalogue(), key=str.lower)


_PART = re.compile(r"[a-z]+|\d+(?:\.\d+)*[bm]?")
"""Parts of a name: the family's word, a version, a size."""
_NAMED = 4  # of a family, at most


def nearest_names(name: str) -> list[str]:
    """Names of models that somebody may have meant who wrote `name`, the nearest first; none where none is near.

    They are those that share most of the parts with which it begins: family, version, size.

    >>> nearest_names("llama3.1:8b")[0]
    'Llama-3.1-8B'
    """
    short = name.rpartition("/")[2].lower()
    written = _PART.findall(short)
    known = [key.rpartition("/")[2] for key in model_names()]

    def shared(other: str) -> int:
        """How many parts of both are the same from the beginning; 3 is also 3.1."""
        alike = [one == two or two.startswith(f"{one}.") for one, two in zip(written, _PART.findall(other.lower()), strict=False)]
        return alike.index(False) if False in alike else len(alike)

    most = max(map(shared, known))
    family = [other for other in known if shared(other) == most > 0] or known
    close = nearest(short, family) or (family[0] if most > 1 else None)
    if close is None:
        return []
    return [close, *(other for other in family if other != close)] if most > 1 and len(family) <= _NAMED else [close]


@lru_cache(maxsize=1)
def _index() -> dict[str, str]:
    """Every forgiven spelling of a model and the id it means; exact names win over shortened ones."""
    exact: dict[str, str] = {}
    short: dict[str, str] = {}
    for key, entry in catalogue().items():
        for name in (key, key.split("/")[-1], *entry.get("aliases", ())):
            exact.setdefault(_plain(name), key)
            for spelling in _shortened(_plain(name)):
                short.setdefault(spelling, key)
    return short | exact


def _plain(name: str) -> str:
    plain = name.strip().lower().replace("_", "-").replace(" ", "-")
    return _LLAMA.sub(r"\1llama-", plain) if "meta-llama-" in plain else plain  # the index asks for 1,500 names


def _shortened(name: str) -> list[str]:
    """The name without its organisation, then with one variant suffix after another taken off.

    A version goes only where the size stays: deepseek-v3.2 is another model than deepseek-v3.
    """
    found = [name.split("/")[-1]]
    while (match := _VARIANT.search(found[-1])) is not None:
        rest = found[-1][: match.start()]
        if match.group(1).startswith("v") and re.search(r"\d[bm]\b", rest) is None:
            break
        found.append(rest)
    return found


def find_model(name: str) -> CatalogueModel | None:
    """Return the entry that `name` means, or None.

    Case, organisation, format suffixes and variant suffixes are forgiven; what else is no name is read as one with a tag, or of a
    repository of GGUF files (:mod:`engine_models.model.tags`).

    >>> find_model("nvidia/Llama-3.3-70B-Instruct-FP4").key
    'meta-llama/Llama-3.3-70B-Instruct'
    """
    index = _index()
    plain = _plain(name)
    if plain in index:
        return _entry(index[plain], None)
    organisation = plain.split("/")[0] if "/" in plain else ""
    quantization = None
    issue = _ISSUE.search(plain)
    for suffix, stored in _FORMAT_SUFFIXES.items():
        for spelling in (plain, plain[: issue.start()] if issue else plain):
            if quantization is None and spelling.endswith(suffix):
                plain, quantization = spelling[: -len(suffix)], stored
    for pattern, packed in _PACKED if quantization is None else ():
        if (named := pattern.search(plain)) is not None:
            plain, quantization = plain[: named.start()], packed.format(named[1].replace("-", "_"))
            break
    if quantization == "fp8" and organisation in _BLOCK_FP8_ORGANISATIONS:
        quantization = "fp8_block"
    for spelling in (plain, *_shortened(plain)):
        if spelling in index:
            return _entry(index[spelling], quantization)
    return _packed(name)


def _packed(name: str) -> CatalogueModel | None:
    """The entry of a name with a tag, or of a repository of GGUF files, and the format of its file."""
    if (tagged := tags.find_tagged(name)) is not None:
        return _entry(tagged.model, tagged.format)
    if (repository := tags.of_repository(name)) is None:
        return None
    of, stored = repository
    found = find_model(of)
    return None if found is None else _entry(found.key, stored)


def why_not_modelled(name: str) -> str | None:
    """Why a model of this name is refused, if the name alone says that it is none that is modelled.

    >>> why_not_modelled("openai/whisper-large-v3")
    'it hears or speaks, whose steps are not modelled'
    """
    plain = _plain(name)
    return next((reason for pattern, reason in _NOT_MODELLED if re.search(pattern, plain)), None)


def _entry(key: str, quantization: str | None) -> CatalogueModel:
    return CatalogueModel(key, catalogue()[key], quantization)
