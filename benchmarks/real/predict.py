"""Predicts runs of real CPU servers from microbenchmarks of the same machine, and prints the JSON of `validate runs`.

    python benchmarks/real/predict.py DIR [--only WORD]... [--table]

DIR holds `runs.parquet` (a row a run), `requests.parquet` (a row a request) and `calibration/`: rows of llama-bench and
llama-batched-bench (`MODEL-*.bench.jsonl`, `.batched.jsonl`), or of single requests and K equal ones over HTTP
(`NAME-pP.jsonl`, `NAME-dP-kK.jsonl`). Each run's arrivals, prompts and outputs go through the engine's own scheduler; a step
costs what `engine_models.cost.measured` fits to the microbenchmarks. Nothing is fitted to a run.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from engine_models.cost.measured import MeasuredStep, Part, StepLaw, fit_law
from engine_models.cost.terms import HostOverhead
from simulator.config.load import load_scenario
from simulator.prepare import prepare
from simulator.results.domain import domain
from simulator.results.latencies import latencies
from simulator.run import run_prepared
from simulator.validation.microbenchmarks import chunked, read_steps
from simulator.validation.runs import predictions
from simulator.workload.columns import Workload
from simulator.workload.content import Content

Floats = NDArray[np.float64]
MODELS: dict[str, dict[str, Any]] = {
    "31m": {
        "hidden_size": 512,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "intermediate_size": 1408,
        "vocab_size": 8000,
    },
    "246m": {
        "hidden_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 2816,
        "vocab_size": 32000,
    },
}
"""Shapes of the two models (llama architecture); the folder names layers, widths, heads and vocabulary, the rest follows from
their number of parameters."""
Q4_0_BITS, Q6_K_BITS = 4.5, 6.5625
"""Bits of a weight in layers and in the head, by the sizes of the files (fitted: 18,380,032 and 146,896,896 bytes)."""
ROWS_AT_ONCE = 4
"""Rows that ggml's products of repacked weights take at once on a CPU (datasheet: `ggml/src/ggml-cpu/repack.cpp`)."""
TILE_TOKENS = 64
"""Tokens of a chunk from which ggml's attention on a CPU works by tiles (datasheet: `GGML_FA_TILE_Q`, `ggml/src/ggml-cpu`)."""
DEVICE = "epyc-9755-1s"
"""A profile of the family, for the memory alone: steps are timed by the measured law."""
SLOT_TOKENS = 2048
"""Context of a slot (assumed: not recorded; the longest request has 1,360 tokens, so nothing depends on it)."""
VLLM_FRONT_S, VLLM_TOKEN_S = 0.0027, 2.1e-6
"""What vLLM's front end adds to a lone request, and for each prompt token (measured: `front_end/README.md` beside the runs,
one at a time with idle cores: loop 2.25 ms, tokeniser 0.43 ms; 0.7 us and 1.4 us a token)."""
VLLM_STEP_TOKENS = 512
"""Tokens of a step of the measured vLLM (fitted: of equal prompts of 511 tokens at once, the fourth has its first token after
five steps of equal length, as under this budget and no larger one: `calibration/vllm246-d512-k8.jsonl`)."""
WORDS = re.compile(r"\d+m|np\d+|ub\d+|[pcb]\d+|r\d+|seed\d+|pfx|cache|nocache")
"""What names of runs are made of: model, slots, batch, load, repetition, seed, shared prefixes."""


@dataclass(frozen=True)
class Setting:
    """A deployment: engine, model, flags, and the law of its steps."""

    engine: str
    model: str
    flags: dict[str, Any]
    law: StepLaw
    weights: str


def lines(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


def llama_law(folder: Path, model: str) -> tuple[StepLaw, Floats]:
    """The law of a model under llama.cpp, and its relative errors on the microbenchmarks."""
    shape = MODELS[model]
    hidden, width = shape["hidden_size"], shape["hidden_size"] // shape["num_attention_heads"]
    attention = 2 * hidden * hidden + 2 * hidden * width * shape["num_key_value_heads"]
    layers = shape["num_hidden_layers"] * (attention + 3 * hidden * shape["intermediate_size"])
    share = shape["vocab_size"] * hidden * Q6_K_BITS / (layers * Q4_0_BITS)
    steps = read_steps(path for kind in ("bench", "batched") for path in sorted(folder.glob(f"{model}-*.{kind}.jsonl")))
    law = fit_law(steps, ROWS_AT_ONCE, share, TILE_TOKENS)
    return law, law.errors(steps)


def vllm_steps(folder: Path) -> Iterator[MeasuredStep]:
    """Steps of vLLM as a client sees them: lone prompts less the front end, and the gaps while all K requests decode."""
    for path in sorted(folder.glob("vllm246-*.jsonl")):
        rows = list(lines(path))
        count = int(found[1]) if (found := re.search(r"-k(\d+)$", path.stem)) else 1
        if count == 1:
            for row in rows:
                seconds = row["v_tok"][0] - row["v_send"] - VLLM_FRONT_S - VLLM_TOKEN_S * row["prompt"]
                yield MeasuredStep(chunked(row["prompt"], 0, VLLM_STEP_TOKENS), seconds)
        begin, end = max(row["v_tok"][0] for row in rows), min(row["v_tok"][-1] for row in rows)
        gaps = [
            (np.median(np.diff(inside)), row["prompt"] + len(row["v_tok"]) / 2)
            for row in rows
            if len(inside := [at for at in row["v_tok"] if begin <= at <= end]) > 1
        ]
        if gaps:
            step_s, prior = np.median([gap for gap, _ in gaps]), float(np.mean([each for _, each in gaps]))
            yield MeasuredStep((Part(count, 1, prior, count),), float(step_s))


def vllm_law(folder: Path) -> tuple[StepLaw, Floats]:
    """The law of the 246M model under vLLM, and its relative errors on the microbenchmarks."""
    steps = list(vllm_steps(folder))
    law = fit_law(steps)
    return law, law.errors(steps)


def setting_of(row: dict[str, Any], folder: Path) -> Setting:
    """The deployment of a run, from its name. Raises ValueError where it does not say enough, or what is not known here."""
    name = str(row["run"])
    flags: dict[str, Any]
    unknown = [word for word in name.split("-") if not WORDS.fullmatch(word)]
    if unknown:
        raise ValueError(f"what {', '.join(unknown)} means in {name} is not known")
    if str(row["dir"]).startswith("vllm"):
        flags = {"enforce_eager": True, "async_scheduling": False, "max_num_batched_tokens": VLLM_STEP_TOKENS}
        return Setting("vllm@0.32.0", "246m", flags, law_of("vllm", folder, "246m"), "bf16")
    found = re.match(r"(\d+m)-np(\d+)-", name)
    if not str(row["dir"]).startswith("llama") or found is None or found[1] not in MODELS:
        raise ValueError(f"no deployment is known of {name}")
    slots, batch = int(found[2]), re.search(r"-ub(\d+)", name)
    flags = {"parallel": slots, "ctx_size": slots * SLOT_TOKENS, "threads": 1}
    flags["cache_prompt"] = bool(row["cache_prompt"])
    if batch:
        flags |= {"batch_size": int(batch[1]), "ubatch_size": int(batch[1])}
    return Setting("llama_cpp", found[1], flags, law_of("llama", folder, found[1]), "q4_0")


@lru_cache(maxsize=8)
def law_of(engine: str, folder: Path, model: str) -> StepLaw:
    """The law of a model under an engine."""
    return (vllm_law(folder) if engine == "vllm" else llama_law(folder, model))[0]


def prefixes_of(row: dict[str, Any], n: int) -> Content | None:
    """Prefixes that requests share, where they are cached. Which request has which is not recorded: drawn by the run's seed."""
    if not row["prefix"] or not (row["cache_prompt"] or str(row["dir"]).startswith("vllm")):
        return None
    drawn = np.random.default_rng(int(row["seed"])).integers(int(row["nprefix"]) or 1, size=n)
    zeros = np.zeros(n, np.int64)
    return Content(np.arange(n + 1), drawn, zeros, np.full(n, int(row["prefix"])), zeros - 1, zeros)


def workload_of(row: dict[str, Any], requests: pd.DataFrame) -> Workload:
    """Arrivals and lengths of a run as recorded, in a closed loop by its concurrency."""
    n, users = len(requests), int(row["conc"])
    zeros, none = np.zeros(n, np.int64), np.full(n, -1, np.int64)
    arrival, after = requests["due"].to_numpy(float), none.copy()
    if users:
        sent = requests["v_send" if row["clock"] == "v" else "t_send"].to_numpy(float)
        arrival = np.where(np.arange(n) < users, sent, np.nan)
        after[users:] = -2
    prompt, output = (requests[name].to_numpy(np.int64) for name in ("prompt", "out"))
    return Workload(
        arrival_s=arrival,
        prompt_tokens=prompt,
        output_tokens=output,
        max_output_tokens=output,
        predecessor=after,
        gap_s=np.zeros(n),
        not_before_s=np.zeros(n),
        session_id=none,
        turn=zeros,
        class_index=zeros,
        classes=(),
        content=prefixes_of(row, n),
        request_ids=None,
        duration_s=float("inf") if users else float(arrival[-1]),
        warmup_s=0.0,
        drain_s=3600.0,
        source={"name": "real servers"},
    )


def measured_of(row: dict[str, Any], requests: pd.DataFrame) -> dict[str, float]:
    """TTFT, ITL and E2E of a run [ms], by its own clock."""
    clock = "v" if row["clock"] == "v" else "t"
    tokens = [np.asarray(times, float) for times in requests[f"{clock}_tok"]]
    begin = requests[f"{clock}_send"].to_numpy(float) if row["conc"] else requests["due"].to_numpy(float)
    first = np.array([times[0] for times in tokens]) - begin
    whole = np.array([times[-1] for times in tokens]) - begin
    gaps = np.concatenate([np.diff(times) for times in tokens])
    out = {"itl_mean_ms": float(gaps.mean()) * 1e3}
    for name, values in (("ttft", first), ("e2e", whole)):
        out[f"{name}_mean_ms"] = float(values.mean()) * 1e3
        for percent in (50, 90, 99):
            out[f"{name}_p{percent}_ms"] = float(np.percentile(values, percent)) * 1e3
    return out


def compare(row: dict[str, Any], requests: pd.DataFrame, folder: Path) -> list[dict[str, Any]]:
    """Simulate a run; the entries of the JSON."""
    setting = setting_of(row, folder)
    scenario = load_scenario(
        {
            "model": {"name": setting.model, "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
            | MODELS[setting.model],
            "deployment": {
                "engine": setting.engine,
                "hardware": DEVICE,
                "weights": setting.weights,
                "engine_args": setting.flags,
            },
            "workload": {  # replaced by the recorded requests
                "arrivals": {"kind": "poisson", "rate": 1},
                "prompt_tokens": {"kind": "constant", "value": 1},
                "output_tokens": {"kind": "constant", "value": 1},
                "requests": 1,
            },
        }
    )
    prepared = prepare(scenario)
    plan = replace(prepared.plan, costs=replace(prepared.plan.costs, measured=setting.law))
    if setting.engine.startswith("vllm"):  # what steps cost a client is in the law
        plan = replace(
            plan,
            costs=plan.costs.with_terms(host=HostOverhead(0.0, 0.0)),
            front=replace(plan.front, before_s=VLLM_FRONT_S, tokenise_token_s=VLLM_TOKEN_S, loop=None),
        )
    prepared = replace(prepared, plan=plan)
    run = run_prepared(prepared, workload=workload_of(row, requests))
    evidence, _ = domain(prepared)
    evidence = replace(evidence, closed_loop=bool(row["conc"]))
    found = predictions(run, latencies(run.raw), evidence, np.ones(len(requests), bool))
    return [
        {
            "id": f"{row['dir']}/{row['run']}",
            "metric": metric,
            "measured": value,
            "predicted": found[metric].value,
            "abs_pct_error": abs(found[metric].value / value - 1) * 100,
            "interval": found[metric].interval,
            "covered": covered(found[metric].interval, value),
        }
        for metric, value in measured_of(row, requests).items()
    ]


def covered(bounds: list[float] | None, value: float) -> bool | None:
    """Whether an interval holds a value."""
    return None if bounds is None else bounds[0] <= value <= bounds[1]


def predict(directory: Path, only: tuple[str, ...] = ()) -> dict[str, Any]:
    """The JSON of `validate runs` for all runs of a folder but those of its calibration."""
    requests = pd.read_parquet(directory / "requests.parquet")
    by_run = {key: rows.sort_values("i") for key, rows in requests.groupby(["dir", "run"])}
    experiments: list[dict[str, Any]] = []
    skipped: list[dict[str, str]] = []
    for row in pd.read_parquet(directory / "runs.parquet").to_dict("records"):
        name = f"{row['dir']}/{row['run']}"
        if str(row["dir"]).startswith("cal") or (only and not any(word in name for word in only)):
            continue
        try:
            experiments += compare(row, by_run[row["dir"], row["run"]], directory / "calibration")
        except ValueError as reason:
            skipped.append({"id": name, "reason": str(reason)})
    by_metric: dict[str, list[float]] = defaultdict(list)
    for entry in experiments:
        by_metric[entry["metric"]].append(entry["abs_pct_error"])
    medians = {metric: float(np.median(errors)) for metric, errors in by_metric.items()}
    return {"experiments": experiments, "skipped": skipped, "medians": medians}


def table(outcome: dict[str, Any]) -> str:
    """Signed errors in percent, a line a run."""
    frame = pd.DataFrame(outcome["experiments"])
    frame["error"] = 100 * (frame["predicted"] / frame["measured"] - 1)
    return str(frame.pivot(index="id", columns="metric", values="error").round(1).to_string())


def main() -> None:
    """Print the JSON, or a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", action="append", default=[], help="only runs with this word in their names")
    parser.add_argument("--table", action="store_true", help="signed errors as a table")
    given = parser.parse_args()
    outcome = predict(given.directory, tuple(given.only))
    print(table(outcome) if given.table else json.dumps(outcome))


if __name__ == "__main__":
    main()
