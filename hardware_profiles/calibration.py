"""Files of calibrations: scales that a user's own measurements gave a deployment, how well they fit, and where they hold.

`capacity-plan calibrate` writes them, `deployment.calibration` of a scenario names one. JSON:

    schema_version, kind     1, "calibration"
    scales                   name (prompt, decode, host) -> value, log_std (of its logarithm), unit, kind
    unidentified             name -> why the data do not tell it; it stays 1
    interval                 metric (ttft, tpot) -> log half-width of a 90 % interval
    measured_on              engine, version, hardware, model (or several), formats, devices of a replica
    elsewhere                part of a scale's logarithm that holds for another model (1 where it is not said)
    domain                   prompt_tokens, context_tokens, rows: [least, most] that were measured
    points                   how many measurements; rows of the before/after table under `table`
    held_out_error           median error of points left out in turn, null of a single one
    provenance               tool, date, files (name, sha256, client)
    steps                    where whole steps were measured: their law (`engine_models.cost.measured`), in place of scales;
                             `served` false: without a server around them, whose host and front end then come on top
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardware_profiles.errors import InputError
from hardware_profiles.files import parse_json, read_text
from hardware_profiles.records import dataclass
from hardware_profiles.scaled_ops import Scales

SCHEMA_VERSION = 1
KIND = "calibration"
SCALES = ("prompt", "decode", "host")
SETTING = (
    "engine", "version", "hardware", "model", "weights", "activations", "kv_cache", "tensor_parallel", "pipeline_parallel",
    "data_parallel", "features",
)  # fmt: skip
"""What of a deployment a calibration was measured on; one of another engine or device is another calibration."""
SEVERAL = "; "
"""Between the names of several models that were measured."""
RANGES = ("prompt_tokens", "context_tokens", "rows")
LEAST, MOST = 0.01, 100.0
"""Scales that can be (assumed: beyond, something else was measured)."""


@dataclass(frozen=True)
class Calibration:
    """What a file holds; see the head of the module. `name`, `path`: of the file, for words."""

    scales: Mapping[str, float]
    log_std: Mapping[str, float]
    unidentified: Mapping[str, str]
    interval: Mapping[str, float]
    measured_on: Mapping[str, str]
    domain: Mapping[str, tuple[float, float]]
    points: int
    held_out_error: float | None
    table: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any]
    name: str = ""
    steps: Mapping[str, Any] | None = None
    elsewhere_share: float = 1.0

    def of_model(self, model: str) -> bool:
        """Whether a model is among those measured."""
        return model in self.measured_on["model"].split(SEVERAL)

    def as_scales(self, model: str) -> Scales:
        """The scales of a model, 1 where the data told none."""
        part = 1.0 if self.of_model(model) else self.elsewhere_share
        return Scales(*(self.scales.get(name, 1.0) ** part for name in SCALES))

    def as_dict(self) -> dict[str, Any]:
        """The file's JSON."""
        scales = {
            name: {"value": value, "log_std": self.log_std[name], "unit": "measured time / profile's", "kind": "fitted"}
            for name, value in self.scales.items()
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "kind": KIND,
            "scales": scales,
            "unidentified": dict(self.unidentified),
            "interval": dict(self.interval),
            "measured_on": dict(self.measured_on),
            "domain": {name: list(bounds) for name, bounds in self.domain.items()},
            "points": self.points,
            "held_out_error": self.held_out_error,
            "table": [dict(row) for row in self.table],
            "provenance": dict(self.provenance),
            "elsewhere": self.elsewhere_share,
            **({} if self.steps is None else {"steps": dict(self.steps)}),
        }

    def write(self, path: Path) -> None:
        """Write the file. Raises InputError where one is already, which is left as it is."""
        text = json.dumps(self.as_dict(), indent=1, allow_nan=False) + "\n"
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            raise InputError("the file is there already", where=str(path), mend="name another, or remove it first") from None
        except OSError as error:
            raise InputError(f"cannot write: {error.strerror}", where=str(path), mend="name a folder you may write to") from None


def read_calibration(path: Path) -> Calibration:
    """Read a file. Raises InputError for another kind, or numbers that cannot be."""
    try:
        data = parse_json(read_text(path))
        if data["kind"] != KIND or data["schema_version"] != SCHEMA_VERSION:
            raise ValueError("another kind or version")
        scales = {name: float(entry["value"]) for name, entry in data["scales"].items()}
        log_std = {name: float(entry["log_std"]) for name, entry in data["scales"].items()}
        if any(name not in SCALES or not LEAST <= value <= MOST for name, value in scales.items()):
            raise ValueError(f"scales are {', '.join(SCALES)}, between {LEAST:g} and {MOST:g}")
        interval = {str(name): float(value) for name, value in data["interval"].items()}
        if any(not 0.0 < width < math.inf for width in [*interval.values()]):
            raise ValueError("an interval is no positive number")
        if not 0.0 <= float(data.get("elsewhere", 1.0)) <= 1.0:
            raise ValueError("elsewhere is between 0 and 1")
        return Calibration(
            scales,
            log_std,
            {str(k): str(v) for k, v in data["unidentified"].items()},
            interval,
            {name: str(data["measured_on"][name]) for name in SETTING},
            {name: (float(low), float(high)) for name, (low, high) in data["domain"].items()},
            int(data["points"]),
            None if data["held_out_error"] is None else float(data["held_out_error"]),
            tuple(data["table"]),
            data["provenance"],
            path.name,
            data.get("steps"),
            float(data.get("elsewhere", 1.0)),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"this is no calibration: {type(error).__name__}: {error}"[:200],
            where=str(path),
            mend="name a file that `capacity-plan calibrate results` wrote",
        ) from None


__all__ = ["MOST", "RANGES", "SCALES", "SETTING", "Calibration", "read_calibration"]
