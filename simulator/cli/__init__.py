"""The command line. Each command imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations


def main() -> None:
    """Entry point of `capacity-plan`."""
    import os
    import sys

    from simulator.cli.app import app
    from simulator.cli.errors import fail

    as_json = "--json" in sys.argv[1:]
    try:
        app()
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("CAPACITY_PLAN_TRACEBACK"):
            raise
        fail(error, as_json)
