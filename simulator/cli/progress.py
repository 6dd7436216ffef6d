"""What a person who watches a long command sees, on stderr."""

from __future__ import annotations

import sys


def progress(text: str) -> None:
    """Say on stderr what is going on, if a person watches."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def progress_done() -> None:
    """Clear the progress line."""
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)
