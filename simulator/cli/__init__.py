"""The command line. Each command imports what it needs when it runs, so that `--help` stays quick."""

from __future__ import annotations


def command() -> None:
    """Entry point of the process `capacity-plan`: `main`, after which nothing is taken apart that ends with the process."""
    import atexit

    codes: list[int] = []
    if not atexit._ncallbacks():  # else somebody (a measurement of coverage, say) waits for the end who would come after it
        atexit.register(_leave, codes)  # the first to be registered is the last to run
    try:
        main()
    except SystemExit as end:
        if isinstance(end.code, int):
            codes.append(end.code)
        raise


def _leave(codes: list[int]) -> None:
    """End the process with its code, if it has one: to free each object by itself takes as long as to write the results."""
    import os
    import sys

    if not codes:
        return
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads: the interpreter has its own code for that
        return
    os._exit(codes[0])


def main() -> None:
    """Run the command on the command line; it ends with SystemExit."""
    import gc
    import os
    import sys

    if sys.stdout is None or sys.stderr is None:  # closed by who called it (`>&-`): what is written there goes nowhere
        nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
        sys.stdout, sys.stderr = sys.stdout or nowhere, sys.stderr or nowhere
    gc.disable()  # until a run begins: start-up makes many objects and no garbage
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # none is needed, and all packages are searched for them
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # numpy's idle threads cost a twentieth of a short run
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # Arrow's own keeps a tenth of a run's memory for later
    from simulator.cli.printable import printing

    with printing():
        _main()


def _main() -> None:
    import os
    import sys

    from simulator.cli.errors import INTERRUPTED, fail

    words = sys.argv[1:]
    as_json = "--json" in words
    try:
        from simulator.cli.app import app_for

        code = app_for(words)(standalone_mode=False)
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
