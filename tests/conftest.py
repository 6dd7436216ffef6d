"""What holds for all tests: how long an example takes decides nothing, and a process computes on one core."""

from __future__ import annotations

import os

for library in ("OPENBLAS", "OMP", "MKL"):  # read as numpy is imported; threads of several workers wait for each other
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

from hypothesis import HealthCheck, settings  # noqa: E402

from tests.effort import examples  # noqa: E402

settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=examples(100)
)
settings.load_profile("untimed")
