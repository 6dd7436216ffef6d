"""The folder of a sweep: what it is of, its finished points, its table.

    sweep.json          what is swept: axes, points, the sweep's hash; `complete` once the table stands
    sweep.parquet, .csv one row a point
    runs/NAME-HASH/     one run directory a finished point, as `simulate` writes it
    failed/NAME-HASH.json   why a point did not finish, so that it is not tried again
    points/part-NUMBER.parquet   of a sweep in parts: a row a point, instead of the two before; the table has what stands out

Every file is written whole or not at all; a finished point is recognised by its hash and read back, whoever wrote it.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from hardware_profiles.errors import InputError
from simulator.io.rundir import HASH_DIGITS, MANIFEST, REQUESTS, RESULT, TIMELINE, is_remote, write_file
from simulator.io.text import json_text

SWEEP, TABLE, CSV, RUNS, FAILED, POINTS = "sweep.json", "sweep.parquet", "sweep.csv", "runs", "failed", "points"
_PARQUET_MARK = b"PAR1"


def place(text: str) -> Path:
    """A folder by its path, or by the URL of an object store (``s3://``, ``gs://``...), used like one."""
    if "://" not in text:
        return Path(text)
    scheme = text.split("://")[0]
    try:
        from upath import UPath

        found = cast(Path, UPath(text))  # the methods of a path over fsspec
    except (ImportError, ValueError) as error:
        raise InputError(
            f"cannot write to {scheme}://: {error}",
            where=text,
            mend=f"pip install 'capacity-plan[{'gcs' if scheme in ('gs', 'gcs') else 's3'}]', or name a folder",
        ) from None
    try:
        found.exists()
    except Exception as error:  # each store has its own kinds
        raise InputError(
            f"the object store does not answer: {error}", where=text, mend="check the URL, the endpoint and the keys"
        ) from None
    return found


def claim(folder: Path, digest: str, runs: Collection[str] = ()) -> None:
    """Check that `folder` is free for the sweep of that hash; InputError if it holds anything else.

    A sweep that has some of the points `runs` may be grown into it.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(
            "a file stands in the sweep's place", where=str(folder), mend="name another --output"
        )
    if not any(child.name != ".lock" for child in folder.iterdir()):
        return
    found = read_sweep(folder) if (folder / SWEEP).is_file() else None
    if found is None or (found["digest"] != digest and not in_common(found, runs)):
        what = "another sweep (other axes, scenario or version)" if found else "something other than a sweep"
        raise InputError(
            f"the folder holds {what}, and is left alone",
            where=str(folder),
            mend="name another with --output, or give --resume to a sweep that shares points",
        )


def in_common(sweep: Mapping[str, Any], runs: Collection[str]) -> int:
    """How many of the points `runs`, named by their run directories, a sweep has."""
    return len({point.get("run") for point in sweep["points"]} & set(runs))


def akin(beside: Path, runs: Collection[str]) -> Path | None:
    """The folder next to `beside` whose sweep has most of the points `runs`; None if there is none."""
    best: tuple[int, Path] | None = None
    for path in sorted(beside.parent.glob(f"*/{SWEEP}")):
        try:
            common = in_common(read_sweep(path.parent), runs)
        except InputError:
            continue
        if common and (best is None or common > best[0]):
            best = common, path.parent
    return None if best is None else best[1]


def read_sweep(folder: Path) -> dict[str, Any]:
    """Return `sweep.json`; InputError if it is missing or damaged."""
    path = folder / SWEEP
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(data, dict) and isinstance(data["digest"], str) and isinstance(data["points"], list):
            return data
        words = "it is no record of a sweep"
    except (OSError, ValueError, KeyError) as error:
        words = f"cannot read it: {error}"
    raise InputError(words, where=str(path), mend="name another --output, or remove this folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder against a second sweep; the lock ends with the process, however it ends."""
    if is_remote(folder):  # no lock there: two sweeps may do one point twice, with the same result
        yield
        return
    try:
        import fcntl
    except ImportError:  # not on Windows: two sweeps there may do one point twice, with the same result
        yield
        return
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                "another sweep is at work in this folder", where=str(folder), mend="wait for it, or end it"
            ) from None
        yield


def sweep_away(folder: Path) -> None:
    """Remove what a killed process left half-written beside its run, as `write_run` names it."""
    if is_remote(folder):
        return
    for leftover in (folder / RUNS).glob(f".*-{'[0-9a-f]' * HASH_DIGITS}.*"):
        shutil.rmtree(leftover, ignore_errors=True)


def finished(directory: Path, digest: str) -> dict[str, Any] | str | None:
    """Return the result of a finished point, a text if its directory is damaged, None if there is none."""
    if not directory.exists():
        return None
    try:
        result = json.loads((directory / RESULT).read_text(encoding="utf-8"))
        manifest = json.loads((directory / MANIFEST).read_text(encoding="utf-8"))
        if manifest["scenario_sha256"] != digest:
            return "it is of another scenario or version"
        for name in (REQUESTS, TIMELINE):
            if not _whole_parquet(directory / name):
                return f"{name} is damaged"
        result["metrics"]["ttft_ms"], result["cost"]["usd_per_hour"], result["totals"]["reasons"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return dict(result)


def _whole_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0, os.SEEK_END)
        if file.tell() < 12:
            return False
        file.seek(-4, os.SEEK_END)
        return head == _PARQUET_MARK == file.read(4)


def set_aside(directory: Path) -> Path:
    """Rename a damaged directory, that nothing is lost, and return its new place."""
    number = 1
    while (place := directory.with_name(f"{directory.name}.damaged-{number}")).exists():
        number += 1
    directory.rename(place)
    return place


def read_failure(folder: Path, name: str) -> dict[str, str] | None:
    """Return why a point failed in an earlier run of the sweep, if it did."""
    try:
        data = json.loads((folder / FAILED / f"{name}.json").read_text(encoding="utf-8"))
        return {"status": data["status"], "reason": data["reason"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_failure(folder: Path, name: str, failure: Mapping[str, str]) -> None:
    """Record why a point failed."""
    write_file(folder / FAILED / f"{name}.json", json_text(failure))


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `sweep.parquet` and `sweep.csv`, one row a point; the same rows give the same bytes."""
    from simulator.io.tables import write_columns

    columns = {name: _column([row[name] for row in rows]) for name in rows[0]}
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        zip(*(["" if v is None else v for v in column] for column in columns.values()), strict=True)
    )
    with tempfile.TemporaryDirectory() as aside:
        write_columns(columns, Path(aside) / TABLE)
        data = (Path(aside) / TABLE).read_bytes()
    write_file(folder / TABLE, data)
    write_file(folder / CSV, text.getvalue())


TEXTS = ("status", "reason", "slo", "model", "engine", "hardware", "weights", "lost", "price_date", "outside", "warnings")
FLAGS = ("slo_holds", "overloaded")
WHOLE = ("point", "replicas", "tensor_parallel", "pipeline_parallel", "data_parallel", "offered", "completed", "rejected",
         "failed", "unfinished", "num_preemptions")  # fmt: skip


def write_part(path: Path, rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> None:
    """Write the table of a part; its columns have the types of those of all parts, `kinds` says them of the varied ones.

    Counts are whole numbers, other numbers are doubles, anything but text, numbers and flags is JSON text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    own = {name: kind for names, kind in ((WHOLE, pa.int64()), (TEXTS, pa.utf8()), (FLAGS, pa.bool_())) for name in names}
    columns = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        kind = kinds.get(name)
        if kind == "json":
            values = [json.dumps(v) for v in values]
        columns[name] = pa.array(values, pa.utf8() if kind in ("json", "text") else own.get(name, pa.float64()))
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    write_file(path, sink.getvalue().to_pybytes())


def read_part(path: Path) -> list[dict[str, Any]] | None:
    """The rows of a part; None if it is not there or cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(path.read_bytes())).to_pylist()
    except (OSError, pa.ArrowException):
        return None
    return rows


def _column(values: list[Any]) -> list[Any]:
    """A column of one type: numbers, booleans or text; anything else, and any mixture, becomes JSON text."""
    known = [v for v in values if v is not None]
    if all(isinstance(v, str) for v in known):
        return values
    if all(isinstance(v, bool) for v in known) and len(known) == len(values):
        return values
    if all(isinstance(v, int | float) and not isinstance(v, bool) for v in known):
        return values
    return [None if v is None else v if isinstance(v, str) else json.dumps(v) for v in values]
