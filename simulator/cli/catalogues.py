"""`list` and `show`: what is known, with the source of every number."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hardware_profiles.errors import InputError, nearest
from simulator.cli.layout import GAP, pairs, table, wrapped
from simulator.report.numbers import count, quantity, short

if TYPE_CHECKING:
    from hardware_profiles.device import Device

LONGEST_LIST = 16
"""Values printed of a list; a longer one is counted."""
EVIDENCE = ("measured", "fitted", "datasheet", "assumed")
"""Kinds of constants, the firmest first."""
KINDS = ("engines", "hardware", "models", "traces", "scenarios")


def _kind(word: str) -> str:
    plural = word if word in KINDS else f"{word}s"
    if plural not in KINDS:
        close = nearest(word, list(KINDS))
        raise InputError(
            f"there is no catalogue of '{word}'" + (f"; did you mean '{close}'?" if close else ""),
            mend=f"one of {', '.join(KINDS)}",
        )
    return plural


def _engines() -> list[dict[str, Any]]:
    from engine_models.cost.overheads import own_overheads
    from engine_models.engines.known import engine_named, names
    from engine_models.engines.projects import PROJECTS

    out: list[dict[str, Any]] = []
    for name in names():
        try:
            engine = engine_named(name)
        except InputError as error:  # a plug-in that is broken keeps nobody from the others
            print(f"warning: {error.message}", file=sys.stderr)
            continue
        project = PROJECTS.get(engine.name)
        kinds = {str(entry["kind"]) for entry in own_overheads(engine.name).values()} or {"assumed"}
        out.append(
            {
                "name": engine.name,
                "newest": engine.newest,
                "versions": engine.releases,
                "recorded_steps_equal": project.steps if project else 0,
                "host_costs": sorted(kinds, key=EVIDENCE.index),
                "devices": list(engine.devices),
                "licence": project.licence if project else None,
                "state": project.state if project else "",
                "alive": project.alive if project else None,
            }
        )
    return out


def _hardware() -> list[dict[str, Any]]:
    from hardware_profiles.device import all_devices
    from hardware_profiles.kernel_model import fitted_models

    fitted: dict[str, list[str]] = {}
    for device, framework in fitted_models():
        fitted.setdefault(device, []).append(framework)
    return [
        {
            "name": d.name,
            "memory_gb": d.memory_bytes.value / 1e9,
            "bandwidth_gb_per_s": d.memory_bandwidth_bytes_per_s.value / 1e9,
            "bf16_tflops": d.peak_flops_per_s["bf16"].value / 1e12 if "bf16" in d.peak_flops_per_s else None,
            "formats": list(d.formats),
            "kernels": fitted.get(d.kernel_profile or d.name, []),
        }
        for d in all_devices()
    ]


def _models() -> list[dict[str, Any]]:
    from engine_models.model.architecture import (
        active_parameters,
        kv_bytes_per_token,
        load_architecture,
        parameters,
    )
    from engine_models.model.catalogue import model_names
    from engine_models.model.formats import format_named

    out = []
    for name in model_names():
        arch = load_architecture(name)
        out.append(
            {
                "name": name,
                "parameters": parameters(arch),
                "active_parameters": active_parameters(arch),
                "kv_bytes_per_token_bf16": kv_bytes_per_token(arch, format_named("bf16")),
                "context_tokens": arch.max_context_tokens,
                "weights": arch.quantization or arch.dtype,
            }
        )
    return out


def _traces() -> list[dict[str, Any]]:
    from simulator.workload.generators import mean_rate, names

    return [{"name": name, "requests_per_s": mean_rate(name)} for name in names()]


def _scenarios() -> list[dict[str, Any]]:
    from simulator.config.load import shipped_scenarios

    out = []
    for name, path in shipped_scenarios().items():
        head = []
        for line in path.read_text().splitlines():
            if not line.startswith("#"):
                break
            if "yaml-language-server" not in line:
                head.append(line.lstrip("# ").strip())
        out.append({"name": name, "question": " ".join(head).split("? ")[0].rstrip("?") + "?"})
    return out


def _entries(kind: str) -> list[dict[str, Any]]:
    return {"engines": _engines, "hardware": _hardware, "models": _models, "traces": _traces, "scenarios": _scenarios}[kind]()


def _cell(value: Any) -> str:
    if isinstance(value, list) and len(value) > LONGEST_LIST:
        return f"{len(value)} values (--json lists them)"
    if isinstance(value, list):
        return " ".join(str(v) for v in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return short(value)
    if isinstance(value, int):
        return f"{value:,}"
    return "-" if value is None else str(value)


Columns = dict[str, Callable[[dict[str, Any]], str]]


def _columns(kind: str) -> Columns:
    """Titles of a catalogue's columns, and how an entry fills them."""

    def told(key: str) -> Callable[[dict[str, Any]], str]:
        return lambda entry: _cell(entry[key])

    columns: dict[str, Columns] = {
        "hardware": {
            "memory": lambda e: f"{short(e['memory_gb'])} GB",
            "bandwidth": lambda e: f"{short(e['bandwidth_gb_per_s'])} GB/s",
            "bf16 TFLOP/s": told("bf16_tflops"),
            "formats": told("formats"),
            "kernels measured": told("kernels"),
        },
        "models": {
            "parameters": lambda e: count(e["parameters"]),
            "active": lambda e: count(e["active_parameters"]),
            "KV bytes a token": told("kv_bytes_per_token_bf16"),
            "context tokens": told("context_tokens"),
            "weights": told("weights"),
        },
        "engines": {
            "newest": told("newest"),
            "steps equal": lambda entry: _cell(entry["recorded_steps_equal"] or None),
            "host costs": told("host_costs"),
            "devices": told("devices"),
            "status": lambda entry: entry["state"] or (f"alive {entry['alive']}" if entry["alive"] else "-"),
            "versions": told("versions"),
        },
        "traces": {"requests/s": told("requests_per_s")},
    }
    return {"name": told("name"), **columns[kind]}


WORDS = {
    *("host costs", "formats", "kernels measured", "versions", "devices", "status"),
    *("meaning", "provider", "region", "unit", "flags", "they change"),
}
"""Columns of words, which may be folded; names are not, so that they can be copied."""
LEAST_WANTED = ("active", "context tokens", "weights", "kernels measured", "bf16 TFLOP/s", "region", "commitment")
"""Columns that a narrow terminal goes without, the first of them first."""


def list_command(kind: str, as_json: bool) -> None:
    """Print a catalogue."""
    kind = _kind(kind)
    entries = _entries(kind)
    if as_json:
        print(json.dumps(entries))
        return
    if kind == "scenarios":
        for entry in entries:
            print(entry["name"])
            print(wrapped(f"    {entry['question']}", "    "))
        return
    columns = _columns(kind)
    print("\n".join(_table(list(columns), [[show(e) for show in columns.values()] for e in entries], "")))


def _table(head: list[str], rows: list[list[str]], indent: str) -> list[str]:
    words = [i for i, title in enumerate(head) if title in WORDS]
    return table(head, rows, indent, words=words, drop=[head.index(title) for title in LEAST_WANTED if title in head])


def show_command(kind: str, name: str, as_json: bool) -> None:
    """Print one entry."""
    chosen = _kind(kind)
    report = {"hardware": _show_hardware, "models": _show_model, "engines": _show_engine, "traces": _show_trace,
              "scenarios": _show_scenario}[chosen](name)  # fmt: skip
    if as_json:
        print(json.dumps(report, default=str))
        return
    _print(report)


def _print(report: dict[str, Any]) -> None:
    plain = {key: value for key, value in report.items() if not _nested(value)}
    names = max([SHORTEST_NAME, *map(len, plain)])
    for key, value in report.items():
        if isinstance(value, list) and _nested(value):
            print(f"\n{key}")
            print("\n".join(_sourced(value)))
        elif isinstance(value, dict):
            print(f"\n{key}")
            print("\n".join(pairs([(inner, _cell(content)) for inner, content in value.items()], GAP, SHORTEST_INNER)))
        elif isinstance(value, str) and "\n" in value:
            print(value)
        else:
            print("\n".join(pairs([(key, _cell(value))], "", names)))


SHORTEST_NAME, SHORTEST_INNER = 24, 30
"""Columns of a name at least, so that values of several groups stand below one another."""


def _nested(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def _sourced(entries: list[dict[str, Any]]) -> list[str]:
    """A table of entries; where they name a source, kind, date and source stand below it, each once."""
    told: dict[str, int] = {}
    rows = []
    for entry in entries:
        row = {key: _cell(value) for key, value in entry.items() if key not in ("unit", "kind", "date", "source")}
        if "unit" in entry:
            row["value"] = quantity(float(entry["value"]), str(entry["unit"]))
        if "source" in entry:
            words = ": ".join(filter(None, [", ".join(filter(None, (entry.get("kind"), entry.get("date")))), entry["source"]]))
            row["source"] = f"[{told.setdefault(words, len(told) + 1)}]"
        elif "date" in entry:
            row["date"] = _cell(entry["date"])
        rows.append(row)
    head = list(rows[0])
    lines = _table(head, [list(row.values()) for row in rows], GAP)
    mark = len(f"[{len(told)}]")
    return lines + [wrapped(f"{GAP}{f'[{n}]'.rjust(mark)} {words}", " " * (len(GAP) + mark + 1)) for words, n in told.items()]


def _show_hardware(name: str) -> dict[str, Any]:
    from hardware_profiles.device import device_word, load_device, provenance
    from hardware_profiles.kernel_model import fitted_models, load_kernel_model
    from hardware_profiles.law_constants import laws_of
    from hardware_profiles.prices import is_stale, prices_for

    device = load_device(name)
    report: dict[str, Any] = {"name": device.name, "title": device.title, "formats": list(device.formats)}
    report["numbers"] = [
        {"number": r["what"], **{k: r[k] for k in ("value", "unit", "kind", "date", "source")}} for r in provenance(device)
    ]
    for key, framework in fitted_models():
        if key == (device.kernel_profile or device.name):
            model = load_kernel_model(key, framework)
            report[f"kernels {framework}: error on unseen shapes [%]"] = dict(model.held_out_error)
    if not any(key.startswith("kernels ") for key in report):
        report["kernels"] = _unmeasured_kernels(device)
    report["laws of kernels: error on chips left out [%]"] = [
        {"kernels": family, "decoding": f"{law.off_pct[0]:.0f}", "prompts": f"{law.off_pct[1]:.0f}"}
        for family, law in laws_of(device).items()
    ]
    import datetime

    today = datetime.date.today()
    report[f"prices [USD per {device_word(device.name)}-hour]"] = [
        {
            "provider": p.provider,
            "region": p.region,
            "commitment": p.commitment,
            "usd": p.usd_per_gpu_hour.value,
            "date": p.usd_per_gpu_hour.date,
            "stale": "stale" if is_stale(p, today) else "",
        }
        for p in prices_for(device.name)
    ]
    return report


def _unmeasured_kernels(device: Device) -> str:
    """Where the kernel times of a device without fits come from."""
    from engine_models.engines.known import EXAMPLE, engine_named
    from hardware_profiles.kernel_borrow import borrowing
    from hardware_profiles.kernels import operations_of

    if "bf16" not in device.peak_flops_per_s and "fp16" not in device.peak_flops_per_s:
        return "datasheet rates and typical efficiencies; none measured"
    kernels = operations_of(device, engine_named(EXAMPLE).kernels)
    if "law" in kernels.provenance:
        error = f"{kernels.provenance['law_error_pct']:.0f} %"
        return f"datasheet rates and efficiencies of {kernels.provenance['law']}; about {error} off where it was not fitted"
    return borrowing(kernels) or "datasheet rates and typical efficiencies; none measured"


def _show_model(name: str) -> dict[str, Any]:
    from engine_models.model.architecture import (
        active_parameters,
        kv_bytes_per_token,
        load_architecture,
        parameters,
        state_bytes_per_sequence,
        tensor_parallel_sizes,
        tower_parameters,
        weight_bytes,
    )
    from engine_models.model.catalogue import find_model
    from engine_models.model.formats import format_named
    from engine_models.model.words import mixers_in_words, mlps_in_words

    arch = load_architecture(name)
    entry = find_model(name)
    assumed = [said for said in arch.assumed if entry is None or entry.source not in said]
    weights = format_named(arch.quantization or arch.dtype)
    own = [f", {part} in {name}" for part, name in arch.part_formats]
    tower, state = tower_parameters(arch), state_bytes_per_sequence(arch)
    return {
        "name": arch.name,
        "parameters": parameters(arch),
        "active parameters": active_parameters(arch),
        **({"parameters of the vision tower": tower} if tower else {}),
        "weights": "".join((weights.name, *own, f", {weight_bytes(arch, weights) / 1e9:,.1f} GB")),
        "KV bytes per token (bf16)": kv_bytes_per_token(arch, format_named("bf16")),
        **{
            f"KV bytes per token ({name}, as engines keep it)": kv_bytes_per_token(arch, format_named(name))
            for name in (arch.kv_format,)
            if name != arch.dtype
        },
        **({"state bytes per sequence": state} if state else {}),
        "context tokens": arch.max_context_tokens,
        "layers": arch.layers,
        "hidden": arch.hidden,
        "vocabulary": arch.vocab,
        "attention": mixers_in_words(arch),
        "MLP": mlps_in_words(arch),
        "tensor parallel sizes": tensor_parallel_sizes(arch, at_most=16),
        "source": entry.source if entry else "given",
        **({"assumed": "; ".join(assumed)} if assumed else {}),
    }


def _show_engine(name: str) -> dict[str, Any]:
    from engine_models.cost.overheads import load_overheads
    from engine_models.engines.known import engine_named, split
    from engine_models.engines.projects import PROJECTS

    engine = engine_named(name)
    version = engine.version(split(name)[1])
    switches = engine.switches(version)
    report: dict[str, Any] = {"name": engine.name, "title": engine.title, "version": version, "versions": engine.releases}
    if engine.rule:
        report["rule"] = engine.rule
    report["devices"] = list(engine.devices)
    if project := PROJECTS.get(engine.name):
        report |= {"licence": project.licence, "newest sign of life": f"{project.alive} ({project.seen})"}
        if project.state:
            report["state"] = project.state
        report["recorded steps equal"] = project.steps or "none recorded: timelines worked by hand"
    for key, offered in (("formats", engine.formats), ("features", engine.features)):
        report[key] = [
            {"name": name, "devices": support.words, "source": support.source}
            for name, support in offered.items()
        ]
    if switches:
        report["switches"] = {"name": version, **switches}
    report["flags"] = {
        name: "engine's choice" if flag.default is None else str(flag.default)
        for name, flag in engine.flags().modelled.items()
    }
    unread = engine.flags().unread.items()
    for title, refused in (("flags that are not read, with a warning", False), ("flags that are refused", True)):
        changes = sorted({flag.changes for _, flag in unread if flag.changes and flag.refused is refused})
        if changes:
            report[title] = [
                {"they change": what, "flags": [name for name, flag in unread if (flag.changes, flag.refused) == (what, refused)]}
                for what in changes
            ]
    shown = load_overheads(engine.name, engine.overheads_from).provenance
    report["overheads"] = [{"name": k, **v} for k, v in shown.items()]
    return report


def _show_trace(name: str) -> dict[str, Any]:
    from simulator.workload.generators import mean_rate, names, parameters

    if name not in names():
        close = nearest(name, names())
        raise InputError(
            f"no shipped trace '{name}'" + (f"; did you mean '{close}'?" if close else ""),
            mend=f"one of {', '.join(names())}; for a file use `capacity-plan trace describe FILE`",
        )
    return {"name": name, "requests_per_s": mean_rate(name), **parameters(name)}


def _show_scenario(name: str) -> dict[str, Any]:
    from simulator.config.load import shipped_scenarios

    known = shipped_scenarios()
    if name not in known:
        close = nearest(name, list(known))
        raise InputError(
            f"no shipped scenario '{name}'" + (f"; did you mean '{close}'?" if close else ""),
            mend=f"one of {', '.join(known)}",
        )
    return {"text": known[name].read_text()}
