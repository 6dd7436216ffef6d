"""Result files of other tools, read into the names and meanings of this one.

    vllm bench serve    --save-result            one flat object (or one a line, with --append-result)
    SGLang              bench_serving            one object a line
    aiperf              profile_export_aiperf.json, .csv, or the requests themselves: profile_export.jsonl
    guidellm            benchmarks.json, .yaml, .csv   several benchmarks in one file
    inference-perf      summary_lifecycle_metrics.json, stage_N_lifecycle_metrics.json, or the requests themselves:
                        per_request_lifecycle_metrics.json

The same word means different things there. Here, as in vLLM's benchmark, TPOT = (E2E - TTFT) / (n - 1) of a request and ITL
are the gaps between tokens pooled over all requests; `ntpot_ms` = E2E / n, which includes the first token.

    ours      vllm, SGLang   aiperf                 guidellm                     inference-perf
    tpot_ms   tpot           inter_token_latency    inter_token_latency_ms       time_per_output_token
    itl_ms    itl            inter_chunk_latency    -                            inter_token_latency
    ntpot_ms  -              -                      time_per_output_token_ms     normalized_time_per_output_token
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.files import parse_json, read_text, without_cut_line
from hardware_profiles.records import dataclass
from simulator.results.statistics import PERCENTILES
from simulator.workload.clients import aiperf_failed, aiperf_value, perf_request
from simulator.workload.tables import yaml_document

VLLM_BENCH = "vllm bench serve"
SGLANG_BENCH = "SGLang bench_serving"
KINDS = (VLLM_BENCH, SGLANG_BENCH, "aiperf", "guidellm", "inference-perf")
OTHER_KINDS = {"llm-d": "it looks like an llm-d benchmark report"}
"""What other tools write, in words."""

LARGEST = 1e30
"""Numbers beyond it, and NaN, are taken for missing (assumed)."""

Json = Mapping[str, Any]
Stats = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """One measurement.

    label : file, and which of its benchmarks. kind : the tool. metrics : {name: {statistic: value}}, latencies in ms.
    totals : rates per second, counts, `vllm_duration_s`. facts : what the file says of its load. notes : how its
    words were mapped. not_numbers : the file's names of single values that are NaN, which none of these holds.
    """

    label: str
    kind: str
    metrics: dict[str, Stats]
    totals: dict[str, float]
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()
    not_numbers: tuple[str, ...] = ()


def read_measured(path: Path) -> list[Measured]:
    """Return the measurements in a result file, its tool recognised by its keys.

    Raises InputError for a file of another kind, naming those known and what was found.
    """
    documents = _documents(path)
    if any(_is_of_llama_bench(document) for document in documents):
        raise _unknown(path, "it looks like a result of llama-bench, which `capacity-plan calibrate results` reads")
    if all(_is_aiperf_record(document) for document in documents):
        return [_aiperf_requests(documents, path)]
    if len(documents) == 1 and _are_perf_records(documents[0]):
        return [_perf_requests(documents[0], path)]
    found: list[Measured] = []
    for number, document in enumerate(documents):
        label = path.name if len(documents) == 1 else f"{path.name}#{number}"
        first, *others = _read_one(document, label, path)
        found += [replace(first, not_numbers=tuple(_not_numbers(document))), *others]
    return found


def _not_numbers(document: Any, before: str = "") -> Iterator[str]:
    """Keys of a result, dotted, whose value is NaN; of the lists in it only guidellm's benchmarks are walked."""
    for key, value in document.items() if isinstance(document, dict) else ():
        for child in value if key == "benchmarks" and isinstance(value, list) else [value]:
            if isinstance(child, float) and math.isnan(child):
                yield f"{before}{key}"
            yield from _not_numbers(child, f"{before}{key}.")


def _documents(path: Path) -> list[Any]:
    text = without_cut_line(read_text(path))
    if path.suffix.lower() in (".yaml", ".yml"):
        return [yaml_document(text, str(path))]
    if path.suffix.lower() == ".csv":
        return [_table(text, path)]
    try:
        return [parse_json(text)]
    except ValueError as whole:
        lines = [line for line in text.splitlines() if line.strip()]
        try:
            if len(lines) < 2:
                raise whole
            return [parse_json(line) for line in lines]
        except ValueError:
            raise _unknown(path, "it is not JSON" if text.strip() else "it is empty") from None


def _is_of_llama_bench(document: Any) -> bool:
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, dict) and ({"n_prompt", "n_gen", "avg_ns"} <= first.keys() or {"pp", "tg", "pl"} <= first.keys())


class UnknownResultError(InputError):
    """A file that is no result of a known client."""


def _unknown(path: Path, why: str) -> UnknownResultError:
    return UnknownResultError(
        f"this is no result of a client that is known: {why}",
        where=str(path),
        mend=f"name a run folder, or a result file of {', '.join(KINDS)}",
    )


def _read_one(document: Any, label: str, path: Path) -> list[Measured]:
    if isinstance(document, list):
        raise _unknown(path, f"it is a list of {len(document)} entries, not one result")
    if not isinstance(document, dict):
        raise _unknown(path, "it is not a JSON object")
    kind = sniff(document)
    try:
        if kind in (VLLM_BENCH, SGLANG_BENCH):
            found = [_bench_serving(document, label, kind)]
        elif kind == "aiperf":
            found = [_aiperf(document, label)]
        elif kind == "guidellm":
            found = _guidellm(document, label)
        elif kind == "inference-perf":
            found = [_inference_perf(document, label)]
        else:
            raise _unknown(path, kind or f"its keys are {', '.join(map(str, list(document)[:6])) or 'none'}")
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"looks like a result of {kind}, but {type(error).__name__}: {error}",
            where=str(path),
            mend="check that the file is complete",
        ) from None
    if not any(m.metrics or m.totals.get("output_throughput") for m in found):
        raise InputError(
            f"a result of {kind} without any latency or rate", where=str(path), mend="check that requests succeeded"
        )
    return found


def sniff(document: Json) -> str | None:
    """Return the tool that wrote `document`; None, or words on what it is instead, for any other."""
    keys = document.keys()
    if isinstance(document.get("benchmarks"), list):
        first = next(iter(document["benchmarks"]), None)
        return "guidellm" if isinstance(first, dict) and "metrics" in first else None
    if {"successes", "load_summary"} <= keys or {"successes", "failures"} <= keys:
        return "inference-perf"
    latency = document.get("request_latency") or document.get("time_to_first_token")
    if isinstance(latency, dict) and {"unit", "avg"} <= latency.keys():
        return "aiperf"
    if "mean_e2e_latency_ms" in keys or "sharegpt_output_len" in keys:
        return SGLANG_BENCH
    if {"results", "run", "scenario"} <= keys and "version" in keys:
        return OTHER_KINDS["llm-d"]
    if "mean_ttft_ms" in keys or {"request_throughput", "completed", "duration"} <= keys:
        return VLLM_BENCH
    return None


def _number(value: Any) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST
    return float(value) if good else None


def _numbers(pairs: Mapping[str, Any]) -> dict[str, float]:
    return {name: number for name, value in pairs.items() if (number := _number(value)) is not None}


# -- vllm bench serve, and SGLang's bench_serving, which was made from it -----------------------------------

_VLLM_STATS = {"mean": "mean", "median": "p50", "std": "std"}
_VLLM_FACTS = (
    "model_id", "backend", "dataset_name", "request_rate", "burstiness", "max_concurrency", "num_prompts", "date",
    "tensor_parallel_size",
)  # fmt: skip


def _bench_serving(document: Json, label: str, kind: str) -> Measured:
    metrics: dict[str, Stats] = {}
    for key, value in document.items():
        statistic, _, rest = key.partition("_")
        metric = rest.removesuffix("_ms").replace("e2e_latency", "e2el")
        number = _number(value)
        if rest.endswith("_ms") and metric in ("ttft", "tpot", "itl", "e2el") and number is not None:
            name = _VLLM_STATS.get(statistic, statistic.replace(".", "_"))
            metrics.setdefault(f"{metric}_ms", {})[name] = number
    completed = document.get("completed")
    if completed:
        for name, key in (("input_tokens", "total_input_tokens"), ("output_tokens", "total_output_tokens")):
            total = _number(document.get(key))
            if total is not None:
                metrics[name] = {"mean": total / completed}
    totals = _numbers(
        {
            "vllm_duration_s": document.get("duration"),
            "completed": completed,
            "failed": document.get("failed"),
            "request_throughput": document.get("request_throughput"),
            "request_goodput": document.get("request_goodput"),
            "output_throughput": document.get("output_throughput"),
            "total_token_throughput": document.get("total_token_throughput"),
            "max_concurrent_requests": document.get("max_concurrent_requests"),
        }
    )
    both = [totals.get("output_throughput"), _number(document.get("input_throughput"))]
    if "total_token_throughput" not in totals and None not in both:
        totals["total_token_throughput"] = sum(value or 0.0 for value in both)
    facts = {key: document[key] for key in _VLLM_FACTS if document.get(key) is not None}
    notes = (
        ("ITL counts one gap a streamed chunk, which may hold several tokens",) if "itl_ms" in metrics else ()
    )
    return Measured(label, kind, metrics, totals, facts, notes)


# -- aiperf -------------------------------------------------------------------------------------------------

_TO_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "seconds": 1e3, "us": 1e-3, "ns": 1e-6}
_AIPERF_LATENCIES = {
    "time_to_first_token": "ttft_ms",
    "inter_token_latency": "tpot_ms",
    "inter_chunk_latency": "itl_ms",
    "request_latency": "e2el_ms",
}
_AIPERF_LENGTHS = (("input_sequence_length", "input_tokens"), ("output_sequence_length", "output_tokens"))
_AIPERF_TOTALS = {
    "request_throughput": "request_throughput",
    "goodput": "request_goodput",
    "output_token_throughput": "output_throughput",
    "total_token_throughput": "total_token_throughput",
    "request_count": "completed",
    "error_request_count": "failed",
}


def _aiperf(document: Json, label: str) -> Measured:
    metrics: dict[str, Stats] = {}
    for key, name in _AIPERF_LATENCIES.items():
        if isinstance(document.get(key), dict):
            metrics[name] = _aiperf_stats(document[key], _TO_MS[document[key]["unit"]])
    for key, name in _AIPERF_LENGTHS:
        if isinstance(document.get(key), dict):
            metrics[name] = _aiperf_stats(document[key], 1.0)
    averages = {key: value.get("avg") for key, value in document.items() if isinstance(value, dict)}
    totals = _numbers({name: averages.get(key) for key, name in _AIPERF_TOTALS.items()})
    duration = document.get("benchmark_duration")
    if isinstance(duration, dict) and _number(duration.get("avg")) is not None:
        totals["vllm_duration_s"] = float(duration["avg"]) * _TO_MS[duration["unit"]] / 1e3
    facts = {
        key: document[key] for key in ("aiperf_version", "benchmark_id", "start_time") if document.get(key)
    }
    facts |= _aiperf_load(document.get("input_config"))
    notes = ["its inter_token_latency is a request's mean gap: shown as TPOT"]
    if "itl_ms" in metrics:
        notes.append("its inter_chunk_latency is shown as ITL: one gap a chunk")
    if document.get("was_cancelled"):
        notes.append("the benchmark was cancelled before its end")
    return Measured(label, "aiperf", metrics, totals, facts, tuple(notes))


def _aiperf_load(config: Any) -> dict[str, Any]:
    """Model, rate and concurrency by the configuration that aiperf saves: of its phases, or of its load generator before 0.10."""
    config = config if isinstance(config, dict) else {}
    items = _mapping(config.get("models")).get("items")
    names = _mapping(config.get("endpoint")).get("model_names") or [_mapping(item).get("name") for item in items or []]
    phases = [_mapping(phase) for phase in config.get("phases") or [] if _mapping(phase).get("kind", "profiling") == "profiling"]
    load = {**_mapping(config.get("loadgen")), **(phases[-1] if phases else {})}
    found = {"model_id": names[0] if names else None, "request_rate": load.get("rate", load.get("request_rate"))}
    found |= {"max_concurrency": load.get("concurrency"), "arrivals": load.get("type", load.get("request_rate_mode"))}
    return {key: value for key, value in found.items() if isinstance(value, str | int | float)}


def _mapping(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _aiperf_stats(block: Json, factor: float) -> Stats:
    named = {**{key: key for key in block if key != "unit"}, "avg": "mean"}
    return {
        named[key]: number * factor if key != "count" else number
        for key, value in block.items()
        if key in named and (number := _number(value)) is not None
    }


def _aiperf_table(rows: list[list[str]]) -> Json:
    """aiperf's profile_export_aiperf.csv: a table of statistics by metric and unit, one of single values, others."""
    document: dict[str, dict[str, Any]] = {}
    head: list[str] = []
    for row in rows:
        if row[:1] == ["Metric"]:
            head = ["avg" if name == "Value" else name for name in row[1:]]
        elif not row or len(row) != len(head) + 1:  # the end of a table, and what comes after it
            head = []
        else:
            name, _, unit = row[0].partition(" (")
            numbers = {key: value for key, cell in zip(head, row[1:], strict=True) if (value := _parsed(cell)) is not None}
            document[name.lower().replace(" ", "_")] = {"unit": unit.removesuffix(")"), **numbers}
    return document


def _is_aiperf_record(document: Any) -> bool:
    return isinstance(document, dict) and {"metadata", "metrics"} <= document.keys()


def _aiperf_requests(records: list[Any], path: Path) -> Measured:
    """The statistics of aiperf's per-request records."""
    good = [record for record in records if not aiperf_failed(record)]
    metrics = {
        name: stats
        for key, name in (*_AIPERF_LATENCIES.items(), *_AIPERF_LENGTHS)
        if (stats := _stats_of(good, key))
    }
    if "ttft_ms" not in metrics and "e2el_ms" not in metrics:
        raise InputError("records of aiperf without any latency", where=str(path), mend="check that requests succeeded")
    times = [
        (number, end)
        for record in good
        if (number := _number(record["metadata"].get("request_start_ns"))) is not None
        and (end := _number(record["metadata"].get("request_end_ns"))) is not None
    ]
    duration_s = (max(end for _, end in times) - min(start for start, _ in times)) / 1e9 if times else 0.0
    totals: dict[str, float] = {"completed": len(good), "failed": len(records) - len(good)}
    if duration_s > 0:
        sums = {name: metrics[name]["mean"] * metrics[name]["count"] for _, name in _AIPERF_LENGTHS if name in metrics}
        totals |= {"vllm_duration_s": duration_s, "request_throughput": len(good) / duration_s}
        if len(sums) == len(_AIPERF_LENGTHS):
            totals["output_throughput"] = sums["output_tokens"] / duration_s
            totals["total_token_throughput"] = sum(sums.values()) / duration_s
    notes = ("its inter_token_latency is a request's mean gap: shown as TPOT", f"counted here from {len(good)} requests")
    return Measured(path.name, "aiperf", metrics, totals, {}, notes)


def _stats_of(records: list[Any], key: str) -> Stats:
    """Statistics of a metric over records, of lists over all their values; empty if none has it."""
    values: list[float] = []
    for record in records:
        found = aiperf_value(record, key)
        factor = _TO_MS.get(str((record["metrics"].get(key) or {}).get("unit")), 1.0) if key in _AIPERF_LATENCIES else 1.0
        numbers = (_number(value) for value in (found if isinstance(found, list) else [found]))
        values += [number * factor for number in numbers if number is not None]
    return _stats(values)


def _stats(values: list[float]) -> Stats:
    """Mean, deviation, percentiles and count of values; empty if there is none."""
    import numpy as np

    if not values:
        return {}
    percentiles = zip(PERCENTILES, np.percentile(values, PERCENTILES).tolist(), strict=True)
    named = {f"p{percent:g}".replace(".", "_"): value for percent, value in percentiles}
    return {"mean": float(np.mean(values)), "std": float(np.std(values)), **named, "count": float(len(values))}


# -- guidellm -----------------------------------------------------------------------------------------------

_GUIDELLM_LATENCIES = {
    "time_to_first_token_ms": ("ttft_ms", 1.0),
    "inter_token_latency_ms": ("tpot_ms", 1.0),
    "time_per_output_token_ms": ("ntpot_ms", 1.0),
    "request_latency": ("e2el_ms", 1e3),
    "prompt_token_count": ("input_tokens", 1.0),
    "output_token_count": ("output_tokens", 1.0),
}
_GUIDELLM_TOTALS = {
    "requests_per_second": "request_throughput",
    "output_tokens_per_second": "output_throughput",
    "tokens_per_second": "total_token_throughput",
}
_GUIDELLM_STATS = {
    "mean": "mean",
    "median": "p50",
    "std_dev": "std",
    "min": "min",
    "max": "max",
    "count": "count",
}


def _guidellm(document: Json, label: str) -> list[Measured]:
    benchmarks = document["benchmarks"]
    return [
        _guidellm_one(benchmark, label if len(benchmarks) == 1 else f"{label}#{number}")
        for number, benchmark in enumerate(benchmarks)
    ]


def _guidellm_one(benchmark: Json, label: str) -> Measured:
    found = benchmark["metrics"]
    metrics: dict[str, Stats] = {}
    for key, (name, factor) in _GUIDELLM_LATENCIES.items():
        block = (found.get(key) or {}).get("successful")
        if block and block.get("count", 1):
            metrics[name] = _guidellm_stats(block, factor)
    totals = _numbers(
        {
            name: ((found.get(key) or {}).get("successful") or {}).get("mean")
            for key, name in _GUIDELLM_TOTALS.items()
        }
    )
    counts = found.get("request_totals") or {}
    totals |= _numbers(
        {
            "completed": counts.get("successful"),
            "failed": counts.get("errored"),
            "unfinished": counts.get("incomplete"),
        }
    )
    config = benchmark.get("config") or {}
    strategy = config.get("strategy") if isinstance(config.get("strategy"), dict) else {}
    facts = {k: v for k, v in (strategy or {}).items() if isinstance(v, str | int | float)}
    if isinstance(model := _mapping(config.get("backend")).get("model"), str):
        facts["model_id"] = model
    notes = (
        "its inter_token_latency is the time per output token after the first: shown as TPOT",
        "its time_per_output_token includes the first token: shown as E2E / n",
    )
    return Measured(label, "guidellm", metrics, totals, facts, notes)


def _guidellm_stats(block: Json, factor: float) -> Stats:
    out = {}
    for key, name in _GUIDELLM_STATS.items():
        number = _number(block.get(key))
        if number is not None:
            out[name] = number if name == "count" else number * factor
    percentiles = {
        "p0_1" if key == "p001" else "p99_9" if key == "p999" else "p" + key[1:].lstrip("0"): value
        for key, value in (block.get("percentiles") or {}).items()
    }
    return out | {name: number * factor for name, number in _numbers(percentiles).items()}


_GUIDELLM_COLUMNS = {
    ("Request Latency", "Successful Sec"): "request_latency",
    ("Time to First Token", "Successful ms"): "time_to_first_token_ms",
    ("Time per Output Token", "Successful ms"): "time_per_output_token_ms",
    ("Inter Token Latency", "Successful ms"): "inter_token_latency_ms",
    ("Token Metrics", "Successful Input Tokens"): "prompt_token_count",
    ("Token Metrics", "Successful Output Tokens"): "output_token_count",
    ("Server Throughput", "Successful Requests/Sec"): "requests_per_second",
    ("Token Throughput", "Successful Output Tokens/Sec"): "output_tokens_per_second",
    ("Token Throughput", "Successful Total Tokens/Sec"): "tokens_per_second",
}
"""Group and name of the columns of benchmarks.csv -> the metric of benchmarks.json."""
_GUIDELLM_LISTED = ("min", "p001", "p01", "p05", "p10", "p25", "p75", "p90", "p95", "p99", "max")
"""What its column "Percentiles" lists, in order."""


def _table(text: str, path: Path) -> Json:
    """A CSV of guidellm or aiperf as the document that its JSON would be, as far as it goes."""
    import csv

    try:
        rows = list(csv.reader(text.splitlines(), strict=True))
    except csv.Error as error:
        raise _unknown(path, f"it is no valid CSV ({error})") from None
    if rows and rows[0][:2] == ["Metric", "avg"]:
        return _aiperf_table(rows)
    if len(rows) < 4 or not rows[0] or rows[0][0] != "Run Info" or len(set(map(len, rows))) > 1:
        raise _unknown(path, "it is a CSV that is not guidellm's or aiperf's")
    head = list(zip(*rows[:3], strict=True))
    return {"benchmarks": [_guidellm_row(head, row) for row in rows[3:]]}


def _guidellm_row(head: list[tuple[str, ...]], row: list[str]) -> Json:
    metrics: dict[str, Any] = {}
    strategy: dict[str, Any] = {}
    for (group, name, statistic), cell in zip(head, row, strict=True):
        if (group, name) == ("Benchmark", "Strategy"):
            strategy |= _guidellm_strategy(cell)
        elif group == "Request Counts":
            metrics.setdefault("request_totals", {})[name.lower()] = _parsed(cell)
        elif (key := _GUIDELLM_COLUMNS.get((group, name))) is not None:
            block = metrics.setdefault(key, {"successful": {"percentiles": {}}})["successful"]
            if statistic == "Percentiles":
                values = [_parsed(part) for part in cell.strip("[] ").split(",")]
                listed = dict(zip(_GUIDELLM_LISTED, values, strict=True))
                block |= {end: listed.pop(end) for end in ("min", "max")}
                block["percentiles"] |= listed
            else:
                block[statistic.lower().replace(" ", "_")] = _parsed(cell)
                if statistic == "Median":
                    block["percentiles"]["p50"] = _parsed(cell)
    return {"metrics": metrics, "config": {"strategy": strategy}}


def _guidellm_strategy(cell: str) -> dict[str, Any]:
    """A strategy as its JSON has it, of words such as ``concurrent@4`` and ``poisson@2.50``."""
    kind, _, number = cell.partition("@")
    value = _parsed(number)
    named = {"concurrent": "streams", "throughput": "max_concurrency", "constant": "rate", "poisson": "rate"}
    return {"type_": kind} | ({named[kind]: value} if kind in named and value is not None else {})


def _parsed(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


# -- inference-perf -----------------------------------------------------------------------------------------

_PERF_LATENCIES = {
    "time_to_first_token": "ttft_ms",
    "time_per_output_token": "tpot_ms",
    "normalized_time_per_output_token": "ntpot_ms",
    "inter_token_latency": "itl_ms",
    "request_latency": "e2el_ms",
}
_PERF_LENGTHS = (
    ("prompt_len", "input_tokens"), ("output_len", "output_tokens"), ("prompt_tokens", "input_tokens"),
    ("output_tokens", "output_tokens"),
)  # fmt: skip
"""Lengths by the client (up to 0.6), then by the server."""
_PERF_TOTALS = {
    "requests_per_sec": "request_throughput",
    "output_tokens_per_sec": "output_throughput",
    "total_tokens_per_sec": "total_token_throughput",
    "input_tokens_per_sec": "input_throughput",
}


def _inference_perf(document: Json, label: str) -> Measured:
    good = document["successes"]
    metrics: dict[str, Stats] = {}
    for key, name in _PERF_LATENCIES.items():
        block = (good.get("latency") or {}).get(key)
        if isinstance(block, dict):
            metrics[name] = _perf_stats(block, 1e3)
    for key, name in _PERF_LENGTHS:
        if isinstance(good.get(key), dict):
            metrics[name] = _perf_stats(good[key], 1.0)
    rates = good.get("throughput") or {}
    totals = _numbers({name: rates.get(key) for key, name in _PERF_TOTALS.items()})
    totals |= _numbers(
        {"completed": good.get("count"), "failed": (document.get("failures") or {}).get("count")}
    )
    load = document.get("load_summary") or {}
    facts = _numbers({key: load.get(key) for key in ("requested_rate", "achieved_rate", "send_duration")})
    totals |= _numbers({"vllm_duration_s": document.get("benchmark_time_seconds")})
    if (clients := _number(load.get("concurrency"))) is not None:  # a stage of so many clients, whose rate is no target
        facts = {"max_concurrency": clients}
    notes = ["its normalized_time_per_output_token is shown as E2E / n"]
    if "itl_ms" in metrics:
        notes.append("its ITL gives the tokens of one chunk gaps of zero")
    return Measured(label, "inference-perf", metrics, totals, dict(facts), tuple(notes))


def _perf_stats(block: Json, factor: float) -> Stats:
    names = {"median": "p50"}
    stats = {key: n for key, n in _numbers(block).items() if key not in ("total", "cached", "uncached")}
    return {names.get(key, key.replace(".", "_")): n * factor for key, n in stats.items()}


def _are_perf_records(document: Any) -> bool:
    keys = {"start_time", "end_time", "info"}
    return isinstance(document, list) and bool(document) and all(isinstance(r, dict) and keys <= r.keys() for r in document)


def _perf_requests(records: list[Any], path: Path) -> Measured:
    """The statistics of inference-perf's per-request records: times in seconds, the output's one a token of a chunk."""
    found = [perf_request(record) for record in records]
    values: dict[str, list[float]] = {
        name: [] for name in ("ttft_ms", "tpot_ms", "itl_ms", "ntpot_ms", "e2el_ms", "input_tokens", "output_tokens")
    }
    spans: list[tuple[float, float]] = []
    for request in found:
        start, end = _number(request.start_s), _number(request.end_s)
        if request.failed or start is None or end is None:
            continue
        spans.append((start, end))
        values["e2el_ms"].append(1e3 * (end - start))
        for name, tokens in (("input_tokens", _number(request.prompt)), ("output_tokens", _number(request.output))):
            values[name] += [] if tokens is None else [tokens]
        listed = request.token_times_s if isinstance(request.token_times_s, list) else []
        times = [number for time in listed if (number := _number(time)) is not None]
        outputs = _number(request.output) or len(times)
        values["ntpot_ms"] += [1e3 * (end - start) / outputs] if outputs else []
        if times:
            values["ttft_ms"].append(1e3 * (times[0] - start))
            values["itl_ms"] += [1e3 * (later - one) for one, later in pairwise(times)]
            values["tpot_ms"] += [1e3 * (times[-1] - times[0]) / (outputs - 1)] if outputs > 1 else []
    metrics = {name: stats for name, some in values.items() if (stats := _stats(some))}
    if not metrics:
        raise InputError("records of inference-perf without any latency", where=str(path), mend="check that requests succeeded")
    totals: dict[str, float] = {"completed": len(spans), "failed": len(found) - len(spans)}
    duration_s = max(end for _, end in spans) - min(start for start, _ in spans)
    if duration_s > 0:
        totals |= {"vllm_duration_s": duration_s, "request_throughput": len(spans) / duration_s}
        totals["output_throughput"] = sum(values["output_tokens"]) / duration_s
        totals["total_token_throughput"] = (sum(values["input_tokens"]) + sum(values["output_tokens"])) / duration_s
    notes = (f"counted here from {len(spans)} requests", "its ITL gives the tokens of one chunk gaps of zero")
    return Measured(path.name, "inference-perf", metrics, totals, {}, notes)
