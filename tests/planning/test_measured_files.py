from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from hardware_profiles.errors import InputError
from simulator.planning import measured_files
from simulator.planning.compare import read_columns_of
from simulator.planning.measured_files import KINDS, read_measured
from simulator.workload.traces import read_trace

EXAMPLES = Path(__file__).parent / "examples"
FILES = {
    "vllm bench serve": "vllm_bench_serve.json",
    "SGLang bench_serving": "sglang_bench.jsonl",
    "aiperf": "profile_export_aiperf.json",
    "guidellm": "benchmarks.json",
    "inference-perf": "summary_lifecycle_metrics.json",
}
TPOT_MS, TTFT_MS, TOKENS = 11.0, 60.0, 101
E2E_MS = TTFT_MS + TPOT_MS * (TOKENS - 1)
NTPOT_MS = E2E_MS / TOKENS


@pytest.mark.parametrize("kind", KINDS)
def test_each_tool_is_recognised_and_its_words_mean_the_same(kind: str) -> None:
    (found,) = read_measured(EXAMPLES / FILES[kind])
    assert found.kind == kind
    for metric, expected in (("ttft_ms", TTFT_MS), ("tpot_ms", TPOT_MS), ("e2el_ms", E2E_MS)):
        assert found.metrics[metric]["mean"] == pytest.approx(expected)
        assert found.metrics[metric]["p50"] == pytest.approx(expected)
        assert found.metrics[metric]["p99"] > expected
    assert found.totals["completed"] == 3
    assert found.totals["request_throughput"] == pytest.approx(1.2)
    assert found.totals["output_throughput"] == pytest.approx(303 / 2.5)
    assert found.metrics["output_tokens"]["mean"] == 101
    assert found.metrics["input_tokens"]["mean"] == 300
    assert "total" not in found.metrics["input_tokens"]


@pytest.mark.parametrize("kind", ["guidellm", "inference-perf"])
def test_time_per_token_that_holds_the_first_token_has_its_own_name(kind: str) -> None:
    (found,) = read_measured(EXAMPLES / FILES[kind])
    assert found.metrics["ntpot_ms"]["p50"] == pytest.approx(NTPOT_MS)
    assert found.metrics["tpot_ms"]["p50"] < found.metrics["ntpot_ms"]["p50"]


def test_pooled_gaps_are_of_the_tools_that_pool_them() -> None:
    pooled = {kind for kind in KINDS if "itl_ms" in read_measured(EXAMPLES / FILES[kind])[0].metrics}
    assert pooled == {"vllm bench serve", "SGLang bench_serving", "aiperf", "inference-perf"}


def test_a_report_of_guidellm_reads_the_same_in_all_its_formats(tmp_path: Path) -> None:
    document = json.loads((EXAMPLES / FILES["guidellm"]).read_text())
    (tmp_path / "benchmarks.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "benchmarks.csv").write_text(as_guidellm_csv(document["benchmarks"] * 2))
    (as_json,) = read_measured(EXAMPLES / FILES["guidellm"])
    (as_yaml,) = read_measured(tmp_path / "benchmarks.yaml")
    as_csv, again = read_measured(tmp_path / "benchmarks.csv")
    assert (as_yaml.metrics, as_yaml.totals, as_yaml.facts) == (as_json.metrics, as_json.totals, as_json.facts)
    assert as_csv.metrics == again.metrics
    for metric, stats in as_csv.metrics.items():
        assert stats == {key: as_json.metrics[metric][key] for key in stats}
        assert {"mean", "std", "min", "p50", "p90", "p99", "max"} <= stats.keys()
    assert as_csv.totals == as_json.totals
    assert as_csv.facts == {"type_": "constant", "rate": 1.2}


def perf_record(at_s: float, gap_s: float, *, nested: bool, **changed: Any) -> dict[str, Any]:
    """A record of 200 prompt tokens and three outputs, the first 50 ms after its start, by either version's layout."""
    times = [at_s + 0.05 + gap_s * n for n in range(3)]
    counts = {"input_tokens": 200, "output_tokens": 3, "output_token_times": times}
    parts = {"request_metrics": {"text": {"input_tokens": 200}}, "response_metrics": {"output_token_times": times}}
    parts["response_metrics"] |= {"output_tokens": 4, "server_usage": {"completion_tokens": 3}}
    body = {"start_time": at_s, "end_time": times[-1], "request": "{}", "response": "", "error": None}
    return {**body, "info": parts if nested else counts, **changed}


@pytest.mark.parametrize("nested", [False, True])
def test_requests_of_inference_perf_are_counted_and_replay(tmp_path: Path, nested: bool) -> None:
    records = [perf_record(7000.0 + at, 0.01 + at / 1000, nested=nested) for at in (0.0, 2.0)]
    path = tmp_path / "per_request_lifecycle_metrics.json"
    path.write_text(json.dumps([*records, perf_record(7001.0, 0.01, nested=nested, error={"error_type": "x"})]))
    (found,) = read_measured(path)
    assert found.metrics["ttft_ms"]["mean"] == pytest.approx(50)
    assert found.metrics["tpot_ms"]["mean"] == found.metrics["itl_ms"]["mean"] == pytest.approx(11)
    assert (found.totals["completed"], found.totals["failed"]) == (2, 1)
    assert found.totals["output_throughput"] == pytest.approx(6 / (2.05 + 0.024))
    trace = read_trace(path)
    assert trace.arrival_s.tolist() == pytest.approx([0, 2])
    assert (trace.prompt_tokens.tolist(), trace.output_tokens.tolist()) == ([200, 200], [3, 3])


def test_the_csv_of_aiperf_reads_as_its_json(tmp_path: Path) -> None:
    document = json.loads((EXAMPLES / FILES["aiperf"]).read_text())
    blocks = {key: value for key, value in document.items() if isinstance(value, dict) and {"unit", "avg"} <= value.keys()}
    stats = ("avg", "min", "max", *(f"p{p}" for p in (1, 5, 10, 25, 50, 75, 90, 95, 99)), "std")
    lines = [["Metric", *stats]]
    names = {key: f"{key.replace('_', ' ').title()} ({block['unit']})" for key, block in blocks.items()}
    lines += [[names[key], *(block[name] for name in stats)] for key, block in blocks.items() if "p50" in block]
    lines += [[], ["Metric", "Value"]]
    lines += [[names[key], block["avg"]] for key, block in blocks.items() if "p50" not in block]
    lines += [[], ["Endpoint", "GPU_Index", "Metric", "avg"], ["localhost", 0, "GPU Power Usage (W)", 300]]
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    (tmp_path / "profile_export_aiperf.csv").write_text(text.getvalue())
    (as_csv,), (as_json,) = read_measured(tmp_path / "profile_export_aiperf.csv"), read_measured(EXAMPLES / FILES["aiperf"])
    assert as_csv.totals == as_json.totals
    for metric, found in as_json.metrics.items():
        assert as_csv.metrics[metric] == {key: value for key, value in found.items() if key not in ("count", "sum")}
    with pytest.raises(InputError, match=r"(?s)a summary of aiperf.*profile_export\.jsonl"):
        read_trace(tmp_path / "profile_export_aiperf.csv")


def as_guidellm_csv(benchmarks: list[dict[str, Any]]) -> str:
    """Three lines of headers (group, name, statistic), then a line a benchmark, as guidellm 0.8 writes them."""
    columns: list[tuple[str, str, str]] = [("Run Info", "Run ID", ""), ("Benchmark", "Strategy", "")]
    columns += [("Request Counts", status, "") for status in ("Successful", "Incomplete", "Errored")]
    for group, name in measured_files._GUIDELLM_COLUMNS:
        columns += [(group, name, statistic) for statistic in ("Mean", "Median", "Std Dev", "Percentiles")]
    rows = []
    for benchmark in benchmarks:
        metrics = benchmark["metrics"]
        row: list[Any] = ["x", "constant@1.20"]
        row += [metrics["request_totals"][status] for status in ("successful", "incomplete", "errored")]
        for key in measured_files._GUIDELLM_COLUMNS.values():
            stats = metrics[key]["successful"]
            listed = [stats["min"], *(stats["percentiles"][p] for p in measured_files._GUIDELLM_LISTED[1:-1]), stats["max"]]
            row += [stats["mean"], stats["median"], stats["std_dev"], str(listed)]
        rows.append(row)
    out = io.StringIO()
    csv.writer(out).writerows([*zip(*columns, strict=True), *rows])
    return out.getvalue()


def test_requests_of_aiperf_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "profile_export.jsonl"
    records = [
        {
            "metadata": {"request_start_ns": 10**18 + i * 10**9, "request_end_ns": 10**18 + i * 10**9 + E2E_MS * 1e6},
            "metrics": {
                "time_to_first_token": {"value": TTFT_MS / 1e3, "unit": "s"},
                "inter_token_latency": {"value": TPOT_MS, "unit": "ms"},
                "inter_chunk_latency": {"value": [TPOT_MS] * (TOKENS - 1), "unit": "ms"},
                "request_latency": {"value": E2E_MS, "unit": "ms"},
                "input_sequence_length": {"value": 50, "unit": "tokens"},
                "output_sequence_length": {"value": TOKENS, "unit": "tokens"},
            },
            "error": None,
        }
        for i in range(3)
    ]
    records.append({**records[0], "error": {"code": 500}})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    (found,) = read_measured(path)
    assert found.kind == "aiperf"
    for metric, expected in (("ttft_ms", TTFT_MS), ("tpot_ms", TPOT_MS), ("itl_ms", TPOT_MS), ("e2el_ms", E2E_MS)):
        assert found.metrics[metric]["mean"] == pytest.approx(expected)
        assert found.metrics[metric]["p99"] == pytest.approx(expected)
    assert found.metrics["itl_ms"]["count"] == 3 * (TOKENS - 1)
    duration_s = 2 + E2E_MS / 1e3
    assert found.totals == pytest.approx(
        {
            "completed": 3,
            "failed": 1,
            "vllm_duration_s": duration_s,
            "request_throughput": 3 / duration_s,
            "output_throughput": 3 * TOKENS / duration_s,
            "total_token_throughput": 3 * (TOKENS + 50) / duration_s,
        }
    )


def test_several_benchmarks_of_a_file_are_several_columns(tmp_path: Path) -> None:
    document = json.loads((EXAMPLES / FILES["guidellm"]).read_text())
    document["benchmarks"] *= 3
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps(document))
    assert [c.label for c in read_columns_of(path)] == [f"benchmarks.json#{i}" for i in range(3)]


def test_results_appended_line_by_line_are_several_columns(tmp_path: Path) -> None:
    line = json.dumps(json.loads((EXAMPLES / FILES["vllm bench serve"]).read_text()))
    path = tmp_path / "runs.jsonl"
    path.write_text(f"{line}\n{line}\n")
    assert len(read_measured(path)) == 2


def test_units_that_aiperf_names_are_kept(tmp_path: Path) -> None:
    document = json.loads((EXAMPLES / FILES["aiperf"]).read_text())
    document["time_to_first_token"] = {"unit": "sec", "avg": 0.06, "p50": 0.06, "count": 3}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(document))
    stats = read_measured(path)[0].metrics["ttft_ms"]
    assert stats == {"mean": 60.0, "p50": 60.0, "count": 3}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("hello", "not JSON"),
        ("[1, 2]", "list"),
        ("3", "not a JSON object"),
        ("{}", "none"),
        ('{"tokens_per_minute": 3}', "tokens_per_minute"),
        ('{"benchmarks": [1]}', "benchmarks"),
        ("[" * 100_000, "JSON"),
    ],
)
def test_a_fifth_kind_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_measured(path)
    assert words in caught.value.message or words == "JSON"
    assert all(kind in str(caught.value.mend) for kind in KINDS)


@pytest.mark.parametrize(
    "text",
    [
        '{"benchmarks": [{"metrics": {"request_latency": {"successful": 3}}}]}',
        '{"successes": {"latency": {"request_latency": 4}}, "load_summary": {}}',
        '{"request_latency": {"unit": "fortnights", "avg": 3}}',
        '{"mean_ttft_ms": null, "completed": 0, "duration": 1, "request_throughput": 0}',
        '{"successes": null, "failures": null}',
    ],
)
def test_a_damaged_file_of_a_known_kind_is_refused_in_words(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(InputError, match="result of"):
        read_measured(path)
