"""Settings of Ollama: variables of the environment of ``ollama serve``, and options of a model or a request.

They follow `envconfig/config.go` and `api/types.go` of 0.33 (2026). A variable ``OLLAMA_NUM_PARALLEL`` is the key `num_parallel`;
options (`num_ctx`, `num_batch`...) are those of a Modelfile, taken for all requests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from engine_models.engines import kubeai
from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher
from hardware_profiles.errors import InputError

_KV_CACHE = {"f16": "fp16", "q8_0": "q8_0", "q4_0": "q4_0"}

_MODELLED: dict[str, Flag] = {
    "num_parallel": Flag("int", 1, low=0),
    "max_queue": Flag("int", 512, low=0),
    "context_length": Flag("int", 0, low=0),
    "keep_alive": Flag("str", "5m"),
    "kv_cache_type": Flag("str", "f16", choices=tuple(_KV_CACHE)),
    "num_ctx": Flag("int", None, low=4),
    "num_batch": Flag("int", None, low=1),
    "num_keep": Flag("int", 4, low=-1),
    "num_gpu": Flag("int", -1, low=-1),
    "num_thread": Flag("int", 0, low=0),
    "host_cpu": Flag("str", None),
    "shift": Flag("bool", True),
    "draft_num_predict": Flag("int", None, low=0, high=128),
}
DRAFTS = 4
"""Drafts of a step of a model that has a layer or a file for them (datasheet: `DefaultOptions` of `api/types.go`)."""

_HARMLESS = """
    host models origins debug noprune nohistory remotes llm_library multiuser_cache auth editor no_cloud max_transfer_streams
    seed temperature top_k top_p min_p typical_p repeat_last_n repeat_penalty presence_penalty frequency_penalty
    mirostat mirostat_tau mirostat_eta penalize_newline stop use_mmap use_mlock low_vram numa vocab_only
    max_loaded_models load_timeout sched_spread new_engine
"""
_CHANGING = {
    "the speed of attention": "flash_attention=1|true|auto",
    "how long an answer is where the client asks for no limit": "num_predict=-1",
    "which memory of a device is used": "gpu_overhead=0",
    "which devices compute": "main_gpu=0 vulkan",
}
_NAMES = [
    name.partition("=")[0]
    for text in (_HARMLESS, *_CHANGING.values())
    for name in text.split()
]
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def keep_alive_s(text: str) -> float:
    """Seconds of a duration as Ollama reads it: ``5m``, ``1h30m``, seconds without a unit; negative for ever."""
    text = text.strip()
    if text.startswith("-"):
        return float("inf")
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    parts = _DURATION.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise InputError(
            f"keep_alive '{text}' is no duration",
            where="deployment.engine_args.keep_alive",
            mend="write it as 5m, 1h30m or 300, and -1 for ever",
        )
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def _drafts(number: int) -> dict[str, Any] | None:
    """What a number of drafts says of a pool's `speculative`: nothing where it is 0."""
    return {"method": "mtp", "num_speculative_tokens": number} if number else None


def _of_kubeai(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Models of KubeAI as containers, each of which keeps the one model that it has pulled; other documents as they are."""
    services: dict[str, Any] = {}
    for name, model in kubeai.models_of(document, "OLlama"):
        started = ["sh", "-c", f"ollama serve & ollama pull {kubeai.model_named(model)}"]
        services[name] = kubeai.container(model, started, {"OLLAMA_KEEP_ALIVE": "999999h"})
    return {"services": services} if services else document


FLAGS = FlagTable(
    engine="ollama",
    modelled=_MODELLED,
    launcher=Launcher(
        programs=(r"ollama serve",),
        example="ollama serve --flag value",
        image=r"[^\s:=]*ollama/ollama[^\s:=]*",
        published=r"ollama/ollama",
        enters=True,
        clients=(r"(?:\S*/)?ollama (?:run|pull)",),
        written=_of_kubeai,
    ),
    unread=classified(dict.fromkeys(_NAMES, "value"), _HARMLESS, _CHANGING, {}),
    typed={
        "kv_cache_type": Typed("kv_cache", _KV_CACHE.get),
        "draft_num_predict": Typed("speculative", _drafts),
    },
    environment={f"OLLAMA_{name.upper()}": name for name in (*_MODELLED, *_NAMES)},
    prefixes=("OLLAMA_",),
    abbreviated=False,
    converted=r".*?(?:[:-](q[2-8]_(?:[01]|k(?:_[sml])?)))?",
)
