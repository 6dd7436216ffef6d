"""Servers that only encode images: what requests wait for there, what they change for others, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.images import OnlyImages, WithImages
from engine_models.declaration import FrontEnd
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.prepared import Prepared
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


def test_prompts_of_text_are_served_as_if_there_were_no_encode_pool() -> None:
    for router in ("round_robin", "least_requests"):
        beside = simulate(scenario(load=LOAD, others=[{"name": "language", "replicas": 2}], around={"router": router}))
        alone = simulate(
            scenario(encode={"replicas": 0}, load=LOAD, others=[{"name": "language", "replicas": 2}], around={"router": router})
        )
        for one, other in zip(columns(beside), columns(alone), strict=True):
            np.testing.assert_array_equal(one, other)
        ours, theirs = (run.result["metrics"]["ttft_ms"] for run in (beside, alone))
        assert {**ours, "interval": None} == {**theirs, "interval": None}
        assert beside.result["deployment"]["devices"] == alone.result["deployment"]["devices"] + 1
        assert beside.result["encoders"][0]["gpu_busy_fraction"] == 0.0


def free(prepared: Prepared) -> Prepared:
    """Encode servers without a front end."""
    found = tuple(replace(each, plan=replace(each.plan, front=FrontEnd())) for each in prepared.encoders)
    front = replace(prepared.plan.front, image_token_s=0.0)
    return replace(prepared, encoders=found, plan=replace(prepared.plan, front=front))


def test_encoding_that_takes_no_time_is_as_images_that_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnlyImages, "step_s", lambda self, batches: (0.0, [0.0] * len(batches)))
    monkeypatch.setattr(OnlyImages, "host_s", lambda self, batch: 0.0)
    monkeypatch.setattr(WithImages, "encode_s", lambda self, encodes: 0.0)
    around = {"transfer": {"bytes_per_s": 1e15}}
    apart = run_prepared(free(prepare(scenario(around=around))))
    together = run_prepared(free(prepare(scenario(encode={"replicas": 0}))))
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


def test_images_of_a_prompt_are_encoded_by_several_servers_at_once() -> None:
    load = {**ALONE, "prompt_tokens": 9000, "images": {"tokens": 4000, "count": 2}}
    one, two = (simulate(scenario(load=load, encode={"replicas": n})) for n in (1, 2))
    assert column(two, "encode_ms")[0] < 0.7 * column(one, "encode_ms")[0]
    assert column(two, "embedding_bytes")[0] == column(one, "embedding_bytes")[0]


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


@pytest.mark.parametrize("connector", ["NixlConnector", "NixlPushConnector", "MooncakeConnector"])
def test_a_prefill_server_that_encodes_in_no_time_serves_as_if_images_were_text(
    connector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(WithImages, "encode_s", lambda self, encodes: 0.0)
    monkeypatch.setattr("engine_models.images.PIXEL_S", 0.0)
    around = {"transfer": {"connector": connector}}
    images, text = (
        simulate(scenario(load=load, encode={"replicas": 0}, others=PAIR, around=around))
        for load in ({**LOAD, "images": IMAGES}, LOAD)
    )
    for one, other in zip(columns(images), columns(text), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("connector", ["NixlConnector", "MooncakeConnector"])
def test_encoding_before_a_pair_that_takes_no_time_changes_nothing(connector: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnlyImages, "step_s", lambda self, batches: (0.0, [0.0] * len(batches)))
    monkeypatch.setattr(OnlyImages, "host_s", lambda self, batch: 0.0)
    monkeypatch.setattr(WithImages, "encode_s", lambda self, encodes: 0.0)
    monkeypatch.setattr("engine_models.images.PIXEL_S", 0.0)
    around = {"transfer": [{"from": "towers", "bytes_per_s": 1e15}, {"connector": connector}]}
    apart = run_prepared(free(prepare(scenario(others=PAIR, around=around))))
    together = simulate(scenario(encode={"replicas": 0}, others=PAIR, around={"transfer": {"connector": connector}}))
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


@settings(max_examples=examples(15), deadline=None)
@given(
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from(["round_robin", "least_requests", "random"]),
    st.floats(0.5, 40),
    st.integers(1, 4),
    st.integers(0, 3),
    st.sampled_from(["", "NixlConnector", "NixlPushConnector", "MooncakeConnector"]),
)
def test_every_request_is_accounted_for(
    encode: int, language: int, router: str, rate: float, count: int, drain_s: int, connector: str
) -> None:
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
    asked = scenario(load=load, encode={"replicas": encode}, others=others, around=around)
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
        ({"client": {"timeout_s": 3}}, "clients that give up"),
        ({"model": "meta-llama/Llama-3.1-8B-Instruct"}, "takes no images"),
        ({"around": {"transfer": {"connector": "ECCPUConnector"}}}, "ECCPUConnector are not modelled"),
        ({"others": [{"name": "language", "lora": {"max_loras": 1, "rank": 8}}]}, "images with LoRA adapters"),
        ({"others": PAIR, "around": {"router": {"system": "dynamo", "conditional_disagg_enabled": True}}}, "decode servers that"),
    ],
)
def test_what_is_not_modelled_is_refused_in_words(changed: dict[str, Any], words: str) -> None:
    with pytest.raises((InputError, InfeasibleError), match=words):
        prepare(scenario(**changed))
