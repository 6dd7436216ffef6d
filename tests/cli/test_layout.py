"""Output follows the terminal's width, and no number is cut."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.cli.layout import folded, pairs, table, width, wrapped
from simulator.cli.summary import fleet_lines, latency_rows, verdict_lines, verdict_word
from tests.effort import examples
from tests.terminal import typed

NUMBER = re.compile(r"\d[\d,.]*\d|\d")
WIDTHS = (60, 72, 80, 100, 120, 160)


def at(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))


def test_a_pipe_has_80_columns_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    assert width() == 80
    at(monkeypatch, 100)
    assert width() == 100
    at(monkeypatch, 1)
    assert width() == 40


def test_a_paragraph_keeps_its_words_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 60)
    text = "hardware " + "h100-sxm-80gb " * 9 + "runs/azure-conv-h100-0123456789"
    lines = wrapped(text, "    ").splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(lines).split() == text.split()
    at(monkeypatch, 200)
    assert max(map(len, wrapped(text * 3, "").splitlines())) <= 120


def test_addresses_too_long_for_a_line_break_behind_a_slash() -> None:
    lines = folded("see https://example.org/a-long-path/of-many-parts/0123456789/end", 30, "  ")
    assert max(map(len, lines)) <= 30
    assert "".join(line.strip() for line in lines) == (
        "see https://example.org/a-long-path/of-many-parts/0123456789/end"
    )


def test_values_of_pairs_stand_in_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 40)
    lines = pairs([("a", "word " * 12), ("longer", "1")], "  ")
    assert lines[-1] == "  longer  1"
    assert all(line.startswith(" " * 10) for line in lines[0].splitlines()[1:])


CELLS = st.one_of(
    st.floats(0, 1e9).map(lambda v: f"{v:,.3g}" if v < 1000 else f"{v:,.0f}"),
    st.sampled_from(["-", "met", "overload", "4.30 to 5.10", "$1,234", "7.01 ±0.0670"]),
)
TEXTS = st.lists(st.sampled_from(["host", "time", "h100-sxm-80gb", "of", "12,345", "kernels"]), max_size=12).map(" ".join)


@settings(max_examples=examples(150))
@given(data=st.data(), columns=st.integers(60, 160))
def test_no_table_is_wider_than_the_terminal_or_cuts_a_number(data: st.DataObject, columns: int) -> None:
    count = data.draw(st.integers(1, 18))
    words = data.draw(st.sets(st.integers(0, count - 1)))
    drop = data.draw(st.lists(st.integers(1, count - 1), unique=True, max_size=4)) if count > 1 else []
    head = [data.draw(st.sampled_from(["TTFT p99", "req/s", "KV bytes a token", "", "replicas"])) for _ in range(count)]
    rows = [
        [data.draw(TEXTS if i in words else CELLS) for i in range(count)] for _ in range(data.draw(st.integers(1, 4)))
    ]
    with pytest.MonkeyPatch.context() as patched:
        at(patched, columns)
        lines = table(head, rows, words=words, drop=drop)
    assert max(map(len, lines)) <= columns
    shown = "\n".join(lines)
    gone = set(drop) if "not shown in" in shown else set()
    wanted = {n for row in rows for i, cell in enumerate(row) if i not in gone for n in NUMBER.findall(cell)}
    assert wanted <= set(NUMBER.findall(shown))


def test_a_title_keeps_its_percent_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = table(["engine", "a title", "90 %"], [["x" * 65, "-", "-"]])
    assert [line.split() for line in lines[:2]] == [["a"], ["engine", "title", "90", "%"]]


def test_what_is_left_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 62)
    lines = table(["point", *[f"figure{i}" for i in range(7)]], [["x", *["1,234"] * 7]], drop=(2, 5), elsewhere="sweep.csv")
    assert lines[-1] == "  not shown in 62 columns: figure1 (sweep.csv)"
    assert "figure1" not in lines[0]
    assert "figure4" in lines[0]


def test_columns_that_fit_nowhere_stand_below_one_another(monkeypatch: pytest.MonkeyPatch) -> None:
    at(monkeypatch, 40)
    lines = table(["metric", *"abcdef"], [["TTFT", *(f"{i},000,000" for i in range(1, 7))]])
    assert [line.split()[0] for line in lines if line] == ["metric", "TTFT"] * 3
    assert lines.count("") == 2


COMMANDS = [
    ("list", "engines"), ("list", "hardware"), ("list", "models"), ("list", "traces"), ("list", "scenarios"),
    ("show", "engine", "vllm"), ("show", "engine", "sglang"), ("show", "engine", "tgi"), ("show", "engine", "trtllm"),
    ("show", "hardware", "h100-sxm-80gb"),
    ("show", "hardware", "apple-m2-ultra-76c-192gb"), ("show", "hardware", "epyc-9654-2s"),
    ("show", "model", "meta-llama/Llama-3.1-8B-Instruct"),
    ("check", "azure-conv-h100"), ("check", "llama-70b-a100-priorities"),
    ("simulate", "small.yaml"), ("simulate", "classes.yaml"), ("cost", "small.yaml"),
    ("sweep", "small.yaml", "--vary", "deployment.hardware=h100-sxm-80gb,a100-sxm-80gb", "--vary", "deployment.replicas=1,2",
     "--workers", "1", "--output", "fleet"),
    ("cost", "fleet", "--demand-requests-per-day", "1000000"),
    ("compare", "*"),
]  # fmt: skip
LOAD = {"prompt_tokens": 200, "output_tokens": 20, "arrivals": {"kind": "poisson", "rate": 2}}
SMALL = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "slo": {"ttft_ms": {"p99": 500}, "tpot_ms": {"p99": 30}, "e2el_ms": {"p90": 20000}},
    "workload": {**LOAD, "duration": 10},
}
CLASSES = {
    **SMALL,
    "workload": {
        "duration": 10,
        "classes": [{**LOAD, "name": "interactive"}, {**LOAD, "name": "batch", "slo": {"e2el_ms": {"p90": 9e4}}}],
    },
}


@pytest.mark.parametrize(
    "columns", [pytest.param(c, marks=[] if c == 60 else [pytest.mark.slow]) for c in WIDTHS]
)
def test_every_command_follows_the_width(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Words that can be broken nowhere (hashes, addresses) excepted; and every number is one of the widest terminal's."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(json.dumps(SMALL))
    Path("classes.yaml").write_text(json.dumps(CLASSES))
    for command in COMMANDS:
        words = [w for word in command for w in (map(str, sorted(Path("fleet/runs").iterdir())) if word == "*" else [word])]
        at(monkeypatch, 400)
        _, whole, _ = typed(monkeypatch, capsys, *words)
        at(monkeypatch, columns)
        code, out, _ = typed(monkeypatch, capsys, *words, *(["--resume"] if words[0] == "sweep" else []))
        assert code == 0, command
        cut = set(NUMBER.findall(out)) - set(NUMBER.findall(whole)) - {str(columns)}
        assert not cut, (command, cut)
        wide = [line for line in out.splitlines() if len(line) > columns and max(map(len, line.split())) < columns - 32]
        assert not wide, (command, wide)


@pytest.mark.parametrize(
    ("interval", "shown"),
    [
        ([171_435.0, 5_334_159.0], "90 %: 171 to 5,334 s"),
        ([1_435.0, 34_159.0], "90 %: 1,435 to 34,159"),
        ([2e6, None], "2,000 s or more"),
    ],
)
def test_an_interval_beside_an_slo_fits_on_its_line(
    interval: list[float | None], shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at(monkeypatch, 80)
    check = {"metric": "ttft_ms", "percentile": "p99", "actual_ms": 889_215.0, "bound_ms": 2000.0, "holds": False}
    metrics = {"ttft_ms": {"interval": {"p99": interval}}}
    result = {"classes": [], "slo": {"holds": False, "requests": 9, "checks": [check]}, "metrics": metrics}
    lines = verdict_lines(result, asked=True)
    assert len(lines) == 2
    assert shown in lines[1]
    assert "889,215 ms" in lines[1]


@pytest.mark.parametrize(
    ("requests", "interval", "words"),
    [
        (144, [9_583.0, 11_151.0], "CLOSE (met, but the run is too short)"),
        (144, [9_583.0, 700_000.0], "CLOSE (met, but within the error of the model or of this run)"),
        (2_000, [9_583.0, 11_151.0], "CLOSE (met, but within the error of the model or of this run)"),  # by its sampling error
    ],
)
def test_a_close_verdict_says_why(requests: int, interval: list[float], words: str) -> None:
    check = {"metric": "e2el_ms", "percentile": "p95", "actual_ms": 1e4, "bound_ms": 6e5, "holds": True, "close": True}
    slo = {"holds": True, "close": True, "requests": requests, "checks": [check], "attainment_close": False}
    assert verdict_word(slo, {"e2el_ms": {"interval": {"p95": interval}}}) == words


def test_a_spread_of_rounding_alone_is_none() -> None:
    def shown(mean: float, width: float) -> str:
        stats = {"ci95": [mean - width, mean + width], "mean": mean, "interval": None}
        stats |= dict.fromkeys(("p50", "p90", "p99", "max"), mean)
        names = ("ttft_ms", "tpot_ms", "itl_ms", "e2el_ms", "queue_ms")
        return latency_rows(dict.fromkeys(names, stats))[0][1]

    assert shown(704.0, 3e-12).endswith("±0")
    assert shown(704.0, 3e-3).endswith("±0.00300")
    assert shown(0.0, 0.0).endswith("±0")


def test_what_a_shrinking_fleet_loses_is_said_without_faults() -> None:
    fleet = {"serving_mean": 2.0, "serving_min": 1, "serving_max": 3}
    fleet |= {"attempts_lost": 7, "tokens_lost": 10, "attempts_sent_again": 0}
    alone, broken = (fleet_lines({"fleet": {**fleet, "faults": faults}})[0] for faults in ({}, {"node": 1}))
    assert "; those that were sent away lost 7 requests under way" in " ".join(alone.split())
    assert "1 node lost, with 7 requests under way" in " ".join(broken.split())
