"""Columns to and from Parquet, by pyarrow alone.

Arrays are handed to pyarrow as buffers, because its converters import pandas, which costs more than writing
the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hardware_profiles.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Column = np.ndarray[Any, Any] | Sequence[Any]


def write_columns(columns: Mapping[str, Column], path: Path) -> None:
    """Write `columns` to the Parquet file `path`; the same columns give the same bytes.

    Integers become int64, floats float64 (NaN becomes null), booleans bool; text may hold None; a sequence of
    float sequences becomes a list column (None: null). Columns of unequal length raise ValueError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns differ in length: {lengths}")
    arrays = [_array(name, column) for name, column in columns.items()]
    table = pa.Table.from_arrays(arrays, names=list(columns))
    pq.write_table(table, path, compression="zstd", version="2.6", write_statistics=False)


def read_columns(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the columns of a Parquet file as numpy arrays; nulls of numeric columns become NaN.

    Raises InputError if the file cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"cannot read the table: {str(error).splitlines()[0]}",
            where=str(path),
            mend="run the simulation again",
        ) from None
    return {name: table.column(name).to_numpy() for name in table.column_names}


def _array(name: str, column: Column) -> pa.Array:
    import pyarrow as pa

    if not isinstance(column, np.ndarray):
        values = list(column)
        if all(v is None or isinstance(v, str) for v in values):
            return _text(values)
        if any(isinstance(v, list | tuple | np.ndarray) for v in values):
            return _lists(values)
        column = np.array([np.nan if v is None else v for v in values])
    if column.ndim != 1:
        raise ValueError(f"column {name} has {column.ndim} dimensions")
    kind, n = column.dtype.kind, len(column)
    if kind in "iu":
        return pa.Array.from_buffers(pa.int64(), n, [None, _buffer(column.astype(np.int64))])
    if kind == "f":
        return _floats(column.astype(np.float64))
    if kind == "b":
        return pa.Array.from_buffers(pa.bool_(), n, [None, _buffer(np.packbits(column, bitorder="little"))])
    if kind in "OU":
        return _array(name, column.tolist())
    raise TypeError(f"column {name} of type {column.dtype} cannot be written")


def _buffer(array: np.ndarray[Any, Any]) -> pa.Buffer:
    import pyarrow as pa

    return pa.py_buffer(np.ascontiguousarray(array))


def _validity(valid: np.ndarray[Any, Any]) -> pa.Buffer | None:
    return None if valid.all() else _buffer(np.packbits(valid, bitorder="little"))


def _floats(values: np.ndarray[Any, Any]) -> pa.Array:
    import pyarrow as pa

    valid = ~np.isnan(values)
    clean = np.where(valid, values, 0.0)
    return pa.Array.from_buffers(pa.float64(), len(values), [_validity(valid), _buffer(clean)])


def _offsets(lengths: Sequence[int]) -> np.ndarray[Any, Any]:
    offsets = np.concatenate(([0], np.cumsum(np.array(lengths, np.int64))))
    if offsets[-1] >= 2**31:
        raise ValueError("the column holds more than 2^31 characters or values")
    return offsets.astype(np.int32)


def _text(values: list[str | None]) -> pa.Array:
    import pyarrow as pa

    encoded = [(v or "").encode() for v in values]
    offsets = _offsets([len(e) for e in encoded])
    valid = _validity(np.array([v is not None for v in values], dtype=bool))
    buffers = [valid, _buffer(offsets), pa.py_buffer(b"".join(encoded))]
    return pa.Array.from_buffers(pa.utf8(), len(values), buffers)


def _lists(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    parts = [np.asarray(() if v is None else v, np.float64) for v in values]
    offsets = _offsets([len(part) for part in parts])
    valid = _validity(np.array([v is not None for v in values], dtype=bool))
    inner = _floats(np.concatenate(parts))
    return pa.Array.from_buffers(
        pa.list_(pa.float64()), len(values), [valid, _buffer(offsets)], children=[inner]
    )
