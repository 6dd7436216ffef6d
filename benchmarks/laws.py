"""Fits the constants of `hardware_profiles/law_constants.py` to published rates, and says what a chip left out is off by.

    python benchmarks/laws.py ../shared/data/published [CLASS...]

Rows are the cases of `benchmarks/cases.py`. The work of each (products, attention, launches) is counted once; a fit then changes
constants by their logarithms, by soft-L1 least squares on the logarithm of the rate. Every chip has the same weight (in a class
of one chip every model). Chips are left out in turn; what one row of such a chip is worth as an anchor stands beside. Constants
are printed, not written: rounding them and saying so is a decision. So are the widths of errors (`Within`): what holds nine of
ten values of a chip left out, and what share of a chip lies within the width of the others.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from anchored import Measured, after_one
from cases import DEFAULT_UBATCH, EARLY, FILES, MIDDLE, SLOW_BLAS, Case, Unsaid, cpu_batched, read
from numpy.typing import NDArray
from scipy.optimize import least_squares

from engine_models.cost.terms import Formats, HostOverhead, Parallelism, Shard, Terms
from engine_models.model.architecture import gemm_shapes, load_architecture, moe_shapes
from engine_models.model.formats import FORMATS, format_named
from hardware_profiles import law_constants as laws
from hardware_profiles.device import load_device
from hardware_profiles.device_laws import EXPERT_LAUNCHES, Law, LawOps, known_format
from hardware_profiles.kernel_physics import causal_pairs, moe_active_experts
from hardware_profiles.kernels import operations_of
from simulator.calibration.fit import FOLLOWED, FOLLOWED_ON_CPUS, Known
from simulator.calibration.results import QUANTILE

Array = NDArray[np.float64]
Constants = dict[str, float]
HOST_S = {"llama_cpp": 1e-4, EARLY: 1e-4, MIDDLE: 1e-4, "mlx_lm": 5e-5, "exllamav2": 5e-5}
"""Host time of a step that the engines add (`engine_models/cost/overheads/`)."""
SENSITIVITY: Mapping[str, tuple[float, float, float]] = {
    "processes": (0.5, 0.5, 0.0),
    "decode": (0.0, 1.0, 0.0),
    "batch": (0.1, 0.9, 0.0),
    "few tokens": (0.5, 0.5, 0.0),
    "prompt": (1.0, 0.0, 0.0),
}
"""What of a time follows the scales of a calibration, by what was measured (`benchmarks/anchored.py` simulates it)."""
LEFT_OUT_STEPS = 4
"""Steps of the fit without a chip: it starts at the constants of all of them."""
SHARED_WEIGHT = 0.25
"""Weight of a chip's rows of several processes, over its others' (assumed: they tell of threads, and little of the memory)."""
HOLD = 0.02
"""What holds a constant at its start that no row tells anything of, as an error of the logarithm."""


@dataclass(frozen=True)
class Chip:
    """A device as a class of rows sees it: which one, of which build, with how many threads, beside how many processes."""

    device: str
    build: str
    threads: int
    processes: int = 1

    def ops(self, law: Law) -> LawOps:
        """Its operations under a law; of several processes each has its part of the bandwidth."""
        device = load_device(self.device)
        ops = LawOps.under(law, device, "", self.threads)
        most = device.memory_bandwidth_bytes_per_s.value / self.processes
        return replace(ops, peaks=replace(ops.peaks, hbm_bytes_per_s=min(ops.peaks.hbm_bytes_per_s, most)))


@dataclass(frozen=True)
class Work:
    """What the steps of a case are made of: arrays of (times, weights, rows, matrices) by format and whether of experts.

    prompts : attention of chunks: layers, operations, bytes of keys and values, tokens, heads, heads of keys (0: latent ones).
    """

    tokens: float
    steps: int
    launches: float
    moved_bytes: float
    products: Mapping[tuple[str, bool], Array]
    attended: tuple[float, float, float]
    prompts: list[tuple[float, float, float, int, int, int]]


def work_of(case: Case, chunk: int) -> Work:
    """Count the work of a case; prompts go in chunks of so many tokens."""
    arch, weights = load_architecture(case.model), format_named(case.weights)
    plain = FORMATS["bf16"]
    ops, formats = operations_of(load_device("h100"), "vllm"), Formats(weights, plain, plain)
    shard = Shard(arch, ops, formats, Parallelism(), Terms(HostOverhead(0, 0)))
    stage = shard.stage
    products: dict[tuple[str, bool], list[tuple[float, float, float, float]]] = defaultdict(list)
    launches, moved = 0.0, 0.0
    prompt = "decode_tok_s" not in case.reported
    ends = [min(chunk, case.new - done) for done in range(0, case.new, chunk)] if prompt else [case.batch]
    small = stage.norms_per_layer * stage.layers + sum(m.layers for m in stage.mlp if m.kind == "dense")
    small += sum(b.layers * (2 + (b.qk_norm == "head") + 2 * (b.qk_norm == "full")) for b in stage.attention)
    width = 8.0 * stage.hidden * stage.norms_per_layer * stage.layers
    width += sum(6.0 * m.layers * m.intermediate for m in stage.mlp if m.kind == "dense")
    width += sum(4.0 * b.layers * (b.heads + b.kv_heads) * b.head_dim for b in stage.attention)
    for number, rows in enumerate(ends):
        sampled = (number == len(ends) - 1) if prompt else rows
        for gemm in gemm_shapes(stage, 1, 1):
            m = rows if gemm.per == "token" else sampled
            if m:
                products[known_format(shard.weights_format(gemm.part)), False].append((gemm.layers, gemm.n * gemm.k, m, 1))
                launches += gemm.layers
        for moe in moe_shapes(stage, 1, 1):
            assigned = float(rows * moe.topk)
            active = float(moe_active_experts(np.float64(moe.experts), np.array([assigned]), chosen=moe.topk / moe.experts)[0])
            each = (3.0 if moe.gated else 2.0) * moe.hidden * moe.intermediate
            key = (known_format(shard.weights_format("experts")), True)
            products[key].append((moe.layers, each, assigned, min(active, assigned)))
            launches += EXPERT_LAUNCHES * moe.layers
        launches += small
        moved += width * rows
    read_bytes = flops = cells = 0.0
    chunks: list[tuple[float, float, float, int, int, int]] = []
    for block in stage.attention:
        heads, window = block.heads, block.window_tokens
        if prompt:
            done = case.depth
            for rows in ends:
                pairs = float(causal_pairs(np.array([float(rows)]), np.array([float(done)]), np.float64(window))[0])
                past = min(done, window) if window else done
                mla = block.kind == "mla"
                width = 2 * block.head_dim if not mla else 1088 if case.engine.startswith("llama_cpp") else 320
                work = 2.0 * heads * width * pairs
                kv = (past + rows) * (1152 if mla else 4.0 * block.kv_heads * block.head_dim)
                chunks.append((block.layers, work, kv, rows, heads, 0 if mla else block.kv_heads))
                done += rows
            continue
        span = case.depth + case.new + case.output / 2
        span = (min(span, window) if window else span) * (case.batch if case.args.get("kv_unified") else 1)
        held = case.batch * span * block.layers
        read_bytes += held * (1152 if block.kind == "mla" else 4.0 * block.kv_heads * block.head_dim)
        flops += held * heads * (2176 if block.kind == "mla" else 4.0 * block.head_dim)
        cells += held * heads
    return Work(
        float(case.new if prompt else case.batch),
        len(ends),
        launches,
        moved,
        {key: np.array(rows, dtype=np.float64).T for key, rows in products.items()},
        (read_bytes, flops, cells),
        chunks,
    )


def rate_of(ops: LawOps, work: Work, host_s: float) -> float:
    """Tokens a second of a case [1/s]."""
    law, bandwidth = ops.law, ops.peaks.hbm_bytes_per_s
    t = work.launches * ops.launch_s + work.steps * host_s
    t += law.traffic_factor * work.moved_bytes / (law.read.get("16", law.read[""]) * bandwidth)
    for (fmt, expert), (times, weights, rows, matrices) in work.products.items():
        if expert and work.tokens >= law.expert_tile_from:
            rows = np.maximum(rows, law.expert_tile_tokens * matrices)
        fill, reached = (law.expert_fill_tokens, law.expert_share) if expert else (law.fill_tokens, 1.0)
        t += float(times @ ops.product_s(fmt, weights, rows, matrices, fill, reached_share=reached))
    read_bytes, flops, cells = work.attended
    t += max(read_bytes / (law.kv_share * bandwidth), (flops + law.attend[1] * cells) / (law.attend[0] * ops.fp32_flops_per_s))
    for layers, work_flops, kv, tokens, heads, kv_heads in work.prompts:
        moved = float(law.passed_bytes(np.float64(kv), np.float64(tokens), heads, kv_heads))
        compute_s = work_flops / (law.prompt_share(kv_heads) * ops.matrix_peak["16"])
        t += layers * max(compute_s, moved / (law.kv_share * bandwidth))
    return work.tokens / t


class Fit:
    """Rows of a class, and constants that are free: `starts`; `built` makes the law of a chip of them."""

    def __init__(self, cases: list[Case], starts: Constants, built: Callable[[Constants, Chip], Law]) -> None:
        self.cases, self.names, self.built = cases, list(starts), built
        self.start = np.log(list(starts.values()))
        self.chips = [chip_of(case) for case in cases]
        devices = [chip.device for chip in self.chips]
        self.groups = np.array(devices if len(set(devices)) > 1 else [f"{c.model} {c.weights}" for c in cases])
        self.work = [work_of(case, chunk_of(case)) for case in cases]
        self.log_rates = np.log([measured(case) for case in cases])
        shared = [chip.processes > 1 for chip in self.chips]
        count = Counter(zip(self.groups, shared, strict=True))
        self.weight = np.array([
            (SHARED_WEIGHT if beside else 1.0) * count[group, beside] ** -0.5
            for group, beside in zip(self.groups, shared, strict=True)
        ])  # fmt: skip
        self.weight /= self.weight.mean()

    def errors(self, x: Array, rows: NDArray[np.int64]) -> Array:
        """Logarithm of predicted over measured rates."""
        constants = dict(zip(self.names, np.exp(x).tolist(), strict=True))
        ops = {chip: chip.ops(self.built(constants, chip)) for chip in {self.chips[i] for i in rows}}
        host = HOST_S[self.cases[0].engine]
        return np.array([np.log(rate_of(ops[self.chips[i]], self.work[i], host)) for i in rows]) - self.log_rates[rows]

    def fit(self, rows: NDArray[np.int64], x: Array, most: int) -> Array:
        """The best constants for some rows, within a factor of four of the starts."""
        low, high = self.start - np.log(4), self.start + np.log(4)
        found = least_squares(
            lambda y: np.append(self.weight[rows] * self.errors(y, rows), HOLD * (y - self.start)),
            np.clip(x, low + 1e-6, high - 1e-6),
            bounds=(low, high),
            loss="soft_l1",
            f_scale=0.1,
            diff_step=1e-3,
            max_nfev=most,
        )
        return np.asarray(found.x, dtype=np.float64)

    def left_out(self, x: Array, known: Known) -> dict[str, dict[str, tuple[Array, float]]]:
        """Logarithms of predicted over measured of each chip under constants fitted to the others, by what was measured.

        The second is the median error [%] of all rows but one when that one calibrates the chip, the median over which it is
        (NaN of a single).
        """
        out: dict[str, dict[str, tuple[Array, float]]] = defaultdict(dict)
        for group in sorted(set(self.groups)):
            mine = np.flatnonzero(self.groups == group)
            others = self.fit(np.flatnonzero(self.groups != group), x, LEFT_OUT_STEPS)
            errors = self.errors(others, mine)
            for what, sensitivity in SENSITIVITY.items():
                found = [(e, self.cases[i]) for e, i in zip(errors, mine, strict=True) if kind_of(self.cases[i]) == what]
                rows = [Measured(("", "", "", ""), case.model, -e, sensitivity, known, case.batch) for e, case in found]
                some = [e for e, _ in found]
                if some:
                    after = [error for _, error in after_one(rows)] if len(rows) > 1 else []
                    anchored = np.median(after) if after else np.nan
                    out[what][group] = np.array(some), 100 * float(anchored)
        return out


def nine_in_ten(errors: Iterable[Array]) -> float:
    """Width that holds nine of ten errors, those of every chip weighing alike."""
    each = [np.abs(some) for some in errors]
    values, weights = np.concatenate(each), np.concatenate([np.full(len(some), 1 / len(some)) for some in each])
    order = np.argsort(values)
    inside = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(inside, 0.9 * inside[-1] - 1e-9)])


def held(errors: Mapping[str, Array]) -> float:
    """Share of a chip's errors within the width that the others have, in the mean of the chips [%]; NaN of a single chip."""
    if len(errors) < 2:
        return math.nan
    widths = {chip: nine_in_ten(some for other, some in errors.items() if other != chip) for chip in errors}
    return 100 * float(np.mean([np.mean(np.abs(some) <= widths[chip]) for chip, some in errors.items()]))


def measured(case: Case) -> float:
    """The rate of a case [tokens/s]."""
    (metric, value), *_ = case.reported.items()
    return 1e3 * case.new / value if metric == "ttft_median_ms" else value


def kind_of(case: Case) -> str:
    """What a case measures."""
    if "processes" in case.args:
        return "processes"
    if "decode_tok_s" in case.reported:
        return "decode" if case.batch == 1 else "batch"
    return "prompt" if case.new > 64 else "few tokens"


def chunk_of(case: Case) -> int:
    """Tokens of a prompt that are computed at once."""
    batch, at_once = case.args.get("batch_size", 2048), case.args.get("ubatch_size", DEFAULT_UBATCH)
    assert isinstance(at_once, int)
    return 2048 if case.engine == "mlx_lm" else min(at_once, batch if isinstance(batch, int) else at_once)


def chip_of(case: Case) -> Chip:
    """The chip of a case; builds of early 2024 stand apart on NVIDIA's."""
    old = case.engine == EARLY
    threads, processes = (case.args.get(name, default) for name, default in (("threads", 0), ("processes", 1)))
    assert isinstance(processes, int)
    return Chip(case.hardware, "2024" if old else "", threads if isinstance(threads, int) else 0, processes)


# -- classes --------------------------------------------------------------------------------------------------


def _metal(c: Constants, chip: Chip) -> Law:
    read = {"": c["read"], "16": c["read_16"]}
    unpack = {**laws.METAL.unpack, "": c["unpack"]}
    matrix = {"": c["matrix"], "16": c["matrix_16"], "q8_0": c["matrix_8"], "q4_0": c["matrix_8"]}
    return replace(laws.METAL, read=read, unpack=unpack, matrix=matrix, launch_s=c["launch"], slower={"ultra": c["ultra"]},
                   attention_share=c["attention"], expert_fill_tokens=c["expert_fill"])  # fmt: skip


def _gddr(c: Constants, chip: Chip) -> Law:
    unpack = {**laws.CUDA_GDDR.unpack, **{k: c[f"unpack_{k}"] for k in ("q2_k", "q3_k", "q5_k", "q6_k")}, "": c["unpack"]}
    matrix = {"": c["matrix_k"], "16": c["matrix_16"], **dict.fromkeys(("q4_0", "q8_0", "w4a16_mxfp4"), c["matrix"])}
    slower = {"ampere": c["ampere"], "turing": c["ampere"], "ada": c["ada"]}
    vector = {**laws.CUDA_GDDR.vector, "": c["vector"], "q4_0": c["vector_4"], "q8_0": c["vector_4"]}
    cool = {**laws.CUDA_GDDR.cool_flops_per_j, "ampere": c["cool_ampere"], "ada": c["cool_ada"]}
    new = replace(laws.CUDA_GDDR, read={"": c["read"], "16": c["read_16"]}, unpack=unpack, matrix=matrix, slower=slower,
                  vector=vector, launch_s=c["launch"], start_s=c["start"], kv_share=min(c["kv"], 0.98),
                   attention_share=c["attention"], expert_fill_tokens=c["expert_fill"],
                  cool_flops_per_j=cool)  # fmt: skip
    if not chip.build:
        return new
    return replace(new, launch_s=c["launch"] * c["old"], kv_share=c["kv_old"], attention_share=c["attention_old"],
                   widened_bytes=c["widened"],
                   matrix={"": c["matrix_16"] / 2, "16": c["matrix_16"]})  # fmt: skip


def _cpu(c: Constants, chip: Chip) -> Law:
    server = laws.CPU_SERVER
    iq = [key for key, value in server.unpack.items() if value == server.unpack["iq2_xs"]]
    two = c["two"] if chip.device.endswith("-2s") else 1.0
    desktop = load_device(chip.device).memory_bandwidth_bytes_per_s.value < laws.DESKTOP_BYTES_PER_S
    share = (c["read_desktop"] if desktop else c["read"]) * two
    unpack = {"": c["unpack"], "q8_0": c["unpack_8"], "16": 0.0, "q5_0": c["unpack_5"], "iq4_nl": c["unpack_5"]}
    unpack |= dict.fromkeys(iq, c["unpack_iq"])
    matrix = laws.cpu_matrix(c["matrix"]) | {"q8_0": c["matrix_8"] / 4}  # type: ignore[operator]
    return replace(server, read={"": share}, unpack=unpack, matrix=matrix, kv_share=min(c["kv"], 0.95) * two,
                   attend=(min(c["attend"], 0.9) * two, c["cell"]), crowding_share=c["crowd"],
                   vector={"": c["vector"], "q8_0": c["vector_8"]}, launch_s=min(c["launch"], 1.2e-5),
                   core_launch_s=c["core"])  # fmt: skip


def _mlx(c: Constants, chip: Chip) -> Law:
    read, unpack, matrix = {"": c["read"]}, {"": c["unpack"], "16": 0.0}, {"": c["matrix"]}
    return replace(laws.MLX, read=read, unpack=unpack, launch_s=c["launch"], matrix=matrix, kv_share=c["kv"],
                   attention_share=c["attention"],
                   slower={"ultra": c["ultra"]},
                   expert_fill_tokens=c["expert_fill"], older={"m1": c["m1"], "m2": c["m2"]})  # fmt: skip


def _apu(c: Constants, chip: Chip) -> Law:
    small = ("q4_0", "q8_0", "w4a16_mxfp4")
    names = {"": "read", "16": "read_16", "q8_0": "read_8", "q4_0": "read_4", "w4a16_mxfp4": "read_4"}
    read = {key: min(c[name], 0.95) for key, name in names.items()}
    matrix = {"": c["matrix_k"], "16": c["matrix_16"], **dict.fromkeys(small, c["matrix"])}
    vector = {"": c["vector"], "16": 1.0, **dict.fromkeys(small, c["vector_4"])}
    return replace(laws.AMD_APU, read=read, matrix=matrix, vector=vector, unpack={"": c["unpack"]}, launch_s=c["launch"],
                   kv_share=c["kv"], attention_share=c["attention"],
                   expert_fill_tokens=c["expert_fill"], start_s=c["start"])  # fmt: skip


def _prompts(law: Law) -> Callable[[Constants, Chip], Law]:
    """A law whose prompts are free."""

    def built(c: Constants, chip: Chip) -> Law:
        matrix = {key: c.get("matrix", share) if key == "" else share for key, share in law.matrix.items()}
        matrix |= {"16": c["matrix_16"]} if "matrix_16" in c else {}
        matrix |= dict.fromkeys(("q4_0", "q8_0"), c["matrix_4"]) if "matrix_4" in c else {}
        return replace(law, matrix=matrix, attention_share=c.get("attention", law.attention_share),
                       latent_share=c.get("latent", law.latent_share), tile_tokens=c.get("tile", law.tile_tokens),
                       expert_fill_tokens=c.get("expert_fill", law.expert_fill_tokens),
                       library_share=c.get("library", law.library_share or 0.0))  # fmt: skip

    return built


def _exl(c: Constants, chip: Chip) -> Law:
    read, unpack = {"": c["read"]}, {"": c["unpack"], "16": 0.0}
    return replace(laws.EXL, read=read, unpack=unpack, launch_s=c["launch"], slower={})


def _card(c: Constants, chip: Chip) -> Law:
    read = {**laws.AMD_CARD.read, "": c["read"], "q4_0": c["read_4"], "w4a16_mxfp4": c["read_4"]}
    matrix = {"": 0.8 * c["matrix"], "16": c["matrix"], "q4_0": c["matrix"], "q8_0": c["matrix"]}
    return replace(laws.AMD_CARD, read=read, matrix=matrix, launch_s=c["launch"])


def _hbm(c: Constants, chip: Chip) -> Law:
    new = replace(laws.CUDA_HBM, read={"": c["read"], "16": c["read_16"]}, launch_s=c["launch"],
                  matrix={"": c["matrix"], "16": c["matrix_16"]})  # fmt: skip
    if not chip.build:
        return new
    return replace(new, kv_share=c["kv_old"], attention_share=c["attention_old"], widened_bytes=laws.CUDA_HBM_2024.widened_bytes,
                   matrix={"": c["matrix_16"] / 2, "16": c["matrix_16"]})  # fmt: skip


def _odd(case: Case) -> bool:
    """Rows that other causes make: spills, F16 prompts of one host, lower formats of one card."""
    if SLOW_BLAS in case.note and kind_of(case) == "prompt":
        return True
    if case.hardware == "l40s-48gb" and case.weights == "fp16" and kind_of(case) == "prompt":
        return True
    spilling = case.hardware == "rtx-3080-10gb" and "nv_consumer" in case.id
    return spilling and (case.weights in ("q2_k", "q3_k_m") or measured(case) < 30)


SHORT_TOKENS = 256
"""Contexts that tell little of attention, which builds of 2025 fuse when asked to."""

Class = tuple[Callable[[Case], bool], Constants, Callable[[Constants, Chip], Law]]

APU: Constants = {
    "read": 0.77, "read_16": 0.85, "read_8": 0.87, "read_4": 0.82, "unpack": 1.3, "launch": 4.7e-6, "matrix": 0.2,
    "matrix_k": 0.2, "matrix_16": 0.45, "start": 3.7e-6, "vector": 0.1, "vector_4": 0.26, "kv": 0.63, "attention": 0.15,
    "expert_fill": 8,
}  # fmt: skip
PROMPTS: Constants = {"matrix": 0.33, "matrix_16": 0.5, "attention": 0.2, "tile": 22, "expert_fill": 26}
LIBRARY: Constants = {"matrix": 0.2, "matrix_4": 0.25, "attention": 0.04, "expert_fill": 20, "library": 0.25}


def _on_apu(case: Case, engine: str, device: str) -> bool:
    """Whether a row is of an AMD processor under such a build, by a backend ("": any)."""
    if case.engine != engine or not case.hardware.startswith("ryzen-ai") or "ollama" in case.note.lower():
        return False
    return str(case.args.get("device", "")).startswith(device)


CLASSES: Mapping[str, Class] = {
    "metal": (
        lambda c: c.engine == "llama_cpp" and c.hardware.startswith("apple") and c.batch == 1
        and "community" not in c.id and kind_of(c) != "few tokens",
        {"read": 0.89, "read_16": 0.88, "unpack": 29, "launch": 1.2e-5, "matrix": 0.62, "matrix_16": 0.78, "matrix_8": 0.68,
         "attention": 0.25, "ultra": 1.6, "expert_fill": 2.0},
        _metal,
    ),
    "gddr": (
        lambda c: c.engine in ("llama_cpp", EARLY) and laws.law_of(load_device(c.hardware), "llama_cpp") is laws.CUDA_GDDR
        and "Vulkan" not in c.note and "community" not in c.id and not _odd(c),
        {"read": 0.95, "read_16": 0.92, "unpack": 15, "unpack_q6_k": 10, "unpack_q5_k": 8, "unpack_q3_k": 12, "unpack_q2_k": 14,
         "launch": 4.5e-6, "ampere": 1.5, "ada": 1.2, "old": 1.6, "matrix": 0.32, "matrix_k": 0.21, "matrix_16": 0.73,
         "start": 5.5e-5, "vector": 0.3, "vector_4": 0.45, "kv": 0.9, "attention": 0.34, "kv_old": 0.55, "attention_old": 0.065,
         "widened": 4.5, "expert_fill": 50, "cool_ampere": 3e11, "cool_ada": 5e11},
        _gddr,
    ),
    "cpu": (
        lambda c: c.engine == "llama_cpp" and load_device(c.hardware).kind == "cpu",
        {"read": 0.45, "read_desktop": 0.77, "two": 0.6, "launch": 1e-5, "core": 2e-7, "unpack": 3, "unpack_8": 5, "unpack_5": 6,
         "unpack_iq": 7.5, "vector": 0.5, "vector_8": 1.2, "matrix": 0.5, "matrix_8": 1.4, "kv": 0.7, "attend": 0.4, "cell": 900,
         "crowd": 0.01},
        _cpu,
    ),
    "mlx": (
        lambda c: c.engine == "mlx_lm" and "server" not in c.note,
        {"read": 0.84, "unpack": 5, "launch": 6e-6, "matrix": 0.73, "kv": 0.78, "attention": 0.8, "ultra": 1.2, "expert_fill": 6,
         "m1": 0.6, "m2": 0.55},
        _mlx,
    ),
    "apu_2025": (lambda c: _on_apu(c, MIDDLE, "") and not _odd(c) and c.depth + c.output // 2 <= SHORT_TOKENS, APU, _apu),
    "apu": (lambda c: _on_apu(c, "llama_cpp", "") and c.depth <= 32768, APU, _apu),
    "apu_rocm": (
        lambda c: _on_apu(c, "llama_cpp", "ROCm") and kind_of(c) == "prompt", PROMPTS | {"latent": 0.1},
        _prompts(laws.AMD_APU_ROCM),
    ),
    "apu_vulkan": (
        lambda c: _on_apu(c, "llama_cpp", "Vulkan") and kind_of(c) == "prompt" and "amdvlk" not in c.note,
        PROMPTS | {"matrix_16": 0.12}, _prompts(laws.AMD_APU_VULKAN_BF16),
    ),
    "apu_2025_rocm": (
        lambda c: _on_apu(c, MIDDLE, "ROCm") and SLOW_BLAS not in c.note and kind_of(c) != "decode", LIBRARY,
        _prompts(laws.AMD_APU_2025_ROCM),
    ),
    "apu_2025_rocblas": (
        lambda c: _on_apu(c, MIDDLE, "ROCm") and SLOW_BLAS in c.note and kind_of(c) != "decode", {"library": 0.07},
        _prompts(laws.AMD_APU_2025_ROCBLAS),
    ),
    "card": (
        lambda c: c.engine == "llama_cpp" and c.hardware.startswith(("rx-7", "rx-9", "radeon"))
        and kind_of(c) in ("decode", "prompt"),
        {"read": 0.79, "read_4": 0.95, "launch": 4e-6, "matrix": 0.43},
        _card,
    ),
    "hbm": (
        lambda c: c.engine in ("llama_cpp", EARLY) and c.hardware.startswith("h100"),
        {"read": 0.75, "read_16": 0.64, "launch": 6.6e-6, "matrix": 0.085, "matrix_16": 0.35, "kv_old": 0.13,
         "attention_old": 0.04},
        _hbm,
    ),
    "exl": (lambda c: c.engine == "exllamav2", {"read": 0.88, "unpack": 7, "launch": 5e-6}, _exl),
}  # fmt: skip
"""Class -> its rows, free constants and their starts, the law that they make."""


def plain(case: Case) -> bool:
    """Whether all layers of the model attend to cached keys."""
    return all(block.kind != "linear" for block in load_architecture(case.model).attention)


def medians(cases: list[Case]) -> list[Case]:
    """One case of those that measure the same on the same chip: the one with the median rate."""
    alike: dict[tuple[object, ...], list[Case]] = defaultdict(list)
    for case in cases:
        key = (case.model, case.weights, case.new, case.output, case.depth, case.batch, chunk_of(case), *case.reported)
        alike[(chip_of(case), *key)].append(case)
    return [sorted(group, key=measured)[len(group) // 2] for group in alike.values()]


def split(case: Case) -> list[Case]:
    """A case for each of its metrics."""
    return [replace(case, reported={metric: value}) for metric, value in case.reported.items()]


def beside(folder: Path) -> Iterable[Case]:
    """Batches of one of several processes on a CPU, each with its share of the cores: those of many rows, which compute.

    Fewer read what all processes share, of whose file the last cache of some chips holds a part.
    """
    with (folder / "measured_cpu_batched.csv").open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file)):
            processes, threads = int(row["n_proc"]), int(row["threads"])
            if processes == 1 or int(row["batch"]) < FEWEST_SHARED_ROWS:
                continue
            try:
                case = cpu_batched({**row, "n_proc": "1"}, f"cpu_batched-{number}")
            except Unsaid:
                continue
            cores = threads // 2 if "SMT" in row["cpu"] else threads
            reported = {metric: rate / processes for metric, rate in case.reported.items()}
            yield replace(case, args=case.args | {"threads": cores, "processes": processes}, reported=reported)


FEWEST_SHARED_ROWS = 8


def main() -> None:
    """Fit the classes asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path)
    parser.add_argument("classes", nargs="*", choices=[*CLASSES, []])
    asked = parser.parse_args()
    found = [case for name in FILES for case in read(asked.folder / f"{name}.csv") if isinstance(case, Case)]
    every = [case for whole in found for case in split(replace(whole, engine=whole.engine.replace("ollama", "llama_cpp")))]
    rates = {"prefill_tok_s", "decode_tok_s", "ttft_median_ms"}
    for name in asked.classes or CLASSES:
        wanted, starts, built = CLASSES[name]
        fitting = [c for c in every if c.engine in HOST_S and set(c.reported) <= rates and wanted(c) and plain(c)]
        cases = [*medians(fitting), *(beside(asked.folder) if name == "cpu" else ())]
        fit = Fit(cases, starts, built)
        rows = np.arange(len(cases))
        x = fit.fit(rows, fit.start, 60)
        print(f"{name}: {len(cases)} rows of {len(set(fit.groups))} chips")
        print("  " + ", ".join(f"{key} {value:.3g}" for key, value in zip(starts, np.exp(x), strict=True)))
        inside = np.abs(np.expm1(fit.errors(x, rows)))
        for what in ("decode", "batch", "few tokens", "prompt", "processes"):
            some = [e for e, case in zip(inside, cases, strict=True) if kind_of(case) == what]
            if some:
                print(f"  {what}: {100 * float(np.median(some)):.1f} % in the fit, {len(some)} rows")
        if len(set(fit.groups)) > 1:
            law = fit.built(dict(zip(starts, np.exp(x).tolist(), strict=True)), fit.chips[0])
            followed = FOLLOWED_ON_CPUS if load_device(fit.chips[0].device).kind == "cpu" else FOLLOWED
            known = Known.of_error(law.within.decode_width / QUANTILE, followed)
            for what, errors in fit.left_out(x, known).items():
                logs = {chip: some for chip, (some, _) in errors.items()}
                medians_of = {chip: 100 * float(np.median(np.abs(np.expm1(some)))) for chip, some in logs.items()}
                each = ", ".join(f"{chip} {medians_of[chip]:.0f} {after:.0f}" for chip, (_, after) in errors.items())
                before, after = np.median(list(medians_of.values())), np.nanmedian([after for _, after in errors.values()])
                print(f"  {what}, chip left out: {before:.1f} %, with one row of it as an anchor {after:.1f} % ({each})")
                print(f"    nine of ten within {nine_in_ten(logs.values()):.3f}; within the others' width {held(logs):.0f} %")


if __name__ == "__main__":
    main()
