"""LoRA adapters: their memory, what a step reads and computes of them, and what it costs to bring one to the device.

An adapter adds to a linear layer W of n outputs and k inputs the product B (A x), A of R x k and B of n x R (Hu et al. 2021). A
step runs two skinny products a layer for the tokens that name an adapter, a first that shrinks and a second that expands, and
reads the A and B of every adapter that the batch names:

    T = sum over layers ( gemm(t, R, k) + gemm(t, n, R) ) + (adapters - 1) * bytes of an adapter / memory rate
        + adapters copied * bytes / rate of the link to the host + adapters read * bytes / rate of the disk

(a launch for each layer that has adapters where the engine launches its kernels for nothing) with t the tokens that name one, R
the rank that the kernels compute. Copies of one step share the link, so they follow each other, and the step waits for them.
Layers that engines fuse share a launch. Under tensor parallelism A is whole where the layer's outputs are split and split where
its inputs are, B the other way round; with fully sharded adapters both are split, and what was shrunk is gathered. Experts have
no adapters here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine_models.cost.step_time import TableRange
from engine_models.cost.tables import FloatArray, PiecewiseLinear, log_grid
from engine_models.cost.terms import Shard
from engine_models.model.architecture import gemm_shapes, moe_shapes
from engine_models.model.blocks import Architecture
from engine_models.parts.adapters import AdapterLimits
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.records import dataclass

WHERE = "deployment.lora"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Linear layers that adapters may change, by the names of Hugging Face's PEFT."""
RANK = 16
"""Rank of adapters where nothing states it. Kind: assumed (vLLM's default `max_lora_rank`, 2025)."""
PARTS = ("attention", "mlp", "shared_expert", "linear_attention")
VALUE_BYTES = {"auto": 2, "float16": 2, "bfloat16": 2, "float32": 4}
STREAM_BYTES = 1e8
"""Size at which the memory's rate is taken [bytes]: large enough that the launch does not count."""


@dataclass(frozen=True)
class Module:
    """A linear layer with adapters on one rank: outputs, inputs, layers, what is fused of it, values of A and B of rank one."""

    n: int
    k: int
    layers: int
    slices: int
    a_values: int
    b_values: int
    gathers: bool = False

    @property
    def values(self) -> int:
        """Values of A and B for each rank, all layers together."""
        return self.layers * (self.a_values + self.b_values)


@dataclass(frozen=True)
class Adapters:
    """Adapters of one pool, resolved.

    rank : of the adapters; slot_rank : for which a place on the device has room; computed_rank : what the kernels compute.
    limits : how many there may be. value_bytes : of a value. modules : the layers that they change.
    link_bytes_per_s, disk_bytes_per_s : from the host's memory to a device, and from its disk to its memory.
    other_values : values beyond those of `modules` for which a place has room, for each rank.
    all_there : whether the device holds all that there are, from the start.
    always_launched : whether steps that name none launch the kernels too, which then find nothing to do.
    """

    rank: int
    slot_rank: int
    computed_rank: int
    limits: AdapterLimits
    value_bytes: int
    modules: tuple[Module, ...]
    link_bytes_per_s: float
    disk_bytes_per_s: float
    other_values: int = 0
    fully_sharded: bool = False
    all_there: bool = False
    always_launched: bool = False

    def bytes_of(self, rank: int) -> int:
        """Bytes of an adapter of a rank on one device."""
        return self.value_bytes * rank * sum(module.values for module in self.modules)

    @property
    def memory_bytes(self) -> int:
        """What all places take on one device [bytes]."""
        return self.limits.on_device * (self.bytes_of(self.slot_rank) + self.value_bytes * self.slot_rank * self.other_values)

    @property
    def copy_s(self) -> float:
        """Seconds to copy an adapter to the device."""
        return self.bytes_of(self.rank) / self.link_bytes_per_s

    @property
    def read_s(self) -> float:
        """Seconds to read one from the host's disk."""
        return self.bytes_of(self.rank) / self.disk_bytes_per_s


def disk_bytes_per_s() -> float:
    """Rate at which a host reads weights from its disk, as for a server's start."""
    constants = json.loads(Path(__file__).with_name("start_up.json").read_text(encoding="utf-8"))
    return float(constants["weights"]["disk"]["value"])


def modules_of(
    arch: Architecture, tensor_parallel: int, targets: Sequence[str] | None = None, *, fully_sharded: bool = False
) -> tuple[Module, ...]:
    """The linear layers of one rank that adapters change: all but experts, routers, embedding and LM head, or the `targets`."""
    chosen = set(MODULES if targets is None or "all" in targets else targets)
    for name in sorted(chosen - set(MODULES)):
        near = nearest(name, list(MODULES))
        raise InputError(
            f"adapters of `{name}` are not modelled" + (f"; did you mean `{near}`?" if near else ""),
            where=f"{WHERE}.target_modules",
            mend=f"some of {', '.join(MODULES)}",
        )
    attention = next((block for block in arch.attention if block.kind in ("full", "sliding")), None)
    widths = (attention.heads, attention.kv_heads, attention.kv_heads) if attention is not None else (1, 1, 1)
    found = []
    shapes = zip(gemm_shapes(arch, 1), gemm_shapes(arch, tensor_parallel), strict=True)
    for whole, own in shapes:
        if own.per != "token" or own.part not in PARTS:
            continue
        if own.name == "qkv":
            share = [w for w, name in zip(widths, MODULES[:3], strict=True) if name in chosen]
            slices, part = len(share), sum(share) / sum(widths)
        elif own.name.endswith("gate_up"):
            slices = len(chosen & {"gate_proj", "up_proj"})
            part = slices / 2
        elif own.name in ("o", "linear_out") or own.name.endswith("down"):
            slices = int(("down_proj" if own.name.endswith("down") else "o_proj") in chosen)
            part = 1.0
        else:
            slices, part = int(bool(chosen & set(MODULES[:3]))), 1.0
        if not slices:
            continue
        n, tp = round(own.n * part), tensor_parallel
        splits_inputs = own.k < whole.k
        a, b = slices * own.k, n
        if fully_sharded and tp > 1:
            a, b = (a, -(-n // tp)) if splits_inputs else (-(-a // tp), b)
        found.append(Module(n, own.k, own.layers, slices, a, b, gathers=fully_sharded and tp > 1))
    return tuple(found)


def expert_values(
    arch: Architecture,
    tensor_parallel: int,
    expert_parallel: int,
    data_parallel: int,
    *,
    matrices: int = 3,
    fully_sharded: bool = False,
) -> int:
    """Values, for each rank, of A and B for all routed experts of one rank, of so many of gate, up and down."""
    found = 0
    for moe in moe_shapes(arch, tensor_parallel, expert_parallel, data_parallel):
        split = moe.tp if fully_sharded else 1
        number = min(matrices, 3 if moe.gated else 2)
        found += moe.layers * (moe.experts // moe.ep) * number * (moe.hidden // split + moe.intermediate // moe.tp)
    return found


def ranks_of(settings: Mapping[str, Any], rank_limit: int | None) -> tuple[int, int | None]:
    """The rank of adapters and the largest that is served; InputError for one above it."""
    slot_rank = settings.get("max_lora_rank", rank_limit)
    rank = int(settings.get("rank", slot_rank or RANK))
    if slot_rank is not None and rank > slot_rank:
        raise InputError(
            f"adapters of rank {rank} are above max_lora_rank {slot_rank}: the engine refuses them",
            where=f"{WHERE}.rank",
            mend=f"set max_lora_rank to at least {rank}, or give the adapters' own rank",
        )
    return rank, slot_rank


def adapters_of(
    settings: Mapping[str, Any],
    arch: Architecture,
    *,
    tensor_parallel: int,
    link_bytes_per_s: float,
    on_device: int,
    pads_rank: bool,
    rank_limit: int | None = None,
    on_host: int | None = None,
    counts_model: bool = False,
    other_values: int = 0,
) -> Adapters:
    """Resolve a pool's `lora` settings.

    on_device, on_host, rank_limit : the engine's own numbers where the settings have none. pads_rank : whether kernels compute
    the rank of a place, not that of its adapter. counts_model, other_values : as of `AdapterLimits` and `Adapters`.

    Raises InputError for what is out of range.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    rank, slot_rank = ranks_of(given, rank_limit)
    slot_rank = int(slot_rank or rank)
    places = int(given.get("max_loras", on_device))
    kept = given.get("max_cpu_loras", on_host)
    if kept is not None and kept < places:
        raise InputError(
            f"max_cpu_loras {kept} is less than the {places} adapters on the device, which the host's memory holds too",
            where=f"{WHERE}.max_cpu_loras",
            mend=f"give at least {places}, or leave it out",
        )
    link = float(given.get("bytes_per_s", link_bytes_per_s))
    if link <= 0:
        raise InputError(
            "the rate of a copy from the host to this device is unknown",
            where=f"{WHERE}.bytes_per_s",
            mend="give it, such as lora: {bytes_per_s: 25.0e+9}",
        )
    sharded = bool(given.get("fully_sharded_loras", False))
    modules = modules_of(arch, tensor_parallel, given.get("target_modules"), fully_sharded=sharded)
    if not modules:
        raise InputError(f"{arch.name} has none of the target modules", where=f"{WHERE}.target_modules", mend="leave it out")
    return Adapters(
        rank,
        slot_rank,
        slot_rank if pads_rank else rank,
        AdapterLimits(places, kept, counts_model),
        VALUE_BYTES[str(given.get("lora_dtype", "auto"))],
        modules,
        link,
        float(given.get("disk_bytes_per_s", disk_bytes_per_s())),
        other_values,
        sharded,
    )


class AdapterTimes:
    """What batches do with adapters on one rank [s], tabulated."""

    def __init__(self, adapters: Adapters, shard: Shard, up_to: TableRange) -> None:
        ops, rank, tp = shard.ops, adapters.computed_rank, shard.parallel.tensor
        grid = log_grid(max(up_to.step_tokens, up_to.rows), 6)
        total = np.zeros(len(grid))
        for module in adapters.modules:
            shrunk = module.slices * rank
            each = ops.gemm_s("bf16", grid, shrunk, module.k) + ops.gemm_s("bf16", grid, module.n, rank)
            if module.gathers:
                each = each + ops.all_gather_s(tp, adapters.value_bytes * grid * shrunk)
            total = total + module.layers * each
        whole = np.maximum.accumulate(total)
        tokens = np.arange(int(grid[-1]) + 1, dtype=np.float64)
        self._tokens_s = PiecewiseLinear(grid.astype(float), whole).over(tokens)
        streamed = ops.elementwise_s(np.array([STREAM_BYTES, 2 * STREAM_BYTES]))
        self._next_s = adapters.bytes_of(rank) * float(streamed[1] - streamed[0]) / STREAM_BYTES
        self._copy_s, self._read_s = adapters.copy_s, adapters.read_s
        launches = sum(module.layers * module.slices for module in adapters.modules) if adapters.always_launched else 0
        self._idle_s = launches * float(ops.elementwise_s(np.array([1.0]))[0])

    def __call__(self, batch: Batch) -> float:
        """Seconds that a batch takes for them."""
        use = batch.adapters
        if use is None:
            return self._idle_s
        more_s = float(self._tokens_s[use.tokens]) + (use.adapters - 1) * self._next_s
        return more_s + use.copied * self._copy_s + use.read * self._read_s


class WithAdapters(StepCost):
    """Step times with what batches do with adapters. All times in seconds."""

    def __init__(self, inner: StepCost, more_s: AdapterTimes) -> None:
        self._inner, self._more_s = inner, more_s

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """As of the base; the part of prefill rows goes by their tokens."""
        device_s, prefills_s = self._inner.step_s(batches)
        self.launch_s, self.launch_wait_s = self._inner.launch_s, self._inner.launch_wait_s
        self.last_s = self._inner.last_s
        batch = batches[0]
        more_s = self._more_s(batch)
        if not more_s:
            return device_s, prefills_s
        share = (batch.tokens - batch.decode_tokens) / batch.tokens
        return device_s + more_s, [prefills_s[0] + more_s * share]

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """As of the base."""
        return self._inner.run_s(shapes, steps) + self._more_s(shapes[0])

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """As of the base."""
        more_s = self._more_s(shapes[0])
        return [step_s + more_s for step_s in self._inner.few_s(shapes, steps)]

    def host_s(self, batch: Batch) -> float:
        """As of the base."""
        return self._inner.host_s(batch)


def summary_note(adapters: Adapters) -> str:
    """One line on what the adapters take."""
    limits = adapters.limits
    kept = "the others in the host's memory"
    if limits.on_host is not None:
        kept = f"{limits.on_host} in the host's memory, the others on its disk"
    places = (
        f"LoRA: {limits.on_device} places of rank {adapters.slot_rank} on the device ({adapters.memory_bytes / 1e9:.2f} GB), "
    )
    each = f"one of rank {adapters.rank} has {adapters.bytes_of(adapters.rank) / 1e6:.1f} MB a device"
    if adapters.all_there:
        how = f"{places}which hold all adapters from the start; {each}"
    else:
        how = (
            f"{places}{kept}; {each}, and takes {1e3 * adapters.copy_s:.2g} ms to copy at "
            f"{adapters.link_bytes_per_s / 1e9:g} GB/s, for which its step waits"
        )
    return (
        f"{how}; its products are priced as skinny matrix products of the device's tables (assumed: the engine's own were not "
        "measured)"
    )


__all__ = [
    "MODULES",
    "AdapterTimes",
    "Adapters",
    "WithAdapters",
    "adapters_of",
    "expert_values",
    "modules_of",
    "ranks_of",
    "summary_note",
]
