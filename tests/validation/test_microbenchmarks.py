"""Results of llama-bench and llama-batched-bench are read as measured steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine_models.cost.measured import MeasuredStep, Part
from hardware_profiles.errors import InputError
from simulator.validation.microbenchmarks import read_steps

ALONE = [
    {"n_prompt": 700, "n_gen": 0, "n_depth": 100, "n_ubatch": 512, "avg_ns": 2e9, "n_threads": 8},
    {"n_prompt": 0, "n_gen": 32, "n_depth": 100, "n_ubatch": 512, "avg_ns": 3.2e8, "n_threads": 8},
]
STEPS = [
    MeasuredStep((Part(1, 512, 100, 0), Part(1, 188, 612, 1)), 2.0),
    MeasuredStep((Part(1, 1, 115.5, 1),), 0.01),
]
TABLE = """
| model         |     size | threads |          test |           t/s |
| ------------- | -------: | ------: | ------------: | ------------: |
| llama 1B Q4_0 | 0.14 GiB |       8 |  pp700 @ d100 | 350.00 ± 1.23 |
| llama 1B Q4_0 | 0.14 GiB |       8 |   tg32 @ d100 | 100.00 ± 0.45 |

build: 0c1e5709 (11669)
"""
TOGETHER = """
|    PP |     TG |    B |   N_KV |   T_PP s | S_PP t/s |   T_TG s | S_TG t/s |      T s |    S t/s |
|-------|--------|------|--------|----------|----------|----------|----------|----------|----------|
|   128 |     16 |    1 |    144 |    0.200 |   640.00 |    0.080 |   200.00 |    0.280 |   514.29 |
|   128 |     16 |    4 |    576 |    0.800 |   640.00 |    0.160 |   400.00 |    0.960 |   600.00 |
"""


def written(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text", [json.dumps(ALONE), "".join(json.dumps(row) + "\n" for row in ALONE), TABLE], ids=["json", "lines", "table"]
)
def test_all_outputs_of_a_run_say_the_same(tmp_path: Path, text: str) -> None:
    found = read_steps([written(tmp_path, "bench.txt", text)])
    assert [step.parts for step in found] == [step.parts for step in STEPS]
    assert [step.took_s for step in found] == pytest.approx([step.took_s for step in STEPS])


def test_rows_at_once_are_steps_by_their_number(tmp_path: Path) -> None:
    path = written(tmp_path, "batched.md", TOGETHER)
    decode = [MeasuredStep((Part(rows, 1, 135.5, rows),), took_s) for rows, took_s in ((1, 0.005), (4, 0.01))]
    assert read_steps([path]) == [*decode, MeasuredStep((Part(1, 128, 0, 1),), 0.2)]
    both = read_steps([written(tmp_path, "bench.json", json.dumps(ALONE)), path])
    assert both[2:] == decode  # llama-bench measured prompts


def test_a_prompt_and_its_answer_in_one_time_are_all_their_steps(tmp_path: Path) -> None:
    row = ALONE[0] | {"n_prompt": 64, "n_gen": 3, "n_depth": 0}
    (found,) = read_steps([written(tmp_path, "bench.json", json.dumps([row]))])
    assert found.parts == (Part(1, 64, 0, 1), *[Part(1, 1, 65.0, 1)] * 3)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no rows"),
        ("hello", "no rows"),
        ("[1, 2]", "no rows"),
        ('{"pp": 128, "tg"', "cut or no JSON"),
        ('{"pp": 128, "tg": 16}', "cannot be read"),
        (TABLE.replace("pp700", "xx700"), "cannot be read"),
        (TABLE.replace("350.00", "n/a"), "cannot be read"),
        (TABLE.replace("350.00", "0.00"), "cannot be read"),
        (json.dumps([ALONE[1] | {"n_gen": 0}]), "cannot be read"),
        (json.dumps([ALONE[0], ALONE[1] | {"n_threads": 4}]), "n_threads is 8 .* and 4"),
    ],
)
def test_what_is_no_result_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_steps([written(tmp_path, "file.txt", text)])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none"):
        read_steps([tmp_path / "none.json"])
