"""Iterations of llama.cpp's own server under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_llama_cpp.py OUT --server "llama-server" --first 0 --count 60
    capacity-plan validate schedules OUT                           how many iterations are reproduced

Needs `llama-server` (a build of 2026-10 or later: Debian's llama.cpp 0.7.0 was used) and the Python package gguf. The
server runs a random model of 8 small layers, 4,096 bytes of keys and values a token; everything is read from its debug log.
Every request yields one token again and again, by a bias. Which iteration a request or the leaving of a client met is
noted, not prescribed.
"""

from __future__ import annotations

import argparse
import http.client
import importlib
import json
import os
import random
import re
import shlex
import subprocess
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Case = dict[str, Any]
VERSION = "0.7.0 (build 11669, Debian 1:0.7.0+dfsg-2)"
FIRST_TOKEN, FIRST_OUTPUT, OUTPUT_SEGMENTS = 300, 7800, 20000
LAYERS, WIDTH, HEADS, VOCABULARY = 8, 128, 2, 9000
LAST = ["", "done"]
"""What a request waits for that comes when all others have ended: before it, the last that leave are noted."""
GAP_S = 0.004
"""Between two requests, so that the server takes them in the order they were sent."""


# -- what is drawn ------------------------------------------------------------------------------------------


def drawn(seed: int) -> tuple[list[str], list[Case]]:
    """Flags and requests of a seed."""
    draw = random.Random(seed)
    slots, unified = draw.choice([1, 2, 3, 4, 6]), draw.random() < 0.5
    context = draw.choice([256, 512, 1024]) * (draw.choice([1, 2, slots]) if unified else slots)
    flags = ["-np", str(slots), "-c", str(context), *["-kvu"] * unified]
    if draw.random() < 0.15:
        slots, unified, flags = 4, True, ["-c", str(context)]
    flags += ["-b", str(draw.choice([16, 64, 128, 512, 2048])), "-ub", str(draw.choice([16, 32, 64, 512]))]
    flags += ["-cram", draw.choice(["0", "0", "1", "2", "3", "8192", "-1"])]
    for share, more in (
        (0.15, ["-nocb"]),
        (0.25, ["-sps", draw.choice(["0", "0.3", "0.5", "0.9"])]),
        (0.25, ["--cache-reuse", draw.choice(["8", "16", "32"])]),
        (0.3, ["--context-shift"]),
        (0.2, ["--keep", draw.choice(["-1", "8", "100"])]),
        (0.15, ["--no-cache-idle-slots"]),
        (0.1, ["--no-cache-prompt"]),
    ):
        flags += more * (draw.random() < share)
    room = max(256, context // (1 if unified else slots))
    return flags, drawn_requests(draw, slots, room, shifts="--context-shift" in flags)


def drawn_requests(draw: random.Random, slots: int, room: int, *, shifts: bool) -> list[Case]:
    """Requests of chats, edited prompts and strangers; some leave, wish for a slot, or for several answers."""
    longest, answer = max(2, int(room * draw.choice([0.2, 0.5, 0.8]))), draw.choice([2, 12, 40, room if shifts else 60])
    leaving, wishing, several = (draw.random() < share for share in (0.3, 0.3, 0.3))
    requests: list[Case] = []
    for index in range(draw.choice([12, 20, 30])):
        own = [100 + index, 0, draw.randint(1, max(1, longest // 2))]
        before = draw.choice(requests) if requests else None
        segments = [own]
        if before and draw.random() < 0.6:
            segments = [*before["segments"], [OUTPUT_SEGMENTS + before["idx"], 0, before["n_predict"]], own]
            if draw.random() < 0.3:
                segments.pop(0)
            if draw.random() < 0.2:
                segments[0] = [*segments[0][:2], max(1, segments[0][2] // 2)]
        elif draw.random() < 0.4:
            segments = [[10 + draw.randint(0, 1), 0, draw.randint(1, max(1, longest // 2))], own]
        if sum(many for *_, many in segments) > longest and draw.random() < 0.95:
            segments = [own]
        request: Case = {"type": "request", "idx": index, "id": f"r{index:03d}", "segments": segments}
        request["prompt_len"] = sum(many for *_, many in segments)
        request["n_predict"] = draw.randint(1, answer)
        if before:
            request["after"] = [before["id"], draw.choice(["done", "done", f"tok:{draw.randint(1, before['n_predict'])}"])]
        opts: Case = {}
        if wishing and draw.random() < 0.3:
            opts["id_slot"] = draw.randrange(slots)
        if wishing and draw.random() < 0.2:
            opts["cache_prompt"] = draw.random() < 0.5
        if shifts and draw.random() < 0.5:
            opts |= {"n_keep": draw.choice([-1, 0, 10, 60]), "n_discard": draw.choice([0, 1, 30])}
        if opts:
            request["opts"] = opts
        if several and slots > 1 and draw.random() < 0.3:
            request["n"] = draw.randint(2, slots)
            request.get("opts", {}).pop("id_slot", None)
        elif leaving and draw.random() < 0.4:
            request["cancel_at"] = draw.randint(1, request["n_predict"])
        requests.append(request)
    last = {"id": f"r{len(requests):03d}", "segments": [[100 + len(requests), 0, 9]], "prompt_len": 9, "n_predict": 1}
    return [*requests, {"type": "request", "idx": len(requests), **last, "after": LAST}]


# -- the server and its clients -----------------------------------------------------------------------------


def write_model(path: Path) -> None:
    """Write a random model."""
    numpy, gguf = importlib.import_module("numpy"), importlib.import_module("gguf")
    any_number = numpy.random.default_rng(0)
    out = gguf.GGUFWriter(str(path), "llama")
    for name, value in {
        "context_length": 32768,
        "embedding_length": WIDTH,
        "block_count": LAYERS,
        "feed_forward_length": WIDTH,
        "head_count": HEADS,
        "head_count_kv": HEADS,
        "layer_norm_rms_eps": 1e-5,
        "rope_dimension_count": WIDTH // HEADS,
        "vocab_size": VOCABULARY,
        "tokenizer_model": "llama",
        "token_list": [*(f"<{i}>" for i in range(3)), *(f"<0x{i:02X}>" for i in range(256)), *map(str, range(259, VOCABULARY))],
        "token_scores": [0.0] * VOCABULARY,
        "token_types": [2, 3, 3, *[6] * 256, *[1] * (VOCABULARY - 259)],
        "add_bos_token": False,
    }.items():
        getattr(out, f"add_{name}")(value)
    shapes = {"token_embd": (VOCABULARY, WIDTH), "output": (VOCABULARY, WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        for part in ("attn_norm", "ffn_norm"):
            shapes[f"blk.{layer}.{part}"] = (WIDTH,)
        for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            shapes[f"blk.{layer}.{part}"] = (WIDTH, WIDTH)
    for part, shape in shapes.items():
        values = any_number.standard_normal(shape) * 0.02 if len(shape) > 1 else numpy.ones(shape)
        out.add_tensor(f"{part}.weight", values.astype(numpy.float32))
    for write in (out.write_header_to_file, out.write_kv_data_to_file, out.write_tensors_to_file, out.close):
        write()


def prompt(request: Case) -> list[int]:
    """The tokens of a prompt."""
    return [
        FIRST_OUTPUT + segment - OUTPUT_SEGMENTS
        if segment >= OUTPUT_SEGMENTS
        else FIRST_TOKEN + zlib.crc32(f"{segment}:{first + place}".encode()) % 7500
        for segment, first, many in request["segments"]
        for place in range(many)
    ]


class Clients:
    """Clients of one server, a thread each, which begin when others have got so far."""

    def __init__(self, requests: list[Case], port: int) -> None:
        self.requests, self.port = requests, port
        self.sending = threading.Lock()
        self.sent: list[str] = []
        self.threads: list[threading.Thread] = []

    def run(self) -> list[str]:
        """Serve all; their names in the order they were sent."""
        self._begin(None)
        for last in (False, True):
            if last:
                self._begin(LAST)
            for thread in self.threads:  # grows
                thread.join()
        return self.sent

    def _begin(self, after: list[str] | None) -> None:
        for request in self.requests:
            if request.get("after") == after:
                thread = threading.Thread(target=self._ask, args=(request,))
                self.threads.append(thread)
                thread.start()

    def _ask(self, request: Case) -> None:
        body = {"prompt": prompt(request), "n_predict": request["n_predict"], "ignore_eos": True, "stream": True}
        body |= {"logit_bias": [[FIRST_OUTPUT + request["idx"], 1000]], **request.get("opts", {})}
        if "n" in request:
            body["n_cmpl"] = request["n"]
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        with self.sending:
            self.sent.append(request["id"])
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            time.sleep(GAP_S)
        answer = connection.getresponse()
        got = 0
        while answer.status == 200 and (line := answer.readline()):
            said = json.loads(line[6:]) if line.startswith(b"data: ") else {}
            if said.get("tokens") and not said.get("index"):
                got += 1
                self._begin([request["id"], f"tok:{got}"])
            if request.get("cancel_at") == got:
                break
        answer.close()
        connection.close()
        for missed in range(got + 1, request["n_predict"] + 1):
            self._begin([request["id"], f"tok:{missed}"])
        self._begin([request["id"], "done"])


def served(server: str, model: Path, flags: list[str], requests: list[Case], port: int) -> tuple[list[str], str]:
    """Serve requests; the order they were sent in, and the server's log."""
    fixed = ["-m", str(model), "-t", "1", "-fit", "off", "--no-warmup", "--threads-http", "48", "-lv", "5"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        process = subprocess.Popen(
            [*shlex.split(server), *fixed, "--port", str(port), *flags],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LLAMA_BATCH_DEBUG": "1"},
        )
        try:
            for _ in range(600):
                try:
                    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        break
                except OSError:
                    time.sleep(0.05)
            sent = Clients(requests, port).run()
            time.sleep(0.2)
        finally:
            process.terminate()
            process.wait()
        log.seek(0)
        return sent, log.read()


# -- the log ------------------------------------------------------------------------------------------------

LINE = re.compile(r"\d+\.\d\d\.\d{3}\.\d{3} [DIWE] +(.*)")
AT_SLOT = re.compile(r"slot +\w+(?:\(\))?: id +(\d+) \| task (-?\d+) \| +(.*)")
YIELDS = re.compile(r"task (\d+) \| n_gen = \d+, n_remaining = \d+, next token: +(\d+)")
BEGINS = re.compile(r"task (\d+) \| new prompt, .*task\.n_tokens = (\d+)")
POSTED = re.compile(r"post: new task, id = (\d+)/\d+, front = 0")
TOKEN = re.compile(r"ubatch_print: +\d+: id = .*pos = +(\d+), n_seq_id = +1, seq_id = \[\.*(\d)\.*\], output = (\d)")


class Log:
    """Iterations, read from the log line by line."""

    def __init__(self, requests: list[Case], sent: list[str]) -> None:
        self.by_id = {request["id"]: request for request in requests}
        self.sent = sent
        self.names: dict[int, str] = {}  # of tasks
        self.config: Case = {}
        self.iterations: list[Case] = []
        self.next: Case = {}
        self.sims: list[list[int]] = []
        self.children: list[str] = []
        self.task: Case = {}
        self.number = -1  # of the task being taken
        self.by = ""
        self.computing = False
        self.whys: dict[int, str] = {}
        self.batch: list[list[int]] | None = None
        self.ram: list[list[Any]] = []  # what host memory did for the task whose slot is not known yet
        self.prompting: dict[int, str] = {}  # whose prompt a slot computes, or has computed

    def _name(self, text: str) -> None:
        """Tell whose the tasks are: by what they yield, else by the length of the prompt, else by the order they were sent in."""
        left = list(self.sent)
        yields = {int(task): f"r{int(token) - FIRST_OUTPUT:03d}" for task, token in YIELDS.findall(text)}
        lengths = {int(task): int(tokens) for task, tokens in BEGINS.findall(text)}
        posted = [int(task) for task in POSTED.findall(text)]
        whose = {task: yields[task] for task in posted if task in yields}
        left = [name for name in left if name not in whose.values()]
        for task in sorted(set(posted) - set(whose), key=lambda task: task not in lengths):
            alike = [name for name in left if lengths.get(task) in (None, self.by_id[name]["prompt_len"])]
            whose[task] = alike[0]
            left.remove(alike[0])
        self.names = whose

    def read(self, text: str) -> None:
        """Take in a log."""
        self._name(text)
        for found in LINE.finditer(text.replace("parser.", "parser.\n")):
            line = found[1]
            if about := AT_SLOT.match(line):
                self._slot(int(about[1]), int(about[2]), about[3])
            elif token := TOKEN.match(line):
                if self.batch is not None:
                    self.batch.append([int(token[2]), int(token[1]), int(token[3])])
            else:
                self._server(line)

    def _note(self, key: str, what: Any) -> None:
        self.next.setdefault(key, []).append(what)

    def _server(self, line: str) -> None:
        numbers = [float(number) for number in re.findall(r"-?\d{1,9}(?:\.\d+)?", line.partition(": ")[2])]
        first = int(numbers[0]) if numbers else -1

        def says(*words: str) -> bool:
            return any(word in line for word in words)

        if says("initializing, n_slots"):
            self.config = {"n_slots": first, "n_ctx_slot": int(numbers[1]), "kv_unified": says("'true'")}
        elif says("processing task, id"):
            self.number, self.by, self.task, self.sims = first, "", {}, []
        elif says("declined, id"):
            self.number = -1
        elif says("launching slots for parent"):
            self.children = [f"{self.names[first]}.{answer}" for answer in range(int(numbers[1]), 0, -1)]
        elif says("not enough free slots for child"):
            self._took({"by": self.by})
        elif says("defer: defer task"):
            self._took({"deferred": True})
        elif says("pop_deferred: pop"):
            self._note("pop_deferred", {"id": self.names[int(numbers[-1])]})
        elif says("prompt_save: "):
            self._ram("save", first)
        elif says("obsolete"):
            self._ram("obsolete", first)
        elif says("already in the cache"):
            self._ram("already")
        elif says("exceeds cache size limit"):
            self._ram("toobig")
        elif says("removing oldest entry"):
            self._ram("evict")
        elif says("found better prompt"):
            self._ram("better", *numbers[-2:])
        elif says("cache state: "):
            self._ram("state", first)
        elif says("posting NEXT_RESPONSE"):
            self.computing, self.number = True, -1
        elif says("(effective)"):
            self._settle_tokens()
            self._settle_call(first)
            self._note("calls", {"n_batch": first, "off": int(numbers[1]), "n": 0, "ubatches": [], "ok": True})
        elif self.computing and says("input batch info", "added ubatch"):
            self._settle_tokens()
            self.batch = []
        elif says("purging slot"):
            self.next["calls"][-1] |= {"ok": False, "purged_slot": first}
        elif says("Context size has been exceeded") and says("off ="):
            self.next["calls"][-1] |= {"ok": False, "exceeded": True}
        elif says("send_error"):
            self.whys[first] = "error"
        elif says("waiting for new tasks") and self.computing:
            self._settle_tokens()
            self._close()

    def _slot(self, slot: int, task: int, line: str) -> None:
        numbers = [int(number) for number in re.findall(r"-?\d{1,9}", line)]

        def says(*words: str) -> bool:
            return any(word in line for word in words)

        if says("checking sim"):
            self.sims.append([slot, *numbers[2:4]])
        elif says("selected slot by"):
            self.by = "lcp" if says("LCP") else "lru" if says("LRU") else "id_slot"
        elif says("processing task, is_child = 0"):
            self._took({"slot": slot, "by": self.by})
        elif says("processing task, is_child = 1"):
            self.names[task] = self.children.pop()
        elif says("saving idle slot"):
            self._ram("idle_slot", slot)
        elif says("clearing prompt with") and not self.computing:
            self._ram("clear", slot, numbers[0])  # as an idle slot
        elif says("new prompt, "):
            start = {"slot": slot, "id": self.names[task], "prompt": numbers[-1], "n_past": None}
            self._note("start", start)
        elif says("cached n_tokens"):
            for start in self.next.get("start", ()):
                if start["slot"] == slot and start["n_past"] is None:
                    start["n_past"] = numbers[0]
        elif says("reusing chunk"):
            self.next["start"][-1].setdefault("chunks", []).append([numbers[0], numbers[1], numbers[3]])
        elif says("slot decode token"):
            self._note("decode", [slot, self.names[task], numbers[2]])
        elif says("context shift, n_keep"):
            shift = {"slot": slot, "id": self.names[task], "n_keep": numbers[0], "n_discard": numbers[2]}
            self._note("shift", shift)
        elif says("next token:"):
            self._note("emit", self.names[task])
        elif says("stopped by limit"):
            self.whys[task] = "limit"
        elif says("running out of context"):
            self.whys[task] = "context_full"
        elif says("stop processing:"):
            if self.computing:
                end = {"id": self.names[task], "slot": slot, "why": self.whys.get(task, "other")}
                self._note("finished", {**end, "slot_tokens": numbers[0], "truncated": numbers[1]})
            elif "." not in self.names[task]:
                self._note("cancelled_before", {"id": self.names[task], "slot": slot, "n_tokens": numbers[0]})

    def _took(self, what: Case) -> None:
        """Note what became of the task that is being taken."""
        name = self.names[self.number]
        if not self.task:
            self.task |= {"id": name, **({"sims": self.sims} if self.sims else {})}
            self._note("tasks", self.task)
            popped = [entry["id"] for each in (*self.iterations, self.next) for entry in each.get("pop_deferred", ())]
            if name in popped:
                self.task["from_deferred"] = True
            self.by_id[name].setdefault("arrive_iter", len(self.iterations))
        self.task.update(what)
        if self.ram:
            self.task["ram"] = self.ram
            self.ram = []

    def _ram(self, *event: Any) -> None:
        """Note what host memory did, for the task that is being taken."""
        if "slot" in self.task:
            self.task.setdefault("ram", []).append(list(event))
        else:
            self.ram = [*self.ram, list(event)]

    def _settle_call(self, n_batch: int) -> None:
        calls = self.next.get("calls")
        if calls and (not calls[-1]["ok"] or n_batch < calls[-1]["n_batch"]):
            calls[-1] |= {"ok": False, "next_n_batch": n_batch}

    def _settle_tokens(self) -> None:
        """Enter the tokens listed in a call: first all of them, then sub-batch by sub-batch."""
        if not self.batch:
            return
        call = self.next["calls"][-1]
        if not call["n"]:
            call["n"] = len(self.batch)
            call["listed"] = self.batch
        else:
            call["ubatches"].append(list(runs(self.batch)))
        self.batch = None

    def _close(self) -> None:
        """End an iteration."""
        taken: list[list[int]] = []
        for call in self.next.get("calls", ()):
            taken[call["off"] :] = call["listed"] if len(taken) <= call["off"] + call["n"] else taken[call["off"] :]
            del call["listed"]
        generating = len(self.next.get("decode", ()))
        self.prompting |= {start["slot"]: start["id"] for start in self.next.get("start", ())}
        for slot, tokens, first, _ in runs(taken[generating:]):
            self._note("prompt", [slot, self.prompting[slot], tokens, first])
        if self.next.get("calls") or self.next.get("finished"):
            self.iterations.append({"type": "iter", "i": len(self.iterations), **self.next})
            self.next = {}
        self.computing = False


def runs(tokens: list[list[int]]) -> Iterator[list[int]]:
    """Tokens that follow each other in a slot, as slot, tokens, first position, outputs."""
    run: list[int] = []
    for slot, position, output in tokens:
        if run and run[0] == slot and position == run[2] + run[1]:
            run[1] += 1
            run[3] += output
        else:
            if run:
                yield run
            run = [slot, 1, position, output]
    if run:
        yield run


def main() -> None:
    """Record the seeds that were asked for, or anew what stands in given files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--server", default="llama-server", help="the command of the server")
    parser.add_argument("--port", type=int, default=18100)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--like", type=Path, nargs="*", default=[], help="recordings whose flags and requests are served again")
    parser.add_argument("--logs", action="store_true", help="keep the server's logs too")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    cases: dict[str, tuple[list[str], list[Case]]] = {}
    for path in given.like:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        cases[path.stem] = lines[0]["args"], [line for line in lines if line["type"] == "request"]
        for request in cases[path.stem][1]:
            request.pop("arrive_iter")
    if not given.like:
        cases = {f"drawn-{seed}": drawn(seed) for seed in range(given.first, given.first + given.count)}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.gguf")
        write_model(model)
        for name, (flags, requests) in cases.items():
            sent, text = served(given.server, model, flags, requests, given.port)
            if given.logs:
                (given.out / f"{name}.log").write_text(text)
            log = Log(requests, sent)
            log.read(text)
            config = {"type": "config", "engine": "llama.cpp", "version": VERSION, "scenario": name}
            lines = [{**config, "args": flags, "config": log.config}, *requests, *log.iterations]
            (given.out / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
