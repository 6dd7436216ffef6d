"""Schedules of ExLlamaV2's own dynamic generator under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_exllamav2.py OUT --first 0 --count 60    60 recordings, by their seeds
    capacity-plan validate schedules OUT                              how many iterations are reproduced

Runs in an environment with torch for CPUs and the Python files of exllamav2 0.3.2, whose path is given (`EXLLAMAV2`, the
folder of `generator/dynamic.py`'s package); its compiled extension is not needed. The generator, its jobs and its pages are
ExLlamaV2's. The model, the cache's tensors, the tokenizer and the sampler, which yields the scripted tokens, are stand-ins.
Each forward of an iteration takes a + b x prompt tokens + c x decode rows + d x KV tokens; they run one after the other.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from recorded_load import Arrivals, Case, drawn_requests, head, main, prompt, step_s, token

PAGE_TOKENS = 256
DEFAULTS = {"max_q_size": 8, "max_input_len": 2048, "max_seq_len": 32768, "page_size": PAGE_TOKENS}


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed."""
    draw = random.Random(seed)
    longest, answer = draw.choice([300, 900, 2500, 5000]), draw.choice([3, 60, 200, 600])
    one = -(-(longest + answer) // PAGE_TOKENS)
    config = {
        "cache_tokens": PAGE_TOKENS * max(one, int(one * draw.choice([1, 1.3, 2, 4, 10]))),
        "max_batch_size": draw.choice([1, 2, 4, 16, 256]),
        "max_chunk_size": draw.choice([256, 512, 1024, 2048]),
        "max_skips": draw.choice([0, 1, 4, 4, 4, 20]),
        **DEFAULTS,
    }
    requests = drawn_requests(draw, longest, answer)
    for request in requests:  # some prompts are those of others, or begin them
        if "after" not in request and draw.random() < 0.25:
            other = draw.choice(requests)
            cut = draw.choice([other["prompt_len"], draw.randint(1, other["prompt_len"])])
            request["segments"], request["prompt_len"] = list(_first(other["segments"], cut)), cut
    return head("exllamav2", "0.3.2", seed, config), requests


def _first(segments: list[list[int]], tokens: int) -> Any:
    for segment, offset, many in segments:
        if tokens > 0:
            yield [segment, offset, min(many, tokens)]
        tokens -= many


def generator_module() -> ModuleType:
    """ExLlamaV2's `dynamic.py`, over stand-ins of what it imports."""
    package = Path(os.environ["EXLLAMAV2"])

    def stand_in(name: str, **holds: Any) -> None:
        module = ModuleType(name)
        module.__dict__.update(holds, __path__=[])
        sys.modules[name] = module

    def loaded(name: str, path: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, package / path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    class Nothing:
        """A class that nobody is an instance of."""

    def count_match(held: Any, wanted: Any, most: int) -> int:
        both = min(most, wanted.shape[-1], held.shape[-1])
        differ = (held[0, :both] != wanted[0, :both]).nonzero()
        return int(differ[0]) if len(differ) else both

    sampler = SimpleNamespace(Settings=lambda: SimpleNamespace(cfg_scale=None))
    attention = SimpleNamespace(PagedParams=lambda **given: SimpleNamespace(**given))
    names = ("ExLlamaV2", "ExLlamaV2Tokenizer", "ExLlamaV2Lora")
    stand_in("exllamav2", **dict.fromkeys(names, Nothing))
    stand_in("exllamav2.ext", exllamav2_ext=SimpleNamespace(count_match=count_match), none_tensor=None)
    sys.modules["exllamav2"].__dict__["SeqTensor"] = loaded("exllamav2.util", "util.py").__dict__["SeqTensor"]
    stand_in("exllamav2.generator", ExLlamaV2Sampler=sampler)
    stand_in("exllamav2.generator.filters", ExLlamaV2Filter=Nothing)
    stand_in("exllamav2.generator.dynamic_embeddings", ExLlamaV2MMEmbedding=Nothing)
    stand_in("exllamav2.cache", ExLlamaV2CacheBase=Nothing, ExLlamaV2Cache_8bit=Nothing)
    stand_in("exllamav2.attn", ExLlamaV2Attention=attention, assert_paged_attn=lambda: None)
    stand_in("exllamav2.device", get_device_stream=None)
    stand_in("exllamav2.mrope")
    sys.modules["exllamav2"].__dict__["mrope"] = sys.modules["exllamav2.mrope"]
    loaded("exllamav2.compat", "compat.py")
    dynamic = loaded("exllamav2.generator.dynamic", "generator/dynamic.py")
    dynamic.__dict__["cuda_sync_active"] = lambda: None
    return dynamic


class Recorder:
    """One run: the generator, of which this is the model, the cache and the sampler."""

    def __init__(self, config: Case, requests: list[Case]) -> None:
        self.dynamic = generator_module()
        self.torch = importlib.import_module("torch")
        knobs = config["config"]
        self.arrivals = Arrivals(requests)
        shape = {"vocab_size": 32, "max_input_len": knobs["max_input_len"], "max_seq_len": knobs["max_seq_len"]}
        shape |= {"max_batch_size": 256, "no_flash_attn": False, "arch": SimpleNamespace(lm=SimpleNamespace(mrope=False))}
        self.config = SimpleNamespace(**shape)
        self.max_seq_len, self.batch_size = knobs["cache_tokens"], 1
        self.max_skips = knobs["max_skips"]
        self.jobs: dict[Any, Case] = {}
        self.filling: Any = None
        self.generating = False  # the latest forward
        self.forwards: list[list[list[Any]]] = []
        pieces = SimpleNamespace(get_id_to_piece_list=lambda special: Pieces())
        self.generator = self.dynamic.ExLlamaV2DynamicGenerator(
            self,
            self,
            pieces,
            max_batch_size=knobs["max_batch_size"],
            max_chunk_size=knobs["max_chunk_size"],
            max_q_size=knobs["max_q_size"],
            max_sampling_threads=1,
            filter_background_eval=False,
        )

    # -- the cache and the model

    def all_tensors(self) -> list[Any]:
        """No tensors."""
        return []

    def copy_states(self, *given: Any) -> None:
        """Nothing to copy."""

    def forward_chunk(self, input_ids: Any, attn_params: Any, **rest: Any) -> Case:
        """Note a forward."""
        self.generating = not rest.get("preprocess_only")
        befores = [int(before) for before in attn_params.cache_seqlens]
        new = int(input_ids.shape[-1])
        if not self.generating:
            rows = [[self.jobs[self.filling]["id"], new, befores[0]]]
        else:
            ready = [job for job in self.generator.active_jobs if job.is_prefill_done()]
            rows = [[self.jobs[job]["id"], new, before] for job, before in zip(ready, befores, strict=True)]
        self.forwards.append(rows)
        return {"logits": self.torch.zeros((len(rows), 1, 32))}

    # -- jobs

    def enqueue(self, request: Case) -> None:
        """Hand over a request."""
        ids = self.torch.tensor([prompt(request)], dtype=self.torch.long)
        job = self.dynamic.ExLlamaV2DynamicJob(ids, request["output_len"], max_skips=self.max_skips)
        fill = job.prefill

        def filled(results: list[Any]) -> None:
            self.filling = job
            fill(results)

        def sampled(logits: Any) -> tuple[Any, ...]:
            following = token(request["out_seg"], job.new_tokens)
            return self.torch.tensor([[following]], dtype=self.torch.long), None, None, None, False

        job.prefill, job.receive_logits = filled, sampled
        self.jobs[job] = request
        self.generator.enqueue(job)

    def found(self) -> dict[str, int]:
        """Tokens that jobs have found in the cache so far."""
        return {given["id"]: job.cached_pages * PAGE_TOKENS + job.cached_tokens for job, given in self.jobs.items()}

    def skips(self) -> dict[str, int]:
        """How often pending jobs have been passed over."""
        return {self.jobs[job]["id"]: job.skips for job in self.generator.pending_jobs}

    def run(self) -> list[Case]:
        """Serve all requests; the iterations."""
        generator, now_s, steps = self.generator, 0.0, []
        start = generator.iterate_start_jobs

        def started(results: list[Any]) -> None:
            start(results)
            step["free_pages"] = len(generator.unreferenced_pages)

        generator.iterate_start_jobs = started
        while True:
            for _, request in self.arrivals.take(now_s):
                self.enqueue(request)
            if not generator.num_remaining_jobs():
                if self.arrivals.next_s == float("inf"):
                    return steps
                now_s = self.arrivals.next_s
                continue
            before, skipped = self.found(), self.skips()
            self.forwards.clear()
            step: Case = {"type": "step", "step": len(steps), "t_sched": now_s, "t_start": now_s}
            results = generator.iterate()
            generates = bool(self.forwards) and self.generating
            chunks = len(self.forwards) - generates
            step |= {"sched": [row for rows in self.forwards for row in rows], "n_prefill": chunks}
            for number, rows in enumerate(self.forwards):
                new, attended = sum(many for _, many, _ in rows), sum(many + prior for _, many, prior in rows)
                decodes = len(rows) if number >= chunks else 0
                now_s += step_s({"prefill_tokens": 0 if decodes else new, "decode_seqs": decodes, "kv_tokens": attended})
            step["started"] = [self.jobs[each["job"]]["id"] for each in results if each["stage"] == "started"]
            step["hits"] = {name: many - before[name] for name, many in self.found().items() if many > before[name]}
            step["skips"] = {name: many for name, many in self.skips().items() if many > skipped[name]}
            step["finished"] = [self.jobs[each["job"]]["id"] for each in results if each["eos"]]
            step["t_end"] = now_s
            self.arrivals.ended(step["finished"], now_s)
            self.jobs = {job: given for job, given in self.jobs.items() if not job.is_finished}
            steps.append(step)


class Pieces:
    """The text of any token."""

    def __getitem__(self, token: int) -> str:
        return "x"


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The iterations of ExLlamaV2's generator."""
    return Recorder(config, requests).run()


if __name__ == "__main__":
    main(__doc__, drawn, record)
