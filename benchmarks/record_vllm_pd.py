"""Steps of vLLM's own prefill and decode servers under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_vllm_pd.py OUT --first 0 --count 60    60 recordings, by their seeds
    python benchmarks/record_vllm_pd.py OUT --like FILE...          the settings and requests of these recordings once more

As `record_vllm.py`, whose parts it uses. Schedulers, KV managers and block pools are vLLM's, and so is the NIXL connector, on its
scheduler's side, which pulls; the workers, the link, the proxy, the model and the clock are scripted as the `clock` line says.
With `--like` the nine recordings that the schedulers were written after come out equal, server by server (3,482 steps).
"""

from __future__ import annotations

import heapq
import importlib
import random
from itertools import count
from typing import Any

from record_vllm import VERSION, Given, built
from recorded_load import Case, main, prompt, token

# -- what is drawn ------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed. Times are drawn so that nothing falls on the end of a step to the digit."""
    draw = random.Random(seed)
    longest, answer = draw.choice([60, 400, 1200, 3000]), draw.choice([4, 40, 200])

    def side() -> Case:
        budget = draw.choice([256, 512, 2048, 2048])
        blocks = (longest + answer) // 16 + 2
        return {
            "max_num_seqs": min(draw.choice([2, 4, 16, 64, 64]), budget),
            "max_num_batched_tokens": budget,
            "max_model_len": 16384,
            "block_size": 16,
            "num_gpu_blocks": int(blocks * draw.choice([1.2, 2, 4, 12, 30])) + 4,
        }

    config: Case = {"P": side(), "D": side()}
    config["prefill"] = [f"P{number}" for number in range(draw.choice([1, 1, 1, 2, 3]))]
    config["decode"] = [f"D{number}" for number in range(draw.choice([1, 1, 1, 2, 3]))]
    clock = {"a": 0.008, "b": 2.5e-05, "c": 1e-4, "d": 2e-08, "empty": 0.001}
    clock |= {"xfer_fixed": draw.choice([0.00437, 0.05037]), "xfer_block": draw.choice([1.01e-4, 1.51e-3]), "hop": 0.00213}
    rate, at_s = draw.choice([2, 10, 40, 120]), 0.0
    heads = [(10 + number, draw.randint(1, longest)) for number in range(draw.randint(1, 4))]
    requests: list[Case] = []
    open_ended: dict[str, Case] = {}
    for index in range(draw.choice([20, 30, 50])):
        at_s += draw.expovariate(rate)
        prompt = draw.choice([draw.randint(1, longest), draw.randint(1, longest) // 16 * 16 + 16])
        segments = [[100 + index, 0, prompt]]
        when: Case = {"arrival": round(at_s, 6)}
        head, tokens = draw.choice(heads)
        kind = draw.random()
        if kind < 0.3 and open_ended:
            before = open_ended.pop(draw.choice(sorted(open_ended)))
            segments = [*before["segments"], [before["out_seg"], 0, before["output_len"]], [100 + index, 0, 1 + prompt // 8]]
            when = {"after": {"id": before["id"], "delay": round(draw.uniform(0, 0.4), 6)}}
        elif kind < 0.6 and tokens < prompt:
            segments = [[head, 0, tokens], [100 + index, 0, prompt - tokens]]
        elif kind < 0.7:
            segments = [[head, 0, tokens]]
        if sum(many for *_, many in segments) > longest:
            segments, when = [[100 + index, 0, min(prompt, longest)]], {"arrival": round(at_s, 6)}
        request = {
            "type": "request",
            "idx": index,
            "id": f"r{index:03d}",
            "segments": segments,
            "prompt_len": sum(many for *_, many in segments),
            "output_len": draw.randint(1, answer),
            "out_seg": 20000 + index,
            **when,
        }
        requests.append(request)
        if draw.random() < 0.5:
            open_ended[request["id"]] = request
    head_line = {
        "type": "config",
        "engine": "vllm_pd",
        "version": VERSION,
        "scenario": f"drawn-{seed}",
        "config": config,
        "clock": clock,
    }
    return head_line, requests


# -- vLLM's servers -----------------------------------------------------------------------------------------


class Server:
    """One server: requests that have come, and steps."""

    def __init__(self, owner: Pair, name: str, config: Case) -> None:
        self.owner, self.name, self.config = owner, name, config
        self.prefill = name.startswith("P")
        connectors = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.v1.nixl.connector")
        factory = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.factory").KVConnectorFactory
        factory.create_connector = staticmethod(
            lambda config, role, kv_cache_config: connectors.NixlPullConnector(config, role, kv_cache_config)
        )
        transfer = Given(
            engine_id=name,
            kv_role="kv_producer" if self.prefill else "kv_consumer",
            is_kv_producer=self.prefill,
            is_kv_consumer=not self.prefill,
            kv_load_failure_policy="fail",
            kv_buffer_device="cuda",
            get_from_extra_config=lambda _, default: default,
        )
        self.scheduler = built(config, transfer)
        self.come: list[tuple[float, int, str, Case]] = []
        self.held: set[str] = set()
        self.noticed: list[tuple[float, str]] = []  # transfers by their end
        self.loaded: list[str] = []  # requests that hold blocks for a read, in order
        self.started: set[str] = set()
        self.emitted: dict[str, int] = {}
        self.preempted: list[str] = []
        self.state: list[Any] = []
        self.busy = False
        hashing, utils = importlib.import_module("vllm.utils.hashing"), importlib.import_module("vllm.v1.core.kv_cache_utils")
        utils.init_none_hash(hashing.sha256)
        self.hasher = utils.get_request_block_hasher(config["block_size"], hashing.sha256)
        preempt = self.scheduler._preempt_request

        def noting(request: Any, *rest: Any, **more: Any) -> Any:
            self.preempted.append(request.request_id)
            return preempt(request, *rest, **more)

        self.scheduler._preempt_request = noting

    def has_work(self) -> bool:
        """Whether the loop turns: requests, or blocks that a reader needs."""
        return bool(self.scheduler.has_unfinished_requests() or self.scheduler.has_finished_requests() or self.held)

    def free(self) -> int:
        """Blocks of the pool that nobody holds."""
        free: int = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return free

    def enqueue(self, now_s: float) -> None:
        """Hand over what has come."""
        sampling = importlib.import_module("vllm.sampling_params").SamplingParams
        request_kind = importlib.import_module("vllm.v1.request").Request
        while self.come and self.come[0][0] <= now_s:
            at_s, _, name, params = heapq.heappop(self.come)
            given = self.owner.by_id[name]
            tokens = 1 if self.prefill else given["output_len"]
            chosen = sampling(max_tokens=tokens, ignore_eos=True, temperature=0.0, extra_args={"kv_transfer_params": params})
            self.emitted[name] = 0
            self.scheduler.add_request(
                request_kind(
                    request_id=name,
                    prompt_token_ids=prompt(given),
                    sampling_params=chosen,
                    pooling_params=None,
                    arrival_time=at_s,
                    block_hasher=self.hasher,
                )
            )

    def form(self, now_s: float) -> tuple[Any, Case]:
        """Let a step be formed: vLLM's output, and the step as it is recorded."""
        self.enqueue(now_s)
        self.preempted.clear()
        scheduler, clock = self.scheduler, self.owner.clock
        output = scheduler.schedule()
        rows: list[list[Any]] = []
        prompts = decodes = kv = 0
        for name, new in output.num_scheduled_tokens.items():
            before = scheduler.requests[name].num_computed_tokens - new
            rows.append([name, new, before])
            decoding = new == 1 and before >= self.owner.by_id[name]["prompt_len"]
            decodes += decoding
            prompts += 0 if decoding else new
            kv += before + new
        loads = []
        for name, meta in getattr(output.kv_connector_metadata, "reqs_to_recv", {}).items():
            found, pulled = meta.local_num_computed_blocks[0], len(meta.local_block_ids[0])
            loads.append([name, found, pulled])
            self.loaded.append(name)
            self.owner.pull(self, name, now_s + (clock["xfer_fixed"] + clock["xfer_block"] * pulled))
        self.loaded = [name for name in self.loaded if name not in output.num_scheduled_tokens]
        waits = [request.request_id for request in [*scheduler.kv_holding_waiting, *scheduler.waiting]]
        step = {
            "type": "step",
            "step": 0,
            "engine": self.name,
            "t": now_s,
            "sched": rows,
            "new": [[name, before] for name, _, before in rows if name not in self.started],
            "loads": loads,
            "preempted": list(self.preempted),
            "running": [request.request_id for request in scheduler.running],
            "waiting": [name for name in waits if name not in self.loaded],
            "kv_waiting": list(self.loaded),
            "free_blocks": self.free(),
            "prefill_tokens": prompts,
            "decode_seqs": decodes,
            "kv_tokens": kv,
        }
        self.started |= {name for name, _, _ in rows}
        took_s = clock["a"] + clock["b"] * prompts + clock["c"] * decodes + clock["d"] * kv if rows else clock["empty"]
        step["t_end"] = now_s + took_s
        return output, step

    def settle(self, output: Any, step: Case) -> None:
        """Take in the results of a step at its end, and what has been read by then."""
        outputs = importlib.import_module("vllm.v1.outputs")
        scheduler, names = self.scheduler, list(output.num_scheduled_tokens)
        done = sorted(name for end_s, name in self.noticed if end_s <= step["t_end"])
        self.noticed = [(end_s, name) for end_s, name in self.noticed if end_s > step["t_end"]]
        sampled = []
        for name in names:
            request, given = scheduler.requests[name], self.owner.by_id[name]
            complete = request.num_computed_tokens >= request.num_tokens
            sampled.append([token(given["out_seg"], self.emitted[name])] if complete else [])
            self.emitted[name] += complete
        told: Case = {"finished_sending": {}, "finished_recving": {}}
        told["finished_sending" if self.prefill else "finished_recving"] = dict.fromkeys(done)
        result = outputs.ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=outputs.KVConnectorOutput(**told),
        )
        step["finished"] = []
        answers = scheduler.update_from_output(output, result)
        for each in [each for core in answers.values() for each in core.outputs]:
            if each.finished:
                step["finished"].append(each.request_id)
                self.owner.ended(self, each.request_id, step["t_end"], each.kv_transfer_params)
        if self.prefill:
            self.held |= set(step["finished"])
        self.held -= set(done)
        step |= {"recv_done": [] if self.prefill else done, "send_done": done if self.prefill else []}
        step |= {"free_after": self.free(), "held": sorted(self.held)}


class Pair:
    """Servers of both kinds, their proxy and their link, on one clock."""

    def __init__(self, head: Case, requests: list[Case]) -> None:
        config, self.clock = head["config"], head["clock"]
        self.by_id = {request["id"]: request for request in requests}
        self.prefill = [Server(self, name, config["P"]) for name in config["prefill"]]
        self.decode = [Server(self, name, config["D"]) for name in config["decode"]]
        self.source: dict[str, Server] = {}
        self.events: list[tuple[float, int, Any]] = []
        self.serials = count()
        self.sent = self.handed = 0
        self.left = len(requests)
        self.steps: list[Case] = []
        for request in requests:
            if "arrival" in request:
                self.at(request["arrival"], lambda now_s, name=request["id"]: self.arrive(name, now_s))

    def at(self, when_s: float, what: Any) -> None:
        """Call `what` at a time, with it."""
        heapq.heappush(self.events, (when_s, next(self.serials), what))

    def arrive(self, name: str, now_s: float) -> None:
        """A request goes to the next prefill server."""
        server = self.source[name] = self.prefill[self.sent % len(self.prefill)]
        self.sent += 1
        self.come(server, name, now_s, {"do_remote_decode": True, "do_remote_prefill": False})

    def come(self, server: Server, name: str, now_s: float, params: Case) -> None:
        """A request comes to a server, which wakes if it sleeps."""
        heapq.heappush(server.come, (now_s, next(self.serials), name, params))
        if not server.busy:
            server.busy = True
            self.at(now_s, lambda at_s: self.step(server, at_s))

    def ended(self, server: Server, name: str, now_s: float, params: Any) -> None:
        """A request has ended at a server: the hand-over, or the end."""
        if not server.prefill:
            self.left -= 1
            for other in self.by_id.values():
                after = other.get("after")
                if after and after["id"] == name:
                    self.at(now_s + after["delay"], lambda at_s, name=other["id"]: self.arrive(name, at_s))
            return

        def hand_over(at_s: float) -> None:
            reader = self.decode[self.handed % len(self.decode)]
            self.handed += 1
            self.come(reader, name, at_s, params)

        self.at(now_s + self.clock["hop"], hand_over)

    def pull(self, reader: Server, name: str, end_s: float) -> None:
        """A read begins; both sides notice its end."""
        for server in (reader, self.source[name]):
            server.noticed.append((end_s, name))

    def step(self, server: Server, now_s: float) -> None:
        """A step of a server begins."""
        output, step = server.form(now_s)
        self.steps.append(step)
        self.at(step["t_end"], lambda at_s: self.end(server, output, step, at_s))

    def end(self, server: Server, output: Any, step: Case, now_s: float) -> None:
        """A step of a server ends, and the next begins if there is anything to do."""
        server.settle(output, step)
        state = [step[name] for name in ("running", "waiting", "kv_waiting", "free_blocks")]
        step["keep"] = bool(
            step["sched"] or step["loads"] or step["recv_done"] or step["send_done"] or state != server.state
        )
        server.state = state
        server.busy = server.has_work() or bool(server.come and server.come[0][0] <= now_s)
        if server.busy:
            self.at(now_s, lambda at_s: self.step(server, at_s))

    def run(self) -> None:
        """Serve all requests."""
        while self.events:
            now_s, _, what = heapq.heappop(self.events)
            what(now_s)
        if self.left:
            raise RuntimeError("requests are left, and none can be served")
        self.steps = [step for step in self.steps if step.pop("keep")]
        for number, step in enumerate(self.steps):
            step["step"] = number


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of a pair of vLLM's servers."""
    pair = Pair(config, requests)
    pair.run()
    return pair.steps


if __name__ == "__main__":
    main(__doc__, drawn, record)
