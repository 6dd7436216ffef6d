"""Names with a tag: what a manager of local models pulls by them, ``llama3.1:8b`` or ``qwen3:14b-q8_0``.

A tag names a size, then, if wanted, a variant of the same shapes and a number format; alone the format is the library's choice.
That choice and the size of its file stand in ``catalogue/tags.json`` [model, format, GB]: as pages of the library and lists of
pulled models show them (kind: measured, 2026-09, source: a list of pages of the library, read 2026-09-23, and outputs of
``list`` and ``show`` in public repositories). A format counts where the file is within 5 % of the weights in it and further from
those in others (gpt-oss keeps what is no expert in 16 bits, unlike ggml-org's file: `/api/tags` counts 13,793,441,244 bytes of
20b, and 61,223 + 1,104 MiB of 120b are loaded, ollama/ollama#16416); a model whose file holds its embedding twice (Qwen3
0.6B and 1.7B) is left out.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from pathlib import Path

from engine_models.model.formats import quant_of
from hardware_profiles.records import dataclass

TAGS_FILE = Path(__file__).parent / "catalogue" / "tags.json"
HUB_DEFAULT = "q4_k_m"
"""What is taken of a repository of several GGUF files if no tag names one. kind: datasheet, 2026-08, source: llama.cpp's
``-hf <user>/<model>[:quant]`` (`common/arg.cpp`); of gpt-oss there is one file."""
_TAGGED = re.compile(r"(?:library/)?(?P<family>[a-z0-9.\-]+?)(?::(?P<tag>[a-z0-9._\-]+))?")
_VARIANTS = ("", "instruct", "chat", "text", "it", "base")
_ONE_FILE = re.compile(r"(?:^|/)gpt-oss-", re.IGNORECASE)
_REPOSITORY = re.compile(r"(?P<model>[^:]+?)-gguf(?::(?P<quant>[a-z0-9_.\-]+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Tagged:
    """What a tag means: the catalogue's model, the file's number format and its size [1e9 byte], 0 where that is not known."""

    model: str
    format: str
    file_gb: float


@lru_cache(maxsize=1)
def library() -> dict[str, Tagged]:
    """All tags, ``family:size``, and families alone, which mean their latest."""
    found: dict[str, Tagged] = {}
    for family, entry in json.loads(TAGS_FILE.read_text(encoding="utf-8")).items():
        for size, (model, stored, size_gb) in entry["tags"].items():
            found[f"{family}:{size}"] = Tagged(model, stored, size_gb)
        if "latest" in entry:
            found[family] = found[f"{family}:latest"] = found[f"{family}:{entry['latest']}"]
    return found


def find_tagged(name: str) -> Tagged | None:
    """What a name with a tag means; None if it is none of the library, or states a format that is not known.

    >>> find_tagged("llama3.1:8b").format
    'q4_k_m'
    """
    plain = name.strip().lower()
    match = _TAGGED.fullmatch(plain)
    if match is None:
        return None
    family, tag = match["family"], match["tag"]
    known = library()
    if (found := known.get(f"{family}:{tag}" if tag else family)) is not None:
        return found
    size, _, rest = (tag or "").partition("-")
    found, stored = known.get(f"{family}:{size}"), quant_of(rest)
    variant = rest if stored is None else rest.rpartition("-")[0]  # a format's own parts are joined by underscores
    if found is None or variant not in _VARIANTS or stored in ("fp16", "bf16"):
        return None  # 16 bits are how catalogue names are read: nothing tells a file in them apart
    return found if stored in (None, found.format) else Tagged(found.model, stored, 0.0)


def unpacked(name: str) -> str | None:
    """The catalogue's model that a family's name without a tag means, for engines that load no such files; None of other names.

    >>> unpacked("gpt-oss"), unpacked("gpt-oss:20b")
    ('openai/gpt-oss-20b', None)
    """
    found = None if ":" in name else find_tagged(name)
    return None if found is None else found.model


def of_repository(name: str) -> tuple[str, str] | None:
    """Model and number format of a repository of GGUF files, ``USER/MODEL-GGUF`` or with ``:QUANT``; None if it is none.

    >>> of_repository("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF:Q8_0")
    ('bartowski/Meta-Llama-3.1-8B-Instruct', 'q8_0')
    """
    match = _REPOSITORY.fullmatch(name.strip())
    if match is None:
        return None
    alone = "mxfp4_moe" if _ONE_FILE.search(match["model"]) else HUB_DEFAULT
    stored = alone if match["quant"] is None else quant_of(match["quant"])
    return None if stored is None else (match["model"], stored)


__all__ = ["HUB_DEFAULT", "Tagged", "find_tagged", "library", "of_repository", "unpacked"]
