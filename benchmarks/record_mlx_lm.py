"""Schedules of MLX LM's own server under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_mlx_lm.py OUT --first 0 --count 60    60 recordings, by their seeds
    capacity-plan validate schedules OUT                           how many steps are reproduced

Runs in an environment with mlx-lm 0.32.2 and the CPU build of mlx (`pip install mlx-lm==0.32.2 "mlx[cpu]"`). The server's
thread, its time budget, the batch generator, the caches of keys and values (one layer, one head of width 1) and the stored
prompts are MLX LM's. The model returns zeros, samplers the scripted tokens; the queue, the clock and the tokenizer are
stand-ins. A prompt call is waited for, a decode call waits for those that made its tokens, and a token handed out for all
calls that were launched.
"""

from __future__ import annotations

import importlib
import queue
import random
from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from recorded_load import Arrivals, Case, drawn_requests, head, main, prompt, step_s, token

SYSTEM_SEGMENTS = 100
"""Segments with smaller numbers are system prompts."""


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed."""
    draw = random.Random(seed)
    longest, answer = draw.choice([200, 500, 1200, 3000]), draw.choice([3, 20, 80, 200])
    config = {
        "decode_concurrency": draw.choice([1, 2, 4, 8, 32]),
        "prompt_concurrency": draw.choice([1, 2, 4, 8, 16]),
        "prefill_step_size": draw.choice([32, 128, 512, 2048]),
        "prompt_cache_size": draw.choice([1, 2, 4, 10, 30]),
        "prompt_cache_bytes": draw.choice([None, None, 0, 4 * longest, 16 * longest, 64 * longest]),
        "time_budget": 0.5,
        "request_type": draw.choice(["text", "chat"]),
    }
    requests = drawn_requests(draw, longest, answer)
    for request in requests:  # some prompts are the beginning of others
        first = request["segments"][0]
        if first[0] < SYSTEM_SEGMENTS and "after" not in request and draw.random() < 0.15:
            request["prompt_len"] = draw.randint(1, first[2])
            request["segments"] = [[first[0], 0, request["prompt_len"]]]
    return head("mlx_lm", "0.32.2", seed, config), requests


class Zero:
    """The log-probabilities of a row: reading one waits for the device."""

    def __init__(self, wait: Callable[[], None]) -> None:
        self.item = wait

    def __getitem__(self, token: int) -> Zero:
        return self


class Recorder:
    """One run: the server's thread, of which this is the queue, the clock and the model."""

    def __init__(self, config: Case, requests: list[Case]) -> None:
        self.server, self.parts = (importlib.import_module(f"mlx_lm.{name}") for name in ("server", "generate"))
        self.mx = importlib.import_module("mlx.core")
        self.knobs = config["config"]
        self.arrivals = Arrivals(requests)
        self.layers = [None]
        self.queued: list[Case] = []
        self.taking: Case = {}
        self.now_s = self.device_s = 0.0
        self.names: dict[int, str] = {}
        self.made_s: dict[int, float] = {}  # when the call that makes a row's next token ends
        self.steps: list[Case] = []
        self.noted = self._nothing()
        model = SimpleNamespace(model="model", adapter=None, draft=None)
        cli = SimpleNamespace(kv_bits=None, **self.knobs)
        detokenizer = SimpleNamespace(add_token=lambda token: None, finalize=lambda: None, last_segment="")
        tokenizer = SimpleNamespace(has_tool_calling=False, has_thinking=False, tool_parser=None, detokenizer=detokenizer)
        self.model = model
        self.generator = self.server.ResponseGenerator.__new__(self.server.ResponseGenerator)
        self.generator.__dict__ |= {
            "model_provider": SimpleNamespace(
                cli_args=cli,
                is_batchable=True,
                model_key="model",
                load_default=lambda: None,
                load=lambda *names: (self, tokenizer),
                reset=lambda: None,
            ),
            "prompt_cache": importlib.import_module("mlx_lm.models.cache").LRUPromptCache(self.knobs["prompt_cache_size"]),
            "requests": self,
            "_time_budget": self.server.TimeBudget(self.knobs["time_budget"]),
            "_is_distributed": False,
            "_rank": 0,
            "_stop": False,
            "cli_args": cli,
            "_tokenize": self.tokenize,
            "_make_state_machine": lambda *given: (self.parts.StopSequences(), None),
            "_log_cache_stats": lambda: None,
        }
        self.copies = self.generator.prompt_cache

    @staticmethod
    def _nothing() -> Case:
        return {"admitted": [], "hits": {}, "cache_insert": [], "cache_drop": [], "trims": []}

    # -- the clock and the queue of requests

    def time(self) -> float:
        """As `time.time`."""
        return self.now_s

    perf_counter = time

    def get(self, timeout: float) -> Any:
        """Take the next request, when it arrives."""
        if not self.queued:
            if self.arrivals.next_s == float("inf"):
                self.generator._stop = True
                raise queue.Empty
            self.now_s = max(self.now_s, self.arrivals.next_s)
        return self.get_nowait()

    def get_nowait(self) -> Any:
        """Take the next request, if one has arrived."""
        self.queued += [request for _, request in self.arrivals.take(self.now_s)]
        if not self.queued:
            raise queue.Empty
        given = self.queued.pop(0)
        tokens = (token(given["out_seg"], place) for place in range(given["output_len"] + 2))
        args = SimpleNamespace(
            model=self.model,
            seed=None,
            stop_words=[],
            top_logprobs=0,
            max_tokens=given["output_len"],
            sampler=lambda _: self.mx.array([next(tokens)], dtype=self.mx.uint32),
            given=given,
        )
        return SimpleNamespace(put=lambda what: self.reply(given, what)), SimpleNamespace(messages=[]), args

    def reply(self, given: Case, what: Any) -> None:
        """Note what a client hears: what was found for it, and the end of its answer."""
        if isinstance(what, Exception):
            raise what
        if isinstance(what, self.server.GenerationContext):
            self.taking = given
            self.noted["admitted"].append(given["id"])
            if what.prompt_cache_count:
                self.noted["hits"][given["id"]] = what.prompt_cache_count
        elif what is None:
            self.steps[-1]["finished"].append(given["id"])
            self.arrivals.ended([given["id"]], self.now_s)

    def tokenize(self, tokenizer: Any, request: Any, args: Any) -> Any:
        """The prompt, its segments and their kinds."""
        tokens, first = prompt(args.given), args.given["segments"][0]
        if self.knobs["request_type"] == "text":
            return tokens, [tokens], ["assistant"], "normal", None
        system = first[2] if first[0] < SYSTEM_SEGMENTS else 0
        parts = [(part, kind) for part, kind in ((tokens[:system], "system"), (tokens[system:], "user")) if part]
        return tokens, [part for part, _ in parts], [kind for _, kind in parts], "normal", None

    # -- the device

    def __call__(self, tokens: Any, cache: list[Any]) -> Any:
        """Compute a call: keys and values grow, all logits are zero."""
        rows, columns = tokens.shape
        new = self.mx.zeros((rows, 1, columns, 1), dtype=self.mx.float16)
        cache[0].update_and_fetch(new, new)
        return self.mx.zeros((rows, columns, 1))

    def launch(self, mode: str, batch: Any, new: list[int]) -> float:
        """Note a call; when it ends."""
        rows = [[self.names[uid], many, len(held)] for uid, many, held in zip(batch.uids, new, batch.tokens, strict=True)]
        decodes = len(rows) if mode == "decode" else 0
        step: Case = {
            "type": "step",
            "step": len(self.steps),
            "mode": mode,
            "t_sched": self.now_s,
            "t_start": max(self.now_s, self.device_s),
            "sched": rows,
            **self.noted,
            "cache_seqs": len(self.copies),
            "prefill_tokens": 0 if decodes else sum(new),
            "decode_seqs": decodes,
            "kv_tokens": sum(many + before for _, many, before in rows),
            "finished": [],
        }
        self.noted = self._nothing()
        self.device_s = step["t_end"] = step["t_start"] + step_s(step)
        self.steps.append(step)
        return self.device_s

    def wait(self, until_s: float | None = None) -> None:
        """Wait for calls that end by then; None: for all."""
        self.now_s = max(self.now_s, self.device_s if until_s is None else until_s)

    # -- MLX LM's parts, listened to

    def compute_pieces(self, real: Any, batch: Any, tokens: list[list[int]]) -> None:
        """A call of prompts."""
        if tokens:
            self.launch("prompt", batch, [len(piece) for piece in tokens])
        real(batch, tokens)
        if tokens:
            self.wait()

    def compute_rows(self, real: Any, batch: Any) -> Any:
        """A call of last tokens of prompts, or of rows that decode."""
        made_s = max(self.made_s.get(uid, 0.0) for uid in batch.uids)
        first = batch._current_tokens is None
        end_s = self.launch("first_token" if first else "decode", batch, [1] * len(batch.uids))
        inputs, _ = real(batch)
        self.wait(made_s)
        self.made_s |= dict.fromkeys(batch.uids, end_s)
        return inputs, [Zero(self.wait)] * len(inputs)

    def turn(self, real: Any, batches: Any) -> Any:
        """A turn; who is where after it."""
        begun = len(self.steps)
        responses = real(batches)
        if len(self.steps) > begun:
            after = {"running": batches._generation_batch.uids, "prompting": batches._prompt_batch.uids}
            after["waiting"] = [waiting[0] for waiting in batches._unprocessed_sequences]
            self.steps[-1] |= {where: [self.names[uid] for uid in uids] for where, uids in after.items()}
        return responses

    def insert(self, real: Any, batches: Any, **given: Any) -> Any:
        """Note a request's number."""
        uids = real(batches, **given)
        self.names[uids[0]] = self.taking["id"]
        return uids

    def store(self, real: Any, copies: Any, model: str, tokens: list[int], cache: Any, *, cache_type: str) -> None:
        """Note a stored prompt."""
        self.noted["cache_insert"].append([cache_type, len(tokens)])
        real(copies, model, tokens, cache, cache_type=cache_type)

    def trim(self, real: Any, copies: Any, *, n_bytes: int) -> None:
        """Note a limit."""
        self.noted["trims"].append(n_bytes)
        real(copies, n_bytes=n_bytes)

    def parts_of(self, real: Any, tree: Any, model: str, tokens: list[int]) -> Any:
        """Note stored prompts that went for a longer one."""
        found = real(tree, model, tokens)
        self.noted["cache_drop"] += [["prefix", many] for many, _ in found]
        return found

    def evict(self, real: Any, order: Any) -> Any:
        """Note a stored prompt that went for room."""
        found = real(order)
        self.noted["cache_drop"].append(["evicted", len(found[1])])
        return found

    def run(self) -> list[Case]:
        """Serve all requests; the steps."""
        heard = [
            (self.parts.PromptProcessingBatch, "prompt", self.compute_pieces),
            (self.parts.GenerationBatch, "_step", self.compute_rows),
            (self.parts.BatchGenerator, "next", self.turn),
            (self.parts.BatchGenerator, "insert_segments", self.insert),
            (type(self.copies), "insert_cache", self.store),
            (type(self.copies), "trim_to", self.trim),
            (type(self.copies._trie), "pop_prefixes", self.parts_of),
            (type(self.copies._lru), "pop", self.evict),
        ]
        replaced = [
            (self.server, "time", self),
            (self.server, "_make_sampler", lambda args, _: args.sampler),
            (self.server, "_make_logits_processors", lambda _: []),
        ]
        with ExitStack() as patches:
            for owner, name, listener in heard:
                hearing = heard_by(listener, getattr(owner, name))
                patches.enter_context(patch.object(owner, name, hearing))
            for owner, name, stand_in in replaced:
                patches.enter_context(patch.object(owner, name, stand_in))
            self.generator._generate()
        return self.steps


def heard_by(listener: Callable[..., Any], real: Any) -> Any:
    """A method that hands itself, its owner and what it was given to a listener."""
    return lambda owner, *given, **named: listener(real, owner, *given, **named)


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The calls of MLX LM's server."""
    return Recorder(config, requests).run()


if __name__ == "__main__":
    main(__doc__, drawn, record)
