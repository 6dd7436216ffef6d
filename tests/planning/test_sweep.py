from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hardware_profiles.errors import InfeasibleError, InputError, PlanError
from simulator.io.tables import read_columns
from simulator.planning import one_point
from simulator.planning.sweep import SweepResult, plan_sweep, run_sweep
from simulator.run import simulate

SCENARIO = {
    "name": "small",
    "model": "meta-llama/Llama-3.1-8B-Instruct",
    "deployment": {"engine": "vllm", "hardware": "h100-sxm-80gb"},
    "workload": {
        "arrivals": {"kind": "poisson", "rate": 8},
        "prompt_tokens": {"kind": "constant", "value": 300},
        "output_tokens": {"kind": "constant", "value": 20},
        "duration": 20,
    },
    "slo": {"ttft_ms": {"p90": 500}},
    "cost": {"usd_per_gpu_hour": 3.0},
}
VARY = ["deployment.replicas=1,2", "workload.arrivals.rate=4,8"]


def do(
    tmp_path: Path, vary: list[str], *overrides: str, workers: int = 1, resume: bool = False
) -> SweepResult:
    plan = plan_sweep(SCENARIO, vary, overrides)
    return run_sweep(plan, tmp_path / "sweep", workers=workers, resume=resume)


def files(folder: Path) -> dict[str, int]:
    """Time of writing of each file of the finished points."""
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.glob("runs/*/*")
        if not path.parent.name.startswith(".")
    }


def tables(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "sweep.csv").read_bytes(), (folder / "sweep.parquet").read_bytes()


def test_a_sweep_reads_files_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, as in a notebook: a model's config and a trace that were changed since the last sweep."""
    monkeypatch.chdir(tmp_path)
    load = {"trace": "trace.csv", "arrivals": {"kind": "constant", "rate": 8}, "requests": 4}
    config = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008}
    config |= {"num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096, "torch_dtype": "bfloat16"}
    found = []
    for layers, prompt_tokens in ((32, 100), (16, 100), (16, 900)):
        Path("config.json").write_text(json.dumps({**config, "num_hidden_layers": layers}))
        Path("trace.csv").write_text("arrival_s,prompt_tokens,output_tokens\n" + f"0,{prompt_tokens},20\n" * 4)
        plan = plan_sweep({**SCENARIO, "model": "./config.json", "workload": load}, ["workload.arrivals.rate=4,8"])
        rows = run_sweep(plan, tmp_path / f"sweep{len(found)}", workers=1).rows
        assert [row["status"] for row in rows] == ["ok"] * 2, rows
        found.append([(row["tpot_ms_p50"], row["ttft_ms_p50"]) for row in rows])
    assert found[1][0][0] < 0.7 * found[0][0][0]
    assert found[2][0][1] > 1.5 * found[1][0][1]


def test_a_point_is_what_simulate_gives(tmp_path: Path) -> None:
    result = do(tmp_path, VARY)
    assert [row["status"] for row in result.rows] == ["ok"] * 4
    row = result.rows[2]
    alone = simulate({**SCENARIO, "deployment": {**SCENARIO["deployment"], "replicas": 2}, "workload": {
        **SCENARIO["workload"], "arrivals": {"kind": "poisson", "rate": 4}}})  # type: ignore[dict-item]  # fmt: skip
    assert row["deployment.replicas"] == 2
    assert row["ttft_ms_p99"] == alone.result["metrics"]["ttft_ms"]["p99"]
    assert row["usd_per_hour"] == 6.0
    written = json.loads((tmp_path / "sweep" / row["run"] / "result.json").read_text())
    assert written["metrics"]["ttft_ms"]["p99"] == row["ttft_ms_p99"]


def test_all_points_serve_the_same_requests(tmp_path: Path) -> None:
    result = do(tmp_path, ["deployment.replicas=1:3"])
    arrivals = [
        read_columns(tmp_path / "sweep" / row["run"] / "requests.parquet")["arrival_s"] for row in result.rows
    ]
    assert (arrivals[0] == arrivals[1]).all()
    assert (arrivals[0] == arrivals[2]).all()


def test_a_gpu_that_nobody_measured_is_close_where_a_measured_one_is_met(tmp_path: Path) -> None:
    """The same distance to the bound, but kernels of the RTX 4090 are borrowed."""
    bounds, found = {}, {}
    for hardware in ("h100-sxm-80gb", "rtx-4090-24gb"):
        deployed = {"engine": "vllm", "hardware": hardware, "engine_args": {"max_model_len": 2048}}
        scenario = {**SCENARIO, "deployment": deployed}
        bounds[hardware] = 1.3 * simulate(scenario).result["metrics"]["e2el_ms"]["p90"]  # type: ignore[arg-type]
        plan = plan_sweep({**scenario, "slo": {"e2el_ms": {"p90": bounds[hardware]}}}, ["seed=1"])
        found[hardware] = run_sweep(plan, tmp_path / hardware, workers=1)
    assert found["h100-sxm-80gb"].cheapest is not None
    assert found["rtx-4090-24gb"].cheapest is None
    assert found["rtx-4090-24gb"].rows[0]["slo"] == "close"
    assert found["rtx-4090-24gb"].rows[0]["slo_holds"]


def test_one_worker_or_two_write_the_same_table(tmp_path: Path) -> None:
    alone, together = do(tmp_path / "a", VARY), do(tmp_path / "b", VARY, workers=2)
    assert tables(alone.folder) == tables(together.folder)


def test_the_table_is_tidy_and_reads_back(tmp_path: Path) -> None:
    folder = do(tmp_path, ["deployment.engine_args.enable_prefix_caching=true,false"]).folder
    columns = read_columns(folder / "sweep.parquet")
    assert columns["deployment.engine_args.enable_prefix_caching"].tolist() == [True, False]
    assert columns["status"].tolist() == ["ok", "ok"]
    assert (folder / "sweep.csv").read_text().count("\n") == 3


def test_resumed_no_point_is_done_again_and_the_table_is_the_same(tmp_path: Path) -> None:
    whole = do(tmp_path / "whole", VARY)
    half = do(tmp_path / "half", VARY)
    first = half.rows[0]["run"]
    lost = half.folder / half.rows[3]["run"]
    for path in sorted(lost.iterdir()):
        path.unlink()
    lost.rmdir()
    (half.folder / "sweep.csv").unlink()
    before = files(half.folder)
    again = do(tmp_path / "half", VARY, resume=True)
    after = files(again.folder)
    assert {name: after[name] for name in before} == before
    assert any(name.startswith(first) for name in before)
    assert len(after) == len(files(whole.folder))
    assert tables(again.folder) == tables(whole.folder)


def test_a_resumed_sweep_grows_by_values_and_axes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_point, "run_point", counted := Counted(one_point.run_point))
    do(tmp_path, ["deployment.replicas=1,2"])
    before = files(tmp_path / "sweep")
    grown = do(tmp_path, ["deployment.replicas=1,2,3"], resume=True)
    assert [row["status"] for row in grown.rows] == ["ok"] * 3
    assert "2 of 3 points were there already" in grown.notes
    assert counted.calls == 3
    more = do(tmp_path, ["deployment.replicas=1,3", "workload.arrivals.rate=4,8"], resume=True)
    assert "2 of 4 points were there already" in more.notes
    assert counted.calls == 5
    after = files(tmp_path / "sweep")
    assert {name: after[name] for name in before} == before
    with pytest.raises(InputError, match="another sweep"):
        do(tmp_path, ["deployment.replicas=1,2"])
    with pytest.raises(InputError, match="another sweep"):
        do(tmp_path, ["workload.output_tokens=21,22"], resume=True)


def test_a_sweep_without_a_folder_finds_what_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from simulator.cli.sweep import run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.yaml").write_text(json.dumps(SCENARIO))
    for values in ("1,2", "1,2,3", "1,2,3,4"):
        run("s.yaml", [f"deployment.replicas={values}"], [], None, 1, None, True, False, False, False, False, False)
    assert len(list((tmp_path / "sweeps").iterdir())) == 1
    with pytest.raises(InputError) as caught:
        run("s.yaml", ["deployment.replicas=1,2"], [], None, 1, None, False, False, False, False, False, False)
    assert "--resume" in str(caught.value.mend)


class Counted:
    """A function that counts its calls."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self._function(*args)


@pytest.mark.parametrize("damage", ["truncate", "garbage", "no manifest", "other"])
def test_a_damaged_point_is_set_aside_and_done_again(tmp_path: Path, damage: str) -> None:
    whole = do(tmp_path, VARY)
    before = tables(whole.folder)
    run = whole.folder / whole.rows[1]["run"]
    if damage == "truncate":
        data = (run / "requests.parquet").read_bytes()
        (run / "requests.parquet").write_bytes(data[: len(data) // 2])
    elif damage == "garbage":
        (run / "result.json").write_text('{"metrics": ')
    elif damage == "no manifest":
        (run / "manifest.json").unlink()
    else:
        (run / "manifest.json").write_text('{"scenario_sha256": "0"}')
    again = do(tmp_path, VARY, resume=True)
    assert any("damaged" in note for note in again.notes)
    assert tables(again.folder) == before
    assert len(list((again.folder / "runs").glob("*.damaged-1"))) == 1


def test_a_failed_point_is_a_row_with_its_reason_and_is_not_tried_again(tmp_path: Path) -> None:
    vary = [
        "deployment.tensor_parallel=1,3",
        "model=meta-llama/Llama-3.1-8B-Instruct,meta-llama/Llama-3.1-70B-Instruct",
    ]
    result = do(tmp_path, vary)
    status = [row["status"] for row in result.rows]
    assert status[0] == "ok"
    assert status[1] == "infeasible"
    assert "does not fit" in result.rows[1]["reason"]
    assert set(status[2:]) == {"invalid"}
    assert result.error is None
    assert result.cheapest is not None
    before = {p: p.stat().st_mtime_ns for p in (result.folder / "failed").iterdir()}
    assert len(before) == 3
    again = do(tmp_path, vary, resume=True)
    assert {p: p.stat().st_mtime_ns for p in (again.folder / "failed").iterdir()} == before
    assert [row["reason"] for row in again.rows] == [row["reason"] for row in result.rows]


def test_a_wrong_value_at_one_point_of_many_loses_nothing(tmp_path: Path) -> None:
    result = do(tmp_path, ["deployment.replicas=1,two,2"])
    assert [row["status"] for row in result.rows] == ["ok", "invalid", "ok"]
    assert isinstance(result.error, InputError)
    assert "1 of 3 points" in result.error.message
    assert "two" in result.error.message
    assert (result.folder / "sweep.csv").is_file()


def test_a_field_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="replicas"):
        plan_sweep(SCENARIO, ["deployment.replica=1,2"])


def test_if_no_point_fits_the_sweep_is_infeasible_and_its_table_stands(tmp_path: Path) -> None:
    result = do(tmp_path, ["deployment.hardware=l4-24gb,a10-24gb"], "model=meta-llama/Llama-3.1-70B-Instruct")
    assert isinstance(result.error, InfeasibleError)
    assert (result.folder / "sweep.csv").is_file()


def test_points_alike_are_simulated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = []
    real = one_point.run_point

    def counting(*args: object) -> dict[str, object]:
        done.append(args)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(one_point, "run_point", counting)
    result = do(
        tmp_path, ["deployment.pools.0.replicas,deployment.hardware=1:h100-sxm-80gb,1:'h100-sxm-80gb'"]
    )
    assert len(result.rows) == 2
    assert len(done) == 1


def test_the_folder_of_another_sweep_or_of_something_else_is_left_alone(tmp_path: Path) -> None:
    do(tmp_path, ["deployment.replicas=1"])
    before = files(tmp_path / "sweep")
    for resume in (False, True):
        with pytest.raises(InputError, match="another sweep"):
            do(tmp_path, ["deployment.replicas=2"], resume=resume)
    assert files(tmp_path / "sweep") == before
    other = tmp_path / "other" / "sweep"
    other.mkdir(parents=True)
    (other / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="something other"):
        do(tmp_path / "other", ["deployment.replicas=1"])
    assert [p.name for p in other.iterdir()] == ["letter.txt"]


def test_two_sweeps_do_not_work_in_one_folder(tmp_path: Path) -> None:
    from simulator.planning import store

    result = do(tmp_path, ["deployment.replicas=1"])
    with store.locked(result.folder), pytest.raises(InputError, match="another sweep is at work"):
        do(tmp_path, ["deployment.replicas=1"])


def test_a_full_disk_keeps_the_finished_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = one_point.write_run, []

    def full(directory: Path, **parts: object) -> Path:
        calls.append(directory)
        if len(calls) == 3:
            raise PlanError("the disk is full (no space left on device); nothing was written")
        return real(directory, **parts)  # type: ignore[arg-type]

    monkeypatch.setattr(one_point, "write_run", full)
    with pytest.raises(PlanError, match="disk is full"):
        do(tmp_path, VARY)
    folder = tmp_path / "sweep"
    assert len(list((folder / "runs").iterdir())) == 2
    assert not (folder / "sweep.csv").exists()
    monkeypatch.undo()
    before = files(folder)
    again = do(tmp_path, VARY, resume=True)
    assert {name: files(folder)[name] for name in before} == before
    assert [row["status"] for row in again.rows] == ["ok"] * 4


def test_unknown_prices_leave_the_cost_open_and_devices_decide(tmp_path: Path) -> None:
    scenario = {k: v for k, v in SCENARIO.items() if k != "cost"}
    plan = plan_sweep(scenario, ["deployment.hardware=h800-sxm-80gb,h100-sxm-80gb"])
    result = run_sweep(plan, tmp_path / "sweep", workers=1)
    unknown = [row for row in result.rows if row["status"] == "ok" and row["usd_per_hour"] is None]
    if not unknown:
        pytest.skip("the price list knows both")
    assert result.cost == "devices"


KILLED = """
import signal, sys, time
from pathlib import Path
from simulator.planning import sweep as s

def stall(text):
    if len(list(Path(sys.argv[2]).glob("runs/small-*"))) >= 2:
        time.sleep(3600)  # the signal comes before the table is written, however slow or quick the machine

if __name__ == "__main__":
    import json
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job inherits that it is ignored
    scenario = json.loads(sys.argv[1])
    plan = s.plan_sweep(scenario, sys.argv[3:])
    s.run_sweep(plan, Path(sys.argv[2]), workers=2, progress=stall)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_killed_and_resumed_no_point_is_done_twice(tmp_path: Path, sign: signal.Signals) -> None:
    scenario = {**SCENARIO, "workload": {**SCENARIO["workload"], "duration": 300}}  # type: ignore[dict-item]
    vary = ["deployment.replicas=1:3", "workload.arrivals.rate=8,9"]
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    folder = tmp_path / "sweep"
    root = Path(__file__).resolve().parents[2]
    child = subprocess.Popen(
        [sys.executable, str(script), json.dumps(scenario), str(folder), *vary],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while len(list(folder.glob("runs/small-*"))) < 2 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    if sign == signal.SIGINT:
        os.killpg(child.pid, sign)
    else:
        child.kill()
    child.communicate(timeout=30)
    time.sleep(1.2)  # workers see that their parent has gone
    assert not (folder / "sweep.csv").exists()
    kept = files(folder)
    assert kept
    plan = plan_sweep(scenario, vary)
    result = run_sweep(plan, folder, workers=1, resume=True)
    after = files(folder)
    assert {name: after[name] for name in kept} == kept
    assert len({row["run"] for row in result.rows}) == 6
    assert sorted(p.name for p in (folder / "runs").iterdir()) == sorted(
        row["run"][5:] for row in result.rows
    )
    fresh = run_sweep(plan, tmp_path / "fresh", workers=2)
    assert tables(fresh.folder) == tables(folder)
