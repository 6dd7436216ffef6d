"""Flags of measured prefill and decode servers, from the public recipes that launched them.

``python benchmarks/recipes.py CLONE SUITE`` reads a clone of github.com/NVIDIA/srt-slurm (Apache-2.0; facts and flags only) and
the launches of a suite of measured runs, which name a recipe, and writes `simulator/validation/recipes.json`: by recipe the
commit, the latest up to the day of the first run or else the first, the users that it sends, the flags of either side that
change a prediction, and how its devices share the model (`ranks`: tensor and data-parallel ranks, and ranks of experts).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))

from simulator.validation.sglang_launches import switches

OUTPUT = Path(__file__).parents[1] / "simulator" / "validation" / "recipes.json"
SIDES = ("prefill", "decode")
KEPT = {
    "async_scheduling", "attention_backend", "attention_config", "block_size", "chunked_prefill_size",
    "compilation_config", "context_length", "cuda_graph_bs", "cuda_graph_config", "cuda_graph_max_bs",
    "disable_cuda_graph", "disable_overlap_scheduler", "disable_radix_cache", "disaggregation_transfer_backend",
    "disable_shared_experts_fusion", "enable_chunked_prefill", "enable_flashinfer_allreduce_fusion",
    "enable_prefix_caching", "enforce_eager", "fp8_gemm_backend", "gpu_memory_utilization", "kv_cache_config", "kv_cache_dtype",
    "max_batch_size", "max_cudagraph_capture_size", "max_model_len", "max_num_batched_tokens",
    "max_num_seqs", "max_num_tokens", "max_prefill_tokens", "max_running_requests", "max_seq_len",
    "max_total_tokens", "mem_fraction_static", "moe_a2a_backend", "moe_config", "moe_runner_backend",
    "num_reserved_decode_tokens", "scheduler_recv_interval",
}
"""Flags that are read; of a group of settings those of `PARTS` alone."""
PARTS = {"moe_config": ("backend",)}


def flags_of(side: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one server's flags, by names with underscores; `no-enable-x` is `enable_x: false`."""
    found: dict[str, Any] = {}
    for written, value in side.items():
        name = written.replace("-", "_")
        if name.startswith("no_enable"):
            name, value = name.removeprefix("no_"), not value
        if isinstance(value, str) and value.startswith("{"):
            value = json.loads(value)
        if name in PARTS:
            value = {key: value[key] for key in PARTS[name]}
        if name in KEPT:
            found[name] = value
    return found


def ranks_of(side: dict[str, Any]) -> dict[str, int]:
    """Tensor ranks of each data-parallel one, these, and ranks that split the experts by number, as a server's flags say."""
    flags = {name.replace("-", "_"): value for name, value in side.items()}
    devices = int(flags.get("tensor_parallel_size") or flags.get("tp_size") or 1)
    ranks = int(flags.get("data_parallel_size") or flags.get("dp_size") or 1)
    if "enable_attention_dp" in flags:  # TensorRT-LLM
        ranks = devices if flags["enable_attention_dp"] else 1
    if "enable_attention_dp" in flags or flags.get("enable_dp_attention"):  # they share the tensor ranks
        return {"tp": devices // ranks, "dp": ranks, "ep": _experts_of(flags, devices)}
    return {"tp": devices, "dp": ranks, "ep": _experts_of(flags, devices * ranks)}


def _experts_of(flags: dict[str, Any], devices: int) -> int:
    if flags.get("enable_expert_parallel"):  # vLLM: over all
        return devices
    stated = ("moe_expert_parallel_size", "expert_parallel_size", "ep_size")
    return int(next((flags[name] for name in stated if flags.get(name)), 1))


def git(clone: Path, *words: str) -> str:
    """What a git command prints, "" where it fails."""
    return subprocess.run(["git", "-C", clone, *words], capture_output=True, text=True, check=False).stdout


def users_of(benchmark: dict[str, Any]) -> list[int]:
    """Users that a recipe sends, stated as a list or as `4x8`."""
    stated = benchmark.get("concurrencies") or []
    stated = stated if isinstance(stated, list) else [stated]
    return [int(users) for entry in stated for users in str(entry).split("x")]


def recipe_of(clone: Path, path: str, day: str) -> dict[str, Any] | None:
    """What is kept of a recipe as of a day."""
    commits = [line.split() for line in git(clone, "log", "--all", "--format=%H %cs", "--", path).splitlines()]
    there = [(commit, made) for commit, made in commits if git(clone, "ls-tree", commit, path)]
    if not there:
        return None
    commit = next((commit for commit, made in there if made <= day), there[-1][0])
    read = yaml.safe_load(git(clone, "show", f"{commit}:{path}"))
    backend = read["backend"]
    servers = next(value for key, value in backend.items() if key.endswith("_config"))
    sides = {side: switches(backend.get(f"{side}_environment") or {}) | flags_of(servers[side]) for side in SIDES}
    ranks = {side: ranks_of(servers[side]) for side in SIDES}
    return {"commit": commit[:10], "users": users_of(read["benchmark"]), "ranks": ranks, **sides}


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clone", type=Path)
    parser.add_argument("suite", type=Path)
    given = parser.parse_args()
    launches = pq.read_table(given.suite / "launches.parquet", columns=["id", "layout"]).to_pylist()
    layouts = {row["id"]: json.loads(row["layout"] or "{}") for row in launches}
    days: dict[str, str] = {}
    for row in pq.read_table(given.suite / "experiments.parquet").to_pylist():
        path = (layouts.get(row["id"], {}).get("recipe") or {}).get("CONFIG_FILE")
        if path and "num_workers" in str(row["disagg"]):
            days[path] = min(days.get(path, "9"), str(row["measured_on"]))
    lines = []
    for path, day in sorted(days.items()):
        found = recipe_of(given.clone, path, day)
        if found is not None:
            lines.append(f"{json.dumps(path)}: {json.dumps(found, sort_keys=True)}")
    OUTPUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
