"""What became of a fleet whose replicas came and went, for result.json."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from simulator.results.timeline import Window

if TYPE_CHECKING:
    from simulator.cluster.cluster import Cluster
    from simulator.cluster.fleet import Level, Toll
    from simulator.cluster.servers import Change
    from simulator.prepared import Prepared


def fleet_figures(cluster: Cluster, window: Window, before: Toll | None = None, begin_s: float = 0.0) -> dict[str, Any]:
    """Replicas over time, losses, and device-hours of the window; empty if nothing ever changed.

    Of a load that began at `begin_s` with what was lost `before`, replicas and losses from then on.
    """
    toll = cluster.toll
    if toll is None:
        return {}
    if all(len(levels) == 1 for levels in toll.fleet.levels) and not (toll.faults or toll.added or toll.removed):
        return {}
    toll = toll if before is None else toll.since(before)
    pools = [_from(levels, begin_s) for levels in toll.fleet.levels]
    end_s = max(window.end_s, cluster.end_of_run_s())
    found = _served(_together(pools), window, end_s)
    over_time = found.pop("over_time")
    own = [(members.name, levels) for members, levels in zip(toll.fleet.pools, pools, strict=True) if members.devices]
    return {
        **found,
        "device_hours": cluster.devices.mean(window.start_s, window.end_s) * window.length_s / 3600.0,
        "faults": toll.faults,
        "added": toll.added,
        "removed": toll.removed,
        "attempts_lost": toll.lost,
        "attempts_sent_again": toll.again,
        "tokens_lost": toll.lost_tokens,
        "over_time": over_time,
        **(
            {
                "pools": [
                    {"name": name, **_served(levels, window, end_s)}
                    for name, levels in own
                ]
            }
            if len(own) > 1
            else {}
        ),
    }


def _from(levels: list[Level], begin_s: float) -> list[Level]:
    """The levels from a time on."""
    first = max(n for n, level in enumerate(levels) if not n or level.at_s <= begin_s)
    return [levels[first]._replace(at_s=max(levels[first].at_s, begin_s)), *levels[first + 1 :]]


def _together(pools: list[list[Level]]) -> list[Level]:
    """The levels of pools, added up."""
    if len(pools) == 1:
        return pools[0]
    from simulator.cluster.fleet import Level

    at = [0] * len(pools)
    found = []
    for at_s in sorted({level.at_s for levels in pools for level in levels}):
        for number, levels in enumerate(pools):
            while at[number] + 1 < len(levels) and levels[at[number] + 1].at_s <= at_s:
                at[number] += 1
        counts = zip(*(levels[now][1:] for levels, now in zip(pools, at, strict=True)), strict=True)
        found.append(Level(at_s, *map(sum, counts)))
    return found


def _served(levels: list[Level], window: Window, end_s: float) -> dict[str, Any]:
    """How many replicas served, and how all stood over time."""
    levels = [level for level in levels if level.at_s <= end_s]
    until = [later.at_s for _, later in pairwise(levels)] + [end_s]
    inside = [
        (level.up, min(to_s, window.end_s) - max(level.at_s, window.start_s))
        for level, to_s in zip(levels, until, strict=True)
    ]
    lived = [(up, length_s) for up, length_s in inside if length_s > 0]
    return {
        "serving_mean": sum(up * length_s for up, length_s in lived) / max(window.length_s, 1e-9),
        "serving_min": min((up for up, _ in lived), default=levels[-1].up),
        "serving_max": max((up for up, _ in lived), default=levels[-1].up),
        "over_time": {
            name: [getattr(level, name) for level in levels] for name in ("at_s", "up", "draining", "coming", "devices")
        },
    }


def turns_figures(changes: Sequence[Change], window: Window, prepared: Prepared) -> dict[str, Any]:
    """How often models took turns in the window, and the share of the time that it took; empty where none does."""
    places: dict[str, int] = {
        each.turns.place: each.devices // each.devices_each for each in prepared.pools if each.turns is not None
    }
    if not places:
        return {}
    taken_s = [max(min(each.to_s, window.end_s) - max(each.from_s, window.start_s), 0.0) for each in changes]
    inside = [each for each in changes if window.start_s <= each.from_s <= window.end_s]
    return {
        "changes": len(inside),
        "changing_fraction": sum(taken_s) / max(window.length_s * sum(places.values()), 1e-9),
        "to": {each.pool.name: sum(change.after == n for change in inside) for n, each in enumerate(prepared.pools)},
    }
