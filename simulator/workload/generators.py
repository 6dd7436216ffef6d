"""The shipped workloads: compact models derived from public traces.

``scenarios/traces/<name>.json`` holds the parameters that `simulator.workload.derive` fitted, with their
source and licence. Three parts:

- arrivals: a Poisson process whose rate follows the trace's profile (which repeats); where the trace is
  burstier, the rate of each sub-bin is multiplied by a gamma variate of mean 1, and arrivals come in
  clusters of geometric size;
- lengths: quantiles of the prompt length, and of the output length given the prompt's bin, so that service
  limits stay as spikes and the dependence of the pair is kept;
- prefixes (where the trace records them): every prompt starts with the same system prompt; requests grow
  into conversations, whose next turn keeps most of the previous prompt.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError, nearest
from simulator.workload.columns import Content, FloatArray, IntArray
from simulator.workload.rows import Rows
from simulator.workload.streams import stream

MOST_DRAWN = 5e6
"""Requests of a generator that are drawn, all at once (assumed: some 0.5 GB)."""
FOLDER = Path(__file__).resolve().parents[2] / "scenarios" / "traces"


def names() -> list[str]:
    """Return the names of the shipped generators."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


@cache
def parameters(name: str) -> dict[str, Any]:
    """Return the fitted parameters of the generator `name`, with their provenance.

    Raises
    ------
    InputError : no such generator.
    """
    path = FOLDER / f"{name}.json"
    if not path.is_file():
        close = nearest(name, names())
        raise InputError(
            f"no shipped trace is named {name!r}",
            where="workload.trace",
            mend=f"did you mean {close!r}?"
            if close
            else f"choose one of {', '.join(names())}, or give a file",
        )
    data = path.read_bytes()
    fitted: dict[str, Any] = json.loads(data)
    fitted["source"]["sha256"] = hashlib.sha256(data).hexdigest()
    return fitted


def generate(name: str, *, seed: int, until_s: float | None = None, prefix: str = "") -> Rows:
    """Draw requests from the generator `name`.

    Parameters
    ----------
    seed : of the run; `prefix` names the streams apart from those of other classes.
    until_s : horizon [s]; None is the length of the profile. The profile repeats beyond it.

    Notes
    -----
    Where prefixes are modelled, the simulation starts cold, as the trace does: the first minutes hold fewer
    follow-up turns.
    """
    fitted = parameters(name)
    process = fitted["arrivals"]
    span = len(process["expected"]) * process["bin_s"]
    until = float(span if until_s is None else until_s)
    if (expected := until * mean_rate(name)) > MOST_DRAWN:
        raise InputError(
            f"{name} would draw about {expected:.3g} requests up to {until:.3g} s; it draws at most {MOST_DRAWN:,.0f}",
            where="workload.trace",
            mend="shorten the duration or the window, lower limit or rate_scale",
        )
    content = None
    if "prefix" in fitted:
        times, prompts, content = _conversations(fitted, seed, until, prefix)
    else:
        times = _arrivals(process, seed, until, prefix)
        prompts = _prompts(fitted["lengths"], stream(seed, prefix + "prompt_tokens"), len(times))
    outputs = _outputs(fitted["lengths"], stream(seed, prefix + "output_tokens"), prompts)
    return Rows(
        times,
        prompts,
        outputs,
        until,
        content=content,
        source={"name": name, "kind": "generator", **fitted["source"]},
    )


def mean_rate(name: str) -> float:
    """Return the mean arrival rate [1/s] of the generator `name`."""
    process = parameters(name)["arrivals"]
    return float(np.mean(process["expected"]) / process["bin_s"])


def _arrivals(process: dict[str, Any], seed: int, until_s: float, prefix: str) -> FloatArray:
    from simulator.workload import arrivals

    expected, bin_s = np.asarray(process["expected"], np.float64), float(process["bin_s"])
    cluster_mean = float(process.get("cluster_mean", 1.0))
    sub_bins = int(process.get("sub_bins", 1))
    bins = np.arange(math.ceil(until_s / bin_s) * sub_bins)
    rate = expected[bins // sub_bins % len(expected)] / sub_bins
    cv2 = float(process.get("sub_bin_cv2", 0.0))
    if cv2:
        weights = (
            stream(seed, prefix + "arrivals.burst").gamma(1.0 / cv2, cv2, len(bins)).reshape(-1, sub_bins)
        )
        # Mean exactly 1 in each bin: the profile already carries the slower variation.
        totals = weights.sum(axis=1, keepdims=True)
        rate = (
            rate * np.divide(weights * sub_bins, totals, where=totals > 0, out=np.ones_like(weights)).ravel()
        )
    counts = stream(seed, prefix + "arrivals.counts").poisson(rate / cluster_mean)
    places = stream(seed, prefix + "arrivals.places")
    times = arrivals.fill_bins(places, counts, bin_s / sub_bins, until_s)
    if cluster_mean > 1:
        members = stream(seed, prefix + "arrivals.clusters")
        followers = np.repeat(times, members.geometric(1.0 / cluster_mean, len(times)) - 1)
        late = followers + members.exponential(float(process["cluster_s"]), len(followers))
        times = np.sort(np.concatenate((times, late)))
    return times[times < until_s]


def _prompts(lengths: dict[str, Any], rng: np.random.Generator, n: int) -> IntArray:
    tokens: IntArray = np.rint(np.interp(rng.random(n), lengths["prompt_levels"], lengths["prompt"])).astype(
        np.int64
    )
    return tokens


def _outputs(lengths: dict[str, Any], rng: np.random.Generator, prompts: IntArray) -> IntArray:
    """Inverse distribution of the output given the bin of the prompt."""
    levels, table = np.asarray(lengths["output_levels"]), np.asarray(lengths["output"], np.float64)
    bins = np.searchsorted(np.asarray(lengths["prompt_edges"]), prompts, side="right")
    draws = rng.random(len(prompts))
    cell = np.clip(np.searchsorted(levels, draws, side="right") - 1, 0, len(levels) - 2)
    share = (draws - levels[cell]) / (levels[cell + 1] - levels[cell])
    values = table[bins, cell] * (1 - share) + table[bins, cell + 1] * share
    tokens: IntArray = np.maximum(np.rint(values), 1).astype(np.int64)
    return tokens


def _opening_profile(process: dict[str, Any], prefix: dict[str, Any], until_s: float) -> FloatArray:
    """Expected conversation openings per step, so that openings and follow-ups together follow the profile.

    With opening rate r and the mean follow-ups per opening after a delay, h, the total is ``r + h * r`` (a
    convolution); solved forward in time on steps of ``prefix["step_s"]``.
    """
    step_s = float(prefix["step_s"])
    steps = math.ceil(until_s / step_s)
    expected, bin_s = np.asarray(process["expected"], np.float64), float(process["bin_s"])
    middles = (np.arange(steps) + 0.5) * step_s
    total = expected[(middles / bin_s).astype(np.int64) % len(expected)] * (step_s / bin_s)
    # Follow-ups of one opening by delay in steps: sum over turns of the chance of that turn and the law of
    # the sum of its gaps.
    reach = int(prefix["gaps_s"][-1] / step_s) + 1
    gaps = np.diff(np.interp(np.arange(reach + 1) * step_s, prefix["gaps_s"], prefix["gap_levels"]))
    kernel, law = np.zeros(3 * reach), np.ones(1)
    chance = float(prefix["open_eligible"])
    for turn in range(12):
        chance *= prefix["continue"][min(turn, len(prefix["continue"]) - 1)]
        law = np.convolve(law, gaps)[: len(kernel)]
        kernel[: len(law)] += chance * law
    openings = np.zeros(steps)
    reversed_kernel = kernel[::-1]
    for k in range(steps):
        known = min(k, len(kernel) - 1)
        follow_ups = openings[k - known : k] @ reversed_kernel[len(kernel) - known - 1 : -1] if known else 0.0
        openings[k] = max(0.0, (total[k] - follow_ups) / (1.0 + kernel[0]))
    return openings


def _conversations(
    fitted: dict[str, Any], seed: int, until_s: float, name: str
) -> tuple[FloatArray, IntArray, Content]:
    """Draw openings and their follow-up turns; return arrivals, prompts and content, sorted by arrival.

    A follow-up keeps whole blocks of the previous prompt: usually all but the last, else (an edited or
    branched conversation) a drawn fraction, and at least the system prompt; fresh tokens come after them.
    """
    from simulator.workload import arrivals

    prefix = fitted["prefix"]
    block = int(prefix["block_tokens"])
    openings = _opening_profile(fitted["arrivals"], prefix, until_s)
    counts = stream(seed, name + "arrivals.counts").poisson(openings)
    times = arrivals.fill_bins(stream(seed, name + "arrivals.places"), counts, prefix["step_s"], until_s)
    prompts = _prompts(fitted["lengths"], stream(seed, name + "prompt_tokens"), len(times))
    rng = stream(seed, name + "conversations")
    n = len(times)
    levels = [(times, prompts, np.full(n, -1), np.full(n, block))]
    first, turn = 0, 0
    while len(times):
        chance = prefix["continue"][min(turn, len(prefix["continue"]) - 1)]
        blocks = -(-prompts // block)
        goes_on = np.flatnonzero((blocks >= 3) & (rng.random(len(times)) < chance))
        after = times[goes_on] + np.interp(rng.random(len(goes_on)), prefix["gap_levels"], prefix["gaps_s"])
        kept = goes_on[after < until_s]
        times = after[after < until_s]
        m = len(kept)
        draw, fraction = (
            rng.random(m),
            np.interp(rng.random(m), prefix["fraction_levels"], prefix["fractions"]),
        )
        branched = (
            draw
            < np.asarray(prefix["branch"])[
                np.searchsorted(prefix["branch_edges"], blocks[kept], side="right")
            ]
        )
        whole = draw >= 1 - prefix["keeps_all"]
        shared = np.where(branched, np.floor(fraction * blocks[kept]), blocks[kept] - 1 + whole)
        shared_tokens = np.minimum(np.maximum(shared, 2) * block, prompts[kept]).astype(np.int64)
        new, new_branch = (
            np.interp(rng.random(m), prefix["fresh_levels"], prefix[k]) for k in ("fresh", "fresh_branch")
        )
        fresh = np.maximum(np.rint(np.where(branched, new_branch, new)), 1).astype(np.int64)
        prompts = np.minimum(shared_tokens + fresh, int(prefix["longest_prompt"]))
        levels.append((times, prompts, kept + first, np.minimum(shared_tokens, prompts)))
        first += len(blocks)
        turn += 1
    time, prompt, parent, common = (np.concatenate(column) for column in zip(*levels, strict=True))
    order = np.argsort(time, kind="stable")
    runs = _runs(prompt, parent, common, block)
    rows = [runs[i] for i in order]
    flat = np.array([run for row in rows for run in row], np.int64).reshape(-1, 3)
    start = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    nowhere, zero = np.full(len(order), -1, np.int64), np.zeros(len(order), np.int64)
    content = Content(start, flat[:, 0].copy(), flat[:, 1].copy(), flat[:, 2].copy(), nowhere, zero)
    return time[order], prompt[order], content


def _runs(
    prompt: IntArray, parent: IntArray, common: IntArray, block: int
) -> list[list[tuple[int, int, int]]]:
    """Each prompt's runs: the common part of its parent's, then a segment of its own if a child shares it."""
    has_child = np.zeros(len(prompt), bool)
    has_child[parent[parent >= 0]] = True
    runs: list[list[tuple[int, int, int]]] = []
    for i, (tokens, above, shared) in enumerate(
        zip(prompt.tolist(), parent.tolist(), common.tolist(), strict=True)
    ):
        own: list[tuple[int, int, int]] = []
        if above < 0:
            shared = min(block, tokens)
            own.append((0, 0, shared))
        else:
            left = shared
            for segment, offset, length in runs[above]:
                own.append((segment, offset, min(length, left)))
                left -= min(length, left)
                if left == 0:
                    break
        if has_child[i] and tokens > shared:
            own.append((i + 1, 0, tokens - shared))
        runs.append(own)
    return runs
