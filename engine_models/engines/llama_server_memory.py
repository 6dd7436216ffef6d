"""The memory of a llama-server: one cache, allocated at its start, beside weights, a compute buffer and states."""

from __future__ import annotations

from engine_models.cost.drafting import Speculation
from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest, line_if_any
from engine_models.engines.llama_server_split import Split
from engine_models.model.activations import CONTEXT_BYTES
from engine_models.model.architecture import kv_groups, state_bytes_per_sequence
from engine_models.schedulers.slots import PAD_CELLS, padded
from hardware_profiles.errors import InfeasibleError

MIB = 1 << 20
LOGIT_BYTES, ACTIVATION_BYTES = 4, 4
"""Of a value of the compute buffer: float32 (datasheet: ggml's graphs)."""


def memory_of(
    request: PoolRequest, split: Split, slots: int, *, unified: bool, drafts: Speculation | None = None
) -> tuple[int, MemoryBudget]:
    """Cells of the whole cache, allocated at the start, and the budget: what is not asked for is lowered until it fits.

    A drafter has as many cells of its own and a compute buffer; it is fitted with the model (`common_fit_extra_model`).
    """
    flags, arch, device = request.flags, request.arch, request.device_memory_bytes
    stages = request.pipeline_parallel
    weights, held = split.weights, split.cached
    n_ubatch = min(int(flags.get("ubatch_size", 512)), int(flags.get("batch_size", 2048)))
    compute = n_ubatch * (LOGIT_BYTES * arch.vocab + ACTIVATION_BYTES * 4 * arch.hidden)
    other = int(CONTEXT_BYTES) if request.device_kind == "gpu" else 0
    states = slots * state_bytes_per_sequence(held, 1, stages)
    if drafts is not None:
        states *= drafts.row_tokens  # one for each place that drafts may be cut back to (`n_rs_seq`)
    drafter = _drafter_bytes(drafts, n_ubatch, stages)
    per_token, windowed = 0, 0
    for group in kv_groups(held, request.formats.kv_cache, 1, stages):
        if group.window_tokens and not flags.get("swa_full"):
            windowed += group.bytes_per_token_per_rank * padded(group.window_tokens * slots + n_ubatch)
        else:
            per_token += group.bytes_per_token_per_rank
    if drafts is not None:
        per_token += drafts.kv_bytes_per_token() // stages
    asked = int(flags.get("ctx_size", 0))
    per_slot = flags.get("kv_unified_per_slot")
    if not asked and unified and per_slot:
        asked = slots * int(per_slot)
    fits = flags.get("fit", "on") == "on"
    margin = int(flags.get("fit_target", [1024])[0]) * MIB if fits else 0
    fixed = weights + drafter + compute + other + states + windowed
    apart = 1 if unified else slots
    cells = apart * padded(padded(asked or arch.max_context_tokens) // apart)
    room = (device - fixed - margin) // max(per_token, 1)
    if not asked and fits and cells > room:
        least = padded(min(int(flags.get("fit_ctx", 4096)), arch.max_context_tokens) // apart)
        cells = apart * max(room // apart // PAD_CELLS * PAD_CELLS, least)
    if fixed + cells * per_token > device:
        lack = (fixed + cells * per_token - device) / 1e9
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB a device + KV cache of {cells:,} tokens "
            f"{(cells * per_token + windowed) / 1e9:.1f} GB + {(compute + other + states + drafter) / 1e9:.1f} GB besides, of "
            f"{device / 1e9:.1f} GB; {lack:.1f} GB too much",
            where="deployment",
            mend="a smaller engine_args.ctx_size, a smaller number format (weights: q4_k_m, kv_cache: q8_0), larger or more "
            f"devices (pipeline_parallel){_fewer(request, fixed - weights + cells * per_token, weights)}",
        )
    kv = cells * per_token
    lines = (
        MemoryLine("weight", "weights", weights),
        *line_if_any("draft", "drafter's weights and compute buffer", drafter),
        MemoryLine("activation", "compute buffer", compute),
        *line_if_any("other", "context of the device", other),
        *line_if_any("window", "KV cache of sliding windows", windowed),
        *line_if_any("state", "states of the slots", states),
        MemoryLine("left", "left free", device - fixed - kv),
    )
    return cells, MemoryBudget(device, device, lines, kv, per_token, per_token, cells)


def _drafter_bytes(drafts: Speculation | None, n_ubatch: int, stages: int) -> int:
    """Weights and compute buffer of a drafter on one of the devices that its layers are split over."""
    if drafts is None or drafts.draft is None:
        return 0
    compute = n_ubatch * (LOGIT_BYTES * drafts.draft.vocab + ACTIVATION_BYTES * 4 * drafts.draft.hidden)
    return drafts.weight_bytes() // stages + compute


def _fewer(request: PoolRequest, besides: int, weights: int) -> str:
    """How many layers would fit, in words; the head is counted as a layer."""
    room = request.device_memory_bytes / (weights + besides)
    layers = int(request.arch.layers * room * 0.97) + 1
    split = any(request.flags.get(key) for key in ("gpu_layers", "cpu_moe", "n_cpu_moe"))
    if request.device_kind != "gpu" or request.pipeline_parallel > 1 or layers < 2 or split:
        return ""
    return f", or layers on the CPU (engine_args.gpu_layers: {layers})"


__all__ = ["MIB", "memory_of"]
