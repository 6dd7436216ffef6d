"""Batches of LitServe's own loops under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_litserve.py OUT --first 0 --count 60      60 recordings, by their seeds
    capacity-plan validate schedules OUT                               how many batches are reproduced

Runs in an environment with LitServe 0.2.19; nothing of this project is needed. The loops and what collects their batches are
LitServe's, each worker in a thread, of which one runs at a time; the clock jumps to what comes next. The queue is handed on to
who has waited longest, the model sleeps, answers go nowhere. A worker without a window waits for the queue instead of asking it
again. The continuous loop is not recorded.
"""

from __future__ import annotations

import importlib
import random
import threading
from collections import deque
from collections.abc import Iterator
from queue import Empty
from types import SimpleNamespace
from typing import Any

from recorded_load import Arrivals, Case, head, main

VERSION = "0.2.19"
FOREVER = float("inf")


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: windows or none, several workers, streams, short limits of time."""
    draw = random.Random(seed)
    most, stream = draw.choice([1, 2, 4, 8, 16]), draw.random() < 0.3
    config: Case = {
        "max_batch_size": most,
        "batch_timeout": draw.choice([0.0, 0.005, 0.02, 0.03, 0.05, 0.1]) if most > 1 else 0.0,
        "workers_per_device": draw.choice([1, 1, 2, 3]),
        "stream": stream,
        "request_timeout": draw.choice([30, 30, 0.5, 0.15, 0.05, -1]),
        "model": {"t0": draw.choice([0.005, 0.01, 0.02]), "per_item": draw.choice([0.001, 0.002, 0.005])},
    }
    rate, at_s = draw.choice([2, 10, 40, 120, 400]) / (10 if stream else 1), 0.0
    requests: list[Case] = []
    for index in range(draw.choice([60, 120, 200])):
        at_s += draw.expovariate(rate)
        kind = {"type": "request", "idx": index, "id": f"r{index:03d}", "segments": [[100 + index, 0, 1]], "prompt_len": 1}
        answer = {"output_len": draw.randint(1, 24) if stream else 1, "out_seg": 20000 + index, "priority": 0}
        requests.append({**kind, **answer, "arrival": round(at_s, 6)})
    return {**head("litserve", VERSION, seed, config), "clock": "virtual"}, requests


class Worker:
    """A thread that runs while nobody else does, and hands the turn back where it waits."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.entered_s = 0.0
        self.due_s, self.since = 0.0, 0
        self.turn, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.item: Any = None
        self.taken = 0  # since it began to ask an empty queue


class Recorder:
    """One run: requests in, batches out."""

    def __init__(self, config: Case, requests: list[Case]) -> None:
        knobs = self.knobs = config["config"]
        self.arrivals, self.given = Arrivals(requests), {request["id"]: request for request in requests}
        self.now_s, self.waits = 0.0, 0
        self.queue: deque[Any] = deque()
        self.waiting: list[Worker] = []  # for the queue, in turn
        self.steps: list[Case] = []
        self.open = set(self.given)
        self.workers = [Worker(number) for number in range(knobs["workers_per_device"])]
        self.active = self.workers[0]
        self.closed = False
        loops: Any = [importlib.import_module(f"litserve.loops.{name}") for name in ("base", "simple_loops", "streaming_loops")]
        base, simple, streams = loops
        collate = base.collate = getattr(base, "collate", base.collate_requests)

        def entering(*given: Any, **more: Any) -> Any:
            self.active.entered_s = self.now_s
            return collate(*given, **more)

        for each in loops:
            each.time = SimpleNamespace(monotonic=lambda: self.now_s)
            each.collate_requests = entering
        self.status = importlib.import_module("litserve.utils").LitAPIStatus
        kinds = {
            (False, False): (simple.SingleLoop, "run_single_loop"),
            (False, True): (simple.BatchedLoop, "run_batched_loop"),
            (True, False): (streams.StreamingLoop, "run_streaming_loop"),
            (True, True): (streams.BatchedStreamingLoop, "run_batched_streaming_loop"),
        }
        self.loop, self.run_loop = kinds[knobs["stream"], knobs["max_batch_size"] > 1]

    # -- what the loops are given ---------------------------------------------------------------------------

    def wait(self, due_s: float) -> Any:
        """Hand the turn back until a time, or until an item of the queue is given."""
        worker = self.active
        self.waits += 1
        worker.due_s, worker.since, worker.item = due_s, self.waits, None
        worker.back.release()
        worker.turn.acquire()
        if self.closed:
            raise SystemExit
        return worker.item

    def get(self, timeout: float) -> Any:
        """The next of the queue."""
        if self.queue:
            return self.queue.popleft()
        self.waiting.append(self.active)
        item = self.wait(self.now_s + timeout)
        if item is None:
            raise Empty
        return item

    def get_nowait(self) -> Any:
        """The next of the queue; who has taken none since it was empty waits."""
        worker = self.active
        if self.queue:
            worker.taken += 1
            return self.queue.popleft()
        if worker.taken:
            worker.taken = 0
            raise Empty
        worker.taken = 1
        return self.get(FOREVER)

    def answer(self, *, uid: str, status: Any, **_: Any) -> None:
        """Note who has got all."""
        if status in (self.status.ERROR, self.status.FINISH_STREAMING) or (
            status == self.status.OK and not self.knobs["stream"]
        ):
            self.open.discard(uid)

    def put(self, _transport: Any, _queue: int, uid: str, _data: Any, status: Any, _kind: Any) -> None:
        """As `answer`."""
        self.answer(uid=uid, status=status)

    def predict(self, x: Any) -> Any:
        """The model: it sleeps for a call, or for each token of a stream."""
        names = x if isinstance(x, list) else [x]
        if self.knobs["stream"]:
            return self.stream(names, x)
        self.call(names, 1)
        return x

    def stream(self, names: list[str], x: Any) -> Iterator[Any]:
        """A token of each until the longest has all."""
        for _ in self.tokens(names, max(self.given[name]["output_len"] for name in names)):
            yield x

    def call(self, names: list[str], answer: int) -> None:
        """A call to its end."""
        for _ in self.tokens(names, answer):
            pass

    def tokens(self, names: list[str], answer: int) -> Iterator[None]:
        """Sleep for each token, and note the call as a step when it ends."""
        worker, model = self.active, self.knobs["model"]
        worker.taken = 0
        full = len(names) == self.knobs["max_batch_size"]
        step: Case = {"type": "step", "worker": worker.number, "t_enter": worker.entered_s, "t_start": self.now_s, "batch": names}
        step["reason"] = "full" if full else "window" if self.knobs["batch_timeout"] else "queue empty"
        end_s = self.now_s + (model["t0"] + model["per_item"] * len(names)) * answer
        for left in range(answer, 0, -1):
            self.wait(self.now_s + model["t0"] + model["per_item"] * len(names) if left > 1 else end_s)
            if left == 1:
                step |= {"step": len(self.steps), "t_end": self.now_s, "queued_after": [item[1] for item in self.queue]}
                self.steps.append(step)
            yield

    # -- the clock ------------------------------------------------------------------------------------------

    def begin(self, worker: Worker) -> None:
        """Run a worker's loop in its thread."""
        api = SimpleNamespace(
            batch_timeout=self.knobs["batch_timeout"],
            max_batch_size=self.knobs["max_batch_size"],
            request_timeout=self.knobs["request_timeout"],
            stream=self.knobs["stream"],
            spec=None,
            decode_request=lambda x: x,
            batch=lambda x: x,
            predict=self.predict,
            unbatch=lambda y: y,
            encode_response=lambda y: y,
            format_encoded_response=lambda y: y,
        )
        loop = self.loop()
        loop.put_response = lambda *given, **more: self.put(*given) if given else self.answer(**more)
        queue = SimpleNamespace(get=self.get, get_nowait=self.get_nowait)
        events = SimpleNamespace(trigger_event=lambda *_, **__: None)

        def run() -> None:
            worker.turn.acquire()
            getattr(loop, self.run_loop)(api, queue, None, events)

        threading.Thread(target=run, daemon=True).start()
        self.go_on(worker, None)

    def go_on(self, worker: Worker, item: Any) -> None:
        """Let a worker run until it waits again."""
        if worker in self.waiting:
            self.waiting.remove(worker)
        self.active, worker.item = worker, item
        worker.turn.release()
        worker.back.acquire()

    def run(self) -> None:
        """Serve all requests."""
        for worker in self.workers:
            self.begin(worker)
        while self.open:
            worker = min(self.workers, key=lambda each: (each.due_s, each.since))
            if self.arrivals.next_s <= worker.due_s:
                self.now_s = self.arrivals.next_s
                for at_s, given in self.arrivals.take(self.now_s):
                    self.queue.append((0, given["id"], at_s, given["id"]))
                    if self.waiting:
                        self.go_on(self.waiting[0], self.queue.popleft())
            else:
                self.now_s = worker.due_s
                self.go_on(worker, None)
        self.closed = True
        for worker in self.workers:
            worker.turn.release()


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The batches of LitServe's loops."""
    recorder = Recorder(config, requests)
    recorder.run()
    return recorder.steps


if __name__ == "__main__":
    main(__doc__, drawn, record)
