"""Times of single GPU kernels: a physical base times a fitted, smooth residual.

Every kernel time is ``base(shape) * exp(residual(shape))``. The base is a roofline (arithmetic and memory
joined by a root of squares, plus a launch latency) whose few parameters stand in the readable ``.json``
beside the arrays. The residual is a Gaussian-process mean over the *shape* (for a matrix product: log n, log
k; for attention: heads, group size, head width, window), one value for each point of a grid of *load* (rows
m, or batch and context), interpolated linearly in the logarithm of the load. Outside the fitted shapes and
loads the residual keeps its edge value, so the physics carries the extrapolation.

Two conditions are told apart. ``bench`` reproduces a micro-benchmark as it was taken: the same buffers
replayed, so small weights and short contexts sit in the level-2 cache. ``serving`` is what a layer pays
inside a model: other layers evict the cache, so no kernel is faster than reading its weights and KV from
device memory.

The arrays are read when first needed; importing this module costs numpy only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, replace
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.device import load_device, stacked_blackwell
from hardware_profiles.errors import InputError, nearest
from hardware_profiles.expert_ranks import EVEN, Deal, loaded_rank
from hardware_profiles.kernel_physics import (
    CONVOLUTION_STEP_VALUES,
    CONVOLUTION_TOKEN_VALUES,
    DEFAULT_PARAMETERS,
    MARLIN_DEPTH,
    MARLIN_WIDTH,
    SPARSE_KINDS,
    STANDS_FOR,
    WEIGHT_BYTES,
    Array,
    DevicePeaks,
    as_array,
    canonical_format,
    causal_pairs,
    collective_base_s,
    convolution_base_s,
    decode_base_s,
    decode_bytes,
    gemm_base_s,
    gemm_bytes,
    latent_bytes,
    marlin_tiles,
    message_base_s,
    mla_base_s,
    moe_base_s,
    moe_rows_s,
    moe_weight_bytes,
    prefill_base_s,
    prompt_of_chunk,
    recurrence_context_base_s,
    recurrence_decode_base_s,
    recurrent_parameters,
    sparse_base_s,
    streaming_base_s,
)
from hardware_profiles.kernel_surface import (
    KERNEL_GAP,
    SET_ASIDE,
    Surface,
    attention_shape,
    convolution_shape,
    exchange_shape,
    gemm_shape,
    likely_kernel,
    moe_load,
    moe_shape,
    recurrence_shape,
    served_features,
    sparse_context_shape,
    sparse_decode_shape,
    surface_of,
)
from hardware_profiles.network import Network
from hardware_profiles.ops import Ops, Recurrence, RoutedLayer, SparseLayer
from hardware_profiles.records import dataclass
from hardware_profiles.routed_experts import (
    EXCHANGING_SMS,
    GRACE,
    GRACE_RANKS,
    GRACE_WAIT_S,
    TIMED_RANKS,
    WAIT_S,
    received_share,
    routed_experts_s,
    shares_of,
)
from hardware_profiles.static_scales import pass_s, scale_pass
from hardware_profiles.sustained import sustained_share

Condition = Literal["bench", "serving"]

#: Words in the names of backends of experts that look up their tiles by the experts of a rank and their width.
TILED = ("triton", "vllm_fused_moe")

KERNELS_DIR = Path(__file__).parent / "kernels"

#: Size of KV, as a share of the L2, at which a replayed benchmark has lost half of what the L2 gave it.
#: kind: assumed, 2026-11: rows below twice the L2 are no measure of memory. Compared with decode rows on RTX PRO
#: 6000 (LLMServingSim 5daddb21), whose layers evict each other's KV; not checked on other devices.
WARM_SHARE = 2.0

#: A measured load that costs this many times more than a larger one is a spike, not the kernel (serving only).
#: kind: assumed, 2026-11; tile choices move most times by less, disturbed rows by 1.5 to 4.
SPIKE = 1.15

#: The same for expert layers, whose grouped kernels see every size of group at once and so have no tile steps.
#: kind: assumed, 2026-11.
MOE_SPIKE = 1.05

#: A table whose launch floor is this many times the least of the same GPU, operation and format was bound by the
#: host that launched it, not by the device (serving only). unit: 1, kind: assumed, 2026-11; floors of tables taken in
#: CUDA graphs agree within 1.9 for vLLM and SGLang, eager ones lie at 10 to 77, SGLang's fp8_block on B200 at 2.35.
EAGER_RATIO = 2.0

#: So many times such a floor a layer takes that is the device's work in that table, whatever the host. What takes less may be the
#: host's, and is that table's time or the quickest table's, whichever is less. unit: 1, kind: assumed, 2026-11; SGLang's prompts
#: of sparse attention stay at their floor up to 1,024 to 2,048 tokens, and its fit knows the device's part from twice that time.
HOST_HIDDEN = 2.0

#: Format whose expert tables lend their launch floor to Marlin's kernels in another weight-only format, where they are
#: chosen for a model that was not measured on them: floors grow with the experts, and vLLM's tables of Marlin are of 384
#: experts in int4 (50 us on Hopper) and of 896 in mxfp4 (76 us). kind: assumed, 2026-11; source: names of the backends in
#: the tables (aiconfigurator 095f58a5); compared with, not tuned to, 96 runs of gpt-oss-120b (InferenceX).
MARLIN_FLOOR_FORMAT = "int4_wo"

#: Least share of a whole layer of sparse attention that is not its projections. unit: 1, kind: assumed, 2026-11: tables hold 0.4
#: and more; a smaller rest is the difference of two tables.
LEAST_BESIDE = 0.2

#: Devices whose tables lack experts in four bits -> one of the same chip whose tables have them: vLLM's Marlin's, SGLang's
#: TensorRT-LLM's kernels (without them the physics of 16 bits alone remained: a third of B200's time). kind: assumed, 2026-11.
SISTERS: Mapping[str, str] = dict.fromkeys(("gb200-186gb", "b300-sxm-288gb", "gb300-288gb"), "b200-sxm-180gb")

#: Formats of experts that differ by their scales alone, in the same kernels.
FP8_SCALES = ("fp8", "fp8_block")

#: Frameworks that run Triton's kernels on decoding rows of latent attention where the hardware has no others (Ampere, Ada,
#: Blackwell without HBM), and lend each other their times. TensorRT-LLM's kernel there gives a sequence one block: 32,768
#: tokens take 2.8 ms on RTX PRO 6000 where SGLang's take 0.09. kind: datasheet (vLLM `platforms/cuda.py`, SGLang
#: `server_args.py`), 2026-11.
TRITON_LATENT = ("vllm", "sglang")

SHARED_SUMS = "vllm"
"""Framework whose table holds the all-reduce that others took over from it and had before kernels of their own."""

#: Variants of recurrences whose convolutions stand for those that were not measured. kind: assumed, 2026-11.
CONVOLUTION_KIN = ("gdn", "mamba2")

#: A prompt table that reaches this share of the best efficiency of its GPU computed the absorbed form: in arithmetic
#: of the expanded one (2 (192 + 128) a query, key and head) that form (2 (576 + 512)) reaches 0.29 at equal speed;
#: the geometric mean of 0.29 and 1. unit: 1, kind: datasheet (DeepSeek-V3 config.json, 2024), by arithmetic.
ABSORBED_SHARE = math.sqrt((192 + 128) / (576 + 512))


@dataclass(frozen=True)
class KernelModel(Ops):
    """Kernel times of one device under one framework. Build it with :func:`load_kernel_model`.

    provenance : where the numbers come from (empty ``sources`` means physics only).
    domain : fitted ranges per ``op/format``.
    held_out_error : mean absolute percentage error on shapes kept out of the fit, per ``op/format``.
    lender_peaks : rates of the device whose tables these are, where they are borrowed: what is a spike is told there.
    power_share : of the share of the peak that the lender sustains, what a lower power limit leaves of it.
    network : between nodes, where the devices that work together stand in several.
    release : of the framework, by which its collectives differ; "" for the oldest that was timed.
    attention_of_prompts, attention_of_decodes : backends of plain attention by their names in the tables; "" for the likely one.
    """

    device: str
    framework: str
    peaks: DevicePeaks
    provenance: Mapping[str, Any]
    groups: Mapping[str, Mapping[str, Any]]
    path: Path | None = None
    links: Mapping[str, Any] = field(default_factory=dict)
    lender_peaks: DevicePeaks | None = None
    power_share: float = 1.0
    network: Network | None = None
    release: str = ""
    attention_of_prompts: str = ""
    attention_of_decodes: str = ""
    _surfaces: dict[str, Surface] = field(default_factory=dict, compare=False, repr=False)
    _siblings: dict[str, KernelModel] = field(default_factory=dict, compare=False, repr=False)
    _backends: dict[tuple[str, tuple[float, ...]], str] = field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def domain(self) -> Mapping[str, Any]:
        """Fitted ranges per group."""
        return {key: group.get("domain", {}) for key, group in self.groups.items()}

    @property
    def held_out_error(self) -> Mapping[str, float]:
        """Mean absolute percentage error on unseen shapes, per group [%]."""
        return {k: g["held_out_mape_pct"] for k, g in self.groups.items() if "held_out_mape_pct" in g}

    @cached_property
    def _links(self) -> dict[str, dict[int, Mapping[str, Any]]]:
        """Curves inside one node by ``op|library|mode`` and GPU count; 2-byte numbers where both widths are
        there."""
        found: dict[str, dict[int, Mapping[str, Any]]] = {}
        for key, group in self.links.items():
            for name, curve in group["curves"].items() if key.startswith("collective/") else ():
                lib, mode, gpus, nodes, topology, dtype = name.split("/")
                if nodes == "1" and topology == "intra_node" and dtype != "int8":
                    found.setdefault(f"{key[11:]}|{lib}|{mode}", {})[int(gpus)] = curve
        return found

    @cached_property
    def _own_collectives(self) -> str:
        """The framework's library of collectives in this release."""
        libraries = {name.split("/")[0] for key, group in self.links.items() for name in group["curves"] if "collective" in key}
        return library_of(self.framework, self.release, libraries)

    @property
    def _tabled(self) -> DevicePeaks:
        """Rates of the device whose tables these are."""
        return self.lender_peaks or self.peaks

    # -- parts

    def surface(self, key: str) -> Surface | None:
        """Residual surface of a group, read from the archive on first use; None without measurements."""
        if key in self._surfaces:
            return self._surfaces[key]
        if self.path is None or not self.groups.get(key, {}).get("surface"):
            return None
        name, data = key.replace("/", "-"), _archive(self.path)
        part = {f: data[f"{name}.{f}"] for f in _FIELDS if f"{name}.{f}" in data}
        self._surfaces[key] = surface_of(part)
        return self._surfaces[key]

    def _group(self, op: str, *formats: str) -> tuple[str, Mapping[str, float]]:
        """Key and parameters of the first of `formats` with measurements, else the physics of the nearest
        kin."""
        for fmt in formats:
            group = self.groups.get(f"{op}/{fmt}")
            if group is not None:
                return f"{op}/{fmt}", group["parameters"]
        kin = next((g for k, g in sorted(self.groups.items()) if k.startswith(f"{op}/")), None)
        return "", kin["parameters"] if kin is not None else DEFAULT_PARAMETERS[op]

    def _alike(self, fmt: str) -> tuple[str, ...]:
        """Formats whose products stand for those of `fmt` where only theirs were measured: as many bytes, the same peak,
        activations quantised alike (8-bit integers by 8-bit floats; those of :data:`STANDS_FOR` by their own bytes)."""
        alike = fmt == "sq" and self.peaks.rate("fp8") == self.peaks.rate("sq")
        return ("fp8",) if alike else STANDS_FOR.get(fmt, ())

    def _backend(
        self, key: str, surface: Surface, shape: tuple[float, ...], named: str | None = None
    ) -> tuple[tuple[float, ...], str | None]:
        """The shape with the number of its backend, and its name where the group has several: the likely one, or the one
        `named` where that is of another kind."""
        kernels = self.groups[key].get("kernels")
        if not kernels:
            return shape, None
        names = sorted(kernels)
        name = self._backends.get((key, shape))
        if name is None:
            measured = served_features(surface.features, names)
            name = names[likely_kernel(key.partition("/")[0], measured, shape)]
            self._backends[key, shape] = name
        if named is not None and named in kernels and _backend_kind(named) != _backend_kind(name):
            name = named
        return (*shape[:-1], KERNEL_GAP * names.index(name)), name

    def with_attention(self, prompts: str, decodes: str) -> KernelModel:
        """See the base."""
        return replace(self, attention_of_prompts=prompts, attention_of_decodes=decodes)

    def times_attention(self, backend: str, head_dim: int) -> bool:
        """See the base."""
        if "/" in backend:
            return self._attention_lender(backend, head_dim) is not None
        found = (key for key in self.groups if key.startswith("attention_decode/"))
        surfaces = ((key, self.surface(key)) for key in found)
        return any(surface is not None and self._timed(key, surface, backend, head_dim) for key, surface in surfaces)

    def _attention_lender(self, backend: str, head_dim: int) -> KernelModel | None:
        """Whose tables a backend with a framework before it (``sglang/triton``) means; None where they hold no heads so wide."""
        framework, _, own = backend.rpartition("/")
        if not framework:
            return None
        lender = self._sibling(framework)
        return lender.with_attention(own, own) if lender.times_attention(own, head_dim) else None

    def _timed(self, key: str, surface: Surface, backend: str, head_dim: int) -> bool:
        """Whether a group has rows of plain attention by a backend, of heads so wide, with or without a window."""
        names = sorted(self.groups[key].get("kernels") or ())
        if backend not in names:
            return False
        like = np.array(attention_shape(1.0, 1.0, head_dim, 0.0, names.index(backend)))
        same = np.isclose(surface.features, like)[:, [2, 7]]
        return bool(same.all(axis=1).any())

    def _query_format(self, fmt: str, kv_fmt: str, head_dim: int) -> str:
        """Format that prompts' queries are in: a backend that was timed over a narrow cache with queries as narrow alone takes no
        others (FlashAttention 3 and TensorRT-LLM's kernel, as SGLang calls them)."""

        def timed(queries: str) -> bool:
            key = f"attention_context/{queries}/{kv_fmt}"
            surface = self.surface(key) if key in self.groups else None
            return surface is not None and self._timed(key, surface, self.attention_of_prompts, head_dim)

        return kv_fmt if self.attention_of_prompts and kv_fmt != fmt and not timed(fmt) and timed(kv_fmt) else fmt

    def _attention(self, key: str, surface: Surface, layer: tuple[float, float, int, int], backend: str) -> tuple[float, ...]:
        """Features of an attention layer (heads, KV heads, their width, window) on the backend asked for, where it was timed
        with heads so wide; else on the likely one. Windows that it was not timed with are those of its own narrower heads: which
        backend a window was timed with says what model it was timed for."""
        heads, kv_heads, head_dim, window_tokens = layer
        named = backend if backend and self._timed(key, surface, backend, head_dim) else None
        shape, _ = self._backend(key, surface, attention_shape(heads, kv_heads, head_dim, window_tokens), named)
        return shape

    def expert_backend(self, fmt: str, word: str) -> str | None:
        """Name in the tables of the backend of expert layers that an engine calls `word` (``marlin``).

        None where the tables of the format hold no such backend but those of :data:`SET_ASIDE`, or one backend only. A word with
        a framework before it (``trtllm/cutlass``) means that framework's tables, whose one backend is then the one meant.
        """
        framework, _, own = word.rpartition("/")
        if framework:
            lender = self._sibling(framework)
            one = lender.groups.get(f"moe/{canonical_format(fmt)}", {"kernels": ()}).get("kernels") is None
            lent = own if one else lender.expert_backend(fmt, own)
            return f"{framework}/{lent}" if lent else None
        kernels = self.groups.get(f"moe/{canonical_format(fmt)}", {}).get("kernels", {})
        usual = [name for name in sorted(kernels) if not name.endswith(tuple(SET_ASIDE.values()))]
        by_name = [name for name in sorted(kernels) if name.endswith(SET_ASIDE["by_name"])]
        return next((name for name in (*usual, *by_name) if f"_{word}_" in f"_{name}_"), None)

    def _marlin_elsewhere(self, fmt: str) -> KernelModel | None:
        """A table of Marlin's kernels on this GPU, for experts of four bits that this framework's tables lack.

        vLLM and SGLang have one code of it, and the formats differ by their scales: mxfp4 by three, nvfp4, which it takes where
        the device has no such arithmetic, by six per cent of int4's bytes.
        """
        if self.framework not in ("vllm", "sglang"):
            return None
        if fmt in ("nvfp4", "nvfp4a16") and self.peaks.rate(fmt) <= self.peaks.rate("bfloat16"):
            tables: tuple[KernelModel, ...] = (self, *self._others)
        elif fmt in (MARLIN_FLOOR_FORMAT, "w4a16_mxfp4"):
            tables = (*self._others, *filter(None, [self._sisters.get("vllm")]))
        else:
            return None
        return next((m for m in tables if f"moe/{MARLIN_FLOOR_FORMAT}" in m.groups), None)

    @cached_property
    def _sisters(self) -> Mapping[str, KernelModel]:
        """Tables by framework of the device of :data:`SISTERS` over this one's rates, where it has one."""
        name = SISTERS.get(self.path.parent.name) if self.path is not None else None
        if self.path is None or name is None:
            return {}
        found = (_load(name, framework, self.path.parent.parent) for framework in ("vllm", "sglang"))
        return {
            m.framework: KernelModel(
                self.device, m.framework, self.peaks, m.provenance, m.groups, m.path, self.links, m.peaks, self.power_share
            )
            for m in found
        }

    def _same_elsewhere(self, fmt: str, word: str) -> tuple[KernelModel, str, str | None] | None:
        """Whose table, in which format, by which name (None: its one backend) holds experts on the kernels of a word, where this
        framework's lacks the format: in FP8 another framework's of this GPU, or the other scales of the same kernels; in int4
        SGLang's of a sister, which holds TensorRT-LLM's kernels."""
        if fmt == MARLIN_FLOOR_FORMAT and (self.framework, word) == ("sglang", "trtllm"):
            sister = self._sisters.get(self.framework)
            return (sister, fmt, None) if sister is not None and f"moe/{fmt}" in sister.groups else None
        if fmt not in FP8_SCALES or self.peaks.rate("fp8") <= self.peaks.rate("bfloat16"):
            return None
        other = next(name for name in FP8_SCALES if name != fmt)
        for owner, stored in (*((m, fmt) for m in self._others), (self, other), *((m, other) for m in self._others)):
            name = owner.expert_backend(stored, word)
            if name is not None:
                return owner, stored, name
        return None

    def lent_experts(self, fmt: str, word: str | None = None) -> tuple[str, float] | None:
        """See the base: Marlin's, timed in four bits with another scale or on another device, and FP8's with other scales."""
        name, plain = canonical_format(fmt), (word or "").rpartition("/")[2]
        if f"moe/{name}" in self.groups:
            return None
        elsewhere = self._same_elsewhere(name, plain) if plain else None
        lent = elsewhere[0] if elsewhere is not None else self._marlin_elsewhere(name)
        if lent is None or lent.path is None or self.path is None:
            return None
        whose, stored = ("those", elsewhere[1]) if elsewhere is not None else ("Marlin's", MARLIN_FLOOR_FORMAT)
        device = lent.path.parent.name
        where = f" on {device}" if device != self.path.parent.name else ""
        return f"{whose} in {stored} of {lent.framework}'s table{where}", lent.held_out_error[f"moe/{stored}"]

    def _chosen_floor(self, backend: str, p: Mapping[str, float]) -> Mapping[str, float]:
        """Parameters of a backend chosen for expert layers unlike those that it was measured on, in serving.

        Its launch floor counts the routing and alignment of its own model's experts: Marlin takes that of
        :data:`MARLIN_FLOOR_FORMAT` where it is less.
        """
        lender = self.groups.get(f"moe/{MARLIN_FLOOR_FORMAT}")
        if lender is None or "marlin" not in backend:
            return p
        return {**p, "latency_s": min(p["latency_s"], float(lender["parameters"]["latency_s"]))}

    def _sibling(self, framework: str) -> KernelModel:
        if framework == self.framework:
            return self
        if framework not in self._siblings:
            self._siblings[framework] = load_kernel_model(self.device, framework)
        return self._siblings[framework]

    @cached_property
    def _others(self) -> list[KernelModel]:
        """The other frameworks' tables of the GPU that this model's were measured on."""
        if self.path is None:
            return []
        home = self.path.parent
        names = sorted(p.stem for p in home.glob("*.json") if p.stem not in (self.path.stem, "collectives"))
        own = [_load(home.name, name, home.parent) for name in names]
        return [
            m
            if m.peaks == self.peaks
            else KernelModel(
                self.device, m.framework, self.peaks, m.provenance, m.groups, m.path, self.links, m.peaks, self.power_share
            )
            for m in own
        ]

    def _quickest(self, key: str) -> KernelModel | None:
        """Of the device's other tables of a group the one with the least launch floor; :data:`TRITON_LATENT` before others."""
        there = self._latent_kin(key) or [m for m in self._others if key in m.groups]
        return min(there, key=lambda m: float(m.groups[key]["parameters"]["latency_s"]), default=None)

    def _latent_kin(self, key: str) -> list[KernelModel]:
        """Other tables of decoding rows of latent attention on Triton's kernels, where this framework runs those too."""
        if not key.startswith("mla/kernel/decode") or self.framework not in TRITON_LATENT or self.path is None:
            return []
        there = [m for m in self._others if m.framework in TRITON_LATENT and key in m.groups]
        device = load_device(self.path.parent.name) if there else None
        return there if device is not None and device.architecture != "hopper" and not stacked_blackwell(device) else []

    def _in_graph_s(
        self, key: str, t: Array, base_s: Array, other_s: Callable[[KernelModel], Array]
    ) -> Array:
        """Time `t` of an eagerly measured group as it is inside a model, else `t` [s].

        Where the launch floor is above :data:`EAGER_RATIO` times the least of the device, it is exchanged for that
        one in the physical base (`base_s`, of which the residual is a factor): CUDA graphs launch without the host,
        and launches of a prompt hide behind the layer's other kernels. Long work hid its own launch already, so no
        time falls below that of the table whose floor it takes (other_s).
        """
        quick = self._quickest(key) if key else None
        if quick is None:
            return t
        own = float(self.groups[key]["parameters"]["latency_s"])
        least = float(quick.groups[key]["parameters"]["latency_s"])
        if own <= EAGER_RATIO * least:
            return t
        return np.maximum(t * (1.0 - (own - least) / base_s), np.minimum(t, other_s(quick)))

    # -- matrix products

    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int, condition: Condition = "serving") -> Array:
        """Time of one linear layer ``(m, k) x (k, n)``, input and output bf16 [s].

        fmt : weight format (``bfloat16``, ``fp8``, ``fp8_block``, ``nvfp4``, ``int8_wo``, ``int4_wo``,
        ``sq``); activation quantisation is included. m : rows (tokens), any shape; the result has it. In serving a
        format whose arithmetic is bfloat16's (weight-only formats; fp8 without the hardware for it) takes at least
        the arithmetic share of bfloat16's time: it saves bytes, not products.
        """
        fmt = canonical_format(fmt)
        rows = np.maximum(as_array(m), 1.0)
        key, p = self._group("gemm", fmt, *self._alike(fmt))
        if condition == "serving" and key and (other := self.groups[key].get("serving_from")):
            return self._sibling(other).gemm_s(fmt, m, n, k, condition)
        nn, kk = np.float64(n), np.float64(k)
        t = base = gemm_base_s(p, self.peaks, fmt, rows, nn, kk, condition == "bench")
        surface = self.surface(key)
        if surface is not None:
            shape = gemm_shape(n, k)
            if condition == "serving":
                residual = surface.unspiked(
                    shape, lambda at: gemm_base_s(p, self._tabled, fmt, at, nn, kk), SPIKE, np.log2(rows), kind=fmt
                )
            else:
                residual = surface.at(shape, np.log2(rows))
            t = t * np.exp(residual)
        floor_s = p["latency_s"]
        scaled = scale_pass(self.path.stem, self.path.parent.name, fmt) if self.path else None
        if condition == "serving" and scaled is not None:
            t, floor_s = t - pass_s(scaled, rows * kk), floor_s - scaled.latency_s
        t = np.maximum(t, 2.0 * rows * nn * kk / self.peaks.rate(fmt))
        if condition == "serving":
            t = np.maximum(t, floor_s + gemm_bytes(fmt, rows, nn, kk) / self.peaks.hbm_bytes_per_s)
            t = self._in_graph_s(key, t, base, lambda other: other.gemm_s(fmt, rows, n, k))
            if fmt != "bfloat16" and self.peaks.rate(fmt) <= self.peaks.rate("bfloat16"):
                _, plain = self._group("gemm", "bfloat16")
                work = 2.0 * rows * nn * kk / (self.peaks.pipe_rate(fmt) * plain["compute_efficiency"])
                share = work / gemm_base_s(plain, self.peaks, "bfloat16", rows, nn, kk, False)
                t = np.maximum(t, np.minimum(share, 1.0) * self.gemm_s("bfloat16", rows, n, k))
            t = np.maximum(t, self._sustained_s(key, fmt, 2.0 * rows * nn * kk))
        return np.where(as_array(m) > 0, t, 0.0)

    def _sustained_s(self, key: str, fmt: str, flops: Array) -> Array:
        """The least time of products by the arithmetic that the device sustains; 0 where the table says it itself."""
        op, _, known = key.partition("/")
        held, lower = None, self.power_share < 1.0
        if self.path:
            held = sustained_share(self.path.stem, self.path.parent.name, known or fmt, op, lower_power=lower)
        return flops / (held * self.power_share * self.peaks.pipe_rate(fmt)) if held is not None else np.zeros_like(flops)

    def routed_experts_s(self, layer: RoutedLayer, tokens: ArrayLike, *, captured: bool) -> Array | None:
        """See :meth:`Ops.routed_experts_s` [s]; the exchange by DeepEP's timed kernels of one node.

        Its low-latency kernels, in graphs, send a copy to every expert, its others one to every rank that has one of them: more
        ranks than were timed receive as many more (assumed).
        """
        if self.path is None:
            return None
        layer, owner = replace(layer, fmt=canonical_format(layer.fmt)), load_device(self.path.parent.name)
        shares = shares_of(owner.architecture, layer.fmt)
        mode = "low_latency" if captured else "normal"
        keys = [f"deepep/{mode}/{phase}" for phase in ("dispatch", "combine")]
        if shares is None or any(key not in self.groups for key in keys):
            return None
        count = as_array(tokens)
        wait_s = None if captured else GRACE_WAIT_S if self.device.startswith(GRACE) else WAIT_S
        t = routed_experts_s(shares, self.peaks, layer, np.maximum(count, 1.0), wait_s)
        timed, ranks, topk = GRACE_RANKS if owner.name.startswith(GRACE) else TIMED_RANKS, layer.ranks, layer.topk
        more = 1.0 if captured else ranks * received_share(topk, ranks) / (timed * received_share(topk, timed))
        own = np.maximum(count / ranks, 1.0) * more
        for key, value_bytes in zip(keys, (1.0, 2.0), strict=True):
            moved = own * topk * layer.hidden * value_bytes
            base = streaming_base_s(self.groups[key]["parameters"], self.peaks.link_bytes_per_s, moved)
            surface = self.surface(key)
            if surface is not None:
                shape = exchange_shape(layer.hidden, layer.experts, topk, 0 if captured else EXCHANGING_SMS)
                base = base * np.exp(surface.at(shape, np.log2(own)))
            t = t + base
        return np.where(count > 0, t, 0.0)

    # -- attention

    def _fold(self, key: str, kv_heads: int) -> float:
        """Factor by which heads become sequences: more KV heads than were measured count as more sequences.

        Attention works on (sequence, KV head) pairs, each with its group of query heads: 32 KV heads of 10
        sequences are 8 KV heads of 40. In decode the two differ by 1-2 % within the tables (median; 4 against 8
        and 8 against 16 or 32 KV heads, all devices and frameworks); in vLLM's prompt tables many heads are
        5-20 % cheaper, but those reach 64 KV heads. 1 up to the reference, so there is no step at it.
        """
        reference = self.groups.get(key, {}).get("reference_kv_heads")
        return max(1.0, kv_heads / reference) if reference else 1.0

    def decode_attention_s(
        self,
        kv_fmt: str,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window_tokens: int,
        batch: ArrayLike,
        context_tokens: ArrayLike,
        condition: Condition = "serving",
    ) -> Array:
        """Time of decode attention of one layer on one GPU, one query token a sequence [s].

        heads, kv_heads : per GPU. window_tokens : 0 for full attention. batch : sequences; context_tokens :
        mean cached tokens a sequence (unequal lengths cost about their mean). Both broadcast.
        """
        lender = self._attention_lender(self.attention_of_decodes, head_dim)
        if lender is not None:
            return lender.decode_attention_s(kv_fmt, heads, kv_heads, head_dim, window_tokens, batch, context_tokens, condition)
        kv_fmt = canonical_format(kv_fmt)
        b, c = np.broadcast_arrays(as_array(batch), np.maximum(as_array(context_tokens), 1.0))
        rows = np.maximum(b, 1.0)
        key, p = self._group("attention_decode", f"bfloat16/{kv_fmt}")
        fold = self._fold(key, kv_heads)
        rows = rows * fold
        h, kv, d, w = (np.float64(x) for x in (heads / fold, kv_heads / fold, head_dim, window_tokens))
        t = decode_base_s(p, self.peaks, kv_fmt, h, kv, d, w, rows, c, condition == "bench")
        span = np.minimum(c, w) if window_tokens > 0 else c
        read = decode_bytes(WEIGHT_BYTES[kv_fmt], h, kv, d, rows, span)
        surface = self.surface(key)
        if surface is not None:
            shape = self._attention(key, surface, (float(h), float(kv), head_dim, window_tokens), self.attention_of_decodes)
            residual = surface.at(shape, np.log2(rows), np.log2(c + 1.0))
            t = t * np.exp(self._cold(residual, read) if condition == "serving" else residual)
        if condition == "serving":
            t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        return np.where(b > 0, t, 0.0)

    def _cold(self, residual: Array, read_bytes: Array) -> Array:
        """A decode residual without what the replayed benchmark gained by its L2, which serving does not: gains fade below its
        size."""
        if self._tabled.l2_bytes <= 0:
            return residual
        square = np.square(read_bytes / (WARM_SHARE * self._tabled.l2_bytes))
        return np.maximum(residual, residual * (1.0 - 1.0 / (1.0 + square * square)))

    def prefill_attention_s(
        self,
        fmt: str,
        kv_fmt: str,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window_tokens: int,
        new_tokens: ArrayLike,
        prior_tokens: ArrayLike,
        batch: ArrayLike = 1,
    ) -> Array:
        """Time of prompt attention of one layer: `batch` chunks of `new` queries after `prior` cached tokens
        [s].

        The measurements have no prior. A chunk after a prior does ``q*prior + new(new+1)/2`` query-key pairs
        and is given the time of the whole prompt of as many pairs, ``s = (sqrt(1 + 8 pairs) - 1) / 2``. A
        short chunk leaves multiprocessors idle: ``q = max(new, FILL_QUERY_HEADS * multiprocessors / (heads *
        batch))``.
        Never less than reading the cached keys and values once from device memory.
        """
        lender = self._attention_lender(self.attention_of_prompts, head_dim)
        if lender is not None:
            shape_there = (heads, kv_heads, head_dim, window_tokens)
            return lender.prefill_attention_s(fmt, kv_fmt, *shape_there, new_tokens, prior_tokens, batch)
        fmt, kv_fmt = canonical_format(fmt), canonical_format(kv_fmt)
        fmt = self._query_format(fmt, kv_fmt, head_dim)
        q, p0, b = np.broadcast_arrays(as_array(new_tokens), np.maximum(as_array(prior_tokens), 0.0), as_array(batch))
        new, rows = np.maximum(q, 1.0), np.maximum(b, 1.0)
        key, p = self._group(
            "attention_context", f"{fmt}/{kv_fmt}", f"bfloat16/{kv_fmt}", "bfloat16/bfloat16"
        )
        fold = self._fold(key, kv_heads)
        rows = rows * fold
        h, kv, d, w = (np.float64(x) for x in (heads / fold, kv_heads / fold, head_dim, window_tokens))
        pairs = causal_pairs(new, p0, w)
        past = np.minimum(p0, w) if window_tokens > 0 else p0
        same = prompt_of_chunk(new, p0, w, h * rows, self.peaks.multiprocessors)
        t = prefill_base_s(p, self.peaks, fmt, h, kv, d, w, rows, same)
        surface = self.surface(key)
        if surface is not None:
            shape = self._attention(key, surface, (float(h), float(kv), head_dim, window_tokens), self.attention_of_prompts)
            own = (p, self.peaks, fmt, h, kv, d, w)
            rising = surface.rising(shape, lambda b, s: prefill_base_s(*own, b, s), np.log2(rows), np.log2(same), kind=fmt)
            t = t * np.exp(rising)
        t = np.maximum(t, 4.0 * rows * h * d * pairs / self.peaks.rate(fmt))
        read = rows * 2.0 * kv * d * (past * WEIGHT_BYTES[kv_fmt] + new * 2.0)
        t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        return np.where((q > 0) & (b > 0), t, 0.0)

    # -- mixture of experts

    def moe_s(
        self,
        fmt: str,
        hidden: int,
        intermediate: int,
        topk: int,
        experts: int,
        tp: int,
        ep: int,
        tokens: ArrayLike,
        distribution: str = "independent",
        gated: bool = True,
        condition: Condition = "serving",
        kernel: str | None = None,
        deal: Deal = EVEN,
    ) -> Array:
        """Time of one mixture-of-experts layer on one rank: routing, both products, combine; no communication
        [s].

        experts : of the whole model, `ep` ranks share them; tokens : routed tokens of the whole expert group.
        distribution : ``independent`` (every row chooses for itself, among experts of unequal popularity:
        :func:`moe_active_experts`), ``balanced`` (rows dealt out in turn, as the benchmark's best case: at as many
        rows as experts it touches all of them where independent rows touch 56 %) or ``power_law`` (the benchmark's
        skewed popularity). In serving all ranks wait for the most loaded one
        (:func:`~hardware_profiles.expert_ranks.loaded_rank`).
        The measured residual of ``balanced`` serves ``independent`` too; the experts read differ.
        kernel : backend by its name in the tables; the default is the one that measured layers like this run on.
        deal : of tokens and experts to the ranks.
        Marlin where it is not the default has, in serving, its launch floor exchanged (:data:`MARLIN_FLOOR_FORMAT`).
        """
        fmt = canonical_format(fmt)
        framework, _, name = (kernel or "").rpartition("/")
        if framework:
            return self._sibling(framework).moe_s(
                fmt, hidden, intermediate, topk, experts, tp, ep, tokens, distribution, gated, condition, name, deal
            )
        key, p = self._group("moe", fmt, *STANDS_FOR.get(fmt, ()))
        if condition == "serving" and key and (other := self.groups[key].get("serving_as")):
            framework, as_fmt = other
            owner = self if framework == self.framework else self._sibling(framework)
            return owner.moe_s(
                as_fmt, hidden, intermediate, topk, experts, tp, ep, tokens, distribution, gated, condition, deal=deal
            )
        if condition == "serving" and not key and kernel and (elsewhere := self._same_elsewhere(fmt, kernel)):
            lender, as_fmt, backend_there = elsewhere
            shape_there = (hidden, intermediate, topk, experts, tp, ep)
            return lender.moe_s(as_fmt, *shape_there, tokens, distribution, gated, kernel=backend_there, deal=deal)
        if condition == "serving" and not key and (lent := self._marlin_elsewhere(fmt)):
            width = -(-intermediate // tp // MARLIN_WIDTH) * MARLIN_WIDTH * tp
            depth = -(-hidden // MARLIN_DEPTH) * MARLIN_DEPTH
            shape_there = (depth, width, topk, experts, tp, ep)
            return lent.moe_s(MARLIN_FLOOR_FORMAT, *shape_there, tokens, distribution, gated, deal=deal)
        count = as_array(tokens)
        rows = np.maximum(count, 1.0)
        h, i, k, e = np.float64(hidden), np.float64(intermediate), np.float64(topk), np.float64(experts)
        if condition == "serving" and distribution == "independent" and ep > 1:
            rows = rows * loaded_rank(rows, k, e, ep, deal)
        held = e + deal.copies
        args = (h, i, k, held, np.float64(tp), np.float64(ep), np.float64(gated))
        dealt, skewed = float(distribution == "balanced"), float(distribution == "power_law")
        surface = self.surface(key)
        tiles_of = self.groups.get(key, {}).get("tuned_tiles", {}).get(str((experts + deal.copies) // ep), ())
        tuned = intermediate // tp in tiles_of
        shape = moe_shape(hidden, intermediate, topk, experts, tp, ep, float(gated), skewed, tuned)
        backend: str | None = None
        if surface is not None:
            unnamed = shape
            shape, backend = self._backend(key, surface, unnamed, kernel)
            p = self.groups[key]["kernels"][backend] if backend else p
            if condition == "serving" and backend and backend != self._backend(key, surface, unnamed)[1]:
                p = self._chosen_floor(backend, p)
        if backend and not any(word in backend for word in TILED):
            tuned = False
            shape = (*moe_shape(hidden, intermediate, topk, experts, tp, ep, float(gated), skewed)[:-1], shape[-1])
        marlin = condition == "serving" and distribution == "independent" and "marlin" in (backend or "")
        tiles = marlin_tiles(rows, k, held) if marlin and surface is not None and surface.full_tiles(shape) else 1.0
        t = moe_base_s(p, self.peaks, fmt, rows, *args, dealt, skewed, condition == "bench", tiles, float(tuned))
        if surface is not None:
            load = moe_load(rows, k, held)
            if condition == "serving":
                residual = surface.unspiked(
                    shape,
                    lambda at: moe_base_s(p, self._tabled, fmt, at * held / k, *args, dealt, skewed, tuned=float(tuned)),
                    MOE_SPIKE,
                    load,
                    kind=(fmt, dealt, p["latency_s"], deal.copies),
                )
            else:
                residual = surface.at(shape, load)
            t = t * np.exp(residual)
        flops = np.where(gated, 6.0, 4.0) * h * i / tp * rows * k / ep
        t = np.maximum(t, flops / self.peaks.rate(fmt) * (1.0 if condition == "serving" else 0.5))
        if condition == "serving":
            held_s = self._sustained_s(key, fmt, flops)
            if np.any(held_s):
                held_s = held_s + sum(moe_rows_s(p, self.peaks, rows, rows * k / ep, h, i / tp, k))
            t = np.maximum(t, held_s)
            if not key and fmt != "bfloat16" and self.peaks.rate(fmt) <= self.peaks.rate("bfloat16"):
                # unmeasured and in bfloat16's arithmetic: at least that share of its time, as in gemm_s
                _, plain = self._group("moe", "bfloat16")
                work = flops / (self.peaks.pipe_rate("bfloat16") * plain["compute_efficiency"])
                share = work / moe_base_s(plain, self.peaks, "bfloat16", rows, *args, warm=False)
                whole = self.moe_s("bfloat16", hidden, intermediate, topk, experts, tp, ep, rows, gated=gated, deal=deal)
                t = np.maximum(t, np.minimum(share, 1.0) * whole)
            # skewed routing touches fewer experts, at most by half
            read = moe_weight_bytes(fmt, rows, *args) * (0.5 if skewed else 1.0)
            t = np.maximum(t, p["latency_s"] + read / self.peaks.hbm_bytes_per_s)
        return np.where(count > 0, t, 0.0)

    # -- latent attention

    def mla_prefill_s(
        self,
        fmt: str,
        kv_fmt: str,
        heads: int,
        new_tokens: ArrayLike,
        prior_tokens: ArrayLike = 0,
        batch: ArrayLike = 1,
        condition: Condition = "serving",
    ) -> Array:
        """Prompt attention of one latent-attention layer (DeepSeek-V3 widths), without projections [s].

        heads : per GPU. A prior counts by query-key pairs, as in :meth:`prefill_attention_s`. In serving a prompt
        takes the expanded form, whatever form the framework's benchmark ran (:data:`ABSORBED_SHARE`).
        """
        q, p0, b = np.broadcast_arrays(as_array(new_tokens), as_array(prior_tokens), as_array(batch))
        new = np.maximum(q, 1.0)
        same = prompt_of_chunk(new, np.maximum(p0, 0.0), np.float64(0.0))
        t = self._mla_s("context", fmt, kv_fmt, heads, np.maximum(b, 1.0), same, condition)
        return np.where((q > 0) & (b > 0), t, 0.0)

    def mla_decode_s(
        self,
        fmt: str,
        kv_fmt: str,
        heads: int,
        batch: ArrayLike,
        context_tokens: ArrayLike,
        condition: Condition = "serving",
    ) -> Array:
        """Decode attention of one latent-attention layer in the absorbed form, without projections [s].

        heads : per GPU; the latent KV is read whole on every GPU.
        """
        b, c = np.broadcast_arrays(as_array(batch), np.maximum(as_array(context_tokens), 1.0))
        rows = np.maximum(b, 1.0)
        t = self._mla_s("decode", fmt, kv_fmt, heads, rows, c, condition)
        read = latent_bytes(rows, c, canonical_format(kv_fmt))
        return np.where(b > 0, np.maximum(t, read / self.peaks.hbm_bytes_per_s), 0.0)

    def _mla_s(
        self, phase: str, fmt: str, kv_fmt: str, heads: int, batch: Array, tokens: Array, condition: Condition
    ) -> Array:
        fmt, kv_fmt = canonical_format(fmt), canonical_format(kv_fmt)
        wanted = [(a, k) for k in (kv_fmt, "bfloat16", "fp8") for a in (fmt, "bfloat16", "fp8")]
        names = [f"kernel/{phase}/none/{a}/{k}" for a, k in wanted]
        key, p = self._group("mla", *names)

        def of(other: KernelModel) -> Array:
            return other._mla_s(phase, fmt, kv_fmt, heads, batch, tokens, condition)

        if condition == "serving":
            elsewhere = sorted((f"mla/{n}" for n in names), key=lambda name: not self._latent_kin(name))
            measured = key or next((name for name in elsewhere if self._quickest(name)), "")
            quick = self._quickest(measured) if measured else None
            if quick is not None and (not key or (phase == "context" and self._absorbed(key))):
                return of(quick)
        formats = ("kernel", phase, "none", fmt, kv_fmt)
        t = base = mla_base_s(p, self.peaks, formats, np.float64(heads), batch, tokens)
        surface = self.surface(key)
        if surface is not None:
            shape, load = (math.log2(heads),), (np.log2(batch), np.log2(tokens))
            if condition == "bench":
                residual = surface.at(shape, *load)
            elif phase == "context":
                own = (p, self.peaks, formats, np.float64(heads))
                residual = surface.rising(shape, lambda b, s: mla_base_s(*own, b, s), *load, kind=formats)
            else:
                residual = self._cold(surface.at(shape, *load), latent_bytes(batch, tokens, kv_fmt))
            t = t * np.exp(residual)
        if condition == "serving":
            t = self._in_graph_s(key, t, base, of)
        return np.asarray(t, dtype=np.float64)

    def _absorbed(self, key: str) -> bool:
        """Whether a table of prompt attention timed the absorbed form: far below the device's best efficiency."""
        own = float(self.groups[key]["parameters"]["compute_efficiency"])
        known = (m.groups[key]["parameters"]["compute_efficiency"] for m in self._others if key in m.groups)
        return own < ABSORBED_SHARE * max(known, default=0.0)

    # -- sparse attention

    def _sparse(self, op: str, layer: SparseLayer) -> tuple[KernelModel, str] | None:
        """Whose tables hold a layer like this one, and their group: this framework's before others', the format of the
        projections before that of the cache."""
        gemm, kv = canonical_format(layer.gemm_fmt), canonical_format(layer.kv_fmt)
        for m in (self, *self._others):
            for g in dict.fromkeys((gemm, "fp8_block", "bfloat16")):
                for k in dict.fromkeys((kv, "bfloat16", "fp8")):
                    if (key := f"{op}/{layer.kind}/{g}/{k}") in m.groups:
                        return m, key
        return None

    def _beside_products(self, layer: SparseLayer, gemm_fmt: str, whole_s: Array, rows: Array) -> Array:
        """A whole layer's time without that of its projections of `rows` tokens, which are priced apart."""
        products_s = sum((self.gemm_s(gemm_fmt, rows, n, k) for n, k in layer.products), np.zeros_like(rows))
        return np.maximum(whole_s - products_s, LEAST_BESIDE * whole_s)

    def sparse_decode_s(self, layer: SparseLayer, batch: ArrayLike, context_tokens: ArrayLike) -> Array | None:
        """See :meth:`Ops.sparse_decode_s` [s]."""
        found = self._sparse("sparse_decode", layer)
        if found is None:
            return None
        (owner, key), b = found, as_array(batch)
        rows, past = np.broadcast_arrays(np.maximum(b, 1.0), np.maximum(as_array(context_tokens), 1.0))
        kind, gemm_fmt, kv_fmt = key.split("/")[1:]
        p, one = owner.groups[key]["parameters"], np.ones_like(rows)
        shape = (SPARSE_KINDS[kind], gemm_fmt, kv_fmt, np.float64(layer.heads))
        t = sparse_base_s(p, self.peaks, *shape, rows, one, past)
        surface = owner.surface(key)
        if surface is not None:

            def base(sequences: Array, cached: Array) -> Array:
                return sparse_base_s(p, self.peaks, *shape, sequences, np.ones_like(cached), cached - 1.0)

            t = t * np.exp(
                surface.rising(sparse_decode_shape(layer.heads), base, np.log2(rows), np.log2(past + 1.0), kind=None)
            )
        return np.where(b > 0, self._beside_products(layer, gemm_fmt, t, rows), 0.0)

    def sparse_context_s(
        self, layer: SparseLayer, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array | None:
        """See :meth:`Ops.sparse_context_s` [s]."""
        found = self._sparse("sparse_context", layer)
        if found is None:
            return None
        owner, key = found
        q, prior = np.broadcast_arrays(as_array(new_tokens), np.maximum(as_array(prior_tokens), 0.0))
        new = np.maximum(q, 1.0)
        t = self._sparse_chunk_s(owner, key, layer.heads, new, prior)
        quick = self._quickest(key)
        if quick is not None:
            own_s, least_s = (float(m.groups[key]["parameters"]["latency_s"]) for m in (owner, quick))
            if own_s > EAGER_RATIO * least_s:
                other = self._sparse_chunk_s(quick, key, layer.heads, new, prior)
                t = np.where(t > HOST_HIDDEN * own_s, t, np.minimum(t, other))
        return np.where(q > 0, self._beside_products(layer, key.split("/")[2], t, new), 0.0)

    def _sparse_chunk_s(self, owner: KernelModel, key: str, heads: int, new: Array, prior: Array) -> Array:
        """Time of a whole layer for one chunk by the owner's table of a group [s]."""
        one = np.ones(new.shape)
        kind, gemm_fmt, kv_fmt = key.split("/")[1:]
        p = owner.groups[key]["parameters"]
        shape = (SPARSE_KINDS[kind], gemm_fmt, kv_fmt, np.float64(heads))
        t = sparse_base_s(p, self.peaks, *shape, one, new, prior)
        surface = owner.surface(key)
        if surface is None:
            return t
        residual = np.empty(new.shape)
        for past in np.unique(prior).tolist():
            at = prior == past

            def base(sequences: Array, tokens: Array, past_tokens: float = past) -> Array:
                cached = np.full_like(tokens, past_tokens)
                return sparse_base_s(p, self.peaks, *shape, sequences, tokens, cached)

            features = sparse_context_shape(heads, past)
            residual[at] = surface.rising(features, base, np.log2(one[at]), np.log2(new[at]), kind=None)
        return t * np.exp(residual)

    # -- recurrences

    def _recurrent(
        self, op: str, *variants: str
    ) -> tuple[KernelModel, str, Mapping[str, float]]:
        """Whose tables hold a kernel of a recurrence, its group, its parameters: this framework's, else another's.

        Typical parameters and no group where nobody timed the variant.
        """
        for key in (f"{op}/{name}" for name in variants):
            owner = next((m for m in (self, *self._others) if key in m.groups), None)
            if owner is not None:
                return owner, key, owner.groups[key]["parameters"]
        return self, "", recurrent_parameters(op, variants[0])

    def recurrent_decode_s(self, layer: Recurrence, batch: ArrayLike) -> Array:
        """See :meth:`Ops.recurrent_decode_s` [s]; states are read from device memory."""
        rows = np.maximum(as_array(batch), 1.0)
        total = np.zeros_like(rows)
        if layer.state_bytes:
            owner, key, p = self._recurrent("recurrence_decode", layer.variant)
            t = recurrence_decode_base_s(p, self.peaks, np.float64(layer.state_bytes), rows, warm=False)
            moved = 2.0 * rows * layer.state_bytes
            surface = owner.surface(key)
            if surface is not None:
                shape, _ = owner._backend(key, surface, recurrence_shape(layer.key_heads, layer.heads))
                t = t * np.exp(self._cold(surface.at(shape, np.log2(rows)), moved))
            total = np.maximum(t, p["latency_s"] + moved / self.peaks.hbm_bytes_per_s)
        if layer.channels:
            values = rows * layer.channels * CONVOLUTION_STEP_VALUES
            total = total + self._convolution_s("convolution_decode", layer, values, np.log2(rows))
        return np.where(as_array(batch) > 0, total, 0.0)

    def recurrent_context_s(self, layer: Recurrence, new_tokens: ArrayLike, sequences: ArrayLike = 1.0) -> Array:
        """See :meth:`Ops.recurrent_context_s` [s]."""
        new, many = np.broadcast_arrays(np.maximum(as_array(new_tokens), 1.0), np.maximum(as_array(sequences), 1.0))
        total = np.zeros(new.shape)
        if layer.state_bytes:
            owner, key, p = self._recurrent("recurrence_context", layer.variant)
            total = recurrence_context_base_s(p, self.peaks, *layer.widths, many, new)
            surface = owner.surface(key)
            if surface is not None:
                shape, _ = owner._backend(key, surface, recurrence_shape(layer.key_heads, layer.heads))

                def base(batch: Array, tokens: Array) -> Array:
                    return recurrence_context_base_s(p, self.peaks, *layer.widths, batch, tokens)

                total = total * np.exp(surface.rising(shape, base, np.log2(many), np.log2(new), kind=layer.widths))
        if layer.channels:
            values = many * new * layer.channels * CONVOLUTION_TOKEN_VALUES
            total = total + self._convolution_s("convolution_context", layer, values, np.log2(many), np.log2(new))
        return np.where(as_array(new_tokens) > 0, total, 0.0)

    def _convolution_s(self, op: str, layer: Recurrence, values: Array, *load: Array) -> Array:
        """A convolution that moves `values` numbers; what differs between variants are its channels."""
        owner, key, p = self._recurrent(op, layer.variant, *CONVOLUTION_KIN)
        t = convolution_base_s(p, self.peaks, values, warm=False)
        surface = owner.surface(key)
        if surface is None:
            return t
        shape, _ = owner._backend(key, surface, convolution_shape(layer.channels))
        return t * np.exp(surface.at(shape, *load))

    # -- collectives

    def collective_s(
        self, op: str, gpus: int, message_bytes: ArrayLike, mode: str = "graph", library: str | None = None
    ) -> Array:
        """Time of a collective inside a node [s]; see :meth:`all_reduce_s`.

        op : ``all_reduce``, ``all_gather``, ``reduce_scatter``, ``alltoall``. mode : ``graph`` (captured) or
        ``eager`` (host launch included). library : a framework's custom kernel or ``nccl``; the default is
        this framework's own in the wanted mode, then any library's curve.
        """
        size = np.maximum(as_array(message_bytes), 1.0)
        if gpus <= 1:
            return np.zeros_like(size)
        if self.network is not None and gpus > self.network.inside(op):
            inside = self.collective_s(op, self.network.inside(op), message_bytes, "nccl_tests_eager", "nccl")
            return np.where(as_array(message_bytes) > 0, inside + self.network.added_s(op, gpus, size), 0.0)
        curve, scale = self._curve(op, gpus, mode, library)
        if curve is None:
            launch_s = 6e-6 if mode == "graph" else 2.5e-5  # assumed, 2026-11
            t = collective_base_s(op, gpus, size, self.peaks.link_bytes_per_s, launch_s)
        else:
            t = curve_s(curve, size) * scale
        return np.where(as_array(message_bytes) > 0, t, 0.0)

    def _curve(self, op: str, gpus: int, mode: str, library: str | None) -> tuple[Mapping[str, Any] | None, float]:
        """Curve of a collective and the factor to another GPU count.

        NCCL's own test keeps the GPU busy and so times what a captured kernel takes: its small messages take longer by the
        GPUs, 5, 7, and 10 us over 2, 4, and 8 H100, which no host would (kind: inferred, 2026-11).
        """
        libraries = [library] if library else [self._own_collectives, "vllm", "sglang", "trtllm", "nccl", "oneccl"]
        modes = [mode] if library else [mode, "graph", "nccl_tests_eager", "eager"]
        wire = 1.0 - 1.0 / gpus
        for wanted in modes:
            for lib in libraries:
                curves = self._links.get(f"{op}|{lib}|{wanted}")
                if curves:
                    near = min(curves, key=lambda g: (abs(math.log2(g / gpus)), g))
                    return curves[near], wire / (1.0 - 1.0 / near)
        return None, 1.0

    def all_reduce_s(
        self, gpus: int, message_bytes: ArrayLike, mode: str = "graph", library: str | None = None
    ) -> Array:
        """Time of an all-reduce of `message_bytes` (the tensor on each rank) over `gpus` of one node [s]."""
        return self.collective_s("all_reduce", gpus, message_bytes, mode, library)

    def earlier_all_reduce_s(self, gpus: int, message_bytes: ArrayLike) -> Array:
        """See the base."""
        timed = gpus in self._links.get(f"all_reduce|{SHARED_SUMS}|graph", {})
        return self.all_reduce_s(gpus, message_bytes, library=SHARED_SUMS if timed else None)

    def all_gather_s(self, gpus: int, message_bytes: ArrayLike, mode: str = "graph") -> Array:
        """Time of an all-gather; message_bytes is the gathered tensor [s]."""
        return self.collective_s("all_gather", gpus, message_bytes, mode)

    def reduce_scatter_s(self, gpus: int, message_bytes: ArrayLike, mode: str = "graph") -> Array:
        """Time of a reduce-scatter; message_bytes is the whole tensor [s]."""
        return self.collective_s("reduce_scatter", gpus, message_bytes, mode)

    def p2p_s(self, message_bytes: ArrayLike, link: str = "intra_node") -> Array:
        """Time to send a message from one GPU to another, ``intra_node`` or ``inter_node`` [s].

        Without measurements: ``t0 + bytes / (0.8 link bandwidth)`` (t0 = 1e-5 s, assumed).
        """
        size = np.maximum(as_array(message_bytes), 1.0)
        if self.network is not None and self.network.stages_apart:
            return np.where(as_array(message_bytes) > 0, self.network.message_s(size), 0.0)
        curves = self.links.get("p2p", {}).get("curves", {})
        curve = next((c for k, c in sorted(curves.items()) if k.endswith("/" + link)), None)
        t = curve_s(curve, size) if curve else message_base_s(size, self.peaks.link_bytes_per_s, 1e-5)
        return np.where(as_array(message_bytes) > 0, t, 0.0)

    # -- memory-bound kernels

    def elementwise_s(self, moved_bytes: ArrayLike) -> Array:
        """Time of one memory-bound kernel (normalisation, rotary, activation) moving `moved_bytes` [s].

        ``t0 + bytes / (B e)`` with activations in the L2 as between the kernels of one layer.
        """
        size = as_array(moved_bytes)
        group = self.groups.get("elementwise")
        p = group["parameters"] if group else DEFAULT_PARAMETERS["elementwise"]
        return np.where(size > 0, streaming_base_s(p, self.peaks.hbm_bytes_per_s, size), 0.0)


def _backend_kind(name: str) -> tuple[tuple[str, ...], str]:
    """The kinds of kernel in a backend's name, the name itself where there are none, and why its rows were set aside."""
    words = tuple(word for word in ("trtllm", "cutlass", "triton", "marlin", "deepgemm") if f"_{word}_" in f"_{name}_")
    return words or (name,), next((end for end in SET_ASIDE.values() if name.endswith(end)), "")


def curve_s(curve: Mapping[str, Any], size: Array) -> Array:
    """Time on a curve over log2 bytes [s]: beyond the largest message it grows with the bytes."""
    x, y = as_array(curve["log2_bytes"]), as_array(curve["log_s"])
    at = np.log2(size)
    return np.asarray(np.exp(np.interp(at, x, y)) * np.exp2(np.maximum(at - x[-1], 0.0)), dtype=np.float64)


_FIELDS = (
    *("features", "amplitude", "inverse_length", "weights", "scale", "basis", "mean"),
    *("axis0", "axis1", "reach"),
)


# --------------------------------------------------------------------------------------------------
# loading


def fitted_models() -> list[tuple[str, str]]:
    """(device, framework) pairs that ship with fitted kernels."""
    return sorted((p.parent.name, p.stem) for p in KERNELS_DIR.glob("*/*.json") if p.stem != "collectives")


@lru_cache(maxsize=64)
def version_of(text: str) -> tuple[int, ...]:
    """The numbers of a version in order ("1.3.0rc20"); nothing of one that is no release ("dev-1aa0e962")."""
    return tuple(int(n) for n in re.findall(r"\d+", text)) if text[:1].isdigit() else ()


def library_of(framework: str, release: str, libraries: Iterable[str]) -> str:
    """The name of a framework's own collectives in a release, among those that were timed: what one version's take stands for
    releases up to the next that was timed.

    >>> library_of("vllm", "0.32.0", ["vllm", "vllm@0.31.0", "nccl"]), library_of("vllm", "0.30.0", ["vllm", "vllm@0.31.0"])
    ('vllm@0.31.0', 'vllm')
    """
    later = [name for name in libraries if name.startswith(f"{framework}@")]
    known = [name for name in later if version_of(name.partition("@")[2]) <= version_of(release)]
    return max(known, key=lambda name: version_of(name.partition("@")[2]), default=framework)


def load_links(device: str, directory: Path = KERNELS_DIR) -> Mapping[str, Any]:
    """Fitted curves of collectives and point-to-point messages of a device; empty without any."""
    path = directory / device / "collectives.json"
    if not device or not path.exists():
        return {}
    groups: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))["groups"]
    return groups


@lru_cache(maxsize=8)
def _archive(path: Path) -> Mapping[str, Array]:
    """Arrays of a file by name, each read when it is asked for: what they are takes longer to read than one of them."""
    archive: Mapping[str, Array] = np.load(BytesIO(path.read_bytes()))  # an open file would be shared with forked processes
    return archive


@lru_cache(maxsize=64)
def _load(device: str, framework: str, directory: Path) -> KernelModel:
    text = json.loads((directory / device / f"{framework}.json").read_text(encoding="utf-8"))
    peaks = DevicePeaks(**text["peaks"])
    archive = directory / device / f"{framework}.npz"
    links = load_links(device, directory)
    return KernelModel(device, framework, peaks, text["provenance"], text["groups"], archive, links)


def load_kernel_model(device: str, framework: str, directory: Path = KERNELS_DIR) -> KernelModel:
    """Return the tables of a device under a framework.

    The fitted pair, or the same device under another framework (vllm, sglang, trtllm), said in ``provenance["borrowed_from"]``.
    Raises InputError where the device has none.
    """
    for name in dict.fromkeys((framework, "vllm", "sglang", "trtllm")):
        if (directory / device / f"{name}.json").exists():
            model = _load(device, name, directory)
            if name == framework:
                return model
            borrowed = {**model.provenance, "borrowed_from": name}
            return KernelModel(
                device, framework, model.peaks, borrowed, model.groups, model.path, model.links
            )
    known = sorted({d for d, _ in fitted_models()})
    near = nearest(device, known)
    raise InputError(
        f"no kernel of '{device}' was measured",
        mend=f"did you mean '{near}'?" if near else f"fitted devices: {', '.join(known)}",
    )
