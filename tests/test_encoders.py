"""Servers that only encode images: what requests wait for there, what they change for others, and what is refused."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.images import OnlyImages, WithImages
from engine_models.declaration import FrontEnd
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.image_batches import ImageBatches
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.prepared import Prepared
from simulator.report.perfetto import trace
from simulator.run import RunResult, run_prepared, simulate
from tests.effort import examples

QWEN = "Qwen/Qwen2.5-VL-7B-Instruct"
ALONE: dict[str, Any] = {"arrivals": {"kind": "batch"}, "output_tokens": 3, "requests": 1}
LOAD: dict[str, Any] = {"arrivals": {"kind": "poisson", "rate": 6}, "prompt_tokens": 1500, "output_tokens": 40, "requests": 60}
IMAGES = {"tokens": 500, "count": 2, "share": 0.7}


def scenario(
    engine: str = "vllm",
    encode: dict[str, Any] | None = None,
    others: list[dict[str, Any]] | None = None,
    load: dict[str, Any] | None = None,
    around: dict[str, Any] | None = None,
    **top: Any,
) -> Any:
    both = {"engine": engine, "hardware": "h100-sxm-80gb"}
    pools = [{"name": "towers", "role": "encode", **both, **(encode or {})}]
    pools += [{**both, **each} for each in others or [{"name": "language"}]]
    load = {**LOAD, "images": IMAGES} if load is None else load
    deployment = {"pools": pools, **(around or {})}
    return load_scenario({"model": QWEN, "deployment": deployment, "workload": load, "seed": 1, **top})


def columns(run: RunResult, names: tuple[str, ...] = ("first_token_s", "end_s", "first_scheduled_s")) -> list[Any]:
    assert isinstance(run.requests, dict)
    return [np.asarray(run.requests[name]) for name in names]


def column(run: RunResult, name: str) -> Any:
    return columns(run, (name,))[0]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_prompts_of_text_are_served_as_if_there_were_no_encode_pool(engine: str) -> None:
    others = [{"name": "language", "replicas": 2}]
    for router in ("round_robin", "least_requests"):
        beside, alone = (
            simulate(scenario(engine, {"replicas": n}, load=LOAD, others=others, around={"router": router})) for n in (1, 0)
        )
        for one, other in zip(columns(beside), columns(alone), strict=True):
            np.testing.assert_array_equal(one, other)
        for metric, found in alone.result["metrics"].items():
            assert beside.result["metrics"][metric] == found
        assert beside.result["totals"]["request_throughput"] == alone.result["totals"]["request_throughput"]
        assert "pool 'towers' computed nothing" in " ".join(beside.result["warnings"])
        assert beside.result["deployment"]["devices"] == alone.result["deployment"]["devices"] + 1
        assert beside.result["encoders"][0]["gpu_busy_fraction"] == 0.0


def free(prepared: Prepared) -> Prepared:
    """Encode servers without a front end."""
    found = tuple(replace(each, plan=replace(each.plan, front=FrontEnd())) for each in prepared.encoders)
    front = replace(prepared.plan.front, image_token_s=0.0)
    return replace(prepared, encoders=found, plan=replace(prepared.plan, front=front))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_encoding_that_takes_no_time_is_as_images_that_cost_nothing(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnlyImages, "step_s", lambda self, batches: (0.0, [0.0] * len(batches)))
    monkeypatch.setattr(OnlyImages, "host_s", lambda self, batch: 0.0)
    monkeypatch.setattr(WithImages, "encode_s", lambda self, encodes: 0.0)
    around = {"transfer": {"bytes_per_s": 1e15}}
    apart = run_prepared(free(prepare(scenario(engine, around=around))))
    together = run_prepared(free(prepare(scenario(engine, {"replicas": 0}))))
    for one, other in zip(columns(apart), columns(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_one_image_alone_takes_its_stages_one_after_the_other() -> None:
    load = {**ALONE, "prompt_tokens": 1500}
    around = {"transfer": {"bytes_per_s": 1e9, "latency_s": 0.25}}
    run = simulate(scenario(load={**load, "images": {"tokens": 1024}}, around=around))
    text = simulate(scenario(load=load))
    prepared = prepare(scenario())
    times = prepared.encoders[0].times()
    assert isinstance(times, OnlyImages)
    queue_ms, encode_ms, transfer_ms, ttft_ms = (
        float(column(run, name)[0]) for name in ("encode_queue_ms", "encode_ms", "encode_transfer_ms", "ttft_ms")
    )
    assert queue_ms >= 1024 * prepared.encoders[0].plan.front.image_token_s * 1e3
    assert encode_ms >= times.encode_s((1024,)) * 1e3
    arch = prepared.arch
    assert transfer_ms == pytest.approx((1024 * 2 * arch.hidden / 1e9 + 0.25) * 1e3, rel=1e-9)
    assert column(run, "embedding_bytes")[0] == 1024 * 2 * arch.hidden
    assert ttft_ms == pytest.approx(queue_ms + encode_ms + transfer_ms + float(column(text, "ttft_ms")[0]), rel=1e-9)
    parts = [run.result["metrics"][f"ttft_{part}_ms"]["mean"] for part in ("front", "queue", "launch", "kernel")]
    assert ttft_ms == pytest.approx(sum(parts) + queue_ms + encode_ms + transfer_ms, rel=1e-9)


@pytest.mark.parametrize("connector", ["mooncake", "zmq_to_scheduler", "zmq_to_tokenizer"])
def test_sglangs_images_come_over_the_network_or_as_quickly_as_zmq(connector: str) -> None:
    load = {**ALONE, "prompt_tokens": 3000, "images": {"tokens": 1024, "count": 2}}
    others = [{"name": "language", "tensor_parallel": 2}]
    run = simulate(scenario("sglang", others=others, load=load, around={"transfer": {"connector": connector}}))
    text = simulate(scenario("sglang", {"replicas": 0}, others, {**ALONE, "prompt_tokens": 3000}))
    names = ("encode_queue_ms", "encode_ms", "encode_transfer_ms", "ttft_ms")
    queue_ms, encode_ms, transfer_ms, ttft_ms = (float(column(run, name)[0]) for name in names)
    prepared = prepare(scenario("sglang"))
    image_bytes = 2048 * 2 * prepared.arch.hidden
    encoder = prepared.encoders[0].times()
    assert isinstance(encoder, OnlyImages)
    host_s = (25 + 55 / 2) * 1e-9 * 784 * 2048  # two threads load, one scales
    assert encode_ms == pytest.approx((encoder.encode_s((1024, 1024)) + host_s) * 1e3, rel=0.02)
    copies = 1 if connector == "zmq_to_tokenizer" else 2
    assert column(run, "embedding_bytes")[0] == copies * image_bytes
    if connector != "mooncake":
        rate = {"zmq_to_scheduler": 0.91e9, "zmq_to_tokenizer": 0.29e9}[connector]
        assert transfer_ms == pytest.approx(copies * image_bytes / rate * 1e3, rel=1e-6)
    assert ttft_ms == pytest.approx(queue_ms + encode_ms + transfer_ms + float(column(text, "ttft_ms")[0]), rel=1e-6)


def test_sglangs_encode_servers_take_eight_requests_at_a_time() -> None:
    scheduler = ImageBatches(8)
    seqs = [Sequence(number, 10, 1, 0.0) for number in range(11)]
    for seq in seqs:
        seq.images = ((0, 4), (4, 10))
        scheduler.add(seq)
    batch = scheduler.schedule(1.0)
    assert batch is not None
    assert (batch.tokens, batch.encodes, batch.finishing) == (80, (4, 6) * 8, seqs[:8])
    assert scheduler.schedule(1.0) is None
    assert scheduler.settle(batch) == seqs[:8]
    last = scheduler.schedule(2.0)
    assert last is not None
    assert last.finishing == seqs[8:]
    assert [seq.first_scheduled_s for seq in seqs] == [1.0] * 8 + [2.0] * 3


def test_images_are_spread_evenly_where_an_engine_does() -> None:
    load = {**ALONE, "requests": 50, "prompt_tokens": 3000, "images": {"tokens": 500, "count": 5}}
    run = simulate(scenario("sglang", {"replicas": 4}, load=load))
    (pool,) = run.result["encoders"]
    busy = np.asarray(run.timeline["prefill_tokens"]).reshape(5, -1).sum(axis=1)[1:]
    assert pool["image_tokens"] == busy.sum() == 50 * 2500
    assert busy.min() > 0.15 * busy.sum()


def test_images_of_a_prompt_are_encoded_by_several_servers_at_once() -> None:
    load = {**ALONE, "prompt_tokens": 9000, "images": {"tokens": 4000, "count": 2}}
    one, two = (simulate(scenario(load=load, encode={"replicas": n})) for n in (1, 2))
    assert column(two, "encode_ms")[0] < 0.7 * column(one, "encode_ms")[0]
    assert column(two, "embedding_bytes")[0] == column(one, "embedding_bytes")[0]


def test_more_api_servers_of_an_encode_server_scale_images_side_by_side() -> None:
    load = {**LOAD, "arrivals": {"kind": "batch"}, "requests": 4, "prompt_tokens": 2000, "images": {"tokens": 1500}}
    runs = [simulate(scenario(load=load, encode={"engine_args": {"api_server_count": n}})) for n in (1, 2, 4)]
    own_s = 1500 * prepare(scenario()).encoders[0].plan.front.image_token_s
    for run, ends in zip(runs, ([1, 2, 3, 4], [1, 1, 2, 2], [1, 1, 1, 1]), strict=True):
        queue_s = np.sort(column(run, "encode_queue_ms")) / 1e3
        assert (queue_s - queue_s[0] < np.array(ends) * own_s).all()
        assert (queue_s - queue_s[0] >= (np.array(ends) - 1) * own_s * 0.99).all()
    assert "in each of 4 threads" in " ".join(runs[2].result["assumptions"])


def test_transfers_to_one_server_share_its_link() -> None:
    load = {**ALONE, "prompt_tokens": 5000, "images": {"tokens": 2000, "count": 2}}
    around = {"transfer": {"bytes_per_s": 1e6}}
    one, two = (simulate(scenario(load=load, encode={"replicas": n}, around=around)) for n in (1, 2))
    whole_ms = 4000 * 2 * prepare(scenario()).arch.hidden / 1e6 * 1e3
    for run in (one, two):
        assert column(run, "encode_transfer_ms")[0] == pytest.approx(whole_ms, rel=1e-6)


def test_a_step_reads_the_file_of_an_image_where_the_connector_keeps_files() -> None:
    load = {**ALONE, "prompt_tokens": 1500, "images": {"tokens": 1000}}
    own = {"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_producer"}}
    reads = {"ec_transfer_config": {"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}}
    run = simulate(scenario(load=load, encode={"engine_args": own}, others=[{"name": "language", "engine_args": reads}]))
    text = simulate(scenario(load={key: value for key, value in load.items() if key != "images"}))
    assert column(run, "encode_transfer_ms")[0] == 0.0
    longer = run.result["metrics"]["prefill_ms"]["mean"] - text.result["metrics"]["prefill_ms"]["mean"]
    assert longer == pytest.approx(1000 * 2 * prepare(scenario()).arch.hidden / 5e9 * 1e3, rel=1e-6)


def test_devices_and_cost_count_the_encode_pool() -> None:
    run = simulate(scenario(encode={"replicas": 3}))
    assert run.result["deployment"]["devices"] == 4
    alone = simulate(scenario(encode={"replicas": 0}))
    assert run.result["cost"]["usd_per_hour"] == pytest.approx(4 * alone.result["cost"]["usd_per_hour"])
    (pool,) = run.result["encoders"]
    assert pool["devices"] == 3
    assert 0 < pool["gpu_busy_fraction"] < 1
    assert set(np.asarray(run.timeline["instance_id"]).tolist()) == {0, 1, 2, 3}


def test_a_language_server_has_no_tower_to_wait_for() -> None:
    apart, together = simulate(scenario()), simulate(scenario(encode={"replicas": 0}))
    assert apart.result["metrics"]["itl_ms"]["max"] < together.result["metrics"]["itl_ms"]["max"]


PAIR = [{"name": "first", "role": "prefill"}, {"name": "second", "role": "decode", "replicas": 2}]


PAIRS = [("vllm", "NixlConnector"), ("vllm", "NixlPushConnector"), ("vllm", "MooncakeConnector"), ("sglang", "mooncake")]


@pytest.mark.parametrize(("engine", "connector"), PAIRS)
def test_a_prefill_server_that_encodes_in_no_time_serves_as_if_images_were_text(
    engine: str, connector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WithImages, "encode_s", lambda self, encodes: 0.0)
    monkeypatch.setattr("engine_models.images.PIXEL_S", 0.0)
    around = {"transfer": {"connector": connector}}
    images, text = (
        simulate(scenario(engine, {"replicas": 0}, PAIR, load, around))
        for load in ({**LOAD, "images": IMAGES}, LOAD)
    )
    for one, other in zip(columns(images), columns(text), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("engine", "connector"), PAIRS)
def test_encoding_before_a_pair_that_takes_no_time_changes_nothing(
    engine: str, connector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OnlyImages, "step_s", lambda self, batches: (0.0, [0.0] * len(batches)))
    monkeypatch.setattr(OnlyImages, "host_s", lambda self, batch: 0.0)
    monkeypatch.setattr(WithImages, "encode_s", lambda self, encodes: 0.0)
    monkeypatch.setattr("engine_models.images.PIXEL_S", 0.0)
    around = {"transfer": [{"from": "towers", "bytes_per_s": 1e15}, {"connector": connector}]}
    apart = run_prepared(free(prepare(scenario(engine, others=PAIR, around=around))))
    together = simulate(scenario(engine, {"replicas": 0}, PAIR, around={"transfer": {"connector": connector}}))
    for one, other in zip(columns(apart), columns(together), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)


def test_a_prefill_server_that_is_lost_computes_images_again() -> None:
    events = [{"at_s": 2, "pool": "first", "replica": 0, "kind": "gpu", "for_s": 3}]
    around = {"failures": {"events": events}}
    client = {"retries": {"attempts": 5}}
    run = simulate(scenario(encode={"replicas": 0}, others=PAIR, around=around, client=client))
    totals = run.result["totals"]
    assert totals["completed"] + totals["rejected"] + totals["failed"] + totals["unfinished"] == totals["offered"]
    assert totals["completed"] > 0
    assert max(column(run, "attempts")) > 1


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("others", [[{"name": "language"}], PAIR])
def test_adapters_stand_beside_images_that_others_encode(engine: str, others: list[dict[str, Any]]) -> None:
    adapters = {"lora": {"max_loras": 2, "rank": 8}}
    load = {**LOAD, "images": IMAGES, "adapters": {"count": 3}}
    for encode in (0, 1):
        run = simulate(scenario(engine, {"replicas": encode}, [{**each, **adapters} for each in others], load))
        assert run.result["totals"]["completed"] == 60


@settings(max_examples=examples(15), deadline=None)
@given(
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from(["round_robin", "least_requests", "random"]),
    st.floats(0.5, 40),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from([("vllm", ""), ("sglang", ""), *PAIRS]),
)
def test_every_request_is_accounted_for(
    encode: int, language: int, router: str, rate: float, count: int, drain_s: int, served: tuple[str, str]
) -> None:
    engine, connector = served
    load = {
        "arrivals": {"kind": "poisson", "rate": rate},
        "prompt_tokens": {"kind": "uniform", "low": 1, "high": 3000},
        "output_tokens": {"kind": "uniform", "low": 1, "high": 50},
        "images": {"tokens": {"kind": "uniform", "low": 1, "high": 900}, "count": count, "share": 0.6},
        "requests": 40,
        "drain_s": drain_s,
    }
    others = [{"name": "language", "replicas": language}]
    around: dict[str, Any] = {"router": router}
    if connector:
        others = [{"name": "first", "role": "prefill", "replicas": language}, PAIR[1]]
        around["transfer"] = {"connector": connector}
    asked = scenario(engine, {"replicas": encode}, others, load, around)
    run, stepped = simulate(asked), simulate(asked, aggregate=False)
    totals = run.result["totals"]
    assert totals["completed"] + totals["rejected"] + totals["failed"] + totals["unfinished"] == totals["offered"] == 40
    for one, other in zip(columns(run), columns(stepped), strict=True):
        np.testing.assert_array_equal(one, other)
    if not encode:
        return
    sent, begun, encoded, here = columns(run, ("encode_start_s", "encode_queue_ms", "encode_end_s", "embeddings_end_s"))
    assert run.raw is not None
    finished = run.raw.status == 0
    there = ~np.isnan(sent)
    assert (begun[finished & there] >= 0).all()
    assert (encoded[finished & there] > sent[finished & there]).all()
    assert (here[finished & there] >= encoded[finished & there]).all()
    assert (run.raw.engine_arrival_s[finished & there] >= here[finished & there]).all()


COMMANDS = {
    "vllm": (
        "vllm serve Qwen/Qwen2.5-VL-7B-Instruct --gpu-memory-utilization 0.01 --port 19534 --mm-encoder-only --max-num-seqs 128 "
        "--enable-request-id-headers --no-enable-prefix-caching --max-num-batched-tokens 114688 --ec-transfer-config "
        """'{"ec_connector": "ECExampleConnector", "ec_role": "ec_producer"}'""",
        "vllm serve Qwen/Qwen2.5-VL-7B-Instruct --gpu-memory-utilization 0.7 --port 19535 --max-num-seqs 128 "
        """--ec-transfer-config '{"ec_connector": "ECExampleConnector", "ec_role": "ec_consumer"}'""",
        "ECExampleConnector",
    ),
    "sglang": (
        "python -m sglang.launch_server --model-path Qwen/Qwen2.5-VL-7B-Instruct --encoder-only "
        "--encoder-transfer-backend zmq_to_tokenizer --port 30000",
        "python -m sglang.launch_server --model-path Qwen/Qwen2.5-VL-7B-Instruct --language-only --encoder-urls "
        "http://127.0.0.1:30000 http://127.0.0.1:30001 --encoder-transfer-backend zmq_to_tokenizer --port 30002",
        "zmq_to_tokenizer",
    ),
}


@pytest.mark.parametrize("engine", COMMANDS)
def test_the_commands_of_both_servers_read_as_two_pools(engine: str) -> None:
    encodes, answers, connector = COMMANDS[engine]
    pools = [{"engine": engine, "hardware": "h100-sxm-80gb", "engine_args": text} for text in (encodes, answers)]
    load = {**LOAD, "images": IMAGES}
    prepared = prepare(load_scenario({"model": QWEN, "deployment": {"pools": pools}, "workload": load}))
    assert [each.pool.role for each in (*prepared.encoders, prepared)] == ["encode", "mixed"]
    assert prepared.plan.embeddings is not None
    assert prepared.plan.embeddings.connector == connector
    with pytest.raises(InputError, match="starts a server that only encodes images"):
        load_scenario({"model": QWEN, "deployment": pools[0], "workload": load})


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"encode": {"kv_tiers": [{"kind": "host", "bytes": 1e9}]}}, "`kv_tiers` of a pool that only encodes"),
        ({"encode": {"lora": {"max_loras": 1, "rank": 8}}}, "`lora` of a pool that only encodes"),
        ({"encode": {"tensor_parallel": 2}}, "ECMooncakeConnector sends from servers of one device"),
        ({"encode": {"engine": "vllm@0.19.1"}}, "modelled for vLLM 0.33 on"),
        ({"encode": {"engine_args": {"ec_transfer_config": {"ec_connector": "ECCPUConnector"}}}}, "ECCPUConnector are not mo"),
        ({"encode": {"engine_args": {"ec_transfer_config": {"ec_role": "ec_consumer"}}}}, "ec_role ec_consumer is not that"),
        ({"others": [{"name": "language", "replicas": 0}]}, "no pool that answers has any"),
        ({"around": {"failures": {"mtbf_h": 1, "of": "replica", "repair_s": 10}}}, "`failures` beside a pool that encodes"),
        ({"client": {"timeout_s": 3}, "others": PAIR}, "clients that give up"),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct"}, "takes no images"),
        (
            {"engine": "sglang", "encode": {"replicas": 0}, "others": [{"engine_args": {"language_only": True}}]},
            "has no tower: others have to encode",
        ),
        ({"encode": {"engine_args": {"cpu_offload_gb": 1}}}, "cpu_offload_gb of a server that only encodes"),
        ({"engine": "sglang", "encode": {"engine_args": {"cpu_offload_gb": 1}}}, "cpu_offload_gb of a server that only encodes"),
        ({"encode": {"engine_args": {"decode_context_parallel_size": 2}}}, "decode_context_parallel_size of a server that"),
        ({"engine": "sglang", "encode": {"pipeline_parallel": 2}}, "pipeline_parallel of a server that only encodes"),
        ({"encode": {"engine_args": {"ec_transfer_config": {"ec_buffer_size": "lots"}}}}, "ec_buffer_size` must be a number"),
        ({"encode": {"engine_args": {"ec_transfer_config": {"ec_buffer_size": -1}}}}, "ec_buffer_size"),
        ({"encode": {"engine_args": {"ec_transfer_config": {"ec_buffer_size": 1e12}}}}, "the vision tower of .* does not fit"),
        ({"encode": {"engine_args": {"ec_transfer_config": "[1]"}}}, "ec_transfer_config` must be a JSON object"),
        ({"engine": "sglang@0.5.9"}, "modelled for SGLang 0.5.14 on"),
        ({"engine": "sglang", "around": {"transfer": {"connector": "nixl"}}}, "no encoded images over nixl"),
        ({"encode": {"engine": "sglang"}}, "engine sglang and vllm"),
        ({"engine": "tgi", "load": LOAD}, "a pool that encodes images is modelled for vLLM, SGLang"),
        ({"around": {"transfer": {"connector": "ECCPUConnector"}}}, "ECCPUConnector are not modelled"),
        ({"others": PAIR, "around": {"router": {"system": "dynamo", "conditional_disagg_enabled": True}}}, "decode servers that"),
    ],
)
def test_what_is_not_modelled_is_refused_in_words(changed: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, InfeasibleError), match=words):
        prepare(scenario(**changed))


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_clients_give_up_while_their_images_are_encoded_sent_or_read(engine: str) -> None:
    load = {**LOAD, "arrivals": {"kind": "poisson", "rate": 20}, "output_tokens": 4, "images": {"tokens": 1200}}
    client = {"timeout_s": 1.0, "retries": {"attempts": 2, "backoff_s": 0.2, "on": ["timeout"]}}
    around = {"transfer": {"bytes_per_s": 5e7}}
    run, stepped = (simulate(scenario(engine, load=load, client=client, around=around), aggregate=jump) for jump in (True, False))
    totals = run.result["totals"]
    assert totals["completed"] + totals["failed"] == 60
    assert totals["completed"] > 0
    assert totals["failed"] > 0
    assert column(run, "attempts").max() > 1
    for one, other in zip(columns(run), columns(stepped), strict=True):
        np.testing.assert_array_equal(one, other)
    assert max(column(run, "ttft_ms")[column(run, "attempts") == 1]) < 1100


def test_a_full_encode_pool_is_named_as_what_the_load_waits_for() -> None:
    load = {key: value for key, value in LOAD.items() if key != "requests"}
    load |= {"arrivals": {"kind": "poisson", "rate": 25}, "duration": 60, "images": {"tokens": 1200}}
    (said,) = (text for text in simulate(scenario(load=load)).result["warnings"] if text.startswith("overload"))
    assert said.endswith("most of the wait is for encode pool 'towers'")
    pair = [{**each, "replicas": 2} for each in PAIR]
    (said,) = (text for text in simulate(scenario(load=load, others=pair)).result["warnings"] if text.startswith("overload"))
    assert said.endswith("most of the wait is for encode pool 'towers'")


def test_stages_of_encoding_stand_in_the_trace() -> None:
    run = simulate(scenario(load={**ALONE, "prompt_tokens": 1500, "images": {"tokens": 1024}}))
    data, _ = trace(run.raw, ["r0"], run.pools)
    events = json.loads(gzip.decompress(data))["traceEvents"]
    stages = [event for event in events if event.get("cat") == "request" and event["ph"] == "b"]
    names = ["r0", "queue", "encode queue", "encode", "embeddings", "queue", "prefill", "decode"]
    assert [event["name"] for event in stages] == names
    starts = [event["ts"] for event in stages[1:]]
    assert starts == sorted(starts)
