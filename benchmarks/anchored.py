"""What one measured row of a machine is worth: errors on published measurements before and after it calibrates the machine.

    python benchmarks/cases.py ../shared/data/published --output cases.jsonl
    python benchmarks/anchored.py cases.jsonl [--only WORD]... [--most ROWS] [--workers N]

Each row of a machine (engine, device, metric) is in turn the only one that `calibrate results` fits its scales to; the others
are judged, those of another model by the part of the scales that a run of it takes. Values further from the profile than
`calibrate results` believes are no anchors. A case is simulated four times, as it is and with each scale moved; between, its
logarithm is taken to be linear. Of a machine the median error counts, over its anchors the median, and the mean, which an anchor
should not make worse; of a class every machine once. `benchmarks/laws.py` says the same of chips that its constants never saw.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hardware_profiles.errors import PlanError
from hardware_profiles.scaled_ops import Scales
from simulator.calibrated import with_scales
from simulator.calibration.fit import RATES, SCALES, STEP, Known, Point, fit
from simulator.calibration.results import LIKELY, known_of
from simulator.calibration.served import in_flight
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.validation.reports import Case, read_cases, simulated
from simulator.workload.build import build_workload

MOVED = (Scales(), *(Scales(*(math.exp(STEP * (name == other)) for other in SCALES)) for name in SCALES))
"""The profile, and each scale moved alone."""


@dataclass(frozen=True)
class Measured:
    """A row: the log error of its time, predicted over measured, its sensitivities, what was known before, rows at once."""

    machine: tuple[str, str, str, str]
    model: str
    error: float
    sensitivity: tuple[float, ...]
    known: Known
    rows: float = 1.0

    def point(self) -> Point:
        """The row as a point of a calibration, linear in the logarithms of the scales."""

        def predict(scales: Scales) -> Mapping[str, float]:
            logs = np.log([scales.prompt_scale, scales.decode_scale, scales.host_scale])
            return {"time": math.exp(self.error + float(logs @ np.array(self.sensitivity)))}

        return Point("", {"time": 1.0}, predict, {}, {"rows": self.rows})


def measured(case: Case) -> list[Measured]:
    """The rows of a case; none where it is refused."""
    try:
        prepared = prepare(load_scenario(case.scenario))
        found = [simulated(with_scales(prepared, scales), case.lengths)[0] for scales in MOVED]
    except PlanError:
        return []
    source, pool = case.id.rpartition("-")[0], prepared.pool
    out = []
    figures = {name: value for name, (value, _) in found[0].items()}
    load = build_workload(prepared.scenario.workload, seed=prepared.scenario.seed, base_dir=prepared.base_dir)
    count = len(case.lengths or load.prompt_tokens)
    rows = in_flight(figures, count) if figures.keys() >= {"e2e_s", "duration_s"} else 1.0
    for metric, value in case.reported.items():
        if all(metric in each for each in found):
            sign = -1.0 if metric in RATES else 1.0
            errors = [sign * math.log(each[metric][0] / float(value)) for each in found]
            moved = tuple((error - errors[0]) / STEP for error in errors[1:])
            machine = (source, prepared.plan.engine, pool.hardware, metric)
            out.append(Measured(machine, prepared.arch.name, errors[0], moved, known_of(prepared), rows))
    return out


def after_one(rows: Sequence[Measured]) -> list[tuple[float, float]]:
    """Median absolute relative error of the other rows, as they are and with each row in turn as the anchor."""
    out = []
    for number, anchor in enumerate(rows):
        if abs(anchor.error) > math.log(LIKELY):
            continue
        logs = fit([anchor.point()], anchor.known).log_scales
        move = np.array([logs.get(name, 0.0) for name in SCALES])
        others = [other for at, other in enumerate(rows) if at != number]
        part = [1.0 if other.model == anchor.model else anchor.known.followed.elsewhere_share for other in others]
        before = np.array([other.error for other in others])
        after = before + np.array([other.sensitivity for other in others]) @ move * part
        out.append((float(np.median(np.abs(np.expm1(before)))), float(np.median(np.abs(np.expm1(after))))))
    return out


def main() -> None:
    """Print errors by machine and class."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", type=Path)
    parser.add_argument("--only", action="append", default=[], help="only cases with this word in their names")
    parser.add_argument("--most", type=int, default=24, help="rows of a machine, evenly picked")
    parser.add_argument("--workers", type=int, default=1)
    asked = parser.parse_args()
    by_machine: dict[tuple[str, str], list[Case]] = defaultdict(list)
    for case in read_cases(asked.cases):
        if not asked.only or any(word in case.id for word in asked.only):
            pool = load_scenario(case.scenario).deployment.pools[0]
            by_machine[case.id.rpartition("-")[0], f"{pool.engine} {pool.hardware} {'/'.join(case.reported)}"].append(case)
    picked = [
        cases[round(at)]
        for cases in by_machine.values()
        for at in np.linspace(0, len(cases) - 1, min(asked.most, len(cases)))
    ]
    if asked.workers > 1:
        from joblib import Parallel, delayed

        found = Parallel(n_jobs=asked.workers)(delayed(measured)(case) for case in picked)
    else:
        found = [measured(case) for case in picked]
    machines: dict[tuple[str, str, str, str], list[Measured]] = defaultdict(list)
    for row in (row for some in found for row in some):
        machines[row.machine].append(row)
    classes: dict[tuple[str, str], list[tuple[float, ...]]] = defaultdict(list)
    print(f"{'':16}{'engine':11}{'device':27}{'metric':16}{'rows':>5}{'before':>8}{'after':>7}{'mean':>7}{'after':>7}")
    for (source, engine, device, metric), rows in sorted(machines.items()):
        if len(rows) < 2:
            continue
        each = 100 * np.array(after_one(rows))
        if not len(each):
            continue
        found = (*np.median(each, axis=0).tolist(), *np.mean(each, axis=0).tolist())
        figures = "".join(f"{x:7.1f}" for x in found[1:])
        print(f"{source:16}{engine:11}{device:27}{metric:16}{len(rows):5}{found[0]:8.1f}{figures}")
        classes[source, metric].append(found)
    for (source, metric), each_of in classes.items():
        middle, mean = np.median(each_of, axis=0), np.mean(each_of, axis=0)
        print(
            f"{source} {metric}: {len(each_of)} machines, median over anchors and machines {middle[0]:.1f} % before, "
            f"{middle[1]:.1f} % after one anchor; mean {mean[2]:.1f} and {mean[3]:.1f} %"
        )


if __name__ == "__main__":
    main()
