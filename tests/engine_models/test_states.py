"""Recurrent, indexed and compressed layers: the memory that engines give their states and entries, and their time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine_models.cost import indexing, recurrence
from engine_models.cost.attention import DecodeAttention, PrefillAttention
from engine_models.cost.terms import Formats, HostOverhead, Parallelism, Shard, Terms
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines import sglang, tgi, vllm, vllm_cache
from engine_models.memory.hybrid_kv import STATE_WINDOW, HybridKV
from engine_models.model.architecture import (
    Architecture,
    KvGroup,
    architecture_from_config,
    kv_groups,
    load_architecture,
    state_bytes_of,
    state_bytes_per_sequence,
    with_state_values,
)
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from hardware_profiles.kernels import operations_of
from hardware_profiles.ops import Ops

BF16 = format_named("bf16")
FORMATS = Formats(BF16, BF16, BF16)
HYBRID = load_architecture("Qwen3.5-397B-A17B")
SMALL = architecture_from_config(
    {
        "model_type": "qwen3_5_moe_text",
        "hidden_size": 2048,
        "num_hidden_layers": 40,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "full_attention_interval": 4,
        "linear_num_value_heads": 32,
        "linear_num_key_heads": 16,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "mamba_ssm_dtype": "float32",
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 248320,
        "max_position_embeddings": 262144,
    },
    "35B-A3B",
)
INDEXED = {
    "model_type": "deepseek_v32",
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 16,
    "q_lora_rank": 512,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 1024,
    "max_position_embeddings": 163840,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
}


def request(arch: Architecture, tp: int = 1, **flags: object) -> PoolRequest:
    return PoolRequest(
        arch,
        FORMATS,
        "h100-sxm-80gb",
        int(load_device("h100-sxm-80gb").memory_bytes.value),
        tensor_parallel=tp,
        flags=dict(flags),
    )


# -- memory --------------------------------------------------------------------------------------------------


def test_blocks_are_lengthened_until_they_hold_a_state() -> None:
    # published start-up of Qwen3.5-35B-A3B: a state of 2,146,304 bytes a layer, 2,048 bytes of KV a token, blocks of 1,056
    assert state_bytes_of(next(b for b in SMALL.attention if b.kind == "linear")) == 2_146_304
    windows, block_bytes, tokens = vllm_cache.with_states(SMALL, kv_groups(SMALL, BF16), 1, 1, 262_144, 16)
    assert tokens == 1056
    assert windows == (None, *[STATE_WINDOW] * 3)
    assert block_bytes == 10 * 2048 * 1056


def test_a_model_without_states_keeps_its_blocks() -> None:
    plain = load_architecture("Llama-3.1-8B")
    assert vllm_cache.with_states(plain, kv_groups(plain, BF16), 1, 1, 8192, 16) == ((None,), 16 * 131_072, 16)


def test_the_start_up_line_shares_the_pool_among_all_groups() -> None:
    """4.88 and 6.44 GiB of Qwen3.6-35B-A3B were told as 63,360 and 83,424 tokens; from 0.21 on the longest requests count."""
    told = vllm_cache.grouping(SMALL, kv_groups(SMALL, BF16), 1, 1, 262_144, 1056)
    assert told.stated_tokens(int(4.88 * 2**30), 262_144, 8192, (0, 19), 1) == 63_360
    assert told.stated_tokens(int(6.44 * 2**30), 262_144, 8192, (0, 20), 1) == 83_424
    # 242 blocks, of which such a request takes 249 and three for its states
    assert told.stated_tokens(int(4.88 * 2**30), 262_144, 8192, (0, 21), 1) == 242 * 262_144 // 252
    assert told.stated_tokens(int(4.88 * 2**30), 262_144, 8192, (0, 21), 2) == 242 * 262_144 // 255


def test_layers_that_keep_less_of_a_token_have_longer_blocks() -> None:
    """50 layers with windows keep 16 KiB of a token, ten without 8 KiB: six groups of ten, and pages of the wider."""
    groups = [KvGroup("full", 0, 10, 10 * 8192), KvGroup("sliding", 1024, 50, 50 * 16384)]
    told = vllm_cache.grouping(load_architecture("Llama-3.1-8B"), groups, 1, 1, 131_072, 16)
    assert {window: rest for window, *rest in told.kinds} == {None: [1, 32], 1024: [5, 16]}
    # Gemma-4-31B with 50 GiB left: 0.20 told some 55,000 tokens, 0.21 some 525,000 (vLLM's issue 43308)
    assert told.stated_tokens(50 * 2**30, 131_072, 2048, (0, 20), 1) == 20480 // 6 * 16
    assert told.stated_tokens(50 * 2**30, 131_072, 2048, (0, 21), 1) == 20480 * 131_072 // (4096 + 5 * 193)


def test_a_request_takes_blocks_for_its_states_whatever_its_length() -> None:
    plan = vllm.plan(request(SMALL, 2))
    assert plan.limits.row_blocks == 3
    assert any("hold the states" in note for note in plan.notes)


def test_vllm_caches_prefixes_beside_states_since_0_26() -> None:
    assert vllm.plan(request(SMALL, 2)).prefix_caching
    assert vllm.plan(request(SMALL, 2), "0.26").prefix_caching
    assert not vllm.plan(request(SMALL, 2), "0.25").prefix_caching
    assert vllm.plan(request(SMALL, 2, enable_prefix_caching=True), "0.25").prefix_caching
    assert not vllm.plan(request(SMALL, 2, enable_prefix_caching=False)).prefix_caching


def test_a_prompt_stops_where_its_states_are_kept() -> None:
    """2,400 tokens are two blocks of 1,056 and a rest, a step of its own unless the recurrence leaves the state in passing."""
    hopper = request(SMALL, 2, max_num_batched_tokens=8192)
    ampere = replace(hopper, device_name="a100-sxm-80gb")
    parted, whole = [(2112, 0), (288, 2112)], [(2400, 0)]
    assert pieces_of(vllm.plan(ampere)) == pieces_of(vllm.plan(hopper, "0.28")) == parted
    assert pieces_of(vllm.plan(hopper)) == whole
    # a step of fewer tokens ends with a block
    assert pieces_of(vllm.plan(request(SMALL, 2, max_num_batched_tokens=2048))) == [(1056, 0), (1344, 1056)]
    assert pieces_of(vllm.plan(request(SMALL, 2, enable_prefix_caching=False))) == whole


def test_a_request_has_a_block_of_states_for_each_draft() -> None:
    """A prompt of two and a half blocks: three blocks of attention, one of each of two groups of states, and four beside."""
    for caching, states in ((True, 2), (False, 2)):
        kv = HybridKV(
            60, 16, (None, STATE_WINDOW, STATE_WINDOW), prefix_caching=caching, most_in_flight_tokens=64, max_model_len=256,
            states=2, drafts=2, lookahead_tokens=2,
        )  # fmt: skip
        seq = Sequence(0, 40, 8, 0.0)
        kv.prepare(seq)
        assert kv.admission_blocks(kv.find(seq), 42, whole=False) == kv.missing(seq, 42) == 3 + states + 4
        kv.grow(seq, 42)
        assert kv.held(seq) == 60 - kv.free_blocks == 3 + states + 4
        seq.computed = 46
        assert kv.missing(seq, 51) == 1 + 2 * caching  # attention's fourth block; without prefix cache states stay where they are
        kv.release(seq)
        assert kv.free_blocks == 60


def pieces_of(plan: EnginePlan) -> list[tuple[int, int]]:
    """New and prior tokens of the steps that compute a prompt of 2,400 tokens; the next finds 2,112 of them, if any."""
    scheduler = plan.scheduler("step")
    found, pieces = 0, []
    for number in range(2):
        seq = Sequence(number, 2400, 2, 0.0, runs=((1, 0, 2400),), shareable_tokens=2400)
        scheduler.add(seq)
        while scheduler.has_work():
            batch = scheduler.schedule(0.0)
            assert batch is not None
            pieces += batch.prefill if not number else []
            scheduler.settle(batch)
        found = seq.first_hit_tokens
    assert found == (2112 if plan.prefix_caching else 0)
    return pieces


def test_layers_of_unequal_caches_share_one_pool() -> None:
    changes = {"model_type": "gemma4_text", "head_dim": 256, "global_head_dim": 512, "num_key_value_heads": 8}
    changes |= {"num_global_key_value_heads": 2, "sliding_window": 1024}
    changes |= {"layer_types": ["sliding_attention"] * 3 + ["full_attention"]}
    latent = ("kv_lora_rank", "v_head_dim", "index_head_dim")
    arch = load_architecture({**{k: v for k, v in INDEXED.items() if k not in latent}, **changes})
    windows, block_bytes = vllm_cache.kv_layout(kv_groups(arch, BF16), 163_840, 16)
    assert windows == (
        None,
        *[1024] * 6,
    )  # 3 layers of 8 KiB a token, in groups of the 4 KiB of the one without a window
    assert block_bytes == 16 * 2 * 2 * 512 * 2


def test_sglang_keeps_three_states_a_request_and_one_without_its_cache() -> None:
    state = state_bytes_per_sequence(SMALL, 2)
    plan = sglang.plan(request(SMALL, 2))
    slots = plan.memory.bytes_of("state") // state
    assert plan.memory.bytes_of("state") / plan.memory.kv_bytes == pytest.approx(0.9, rel=0.01)
    assert plan.limits.rows == min(slots // 3, 4096)
    assert sglang.plan(request(SMALL, 2, disable_radix_cache=True)).limits.rows > plan.limits.rows


def test_sglang_keeps_states_in_float32_unless_told_otherwise() -> None:
    half = with_state_values(SMALL, 2)
    wide = sglang.plan(request(SMALL, 2)).memory
    narrow = sglang.plan(request(SMALL, 2, mamba_ssm_dtype="bfloat16")).memory
    assert wide.bytes_of("state") % state_bytes_per_sequence(SMALL, 2) == 0
    assert narrow.bytes_of("state") % state_bytes_per_sequence(half, 2) == 0
    assert sglang.plan(request(half, 2)).memory == wide


@pytest.mark.parametrize(
    ("version", "flags", "ahead"),
    [
        ("0.5.23", {}, True),
        ("0.5.23", {"mamba_radix_cache_strategy": "no_buffer"}, False),
        ("0.5.13", {}, False),
        ("0.5.6", {}, False),
        ("0.5.6", {"disable_radix_cache": True}, True),
        ("0.5.9", {"mamba_radix_cache_strategy": "extra_buffer"}, True),
    ],
)
def test_sglang_forms_no_batch_ahead_where_states_are_cached_without_a_buffer(
    version: str, flags: dict[str, object], ahead: bool
) -> None:
    plan = sglang.plan(request(SMALL, 2, **flags), version)
    assert plan.executor.depth == (2 if ahead else 1)
    assert any("no step is formed ahead" in note for note in plan.notes) != ahead


def test_flags_size_the_pool_of_states() -> None:
    state = state_bytes_per_sequence(SMALL, 2)
    few = sglang.plan(request(SMALL, 2, max_mamba_cache_size=90))
    assert few.memory.bytes_of("state") == 90 * state
    assert few.limits.rows == 30
    equal = sglang.plan(request(SMALL, 2, mamba_full_memory_ratio=1.0)).memory
    assert equal.bytes_of("state") == pytest.approx(equal.kv_bytes, rel=0.01)


def test_vllm_keeps_states_as_its_flag_says() -> None:
    wide = vllm.plan(request(SMALL, 2)).limits.block_tokens
    narrow = vllm.plan(request(SMALL, 2, mamba_ssm_cache_dtype="float16")).limits.block_tokens
    assert (wide, narrow) == (1056, 544)


@pytest.mark.parametrize("arch", [SMALL, architecture_from_config(INDEXED, "indexed")])
def test_tgi_has_no_such_models(arch: Architecture) -> None:
    with pytest.raises(InputError, match="no model with recurrent, indexed or compressed layers"):
        tgi.plan(request(arch))


# -- time ----------------------------------------------------------------------------------------------------

OPS = operations_of(load_device("h100-sxm-80gb"), "vllm")
LINEAR = next(b for b in SMALL.attention if b.kind == "linear")


def shard(arch: Architecture, ops: Ops = OPS) -> Shard:
    return Shard(arch, ops, FORMATS, Parallelism(), Terms(HostOverhead(1e-3, 1e-6)))


def test_decoding_moves_the_state_twice() -> None:
    alone, many = recurrence.decode_s(OPS, LINEAR, 1, np.array([1.0, 256.0]))
    state = 32 * 128 * 128 * 4
    assert many - alone > 255 * 2 * (state + 3 * 8192 * 2) / OPS.peaks.hbm_bytes_per_s
    assert many == pytest.approx(364e-6 + 11.6e-6, rel=0.02)  # of the tables, H100: recurrence and convolution


def test_a_long_chunk_is_computed_block_by_block() -> None:
    scan_and_conv = recurrence.chunk_s(OPS, LINEAR, 1, np.array([8192.0, 32768.0]))
    assert scan_and_conv == pytest.approx([388e-6 + 127e-6, 1529e-6 + 497e-6], rel=0.03)  # of the tables, H100


def test_prompts_pay_for_recurrent_layers() -> None:
    attention = PrefillAttention(shard(replace(SMALL, attention=(LINEAR,))), 8192, 65_536)
    chunk = attention.batch_s(Batch(0, 0, 0, 0, tokens=4096, prefill=[(4096, 0)]))
    assert chunk == pytest.approx(
        30 * float(recurrence.chunk_s(OPS, LINEAR, 1, np.array([4096.0]))[0]), rel=0.02
    )


def test_a_scan_by_channel_costs_its_arithmetic_and_less_than_its_projections() -> None:
    """Channels are no heads that wait for a multiprocessor each: 4,096 of them scan 2,048 tokens in 0.1 to 0.2 ms on A100, and on
    no device do recurrences of Jamba take longer than the products around them.
    """
    arch = load_architecture("ai21labs/AI21-Jamba-Mini-1.7")
    block = next(b for b in arch.attention if b.kind == "linear")
    ops = operations_of(load_device("a100-sxm-80gb"), "vllm")
    assert 1e-4 < float(recurrence.scan_s(ops, recurrence.layer_of(block, 2), np.array([2048.0]))[0]) < 2.1e-4
    tokens = np.array([512.0, 16_384.0])
    for device in ("a100-sxm-80gb", "b200-sxm-180gb", "mi300x-192gb", "rtx-4090-24gb"):
        ops = operations_of(load_device(device), "vllm")
        products_s = sum(ops.gemm_s("bf16", tokens, *linear.shape(1)) for linear in block.linears)
        assert (recurrence.chunk_s(ops, block, 1, tokens) < 0.5 * products_s).all(), device


def test_states_cost_the_same_at_every_context() -> None:
    attention = DecodeAttention(shard(replace(SMALL, attention=(LINEAR,))), 64, 65_536)
    few, many = (attention.batch_s(Batch(0, 32, 32, tokens, tokens=32)) for tokens in (32 * 100, 32 * 60_000))
    assert few == pytest.approx(many)
    assert few == pytest.approx(
        30 * float(recurrence.decode_s(OPS, LINEAR, 1, np.array([32.0]))[0]), rel=0.01
    )


def test_beyond_its_choice_sparse_attention_grows_by_the_indexer_alone() -> None:
    """On a GPU where nobody timed such layers."""
    ops = operations_of(load_device("a100-sxm-80gb"), "vllm")
    arch = architecture_from_config(INDEXED, "indexed")
    block = arch.attention[0]
    attention = DecodeAttention(shard(arch, ops), 64, 131_072)
    short, long = (attention.batch_s(Batch(0, 32, 32, 32 * n, tokens=32)) for n in (4096, 65_536))
    assert block.indexer is not None
    keys = [
        float(indexing.decode_s(ops, block.indexer, np.array(32.0), np.array(float(n))))
        for n in (4096, 65_536)
    ]
    assert long - short == pytest.approx(4 * (keys[1] - keys[0]), rel=0.02)
    dense = DecodeAttention(
        shard(
            architecture_from_config({**INDEXED, "model_type": "deepseek_v3", "index_head_dim": None}, "d"), ops
        ),
        64,
        131_072,
    )
    assert long < dense.batch_s(Batch(0, 32, 32, 32 * 65_536, tokens=32))


def test_layers_that_share_an_index_do_not_pay_for_it() -> None:
    own = architecture_from_config({**INDEXED, "indexer_types": ["full"] * 4}, "own")
    shared = architecture_from_config(
        {**INDEXED, "indexer_types": ["full", "shared", "shared", "shared"]}, "shared"
    )
    batch = Batch(0, 32, 32, 32 * 65_536, tokens=32)
    times = [DecodeAttention(shard(arch), 64, 131_072).batch_s(batch) for arch in (own, shared)]
    assert times[1] < times[0]
    chunk = Batch(0, 0, 0, 0, tokens=4096, prefill=[(4096, 32_768)])
    assert PrefillAttention(shard(shared), 8192, 131_072).batch_s(chunk) < PrefillAttention(
        shard(own), 8192, 131_072
    ).batch_s(chunk)


def test_a_filled_selection_costs_short_prompts_and_contexts_as_much_as_long_ones() -> None:
    """Until 0.19 FlashMLA is not told that a query has fewer entries before it than it may choose."""
    own = replace(shard(load_architecture("deepseek-ai/DeepSeek-V3.2")), parallel=Parallelism(tensor=8))
    filled = replace(own, terms=replace(own.terms, fills_selection=True))
    prompts = Batch(0, 0, 0, 0, tokens=8192, prefill=[(128, 0)] * 64)
    few, all_slots = (PrefillAttention(each, 8192, 16_384).batch_s(prompts) for each in (own, filled))
    assert 1.5 * few < all_slots < 4.0 * few
    short, long = (Batch(0, 64, 64, 64 * n, tokens=64) for n in (256, 2048))
    tables = DecodeAttention(filled, 64, 16_384)
    assert tables.batch_s(short) == pytest.approx(tables.batch_s(long), rel=0.02)
    assert DecodeAttention(own, 64, 16_384).batch_s(short) < 0.8 * tables.batch_s(short)
