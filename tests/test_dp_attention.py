"""Data-parallel attention from a scenario: memory, ranks, devices and price, engines' own flags, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine_models.cost.adapters import AdapterTimes
from engine_models.cost.terms import Shard
from engine_models.parts.batch import AdapterUse, Batch
from hardware_profiles.errors import InputError
from simulator import load_scenario, simulate
from simulator.cli.check import facts
from simulator.cli.summary import summary
from simulator.prepare import Prepared, prepare
from simulator.run import run_prepared
from simulator.validation.suite import pool_of

WORKLOAD = {
    "arrivals": {"kind": "poisson", "rate": 20},
    "prompt_tokens": {"kind": "lognormal", "mean": 400, "p99": 2000},
    "output_tokens": {"kind": "lognormal", "mean": 40, "p99": 150},
    "requests": 120,
}
MIXTRAL = {
    "engine": "vllm",
    "hardware": "h100-sxm-80gb",
    "tensor_parallel": 1,
    "data_parallel": 4,
    "expert_parallel": 4,
}


def scenario(model: str, deployment: dict[str, Any], **more: Any) -> Any:
    return load_scenario({"model": model, "deployment": deployment, "workload": WORKLOAD, **more})


def prepared(model: str, **deployment: Any) -> Prepared:
    return prepare(scenario(model, deployment))


def mixtral(**changes: Any) -> Prepared:
    return prepared("mistralai/Mixtral-8x7B-v0.1", **{**MIXTRAL, **changes})


def r1(**changes: Any) -> Prepared:
    base = {
        "engine": "vllm",
        "hardware": "h200-sxm-141gb",
        "tensor_parallel": 1,
        "data_parallel": 8,
        "expert_parallel": 8,
    }
    return prepared("deepseek-ai/DeepSeek-R1", **{**base, "engine_args": {"max_model_len": 16384}, **changes})


def test_memory_of_deepseek_r1_on_eight_h200_by_hand() -> None:
    """Experts are spread over eight devices; attention, shared experts, embeddings and the latent cache are whole on each."""
    hidden, layers, heads = 7168, 61, 128
    experts = 58 * 256 // 8 * 3 * hidden * 2048
    shared, dense = 58 * 3 * hidden * 2048, 3 * 3 * hidden * 18432
    attention = hidden * 1536 + 1536 * heads * 192 + hidden * 576 + 512 * heads * 256 + heads * 128 * hidden
    in_fp8 = experts + shared + dense + layers * attention
    in_bf16 = 2 * 129280 * hidden + 58 * hidden * 256
    absorbed = layers * 512 * heads * 256
    memory = r1().plan.memory
    assert memory.bytes_of("weight") == pytest.approx(in_fp8 + 2 * (in_bf16 + absorbed), rel=1e-3)
    assert 102.5e9 < memory.bytes_of("weight") < 103.3e9
    assert memory.kv_bytes_per_token == layers * 576 * 2
    tokens, devices, chosen = 8192, 8, 8
    gathered = 2 * devices * hidden
    width = chosen * (hidden + 2048) + 3 * 2048  # outputs of the chosen experts, their products; the shared one
    penalties = 1024 * 129280 * 4.125  # states of as many rows
    assert memory.bytes_of("activation") == tokens * 2 * (width + 4 * hidden + gathered) + penalties
    left = (
        memory.usable_bytes
        - memory.bytes_of("weight")
        - memory.bytes_of("activation")
        - memory.bytes_of("other")
        - memory.bytes_of("graph")
    )
    assert memory.kv_bytes == left
    assert 26e9 < left < 29e9  # between devices 1.85 GiB for collectives, 1.5 GB for graphs of 61 layers


def test_tensor_parallelism_holds_the_latent_cache_once_and_data_parallelism_eight_times() -> None:
    whole = r1(tensor_parallel=8, data_parallel=1, expert_parallel=8)
    split = r1()
    assert whole.devices == split.devices == 8
    assert whole.ranks == 1
    assert split.ranks == 8
    assert split.plan.limits.kv_tokens * 8 > 4 * whole.plan.limits.kv_tokens


def test_devices_price_and_deployment_count_every_rank() -> None:
    four, eight = mixtral(), mixtral(replicas=2)
    assert (four.replicas, four.ranks, four.devices) == (1, 4, 4)
    assert (eight.replicas, eight.ranks, eight.devices) == (2, 4, 8)
    run = simulate(scenario("mistralai/Mixtral-8x7B-v0.1", MIXTRAL, cost={"usd_per_gpu_hour": 2.0}))
    assert run.result["deployment"]["devices"] == 4
    assert run.result["deployment"]["data_parallel"] == 4
    assert run.result["cost"]["usd_per_hour"] == pytest.approx(8.0)
    assert run.result["totals"]["completed"] == 120
    assert sorted(set(run.requests["instance_id"].tolist())) == [0, 1, 2, 3]
    assert any("data-parallel attention: 4 ranks" in text for text in run.manifest["assumptions"])
    assert any("data-parallel attention" in axis for axis in run.result["extrapolation"]["axes"])
    text = summary(run.result, run.manifest)
    assert "(TP 1 x DP 4)" in text
    assert "a rank" in text


def test_check_counts_tokens_of_a_replica_and_of_a_rank() -> None:
    report = facts(mixtral())
    assert report["kv_tokens_per_replica"] == 4 * report["kv_tokens_per_rank"]
    assert "kv_tokens_per_rank" not in facts(mixtral(data_parallel=1, tensor_parallel=4))


def test_one_data_parallel_rank_is_no_data_parallelism() -> None:
    deployment = {**MIXTRAL, "tensor_parallel": 4, "expert_parallel": 1}
    stated = simulate(scenario("mistralai/Mixtral-8x7B-v0.1", {**deployment, "data_parallel": 1}))
    del deployment["data_parallel"]
    left_out = simulate(scenario("mistralai/Mixtral-8x7B-v0.1", deployment))
    for result in (stated.result, left_out.result):
        result["run_id"] = ""
    assert stated.result == left_out.result
    assert "data_parallel" not in stated.result["deployment"]


def test_dense_models_are_copied() -> None:
    copies = prepared(
        "meta-llama/Llama-3.1-8B", engine="vllm", hardware="h100-sxm-80gb", data_parallel=3, replicas=2
    )
    assert (copies.replicas, copies.ranks, copies.devices) == (6, 1, 6)


def test_vllm_shares_experts_without_expert_parallelism_too() -> None:
    """The width of each expert is then split over all ranks, so both hold the same share of the experts."""
    spread, split = mixtral(), mixtral(expert_parallel=False)
    assert split.ranks == 4
    assert split.plan.memory.bytes_of("weight") == pytest.approx(spread.plan.memory.bytes_of("weight"), rel=1e-3)


def test_sglang_shares_experts_under_dp_attention_alone() -> None:
    sglang = {
        **MIXTRAL,
        "engine": "sglang",
        "expert_parallel": False,
        "tensor_parallel": 2,
        "data_parallel": 2,
    }
    copies = mixtral(**sglang)
    assert (copies.replicas, copies.ranks, copies.devices) == (2, 1, 4)
    shared = mixtral(**sglang, engine_args={"enable_dp_attention": True})
    assert (shared.replicas, shared.ranks, shared.devices) == (1, 2, 4)
    assert mixtral(**{**sglang, "expert_parallel": 4}).ranks == 2
    assert shared.plan.executor.rank_router == "round_robin"
    assert mixtral().plan.executor.rank_router == "least_loaded"


def test_sglang_splits_dense_layers_and_lm_head_over_all_ranks() -> None:
    """Attention and embeddings are whole on every rank, dense MLPs, shared experts and the LM head an eighth, as the experts."""
    hidden = 7168
    sglang = r1(
        engine="sglang", engine_args={"context_length": 16384, "enable_dp_attention": True}
    ).plan.memory
    split = 58 * 3 * hidden * 2048 + 3 * 3 * hidden * 18432 + 2 * 129280 * hidden
    vllm = r1().plan.memory
    assert vllm.bytes_of("weight") - sglang.bytes_of("weight") == pytest.approx(split * 7 / 8, rel=1e-3)


def test_sglang_divides_its_limits_among_the_ranks() -> None:
    flags = {"enable_dp_attention": True, "max_running_requests": 256, "chunked_prefill_size": 8192}
    rules = mixtral(engine="sglang", engine_args=flags).plan.scheduler("jump").rules
    assert rules.max_running_requests == 64
    assert rules.chunked_prefill_size == 2048
    assert rules.schedule_conservativeness == pytest.approx(0.3)


@pytest.mark.parametrize("typed", [{}, {"tensor_parallel": 1, "data_parallel": 8}])
def test_the_ranks_of_sglangs_command_are_those_of_all(typed: dict[str, int]) -> None:
    command = (
        "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp-size 8 --dp-size 8 "
        "--enable-dp-attention --ep-size 8 --context-length 16384"
    )
    found = prepared(
        "deepseek-ai/DeepSeek-R1", engine="sglang", hardware="h200-sxm-141gb", engine_args=command, **typed
    )
    pool = found.scenario.deployment.pools[0]
    assert (pool.tensor_parallel, pool.data_parallel, found.ranks, found.devices) == (1, 8, 8, 8)


def test_a_pasted_vllm_command_shares_experts_over_its_ranks() -> None:
    command = "vllm serve deepseek-ai/DeepSeek-R1 -dp 8 --enable-expert-parallel --max-model-len 16384"
    found = prepared("deepseek-ai/DeepSeek-R1", engine="vllm", hardware="h200-sxm-141gb", engine_args=command)
    assert (found.ranks, found.devices) == (8, 8)
    assert found.plan.memory.bytes_of("weight") == r1().plan.memory.bytes_of("weight")


def adapted(places: int = 4, adapters: int = 3, **changes: Any) -> Prepared:
    pool = {**MIXTRAL, "engine": "sglang", "engine_args": {"enable_dp_attention": True}, "lora": {"max_loras": places}, **changes}
    workload = {**WORKLOAD, "adapters": {"count": adapters}}
    return prepare(load_scenario({"model": "mistralai/Mixtral-8x7B-v0.1", "deployment": pool, "workload": workload}))


VLLMS: dict[str, Any] = {"engine": "vllm", "engine_args": {"max_model_len": 8192}, "expert_parallel": True}


@pytest.mark.parametrize("changes", [{}, VLLMS])
def test_ranks_with_adapters_wait_for_the_slowest_rank(changes: dict[str, Any]) -> None:
    """Each rank reads those of its own rows; the step is that of the rank which takes longest with them, and the experts."""
    found = adapted(**changes)
    times, none = found.times(), replace(found, plan=replace(found.plan, costs=replace(found.plan.costs, adapters=None))).times()

    def rows(number: int, use: AdapterUse | None = None) -> Batch:
        batch = Batch(0, number, number, 500 * number, tokens=number)
        batch.adapters = use
        return batch

    own = AdapterTimes(found.plan.costs.adapters, _shard(found), found.plan.costs.up_to)
    use = AdapterUse(2, 20, 0)
    plain_s = none.step_s([rows(20), rows(20)])[0]
    assert times.step_s([rows(20, use), rows(20)])[0] == pytest.approx(plain_s + own(rows(20, use)))
    assert times.step_s([rows(20, use), rows(20, use)])[0] == times.step_s([rows(20, use), rows(20)])[0]
    assert times.step_s([rows(2, AdapterUse(1, 1)), rows(200)])[0] == none.step_s([rows(2), rows(200)])[0]
    run_s = times.few_s([rows(20, use), rows(20)], 3)
    assert run_s[0] == times.step_s([rows(20, use), rows(20)])[0]


def _shard(found: Prepared) -> Shard:
    costs = found.plan.costs
    return Shard(costs.arch, found.kernels, costs.formats, costs.parallel, costs.terms)


def test_each_of_vllms_ranks_limits_the_adapters_of_its_own_rows() -> None:
    """With one place a rank no step of a rank names two; other ranks may name another at the same time. Jumps are steps."""
    found = adapted(places=1, adapters=3, **VLLMS)
    run, plain = run_prepared(found), run_prepared(found, aggregate=False)
    assert run.raw.end_s.tolist() == plain.raw.end_s.tolist()
    assert run.result["totals"]["completed"] == 120
    frame = run.requests_frame()
    ample = run_prepared(adapted(places=3, adapters=3, **VLLMS))
    assert frame["queue_ms"].mean() > ample.requests_frame()["queue_ms"].mean()


def test_adapters_of_ranks_are_pinned_and_leave_a_place_to_the_model() -> None:
    """`lora_manager.py` 378: of four places three may be pinned, and no other adapter is served (341)."""
    assert run_prepared(adapted()).result["totals"]["completed"] == 120
    with pytest.raises(InputError, match="name 4 adapters, and SGLang serves only the 3 that it has loaded"):
        adapted(adapters=4)
    with pytest.raises(InputError, match="where every rank is one device"):
        adapted(tensor_parallel=2, data_parallel=2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pipeline_parallel": 2}, "across pipeline stages"),
        ({"lora": {"max_loras": 2}, "expert_parallel": False}, "ranks that split each expert"),
        ({"lora": {"max_loras": 2}, "expert_parallel": True, "engine": "vllm@0.24.0"}, "before vLLM 0.33"),
        (
            {"lora": {"max_loras": 2}, "expert_parallel": True, "tensor_parallel": 2, "data_parallel": 2},
            "of several devices each",
        ),
        (
            {"lora": {"max_loras": 2, "fully_sharded_loras": True}, "expert_parallel": True},
            "no fully_sharded_loras beside expert parallelism",
        ),
        (
            {"lora": {"max_loras": 2}, "expert_parallel": True, "engine_args": {"all2all_backend": "deepep_low_latency"}},
            "no LoRA adapters beside all2all_backend deepep_low_latency",
        ),
    ],
)
def test_what_is_not_modelled_beside_it_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        mixtral(**changes)


@pytest.mark.parametrize(
    ("engine", "hardware", "command"),
    [
        (
            "vllm",
            "h200-sxm-141gb",
            "vllm serve deepseek-ai/DeepSeek-R1 -dp 8 --enable-expert-parallel --max-model-len 16384 "
            """--speculative-config '{"method": "deepseek_mtp", "num_speculative_tokens": 2}'""",
        ),
        (
            "sglang",
            "h200-sxm-141gb",
            "python -m sglang.launch_server --model-path deepseek-ai/DeepSeek-R1 --tp-size 8 --dp-size 8 --enable-dp-attention "
            "--ep-size 8 --context-length 16384 --speculative-algorithm NEXTN --speculative-num-steps 2 "
            "--speculative-eagle-topk 1 --speculative-num-draft-tokens 3",
        ),
        ("trtllm", "b200-sxm-180gb", ""),
    ],
)
def test_ranks_of_a_pasted_command_draft(engine: str, hardware: str, command: str) -> None:
    """A rank's share of the experts of the drafting layer, as many verifications as the acceptance says, nobody lost."""
    args: Any = command
    if engine == "trtllm":
        mtp = {"decoding_type": "MTP", "num_nextn_predict_layers": 2}
        args = {"tensor_parallel_size": 8, "moe_expert_parallel_size": 8, "enable_attention_dp": True, "speculative_config": mtp}
        args |= {"max_seq_len": 16384}
    deployment = {"engine": engine, "hardware": hardware, "engine_args": args, "speculative": {"acceptance_length": 2.2}}
    given = scenario("deepseek-ai/DeepSeek-R1", deployment)
    found = prepare(given)
    hidden, ranks = 7168, 8
    experts = 256 // ranks * 3 * hidden * 2048
    attention = hidden * 1536 + 1536 * 128 * 192 + hidden * 576 + 512 * 128 * 256 + 128 * 128 * hidden
    joins, absorbed, router = 2 * 2 * hidden * hidden, 2 * 512 * 128 * 256, 2 * hidden * 256
    by_hand = experts + 3 * hidden * 2048 + attention + joins + absorbed + router
    assert found.ranks == ranks
    assert found.plan.speculation is not None
    assert found.plan.speculation.weight_bytes() == pytest.approx(by_hand, rel=0.01)
    run = run_prepared(found)
    assert run.result["totals"]["completed"] == 120
    assert run.result["server"]["spec_decode_mean_acceptance_length"] == pytest.approx(2.2, abs=0.15)
    undrafted = {**deployment, "engine_args": _without_drafts(args), "speculative": None}
    plain = simulate(scenario("deepseek-ai/DeepSeek-R1", undrafted))
    assert run.result["metrics"]["tpot_ms"]["mean"] < plain.result["metrics"]["tpot_ms"]["mean"]


def _without_drafts(args: Any) -> Any:
    if isinstance(args, dict):
        return {key: value for key, value in args.items() if key != "speculative_config"}
    return args.partition("--speculative")[0]


def test_ranks_beyond_a_node_exchange_over_the_network() -> None:
    wide = mixtral(data_parallel=16, expert_parallel=8, hardware="h100-sxm-80gb")
    assert any("collectives over nodes of 8 devices" in text for text in wide.assumptions)


def test_an_uneven_flag_of_sglang_is_named() -> None:
    with pytest.raises(InputError, match="does not divide by data_parallel_size 3"):
        mixtral(
            engine="sglang",
            engine_args={"tensor_parallel_size": 4, "data_parallel_size": 3, "enable_dp_attention": True},
            data_parallel=1,
            expert_parallel=1,
        )


def test_a_streamed_run_is_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    held = simulate(scenario("mistralai/Mixtral-8x7B-v0.1", {**MIXTRAL, "replicas": 2}))
    monkeypatch.setattr("simulator.run.STREAM_ABOVE", 10)
    streamed = simulate(scenario("mistralai/Mixtral-8x7B-v0.1", {**MIXTRAL, "replicas": 2}))
    assert isinstance(streamed.requests, Path)
    frame, wanted = streamed.requests_frame(), held.requests_frame()
    assert frame["end_s"].tolist() == wanted["end_s"].tolist()
    assert frame["instance_id"].tolist() == wanted["instance_id"].tolist()


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"tp": 1, "dp": 8, "ep": 8}, {"tensor_parallel": 1, "data_parallel": 8, "expert_parallel": 8}),
        ({"tp": 2, "dp": 2, "source": "inference-sim/x"}, {"tensor_parallel": 2, "replicas": 2}),
        ({"tp": 2, "dp": 2, "mode": "agg (2 instances)"}, {"tensor_parallel": 2, "replicas": 2}),
    ],
)
def test_pool_of_a_measured_row(row: dict[str, Any], wanted: dict[str, int]) -> None:
    stated = {
        "id": "x",
        "engine": "vllm",
        "hardware": "H100-SXM-80GB",
        "model": "mistralai/Mixtral-8x7B-v0.1",
    }
    found = pool_of({**stated, **row})
    keys = ("tensor_parallel", "data_parallel", "expert_parallel", "replicas")
    assert {key: found[key] for key in keys if key in found} == wanted


def test_a_row_of_sglang_with_data_ranks_attends_in_parallel() -> None:
    row = {
        "id": "x",
        "engine": "sglang",
        "hardware": "H200",
        "model": "deepseek-ai/DeepSeek-R1",
        "tp": 1,
        "dp": 8,
        "ep": 8,
    }
    assert pool_of(row)["engine_args"]["enable_dp_attention"] is True


def test_a_stopped_run_accounts_for_every_request() -> None:
    """The stop comes while the ranks of one step are being processed: what they had not handed out is unfinished."""
    found = mixtral(replicas=2)
    ended = iter(range(1, 200))
    run = run_prepared(found, should_stop=lambda: next(ended) >= 50)
    totals = run.result["totals"]
    assert run.raw.stopped_at_s is not None
    assert totals["completed"] == 50
    assert totals["completed"] + totals["unfinished"] + totals["not_arrived"] + totals["rejected"] == 120
    assert run.manifest["partial"]


def test_a_limit_of_requests_is_that_of_all_ranks_together() -> None:
    at_once = {**WORKLOAD, "arrivals": {"kind": "batch"}}
    four = prepare(load_scenario({"model": "mistralai/Mixtral-8x7B-v0.1", "deployment": MIXTRAL, "workload": at_once}))
    front = replace(four.plan.front, inflight=10)
    totals = run_prepared(replace(four, plan=replace(four.plan, front=front))).result["totals"]
    assert (totals["completed"], totals["rejected"], totals["reasons"]) == (10, 110, {"shed_429": 110})
