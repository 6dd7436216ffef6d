"""Ctrl-C during a run: what was worked out for a minute or more is kept."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

KEEP_AFTER_S = 60.0
"""Work that is lost at Ctrl-C without asking; more is written as a partial run."""


@contextlib.contextmanager
def interruptible(progress: Callable[[int], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function for a run to call after every request; it returns True once the run should stop.

    Ctrl-C within `KEEP_AFTER_S` of now, or a second time, raises KeyboardInterrupt; later it makes the function
    return True. `progress` is told about twice a second how many requests have ended.
    """
    began_s = shown_s = time.monotonic()
    asked = False
    done = 0

    def handler(number: int, frame: object) -> None:
        nonlocal asked
        if asked or time.monotonic() - began_s < KEEP_AFTER_S:
            raise KeyboardInterrupt
        asked = True
        print("\ninterrupted: keeping what is done (Ctrl-C again keeps nothing)", file=sys.stderr)

    def should_stop() -> bool:
        nonlocal shown_s, done
        done += 1
        if not done % 64:
            now_s = time.monotonic()
            if now_s - shown_s > 0.5:
                shown_s = now_s
                progress(done)
        return asked

    if threading.current_thread() is not threading.main_thread():
        yield should_stop
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield should_stop
    finally:
        signal.signal(signal.SIGINT, before)
