"""Sweeps over clusters of Ray and Dask, real ones of two workers on this machine, and into object stores."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hardware_profiles.errors import InputError
from simulator.planning import backends, store
from simulator.planning.sweep import plan_sweep, run_sweep
from tests.hardware.test_own_devices import scenario, sheet
from tests.planning.test_sweep import SCENARIO, VARY, tables

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_DISABLE_IMPORT_WARNING": "1"}
LONGER = ["deployment.replicas=1,2,3,4", "workload.arrivals.rate=4,5,6,7,8,9"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def within(seconds: float, holds: Callable[[], Any]) -> Any:
    """What `holds` returns once it is true; fails the test if that takes too long."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if found := holds():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{holds} did not come true within {seconds} s")


def on_cluster(folder: Path, backend: str, address: str, kill: Callable[[], None]) -> int:
    """Sweep on a cluster, and kill a worker of it once the first point is there; how many were there then."""
    seen: list[int] = []

    def watch() -> None:
        within(120, lambda: any((folder / "runs").glob("*/manifest.json")))
        seen.append(len(list((folder / "runs").glob("*/manifest.json"))))
        kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    run_sweep(plan_sweep(SCENARIO, LONGER), folder, cluster=(backend, address))
    watcher.join()
    return seen[0]


@pytest.fixture
def dask_cluster() -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    pytest.importorskip("distributed", reason="the extra [dask] is not installed")
    address = f"tcp://127.0.0.1:{free_port()}"
    word = [
        sys.executable,
        "-m",
        "distributed.cli.dask_scheduler",
        "--no-dashboard",
        "--port",
        address.split(":")[-1],
    ]
    started = [subprocess.Popen([*word, "--host", "127.0.0.1"], env=ENVIRONMENT, stderr=subprocess.DEVNULL)]
    try:
        within(60, lambda: _listens(address))
        word = [
            sys.executable,
            "-m",
            "distributed.cli.dask_worker",
            address,
            "--nthreads",
            "1",
            "--no-dashboard",
            "--no-nanny",
        ]
        started += [subprocess.Popen(word, env=ENVIRONMENT, stderr=subprocess.DEVNULL) for _ in range(2)]
        yield address, started[1:]
    finally:
        for process in started:
            process.kill()
            process.wait()


def _listens(address: str) -> bool:
    try:
        backends._reach("dask", address)
    except InputError:
        return False
    return True


@pytest.mark.slow
def test_dask_gives_the_same_table_though_a_worker_is_killed(
    tmp_path: Path, dask_cluster: tuple[str, list[subprocess.Popen[bytes]]]
) -> None:
    address, workers = dask_cluster
    run_sweep(plan_sweep(SCENARIO, LONGER), tmp_path / "here", workers=1)
    seen = on_cluster(tmp_path / "there", "dask", address, workers[0].kill)
    assert seen < 20
    assert tables(tmp_path / "there") == tables(tmp_path / "here")
    assert workers[0].poll() is not None


@pytest.fixture
def ray_cluster() -> Iterator[str]:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    port = free_port()
    ray = [str(Path(sys.executable).with_name("ray"))]
    started = [*ray, "start", "--head", "--num-cpus", "2", "--port", str(port), "--include-dashboard=false"]
    subprocess.run(
        [*started, "--disable-usage-stats"], env=ENVIRONMENT, check=True, capture_output=True, timeout=120
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        subprocess.run([*ray, "stop", "--force"], env=ENVIRONMENT, capture_output=True, timeout=60)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_gives_the_same_table_though_a_worker_is_killed(tmp_path: Path, ray_cluster: str) -> None:
    killed: list[int] = []

    def kill() -> None:
        found = within(
            60,
            lambda: subprocess.run(
                ["pgrep", "-f", "ray::_at_a"], capture_output=True, text=True
            ).stdout.split(),
        )
        killed.append(int(found[0]))
        os.kill(killed[0], signal.SIGKILL)

    run_sweep(plan_sweep(SCENARIO, LONGER), tmp_path / "here", workers=1)
    assert on_cluster(tmp_path / "there", "ray", ray_cluster, kill) < 20
    assert killed
    assert tables(tmp_path / "there") == tables(tmp_path / "here")


@pytest.mark.parametrize("backend", ["ray", "dask"])
def test_a_cluster_that_does_not_answer_is_named(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backends, "_package", lambda name, extra: None)
    with pytest.raises(
        InputError, match=f"no cluster of {backend} answers at 127.0.0.1:{(port := free_port())}"
    ):
        run_sweep(plan_sweep(SCENARIO, VARY), tmp_path / "s", cluster=(backend, f"127.0.0.1:{port}"))
    assert not (tmp_path / "s").exists()  # nothing is written before the cluster answers


@pytest.mark.parametrize(("backend", "port"), [("ray", "6379"), ("dask", "8786")])
def test_an_address_without_a_port_is_tried_at_the_usual_one(
    backend: str, port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[str, int]] = []

    def refuse(place: tuple[str, int], timeout: float) -> None:
        tried.append(place)
        raise OSError("refused")

    monkeypatch.setattr(backends, "_package", lambda name, extra: None)
    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(InputError, match="answers at head"):
        backends.check_cluster(backend, "head")
    assert tried == [("head", int(port))]


@pytest.mark.parametrize(("backend", "package"), [("ray", "ray"), ("dask", "distributed")])
def test_a_missing_extra_names_its_install_line(
    tmp_path: Path, backend: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError) as caught:
        run_sweep(plan_sweep(SCENARIO, VARY), tmp_path / "s", cluster=(backend, None))
    assert caught.value.mend == f"pip install 'capacity-plan[{backend}]'"


def test_a_worker_of_another_version_or_without_the_folder_says_so(tmp_path: Path) -> None:
    points = plan_sweep(SCENARIO, VARY).points[:2]
    told = backends._told(points, tmp_path, "one")
    assert ["does not see" in each["reason"] for each in backends._at_a_worker(*told)] == [True, True]
    assert ["install the same" in each["reason"] for each in backends._at_a_worker(*told[:-1], "0.0.1")] == [True, True]
    (tmp_path / store.SWEEP).write_text("{}")
    assert [each["status"] for each in backends._at_a_worker(*told)] == ["ok", "ok"]


def test_a_worker_that_outlives_a_sweep_reads_changed_files_anew(tmp_path: Path) -> None:
    device = tmp_path / "my-card.yaml"
    (tmp_path / store.SWEEP).write_text("{}")

    def tpot_ms(bandwidth: float, sweep: str) -> float:
        device.write_text(json.dumps(sheet(bandwidth)))
        jobs = plan_sweep(scenario(str(device)), ["deployment.replicas=1,2"]).points
        found = backends._at_a_worker(*backends._told(jobs, tmp_path, sweep))
        assert not isinstance(found, str)
        return float(found[0]["outcome"]["tpot_ms_p50"])

    first = tpot_ms(1e12, "one")
    assert tpot_ms(5e11, "two") > 1.5 * first
    assert tpot_ms(1e12, "three") == first


@dataclass(frozen=True)
class Number:
    """A job that is its number."""

    number: int

    @property
    def digest(self) -> str:
        return str(self.number)

    def run(self, folder: Path, command_line: Sequence[str]) -> dict[str, Any]:
        return {"status": "ok", "reason": "", "number": self.number}


@pytest.mark.parametrize(("jobs", "workers", "pack", "size"), [(200, 2, 8, 8), (40, 2, 8, 2), (9, 2, 8, 1), (40, 2, 1, 1)])
def test_a_cluster_is_given_points_some_at_a_time_and_those_of_a_deadly_pack_alone(
    jobs: int, workers: int, pack: int, size: int
) -> None:
    given: list[int] = []

    def submit(some: Sequence[Number]) -> Future[backends.Outcomes]:
        given.append(len(some))
        found: Future[backends.Outcomes] = Future()
        deadly = any(job.number == 7 for job in some)
        found.set_result("they died" if deadly else [job.run(Path(), ()) for job in some])
        return found

    ended = dict(backends._in_packs([Number(n) for n in range(jobs)], submit, lambda: workers, pack))
    assert {job.number: outcome.get("number") for job, outcome in ended.items()} == {
        n: None if n == 7 else n for n in range(jobs)
    }
    assert ended[Number(7)] == {"status": "failed", "reason": "they died"}
    assert given == [size] * (jobs // size) + [1] * (0 if size == 1 else size)


def test_a_sweep_in_an_object_store_is_that_in_a_folder_and_grows(tmp_path: Path) -> None:
    pytest.importorskip("upath", reason="the extra [s3] is not installed")
    there = store.place("memory://bucket/sweep")
    run_sweep(plan_sweep(SCENARIO, VARY), there, workers=1)
    grown = run_sweep(
        plan_sweep(SCENARIO, ["deployment.replicas=1:3", VARY[1]]), there, workers=1, resume=True
    )
    assert "4 of 6 points were there already" in grown.notes
    run_sweep(plan_sweep(SCENARIO, ["deployment.replicas=1:3", VARY[1]]), tmp_path / "here", workers=1)
    assert ((there / "sweep.csv").read_bytes(), (there / "sweep.parquet").read_bytes()) == tables(
        tmp_path / "here"
    )
    run = grown.rows[0]["run"]
    assert json.loads((there / run / "result.json").read_text()) == json.loads(
        (tmp_path / "here" / run / "result.json").read_text()
    )


def test_a_store_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(InputError) as caught:
        store.place("s3://bucket/sweep")
    assert "capacity-plan[s3]" in str(caught.value.mend)
