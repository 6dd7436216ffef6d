"""Text that does nothing to a terminal but stand there."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)
"""Control characters but tab and line feed, marks that reorder or break a line, halves of surrogate pairs."""


def printable(text: str) -> str:
    r"""Return `text` with control characters written out, so that JSON stays the same JSON.

    >>> printable("\x1b[31mred")
    '\\x1b[31mred'
    """
    return _CONTROL.sub(lambda found: _written(ord(found[0])), text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x20 else f"\\u{code:04x}"


class Printable(io.TextIOWrapper):
    """A stream that takes text and writes what is printable of it; what its encoding lacks is written as an escape."""

    @classmethod
    def over(cls, bare: io.TextIOWrapper) -> Printable:
        """The stream in front of what `bare` writes to."""
        bare.flush()
        return cls(bare.buffer, bare.encoding, "backslashreplace", line_buffering=bare.line_buffering)

    def write(self, text: str, /) -> int:
        """Write `text`; return its length."""
        super().write(printable(text))
        return len(text)

    def control(self, sequence: str) -> None:
        """Write a sequence that is for the terminal."""
        super().write(sequence)


@contextmanager
def printing() -> Iterator[None]:
    """Print through `Printable`."""
    bare: tuple[TextIO, TextIO] = sys.stdout, sys.stderr
    fronts = [Printable.over(stream) for stream in bare if isinstance(stream, io.TextIOWrapper)]
    if len(fronts) < len(bare):  # nobody's terminal
        yield
        return
    sys.stdout, sys.stderr = fronts
    try:
        yield
    finally:
        sys.stdout, sys.stderr = bare
        for front in fronts:
            try:
                front.detach()
            except OSError:  # what is left of it cannot be written
                discard(front)
                front.detach()


def discard(stream: TextIO) -> None:
    """Send to nowhere what a stream has not written yet, and all that is still to come."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def control(sequence: str) -> None:
    """Send a control sequence to stderr."""
    if isinstance(sys.stderr, Printable):
        sys.stderr.control(sequence)
    else:
        sys.stderr.write(sequence)
