"""Step times from measured steps: the fit gives back the law that made the measurements, and steps are timed by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from engine_models.cost.measured import MeasuredStep, MeasuredSteps, Part, StepLaw, cells_of, fit_law
from engine_models.cost.terms import HostOverhead
from engine_models.parts.batch import Batch
from hardware_profiles.errors import InputError

LAW = StepLaw(
    block_tokens=4,
    products=((0, 1e-4), (4, 9e-4), (16, 2.5e-3), (64, 9e-3), (128, 1.7e-2)),
    token_s=4e-4,
    output_s=1e-4,
    cells=((1, 1e-6), (2, 1.1e-6), (4, 1.3e-6)),
    tile_cell_s=3e-7,
    tile_tokens=64,
)
PARTS = [
    *(Part(rows, 1, prior, rows) for rows in (1, 2, 4) for prior in (16.0, 500.0)),
    *(Part(1, tokens, 0, 1) for tokens in (16, 64, 128)),
    Part(1, 64, 1024, 1),
]


def measured(law: StepLaw, *parts: Part) -> MeasuredStep:
    return MeasuredStep(parts, sum(map(MeasuredSteps(law, HostOverhead(0.0, 0.0)).part_s, parts)))


def test_fit_gives_back_the_law_of_its_measurements() -> None:
    steps = [measured(LAW, part) for part in PARTS] + [measured(LAW, PARTS[8], Part(1, 64, 128, 1))]
    found = fit_law(steps, 4, 0.25, 64)
    assert np.abs(found.errors(steps)).max() < 1e-9
    assert [found.token_s, found.output_s, found.tile_cell_s] == pytest.approx([4e-4, 1e-4, 3e-7])
    assert np.array(found.products) == pytest.approx(np.array(LAW.products))
    assert np.array(found.cells) == pytest.approx(np.array(LAW.cells))


def test_noise_is_averaged_relative_to_each_measurement() -> None:
    steps = [measured(LAW, part) for part in PARTS]
    steps = [each._replace(took_s=each.took_s * factor) for each in steps for factor in (0.98, 1.02)]
    assert np.abs(fit_law(steps, 4, 0.25, 64).errors(steps)).max() < 0.025


def test_tokens_beyond_a_block_cost_one_by_one() -> None:
    model = MeasuredSteps(LAW, HostOverhead(0.0, 0.0))
    three, four, five = (model.part_s(Part(rows, 1, 0, 0)) for rows in (3, 4, 5))
    assert three == pytest.approx(1e-4 + 3 * 4e-4 + 3 * 1.2e-6)
    assert four == pytest.approx(9e-4 + 4 * 1.3e-6)  # quicker than three
    assert five == pytest.approx(9e-4 + 4e-4 + 5 * 1.3e-6)


def test_attention_of_a_chunk_is_computed_in_whole_tiles() -> None:
    tile = 64 * 64
    assert cells_of(64, 0, 64) == tile
    assert cells_of(65, 0, 64) == 3 * tile  # two tiles below the first
    assert cells_of(128, 0, 64) == 3 * tile
    assert cells_of(64, 100, 64) == 3 * tile
    assert cells_of(63, 10, 64) == 63 * 10 + 63 * 64 / 2  # shorter than a tile
    assert cells_of(5, 7, 1) == 5 * 7 + 15


def test_a_run_is_priced_as_its_steps() -> None:
    model = MeasuredSteps(LAW, HostOverhead(2e-4, 1e-4))
    shape = Batch(0, 3, 3, 600, tokens=3)
    each = [model.step_s((Batch(0, 3, 3, 600 + 3 * step, tokens=3),))[0] for step in range(20)]
    assert model.few_s((shape,), 20) == each == model.run_s((shape,), 20).tolist()
    assert each[0] == pytest.approx(1e-4 + 3 * (4e-4 + 1e-4) + 600 * 1.2e-6)
    assert model.host_s(shape) == pytest.approx(5e-4)


def test_a_mixed_step_counts_rows_chunks_and_outputs() -> None:
    model = MeasuredSteps(LAW, HostOverhead(0.0, 0.0))
    batch = Batch(0, 1, 1, 100, prefill=[(127, 1)], tokens=128)
    device_s, (prefill_s,) = model.step_s((batch,))
    chunk_s = 3e-7 * cells_of(127, 1, 64)
    assert device_s == pytest.approx(1.7e-2 + 2e-4 + 100e-6 + chunk_s)
    assert prefill_s == pytest.approx((1.7e-2 + 2e-4) * 127 / 128 + chunk_s)
    first = Batch(0, 1, 1, 100, prefill=[(1, 0)], tokens=2)  # a prompt's first token beside a row: it yields nothing yet
    assert model.step_s((first,))[0] == pytest.approx(1e-4 + 2 * 4e-4 + 1e-4 + 101 * 1.1e-6)


@pytest.mark.parametrize(
    ("left", "words"), [(PARTS[6:], "rows that decode"), (PARTS[:7], "prompts after a context")]
)
def test_too_few_measurements_are_named(left: list[Part], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fit_law([measured(LAW, part) for part in left], 4, 0.25, 64)


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_times_that_cannot_be_are_refused(seconds: float) -> None:
    steps = [measured(LAW, part) for part in PARTS]
    with pytest.raises(InputError, match="seconds"):
        fit_law([*steps, steps[0]._replace(took_s=seconds)], 4, 0.25, 64)


def test_products_are_those_of_a_law_without_blocks() -> None:
    steps = [measured(replace(LAW, block_tokens=1, tile_tokens=1), part) for part in PARTS]
    found = fit_law(steps)
    assert found.token_s == 0.0
    assert np.abs(found.errors(steps)).max() < 0.02
