"""Schedules of DeepSpeed-MII's own ragged batching under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_deepspeed_mii.py OUT --first 0 --count 60      60 recordings, by their seeds
    capacity-plan validate schedules OUT                                    how many steps are reproduced

Runs in an environment where `mii` 0.3.3 and `deepspeed` 0.19.8 can be imported (torch for CPUs); nothing of this project is
needed. The pipeline with its scheduling, the requests, the engine's `put`, `query` and `flush`, the manager of states and the
blocks are theirs. The model is not there; a client flushes its request right after the call that ended it. Seeds in which MII
itself fails, since a flush is on its way and nothing else can run, are left out.
"""

from __future__ import annotations

import importlib
import random
from types import SimpleNamespace
from typing import Any

from recorded_load import Arrivals, Case, drawn_requests, head, main, prompt, step_s, token

VERSION = "mii 0.3.3 / deepspeed 0.19.8"
RAGGED = "deepspeed.inference.v2.ragged"


# -- what is drawn ------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: a tight or roomy pool, prompts that are cut, few places, short limits."""
    draw = random.Random(seed)
    longest, answer = draw.choice([200, 500, 1200]), draw.choice([20, 80, 200])
    block, tokens = draw.choice([16, 32, 64, 128]), draw.choice([32, 64, 256, 768, 768])
    rows = min(tokens, draw.choice([3, 8, 16, 64, 512]))
    config: Case = {
        "kv_block_size": block,
        "max_ragged_batch_size": tokens,
        "max_ragged_sequence_count": rows,
        "max_tracked_sequences": draw.choice([2048, 2048, 2048, rows + 4, 2 * rows + 8]),
        "max_context": 8192,
        "max_length": draw.choice([16384, 16384, longest + 1, longest + answer // 2]),
    }
    one = -(-(longest + answer) // block) + 1
    config["num_kv_blocks"] = max(one + 1, int(one * draw.choice([1.1, 1.5, 2.5, 5, 12])))
    return head("deepspeed_mii", VERSION, seed, config), drawn_requests(draw, longest, answer)


# -- MII's pipeline -----------------------------------------------------------------------------------------


def built(config: Case) -> Any:
    """DeepSpeed's engine with these settings; its model counts blocks and computes nothing."""
    torch: Any = importlib.import_module("torch")
    arange, torch.cuda.synchronize = torch.arange, lambda: None
    modules: Any = [importlib.import_module(f"{RAGGED}.{name}") for name in ("ragged_manager", "ragged_wrapper", "kv_cache")]
    manager, wrapper, _ = modules
    configs = importlib.import_module(f"{RAGGED}.manager_configs")
    host = SimpleNamespace(allocate_fast_host_buffer=lambda tensor: tensor.clone())
    for each in modules:
        each.get_accelerator = lambda: SimpleNamespace(current_device=lambda: "cpu")
        each.RaggedUtilsBuilder = lambda: SimpleNamespace(load=lambda: host)
    names = ("max_tracked_sequences", "max_ragged_batch_size", "max_ragged_sequence_count", "max_context")
    memory = configs.MemoryConfig(mode=configs.AllocationMode.ALLOCATE, size=config["num_kv_blocks"])
    states = configs.DSStateManagerConfig(**{name: config[name] for name in names}, memory_config=memory)
    block, most = config["kv_block_size"], config["num_kv_blocks"]
    layout = configs.KVCacheConfig(block_size=block, cache_shape=(1, 1, 1), max_blocks_per_allocation_group=most)
    models = importlib.import_module("deepspeed.inference.v2.model_implementations.inference_transformer_base")
    base = models.DSTransformerModelBase

    class Model:
        """The counts of DeepSpeed's model."""

        state_manager: Any = None
        attn = SimpleNamespace(kv_block_size=block)
        get_kv_requirements = base.get_kv_requirements
        get_remaining_block_capacity = base.get_remaining_block_capacity
        maybe_allocate_kv = base.maybe_allocate_kv

        def maybe_free_kv(self, _sequence: Any) -> None:
            """Nothing leaves."""

        def prepare_batch(self, _batch: Any) -> None:
            """Nothing to do."""

        def forward(self, batch: Any) -> Any:
            """No logits."""
            return torch.zeros(batch.current_sequences, 1)

    kind = importlib.import_module("deepspeed.inference.v2.engine_v2").InferenceEngineV2
    engine, model = object.__new__(kind), Model()
    torch.arange = lambda *shape, pin_memory=False, **more: arange(*shape, **more)  # pinned memory takes an accelerator
    engine._config, engine._model = SimpleNamespace(state_manager=states), model
    engine._batch = wrapper.RaggedBatchWrapper(states)
    engine._state_manager = manager.DSStateManager(states, (layout,))
    torch.arange = arange
    model.state_manager = engine._state_manager
    return engine


class Recorder:
    """One run: requests in, steps out."""

    def __init__(self, config: Case, requests: list[Case]) -> None:
        knobs = config["config"]
        self.torch: Any = importlib.import_module("torch")
        self.engine = built(knobs)
        self.arrivals = Arrivals(requests)
        self.given = {request["idx"]: request for request in requests}
        self.ended: list[int] = []
        self.flushed: list[int] = []
        self.reset: list[int] = []
        self.steps: list[Case] = []
        self.end_s = 0.0
        mii: Any = importlib.import_module("mii.batching.ragged_batching")
        socket = SimpleNamespace(bind=lambda _: None, send_string=lambda _: None)
        mii.zmq = SimpleNamespace(Context=lambda: SimpleNamespace(socket=lambda _: socket), PUB=0, Again=Exception)
        mii.time = SimpleNamespace(sleep=lambda _: None)
        mii.get_accelerator = lambda: SimpleNamespace(current_device=lambda: 0)
        settings = SimpleNamespace(
            zmq_port_number=0, max_length=knobs["max_length"], sync_debug=False, profile_model_time=False
        )
        words = SimpleNamespace(vocab_size=1, eos_token_id=0, tokenizer=SimpleNamespace(eos_token_id=0))
        self.pipeline = mii.MIIAsyncPipeline(self.engine, words, settings)
        flush, reset = self.engine.flush, self.pipeline.reset_request_status

        def noting_flushed(uid: int) -> None:
            self.flushed.append(uid)
            flush(uid)

        def noting_reset() -> None:
            reset()
            self.reset.append(self.pipeline.scheduled_requests.uids[-1])

        self.engine.flush, self.pipeline.reset_request_status = noting_flushed, noting_reset
        self.pipeline._process_logits = self.sample
        self.pipeline._generate_output = lambda request: self.ended.append(request.uid)

    def names(self, uids: list[int]) -> list[str]:
        """Their names."""
        return [self.given[uid]["id"] for uid in uids]

    def enter(self, now_s: float) -> None:
        """Queue what has come."""
        for _, given in self.arrivals.take(now_s):
            tokens = self.torch.tensor(prompt(given), dtype=self.torch.int32)
            wanted = {"max_new_tokens": given["output_len"], "ignore_eos": True}
            self.pipeline.uids.add(given["idx"])
            self.pipeline.request_queue.put(self.pipeline.make_request(0, given["idx"], tokens, wanted))

    def sample(self, _logits: Any, running: Any) -> tuple[Any, Any]:
        """The forward has ended: who has come on the way is queued, each row gets its next token."""
        self.enter(self.end_s)
        tokens = [
            token(self.given[row.uid]["out_seg"], max(0, row.seq_length - self.given[row.uid]["prompt_len"])) for row in running
        ]
        return self.torch.tensor(tokens), self.torch.zeros(len(tokens), dtype=self.torch.bool)

    def serve(self, now_s: float) -> float:
        """Run the batch that has been chosen; return when it ends."""
        pipeline, engine = self.pipeline, self.engine
        batch = pipeline.scheduled_requests
        rows, prompts, decodes, kv = [], 0, 0, 0
        for row in batch.requests_to_run:
            new, before = len(row.input_tokens), row.seq_length
            rows.append([self.given[row.uid]["id"], new, before])
            decoding = before >= row.prompt_length
            decodes += decoding
            prompts += 0 if decoding else new
            kv += before + new
        step: Case = {
            "type": "step",
            "step": len(self.steps),
            "t_sched": now_s,
            "t_start": now_s,
            "sched": rows,
            "hits": {},
            "free_blocks": engine.free_blocks[0],
            "scheduled_blocks": pipeline.scheduled_req_blocks,
            "flushing": self.names(batch.requests_to_flush.uids),
            "waiting": [self.given[row.uid]["id"] for row in pipeline.buffer],
            "preempted": self.names(self.reset),
            "prefill_tokens": prompts,
            "decode_seqs": decodes,
            "kv_tokens": kv,
        }
        self.reset.clear()
        step["t_end"] = self.end_s = now_s + step_s(step)
        put = engine.put

        def noting_put(*given: Any, **more: Any) -> Any:
            logits = put(*given, **more)
            step.update(free_blocks_after=engine.free_blocks[0], tracked=engine._state_manager.n_tracked_sequences)
            step["flushed"] = self.names(self.flushed)
            self.flushed.clear()
            return logits

        engine.put = noting_put
        pipeline.generate()
        engine.put = put
        step["finished"] = self.names(self.ended)
        for uid in self.ended:
            pipeline.flush_uid(uid)
        self.ended.clear()
        self.arrivals.ended(step["finished"], self.end_s)
        self.steps.append(step)
        return self.end_s

    def run(self) -> None:
        """Serve all requests."""
        pipeline, now_s = self.pipeline, 0.0
        while True:
            self.enter(now_s)
            if len(pipeline.scheduled_requests.requests_to_run):
                now_s = self.serve(now_s)
            elif len(pipeline.scheduled_requests) or len(pipeline.buffer) or not pipeline.request_queue.empty():
                pipeline.generate()
            elif self.arrivals.next_s < float("inf"):
                now_s = max(now_s, self.arrivals.next_s)
            else:
                return


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of DeepSpeed-MII's pipeline."""
    recorder = Recorder(config, requests)
    recorder.run()
    return recorder.steps


if __name__ == "__main__":
    main(__doc__, drawn, record)
