"""The terminal summary of a run: what a capacity planner reads at a glance."""

from __future__ import annotations

from typing import Any

from simulator.report.words import REASONS, holder_of, reasons_of, shape_of

LATENCIES = (("TTFT", "ttft_ms"), ("TPOT", "tpot_ms"), ("ITL", "itl_ms"), ("E2E", "e2el_ms"), ("queue", "queue_ms"))


def number(value: float | None, digits: int = 1) -> str:
    """A number with thousands separators, a dash for none."""
    return "-" if value is None else f"{value:,.{digits}f}"


def short(value: float | None) -> str:
    """Three significant digits, plain notation down to a ten-thousandth, a dash for none."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-3:
        return f"{value:.3g}"
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return f"{value:,.{digits}f}"


def dollars(value: float | None) -> str:
    """An amount in dollars."""
    if value is None:
        return "-"
    return f"${value:,.0f}" if value >= 1000 else f"${value:,.2f}" if value >= 0.1 else f"${value:,.4f}"


def wrapped(text: str, indent: str, width: int = 100) -> str:
    """Text folded to `width`, all lines but the first indented."""
    import textwrap

    return textwrap.fill(text, width=width, subsequent_indent=indent)


def latency_rows(metrics: dict[str, Any]) -> list[list[str]]:
    """Rows of the latency table: metric, mean with its 95 % sampling error, p50, p90, p99, max."""
    rows = []
    for title, name in LATENCIES:
        stats = metrics[name]
        half = "" if not stats["ci95"] else f" ±{short((stats['ci95'][1] - stats['ci95'][0]) / 2)}"
        bounds = (stats["interval"] or {}).get("mean")
        model = "-"
        if bounds:
            model = f"{short(bounds[0])} " + ("or more" if bounds[1] is None else f"to {short(bounds[1])}")
        rows.append(
            [title, short(stats["mean"]) + half, *(short(stats[p]) for p in ("p50", "p90", "p99", "max")), model]
        )
    return rows


def table(head: list[str], rows: list[list[str]], indent: str = "  ") -> list[str]:
    """Aligned lines: the first column left, the others right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = []
    for row in [head, *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append((indent + "  ".join([row[0].ljust(widths[0]), *cells[1:]])).rstrip())
    return lines


def verdict_word(slo: dict[str, Any]) -> str:
    """MET, MISSED, or that the figures cannot tell."""
    word = "MET" if slo["holds"] else "MISSED"
    return f"CLOSE ({word.lower()}, but within the error of the model or of this run)" if slo.get("close") else word


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")


def _aged(date: str) -> str:
    """A mark on the date of a price that is old today."""
    from simulator.planning.budget import reading_day, stale

    return " STALE: ask the provider" if stale(date, reading_day()) else ""


def _asks(scenario: dict[str, Any]) -> bool:
    """Whether the scenario, or a class of it, states an SLO."""
    classes = scenario.get("workload", {}).get("classes") or []
    slos = [scenario.get("slo"), *(kind.get("slo") for kind in classes)]
    return any(value is not None for slo in slos if slo for value in slo.values())


def verdict_lines(slo: dict[str, Any] | None, classes: list[dict[str, Any]], *, asked: bool) -> list[str]:
    """The SLO verdict and each of its parts, that of every class that has an SLO of its own among them.

    `asked` says whether the scenario states an SLO at all.
    """
    judged = [(kind["name"], kind["slo"]) for kind in classes if kind["slo"]] or ([("", slo)] if slo else [])
    if not judged:
        why = "no request in the measured window" if asked else "none given (slo: in the scenario)"
        return [f"SLO       not judged: {why}"]
    title = "SLO       "
    lines = []
    for name, verdict in judged:
        lines.append(title + (f"{name}: " if name else "") + verdict_word(verdict))
        title = " " * len(title)
        rows = []
        for check in verdict["checks"]:
            metric = check["metric"].removesuffix("_ms").upper().replace("E2EL", "E2E")
            actual = "lost requests" if check["actual_ms"] is None else f"{short(check['actual_ms'])} ms"
            mark = "ok" if check["holds"] else "MISSED"
            rows.append([f"{metric} {check['percentile']}", actual, f"of {short(check['bound_ms'])} ms", mark])
        if rows:
            lines += table(rows[0], rows[1:], indent=title + "  ")
        if verdict.get("attainment") is not None:
            wanted = verdict.get("attainment_wanted")
            lines.append(
                f"{title}  {verdict['attainment']:.1%} of requests good" + (f" (wanted {wanted:.1%})" if wanted else "")
            )
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
    return [*table(head, rows), ""]


def _unmeasured(provenance: dict[str, Any]) -> str:
    """Where the kernel times of a device without fits come from, for the line of sources."""
    donor = provenance.get("borrowed_from_device")
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
    if totals["not_arrived"] and not _closed_loop(manifest["scenario"]["workload"]):
        words.append(f"{totals['not_arrived']:,} later turns fell after the end")
    lines = [f"load      {', '.join(words)}; window {totals['duration_s']:,.0f} s"]
    for name in ("rejected", "failed"):
        why = reasons_of(totals, name)
        if totals[name] and why:
            lines.append(wrapped(f"          {totals[name]:,} {name}: {why}", " " * 12, 80))
    return lines


def _closed_loop(workload: dict[str, Any]) -> bool:
    """Whether requests were prepared that a faster server would have been sent; they are no part of the load."""
    loads = [workload, *(workload.get("classes") or [])]
    return any((load.get("arrivals") or {}).get("kind") == "closed_loop" for load in loads)


def summary(result: dict[str, Any], manifest: dict[str, Any], directory: str | None = None) -> str:
    """The text that `simulate` prints."""
    d, t, s, c = result["deployment"], result["totals"], result["server"], result["cost"]
    holder = holder_of(d)
    lines = [
        f"{result['name']}: {d['model']}, weights {d['weights']}, KV {d['kv_cache']}",
        f"on {d['replicas']} x ({shape_of(d)}) {d['hardware']}, {d['engine']} {d['engine_version']}",
        *(["PARTIAL   the run was interrupted: figures of the simulated time it reached"] if manifest.get("partial") else []),
        "",
        *verdict_lines(result["slo"], result["classes"], asked=_asks(manifest["scenario"])),
        "",
        *table(["latency, ms", "mean", "p50", "p90", "p99", "max", "mean, 90 % interval"], latency_rows(result["metrics"])),
        *(["  of the requests served; the SLO counts those lost as infinitely late"] if _lost(t) else []),
        "",
    ]
    lines += class_lines(result["classes"])
    goodput = ""
    if t["request_goodput"] is not None and t["goodput_fraction"] is not None:
        goodput = f", good {t['request_goodput']:.2f}/s ({t['goodput_fraction']:.1%})"
    lines += [
        *load_lines(t, manifest),
        f"through   {t['request_throughput']:.2f} requests/s{goodput}; {t['input_throughput']:,.0f} input + "
        f"{t['output_throughput']:,.0f} output tokens/s ({t['output_tput_per_gpu']:,.0f} output a GPU)",
        f"queue     {s['num_requests_running']:,.1f} running (peak {s['num_requests_running_peak']:,}), "
        f"{s['num_requests_waiting']:,.1f} waiting (peak {s['num_requests_waiting_peak']:,}) a {holder}",
        f"KV cache  {s['kv_cache_usage_perc']:.0%} used (peak {s['kv_cache_usage_perc_peak']:.0%}) of {d['kv_tokens']:,} "
        f"tokens a {holder}; {_counted(s['num_preemptions'], 'preemption')}; prefix hits {s['prefix_cache_hit_rate']:.1%}",
        f"GPU busy  {s['gpu_busy_fraction']:.0%} of the time with any step, however small: not a measure of headroom",
    ]
    if "external_prefix_cache_hit_rate" in s:
        lines.append(f"host KV   {s['external_prefix_cache_hit_rate']:.1%} of the prompt tokens loaded from host memory")
    if s.get("spec_decode_num_drafts"):
        lines.append(
            f"drafts    {s['spec_decode_mean_acceptance_length']:.2f} tokens a verification; "
            f"{s['spec_decode_num_accepted_tokens'] / s['spec_decode_num_draft_tokens']:.1%} of "
            f"{s['spec_decode_num_draft_tokens']:,} drafts accepted"
        )
    if c["usd_per_hour"] is None:
        lines.append("cost      no price known for this hardware; set cost.usd_per_gpu_hour")
    else:
        lines += [
            f"cost      {dollars(c['usd_per_hour'])}/hour ({c['devices']} x {dollars(c['ListUnitPrice'])}), "
            f"{dollars(c['usd_per_month'])}/month of 730 h",
            f"          per 1M tokens: input {dollars(c['usd_per_1m_input_tokens'])}, output "
            f"{dollars(c['usd_per_1m_output_tokens'])}; all {dollars(c['usd_per_1m_total_tokens'])}, all charged to output "
            f"{dollars(c['usd_per_1m_output_only'])}",
            f"          price: {c['price_provider']} {c['SkuId']}"
            + (f", {c['RegionId']}" if c["RegionId"] else "")
            + (f", {c['price_date']}{_aged(c['price_date'])}" if c["price_date"] else "")
            + f" ({c['price_kind']})",
        ]
    lines.append("")
    lines += [wrapped(f"warning   {text}", " " * 10) for text in result["warnings"]]
    lines += [wrapped(f"outside   {text}", " " * 10) for text in result["extrapolation"]["axes"]]
    lines += [wrapped(f"assumed   {text}", " " * 10) for text in result["assumptions"]]
    kernels = manifest["kernel_model"]
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
    lines.append(
        wrapped(
            f"sources   kernels: {kernels['framework']} on {kernels['device']}"
            + (f", error on unseen shapes {shown}" if shown else _unmeasured(kernels["provenance"]))
            + "; every number and its source: manifest.json, `capacity-plan show hardware "
            + d["hardware"]
            + "`",
            " " * 10,
        )
    )
    if directory:
        lines.append(f"written   {directory}")
    return "\n".join(lines)
