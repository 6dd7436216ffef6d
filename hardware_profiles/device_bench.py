"""Kernels of this machine, timed by PyTorch: memory, products of matrices, attention; on CUDA, ROCm, Apple's GPUs or the CPU."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError
from hardware_profiles.ops import Ops
from hardware_profiles.records import dataclass

STREAM_BYTES = (1 << 26, 1 << 28)
WIDTHS = ((4096, 4096), (11008, 4096), (4096, 11008))
"""Outputs and inputs of products: those of models of 7 to 8 billion parameters."""
ROWS = (1, 256, 16, 4, 64, 1024, 4096)
"""In this order: what tells memory and arithmetic apart comes first."""
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BATCHES, CONTEXTS, PROMPTS = (1, 8, 32), (512, 4096), (256, 1024, 4096)
COPIES_BYTES = 1 << 29
"""Bytes of weights that are cycled, so that no cache holds them (assumed: more than any last level has)."""
DRAWN = 1 << 22
"""Values that are drawn; the others repeat them."""
BUSY = 0.5
"""Work under way for each core of a CPU from which its timings are doubted (assumed)."""
RUN_S, LONGEST_S = 0.05, 1.5
"""Time of one timing, and of the longest kernel that is timed (assumed)."""
REPEATS = 5


class KernelTime(NamedTuple):
    """A kernel: `stream` (bytes moved), `gemm` (m, n, k), `decode` (rows, context) or `prompt` (tokens), and its seconds."""

    op: Literal["stream", "gemm", "decode", "prompt"]
    sizes: tuple[int, ...]
    took_s: float

    @property
    def shape(self) -> str:
        """What is left out together when a fit is judged."""
        return f"{self.op} {self.sizes[1:]}"

    def predicted_s(self, ops: Ops) -> float:
        """What a device's operations say, in bf16."""
        heads = (HEADS, KV_HEADS, HEAD_DIM, 0)
        if self.op == "stream":
            return float(ops.elementwise_s([self.sizes[0]])[0])
        if self.op == "gemm":
            m, n, k = self.sizes
            return float(ops.gemm_s("bf16", [m], n, k)[0])
        if self.op == "decode":
            return float(ops.decode_attention_s("bf16", *heads, [self.sizes[0]], [self.sizes[1]])[0])
        return float(ops.prefill_attention_s("bf16", "bf16", *heads, [self.sizes[0]], [0])[0])


@dataclass(frozen=True)
class Machine:
    """What is measured: PyTorch's name of the device, its kind and maker, how it is called, its memory, its processors."""

    backend: str
    kind: DeviceKind
    vendor: str
    title: str
    memory_bytes: int
    processors: int
    version: str


def load_torch() -> Any:
    """PyTorch. Raises InputError with the lines that help without it."""
    try:
        import torch
    except ImportError:
        raise InputError(
            "timing kernels needs PyTorch, which is not installed",
            mend="pip install torch; or measure with llama-bench and give its files to `capacity-plan calibrate results`",
        ) from None
    return torch


def machine(torch: Any) -> Machine:
    """The device that PyTorch computes on here."""
    import os
    import platform

    if torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        vendor = "amd" if torch.version.hip else "nvidia"
        size, processors = int(found.total_memory), int(found.multi_processor_count)
        return Machine("cuda", "gpu", vendor, found.name, size, processors, torch.__version__)
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if torch.backends.mps.is_available():
        size = int(torch.mps.recommended_max_memory())
        return Machine("mps", "apple", "apple", platform.machine(), size, 0, torch.__version__)
    threads, name = int(torch.get_num_threads()), platform.processor() or platform.machine()
    return Machine("cpu", "cpu", "", f"{name}, {threads} threads", pages, threads, torch.__version__)


def busy(backend: str) -> float:
    """Work under way for each core of this machine, if the CPU is what is timed and it is more than `BUSY`; else 0."""
    import os

    if backend != "cpu" or not hasattr(os, "getloadavg"):
        return 0.0
    found = os.getloadavg()[0] / (os.cpu_count() or 1)
    return found if found > BUSY else 0.0


def kernels(
    torch: Any, backend: str, most_s: float, tell: Callable[[str], None], done: Sequence[KernelTime] = ()
) -> Iterator[KernelTime]:
    """Time kernels until so many seconds are over, beyond those that are `done`; of an operation none beyond one that is slow."""
    until_s = time.monotonic() + most_s
    known = {(each.op, each.sizes): each for each in done}
    slow: dict[str, int] = {}
    with torch.inference_mode():
        for op, sizes, make in _planned(torch, backend):
            shape = KernelTime(op, sizes, 0.0).shape
            if sizes[0] > slow.get(shape, sizes[0]):
                continue
            found = known.get((op, sizes))
            if found is None:
                if time.monotonic() > until_s:
                    return
                tell(f"timing {op} {sizes} ...")
                found = KernelTime(op, sizes, _timed(torch, backend, make()))
                yield found
            if found.took_s * 4 > LONGEST_S:
                slow[shape] = sizes[0]


Planned = tuple[Literal["stream", "gemm", "decode", "prompt"], tuple[int, ...], Callable[[], Callable[[int], Any]]]


def _planned(torch: Any, backend: str) -> Iterator[Planned]:
    """What is timed: an operation, its sizes, and what makes a function of the number of the call."""
    linear, attention = torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention

    held: list[Any] = []

    def tensor(*sizes: int, number: int = 0) -> Any:
        """The `number`-th piece of such sizes of random values that all share."""
        if not held:
            drawn = torch.randn(DRAWN, dtype=torch.bfloat16, device=backend)
            held.append(drawn.repeat(COPIES_BYTES // 2 // DRAWN))
        count = math.prod(sizes)
        begin = number * count % max(len(held[0]) - count + 1, 1)
        return held[0][begin : begin + count].view(*sizes)

    def stream(size: int) -> Callable[[int], Any]:
        source = torch.zeros(size, dtype=torch.uint8, device=backend)
        target = torch.empty_like(source)
        return lambda number: target.copy_(source)

    def gemm(m: int, n: int, k: int) -> Callable[[int], Any]:
        rows, weights = tensor(m, k), [tensor(n, k, number=each) for each in range(max(1, COPIES_BYTES // (2 * n * k)))]
        return lambda number: linear(rows, weights[number % len(weights)])

    def decode(rows: int, context: int) -> Callable[[int], Any]:
        query = tensor(rows, HEADS, 1, HEAD_DIM)
        keys, values = (tensor(rows, KV_HEADS, context, HEAD_DIM, number=each) for each in range(2))
        return lambda number: attention(query, keys, values, enable_gqa=True)

    def prompt(tokens: int) -> Callable[[int], Any]:
        query = tensor(1, HEADS, tokens, HEAD_DIM)
        keys, values = (tensor(1, KV_HEADS, tokens, HEAD_DIM, number=each) for each in range(2))
        return lambda number: attention(query, keys, values, is_causal=True, enable_gqa=True)

    for size in STREAM_BYTES:
        yield "stream", (2 * size,), partial(stream, size)
    for m in ROWS:
        for n, k in WIDTHS:
            yield "gemm", (m, n, k), partial(gemm, m, n, k)
        for context in CONTEXTS:
            if m in (1, 16, 64):
                rows = BATCHES[(1, 16, 64).index(m)]
                yield "decode", (rows, context), partial(decode, rows, context)
        if m in (256, 1024, 4096):
            yield "prompt", (m,), partial(prompt, m)


def _timed(torch: Any, backend: str, run: Callable[[int], Any]) -> float:
    """Median over repeats of the time of a call, of a CPU the least, since other work only adds.

    Of one thread of a CPU it is its CPU time, in which other work does not count.
    """
    clock = time.thread_time if backend == "cpu" and torch.get_num_threads() == 1 else time.perf_counter

    def seconds(first: int, count: int) -> float:
        _wait(torch, backend)
        began_s = clock()
        for number in range(first, first + count):
            run(number)
        _wait(torch, backend)
        return (clock() - began_s) / count

    seconds(0, 1)
    once_s = max(seconds(1, 1), 1e-7)
    count = max(1, min(500, int(RUN_S / once_s)))
    each_s = [seconds(2 + each * count, count) for each in range(REPEATS)]
    return min(each_s) if backend == "cpu" else statistics.median(each_s)


def _wait(torch: Any, backend: str) -> None:
    if backend == "cuda":
        torch.cuda.synchronize()
    elif backend == "mps":
        torch.mps.synchronize()


__all__ = ["KernelTime", "Machine", "busy", "kernels", "load_torch", "machine"]
