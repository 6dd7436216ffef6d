"""Ollama: timelines worked by hand from its source, its choice of context and batch, settings and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine_models.cost.terms import Formats
from engine_models.declaration import EnginePlan, PoolRequest
from engine_models.engines.known import launched_by, parse_engine_args
from engine_models.engines.ollama import plan
from engine_models.engines.ollama_flags import FLAGS, keep_alive_s
from engine_models.flags import reconcile
from engine_models.memory.whole_prompts import WholePrompts
from engine_models.model.architecture import load_architecture
from engine_models.model.formats import format_named
from engine_models.parts.batch import Batch
from engine_models.parts.sequence import Sequence
from engine_models.schedulers.kept_model import KeptModel, KeptModelScheduler
from engine_models.schedulers.slots import SlotBatch, SlotRules, SlotScheduler
from hardware_profiles.device import load_device
from hardware_profiles.errors import InfeasibleError, InputError
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.run import RunResult, simulate
from simulator.serving.replica import Replica
from simulator.validation.schedules import RecordedClock
from tests.effort import examples
from tests.engine_models.fed import feed, sharing

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
TICK = {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}
Asked = tuple[float, int, int, int]
"""Arrival [s], prompt and output tokens, and the group whose first 60 tokens it shares (0: none)."""


class Served:
    """What became of requests under an iteration a second: ends [s], those turned away, times of first tokens, the iterations."""

    def __init__(self, scheduler: SlotScheduler, asked: list[Asked]) -> None:
        self.scheduler = scheduler
        self.ends: dict[int, float] = {}
        self.shed: list[int] = []
        self.batches: list[SlotBatch] = []
        self.seqs = sharing(asked, 60)
        replica = Replica([scheduler], RecordedClock(TICK), on_finish=self._ended, on_batch=self._settled)

        def submit(seq: Sequence, at_s: float) -> None:
            if scheduler.sheds(at_s, len(replica.ranks[0].inbox)):
                self.shed.append(seq.index)
            else:
                replica.ranks[0].submit(seq)

        feed(replica, self.seqs, 7, submit)
        scheduler.close()
        log = replica.ranks[0].log
        self.log_ends = list(log.end_s)
        self.firsts = {seq.index: log.end_s[seq.emissions[0]] for seq in self.seqs if seq.emissions}

    def _ended(self, seq: Sequence, now_s: float) -> None:
        self.ends[seq.index] = now_s

    def _settled(self, batch: Batch) -> None:
        assert isinstance(batch, SlotBatch)
        self.batches.append(batch)


def kept(
    slots: int = 1,
    *,
    max_queue: int = 512,
    load_s: float = 4.0,
    keep_alive_s: float = 300.0,
    ram_tokens: int = 0,
    aggregate: bool = True,
    record: bool = False,
    **rules: Any,
) -> KeptModelScheduler:
    return KeptModelScheduler(
        SlotRules(slots, rules.pop("slot_tokens", 512), **rules),
        KeptModel(max_queue, load_s, keep_alive_s),
        lambda: WholePrompts(ram_tokens, 1) if ram_tokens else None,
        aggregate=aggregate,
        record_rows=record,
    )


def test_timeline_of_permits() -> None:
    """`llm/llama_server.go`: `sem: semaphore.NewWeighted(numParallel)`, acquired in order before a request goes to the server.

    Two permits, iterations of 64 tokens. r0 and r1 end at 3; r2 (came at 1) and r3 (at 2) get their permits in this order, so
    r2's 60 tokens are first: its token leaves at 4, r3's, of whose prompt 4 tokens fitted, at 5. The server alone would have
    brought the later slot's deferred request to the front: r3 first.
    """
    asked = [(0.0, 10, 3, 0), (0.0, 10, 3, 0), (1.0, 60, 2, 0), (2.0, 60, 2, 0)]
    run = Served(kept(2, n_batch=64), asked)
    assert run.firsts == {0: 1.0, 1: 1.0, 2: 4.0, 3: 5.0}
    assert run.ends == {0: 3.0, 1: 3.0, 2: 5.0, 3: 6.0}
    server = Served(SlotScheduler(SlotRules(2, 512, n_batch=64)), asked)
    assert server.firsts == {0: 1.0, 1: 1.0, 2: 5.0, 3: 4.0}


def test_timeline_of_one_permit() -> None:
    """`envconfig/config.go`: `NumParallel = Uint("OLLAMA_NUM_PARALLEL", 1)`: users are served one after the other."""
    run = Served(kept(), [(0.0, 10, 5, 0), (1.0, 10, 3, 0), (2.0, 10, 2, 0)])
    assert run.firsts == {0: 1.0, 1: 6.0, 2: 9.0}
    assert run.ends == {0: 5.0, 1: 8.0, 2: 10.0}


def test_timeline_of_a_model_that_is_kept_and_dropped() -> None:
    """`server/sched.go`, `processCompleted`: at `refCount <= 0` a timer of `sessionDuration` starts, whose end unloads the model.

    Kept 10 s, loaded in 4. r0 ends at 3; r1 comes at 12.5, before 13: at once, and its 60 shared tokens are found. It ends at
    14.5; r2 comes at 24.5, as the model goes: loaded at 28.5, token at 29.5, nothing found, in host memory neither.
    """
    asked = [(0.0, 100, 3, 1), (12.5, 100, 2, 1), (24.5, 100, 1, 1)]
    scheduler = kept(keep_alive_s=10.0, ram_tokens=1000)
    run = Served(scheduler, asked)
    assert run.ends == {0: 3.0, 1: 14.5, 2: 29.5}
    assert [seq.first_hit_tokens for seq in run.seqs] == [0, 60, 0]
    assert scheduler.loads == 1
    assert Served(kept(keep_alive_s=float("inf")), asked).ends[2] == 25.5


def test_timeline_of_a_full_queue() -> None:
    """`server/sched.go`, `getRunner`: `select { case s.pendingReqCh <- req: default: req.fail(ErrMaxQueue) }`, a 503.

    Two places, nothing kept idle: r0 (at 0) has the model loaded until 4, r1 and r2 are pending, r3 and r4 (at 3) get a 503.
    r5 (at 4.5) finds the model and waits for the permit, however many do.
    """
    asked = [(float(at), 10, 2, 0) for at in (0, 1, 2, 3, 3, 4.5)]
    run = Served(kept(max_queue=2, keep_alive_s=0.0), asked)
    assert run.shed == [3, 4]
    assert run.ends == {0: 6.0, 1: 8.0, 2: 10.0, 5: 12.0}
    crowd = Served(kept(max_queue=2), [(0.0, 10, 2, 0)] * 9)
    assert crowd.shed == []  # it is there at time zero


def test_timeline_of_a_prompt_that_is_cut() -> None:
    """`llm/llama_server.go`, `contextShiftPromptLimit`: `numCtx - max((numCtx-numKeep)/2, 1)`, the first ones among them.

    300 tokens in a context of 256 that keeps 4: 130 are computed; the answer of 200 shifts once, when 255 are there.
    """
    scheduler = kept(slot_tokens=256, context_shift=True, n_keep=4, record=True)
    run = Served(scheduler, [(0.0, 300, 200, 1)])
    assert run.batches[0].tokens == 130
    row = run.batches[0].entries[0].row
    assert row.content.slice(0, 5) == ((1, 0, 4), (-1, 174, 1))  # 60 of the group, 240 of its own; 170 tokens go
    shifts = [number for number, batch in enumerate(run.batches) if batch.shifts]
    assert shifts == [126]  # 130 + 125 tokens
    assert run.ends == {0: 200.0}


@st.composite
def loads(draw: st.DrawFn) -> tuple[dict[str, Any], list[Asked]]:
    """Models that come and go, few permits."""
    rules = {
        "slots": draw(st.sampled_from([1, 2, 3])),
        "max_queue": draw(st.sampled_from([0, 2, 512])),
        "load_s": draw(st.sampled_from([0.5, 9.0])),
        "keep_alive_s": draw(st.sampled_from([0.0, 5.0, 300.0])),
        "ram_tokens": draw(st.sampled_from([0, 400])),
        "slot_tokens": 256,
        "n_batch": draw(st.sampled_from([48, 512])),
        "context_shift": draw(st.booleans()),
    }
    gap = draw(st.sampled_from([0.0, 2.5, 30.0]))
    asked = [
        (i // 2 * gap, draw(st.integers(1, 250)), draw(st.sampled_from([1, 20, 60])), draw(st.sampled_from([0, 1])))
        for i in range(draw(st.integers(1, 14)))
    ]
    return rules, asked


@settings(max_examples=examples(60))
@given(loads())
def test_runs_equal_steps(load: tuple[dict[str, Any], list[Asked]]) -> None:
    rules, asked = load
    jumped, stepped = (Served(kept(aggregate=aggregate, **rules), asked) for aggregate in (True, False))
    assert (jumped.ends, jumped.shed, jumped.firsts) == (stepped.ends, stepped.shed, stepped.firsts)
    assert jumped.log_ends == stepped.log_ends
    assert len(jumped.ends) + len(jumped.shed) == len(asked)
    assert jumped.scheduler.state()[:3] == (0, 0, 0)
    assert jumped.scheduler._cells == sum(slot.cells for slot in jumped.scheduler.slots)


# -- what it makes of a pool ----------------------------------------------------------------------------------


def request_of(device: str, model: str = LLAMA, weights: str = "q4_k_m", **flags: Any) -> PoolRequest:
    found = load_device(device)
    return PoolRequest(
        arch=load_architecture(model),
        formats=Formats(format_named(weights), format_named("bf16"), format_named("fp16")),
        device_name=device,
        device_memory_bytes=int(found.memory_bytes.value),
        device_kind=found.kind,
        flags=flags,
    )


def rules_of(found: EnginePlan) -> SlotRules:
    scheduler = found.scheduler("jump")
    assert isinstance(scheduler, KeptModelScheduler)
    return scheduler.rules


@pytest.mark.parametrize(
    ("device", "flags", "slots", "context", "batch"),
    [
        ("arc-a770-16gb", {}, 1, 4096, 512),  # below 23 GiB
        ("rtx-4090-24gb", {}, 1, 32768, 1024),  # 23 GiB and more
        ("h100-sxm-80gb", {}, 1, 131_072, 2048),  # 262,144, of which the model has half
        ("xeon-8480-1s", {}, 1, 4096, 512),
        ("rtx-4090-24gb", {"num_parallel": 4, "num_ctx": 8192}, 4, 8192, 1024),  # 32,768 in all
        ("rtx-4090-24gb", {"num_parallel": 8, "num_ctx": 12288}, 8, 12288, 1024),  # 17.8 of 25.3 GB are above 0.6
        ("h100-sxm-80gb", {"num_parallel": 8, "num_ctx": 8192, "num_batch": 256}, 8, 8192, 256),
    ],
)
def test_context_and_batch_by_memory(device: str, flags: dict[str, Any], slots: int, context: int, batch: int) -> None:
    found = plan(request_of(device, **flags))
    rules = rules_of(found)
    assert (rules.n_parallel, rules.slot_tokens, rules.n_batch, rules.n_ubatch) == (slots, context, batch, batch)
    assert rules.pool_cells == 0
    assert rules.context_shift
    assert found.limits.cuts_prompts


def test_a_default_context_that_does_not_fit_steps_down() -> None:
    """On 24 GB 32,768 tokens of a 14B model in 8 bits do not fit, 4,096 do; what is asked for does not step down."""
    assert rules_of(plan(request_of("rtx-4090-24gb", "Qwen/Qwen2.5-14B-Instruct", "q8_0"))).slot_tokens == 32768
    assert rules_of(plan(request_of("rtx-4090-24gb", "google/gemma-2-27b-it"))).slot_tokens in (4096, 8192)
    with pytest.raises(InfeasibleError, match="does not fit"):
        plan(request_of("rtx-4090-24gb", num_ctx=131_072, num_parallel=4))


def test_layers_on_the_cpu_are_asked_for_in_its_own_words() -> None:
    """A model that does not fit names `num_gpu`; with it a part of the layers is the CPU's."""
    with pytest.raises(InfeasibleError) as error:
        plan(request_of("rtx-4090-24gb", "meta-llama/Llama-3.1-70B-Instruct"))
    assert "engine_args.num_gpu: 45" in str(error.value.mend)
    found = plan(request_of("rtx-4090-24gb", "meta-llama/Llama-3.1-70B-Instruct", num_gpu=45, num_ctx=4096, host_cpu="epyc-9654"))
    assert found.costs.host_layers is not None
    assert found.costs.host_layers.arch.layers == 36
    with pytest.raises(InputError, match="num_gpu"):
        plan(request_of("rtx-4090-24gb", num_gpu=0))


@pytest.mark.parametrize(
    ("text", "seconds"), [("5m", 300), ("1h30m", 5400), ("0", 0), ("90", 90), ("-1", float("inf")), ("500ms", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    assert keep_alive_s(text) == seconds


def test_what_is_no_duration_is_refused() -> None:
    with pytest.raises(InputError, match="is no duration"):
        keep_alive_s("5 minutes")


@pytest.mark.parametrize(
    ("command", "values"),
    [
        ("OLLAMA_NUM_PARALLEL=4 OLLAMA_CONTEXT_LENGTH=8192 ollama serve", {"num_parallel": 4, "context_length": 8192}),
        (
            "docker run -d --gpus=all -e OLLAMA_KEEP_ALIVE=-1 -e OLLAMA_KV_CACHE_TYPE=q8_0 -p 11434:11434 ollama/ollama",
            {"keep_alive": "-1", "kv_cache_type": "q8_0"},
        ),
    ],
)
def test_its_environment_is_read(command: str, values: dict[str, Any]) -> None:
    assert launched_by(command) == "ollama"
    assert parse_engine_args("ollama", command).values == values


def served(workload: dict[str, Any], hardware: str = "rtx-4090-24gb", **flags: Any) -> RunResult:
    pool = {"engine": "ollama", "hardware": hardware, "engine_args": flags}
    return simulate({"model": LLAMA, "deployment": pool, "workload": workload})


def test_a_run_turns_away_who_comes_while_the_model_is_loaded() -> None:
    """Nothing is kept idle: the first of five that come at once loads the model, one is pending, three get a 503."""
    load = {"arrivals": {"kind": "batch"}, "requests": 5, "prompt_tokens": 100, "output_tokens": 10}
    totals = served(load, max_queue=1, keep_alive="0").result["totals"]
    assert (totals["completed"], totals["reasons"]) == (2, {"shed_503": 3})
    assert served(load, max_queue=1).result["totals"]["completed"] == 5


def test_a_run_cuts_long_prompts_and_pays_for_loading() -> None:
    load = {"arrivals": {"kind": "constant", "rate": 0.01}, "requests": 3, "prompt_tokens": 6000, "output_tokens": 10}
    result = served(load, num_ctx=4096, keep_alive="10s").result
    assert result["totals"]["completed"] == 3
    warm = served(load, num_ctx=4096).result
    assert result["metrics"]["ttft_ms"]["mean"] > warm["metrics"]["ttft_ms"]["mean"] + 700
    whole = served(load, num_ctx=8192).result  # 6,000 tokens, where the others compute 2,050
    assert whole["metrics"]["ttft_ms"]["mean"] > 2 * warm["metrics"]["ttft_ms"]["mean"]
    with pytest.raises(InputError, match="longer than the context"):
        served(load, num_ctx=4096, shift=False)


def test_weights_are_those_of_most_files_unless_stated() -> None:
    workload = {"arrivals": {"kind": "batch"}, "prompt_tokens": 8, "output_tokens": 8, "requests": 1}
    pool = {"engine": "ollama", "hardware": "apple-m2-ultra-76c-192gb"}
    found = prepare(load_scenario({"model": LLAMA, "deployment": pool, "workload": workload}))
    assert found.formats.weights.name == "q4_k_m"
    stated = prepare(load_scenario({"model": LLAMA, "deployment": {**pool, "weights": "q8_0"}, "workload": workload}))
    assert stated.formats.weights.name == "q8_0"
    with pytest.raises(InputError, match="does not load weights in awq"):
        prepare(load_scenario({"model": LLAMA, "deployment": {**pool, "weights": "awq"}, "workload": workload}))


MTP = {"method": "mtp", "acceptance": 0.7}


def drafting(speculative: dict[str, Any] | None = MTP, users: int = 1, **flags: Any) -> dict[str, Any]:
    more = {} if speculative is None else {"speculative": speculative}
    args = {"num_ctx": 4096, **flags}
    pool = {"engine": "ollama", "hardware": "rtx-4090-24gb", "weights": "q4_k_m", "engine_args": args, **more}
    load = {"arrivals": {"kind": "closed_loop", "concurrency": users}, "prompt_tokens": 200, "output_tokens": 60, "requests": 6}
    return {"model": "Qwen/Qwen3.5-27B", "deployment": pool, "workload": load}


def test_a_model_with_a_layer_for_it_drafts_as_llama_server_does() -> None:
    """`llm/llama_server.go` 807: --spec-type draft-mtp with draft_num_predict, four unless it says otherwise."""
    run, plain = simulate(drafting()), simulate(drafting(None))
    server = run.result["server"]
    assert server["spec_decode_num_draft_tokens"] == 4 * server["spec_decode_num_drafts"] > 0
    assert run.result["metrics"]["tpot_ms"]["mean"] < plain.result["metrics"]["tpot_ms"]["mean"]
    asked = {"parallel": 1, "ctx_size": 4096, "batch_size": 512, "ubatch_size": 512, "context_shift": False}
    own = drafting()
    own["deployment"] |= {"engine": "llama_cpp", "engine_args": asked, "speculative": {**MTP, "num_speculative_tokens": 4}}
    assert run.result["metrics"]["tpot_ms"] == simulate(own).result["metrics"]["tpot_ms"]
    stepped = simulate(drafting(users=3, num_parallel=2), aggregate=False)
    assert simulate(drafting(users=3, num_parallel=2)).result == stepped.result
    assert stepped.result["totals"]["completed"] == 6


def test_its_number_of_drafts_is_read_and_none_contradicts_them() -> None:
    def read(command: str) -> Any:
        keys = {**dict.fromkeys(typed.key for typed in FLAGS.typed.values()), "speculative": None}
        return reconcile(FLAGS, keys, parse_engine_args("ollama", command), given=set()).get("speculative")

    assert read("ollama serve --draft-num-predict 2") == {"method": "mtp", "num_speculative_tokens": 2}
    assert read("ollama serve --draft-num-predict 0") is None
    with pytest.raises(InputError, match="lets Ollama draft nothing"):
        prepare(load_scenario(drafting(draft_num_predict=0)))
    with pytest.raises(InputError, match="Ollama with draft_model drafts is not modelled"):
        prepare(load_scenario(drafting({"method": "draft_model", "model": "Qwen/Qwen3.5-0.8B", "acceptance": 0.5})))
