"""What several engines refuse of a pool in the same words, with an InputError; each says its own part of the cause. And what they
say of flags that a part of them does not read."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from engine_models.declaration import PoolRequest
from hardware_profiles.device import load_device
from hardware_profiles.errors import InputError

ELSEWHERE = "use another engine (`capacity-plan list engines`)"
LEAVE_OUT = f"leave it out, or {ELSEWHERE}"
"""What to do about it."""


def only_on_nvidia(request: PoolRequest, runs: str) -> None:
    """GPUs of other makers; `runs` says where the engine runs, such as "TGI runs on NVIDIA GPUs"."""
    if request.device_vendor != "nvidia":
        raise InputError(
            f"{runs}, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an NVIDIA GPU, or another engine (`capacity-plan list engines`)",
        )
    no_pascal(request, runs.partition(" ")[0])


def no_pascal(request: PoolRequest, title: str) -> None:
    """Refuse GPUs before Volta: no release of these servers has kernels for them, or nobody measured their times."""
    if load_device(request.device_name).architecture.startswith("pascal"):
        raise InputError(
            f"{title} is simulated on NVIDIA's GPUs from Volta on, not on {request.device_name}",
            where="deployment.hardware",
            mend="use an engine for single users, or another device (`capacity-plan list engines`, `list hardware`)",
        )


def no_layers(request: PoolRequest, kinds: Collection[str], cause: str, mend: str = ELSEWHERE) -> None:
    """Models with layers of these kinds of attention (`AttentionBlock.kind`), or "sparse" ones."""
    if any(block.kind in kinds or ("sparse" in kinds and block.sparse) for block in request.arch.attention):
        raise InputError(cause, where="model", mend=mend)


def no_expert_parallelism(request: PoolRequest, cause: str, mend: str = LEAVE_OUT) -> None:
    """Experts that are split over devices by their number."""
    if request.expert_parallel > 1:
        raise InputError(cause, where="deployment.expert_parallel", mend=mend)


def only_16_bit_kv(request: PoolRequest, title: str) -> None:
    """Keys and values that are wider or narrower."""
    if request.formats.kv_cache.bits_per_weight != 16:
        raise InputError(
            f"{title} keeps the KV cache in 16 bits, not in {request.formats.kv_cache.name}",
            where="deployment.kv_cache",
            mend=LEAVE_OUT,
        )


def only_weights_in(request: PoolRequest, names: Collection[str], cause: str, otherwise: str = "") -> None:
    """Weights in other formats than these; `otherwise` is what else would do."""
    if request.formats.weights.name not in names:
        raise InputError(cause, where="deployment.weights", mend=f"use one of {', '.join(names)}{otherwise}")


def none_of(found: Mapping[str, bool], cause: str, where: str, mend: str) -> None:
    """The first that is there of what is `found`; `{}` in the cause stands for its words."""
    for words in (words for words, there in found.items() if there):
        raise InputError(cause.format(words), where=where, mend=mend)


def no_pools_with(found: Mapping[str, bool]) -> None:
    """Pools with roles beside what is found."""
    none_of(
        found,
        "prefill and decode pools with {} are not modelled yet",
        where="deployment.role",
        mend="leave it out, or use pools of role: mixed",
    )


def without_effect(given: Collection[str], names: Collection[str], reader: str, here: str) -> tuple[str, ...]:
    """A warning where flags of `names` are given: `reader` alone reads them, and `here` serves the pool."""
    idle = [name for name in names if name in given]
    return (f"{', '.join(idle)}: read by {reader} alone, without effect on {here}",) if idle else ()
