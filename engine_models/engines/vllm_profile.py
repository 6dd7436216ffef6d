"""What vLLM's profiling run holds beside the weights: the peak of what PyTorch allocates, and what else takes memory.

Constants are measured by others, read of start-up lines that tell weights, PyTorch's peak and the rest apart: 61 starts of vLLM
0.19.0 on H100 and four of Qwen3-14B under 0.15 to 0.18 (llm-d-planner, pull request 205, 2026-04), eight of 0.12 to 0.14 on
H100 (llm-d-benchmark, `empirical-vllm-memory-results.md`, 2026-02). Peaks of dense models on one GPU follow within 0.03 GiB.
"""

from __future__ import annotations

from engine_models.declaration import PoolRequest
from engine_models.engines.vllm_runner import (
    GRAPHS_COUNTED_SINCE,
    IMAGES_SINCE,
    SAMPLED_SINCE,
    logit_bytes,
    second_runner,
    state_bytes,
)
from engine_models.engines.vllm_serving import Serving
from engine_models.engines.vllm_versions import Version
from engine_models.model.activations import SORT_BYTES, forward_bytes, tower_bytes
from engine_models.model.architecture import pipeline_layers
from engine_models.model.blocks import Architecture
from hardware_profiles.device import load_device

GIB = 1 << 30
Steps = tuple[tuple[tuple[int, ...], float], ...]

LOGIT_BYTES = {"sort": SORT_BYTES, "pivot": 14, "rejection": 10}
"""Memory of a logit while rows are sampled: as the model gave it and in float32 (2 + 4), and what sorting adds, or
probabilities and as many random numbers (4 + 4), or probabilities alone (FlashInfer). kind: datasheet
(`v1/sample/ops/topk_topp_sampler.py`); measured: 38.4 before 0.17, 14.0 in 0.19, 10.3 to 10.9 of Llama-3.1-8B with FlashInfer
(one start of 2026-10)."""
SEARCHED_ROWS = 8
"""Fewer rows are sorted where more are searched (datasheet: `apply_top_k_top_p`, 0.17 to 0.33)."""
WORKSPACE_BYTES = int(0.05 * GIB)
"""Of cuBLAS (32 MiB), and what rows are sampled by. kind: measured, 0.04 to 0.07 GiB."""
SHARDED_SINCE = (0, 29)
"""Tensor-parallel ranks share the rows that are sampled (datasheet: release notes of 0.29.0)."""
KEPT_SINCE = (0, 14)
"""Since then experts' outputs lie in a place that outlasts the forward pass (`v1/worker/workspace.py`, which experts in 16 bits
use in 0.14.1 and not in 0.13.0), so that sampling comes on top; experts in mxfp4 do without. kind: datasheet; measured in 0.19
(Qwen3-30B 0.50 GiB, Mixtral on two GPUs 0.66, gpt-oss none) and 0.15.1 (Mixtral on two H100 has 27,510 blocks: 27,485 with it,
27,637 without), absent in a start of 2025-12 (Qwen3-30B)."""
FUSED_BACKENDS = ("trtllm", "cutlass")
"""FlashInfer's kernels, which keep what they need themselves (datasheet: `workspace_shapes` of `flashinfer_cutlass_moe.py` and
`experts/trtllm_*.py`, 0.19.1). vLLM's own CUTLASS kernels, which have the same name here, keep more."""
OWN_BYTES: Steps = (((0, 11, 1), 0.07 * GIB), ((0, 18), 0.13 * GIB))
OWN_BYTES_NOW = 0.25 * GIB
"""What kernels and libraries take of a device by themselves during the run: before each version, and since the last. kind:
measured (seven starts of the first engine, 0.01 to 0.12; 0.10.2; 0.12 to 0.17; 0.18 and 0.19)."""
COLLECTIVE_BYTES: Steps = (((0, 8), 0.65 * GIB), ((0, 11, 1), 1.31 * GIB), ((0, 18), 0.41 * GIB))
COLLECTIVE_BYTES_NOW = 1.85 * GIB
"""The same for collectives of ranks. kind: measured on two GPUs of 96 GB (first engine), two H200 (0.11.0; two H100 agree), two
H100 (0.12 to 0.14), two and four H100 (0.19: 1.82 and 1.92); that the last steps came with 0.11.1 and, as did the device's own,
with 0.18 is assumed."""
SET_UP_BYTES, SET_UP_COUNTS = int(1.2 * GIB), ((0, 8), (0, 11))
"""More of the second engine, whose ranks were set up after its first look at free memory, from and before these versions
(datasheet: `gpu_worker.py` of 0.7.0 to 0.11.0; pull request 25359). kind: inferred, what SGLang's ranks took of four H100 where
vLLM 0.9.2 left 8.11 GiB (vllm-project/vllm#21348)."""
CONTEXT_BYTES_PER_CORE = 3.5 * (1 << 20)
"""What CUDA keeps of a device for a process, by its multiprocessors. kind: measured, 0.4 to 0.6 GiB on H100 and H200 with 132
(starts of SGLang, 2025), 0.24 on an RTX 3090 with 82 (vLLM 0.6.4, vllm-project/vllm#10517): 3 to 4.6 MiB each."""
CONTEXT_COUNTS = {True: ((0, 6, 4), (0, 6, 5)), False: ((0, 6, 5), (0, 9, 1))}
"""From and before these versions of the first and the second engine all that is used of a device counts, the context too
(datasheet: `worker.py` of 0.6.2 to 0.8.5, `v1/worker/gpu_worker.py` of 0.6.4 to 0.9.2; 0.9.0 assumed)."""
UNSAMPLED_UNTIL, ALL_ROWS_UNTIL = (0, 8), (0, 7, 3)
"""Before, the second engine's profiling run (its alpha) does not sample: it has the logits alone, before the second of all
tokens of a step (datasheet: `profile_run` of 0.7.0 to 0.8.0)."""
ELSEWHERE_BYTES: Steps = (((0, 8), 0.17 * GIB),)
ELSEWHERE_BYTES_NOW, MULTICAST = 0.41 * GIB, ("hopper", "blackwell")
"""The same where GPUs have no links of their own, or older ones that do not multicast. kind: measured on two RTX 4090 (0.7,
vllm-project/vllm#13061 of 2025-02); inferred since, from eight L40S under 0.10.2 (0.34 GiB) and two A100 under 0.11.2 (0.4)."""
GRAPH_BYTES_PER_LAYER = 0.5e6
"""Of a captured size. kind: measured, 2026-04: the median of what 0.19.0 estimated for 51 sizes on H100 (0.40 to 1.1e6, 26 to
80 layers); a start of 2026-08 on A800 has 0.51e6."""
COUNTED_SINCE = (0, 20)
"""Graphs count by default since (datasheet: `envs.py` of 0.19.1 and 0.20.0), not those of the second runner before it sets memory
aside for them."""


def graph_bytes(request: PoolRequest, version: Version, serving: Serving) -> int:
    """What is set aside for CUDA graphs, one of each size [bytes of a rank]."""
    counted = GRAPHS_COUNTED_SINCE if second_runner(request, version.number) else COUNTED_SINCE
    if version.number < counted:
        return 0
    layers = max(pipeline_layers(request.arch.layers, request.pipeline_parallel))
    return int(GRAPH_BYTES_PER_LAYER * layers * len(serving.graphs))


def peak_bytes(request: PoolRequest, version: Version, serving: Serving, backend: str | None) -> int:
    """Peak of PyTorch's memory over what it held once the model was loaded [bytes of a rank], its experts on `backend`.

    A forward pass of as many tokens as a step may have, then as many rows as may be sampled, with truncation; images before
    both. The first engine (V0) is taken for the later ones. """
    arch, tp, dp = request.arch, request.tensor_parallel, request.data_parallel
    tokens, second = serving.tokens, second_runner(request, version.number)
    sampled = 2 * tokens * arch.hidden + WORKSPACE_BYTES + _logits_bytes(request, version, serving, second=second)
    if version.number >= KEPT_SINCE and request.formats.weights.name != "mxfp4":
        sampled += kept_bytes(arch, tokens, tp, fused=backend in FUSED_BACKENDS)
    peak = max(forward_bytes(arch, tokens, tp, dp), sampled)
    peak += state_bytes(version.number, serving.rows, arch.vocab) if second else 0
    if version.first_engine or (second and version.number < IMAGES_SINCE):
        return peak
    tower, left = profiled_images(request, tokens, serving.context, version.number)
    return max(tower + WORKSPACE_BYTES if tower else 0, left + peak)


def _logits_bytes(request: PoolRequest, version: Version, serving: Serving, *, second: bool) -> int:
    """What logits take while rows are sampled in the profiling run of the `second` model runner, or the first [bytes]."""
    vocab, rows = request.arch.vocab, serving.rows
    if not version.first_engine and version.number < UNSAMPLED_UNTIL:
        return 2 * (serving.tokens if version.number < ALL_ROWS_UNTIL else rows) * vocab
    if version.number >= SHARDED_SINCE:
        rows = -(-rows // request.tensor_parallel)
    if second and (version.sampler == "rejection" or version.number < SAMPLED_SINCE):
        return logit_bytes(version.number) * rows * vocab
    searched = version.sampler == "pivot" and rows >= SEARCHED_ROWS
    each = LOGIT_BYTES["sort" if version.sampler == "pivot" and not searched else version.sampler]
    cores = load_device(request.device_name).multiprocessors
    programs = int(cores.value) if searched and cores is not None else 0  # of its kernel, each with a row of floats
    return (each * rows + 4 * programs) * vocab


def kept_bytes(arch: Architecture, tokens: int, tensor_parallel: int, *, fused: bool = False) -> int:
    """The place of experts' outputs [bytes of a rank].

    For each token and choice the wider of both halves and the hidden state, and the wider of their product and the hidden state
    (`fused_moe.py`: `workspace_shapes`); where one `fused` kernel does it all a hidden state of each token.
    """
    width = 0
    for mlp in arch.mlp:
        if mlp.kind == "moe":
            inner, hidden = mlp.expert_intermediate // tensor_parallel, mlp.latent or arch.hidden
            if fused:
                width = max(width, hidden)
                continue
            width = max(width, mlp.experts_per_token * (max(2 * inner, hidden) + max(inner, hidden)))
    return 2 * tokens * width


def beside_torch_bytes(request: PoolRequest, version: Version) -> int:
    """What is taken of a device during the run, and not through PyTorch [bytes]."""

    def of(steps: Steps, now_bytes: float) -> float:
        return next((taken for before, taken in steps if version.number < before), now_bytes)

    own = of(OWN_BYTES, OWN_BYTES_NOW)
    since, until = CONTEXT_COUNTS[version.first_engine]
    cores = load_device(request.device_name).multiprocessors
    if since <= version.number < until and cores is not None:
        own += CONTEXT_BYTES_PER_CORE * int(cores.value)
    if request.tensor_parallel * request.data_parallel == 1:
        return int(own)
    device = load_device(request.device_name)
    if device.link is None or device.link.topology == "pcie" or device.architecture not in MULTICAST:
        return int(own + of(ELSEWHERE_BYTES, ELSEWHERE_BYTES_NOW))
    set_up = not version.first_engine and SET_UP_COUNTS[0] <= version.number < SET_UP_COUNTS[1]
    return int(own + of(COLLECTIVE_BYTES, COLLECTIVE_BYTES_NOW)) + (SET_UP_BYTES if set_up else 0)


VIDEO_TOKENS, EXPANSION = 12288, 12.5
"""Of the longest video of Qwen3-VL, 25,165,824 pixels in cubes of 2 x 32 x 32 (datasheet: its video preprocessor), and tokens
that each of them counts as with its time stamps (0.11 and 0.12, `qwen3_vl.py`)."""
EXPANDED = (0, 11), (0, 13)
"""Versions that keep the outputs of each image in a place as large as the whole budget (`profile_run`), from and before."""


def profiled_images(request: PoolRequest, step_tokens: int, context: int, version: tuple[int, ...]) -> tuple[int, int]:
    """Peak of a tower in the profiling run, and what it leaves to the language model's pass [bytes of a rank].

    As many of the largest images as a step has tokens for, at least one, or the longest video that a request may have, unless
    none is admitted (`profile_run`, `compute_mm_encoder_budget`, `qwen2_vl.py`, 0.8 to 0.33).
    """
    flags, tower, hidden = request.flags, request.arch.tower, request.arch.hidden
    limits = flags.get("limit_mm_per_prompt") or {}
    admitted = any(limits.get(kind, 1) for kind in ("image", "video"))
    if tower is None or not admitted or flags.get("skip_mm_profiling"):
        return 0, 0
    item = tower.tokens * max(1, min(tower.pairs, context // tower.tokens))
    budget = max(step_tokens, item)
    items = budget // item
    kept = items * item
    if EXPANDED[0] <= version < EXPANDED[1]:
        if tower.outputs > 1:
            budget, items = max(step_tokens, int(EXPANSION * min(VIDEO_TOKENS, context))), 1
        kept = items * budget
    peak = tower_bytes(request.arch, request.tensor_parallel, items, item)
    return peak, 2 * kept * tower.outputs * hidden
