"""Per-request records of benchmark clients, which replay as what was sent.

    vllm bench serve  --save-result --save-detailed   one JSON object, or one a line, whose lists hold a value a request
    SGLang            bench_serving --output-details  the same, one object a line; no times
    aiperf            profile_export.jsonl            one object a line and request
    guidellm          benchmarks.json, .yaml          requests.successful of each benchmark
    inference-perf    per_request_lifecycle_metrics.json   one object a request, in a list
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from hardware_profiles.errors import InputError
from hardware_profiles.records import dataclass
from simulator.workload.columns import FloatArray
from simulator.workload.rows import Raw
from simulator.workload.tables import Table

Record = Mapping[str, Any]


def bench_serving(table: Table) -> Raw:
    """One result of vLLM's or SGLang's benchmark: lists with an entry a request."""
    table = _one_result(table)
    prompts, outputs = table.number("input_lens"), table.number("output_lens")
    failed = np.zeros(len(table), bool)
    if "errors" in table.columns:
        failed = np.asarray([bool(e) for e in table.columns["errors"]])
    arrival = None
    warnings: tuple[str, ...] = ()
    if "start_times" in table.columns:
        arrival = table.number("start_times")
        arrival = arrival - np.fmin.reduce(arrival)  # of a clock that starts anywhere
    else:
        warnings = ("the benchmark result holds no start_times; all requests arrive at time zero",)
    return Raw(
        arrival,
        prompts,
        outputs,
        ("start_times", "input_lens", "output_lens"),
        keep=(outputs != 0) & ~failed,
        drops="failed requests",
        lines=table.lines,
        warnings=warnings,
    )


def _one_result(table: Table) -> Table:
    """The table of the requests of a result, where each result is a line of lists."""
    lens = table.columns["input_lens"]
    if isinstance(lens, np.ndarray) or not any(isinstance(value, list) for value in lens):
        return table
    if len(table) > 1:
        raise InputError(
            f"holds {len(table)} results, and a trace is one", where=table.path, mend="keep the line of one result"
        )
    lists = {name: values[0] for name, values in table.columns.items() if isinstance(values[0], list)}
    requests = len(lists["input_lens"])
    kept = {name: values for name, values in lists.items() if len(values) == requests}
    return replace(table, columns=kept, lines=np.arange(1, requests + 1), unit="request")


# aiperf -------------------------------------------------------------------------------------------


def aiperf_failed(record: Record) -> bool:
    """Whether a record is of no request that counts: an error, cancelled, or sent to warm up."""
    metadata = _group(record, "metadata")
    phase = metadata.get("benchmark_phase") or "profiling"
    return bool(record.get("error")) or bool(metadata.get("was_cancelled")) or phase != "profiling"


def aiperf_value(record: Record, metric: str) -> Any:
    """The value of a metric of a record, or None."""
    return _group(_group(record, "metrics"), metric).get("value")


def aiperf(table: Table) -> Raw:
    """Records of aiperf's ``profile_export.jsonl``."""
    columns = {name: table.columns[name] for name in ("metadata", "metrics", "error") if name in table.columns}
    records: list[Record] = [{name: values[i] for name, values in columns.items()} for i in range(len(table))]
    metadata = [_group(record, "metadata") for record in records]
    return _of_records(
        [
            _Sent(
                _whole_s(about.get("request_start_ns"), _first(metadata, "request_start_ns")),
                _whole_s(about.get("request_end_ns"), _first(metadata, "request_start_ns")),
                aiperf_value(record, "input_sequence_length"),
                aiperf_value(record, "output_sequence_length"),
                about.get("conversation_id"),
                about.get("turn_index"),
                not aiperf_failed(record),
            )
            for record, about in zip(records, metadata, strict=True)
        ],
        ("request_start_ns", "input_sequence_length", "output_sequence_length"),
        table,
        "failed, cancelled or warm-up requests",
    )


def _first(metadata: list[Record], name: str) -> int:
    return min((value for about in metadata if isinstance(value := about.get(name), int)), default=0)


def _whole_s(stamp_ns: Any, first_ns: int) -> Any:
    """Seconds since `first_ns`, exact whatever the date."""
    return (stamp_ns - first_ns) / 1e9 if isinstance(stamp_ns, int) and abs(stamp_ns) < 2**63 else stamp_ns


# guidellm -----------------------------------------------------------------------------------------


def guidellm(table: Table) -> Raw:
    """Requests of all benchmarks of a report of guidellm, as they were sent one after the other."""
    sent: list[_Sent] = []
    spans: list[str] = []
    for number, benchmark in enumerate(table.columns["benchmarks"]):
        requests = _group(benchmark if isinstance(benchmark, Mapping) else {}, "requests")
        before = len(sent)
        for status in ("successful", "errored", "incomplete"):
            found = requests.get(status)
            listed = found if isinstance(found, list) else []
            sent += [_of_guidellm(r, status == "successful") for r in listed if isinstance(r, Mapping)]
        times = [s.start_s for s in sent[before:] if s.counts and isinstance(s.start_s, int | float)]
        if times:
            spans.append(f"{number}: {min(times):.3f} to {max(times):.3f}")
    if not sent:
        raise InputError(
            "its benchmarks hold no requests, only statistics",
            where=table.path,
            mend="let guidellm save the requests too (its JSON or YAML output does by default)",
        )
    table = replace(table, lines=np.arange(1, len(sent) + 1), unit="request")
    raw = _of_records(sent, ("request_start_time", "prompt_tokens", "output_tokens"), table, "errored or incomplete requests")
    if len(spans) < 2:
        return raw
    told = f"{len(spans)} benchmarks follow one another as they were sent (times of the file: {'; '.join(spans[:10])})"
    return replace(raw, warnings=(*raw.warnings, told))


def _of_guidellm(request: Record, good: bool) -> _Sent:
    info = _group(request, "info")
    timings = _group(info, "timings")

    def first(*values: Any) -> Any:
        return next((value for value in values if value is not None), None)

    return _Sent(
        first(timings.get("request_start"), request.get("request_start_time"), request.get("start_time")),
        first(timings.get("request_end"), request.get("request_end_time"), request.get("end_time")),
        request.get("prompt_tokens"),
        request.get("output_tokens"),
        info.get("conversation_id"),
        info.get("turn_index"),
        good,
    )


# inference-perf -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PerfRequest:
    """A request of inference-perf as its file says it, of any type; `token_times_s` of the output, by the clock of the start."""

    start_s: Any
    end_s: Any
    prompt: Any
    output: Any
    token_times_s: Any
    failed: bool


def perf_request(record: Record) -> PerfRequest:
    """Read one record: tokens are counted in `info` (up to 0.2), or below it by request and response; the server's counts win."""
    info = _group(record, "info")
    answer, asked = _group(info, "response_metrics"), _group(_group(info, "request_metrics"), "text")
    counted = _group(answer, "server_usage")
    return PerfRequest(
        record.get("start_time"),
        record.get("end_time"),
        info.get("input_tokens", asked.get("input_tokens")),
        info.get("output_tokens", counted.get("completion_tokens", answer.get("output_tokens"))),
        info.get("output_token_times", answer.get("output_token_times")),
        bool(record.get("error")),
    )


def inference_perf(table: Table) -> Raw:
    """Records of inference-perf's ``per_request_lifecycle_metrics.json``."""
    names = ("start_time", "end_time", "info", "error")
    columns = {name: table.columns[name] for name in names if name in table.columns}
    found = [perf_request({name: values[i] for name, values in columns.items()}) for i in range(len(table))]
    sent = [_Sent(r.start_s, r.end_s, r.prompt, r.output, None, None, not r.failed) for r in found]
    first_s = min((s.start_s for s in sent if isinstance(s.start_s, int | float)), default=0.0)
    sent = [replace(s, start_s=_since(s.start_s, first_s), end_s=_since(s.end_s, first_s)) for s in sent]
    return _of_records(sent, ("start_time", "input_tokens", "output_tokens"), table, "failed requests")


def _since(stamp_s: Any, first_s: float) -> Any:
    """Seconds since `first_s`, of a clock that starts anywhere."""
    return stamp_s - first_s if isinstance(stamp_s, int | float) else stamp_s


# Records ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    """One request as a file says it, of any type: when it was sent and ended [s], its tokens, its conversation."""

    start_s: Any
    end_s: Any
    prompt: Any
    output: Any
    conversation: Any
    turn: Any
    counts: bool


def _of_records(sent: list[_Sent], names: tuple[str, str, str], table: Table, drops: str) -> Raw:
    """The requests as columns; a conversation of one turn is none."""

    def column(values: Iterator[Any], name: str) -> FloatArray:
        return replace(table, columns={name: list(values)}).number(name)

    start_s = column((s.start_s for s in sent), names[0])
    keep = np.asarray([s.counts for s in sent])
    talks = [str(s.conversation) if s.conversation is not None else "" for s in sent]
    turns = Counter(talk for talk, s in zip(talks, sent, strict=True) if s.counts)
    session = [talk if turns[talk] > 1 else "" for talk in talks]
    spoken = any(session)
    return Raw(
        start_s,
        column((s.prompt for s in sent), names[1]),
        column((s.output for s in sent), names[2]),
        names,
        keep=keep,
        drops=drops,
        session=list(session) if spoken else None,
        turn=column((s.turn for s in sent), "turn_index") if spoken else None,
        lasted_s=column((s.end_s for s in sent), "the end of the request") - start_s,
        lines=table.lines,
    )


def _group(record: Any, name: str) -> Record:
    """The mapping under `name`, empty if there is none."""
    value = record.get(name) if isinstance(record, Mapping) else None
    return value if isinstance(value, Mapping) else {}
