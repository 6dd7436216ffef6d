"""Flags of TabbyAPI with ExLlamaV2: names, types and defaults, and what they say of a pool's keys.

They follow `common/config_models.py` of TabbyAPI at d2d87bb9 (2026-06), which later dropped ExLlamaV2: keys of its `config.yml`
and flags of its `main.py` alike. `max_skips` is an argument of a job of the library.
"""

from __future__ import annotations

from engine_models.cost.draft_methods import SecondModel
from engine_models.flag_lists import classified
from engine_models.flags import Flag, FlagTable, Typed
from engine_models.launcher import Launcher

CACHES = {"FP16": "fp16", "Q8": "exl_q8", "Q6": "exl_q6", "Q4": "exl_q4"}
"""Values of ``--cache-mode`` and the format of the KV cache that they fix."""

MOST_DRAFTS = 8
"""Drafts of a row and iteration that there may be (datasheet: `max_q_size` of `exllamav2/generator/dynamic.py`)."""
DRAFTS = SecondModel("ExLlamaV2", "draft_model_name", "draft_num_tokens", 4)
"""Drafts of a step where nobody says: 4 (datasheet: `num_draft_tokens`)."""

_MODELLED: dict[str, Flag] = {
    "model": Flag("str"),
    "max_seq_len": Flag("int", None, low=2),
    "cache_size": Flag("int", None, low=256),
    "cache_mode": Flag("str", "FP16", choices=tuple(CACHES)),
    "chunk_size": Flag("int", 2048, low=1),
    "max_batch_size": Flag("int", None, low=1),
    "autosplit_reserve": Flag("ints", [96], low=0),
    "max_skips": Flag("int", 4, low=0),
    DRAFTS.model: Flag("str"),
    DRAFTS.number: Flag("int", DRAFTS.default, low=1, high=MOST_DRAFTS),
    "draft_cache_mode": Flag("str", "FP16", choices=tuple(CACHES)),
}

_LISTS = "dummy_model_names gpu_split use_as_default loras draft_gpu_split"
_HARMLESS = """
    backend disable_auth disable_fetch_requests disable_request_streaming draft_gpu_split draft_model_dir
    draft_rope_alpha draft_rope_scale dummy_model_names embedding_model_dir embedding_model_name
    force_enable_thinking gpu_split_auto host inline_model_loading log_chat_completion_requests log_generation_params log_prompt
    log_requests lora_dir model_dir ngram_match_min output_chunking override_preset port prompt_template
    realtime_process_priority reasoning reasoning_end_token reasoning_start_token reasoning_suppress_header send_tracebacks
    seqlog seqlog_api_key seqlog_server_url sysmem_recurrent_cache tensor_parallel tensor_parallel_backend tool_format
    unsafe_launch use_as_default
    use_dummy_models
"""
_CHANGING = {
    "the model's context": "rope_scale=1|1.0 rope_alpha",
    "adapters, which are not simulated": "loras",
    "the memory that is left": "cuda_malloc_async vision",
}
_REFUSED = {
    "how layers are spread over GPUs (write tensor_parallel, or one GPU)": "gpu_split",
    "whatever its file says (write the keys of its `model` section as engine_args)": "config",
}
_KINDS = {
    name.partition("=")[0]: "list" if name in _LISTS.split() else "value"
    for text in (_HARMLESS, *_CHANGING.values(), *_REFUSED.values())
    for name in text.split()
}

_LAUNCHER = Launcher(
    programs=(r"main\.py", r"[^\s]*tabby[^\s]*/main\.py", r"(?:[^\s]*/)?start\.(?:sh|py|bat)", r"tabbyapi"),
    example="python main.py --model-name MODEL --flag value",
    image=r"[^\s:=]*theroyallab/tabbyapi[^\s:=]*",
    package="exllamav2",
)

FLAGS = FlagTable(
    engine="exllamav2",
    modelled=_MODELLED,
    launcher=_LAUNCHER,
    unread=classified(_KINDS, _HARMLESS, _CHANGING, _REFUSED),
    aliases={"model_name": "model"},
    typed={
        "cache_mode": Typed("kv_cache", CACHES.get),
        DRAFTS.model: Typed("speculative", beside=DRAFTS.said),
        DRAFTS.number: Typed("speculative", beside=DRAFTS.said),
    },
    abbreviated=False,
)

__all__ = ["CACHES", "DRAFTS", "FLAGS", "MOST_DRAFTS"]
