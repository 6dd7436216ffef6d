"""Text as wide as the terminal: paragraphs are folded, tables fold or drop columns, a number is never cut.

The width is the terminal's, that of COLUMNS where it is set, and 80 where the output goes into a pipe or a file.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Collection, Iterator, Sequence

from hardware_profiles.records import dataclass

NARROWEST = 40
"""Columns below which nothing is folded any further."""
WIDEST_PROSE = 120
"""Columns of a paragraph at most; tables use all there are."""
NARROWEST_PROSE = 14
"""Columns that a folded column of words keeps at least."""
LABEL = 10
"""Columns of the labels of a summary."""
GAP = "  "


def width() -> int:
    """Columns of the terminal."""
    return max(NARROWEST, shutil.get_terminal_size((80, 24)).columns)


INSIDE = re.compile(r"(?<=[/@_.])(?=[^\W\d_])")
"""Where a word that is too long (an address, a dotted name) is broken: behind these signs, never before a digit."""


class _Folder(textwrap.TextWrapper):
    """Breaks between words, and in words that are too long at `INSIDE`."""

    def _split(self, text: str) -> list[str]:
        pieces = []
        for piece in re.split(r"(\s+)", text):
            parts = INSIDE.split(piece) if len(piece) > self.width - len(self.subsequent_indent) else [piece]
            pieces += [part for part in parts if part]
        return pieces


def wrapped(text: str, indent: str, at_most: int = WIDEST_PROSE) -> str:
    """Text folded to the terminal, all lines but the first indented."""
    return "\n".join(folded(text, min(width(), at_most), indent))


def labelled(label: str, text: str) -> str:
    """A paragraph behind a label, as all of a summary stand."""
    return wrapped(label.ljust(LABEL) + text, " " * LABEL)


def folded(text: str, columns: int, indent: str = "") -> list[str]:
    """Lines of `columns` at most, all but the first indented; words longer than that stay whole."""
    return _Folder(max(1, columns), subsequent_indent=indent, break_long_words=False).wrap(text)


def pairs(rows: Sequence[tuple[str, str]], indent: str = "", least: int = 0) -> list[str]:
    """Names with their values, one a line, the values in one column and folded there."""
    longest = max([least, *(len(name) for name, _ in rows)])
    column = len(indent) + longest + len(GAP)
    return [wrapped(f"{indent}{name.ljust(longest)}{GAP}{value}", " " * column, width()) for name, value in rows]


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    indent: str = "  ",
    *,
    words: Collection[int] = (),
    drop: Sequence[int] = (),
    elsewhere: str = "--json",
) -> list[str]:
    """Aligned lines no wider than the terminal: the first column and columns of `words` left, the others right.

    What is too wide is made to fit, in this order: titles are folded, then columns of `words`; then the columns of
    `drop` are left out, the first of them first, and a line says which and that they stand `elsewhere`; last the columns
    are set below one another, the first repeated.
    """
    grid = _Grid(head, rows, indent, frozenset(words), width())
    kept = list(range(len(head)))
    gone: list[int] = []
    for column in [None, *drop]:
        if column is not None:
            kept.remove(column)
            gone.append(column)
        widths = grid.fitted(kept)
        if widths is not None:
            break
    else:
        return [line for block in grid.stacked(kept) for line in block] + grid.named(gone, elsewhere)
    return grid.lines(kept, widths) + grid.named(gone, elsewhere)


def _pieces(title: str) -> list[str]:
    """Where a title may be folded: between words, but not before a percent sign, and in those that are put together."""
    return [piece for word in re.split(r"\s+(?!%)", title) if word for piece in INSIDE.split(word)]


@dataclass(frozen=True)
class _Grid:
    """The cells of a table and the room there is."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    indent: str
    words: frozenset[int]
    columns: int

    def _widest(self, column: int) -> int:
        return max((len(row[column]) for row in self.rows), default=0)

    def _room(self, kept: Sequence[int]) -> int:
        return self.columns - len(self.indent) - len(GAP) * (len(kept) - 1)

    def fitted(self, kept: Sequence[int]) -> dict[int, int] | None:
        """Widths with which these columns fit, None if they do not."""
        room = self._room(kept)
        widths = {i: max(len(self.head[i]), self._widest(i)) for i in kept}
        if sum(widths.values()) <= room:
            return widths
        least = {i: max(max(map(len, _pieces(self.head[i])), default=0), self._widest(i)) for i in kept}
        if sum(least.values()) <= room:
            least[kept[0]] = min(widths[kept[0]], least[kept[0]] + room - sum(least.values()))
            return least
        prose = [i for i in kept if i in self.words and least[i] > NARROWEST_PROSE]
        left = room - sum(least[i] for i in kept if i not in prose)
        if not prose or left < NARROWEST_PROSE * len(prose):
            return None
        for place, i in enumerate(sorted(prose, key=least.__getitem__)):  # the narrow ones whole, the others evenly
            least[i] = min(least[i], left // (len(prose) - place))
            left -= least[i]
        return least

    def lines(self, kept: Sequence[int], widths: dict[int, int]) -> list[str]:
        """The table of these columns."""
        titles = {i: folded(self.head[i], widths[i]) or [""] for i in kept}
        tallest = max(map(len, titles.values()))
        lines = [
            self._line(kept, widths, {i: ([""] * (tallest - len(t)) + t)[k] for i, t in titles.items()}) for k in range(tallest)
        ]
        for row in self.rows:
            cells = {i: folded(row[i], widths[i]) or [""] if i in self.words else [row[i]] for i in kept}
            for k in range(max(map(len, cells.values()))):
                lines.append(self._line(kept, widths, {i: cell[k] if k < len(cell) else "" for i, cell in cells.items()}))
        return lines

    def _line(self, kept: Sequence[int], widths: dict[int, int], cells: dict[int, str]) -> str:
        set_ = [cells[i].ljust(widths[i]) if i == 0 or i in self.words else cells[i].rjust(widths[i]) for i in kept]
        return (self.indent + GAP.join(set_)).rstrip()

    def stacked(self, kept: Sequence[int]) -> Iterator[list[str]]:
        """The table in blocks of as many columns as fit, the first column in each."""
        first, left = kept[0], list(kept[1:])
        while left:
            count = next((n for n in range(len(left), 1, -1) if self.fitted([first, *left[:n]])), 1)
            block = [first, *left[:count]]
            widths = self.fitted(block) or {i: max(len(self.head[i]), self._widest(i)) for i in block}
            left = left[count:]
            yield self.lines(block, widths) + ([""] if left else [])

    def named(self, gone: Sequence[int], elsewhere: str) -> list[str]:
        """A line on the columns that are not shown."""
        if not gone:
            return []
        titles = ", ".join(self.head[i] for i in sorted(gone))
        text = f"{self.indent}not shown in {self.columns} columns: {titles} ({elsewhere})"
        return folded(text, self.columns, self.indent)
