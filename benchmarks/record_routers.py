"""Decisions of sglang-router and vllm-router under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_routers.py OUT --first 0 --count 60      60 recordings, by their seeds
    capacity-plan validate schedules OUT                              how many decisions are reproduced

Runs in an environment with sglang-router 0.3.2, vllm-router 0.1.17 and aiohttp; nothing of this project is needed. The routers
are their wheels' own processes; behind them stand workers of this process that hold every request until the script lets it go.
A character is a token. Time is real: a pause is as long as it says.
"""

from __future__ import annotations

import asyncio
import logging
import random
import socket
import subprocess
import sys
import tempfile
from time import monotonic
from typing import Any

from aiohttp import ClientSession, ClientTimeout, web
from recorded_load import Case, main, text

VERSIONS = {"sglang-router": "0.3.2", "vllm-router": "0.1.17"}
LAUNCH = {
    "sglang-router": "from sglang_router.launch_router import main; main()",
    "vllm-router": "from vllm_router.launch_router import main; main()",
}
POLICIES = {
    "sglang-router": ["cache_aware", "cache_aware", "cache_aware", "manual", "manual", "power_of_two", "round_robin", "random"],
    "vllm-router": [
        "cache_aware",
        "cache_aware",
        "consistent_hash",
        "sticky_least_loaded",
        "sticky_least_loaded",
        "power_of_two",
        "round_robin",
    ],
}
KEY_HEADERS = {"sglang-router": ["X-SMG-Routing-Key"], "vllm-router": ["x-session-id", "x-user-id"]}
logging.getLogger("aiohttp.server").disabled = True  # of probes that are no HTTP

SETTLED_S = 0.01
"""Real time in which a router takes in that a request has ended [s]."""


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line of a seed; what happens is drawn while it is recorded."""
    draw = random.Random(seed)
    engine = draw.choice(sorted(VERSIONS))
    sglang = engine == "sglang-router"
    paired = draw.random() < 0.25
    policy = draw.choice(POLICIES[engine])
    args = ["--policy", policy]
    roles = ["worker"]
    if paired:
        roles = ["prefill", "decode"]
        kinds = [role[0] for role in roles for _ in range(draw.choice([1, 2, 3]))]
        policy = draw.choice([*POLICIES[engine], *(["bucket"] * 2 if sglang else [])])
        args = ["--prefill-policy", policy, "--decode-policy", draw.choice(POLICIES[engine])]
        args += [] if sglang else ["--kv-connector", "nixl"]
    if draw.random() < 0.8:
        args += ["--balance-abs-threshold", str(draw.choice([0, 1, 2, 4, 8]))]
        args += ["--balance-rel-threshold", str(draw.choice([1.0, 1.2, 1.5, 2.0]))]
    if draw.random() < 0.5:
        args += ["--cache-threshold", str(draw.choice([0.0, 0.1, 0.5, 0.8, 1.0]))]
    pauses = draw.random() < 0.3
    if pauses:
        args += ["--eviction-interval-secs", "1"]
        args += ["--max-tree-size", str(draw.choice([200, 600, 1500, 5000]))]
    if sglang and "manual" in args:
        args += ["--assignment-mode", draw.choice(["random", "min_load", "min_group"])]
        args += ["--max-idle-secs", "2"] if pauses else []
    fails = not paired and draw.random() < 0.3
    if fails:
        args += ["--cb-failure-threshold", str(draw.choice([1, 3])), "--retry-initial-backoff-ms", "5"]
        args += ["--cb-timeout-duration-secs", str(2 if pauses else 600), "--retry-max-backoff-ms", "20"]
        args += ["--cb-success-threshold", str(draw.choice([1, 2])), "--retry-max-retries", str(draw.choice([2, 5]))]
    workers = len(kinds) if paired else draw.choice([2, 3, 4, 6])
    config = {"type": "config", "engine": engine, "version": VERSIONS[engine], "scenario": f"drawn-{seed}", "args": args}
    config |= {"workers": workers, "kinds": kinds if paired else None, "pauses": pauses, "fails": fails, "seed": seed}
    return config, []


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port


class Worker:
    """A server that holds requests."""

    def __init__(self, number: int, kind: str) -> None:
        self.number, self.kind, self.port = number, kind, free_port()
        self.held: dict[str, asyncio.Event] = {}
        self.failing = False
        self.tokens: dict[str, int] = {}
        self.polled: int | None = None


class Recorder:
    """One run: events in, decisions out."""

    def __init__(self, config: Case) -> None:
        self.config, self.draw = config, random.Random(f"{config['seed']} load")
        kinds = config["kinds"] or ["w"] * config["workers"]
        self.workers = [Worker(number, kind) for number, kind in enumerate(kinds)]
        self.sglang = config["engine"] == "sglang-router"
        self.lines: list[Case] = []
        self.current = ""
        self.seen: dict[str, int] = {}  # of the current request: the worker of each kind
        self.failed: list[int] = []
        self.open: dict[str, asyncio.Task[int]] = {}
        self.reached = asyncio.Event()
        self.log = tempfile.NamedTemporaryFile()  # noqa: SIM115

    # -- workers --------------------------------------------------------------------------------------------

    async def answer(self, worker: Worker, request: web.Request) -> web.Response:
        """What a worker says."""
        if request.method == "POST" and request.path in ("/generate", "/v1/completions"):
            return await self.serve(worker, request)
        if request.path == "/tokenize":
            prompt = (await request.json())["prompt"]
            return web.json_response({"tokens": [ord(c) for c in prompt], "count": len(prompt), "max_model_len": 100000})
        if request.path == "/get_load":
            worker.polled = sum(worker.tokens.values())
            load = {"dp_rank": 0, "num_reqs": len(worker.held), "num_waiting_reqs": 0, "num_tokens": worker.polled}
            return web.json_response([load])
        if request.path == "/v1/models":
            return web.json_response({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "x"}]})
        if "info" in request.path:
            names = dict.fromkeys(("model_path", "served_model_name", "tokenizer_path"), "m")
            return web.json_response(names | {"dp_size": 1, "tp_size": 1})
        return web.json_response({}) if request.path.startswith("/health") else web.json_response({}, status=404)

    async def serve(self, worker: Worker, request: web.Request) -> web.Response:
        """Hold a request until it is let go; a prefill worker of vLLM answers at once."""
        if worker.failing:
            self.failed.append(worker.number)
            return web.json_response({"error": "failing"}, status=500)
        name, n = self.current, len((await request.json()).get("text" if self.sglang else "prompt"))
        self.seen[worker.kind] = worker.number
        if self.sglang or worker.kind != "p":
            event = worker.held[name] = asyncio.Event()
            worker.tokens[name] = n
            if len(self.seen) == (2 if worker.kind in "pd" else 1):
                self.reached.set()
            await event.wait()
        answer: Case = {"id": name, "text": "x", "choices": [{"text": "x", "index": 0}], "meta_info": {}}
        if worker.kind == "p":
            where = {"remote_engine_id": "e", "remote_block_ids": [1], "remote_host": "h", "remote_port": 1}
            answer["kv_transfer_params"] = where
        return web.json_response(answer)

    # -- the router -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Start all, send what is drawn, stop all."""
        runners = []
        for worker in self.workers:
            app = web.Application(client_max_size=2**26)
            app.router.add_route("*", "/{path:.*}", lambda request, worker=worker: self.answer(worker, request))
            runner = web.AppRunner(app, access_log=None)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", worker.port).start()
            runners.append(runner)
        port = free_port()
        self.at = f"http://127.0.0.1:{port}"
        words = ["--log-level", "debug", "--host", "127.0.0.1", "--port", str(port)]
        words += ["--prometheus-port", str(free_port()), *self.config["args"]]
        urls = {worker.number: f"http://127.0.0.1:{worker.port}" for worker in self.workers}
        if self.config["kinds"]:
            words += ["--pd-disaggregation"] if self.sglang else ["--vllm-pd-disaggregation"]
            for worker in self.workers:
                words += ["--prefill", urls[worker.number]] if worker.kind == "p" else ["--decode", urls[worker.number]]
        else:
            words += ["--worker-urls", *urls.values()]
        command = [sys.executable, "-c", LAUNCH[self.config["engine"]], *words]
        router = subprocess.Popen(command, stdout=self.log, stderr=subprocess.STDOUT)
        try:
            async with ClientSession(timeout=ClientTimeout(total=300)) as self.session:
                listed = await self.listed()
                number = {url.rstrip("/"): worker for worker, url in urls.items()}
                self.config["listed_order"] = [number[each["url"].split("@")[0].rstrip("/")] for each in listed]
                await self.evicts()
                await self.play()
                for name in list(self.open):
                    await self.let_go(name)
        finally:
            router.kill()
            router.wait()
            for runner in runners:
                await runner.cleanup()

    async def listed(self) -> list[Case]:
        """The workers as the router lists them, once it has them all."""
        for _ in range(300):
            await asyncio.sleep(0.1)
            try:
                async with self.session.get(f"{self.at}/workers") as got:
                    answer = await got.json()
            except Exception:  # it does not listen yet
                continue
            if len(answer["workers"]) == len(self.workers) and all(each.get("is_healthy", True) for each in answer["workers"]):
                await asyncio.sleep(0.3)
                workers: list[Case] = answer["workers"]
                return workers
        raise RuntimeError("the router has not begun to serve")

    async def evicts(self) -> None:
        """Wait until the router has just cut its tree, if it does, so that it does so whole seconds after the beginning."""
        if self.config["pauses"] and "cache_aware" in self.config["args"]:
            with open(self.log.name, "rb") as log:
                log.seek(0, 2)
                while b"eviction completed" not in log.read():
                    await asyncio.sleep(0.002)

    async def post(self, body: Case, headers: dict[str, str]) -> int:
        """The status of a request to the router."""
        path = "generate" if self.sglang else "v1/completions"
        async with self.session.post(f"{self.at}/{path}", json=body, headers=headers) as got:
            await got.read()
            return got.status

    async def let_go(self, name: str) -> None:
        """Let a request end."""
        for worker in self.workers:
            if name in worker.held:
                worker.held.pop(name).set()
                del worker.tokens[name]
        await self.open.pop(name)
        await asyncio.sleep(SETTLED_S)

    async def play(self) -> None:
        """Requests, ends, pauses and failures as drawn."""
        draw, config = self.draw, self.config
        heads = [[segment, 0, draw.randint(20, 200)] for segment in range(draw.randint(1, 5))]
        grown: list[list[list[int]]] = []
        keys = [f"user{number}" for number in range(draw.choice([3, 10, 30]))] if draw.random() < 0.8 else []
        most, noted_s = draw.choice([1, 4, 12, 40]), monotonic()
        for index in range(draw.choice([40, 80, 120])):
            while self.open and (len(self.open) > most or draw.random() < 0.45):
                name = draw.choice(list(self.open))
                await self.let_go(name)
                self.note("done", id=name)
            if config["pauses"] and draw.random() < 0.08:
                await asyncio.sleep(3.2 if config["fails"] or "manual" in config["args"] else draw.choice([1.15, 1.15, 3.2]))
            if config["fails"] and draw.random() < 0.1:
                worker = draw.choice(self.workers)
                worker.failing = not worker.failing
                self.note("fail" if worker.failing else "heal", worker=worker.number)
            if grown and draw.random() < 0.35:
                segments = [*draw.choice(grown)]
            else:
                segments = [draw.choice(heads)] if draw.random() < 0.7 else []
            if not segments or draw.random() < 0.9:
                segments.append([1000 + index, 0, draw.randint(1, 120)])
            grown.append(segments)
            headers = {draw.choice(KEY_HEADERS[config["engine"]]): draw.choice(keys)} if keys and draw.random() < 0.9 else {}
            if config["pauses"] or config["fails"]:
                self.note("sleep", s=round(monotonic() - noted_s, 6))
                noted_s = monotonic()
            await self.send(f"q{index:03d}", segments, headers)

    async def send(self, name: str, segments: list[list[int]], headers: dict[str, str]) -> None:
        """A request, up to the worker that holds it."""
        prompt = text(segments)
        line: Case = {"id": name, "segments": segments, "n": len(prompt)} | ({"headers": headers} if headers else {})
        line["inflight"] = [len(worker.held) for worker in self.workers]
        if not self.config["kinds"] and "power_of_two" in self.config["args"] and self.sglang:
            line["router_load"] = [0] * len(self.workers)
            if all(worker.polled is not None for worker in self.workers):
                line["polled_tokens"] = [worker.polled for worker in self.workers]
        self.current, self.seen, self.failed = name, {}, []
        self.reached.clear()
        body: Case = {"text": prompt, "sampling_params": {"max_new_tokens": 1}}
        if not self.sglang:
            body = {"model": "m", "prompt": prompt, "max_tokens": 5}
        sent = asyncio.create_task(self.post(body, headers))
        reached = asyncio.create_task(self.reached.wait())
        await asyncio.wait([sent, reached], return_when=asyncio.FIRST_COMPLETED)
        if self.reached.is_set():
            self.open[name] = sent
        reached.cancel()
        if self.failed:
            line["failed_on"] = self.failed
        if self.config["kinds"]:
            line |= {"prefill": self.seen.get("p"), "decode": self.seen.get("d")}
        else:
            line["worker"] = self.seen.get("w")
        self.note("req", **line)

    def note(self, kind: str, **of: Any) -> None:
        """Another line."""
        self.lines.append({"type": kind, "k": len(self.lines), **of})


def record(config: Case, _: list[Case]) -> list[Case]:
    """The decisions of a router."""
    recorder = Recorder(config)
    asyncio.run(recorder.run())
    return recorder.lines


if __name__ == "__main__":
    main(__doc__, drawn, record)
