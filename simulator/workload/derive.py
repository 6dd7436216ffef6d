"""Fit the shipped generators from the original traces: ``python -m simulator.workload.derive TRACES_DIR``.

TRACES_DIR holds ``azure2023_conv.parquet``, ``azure2023_code.parquet`` and ``mooncake_conversation.parquet``
(columns ``arrival_s, prompt_tokens, output_tokens``, and ``hash_ids`` for Mooncake). The result is a function
of the files alone, so a second run writes the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from simulator.workload.columns import FloatArray, IntArray
from simulator.workload.describe import index_of_dispersion
from simulator.workload.generators import FOLDER

AZURE = {
    "ref": "Azure/AzurePublicDataset@b469a11, first 40 minutes; cite Patel et al., Splitwise, ISCA 2024",
    "licence": "CC-BY-4.0",
    "date": "2023-11-16",
    "fit": "fitted",
}
MOONCAKE = {
    "ref": "kvcache-ai/Mooncake@3b5a594 FAST25-release/traces, conversation, first 40 minutes; "
    "cite Qin et al., FAST 2025",
    "licence": "Apache-2.0",
    "date": "2025",
    "fit": "fitted",
}
SPAN_S = 2400.0
BRANCH_EDGES = (8, 16, 32)
"""Bins of the previous prompt's length [blocks]: long prompts are edited or branched far more often."""
OPEN_END_S = 1200.0
"""Turns are followed this long [s]; only requests of the first half can be, and only they are used."""


def _round(values: FloatArray, digits: int) -> list[float]:
    return [round(float(v), digits) for v in values]


def _whole(values: FloatArray) -> list[int]:
    return [int(v) for v in np.rint(values)]


def _levels(cells: int, tail: tuple[float, ...]) -> FloatArray:
    return np.unique(np.concatenate((np.linspace(0, 1, cells + 1), tail)))


def fit_profile(arrival_s: FloatArray, bin_s: float) -> FloatArray:
    """Expected arrivals per bin: the counts, drawn towards their mean by the Poisson share of their variance.

    A count's variance is the rate's plus the mean (Poisson noise); the linear estimate with the least squared
    error shrinks by ``1 - 1/IDC``.
    """
    counts = np.bincount((arrival_s // bin_s).astype(np.int64), minlength=int(SPAN_S / bin_s))
    mean = counts.mean()
    profile: FloatArray = mean + (counts - mean) * max(0.0, 1 - mean / counts.var())
    return profile


def fit_lengths(prompts: IntArray, outputs: IntArray, openings: IntArray | None = None) -> dict[str, Any]:
    """Quantiles of the prompt (of `openings` where given), and of the output given the prompt's bin."""
    prompt_levels = _levels(300, (0.9985, 0.999, 0.9995))
    output_levels = _levels(40, (0.98, 0.985, 0.99, 0.9925, 0.995, 0.9975))
    edges = np.unique(np.quantile(prompts, np.arange(1, 20) / 20, method="inverted_cdf"))
    bins = np.searchsorted(edges, prompts, side="right")
    table = [
        np.quantile(outputs[bins == b] if (bins == b).any() else outputs, output_levels, method="hazen")
        for b in range(len(edges) + 1)
    ]
    source = prompts if openings is None else openings
    return {
        "prompt_levels": _round(prompt_levels, 6),
        "prompt": _whole(np.quantile(source, prompt_levels, method="hazen")),
        "prompt_edges": _whole(edges),
        "output_levels": _round(output_levels, 6),
        "output": [_whole(row) for row in table],
    }


def fit_bursts(arrival_s: FloatArray, bin_s: float, sub_bins: int) -> dict[str, float]:
    """Burstiness inside the profile's bins.

    Clusters: at 10 ms the index of dispersion exceeds that of the slower rate by ``E[N(N-1)]/E[N] =
    2 (m - 1)`` for geometric clusters of mean m. Sub-bins: the variance between the counts of a bin's
    sub-bins, beyond that of the clusters, is ``cv2`` times the squared mean. The clusters' spread of 2 ms is
    the lower quartile of the gaps (2.1 ms).
    """
    fast = index_of_dispersion(arrival_s, 0.01, SPAN_S)
    slow = (index_of_dispersion(arrival_s, 0.1, SPAN_S) - fast) / 9.0
    extra = max(0.0, fast - 1.0 - slow)
    counts = np.bincount(
        (arrival_s * sub_bins // bin_s).astype(np.int64), minlength=int(SPAN_S * sub_bins / bin_s)
    )
    grid = counts.reshape(-1, sub_bins)
    mean, variance = grid.mean(axis=1), grid.var(axis=1, ddof=1)
    beyond = variance - mean * (1 + extra)
    # Weights normalised in each bin lose 1/sub_bins of their variance; the sample variance restores it.
    return {
        "sub_bins": sub_bins,
        "sub_bin_cv2": round(float(beyond.sum() / (mean**2).sum()), 4),
        "cluster_mean": round(1 + extra / 2, 4),
        "cluster_s": 0.002,
    }


def fit_prefix(
    arrival_s: FloatArray, prompts: IntArray, hashes: list[list[int]], block: int
) -> tuple[dict[str, Any], IntArray]:
    """Conversations from block hashes: who continues whom, when, keeping how much, adding how much.

    A request continues the last request that held the deepest block it shares, provided that it shares more
    than the system prompt (one block).
    """
    owner: dict[int, int] = {}
    parent, shared = np.full(len(prompts), -1), np.zeros(len(prompts), np.int64)
    for i, ids in enumerate(hashes):
        depth = 0
        while depth < len(ids) and ids[depth] in owner:
            depth += 1
        shared[i] = depth
        if depth > 1:
            parent[i] = owner[ids[depth - 1]]
        for name in ids:
            owner[name] = i
    blocks = -(-prompts // block)
    turn = np.zeros(len(prompts), np.int64)
    for i in np.flatnonzero(parent >= 0).tolist():
        turn[i] = turn[parent[i]] + 1
    follow = np.flatnonzero(parent >= 0)
    gap = arrival_s[follow] - arrival_s[parent[follow]]
    in_time = follow[(arrival_s[parent[follow]] < SPAN_S - OPEN_END_S) & (gap < OPEN_END_S)]
    early = arrival_s < SPAN_S - OPEN_END_S
    has_child = np.isin(np.arange(len(prompts)), parent[in_time])
    chances = []
    for k in range(5):
        at_risk = early & (blocks >= 3) & ((turn == k) if k < 4 else (turn >= 4))
        chances.append(float(has_child[at_risk].mean()))
    lost = blocks[parent[follow]] - shared[follow]
    branched = lost > 1
    size = np.searchsorted(BRANCH_EDGES, blocks[parent[follow]], side="right")
    fresh = prompts[follow] - np.minimum(shared[follow] * block, prompts[follow] - 1)
    levels = _levels(40, (0.99, 0.995))
    gap_levels = np.linspace(0, 1, 41)
    gaps = arrival_s[in_time] - arrival_s[parent[in_time]]
    opening = parent < 0
    fitted = {
        "block_tokens": block,
        "step_s": 10,
        "longest_prompt": int(prompts.max()),
        "open_eligible": round(float((blocks[opening] >= 3).mean()), 4),
        "continue": _round(np.asarray(chances), 4),
        "gap_levels": _round(gap_levels, 6),
        "gaps_s": _round(np.quantile(gaps, gap_levels), 1),
        "branch_edges": list(BRANCH_EDGES),
        "branch": _round(np.asarray([branched[size == b].mean() for b in range(len(BRANCH_EDGES) + 1)]), 4),
        "keeps_all": round(float((lost <= 0).mean()), 4),
        "fraction_levels": _round(levels, 6),
        "fractions": _round(np.quantile((shared[follow] / blocks[parent[follow]])[branched], levels), 4),
        "fresh_levels": _round(levels, 6),
        "fresh": _whole(np.quantile(fresh[~branched], levels)),
        "fresh_branch": _whole(np.quantile(fresh[branched], levels)),
    }
    return fitted, prompts[opening]


def derive(traces: Path) -> dict[str, dict[str, Any]]:
    """Return the parameters of every shipped generator, fitted to the files in `traces`."""
    import pyarrow.parquet as pq

    fitted: dict[str, dict[str, Any]] = {}
    for name, file, bin_s in (("azure-conv-2023", "conv", 60), ("azure-code-2023", "code", 5)):
        table = pq.read_table(traces / f"azure2023_{file}.parquet")
        arrival, prompts, outputs = (
            table[c].to_numpy() for c in ("arrival_s", "prompt_tokens", "output_tokens")
        )
        process: dict[str, Any] = {"bin_s": bin_s, "expected": _round(fit_profile(arrival, bin_s), 2)}
        if file == "code":
            # Counts as they are: silent bins must stay silent, and noise is 1/40 of their variance.
            counts = np.bincount((arrival // bin_s).astype(np.int64), minlength=int(SPAN_S / bin_s))
            process = {
                "bin_s": bin_s,
                "expected": _whole(counts.astype(np.float64)),
                **fit_bursts(arrival, bin_s, 5),
            }
        fitted[name] = {"source": AZURE, "arrivals": process, "lengths": fit_lengths(prompts, outputs)}
    table = pq.read_table(traces / "mooncake_conversation.parquet")
    arrival, prompts, outputs = (table[c].to_numpy() for c in ("arrival_s", "prompt_tokens", "output_tokens"))
    prefix, openings = fit_prefix(arrival, prompts, table["hash_ids"].to_pylist(), 512)
    fitted["mooncake-conversation"] = {
        "source": MOONCAKE,
        "arrivals": {"bin_s": 60, "expected": _round(fit_profile(arrival, 60.0), 2)},
        "lengths": fit_lengths(prompts, outputs, openings),
        "prefix": prefix,
    }
    return fitted


def main(arguments: list[str]) -> int:
    """Write ``scenarios/traces/*.json`` from the traces in the folder named."""
    if len(arguments) != 1:
        print("usage: python -m simulator.workload.derive TRACES_DIR", file=sys.stderr)
        return 2
    for name, parameters in derive(Path(arguments[0])).items():
        path = FOLDER / f"{name}.json"
        lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in parameters.items()]
        path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
