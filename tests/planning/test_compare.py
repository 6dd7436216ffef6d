from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from hardware_profiles.errors import InputError
from simulator.cli.compare import DIFFERENCE, _signed, text
from simulator.io.rundir import run_directory, write_run
from simulator.io.tables import read_columns
from simulator.planning.compare import Column, _verdict, compare, leaves, read_columns_of
from simulator.results.ranking import ALIKE_MODEL, ALIKE_SETTING
from simulator.run import simulate

EXAMPLES = Path(__file__).parent / "examples"
SCENARIO = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 4},
        "prompt_tokens": {"kind": "constant", "value": 300},
        "output_tokens": {"kind": "constant", "value": 20},
        "duration": 20,
        "warmup": 5,
    },
}


def made(tmp_path: Path, **change: object) -> Path:
    run = simulate({**SCENARIO, **change})
    folder = run_directory(tmp_path, run.name, run.digest)
    return write_run(
        folder, result=run.result, manifest=run.manifest, requests=run.requests, timeline=run.timeline
    )


def test_relative_differences_are_to_the_first() -> None:
    found = compare(
        [Column("a", "x", {"ttft_ms.p99": 100.0, "only": 1}), Column("b", "x", {"ttft_ms.p99": 80.0})]
    )
    assert found.rows == ("ttft_ms.p99",)
    assert found.difference("ttft_ms.p99", 1) == pytest.approx(-0.2)
    assert found.difference("itl_ms.p99", 1) is None


def test_no_difference_to_zero() -> None:
    found = compare([Column("a", "x", {"failed": 0.0}), Column("b", "x", {"failed": 3.0})])
    assert found.difference("failed", 1) is None


def test_a_difference_that_rounds_to_nothing_has_no_sign_of_its_own() -> None:
    shown = text(compare([Column("a", "x", {"ttft_ms.p99": 100.0}), Column("b", "x", {"ttft_ms.p99": 99.99})]))
    assert "+0.0%" in shown
    assert "-0.0%" not in shown


def test_what_changed_in_the_scenario_is_named(tmp_path: Path) -> None:
    one = made(tmp_path)
    two = made(tmp_path, deployment={**SCENARIO["deployment"], "replicas": 2})  # type: ignore[dict-item]
    found = compare([*read_columns_of(one), *read_columns_of(two)])
    assert found.changes == (("deployment.replicas", (1, 2)),)
    same = compare([*read_columns_of(one), *read_columns_of(one)])
    assert same.changes == ()
    assert all(same.difference(row, 1) in (0.0, None) for row in same.rows)


def test_a_run_beside_a_measured_file_shares_its_rows(tmp_path: Path) -> None:
    found = compare(
        [*read_columns_of(EXAMPLES / "summary_lifecycle_metrics.json"), *read_columns_of(made(tmp_path))]
    )
    assert {"ttft_ms.p99", "tpot_ms.mean", "itl_ms.p50", "ntpot_ms.p99", "e2el_ms.mean"} <= set(found.rows)
    assert found.changes == ()


def test_time_per_output_token_with_the_first_is_of_the_window(tmp_path: Path) -> None:
    run = made(tmp_path)
    (column,) = read_columns_of(run)
    table = read_columns(run / "requests.parquet")
    keep = table["arrival_s"] >= 5
    expected = np.mean(table["e2el_ms"][keep] / table["output_tokens"][keep])
    assert column.values["ntpot_ms.mean"] == pytest.approx(float(expected))


def test_leaves_of_an_only_pool_are_the_deployment_s() -> None:
    assert leaves({"deployment": {"pools": [{"replicas": 2}], "router": "r"}, "slo": {}}) == {
        "deployment.replicas": 2,
        "deployment.router": "r",
        "slo": {},
    }


def test_an_order_is_as_sure_as_the_intervals_and_what_they_share_allow() -> None:
    """Two runs 20 % apart, each +-25 %: surer where model and format are the same, and surest in one setting."""

    def column(value: float, **deployed: str) -> Column:
        told = {"engine": "e", "hardware": "h", "model": "m", "weights": "w"} | deployed
        return Column("x", "simulated", {"tpot_ms.mean": value}, {"tpot_ms.mean": (0.8 * value, 1.25 * value)}, deployed=told)

    shares = []
    for deployed in ({"model": "n"}, {"hardware": "i"}, {}):
        found = compare([column(10.0), column(12.0, **deployed)])
        (row,) = found.as_dict()["rows"]
        shares.append(row["below_reference"][1])
        assert shares[-1] == found.below("tpot_ms.mean", 1)
        assert compare([column(12.0, **deployed), column(10.0)]).below("tpot_ms.mean", 1) == pytest.approx(1 - shares[-1])
        (line,) = [line.split() for line in text(found).splitlines() if line.startswith("  TPOT mean")]
        assert line[-3:] == ["+20.0%", f"{100 * (1 - shares[-1]):.0f}", "%"]
        assert "2 to 1: too close to call: TPOT mean" in " ".join(text(found).split())
    spread = math.log(1.25) / 1.645
    for share, shared in zip(shares, (0.0, ALIKE_MODEL, ALIKE_SETTING), strict=True):
        assert 1 - share == pytest.approx(NormalDist().cdf(math.log(1.2) / spread / math.sqrt(2 - 2 * shared)))
    measured = compare([column(10.0), Column("m", "measured", {"tpot_ms.mean": 9.0})])
    assert measured.below("tpot_ms.mean", 1) is None
    assert "sure" not in text(measured).split()


def test_what_is_sure_is_told_and_what_equal_rates_do_not_say() -> None:
    def column(tpot_ms: float, engine: str, **values: float) -> Column:
        told = {"engine": engine, "hardware": "h", "model": "m", "weights": "w"}
        all_values = {"tpot_ms.mean": tpot_ms, "ttft_ms.mean": 50.0, "request_throughput": 5.0, **values}
        intervals = {"tpot_ms.mean": (0.9 * tpot_ms, 1.1 * tpot_ms), "ttft_ms.mean": (40.0, 60.0)}
        scenario = {"deployment": {"engine": engine}, "workload": {"rate": values.get("rate", 1)}}
        return Column("x", "simulated", all_values, intervals, scenario, {"SLO": "holds"}, deployed=told)

    both = " ".join(text(compare([column(10.0, "tgi"), column(5.0, "vllm")])).split())
    assert "1 x (simulated; SLO holds)" in both
    assert "2 to 1: sure: TPOT mean -50.0%" in both
    assert "TTFT mean" not in both.partition("2 to 1:")[2]  # they do not differ there
    assert "all answer this load at the same rate" in both
    for other in (column(5.0, "vllm", request_throughput=4.5), column(5.0, "tgi"), column(5.0, "vllm", unfinished=3.0)):
        assert "at the same rate" not in " ".join(text(compare([column(10.0, "tgi"), other])).split())


def test_a_scenario_is_told_from_a_result(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("model: m\ndeployment: {engine: vllm}\nworkload: {requests: 1}\n")
    with pytest.raises(InputError, match="this is a scenario, not a run") as found:
        read_columns_of(path)
    assert f"capacity-plan simulate {path}" in found.value.mend
    path.write_text("a: 1\n")
    with pytest.raises(InputError, match="no result of a client that is known"):
        read_columns_of(path)


@pytest.mark.parametrize(
    ("difference", "shown"),
    [(0.5, "+50.0%"), (-0.0001, "+0.0%"), (8.99, "+899.0%"), (23.76, "x24.8"), (269.819, "x271"), (1e6, "x1,000,001")],
)
def test_a_difference_of_many_times_is_a_factor_and_fits_its_column(difference: float, shown: str) -> None:
    assert _signed(difference) == shown


def test_a_count_and_its_difference_never_touch() -> None:
    assert all(len(_signed(difference)) < DIFFERENCE for difference in (8.999, 99.9, 12345.6, 99998.0))


def test_a_close_verdict_and_those_of_classes_are_told_as_such() -> None:
    assert _verdict({"slo": {"holds": True, "close": False}, "classes": []}) == {"SLO": "holds"}
    assert _verdict({"slo": {"holds": True, "close": True}, "classes": []}) == {"SLO": "close"}
    assert _verdict({"slo": {"holds": False, "close": False}}) == {"SLO": "missed"}
    assert _verdict({"slo": None, "classes": []}) == {}
    classes = [{"name": "a", "slo": {"holds": True, "close": False}}, {"name": "b", "slo": None}]
    assert _verdict({"slo": None, "classes": classes}) == {"SLO": "a holds"}
