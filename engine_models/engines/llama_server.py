"""A llama-server: its slots, its memory and its costs from its own flags, for engines that are one or that start one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from engine_models.cost.host_layers import HostLayers
from engine_models.cost.overheads import Overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.sub_batches import Parts
from engine_models.cost.terms import Terms
from engine_models.declaration import Limits, MemoryBudget, MemoryLine, PoolRequest
from engine_models.memory.whole_prompts import WholePrompts
from engine_models.model.activations import CONTEXT_BYTES
from engine_models.model.architecture import (
    Architecture,
    expert_bytes,
    in_pieces,
    kv_groups,
    state_bytes_per_sequence,
    weight_bytes_per_rank,
)
from engine_models.refusals import no_expert_parallelism, no_layers
from engine_models.schedulers.slots import PAD_CELLS, SlotRules, padded
from hardware_profiles.device import Device, load_device
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.kernels import operations_of
from hardware_profiles.packed_formats import GGUF_KV_TYPES

AUTO_SLOTS = 4
"""Slots of a server that is not told how many; they then share one pool (datasheet: `tools/server/server.cpp`)."""
MIB = 1 << 20
LOGIT_BYTES, ACTIVATION_BYTES = 4, 4
"""Of a value of the compute buffer: float32 (datasheet: ggml's graphs)."""
ENTRY_BYTES = 12
"""What a saved token takes beside its keys and values (measured, 2026-11: recordings of build 11669)."""
COPY_BYTES_PER_S = 10e9
"""Rate at which a state is copied between the device's memory and the host's, tensor by tensor from pageable memory [byte/s]
(assumed, 2026-11: a single core's copy, and PCIe from pageable memory, reach 5 to 20 GB/s)."""
HOP_S = 2.9e-4
"""What each further device of a model split by layers adds to a sub-batch [s] (fitted, 2026-11: published rates of llama.cpp of
2024 on one to six of 13 GeForce and workstation cards, 8B and 70B in Q4_K_M and F16)."""
FETCHED_TOKENS = 32
"""Tokens of a sub-batch from which a GPU computes layers of the CPU's, with their weights fetched (datasheet: `op_offload`,
`ggml/src/ggml-cuda/ggml-cuda.cu`)."""
FETCH_SHARE = 0.8
"""Share of the link to the host at which weights are fetched (fitted, 2026-11: the run named at `host_layers.DISTINCT`)."""
HOSTS = ("core-i9-13900k", "xeon-8480")
"""The CPU beside a card for desktops and workstations, and beside any other GPU, where none is named (assumed)."""
ENDLESS = 1 << 40
"""Tokens of a row that is never cut for its length."""


@dataclass(frozen=True)
class Split:
    """What the devices compute: `held`, and before it, with the CPU, the layers `on_host` (None: none) or only their experts.

    `cached` are the layers whose cache the devices hold, `weights` the bytes a device.
    """

    held: Architecture
    cached: Architecture
    weights: int
    on_host: Architecture | None = None
    experts_only: bool = False


@dataclass(frozen=True)
class LlamaServer:
    """One server, resolved. `cells` are those of its whole cache; `ram_bytes` 0: no prompts are kept in host memory.

    `split` says what its devices hold of the model, the CPU `host` has the rest.
    """

    request: PoolRequest
    rules: SlotRules
    cells: int
    memory: MemoryBudget
    ram_bytes: float
    token_bytes: float
    split: Split

    @cached_property
    def host(self) -> Device:
        """The CPU beside the devices."""
        return host_of(self.request)

    def prompts(self) -> WholePrompts | None:
        """An empty cache in host memory; None without. Where its bytes have no limit, it holds as many tokens as the context."""
        tokens = self.cells if self.ram_bytes == float("inf") else float("inf")
        return WholePrompts(self.ram_bytes, self.token_bytes, tokens) if self.ram_bytes else None

    def limits(self) -> Limits:
        """A prompt as long as its slot is refused; an answer is cut there, unless the context shifts."""
        rules = self.rules
        endless = ENDLESS if rules.context_shift else rules.slot_tokens
        return Limits(
            rows=rules.n_parallel,
            step_tokens=max(rules.n_batch, rules.n_parallel),
            context_tokens=rules.slot_tokens,
            kv_tokens=self.cells,
            kv_blocks=self.cells,
            block_tokens=1,
            prompt_tokens=rules.slot_tokens - 1,
            row_tokens=endless,
            asked_tokens=1,  # an answer is cut, not refused
            request_tokens=endless,
        )

    def costs(self, overheads: Overheads, kernels: str) -> StepCosts:
        """Costs of its sub-batches, layers on the CPU with these kernels."""
        rules, request = self.rules, self.request
        longest = padded(self.cells if rules.pool_cells else rules.slot_tokens)
        devices = request.pipeline_parallel
        threads = int(request.flags.get("threads", -1)) if request.device_kind == "cpu" else 0
        return StepCosts(
            self.split.held,
            request.formats,
            Terms(
                replace(overheads.host, device_step_s=overheads.host.device_step_s + HOP_S * (devices - 1)),
                threads=max(threads, 0),
            ),
            TableRange(max(rules.n_ubatch, rules.n_parallel), rules.n_parallel, longest),
            parts=Parts(self.token_bytes / COPY_BYTES_PER_S, devices),
            host_layers=self._host_layers(kernels),
        )

    def _host_layers(self, kernels: str) -> HostLayers | None:
        on_host, only = self.split.on_host, self.split.experts_only
        if on_host is None:
            return None
        flags, weights = self.request.flags, self.request.formats.weights
        experts = expert_bytes(on_host, weights)
        return HostLayers(
            on_host,
            operations_of(self.host, kernels),
            max(int(flags.get("threads", -1)), 0),
            FETCHED_TOKENS if flags.get("op_offload", True) else None,
            0.0 if only else weight_bytes_per_rank(on_host, weights) - experts,
            experts,
            self._fetch_bytes_per_s,
            only,
        )

    @property
    def _fetch_bytes_per_s(self) -> float:
        return FETCH_SHARE * self.request.host_link_bytes_per_s or COPY_BYTES_PER_S

    def notes(self) -> tuple[str, ...]:
        """What is assumed of it."""
        rules = self.rules
        slots = f"{rules.n_parallel} slot" + "s" * (rules.n_parallel > 1)
        held = f"one pool of {self.cells:,} cells" if rules.pool_cells else f"{rules.slot_tokens:,} cells each"
        saved = "as much as fits" if self.ram_bytes == float("inf") else f"{int(self.ram_bytes) // MIB:,} MiB"
        kept = f"{saved} of prompts are kept in host memory" if self.ram_bytes else "no prompts are kept in host memory"
        found = (
            "a prompt goes on from what its slot holds"
            if rules.rolls_back
            else "a slot's cache cannot be cut: a prompt goes on from the whole of it or is computed anew (checkpoints are not "
            "simulated)"
        )
        full = "shifts its context" if rules.context_shift else "ends its answer"
        devices = self.request.pipeline_parallel
        spread = (
            f"the layers are split over {devices} devices, which compute one after the other, {HOP_S * 1e3:g} ms more for each; "
            "sub-batches of an iteration follow each other through them"
        )
        beside: tuple[str, ...] = ()
        split = self.split
        if split.on_host is not None:
            chosen = "" if self.request.flags.get("host_cpu") else " (assumed; name another as `host_cpu`)"
            fetched = (
                f"; of sub-batches of {FETCHED_TOKENS} tokens and more the GPU computes them too"
                f"{'' if split.experts_only else ', but for attention'}, with weights fetched at "
                f"{self._fetch_bytes_per_s / 1e9:.0f} GB/s"
            )
            beside = (
                f"{'the experts of ' if split.experts_only else ''}{split.on_host.layers} of {self.request.arch.layers} layers "
                f"stay on the CPU, {self.host.title}{chosen}{fetched if self.request.flags.get('op_offload', True) else ''}",
            )
        pool = (
            f"attention reads the whole pool as far as it is filled, in steps of {PAD_CELLS} cells, whatever a slot holds "
            "(assumed: from its beginning on)"
        )
        return (
            f"llama-server: {slots} with {held}, batches of {rules.n_batch:,} tokens computed {rules.n_ubatch:,} at a time; "
            f"further requests wait in order; a full slot {full}",
            f"{found}; {kept}" if rules.cache_prompt else "prompts are computed from their beginning (no cache_prompt)",
            *((pool,) if rules.pool_cells else ()),
            *((spread,) if devices > 1 else ()),
            *beside,
            f"states are copied to and from host memory at {COPY_BYTES_PER_S / 1e9:.0f} GB/s (assumed), while all slots wait",
            "the host's time (0.1 ms a row, for sampling and streaming) and the front end (1 ms) are assumed",
        )


def llama_server(request: PoolRequest) -> LlamaServer:
    """Resolve a server from its own flags.

    Raises InfeasibleError if weights and the least context do not fit, InputError on what this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    _refuse(request)
    asked = int(flags.get("parallel", -1))
    slots = asked if asked > 0 else AUTO_SLOTS
    unified = bool(flags.get("kv_unified", asked <= 0))
    split = _split(request)
    cells, memory = _memory(request, split, slots, unified=unified)
    _check_host(request, split, cells)
    context = cells if unified else cells // slots
    per_slot = flags.get("kv_unified_per_slot")
    if unified and per_slot:
        context = min(context, int(per_slot))
    shifts = bool(flags.get("context_shift", False))
    rolls_back = cuts_anywhere(request)
    if shifts and not rolls_back:
        raise InputError(
            f"llama.cpp cannot shift the context of {arch.name}: not all its layers keep the whole context",
            where="deployment.engine_args.context_shift",
            mend="remove context_shift",
        )
    n_batch = min(int(flags.get("batch_size", 2048)), int(flags.get("ctx_size", 0)) or cells)
    ram_mib = int(flags.get("cache_ram", 8192))
    rules = SlotRules(
        n_parallel=slots,
        slot_tokens=min(context, arch.max_context_tokens),
        pool_cells=cells if unified else 0,
        n_batch=n_batch,
        n_ubatch=min(int(flags.get("ubatch_size", 512)), n_batch),
        cont_batching=bool(flags.get("cont_batching", True)),
        slot_prompt_similarity=float(flags.get("slot_prompt_similarity", 0.1)),
        cache_prompt=bool(flags.get("cache_prompt", True)),
        cache_reuse=int(flags.get("cache_reuse", 0)) if rolls_back else 0,
        rolls_back=rolls_back,
        cache_idle_slots=bool(flags.get("cache_idle_slots", True)),
        context_shift=shifts,
        n_keep=int(flags.get("keep", 0)),
    )
    ram_bytes = float("inf") if ram_mib < 0 else float(ram_mib * MIB)
    return LlamaServer(request, rules, cells, memory, ram_bytes, _kv_token_bytes(request) + ENTRY_BYTES, split)


def cuts_anywhere(request: PoolRequest) -> bool:
    """Whether a cache can be cut and shifted: all layers keep the whole context, none a state."""
    swa_full = bool(request.flags.get("swa_full"))
    return all(block.kind != "linear" and (swa_full or not block.window_tokens) for block in request.arch.attention)


def _refuse(request: PoolRequest) -> None:
    flags = request.flags
    if request.tensor_parallel > 1:
        raise InputError(
            "split modes `row` and `tensor` of llama.cpp are not simulated",
            where="deployment.tensor_parallel",
            mend="split the model by layers (pipeline_parallel: the number of devices), or use `replicas` for more servers",
        )
    no_expert_parallelism(request, "llama.cpp has no expert parallelism")
    indexed = f"sparse attention over an index, which {request.arch.name} has"
    no_layers(request, ("sparse",), f"{indexed}, is not simulated for llama.cpp")
    if flags.get("cache_type_k", "f16") != flags.get("cache_type_v", "f16"):
        raise InputError(
            f"keys in {flags.get('cache_type_k', 'f16')} and values in {flags.get('cache_type_v', 'f16')} are not simulated",
            where="deployment.engine_args.cache_type_v",
            mend="give both the same type",
        )
    kv = request.formats.kv_cache.name
    if kv not in ("fp32", "fp16", "bf16", *GGUF_KV_TYPES):
        raise InputError(
            f"llama.cpp keeps no KV cache in {kv}",
            where="deployment.kv_cache",
            mend=f"use fp16 or one of {', '.join(GGUF_KV_TYPES)}",
        )


def host_of(request: PoolRequest) -> Device:
    """The CPU beside the devices: the one that is named, or one that goes with such a device.

    Raises InputError if it is none.
    """
    named = request.flags.get("host_cpu")
    workstation = request.device_name.startswith(("rtx", "rx-", "radeon", "arc"))
    found = load_device(str(named or HOSTS[not workstation]))
    if found.kind != "cpu":
        raise InputError(
            f"{found.title} is no CPU",
            where="deployment.engine_args.host_cpu",
            mend="name one of `capacity-plan list hardware`, such as xeon-8480",
        )
    return found


def _split(request: PoolRequest) -> Split:
    """What the devices hold of the model, and what stays on the CPU.

    Layers of the GPU are counted from the last, of which the head is one (datasheet: `src/llama-model.cpp`, `i_gpu_start`),
    layers whose experts stay on the CPU from the first (`common/arg.cpp`, `n_cpu_moe`).
    """
    arch, flags, weights = request.arch, request.flags, request.formats.weights
    asked = flags.get("gpu_layers")
    on_device = asked if isinstance(asked, int) and 0 <= asked <= arch.layers else None
    of_experts = int(flags.get("n_cpu_moe", 0))
    if flags.get("cpu_moe"):
        of_experts = arch.layers
    of_experts = min(of_experts, arch.layers) if arch.has_experts else 0
    if request.device_kind == "cpu" or (on_device is None and not of_experts):
        return Split(arch, arch, weight_bytes_per_rank(arch, weights, 1, request.pipeline_parallel))
    key = "gpu_layers" if on_device is not None else "cpu_moe" if flags.get("cpu_moe") else "n_cpu_moe"
    where, without = f"deployment.engine_args.{key}", f"leave {key} out"
    if on_device is None:
        few = f"experts of {of_experts} layers of {arch.name} on the CPU"
    else:
        few = (
            f"{on_device} of the {arch.layers + 1} layers of {arch.name} (its head counts as one) on the device and the rest on "
            "the CPU"
        )
        if of_experts:
            raise InputError(f"{few}, and experts too, are not simulated", where=where, mend=without)
        if on_device < 2:
            mend = f"{without} (all of them), or name a CPU under `hardware`"
            raise InputError(f"{few} are not simulated", where=where, mend=mend)
    if request.device_kind != "gpu":
        raise InputError(f"{few}, which share one memory, are not simulated", where=where, mend=without)
    if request.pipeline_parallel > 1:
        raise InputError(f"{few} are simulated for one device only", where=where, mend="set pipeline_parallel: 1")
    first = of_experts if on_device is None else arch.layers + 1 - on_device
    on_host, held = in_pieces(arch, (first, arch.layers - first))
    on_host = replace(on_host, has_embedding=False)  # a table that no step multiplies
    if on_device is not None:
        return Split(held, held, weight_bytes_per_rank(held, weights), on_host)
    kept = weight_bytes_per_rank(arch, weights) - expert_bytes(on_host, weights)
    return Split(held, arch, kept, on_host, experts_only=True)


def _check_host(request: PoolRequest, split: Split, cells: int) -> None:
    on_host = split.on_host
    if on_host is None:
        return
    host = host_of(request)
    if split.experts_only:
        needed = expert_bytes(on_host, request.formats.weights)
    else:
        needed = weight_bytes_per_rank(on_host, request.formats.weights)
        needed += cells * sum(g.bytes_per_token_per_rank for g in kv_groups(on_host, request.formats.kv_cache))
    if needed > host.memory_bytes.value:
        raise InfeasibleError(
            f"what stays on the CPU of {request.arch.name} takes {needed / 1e9:.0f} GB of the host's memory; "
            f"{host.title} has {host.memory_bytes.value / 1e9:.0f} GB",
            where="deployment.engine_args",
            mend="more layers on the GPU, a smaller number format, or another host_cpu (`capacity-plan list hardware`)",
        )


def _kv_token_bytes(request: PoolRequest) -> float:
    return float(
        sum(group.bytes_per_token_per_rank for group in kv_groups(request.arch, request.formats.kv_cache))
    )


def _memory(request: PoolRequest, split: Split, slots: int, *, unified: bool) -> tuple[int, MemoryBudget]:
    """Cells of the whole cache, allocated at the start, and the budget: what is not asked for is lowered until it fits."""
    flags, arch, device = request.flags, request.arch, request.device_memory_bytes
    stages = request.pipeline_parallel
    weights, held = split.weights, split.cached
    n_ubatch = min(int(flags.get("ubatch_size", 512)), int(flags.get("batch_size", 2048)))
    compute = n_ubatch * (LOGIT_BYTES * arch.vocab + ACTIVATION_BYTES * 4 * arch.hidden)
    other = int(CONTEXT_BYTES) if request.device_kind == "gpu" else 0
    states = slots * state_bytes_per_sequence(held, 1, stages)
    per_token, windowed = 0, 0
    for group in kv_groups(held, request.formats.kv_cache, 1, stages):
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
    apart = 1 if unified else slots
    cells = apart * padded((asked or arch.max_context_tokens) // apart)
    room = (device - fixed - margin) // max(per_token, 1)
    if not asked and fits and cells > room:
        least = padded(min(int(flags.get("fit_ctx", 4096)), arch.max_context_tokens) // apart)
        cells = apart * max(room // apart // PAD_CELLS * PAD_CELLS, least)
    if fixed + cells * per_token > device:
        lack = (fixed + cells * per_token - device) / 1e9
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + KV cache of {cells:,} tokens "
            f"{(cells * per_token + windowed) / 1e9:.1f} GB + {(compute + other + states) / 1e9:.1f} GB besides, of "
            f"{device / 1e9:.1f} GB; {lack:.1f} GB too much",
            where="deployment",
            mend="a smaller engine_args.ctx_size, a smaller number format (weights: q4_k_m, kv_cache: q8_0), larger or more "
            f"devices (pipeline_parallel){_fewer(request, fixed - weights + cells * per_token, weights)}",
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


def _fewer(request: PoolRequest, besides: int, weights: int) -> str:
    """How many layers would fit, in words; the head is counted as a layer."""
    room = request.device_memory_bytes / (weights + besides)
    layers = int(request.arch.layers * room * 0.97) + 1
    split = any(request.flags.get(key) for key in ("gpu_layers", "cpu_moe", "n_cpu_moe"))
    if request.device_kind != "gpu" or request.pipeline_parallel > 1 or layers < 2 or split:
        return ""
    return f", or layers on the CPU (engine_args.gpu_layers: {layers})"
