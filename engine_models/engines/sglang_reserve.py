"""What SGLang leaves free by default, and what is free of a device before it loads a model: both decide the KV cache.

Rules read 2026-11 in `server_args.py` (from 0.5.19 on `arg_groups/memory_hook.py`) of each release from 0.5.1 to 0.5.23.
"""

from __future__ import annotations

from engine_models.declaration import PoolRequest, Role
from hardware_profiles.device import load_device

GIB = 1 << 30
MIB = 1 << 20

_ANY = float("inf")
_LARGER = ((60, 4096, 32, 160), (160, 8192, 256, 512), (_ANY, 16384, 512, 512))
_BY_MEMORY = (
    ((0, 5, 20), ((20, 2048, 8, 8), (35, 4096, 48, 160), *_LARGER)),
    ((0, 5, 5), ((20, 2048, 8, 8), (35, 2048, 24, 80), *_LARGER)),
    ((0, 5, 3), ((20, 2048, 8, 8), (35, 2048, 16, 80), *_LARGER)),
    ((), ((35, 2048, 8, 80), (90, 8192, 160, 160), (160, 8192, 256, 256), (_ANY, 16384, 512, 512))),
)
"""Defaults by device memory, since each version: (below GiB, chunked_prefill_size, rows of the largest decode graph with fewer
than four ranks, with more)."""

# Memory kept out of weights and KV cache, MiB
_BASE = 512
_PER_CHUNK_TOKEN = 1.5
_LEAST_CHUNK = 2048
_PER_EIGHT_RANKS = 1024
_PER_GRAPH_ROW = 2
_PER_GRAPH_ROW_AND_RANK, _MORE_OF_MANY_ROWS = 3, 1.5  # with data-parallel attention; above `_MANY_ROWS`
_MANY_ROWS = 300
_PER_PREFILL_GRAPH = 8
_LATENT_PREFILL_GRAPHS = 1536
_LEAST_ON_LARGE = 10 * 1024  # on devices of more than 60 GiB
_DRAFTED_BEFORE, _DRAFTED, _DRAFTED_BY_A_MODEL = 2 * 1024, 4 * 1024, 6 * 1024
_DEEPEP, _DEEPEP_PREFILL = 2 * 1024, 1024  # beside decode graphs, and among those of prompts

BY_TERMS_SINCE = (0, 5, 3)
"""Before, the reserve goes by the device's memory and the number of ranks alone."""
_OLD_RESERVES = ((35, 2.8, 0.1), (90, 9.5, 0.5), (160, 12.0, 0.5), (float("inf"), 32.0, 0.0))
"""Until 0.5.2: (below GiB, GiB, GiB more a rank)."""
_OLD_DRAFTED, _OLD_RANKS_APART = 2.0, 4.0
_OLD_DRAFTED_BY_A_MODEL = 6.0  # 0.5.2
DRAFTERS_COUNTED_SINCE = (0, 5, 14)
"""Since then a drafter is loaded before the KV cache is sized, which its weights make smaller, and no reserve is kept for it
(datasheet: 0.5.13 keeps one, 0.5.14 none)."""
LATENT_GRAPHS_SINCE, MORE_DRAFTED_SINCE = (0, 5, 10), (0, 5, 10)
"""Since then prefill graphs of latent attention count 1.5 GiB, whatever their number, and a head that drafts 4 GiB."""
ROLES_SINCE, DECODERS_BLIND_SINCE = (0, 5, 15), (0, 5, 17)
"""Since then a prefill server keeps nothing for decode graphs, and a decode server nothing for prompts and their graphs; and no
part of the share for a tower. Since the first too what is sent through DeepEP has 2 GiB of its own."""
DEEPEP_CAPTURED_SINCE = (0, 5, 17)
"""Since then 1 GiB more where graphs hold prompts whose experts' tokens are sent through DeepEP (`reserve_for_graph_mb`)."""
ROWS_CAP_GRAPHS_SINCE = (0, 5, 22)
"""Since then no decode graph is larger than `max_running_requests`."""
NEWEST = (0, 5, 23)

OWN_BYTES, OWN_BYTES_BEFORE, OWN_GREW = 0.7 * GIB, 0.5 * GIB, (0, 5, 8)
"""Taken of a device before weights are loaded, by one process, since that version and before. kind: measured by others: 0.69 to
0.75 GiB on H100 (four starts of 2026), 0.4 to 0.6 before (H100, H200, 2025)."""
RANKS_BYTES = {"hopper": 1.6 * GIB, "blackwell": 2.4 * GIB}
"""More where ranks share a model over NVLink whose switches multicast. kind: measured by others: 1.2 to 2.0 GiB on four H100
(0.4.9: vllm-project/vllm#21348, by its tokens) and eight H200 (sgl-project/sglang#11716 of 2025-10, where distributed set-up
ends; another start of 0.5.3), 2.3 and 2.5 on four and eight B200 (2025; which start-up lines is not on record)."""
RANKS_BYTES_ON_AMD, RANKS_BYTES_ELSE = 3.7 * GIB, 0.3 * GIB
"""The same on AMD, and with other links or none. kind: measured by others: 3.4 to 3.8 on eight MI355X (2026-02); 0.13, 0.26 and
0.39 on PCIe (2025-03, 2026-01, 2026-09); of A100 assumed."""


def memory_defaults(memory_bytes: int, tensor_parallel: int, version: tuple[int, ...] = NEWEST) -> tuple[int, int]:
    """Default (chunked_prefill_size, largest batch with a decode graph) by device memory."""
    rows = next(rows for since, rows in _BY_MEMORY if version >= since)
    chunk, small, large = next(defaults for below, *defaults in rows if memory_bytes < below * GIB)
    return chunk, large if tensor_parallel >= 4 else small


def prefill_graphs(tokens: int) -> int:
    """How many prefills are captured up to `tokens`: in steps of 4, 16, 32, 64, 256, then 512 tokens."""
    steps = ((4, 32, 4), (48, 256, 16), (288, 512, 32), (576, 1024, 64), (1280, 4096, 256), (4608, tokens, 512))
    return sum(1 for first, last, step in steps for size in range(first, last + 1, step) if size <= tokens)


def reserved_bytes(
    memory_bytes: int,
    tokens: int,
    ranks: int,
    graph_rows: int,
    data_parallel: int = 1,
    *,
    version: tuple[int, ...] = NEWEST,
    prefill_graph_tokens: int = 0,
    latent: bool = False,
    drafts: str | None = None,
    role: Role = "mixed",
    deepep: bool = False,
) -> int:
    """Memory that the default `mem_fraction_static` leaves for activations, communication and graphs [bytes].

    tokens : of prompts that a step may have, or of rows that decode, where that is all that a server does. prefill_graph_tokens
    : largest prefill that is captured, 0 if none is; latent : whether attention is latent. drafts : how drafts are made, None
    if they are not. deepep : whether experts' tokens are sent through DeepEP. """
    role = role if version >= ROLES_SINCE else "mixed"
    if version < BY_TERMS_SINCE:
        gib = next(base + more * ranks for below, base, more in _OLD_RESERVES if memory_bytes < below * GIB)
        gib += (_OLD_DRAFTED_BY_A_MODEL if drafts == "draft_model" else _OLD_DRAFTED) if drafts else 0
        return int((gib + (_OLD_RANKS_APART if data_parallel > 1 else 0)) * GIB)
    mib = _BASE + _PER_CHUNK_TOKEN * max(tokens, _LEAST_CHUNK) + ranks / 8 * _PER_EIGHT_RANKS
    if role != "prefill":
        mib += _PER_GRAPH_ROW * graph_rows
        if data_parallel > 1:
            each = _PER_GRAPH_ROW_AND_RANK + (_MORE_OF_MANY_ROWS if graph_rows > _MANY_ROWS else 0)
            mib += each * graph_rows * data_parallel
    if prefill_graph_tokens and role != "decode":
        whole = latent and version >= LATENT_GRAPHS_SINCE
        mib += _LATENT_PREFILL_GRAPHS if whole else _PER_PREFILL_GRAPH * prefill_graphs(prefill_graph_tokens)
        mib += _DEEPEP_PREFILL if deepep and version >= DEEPEP_CAPTURED_SINCE else 0
    if memory_bytes > 60 * GIB:
        mib = max(mib, _LEAST_ON_LARGE)
    if version < DRAFTERS_COUNTED_SINCE and drafts not in (None, "ngram"):
        by_head = _DRAFTED if version >= MORE_DRAFTED_SINCE else _DRAFTED_BEFORE
        mib += _DRAFTED_BY_A_MODEL if drafts == "draft_model" else by_head
    if version >= ROLES_SINCE and deepep and graph_rows and role != "prefill":
        mib += _DEEPEP
    return int(mib * MIB)


_TEXT_ALONE = ("gemma3", "llama4")
"""Models that see and are served as if they did not, unless asked to (``--enable-multimodal``; ``mm_disabled_models`` of
SGLang's `configs/model_config.py`)."""
_TOWER_SHARE, _LEAST_FACTOR, _MOST_FACTOR = 0.95, 0.8, 1.05
_USUAL_TOWER = 24, 1024


def sees(request: PoolRequest) -> bool:
    """Whether SGLang takes the model for one that sees or hears."""
    if request.arch.family in _TEXT_ALONE and not request.flags.get("enable_multimodal"):
        return False
    return any(extra.part in ("vision", "audio") for extra in request.arch.extras)


def tower_factor(request: PoolRequest, version: tuple[int, ...]) -> float:
    """Factor of the default share where a vision tower is loaded: 0.95, less for one of more layers and width than the
    usual."""
    flags, shape = request.flags, request.arch.vision_shape
    if request.role == "decode" and version >= DECODERS_BLIND_SINCE:
        return 1.0
    if shape is None or not sees(request) or flags.get("language_only") or flags.get("language_model_only"):
        return 1.0
    layers, width = (found or usual for found, usual in zip(shape, _USUAL_TOWER, strict=True))
    ratio = layers * width**2 / (_USUAL_TOWER[0] * _USUAL_TOWER[1] ** 2)
    return _TOWER_SHARE * max(_LEAST_FACTOR, min(_MOST_FACTOR, 1 - 0.1 * (ratio - 1)))


def free_bytes(request: PoolRequest, version: tuple[int, ...]) -> int:
    """What is free of a device before weights are loaded [bytes], of which `mem_fraction_static` is a share."""
    taken = OWN_BYTES if version >= OWN_GREW else OWN_BYTES_BEFORE
    if request.tensor_parallel * request.data_parallel > 1:
        device = load_device(request.device_name)
        by_host = device.link is None or device.link.topology == "pcie"
        linked = RANKS_BYTES.get(device.architecture or "", RANKS_BYTES_ELSE)
        taken += RANKS_BYTES_ELSE if by_host else RANKS_BYTES_ON_AMD if device.vendor == "amd" else linked
    return request.device_memory_bytes - int(taken)
