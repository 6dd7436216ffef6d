"""Images in prompts: when a step encodes them, what that takes, where they stand, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from engine_models.cost.images import LAUNCHES_A_LAYER, PIXEL_S, TILE, WithImages
from engine_models.memory.encoder_cache import EncodedImages, EncoderCache
from engine_models.memory.paged_kv import PagedKV
from engine_models.memory.radix import RadixPool
from engine_models.model.hf_config import load_architecture
from engine_models.parts.adapters import AdapterLimits
from engine_models.parts.batch import Batch, ContinuousRules
from engine_models.parts.composed import composed
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.adapted import AdaptedScheduler
from engine_models.schedulers.encoding import EncoderLimits, EncodingScheduler
from engine_models.schedulers.prefill_first import PrefillFirstBatch, PrefillFirstRules
from engine_models.schedulers.prefill_first_encoding import EncodingPrefillFirstScheduler
from hardware_profiles.errors import InputError
from simulator.cluster.content import image_places
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate
from simulator.validation.schedules import RecordedClock
from simulator.workload.build import build_workload
from tests.effort import examples
from tests.engine_models.fed import Fed
from tests.engine_models.test_kv_tiers import tier

CLOCK = {"a": 0.01, "b": 1e-5, "c": 1e-4, "d": 0.0}
QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
LOAD: dict[str, Any] = {"arrivals": {"kind": "poisson", "rate": 4}, "prompt_tokens": 1500, "output_tokens": 40, "requests": 60}


Asked = tuple[float, int, int, tuple[tuple[int, int], ...]]


class Encoded(Fed[EncodingScheduler, Batch]):
    """What became of requests (arrival [s], prompt, answer, places of images)."""

    def __init__(self, asked: list[Asked], limits: EncoderLimits, *, record: bool = True, **rules: Any) -> None:
        knobs = {"max_num_batched_tokens": 100, "max_num_seqs": 8, "max_model_len": 4096, **rules}
        kv = PagedKV(4000, 16, prefix_caching=True)
        scheduler = EncodingScheduler(ContinuousRules(**knobs), kv, limits, record_rows=record)
        seqs = []
        for index, (at_s, prompt, answer, images) in enumerate(asked):
            seqs.append(Sequence(index, prompt, answer, at_s))
            seqs[-1].images = images
        super().__init__(scheduler, seqs, RecordedClock(CLOCK), Batch, depth=rules.get("in_flight", 1))


# -- steps --------------------------------------------------------------------------------------------------


def test_an_image_is_encoded_before_the_first_step_that_computes_one_of_its_tokens() -> None:
    done = Encoded([(0, 250, 2, ((90, 130), (240, 250)))], EncoderLimits(100, 100))
    assert done.rows()[:3] == [[(0, 100, 0)], [(0, 100, 100)], [(0, 50, 200)]]
    assert [batch.encodes for batch in done.batches] == [(40,), (), (10,), ()]


def test_a_chunk_ends_before_an_image_that_has_no_room() -> None:
    """60 + 60 tokens do not fit the step's budget of 100: the second image waits for the next step."""
    done = Encoded([(0, 200, 1, ((0, 60), (70, 130)))], EncoderLimits(100, 200), max_num_batched_tokens=500)
    assert done.batches[0].encodes == (60,)
    assert done.rows() == [[(0, 70, 0)], [(0, 130, 70)]]
    assert done.batches[1].encodes == (60,)


def test_the_cache_holds_an_image_until_its_tokens_are_computed() -> None:
    """With room for one image in the cache, the second request's waits until the first's is computed."""
    limits = EncoderLimits(200, 90)
    asked = [(0.0, 180, 1, ((0, 90),)), (0.0, 95, 1, ((0, 90),))]
    done = Encoded(asked, limits, max_num_batched_tokens=60, long_prefill_token_threshold=30)
    first = next(number for number, batch in enumerate(done.batches) if batch.encodes == (90,))
    second = [number for number, batch in enumerate(done.batches) if batch.encodes][1]
    assert first == 0
    assert second == 3  # the first's 90 tokens take three steps of 30
    whole = Encoded(asked, EncoderLimits(200, 200), max_num_batched_tokens=60, long_prefill_token_threshold=30)
    assert whole.batches[0].encodes == (90, 90)


def test_whole_images_are_not_split_over_steps() -> None:
    split = Encoded([(0, 150, 1, ((80, 140),))], EncoderLimits(100, 100))
    whole = Encoded([(0, 150, 1, ((80, 140),))], EncoderLimits(100, 100, whole_images=True))
    assert split.rows() == [[(0, 100, 0)], [(0, 50, 100)]]
    assert whole.rows() == [[(0, 80, 0)], [(0, 70, 80)]]


def test_a_drafter_that_reads_ahead_needs_the_image_behind_the_chunk() -> None:
    """The first chunk ends where the image begins; a drafter reads the token behind it."""
    asked: list[Asked] = [(0, 150, 1, ((100, 130),))]
    assert [batch.encodes for batch in Encoded(asked, EncoderLimits(100, 100)).batches] == [(), (30,)]
    ahead = EncoderLimits(100, 100, ahead_tokens=1)
    assert [batch.encodes for batch in Encoded(asked, ahead).batches] == [(30,), ()]
    small = EncoderLimits(40, 40, ahead_tokens=1)  # no room for the second image yet: the chunk is as long as without a drafter
    done = Encoded([(0, 150, 1, ((20, 60), (100, 130)))], small)
    assert done.rows() == [[(0, 100, 0)], [(0, 50, 100)]]
    assert [batch.encodes for batch in done.batches] == [(40,), (30,)]
    whole = EncoderLimits(100, 100, whole_images=True, ahead_tokens=1)
    assert Encoded([(0, 150, 1, ((80, 140),))], whole).rows() == [[(0, 79, 0)], [(0, 71, 79)]]


def test_a_row_that_gets_no_memory_has_encoded_nothing() -> None:
    """The second prompt's next chunk, with its image, finds no block until the first request has ended."""
    knobs = {"max_num_batched_tokens": 100, "max_num_seqs": 8, "max_model_len": 4096, "reserve_full_prompt": False}
    rules = ContinuousRules(**knobs, long_prefill_token_threshold=32, lone_request_ignores_threshold=False)
    scheduler = EncodingScheduler(rules, PagedKV(6, 16, prefix_caching=False), EncoderLimits(100, 100), record_rows=True)
    scheduler._fenced = lambda seq: True  # type: ignore[method-assign]
    first, second = Sequence(0, 60, 4, 0.0), Sequence(1, 90, 1, 0.0)
    second.images = ((40, 60),)
    done = Fed(scheduler, [first, second], RecordedClock(CLOCK), Batch)
    served = {number: batch.encodes for number, batch in enumerate(done.batches) if batch.encodes}
    assert served == {5: (20,)}
    assert len(done.ends) == 2


def test_a_prompt_that_was_loaded_needs_the_images_behind_what_was_found() -> None:
    """64 tokens come from host memory, among them an image; the next one keeps the tower's cache until it is computed."""
    rules = ContinuousRules(100, 8, 4096, long_prefill_token_threshold=20)
    kv = PagedKV(99, 16, prefix_caching=True)
    scheduler = EncodingScheduler(rules, kv, EncoderLimits(30, 30), tiers=tier(), record_rows=True)
    other, loaded = Sequence(0, 150, 2, 0.0), Sequence(1, 100, 2, 0.0)
    other.images, loaded.images = ((0, 30),), ((10, 40), (70, 90))
    loaded.state, loaded.loaded_s = "loading", 0.0
    kv.find(loaded)
    kv.grow(loaded, 64)
    scheduler._loading[loaded] = 64
    scheduler.add(other)
    batches = []
    for step in range(3):
        batch = scheduler.schedule(0.01 * step)
        assert batch is not None
        batches.append((batch.rows, batch.encodes))
        scheduler.settle(batch)
    assert batches == [
        ([(loaded, 20, 64)], (20,)),
        ([(loaded, 16, 84)], ()),
        ([(loaded, 1, 100), (other, 20, 0)], (30,)),
    ]


def test_adapters_and_images_each_keep_their_limit() -> None:
    """One adapter a step: the second request waits for it though its image has room, the third waits for the tower's cache."""
    rules = ContinuousRules(max_num_batched_tokens=200, max_num_seqs=8, max_model_len=4096)
    kind = composed([EncodingScheduler, AdaptedScheduler])
    limits: dict[str, Any] = {"encoder": EncoderLimits(50, 50), "limits": AdapterLimits(1)}
    scheduler = kind(rules, PagedKV(4000, 16, prefix_caching=True), record_rows=True, **limits)
    seqs = [Sequence(index, 40, 2, 0.0) for index in range(4)]
    for seq, adapter, images in zip(seqs, (1, 2, 1, 0), (((0, 30),), ((0, 20),), ((0, 30),), ()), strict=True):
        seq.adapter, seq.images = adapter, images
    done = Fed(scheduler, seqs, RecordedClock(CLOCK), Batch)
    rows = [[seq.index for seq, *_ in batch.rows or ()] for batch in done.batches]
    assert rows[:3] == [[0, 3], [0, 3, 2], [2]]
    assert rows[3:] == [[1], [1]]
    assert [batch.encodes for batch in done.batches] == [(30,), (30,), (), (20,), ()]


def test_a_waiting_request_without_room_lets_the_next_one_try_or_not() -> None:
    asked = [(0.0, 80, 1, ((0, 80),)), (0.0, 60, 1, ((0, 60),)), (0.0, 20, 1, ())]
    limits = EncoderLimits(100, 100)
    passed = Encoded(asked, limits, max_num_batched_tokens=500)
    waits = Encoded(asked, limits, max_num_batched_tokens=500, unreadable_is_skipped=False)
    assert [index for index, *_ in passed.rows()[0]] == [0, 2]
    assert [index for index, *_ in waits.rows()[0]] == [0]


def test_sglang_encodes_what_a_step_reads_unless_its_cache_still_has_it() -> None:
    rules = PrefillFirstRules(max_prefill_tokens=100, chunked_prefill_size=100, max_running_requests=8, max_model_len=4096)

    def encoded(*images: tuple[int, int], cache: int) -> list[tuple[int, ...]]:
        scheduler = EncodingPrefillFirstScheduler(rules, RadixPool(4000, 1), image_cache_tokens=cache)
        seq = Sequence(0, 250, 2, 0.0)
        seq.images = images
        return [batch.encodes for batch in Fed(scheduler, [seq], RecordedClock(CLOCK), PrefillFirstBatch).batches]

    assert encoded((90, 130), (240, 250), cache=100)[:3] == [(40,), (), (10,)]
    assert encoded((90, 130), cache=30)[:3] == [(40,), (40,), ()]  # larger than the cache: once a chunk
    assert encoded((0, 60), (70, 130), cache=100)[:3] == [(60, 60), (), ()]  # the second is the last that was kept


def test_an_image_that_no_step_can_encode_is_refused() -> None:
    with pytest.raises(InputError, match="an image of 120 tokens"):
        Encoded([(0, 150, 1, ((0, 120),))], EncoderLimits(100, 100))


@st.composite
def prompts(draw: st.DrawFn) -> Asked:
    sizes = draw(st.lists(st.integers(1, 60), max_size=3))
    places, at = [], 0
    for size in sizes:
        at += draw(st.integers(0, 40))
        places.append((at, at + size))
        at += size
    return draw(st.sampled_from([0.0, 0.02, 0.3])), max(1, at + draw(st.integers(0, 90))), draw(st.integers(1, 20)), tuple(places)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(prompts(), min_size=1, max_size=8), st.integers(60, 200), st.booleans())
def test_every_image_is_encoded_once_and_no_step_exceeds_its_budget(
    asked: list[Asked], budget: int, ahead: bool
) -> None:
    cache = sum(end - first for *_, images in asked for first, end in images) + 60  # roomy: nothing waits for another
    done = Encoded(asked, EncoderLimits(budget, cache), in_flight=1 + ahead)
    assert len(done.ends) == len(asked)
    encoded = [tokens for batch in done.batches for tokens in batch.encodes]
    assert sorted(encoded) == sorted(end - first for *_, images in asked for first, end in images)
    assert all(sum(batch.encodes) <= budget for batch in done.batches)
    scheduler = done.scheduler
    assert scheduler.images.loose_tokens == scheduler.images.capacity_tokens  # nobody holds any
    assert not scheduler._reading


@settings(max_examples=examples(60), deadline=None)
@example([(0.0, 26, 4, ((0, 1), (1, 26))), (0.02, 35, 1, ((0, 35),))], 60, 60, True)
@given(st.lists(prompts(), min_size=1, max_size=8), st.integers(60, 200), st.integers(60, 200), st.booleans())
def test_jumps_change_nothing(asked: list[Asked], budget: int, cache: int, ahead: bool) -> None:
    limits, depth = EncoderLimits(budget, cache), 1 + ahead
    try:
        stepped = Encoded(asked, limits, in_flight=depth)
    except RuntimeError as error:  # prompts that wait for each other's images, as vLLM's would
        if "never run" not in str(error):
            raise
        return
    jumped = Encoded(asked, limits, in_flight=depth, record=False)
    assert jumped.ends == stepped.ends
    assert jumped.tokens == stepped.tokens


def test_sglangs_cache_keeps_what_was_read_last() -> None:
    first, second, third = ((Sequence(index, 10, 1, 0.0), 0) for index in range(3))
    cache = EncodedImages(100)
    cache.keep(first, 40)
    cache.keep(second, 40)
    assert not cache.lacks(first)  # now the last that was read
    cache.keep(third, 60)
    assert [cache.lacks(image) for image in (first, second, third)] == [False, True, False]
    assert cache.tokens == 100


def test_the_cache_gives_up_first_what_was_let_go_first() -> None:
    seqs = [Sequence(index, 10, 1, 0.0) for index in range(3)]
    cache = EncoderCache(100)
    for seq, tokens in zip(seqs, (40, 40, 20), strict=True):
        assert cache.makes_room(tokens)
        cache.take((seq, 0), tokens)
    assert not cache.makes_room(1)
    cache.let_go((seqs[1], 0))
    cache.let_go((seqs[0], 0))
    assert cache.makes_room(30)
    assert not cache.finds((seqs[1], 0))
    assert cache.finds((seqs[0], 0))
    assert not cache.makes_room(50)


# -- time ---------------------------------------------------------------------------------------------------


def pool(model: str = QWEN, workload: dict[str, Any] | None = None, **deployment: Any) -> Any:
    own = {"engine": "vllm", "hardware": "h100-sxm-80gb", **deployment}
    load = {**LOAD, "images": {"tokens": 1024}} if workload is None else workload
    return load_scenario({"model": model, "deployment": own, "workload": load, "seed": 1})


def encode_s(*tokens: int, model: str = QWEN, **deployment: Any) -> float:
    times = prepare(pool(model, **deployment)).times()
    batch = Batch(0, tokens=100)
    batch.prefill = [(100, 0)]
    plain_s = times.step_s([batch])[0]
    batch.encodes = tokens
    return float(times.step_s([batch])[0] - plain_s)


def test_an_image_takes_no_less_than_its_arithmetic_and_its_launches() -> None:
    arch = load_architecture(QWEN, Path())
    assert arch.vision is not None
    assert (arch.vision.layers, arch.vision.patches, arch.vision.pixels, arch.vision.window_patches) == (32, 4, 784, 64)
    parameters = sum(extra.rows.on(1) * extra.columns for extra in arch.extras if extra.part == "vision")
    arithmetic_s = 2 * parameters * 4 * 4096 / 989.4e12  # every patch passes all of the tower but its joins
    assert 0.8 * arithmetic_s < encode_s(4096) < 4 * arithmetic_s
    assert encode_s(4) == pytest.approx(LAUNCHES_A_LAYER * 32 * 23e-6, rel=0.1)  # the host launches operation by operation
    assert encode_s(2048, 2048) < encode_s(4096) * 1.01  # whole layers see an image alone
    assert encode_s(1024) < encode_s(2048) < encode_s(4096)


@pytest.mark.parametrize(
    ("model", "patches", "pixels", "tile"),
    [
        ("OpenGVLab/InternVL3-8B", 4, 784, 1024),  # 256 tokens of a tile of 448 x 448
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 4, 784, 576),
        ("google/gemma-3-27b-it", 16, 3136, 4096),
        ("google/gemma-4-31B-it", 9, 2304, 0),
        ("llava-hf/llava-1.5-7b-hf", 1, 196, 576),
        ("moonshotai/Kimi-K2.5", 4, 784, 0),
        ("mistralai/Pixtral-12B-2409", 1, 256, 0),
        ("Qwen/Qwen3.5-9B", 4, 1024, 0),
    ],
)
def test_how_many_patches_a_token_stands_for(model: str, patches: int, pixels: int, tile: int) -> None:
    vision = load_architecture(model, Path()).vision
    assert vision is not None
    assert (vision.patches, vision.pixels, vision.tile_patches) == (patches, pixels, tile)


def test_layers_that_see_windows_cost_less_than_those_that_see_the_image() -> None:
    windows, whole = encode_s(16384), encode_s(16384, model="Qwen/Qwen2-VL-7B-Instruct")
    per_layer = 4 * TILE * 4 * 16384 * 80 * 16 * (4 * 16384 // TILE) / (0.5 * 989.4e12)
    assert whole - windows > 0.7 * 28 * per_layer
    assert encode_s(8192, tensor_parallel=2) < encode_s(8192)


def test_a_layer_sees_windows_or_the_image() -> None:
    """With k of the layers seeing the image, whose attention is A, and the others windows, whose is W: k A + (layers - k) W."""
    costs = prepare(pool()).plan.costs
    assert costs.images is not None
    vision = costs.images.vision

    def with_layers(whole: int, window_patches: int) -> float:
        images = replace(costs.images, vision=replace(vision, whole_layers=whole, window_patches=window_patches))
        return WithImages(inner, images, shard).encode_s((4096,))

    inner = prepare(pool()).times()
    assert isinstance(inner, WithImages)
    shard = inner._shard
    windows, whole = (with_layers(1, patches) - with_layers(0, patches) for patches in (64, 0))
    of_window_s = (with_layers(0, 64) - with_layers(0, 0)) / vision.layers
    assert 0 < of_window_s < whole
    assert windows == pytest.approx(whole - of_window_s, rel=1e-6)


def test_the_front_end_reads_images_one_after_the_other() -> None:
    load = {**LOAD, "arrivals": {"kind": "closed_loop", "concurrency": 1}, "requests": 4}
    with_images = simulate(pool(workload={**load, "images": {"tokens": 1024}})).result["metrics"]
    without = simulate(pool(workload=load)).result["metrics"]
    more_ms = with_images["ttft_front_ms"]["mean"] - without["ttft_front_ms"]["mean"]
    assert more_ms == pytest.approx(1e3 * PIXEL_S * 784 * 1024, rel=0.01)
    assert with_images["ttft_kernel_ms"]["mean"] > without["ttft_kernel_ms"]["mean"] + 5


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_first_stage_of_a_pipeline_encodes_alone(engine: str) -> None:
    """One request: its first token comes one encoding later, not one a stage."""
    own = {"engine": engine, "pipeline_parallel": 4}
    load = {**LOAD, "prompt_tokens": 2000, "output_tokens": 1, "arrivals": {"kind": "constant", "rate": 0.1}, "requests": 1}
    plain, own_s = (
        simulate(pool(workload={**load, **images}, **own)).result["metrics"]["ttft_kernel_ms"]["mean"]
        for images in ({}, {"images": {"tokens": 1500}})
    )
    assert own_s - plain == pytest.approx(1e3 * encode_s(1500, **own), rel=1e-6)


SGLANG = {"engine": "sglang"}
SMALL = {"vllm": {"num_gpu_blocks_override": 900}, "sglang": {"max_total_tokens": 15_000}}
EXPERTS = {"data_parallel": 2, "model": "Qwen/Qwen3-VL-30B-A3B-Instruct"}


DRAFTS = {"speculative": {"method": "eagle3", "num_speculative_tokens": 3, "acceptance": 0.6}}
HOST = {"kv_tiers": [{"kind": "host", "bytes": 4e10}]}
LORA: dict[str, Any] = {"lora": {"max_loras": 2, "rank": 16}}
STAGES = {"pipeline_parallel": 2}
PAIRS = [{**STAGES, **HOST}, {**STAGES, **LORA}, {**DRAFTS, **HOST}, {**DRAFTS, **LORA}, {**HOST, **LORA}]
TOGETHER = [STAGES, DRAFTS, HOST, LORA, *PAIRS, {**DRAFTS, **HOST, **LORA}]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("extra", [{}, *TOGETHER])
def test_images_stand_beside_drafts_tiers_adapters_and_grammars(extra: dict[str, Any], engine: str, *, masked: bool) -> None:
    """Jumps are steps, nobody is lost, and a step's images take what they take alone."""
    own = {**extra, "engine": engine, "engine_args": SMALL[engine]}
    if extra.keys() >= LORA.keys() and engine == "sglang":
        own["lora"] = {"rank": 16}
        own["engine_args"] = {**SMALL[engine], "max_loras_per_batch": 2}
    load = {**LOAD, "images": {"tokens": {"kind": "uniform", "low": 64, "high": 600}, "count": 2, "share": 0.6}}
    load |= {"shared_prefix": {"groups": 3, "tokens": 512}, "arrivals": {"kind": "poisson", "rate": 12}}
    load |= {"adapters": {"count": 4}} if "lora" in extra else {}
    load |= {"structured_output": 0.5} if masked else {}
    found = [simulate(pool(workload=load, **own), aggregate=jump).result for jump in (True, False)]
    assert json.dumps(found[0]["metrics"]) == json.dumps(found[1]["metrics"])
    assert found[0]["totals"]["completed"] == LOAD["requests"]
    assert encode_s(2048, 300, **own) == pytest.approx(encode_s(2048, 300, engine=engine), rel=1e-9)


@pytest.mark.parametrize("extra", [{}, EXPERTS, {"hardware": "b200-sxm-180gb"}, SGLANG, {**SGLANG, "hardware": "l40s-48gb"}])
def test_jumping_equals_stepping(extra: dict[str, Any]) -> None:
    own = dict(extra)
    model = own.pop("model", QWEN)
    if own.pop("data_parallel", 0):
        own["engine_args"] = {"data_parallel_size": 2, "enable_expert_parallel": True}
        own["expert_parallel"] = True
    load = {**LOAD, "images": {"tokens": {"kind": "uniform", "low": 64, "high": 1024}, "count": 2, "share": 0.6}}
    found = [simulate(pool(model, load, **own), aggregate=jump).result for jump in (True, False)]
    for result in found:
        result.pop("manifest", None)
    assert json.dumps(found[0]["metrics"]) == json.dumps(found[1]["metrics"])


# -- load ---------------------------------------------------------------------------------------------------


def test_images_stand_last_in_their_prompts() -> None:
    assert image_places(100, 3, 30) == ((70, 80), (80, 90), (90, 100))
    assert image_places(100, 0, 0) == ()


def test_a_share_of_the_prompts_holds_as_many_images_as_fit() -> None:
    spec = pool(workload={**LOAD, "prompt_tokens": 500, "images": {"tokens": 200, "count": 3, "share": 0.5}, "requests": 2000})
    load = build_workload(spec.workload, seed=1, base_dir=Path())
    assert load.images is not None
    assert np.isin(load.images[:, 0], [0, 2]).all()
    assert (load.images[:, 1] == 200 * load.images[:, 0]).all()
    assert (load.images[:, 0] > 0).mean() == pytest.approx(0.5, abs=0.04)
    assert any("images are left out" in text for text in load.warnings)


def test_a_trace_says_which_prompts_hold_images(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens,image_count,image_tokens\n0,900,10,2,800\n1,300,10,0,0\n")
    wanted = pool(workload={"trace": str(trace), "images": "recorded"})
    load = build_workload(wanted.workload, seed=1, base_dir=Path())
    assert load.images is not None
    assert load.images.tolist() == [[2, 800], [0, 0]]
    result = simulate(wanted).result
    assert result["totals"]["completed"] == 2
    text = build_workload(pool(workload={"trace": str(trace)}).workload, seed=1, base_dir=Path())
    assert text.images is None
    assert any("taken for text" in warning for warning in text.warnings)
    trace.write_text("arrival_s,prompt_tokens,output_tokens,image_tokens\n0,900,10,900\n")
    with pytest.raises(InputError, match="part of prompt_tokens"):
        build_workload(wanted.workload, seed=1, base_dir=Path())
    trace.write_text("arrival_s,prompt_tokens,output_tokens,image_count,image_tokens\n0,900,10,1,8\n1,900,10,-3,800\n")
    with pytest.raises(InputError, match="image_count is -3") as found:
        build_workload(wanted.workload, seed=1, base_dir=Path())
    assert "line 3" in str(found.value)
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,900,10\n")
    with pytest.raises(InputError, match="no column image_tokens"):
        build_workload(wanted.workload, seed=1, base_dir=Path())


@pytest.mark.parametrize(
    ("model", "deployment", "words"),
    [
        ("Qwen/Qwen3-8B", {}, "takes no images"),
        ("openbmb/MiniCPM-V-4_5", {}, "its config does not say"),
        (QWEN, {"engine_args": {"language_model_only": True}}, "leaves the vision tower out"),
        (QWEN, {"engine_args": {"limit_mm_per_prompt": "image=0"}}, "admits no image"),
        (QWEN, {"engine": "tgi"}, "not for tgi yet"),
        (QWEN, {"engine": "llama.cpp", "weights": "q4_k_m", "pipeline_parallel": 2}, "not for llama_cpp yet"),
        (QWEN, {"engine": "vllm@0.6.0"}, "before 0.8"),
    ],
)
def test_what_is_refused_says_why(model: str, deployment: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        prepare(pool(model, **deployment))
