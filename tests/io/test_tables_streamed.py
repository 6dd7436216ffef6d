"""Tables that are written in parts, and text columns that are not lists of texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simulator.io import tables
from simulator.io.tables import Coded, Numbered, TableWriter, read_columns, write_columns


def test_coded_and_numbered_columns_are_the_texts_they_stand_for(tmp_path: Path) -> None:
    coded, numbered = Coded(np.array([1, -1, 0], np.int8), ("stop", "length")), Numbered("r", 7, 3)
    plain = {"a": ["length", None, "stop"], "b": ["r7", "r8", "r9"]}
    assert {"a": list(coded), "b": list(numbered)} == plain
    assert [np.asarray(coded).tolist(), np.asarray(numbered).tolist()] == list(plain.values())
    write_columns({"a": coded, "b": numbered}, tmp_path / "x")
    write_columns(plain, tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


@pytest.mark.parametrize("codes", [[1, 1, 1], [-1, -1], [-2, -1], [0], [2, 2], [2, 0, -1, 2], []])
def test_coded_columns_of_one_word_or_several_are_their_texts(codes: list[int], tmp_path: Path) -> None:
    coded = Coded(np.array(codes, np.int8), ("é", "length", ""))
    write_columns({"a": coded}, tmp_path / "x")
    write_columns({"a": list(coded)}, tmp_path / "y")
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    assert read_columns(tmp_path / "x")["a"].tolist() == [None if code < 0 else ("é", "length", "")[code] for code in codes]


def test_numbered_names_have_as_many_digits_as_their_numbers(tmp_path: Path) -> None:
    write_columns({"id": Numbered("r", 0, 1234)}, tmp_path / "x")
    assert read_columns(tmp_path / "x")["id"].tolist() == [f"r{i}" for i in range(1234)]


def test_parts_make_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_GROUP", 4)
    columns = {
        "n": np.arange(10),
        "x": np.where(np.arange(10) % 3, np.arange(10.0), np.nan),
        "b": np.arange(10) % 2 == 0,
        "t": [None if i == 4 else f"é{i}" for i in range(10)],
        "c": Coded(np.arange(10) % 2, ("u", "v")),
    }
    write_columns(columns, tmp_path / "whole")
    with TableWriter(tmp_path / "parts") as writer:
        for part in (slice(0, 3), slice(3, 10)):
            writer.write({name: column[part] for name, column in columns.items()})
    whole, parts = read_columns(tmp_path / "whole"), read_columns(tmp_path / "parts")
    for name, column in columns.items():
        wanted = np.asarray(column)
        for found in (whole[name], parts[name]):
            assert found.tolist() == wanted.tolist() or np.array_equal(found, wanted, equal_nan=True)
