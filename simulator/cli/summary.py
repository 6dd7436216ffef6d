"""The terminal summary of a run: what a capacity planner reads at a glance."""

from __future__ import annotations

import math
from typing import Any

from hardware_profiles.device import device_word
from simulator.cli.layout import LABEL, labelled, table, wrapped
from simulator.price import OWNED
from simulator.report.numbers import dollars, short
from simulator.report.words import REASONS, cache_words, holder_of, reasons_of, shape_of

LATENCIES = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("ITL", "itl_ms"), ("E2E", "e2el_ms"), ("queue", "queue_ms"))

ROUNDING = 1e-12
"""Relative spread of values that differ by the rounding of their sums alone."""


def latency_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """Rows of the latency table: metric, mean with its 95 % sampling error, p50, p90, p99, max."""
    rows = []
    for title, name in LATENCIES:
        stats = metrics[name]
        half = ""
        if stats["ci95"]:
            width = stats["ci95"][1] - stats["mean"]
            half = f" ±{short(width if width > ROUNDING * abs(stats['mean'] or 0.0) else 0.0)}"
        model = _between(stats, "mean") or "-"
        rows.append(
            [title, short(stats["mean"]) + half, *(short(stats[p]) for p in ("p50", "p90", "p99", "max")), model]
        )
    return rows


def _between(stats: dict[str, Any], statistic: str) -> str:
    """The 90 % interval of a statistic in words; "" where there is none."""
    bounds = (stats["interval"] or {}).get(statistic)
    if not bounds:
        return ""
    return f"{short(bounds[0])} " + ("or more" if bounds[1] is None else f"to {short(bounds[1])}")


def _judged_between(stats: dict[str, Any], statistic: str) -> str:
    """The same beside an SLO, in seconds where milliseconds would need seven digits."""
    low, high = (stats["interval"] or {}).get(statistic) or (0.0, 0.0)
    if max(low, high or 0.0) < 1e6:
        return _between(stats, statistic)
    return f"{short(low / 1e3)} s or more" if high is None else f"{short(low / 1e3)} to {short(high / 1e3)} s"


def verdict_word(slo: dict[str, Any], metrics: dict[str, Any] | None = None) -> str:
    """MET, MISSED, or that the figures (`metrics`) cannot tell, and why."""
    if not slo.get("requests", 1):
        return "not judged: no request in the measured window"
    word = "MET" if slo["holds"] else "MISSED"
    if not slo.get("close"):
        return word
    few = metrics is not None and _only_short(slo, metrics)
    return f"CLOSE ({word.lower()}, but {'the run is too short' if few else 'within the error of the model or of this run'})"


def _only_short(slo: dict[str, Any], metrics: dict[str, Any]) -> bool:
    """Whether a verdict is close because the run has too few requests for its percentiles, and for no other reason."""
    from simulator.results.verdict import needed, percent_of

    def apart(check: dict[str, Any]) -> bool:
        low, high = (metrics[check["metric"]]["interval"] or {}).get(check["percentile"]) or (0.0, None)
        return low > check["bound_ms"] or (high is not None and high < check["bound_ms"])

    near = [check for check in slo["checks"] if check["close"]]
    requests = slo.get("requests", math.inf)
    few = (requests < needed(percent_of(check["percentile"])) for check in near)
    return bool(near) and not slo.get("attainment_close") and all(few) and all(map(apart, near))


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _aged(date: str) -> str:
    """A mark on the date of a price that is old today."""
    from simulator.price import reading_day, stale

    return " STALE: ask the provider" if stale(date, reading_day()) else ""


def _asks(scenario: dict[str, Any]) -> bool:
    """Whether the scenario, or a class of it, states an SLO."""
    classes = scenario.get("workload", {}).get("classes") or []
    slos = [scenario.get("slo"), *(kind.get("slo") for kind in classes)]
    return any(value is not None for slo in slos if slo for value in slo.values())


def verdict_lines(result: dict[str, Any], *, asked: bool) -> list[str]:
    """The SLO verdict and each of its parts, that of every class that has an SLO of its own among them.

    `asked` says whether the scenario states an SLO at all.
    """
    judged = [(kind["name"], kind["slo"], kind["metrics"]) for kind in result["classes"] if kind["slo"]]
    if not judged and result["slo"]:
        judged = [("", result["slo"], result["metrics"])]
    if not judged:
        why = "the run was interrupted" if asked else "none given (slo: in the scenario)"
        return [labelled("SLO", f"not judged: {why}")]
    label, indent = "SLO", " " * LABEL
    lines = []
    for name, verdict, metrics in judged:
        lines.append(labelled(label, (f"{name}: " if name else "") + verdict_word(verdict, metrics)))
        label = ""
        rows = []
        for check in verdict["checks"] if verdict.get("requests", 1) else ():
            metric = check["metric"].removesuffix("_ms").upper().replace("E2EL", "E2E")
            lost = "none has it" if check["holds"] else "lost requests"
            actual = lost if check["actual_ms"] is None else f"{short(check['actual_ms'])} ms"
            mark = "ok" if check["holds"] else "MISSED"
            model = _judged_between(metrics[check["metric"]], check["percentile"])
            sure = f"90 %: {model}" if model and check["actual_ms"] is not None else ""
            rows.append([f"{metric} {check['percentile']}", actual, f"of {short(check['bound_ms'])} ms", mark, sure])
        if rows:
            lines += table(rows[0], rows[1:], indent=indent + "  ", words=(3, 4))
        if verdict.get("attainment") is not None:
            wanted = verdict.get("attainment_wanted")
            asks = f" (wanted {wanted:.1%})" if wanted else ""
            lines.append(labelled("", f"  {verdict['attainment']:.1%} of requests good{asks}"))
    return lines


def class_lines(classes: list[dict[str, Any]]) -> list[str]:
    """A row of latencies for each request class; nothing if there is one."""
    if not classes:
        return []
    wanted = (("TTFT", "ttft_ms", "p50"), ("TTFT", "ttft_ms", "p99"), ("TPOT", "tpot_ms", "p50"),
              ("TPOT", "tpot_ms", "p99"), ("E2E", "e2el_ms", "p50"), ("E2E", "e2el_ms", "p99"))  # fmt: skip
    head = ["class, ms", "requests", *(f"{title} {p}" for title, _, p in wanted)]
    rows = [
        [kind["name"], f"{kind['requests']:,}", *(short(kind["metrics"][name][p]) for _, name, p in wanted)]
        for kind in classes
    ]
    return [*table(head, rows, drop=(6, 2, 4)), ""]


def stage_lines(stages: list[dict[str, Any]]) -> list[str]:
    """A row for each of the loads that followed each other."""
    if not stages:
        return []
    head = ["stage", "begins, s", "requests", "requests/s", "TTFT p50", "TTFT p99", "TPOT p50", "prefix hits", "SLO"]
    rows = [
        [
            stage["name"] + ("" if stage["measured"] else " (not measured)"),
            f"{stage['start_s']:,.0f}",
            f"{stage['totals']['offered']:,}",
            f"{stage['totals']['request_throughput']:.2f}",
            *(short(stage["metrics"][name][p]) for name, p in (("ttft_ms", "p50"), ("ttft_ms", "p99"), ("tpot_ms", "p50"))),
            f"{stage['server']['prefix_cache_hit_rate']:.1%}",
            verdict_word(stage["slo"]).partition(" ")[0] if stage["slo"] else "-",
        ]
        for stage in stages
    ]
    return [*table(head, rows, drop=(1, 8, 6)), ""]


def _unmeasured(provenance: dict[str, Any]) -> str:
    """Where the kernel times of a device without fits come from, for the line of sources."""
    donor = provenance.get("borrowed_from_device")
    if donor is None and "law" in provenance:
        return f", by the law of {provenance['law']}: half of a chip left out is within {provenance['law_error_pct']:.0f} %"
    if donor is None:
        return ", physics only, no measurements"
    error = provenance["borrowed_error_pct"]
    return f", none measured: borrowed from {donor}, held-out error about {error:.0f} %"


def _lost(totals: dict[str, Any]) -> bool:
    return any(totals[name] for name in REASONS)


def load_lines(totals: dict[str, Any], manifest: dict[str, Any]) -> list[str]:
    """What was offered, what became of it, and the measured window; and why requests were rejected or failed."""
    words = [f"{totals['offered']:,} requests offered", f"{totals['completed']:,} completed"]
    words += [f"{totals[name]:,} {name}" for name in REASONS if totals[name]]
    workload = manifest["scenario"]["workload"]
    if totals["not_arrived"] and (not _closed_loop(workload) or workload.get("requests")):
        late = "were never sent" if workload.get("requests") else "later turns fell after the end"
        words.append(f"{totals['not_arrived']:,} {late}")
    lines = [labelled("load", f"{', '.join(words)}; window {totals['duration_s']:,.0f} s")]
    for name in ("rejected", "failed"):
        why = reasons_of(totals, name)
        if totals[name] and why:
            lines.append(labelled("", f"{totals[name]:,} {name}: {why}"))
    return lines


def _has_rate(workload: dict[str, Any]) -> bool:
    """Whether the load could be raised: a batch is all there at once, and stages have no one rate."""
    if workload.get("stages"):
        return False
    loads = workload.get("classes") or [workload]
    return all((load.get("arrivals") or {}).get("kind") != "batch" for load in loads)


def _closed_loop(workload: dict[str, Any]) -> bool:
    """Whether requests were prepared that a faster server would have been sent; they are no part of the load."""
    stages = [workload, *(workload.get("stages") or [])]
    loads = [*stages, *(kind for stage in stages for kind in stage.get("classes") or [])]
    return any((load.get("arrivals") or {}).get("kind") == "closed_loop" for load in loads)


def deployed_lines(deployment: dict[str, Any], *, at_first: bool = False) -> list[str]:
    """What was deployed, a line for each pool; `at_first` where servers come and go later."""
    lines = []
    for pool in [*(deployment.get("pools") or [deployment]), *deployment.get("encoders", ())]:
        said = [f"{pool['engine']} {pool['engine_version']}"]
        if pool.get("role", "mixed") != "mixed":
            said.append(pool["role"])
        if "takes_turns_on" in pool:
            said.append(f"takes turns on {pool['takes_turns_on']}")
        if pool["model"] != deployment["model"]:
            said.append(f"{pool['model']}, weights {pool['weights']}, KV {pool['kv_cache']}")
        if "prompt_tokens" in pool:
            said.append(f"prompts of {pool['prompt_tokens'][0]:,} to {pool['prompt_tokens'][1]:,} tokens")
        if at_first:
            said.append("at first")
        lines.append(wrapped(f"on {pool['replicas']} x ({shape_of(pool)}) {pool['hardware']}, {', '.join(said)}", "  "))
    return lines


def first_token_lines(metrics: dict[str, Any], *, turns: bool) -> list[str]:
    """What the mean TTFT is made of; with `turns` models take turns on devices, for which requests wait."""
    if "ttft_front_ms" in metrics and "transfer_ms" not in metrics and metrics["ttft_ms"]["count"]:
        first = "front end and turns" if turns else "front end"
        of = {first: "front", "wait": "queue", "launches": "launch", "kernels": "kernel"}
        said = " + ".join(f"{words} {short(round(metrics[f'ttft_{name}_ms']['mean'], 3))}" for words, name in of.items())
        return [wrapped(f"  TTFT's mean: {said}", "    ")]
    parts = {"queue": "queue_ms", "prefill": "prefill_ms", "transfer": "transfer_ms", "decode queue": "decode_queue_ms"}
    if "transfer_ms" not in metrics or not metrics["ttft_ms"]["count"]:
        return []
    answered, means = metrics["ttft_ms"]["count"], {}
    for words, name in parts.items():
        found = metrics[name]  # requests without one have prompt and answer from one server
        means[words] = found["mean"] * (found["count"] / answered) if found["count"] else 0.0
    if "encode_ms" in metrics and metrics["encode_ms"]["count"]:
        encoded = sum(metrics[name]["mean"] for name in ("encode_queue_ms", "encode_ms", "encode_transfer_ms"))
        means = {"images": encoded * (metrics["encode_ms"]["count"] / answered), **means}
    rest = metrics["ttft_ms"]["mean"] - sum(means.values())
    said = " + ".join(f"{words} {short(mean)}" for words, mean in means.items())
    whole = short(metrics["ttft_ms"]["mean"])
    last = f"+ hand-over, front ends and first step {short(rest)}" if rest >= 0 else f"- what overlaps {short(-rest)}"
    return ["", labelled("TTFT", f"mean {whole} ms: {said} {last}")]


def first_lines(result: dict[str, Any]) -> list[str]:
    """Latencies of the first requests of cold servers beside those of the others."""
    first = result.get("first_requests")
    if not first:
        return []
    ways = (("TTFT", "ttft_ms", "p50"), ("TTFT", "ttft_ms", "p99"), ("TTFT", "ttft_ms", "max"), ("E2E", "e2el_ms", "p99"))
    head = ["cold servers, ms", "requests", *(f"{title} {of}" for title, _, of in ways)]
    rows = [
        [words, f"{of['ttft_ms']['count']:,}", *(short(of[name][part]) for _, name, part in ways)]
        for words, of in (("first requests", first["metrics"]), ("the others", first["others"]))
    ]
    return [*table(head, rows), ""]


def encoding_lines(result: dict[str, Any]) -> list[str]:
    """What requests wait for whose images other servers encode, and the load of these servers."""
    if not result.get("encoders"):
        return []
    metrics, lines = result["metrics"], []
    if metrics["encode_ms"]["count"]:
        of = {"front end and queue": "encode_queue_ms", "encoding": "encode_ms", "transfer": "encode_transfer_ms"}
        said = " + ".join(f"{words} {short(metrics[name]['mean'])}" for words, name in of.items())
        share = metrics["encode_ms"]["count"] / max(metrics["ttft_ms"]["count"], 1)
        lines.append(labelled("images", f"ms before {share:.0%} of the prompts are computed, in TTFT: {said}"))
    for pool in result["encoders"]:
        load = f"{pool['num_requests_running']:,.1f} running, {pool['num_requests_waiting']:,.1f} waiting a server"
        busy = f"{load}, busy {pool['gpu_busy_fraction']:.0%}"
        lines.append(labelled("encoding", f"pool '{pool['name']}': {pool['image_tokens_per_s']:,.0f} image tokens/s, {busy}"))
    return lines


def pool_lines(result: dict[str, Any]) -> list[str]:
    """The load of each pool, where there are several."""
    if not result.get("pools"):
        return []
    if "cost" in result["pools"][0]:
        return [*_served_lines(result["pools"]), ""]
    head = ["pool", "role", "running", "waiting", "KV used", "KV peak", "busy"]
    roles = {pool["name"]: pool["role"] for pool in result["deployment"]["pools"]}
    rows = [
        [
            pool["name"],
            roles[pool["name"]],
            *(f"{pool[f'num_requests_{what}']:,.1f}" for what in ("running", "waiting")),
            *(f"{pool[name]:.0%}" for name in ("kv_cache_usage_perc", "kv_cache_usage_perc_peak", "gpu_busy_fraction")),
        ]
        for pool in result["pools"]
    ]
    return [*table(head, rows), ""]


def _served_lines(pools: list[dict[str, Any]]) -> list[str]:
    """What each of several pools served, and what it costs."""
    head = ["pool", "requests", "TTFT p99", "TPOT p99", "busy", "KV peak", "$/hour", "$/1M", "good"]
    rows = [
        [
            pool["name"],
            f"{pool['requests']:,}",
            *(short(pool["metrics"][name]["p99"]) for name in ("ttft_ms", "tpot_ms")),
            *(f"{pool[name]:.0%}" for name in ("gpu_busy_fraction", "kv_cache_usage_perc_peak")),
            *(_usd(pool["cost"][name]) for name in ("usd_per_hour", "usd_per_1m_total_tokens")),
            "-" if pool["goodput_fraction"] is None else f"{pool['goodput_fraction']:.1%}",
        ]
        for pool in pools
    ]
    return table(head, rows, drop=(8, 5))


def _usd(value: float | None) -> str:
    return "-" if value is None else dollars(value)


FAULTS = {
    "node": ("node lost", "nodes lost"),
    "gpu": ("replica lost", "replicas lost"),
    "slow": ("replica slow", "replicas slow"),
    "reclaim": ("taken back", "taken back"),
    "drain": ("drain", "drains"),
}
"""Words for one fault and for several, by kind."""


def fleet_lines(result: dict[str, Any]) -> list[str]:
    """How many replicas served, and what was lost with those that went."""
    found = result.get("fleet")
    if found is None:
        return []
    least, most = found["serving_min"], found["serving_max"]
    words = f"{found['serving_mean']:.2f} replicas serve on average ({least} to {most})"
    if "pools" in found:
        each = (f"{p['name']} {p['serving_mean']:.2f} ({p['serving_min']} to {p['serving_max']})" for p in found["pools"])
        words += f": {', '.join(each)}"
    faults = ", ".join(f"{count:,} {FAULTS[kind][count > 1]}" for kind, count in found["faults"].items())
    if faults:
        words += f"; {faults}"
    if found["attempts_lost"]:
        again = found["attempts_sent_again"]
        what = f"{_counted(found['attempts_lost'], 'request')} under way and {found['tokens_lost']:,} tokens of theirs"
        words += f", with {what}" if faults else f"; those that were sent away lost {what}"
        words += f"; {again:,} sent again"
    return [labelled("fleet", words)]


def turns_lines(result: dict[str, Any]) -> list[str]:
    """How often models took turns on the same devices."""
    found = result.get("turns")
    if found is None:
        return []
    words = f"models took turns {found['changes']:,} times, which took {found['changing_fraction']:.1%} of their devices' time"
    return [labelled("turns", words)]


def summary(result: dict[str, Any], manifest: dict[str, Any], directory: str | None = None) -> str:
    """The text that `simulate` prints."""
    d, t, s = result["deployment"], result["totals"], result["server"]
    holder, device = holder_of(d), device_word(d["hardware"])
    latencies = table(
        ["latency, ms", "mean", "p50", "p90", "p99", "max", "mean, 90 % interval"], latency_rows(result["metrics"]), drop=(5, 3)
    )
    goodput = ""
    if t["request_goodput"] is not None and t["goodput_fraction"] is not None:
        goodput = f", good {t['request_goodput']:.2f}/s ({t['goodput_fraction']:.1%})"
    lines = [
        wrapped(f"{result['name']}: {d['model']}, weights {d['weights']}, KV {d['kv_cache']}", "  "),
        *deployed_lines(d, at_first="fleet" in result),
        *(
            [labelled("PARTIAL", "the run was interrupted: figures of the simulated time it reached")]
            if manifest.get("partial")
            else []
        ),
        "",
        *verdict_lines(result, asked=_asks(manifest["scenario"])),
        "",
        *latencies,
        *(["  of the requests served; the SLO counts those lost as infinitely late"] if _lost(t) else []),
        *first_token_lines(result["metrics"], turns="turns" in result),
        "",
        *encoding_lines(result),
        *pool_lines(result),
        *fleet_lines(result),
        *turns_lines(result),
        *stage_lines(result.get("stages", [])),
        *class_lines(result["classes"]),
        *first_lines(result),
        *load_lines(t, manifest),
        labelled(
            "through",
            f"{t['request_throughput']:.2f} requests/s{goodput}; {t['input_throughput']:,.0f} input + "
            f"{t['output_throughput']:,.0f} output tokens/s ({t['output_tput_per_gpu']:,.0f} output a {device})",
        ),
        labelled(
            "queue",
            f"{s['num_requests_running']:,.1f} running (peak {s['num_requests_running_peak']:,}), "
            f"{s['num_requests_waiting']:,.1f} waiting (peak {s['num_requests_waiting_peak']:,}) a {holder}",
        ),
        labelled(
            "KV cache",
            f"{s['kv_cache_usage_perc']:.0%} used (peak {s['kv_cache_usage_perc_peak']:.0%}) of {cache_words(d)}; "
            f"{_counted(s['num_preemptions'], 'preemption')}; prefix hits {s['prefix_cache_hit_rate']:.1%}",
        ),
        labelled(
            "GPU busy" if device == "GPU" else "busy",
            f"{s['gpu_busy_fraction']:.0%} of the time with any step, however small: not a measure of headroom"
            + (" (--headroom finds it)" if "headroom" not in result and _has_rate(manifest["scenario"]["workload"]) else ""),
        ),
    ]
    if "fleet" not in result:  # else the assumptions say how long a new server takes, and it is simulated
        lines += start_lines(d)
    if "headroom" in result:
        lines.append(labelled("headroom", headroom_words(result["headroom"])))
    lines += tier_lines(s)
    if s.get("spec_decode_num_drafts"):
        accepted = s["spec_decode_num_accepted_tokens"] / s["spec_decode_num_draft_tokens"]
        lines.append(
            labelled(
                "drafts",
                f"{s['spec_decode_mean_acceptance_length']:.2f} tokens a verification; {accepted:.1%} of "
                f"{s['spec_decode_num_draft_tokens']:,} drafts accepted",
            )
        )
    lines += [*cost_lines(result["cost"], result["deployment"].get("hardware", "")), ""]
    for label, texts in (
        ("warning", result["warnings"]),
        ("outside", result["extrapolation"]["axes"]),
        ("assumed", result["assumptions"]),
    ):
        lines += [labelled(label, text) for text in texts]
    lines.append(labelled("sources", _kernel_sources(manifest["kernel_model"], d["hardware"])))
    for other in manifest.get("other_pools", ()):
        of_pool = _kernel_sources(other["kernel_model"], other["hardware_profile"]["id"])
        lines.append(labelled("", f"pool '{other['pool']}': {of_pool}"))
    if directory:
        lines.append(labelled("written", directory))
    return "\n".join(lines)


START_UP = {"weights_s": "weights from disk", "compile_s": "compilation", "graph_capture_s": "graphs", "warm_up_s": "warm-up"}
"""Words for the parts of a start-up."""


def start_lines(deployment: dict[str, Any]) -> list[str]:
    """How long a server takes until it serves, for each pool."""
    lines, label = [], "start-up"
    for pool in deployment.get("pools") or [deployment]:
        if "start_up" in pool:
            found = pool["start_up"]
            said = " + ".join(f"{words} {short(found[name])}" for name, words in START_UP.items() if found[name])
            where = f"{pool['name']}: " if "name" in pool else ""
            assumed = "; " + "; ".join(note.removeprefix("start-up: ") for note in found["notes"]) if found["notes"] else ""
            lines.append(labelled(label, f"{where}{short(found['server_s'])} s a server, not simulated: {said}{assumed}"))
            label = ""
    return lines


PLACES = {"host": "host memory", "nvme": "disk", "shared": "the shared store"}
"""Words for the tiers of a KV cache."""


def tier_lines(server: dict[str, Any]) -> list[str]:
    """What was found in the tiers beyond the device."""
    tiers = server.get("kv_tiers")
    if tiers is None:
        return []
    if [tier["kind"] for tier in tiers] == ["host"]:
        return [labelled("host KV", f"{tiers[0]['hit_rate']:.1%} of the prompt tokens loaded from host memory")]
    each = ", ".join(f"{tier['hit_rate']:.1%} {PLACES[tier['kind']]}" for tier in tiers)
    whole = sum(tier["hit_rate"] for tier in tiers)  # what came from prefill servers is in no tier
    return [labelled("KV tiers", f"{whole:.1%} of the prompt tokens loaded: {each}")]


def headroom_words(found: dict[str, Any]) -> str:
    """How full the deployment is, and at which load it breaks its SLO and overflows."""
    unit, offered = found["unit"], found["offered"]
    beyond = "the queue grows without bound" if unit == "requests/s" else "requests stand in the queue"
    words = []
    if found["judged"] and found["within_slo"] == 0:
        words.append(f"no load tried keeps the SLO, however low; {short(offered)} {unit} offered")
    elif (limit := found["within_slo"] if found["judged"] else found["sustainable"]) is not None:
        kept = "that keep the SLO" if found["judged"] else f"above which {beyond}"
        words.append(f"{offered / limit:.0%} used: {short(offered)} of about {short(limit)} {unit} {kept}")
    else:
        words.append(f"{short(offered)} {unit} offered; no limit found up to {short(found['tried'])}")
    if found["judged"] and found["sustainable"]:
        words.append(f"{beyond} above about {short(found['sustainable'])} ({offered / found['sustainable']:.0%} used)")
    return f"{'; '.join(words)} (estimate, {found['runs']} short runs)"


def cost_lines(cost: dict[str, Any], hardware: str = "") -> list[str]:
    """The price of an hour, a month and a million tokens, and whose price it is; what the one kind of `hardware` costs to buy."""
    if cost["usd_per_hour"] is None:
        mend = "set cost.usd_per_gpu_hour or, if it is bought, cost.purchase_usd_per_gpu"
        from hardware_profiles.prices import read_prices

        if (bought := read_prices().purchases.get(hardware)) is not None:
            mend += f" ({bought.usd.value:,.0f}: {bought.item}, {bought.usd.date})"
        return [labelled("cost", f"no price known for this hardware; {mend}")]
    each = [cost[f"usd_per_1m_{kind}"] for kind in ("input_tokens", "output_tokens", "total_tokens", "output_only")]
    inputs, outputs, all_, charged = map(dollars, each)
    bounds = cost["interval"]["usd_per_1m_total_tokens"]
    low, high = map(dollars, bounds) if bounds else (all_, all_)
    sure = f" (90 %: {low} to {high})" if low != high else ""
    held = f"{cost['devices']:.4g}{' on average' * (cost['devices'] % 1 != 0)}"
    return [
        labelled(
            "cost",
            f"{dollars(cost['usd_per_hour'])}/hour ({held} x {dollars(cost['ListUnitPrice'])}), "
            f"{dollars(cost['usd_per_month'])}/month of 730 h",
        ),
        labelled("", f"per 1M tokens: input {inputs}, output {outputs}; all {all_}{sure}, all charged to output {charged}"),
        labelled(
            "",
            f"price: {cost['price_provider']}{',' if cost['SkuId'] == OWNED else ''} {cost['SkuId']}"
            + (f", {cost['RegionId']}" if cost["RegionId"] else "")
            + (f", {cost['price_date']}{_aged(cost['price_date'])}" if cost["price_date"] else "")
            + f" ({cost['price_kind']})",
        ),
    ]


def _kernel_sources(kernels: dict[str, Any], hardware: str) -> str:
    """Whose kernel times they are, how well they do, and where every number's source stands."""
    errors = kernels["held_out_error"]
    shown = ", ".join(
        f"{label} {errors[key]:.1f} %"
        for label, key in (
            ("GEMM", "gemm/bfloat16"),
            ("decode attention", "attention_decode/bfloat16/bfloat16"),
            ("prefill attention", "attention_context/bfloat16/bfloat16"),
        )
        if key in errors
    )
    how = f", error on unseen shapes {shown}" if shown else _unmeasured(kernels["provenance"])
    return (
        f"kernels: {kernels['framework']} on {kernels['device']}{how}; every number and its source: manifest.json, "
        f"`capacity-plan show hardware {hardware}`"
    )
