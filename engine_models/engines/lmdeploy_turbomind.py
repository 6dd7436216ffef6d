"""LMDeploy's TurboMind, the backend of `lmdeploy serve api_server` unless told otherwise, for models that it has.

The scheduling rule is `engine_models.schedulers.oldest_first`, the cache `engine_models.memory.block_trie`. Behaviour and
defaults of the repository at 1263d5cd (2026-08: `src/turbomind/turbomind.cc`, `engine/`, `lmdeploy/archs.py`, there
`models/llama/unified_attention_layer.cc`, `turbomind/supported_models.py`), read and not recorded. `num_tokens_per_iter` and
`max_prefill_iters` are handed to the engine there and read by nobody.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.terms import HostOverhead, Terms
from engine_models.declaration import Limits, Mode, PoolRequest
from engine_models.engines.lmdeploy_backend import Backend
from engine_models.engines.lmdeploy_memory import BLOCK_TOKENS, KV_BITS, PREFILL_TOKENS, turbomind_memory
from engine_models.memory.block_trie import TrieBlocks
from engine_models.refusals import no_layers, only_weights_in
from engine_models.schedulers.oldest_first import OldestFirstRules, OldestFirstScheduler
from hardware_profiles.errors import InputError

MODEL_TYPES = frozenset(
    {
        *("llama", "internlm2", "internlm3", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "gpt_oss", "glm4_moe_lite"),
        *("qwen2_vl", "qwen2_vl_text", "qwen2_5_vl", "qwen2_5_vl_text", "internvl", "internvl_chat"),
        *("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"),
    }
)
"""Models that TurboMind has, by the type of their config (datasheet: `SUPPORTED_ARCHS` of `turbomind/supported_models.py`)."""
PYTORCH_ONLY = ("int8",)
"""Checkpoints for which `is_supported` there says no whatever the model (SmoothQuant)."""
WEIGHTS = ("bf16", "fp16", "awq", "gptq", "int4", "fp8_block", "mxfp4")
"""Formats that it loads (datasheet: `_build_resolver` of `turbomind/converter.py`)."""
OVERHEADS = "lmdeploy_turbomind"


def why_not(request: PoolRequest) -> str:
    """Why LMDeploy takes its PyTorch engine for a pool that does not ask for it; "" if it takes TurboMind (`autoget_backend`)."""
    if request.arch.model_type not in MODEL_TYPES:
        return f"TurboMind has no models of the type '{request.arch.model_type}'"
    weights = request.formats.weights.name
    return f"TurboMind loads no weights in {weights}" if weights in PYTORCH_ONLY else ""


def resolved(request: PoolRequest, rows: int, host: HostOverhead) -> Backend:
    """Resolve one pool: a share of the memory that weights leave, tokens of a step; `rows` requests at once.

    Raises InfeasibleError if the weights do not fit, InputError on what the engine or this model of it lacks.
    """
    arch, flags, tp = request.arch, request.flags, request.tensor_parallel
    _refuse(request)
    page = int(flags.get("cache_block_seq_len", BLOCK_TOKENS))
    memory = turbomind_memory(request, page)
    session = int(flags.get("session_len") or arch.max_context_tokens)
    context = session if session > rows else session * session
    forward = -(-(int(flags.get("max_prefill_token_num", PREFILL_TOKENS)) + rows) // tp) * tp
    caching = bool(flags.get("enable_prefix_caching", False))
    windows = arch.windows_below(session)
    rules = OldestFirstRules(rows, forward, context)

    def scheduler(mode: Mode) -> OldestFirstScheduler:
        kv = TrieBlocks(memory.blocks, page, prefix_caching=caching)
        return OldestFirstScheduler(
            rules, kv, aggregate=mode != "step", record_rows=mode == "record", windows=windows, masked=request.structured
        )

    return Backend(
        limits=Limits(
            rows=rows,
            step_tokens=forward,
            context_tokens=session,
            kv_tokens=memory.blocks * page,
            kv_blocks=memory.blocks,
            block_tokens=page,
            prompt_tokens=session - 1,
            row_tokens=session,
            asked_tokens=1,  # an answer is cut, not refused
        ),
        memory=memory,
        scheduler=scheduler,
        terms=Terms(replace(host, prefill_graph_tokens=0), flattens_kv=True),
        depth=2 if int(flags.get("async", 1)) == 1 else 1,
        prefix_caching=caching,
        notes=(
            f"LMDeploy's TurboMind: {memory.blocks:,} blocks of {page} tokens, {forward:,} tokens a step for prompts and decodes "
            f"together, {rows:,} requests inside; " + ("cached blocks can be found" if caching else "no prefix cache"),
            *(
                [f"the KV cache is kept in {kv}: decodes read it so (what turns it to 16 bits is taken to hide behind that)"]
                if (kv := request.formats.kv_cache.name) in KV_BITS
                else []
            ),
            "TurboMind's scheduler is read from its source and not compared with recorded steps",
            "TurboMind's kernels and its front end are priced as vLLM's, its launches from C++ and its host by estimates "
            "(assumed, nobody measured them); nothing runs in CUDA graphs",
        ),
        recorded=False,
    )


def _refuse(request: PoolRequest) -> None:
    arch, weights = request.arch, request.formats.weights.name
    elsewhere = "write engine_args: {backend: pytorch} for LMDeploy's PyTorch engine, or use another engine"
    lacks = f"TurboMind loads no weights in {weights}, and LMDeploy takes it for {arch.name} unless told otherwise"
    only_weights_in(request, WEIGHTS, lacks, otherwise=f", or {elsewhere}")
    states = f"TurboMind's checkpoints of recurrent states, which {arch.name} needs"
    no_layers(request, ("linear", "sparse"), f"{states}, are not simulated")
    if request.formats.kv_cache.name not in ("bf16", "fp16", *KV_BITS):
        raise InputError(
            f"TurboMind keeps the KV cache in 16, 8 or 4 bits of integers, not in {request.formats.kv_cache.name}",
            where="deployment.kv_cache",
            mend=f"use int8 or int4 (quant_policy: 8, 4), or {elsewhere}",
        )
