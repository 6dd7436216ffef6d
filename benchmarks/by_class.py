"""Errors on published measurements by class of hardware, beside what each is to reach.

    python benchmarks/cases.py ../shared/data/published --output cases.jsonl
    python benchmarks/by_class.py cases.jsonl [CLASS...] [--most ROWS] [--chips] [--workers N]

A class is a metric of some engines on some devices. Its error is the median over its chips, each once, of the median absolute
error of a chip's rows; after an anchor, what `benchmarks/anchored.py` finds. Inside are the rows within their 90 % intervals, in
the mean of the chips. The constants of laws are fitted to some of these rows: `benchmarks/laws.py` leaves chips out.
"""

from __future__ import annotations

import argparse
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from anchored import Measured, after_one, measured

from simulator.config.load import load_scenario
from simulator.validation.reports import Case, judged, read_cases

LEAST_ROWS = 2
"""An anchor needs another row to be judged by."""


@dataclass(frozen=True)
class Class:
    """Rows of a metric: patterns of their file, device and metric, and of the engine; what errors they may have [%].

    batch : rows of several requests at once (True), of one (False), or both. pairs : over several devices (True) or one.
    """

    name: str
    file: str
    device: str
    metric: str
    target_pct: float
    anchored_pct: float | None = None
    engine: str = ""
    batch: bool | None = None
    pairs: bool | None = None


APPLE, CARDS = r"apple-m[1-4]", r"(rtx|gtx)-(?!pro)"
CLASSES = (
    Class("Apple GPUs, llama.cpp: decoding", "llamacpp_apple", APPLE, "decode_tok_s", 6, engine="llama_cpp|ollama"),
    Class("Apple GPUs, llama.cpp: prompts", "llamacpp_apple", APPLE, "prefill_tok_s", 6, engine="llama_cpp|ollama"),
    Class("M5, llama.cpp: prompts", "llamacpp_apple|community", "apple-m5", "prefill_tok_s", 20, engine="llama_cpp"),
    Class("MLX engines: decoding", "apple", "apple", "decode_tok_s", 25, 15, engine="mlx_lm"),
    Class("MLX engines: prompts", "apple", "apple", "prefill_tok_s", 25, 15, engine="mlx_lm"),
    Class("CPUs: one stream", "cpu(_llamacpp)?$", "", "decode_tok_s", 40, 15, batch=False),
    Class("CPUs: prompts", "cpu(_llamacpp)?$", "", "prefill_tok_s", 40, 15),
    Class("CPUs: one stream of the batches' files", "cpu_batched", "", "decode_tok_s", 40, 15, batch=False),
    Class("CPUs: batches", "cpu_batched", "", "decode_tok_s", 35, 15, batch=True),
    Class("CPUs: OpenVINO's server by rate", "cpu$", "", "tpot_mean_ms", 35, 15, engine="openvino"),
    Class("NVIDIA cards, llama.cpp: decoding", "llamacpp_gpu|nv_consumer", CARDS, "decode_tok_s", 6, engine="llama_cpp"),
    Class("NVIDIA cards, llama.cpp: prompts", "llamacpp_gpu|nv_consumer", CARDS, "prefill_tok_s", 12, engine="llama_cpp"),
    Class("NVIDIA cards, ExLlamaV2: decoding", "llamacpp_gpu|nv_consumer", CARDS, "decode_tok_s", 10, engine="exllamav2"),
    Class("several tokens in flight, llama.cpp", "llamacpp_batched", "", "prefill_tok_s", 18),
    Class("Strix Halo, R9700: decoding", "llamabench_amd", "", "decode_tok_s", 12),
    Class("Strix Halo, R9700: prompts", "llamabench_amd", "", "prefill_tok_s|ttft_median_ms", 20),
    Class("MI300X, MI325X, MI355X: throughput", "mi300x|amd_serving", "mi3", "output_tok_s", 20, 10),
    Class("MI300X, MI325X, MI355X: latencies", "mi300x|amd_serving", "mi3", "e2e_s|tpot_mean_ms|ttft_mean_ms", 20, 10),
    Class("H100, H200 beside them", "amd_serving", "h[12]00", "", 20, 10),
    Class("RTX 4090 by rate: TPOT", "consumer_qps", "rtx", "tpot_mean_ms", 12),
    Class("several cards over PCIe: TPOT", "nv_consumer", "rtx", "tpot_mean_ms", 12, pairs=True),
    Class("several cards over PCIe: throughput", "nv_consumer", "rtx", "output_tok_s", 12, pairs=True),
    Class("one such card: TPOT", "nv_consumer", "rtx", "tpot_mean_ms", 12, pairs=False),
    Class("one such card: throughput", "nv_consumer", "rtx", "output_tok_s", 12, pairs=False),
    Class("MLPerf, offline", "mlperf", "", "output_tok_s", 20),
    Class("MLPerf, server", "mlperf", "", "rate_within_slo", 25),
    Class("uploads of a community: decoding", "community", "", "decode_tok_s", 35),
)


@dataclass(frozen=True)
class Judged:
    """A row: its chip, the error of what was predicted [%], whether its interval holds it, and what an anchor goes by."""

    file: str
    engine: str
    device: str
    metric: str
    batch: bool
    pairs: bool
    error_pct: float
    inside: bool | None
    anchor: Measured | None

    def of(self, wanted: Class) -> bool:
        """Whether it is a row of a class."""
        found = re.search(wanted.file, self.file) and re.match(wanted.device, self.device)
        found = found and re.fullmatch(wanted.metric or ".*", self.metric) and re.match(wanted.engine, self.engine)
        return bool(found) and wanted.batch in (None, self.batch) and wanted.pairs in (None, self.pairs)


def judge(case: Case, anchors: bool) -> list[Judged]:
    """The rows of a case; with `anchors` also how they follow scales."""
    entries, _ = judged(case)
    if not entries:
        return []
    pool, load = (scenario := load_scenario(case.scenario)).deployment.pools[0], scenario.workload
    rows = {row.machine[3]: row for row in measured(case)} if anchors else {}
    batch = load.requests is not None and load.requests > 1
    pairs = pool.tensor_parallel > 1
    file = case.id.rpartition("-")[0]
    return [
        Judged(file, pool.engine.partition("@")[0], pool.hardware, entry["metric"], batch, pairs,
               entry["abs_pct_error"], entry["covered"], rows.get(entry["metric"]))
        for entry in entries
    ]  # fmt: skip


def figures(rows: Iterable[Judged]) -> Iterator[tuple[str, int, float, float | None, float | None]]:
    """Of each chip: its name, how many rows, median error [%], the same of others after one anchor, share inside [%]."""
    chips: dict[str, list[Judged]] = defaultdict(list)
    for row in rows:
        chips[row.device].append(row)
    for chip, found in sorted(chips.items()):
        machines: dict[tuple[str, ...], list[Measured]] = defaultdict(list)
        for row in found:
            if row.anchor:
                machines[row.anchor.machine].append(row.anchor)
        after = [after for of in machines.values() if len(of) >= LEAST_ROWS for _, after in after_one(of)]
        known = [row.inside for row in found if row.inside is not None]
        error = float(np.median([row.error_pct for row in found]))
        anchored_pct, inside_pct = 100 * float(np.median(after or [0.0])), 100 * float(np.mean(known or [False]))
        yield chip, len(found), error, anchored_pct if after else None, inside_pct if known else None


def line(name: str, wanted: Class, chips: list[tuple[str, int, float, float | None, float | None]]) -> str:
    """A class as a line of the table."""
    def shown(values: list[float], most: float | None = None) -> str:
        return "-".rjust(7) if not values else f"{np.median(values):7.1f}" + ("!" if most and np.median(values) > most else " ")

    errors, after = [chip[2] for chip in chips], [chip[3] for chip in chips if chip[3] is not None]
    inside = [chip[4] for chip in chips if chip[4] is not None]
    covered = f"{np.mean(inside):7.0f}" if inside else "-".rjust(7)
    anchored = f"{wanted.anchored_pct:7.0f}" if wanted.anchored_pct else "-".rjust(7)
    count = sum(chip[1] for chip in chips)
    return (f"{name:46}{len(chips):6}{count:6}{shown(errors, wanted.target_pct)}{wanted.target_pct:7.0f}"
            f"{shown(after, wanted.anchored_pct)}{anchored}{covered}")  # fmt: skip


def picked(cases: Iterable[Case], most: int) -> list[Case]:
    """As many cases of each file, engine, device, model's load as asked for, evenly."""
    groups: dict[tuple[str, ...], list[Case]] = defaultdict(list)
    for case in cases:
        pool = load_scenario(case.scenario).deployment.pools[0]
        groups[case.id.rpartition("-")[0], pool.engine, pool.hardware, "/".join(sorted(case.reported))].append(case)
    return [of[round(at)] for of in groups.values() for at in np.linspace(0, len(of) - 1, min(most, len(of)))]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("classes", nargs="*", help="only classes with one of these words in their names")
    parser.add_argument("--most", type=int, default=100_000, help="rows of a machine, evenly picked")
    parser.add_argument("--chips", action="store_true", help="each chip too")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    classes = [each for each in CLASSES if not asked.classes or any(word in each.name for word in asked.classes)]
    anchored = "|".join(each.file for each in classes if each.anchored_pct)
    cases = [c for c in read_cases(asked.cases) if any(re.search(each.file, c.id.rpartition("-")[0]) for each in classes)]
    cases = picked(cases, asked.most)
    wants = [bool(anchored) and bool(re.search(anchored, case.id.rpartition("-")[0])) for case in cases]
    if asked.workers > 1:
        from joblib import Parallel, delayed

        found = Parallel(n_jobs=asked.workers)(delayed(judge)(*each) for each in zip(cases, wants, strict=True))
    else:
        found = [judge(*each) for each in zip(cases, wants, strict=True)]
    rows = [row for some in found for row in some]
    head = (("chips", 6), ("rows", 6), ("now", 7), ("may", 8), ("after", 7), ("may", 8), ("inside", 7))
    print(f"{'median error [%], each chip once':46}" + "".join(f"{word:>{width}}" for word, width in head))
    for wanted in classes:
        chips = list(figures(row for row in rows if row.of(wanted)))
        if chips:
            print(line(wanted.name, wanted, chips))
        for chip in chips if asked.chips else ():
            print(line(f"  {chip[0]}", wanted, [chip]))


if __name__ == "__main__":
    main()
