"""What MLX LM serves, and the memory of a pool."""

from __future__ import annotations

from engine_models.cost.drafting import Speculation
from engine_models.declaration import MemoryBudget, MemoryLine, PoolRequest, line_if_any
from engine_models.model.activations import activation_bytes
from engine_models.model.architecture import kv_groups, state_bytes_per_sequence, weight_bytes_per_rank
from engine_models.refusals import no_layers
from hardware_profiles.errors import InfeasibleError, InputError


def refuse(request: PoolRequest) -> None:
    """Raise InputError for what it does not serve."""
    arch = request.arch
    if request.tensor_parallel * request.expert_parallel > 1:
        raise InputError(
            "MLX LM over several machines is not simulated",
            where="deployment.tensor_parallel",
            mend="use one device, larger if need be, or another engine (`capacity-plan list engines`)",
        )
    kv = request.formats.kv_cache
    if kv.bits_per_weight < 16 and kv.family != "mlx":
        raise InputError(
            f"MLX LM keeps no KV cache in {kv.name}",
            where="deployment.kv_cache",
            mend="leave it out, or use mlx_8bit or mlx_4bit (`--kv-bits`)",
        )
    if kv.family and any(block.window_tokens or block.kind != "full" for block in arch.attention):
        raise InputError(
            f"MLX LM quantizes no cache with windows, latents or states, as {arch.name} has",
            where="deployment.kv_cache",
            mend="leave it out",
        )
    no_layers(request, ("sparse",), f"MLX LM's sparse attention, which {arch.name} needs, is not simulated")


def memory_of(
    request: PoolRequest, step_tokens: int, sequences: int, drafts: Speculation | None = None
) -> MemoryBudget:
    """KV tokens of the layers that attend to everything, in what weights, the largest call, windows and states leave."""
    arch, device = request.arch, request.device_memory_bytes
    weights = weight_bytes_per_rank(arch, request.formats.weights)
    largest = activation_bytes(arch, step_tokens, 1, 1)
    groups = kv_groups(arch, request.formats.kv_cache)
    whole = [group for group in groups if not group.window_tokens]
    windowed = sum(group.window_tokens * group.bytes_per_token_per_rank for group in groups)
    fixed = sequences * (windowed + state_bytes_per_sequence(arch)) if whole else 0
    per_token = sum(group.bytes_per_token_per_rank for group in whole or groups)
    if request.formats.kv_cache.family:  # up to a length caches stay in 16 bits
        start = int(request.flags.get("quantized_kv_start", 5000))
        narrow = request.formats.kv_cache.bits_per_weight
        fixed += int(sequences * start * per_token * (16 / narrow - 1))
    drafter = drafts.weight_bytes() if drafts is not None else 0
    per_token += drafts.kv_bytes_per_token() if drafts is not None else 0
    kv = device - weights - drafter - largest - fixed
    if kv < per_token:
        besides = (largest + fixed + drafter) / 1e9
        raise InfeasibleError(
            f"{arch.name} does not fit: weights {weights / 1e9:.1f} GB + {besides:.1f} GB besides (a call of {step_tokens:,} "
            f"prompt tokens), of {device / 1e9:.1f} GB that the GPU may use",
            where="deployment",
            mend="a smaller number format (weights: mlx_4bit), a device with more memory, or a smaller "
            "engine_args.prefill_step_size or prompt_concurrency",
        )
    lines = (
        MemoryLine("weight", "weights", weights),
        *line_if_any("draft", "weights of the drafter", drafter),
        MemoryLine("activation", "activations of the largest call", largest),
        MemoryLine("other", "windows, states and 16-bit beginnings of rows and copies", fixed),
    )
    return MemoryBudget(device, device, lines, kv, per_token, int(per_token), kv // int(per_token))


__all__ = ["memory_of", "refuse"]
