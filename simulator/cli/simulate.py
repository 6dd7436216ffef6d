"""`capacity-plan simulate`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from hardware_profiles.errors import InfeasibleError
from simulator import run as simulation
from simulator.cli.errors import InterruptedRun, placed
from simulator.cli.interrupt import interruptible, terminable
from simulator.cli.progress import note, progress, progress_done
from simulator.cli.summary import summary
from simulator.config.load import load_scenario
from simulator.io.rundir import check_new, check_place, run_directory, write_file, write_run
from simulator.io.text import dense_json, json_text
from simulator.prepare import prepare


def simulate_command(
    scenario: str,
    overrides: Sequence[str],
    output: Path = Path("runs"),
    *,
    seed: int | None = None,
    plots: bool = False,
    trace: bool = False,
    save_cache: Path | None = None,
    headroom: bool = False,
    strict: bool = False,
    fail_on_slo: bool = False,
    as_json: bool = False,
) -> None:
    """Run one scenario; print a summary and write the run directory."""
    loaded = load_scenario(scenario, overrides)
    if seed is not None:
        loaded = loaded.model_copy(update={"seed": seed})
    with placed(scenario, overrides):
        prepared = prepare(loaded)
    check_place(output)
    if save_cache is not None:
        check_new(save_cache)
    if headroom:
        from simulator.planning.headroom import check_scalable

        check_scalable(loaded.workload)
    progress(f"simulating {loaded.name} ...")
    with interruptible(lambda done: progress(f"simulating {loaded.name} ... {done:,} requests done")) as should_stop:
        scratch = next(folder for folder in (output, *output.absolute().parents) if folder.is_dir())
        with placed(scenario, overrides):
            if save_cache is not None:
                from simulator.caches import check_tells

                check_tells(prepared)
            run = simulation.run_prepared(
                prepared, should_stop=should_stop, scratch=scratch, say=note, save_cache=save_cache is not None
            )
        if headroom and run.raw.stopped_at_s is None:
            from simulator.planning.headroom import headroom as find_headroom

            run.result["headroom"] = find_headroom(prepared, run, should_stop=should_stop, tell=progress).as_dict()
    progress_done()
    partial = run.raw.stopped_at_s is not None
    run.manifest["run"]["command_line"] = sys.argv
    directory = run_directory(output, run.name, run.digest)
    with terminable():
        directory = write_run(
            directory,
            result=run.result,
            manifest=run.manifest,
            requests=run.requests,
            timeline=run.timeline,
            partial=partial,
        )
    if run.scratch is not None:
        run.scratch.close()
    if save_cache is not None and run.cache is not None and not partial:
        from simulator.caches import cache_words

        write_file(save_cache, dense_json(run.cache))
        note(f"caches written to {save_cache}: {cache_words(run.cache)}")
    if partial:
        if not as_json:
            print(summary(run.result, run.manifest, str(directory)))
        raise InterruptedRun(f"interrupted; what was done is in {directory}")
    if (plots or trace) and isinstance(run.requests, Path):
        what, most = "plots" if plots else "a trace", simulation.STREAM_ABOVE
        print(
            f"no {what.removeprefix('a ')}: a run of more than {most:,} requests is counted without being held\n"
            f"  mend: for {what} simulate a part of it: fewer requests, a shorter duration, a window or a limit of the trace",
            file=sys.stderr,
        )
    else:
        if plots:
            from simulator.report.plots import write_plots

            write_plots(run, directory / "plots")
        if trace:
            from simulator.report.perfetto import write_trace

            write_trace(run, directory, say=note)
    if as_json:
        print(json_text(run.result), end="")
    else:
        print(summary(run.result, run.manifest, str(directory)))
    if strict and run.result["extrapolation"]["axes"]:
        print(f"outside the calibrated domain: {'; '.join(run.result['extrapolation']['axes'])}", file=sys.stderr)
        raise SystemExit(4)
    judged = [run.result["slo"], *(kind["slo"] for kind in run.result["classes"])]
    if fail_on_slo and any(slo and not slo["requests"] for slo in judged):
        raise InfeasibleError(
            "the SLO could not be judged: no request arrived in the measured window",
            where="--fail-on-slo",
            mend="lower workload.warmup, or lengthen the run",
        )
    if fail_on_slo and any(slo and not slo["holds"] for slo in judged):
        raise SystemExit(3)
