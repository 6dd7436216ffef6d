"""From what a client timed on a server to the law of its steps (`engine_models.cost.measured`)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np

from engine_models.cost.measured import FittedLaw, MeasuredStep, Part, fit_with_front
from engine_models.declaration import EnginePlan
from engine_models.model.architecture import active_parameters
from engine_models.model.blocks import Architecture
from engine_models.parts.batch import Batch, PartedBatch
from engine_models.parts.sequence import Sequence as Request
from hardware_profiles.errors import InputError
from simulator.endpoint.experiment import Measurement, Point

BLOCKS, TILES, STRAIGHT = (1, 4), (1, 64), (256.0, 1024.0, float("inf"))
"""Tokens that products take at once, and tiles of attention, between which the measurements choose (kernels of ggml on CPUs have
4 and 64, GPUs none that a step shows: `benchmarks/real/README.md`); tokens from which products go by their number (assumed)."""
BETTER = 0.98
"""By how much a less simple law has to be better (assumed)."""
MOST_STEPS = 10_000
"""Steps of a prompt at most (assumed)."""
FOUND = 0.7
"""Part of a first prompt's time from which on the same prompt again is said to be found in a cache (assumed)."""


class Seen(NamedTuple):
    """A measurement as a client has it: the point, `ttft` or `itl`, its median seconds, and the step that it times."""

    point: Point
    metric: str
    took_s: float
    step: MeasuredStep


class Fit(NamedTuple):
    """The law, the relative errors on what it was fitted to, and on each point left out in turn (NaN where that left too few)."""

    fitted: FittedLaw
    errors: list[float]
    held_out: list[float]


def prompt_parts(plan: EnginePlan, tokens: int) -> tuple[Part, ...]:
    """What the engine's scheduler computes of a prompt alone, part by part."""
    scheduler = plan.scheduler("step")
    scheduler.add(Request(0, tokens, 1, 0.0))
    parts: list[Part] = []
    for now_s in range(MOST_STEPS):
        if not scheduler.has_work():
            break
        batch = scheduler.schedule(float(now_s))
        if batch is None:
            continue
        for each in batch.parts if isinstance(batch, PartedBatch) else [batch]:
            parts += _parts(each, tokens)
        scheduler.settle(batch)
    return tuple(parts)


def _parts(batch: Batch, tokens: int) -> list[Part]:
    return [Part(1, new, float(prior), int(new + prior >= tokens)) for new, prior in batch.prefill]


def seen(measurements: Iterable[Measurement], plan: EnginePlan) -> list[Seen]:
    """Medians over the rounds, with the steps that they time.

    Raises InputError where rows of a scenario were never served together.
    """
    by_point: dict[Point, list[Measurement]] = defaultdict(list)
    for each in measurements:
        if each.point.kind != "prefix":
            by_point[each.point].append(each)
    out: list[Seen] = []
    for point, rounds in sorted(by_point.items(), key=lambda item: (item[0].kind == "batch", item[0])):
        counted = round(float(np.median([t.prompt_tokens for each in rounds for t in each.requests])))
        if point.kind == "lone":
            took_s = float(np.median([each.requests[0].ttft_s for each in rounds]))
            out.append(Seen(point, "ttft", took_s, MeasuredStep(prompt_parts(plan, counted), took_s, 1)))
        gaps = [found for each in rounds if (found := each.gap_s()) is not None]
        if point.rows > 1 and not gaps:
            raise InputError(
                f"{point.rows} equal requests were never served together: the first ended before the last began",
                where=point.name,
                mend=f"the scenario serves {plan.limits.rows} at once; give it the server's own limit, or lower --max-rows",
            )
        if gaps:
            step_s, prior = (float(value) for value in np.median(gaps, axis=0))
            out.append(Seen(point, "itl", step_s, MeasuredStep((Part(point.rows, 1, prior, point.rows),), step_s)))
    return out


def output_share(arch: Architecture) -> float:
    """What an output costs beside a token's products: the parameters of the head over those of the layers."""
    head = arch.vocab * arch.hidden
    return head / max(active_parameters(arch) - head, 1)


def fit(found: Sequence[Seen], share: float) -> Fit:
    """The law among those of `BLOCKS`, `TILES`, `STRAIGHT` that does best on points left out; InputError for too few of them."""
    best: Fit | None = None
    steps = [each.step for each in found]
    for block, tile, straight in product(BLOCKS, TILES, STRAIGHT):
        shape = (block, share, tile, straight)
        fitted = fit_with_front(steps, *shape)
        made = Fit(fitted, fitted.errors(steps).tolist(), _held_out(found, shape))
        if best is None or _score(made) < BETTER * _score(best):
            best = made
    assert best is not None
    return best


def _score(made: Fit) -> float:
    held = np.abs([error for error in made.held_out if error == error])
    return float(np.mean(np.abs(made.errors)) + (np.median(held) if len(held) else 0.0))


def _held_out(found: Sequence[Seen], shape: tuple[int, float, int, float]) -> list[float]:
    out = dict.fromkeys(range(len(found)), float("nan"))
    for point in dict.fromkeys(each.point for each in found):
        rest = [each.step for each in found if each.point != point]
        left = [(number, each.step) for number, each in enumerate(found) if each.point == point]
        try:
            fitted = fit_with_front(rest, *shape)
        except InputError:
            continue
        for (number, _), error in zip(left, fitted.errors([step for _, step in left]), strict=True):
            out[number] = float(error)
    return list(out.values())


def finds_prefixes(measurements: Iterable[Measurement]) -> bool | None:
    """Whether a prompt sent again was computed again, None if that was not measured."""
    for each in measurements:
        if each.point.kind == "prefix":
            first, again = each.requests
            return again.ttft_s < FOUND * first.ttft_s
    return None


__all__ = ["Fit", "Seen", "finds_prefixes", "fit", "output_share", "prompt_parts", "seen"]
