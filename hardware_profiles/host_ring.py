"""Collectives of devices that do not read each other's memory: a ring through the host's, as NCCL has it.

A message is copied into memory of the host by its sender and out of it by its receiver. Of a few bytes each word carries a flag
that the receiver polls for over the bus, of many they go in chunks; NCCL takes the quicker:

    t = LAUNCH_S + steps FLAGGED_STEP_S + sent / FLAGGED_BYTES_PER_S        or
    t = LAUNCH_S + steps CHUNK_STEP_S + sent / CHUNKS_BYTES_PER_S

where ``steps`` is 2 (n - 1) of an all-reduce over n devices and n - 1 of the others, and ``sent`` is the n-th part of the tensor
in each. Neither rate is the bus's: two channels poll and copy as long as it takes the host to answer.
"""

from __future__ import annotations

import numpy as np

from hardware_profiles.kernel_physics import LINK_EFFICIENCY, RING_PASSES, Array

LAUNCH_S, FLAGGED_STEP_S, CHUNK_STEP_S = 7e-6, 2e-6, 1.3e-5
"""Of the kernel, and of each step of the ring [s]. kind: fitted, 2026-11, source: nccl-tests of two and four GeForce cards
through the host, 4 kB to 1 MB (kalavai-net's page on RTX 4090, two tables of two and two of four; two RTX 4090 on an EPYC, NCCL
2.21; two RTX 2080 Ti), beside what tokens of RTX 4090 ask for, 45 to 55 us over two and 75 to 105 over four. Up to 64 kB the law
has 0.5 to 1.5 times a table."""
FLAGGED_BYTES_PER_S = 1.25e9
"""Of words with flags [byte/s]. kind: fitted, 2026-11, the geometric mean of hosts, the same sources, 0.65e9 to 2.3e9. Tried on
four RTX 3090 (vLLM 0.23, Gemma-4-12B in two formats, one to eight users)."""
CHUNKS_BYTES_PER_S = 9e9
"""Of chunks [byte/s]. kind: fitted, 2026-11, the geometric mean of machines that are no guests: 4.7e9 (prompts of two RTX 3090,
club-3090 pull request 702), 5.2e9 (four L40S), 13e9 (prompts of two RTX 5090, club-3090 issue 873), 18e9 (four RTX 4090, NCCL
issue 1603)."""
GUESTS_BYTES_PER_S = (0.9e9, 4e9)
"""The same in rented containers and guests, and on EPYC processors whose socket is one NUMA node [byte/s]. kind: measured,
2026-11, source: the tables above (0.9e9, 2.2e9 to 3.9e9, 4.0e9), four RTX 3090 on an EPYC 7642 (1.4e9), NCCL issue 1285."""
WORDS = (
    f"these cards sum through the host's memory by NCCL, in chunks at {CHUNKS_BYTES_PER_S / 1e9:.0f} GB/s; guests, rented "
    f"containers and EPYC processors in NPS1 have {GUESTS_BYTES_PER_S[0] / 1e9:.0f} to {GUESTS_BYTES_PER_S[1] / 1e9:.0f}: "
    "prompts take longer there"
)
"""What a run over several such devices says."""
READ_BELOW_ROOT = 2
"""So many devices NCCL lets read each other's memory across the root of an AMD host's bus; more, and any on other hosts, only
below one switch. kind: datasheet, 2026-11, source: ``ncclTopoCheckP2p`` of NCCL 2.2x."""


def seconds(op: str, devices: int, size_bytes: Array, link_bytes_per_s: float) -> Array:
    """Time of a collective of `size_bytes` over `devices` devices, whose links carry `link_bytes_per_s` one way [s].

    A word with its flag is twice as long, and no rate is above :data:`LINK_EFFICIENCY` of the link's.
    """
    passes = RING_PASSES.get(op, 1.0)
    steps, sent = passes * (devices - 1), passes * (devices - 1) / devices * size_bytes
    most = LINK_EFFICIENCY * link_bytes_per_s
    flagged_s = steps * FLAGGED_STEP_S + sent / min(FLAGGED_BYTES_PER_S, most / 2)
    chunked_s = steps * CHUNK_STEP_S + sent / min(CHUNKS_BYTES_PER_S, most)
    return np.asarray(LAUNCH_S + np.minimum(flagged_s, chunked_s), dtype=np.float64)


__all__ = ["READ_BELOW_ROOT", "WORDS", "seconds"]
