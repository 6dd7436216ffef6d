"""Schedules of SGLang's own scheduler where decode steps verify drafts, for `capacity-plan validate schedules`.

    python benchmarks/record_sglang_drafts.py OUT --first 0 --count 60    60 recordings, by their seeds
    capacity-plan validate schedules OUT                                  how many steps are reproduced

As `record_sglang.py`, whose environment it needs. What is a draft's: the memory that SGLang holds ahead of a row, its verified
tokens, how results are taken in, keys of pairs of tokens where the drafter has layers. Drafts are accepted as `spec_accept` says,
by the verifications of a request; the drafter itself is not there.
"""

from __future__ import annotations

import importlib
import random
from types import SimpleNamespace
from typing import Any

import record_sglang
from record_sglang import srt
from recorded_load import Case, head, main, token


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed: those of `record_sglang` with drafts."""
    draw = random.Random(f"drafts {seed}")
    longest, answer = draw.choice([160, 200, 500, 1200, 3000]), draw.choice([3, 20, 80, 200, 400])
    config = record_sglang.drawn_config(draw, longest, answer)
    config["enable_mixed_chunk"] = False
    draw_drafts(draw, config)
    page, steps, tokens = config["page_size"], config["speculative_num_steps"], config["speculative_num_draft_tokens"]
    branches = config["speculative_eagle_topk"]
    one = longest + answer + 2 * page + 4 * max(steps * branches, tokens, page * branches)
    config["max_total_num_tokens"] = int(one * draw.choice([1.1, 1.6, 2.5, 5, 15])) // page * page
    by_priority = config["enable_priority_scheduling"] or config["radix_eviction_policy"] == "priority"
    requests = record_sglang.drawn_requests(draw, longest, answer, priorities=by_priority)
    return head("sglang", record_sglang.VERSION, seed, config), requests


def draw_drafts(draw: random.Random, config: Case) -> None:
    """Let drafts be chains or trees of a drafter with layers, or of n-grams."""
    algorithm = draw.choice(["EAGLE", "EAGLE", "STANDALONE", "NGRAM"])
    if algorithm == "NGRAM":
        steps, branches, verified = 1, 1, draw.choice([4, 8, 12])
    elif draw.random() < 0.6:
        steps, branches = draw.choice([1, 2, 3, 5]), 1
        verified = steps + 1
    else:
        steps, branches, verified = draw.choice([2, 3, 5]), draw.choice([2, 4, 8]), draw.choice([4, 8, 16])
    most = min(verified - 1, steps if algorithm != "NGRAM" else verified - 1)
    config |= {
        "speculative_algorithm": algorithm,
        "speculative_num_steps": steps,
        "speculative_eagle_topk": branches,
        "speculative_num_draft_tokens": verified,
        "spec_accept": [draw.randint(0, most) for _ in range(draw.randint(1, 9))],
    }


class Pending:
    """What a batch carries for its drafter: nothing that is scheduled by."""

    def filter_batch(self, **_: Any) -> None:
        """Rows leave."""

    def merge_batch(self, _: Any) -> None:
        """Rows join."""


class Recorder(record_sglang.Recorder):
    """One run with drafts."""

    def __init__(self, head: Case, requests: list[Case]) -> None:
        super().__init__(head, requests)
        config, scheduler = self.config, self.scheduler
        srt("mem_cache.allocation").assign_req_to_token_pool_func = written
        scheduler.spec_algorithm = srt("speculative.spec_info").SpeculativeAlgorithm.from_string(config["speculative_algorithm"])
        scheduler.model_worker = SimpleNamespace(
            model_runner=scheduler.tp_worker.model_runner, on_verify_complete_cpu=lambda *_, **__: None
        )
        scheduler.init_batch_result_processor()
        for name in ("snapshot_spec_decode_metrics", "update_spec_metrics"):
            setattr(scheduler.metrics_reporter, name, lambda *_, **__: None)
        self.verified: dict[str, int] = {}
        self.there: dict[str, int] = {}  # tokens of a row on the device
        self.gains: dict[int, list[int]] = {}  # by step

    def rows(self, batch: Any) -> list[Any]:
        """As of the base; what is verified is a row's."""
        batch.spec_info = Pending()
        if not batch.forward_mode.is_decode():
            rows = super().rows(batch)
            self.there |= {name: new + before for name, new, before in rows}
            return rows
        tokens, script, rows, gains = self.config["speculative_num_draft_tokens"], self.config["spec_accept"], [], []
        for request in batch.reqs:
            name = request.rid
            rows.append([name, tokens, self.there[name]])
            gains.append(1 + script[self.verified.get(name, 0) % len(script)])
            self.verified[name] = self.verified.get(name, 0) + 1
            self.there[name] += gains[-1]
        self.gains[len(self.steps)] = gains
        return rows

    def yielded(self, batch: Any, step: Case) -> Any:
        """As of the base; of a decode row so many tokens as are accepted, and one."""
        if not batch.forward_mode.is_decode():
            return super().yielded(batch, step)
        torch = importlib.import_module("torch")
        gains, wide = self.gains.pop(step["step"]), self.config["speculative_num_draft_tokens"]
        tokens = []
        for request, gain in zip(batch.reqs, gains, strict=True):
            begun, segment = len(request.output_ids), self.by_id[request.rid]["out_seg"]
            tokens += [token(segment, begun + place) if place < gain else 0 for place in range(wide)]
        return srt("managers.utils").GenerationBatchResult(
            next_token_ids=torch.tensor(tokens, dtype=torch.int64),
            accept_lens=torch.tensor(gains, dtype=torch.int64),
            speculative_num_draft_tokens=wide,
        )


def written(rows: Any, table: Any, starts: Any, ends: Any, places: Any, many: int) -> None:
    """Write the places of new tokens into the table of requests, as SGLang's kernel does."""
    at = 0
    for row, start, end in zip(rows.tolist()[:many], starts.tolist(), ends.tolist(), strict=True):
        table[row, start:end] = places[at : at + end - start].to(table.dtype)
        at += end - start


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of SGLang's scheduler, and when each request ended."""
    return record_sglang.record(config, requests, Recorder)


if __name__ == "__main__":
    main(__doc__, drawn, record, ("leaving", "stopping"))
