"""What a step is made of: the operations of a stage of layers on one rank, and the terms around them.

`TOKEN_TERMS` are timed by the tokens of a step, `ROW_TERMS` by the rows that yield a token; each is a function of the shard that
a rank computes and of an array of sizes, and yields named seconds. Their sum is tabulated by
:mod:`engine_models.cost.step_time`. Attention, which depends on more than one number, has a module of its own. A new term is a
function in one of the two tuples, and a field of `Terms` if an engine decides about it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine_models.cost import (
    cutlass_blocks,
    dequantised,
    marlin,
    ring_sums,
    serial_quantisation,
    token_tiles,
)
from engine_models.cost.sampling import Sampler, truncation_s
from engine_models.model.architecture import Gemm, MoeShape, format_of_part, gemm_shapes, moe_shapes, stages
from engine_models.model.blocks import Architecture
from engine_models.model.formats import Format
from hardware_profiles.errors import PlanError
from hardware_profiles.kernel_physics import WEIGHT_BYTES, canonical_format, moe_weight_bytes
from hardware_profiles.ops import Ops
from hardware_profiles.records import dataclass

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Parts = Iterator[tuple[str, FloatArray]]
"""Named seconds; a name may come several times."""


@dataclass(frozen=True)
class HostOverhead:
    """Time outside the kernels, per engine; values, sources and kinds stand in `engine_models/cost/overheads/`.

    step_s : host time of a step whatever its size (schedule, input preparation, launch, read-back).
    row_s : host time per row of the batch.
    device_step_s : device time of a step that no kernel table holds (input copies, sampler, gaps between graphs).
    device_layer_s : device time per layer that no kernel table holds (gaps between kernels of a layer).
    sort_step_s : device time of a truncated (top-p, top-k) sampler whatever its rows: a chain of uncaptured kernels.
    sort_cycles_per_logit : cycles of one multiprocessor that the sort of a truncated sampler takes per logit.
    launch_s : host time to launch one operation that no CUDA graph holds. Launches queue up ahead of the device, so a step
        takes the longer of the two sums (not the sum of the longer ones).
    expert_launches : launches that the experts of a layer cost the host, counted in plain operations: selection (2), alignment of
        rows to experts (4), two grouped products, activation, sum; a Triton kernel, launched from Python, costs about five.
    reduce_wait_s : wait for the slowest rank at an all-reduce, beyond what a benchmark of aligned ranks shows.
    prefill_launch_s : launch_s for steps with prefill rows, of an engine whose CUDA graphs for decode steps do not hold them.
    decode_launch_s : prefill_launch_s for steps without prefill rows that the graphs of decode steps do not hold (0: the same).
    prefill_graph_tokens : most tokens of a step with prefill rows that graphs of their own hold (0: there are none).
    prefill_graph_launch_s : the same per operation where such graphs hold it: they are a chain of pieces, between which some
        operations are launched.
    """

    step_s: float
    row_s: float
    device_step_s: float = 0.0
    device_layer_s: float = 0.0
    sort_step_s: float = 0.0
    sort_cycles_per_logit: float = 0.0
    launch_s: float = 0.0
    expert_launches: float = 17.0
    reduce_wait_s: float = 0.0
    prefill_launch_s: float = 0.0
    decode_launch_s: float = 0.0
    prefill_graph_tokens: int = 0
    prefill_graph_launch_s: float = 0.0

    def slowed(self, factor: float) -> HostOverhead:
        """The same on a host that takes `factor` times as long; device times stay."""
        return replace(
            self,
            step_s=factor * self.step_s,
            row_s=factor * self.row_s,
            launch_s=factor * self.launch_s,
            prefill_launch_s=factor * self.prefill_launch_s,
            decode_launch_s=factor * self.decode_launch_s,
            prefill_graph_launch_s=factor * self.prefill_graph_launch_s,
        )


#: Operations of a layer beside its linear layers, normalisations and collectives: rotary embedding, cache write, attention.
ATTENTION_LAUNCHES = 3
#: Operations that the host launches for the exchange around a layer of experts that ranks share: gather, scatter. kind: by
#: construction.
EXCHANGE_LAUNCHES = 2
#: More where tensor ranks take part: the residual is added, the whole cleared, filled and copied; for each part taken out of it
#: two. kind: by construction, source: SGLang 0.5.3 to 0.5.9, `layers/communicator.py`, `dp_attention.py`, read 2026-11.
WHOLE_LAUNCHES, PART_LAUNCHES = 4, 2
#: More where tensor ranks part their tokens: they are cut, and gathered afterwards. kind: by construction, source: vLLM,
#: `use_sequence_parallel_moe`.
PARTED_LAUNCHES = 2
#: Format of a product -> bytes of a value of its input, with the scales of NVFP4. kind: by construction.
QUANTISED_BYTES = {"fp8_block": 1.0, "nvfp4": 0.5625}
#: The product whose weights decoding rows multiply by in two parts, in 16 bits.
ABSORBED = "mla_kv_b"
#: Share of the float32 rate of the CUDA cores that a tall, narrow product reaches. kind: assumed, 2026-11; what 128 to 1,024 rows
#: add to the time of 32 in the table named below is that of 0.6 to 0.8.
FP32_EFFICIENCY = 0.7
#: Time of a narrow float32 product per unit of its depth [s]: few tiles, each of which sums over the depth in sequence; up to
#: `SPLIT_ROWS` rows the depth is split over more of them. kind: measured, 2026-07, source: torch.mm of 256 columns at depth 6,144
#: on GB200, 2 to 1,024 rows (vLLM pull request 47973); rows of no width, the arithmetic comes on top.
FP32_DEPTH_S = 1.0e-8
FP32_SPLIT_DEPTH_S = 3.2e-9
#: The same in TF32 (``VLLM_FLOAT32_MATMUL_PRECISION=high``), and the share of the TF32 rate. kind, source: as above.
TF32_DEPTH_S = 3.2e-9
TF32_SPLIT_DEPTH_S = 2.0e-9
TF32_EFFICIENCY = 0.2
SPLIT_ROWS = 16
#: Most rows of a step that vLLM's own float32 router kernel takes. kind: datasheet, 2026-11, source: vLLM 0.23,
#: `fp32_router_gemm.cu`.
SMALL_ROUTER_ROWS = 32
#: How a router in float32 is computed: by cuBLAS on the CUDA cores, by cuBLAS in TF32, by a kernel of vLLM's own for few rows
#: (else cuBLAS), or as three bf16 products that add up to it.
Fp32Router = Literal["cublas", "tf32", "small", "bf16x3"]


@dataclass(frozen=True)
class Formats:
    """Number formats of a deployment."""

    weights: Format
    activations: Format
    kv_cache: Format


@dataclass(frozen=True)
class Parallelism:
    """Devices of a rank by tensor and pipeline parallelism, those that share the experts, and ranks in lockstep over them.

    context : tensor ranks that share the cached tokens of a sequence, see :mod:`engine_models.cost.context_parallel`.
    """

    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    ranks: int = 1
    context: int = 1


@dataclass(frozen=True)
class Terms:
    """What an engine decides about the time of a step, beside the operations of the layers.

    host : overheads of the engine.
    graph_sizes : CUDA-graph sizes in tokens; a batch is padded up to the next one, above the last it is not. Empty: nothing is
        captured, every operation is launched by the host.
    exact_graphs : nothing is padded: a graph holds batches of its size only, others are launched by the host.
    truncated_sampling : whether requests are sampled with top-p or top-k, which sorts the logits.
    sampler : how that is done, see :mod:`engine_models.cost.sampling`.
    sample_bytes_per_logit : memory traffic of plain sampling; five passes in float32 (convert, penalties, softmax, draw, arg
        max).
    query_tokens, sampled_tokens : tokens of a decoding row that are computed, and that logits are made of, in a step (with
        speculative decoding one more than its drafts). The attention of several queries of a row reads its KV once: it is
        priced as that of as many times the query heads.
    lone_tokens_decode : whether a step whose rows compute one token each is one of decoding rows, whatever these tokens are.
    fp32_router : how a router that the model wants in float32 is computed, see `Fp32Router`.
    moe_backend : backend of the experts by the engine's word for it (``marlin``); None, or one that the tables lack: the one
        that measured layers like these run on.
    moe_by_flag : whether that is what somebody asked for, and not the engine's own choice.
    moe_rival : a backend with the same kernels in other tiles, "" for none: of both tables the quicker holds at each size, since
        the engine's own tiles for these layers were tuned, and neither table was timed with them.
    attention : backends of plain attention of prompts and of decoding rows by the engine's words, "" for the one that measured
        layers like these run on, which stands in too where the tables lack one. A framework before a word means its tables.
    attention_by_flag : whether it is told where the tables lack those: somebody asked for them, or they are much slower.
    gather_factor : times that the KV cache of a step that gathers it passes the memory beside attention, reads and writes.
    small_kernels : whether the kernels of latent attention and shared experts that no table holds are launched one by one;
        `joins_small_kernels` : a compiler joins them to their neighbours, so that they cost their bytes alone.
    ring_sums : whether sums over tensor ranks beyond an engine's own kernels go around a ring
        (:mod:`engine_models.cost.ring_sums`), not through the switch.
    earlier_sums : whether sums over tensor ranks that hold no norms run in the kernel that engines shared before their own.
    fixed_grid_attention : whether prompts and decoding rows share a call of FlashAttention 2, see
        :mod:`engine_models.cost.flash_attention2`.
    threads : of a CPU that compute; 0: one on each core.
    gathered_bytes : of a value of the activations that ranks gather before experts that they share.
    routed : whether tokens go to their experts' ranks alone, and not all to all. one_sided : whether they are written into the
        memory of those ranks, and the sums read from there (:mod:`engine_models.cost.one_sided`).
    exchanges_over_all : whether the tensor ranks of a data-parallel rank have parts of the exchange around experts, which is the
        reduction of their sums too.
    parts_tokens : whether each tensor rank of several data-parallel ones takes a part of their tokens to the experts: all devices
        exchange, and tensor ranks gather what they had parted, in place of the reduction of their sums.
    beside_tokens : most tokens of a step that a CUDA graph holds in which a shared expert runs beside the routed ones, in a
        second stream; 0: it never does.
    expert_launches, latent_launches, recurrent_launches : launches that the experts of a layer, latent attention and a recurrence
        cost the host beside its products, counted in plain operations; None: those of the overheads.
    quantises : whether the input of a product in narrow arithmetic is quantised by an operation of its own.
    quantises_apart : formats in which that operation is beside what the tables of products hold.
    selection_kernels, selection_passes : kernels that select the experts of a layer beyond the one that engines have written for
        it, and how many passes over the scores they take as long as.
    norm_kernels : kernels of each of a layer's norms beyond one, each a pass as it is.
    head_norm_kernels : kernels of a layer's norms by head, each a pass over queries and keys; 0: one for queries and one for
        keys, which take one such pass together.
    copies_heads : whether queries and keys are copied out of their product's output before norms by head.
    rotary_in_attention : whether attention rotates queries and keys in the kernel that writes its cache, which its tables hold.
    widens_kv : whether a narrow KV cache is widened to 16 bits before attention, in a pass that reads and writes it.
    ungrouped_bytes_per_s : rate at which decoding rows pass the cache once for every query head, in a kernel that has no block
        for a group of them; 0: it has.
    flattens_kv : whether the cache of a prompt's rows is first copied into one piece of 16 bits, from whatever it is kept in.
    expands_latents : whether prompts of latent attention expand the latents cached before them.
    absorbs_below : prompts of latent attention are computed in the absorbed form if their step's rows have something cached
        before them, but fewer tokens altogether than this.
    fused_norm_tokens : up to so many tokens of a step the norms of its layers are part of the reductions over ranks before them.
    absorbs_captured : whether they are so in every step that a CUDA graph holds.
    splits_graphs : whether recurrences are launched one by one, at `launch_s`, in every step with prefill rows, between the
        pieces of its graph.
    fills_selection : whether sparse latent attention is computed with as many entries as a query may choose, however few there
        are.
    dense_prompts : whether prompts of sparse latent attention that have no more tokens, with those before them, than a query may
        choose attend to all of them in the expanded form, and nothing is chosen; not in steps that take the absorbed form.
    chunked_decodes : mechanisms of recurrences whose decoding rows take the kernel of prompts in a step that has a prompt; rows
        with drafts do not.
    token_tiles : whether products with weights in FP8 blocks run in tiles of few tokens
        (:mod:`engine_models.cost.token_tiles`).
    cutlass_blocks : whether such products run on CUTLASS's kernel for Hopper
        (:mod:`engine_models.cost.cutlass_blocks`).
    pads_blocks : whether their inputs are copied there to be padded.
    serial_quantisation : whether the inputs of such products are quantised token after token
        (:mod:`engine_models.cost.serial_quantisation`).
    marlin_share : share of the device's rate in 16 bits that products with narrow weights reach on Marlin's kernels
        (:mod:`engine_models.cost.marlin`); 0: they run on others.
    """

    host: HostOverhead
    graph_sizes: tuple[int, ...] = ()
    exact_graphs: bool = False
    small_kernels: bool = False
    joins_small_kernels: bool = False
    ring_sums: bool = False
    earlier_sums: bool = False
    truncated_sampling: bool = False
    sampler: Sampler = "sort"
    sample_bytes_per_logit: float = 20.0
    query_tokens: int = 1
    sampled_tokens: int = 1
    lone_tokens_decode: bool = False
    fp32_router: Fp32Router = "cublas"
    moe_backend: str | None = None
    moe_by_flag: bool = True
    moe_rival: str = ""
    attention: tuple[str, str] = ("", "")
    attention_by_flag: bool = False
    gather_factor: float = 0.0
    fixed_grid_attention: bool = False
    threads: int = 0
    gathered_bytes: float = 2.0
    routed: bool = False
    one_sided: bool = False
    exchanges_over_all: bool = False
    parts_tokens: bool = False
    beside_tokens: int = 0
    expert_launches: float | None = None
    latent_launches: float = 0.0
    recurrent_launches: float = 0.0
    quantises: bool = False
    quantises_apart: tuple[str, ...] = ()
    selection_kernels: int = 0
    selection_passes: int = 0
    norm_kernels: int = 0
    head_norm_kernels: int = 0
    copies_heads: bool = False
    rotary_in_attention: bool = False
    widens_kv: bool = False
    ungrouped_bytes_per_s: float = 0.0
    flattens_kv: bool = False
    expands_latents: bool = False
    absorbs_below: int = 0
    absorbs_captured: bool = False
    fused_norm_tokens: int = 0
    splits_graphs: bool = False
    fills_selection: bool = False
    dense_prompts: bool = False
    chunked_decodes: tuple[str, ...] = ()
    token_tiles: bool = False
    cutlass_blocks: bool = False
    pads_blocks: bool = False
    serial_quantisation: bool = False
    marlin_share: float = 0.0


@dataclass(frozen=True)
class Shard:
    """What one rank computes of a model, in which formats, by the operations of which device.

    With a pipeline it is the slowest stage. Where ranks share the experts (`parallel.ranks` above 1) those are no part of it.
    """

    arch: Architecture
    ops: Ops
    formats: Formats
    parallel: Parallelism
    terms: Terms

    @cached_property
    def stages(self) -> tuple[Architecture, ...]:
        """Pipeline stages."""
        return stages(self.arch, self.parallel.pipeline)

    @cached_property
    def stage(self) -> Architecture:
        """The slowest of them."""
        return max(self.stages, key=lambda s: s.layers)

    def weights_format(self, part: str) -> str:
        """Format in which the kernel of a part runs, see :func:`kernel_format`."""
        return kernel_format(self.stage, self.formats, part)

    @cached_property
    def recurrent_launches(self) -> float:
        """Of the launches of a step those of recurrences."""
        layers = sum(block.layers for block in self.stage.attention if block.kind == "linear")
        return self.terms.recurrent_launches * layers

    def launches(self) -> float:
        """Operations that the host launches in a step of the stage without CUDA graphs."""
        stage, tensor = self.stage, self.parallel.tensor
        gemms = [gemm for gemm in gemm_shapes(stage, tensor, self.parallel.expert) if gemm.per == "token"]
        found = float(sum(gemm.layers * (2 if self._quantises(gemm.part) else 1) for gemm in gemms))
        norms = 0 if self.terms.fused_norm_tokens else stage.norms_per_layer * (1 + self.terms.norm_kernels)
        found += norms * stage.layers + (self.reduces if tensor > 1 else 0)
        by_head = {"none": 0, "head": self.terms.head_norm_kernels or 2, "full": 2}
        found += sum(block.layers * (ATTENTION_LAUNCHES + by_head[block.qk_norm]) for block in stage.attention)
        found += sum(block.layers * self.terms.latent_launches for block in stage.attention if block.kind == "mla")
        found += self.recurrent_launches
        own = 0 if self.terms.joins_small_kernels else OWN_INPUT_NARROW + OWN_INPUT_WIDE
        found += own * sum(layers for layers, _ in own_inputs(stage))
        counted = self.terms.expert_launches
        experts = self.terms.host.expert_launches if counted is None else counted
        experts += self.terms.selection_kernels + (2 if self._quantises("experts") else 0)
        found += sum(mlp.layers * (experts if mlp.kind == "moe" else 1) for mlp in stage.mlp)
        shared = sum(mlp.layers for mlp in stage.mlp if mlp.kind == "moe") if self.parallel.ranks > 1 else 0
        over_all = WHOLE_LAUNCHES + (2 if tensor > 1 else 1) * PART_LAUNCHES if self.terms.exchanges_over_all else 0
        over_all += PARTED_LAUNCHES * self.terms.parts_tokens
        return found + (EXCHANGE_LAUNCHES + over_all) * shared

    @cached_property
    def reduces(self) -> int:
        """Outputs that tensor ranks reduce: of each mixer with an output projection, of each MLP, or of both together."""
        stage, ranks = self.stage, self.parallel.ranks > 1
        each = 2 * (ranks and self.terms.exchanges_over_all) + (ranks and self.terms.parts_tokens)
        if stage.summed_once:
            return stage.layers
        ends = sum(b.layers for b in stage.attention if any(linear.name in ("o", "linear_out") for linear in b.linears))
        exchanged = sum(mlp.layers for mlp in stage.mlp if mlp.kind == "moe")
        return ends + sum(mlp.layers for mlp in stage.mlp) - each * exchanged

    def _quantises(self, part: str) -> bool:
        """Whether an operation beside a part's product makes its input narrow."""
        fmt = format_of_part(self.stage, self.formats.weights, part)
        return self.terms.quantises and not fmt.weight_only and fmt.compute not in ("bf16", "fp16", "fp32")


def kernel_format(arch: Architecture, formats: Formats, part: str) -> str:
    """Format in which the kernel of a part runs (its weights', or bf16 where the checkpoint keeps that).

    Experts in mxfp4 multiply in bf16, or in fp8 where the activations are quantised to it; weights in mxfp8 are widened where
    these are in 16 bits (Marlin in vLLM, as 8-bit weights).
    """
    fmt = format_of_part(arch, formats.weights, part)
    if fmt.name == "mxfp8" and formats.activations.compute in ("bf16", "fp16"):
        return "fp8a16"
    if fmt.name == "mxfp4" and part == "experts" and formats.activations.compute == "fp8":
        return "w4a8_mxfp4_mxfp8"
    return "bf16" if fmt.name in ("fp16", "bf16", "fp32") else fmt.name


# -- by tokens ----------------------------------------------------------------------------------------------


def linear_layers(shard: Shard, m: IntArray) -> Parts:
    """Products with dense weights, the router in the precision that the model asks for."""
    stage = shard.stage
    in_fp32 = any(mlp.router_fp32 for mlp in stage.mlp)
    for gemm in gemm_shapes(stage, shard.parallel.tensor, shard.parallel.expert):
        if gemm.per == "token":
            times = product_s(shard, gemm, m)
            if gemm.part == "router" and in_fp32:
                times = fp32_gemm_s(shard.ops, shard.terms.fp32_router, times, m, gemm.n, gemm.k)
            yield "linear layers", gemm.layers * times


def product_s(shard: Shard, gemm: Gemm, m: IntArray) -> FloatArray:
    """Seconds of one product of a layer; with weights in 32 bits twice those in 16, or the arithmetic in 32 bits."""
    fmt = shard.weights_format(gemm.part)
    if fmt == dequantised.NF4:
        return dequantised.product_s(shard.ops, m, gemm.n, gemm.k)
    if shard.terms.token_tiles and fmt == "fp8_block" and gemm.k >= token_tiles.LEAST_DEPTH:
        return token_tiles.product_s(shard.ops, m, gemm.n, gemm.k)
    if shard.terms.cutlass_blocks and fmt == "fp8_block":
        return cutlass_blocks.product_s(shard.ops, m, gemm.n, gemm.k, pads=shard.terms.pads_blocks)
    narrow_s: FloatArray = shard.ops.gemm_s(fmt, m, gemm.n, gemm.k)
    if shard.terms.marlin_share and fmt != "bf16" and marlin.widens(shard.ops, fmt):
        return np.maximum(narrow_s, marlin.floor_s(shard.ops, shard.terms.marlin_share, m, gemm.n, gemm.k))
    if shard.terms.serial_quantisation and fmt == "fp8_block":
        return narrow_s + serial_quantisation.pass_s(shard.ops, m, gemm.n, gemm.k)
    if fmt in shard.terms.quantises_apart and gemm.name != ABSORBED:
        return narrow_s + shard.ops.elementwise_s((2.0 + QUANTISED_BYTES[fmt]) * np.asarray(m, dtype=np.float64) * gemm.k)
    if format_of_part(shard.stage, shard.formats.weights, gemm.part).name != "fp32":
        return narrow_s
    computed_s = m.astype(np.float64) * (2.0 * gemm.n * gemm.k / (FP32_EFFICIENCY * fp32_rate(shard.ops)))
    return np.maximum(2.0 * narrow_s, computed_s)


def fp32_gemm_s(ops: Ops, how: Fp32Router, in_bf16_s: FloatArray, m: IntArray, n: int, k: int) -> FloatArray:
    """Time of a narrow linear layer in float32, never less than the same layer takes in bf16 (launch, memory).

    cuBLAS converts the input and sums over the depth in sequence: t = depth * k + 2 m n k / rate, on the CUDA cores or in
    TF32. vLLM's own kernels take the input as it is; three bf16 products cost as one of three times the depth.
    """
    if how == "bf16x3":
        thrice_s: FloatArray = ops.gemm_s("bf16", m, n, 3 * k)
        return np.maximum(in_bf16_s, thrice_s)
    if how == "tf32":
        rate = TF32_EFFICIENCY * ops.peaks.rate("bfloat16") / 2
        per_depth = np.where(m <= SPLIT_ROWS, TF32_SPLIT_DEPTH_S, TF32_DEPTH_S)
    else:
        rate = FP32_EFFICIENCY * fp32_rate(ops)
        per_depth = np.where(m <= SPLIT_ROWS, FP32_SPLIT_DEPTH_S, FP32_DEPTH_S)
    product = np.maximum(in_bf16_s, per_depth * k + 2.0 * m * n * k / rate)
    total_s: FloatArray = ops.elementwise_s(6.0 * m * k) + product
    return np.where(m <= SMALL_ROUTER_ROWS, in_bf16_s, total_s) if how == "small" else total_s


def fp32_rate(ops: Ops) -> float:
    """FLOP/s of the device in float32; a fifteenth of bf16 where unknown (A100 and H100: 1/16 and 1/15; datasheets)."""
    from hardware_profiles.device import load_device

    try:
        known = load_device(ops.device).peak_flops_per_s.get("fp32")
    except PlanError:
        known = None
    return known.value if known is not None else ops.peaks.rate("bfloat16") / 15.0


def experts(shard: Shard, m: IntArray) -> Parts:
    """Layers of experts, unless ranks share them."""
    shapes = moe_shapes(shard.stage, shard.parallel.tensor, shard.parallel.expert)
    if shapes and shard.parallel.ranks == 1:
        routed_s = experts_s(shard, shapes, m)
        yield "experts", routed_s - (hidden_s(shard, shapes, m, routed_s) if shard.terms.beside_tokens else 0.0)


def hidden_s(shard: Shard, shapes: list[MoeShape], m: IntArray, routed_s: FloatArray) -> FloatArray:
    """Seconds of a shared expert's products that hide behind the routed ones, where a CUDA graph holds both streams.

    The streams share the device: together they take no less than the weights of both from memory, nor than their arithmetic.
    """
    peaks, tokens = shard.ops.peaks, np.asarray(m, dtype=np.float64)
    shared_s, read, computed_s = np.zeros(len(m)), np.zeros(len(m)), np.zeros(len(m))
    fmt = canonical_format(shard.weights_format("shared_expert"))
    for gemm in gemm_shapes(shard.stage, shard.parallel.tensor, shard.parallel.expert):
        if gemm.part == "shared_expert":
            shared_s = shared_s + gemm.layers * product_s(shard, gemm, m)
            read = read + gemm.layers * gemm.n * gemm.k * WEIGHT_BYTES[fmt]
            computed_s = computed_s + gemm.layers * 2.0 * tokens * gemm.n * gemm.k / peaks.rate(fmt)
    fmt = canonical_format(shard.weights_format("experts"))
    for moe in shapes:
        sizes = (moe.hidden, moe.intermediate, moe.topk, moe.experts, moe.tp, moe.ep, moe.gated)
        hidden, width, topk, experts, tp, ep, gated = (np.float64(size) for size in sizes)
        read = read + moe.layers * moe_weight_bytes(fmt, tokens, hidden, width, topk, experts, tp, ep, gated)
        matrices = 3.0 if moe.gated else 2.0
        flops = 2.0 * matrices * tokens * moe.topk * moe.hidden * moe.intermediate / (moe.tp * moe.ep)
        computed_s = computed_s + moe.layers * flops / peaks.rate(fmt)
    together_s = np.maximum(np.maximum(shared_s, routed_s), np.maximum(read / peaks.hbm_bytes_per_s, computed_s))
    most = min(shard.terms.beside_tokens, max(shard.terms.graph_sizes, default=0))
    return np.where(m <= most, np.maximum(shared_s + routed_s - together_s, 0.0), 0.0)


def experts_s(shard: Shard, shapes: list[MoeShape], m: IntArray) -> FloatArray:
    """Seconds of layers of experts, split as `shapes` say, for `m` routed tokens of the ranks that share them."""
    ops, word = shard.ops, shard.terms.moe_backend
    experts_format = shard.weights_format("experts")
    backend = ops.expert_backend(experts_format, word) if word else None
    if backend is None and word and "/" not in word:
        backend = word  # tables of another format or framework may hold it
    widens = experts_format == dequantised.NF4
    experts_format = "bf16" if widens else experts_format
    total = np.zeros(len(m))
    rival = ops.expert_backend(experts_format, shard.terms.moe_rival) if shard.terms.moe_rival else None
    for moe in shapes:
        of_experts = (moe.hidden, moe.intermediate, moe.topk, moe.experts, moe.tp, moe.ep)
        each = [
            ops.moe_s(experts_format, *of_experts, m, gated=moe.gated, kernel=one, deal=moe.deal)
            for one in (backend, *([rival] if rival else ()))
        ]
        times = np.minimum.reduce(each)
        if widens:
            matrices = 3.0 if moe.gated else 2.0
            own = matrices * moe.experts * moe.hidden * moe.intermediate / (moe.tp * moe.ep)
            times = times + dequantised.widening_s(ops, own)
        total = total + moe.layers * times
    return 2.0 * total if shard.formats.weights.name == "fp32" else total


def norms_and_rotary(shard: Shard, m: IntArray) -> Parts:
    """Normalisations of a layer, rotary embedding of queries and keys, and their norms (bytes by construction).

    Each of a layer's normalisations reads and writes the activation and the residual.
    """
    ops, stage, tp = shard.ops, shard.stage, shard.parallel.tensor
    norms_s = stage.norms_per_layer * (1 + shard.terms.norm_kernels) * stage.layers * ops.elementwise_s(4.0 * _width(shard, m))
    yield "norms", np.where(m <= shard.terms.fused_norm_tokens, 0.0, norms_s)
    for block in stage.attention:
        if block.kind == "linear":  # the gated norm of what comes out
            inner = np.asarray(m, dtype=np.float64) * 2.0 * (block.heads // tp) * block.v_head_dim
            yield "norms", block.layers * ops.elementwise_s(3.0 * inner)
            continue
        rotary = np.asarray(m, dtype=np.float64) * 2.0 * (block.heads // tp + max(1, block.kv_heads // tp)) * block.head_dim
        if not shard.terms.rotary_in_attention:
            yield "rotary", block.layers * ops.elementwise_s(2.0 * rotary)
        if block.qk_norm == "head":  # reads and writes q and k
            yield "norms", block.layers * max(1, shard.terms.head_norm_kernels) * ops.elementwise_s(2.0 * rotary)
            if shard.terms.copies_heads:  # one token's stand in one piece
                yield "norms", block.layers * np.where(np.asarray(m) > 1, ops.elementwise_s(2.0 * rotary), 0.0)
        elif block.qk_norm == "full":  # variances over all heads: one kernel to sum, one to scale
            yield "norms", block.layers * (ops.elementwise_s(rotary) + ops.elementwise_s(2.0 * rotary))
            if tp > 1:  # the heads are split, so the sums of q and of k (float32 each) are reduced over the ranks
                yield "collectives", block.layers * ops.all_reduce_s(tp, 8.0 * m)


def activation(shard: Shard, m: IntArray) -> Parts:
    """The gated activation of dense layers reads two halves and writes one (bytes by construction)."""
    for mlp in shard.stage.mlp:
        if mlp.kind == "dense":
            act = np.asarray(m, dtype=np.float64) * 2.0 * max(1, mlp.intermediate // shard.parallel.tensor)
            yield "activation", mlp.layers * shard.ops.elementwise_s(3.0 * act)


LATENT_NORMS, LATENT_PASSES, SHARED_KERNELS = 2, 2, 2
"""Kernels of a layer that no table holds (by construction: SGLang 0.5, `models/deepseek_v2.py`).

Latent attention: the norms of both latents (together about a quarter of the hidden width, assumed); over the queries, the second
of the two absorbed products, and what puts their parts together and writes the cache. A shared expert: activation, and the sum
with the routed ones."""


OWN_INPUT, OWN_INPUT_NARROW, OWN_INPUT_WIDE = "per_layer_gate", 2, 4
"""Product that tells a layer with an embedding of its own, and the kernels beside its products (by construction: SGLang 0.5.23,
`models/gemma4_causal.py`): over the embedding's width the activation and the product with it; over the hidden state the sum
before it, the norm of what comes out, the sum with it, and the layer's scale. Without it one kernel norms, adds and scales."""


def own_inputs(stage: Architecture) -> Iterator[tuple[int, int]]:
    """Layers with an embedding of their own, and its width, a block each."""
    for block in stage.attention:
        for linear in block.linears:
            if linear.name == OWN_INPUT:
                yield block.layers, linear.shape(1)[0]


def small_kernels(shard: Shard, m: IntArray) -> Parts:
    """Kernels that no table holds, each a pass over the activations that it reads and writes."""
    if not (shard.terms.small_kernels or shard.terms.joins_small_kernels):
        return
    ops, tp, width = shard.ops, shard.parallel.tensor, _width(shard, m)
    floor_s = float(ops.elementwise_s(1.0)) if shard.terms.joins_small_kernels else 0.0

    def passes_s(number: int, moved_bytes: FloatArray) -> FloatArray:
        return number * (ops.elementwise_s(moved_bytes) - floor_s)

    for block in shard.stage.attention:
        if block.kind == "mla":
            queries = np.asarray(m, dtype=np.float64) * 2.0 * (block.heads // tp) * block.head_dim
            latent_s = passes_s(LATENT_NORMS, width / 2) + passes_s(LATENT_PASSES, 2.0 * queries)
            yield "small kernels", block.layers * latent_s
    for layers, own_width in own_inputs(shard.stage):
        narrow = np.asarray(2.0 * m * own_width, dtype=np.float64)
        yield "small kernels", layers * (passes_s(OWN_INPUT_NARROW, 3.0 * narrow) + passes_s(OWN_INPUT_WIDE, 2.5 * width))
    for mlp in shard.stage.mlp:
        if mlp.shared_intermediate:
            yield "small kernels", mlp.layers * passes_s(SHARED_KERNELS, 2.0 * width)
        if mlp.kind == "moe" and shard.terms.selection_passes:
            scores = np.asarray(4.0 * m * mlp.experts, dtype=np.float64)
            yield "small kernels", mlp.layers * passes_s(shard.terms.selection_passes, 2.0 * scores)


def sum_s(shard: Shard, devices: int, sum_bytes: FloatArray, *, earlier: bool = False) -> FloatArray:
    """Seconds of a sum over `devices` devices, `sum_bytes` on each, with the wait for the slowest; in the `earlier` kernel."""
    alone_s: FloatArray = (shard.ops.earlier_all_reduce_s if earlier else shard.ops.all_reduce_s)(devices, sum_bytes)
    if shard.terms.ring_sums:
        alone_s = np.maximum(alone_s, ring_sums.floor_s(shard.ops, devices, sum_bytes))
    return alone_s + shard.terms.host.reduce_wait_s


EARLIER_SUM_BYTES = 8 << 20
"""Most bytes of a tensor that the kernel takes which engines shared before their own; NCCL sums more (datasheet:
``_MAX_CAR_SIZE`` of `custom_all_reduce.py`, SGLang before 0.5.12, read 2026-11)."""


def collectives(shard: Shard, m: IntArray) -> Parts:
    """An all-reduce after each mixer and MLP of a layer under tensor parallelism, with the wait for the slowest rank; the hop to
    the next stage."""
    ops, tp, width = shard.ops, shard.parallel.tensor, _width(shard, m)
    if tp > 1:
        each_s = sum_s(shard, tp, width)
        if shard.terms.earlier_sums:
            otherwise = (m <= shard.terms.fused_norm_tokens) | (width > EARLIER_SUM_BYTES)
            each_s = np.where(otherwise, each_s, sum_s(shard, tp, width, earlier=True))
        yield "collectives", float(shard.reduces) * each_s
    if len(shard.stages) > 1:
        yield "pipeline hop", ops.p2p_s(width)


def gaps(shard: Shard, m: IntArray) -> Parts:
    """Device time between the kernels of a layer."""
    yield "gaps", np.full(len(m), shard.stage.layers * shard.terms.host.device_layer_s)


def _width(shard: Shard, m: IntArray) -> FloatArray:
    """Bytes of the hidden state in 16 bit."""
    return np.asarray(2.0 * m * shard.stage.hidden, dtype=np.float64)


Term = Callable[[Shard, IntArray], Parts]

TOKEN_TERMS: tuple[Term, ...] = (linear_layers, experts, norms_and_rotary, activation, small_kernels, collectives, gaps)


# -- by rows ------------------------------------------------------------------------------------------------


def lm_head(shard: Shard, rows: IntArray) -> Parts:
    """Logits of the rows that yield a token, in the last stage."""
    for gemm in gemm_shapes(shard.stages[-1], shard.parallel.tensor, shard.parallel.expert):
        if gemm.per == "sequence":
            yield "LM head", gemm.layers * product_s(shard, gemm, rows)


def sampling(shard: Shard, rows: IntArray) -> Parts:
    """Passes over the logits, truncation where it is asked for, and the gathering of logits that ranks hold in parts."""
    ops, terms, tp = shard.ops, shard.terms, shard.parallel.tensor
    logits = rows.astype(np.float64) * shard.arch.vocab
    yield "sampling", ops.elementwise_s(terms.sample_bytes_per_logit * logits)
    if terms.truncated_sampling:
        host = terms.host
        cut = (terms.sampler, ops, rows.astype(np.float64), shard.arch.vocab)
        yield "truncation", truncation_s(*cut, host.sort_step_s, host.sort_cycles_per_logit)
    if tp > 1:
        yield "collectives", ops.all_reduce_s(tp, 2.0 * logits / tp)


ROW_TERMS: tuple[Term, ...] = (lm_head, sampling)


def parts_s(terms: tuple[Term, ...], shard: Shard, sizes: IntArray) -> dict[str, FloatArray]:
    """Seconds of the terms for each of the sizes, by name, in the order in which the names first come."""
    out: dict[str, FloatArray] = {}
    for term in terms:
        for name, values in term(shard, sizes):
            out[name] = out.get(name, np.zeros(len(sizes))) + values
    return out


__all__ = [
    "ROW_TERMS",
    "TOKEN_TERMS",
    "Formats",
    "Fp32Router",
    "HostOverhead",
    "Parallelism",
    "Shard",
    "Terms",
    "experts_s",
    "fp32_rate",
    "kernel_format",
    "parts_s",
    "sum_s",
]
