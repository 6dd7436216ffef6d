"""Schedules of vLLM's own scheduler over host memory, under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_vllm_offload.py OUT --first 0 --count 60    60 recordings, by their seeds
    capacity-plan validate schedules OUT                                 how many steps are reproduced

As `record_vllm.py`, with the scheduler's side of vLLM's `OffloadingConnector` and its manager of host memory. Its worker is not
there: loads end one after another, `load_block_s` a block, and are noticed at the end of a step; what a step has computed is
copied to the host during the next. Where nothing can run the loop turns until something has been copied.
"""

from __future__ import annotations

import importlib
import random
from typing import Any

import record_vllm
from record_vllm import VERSION, Given, draw_encoder, drawn_config
from recorded_load import Case, drawn_requests, head, main

WINDOWED, IMAGES = 1_000_000, 2_000_000
"""Seeds from here on have a sliding window beside full attention, and roomy host memory; or images in prompts."""
BLOCK_BYTES = 4096
"""Of host memory: chunks are aligned to it; a block of the one layer is smaller."""


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed."""
    draw = random.Random(seed)
    longest, answer = draw.choice([200, 500, 1200]), draw.choice([20, 80, 200])
    config = drawn_config(draw, longest, answer)
    for name in ("num_speculative_tokens", "num_lookahead_tokens", "spec_accept", "kv_groups"):
        config.pop(name, None)
    config["enable_prefix_caching"] = True
    one, there, beyond = (longest + answer) // config["block_size"] + 2, [1.0, 1.5, 2.5, 5], [1, 3, 10, 40]
    if IMAGES > seed >= WINDOWED:
        config["kv_groups"] = [{"type": "full"}, {"type": "swa", "window": draw.choice([20, 40, 100])}]
        one, there, beyond = 2 * one, [1.5, 2.5, 5, 10], [40, 100]
    config["num_gpu_blocks"] = 8 + int(one * draw.choice(there))
    config["host_blocks"] = int(one * draw.choice(beyond))
    config["load_block_s"] = draw.choice([1e-5, 1e-4, 1e-3, 5e-3])
    config["offload_prompt_only"] = True
    requests = drawn_requests(draw, longest, answer, priorities=config.get("policy") == "priority")
    if seed >= IMAGES:
        draw_encoder(draw, config, requests)
    return head("vllm", VERSION, seed, config), requests


class Ordered(dict[str, None]):
    """A set in the order of insertion: vLLM's of ended requests is in no order that can be repeated."""

    def add(self, item: str) -> None:
        """As of a set."""
        self[item] = None


class Recorder(record_vllm.Recorder):
    """One run: requests in, steps out, blocks back and forth."""

    def __init__(self, config: Case, requests: list[Case]) -> None:
        knobs = config["config"]
        module = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.v1.offloading_connector")
        factory = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.factory").KVConnectorFactory
        factory.create_connector = staticmethod(
            lambda config, role, kv_cache_config: module.OffloadingConnector(config, role, kv_cache_config)
        )
        transfer = Given(
            engine_id="engine",
            kv_connector="OffloadingConnector",
            kv_role="kv_both",
            is_kv_producer=True,
            is_kv_consumer=True,
            kv_load_failure_policy="fail",
            kv_connector_extra_config={
                "cpu_bytes_to_use": knobs["host_blocks"] * BLOCK_BYTES,
                "offload_prompt_only": knobs["offload_prompt_only"],
            },
        )
        super().__init__(config, requests, transfer)
        self.loads: list[tuple[float, int, str]] = []  # by their end
        self.link_free_s = 0.0
        self.stores: list[int] = []  # for the next step
        self.storing: dict[int, list[int]] = {}  # by step

    def form(self, now_s: float) -> tuple[Any, Case, set[str]]:
        """As of the base; copies begin with the step."""
        output, step, yielding = super().form(now_s)
        self.scheduler.finished_req_ids = Ordered()
        admitted = {each.req_id for each in output.scheduled_new_reqs} | output.scheduled_cached_reqs.resumed_req_ids
        step["hits"] = {name: before for name, _, before, *_ in step["sched"] if before and name in admitted}
        meta = output.kv_connector_metadata
        for number, job in meta.load_jobs.items():
            self.link_free_s = max(self.link_free_s, now_s) + len(job.dst_spec.block_ids) * self.config["load_block_s"]
            self.loads.append((self.link_free_s, number, job.req_id))
        stores, self.stores = self.stores, list(meta.store_jobs)
        if output.total_num_scheduled_tokens:
            self.storing[step["step"]] = stores
        else:
            self.stores = stores + self.stores
        return output, step, yielding

    def copied(self, step: Case) -> Any:
        """What the worker says at the end of a step."""
        outputs = importlib.import_module("vllm.v1.outputs")
        common = importlib.import_module("vllm.distributed.kv_transfer.kv_connector.v1.offloading.common")
        done = [entry for entry in self.loads if entry[0] <= step["t_end"]]
        self.loads = [entry for entry in self.loads if entry[0] > step["t_end"]]
        meta = common.OffloadingWorkerMetadata()
        for number in [*self.storing.pop(step["step"], ()), *(number for _, number, _ in done)]:
            meta.mark_completed(number)
        return outputs.KVConnectorOutput(
            finished_recving={name for *_, name in done} or None, kv_connector_worker_meta=meta if meta.completed_jobs else None
        )

    def turn(self, output: Any, step: Case, now_s: float) -> float:
        """A turn of the loop in which nothing runs: until something is copied."""
        ends = [end_s for end_s, *_ in self.loads]
        now_s = max(now_s, min([*ends, self.arrivals.next_s])) if ends and not self.stores else now_s
        self.storing[step["step"]], self.stores = self.stores, []
        step["t_end"] = now_s
        self.settle(output, step, set())
        return now_s


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of vLLM's scheduler."""
    recorder = Recorder(config, requests)
    recorder.run()
    return recorder.steps


if __name__ == "__main__":
    main(__doc__, drawn, record, ("leaving", "stopping"))
