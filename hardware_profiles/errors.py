"""Errors a person reads: the cause, the place, the mend.

They live in the lowest package so that every layer can raise them; the command line turns them into one
line for the cause, one for the mend, and an exit code (2 bad input, 3 valid but infeasible, 4 outside the
calibrated domain under ``--strict``).
"""

from __future__ import annotations


class PlanError(Exception):
    """Base of all errors meant for a person.

    Parameters
    ----------
    message : what is wrong, one sentence.
    where : the file, line and key, or the command-line option, where it is wrong.
    mend : what to do about it, one sentence.
    """

    exit_code = 1

    def __init__(self, message: str, *, where: str | None = None, mend: str | None = None) -> None:
        super().__init__(message)
        self.message = _sentence(message)
        self.where = None if where is None else _sentence(where)
        self.mend = None if mend is None else _sentence(mend)

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        mend = f"\n  mend: {self.mend}" if self.mend else ""
        return f"{place}{self.message}{mend}"


LONGEST_SENTENCE = 2000
"""Characters of a message; of a longer one, which quotes something endless, the middle is left out."""


def _sentence(text: str) -> str:
    """`text` on one line, of bearable length."""
    text = text.replace("\n", "\\n")
    if len(text) > LONGEST_SENTENCE:
        text = f"{text[:500]} [... {len(text) - 1000:,} characters ...] {text[-500:]}"
    return text


class InputError(PlanError):
    """Bad usage or invalid input (exit code 2)."""

    exit_code = 2


class InfeasibleError(PlanError):
    """Valid input that cannot be served (exit code 3): the model does not fit, no plan meets the SLO."""

    exit_code = 3


def nearest(word: str, known: list[str]) -> str | None:
    """Return the known name closest in spelling to `word`, or None if nothing is close."""
    import difflib

    found = difflib.get_close_matches(word.lower(), [k.lower() for k in known], n=1, cutoff=0.5)
    return next((k for k in known if found and k.lower() == found[0]), None)
