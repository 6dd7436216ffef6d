"""What of a model a llama-server's devices hold, and what the CPU beside them computes: its last layers, or experts."""

from __future__ import annotations

from dataclasses import replace

from engine_models.cost.host_layers import HostLayers
from engine_models.declaration import PoolRequest
from engine_models.model.architecture import (
    Architecture,
    expert_bytes,
    in_pieces,
    kv_bytes_per_token,
    weight_bytes_per_rank,
)
from hardware_profiles.device import Device, load_device
from hardware_profiles.errors import InfeasibleError, InputError
from hardware_profiles.kernels import operations_of
from hardware_profiles.records import dataclass

COPY_BYTES_PER_S = 10e9
"""Rate at which a state is copied between the device's memory and the host's, tensor by tensor from pageable memory [byte/s]
(assumed, 2026-11: a single core's copy, and PCIe from pageable memory, reach 5 to 20 GB/s)."""
FETCHED_TOKENS = 32
"""Tokens of a sub-batch from which a GPU computes layers of the CPU's, with their weights fetched (datasheet: `op_offload`,
`ggml/src/ggml-cuda/ggml-cuda.cu`)."""
FETCH_SHARE = 0.8
"""Share of the link to the host at which weights are fetched (fitted, 2026-11: the run named at `host_layers.DISTINCT`)."""
HOSTS = ("core-i9-13900k", "xeon-8480")
"""The CPU beside a card for desktops and workstations, and beside any other GPU, where none is named (assumed)."""


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

    @classmethod
    def of(cls, request: PoolRequest) -> Split:
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
            return cls(arch, arch, weight_bytes_per_rank(arch, weights, 1, request.pipeline_parallel))
        key = "gpu_layers" if on_device is not None else "cpu_moe" if flags.get("cpu_moe") else "n_cpu_moe"
        where, without = f"deployment.engine_args.{key}", f"leave {key} out"
        if on_device is None:
            few = f"experts of {of_experts} layers of {arch.name} on the CPU"
        else:
            few = (
                f"{on_device} of the {arch.layers + 1} layers of {arch.name} (its head counts as one) on the device and the rest "
                "on the CPU"
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
            return cls(held, held, weight_bytes_per_rank(held, weights), on_host)
        kept = weight_bytes_per_rank(arch, weights) - expert_bytes(on_host, weights)
        return cls(held, arch, kept, on_host, experts_only=True)

    def check_host(self, request: PoolRequest, cells: int) -> None:
        """InfeasibleError where the host's memory does not hold what stays there, with the cache of its layers."""
        on_host = self.on_host
        if on_host is None:
            return
        host = host_of(request)
        if self.experts_only:
            needed = expert_bytes(on_host, request.formats.weights)
        else:
            needed = weight_bytes_per_rank(on_host, request.formats.weights)
            needed += cells * kv_bytes_per_token(on_host, request.formats.kv_cache)
        if needed > host.memory_bytes.value:
            raise InfeasibleError(
                f"what stays on the CPU of {request.arch.name} takes {needed / 1e9:.0f} GB of the host's memory; "
                f"{host.title} has {host.memory_bytes.value / 1e9:.0f} GB",
                where="deployment.engine_args",
                mend="more layers on the GPU, a smaller number format, or another host_cpu (`capacity-plan list hardware`)",
            )

    def host_layers(self, request: PoolRequest, kernels: str) -> HostLayers | None:
        """What the CPU computes, with these kernels; None for nothing."""
        if self.on_host is None:
            return None
        flags, weights = request.flags, request.formats.weights
        experts = expert_bytes(self.on_host, weights)
        return HostLayers(
            self.on_host,
            operations_of(host_of(request), kernels),
            max(int(flags.get("threads", -1)), 0),
            FETCHED_TOKENS if flags.get("op_offload", True) else None,
            0.0 if self.experts_only else weight_bytes_per_rank(self.on_host, weights) - experts,
            experts,
            _fetch_bytes_per_s(request),
            self.experts_only,
        )

    def notes(self, request: PoolRequest) -> tuple[str, ...]:
        """What is assumed of the CPU."""
        if self.on_host is None:
            return ()
        chosen = "" if request.flags.get("host_cpu") else " (assumed; name another as `host_cpu`)"
        fetched = (
            f"; of sub-batches of {FETCHED_TOKENS} tokens and more the GPU computes them too"
            f"{'' if self.experts_only else ', but for attention'}, with weights fetched at "
            f"{_fetch_bytes_per_s(request) / 1e9:.0f} GB/s"
        )
        return (
            f"{'the experts of ' if self.experts_only else ''}{self.on_host.layers} of {request.arch.layers} layers "
            f"stay on the CPU, {host_of(request).title}{chosen}{fetched if request.flags.get('op_offload', True) else ''}",
        )


def _fetch_bytes_per_s(request: PoolRequest) -> float:
    return FETCH_SHARE * request.host_link_bytes_per_s or COPY_BYTES_PER_S


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


__all__ = ["COPY_BYTES_PER_S", "Split", "host_of"]
