"""`check`: what a scenario would deploy, without running it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from hardware_profiles.errors import InfeasibleError
from simulator.cli.layout import labelled, table, wrapped
from simulator.report.words import holder_of

if TYPE_CHECKING:
    from engine_models.declaration import MemoryBudget
    from simulator.config.schema import Scenario
    from simulator.prepared import Prepared

CONTEXTS = (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144, 1048576)


def memory_lines(memory: MemoryBudget) -> list[str]:
    """The memory budget of one device as a table."""
    used = [(f"- {line.label}", line.bytes) for line in memory.lines]
    rows = [[name, f"{size / 1e9:,.2f} GB"] for name, size in (
        ("reported by the driver", memory.device_bytes),
        ("the engine may use", memory.usable_bytes),
        *used,
        ("= KV cache" if memory.kv_bytes_per_token else "= left", memory.kv_bytes),
    )]  # fmt: skip
    return table(["memory of one device", "GB = 1e9 bytes"], rows)


def memory_facts(prepared: Prepared) -> dict[str, Any]:
    """The memory of a pool's devices, and what fits into its KV cache, as data."""
    plan = prepared.plan
    tokens, limits = plan.limits.kv_tokens, plan.limits
    fit = {
        str(context): min(
            tokens // ((-(-context // limits.block_tokens) + limits.row_blocks) * limits.block_tokens), limits.rows
        )
        for context in CONTEXTS
        if context <= limits.context_tokens
    }
    return {
        "memory": plan.memory.as_dict(),
        "kv_tokens_per_replica": limits.told_tokens * prepared.ranks,
        **({"kv_tokens_per_rank": limits.told_tokens} if prepared.ranks > 1 else {}),
        **({"kv_tokens_per_replica_least": limits.least_stated * prepared.ranks} if limits.least_stated is not None else {}),
        "requests_that_fit_by_context_tokens": fit,
    }


def facts(prepared: Prepared) -> dict[str, Any]:
    """What `check` reports, as data; the memory of several pools also by their names."""
    from simulator.config.load import resolved
    from simulator.prepare import deployment_summary

    return {
        "fits": True,
        "deployment": deployment_summary(prepared),
        **memory_facts(prepared),
        **({"pools": {each.pool.name: memory_facts(each) for each in prepared.pools}} if prepared.pools else {}),
        **({"encoders": {each.pool.name: each.plan.memory.as_dict() for each in prepared.encoders}} if prepared.encoders else {}),
        "warnings": list(prepared.warnings),
        "assumptions": list(prepared.assumptions),
        "scenario": resolved(prepared.scenario),
    }


def pool_lines(pool: Prepared) -> list[str]:
    """The memory budget of a pool's devices, and how many requests a replica holds."""
    from engine_models.engines.known import engine_named
    from simulator.prepare import deployment_summary

    d, found = deployment_summary(pool), memory_facts(pool)
    holder, per_token = holder_of(d), found["memory"]["kv_bytes_per_token"]
    least = pool.plan.limits.least_stated
    fewer = "" if least is None else f" ({least:,} and more on its first start, or as it may be installed)"
    cache = f"{d['kv_tokens']:,} tokens a {holder}{fewer}; a token takes {per_token:,.0f} bytes on each device of it"
    source = pool.plan.limits.rows_by or engine_named(d["engine"]).same_as.get("rows")
    most = f"at most {d['max_num_seqs']:,}" + (f", {source}" if source else "")
    fit = found["requests_that_fit_by_context_tokens"]
    return [
        *memory_lines(pool.plan.memory),
        "",
        wrapped(f"  KV cache: {cache}", "  "),
        "",
        wrapped(f"  how many requests a {holder} holds at once, if each is that long ({most}):", "  "),
        *table(["prompt and answer, tokens", "requests at once"], [[f"{int(c):,}", f"{n:,}"] for c, n in fit.items()]),
    ]


def refused(prepared: Prepared) -> list[str]:
    """Warnings on requests that are too long to be served; InputError if all of them are.

    Workloads that are too large to be held are not looked at.
    """
    from dataclasses import replace

    import numpy as np

    from engine_models.lengths import judged
    from simulator.limits import all_refused, counted_lengths, refusals
    from simulator.pools import check_longest
    from simulator.run import STREAM_ABOVE
    from simulator.served import check_asked
    from simulator.workload.build import build_workload
    from simulator.workload.stages import stage_specs
    from simulator.workload.streaming import open_stream

    spec, seed, base = prepared.scenario.workload, prepared.scenario.seed, prepared.base_dir
    if spec.stages is not None:
        said = []
        for stage, own in zip(spec.stages, stage_specs(spec), strict=True):
            alone = replace(prepared, scenario=prepared.scenario.model_copy(update={"workload": own}))
            said += [f"{stage.name}: {text}" for text in refused(alone)]
        return said
    if open_stream(spec, seed=seed, base_dir=base, above=STREAM_ABOVE) is not None:
        return []
    workload = build_workload(spec, seed=seed, base_dir=base)
    check_longest(prepared, workload)
    said = check_asked(prepared, workload)
    if prepared.side_by_side or prepared.services:  # which pool a request goes to, and so who may refuse it, the run decides
        return said
    limits = prepared.limits
    found = judged(workload.prompt_tokens, workload.output_tokens, workload.max_output_tokens, prepared.plan.limits)
    counted = counted_lengths(found, np.ones(len(workload), bool))
    if len(workload) and found.refused.all():
        raise all_refused(len(workload), counted, limits)
    return [f"{text} (of {len(workload):,})" for text in refusals(counted, limits)]


SHOWN = 8
"""Other hardware that an error names."""


def what_would_hold(scenario: Scenario) -> str:
    """What to deploy instead of what does not fit: more of the same card, smaller weights, other hardware by price."""
    from simulator.planning.holding import Holder, more_of_the_same, other_hardware, smaller_weights
    from simulator.report.numbers import dollars

    def words(holder: Holder) -> str:
        price = "" if holder.usd_per_hour is None else f" {dollars(holder.usd_per_hour)}/hour"
        return f"{holder.devices} x {holder.hardware}{price}" + ("" if holder.native else " (weight-only)")

    said = []
    if (same := more_of_the_same(scenario)) is not None:
        stages = f", pipeline_parallel: {same.pipeline_parallel}" if same.pipeline_parallel > 1 else ""
        said.append(f"more of the same: {words(same)} (tensor_parallel: {same.tensor_parallel}{stages})")
    if formats := smaller_weights(scenario):
        said.append(f"a checkpoint with weights in {', '.join(formats)} fits as deployed")
    if others := other_hardware(scenario):
        said.append(f"one node of other cards, by price: {', '.join(map(words, others[:SHOWN]))}")
    return "; ".join(said)


def check_command(name: str, overrides: list[str], as_json: bool) -> None:
    """Print what a scenario would deploy; if it cannot, by how much and what would hold it (exit 3)."""
    from simulator.cli.errors import placed
    from simulator.cli.summary import deployed_lines
    from simulator.config.load import load_scenario
    from simulator.prepare import prepare

    scenario = load_scenario(name, overrides)
    try:
        with placed(name, overrides):
            prepared = prepare(scenario)
            prepared.times()
    except InfeasibleError as error:
        hold = what_would_hold(scenario)
        mend = f"{error.mend}; {hold}" if hold else error.mend
        raise InfeasibleError(error.message, where=error.where, mend=mend) from None
    report = facts(prepared)
    with placed(name, overrides):
        report["warnings"] += refused(prepared)
    if as_json:
        print(json.dumps(report))
        return
    d = report["deployment"]
    print(wrapped(f"{scenario.name}: {d['model']}, weights {d['weights']}, KV {d['kv_cache']}", "  "))
    print("\n".join(deployed_lines(d)))
    for pool in prepared.pools or (prepared,):
        named = [f"pool {pool.pool.name}"] if prepared.pools or prepared.encoders else []
        print("\n" + "\n".join([*named, *pool_lines(pool)]))
    for pool in prepared.encoders:
        print("\n" + "\n".join([f"pool {pool.pool.name}", *memory_lines(pool.plan.memory)]))
    print("\n  the resolved scenario, every default filled in: add --json\n")
    for label, texts in (("warning", report["warnings"]), ("assumed", report["assumptions"])):
        for text in texts:
            print(labelled(label, text))
