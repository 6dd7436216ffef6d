"""Errors as plain data, for ``--json``."""

from __future__ import annotations

from hardware_profiles.errors import PlanError


def error_as_dict(error: BaseException) -> dict[str, dict[str, str | None]]:
    """Return ``{"error": {"message", "where", "mend"}}``; several problems of one scenario share the message.

    >>> from hardware_profiles.errors import InputError
    >>> error_as_dict(InputError("no such file", where="a.yaml"))
    {'error': {'message': 'no such file', 'where': 'a.yaml', 'mend': None}}
    """
    if not isinstance(error, PlanError):
        words = str(error) or type(error).__name__
        return {"error": {"message": words, "where": None, "mend": None}}
    problems: tuple[PlanError, ...] = getattr(error, "problems", ())
    others = [f"{p.where}: {p.message}" if p.where else p.message for p in problems[1:]]
    message = "; also ".join([error.message, *others])
    return {"error": {"message": message, "where": error.where, "mend": error.mend}}
