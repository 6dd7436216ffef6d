"""`cost`: the budget of a run, a sweep or a scenario, each line with its arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    import datetime as dt

    from simulator.cost import UnitPrice
    from simulator.planning.budget import Budget
    from simulator.planning.demand import Profile


def register(app: typer.Typer) -> None:
    """Add the command to `app`."""

    @app.command()
    def cost(
        target: Annotated[
            str,
            typer.Argument(
                metavar="RUN|SWEEP|SCENARIO", help="Run or sweep folder, or a scenario (it is run)."
            ),
        ],
        set_: Annotated[
            list[str] | None,
            typer.Option(
                "--set", metavar="PATH=VALUE", help="Replace a field; of a run or sweep, of cost.* only."
            ),
        ] = None,
        demand_requests_per_day: Annotated[
            float | None, typer.Option(help="Mean demand: how many replicas it needs.", min=0)
        ] = None,
        headroom: Annotated[
            str, typer.Option(metavar="SHARE", help="Capacity above the demand: 0.3 or 30%.")
        ] = "0.3",
        profile: Annotated[
            Path | None, typer.Option(help="Relative demand by hour and weekday (YAML or CSV).")
        ] = None,
        as_json: Annotated[
            bool, typer.Option("--json", help="Print one JSON object and nothing else.")
        ] = False,
    ) -> None:
        """What it costs: by the hour, the month, the token; on demand, reserved, spot; for a demand."""
        run(target, set_ or [], demand_requests_per_day, headroom, profile, as_json)


def run(
    target: str,
    overrides: Sequence[str],
    demand_requests_per_day: float | None,
    headroom_text: str,
    profile_path: Path | None,
    as_json: bool,
) -> None:
    """Print the budget of the target."""
    import math

    from hardware_profiles.errors import InputError
    from simulator.io.text import json_text
    from simulator.planning.demand import read_profile
    from simulator.price import reading_day

    if demand_requests_per_day is not None and not (math.isfinite(demand_requests_per_day) and demand_requests_per_day > 0):
        raise InputError(
            f"a demand of {demand_requests_per_day:g} requests a day",
            where="--demand-requests-per-day",
            mend="give a number above zero",
        )
    headroom = share_of(headroom_text)
    profile = read_profile(profile_path) if profile_path else None
    today = reading_day()
    folder = Path(target)
    if folder.is_dir() and (folder / "sweep.json").is_file():
        data, words = of_sweep(folder, overrides, demand_requests_per_day, headroom, profile, today)
    else:
        result, settings, price = resolve(target, overrides)
        data, words = of_run(result, settings, price, demand_requests_per_day, headroom, profile, today)
    print(json_text(data) if as_json else words, end="" if as_json else "\n")


def share_of(text: str) -> float:
    """Return a headroom written as 0.3 or 30%; InputError for what is no share, and for a bare number that means percent."""
    from hardware_profiles.errors import InputError

    plain = text.strip()
    percent = plain.endswith("%")
    try:
        value = float(plain.removesuffix("%"))
    except ValueError:
        value = float("nan")
    if not 0 <= value < float("inf"):
        raise InputError(f"a headroom of {text}", where="--headroom", mend="give a share from zero up, such as 0.3 or 30%")
    if percent:
        return value / 100
    if value > 1:
        raise InputError(
            f"a headroom of {text} would be {value:.0%} above the demand",
            where="--headroom",
            mend=f"write {value / 100:g} or {value:g}% for {value:g} percent; {value * 100:g}% if so much is meant",
        )
    return value


def resolve(target: str, overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], UnitPrice]:
    """Result, cost settings and price of a run folder, or of a scenario that is simulated now."""
    from simulator.cli.progress import progress, progress_done
    from simulator.config.load import load_scenario, shipped_scenarios
    from simulator.io.rundir import RESULT, read_run
    from simulator.io.text import plain
    from simulator.planning.budget import known

    if Path(target).is_dir() and ((Path(target) / RESULT).is_file() or target not in shipped_scenarios()):
        read = read_run(target)
        result, settings = read["result"], read["manifest"]["scenario"]["cost"]
        if overrides:
            settings, price = reprice(read["manifest"], result["deployment"], overrides)
        else:
            price = recorded_price(result)
        return result, settings, known(price, result["deployment"]["hardware"])
    from simulator.prepare import prepare
    from simulator.run import run_prepared

    scenario = load_scenario(target, overrides)
    prepared = prepare(scenario)
    price = known(prepared.price, prepared.device.name)
    progress(f"simulating {scenario.name} ...")
    result = plain(run_prepared(prepared).result)
    progress_done()
    return result, scenario.cost.model_dump(mode="json"), price


def recorded_price(result: Mapping[str, Any]) -> UnitPrice | None:
    """The price that a run was costed with."""
    from simulator.cost import UnitPrice

    cost = result["cost"]
    if cost["ListUnitPrice"] is None:
        return None
    return UnitPrice(
        cost["ListUnitPrice"],
        cost["price_provider"] or "",
        cost["RegionId"] or "",
        cost["SkuId"] or "",
        cost["price_source"] or "",
        cost["price_date"] or "",
        cost["price_kind"] or "",
    )


def reprice(
    manifest: Mapping[str, Any], deployed: Mapping[str, Any], overrides: Sequence[str]
) -> tuple[dict[str, Any], UnitPrice | None]:
    """Cost settings and price of a finished run under other ``cost.*`` fields."""
    from engine_models.engines.known import EXAMPLE
    from hardware_profiles.device import load_device
    from hardware_profiles.errors import InputError
    from simulator.config.load import load_scenario
    from simulator.price import unit_price

    for text in overrides:
        if not text.strip().startswith(("cost.", "cost=")):
            raise InputError(
                f"'{text}' would change the run itself; of a finished run only cost.* can be set",
                where="--set",
                mend="give the scenario instead of the run, and it is simulated with the change",
            )
    hardware = deployed["hardware"]
    stand_in = {
        "model": "any",
        "deployment": {"engine": EXAMPLE, "hardware": hardware, "power_limit_w": deployed.get("power_limit_w")},
        "workload": {
            "arrivals": {"kind": "constant", "rate": 1},
            "prompt_tokens": {"kind": "constant", "value": 1},
            "output_tokens": {"kind": "constant", "value": 1},
            "duration": 1,
        },
        "cost": manifest["scenario"]["cost"],
    }
    scenario = load_scenario(cast("Mapping[str, Any]", stand_in), overrides)
    return scenario.cost.model_dump(mode="json"), unit_price(scenario, load_device(hardware), scenario.deployment.pools[0])


# -- one run ------------------------------------------------------------------------------------------------


def of_run(
    result: Mapping[str, Any],
    settings: Mapping[str, Any],
    price: UnitPrice,
    demand_requests_per_day: float | None,
    headroom: float,
    profile: Profile | None,
    today: dt.date,
) -> tuple[dict[str, Any], str]:
    """The budget of a run, as data and as text."""
    from hardware_profiles.device import device_word
    from simulator.cli.layout import wrapped
    from simulator.planning.budget import budget, fleet
    from simulator.planning.points import judged
    from simulator.report.words import shape_of

    deployed = result["deployment"]
    verdict = judged(result)[0]
    pools = [f"{pool['replicas']} x ({shape_of(pool)}) {pool['hardware']}" for pool in deployed.get("pools") or [deployed]]
    title = (
        f"{result['name']}: {deployed['model']} on {', '.join(pools)}; SLO {verdict or 'none given'}; "
        f"{result['totals']['request_throughput']:.4g} requests/s completed"
    )
    found = budget(result, price, settings, today)
    data: dict[str, Any] = {
        "name": result["name"],
        "run_id": result["run_id"],
        "slo": verdict,
        **found.as_dict(),
    }
    offered = offer_table(found, device_word(deployed["hardware"])) if found.offers else []
    lines = [wrapped(title, "  "), "", *figures(found), "", *offered, *remarks(found)]
    if demand_requests_per_day is not None or profile is not None:
        needed = fleet(result, price, requests_per_day=demand_requests_per_day, headroom=headroom, profile=profile)
        data["demand"] = needed.as_dict()
        lines += ["", "for the demand", *figures(needed), *remarks(needed)]
    return data, "\n".join(lines)


def figures(found: Budget) -> list[str]:
    """Lines of figures: what, arithmetic = value unit."""
    from simulator.cli.layout import wrapped

    width = max(len(line.what) for line in found.lines)
    indent = " " * (width + 4)
    return [
        wrapped(f"  {line.what.ljust(width)}  {line.arithmetic} = {amount(line.value, line.unit)}", indent)
        for line in found.lines
    ]


def amount(value: float | None, unit: str) -> str:
    """A figure with its unit."""
    from simulator.planning.budget import usd

    if value is None:
        return "-"
    if unit.startswith("USD"):
        return usd(value) + unit.removeprefix("USD").replace("/", " / ", 1)
    if unit.startswith("share"):
        return f"{value:.1%}" + unit.removeprefix("share")
    if value == 1 and unit == "replicas":
        return "1 replica"
    return f"{value:,.4g} {unit}"


def offer_table(found: Budget, device: str) -> list[str]:
    """The price list's offers for the deployment; `device` is what one of its devices is called."""
    from simulator.cli.layout import table
    from simulator.report.numbers import dollars

    if not found.offers:
        return ["  the price list has no offer for this hardware"]
    rows = [
        [
            offer["commitment"],
            offer["provider"] + (f" {offer['instance']}" if offer["instance"] else ""),
            offer["region"] or "-",
            offer["date"] + (" STALE" if offer["stale"] else ""),
            offer["kind"],
            dollars(offer["usd_per_gpu_hour"]),
            dollars(offer["usd_per_hour"]),
            dollars(offer["usd_per_month"]),
        ]
        for offer in found.offers
    ]
    head = ["offers", "provider", "region", "date", "kind", f"$/{device}-h", "$/hour", "$/month"]
    return table(head, rows, words=(1, 2, 3), drop=(4, 6))


def remarks(found: Budget) -> list[str]:
    """Notes, folded."""
    from simulator.cli.layout import wrapped

    return [wrapped(f"  note: {note}", "        ") for note in found.notes]


# -- a sweep ------------------------------------------------------------------------------------------------


def of_sweep(
    folder: Path,
    overrides: Sequence[str],
    demand_requests_per_day: float | None,
    headroom: float,
    profile: Profile | None,
    today: dt.date,
) -> tuple[dict[str, Any], str]:
    """The cost of every point of a sweep, and the whole budget of the cheapest that keeps the SLO."""
    from hardware_profiles.errors import InputError
    from simulator.cli.layout import table, wrapped
    from simulator.planning.budget import counted
    from simulator.planning.store import read_sweep

    record = read_sweep(folder)
    points = [p for p in record["points"] if (folder / "runs" / p["run"]).is_dir()]
    if not points:
        raise InputError(
            "the sweep has no finished point", where=str(folder), mend="run it again with --resume"
        )
    found = [_point(folder, p, overrides, demand_requests_per_day, headroom, profile) for p in points]
    key = "fleet_usd_per_month" if demand_requests_per_day is not None or profile is not None else "usd_per_month"
    order = ["met", "", "close", "not judged", "missed"]
    found.sort(key=lambda p: (order.index(p["slo"]), p[key] is None, p[key] or p["usd_per_month"] or 0.0, p["point"]))
    best = found[0]
    varied = len(best["values"])
    head, rows = _rows(found, fleet_too=key.startswith("fleet"))
    run_folder = str(folder / "runs" / best["run"])
    wanted = demand_requests_per_day is not None or profile is not None
    fleet_of_best = (demand_requests_per_day, headroom, profile) if best["slo"] != "missed" else (None, headroom, None)
    data, words = of_run(*resolve(run_folder, overrides), *fleet_of_best, today)
    missing = len(record["points"]) - len(points)
    lines = [
        wrapped(f"{record['name']}: {counted(len(points), 'point')}, those that keep the SLO first, cheapest first", "  "),
        *table(head, rows, words=range(varied), drop=[i for i in (varied + 1, varied + 2, varied + 5) if i < len(head)]),
        *([f"  {counted(missing, 'point')} without a result"] if missing else []),
        *(_fleet_notes(found) if wanted else []),
        "",
        wrapped(f"the first of them, {_label(best)}:", "  "),
        words,
    ]
    columns = [{k: v for k, v in p.items() if k != "texts"} for p in found]
    return {"name": record["name"], "points": columns, "best": data}, "\n".join(lines)


def _point(
    folder: Path,
    point: Mapping[str, Any],
    overrides: Sequence[str],
    demand_requests_per_day: float | None,
    headroom: float,
    profile: Profile | None,
) -> dict[str, Any]:
    from hardware_profiles.errors import InputError
    from simulator.cost import HOURS_PER_MONTH
    from simulator.planning.budget import deployed, fleet, sustained
    from simulator.planning.points import judged

    row: dict[str, Any] = {"point": point["point"], "values": point["values"], "run": point["run"]}
    row |= dict.fromkeys(
        ("usd_per_hour", "usd_per_month", "replicas", "fleet_usd_per_hour", "fleet_usd_per_month")
    )
    try:
        result, _, price = resolve(str(folder / "runs" / point["run"]), overrides)
    except InputError as error:
        return {**row, "slo": "", "devices": None, "reason": error.message}
    row["slo"], row["devices"] = judged(result)[0], deployed(result)["devices"]
    row["usd_per_hour"] = row["devices"] * price.usd_per_gpu_hour
    row["usd_per_month"] = row["usd_per_hour"] * HOURS_PER_MONTH
    wanted = demand_requests_per_day is not None or profile is not None
    if wanted and row["slo"] == "missed":
        row["reason"] = "misses the SLO at this load: no number of replicas of it is known to keep it"
    elif wanted:
        needed = fleet(result, price, requests_per_day=demand_requests_per_day, headroom=headroom, profile=profile)
        row["saturated"] = sustained(result).saturated
        values = {line.what: line.value for line in needed.lines}
        row["replicas"] = int(values["replicas needed"] or 0)
        row["fleet_usd_per_hour"], row["fleet_usd_per_month"] = values["hour"], values["month"]
        row["survives_one_failure"] = (values["one replica fails"] or 0.0) >= 1 - 1e-9
    return row


def _fleet_notes(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the replicas for the demand rest on."""
    from simulator.cli.layout import wrapped

    notes = []
    if any(p["slo"] == "missed" for p in found):
        notes.append("a point that misses the SLO gets no fleet: what its replica carries within the SLO is not known")
    if any(p.get("saturated") is False for p in found):
        notes.append(
            "<= replicas: the run was not saturated, a replica carries at least what it was offered and fewer may do; "
            "sweep the rate and cost the highest that keeps the SLO"
        )
    return [wrapped(f"  note: {note}", "        ") for note in notes]


def _label(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{path.split('.')[-1]} {text}" for path, text in point["values"].items())


def _rows(found: Sequence[Mapping[str, Any]], fleet_too: bool) -> tuple[list[str], list[list[str]]]:
    from simulator.cli.sweep import short_names
    from simulator.report.numbers import dollars

    head = [*short_names(list(found[0]["values"])).values(), "SLO", "devices", "$/hour", "$/month"]
    if fleet_too:
        head += ["replicas for the demand", "fleet $/hour", "fleet $/month", "N+1"]
    rows = []
    for p in found:
        row = [
            *map(str, p["values"].values()),
            p["slo"] or "-",
            str(p["devices"] or "-"),
            dollars(p["usd_per_hour"]),
            dollars(p["usd_per_month"]),
        ]
        if fleet_too:
            survives = p.get("survives_one_failure")
            row += [
                ("<= " if p.get("saturated") is False else "") + str(p["replicas"]) if p["replicas"] else "-",
                dollars(p["fleet_usd_per_hour"]),
                dollars(p["fleet_usd_per_month"]),
                "-" if survives is None else "holds" if survives else "breaks",
            ]
        rows.append(row)
    return head, rows
