"""Writes recorded runs of real servers as per-request files of inference-perf, which `calibrate results` and `compare` read.

    python benchmarks/real/records.py ../shared/data/real_cpu OUT [--only WORD]...

The folder holds `runs.parquet` (a row a run) and `requests.parquet` (a row a request), as for `predict.py`; a request counts from
when it was due, in a closed loop from when it was sent.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pandas as pd


def records_of(run: dict[str, Any], requests: pd.DataFrame) -> list[dict[str, Any]]:
    """The requests of a run by its own clock."""
    clock = "v" if run["clock"] == "v" else "t"
    start = f"{clock}_send" if run["conc"] else "due"
    return [
        {
            "start_time": float(row[start]),
            "end_time": float(row[f"{clock}_tok"][-1]),
            "request": "",
            "response": "",
            "info": {
                "input_tokens": int(row["prompt"]),
                "output_tokens": int(row["out"]),
                "output_token_times": [float(at) for at in row[f"{clock}_tok"]],
            },
            "error": None,
        }
        for row in requests.sort_values("i").to_dict("records")
    ]


def main() -> None:
    """Write a file a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", action="append", default=[], help="only runs with this word in their names")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    by_run = dict(iter(pd.read_parquet(asked.directory / "requests.parquet").groupby(["dir", "run"])))
    for run in pd.read_parquet(asked.directory / "runs.parquet").to_dict("records"):
        name = f"{run['dir']}-{run['run']}"
        if not asked.only or any(word in name for word in asked.only):
            (asked.out / f"{name}.json").write_text(json.dumps(records_of(run, by_run[run["dir"], run["run"]])))


if __name__ == "__main__":
    main()
