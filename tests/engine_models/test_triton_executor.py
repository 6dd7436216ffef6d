"""Triton's TensorRT-LLM backend: how requests are handed over, who waits outside, what the repository says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine_models.engines.triton_drafts import drafts
from engine_models.engines.triton_repository import parse, read_repository
from engine_models.engines.trtllm_kernels import reads_by_head
from engine_models.memory.block_tree import BlockTree
from engine_models.model.architecture import load_architecture
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.memory_then_tokens import TwoPassRules
from engine_models.schedulers.memory_then_tokens_handed import Gathering, HandedTwoPassScheduler
from hardware_profiles.errors import InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import simulate
from simulator.validation.schedules import RecordedClock
from tests.engine_models.fed import Served

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
RULES = TwoPassRules(8, 1000, 500, overlap=False)
CLOCK = RecordedClock({"a": 0.001, "b": 0.0, "c": 0.0, "d": 0.0})  # 1 ms a step


def ends(gathering: Gathering, *asked: tuple[float, int, int]) -> list[float]:
    scheduler = HandedTwoPassScheduler(RULES, BlockTree(100, 32), gathering)
    return [round(end, 6) for _, end in sorted(Served(scheduler, asked, CLOCK).ends.items())]


def served(load: dict[str, Any], **flags: Any) -> dict[str, Any]:
    deployment = {"engine": "triton", "hardware": "h100-sxm-80gb", "engine_args": {"model_engine": "trtllm", **flags}}
    lengths = {"prompt_tokens": 100, "output_tokens": 40, "max_output_tokens": "equal"}
    result: dict[str, Any] = simulate({"model": LLAMA, "deployment": deployment, "workload": {**lengths, **load}}).result
    return result


def test_requests_wait_for_others_and_go_together() -> None:
    """`dynamic_batch_scheduler.cc`, `GetDynamicBatch`: at the oldest's delay (5 ms), or as soon as a preferred number waits."""
    asked = (0.0, 10, 2), (0.003, 10, 2), (0.02, 10, 2)
    assert ends(Gathering(), *asked) == [0.002, 0.005, 0.022]
    assert ends(Gathering(0.005, 9), *asked) == [0.007, 0.007, 0.027]
    assert ends(Gathering(0.005, 2), *asked) == [0.005, 0.005, 0.027]  # the second completes a preferred number


def test_answers_that_do_not_stream_are_seen_at_their_end() -> None:
    asked = (0.0, 10, 4), (0.0, 10, 2)
    tokens = Served(HandedTwoPassScheduler(RULES, BlockTree(100, 32), Gathering(streams=False)), asked, CLOCK).tokens
    assert [tokens[0], tokens[1]] == [[3, 3, 3, 3], [1, 1]]


def test_a_full_queue_turns_away() -> None:
    scheduler = HandedTwoPassScheduler(RULES, BlockTree(100, 32), Gathering(1.0, 9, queue=2))
    assert not scheduler.sheds(0.0, 1)
    scheduler.add(Sequence(0, 10, 2, 0.0))
    assert scheduler.sheds(0.0, 1)
    totals = served({"arrivals": {"kind": "batch"}, "requests": 50}, max_queue_size=5)["totals"]
    assert totals["reasons"] == {"shed_503": 45}


def test_an_instance_of_the_calling_model_serves_one_request_at_a_time() -> None:
    """`tensorrt_llm_bls/1/model.py`, `execute`: requests of an instance one after the other, each to its end."""
    load = {"arrivals": {"kind": "batch"}, "requests": 24}
    one, four = (
        served(load, called="tensorrt_llm_bls", bls_instance_count=count)["totals"]["duration_s"] for count in (1, 4)
    )
    assert one > 3.5 * four
    assert served(load, bls_instance_count=1)["totals"]["duration_s"] < one / 10  # an ensemble is called


def test_the_detokeniser_limits_what_streams() -> None:
    load = {"arrivals": {"kind": "batch"}, "requests": 200}
    few, many = (
        served(load, decoupled=True, postprocessing_instance_count=count)["metrics"]["tpot_ms"]["mean"] for count in (1, 16)
    )
    assert few > 1.5 * many  # 7,407 tokens/s leave one instance


def test_a_tree_of_medusa_is_what_its_choices_say() -> None:
    arch = load_architecture(LLAMA)
    tree = drafts({"acceptance": 0.6}, arch, {"medusa_choices": "{0}, {0, 0}, {1}, {0, 2}"})
    assert tree == {
        "acceptance": 0.6, "method": "medusa", "num_speculative_tokens": 2, "num_draft_tokens": 5, "eagle_topk": 3,
    }  # fmt: skip
    with pytest.raises(InputError, match="eagle3 drafts is not modelled"):
        drafts({"method": "eagle3", "num_speculative_tokens": 2}, arch, {})
    with pytest.raises(InputError, match="eagle beside the method medusa"):
        drafts({"method": "medusa"}, arch, {"eagle_choices": "{0}"})
    load = {"arrivals": {"kind": "batch"}, "requests": 4}
    plain = served(load)["totals"]["duration_s"]
    pool = {"engine": "triton", "hardware": "h100-sxm-80gb", "speculative": {"acceptance": 0.6},
            "engine_args": {"model_engine": "trtllm", "medusa_choices": "{0}, {0, 0}, {1}, {0, 2}"}}  # fmt: skip
    lengths = {"prompt_tokens": 100, "output_tokens": 40, "max_output_tokens": "equal"}
    drafted = simulate({"model": LLAMA, "deployment": pool, "workload": {**lengths, **load}}).result["totals"]["duration_s"]
    assert plain / 1.96 < drafted < plain  # at most 1 + 0.6 + 0.36 tokens a step


@pytest.mark.parametrize(
    ("ngram", "window", "verified", "tokens"), [(5, 4, 3, 27), (32, 1, 1, 61), (8, 1, 1, 13), (3, 5, 0, None)]
)
def test_lookahead_computes_guesses_beside_what_it_verifies(ngram: int, window: int, verified: int, tokens: int | None) -> None:
    keys = {"lookahead_ngram_size": ngram, "lookahead_window_size": window, "lookahead_verification_set_size": verified}
    if tokens is None:
        with pytest.raises(InputError, match="lookahead without lookahead_verification_set_size"):
            drafts({}, load_architecture(LLAMA), keys)
        return
    found = drafts({}, load_architecture(LLAMA), keys)
    assert (found["method"], found["num_speculative_tokens"], found["num_draft_tokens"]) == ("lookahead", ngram - 1, 1 + tokens)


def test_old_engines_pass_the_cache_once_for_every_query_head() -> None:
    def step_s(model: str, version: str | None, hardware: str = "h100-sxm-80gb") -> float:
        build = {"version": version} if version else {}
        deployment = {"engine": "triton", "hardware": hardware, "engine_args": {"model_engine": "trtllm", "build_config": build}}
        load = {"prompt_tokens": 100, "output_tokens": 40, "arrivals": {"kind": "batch"}, "requests": 2}
        plan = prepare(load_scenario({"model": model, "deployment": deployment, "workload": load}))
        return float(plan.times().step_s([Batch(0, 64, 64, 64 * 2000, tokens=64)])[0])

    grouped_s = step_s(LLAMA, None)  # 32 heads, 8 of them with a cache: groups of four
    assert step_s(LLAMA, "1.0.0") == grouped_s
    passed_s = 64 * 2000 * 32 * 2 * 32 * 128 * 2 / 4.2e12  # rows, tokens, layers, K and V, heads, width, bytes
    weights_s = 15e9 / 3.35e12
    assert passed_s + weights_s < step_s(LLAMA, "0.9.0") < 1.4 * (passed_s + weights_s)
    assert step_s(LLAMA, "v0.7.1") == step_s(LLAMA, "0.9.0") > 1.3 * grouped_s
    assert step_s(LLAMA, "0.9.0", "l40s-48gb") == step_s(LLAMA, None, "l40s-48gb")  # its memory is slower
    arch = load_architecture("meta-llama/Llama-3.1-70B-Instruct")  # groups of eight
    assert [reads_by_head(arch, tp, v) for tp, v in ((1, "0.7"), (8, "0.7.1"), (1, "0.8.0"), (8, "0.12"))] == [
        True, True, False, False,
    ]  # fmt: skip
    assert not reads_by_head(load_architecture("llama-2-7b"), 1, "0.6.1")  # every head has its own
    with pytest.raises(InputError, match="`new` is no version"):
        step_s(LLAMA, "new")


def test_eagle_and_lookahead_run_from_a_scenario() -> None:
    def pool(speculative: dict[str, Any], **keys: Any) -> Any:
        deployment = {"engine": "triton", "hardware": "h100-sxm-80gb", "speculative": speculative,
                      "engine_args": {"model_engine": "trtllm", **keys}}  # fmt: skip
        lengths = {"prompt_tokens": 100, "output_tokens": 40, "max_output_tokens": "equal"}
        return simulate({"model": LLAMA, "deployment": deployment,
                         "workload": {**lengths, "arrivals": {"kind": "batch"}, "requests": 2}}).result  # fmt: skip

    plain = served({"arrivals": {"kind": "batch"}, "requests": 2})["totals"]["duration_s"]
    tree = pool({"acceptance_length": 2.2}, eagle_choices="[[0], [0, 0], [0, 0, 0], [1]]")
    few = pool({"acceptance_length": 2.2}, lookahead_window_size=2, lookahead_ngram_size=3, lookahead_verification_set_size=2)
    many = pool({"acceptance_length": 2.2}, lookahead_window_size=50, lookahead_ngram_size=5, lookahead_verification_set_size=50)
    assert tree["totals"]["duration_s"] < plain
    assert few["totals"]["duration_s"] < plain
    assert many["totals"]["duration_s"] > 1.3 * few["totals"]["duration_s"]  # 400 tokens a row are no longer free


EXECUTOR = """
name: "tensorrt_llm" backend: "tensorrtllm" max_batch_size: 64  # Triton's
model_transaction_policy { decoupled: true }
dynamic_batching { preferred_batch_size: [ 32, 64 ] max_queue_delay_microseconds: 1000
  default_queue_policy: { max_queue_size: 7 } }
input [ { name: "input_ids" data_type: TYPE_INT32 dims: [ -1 ] }, { name: "end_id" dims: [ 1 ] } ]
parameters: { key: "max_beam_width" value: { string_value: "${max_beam_width}" } }
parameters: { key: "gpt_model_type" value: { string_value: "inflight_fused_batching" } }
parameters: { key: "batch_scheduler_policy" value: { string_value: "max_utilization" } }
parameters: { key: "gpt_model_path" value: { string_value: "ENGINE" } }
"""
PYTHON = 'name: "NAME" backend: "python" max_batch_size: 64 instance_group [ { count: 4 kind: KIND_CPU } ]'
ENSEMBLE = 'platform: "ensemble" max_batch_size: 64 ensemble_scheduling { step [ STEPS ] }'


def repository(folder: Path, **models: str) -> Path:
    for name, text in models.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(text.replace("NAME", name), encoding="utf-8")
    return folder


def test_a_repository_says_what_flags_say(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "config.json").write_text('{"build_config": {"max_batch_size": 128, "gemm_plugin": "auto"}}')
    models = dict.fromkeys(("preprocessing", "postprocessing", "tensorrt_llm_bls"), PYTHON)
    executor = EXECUTOR.replace("ENGINE", str(tmp_path / "engine"))
    folder = repository(tmp_path / "models", tensorrt_llm=executor, ensemble=ENSEMBLE.replace("STEPS", ""), **models)
    read = read_repository(folder)
    assert read == {
        "model_engine": "trtllm",
        "called": "ensemble",
        "max_batch_size": 64,
        "decoupled": True,
        "dynamic_batching": {
            "preferred_batch_size": [32, 64],
            "max_queue_delay_microseconds": "1000",
            "default_queue_policy": {"max_queue_size": "7"},
        },
        "gpt_model_type": "inflight_fused_batching",
        "batch_scheduler_policy": "max_utilization",
        "gpt_model_path": str(tmp_path / "engine"),
        "preprocessing_instance_count": 4,
        "postprocessing_instance_count": 4,
        "bls_instance_count": 4,
        "build_config": {"max_batch_size": 128},
    }
    load = {"arrivals": {"kind": "batch"}, "requests": 9}
    pool = {"engine": "triton", "hardware": "h100-sxm-80gb", "engine_args": f"tritonserver --model-repository={folder}"}
    work = {**load, "prompt_tokens": 100, "output_tokens": 4}
    assert simulate({"model": LLAMA, "deployment": pool, "workload": work}).result["totals"]["reasons"] == {"shed_503": 2}


def test_an_ensemble_around_another_model(tmp_path: Path) -> None:
    steps = ", ".join(f'{{ model_name: "{name}" }}' for name in ("tokens", "llm", "words"))
    llm = 'name: "llm" backend: "python" max_batch_size: 8 dynamic_batching { } instance_group { count: 2 kind: KIND_GPU }'
    folder = repository(tmp_path, tokens=PYTHON, words=PYTHON, llm=llm, all=ENSEMBLE.replace("STEPS", steps))
    assert read_repository(folder) == {
        "max_batch_size": 8,
        "dynamic_batching": {},
        "instance_group": {"count": 2, "kind": "KIND_GPU"},
        "preprocessing_instance_count": 4,
        "postprocessing_instance_count": 4,
    }


def test_what_a_repository_cannot_say_is_refused(tmp_path: Path) -> None:
    for text, words in (
        ('name: "m" backend: "vllm"', "runs vLLM"),
        ('name: "m" max_batch_size: ${triton_max_batch_size}', "the template is not filled"),
        ('name: "m" max_batch_size: 4 instance_group { kind: KIND_CPU', "no configuration"),
        ('name: "m" instance_group { kind: KIND_CPU }', "0 of them run on GPUs"),
        ('name: "m" max_batch_size: many', "no sense: ValueError"),
        ('name: "m" parameters: 3', "no sense"),
        ('name: "m" backend: "tensorrtllm" dynamic_batching: 3', "no sense"),
    ):
        folder = repository(tmp_path / str(len(text)), m=text)
        with pytest.raises(InputError, match=words):
            read_repository(folder)
    with pytest.raises(InputError, match="holds no"):
        read_repository(tmp_path / "nothing")
    assert parse("a: 1 a: 2 # b: 3\nc { d: '}' }", "m") == {"a": ["1", "2"], "c": [{"d": ["}"]}]}


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"model_engine": "transformers", "batch_scheduler_policy": "max_utilization"}, "a key of Triton's TensorRT-LLM backend"),
        ({"batch_scheduler_policy": "max_utilisation"}, "cannot be"),
        ({"dynamic_batching": {"priority_levels": 2}}, "priorities and time-outs"),
        ({"build_config": {"max_tokens": 2}}, "no key `max_tokens`"),
        ({"decoding_mode": "redrafter"}, "cannot be"),
        ({"tensorrt_llm_draft_model_name": "x"}, "how tokens are drafted"),
        ({"max_beam_width": 4}, "how many sequences"),
    ],
)
def test_what_the_backend_lacks_is_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        served({"arrivals": {"kind": "batch"}, "requests": 1}, **flags)
