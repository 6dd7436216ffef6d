"""Shapes of a step: runs are their steps to the last bit, padding costs tokens, a pool costs its cells, windows their spans."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.attention import DecodeAttention
from engine_models.cost.drafting import Drafting, speculation_of
from engine_models.cost.lockstep import shared_parts_s
from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Formats, HostOverhead
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch, Span
from hardware_profiles.device import load_device
from hardware_profiles.kernels import operations_of
from tests.effort import examples
from tests.step_times import lockstep, shard_of, step_time, up_to

BF16 = Formats(format_named("bf16"), format_named("bf16"), format_named("bf16"))
HOST = HostOverhead(step_s=5e-4, row_s=1e-6)
OPS = operations_of(load_device("h100-sxm-80gb"), "vllm")
TABLES: dict[str, Any] = {
    "graph_sizes": (1, 2, 4, 8, 16, 32),
    "max_step_tokens": 2048,
    "max_rows": 128,
    "max_context_tokens": 8192,
}
LLAMA = step_time(load_architecture("meta-llama/Llama-3.1-8B"), OPS, BF16, HOST, **TABLES)


def decode(rows: int, kv_tokens: int, **shape: Any) -> Batch:
    batch = Batch(0, rows, rows, kv_tokens, tokens=rows)
    for name, value in shape.items():
        setattr(batch, name, value)
    return batch


@settings(max_examples=examples(60), derandomize=True)
@given(st.integers(1, 128), st.integers(1, 6000), st.integers(1, 60), st.sampled_from([0, 0, 256, 4096]))
def test_a_run_is_its_steps_to_the_last_bit(rows: int, context: int, steps: int, cells: int) -> None:
    shape = decode(rows, rows * context, pool_cells=cells)
    run = LLAMA.run_s((shape,), steps).tolist()
    assert LLAMA.few_s((shape,), steps) == run
    for step, seconds in enumerate(run):
        later = decode(rows, rows * context + shape.grows * step, pool_cells=cells)
        assert LLAMA.step_s((later,)) == (seconds, [0.0])


def test_padding_is_computed_in_the_layers_and_not_attended_to() -> None:
    plain, padded = decode(40, 40_000), decode(40, 40_000, padded_tokens=1024)
    more = LLAMA.step_s((padded,))[0] - LLAMA.step_s((plain,))[0]
    m = np.array([40, 1024])
    few, many = sum(LLAMA.parts_s(m).values())
    assert more == pytest.approx(many - few, rel=0.05)
    assert LLAMA.run_s((padded,), 3).tolist() == LLAMA.few_s((padded,), 3)


def test_rows_of_one_token_decode_where_the_engine_says_so() -> None:
    """Such a step is held by a graph of decode steps, beside which prompts are launched one by one; longer chunks are none."""
    host = HostOverhead(step_s=5e-4, row_s=1e-6, launch_s=8e-5, prefill_launch_s=8e-5)
    arch = load_architecture("meta-llama/Llama-3.1-8B")
    alike = step_time(arch, OPS, BF16, host, lone_tokens_decode=True, **TABLES)
    apart = step_time(arch, OPS, BF16, host, **TABLES)
    three = Batch(0, 3, 3, 3000, [(1, 499)], tokens=4)
    decoding = alike.step_s((decode(4, 3500),))
    assert alike.step_s((three,)) == decoding
    assert apart.step_s((three,))[0] == apart.launch_s > 2 * decoding[0]
    for other in (Batch(0, 3, 3, 3000, [(2, 499)], tokens=5), Batch(0, 3, 6, 3000, [(1, 499)], tokens=7)):
        assert alike.step_s((other,)) == apart.step_s((other,))
    group = replace(alike.shard, parallel=replace(alike.shard.parallel, ranks=2))
    both = lockstep(alike, shard=group, **TABLES)
    assert both.step_s((three, decode(4, 3500))) == both.step_s((decode(4, 3500), decode(4, 3500)))


def test_rows_that_join_decoding_rows_keep_to_windows() -> None:
    batch = Batch(0, 1, 1, 900, [(1, 99), (1, 999)], tokens=3)
    batch.spans = (Span(512, 512, 0),)
    assert batch.as_decodes().spans == (Span(512, 512 + 100 + 512, 1),)


def test_rows_that_read_a_pool_cost_its_cells_and_do_not_grow() -> None:
    pool = decode(16, 16 * 100, pool_cells=4096)
    assert pool.grows == 0
    assert LLAMA.few_s((pool,), 3) == [LLAMA.step_s((decode(16, 16 * 4096),))[0]] * 3
    chunk = Batch(0, prefill=[(64, 0)], tokens=64)
    chunk.pool_cells = 4096
    behind = Batch(0, prefill=[(64, 4032)], tokens=64)
    assert LLAMA.step_s((chunk,)) == LLAMA.step_s((behind,))


def windows_of(name: str, **options: Any) -> DecodeAttention:
    arch = load_architecture(name)
    return DecodeAttention(shard_of(arch, OPS, BF16, HOST, **options), 128, 8192)


def spanned(lengths: list[int], window: int, **shape: Any) -> Batch:
    """The shape of rows of these lengths, by arithmetic."""
    span = Span(window, sum(min(n, window) for n in lengths), sum(n < window for n in lengths))
    return decode(len(lengths), sum(lengths), spans=(span,), **shape)


@pytest.mark.parametrize(("name", "window"), [("google/gemma-3-27b-it", 1024), ("openai/gpt-oss-20b", 128)])
def test_equal_rows_cost_the_kernels_of_full_and_windowed_layers(name: str, window: int) -> None:
    attention = windows_of(name)
    blocks = load_architecture(name).attention
    assert {block.window_tokens for block in blocks} == {0, window}
    for length in (16, 64, window, 4 * window):
        rows = 64.0
        expected = sum(
            b.layers * float(OPS.decode_attention_s("bf16", b.heads, b.kv_heads, b.head_dim, b.window_tokens, rows, length))
            for b in blocks
        )
        assert attention.batch_s(spanned([length] * 64, window)) == pytest.approx(expected, rel=0.06)


def test_short_rows_beside_long_ones_do_not_read_whole_windows() -> None:
    """Half the rows at a quarter of Gemma's window, half far beyond: five eighths of the windows are read."""
    attention = windows_of("google/gemma-3-27b-it")
    mixed, equal = [256] * 32 + [7936] * 32, [4096] * 64
    arch = load_architecture("google/gemma-3-27b-it")
    full_s = attention.full(64).at(64 * 4096)
    read = attention.batch_s(spanned(mixed, 1024)) - full_s
    assert read / (attention.batch_s(spanned(equal, 1024)) - full_s) == pytest.approx(0.65, abs=0.06)
    assert sum(b.layers for b in arch.attention if b.window_tokens) == 52


def test_a_scheduler_that_knows_no_windows_is_priced_at_the_mean() -> None:
    attention = windows_of("google/gemma-3-27b-it")
    for length in (300, 1024, 3000):
        assert attention.batch_s(decode(64, 64 * length)) == attention.batch_s(spanned([length] * 64, 1024))


@settings(max_examples=examples(60), derandomize=True)
@given(st.lists(st.integers(1, 3000), min_size=1, max_size=40), st.integers(1, 50), st.booleans())
def test_windowed_runs_are_their_steps_up_to_the_next_row_at_its_window(
    lengths: list[int], steps: int, fixed: bool
) -> None:
    attention = windows_of("google/gemma-3-27b-it", fixed_grid_attention=fixed)
    steps = min([steps, *(1024 - n + 1 for n in lengths if n < 1024)])
    shape = spanned(lengths, 1024)
    run = attention.over(shape, steps).tolist()
    assert list(attention.few(shape, steps)) == run
    assert [attention.batch_s(spanned([n + i for n in lengths], 1024)) for i in range(steps)] == run


def test_ranks_in_lockstep_may_draft() -> None:
    """The slowest rank's own step and drafts, and the experts of all."""
    arch = load_architecture("mistralai/Mixtral-8x7B-v0.1")
    options = {**TABLES, "data_parallel": 2, "expert_parallel": 2, "query_tokens": 4, "sampled_tokens": 4}
    drafts = speculation_of(
        {"method": "eagle", "num_speculative_tokens": 3, "acceptance": 0.7}, arch, BF16, load=load_architecture
    )
    own = step_time(arch, OPS, BF16, HOST, **options)
    drafting = Drafting(own, drafts, up_to(TABLES))
    plain, group = lockstep(own, **TABLES), lockstep(drafting, shard=own.shard, **TABLES)
    batch = Batch(0, 4, 16, 4000, tokens=16)
    chunk = Batch(0, prefill=[(500, 0)], tokens=500)
    for batches in ([batch, batch], [batch, chunk], [chunk]):
        drafted = max(drafting.own_s(b, 16)[0] - own.own_s(b, 16)[0] for b in batches)
        assert group.step_s(batches)[0] == pytest.approx(plain.step_s(batches)[0] + drafted, rel=0.01)
    assert isinstance(own, StepTimeModel)


@pytest.mark.parametrize("captured", [True, False])
def test_ranks_wait_for_each_other_in_every_pass_of_a_layer_of_experts_that_drafts(captured: bool) -> None:
    """Closed form: own steps, the model's experts for all tokens, the drafter's once for as many, k - 1 times for rows."""
    arch, ranks, k = load_architecture("mistralai/Mixtral-8x7B-v0.1"), 4, 3
    tables = {**TABLES, "graph_sizes": (16, 64) if captured else ()}
    options = {**tables, "data_parallel": ranks, "expert_parallel": ranks, "query_tokens": 1 + k, "sampled_tokens": 1 + k}
    settings = {"method": "mtp", "num_speculative_tokens": k, "acceptance": 0.7}
    drafts = speculation_of(settings, arch, BF16, load=load_architecture, expert_parallel=ranks, data_parallel=ranks)
    whole = speculation_of(settings, arch, BF16, load=load_architecture)
    experts = 8 * 3 * arch.hidden * 14336 * 2  # of one layer, in 16 bit
    assert whole.weight_bytes() - drafts.weight_bytes() == experts * (ranks - 1) // ranks
    own = step_time(arch, OPS, BF16, HOST, **options)
    drafting = Drafting(own, drafts, up_to(tables))
    plain, group = lockstep(own, **tables), lockstep(drafting, shard=own.shard, **tables)
    batches = [Batch(0, rows, rows * 4, rows * 800, tokens=rows * 4) for rows in (4, 2, 3)]
    tokens, rows = (ranks * 16, ranks * 4) if captured else (16 + 8 + 12 + 1, 4 + 2 + 3 + 1)
    assert drafting.shared is not None

    def shared_s(count: int) -> float:
        found = shared_parts_s(drafting.shared, np.array([count]), captured=captured)
        return float(sum(found.values(), np.zeros(1))[0])

    padded = [(b, 16 if captured else b.tokens) for b in batches]
    drafted = max(drafting.own_s(b, m)[0] - own.own_s(b, m)[0] for b, m in padded)
    wanted = plain.step_s(batches)[0] + drafted + shared_s(tokens) + (k - 1) * shared_s(rows)
    assert group.step_s(batches)[0] == pytest.approx(wanted, rel=0.02)
    assert shared_s(tokens) > 0.02 * wanted
