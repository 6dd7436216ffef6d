"""The command line. Each command imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations


def main() -> None:
    """Entry point of `capacity-plan`."""
    import gc
    import os

    gc.disable()  # until a run begins: start-up makes many objects and no garbage
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # none is needed, and all packages are searched for them
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's idle threads cost a twentieth of a short run
    from simulator.cli.printable import printing

    with printing():
        _main()


def _main() -> None:
    import os
    import sys

    from simulator.cli.app import app_for
    from simulator.cli.errors import INTERRUPTED, fail

    as_json = "--json" in sys.argv[1:]
    try:
        code = app_for(sys.argv[1:])(standalone_mode=False)
        sys.stdout.flush()
        if code == INTERRUPTED:  # what Typer makes of Ctrl-C
            raise KeyboardInterrupt
    except SystemExit:
        raise
    except BaseException as error:
        if os.environ.get("CAPACITY_PLAN_TRACEBACK"):
            raise
        fail(error, as_json)
    raise SystemExit(code or 0)
