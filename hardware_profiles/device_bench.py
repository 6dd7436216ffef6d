"""Kernels of this machine, timed by PyTorch: memory, products of matrices, attention; on CUDA, ROCm, Apple's GPUs or the CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from hardware_profiles.device import DeviceKind
from hardware_profiles.errors import InputError
from hardware_profiles.ops import Ops

STREAM_BYTES = (1 << 26, 1 << 28)
WIDTHS = ((4096, 4096), (11008, 4096), (4096, 11008))
"""Outputs and inputs of products: those of models of 7 to 8 billion parameters."""
ROWS = (1, 4, 16, 64, 256, 1024, 4096)
HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
BATCHES, CONTEXTS, PROMPTS = (1, 8, 32), (512, 4096), (256, 1024, 4096)
COPIES_BYTES = 1 << 29
"""Bytes of weights that are cycled, so that no cache holds them (assumed: more than any last level has)."""
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


def kernels(torch: Any, backend: str, most_s: float, tell: Callable[[str], None]) -> list[KernelTime]:
    """Time kernels until so many seconds are over; the smaller sizes of all operations come first."""
    until_s = time.monotonic() + most_s
    out: list[KernelTime] = []
    slow: set[str] = set()
    with torch.inference_mode():
        for op, sizes, make in _planned(torch, backend):
            shape = KernelTime(op, sizes, 0.0).shape
            if time.monotonic() > until_s or shape in slow:
                continue
            tell(f"timing {op} {sizes} ...")
            took_s = _timed(torch, backend, make())
            out.append(KernelTime(op, sizes, took_s))
            if took_s * 4 > LONGEST_S:
                slow.add(shape)
    return out


Planned = tuple[Literal["stream", "gemm", "decode", "prompt"], tuple[int, ...], Callable[[], Callable[[int], Any]]]


def _planned(torch: Any, backend: str) -> Iterator[Planned]:
    """What is timed: an operation, its sizes, and what makes a function of the number of the call."""
    linear, attention = torch.nn.functional.linear, torch.nn.functional.scaled_dot_product_attention

    def tensor(*sizes: int) -> Any:
        return torch.randn(*sizes, dtype=torch.bfloat16, device=backend)

    def stream(size: int) -> Callable[[int], Any]:
        source = torch.zeros(size, dtype=torch.uint8, device=backend)
        target = torch.empty_like(source)
        return lambda number: target.copy_(source)

    def gemm(m: int, n: int, k: int) -> Callable[[int], Any]:
        rows, weights = tensor(m, k), [tensor(n, k) for _ in range(max(1, COPIES_BYTES // (2 * n * k)))]
        return lambda number: linear(rows, weights[number % len(weights)])

    def decode(rows: int, context: int) -> Callable[[int], Any]:
        query, keys, values = tensor(rows, HEADS, 1, HEAD_DIM), *(tensor(rows, KV_HEADS, context, HEAD_DIM) for _ in range(2))
        return lambda number: attention(query, keys, values, enable_gqa=True)

    def prompt(tokens: int) -> Callable[[int], Any]:
        query, keys, values = tensor(1, HEADS, tokens, HEAD_DIM), *(tensor(1, KV_HEADS, tokens, HEAD_DIM) for _ in range(2))
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
    """Median over repeats of the time of a call; of one thread of a CPU its CPU time, in which other work does not count."""
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
    return statistics.median(seconds(2 + each * count, count) for each in range(REPEATS))


def _wait(torch: Any, backend: str) -> None:
    if backend == "cuda":
        torch.cuda.synchronize()
    elif backend == "mps":
        torch.mps.synchronize()


__all__ = ["KernelTime", "Machine", "kernels", "load_torch", "machine"]
