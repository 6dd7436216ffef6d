"""Schedules of vLLM's own scheduler under drawn settings and loads, for `capacity-plan validate schedules`.

    python benchmarks/record_vllm.py OUT --first 0 --count 60      60 recordings, by their seeds
    capacity-plan validate schedules OUT                           how many steps are reproduced

Runs in an environment where vLLM 0.33 can be imported (its Python files, torch for CPUs); nothing of this project is needed. The
scheduler, the KV manager, the block pool and the requests are vLLM's; its config is a name space with what they ask for, the
model is not there: every request yields its number of tokens, drafts are accepted as scripted, and a step takes
a + b x prompt tokens + c x decode rows + d x KV tokens on a virtual clock. Retention of window blocks is vLLM's default, 0.
"""

from __future__ import annotations

import importlib
import math
import random
from collections import deque
from typing import Any

from recorded_load import Arrivals, Case, drawn_requests, head, main, prompt, step_s, stops_at, token

VERSION = "0.33.0"
STATES, STAGES, TOGETHER, LAYERED = 1_000_000, 2_000_000, 3_000_000, 4_000_000
"""Seeds from here on draw models with recurrent layers, pipelines of several stages without asynchronous scheduling, images
beside adapters and drafters that read ahead, and drafters beside which blocks are dropped."""


class Given:
    """A config: what was given, None for the rest."""

    def __init__(self, **given: Any) -> None:
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


# -- what is drawn ------------------------------------------------------------------------------------------


def drawn_config(draw: random.Random, longest: int, answer: int) -> Case:
    """Settings, and a KV cache that is tight or roomy for requests of `longest` + `answer` tokens."""
    config: Case = {
        "max_num_seqs": draw.choice([4, 8, 24, 64, 256]),
        "max_num_batched_tokens": draw.choice([64, 128, 256, 512, 1024, 2048]),
        "max_model_len": draw.choice([2048, 4096, 16384]),
        "block_size": draw.choice([16, 16, 16, 32]),
    }
    config["max_num_seqs"] = min(config["max_num_seqs"], config["max_num_batched_tokens"])
    optional: dict[str, tuple[float, list[Any]]] = {
        "enable_prefix_caching": (0.3, [False]),
        "policy": (0.3, ["priority"]),
        "watermark": (0.3, [0.05, 0.1, 0.2]),
        "long_prefill_token_threshold": (0.3, [32, 64, 200]),
        "scheduler_reserve_full_isl": (0.25, [False]),
        "async_scheduling": (0.4, [True]),
    }
    config |= {name: draw.choice(values) for name, (share, values) in optional.items() if draw.random() < share}
    if draw.random() < 0.2:
        config |= {"enable_chunked_prefill": False, "max_num_batched_tokens": 4096, "max_model_len": 4096}
        config.pop("long_prefill_token_threshold", None)
    if draw.random() < 0.3:
        drafts = draw.choice([1, 2, 3, 4])
        config |= {"num_speculative_tokens": drafts, "num_lookahead_tokens": draw.choice([0, 0, drafts])}
        config["spec_accept"] = [draw.randint(0, drafts) for _ in range(draw.randint(1, 9))]
    if draw.random() < 0.3:
        window = draw.choice([32, 64, 128, 256])
        config["kv_groups"] = [{"type": "full"}, *[{"type": "swa", "window": window}] * draw.choice([1, 1, 2, 3])]
    one = ((longest + answer) // config["block_size"] + 2) * len(config.get("kv_groups", "1"))
    config["num_gpu_blocks"] = 8 + max(one, int(one * draw.choice([1.5, 2.5, 5, 12])))
    return config


def draw_states(draw: random.Random, config: Case, longest: int, answer: int) -> None:
    """Let the model have recurrent layers, whose states are kept in passing, at ends of steps or not at all."""
    groups = draw.choice([1, 1, 2, 3])
    config |= {"enable_chunked_prefill": True, "block_size": draw.choice([16, 32, 64, 128])}
    config["kv_groups"] = [{"type": "full"}, *[{"type": "states"}] * groups]
    if draw.random() < 0.5:
        config["state_checkpoints"] = draw.choice([1, 1, 16])
    one = (longest + answer) // config["block_size"] + 2 + 3 * groups
    config["num_gpu_blocks"] = 8 + int(one * draw.choice([1.0, 1.2, 1.5, 2.5, 5]))


def draw_layered(draw: random.Random, config: Case, longest: int, answer: int) -> None:
    """Let drafts come from layers that read the token behind, beside which the last block found is dropped; some have states."""
    drafts = draw.choice([1, 2, 3, 4])
    config |= {"num_speculative_tokens": drafts, "num_lookahead_tokens": drafts, "num_prefill_lookahead_tokens": 1}
    config["spec_accept"] = [draw.randint(0, drafts) for _ in range(draw.randint(1, 9))]
    config["eagle_block_drop"] = True
    config.pop("enable_prefix_caching", None)
    if draw.random() < 0.4:
        draw_states(draw, config, longest, answer)
        config["num_gpu_blocks"] += 4 * drafts


def draw_adapters(draw: random.Random, requests: list[Case], adapters: int) -> None:
    """Let requests name LoRA adapters, mostly the first ones; those that go on keep theirs, or do not."""
    of = {}
    for request in requests:
        before = of.get(request["after"]["id"]) if "after" in request and draw.random() < 0.7 else None
        adapter = draw.choice([0, *range(1, adapters + 1), 1, 1]) if before is None else before
        of[request["id"]] = request["adapter"] = adapter


def draw_images(draw: random.Random, requests: list[Case]) -> int:
    """Let prompts that nobody goes on with hold images, each of its own, behind what they share; tokens of the longest."""
    followed, longest = {request["after"]["id"] for request in requests if "after" in request}, 0
    for request in requests:
        at, places = request["prompt_len"] - request["segments"][-1][2], []
        while request["id"] not in followed and draw.random() < 0.7:
            first = at + draw.choice([0, 0, 1, 5, 20])
            end = first + draw.choice([1, 8, 20, 64, 150, 400])
            if end > request["prompt_len"]:
                break
            places.append([first, end])
            longest, at = max(longest, end - first), end
        if places:
            request["images"] = places
    return longest


def draw_encoder(draw: random.Random, config: Case, requests: list[Case]) -> None:
    """Let prompts hold images, if any has room for one, which a tower encodes with a tight or a roomy budget and cache."""
    if not (longest := draw_images(draw, requests)):
        return
    config["encoder_tokens"] = max(longest, draw.choice([64, 200, 500, config["max_num_batched_tokens"]]))
    config["encoder_cache_tokens"] = max(longest, draw.choice([64, 200, 500, config["max_num_batched_tokens"]]))
    if draw.random() < 0.2 and longest <= config["max_num_batched_tokens"]:
        config["disable_chunked_mm_input"] = True


def drawn(seed: int) -> tuple[Case, list[Case]]:
    """The config line and the requests of a seed."""
    draw = random.Random(seed)
    longest, answer = draw.choice([200, 500, 1200]), draw.choice([20, 80, 200])
    config = drawn_config(draw, longest, answer)
    if seed >= LAYERED:
        draw_layered(draw, config, longest, answer)
    elif seed >= TOGETHER:
        if config.get("num_lookahead_tokens"):
            config["num_prefill_lookahead_tokens"] = 1
    elif seed >= STAGES:
        for name in ("num_speculative_tokens", "num_lookahead_tokens", "spec_accept", "async_scheduling"):
            config.pop(name, None)
        config["pipeline_parallel_size"] = draw.choice([2, 2, 3, 4])
    elif seed >= STATES:
        draw_states(draw, config, longest, answer)
    requests = drawn_requests(draw, longest, answer, priorities=config.get("policy") == "priority")
    if "kv_groups" not in config and draw.random() < 0.4:
        config["max_loras"] = draw.choice([1, 2, 3])
        draw_adapters(draw, requests, config["max_loras"] + 2)
    images = random.Random(f"{seed} images")
    asked = images.random() < 0.8 if LAYERED > seed >= TOGETHER else "max_loras" not in config and images.random() < 0.3
    if asked:
        draw_encoder(images, config, requests)
    return head("vllm", VERSION, seed, config), requests


# -- vLLM's scheduler ---------------------------------------------------------------------------------------


def in_flight(config: Case) -> int:
    """Batches that are scheduled ahead: one a stage of a pipeline, two with async scheduling."""
    return int(config.get("pipeline_parallel_size", 1 + config.get("async_scheduling", False)))


def built(config: Case, transfer: Any = None) -> Any:
    """vLLM's scheduler with these settings, and those of a connector."""
    interface = importlib.import_module("vllm.v1.kv_cache_interface")
    torch = importlib.import_module("torch")
    block, drafts = config["block_size"], config.get("num_speculative_tokens", 0)
    caching = config.get("enable_prefix_caching", True)
    lookahead, depth = config.get("num_lookahead_tokens", 0), in_flight(config)

    def group(number: int, given: Case) -> Any:
        shape = {"block_size": block, "num_kv_heads": 1, "head_size": 8, "dtype": torch.float16}
        if given["type"] == "full":
            spec = interface.FullAttentionSpec(**shape)
        elif given["type"] == "states":
            spec = interface.MambaSpec(
                block_size=block if caching else config["max_model_len"],
                shapes=((8,),),
                dtypes=(torch.float16,),
                mamba_cache_mode="align" if caching else "none",
                num_speculative_blocks=drafts,
                num_prefill_checkpoint_blocks=int("state_checkpoints" in config),
                prefill_checkpoint_alignment=config.get("state_checkpoints"),
            )
        else:
            spec = interface.SlidingWindowSpec(sliding_window=given["window"], **shape)
        drafts_too = config.get("eagle_block_drop", False) and given["type"] == "full"
        return interface.KVCacheGroupSpec([f"layer{number}"], spec, is_eagle_group=drafts_too)

    defaults = {"policy": "fcfs", "watermark": 0.0, "long_prefill_token_threshold": 0, "enable_chunked_prefill": True}
    defaults |= {"scheduler_reserve_full_isl": True, "prefill_schedule_interval": 1, "async_scheduling": False}
    drafter = Given(
        num_speculative_tokens=drafts,
        max_num_new_slots_for_drafting=0,
        use_eagle=lambda: lookahead > 0,
        use_eagle_block_drop=lambda: config.get("eagle_block_drop", False),
        needs_eagle_block_drop=lambda: config.get("eagle_block_drop", False),
    )
    whole = Given(
        scheduler_config=Given(**{**defaults, **config}),
        cache_config=Given(
            **{"enable_prefix_caching": True, **config},
            mamba_cache_mode="align" if caching else "none",
            prefix_cache_retention_interval=0,
        ),
        model_config=Given(max_model_len=config["max_model_len"], runner_type="generate", get_total_num_kv_heads=lambda: 1),
        parallel_config=Given(
            pipeline_parallel_size=config.get("pipeline_parallel_size", 1),
            tensor_parallel_size=1,
            data_parallel_size=1,
            data_parallel_index=0,
            world_size=1,
            rank=0,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
        ),
        observability_config=Given(),
        ec_manager_config=Given(get_encoder_cache_manager_obj=lambda: None),
        aux_output_config=Given(enabled=False),
        kv_transfer_config=transfer,
        lora_config=Given(max_loras=config["max_loras"]) if "max_loras" in config else None,
        speculative_config=drafter if drafts else None,
        num_speculative_tokens=drafts,
        num_lookahead_tokens=lookahead,
        num_prefill_lookahead_tokens=config.get("num_prefill_lookahead_tokens", 0),
        num_hash_lookahead_tokens=0,
        max_concurrent_batches=depth,
        max_in_flight_tokens=depth * config["max_num_batched_tokens"],
    )
    groups = enumerate(config.get("kv_groups") or [{"type": "full"}])
    layout = interface.KVCacheConfig(
        num_blocks=config["num_gpu_blocks"],
        kv_cache_tensors=[],
        kv_cache_groups=[group(number, given) for number, given in groups],
        prefix_cache_retention_interval=0,
    )
    grammar = Given(
        should_advance=lambda *_: False,
        should_fill_bitmask=lambda *_: False,
        accept_tokens=lambda *_: True,
        validate_tokens=lambda _, tokens: tokens,
    )
    kind = "async_scheduler.AsyncScheduler" if config.get("async_scheduling") else "scheduler.Scheduler"
    module, name = kind.split(".")
    scheduler = getattr(importlib.import_module(f"vllm.v1.core.sched.{module}"), name)
    together = math.lcm(*(group.kv_cache_spec.block_size for group in layout.kv_cache_groups))
    given = {"kv_cache_config": layout, "structured_output_manager": grammar, "block_size": together, "log_stats": True}
    made = scheduler(vllm_config=whole, **given)
    if "encoder_tokens" in config:
        made.max_num_encoder_input_tokens = config["encoder_tokens"]
        manager = importlib.import_module("vllm.v1.core.encoder_cache_manager").EncoderCacheManager
        made.encoder_cache_manager = manager(config["encoder_cache_tokens"])
    return made


def images_of(given: Case) -> list[Any]:
    """The images of a request as vLLM has them, each of its own."""
    inputs = importlib.import_module("vllm.multimodal.inputs")
    return [
        inputs.MultiModalFeatureSpec(
            data=None,
            modality="image",
            identifier=f"{given['id']}-{number}",
            mm_position=inputs.PlaceholderRange(offset=first, length=end - first),
        )
        for number, (first, end) in enumerate(given.get("images", ()))
    ]


class Recorder:
    """One run: requests in, steps out."""

    def __init__(self, config: Case, requests: list[Case], transfer: Any = None) -> None:
        self.config = config["config"]
        self.drafts = self.config.get("num_speculative_tokens", 0)
        self.accepted = self.config.get("spec_accept", [0])
        self.scheduler = built(self.config, transfer)
        self.by_id = {request["id"]: request for request in requests}
        self.arrivals = Arrivals(requests)
        self.emitted = dict.fromkeys(self.by_id, 0)
        self.verified = dict.fromkeys(self.by_id, 0)
        self.found: dict[str, int] = {}
        self.preempted: list[str] = []
        self.steps: list[Case] = []
        manager = self.scheduler.kv_cache_manager
        look_up = manager.get_computed_blocks

        def noting(request: Any, *rest: Any, **more: Any) -> Any:
            result = look_up(request, *rest, **more)
            self.found[request.request_id] = result[1]
            return result

        preempt = self.scheduler._preempt_request

        def noting_preempted(request: Any, *rest: Any, **more: Any) -> Any:
            self.preempted.append(request.request_id)
            return preempt(request, *rest, **more)

        manager.get_computed_blocks = noting
        self.scheduler._preempt_request = noting_preempted
        if self.config.get("enable_prefix_caching", True):
            hashing, utils = importlib.import_module("vllm.utils.hashing"), importlib.import_module("vllm.v1.core.kv_cache_utils")
            utils.init_none_hash(hashing.sha256)
            self.hasher = utils.get_request_block_hasher(self.config["block_size"], hashing.sha256)
        else:
            self.hasher = None

    def free_blocks(self) -> int:
        """Blocks of the pool that nobody holds."""
        free: int = self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()
        return free

    def enqueue(self, now_s: float) -> None:
        """Hand over what has arrived."""
        sampling = importlib.import_module("vllm.sampling_params").SamplingParams
        request_kind = importlib.import_module("vllm.v1.request").Request
        adapted = importlib.import_module("vllm.lora.request").LoRARequest
        for at_s, given in self.arrivals.take(now_s):
            adapter = given.get("adapter", 0)
            most = given.get("max_tokens", given["output_len"])
            chosen = sampling(max_tokens=most, ignore_eos=True, temperature=0.0, stop_token_ids=stops_at(given))
            self.scheduler.add_request(
                request_kind(
                    request_id=given["id"],
                    prompt_token_ids=prompt(given),
                    sampling_params=chosen,
                    pooling_params=None,
                    arrival_time=at_s,
                    priority=given["priority"],
                    mm_features=images_of(given),
                    lora_request=adapted(f"adapter{adapter}", adapter, "nowhere") if adapter else None,
                    block_hasher=self.hasher,
                )
            )

    def form(self, now_s: float) -> tuple[Any, Case, set[str]]:
        """Let a step be formed: vLLM's output, the step as it is recorded, and who yields a token with it."""
        self.enqueue(now_s)
        self.let_go(now_s)
        self.found.clear()
        self.preempted.clear()
        scheduler = self.scheduler
        output = scheduler.schedule()
        rows, yielding = [], set()
        prompts = decodes = kv = 0
        for name, new in output.num_scheduled_tokens.items():
            request = scheduler.requests[name]
            before, drafts = request.num_computed_tokens - new, len(output.scheduled_spec_decode_tokens.get(name, ()))
            rows.append([name, new, before] + [drafts] * bool(self.drafts))
            if before + new >= request.num_tokens:
                yielding.add(name)
            decoding = new - drafts == 1 and before >= self.by_id[name]["prompt_len"]
            decodes += decoding
            prompts += 0 if decoding else new
            kv += before + new
        step = {
            "type": "step",
            "step": len(self.steps),
            "t_sched": now_s,
            "sched": rows,
            "hits": {name: hit for name, hit in self.found.items() if hit and name in output.num_scheduled_tokens},
            "preempted": list(self.preempted),
            "running": [request.request_id for request in scheduler.running],
            "waiting": [request.request_id for request in scheduler.waiting],
            "free_blocks": self.free_blocks(),
            "prefill_tokens": prompts,
            "decode_seqs": decodes,
            "kv_tokens": kv,
        }
        if "encoder_tokens" in self.config:
            step["encoded"] = [
                end - first
                for name, numbers in output.scheduled_encoder_inputs.items()
                for first, end in [self.by_id[name]["images"][number] for number in numbers]
            ]
        return output, step, yielding

    def settle(self, output: Any, step: Case, yielding: set[str]) -> None:
        """Take in the results of a step at its end."""
        outputs = importlib.import_module("vllm.v1.outputs")
        names = list(output.num_scheduled_tokens)
        sampled = []
        for name in names:
            many = 0
            if name in yielding:
                many = 1
                if drafts := len(output.scheduled_spec_decode_tokens.get(name, ())):
                    many += min(self.accepted[self.verified[name] % len(self.accepted)], drafts)
                    self.verified[name] += 1
            begun, segment = self.emitted[name], self.by_id[name]["out_seg"]
            sampled.append([token(segment, begun + place) for place in range(many)])
        scheduler = self.scheduler
        self.let_go(step["t_end"])
        inside = set(scheduler.requests)
        result = outputs.ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: at for at, name in enumerate(names)},
            sampled_token_ids=sampled,
            kv_connector_output=self.copied(step),
        )
        emitted = {}
        for core in scheduler.update_from_output(output, result).values():
            for each in core.outputs:
                emitted[each.request_id] = len(each.new_token_ids)
                self.emitted[each.request_id] += len(each.new_token_ids)
        if self.drafts:
            step["emitted"] = emitted
            if not self.config.get("async_scheduling"):
                drafted = [name for name, tokens in zip(names, sampled, strict=True) if tokens and name in scheduler.requests]
                scheduler.update_draft_token_ids(outputs.DraftTokenIds(drafted, [[1] * self.drafts for _ in drafted]))
        step["finished"] = [name for name in names if name in inside and name not in scheduler.requests]
        step["free_blocks_after_update"] = self.free_blocks()
        self.arrivals.ended(step["finished"], step["t_end"])

    def has_work(self) -> bool:
        """Whether the loop turns though nothing runs."""
        scheduler = self.scheduler
        return bool(scheduler.has_unfinished_requests() or (scheduler.connector and scheduler.has_finished_requests()))

    def copied(self, _step: Case) -> Any:
        """What a connector's worker says at the end of a step: there is none."""
        return None

    def turn(self, _output: Any, _step: Case, now_s: float) -> float:
        """A turn of the loop in which nothing runs, and when it ends: never, without a connector."""
        raise RuntimeError("requests are left, and none can be served")

    def let_go(self, now_s: float) -> None:
        """Abort the requests whose clients have left, before results are taken in."""
        aborted = importlib.import_module("vllm.v1.request").RequestStatus.FINISHED_ABORTED
        for at_s, name in self.arrivals.left(now_s):
            if self.scheduler.finish_requests(name, aborted):
                self.arrivals.ended([name], at_s)

    def run(self) -> None:
        """Serve all requests; one batch ahead with async scheduling."""
        depth = in_flight(self.config)
        flight: deque[tuple[Any, Case, set[str]]] = deque()
        now_s = free_s = 0.0
        while self.arrivals.next_s < float("inf") or flight or self.scheduler.has_unfinished_requests():
            nothing = None
            while len(flight) < depth:
                output, step, yielding = self.form(now_s)
                if not output.total_num_scheduled_tokens:
                    nothing = output, step
                    break
                step["t_start"] = max(now_s, free_s)
                step["t_end"] = free_s = step["t_start"] + step_s(step)
                self.steps.append(step)
                flight.append((output, step, yielding))
            if flight:
                output, step, yielding = flight.popleft()
                now_s = max(now_s, step["t_end"])
                self.settle(output, step, yielding)
            elif self.has_work():
                now_s = self.turn(*nothing, now_s)
            elif self.arrivals.next_s < float("inf"):
                now_s = max(now_s, self.arrivals.next_s)


def record(config: Case, requests: list[Case]) -> list[Case]:
    """The steps of vLLM's scheduler."""
    recorder = Recorder(config, requests)
    recorder.run()
    return recorder.steps


if __name__ == "__main__":
    main(__doc__, drawn, record, ("leaving", "stopping"))
