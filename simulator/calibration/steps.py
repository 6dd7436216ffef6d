"""Rows of llama-bench and llama-batched-bench as points of a calibration: single steps, priced without a server around them.

Where they are many, a law of whole steps (`engine_models.cost.measured`) fits them better than scales of the profile do.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from engine_models.cost.measured import FittedLaw, MeasuredStep, Part, fit_with_front
from engine_models.cost.step_time import TableRange
from engine_models.cost.sub_batches import SubBatches
from engine_models.model.architecture import active_parameters, format_of_part, parameters
from engine_models.parts.batch import Batch, Span
from engine_models.parts.protocols import StepCost
from engine_models.schedulers.slots import padded
from hardware_profiles.device import Device
from hardware_profiles.errors import InputError
from hardware_profiles.scaled_ops import Scales
from simulator.calibrated import with_scales
from simulator.calibration.deployment import Deployment
from simulator.calibration.fit import Point
from simulator.prepared import Prepared
from simulator.validation.microbenchmarks import read_steps, rows_of, steps_of

METRIC = "step_ms"
SHAPES = ((1, 1), (4, 64))
"""Tokens that products take at once, and tiles of attention: none that show, and ggml's on CPUs (`benchmarks/real/README.md`)."""
ALIKE = 0.02
"""By how much two counts of the same parameters may differ: buffers, tied matrices (assumed)."""


def points_of_steps(path: Path, deployment: Deployment) -> list[Point]:
    """A point for each time in a file. Raises InputError for rows of another model, format or number of threads."""
    found: list[tuple[str, MeasuredStep, float]] = []
    for row in rows_of(path):
        _check(row, path, deployment.prepared)
        prompt, answer = steps_of(row, path)
        noise = _noise(row)
        found += [(_label(step), step, noise) for step in (prompt, answer) if step is not None]
    steps = [step for _, step, _ in found]
    for label, step, _ in found:
        if not 0.0 < step.took_s < float("inf"):
            raise InputError(f"{label} took {step.took_s:g} seconds", where=str(path), mend="leave out what was not measured")
    cost = _priced(deployment.prepared, steps)
    return [
        Point(label, {METRIC: 1e3 * step.took_s}, _predicted(step, cost, deployment.prepared), {METRIC: noise}, _ranges(step))
        for label, step, noise in found
    ]


class Law(NamedTuple):
    """A law of steps: relative errors on what it was fitted to, and on each step left out in turn (None: too few are left)."""

    fitted: FittedLaw
    steps: tuple[MeasuredStep, ...]
    errors: tuple[float, ...]
    held_out: tuple[float | None, ...]


def law_of_steps(paths: Sequence[Path], prepared: Prepared) -> Law:
    """The law of the steps in files, of two shapes (`SHAPES`) the one that does better on steps left out.

    Raises InputError where the steps tell no law: rows that decode over two contexts, prompts at two depths.
    """
    steps = tuple(read_steps(paths))
    arch, weights = prepared.arch, prepared.formats.weights
    head = arch.vocab * arch.hidden
    share = head / max(active_parameters(arch) - head, 1)
    share *= format_of_part(arch, weights, "lm_head").bits_per_weight / weights.bits_per_weight
    made: list[Law] = []
    for block_tokens, tile_tokens in SHAPES:
        fitted = fit_with_front(steps, block_tokens, share, tile_tokens)
        held: list[float | None] = []
        for number, step in enumerate(steps):
            rest = [*steps[:number], *steps[number + 1 :]]
            try:
                held.append(float(fit_with_front(rest, block_tokens, share, tile_tokens).errors([step])[0]))
            except InputError:
                held.append(None)
        made.append(Law(fitted, steps, tuple(fitted.errors(steps).tolist()), tuple(held)))
    return min(made, key=lambda law: median_error(law.held_out) or math.inf)


def median_error(errors: Sequence[float | None]) -> float | None:
    """Median of absolute errors that are known; None if there is none."""
    known = [abs(error) for error in errors if error is not None]
    return statistics.median(known) if known else None


def points_of_law(law: Law, prepared: Prepared) -> list[Point]:
    """The steps of a law as points, priced by the profile."""
    cost = _priced(prepared, law.steps)
    return [
        Point(_label(step), {METRIC: 1e3 * step.took_s}, _predicted(step, cost, prepared), {}, _ranges(step))
        for step in law.steps
    ]


def _noise(row: Mapping[str, Any]) -> float:
    """Relative standard error of a row's time, 0 where it is not told."""
    samples = row.get("samples_ns")
    if not isinstance(samples, list) or not samples or "stddev_ns" not in row:
        return 0.0
    return float(row["stddev_ns"]) / float(row["avg_ns"]) / math.sqrt(len(samples))


def _check(row: Mapping[str, Any], path: Path, prepared: Prepared) -> None:
    """Raise InputError where a row is of something else than the deployment."""
    arch, pool = prepared.arch, prepared.pool
    counted, own = _parameters(row), parameters(arch)
    if counted and abs(counted / own - 1) > ALIKE:
        named = row.get("model_type") or row.get("model") or "unnamed"
        raise InputError(
            f"measured with a model of {counted / 1e9:.3g} B parameters ({named}), and the scenario's "
            f"{arch.name} has {own / 1e9:.3g} B",
            where=str(path),
            mend="name the measured model under `model`",
        )
    stored = row.get("model_size")
    bits = 8 * stored / counted if isinstance(stored, int) and counted else 0.0
    weights = prepared.formats.weights
    if bits and not 0.75 < bits / weights.bits_per_weight < 1.6:  # embeddings and heads are wider
        raise InputError(
            f"measured with {bits:.2g} bits a weight, and the scenario's weights are {weights.name}",
            where=str(path),
            mend="state the measured format under `deployment.weights`",
        )
    threads, said = row.get("n_threads"), prepared.plan.costs.terms.threads
    if prepared.device.kind == "cpu" and isinstance(threads, int) and said and threads != said:
        raise InputError(
            f"measured with {threads} threads, and the scenario has {said}",
            where=str(path),
            mend="set `threads` in deployment.engine_args to those measured",
        )
    if not _runs_on(row, prepared.device):
        layers = row.get("n_gpu_layers", row.get("ngl"))
        raise InputError(
            f"measured on the backend {row.get('backends') or row.get('backend')}"
            f"{'' if layers is None else f' with {layers} layers on the GPU'}, and the scenario's device is "
            f"{prepared.device.title}",
            where=str(path),
            mend="name the measured machine under `deployment.hardware`",
        )
    devices = prepared.devices_each
    named = [name for name in str(row.get("gpu_info") or "").split(",") if name.strip()]
    if named and prepared.device.kind != "cpu" and len(named) != devices and row.get("devices") in (None, "auto"):
        raise InputError(
            f"measured on {len(named)} devices ({row['gpu_info']}), and the scenario has {devices}",
            where=str(path),
            mend=f"state the devices measured, as pipeline_parallel of {pool.engine}",
        )


VENDORS = {"MTL": "apple", "Metal": "apple", "CUDA": "nvidia", "ROCm": "amd", "HIP": "amd", "SYCL": "intel", "Vulkan": None}
"""Whose devices a backend of llama.cpp computes on, any's (None) for Vulkan, as `ggml_backend_reg_name` spells it (2026)."""
ON_CORES = {"CPU", "BLAS"}


def _runs_on(row: Mapping[str, Any], device: Device) -> bool:
    """Whether a device can have computed a row, as far as the row tells its backend."""
    backends = [name.strip() for name in str(row.get("backends") or row.get("backend") or "").split(",") if name.strip()]
    if str(row.get("n_gpu_layers", row.get("ngl", ""))) == "0" or (backends and set(backends) <= ON_CORES):
        return device.kind == "cpu"
    named = [VENDORS[name] for name in backends if name in VENDORS]
    return not named or (device.kind != "cpu" and (None in named or device.vendor in named))


def _parameters(row: Mapping[str, Any]) -> float:
    """Parameters of the model of a row, in JSON or in a table (``8.03 B``); 0 where it tells none."""
    told = row.get("model_n_params")
    if isinstance(told, int):
        return float(told)
    number, _, unit = str(row.get("params") or "").partition(" ")
    scale = {"B": 1e9, "M": 1e6}.get(unit)
    return float(number) * scale if scale and number.replace(".", "", 1).isdigit() else 0.0


def _label(step: MeasuredStep) -> str:
    """A name as llama-bench has it: pp512, tg128's mean step by its context, rows at once."""
    first, last = step.parts[0], step.parts[-1]
    if first.tokens == 1:
        rows = f"{first.rows} rows" if first.rows > 1 else "1 row"
        return f"step of {rows} @ {first.prior_tokens:,.0f}"
    tokens = sum(part.tokens for part in step.parts)
    prompt = f"prompt of {tokens:,}" if last.tokens > 1 or len(step.parts) == 1 else f"prompt and answer, {tokens:,}"
    return prompt + (f" @ {first.prior_tokens:,.0f}" if first.prior_tokens else "")


def _ranges(step: MeasuredStep) -> dict[str, float]:
    first, last = step.parts[0], step.parts[-1]
    out = {"context_tokens": last.prior_tokens + last.tokens}
    if first.tokens > 1:
        out["prompt_tokens"] = float(sum(part.tokens for part in step.parts if part.tokens > 1))
    else:
        out["rows"] = float(first.rows)
    return out


def _priced(prepared: Prepared, steps: Sequence[MeasuredStep]) -> Callable[[Scales], StepCost]:
    """Step times of the deployment by scales, tabulated as far as the steps go."""
    parts = [part for step in steps for part in step.parts]
    up_to = TableRange(
        max(part.rows * part.tokens for part in parts),
        max(part.rows for part in parts),
        padded(math.ceil(max(part.prior_tokens + part.tokens for part in parts)) + 1),
    )

    @lru_cache(maxsize=32)
    def cost(scales: Scales) -> StepCost:
        made = with_scales(prepared, scales)
        found = replace(made.plan.costs, up_to=up_to).over(made.kernels)
        return found.model if isinstance(found, SubBatches) else found

    return cost


def _predicted(
    step: MeasuredStep, cost: Callable[[Scales], StepCost], prepared: Prepared
) -> Callable[[Scales], Mapping[str, float]]:
    pooled = prepared.plan.costs.parts is not None

    def predict(scales: Scales) -> Mapping[str, float]:
        priced = cost(scales)
        return {METRIC: 1e3 * sum(priced.step_s([_batch(part, prepared, pooled=pooled)])[0] for part in step.parts)}

    return predict


def _batch(part: Part, prepared: Prepared, *, pooled: bool) -> Batch:
    """The step of a part. `pooled`: attention runs over padded cells, of every row its own."""
    if part.tokens > 1:
        return Batch(0, prefill=[(part.tokens, round(part.prior_tokens))] * part.rows, tokens=part.rows * part.tokens)
    rows, context = part.rows, round(part.prior_tokens) + 1
    batch = Batch(0, decode_rows=rows, decode_tokens=rows, decode_kv_tokens=rows * context, tokens=rows)
    windows = prepared.arch.windows_below(context)
    batch.spans = tuple(Span(window, rows * window, 0) for window in windows)
    batch.pool_cells = padded(context) if pooled else 0
    return batch


__all__ = ["METRIC", "Law", "law_of_steps", "median_error", "points_of_law", "points_of_steps"]
