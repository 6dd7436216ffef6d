"""Prefix caches that outlive a run: what each holds at its end, written by names that another run knows, and filled in again.

A file holds, for every rank of every pool, pieces of contents in order of their last use: what stands before each, how often it
was found, and its tokens by source and name. Contents that one run alone knows have no name; they keep their place and
their size, for they have to be evicted like others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine_models.parts.kept import Kept, parents_first
from hardware_profiles.errors import InputError
from hardware_profiles.files import parse_json, read_text
from simulator.prepared import Prepared
from simulator.serving.rank import Rank
from simulator.workload.naming import SegmentNumbers

KIND = "capacity-plan cache"
PRIVATE = -1
"""The source of contents without a name."""


def _pools(prepared: Prepared) -> list[Prepared]:
    """The pool of each rank."""
    return [each for each in prepared.pools or (prepared,) for _ in range(each.most * each.ranks)]


def check_tells(prepared: Prepared) -> None:
    """Refuse engines whose prefix caches are not told."""
    for each in prepared.pools or (prepared,):
        if each.plan.scheduler("step").cached() is None:
            raise InputError(
                f"what the prefix cache of {each.plan.engine} holds cannot be saved or loaded here"
                + ("" if each.plan.prefix_caching else ": it has none, or it is off"),
                where="deployment.warm_cache" if each.pool.warm_cache else "deployment.engine",
                mend="leave it out, or use an engine and a model where docs/how-to/warm-caches.md says that it is modelled",
            )


def _described(prepared: Prepared) -> dict[str, Any]:
    """What two deployments must have in common to share the contents of a cache."""
    return {
        "engine": prepared.plan.engine,
        "model": prepared.arch.name,
        "kv_cache": prepared.formats.kv_cache.name,
        "block_tokens": prepared.plan.limits.block_tokens,
    }


# Saving -------------------------------------------------------------------------------------------


def saved(prepared: Prepared, ranks: Sequence[Rank], numbers: SegmentNumbers) -> dict[str, Any]:
    """What the caches hold, as plain data."""
    sources: dict[str, int] = {}
    found = []
    for each, rank in zip(_pools(prepared), ranks, strict=True):
        pieces = rank.scheduler.cached()
        assert pieces is not None
        written = [[piece.parent, piece.hits, _named(piece, numbers, sources)] for piece in pieces]
        found.append({"pool": each.pool.name, **_described(each), "pieces": written})
    return {"kind": KIND, "sources": list(sources), "caches": found}


def _named(piece: Kept, numbers: SegmentNumbers, sources: dict[str, int]) -> list[list[int]]:
    runs = []
    for segment, offset, length in piece.runs:
        name = numbers.name(segment)
        if name is None:
            runs.append([PRIVATE, 0, 0, length])
        else:
            runs.append([sources.setdefault(name[0], len(sources)), name[1], offset, length])
    return runs


def cache_words(cache: dict[str, Any]) -> str:
    """How much a saved cache holds, and how much of it another run can find."""
    runs = [run for each in cache["caches"] for _, _, piece in each["pieces"] for run in piece]
    tokens, private = sum(run[3] for run in runs), sum(run[3] for run in runs if run[0] == PRIVATE)
    many = len(cache["caches"])
    words = f"{tokens:,} tokens in {many} cache{'' if many == 1 else 's'}"
    if private:
        words += f"; {private:,} of them are contents that no other run names, so that nobody finds them again"
    return words


# Loading ------------------------------------------------------------------------------------------


def warm(prepared: Prepared, ranks: Sequence[Rank], numbers: SegmentNumbers) -> list[str]:
    """Fill the caches of the replicas that are there at the start, as their pools ask; return what is to be said of it."""
    said = []
    at = 0
    for each in prepared.pools or (prepared,):
        mine = ranks[at : at + each.most * each.ranks]
        at += len(mine)
        if each.pool.warm_cache is None:
            continue
        check_tells(each)
        saved_caches, sources = _read(each)
        there = [rank for number, rank in enumerate(mine) if number % each.most < each.replicas]
        for rank, cache in zip(there, saved_caches, strict=False):
            rank.scheduler.warm(_pieces(cache, sources, numbers, each.pool.warm_cache))
        words = f"{min(len(there), len(saved_caches))} of {len(there)} prefix caches of pool '{each.pool.name}' begin filled"
        whole = cache_words({"caches": saved_caches[: len(there)]})
        said.append(f"{words} ({Path(each.pool.warm_cache).name}: {whole}), as far as they hold it")
    return said


def _read(prepared: Prepared) -> tuple[list[dict[str, Any]], list[str]]:
    """The caches of a file that are of a pool, and its sources; InputError for a file of something else."""
    name = prepared.pool.warm_cache
    assert name is not None
    path = Path(name)
    try:
        data = parse_json(read_text(path))
    except ValueError as error:
        raise _broken(name, f"it is no JSON: {error}") from None
    if not isinstance(data, dict) or data.get("kind") != KIND:
        raise _broken(name, "it has another form")
    caches = data.get("caches")
    if not isinstance(caches, list) or not all(isinstance(each, dict) for each in caches):
        raise _broken(name, "it holds no caches")
    pools = {each.get("pool") for each in caches}
    mine = [each for each in caches if each.get("pool") == prepared.pool.name] if len(pools) > 1 else caches
    own = _described(prepared)
    words = {"block_tokens": "blocks", "kv_cache": "a KV cache in", "engine": "engine", "model": "model"}
    for each in mine:
        for key, value in own.items():
            if each.get(key) != value:
                raise InputError(
                    f"{path.name} is the cache of {words[key]} {each.get(key)}"
                    f"{' tokens' if key == 'block_tokens' else ''}, this pool has {value}",
                    where="deployment.warm_cache",
                    mend="save the cache of a run with the same model, engine, KV format and block size",
                )
    return mine, data.get("sources", [])


def _broken(name: str, why: str) -> InputError:
    return InputError(
        f"{Path(name).name} is no cache that `simulate --save-cache` wrote: {why}",
        where="deployment.warm_cache",
        mend="name a file that it wrote",
    )


def _pieces(cache: dict[str, Any], sources: list[str], numbers: SegmentNumbers, name: str) -> list[Kept]:
    """The pieces of a cache, their contents by the numbers of this run."""
    pieces = []
    try:
        for parent, hits, written in cache["pieces"]:
            runs = tuple(
                (numbers.fresh(), 0, length)
                if source == PRIVATE
                else (numbers.number(sources[source], content), offset, length)
                for source, content, offset, length in written
            )
            pieces.append(Kept(parent, runs, hits))
        place = {number: at for at, number in enumerate(parents_first(pieces))}
        if any(piece.tokens <= 0 or place.get(piece.parent, -1) >= place[number] for number, piece in enumerate(pieces)):
            raise ValueError("a piece follows itself")
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise _broken(name, str(error)) from None
    return pieces
