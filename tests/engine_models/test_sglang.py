"""The SGLang scheduler: recorded schedules, exact jumps, conservation, defaults and flags."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.terms import Formats
from engine_models.declaration import Limits, PoolRequest
from engine_models.engines import sglang, sglang_memory, sglang_reserve, sglang_serving
from engine_models.engines.known import parse_engine_args
from engine_models.lengths import judged
from engine_models.memory.radix import RadixPool
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.prefill_first import POLICIES, PrefillFirstRules, PrefillFirstScheduler
from engine_models.schedulers.prefill_first_staged import StagedPrefillFirstScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.prepared import Prepared
from simulator.serving.replica import Replica
from simulator.validation.schedules import replay
from tests.effort import examples
from tests.engine_models.test_declarations import prepared
from tests.invariants.core_cases import SpannedClock

RECORDINGS = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "conformance" / "sglang"
CLOCK = {"a": 0.008, "b": 2.5e-05, "c": 0.0001, "d": 2e-08}


@pytest.mark.skipif(not RECORDINGS.is_dir(), reason="no recorded schedules beside the checkout")
@pytest.mark.parametrize("path", sorted(RECORDINGS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_recorded_schedule_is_reproduced(path: Path) -> None:
    result = replay(path)
    assert result["first_difference"] is None
    assert result["equal"] == result["steps"] > 0


def staged(rules: PrefillFirstRules, pool: RadixPool, lanes: int, **options: Any) -> StagedPrefillFirstScheduler:
    rows = max(1, rules.max_running_requests // lanes)
    return StagedPrefillFirstScheduler(rules, pool, lanes=lanes, lane_rows=rows, **options)


def serve(
    rules: PrefillFirstRules, pool: RadixPool, requests: list[Sequence], *, aggregate: bool, lanes: int = 1
) -> tuple[Replica, PrefillFirstScheduler, list[tuple[int, float]]]:
    options: dict[str, Any] = {"aggregate": aggregate, "windows": (24, 100)}
    if lanes > 1:
        scheduler = staged(replace(rules, in_flight=1), pool, lanes, **options)
    else:
        scheduler = PrefillFirstScheduler(rules, pool, **options)
    ends: list[tuple[int, float]] = []
    replica = Replica(
        [scheduler],
        SpannedClock(CLOCK),
        depth=max(lanes, scheduler.rules.in_flight),
        stages=lanes,
        on_finish=lambda seq, now_s: ends.append((seq.index, now_s)),
    )
    for seq in requests:
        replica.advance(seq.arrival_s)
        replica.ranks[0].submit(seq)
    replica.advance(float("inf"))
    return replica, scheduler, ends


def test_a_row_whose_client_left_ends_with_the_step_under_way_and_is_served_once_more_in_vain() -> None:
    pool = RadixPool(100, 1, prefix_caching=False)
    scheduler = PrefillFirstScheduler(PrefillFirstRules(8, 1000, in_flight=2), pool)
    seq = Sequence(0, 10, 50, 0.0)
    scheduler.add(seq)
    prompt, under_way = scheduler.schedule(0.0), scheduler.schedule(0.0)
    assert prompt is not None
    assert under_way is not None
    scheduler.settle(prompt)
    assert scheduler.cancel(seq)
    assert scheduler.schedule(0.0) is not None  # in vain
    assert scheduler.settle(under_way) == []
    assert pool.free_tokens == 100
    assert not scheduler.has_work()


REQUEST = st.tuples(
    st.integers(1, 120),  # prompt
    st.integers(1, 90),  # output
    st.floats(0, 0.4),  # pause before it
    st.integers(0, 3),  # shared prefix, 0: none
    st.integers(0, 2),  # priority
    st.booleans(),  # whether its end is certain
)


def build(drawn: list[Any]) -> list[Sequence]:
    out: list[Sequence] = []
    now = 0.0
    for index, (prompt, output, pause, prefix, priority, certain) in enumerate(drawn):
        now += pause
        head = min(prompt, 40) if prefix else 0
        runs = ((prefix, 0, head), (100 + index, 0, prompt - head + output))
        out.append(
            Sequence(
                index,
                prompt,
                output,
                now,
                priority=priority,
                stop_known=certain,
                runs=tuple(run for run in runs if run[2]),
                shareable_tokens=prompt,
                output_shared=True,
            )
        )
    return out


RULES = st.builds(
    PrefillFirstRules,
    max_running_requests=st.sampled_from([2, 5, 64]),
    max_model_len=st.just(256),
    max_prefill_tokens=st.sampled_from([128, 16384]),
    chunked_prefill_size=st.sampled_from([None, 64, 8192]),
    in_flight=st.sampled_from([1, 2]),
    schedule_policy=st.sampled_from(POLICIES),
    schedule_conservativeness=st.sampled_from([0.05, 1.0]),
    mixed_chunk=st.booleans(),
    ignore_eos=st.booleans(),
    priority_scheduling=st.booleans(),
    preemption=st.booleans(),
    receive_interval=st.sampled_from([1, 1, 2, 7, 30]),
)


@given(
    st.lists(REQUEST, min_size=1, max_size=25),
    RULES,
    st.sampled_from([1, 16]),
    st.integers(400, 1500),
    st.booleans(),
    st.sampled_from([1, 1, 2, 3]),
)
@settings(max_examples=examples(120))
def test_jumps_equal_steps_and_tokens_are_conserved(
    drawn: list[Any], rules: PrefillFirstRules, page: int, capacity: int, caching: bool, lanes: int
) -> None:
    runs = []
    for aggregate in (False, True):
        requests = build(drawn)
        pool = RadixPool(capacity, page, prefix_caching=caching)
        replica, scheduler, ends = serve(rules, pool, requests, aggregate=aggregate, lanes=lanes)
        assert not scheduler.has_work()
        assert pool.free_tokens + pool.tree.evictable_tokens == pool.capacity_tokens
        assert not any(node.lock for node in pool.tree.nodes())
        assert sorted(index for index, _ in ends) == list(range(len(drawn)))
        steps = np.frombuffer(replica.ranks[0].log.end_s)
        assert (np.diff(steps) >= 0).all()
        for seq in requests:
            emitted = [number for first, last in seq.ranges() for number in range(first, last + 1)]
            assert emitted == sorted(set(emitted))
            assert len(emitted) == seq.final_length - seq.prompt_tokens
            assert seq.state == "dropped" or dict(ends)[seq.index] == steps[emitted[-1]]
        runs.append(
            (
                steps.tobytes(),
                ends,
                [seq.emissions for seq in requests],
                scheduler.ratio,
                [seq.preemptions for seq in requests],
            )
        )
    assert runs[0] == runs[1]


def test_the_pieces_of_a_prompt_go_through_a_pipeline_one_behind_the_other() -> None:
    """Three stages: a piece a turn while those before are in flight, and who comes meanwhile joins the lane whose turn it is."""
    rules = PrefillFirstRules(8, 1000, chunked_prefill_size=64)
    scheduler = staged(rules, RadixPool(900), 3)
    first, second = Sequence(0, 200, 3, 0.0), Sequence(1, 10, 2, 0.0)
    scheduler.add(first)
    flying = [scheduler.schedule(0.0) for _ in range(3)]
    assert [batch and batch.prefill for batch in flying] == [[(64, 0)], [(64, 64)], [(64, 128)]]
    assert scheduler.schedule(0.0) is None  # all stages are taken
    scheduler.add(second)
    served: list[Batch | None] = []
    for number in range(6):
        batch = flying[number] if number < 3 else served[number - 3]
        if batch is not None:
            scheduler.settle(batch)
        served.append(scheduler.schedule(0.0))
    # the last piece goes with the second request in the first lane, which decodes alone from then on
    idle = [None, None]
    together = [([(8, 192), (10, 0)], 0), *idle, ([], 2), *idle]
    assert [batch and (batch.prefill, batch.decode_rows) for batch in served] == together


@given(st.lists(REQUEST, min_size=5, max_size=25), st.sampled_from([1, 2]))
@settings(max_examples=examples(60))
def test_priority_preemption_loses_nobody(drawn: list[Any], depth: int) -> None:
    rules = PrefillFirstRules(
        4, 256, in_flight=depth, priority_scheduling=True, preemption=True, preemption_threshold=0
    )
    pool = RadixPool(900)
    _, _, ends = serve(rules, pool, build(drawn), aggregate=True)
    assert sorted(index for index, _ in ends) == list(range(len(drawn)))
    assert pool.free_tokens + pool.tree.evictable_tokens == pool.capacity_tokens


@pytest.mark.parametrize(("prompt", "answer"), [(60, 10), (120, 63), (128, 63), (129, 1)])
def test_an_answer_ends_where_a_page_after_its_prompts_leaves_no_room(prompt: int, answer: int) -> None:
    page, kv, wanted = 64, 256, 10 if prompt == 60 else 100
    request = Sequence(0, prompt, wanted, 0.0)
    serve(PrefillFirstRules(8, 4096), RadixPool(kv, page), [request], aggregate=False)
    limits = Limits(8, 512, 4096, kv, kv // page, page, kv, kv - 2, page_after_prompt=True)
    found = judged(np.array([prompt]), np.array([wanted]), np.array([wanted]), limits)
    assert (request.length - prompt, found.output_tokens.item()) == (answer, answer)


def test_prefill_goes_before_decode() -> None:
    """While a second prompt is computed the first request emits nothing."""
    rules = PrefillFirstRules(8, 1024)
    first, second = build([(100, 20, 0.0, 0, 0, True), (100, 20, 0.05, 0, 0, True)])
    serve(rules, RadixPool(4000), [first, second], aggregate=True)
    start = second.emissions[0]
    assert all(not a <= start <= b for a, b in first.ranges())
    assert second.emissions == [start, start + 19]


def _row(index: int, prompt: int, output: int, arrival_s: float) -> Sequence:
    runs = ((index, 0, prompt + output),)
    return Sequence(
        index,
        prompt,
        output,
        arrival_s,
        stop_known=True,
        runs=runs,
        shareable_tokens=prompt,
        output_shared=True,
    )


@pytest.mark.parametrize("aggregate", [False, True])
def test_arrivals_are_taken_in_once_in_so_many_decode_steps(aggregate: bool) -> None:
    """A request that comes while another decodes starts at the next multiple of the interval after the last prefill."""
    for interval, arrival_s in ((1, 0.05), (10, 0.05), (10, 0.2), (30, 0.05)):
        rules = PrefillFirstRules(
            max_running_requests=8,
            max_model_len=1000,
            in_flight=1,
            receive_interval=interval,
            chunked_prefill_size=None,
        )
        requests = [_row(0, 100, 200, 0.0), _row(1, 100, 20, arrival_s)]
        replica, _, _ = serve(rules, RadixPool(10_000, 1), requests, aggregate=aggregate)
        ends = np.frombuffer(replica.ranks[0].log.end_s)
        prefill = requests[1].emissions[0]  # the step of its first token; step 0 prefills the other
        before = prefill - 1  # decode steps that went before
        first_after = int(
            np.searchsorted(ends, arrival_s, side="left")
        )  # steps formed before it arrived: 0..first_after
        assert before == -(-first_after // interval) * interval


def test_an_idle_scheduler_takes_arrivals_in_at_once() -> None:
    rules = PrefillFirstRules(max_running_requests=8, max_model_len=1000, in_flight=2, receive_interval=30)
    requests = [_row(0, 100, 5, 0.0), _row(1, 100, 5, 3.0)]
    serve(rules, RadixPool(10_000, 1), requests, aggregate=True)
    assert requests[1].first_scheduled_s == 3.0


@pytest.mark.parametrize(
    ("version", "flags", "captured"),
    [
        ("@0.5.9", {}, 0),
        ("@0.5.9", {"enable_piecewise_cuda_graph": True}, 2048),
        ("@0.5.10", {}, 2048),
        ("", {}, 2048),
        ("", {"piecewise_cuda_graph_max_tokens": 512}, 512),
        ("", {"disable_piecewise_cuda_graph": True}, 0),
        ("", {"disable_cuda_graph": True}, 0),
    ],
)
def test_prefill_is_no_quicker_than_its_launch(version: str, flags: dict[str, Any], captured: int) -> None:
    """A prefill of DeepSeek-V3 that no graph holds takes what the host needs to launch it; a decode step is captured."""
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare

    deployment = {
        "engine": "sglang" + version,
        "hardware": "h200-sxm-141gb",
        "tensor_parallel": 8,
        "weights": "fp8_block",
        "engine_args": flags,
    }
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 1, "output_tokens": 1, "requests": 1}
    raw = {"name": "x", "model": "deepseek-ai/DeepSeek-V3", "deployment": deployment, "workload": workload}
    times = prepare(load_scenario(raw | {"cost": {"usd_per_gpu_hour": 0.0}})).times()
    launches_s = pytest.approx(82.6e-3, rel=0.15)
    assert times.step_s((Batch(0, tokens=captured + 1, prefill=[(captured + 1, 0)]),))[0] > 82.6e-3 * 0.85
    if captured:
        assert times.step_s((Batch(0, tokens=1, prefill=[(1, 0)]),))[0] == pytest.approx(23.1e-3, rel=0.15)
    elif not flags:
        assert times.step_s((Batch(0, tokens=1, prefill=[(1, 0)]),))[0] == launches_s
        assert times.step_s((Batch(0, tokens=1, decode_rows=1, decode_tokens=1, decode_kv_tokens=2),))[0] < 20e-3


def test_a_batch_may_exceed_max_prefill_tokens_by_its_last_prompt() -> None:
    """A server whose max_prefill_tokens is below its chunk runs, and prices every batch it forms."""
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    scenario = {
        "name": "x",
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "deployment": {
            "engine": "sglang",
            "hardware": "h200-sxm-141gb",
            "engine_args": {"max_prefill_tokens": 2500, "chunked_prefill_size": 8192, "enable_mixed_chunk": True},
        },
        "workload": {"arrivals": {"kind": "batch"}, "prompt_tokens": 2400, "output_tokens": 5, "requests": 12},
        "cost": {"usd_per_gpu_hour": 0.0},
    }
    raw = run_prepared(prepare(load_scenario(scenario))).raw
    assert not np.isnan(raw.end_s).any()


def test_host_time_of_a_step_shows_without_overlap_alone() -> None:
    """Decode steps of n rows differ by serial_step_s + n row_s between the two modes."""
    from engine_models.cost.overheads import load_overheads
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare
    from simulator.results.latencies import latencies
    from simulator.run import run_prepared

    def tpot_ms(rows: int, **flags: bool) -> float:
        scenario = {
            "name": "x",
            "model": "meta-llama/Llama-3.1-8B-Instruct",
            "deployment": {"engine": "sglang", "hardware": "h200-sxm-141gb", "engine_args": flags},
            "workload": {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 101, "requests": rows},
            "cost": {"usd_per_gpu_hour": 0.0},
        }
        return float(latencies(run_prepared(prepare(load_scenario(scenario))).raw).tpot_ms.mean())

    shipped = load_overheads("sglang")
    step_s, row_s = float(shipped.provenance["serial_step_s"]["value"]), shipped.host.row_s
    for rows in (1, 64):
        exposed = tpot_ms(rows, disable_overlap_schedule=True) - tpot_ms(rows)
        assert exposed == pytest.approx((step_s + rows * row_s) * 1e3, rel=0.05)


def test_overheads_say_what_is_taken_over() -> None:
    from engine_models.cost.overheads import load_overheads, own_overheads

    own, shown = own_overheads("sglang"), load_overheads("sglang").provenance
    assert all({"value", "unit", "kind", "date", "meaning", "source"} <= set(entry) for entry in own.values())
    assert "start_s" not in shown  # of replays, not of servers
    for name, entry in shown.items():
        if name in own:
            assert entry == own[name]
        else:
            assert (entry["kind"], entry["value"]) == ("assumed", own_overheads("vllm")[name]["value"])
            assert "taken over" in entry["source"]


def test_retraction_takes_the_row_with_fewest_tokens() -> None:
    rules = PrefillFirstRules(8, 1024, schedule_conservativeness=0.01)
    requests = build([(100, 120, 0.0, 0, 0, True), (100, 120, 0.2, 0, 0, True)])
    _, scheduler, ends = serve(rules, RadixPool(350), requests, aggregate=True)
    assert [seq.preemptions for seq in requests] == [0, 1]
    assert [index for index, _ in ends] == [0, 1]
    assert scheduler.initial_ratio == pytest.approx(0.007)


def test_a_last_chunk_that_takes_the_memory_too_fills_the_batch() -> None:
    scheduler = PrefillFirstScheduler(PrefillFirstRules(8, 8192, chunked_prefill_size=8), RadixPool(160, 8))
    full = []
    for seq in (_row(0, 4, 10, 0.0), _row(1, 20, 115, 0.0), _row(2, 4, 10, 0.0)):
        scheduler.add(seq)
    for _ in range(4):
        batch = scheduler.schedule(0.0)
        assert batch is not None
        scheduler.settle(batch)
        full.append((sum(new for new, _ in batch.prefill), batch.batch_is_full))
    # 4 tokens of the first, 20 of the second in pieces of a page: nothing is left of the third piece's page, nor of the pool
    assert full == [(4, False), (8, False), (8, False), (4, True)]


def test_new_token_ratio_falls_to_its_floor_in_600_steps() -> None:
    scheduler = PrefillFirstScheduler(PrefillFirstRules(1, 10_000), RadixPool(10_000))
    ratio = scheduler.ratio
    for _ in range(600):
        ratio = max(ratio - scheduler.decay, scheduler.least_ratio)
    assert ratio == pytest.approx(0.7 * 0.14)


def test_new_token_ratio_below_its_floor_rises_to_it_also_in_steps_taken_at_once() -> None:
    found = []
    for take in (True, False):
        scheduler = PrefillFirstScheduler(PrefillFirstRules(8, 1000), RadixPool(10_000))
        scheduler.add(_row(0, 4, 50, 0.0))
        batch = scheduler.schedule(0.0)
        assert batch is not None
        scheduler.settle(batch)
        scheduler.ratio = scheduler.least_ratio / 2  # as a retraction may leave it
        if take:
            assert scheduler.run() is not None
            scheduler.take(3)
        else:
            for _ in range(3):
                scheduler.schedule(0.0)
        found.append((scheduler.ratio, scheduler.kv.free_tokens))
    assert found[0] == found[1]
    assert found[0][0] == scheduler.least_ratio


def test_defaults_follow_memory() -> None:
    gib = 1 << 30
    assert sglang_reserve.memory_defaults(80 * gib, 1) == (8192, 256)
    assert sglang_reserve.memory_defaults(141 * gib, 8) == (8192, 512)
    assert sglang_reserve.memory_defaults(192 * gib, 1) == (16384, 512)
    assert sglang_reserve.memory_defaults(16 * gib, 4) == (2048, 8)
    by_version = {(0, 5, 2): (2048, 8), (0, 5, 3): (2048, 16), (0, 5, 19): (2048, 24), (0, 5, 20): (4096, 48)}
    assert {number: sglang_reserve.memory_defaults(24 * gib, 1, number) for number in by_version} == by_version
    assert sglang_reserve.memory_defaults(80 * gib, 8, (0, 5, 2)) == (8192, 160)
    sizes = sglang_serving.graph_sizes(512)
    assert sizes[:7] == (1, 2, 4, 8, 12, 16, 24)
    assert sizes[-3:] == (480, 496, 512)
    assert 256 in sizes
    assert 264 not in sizes
    # 80 GiB: at least 10 GiB stay out
    assert sglang_reserve.reserved_bytes(80 * gib, 8192, 1, 256) == 13440 * (1 << 20)
    assert sglang_reserve.reserved_bytes(80 * gib, 2048, 1, 8) == 10 * gib
    # until 0.5.2 by memory and ranks alone, with 2 GiB for drafts and 4 for ranks that have attention apart
    old = {"version": (0, 5, 2)}
    assert sglang_reserve.reserved_bytes(80 * gib, 8192, 4, 160, **old) == 11.5 * gib
    assert sglang_reserve.reserved_bytes(141 * gib, 8192, 8, 160, 8, drafts="eagle", **old) == 22 * gib
    assert sglang_memory.default_running(1_000_000, 131_072) == 3906
    assert sglang_memory.default_running(1_000, 131_072) == 500


def test_reserves_for_graphs_ranks_and_drafts_go_by_version() -> None:
    gib, mib = 1 << 30, 1 << 20

    def reserve(**terms: Any) -> int:
        return sglang_reserve.reserved_bytes(141 * gib, 8192, 8, 512, **terms) // mib

    plain = 512 + 12288 + 1024 + 1024
    assert reserve() == plain
    assert sglang_reserve.prefill_graphs(8192) == 58
    assert reserve(prefill_graph_tokens=8192) == plain + 58 * 8
    assert reserve(prefill_graph_tokens=2048, latent=True) == plain + 1536
    assert reserve(prefill_graph_tokens=2048, latent=True, version=(0, 5, 10)) == plain + 1536
    assert reserve(prefill_graph_tokens=2048, latent=True, version=(0, 5, 9)) == plain + 42 * 8
    assert reserve(data_parallel=8) == plain + 512 * 8 * 4.5
    assert reserve(drafts="eagle", version=(0, 5, 9)) == plain + 2048
    assert reserve(drafts="eagle", version=(0, 5, 10)) == plain + 4096
    assert reserve(drafts="draft_model", version=(0, 5, 9)) == plain + 6144
    assert reserve(drafts="ngram", version=(0, 5, 9)) == reserve(drafts="eagle") == plain


def test_a_server_that_only_computes_prompts_or_answers_reserves_for_that_alone() -> None:
    gib, mib = 1 << 30, 1 << 20

    def reserve(tokens: int, **terms: Any) -> int:
        return sglang_reserve.reserved_bytes(192 * gib, tokens, 4, 512, 4, prefill_graph_tokens=4096, **terms) // mib

    plain = 512 + 1.5 * 16384 + 512
    graphs, ranks, prefills = 2 * 512, 4.5 * 512 * 4, 8 * sglang_reserve.prefill_graphs(4096)
    assert reserve(16384) == plain + graphs + ranks + prefills
    assert reserve(16384, role="prefill") == plain + prefills
    assert reserve(512, role="decode") == 512 + 1.5 * 2048 + 512 + graphs + ranks
    assert reserve(16384, role="prefill", version=(0, 5, 14)) == plain + graphs + ranks + prefills
    assert reserve(16384, deepep=True) == reserve(16384) + 2048 + 1024
    assert reserve(16384, deepep=True, version=(0, 5, 16)) == reserve(16384, version=(0, 5, 16)) + 2048
    assert reserve(16384, deepep=True, role="decode") == reserve(16384, role="decode") + 2048
    assert reserve(16384, deepep=True, role="prefill") == reserve(16384, role="prefill") + 1024
    assert reserve(16384, deepep=True, version=(0, 5, 14)) == reserve(16384)


@pytest.mark.parametrize(
    ("version", "hardware", "model", "tp", "weights", "args", "tokens"),
    [
        ("0.5.3", "h200-sxm-141gb", "meta-llama/Llama-3.1-70B", 8, "bf16", {}, 2_795_207),
        ("0.5.3", "h100-sxm-80gb", "Qwen/Qwen3-235B-A22B", 4, "fp8_block", {"mem_fraction_static": 0.93}, 367_404),
        ("0.5.20", "h100-sxm-80gb", "Qwen/Qwen3-30B-A3B", 1, "fp8_block", {}, 392_920),
    ],
)
def test_tokens_are_those_of_start_up_lines(
    version: str, hardware: str, model: str, tp: int, weights: str, args: dict[str, Any], tokens: int
) -> None:
    """SGLang's pull request 11716 (2025-10), vLLM's issue 21348 (2025-07), a log of 2026-08 ("KV Cache is allocated")."""
    pool = {"engine": f"sglang@{version}", "hardware": hardware, "tensor_parallel": tp, "weights": weights, "engine_args": args}
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    plan = prepare(load_scenario({"model": model, "deployment": pool, "workload": load})).plan
    assert plan.limits.told_tokens == pytest.approx(tokens, rel=0.01)


def llama(engine_args: dict[str, Any], hardware: str) -> Prepared:
    """Llama-3.1-8B on one device."""
    pool = {"engine": "sglang", "hardware": hardware, "engine_args": engine_args}
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    return prepare(load_scenario({"model": "meta-llama/Llama-3.1-8B-Instruct", "deployment": pool, "workload": load}))


def test_a_reserve_that_leaves_nothing_names_the_chunk() -> None:
    with pytest.raises(InputError, match="aside for prompts of 32,768 tokens a step") as error:
        llama({"chunked_prefill_size": 32768}, "l40s-48gb")
    assert error.value.where == "deployment.engine_args.chunked_prefill_size"
    with pytest.raises(InputError, match="aside for prompts of 100,000 tokens a step"):
        llama({"chunked_prefill_size": -1, "max_prefill_tokens": 100_000}, "l40s-48gb")


def share(engine_args: dict[str, Any], hardware: str = "mi300x-192gb") -> float:
    """Weights and KV cache over what is free of the device."""
    memory = llama(engine_args, hardware).plan.memory
    parts = {line.key: line.bytes for line in memory.lines}
    return 1 - parts["activation"] / (memory.device_bytes - parts["other"])


def test_amd_attention_takes_a_part_of_the_share_where_contexts_are_long() -> None:
    given = {"mem_fraction_static": 0.8}
    assert share(given | {"context_length": 8192}) == pytest.approx(0.8, abs=1e-6)
    assert share(given | {"context_length": 8193}) == pytest.approx(0.8 * 0.85, abs=1e-6)
    assert share(given | {"attention_backend": "triton"}) == pytest.approx(0.8, abs=1e-6)
    assert share(given, "h100-sxm-80gb") == pytest.approx(0.8, abs=1e-6)


def test_prompts_that_are_not_cut_reserve_for_the_most_that_a_step_takes() -> None:
    memory_bytes = int(load_device("h100-sxm-80gb").memory_bytes.value)

    def reserved(tokens: int) -> int:
        return sglang_reserve.reserved_bytes(memory_bytes, tokens, 1, 256)

    plain = {"disable_piecewise_cuda_graph": True}
    whole = share(plain | {"chunked_prefill_size": -1, "max_prefill_tokens": 30000}, "h100-sxm-80gb")
    cut = share(plain | {"chunked_prefill_size": 8192}, "h100-sxm-80gb")
    assert cut - whole == pytest.approx((reserved(30000) - reserved(8192)) / memory_bytes, abs=0.001)


def test_a_vision_tower_lowers_the_share_unless_it_is_left_out() -> None:
    """A tower of 24 layers of 1,024 takes a twentieth of the share; a larger one more. A server that only decodes loads none."""
    newest = sglang_reserve.NEWEST

    def request(**flags: Any) -> PoolRequest:
        bf16 = format_named("bf16")
        arch = load_architecture("google/gemma-3-4b-it")
        return PoolRequest(arch, Formats(bf16, bf16, bf16), "h200-sxm-141gb", 140 << 30, flags=flags)

    seeing = request(enable_multimodal=True)
    usual = replace(seeing, arch=replace(seeing.arch, vision_shape=(0, 0)))
    assert sglang_reserve.tower_factor(usual, newest) == 0.95

    ratio = 27 * 1152**2 / (24 * 1024**2)
    assert sglang_reserve.tower_factor(seeing, newest) == pytest.approx(0.95 * (1 - 0.1 * (ratio - 1)))
    assert sglang_reserve.tower_factor(request(enable_multimodal=True, language_only=True), newest) == 1
    assert sglang_reserve.tower_factor(request(), newest) == 1  # Gemma 3 and Llama 4 only see where asked to
    assert sglang_reserve.tower_factor(replace(request(), arch=load_architecture("Qwen/Qwen3-VL-8B-Instruct")), newest) < 1
    assert sglang_reserve.tower_factor(replace(usual, role="decode"), newest) == 1
    assert sglang_reserve.tower_factor(replace(usual, role="decode"), (0, 5, 16)) == 0.95
    text = replace(request(), arch=load_architecture("Qwen/Qwen3-8B"))
    assert sglang_reserve.tower_factor(text, newest) == 1


def test_version() -> None:
    assert sglang.ENGINE.version(None) == sglang.ENGINE.newest == "0.5.23"
    assert sglang.ENGINE.version("0.5.4") == sglang.ENGINE.newest
    with pytest.raises(InputError, match="not a version of SGLang"):
        sglang.ENGINE.version("latest")
    with pytest.raises(InputError, match="older than the oldest"):
        sglang.ENGINE.version("0.3.1")


def test_launch_command() -> None:
    found = parse_engine_args(
        "sglang",
        "python -m sglang.launch_server --model-path org/m --tp 4 --mem-fraction-static 0.85 "
        "--chunked-prefill-size 8192 --schedule-policy lpm --disable-radix-cache --port 30000",
    )
    assert found.model == "org/m"
    assert found.values == {
        "tensor_parallel_size": 4,
        "mem_fraction_static": 0.85,
        "chunked_prefill_size": 8192,
        "schedule_policy": "lpm",
        "disable_radix_cache": True,
    }
    with pytest.raises(InputError, match="lpm"):
        parse_engine_args("sglang", {"schedule_policy": "lpn"})


def test_sparse_latent_attention_keeps_its_cache_in_fp8_on_blackwell() -> None:
    """There alone, and other models in what they compute in."""
    sparse, latent = load_architecture("deepseek-ai/DeepSeek-V3.2"), load_architecture("deepseek-ai/DeepSeek-R1")
    b200, h200 = load_device("b200-sxm-180gb"), load_device("h200-sxm-141gb")
    asked = [(b200, sparse), (h200, sparse), (b200, latent)]
    assert [sglang_memory.kv_format(*each) for each in asked] == ["fp8", None, None]


def test_a_limit_of_micro_batches_holds_without_a_pipeline_too() -> None:
    def rows(**pool: Any) -> int:
        return prepared(engine="sglang", tensor_parallel=1, **pool).plan.limits.rows

    assert rows(engine_args={"pp_max_micro_batch_size": 4}) == 4
    assert rows(engine_args={"pp_max_micro_batch_size": 4}, pipeline_parallel=2) == rows(pipeline_parallel=2) > 4
