"""Ctrl-C, or being told to terminate, during a run: what was worked out for a minute or more is kept."""

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

    Ctrl-C or SIGTERM within `KEEP_AFTER_S` of now, or a second time, raises KeyboardInterrupt; later it makes the function
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
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield should_stop
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the work inside as Ctrl-C does, so that nothing half-written is left."""

    def handler(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
