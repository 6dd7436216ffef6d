"""OpenArc: timelines worked by hand from its source, what it makes of settings, flags, and what waiting costs in a scenario.

The lines named are those of SearchSavior/OpenArc at 92e6e1d and of openvinotoolkit/openvino.genai at da1db864. In the timelines
a step lasts 10 ms, 10 us a prompt token and 1 ms a row that decodes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from engine_models.cost.terms import Formats
from engine_models.declaration import PoolRequest
from engine_models.engines.known import parse_engine_args
from engine_models.engines.openarc import UNLIMITED_TOKENS, plan
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.one_list import OneListRules, OneListScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError
from simulator.run import simulate
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
CLOCK = {"a": 0.01, "b": 1e-5, "c": 0.001, "d": 0.0}
XEON = "xeon-8592-1s"


def request_of(hardware: str = XEON, **flags: Any) -> PoolRequest:
    found = load_device(hardware)
    return PoolRequest(
        arch=load_architecture(LLAMA),
        formats=Formats(format_named("int4"), format_named("bf16"), format_named("int8")),
        device_name=hardware,
        device_memory_bytes=int(found.memory_bytes.value),
        device_kind=found.kind,
        flags=flags,
    )


class Served:
    """Requests (arrival [s], prompt, output, runs of their text) through OpenArc: first tokens and ends [s], in steps."""

    def __init__(
        self, asked: list[tuple[float, int, int, tuple[tuple[int, int, int], ...]]], **flags: Any
    ) -> None:
        self.first: dict[int, float] = {}
        self.ends: dict[int, float] = {}
        self.seqs = [
            Sequence(
                i,
                prompt,
                output,
                at,
                limit_tokens=output,
                runs=runs,
                shareable_tokens=prompt,
                output_shared=bool(runs),
            )
            for i, (at, prompt, output, runs) in enumerate(asked)
        ]
        self.replica = Replica(
            [plan(request_of(**flags)).scheduler("step")],
            RecordedClock(CLOCK),
            on_finish=lambda seq, now_s: self.ends.setdefault(seq.index, now_s),
            on_batch=self._settled,
        )

    def _settled(self, batch: Batch) -> None:
        for seq in self.seqs:
            if seq.emissions and seq.emissions[0] == batch.number:
                self.first.setdefault(seq.index, batch.t_end)

    def run(self, *gives_up: tuple[int, float]) -> Served:
        """Serve all; who `gives_up` does so at a time [s]."""
        for seq in self.seqs:
            self.replica.advance(seq.arrival_s)
            self.replica.ranks[0].submit(seq)
        for index, at in gives_up:
            self.replica.advance(at)
            self.replica.cancel(self.replica.ranks[0], self.seqs[index], at)
        self.replica.advance(float("inf"))
        return self


def times(found: dict[int, float]) -> dict[int, float]:
    return {index: pytest.approx(at, abs=1e-9) for index, at in found.items()}


def test_one_after_the_other_in_order_of_arrival() -> None:
    """A worker a model takes one packet and waits for its answer (worker_registry.py 376-394: 380, 385; llm.py 140).

    A: 300 tokens, 13 ms, then twice 11 ms: 35. B waits for it: 12 ms, 47, and 11: 58. C: 11 ms: 69. There is place for all of
    them in one step of 16 ms.
    """
    found = Served([(0.0, 300, 3, ()), (0.0, 200, 2, ()), (0.001, 100, 1, ())]).run()
    assert found.first == times({0: 0.013, 1: 0.047, 2: 0.069})
    assert found.ends == times({0: 0.035, 1: 0.058, 2: 0.069})


def test_a_conversation_finds_its_beginning_unless_somebody_spoke_in_between() -> None:
    """The pipeline for a single user caches prompts (utils.cpp 926-931), in a pool of twice the prompt, or prompt and limit
    (scheduler.hpp 56, 688, 726), which keeps nothing else (block_manager.hpp 143, 537).

    First turn: 64 and 40 tokens, 104: four blocks of 32. All but the last token are in them, 103; the second turn, 128 tokens,
    has 24 new ones and that: 10.25 ms from its arrival at 1 s. A stranger with 128 and 8 tokens makes the pool five blocks and
    takes all of them: then nothing is found, 11.28 ms.
    """
    first = (0.0, 64, 40, ((1, 0, 64), (9, 0, 40)))
    second = (1.0, 128, 10, ((1, 0, 64), (9, 0, 40), (2, 0, 24), (8, 0, 10)))
    alone = Served([first, second]).run()
    assert alone.ends[0] == pytest.approx(0.01064 + 39 * 0.011)
    assert alone.seqs[1].first_hit_tokens == 103
    assert alone.first[1] == pytest.approx(1.01025)
    stranger = (0.5, 128, 8, ((3, 0, 128), (7, 0, 8)))
    between = Served([first, stranger, second]).run()
    assert between.seqs[2].first_hit_tokens == 0
    assert between.first[2] == pytest.approx(1.01128)


def test_who_gives_up_before_his_first_token_is_computed_all_the_same() -> None:
    """The server looks whether a client has gone when it has a token for him, and only then knows whom to cancel (openai.py
    317-332, llm.py 177): in the queue nobody is found.

    A: 11 ms, then four times 11: 55. B gives up at 20 ms, in the queue, and takes as long: 110. C: 121, not 66. A itself, which
    gives up at 30 ms, after its first token, is dropped with the step that ends at 33; then C comes at 33 + 55 + 11.
    """
    asked = [(0.0, 100, 5, ()), (0.001, 100, 5, ()), (0.002, 100, 1, ())]
    assert Served(asked).run((1, 0.020)).ends == times({0: 0.055, 1: 0.110, 2: 0.121})
    assert Served(asked).run((1, 0.020), (0, 0.030)).ends == times({1: 0.088, 2: 0.099})
    assert Served(asked).run((0, 0.005)).ends == times({0: 0.055, 1: 0.110, 2: 0.121})  # in its prompt


def test_any_setting_brings_the_defaults_of_the_library() -> None:
    """A `scheduler_config` starts from `SchedulerConfig()`: 256 tokens a step, no prefix cache (utils.py 19-35), and what is
    false in it is passed over (20, 30, 34). 600 tokens: three steps and 6 ms, 36; without settings one, 16."""
    asked = [(0.0, 600, 1, ())]
    assert Served(asked).run().first[0] == pytest.approx(0.016)
    assert Served(asked, scheduler_config={"cache_size": 6}).run().first[0] == pytest.approx(0.036)
    assert Served(asked, scheduler_config={"max_num_batched_tokens": 400}).run().first[0] == pytest.approx(
        0.026
    )
    for flags, caching, blocks in (
        ({}, True, 0),
        ({"scheduler_config": {"dynamic_split_fuse": False}}, False, 0),
        ({"enable_prefix_caching": True, "num_kv_blocks": 50}, True, 50),
    ):
        found = plan(request_of(**flags))
        scheduler = found.scheduler("step")
        assert isinstance(scheduler, OneListScheduler)
        budget = 256 if flags else UNLIMITED_TOKENS
        assert scheduler.rules == OneListRules(budget, workers=1, forgets_unanswered=False)
        assert (found.prefix_caching, scheduler.kv.capacity_blocks, found.limits.rows) == (caching, blocks, 1)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"scheduler_config": {"use_cache_eviction": True}}, "`use_cache_eviction`, which is not simulated"),
        ({"runtime_config": {"ATTENTION_BACKEND": "SDPA"}}, "without paged attention"),
        ({"runtime_config": {"KV_CACHE_PRECISION": "u2"}}, "KV_CACHE_PRECISION u2 is not simulated"),
        (
            {"runtime_config": {"INFERENCE_PRECISION_HINT": "f32"}},
            "`INFERENCE_PRECISION_HINT`, which is not simulated",
        ),
        ({"device": "HETERO:GPU.0,GPU.1"}, "device HETERO:GPU.0,GPU.1 is not the hardware"),
    ],
)
def test_what_it_lacks_is_refused(flags: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        plan(request_of(**flags))
    assert error.value.mend
    with pytest.raises(InputError, match="OpenArc runs on CPUs and Intel GPUs"):
        plan(request_of("h100-sxm-80gb"))


def test_launch_commands() -> None:
    command = (
        "openarc add --model-name chat --model-path /models/chat --engine ovgenai --model-type llm --device GPU.0 "
        """--scheduler-config '{"cache_size": 6}' --runtime-config '{"KV_CACHE_PRECISION": "u8"}'"""
    )
    assert parse_engine_args("openarc", command).values == {
        "device": "GPU.0",
        "scheduler_config": {"cache_size": 6},
        "runtime_config": {"KV_CACHE_PRECISION": "u8"},
    }
    with pytest.raises(InputError, match="drafts are not simulated for OpenArc"):
        parse_engine_args("openarc", f"{command} --draft-model-path /models/draft")


def test_a_family_that_shares_a_card() -> None:
    """The shipped scenario, and the same with batching: the wait for the others is what differs, the pace of an answer by the
    arithmetic of the others' tokens."""
    path = Path(__file__).resolve().parents[2] / "scenarios" / "openarc-b580-home.yaml"
    scenario = yaml.safe_load(path.read_text(encoding="utf-8"))
    alone, together = (
        simulate({**scenario, "deployment": {**scenario["deployment"], "engine": engine}}).result["metrics"]
        for engine in ("openarc", "openvino")
    )
    assert alone["ttft_ms"]["mean"] > 2000
    assert together["ttft_ms"]["mean"] < 200
    assert 1.05 < together["itl_ms"]["mean"] / alone["itl_ms"]["mean"] < 1.2


def test_a_client_that_waits_no_longer_is_counted_and_keeps_the_worker_busy() -> None:
    load = {"arrivals": {"kind": "batch"}, "prompt_tokens": 100, "output_tokens": 100, "requests": 6}
    ends = []
    for timeout in ({}, {"client": {"timeout_s": 6.0}}):
        pool = {"engine": "openarc", "hardware": XEON, "weights": "int4"}
        totals = simulate({"model": LLAMA, "deployment": pool, "workload": load, **timeout}).result["totals"]
        ends.append((totals["completed"], totals["failed"], totals["duration_s"]))
    assert ends[0][:2] == (6, 0)
    assert ends[1][:2] == (2, 4)
