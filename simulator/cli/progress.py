"""What a person who watches a long command sees, on stderr."""

from __future__ import annotations

import sys

from simulator.cli.printable import control

CLEAR_LINE = "\r\033[K"


def progress(text: str) -> None:
    """Say on stderr what is going on, if a person watches."""
    if sys.stderr.isatty():
        control(CLEAR_LINE)
        print(text, end="", file=sys.stderr, flush=True)


def note(text: str) -> None:
    """Say on stderr what a person should know beforehand."""
    progress_done()
    print(f"note: {text}", file=sys.stderr, flush=True)


def progress_done() -> None:
    """Clear the progress line."""
    if sys.stderr.isatty():
        control(CLEAR_LINE)
        sys.stderr.flush()
