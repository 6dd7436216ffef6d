"""Where the jobs of a sweep are done: in this process, in processes of this machine, on a cluster of Ray or Dask.

Each of them yields jobs with their outcomes in the order in which they end, a few more in hand than there are workers, so that
none waits and start-up is paid once a worker. Small jobs are given to a cluster some at a time. What a worker simulates it writes
itself, whole or not at all, so that one that is killed loses nothing but time: its jobs are given to another.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Series
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar
from uuid import uuid4

from hardware_profiles.errors import InputError
from simulator.planning import store
from simulator.version import VERSION


class Job(Protocol):
    """What one worker does in one go: a point, or a part of a sweep."""

    @property
    def digest(self) -> str:
        """What it is known by."""
        ...

    def run(self, folder: Path, command_line: Series[str]) -> dict[str, Any]:
        """Do it, in the folder of the sweep; return `status`, `reason` and what else came out."""
        ...


AJob = TypeVar("AJob", bound=Job)
Asked = TypeVar("Asked")
Found = TypeVar("Found")
TRIES = 3
"""How often a job is begun on a cluster: what kills three workers is taken to be the job."""
IN_HAND = 2
"""Jobs given out a worker."""
PACK, TURNS = 8, 8
"""Most points that a worker of a cluster is given at once, and how often it has to be given some at least (assumed): what is
computed again where it dies, and waited for at the end."""
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


def outcomes(
    todo: list[AJob], folder: Path, workers: int | None, cluster: str | None, address: str | None, *, pack: int = 1
) -> Iterator[tuple[AJob, dict[str, Any]]]:
    """Have all jobs done by processes, by default one a core, or on a cluster of that backend; yield each as it ends.

    pack : how many of them a worker of a cluster may be given at once.
    """
    workers = workers or min(os.cpu_count() or 1, max(1, len(todo)))
    if not todo:
        return iter(())
    if cluster is not None:
        return (on_ray if cluster == "ray" else on_dask)(todo, folder, address, pack)
    return in_turn(todo, folder) if 1 in (workers, len(todo)) else side_by_side(todo, folder, workers)


# -- this machine -------------------------------------------------------------------------------------------


def in_turn(todo: list[AJob], folder: Path) -> Iterator[tuple[AJob, dict[str, Any]]]:
    """Simulate in this process."""
    from simulator.planning.one_point import begin

    begin()
    for job in todo:
        yield job, job.run(folder, sys.argv)


def side_by_side(todo: list[AJob], folder: Path, workers: int) -> Iterator[tuple[AJob, dict[str, Any]]]:
    """Simulate in worker processes; after a worker's death the rest one by one, to learn which job kills it."""
    from joblib.externals.loky.process_executor import BrokenProcessPool

    left = {job.digest: job for job in todo}
    try:
        for job, outcome in _pooled(todo, folder, workers):
            del left[job.digest]
            yield job, outcome
        return
    except BrokenProcessPool:
        pass
    for job in left.values():
        try:
            yield from _pooled([job], folder, 1)
        except BrokenProcessPool:
            yield job, {"status": "failed", "reason": "its process was killed, probably for want of memory"}


def _pooled(todo: list[AJob], folder: Path, workers: int) -> Iterator[tuple[AJob, dict[str, Any]]]:
    def submit(pool: Executor, job: AJob) -> Future[dict[str, Any]]:
        return pool.submit(_do, job, folder, sys.argv)

    return in_processes(todo, submit, min(workers, len(todo)))


def _do(job: Job, folder: Path, command_line: Series[str]) -> dict[str, Any]:
    return job.run(folder, command_line)


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


Outcomes = list[dict[str, Any]] | str
"""What came out of jobs, or how their workers died."""


def _in_packs(
    todo: list[AJob], submit: Callable[[Series[AJob]], Future[Outcomes]], workers: Callable[[], int], pack: int
) -> Iterator[tuple[AJob, dict[str, Any]]]:
    """Have jobs done some at a time; each by itself where those of a pack have killed their workers."""
    size = max(1, min(pack, len(todo) // (TURNS * max(1, workers()))))
    alone: list[AJob] = []
    for jobs, found in gathered([todo[first : first + size] for first in range(0, len(todo), size)], submit, workers):
        if not isinstance(found, str):
            yield from zip(jobs, found, strict=True)
        elif len(jobs) > 1:
            alone += jobs
        else:
            yield jobs[0], {"status": "failed", "reason": found}
    if alone:
        yield from _in_packs(alone, submit, workers, 1)


def on_ray(
    todo: list[AJob], folder: Path, address: str | None, pack: int = 1
) -> Iterator[tuple[AJob, dict[str, Any]]]:
    """Simulate on a cluster of Ray that runs already, at an address that `check_cluster` has found."""
    ray = _package("ray", "ray")
    with contextlib.redirect_stdout(sys.stderr), _in_words("ray", address, "ray start --head"):
        ray.init(address=address or "auto", log_to_driver=False, logging_level="ERROR")
    remote = ray.remote(max_retries=TRIES - 1, num_cpus=1)(_at_a_worker)

    sweep = uuid4().hex

    def submit(jobs: Series[AJob]) -> Future[Outcomes]:
        return _settled(remote.remote(*_told(jobs, folder, sweep)).future(), (ray.exceptions.RayError,))

    try:
        yield from _in_packs(todo, submit, lambda: int(ray.cluster_resources().get("CPU", 1)), pack)
    finally:
        ray.shutdown()


def on_dask(
    todo: list[AJob], folder: Path, address: str | None, pack: int = 1
) -> Iterator[tuple[AJob, dict[str, Any]]]:
    """Simulate on a cluster of Dask that runs already, at an address that `check_cluster` has found."""
    distributed = _package("distributed", "dask")
    with _in_words("dask", address, "dask scheduler"):
        client = distributed.Client(address, timeout=REACHED_S, set_as_default=False)
    executor = client.get_executor(pure=False, retries=TRIES - 1)
    killed, sweep = (distributed.scheduler.KilledWorker,), uuid4().hex

    def submit(jobs: Series[AJob]) -> Future[Outcomes]:
        return _settled(executor.submit(_at_a_worker, *_told(jobs, folder, sweep)), killed)

    try:
        yield from _in_packs(todo, submit, lambda: sum(client.nthreads().values()), pack)
    finally:
        client.close()


def _told(jobs: Series[Job], folder: Path, sweep: str) -> tuple[Any, ...]:
    return jobs, str(folder), sys.argv, os.getcwd(), sweep, VERSION


def _at_a_worker(
    jobs: Series[Job], folder: str, command_line: Series[str], cwd: str, sweep: str, version: str
) -> Outcomes:
    """Do jobs on another machine, which has to be of the same version and see the same files.

    `sweep` names who asks: a worker may have done points of others, and keeps nothing of theirs.
    """
    from simulator.planning.one_point import begin

    if version != VERSION:
        why = f"a worker has capacity-plan {VERSION}, the sweep is of {version}: install the same everywhere"
        return [{"status": "failed", "reason": why}] * len(jobs)
    if os.path.isdir(cwd):
        os.chdir(cwd)  # relative paths of the scenario are as for who asked
    place = store.place(folder)
    if not (place / store.SWEEP).is_file():
        why = f"a worker does not see {folder}: --output has to be a folder that all machines share, or a URL"
        return [{"status": "failed", "reason": why}] * len(jobs)
    begin(sweep)
    return [job.run(place, command_line) for job in jobs]


def _settled(future: Future[Outcomes], deaths: tuple[type[Exception], ...]) -> Future[Outcomes]:
    """A future that says how the workers of `future` died, if they did."""
    outer: Future[Outcomes] = Future()

    def end(inner: Future[Outcomes]) -> None:
        try:
            outer.set_result(inner.result())
        except deaths as error:
            first = str(error).strip().split("\n")[0]
            outer.set_result(f"its workers died {TRIES} times, perhaps for want of memory ({type(error).__name__}: {first})")
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
