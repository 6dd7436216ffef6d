"""Write a trace of a million requests of the kind of S1: Poisson at 7/s, prompts N(512, 128), outputs N(128, 32) tokens.

python benchmarks/million.py FILE.parquet
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from simulator.io.tables import write_columns

REQUESTS = 1_000_000

if __name__ == "__main__":
    rng = np.random.default_rng(1)
    columns = {
        "arrival_s": np.cumsum(rng.exponential(1 / 7, REQUESTS)),
        "prompt_tokens": np.maximum(np.rint(rng.normal(512, 128, REQUESTS)), 1).astype(np.int64),
        "output_tokens": np.maximum(np.rint(rng.normal(128, 32, REQUESTS)), 1).astype(np.int64),
    }
    write_columns(columns, Path(sys.argv[1]))
