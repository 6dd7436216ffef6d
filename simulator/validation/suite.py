"""A suite of measured experiments: rows of `experiments.parquet`, and how each becomes a scenario and its requests.

How suites spell engines, hardware and formats is in `spellings`; launches that rows do not state are in `launches` and, by
engine, in `engines`. A row that cannot be replayed raises `Unplayable` with the reason; nothing is guessed silently.
"""

from __future__ import annotations

import json
import math
from dataclasses import field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine_models.cost.stated_acceptance import ACCEPTANCE
from hardware_profiles.errors import InputError, PlanError
from hardware_profiles.records import dataclass
from simulator.validation.engines import PUBLISHED, engine_release
from simulator.validation.launches import launch_of, read_launches
from simulator.validation.published import number
from simulator.validation.recipes import SIDES, ranks_of, sides_of
from simulator.validation.spellings import (
    Unplayable,
    engine_name,
    engine_variant,
    formats_of,
    hardware_name,
)
from simulator.validation.vllm_launches import host_cores, is_serving_sim_bench
from simulator.workload.columns import Content, Workload
from simulator.workload.streams import stream

METRICS = (
    *(f"{name}_{stat}_ms" for name in ("ttft", "e2e", "tpot", "itl") for stat in ("mean", "p50", "p90", "p95", "p99")),
    "itl_mean_corrected_ms",
    "request_throughput_rps",
    "output_throughput_tok_s",
    "total_throughput_tok_s",
)
REQUIRED = ("id", "engine", "hardware", "model")


MOST_TOKENS = 1e8
"""Mean lengths of so many tokens are damage, not a measurement (assumed)."""
MOST_REQUESTS = 1_000_000
"""Most requests of one replayed run (assumed): more is a wrong unit of rate or duration."""


@dataclass(frozen=True)
class Experiment:
    """One run to simulate, with the rows (whole run and stages) that it predicts.

    `stage_of` gives each request's stage (-1 where the run has none); `judged` are the requests the client reported;
    `in_process` says that the client called the engine without a server between, so that no front end adds to TTFT;
    `host_cores` are the cores that its ranks had to share (None: enough of them); `front` and `costs` are facts of client
    and launch that no flag states, fields of `FrontEnd` and `Terms`; `start_s` is what the first request of each user waits
    longer when a closed loop starts; `fresh`: the server has served nothing yet.
    """

    rows: tuple[dict[str, Any], ...]
    scenario: dict[str, Any]
    workload: Workload
    stage_of: NDArray[np.int64]
    judged: NDArray[np.bool_]
    in_process: bool = False
    host_cores: int | None = None
    front: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    start_s: float = 0.0
    fresh: bool = False


def read_suite(directory: Path) -> list[dict[str, Any]]:
    """Rows of the suite, nulls left out, with their launches (`launch`).

    InputError if the file or a column that identifies a row is missing.
    """
    path = directory / "experiments.parquet"
    if not path.is_file():
        names = ("experiments.csv", "experiments.json", "experiments.jsonl")
        other = next((name for name in names if (directory / name).is_file()), "")
        raise InputError(
            "no experiments.parquet in it" + (f", but {other}" if other else ""),
            where=str(directory),
            mend=f"write {other} as Parquet" if other else "name a directory in the format of a measured suite",
        )
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except Exception as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise InputError(f"not a readable Parquet file: {reason}", where=str(path), mend="write it again, as Parquet") from None
    missing = [name for name in REQUIRED if name not in table.column_names]
    if missing:
        raise InputError(
            f"columns missing: {', '.join(missing)}", where=str(path), mend=f"a suite needs at least {', '.join(REQUIRED)}"
        )
    if not table.num_rows:
        raise InputError("it holds no experiment", where=str(path), mend="write one row a measured experiment")
    launches = read_launches(directory)
    rows = []
    for row in table.to_pylist():
        known = {k: v for k, v in row.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
        launch = launches.get(str(row["id"]))
        rows.append(known if launch is None else known | {"launch": launch})
    return rows


def base_id(row: dict[str, Any]) -> str:
    """Name shared by the rows of one run: the id without its last part when that names a stage or the whole."""
    name = str(row["id"])
    head, _, tail = name.rpartition("/")
    return head if head and (tail == "all" or tail.startswith("stage")) else name


def group_runs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], ...]]:
    """Rows of one run together, in the suite's order."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(base_id(row), []).append(row)
    return [tuple(group) for group in groups.values()]


def workload_lengths(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Mean prompt length by workload name, from the rows that know it: for rows of the same workload that do not."""
    known: dict[str, list[float]] = {}
    for row in rows:
        if "prompt_tokens_mean" in row and "workload" in row:
            known.setdefault(row["workload"], []).append(float(row["prompt_tokens_mean"]))
    return {name: float(np.mean(values)) for name, values in known.items()}


# -- pools ---------------------------------------------------------------------------------------------------


def pool_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return the deployment's pool of a row."""
    from engine_models.engines.known import find
    from engine_models.model.architecture import load_architecture, uneven_block_width
    from engine_models.model.formats import format_named
    from hardware_profiles.device import load_device

    engine = engine_name(row)
    published = PUBLISHED.get(engine)
    modelled = find(engine)
    if published is None and modelled is not None:
        raise Unplayable(f"engine '{row['engine']}': how its runs state launches and versions is not known here yet")
    if published is None:
        raise Unplayable(f"engine '{row['engine']}' is not modelled")
    if engine_variant(row):
        raise Unplayable(f"engine '{row['engine']}': this variant of {engine} is not modelled")
    release = engine_release(row)
    if launch_of(row).unfit:
        raise Unplayable(launch_of(row).unfit)
    if row.get("disagg"):
        raise Unplayable("disaggregated prefill and decode are not modelled yet")
    if any(words in str(row.get("replay", "")) for words in ("aggregates only", "prefix hashes not", "token ids not")):
        raise Unplayable("conversations whose content or lengths are not recorded")
    drafts = _drafts(row)
    if str(row.get("replay", "")).startswith("not"):
        raise Unplayable(f"the suite says: {row['replay']}")
    try:
        arch = load_architecture(str(row["model"]))
        device = load_device(hardware_name(row))
    except PlanError as error:
        raise Unplayable(error.message) from None
    if not any(number(row, k) for k in ("tp", "pp", "dp")) and (number(row, "gpus") or 1) > 1:
        raise Unplayable(f"{int(row['gpus'])} GPUs, and not how they share the model")
    tp, pp, dp, ep = (int(number(row, k) or 1) for k in ("tp", "pp", "dp", "ep"))
    instances = published.instances(row)
    formats = formats_of(row, arch.quantization)
    args = published.launch(row, device.name) | published.columns(row)
    if "kv_cache" in formats:
        args.pop("kv_cache_dtype", None)  # what the row states goes before the launch
    if "activations" in args:
        formats["activations"] = args.pop("activations")
    pool: dict[str, Any] = {
        "engine": f"{engine}@{release}" if release else engine,
        "hardware": device.name,
        "engine_args": args,
        **formats,
    }
    launched = published.parallel(row)
    if launched:  # its flags state the ranks, which samples multiply
        pool |= launched
    else:
        if dp > 1 and instances == 1 and not arch.has_experts:
            raise Unplayable("data-parallel ranks of several servers are not modelled yet")
        ranks = dp if instances == 1 else 1
        if ep == 1 and uneven_block_width(arch, format_named(formats["weights"]), tp, ep, ranks):
            ep = tp * ranks  # the engine loads it no other way
        pool |= {"tensor_parallel": tp, "pipeline_parallel": pp}
        if ep > 1:
            pool["expert_parallel"] = ep
        if ranks > 1:
            pool["data_parallel"] = ranks
            args |= {**published.ranks(ranks), **args}
    if instances > 1:
        pool["replicas"] = instances
    if drafts is not None:
        pool["speculative"] = drafts
    return pool


def pools_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the deployment's pools of a row: one, or a prefill and a decode pool where it says how many workers each has."""
    if not row.get("disagg"):
        return [pool_of(row)]
    try:
        layout = json.loads(str(row["disagg"]))
        workers = {side: int(layout[f"{side}_num_workers"]) for side in SIDES}
    except (ValueError, KeyError, TypeError):
        raise Unplayable("prefill and decode apart, and not how many servers of each") from None
    pools, launch = [], launch_of(row)
    weights = str(row.get("precision", ""))
    users = int(number(row, "concurrency") or 0)
    flags = sides_of(launch.layout, users, weights)
    for side in SIDES:
        ranks, shared = int(layout[f"{side}_tp_size"]), int(layout[f"{side}_attention_dp_size"])
        parts = {"tp": ranks, "pp": int(layout[f"{side}_pp_size"]), "dp": shared, "ep": int(layout[f"{side}_moe_ep_size"])}
        parts |= ranks_of(launch.layout, users, weights, side)
        launched = replace(launch, flags={**launch.flags, **flags.get(side, {})})
        pool = pool_of({**row, **parts, "gpus": parts["tp"] * parts["dp"], "disagg": None, "launch": launched})
        pools.append({**pool, "name": side, "role": side, "replicas": workers[side]})
    return pools


def _drafts(row: dict[str, Any]) -> dict[str, Any] | None:
    """Speculative decoding of a row: its settings as JSON (vLLM's names), with the acceptance in them or in its own column."""
    from engine_models.engines.vllm_flags import speculative_settings

    stated = row.get("speculative")
    if not stated or str(stated).lower() in ("none", "false", "off"):
        return None
    try:
        config = stated if isinstance(stated, dict) else json.loads(str(stated))
        settings = speculative_settings(config) | {k: config[k] for k in ACCEPTANCE if k in config}
    except (ValueError, AttributeError, TypeError):
        raise Unplayable(f"speculative decoding '{stated}' is not stated as settings") from None
    settings |= {k: row[k] for k in ACCEPTANCE if k in row}
    if not any(k in settings for k in ACCEPTANCE):
        raise Unplayable("speculative decoding without a stated acceptance")
    return settings


# -- requests -----------------------------------------------------------------------------------------------


def _plain(
    arrival_s: NDArray[np.float64],
    prompt: NDArray[np.int64],
    output: NDArray[np.int64],
    content: Content | None = None,
    predecessor: NDArray[np.int64] | None = None,
) -> Workload:
    n = len(prompt)
    zeros, ones = np.zeros(n, dtype=np.int64), np.full(n, -1, dtype=np.int64)
    known = arrival_s[~np.isnan(arrival_s)]
    return Workload(
        arrival_s=arrival_s,
        prompt_tokens=prompt,
        output_tokens=output,
        max_output_tokens=output,
        predecessor=ones if predecessor is None else predecessor,
        gap_s=np.zeros(n),
        not_before_s=np.zeros(n),
        session_id=ones,
        turn=zeros,
        class_index=zeros,
        classes=(),
        content=content,
        request_ids=None,
        duration_s=math.inf if predecessor is not None else float(known[-1]),
        warmup_s=0.0,
        drain_s=3600.0,
        source={"name": "measured suite"},
    )


def _pool_content(ids: NDArray[np.int64], prompt: NDArray[np.int64]) -> Content:
    """Prompts that repeat: requests with the same id have the same tokens."""
    n = len(ids)
    zeros = np.zeros(n, dtype=np.int64)
    return Content(np.arange(n + 1), ids, zeros, prompt, np.full(n, -1, dtype=np.int64), zeros)


def _common_prefix(n: int, tokens: int, groups: int) -> Content:
    """A system prompt of `tokens` tokens common to all requests (of each of `groups` groups, in turn)."""
    ids, zeros = np.arange(n, dtype=np.int64) % groups, np.zeros(n, dtype=np.int64)
    return Content(np.arange(n + 1), ids, zeros, np.full(n, tokens, dtype=np.int64), zeros - 1, zeros)


def exact_requests(row: dict[str, Any], directory: Path) -> tuple[Workload, NDArray[np.int64], NDArray[np.bool_]]:
    """Requests as recorded: arrivals, lengths, repeated prompts."""
    import pyarrow.parquet as pq

    path = directory / str(row["per_request_file"])
    if not path.is_file():
        path = directory / "requests" / Path(str(row["per_request_file"])).name
    if not path.is_file():
        raise Unplayable(f"per-request file {row['per_request_file']} is missing")
    try:
        table = pq.read_table(path)
    except Exception as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise Unplayable(f"per-request file {row['per_request_file']} is damaged: {reason}") from None
    names = set(table.column_names)
    if "id" in names:
        import pyarrow.compute as pc

        table = table.filter(pc.equal(table["id"], row["id"]))
    column = {name: np.asarray(table[name].to_pandas()) for name in names if name != "itl_ms"}
    if "conversation_id" in names or "trace_id" in names:
        raise Unplayable("conversations without their content are not replayed")
    if "arrival_time_us" not in names:
        raise Unplayable("no arrival times in the per-request file")
    outputs = column.get("output_tokens_requested", column.get("output_tokens"))
    if outputs is None or "prompt_tokens" not in names:
        raise Unplayable("no token counts in the per-request file")
    if not table.num_rows:
        raise Unplayable("no request of this run in the per-request file")
    counted = number(row, "num_requests")
    if counted is not None and "stage_index" not in row and int(counted) != table.num_rows:
        raise Unplayable(f"num_requests is {counted:g}, the per-request file holds {table.num_rows}: they contradict each other")
    order = np.argsort(column["arrival_time_us"], kind="stable")
    arrival = column["arrival_time_us"][order].astype(float) / 1e6
    prompt = column["prompt_tokens"][order].astype(float)
    output = outputs[order].astype(float)
    if np.isnan(prompt).any() or np.isnan(output).any() or (output < 1).any():
        raise Unplayable("token counts are missing for some requests")
    if not (np.isfinite(prompt).all() and np.isfinite(output).all() and (prompt >= 1).all()):
        raise Unplayable("token counts that are zero, negative or not finite in the per-request file")
    if not np.isfinite(arrival).all():
        raise Unplayable("arrival times are missing or not finite for some requests")
    content = None
    if "prompt_id" in names:
        content = _pool_content(column["prompt_id"][order].astype(np.int64), prompt.astype(np.int64))
    elif number(row, "shared_prefix_tokens") and float(row["shared_prefix_tokens"]) < float(prompt.min()):
        content = _common_prefix(len(order), int(row["shared_prefix_tokens"]), int(number(row, "prefix_groups") or 1))
    stage = column["stage"][order].astype(np.int64) if "stage" in names else np.full(len(order), -1, dtype=np.int64)
    failed = column["error"][order].astype(bool) if "error" in names else np.zeros(len(order), dtype=bool)
    workload = _plain(arrival - arrival[0], prompt.astype(np.int64), output.astype(np.int64), content)
    return workload, stage, ~failed


def statistical_requests(
    row: dict[str, Any], lengths: dict[str, float]
) -> tuple[Workload, NDArray[np.int64], NDArray[np.bool_]]:
    """Requests by the row's own statistics: closed loop by concurrency, else Poisson arrivals at the stated rates.

    Clients of the inference-perf kind cycle 100 prompts, ten groups of ten with a shared system prompt.
    """
    rng = stream(0, f"suite/{row['id']}")
    prompt_mean = number(row, "prompt_tokens_mean")
    if prompt_mean is None and row.get("workload") in lengths:
        prompt_mean = lengths[row["workload"]]
    if prompt_mean is None and number(row, "question_tokens_target"):
        prompt_mean = float(row["question_tokens_target"]) + float(row.get("shared_prefix_tokens", 0))
    output_mean = number(row, "output_tokens_mean") or number(row, "output_tokens_target")
    if not prompt_mean or not output_mean:
        raise Unplayable("mean prompt or output length unknown")
    if not (1 <= prompt_mean < MOST_TOKENS and 1 <= output_mean < MOST_TOKENS):
        raise Unplayable(f"mean prompt or output length impossible: {prompt_mean:g} and {output_mean:g} tokens")
    concurrency = number(row, "concurrency")
    if concurrency:
        client = launch_of(row).client
        least = float(client.get("range_ratio") or 1.0)
        users = int(concurrency)
        n = int(number(row, "num_requests") or max(int(client.get("num_prompts_per_user") or 10) * users, 40))
        n = min(n, 20_000)

        def draw(mean: float) -> NDArray[np.int64]:
            return np.maximum(np.rint(rng.uniform(least * mean, mean, n)), 1).astype(np.int64)

        prompt, output = draw(prompt_mean), draw(output_mean)
        arrival = np.full(n, np.nan)
        arrival[:users] = 0.0
        predecessor = np.full(n, -2, dtype=np.int64)
        predecessor[:users] = -1
        return _plain(arrival, prompt, output, None, predecessor), np.full(n, -1, np.int64), np.ones(n, bool)
    stages: list[tuple[float, float]] = []
    if row.get("rate_stages"):
        for rate, seconds in json.loads(str(row["rate_stages"])):
            stages.append((float(rate), float(seconds if seconds is not None else row.get("duration_s", 1200.0))))
    elif number(row, "request_rate_rps"):
        seconds = number(row, "duration_s")
        if seconds is None and number(row, "num_requests"):
            seconds = float(row["num_requests"]) / float(row["request_rate_rps"])
        stages.append((float(row["request_rate_rps"]), seconds or 1200.0))
    else:
        raise Unplayable("neither arrival rate nor concurrency is known")
    if not all(0 < rate < math.inf and 0 < seconds < math.inf for rate, seconds in stages):
        raise Unplayable("an arrival rate or its duration is zero, negative or not finite")
    if sum(rate * seconds for rate, seconds in stages) > MOST_REQUESTS:
        raise Unplayable(f"rate and duration ask for more than {MOST_REQUESTS:,} requests")
    times: list[NDArray[np.float64]] = []
    stage_of: list[NDArray[np.int64]] = []
    start = 0.0
    for stage, (rate, seconds) in enumerate(stages):
        count = max(1, round(rate * seconds))
        times.append(start + np.sort(rng.uniform(0.0, seconds, count)))
        stage_of.append(np.full(count, stage, dtype=np.int64))
        start += seconds
    arrival = np.concatenate(times)
    n = len(arrival)
    prompt = np.full(n, round(prompt_mean), dtype=np.int64)
    output = np.full(n, round(output_mean), dtype=np.int64)
    content = None
    if number(row, "shared_prefix_tokens") and "inference-perf" in str(row.get("arrival_process", "")):
        ids = np.arange(n) % 100
        prompt = prompt + rng.integers(-6, 7, 100)[ids]
        content = _pool_content(ids, prompt)
    return _plain(arrival, prompt, output, content), np.concatenate(stage_of), np.ones(n, dtype=bool)


def plan_experiment(
    rows: tuple[dict[str, Any], ...], directory: Path, lengths: dict[str, float]
) -> Experiment:
    """Turn the rows of one run into a scenario and its requests."""
    row = min(rows, key=lambda r: r.get("stage_index", -1))
    pools = pools_of(row)
    if row.get("per_request_file") and "statistical" not in str(row.get("replay", "exact")):
        workload, stage, judged = exact_requests(row, directory)
    else:
        workload, stage, judged = statistical_requests(row, lengths)
    scenario = {
        "name": "".join(c if c.isalnum() or c in "-._" else "-" for c in base_id(row)),
        "model": str(row["model"]),
        "deployment": pools[0] if len(pools) == 1 else {"pools": pools},
        "workload": {"arrivals": {"kind": "batch"}, "prompt_tokens": 1, "output_tokens": 1, "requests": 1},
        "cost": {"usd_per_gpu_hour": 0.0},
    }
    in_process = is_serving_sim_bench(row)
    published = PUBLISHED[engine_name(row)]
    return Experiment(
        rows,
        scenario,
        workload,
        stage,
        judged,
        in_process,
        host_cores(row),
        published.front(row),
        published.costs(row),
        published.start_s(row),
        published.fresh(row),
    )
