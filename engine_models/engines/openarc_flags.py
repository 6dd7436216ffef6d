"""Flags of OpenArc: of the command that adds a model, and names of the library's `SchedulerConfig`.

They follow `src/cli/groups/add.py`, `src/cli/groups/serve.py` and `contract_ovgenai_llm_and_vlm.py` of SearchSavior/OpenArc at
92e6e1d (2026-08). The keys of `scheduler_config` are flags of their own too.
"""

from __future__ import annotations

from engine_models.engines.openvino_genai import KV_FORMATS
from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher

SCHEDULER_FLAGS: dict[str, Flag] = {
    "max_num_batched_tokens": Flag("int", None, low=1),
    "max_num_seqs": Flag("int", None, low=1),
    "cache_size": Flag("int", None, low=0),
    "num_kv_blocks": Flag("int", None, low=0),
    "dynamic_split_fuse": Flag("bool", None),
    "enable_prefix_caching": Flag("bool", None),
}

MODELLED: dict[str, Flag] = {
    "scheduler_config": Flag("json", None),
    **SCHEDULER_FLAGS,
    "runtime_config": Flag("json", None),
    "device": Flag("str", None),
}

_HARMLESS = "model_name model_path engine=ovgenai model_type=llm cache_dir vlm_type host port load_models"
_REFUSED = {
    "how many tokens a step yields (drafts are not simulated for OpenArc)": (
        "draft_model_path draft_device num_assistant_tokens assistant_confidence_threshold"
    ),
    "which blocks of the KV cache are kept": "use_cache_eviction",
    "what prompts attend to": "use_sparse_attention",
}
_SWITCHES = "use_api_key verbose"
_KINDS = {
    name.partition("=")[0]: "value" for text in (_HARMLESS, *_REFUSED.values()) for name in text.split()
} | dict.fromkeys(_SWITCHES.split(), "switch")

FLAGS = FlagTable(
    engine="openarc",
    modelled=MODELLED,
    launcher=Launcher(
        programs=(r"openarc add", r"openarc serve start"),
        example="openarc add --model-name NAME --model-path PATH --engine ovgenai --model-type llm --device CPU",
        image=r"[^\s:=]*searchsavior/openarc[^\s:=]*",
    ),
    unread=classified(_KINDS, f"{_HARMLESS} {_SWITCHES}", {}, _REFUSED),
    shorts={"mn": "model_name", "sc": "scheduler_config"},
    aliases={
        "mn": "model_name",
        "m": "model_path",
        "en": "engine",
        "mt": "model_type",
        "d": "device",
        "rtc": "runtime_config",
        "cd": "cache_dir",
        "dmp": "draft_model_path",
        "lm": "load_models",
    },
    typed={
        "runtime_config": Typed(
            "kv_cache", lambda value: KV_FORMATS.get(str(value.get("KV_CACHE_PRECISION")).lower())
        )
    },
    abbreviated=False,
)
