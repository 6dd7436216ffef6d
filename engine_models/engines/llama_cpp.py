"""llama.cpp's server: what it is in terms of the shared parts, its defaults, memory and flags.

The scheduling rule is `engine_models.schedulers.slots`, cached prompts in host memory are `engine_models.memory.whole_prompts`.

Behaviour and defaults of llama.cpp at 0c1e57098 (2026: `tools/server`, `common/arg.cpp`, `src/llama-context.cpp`,
`src/llama-kv-cache.cpp`); scheduling checked step by step against recordings of build 11669 (`capacity-plan validate schedules`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine_models.cost.overheads import load_overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.sub_batches import Parts
from engine_models.cost.terms import Terms
from engine_models.declaration import (
    Engine,
    EnginePlan,
    FrontEnd,
    Limits,
    MemoryBudget,
    MemoryLine,
    Mode,
    PoolRequest,
    Replay,
    Support,
)
from engine_models.engines.llama_cpp_flags import FLAGS
from engine_models.engines.llama_cpp_recorded import replay as replay_recorded
from engine_models.engines.llama_cpp_recorded import transcribe
from engine_models.memory.whole_prompts import WholePrompts
from engine_models.model.activations import CONTEXT_BYTES
from engine_models.model.architecture import kv_groups, state_bytes_per_sequence, weight_bytes_per_rank
from engine_models.schedulers.slots import PAD_CELLS, SlotRules, SlotScheduler, padded
from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InfeasibleError, InputError

AUTO_SLOTS = 4
"""Slots of a server that is not told how many; they then share one pool (datasheet: `tools/server/server.cpp`)."""
MIB = 1 << 20
FIT_STEP = 256
"""Contexts are lowered by whole multiples of so many tokens, so that the model fits (datasheet: `common/fit.cpp`)."""
LOGIT_BYTES, ACTIVATION_BYTES = 4, 4
"""Of a value of the compute buffer: float32 (datasheet: ggml's graphs)."""
ENTRY_BYTES = 12
"""What a saved token takes beside its keys and values (measured, 2026-11: recordings of build 11669)."""
COPY_BYTES_PER_S = 10e9
"""Rate at which a state is copied between the device's memory and the host's, tensor by tensor from pageable memory [byte/s]
(assumed, 2026-11: a single core's copy, and PCIe from pageable memory, reach 5 to 20 GB/s)."""


@dataclass(frozen=True)
class Server:
    """Rules and host memory of one server: what a fresh scheduler is built from. `ram_bytes` 0: no prompts are kept there."""

    rules: SlotRules
    ram_bytes: float
    token_bytes: float

    def scheduler(self, mode: Mode) -> SlotScheduler:
        """Build a scheduler with its cache."""
        prompts = WholePrompts(self.ram_bytes, self.token_bytes) if self.ram_bytes else None
        return SlotScheduler(self.rules, prompts, aggregate=mode != "step", record_rows=mode == "record")


def plan(request: PoolRequest, version_text: str | None = None) -> EnginePlan:
    """Resolve one server: slots, context, memory, overheads.

    Raises InfeasibleError if weights and the least context do not fit, InputError on what this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    _refuse(request)
    asked = int(flags.get("parallel", -1))
    slots = asked if asked > 0 else AUTO_SLOTS
    unified = bool(flags.get("kv_unified", asked <= 0))
    cells, memory = _memory(request, slots, unified=unified)
    context = cells if unified else max(cells // slots // PAD_CELLS, 1) * PAD_CELLS
    per_slot = flags.get("kv_unified_per_slot")
    if unified and per_slot:
        context = min(context, int(per_slot))
    context = min(context, arch.max_context_tokens)
    shifts = bool(flags.get("context_shift", False))
    swa_full = bool(flags.get("swa_full"))
    rolls_back = all(
        block.kind != "linear" and (swa_full or not block.window_tokens) for block in arch.attention
    )
    if shifts and not rolls_back:
        raise InputError(
            f"llama.cpp cannot shift the context of {arch.name}: not all its layers keep the whole context",
            where="deployment.engine_args.context_shift",
            mend="remove context_shift",
        )
    n_batch = int(flags.get("batch_size", 2048))
    n_ubatch = min(int(flags.get("ubatch_size", 512)), n_batch)
    ram_mib = int(flags.get("cache_ram", 8192))
    rules = SlotRules(
        n_parallel=slots,
        slot_tokens=context,
        pool_cells=cells if unified else 0,
        n_batch=n_batch,
        n_ubatch=n_ubatch,
        cont_batching=bool(flags.get("cont_batching", True)),
        slot_prompt_similarity=float(flags.get("slot_prompt_similarity", 0.1)),
        cache_prompt=bool(flags.get("cache_prompt", True)),
        cache_reuse=int(flags.get("cache_reuse", 0)) if rolls_back else 0,
        rolls_back=rolls_back,
        cache_idle_slots=bool(flags.get("cache_idle_slots", True)),
        context_shift=shifts,
        n_keep=int(flags.get("keep", 0)),
    )
    token_bytes = _kv_token_bytes(request) + ENTRY_BYTES
    ram_bytes = float("inf") if ram_mib < 0 else float(ram_mib * MIB)
    overheads = load_overheads(ENGINE.name, ENGINE.overheads_from)
    endless = 1 << 40 if shifts else context
    return EnginePlan(
        engine=ENGINE.name,
        version=ENGINE.version(version_text),
        limits=Limits(
            rows=slots,
            step_tokens=max(n_batch, slots),
            context_tokens=context,
            kv_tokens=cells,
            kv_blocks=cells,
            block_tokens=1,
            prompt_tokens=context - 1,
            row_tokens=endless,
            asked_tokens=1,  # an answer is cut, not refused
            request_tokens=endless,
        ),
        memory=memory,
        scheduler=Server(rules, ram_bytes, token_bytes).scheduler,
        costs=StepCosts(
            arch,
            request.formats,
            Terms(overheads.host),
            TableRange(max(n_ubatch, slots), slots, padded(context if not unified else cells)),
            parts=Parts(token_bytes / COPY_BYTES_PER_S),
        ),
        front=FrontEnd(overheads.front_end_s, overheads.tokenise_token_s),
        prefix_caching=rules.cache_prompt,
        notes=_notes(rules, ram_mib, cells),
        sources=overheads.provenance,
    )


def _notes(rules: SlotRules, ram_mib: int, cells: int) -> tuple[str, ...]:
    slots = f"{rules.n_parallel} slot" + "s" * (rules.n_parallel > 1)
    held = f"one pool of {cells:,} cells" if rules.pool_cells else f"{rules.slot_tokens:,} cells each"
    saved = "as much as fits" if ram_mib < 0 else f"{ram_mib:,} MiB"
    kept = f"{saved} of prompts are kept in host memory" if ram_mib else "no prompts are kept in host memory"
    found = (
        "a prompt goes on from what its slot holds"
        if rules.rolls_back
        else "a slot's cache cannot be cut: a prompt goes on from the whole of it or is computed anew (checkpoints are not "
        "simulated)"
    )
    full = "shifts its context" if rules.context_shift else "ends its answer"
    return (
        f"llama.cpp: {slots} with {held}, batches of {rules.n_batch:,} tokens computed {rules.n_ubatch:,} at a time; further "
        f"requests wait in order; a full slot {full}",
        f"{found}; {kept}"
        if rules.cache_prompt
        else "prompts are computed from their beginning (no cache_prompt)",
        *(
            (
                f"attention reads the whole pool as far as it is filled, in steps of {PAD_CELLS} cells, whatever a slot holds "
                "(assumed: from its beginning on)",
            )
            if rules.pool_cells
            else ()
        ),
        f"states are copied to and from host memory at {COPY_BYTES_PER_S / 1e9:.0f} GB/s (assumed), while all slots wait",
        "llama.cpp's host time (0.3 ms a sub-batch, 50 us a row) and front end are assumed, nobody measured them",
    )


def _refuse(request: PoolRequest) -> None:
    arch, flags = request.arch, request.flags
    if request.tensor_parallel > 1 or request.pipeline_parallel > 1:
        raise InputError(
            "one model over several devices is not simulated for llama.cpp",
            where="deployment.tensor_parallel"
            if request.tensor_parallel > 1
            else "deployment.pipeline_parallel",
            mend="use one device, `replicas` for more servers, or another engine (`capacity-plan list engines`)",
        )
    if request.expert_parallel > 1:
        raise InputError(
            "llama.cpp has no expert parallelism",
            where="deployment.expert_parallel",
            mend="leave it out, or use another engine (`capacity-plan list engines`)",
        )
    if any(block.indexer or block.entry_tokens > 1 for block in arch.attention):
        raise InputError(
            f"sparse attention over an index, which {arch.name} has, is not simulated for llama.cpp",
            where="model",
            mend="use another engine (`capacity-plan list engines`)",
        )
    if flags.get("cache_type_k", "f16") != flags.get("cache_type_v", "f16"):
        raise InputError(
            f"keys in {flags.get('cache_type_k', 'f16')} and values in {flags.get('cache_type_v', 'f16')} are not simulated",
            where="deployment.engine_args.cache_type_v",
            mend="give both the same type",
        )
    layers = flags.get("gpu_layers")
    if request.device_kind != "cpu" and isinstance(layers, int) and 0 <= layers <= arch.layers:
        raise InputError(
            f"{layers} of the {arch.layers + 1} layers of {arch.name} (its head counts as one) on the device and the rest on the "
            "CPU are not simulated",
            where="deployment.engine_args.gpu_layers",
            mend="leave gpu_layers out (all of them), or name a CPU under `hardware`",
        )


def _kv_token_bytes(request: PoolRequest) -> float:
    return float(
        sum(group.bytes_per_token_per_rank for group in kv_groups(request.arch, request.formats.kv_cache))
    )


def _memory(request: PoolRequest, slots: int, *, unified: bool) -> tuple[int, MemoryBudget]:
    """Cells of the whole cache, allocated at the start, and the budget: what is not asked for is lowered until it fits."""
    flags, arch, device = request.flags, request.arch, request.device_memory_bytes
    weights = weight_bytes_per_rank(arch, request.formats.weights, 1, 1, 1)
    n_ubatch = min(int(flags.get("ubatch_size", 512)), int(flags.get("batch_size", 2048)))
    compute = n_ubatch * (LOGIT_BYTES * arch.vocab + ACTIVATION_BYTES * 4 * arch.hidden)
    other = int(CONTEXT_BYTES) if request.device_kind == "gpu" else 0
    states = slots * state_bytes_per_sequence(arch)
    per_token, windowed = 0, 0
    for group in kv_groups(arch, request.formats.kv_cache):
        if group.window_tokens and not flags.get("swa_full"):
            windowed += group.bytes_per_token_per_rank * padded(group.window_tokens * slots + n_ubatch)
        else:
            per_token += group.bytes_per_token_per_rank
    asked = int(flags.get("ctx_size", 0))
    per_slot = flags.get("kv_unified_per_slot")
    if not asked and unified and per_slot:
        asked = slots * int(per_slot)
    fits = flags.get("fit", "on") == "on"
    margin = int(flags.get("fit_target", [1024])[0]) * MIB if fits else 0
    fixed = weights + compute + other + states + windowed
    wanted = padded(asked or arch.max_context_tokens)
    room = (device - fixed - margin) // max(per_token, 1)
    cells = wanted
    if not asked and fits and wanted > room:
        least = padded(min(int(flags.get("fit_ctx", 4096)), arch.max_context_tokens))
        cells = max(room // FIT_STEP * FIT_STEP, least)
    if fixed + cells * per_token > device:
        lack = (fixed + cells * per_token - device) / 1e9
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB + KV cache of {cells:,} tokens "
            f"{(cells * per_token + windowed) / 1e9:.1f} GB + {(compute + other + states) / 1e9:.1f} GB besides, of "
            f"{device / 1e9:.1f} GB; {lack:.1f} GB too much (layers on the CPU are not simulated)",
            where="deployment",
            mend="a smaller engine_args.ctx_size, a smaller number format (weights: q4_k_m, kv_cache: q8_0), or a larger device",
        )
    kv = cells * per_token
    lines = (
        MemoryLine("weight", "weights", weights),
        MemoryLine("activation", "compute buffer", compute),
        *((MemoryLine("other", "context of the device", other),) if other else ()),
        *((MemoryLine("window", "KV cache of sliding windows", windowed),) if windowed else ()),
        *((MemoryLine("state", "states of the slots", states),) if states else ()),
        MemoryLine("left", "left free", device - fixed - kv),
    )
    return cells, MemoryBudget(device, device, lines, kv, per_token, per_token, cells)


def replay(version_text: str, knobs: Mapping[str, Any]) -> Replay:
    """The scheduler of a recording, from its version and the knobs of its `config` line."""
    ENGINE.version(version_text.partition(" ")[0])
    return replay_recorded(knobs)


_SOURCE = "ggml-org/llama.cpp at 0c1e57098 (2026)"
_KINDS: frozenset[DeviceKind] = frozenset({"gpu", "apple", "cpu", "apu"})

ENGINE = Engine(
    name="llama_cpp",
    title="llama.cpp",
    versions={"0.7.0": {}},
    oldest="0.7",
    devices={
        "gpu": f"{_SOURCE}: ggml backends CUDA, HIP, Vulkan, SYCL",
        "apple": f"{_SOURCE}: ggml backend Metal",
        "cpu": f"{_SOURCE}: ggml backend CPU",
        "apu": f"{_SOURCE}: ggml backends Vulkan and HIP",
    },
    formats={
        name: Support(_KINDS, f"{_SOURCE}: ggml/src/ggml-common.h, tools/quantize")
        for name in ("gguf", "bf16", "fp16", "fp32", "mxfp4")
    },
    features={},
    flags=lambda: FLAGS,
    same_as={"rows": "parallel", "context": "ctx_size", "step_tokens": "batch_size"},
    kernels="llama_cpp",
    plan=plan,
    replay=replay,
    transcribe=transcribe,
)
