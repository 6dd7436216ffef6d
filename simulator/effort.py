"""What a run will take of the machine it is computed on, said beforehand where it is much."""

from __future__ import annotations

import os
from collections.abc import Iterable

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.workload.columns import Workload
from simulator.workload.streaming import WorkloadStream

REQUEST_S = 80e-6
"""Processor time a request that shares nothing (measured: 150,000 of 512 and 128 tokens at 7/s, 12.7 s; 2026-11)."""
SHARING_REQUEST_S = 0.5e-3
"""... that shares its prompt's beginning or is a turn (measured: docs/background/speed.md, 0.4 to 0.8 ms; 2026-11)."""
HELD_BYTES = 1000.0
"""Memory a request of a run that is held (measured: 104 MB more of 100,000 more; 2026-11)."""
WAITING_BYTES = 400.0
"""... of a batch that is streamed and waits as a whole (measured: 39 MB more of 100,000 more; 2026-11)."""
BASE_BYTES = 150e6
"""Memory of any run (measured; docs/background/speed.md)."""
LONG_S, LARGE_BYTES = 60.0, 1e9
"""From these on the estimate is said."""


@dataclass(frozen=True)
class Effort:
    """About how many requests a run has, and what computing it takes: processor time [s] and memory [bytes]."""

    requests: float
    processor_s: float
    memory_bytes: float

    def said(self) -> str | None:
        """The estimate in words, None where it is little."""
        if self.processor_s < LONG_S and self.memory_bytes < LARGE_BYTES:
            return None
        minutes = self.processor_s / 60
        time = f"{minutes:,.0f} minutes" if minutes < 90 else f"{minutes / 60:,.1f} hours"
        return (
            f"about {self.requests:,.0f} requests: some {time} of one processor and {self.memory_bytes / 1e9:.1f} GB of memory "
            "(estimated; long queues and long prompts take more)"
        )

    def refuse(self, machine_bytes: float) -> None:
        """Raise InputError if the memory of the machine cannot be enough."""
        if self.memory_bytes > machine_bytes:
            raise InputError(
                f"about {self.requests:,.0f} requests are held at once, in {self.memory_bytes / 1e9:,.0f} GB of memory; "
                f"this machine has {machine_bytes / 1e9:,.0f}",
                where="workload",
                mend="simulate fewer requests: a part of the batch, a shorter duration, a limit, a window",
            )


def effort_of(source: Workload | WorkloadStream) -> Effort:
    """What a run of `source` takes."""
    if isinstance(source, WorkloadStream):
        requests, sharing = source.expected_requests, source.shares
        held = WAITING_BYTES * requests if source.at_once else 0.0
    else:
        requests, sharing = float(len(source)), source.content is not None
        held = HELD_BYTES * requests
    return Effort(requests, requests * (SHARING_REQUEST_S if sharing else REQUEST_S), BASE_BYTES + held)


def effort_of_all(sources: Iterable[Workload]) -> Effort:
    """What a run of several loads that follow each other takes."""
    each = [effort_of(source) for source in sources]
    held = sum(effort.memory_bytes - BASE_BYTES for effort in each)
    return Effort(
        sum(effort.requests for effort in each), sum(effort.processor_s for effort in each), BASE_BYTES + held
    )


def machine_bytes() -> float:
    """Memory of this machine [bytes]."""
    return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
