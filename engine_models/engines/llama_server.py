"""A llama-server: its slots, its memory and its costs from its own flags, for engines that are one or that start one."""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.drafting import Speculation
from engine_models.cost.overheads import Overheads
from engine_models.cost.settings import StepCosts
from engine_models.cost.step_time import TableRange
from engine_models.cost.sub_batches import Parts
from engine_models.cost.terms import Terms
from engine_models.declaration import Limits, MemoryBudget, Mode, PoolRequest
from engine_models.engines.llama_server_drafts import drafts_of, notes_of
from engine_models.engines.llama_server_drafts import rules_of as draft_rules
from engine_models.engines.llama_server_memory import MIB, memory_of
from engine_models.engines.llama_server_split import COPY_BYTES_PER_S, Split
from engine_models.memory.whole_prompts import WholePrompts
from engine_models.model.architecture import kv_bytes_per_token
from engine_models.refusals import no_expert_parallelism, no_layers
from engine_models.schedulers.slots import PAD_CELLS, SlotRules, SlotScheduler, padded
from engine_models.schedulers.slots_drafted import DraftedSlotScheduler
from hardware_profiles.errors import InputError
from hardware_profiles.packed_formats import GGUF_KV_TYPES
from hardware_profiles.records import dataclass

AUTO_SLOTS = 4
"""Slots of a server that is not told how many; they then share one pool (datasheet: `tools/server/server.cpp`)."""
ENTRY_BYTES = 12
"""What a saved token takes beside its keys and values (measured, 2026-11: recordings of build 11669)."""
HOP_S = 2.9e-4
"""What each further device of a model split by layers adds to a sub-batch [s] (fitted, 2026-11: published rates of llama.cpp of
2024 on one to six of 13 GeForce and workstation cards, 8B and 70B in Q4_K_M and F16)."""
ENDLESS = 1 << 40
"""Tokens of a row that is never cut for its length."""


@dataclass(frozen=True)
class LlamaServer:
    """One server, resolved. `cells` are those of its whole cache; `ram_bytes` 0: no prompts are kept in host memory.

    `split` says what its devices hold of the model; the CPU beside them has the rest. `drafts` are None where it makes none.
    """

    request: PoolRequest
    rules: SlotRules
    cells: int
    memory: MemoryBudget
    ram_bytes: float
    token_bytes: float
    split: Split
    drafts: Speculation | None = None

    def scheduler(self, mode: Mode) -> SlotScheduler:
        """Its slots, all empty."""
        if self.drafts is not None:
            drafts = draft_rules(self.drafts, self.request.flags)
            return DraftedSlotScheduler(self.rules, self.prompts(), drafts=drafts, record_rows=mode == "record")
        return SlotScheduler(self.rules, self.prompts(), aggregate=mode != "step", record_rows=mode == "record")

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
            speculation=self.drafts,
            parts=Parts(self.token_bytes / COPY_BYTES_PER_S, devices),
            host_layers=self.split.host_layers(request, kernels),
        )

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
        pool = (
            f"attention reads the whole pool as far as it is filled, in steps of {rules.pad_cells} cells, whatever a slot holds "
            "(assumed: from its beginning on)"
        )
        return (
            f"llama-server: {slots} with {held}, batches of {rules.n_batch:,} tokens computed {rules.n_ubatch:,} at a time; "
            f"further requests wait in order; a full slot {full}",
            f"{found}; {kept}" if rules.cache_prompt else "prompts are computed from their beginning (no cache_prompt)",
            *((pool,) if rules.pool_cells else ()),
            *self._backend_words(),
            *((spread,) if devices > 1 else ()),
            *self.split.notes(self.request),
            *notes_of(self.drafts, rules),
            f"states are copied to and from host memory at {COPY_BYTES_PER_S / 1e9:.0f} GB/s (assumed), while all slots wait",
            "the host's time (0.1 ms a row, for sampling and streaming) and the front end (1 ms) are assumed",
        )

    def _backend_words(self) -> tuple[str, ...]:
        request = self.request
        if request.device_vendor == "amd" and request.device_kind != "cpu":
            if not backend_of(request):
                return ("--device (ROCm0, Vulkan0) says which computes: they differ by up to a factor of 3 in prompts",)
        elif (device := str(request.flags.get("device") or "")) and device.lower().startswith("vulkan"):
            return (f"{device}: Vulkan's kernels are simulated on AMD's devices alone; these are the device's own backend",)
        return ()


def llama_server(request: PoolRequest) -> LlamaServer:
    """Resolve a server from its own flags.

    Raises InfeasibleError if weights and the least context do not fit, InputError on what this model of it lacks.
    """
    arch, flags = request.arch, request.flags
    _refuse(request)
    asked = int(flags.get("parallel", -1))
    slots = asked if asked > 0 else AUTO_SLOTS
    unified = bool(flags.get("kv_unified", asked <= 0))
    split = Split.of(request)
    drafts = drafts_of(request, slots, int(flags.get("batch_size", 2048)))
    cells, memory = memory_of(request, split, slots, unified=unified, drafts=drafts)
    split.check_host(request, cells)
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
    least = max(slots, 2)  # as build 11669 stops: `output_reserve` of `src/llama-context.cpp`, `common_context_can_seq_rm`
    if n_batch < least:
        raise InputError(
            f"llama-server does not start with batches of {n_batch} tokens (--batch-size, at most the context) for {slots} slots",
            where="deployment.engine_args.batch_size",
            mend=f"give at least {least}, or fewer slots (parallel)",
        )
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
        pad_cells=int(flags.get("pad_cells", PAD_CELLS)),
    )
    ram_bytes = float("inf") if ram_mib < 0 else float(ram_mib * MIB)
    token_bytes = float(kv_bytes_per_token(arch, request.formats.kv_cache)) + ENTRY_BYTES
    if drafts is not None:  # a saved prompt has both caches
        token_bytes += drafts.kv_bytes_per_token()
    return LlamaServer(request, rules, cells, memory, ram_bytes, token_bytes, split, drafts)


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


def backend_of(request: PoolRequest) -> str:
    """How an AMD device computes, as `--device` says: one of the backends of `hardware_profiles.law_constants`.

    "" on other devices, and where it does not say. Raises InputError where it names no device.
    """
    words = [word.strip().lower() for word in str(request.flags.get("device") or "").split(",") if word.strip()]
    if "none" in words and request.device_kind != "cpu":
        raise InputError(
            "--device none computes on the CPU",
            where="deployment.engine_args.device",
            mend="name the CPU as `deployment.hardware`, or a device such as ROCm0, Vulkan0 or CUDA0",
        )
    if not words or request.device_vendor != "amd":
        return ""
    if words[0].startswith("vulkan"):
        return "vulkan-bf16" if request.formats.weights.name == "bf16" else "vulkan"
    if not words[0].startswith("rocm"):
        return ""
    return "rocm" if request.flags.get("hipblaslt") else "rocblas"
