"""Schedules of SGLang's own scheduler under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_sglang.py OUT --first 0 --count 60    60 recordings, by their seeds
    python benchmarks/record_sglang.py OUT --like FILE...          the settings and requests of these recordings once more
    capacity-plan validate schedules OUT                           how many steps are reproduced

Runs in an environment where SGLang 0.5.23 can be imported (its Python files, torch for CPUs); nothing of this project is needed.
The scheduler (built without its `__init__`), its policies, the radix cache, the pools, the requests and the processing of results
are SGLang's; the model and the front end are not there: every request yields its number of tokens, and a step takes
a + b x prompt tokens + c x decode rows + d x KV tokens on a virtual clock. With `--like` the 17 recordings that the scheduler
was written after come out equal, step by step in every column (11,004 steps).
"""

from __future__ import annotations

import heapq
import importlib
import random
from array import array
from collections import deque
from types import SimpleNamespace
from typing import Any

from record_vllm import draw_adapters
from recorded_load import Case, drawn_request, head, main, prompt, stops_at, token

VERSION = "0.5.23"
VOCABULARY = 1 << 20
ADAPTED = 1_000_000
"""Seeds from here on have requests that name LoRA adapters."""

# -- what is drawn ------------------------------------------------------------------------------------------


def drawn_config(draw: random.Random, longest: int, answer: int) -> Case:
    """Settings, and a KV cache that is tight or roomy for requests of `longest` + `answer` tokens."""
    config: Case = {
        "max_running_requests": draw.choice([3, 6, 12, 24, 64, 256]),
        "max_total_num_tokens": 0,
        "max_context_len": 16384,
        "chunked_prefill_size": draw.choice([-1, 64, 128, 256, 512, 1024, 8192]),
        "max_prefill_tokens": draw.choice([256, 1024, 4096, 16384, 16384]),
        "page_size": draw.choice([1, 1, 1, 16, 32, 64]),
        "schedule_policy": "fcfs",
        "schedule_conservativeness": draw.choice([0.1, 0.15, 0.3, 0.6, 1.0, 1.0, 1.3]),
        "disable_radix_cache": draw.random() < 0.15,
        "enable_mixed_chunk": draw.random() < 0.3,
        "enable_priority_scheduling": False,
        "schedule_low_priority_values_first": False,
        "priority_scheduling_preemption_threshold": 10,
        "radix_eviction_policy": "lru",
        "overlap": draw.random() < 0.4,
        "ignore_eos": draw.random() < 0.15,
    }
    if draw.random() < 0.5:
        config["schedule_policy"] = draw.choice(["lpm", "lpm", "dfs-weight", "lof", "hrrn", "shortest-prefill-first"])
    if draw.random() < 0.35:
        config |= {
            "enable_priority_scheduling": True,
            "schedule_low_priority_values_first": draw.random() < 0.4,
            "priority_scheduling_preemption_threshold": draw.choice([0, 0, 0, 1, 10]),
            "max_running_requests": draw.choice([3, 6, 12, 12, 24]),
        }
        if draw.random() < 0.15:
            config["disable_priority_preemption"] = True
        if draw.random() < 0.7:
            config["schedule_policy"] = draw.choice(["fcfs", "lof"])
    if draw.random() < 0.3:
        config["radix_eviction_policy"] = draw.choice(["lfu", "fifo", "mru", "filo", "slru", "priority"])
    if draw.random() < 0.15:
        config["prefill_max_requests"] = draw.choice([1, 2, 4])
    if config["disable_radix_cache"] and config["schedule_policy"] == "shortest-prefill-first":
        config["schedule_policy"] = "fcfs"
    page = config["page_size"]
    if 0 < config["chunked_prefill_size"] < page:
        config["chunked_prefill_size"] = page
    one = longest + answer + 2 * page
    config["max_total_num_tokens"] = int(one * draw.choice([1.1, 1.6, 2.5, 5, 15])) // page * page
    return config


def drawn_requests(draw: random.Random, longest: int, answer: int, *, priorities: bool) -> list[Case]:
    """Requests with shared beginnings, some of which go on where another has ended; at times in bursts."""
    heads = [(10 + number, draw.randint(8, 150)) for number in range(draw.randint(1, 4))]

    def beginning() -> list[int]:
        segment, tokens = draw.choice(heads)
        return [segment, 0, draw.choice([tokens, tokens, draw.randint(1, tokens)])]

    rate, at_s, burst = draw.choice([2, 8, 30, 100]), 0.0, draw.random() < 0.3
    requests: list[Case] = []
    open_ended: dict[str, Case] = {}
    for index in range(draw.choice([20, 40, 60]) if draw.random() < 0.9 else 200):
        if not burst or draw.random() < 0.15:
            at_s += draw.expovariate(rate) * (12 if burst else 1)
        requests.append(drawn_request(draw, index, at_s, longest, answer, open_ended, beginning, priorities=priorities))
    return requests


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed."""
    draw = random.Random(seed)
    longest, answer = draw.choice([200, 500, 1200, 3000]), draw.choice([20, 80, 200, 400])
    config = drawn_config(draw, longest, answer)
    by_priority = config["enable_priority_scheduling"] or config["radix_eviction_policy"] == "priority"
    requests = drawn_requests(draw, longest, answer, priorities=by_priority)
    if seed >= ADAPTED:
        config["max_loras_per_batch"] = draw.choice([1, 2, 3, 8])
        draw_adapters(draw, requests, config["max_loras_per_batch"] + 2)
    return head("sglang", VERSION, seed, config), requests


# -- SGLang's scheduler -------------------------------------------------------------------------------------


def srt(module: str) -> Any:
    """A module of SGLang's."""
    return importlib.import_module(f"sglang.srt.{module}")


class Ordered(dict[Any, None]):
    """A set in the order of insertion: SGLang's of pre-empted requests is in that of their addresses."""

    def __init__(self, items: Any = ()) -> None:
        super().__init__(dict.fromkeys(items))

    def add(self, item: Any) -> None:
        """As of a set."""
        self[item] = None


class Silent:
    """What is asked for reports and metrics: answers every call with nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: None


def published(config: Case, **more: Any) -> Any:
    """Publish the settings where SGLang's modules look for them; what takes them back."""
    context = srt("runtime_context").get_context()
    names = (
        *("page_size", "schedule_policy", "schedule_conservativeness", "enable_mixed_chunk", "max_prefill_tokens"),
        *("enable_priority_scheduling", "schedule_low_priority_values_first", "disable_priority_preemption"),
        *("priority_scheduling_preemption_threshold", "radix_eviction_policy", "disable_radix_cache"),
        *("chunked_prefill_size", "prefill_max_requests", "max_running_requests", "speculative_algorithm"),
        *("speculative_num_steps", "speculative_eagle_topk", "speculative_num_draft_tokens"),
    )
    given = {name: config[name] for name in names if name in config}
    override = context.override_server_args(
        device="cpu",
        attention_backend="torch_native",
        disable_overlap_schedule=not config.get("overlap", False),
        pp_max_micro_batch_size=config["max_running_requests"],
        **given,
        **more,
    )
    override.install()
    return override


def pools(config: Case, page: int) -> tuple[Any, Any, Any]:
    """SGLang's table of requests, allocator of KV tokens and radix cache."""
    torch = importlib.import_module("torch")
    pool, allocator = srt("mem_cache.memory_pool"), srt("mem_cache.allocator")
    context = config.get("max_context_len") or config["context_len"]
    rows = pool.ReqToTokenPool(config["max_running_requests"], context + 8, "cpu", enable_memory_saver=False)
    tokens = config["max_total_num_tokens"]
    if page == 1:
        kv = allocator.TokenToKVPoolAllocator(tokens, torch.float16, "cpu", None, need_sort=False)
    else:
        kv = allocator.PagedTokenToKVPoolAllocator(tokens, page, torch.float16, "cpu", None, need_sort=False)
        kv.use_triton_kernels = False
    return rows, kv, cache_over(rows, kv, config, page)


def cache_over(rows: Any, kv: Any, config: Case, page: int) -> Any:
    """SGLang's radix cache over these pools."""
    params = srt("mem_cache.cache_init_params").CacheInitParams(
        disable=config.get("disable_radix_cache", False),
        req_to_token_pool=rows,
        token_to_kv_pool_allocator=kv,
        page_size=page,
        eviction_policy=config.get("radix_eviction_policy", "lru"),
        chunked_prefill_size=config.get("chunked_prefill_size"),
        is_eagle=config.get("speculative_algorithm") == "EAGLE",
        tree_components=(srt("mem_cache.unified_cache.component_type").ComponentType.FULL,),
    )
    return srt("mem_cache.unified_radix_cache").UnifiedRadixCache(params)


def built(config: Case) -> Any:
    """SGLang's scheduler with these settings, which are published."""
    module, policy = srt("managers.scheduler"), srt("managers.schedule_policy")
    policy.set = Ordered
    page = config.get("page_size", 1)
    rows, kv, cache = pools(config, page)
    chunk = config.get("chunked_prefill_size") or -1
    scheduler = module.Scheduler.__new__(module.Scheduler)
    model = SimpleNamespace(
        is_encoder_decoder=False, vocab_size=VOCABULARY, num_key_value_heads=1, self_opened_think_start_ids=None
    )
    runner = SimpleNamespace(attn_backend=object(), prefill_aware_swa=False)
    if "max_loras_per_batch" in config:
        validate = srt("lora.lora_manager").LoRAManager.validate_lora_batch
        held = SimpleNamespace(max_loras_per_batch=config["max_loras_per_batch"], num_pinned_loras=0)
        runner.lora_manager = SimpleNamespace(validate_lora_batch=lambda adapters: validate(held, adapters))
    overlap = config.get("overlap", False)
    beams = SimpleNamespace(pending_member_rows=lambda _: 0, retire_group=lambda _: None)
    given = {
        "disaggregation_mode": srt("disaggregation.utils").DisaggregationMode.NULL,
        "spec_algorithm": srt("speculative.spec_info").SpeculativeAlgorithm.NONE,
        "model_config": model,
        "is_generation": True,
        "page_size": page,
        "tree_cache": cache,
        "req_to_token_pool": rows,
        "token_to_kv_pool_allocator": kv,
        "max_running_requests": config["max_running_requests"],
        "max_total_num_tokens": config["max_total_num_tokens"],
        "max_prefill_tokens": config["max_prefill_tokens"],
        "max_req_len": min(config.get("max_context_len", 1 << 20), config["max_total_num_tokens"]) - 1,
        "chunked_prefill_size": chunk if chunk > 0 else None,
        "enable_lora": "max_loras_per_batch" in config,
        "is_mixed_chunk": chunk > 0 and config.get("enable_mixed_chunk", False),
        "enable_overlap": overlap,
        "enable_skip_finishing_decode": overlap,
        "schedule_policy": config.get("schedule_policy", "fcfs"),
        "enable_priority_scheduling": config.get("enable_priority_scheduling", False),
        "abort_on_priority_when_disabled": False,
        "schedule_low_priority_values_first": config.get("schedule_low_priority_values_first", False),
        "priority_scheduling_preemption_threshold": config.get("priority_scheduling_preemption_threshold", 10),
        "waiting_queue": [],
        "running_batch": srt("managers.schedule_batch").ScheduleBatch(reqs=[], batch_is_full=False),
        "result_queue": deque(),
        "tp_worker": SimpleNamespace(model_runner=runner),
        "grammar_manager": SimpleNamespace(
            has_waiting_grammars=lambda: False, grammar_queue=[], abort_requests=lambda _: None
        ),
        "dllm_manager": SimpleNamespace(any_staging_reqs=lambda: False),
        "dp_attn_adapter": SimpleNamespace(
            maybe_prepare_mlp_sync_batch=lambda batch, need_sync=None: batch,
            maybe_convert_decode_to_extend=lambda batch: batch,
        ),
        "ngram_embedding_manager": SimpleNamespace(prepare_for_forward=lambda batch, chunked_req: batch),
        "load_inquirer": SimpleNamespace(_get_num_pending_tokens=lambda chunk_deduct: 0),
        "beam_coordinator": beams,
        "output_streamer": Silent(),
        "metrics_reporter": SimpleNamespace(
            num_generated_tokens=0,
            forward_ct_decode=0,
            enable_metrics=False,
            report_decode_stats=lambda *_, **__: None,
            report_prefill_stats=lambda *_, **__: None,
        ),
        "scheduler_stage_metrics": Silent(),
    }
    off = (
        *("enable_hierarchical_cache", "enable_unified_cache_external_linker", "enable_lmcache", "enable_hicache_storage"),
        *("enable_hisparse", "enable_lora_overlap_loading", "is_hybrid_swa", "require_mlp_sync", "enable_overlap_mlx"),
        "enable_continuous_input_polling",
    )
    none = (
        *("_pending_chunked_abort_req", "dllm_config", "chunked_req", "last_batch", "min_free_slots_delayer"),
        *("prefill_delayer", "dynamic_chunk_sizer", "truncation_align_size", "hisparse_coordinator", "draft_worker"),
        *("decode_offload_manager", "max_queued_requests", "max_new_tokens_limit", "sliding_window_size"),
        *("metrics_collector", "lora_drainer", "policy", "mm_receiver"),
    )
    zero = (
        *("prefill_decode_interval", "_prefill_decode_interval_remaining", "forward_ct"),
        *("processed_tokens_counter", "max_prefill_bs"),
    )
    given |= dict.fromkeys(off, False) | dict.fromkeys(none) | dict.fromkeys(zero, 0)
    for name, value in given.items():
        setattr(scheduler, name, value)
    scheduler.model_worker = scheduler.tp_worker
    scheduler.init_schedule_policy()
    scheduler.init_beam_coordinator = lambda: None
    scheduler.init_batch_result_processor()
    return scheduler


class Recorder:
    """One run: requests in, steps out."""

    def __init__(self, head: Case, requests: list[Case]) -> None:
        self.config = head["config"]
        self.clock = head["step_time"]
        self.by_id = {request["id"]: request for request in requests}
        self.due = [(r["arrival"], r["idx"], r["id"]) for r in requests if "arrival" in r]
        heapq.heapify(self.due)
        self.leaving: list[tuple[float, int, str]] = []
        self.gone: set[str] = set()
        self.published = published(self.config)
        self.scheduler = built(self.config)
        self.retracted: list[str] = []
        self.preempted: list[str] = []
        self.aborted: list[str] = []
        self.cut: set[str] = set()
        self.steps: list[Case] = []
        self.results: dict[str, Case] = {}
        scheduler = self.scheduler
        queue = scheduler._add_request_to_queue

        def noting(request: Any, is_retracted: bool = False) -> None:
            if request.retraction_count:
                (self.retracted if is_retracted else self.preempted).append(request.rid)
            queue(request, is_retracted)

        scheduler._add_request_to_queue = noting
        scheduler.send_abort_output = lambda _, request: self.aborted.append(request.rid)

    def enqueue(self, now_s: float) -> None:
        """Hand over what has arrived."""
        params = srt("sampling.sampling_params").SamplingParams
        kind = srt("managers.schedule_batch").Req
        while min(self.due[:1] + self.leaving[:1], default=(now_s + 1, 0, ""))[0] <= now_s:
            if self.leaving and (not self.due or self.leaving[0] < self.due[0]):
                self.leave(*heapq.heappop(self.leaving))
                continue
            at_s, _, name = heapq.heappop(self.due)
            given = self.by_id[name]
            certain = self.config.get("ignore_eos", False)
            most = given.get("max_tokens", given["output_len"])
            sampling = params(max_new_tokens=most, temperature=0.0, ignore_eos=certain, stop_token_ids=stops_at(given))
            sampling.normalize(None)
            priority = given.get("priority", 0)
            tokens = array("q", prompt(given))
            more = {"lora_id": str(given["adapter"])} if given.get("adapter") else {}
            request = kind(name, "", tokens, sampling, eos_token_ids=set(), vocab_size=VOCABULARY, priority=priority, **more)
            self.scheduler.init_req_max_new_tokens(request)
            self.results[name] = {"type": "result", "id": name, "arrival": at_s, "n_out": 0}
            self.scheduler._add_request_to_queue(request)
            if "leaves_s" in given:
                heapq.heappush(self.leaving, (at_s + given["leaves_s"], given["idx"], name))

    def leave(self, at_s: float, _: int, name: str) -> None:
        """The client of a request leaves; who waited for its end goes on."""
        if "finish" not in self.results[name]:
            self.scheduler.abort_request(srt("managers.io_struct").AbortReq(rid=name))
            self.ended([name], at_s)
            self.gone.add(name)

    def ended(self, names: list[str], at_s: float) -> None:
        """Let those come that wait for these."""
        for other in self.by_id.values():
            after = other.get("after")
            if after and after["id"] in names and after["id"] not in self.gone:
                heapq.heappush(self.due, (at_s + after["delay"], other["idx"], other["id"]))

    def free(self) -> tuple[int, int]:
        """Tokens of the pool that nobody holds, and those that the tree would give up."""
        scheduler = self.scheduler
        return scheduler.token_to_kv_pool_allocator.available_size(), scheduler.tree_cache.evictable_size()

    def form(self, now_s: float) -> tuple[Any, Case | None]:
        """Let a batch be formed: SGLang's, and the step as it is recorded."""
        scheduler = self.scheduler
        self.enqueue(now_s)
        cut = set(self.cut)
        plan = scheduler.get_next_batch_to_run(running_batch=scheduler.running_batch, last_batch=scheduler.last_batch)
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        if not batch:
            return None, None
        scheduler.forward_ct += 1
        batch.forward_iter = scheduler.forward_ct
        if batch.extend_num_tokens:
            scheduler.processed_tokens_counter += batch.extend_num_tokens
        decoding = batch.forward_mode.is_decode()
        rows = self.rows(batch)
        news = [new for _, new, _ in rows]
        decodes = len(batch.decoding_reqs or ()) if not decoding else len(rows)
        if scheduler.chunked_req is not None:
            self.cut.add(scheduler.chunked_req.rid)
        free, evictable = self.free()
        step = {
            "type": "step",
            "step": len(self.steps),
            "t_sched": now_s,
            "mode": batch.forward_mode.name,
            "sched": rows,
            "hits": {} if decoding else {name: n for name, _, n in rows if n and name not in cut},
            "retracted": self.retracted[:],
            "preempted": self.preempted[:],
            "aborted": self.aborted[:],
            "chunked": scheduler.chunked_req.rid if scheduler.chunked_req is not None else None,
            "waiting": [request.rid for request in scheduler.waiting_queue],
            "batch_is_full": scheduler.running_batch.batch_is_full,
            "new_token_ratio": round(scheduler.new_token_ratio_tracker.current, 9),
            "free_tokens": free,
            "evictable": evictable,
            "prefill_tokens": 0 if decoding else sum(news) - decodes,
            "decode_seqs": decodes,
            "kv_tokens": sum(new + before for _, new, before in rows),
        }
        for noted in (self.retracted, self.preempted, self.aborted):
            noted.clear()
        return batch, step

    def rows(self, batch: Any) -> list[Any]:
        """The rows of a batch: request, new tokens, tokens before them."""
        names, ends = [request.rid for request in batch.reqs], batch.seq_lens_cpu.tolist()
        news = [1] * len(names) if batch.forward_mode.is_decode() else list(batch.extend_lens)
        return [[name, new, end - new] for name, new, end in zip(names, news, ends, strict=True)]

    def yielded(self, batch: Any, _step: Case) -> Any:
        """What the model yields with a batch: a token a row."""
        torch = importlib.import_module("torch")
        tokens = [token(self.by_id[request.rid]["out_seg"], len(request.output_ids)) for request in batch.reqs]
        return srt("managers.utils").GenerationBatchResult(next_token_ids=torch.tensor(tokens, dtype=torch.int64))

    def settle(self, batch: Any, step: Case) -> None:
        """Take in the results of a batch at its end."""
        scheduler = self.scheduler
        counts = {request.rid: len(request.output_ids) for request in batch.reqs}
        result = self.yielded(batch, step)
        ended = {request.rid for request in batch.reqs if request.finished()}
        processor = scheduler.batch_result_processor
        if batch.forward_mode.is_decode():
            processor.process_batch_result_decode(batch, result)
        else:
            processor.process_batch_result_prefill(batch, result)
        step["finished"] = []
        for request in batch.reqs:
            note = self.results[request.rid]
            if len(request.output_ids) > counts[request.rid]:
                note.setdefault("first_token", step["t_end"])
                note["n_out"] = len(request.output_ids_through_stop)
            if request.finished() and request.rid not in ended:
                note["finish"] = step["t_end"]
                step["finished"].append(request.rid)
        step["free_tokens_after"], step["evictable_after"] = self.free()
        self.ended(step["finished"], step["t_end"])

    def run(self) -> None:
        """Serve all requests; one batch ahead with overlap."""
        scheduler, overlap = self.scheduler, self.config.get("overlap", False)
        flight: deque[tuple[Any, Case]] = deque()
        now_s = free_s = 0.0
        idle = 0
        while True:
            batch, step = self.form(now_s)
            if batch is not None and step is not None:
                idle = 0
                clock = self.clock
                took_s = clock["a"] + clock["b"] * step["prefill_tokens"] + clock["c"] * step["decode_seqs"]
                step["t_start"] = max(now_s, free_s)
                step["t_end"] = free_s = step["t_start"] + took_s + clock["d"] * step["kv_tokens"]
                self.steps.append(step)
                flight.append((batch.copy(), step))
                scheduler.result_queue.append((flight[-1][0], None))
            if (scheduler.last_batch if overlap else batch) is not None:
                done, its = flight.popleft()
                scheduler.result_queue.popleft()
                now_s = max(now_s, its["t_end"])
                self.settle(done, its)
            elif batch is None and scheduler.is_fully_idle():
                scheduler.new_token_ratio_tracker.reset()
            if batch is None and scheduler.last_batch is None:
                idle += 1
                if self.due:
                    now_s = max(now_s, self.due[0][0])
                elif scheduler.is_fully_idle():
                    return
                elif idle > 3:
                    raise RuntimeError("requests are left, and none can be served")
            scheduler.last_batch = batch


def record(config: Case, requests: list[Case], kind: type[Recorder] = Recorder) -> list[Case]:
    """The steps of SGLang's scheduler, and when each request ended."""
    if any("max_tokens" in request for request in requests):
        config["config"]["ignore_eos"] = False
    recorder = kind(config, requests)
    try:
        recorder.run()
    finally:
        recorder.published.restore()
    return [*recorder.steps, *recorder.results.values()]


if __name__ == "__main__":
    main(__doc__, drawn, record, ("leaving", "stopping"))
