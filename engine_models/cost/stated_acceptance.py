"""How many drafts are accepted, as a scenario states it: by probability, by rates, by length, or by the task.

Acceptance falls along a draft in reality: a probability taken from one length is too high for longer drafts.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np

from engine_models.cost.draft_methods import WHERE
from hardware_profiles.errors import InputError, nearest

EXAMPLE = "acceptance: 0.7, acceptance_length: 2.6 or acceptance_rates: [0.8, 0.6, 0.4]"

FILE = Path(__file__).with_name("acceptance_by_task.json")
"""Tokens that a verification of `DRAFTS_OF_TABLE` drafts yields, the model's own included, by method and task. Kind: measured,
by those that the file names; other drafters and models differ."""
DRAFTS_OF_TABLE = 3

Stated = float | list[float] | tuple[float, ...] | None
"""How a scenario states an acceptance: one number, or one a position."""

ACCEPTANCE = ("acceptance", "acceptance_rates", "acceptance_length")


def acceptance_rates(
    tokens: int,
    acceptance: Stated = None,
    acceptance_rates: Stated = None,
    acceptance_length: Stated = None,
) -> tuple[float, ...]:
    """Return the probability that the first i drafts are all accepted, for i = 1 to `tokens`, from one of three statements.

    acceptance : probability a that a draft is accepted if those before it were; one for all positions or one each. r_i is the
        product of the first i.
    acceptance_rates : r_i itself, as vLLM logs "Per-position acceptance rate"; never rising.
    acceptance_length : tokens a verification yields on average, the model's own included (1 to tokens + 1), as vLLM logs "Mean
        acceptance length"; r_i = a^i with a such that 1 + r_1 + ... + r_k is that length.

    Raises InputError where none or several are given or a value is out of range.

    >>> acceptance_rates(3, acceptance=0.5)
    (0.5, 0.25, 0.125)
    >>> acceptance_rates(2, acceptance_length=3.0)
    (1.0, 1.0)
    """
    given = [
        n
        for n, v in zip(ACCEPTANCE, (acceptance, acceptance_rates, acceptance_length), strict=True)
        if v is not None
    ]
    if len(given) != 1:
        what = "no acceptance is given" if not given else f"{' and '.join(given)} are given together"
        raise InputError(
            f"{what}: how many drafts are accepted depends on the text and the drafter",
            where=f"{WHERE}.acceptance" if not given else f"{WHERE}.{given[1]}",
            mend=f"give one of {EXAMPLE}, or a task of published values (task: coding); servers log what they measure",
        )
    if acceptance_length is not None:
        return _rates_of_length(tokens, float(acceptance_length))  # type: ignore[arg-type]
    values = acceptance if acceptance is not None else acceptance_rates
    where = f"{WHERE}.{given[0]}"
    listed = [float(v) for v in values] if isinstance(values, list | tuple) else [float(values)] * tokens  # type: ignore[arg-type]
    if len(listed) != tokens:
        raise InputError(
            f"{len(listed)} values for {tokens} drafts", where=where, mend=f"give {tokens}, one a position"
        )
    if any(not 0 <= v <= 1 for v in listed):
        raise InputError(
            f"{given[0]} must be between 0 and 1", where=where, mend="give probabilities, such as 0.7"
        )
    if acceptance is not None:
        return tuple(float(r) for r in np.multiply.accumulate(listed))
    if any(later > earlier for earlier, later in pairwise(listed)):
        raise InputError(
            "acceptance_rates rise: a draft counts only if all before it were accepted",
            where=where,
            mend="give the rates by position as servers log them, or `acceptance` for each position by itself",
        )
    return tuple(listed)


def _rates_of_length(tokens: int, length: float) -> tuple[float, ...]:
    """r_i = a^i with 1 + a + ... + a^k = length, a by bisection."""
    if not 1 <= length <= tokens + 1:
        raise InputError(
            f"acceptance_length {length:g} is not between 1 and {tokens + 1}",
            where=f"{WHERE}.acceptance_length",
            mend="give the tokens a verification yields, the model's own included: 1 plus the accepted drafts",
        )
    low, high = 0.0, 1.0
    for _ in range(100):
        middle = (low + high) / 2
        if 1 + sum(middle**i for i in range(1, tokens + 1)) < length:
            low = middle
        else:
            high = middle
    return tuple(high**i for i in range(1, tokens + 1))


def acceptance_by_task(method: str, task: str) -> tuple[float, str]:
    """Probability that a draft is accepted if those before it were, from the table, and a note on it.

    Raises InputError for a method or a task that the table lacks.
    """
    table = json.loads(FILE.read_text(encoding="utf-8"))
    tasks = table.get(method)
    if tasks is None or task not in tasks:
        near = nearest(task, list(tasks or ()))
        known = f"{method} has {', '.join(tasks)}" if tasks else f"it is known for {' and '.join(table)}"
        raise InputError(
            f"no acceptance of {method} drafts is known for task '{task}'" + (f"; did you mean '{near}'?" if near else ""),
            where=f"{WHERE}.task",
            mend=f"{known}; or give what your server measured: {EXAMPLE}",
        )
    length, source = float(tasks[task]["tokens"]), tasks[task]["source"]
    probability = _rates_of_length(DRAFTS_OF_TABLE, length)[0]
    note = (
        f"acceptance of the task {task} ({method}): {probability:.2f} a draft, {length:g} tokens a verification of "
        f"{DRAFTS_OF_TABLE} drafts (measured: {source}; assumed to hold for this model and drafter)"
    )
    return probability, note


__all__ = ["ACCEPTANCE", "EXAMPLE", "WHERE", "acceptance_by_task", "acceptance_rates"]
