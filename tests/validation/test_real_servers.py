"""`benchmarks/real/predict.py`: runs of real servers on a CPU, predicted from microbenchmarks alone."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "real" / "predict.py"
CUT = ROOT / "tests" / "fixtures" / "real_cpu"
WHOLE = ROOT.parent / "shared" / "data" / "real_cpu"
pytestmark = pytest.mark.skipif(not SCRIPT.is_file(), reason="benchmarks are not in this copy")


@pytest.fixture(scope="module")
def predict() -> ModuleType:
    spec = importlib.util.spec_from_file_location("real_predict", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


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

    runs = pd.read_parquet(CUT / "runs.parquet")
    runs.loc[runs["run"] == "31m-np4-c4", ["cache_prompt", "prefix"]] = [1, 200]
    (tmp_path / "calibration").symlink_to(CUT / "calibration")
    requests = pd.read_parquet(CUT / "requests.parquet").replace({"run": {"246m-np4-p70-r1": "7b-np4-p70"}})
    runs.replace({"run": {"246m-np4-p70-r1": "7b-np4-p70"}}).to_parquet(tmp_path / "runs.parquet")
    requests.to_parquet(tmp_path / "requests.parquet")
    reasons = {each["id"]: each["reason"] for each in predict.predict(tmp_path, ("llama",))["skipped"]}
    assert reasons == {
        "llama-quiet/31m-np4-c4": "which request has which prefix is not recorded",
        "llama/7b-np4-p70": "no deployment is known of 7b-np4-p70",
    }


@pytest.mark.slow
@pytest.mark.skipif(not WHOLE.is_dir(), reason="recordings beside the checkout are absent")
def test_open_runs_of_the_larger_model_keep_the_targets(predict: ModuleType) -> None:
    for word in ("246m-np4-p", "vllm246/p"):
        for each in predict.predict(WHOLE, (word,))["experiments"]:
            if "mean" in each["metric"] or "p99" in each["metric"]:
                assert each["abs_pct_error"] < (10 if "mean" in each["metric"] else 20), each
