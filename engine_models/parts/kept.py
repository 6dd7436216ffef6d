"""What a prefix cache holds, in a form that outlives it: pieces of contents, each after the piece before it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

Runs = tuple[tuple[int, int, int], ...]


class Kept(NamedTuple):
    """A piece: the tokens `runs` after those of piece number `parent` (-1: the first of a prompt), and how often it was found."""

    parent: int
    runs: Runs
    hits: int = 0

    @property
    def tokens(self) -> int:
        """Its tokens."""
        return sum(length for _, _, length in self.runs)


def parents_first(pieces: Sequence[Kept]) -> list[int]:
    """The numbers of the pieces, each after its parent, else in their order."""
    out: list[int] = []
    done = [False] * len(pieces)
    for number in range(len(pieces)):
        line = []
        at = number
        while at >= 0 and not done[at]:
            done[at] = True
            line.append(at)
            at = pieces[at].parent
        out += reversed(line)
    return out


def lines(pieces: Sequence[Kept]) -> Iterator[list[int]]:
    """The numbers of the pieces from a prompt's begin to each last piece."""
    inner = {piece.parent for piece in pieces}
    for number in range(len(pieces)):
        if number in inner:
            continue
        line = []
        at = number
        while at >= 0:
            line.append(at)
            at = pieces[at].parent
        yield line[::-1]


def line_runs(pieces: Sequence[Kept], line: Sequence[int]) -> Runs:
    """The tokens of a line of pieces, with runs that go on joined: equal contents have equal runs."""
    runs: list[tuple[int, int, int]] = []
    for number in line:
        for segment, offset, length in pieces[number].runs:
            if runs and runs[-1][0] == segment and runs[-1][1] + runs[-1][2] == offset:
                runs[-1] = (segment, runs[-1][1], runs[-1][2] + length)
            else:
                runs.append((segment, offset, length))
    return tuple(runs)
