"""Operations of engines that bring their own kernels to many kinds of devices, by a law of few constants a class of devices.

A matrix of W weights, multiplied by m rows, takes

    t(m) = launch + bytes / (e B) and u W / P32, in part at the same time + work(m)

bytes are those stored, e the share of the memory bandwidth B that the format's kernel reads at, u the operations that unpack a
weight, at the 32-bit rate P32. Further rows are computed by the matrix-vector kernel up to `vector_rows` (a row costs
2 W / (v P32)), beyond by a matrix kernel that is short of work below some rows:

    work(m) = (m - 1) 2 W / (v P32)            up to vector_rows
              2 W (m + fill) / (x P) + start   beyond, never less than at vector_rows

P is the peak of the arithmetic the matrix kernel runs in. Experts are the same over the matrices touched. Attention reads the KV
at a share of the bandwidth, and computes prompts at a share of P. The constants of the classes stand in
:mod:`hardware_profiles.law_constants`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, field, replace

import numpy as np
from numpy.typing import ArrayLike

from hardware_profiles.device import Device, load_device
from hardware_profiles.expert_ranks import EVEN, Deal
from hardware_profiles.kernel_physics import (
    MLA_KV_RANK,
    MLA_NOPE,
    MLA_ROPE,
    MLA_V,
    WEIGHT_BYTES,
    Array,
    as_array,
    canonical_format,
    causal_pairs,
    moe_active_experts,
)
from hardware_profiles.packed_formats import PackedFormat, packed_format
from hardware_profiles.power import clock_share
from hardware_profiles.records import dataclass
from hardware_profiles.roofline import Roofline


@dataclass(frozen=True)
class Within:
    """Logarithms of the factors within which nine of ten values lie of a chip that was left out of the fit, all chips alike.

    decode_width, batch_width : steps of one row and of several. few_width, prompt_width : prompts of few tokens (up to
    `FEW_TOKENS`) and of many.
    """

    decode_width: float
    batch_width: float
    few_width: float
    prompt_width: float


FEW_TOKENS = 64
"""Up to so many tokens the matrix-vector kernels, and matrix kernels short of work, decide over a prompt."""


@dataclass(frozen=True)
class Law:
    """Constants of a class of devices under a family of kernels.

    title : the class, for words.
    off_pct : what a chip left out of the fit is off by in the median, at decoding and at prompts [%].
    within : how far nine of ten values of such a chip are off.
    read : share of the memory bandwidth by block type of the weights ("16": those in 16 bit, "": all others).
    unpack : operations that unpack a weight, likewise.
    launch_s : of every operation of a step, whatever its size.
    vector, vector_rows : share of the 32-bit rate for further rows of a matrix-vector product, by block type, and how many.
    overlap_factor : power in which reading and unpacking add: 1 one after the other, large at the same time.
    arithmetic : of the matrix kernels, by whether the weights are packed: key of the datasheet's peaks and a factor on it.
    matrix : share of that peak, likewise ("" and "16").
    fill_tokens, expert_fill_tokens : rows that a matrix kernel is short of work by, for a matrix and for one of an expert.
    expert_share : factor on `matrix` for the products of experts, whose rows are gathered and whose tiles are small.
    expert_tile_tokens, expert_tile_from : rows that each touched expert's product is padded to from so many tokens on, by engines
        that have no kernel for few rows of experts; 0: such products are those of other matrices.
    start_s : what a matrix kernel takes beside its work: rows are brought into its format, the last tiles run alone.
    widened_bytes, library_rows, library_share : moved to widen a packed weight to 16 bit before a matrix product, by engines
    without kernels for it, or from so many rows on; the share that a library then reaches, None: `matrix`'s.
    library_alone : whether the library serves such rows also where packed kernels would take longer; else the longer counts.
    library_start_s : what a matrix, or all of an expert, takes there beside its work, where experts are multiplied one by one.
    traffic_factor : bytes that elementwise operations move, as a multiple of what 16-bit fused ones would.
    kv_share : share of the bandwidth at which attention reads keys and values.
    decode_kv_share : the same of decoding rows, where query heads have keys of their own and where they share them; (): that.
    attention_share : share of the 16-bit peak that the attention of prompts reaches.
    latent_share : the same of prompts that attend to latent keys; 0: as others.
    tile_tokens, grouped, held_bytes : tokens of a prompt that attention serves by one pass over keys and values, whether heads
    that share these pass together, and what of them the last cache holds [byte]; 0 tokens: all of a chunk.
    narrow_kv_s : what attention over packed keys and values takes beside reading them: two products and a softmax in place of one
    kernel. None where such a kernel reads them; else the engine keeps them in 16 bits up to where this pays, and four bits read
    as eight.
    latent_prompts : whether prompts attend to the latent keys themselves, as llama.cpp's graphs do, and not to expanded ones.
    attend : share of the 32-bit rate at which decoding rows attend, and operations a query head and cell beside the products.
    slower : factor on `launch_s` by architecture, or by the word "ultra" for chips of two dies.
    cool_flops_per_j : arithmetic of products in 16 bits, a watt of the power limit, up to which a card keeps the clock of the
    datasheet's peak, by architecture [FLOP/J]; cards with more slow down (`power.clock_share`).
    older : factor on the share of matrix kernels by architecture. lighter : on `unpack`. quicker : on `vector` where packed.
    core_launch_s, core_bytes_per_s : of a CPU: what a core more adds to `launch_s`, and the most that a core reads.
    crowding_share : c, where each of n threads of a process computes 1 / (1 + c n) of what it would do alone.
    """

    title: str
    off_pct: tuple[float, float]
    within: Within
    read: Mapping[str, float]
    unpack: Mapping[str, float]
    launch_s: float
    vector: Mapping[str, float]
    matrix: Mapping[str, float]
    fill_tokens: float
    expert_fill_tokens: float
    kv_share: float
    attention_share: float
    arithmetic: Mapping[str, tuple[str, float]]
    expert_share: float = 1.0
    expert_tile_tokens: float = 0.0
    expert_tile_from: int = 2
    start_s: float = 0.0
    widened_bytes: float = 0.0
    library_rows: int = 0
    library_share: float | None = None
    library_alone: bool = False
    library_start_s: float = 0.0
    traffic_factor: float = 1.0
    narrow_kv_s: float | None = None
    latent_prompts: bool = True
    attend: tuple[float, float] = (1.0, 0.0)
    overlap_factor: float = 2.0
    vector_rows: int = 8
    slower: Mapping[str, float] = field(default_factory=dict)
    cool_flops_per_j: Mapping[str, float] = field(default_factory=dict)
    older: Mapping[str, float] = field(default_factory=dict)
    decode_kv_share: tuple[float, ...] = ()
    latent_share: float = 0.0
    tile_tokens: float = 0.0
    grouped: bool = True
    held_bytes: float = 0.0
    lighter: Mapping[str, float] = field(default_factory=dict)
    quicker: Mapping[str, float] = field(default_factory=dict)
    core_launch_s: float = 0.0
    core_bytes_per_s: float = 0.0
    crowding_share: float = 0.0

    def prompt_share(self, kv_heads: int) -> float:
        """Share of the 16-bit peak that attention of prompts reaches; no `kv_heads`: over latent keys."""
        return self.attention_share if kv_heads else self.latent_share or self.attention_share

    def passed_bytes(self, kv_bytes: Array, tokens: Array, heads: int, kv_heads: int) -> Array:
        """What attention of so many tokens of a prompt reads of keys and values [byte]: all by every tile of them."""
        if not self.tile_tokens:
            return kv_bytes
        passes = tokens / self.tile_tokens * (heads / kv_heads if kv_heads and not self.grouped else 1.0)
        again: Array = np.maximum(passes - 1.0, 0.0) * np.maximum(kv_bytes - self.held_bytes, 0.0)
        return kv_bytes + again


def _of(table: Mapping[str, float], block: str, kind: str) -> float:
    """Entry of a block type, else of 16-bit weights ("16") or of packed ones ("")."""
    return table[block] if block in table else table.get(kind, table[""])


@dataclass(frozen=True)
class LawOps(Roofline):
    """Times of one device by a law.

    fp32_flops_per_s, matrix_peak : rates of the device in the law's arithmetic [FLOP/s], the latter by packed or 16-bit weights.
    """

    law: Law = field(kw_only=True)
    fp32_flops_per_s: float = field(kw_only=True)
    matrix_peak: Mapping[str, float] = field(kw_only=True)
    launch_s: float = field(kw_only=True)

    @classmethod
    def under(cls, law: Law, device: Device, framework: str, threads: int = 0) -> LawOps:
        """Operations of a device under a law; `threads` of a CPU compute, 0: one on each of its cores."""
        plain = Roofline.of_device(device, framework)
        lighter = law.lighter.get(device.architecture, 1.0)
        quicker = law.quicker.get(device.architecture, 1.0)
        law = replace(
            law,
            unpack={key: lighter * count for key, count in law.unpack.items()},
            vector={key: share if key == "16" else quicker * share for key, share in law.vector.items()},
        )
        rates = {key: q.value for key, q in device.peak_flops_per_s.items()}
        half = rates.get("fp16") or rates.get("bf16") or rates["fp32"]
        rates.setdefault("fp32", half)
        cores = int(device.multiprocessors.value) if device.multiprocessors else 1
        used = min(threads or cores, cores) if law.core_bytes_per_s else cores
        working = used / cores / (1.0 + law.crowding_share * used)
        share = working * law.older.get(device.architecture, 1.0)
        peak = {kind: share * factor * rates.get(name, half) for kind, (name, factor) in law.arithmetic.items()}
        if cool := law.cool_flops_per_j.get(device.architecture):
            clock = clock_share(cool * device.tdp_w.value / peak["16"])
            wide = ("", "16") if law.widened_bytes else ("16",)
            peak = {kind: clock * each if kind in wide else each for kind, each in peak.items()}
        word = "ultra" if "-ultra-" in device.name else device.architecture
        launch_s = law.launch_s * law.slower.get(word, 1.0) + law.core_launch_s * used
        most = law.core_bytes_per_s * used / max(law.read.values()) if law.core_bytes_per_s else plain.peaks.hbm_bytes_per_s
        return cls(
            device.name,
            framework,
            replace(plain.peaks, hbm_bytes_per_s=min(plain.peaks.hbm_bytes_per_s, most)),
            plain.efficiencies,
            plain.processors,
            plain.link_latency_s,
            plain.message_latency_s,
            {
                "sources": [],
                "kind": "fitted",
                "law": law.title,
                "law_error_pct": max(law.off_pct),
                "law_within": asdict(law.within),
            },
            law=law,
            fp32_flops_per_s=rates["fp32"] * working,
            matrix_peak=peak,
            launch_s=launch_s,
        )

    def on_threads(self, threads: int) -> LawOps:
        """See the base."""
        return LawOps.under(self.law, load_device(self.device), self.framework, threads)

    # -- products ---------------------------------------------------------------------------------------------

    def product_s(
        self,
        fmt: str,
        weights: ArrayLike,
        rows: Array,
        matrices: ArrayLike,
        fill_tokens: float,
        packed: PackedFormat | None = None,
        reached_share: float = 1.0,
    ) -> Array:
        """`rows` rows in all on `matrices` matrices of `weights` weights each, without the launch; `packed` is their format where
        it is not the one of `fmt`, and `reached_share` what matrix kernels reach of theirs."""
        law, w, count = self.law, as_array(weights), as_array(matrices)
        stored = packed or packed_format(fmt)
        size = stored.bits_per_weight / 8 if stored else weight_bytes(fmt)
        block, kind = stored.block if stored else fmt, "16" if size == 2.0 else ""
        held = w * count * size
        read_s = held / (_of(law.read, block, kind) * self.peaks.hbm_bytes_per_s)
        unpack_s = _of(law.unpack, block, kind) * w * count / self.fp32_flops_per_s
        longer_s, shorter_s = np.maximum(read_s, unpack_s), np.minimum(read_s, unpack_s)
        read_s = longer_s * (1.0 + (shorter_s / longer_s) ** law.overlap_factor) ** (1.0 / law.overlap_factor)
        vector = 2.0 * w / (_of(law.vector, block, kind) * self.fp32_flops_per_s)
        matrix = 2.0 * w / (reached_share * _of(law.matrix, block, kind) * self.matrix_peak[kind])
        most = count * law.vector_rows
        few = np.maximum(np.minimum(rows, most) - count, 0.0) * vector
        many = (rows + fill_tokens * count) * matrix + law.start_s
        if law.widened_bytes and not kind:
            share = law.library_share or _of(law.matrix, block, kind)
            wide = (rows + fill_tokens * count) * 2.0 * w / (share * self.matrix_peak[kind]) + law.start_s
            wide = wide + law.widened_bytes * w * count / self.peaks.hbm_bytes_per_s + law.library_start_s * count
            last = np.minimum(rows, law.library_rows * count) if law.library_alone else rows
            before = (last + fill_tokens * count) * matrix + law.start_s
            many = np.where(rows >= law.library_rows * count, np.maximum(before, wide), many)
        return read_s + np.where(rows <= most, few, np.maximum(few, many))

    def gemm_s(self, fmt: str, m: ArrayLike, n: int, k: int) -> Array:
        """See the head of the module."""
        rows = np.maximum(as_array(m), 1.0)
        fmt = known_format(fmt)
        stored = packed_format(fmt)
        packed = stored and stored.of_rows(k)
        t = self.launch_s + self.product_s(fmt, float(n) * float(k), rows, 1.0, self.law.fill_tokens, packed)
        t = np.maximum(t, 2.0 * rows * n * k / self._most(fmt))
        return np.where(as_array(m) > 0, t, 0.0)

    def _most(self, fmt: str) -> float:
        """The highest rate that the device has for products of a format."""
        return max(self.fp32_flops_per_s, self.matrix_peak["16" if weight_bytes(fmt) == 2.0 else ""])

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
        *,
        gated: bool = True,
        kernel: str | None = None,
        deal: Deal = EVEN,
    ) -> Array:
        """See the head of the module; experts touched as `moe_active_experts` has them."""
        fmt, count = known_format(fmt), as_array(tokens)
        assigned = np.maximum(np.maximum(count, 1.0) * topk / ep, 1.0)
        local = np.float64(experts / ep)
        active = np.minimum(moe_active_experts(local, assigned, chosen=topk / experts), assigned)
        inputs = 2.0 if gated else 1.0
        weights = (inputs + 1.0) * hidden * intermediate / tp
        packed = packed_format(fmt)
        if packed is not None:
            into, out = packed.of_rows(hidden), packed.of_rows(intermediate)
            bits = (inputs * into.bits_per_weight + out.bits_per_weight) / (inputs + 1.0)
            packed = replace(into, bits_per_weight=bits)
        if tile := self.law.expert_tile_tokens:
            assigned = np.where(count >= self.law.expert_tile_from, np.maximum(assigned, tile * active), assigned)
        product_s = self.product_s(fmt, weights, assigned, active, self.law.expert_fill_tokens, packed, self.law.expert_share)
        t = EXPERT_LAUNCHES * self.launch_s + product_s
        t = np.maximum(t, 2.0 * weights * assigned / self._most(fmt))
        return np.where(count > 0, t, 0.0)

    # -- attention --------------------------------------------------------------------------------------------

    def _reading_s(self, moved_bytes: Array, flops: Array, shared: bool) -> Array:
        share = self.law.decode_kv_share[shared] if self.law.decode_kv_share else self.law.kv_share
        read_s = moved_bytes / (share * self.peaks.hbm_bytes_per_s)
        return self.launch_s + np.maximum(read_s, flops / (self.law.attend[0] * self.fp32_flops_per_s))

    def decode_attention_s(
        self,
        kv_fmt: str,
        heads: int,
        kv_heads: int,
        head_dim: int,
        window_tokens: int,
        batch: ArrayLike,
        context_tokens: ArrayLike,
    ) -> Array:
        """The KV read once, at the law's share."""
        b, c = np.broadcast_arrays(as_array(batch), np.maximum(as_array(context_tokens), 1.0))
        span = np.minimum(c, window_tokens) if window_tokens > 0 else c
        values = np.maximum(b, 1.0) * span * 2.0 * kv_heads * head_dim
        flops = b * span * heads * (4.0 * head_dim + self.law.attend[1])
        size = weight_bytes(known_format(kv_fmt))
        shared = heads > kv_heads
        t = self._reading_s(values * size, flops, shared)
        if size < 2.0 and self.law.narrow_kv_s is not None:
            narrow_s = self._reading_s(values * max(size, weight_bytes("mlx_8bit")), flops, shared) + self.law.narrow_kv_s
            t = np.minimum(self._reading_s(values * 2.0, flops, shared), narrow_s)
        return np.where(b > 0, t, 0.0)

    def _prompt_s(self, flops: Array, kv_bytes: Array, tokens: Array, heads: int, kv_heads: int) -> Array:
        share, moved_bytes = self.law.prompt_share(kv_heads), self.law.passed_bytes(kv_bytes, tokens, heads, kv_heads)
        peak = max(self.matrix_peak["16"], self.fp32_flops_per_s)
        compute_s = np.maximum(flops / (share * self.matrix_peak["16"]), flops / peak)
        return self.launch_s + np.maximum(compute_s, moved_bytes / (self.law.kv_share * self.peaks.hbm_bytes_per_s))

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
    ) -> Array:
        """Arithmetic at the law's share of the 16-bit peak, never less than reading the cached KV."""
        q, prior = np.broadcast_arrays(as_array(new_tokens), np.maximum(as_array(prior_tokens), 0.0))
        new = np.maximum(q, 1.0)
        pairs = causal_pairs(new, prior, np.float64(window_tokens))
        past = np.minimum(prior, window_tokens) if window_tokens > 0 else prior
        moved = (past + new) * 2.0 * kv_heads * head_dim * weight_bytes(known_format(kv_fmt))
        return np.where(q > 0, self._prompt_s(4.0 * heads * head_dim * pairs, moved, new, heads, kv_heads), 0.0)

    def mla_decode_s(
        self, fmt: str, kv_fmt: str, heads: int, batch: ArrayLike, context_tokens: ArrayLike
    ) -> Array:
        """The latent KV read once, at the law's share."""
        b, c = np.broadcast_arrays(as_array(batch), np.maximum(as_array(context_tokens), 1.0))
        rows = np.maximum(b, 1.0) * c
        moved = rows * (MLA_KV_RANK + MLA_ROPE) * weight_bytes(known_format(kv_fmt))
        flops = rows * heads * (4.0 * MLA_KV_RANK + 2.0 * MLA_ROPE + self.law.attend[1])
        return np.where(b > 0, self._reading_s(moved, flops, True), 0.0)

    def mla_prefill_s(
        self, fmt: str, kv_fmt: str, heads: int, new_tokens: ArrayLike, prior_tokens: ArrayLike
    ) -> Array:
        """As `prefill_attention_s`, over the latent keys or expanded ones."""
        q, prior = np.broadcast_arrays(as_array(new_tokens), np.maximum(as_array(prior_tokens), 0.0))
        new = np.maximum(q, 1.0)
        pairs = causal_pairs(new, prior, np.float64(0.0))
        moved = (prior + new) * (MLA_KV_RANK + MLA_ROPE) * weight_bytes(known_format(kv_fmt))
        width = 2 * MLA_KV_RANK + MLA_ROPE if self.law.latent_prompts else MLA_NOPE + MLA_ROPE + MLA_V
        flops = 2.0 * heads * width * pairs
        return np.where(q > 0, self._prompt_s(flops, moved, new, heads, 0), 0.0)

    def elementwise_s(self, moved_bytes: ArrayLike) -> Array:
        """A launch, and the bytes at the share that 16-bit weights are read at."""
        size = as_array(moved_bytes)
        t = self.launch_s + self.law.traffic_factor * size / (_of(self.law.read, "", "16") * self.peaks.hbm_bytes_per_s)
        return np.where(size > 0, t, 0.0)


#: Operations of a layer of experts: softmax, choice, their weights, three products, biases, activation, weighting, sum. kind: by
#: construction (graph of llama.cpp).
EXPERT_LAUNCHES = 14


def known_format(fmt: str) -> str:
    return fmt if packed_format(fmt.lower()) else canonical_format(fmt)


def weight_bytes(fmt: str) -> float:
    """Bytes of a stored value, of a packed format or one of the kernel tables."""
    stored = packed_format(fmt)
    return stored.bits_per_weight / 8 if stored else WEIGHT_BYTES[canonical_format(fmt)]


__all__ = ["EXPERT_LAUNCHES", "FEW_TOKENS", "Law", "LawOps", "Within", "known_format", "weight_bytes"]
