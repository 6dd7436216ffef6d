"""From an exception to the words and the exit code a user sees."""

from __future__ import annotations

import errno
import sys
from typing import NoReturn

from hardware_profiles.errors import PlanError


def fail(error: BaseException, as_json: bool) -> NoReturn:
    """Print the error in words on stderr (and as JSON on stdout under `--json`) and exit."""
    if isinstance(error, PlanError):
        message, where, mend, code = error.message, error.where, error.mend, error.exit_code
    elif isinstance(error, KeyboardInterrupt):
        message, where, mend, code = "interrupted", None, None, 130
    elif isinstance(error, OSError):
        full = error.errno == errno.ENOSPC
        message = "the disk is full; nothing was written" if full else f"{error.strerror or error}"
        where = str(error.filename) if error.filename else None
        mend = "free space, or choose another --output" if full else "check the path and its permissions"
        code = 1
    else:
        message = f"internal error: {type(error).__name__}: {error}"
        where, mend = None, "please report it with the scenario; CAPACITY_PLAN_TRACEBACK=1 shows where"
        code = 1
    if as_json:
        import json

        print(json.dumps({"error": {"message": message, "where": where, "mend": mend}}))
    place = f"{where}: " if where else ""
    print(f"error: {place}{message}", file=sys.stderr)
    if mend:
        print(f"  mend: {mend}", file=sys.stderr)
    raise SystemExit(code)
