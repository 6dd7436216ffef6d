"""Columns to and from Parquet, by pyarrow alone.

Arrays are handed to pyarrow as buffers, because its converters import pandas, which costs more than writing
the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_PER_GROUP = 1 << 17
"""Rows of a row group: what writing a table holds beside its columns."""


class Coded(Sequence["str | None"]):
    """A text column of few different words: `codes[i]` is the number of row i's word in `words`, below 0 for none."""

    def __init__(self, codes: np.ndarray[Any, Any], words: Sequence[str]) -> None:
        self.codes, self.words = codes, tuple(words)

    def __len__(self) -> int:
        return len(self.codes)

    @overload
    def __getitem__(self, row: int) -> str | None: ...
    @overload
    def __getitem__(self, row: slice) -> Coded: ...
    def __getitem__(self, row: int | slice) -> str | Coded | None:
        if isinstance(row, slice):
            return Coded(self.codes[row], self.words)
        code = int(self.codes[row])
        return self.words[code] if code >= 0 else None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        known = np.array([*self.words, None], dtype=object)
        return known[np.where(self.codes < 0, len(self.words), self.codes)]


class Numbered(Sequence[str]):
    """The names `prefix` + `first`, `prefix` + (`first` + 1), ... of `n` rows."""

    def __init__(self, prefix: str, first: int, n: int) -> None:
        self.prefix, self.numbers = prefix, range(first, first + n)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, row: int) -> str: ...
    @overload
    def __getitem__(self, row: slice) -> list[str]: ...
    def __getitem__(self, row: int | slice) -> str | list[str]:
        if isinstance(row, slice):
            return [f"{self.prefix}{number}" for number in self.numbers[row]]
        return f"{self.prefix}{self.numbers[row]}"

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self[:], dtype=object)


Column = np.ndarray[Any, Any] | Sequence[Any]


def write_columns(columns: Mapping[str, Column], path: Path) -> None:
    """Write `columns` to the Parquet file `path`; the same columns give the same bytes.

    Integers become int64, floats float64 (NaN becomes null), booleans bool; text may hold None; a sequence of
    float sequences becomes a list column (None: null). Columns of unequal length raise ValueError.
    """
    with TableWriter(path) as writer:
        writer.write(columns)


@dataclass
class TableWriter:
    """A Parquet file that is written a part at a time; the parts have the same columns of the same kinds."""

    path: Path

    def __post_init__(self) -> None:
        self._writer: Any = None

    def write(self, columns: Mapping[str, Column]) -> None:
        """Append rows; errors as in `write_columns`."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns differ in length: {lengths}")
        n = next(iter(lengths.values()), 0)
        parts = {name: _parts(name, column) for name, column in columns.items()}
        for start in range(0, max(n, 1), ROWS_PER_GROUP):
            stop = min(start + ROWS_PER_GROUP, n)
            table = pa.Table.from_arrays([part(start, stop) for part in parts.values()], names=list(columns))
            if self._writer is None:
                options = {"compression": "zstd", "version": "2.6", "write_statistics": False}
                # numbers mostly differ: with a dictionary of them a table takes twice as long, and a fifth more space
                texts = [field.name for field in table.schema if field.type == pa.utf8()]
                self._writer = pq.ParquetWriter(self.path, table.schema, use_dictionary=texts, **options)
            self._writer.write_table(table)

    def close(self) -> None:
        """Complete the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


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


def _parts(name: str, column: Column) -> Callable[[int, int], pa.Array]:
    """Return what makes the rows from `start` to `stop` of a column as an Arrow array."""
    if isinstance(column, Coded):
        return lambda start, stop: _words(column[start:stop])
    if isinstance(column, Numbered):
        return lambda start, stop: _names(column.prefix, column.numbers[start:stop])
    if isinstance(column, np.ndarray) and column.dtype.kind != "O":
        return lambda start, stop: _array(name, column[start:stop])
    whole = _array(name, column)
    return lambda start, stop: whole.slice(start, stop - start)


def _names(prefix: str, numbers: range) -> pa.Array:
    """The text array of `Numbered`, made digit by digit."""
    import pyarrow as pa

    pieces, lengths = [], []
    first, head = numbers.start, np.frombuffer(prefix.encode(), np.uint8)
    while first < numbers.stop:
        digits = len(str(first))
        some = np.arange(first, min(numbers.stop, 10**digits))
        text = np.empty((len(some), len(head) + digits), np.uint8)
        text[:, : len(head)] = head
        for place in range(digits):
            text[:, -1 - place] = some // 10**place % 10 + ord("0")
        pieces.append(text.ravel())
        lengths.append(np.full(len(some), text.shape[1]))
        first += len(some)
    offsets = _offsets(np.concatenate([np.zeros(0, np.int64), *lengths]))
    data = np.concatenate([np.zeros(0, np.uint8), *pieces])
    return pa.Array.from_buffers(pa.utf8(), len(numbers), [None, _buffer(offsets), _buffer(data)])


def _words(column: Coded) -> pa.Array:
    """The text array of `Coded`, gathered from the bytes of its words (decoding by pyarrow imports its compute module)."""
    import pyarrow as pa

    words = [word.encode() for word in column.words] + [b""]
    if len(column) and np.all(column.codes == column.codes[0]):  # as of most columns: one word, over and over
        word, n = words[max(int(column.codes[0]), -1)], len(column)
        offsets, valid = _offsets(np.full(n, len(word))), _validity(column.codes >= 0)
        return pa.Array.from_buffers(pa.utf8(), n, [valid, _buffer(offsets), pa.py_buffer(word * n)])
    ends = np.cumsum([len(word) for word in words])
    codes = np.where(column.codes < 0, len(words) - 1, column.codes)
    lengths = np.diff(ends, prepend=0)[codes]
    offsets = _offsets(lengths)
    begins = (ends - np.diff(ends, prepend=0))[codes]
    places = np.arange(int(offsets[-1])) + np.repeat(begins - offsets[:-1], lengths)
    data = np.frombuffer(b"".join(words), np.uint8)[places]
    valid = _validity(column.codes >= 0)
    return pa.Array.from_buffers(pa.utf8(), len(column), [valid, _buffer(offsets), _buffer(data)])


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


def _offsets(lengths: Sequence[int] | np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    offsets = np.concatenate(([0], np.cumsum(np.asarray(lengths, np.int64))))
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
