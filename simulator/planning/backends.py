"""Where the points of a sweep are simulated: in this process, in processes of this machine, on a cluster of Ray or Dask.

Each of them yields points with their outcomes in the order in which they end, a few more in hand than there are workers, so that
none waits and start-up is paid once a worker. What a worker simulates it writes itself, whole or not at all, so that one that is
killed loses nothing but time: its points are given to another.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hardware_profiles.errors import InputError
from simulator.planning import store
from simulator.planning.one_point import PlannedPoint, run_point
from simulator.version import VERSION

if TYPE_CHECKING:
    from simulator.config.schema import Scenario

Outcomes = Iterator[tuple[PlannedPoint, dict[str, Any]]]
Asked = TypeVar("Asked")
Found = TypeVar("Found")
TRIES = 3
"""How often a point is begun on a cluster: what kills three workers is taken to be the point."""
IN_HAND = 2
"""Points given out a worker."""
COUNTED_S = 5.0
"""How often a cluster is asked for its size, which may grow [s]."""
REACHED_S = 8.0
"""How long a cluster may take to answer [s]."""
CLUSTERS = {"ray": ("ray", "RAY_ADDRESS", "6379"), "dask": ("distributed", "DASK_SCHEDULER_ADDRESS", "8786")}
"""Backend -> its package, the variable that may name the cluster, and the port that it listens at unless told otherwise."""


def gathered(
    todo: Iterable[Asked], submit: Callable[[Asked], Future[Found]], workers: Callable[[], int]
) -> Iterator[tuple[Asked, Found]]:
    """What was asked with what was found, as it ends; a future's own error is raised."""
    waiting = iter(todo)
    running: dict[Future[Found], Asked] = {}
    limit, counted_s = 0, float("-inf")
    while True:
        if time.monotonic() - counted_s > COUNTED_S:
            limit, counted_s = max(1, IN_HAND * workers()), time.monotonic()
        while len(running) < limit and (each := next(waiting, None)) is not None:
            running[submit(each)] = each
        if not running:
            return
        ready, _ = wait(running, return_when=FIRST_COMPLETED)
        for future in ready:
            yield running.pop(future), future.result()


# -- this machine -------------------------------------------------------------------------------------------


def in_turn(todo: list[PlannedPoint], folder: Path) -> Outcomes:
    """Simulate in this process."""
    for planned in todo:
        assert planned.scenario is not None
        yield planned, run_point(planned.scenario, folder / store.RUNS / planned.name, sys.argv, planned.headroom)


def side_by_side(todo: list[PlannedPoint], folder: Path, workers: int) -> Outcomes:
    """Simulate in worker processes; after a worker's death the rest one by one, to learn which point kills it."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    left = {p.digest: p for p in todo}
    try:
        for planned, outcome in _pooled(todo, folder, workers):
            del left[planned.digest]
            yield planned, outcome
        return
    except BrokenProcessPool:
        pass
    for planned in left.values():
        try:
            yield from _pooled([planned], folder, 1)
        except BrokenProcessPool:
            yield (
                planned,
                {"status": "failed", "reason": "its process was killed, probably for want of memory"},
            )


def _pooled(todo: list[PlannedPoint], folder: Path, workers: int) -> Outcomes:
    def submit(pool: Executor, planned: PlannedPoint) -> Future[dict[str, Any]]:
        assert planned.scenario is not None
        directory = folder / store.RUNS / planned.name
        return pool.submit(run_point, planned.scenario, directory, sys.argv, planned.headroom)

    return in_processes(todo, submit, min(workers, len(todo)))


def in_processes(
    todo: Iterable[Asked], submit: Callable[[Executor, Asked], Future[Found]], workers: int
) -> Iterator[tuple[Asked, Found]]:
    """`gathered` over so many processes of this machine, one thread each, which end with this one."""
    from joblib.externals.loky import ProcessPoolExecutor

    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    pool = ProcessPoolExecutor(max_workers=workers, env=one_thread, initializer=_follow, initargs=(os.getpid(),))
    try:
        yield from gathered(todo, partial(submit, pool), lambda: workers)
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise
    pool.shutdown()


def _follow(parent: int) -> None:
    """Prepare a worker process: it ends when its parent has, and leaves interrupts to it."""
    import signal
    import threading

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=watch, daemon=True).start()


# -- clusters -----------------------------------------------------------------------------------------------


def check_cluster(backend: str, address: str | None) -> str | None:
    """The address of a cluster: as given, or of the backend's own variable; None for the one that runs on this machine.

    Raises InputError if the backend is not installed, or nobody listens there.
    """
    name, variable, _ = CLUSTERS[backend]
    _package(name, backend)
    address = address or os.environ.get(variable)
    if address:
        _reach(backend, address)
    elif backend == "dask":
        raise InputError(
            "no cluster of Dask is named",
            where="--address",
            mend=f"start one (dask scheduler; dask worker ADDRESS --nthreads 1) and give --address, or set {variable}",
        )
    return address


def on_ray(todo: list[PlannedPoint], folder: Path, address: str | None) -> Outcomes:
    """Simulate on a cluster of Ray that runs already, at an address that `check_cluster` has found."""
    ray = _package("ray", "ray")
    with contextlib.redirect_stdout(sys.stderr), _in_words("ray", address, "ray start --head"):
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    remote = ray.remote(max_retries=TRIES - 1, num_cpus=1)(_at_a_worker)

    def submit(planned: PlannedPoint) -> Future[dict[str, Any]]:
        return _settled(remote.remote(*_told(planned, folder)).future(), (ray.exceptions.RayError,))

    try:
        yield from gathered(todo, submit, lambda: int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def on_dask(todo: list[PlannedPoint], folder: Path, address: str | None) -> Outcomes:
    """Simulate on a cluster of Dask that runs already, at an address that `check_cluster` has found."""
    distributed = _package("distributed", "dask")
    with _in_words("dask", address, "dask scheduler"):
        client = distributed.Client(address, timeout=REACHED_S, set_as_default=False)
    executor = client.get_executor(pure=False, retries=TRIES - 1)
    killed = (distributed.scheduler.KilledWorker,)

    def submit(planned: PlannedPoint) -> Future[dict[str, Any]]:
        return _settled(executor.submit(_at_a_worker, *_told(planned, folder)), killed)

    try:
        yield from gathered(todo, submit, lambda: sum(client.nthreads().values()))
    finally:
        client.close()


def _told(planned: PlannedPoint, folder: Path) -> tuple[Any, ...]:
    return planned.scenario, str(folder), planned.name, sys.argv, planned.headroom, os.getcwd(), VERSION


def _at_a_worker(
    scenario: Scenario,
    folder: str,
    name: str,
    command_line: Sequence[str],
    with_headroom: bool,
    cwd: str,
    version: str,
) -> dict[str, Any]:
    """`run_point` on another machine, which has to be of the same version and see the same files."""
    if version != VERSION:
        why = f"a worker has capacity-plan {VERSION}, the sweep is of {version}: install the same everywhere"
        return {"status": "failed", "reason": why}
    if os.path.isdir(cwd):
        os.chdir(cwd)  # relative paths of the scenario are as for who asked
    place = store.place(folder)
    if not (place / store.SWEEP).is_file():
        why = f"a worker does not see {folder}: --output has to be a folder that all machines share, or a URL"
        return {"status": "failed", "reason": why}
    return run_point(scenario, place / store.RUNS / name, command_line, with_headroom)


def _settled(future: Future[dict[str, Any]], deaths: tuple[type[Exception], ...]) -> Future[dict[str, Any]]:
    """A future that has a failed outcome where the workers of `future` died."""
    outer: Future[dict[str, Any]] = Future()

    def end(inner: Future[dict[str, Any]]) -> None:
        try:
            outer.set_result(inner.result())
        except deaths as error:
            first = str(error).strip().split("\n")[0]
            why = f"its workers died {TRIES} times, perhaps for want of memory ({type(error).__name__}: {first})"
            outer.set_result({"status": "failed", "reason": why})
        except BaseException as error:
            outer.set_exception(error)

    future.add_done_callback(end)
    return outer


def _package(name: str, extra: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        raise InputError(
            f"the {extra} backend needs the package {name}, which is not installed",
            where="--backend",
            mend=f"pip install 'capacity-plan[{extra}]'",
        ) from None


def _reach(backend: str, address: str) -> None:
    """InputError if nobody listens at ``[scheme://]host[:port]``; a word without a host is left to the backend."""
    if address == "auto":
        return
    host, _, port = address.split("://")[-1].rpartition(":")
    if not port.isdigit():
        host, port = address.split("://")[-1], CLUSTERS[backend][2]
    try:
        socket.create_connection((host, int(port)), timeout=REACHED_S).close()
    except OSError as error:
        raise InputError(
            f"no cluster of {backend} answers at {address} ({error})",
            where="--address",
            mend="start the cluster, or name another address",
        ) from None


@contextlib.contextmanager
def _in_words(backend: str, address: str | None, start: str) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise InputError(
            f"cannot join a cluster of {backend}{f' at {address}' if address else ''}: {first}",
            where="--address",
            mend=f"start one ({start}), or give --address",
        ) from None


ON_CLUSTERS: dict[str, Callable[[list[PlannedPoint], Path, str | None], Outcomes]] = {"ray": on_ray, "dask": on_dask}
