"""`recommend`: which engines can serve a scenario, and what each costs at its SLO."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulator.planning.recommend import Choice, Excluded, Recommendation

LEGEND = (
    "~ too close to call: less than 90 % sure that the best one is cheaper. SLO and latencies [ms] at the offered load; "
    "highest: the most that keeps the SLO",
    ", an estimate by short runs; $/1M: a million tokens at that load, and where the model's error puts it; steps: recorded "
    "steps of real code that the engine's model reproduces; costs: measured on this device, or assumed",
)


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command()
    def recommend(
        scenario: Annotated[str, typer.Argument(help="Scenario file, or the name of a shipped scenario.")],
        set_: Annotated[
            list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Replace a field of the scenario.")
        ] = None,
        need: Annotated[
            list[str] | None,
            typer.Option(
                "--need",
                help="A feature that must be there: speculative, lora, structured, images, offload, handover, pipeline_parallel.",
            ),
        ] = None,
        licence: Annotated[
            list[str] | None, typer.Option("--licence", help="A licence that is allowed (SPDX), such as MIT.")
        ] = None,
        alive_since: Annotated[
            str, typer.Option("--alive-since", metavar="YYYY-MM", help="Leave out projects without a sign of life since.")
        ] = "",
        weight: Annotated[
            list[str] | None,
            typer.Option("--weight", metavar="WHAT=W", help="cost, ttft, tpot or e2e, and its weight; cost=1 by default."),
        ] = None,
        tune: Annotated[
            bool, typer.Option("--tune", help="Try other values of the flags that matter: requests at once, tokens of a step.")
        ] = False,
        workers: Annotated[int | None, typer.Option(min=1, help="Processes; one a core by default.")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
    ) -> None:
        """Which engine: who can serve the scenario at all, ranked by cost at the SLO, and why the others cannot."""
        from simulator.cli.errors import placed
        from simulator.cli.progress import progress, progress_done
        from simulator.config.load import load_scenario
        from simulator.io.text import json_text
        from simulator.planning.recommend import Wishes
        from simulator.planning.recommend import recommend as compare_engines

        loaded = load_scenario(scenario, set_ or [])
        wishes = Wishes(tuple(licence or ()), month(alive_since), tuple(need or ()), weights(weight or ["cost=1"]), tune)
        with placed(scenario, set_ or []):
            found = compare_engines(loaded, wishes, workers=workers, tell=progress)
        progress_done()
        if as_json:
            print(json_text(as_object(found)), end="")
        else:
            print(text(loaded.name, found))
        if not found.ranked:
            raise SystemExit(3)


def month(given: str) -> str:
    """A year and month as typed; InputError if it is none."""
    import re

    from hardware_profiles.errors import InputError

    if given and not re.fullmatch(r"20\d\d-(0[1-9]|1[0-2])", given):
        raise InputError(f"'{given}' is no month", where="--alive-since", mend="write it as 2026-01")
    return given


def weights(given: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """Weights as typed; InputError for anything but a finite number above zero."""
    import math

    from hardware_profiles.errors import InputError

    out: list[tuple[str, float]] = []
    for each in given:
        name, _, number = each.partition("=")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"'{each}' is no weight", where="--weight", mend="write it as cost=1 or ttft=0.5")
        if name in (known for known, _ in out):
            raise InputError(f"{name} has two weights", where="--weight", mend="give it once")
        out.append((name, value))
    return tuple(out)


def as_object(found: Recommendation) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {
        "ranked": [asdict(choice) | {"close": choice.close} for choice in found.ranked],
        "never_within_slo": [asdict(choice) for choice in found.never],
        "excluded": [asdict(each) for each in found.excluded],
        "notes": list(found.notes),
    }


def _lost(choice: Choice) -> str:
    """How many requests it rejects at the offered load, and why; empty if none."""
    from simulator.report.words import reasons_of

    totals = choice.totals
    if not totals.get("rejected"):
        return ""
    return f"; of {totals['offered']:,} requests offered it rejects {totals['rejected']:,}: {reasons_of(totals, 'rejected')}"


def _left_out(reason: str, alike: Sequence[Excluded]) -> str:
    """Engines that one reason excludes; what each "does not" do several do not."""
    if len(alike) > 1 and alike[0].reason != reason:
        reason = f"do {reason}"
    return f"{', '.join(each.engine for each in alike)}: {reason if len(alike) > 1 else alike[0].reason}"


def text(name: str, found: Recommendation) -> str:
    """The answer first, then the table, then who is left out and why."""
    from engine_models.engines.known import engine_named
    from simulator.cli.layout import labelled, table, wrapped

    lines = [wrapped(line, "  ") for line in answer(name, found)]
    if found.ranked:
        titles = ["engine", "weights", "SLO", "TTFT p99", "TPOT p99", "highest", "used", "$/1M", "90 %", "steps", "costs"]
        cells = [_cells(choice) for choice in found.ranked]
        lines += ["", *table(titles, cells, words=[0, 1, 2, 10], drop=[9, 3, 4, 6], elsewhere="--json")]
        unit = next((c.unit for c in found.ranked if c.unit), "")
        lines += [
            "",
            wrapped(f"{LEGEND[0]}{f' [{unit}]' if unit else ''}{LEGEND[1]}", "  "),
        ]
        tuned = [f"{c.engine}: {', '.join(f'{k}={v}' for k, v in c.flags.items())}" for c in found.ranked if c.flags]
        if tuned:
            lines.append(labelled("tuned", "; ".join(tuned)))
    said = [("never", f"{c.name}: no load was found at which it keeps the SLO{_lost(c)}") for c in found.never]
    reasons: dict[str, list[Excluded]] = {}
    for each in found.excluded:
        title = engine_named(each.engine).title
        reason = each.reason.removeprefix(f"{each.engine} does ").removeprefix(f"{title} does ")
        reasons.setdefault(reason, []).append(each)
    said += [("left out", _left_out(reason, alike)) for reason, alike in reasons.items()]
    said += [("note", note) for note in found.notes]
    return "\n".join([*lines, *(labelled(label, words) for label, words in said)])


def answer(name: str, found: Recommendation) -> list[str]:
    """Who it is, in a sentence."""
    from simulator.report.numbers import dollars
    from simulator.results.ranking import percent

    if not found.ranked:
        return [f"{name}: no engine can serve this" + (" within the SLO" if found.never else "")]
    best = found.ranked[0]
    close = [f"{c.name} {percent(c.sure_share)}" for c in found.ranked[1:] if c.close]
    cost = f" at {dollars(best.cost_usd)} a million tokens" if best.cost_usd is not None else ""
    lines = [f"{name}: {best.name}{cost}"]
    if close:
        lines.append(f"too close to call (how sure the order is): {', '.join(close)}")
    return lines


def _cells(choice: Choice) -> list[str]:
    from simulator.report.numbers import dollars, short

    bounds = choice.cost_interval_usd
    return [
        f"{'~' if choice.close else ' '}{choice.name}",
        choice.weights,
        choice.slo or "-",
        short(choice.p99_ttft_ms),
        short(choice.p99_tpot_ms),
        short(choice.highest) if choice.highest is not None else "-",
        f"{choice.used_share:.0%}" if choice.used_share is not None else "-",
        dollars(choice.cost_usd),
        f"{short(bounds[0])} to {short(bounds[1])}" if bounds else "-",
        f"{choice.proven_steps:,}" if choice.proven_steps else "-",
        "measured" if choice.measured else "assumed",
    ]
