"""Which model types are known, and what each fixes that its config leaves out.

`FAMILIES` is a table: a row of facts a family, from its implementation in the `transformers` library (4.57 and 5.24,
`models/<model_type>/`), and the functions of :mod:`engine_models.model.family` where its layers are made of other parts. A type
without a row is read as Llama-like (RMS norms, gated MLP, rotary positions, and whatever its keys say) and says so; `REFUSED`
names those that cannot be read so.
"""

from __future__ import annotations

from dataclasses import replace

from engine_models.model.config import MOST
from engine_models.model.family import (
    SINK_KEYS,
    Family,
    experts_of_images,
    gemma_tables,
    hyper_connections,
    kimi_delta_layer,
    ling_layer,
    mamba1_layer,
    mamba2_layer,
    mixture_of_heads,
    narrow_queries,
    own_inputs,
    short_convolutions,
    twice_a_layer,
)

_LAYER_NORM = Family(gated=False, norm_bias=True, qkv_bias=True, out_bias=True, mlp_bias=True, widening=4)
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window_pattern": 6,
}
_PARALLEL_BLOCK = replace(_LAYER_NORM, norms_per_layer=1)
_LLAMA = Family()
_LLAMA4 = Family(
    shared_like_expert=True, chunked=True, defaults={"attention_chunk_size": 8192, "head_dim": 128}
)
_QWEN2 = Family(qkv_bias=True, qkv_bias_key=None, out_bias_key=None)
_QWEN3 = Family(qk_norm="head")
_QWEN3_NEXT = Family(qk_norm="head", gate="channels", shared_gate=True)
_GEMMA3 = Family(tied=True, norms_per_layer=4, qk_norm="head", defaults=_GEMMA3_DEFAULTS)
_GEMMA4 = Family(tied=True, norms_per_layer=4, qk_norm="head", adjust=own_inputs, extras=gemma_tables)
_GPT2 = replace(_LAYER_NORM, tied=True, learned_positions=True)
_DEEPSEEK = Family(router_bias=True)
_KIMI_LINEAR = Family(router_bias=True, recurrence=kimi_delta_layer)
_GLM4 = Family(qkv_bias=True, out_bias_key=None, norms_per_layer=4)
_GLM4_MOE = Family(
    qkv_bias=True,
    out_bias_key=None,
    qk_norm="head",
    router_bias=True,
    rounds_heads=True,
    defaults={"use_qk_norm": False},
)
_STEP = Family(qk_norm="head", gate="heads", router_bias=True)
_NEMOTRON_H = Family(gated=False, norms_per_layer=1, recurrence=mamba2_layer, router_bias=True)
_MAMBA_HYBRID = Family(recurrence=mamba2_layer)
_MAMBA = Family(
    norms_per_layer=1,
    tied=True,
    recurrence=mamba1_layer,
    mlps=False,
    defaults={"block_types": ["recurrent"], "max_position_embeddings": MOST},
)
_MIMO_V2 = Family(
    sinks="windows", router_bias=True, window_kv_factor=2, ignored=("attention_chunk_size", *SINK_KEYS)
)
_ERNIE_VL = Family(
    qkv_bias_key="use_bias",
    out_bias_key="use_bias",
    mlp_bias_key="use_bias",
    tied=True,
    router_bias=True,
    of_text=("moe_intermediate_size", "moe_num_experts", "moe_layer_start_index", "moe_layer_end_index"),
    extras=experts_of_images,
)
_MINIMAX_M3 = Family(qk_norm="head", router_bias=True)
_INKLING = Family(
    qk_norm="head",
    adjust=short_convolutions,
    ignored=(
        "chain_hidden_post_norm",
        "number_of_conv_states",
        "rel_extent",
        "shared_expert_sink",
        "unpadded_vocab_size",
    ),
)

FAMILIES: dict[str, Family] = {
    **dict.fromkeys(
        ("llama", "mistral", "mixtral", "phi3", "yi", "baichuan", "deepseek", "minicpm", "minicpm3"), _LLAMA
    ),
    **dict.fromkeys(
        ("ministral", "ministral3", "mistral3", "mistral4", "internlm3", "exaone", "granite", "granitemoe", "smollm3"),
        _LLAMA,
    ),
    **dict.fromkeys(
        ("granitemoeshared", "helium", "cwm", "youtu", "sarvam_mla", "iquestcoder", "aria_text"), _LLAMA
    ),
    **dict.fromkeys(("granite_swa", "granitemoe_swa", "minimax", "minimax_text_01"), _LLAMA),
    "internlm": Family(qkv_bias_key="bias", out_bias_key="bias"),
    "internlm2": Family(qkv_bias_key="bias", out_bias_key="bias"),
    "qwen": replace(_QWEN2, stated_widths=2),
    "qwen2": _QWEN2,
    "qwen2_moe": replace(_QWEN2, shared_gate=True, qkv_bias_key="qkv_bias"),
    "qwen2_vl": _QWEN2,
    "qwen2_vl_text": _QWEN2,
    "qwen2_5_vl": _QWEN2,
    "qwen2_5_vl_text": _QWEN2,
    "mimo": replace(_QWEN2, qkv_bias_key="attention_bias"),
    **dict.fromkeys(
        (
            "qwen3",
            "qwen3_moe",
            "qwen3_vl",
            "qwen3_vl_text",
            "qwen3_vl_moe",
            "qwen3_vl_moe_text",
            "hunyuan_v1_dense",
            "hunyuan_v1_moe",
        ),
        _QWEN3,
    ),
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text"), _QWEN3_NEXT
    ),
    "gemma": Family(tied=True, defaults={"head_dim": 256}),
    "gemma2": Family(tied=True, norms_per_layer=4, defaults={"head_dim": 256, "sliding_window_pattern": 2}),
    "gemma3": _GEMMA3,
    "gemma3_text": _GEMMA3,
    **dict.fromkeys(
        ("gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"), _GEMMA4
    ),
    "gpt_oss": Family(
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        sinks="all",
        router_bias=True,
        defaults={"sliding_window_pattern": 2},
    ),
    "llama4": _LLAMA4,
    "llama4_text": _LLAMA4,
    "phimoe": Family(norm_bias=True),
    "chatglm": Family(qkv_bias=True, qkv_bias_key="add_qkv_bias", out_bias_key=None),
    "glm": _GLM4,
    "glm4": _GLM4,
    "glm4_moe": _GLM4_MOE,
    "glm4v_moe_text": _GLM4_MOE,
    "solar_open": _GLM4_MOE,
    "sarvam_moe": _GLM4_MOE,
    "dots1": Family(qk_norm="head", router_bias=True),
    "bailing_moe_v2": Family(qk_norm="head", router_bias=True, qkv_bias_key="use_qkv_bias", out_bias_key="use_bias"),
    **dict.fromkeys(
        (
            "deepseek_v3",
            "deepseek_v32",
            "kimi_k2",
            "kimi_k25",
            "glm4_moe_lite",
            "glm_moe_dsa",
            "axk1",
            "axk2",
        ),
        _DEEPSEEK,
    ),
    "deepseek_v2": Family(defaults={"num_experts_per_tok": 6}),
    "deepseek_v4": Family(router_bias=True, adjust=hyper_connections),
    "deepseek_ref": Family(router_bias=True, adjust=hyper_connections),
    "dots3_note_text": Family(gate="heads", router_bias=True),
    "hy_v3": Family(qk_norm="head", router_bias=True),
    "hy_v4": Family(gate="channels", router_bias=True, adjust=hyper_connections),
    "kimi_linear": _KIMI_LINEAR,
    "kimi_k3": _KIMI_LINEAR,
    "glm5_next_text": replace(_KIMI_LINEAR, adjust=hyper_connections),
    "bailing_hybrid": Family(router_bias=True, recurrence=ling_layer, gate="heads"),
    "longcat_flash": Family(router_bias=True, norms_per_layer=4, adjust=twice_a_layer),
    "minimax_m2": Family(qk_norm="full", router_fp32=True),
    **dict.fromkeys(("minimax_m3", "minimax_m3_vl", "minimax_m3_vl_text"), _MINIMAX_M3),
    **dict.fromkeys(("mimo_v2_flash", "mimo_v2"), _MIMO_V2),
    **dict.fromkeys(("step3p5", "step3p7"), _STEP),
    "step3_text": Family(adjust=narrow_queries),
    "ernie4_5": Family(qkv_bias_key="use_bias", out_bias_key="use_bias", mlp_bias_key="use_bias", tied=True),
    "ernie4_5_moe": Family(
        qkv_bias_key="use_bias", out_bias_key="use_bias", mlp_bias_key="use_bias", tied=True, router_bias=True
    ),
    **dict.fromkeys(("ernie4_5_vl_moe", "ernie4_5_vl_moe_text", "ernie4_5_moe_vl"), _ERNIE_VL),
    "exaone4": Family(qk_norm="head"),
    "exaone_moe": Family(qk_norm="head", router_bias=True),
    "seed_oss": Family(out_bias_key="attention_out_bias", qkv_bias=True),
    "laguna": Family(qk_norm="head", gate="heads", router_bias=True),
    "afmoe": Family(qk_norm="head", gate="channels", norms_per_layer=4, router_bias=True),
    "beam": Family(qk_norm="head", gate="channels", norms_per_layer=4),
    "muse_glimmer_text": Family(gate="channels", norms_per_layer=4),
    "kolibri1": Family(shared_gate=True),
    "flint": Family(qk_norm="head"),
    "mellum": Family(qk_norm="head"),
    "lara_mini": Family(qk_norm="head"),
    **dict.fromkeys(("inkling_text", "inkling2_text"), _INKLING),
    "lfm2": Family(tied=True, qk_norm="head"),
    "lfm2_moe": Family(tied=True, qk_norm="head", router_bias=True),
    "lfm3": Family(tied=True, qk_norm="head", norms_per_layer=4, gate="heads"),
    "nemotron_h": _NEMOTRON_H,
    "granitemoehybrid": _MAMBA_HYBRID,
    "bamba": replace(_MAMBA_HYBRID, defaults={"block_types": ["recurrent"]}),
    "mamba": _MAMBA,
    "falcon_mamba": replace(_MAMBA, tied=True),
    "mamba2": replace(_MAMBA, recurrence=mamba2_layer),
    "falcon_h1": Family(beside=mamba2_layer),
    "jamba": Family(recurrence=mamba1_layer),
    "arcee": Family(gated=False),
    "apertus": Family(gated=False, qk_norm="head"),
    "apertus1p5_text": Family(gated=False, qk_norm="head"),
    "nanochat": Family(gated=False, norms_per_layer=0, final_norms=0),
    "jais2": _LAYER_NORM,
    "moshi": Family(stated_widths=2),
    "jetmoe": Family(tied=True, adjust=mixture_of_heads),
    "olmo": Family(norms_per_layer=0, final_norms=0),
    **dict.fromkeys(("olmo2", "olmo3", "olmoe", "flex_olmo", "olmo_hybrid"), Family(qk_norm="full")),
    **dict.fromkeys(("cohere", "cohere2", "cohere2_moe"), Family(norms_per_layer=1, tied=True)),
    "starcoder2": replace(
        _LAYER_NORM, tied=True, qkv_bias_key="use_bias", out_bias_key="use_bias", mlp_bias_key="use_bias"
    ),
    "gpt2": _GPT2,
    "gpt-sw3": _GPT2,
    "gpt_neo": replace(_GPT2, qkv_bias=False, qkv_bias_key=None),
    "gpt_bigcode": replace(_GPT2, defaults={"multi_query": True}),
    "openai-gpt": replace(_GPT2, final_norms=0),
    "biogpt": replace(_GPT2, position_offset=2),
    "opt": replace(
        _GPT2,
        position_offset=2,
        qkv_bias_key="enable_bias",
        out_bias_key="enable_bias",
        mlp_bias_key="enable_bias",
    ),
    "bloom": replace(_LAYER_NORM, tied=True, final_norms=2, defaults={"max_position_embeddings": 2048}),
    "falcon": Family(
        gated=False,
        norm_bias=True,
        tied=True,
        widening=4,
        qkv_bias_key="bias",
        out_bias_key="bias",
        mlp_bias_key="bias",
        defaults={"max_position_embeddings": 2048},
    ),
    "gpt_neox": _LAYER_NORM,
    "gptj": Family(
        gated=False, norm_bias=True, norms_per_layer=1, mlp_bias=True, lm_head_bias=True, widening=4
    ),
    "codegen": Family(
        gated=False, norm_bias=True, norms_per_layer=1, mlp_bias=True, lm_head_bias=True, widening=4
    ),
    "mpt": Family(
        gated=False,
        tied=True,
        widening=4,
        nested=("attn_config",),
        ignored=(
            "alibi_bias_max",
            "attn_impl",
            "attn_type",
            "attn_uses_sequence_id",
            "embedding_fraction",
            "learned_pos_emb",
        ),
    ),
    "dbrx": Family(nested=("attn_config", "ffn_config"), tied=False),
    "phi": replace(
        _PARALLEL_BLOCK,
        lm_head_bias=True,
        qk_norm="head",
        qk_norm_key="qk_layernorm",
        qk_norm_bias=True,
        defaults={"qk_layernorm": False},
    ),
    "persimmon": replace(_LAYER_NORM, qk_norm="head", qk_norm_key="qk_layernorm", qk_norm_bias=True),
    "stablelm": Family(
        norm_bias=True,
        qkv_bias_key="use_qkv_bias",
        out_bias_key=None,
        qk_norm="full",
        qk_norm_key="qk_layernorm",
        defaults={"qk_layernorm": False},
    ),
    "nemotron": Family(gated=False, norm_bias=True),
    "vaultgemma": Family(tied=True, defaults={"head_dim": 256, "sliding_window_pattern": 2}),
    "hyperclovax": Family(),
    "diffllama": Family(),
    "bitnet": Family(),
    "xglm": replace(_LAYER_NORM, tied=True),
}

_ENCODER = "it is an encoder with a head for language, which engines do not serve as a decoder"
_TWO_STACKS = "it has an encoder and a decoder"
_LOOPS = "it runs layers several times for a token, which is not modelled"
_SHARED = "its layers share one set of attention weights, which is not modelled"
_STATE = "it is recurrent, with states that are not modelled"
_OTHER = "its layers are none of those that are modelled"
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        (
            *(
                "bert",
                "bert-generation",
                "big_bird",
                "camembert",
                "data2vec-text",
                "electra",
                "ernie",
                "megatron-bert",
            ),
            *(
                "rembert",
                "roberta",
                "roberta-prelayernorm",
                "roc_bert",
                "roformer",
                "xlm",
                "xlm-roberta",
                "xlm-roberta-xl",
                "xmod",
            ),
            *(
                "modernbert-decoder",
                "modernbert",
                "distilbert",
                "deberta",
                "deberta-v2",
                "albert",
                "nomic_bert",
            ),
        ),
        _ENCODER,
    ),
    **dict.fromkeys(
        (
            *(
                "bart",
                "bigbird_pegasus",
                "blenderbot",
                "blenderbot-small",
                "marian",
                "mbart",
                "mvp",
                "pegasus",
                "plbart",
            ),
            *("prophetnet", "t5", "mt5", "trocr", "whisper", "musicgen", "musicgen_melody", "mllama", "git"),
        ),
        _TWO_STACKS,
    ),
    **dict.fromkeys(("hrm_text", "dory", "inkling2_loop_text", "ouro"), _LOOPS),
    **dict.fromkeys(("zamba", "zamba2"), _SHARED),
    **dict.fromkeys(("gemma4_assistant", "gemma4_unified_assistant"), "it drafts for another model"),
    **dict.fromkeys(("deepseek_v41", "deepseek_v41_text"), "its layers share caches and read tables of n-grams"),
    **dict.fromkeys(("rwkv", "rwkv7", "xlstm", "recurrent_gemma", "reformer", "xlnet"), _STATE),
    **dict.fromkeys(
        ("blt", "cpmant", "ctrl", "gpt_neox_japanese", "zaya", "qwen4_exp_text", "fuyu", "moshi_depth"),
        _OTHER,
    ),
}

REFUSED_KEYS = {
    "block_configs": "layers of unequal shape (`block_configs`)",
    "loop_num_passes": "layers that run several times (`loop_num_passes`)",
    "n_recurrent_loops": "layers that run several times (`n_recurrent_loops`)",
    "hybrid_layer_ids": "layers that share weights (`hybrid_layer_ids`)",
}
