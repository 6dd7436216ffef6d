"""From an exception to the words and the exit code a user sees."""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from hardware_profiles.errors import InputError, PlanError
from simulator.cli.printable import discard

INTERRUPTED = 130
"""Exit code after Ctrl-C, 128 + SIGINT."""


_OF_A_PATH = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EROFS,
              errno.EINVAL)  # fmt: skip
"""What the system says of a path that was given wrongly; anything else is its own trouble."""


class InterruptedRun(PlanError):
    """Ctrl-C; the message says what was kept."""

    exit_code = INTERRUPTED


ASKED_AS = {
    **dict.fromkeys(("plan", "optimize", "optimise", "size"), "sweep SCENARIO --vary deployment.replicas=1:8"),
    **dict.fromkeys(("run", "sim", "predict", "estimate", "plot", "report"), "simulate SCENARIO --plots"),
    **dict.fromkeys(("fit", "explain"), "check SCENARIO"),
    "headroom": "simulate SCENARIO --headroom",
    "diff": "compare RUN RUN",
    "version": "--version",
}
"""Words that people try for a command -> what answers their question."""
KEYS = {
    **dict.fromkeys(("gpus", "num_gpus"), "deployment.replicas=2 for servers, deployment.tensor_parallel=4 for GPUs of one"),
    "replicas": "deployment.replicas=2",
    "tensor_parallel": "deployment.tensor_parallel=4",
    "hardware": "deployment.hardware=h100-sxm-80gb",
    "rate": "workload.arrivals.rate=5",
    "engine": "deployment.engine=NAME",
    "model": "model=Qwen/Qwen3-8B",
    "trace": "workload.trace=FILE",
    "duration": "workload.duration=600",
}
"""Keys of the scenario that people try as options, by these or the names of other tools -> how to say them."""
BELOW = {
    ("trace", word): answer
    for words, answer in (
        (("stats", "statistics", "info", "show", "inspect", "summary"), "trace describe TRACE"),
        (("generate", "create", "make", "sample"), "trace synthesize SCENARIO OUTPUT"),
    )
    for word in words
} | {("validate", word): "validate endpoint URL SCENARIO" for word in ("server", "url")}
"""The same for words below a command."""
MISSING = {
    "scenario": "name a scenario's file, or one of `capacity-plan list scenarios`",
    "name": "write of what it is: `capacity-plan show engine NAME`, `show hardware h100`, `show model Qwen/Qwen3-8B`",
    "RUN_OR_FILE...": "name two or more folders that `capacity-plan simulate` wrote, or result files of a benchmark client",
}
"""Arguments that may be missing -> what to give."""


@contextmanager
def placed(source: str, overrides: Sequence[str]) -> Iterator[None]:
    """Name the file and line of errors that speak of a key of the scenario."""
    try:
        yield
    except PlanError as error:
        if error.where and re.fullmatch(r"[a-z_]+(\.\w+)*", error.where):
            from simulator.config.load import place_of

            found = place_of(error.where, source, overrides)
            if found:
                error.where = found if found.startswith("--") else f"{found}: {error.where}"
        raise


def in_words(error: BaseException) -> PlanError:
    """Return `error` as one that has words for a person and an exit code."""
    if isinstance(error, PlanError):
        return error
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return InterruptedRun("interrupted; nothing was written")
    if hasattr(error, "format_message") and hasattr(error, "exit_code"):
        return _usage(error)
    words: PlanError
    if isinstance(error, OSError):
        full = error.errno == errno.ENOSPC
        kind = InputError if error.errno in _OF_A_PATH else PlanError
        words = kind(
            "the disk is full; nothing was written" if full else f"{error.strerror or error}",
            where=str(error.filename) if error.filename else None,
            mend="free space, or choose another --output" if full else "check the path and its permissions",
        )
    elif isinstance(error, MemoryError):
        words = PlanError(
            "out of memory", mend="simulate fewer requests: a shorter duration, a limit, a window"
        )
    else:
        words = PlanError(
            f"internal error: {type(error).__name__}: {error}",
            mend="please report it with the scenario; CAPACITY_PLAN_TRACEBACK=1 shows where",
        )
    return words


def _usage(error: Any) -> PlanError:
    """A mistake on the command line that Typer found (its own exceptions, or those of click under older versions)."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "capacity-plan"
    said = error.format_message().rstrip(".")
    asked = re.match(r"No such command '(\w+)'", said)
    if asked and asked[1].lower() in ASKED_AS and (context is None or context.parent is None):
        return InputError(said, mend=f"that is asked as `capacity-plan {ASKED_AS[asked[1].lower()]}`")
    below = BELOW.get((command.rpartition(" ")[2], asked[1].lower())) if asked else None
    if below is not None:
        return InputError(said, mend=f"that is asked as `capacity-plan {below}`")
    option = re.match(r"No such option: --([\w-]+)", said)
    if option and context is not None and any("--set" in each.opts for each in context.command.params):
        from simulator.config.problems import SHORT_NAMES

        key = option[1].replace("-", "_")
        if (given := KEYS.get(SHORT_NAMES.get(key, key))) is not None:
            return InputError(f"No such option: --{option[1]}", mend=f"keys of the scenario are given so: --set {given}")
    missing = re.match(r"Missing argument '([^']+)'", said)
    if missing and missing[1] in MISSING and (missing[1] != "name" or command.endswith(" show")):
        return InputError(said, mend=f"{MISSING[missing[1]]}; `{command} --help` lists the rest")
    return InputError(said, mend=f"`{command} --help` lists what it takes")


def fail(error: BaseException, as_json: bool) -> NoReturn:
    """Print the error in words on stderr (and as JSON on stdout under `--json`) and exit.

    A reader of stdout that went away (`| head`) is no error worth a word.
    """
    if isinstance(error, BrokenPipeError):
        discard(sys.stdout)
        raise SystemExit(1)
    if type(error).__name__ == "NoArgsIsHelpError" and not as_json:
        print(error.format_message(), file=sys.stderr)  # type: ignore[attr-defined]
        raise SystemExit(2)
    words = in_words(error)
    if as_json:
        import json

        from simulator.io.errors import error_as_dict

        print(json.dumps(error_as_dict(words)))
    print("\n".join(f"error: {p}" for p in (getattr(words, "problems", None) or (words,))), file=sys.stderr)
    raise SystemExit(words.exit_code)
