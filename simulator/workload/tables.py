"""Trace files as tables: CSV, JSONL, JSON and Parquet, plain or gzipped, read into columns.

A table remembers on which line (or row) of the file each record stands, so that an error can say where.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import field
from itertools import islice
from os.path import exists, isdir
from pathlib import Path
from typing import IO, Any

import numpy as np

from hardware_profiles.errors import InputError, nearest
from hardware_profiles.files import parse_json, read_bytes
from hardware_profiles.records import dataclass
from simulator.workload.columns import FloatArray, IntArray

SUFFIXES = (".csv", ".jsonl", ".ndjson", ".json", ".parquet", ".txt", ".yaml", ".yml")
MOST_DEPTH = 64
"""Deepest nesting of YAML (assumed; reports of clients need ten levels)."""
CALENDAR = re.compile(
    r"(?P<time>(19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}([T ][0-9:.]*)?)"
    r" ?(Z|UTC|(?P<sign>[+-])(?P<hours>[0-9]{2}):?(?P<minutes>[0-9]{2})?)?"
)
"""A time of the calendar (ISO 8601), and how far its zone is ahead of UTC."""


@dataclass(frozen=True)
class Table:
    """Columns of a trace file.

    Parameters
    ----------
    columns : by name; each a numpy array, a list where values are strings, lists or mixed, or (starts, values) where they
        are lists of numbers.
    lines : (n,) line of each record in a text file (from 1), row in a Parquet file or JSON array.
    unit : "line" or "row".
    metadata : key-value metadata of a Parquet file, or the scalars of a JSON object.
    """

    path: str
    columns: dict[str, Any]
    lines: IntArray
    unit: str
    sha256: str
    metadata: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.lines)

    def where(self, row: int) -> str:
        """Return the place of record `row` in the file."""
        return f"{self.path}, {self.unit} {int(self.lines[row])}"

    def number(self, name: str) -> FloatArray:
        """Return a column as float64, NaN where empty.

        Raises
        ------
        InputError : the column is missing (naming the nearest), or a value is no number.
        """
        if name not in self.columns:
            close = nearest(name, list(self.columns))
            raise InputError(
                f"column {name!r} is missing",
                where=self.path,
                mend=f"rename {close!r} if it holds it" if close else f"it has: {', '.join(self.columns)}",
            )
        values = self.columns[name]
        if isinstance(values, tuple):
            raise InputError(f"{name} holds lists, not numbers", where=self.path, mend="name another column so")
        if isinstance(values, np.ndarray):
            if values.dtype.kind == "M":
                return values.astype("datetime64[ns]").astype(np.int64) / 1e9
            return values.astype(np.float64)
        out = np.empty(len(values), np.float64)
        for i, value in enumerate(values):
            try:
                out[i] = np.nan if value is None or value == "" else float(value)
            except (TypeError, ValueError, OverflowError):
                raise InputError(
                    f"{name} is {_short(value)}, not a number",
                    where=self.where(i),
                    mend="correct that value",
                ) from None
        return out

    def times(self, name: str, per_s: float = 1.0) -> FloatArray:
        """Return a column of times [s], NaN where empty.

        Numbers are divided by `per_s`; texts are calendar times, counted from the table's `origin` or the first of them.

        Raises
        ------
        InputError : as `number`, or a value is neither a number nor a time.
        """
        values = self.columns.get(name)
        if not isinstance(values, list) or not any(isinstance(v, str) and v and not is_number(v) for v in values):
            return self.number(name) / per_s
        stamps = np.empty(len(values), "datetime64[ns]")
        for i, value in enumerate(values):
            try:
                stamps[i] = calendar_time(value)
            except ValueError:
                raise InputError(
                    f"{name} is {_short(value)}, not a time",
                    where=self.where(i),
                    mend="write times as 2026-11-30T09:15:00.250Z, or all as numbers",
                ) from None
        absent = np.isnat(stamps)
        if absent.all():
            return np.full(len(values), np.nan)
        origin = self.metadata.get("origin") or stamps[~absent].min()
        return np.where(absent, np.nan, (stamps - origin).astype(np.int64) / 1e9)


def is_number(text: str) -> bool:
    """Whether a text is what Python reads as a float."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def calendar_time(value: Any) -> np.datetime64:
    """A time of the calendar in UTC, to the nanosecond; without a zone as it stands; not a time where empty.

    Raises ValueError if it is none.
    """
    if value is None or value == "":
        return np.datetime64("NaT", "ns")
    found = CALENDAR.fullmatch(str(value).strip())
    if found is None:
        raise ValueError("no time")
    stamp_ns = int(np.datetime64(found["time"].replace(" ", "T"), "ns").astype(np.int64))
    if found["sign"] is None:
        return np.datetime64(stamp_ns, "ns")
    ahead_ns = 60_000_000_000 * (60 * int(found["hours"]) + int(found["minutes"] or 0))
    return np.datetime64(stamp_ns + (ahead_ns if found["sign"] == "-" else -ahead_ns), "ns")


def _short(value: Any) -> str:
    """The beginning of a value, quoted; of a number too long to be one, that it is."""
    return "a whole number beyond all bounds" if isinstance(value, int) else repr(str(value)[:40])


def read_table(path: Path) -> Table:
    """Read a trace file; the suffix names the kind (``.gz`` may follow it).

    Raises
    ------
    InputError : no such file, an unknown suffix, a file cut short or not of its kind, no record.
    """
    shown = str(path)
    if not exists(path):
        siblings = [p.name for p in path.parent.iterdir()] if isdir(path.parent) else []
        close = nearest(path.name, siblings)
        raise InputError(
            "no such trace file", where=shown, mend=f"did you mean {close!r}?" if close else "check the path"
        )
    if isdir(path):
        return _read_folder(path)
    data = read_bytes(path)
    sha256 = hashlib.sha256(data).hexdigest()
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
        try:
            data = gzip.decompress(data)
        except (EOFError, OSError, zlib.error) as error:
            raise InputError(
                f"is cut short or no gzip file ({error})", where=shown, mend="copy or download it again"
            ) from None
    kind = suffixes[-1] if suffixes else ""
    if kind not in SUFFIXES:
        raise InputError(
            f"the suffix {kind!r} names no trace format",
            where=shown,
            mend=f"use one of {', '.join(SUFFIXES)}, each also with .gz",
        )
    if not data.strip():
        raise InputError("the file is empty", where=shown, mend="give a trace with at least one request")
    if data.startswith(b"version https://git-lfs"):
        raise InputError(
            "is a Git LFS pointer, not the data", where=shown, mend="run git lfs pull, or download it"
        )
    if kind == ".parquet":
        table = _read_parquet(data, shown, sha256)
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise no_text(shown, data, error) from None
        if "\0" in text:
            raise InputError("is a binary file, not text", where=shown, mend="check what it is")
        readers = {".csv": _read_csv, ".json": _read_json, ".yaml": _read_yaml, ".yml": _read_yaml}
        reader = readers.get(kind, _read_jsonl)
        if kind == ".txt" and not text.lstrip().startswith(("{", "[")):
            raise InputError("is text without JSON, which a .txt has to hold", where=shown, mend="name a table of columns .csv")
        table = reader(text, shown, sha256)
    if not len(table):
        raise InputError(
            "the trace has no request", where=shown, mend="give a trace with at least one request"
        )
    return table


def no_text(shown: str, data: bytes, error: UnicodeDecodeError) -> InputError:
    """What is wrong with a file that is not in UTF-8, whose first bytes are `data`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return InputError("is text in UTF-16, not in UTF-8", where=shown, mend="save it as UTF-8")
    if b"\0" in data:
        return InputError("is a binary file, not text", where=shown, mend="check what it is")
    line = data[: error.start].count(b"\n") + 1
    return InputError(
        f"is not in UTF-8: there is a byte {data[error.start]:#x}", where=f"{shown}, line {line}", mend="save it as UTF-8"
    )


def _read_folder(path: Path) -> Table:
    """The JSON files of a folder, each an object, as one table of a row a file."""
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".json" and file.is_file())
    if not files:
        raise InputError(
            "is a folder without .json files", where=str(path), mend="name a trace file, or a folder of recorded runs"
        )
    digest, records = hashlib.sha256(), []
    for file in files:
        data = read_bytes(file)
        digest.update(data)
        try:
            record = parse_json(data.decode("utf-8-sig"))
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise InputError("is no valid JSON", where=str(file), mend="the file may be cut short; copy it again") from None
        if not isinstance(record, dict):
            raise InputError("holds no object", where=str(file), mend="keep recorded runs alone in the folder")
        records.append(record)
    return Table(str(path), _transpose(records), np.arange(1, len(records) + 1), "file", digest.hexdigest())


def _read_parquet(data: bytes, shown: str, sha256: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        arrow = pq.ParquetFile(pa.BufferReader(data)).read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"is cut short or no Parquet file ({str(error).splitlines()[0]})",
            where=shown,
            mend="copy or download it again",
        ) from None
    columns = {name: _column(arrow[name]) for name in arrow.column_names}
    metadata = {
        k.decode("utf-8", "replace"): v.decode("utf-8", "replace")
        for k, v in (arrow.schema.metadata or {}).items()
    }
    return Table(shown, columns, np.arange(1, arrow.num_rows + 1), "row", sha256, metadata)


def _column(column: Any) -> Any:
    """Numbers and times as numpy, block lists as (start, flat) pairs, anything else as a list."""
    import pyarrow as pa

    kind = column.type
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], kind)
    if array.null_count == 0:
        if pa.types.is_integer(kind) or pa.types.is_float32(kind) or pa.types.is_float64(kind):
            return _flat(array, np.dtype(kind.to_pandas_dtype()))
        if pa.types.is_timestamp(kind):
            return _flat(array, np.dtype(f"datetime64[{kind.unit}]"))
        if pa.types.is_list(kind) and pa.types.is_integer(kind.value_type):
            items = array.flatten()
            if items.null_count == 0:
                offsets = _flat(array.offsets, np.dtype(np.int32)).astype(np.int64)
                return offsets - offsets[0], _flat(items, np.dtype(kind.value_type.to_pandas_dtype())).astype(
                    np.int64
                )
    return column.to_pylist()


def _flat(array: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """The values of an Arrow array without nulls. Arrow's own conversion would load pandas."""
    if not len(array):
        return np.empty(0, dtype)
    return np.frombuffer(array.buffers()[1], dtype)[array.offset : array.offset + len(array)]


def parquet_tables(path: Path, rows: int) -> Iterator[Table]:
    """Parts of a Parquet file of `rows` records at most."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    metadata = {
        k.decode("utf-8", "replace"): v.decode("utf-8", "replace")
        for k, v in (file.schema_arrow.metadata or {}).items()
    }
    first = 1
    for batch in file.iter_batches(rows):
        arrow = pa.Table.from_batches([batch])
        columns = {name: _column(arrow[name]) for name in arrow.column_names}
        yield Table(str(path), columns, np.arange(first, first + len(batch)), "row", "", dict(metadata))
        first += len(batch)


def _read_csv(text: str, shown: str, sha256: str) -> Table:
    return next(csv_tables(text.splitlines(keepends=True), shown, None, sha256))


def csv_tables(text: IO[str] | list[str], shown: str, rows: int | None, sha256: str = "") -> Iterator[Table]:
    """Parts of a CSV file of `rows` records at most, of all if that is None; at least one."""
    import csv

    reader = csv.reader(text, skipinitialspace=True)
    header: list[str] = []
    try:
        header = [name.strip() for name in next(reader)]
        if header[:1] == ["Run Info"] or header[:2] == ["Metric", "avg"]:  # guidellm's, in three lines; aiperf's several tables
            yield Table(shown, {name: [] for name in header}, np.ones(1, np.int64), "line", sha256)
            return
        mark = next((mark for mark in ";\t|" if len(header) == 1 and mark in header[0]), None)
        if mark is not None:
            raise InputError(
                f"its columns are separated by {'a tab' if mark == chr(9) else repr(mark)}, not by a comma",
                where=f"{shown}, line 1",
                mend="write the file with commas (decimal points, no thousands separators)",
            )
        if len(set(header)) != len(header):
            twice = next(name for name in header if header.count(name) > 1)
            raise InputError(
                f"column {twice!r} appears twice", where=f"{shown}, line 1", mend="rename one of them"
            )
        again = True
        while again:
            lines, records = [], []
            again = False
            for record in reader:
                if record:
                    records.append(record)
                    lines.append(reader.line_num)
                    if len(records) == rows:
                        again = True
                        break
            if records or lines or not rows:
                yield _csv_table(header, records, lines, shown, sha256)
    except csv.Error as error:
        raise InputError(
            f"is no valid CSV ({error})", where=f"{shown}, line {reader.line_num}", mend="correct it"
        ) from None


def _csv_table(
    header: list[str], records: list[list[str]], lines: list[int], shown: str, sha256: str
) -> Table:
    for line, record in zip(lines, records, strict=True):
        if len(record) != len(header):
            raise InputError(
                f"has {len(record)} fields where the header has {len(header)}",
                where=f"{shown}, line {line}",
                mend="columns are separated by commas, and a number has none inside: write the file so"
                if len(header) == 1 or len(record) > len(header)
                else "the file may be cut short; correct or remove that line",
            )
    columns = (
        {
            name: _numbers(list(values))
            for name, values in zip(header, zip(*records, strict=True), strict=True)
        }
        if records
        else {name: [] for name in header}
    )
    return Table(shown, columns, np.asarray(lines, np.int64), "line", sha256)


def _numbers(values: list[str]) -> Any:
    """A numpy array if every value is a plain number, else the list as it is."""
    try:
        return np.asarray(values).astype(np.float64)
    except ValueError:
        return values


def _read_jsonl(text: str, shown: str, sha256: str) -> Table:
    return next(json_line_tables(text.splitlines(), shown, None, sha256))


def json_line_tables(
    text: IO[str] | list[str], shown: str, rows: int | None, sha256: str = ""
) -> Iterator[Table]:
    """Parts of a file of JSON lines of `rows` records at most, of all if that is None; at least one."""
    numbered = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    while True:
        records, lines = [], []
        for number, line in islice(numbered, rows):
            try:
                record = parse_json(line)
            except json.JSONDecodeError as error:
                raise InputError(
                    f"is no valid JSON ({error.msg})",
                    where=f"{shown}, line {number}",
                    mend="the file may be cut short; correct or remove that line",
                ) from None
            if not isinstance(record, dict):
                raise InputError(
                    "is no JSON object", where=f"{shown}, line {number}", mend="write one object {...} a line"
                )
            records.append(record)
            lines.append(number)
        if records or rows is None:
            yield Table(shown, _transpose(records), np.asarray(lines, np.int64), "line", sha256)
        if rows is None or len(records) < rows:
            return


def _read_json(text: str, shown: str, sha256: str) -> Table:
    try:
        document = parse_json(text)
    except json.JSONDecodeError as error:
        if text.lstrip().startswith("{") and "\n" in text.strip():
            return _read_jsonl(text, shown, sha256)  # JSON lines under the name .json
        raise InputError(
            f"is no valid JSON ({error.msg})",
            where=f"{shown}, line {error.lineno}",
            mend="the file may be cut short",
        ) from None
    return _document(document, shown, sha256)


def _read_yaml(text: str, shown: str, sha256: str) -> Table:
    return _document(yaml_document(text, shown), shown, sha256)


def yaml_document(text: str, shown: str) -> Any:
    """Return the plain data of one YAML document; InputError for what is none, for aliases and deep nesting."""
    import yaml

    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            alias = isinstance(event, yaml.AliasEvent)
            if alias or depth > MOST_DEPTH:
                words = "an alias stands here" if alias else f"nested deeper than {MOST_DEPTH} levels"
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise InputError(words, where=f"{shown}, line {line}", mend="write the file as JSON")
        return yaml.load(text, Loader=yaml.CSafeLoader)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        line = error.problem_mark.line + 1 if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark else 1
        raise InputError(
            f"is no valid YAML ({str(error).splitlines()[0]})", where=f"{shown}, line {line}", mend="the file may be cut short"
        ) from None


def _document(document: Any, shown: str, sha256: str) -> Table:
    """The table of a JSON or YAML document."""
    if isinstance(document, list):
        if not all(isinstance(record, dict) for record in document):
            raise InputError(
                "is a list of something else than objects", where=shown, mend="write [{...}, ...]"
            )
        return Table(shown, _transpose(document), np.arange(1, len(document) + 1), "row", sha256)
    if not isinstance(document, dict):
        raise InputError("holds neither an object nor a list", where=shown, mend="check what it is")
    document = {str(key): value for key, value in document.items()}
    if {"requests", "block_size"} <= set(document):  # one recorded run, not columns
        return Table(shown, {k: [v] for k, v in document.items()}, np.ones(1, np.int64), "row", sha256)
    lists = {k: v for k, v in document.items() if isinstance(v, list)}
    if not any(lists.values()):
        return Table(shown, {k: [v] for k, v in document.items()}, np.ones(1, np.int64), "row", sha256)
    rows = len(lists.get("input_lens", next(iter(lists.values()), [])))
    columns = {k: v for k, v in lists.items() if len(v) == rows}
    scalars = {k: v for k, v in document.items() if not isinstance(v, list | dict)}
    return Table(shown, columns, np.arange(1, rows + 1), "row", sha256, scalars)


def _transpose(records: list[dict[str, Any]]) -> dict[str, Any]:
    names = list(dict.fromkeys(name for record in records for name in record))
    return {name: [record.get(name) for record in records] for name in names}
