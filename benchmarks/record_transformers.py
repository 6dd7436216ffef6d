"""Schedules of transformers' own continuous batching under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_transformers.py OUT --first 0 --count 60      60 recordings, by their seeds
    capacity-plan validate schedules OUT                                   how many steps are reproduced

Runs in an environment with transformers 5.24 and torch for CPUs; nothing of this project is needed. The batch processor, the
schedulers, the paged cache, the offloading manager and the requests are transformers'. The model is not there: each row that
yields a token gets its next one. Two batches in flight are two sets of host tensors that take turns, without streams.
"""

from __future__ import annotations

import importlib
import queue
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

from recorded_load import Arrivals, Case, drawn_requests, head, main, prompt, step_s, token

VERSION = "5.24.0"
HEAD_DIM = 4  # a page of 16 tokens takes 256 bytes
GIB = 1 << 30
IDLE_S = 0.1


# -- what is drawn ------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: a cache that is tight or roomy, layers that see all or a window."""
    draw = random.Random(seed)
    longest, answer = draw.choice([200, 500, 1200]), draw.choice([20, 80, 200])
    page = draw.choice([8, 16, 16, 16, 32, 256])
    config: Case = {
        "page_size": page,
        "max_batch_tokens": draw.choice([64, 128, 256, 512, 2048, 8192]),
        "max_requests_per_batch": draw.choice([4, 8, 24, 64, 1024]),
        "max_blocks_per_request": draw.choice([0, 4, 16, 32, 32]),
        "allow_block_sharing": draw.random() < 0.7,
        "use_async_batching": draw.random() < 0.5,
        "scheduler_type": draw.choice(["fifo", "fifo", "prefill_first"]),
    }
    config["max_requests_per_batch"] = min(config["max_requests_per_batch"], config["max_batch_tokens"])
    usual = 0.15 if config["scheduler_type"] == "fifo" else 0.0
    config["safety_margin"] = draw.choice([usual, usual, 0.0, 0.05, 0.3, 0.5, 0.9])
    kinds, layers, window = [("full_attention", 1)], 1, None
    if draw.random() < 0.35:
        window = draw.choice([32, 64, 128, 200])
        kinds = draw.choice(
            [
                [("sliding_attention", 1)],
                [("full_attention", 2), ("sliding_attention", 4)],
                [("sliding_attention", 3), ("full_attention", 2)],
                [("full_attention", 1), ("sliding_attention", 1)],
            ]
        )
        layers = sum(many for _, many in kinds)
        config["max_blocks_per_request"] = 0
    one = -(-(longest + answer + 1) // page) + 2
    config["num_blocks"] = max(one + 1, int(one * draw.choice([1.1, 1.5, 2.5, 5, 12])))
    if len(kinds) > 1:  # a sector holds blocks of one kind only
        config["num_blocks"] += 8
    config["allocators"] = [
        {"kind": kind, "layers": many, "window": window if kind == "sliding_attention" else None} for kind, many in kinds
    ]
    if draw.random() < 0.3:
        config["cpu_offload_gib"] = draw.choice([0.3, 4, 20]) * config["num_blocks"] * layers * page * 16 / GIB
    return head("transformers_cb", VERSION, seed, config), drawn_requests(draw, longest, answer)


# -- transformers' scheduler --------------------------------------------------------------------------------


class TwoInputs:
    """Two sets of host tensors that take turns: one is prepared while the other's batch runs."""

    compute_stream = None

    def __init__(self, first: Any, second: Any) -> None:
        self.current, self.other = first, second
        self.prepare_batch_tensors = lambda *given, **more: self.current.prepare_batch_tensors(*given, **more)
        self.get_model_kwargs = lambda **given: self.current.get_model_kwargs(**given)
        self.prepare_batch_update = lambda: self.current.prepare_batch_update()

    def retrieve_device_outputs(self) -> None:
        """The batch is under way: the other set is next."""
        self.current, self.other = self.other, self.current


def module(name: str) -> Any:
    """A module of transformers' continuous batching."""
    return importlib.import_module(f"transformers.generation.continuous_batching.{name}")


def built(config: Case) -> Any:
    """transformers' batch processor with these settings, which are completed by what it derives from them."""
    torch: Any = importlib.import_module("torch")
    empty = torch.empty
    torch.empty = lambda *shape, pin_memory=False, **more: empty(*shape, **more)  # pinned memory takes an accelerator
    api, ios = module("continuous_api"), module("input_outputs")
    kinds = [each["kind"] for each in config["allocators"] for _ in range(each["layers"])]
    model = SimpleNamespace(
        layer_types=kinds,
        sliding_window=next((each["window"] for each in config["allocators"] if each["window"]), None),
        num_hidden_layers=len(kinds),
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=HEAD_DIM,
        hidden_size=HEAD_DIM,
        vocab_size=64,
        _attn_implementation="flash_attention_2",
    )
    names: tuple[str, ...] = ("page_size", "num_blocks", "max_batch_tokens", "max_requests_per_batch")
    names += ("max_blocks_per_request", "allow_block_sharing", "scheduler_type", "safety_margin")
    settings = importlib.import_module("transformers.generation.configuration_utils").ContinuousBatchingConfig(
        **{name: config[name] for name in names},
        use_async_batching=False,
        use_cuda_graph=(False, False),
        max_memory_percent=0.6,
        cpu_offload_space=config.get("cpu_offload_gib", 0.0),
        seed=0,
    )
    alone = module("distributed").DistributedHelper(None, None)
    device = torch.device("cpu")
    cache = module("cache").PagedAttentionCache(model, settings, device, alone)
    kind = module("scheduler").SCHEDULER_MAPPING[config["scheduler_type"]]
    processors = importlib.import_module("transformers.generation.logits_process").LogitsProcessorList()
    logits = module("cb_logits_processors").ContinuousBatchingLogitsProcessorList(processors)
    processor = api.ContinuousBatchProcessor(
        cache=cache,
        config=model,
        generation_config=SimpleNamespace(do_sample=False),
        continuous_batching_config=settings,
        logit_processor=logits,
        input_queue=queue.Queue(),
        cancel_queue=queue.Queue(),
        output_router=api.OutputRouter(),
        background_thread_status=api.BackgroundThreadStatus(),
        model_device=device,
        model_dtype=torch.float16,
        scheduler=kind(cache, config["safety_margin"], config["max_requests_per_batch"]),
        distributed_helper=alone,
    )
    torch.empty = empty
    first = processor.inputs_and_outputs
    if config["use_async_batching"]:
        processor.use_async_batching = True
        processor.inputs_and_outputs = TwoInputs(
            first, ios.ContinuousBatchingIOs(cache, model, settings, device, torch.float16, logits)
        )
    for given, made in zip(config["allocators"], cache.cache_allocators.values(), strict=True):
        given |= {"blocks_per_sector": made.blocks_per_sector, "num_blocks": made.num_blocks}
    pool = processor.offloading_manager._cpu_pool
    config |= {
        "num_sectors": cache.num_sectors,
        "prefix_sharing_active": cache.use_prefix_sharing,
        "cpu_pool_sectors": pool.num_sectors if pool else 0,
        "max_tokens_read": cache.max_tokens_read,
        "max_decode_fast_path_length": cache.max_decode_fast_path_length,
    }
    return processor


class Recorder:
    """One run: requests in, steps out."""

    def __init__(self, config: Case, requests: list[Case]) -> None:
        self.deep = config["config"]["use_async_batching"]
        self.processor = built(config["config"])
        self.processor.model_runner.compute_batch = self.compute
        self.scheduler, self.cache = self.processor.scheduler, self.processor.cache
        self.arrivals = Arrivals(requests)
        self.seen: set[str] = set()
        self.notes: Case = {}
        self.steps: list[Case] = []
        scheduler, cache, manager = self.scheduler, self.cache, self.processor.offloading_manager
        queue_up, look_up, evict = scheduler.add_waiting_request, cache.search_prefix_match, cache.evict_cached_blocks
        choose, restore = scheduler.schedule_batch, manager.restore_scheduled_requests

        def noting_queued(state: Any) -> None:
            if state.request_id in self.seen:
                self.notes["cpu_offloaded" if state.is_cpu_offloaded else "preempted"].append(state.request_id)
            self.seen.add(state.request_id)
            queue_up(state)

        def noting_hits(name: str, tokens: list[int]) -> Any:
            if found := look_up(name, tokens):
                self.notes["hits"][name] = found
            return found

        def noting_evicted() -> Any:
            self.notes["evicted_blocks"] += self.cached()
            return evict()

        def noting_path(*budgets: int) -> Any:
            chosen = choose(*budgets)
            self.notes["fast_path"] = chosen[1]
            return chosen

        def noting_restored(rows: list[Any]) -> None:
            self.notes["restored"] += [row.state.request_id for row in rows if row.state.is_cpu_offloaded]
            restore(rows)

        scheduler.add_waiting_request, scheduler.schedule_batch = noting_queued, noting_path
        cache.search_prefix_match, cache.evict_cached_blocks = noting_hits, noting_evicted
        manager.restore_scheduled_requests = noting_restored

    def cached(self) -> int:
        """Blocks that nobody holds and that are kept for their contents."""
        return sum(len(each.ledger.cached_blocks) for each in self.cache.cache_allocators.values())

    def free(self) -> list[int]:
        """Blocks that each kind of layers alone could take."""
        pool, kinds = self.cache.pool, self.cache.cache_allocators.values()
        return [pool.count_free_blocks(each.index) + pool.num_free_sectors * each.blocks_per_sector for each in kinds]

    def compute(self, _model: Any, _data: Any) -> None:
        """The model: every row that yields a token gets its next one."""
        inputs = self.processor.inputs_and_outputs
        inputs = inputs.current if self.deep else inputs
        rows = [row.state for row in inputs.requests_in_batch if row.has_new_token]
        for at, state in enumerate(rows):
            given = self.arrivals.by_id[state.request_id]
            inputs.output_ids[0, at] = token(given["out_seg"], state.position_offset - given["prompt_len"])

    def form(self, now_s: float) -> Case | None:
        """Let a batch be chosen and started: the step as it is recorded; None if there is none."""
        self.notes = {"hits": {}, "preempted": [], "cpu_offloaded": [], "restored": [], "evicted_blocks": 0}
        for _, given in self.arrivals.take(now_s):
            state = module("requests").RequestState(
                given["id"], prompt(given), max_new_tokens=given["output_len"], eos_token_id=-1
            )
            self.processor.input_queue.put(state)
        if not self.processor.prepare_next_batch():
            return None
        scheduler, inputs = self.scheduler, self.processor.inputs_and_outputs
        rows, prompts, decodes, kv = [], 0, 0, 0
        for row in (inputs.current if self.deep else inputs).requests_in_batch:
            name, new = row.state.request_id, row.query_length
            before = row.state.position_offset - new
            rows.append([name, new, before])
            decoding = new == 1 and before >= self.arrivals.by_id[name]["prompt_len"]
            decodes += decoding
            prompts += 0 if decoding else new
            kv += before + new
        step = {
            "type": "step",
            "step": len(self.steps),
            "t_sched": now_s,
            "sched": rows,
            **self.notes,
            "starved": [state.request_id for state, _ in scheduler.starved_requests],
            "block_new": scheduler.block_new_requests,
            "running": list(scheduler.active_requests),
            "waiting": list(scheduler.waiting_requests_order),
            "free_sectors": self.cache.pool.num_free_sectors,
            "free_blocks": self.free(),
            "cached_blocks": self.cached(),
            "prefill_tokens": prompts,
            "decode_seqs": decodes,
            "kv_tokens": kv,
        }
        self.processor._generation_step(None)
        self.steps.append(step)
        return step

    def settle(self, step: Case) -> None:
        """Take in the results of a batch at its end."""
        inside = set(self.scheduler.active_requests)
        self.processor.update_batch()
        inside -= set(self.scheduler.active_requests)
        step["finished"] = [name for name, *_ in step["sched"] if name in inside]
        step["free_blocks_after_update"], step["cached_blocks_after_update"] = self.free(), self.cached()
        self.arrivals.ended(step["finished"], step["t_end"])

    def run(self) -> None:
        """Serve all requests; one batch ahead with asynchronous batching."""
        flight: deque[Case] = deque()
        now_s = free_s = 0.0
        while self.arrivals.next_s < float("inf") or self.scheduler.has_pending_requests():
            step = self.form(now_s)
            if step is None:
                now_s = min(max(now_s, self.arrivals.next_s), now_s + IDLE_S)
                continue
            step["t_start"] = max(now_s, free_s)
            step["t_end"] = free_s = step["t_start"] + step_s(step)
            flight.append(step)
            if len(flight) > self.deep:
                step = flight.popleft()
                now_s = max(now_s, step["t_end"])
                self.settle(step)
        for step in flight:
            self.processor.inputs_and_outputs.retrieve_device_outputs()
            self.settle(step)


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of transformers' continuous batching."""
    recorder = Recorder(config, requests)
    recorder.run()
    return recorder.steps


if __name__ == "__main__":
    main(__doc__, drawn, record)
