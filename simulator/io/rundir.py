"""The run directory: written whole or not at all, read back for comparisons."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError, PlanError
from hardware_profiles.files import parse_json
from simulator.io.tables import Column, write_columns
from simulator.io.text import json_text

RESULT, MANIFEST, REQUESTS, TIMELINE = "result.json", "manifest.json", "requests.parquet", "timeline.parquet"
OWN_FILES = (RESULT, MANIFEST, REQUESTS, TIMELINE, "report.html", "trace.json.gz")
"""What this tool writes into a run directory, beside plots."""
PARTIAL_SUFFIX = "-partial"
HASH_DIGITS = 10
"""Hexadecimal digits of the scenario's hash in a directory's name."""

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST,
            errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)  # fmt: skip


def run_directory(base: Path, name: str, scenario_hash: str) -> Path:
    """Return ``base/<name>-<first digits of the hash>``; signs but letters, digits, . _ - become dashes.

    >>> run_directory(Path("runs"), "Peak hour", "0123456789abcdef").as_posix()
    'runs/Peak-hour-0123456789'
    """
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "scenario"
    return base / f"{slug}-{scenario_hash[:HASH_DIGITS]}"


def is_remote(path: Path) -> bool:
    """Whether a path is of an object store, over fsspec: one file is written whole or not at all there, a folder is not."""
    return not isinstance(path, Path)


def check_place(base: Path) -> None:
    """Raise InputError if no run can be written below `base`, as `write_run` would; nothing is left there."""
    existing = next(path for path in (base, *base.absolute().parents) if path.exists())
    with _in_words(base):
        os.rmdir(tempfile.mkdtemp(prefix=".capacity-plan.", dir=existing))


def check_new(path: Path) -> None:
    """Raise InputError if something stands where a file is to be written: no file of somebody's is written over."""
    if path.exists():
        raise InputError("the file is there already", where=str(path), mend="name another, or remove it first")


def write_run(
    directory: Path,
    *,
    result: Mapping[str, Any],
    manifest: Mapping[str, Any],
    requests: Mapping[str, Column] | Path,
    timeline: Mapping[str, Column],
    partial: bool = False,
) -> Path:
    """Write one run and return its directory; a request table that was written while the run went (a path) is moved there.

    The files are written beside `directory` and moved there together; a run that stands there is replaced, and whatever
    else lies in its folder stays. An interrupted run (`partial`) goes to ``<directory>-partial``, its manifest marked
    ``"partial": true``; a complete one removes the files of such a leftover. Raises InputError if the place cannot be
    written, PlanError (exit 1) if the disk is full; either way nothing of the run is left behind.
    """
    leftover = directory.with_name(directory.name + PARTIAL_SUFFIX)
    target = leftover if partial else directory
    marked = {**manifest, "partial": True} if partial else manifest

    def fill(folder: Path) -> None:
        (folder / RESULT).write_text(json_text(result), encoding="utf-8", newline="\n")
        (folder / MANIFEST).write_text(json_text(marked), encoding="utf-8", newline="\n")
        if isinstance(requests, Path):
            shutil.move(requests, folder / REQUESTS)
        else:
            write_columns(requests, folder / REQUESTS)
        write_columns(timeline, folder / TIMELINE)

    if is_remote(target):
        _upload(target, fill)
        return target
    _replace(target, fill)
    if not partial and _is_run(leftover):
        _drop(leftover)
    return target


def write_file(path: Path, content: str | bytes) -> None:
    """Write one file whole or not at all; errors as in `write_run`."""
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        with _in_words(path):
            path.write_bytes(data)
        return
    with _in_words(path), _parents(path.parent):
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def read_run(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """Return a run: `directory`, `result` and `manifest` (dicts), `partial`, and the paths of its tables.

    `requests` and `timeline` are None where the file is missing. Raises InputError if this is no run.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise InputError(
            f"there is no folder '{folder}'", where=str(folder), mend="name a folder that simulate wrote"
        )
    if not (folder / RESULT).is_file():
        inside = sorted(str(found.parent) for found in folder.glob(f"*/{RESULT}"))
        raise InputError(
            f"'{folder}' is not a run: it has no {RESULT}",
            where=str(folder),
            mend=f"name the run in it: {', '.join(inside[:3])}" if inside else "name a folder that simulate wrote",
        )
    manifest = _read_json(folder / MANIFEST) if (folder / MANIFEST).is_file() else {}
    tables = {path.stem: path if path.is_file() else None for path in (folder / REQUESTS, folder / TIMELINE)}
    return {
        "directory": folder,
        "result": _read_json(folder / RESULT),
        "manifest": manifest,
        "partial": manifest.get("partial") is True,
        **tables,
    }


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"cannot read it: {error}", where=str(path), mend="run the simulation again"
        ) from None
    if not isinstance(data, dict):
        raise InputError("is not a JSON object", where=str(path), mend="run the simulation again")
    return data


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and (folder / MANIFEST).is_file() and (folder / RESULT).is_file()


def _drop(folder: Path) -> None:
    """Remove the files of a run, and its folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        for name in OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        folder.rmdir()


def _replace(target: Path, fill: Callable[[Path], None]) -> None:
    with _in_words(target), _parents(target.parent):
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise InputError(
                "a file stands in the run's place", where=str(target), mend="remove it, or use --output"
            )
        if target.is_dir() and not _is_run(target) and any(target.iterdir()):
            raise InputError(
                "the folder holds something other than a run, and is left alone",
                where=str(target),
                mend="name another folder with --output",
            )
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            fill(temporary)
            _swap(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _upload(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a folder here and put its files into the object store, the manifest last: what has none is no run."""
    with tempfile.TemporaryDirectory() as aside:
        fill(Path(aside))
        names = sorted(os.listdir(aside), key=lambda name: name == MANIFEST)
        for name in names:
            write_file(target / name, (Path(aside) / name).read_bytes())


def _swap(new: Path, target: Path) -> None:
    """Move `new` to `target`; what stood there is put back if that fails."""
    if not target.exists():
        try:
            os.rename(new, target)
            return
        except OSError:
            if not target.exists():  # else another process has put the same run there meanwhile
                raise
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        os.rename(target, old)
        try:
            os.rename(new, target)
            for other in old.iterdir():  # what somebody else put there, and plots of the same run
                if other.name not in OWN_FILES and not (target / other.name).exists():
                    os.rename(other, target / other.name)
        except BaseException:
            if not target.exists():
                os.rename(old, target)
            raise
    finally:
        _drop(old)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def _parents(folder: Path) -> Iterator[None]:
    """Create `folder` and its parents; remove those created again if the work inside fails."""
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for path in created:
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        if error.errno in _FULL:
            raise PlanError(
                f"the disk is full ({reason.lower()}); nothing was written",
                where=str(path),
                mend="free some space, or name a folder on another disk with --output",
            ) from None
        if error.errno in _REFUSED:
            raise InputError(
                f"cannot write there: {reason.lower()}",
                where=str(path),
                mend="check the folder and its rights, or name another with --output",
            ) from None
        raise PlanError(f"writing failed: {reason.lower()}", where=str(path), mend="check the disk") from None
