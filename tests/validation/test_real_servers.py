"""`benchmarks/real/predict.py`: runs of real servers on a CPU, predicted from microbenchmarks alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.scripts import loaded

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "real" / "predict.py"
CUT = ROOT / "tests" / "fixtures" / "real_cpu"
WHOLE = ROOT.parent / "shared" / "data" / "real_cpu"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks are not in this copy")


@pytest.fixture(scope="module")
def predict() -> Any:
    return loaded(SCRIPT, "real_predict")


@pytest.fixture(scope="module")
def cut(predict: ModuleType) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(predict.predict(CUT)))
    return found


def errors(outcome: dict[str, Any], word: str) -> dict[str, float]:
    return {each["metric"]: each["abs_pct_error"] for each in outcome["experiments"] if word in each["id"]}


def test_the_json_is_that_of_validate_runs(cut: dict[str, Any]) -> None:
    assert set(cut) == {"experiments", "skipped", "medians"}
    assert not cut["skipped"]
    assert len(cut["experiments"]) == 3 * 9  # runs of the calibration are not predicted
    for each in cut["experiments"]:
        assert {"id", "metric", "measured", "predicted", "abs_pct_error", "interval", "covered"} == set(each)
        assert each["abs_pct_error"] == pytest.approx(100 * abs(each["predicted"] / each["measured"] - 1))


@pytest.mark.parametrize("run", ["llama/246m-np4-p70-r1", "vllm246/p70-r1"])
def test_served_runs_follow_from_microbenchmarks(cut: dict[str, Any], run: str) -> None:
    found = errors(cut, run)
    assert max(found[name] for name in ("ttft_mean_ms", "itl_mean_ms", "e2e_mean_ms")) < 5
    assert max(found[name] for name in ("ttft_p99_ms", "e2e_p99_ms")) < 10


def test_a_closed_loop_follows_too(cut: dict[str, Any]) -> None:
    assert max(errors(cut, "31m-np4-c4").values()) < 15


def test_runs_that_do_not_say_enough_are_left_out_with_the_reason(predict: ModuleType, tmp_path: Path) -> None:
    import pandas as pd

    names = {"run": {"246m-np4-p70-r1": "7b-np4-p70", "31m-np4-c4": "31m-np4-kvu-c4"}}
    (tmp_path / "calibration").symlink_to(CUT / "calibration")
    for table in ("runs.parquet", "requests.parquet"):
        pd.read_parquet(CUT / table).replace(names).to_parquet(tmp_path / table)
    reasons = {each["id"]: each["reason"] for each in predict.predict(tmp_path, ("llama",))["skipped"]}
    assert reasons == {
        "llama-quiet/31m-np4-kvu-c4": "what kvu means in 31m-np4-kvu-c4 is not known",
        "llama/7b-np4-p70": "what 7b means in 7b-np4-p70 is not known",
    }


def test_shared_prefixes_are_found_in_the_cache(predict: ModuleType) -> None:
    import pandas as pd

    rows = pd.read_parquet(CUT / "runs.parquet").set_index("run", drop=False)
    requests = pd.read_parquet(CUT / "requests.parquet")
    found = []
    for cached in (0, 1):
        row = rows.loc["246m-np4-p70-r1"].to_dict() | {"cache_prompt": cached, "prefix": 40, "nprefix": 1, "seed": 1}
        own = requests[requests["run"] == row["run"]].sort_values("i")
        own = own.assign(prompt=own["prompt"] + 40)
        found.append({each["metric"]: each["predicted"] for each in predict.compare(row, own, CUT / "calibration")})
    assert found[1]["ttft_mean_ms"] < 0.8 * found[0]["ttft_mean_ms"]


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE.is_dir(), reason="recordings beside the checkout are absent")
def test_open_runs_of_the_larger_model_keep_the_targets(predict: ModuleType) -> None:
    for word in ("246m-np4-p", "vllm246/p"):
        for each in predict.predict(WHOLE, (word,))["experiments"]:
            if "mean" in each["metric"] or "p99" in each["metric"]:
                assert each["abs_pct_error"] < (10 if "mean" in each["metric"] else 20), each
