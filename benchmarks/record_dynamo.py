"""Decisions of Dynamo's KV router under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_dynamo.py OUT --first 0 --count 60      60 recordings, by their seeds
    capacity-plan validate schedules OUT                             how many decisions are reproduced

Runs in an environment with ai-dynamo-runtime 1.6.1, pyzmq and msgpack; nothing of this project is needed. What decides is the
wheel's own selection service, in a process a recording, for it reads its settings once; events of caches come over ZMQ as vLLM
sends them. Costs are those that it logs. It counts blocks also where `DYN_ROUTER_TRACK_ACTIVE_BLOCKS` is false, unlike the router
of the frontend; that is not drawn.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import random
import re
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

from recorded_load import Case, main

VERSION = "ai-dynamo-runtime 1.6.1"
SETTLED_S = 0.1
"""Real time in which the service has taken in an event, or let those go who waited [s]."""
SELECTED = re.compile(r'request_id="?([\w-]+)"?.* logit=([-\d.e+]+)')


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line of a seed; what happens is drawn while it is recorded."""
    draw = random.Random(seed)
    block = draw.choice([4, 16, 16, 32, 64])
    choices: dict[str, list[str]] = {
        "KV_OVERLAP_SCORE_CREDIT": ["0", "0.5", "1", "1"],
        "KV_OVERLAP_SCORE_CREDIT_DECAY": ["0", "0.5", "1", "3"],
        "PREFILL_LOAD_SCALE": ["0", "0.5", "1", "3"],
        "DECODE_ACTIVE_REQUEST_WEIGHT": ["0", "1.5", "4"],
        "USE_KV_EVENTS": ["true", "false"],
        "TRACK_OUTPUT_BLOCKS": ["true", "false"],
        "TRACK_PREFILL_TOKENS": ["true", "true", "false"],
        "ASSUME_KV_REUSE": ["true", "true", "false"],
        "QUEUE_THRESHOLD": ["0.1", "0.25", "1"],
        "QUEUE_POLICY": ["fcfs", "lcfs", "wspt"],
        "TTL_SECS": ["2", "120"],
    }
    env = {f"DYN_ROUTER_{name}": draw.choice(of) for name, of in choices.items() if draw.random() < 0.35}
    config: Case = {"type": "config", "engine": "dynamo-kv-router", "version": VERSION, "scenario": f"drawn-{seed}", "seed": seed}
    config |= {"workers": draw.choice([2, 3, 4, 6]), "block_size": block, "env": env}
    return config | {"worker": {"max_num_batched_tokens": draw.choice([512, 2048]), "total_kv_blocks": 4000}}, []


class Recorder:
    """One run: events in, decisions out."""

    def __init__(self, config: Case, log: str) -> None:
        import zmq
        from dynamo._core import SelectionService

        self.config, self.draw, self.log = config, random.Random(f"{config['seed']} load"), log
        self.service = SelectionService()
        self.lines: list[Case] = []
        self.names: dict[tuple[int, ...], int] = {}  # of blocks, by all tokens up to their end
        self.tokens: dict[int, tuple[int | None, tuple[int, ...]]] = {}
        self.held: list[list[int]] = [[] for _ in range(config["workers"])]
        self.waiting: dict[str, asyncio.Task[Any]] = {}
        self.open: dict[str, tuple[int, list[int], bool]] = {}
        self.read_to = 0
        context = zmq.Context()
        self.ports = []
        self.sockets = []
        self.sent = [0] * config["workers"]
        for _ in range(config["workers"]):
            socket = context.socket(zmq.PUB)
            self.ports.append(socket.bind_to_random_port("tcp://127.0.0.1"))
            self.sockets.append(socket)

    async def run(self) -> None:
        """Begin, let the service know its workers by a first request each, then play."""
        config = self.config
        for worker, port in enumerate(self.ports):
            given = {"worker_id": worker, "model_name": "m", "block_size": config["block_size"], "endpoint": f"http://w{worker}:8000"}
            given |= {"kv_events_endpoint": f"tcp://127.0.0.1:{port}", "data_parallel_size": 1, "data_parallel_start_rank": 0}
            await self.service.upsert_worker(given | config["worker"])
        await asyncio.sleep(0.5)
        for worker in range(config["workers"]):
            first = {"model_name": "m", "selection_id": f"first{worker}", "token_ids": [9], "worker_id": worker}
            await self.service.create_reservation(first)
            await self.service.free_reservation(f"first{worker}")
        await asyncio.sleep(SETTLED_S)
        self.costs()
        await self.play()
        for task in self.waiting.values():
            task.cancel()

    def blocks(self, tokens: list[int]) -> list[int]:
        """Names of the full blocks of a prompt."""
        size, parent, found = self.config["block_size"], None, []
        for end in range(size, len(tokens) + 1, size):
            name = self.names.setdefault(tuple(tokens[:end]), len(self.names) + 1)
            self.tokens[name] = parent, tuple(tokens[end - size : end])
            found.append(name)
            parent = name
        return found

    def state(self) -> Case:
        """What the service counts."""
        loads = self.service.loads(model_name="m")[0]
        workers = sorted(loads["loads"], key=lambda each: each["worker_id"])
        columns = {"prefill": "potential_prefill_tokens", "decode": "potential_decode_blocks", "active": "active_requests"}
        return {to: [each[name] for each in workers] for to, name in columns.items()} | {"pending": loads["pending_count"]}

    def costs(self) -> dict[str, float]:
        """Costs of those who were chosen for since the last look, in order."""
        with open(self.log, errors="replace") as log:
            log.seek(self.read_to)
            text = re.sub(r"\x1b\[[0-9;]*m", "", log.read())
            self.read_to = log.tell()
        found = (SELECTED.search(line) for line in text.splitlines() if "Selected worker" in line)
        return {match[1]: float(match[2]) for match in found if match}

    def publish(self, worker: int, event: list[Any]) -> None:
        """What a worker's cache did."""
        import msgpack

        payload = msgpack.packb([time.time(), [event], 0])
        self.sockets[worker].send_multipart([b"", struct.pack(">Q", self.sent[worker]), payload])
        self.sent[worker] += 1

    async def stored(self, worker: int, blocks: list[int]) -> None:
        """A worker's cache has these blocks from now on."""
        new = [block for block in blocks if block not in self.held[worker]]
        if not new or self.config["env"].get("DYN_ROUTER_USE_KV_EVENTS") == "false":
            return
        parent = self.tokens[new[0]][0]
        tokens = [token for block in new for token in self.tokens[block][1]]
        self.publish(worker, ["BlockStored", new, parent, tokens, self.config["block_size"], None])
        self.held[worker] += new
        self.note("kv_stored", worker=worker, parent=parent, bids=new)
        await asyncio.sleep(SETTLED_S)

    async def removed(self, worker: int) -> None:
        """A worker's cache loses blocks that none it has follows."""
        held = self.held[worker]
        gone: list[int] = []
        for _ in range(self.draw.randint(1, 8)):
            parents = {self.tokens[block][0] for block in held if block not in gone}
            gone += [block for block in held if block not in gone and block not in parents][:1]
        if gone:
            self.publish(worker, ["BlockRemoved", gone])
            self.held[worker] = [block for block in held if block not in gone]
            self.note("kv_removed", worker=worker, bids=gone)
            await asyncio.sleep(SETTLED_S)

    async def play(self) -> None:
        """Requests, first tokens, ends and removals as drawn."""
        draw, env = self.draw, self.config["env"]
        vocabulary = iter(range(10, 10**7))
        heads = [[next(vocabulary) for _ in range(draw.randint(20, 500))] for _ in range(draw.randint(1, 4))]
        grown: list[list[int]] = []
        longest, most = draw.choice([150, 400, 900]), draw.choice([2, 6, 15])
        for index in range(60):
            while self.open and (len(self.open) > most or draw.random() < 0.6):
                await self.go_on(draw.choice(list(self.open)))
            if draw.random() < 0.15:
                await self.removed(draw.randrange(self.config["workers"]))
            if env.get("DYN_ROUTER_TTL_SECS") == "2" and draw.random() < 0.1:
                pause_s = draw.choice([1.2, 2.5])
                await asyncio.sleep(pause_s)
                self.note("sleep", s=pause_s)
            if grown and draw.random() < 0.3:
                tokens = [*draw.choice(grown)]
            else:
                tokens = [*draw.choice(heads)] if draw.random() < 0.7 else []
            tokens += [next(vocabulary) for _ in range(draw.randint(1, longest))]
            grown.append(tokens)
            await self.ask(f"q{index:03d}", tokens)

    async def ask(self, name: str, tokens: list[int]) -> None:
        """A request, up to the worker that gets it, or into the queue."""
        request: Case = {"model_name": "m", "token_ids": tokens, "selection_id": name}
        line: Case = {"id": name, "isl": len(tokens), "bids": self.blocks(tokens)}
        scores = await self.service.overlap_scores({"model_name": "m", "token_ids": tokens})
        line["overlap_blocks"] = [each["device_blocks"] for each in sorted(scores["workers"], key=lambda each: each["worker_id"])]
        if "DYN_ROUTER_QUEUE_THRESHOLD" in self.config["env"] and self.draw.random() < 0.3:
            line["priority_jump"] = request["priority_jump"] = self.draw.choice([1000.0, 2000.0])
        task = asyncio.ensure_future(self.service.select_and_reserve(request))
        await asyncio.wait([task], timeout=SETTLED_S if "DYN_ROUTER_QUEUE_THRESHOLD" in self.config["env"] else None)
        if not task.done():
            self.waiting[name] = task
            self.note("req", **line, queued=True, after=self.state())
            return
        chosen = task.result()
        self.open[name] = chosen["worker_id"], line["bids"], False
        line |= {"worker": chosen["worker_id"], "effective_prefill_tokens": chosen["effective_prefill_tokens"]}
        self.note("req", **line, after=self.state(), cost=self.costs()[name])

    async def go_on(self, name: str) -> None:
        """A request has its first token, or another block, or ends."""
        worker, blocks, prefilled = self.open[name]
        waited = bool(self.waiting)
        before = self.state()
        if not prefilled and self.draw.random() < 0.85:
            self.open[name] = worker, blocks, True
            await self.service.prefill_complete(name)
            done: Case = {"kind": "prefill_done", "id": name}
        elif self.config["env"].get("DYN_ROUTER_TRACK_OUTPUT_BLOCKS") == "true" and self.draw.random() < 0.5:
            decay = self.draw.choice([None, None, 0.5, 0.25])
            self.service.add_output_block(name, decay_fraction=decay)
            done = {"kind": "output_block", "id": name, "decay": decay}
        else:
            del self.open[name]
            await self.service.free_reservation(name)
            done = {"kind": "free", "id": name}
        if waited:
            await asyncio.sleep(SETTLED_S)
        self.note(**done, **({"before": before} if waited else {"after": self.state()}))
        costs = self.costs() if waited else {}
        for other in [each for each in costs if each in self.waiting]:
            chosen = await self.waiting.pop(other)
            self.open[other] = chosen["worker_id"], self.bids[other], False
            self.note("dequeued", id=other, worker=chosen["worker_id"], after=self.state(), cost=costs[other])
        if done["kind"] == "prefill_done":
            await self.stored(worker, blocks)

    @property
    def bids(self) -> dict[str, list[int]]:
        """Blocks of all requests so far."""
        return {line["id"]: line["bids"] for line in self.lines if line["type"] == "req"}

    def note(self, kind: str, **of: Any) -> None:
        """Another line."""
        self.lines.append({"type": kind, "k": len(self.lines), **of})


def record_here(config: Case, log: str, out: str) -> None:
    """Record in this process, whose output is what the service logs."""
    for stream in (1, 2):
        os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream)
    os.environ.update(config["env"] | {"DYN_LOG": "info"})
    recorder = Recorder(config, log)
    asyncio.run(recorder.run())
    Path(out).write_text(json.dumps(recorder.lines))


def record(config: Case, _: list[Case]) -> list[Case]:
    """The decisions of the service."""
    with tempfile.TemporaryDirectory() as folder:
        log, out = f"{folder}/log", f"{folder}/out"
        made = multiprocessing.get_context("fork").Process(target=record_here, args=(config, log, out))
        made.start()
        made.join()
        if not os.path.exists(out):
            raise RuntimeError(Path(log).read_text(errors="replace")[-400:])
        lines: list[Case] = json.loads(Path(out).read_text())
        return lines


if __name__ == "__main__":
    main(__doc__, drawn, record)
