"""Schedules of LMDeploy's own PyTorch engine under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_lmdeploy.py OUT --first 0 --count 60      60 recordings, by their seeds
    capacity-plan validate schedules OUT                               how many steps are reproduced

Runs in an environment where `lmdeploy.pytorch` 0.18 can be imported (its Python files, torch for CPUs); nothing of this project
is needed. The scheduler, the blocks and their trie, the maker of inputs with its long prompts, the sequences are LMDeploy's. The
loop, one forward ahead, and the handles of the server are said again; the model is not there. Leaves of the trie with equal
stamps go in the order of their creation.
"""

from __future__ import annotations

import importlib
import itertools
import random
from collections import deque
from types import SimpleNamespace
from typing import Any

from recorded_load import Arrivals, Case, drawn_requests, head, main, prompt, step_s, token

VERSION = "0.18.0"
PRESSED_S = 0.1  # the loop's sleep when nothing can be chosen
TIMED = ("paging.block_manager.base_block_manager", "paging.prefill_scheduler", "strategies.ar.sequence")


# -- what is drawn ------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: a pool that is tight or roomy, prompts in chunks, windows, a prefix cache."""
    draw = random.Random(seed)
    longest, answer = draw.choice([200, 500, 1200]), draw.choice([20, 80, 200])
    block, rows = draw.choice([16, 16, 32, 64]), draw.choice([2, 4, 8, 32, 128])
    config: Case = {
        "max_batch_size": rows,
        "block_size": block,
        "max_prefill_token_num": draw.choice([64, 128, 256, 512, 1024, 8192]),
        "prefill_interval": draw.choice([1, 2, 4, 16, 16]),
        "enable_prefix_caching": draw.random() < 0.5,
        "session_len": draw.choice([None, None, None, longest + 10]),
        "window_size": -1,
        "ttft_policy": draw.choice(["size", "size", "fifo"]),
        "ttft_short_turns": draw.choice([1, 2, 3]),
        "ttft_aging_sec": draw.choice([0.05, 0.5, 2.0]),
        "handle_pool": draw.choice([rows, rows, 2 * rows, 1000]),
        "num_reserved_gpu_blocks": 1,
        "eviction_type": "recompute",
    }
    if draw.random() < 0.2:
        config |= {"window_size": draw.choice([32, 64, 256]), "enable_prefix_caching": False}
    one = -(-(longest + answer + config["prefill_interval"]) // block) + 2
    config["num_gpu_blocks"] = 1 + max(one + 1, int(one * draw.choice([1.1, 1.5, 2.5, 5, 12])))
    return head("lmdeploy_pytorch", VERSION, seed, config), drawn_requests(draw, longest, answer)


# -- LMDeploy's engine --------------------------------------------------------------------------------------


def module(name: str) -> Any:
    """A module of LMDeploy's PyTorch engine."""
    return importlib.import_module(f"lmdeploy.pytorch.{name}")


class Executor:
    """A device that takes everything at once."""

    device_type = "cpu"

    async def forward_async(self, _inputs: Any) -> None:
        """Take a forward."""


class Recorder:
    """One run: requests in, steps out."""

    def __init__(self, config: Case, requests: list[Case]) -> None:
        knobs = self.config = config["config"]
        self.now_s = 0.0
        self.arrivals = Arrivals(requests)
        self.names = {request["idx"]: request["id"] for request in requests}
        self.waits: deque[Case] = deque()  # for a handle
        self.inside: dict[int, Case] = {}
        self.ending: list[int] = []
        self.steps: list[Case] = []
        self.choosing = False
        self.notes = self.fresh()
        self._build(knobs)
        self._note()

    def _build(self, knobs: Case) -> None:
        configs, messages, ar = module("config"), module("messages"), module("strategies.ar.sequence")
        for name in TIMED:
            module(name).time = SimpleNamespace(perf_counter=lambda: self.now_s, time=lambda: self.now_s)
        envs, leaves, node = module("envs"), module("paging.block_trie.kv_lifecycle"), module("paging.block_trie.node").Node
        envs.opt_ttft_policy, envs.opt_ttft_short_turns = knobs["ttft_policy"], knobs["ttft_short_turns"]
        envs.opt_ttft_aging_sec = knobs["ttft_aging_sec"]
        births = itertools.count()
        build = node.__init__ = getattr(node, "built", node.__init__)

        def born(self: Any, *given: Any, **more: Any) -> None:
            build(self, *given, **more)
            self.born = next(births)

        node.built, node.__init__, leaves.id = build, born, lambda leaf: leaf.born
        cache = configs.CacheConfig(
            max_batches=knobs["max_batch_size"],
            block_size=knobs["block_size"],
            num_cpu_blocks=0,
            num_gpu_blocks=knobs["num_gpu_blocks"],
            window_size=knobs["window_size"],
            max_prefill_token_num=knobs["max_prefill_token_num"],
            enable_prefix_caching=knobs["enable_prefix_caching"],
            num_reserved_gpu_blocks=knobs["num_reserved_gpu_blocks"],
        )
        rules = configs.SchedulerConfig(
            max_batches=knobs["max_batch_size"],
            max_session_len=knobs["session_len"],
            eviction_type=knobs["eviction_type"],
            prefill_interval=knobs["prefill_interval"],
        )
        self.strategy = ar.ARSequenceStrategy()
        meta = messages.SequenceMeta(knobs["block_size"], strategy=self.strategy)
        self.scheduler = module("paging.scheduler").Scheduler(rules, cache, meta)
        whole = SimpleNamespace(scheduler_config=rules, cache_config=cache)
        knobs["max_session_len"] = module("engine.engine").Engine._get_max_session_len(whole)
        makers = module("engine.inputs_maker")
        nothing = SimpleNamespace(
            make_sampling_inputs=lambda _: None,
            make_extra_inputs=lambda *_: None,
            make_stopping_criteria=lambda _: None,
            num_adapters=lambda: 1,
        )
        self.maker = makers.InputsMakerAsync(
            executor=Executor(),
            scheduler=self.scheduler,
            state_checkpoints=self.scheduler.state_checkpoints,
            adapter_manager=nothing,
            engine_strategy=module("strategies.ar.engine").AREngineStrategy(rules, cache),
            sampling_strategy=nothing,
            model_agent_strategy=nothing,
            config=makers.InputsMakerConfig(
                max_batches=knobs["max_batch_size"],
                max_prefill_token_num=knobs["max_prefill_token_num"],
                role=module("disagg.config").EngineRole.Hybrid,
                block_size=knobs["block_size"],
                kernel_block_size=knobs["block_size"],
                window_size=knobs["window_size"],
                enable_prefix_caching=cache.enable_prefix_caching,
                prefix_cache_decode_state_interval=0,
                prefill_interval=knobs["prefill_interval"],
            ),
        )

    def _note(self) -> None:
        """Hear what is decided while a forward is chosen."""
        scheduler, maker, trie = self.scheduler, self.maker, self.scheduler.block_trie
        reclaim, evict, match = scheduler.eviction_helper._reclaim_candidate, trie.evict, trie.match
        preempt, prefill = scheduler.preempt_seqs, maker.do_prefill

        def noting_reclaimed(seq: Any) -> Any:
            blocks = seq.num_blocks
            if found := reclaim(seq):
                self.notes["reclaimed"].append([self.names[seq.session_id], blocks])
            return found

        def noting_evicted(most: int) -> Any:
            blocks = evict(most)
            self.notes["trie_evicted"] += blocks
            return blocks

        def noting_match(seq: Any) -> None:
            before = seq.num_history_ids
            match(seq)
            self.notes["matched"][seq.session_id] = seq.num_history_ids - before

        def noting_preempted(seqs: Any) -> None:
            self.notes["preempted"] += self.called(seqs) if self.choosing else []
            preempt(seqs)

        def noting_turn() -> Any:
            self.notes["do_prefill"] = prefill()
            return self.notes["do_prefill"]

        scheduler.eviction_helper._reclaim_candidate, trie.evict, trie.match = noting_reclaimed, noting_evicted, noting_match
        scheduler.preempt_seqs, maker.do_prefill = noting_preempted, noting_turn

    def fresh(self) -> Case:
        """Nothing noted."""
        return {"preempted": [], "reclaimed": [], "trie_evicted": 0, "matched": {}}

    def called(self, seqs: Any) -> list[str]:
        """Their names."""
        return [self.names[seq.session_id] for seq in seqs]

    def enter(self) -> None:
        """Who has come gets a handle, or waits for one."""
        self.waits += [given for _, given in self.arrivals.take(self.now_s)]
        sampling = module("messages").SamplingParam
        while self.waits and len(self.inside) < self.config["handle_pool"]:
            given = self.waits.popleft()
            self.inside[given["idx"]] = given
            most = min(given["output_len"], self.config["max_session_len"] - given["prompt_len"])
            session = self.scheduler.add_session(given["idx"])
            session.add_sequence(prompt(given), sampling_param=sampling(max_new_tokens=most))

    def pass_to(self, now_s: float) -> None:
        """Let the clock go on; who comes on the way has his own time."""
        while self.arrivals.next_s <= now_s:
            self.now_s = max(self.now_s, self.arrivals.next_s)
            self.enter()
        self.now_s = now_s

    def choose(self) -> tuple[Case, list[Any], Any] | None:
        """Let a forward be chosen: the step as it is recorded, its sequences, its inputs (None of a decode).

        What an attempt that chose nothing took from others is noted with the next step.
        """
        self.notes["matched"] = {}
        self.choosing = True
        work = self.maker.send_next_inputs()
        try:
            work.send(None)
        except StopIteration as done:
            forward, seqs = done.value
        else:
            raise RuntimeError("the maker of inputs waits")
        self.choosing = False
        if seqs is None:
            return None
        inputs, scheduler, maker = forward["inputs"], self.scheduler, self.maker
        if inputs is None:
            last = self.steps[-1]
            flying = [] if "finished" in last else [name for name, *_ in last["sched"]]
            names = self.called(seqs)
            known = [seq.num_all_ids if name in flying else seq.num_history_ids for seq, name in zip(seqs, names, strict=True)]
            rows = [[seq.session_id, 1, before] for seq, before in zip(seqs, known, strict=True)]
        else:
            new, before = inputs.seq_length.tolist(), inputs.history_lengths.tolist()
            rows = [[seq.session_id, *counts] for seq, *counts in zip(seqs, new, before, strict=True)]
        owners = self.owners()
        status = module("messages").MessageStatus
        held = [scheduler.seq_manager.get_sequences(state).values() for state in (status.RUNNING, status.READY)]
        step = {
            "type": "step",
            "step": len(self.steps),
            "t_sched": self.now_s,
            "mode": maker._last_forward_kind,
            "do_prefill": self.notes["do_prefill"],
            "sched": [[self.names[number], *counts] for number, *counts in rows],
            "hits": {self.names[seq.session_id]: hit for seq in seqs if (hit := self.notes["matched"].get(seq.session_id))},
            "preempted": self.notes["preempted"],
            "reclaimed": self.notes["reclaimed"],
            "trie_evicted": self.notes["trie_evicted"],
            "running": self.called(itertools.chain(*held)),
            "waiting": self.called(scheduler.waiting),
            "stopped": self.called(scheduler.hanging),
            "decode_count": maker._decode_count,
            "free_blocks": scheduler.block_manager.get_num_free_gpu_blocks(),
            "trie_blocks": len(owners),
            "trie_evictable": sum(int(many) == 1 for many in owners),
            "prefill_tokens": 0 if inputs is None else sum(new for _, new, _ in rows),
            "decode_seqs": len(rows) if inputs is None else 0,
            "kv_tokens": sum(new + before for _, new, before in rows),
        }
        if not self.config["enable_prefix_caching"]:
            for name in ("trie_evicted", "trie_blocks", "trie_evictable"):
                del step[name]
        step["t_start"] = max(self.now_s, self.steps[-1]["t_end"] if self.steps else 0.0)
        step["t_end"] = step["t_start"] + step_s(step)
        self.steps.append(step)
        self.notes = self.fresh()
        return step, seqs, inputs

    def owners(self) -> Any:
        """Owners of each block of the trie."""
        trie = self.scheduler.block_trie
        below = [node for root in trie._roots.values() for node in root.children.values()]
        blocks: list[int] = []
        while below:
            node = below.pop()
            below += node.children.values()
            blocks.append(node.block_id)
        return trie.allocator.get_ref_count(blocks) if blocks else []

    def settle(self, step: Case, seqs: list[Any], inputs: Any) -> None:
        """Take in the results of a forward at its end."""
        torch: Any = importlib.import_module("torch")
        step["finished"] = []
        if inputs is not None and inputs.is_chunk and not inputs.is_last_chunk:
            return
        status = module("messages").MessageStatus
        running = [seq for seq in seqs if seq.status == status.RUNNING]
        tokens = [[token(self.inside[seq.session_id]["out_seg"], seq.num_new_tokens) if seq in running else 0] for seq in seqs]
        ends = [seq.num_new_tokens + 1 >= seq.sampling_param.max_new_tokens for seq in seqs]
        outputs = SimpleNamespace(
            next_token_ids=torch.tensor(tokens), stopped=torch.tensor(ends), model_metas=None, all_routed_experts=None
        )
        delta = SimpleNamespace(seq_length=torch.ones(len(seqs)), is_decoding=True)
        self.strategy.update_running(seqs, outputs, inputs, delta)
        ended = [seq for seq in running if seq.status == status.STOPPED]
        step["finished"] = self.called(ended)
        self.ending += [seq.session_id for seq in ended]

    def end(self) -> None:
        """Clients of finished requests end their sessions, and hand their handles on."""
        names = [self.inside.pop(number)["id"] for number in self.ending if self.scheduler.end_session(number) is None]
        self.ending.clear()
        self.arrivals.ended(names, self.now_s)
        self.enter()

    def run(self) -> None:
        """Serve all requests, one forward ahead."""
        scheduler, maker, pressed = self.scheduler, self.maker, 0
        following: tuple[Case, list[Any], Any] | None = None
        while True:
            if following is None:
                if not scheduler.has_unfinished() and not maker.has_pending_long_context_chunk():
                    self.end()
                    if scheduler.has_unfinished():
                        continue
                    if self.arrivals.next_s == float("inf"):
                        return
                    self.pass_to(self.arrivals.next_s)
                following = self.choose()
                if following is None:
                    pressed += 1
                    if pressed > 1000:
                        raise RuntimeError("requests are left, and none can be served")
                    self.end()
                    self.pass_to(self.now_s + PRESSED_S)
                    continue
            pressed = 0
            step, seqs, inputs = following
            scheduler.activate_seqs(seqs)
            maker.update_running_seqs(seqs, inputs)
            following = self.choose()
            self.end()
            self.pass_to(step["t_end"])
            self.settle(step, seqs, inputs)
            maker.preempt_invalid_decode_seqs()


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of LMDeploy's engine."""
    recorder = Recorder(config, requests)
    recorder.run()
    return recorder.steps


if __name__ == "__main__":
    main(__doc__, drawn, record)
