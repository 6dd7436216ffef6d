"""How the process of a command ends, whoever reads what it prints and whoever waits for its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = "import sys; sys.argv[1:] = {words!r}; from simulator.cli import command; command()"
ENTRY = """
import atexit
atexit.register(print, "ended")
"""


def ended(words: list[str], redirected: str = "", before: str = "") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command whose shell redirects them."""
    script = ["sh", "-c", f'"$@" {redirected}', "sh", sys.executable, "-c", before + COMMAND.format(words=words)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_who_waits_for_the_end_since_before_is_heard() -> None:
    assert ended(["--version"], before=ENTRY)[:2] == (0, ended(["--version"])[1] + "ended\n")


@pytest.mark.parametrize("redirected", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_written_nothing(redirected: str) -> None:
    code, out, err = ended(["--version"], redirected)
    assert (code, err) == (0, "")
    assert bool(out) == (">&-" not in redirected.split())
    assert ended(["show", "engine", "nothing"], redirected)[0] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("words", [["list", "models"], ["list", "models", "--json"], ["--version"]])
def test_a_full_disk_is_said_in_words(words: list[str]) -> None:
    code, _, err = ended(words, ">/dev/full")
    assert code == 1
    assert err.startswith("error: the disk is full; nothing was written\n")
    assert len(err.splitlines()) == 2


def test_codes() -> None:
    assert ended(["--version"])[0] == 0
    assert ended(["nothing"])[0] == 2
