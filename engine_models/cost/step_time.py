"""What a step's time is made of.

A step is the sum over the operations of the layer stack on one rank, each timed by the device's kernel model:

    step = sum over layers ( linear layers(m) + experts(m) + attention + collectives(m) + norms, rotary, activation(m) )
           + LM head(rows) + sampling(rows) + the device's fixed cost of a step

and, where no CUDA graph holds the batch (it has more tokens than the largest graph, or nothing is captured), no less than the
host takes to launch the operations one by one:

    step >= launches * host.launch_s

(with `host.prefill_launch_s` for steps that prefill and have no graph of their own, where those of decode steps do not hold
them).

m is the number of tokens in the step after CUDA-graph padding, rows the number of sequences that yield a token. Attention is
taken apart: decode rows by their number and their mean context (unequal lengths cost about the mean, see
docs/background/step_time.md), each prefill chunk by its new and prior tokens.

All kernel times are tabulated once, when a deployment is set up; a step then costs a few look-ups. The same arithmetic serves
one step and a run of steps, so jumping and stepping agree to the last bit.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from engine_models.cost import flash_attention2
from engine_models.cost.sampling import Sampler, truncation_s
from engine_models.model.architecture import MoeShape, format_of_part, gemm_shapes, moe_shapes, stages
from engine_models.model.blocks import Architecture
from engine_models.model.formats import Format
from engine_models.parts.batch import Batch
from engine_models.parts.protocols import StepCost
from hardware_profiles.errors import PlanError
from hardware_profiles.ops import Ops

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class HostOverhead:
    """Time outside the kernels, per engine version; values, sources and kinds stand in the engine's declaration.

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
    prefill_graph_tokens: int = 0
    prefill_graph_launch_s: float = 0.0


#: Operations of a layer beside its linear layers, normalisations and collectives: rotary embedding, cache write, attention.
ATTENTION_LAUNCHES = 3
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


def kernel_format(arch: Architecture, formats: Formats, part: str) -> str:
    """Format in which the kernel of a part runs (its weights', or bf16 where the checkpoint keeps that).

    Experts in mxfp4 multiply in bf16, or in fp8 where the activations are quantised to it.
    """
    fmt = format_of_part(arch, formats.weights, part)
    if fmt.name == "mxfp4" and part == "experts" and formats.activations.compute == "fp8":
        return "w4a8_mxfp4_mxfp8"
    return "bf16" if fmt.name in ("fp16", "bf16", "fp32") else fmt.name


def log_grid(highest: int, per_octave: int) -> IntArray:
    """Integers from 1 to `highest`, about `per_octave` an octave."""
    count = max(2, int(np.log2(max(highest, 2)) * per_octave) + 1)
    return np.unique(np.rint(np.geomspace(1, max(highest, 2), count)).astype(np.int64))


class PiecewiseLinear:
    """A tabulated function of one variable, linear between its nodes and beyond the last; scalar and array agree."""

    def __init__(self, nodes: FloatArray, values: FloatArray) -> None:
        slopes = np.diff(values) / np.diff(nodes)
        slopes = np.append(slopes, slopes[-1])
        self.nodes_array, self.values_array, self.slopes_array = nodes, values, slopes
        self.nodes: list[float] = nodes.tolist()
        self.values: list[float] = values.tolist()
        self.slopes: list[float] = slopes.tolist()

    def at(self, x: float) -> float:
        """Value at a scalar."""
        i = bisect_right(self.nodes, x) - 1
        if i < 0:
            i = 0
        return self.values[i] + self.slopes[i] * (x - self.nodes[i])

    def over(self, x: FloatArray) -> FloatArray:
        """Values at an array, by the same arithmetic as `at`."""
        i = np.searchsorted(self.nodes_array, x, side="right") - 1
        np.maximum(i, 0, out=i)
        return self.values_array[i] + self.slopes_array[i] * (x - self.nodes_array[i])


class StepTimeModel(StepCost):
    """Step times of one replica (one rank of it: ranks work alike, collectives included).

    Parameters
    ----------
    arch : the model.
    kernels : the device's kernel model.
    formats : of weights, activations and KV cache.
    tensor_parallel, pipeline_parallel, expert_parallel : of the replica. With a pipeline the times are those of
        its slowest stage.
    graph_sizes : CUDA-graph sizes in tokens; a batch is padded up to the next one, above the last it is not. Empty: nothing is
        captured, every operation is launched by the host.
    max_step_tokens, max_rows, max_context_tokens : the range to tabulate.
    host : overheads of the engine.
    truncated_sampling : whether requests are sampled with top-p or top-k, which sorts the logits.
    query_tokens, sampled_tokens : tokens of a decoding row that are computed, and that logits are made of, in a step (with
        speculative decoding one more than its drafts). The attention of several queries of a row reads its KV once: it is
        priced as that of as many times the query heads.
    sample_bytes_per_logit : memory traffic of plain sampling; five passes in float32 (convert, penalties, softmax, draw, arg
        max).
    fp32_router : how a router that the model wants in float32 is computed, see `Fp32Router`.
    moe_backend : backend of the experts by the engine's word for it (``marlin``); None, or one that the tables lack: the one
        that measured layers like these run on.
    fixed_grid_attention : whether prompts and decoding rows share a call of FlashAttention 2, see
        :mod:`engine_models.cost.flash_attention2`.
    sampler : how truncated sampling is done, see :mod:`engine_models.cost.sampling`.
    """

    def __init__(
        self,
        arch: Architecture,
        kernels: Ops,
        formats: Formats,
        host: HostOverhead,
        *,
        tensor_parallel: int = 1,
        pipeline_parallel: int = 1,
        expert_parallel: int = 1,
        graph_sizes: tuple[int, ...] = (),
        max_step_tokens: int = 8192,
        max_rows: int = 1024,
        max_context_tokens: int = 131072,
        truncated_sampling: bool = False,
        query_tokens: int = 1,
        sampled_tokens: int = 1,
        sample_bytes_per_logit: float = 20.0,
        moe_backend: str | None = None,
        fp32_router: Fp32Router = "cublas",
        fixed_grid_attention: bool = False,
        sampler: Sampler = "sort",
    ) -> None:
        self.host = host
        self._fixed_grid_attention = fixed_grid_attention
        self._sampler = sampler
        self._fp32_router = fp32_router
        self._query_tokens = query_tokens
        self._samples_drafts = sampled_tokens > 1
        self._sample_bytes_per_logit = sample_bytes_per_logit
        self._kernels = kernels
        self._formats = formats
        self._moe_backend = moe_backend
        self._tp = tensor_parallel
        self._ep = expert_parallel
        self.stages = stages(arch, pipeline_parallel)
        self._stage = max(self.stages, key=lambda s: s.layers)
        self._graph_tokens = max((size for size in graph_sizes if size <= max_step_tokens), default=0)
        self._launches_s = host.launch_s * self.launches()
        self._launches_prefill_s = host.prefill_launch_s * self.launches()
        self._launches_graph_s = host.prefill_graph_launch_s * self.launches()
        self._tabulate_linear(graph_sizes, max_step_tokens)
        self._tabulate_rows(arch, max_rows * sampled_tokens, truncated_sampling)
        self._tabulate_decode(max_rows, max_context_tokens)
        self._tabulate_prefill(max_step_tokens, max_context_tokens)

    # -- tables ---------------------------------------------------------------------------------------------

    def weights_format(self, part: str) -> str:
        """Format in which the kernel of a part runs, see :func:`kernel_format`."""
        return kernel_format(self._stage, self._formats, part)

    def parts_s(self, m: IntArray) -> dict[str, FloatArray]:
        """Seconds of each token-wise operation of a stage for `m` tokens a step, summed over its layers."""
        kernels, tp = self._kernels, self._tp
        stage = self._stage
        out: dict[str, FloatArray] = {}

        def add(name: str, values: FloatArray) -> None:
            out[name] = out.get(name, np.zeros(len(m))) + values

        in_fp32 = any(mlp.router_fp32 for mlp in stage.mlp)
        for gemm in gemm_shapes(stage, tp, self._ep):
            if gemm.per == "token":
                times = kernels.gemm_s(self.weights_format(gemm.part), m, gemm.n, gemm.k)
                if gemm.part == "router" and in_fp32:
                    times = self._fp32_gemm_s(times, m, gemm.n, gemm.k)
                add("linear layers", gemm.layers * times)
        for name, values in self.expert_parts_s(m).items():
            add(name, values)
        width = np.asarray(2.0 * m * stage.hidden, dtype=np.float64)
        # per layer: two normalisations, each reads and writes the activation and the residual; rotary embedding of q and k;
        # the gated activation reads two halves and writes one (bytes by construction of the operations)
        add("norms", stage.norms_per_layer * stage.layers * kernels.elementwise_s(4.0 * width))
        for block in stage.attention:
            rotary = np.asarray(m, dtype=np.float64) * 2.0 * (block.heads // tp + max(1, block.kv_heads // tp)) * block.head_dim
            add("rotary", block.layers * kernels.elementwise_s(2.0 * rotary))
            if block.qk_norm == "head":  # reads and writes q and k
                add("norms", block.layers * kernels.elementwise_s(2.0 * rotary))
            elif block.qk_norm == "full":  # variances over all heads: one kernel to sum, one to scale
                add("norms", block.layers * (kernels.elementwise_s(rotary) + kernels.elementwise_s(2.0 * rotary)))
                if tp > 1:  # the heads are split, so the sums of q and of k (float32 each) are reduced over the ranks
                    add("collectives", block.layers * kernels.all_reduce_s(tp, 8.0 * m))
        for mlp in stage.mlp:
            if mlp.kind == "dense":
                act = np.asarray(m, dtype=np.float64) * 2.0 * max(1, mlp.intermediate // tp)
                add("activation", mlp.layers * kernels.elementwise_s(3.0 * act))
        if tp > 1:
            add("collectives", 2.0 * stage.layers * (kernels.all_reduce_s(tp, width) + self.host.reduce_wait_s))
        if len(self.stages) > 1:
            add("pipeline hop", kernels.p2p_s(width))
        add("gaps", np.full(len(m), stage.layers * self.host.device_layer_s))
        return out

    def expert_parts_s(self, m: IntArray) -> dict[str, FloatArray]:
        """Seconds of the layers of experts of a stage for `m` tokens a step."""
        shapes = moe_shapes(self._stage, self._tp, self._ep)
        return {"experts": self.experts_s(shapes, m)} if shapes else {}

    def experts_s(self, shapes: list[MoeShape], m: IntArray) -> FloatArray:
        """Seconds of layers of experts, split as `shapes` say, for `m` routed tokens of the ranks that share them."""
        experts_format = self.weights_format("experts")
        backend = self._kernels.expert_backend(experts_format, self._moe_backend) if self._moe_backend else None
        total = np.zeros(len(m))
        for moe in shapes:
            times = self._kernels.moe_s(
                experts_format,
                moe.hidden,
                moe.intermediate,
                moe.topk,
                moe.experts,
                moe.tp,
                moe.ep,
                m,
                gated=moe.gated,
                kernel=backend,
            )
            total = total + moe.layers * times
        return total

    def _fp32_gemm_s(self, in_bf16_s: FloatArray, m: IntArray, n: int, k: int) -> FloatArray:
        """Time of a narrow linear layer in float32, never less than the same layer takes in bf16 (launch, memory).

        cuBLAS converts the input and sums over the depth in sequence: t = depth * k + 2 m n k / rate, on the CUDA cores or in
        TF32. vLLM's own kernels take the input as it is; three bf16 products cost as one of three times the depth.
        """
        kernels = self._kernels
        if self._fp32_router == "bf16x3":
            thrice_s: FloatArray = kernels.gemm_s("bf16", m, n, 3 * k)
            return np.maximum(in_bf16_s, thrice_s)
        if self._fp32_router == "tf32":
            rate = TF32_EFFICIENCY * kernels.peaks.rate("bfloat16") / 2
            per_depth = np.where(m <= SPLIT_ROWS, TF32_SPLIT_DEPTH_S, TF32_DEPTH_S)
        else:
            rate = FP32_EFFICIENCY * self._fp32_rate()
            per_depth = np.where(m <= SPLIT_ROWS, FP32_SPLIT_DEPTH_S, FP32_DEPTH_S)
        product = np.maximum(in_bf16_s, per_depth * k + 2.0 * m * n * k / rate)
        total_s: FloatArray = kernels.elementwise_s(6.0 * m * k) + product
        return np.where(m <= SMALL_ROUTER_ROWS, in_bf16_s, total_s) if self._fp32_router == "small" else total_s

    def _fp32_rate(self) -> float:
        """FLOP/s of the device in float32; a fifteenth of bf16 where unknown (A100 and H100: 1/16 and 1/15; datasheets)."""
        from hardware_profiles.device import load_device

        try:
            known = load_device(self._kernels.device).peak_flops_per_s.get("fp32")
        except PlanError:
            known = None
        return known.value if known is not None else self._kernels.peaks.rate("bfloat16") / 15.0

    def launches(self) -> float:
        """Operations that the host launches in a step of a stage without CUDA graphs."""
        stage = self._stage
        found = sum(gemm.layers for gemm in gemm_shapes(stage, self._tp, self._ep) if gemm.per == "token")
        found += stage.norms_per_layer * stage.layers + (2 * stage.layers if self._tp > 1 else 0)
        found += sum(block.layers * (ATTENTION_LAUNCHES + 2 * (block.qk_norm != "none")) for block in stage.attention)
        return found + sum(mlp.layers * (self.host.expert_launches if mlp.kind == "moe" else 1) for mlp in stage.mlp)

    def _tabulate_linear(self, graph_sizes: tuple[int, ...], max_tokens: int) -> None:
        sizes = np.array([s for s in graph_sizes if s <= max_tokens] or [0], dtype=np.int64)
        top = int(sizes[-1])
        beyond = log_grid(max(max_tokens, top + 1), 6)
        grid = np.unique(np.concatenate([sizes[sizes > 0], beyond[beyond > top], [top + 1]])).astype(np.int64)
        values = sum(self.parts_s(grid).values())
        assert isinstance(values, np.ndarray)
        table = PiecewiseLinear(grid.astype(float), np.maximum.accumulate(values))
        padded = np.arange(max_tokens + 1)
        if top:
            inside = padded <= top
            padded[inside] = sizes[np.searchsorted(sizes, padded[inside])]
        self._linear_s: list[float] = table.over(padded.astype(float)).tolist()

    def _tabulate_rows(self, arch: Architecture, max_rows: int, sorts: bool) -> None:
        rows = log_grid(max_rows, 4)
        logits = rows.astype(np.float64) * arch.vocab
        total = np.zeros(len(rows))
        for gemm in gemm_shapes(self.stages[-1], self._tp, self._ep):
            if gemm.per == "sequence":
                total += gemm.layers * self._kernels.gemm_s(self.weights_format(gemm.part), rows, gemm.n, gemm.k)
        total += self._kernels.elementwise_s(self._sample_bytes_per_logit * logits)
        if sorts:
            total += truncation_s(
                self._sampler,
                self._kernels,
                rows.astype(np.float64),
                arch.vocab,
                self.host.sort_step_s,
                self.host.sort_cycles_per_logit,
            )
        if self._tp > 1:
            total += self._kernels.all_reduce_s(self._tp, 2.0 * logits / self._tp)
        table = PiecewiseLinear(rows.astype(float), np.maximum.accumulate(total))
        self._rows_s: list[float] = (
            table.over(np.arange(max_rows + 1, dtype=float)) + self.host.device_step_s
        ).tolist()

    def _tabulate_decode(self, max_rows: int, max_context: int) -> None:
        self._decode_rows = log_grid(max_rows, 3)
        self._decode_context = np.unique(np.concatenate([[16.0, 64.0], log_grid(max_context, 2)[8:]])).astype(float)
        batch, context = np.meshgrid(self._decode_rows, self._decode_context, indexing="ij")
        total, mixed = np.zeros(batch.shape), np.zeros(batch.shape)
        kv_fmt = self._formats.kv_cache.name
        for block in self._stage.attention:
            if block.kind == "linear":
                continue
            heads = max(1, block.heads // self._tp) * self._query_tokens
            if block.kind == "mla":
                alone = self._kernels.mla_decode_s("bf16", kv_fmt, heads, batch, context)
                total += block.layers * alone
                mixed += block.layers * alone
                continue
            kv_heads = max(1, block.kv_heads // self._tp)
            alone = self._kernels.decode_attention_s(
                kv_fmt, heads, kv_heads, block.head_dim, block.window_tokens, batch, context
            )
            together = alone
            if self._fixed_grid_attention and not block.sinks:  # FlashAttention 2 knows no sinks
                shape = (max(1, block.heads // self._tp), kv_heads, block.head_dim, block.window_tokens)
                alone, together = flash_attention2.decode_s(self._kernels, kv_fmt, *shape, batch, context, alone)
                if self._query_tokens > 1:  # rows of several queries are unpacked whether a prompt is there or not
                    alone = together
            total += block.layers * alone
            mixed += block.layers * together
        self._decode_grid, self._decode_cache = total, dict[int, PiecewiseLinear]()
        self._mixed_grid, self._mixed_cache = total, self._decode_cache
        if self._fixed_grid_attention:
            self._mixed_grid, self._mixed_cache = mixed, {}

    def _decode_table(self, rows: int, beside_prompt: bool = False) -> PiecewiseLinear:
        """Attention time of `rows` decode rows, alone or beside a prompt, as a function of the total of their KV tokens."""
        cache, grid = self._decode_cache, self._decode_grid
        if beside_prompt:
            cache, grid = self._mixed_cache, self._mixed_grid
        table = cache.get(rows)
        if table is None:
            nodes = self._decode_rows
            i = min(int(np.searchsorted(nodes, rows, side="right")) - 1, len(nodes) - 2)
            share = (rows - nodes[i]) / (nodes[i + 1] - nodes[i])
            values = grid[i] + share * (grid[i + 1] - grid[i])
            table = PiecewiseLinear(self._decode_context * rows, np.maximum.accumulate(values))
            cache[rows] = table
        return table

    def _tabulate_prefill(self, max_tokens: int, max_context: int) -> None:
        self._new_nodes = log_grid(max_tokens, 4)
        prior = np.concatenate([[0], log_grid(max_context, 3)[12:]])
        self._prior_nodes = np.unique(prior)
        new, prior = np.meshgrid(self._new_nodes, self._prior_nodes, indexing="ij")
        total = np.zeros(new.shape)
        for block in self._stage.attention:
            if block.kind == "linear":
                continue
            heads = max(1, block.heads // self._tp)
            kv_fmt = self._formats.kv_cache.name
            if block.kind == "mla":
                total += block.layers * self._kernels.mla_prefill_s("bf16", kv_fmt, heads, new, prior)
                continue
            total += block.layers * self._kernels.prefill_attention_s(
                "bf16",
                kv_fmt,
                heads,
                max(1, block.kv_heads // self._tp),
                block.head_dim,
                block.window_tokens,
                new,
                prior,
            )
        self._prefill_floor_s = float(total[0, 0])
        self._prefill_grid: list[list[float]] = total.tolist()
        self._new_list: list[int] = self._new_nodes.tolist()
        self._prior_list: list[int] = self._prior_nodes.tolist()

    # -- steps ----------------------------------------------------------------------------------------------

    def prefill_attention_s(self, new: int, prior: int) -> float:
        """Attention of one prefill chunk, all layers; bilinear between the tabulated sizes."""
        grid, news, priors = self._prefill_grid, self._new_list, self._prior_list
        i = bisect_right(news, new) - 1
        if i > len(news) - 2:
            i = len(news) - 2
        j = bisect_right(priors, prior) - 1
        if j > len(priors) - 2:
            j = len(priors) - 2
        u = (new - news[i]) / (news[i + 1] - news[i])
        v = (prior - priors[j]) / (priors[j + 1] - priors[j])
        low = grid[i][j] + u * (grid[i + 1][j] - grid[i][j])
        high = grid[i][j + 1] + u * (grid[i + 1][j + 1] - grid[i][j + 1])
        return low + v * (high - low)

    def step_s(self, batches: Sequence[Batch]) -> tuple[float, list[float]]:
        """Device seconds of the step of the one rank there is, and the part attributed to its prefill rows."""
        batch = batches[0]
        rows = batch.decode_rows
        sampled = batch.decode_tokens if self._samples_drafts else rows
        attention = 0.0
        if rows:
            attention = self._decode_table(rows, bool(batch.prefill)).at(float(batch.decode_kv_tokens))
        linear = self._linear_s[batch.tokens]
        least = self._least_s(batch.tokens)
        if not batch.prefill:
            return max(linear + self._rows_s[sampled] + attention, least), [0.0]
        prefill = 0.0
        floor = self._prefill_floor_s
        for new, prior in batch.prefill:
            prefill += self.prefill_attention_s(new, prior) - floor
        if not rows:
            prefill += floor
        share = (batch.tokens - batch.decode_tokens) / batch.tokens
        device = linear + self._rows_s[sampled + len(batch.prefill)] + attention + prefill
        if batch.tokens <= self.host.prefill_graph_tokens:
            return max(device, self._launches_graph_s), [linear * share + prefill]
        return max(device, least, self._launches_prefill_s), [linear * share + prefill]

    def _least_s(self, tokens: int) -> float:
        """Host time to launch the operations of a batch one by one; 0 where a CUDA graph holds it."""
        return 0.0 if tokens <= self._graph_tokens else self._launches_s

    def run_s(self, shapes: Sequence[Batch], steps: int) -> FloatArray:
        """Device seconds of `steps` pure decode steps that begin with the shape of the one rank there is."""
        rows, kv_tokens = shapes[0].decode_rows, shapes[0].decode_kv_tokens
        attended = (kv_tokens + rows * np.arange(steps)).astype(np.float64)
        fixed = self._linear_s[rows] + self._rows_s[rows]
        return np.maximum(fixed + self._decode_table(rows).over(attended), self._least_s(rows))

    def few_s(self, shapes: Sequence[Batch], steps: int) -> list[float]:
        """`run_s` as plain numbers, equal to the last bit: quicker for few steps."""
        rows = shapes[0].decode_rows
        table = self._decode_table(rows)
        nodes, values, slopes = table.nodes, table.values, table.slopes
        fixed = self._linear_s[rows] + self._rows_s[rows]
        least = self._least_s(rows)
        x = float(shapes[0].decode_kv_tokens)
        i = max(bisect_right(nodes, x) - 1, 0)
        last = len(nodes) - 1
        out: list[float] = []
        for _ in range(steps):
            while i < last and x >= nodes[i + 1]:
                i += 1
            device = fixed + (values[i] + slopes[i] * (x - nodes[i]))
            out.append(device if device > least else least)
            x += rows
        return out

    def host_s(self, batch: Batch | int, prefill_tokens: int = 0) -> float:
        """Host seconds of a batch."""
        rows = batch if isinstance(batch, int) else batch.decode_rows + len(batch.prefill)
        return self.host.step_s + self.host.row_s * rows

    # the same by the numbers of a batch

    def batch_s(self, batch: Batch) -> tuple[float, float]:
        """`step_s` of one batch."""
        device_s, prefill_s = self.step_s((batch,))
        return device_s, prefill_s[0]

    def decode_run_s(self, rows: int, kv_tokens: int, steps: int) -> FloatArray:
        """`run_s` of a shape."""
        return self.run_s((Batch(0, rows, rows, kv_tokens),), steps)

    def decode_few_s(self, rows: int, kv_tokens: int, steps: int) -> list[float]:
        """`few_s` of a shape."""
        return self.few_s((Batch(0, rows, rows, kv_tokens),), steps)
