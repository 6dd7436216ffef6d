"""Loops of SGLang's own prefill and decode servers under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_sglang_pd.py OUT --first 0 --count 60    60 recordings, by their seeds, of one kind and the other
    python benchmarks/record_sglang_pd.py OUT --like FILE...          the settings and requests of these recordings once more

As `record_sglang.py`, whose parts it uses. The queues of both servers, their scheduler, pools, cache and processing of results
are SGLang's; the peer, the network, the model and the clock are scripted as the `clock` line says: a decode server's prompts are
computed elsewhere without a queue, a prefill server's requests have memory there from `decode_ready` on. Times are drawn so that
nothing falls on the end of a loop to the digit. Drafts, of which `spec_accept` says how many are accepted, have no drafter. With
`--like` nine of the ten recordings that the schedulers were written after come out equal (2,710 loops); the tenth never ends.
"""

from __future__ import annotations

import heapq
import importlib
import random
from array import array
from types import SimpleNamespace
from typing import Any

from record_sglang import VERSION, VOCABULARY, Silent, built, cache_over, published, srt
from record_sglang_drafts import Pending, draw_drafts, written
from recorded_load import Case, main, prompt, token

SOON_S = 1e-9  # times of the clock that are as good as equal
DRAFTED, CACHED = 1_000_000, 2_000_000
"""Seeds from here on are decode servers with drafts, and with a tree of prefixes."""
NAMED = ("bootstrapped", "sent_chunk", "sent_early", "done", "admitted", "transferred", "resumed", "prebuilt")
QUEUES = ("bootstrap", "waiting", "inflight", "prealloc", "transfer_queue", "free", "free_end", "evictable_end")

# -- what is drawn ------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: a decode server of an even one, a prefill server of an odd one."""
    draw = random.Random(seed)
    kind = "prefill" if seed % 2 and seed < DRAFTED else "decode"
    longest, answer = draw.choice([100, 400, 1200, 3000]), draw.choice([4, 40, 200, 500])
    rate, at_s, many = draw.choice([2, 10, 40, 120]), 0.0, draw.choice([20, 40, 60])
    config: Case = {"max_total_num_tokens": 0, "max_running_requests": draw.choice([2, 4, 8, 16, 64])}
    config["metadata_buffers"] = draw.choice([2, 4, 8, 32, 64])
    clock: Case = {"a": draw.choice([0.008, 0.01, 0.02]), "d": 2e-08, "empty": 0.001}
    requests: list[Case] = []
    if kind == "decode":
        reserved = draw.choice([1, 16, 64, 512])
        config |= {
            "pre_alloc_size": draw.choice([2, 4, 8, 32, 64]),
            "num_reserved_decode_tokens": reserved,
            "context_len": 16384,
        }
        if draw.random() < 0.3:
            config["polling_interval"] = draw.choice([2, 3, 5])
        config["max_total_num_tokens"] = int((longest + max(answer, reserved)) * draw.choice([1.1, 1.5, 2.5, 5, 12])) + 2
        clock |= {"c": 1e-4, "handshake": 0.001, "prefill_fixed": draw.choice([0.02037, 0.10037]), "prefill_token": 3.1e-5}
    else:
        config |= {
            "chunked_prefill_size": draw.choice([-1, 128, 512, 2048, 2048]),
            "max_prefill_tokens": draw.choice([512, 4096, 16384]),
            "context_len": 16384,
            "schedule_policy": draw.choice(["fcfs", "fcfs", "lpm", "dfs-weight", "lof"]),
        }
        config["max_total_num_tokens"] = int(longest * draw.choice([1.1, 1.5, 2.5, 5, 12])) + 10
        clock |= {"b": 3e-5, "xfer_fixed": draw.choice([0.00337, 0.05037]), "xfer_token": draw.choice([2.1e-6, 1.01e-4, 3.1e-4])}
    page = random.Random(f"{seed} pages").choice([1, 1, 16, 64])
    config["page_size"] = page
    if page > 1:
        config["max_total_num_tokens"] = (config["max_total_num_tokens"] // page + 3) * page
    if 0 < config.get("chunked_prefill_size", 0) < page:
        config["chunked_prefill_size"] = page
    if seed >= CACHED:
        config["decode_radix_cache"] = True
    elif seed >= DRAFTED:
        draw_drafts(draw, config)
        ahead = max(config["speculative_num_steps"] * config["speculative_eagle_topk"], config["speculative_num_draft_tokens"])
        config["max_total_num_tokens"] += -(-8 * (ahead + page * config["speculative_eagle_topk"]) // page) * page
    late = draw.choice([0.02, 0.3, 1.0])
    heads = [(10 + number, draw.randint(1, longest)) for number in range(draw.randint(1, 4))]
    for index in range(many):
        at_s += draw.expovariate(rate)
        prompt = draw.randint(1, longest)
        entry: Case = {"type": "request", "idx": index, "id": f"r{index:03d}"}
        if kind == "prefill" or seed >= CACHED:
            segments = [[100 + index, 0, prompt]]
            head, tokens = draw.choice(heads)
            if tokens < prompt and draw.random() < 0.6:
                segments = [[head, 0, tokens], [100 + index, 0, prompt - tokens]]
            entry["segments"] = segments
        if seed >= CACHED:
            entry["out_seg"] = 20000 + index
        entry |= {"prompt_len": prompt, "output_len": draw.randint(1, answer), "arrival": round(at_s, 6)}
        if kind == "prefill":
            entry["decode_ready"] = round(at_s + draw.uniform(0.001, late), 6)
        requests.append(entry)
    head_line = {
        "type": "config",
        "engine": f"sglang_pd_{kind}",
        "version": VERSION,
        "scenario": f"{kind}-{seed}",
        "config": config,
        "clock": clock,
    }
    return head_line, requests


# -- the peer, scripted -------------------------------------------------------------------------------------


class Peer:
    """What SGLang asks of the connection of a request: how far it is, by the clock."""

    def __init__(self, owner: Server, name: str) -> None:
        self.owner, self.name = owner, name
        self.ready_s = owner.by_id[name].get("decode_ready", float("inf"))
        self.done_s = float("inf")
        self.conclude_state = None
        self.supports_host_destination = False
        self.kv_mgr = SimpleNamespace(is_dummy_cp_rank=True)

    def poll(self) -> Any:
        """The state now."""
        now_s = self.owner.now_s + SOON_S
        states = importlib.import_module("sglang.srt.disaggregation.base").KVPoll
        if self.done_s <= now_s:
            return states.Success
        return states.WaitingForInput if self.ready_s <= now_s else states.Bootstrapping

    # of a decode server

    def init(self, *_: Any) -> None:
        """The handshake begins."""
        if self.owner.kind == "decode":
            self.ready_s = self.owner.now_s + self.owner.clock["handshake"]

    def send_metadata(self, *_: Any, **__: Any) -> None:
        """Memory is there: the prompt begins elsewhere."""
        clock = self.owner.clock
        tokens = self.owner.by_id[self.name]["prompt_len"]
        self.done_s = self.owner.now_s + clock["prefill_fixed"] + clock["prefill_token"] * tokens

    # of a prefill server

    def pop_decode_prefix_len(self) -> int:
        """Tokens that the peer has already."""
        return 0

    def get_max_transfer_tokens(self) -> None:
        """No limit."""

    def should_send_kv_chunk(self, pages: int, last: bool) -> bool:
        """Whether a piece is worth sending."""
        return pages > 0 or last

    def send(self, pages: Any, *_: Any, num_kv_tokens: int, **__: Any) -> None:
        """A piece goes."""
        self.owner.sent(self, num_kv_tokens)

    def clear(self) -> None:
        """The end."""

    def get_transfer_metric(self) -> None:
        """None."""


class Server:
    """One server of SGLang's in a pair: requests in, loops out."""

    def __init__(self, head: Case, requests: list[Case]) -> None:
        self.kind = head["engine"].rsplit("_", 1)[1]
        self.config, self.clock = head["config"], head["clock"]
        self.by_id = {request["id"]: request for request in requests}
        self.due = [(r["arrival"], r["idx"], r["id"]) for r in requests]
        heapq.heapify(self.due)
        self.now_s = 0.0
        self.pieces: list[list[Any]] = []
        self.retracted: list[str] = []
        self.finished: set[str] = set()
        self.refused: set[str] = set()
        self.steps: list[Case] = []
        full = {"chunked_prefill_size": -1, "max_prefill_tokens": 16384, "page_size": 1, **self.config}
        given = {"disaggregation_mode": self.kind}
        if self.kind == "decode":
            full["disable_radix_cache"] = not self.config.get("decode_radix_cache", False)
            given |= {
                "disaggregation_decode_enable_radix_cache": not full["disable_radix_cache"],
                "num_reserved_decode_tokens": self.config.get("num_reserved_decode_tokens", 512),
                "disaggregation_decode_polling_interval": self.config.get("polling_interval", 1),
                "disaggregation_decode_retraction_backup": "cpu_tensor",
            }
        self.published = published(full, **given)
        self.scheduler = built(full)
        self._connect(full)

    def _connect(self, config: Case) -> None:
        """Give the scheduler the queues of its role, and their modules this peer."""
        utils = srt("disaggregation.utils")
        scheduler = self.scheduler
        role = {"decode": utils.DisaggregationMode.DECODE, "prefill": utils.DisaggregationMode.PREFILL}[self.kind]
        scheduler.disaggregation_mode = role
        scheduler.req_to_metadata_buffer_idx_allocator = utils.ReqToMetadataIdxAllocator(config["metadata_buffers"])
        scheduler.enable_staging = scheduler.enable_decode_hicache = False
        scheduler.kv_checksum_computer = None
        scheduler.future_map = Silent()
        scheduler.attn_cp_cpu_group = scheduler.attn_tp_cpu_group = None
        manager = SimpleNamespace(
            prefill_info_table=SimpleNamespace(get=lambda _: SimpleNamespace(dp_size=1)),
            kv_args=SimpleNamespace(state_types=[]),
        )
        shared = {
            "req_to_metadata_buffer_idx_allocator": scheduler.req_to_metadata_buffer_idx_allocator,
            "scheduler": scheduler,
            "queue": [],
            "pp_size": 1,
            "tp_rank": 0,
            "kv_manager": manager,
            "transfer_backend": None,
            "gloo_group": None,
            "max_total_num_tokens": config["max_total_num_tokens"],
        }
        module = srt(f"disaggregation.{self.kind}")
        module.get_kv_class = lambda *_: lambda bootstrap_room, **__: Peer(self, f"r{bootstrap_room - 1:03d}")
        module.poll_and_all_reduce = lambda peers, *_, **__: [peer.poll() for peer in peers]
        module.poll_and_all_reduce_attn_cp_tp_group = module.poll_and_all_reduce
        module.all_reduce_flags = lambda flags, **_: flags
        if self.kind == "prefill":
            queue = module.PrefillBootstrapQueue.__new__(module.PrefillBootstrapQueue)
            shared |= {"max_input_len": config["max_total_num_tokens"], "bootstrap_port": 1, "scheduler_stage_metrics": Silent()}
            scheduler.disagg_prefill_bootstrap_queue = queue
            scheduler.disagg_prefill_inflight_queue = []
            scheduler.disagg_prefill_pending_chunk_rids = set()
            scheduler.disagg_metadata_buffers = Silent()
            scheduler.maybe_send_health_check_signal = lambda: None
        else:
            self._connect_decode(module, shared, config)
            queue = scheduler.disagg_decode_prealloc_queue
        for name, value in shared.items():
            setattr(queue, name, value)

    def _connect_decode(self, module: Any, shared: Case, config: Case) -> None:
        torch = importlib.import_module("torch")
        scheduler = self.scheduler
        rows = module.DecodeReqToTokenPool(
            config["max_running_requests"], config["context_len"] + 8, "cpu", False, config["pre_alloc_size"]
        )
        kv = scheduler.token_to_kv_pool_allocator
        kv._kvcache = Silent()
        cache = cache_over(rows, kv, config, config.get("page_size", 1))
        scheduler.req_to_token_pool, scheduler.tree_cache = rows, cache
        scheduler.tp_worker.is_hybrid_swa = False
        scheduler.init_schedule_policy()
        scheduler.init_batch_result_processor()
        buffer = [torch.zeros(8, dtype=torch.int64) for _ in range(14)]
        rooms: dict[int, int] = {}
        buffers = SimpleNamespace(clear_slot=lambda index: None)

        def contents(index: int) -> list[Any]:
            out = list(buffer)
            out[13] = torch.tensor([rooms.get(index, 0)])
            return out

        buffers.get_buf = contents
        transfer = module.DecodeTransferQueue.__new__(module.DecodeTransferQueue)
        theirs = {
            "queue": [],
            "gloo_group": None,
            "req_to_metadata_buffer_idx_allocator": scheduler.req_to_metadata_buffer_idx_allocator,
            "metadata_buffers": buffers,
            "scheduler": scheduler,
            "enable_host_receive": False,
            "tree_cache": cache,
            "spec_algorithm": scheduler.spec_algorithm,
            "enable_staging": False,
            "staging_handler": None,
            "enable_deferred_kv_release": False,
            "_deferred_releases": [],
            "tp_rank": 0,
        }
        for name, value in theirs.items():
            setattr(transfer, name, value)
        commit = transfer._commit_transfer_to_req

        def known(decode_req: Any) -> None:
            rooms[decode_req.metadata_buffer_index] = decode_req.req.bootstrap_room
            commit(decode_req)

        transfer._commit_transfer_to_req = known
        queue = module.DecodePreallocQueue.__new__(module.DecodePreallocQueue)
        shared |= {
            "req_to_token_pool": rows,
            "token_to_kv_pool_allocator": kv,
            "token_to_kv_pool": kv._kvcache,
            "draft_token_to_kv_pool": None,
            "metadata_buffers": buffers,
            "transfer_queue": transfer,
            "tree_cache": cache,
            "_num_published_destinations": 0,
            "num_reserved_decode_tokens": config.get("num_reserved_decode_tokens", 512),
            "retracted_queue": [],
            "pending_reqs": [],
            "_prefill_dp_rank_queries": {},
            "enable_staging": False,
            "kv_checksum_signature": 0,
        }
        scheduler.disagg_decode_prealloc_queue, scheduler.disagg_decode_transfer_queue = queue, transfer
        add = scheduler._add_request_to_queue

        def noting(request: Any, is_retracted: bool = False) -> None:
            if is_retracted:
                self.retracted.append(request.rid)
            add(request, is_retracted)

        scheduler._add_request_to_queue = noting

    # -- what happens -----------------------------------------------------------------------------------------

    def enqueue(self) -> None:
        """Hand over what has arrived."""
        params = srt("sampling.sampling_params").SamplingParams
        kind = srt("managers.schedule_batch").Req
        while self.due and self.due[0][0] <= self.now_s:
            _, index, name = heapq.heappop(self.due)
            given = self.by_id[name]
            segments = given.get("segments") or [[100 + index, 0, given["prompt_len"]]]
            sampling = params(max_new_tokens=given["output_len"], temperature=0.0)
            sampling.normalize(None)
            tokens = array("q", prompt({"segments": segments}))
            request = kind(name, "", tokens, sampling, eos_token_ids=set(), vocab_size=VOCABULARY)
            request.bootstrap_host, request.bootstrap_port, request.bootstrap_room = "peer", 1, index + 1
            if given["prompt_len"] > self.config["max_total_num_tokens"]:
                self.refused.add(name)
            self.scheduler.init_req_max_new_tokens(request)
            self.scheduler._add_request_to_queue(request)

    def sent(self, peer: Peer, tokens: int) -> None:
        """A piece of a prompt goes; the transfer ends a while after the last."""
        self.pieces.append([peer.name, tokens])
        so_far = self.by_id[peer.name].setdefault("_sent", 0) + tokens
        self.by_id[peer.name]["_sent"] = so_far
        if so_far == self.by_id[peer.name]["prompt_len"]:
            peer.done_s = self.now_s + self.clock["xfer_fixed"] + self.clock["xfer_token"] * tokens

    def taken(self) -> list[list[Any]]:
        """Pieces sent since the last call."""
        pieces, self.pieces = self.pieces, []
        return [piece for piece in pieces if piece[1]]

    def free(self) -> int:
        """Tokens of the pool that nobody holds."""
        free: int = self.scheduler.token_to_kv_pool_allocator.available_size()
        return free

    def kv_tokens(self, batch: Any) -> int:
        """Tokens that the rows of a decode step see."""
        return int(batch.seq_lens_cpu.sum())

    def yielded(self, batch: Any) -> Any:
        """What the model yields with a decode step: a token a row."""
        torch = importlib.import_module("torch")
        given = self.by_id
        tokens = [token(given[request.rid].get("out_seg", 0), len(request.output_ids)) for request in batch.reqs]
        return srt("managers.utils").GenerationBatchResult(next_token_ids=torch.tensor(tokens, dtype=torch.int64))

    def decode_loop(self) -> Case:
        """One loop of a decode server."""
        scheduler = self.scheduler
        prealloc, transfer = scheduler.disagg_decode_prealloc_queue, scheduler.disagg_decode_transfer_queue
        step: Case = {"t": self.now_s, "prealloc": [d.req.rid for d in prealloc.queue], "free_before": self.free()}
        lost = [r.rid for r in prealloc.retracted_queue]
        moving = [d.req.rid for d in transfer.queue]
        scheduler.process_decode_queue()
        left = {d.req.rid for d in prealloc.queue}
        still = {r.rid for r in prealloc.retracted_queue}
        gone = [name for name in step["prealloc"] if name not in left]
        there = {d.req.rid for d in transfer.queue}
        step["admitted"] = gone
        step["transferred"] = [name for name in [*moving, *gone] if name not in there]
        step["resumed"] = [name for name in lost if name not in still]
        step["free_after_queues"] = self.free()
        queued = [r.rid for r in scheduler.waiting_queue]
        counts = {r.rid: r for r in [*scheduler.waiting_queue, *scheduler.running_batch.reqs]}
        alive = {name for name, r in counts.items() if not r.finished()}
        plan = scheduler.get_next_disagg_decode_batch_to_run(running_batch=scheduler.running_batch)
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        waiting = [r.rid for r in scheduler.waiting_queue]
        step["prebuilt"] = [name for name in queued if name not in waiting]
        step |= {"retracted": self.retracted[:], "waiting": waiting, "transfer_queue": [d.req.rid for d in transfer.queue]}
        self.retracted.clear()
        step |= {"decode": [r.rid for r in batch.reqs] if batch else [], "free": self.free()}
        step["kv_tokens"] = self.kv_tokens(batch) if batch else 0
        clock = self.clock
        took_s = clock["empty"]
        if batch:
            took_s = clock["a"] + clock["c"] * len(batch.reqs) + clock["d"] * step["kv_tokens"]
        self.now_s += took_s
        if batch:
            scheduler.batch_result_processor.process_batch_result_decode(batch, self.yielded(batch))
        ended = [name for name, r in counts.items() if name in alive and r.finished()]
        at_once = [name for name in step["prebuilt"] if name in ended and name not in step["decode"]]
        step["finished"] = [*at_once, *(name for name in step["decode"] if name in ended)]
        self.finished |= set(ended)
        scheduler.last_batch = batch
        return step

    def prefill_loop(self) -> Case:
        """One loop of a prefill server."""
        scheduler = self.scheduler
        queue = scheduler.disagg_prefill_bootstrap_queue
        step: Case = {"t": self.now_s, "bootstrap": [r.rid for r in queue.queue], "free_before": self.free()}
        come = queue.pop_bootstrapped()
        scheduler.waiting_queue.extend(come)
        step |= {"bootstrapped": [r.rid for r in come], "waiting": [r.rid for r in scheduler.waiting_queue]}
        plan = scheduler.get_next_disagg_prefill_batch_to_run(
            running_batch=scheduler.running_batch, last_batch=scheduler.last_batch
        )
        scheduler.running_batch = plan.running_batch
        batch = plan.batch_to_run
        step |= {"sent_chunk": self.taken(), "sched": [], "sent_early": [], "sent_after": [], "free": self.free()}
        step["chunked"] = scheduler.chunked_req.rid if scheduler.chunked_req is not None else None
        if batch:
            rows = zip(batch.reqs, batch.extend_lens, batch.prefix_lens, strict=True)
            step["sched"] = [[r.rid, new, before] for r, new, before in rows]
            if batch.extend_num_tokens:
                scheduler.processed_tokens_counter += batch.extend_num_tokens
            for request in batch.reqs:
                scheduler.maybe_send_cached_prefix_chunk(request, allow_send=True)
            step["sent_early"] = self.taken()
            clock = self.clock
            new = sum(tokens for _, tokens, _ in step["sched"])
            seen = sum(tokens + before for _, tokens, before in step["sched"])
            self.now_s += clock["a"] + clock["b"] * new + clock["d"] * seen
            torch = importlib.import_module("torch")
            tokens = torch.zeros(len(batch.reqs), dtype=torch.int64)
            result = srt("managers.utils").GenerationBatchResult(next_token_ids=tokens)
            scheduler.process_batch_result_disagg_prefill(batch, result)
            step["sent_after"] = self.taken()
        else:
            self.now_s += self.clock["empty"]
        step["done"] = [r.rid for r in scheduler.process_disagg_prefill_inflight_queue()]
        step["inflight"] = [r.rid for r in scheduler.disagg_prefill_inflight_queue]
        step["evictable_end"] = scheduler.tree_cache.evictable_size()
        self.finished |= set(step["done"])
        scheduler.last_batch = batch
        return step

    def run(self) -> None:
        """Loop until all requests have ended."""
        state: list[Any] = []
        loop = self.decode_loop if self.kind == "decode" else self.prefill_loop
        still = 0
        while len(self.finished) + len(self.refused) < len(self.by_id):
            self.enqueue()
            step = loop()
            step |= {"type": "step", "step": len(self.steps), "t_end": self.now_s, "free_end": self.free()}
            now = [step.get(name) for name in QUEUES]
            busy = bool(step.get("decode") or step.get("sched"))
            if busy or now != state or any(step.get(name) for name in NAMED):
                self.steps.append(step)
                still = 0
            state = now
            still += 1
            if still > 100000:
                raise RuntimeError("requests are left, and none can be served")


class DraftedServer(Server):
    """A decode server whose steps verify drafts, as many of which are accepted as scripted."""

    def __init__(self, head: Case, requests: list[Case]) -> None:
        super().__init__(head, requests)
        srt("mem_cache.allocation").assign_req_to_token_pool_func = written
        self.verified: dict[str, int] = {}

    def _connect(self, config: Case) -> None:
        scheduler = self.scheduler
        kinds = srt("speculative.spec_info").SpeculativeAlgorithm
        scheduler.spec_algorithm = kinds.from_string(config["speculative_algorithm"])
        runner = scheduler.tp_worker.model_runner
        scheduler.model_worker = SimpleNamespace(model_runner=runner, on_verify_complete_cpu=lambda *_, **__: None)
        for name in ("snapshot_spec_decode_metrics", "update_spec_metrics"):
            setattr(scheduler.metrics_reporter, name, lambda *_, **__: None)
        super()._connect(config)
        kinds.build_disagg_draft_input = lambda *_: Pending()

    def kv_tokens(self, batch: Any) -> int:
        """As of the base; what is verified is a row's."""
        batch.spec_info = Pending()
        wide: int = self.config["speculative_num_draft_tokens"]
        return sum(len(request.origin_input_ids) + len(request.output_ids) - 1 + wide for request in batch.reqs)

    def yielded(self, batch: Any) -> Any:
        """As of the base; of a row so many tokens as are accepted, and one."""
        torch = importlib.import_module("torch")
        script, wide, gains = self.config["spec_accept"], self.config["speculative_num_draft_tokens"], []
        for request in batch.reqs:
            turn = self.verified.get(request.rid, 0)
            gains.append(1 + script[turn % len(script)])
            self.verified[request.rid] = turn + 1
        return srt("managers.utils").GenerationBatchResult(
            next_token_ids=torch.zeros(len(gains) * wide, dtype=torch.int64),
            accept_lens=torch.tensor(gains, dtype=torch.int64),
            speculative_num_draft_tokens=wide,
        )


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The loops of one of SGLang's servers."""
    kind = DraftedServer if "spec_accept" in config["config"] else Server
    server = kind(config, [dict(request) for request in requests])
    try:
        server.run()
    finally:
        server.published.restore()
    return server.steps


if __name__ == "__main__":
    main(__doc__, drawn, record)
