"""How vLLM's versions differ, as far as it changes a prediction.

The newest declared version is written in full (`Version`); every older one is a small difference from the next newer one
(`VERSIONS`).
"""

from __future__ import annotations

from dataclasses import field, fields, replace
from typing import TYPE_CHECKING, Any

from engine_models.cost.sampling import Sampler
from engine_models.cost.terms import Fp32Router
from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    from engine_models.declaration import PoolRequest


@dataclass(frozen=True)
class Version:
    """The switches in which vLLM versions differ, as far as they change a prediction.

    `number` is the version as it was asked for, which `name` stands for. Sources: vLLM's own code at each version, files named in
    docs/engines/vllm.md.
    """

    name: str
    number: tuple[int, ...] = field(default=(), compare=False)
    first_engine: bool = False  # V0
    async_scheduling: bool = True
    reserve_full_prompt: bool = True
    has_watermark: bool = True
    unhashed_to_head: bool = True
    lone_request_ignores_threshold: bool = True
    self_preemption_continues: bool = True
    preempted_tokens_return: bool = True
    unfit_prompt_is_skipped: bool = False
    wasted_row_after_limit: bool = False
    first_admission_lookahead: bool = True
    gpu_memory_utilization: float = 0.92
    cpu_kv_gib: int = 0  # of the KV cache on CPUs; 0: `CPU_KV_SHARE` of a socket's memory
    graph_step_above_256: int = 16
    pads_lone_token: bool = True
    fences_loads: bool = True
    unreadable_is_skipped: bool = True  # a waiting prompt whose image finds no room (0.29.0 waits for it, 0.33.0 does not)
    adapters_of_all_running: bool = True  # count against `max_loras`, not only those of the rows that a step serves
    capped_window_admission: bool = True
    windows_free_processed: bool = True
    sparse_windows: bool = True
    ray_is_asynchronous: bool = True
    masks_overlap: bool = True  # of structured output, filled while the model runs (pull request 26866)
    offloads_outputs: bool = False  # blocks of generated tokens go to the host too
    offload_ranks_requests: bool = True  # of host memory alone: what goes first
    offloads_further: bool = True  # disks and stores behind host memory
    sampler: Sampler = "rejection"
    flashinfer_is_extra: bool = False  # images have it, wheels do not (`setup.py`)
    fp32_router: Fp32Router = "bf16x3"  # of models with a router in float32 (pull requests 38445, 47973)
    chunked_decodes: tuple[str, ...] = ("Kimi delta attention",)  # of gated delta nets until pull request 44700
    fills_selection: bool = False  # of sparse latent attention: FlashMLA is not told how many entries there are
    parses_templates: bool = False  # the chat template is parsed anew for each request (until pull request 26227)


VERSIONS: dict[str, dict[str, Any]] = {
    "0.33.0": {switch.name: switch.default for switch in fields(Version) if switch.compare and switch.name != "name"},
    "0.24.0": {
        "lone_request_ignores_threshold": False,
        "self_preemption_continues": False,
        "offload_ranks_requests": False,
        "pads_lone_token": False,
        "unreadable_is_skipped": False,
        "adapters_of_all_running": False,
        "fences_loads": False,
        "windows_free_processed": False,
        "sparse_windows": False,
        "fp32_router": "small",
    },
    "0.23.0": {
        "has_watermark": False,
        "unhashed_to_head": False,
        "first_admission_lookahead": False,
        "capped_window_admission": False,
        "offloads_outputs": True,
        "offloads_further": False,
        "ray_is_asynchronous": False,
        "sampler": "pivot",
        "fp32_router": "cublas",
    },
    "0.20.0": {"fills_selection": True, "chunked_decodes": ("gated delta net", "Kimi delta attention")},
    "0.19.1": {"gpu_memory_utilization": 0.90},
    "0.17.0": {"reserve_full_prompt": False},
    "0.16.0": {"sampler": "sort"},
    "0.15.1": {},
    "0.14.1": {},
    "0.11.1": {
        "async_scheduling": False,
        "masks_overlap": False,
        "preempted_tokens_return": False,
        "unfit_prompt_is_skipped": True,
        "wasted_row_after_limit": True,
        "graph_step_above_256": 8,
        "cpu_kv_gib": 4,
    },
    # FlashInfer is not used by itself since pull request 26859
    "0.11.0": {"sampler": "rejection", "flashinfer_is_extra": True, "parses_templates": True},
    "0.8.0": {},
    "0.6.0": {"first_engine": True, "reserve_full_prompt": True, "sampler": "sort", "flashinfer_is_extra": False},
}
"""The newest version in full (the defaults of `Version`); of each older one what differs from the next newer. Those
from 0.8 to 0.10 are taken for 0.11 (assumed: the same engine; its source was not read there)."""
OLDEST_MEASURED = "0.11.0"
"""Of older versions no run and no recording is there."""
SEARCHES_SINCE = (0, 17)
"""Without FlashInfer a truncated sampler searches for a threshold (pull request 33538), before it sorted: the profiling run of
Qwen3-14B held 5.64 GiB under 0.15.0 and 0.16.0, 2.23 under 0.17.0 (llm-d-planner, pull request 205)."""


FIRST_ENGINE, SECOND_ENGINE = "0.6.0", "0.8.0"
"""Names of the versions with the first engine (V0), and of the oldest one that starts the second (V1) by itself."""
SECOND_SINCE, FIRST_UNTIL = (0, 7), (0, 11)
"""First version that has the second engine (V1's alpha), and the one without the first (release notes of 0.11.0)."""


def with_engine(name: str, number: tuple[int, ...], use_v1: bool | None) -> str:
    """The declared version whose rules `number` follows where ``VLLM_USE_V1`` says which engine starts (None: its own choice).

    Raises InputError where a version lacks the engine that is asked for.
    """
    if use_v1 is None:
        return name
    if number < SECOND_SINCE if use_v1 else number >= FIRST_UNTIL:
        asked = ".".join(map(str, number))
        raise InputError(
            f"vLLM {asked} has no {'second' if use_v1 else 'first'} engine (VLLM_USE_V1={int(use_v1)})",
            where="deployment.engine_args.use_v1",
            mend="leave it out, or name a version from 0.7 to 0.10, which have both",
        )
    if not use_v1:
        return FIRST_ENGINE
    return SECOND_ENGINE if name == FIRST_ENGINE else name


def as_sampled(version: Version, *, flashinfer: bool) -> Version:
    """The version with FlashInfer's sampler, or with that of its own (``VLLM_USE_FLASHINFER_SAMPLER``)."""
    own: Sampler = "pivot" if tuple(map(int, version.name.split("."))) >= SEARCHES_SINCE else "sort"
    return replace(version, sampler="rejection" if flashinfer else own)


def sampling_on(version: Version, request: PoolRequest) -> Version:
    """The version with the sampler that a flag asks for; FlashInfer's runs on CUDA alone (`topk_topp_sampler.py`)."""
    asked = request.flags.get("use_flashinfer_sampler")
    if asked is not None:
        return as_sampled(version, flashinfer=asked)
    if request.device_kind != "cpu" and request.device_vendor != "nvidia":
        return replace(as_sampled(version, flashinfer=False), flashinfer_is_extra=False)
    return version


def graph_sizes(
    version: Version, max_num_seqs: int, max_num_batched_tokens: int, row_tokens: int = 1, largest: int | None = None
) -> tuple[int, ...]:
    """CUDA-graph sizes in tokens: 1, 2, 4, then steps of 8 below 256 and of 16 (8 in 0.11) above.

    Up to 512, or `largest` (``--max-cudagraph-capture-size``; 0: none). With drafts a decoding row has `row_tokens` tokens, and
    the sizes rounded up to whole rows are captured too.
    """
    top = min(2 * max_num_seqs * row_tokens, 512) if largest is None else largest
    top = min(top, max_num_batched_tokens)
    sizes = {1, 2, 4, *range(8, 256, 8), *range(256, max(top, 512) + 1, version.graph_step_above_256), max_num_seqs}
    sizes |= {-(-size // row_tokens) * row_tokens for size in sizes}
    return tuple(sorted(s for s in sizes if s <= top))


def scheduling_switches(version: Version) -> dict[str, bool]:
    """The switches of a version that are rules of the scheduler, by the rules' names."""
    return {
        "lone_request_ignores_threshold": version.lone_request_ignores_threshold,
        "self_preemption_continues": version.self_preemption_continues,
        "preempted_tokens_return": version.preempted_tokens_return,
        "unfit_prompt_is_skipped": version.unfit_prompt_is_skipped,
        "wasted_row_after_limit": version.wasted_row_after_limit,
        "first_admission_lookahead": version.first_admission_lookahead,
        "pads_lone_token": version.pads_lone_token,
        "fences_loads": version.fences_loads,
        "unreadable_is_skipped": version.unreadable_is_skipped,
        "adapters_of_all_running": version.adapters_of_all_running,
    }


def window_switches(version: Version) -> dict[str, bool]:
    """The switches of a version that concern sliding-window groups of the KV cache, by `HybridKV`'s names."""
    return {
        "capped_admission": version.capped_window_admission,
        "frees_processed": version.windows_free_processed,
        "sparse_windows": version.sparse_windows,
    }
