"""Speculative decoding: acceptance, the drafter's weights and cache, the price of a step with drafts."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine_models.cost.draft_methods import CHAINS
from engine_models.cost.drafting import Drafting, Speculation, head_layer, speculation_of
from engine_models.cost.stated_acceptance import acceptance_rates
from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Formats, HostOverhead
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.vllm import plan, version_of
from engine_models.engines.vllm_flags import FLAGS, speculative_settings
from engine_models.engines.vllm_versions import graph_sizes
from engine_models.flags import reconcile
from engine_models.model.architecture import kv_bytes_per_token, load_architecture, weight_bytes_per_rank
from engine_models.model.formats import format_named
from engine_models.parts.acceptance import AcceptanceStreams
from engine_models.parts.batch import Batch
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from hardware_profiles.kernels import operations_of
from tests.step_times import step_time, up_to

LLAMA = load_architecture("llama-3.1-8b")
BF16 = Formats(format_named("bf16"), format_named("bf16"), format_named("bf16"))
TABLES = {"graph_sizes": (), "max_step_tokens": 4096, "max_rows": 256, "max_context_tokens": 8192}


def resolved(**settings: object) -> Speculation:
    return speculation_of(
        {"num_speculative_tokens": 3, "acceptance": 0.7, **settings}, LLAMA, BF16, load=load_architecture
    )


# Acceptance -------------------------------------------------------------------------------------------------


@given(st.integers(1, 12), st.floats(0, 1))
def test_mean_length_is_the_closed_form_of_leviathan(tokens: int, a: float) -> None:
    mean = 1 + sum(acceptance_rates(tokens, acceptance=a))
    closed = tokens + 1 if a > 1 - 1e-9 else (1 - a ** (tokens + 1)) / (1 - a)
    assert mean == pytest.approx(closed, rel=1e-6)


@given(st.integers(1, 12), st.floats(0, 1))
def test_acceptance_length_is_the_mean_it_names(tokens: int, share: float) -> None:
    length = 1 + share * tokens
    rates = acceptance_rates(tokens, acceptance_length=length)
    assert 1 + sum(rates) == pytest.approx(length, abs=1e-9)
    assert all(later <= earlier for earlier, later in pairwise(rates))


def test_the_three_statements_of_one_acceptance_agree() -> None:
    by_position = acceptance_rates(3, acceptance=[0.8, 0.75, 0.5])
    assert by_position == pytest.approx((0.8, 0.6, 0.3))
    assert acceptance_rates(3, acceptance_rates=[0.8, 0.6, 0.3]) == pytest.approx(by_position)
    assert acceptance_rates(2, acceptance=0.5) == pytest.approx(acceptance_rates(2, acceptance_length=1.75))


@pytest.mark.parametrize(
    ("settings", "message", "mend"),
    [
        ({"acceptance": None}, "no acceptance is given", "acceptance: 0.7"),
        ({"acceptance_length": 2.0}, "given together", "one of"),
        ({"acceptance": [0.5, 0.5]}, "2 values for 3 drafts", "give 3"),
        ({"acceptance": 1.2}, "between 0 and 1", "probabilities"),
        ({"acceptance": None, "acceptance_rates": [0.5, 0.6, 0.1]}, "rise", "as servers log"),
        ({"acceptance": None, "acceptance_length": 4.5}, "not between 1 and 4", "1 plus"),
        ({"num_speculative_tokens": None}, "number of drafts", "num_speculative_tokens: 3"),
        ({"method": "egale"}, "did you mean 'eagle'", "one of"),
        ({"method": None}, "needs a method", "ngram"),
        ({"method": "draft_model"}, "needs the draft model", "small model"),
        ({"method": "draft_model", "model": "qwen2.5-0.5b"}, "vocabulary of 151,936", "same family"),
        ({"method": "draft_model", "model": "llama-3.2-1c"}, "not in the catalogue", "list models"),
        ({"draft_tensor_parallel_size": 2}, "neither 1 nor", "leave it out"),
    ],
)
def test_what_cannot_be_is_refused_with_its_mend(
    settings: dict[str, object], message: str, mend: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        resolved(**{"method": "eagle", **settings})
    assert mend in str(caught.value.mend)
    assert str(caught.value.where).startswith("deployment.speculative")


def test_streams_accept_the_first_drafts_with_their_probability_whatever_the_order() -> None:
    rates = (0.8, 0.5, 0.1)
    streams = AcceptanceStreams(rates, key=7)
    counts = np.array([[streams.of(row)(n) for n in range(200)] for row in range(200)])
    n = counts.size
    for i, rate in enumerate(rates, start=1):
        assert (counts >= i).mean() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / n) ** 0.5)
    assert abs(np.corrcoef(counts[:, :-1].ravel(), counts[:, 1:].ravel())[0, 1]) < 4 / n**0.5
    again = AcceptanceStreams(rates, key=7)
    assert [again.of(5)(n) for n in reversed(range(200))] == counts[5, ::-1].tolist()
    assert AcceptanceStreams((0.9, 0.6, 0.1), key=7).of(5)(3) >= counts[5, 3]
    assert [AcceptanceStreams((1.0, 1.0), 1).of(0)(n) for n in range(50)] == [2] * 50
    assert [AcceptanceStreams((0.0, 0.0), 1).of(0)(n) for n in range(50)] == [0] * 50


@given(
    st.integers(1, 6), st.floats(0, 1), st.integers(0, 2**63 - 1), st.integers(0, 10**7), st.integers(0, 300), st.integers(1, 900)
)
def test_what_is_to_come_is_what_will_be_drawn(
    drafts: int, acceptance: float, key: int, row: int, first: int, tokens: int
) -> None:
    stream = AcceptanceStreams(acceptance_rates(drafts, acceptance=acceptance), key).of(row)
    drawn, gained = [], 0
    while gained < tokens:
        gained += 1 + stream(first + len(drawn))
        drawn.append(gained)
    assert stream.gains(first, tokens).tolist() == drawn


# Memory -----------------------------------------------------------------------------------------------------


def test_an_eagle_head_is_one_layer_and_a_projection() -> None:
    """As counted from the shapes of Llama-3.1-8B: QKV, O, gated MLP, two norms and one at the end, 2 h x h."""
    h, kv, mlp = 4096, 1024, 14336
    layer = h * h + 2 * h * kv + h * h + 3 * h * mlp + 2 * h
    assert resolved(method="eagle").weight_bytes() == 2 * (layer + 2 * h * h)
    three = layer + 3 * h * h + h * (h + 2 * kv) + h + 32_000 * h
    assert resolved(method="eagle3").weight_bytes() == 2 * three
    assert resolved(method="eagle").kv_bytes_per_token() == 2 * 2 * kv
    assert kv_bytes_per_token(LLAMA, BF16.kv_cache) == 32 * 2 * 2 * kv


def test_medusa_heads_and_ngrams_keep_no_cache() -> None:
    assert resolved(method="medusa").weight_bytes() == 2 * 3 * (4096 * 4096 + 128256 * 4096)
    assert resolved(method="ngram").weight_bytes() == 0
    for method in ("medusa", "ngram"):
        assert resolved(method=method).kv_bytes_per_token() == resolved(method=method).lookahead_tokens == 0


def test_a_draft_model_is_held_whole_and_mtp_is_the_models_last_layer() -> None:
    small = load_architecture("llama-3.2-1b")
    drafts = resolved(method="draft_model", model="llama-3.2-1b")
    assert drafts.weight_bytes() == weight_bytes_per_rank(small, BF16.weights)
    assert drafts.lookahead_tokens == 3
    layer = head_layer(load_architecture("deepseek-v3"), dense=False)
    assert (layer.layers, layer.mlp[0].experts, layer.attention[0].kind) == (1, 256, "mla")
    assert head_layer(load_architecture("deepseek-v3"), dense=True).mlp[0].kind == "dense"


def planned(speculation: Speculation | None, **flags: object) -> EnginePlan:
    request = PoolRequest(
        LLAMA, BF16, "h100-sxm-80gb", 85_000_000_000, flags=dict(flags), speculation=speculation
    )
    return plan(request)


def test_the_drafter_leaves_less_cache() -> None:
    plain, drafted = planned(None), planned(resolved(method="eagle3"))
    memory, before = drafted.memory, plain.memory
    assert memory.bytes_of("draft") == resolved(method="eagle3").weight_bytes()
    assert memory.kv_bytes == before.kv_bytes - memory.bytes_of("draft") - (memory.bytes_of("graph") - before.bytes_of("graph"))
    assert memory.kv_bytes_per_token == before.kv_bytes_per_token + 4096
    assert memory.blocks == memory.kv_bytes // (16 * memory.kv_bytes_per_token)


def test_how_vllm_runs_each_method() -> None:
    for method in CHAINS:
        rules = planned(resolved(method=method, model="llama-3.2-1b")).scheduler("jump").rules
        assert rules.speculative_tokens == 3
        assert rules.in_flight == (1 if method in ("ngram", "medusa") else 2)
        assert rules.lookahead_tokens == (0 if method in ("ngram", "medusa") else 3)
    with pytest.raises(InputError, match="does not go with ngram"):
        planned(resolved(method="ngram"), async_scheduling=True)
    sizes = graph_sizes(version_of(None), 256, 8192, 4)
    assert all(4 * rows in sizes for rows in (1, 2, 4, 8, 60))
    assert set(graph_sizes(version_of(None), 128, 8192)) <= set(sizes)


# Flags ------------------------------------------------------------------------------------------------------


def test_a_pasted_config_and_the_key_say_together_what_each_leaves_out() -> None:
    text = """vllm serve m --speculative-config '{"method": "eagle3", "num_speculative_tokens": 3, "quantization": "fp8"}'"""
    flags = parse_engine_args("vllm", text)
    pool = {"engine": "vllm", "speculative": {"acceptance": 0.6, "num_speculative_tokens": None}}
    assert reconcile(FLAGS, pool, flags, given={"speculative"}) == {
        "speculative": {"acceptance": 0.6, "method": "eagle3", "num_speculative_tokens": 3, "weights": "fp8"}
    }
    pool = {"engine": "vllm", "speculative": {"num_speculative_tokens": 4}}
    with pytest.raises(InputError, match=r"num_speculative_tokens: 3.*contradicts.*4"):
        reconcile(FLAGS, pool, flags, given={"speculative"})


def test_synthetic_acceptance_of_vllm_is_read_as_vllm_spreads_it() -> None:
    """Published in vLLM's own tests of `_acceptance_length_to_rates`."""
    for length, tokens, rates in (
        (2.6, 3, [1, 0.6, 0]),
        (1.0, 3, [0, 0, 0]),
        (4.0, 3, [1, 1, 1]),
        (3.5, 4, [1, 1, 0.5, 0]),
    ):
        config = {"num_speculative_tokens": tokens, "synthetic_acceptance_length": length}
        assert speculative_settings(config)["acceptance_rates"] == pytest.approx(rates)
    assert speculative_settings({"synthetic_acceptance_rates": [0.8, 0.1]}) == {
        "acceptance_rates": [0.8, 0.1]
    }
    with pytest.raises(InputError, match="synthetic_acceptance_length"):
        speculative_settings({"num_speculative_tokens": 2, "synthetic_acceptance_length": 9})


# Time -------------------------------------------------------------------------------------------------------

H100 = load_device("h100-sxm-80gb")
KERNELS = operations_of(H100, "vllm")
HOST = HostOverhead(5e-4, 1e-5)


def batch_of(rows: int, row_tokens: int, context: int) -> Batch:
    batch = Batch(0, decode_rows=rows, decode_tokens=rows * row_tokens, decode_kv_tokens=rows * context)
    batch.tokens = rows * row_tokens
    return batch


def model_of(row_tokens: int) -> StepTimeModel:
    return step_time(
        LLAMA, KERNELS, BF16, HOST, query_tokens=row_tokens, sampled_tokens=row_tokens, **TABLES
    )


@pytest.mark.parametrize("rows", [1, 32, 200])
def test_verifying_costs_more_than_one_token_and_less_than_as_many_steps(rows: int) -> None:
    plain = model_of(1).step_s((batch_of(rows, 1, 2000),))[0]
    verified = model_of(4).step_s((batch_of(rows, 4, 2000),))[0]
    assert plain < verified < 4 * plain
    if rows == 1:  # bound by reading weights: nearly free
        assert verified < 1.15 * plain


@pytest.mark.parametrize("method", CHAINS)
def test_a_step_with_drafts_is_the_verification_and_the_drafters_passes(method: str) -> None:
    drafts = resolved(method=method, model="llama-3.2-1b")
    times = Drafting(model_of(4), drafts, up_to(TABLES))
    batch = batch_of(8, 4, 1000)
    extra = times.step_s((batch,))[0] - model_of(4).step_s((batch,))[0]
    if method == "ngram":
        assert extra == 0
        return
    read_s = drafts.weight_bytes() / H100.memory_bandwidth_bytes_per_s.value
    passes = 1 if method == "medusa" else 3
    head_s = (
        2 * 128256 * 4096 / H100.memory_bandwidth_bytes_per_s.value if method in ("eagle", "mtp") else 0.0
    )
    least = (
        passes * (read_s + head_s) if method != "eagle3" else passes * read_s * 0.85
    )  # the first projection runs once
    assert least < extra < 3 * least + 5e-4


@pytest.mark.parametrize("method", CHAINS)
def test_a_run_with_drafts_costs_what_its_steps_cost(method: str) -> None:
    times = Drafting(model_of(4), resolved(method=method, model="llama-3.2-1b"), up_to(TABLES))
    shape = batch_of(8, 4, 1000)
    shape.kv_by_step = 8000 + np.cumsum(np.random.default_rng(1).integers(8, 33, 60))
    shape.decode_kv_tokens = int(shape.kv_by_step[0])
    steps = []
    for kv_tokens in shape.kv_by_step.tolist():
        step = batch_of(8, 4, 1000)
        step.decode_kv_tokens = kv_tokens
        steps.append(times.step_s((step,))[0])
    assert len(set(steps)) == 60
    assert times.run_s((shape,), 60).tolist() == steps
    assert times.few_s((shape,), 40) == steps[:40]


def test_drafting_for_a_prompt_is_attributed_to_it() -> None:
    times = Drafting(model_of(4), resolved(method="eagle"), up_to(TABLES))
    batch = Batch(0, prefill=[(1024, 0)], tokens=1024)
    total, (prefill,) = times.step_s((batch,))
    plain_total, (plain_prefill,) = model_of(4).step_s((batch,))
    assert plain_prefill < prefill < total
    assert prefill - plain_prefill == pytest.approx((total - plain_total), rel=0.7)


def test_more_drafts_cost_more() -> None:
    costs = []
    for tokens in (1, 2, 4, 8):
        drafts = replace(resolved(method="eagle"), tokens=tokens)
        times = Drafting(model_of(1 + tokens), drafts, up_to(TABLES))
        costs.append(times.step_s((batch_of(16, 1 + tokens, 1000),))[0])
    assert costs == sorted(costs)
