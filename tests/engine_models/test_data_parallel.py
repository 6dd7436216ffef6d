"""Step times of data-parallel ranks that share experts: closed forms against the model of one replica."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost import one_sided
from engine_models.cost.lockstep import CHOICE_BYTES, Lockstep, shared_parts_s
from engine_models.cost.step_time import StepTimeModel
from engine_models.cost.terms import Formats, HostOverhead
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from hardware_profiles.device import load_device
from hardware_profiles.kernels import operations_of
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from tests.effort import examples
from tests.step_times import lockstep, step_time

MIXTRAL = load_architecture("mistralai/Mixtral-8x7B-v0.1")
BF16 = format_named("bf16")
HOST = HostOverhead(step_s=5e-4, row_s=1e-6, device_step_s=1e-4)
GRAPHS = (1, 2, 4, 8, 16, 32, 64)
TABLES: dict[str, Any] = {
    "graph_sizes": GRAPHS,
    "max_step_tokens": 2048,
    "max_rows": 128,
    "max_context_tokens": 8192,
}


def kernels() -> Any:
    device = load_device("h100-sxm-80gb")
    return operations_of(device, "vllm")


def own_of(ranks: int, host: HostOverhead = HOST, **options: Any) -> StepTimeModel:
    """What each of the ranks does for its own tokens."""
    formats = Formats(BF16, BF16, BF16)
    return step_time(MIXTRAL, kernels(), formats, host, data_parallel=ranks, **{**TABLES, **options})


def group(own: StepTimeModel) -> Lockstep:
    return lockstep(own, **TABLES)


OWN = own_of(4, expert_parallel=4)
FOUR = group(OWN)


def decode(rows: int, context: int) -> Batch:
    return Batch(0, decode_rows=rows, decode_tokens=rows, decode_kv_tokens=rows * context, tokens=rows)


def prefill(new: int, prior: int = 0) -> Batch:
    return Batch(0, prefill=[(new, prior)], tokens=new)


def test_experts_and_dense_parts_add_up_to_one_replica() -> None:
    """What ranks do alone and the experts of one rank are the parts of the model without data parallelism."""
    plain = step_time(MIXTRAL, kernels(), Formats(BF16, BF16, BF16), HOST, **TABLES)
    m = np.array([1, 7, 64, 1000])
    own, shared = own_of(2).parts_s(m), shared_parts_s(plain.shard, m)
    assert "experts" not in own
    both = sum(own.values()) + sum(shared.values())
    assert np.allclose(both, sum(plain.parts_s(m).values()), rtol=1e-12)
    assert not shared["exchange between ranks"].any()


def test_equal_ranks_cost_what_one_of_them_and_the_shared_experts_cost() -> None:
    """Four equal ranks: dense layers of one, experts of all tokens over four devices, and the exchange of all tokens."""
    rows, context = 16, 500
    device_s, shares = FOUR.step_s([decode(rows, context)] * 4)
    m = np.array([rows])
    own = (
        sum(OWN.parts_s(m).values()).item()
        + OWN._rows_s[rows]
        + OWN._decode.full(rows).at(rows * context)
    )
    shared = sum(shared_parts_s(OWN.shard, 4 * m).values()).item()
    assert device_s == pytest.approx(own + shared, rel=5e-3)  # the shared table is linear between its nodes
    assert shares == [0.0] * 4
    experts = shared_parts_s(OWN.shard, 4 * m)["experts"].item()
    assert experts == pytest.approx(
        32 * kernels().moe_s("bf16", 4096, 14336, 2, 8, 1, 4, 4 * rows).item(), rel=1e-12
    )
    width = 4.0 * rows * 4096 * 2
    exchange = kernels().all_gather_s(4, width + 4 * rows * 2 * CHOICE_BYTES) + kernels().reduce_scatter_s(
        4, width
    )
    assert shared_parts_s(OWN.shard, 4 * m)["exchange between ranks"].item() == pytest.approx(32 * exchange.item())


def test_idle_ranks_are_padded_in_a_graph_and_bring_one_token_outside() -> None:
    rows = decode(20, 300)
    busy = FOUR.step_s([rows] * 4)[0]
    assert FOUR.step_s([rows])[0] == busy  # all are padded to 32 tokens
    own = OWN._linear_s[100] + OWN._rows_s[100] + OWN._decode.full(100).at(100 * 300.0)
    assert FOUR.step_s([decode(100, 300)])[0] == own + FOUR._shared_s[103]


def test_a_prefill_sets_the_time_of_all() -> None:
    alone = FOUR.step_s([prefill(2000)])[0]
    with_others, shares = FOUR.step_s([prefill(2000), decode(8, 1000), decode(1, 10)])
    assert alone < with_others < alone * 1.01  # nine more tokens pass the experts
    assert with_others > 3 * FOUR.step_s([decode(8, 1000)] * 4)[0]
    assert shares[0] > 0.9 * with_others
    assert shares[1:] == shares[:2]  # the ranks that decode wait for the prompt: that time is the prompt's too
    assert FOUR.step_s([decode(8, 1000), decode(1, 10)])[1] == [0.0, 0.0]


def test_engines_that_capture_decoding_alone_do_not_pad_beside_a_prefill() -> None:
    own = own_of(4, HostOverhead(5e-4, 1e-6, prefill_launch_s=1e-5), expert_parallel=4)
    eager = group(own)
    padded, total = eager._of_group([20, 20], False)
    assert (padded, total) == (32, 128)
    beside = eager.step_s([prefill(20), decode(20, 300)])[0]
    assert beside >= 1e-5 * own.shard.launches()
    assert eager._of_group([20, 20], True) == (0, 42)


def test_small_prefills_that_a_graph_holds_are_padded() -> None:
    host = HostOverhead(5e-4, 1e-6, prefill_launch_s=1e-5, prefill_graph_tokens=64)
    rank = own_of(4, host, expert_parallel=4)
    held = group(rank)
    alone = held.step_s([prefill(20)])[0]
    own = rank._linear_s[32] + rank._rows_s[1] + rank._prefill._table.at(20, 0)
    assert alone == pytest.approx(own + held._shared_s[128], rel=1e-12)


def test_the_exchange_waits_for_the_slowest_rank_twice_a_layer() -> None:
    m = np.array([64])
    slow = own_of(4, HostOverhead(5e-4, 1e-6, reduce_wait_s=3e-6), expert_parallel=4)
    waiting, calm = shared_parts_s(slow.shard, m), shared_parts_s(OWN.shard, m)
    added = waiting["exchange between ranks"] - calm["exchange between ranks"]
    assert added.item() == pytest.approx(32 * 2 * 3e-6)


def test_tokens_that_go_to_their_experts_alone_are_fewer_by_those_over_the_ranks() -> None:
    routed = replace(OWN.shard, terms=replace(OWN.shard.terms, routed=True))
    to_two_of_four, to_all = shared_parts_s(routed, np.array([4096])), shared_parts_s(OWN.shard, np.array([2048]))
    assert to_two_of_four["exchange between ranks"] == pytest.approx(to_all["exchange between ranks"])
    few = [own_of(2, expert_parallel=2).shard, own_of(2, expert_parallel=2).shard]
    few[1] = replace(few[1], terms=replace(few[1].terms, routed=True))
    times = [shared_parts_s(shard, np.array([4096]))["exchange between ranks"] for shard in few]
    assert times[0] == times[1] > 0


def test_ranks_that_write_into_each_other_pay_for_the_ranks_that_a_token_reaches() -> None:
    """Two kernels a layer, their waits, and a token's bytes to the other ranks that hold an expert of it, and back."""
    shard = replace(OWN.shard, terms=replace(OWN.shard.terms, one_sided=True))
    m = np.array([0, 4, 4096, 65536])
    exchange = shared_parts_s(shard, m)["exchange between ranks"]
    reached = 4 * (1 - (1 - 1 / 4) ** 2)
    (there, more, quick), (back, again, slow) = one_sided.DISPATCH, one_sided.COMBINE
    floor = there + back + 2 * (more + again)
    sent, returned = 4096 * 2.0 + 2 * CHOICE_BYTES, 4096 * 2.0
    link = kernels().peaks.link_bytes_per_s
    moved = reached * 3 / 4 * m[1:] / 4 * (sent / (quick * link) + returned / (slow * link))
    assert exchange[0] == 0.0
    assert exchange[1:] == pytest.approx(32 * (floor + moved))
    gathered = shared_parts_s(OWN.shard, m)["exchange between ranks"]
    assert exchange[3] < gathered[3]  # 1.75 of 4 ranks instead of all


def test_every_layer_of_experts_launches_the_exchange_too() -> None:
    plain = step_time(MIXTRAL, kernels(), Formats(BF16, BF16, BF16), HOST, **TABLES)
    assert OWN.shard.launches() == plain.shard.launches() + 2 * 32


@pytest.mark.parametrize("tensor", [1, 2])
def test_an_exchange_over_all_devices_is_the_reduction_of_their_sums_too(tensor: int) -> None:
    """Tensor ranks reduce nothing by themselves; outside of a graph the whole is reduced twice, and more is launched."""
    plain = own_of(4, expert_parallel=4, tensor_parallel=tensor).shard
    over_all = replace(plain, terms=replace(plain.terms, exchanges_over_all=True))
    m = np.array([4, 4096])
    assert (plain.reduces, over_all.reduces) == (64, 0)
    assert over_all.launches() - plain.launches() == 32 * (6 if tensor == 1 else 8 - 2)
    held, launched = (shared_parts_s(over_all, m, captured=held)["exchange between ranks"] for held in (True, False))
    assert (held > shared_parts_s(plain, m)["exchange between ranks"]).all()
    assert launched[1] > 1.3 * held[1]


def test_parted_tokens_are_exchanged_by_all_devices_and_gathered_by_tensor_ranks() -> None:
    """Four ranks of two devices: over eight, one sum a layer instead of two, and the tokens of a rank are gathered again."""
    plain = own_of(4, expert_parallel=8, tensor_parallel=2).shard
    parted = replace(plain, terms=replace(plain.terms, parts_tokens=True))
    m = np.array([4, 4096])
    assert (plain.reduces, parted.reduces) == (64, 32)
    assert parted.launches() - plain.launches() == 32 * (2 - 1)
    ops, whole = plain.ops, m * 4096 * 2.0
    choices = CHOICE_BYTES * 2 * m
    own_s = ops.all_gather_s(8, whole + choices) + ops.reduce_scatter_s(8, whole) + ops.all_gather_s(2, whole / 4)
    assert shared_parts_s(parted, m)["exchange between ranks"] == pytest.approx(32 * (own_s + 3 * HOST.reduce_wait_s))


@pytest.mark.parametrize(
    ("engine", "flags", "parts"),
    [
        ("vllm", {}, True),
        ("vllm@0.10.2", {}, False),
        ("vllm", {"enable_expert_parallel": False}, False),
        ("vllm", {"data_parallel_size": 1}, False),
    ],
)
def test_vllm_parts_tokens_where_ranks_of_several_devices_split_experts(engine: str, flags: dict[str, Any], parts: bool) -> None:
    args = {"data_parallel_size": 2, "enable_expert_parallel": True, **flags}
    deployment = {"engine": engine, "hardware": "h100-sxm-80gb", "tensor_parallel": 2, "engine_args": args}
    load = {"arrivals": {"kind": "batch"}, "requests": 1, "prompt_tokens": 16, "output_tokens": 2}
    found = prepare(load_scenario({"model": "mistralai/Mixtral-8x7B-v0.1", "deployment": deployment, "workload": load}))
    assert found.plan.costs.terms.parts_tokens is parts


@settings(max_examples=examples(60), derandomize=True)
@given(
    st.lists(st.tuples(st.integers(1, 128), st.integers(1, 4000)), min_size=1, max_size=4),
    st.integers(1, 20),
)
def test_runs_of_steps_are_the_steps_to_the_last_bit(loads: list[tuple[int, int]], steps: int) -> None:
    run = FOUR.run_s([decode(rows, context) for rows, context in loads], steps)
    for step in range(steps):
        batches = []
        for rows, context in loads:
            batch = decode(rows, context)
            batch.decode_kv_tokens += rows * step
            batches.append(batch)
        assert FOUR.step_s(batches)[0] == run[step]


@settings(max_examples=examples(40), derandomize=True)
@given(st.lists(st.integers(1, 128), min_size=4, max_size=4), st.integers(0, 3))
def test_more_rows_on_any_rank_are_no_quicker(rows: list[int], rank: int) -> None:
    fewer = FOUR.step_s([decode(n, 200) for n in rows])[0]
    more = list(rows)
    more[rank] = min(128, more[rank] + 8)
    assert FOUR.step_s([decode(n, 200) for n in more])[0] >= fewer * (1 - 1e-12)
