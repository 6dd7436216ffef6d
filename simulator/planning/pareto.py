"""Which points are worth a look: the Pareto front, and the cheapest point that keeps the SLO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from simulator.results.verdict import percent_of

Row = Mapping[str, Any]


def pareto_front(pairs: Sequence[tuple[float | None, float | None]]) -> list[bool]:
    """Tell for each (cost, latency) whether no other pair is as good in both and better in one; None never is.

    Equal pairs stand on the front together.

    >>> pareto_front([(1, 9), (2, 5), (3, 6), (4, None)])
    [True, True, False, False]
    """
    known = sorted({(c, v) for c, v in pairs if c is not None and v is not None})
    front, best = set(), float("inf")
    for cost, latency in known:
        if latency < best:
            front.add((cost, latency))
            best = latency
    return [pair in front for pair in pairs]


def cost_column(rows: Sequence[Row], axes_paths: Sequence[str]) -> str:
    """Column by which points are cheap: the hourly cost; where points serve different loads, that of a token.

    Without a price of every device the number of devices stands for the cost.
    """
    finished = [row for row in rows if row["status"] == "ok"]
    if any(row["usd_per_hour"] is None for row in finished):
        return "devices"
    same_load = not any(path.split(".")[0] in ("workload", "model", "seed") for path in axes_paths)
    return "usd_per_hour" if same_load else "usd_per_1m_total_tokens"


def latency_column(rows: Sequence[Row], slo: Mapping[str, Mapping[str, float]]) -> str:
    """Column of the latency that is traded against cost: the SLO's first metric at its highest percentile."""
    for metric, named in slo.items():
        if named:
            highest = max(named, key=percent_of)
            if any(f"{metric}_{highest}" in row for row in rows):
                return f"{metric}_{highest}"
    return "e2el_ms_p99"


def cheapest(rows: Sequence[Row], cost: str, latency: str, verdict: str = "met") -> Row | None:
    """The cheapest finished point of that SLO verdict; of equally cheap ones the quickest."""

    def key(row: Row) -> tuple[float, float, int]:
        late = row.get(latency)
        return row[cost], float("inf") if late is None else late, row["point"]

    chosen = [
        row for row in rows if row["status"] == "ok" and row["slo"] == verdict and row[cost] is not None
    ]
    return min(chosen, key=key, default=None)


def steady(row: Row) -> bool:
    """Whether a point's percentiles say how quick it is: not where it lost requests or falls ever further behind."""
    lost = row["status"] != "ok" or row["unfinished"] or row["rejected"] or row["failed"]
    return not lost and not row["overloaded"]


def on_front_of(rows: Sequence[Row], cost: str, latency: str) -> list[bool]:
    """Which rows are on the front."""
    return pareto_front([(row[cost], row[latency]) if steady(row) else (None, None) for row in rows])


def answers(rows: Sequence[Row], cost: str, latency: str) -> tuple[Row | None, Row | None]:
    """The cheapest point that meets the SLO, and the cheapest whose verdict is close, if that is cheaper still."""
    best = cheapest(rows, cost, latency)
    close = cheapest(rows, cost, latency, "close")
    if close is not None and best is not None and close[cost] >= best[cost]:
        close = None
    return best, close
